"""What stands on the page, and where."""

import functools
import html
from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from nerve_fast.app import downloads, pictures
from nerve_fast.app.examples import Example
from nerve_fast.app.settings import MOST_STEPS, AppSettings
from nerve_fast.config import NerveConfig

STYLE = Path(__file__).with_name("page.css")

HINT = {
    True: "Type words and press Enter, or name a thing and click on it.",
    False: "Name a thing, click on it, and go on with the next one.",
}


class Layout:
    """The page's components, which do nothing yet.

    Args:
        settings: of the app.
        gallery: the examples.

    Attributes:
        blocks: Gradio's.
    """

    def __init__(self, settings: AppSettings, gallery: Sequence[Example]):
        self._settings = settings
        # Files that no session removes, such as uploads that were broken off.
        self.blocks = gr.Blocks(title="nerve-fast", analytics_enabled=False, delete_cache=(60, 900))
        with self.blocks:
            with gr.Row(elem_id="main"):
                with gr.Column(elem_id="inputs", min_width=280):
                    self._lay_inputs()
                with gr.Column(elem_id="view", min_width=280):
                    self._lay_view()
                with gr.Column(elem_id="settings", min_width=280):
                    self._lay_settings(settings.config_for(words=settings.words))
            self.gallery = gr.Gallery(
                [(one.thumbnail, one.name) for one in gallery],
                label="Examples",
                columns=7,
                height="auto",
                allow_preview=False,
                object_fit="contain",
                interactive=False,
                buttons=[],
                elem_id="gallery",
            )

    def _lay_inputs(self) -> None:
        gr.Markdown("### nerve-fast")
        # Of any type: what is no image is said by what reads it.
        self.upload = gr.File(label="Image", height=130, elem_id="upload")
        self.words = gr.Textbox(
            label="Words",
            info="“;” between classes, “,” between synonyms of one",
            placeholder="cat, kitten; dog; grass",
            visible=self._settings.words,
            max_lines=4,
            elem_id="words",
        )
        self.go = gr.Button(
            "Segment", variant="primary", visible=self._settings.words, elem_id="go"
        )
        self.label = gr.Dropdown(
            label="What you click on",
            info="write or choose a label, then click on the picture",
            choices=[],
            value="thing",
            allow_custom_value=True,
            elem_id="label",
        )
        with gr.Row():
            self.undo = gr.Button("Undo click", size="sm", min_width=100, elem_id="undo")
            self.clear = gr.Button("Clear clicks", size="sm", min_width=100, elem_id="clear")

    def _lay_view(self) -> None:
        self.picture = gr.Image(
            label="Picture",
            show_label=False,
            type="filepath",
            interactive=False,
            buttons=["fullscreen"],
            elem_id="picture",
        )
        self.message = gr.HTML(
            note("Drop an image, or take one of the examples.", HINT[self._settings.words]),
            elem_id="message",
        )
        last = self._settings.config_for(words=self._settings.words).steps
        with gr.Row():
            self.step = gr.Slider(
                0,
                last,
                last,
                step=1,
                label="Step of the walk",
                buttons=[],
                min_width=240,
                elem_id="step",
            )
            self.kind = gr.Radio(
                list(pictures.KINDS),
                value=pictures.KINDS[0],
                label="Show",
                min_width=320,
                elem_id="kind",
            )
        self.legend = gr.HTML(elem_id="legend")

    def _lay_settings(self, config: NerveConfig) -> None:
        with gr.Accordion("Settings", open=True, elem_id="tuning"):
            self.alpha = _slider("alpha", "α: moving on", 0, 1, config.alpha, 0.01)
            self.beta = _slider("beta", "β: global part", 0, 1, config.beta, 0.01)
            self.length = _slider("length", "L: steps", 0, MOST_STEPS, config.steps, 1)
            self.temperature = _slider(
                "temperature",
                "τ: temperature",
                *(0.005, 0.3, config.temperature, 0.005),
                visible=config.rule.exponential,
            )
            self.threshold = _slider("threshold", "Threshold", 0, 1, 0, 0.01)
            self.reset = gr.Button("Default settings", size="sm", elem_id="reset")
        with gr.Accordion("Download", open=True, elem_id="download"):
            known = downloads.formats()
            self.format = gr.Dropdown(
                [(about, name) for name, about in known.items()],
                value=next(iter(known)),
                label="Format",
                elem_id="format",
            )
            self.make = gr.Button("Make the file", size="sm", elem_id="make")
            self.file = gr.File(label="File", visible=False, interactive=False, elem_id="file")


def _slider(name: str, label: str, least: float, most: float, value, step: float, **more):
    return gr.Slider(least, most, value, step=step, label=label, buttons=[], elem_id=name, **more)


def note(*texts: str) -> str:
    said = "<br>".join(html.escape(text) for text in texts if text)
    return f'<div class="nf-note">{said}</div>'


@functools.cache
def style() -> str:
    """The page's own style sheet."""
    return STYLE.read_text(encoding="utf-8")
