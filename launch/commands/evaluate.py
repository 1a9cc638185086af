"""Evaluate a run again, also with other settings, or compare several: ``python evaluate.py run=DIR [overrides]``."""

from __future__ import annotations

import sys
from typing import Any

from launch import build
from launch.command_line import MULTIRUN, tell_choices
from launch.compare.combinations import evaluate_all
from launch.compare.evaluations import Job, datamodule_for, read_job
from launch.compose import parse
from launch.data_check import check_unchanged
from launch.errors import EXIT_RUN_FAILED, reported
from launch.evaluation import print_result, run_test, takes_part_in_test, write_result
from launch.judge import tell_other_judge
from launch.run_folder import RunFolder, is_main_process
from launch.sweep.parent import end_with_parent
from launch.use.whole_pictures import evaluate_pictures

USAGE = """Usage: python evaluate.py run=DIR [name=NAME] [weights=ema|raw] [data_changed=stop|accept] [overrides]
       python evaluate.py -m run=DIR,DIR [name=NAME] [overrides with several values]

Evaluates a run on the test images as the end of its training did, with the run's own config plus the overrides, and
writes DIR/evaluations/NAME/metrics.json and images. NAME is made from the overrides where it is not given.

  python evaluate.py run=DIR sampler.num_steps=16
  python evaluate.py run=DIR degradation=block_mask weights=raw name=raw_block

Images or labels that have changed since the training stop it, unless other data were asked for by data=... or
data_changed=accept.

With pictures=FOLDER (or a file, or a pattern) whole pictures are degraded and restored at their own size, and measured one by
one: DIR/evaluations/NAME/pictures.csv has a row for each file, and pictures.json the means. tile= and overlap= are as in
python generate.py; border=N leaves N pixels of each side out. A file that cannot be measured is named, the others are
measured, and the exit code is 3.

  python evaluate.py run=DIR pictures=set12 degradation=noise_sigma degradation.steps.noise.sigma=25

DIR may also be what python export.py wrote: its results, which are no part of what is handed around, go to
outputs/evaluations/EXPORT/NAME/, and images that lay in a folder are named again, such as data.root=FOLDER; so is the label
classifier where it is not found among the runs, classifier=FILE.

With -m every combination of the values is evaluated, of one run or of several on the same data and degradation, each into
its run's evaluations/; what was evaluated before is not evaluated again. A table and outputs/comparisons/NAME.csv have a
row for each combination and output; over values of module.evaluation_seed or evaluation_seed they give mean and standard
deviation.

  python evaluate.py -m run=DIR sampler.num_steps=4,8 module.evaluation_seed=0,1,2
  python evaluate.py -m run=DIR,ANOTHER_DIR degradation=block_mask name=block"""


def evaluate(job: Job) -> dict[str, Any]:
    """Evaluate a run and write the results.

    Args:
        job: What to evaluate.

    Returns:
        The content of ``metrics.json``.
    """
    job.check_folder()
    config = job.config
    tell_choices(config)
    if isinstance(job.run, RunFolder):
        tell_other_judge(job.run, config, {parse(override)[0] for override in job.overrides})
    checkpoint = job.run.load_checkpoint() if isinstance(job.run, RunFolder) else {"global_step": job.run.step}
    callbacks = [callback for callback in build.build_callbacks(config) if takes_part_in_test(callback)]
    trainer = build.build_trainer(config, job.folder, callbacks, False)
    module = build.build_module(config) if isinstance(job.run, RunFolder) else job.run.module(config)
    datamodule = datamodule_for(config)
    build.check_data(module, datamodule, trainer)
    references = {callback.reference_split for callback in callbacks if hasattr(callback, "reference_split")}
    changed = check_unchanged(job.run, config, datamodule, ("test", "label_sets", *references), job.data_changed)
    if isinstance(job.run, RunFolder):
        build.load_weights(module, job.run, checkpoint, job.weights)
    result = run_test(trainer, module, datamodule, config, job.weights, checkpoint["global_step"])
    result["record"].update(run=str(job.run.path), **job.identity())
    if changed:
        result["record"]["data"]["changed"] = changed
    if is_main_process():
        write_result(trainer, result, job.folder)
    return result


def main(arguments: list[str]) -> int:
    """Evaluate once, or compare.

    Returns:
        The exit code: 0, or 3 where a picture was left out.
    """
    if any(argument.startswith("pictures=") for argument in arguments):
        return 0 if evaluate_pictures(arguments, USAGE) else EXIT_RUN_FAILED
    if MULTIRUN & set(arguments):
        evaluate_all([argument for argument in arguments if argument not in MULTIRUN], evaluate, USAGE)
        return 0
    job = read_job(arguments, USAGE)
    result = evaluate(job)
    if is_main_process():
        print_result(result["metrics"], job.folder)
    return 0


def start() -> None:
    """Run the command line of this process."""
    end_with_parent()
    with reported():
        code = main(sys.argv[1:])
    sys.exit(code)


if __name__ == "__main__":
    start()
