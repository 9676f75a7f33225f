import pytest

from nerve_fast.errors import InputError
from nerve_fast.utils.processes import process_count, process_group

GROUP = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in GROUP if name != "MASTER_ADDR" for value in ("x", "-1", "1.5")),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "9" * 5000),
        ("RANK", "2"),
        ("RANK", "²"),
        ("LOCAL_RANK", "7"),
        ("MASTER_PORT", "port"),
        ("MASTER_PORT", "70000"),
    ],
)
def test_nonsense_in_the_environment_is_one_line(monkeypatch, name, value):
    for key, usual in {**GROUP, name: value}.items():
        monkeypatch.setenv(key, value if key == name else usual)
    with (
        pytest.raises(InputError, match=f"^the environment says {name}=") as raised,
        process_group("cpu"),
    ):
        pass
    assert len(str(raised.value)) < 200


def test_counts_of_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert process_count("LOCAL_WORLD_SIZE") == 1
    for value, count in {"": 1, "1": 1, "4": 4}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
        assert process_count("LOCAL_WORLD_SIZE") == count
    for value in ("many", "0", "-2", "1 2"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
        with pytest.raises(InputError, match="LOCAL_WORLD_SIZE="):
            process_count("LOCAL_WORLD_SIZE")
