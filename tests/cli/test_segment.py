import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nerve_fast import InputError
from nerve_fast.cli import main as cli
from nerve_fast.imaging import visualize
from nerve_fast.imaging.images import load_image
from nerve_fast.pipeline import batch as command
from nerve_fast.pipeline import inputs, stages
from nerve_fast.tiny.scenes import generate

LABELS = "grass; water, sea; ball"


@pytest.fixture
def folder(tmp_path):
    """Four scenes of two sizes, a file that is no image of two kinds, and a result."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        generate(980_000 + i, (64, 96) if i % 2 else 64)[0].save(folder / f"scene{i}.png")
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    (folder / "old.overlay.png").touch()
    return folder


def segment(*arguments, labels=LABELS):
    flags = ("--labels", labels, "--models", "tiny", "--device", "cpu")
    return cli.main([str(argument) for argument in ("segment", *arguments, *flags)])


def maps_in(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.labels.png"))}


def test_a_folder_is_segmented_and_a_bad_file_stops_nothing(folder, tmp_path, capsys):
    assert segment(folder, "-o", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "broken.jpg: not an image" in said.err
    assert f"4 images written to {tmp_path / 'out'}, 1 could not be done" in said.out
    assert list(maps_in(tmp_path / "out")) == [f"scene{i}.labels.png" for i in range(4)]


def test_batches_give_what_single_images_give(folder, tmp_path):
    (folder / "broken.jpg").unlink()
    assert segment(folder, "-o", tmp_path / "one") == 0
    assert segment(folder, "-o", tmp_path / "three", "--batch-size", 3) == 0
    one, three = maps_in(tmp_path / "one"), maps_in(tmp_path / "three")
    assert list(one) == list(three)
    for name, expected in one.items():
        assert (three[name] == expected).mean() > 0.999


def test_resume_does_what_is_missing_and_no_more(folder, tmp_path, capsys):
    (folder / "broken.jpg").unlink()
    out = tmp_path / "out"
    assert segment(folder, "-o", out) == 0
    (out / "scene1.labels.png").unlink()
    (out / "scene2.overlay.png").unlink()
    whole = (out / "scene3.labels.png").read_bytes()
    (out / "scene3.labels.png").write_bytes(whole[: len(whole) // 2])
    kept = (out / "scene0.labels.png").stat().st_mtime_ns
    capsys.readouterr()
    assert segment(folder, "-o", out, "--resume") == 0
    assert "3 images written to" in capsys.readouterr().out
    assert (out / "scene0.labels.png").stat().st_mtime_ns == kept
    assert len(maps_in(out)) == 4
    assert segment(folder, "-o", out, "--resume") == 0
    assert "0 images written to" in capsys.readouterr().out
    # Other results are wanted, or results of other labels.
    assert segment(folder, "-o", out, "--resume", "--save-probabilities") == 0
    assert "4 images written to" in capsys.readouterr().out
    assert segment(folder, "-o", out, "--resume", labels="grass; ball") == 0
    assert "4 images written to" in capsys.readouterr().out


def test_two_processes_share_the_images(folder, tmp_path):
    """As `accelerate launch` starts them; one's unreadable file does not end the other's work."""
    assert segment(folder, "-o", tmp_path / "alone") == 2
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2 -m nerve_fast segment"
    flags = [folder, "-o", tmp_path / "shared", "--labels", LABELS, "--models", "tiny"]
    flags += ["--export", "voc"]
    started = subprocess.run(
        [sys.executable, *launch.split(), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert started.returncode != 0
    assert "broken.jpg: not an image" in started.stderr
    assert started.stdout.count("2 images written to") == 2
    names = tmp_path / "shared/voc/ImageSets/Segmentation/default.txt"
    assert names.read_text().split() == [f"scene{i}" for i in range(4)]
    alone, shared = maps_in(tmp_path / "alone"), maps_in(tmp_path / "shared")
    assert list(alone) == list(shared)
    assert all(np.array_equal(alone[name], shared[name]) for name in alone)


def test_two_processes_share_each_image(folder, tmp_path):
    assert segment(folder, "-o", tmp_path / "alone", "--tile", 48, "--save-probabilities") == 2
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2 -m nerve_fast segment"
    flags = [folder, "-o", tmp_path / "shared", "--labels", LABELS, "--models", "tiny"]
    more = ["--tile", "48", "--save-probabilities"]
    started = subprocess.run(
        [sys.executable, *launch.split(), *flags, *["--share-images", "--device", "cpu"], *more],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    # A file that is no image stops nothing here either.
    assert started.returncode != 0
    assert "broken.jpg: not an image" in started.stderr
    assert started.stdout.count("4 images written to") == 1
    alone, shared = maps_in(tmp_path / "alone"), maps_in(tmp_path / "shared")
    assert list(alone) == list(shared)
    for name, expected in alone.items():
        assert (shared[name] == expected).mean() > 0.999
        probabilities = (
            np.load(tmp_path / where / name.replace("labels.png", "npz"))["probabilities"]
            for where in ("alone", "shared")
        )
        one, other = probabilities
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)


def test_shared_images_have_no_reference(folder, tmp_path, capsys):
    assert segment(folder, "-o", tmp_path / "out", "--share-images", "--verify") == 2
    assert "--share-images and --verify are both set" in capsys.readouterr().err


def test_an_interruption_leaves_whole_files_and_what_was_done(folder, tmp_path, monkeypatch):
    out, done = tmp_path / "out", []
    write = command.write

    def interrupted(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        write(*arguments)

    monkeypatch.setattr(command, "write", interrupted)
    assert segment(folder, "-o", out) == 130
    assert len(os.listdir(out)) == 4
    for path in out.iterdir():
        load_image(path)


def test_resume_after_an_interruption_within_an_image(folder, tmp_path, monkeypatch, capsys):
    """Results of other labels are there; of the new ones the label map is not yet."""
    scene, out = folder / "scene0.png", tmp_path / "out"
    assert segment(scene, "-o", out) == 0
    monkeypatch.setattr(visualize, "save_label_map", interrupt)
    assert segment(scene, "-o", out, labels="grass; ball; sand") == 130
    monkeypatch.undo()
    capsys.readouterr()
    for labels in (LABELS, "grass; ball; sand"):
        assert segment(scene, "-o", out, "--resume", labels=labels) == 0
        assert "1 image written to" in capsys.readouterr().out


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_an_image_that_does_not_fit_stops_nothing(folder, tmp_path, capsys):
    Image.new("RGB", (1500, 1500)).save(folder / "large.png")
    (folder / "broken.jpg").unlink()
    flags = ("--resolution", 0, "--max-memory", "300MB", "--batch-size", 2)
    assert segment(folder, "-o", tmp_path / "out", *flags) == 2
    said = capsys.readouterr()
    assert "large.png: max_memory is 300MB; segmenting 1500 × 1500 pixels" in said.err
    assert "4 images written to" in said.out


def test_a_group_without_what_makes_one_is_refused(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert segment(folder, "-o", tmp_path / "out") == 2
    assert "WORLD_SIZE=4 and not LOCAL_RANK, MASTER_ADDR, RANK" in capsys.readouterr().err


def test_images_are_read_in_order_and_ahead(folder):
    failed = {}
    paths = sorted(folder.glob("*.??g"))
    found = [path.name for path, *_ in inputs.readable(paths, 2, failed)]
    assert found == [f"scene{i}.png" for i in range(4)]
    assert [path.name for path in failed] == ["broken.jpg", "old.overlay.png"]


def test_folders_are_listed_without_results(folder, tmp_path):
    listed = inputs.listed([folder, folder / "notes.txt"])
    names = [path.name for path in listed]
    assert names == ["broken.jpg", *(f"scene{i}.png" for i in range(4)), "notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no image, .*\.png"):
        inputs.listed([tmp_path / "empty"])


def test_what_else_a_folder_holds_is_named(folder, monkeypatch, caplog):
    (folder / "broken.jpg").unlink()
    for name in (
        "a.heic",
        "b.HEIF",
        "c.jfif",
        "d.mp4",
        "e.svg",
        "f.csv",
        ".hidden.txt",
        "coco.json",
    ):
        (folder / name).touch()
    (folder / "sub").mkdir()
    (folder / "scene0.masks").mkdir()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    names = [path.name for path in inputs.listed([folder])]
    assert names == ["c.jfif", *(f"scene{i}.png" for i in range(4))]
    assert sorted(caplog.messages) == sorted(
        [
            f"{folder}: a.heic, b.HEIF are left out: each is a HEIC or HEIF picture; to read it: "
            'pip install "nerve-fast[heic]"',
            f"{folder}/d.mp4 is left out: it is a video; segment it by itself",
            f"{folder}/e.svg is left out: it holds drawing commands instead of pixels; export it "
            "as PNG",
            f"{folder}: f.csv, notes.txt are left out: each has no ending of a picture",
            f"{folder}/sub is left out: it is a folder; name it too where its images are wanted",
        ]
    )
    caplog.clear()
    for number in range(20):
        (folder / f"t{number:02}.txt").touch()
    inputs.listed([folder])
    assert "t07.txt and 12 more are left out: each has no ending" in caplog.text


def test_max_pixels_is_the_users_word(folder, tmp_path, monkeypatch, capsys):
    """Of the image, of the mask of scribbles, and of the label map that exports are made of."""
    # Pillow holds what is cut out of an image to its limit too: stripes and tiles are below it.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    monkeypatch.setattr(visualize, "STRIPE_PIXELS", 20_000)
    scene, mask = folder / "scene0.png", tmp_path / "mask.png"
    generate(980_000, 256)[0].save(scene)
    marked = np.zeros((256, 256), np.uint8)
    marked[:9, :9] = 1
    Image.fromarray(marked).save(mask)
    given = (scene, "-o", tmp_path / "out", "--scribbles", mask, "--export", "csv")
    assert segment(*given) == 2
    said = capsys.readouterr().err
    assert "over the limit of 40000; raise max_pixels (--max-pixels) where" in said
    assert segment(*given, "--max-pixels", "66kp") == 0
    assert len((tmp_path / "out" / "areas.csv").read_text().splitlines()) > 1
    assert Image.MAX_IMAGE_PIXELS == 20_000
    capsys.readouterr()
    for wrong in ("0", "many", "400XP"):
        assert segment(*given, "--max-pixels", wrong) == 2
        assert f"max_pixels is '{wrong}'; expected a number above 0" in capsys.readouterr().err


def test_memory_and_tiles_reach_the_pipeline(folder, tmp_path, capsys):
    scene = folder / "scene0.png"
    assert segment(scene, "-o", tmp_path, "--max-memory", "1MB") == 2
    assert (
        "max_memory is 1MB; drawing and writing the results of 64 × 64" in capsys.readouterr().err
    )
    assert segment(scene, "-o", tmp_path, "--tile", 64, "--overlap", 40) == 2
    assert "overlap is 40 and tile 64" in capsys.readouterr().err
    assert segment(scene, "-o", tmp_path, "--batch-size", 0) == 2
    assert "--batch-size is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--global-keys", 50), "are in 50 clusters: the first step within"),
        (("--global-keys", 1, "--max-key-error", 0.05), "clusters: the first step within"),
        (("--global-keys", "none"), ""),
        (("--global-keys", "AUTO"), ""),
    ],
)
def test_keys_are_taken_in_as_many_clusters_as_are_asked_for(folder, tmp_path, capsys, flags, said):
    assert segment(folder / "scene0.png", "-o", tmp_path, *flags, "--verify") == 0
    out, err = capsys.readouterr()
    assert said in err
    assert ("both with keys in" in out) == bool(said)


@pytest.mark.parametrize("value", ["some", "1.5", ""])
def test_what_is_no_number_of_clusters_is_refused(folder, tmp_path, capsys, value):
    with pytest.raises(SystemExit):
        segment(folder / "scene0.png", "-o", tmp_path, "--global-keys", value)
    assert "--global-keys: invalid number, auto or none value" in capsys.readouterr().err
    assert segment(folder / "scene0.png", "-o", tmp_path, "--global-keys", 0) == 2
    assert "global_keys is 0" in capsys.readouterr().err


def test_resume_takes_whole_results_of_the_same_alone(folder, tmp_path, capsys):
    scene, out = folder / "scene0.png", tmp_path / "out"

    def written(*flags):
        capsys.readouterr()
        assert segment(scene, "-o", out, "--resume", *flags) == 0
        return int(capsys.readouterr().out.split()[0])

    assert [written(), written()] == [1, 0]
    assert [written("--steps", 3), written("--steps", 3)] == [1, 0]
    assert [written("--resolution", 96), written()] == [1, 1]
    for name in ("scene0.overlay.png", "scene0.labels.png"):
        whole = (out / name).read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], bytes(len(whole))):
            (out / name).write_bytes(damaged)
            assert [written(), written()] == [1, 0]
            assert (out / name).read_bytes() == whole
    generate(980_007, 64)[0].save(scene)
    assert [written(), written()] == [1, 0]


def test_a_name_that_is_not_utf_8(folder, tmp_path, capsys):
    scene = os.fsencode(folder / "scene0.png").replace(b"scene0", b"sc\xff\xe9ne")
    os.rename(folder / "scene0.png", scene)
    (folder / "broken.jpg").rename(os.fsdecode(bytes(scene).replace(b"sc", b"broken")))
    assert segment(folder, "-o", tmp_path / "out") == 2
    assert os.fsencode(tmp_path / "out") + b"/sc\xff\xe9ne.labels.png" in {
        os.path.join(os.fsencode(tmp_path / "out"), name)
        for name in os.listdir(os.fsencode(tmp_path / "out"))
    }
    assert r"broken\udcff\udce9ne.png: not an image" in capsys.readouterr().err


def test_a_target_that_is_a_folder_is_its_images_failure(folder, tmp_path, capsys):
    (folder / "broken.jpg").unlink()
    out = tmp_path / "out"
    (out / "scene0.labels.png").mkdir(parents=True)
    (out / "scene1.overlay.png").mkdir()
    assert segment(folder, "-o", out) == 2
    said = capsys.readouterr()
    assert "2 images written to" in said.out
    assert "scene0.png: " in said.err
    assert "scene1.png: " in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("count", [26, pytest.param(200, marks=pytest.mark.slow)])
def test_bad_images_of_twenty_kinds_end_nothing(tmp_path, bad_images, capsys, count):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    bad = bad_images(folder)
    assert len(bad) == 20
    good = [f"scene{i:03}" for i in range(count - len(bad))]
    for i, name in enumerate(good):
        generate(980_100 + i, 64)[0].resize((32, 24)).save(folder / f"{name}.png")
    assert segment(folder, "-o", out, "--steps", 1, "--resolution", 32) == 2
    said = capsys.readouterr()
    assert f"{len(good)} images written to {out}, 20 could not be done" in said.out
    errors = [line for line in said.err.splitlines() if line.startswith("nerve-fast: ")]
    assert len(errors) == 20
    for path in bad:
        assert sum(line.startswith(f"nerve-fast: {path}: ") for line in errors) == 1
    assert "Traceback" not in said.err
    assert list(maps_in(out)) == [f"{name}.labels.png" for name in good]


SAVES = ("--save-heatmaps", "--save-probabilities", "--save-steps", "--steps", 1)


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--batch-size", 2)])
def test_files_of_others_are_left_alone(folder, tmp_path, capsys, flags):
    """Of each kind one whose name a result would have."""
    out = tmp_path / "out"
    out.mkdir()
    Image.new("RGB", (9, 9)).save(out / "scene0.overlay.png")
    np.savez_compressed(out / "scene1.npz", label_map=np.zeros(3), probabilities=np.ones(3))
    (out / "scene2.labels.png").write_text("notes")
    (out / "scene3.steps.png").symlink_to(tmp_path / "elsewhere.png")
    Image.new("L", (9, 9)).save(tmp_path / "mine.png")
    (folder / "broken.jpg").unlink()
    generate(980_004, 64)[0].save(folder / "scene4.png")
    (out / "scene4.heatmaps.png").write_bytes((tmp_path / "mine.png").read_bytes())
    generate(980_005, 64)[0].save(folder / "scene5.png")
    before = {path.name: path.read_bytes() for path in out.iterdir() if not path.is_symlink()}
    assert segment(folder, "-o", out, *SAVES, *flags) == 2
    said = capsys.readouterr()
    assert "1 image written to" in said.out
    assert "5 could not be done" in said.out
    for name in (*before, "scene3.steps.png"):
        assert sum(f"{out / name}: " in line for line in said.err.splitlines()) == 1
    assert {name: (out / name).read_bytes() for name in before} == before
    assert (out / "scene3.steps.png").is_symlink()
    assert not (tmp_path / "elsewhere.png").exists()
    # What is not asked for is not looked at, and nothing else of these images was begun.
    assert {path.name.split(".")[0] for path in out.iterdir() if path.name not in before} == {
        "scene3",
        "scene5",
    }


def test_all_own_results_are_overwritten(folder, tmp_path):
    out, scene = tmp_path / "out", folder / "scene0.png"
    assert segment(scene, "-o", out, *SAVES) == 0
    whole = {path: path.read_bytes() for path in out.iterdir()}
    assert len(whole) == 5
    for left in (slice(0, 0), slice(0, 200), None):
        for path, content in whole.items():
            path.write_bytes(bytes(len(content)) if left is None else content[left])
        assert segment(scene, "-o", out, *SAVES) == 0
        for path, content in whole.items():
            assert path.read_bytes() == content


def test_ctrl_c_ends_a_walk_of_a_million_steps(folder, tmp_path, monkeypatch, capsys):
    """Another image is done by then, and stays."""
    out, taken = tmp_path / "out", []
    assert segment(folder / "scene0.png", "-o", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    walk = stages.walk

    def watched(*given, on_step, **named):
        def step():
            on_step()
            taken.append(1)
            if len(taken) == 5:
                os.kill(os.getpid(), signal.SIGINT)

        return walk(*given, on_step=step, **named)

    monkeypatch.setattr(stages, "walk", watched)
    # The workers of pytest-xdist ignore the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert segment(folder / "scene1.png", "-o", out, "--steps", 1_000_000) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(taken) < 10
    assert capsys.readouterr().err == "nerve-fast: interrupted\n"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_name_too_long_for_results_is_its_images_failure(folder, tmp_path, capsys):
    (folder / "broken.jpg").unlink()
    for i, name in enumerate(("x" * 251, "ü" * 125)):
        (folder / f"scene{i}.png").rename(folder / f"{name}.png")
    assert segment(folder, "-o", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "2 images written to" in said.out
    assert said.err.count(": File name too long") == 2
    assert "Traceback" not in said.err
