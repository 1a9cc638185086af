"""The model card of an export: a README.md whose head the Hugging Face hub reads."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import yaml

from files.words import count
from generative.export import Precision
from generative.metrics.catalogue import spoken
from generative.metrics.layouts import layouts
from launch.paths import names_place, portable, without_folders
from launch.record import images_seen
from launch.record_files import read_metrics
from launch.run_folder import RunFolder
from launch.settings import earlier_settings
from launch.trained_parts import TRAINED
from lightning_modules import GenerativeModule, TrainingModule
from lightning_modules.contract import TASKS, Task

# By task: the hub's name of it, and how a model that does it is called.
TASK_WORDS: dict[Task, tuple[str, str]] = {
    "restore": ("image-to-image", 'samples, mean = model.restore("photo.png", num_samples=4)'),
    "inpaint": (
        "image-to-image",
        'samples, mean = model.fill("photo.png", "hole.png", num_samples=4)  # white is filled',
    ),
    "generate": ("unconditional-image-generation", "images = model.draw({labels}num_images=4)"),
    "reconstruct": ("image-feature-extraction", 'image = model.reconstruct("photo.png")'),
    "judge": (
        "image-classification",
        "images = torch.zeros({shape})  # in [-1, 1]\n"
        "probabilities = model.module.network(images)  # of each label, (4, labels)",
    ),
}

_NOT_IN_CODE = re.compile(r"[^\w/.-]")  # a metric's name has none of these
NO_MEASUREMENT = {"sampling", "data", "degradation", "hardware"}  # entries of a test's record that tell of other things


def write_card(
    run: RunFolder,
    config: dict[str, Any],
    module: TrainingModule,
    weights: str,
    step: int,
    result: dict[str, Any] | None,
    grid: str | None,
    precision: Precision = "float32",
) -> str:
    """Write the card.

    Args:
        config: The exported config.
        module: The module with its weights.
        weights: ``ema`` or ``raw``.
        step: Optimiser steps behind them.
        result: What was measured of them, see ``result_of``.
        grid: File of the test images, or None.
        precision: In which the weights are written.

    Returns:
        Markdown with a YAML head.
    """
    card, record = module.card, run.record
    use = card.use_of(module.current_tasks)
    hub_task, code = next(TASK_WORDS[task] for task in TASKS if task in module.current_tasks)
    name = str(record.get("name", config["name"]))
    parts = [
        _head(name, hub_task, config, result),
        f"# {written(name)}\n\n{card.title}. Trained and exported by Triptych.",
        f"![Test images]({grid})" if grid else "",
        "## Use\n\n" + _code(config, module, code),
        f"**Intended use.** {use}\n\n**Limits.** {card.limits} It was checked on the test images named below "
        "and on nothing else; nobody has examined it for bias or safety.",
        "## Training\n\n" + _training(record, config, module, weights, step, precision),
        "## Results\n\n" + _results(result, precision),
        "## Licence\n\nNot chosen yet: whoever hands this folder on adds `license:` to the head of this file, with regard to "
        "the licence of the training images.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def written(value: Any) -> str:
    """Write what comes from a record or config into a card: as the text that it is, on one line.

    Returns:
        Text in which nothing is Markdown's or HTML's, and no place on the machine that it comes from.
    """
    text = re.sub(r"\s+", " ", without_folders(str(value))).strip()
    text = "".join(character for character in text if character.isprintable())
    return re.sub(r"([\\`\[\]|!])", r"\\\1", html.escape(text, quote=False))


def result_of(run: RunFolder, weights: str, step: int) -> dict[str, Any] | None:
    """Return the final test's result where it is of these very weights, and no classifier that stays behind has helped them.

    Args:
        weights: ``ema`` or ``raw``.
        step: Optimiser steps behind them.
    """
    path = run.path / "metrics.json"
    result = read_metrics(path) if path.exists() else None
    if result is None or [result["record"].get(key) for key in ("weights", "step")] != [weights, step]:
        return None
    return None if result["record"].get("sampling", {}).get("assisted") else result


def _head(name: str, hub_task: str, config: dict[str, Any], result: dict[str, Any] | None) -> str:
    head: dict[str, Any] = {
        "library_name": "triptych",
        "pipeline_tag": hub_task,
        "tags": ["triptych", config["module"]["_target_"].rpartition(".")[2].lower(), config["data"]["name"]],
    }
    if result and result["metrics"]:
        metrics = [{"type": n, "name": spoken(n), "value": float(value)} for n, value in result["metrics"].items()]
        dataset = {"name": f"{config['data']['name']}, test images", "type": config["data"]["name"]}
        results = [{"task": {"type": hub_task}, "dataset": dataset, "metrics": metrics}]
        head["model-index"] = [{"name": name, "results": results}]
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n# license: yours to choose\n{text}---"


def _code(config: dict[str, Any], module: TrainingModule, code: str) -> str:
    data, labels = config["data"], ""
    if isinstance(module, GenerativeModule) and module.uses_labels and data.get("label_names"):
        labels = f"{data['label_names'][0]!r}, "
    side, channels = int(data["image_size"]), int(data["channels"])  # it is run
    code = code.format(shape=f"4, {channels}, {side}, {side}", labels=labels)
    imports = "import torch\nimport triptych" if "torch." in code else "import triptych"
    return (
        f"Where Triptych is installed, with this folder's path for `.`:\n\n```python\n{imports}\n\n"
        f'model = triptych.load(".")\n{code}\n```\n\n'
        "Pictures are files, images of Pillow, arrays or tensors; answers are images of Pillow. "
        "`model.safetensors` holds the network's weights, `config.yaml` what it is built of and how it was trained."
    )


def _training(
    record: dict[str, Any],
    config: dict[str, Any],
    module: TrainingModule,
    weights: str,
    step: int,
    precision: Precision,
) -> str:
    data, hardware = record.get("data", {}), record.get("hardware", {})
    batch, accumulated = int(config["data"]["global_batch_size"]), int(config["trainer"]["accumulate_grad_batches"])
    images = ", ".join(f"{count:,} {split}" for split, count in data.get("images", {}).items())
    planned = int(config["trainer"]["max_steps"])
    rounded = "" if precision == "float32" else f", rounded to {precision}"
    rows = {
        "experiment": record.get("name"),
        "command": f"python train.py {' '.join(portable(record.get('overrides') or []))}",
        "weights": f"{'exponential moving average' if weights == 'ema' else 'raw'}, after {count(step, 'step')}{rounded}",
        "network": f"{type(module.network).__name__}, {sum(p.numel() for p in module.network.parameters()):,} parameters",
        "data": f"{data.get('name')}{_source(data)}, {images}, fingerprint {data.get('fingerprint')}",
        **_earlier_data(data),
        "images": f"{data.get('image_size')} x {data.get('image_size')} pixels, {count(data.get('channels', 0), 'channel')}",
        "images seen": f"{images_seen(record, batch, accumulated, step):,}",
        "hardware": ", ".join(
            [f"{hardware.get('ranks', 1)} x {hardware.get('accelerator') or hardware.get('processor')}"]
            + ([] if hardware.get("accelerator") else [f"{hardware.get('threads')} threads"])
        ),
        "begun": record.get("started"),
        "ended": record.get("ended", "not yet"),
        "seed": record.get("seed"),
        "parts": ", ".join(f"{name} {part['hash']}" for name, part in record.get("parts", {}).items()) or "none",
        **_origin(record.get("init")),
        "config": record.get("config_hash"),
        "changed at a resume": earlier_settings(record) or "nothing",
        "git revision": record.get("git_revision"),
        "torch": record.get("versions", {}).get("torch"),
    }
    table = _table(["", ""], [[name, value] for name, value in rows.items()])
    unfinished = f"**The run had not finished: {planned:,} steps were planned.**"
    return table if record.get("finished") else f"{unfinished}\n\n{table}"


def _source(data: dict[str, Any]) -> str:
    """Say what the images are; older records name folders of the machine there."""
    return f" ({data['source']})" if "folders" in data else ""


def _earlier_data(data: dict[str, Any]) -> dict[str, str]:
    """Say what the training continued with before its data were others."""
    parts = [
        f"until step {one['until_step']:,} fingerprint {one.get('fingerprint')}" for one in data.get("earlier", [])
    ]
    return {"earlier data": "; ".join(parts)} if parts else {}


def _origin(origin: dict[str, Any] | None) -> dict[str, str]:
    """Say what the training began with, where that was another run."""
    if origin is None:
        return {}
    steps = "" if origin.get("step") is None else f" after {count(origin['step'], 'step')}"
    return {"began with": f"{origin.get('weights')} weights of {origin.get('name')}{steps}, {origin.get('hash')}"}


def _results(result: dict[str, Any] | None, precision: Precision) -> str:
    if result is None:
        return "There are no test figures for these weights."
    before = "" if precision == "float32" else f", before the weights were rounded to {precision}"
    measured = [f"How they were measured{before}:", _definitions(result["record"])]
    return "\n\n".join([*_metric_tables(result["metrics"]), *measured])


def _metric_tables(metrics: dict[str, float]) -> list[str]:
    return [
        f"{layout.title[0].upper()}{layout.title[1:]}:\n\n{_table(layout.headings, layout.rows)}"
        for layout in layouts(metrics)
    ]


def _definitions(record: dict[str, Any]) -> str:
    sampling = {key: value for key, value in record.get("sampling", {}).items() if key not in TRAINED}
    data = record.get("data", {})
    told = {
        "weights": record["weights"],
        "step": f"{record['step']:,}",
        "seed": record.get("seed"),
        "evaluation seed": record.get("evaluation_seed"),
        "test images": data.get("images", {}).get("test"),
        "fingerprint": data.get("fingerprint"),
    }
    lines = [
        "- " + ", ".join(f"{key} {written(value)}" for key, value in told.items()),
        "- " + ", ".join(f"{written(key)} {written(json.dumps(value))}" for key, value in sampling.items())
        if sampling
        else "",
    ]
    for name in sorted(record.keys() - NO_MEASUREMENT):
        if isinstance(part := record[name], dict):
            settings = {k: v for k, v in part.items() if isinstance(v, str | int | float) and not names_place(str(v))}
            text = ", ".join(f"{key} {value}" for key, value in settings.items())
            lines.append(f"- {written(name.replace('_', ' '))}: {written(text)}")
            definitions = part.get("definitions")
            lines += [
                f"  - `{re.sub(_NOT_IN_CODE, '_', str(metric))}`: {written(text)}"
                for metric, text in (definitions if isinstance(definitions, dict) else {}).items()
            ]
    return "\n".join(line for line in lines if line)


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    align = ["---", *["---:" if columns[0] else "---"] * (len(columns) - 1)]
    lines = [[written(column) for column in columns], align, *([written(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
