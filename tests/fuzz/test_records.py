"""Records of runs, damaged at random: a figure never changes where the exit code is 0."""

import json
import random
import shutil

import pytest

from nerve_fast.cli import main as cli


@pytest.fixture(scope="module")
def root(make_folder_set):
    return make_folder_set(range(990_100, 990_103))


COMMANDS = {
    "evaluate": ("evaluate", "--refiner", "none"),
    "ablate": ("ablate", "table2"),
}


def run(command, root, out) -> int:
    given = ("--dataset", "folder", "--root", root, "--models", "tiny", "--device", "cpu")
    return cli.main([str(part) for part in (*COMMANDS[command], *given, "-o", out)])


def figures(out) -> dict:
    """What ``results.json`` holds, but for the commit that it was written at."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    results["run"].pop("commit")
    results.pop("command", None)
    return results


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory, own_cache):
    """The folder of an undisturbed run of each command."""
    folders = {}
    for command in COMMANDS:
        folders[command] = tmp_path_factory.mktemp(command)
        assert run(command, root, folders[command]) == 0
    return folders


def damaged(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Bytes or lines of a record, changed in one way, and which."""
    data = bytearray(content)
    kind = chance.choice(
        ["bits", "bits", "bits", "digit", "digit", "zeros", "cut", "remove", "insert", "lines"]
    )
    place = chance.randrange(len(data))
    if kind == "bits":
        for _ in range(chance.choice([1, 1, 2, 8])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "digit":
        # What stays JSON, and of the same length.
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        for i in chance.sample(digits, min(len(digits), chance.choice([1, 1, 3]))):
            data[i] = ord(chance.choice("0123456789"))
    elif kind == "zeros":
        end = min(place + chance.choice([1, 64, 512, len(data)]), len(data))
        data[place:end] = bytes(end - place)
    elif kind == "cut":
        del data[place:]
    elif kind == "remove":
        del data[place : place + chance.choice([1, 2, 40])]
    elif kind == "insert":
        data[place:place] = chance.choice([b"\n", b"1", b",1", b"{}\n", b"\0" * 512, b"\xff"])
    else:
        lines = data.splitlines(keepends=True)
        match chance.randrange(4):
            case 0:
                chance.shuffle(lines)
            case 1:
                lines.append(chance.choice(lines))
            case 2:
                lines.pop(chance.randrange(len(lines)))
            case 3:
                # As of two writers: the end of one line after the start of another.
                first, second = chance.choice(lines), chance.choice(lines)
                lines.append(first[: len(first) // 2] + second[len(second) // 2 :])
        data = bytearray().join(lines)
    return bytes(data), kind


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_figures_of_damaged_records_are_right_or_refused(
    root, whole, tmp_path, chance, capsys, command, count
):
    expected = figures(whole[command])
    ended = {0: 0, 2: 0}
    for number in range(count):
        out = shutil.copytree(whole[command], tmp_path / str(number))
        records = sorted(
            path
            for path in out.rglob("*")
            if path.suffix in (".json", ".jsonl", ".safetensors") and path.name != "results.json"
        )
        names = set()
        for path in chance.sample(records, chance.choice([1, 1, 1, 2])):
            content, kind = damaged(path.read_bytes(), chance)
            path.write_bytes(content)
            names.add(f"{path.name}: {kind}")
        if chance.randrange(2):
            (out / "results.json").unlink()
        which = f"{number}: {command}, {'; '.join(sorted(names))}"
        capsys.readouterr()
        try:
            code = run(command, root, out)
        except BaseException as error:
            raise AssertionError(f"{which}: {error!r:.300}") from error
        said = capsys.readouterr().err
        assert code in ended, which
        ended[code] += 1
        if code == 0:
            assert figures(out) == expected, which
        else:
            errors = [line for line in said.splitlines() if line.startswith("nerve-fast: ")]
            assert len(errors) == 1, (which, said)
        shutil.rmtree(out)
    print(ended)
    assert sum(ended.values()) == count
    assert all(ended.values()) or count < 100
