"""The compiled training forward: the same numbers, and used for nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import TINY, train_here
from round_trips import IN_THE_MIDDLE, assert_round_trips, assert_same_samples
from torch._inductor import config as inductor
from torch.nn.attention import SDPBackend, sdpa_kernel

from generative.networks import DiT
from generative.types import Condition
from launch.compiling import check_compile
from launch.compose import compose_config
from launch.errors import UserError
from lightning_modules.compiled import CompiledTraining, try_compiler


@pytest.fixture(scope="module")
def network() -> DiT:
    torch.manual_seed(0)
    network = DiT(
        image_size=8, in_channels=1, condition_channels=2, num_times=2, num_outputs=2, dim=16, depth=1, num_heads=2
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project's cache folder, on a machine whose compiler was tried."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what comes next is undone
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        try_compiler(torch.device("cpu"), str(folder))
        yield folder


@pytest.fixture(scope="module")
def compiled(network: DiT, cache: Path) -> CompiledTraining:
    return CompiledTraining(network, "forward")


def _gradients(network: DiT, autocast: bool) -> list[torch.Tensor]:
    x, times, image = torch.randn(4, 1, 8, 8), torch.rand(4, 2), torch.randn(4, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        u, v = network(x, times, Condition(image=image))
    return list(torch.autograd.grad(u.square().sum() + v.square().sum(), list(network.parameters())))


@pytest.mark.slow
@pytest.mark.timeout(900)  # the C++ compiler waits for cores where others use them
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-4), (True, 3e-2)])
def test_gradients_are_those_of_the_network(
    network: DiT, compiled: CompiledTraining, cache: Path, autocast: bool, tolerance: float
) -> None:
    names, before = list(network.state_dict()), len(list(cache.rglob("*.so")))
    torch.manual_seed(1)
    plain = _gradients(network, autocast)
    torch.manual_seed(1)
    with compiled.used():
        found = _gradients(network, autocast)
        assert list(network.state_dict()) == names
    assert compiled.seconds is not None
    assert len(list(cache.rglob("*.so"))) > before  # the compiled code is kept there
    for a, b in zip(found, plain, strict=True):
        assert (a - b).norm() <= tolerance * b.norm() + 1e-6


def test_only_calls_with_gradients_are_compiled_and_no_transforms(
    network: DiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(torch, "compile", lambda plain: lambda *inputs: called.append(1) or plain(*inputs))
    compiled = CompiledTraining(network, "forward")
    x, times = torch.randn(2, 1, 8, 8), torch.rand(2, 2)
    condition = Condition(image=torch.randn(2, 2, 8, 8))
    with compiled.used():
        with torch.no_grad():
            network(x, times, condition)
        with sdpa_kernel(SDPBackend.MATH):  # the only one with a forward derivative
            torch.func.jvp(lambda t: network(x, t, condition)[0], (times,), (torch.ones_like(times),))
        assert not called
        network(x, times, condition)
        assert called
    network(x, times, condition)
    assert len(called) == 1
    assert "forward" not in vars(network)


def test_a_machine_without_a_compiler_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match="install g\\+\\+") as raised,
    ):
        try_compiler(torch.device("cpu"))
    assert str(raised.value).startswith("there is no working compiler for the cpu (")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=vqgan_scenes"], "VQGAN cannot be compiled, as its"),
        (["experiment=meanflow_dit", "trainer=fsdp"], "fsdp"),
    ],
)
def test_what_cannot_be_compiled_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_compile(compose_config([*overrides, "compile=true"]))


@pytest.mark.slow
def test_a_compiled_training_arrives_where_a_plain_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also resumed in its middle, where it has the same bits; nothing of it is in evaluation and export."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # its C++ is compared above
    settings = [*TINY, *IN_THE_MIDDLE, "experiment=meanflow_dit", "trainer.accumulate_grad_batches=2"]
    settings += ["optimizer=muon", "objective.derivative=difference", "callbacks.calibration=null"]
    plain, compiled = (
        train_here(tmp_path / value, *settings, f"compile={value}", f"paths.outputs={tmp_path}")
        for value in ("false", "true")
    )
    assert "the network was compiled in" in capsys.readouterr().out
    weights, other = (run.load_checkpoint()["state_dict"] for run in (plain, compiled))
    assert weights.keys() == other.keys()
    for name, value in weights.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)
    assert_same_samples(*assert_round_trips(compiled, tmp_path))
