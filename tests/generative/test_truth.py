"""Known laws: conditioning against independent formulas, and posteriors that the images themselves confirm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from generative.degradations import (
    BlockMask,
    BrushMask,
    Degradation,
    Downsample,
    GaussianBlur,
    GaussianNoise,
    Jpeg,
    Mixture,
    MotionBlur,
    SaltAndPepper,
    Sequential,
)
from generative.degradations.observation import ROUNDING_STD
from generative.randomness import StepRandomness, generator_for
from generative.truth import DiscOnField, GaussianField, GaussianMixture, posteriors

SIZE = 8
FIELD = GaussianField(SIZE)
LINEAR = {
    "block": BlockMask(4),
    "holes": Mixture({"block": BlockMask(3, fill=0.5), "brush": BrushMask(1, 2, 3, fill=-0.5)}),
    "noise": GaussianNoise({"train": [0.3, 1.0], "evaluation": 0.1}),
    "blur": Sequential({"blur": GaussianBlur(1.0), "noise": GaussianNoise(0.05)}),
    "motion": Sequential({"motion": MotionBlur(3.0, 30.0), "noise": GaussianNoise(0.05)}),
    "super_resolution": Downsample(4),
    "coloured_noise": Sequential({"noise": GaussianNoise(0.1), "down": Downsample(2), "more": GaussianNoise(0.02)}),
    "one_of_one": Mixture({"down": Downsample(2, "nearest"), "noise": GaussianNoise(0.5)}, {"noise": 0}),
}


def drawn(prior: GaussianField, num_images: int, seed: int = 0) -> Tensor:
    return prior.draw(torch.Generator().manual_seed(seed), num_images)


def degraded(degradation: Degradation, image: Tensor) -> tuple[Tensor, Tensor]:
    return degradation(image.float(), StepRandomness(generator_for(0, "degradation"), len(image)))[:2]


@pytest.mark.parametrize("smoothness", [0, 1, 2])
def test_fields_have_the_matern_covariance(smoothness: int) -> None:
    """By scipy's Bessel function, and of what is drawn."""
    from scipy.special import gamma, kv

    prior = GaussianField(12, 3, 0.2, 0.3, smoothness)
    nu = smoothness + 0.5
    d = math.sqrt(2 * nu) * np.arange(1, 12) / (0.3 * 12)
    expected = 2 ** (1 - nu) / gamma(nu) * d**nu * kv(nu, d)
    np.testing.assert_allclose(prior.correlation_SS[0, 1:], expected)
    image = drawn(prior, 4000)
    assert image.shape == (4000, 3, 12, 12)
    pixels = torch.stack([image[:, 0, 0, 0], image[:, 0, 0, 2], image[:, 0, 3, 2], image[:, 1, 0, 0]])
    k = [1.0, *expected]
    row = 0.04 * torch.tensor([1.0, k[2], k[3] * k[2], 0.0])
    torch.testing.assert_close(pixels.cov()[0], row.double(), atol=0.003, rtol=0)
    law = prior.law.covariance_PP
    assert law[0, 3 * 12 + 2].item() == pytest.approx(0.04 * k[3] * k[2])
    assert law[0, 0].item() == pytest.approx(0.04, abs=1e-5)


def test_discs_are_bright_or_dark_in_four_places() -> None:
    prior = DiscOnField(16, std=0.01)
    assert prior.modes_MSS.abs().amax((1, 2)).tolist() == [0.5] * 8
    found = {(int(i // 16 > 7), int(i % 16 > 7), bool(image.flatten()[i] > 0)) for image in drawn(prior, 200)
             for i in [int(image.abs().argmax())]}  # fmt: skip
    assert len(found) == 8


@pytest.mark.parametrize("field", [FIELD, DiscOnField(SIZE)], ids=["field", "discs"])
@pytest.mark.parametrize("name", LINEAR)
def test_the_images_are_as_far_from_their_posteriors_as_these_say(name: str, field: GaussianField) -> None:
    """The mean's squared error is the posterior's variance, in total and pixel by pixel, where that is not zero."""
    image = drawn(field, 600)
    y, validity = degraded(LINEAR[name], image)
    error, variance = torch.empty(2, *image.shape, dtype=torch.float64)
    for rows, law in posteriors(field.law, LINEAR[name], y, validity):
        error[rows] = (law.mean_BCP.view(-1, 1, SIZE, SIZE) - image[rows]).square()
        variance[rows] = law.variance_BCP.view(-1, 1, SIZE, SIZE)
    known = validity.expand_as(image) > 0
    assert error[known].max() < 1e-10 if known.any() else True
    assert error[~known].mean().item() == pytest.approx(variance[~known].mean().item(), rel=0.1)


def test_a_gaussian_posterior_is_that_of_the_joint_gaussian() -> None:
    """Chi-squared distances to the posterior, and the conditional of scipy's joint normal density."""
    image = drawn(FIELD, 500)
    y, validity = degraded(LINEAR["blur"], image)
    ((_, law),) = posteriors(FIELD.law, LINEAR["blur"], y, validity)
    apart = (image.flatten(1) - law.mean_BCP[:, 0]) @ torch.linalg.cholesky(law.covariance_PP).inverse().T
    assert stats.kstest(apart.square().sum(1).numpy(), stats.chi2(SIZE**2).cdf).pvalue > 0.01
    operator, noise = LINEAR["blur"].observation(validity).matrices(SIZE, SIZE)
    operator, noise, prior = operator.numpy(), noise.numpy(), FIELD.law.covariance_PP.numpy()
    covariance = operator @ prior @ operator.T + noise
    joint = stats.multivariate_normal(
        np.zeros(2 * SIZE**2),
        np.block([[prior, prior @ operator.T], [operator @ prior, covariance]]),
    )
    marginal = stats.multivariate_normal(np.zeros(SIZE**2), covariance)
    seen, point = y[0].flatten().double().numpy(), image[0].flatten().numpy()
    expected = joint.logpdf(np.concatenate([point, seen])) - marginal.logpdf(seen)
    conditional = stats.multivariate_normal(law.mean_BCP[0, 0].numpy(), law.covariance_PP.numpy())
    assert conditional.logpdf(point) == pytest.approx(expected, rel=1e-6)


def test_a_mixture_is_enumerated() -> None:
    """Weights by scipy's densities of the observation; draws have the law's mean, modes and variance."""
    prior = DiscOnField(SIZE, std=0.12)
    image = drawn(prior, 5)
    degradation = Sequential({"down": Downsample(4, "nearest"), "noise": GaussianNoise(0.1)})
    y, validity = degraded(degradation, image)
    ((_, law),) = posteriors(prior.law, degradation, y, validity)
    operator, noise = degradation.observation(validity).matrices(SIZE, SIZE)
    covariance = operator @ prior.law.covariance_PP @ operator.T + noise
    seen = y.flatten(1).double()
    densities = [
        stats.multivariate_normal((operator @ m.flatten()).numpy(), covariance).logpdf(seen) for m in prior.modes_MSS
    ]
    expected = torch.tensor(np.stack(densities, 1)).softmax(1)
    torch.testing.assert_close(law.weights_BM, expected)
    assert (expected.amax(1) < 0.99).any()
    row = int(expected.amax(1).argmin())
    one = GaussianMixture(law.log_weights_BM[[row]], law.means_BMCP[[row]], law.covariance_PP)
    g = torch.Generator().manual_seed(1)
    draws = one.draw(torch.rand(20000, generator=g).double(), torch.randn(20000, 1, SIZE**2, generator=g).double())
    torch.testing.assert_close(draws.mean(0), one.mean_BCP[0], atol=0.01, rtol=0)
    torch.testing.assert_close(draws.var(0), one.variance_BCP[0], atol=0.01, rtol=0.05)


@pytest.mark.parametrize("prior", [FIELD, DiscOnField(SIZE)], ids=["field", "discs"])
def test_image_and_noise_are_expected_as_by_importance_sampling(prior: GaussianField) -> None:
    """At states that come from images: residuals are orthogonal to any function of the state, and z = a E[x] + s E[e]."""
    image, g = drawn(prior, 20000).flatten(2), torch.Generator().manual_seed(2)
    noise = torch.randn(image.shape, generator=g, dtype=torch.float64)
    a, s = torch.tensor([0.9]).double(), torch.tensor([0.436]).double()
    z = a * image + s * noise
    x, e = prior.law.expected(z, a, s)
    torch.testing.assert_close(a * x + s * e, z)
    for function in (z.sign(), z.square() - 1, x):
        assert ((image - x) * function).mean().abs() < 4e-3 * image.std()
    assert (image - x).square().mean() < 0.9 * image.var()


def test_the_flow_of_a_mixture_is_integrated_and_of_one_mode_known() -> None:
    law = DiscOnField(SIZE, level=0.0).law  # eight equal modes are one
    one = GaussianField(SIZE, std=0.1).law
    z = torch.randn(4, 1, SIZE**2, generator=torch.Generator().manual_seed(3)).double()
    t, r = torch.tensor([1.0, 1.0, 0.7, 0.4]).double(), torch.tensor([0.0, 0.5, 0.2, 0.4]).double()
    torch.testing.assert_close(law.flowed(z, t, r), one.flowed(z, t, r), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.flowed(z, t, r)[3], z[3])
    moved = one.flowed(z, torch.ones(4).double(), torch.zeros(4).double())
    assert moved.var().item() == pytest.approx(0.01, rel=0.4)


def test_the_adjoint_is_the_transpose() -> None:
    for name, degradation in LINEAR.items():
        y, validity = degraded(degradation, drawn(FIELD, 1))
        observation = degradation.observation(validity)
        operator, noise = observation.matrices(SIZE, SIZE)
        torch.testing.assert_close(
            observation.operator(y.double()).flatten(), operator @ y.double().flatten(), msg=name
        )
        torch.testing.assert_close(
            observation.adjoint(y.double()).flatten(), operator.T @ y.double().flatten(), msg=name
        )
        torch.testing.assert_close(
            observation.noise_covariance(y.double()).flatten(), noise @ y.double().flatten(), msg=name
        )
        assert noise.diagonal().min() >= ROUNDING_STD**2


@pytest.mark.parametrize(
    ("degradation", "message"),
    [
        (Sequential({"jpeg": Jpeg(10)}), r"degradation\.steps\.jpeg: Jpeg is no linear map of each channel"),
        (
            Mixture({"a": BlockMask(2), "b": SaltAndPepper(0.1)}),
            r"degradation\.steps\.b: SaltAndPepper is no linear map of each channel",
        ),
        (Mixture({"a": BlockMask(2), "b": GaussianNoise(0.1)}), r"degradation\.steps=a, b: no restorer is told which"),
        (Sequential({"a": BlockMask(2), "b": GaussianNoise(0.1)}), r"degradation\.steps\.a: beside other steps"),
        (Sequential({"n": GaussianNoise([0.1, 0.2])}), r"degradation\.steps\.n\.std=\[0\.1, 0\.2\] differs from image"),
        (Sequential({"m": MotionBlur(3.0)}), r"degradation\.steps\.m\.angle=\[0\.0, 180\.0\] differs from image"),
        (GaussianNoise(0.7), "lie beyond black and white"),
    ],
)
def test_what_has_no_exact_posterior_is_refused(degradation: Degradation, message: str) -> None:
    y, validity = degraded(degradation, drawn(FIELD, 2))
    with pytest.raises(ValueError, match=message) as error:
        list(posteriors(FIELD.law, degradation, y, validity))
    assert "\n" not in str(error.value)


def test_noise_that_is_not_cut_off_may_be_as_large_as_it_likes() -> None:
    degradation, x = Sequential({"noise": GaussianNoise(0.7, clip=False)}), drawn(FIELD, 200)
    y, validity = degraded(degradation, x)
    ((_, posterior),) = posteriors(FIELD.law, degradation, y, validity)
    error = (posterior.mean_BCP - x.double().flatten(2)).square().mean()
    torch.testing.assert_close(error, posterior.variance_BCP.mean(), rtol=0.1, atol=0)


def test_laws_that_images_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.prior\.std=0\.3 .* 0\.25 at most"):
        GaussianField(8, std=0.3)
    with pytest.raises(ValueError, match=r"data\.prior\.std=0\.2 .* 0\.125 at most"):
        DiscOnField(8, std=0.2)
    with pytest.raises(ValueError, match=r"data\.prior\.smoothness=3 "):
        GaussianField(8, smoothness=3)
    with pytest.raises(ValueError, match=r"data\.image_size=65 is too large"):
        GaussianField(65).law  # noqa: B018
