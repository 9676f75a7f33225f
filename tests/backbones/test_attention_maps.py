import math

import pytest
import torch

from nerve_fast.backbones import attention_maps
from nerve_fast.backbones.attention_maps import attention_map, reduce_entropy_

TOKENS = 20


def by_loops(q, k):
    """The mean over heads, an entry at a time."""
    heads, tokens, head_dim = q.shape
    attention = torch.zeros(tokens, tokens, dtype=torch.float64)
    for head in range(heads):
        for i in range(tokens):
            numerators = [
                math.exp(float(q[head, i] @ k[head, j]) / math.sqrt(head_dim))
                for j in range(tokens)
            ]
            for j in range(tokens):
                attention[i, j] += numerators[j] / sum(numerators) / heads
    return attention


def reduced_by_loops(attention, step_size):
    """An entry at a time, with the entropy's gradient by finite differences."""

    def entropy(a):
        return -a * math.log(a)

    tokens = len(attention)
    reduced = torch.zeros_like(attention)
    for j in range(tokens):
        largest = max(attention[:, j].tolist())
        for i in range(tokens):
            a = attention[i, j].item() / largest
            gradient = (entropy(a * 1.0001) - entropy(a * 0.9999)) / (0.0002 * a)
            # The authors take the decimal logarithm.
            reduced[i, j] = max(a - step_size / math.log(10) * gradient, 0)
    for i in range(tokens):
        reduced[i] /= sum(reduced[i].tolist())
    return reduced


def test_the_map_is_the_mean_of_the_heads_softmax(make_qk):
    q, k = make_qk(3, TOKENS, 4)
    attention = attention_map(q, k)
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.double(), by_loops(q, k), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("step_size", [0.002, 0.015, 0.2])
def test_its_entropy_is_reduced_by_a_step_against_the_gradient(make_qk, step_size):
    q, k = make_qk(2, TOKENS, 4)
    attention = by_loops(3 * q, 3 * k)
    expected = reduced_by_loops(attention, step_size)
    torch.testing.assert_close(
        reduce_entropy_(attention, step_size), expected, rtol=1e-5, atol=1e-8
    )


def entropies(attention):
    return torch.special.entr(attention).sum(1).mean()


def test_larger_steps_leave_less_entropy(make_qk):
    q, k = make_qk(2, 64, 4)
    attention = attention_map(2 * q, 2 * k)
    reduced = [entropies(reduce_entropy_(attention.clone(), step)) for step in (0, 0.015, 0.2)]
    assert reduced[0] > reduced[1] > reduced[2]


def test_a_row_that_nothing_is_left_of_keeps_its_label(monkeypatch):
    # A row at a time.
    monkeypatch.setattr(attention_maps, "CPU_TILE_BYTES", 1)
    # To each key another query pays a thousand times more attention than the last one does.
    attention = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [5e-4, 1e-3, 5e-4]])
    reduced = reduce_entropy_(attention, 0.2)
    assert torch.equal(reduced, torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0, 0, 1]]))
