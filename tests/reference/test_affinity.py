import pytest
import torch

from nerve_fast.reference import cosine_affinity, local_affinity


def test_cosine_affinity_agrees_with_torch_pair_by_pair(make_qk):
    q, k = make_qk(2, 3, 6, 5)
    expected = torch.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    torch.testing.assert_close(cosine_affinity(q, k), expected)


def test_cosine_affinity_sums_heads_with_their_weights(make_qk, make_prior):
    q, k = make_qk(2, 3, 6, 5)
    w = make_prior(2, 3)
    A = cosine_affinity(q, k)
    expected = w[:, 0, None, None] * A[:, 0] + w[:, 1, None, None] * A[:, 1]
    expected = expected + w[:, 2, None, None] * A[:, 2]
    torch.testing.assert_close(cosine_affinity(q, k, w), expected)


def test_cosine_affinity_of_zero_vectors_is_zero(make_qk):
    q, k = make_qk(1, 4, 3)
    q[0, 2] = 0
    assert (cosine_affinity(q, k)[0, 2] == 0).all()


def test_cosine_affinity_ignores_the_length_of_q_and_k(make_qk):
    q, k = make_qk(2, 6, 5)
    torch.testing.assert_close(cosine_affinity(7 * q, k / 3), cosine_affinity(q, k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(make_qk, dtype):
    q, k = make_qk(2, 6, 5, dtype=dtype)
    A = cosine_affinity(q, k)
    assert A.dtype == torch.float32
    torch.testing.assert_close(A, cosine_affinity(q.float(), k.float()))


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("grid", [(3, 5), (1, 7), (4, 1), (1, 1)])
def test_local_affinity_agrees_with_loops_over_the_window(make_qk, grid, radius):
    h, w = grid
    q, k = make_qk(1, h * w, 4)
    A = cosine_affinity(q, k, torch.ones(1, dtype=q.dtype))
    values = local_affinity(q, k, grid, torch.ones(1, dtype=q.dtype), radius, 0.3)
    for y in range(h):
        for x in range(w):
            window = iter(values[y * w + x])
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    value = next(window)
                    if dy == dx == 0:
                        assert value == 0.3
                    elif 0 <= y + dy < h and 0 <= x + dx < w:
                        assert value == A[y * w + x, (y + dy) * w + x + dx]
                    else:
                        assert value == 0


def test_local_affinity_without_weights_keeps_the_heads(make_qk):
    q, k = make_qk(2, 3, 6, 4)
    heads = local_affinity(q, k, (2, 3), None, 1, 1.0)
    assert heads.shape == (2, 3, 6, 9)
    one = torch.tensor([0.0, 1.0, 0.0], dtype=q.dtype).expand(2, 3)
    torch.testing.assert_close(local_affinity(q, k, (2, 3), one, 1, 1.0), heads[:, 1])
