"""Starts the page on an address, and stops it: what it may take, and what it leaves behind."""

import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from nerve_fast.app.examples import examples
from nerve_fast.app.sessions import Sessions
from nerve_fast.app.settings import AppSettings
from nerve_fast.backbones.loading import hide_loading_bars
from nerve_fast.errors import InputError
from nerve_fast.pipeline import NervePipeline

PORT = 7860
LARGEST_FILE = 100 << 20
"""Bytes of an upload."""

MOST_WAITING = 64
"""Requests that wait for their turn; more are refused with a sentence."""

POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
"""Content-Security-Policy: the browser loads nothing from elsewhere, whatever the page asks for."""


class OwnOnly:
    """ASGI middleware that adds :data:`POLICY` to what is served."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        async def answered(message):
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self._app(scope, receive, answered)


def need_gradio() -> None:
    """Raise an :class:`InputError` where the extra ``app`` is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError('gradio is not installed; get it: pip install "nerve-fast[app]"')


def load(settings: AppSettings) -> NervePipeline:
    """The pipeline of an app.

    Raises:
        InputError: a model is not available, or a setting does not fit it.
    """
    hide_loading_bars()
    models = settings.models
    return NervePipeline.from_pretrained(
        models.models,
        clip=models.clip if settings.words else False,
        diffusion=models.diffusion,
        graph=models.graph,
        device=models.device,
        dtype=models.dtype,
        prior=settings.prior,
        backend=models.backend,
        layers=models.layers,
        timestep=models.timestep,
        compile=models.compile,
    )


def serve(
    settings: AppSettings,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    say: Callable[[str], None] = print,
    until: threading.Event | None = None,
) -> None:
    """Load the models, open the page, and serve it until it is interrupted.

    Args:
        settings: of the app.
        host: the address that is listened on.
        port: ``None`` is :data:`PORT` or the next free one.
        say: told the address when the page can be opened.
        until: ends it when it is set.

    Raises:
        InputError: gradio is not installed, a model is not available, or the address cannot be
            listened on.
    """
    need_gradio()
    pipe = load(settings)
    with tempfile.TemporaryDirectory(prefix="nerve-fast-app-", ignore_cleanup_errors=True) as name:
        # Read when Gradio is imported: nothing is reported to anyone, all files lie in one folder.
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=name, HF_HUB_DISABLE_TELEMETRY="1"
        )
        sessions = Sessions(pipe, settings, Path(name))
        _run(sessions, settings, host, port, say, until or threading.Event())


def _run(sessions, settings, host, port, say, until) -> None:
    import gradio as gr
    from starlette.middleware import Middleware

    from nerve_fast.app.layout import style
    from nerve_fast.app.page import Page

    blocks = Page(sessions, settings, examples()).blocks
    blocks.queue(max_size=MOST_WAITING, api_open=False, default_concurrency_limit=1)
    try:
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            show_error=False,
            max_file_size=LARGEST_FILE,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            app_kwargs={"middleware": [Middleware(OwnOnly)]},
            # Without a font of Google's.
            theme=gr.themes.Default(
                primary_hue="indigo",
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ),
            css=style(),
        )
    except OSError as error:
        wanted = f"port {port}" if port else f"a port from {PORT} on"
        raise InputError(
            f"{host} cannot be listened on at {wanted} ({error}); take another --host or --port"
        ) from None
    try:
        say(f"nerve-fast: {url}")
        until.wait()
    finally:
        blocks.close(verbose=False)
