"""Train an experiment: ``python train.py experiment=meanflow_dit``; ``--help`` lists experiments and overrides."""

from __future__ import annotations

import sys

import hydra
import torch
from omegaconf import DictConfig

from launch import build
from launch.command_line import current_run, training_arguments
from launch.errors import UserError, reported
from launch.evaluation import print_result, run_test
from launch.record import config_hash, git_revision, hardware, now, versions
from launch.run_folder import RunFolder, is_main_process, write_json


def train(run: RunFolder, config: DictConfig, overrides: list[str]) -> None:
    """Fit, test the final weights, and write the records.

    Args:
        run: The run folder, held for writing.
        config: The composed config.
        overrides: The overrides that make the run what it is.

    Raises:
        UserError: The run to resume has nothing left to do.
    """
    checkpoint = run.load_checkpoint() if config.resume else None
    step = checkpoint["global_step"] if checkpoint else 0
    if checkpoint and step >= config.trainer.max_steps and run.record.get("finished"):
        raise UserError(f"resume={run.path} has finished at step {step}: set a larger trainer.max_steps to go on.")

    torch.set_float32_matmul_precision("high")
    trainer = build.build_trainer(
        config, run.path, build.build_callbacks(config), build.build_loggers(config, run, step if checkpoint else None)
    )
    build.check_ranks(config, trainer)
    module = build.build_module(config)  # before the data: what is wrong with the config is said at once
    datamodule = build.build_datamodule(config)
    build.check_data(module, datamodule)
    if checkpoint:
        build.check_network(module, run, checkpoint["state_dict"])
        build.check_parts(module, run)
        datamodule.start_step = step * config.trainer.accumulate_grad_batches

    record = {
        "name": config.name,
        "overrides": overrides,
        "seed": config.seed,
        "started": run.record.get("started", now()),
        "finished": False,
        "resumed_at_steps": [*run.record.get("resumed_at_steps", []), *([step] if checkpoint else [])],
        "config_hash": config_hash(config),
        "git_revision": git_revision(),
        "versions": versions(),
        "hardware": {**hardware(trainer.strategy.root_device), "ranks": trainer.world_size},
        "data": datamodule.record(),
        "parts": module.parts_record(),
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    if is_main_process():
        write_json(run.record_path, record)
    build.log_config(trainer, config)

    failed = True
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=str(run.checkpoint) if checkpoint else None)
        weights = "ema" if config.callbacks.get("ema") else "raw"
        result = run_test(trainer, module, datamodule, config, weights, trainer.global_step)
        failed = False
    finally:
        build.close_loggers(trainer.loggers, failed)
    if is_main_process():
        write_json(run.path / "metrics.json", result)
        write_json(run.record_path, {**record, "finished": True, "ended": now(), "step": trainer.global_step})
        print_result(result["metrics"], run.path)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Run one job.

    Args:
        config: What Hydra composed.
    """
    with reported():
        run, config, overrides = current_run(config)
        with run.locked():
            train(run, config, overrides)


if __name__ == "__main__":
    with reported():
        sys.argv[1:] = training_arguments(sys.argv[1:])
    main()
