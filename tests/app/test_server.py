import asyncio

import pytest

from nerve_fast.app import server
from nerve_fast.app.settings import AppSettings
from nerve_fast.errors import InputError
from nerve_fast.pipeline.settings import ModelSettings


def test_models_are_loaded_as_asked():
    models = ModelSettings(models="tiny", device="cpu")
    assert server.load(AppSettings(models=models)).prior is not None
    assert server.load(AppSettings(models=models, words=False)).prior is None


def test_what_cannot_be_loaded_is_said_before_a_page_opens(monkeypatch):
    monkeypatch.setattr(server, "need_gradio", lambda: None)
    monkeypatch.setattr(server, "_run", lambda *arguments: pytest.fail("a page was opened"))
    with pytest.raises(InputError, match="'nowhere'; expected 'tiny' or an existing folder"):
        server.serve(AppSettings(models=ModelSettings(models="nowhere")))


def test_answers_tell_the_browser_to_load_nothing_from_elsewhere():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    asyncio.run(server.OwnOnly(app)({}, None, send))
    policy = (b"content-security-policy", server.POLICY.encode())
    assert sent[0]["headers"] == [(b"a", b"b"), policy]
    assert sent[1] == {"type": "http.response.body", "body": b""}
