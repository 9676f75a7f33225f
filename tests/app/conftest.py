import pytest
from PIL import Image

from nerve_fast.app.session import Session
from nerve_fast.app.settings import AppSettings
from nerve_fast.tiny.scenes import generate


@pytest.fixture(scope="session")
def scene():
    """``(image, mask, names)`` of a small scene."""
    return generate(1_000_003, 64)


@pytest.fixture
def session(pipe, tmp_path):
    """A session without an image."""
    return Session(pipe, AppSettings(), tmp_path / "session")


@pytest.fixture
def opened(session, scene):
    """A session with the scene."""
    session.open(scene[0], "scene.png")
    return session


@pytest.fixture
def picture(tmp_path):
    """``picture(name, mode, size)``: the path of a file with an image of this kind."""

    def make(name, mode="RGB", size=(40, 30), **options):
        path = tmp_path / name
        Image.new(mode, size, *options.pop("color", [])).save(path, **options)
        return path

    return make
