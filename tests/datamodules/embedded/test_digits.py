"""The embedded digits: deterministic, disjoint, cached, readable."""

from dataclasses import replace

import pytest
import torch

from datamodules.embedded import digits
from datamodules.embedded.digits import DigitsDataModule, DigitStyle, generate_digits

SIZES = {"train": 300, "val": 60, "test": 60}
COARSE = DigitStyle(tile=48, glyph=30)  # distance maps at half of the resolution take an eighth of the time


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two faces and a few images: seconds become milliseconds."""
    monkeypatch.setattr(digits, "FACES", ("DejaVuSans", "cmtt10"))
    monkeypatch.setattr(digits, "SIZES", SIZES)


def test_generation_is_deterministic_and_follows_its_seed():
    first, again = generate_digits(COARSE), generate_digits(COARSE)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = generate_digits(replace(COARSE, seed=1))
    assert not torch.equal(first["train/images"], other["train/images"])
    assert DigitStyle().key() != DigitStyle(seed=1).key()


def test_digits_are_white_ink_on_black_within_the_frame():
    images = generate_digits(DigitStyle())["train/images"]
    assert images.shape == (300, 1, 32, 32)
    assert images.dtype == torch.uint8
    assert (images.flatten(1).amax(1) > 200).all()
    assert 0.05 < images.float().mean() / 255 < 0.2
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1)
    assert (border > 0).float().mean() < 0.01


def test_an_undistorted_digit_is_the_glyph():
    still = {"aspect": (1, 1), "rotation": (0, 0), "shear": (0, 0), "shift": (0, 0), "outline": (0, 0), "elastic": 0}
    style = replace(DigitStyle(), height=(20, 20), **still)
    ink = digits._render_glyphs(style).float()
    drawn = digits.draw_digits(torch.arange(20), digits.glyph_distances(style), style, torch.Generator())
    # 32 image pixels cover the tile's 96 at a third of its scale, so that each one averages 3 x 3.
    expected = torch.nn.functional.avg_pool2d(ink[:, None], 3)
    assert (drawn / 255 - expected).abs().mean() < 0.02


def test_splits_are_disjoint_and_labelled(tmp_path):
    data = DigitsDataModule(style=COARSE, cache_dir=tmp_path, num_val=50)
    record = data.record()
    assert record["images"] == {"train": 300, "val": 50, "test": 60}
    assert set(record["identical_images"].values()) == {0}
    batch = data.batch("test", range(60))
    assert batch.labels.shape == (60, 10)
    assert (batch.labels.sum(1) == 1).all()
    assert (batch.labels.sum(0) > 0).all()


def test_second_use_reads_the_cache(tmp_path, monkeypatch):
    first = DigitsDataModule(style=COARSE, cache_dir=tmp_path).record()
    monkeypatch.setattr(digits, "generate_digits", lambda style: pytest.fail("generated again"))
    assert DigitsDataModule(style=COARSE, cache_dir=tmp_path).record() == first
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_cache_is_made_again(tmp_path, damage):
    data = DigitsDataModule(style=COARSE, cache_dir=tmp_path)
    record = data.record()
    content = bytearray(data.path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.path.write_bytes({"truncated": content[:5000], "flipped": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        assert DigitsDataModule(style=COARSE, cache_dir=tmp_path).record() == record
    assert DigitsDataModule(style=COARSE, cache_dir=tmp_path).record() == record


def test_cache_folder_that_cannot_be_written_only_warns(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"paths\.cache_dir"):
        DigitsDataModule(style=COARSE, cache_dir=tmp_path / "file").setup()


def test_environment_names_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    assert DigitsDataModule().path.parent == tmp_path


def test_larger_images_are_padded(tmp_path):
    small, large = (
        DigitsDataModule(style=COARSE, cache_dir=tmp_path, image_size=size).batch("val", [3]).image for size in (32, 40)
    )
    assert torch.equal(large[..., 4:36, 4:36], small)
    assert (large[..., :4, :] == -1).all()
