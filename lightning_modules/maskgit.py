"""MaskGIT inpainting: a bidirectional transformer fills the tokens of a hole (Chang et al. 2022, arXiv 2202.04200)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.checks import checked
from generative.guidance import ClassifierFreeGuidance, LabelDropout
from generative.inpainting import composite, gray_patches, token_mask
from generative.metrics.means import NamedMeans
from generative.networks.token_transformer import TokenTransformer
from generative.networks.tokenizer import Tokenizer, load_tokenizer, read_tokenizer
from generative.objectives.masked_tokens import MaskedTokenObjective, near_codes, token_accuracy
from generative.patch_evidence import code_patches, patch_evidence
from generative.randomness import Randomness
from generative.ranges import Positive, WholeNumber
from generative.samplers.masked import MaskedTokenSampler
from generative.types import Batch, Condition, LossOutput, State, restoration_condition
from lightning_modules.base import ImageData
from lightning_modules.contract import Card, Output, Part, Task
from lightning_modules.generative_module import GenerativeModule

ACCURACY_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of masked tokens at which the token accuracy is measured
NUM_MEASURED = 1024  # training images in which the patches of the codes are measured
MEASURED_AT_ONCE = 64
NUM_CHECKED = 32  # validation images whose known pixels are looked at before the first step


@checked("module")
class MaskGIT(GenerativeModule):
    """Learns to guess masked tokens and fills holes by guessing a few at a time.

    The tokenizer stays frozen and out of the state dict. In training the images' tokens come from a cache, computed once.

    Args:
        network: Makes the transformer from ``num_codes``, ``grid_size`` and ``codebook_KE``, which are the tokenizer's.
        tokenizer: Checkpoint of the tokenizer, or None where none was found.
        sampler: How the tokens of a hole are drawn.
        conditional: Whether the network is told the labels of the data set.
        guidance: Classifier-free guidance of ``sample``; of scale 1 where there are no labels to guide by.
        label_dropout: What is hidden of the labels in training, so that the network knows the unconditional answer too;
            None hides nothing.
        dilation: Tokens by which a hole is widened, so that none that saw its fill counts as known; None is the
            tokenizer's receptive radius, 0 trusts tokens next to the hole.
        pixel_std: Standard deviation of pixels around the patch of their code, by which the known pixels of partly covered
            patches inform the guess of their token (``generative.patch_evidence``); None leaves them unused.
        feather: Width in pixels of a ramp outside the hole over which ``sample`` goes from the decoded to the known pixels;
            0 keeps every known pixel.
        reimpose_known: Put exactly known pixels back into ``sample`` and ``mean``; False leaves them as they are decoded.
        cache_dir: Cache folder of the tokens, or None for the user's.
        **kwargs: Arguments of ``GenerativeModule``.

    Raises:
        ValueError: If there is no tokenizer.

    Attributes:
        mean_network_calls: Network calls behind a ``sample``, mean over the images of the last test; None before it.
    """

    network: TokenTransformer
    tasks: ClassVar[frozenset[Task]] = frozenset({"inpaint"})
    card: ClassVar[Card] = Card(
        "MaskGIT: a bidirectional transformer that fills holes in images by guessing tokens (arXiv 2202.04200)",
        "Filling holes whose surroundings are known: `sample` is one plausible filling and keeps the known pixels, `mean` is "
        "the picture of the expected codes, the closer one by squared error.",
        "A filling is an invention. No filling can be closer than the tokenizer's reconstruction (`composite` in the "
        "tables). Noise and blur are not repaired.",
    )
    part_keys: ClassVar[tuple[str, ...]] = ("tokenizer",)
    training_only: ClassVar[Mapping[str, Any]] = {
        **GenerativeModule.training_only,
        "cache_dir": None,
    }

    def __init__(
        self,
        network: Callable[..., TokenTransformer],
        tokenizer: str | None,
        objective: MaskedTokenObjective,
        sampler: MaskedTokenSampler,
        conditional: bool = False,
        guidance: ClassifierFreeGuidance | None = None,
        label_dropout: LabelDropout | None = None,
        dilation: WholeNumber | None = None,
        pixel_std: Positive | None = None,
        feather: WholeNumber = 0,
        reimpose_known: bool = True,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        if tokenizer is None:
            raise ValueError(
                "no finished tokenizer of this data was found: train one first, as with python train.py "
                "experiment=vqgan_scenes (or vqgan_cats), or name one with tokenizer=RUN_DIR."
            )
        loaded = load_tokenizer(tokenizer)
        transformer = network(**_settings(loaded))
        super().__init__(transformer, **kwargs)
        self._tokenizer = loaded
        self.objective = objective
        self.sampler = sampler
        self.conditional = conditional
        self.guidance = guidance or ClassifierFreeGuidance()
        if self.guidance.rescale:
            raise ValueError(
                f"guidance.rescale={self.guidance.rescale:g} is for images, not for logits: set guidance.rescale=0."
            )
        self.label_dropout = label_dropout
        self.dilation = loaded.dilation if dilation is None else dilation
        if pixel_std is not None and transformer.pixels is not None:
            raise ValueError(
                f"module.pixel_std={pixel_std:g} would count the known pixels twice, which network.pixels=true has the network "
                "see: set module.pixel_std=null, or network.pixels=false."
            )
        self.pixel_std = pixel_std
        self.feather = feather
        self.reimpose_known = reimpose_known
        self._targets: Tensor | None = None  # (K, K) what the loss asks for in the place of each code, if not it alone
        self._network_calls = NamedMeans()
        self.mean_network_calls: float | None = None
        self.cache_dir = cache_dir

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer, on the module's device."""
        return self._tokenizer.to(self.device)

    @property
    def outputs(self) -> dict[str, Output]:
        """``sample`` with the mean of its network calls after a test; before it, the most that one takes."""
        calls = self.sampler.num_network_calls if self.mean_network_calls is None else round(self.mean_network_calls, 3)
        calls = int(calls) if calls == int(calls) else calls
        return {"sample": Output(calls), "mean": Output(1), "decoded": Output(None, puts_back_known=False)}

    @property
    def uses_labels(self) -> bool:
        return self.conditional

    def check_data(self, data: ImageData) -> None:
        """Refuse images that the tokenizer does not fit, and a degradation that leaves nothing known to go by."""
        self.tokenizer.check_images(data.image_size, data.channels)
        # More than one image: a mixture of degradations may begin with one that leaves known pixels.
        batch = data.batch("val", range(min(NUM_CHECKED, len(data.splits.val))))
        if batch.validity is None or not batch.validity.flatten(1).any(1).all():
            raise ValueError(
                "MaskGIT repairs holes whose surroundings are known: choose degradation=holes, block_mask or brush_mask."
            )

    def parts_record(self) -> dict[str, Any]:
        return {"tokenizer": self._tokenizer.record()}

    def parts(self) -> dict[str, Part]:
        settings, _ = read_tokenizer(self._tokenizer.path)
        return {"tokenizer": Part(self._tokenizer.network, settings, _tokenizer_card(self._tokenizer))}

    @classmethod
    def network_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return _settings(load_tokenizer(arguments["tokenizer"]))

    def setup(self, stage: str) -> None:
        """Tokenize the training images, and measure what their patches look like."""
        if stage == "fit":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            data.use_tokenizer(self._tokenizer, self.cache_dir)
            self.measure_patches(data)

    def measure_patches(self, data: ImageData) -> None:
        """Tell network and objective what the patches of each code look like in the first training images."""
        batch = data.batch("train", range(min(NUM_MEASURED, len(data.splits.train))), self.device)
        tokens = torch.cat([self.tokenizer.encode(part) for part in batch.image.split(MEASURED_AT_ONCE)])
        if self.network.pixels is not None:
            self.network.pixels.measure(batch.image, tokens)
        if self.objective.target_std > 0:
            patch_KCPP, _ = code_patches(batch.image, tokens, self.network.num_codes)
            self._targets = near_codes(patch_KCPP, self.objective.target_std)

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        """The tokens come with the batch, the tokenizer does not run."""
        assert batch.tokens is not None, "the data module has no tokenizer"
        hole = None if batch.validity is None else self._unknown(batch.validity)
        condition, targets = self._condition(batch), self._targets
        if condition.labels is not None and self.label_dropout is not None:
            condition = replace(condition, labels=self.label_dropout(condition.labels, randomness))
        targets = None if targets is None else targets.to(batch.tokens.device)
        return self.objective(self.network, batch.tokens, hole, condition, randomness, targets)

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """A plausible image, the tokenizer's picture of it, and the mean.

        Args:
            batch: Batch with degraded images.

        Returns:
            ``decoded``, the tokenizer's picture of the sampled tokens; ``sample``, the same with the known pixels; and
            ``mean``, the picture of the expected codes, in one network call. That is not the expected picture, the answer of
            least squared error, since the decoder is no linear map and each code is expected from the known tokens and its
            own patch alone; how near it comes is measured (``callbacks.Calibration``).
        """
        degraded, validity = batch.observed()
        tokens, unknown = self.tokenizer.encode(degraded), self._unknown(validity)
        condition, evidence = self._condition(batch), self._evidence(batch)
        filled = self.sampler(self.network, tokens, unknown, condition, randomness, evidence, self._guidance)
        decoded = self.tokenizer.decode(filled)
        mean = self._mean(tokens, unknown, condition, evidence)
        outputs = {"sample": decoded, "mean": mean}
        if self.reimpose_known:
            outputs = {name: composite(degraded, validity, image, self.feather) for name, image in outputs.items()}
        return outputs | {"decoded": decoded}

    def _evidence(self, batch: Batch) -> Tensor | None:
        """(B, N, K) what the known pixels of partly covered patches say of their tokens."""
        if self.pixel_std is None:
            return None
        degraded, validity = batch.observed()
        tokenizer = self.tokenizer
        return patch_evidence(
            degraded, validity, tokenizer.patches.to(degraded).flatten(1), tokenizer.grid_size, self.pixel_std
        )

    def _mean(self, tokens_BN: Tensor, unknown_BN: Tensor, condition: Condition, evidence_BNK: Tensor | None) -> Tensor:
        logits_BNK = self.network(torch.where(unknown_BN, self.network.mask_token, tokens_BN), condition).float()
        if evidence_BNK is not None:
            logits_BNK = logits_BNK + evidence_BNK
        known_BNK = F.one_hot(tokens_BN, self.network.num_codes).float()
        return self.tokenizer.decode_mean(torch.where(unknown_BN[..., None], logits_BNK.softmax(-1), known_BNK))

    def states(self, batch: Batch, randomness: Randomness) -> Iterator[State]:
        """On the way to ``decoded``.

        Yields:
            After each step the picture with the patches of tokens that are still masked painted grey, and the picture of
            the step's whole guess.
        """
        degraded, validity = batch.observed()
        tokens, unknown = self.tokenizer.encode(degraded), self._unknown(validity)
        for state in self.sampler.states(
            self.network, tokens, unknown, self._condition(batch), randomness, self._evidence(batch), self._guidance
        ):
            picture = self.tokenizer.decode(state.predicted)
            yield State(gray_patches(picture, state.unknown, self.tokenizer.grid_size), picture)

    def evaluation_step(self, batch: Batch) -> Mapping[str, Any]:
        """See ``GenerativeModule.evaluation_step``.

        Returns:
            Beside the outputs of ``sample`` what bounds them, since they know the clean image: its ``reconstruction``, and
            the ``composite`` of the known pixels and the reconstruction; and the token accuracy by masked share.
        """

        def outputs() -> dict[str, Tensor]:
            images = self.images_of(batch, self.evaluation_randomness(batch))
            reconstruction = self.tokenizer.decode(self.tokenizer.encode(batch.image))
            bound = composite(*batch.observed(), reconstruction, self.feather)
            return images | {"reconstruction": reconstruction, "composite": bound}

        def accuracy() -> dict[str, Tensor]:
            tokens, condition = self.tokenizer.encode(batch.image), self._condition(batch, batch.image)
            return {
                str(ratio): token_accuracy(
                    self.network, tokens, ratio, condition, self.evaluation_randomness(batch, f"mask/{ratio}")
                )
                for ratio in ACCURACY_RATIOS
            }

        return self.offered(batch, outputs=outputs, token_accuracy=accuracy)

    def on_test_epoch_start(self) -> None:
        """Count the network calls anew."""
        self._network_calls.reset(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> Mapping[str, Any]:
        """Count the network calls of each image, and hand the batch to the callbacks."""
        self._network_calls.add("sample", self.sampler.network_calls(self._unknown(batch.observed()[1])))
        return super().test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Average the network calls over the images of all ranks."""
        self.mean_network_calls = self._network_calls.compute()["sample"].value

    def sampling_record(self) -> dict[str, Any]:
        return {
            "sampler": repr(self.sampler),
            "num_steps": self.sampler.num_steps,
            "guidance": repr(self.guidance) if self.conditional else None,
            "tokenizer": self._tokenizer.record(),
            "dilation": self.dilation,
            "pixel_std": self.pixel_std,
            "feather": self.feather,
            "reimpose_known": self.reimpose_known,
        }

    @torch.no_grad()
    def _unknown(self, validity_B1HW: Tensor) -> Tensor:
        return token_mask(validity_B1HW, self._tokenizer.grid_size, self.dilation)

    def _condition(self, batch: Batch, known_BCHW: Tensor | None = None) -> Condition:
        """What the network is told: of the image all that is known, or all of an image that is known whole."""
        image = None
        if self.network.pixels is not None:
            observed = batch.observed() if known_BCHW is None else (known_BCHW, torch.ones_like(known_BCHW[:, :1]))
            image = restoration_condition(*observed).image
        return Condition(image, batch.labels if self.conditional else None)

    @property
    def _guidance(self) -> ClassifierFreeGuidance | None:
        return self.guidance if self.conditional else None


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the transformer must know of the tokenizer."""
    return {
        "num_codes": tokenizer.num_codes,
        "grid_size": tokenizer.grid_size,
        "codebook_KE": tokenizer.codebook(),
        "patch_shape": (tokenizer.network.in_channels, tokenizer.patch_size, tokenizer.patch_size),
    }


def _tokenizer_card(tokenizer: Tokenizer) -> str:
    network = tokenizer.network
    return (
        f"# Tokenizer\n\nImages of {network.image_size} pixels and {network.in_channels} channels to {tokenizer.grid_size} x "
        f"{tokenizer.grid_size} tokens of {tokenizer.num_codes} codes and back; weights {tokenizer.hash}. It belongs to the "
        "network in the folder above, which reads it from here.\n\n```python\nfrom generative.networks.tokenizer import "
        'load_tokenizer\n\ntokenizer = load_tokenizer("tokenizer/model.safetensors")\n```\n'
    )
