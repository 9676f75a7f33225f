import math

import pytest
import torch
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.priors import maskclip, naclip

GRID = (3, 4)
TOKENS = 1 + GRID[0] * GRID[1]


@pytest.fixture
def layer(generator):
    config = CLIPVisionConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16)
    config._attn_implementation = "eager"
    layer = CLIPEncoderLayer(config).double().eval()
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer


@pytest.fixture
def x(generator):
    return torch.randn(2, TOKENS, 8, generator=generator, dtype=torch.float64)


def test_maskclip_is_the_layer_with_each_token_attending_to_itself(layer, x):
    only_self = torch.full((TOKENS, TOKENS), -torch.inf, dtype=x.dtype).fill_diagonal_(0)
    with torch.no_grad():
        torch.testing.assert_close(
            maskclip(layer, x, GRID), layer(x, only_self.expand(2, 1, -1, -1))
        )


def test_naclip_agrees_with_loops_over_heads_and_patches(layer, x):
    omega = torch.zeros(TOKENS, TOKENS, dtype=x.dtype)
    for i in range(TOKENS - 1):
        for j in range(TOKENS - 1):
            (yi, xi), (yj, xj) = divmod(i, GRID[1]), divmod(j, GRID[1])
            omega[1 + i, 1 + j] = math.exp(-((yi - yj) ** 2 + (xi - xj) ** 2) / (2 * 5.0**2))
    attention = layer.self_attn
    with torch.no_grad():
        y = layer.layer_norm1(x)
        k, v = attention.k_proj(y), attention.v_proj(y)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            logits = k[..., head] @ k[..., head].mT / math.sqrt(4) + omega
            heads.append(logits.softmax(-1) @ v[..., head])
        expected = attention.out_proj(torch.cat(heads, dim=-1))
        torch.testing.assert_close(naclip(layer, x, GRID), expected, rtol=1e-6, atol=1e-6)
