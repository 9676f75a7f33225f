import math
from functools import reduce

import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from nerve_fast import InputError
from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.refiners import REFINERS, CLIPerDiffusion, attention_chain

GRID = (5, 7)


@pytest.fixture
def features(make_qk):
    q, k = make_qk(3, 35, 4, dtype=torch.float32)
    return GraphFeatures(q[None], k[None], GRID)


def chained(q, k, rows, cut):
    """All maps whole, multiplied."""
    attention = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
    attention = attention / (attention.amax(-2, keepdim=True) + 1e-5)
    attention = attention * (attention >= cut)
    attention = attention / (attention.sum(-1, keepdim=True) + 1e-5)
    return reduce(torch.matmul, attention) @ rows


@pytest.mark.parametrize("cut", [0, 0.1, 0.35])
def test_it_is_the_product_of_all_maps(features, generator, cut):
    rows = torch.randn(35, 4, generator=generator)
    q, k = features.q[0], features.k[0]
    expected = chained(q.double(), k.double(), rows.double(), cut)
    torch.testing.assert_close(
        attention_chain(q, k, rows, cut), expected.float(), rtol=1e-4, atol=1e-5
    )
    if cut:
        assert not torch.allclose(expected.float(), attention_chain(q, k, rows, 0), atol=1e-4)


def test_heads_are_multiplied_in_their_order(features):
    rows = torch.rand(35, 2)
    q, k = features.q[0], features.k[0]
    backwards = attention_chain(q.flip(0), k.flip(0), rows, 0.3)
    assert not torch.allclose(attention_chain(q, k, rows, 0.3), backwards, atol=1e-4)


def test_no_map_is_whole_in_memory(make_qk, recorder):
    q, k = make_qk(2, 1024, 2, dtype=torch.float32)
    with recorder:
        attention_chain(q, k, torch.rand(1024, 3), 0.2)
    assert max(recorder.sizes()) <= 1024**2 / 2


def test_as_a_refiner_maps_of_any_scale_come_to_the_tokens(features):
    assert REFINERS["cliper"] is CLIPerDiffusion
    assert CLIPerDiffusion.linear
    maps = 3 * torch.rand(2, 3, 4)
    refined = CLIPerDiffusion(0.3)(Image.new("RGB", (8, 8)), maps, features)
    rows = interpolate(maps[None], GRID, mode="bilinear")[0].flatten(1).T
    expected = chained(features.q[0], features.k[0], rows, 0.3).T.unflatten(1, GRID)
    torch.testing.assert_close(refined, expected, rtol=1e-4, atol=1e-5)


def test_the_network_sees_a_square_of_the_nearest_pixels():
    levels = torch.arange(24, dtype=torch.uint8).reshape(4, 6, 1).expand(4, 6, 3)
    image = Image.fromarray(levels.contiguous().numpy())
    seen = CLIPerDiffusion(side=3).graph_image(image)
    rows, columns = [int(i * 4 / 3) for i in range(3)], [0, 2, 4]
    expected = [[int(levels[y, x, 0]) for x in columns] for y in rows]
    assert torch.tensor(list(seen.convert("L").tobytes())).reshape(3, 3).tolist() == expected
    assert CLIPerDiffusion(side=None).graph_image(image) is image


def test_it_needs_a_graph_and_a_cut_of_0_or_more():
    with pytest.raises(InputError, match="graph is None; the refiner cliper needs"):
        CLIPerDiffusion()(Image.new("RGB", (8, 8)), torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match=r"cut is -0\.1; expected a finite number, 0 or more"):
        CLIPerDiffusion(cut=-0.1)
