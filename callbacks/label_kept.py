"""Whether the digit stays itself: what a classifier sees in restored images, against what it sees in the clean ones.

Shape suffixes: B batch, C channels, H height, W width, L labels, F shown images.
"""

from __future__ import annotations

import csv
import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from callbacks.batch_metrics import BatchMetrics
from callbacks.image_grid import keep_image, trained_steps
from callbacks.judge import judge_record, load_judge, missing_judge
from callbacks.measuring import first_rows
from datamodules.base import ImageDataModule, datamodule_of
from files.grids import render_grid
from files.whole import whole_file
from generative.checks import checked
from generative.judges.label_classifier import LabelClassifier
from generative.metrics.label_kept import LabelKeptMetrics, judged_labels, visibility
from generative.metrics.restoration import hole_mask
from generative.ranges import Count, WholeNumber
from generative.types import Batch

FLIPS_FILE = "label_flips.csv"
COLUMNS = ("output", "degradation", "clean", "restored", "images")
NO_LABEL = "none"


class Case(NamedTuple):
    """A cell of the confusion table: what is seen in a restored image whose clean one is read rightly."""

    output: str
    degradation: str
    clean: str
    restored: str


@dataclass(frozen=True)
class Flip:
    """A restored image in which the classifier sees something else than in the clean one.

    Attributes:
        index: Index of the test image.
        degraded: What it sees in the degraded image, in words.
        images: (3, C, H, W) clean, degraded and restored image in [-1, 1].
    """

    index: int
    case: Case
    degraded: str
    images: Tensor


@checked("callbacks.label_kept")
class LabelKept(BatchMetrics[LabelKeptMetrics]):
    """Measures how many restored images still show what the clean ones do; see ``generative.metrics.label_kept``.

    In test, ``label_flips.csv`` counts what became of what, and ``images/label_flips_<output>`` shows the first images of
    each degradation that became something else. Without a classifier of the data nothing is measured, and the run says so;
    nor is it of data without labels.

    Args:
        classifier: Checkpoint file of the label classifier, or None.
        num_images: Test images with a smaller index are judged; None for all.
        validation_images: The same in validation; 0 judges none there.
        num_shown: Flips of each output in its picture.
    """

    tasks = frozenset({"restore", "inpaint"})

    def __init__(
        self,
        classifier: str | None = None,
        num_images: Count | None = None,
        validation_images: WholeNumber = 250,
        num_shown: WholeNumber = 12,
    ) -> None:
        super().__init__()
        self.classifier_path = classifier
        self.num_images = num_images
        self.validation_images = validation_images
        self.num_shown = num_shown
        self._judge: LabelClassifier | None = None
        self._is_set_up = False
        self._has_one_label = False

    # Before the first step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the classifier, or say once that there is none.

        Raises:
            SetupError: It cannot be read, or is of other data; or the module restores nothing.
        """
        super().setup(trainer, pl_module, stage)
        if self._is_set_up:
            return
        self._is_set_up = True
        data = datamodule_of(trainer)
        if data.num_classes == 0:
            if self.classifier_path is not None:
                trainer.print(f"No label_kept: the images of {data.name} have no labels that could be kept.")
        elif self.classifier_path is None:
            trainer.print(missing_judge("label_kept", data))
        else:
            self._judge = load_judge(self.classifier_path, data, data.num_classes)
            self._has_one_label = data.splits.train.has_one_label()

    # Batch by batch

    def metrics_of(self, module: LightningModule) -> LabelKeptMetrics:
        self._trainer = module.trainer
        self._cases: Counter[Case] = Counter()
        self._flips: dict[tuple[str, str], list[Flip]] = {}
        return LabelKeptMetrics()

    @torch.no_grad()
    def take(self, outputs: dict[str, Any]) -> None:
        whole: Batch = outputs["batch"]
        testing, labels = self._trainer.testing, whole.labels
        rows = first_rows(whole, self.num_images if testing else self.validation_images)
        if self._judge is None or labels is None or whole.degraded is None or len(rows) == 0:
            return
        batch, data = whole.select(rows), datamodule_of(self._trainer)
        restored = {name: image[rows] for name, image in outputs["outputs"].items()}
        seen = {name: self._see(image) for name, image in {**restored, "degraded": whole.degraded[rows]}.items()}
        clean_BL = self._see(batch.image)
        degradations = _degradations(batch, data)
        visibility_BL = self._visibility(batch, data)
        diverged = {name: ~image.flatten(1).isfinite().all(1) for name, image in restored.items()}
        judged = {
            name: seen_BL.float().masked_fill(diverged[name][:, None], torch.nan) if name in diverged else seen_BL
            for name, seen_BL in seen.items()
        }
        right_B = self.metrics.update(judged, clean_BL, labels[rows], batch.index, degradations, visibility_BL)
        if not testing:
            return
        words = {name: _words(judged_BL, data) for name, judged_BL in {**seen, "clean": clean_BL}.items()}
        for b in right_B.nonzero()[:, 0].tolist():
            for name in seen:
                degradation = degradations[b] if degradations else ""
                case = Case(name, degradation, words["clean"][b], words[name][b])
                self._cases[case] += 1
                is_shown = name in restored and bool(restored[name][b].isfinite().all())
                if is_shown and case.clean != case.restored:
                    images = torch.stack([batch.image[b], whole.degraded[rows][b], restored[name][b].clamp(-1, 1)])
                    flip = Flip(int(batch.index[b]), case, words["degraded"][b], images.float().cpu())
                    self._keep(flip)

    def _keep(self, flip: Flip) -> None:
        """Keep the flips of the smallest indices, whatever the order in which the images come."""
        kept = self._flips.setdefault((flip.case.output, flip.case.degradation), [])
        kept[:] = heapq.nsmallest(self.num_shown, [*kept, flip], key=lambda each: each.index)

    def _see(self, image_BCHW: Tensor) -> Tensor:
        assert self._judge is not None
        probabilities_BL = self._judge.to(image_BCHW.device)(image_BCHW.clamp(-1, 1))
        return judged_labels(probabilities_BL, self._has_one_label)

    def _visibility(self, batch: Batch, data: ImageDataModule) -> Tensor | None:
        if batch.validity is None:
            return None
        hole_B1HW = hole_mask(batch.validity)
        has_hole_B = hole_B1HW.flatten(1).any(1)
        masks = data.object_masks("test" if self._trainer.testing else "val", batch.index) if has_hole_B.any() else None
        if masks is None:
            return None
        return visibility(masks.to(hole_B1HW.device), hole_B1HW) * has_hole_B[:, None]

    # At the end of a test

    def describe(self) -> dict[str, Any]:
        assert self._judge is not None
        assert self.classifier_path is not None
        return super().describe() | {
            "num_judged": dict(self.metrics.counts),
            "classifier": {
                **judge_record(self.classifier_path, self._judge),
                "clean_accuracy": self.metrics.clean_accuracy,
            },
            "flips": FLIPS_FILE,
        }

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, float], dict[str, Any]]:
        results, record = super().measure(trainer, module)
        if not results:
            return results, record
        cases, flips = Counter[Case](), list[Flip]()
        for counted, kept in _gathered((self._cases, [flip for each in self._flips.values() for flip in each])):
            cases.update(counted)
            flips += kept
        if trainer.is_global_zero:
            _write_cases(Path(trainer.default_root_dir) / FLIPS_FILE, cases)
            step = trained_steps(trainer, module)
            for name in dict.fromkeys(case.output for case in cases):
                count = sum(n for case, n in cases.items() if case.output == name and case.clean != case.restored)
                shown = _shown([flip for flip in flips if flip.case.output == name], self.num_shown)
                if shown:
                    keep_image(trainer, f"label_flips_{name}", _picture(name, shown, count, step), step)
        return results, record


def _degradations(batch: Batch, data: ImageDataModule) -> list[str]:
    if batch.kind is None or data.degradation is None:
        return []
    return [data.degradation.kinds[kind] for kind in batch.kind.tolist()]


def _words(judged_BL: Tensor, data: ImageDataModule) -> list[str]:
    """Say in words which labels are seen in each of B images; labels without names are numbers."""
    names: Sequence[str] = data.label_names or [str(number) for number in range(data.num_classes)]
    return [", ".join(names[i] for i in row.nonzero()[:, 0].tolist()) or NO_LABEL for row in judged_BL.cpu()]


def _gathered(mine: Any) -> list[Any]:
    """Return what every rank has, on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    all_of_them: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_of_them, mine)
    return all_of_them


def _write_cases(path: Path, cases: Counter[Case]) -> None:
    """Write the confusion table, a line for each cell, also of what was kept; the commonest first in each degradation."""
    lines = sorted(cases.items(), key=lambda item: (*item[0][:2], -item[1], *item[0][2:]))
    with whole_file(path, "w") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *((*case, count) for case, count in lines)])


def _shown(flips: list[Flip], num_shown: int) -> list[Flip]:
    """Choose the flips of smallest index, as many of each degradation as there are, and put these side by side."""
    by_degradation: dict[str, list[Flip]] = {}
    for flip in sorted(flips, key=lambda each: each.index):
        by_degradation.setdefault(flip.case.degradation, []).append(flip)
    turns = sorted((turn, name) for name, each in by_degradation.items() for turn in range(len(each)))
    return [by_degradation[name][turn] for name, turn in sorted((name, turn) for turn, name in turns[:num_shown])]


def _stacked(labels: str) -> str:
    """Write labels in words one below the other, as a picture is narrow."""
    return labels.replace(", ", "\n")


def _picture(output: str, flips: list[Flip], count: int, step: int) -> Image.Image:
    images_F3CHW = torch.stack([flip.images for flip in flips])
    clean, degraded, restored = images_F3CHW.unbind(1)
    notes = {
        "clean": [_stacked(flip.case.clean) for flip in flips],
        "degraded": [_stacked(": ".join(filter(None, [flip.case.degradation, flip.degraded]))) for flip in flips],
        output: [f"→ {_stacked(flip.case.restored)}" for flip in flips],
    }
    captions = [f"test {flip.index}" for flip in flips]
    title = (
        f"{output}: {len(flips)} of {count:,} test images that became another · step {step:,} · below each what is seen"
    )
    return render_grid({"clean": clean, "degraded": degraded, output: restored}, title, captions, notes)
