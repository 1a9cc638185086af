"""What a warm start is worth: runs that begin with another run's weights (``init=``) beside runs from scratch.

``python benchmarks/warm_start.py FOLDER`` trains what ``FOLDER`` does not hold yet, one run after the other, and prints the
tables of ``benchmarks/results/warm_start.md``; called again after an interruption it goes on. With one seed the arms see the
same batches in the same order, so that differences are taken seed by seed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where the project is not installed

from generative.metrics.catalogue import metric_of, split_name
from launch.errors import RunFailedError, UserError, reported
from launch.metrics_csv import read_rows
from launch.report.curves import curves_of
from launch.run_folder import RunFolder, identity

ROOT = Path(__file__).resolve().parent.parent
EVERY = 10  # validations of a run

# Only what validation measures is looked at.
GENERATE = (
    "experiment=meanflow_scenes",
    "task=generate",
    "callbacks.generation=null",
    "callbacks.label_accuracy.num_seeds=1",
)
SHORT_TEST = ("callbacks.calibration=null", "data.num_test=100")

STARTS = {
    "generator": GENERATE,
    "flow matching": (
        *GENERATE,
        "objective=flow_matching",
        "guidance=classifier_free",
        "sampler=heun",
    ),
    # Of digits: the first attempt at a restorer, by which a 5 became a 6.
    "generator of digits": ("experiment=meanflow_dit", *GENERATE[1:]),
}


@dataclass(frozen=True)
class Question:
    """A training that begins with the weights of another, or from scratch.

    Attributes:
        arguments: The training.
        start: The run that it begins with, of ``STARTS``.
        metrics: Validation metrics by which the arms are compared.
    """

    arguments: tuple[str, ...]
    start: str
    metrics: tuple[str, ...]


QUESTIONS = {
    "restore": Question(
        ("experiment=meanflow_scenes", "task=restore", *SHORT_TEST),
        "generator",
        ("psnr_hole/mean", "psnr_hole/sample", "psnr/mean"),
    ),
    "inpaint": Question(
        ("experiment=meanflow_scenes", "task=inpaint", "callbacks.restoration_distances=null", *SHORT_TEST),
        "generator",
        ("psnr_hole/mean", "psnr_hole/sample"),
    ),
    # As it is by default, a generator's first half is itself a training by flow matching.
    "one call": Question(
        (*GENERATE, "objective.velocity_only_share=0"),
        "flow matching",
        ("label_accuracy/test", "label_accuracy/new_test"),
    ),
    # The network sees the state of its flow alone, which begins at the degraded image, and is told no digit.
    "blind": Question(
        ("experiment=meanflow_bridge", "degradation=block_mask", "data.num_test=1000"),
        "generator of digits",
        ("psnr_hole/mean", "psnr_hole/sample"),
    ),
}
ARMS: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "warm": ("init.run={start}",),
}


def train(folder: Path, arguments: Sequence[str]) -> None:
    """Train into a folder, or go on with what is there.

    Raises:
        RunFailedError: The command failed; it has said why.
        UserError: The folder holds a run of other settings.
    """
    run = RunFolder(folder)
    if run.path.exists() and (differing := set(identity(list(arguments))) ^ set(run.record["overrides"])):
        raise UserError(f"{folder} has other settings ({', '.join(sorted(differing))}): name another folder.")
    if run.path.exists() and run.record.get("finished"):
        return
    command = [f"resume={folder}"] if run.checkpoint.exists() else [*arguments, f"hydra.run.dir={folder}"]
    print(f"python train.py {' '.join(command)}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / "train.py"), *command], check=False).returncode
    if code:
        raise RunFailedError(f"train.py {' '.join(command)} ended with exit code {code}.")


def first_step(curve: Sequence[tuple[int, float]], target: float) -> float:
    """Return the step at which a rising curve first reaches a value, on straight lines between its points; inf if never."""
    before: tuple[int, float] | None = None
    for step, value in curve:
        if value >= target:
            if before is None or value == before[1]:
                return float(step)
            return before[0] + (step - before[0]) * (target - before[1]) / (value - before[1])
        before = step, value
    return math.inf


def interval(values: Sequence[float], digits: int) -> str:
    """Write a mean with its 95 % t interval over the seeds; one seed has none."""
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return f"{mean:+.{digits}f}" if math.isfinite(mean) else "not reached in every seed"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.{digits}f} ± {half:.{digits}f}"


def seconds_a_step(folder: Path) -> float:
    """Return the median seconds of an optimiser step, validations apart."""
    rates = [float(rate) for row in read_rows(folder) if (rate := row.get("throughput/images_per_second"))]
    return RunFolder(folder).config().data.global_batch_size / statistics.median(rates)


def folder_of(root: Path, name: str, seed: int) -> Path:
    """Return the folder of a run."""
    return root / f"{name} {seed}".replace(",", "").replace(" ", "_")


def table(root: Path, name: str, metric_name: str, num_seeds: int) -> str:
    """Compare the arms of a question by one metric with its runs from scratch, seed by seed."""
    folders = {arm: [folder_of(root, f"{name} {arm}", seed) for seed in range(num_seeds)] for arm in ARMS}
    key, output = split_name(metric_name)
    metric = metric_of(key)
    curves = {
        arm: [curves_of(read_rows(folder)).get(f"val/{metric_name}", []) for folder in each]
        for arm, each in folders.items()
    }
    scratch = curves["scratch"]
    targets = [curve[len(curve) // 2 - 1][1] for curve in scratch]
    own = [first_step(curve, target) for curve, target in zip(scratch, targets, strict=True)]
    text = [
        f"\n{name}: {metric.words} {output}, to {', '.join(metric.text(target) for target in targets)}\n",
        "| | steps to it | seconds to it | steps saved | at the end | gained at the end |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm, each in curves.items():
        steps = [first_step(curve, target) for curve, target in zip(each, targets, strict=True)]
        seconds = [step * seconds_a_step(folder) for step, folder in zip(steps, folders[arm], strict=True)]
        ends = [curve[-1][1] for curve in each]
        saved = [a - b for a, b in zip(own, steps, strict=True)]
        gained = [end - curve[-1][1] for end, curve in zip(ends, scratch, strict=True)]
        cells = [
            arm,
            f"{statistics.fmean(steps):,.0f}",
            f"{statistics.fmean(seconds):,.0f}",
            "" if arm == "scratch" else interval(saved, 0),
            metric.text(statistics.fmean(ends)),
            "" if arm == "scratch" else interval(gained, 3),
        ]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def trainings(root: Path, seed: int, steps: int, start_steps: int) -> Iterator[tuple[Path, list[str]]]:
    """Give every run of a seed, those that others begin with first, and its settings."""
    for name, arguments in STARTS.items():
        lengths = [f"trainer.max_steps={start_steps}", f"trainer.val_check_interval={start_steps}"]
        yield folder_of(root, name, seed), [*arguments, *lengths]
    for name, question in QUESTIONS.items():
        start = folder_of(root, question.start, seed)
        for arm, own in ARMS.items():
            lengths = [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps // EVERY}"]
            settings = [each.format(start=start) for each in own]
            yield folder_of(root, f"{name} {arm}", seed), [*question.arguments, *settings, *lengths]


def main() -> None:
    """Train what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each arm, with the seeds 0, 1, ...")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of every run")
    parser.add_argument("--start-steps", type=int, help="of the runs that others begin with; as many by default")
    parser.add_argument("overrides", nargs="*", help="further settings of every run, such as classifier=RUN")
    options = parser.parse_intermixed_args()
    root, start_steps = options.folder.absolute(), options.start_steps or options.steps
    for seed in range(options.seeds):
        for folder, arguments in trainings(root, seed, options.steps, start_steps):
            train(folder, [*arguments, *options.overrides, f"seed={seed}"])
    for name, settings in STARTS.items():
        seconds = statistics.fmean(seconds_a_step(folder_of(root, name, seed)) for seed in range(options.seeds))
        print(f"{name}: `{' '.join(settings)}`, {start_steps} steps, {start_steps * seconds:,.0f} seconds")
    for name, question in QUESTIONS.items():
        for metric_name in question.metrics:
            print(table(root, name, metric_name, options.seeds))


if __name__ == "__main__":
    with reported():
        main()
