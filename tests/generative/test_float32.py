"""What must not depend on the device is computed in whole float32, whatever is allowed around it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from generative.float32 import is_rounded, whole_float32
from generative.flow_map import FlowMap
from generative.metrics.features import NetworkExtractor
from generative.networks.quantizers import VectorQuantizer
from generative.objectives.derivative import total_derivative, total_difference
from generative.patch_evidence import patch_evidence
from generative.types import Condition

CPU = torch.device("cpu")
Settings = tuple[str, bool, bool]
WHOLE: Settings = ("highest", False, False)


def settings() -> Settings:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.is_autocast_enabled("cpu"),
    )


@pytest.fixture(autouse=True)
def _as_in_a_training() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    with torch.autocast("cpu", torch.bfloat16):
        yield
    torch.set_float32_matmul_precision(before)


def test_it_ends_with_its_block_also_after_an_error() -> None:
    around = settings()
    with whole_float32(CPU):
        assert settings() == WHOLE
    assert settings() == around
    with pytest.raises(ZeroDivisionError), whole_float32(CPU):
        _ = 1 / 0
    assert settings() == around != WHOLE
    assert is_rounded(CPU)
    assert is_rounded(torch.device("cuda"))
    with torch.autocast("cpu", enabled=False):
        assert not is_rounded(CPU)


@pytest.mark.parametrize("kind", ["exact", "difference"])
def test_a_derivative_is_taken_with_all_digits(kind: str) -> None:
    seen: list[Settings] = []

    def network(z: Tensor, times: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        seen.append(settings())
        return z, z

    flow_map, z, r, t = FlowMap(network, "velocity"), torch.ones(2, 1, 4, 4), torch.zeros(2), torch.ones(2)
    if kind == "exact":
        total_derivative(flow_map, z, r, t, z, Condition())
    else:
        total_difference(flow_map, z, z, r, t, z, Condition(), 0.01)
    assert seen == [WHOLE] * (1 if kind == "exact" else 2)  # the forward pass's own answer was not: it is taken again


def test_features_are_taken_with_all_digits() -> None:
    class Sees(torch.nn.Module):
        def features(self, image: Tensor) -> Tensor:
            assert settings() == WHOLE
            return image.flatten(1)

    NetworkExtractor("own", Sees(), "not at all")(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("what", ["codes", "evidence"])
def test_close_codes_are_told_apart_under_autocast(what: str) -> None:
    torch.manual_seed(0)
    codes = 1 + 1e-3 * torch.randn(32, 8)  # bfloat16 knows three digits

    def best() -> Tensor:
        if what == "codes":
            return VectorQuantizer(32, 8).nearest(codes, codes)
        image = torch.cat([codes, -codes], 1).view(32, 1, 4, 4)
        return patch_evidence(image, torch.ones_like(image), image.flatten(1), 1, 1.0)[:, 0].argmax(-1)

    found = best()
    with torch.autocast("cpu", enabled=False):
        assert torch.equal(found, best())
    assert torch.equal(found, torch.arange(32))
