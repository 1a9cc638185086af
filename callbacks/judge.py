"""The label classifier that judges a run's images: found, checked to be one of the run's data, and named in the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from callbacks.measuring import SetupError
from datamodules.base import ImageDataModule
from generative.judges.label_classifier import LabelClassifier, TrainedOn, load_label_classifier
from generative.weights import weights_hash


def missing_judge(without: str, data: ImageDataModule) -> str:
    """Say that there is no label classifier, and the remedy.

    Args:
        without: What is left out, such as ``label accuracy``.
    """
    return (
        f"No {without}: there is no label classifier of {data.name} at {data.image_size} pixels; train one with python "
        f"train.py experiment=label_classifier data={data.name}, or name one with classifier=FILE."
    )


def load_judge(path: str, data: ImageDataModule, num_labels: int) -> LabelClassifier:
    """Load the label classifier that judges images of some data.

    Args:
        path: Its file.
        num_labels: Number of labels of the data.

    Raises:
        SetupError: It cannot be read, or is of other data, images or labels.
    """
    try:
        judge = load_label_classifier(path)
    except ValueError as error:
        raise SetupError(str(error)) from error
    if (judge.in_channels, judge.num_labels) != (data.channels, num_labels):
        raise SetupError(
            f"classifier={path} is for images of {judge.in_channels} channels and {judge.num_labels} labels, but "
            f"data={data.name} has {data.channels} and {num_labels}."
        )
    if judge.trained_on not in (None, TrainedOn(data.name, data.image_size)):
        assert judge.trained_on is not None
        raise SetupError(
            f"classifier={path} was trained on {judge.trained_on.data} at {judge.trained_on.image_size} pixels, but "
            f"data={data.name} has {data.image_size} pixels: train one with python train.py experiment=label_classifier "
            f"data={data.name}."
        )
    return judge


def judge_record(path: str, judge: LabelClassifier) -> dict[str, Any]:
    """Name a label classifier without its place: the run folder or the file, and the hash of the weights."""
    file = Path(path)
    run = file.parent.parent if file.parent.name == "checkpoints" else file
    return {"name": run.name, "blake2": weights_hash(judge)}
