"""What each control of the page does to a session."""

import html
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from nerve_fast.app import downloads, pictures
from nerve_fast.app.examples import Example
from nerve_fast.app.layout import HINT, Layout, note
from nerve_fast.app.result import Asked
from nerve_fast.app.session import Session, words_of
from nerve_fast.app.sessions import Sessions
from nerve_fast.app.settings import AppSettings
from nerve_fast.config import NerveConfig
from nerve_fast.errors import InputError

logger = logging.getLogger(__name__)

WALK: dict[str, Any] = {"concurrency_id": "walk", "concurrency_limit": 1}
"""One image or walk at a time, in the order asked, whoever asks: memory is for one."""

FILES: dict[str, Any] = {"concurrency_id": "files", "concurrency_limit": 1}


class Page(Layout):
    """The page of an app, whose :attr:`blocks` Gradio serves.

    Args:
        sessions: of the app.
        settings: of the app.
        gallery: the examples.
    """

    def __init__(self, sessions: Sessions, settings: AppSettings, gallery: Sequence[Example]):
        super().__init__(settings, gallery)
        self._sessions, self._gallery = sessions, gallery
        with self.blocks:
            self._connect()

    def _connect(self) -> None:
        self._tuning = [self.alpha, self.beta, self.length, self.temperature]
        said = [self.words, *self._tuning, self.threshold, self.step, self.kind]
        view = [self.picture, self.legend, self.message, self.step, self.file]
        all_of_it = [*view, *self._tuning, self.label]

        def on(event, act, inputs, outputs, **how):
            # Numbers come as they are typed; Gradio's own checks would print a traceback.
            usual = {"show_progress": "minimal", "show_progress_on": self.picture}
            # What is asked while something else is done is done after it, in that order.
            how = {**WALK, **usual, "preprocess": False, "trigger_mode": "multiple", **how}
            event(self._guarded(act), inputs, outputs, api_visibility="private", **how)

        inputs = [self.upload, *said]
        # Of a file they are wanted: it must be one that has been uploaded.
        on(self.upload.upload, self._open, inputs, [*all_of_it, self.upload], preprocess=True)
        for event in (self.words.submit, self.go.click):
            on(event, self._segment, said, all_of_it)
        on(self.undo.click, self._undo, said, all_of_it)
        on(self.clear.click, self._clear, said, all_of_it)
        on(self.reset.click, self._reset, said, [*all_of_it, self.threshold])
        on(self.picture.select, self._click, [self.label, *said], all_of_it)
        on(self.gallery.select, self._example, said, [*all_of_it, self.words])
        # While a slider moves, only the latest place counts; its own value is left alone.
        latest: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
        for slider in self._tuning:
            on(slider.input, self._tune, said, view, **latest)
        on(self.threshold.input, self._segment_quietly, said, view, **latest)
        for shown in (self.step, self.kind):
            on(shown.input, self._show, [self.step, self.kind], view[:3], **latest)
        on(self.make.click, self._write, [self.format], [self.file, self.message], **FILES)
        self.blocks.unload(self._leave)

    def _guarded(self, act: Callable[..., dict]) -> Callable[..., dict]:
        """The act on the session of the page that asks; a mistake becomes a sentence."""
        if act.__name__ in ("_click", "_example"):

            def called(event: gr.SelectData, request: gr.Request, *values):
                return self._answer(act, request, event, *values)

            return called

        def plainly(request: gr.Request, *values):
            return self._answer(act, request, *values)

        return plainly

    def _answer(self, act: Callable[..., dict], request: gr.Request, *values) -> dict:
        session = self._sessions.of(request.session_hash or "")
        try:
            return act(session, *values)
        except InputError as error:
            text = str(error)
        except MemoryError:
            text = "there is not enough memory for that; take a smaller image or fewer labels"
        except Exception:
            logger.exception("the page could not do what was asked")
            text = "something went wrong; what it was stands where nerve-fast was started"
        answer: dict[Any, Any] = {self.message: _alert(text)}
        if act.__name__ == "_open":
            answer[self.upload] = None
        return answer

    # What the controls do. Each returns new values by component.

    def _open(self, session: Session, path: str | None, *said) -> dict:
        if path is None:
            raise InputError("no file came; drop an image")
        try:
            session.open(path)
        finally:
            Path(path).unlink(missing_ok=True)
        return {**self._segment(session, *said), self.upload: None}

    def _example(self, session: Session, event: gr.SelectData, words: str, *said) -> dict:
        example = self._gallery[int(event.index)]
        session.open(example.image(), example.name)
        if not self._settings.words:
            for click in example.clicks:
                session.click(*click)
        words = example.words if self._settings.words else ""
        return {**self._segment(session, words, *said), self.words: words}

    def _click(self, session: Session, event: gr.SelectData, label: str | None, *said) -> dict:
        before = session.clicks
        scale = pictures.scale_of(session.image) if session.image else 1
        session.click(label or "", *(place / scale for place in event.index))
        try:
            return {**self._segment(session, *said), self.label: self._labels(session, said, label)}
        except Exception:
            session.clicks = before
            raise

    def _undo(self, session: Session, *said) -> dict:
        session.clicks = session.clicks[:-1]
        return self._segment(session, *said)

    def _clear(self, session: Session, *said) -> dict:
        session.clicks = []
        return self._segment(session, *said)

    def _reset(self, session: Session, *said) -> dict:
        session.tuned = False
        words, *tuning, _, step, kind = said
        return {**self._segment(session, words, *tuning, 0, step, kind), self.threshold: 0}

    def _tune(self, session: Session, *said) -> dict:
        session.tuned = True
        return self._segment_quietly(session, *said)

    def _segment_quietly(self, session: Session, *said) -> dict:
        """A result without new values of the controls, one of which is being moved."""
        answer = self._segment(session, *said)
        view = (self.picture, self.legend, self.message, self.step, self.file)
        return {component: value for component, value in answer.items() if component in view}

    def _segment(self, session: Session, words, *said) -> dict:
        *tuning, threshold, step, kind = said
        words = words or ""
        config = self._config(words, tuning) if session.tuned else None
        last = session.result.last if session.result else None
        result = session.segment(Asked(words, config, _number("the threshold", threshold)))
        config = self._settings.config_for(words=bool(words_of(words)))
        if result is not None:
            config = result.config
            # A step before the last one stays; else the last one is shown, however many there are.
            stays = last is not None and step is not None and step < last
            step = min(int(step), result.last) if stays else result.last
        else:
            step = config.steps
        return {
            **self._show(session, step, kind),
            self.step: gr.Slider(value=step, maximum=max(config.steps or 0, 1)),
            # What was made of the result before is no longer what is seen.
            self.file: gr.File(value=None, visible=False),
            self.alpha: config.alpha,
            self.beta: config.beta,
            self.length: config.steps,
            self.temperature: config.temperature,
            self.label: self._labels(session, (words,)),
        }

    def _show(self, session: Session, step, kind) -> dict:
        result, image = session.result, session.image
        if image is None:
            raise InputError("there is no image; drop one, or take one of the examples")
        if result is None:
            picture, legend = pictures.with_clicks(image, session.clicks, ()), ""
            notes = [session.note, HINT[self._settings.words]]
        else:
            step = min(int(_number("the step", step)), result.last)
            picture = pictures.drawn(result, step, kind, session.clicks)
            legend = pictures.legend(result, step)
            notes = [session.note, *_advice(result.out.labels)]
        return {
            self.picture: str(session.keep(picture)),
            self.legend: legend,
            self.message: note(*notes),
        }

    def _write(self, session: Session, name: str | None) -> dict:
        if session.result is None:
            raise InputError("there is nothing to download; segment an image first")
        path = downloads.write(session.result, name or "", session.empty_folder())
        return {self.file: gr.File(value=str(path), visible=True)}

    def _leave(self, request: gr.Request) -> None:
        self._sessions.close(request.session_hash)

    def _config(self, words: str, tuning: Sequence[float | None]) -> NerveConfig:
        alpha, beta, length, temperature = map(_number, ("α", "β", "L", "τ"), tuning)
        return self._settings.config_for(words=bool(words_of(words))).replace(
            alpha=alpha, beta=beta, steps=int(length), temperature=temperature
        )

    def _labels(self, session: Session, said: Sequence, value: str | None = None):
        choices = session.labels(said[0] or "")
        return gr.Dropdown(choices=choices) if value is None else gr.Dropdown(choices, value=value)


def _number(name: str, value: float | None) -> float:
    if value is None:
        raise InputError(f"{name} is empty; expected a number")
    return value


def _advice(labels: Sequence[str]) -> list[str]:
    if len(labels) > 1:
        return []
    if "," in labels[0]:
        return ["Commas separate synonyms of one class; between classes put “;”."]
    return ["With one label everything has it; add another."]


def _alert(text: str) -> str:
    return f'<div class="nf-alert" role="alert">{html.escape(text)}</div>'
