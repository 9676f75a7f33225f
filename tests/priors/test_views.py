import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.priors import PriorConfig, View, view_of
from nerve_fast.priors.resizing import opencv_bilinear
from nerve_fast.priors.views import resized, window_starts


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (336, 224, 112, [0, 112]),
        (337, 224, 112, [0, 112, 113]),
        (224, 224, 112, [0]),
        (100, 224, 112, [0]),
        (500, 224, 112, [0, 112, 224, 276]),
    ],
)
def test_the_last_window_is_shifted_inward(length, window, stride, expected):
    assert window_starts(length, window, stride) == expected


def test_a_window_that_cuts_patches_is_refused(pipe):
    with pytest.raises(ValueError, match="prior window is 60; expected a multiple of CLIP's patch"):
        view_of(pipe.prior.clip, (100, 80), PriorConfig(window=60))


def test_the_protocol_of_the_field_keeps_sides_and_windows_to_the_pixel(pipe):
    config = PriorConfig(resolution=51, protocol="mmseg")
    whole = view_of(pipe.prior.clip, (100, 70), config)
    assert whole == View((73, 51), (0,), (0,), (51, 73), 1)
    # Nor does it know of tiles.
    assert view_of(pipe.prior.clip, (100, 70), config, magnified=(800, 560)) == whole

    config = PriorConfig(resolution=51, window=45, stride=20, protocol="mmseg")
    view = view_of(pipe.prior.clip, (100, 70), config)
    assert view == View((73, 51), (0, 6), (0, 20, 28), (45, 45), 1)

    config = PriorConfig(resolution=51, window=60, stride=30, protocol="mmseg")
    assert view_of(pipe.prior.clip, (100, 70), config) == View((73, 51), (0,), (0, 13), (51, 60), 1)


def test_without_a_resolution_it_is_the_fields_336_for_224(pipe):
    short = pipe.prior.clip.image_size * 3 // 2
    view = view_of(pipe.prior.clip, (200, 100), PriorConfig(protocol="mmseg"))
    assert view.size == (2 * short, short)


@pytest.mark.parametrize(("resolution", "window"), [(5, None), (50, 5)])
def test_less_than_a_patch_is_refused(pipe, resolution, window):
    config = PriorConfig(resolution=resolution, window=window, protocol="mmseg")
    with pytest.raises(InputError, match="less than its patch of 8; set a larger prior resolution"):
        view_of(pipe.prior.clip, (100, 100), config)


def test_each_protocol_has_its_filter(pipe):
    image = Image.effect_noise((90, 60), 80).convert("RGB")
    size = (33, 22)
    fit = resized(pipe.prior.clip, image, size, PriorConfig())
    field = resized(pipe.prior.clip, image, size, PriorConfig(protocol="mmseg"))
    assert np.array_equal(fit, pipe.prior.clip.resized(image, size))
    assert np.array_equal(field, opencv_bilinear(image, size))
    assert not np.array_equal(fit, field)
