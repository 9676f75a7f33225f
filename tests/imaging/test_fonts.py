import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from nerve_fast.imaging import fonts, visualize

CACHES = (fonts.pieces, fonts.font_of, fonts._listed, fonts._loaded, fonts._warn, fonts.usual)


@pytest.fixture(autouse=True)
def fresh():
    """What is found and said here is forgotten, and nothing of it is known."""
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture
def squares(tmp_path):
    """A font whose one letter is 肉, a filled square."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyph = pen.glyph()
    builder.setupGlyphOrder([".notdef", "meat"])
    builder.setupCharacterMap({ord("肉"): "meat"})
    empty = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None).glyph()
    builder.setupGlyf({".notdef": empty, "meat": glyph})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "meat": (1000, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    return str(tmp_path / "squares.ttf")


def drawn(text):
    picture = Image.new("RGB", (200, 30), "white")
    fonts.draw(ImageDraw.Draw(picture), (2, 2), text)
    return np.asarray(picture)[..., 0]


@pytest.mark.parametrize("fontconfig", [True, False])
def test_a_letter_is_drawn_in_a_font_that_has_it(fontconfig, squares, monkeypatch, caplog):
    listed = [(squares, 0, [(ord("肉"), ord("肉"))])] if fontconfig else None
    monkeypatch.setattr(fonts, "_listed", lambda: listed)
    monkeypatch.setattr(fonts, "BY_NAME", (squares,))
    # As where the usual font is Pillow's own.
    monkeypatch.setattr(fonts, "USUAL", ("no such font.ttf",))
    texts = [piece.text for piece in fonts.pieces("köttbullar 肉肉, b")]
    assert texts[-2:] == ["肉肉", ", b"]
    assert fonts.length("肉肉") == 2 * fonts.SIZE
    dark = (drawn("肉") < 128).sum()
    assert dark == pytest.approx((0.8 * fonts.SIZE) ** 2, rel=0.3)
    fonts.say_what_is_missing(["肉", "b"])
    assert caplog.messages == []


def test_what_no_font_has_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_listed", list)
    image, labels = Image.new("RGB", (300, 20)), ["grass", "\U000f0000\ue123"]
    label_map = np.zeros((20, 300), np.int64)
    label_map[10:] = 1
    # Characters of private use are in no font's table, but they are control characters to no one.
    monkeypatch.setattr(fonts.unicodedata, "category", lambda one: "Lo")
    for _ in range(2):
        visualize.overlay(image, label_map, labels)
    assert len(caplog.messages) == 1
    assert "cannot show \ue123 \U000f0000: no font has them; install one" in caplog.text


def test_without_raqm_joined_letters_are_said(monkeypatch, caplog):
    if fonts.font_of("ق") is None:
        pytest.skip("no font here has Arabic letters")
    monkeypatch.setattr(features, "check", lambda name: False)
    fonts.say_what_is_missing(["قطة", "cat"])
    assert "letter by letter, unjoined and from the left" in caplog.text
    caplog.clear()
    monkeypatch.setattr(features, "check", lambda name: True)
    fonts.say_what_is_missing(["قطة", "cat"])
    assert caplog.messages == []


def test_fontconfigs_list_is_read(monkeypatch, tmp_path):
    line = "{}\t{}\t{}\t/fonts/{}.ttf\t0\t20-7e 4e2d\n"
    said = line.format(200, 0, "", "bold") + "damaged\n" + line.format(80, 0, "", "plain")
    (tmp_path / "fc-list").write_text(f"#!/bin/sh\nprintf '%s' '{said}'\n")
    (tmp_path / "fc-list").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fonts._listed() == [
        ("/fonts/plain.ttf", 0, [(0x20, 0x7E), (0x4E2D, 0x4E2D)]),
        ("/fonts/bold.ttf", 0, [(0x20, 0x7E), (0x4E2D, 0x4E2D)]),
    ]
    fonts._listed.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert fonts._listed() is None


def test_fonts_that_cannot_be_loaded_are_passed_over(tmp_path, monkeypatch):
    (tmp_path / "broken.ttf").write_text("no font")
    monkeypatch.setattr(
        fonts, "_listed", lambda: [(str(tmp_path / "broken.ttf"), 0, [(0, 0x10FFFF)])]
    )
    assert fonts.font_of("\u1a00") is None or isinstance(
        fonts.font_of("\u1a00"), ImageFont.FreeTypeFont
    )
