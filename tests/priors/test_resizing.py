import numpy as np
import pytest
from PIL import Image

from nerve_fast.priors.resizing import mmseg_size, opencv_bilinear

# Two rows of random levels, and what cv2.resize(…, interpolation=cv2.INTER_LINEAR) of OpenCV 4.10
# and 5.0 makes of them at 4 × 3 and at 3 × 1 pixels.
LEVELS = [[168, 229, 184, 171, 238, 171, 20], [206, 245, 153, 204, 5, 37, 53]]
AT_4_3 = [[191, 182, 229, 77], [206, 171, 130, 62], [220, 159, 30, 47]]
AT_3_1 = [[220, 188, 81]]


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((500, 375), 336, (448, 336)),
        ((375, 500), 336, (336, 448)),
        ((500, 333), 336, (505, 336)),  # 504.5 is rounded up
        ((100, 50), 336, (672, 336)),
        ((2048, 1024), 560, (1120, 560)),
        ((4000, 300), 336, (2048, 154)),
    ],
)
def test_sizes_are_those_of_mmseg(size, short_side, expected):
    assert mmseg_size(size, short_side) == expected


@pytest.mark.parametrize(("size", "expected"), [((4, 3), AT_4_3), ((3, 1), AT_3_1)])
def test_levels_are_those_of_opencv(size, expected):
    image = Image.fromarray(np.array(LEVELS, dtype=np.uint8)[..., None].repeat(3, axis=2))
    found = np.asarray(opencv_bilinear(image, size))
    assert (found == found[..., :1]).all()
    assert found[..., 0].tolist() == expected


def test_shrinking_looks_at_the_four_nearest_pixels_only():
    levels = np.zeros((8, 8, 3), dtype=np.uint8)
    levels[3:5, 3:5] = 200  # between the places that a quarter of the size reads
    assert not np.asarray(opencv_bilinear(Image.fromarray(levels), (2, 2))).any()
    levels[1:3, 1:3] = 200
    assert np.asarray(opencv_bilinear(Image.fromarray(levels), (2, 2)))[0, 0].tolist() == [200] * 3


def test_channels_and_sides_keep_their_places():
    levels = np.zeros((6, 4, 3), dtype=np.uint8)
    levels[:, 2:, 0], levels[3:, :, 1], levels[..., 2] = 240, 120, 7
    found = np.asarray(opencv_bilinear(Image.fromarray(levels), (8, 12)))
    assert found[0, 0].tolist() == [0, 0, 7]
    assert found[0, -1].tolist() == [240, 0, 7]
    assert found[-1, 0].tolist() == [0, 120, 7]


def test_an_image_of_that_size_stays():
    image = Image.effect_noise((9, 5), 80).convert("RGB")
    assert opencv_bilinear(image, (9, 5)) is image
