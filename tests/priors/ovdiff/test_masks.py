import pytest
import torch
from scipy.ndimage import binary_erosion

from nerve_fast.priors.ovdiff.masks import at_pixels, eroded, places, scaled, support_masks


def box(top, bottom, left, right, size=(8, 8)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def attribution(**values):
    found = torch.full((8, 8), values.get("rest", 0.0))
    found[:4], found[4:] = values["top"], values["bottom"]
    return found


def test_the_best_proposal_is_the_foreground_and_what_is_worst_the_background():
    seen = attribution(top=0.9, bottom=0.1)
    seen[3] = 0.8
    upper, lower = box(0, 3, 0, 8), box(4, 8, 0, 8)
    foreground, background = support_masks([lower, upper], seen)
    assert torch.equal(foreground, upper)
    # The row between belongs to no proposal, and is neither.
    assert torch.equal(background, box(5, 8, 0, 8))


def test_what_no_proposal_has_is_one_more():
    seen = attribution(top=0.9, bottom=0.1)
    foreground, background = support_masks([box(0, 4, 0, 8)], seen)
    assert torch.equal(foreground, box(0, 4, 0, 8))
    assert torch.equal(background, box(5, 8, 0, 8))
    # Where it is the best it is the foreground.
    foreground, background = support_masks([box(4, 8, 0, 8)], seen)
    assert torch.equal(foreground, box(0, 4, 0, 8))


def test_hidden_proposals_are_no_background():
    seen = torch.full((8, 8), 0.15)
    seen[2:6, 2:6] = 0.19
    seen[3:5, 3:5] = 0.8
    inner, middle = box(3, 5, 3, 5), box(2, 6, 2, 6)
    foreground, background = support_masks([middle, inner], seen)
    assert torch.equal(foreground, inner)
    assert torch.equal(background, eroded(~middle))
    # The worst is hidden altogether by the one before it, which is the background.
    seen[3:5, 3:5] = 0.1
    whole = torch.ones(8, 8, dtype=torch.bool)
    ring = middle & ~inner
    foreground, background = support_masks([whole, ring, inner], seen)
    assert torch.equal(foreground, ring)
    assert torch.equal(background, eroded(~ring))


def test_backgrounds_are_where_the_attribution_is_low():
    seen = attribution(top=0.9, bottom=0.1)
    seen[6:] = 0.5
    _, background = support_masks([box(0, 4, 0, 8)], seen)
    # Rows 4 and 5, of which erosion leaves none.
    assert not background.any()


def test_without_proposals_both_are_thresholds():
    seen = torch.linspace(0, 1, 64).view(8, 8)
    for proposals in ([], [torch.zeros(8, 8, dtype=torch.bool)]):
        foreground, background = support_masks(proposals, seen)
        assert torch.equal(foreground, seen > 0.5)
        assert torch.equal(background, seen < 0.2)


def test_empty_proposals_do_not_count():
    seen = attribution(top=0.9, bottom=0.1)
    given = [torch.zeros(8, 8, dtype=torch.bool), box(0, 4, 0, 8), box(4, 8, 0, 8)]
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            support_masks(given, seen), support_masks(given[1:], seen), strict=True
        )
    )


def test_masks_are_eroded_as_morphology_has_it(generator):
    mask = torch.rand(13, 17, generator=generator) > 0.2
    expected = binary_erosion(mask.numpy(), border_value=True)
    assert torch.equal(eroded(mask), torch.from_numpy(expected))


def test_attributions_go_from_0_to_1(generator):
    maps = torch.rand(3, 5, 5, generator=generator) + 7
    for found in (scaled(maps), at_pixels(maps, 20)):
        torch.testing.assert_close(found.amin((1, 2)), torch.zeros(3))
        torch.testing.assert_close(found.amax((1, 2)), torch.ones(3))
    assert at_pixels(torch.ones(1, 4, 4), 8).max() == 0


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (3, 3)])
def test_a_place_is_in_a_mask_that_one_of_its_nearest_pixels_is_in(grid, generator):
    mask = torch.rand(12, 12, generator=generator) > 0.8
    found = places(mask, grid)
    step = 12 // grid[0]
    for y in range(grid[0]):
        for x in range(grid[1]):
            middle = [step * place + (step - 1) / 2 for place in (y, x)]
            rows, columns = ({int(value), int(value + 0.5)} for value in middle)
            near = any(mask[row, column] for row in rows for column in columns)
            assert found[y, x] == near
