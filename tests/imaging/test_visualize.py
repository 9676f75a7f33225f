import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.imaging import visualize


def test_palette_colours_stay_apart_and_do_not_depend_on_the_count():
    colours = visualize.palette(171).astype(int)
    assert np.array_equal(colours[:21], visualize.palette(21))
    distance = np.abs(colours[:, None] - colours).sum(-1)
    assert distance[~np.eye(171, dtype=bool)].min() > 0
    few = visualize.palette(8).astype(int)
    assert np.abs(few[:, None] - few).sum(-1)[~np.eye(8, dtype=bool)].min() > 60


@pytest.mark.parametrize("count", [1, 2, 3, 16, 255, 256, 300])
def test_label_maps_come_back_from_the_file(tmp_path, count):
    """With the value of no label too, which Pillow cuts off where a palette is short."""
    label_map = np.arange(6 * 50).reshape(6, 50) % (count + 1) - 1
    names = [f"name {i}" for i in range(count)]
    visualize.save_label_map(tmp_path / "a.png", label_map, names)
    with Image.open(tmp_path / "a.png") as image:
        nothing = 255 if count < 256 else 65535
        assert np.array_equal(np.asarray(image), np.where(label_map < 0, nothing, label_map))
        assert image.text["labels"].split("\n") == names


def test_overlay_shows_image_and_colours_and_lists_what_occurs():
    image = Image.new("RGB", (300, 200), "black")
    label_map = np.zeros((200, 300), dtype=np.int64)
    label_map[:, 150:] = 2
    picture = visualize.overlay(image, label_map, ["cat", "dog", "grass"], opacity=1.0)
    colours = visualize.palette(3)
    assert picture.getpixel((10, 10)) == tuple(colours[0])
    assert picture.getpixel((290, 10)) == tuple(colours[2])
    assert picture.width == 300
    assert picture.height > 200
    legend = np.asarray(picture)[200:].reshape(-1, 3).tolist()
    assert colours[0].tolist() in legend
    assert colours[2].tolist() in legend
    assert colours[1].tolist() not in legend


def test_heat_maps_get_brighter_with_probability():
    image = Image.new("RGB", (64, 64), "grey")
    low, high = np.full((4, 4), 0.05, np.float32), np.full((4, 4), 0.95, np.float32)
    sheet = visualize.heat_maps(image, np.stack([low, high]), ["low", "high"], width=64)
    line = sheet.height - 64
    left, right = sheet.getpixel((32, line + 32)), sheet.getpixel((32 + 70, line + 32))
    assert sum(right) > sum(left) + 200


def test_steps_strip_has_a_panel_for_each_stage():
    image = Image.new("RGB", (40, 20), "grey")
    maps = np.stack([np.ones((2, 4)), np.zeros((2, 4))]).astype(np.float32)
    strip = visualize.steps_strip(
        image, maps, {1: maps, 10: maps[::-1]}, ["a", "b"], truth=np.ones((20, 40)), width=80
    )
    panel = 80 + visualize.MARGIN
    assert strip.width >= 5 * panel - visualize.MARGIN
    row = visualize.FONT_SIZE + visualize.MARGIN + 20
    centre = [strip.getpixel((i * panel + 40, row)) for i in range(5)]
    assert centre[1] == centre[2]
    assert centre[3] == centre[4]
    assert len(set(centre)) == 3


def test_pictures_of_one_pixel_and_of_long_labels_are_drawn():
    image = Image.new("RGB", (1, 1))
    names = ["a very long label that is wider than the picture " * 3, "köttbullar, 肉"]
    assert visualize.overlay(image, np.zeros((1, 1), np.int64), names).width > 160
    probabilities = np.full((2, 1, 1), 0.5, np.float32)
    assert visualize.heat_maps(image, probabilities, names).size[0] > 256


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (1, 3000), (3, 50)])
def test_pictures_of_any_shape_are_bounded(monkeypatch, size):
    monkeypatch.setattr(visualize, "MAX_WIDENED", 1 << 20)
    width, height = size
    image = Image.new("RGB", size, "grey")
    names = ["a name that is wider than the image, by far", "b" * 100_000]
    maps = np.stack([np.full((4, 1), 0.7), np.full((4, 1), 0.3)]).astype(np.float32)
    label_map = np.zeros((height, width), np.int64)
    label_map[(height + 1) // 2 :] = 1
    sheet = visualize.heat_maps(image, maps, names)
    strip = visualize.steps_strip(image, maps, {1: maps}, names, truth=label_map)
    overlay = visualize.overlay(image, label_map, names)
    assert max(sheet.height, strip.height) < 8 * 256 + 200
    for picture in (sheet, strip, overlay):
        assert picture.width * picture.height < max(1 << 22, 4 * width * 60)
    # Both halves are drawn, however few rows there are.
    colours = np.asarray(visualize.overlay(image, label_map, names, opacity=1.0))[:, 0]
    assert colours[0].tolist() == visualize.palette(2)[0].tolist()
    if height > 1:
        shown = (colours == visualize.palette(2)[1]).all(-1).sum()
        assert shown >= min(height, (1 << 20) // 2500) // 2 - 1


def test_stripes_of_an_overlay_are_the_whole(monkeypatch):
    chance = np.random.default_rng(0)
    image = Image.fromarray(chance.integers(0, 256, (37, 50, 3), np.uint8))
    label_map = chance.integers(0, 3, (37, 50))
    whole = visualize.overlay(image, label_map, ["a", "b", "c"])
    colours = Image.fromarray(visualize.palette(3)[label_map])
    assert whole.crop((0, 0, 50, 37)).tobytes() == Image.blend(image, colours, 0.55).tobytes()
    monkeypatch.setattr(visualize, "STRIPE_PIXELS", 170)
    assert visualize.overlay(image, label_map, ["a", "b", "c"]).tobytes() == whole.tobytes()


def test_a_coloured_image_and_a_legend_by_itself(tmp_path):
    image = Image.new("RGB", (30, 20), "black")
    label_map = np.zeros((20, 30), np.int64)
    label_map[:, 15:], label_map[:, 25:] = 1, -1
    picture = visualize.coloured(image, label_map, ["cat", "dog"], opacity=1.0)
    assert picture.size == image.size
    colours = [tuple(colour) for colour in visualize.palette(2).tolist()]
    assert [picture.getpixel((x, 9)) for x in (3, 20, 28)] == [*colours, (255, 255, 255)]
    for unlabelled in (False, True):
        visualize.save_legend(tmp_path / "a.png", ["cat", "dog"], unlabelled=unlabelled)
        with Image.open(tmp_path / "a.png") as legend:
            assert legend.width == visualize.LEGEND_WIDTH
            shown = {legend.getpixel((x, 12)) for x in range(legend.width)}
        assert set(colours) <= shown
    assert visualize.PNG_MARK in (tmp_path / "a.png").read_bytes()


def test_a_picture_is_written_in_the_format_of_its_name(tmp_path):
    picture = Image.new("RGB", (4, 3), "red")
    for name, format in (("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP")):
        visualize.save_picture(picture, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.format == format
    for name in ("a", "a.txt", "a.png.x"):
        with pytest.raises(InputError, match="no format that can be written; expected .png"):
            visualize.save_picture(picture, tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 3
