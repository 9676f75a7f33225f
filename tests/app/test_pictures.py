import re

import numpy as np
import pytest
from PIL import Image

from nerve_fast.app import pictures
from nerve_fast.app.result import Asked
from nerve_fast.errors import InputError
from nerve_fast.imaging.visualize import palette


@pytest.fixture
def result(opened, scene):
    return opened.segment(Asked("; ".join(scene[2])))


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_pictures_are_whole_multiples_of_the_image(result, kind):
    scale = pictures.scale_of(result.out.image)
    assert pictures.SHOWN <= 64 * scale < pictures.SHOWN + 64
    for step in (0, 1, 10):
        assert pictures.drawn(result, step, kind, []).size == (64 * scale, 64 * scale)
    assert pictures.scale_of(Image.new("RGB", (10, 1500))) == 1


def pixels(picture):
    """The picture at the size of the scene."""
    return np.asarray(picture.resize((64, 64), Image.Resampling.NEAREST))


def test_labels_are_blended_in_their_colours(result):
    picture = pixels(pictures.drawn(result, 10, "labels", [])).astype(float)
    image = np.asarray(result.out.image).astype(float)
    colours = palette(len(result.out.labels))[result.label_map(10).numpy()]
    expected = (1 - pictures.OPACITY) * image + pictures.OPACITY * colours
    assert np.abs(picture - expected).max() <= 1


def test_confidence_is_brighter_where_it_is_larger(result):
    picture = pixels(pictures.drawn(result, 10, "confidence", []).convert("L")).astype(float)
    best = result.out.probabilities.max(0).values.numpy()
    order = np.argsort(best.ravel())
    dark, bright = order[: len(order) // 4], order[-len(order) // 4 :]
    assert picture.ravel()[bright].mean() > picture.ravel()[dark].mean()


def test_clicks_are_dots_in_the_colour_of_their_label(opened):
    opened.click("kitten", 20, 30)
    opened.click("dog", 50, 10)
    result = opened.segment(Asked("cat, kitten; dog"))
    drawn = pictures.drawn(result, 10, "image", opened.clicks)
    colours = palette(2)
    scale = pictures.scale_of(opened.image)
    assert drawn.getpixel((20 * scale + scale // 2, 30 * scale + scale // 2)) == tuple(colours[0])
    assert drawn.getpixel((50 * scale + scale // 2, 10 * scale + scale // 2)) == tuple(colours[1])


def test_what_there_is_not_is_refused(result):
    with pytest.raises(InputError, match="show is 'all'; expected one of labels"):
        pictures.drawn(result, 1, "all", [])
    with pytest.raises(InputError, match="step is 11"):
        pictures.drawn(result, 11, "labels", [])


def test_the_legend_says_areas_and_confidences(result):
    text = pictures.legend(result, 10)
    names = re.findall('class="nf-name">([^<]*)<', text)
    areas = [float(area) for area in re.findall(r"<td>([\d.]+)%</td>", text)]
    assert sorted(names) == sorted(result.out.labels)
    assert areas == sorted(areas, reverse=True)
    assert sum(areas) == pytest.approx(100, abs=0.5)
    number = result.out.labels.index(names[0])
    assert f"{result.out.confidences[number]:.2f}</td>" in text


def test_names_in_the_legend_are_no_html(opened):
    result = opened.segment(Asked("<script>alert(1)</script>; b & c", threshold=1.0))
    text = pictures.legend(result, 0)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "b &amp; c" in text
    assert "<i>no label</i>" in text
