"""SD 2.1 and CLIP ViT-L/14 in their real configurations with random weights: shapes and stamina."""

import copy

import pytest
import torch
from PIL import Image

from nerve_fast.bench.harness.full_size import full_size_pipe


@pytest.fixture(scope="module")
def pipe(own_cache):
    pipe = copy.copy(full_size_pipe())
    full_size_pipe.cache_clear()
    pipe.backend = "reference"
    return pipe


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(512, 512), (768, 512)])
def test_the_pipeline_runs_at_full_size(pipe, width, height):
    image = Image.effect_noise((width, height), 60).convert("RGB")
    out = pipe(image, ["cat", "dog", "grass"])
    assert pipe.graph.layers == tuple(
        f"up_blocks.3.attentions.{i}.transformer_blocks.0.attn1" for i in range(3)
    )
    assert out.label_map.shape == (height, width)
    assert out.prior.shape == (3, height // 8, width // 8)
    torch.testing.assert_close(out.probabilities.sum(0), torch.ones(height, width))
