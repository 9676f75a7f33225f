import pytest

from nerve_fast.errors import LONGEST_VALUE, InputError
from nerve_fast.utils.units import LARGEST, parse_bytes, parse_pixels


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


def test_numbers_of_pixels_as_people_write_them():
    for text, count in {"400MP": 4e8, "1.5 gp": 15e8, 400_000_000: 4e8, "7": 7, "2px": 2}.items():
        assert parse_pixels(text) == count


@pytest.mark.parametrize("count", ["6GB", "0", "-1MP", "", 10**400])
def test_no_number_of_pixels_is_one_short_line(count):
    with pytest.raises(InputError, match="^max_pixels is ") as raised:
        parse_pixels(count)
    assert len(str(raised.value)) < 100 + LONGEST_VALUE


@pytest.mark.parametrize(
    "size",
    ["9" * 400, "9" * 400 + "GB", "0", "0.2", "1e9", "-1", "GB", "1 parsec", "٣", 10**400, ""],
)
def test_no_size_is_one_short_line(size):
    with pytest.raises(InputError, match="^cache is ") as raised:
        parse_bytes(size, "cache")
    assert len(str(raised.value)) < 80 + LONGEST_VALUE
