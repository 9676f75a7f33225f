import pytest

from nerve_fast.errors import LONGEST_VALUE, InputError
from nerve_fast.utils.units import LARGEST, parse_bytes


def test_sizes_as_people_write_them():
    for text, size in {
        "6GB": 6e9,
        "512 MiB": 2**29,
        " 1.5kb ": 1500,
        7: 7,
        "1": 1,
        LARGEST: LARGEST,
    }.items():
        assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "size",
    ["9" * 400, "9" * 400 + "GB", "0", "0.2", "1e9", "-1", "GB", "1 parsec", "٣", 10**400, ""],
)
def test_no_size_is_one_short_line(size):
    with pytest.raises(InputError, match="^cache is ") as raised:
        parse_bytes(size, "cache")
    assert len(str(raised.value)) < 80 + LONGEST_VALUE
