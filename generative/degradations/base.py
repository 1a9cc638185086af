"""What every degradation is: a callable from clean images to degraded ones and the map of what is still known."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from generative.degradations.observation import Observation
from generative.randomness import Randomness
from generative.types import Degraded


class Degradation(ABC):
    """A random, vectorised degradation.

    A subclass implements ``degrade``; calling the object also enforces the range and the memory layout. Row b of the
    result is a function of row b of the image and of row b of the randomness alone, so that under
    ``IndexRandomness`` an image is degraded in the same way in any batch.
    """

    def __call__(self, image_BCHW: Tensor, randomness: Randomness, training: bool = False) -> Degraded:
        """Degrade a batch of images.

        Args:
            image_BCHW: (B, C, H, W) clean images in [-1, 1].
            randomness: Source of every draw, with B rows and on the device of the images.
            training: Whether severities are drawn from their training range or take their evaluation value.

        Returns:
            The degraded images, contiguous and, but for noise that is not clipped, in [-1, 1], and a map that is 1 only where
            they surely equal the clean ones, as far as a restorer may know.
        """
        image, validity, kind = Degraded(*self.degrade(image_BCHW, randomness, training))
        return Degraded((image.clamp(-1, 1) if self.clips else image).contiguous(), validity.contiguous(), kind)

    @property
    def clips(self) -> bool:
        """Whether degraded images are cut to [-1, 1], as files of images are."""
        return True

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of what may befall an image, where images meet different things; else none."""
        return ()

    def check_images(self, image_size: int, channels: int, key: str = "degradation") -> None:
        """Check that every severity, of training and evaluation, fits images of a kind, or raise; most fit any.

        Args:
            image_size: Side of the images in pixels.
            channels: Their channels.
            key: Config key of this degradation, for messages.
        """
        return

    @property
    def told_by_validity(self) -> bool:
        """Whether images are left as they are but for holes, so that the validity map says all of what befell them."""
        return False

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        """Return the linear map and the Gaussian noise of evaluation, as one knows them who is told the validity map alone.

        Args:
            validity_B1HW: (B, 1, H, W) validity maps.
            key: Config key of this degradation, for messages.

        Raises:
            ValueError: It is none, as most are not, or differs from image to image in what the validity map does not tell.
        """
        raise ValueError(
            f"{key}: {type(self).__name__} is no linear map of each channel with Gaussian noise, which the exact posterior and "
            "guidance without training need: leave it out, or choose degradation=holes, super_resolution or gaussian."
        )

    @abstractmethod
    def degrade(
        self, image_BCHW: Tensor, randomness: Randomness, training: bool
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None]:
        """Degrade a batch of images without regard to range and layout.

        Args:
            image_BCHW: (B, C, H, W) clean images in [-1, 1].
            randomness: Source of every draw, with B rows.
            training: Whether severities are drawn from their training range or take their evaluation value.

        Returns:
            (B, C, H, W) degraded images, which may leave [-1, 1], the (B, 1, H, W) validity map and, of a degradation with
            ``kinds``, the (B,) int64 numbers of theirs.
        """


def nothing_known(image_BCHW: Tensor) -> Tensor:
    """Return the validity map of a degradation that touches, or may have touched, every pixel.

    Args:
        image_BCHW: (B, C, H, W) images.

    Returns:
        (B, 1, H, W) zeros.
    """
    return image_BCHW.new_zeros(len(image_BCHW), 1, *image_BCHW.shape[-2:])
