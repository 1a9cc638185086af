"""The page: what it answers, in its own functions and in a browser, and what it keeps to itself."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from generative.export import read_network
from launch.commands import demo
from launch.errors import UserError
from launch.options import experiments
from triptych.demo import SHIPPED, answers
from triptych.demo.page import label_buttons, seed_of, served
from triptych.demo.pictures import MAX_SIDE, address, received, received_hole

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def models() -> dict[str, triptych.Model]:
    """The models that come with the package, drawing in few steps."""
    loaded = {path.name: triptych.load(path) for path in SHIPPED}
    for model in loaded.values():
        if "generate" in model.tasks:
            model.module.sampler = replace(model.module.sampler, num_steps=2)
    return loaded


def of_task(models: dict[str, triptych.Model], task: str) -> dict[str, triptych.Model]:
    return {name: model for name, model in models.items() if task in model.tasks}


def test_the_models_of_the_package_are_small_and_do_all_three(models: dict[str, triptych.Model]) -> None:
    assert all(of_task(models, task) for task in ("restore", "inpaint", "generate"))
    files = [file for path in SHIPPED for file in path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8_000_000
    for path in SHIPPED:
        card = (path / "README.md").read_text()
        assert re.search(r"^\| command \| python train\.py experiment=\w+", card, re.MULTILINE)
        experiment = read_network(path / "model.safetensors")[1]["experiment"]
        assert f"\n# {experiment}\n" in card
        assert experiment in experiments()  # and no name of its own, which nobody else knows
    for model in of_task(models, "restore").values():
        picture = model.examples[0]
        clean = torch.from_numpy(np.array(Image.open(picture))).float() / 127.5 - 1
        degraded = model.degrade(picture, "noise", kind="torch").picture
        mean = model.restore(degraded, 0, kind="torch").mean
        assert (mean - clean).square().mean() < 0.2 * (degraded - clean).square().mean()


def test_severity_goes_from_mild_to_severe_whichever_way_its_numbers_go(models: dict[str, triptych.Model]) -> None:
    model = next(iter(of_task(models, "restore").values()))
    clean = model.examples[0]
    whole = np.asarray(Image.open(clean), dtype=float)

    def change(name: str, severity: float | None) -> tuple[float, triptych.DegradedPicture]:
        degraded = model.degrade(clean, name, severity)
        return float(((np.asarray(degraded.picture) - whole) ** 2).mean()), degraded

    for name, key, mild, severe in (("noise", "std", 0.3, 1.0), ("jpeg", "quality", 30, 5), ("block", "size", 6, 14)):
        (least, mildest), (most, severest), (evaluated, _) = (change(name, each) for each in (0.0, 1.0, None))
        assert least < evaluated < most
        assert (mildest.settings[key], severest.settings[key]) == (mild, severe)
        assert (mildest.hole is not None) == (name == "block")
    hole = change("block", 1.0)[1].hole
    assert hole.sum() == 14**2
    assert not np.array_equal(*(np.asarray(model.degrade(clean, "noise", seed=seed).picture) for seed in (0, 1)))
    for wrong, message in (
        ({"degradation": "nois"}, "nois is no degradation: did you mean"),
        ({"severity": 2}, "from 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            model.degrade(clean, **wrong)


def test_a_colour_picture_has_noise_in_each_channel_also_for_a_grey_model(models: dict[str, triptych.Model]) -> None:
    grey = Image.new("L", (40, 40), 128)
    for model in of_task(models, "restore").values():
        noisy = model.degrade(grey.convert("RGB"), "noise", kind="numpy").picture
        assert len(np.unique(noisy.reshape(-1, 3), axis=0)) > 100
        assert (np.ptp(noisy, axis=2) > 0).mean() > 0.5
        image = model.degrade(grey, "noise", kind="torch").picture
        assert image.shape == (model.channels, 40, 40)
        assert torch.equal(image, image[:1].expand_as(image))


def test_answers_show_pictures_figures_and_steps(models: dict[str, triptych.Model]) -> None:
    restorers = of_task(models, "restore")
    clean = received(address(Image.open(next(iter(restorers.values())).examples[0])))
    shown = answers.restored(restorers, clean, "noise", 0.5, 0, "auto")
    again = answers.restored(restorers, clean, "noise", 0.5, 0, "auto")
    assert re.sub(r"[\d.]+ s ", "", shown) == re.sub(r"[\d.]+ s ", "", again)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown)
    assert [re.sub(" <b.*", "", each) for each in captions] == [
        "before | after", "sample 1 to mean", "given", "truth", "mean", *(f"sample {i}" for i in range(1, 5)), "spread",
    ]  # fmt: skip
    decibels = [float(each) for each in re.findall(r"([\d.]+) dB", re.search(r'data-notes="([^"]*)"', shown)[1])]
    assert len(decibels) == 11
    noted = dict(re.findall(r"<figcaption>([\w ]+) <b>([\d.]+) dB</b>", shown))
    assert (decibels[0], decibels[-1]) == (float(noted["sample 1"]), float(noted["mean"]))
    assert " dB" not in answers.restored(restorers, clean, None, 0.5, 0, "auto")  # the truth is not known
    fillers = of_task(models, "inpaint")
    filler = max(fillers.values(), key=lambda model: model.channels)
    scene = received(address(Image.open(filler.examples[0])))
    hole = np.zeros(scene.pixels.shape[:2], bool)
    hole[8:14, 8:14] = True
    shown = answers.filled(fillers, scene, torch.from_numpy(hole), 0, "auto")
    assert shown.count('<section class="card">') == len(fillers)
    assert shown.count("<figcaption>filling") == 4 * len(fillers)
    assert 'class="player"' in shown
    first = re.search(r'alt="filling 1" src="data:image/png;base64,([^"]+)"', shown)[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))))
    assert np.array_equal(pixels[~hole], scene.pixels[~hole])
    drawers = of_task(models, "generate")
    shown = answers.drawn(drawers, "red cube, blue sphere", 2.0, 0)
    assert shown.count("<figcaption>drawing") == 4 * len(drawers)
    for model in drawers.values():
        assert model.module.guidance.scale != 2.0  # that of the call alone
        steps = model.steps(labels="red cube", seed=3, guidance_scale=2.0)
        assert len(steps) == 2
        (image,) = model.draw("red cube", seed=3, guidance_scale=2.0)
        assert np.array_equal(np.asarray(steps[-1].estimate), np.asarray(image))
        with pytest.raises(UserError, match="magenta"):
            model.steps(labels="magenta cube")
        hidden, model.module.label_dropout = model.module.label_dropout, None
        with pytest.raises(UserError, match=r"guidance\.scale=2 .*label_dropout"):
            model.draw("red cube", guidance_scale=2.0)
        model.module.label_dropout = hidden


def test_noise_reaches_the_models_as_it_was_drawn(
    models: dict[str, triptych.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model = next(iter(of_task(models, "restore").items()))
    given: list[torch.Tensor] = []
    restore = model.restore
    monkeypatch.setattr(model, "restore", lambda picture, *a, **k: given.append(picture) or restore(picture, *a, **k))
    clean = received(address(Image.open(model.examples[0])))
    answers.restored({name: model}, clean, "noise_sigma", 1.0, 0, "auto")
    assert torch.equal(given[0], model.degrade(clean.image, "noise_sigma", 1.0, seed=0, kind="torch").picture)
    assert given[0].abs().max() > 1.2


def test_names_of_labels_are_text_in_a_template() -> None:
    """Gradio makes functions of templates, and the names come with a folder, which may be from somebody else."""
    evil = ["`+alert(1)+` ${alert(2)}", "`+alert(1)+` {{value}}", '\\u0061 ${a}"><script>', "@children"]
    for names in (evil[:2], evil):
        template = label_buttons(names)
        assert not re.search(r"[`\\${}@]|<script", template)
        assert [html.unescape(name) for name in re.findall(r'data-name="([^"]*)"', template)] == names


@pytest.mark.parametrize("value", [0, 7, 1_000_000, 999_999_999.0, -1, 1e9, 1.5, None, math.nan, math.inf, "3"])
def test_seeds_are_whole_numbers(value: Any) -> None:
    if isinstance(value, int | float) and 0 <= value < 1e9 and value != 1.5:
        assert seed_of(value) == value
    else:
        with pytest.raises(UserError, match="whole number from 0 to 999999999"):
            seed_of(value)


def test_what_a_browser_sends_is_bounded_and_refused_in_one_sentence() -> None:
    large = Image.new("RGBA", (700, 300), (255, 0, 0, 0))
    picture = received(address(large))
    assert picture.size == (MAX_SIDE, round(300 * MAX_SIDE / 700))
    assert (picture.pixels == 255).all()  # transparent is seen over white
    for sent, message in (
        (None, "no picture yet"),
        ("data:image/png;base64," + "A" * 20_000_000, "larger than 10 MB"),
        ("data:image/png;base64,QUJD", "cannot be used as a picture: it is in no format that is read"),
        ("data:,%%%", "cannot be used as a picture"),
        ("file:///etc/passwd", "no picture yet"),
    ):
        with pytest.raises(UserError, match=message):
            received(sent)
    nothing, all_of_it = (address(Image.new("RGBA", (256, 110), (0, 0, 0, opacity))) for opacity in (0, 255))
    for sent, message in ((None, "no hole yet"), (nothing, "no hole yet"), (all_of_it, "whole picture")):
        with pytest.raises(UserError, match=message):
            received_hole(sent, picture)


def test_wrong_command_lines_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "lr=1,seed=2").mkdir()
    for arguments, message in (
        (["run=nowhere"], "run=nowhere: there is no such run folder"),
        ([f"run={tmp_path},nowhere"], f"run={tmp_path} is no run folder"),
        ([f"run={tmp_path / 'lr=1,seed=2'},nowhere"], "run=.*/lr=1,seed=2 is no run folder"),
        (["share=true"], r"share=true is nothing that python demo.py takes"),
        (["port=0"], "port=0 must be a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            demo.main(arguments)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio", reason="the page needs pip install -e '.[demo]'")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the test of the page drives Chromium with playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def url(models: dict[str, triptych.Model]) -> Iterator[str]:
    pytest.importorskip("gradio", reason="the page needs pip install -e '.[demo]'")
    with served(models) as address_of_page:
        yield address_of_page


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_answers_in_a_browser(width: int, url: str, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(url)

    page.click("#restore")
    page.wait_for_selector("#restored .card")
    page.locator('#restored [data-does="blend"]').fill("10")
    over = page.locator("#restored .over")
    assert over.evaluate("each => each.style.opacity") == "1"
    page.locator('#restored [data-does="compare"]').fill("100")
    assert page.locator("#restored .before").evaluate("each => each.style.clipPath") == "inset(0px 0% 0px 0px)"
    Image.new("RGB", (400, 300), "teal").save(tmp_path / "dropped.png")
    page.locator('#restore-picture input[type="file"]').set_input_files(tmp_path / "dropped.png")
    page.wait_for_function("document.querySelector('#restore-picture .said').textContent.startsWith('256 x 192')")
    (tmp_path / "none.png").write_text("no picture")
    page.locator('#restore-picture input[type="file"]').set_input_files(tmp_path / "none.png")
    page.wait_for_selector("text=it is in no format that is read")
    assert not page.locator("#restore-picture canvas").is_visible()  # nor is one there for the model
    page.locator('#restore-picture input[type="file"]').set_input_files(tmp_path / "dropped.png")
    page.wait_for_selector("#restore-picture canvas")

    page.get_by_role("tab", name="Fill a hole").click()
    page.click("#fill")
    page.wait_for_selector("text=There is no hole yet")
    page.wait_for_selector(".toast-body", state="detached")  # on a phone it covers the picture for some seconds
    page.locator("#fill-picture canvas").scroll_into_view_if_needed()
    box = page.locator("#fill-picture canvas").bounding_box()
    assert box["width"] > 200
    assert box["x"] + box["width"] <= width
    place = [(box["x"] + box["width"] * share, box["y"] + box["height"] * share) for share in (0.4, 0.6)]
    page.mouse.move(*place[0])
    page.mouse.down()
    page.mouse.move(*place[1], steps=6)
    page.mouse.up()
    page.click("#fill")
    page.wait_for_selector("#filled .card")
    assert page.locator("#filled figure:has-text('filling')").count() == 4
    player = page.locator("#filled .player")
    player.locator('[data-does="step"]').fill("0")
    assert player.locator(".frame:visible").count() == 1
    player.locator('[data-does="play"]').click()
    page.wait_for_function("Number(document.querySelector('#filled .player .note').textContent) > 2")

    page.get_by_role("tab", name="Draw").click()
    page.get_by_role("button", name="blue sphere").click()
    page.click("#draw")
    page.wait_for_selector("#drawn .card")
    assert "gray cube, blue sphere" in page.inner_text("#drawn .cost")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()

    hosts = {urlparse(each).netloc for each in asked if not each.startswith(("data:", "blob:"))}
    assert hosts == {urlparse(url).netloc}
    assert not faults
    assert not [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]


def test_only_this_machine_is_answered(url: str) -> None:
    place = urlparse(url)
    assert place.hostname == "127.0.0.1"
    for other in {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {
        "127.0.0.1"
    }:
        with socket.socket() as connection:
            assert connection.connect_ex((other, place.port)) != 0


def test_a_taken_port_is_one_sentence(
    models: dict[str, triptych.Model], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("INITIAL_PORT_VALUE", urlparse(url).port), ("TRY_NUM_PORTS", 1)):
        monkeypatch.setattr(f"gradio.http_server.{name}", value)
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ["GRADIO_TEMP_DIR"])  # each page has one of its own
    for port, message in ((urlparse(url).port, "port=.* is taken"), (None, "the first ports from 7860 on are taken")):
        with pytest.raises(UserError, match=message), served(models, port):
            pass


def test_several_at_once_are_not_mixed(models: dict[str, triptych.Model]) -> None:
    restorers = of_task(models, "restore")
    clean = received(address(Image.open(next(iter(restorers.values())).examples[0])))

    def shown(seed: int) -> str:
        return re.sub(r"[\d.]+ s ", "", answers.restored(restorers, clean, "noise", 0.5, seed, "auto"))

    alone = [shown(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(shown, [*range(4), *range(4)])) == alone * 2
