"""A run mirrored by MLflow: its parameters, scalars and grids, as the same MLflow run after a resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from launch.errors import UserError, one_line
from launch.record_files import read_json
from launch.run_folder import write_json

ADDRESS = "MLFLOW_TRACKING_URI"  # MLflow's own variable
FILES_ALLOWED = "MLFLOW_ALLOW_FILE_STORE"  # without it MLflow 3 keeps runs in databases alone
RECORD_NAME = "mlflow.json"


class MLflowRun(MLFlowLogger):
    """A run of MLflow that is one with its run folder, whose ``mlflow.json`` keeps its id.

    It goes to the server or store that ``MLFLOW_TRACKING_URI`` names, else to ``mlruns/`` in the run folder.

    Args:
        folder: The run folder.
        project: Name of MLflow's experiment.
        job_type: First word of the name that is shown, before the folder's.
        name: Name that is shown, or None for these two.

    Raises:
        ModuleNotFoundError: MLflow is not installed.
    """

    def __init__(self, folder: str, project: str, job_type: str, name: str | None = None) -> None:
        self.folder = Path(folder)
        path = self.folder / RECORD_NAME
        known = read_json(path).get("id") if path.exists() else None
        if not os.environ.get(ADDRESS):
            os.environ.setdefault(FILES_ALLOWED, "true")
        super().__init__(
            experiment_name=project,
            run_name=name or f"{job_type} {self.folder.name}",
            tracking_uri=os.environ.get(ADDRESS) or (self.folder / "mlruns").absolute().as_uri(),
            run_id=known,
        )
        self.is_resumed = known is not None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client, with the run begun, or taken up again, at the first use."""
        has_begun = self._initialized
        client: Any = MLFlowLogger.experiment.__get__(self)
        if not has_begun:
            if self.is_resumed:
                client.update_run(self._run_id, status="RUNNING")
            write_json(self.folder / RECORD_NAME, {"id": self._run_id, "experiment": self._experiment_id})
        return client

    @rank_zero_only
    def check_server(self) -> None:
        """Find out before anything is trained whether the run can be begun, or taken up again.

        Raises:
            UserError: The server does not answer, or does not know the run.
        """
        try:
            if self.is_resumed:
                self._mlflow_client.get_run(self._run_id)
            else:
                self._mlflow_client.search_experiments(max_results=1)
        except Exception as error:
            raise UserError(
                f"logger=mlflow cannot use {self._tracking_uri} ({one_line(error).rstrip('.')}): set {ADDRESS} to your server, "
                f"or unset it to keep the run in its own folder, whose {RECORD_NAME} names the run that a resume takes up."
            ) from error

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the config; that of a resumed run is what it began with, for MLflow lets no parameter change."""
        if not self.is_resumed:
            super().log_hyperparams(params)
