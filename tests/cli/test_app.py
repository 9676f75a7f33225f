import pytest

from nerve_fast.app import server
from nerve_fast.cli.main import main
from nerve_fast.priors import PriorConfig


@pytest.fixture
def served(monkeypatch):
    """What the command would serve, as ``[(settings, options)]``."""
    calls = []
    monkeypatch.setattr(server, "need_gradio", lambda: None)
    monkeypatch.setattr(
        server, "serve", lambda settings, **options: calls.append((settings, options))
    )
    return calls


def test_flags_become_settings(served, capsys):
    flags = "--models tiny --prior sclip --resolution 128 --max-memory 2GB --alpha 0.5 --radius 2"
    assert main(["app", *flags.split(), "--port", "8000"]) == 0
    ((settings, options),) = served
    assert options["host"] == "127.0.0.1"
    assert options["port"] == 8000
    assert settings.models.models == "tiny"
    assert settings.words
    assert settings.prior == PriorConfig("sclip")
    assert settings.config == {"alpha": 0.5, "radius": 2}
    assert (settings.resolution, settings.max_memory, settings.global_keys) == (128, "2GB", "auto")
    assert capsys.readouterr().err == ""


def test_clicks_alone_take_no_clip(served, capsys):
    assert main(["app", "--no-words", "--graph", "somewhere"]) == 0
    assert not served[0][0].words
    assert main(["app", "--no-words", "--clip", "somewhere"]) == 2
    assert "--clip is given, and --no-words loads none" in capsys.readouterr().err


def test_an_open_host_is_said(served, capsys):
    assert main(["app", "--host", "0.0.0.0"]) == 0
    assert "whoever can reach 0.0.0.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--port 70000", "expected a number from 1 to 65535"),
        ("--steps none", "steps is None; expected a whole number up to 30"),
        ("--alpha 2", "alpha is 2.0"),
        ("--prior nothing", "nothing"),
    ],
)
def test_mistakes_are_one_line(served, capsys, flags, message):
    assert main(["app", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert served == []


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    assert main(["app", "--models", "tiny"]) == 2
    assert 'pip install "nerve-fast[app]"' in capsys.readouterr().err
