"""Training steps side by side, in turn, and written to ``results/speed.md``; run it on a machine that does nothing else.

``python benchmarks/speed.py commit`` compares the default step with that of an older commit, and the step's options with
flow matching's. ``python benchmarks/speed.py tasks`` compares the steps of an experiment's tasks, and with ``--space RUN``
that in the latents of an autoencoder. ``python benchmarks/speed.py public --first DIR --haidog DIR --packages DIR`` compares
it with public MeanFlow code at that code's network: checkouts of github flashfire1001/image-Restorer and
haidog-yaqub/MeanFlow, and a folder into which timm (below 1.0.20) and torchinfo were installed (``pip install --no-deps
--target``).

Each row is a process of its own; in each round all of them make some steps, one after the other. Ratios are medians over the
rounds, with their range, by the wall clock and by the processor's time, the least of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "results" / "speed.md"
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from files.whole import whole_file  # noqa: E402
from launch.record import git_revision, hardware, versions  # noqa: E402

FIRST_NETWORK = [
    "network.patch_size=2", "network.dim=144", "network.depth=6", "network.num_heads=3", "network.condition_channels=0",
]  # fmt: skip


@dataclass
class Row:
    """One kind of step, in a process of its own."""

    name: str
    kind: str
    checkout: Path
    batch: int
    compiled: bool = False
    overrides: list[str] = field(default_factory=list)
    packages: Path | None = None
    rounds: list[tuple[float, float]] = field(default_factory=list)  # seconds a step: wall clock, processor
    process: subprocess.Popen[str] | None = None

    def start(self, threads: int) -> None:
        """Start the process and make its first steps, in which memory is allocated and code compiled."""
        command = [sys.executable, str(Path(__file__).with_name("step_worker.py")), self.kind, str(self.checkout), str(threads),
                   str(self.batch), str(int(self.compiled)), *self.overrides]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        if self.packages:
            environment["PYTHONPATH"] = str(self.packages)
        self.process = subprocess.Popen(
            command, cwd=self.checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask(2)

    def ask(self, steps: int) -> tuple[float, float]:
        """Let it make some steps; seconds a step."""
        assert self.process
        assert self.process.stdin
        assert self.process.stdout
        print(steps, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("["):
                wall, cpu = json.loads(line)
                return wall / steps, cpu / steps
        raise SystemExit(f"{self.name}: its process ended with {self.process.wait()}")


def measured(rows: list[Row], threads: int, rounds: int, steps: int) -> None:
    """Fill in the rounds of all rows, in turn."""
    try:
        for row in rows:
            row.start(threads)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for row in rows:
                row.rounds.append(row.ask(steps))
    finally:
        for row in rows:
            if row.process:
                row.process.kill()
                row.process.wait()


def table(rows: list[Row], base: Row, reference: str) -> str:
    """Write the rows out against one of them."""
    lines = [
        f"| step | ms, median | processor ms, least | images/s | images/s over {reference} | by the processor's time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        walls, cpus = zip(*row.rounds, strict=True)
        ratios = [
            row.batch / own[0] / (base.batch / other[0]) for own, other in zip(row.rounds, base.rounds, strict=True)
        ]
        least = row.batch / min(cpus) / (base.batch / min(cpu for _, cpu in base.rounds))
        lines.append(
            f"| {row.name} | {1e3 * statistics.median(walls):.0f} | {1e3 * min(cpus):.0f} "
            f"| {row.batch / statistics.median(walls):.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {least:.2f} |"
        )
    return "\n".join(lines)


def write_section(heading: str, text: str) -> None:
    """Put a section of the page in the place of the one with its heading, or at the end."""
    page = PAGE.read_text()
    section = f"## {heading}\n\n{text}\n"
    begin = page.find(f"## {heading}\n")
    if begin < 0:
        page = f"{page.rstrip()}\n\n{section}"
    else:
        end = page.find("\n## ", begin + 3)
        page = page[:begin] + section + (page[end:] if end >= 0 else "")
    with whole_file(PAGE) as file:
        file.write(page.encode())


def circumstances(threads: int, rounds: int, steps: int) -> str:
    """Say when, where and how it was measured."""
    machine = hardware(torch.device("cpu"), threads)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {(git_revision() or 'unknown')[:7]}, torch {versions()['torch']}, "
        f"{machine['processor']}, {threads} thread{'s' if threads > 1 else ''}, load {os.getloadavg()[0]:.1f} at the end; "
        f"{rounds} rounds of {steps} steps."
    )


def over(row: Row, base: Row) -> str:
    """Say how much longer a step takes than another: by the wall clock, and by the processor's time."""
    wall = statistics.median(own[0] / other[0] for own, other in zip(row.rounds, base.rounds, strict=True))
    return (
        f"{wall:.2f} ({min(cpu for _, cpu in row.rounds) / min(cpu for _, cpu in base.rounds):.2f} of processor time)"
    )


def against_commit(arguments: argparse.Namespace) -> None:
    """The default step against that of an older commit, and the options of the step against flow matching."""
    experiment = [f"experiment={arguments.experiment}"]
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run(
            [*git, "add", "--detach", "--force", str(old), arguments.commit], check=True, capture_output=True
        )
        try:
            base = Row(f"default at {arguments.commit}", "default", old, arguments.batch, overrides=experiment)
            kinds: dict[str, list[str]] = {"default": []}
            if arguments.options and arguments.experiment == "meanflow_dit":
                kinds |= {
                    "derivative=exact": ["objective.derivative=exact"],
                    "derivative=difference": ["objective.derivative=difference"],
                    "flow matching": ["objective=flow_matching"],
                }
            rows = [base]
            for compiled in (True, False) if arguments.compile else (False,):
                rows += [
                    Row(
                        name + ", not compiled" * (not compiled),
                        "default",
                        ROOT,
                        arguments.batch,
                        compiled,
                        [*experiment, *values],
                    )
                    for name, values in kinds.items()
                ]
            measured(rows, arguments.threads, arguments.rounds, arguments.steps)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    text = [circumstances(arguments.threads, arguments.rounds, arguments.steps), "", table(rows, base, "the old")]
    named = {row.name: row for row in rows}
    for how in ("", ", not compiled"):
        if flow := named.get(f"flow matching{how}"):
            told = [f"{kind} {over(named[kind + how], flow)}" for kind in ("derivative=exact", "derivative=difference")]
            text += ["", f"Seconds of a MeanFlow step over those of flow matching{how}: {'; '.join(told)}."]
    command = f"python benchmarks/speed.py commit --experiment {arguments.experiment} --threads {arguments.threads}"
    command += " --no-options" * (not arguments.options)
    finish(f"`{command}`", text)


def against_public(arguments: argparse.Namespace) -> None:
    """The step against public code, at the network of image-Restorer: 2.4 M weights, 256 tokens."""
    ours = ["experiment=meanflow_dit", *FIRST_NETWORK]
    first = Row("flashfire1001/image-Restorer", "first", arguments.first, arguments.batch, packages=arguments.packages)
    rows = [first]
    if arguments.haidog:
        rows.append(
            Row("haidog-yaqub/MeanFlow", "haidog", arguments.haidog, arguments.batch, packages=arguments.packages)
        )
    for name, values in {
        "default": [],
        "derivative=exact": ["objective.derivative=exact"],
        "derivative=difference": ["objective.derivative=difference"],
    }.items():
        if arguments.compile:
            rows.append(Row(f"ours, {name}", "bare", ROOT, arguments.batch, True, [*ours, *values]))
        rows.append(Row(f"ours, {name}, not compiled", "bare", ROOT, arguments.batch, False, [*ours, *values]))
    measured(rows, arguments.threads, arguments.rounds, arguments.steps)
    text = [
        circumstances(arguments.threads, arguments.rounds, arguments.steps),
        "",
        table(rows, first, "image-Restorer's"),
    ]
    finish("`python benchmarks/speed.py public --first DIR --haidog DIR --packages DIR`: beside public code", text)


def of_tasks(arguments: argparse.Namespace) -> None:
    """The steps of the tasks of an experiment, and that in latents, against its own."""
    kinds = {"task=restore": ["task=restore"], "task=inpaint": ["task=inpaint"]}
    if arguments.space:
        kinds |= {"space=RUN": [f"space={arguments.space}"]}

    def row(name: str, values: list[str]) -> Row:
        overrides = [f"experiment={arguments.experiment}", *values]
        return Row(name, "default", ROOT, arguments.batch, arguments.compile, overrides)

    base = row(f"experiment={arguments.experiment}", [])
    rows = [base, *(row(name, values) for name, values in kinds.items())]
    measured(rows, arguments.threads, arguments.rounds, arguments.steps)
    text = [circumstances(arguments.threads, arguments.rounds, arguments.steps), "", table(rows, base, "the first")]
    finish(f"`python benchmarks/speed.py tasks --experiment {arguments.experiment}`", text)


def finish(heading: str, text: list[str]) -> None:
    """Print a section and write it."""
    print("\n".join(text))
    write_section(heading, "\n".join(text))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commit = commands.add_parser("commit")
    commit.set_defaults(run=against_commit, threads=2, batch=32)
    commit.add_argument("--commit", default="5c0081e")
    commit.add_argument("--experiment", default="meanflow_dit")
    commit.add_argument(
        "--options", action=argparse.BooleanOptionalAction, default=True, help="the step's options beside the default"
    )
    public = commands.add_parser("public")
    public.set_defaults(run=against_public, threads=1, batch=16)
    public.add_argument("--first", type=Path, required=True)
    public.add_argument("--haidog", type=Path)
    public.add_argument("--packages", type=Path)
    tasks = commands.add_parser("tasks")
    tasks.set_defaults(run=of_tasks, threads=1, batch=32)
    tasks.add_argument("--experiment", default="ddpm_scenes")
    tasks.add_argument("--space", type=Path, help="run of an autoencoder")
    for each in (commit, public, tasks):
        each.add_argument("--threads", type=int, default=each.get_default("threads"))
        each.add_argument(
            "--batch", type=int, default=each.get_default("batch"), help="that of the experiment, by commit"
        )
        each.add_argument("--rounds", type=int, default=7)
        each.add_argument("--steps", type=int, default=5)
        each.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
