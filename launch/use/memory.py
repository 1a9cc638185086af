"""What happens where memory does not hold a picture, or a batch of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from generative.weights import is_out_of_memory
from launch.errors import UserError


def too_large(tiles_at_once: int) -> str:
    """Say that memory did not hold a picture, and what would help.

    Args:
        tiles_at_once: How many of its tiles went through the network together.
    """
    return "it does not fit into memory" + (": a smaller batch_size= takes less" if tiles_at_once > 1 else "")


@contextmanager
def picture_in_memory() -> Iterator[None]:
    """Work on a single picture.

    Raises:
        MemoryError: Memory did not hold it, whatever PyTorch raises for that.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        raise


@contextmanager
def within_memory(batch_size: int) -> Iterator[None]:
    """Turn what a too large batch raises into one sentence.

    Args:
        batch_size: Images at a time.

    Raises:
        UserError: Memory did not hold the batch.
    """
    try:
        with picture_in_memory():
            yield
    except MemoryError as error:
        if batch_size == 1:
            raise UserError("memory does not hold one image at a time.") from error
        raise UserError(
            f"batch_size={batch_size} images at a time do not fit into memory: set a smaller one."
        ) from error
