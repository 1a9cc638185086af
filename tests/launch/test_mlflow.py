"""MLflow: a run folder is one run there, also after a resume; a stand-in keeps what its client is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import mlflow as lightning_mlflow
from omegaconf import OmegaConf
from PIL import Image

from callbacks.image_grid import keep_image
from launch.errors import UserError
from launch.loggers import build_loggers
from launch.mlflow import MLflowRun
from launch.run_folder import RunFolder


class Store:
    """What a server keeps, behind the calls of a client."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.is_down = False

    def client(self, address: str) -> Store:
        return self

    def search_experiments(self, max_results: int) -> list:
        if self.is_down:
            raise ConnectionError("connection refused")
        return []

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id=f"id of {name}", lifecycle_stage="active")

    def create_run(self, experiment_id: str, tags: dict[str, str]) -> SimpleNamespace:
        name = f"run {len(self.runs)}"
        info = SimpleNamespace(run_id=name, experiment_id=experiment_id)
        self.runs[name] = SimpleNamespace(info=info, tags=tags, status="RUNNING", params={}, metrics=[], images=[])
        return self.runs[name]

    def get_run(self, run_id: str) -> SimpleNamespace:
        return self.runs[run_id]

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].status = status

    set_terminated = update_run

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        for param in params:
            assert self.runs[run_id].params.setdefault(param.key, param.value) == param.value, "MLflow refuses this"
        self.runs[run_id].metrics += [(metric.key, metric.value, metric.step) for metric in metrics]

    def log_image(self, run_id: str, image: Image.Image, artifact_file: str) -> None:
        self.runs[run_id].images.append(artifact_file)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    parts: dict[str, dict[str, Any]] = {
        "mlflow": {"set_tracking_uri": lambda address: None},
        "mlflow.tracking": {"MlflowClient": store.client, "context": SimpleNamespace(resolve_tags=dict)},
        "mlflow.tracking.context": {"resolve_tags": dict},
        "mlflow.utils": {},
        "mlflow.utils.mlflow_tags": {"MLFLOW_RUN_NAME": "mlflow.runName"},
        "mlflow.entities": {"Metric": SimpleNamespace, "Param": SimpleNamespace},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(lightning_mlflow, "_MLFLOW_AVAILABLE", True)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # given back behind the test
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return store


def logger_of(folder: Path) -> MLflowRun:
    node = {"_target_": "launch.mlflow.MLflowRun", "folder": str(folder), "project": "triptych", "job_type": "digits"}
    return build_loggers(OmegaConf.create({"logger": node}), RunFolder(folder), None)[1]


def test_a_resumed_run_is_the_same_run(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for step, rate in ((1, 0.1), (2, 0.2)):
        logger = logger_of(folder)
        logger.log_hyperparams({"optimizer": {"lr": rate}})
        logger.log_metrics({"train/loss": 1.0 / step}, step)
        trainer: Any = SimpleNamespace(default_root_dir=folder, loggers=[logger])
        keep_image(trainer, "samples", Image.new("RGB", (2, 2)), step)
        assert store.runs["run 0"].status == "RUNNING"
        logger.finalize("success" if step == 2 else "failed")
        assert store.runs["run 0"].status == ("FINISHED" if step == 2 else "FAILED")
    (run,) = store.runs.values()
    assert run.tags["mlflow.runName"] == "digits run"
    assert run.params == {"optimizer/lr": "0.1"}
    assert run.metrics == [("train/loss", 1.0, 1), ("train/loss", 0.5, 2)]
    assert run.images == ["images/samples/step=00000001.png", "images/samples/step=00000002.png"]


def test_a_server_that_cannot_be_used_is_told_at_once(store: Store, tmp_path: Path) -> None:
    store.is_down = True
    with pytest.raises(
        UserError, match=r"logger=mlflow cannot use .*/mlruns \(connection refused\): set MLFLOW_TRACKING_URI"
    ):
        logger_of(tmp_path)
    (tmp_path / "mlflow.json").write_text('{"id": "lost"}')
    with pytest.raises(UserError, match="logger=mlflow cannot use"):
        logger_of(tmp_path)


def test_what_is_not_installed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_mlflow, "_MLFLOW_AVAILABLE", False)
    with pytest.raises(UserError, match=r"logger=mlflow is not installed: pip install 'triptych\[mlflow\]'"):
        logger_of(tmp_path)
