"""A checkpoint that a training cannot continue from is said to be so, in one sentence and before anything is restored."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY
from lightning import Trainer

from generative.judges.label_classifier import load_label_classifier
from generative.networks.tokenizer import load_tokenizer
from generative.weights import LoadMemoryError, is_out_of_memory, read_checkpoint
from launch import build
from launch.compose import compose_config
from launch.errors import EXIT_RUN_FAILED, UserError, reported
from launch.restorable import check_restorable
from launch.run_folder import RunFolder
from lightning_modules import GenerativeModule

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def module() -> GenerativeModule:
    return build.build_module(compose_config(["experiment=meanflow_dit", *TINY]))


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


@pytest.fixture(scope="module")
def whole(module: GenerativeModule, trainer: Trainer) -> dict[str, Any]:
    """What Lightning saves of a run, after one step of the optimiser."""
    built: Any = module.configure_optimizers()
    optimizer = built["optimizer"]
    for parameter in module.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    loop = copy.deepcopy(trainer.fit_loop.state_dict())
    loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"] = 1
    average = {name: p.detach().clone() for name, p in module.network.named_parameters() if p.requires_grad}
    return {
        "global_step": 1,
        "state_dict": module.state_dict(),
        "loops": {"fit_loop": loop},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [built["lr_scheduler"]["scheduler"].state_dict()],
        "callbacks": {"EMA": {"num_updates": 1, "average": average}},
    }


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "checkpoints").mkdir()
    return RunFolder(tmp_path)


def put(*keys: Any, value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        node: Any = content
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


def test_a_whole_checkpoint_passes(
    whole: dict[str, Any], module: GenerativeModule, trainer: Trainer, run: RunFolder
) -> None:
    torch.save(whole, run.checkpoint)
    check_restorable(module, trainer, run, run.load_checkpoint())


@pytest.mark.parametrize(
    "change",
    [
        *(put("global_step", value=value) for value in ("many", None, 2.5, -1, True, [1])),
        *(put("state_dict", value=value) for value in ([], None, {"a": 1}, {1: torch.ones(1)})),
        put("callbacks", value=[]),
        put("callbacks", "EMA", value="x"),
        put("callbacks", "EMA", "num_updates", value="x"),
        put("callbacks", "EMA", "average", value={"a": [1.0]}),
        put("extra", value=torch.ones(2, 2, device="meta")),
        put("extra", value=torch.ones(2, 2).to_sparse()),
        put("extra", value=[{"deep": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}]),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(change: Change, whole: dict[str, Any], run: RunFolder) -> None:
    content = copy.deepcopy(whole)
    change(content)
    torch.save(content, run.checkpoint)
    with pytest.raises(UserError, match=r"last\.ckpt is refused: it.* use a checkpoint that train\.py wrote"):
        run.load_checkpoint()
    for load in (load_tokenizer, load_label_classifier):
        with pytest.raises(ValueError, match=r"last\.ckpt is no (tokenizer|label classifier): it"):
            load(run.checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        *(put("loops", value=value) for value in (None, {}, [], {"fit_loop": {}})),
        put("loops", "fit_loop", "epoch_progress", value=3),
        put("loops", "fit_loop", "epoch_loop.batch_progress", "total", "ready", value="x"),
        put("loops", "fit_loop", "epoch_loop.batch_progress", "total", "ready", value=-4),
        put("loops", "fit_loop", "epoch_loop.batch_progress", "is_last_batch", value=1),
        put("global_step", value=7),
        *(put("optimizer_states", value=value) for value in (None, [], {}, ["x"], [{}], [{"state": {}, "param_groups": []}])),
        put("optimizer_states", 0, "param_groups", value=["x", "y"]),
        put("optimizer_states", 0, "state", 0, "exp_avg", value=torch.zeros(3, 3, 3)),
        put("optimizer_states", 0, "state", 10**6, value={}),
        put("optimizer_states", 0, "state", 0, value=torch.zeros(1)),
        put("lr_schedulers", value=None),
        lambda content: content["callbacks"]["EMA"]["average"].popitem(),
        lambda content: content["callbacks"]["EMA"]["average"].update(more=torch.zeros(1)),
    ],
)  # fmt: skip
def test_what_a_training_cannot_go_on_from_is_one_sentence(
    change: Change, whole: dict[str, Any], module: GenerativeModule, trainer: Trainer, run: RunFolder
) -> None:
    content = copy.deepcopy(whole)
    change(content)
    with pytest.raises(UserError, match=r"^resume=.* cannot continue from .*last\.ckpt: [^\n]+ start the run again\.$"):
        check_restorable(module, trainer, run, content)


def test_a_file_that_holds_itself_is_read(run: RunFolder) -> None:
    content: dict[str, Any] = {"state_dict": {}, "global_step": 1}
    content["self"] = [content]
    torch.save(content, run.checkpoint)
    assert run.load_checkpoint()["global_step"] == 1


MEMORY_ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"),
    OSError(12, "Cannot allocate memory"),
]  # fmt: skip


@pytest.mark.parametrize("error", MEMORY_ERRORS)
def test_too_little_memory_is_no_attack(
    error: Exception, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}, "global_step": 1}, run.checkpoint)

    def load(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", load)
    for read in (read_checkpoint, load_tokenizer, load_label_classifier):
        with pytest.raises(LoadMemoryError, match=r"last\.ckpt of 0 MB does not fit into the memory that is left"):
            read(run.checkpoint)
    with pytest.raises(SystemExit) as ended, reported():
        run.load_checkpoint()
    assert ended.value.code == EXIT_RUN_FAILED
    with pytest.raises(SystemExit) as ended, reported():
        raise error
    assert ended.value.code == EXIT_RUN_FAILED
    printed = capsys.readouterr().err
    assert "could run code" not in printed
    assert "The memory is too small" in printed


def test_the_allocators_own_words(run: RunFolder) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    with pytest.raises(MemoryError) as raised_by_python:
        bytearray(sys.maxsize // 2)
    assert is_out_of_memory(raised_by_python.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
