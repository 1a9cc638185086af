"""Folders of pictures and masks as people have them, restored by a module whose pictures are noise."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import triptych
from files.images import Picture, read_picture
from files.pixels import drawn, in_own_channels, seen
from files.whole import WriteError
from generative.degradations import BlockMask, GaussianNoise, Greyscale
from generative.inpainting import composite
from generative.randomness import IndexRandomness
from generative.tiling import APART, Tiling
from generative.types import State
from launch.commands import generate
from launch.errors import UserError
from launch.use.folders import plan, result_names
from launch.use.restorer import Restorer
from launch.use.restoring import restore_folder, ways_of
from launch.use.steps import earlier_ways
from launch.use.whole_pictures import _as_seen
from lightning_modules import GenerativeModule, Output

SIZE = 16
HOLE = np.zeros((SIZE, SIZE), bool)
HOLE[4:9, 5:12] = True
NOISE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)
ALPHA = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


class Noise(torch.nn.Module):
    """Answers every image with the same other one, nowhere equal to what it was asked."""

    evaluation_seed = 0
    current_tasks: ClassVar = {"restore", "inpaint"}
    outputs: ClassVar = {"sample": Output(1), "decoded": Output(None, puts_back_known=False)}
    diverged = GenerativeModule.diverged

    def __init__(self, channels: int = 3, feather: int = 0) -> None:
        super().__init__()
        self.channels, self.feather, self.batches = channels, feather, []

    def evaluation_randomness(self, batch, purpose):
        return None

    def pixel_networks(self):
        return []

    def images_of(self, batch, randomness, names=None):
        self.batches.append(batch)
        draws = torch.Generator().manual_seed(1)
        decoded = (torch.rand(1, self.channels, SIZE, SIZE, generator=draws) * 2 - 1).expand_as(batch.image)
        known, validity = batch.observed()
        return {"sample": composite(known, validity, decoded, self.feather), "decoded": decoded}


def restore(
    folder: Path,
    *,
    channels=3,
    result="sample",
    feather=0,
    batch_size=3,
    masks=True,
    overwrite=False,
    overlap=4,
    module=None,
):
    module = module or Noise(channels, feather)
    job = plan(folder / "in", folder / "out", folder / "masks" if masks else None, masks, overwrite)
    tiling = None if overlap is None else Tiling(SIZE, overlap)
    restorer = Restorer(module, None, SIZE, channels, result, torch.device("cpu"), tiling, batch_size)
    return restore_folder(restorer, job), module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "masks").mkdir()
    return tmp_path


def give(folder: Path, name: str, image: Image.Image, mask: Image.Image | None = None, **kwargs) -> None:
    image.save(folder / "in" / name, **kwargs)
    mask = mask or Image.fromarray(HOLE).resize(image.size, Image.Resampling.NEAREST)
    mask.save(folder / "masks" / Path(name).with_suffix(".png"))


def images_of(folder: Path) -> dict[str, Image.Image]:
    return {path.relative_to(folder).as_posix(): Image.open(path) for path in folder.rglob("*.*")}


PICTURES = {
    "png.png": (Image.fromarray(NOISE), {}),
    "jpg.jpg": (Image.fromarray(NOISE), {"quality": 90}),
    "jpeg.JPEG": (Image.fromarray(NOISE), {"quality": 90}),
    "webp.webp": (Image.fromarray(NOISE), {"lossless": True}),
    "lossy.webp": (Image.fromarray(NOISE), {}),
    "bmp.bmp": (Image.fromarray(NOISE), {}),
    "tif.tif": (Image.fromarray(NOISE), {}),
    "gif.gif": (Image.fromarray(NOISE), {}),
    "ppm.ppm": (Image.fromarray(NOISE), {}),
    "pgm.pgm": (Image.fromarray(NOISE).convert("L"), {}),
    "pbm.pbm": (Image.fromarray(ALPHA > 127), {}),
    "apng.apng": (Image.fromarray(NOISE), {"format": "PNG"}),
    "grey.png": (Image.fromarray(ALPHA), {}),
    "palette.png": (Image.fromarray(NOISE).quantize(16), {}),
    "deep.png": (Image.fromarray(DEEP), {}),
    "deep.tif": (Image.fromarray(DEEP), {}),
    "cmyk.jpg": (Image.fromarray(NOISE).convert("CMYK"), {}),
    "rgba.png": (Image.fromarray(np.dstack([NOISE, ALPHA])), {}),
    "la.png": (Image.fromarray(np.dstack([NOISE[..., 0], ALPHA])), {}),
}


@pytest.mark.parametrize("channels", [1, 3])
def test_known_pixels_are_those_of_the_file_in_the_result_that_is_opened(channels: int, folder: Path) -> None:
    for name, (image, kwargs) in PICTURES.items():
        name = f"{name.partition('.')[0]}_{name.rpartition('.')[2].lower()}{Path(name).suffix}"
        give(folder, name, image, **kwargs)
    complete, _ = restore(folder, channels=channels)
    assert complete
    assert len(images_of(folder / "out")) == len(PICTURES)
    for path in (folder / "in").iterdir():
        before, after = read_picture(path), read_picture(folder / "out" / f"{path.stem}.png")
        assert after.pixels.shape == before.pixels.shape
        assert after.pixels.dtype == before.pixels.dtype  # also all 16 bits of grey
        assert np.array_equal(after.pixels[~HOLE], before.pixels[~HOLE]), path
        assert (after.pixels[HOLE] != before.pixels[HOLE]).mean() > 0.4, path
        if before.alpha is not None:
            assert np.array_equal(after.alpha[~HOLE], before.alpha[~HOLE])
            assert (after.alpha[HOLE] == 255).all()
        mode = Image.open(folder / "out" / f"{path.stem}.png").mode
        assert (mode in ("L", "LA", "I;16")) == (before.pixels.ndim == 2)


@pytest.mark.parametrize("overlap", [4, None])
@pytest.mark.parametrize("size", [(40, 24), (7, 5), (16, 64), (1, 1)])
def test_images_of_any_size_keep_it_and_their_known_pixels(
    size: tuple[int, int], overlap: int | None, folder: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    hole = np.zeros(pixels.shape[:2], bool)
    hole[: max(1, size[1] // 2), : max(1, size[0] // 3)] = True
    give(folder, "a.jpg", Image.fromarray(pixels), Image.fromarray(hole), quality=100, subsampling=0)
    _, module = restore(folder, overlap=overlap)
    before, after = (read_picture(folder / name).pixels for name in ("in/a.jpg", "out/a.png"))
    assert np.array_equal(after[~hole], before[~hole])
    assert not np.array_equal(after[hole], before[hole])
    unknown = module.batches[0].validity[0, 0] < 1
    assert unknown.any()
    if min(size) > 1:
        assert not unknown.all()


def test_what_the_network_sees_and_what_fills_the_hole(folder: Path) -> None:
    give(folder, "a.png", Image.fromarray(NOISE))
    _, module = restore(folder)
    seen, validity = module.batches[0].observed()
    assert np.array_equal(validity[0, 0].numpy() < 1, HOLE)
    expected = np.where(HOLE[..., None], 0, NOISE / 127.5 - 1)
    assert np.allclose(seen[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)
    decoded = module.images_of(module.batches[0], None)["decoded"][0].permute(1, 2, 0).numpy()
    result = np.asarray(Image.open(folder / "out" / "a.png"))
    assert np.array_equal(result[HOLE], np.round((decoded[HOLE] + 1) * 127.5).astype(np.uint8))
    restore(folder, result="decoded", overwrite=True)
    assert (np.asarray(Image.open(folder / "out" / "a.png"))[~HOLE] != NOISE[~HOLE]).mean() > 0.9


def test_a_photo_on_its_side_has_the_mask_that_is_drawn_on_it_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    hole = np.zeros((12, 20), bool)
    hole[1:4, 2:9] = True
    give(folder, "a.png", Image.fromarray(np.rot90(upright)), Image.fromarray(hole), exif=exif)
    restore(folder)
    result = Image.open(folder / "out" / "a.png")
    assert result.getexif().get(0x0112) is None
    assert np.array_equal(np.asarray(result)[~hole], upright[~hole])


def test_a_ramp_that_was_asked_for_stays_in_the_result(folder: Path) -> None:
    give(folder, "a.png", Image.fromarray(NOISE))
    _, module = restore(folder, feather=2)
    expected = module.images_of(module.batches[0], None)["sample"][0].permute(1, 2, 0).numpy()
    near = np.zeros_like(HOLE)
    near[2:11, 3:14] = True
    result = np.asarray(Image.open(folder / "out" / "a.png"))
    assert np.array_equal(result[near], np.round((expected[near] + 1) * 127.5).astype(np.uint8))
    assert np.array_equal(result[~near], NOISE[~near])


def test_the_colour_profile_of_the_file_stays_with_its_pixels(folder: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    give(folder, "a.jpg", Image.fromarray(NOISE), icc_profile=profile)
    restore(folder)
    assert Image.open(folder / "out" / "a.png").info["icc_profile"] == profile


def test_results_have_names_of_their_own() -> None:
    def names(*files: str, lossless: bool) -> list[str]:
        found = result_names(sorted(Path(file) for file in files), lossless)
        return [found[Path(file)].as_posix() for file in files]

    files = ["same.png", "same.jpg", "same.gif", "a.b.JPG", "sub/same.jpg", "x.pgm"]
    assert names(*files, lossless=True) == [
        "same.png", "same.jpg.png", "same.gif.png", "a.b.png", "sub/same.png", "x.png",
    ]  # fmt: skip
    assert names(*files, lossless=False) == ["same.png", "same.jpg", "same.gif.png", "a.b.JPG", "sub/same.jpg", "x.png"]
    assert names("a.JPG", "A.png", lossless=True) == ["a.JPG.png", "A.png"]  # one file for some systems
    with pytest.raises(UserError, match=r"the result of a\.jpg would be a\.jpg\.png, which is another image's"):
        names("a.jpg", "a.png", "a.jpg.png", lossless=True)


def test_without_masks_a_picture_keeps_its_suffix_where_that_holds_any_picture(folder: Path) -> None:
    for name in ("a.jpg", "sub/b.webp", "c.gif", "d.pgm", "UPPER.JPG"):
        (folder / "in" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(NOISE).resize((20, 18)).save(folder / "in" / name)
    restore(folder, masks=False)
    images = images_of(folder / "out")
    assert sorted(images) == ["UPPER.JPG", "a.jpg", "c.png", "d.png", "sub/b.webp"]
    assert {image.size for image in images.values()} == {(20, 18)}


class Same(Noise):
    """Answers with what it is asked."""

    def images_of(self, batch, randomness, names=None):
        self.batches.append(batch)
        return {"sample": batch.image.clone(), "decoded": batch.image}


def test_without_masks_all_of_a_picture_but_its_pixels_stays(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Size, name, bits, opacity, colour, the camera's notes: a network that changes nothing gives the file's own picture."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    big = np.random.default_rng(0).integers(0, 256, (37, 45, 3), dtype=np.uint8)
    deep = np.random.default_rng(1).integers(0, 65536, (21, 40), dtype=np.uint16)
    files = {
        "colour.png": (Image.fromarray(big), {}), "grey.png": (Image.fromarray(big[..., 0]), {}),
        "turned.webp": (Image.fromarray(big), {"exif": exif, "lossless": True}), "deep.png": (Image.fromarray(deep), {}),
        "deep.tif": (Image.fromarray(deep), {}), "sub/small.bmp": (Image.fromarray(big[:5, :3]), {}),
        "alpha.png": (Image.fromarray(np.dstack([big, np.where(big[..., 0] > 9, 255, 0).astype(np.uint8)])), {}),
        "palette.gif": (Image.fromarray(big).quantize(8), {}), "pixel.png": (Image.new("L", (1, 1), 77), {}),
        "onebit.png": (Image.fromarray(big[..., 0] > 127), {}),
        "photo.png": (Image.fromarray(np.random.default_rng(2).integers(0, 256, (321, 481, 3), dtype=np.uint8)), {}),
        "inks.jpg": (Image.linear_gradient("L").resize((45, 37)).convert("CMYK"), {"quality": 100}),
    }  # fmt: skip
    for name, (image, kwargs) in files.items():
        (folder / "in" / name).parent.mkdir(exist_ok=True)
        image.save(folder / "in" / name, **kwargs)
    for channels in (3, 1):
        _, module = restore(folder, masks=False, channels=channels, module=Same(channels), overwrite=True)
        assert {batch.image.shape[1:] for batch in module.batches} == {(channels, SIZE, SIZE)}
        for name in files:
            before, path = read_picture(folder / "in" / name), folder / "out" / name
            after = read_picture(path if path.exists() else path.with_suffix(".png"))
            shown = np.s_[...] if before.alpha is None else before.alpha == 255
            grey = name.startswith("grey") and channels == 3  # rounded once more on the way through three channels
            step = after.pixels.astype(int) - (before.pixels if after.pixels.ndim == before.pixels.ndim else 0)
            lossy = 4 if name.endswith(".jpg") else 0
            assert abs(step[shown]).max() <= (1 if grey or before.pixels.dtype != np.uint8 else lossy), name
            assert after.size == before.size
            assert (before.alpha is None) == (after.alpha is None), name
            if before.alpha is not None:
                assert np.array_equal(before.alpha, after.alpha)
        turned = Image.open(folder / "out" / "turned.webp")
        assert (turned.size, turned.getexif().get(0x0112), turned.getexif()[0x010F]) == ((37, 45), None, "a camera")
    printed = capfd.readouterr().err
    assert "images were restored in tiles of 16x16 at most; tile=none resizes" in printed
    assert "the network sees grey: of 7 images in colour each channel was restored by itself" in printed
    restore(folder, masks=False, module=Same(), overwrite=True, overlap=None)
    assert {Image.open(path).size for path in (folder / "out").glob("[cdg]*.png")} == {(45, 37), (40, 21)}


class Full(Same):
    """Memory does not hold the second picture."""

    def images_of(self, batch, randomness, names=None):
        if (batch.index % APART == 1).any():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes.")
        return super().images_of(batch, randomness, names)


def test_a_picture_that_memory_does_not_hold_is_left_out_alone(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, side in (("a.png", SIZE), ("b.png", 2 * SIZE), ("c.png", SIZE)):
        Image.fromarray(NOISE[:1, :1]).resize((side, side)).save(folder / "in" / name)
    whole, _ = restore(folder, masks=False, module=Full(), batch_size=1)
    assert not whole
    assert sorted(images_of(folder / "out")) == ["a.png", "c.png"]
    assert "b.png is left out: it does not fit into memory" in capfd.readouterr().err
    Image.fromarray(NOISE).save(folder / "in" / "b.png")
    with pytest.raises(UserError, match="batch_size=2 images at a time do not fit into memory: set a smaller one"):
        restore(folder, masks=False, module=Full(), batch_size=2, overwrite=True)


def test_what_is_measured_of_a_grey_picture_is_what_is_written() -> None:
    """Also where a network in colour has seen it."""
    picture = Picture(NOISE[..., 0])
    made = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    measured = _as_seen(picture, made, 0)
    assert measured.shape == (1, 1, SIZE, SIZE)
    assert torch.equal(measured, in_own_channels(drawn(picture, made)))


def test_holes_that_a_degradation_makes_are_filled_from_their_rims_too(folder: Path) -> None:
    module = Noise()
    module.current_tasks = {"inpaint"}
    restorer = Restorer(module, BlockMask(30), SIZE, 3, "sample", torch.device("cpu"), Tiling(SIZE, 8))
    request = restorer.request(0, read_picture(_saved(folder, 48)), None)
    made, given = restorer.restore_in_tiles(request), restorer.degraded(request)
    known = restorer.observed(request)[1]
    assert 0 < known.mean() < 1
    assert torch.equal(made * known, given * known)
    assert (
        min(float(batch.validity.mean()) for batch in module.batches) > 0
    )  # a hole larger than a tile, and none sees nothing


def degrader(degradation, channels: int) -> Restorer:
    return Restorer(Noise(channels), degradation, SIZE, channels, "sample", torch.device("cpu"), Tiling(SIZE, 4), 3)


def test_a_picture_is_degraded_in_channels_of_its_own() -> None:
    """Whatever the network sees: R, G and B have noise of their own, and grey has one, of the strength that was asked for."""
    grey, colour = (np.full((64, 64, *more), 128, np.uint8) for more in ((), (3,)))
    noise = GaussianNoise(sigma=25, clip=False)

    def added(pixels: np.ndarray, channels: int) -> torch.Tensor:
        restorer, picture = degrader(noise, channels), Picture(pixels)
        request = restorer.request(5, picture, None)
        assert restorer.degraded(request).shape == request.image.shape
        return ((restorer.degraded(request) - seen(picture, channels)) * 127.5).flatten(0, 1).flatten(1)

    by_one, by_three = added(colour, 1), added(colour, 3)
    assert torch.equal(by_one, by_three)
    assert abs(torch.corrcoef(by_one) - torch.eye(3)).max() < 0.1
    alone, thrice = added(grey, 1), added(grey, 3)
    assert torch.equal(thrice, alone.expand(3, -1))
    assert float(alone.std()) == pytest.approx(25, rel=0.05)
    # A grey picture through a grey network: the noise of benchmarks/photos.py, to the last bit.
    image = seen(Picture(grey), 1)
    drawn = noise(image, IndexRandomness.for_images(0, "degradation/generate", torch.tensor([5]))).image
    restorer = degrader(noise, 1)
    assert torch.equal(restorer.degraded(restorer.request(5, Picture(grey), None)), drawn)
    plain = degrader(Greyscale(), 3)  # among pictures in colour a grey one is left grey
    assert torch.equal(plain.degraded(plain.request(0, Picture(grey), None)), seen(Picture(grey), 3))


@pytest.mark.parametrize("overlap", [4, None])
def test_what_is_restored_is_what_is_measured_as_degraded(overlap: int | None) -> None:
    picture = Picture(np.random.default_rng(0).integers(0, 256, (9, 40, 3), dtype=np.uint8))
    restorer = degrader(GaussianNoise(sigma=25, clip=False), 3)
    restorer.tiling = None if overlap is None else Tiling(SIZE, overlap)
    request = restorer.request(2, picture, None)
    restorer.one(request)
    first = restorer.module.batches[0].degraded
    assert first.shape == (1, 3, SIZE, SIZE)
    given = restorer.observed(request)[0]
    assert torch.equal(first[:, :, :9], given[:, :, :9, :SIZE])
    assert restorer.degraded(request).shape == (1, 3, 9, 40)


def test_a_picture_that_the_degradation_does_not_fit_is_left_out(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, side in (("a.png", 5), ("b.png", 20)):
        Image.fromarray(np.zeros((side, 20, 3), np.uint8)).save(folder / "in" / name)
    job = plan(folder / "in", folder / "out", None, True, False)
    assert not restore_folder(degrader(BlockMask(8), 3), job)
    assert list(images_of(folder / "out")) == ["b.png"]
    assert "a.png is left out: BlockMask.size: blocks of up to 8 pixels do not fit" in capfd.readouterr().err


def test_a_result_whose_format_does_not_hold_the_picture_stops_no_other(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {
        "a.jpg": np.dstack([NOISE, ALPHA]), "b.bmp": np.dstack([NOISE[..., 0], ALPHA]), "c.webp": DEEP, "d.jpg": DEEP,
        "e.webp": np.zeros((1, 17_000), np.uint8), "f.png": np.dstack([NOISE, ALPHA]), "g.bmp": np.dstack([NOISE, ALPHA]),
    }  # fmt: skip
    for name, pixels in files.items():  # as people rename them
        Image.fromarray(pixels).save(folder / "in" / name, format="PNG")
    complete, _ = restore(folder, masks=False, module=Same(), overlap=None)
    assert not complete
    assert sorted(images_of(folder / "out")) == ["a.jpg", "b.bmp", "c.webp", "d.jpg", "f.png", "g.bmp"]
    printed = capfd.readouterr().err
    assert "5 results of formats that hold no transparency or no 16 bits (a.jpg, b.bmp, c.webp and 2 more)" in printed
    assert "e.webp is left out: it cannot be written as WEBP" in printed
    shown = read_picture(folder / "in" / "b.bmp").shown(1)
    assert np.array_equal(np.asarray(Image.open(folder / "out" / "b.bmp")), np.asarray(shown))


def _saved(folder: Path, side: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "in" / "large.png")
    return folder / "in" / "large.png"


def test_one_file_or_a_pattern_is_restored(folder: Path) -> None:
    for name in ("a.png", "b.jpg", "sub/c.png"):
        (folder / "in" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(NOISE).save(folder / "in" / name)
    Image.fromarray(HOLE).save(folder / "masks" / "hole.png")

    def planned(source: str, target: str, masks: str | None = None, lossless: bool = False) -> list[str]:
        job = plan(folder / source, folder / target, folder / masks if masks else None, lossless, False)
        assert all((job.source / file).is_file() for file in job.files)
        return [(job.target / job.results[file]).relative_to(folder).as_posix() for file in job.files]

    assert planned("in/b.jpg", "out") == ["out/b.jpg"]
    assert planned("in/b.jpg", "new/photo.png") == ["new/photo.png"]
    assert planned("in/b.jpg", "in/photo.webp") == ["in/photo.webp"]
    assert planned("in/a.png", "out", "masks/hole.png", lossless=True) == ["out/a.png"]
    assert planned("in/*.png", "out") == ["out/a.png"]
    assert planned("in/**/*.png", "out") == ["out/a.png", "out/sub/c.png"]
    for source, target, lossless, message in (
        ("in/*.gif", "out", False, "no picture has such a name"),
        ("in/nobody.png", "out", False, "no such folder or file"),
        ("in", "out/a.png", False, "is one file, and input= are 3 images"),
        ("in/b.jpg", "out/a.jpg", True, r"a \.jpg file does not hold every picture to the last bit: name it \.png"),
        ("in/b.jpg", "in/b.jpg", False, "no input is overwritten"),
        ("in/b.jpg", "in", False, r"b\.jpg is an input"),
    ):
        with pytest.raises(UserError, match=message):
            planned(source, target, lossless=lossless)


def test_patterns_may_lie_around_and_within_one_another(folder: Path) -> None:
    for name in ("p/a.jpg", "p/b.png", "p/.hidden.jpg", "p/masks/a.png", "p/masks/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(HOLE if "masks" in name else NOISE).convert("RGB").save(folder / name)
    (folder / "p" / "link.jpg").symlink_to("a.jpg")

    def planned(source: str, target: str, masks: str | None = None) -> tuple[list[str], list[str]]:
        job = plan(folder / source, folder / target, folder / masks if masks else None, True, False)
        found = sorted(path.relative_to(folder).as_posix() for path in (job.masks or {}).values())
        return [file.as_posix() for file in job.files], found

    assert planned("p/*.jpg", "new") == (["a.jpg"], [])
    assert planned("p/**.jpg", ".") == (["a.jpg"], [])  # the results go to a folder around the pictures
    assert planned("p", "new", "p/masks/*.png") == (["a.jpg", "b.png"], ["p/masks/a.png", "p/masks/b.png"])
    Image.fromarray(HOLE).save(folder / "p" / "a.png")
    assert planned("p/*.jpg", "new", "p") == (["a.jpg"], ["p/a.png"])
    assert planned("p/*.jpg", "new", "p/*.png") == (["a.jpg"], ["p/a.png"])
    (folder / "p" / "b.png").unlink()
    assert planned("p/*", "new", "p/a.p*") == (["a.jpg"], ["p/a.png"])


class Steps(Same):
    """Goes two steps."""

    def states(self, batch, randomness):
        return [State(batch.image, batch.image)] * 2


def test_the_way_is_that_of_the_first_picture_that_can_be_read(folder: Path) -> None:
    (folder / "in" / "a.png").write_text("no picture")
    Image.fromarray(NOISE).save(folder / "in" / "b.png")
    restorer = Restorer(Steps(), None, SIZE, 3, "sample", torch.device("cpu"))
    job = plan(folder / "in", folder / "out", None, False, False)
    file, ways = ways_of({"": restorer}, job)
    assert (file, len(ways[""])) == (Path("b.png"), 2)
    (folder / "in" / "b.png").write_text("no picture")
    with pytest.raises(UserError, match="none of the input files"):
        ways_of({"": restorer}, job)


def test_steps_are_not_mixed_with_earlier_ones(tmp_path: Path) -> None:
    assert earlier_ways(tmp_path, [Path("a.png")], False) == []
    names = ["masks/linear_00.png", "linear.gif", "steps.png"]
    for name in names:
        (tmp_path / "steps" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "steps" / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"holds steps already \(steps/linear\.gif, .*overwrite=true"):
        earlier_ways(tmp_path, [Path("a.png")], False)
    found = earlier_ways(tmp_path, [Path("a.png")], True)
    assert sorted(path.relative_to(tmp_path / "steps").as_posix() for path in found) == sorted(names)
    with pytest.raises(UserError, match="where results would go, too"):
        earlier_ways(tmp_path, [Path("steps/a.png")], True)
    (tmp_path / "steps" / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files that are no steps \(diary\.txt\)"):
        earlier_ways(tmp_path, [Path("a.png")], True)


def test_steps_of_a_folder_with_what_is_damaged(folder: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (32, 32), "teal").save(folder / "in" / f"{name}.png")
        Image.fromarray(HOLE).resize((32, 32)).save(folder / "masks" / f"{name}.png")
    (folder / "in" / "a.png").write_text("no picture")
    Image.fromarray(HOLE).save(folder / "masks" / "b.png")  # of another size
    model = Path(triptych.__file__).parent / "demo" / "models" / "maskgit_scenes"
    common = [f"run={model}", *(f"{key}={folder / path}" for key, path in (("input", "in"), ("masks", "masks")))]
    common += [f"output={folder / 'out'}", "sampler.num_steps=2", "steps=true"]
    assert generate.main([*common, "vary=sampler.schedule=linear,square"]) == 3
    assert {"c.png", "steps/steps.png", "steps/square.gif", "steps/linear.gif"} < set(images_of(folder / "out"))
    (folder / "out" / "c.png").unlink()
    before = {name: image.size for name, image in images_of(folder / "out").items()}
    with pytest.raises(UserError, match="holds steps already"):
        generate.main(common)
    assert {name: image.size for name, image in images_of(folder / "out").items()} == before
    assert generate.main([*common, "overwrite=true", "vary=sampler.schedule=linear"]) == 3
    names = {"c.png", "steps/steps.png", "steps/linear.gif", *(f"steps/masks/linear_{i:02d}.png" for i in range(3))}
    assert set(images_of(folder / "out")) == names


def test_images_whose_masks_cannot_be_used_are_left_out(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small, empty = Image.fromarray(HOLE[:, :9]), Image.fromarray(HOLE & ~HOLE)
    for name, mask in (("good", None), ("small", small), ("empty", empty), ("damaged", None), ("missing", None)):
        give(folder, f"{name}.png", Image.fromarray(NOISE), mask)
    (folder / "masks" / "damaged.png").write_text("no picture")
    (folder / "masks" / "missing.png").unlink()
    complete, module = restore(folder)
    assert not complete
    assert module.batches[0].index.tolist() == [2]  # its draws, whatever becomes of the others
    assert list(images_of(folder / "out")) == ["good.png"]
    printed = capfd.readouterr().err
    for line in (
        "small.png has 9x16 pixels and its image 16x16: give a mask of the image's own size",
        "empty.png has no hole: white marks the missing pixels",
        "damaged.png cannot be read as an image: it is in no format that is read",
        "missing.png is left out: masks= has no mask named missing.png",
    ):
        assert line in printed
    with pytest.raises(UserError, match="small.png has 9x16 pixels"):
        plan(folder / "in" / "small.png", folder / "new", folder / "masks" / "small.png", True, False)
    (folder / "in" / "good.png").unlink()
    with pytest.raises(UserError, match=r"cannot be read as an image.*\(no other image has a mask that can be used\)"):
        restore(folder)


def test_nothing_is_overwritten_unless_told(folder: Path) -> None:
    give(folder, "a.jpg", Image.fromarray(NOISE))
    (folder / "out").mkdir()
    (folder / "out" / "a.png").write_text("an original")
    with pytest.raises(UserError, match=r"1 file that would be overwritten \(a\.png\).*overwrite=true"):
        restore(folder)
    assert (folder / "out" / "a.png").read_text() == "an original"
    restore(folder, overwrite=True)
    assert Image.open(folder / "out" / "a.png").size == (SIZE, SIZE)
    # A file that appears between the check and the result stays, too.
    (folder / "out" / "a.png").unlink()
    job = plan(folder / "in", folder / "out", folder / "masks", True, False)
    (folder / "out" / "a.png").write_text("of another process")
    restorer = Restorer(Noise(), None, SIZE, 3, "sample", torch.device("cpu"))
    with pytest.raises(WriteError, match="File exists"):
        restore_folder(restorer, job)
    assert [path.name for path in (folder / "out").iterdir()] == ["a.png"]
    assert (folder / "out" / "a.png").read_text() == "of another process"


def test_folders_in_one_another_do_not_feed_on_themselves(folder: Path) -> None:
    give(folder, "a.png", Image.fromarray(NOISE))
    inside = folder / "in" / "restored"
    (folder / "masks").rename(folder / "in" / "masks")
    for _ in range(2):
        job = plan(folder / "in", inside, folder / "in" / "masks", True, True)
        restorer = Restorer(Noise(), None, SIZE, 3, "sample", torch.device("cpu"))
        assert restore_folder(restorer, job)
        assert list(images_of(inside)) == ["a.png"]
    for target, masks, message in (
        (folder / "in", None, "output= must be another folder than input="),
        (folder / "out", folder / "in", "masks= must be another folder"),
        (inside, inside, "masks= must be another folder"),
        (folder / "out", folder / "nowhere", "masks=.*there is no such folder or file"),
        (folder / "in" / "a.png", None, "is one file, and input= are 2 images"),
    ):
        with pytest.raises(UserError, match=message):
            plan(folder / "in", target, masks, True, True)
    (folder / "link").symlink_to(folder / "in")
    with pytest.raises(UserError, match="output= must be another folder"):
        plan(folder / "in", folder / "link", None, True, True)
    (folder / "photos" / "in").mkdir(parents=True)
    Image.fromarray(NOISE).save(folder / "photos" / "in" / "b.png")
    (folder / "photos" / "b.png").symlink_to("in/b.png")
    with pytest.raises(UserError, match=r"b\.png is an input"):
        plan(folder / "photos" / "in", folder / "photos", None, True, True)


def test_what_is_left_out_is_named_and_the_rest_is_restored(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        give(folder, f"good{i}.png", Image.fromarray(NOISE))
    for i in range(12):
        (folder / "in" / f"broken[red]{i:02d}.png").write_bytes(b"")
        (folder / "masks" / f"broken[red]{i:02d}.png").write_bytes((folder / "masks" / "good0.png").read_bytes())
    Image.fromarray(np.dstack([NOISE, ALPHA])).save(folder / "in" / "good1.png")
    complete, _ = restore(folder)
    assert not complete
    assert sorted(images_of(folder / "out")) == ["good0.png", "good1.png"]
    printed = capfd.readouterr().err
    assert "broken[red]09.png is left out: it is in no format that is read\nand 2 more\n" in printed
    assert "broken[red]10.png" not in printed
    assert "1 image with transparent pixels, which are seen over white (good1.png)" in printed
    assert "14 masks: white is missing, 13.7% to 13.7% of the images, 13.7% on average" in printed
    assert "2 images written to" in printed
    for path in (folder / "in").glob("broken*"):
        path.unlink()
    (folder / "in" / "photo.heic").write_bytes(b"")
    complete, _ = restore(folder, overwrite=True)
    assert not complete
    assert "formats that are not read (photo.heic)" in capfd.readouterr().err


def test_doubtful_masks_get_a_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    give(folder, "a.png", Image.fromarray(NOISE), Image.fromarray(~HOLE))
    (folder / "masks" / "alone.png").write_bytes((folder / "masks" / "a.png").read_bytes())
    restore(folder)
    printed = capfd.readouterr().err
    assert "masks/a.png covers 86.3% of the image: are its black and white swapped?" in printed
    assert "1 mask: white is missing, 86.3% of the image\n" in printed
    assert "1 mask without an image (alone.png)" in printed


def test_what_was_written_before_an_error_is_whole_and_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        give(folder, name, Image.fromarray(NOISE))
    real, calls = Noise.images_of, []

    def fails_later(self, batch, randomness, names=None):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(self, batch, randomness)

    monkeypatch.setattr(Noise, "images_of", fails_later)
    with pytest.raises(UserError, match="memory does not hold one image at a time"):
        restore(folder, batch_size=1)
    assert list(images_of(folder / "out")) == ["a.png"]
    assert "1 of 2 images had been written to" in capfd.readouterr().err
