import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from nerve_fast import InputError
from nerve_fast.refiners import PAMR, pamr


@pytest.fixture
def image(generator):
    """``(3, 7, 9)`` of few colours, so that some windows are flat."""
    return torch.randint(0, 3, (3, 7, 9), generator=generator).double() / 4


@pytest.fixture
def maps(make_prior):
    return make_prior(7, 9, 4).permute(2, 0, 1).contiguous()


def pil(image):
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def by_loops(image, maps, iterations, dilations):
    """The definition, a pixel, a neighbour and a channel at a time."""
    _, height, width = image.shape
    weights = {}
    for i in range(height):
        for j in range(width):
            near = [
                (min(max(i + y * d, 0), height - 1), min(max(j + x * d, 0), width - 1))
                for d in dilations
                for y in (-1, 0, 1)
                for x in (-1, 0, 1)
                if (y, x) != (0, 0)
            ]
            scores = []
            for place in near:
                score = 0
                for channel in image:
                    window = [channel[p].item() for p in near] + [channel[i, j].item()] * len(
                        dilations
                    )
                    spread = np.std(window, ddof=1)
                    score -= abs(channel[i, j].item() - channel[place].item()) / (
                        1e-8 + 0.1 * spread
                    )
                scores.append(math.exp(score / 3))
            weights[i, j] = [
                (place, s / sum(scores)) for place, s in zip(near, scores, strict=True)
            ]
    for _ in range(iterations):
        moved = torch.zeros_like(maps)
        for (i, j), places in weights.items():
            for place, weight in places:
                moved[:, i, j] += weight * maps[(slice(None), *place)]
        maps = moved
    return maps


@pytest.mark.parametrize("dilations", [(1,), (1, 3), (8, 16)])
def test_it_agrees_with_loops_over_neighbours(image, maps, dilations):
    torch.testing.assert_close(
        pamr(image, maps, 3, dilations), by_loops(image, maps, 3, dilations), rtol=1e-9, atol=1e-9
    )


def test_maps_are_resized_to_the_image_before(image, maps):
    coarse = maps[:, ::2, ::3]
    whole = interpolate(coarse[None], (7, 9), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(pamr(image, coarse, 0, (1,)), whole)
    torch.testing.assert_close(pamr(image, coarse, 2, (1,)), pamr(image, whole, 2, (1,)))


def test_a_refiner_works_at_the_images_pixels_with_the_fields_settings(generator, make_prior):
    pixels = torch.randint(0, 256, (3, 20, 40), generator=generator) / 255
    coarse = make_prior(3, 5, 4, dtype=torch.float32).permute(2, 0, 1)
    refined = PAMR()(pil(pixels), coarse)
    assert refined.shape == (4, 20, 40)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, pamr(pixels, coarse, 10, (8, 16)))
    assert (refined >= 0).all()
    torch.testing.assert_close(refined.sum(0), torch.ones(20, 40))


def test_it_may_see_what_clip_sees_brought_back_up(generator, make_prior):
    """mmcv's size (a factor on both sides, half up), OpenCV's filter, then bilinear."""
    levels = torch.randint(0, 256, (3, 41, 80), generator=generator)
    image = pil(levels / 255)
    coarse = make_prior(3, 5, 4, dtype=torch.float32).permute(2, 0, 1)
    # A side halves: of each place the two pixels around it count alike.
    halves = levels[:, :40].unflatten(1, (20, 2)).unflatten(3, (40, 2)).double().mean((2, 4))
    refined = PAMR(2, (1, 3), seen=20)(image.crop((0, 0, 80, 40)), coarse)
    seen = interpolate(halves.round()[None] / 255, (40, 80), mode="bilinear")[0]
    expected = pamr(seen.float(), coarse, 2, (1, 3))
    assert (refined - expected).abs().mean() < 0.01
    assert (refined - PAMR(2, (1, 3))(image.crop((0, 0, 80, 40)), coarse)).abs().mean() > 0.01
    assert PAMR(2, (1, 3), seen=7)(image, coarse).shape == (4, 41, 80)


def test_constant_maps_stay(image):
    constant = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)[:, None, None].expand(3, 7, 9)
    torch.testing.assert_close(pamr(image, constant, 10, (1, 2)), constant)


def test_permuting_labels_permutes_the_result(image, maps):
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        pamr(image, maps[order], 4, (1, 2)), pamr(image, maps, 4, (1, 2))[order]
    )


def test_brightness_and_contrast_of_a_channel_change_nothing(image, maps):
    factor = torch.tensor([3.0, 0.5, 1.7], dtype=torch.float64)[:, None, None]
    # Up to the 1e-8 beside the standard deviation.
    torch.testing.assert_close(
        pamr(image * factor - 0.4, maps, 4, (1, 2)), pamr(image, maps, 4, (1, 2)), rtol=0, atol=1e-5
    )


def test_labels_snap_to_the_edge_of_a_colour():
    # The edge of colours lies at column 20, that of the labels at 24.
    image = torch.zeros(3, 40, 40)
    image[:, :, 20:] = 1
    maps = torch.zeros(2, 40, 40)
    maps[0, :, :24] = 1
    maps[1, :, 24:] = 1
    label_map = pamr(image, maps, 10, (4, 8)).argmax(0)
    assert torch.equal(label_map, image[0].long())


def test_chunks_of_labels_change_nothing_and_no_other_tensor_is_as_large(
    image, maps, monkeypatch, recorder
):
    image = image.repeat(1, 4, 4)
    many = maps.repeat(10, 1, 1)
    whole = pamr(image, many, 3, (1, 2))
    monkeypatch.setattr(sys.modules["nerve_fast.refiners.pamr"], "CHUNK_BYTES", 1)
    with recorder:
        chunked = pamr(image, many, 3, (1, 2))
    torch.testing.assert_close(chunked, whole)
    *_, weights, largest = sorted(recorder.sizes())
    assert largest == whole.numel()
    assert weights <= 2 * 16 * image[0].numel()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": -1}, "iterations is -1; expected a whole number, 0 or more"),
        ({"iterations": 2.5}, "iterations is 2.5; expected a whole number, 0 or more"),
        ({"dilations": ()}, "dilations is empty; expected distances in pixels"),
        ({"dilations": (8, 0)}, "a dilation is 0; expected a whole number, 1 or more"),
        ({"seen": 0}, "seen is 0; expected a whole number, 1 or more"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        PAMR(**settings)


def test_maps_of_several_images_are_refused(image, maps):
    with pytest.raises(InputError, match=r"shape \(1, 4, 7, 9\); expected \(K, h, w\)"):
        PAMR()(pil(image), maps[None])
