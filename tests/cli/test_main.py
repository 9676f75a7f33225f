import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from nerve_fast import NerveConfig, PriorConfig
from nerve_fast.cli import main as cli
from nerve_fast.pipeline import batch as commands
from nerve_fast.tiny.scenes import generate

LABELS = "grass; water, sea; ball"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "scene.png"
    generate(970_000)[0].save(path)
    return path


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def segment(*arguments):
    return run("segment", *arguments, "--models", "tiny", "--device", "cpu")


def refused(capsys, message, *arguments):
    """The command ends with code 2 and one line that says ``message``, and nothing else."""
    assert segment(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("nerve-fast: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_segment_writes_labels_and_overlay(image, tmp_path, capsys):
    assert segment(image, "--labels", LABELS, "-o", tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["scene.labels.png", "scene.overlay.png"]
    with Image.open(tmp_path / "out" / "scene.labels.png") as labels:
        assert labels.size == (128, 128)
        assert labels.text["labels"].split("\n") == ["grass", "water, sea", "ball"]
    assert f"1 image written to {tmp_path / 'out'}" in capsys.readouterr().out


def test_segment_writes_the_rest_on_request(image, tmp_path):
    saves = ("--save-heatmaps", "--save-probabilities", "--save-steps")
    assert segment(image, "--labels", LABELS, "-o", tmp_path / "out", *saves) == 0
    kinds = ("heatmaps.png", "labels.png", "npz", "overlay.png", "steps.png")
    assert sorted(os.listdir(tmp_path / "out")) == [f"scene.{kind}" for kind in kinds]
    with np.load(tmp_path / "out" / "scene.npz") as saved:
        assert saved["probabilities"].shape == (3, 128, 128)


def test_every_setting_of_the_graph_stage_is_a_flag(image, tmp_path, monkeypatch):
    values = {
        "alpha": 0.5,
        "beta": 0.25,
        "steps": 3,
        "radius": 2,
        "self_affinity": 0.5,
        "sharpness": 2.0,
        "normalization": "shift",
        "temperature": 0.1,
        "tolerance": 1e-3,
    }
    # Whose flag is the pipeline's argument.
    names = {field.name for field in dataclasses.fields(NerveConfig)} - {"global_keys"}
    assert set(values) == names
    flags = [
        text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", value)
    ]
    seen = []
    load = commands.load_pipeline
    monkeypatch.setattr(
        commands,
        "load_pipeline",
        lambda asked, device: seen.append(asked.config) or load(asked, device),
    )
    assert segment(image, "--labels", LABELS, "-o", tmp_path / "out", *flags) == 0
    assert seen == [NerveConfig(**values)]


def test_the_limit_of_the_walk_is_no_number_of_steps(image, tmp_path, monkeypatch, capsys):
    seen = []
    load = commands.load_pipeline
    monkeypatch.setattr(
        commands,
        "load_pipeline",
        lambda asked, device: seen.append(asked.config) or load(asked, device),
    )
    flags = ("--steps", "none", "--tolerance", "0.01")
    assert segment(image, "--labels", LABELS, "-o", tmp_path / "out", *flags) == 0
    assert seen == [NerveConfig(steps=None, tolerance=0.01)]
    for value in ("nothing", "1.5", ""):
        with pytest.raises(SystemExit):
            segment(image, "--labels", LABELS, "-o", tmp_path / "out", "--steps", value)
        assert "argument --steps: invalid int or none value" in capsys.readouterr().err


def test_results_depend_on_seed_and_resolution_alone(image, tmp_path):
    def probabilities(folder, *flags):
        out = tmp_path / folder
        assert segment(image, "--labels", LABELS, "-o", out, "--save-probabilities", *flags) == 0
        with np.load(out / "scene.npz") as saved:
            return saved["probabilities"]

    first = probabilities("a")
    assert np.array_equal(first, probabilities("b", "--seed", 0))
    assert not np.array_equal(first, probabilities("c", "--seed", 1))
    assert not np.array_equal(first, probabilities("d", "--resolution", 64))
    assert not np.array_equal(first, probabilities("e", "--prior", "maskclip"))
    assert not np.array_equal(
        first, probabilities("f", "--prior-window", 64, "--prior-resolution", 96)
    )


@pytest.mark.parametrize("size", [(1, 1), (200, 31), (64, 500)])
def test_segment_takes_any_size(tmp_path, size):
    path = tmp_path / "noise.png"
    Image.effect_noise(size, 60).save(path)
    assert segment(path, "--labels", LABELS, "-o", tmp_path) == 0
    with Image.open(tmp_path / "noise.labels.png") as labels:
        assert labels.size == size


def test_mistakes_are_one_line_and_code_2(image, tmp_path, capsys):
    out = tmp_path / "out"
    labels = ("--labels", LABELS, "-o", out)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "file").touch()
    twin = tmp_path / "scene.jpg"
    generate(970_001)[0].save(twin)
    cases = [
        ("no such file", "missing.png", *labels),
        ("the file is empty", tmp_path / "empty.jpg", *labels),
        ("it holds an empty name", image, "--labels", " ", "-o", out),
        ("not text", image, "--labels", "cat\ndog", "-o", out),
        ("stands twice, in label 1 and 2", image, "--labels", "cat; cat", "-o", out),
        ("CLIP reads 77: shorten it", image, "--labels", "word " * 100, "-o", out),
        ("cannot be written", image, "--labels", LABELS, "-o", tmp_path / "file" / "out"),
        ("would both be written as scene.*", image, twin, *labels),
        ("alpha is 2.0; expected", image, *labels, "--alpha", 2),
        ("alpha is nan; expected a finite", image, *labels, "--alpha", "nan"),
        ("prior window is 60", image, *labels, "--prior-window", 60),
        ("logit scale is -1.0", image, *labels, "--logit-scale", -1),
        ("layer is 'mid'; this UNet's", image, *labels, "--layers", "mid"),
        ("timestep is 5000; expected 0 to 999", image, *labels, "--timestep", 5000),
        ("models stands for both", image, *labels, "--clip", "x"),
        ("resolution is -5", image, *labels, "--resolution", -5),
    ]
    for message, *arguments in cases:
        refused(capsys, message, *arguments)
    assert not out.exists() or os.listdir(out) == []


def test_models_that_are_not_there_are_one_line(image, tmp_path, capsys):
    models = tmp_path / "models"
    models.mkdir()
    for flags in (("--models", tmp_path / "nowhere"), ("--models", models)):
        assert run("segment", image, "--labels", LABELS, "-o", tmp_path / "out", *flags) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_bad_image_does_not_stop_the_good_ones(image, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(image.read_bytes()[:200])
    assert segment(bad, image, "--labels", LABELS, "-o", tmp_path / "out") == 2
    assert sorted(os.listdir(tmp_path / "out")) == ["scene.labels.png", "scene.overlay.png"]
    assert "bad.png: the image is damaged or truncated" in capsys.readouterr().err


def test_an_error_while_writing_leaves_nothing_half_written(image, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def full_disk(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    refused(
        capsys, "cannot be written: No space left on device", image, "--labels", LABELS, "-o", out
    )
    assert os.listdir(out) == []


def test_results_never_overwrite_images(image, tmp_path, capsys):
    mine = tmp_path / "scene.labels.png"
    mine.write_bytes(image.read_bytes())
    refused(capsys, "would overwrite the input", image, mine, "--labels", LABELS, "-o", tmp_path)
    assert mine.read_bytes() == image.read_bytes()


def test_the_strip_ends_with_the_walk_that_was_run(image, tmp_path, monkeypatch):
    from nerve_fast.imaging import visualize

    shown = []
    draw = visualize.steps_strip

    def keep(image, prior, steps, labels):
        shown.append(list(steps))
        return draw(image, prior, steps, labels)

    monkeypatch.setattr(visualize, "steps_strip", keep)
    for steps in (0, 3, 20):
        out = tmp_path / str(steps)
        flags = ("--save-steps", "--steps", steps)
        assert segment(image, "--labels", LABELS, "-o", out, *flags) == 0
    assert shown == [[0], [1, 2, 3], [1, 2, 5, 10, 20]]


def test_flags_reach_the_pipeline(image, tmp_path, monkeypatch):
    seen = []
    load = commands.load_pipeline

    def keep(*arguments):
        seen.append(load(*arguments))
        return seen[-1]

    monkeypatch.setattr(commands, "load_pipeline", keep)
    flags = ("--dtype", "bfloat16", "--prior-resolution", 96, "--prior-window", 64)
    flags += ("--prior-stride", 16, "--logit-scale", 20, "--timestep", 50, "--backend", "reference")
    assert segment(image, "--labels", LABELS, "-o", tmp_path / "out", *flags) == 0
    (pipe,) = seen
    assert pipe.graph.unet.dtype == torch.bfloat16
    assert pipe.prior.config == PriorConfig("naclip", 96, 64, 16, 20.0)
    assert (pipe.graph.timestep, pipe.backend) == (50, "reference")


def test_one_class_with_commas_gets_a_hint(image, tmp_path, capsys):
    assert segment(image, "--labels", "cat, dog", "-o", tmp_path / "out") == 0
    assert 'between classes put ";"' in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999999", "x"])
def test_seeds_out_of_range_end_with_code_2(image, tmp_path, capsys, seed):
    with pytest.raises(SystemExit) as ended:
        segment(image, "--labels", LABELS, "-o", tmp_path, "--seed", seed)
    assert ended.value.code == 2
    assert "--seed" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m nerve_fast doctor | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("nerve-fast ")
    assert done.stderr == ""


def test_flags_that_do_not_exist_end_with_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        run("segment", "a.png", "--labels", "cat", "-o", "x", "--nonsense")
    assert ended.value.code == 2


def test_verify_says_how_far_the_reference_is(image, tmp_path, capsys):
    assert segment(image, "--labels", LABELS, "-o", tmp_path / "out", "--verify") == 0
    said = capsys.readouterr().out
    match = re.search(r"within (\S+) of the reference's, (\S+)% of labels equal", said)
    assert float(match[1]) < 1e-5
    assert float(match[2]) > 99.9


def test_plan_prints_a_sentence_and_all_routes(capsys):
    assert run("plan", "--tokens", 65536, "--labels", 21, "--max-memory", "2GB") == 0
    said = capsys.readouterr().out
    for word in ("factorized", "dense", "streaming", "reference", "not exact with", "fitted on"):
        assert word in said
    assert run("plan", "--tokens", 65536, "--labels", 21, "--max-memory", "1MB") == 2
    assert "needs at least" in capsys.readouterr().err
    assert run("plan", "--tokens", 0, "--labels", 21) == 2


def test_doctor_says_what_is_here(capsys):
    assert run("doctor") == 0
    said = capsys.readouterr().out
    for word in ("torch", "transformers", "cpu", "reference: ready", "triton: ", "tiny"):
        assert word in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is something to tune")
def test_there_is_nothing_to_tune_on_a_cpu(capsys):
    assert run("tune") == 2
    said = "nerve-fast: device is 'cpu'; kernels are tuned on CUDA and ROCm GPUs\n"
    assert capsys.readouterr().err == said


def test_demo_prints_scores_and_draws_scenes(tmp_path, capsys):
    assert run("demo", "--scenes", 2, "-o", tmp_path / "demo") == 0
    said = capsys.readouterr().out
    assert "mIoU on 2 held-out scenes" in said
    for method in (
        "prior",
        "walk on raw RGB",
        "walk on an untrained UNet",
        "walk on the UNet's Q/K",
    ):
        assert method in said
    assert sorted(os.listdir(tmp_path / "demo")) == ["scene-1000000.png", "scene-1000001.png"]
    assert run("demo", "--scenes", 0) == 2


def test_demo_draws_over_its_own_scenes_alone(tmp_path, capsys):
    out = tmp_path / "demo"
    for _ in range(2):
        assert run("demo", "--scenes", 1, "-o", out) == 0
    mine = out / "scene-1000000.png"
    Image.new("RGB", (3, 3)).save(mine)
    before = mine.read_bytes()
    assert run("demo", "--scenes", 2, "-o", out) == 2
    assert "scene-1000000.png: was not made by this command" in capsys.readouterr().err
    assert mine.read_bytes() == before


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "nerve_fast", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.strip()


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket", "camera"])
def test_segment_takes_real_photographs(tmp_path, name):
    photograph = getattr(skimage.data, name)()
    path = tmp_path / f"{name}.jpg"
    Image.fromarray(photograph).save(path)
    assert segment(path, "--labels", "person; cat; cup; sky, cloud", "-o", tmp_path) == 0
    with Image.open(tmp_path / f"{name}.labels.png") as labels:
        assert labels.size == photograph.shape[1::-1]
