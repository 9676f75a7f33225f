"""Further networks by name are pairs of texts, or refused."""

from pathlib import Path

import pytest

from nerve_fast.utils.named import named_networks


def test_what_says_the_same_is_equal():
    expected = (("dino", "b"), ("found", "a"))
    for given in ({"found": "a", "dino": Path("b")}, [("found", "a"), ("dino", "b")], expected):
        assert named_networks("networks", given) == expected
    assert named_networks("networks", {}) == ()


@pytest.mark.parametrize(
    "given", [None, 3, "ab", ["ab"], [("a", 1)], {1: "a"}, [("a", "b", "c")], b"ab"]
)
def test_other_types_are_refused_by_name(given):
    with pytest.raises(TypeError, match="networks is .*; expected a dictionary"):
        named_networks("networks", given)
