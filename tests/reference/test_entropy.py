import math

import pytest
import torch

from nerve_fast.reference import entropy_weights, head_entropy


def test_head_entropy_agrees_with_the_sum_written_out(make_qk):
    q, k = make_qk(2, 5, 3)
    expected = []
    for head in range(2):
        rows = []
        for i in range(5):
            logits = [sum(q[head, i, d] * k[head, j, d] for d in range(3)) * 0.7 for j in range(5)]
            total = sum(math.exp(s) for s in logits)
            p = [math.exp(s) / total for s in logits]
            rows.append(-sum(x * math.log(x) for x in p))
        expected.append(sum(rows) / 5)
    torch.testing.assert_close(head_entropy(q, k, 0.7), torch.tensor(expected, dtype=torch.float64))


def test_head_entropy_of_equal_keys_is_log_n(make_qk):
    q, k = make_qk(3, 11, 4)
    k = k[:, :1].expand(3, 11, 4)
    torch.testing.assert_close(head_entropy(q, k), torch.full((3,), math.log(11)).double())


def test_head_entropy_of_a_sure_head_is_zero_and_finite():
    q = 1e4 * torch.eye(6)[None]
    assert head_entropy(q, q).item() == 0


def test_head_entropy_default_scale_is_that_of_attention(make_qk):
    q, k = make_qk(2, 7, 16)
    torch.testing.assert_close(head_entropy(q, k), head_entropy(q, k, 0.25))


def test_entropy_weights_follow_the_formula_and_sum_to_one(make_prior):
    entropy = 5 * make_prior(2, 4)
    weights = entropy_weights(entropy, 1.7)
    expected = torch.exp(-1.7 * entropy)
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("sharpness", [0.0, 1e30])
def test_entropy_weights_range_from_mean_to_single(sharpness):
    weights = entropy_weights(torch.tensor([2.0, 1.0, 3.0]), sharpness)
    expected = [1 / 3] * 3 if sharpness == 0 else [0.0, 1.0, 0.0]
    torch.testing.assert_close(weights, torch.tensor(expected))
