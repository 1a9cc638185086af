"""What a report says of a run, read from its folder; what is missing there, or damaged, is left out and said to be so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import DictConfig

from files.words import count
from generative.metrics.catalogue import metric_of, ordered, split_name
from generative.metrics.layouts import Layout, layouts
from generative.metrics.plots import plots_of
from launch.build import module_class
from launch.command_line import run_config
from launch.errors import UserError, as_user_error, one_line
from launch.metrics_csv import read_rows
from launch.page.charts import Chart
from launch.paths import without_folders
from launch.record import duration_text, hardware_text, history_of, images_seen, revision_text, training_seconds
from launch.record_files import read_metrics
from launch.report.checkpoints import KeptTable, kept_checkpoints
from launch.report.curves import Curves, chart_of, curves_of, other_charts, training_charts, validation_charts
from launch.report.slides import Slides, slides_of
from launch.run_folder import RunFolder
from launch.settings import Settings, settings_of, short_value

MARKS = ("run.json", ".hydra/config.yaml", "metrics.csv", "metrics.json")  # a folder with one of these is a run's
T = TypeVar("T")
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Evaluation:
    """What was measured once.

    Attributes:
        title: When, and with which settings.
        tables: The values.
        definitions: What each metric is, by its name.
        plots: What says more than numbers.
        facts: Images, degradation, weights, sampling.
    """

    title: str
    tables: list[Layout]
    definitions: dict[str, str]
    plots: list[Chart]
    facts: Pairs


@dataclass
class Report:
    """A run as a reader sees it; no absolute path is in it.

    Attributes:
        title: Name of the run.
        state: Finished, stopped or running, with the reason.
        facts: What it is, in a few words each.
        evaluations: That of the end of its training, then later ones.
        training: Charts of loss, learning rate and speed.
        validation: Charts of the leading metrics.
        minor: Charts of everything else that was logged.
        slides: The grids.
        checkpoints: Headings, and a row for each file that was kept beside the last one: the best and milestones.
        starts: Of a resumed run an entry for each start: step, time, what changed, revision, machine.
        settings: By key.
        machine: Processor, versions, revision.
        data: What it was trained on.
        missing: What could not be read, in a sentence each.
    """

    title: str
    state: str
    facts: Pairs = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    training: list[Chart] = field(default_factory=list)
    validation: list[Chart] = field(default_factory=list)
    minor: list[Chart] = field(default_factory=list)
    slides: list[Slides] = field(default_factory=list)
    checkpoints: KeptTable = field(default_factory=lambda: ([], []))
    starts: list[list[str]] = field(default_factory=list)
    settings: Pairs = field(default_factory=list)
    machine: Pairs = field(default_factory=list)
    data: Pairs = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_report(run: RunFolder, config: DictConfig | None = None) -> Report:
    """Read everything that a run folder says.

    Args:
        config: The run's config where it is known already; None: it is read.

    Raises:
        UserError: It is no folder of a run.
    """
    if not any((run.path / mark).is_file() for mark in MARKS):
        raise UserError(f"run={run.path} is no run folder: name one that train.py wrote.")
    report = Report(run.path.parent.name, "")

    def tried(read: Callable[[], T], instead: T) -> T:
        try:
            with as_user_error():
                return read()
        except UserError as error:
            report.missing.append(without_folders(one_line(error)))
            return instead

    record: dict[str, Any] = tried(lambda: run.record, {})
    if config is None:
        config = tried(lambda: run_config(run) if run.config_path.exists() else None, None)
    curves: Curves = tried(lambda: curves_of(read_rows(run.path)), {})
    report.title = without_folders(str(record.get("name", report.title)))
    report.state = _state(run, record)
    resumed_at = [int(step) for step in record.get("resumed_at_steps") or [] if isinstance(step, int)]
    report.training = training_charts(curves, resumed_at)
    report.validation = validation_charts(curves, resumed_at, is_minor=False)
    report.minor = [*validation_charts(curves, resumed_at, is_minor=True), *other_charts(curves)]
    report.slides = tried(lambda: slides_of(run.path / "images"), [])
    none: KeptTable = ([], [])
    report.checkpoints = tried(lambda: kept_checkpoints(run.path / "checkpoints", curves), none)
    for path in [run.path / "metrics.json", *sorted(run.path.glob("evaluations/*/metrics.json"))]:
        if path.exists():
            content = tried(lambda path=path: read_metrics(path), None)  # type: ignore[misc]
            if content is not None and content["metrics"]:
                name = "" if path.parent == run.path else path.parent.name
                report.evaluations.append(evaluation_of(name, content["metrics"], content["record"]))
    settings: Settings = tried(lambda: settings_of(config, dict(record.get("parts", {}))) if config else {}, {})
    report.settings = [(key, without_folders(value)) for key, value in settings.items()]
    report.facts = [("model", text) for text in [tried(lambda: _model(config), "")] if text] + _facts(record, settings)
    report.machine, report.data = _machine(record), _data(record)
    starts = history_of(record)
    report.starts = [_start(entry) for entry in starts] if len(starts) > 1 else []
    return report


def _state(run: RunFolder, record: Mapping[str, Any]) -> str:
    if run.is_locked() and not record.get("ended"):
        return "running"
    stopped = record.get("stopped")
    if record.get("finished"):
        return without_folders(" by ".join(filter(None, ["finished", str(record.get("early_stop") or "")])))
    if isinstance(stopped, dict):
        return without_folders(f"stopped at step {stopped.get('step')}: {stopped.get('reason')}")
    return "not finished"


def _model(config: DictConfig | None) -> str:
    return "" if config is None else module_class(config).card.title


def _facts(record: Mapping[str, Any], settings: Mapping[str, str]) -> Pairs:
    facts: Pairs = []
    if parameters := record.get("parameters"):
        facts.append(("parameters", f"{parameters:,}"))
    if (steps := record.get("step")) is not None:
        of = settings.get("trainer.max_steps")
        facts.append(
            ("steps", f"{steps:,}" + (f" of {int(of):,}" if of and of.isdecimal() and int(of) != steps else ""))
        )
        sizes = [settings.get(key, "1") for key in ("data.global_batch_size", "trainer.accumulate_grad_batches")]
        if all(size.isdecimal() for size in sizes) and "data.global_batch_size" in settings:
            facts.append(("images seen", f"{images_seen(dict(record), int(sizes[0]), int(sizes[1]), steps):,}"))
    if (seconds := training_seconds(dict(record))) is not None:
        facts.append(("time, with tests", duration_text(seconds)))
    if record.get("seed") is not None:
        facts.append(("seed", str(record["seed"])))
    if started := record.get("started"):
        facts.append(("started", str(started)))
    return facts


def _machine(record: Mapping[str, Any]) -> Pairs:
    hardware = record.get("hardware")
    pairs = [("machine", hardware_text(hardware))] if isinstance(hardware, dict) else []
    if isinstance(hardware, dict) and isinstance(hardware.get("ranks"), int):
        pairs.append(("processes", count(hardware["ranks"], "rank")))
    if "git_revision" in record:
        pairs.append(("revision of the code", revision_text(record["git_revision"])))
    versions = record.get("versions")
    return pairs + [(str(k), str(v)) for k, v in (versions.items() if isinstance(versions, dict) else ())]


def _data(record: Mapping[str, Any]) -> Pairs:
    data = record.get("data")
    if not isinstance(data, dict):
        return []
    shown = ("name", "source", "drawn", "image_size", "channels", "num_classes", "images", "horizontal_flip",
             "quarter_turns", "removed_from_train", "damaged_images", "resize", "fingerprint")  # fmt: skip
    return [(key.replace("_", " "), _words(data[key])) for key in shown if data.get(key) is not None]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(child)}" for key, child in value.items())
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else without_folders(short_value(value))
    )


def _start(entry: Mapping[str, Any]) -> list[str]:
    changes = [
        f"{key}: {short_value(change.get('from'))} → {short_value(change.get('to'))}"
        for key, change in entry.get("changes", {}).items()
    ]
    hardware = entry.get("hardware")
    return [
        f"{entry['step']:,}",
        str(entry.get("time") or ""),
        without_folders("; ".join(changes)) or "none",
        revision_text(entry.get("git_revision")),
        hardware_text(hardware) if isinstance(hardware, dict) else "",
    ]


def evaluation_of(name: str, metrics: Mapping[str, float], record: Mapping[str, Any]) -> Evaluation:
    """Lay out what a ``metrics.json`` says.

    Args:
        name: Name of the evaluation; empty for that of the end of a training.
        metrics: Its values.
        record: How they were measured.
    """
    told: dict[str, str] = {}
    for part in record.values():
        definitions = part.get("definitions") if isinstance(part, dict) else None
        told |= {str(k): str(v) for k, v in definitions.items()} if isinstance(definitions, dict) else {}
    definitions = {}
    for metric in ordered(metrics):  # as it was recorded then, or as it is measured now
        own = [text for key, text in told.items() if split_name(key)[0] == metric.key]
        if text := (own or [metric_of(metric.key).definition])[0]:
            definitions[metric.name] = without_folders(text)
    title = f"Evaluation {without_folders(name)}" if name else "Final test"
    plots = [chart_of(plot) for plot in plots_of(metrics, record)]
    return Evaluation(title, layouts(metrics), definitions, plots, _circumstances(record))


def _circumstances(record: Mapping[str, Any]) -> Pairs:
    pairs: Pairs = [(key, str(record[key])) for key in ("weights", "step", "time") if record.get(key) is not None]
    counted = [part["num_images"] for part in record.values() if isinstance(part, dict) and _is_count(part)]
    if counted:
        pairs.append(("images", f"{max(counted):,}"))
    degradation = record.get("degradation")
    if isinstance(degradation, dict):
        pairs.append(("degradation", ", ".join(map(str, degradation.get("steps") or {}))))
    sampling = record.get("sampling", {})
    if sampler := sampling.get("sampler"):
        pairs.append(("sampler", str(sampler).partition("(")[0]))
    for key, words, unit in (
        ("num_network_calls", "network calls an image", ""),
        ("seconds_per_image", "seconds an image", " s"),
    ):
        if values := sampling.get(key):
            pairs.append((words, ", ".join(f"{output} {value:.4g}{unit}" for output, value in values.items())))
    return [(key, without_folders(value)) for key, value in pairs if value]


def _is_count(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("num_images"), int) and part["num_images"] > 0
