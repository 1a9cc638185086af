"""Denoising diffusion (Ho et al. 2020, arXiv 2006.11239): generation of labels, or restoration of a degraded image.

To restore, the network sees the degraded image beside its noisy state (SR3, arXiv 2104.07636; Palette, 2111.05826).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from generative.checks import checked
from generative.degradations import Degradation
from generative.denoiser import Denoiser, DenoiserOutput
from generative.frozen import Frozen
from generative.guidance import ClassifierFreeGuidance, ClassifierGuidance
from generative.judges.label_classifier import LabelClassifier, load_label_classifier
from generative.likelihood import bits_per_dimension, diffusion_nats
from generative.metrics.likelihood import BOUND
from generative.networks import ExactNetwork, ImageNetwork
from generative.objectives.diffusion import DiffusionObjective
from generative.posterior_guidance import PosteriorGuidance
from generative.randomness import Randomness
from generative.ranges import NonNegative, Positive
from generative.samplers.diffusion import DiffusionSampler
from generative.schedules import NoiseSchedule
from generative.truth import GaussianField
from generative.types import Batch, LossOutput, State
from lightning_modules.conditional_module import USES, ImageTask
from lightning_modules.contract import Card, Output, Task
from lightning_modules.space_module import SpaceModule


@checked("module")
class DDPM(SpaceModule):
    """Learns to denoise and samples by walking from noise to an image.

    Args:
        network: One-time, one-headed network.
        sampler: How images are drawn.
        output: What the network gives: ``noise``, ``image`` or ``v``.
        task: What it does; see ``ConditionalModule``. ``restore`` and ``inpaint`` have the output ``mean`` too where the last
            timestep is pure noise (``schedule.zero_terminal_snr``): the estimate there is E[x | degraded image].
        labels: Whether the network is told the labels of the data set.
        guidance: Classifier-free guidance by them; or for a task with a degraded image guidance by that, which no network sees
            then, so that any generator restores (``generative.posterior_guidance``).
        known_in_path: Hold exactly known pixels on their own noised path in every step of ``sample``.
        classifier_guidance: Scale of the label classifier's gradient in sampling; 0 leaves it out. Every result of a
            larger scale is marked as assisted, since the same classifier measures it.
        data_std: Standard deviation of the data around their mean image, for the size of these steps
            (``generative.guidance.ClassifierGuidance``).
        classifier: Checkpoint of the label classifier; read only for a scale above 0.
        **kwargs: Arguments of ``SpaceModule``.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({"generate", "restore", "inpaint"})
    default_task: ClassVar[ImageTask] = "generate"
    card: ClassVar[Card] = Card(
        "Denoising diffusion model (arXiv 2006.11239)",
        USES,
        "It knows its training set's subjects, labels and degradations only; what is drawn may miss or add objects.",
    )
    training_only: ClassVar[Mapping[str, Any]] = {
        **SpaceModule.training_only,
        "classifier": None,
        "classifier_guidance": 0.0,
    }

    def __init__(
        self,
        network: ImageNetwork,
        schedule: NoiseSchedule,
        objective: DiffusionObjective,
        sampler: DiffusionSampler,
        output: DenoiserOutput = "v",
        task: ImageTask | None = None,
        labels: bool = True,
        guidance: ClassifierFreeGuidance | PosteriorGuidance | None = None,
        known_in_path: bool = False,
        classifier_guidance: NonNegative = 0.0,
        data_std: Positive = 1.0,
        classifier: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.posterior_guidance = guidance if isinstance(guidance, PosteriorGuidance) else None
        by_labels = guidance if isinstance(guidance, ClassifierFreeGuidance) else None
        super().__init__(network, task, labels, by_labels, **kwargs)
        if self.posterior_guidance is not None and not self.restores:
            raise ValueError(
                f"guidance={type(guidance).__name__.lower()} restores degraded images: set task=restore or task=inpaint, or "
                "guidance=classifier_free."
            )
        self.objective = objective
        self.sampler = sampler
        self.known_in_path = known_in_path
        self.classifier_guidance = classifier_guidance
        self.data_std = data_std
        self.schedule = schedule
        self.output = output
        Denoiser(network, schedule, output)  # refuses an output that says nothing at the last timestep
        objective.check(schedule)
        sampler.timesteps(schedule)  # refuses what cannot be sampled before it is trained
        if self.latent_space and sampler.threshold != "none":
            raise ValueError(
                f"sampler.threshold={sampler.threshold} holds images in [-1, 1], which latents do not lie in: set "
                "sampler.threshold=none, or space=pixel."
            )
        if self.latent_space and self.posterior_guidance is not None:
            raise ValueError(
                f"guidance={type(guidance).__name__.lower()} compares pixels, and space= has latents: use it with a run that "
                "was trained with space=pixel."
            )
        if self.latent_space and classifier_guidance:
            raise ValueError(
                f"module.classifier_guidance={classifier_guidance:g} moves pixels, and space= has latents moved: set "
                "module.classifier_guidance=0, or space=pixel."
            )
        self._assistant = _load_assistant(classifier) if classifier_guidance else None

    @classmethod
    def check_exported(cls, arguments: Mapping[str, Any]) -> None:
        super().check_exported(arguments)
        if scale := arguments.get("classifier_guidance"):
            raise ValueError(
                f"module.classifier_guidance={scale} draws with a label classifier, which an export does not hold: use the "
                "run itself, or set module.classifier_guidance=0."
            )

    @property
    def denoiser(self) -> Denoiser:
        """What the network says, without guidance."""
        return Denoiser(self.network, self.schedule, self.output)

    def exact_network(self, prior: GaussianField, degradation: Degradation) -> ImageNetwork | None:
        if self.latent_space or self.labels or not self.sees_image:
            return None
        return ExactNetwork(prior, degradation, self.schedule, self.output, condition_channels=prior.channels + 1)

    @property
    def outputs(self) -> dict[str, Output]:
        if self.posterior_guidance is not None:  # the network alone knows no E[x | degraded image]
            return {"sample": Output(self.sampler.num_network_calls * self.posterior_guidance.calls_per_step)}
        outputs = {"sample": Output(self.sampler.num_network_calls)}
        if self.restores and self.schedule.terminal_snr_is_zero:
            outputs["mean"] = Output(1)
        return outputs

    @classmethod
    def unread(cls, arguments: Mapping[str, Any]) -> dict[str, str]:
        unread = super().unread(arguments)
        if (arguments.get("guidance") or {}).get("without_training"):
            unread.pop("guidance", None)
        objective = arguments.get("objective") or {}
        if objective.get("weight") != "min_snr":
            unread["objective.gamma"] = "it is of objective.weight=min_snr"
        if objective.get("logit_mean") is None:
            unread["objective.logit_std"] = "timesteps are drawn uniformly (objective.logit_mean=null)"
        if not arguments.get("classifier_guidance"):
            unread["module.data_std"] = "it sizes the steps of module.classifier_guidance, which is 0"
        return unread

    @property
    def sees_image(self) -> bool:
        return super().sees_image and self.posterior_guidance is None

    def check_training(self) -> None:
        """The timestep that the sampler starts from is drawn."""
        schedule = self.schedule
        self.objective.check_start(self.sampler.timesteps(schedule)[0], schedule.num_timesteps)

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        return self.objective(self.denoiser, self.space.encoded(batch), self.condition(batch, randomness), randomness)

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """``sample`` by the sampler; ``mean`` by one network call, without guidance.

        Args:
            batch: Batch of which it uses the shape of ``image``, the labels, and for restoration the degraded images.
        """
        condition, noise = self.condition(batch), randomness.normal(*self.space.shape(batch))
        images = {}
        if self.wants("sample"):
            images["sample"] = self.sampler(self._path_denoiser(batch, randomness), noise, condition, randomness)
        if "mean" in self.outputs and self.wants("mean"):
            last = self.schedule.num_timesteps - 1
            images["mean"] = self.denoiser.predict(noise, last, condition).image
        return {name: self.finished(self.space.decoded(image), batch) for name, image in images.items()}

    def states(self, batch: Batch, randomness: Randomness) -> Iterator[State]:
        noise, denoiser = randomness.normal(*self.space.shape(batch)), self._path_denoiser(batch, randomness)
        return self.decoded_states(self.sampler.states(denoiser, noise, self.condition(batch), randomness))

    @property
    def knows_likelihood(self) -> bool:
        return not self.latent_space and self.posterior_guidance is None

    def bits_per_dimension(
        self, batch: Batch, continuous_BCHW: Tensor, randomness: Randomness, num_calls: int
    ) -> dict[str, Tensor]:
        """The variational bound; see ``GenerativeModule.bits_per_dimension``."""
        nats_B = diffusion_nats(self.denoiser, batch.image, self.condition(batch), randomness, max(1, num_calls - 1))
        return {BOUND: bits_per_dimension(nats_B, batch.image)}

    def _path_denoiser(self, batch: Batch, randomness: Randomness) -> Denoiser:
        denoiser = self.guided_denoiser()
        if self.posterior_guidance is not None:
            denoiser = self.posterior_guidance.wrap(denoiser, *batch.observed(), randomness)
        if self.known_in_path and self.restores:
            return self.space.known(batch).in_denoiser(denoiser)
        return denoiser

    def guided_denoiser(self) -> Denoiser:
        """Return the denoiser that samplers see: with guidance around the network."""
        network = (
            self.guidance.wrap(self.network) if isinstance(self.guidance, ClassifierFreeGuidance) else self.network
        )
        denoiser = Denoiser(network, self.schedule, self.output)
        if self._assistant is None:
            return denoiser
        classifier: LabelClassifier = self._assistant.to(self.device).network
        return ClassifierGuidance(classifier.log_likelihood, self.classifier_guidance, self.data_std).wrap(denoiser)

    def evaluation_step(self, batch: Batch) -> Mapping[str, Any]:
        """Take the loss too, with draws that depend on each image's index alone."""
        errors = self.objective.errors(
            self.denoiser, self.space.encoded(batch), self.condition(batch), self.evaluation_randomness(batch, "loss")
        )
        split = "test" if self.trainer.testing else "val"
        self.log(f"{split}/loss", errors.mean(), on_epoch=True, batch_size=len(errors), sync_dist=True)
        return super().evaluation_step(batch)

    def sampling_record(self) -> dict[str, Any]:
        record = {"known_in_path": self.known_in_path} if self.restores else {}
        return {
            **super().sampling_record(),
            **record,
            **({} if self.posterior_guidance is None else {"guidance": self.posterior_guidance.described}),
            "sampler": repr(self.sampler),
            "num_steps": self.sampler.num_steps,
            "schedule": repr(self.schedule),
            "output": self.output,
            "assisted": self._assistant is not None,
            "classifier_guidance": self.classifier_guidance,
            "data_std": self.data_std if self._assistant else None,
        }


def _load_assistant(classifier: str | None) -> Frozen[LabelClassifier]:
    if classifier is None:
        raise ValueError(
            "module.classifier_guidance needs a label classifier: train one with python train.py "
            "experiment=label_classifier, or name one with classifier=FILE."
        )
    return Frozen(load_label_classifier(Path(classifier)))
