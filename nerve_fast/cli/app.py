"""The command ``app``: a page in the browser."""

import signal
import sys

from nerve_fast.cli import flags
from nerve_fast.errors import InputError

LEFT_OUT = ("global_keys", "tolerance")
"""Settings of the graph stage that another flag sets, or that a number of steps does not use."""

LOCAL = ("127.0.0.1", "localhost", "::1")


def add_app(commands) -> None:
    """Add ``app`` to the subparsers of the command line."""
    command = commands.add_parser(
        "app",
        help="a page in the browser: words, clicks, the walk step by step",
        description="Serves a page on this machine until it is interrupted. It needs the extra "
        "`app`, and no network.",
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)"
    )
    command.add_argument(
        "--port", type=int, metavar="N", help="(default: 7860, or the next one that is free)"
    )
    command.add_argument(
        "--no-words", action="store_true", help="load no CLIP: clicks alone, which need none"
    )
    flags.add_models(command)
    flags.add_large(command)
    flags.add_prior(command)
    flags.add_config(command, leave_out=LEFT_OUT, seeds=True)


def _run(options) -> int:
    if options.port is not None and not 1 <= options.port <= 65_535:
        raise InputError(f"--port is {options.port}; expected a number from 1 to 65535")
    given = flags.config_given(options, leave_out=LEFT_OUT)
    # transformers and diffusers take seconds to import; mistakes above should not.
    from nerve_fast.app.server import need_gradio, serve
    from nerve_fast.app.settings import AppSettings

    need_gradio()
    names = ("resolution", "max_memory", "global_keys", "max_key_error", "tile", "overlap")
    settings = AppSettings(
        models=flags.models_of(options),
        words=not options.no_words,
        prior=flags.prior_of(options),
        config=given,
        **{name: getattr(options, name) for name in names},
    )
    if options.host not in LOCAL:
        print(
            f"note: whoever can reach {options.host} can use the page; it asks for no password",
            file=sys.stderr,
        )
    # So that `kill` too ends it in order.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(settings, host=options.host, port=options.port, say=_say)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
