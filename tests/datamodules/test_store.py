"""Vectorised cropping equals cropping one image at a time."""

import torch

from datamodules.store import ImageStore, pad_to
from generative.randomness import StepRandomness, generator_for

SIZES = [(8, 8), (12, 9), (9, 20), (8, 31)]


def ragged(channels: int) -> tuple[ImageStore, list[torch.Tensor]]:
    generator = generator_for(0, "test")
    images = [torch.randint(256, (channels, *size), generator=generator).to(torch.uint8) for size in SIZES]
    heights, widths = (torch.tensor(side) for side in zip(*SIZES, strict=True))
    return ImageStore.ragged(torch.cat([image.flatten() for image in images]), heights, widths, channels), images


def randomness(batch_size: int) -> StepRandomness:
    return StepRandomness(generator_for(0, "crop"), batch_size)


def test_centred_crops_equal_slicing():
    for channels in (1, 3):
        store, images = ragged(channels)
        indices = torch.tensor([3, 1, 1, 0, 2])
        for cut, index in zip(store.gather(indices, 8), indices.tolist(), strict=True):
            top, left = ((side - 8) // 2 for side in SIZES[index])
            assert torch.equal(cut, images[index][:, top : top + 8, left : left + 8])


def test_random_crops_equal_slicing_at_the_drawn_places():
    store, images = ragged(3)
    indices = torch.tensor([3, 1, 1, 0, 2] * 20)
    places = randomness(100).uniform(2).tolist()
    for cut, index, (down, right) in zip(
        store.gather(indices, 8, randomness(100)), indices.tolist(), places, strict=True
    ):
        height, width = SIZES[index]
        top, left = int(down * (height - 7)), int(right * (width - 7))
        assert torch.equal(cut, images[index][:, top : top + 8, left : left + 8])


def test_random_crops_reach_every_place():
    flat = torch.arange(16, dtype=torch.uint8)
    store = ImageStore.ragged(flat, torch.tensor([4]), torch.tensor([4]), channels=1)
    corners = store.gather(torch.zeros(500, dtype=torch.int64), 2, randomness(500))[:, 0, 0, 0]
    assert set(corners.tolist()) == {0, 1, 2, 4, 5, 6, 8, 9, 10}


def test_dense_images_come_back_whole():
    images = torch.randint(256, (7, 3, 5, 5), generator=generator_for(0, "test")).to(torch.uint8)
    indices = torch.tensor([6, 0, 3])
    assert torch.equal(ImageStore.dense(images).gather(indices, 5, randomness(3)), images[indices])


def test_selection_shares_the_buffer_and_keeps_images():
    store, images = ragged(1)
    part = store.select(torch.tensor([2, 0]))
    assert part.flat.data_ptr() == store.flat.data_ptr()
    assert torch.equal(part.image(0), images[2])
    assert part.content_hashes().tolist() == store.content_hashes()[[2, 0]].tolist()


def test_hashes_tell_images_and_shapes_apart():
    same = torch.zeros(16, dtype=torch.uint8)
    store = ImageStore.ragged(same.repeat(3), torch.tensor([4, 2, 4]), torch.tensor([4, 8, 4]), channels=1)
    first, second, third = store.content_hashes().tolist()
    assert first == third != second


def test_padding_is_centred():
    padded = pad_to(torch.full((1, 1, 28, 28), 9, dtype=torch.uint8), 32)
    assert padded.shape == (1, 1, 32, 32)
    assert (padded[..., 2:30, 2:30] == 9).all()
    assert padded.sum() == 9 * 28 * 28
