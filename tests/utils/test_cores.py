"""Small pieces of work have a core each, and are what they are one after the other."""

import threading
import time

import pytest
import torch

from nerve_fast import NerveConfig, blocked
from nerve_fast.utils.cores import MOST, SMALL, at_once, on_cores

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Sets how many threads torch has."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "pieces", "tokens", "together"),
    [
        (2, 16, 1024, 2),
        (2, 16, SMALL, 2),
        (2, 16, SMALL + 1, 1),
        (2, 1, 1024, 1),
        # The third would have one core wait for the other.
        (2, 3, 1024, 1),
        (2, 5, 1024, 2),
        (4, 3, 1024, 1),
        (1, 16, 1024, 1),
        (2 * MOST, 64, 1024, 1),
    ],
)
def test_pieces_at_a_time(threads, count, pieces, tokens, together):
    threads(count)
    assert at_once(pieces, tokens, CPU) == together
    assert at_once(pieces, tokens, torch.device("meta")) == 1


def test_each_piece_has_one_thread_and_others_keep_theirs(threads):
    threads(3)

    def piece(number):
        time.sleep(0.02)
        return number, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()

    found = on_cores(piece, range(6), 3)
    assert [number for number, *_ in found] == list(range(6))
    assert {one[1:3] for one in found} == {(1, False)}
    assert threading.get_ident() not in {one[3] for one in found}
    assert torch.get_num_threads() == 3
    later = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start(), other.join()
    assert later == [3]


def test_an_error_of_a_piece_is_raised(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        on_cores(lambda number: 1 // number, [1, 0], 2)


def test_results_do_not_depend_on_the_cores(threads, make_qk, make_prior):
    q, k, G = *make_qk(4, 2, 24, 8), make_prior(4, 24, 3)
    found = []
    for count in (1, 2):
        threads(count)
        walked = blocked.random_walk(q, k, G, (4, 6), NerveConfig(steps=3), None, route="streaming")
        found.append((blocked.head_entropy(q, k), walked.probabilities))
    torch.testing.assert_close(*found)
