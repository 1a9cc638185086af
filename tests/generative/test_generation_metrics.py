"""Distances between sets of images against independent formulas, and where Inception's weights come from."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from files.pixels import to_bytes
from generative.metrics import inception
from generative.metrics.features import (
    INCEPTION,
    FeatureExtractor,
    Features,
    NetworkExtractor,
)
from generative.metrics.generation import GenerationMetrics, ReferenceFeatures, inception_score
from generative.metrics.inception import (
    INCEPTION_FILE,
    InceptionExtractor,
    WeightsError,
    WeightsMissingError,
    find_inception_weights,
)
from generative.weights import weights_hash

DIM = 4  # of images of 2 x 2 pixels


class Pixels(nn.Module):
    """The pixels are the features: a row's features depend on that row alone, to the last bit."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(DIM))

    def features(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.flatten(1) * self.scale


class FakeInception(FeatureExtractor):
    """Pixels under Inception's name, with logits."""

    def __init__(self) -> None:
        super().__init__(INCEPTION, Pixels(), "none", "test")

    def __call__(self, image_BCHW: Tensor) -> Features:
        return Features(image_BCHW.flatten(1), 3 * image_BCHW.flatten(1))


def _images(num_images: int, seed: int = 0) -> Tensor:
    """Images that 8 bits hold exactly."""
    generator = torch.Generator().manual_seed(seed)
    low = 40 * (seed % 2)
    return torch.randint(low, low + 200, (num_images, 1, 2, 2), generator=generator).float() / 127.5 - 1


def _pixels() -> NetworkExtractor:
    return NetworkExtractor("pixels", Pixels(), "none")


def _reference(images_NCHW: Tensor) -> ReferenceFeatures:
    return ReferenceFeatures(images_NCHW.flatten(1), "test images")


def _measure(generated: Tensor, reference: Tensor, extractor: FeatureExtractor | None = None) -> GenerationMetrics:
    metrics = GenerationMetrics(extractor or _pixels())
    metrics.reset()
    if len(generated):
        metrics.update(generated, torch.arange(len(generated)))
    metrics.values = metrics.compute(_reference(reference))
    return metrics


def _arrays(*images: Tensor) -> list[np.ndarray]:
    return [image.flatten(1).double().numpy() for image in images]


def test_frechet_distance_equals_the_matrix_square_root() -> None:
    generated, reference = _images(60), _images(90, seed=1)
    measured = _measure(generated, reference).values["fd_pixels/sample"]
    x, y = _arrays(generated, reference)
    s1, s2 = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s1 + s2 - 2 * root)
    assert measured == pytest.approx(expected, rel=1e-9)
    assert measured > 0.1


def test_kernel_distance_equals_the_sum_over_pairs() -> None:
    generated, reference = _images(30), _images(30, seed=1)  # one subset: all images
    metrics = _measure(generated, reference)
    x, y = _arrays(generated, reference)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / DIM + 1) ** 3

    within = [np.mean([kernel(s[i], s[j]) for i in range(30) for j in range(30) if i != j]) for s in (x, y)]
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert metrics.values["kd_pixels/sample"] == pytest.approx(sum(within) - 2 * between, rel=1e-9)
    assert metrics.definition()["kd_pixels_std_over_subsets"] == 0


def test_kernel_distance_of_unequal_sets_is_a_mean_over_subsets() -> None:
    generated, reference = _images(20), _images(400, seed=1)
    metrics = _measure(generated, reference)
    whole = _measure(_images(400), reference)
    spread = metrics.definition()["kd_pixels_std_over_subsets"]
    assert metrics.values["kd_pixels/sample"] == pytest.approx(whole.values["kd_pixels/sample"], abs=3 * spread)


def test_precision_and_recall_equal_a_search_by_brute_force() -> None:
    generated, reference = _images(40), _images(70, seed=1)
    measured = _measure(generated, reference).values
    x, y = _arrays(generated, reference[:40])  # as many of both

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radii = [np.sort(np.linalg.norm(centres - c, axis=1))[3] for c in centres]  # [0] is the centre itself
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return float(np.mean(inside))

    assert measured["precision_pixels/sample"] == pytest.approx(covered(x, y))
    assert measured["recall_pixels/sample"] == pytest.approx(covered(y, x))
    assert covered(x, y) != covered(y, x)


def test_copies_of_one_reference_image_are_precise_and_recall_little() -> None:
    reference = _images(50)
    measured = _measure(reference[:1].repeat(50, 1, 1, 1), reference).values
    assert measured["precision_pixels/sample"] == 1
    assert measured["recall_pixels/sample"] == pytest.approx(1 / 50)


def test_inception_score_equals_its_formula_and_its_bounds() -> None:
    logits = torch.randn(200, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shuffled = logits.numpy()[np.random.RandomState(2020).permutation(200)]
    p = np.exp(shuffled) / np.exp(shuffled).sum(1, keepdims=True)
    scores = [np.exp(np.mean(np.sum(q * np.log(q / q.mean(0)), axis=1))) for q in np.split(p, 10)]
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)
    assert inception_score(torch.ones(20, 7).double())[0] == pytest.approx(1)


def test_a_set_is_at_no_distance_from_itself() -> None:
    images = _images(50)
    measured = _measure(images, images).values
    assert measured["fd_pixels/sample"] == pytest.approx(0, abs=1e-9)
    assert measured["precision_pixels/sample"] == measured["recall_pixels/sample"] == 1


def test_only_inception_gives_metrics_their_usual_names() -> None:
    images = _images(30)
    network, fake = _measure(images, images), _measure(images, images, FakeInception())
    kinds = ("fd", "kd", "precision", "recall")
    assert network.values.keys() == {f"{kind}_pixels/sample" for kind in kinds}
    usual = ("fid", "kid", "precision", "recall", "inception_score")
    assert fake.values.keys() == {f"{name}/sample" for name in usual}
    for metrics in (network, fake):
        assert {name.split("/")[0] for name in metrics.values} <= metrics.definition().keys()
    for name in (INCEPTION, "label classifier"):
        with pytest.raises(ValueError, match="needs a name of its own"):
            NetworkExtractor(name, Pixels(), "none")
    with pytest.raises(TypeError, match="features"):
        NetworkExtractor("linear", nn.Linear(1, 1), "none")


def test_neither_order_nor_batch_size_matters() -> None:
    generated, reference = _images(40), _images(50, seed=1)
    expected = _measure(generated, reference, FakeInception()).values
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    metrics = GenerationMetrics(FakeInception())
    for _ in range(2):
        metrics.reset()
        for rows in order.split(7):
            metrics.update(generated[rows], rows)
        assert metrics.compute(_reference(reference)) == expected


def test_too_few_images_are_a_reason_and_no_number() -> None:
    reference = _images(30)
    none, one, three = (_measure(_images(n), reference, FakeInception()) for n in (0, 1, 3))
    assert none.values == one.values == {}
    assert none.skipped["fid"] == "needs 2 images, got 0"
    assert one.skipped["recall"] == "needs 4 images, got 1"
    assert three.values.keys() == {"fid/sample", "kid/sample"}
    assert three.definition()["skipped"].keys() == {"precision", "recall", "inception_score"}
    assert three.definition()["rank_deficient"].startswith("3 images span fewer than the 4 dimensions")
    assert "rank_deficient" not in _measure(_images(5), reference).definition()


def test_a_diverged_model_gets_no_distance() -> None:
    images = _images(30)
    images[7, 0, 0, 0] = torch.nan
    metrics = _measure(images, _images(30))
    assert metrics.values == {}
    assert metrics.skipped["fd_pixels"] == "1 of the 30 generated images are not finite"


def test_images_are_measured_as_8_bit_files_hold_them() -> None:
    images = _images(30)
    changed = images + 0.3 / 127.5
    changed[images == images.max()] += 5  # beyond the range is the range's end
    images[images == images.max()] = 1
    assert _measure(changed, _images(30, seed=1)).values == _measure(images, _images(30, seed=1)).values


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the real architecture."""
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3(INCEPTION, ["2048"], nothing)
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    torch.save(network.state_dict(), path)
    return path


def test_inception_is_loaded_from_its_file(inception_weights: Path) -> None:
    extractor = InceptionExtractor(inception_weights)
    grey = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features, logits = extractor(grey)
    assert features.shape == (1, 2048)
    assert logits.shape == (1, 1008)
    assert features.std() > 0
    colour = extractor.network(to_bytes(grey).repeat(1, 3, 1, 1))  # torch-fidelity's own answer
    torch.testing.assert_close(Features(*colour), Features(features, logits), rtol=1e-4, atol=1e-5)
    assert "299" in extractor.definition()["resize"]


def test_the_fingerprint_is_that_of_the_weights() -> None:
    one, same, other = (_pixels() for _ in range(3))
    assert one.definition() == same.definition()
    with torch.no_grad():
        other.network.scale[0] = 2
    assert NetworkExtractor("pixels", other.network, "none").fingerprint != one.fingerprint
    assert weights_hash(nn.BatchNorm2d(2).bfloat16()) != weights_hash(nn.BatchNorm2d(2))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (marker,))

    path = tmp_path / INCEPTION_FILE
    torch.save({"x": Attack()}, path)
    with pytest.raises(WeightsError, match="holds more than weights, and was not loaded"):
        InceptionExtractor(path)
    assert not marker.exists()


@pytest.mark.parametrize("state", [{"x": torch.ones(1)}, [torch.ones(1)]])
def test_other_weights_are_refused(tmp_path: Path, state: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"weights\.pth holds other weights than torch-fidelity's Inception v3"):
        InceptionExtractor(path)


def test_weights_are_found_where_they_should_be(tmp_path: Path) -> None:
    own, cache = tmp_path / "own.pth", tmp_path / "cache"
    with pytest.raises(
        WeightsMissingError, match=r"callbacks\.generation\.inception\.weights=.*own\.pth does not exist"
    ):
        find_inception_weights(own, cache)
    with pytest.raises(WeightsMissingError, match=rf"not at {cache}/{INCEPTION_FILE}.*or set callbacks\.generation"):
        find_inception_weights(None, cache, download=False)
    cache.mkdir()
    for path in (own, cache / INCEPTION_FILE):
        path.touch()
    assert find_inception_weights(own, cache) == own
    assert find_inception_weights(None, cache) == cache / INCEPTION_FILE


def test_weights_are_downloaded_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, cache = b"weights", tmp_path / "cache"
    name = f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / name).write_bytes(content[:-1])
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", (tmp_path / name).as_uri())
    monkeypatch.setattr(inception, "INCEPTION_FILE", name)
    with pytest.raises(WeightsMissingError, match="wrong SHA-256"):
        find_inception_weights(None, cache)
    assert list(cache.iterdir()) == []
    (tmp_path / name).write_bytes(content)
    assert find_inception_weights(None, cache).read_bytes() == content
    (tmp_path / name).unlink()
    assert find_inception_weights(None, cache).read_bytes() == content


def test_8_bits() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0])
    assert to_bytes(image).tolist() == [0, 0, 128, 255, 255]
    every = torch.arange(256)
    assert torch.equal(to_bytes(every / 127.5 - 1), every.byte())
