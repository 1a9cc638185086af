"""Train an experiment: ``python train.py experiment=meanflow_dit``; ``--help`` lists experiments and overrides."""

from __future__ import annotations

import math
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from callbacks.watching import MetricWatcher
from launch import build
from launch.command_line import MULTIRUN, show_help, split_flags, tell_choices
from launch.commands.report import report_of_training
from launch.compiling import AUTO, check_compile, settle_compile
from launch.compiling import KEY as COMPILE
from launch.compose import compose_config, help_text, values_of, written_out
from launch.data_check import KEY as DATA_CHANGED
from launch.data_check import STOP, check_answer, check_unchanged, data_record
from launch.errors import explained, reported
from launch.evaluation import print_result, run_test, write_result
from launch.history import History, check_optimizer_state, check_steps_left
from launch.judge import judge_record, tell_other_judge
from launch.loggers import build_loggers, log_result, logged
from launch.received import CONF_DIR
from launch.record import config_hash, git_revision, hardware, now, versions
from launch.restorable import check_restorable
from launch.run_folder import RunFolder, identity, is_main_process, taken_away_if_empty
from launch.start import composed_start, current_run, hydra_arguments, is_plain, keep_config, put_in_force
from launch.sweep.arguments import checked_sweep
from launch.sweep.jobs import run_job
from launch.sweep.parent import end_with_parent
from launch.sweep.report import sweep_reported
from launch.threads import training_threads
from launch.use.warm_start import begin_with_run

TRIED_IMAGES = 64  # of validation, before the first step of a training that watches a metric of it


def train(run: RunFolder, config: DictConfig, overrides: list[str], in_force: DictConfig | None = None) -> None:
    """Fit, test the final weights, and write the records.

    Args:
        run: The run folder, held for writing.
        overrides: What it was composed from.
        in_force: The config as it is recorded; None: as it is.
    """
    shown = config.copy()  # what is built of a config resolves parts of it in place
    answer = check_answer(config.get(DATA_CHANGED, STOP))
    resumed = run.newest_checkpoint() if config.resume else None
    history = History(run, config, in_force or config, overrides, resumed)
    step = history.step
    if resumed and step >= config.trainer.max_steps:
        check_steps_left(run, step, config.trainer.max_steps)

    trainer = build.build_trainer(
        config,
        run.path,
        [*build.build_callbacks(config), history],
        build_loggers(config, run, step if resumed else None),
        resumed,
    )
    build.check_ranks(config, trainer)
    if any(isinstance(callback, MetricWatcher) and callback.metric for callback in trainer.callbacks):  # type: ignore[attr-defined]
        # Tells whether there is such a metric before anything is trained; one of holes is not in every image.
        trainer.num_sanity_val_steps = math.ceil(TRIED_IMAGES / config.data.eval_batch_size)
    check_compile(config)
    tell_choices(config)
    if resumed:
        tell_other_judge(run, config, ())
    module = build.build_module(config)  # before the data: what is wrong with the config is said at once
    build.check_training(module)
    origin = history.before.get("init") if resumed else begin_with_run(module, config)
    datamodule = build.build_datamodule(config)
    build.check_data(module, datamodule, trainer)
    if resumed:
        build.check_network(module, run, resumed[1]["state_dict"])
        build.check_parts(module, run)
        check_restorable(module, trainer, run, resumed[1])
        check_unchanged(run, config, datamodule, answer=answer)
        check_optimizer_state(module, run, resumed[1])
        datamodule.start_step = step * config.trainer.accumulate_grad_batches
    module.compile_training = settle_compile(config, trainer.strategy.root_device, step)  # last: it takes seconds
    if config.get(COMPILE) == AUTO:
        for each in (config, shown):
            OmegaConf.update(each, COMPILE, module.compile_training)
        history.settle(COMPILE, module.compile_training)

    before = history.before
    history.record = {
        "name": config.name,
        "overrides": before.get("overrides", identity(overrides)),  # of the first start: what the run is known by
        "seed": config.seed,
        "started": before.get("started", now()),
        "finished": False,
        "stopped": None,
        "resumed_at_steps": [*before.get("resumed_at_steps", []), *([step] if resumed else [])],
        "config_hash": config_hash(config),
        "git_revision": git_revision(),
        "versions": versions(),
        "hardware": {**hardware(trainer.strategy.root_device, training_threads(trainer)), "ranks": trainer.world_size},
        "data": data_record(run, config, datamodule, step if resumed else None),
        "parts": module.parts_record(),
        **judge_record(config),
        "parameters": sum(p.numel() for p in module.parameters()),
        **({"init": origin} if origin else {}),
    }
    history.record["history"] = history.entries()
    try:
        with logged(trainer.loggers, build.plain_config(config), history.record):
            trainer.fit(module, datamodule=datamodule, ckpt_path=resumed[0] if resumed else None)
            history.begin(trainer)  # a run that had no step left has not called it
            weights = "ema" if config.callbacks.get("ema") else "raw"
            result = run_test(trainer, module, datamodule, config, weights, trainer.global_step)
            log_result(trainer.loggers, result, trainer.global_step)
    except BaseException as error:
        history.interrupted(trainer, error)
        raise
    if is_main_process():
        write_result(trainer, result, run.path)
        history.record["data"] |= datamodule.record()  # by now with the damaged images that were met
        history.end(trainer)
        report_of_training(run, shown)
        print_result(result["metrics"], run.path)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def main(config: DictConfig) -> float | None:
    """Run once, or run one job of a sweep in a process of its own.

    Returns:
        What a search looks at.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(config)
    end_with_parent()
    with reported():
        run, config, overrides, in_force = current_run(config)
        with run.locked() if config.resume else run.begun():
            if not config.resume:
                keep_config(run, config, overrides)
            with explained(run.path, overrides):
                train(run, config, overrides, in_force)
    return None


def start() -> None:
    """Run the command line of this process."""
    with reported():
        show_help(sys.argv[1:], help_text)
        sys.argv[1:] = map(written_out, sys.argv[1:])
        flags, overrides = split_flags(sys.argv[1:])
        if set(flags) - MULTIRUN:  # Hydra shows something, such as the config with --cfg job
            compose_config([value for override in overrides for value in values_of(override)[:1]])
            main()
        elif flags:
            with sweep_reported(checked_sweep(overrides)) as further:
                sys.argv[1:] += further
                main()
        else:
            with put_in_force(composed_start(overrides)) as config:
                if is_plain(overrides):
                    main(config)
                else:
                    sys.argv[1:], folder = hydra_arguments()
                    with taken_away_if_empty(folder):
                        main()


if __name__ == "__main__":
    start()
