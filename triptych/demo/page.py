"""The page itself: a tab for what restores, one for what fills holes, one for what draws.

It answers on this machine alone, fetches nothing from elsewhere, and keeps nothing: pictures come and go within the requests,
each of which says all that it needs, so that several people can use it at once.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import torch

from datamodules.labels import COLOURS
from files.packages import needed
from launch.errors import UserError, as_user_error, one_line
from launch.use.degrading import known_degradations
from triptych.demo import answers
from triptych.demo.pictures import MAX_BYTES, address, as_image, image_address, received, received_hole
from triptych.model import Model

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the first import of gradio

HERE = "127.0.0.1"
SHOWN = 5.0  # seconds of a message, which covers the top of a phone
SCRIPT, STYLE = ((Path(__file__).parent / f"page.{kind}").read_text() for kind in ("js", "css"))
AS_IT_IS = "as it is"
MAX_EXAMPLES = 16
MAX_SEED = 999_999_999
TILES = {"in tiles of the training size": "auto", "shrunk to the training size": "none"}
# What means something where Gradio reads templates: in Handlebars, then in a template string of JavaScript, or in "@children".
NOT_IN_TEMPLATE = re.compile(r"[`\\${}@]")
# A browser that keeps to it fetches nothing from elsewhere, whatever a library of the page asks for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; font-src 'self' data:"
)


class Policy:
    """Middleware that tells browsers to fetch nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, with one header more."""

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, sent if scope["type"] == "http" else send)


@contextmanager
def served(runs: Mapping[str, Model], port: int | None = None) -> Iterator[str]:
    """Answer on this machine for a while.

    Args:
        runs: Models by name.
        port: Port on this machine; None for the first free one from 7860 on.

    Yields:
        Address of the page.

    Raises:
        UserError: Gradio is missing, or the port is taken.
    """
    with as_user_error(), needed("gradio", extra="demo", by="python demo.py"):
        import gradio as gr
        from starlette.middleware import Middleware
    with tempfile.TemporaryDirectory(prefix="triptych-demo-") as temporary:
        os.environ["GRADIO_TEMP_DIR"] = temporary  # what is posted past the page ends with it
        page = page_of(runs)
        system = {
            "font": ["system-ui", "sans-serif"],
            "font_mono": ["ui-monospace", "monospace"],
        }  # none from elsewhere
        try:
            _, url, _ = page.launch(
                server_name=HERE, server_port=port, share=False, prevent_thread_lock=True, quiet=True, footer_links=[],
                max_file_size=MAX_BYTES, ssr_mode=False, enable_monitoring=False, theme=gr.themes.Default(**system), css=STYLE,
                app_kwargs={"middleware": [Middleware(Policy)]},
            )  # fmt: skip
        except OSError as error:
            taken = "the first ports from 7860 on are" if port is None else f"port={port} is"
            raise UserError(f"{taken} taken: name a free one with port=PORT.") from error
        try:
            yield url
        finally:
            page.close(verbose=False)


def page_of(runs: Mapping[str, Model]) -> Any:
    """Build the page of some models, as Gradio's ``Blocks``."""
    import gradio as gr

    def tabs(task: str) -> dict[str, Model]:
        return {name: model for name, model in runs.items() if task in model.tasks}

    with gr.Blocks(title="Triptych", analytics_enabled=False, delete_cache=(60, 60)) as page:
        gr.Markdown(
            "# Triptych\nSmall generative models of images, on this machine: nothing leaves it, nothing is kept."
        )
        if restorers := tabs("restore"):
            with gr.Tab("Restore"):
                _restore_tab(gr, restorers)
        if fillers := tabs("inpaint"):
            with gr.Tab("Fill a hole"):
                _fill_tab(gr, fillers)
        if drawers := tabs("generate"):
            with gr.Tab("Draw"):
                _draw_tab(gr, drawers)
    return page


def said_in_one_sentence(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show what went wrong as one sentence, without a traceback."""

    @wraps(function)
    def answered(*arguments: Any) -> Any:
        import gradio as gr

        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), SHOWN, print_exception=False, title="That does not work") from error
        except Exception as error:
            raise gr.Error(f"The model failed: {one_line(error)}", title="That does not work") from error

    return answered


def _restore_tab(gr: Any, runs: dict[str, Model]) -> None:
    own = list(dict.fromkeys(name for model in runs.values() for name in model.degradations))
    others = [(f"{name} (not trained on)", name) for name in known_degradations() if name not in own]
    with gr.Row():
        with gr.Column(min_width=280):
            picture = _picker(gr, runs, "restore-picture", drawing=False)
        with gr.Column(min_width=280):
            degradation = gr.Dropdown([AS_IT_IS, *own, *others], value=own[0] if own else AS_IT_IS, label="Degradation")
            severity = gr.Slider(0, 1, value=0.5, step=0.05, label="Severity, of the range of training")
            who, tile, seed = _who(gr, runs), *_tile_and_seed(gr)
            button = gr.Button("Restore", variant="primary", elem_id="restore")
    shown = _shown(gr, "restored")

    @said_in_one_sentence
    def restore(value: Any, name: str, severity: float, who: list[str], tile: str, seed: float) -> str:
        given = received(_of(value, "picture"))
        return answers.restored(
            _asked(runs, who), given, None if name == AS_IT_IS else name, severity, seed_of(seed), TILES[tile]
        )

    button.click(restore, [picture, degradation, severity, who, tile, seed], shown, api_visibility="private")


def _fill_tab(gr: Any, runs: dict[str, Model]) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            picture = _picker(gr, runs, "fill-picture", drawing=True)
        with gr.Column(min_width=280):
            who, tile, seed = _who(gr, runs), *_tile_and_seed(gr)
            button = gr.Button("Fill", variant="primary", elem_id="fill")
    shown = _shown(gr, "filled")

    @said_in_one_sentence
    def fill(value: Any, who: list[str], tile: str, seed: float) -> str:
        given = received(_of(value, "picture"))
        hole = torch.from_numpy(received_hole(_of(value, "hole"), given))
        return answers.filled(_asked(runs, who), given, hole, seed_of(seed), TILES[tile])

    button.click(fill, [picture, who, tile, seed], shown, api_visibility="private")


def _draw_tab(gr: Any, runs: dict[str, Model]) -> None:
    names = list(
        dict.fromkeys(name for model in runs.values() if model.module.uses_labels for name in model.label_names)
    )
    scales = [getattr(getattr(model.module, "guidance", None), "scale", None) for model in runs.values()]
    scale = next((each for each in scales if each is not None), None)
    with gr.Row():
        with gr.Column(min_width=280):
            labels = _component(gr, "buttons", names[:1], html_template=label_buttons(names), elem_id="labels")
        with gr.Column(min_width=280):
            guidance = gr.Slider(1, 8, value=scale or 1, step=0.5, label="Guidance", visible=scale is not None)
            who, seed = _who(gr, runs), gr.Number(0, precision=0, minimum=0, label="Seed")
            button = gr.Button("Draw", variant="primary", elem_id="draw")
    shown = _shown(gr, "drawn")

    @said_in_one_sentence
    def draw(chosen: Any, scale: float, who: list[str], seed: float) -> str:
        known = [name for name in chosen if name in names] if isinstance(chosen, list) else []
        if names and not known:
            raise UserError("Nothing is chosen yet: press one to three of the buttons.")
        return answers.drawn(_asked(runs, who), ", ".join(known) or None, scale, seed_of(seed))

    button.click(draw, [labels, guidance, who, seed], shown, api_visibility="private")


def _component(gr: Any, kind: str, value: Any = None, **settings: Any) -> Any:
    """Return an element of the page with its part of the script."""
    script = f'const KIND = "{kind}";\n{SCRIPT}'
    return gr.HTML(value, js_on_load=script, elem_classes="triptych", apply_default_css=False, **settings)


def _picker(gr: Any, runs: Mapping[str, Model], name: str, drawing: bool) -> Any:
    paths = [path for model in runs.values() for path in model.examples][:MAX_EXAMPLES]
    pictures = [image_address(as_image(received(address(_opened(path))))) for path in paths]
    examples = "".join(
        f'<img data-does="example" alt="test image {i}" src="{src}">' for i, src in enumerate(pictures, 1)
    )
    tools = (
        '<div class="tools"><label>brush <input class="brush" type="range" min="3" max="40" value="14"></label>'
        '<button type="button" data-does="undo">undo</button><button type="button" data-does="clear">clear</button></div>'
    )
    template = (
        f'<div class="surface{" drawing" if drawing else ""}"><canvas></canvas>'
        '<div class="hint">drop a picture here</div></div>'
        f'<p class="said" role="status"></p>{tools if drawing else ""}<div class="examples">{examples}</div>'
        '<label class="file">choose a file<input type="file" accept="image/*"></label>'
    )
    picker = _component(gr, "picker", None, html_template=template, elem_id=name, drawing=drawing)

    @said_in_one_sentence
    def uploaded(value: Any) -> dict[str, Any]:
        return {"picture": image_address(as_image(received(_of(value, "file")))), "hole": None}

    picker.upload(uploaded, picker, picker, show_progress="hidden", api_visibility="private")
    return picker


def _opened(path: Path) -> Any:
    from files.images import read_picture

    return read_picture(path).image


def label_buttons(names: list[str]) -> str:
    """Return buttons: a table where the names are all pairs of two words, as a colour and a shape, else a list."""
    pairs = [name.split() for name in names]
    rows, columns = ([*dict.fromkeys(pair[i] for pair in pairs if len(pair) == 2)] for i in (0, 1))
    if not names:
        return "<p>This model draws without labels.</p>"
    if len(names) != len(rows) * len(columns):
        return f'<div class="free">{"".join(_label_button(name, name, name == names[0]) for name in names)}</div>'
    cells = [[_label_button(f"{a} {b}", b, f"{a} {b}" == names[0], a) for b in columns] for a in rows]
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
    return f'<table class="labels">{lines}</table>'


def in_template(text: str) -> str:
    """Write text so that it stands in a template as the text that it is, wherever it comes from: as HTML, and as no code."""
    return NOT_IN_TEMPLATE.sub(lambda sign: f"&#{ord(sign.group())};", escape(text))


def _label_button(name: str, text: str, pressed: bool, colour: str | None = None) -> str:
    known = COLOURS.get(colour or "")
    swatch = f'<span class="swatch" style="background: rgb{known}"></span>' if known else ""
    text = text if known or colour is None else name
    return (
        f'<button type="button" data-name="{in_template(name)}" aria-label="{in_template(name)}" '
        f'aria-pressed="{str(pressed).lower()}">{swatch}{in_template(text)}</button>'
    )


def _shown(gr: Any, name: str) -> Any:
    return _component(gr, "answer", "", elem_id=name)


def _who(gr: Any, runs: Mapping[str, Model]) -> Any:
    """Return the choice of who answers: at first all that see colours, or grey, as the first one does."""
    first = next(iter(runs.values()))
    alike = [name for name, model in runs.items() if model.channels == first.channels]
    return gr.CheckboxGroup([*runs], value=alike, label="Who answers", visible=len(runs) > 1)


def _asked(runs: Mapping[str, Model], who: Any) -> dict[str, Model]:
    asked = {name: model for name, model in runs.items() if isinstance(who, list) and name in who}
    if not asked:
        raise UserError("Nobody is asked: choose who answers.")
    return asked


def _tile_and_seed(gr: Any) -> tuple[Any, Any]:
    return gr.Radio(list(TILES), value=next(iter(TILES)), label="Larger pictures"), gr.Number(
        0, precision=0, minimum=0, label="Seed"
    )


def _of(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def seed_of(value: Any) -> int:
    if not isinstance(value, int | float) or not 0 <= value <= MAX_SEED or value != int(value):
        raise UserError(f"The seed must be a whole number from 0 to {MAX_SEED}.")
    return int(value)
