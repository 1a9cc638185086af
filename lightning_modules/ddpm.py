"""Denoising diffusion: generation from noise, conditional on a set of labels (Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from generative.checks import checked
from generative.denoiser import Denoiser, DenoiserOutput
from generative.frozen import Frozen
from generative.guidance import ClassifierFreeGuidance, ClassifierGuidance, LabelDropout
from generative.judges.label_classifier import LabelClassifier, load_label_classifier
from generative.networks import ImageNetwork
from generative.objectives.diffusion import DiffusionObjective
from generative.randomness import Randomness
from generative.ranges import NonNegative, Positive
from generative.samplers.diffusion import DiffusionSampler
from generative.schedules import NoiseSchedule
from generative.types import Batch, Condition, LossOutput, State
from lightning_modules.base import ImageData
from lightning_modules.contract import Card, Output, Task
from lightning_modules.generative_module import GenerativeModule


@checked("module")
class DDPM(GenerativeModule):
    """Learns to denoise and samples by walking from noise to an image.

    Args:
        network: One-time, one-headed network.
        sampler: How images are drawn.
        output: What the network gives: ``noise``, ``image`` or ``v``.
        guidance: Classifier-free guidance; of scale 1 where there is nothing to guide by.
        label_dropout: What is hidden of the labels in training, so that the network knows the unconditional answer too.
        conditional: Whether the network is told the labels of the data set.
        classifier_guidance: Scale of the label classifier's gradient in sampling; 0 leaves it out. Every result of a
            larger scale is marked as assisted, since the same classifier measures it.
        data_std: Standard deviation of the data around their mean image, for the size of these steps
            (``generative.guidance.ClassifierGuidance``).
        classifier: Checkpoint of the label classifier; read only for a scale above 0.
        **kwargs: Arguments of ``GenerativeModule``.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset({"generate"})
    card: ClassVar[Card] = Card(
        "Denoising diffusion model (arXiv 2006.11239)",
        "Drawing images like those of its training set, of the labels where it was trained with labels.",
        "It knows its training set's subjects and labels only; what is drawn may miss or add objects, see the label accuracy.",
    )
    training_only: ClassVar[Mapping[str, Any]] = {
        **GenerativeModule.training_only,
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
        guidance: ClassifierFreeGuidance | None = None,
        label_dropout: LabelDropout | None = None,
        conditional: bool = True,
        classifier_guidance: NonNegative = 0.0,
        data_std: Positive = 1.0,
        classifier: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.objective = objective
        self.sampler = sampler
        self.guidance = guidance or ClassifierFreeGuidance()
        self.label_dropout = label_dropout or LabelDropout()
        self.conditional = conditional
        self.classifier_guidance = classifier_guidance
        self.data_std = data_std
        self.denoiser = Denoiser(network, schedule, output)
        objective.check(schedule)
        sampler.timesteps(schedule)  # refuses what cannot be sampled before it is trained
        self._assistant = _load_assistant(classifier) if classifier_guidance else None

    @property
    def outputs(self) -> dict[str, Output]:
        return {"sample": Output(self.sampler.num_network_calls)}

    @property
    def uses_labels(self) -> bool:
        return self.conditional

    def check_data(self, data: ImageData) -> None:
        """Refuse guidance by labels that the data do not have."""
        if self.conditional and self.guidance.scale != 1 and not data.num_classes:
            raise ValueError(
                f"guidance.scale={self.guidance.scale:g} needs labels, and the data have none: choose "
                "module=ddpm_unconditional, or set guidance.scale=1."
            )

    def check_training(self) -> None:
        """The timestep that the sampler starts from is drawn."""
        schedule = self.denoiser.schedule
        self.objective.check_start(self.sampler.timesteps(schedule)[0], schedule.num_timesteps)

    def loss(self, batch: Batch, randomness: Randomness) -> LossOutput:
        condition = self._condition(batch)
        if condition.labels is not None:
            condition = Condition(labels=self.label_dropout(condition.labels, randomness))
        return self.objective(self.denoiser, batch.image, condition, randomness)

    def sample(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """The shape of ``batch.image`` and ``batch.labels`` are what it uses."""
        noise = randomness.normal(*batch.image.shape[1:])
        image = self.sampler(self.guided_denoiser(), noise, self._condition(batch), randomness)
        return {"sample": image.clamp(-1, 1)}

    def states(self, batch: Batch, randomness: Randomness) -> Iterator[State]:
        noise = randomness.normal(*batch.image.shape[1:])
        return self.sampler.states(self.guided_denoiser(), noise, self._condition(batch), randomness)

    def guided_denoiser(self) -> Denoiser:
        """Return the denoiser that samplers see: with guidance around the network."""
        network = self.guidance.wrap(self.network) if self.conditional else self.network
        denoiser = Denoiser(network, self.denoiser.schedule, self.denoiser.output)
        if self._assistant is None:
            return denoiser
        classifier: LabelClassifier = self._assistant.to(self.device).network
        return ClassifierGuidance(classifier.log_likelihood, self.classifier_guidance, self.data_std).wrap(denoiser)

    def evaluation_step(self, batch: Batch) -> Mapping[str, Any]:
        """Take the loss too, with draws that depend on each image's index alone."""
        errors = self.objective.errors(
            self.denoiser, batch.image, self._condition(batch), self.evaluation_randomness(batch, "loss")
        )
        split = "test" if self.trainer.testing else "val"
        self.log(f"{split}/loss", errors.mean(), on_epoch=True, batch_size=len(errors), sync_dist=True)
        return super().evaluation_step(batch)

    def sampling_record(self) -> dict[str, Any]:
        return {
            "sampler": repr(self.sampler),
            "num_steps": self.sampler.num_steps,
            "guidance": repr(self.guidance) if self.conditional else None,
            "schedule": repr(self.denoiser.schedule),
            "output": self.denoiser.output,
            "assisted": self._assistant is not None,
            "classifier_guidance": self.classifier_guidance,
            "data_std": self.data_std if self._assistant else None,
        }

    def _condition(self, batch: Batch) -> Condition:
        return Condition(labels=batch.labels if self.conditional else None)


def _load_assistant(classifier: str | None) -> Frozen[LabelClassifier]:
    if classifier is None:
        raise ValueError(
            "module.classifier_guidance needs a label classifier: train one with python train.py "
            "experiment=label_classifier, or name one with classifier=FILE."
        )
    return Frozen(load_label_classifier(Path(classifier)))
