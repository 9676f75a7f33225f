"""Every wrong input is refused with the argument's name, what came and what was expected."""

import re

import pytest
import torch

import nerve_fast as nf


def walk(**changes):
    arguments = {
        "q": torch.rand(2, 6, 4),
        "k": torch.rand(2, 6, 4),
        "prior": torch.rand(6, 3),
        "grid": (2, 3),
        **changes,
    }
    return nf.random_walk(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": [[1.0]]}, TypeError, "q is a list; expected a torch.Tensor (…, H, N, D)"),
        (
            {"q": torch.ones(2, 6, 4).int()},
            TypeError,
            "q has dtype torch.int32; expected a floating",
        ),
        ({"q": torch.rand(6, 4)}, ValueError, "q has shape (6, 4); expected (…, H, N, D)"),
        ({"q": torch.rand(0, 6, 4)}, ValueError, "q has shape (0, 6, 4); expected"),
        ({"q": torch.rand(2, 0, 4)}, ValueError, "q has shape (2, 0, 4); expected"),
        ({"q": torch.rand(2, 6, 0)}, ValueError, "q has shape (2, 6, 0); expected"),
        (
            {"k": torch.rand(2, 5, 4)},
            ValueError,
            "k has shape (2, 5, 4); expected that of q, (2, 6,",
        ),
        ({"k": torch.rand(2, 6, 4).half()}, ValueError, "k has dtype torch.float16; expected that"),
        (
            {"k": torch.rand(2, 6, 4, device="meta")},
            ValueError,
            "k has device meta; expected that of q, cpu",
        ),
        ({"prior": torch.rand(6, 0)}, ValueError, "prior has shape (6, 0); expected (…, N, K)"),
        ({"prior": torch.rand(5, 3)}, ValueError, "prior has shape (5, 3); expected (6, K)"),
        ({"prior": torch.rand(1, 6, 3)}, ValueError, "prior has shape (1, 6, 3); expected (6, K)"),
        ({"prior": torch.ones(6, 3).long()}, TypeError, "prior has dtype torch.int64"),
        (
            {"prior": torch.rand(6, 3, device="meta")},
            ValueError,
            "prior is on meta; expected it on cpu",
        ),
        ({"grid": (2, 2)}, ValueError, "grid is 2 × 2 = 4 tokens; expected height · width = N = 6"),
        ({"grid": (-2, -3)}, ValueError, "grid is -2 × -3"),
        ({"grid": 6}, TypeError, "grid is 6; expected (height, width)"),
        ({"grid": (2.0, 3)}, TypeError, "grid is (2.0, 3); expected two whole numbers"),
        (
            {"config": {"alpha": 1}},
            TypeError,
            "config is a dict; expected a nerve_fast.NerveConfig",
        ),
        (
            {"head_weights": torch.ones(3)},
            ValueError,
            "head_weights has shape (3,); expected (2,), one weight for each head",
        ),
        (
            {"head_weights": torch.tensor([1.0, -1.0])},
            ValueError,
            "head_weights holds [1.0, -1.0]; expected finite numbers, 0 or more",
        ),
        (
            {"head_weights": torch.tensor([1.0, float("nan")])},
            ValueError,
            "head_weights holds [1.0, nan]; expected finite numbers",
        ),
    ],
)
def test_random_walk_refuses(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        walk(**changes)


@pytest.mark.parametrize(
    "op",
    [
        nf.head_entropy,
        nf.cosine_affinity,
        lambda q, k: nf.local_affinity(q, k, (2, 3)),
    ],
)
def test_every_operation_checks_q_and_k(op):
    with pytest.raises(ValueError, match="k has shape"):
        op(torch.rand(2, 6, 4), torch.rand(2, 6, 5))


def test_local_affinity_checks_grid_and_self_affinity():
    q = torch.rand(2, 6, 4)
    with pytest.raises(ValueError, match="grid is 4 × 4"):
        nf.local_affinity(q, q, (4, 4))
    with pytest.raises(ValueError, match="self_affinity is nan"):
        nf.local_affinity(q, q, (2, 3), self_affinity=float("nan"))
