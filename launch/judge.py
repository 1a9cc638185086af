"""The label classifier that judges a run: kept in its record, so that the same one measures it again, and found in results."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig

from generative.judges.label_classifier import load_label_classifier
from generative.metrics.catalogue import metric_of, split_name
from generative.weights import weights_hash
from launch.command_line import choices_of
from launch.errors import as_user_error
from launch.received import nodes
from launch.run_folder import RunFolder

KEY = "classifier"  # of the config


def judge_record(config: DictConfig) -> dict[str, dict[str, str]]:
    """Identify the classifier that judges a run, for ``run.json``.

    Returns:
        ``{"judge": {"path": ..., "hash": ...}}``; empty where none does.

    Raises:
        UserError: The file is none of a classifier.
    """
    found = [path for path in choices_of(config, KEY) if path is not None]
    return {"judge": {"path": found[0], "hash": _hash_of(found[0])}} if found else {}


def tell_other_judge(run: RunFolder, config: DictConfig, typed: Collection[str]) -> None:
    """Warn where another classifier judges a run than in its training, though nobody asked for that.

    Args:
        config: Its config, in which the recorded one is filled in where it is still there.
        typed: Keys that were set for this evaluation.
    """
    recorded = run.record.get("judge")
    if recorded is None or KEY in typed:
        return
    found = choices_of(config, KEY)
    if not found:  # nothing is to be judged
        return
    path = found[0]
    if path is not None and _hash_of(path) == recorded.get("hash"):
        return
    now = "nothing judges it" if path is None else f"{path} judges it"
    if path == recorded.get("path"):
        now = "it has other weights now"
    rank_zero_warn(
        f"{run.path} was judged by {recorded.get('path')}, and {now}: what is judged is not comparable with what was measured "
        f"before; name the classifier of then with {KEY}=FILE"
    )


def _hash_of(path: str) -> str:
    with as_user_error():
        return weights_hash(load_label_classifier(path))


def judges_in(record: Mapping[str, Any]) -> dict[str, str]:
    """Find by which networks the metrics of an evaluation were judged, as each measurement's own record says.

    Args:
        record: That of ``metrics.json``.

    Returns:
        The hash of the network's weights by key of the metric; those that no network judges are not there.
    """
    found: dict[str, str] = {}
    for at, node in nodes(record):
        if not at or not isinstance(node, Mapping):
            continue
        judges = [child.get("blake2") for child in node.values() if isinstance(child, Mapping)]
        if isinstance(extractor := node.get("extractor"), Mapping):
            judges.append(extractor.get("fingerprint"))
        for judge in judges:
            if isinstance(judge, str):
                names = {split_name(name)[0] for below, _ in nodes(node) for name in below if isinstance(name, str)}
                found |= {name: judge for name in names if metric_of(name).definition}
    return found


def judge_of(judges: Mapping[str, str], key: str) -> str | None:
    """Return the hash of what judged a metric, also a variant of one whose definition was recorded; None for none."""
    own = max((name for name in judges if f"{key}_".startswith(f"{name}_")), key=len, default="")
    return judges.get(own)


def differing_judges(some: Mapping[str, str], others: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the two hashes of the first metric that different networks have judged; None where there is none."""
    return next(((some[key], others[key]) for key in some if others.get(key, some[key]) != some[key]), None)
