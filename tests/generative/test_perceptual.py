"""The perceptual loss against torchmetrics' LPIPS on the same weights, and where its weights come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchmetrics.functional.image import lpips
from torchvision.models.vgg import cfgs, make_layers

from generative.judges import perceptual
from generative.judges.perceptual import CHANNELS, PerceptualLoss
from generative.weight_files import WeightsError, WeightsMissingError
from launch.errors import UserError, as_user_error

ROOT = Path(__file__).resolve().parents[2]
VGG_FILE = perceptual.VGG_URL.rpartition("/")[2]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "VGG_URL", f"file:///nowhere/{VGG_FILE}")


@pytest.fixture(scope="module")
def layers() -> nn.Sequential:
    """VGG16's layers with random weights that keep the size of the features."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        layers = make_layers(cfgs["D"])
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.normal_(layer.bias, std=0.1, generator=generator)
    return layers


@pytest.fixture(scope="module")
def weights(layers: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers in torchvision's file."""
    path = tmp_path_factory.mktemp("vgg") / VGG_FILE
    state = {f"features.{name}": value for name, value in layers.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 3)}, path)
    return path


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random heads in the LPIPS authors' file."""
    path, generator = tmp_path_factory.mktemp("heads") / "vgg.pth", torch.Generator().manual_seed(1)
    state = {
        f"lin{n}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for n, channels in enumerate(CHANNELS)
    }
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def loss(weights: Path) -> PerceptualLoss:
    return PerceptualLoss(weights, heads=None)


def _images(num_images: int = 3, channels: int = 3, size: int = 40, seed: int = 0) -> Tensor:
    return 2 * torch.rand(num_images, channels, size, size, generator=torch.Generator().manual_seed(seed)) - 1


def _library(monkeypatch: pytest.MonkeyPatch, layers: nn.Sequential, heads: dict[str, Tensor]) -> nn.Module:
    """Torchmetrics' network with our weights."""
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained: layers)
    network = lpips._LPIPS(pretrained=False, net="vgg", pnet_rand=True)
    assert not network.load_state_dict(heads, strict=False).unexpected_keys
    return network


def test_with_heads_it_equals_the_library(weights, heads, layers, monkeypatch) -> None:
    loss, library = PerceptualLoss(weights, heads), _library(monkeypatch, layers, torch.load(heads))
    image, reference = _images(), _images(seed=1).lerp(_images(), 0.3)
    expected = library(image, reference).flatten()
    assert loss(image, reference).shape == (3,)
    torch.testing.assert_close(loss(image, reference), expected, rtol=1e-5, atol=1e-5)
    assert expected.min() > 0.01


def test_with_the_learnt_heads_it_is_lpips(weights, layers, monkeypatch) -> None:
    """The library's own heads, loaded by the library."""
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained: layers)
    library = lpips._LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    loss = PerceptualLoss(weights)
    image, reference = _images(), _images(seed=1).lerp(_images(), 0.3)
    torch.testing.assert_close(loss(image, reference), library(image, reference).flatten(), rtol=1e-5, atol=1e-5)
    assert loss.definition()["name"].startswith("LPIPS")


def test_without_heads_it_is_the_sum_over_the_channels(loss, layers, monkeypatch) -> None:
    ones = {f"lin{n}.model.1.weight": torch.ones(1, channels, 1, 1) for n, channels in enumerate(CHANNELS)}
    library = _library(monkeypatch, layers, ones)
    image, reference = _images(size=16), _images(size=16, seed=1)  # the least size
    torch.testing.assert_close(loss(image, reference), library(image, reference).flatten(), rtol=1e-5, atol=1e-5)


def test_equal_images_are_at_no_distance_and_nearer_ones_at_less(loss) -> None:
    image, other = _images(), _images(seed=1)
    assert torch.equal(loss(image, image.clone()), torch.zeros(3))
    near, far = loss(image.lerp(other, 0.1), image), loss(image.lerp(other, 0.9), image)
    assert (near > 0).all()
    assert (near < far).all()
    torch.testing.assert_close(loss(image[1:2], other[1:2]), loss(image, other)[1:2])  # image by image


def test_grey_images_are_those_of_three_equal_channels(loss) -> None:
    image, reference = _images(channels=1), _images(channels=1, seed=1)
    colour = [grey.expand(-1, 3, -1, -1) for grey in (image, reference)]
    torch.testing.assert_close(loss(image, reference), loss(*colour))


def test_gradients_flow_to_the_image_only(loss) -> None:
    image, reference = _images(1, size=16).requires_grad_(), _images(1, size=16, seed=1).requires_grad_()
    loss(image, reference).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert reference.grad is None
    assert all(not p.requires_grad and p.grad is None for p in loss.network.parameters())
    flat = torch.zeros(1, 3, 16, 16, requires_grad=True)
    loss(flat, flat.detach() + 1e-3).sum().backward()
    assert flat.grad.isfinite().all()


def test_descent_on_it_finds_the_reference(loss) -> None:
    reference = _images(1, size=16, seed=1)
    image = (reference + 0.5 * _images(1, size=16)).requires_grad_()
    start = loss(image, reference).item()
    optimizer = torch.optim.Adam([image], lr=0.05)
    for _ in range(8):
        optimizer.zero_grad()
        loss(image, reference).sum().backward()
        optimizer.step()
    assert loss(image, reference).item() < 0.5 * start


def test_it_stays_out_of_the_owners_state(loss) -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.perceptual = loss

    owner = Owner().train()
    assert owner.state_dict() == {}
    assert list(owner.parameters()) == []
    assert not any(layer.training for layer in loss.network.modules())
    assert loss.to("cpu") is loss


def test_building_it_draws_nothing(weights) -> None:
    before = torch.get_rng_state()
    PerceptualLoss(weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_definition_is_that_of_the_weights(loss, weights, heads) -> None:
    plain, lpips_own, other = (
        loss.definition(),
        PerceptualLoss(weights).definition(),
        PerceptualLoss(weights, heads).definition(),
    )
    assert PerceptualLoss(weights, heads=None).definition() == plain
    assert "LPIPS" not in str(plain)  # without heads it is none
    assert plain["name"].startswith("VGG feature distance")
    assert lpips_own["heads"] == other["heads"] == "learnt"
    assert len({plain["weights_hash"], lpips_own["weights_hash"], other["weights_hash"]}) == 3


def test_bad_images_are_refused(loss) -> None:
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels, got 3 channels and 15 x 15 pixels"):
        loss(_images(size=15), _images(size=15))
    with pytest.raises(ValueError, match="got 4 channels"):
        loss(_images(channels=4), _images(channels=4))
    with pytest.raises(ValueError, match=r"of one shape, got \(3, 1, 40, 40\) and \(3, 3, 40, 40\)"):
        loss(_images(channels=1), _images())


def test_missing_files_are_named_with_the_remedy(weights, tmp_path) -> None:
    own = tmp_path / "own.pth"
    with pytest.raises(WeightsMissingError, match=r"^perceptual\.weights=.*own\.pth does not exist: download file://"):
        PerceptualLoss(own)
    with pytest.raises(
        WeightsMissingError,
        match=r"^perceptual\.heads=.*own\.pth does not exist: download https://.* or set the key to learnt",
    ):
        PerceptualLoss(weights, own)
    place = (
        rf"the VGG16 weights are not at {tmp_path}/vgg16/{VGG_FILE} \(the download failed: .*set perceptual\.weights"
    )
    with pytest.raises(WeightsMissingError, match=place):
        PerceptualLoss(cache_dir=tmp_path)
    assert not (tmp_path / "vgg16" / VGG_FILE).exists()


def test_the_file_in_the_cache_is_used(weights, loss, tmp_path) -> None:
    (tmp_path / "vgg16").mkdir()
    (tmp_path / "vgg16" / VGG_FILE).symlink_to(weights)
    config = OmegaConf.load(ROOT / "conf" / "perceptual" / "vgg16.yaml")
    config.cache_dir = str(tmp_path)
    assert instantiate(config).definition() == PerceptualLoss(weights).definition()
    config.heads = None
    assert instantiate(config).definition() == loss.definition()


def test_a_config_without_the_weights_is_a_users_error(tmp_path) -> None:
    config = OmegaConf.load(ROOT / "conf" / "perceptual" / "vgg16.yaml")
    config.cache_dir = str(tmp_path)
    with pytest.raises(UserError, match=rf"the VGG16 weights are not at {tmp_path}"), as_user_error():
        instantiate(config)


def test_damaged_files_are_refused(weights, tmp_path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"weights\.pth is damaged .* or set perceptual\.weights to another file"):
        PerceptualLoss(path)
    with pytest.raises(WeightsError, match=r"weights\.pth is damaged .* or set perceptual\.heads=null"):
        PerceptualLoss(weights, path)


@pytest.mark.parametrize("state", [{"features.0.weight": torch.ones(1)}, [torch.ones(1)], {"lin0.model.1.weight": 3}])
def test_other_weights_are_refused(weights, tmp_path, state) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError, match="holds other weights than torchvision's VGG16: replace it by"):
        PerceptualLoss(path)
    with pytest.raises(WeightsError, match="holds other weights than LPIPS's heads for VGG16: replace it by"):
        PerceptualLoss(weights, path)


def test_weights_of_another_shape_are_refused(weights, tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torch.load(weights) | {"features.0.weight": torch.ones(64, 1, 3, 3)}, path)
    with pytest.raises(WeightsError, match="holds other weights"):
        PerceptualLoss(path)


def test_a_file_that_would_run_code_is_refused(weights, tmp_path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (marker,))

    path = tmp_path / "weights.pth"
    torch.save({"features.0.weight": Attack()}, path)
    for arguments in ((path,), (weights, path)):
        with pytest.raises(WeightsError, match="holds more than weights, and was not loaded"):
            PerceptualLoss(*arguments)
    assert not marker.exists()
