"""MaskGIT: a bidirectional transformer guesses masked tokens (Chang et al. 2022, arXiv 2202.04200).

It fills the tokens of a hole; or draws all tokens, of labels, or of a degraded image whose pixels each token's embedding holds
(``network.pixels``): the image itself is not tokenized, as its noise would become wrong tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.checks import checked
from generative.guidance import ClassifierFreeGuidance
from generative.inpainting import composite, gray_patches, patches_of, token_mask
from generative.metrics.means import NamedMeans
from generative.networks.token_transformer import TokenTransformer
from generative.networks.tokenizer import PATCHES, Tokenizer, load_tokenizer
from generative.objectives.masked_tokens import MaskedTokenObjective, near_codes, token_accuracy
from generative.patch_evidence import code_patches, patch_evidence
from generative.randomness import Randomness
from generative.ranges import Positive, WholeNumber
from generative.samplers.masked import MaskedTokenSampler
from generative.types import Batch, Condition, LossOutput, State, restoration_condition
from lightning_modules.base import ImageData
from lightning_modules.conditional_module import USES, ConditionalModule, ImageTask
from lightning_modules.contract import Card, Output, Part, Task

ACCURACY_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of masked tokens at which the token accuracy is measured
NUM_MEASURED = 1024  # training images in which the patches of the codes are measured
MEASURED_AT_ONCE = 64


@checked("module")
class MaskGIT(ConditionalModule):
    """Learns to guess masked tokens and makes images by guessing a few at a time.

    The tokenizer stays frozen and out of the state dict. In training the images' tokens come from a cache, computed once.

    Args:
        network: Makes the transformer from ``num_codes``, ``grid_size`` and ``codebook_KE``, which are the tokenizer's.
        tokenizer: Checkpoint of the tokenizer, or None where none was found.
        sampler: How the tokens of a hole are drawn.
        task: What it does; see ``ConditionalModule``. ``inpaint`` keeps the tokens of known pixels; the others mask all tokens.
        labels: Whether the network is told the labels of the data set.
        guidance: Classifier-free guidance of ``sample`` by them.
        dilation: Tokens by which a hole is widened, so that none that saw its fill counts as known; None is the
            tokenizer's receptive radius, 0 trusts tokens next to the hole.
        pixel_std: Standard deviation of pixels around the patch of their code, by which the known pixels of partly covered
            patches inform the guess of their token (``generative.patch_evidence``); None leaves them unused.
        feather: Width in pixels of a ramp outside the hole over which ``sample`` goes from the decoded to the known pixels;
            0 keeps every known pixel.
        reimpose_known: Put exactly known pixels back into ``sample`` and ``mean``; False leaves them as they are decoded.
        cache_dir: Cache folder of the tokens, or None for the user's.
        **kwargs: Arguments of ``ConditionalModule``.

    Raises:
        ValueError: If there is no tokenizer, or settings do not fit each other.

    Attributes:
        mean_network_calls: Network calls behind a ``sample``, mean over the images of the last test; None before it.
    """

    network: TokenTransformer
    tasks: ClassVar[frozenset[Task]] = frozenset({"generate", "restore", "inpaint"})
    default_task: ClassVar[ImageTask] = "inpaint"
    card: ClassVar[Card] = Card(
        "MaskGIT: a bidirectional transformer that makes images by guessing tokens (arXiv 2202.04200)",
        USES,
        "What is made is an invention. It cannot be closer than the tokenizer's reconstruction (`reconstruction` and "
        "`composite` in the tables). Other degradations than those of training are not repaired.",
    )
    part_keys: ClassVar[tuple[str, ...]] = ("tokenizer",)
    training_only: ClassVar[Mapping[str, Any]] = {
        **ConditionalModule.training_only,
        "cache_dir": None,
    }

    def __init__(
        self,
        network: Callable[..., TokenTransformer],
        tokenizer: str | None,
        objective: MaskedTokenObjective,
        sampler: MaskedTokenSampler,
        task: ImageTask | None = None,
        labels: bool = False,
        guidance: ClassifierFreeGuidance | None = None,
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
        transformer = network(**loaded.transformer_settings())
        super().__init__(transformer, task, labels, guidance, reimpose_known=reimpose_known, **kwargs)
        self._tokenizer = loaded
        self.objective = objective
        self.sampler = sampler
        if isinstance(self.guidance, ClassifierFreeGuidance) and self.guidance.rescale:
            raise ValueError(
                f"guidance.rescale={self.guidance.rescale:g} is for images, not for logits: set guidance.rescale=0."
            )
        self.dilation = loaded.dilation if dilation is None else dilation
        if pixel_std is not None and transformer.pixels is not None:
            raise ValueError(
                f"module.pixel_std={pixel_std:g} would count the known pixels twice, which network.pixels=true has the network "
                "see: set module.pixel_std=null, or network.pixels=false."
            )
        self.pixel_std = pixel_std
        self.feather = feather
        self._targets: Tensor | None = None  # (K, K) what the loss asks for in the place of each code, if not it alone
        self._network_calls = NamedMeans()
        self.mean_network_calls: float | None = None
        self.cache_dir = cache_dir

    @classmethod
    def unread(cls, arguments: Mapping[str, Any]) -> dict[str, str]:
        tasks, sampler = cls.tasks_of(arguments), arguments.get("sampler") or {}
        unread = super().unread(arguments)
        if sampler.get("schedule") == "one_shot":
            unread["sampler.num_steps"] = "sampler.schedule=one_shot takes one step"
        if sampler.get("order") != "confidence":
            unread["sampler.choice_temperature"] = "it is of sampler.order=confidence"
        if not sampler.get("revisions"):
            unread["sampler.revised_share"] = "nothing is drawn anew (sampler.revisions=0)"
        if "restore" in tasks or "generate" in tasks:
            unread |= dict.fromkeys(("module.dilation", "objective.hole_share"), "all tokens are masked")
        if "generate" in tasks:
            unread |= dict.fromkeys(("module.feather", "module.pixel_std"), "task=generate has no degraded image")
        return unread

    def check_contract(self) -> None:
        """Check that the network sees pixels where the task needs it to, and nowhere where there are none."""
        if (pixels := self.network.pixels is not None) and not self.restores:
            raise ValueError(
                "network.pixels=true shows a degraded image, and task=generate has none: set network.pixels=false."
            )
        if self.task == "restore" and not pixels:
            raise ValueError("task=restore needs the pixels of the degraded image: set network.pixels=true.")
        super().check_contract()

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer, on the module's device."""
        return self._tokenizer.to(self.device)

    @property
    def outputs(self) -> dict[str, Output]:
        """``sample`` with the mean of its network calls after a test; before it, the most that one takes."""
        calls = self.sampler.num_network_calls if self.mean_network_calls is None else round(self.mean_network_calls, 3)
        calls = int(calls) if calls == int(calls) else calls
        outputs = {"sample": Output(calls)}
        if self.restores:
            outputs["mean"] = Output(1)
        if self.restores and self.reimpose_known:
            outputs["decoded"] = Output(None, puts_back_known=False)
        return outputs

    @property
    def sees_image(self) -> bool:
        return super().sees_image and (self.task == "restore" or self.network.pixels is not None)

    def check_data(self, data: ImageData) -> None:
        """Refuse images that the tokenizer does not fit."""
        super().check_data(data)
        self.tokenizer.check_images(data.image_size, data.channels)

    def parts_record(self) -> dict[str, Any]:
        return {"tokenizer": self._tokenizer.record()}

    def parts(self) -> dict[str, Part]:
        own = self._tokenizer
        beside = {} if self.pixel_std is None else {PATCHES: own.patches}
        return {"tokenizer": Part(own.network, own.settings(), own.card(), beside)}

    @classmethod
    def network_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return load_tokenizer(arguments["tokenizer"]).transformer_settings()

    def measure(self, data: Any) -> None:
        """Tokenize the images, and measure what their patches look like."""
        data.use_encoder(self._tokenizer, self.cache_dir)
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
        assert batch.encoded is not None, "the data module has no tokenizer"
        condition, targets = self.condition(batch, randomness), self._targets
        targets = None if targets is None else targets.to(batch.encoded.device)
        return self.objective(self.network, batch.encoded, self._unknown(batch), condition, randomness, targets)

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """A plausible image, the tokenizer's picture of it, and the mean.

        Args:
            batch: Batch, with degraded images but for task=generate.

        Returns:
            ``sample``, the tokenizer's picture of the sampled tokens; and to restore ``mean``, the picture of the expected
            codes, in one network call. That is not the expected picture, the answer of least squared error, since the decoder
            is no linear map and each code is expected by itself; how near it comes is measured (``callbacks.Calibration``).
            With ``reimpose_known`` both have the known pixels put back, and ``decoded`` is the sample without these.
        """
        tokens, unknown = self._known_tokens(batch), self._unknown(batch)
        condition, evidence = self.condition(batch), self._evidence(batch)
        outputs = {}
        if self.wants("sample") or self.wants("decoded"):
            filled = self.sampler(self.network, tokens, unknown, condition, randomness, evidence, self._guidance)
            outputs["sample"] = self.tokenizer.decode(filled)
        if self.restores and self.wants("mean"):
            outputs["mean"] = self._mean(tokens, unknown, condition, evidence)
        if "decoded" not in self.outputs:
            return outputs
        whole = {name: composite(*batch.observed(), image, self.feather) for name, image in outputs.items()}
        return whole | ({"decoded": outputs["sample"]} if "sample" in outputs else {})

    def _known_tokens(self, batch: Batch) -> Tensor:
        """(B, N) codes of the degraded image; zeros where all tokens are masked anyway."""
        if self.task == "inpaint":
            return self.tokenizer.encode(batch.observed()[0])
        return torch.zeros(len(batch.image), self.network.num_tokens, dtype=torch.int64, device=batch.image.device)

    def _evidence(self, batch: Batch) -> Tensor | None:
        """(B, N, K) what the known pixels of partly covered patches say of their tokens."""
        if self.pixel_std is None or not self.restores:
            return None
        degraded, validity = batch.observed()
        patches = self.tokenizer.patches.to(degraded).flatten(1)
        return patch_evidence(degraded, validity, patches, self.tokenizer.grid_size, self.pixel_std)

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
        tokens, unknown = self._known_tokens(batch), self._unknown(batch)
        for state in self.sampler.states(
            self.network, tokens, unknown, self.condition(batch), randomness, self._evidence(batch), self._guidance
        ):
            picture = self.tokenizer.decode(state.predicted)
            grid = self.tokenizer.grid_size
            before = patches_of(unknown, grid, *picture.shape[-2:])
            yield State(gray_patches(picture, state.unknown, grid), picture, before)
            unknown = state.unknown

    def reconstruction(self, batch: Batch) -> Tensor:
        return self.tokenizer.decode(self.tokenizer.encode(batch.image))

    def makers(self, batch: Batch) -> dict[str, Callable[[], Any]]:
        """See ``ConditionalModule.makers``; the token accuracy by masked share too."""

        def accuracy() -> dict[str, Tensor]:
            tokens, condition = self.tokenizer.encode(batch.image), self._clean_condition(batch)
            return {
                str(ratio): token_accuracy(
                    self.network,
                    tokens,
                    ratio,
                    condition,
                    self.evaluation_randomness(batch, f"mask/{ratio}"),
                    self.task != "restore",
                )
                for ratio in ACCURACY_RATIOS
            }

        return {**super().makers(batch), "token_accuracy": accuracy}

    def on_test_epoch_start(self) -> None:
        """Count the network calls anew."""
        super().on_test_epoch_start()
        self._network_calls.reset(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> Mapping[str, Any]:
        """Count the network calls of each image, and hand the batch to the callbacks."""
        self._network_calls.add("sample", self.sampler.network_calls(self._unknown(batch)))
        return super().test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Average the network calls over the images of all ranks."""
        super().on_test_epoch_end()
        self.mean_network_calls = self._network_calls.compute()["sample"].value

    def sampling_record(self) -> dict[str, Any]:
        holes = {"dilation": self.dilation, "pixel_std": self.pixel_std, "feather": self.feather}
        return {
            **super().sampling_record(),
            **(holes if self.task == "inpaint" else {}),
            "sampler": repr(self.sampler),
            "num_steps": self.sampler.most_steps,
            "tokenizer": self._tokenizer.record(),
        }

    @torch.no_grad()
    def _unknown(self, batch: Batch) -> Tensor:
        """(B, N) bool map of the tokens that are not known."""
        if self.task == "inpaint":
            return token_mask(batch.observed()[1], self._tokenizer.grid_size, self.dilation)
        return torch.ones(len(batch.image), self.network.num_tokens, dtype=torch.bool, device=batch.image.device)

    def condition(self, batch: Batch, randomness: Randomness | None = None) -> Condition:
        """Return what the network is told; of holes nothing, whatever they are filled with."""
        condition = super().condition(batch, randomness)
        if condition.image is None or self.task != "inpaint":
            return condition
        degraded, validity = batch.observed()
        return replace(condition, image=restoration_condition(degraded * validity, validity).image)

    def _clean_condition(self, batch: Batch) -> Condition:
        """What the network would be told of images that are known whole; to restore, what it is told of the degraded ones."""
        condition = self.condition(batch)
        if condition.image is None or self.task == "restore":
            return condition
        return replace(condition, image=restoration_condition(batch.image, torch.ones_like(batch.image[:, :1])).image)

    @property
    def _guidance(self) -> ClassifierFreeGuidance | None:
        return self.guidance if isinstance(self.guidance, ClassifierFreeGuidance) else None
