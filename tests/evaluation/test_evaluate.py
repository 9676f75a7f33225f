import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nerve_fast.backbones.sam import SegmentAnything
from nerve_fast.blocked.precision import bfloat16_pays
from nerve_fast.cli import main as cli
from nerve_fast.errors import InputError
from nerve_fast.evaluation import evaluate as command
from nerve_fast.evaluation import method
from nerve_fast.evaluation import segmenter as command_segmenter
from nerve_fast.evaluation.metrics import confusion_matrix, mean_iou
from nerve_fast.refiners import ISeg
from nerve_fast.tiny.scenes import NAMES, generate
from nerve_fast.utils.locks import alone_in

IMAGES = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of small scenes of two sizes, whose masks ignore a corner."""
    root = tmp_path_factory.mktemp("folder")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    (root / "names.txt").write_text("\n".join(NAMES))
    for i in range(IMAGES):
        image, mask, names = generate(990_000 + i, (64, 96) if i % 2 else 64)
        labels = np.array([NAMES.index(name) for name in names], dtype=np.uint8)[mask]
        labels[:10, :10] = 255
        image.save(root / "images" / f"scene{i}.png")
        Image.fromarray(labels).save(root / "masks" / f"scene{i}.png")
    return root


def arguments(root, out, *flags):
    fixed = ("--dataset", "folder", "--root", root, "--models", "tiny", "--device", "cpu")
    return [str(part) for part in ("evaluate", *fixed, "-o", out, *flags)]


def evaluate(root, out, *flags):
    return cli.main(arguments(root, out, *flags))


def figures(out):
    results = json.loads((out / "results.json").read_text())
    results["run"].pop("commit")
    return results


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory, own_cache):
    """An uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("whole")
    assert evaluate(root, out) == 0
    return out


def test_results_are_those_of_the_pipeline(root, whole, pipe):
    """The preset of no method is the pipeline, on the words of the data set."""
    total = 0
    for i in range(IMAGES):
        with Image.open(root / "images" / f"scene{i}.png") as image:
            out = pipe(image, list(NAMES), global_keys=None)
        with Image.open(root / "masks" / f"scene{i}.png") as mask:
            truth = torch.from_numpy(np.array(mask))
        total = total + confusion_matrix(out.label_map, truth, len(NAMES))
    results = figures(whole)
    assert results["miou"] == pytest.approx(mean_iou(total), abs=1e-3)
    assert results["accuracy"] == pytest.approx(
        (total.diagonal().sum() / total.sum()).item(), abs=1e-3
    )
    assert results["images"] == IMAGES
    assert results["complete"]


def test_results_name_what_they_depend_on(root, whole):
    run = figures(whole)["run"]
    assert run["dataset"]["root"] == str(root)
    assert run["preset"]["name"] == "fixed"
    assert run["settings"]["threshold"] == 0
    assert run["refiner"]["config"]["steps"] == 10
    assert run["models"]["templates"] == 80
    assert run["models"]["dtype"] == ("bfloat16" if bfloat16_pays() else "float32")
    assert set(run["weights"]) == {"prior", "graph"}
    assert all(run["weights"].values())
    assert {"torch", "transformers", "diffusers", "nerve-fast"} <= set(run["versions"])
    assert [row["name"] for row in figures(whole)["classes"]] == list(NAMES)


KILLED = """
import os, signal, sys
from nerve_fast.blocked.precision import bfloat16_pays
from nerve_fast.cli import main as cli
from nerve_fast.evaluation import record

add, added = record.add, []

def add_and_die(*given):
    add(*given)
    added.append(given)
    if len(added) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

record.add = add_and_die
cli.main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_to_the_same_figures(root, whole, tmp_path):
    """Killed after two images, with a line that is cut off."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments(root, tmp_path)],
        capture_output=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "results.json").exists()
    lines = tmp_path / "images-0.jsonl"
    kept = lines.read_bytes()
    assert kept.count(b"\n") == 2
    lines.write_bytes(kept + b'{"name":"scene5","confusion":[[1,2')
    assert evaluate(root, tmp_path) == 0
    assert lines.read_bytes().startswith(kept)
    assert lines.read_bytes().count(b"\n") == IMAGES
    assert figures(tmp_path) == figures(whole)


def test_what_is_done_is_not_done_again(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert evaluate(root, out, "--limit", 2) == 0
    assert figures(out)["images"] == 2
    assert not figures(out)["complete"]
    assert f"2 of {IMAGES} images" in capsys.readouterr().out
    done = []
    compared = command.compared
    monkeypatch.setattr(command, "compared", lambda *all: done.append(all) or compared(*all))
    assert evaluate(root, out, "--limit", 3) == 0
    assert len(done) == 1
    # All there: not even the models are loaded.
    monkeypatch.setattr(command, "load_segmenter", None)
    capsys.readouterr()
    assert evaluate(root, out, "--limit", 3) == 0
    said = capsys.readouterr()
    assert "mIoU " in said.out
    assert "no image was missing, so the models were not looked at again" in said.err
    assert figures(out)["images"] == 3


def test_an_image_with_other_files_is_done_again(root, tmp_path):
    changed, out = shutil.copytree(root, tmp_path / "changed"), tmp_path / "out"
    assert evaluate(changed, out, "--limit", 3) == 0
    before = figures(out)
    mask = changed / "masks" / "scene1.png"
    with Image.open(mask) as image:
        labels = np.array(image)
    Image.fromarray(np.full_like(labels, labels.max())).save(mask)
    assert evaluate(changed, out, "--limit", 3) == 0
    assert (out / "images-0.jsonl").read_bytes().count(b"\n") == 4
    after = figures(out)
    assert after["miou"] != before["miou"]
    assert evaluate(changed, out, "--limit", 3, "--fresh") == 0
    assert figures(out) == after


def test_an_empty_world_size_is_one_process(root, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    assert evaluate(root, tmp_path, "--limit", 1) == 0


def test_images_without_a_run_are_named(root, whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "run.json").unlink()
    assert evaluate(root, out) == 2
    assert "images-0.jsonl: of a run without a run.json" in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused(root, tmp_path, capsys):
    assert evaluate(root, tmp_path, "--limit", 1) == 0
    capsys.readouterr()
    assert evaluate(root, tmp_path, "--limit", 1, "--logit-scale", 30, "--steps", 5) == 2
    said = capsys.readouterr().err
    assert "settings.logit_scale was 40 and is 30" in said
    assert "refiner.config.steps was 10 and is 5" in said
    assert said.count("\n") == 1
    assert evaluate(root, tmp_path, "--limit", 1, "--logit-scale", 30, "--fresh") == 0
    assert figures(tmp_path)["run"]["settings"]["logit_scale"] == 30


def test_other_weights_under_the_same_name_are_refused(root, tmp_path, copied_models, capsys):
    flags = ("--refiner", "none", "--clip", copied_models / "clip", "--device", "cpu")
    base = ("evaluate", "--dataset", "folder", "--root", root, "-o", tmp_path / "out", *flags)
    assert cli.main([str(part) for part in (*base, "--limit", 1)]) == 0
    path = copied_models / "clip" / "model.safetensors"
    weights = load_file(path)
    weights["visual_projection.weight"] = weights["visual_projection.weight"].clone() * 1.5
    save_file(weights, path, metadata={"format": "pt"})
    capsys.readouterr()
    assert cli.main([str(part) for part in (*base, "--limit", 2)]) == 2
    assert "weights.prior was" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_same_figures(root, whole, tmp_path):
    """As `accelerate launch` starts them; one image was there already."""
    assert evaluate(root, tmp_path, "--limit", 1) == 0
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2 -m nerve_fast"
    started = subprocess.run(
        [sys.executable, *launch.split(), *arguments(root, tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert started.returncode == 0, started.stderr
    assert started.stdout.count("mIoU ") == 1
    names = {
        path.name: [json.loads(line)["name"].split()[1] for line in path.read_text().splitlines()]
        for path in tmp_path.glob("images-*.jsonl")
    }
    assert names == {
        "images-0.jsonl": ["scene0", "scene1", "scene3", "scene5"],
        "images-1.jsonl": ["scene2", "scene4"],
    }
    assert figures(tmp_path) == figures(whole)


@pytest.mark.slow
def test_a_broken_mask_ends_no_process(root, tmp_path):
    broken, out = shutil.copytree(root, tmp_path / "broken"), tmp_path / "out"
    (broken / "masks" / "scene3.png").write_bytes(b"no image")
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2 -m nerve_fast"
    started = subprocess.run(
        [sys.executable, *launch.split(), *arguments(broken, out)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert started.returncode != 0
    assert "scene3.png: not an image" in started.stderr
    assert f"{IMAGES - 1} of {IMAGES} images, 1 could not be evaluated" in started.stdout
    assert (figures(out)["images"], figures(out)["failed"]) == (IMAGES - 1, 1)
    assert not figures(out)["complete"]
    shutil.copy(root / "masks" / "scene3.png", broken / "masks" / "scene3.png")
    assert evaluate(broken, out) == 0
    assert (figures(out)["images"], figures(out)["failed"]) == (IMAGES, 0)


def spoiled(root, folder, bad_images):
    """A copy of the data set with bad images of twenty kinds and bad masks of five.

    Returns:
        The copy, and the files that are named as the fault of an image.
    """
    copy = shutil.copytree(root, folder)
    bad = bad_images(copy / "images")
    for path in bad:
        Image.new("L", (30, 24)).save(copy / "masks" / f"{path.stem}.png")
    for name in ("colors", "small", "beyond", "missing", "words"):
        Image.new("RGB", (30, 24)).save(copy / "images" / f"{name}.png")
        bad.append(copy / "masks" / f"{name}.png")
    Image.new("RGB", (30, 24)).save(copy / "masks" / "colors.png")
    Image.new("L", (3, 3)).save(copy / "masks" / "small.png")
    Image.new("L", (30, 24), 99).save(copy / "masks" / "beyond.png")
    (copy / "masks" / "words.png").write_text("no image")
    return copy, bad


def test_bad_images_and_masks_end_nothing(root, whole, tmp_path, bad_images, capsys):
    copy, bad = spoiled(root, tmp_path / "copy", bad_images)
    out = tmp_path / "out"
    assert evaluate(copy, out) == 2
    said = capsys.readouterr()
    for path in bad:
        named = [line for line in said.err.splitlines() if f"nerve-fast: {path}: " in line]
        assert len(named) == 1, path
    count = IMAGES + len(bad)
    assert f"{IMAGES} of {count} images, {len(bad)} could not be evaluated" in said.out
    results = figures(out)
    assert (results["images"], results["failed"]) == (IMAGES, len(bad))
    assert not results["complete"]
    for name in ("miou", "accuracy", "mean_accuracy", "boundary_iou", "classes"):
        assert results[name] == figures(whole)[name]
    # Found again by a run that has nothing else to do; and said by whoever checks before.
    assert evaluate(copy, out) == 2
    assert figures(out) == results
    capsys.readouterr()
    assert cli.main(["data", "check", "folder", str(copy)]) == 2
    assert f"folder: {count} images, {len(NAMES)} classes, {len(bad)} problems" in (
        capsys.readouterr().out
    )


def test_without_a_good_image_there_are_no_figures(root, tmp_path, capsys):
    broken, out = shutil.copytree(root, tmp_path / "broken"), tmp_path / "out"
    for path in (broken / "masks").iterdir():
        path.write_bytes(b"no image")
    assert evaluate(broken, out, "--limit", 2, "--refiner", "none") == 2
    assert "none of 2 images could be evaluated" in capsys.readouterr().err
    assert not (out / "results.json").exists()
    # Masks that are not there at all are a mistake in the data set, found before the models load.
    for path in (broken / "masks").iterdir():
        path.unlink()
    assert evaluate(broken, out, "--refiner", "none") == 2
    said = capsys.readouterr().err
    assert "scene0.png: no such mask" in said
    assert said.count("\n") == 1


def test_a_network_that_fails_on_an_image_is_that_images_failure(
    root, tmp_path, monkeypatch, capsys
):
    """What it raises does not name the image."""
    call = command_segmenter.Segmenter.__call__
    calls = []

    def fail_once(self, image):
        calls.append(image)
        if len(calls) == 2:
            raise InputError("the prior holds NaN")
        return call(self, image)

    monkeypatch.setattr(command_segmenter.Segmenter, "__call__", fail_once)
    assert evaluate(root, tmp_path / "out", "--limit", 3, "--refiner", "none") == 2
    said = capsys.readouterr()
    assert f"nerve-fast: {root / 'images' / 'scene1.png'}: the prior holds NaN" in said.err
    assert f"2 of {IMAGES} images, 1 could not be evaluated" in said.out


def test_damaged_lines_are_named(root, tmp_path, capsys):
    assert evaluate(root, tmp_path, "--limit", 2) == 0
    lines = tmp_path / "images-0.jsonl"
    lines.write_bytes(b'{"name":"scene0"}\n' + lines.read_bytes())
    capsys.readouterr()
    assert evaluate(root, tmp_path, "--limit", 2) == 2
    assert "images-0.jsonl: line 1 is damaged" in capsys.readouterr().err


def test_the_worst_and_best_images_are_drawn(root, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    assert evaluate(root, out, "--draw", 2) == 0
    drawn = sorted(path.name for path in out.glob("*.png"))
    assert [name[:9] for name in drawn] == ["best-01-s", "best-02-s", "worst-01-", "worst-02-"]
    own = {}
    for line in (out / "images-0.jsonl").read_text().splitlines():
        image = json.loads(line)
        confusion = torch.zeros(len(NAMES), len(NAMES), dtype=torch.int64)
        for truth, predicted, count in image["confusion"]:
            confusion[truth, predicted] = count
        own[image["name"].split()[1]] = mean_iou(confusion)
    ranked = sorted(own, key=own.get)
    assert drawn[2] == f"worst-01-{ranked[0]}.png"
    assert drawn[0] == f"best-01-{ranked[-1]}.png"
    # Of what was drawn before nothing is left.
    assert evaluate(root, out, "--draw", 1) == 0
    assert len(list(out.glob("*.png"))) == 2
    assert evaluate(root, out, "--limit", 1, "--fresh") == 0
    assert not list(out.glob("*.png"))


@pytest.mark.parametrize(
    ("refiner", "value", "message"),
    [
        ("none", ("--steps", 33), "the refiner none does not read --steps;"),
        ("none", ("--timestep", 5, "--seed", 1), "none does not read --timestep, --seed;"),
        ("none", ("--layers", "x"), "none does not read --layers; leave out what it does not"),
        ("pamr", ("--alpha", 0.1), "that reads all of it: --refiner walk\n"),
        ("pamr", ("--seed", 2), "all of it: --refiner cliper, --refiner iseg, --refiner walk\n"),
        ("iseg", ("--alpha", 0.1, "--backend", "blocked"), "iseg does not read --backend, --alpha"),
    ],
)
def test_flags_that_a_refiner_does_not_read_are_refused(
    root, tmp_path, capsys, refiner, value, message
):
    assert evaluate(root, tmp_path / "out", "--refiner", refiner, *value) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_iseg_has_the_settings_of_the_data_set(root, tmp_path, monkeypatch):
    monkeypatch.setattr(method, "iseg_of", lambda dataset: {"iterations": 2, "step_size": 0.25})
    seen = []
    refine = ISeg.__call__
    monkeypatch.setattr(ISeg, "__call__", lambda self, *of: seen.append(self) or refine(self, *of))
    flags = ("--refiner", "iseg", "--limit", 1, "--timestep", 50)
    assert evaluate(root, tmp_path, *flags) == 0
    assert (seen[0].iterations, seen[0].step_size) == (2, 0.25)
    refiner = figures(tmp_path)["run"]["refiner"]
    assert (refiner["iterations"], refiner["step_size"]) == (2, 0.25)


def test_what_is_under_a_threshold_has_no_class_or_the_one_named(root, tmp_path):
    """The data set has no background. A class under a threshold that nothing reaches is found
    nowhere, and only the class named gets more pixels than before."""
    found = {}
    flags = ("--limit", 1, "--refiner", "none")
    for name, *further in (
        ("plain",),
        ("under", "--threshold", "; ".join(f"{name}: 1" for name in NAMES)),
        ("named", "--threshold", "1.0", "--background", NAMES[0]),
    ):
        assert evaluate(root, tmp_path / name, *flags, *further) == 0
        found[name] = figures(tmp_path / name)
    settings = found["under"]["run"]["settings"]
    assert settings["threshold"] == dict.fromkeys(NAMES, 1.0)
    assert found["plain"]["accuracy"] > 0.3
    assert found["under"]["accuracy"] == 0
    assert found["named"]["run"]["settings"]["under"] == NAMES[0]
    accuracies = [row["accuracy"] for row in found["named"]["classes"]]
    assert set(accuracies[1:]) <= {0, None}
    assert accuracies[0] in (1, None)


def test_mistakes_are_one_line(root, tmp_path, capsys):
    cases = [
        ("preset is 'x'; expected one of clip", "--preset", "x"),
        ("prior is 'x'; expected one of", "--prior", "x"),
        ("refiner is 'x'; expected one of none, pamr", "--refiner", "x"),
        ("vocabulary is 'x'; expected one of plain", "--vocabulary", "x"),
        ("preset naclip has no settings for the data set folder", "--preset", "naclip"),
        ("--threshold is 'much'; expected a number from 0 to 1", "--threshold", "much"),
        ("--threshold names 'moon', which is none of the labels", "--threshold", "moon: 0.3"),
        ("background is ball, the class of what is under a threshold", "--background", "ball"),
        ("--threshold is 1.5; expected a number from 0 to 1", "--threshold", "1.5"),
        ("logit scale is -1", "--logit-scale", "-1"),
        ("--limit is 0; expected 1 or more", "--limit", "0"),
        ("the data set is 'x'; expected one of voc21", "--dataset", "x"),
        ("leave it out, the data set tiny has no files", "--dataset", "tiny"),
        ("no such folder", "--root", tmp_path / "nowhere"),
        ("prior network proxy is 'x' and prior is naclip", "--prior-network", "proxy=x"),
        ("alpha is 2.0", "--alpha", "2"),
    ]
    for message, *flags in cases:
        assert evaluate(root, tmp_path / "out", *flags) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_fresh_and_draw_leave_what_others_made(root, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    mine = ("worst-01-mine.png", "best-99-holiday.png", "images-old.jsonl", "images-12.jsonl")
    for name in mine:
        (out / name).write_text("mine")
    assert evaluate(root, out, "--limit", 2, "--refiner", "none", "--fresh", "--draw", 1) == 0
    assert len(list(out.glob("*.png"))) == 4
    assert evaluate(root, out, "--limit", 1, "--refiner", "none", "--fresh") == 0
    assert len(list(out.glob("*.png"))) == 2
    assert all((out / name).read_text() == "mine" for name in mine)


@pytest.mark.parametrize("name", ["results.json", "run.json", "images-0.jsonl"])
def test_a_folder_with_such_files_of_others_is_refused(root, tmp_path, capsys, name):
    (tmp_path / name).write_text("{}")
    for flags in ((), ("--fresh",)):
        assert evaluate(root, tmp_path, "--limit", 1, "--refiner", "none", *flags) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize("name", ["results.json", "run.json", "images-0.jsonl"])
def test_nothing_is_written_through_a_link(root, tmp_path, capsys, name):
    target, out = tmp_path / "target", tmp_path / "out"
    target.write_text("{}")
    out.mkdir()
    (out / name).symlink_to(target)
    assert evaluate(root, out, "--limit", 1, "--refiner", "none") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert target.read_text() == "{}"


def test_a_second_run_in_the_folder_is_refused(root, tmp_path, capsys):
    for flags in ((), ("--fresh",)):
        with alone_in(tmp_path / "out"):
            assert evaluate(root, tmp_path / "out", "--limit", 1, *flags) == 2
        said = capsys.readouterr().err
        assert "another run works in" in said
        assert said.count("\n") == 1


def test_a_flipped_bit_is_named(root, whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    lines = out / "images-0.jsonl"
    content = bytearray(lines.read_bytes())
    content[content.index(b"confusion") + 14] ^= 1
    lines.write_bytes(content)
    assert evaluate(root, out) == 2
    assert "images-0.jsonl: line 1 is damaged" in capsys.readouterr().err


def test_images_of_the_longest_names_are_evaluated_varied_and_drawn(root, tmp_path, caplog):
    """255 bytes are a file system's limit; results have longer names than images."""
    long, out = shutil.copytree(root, tmp_path / "long"), tmp_path / "out"
    names = ["x" * 251, "ü" * 125]
    for part in ("images", "masks"):
        for i, path in enumerate(sorted((long / part).iterdir())):
            if i < len(names):
                path.rename(path.with_stem(names[i]))
            else:
                path.unlink()
    assert evaluate(long, out, "--refiner", "none", "--draw", 2) == 0
    drawn = sorted(path.name for path in out.glob("best-*.png"))
    assert len(drawn) == 2
    assert sum("xxxx" in name for name in drawn) == sum("üüüü" in name for name in drawn) == 1
    options = ("--dataset", "folder", "--root", long, "--models", "tiny", "--device", "cpu")
    command = ("ablate", "table2", *options, "-o", tmp_path / "ablation")
    assert cli.main([str(part) for part in command]) == 0
    assert len(list((tmp_path / "ablation" / "features").rglob("*.safetensors"))) == 2
    assert "are kept in" not in caplog.text


@pytest.mark.parametrize("refiner", ["densecrf", "regions"])
def test_refiners_at_the_images_pixels_run(root, tmp_path, monkeypatch, refiner):
    def halves(source, device):
        return lambda image: [np.arange(image.height)[:, None].repeat(image.width, 1) < 20]

    monkeypatch.setattr(SegmentAnything, "from_pretrained", halves)
    assert evaluate(root, tmp_path, "--refiner", refiner, "--limit", 1) == 0
    assert figures(tmp_path)["accuracy"] > 0.3


def test_files_of_many_pixels_are_evaluated_as_far_as_is_asked(root, tmp_path, capsys):
    """Of scenes of 64 × 64 and 96 × 64 pixels; more are done once more are allowed."""
    flags = ("--refiner", "none", "--max-pixels")
    assert evaluate(root, tmp_path, *flags, 5000) == 2
    assert figures(tmp_path)["failed"] == IMAGES / 2
    assert evaluate(root, tmp_path, *flags, "1MP") == 0
    assert figures(tmp_path)["images"] == IMAGES
    assert evaluate(root, tmp_path, *flags, "many") == 2
    assert "max_pixels is 'many'; expected a number above 0" in capsys.readouterr().err
