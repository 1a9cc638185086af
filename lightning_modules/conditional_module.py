"""The base of the paradigms that do several tasks: what a task shows the network, and what becomes of known pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from generative.degradations import Degradation
from generative.guidance import Guidance, LabelDropout
from generative.inpainting import composite
from generative.networks import ImageNetwork
from generative.randomness import Randomness
from generative.truth import GaussianField
from generative.types import Batch, Condition, restoration_condition
from lightning_modules.base import ImageData, check_labels_kept
from lightning_modules.contract import Task
from lightning_modules.generative_module import GenerativeModule

NUM_CHECKED = 32  # validation images whose known pixels are looked at before the first step
ImageTask = Literal["generate", "restore", "inpaint"]
# A restorer fills holes too, where its degradation makes some.
DOES: dict[ImageTask, frozenset[Task]] = {
    "generate": frozenset({"generate"}),
    "restore": frozenset({"restore", "inpaint"}),
    "inpaint": frozenset({"inpaint"}),
}

USES: dict[Task, str] = {  # what a card says
    "generate": "Drawing images like those of its training set, of the labels where it was trained with labels.",
    "restore": "Restoring images with the degradations that it was trained on: `mean` is the answer of least squared error, "
    "`sample` one plausible image.",
    "inpaint": "Filling holes at known places.",
}


class ConditionalModule(GenerativeModule):
    """Draws images, restores degraded ones, or fills holes.

    Args:
        network: Its condition is the degraded image with its validity, the labels, both or neither.
        task: ``generate``: no image is seen; ``restore`` and ``inpaint``: the degraded one is. None is the paradigm's first.
        labels: Whether the network is told the labels of the data set.
        guidance: Guidance by the labels; None where there are none.
        label_dropout: What is hidden of the labels in training, so that the network knows the answer without them too.
        reimpose_known: Put exactly known pixels back into the outputs.
        **kwargs: Arguments of ``GenerativeModule``.

    Attributes:
        default_task: The task of a module that names none.
    """

    default_task: ClassVar[ImageTask]

    def __init__(
        self,
        network: nn.Module,
        task: ImageTask | None = None,
        labels: bool = False,
        guidance: Guidance | None = None,
        label_dropout: LabelDropout | None = None,
        reimpose_known: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.task: ImageTask = task or self.default_task
        if not self.current_tasks:
            able = " or ".join(self.choices_of_task())
            raise ValueError(f"task={self.task} is nothing that {type(self).__name__} does: choose task={able}.")
        self.labels = labels
        self.guidance = guidance if labels else None
        self.label_dropout = label_dropout
        self.reimpose_known = reimpose_known

    @classmethod
    def choices_of_task(cls) -> tuple[ImageTask, ...]:
        return tuple(task for task, does in DOES.items() if does & cls.tasks)

    @classmethod
    def tasks_of(cls, arguments: Mapping[str, Any]) -> frozenset[Task]:
        return DOES[arguments.get("task") or cls.default_task] & cls.tasks

    @property
    def current_tasks(self) -> frozenset[Task]:
        return self.tasks_of({"task": self.task})

    @classmethod
    def unread(cls, arguments: Mapping[str, Any]) -> dict[str, str]:
        unread = super().unread(arguments)
        if not arguments.get("labels", True):
            reason = "the network is told no labels (module.labels=false)"
            unread |= dict.fromkeys(("guidance", "module.label_dropout"), reason)
        if cls.tasks_of(arguments) == {"generate"}:
            keys = ("module.reimpose_known", "module.known_in_path", "module.sees_degraded")
            unread |= dict.fromkeys(keys, "task=generate has no degraded image")
        return unread

    @property
    def uses_labels(self) -> bool:
        return self.labels

    @property
    def restores(self) -> bool:
        """Whether it answers to a degraded image."""
        return self.task != "generate"

    @property
    def sees_image(self) -> bool:
        """Whether the network is shown the degraded image."""
        return self.restores

    def check_contract(self) -> None:
        """Check that the network is told the labels that it takes, and learns what guidance asks it for."""
        super().check_contract()
        self.check_guidance()
        if self.labels and getattr(self.network, "num_labels", None) == 0:
            raise ValueError(
                "module.labels=true, but network.label_factors=[], as of data without labels: set module.labels=false, or "
                "network.label_factors to those of the data."
            )

    def check_guidance(self) -> None:
        """Check that the network is trained with the null condition where guidance asks for it.

        Raises:
            ValueError: It is not.
        """
        guidance, hidden = self.guidance, self.label_dropout
        if guidance is not None and guidance.asks_null and (hidden is None or not hidden.hides_all):
            key = "module.label_dropout" + ("=null" if hidden is None else ".set_probability=0")
            raise ValueError(
                f"guidance.scale={guidance.scale:g} asks the network for its answer without labels, which {key} never teaches: "
                "train with module.label_dropout.set_probability=0.1, or set guidance=classifier_free guidance.scale=1."
            )

    def check_data(self, data: ImageData) -> None:
        """Refuse a network without place for the image it is shown, labels that the data do not have, or lose, and holes around
        which nothing is known.
        """
        key = "network.condition_channels"
        channels = getattr(self.network, "condition_channels", None)  # a network of others need not say
        if channels is not None and self.sees_image != (channels > 0):
            remedy = "the images' channels and one" if self.sees_image else "0"
            shown = "the degraded image" if self.sees_image else "no image"
            raise ValueError(
                f"{key}={channels}, but module.task={self.task} shows the network {shown}: set {key} to {remedy}."
            )
        if self.labels and not data.num_classes:
            raise ValueError("module.labels=true needs labels, and the data have none: set module.labels=false.")
        if self.labels:
            check_labels_kept(data)
        if self.task != "inpaint":
            return
        # More than one image: a mixture of degradations may begin with one that leaves known pixels.
        validity = data.batch("val", range(min(NUM_CHECKED, len(data.splits.val)))).validity
        if validity is None or not validity.flatten(1).any(1).all():
            raise ValueError(
                "task=inpaint fills holes whose surroundings are known: choose degradation=holes, block_mask or brush_mask, or "
                "task=restore."
            )

    def condition(self, batch: Batch, randomness: Randomness | None = None) -> Condition:
        """Return what the network is told of a batch.

        Args:
            randomness: Hides labels, as in training; None shows them all.

        Returns:
            The degraded image with its validity where the task has one, and the labels where they are told.
        """
        image = restoration_condition(*batch.observed()).image if self.sees_image else None
        labels = batch.labels if self.labels else None
        if labels is not None and randomness is not None and self.label_dropout is not None:
            labels = self.label_dropout(labels, randomness)
        return Condition(image, labels)

    def exact_network(self, prior: GaussianField, degradation: Degradation) -> ImageNetwork | None:
        """Return what would answer best in the place of the network, which sees degraded images of a known law and no labels.

        Args:
            degradation: What degraded the images.

        Returns:
            The network; None where none is known of the paradigm and its settings.
        """
        return None

    @contextmanager
    def answered_by(self, network: nn.Module) -> Iterator[None]:
        """Have another network answer for a while."""
        own, self.network = self.network, network
        try:
            yield
        finally:
            self.network = own

    def finished(self, image_BCHW: Tensor, batch: Batch) -> Tensor:
        """Return an output in range, with the known pixels put back where that is asked for."""
        image_BCHW = image_BCHW.clamp(-1, 1)
        if self.reimpose_known and self.restores:
            degraded, validity = batch.observed()
            image_BCHW = image_BCHW.lerp(degraded, validity)
        return image_BCHW

    def reconstruction(self, batch: Batch) -> Tensor | None:
        """Return what a frozen network makes of the clean images: nothing that the module makes can be closer to these.

        Returns:
            (B, C, H, W) images in [-1, 1]; None for a module that is bound by no such network.
        """
        return None

    def makers(self, batch: Batch) -> dict[str, Callable[[], Any]]:
        """Return what makes the entries that an evaluation step offers, by their names.

        Returns:
            Makers of ``outputs`` of restorers, beside which stands what bounds them: the ``reconstruction``, and the
            ``composite`` of the known pixels and the reconstruction. And of the ``reconstruction`` alone.
        """

        def outputs() -> dict[str, Tensor]:
            images = self.images_of(batch, self.evaluation_randomness(batch))
            reconstruction = self.reconstruction(batch)
            if reconstruction is None:
                return images
            bounds = {"reconstruction": reconstruction}
            if self.reimpose_known:
                bounds["composite"] = composite(*batch.observed(), reconstruction, self.feather)
            return images | bounds

        makers: dict[str, Callable[[], Any]] = {"reconstruction": lambda: self.reconstruction(batch)}
        return makers | ({"outputs": outputs} if self.restores else {})

    def evaluation_step(self, batch: Batch) -> Mapping[str, Any]:
        return self.offered(batch, **self.makers(batch))

    def sampling_record(self) -> dict[str, Any]:
        record: dict[str, Any] = {"task": self.task, "labels": self.labels}
        if self.labels:
            record["guidance"] = repr(self.guidance)
        if self.restores:
            record["reimpose_known"] = self.reimpose_known
        return record
