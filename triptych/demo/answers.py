"""What the page shows of a model's answer, as HTML that holds its pictures; a function of its arguments alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape

import torch
from torch import Tensor

from files.images import Picture
from generative.metrics.restoration import psnr
from triptych.answers import Degraded, Step
from triptych.demo.pictures import as_image, image_address, spread_map
from triptych.model import Model

NUM_SAMPLES = 4
BLEND_STEPS = 10  # places of the slider from sample to mean


def restored(
    runs: Mapping[str, Model], clean: Picture, degradation: str | None, severity: float, seed: int, tile: str
) -> str:
    """Degrade a picture, and show how each model restores it.

    Args:
        runs: Models by name.
        degradation: Its name; None leaves the picture as it is, so that the truth is not known.
        severity: From 0, the mildest of training, to 1.
        seed: Seed of the degradation and the samples.
        tile: ``auto`` or ``none``; see ``Model.restore``.
    """
    shown, truth = [], None if degradation is None else as_image(clean)
    for name, model in runs.items():
        given, hole, settings = Degraded(as_image(clean), None, {})
        if degradation is not None:
            given, hole, settings = model.degrade(clean.image, degradation, severity, seed=seed, kind="torch")
        begin = time.perf_counter()
        if hole is None:
            answer = model.restore(given, NUM_SAMPLES, seed=seed, tile=tile, kind="torch")
        else:
            answer = model.fill(given, hole, NUM_SAMPLES, seed=seed, tile=tile, kind="torch")
        seconds = time.perf_counter() - begin
        told = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        shown.append(_card(name, model, seconds, _restoration(given, answer.samples, answer.mean, truth), told))
    return "".join(shown)


def filled(runs: Mapping[str, Model], picture: Picture, hole_HW: Tensor, seed: int, tile: str) -> str:
    """Show how each model fills a hole.

    Args:
        runs: Models by name.
        hole_HW: (H, W) bool, True where pixels are missing.
        seed: Seed of the fillings.
        tile: ``auto`` or ``none``; see ``Model.fill``.
    """
    truth = as_image(picture)
    holed = torch.where(hole_HW, torch.zeros(()), truth)
    shown = []
    for name, model in runs.items():
        begin = time.perf_counter()
        answer = model.fill(picture.image, hole_HW.numpy(), NUM_SAMPLES, seed=seed, tile=tile, kind="torch")
        seconds = time.perf_counter() - begin
        figures = [_figure("with the hole", image_address(holed))]
        figures += [
            _figure(f"filling {number}", image_address(image), _db(image, truth, hole_HW))
            for number, image in enumerate(answer.samples, start=1)
        ]
        if answer.mean is not None:
            figures.append(_figure("mean", image_address(answer.mean), _db(answer.mean, truth, hole_HW)))
        if len(answer.samples) > 1:
            figures.append(_spread(answer.samples))
        steps = model.steps(picture.image, hole_HW.numpy(), seed=seed, kind="torch")
        shown.append(_card(name, model, seconds, _row(figures) + _player(steps), "decibels in the hole"))
    return "".join(shown)


def drawn(runs: Mapping[str, Model], labels: str | None, guidance_scale: float | None, seed: int) -> str:
    """Show what each model draws.

    Args:
        runs: Models by name.
        labels: Such as ``red cube, blue sphere``; not for models without labels.
        guidance_scale: How far to go towards them; None as each model says.
        seed: Seed of the drawings.
    """
    shown = []
    for name, model in runs.items():
        own = labels if model.label_names and getattr(model.module, "uses_labels", False) else None
        scale = guidance_scale if own and getattr(model.module, "guidance", None) is not None else None
        begin = time.perf_counter()
        images = model.draw(own, NUM_SAMPLES, guidance_scale=scale, seed=seed, kind="torch")
        seconds = time.perf_counter() - begin
        figures = [_figure(f"drawing {number}", image_address(image)) for number, image in enumerate(images, start=1)]
        steps = model.steps(labels=own, guidance_scale=scale, seed=seed, kind="torch")
        shown.append(_card(name, model, seconds, _row(figures) + _player(steps), own or "without labels"))
    return "".join(shown)


def _restoration(given: Tensor, samples: Sequence[Tensor], mean: Tensor | None, truth: Tensor | None) -> str:
    best = mean if mean is not None else samples[0]
    figures = [_figure("given", image_address(given), _db(given, truth))]
    if truth is not None:
        figures.append(_figure("truth", image_address(truth)))
    if mean is not None:
        figures.append(_figure("mean", image_address(mean), _db(mean, truth)))
    figures += [
        _figure(f"sample {number}", image_address(image), _db(image, truth))
        for number, image in enumerate(samples, start=1)
    ]
    if len(samples) > 1:
        figures.append(_spread(list(samples)))
    sliders = _before_after(given, best)
    if mean is not None and samples:
        sliders += _blend(samples[0], mean, truth)
    return f'<div class="sliders">{sliders}</div>{_row(figures)}'


def _before_after(before: Tensor, after: Tensor) -> str:
    return (
        '<figure class="compare"><div class="stack">'
        f'<img alt="after" src="{image_address(after)}"><img alt="before" class="before" src="{image_address(before)}">'
        '</div><input type="range" min="0" max="100" value="50" data-does="compare" aria-label="before to after">'
        "<figcaption>before | after</figcaption></figure>"
    )


def _blend(sample: Tensor, mean: Tensor, truth: Tensor | None) -> str:
    """Return the slider (1 - w) sample + w mean; the browser mixes, the decibels of its places come along."""
    notes = [_db(sample.lerp(mean, w / BLEND_STEPS), truth) for w in range(BLEND_STEPS + 1)]
    return (
        f'<figure class="blend" data-notes="{escape("|".join(notes))}"><div class="stack">'
        f'<img alt="sample" src="{image_address(sample)}"><img alt="mean" class="over" src="{image_address(mean)}"></div>'
        f'<input type="range" min="0" max="{BLEND_STEPS}" value="0" data-does="blend" aria-label="sample to mean">'
        f'<figcaption>sample 1 to mean <b class="note">{escape(notes[0])}</b></figcaption></figure>'
    )


def _player(steps: Sequence[Step]) -> str:
    """Return the steps of a sampler as an animation with a slider; empty where there is one step or none."""
    if len(steps) < 2:
        return ""
    frames = "".join(
        f'<div class="frame"{"" if number == len(steps) - 1 else " hidden"}>'
        f'<img alt="state" src="{image_address(step.state)}"><img alt="estimate" src="{image_address(step.estimate)}"></div>'
        for number, step in enumerate(steps)
    )
    last = len(steps) - 1
    return (
        f'<figure class="player"><div class="frames">{frames}</div><div class="controls">'
        '<button type="button" data-does="play" aria-label="play the steps">&#9654;</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" data-does="step" aria-label="step"></div>'
        f'<figcaption>the way to the first one: state and estimate, step <b class="note">{len(steps)}</b> of {len(steps)}'
        "</figcaption></figure>"
    )


def _spread(samples: list[Tensor]) -> str:
    source, largest = spread_map(samples)
    return _figure("spread", source, f"up to {largest} of 255")


def _figure(caption: str, source: str, note: str = "") -> str:
    text = f"{escape(caption)} <b>{escape(note)}</b>" if note else escape(caption)
    return f'<figure><img alt="{escape(caption)}" src="{source}"><figcaption>{text}</figcaption></figure>'


def _row(figures: Sequence[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>'


def _card(name: str, model: Model, seconds: float, content: str, told: str) -> str:
    outputs = getattr(model.module, "outputs", {})
    calls = [(key, each.num_network_calls) for key, each in outputs.items() if each.num_network_calls]
    cost = ", ".join(f"{key} {calls:g}" for key, calls in calls)
    more = f" &middot; {escape(told)}" if told else ""
    return (
        f'<section class="card"><h3>{escape(name)}</h3><p class="cost">{seconds:.2f} s &middot; network calls: {cost}{more}</p>'
        f"{content}</section>"
    )


def _db(image: Tensor, truth: Tensor | None, hole_HW: Tensor | None = None) -> str:
    """Return the PSNR of an image, in the hole alone where there is one; empty where the truth is not known."""
    if truth is None:
        return ""
    truth = truth.expand_as(image)
    if hole_HW is None:
        return f"{float(psnr(image[None].float(), truth[None])):.1f} dB"
    inside = (image[:, hole_HW].float()[None, :, :, None], truth[:, hole_HW][None, :, :, None])
    return f"{float(psnr(*inside)):.1f} dB"
