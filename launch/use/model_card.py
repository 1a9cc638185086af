"""The model card of an export: a README.md whose head the Hugging Face hub reads."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from generative.metrics.catalogue import layouts
from generative.networks.tokenizer import Tokenizer
from launch.record import images_seen
from launch.record_files import read_metrics
from launch.run_folder import RunFolder
from launch.settings import earlier_settings
from lightning_modules import GenerativeModule

RESTORE = """degraded, validity = torch.zeros({shape}), torch.ones({mask})  # in [-1, 1]; 1 where a pixel is exact
batch = Batch(image=degraded, index=torch.arange(4), degraded=degraded, validity=validity)
images = model.sample(batch, model.evaluation_randomness(batch))["sample"]"""
MEAN = RESTORE.replace('"sample"]', '"mean"]')
FILL = RESTORE.replace("torch.ones({mask})", "(torch.rand({mask}) > 0.3).float()").replace(
    "exact", "known, 0 in the hole"
)
DRAW = """batch = Batch(image=torch.zeros({shape}), index=torch.arange(4){labels})
images = model.sample(batch, model.evaluation_randomness(batch))["sample"]  # in [-1, 1]; other indices, other images"""
ENCODE = """images = torch.zeros({shape})  # in [-1, 1]
reconstruction = model.network(images).image"""
JUDGE = """images = torch.zeros({shape})  # in [-1, 1]
probabilities = model.network(images).sigmoid()"""


@dataclass(frozen=True)
class Paradigm:
    """What a card says about a kind of module.

    Attributes:
        title: What it is.
        task: The hub's name of the task.
        use: What it is meant for.
        limits: What it cannot do.
        code: How it is used, after it was loaded.
    """

    title: str
    task: str
    use: str
    limits: str
    code: str


PARADIGMS = {
    "MeanFlowRestorer": Paradigm(
        "MeanFlow restorer: a DiT that restores degraded images in one step or several (arXiv 2505.13447)",
        "image-to-image",
        "Restoring images with the degradations that it was trained on: `mean` is the answer of least squared error, "
        "`sample` one plausible image.",
        "A sample is an invention where the input says nothing. Other degradations than those of training, other image "
        "sizes and other motifs are outside of what was learned.",
        RESTORE,
    ),
    "RegressionRestorer": Paradigm(
        "Regression: a DiT trained for squared error, the yardstick of restoration",
        "image-to-image",
        "Restoring images with the degradations that it was trained on: `mean` is the answer of least squared error.",
        "The answer is blurred where the input leaves several possibilities. Other degradations, sizes and motifs than "
        "those of training are outside of what was learned.",
        MEAN,
    ),
    "DDPM": Paradigm(
        "Denoising diffusion model (arXiv 2006.11239)",
        "unconditional-image-generation",
        "Drawing images like those of its training set, of the labels where it was trained with labels.",
        "It knows its training set's motifs and labels only; what is drawn may miss or add objects, see the label accuracy.",
        DRAW,
    ),
    "MaskGIT": Paradigm(
        "MaskGIT: a bidirectional transformer that fills holes in images by guessing tokens (arXiv 2202.04200)",
        "image-to-image",
        "Filling holes whose surroundings are known: `sample` is one plausible filling and keeps the known pixels, `mean` is "
        "the picture of the expected codes, the closer one by squared error.",
        "A filling is an invention. No filling can be closer than the tokenizer's reconstruction (`composite` in the "
        "tables). Noise and blur are not repaired.",
        FILL,
    ),
    "VQGAN": Paradigm(
        "Tokenizer: an autoencoder that writes an image as a grid of codes",
        "image-feature-extraction",
        "Making tokens of images for MaskGIT, and images of tokens.",
        "It is lossy, and knows images like those of its training set only.",
        ENCODE,
    ),
    "LabelClassifierModule": Paradigm(
        "Label classifier: a ResNet18 with one sigmoid output for each label",
        "image-classification",
        "Judging images that were drawn of labels.",
        "It knows its training set's labels only; its probabilities on images of other kinds mean nothing.",
        JUDGE,
    ),
}

_NOT_IN_CODE = re.compile(r"[^\w/.-]")  # a metric's name has none of these
NO_MEASUREMENT = {"sampling", "data", "degradation", "hardware"}  # entries of a test's record that tell of other things


def write_card(
    run: RunFolder, config: dict[str, Any], module: GenerativeModule, weights: str, step: int, grid: str | None
) -> str:
    """Write the card.

    Args:
        run: The run.
        config: The exported config.
        module: The module with its weights.
        weights: ``ema`` or ``raw``.
        step: Optimiser steps behind them.
        grid: File of the test images, or None.

    Returns:
        Markdown with a YAML head.
    """
    paradigm, record = PARADIGMS[type(module).__name__], run.record
    result = _result(run, weights, step)
    name = str(record.get("name", config["name"]))
    parts = [
        _head(name, paradigm, config, result),
        f"# {written(name)}\n\n{paradigm.title}. Trained and exported by Triptych.",
        f"![Test images]({grid})" if grid else "",
        "## Use\n\n" + _code(config, paradigm),
        f"**Intended use.** {paradigm.use}\n\n**Limits.** {paradigm.limits} It was checked on the test images named below "
        "and on nothing else; nobody has examined it for bias or safety.",
        "## Training\n\n" + _training(record, config, module, weights, step),
        "## Results\n\n" + _results(result),
        "## Licence\n\nNot chosen yet: whoever hands this folder on adds `license:` to the head of this file, with regard to "
        "the licence of the training images.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def written(value: Any) -> str:
    """Write what comes from a record or config into a card: as the text that it is, on one line.

    Args:
        value: Any value.

    Returns:
        Text in which nothing is Markdown's or HTML's.
    """
    text = re.sub(r"\s+", " ", str(value)).strip()
    text = "".join(character for character in text if character.isprintable())
    return re.sub(r"([\\`\[\]|!])", r"\\\1", html.escape(text, quote=False))


def tokenizer_card(tokenizer: Tokenizer) -> str:
    """Write the card of a tokenizer that is exported beside its network.

    Args:
        tokenizer: The tokenizer.

    Returns:
        Markdown.
    """
    network = tokenizer.network
    return (
        f"# Tokenizer\n\nImages of {network.image_size} pixels and {network.in_channels} channels to {tokenizer.grid_size} x "
        f"{tokenizer.grid_size} tokens of {tokenizer.num_codes} codes and back; weights {tokenizer.hash}. It belongs to the "
        "network in the folder above, which reads it from here.\n\n```python\nfrom generative.networks.tokenizer import "
        'load_tokenizer\n\ntokenizer = load_tokenizer("tokenizer/model.safetensors")\n```\n'
    )


def _result(run: RunFolder, weights: str, step: int) -> dict[str, Any] | None:
    """Return the final test's result where it is of these very weights."""
    path = run.path / "metrics.json"
    result = read_metrics(path) if path.exists() else None
    return result if result and [result["record"].get(key) for key in ("weights", "step")] == [weights, step] else None


def _head(name: str, paradigm: Paradigm, config: dict[str, Any], result: dict[str, Any] | None) -> str:
    head: dict[str, Any] = {
        "library_name": "pytorch",
        "pipeline_tag": paradigm.task,
        "tags": ["triptych", config["module"]["_target_"].rpartition(".")[2].lower(), config["data"]["name"]],
    }
    if result and result["metrics"]:
        metrics = [{"type": key, "name": key, "value": float(value)} for key, value in result["metrics"].items()]
        dataset = {"name": f"{config['data']['name']}, test images", "type": config["data"]["name"]}
        results = [{"task": {"type": paradigm.task}, "dataset": dataset, "metrics": metrics}]
        head["model-index"] = [{"name": name, "results": results}]
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n# license: yours to choose\n{text}---"


def _code(config: dict[str, Any], paradigm: Paradigm) -> str:
    data = config["data"]
    side, channels, num_classes = (int(data[key]) for key in ("image_size", "channels", "num_classes"))  # it is run
    size = f"{side}, {side}"
    labels = f", labels=torch.eye({num_classes})[:4]" if config["module"].get("conditional") else ""
    code = paradigm.code.format(shape=f"4, {channels}, {size}", mask=f"4, 1, {size}", labels=labels)
    return (
        "In the repository of Triptych, with this folder's path for `.`:\n\n```python\nimport torch\nfrom generative.types "
        f'import Batch\nfrom launch.use.load import load_exported\n\nmodel = load_exported(".")\n{code}\n```\n\n'
        "`model.safetensors` holds the network's weights, `config.yaml` what it is built of and how it was trained."
    )


def _training(record: dict[str, Any], config: dict[str, Any], module: GenerativeModule, weights: str, step: int) -> str:
    data, hardware = record.get("data", {}), record.get("hardware", {})
    batch, accumulated = int(config["data"]["global_batch_size"]), int(config["trainer"]["accumulate_grad_batches"])
    images = ", ".join(f"{count:,} {split}" for split, count in data.get("images", {}).items())
    planned = int(config["trainer"]["max_steps"])
    rows = {
        "experiment": record.get("name"),
        "weights": f"{'exponential moving average' if weights == 'ema' else 'raw'}, after {step:,} steps",
        "network": f"{type(module.network).__name__}, {sum(p.numel() for p in module.network.parameters()):,} parameters",
        "data": f"{data.get('name')}{_source(data)}, {images}, fingerprint {data.get('fingerprint')}",
        **_earlier_data(data),
        "images": f"{data.get('image_size')} x {data.get('image_size')} pixels, {data.get('channels')} channels",
        "images seen": f"{images_seen(record, batch, accumulated, step):,}",
        "hardware": ", ".join(
            [f"{hardware.get('ranks', 1)} x {hardware.get('accelerator') or hardware.get('processor')}"]
            + ([] if hardware.get("accelerator") else [f"{hardware.get('threads')} threads"])
        ),
        "begun": record.get("started"),
        "ended": record.get("ended", "not yet"),
        "seed": record.get("seed"),
        "parts": ", ".join(f"{name} {part['hash']}" for name, part in record.get("parts", {}).items()) or "none",
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
    """Say what the training went on with before its data were others."""
    parts = [
        f"until step {one['until_step']:,} fingerprint {one.get('fingerprint')}" for one in data.get("earlier", [])
    ]
    return {"earlier data": "; ".join(parts)} if parts else {}


def _results(result: dict[str, Any] | None) -> str:
    if result is None:
        return "There are no test figures for these weights."
    return "\n\n".join([*_metric_tables(result["metrics"]), "How they were measured:", _definitions(result["record"])])


def _metric_tables(metrics: dict[str, float]) -> list[str]:
    return [
        f"{layout.title[0].upper()}{layout.title[1:]}:\n\n{_table(layout.headings, layout.rows)}"
        for layout in layouts(metrics)
    ]


def _definitions(record: dict[str, Any]) -> str:
    sampling = {key: value for key, value in record.get("sampling", {}).items() if key != "tokenizer"}
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
            settings = {key: value for key, value in part.items() if isinstance(value, str | int | float)}
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
