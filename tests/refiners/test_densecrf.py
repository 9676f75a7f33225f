import pytest
import torch
from PIL import Image

from nerve_fast.imaging.densecrf import densecrf
from nerve_fast.refiners import REFINERS, DenseCRF

SIZE = (13, 17)


@pytest.fixture
def image(generator):
    """``(3, 13, 17)``, 0 to 255."""
    return torch.randint(0, 256, (3, *SIZE), generator=generator).double()


def test_as_a_refiner_it_works_at_the_images_pixels(image, make_prior):
    assert REFINERS["densecrf"] is DenseCRF
    coarse = make_prior(3, 4, 3, dtype=torch.float32).permute(2, 0, 1)
    picture = Image.fromarray(image.byte().permute(1, 2, 0).numpy())
    refined = DenseCRF(iterations=2)(picture, coarse)
    assert refined.shape == (3, *SIZE)
    torch.testing.assert_close(refined.sum(0), torch.ones(SIZE))
    unchanged = DenseCRF(iterations=0)(picture, coarse)
    expected = torch.nn.functional.interpolate(coarse[None], SIZE, mode="bilinear")[0]
    torch.testing.assert_close(unchanged, expected, rtol=1e-4, atol=1e-5)


def test_memory_covers_what_it_makes(image, make_prior, recorder):
    maps = make_prior(*SIZE, 4).permute(2, 0, 1)
    with recorder:
        densecrf(image.float(), maps.float(), iterations=2)
    assert max(recorder.sizes()) * 8 < DenseCRF().memory(4, SIZE[::-1], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": -1}, "iterations is -1; expected a whole number, 0 or more"),
        ({"weight": -1}, "weight is -1; expected a finite number, 0 or more"),
        ({"colour_spread": 0}, "colour_spread is 0; expected a finite number, 0.1 or more"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF(**settings)
