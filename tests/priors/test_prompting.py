import numpy as np
from PIL import Image

from nerve_fast.priors.prompting import prompted


def test_outside_is_blurred_and_grey_and_an_ellipse_is_red():
    draw = np.random.default_rng(3)
    pixels = draw.integers(0, 256, (24, 31, 3), dtype=np.uint8)
    image, mask = Image.fromarray(pixels), np.zeros((24, 31), dtype=bool)
    mask[6:15, 10:21] = True
    weights = np.exp(-((np.arange(15) - 7) ** 2) / (2 * 2.6**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(pixels.astype(float), ((7, 7), (7, 7), (0, 0)), mode="reflect")
    for prompts in (("blur",), ("gray",), ("blur", "gray")):
        found = np.asarray(prompted(image, mask, prompts)).astype(int)
        assert (found[mask] == pixels[mask]).all()
        for y, x in ((0, 0), (5, 10), (23, 30)):
            own = pixels[y, x].astype(float)
            if "blur" in prompts:
                own = (weights[..., None] * padded[y : y + 15, x : x + 15]).sum((0, 1))
            if "gray" in prompts:
                own = np.full(3, 0.114 * own[0] + 0.587 * own[1] + 0.299 * own[2])
            assert np.abs(found[y, x] - own).max() <= 1.01
    circled = np.asarray(prompted(image, mask, ("circle",)))
    red = (circled == [255, 0, 0]).all(-1)
    assert red[[10, 10, 6, 14], [10, 20, 15, 15]].all()
    assert not red[10, 15]
    assert (circled[~red] == pixels[~red]).all()
    # The corners are at each 30 degrees, with straight lines between them.
    assert red[8, 19]
    assert red[12, 11]
    assert 12 <= red.sum() <= 30
    nothing = prompted(image, np.zeros_like(mask), ("circle",))
    assert (np.asarray(nothing) == pixels).all()
