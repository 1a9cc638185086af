"""Run in a copy of the tree that holds the files of docs/extending.md, in one process: what the page says is true."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import composing
import numpy as np
from helpers import ROOT, read_json, train_here
from PIL import Image
from round_trips import IN_THE_MIDDLE, assert_round_trips, assert_same_samples

import triptych
from launch.commands import generate
from launch.commands.compare import compare
from launch.run_folder import RunFolder


def images(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def used(run: RunFolder, out: Path) -> None:
    """What is done with any run, and the code of its card."""
    assert_same_samples(*assert_round_trips(run, out))
    code = (run.path / "export" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    space: dict[str, Any] = {}
    Image.new("L", (32, 32)).save(out / "photo.png")
    exec(code.replace('"."', repr(str(run.path / "export"))).replace("photo.png", str(out / "photo.png")), space)
    made = space.get("images") or [*space["samples"], *filter(None, [space["mean"]])]
    assert {image.size for image in made} == {(32, 32)}


def main(out: Path) -> None:
    flow = train_here(out / "rectified_flow" / "run", "experiment=rectified_flow", *IN_THE_MIDDLE, "module.num_steps=3")
    assert images(flow.path / "images") == ["samples", "steps", "steps_test", "test"]
    used(flow, out / "flow")
    generate.main([f"run={flow.path}", "labels=3", "num_images=2", f"output={out / 'drawn'}"])
    assert images(out / "drawn") == ["0000.png", "0001.png", "grid.png"]

    several = ["degradation=posterize", "callbacks=[restore,mean_error,gradient_norm]"]
    restorer = train_here(out / "residual" / "run", "experiment=residual", *IN_THE_MIDDLE, *several)
    used(restorer, out / "restorer")
    assert {"mean_error/mean", "psnr/mean"} <= read_json(restorer.path / "metrics.json")["metrics"].keys()
    with (restorer.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row.get("train/gradient_norm") for row in rows)
    assert any(row.get("val/mean_error/mean") for row in rows)
    (out / "in").mkdir()
    Image.fromarray(np.full((32, 32), 99, dtype=np.uint8)).save(out / "in" / "a.png")
    generate.main([f"run={restorer.path}", f"input={out / 'in'}", f"output={out / 'restored'}"])
    assert images(out / "restored") == ["a.png"]

    stripes = train_here(
        out / "meanflow_dit" / "run", "experiment=meanflow_dit", "data=stripes", "degradation=posterize",
        "sampler=midpoint", "callbacks.calibration=null",
    )  # fmt: skip
    record = read_json(stripes.path / "metrics.json")["record"]
    assert record["sampling"]["sampler"] == "Midpoint"
    assert record["sampling"]["num_network_calls"] == {"sample": 8, "mean": 1}
    assert record["data"]["name"] == "stripes"

    runs = ",".join(str(run.path) for run in (flow, restorer, stripes))
    text = compare([f"runs={runs}", "name=all", f"output={out / 'comparisons'}"]).read_text()
    assert all(name in text for name in ("rectified_flow", "residual", "Mean absolute error"))


if __name__ == "__main__":
    assert Path(triptych.__file__).is_relative_to(ROOT)
    composing.remember()
    main(Path(sys.argv[1]))
