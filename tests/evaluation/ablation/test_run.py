import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_fast import NerveConfig
from nerve_fast.cli import main as cli
from nerve_fast.datasets import Dataset
from nerve_fast.errors import InputError
from nerve_fast.evaluation.ablation import run as module
from nerve_fast.evaluation.ablation.ablations import ABLATIONS, Setting
from nerve_fast.evaluation.ablation.counts import Counts
from nerve_fast.evaluation.ablation.features import Features, Source
from nerve_fast.evaluation.ablation.rows import difference_interval
from nerve_fast.evaluation.ablation.run import alike_but_for_steps, walked_steps
from nerve_fast.tiny.scenes import NAMES, generate

BASE = Setting(NerveConfig(radius=2), 100)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two scenes of which the grass counts as background."""
    root = tmp_path_factory.mktemp("set")
    for part in ("images", "masks"):
        (root / part).mkdir()
    for seed in (980_000, 980_001):
        image, mask, names = generate(seed, 64)
        image.save(root / "images" / f"{seed}.png")
        everywhere = np.array([NAMES.index(name) for name in names], dtype=np.uint8)
        Image.fromarray(everywhere[mask]).save(root / "masks" / f"{seed}.png")
    (root / "names.txt").write_text("\n".join(["background, grass", *NAMES[1:]]))
    return root


def run(command, root, output, *flags):
    """Exit code, and ``results.json`` where there is one."""
    given = ("--dataset", "folder", "--root", root, "-o", output, "--models", "tiny")
    words = [*command.split(), *given, "--device", "cpu", *flags]
    code = cli.main([str(word) for word in words])
    path = Path(output) / "results.json"
    return code, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def scores(results, name):
    return {row["label"]: row["miou"] for row in results["ablations"][name]}


@pytest.fixture
def walks(monkeypatch):
    """The settings that were walked with."""
    settings = []
    whole = module.walked_steps

    def counted(features, setting, steps, *given):
        settings.extend(setting.with_config(steps=count) for count in steps)
        return whole(features, setting, steps, *given)

    monkeypatch.setattr(module, "walked_steps", counted)
    return settings


@pytest.fixture
def made(monkeypatch):
    """A timestep for each time that features were computed."""
    timesteps = []
    compute = Source.of

    def of(self, image):
        timesteps.append(self.graph.timestep)
        return compute(self, image)

    monkeypatch.setattr(Source, "of", of)
    return timesteps


def test_settings_are_those_of_the_slides():
    settings = {name: ablation.settings(BASE) for name, ablation in ABLATIONS.items()}
    table2, table3 = settings["table2"], settings["table3"]
    assert {label: of.config.beta for label, of in table2.items()} == {
        "Global": 1,
        "Local": 0,
        "Global + Local + RW": 0.5,
    }
    assert list(table3) == ["Single", "Mean", "Weighted Mean"]
    assert [of.single_head for of in table3.values()] == [True, False, False]
    assert [of.config.sharpness for of in table3.values()] == [1, 0, 1]
    assert {int(label): of.config.steps for label, of in settings["steps"].items()} == {
        steps: steps for steps in (0, 1, 2, 3, 5, 10, 15, 20, 30, 50)
    }
    ways = [
        (of.config.normalization, of.config.temperature)
        for of in settings["normalization"].values()
    ]
    assert {name for name, _ in ways} == {"softmax", "relu", "l1", "shift"}
    assert len({temperature for _, temperature in ways}) > 2
    for name, of in settings.items():
        # Each has the setting that others are compared with, and varies one thing.
        assert BASE in of.values()
        assert len(set(of.values())) == len(of)
        if name in ("alpha", "beta", "steps"):
            assert {
                one.with_config(**{name: getattr(BASE.config, name)}) for one in of.values()
            } == {BASE}
            assert all(float(label) == getattr(one.config, name) for label, one in of.items())
    assert {Setting(one.config, 100) for one in settings["timestep"].values()} == {BASE}
    assert {str(one.timestep) for one in settings["timestep"].values()} == set(settings["timestep"])


def test_another_base_is_among_what_is_tried():
    base = Setting(NerveConfig(alpha=0.33, steps=7, temperature=0.3), 123)
    for name in ("alpha", "steps", "normalization", "timestep"):
        of = ABLATIONS[name].settings(base)
        assert base in of.values()
    steps = [int(label) for label in ABLATIONS["steps"].settings(base)]
    assert steps == sorted(steps)


def test_published_figures_stand_at_their_settings():
    assert ABLATIONS["table2"].published["pc60"] == {
        "Global": 35.0,
        "Local": 34.5,
        "Global + Local + RW": 37.6,
    }
    assert ABLATIONS["table3"].published["voc21"]["Single"] == 67.2
    for name in ("table2", "table3"):
        for figures in ABLATIONS[name].published.values():
            assert list(figures) == list(ABLATIONS[name].settings(BASE))
    assert ABLATIONS["steps"].published == {}


def walked(features, setting, backend="auto"):
    """What one setting makes of an image."""
    (maps,) = walked_steps(features, setting, [setting.config.steps], backend).values()
    return maps


def test_single_is_the_head_of_least_entropy(make_qk, make_prior):
    q, k = make_qk(1, 3, 12, 4, dtype=torch.float32)
    prior = make_prior(12, 5, dtype=torch.float32).T.unflatten(1, (3, 4))
    features = Features(prior, q, k, torch.tensor([[2.0, 0.5, 1.0]]))
    found = walked(features, Setting(BASE.config, 100, single_head=True))
    alone = Features(prior, q[:, 1:2], k[:, 1:2], features.entropy[:, 1:2])
    torch.testing.assert_close(found, walked(alone, BASE))
    # What the weights tend to.
    sharp = walked(features, BASE.with_config(sharpness=1e3))
    torch.testing.assert_close(found, sharp)
    mean = walked(features, BASE.with_config(sharpness=0.0))
    assert not torch.allclose(found, mean)


def test_settings_that_differ_in_steps_are_walked_together(root, tmp_path, monkeypatch):
    calls = []
    whole = module.walked_steps

    def counted(features, setting, steps, *given):
        calls.append(list(steps))
        return whole(features, setting, steps, *given)

    monkeypatch.setattr(module, "walked_steps", counted)
    run("ablate steps alpha --limit 1", root, tmp_path / "out")
    curve = [0, 1, 2, 3, 5, 10, 15, 20, 30, 50]
    assert sorted(calls, key=len) == [[10]] * 8 + [curve]
    # Those that are left of an earlier run as well.
    calls.clear()
    run("ablate steps --limit 1 --steps 4", root, tmp_path / "out")
    assert calls == [[4]]


def test_groups_differ_in_steps_alone():
    settings = [
        setting for ablation in ABLATIONS.values() for setting in ablation.settings(BASE).values()
    ]
    groups = alike_but_for_steps(settings)
    assert sorted(map(hash, settings)) == sorted(hash(one) for group in groups for one in group)
    for group in groups:
        assert len({setting.with_config(steps=1) for setting in group}) == 1
    assert len({group[0].with_config(steps=1) for group in groups}) == len(groups)


def test_several_numbers_of_steps_are_what_each_gives(make_qk, make_prior):
    q, k = make_qk(1, 3, 12, 4, dtype=torch.float32)
    prior = make_prior(12, 5, dtype=torch.float32).T.unflatten(1, (3, 4))
    features = Features(prior, q, k, torch.tensor([[2.0, 0.5, 1.0]]))
    found = walked_steps(features, BASE, [0, 7, None, 3], "auto")
    assert list(found) == [0, 7, None, 3]
    for count, maps in found.items():
        torch.testing.assert_close(maps, walked(features, BASE.with_config(steps=count)))
    assert not torch.allclose(found[3], found[7])


def test_the_default_is_what_evaluate_measures(root, tmp_path):
    flags = ("--threshold", 0.3, "--alpha", 0.7, "--steps", 4)
    _, ablated = run("ablate beta table3", root, tmp_path / "ablated", *flags)
    _, evaluated = run("evaluate --refiner walk", root, tmp_path / "default", *flags)
    found = scores(ablated, "beta")
    assert found["0.5"] == pytest.approx(evaluated["miou"], abs=1e-3)
    assert scores(ablated, "table3")["Weighted Mean"] == found["0.5"]
    _, evaluated = run("evaluate --refiner walk --beta 0", root, tmp_path / "local", *flags)
    assert found["0"] == pytest.approx(evaluated["miou"], abs=1e-3)
    # So that the two are not equal whatever is measured.
    assert abs(found["0"] - found["0.5"]) > 0.01
    bases = [row for rows in ablated["ablations"].values() for row in rows if row["base"]]
    assert [row["interval"] for row in bases] == [[0, 0]] * 2


def test_another_ablation_only_walks_and_a_cut_off_run_goes_on(root, tmp_path, walks, made):
    out = tmp_path / "out"
    _, first = run("ablate table2", root, out)
    assert made == [100, 100]
    assert len(walks) == 2 * 3
    made.clear(), walks.clear()
    _, second = run("ablate table3 table2", root, out)
    assert made == []
    # Those of Table 2 are known, the default among them.
    assert [setting.single_head for setting in walks] == [True, False] * 2
    assert second["ablations"]["table2"] == first["ablations"]["table2"]

    # Killed within the line of the second image, or before its features were whole.
    (path,) = out.glob("features/*/980001.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    lines = (out / "counts.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    (out / "counts.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:50])
    walks.clear()
    _, again = run("ablate table2 table3", root, out)
    assert again["ablations"] == second["ablations"]
    assert made == [100]
    assert len(walks) == 2
    lines = (out / "counts.jsonl").read_bytes().splitlines()
    counted = [(line["image"], key) for line in map(json.loads, lines) for key in line["counts"]]
    assert len(counted) == len(set(counted)) == 2 * 5


def test_features_are_of_each_timestep(root, tmp_path, walks, made):
    _, results = run("ablate timestep --limit 1", root, tmp_path)
    assert sorted(made) == [int(label) for label in scores(results, "timestep")]
    assert sorted(setting.timestep for setting in walks) == sorted(made)
    assert scores(results, "timestep")["1"] != scores(results, "timestep")["800"]


def test_what_was_counted_is_of_its_method_and_words(root, tmp_path, walks):
    out = tmp_path / "out"
    run("ablate table2 --limit 1", root, out)
    for flags in (("--threshold", 0.5), ("--logit-scale", 30), ("--radius", 2)):
        walks.clear()
        run("ablate table2 --limit 1", root, out, *flags)
        assert len(walks) == 3, flags
    walks.clear()
    counted = (out / "counts.jsonl").read_bytes()
    results = run("ablate table2 --limit 1", root, out)[1]
    assert walks == []
    assert (out / "counts.jsonl").read_bytes() == counted
    assert (results["images"], results["complete"]) == (1, False)


def test_what_was_counted_is_of_the_files_of_the_images(root, tmp_path, walks, made):
    files = tmp_path / "set"
    shutil.copytree(root, files)
    mask, image = files / "masks" / "980000.png", files / "images" / "980000.png"
    first = run("ablate table2", files, tmp_path / "out")[1]
    with Image.open(mask) as opened:
        turned = opened.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    turned.save(mask)
    walks.clear(), made.clear()
    second = run("ablate table2", files, tmp_path / "out")[1]
    assert (len(walks), made) == (3, [])
    assert scores(second, "table2") != scores(first, "table2")
    # As without anything of before.
    alone = run("ablate table2", files, tmp_path / "alone")[1]
    assert scores(second, "table2") == scores(alone, "table2")
    with Image.open(image) as opened:
        turned = opened.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    turned.save(image)
    walks.clear(), made.clear()
    run("ablate table2", files, tmp_path / "out")
    assert (len(walks), made) == (3, [100])


def test_what_was_counted_is_of_the_packages(root, tmp_path, walks, made, monkeypatch):
    run("ablate table2 --limit 1", root, tmp_path)
    version = metadata.version
    for package in ("nerve-fast", "torch", "transformers", "diffusers"):
        monkeypatch.setattr(
            metadata, "version", lambda name, new=package: "9.9" if name == new else version(name)
        )
        walks.clear(), made.clear()
        run("ablate table2 --limit 1", root, tmp_path)
        assert (len(walks), made) == (3, [100]), package


def test_counts_are_exact(tmp_path, generator):
    path = tmp_path / "counts.jsonl"
    counts = Counts(path, 4, {"a", "b"})
    matrices = {key: torch.randint(0, 3, (4, 5), generator=generator) * 10**6 for key in ("a", "b")}
    counts.add("image", matrices)
    counts.add("none", {"a": torch.zeros(4, 5, dtype=torch.int64)})
    for again in (counts, Counts(path, 4, {"a", "b"})):
        for key, matrix in matrices.items():
            assert torch.equal(again.matrix("image", key), matrix)
        assert not again.matrix("none", "a").any()
        assert ("none", "b") not in again
    assert set(Counts(path, 4, {"b"}).known) == {("image", "b")}


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[1]",
        '{"counts":{}}',
        *(f'{{"image":"x","counts":{{"a":{counts}}}}}' for counts in ("[1,2]", "[[4,0,1]]", '"b"')),
    ],
)
def test_damaged_counts_are_named(tmp_path, line):
    path = tmp_path / "counts.jsonl"
    counts = Counts(path, 4, {"a"})
    counts.add("image", {"a": torch.ones(4, 5, dtype=torch.int64)})
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="counts.jsonl: line 2 is damaged"):
        Counts(path, 4, {"a"})


def test_an_interval_is_of_the_difference():
    # One class; of each image a hundredth more is right.
    union = torch.full((50, 1, 1), 100)
    own, other = (torch.cat([union // 2 + more, union], 1) for more in (1, 0))
    assert difference_interval(own, other) == pytest.approx([0.01, 0.01])
    # Half of the images are better and half worse by as much.
    sign = torch.tensor([1, -1]).repeat(25).view(50, 1, 1)
    mixed = torch.cat([union // 2 + 10 * sign, union], 1)
    low, high = difference_interval(mixed, other)
    # A mean of 50 draws of ±0.1 has a standard deviation of 0.1/√50.
    assert low == pytest.approx(-1.96 * 0.1 / 50**0.5, rel=0.25)
    assert high == pytest.approx(1.96 * 0.1 / 50**0.5, rel=0.25)


def test_images_without_a_pixel_that_counts_say_nothing():
    union = torch.full((1, 1, 1), 100)
    own, other = (torch.cat([union // 2 + more, union], 1) for more in (1, 0))
    nothing = torch.zeros(1, 2, 1, dtype=torch.int64)
    own, other = (torch.cat([parts, nothing]) for parts in (own, other))
    assert difference_interval(own, other) == pytest.approx([0.01, 0.01])


def test_a_run_without_a_pixel_that_counts_has_no_figures(root, tmp_path, capsys):
    files = tmp_path / "set"
    shutil.copytree(root, files)
    for mask in (files / "masks").iterdir():
        Image.new("L", (64, 64), 255).save(mask)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    code, _ = run("ablate table2 steps", files, tmp_path / "out")
    assert code == 0
    text = (tmp_path / "out" / "results.json").read_text(encoding="utf-8")
    rows = json.loads(text, parse_constant=refuse)["ablations"]["table2"]
    assert [(row["miou"], row["interval"]) for row in rows] == [(None, [None, None])] * 3
    assert "| Local | – | – (– to –) | 58.7 (-11.0)" in capsys.readouterr().out


def test_the_page_has_every_table_and_plot(root, tmp_path, capsys):
    page = tmp_path / "docs" / "page.md"
    code, results = run("ablate steps table2", root, tmp_path / "out", "--document", page)
    assert code == 0
    text = page.read_text(encoding="utf-8")
    base = scores(results, "table2")["Global + Local + RW"]
    local = scores(results, "table2")["Local"]
    assert (
        f"| **Global + Local + RW** | **{100 * base:.1f}** | default | 69.7 | 37.6 | 43.4 |" in text
    )
    (line,) = (line for line in text.splitlines() if line.startswith("| Local |"))
    assert line.startswith(f"| Local | {100 * local:.1f} | {100 * (local - base):+.1f} (")
    assert line.endswith("| 58.7 (-11.0) | 34.5 (-3.1) | 37.6 (-5.8) |")
    assert line in capsys.readouterr().out
    assert "fixture, not evidence" in text
    for name in ("steps", "table2"):
        assert f"(plots/ablation-{name}.png)" in text
        with Image.open(page.parent / "plots" / f"ablation-{name}.png") as plot:
            plot.load()
        assert f"({name}.png)" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ablate nothing", "ablation is 'nothing'; expected one of table2, table3"),
        ("ablate steps --limit 0", "--limit is 0"),
        ("ablate steps --cache-size plenty", "plenty"),
        ("ablate steps --preset nothing", "preset is 'nothing'"),
        ("ablate steps table2 --beta 1", "table2 compares Global with Global + Local + RW, which"),
        ("ablate table2 --beta 0", "table2 compares Local with Global + Local + RW, which"),
        ("ablate table3 --sharpness 0", "table3 compares Mean with Weighted Mean, which"),
    ],
)
def test_mistakes_are_said_before_anything_runs(root, tmp_path, words, said, capsys):
    assert run(words, root, tmp_path / "out")[0] == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("ablate steps", root, tmp_path / "out")[0] == 2
    assert "WORLD_SIZE=2; expected 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_nothing_is_computed(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("ablate steps", root, tmp_path / "out")[0] == 2
    assert "pip install 'nerve-fast[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["cliper", "gem", "clip-diy"])
def test_a_rule_of_scores_is_refused(tmp_path, monkeypatch, capsys, preset):
    dataset = Dataset("voc21", ("background", "cat"), True, ())
    monkeypatch.setattr(module, "dataset_asked_for", lambda asked: dataset)
    output = str(tmp_path / "out")
    assert (
        cli.main(["ablate", "steps", "--dataset", "voc21", "--preset", preset, "-o", output]) == 2
    )
    assert f"the preset {preset} labels pixels by a score of each class" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_images_end_nothing(root, tmp_path, bad_images, capsys):
    _, expected = run("ablate table2", root, tmp_path / "whole")
    spoiled, out = shutil.copytree(root, tmp_path / "spoiled"), tmp_path / "out"
    bad = bad_images(spoiled / "images")
    for path in bad:
        Image.new("L", (30, 24)).save(spoiled / "masks" / f"{path.stem}.png")
    (spoiled / "masks" / "text.png").unlink()
    capsys.readouterr()
    code, results = run("ablate table2", spoiled, out)
    said = capsys.readouterr()
    assert code == 2
    assert f"2 images, written to {out}, {len(bad)} could not be evaluated" in said.out
    for path in bad:
        assert sum(f"nerve-fast: {path}: " in line for line in said.err.splitlines()) == 1
    assert (results["images"], results["failed"]) == (2, len(bad))
    assert not results["complete"]
    assert results["ablations"] == expected["ablations"]
    page = (out / "table.md").read_text(encoding="utf-8")
    assert f"({len(bad)} could not be evaluated)" in page


@pytest.mark.parametrize("name", ["page.md", "plots/ablation-table2.png"])
def test_a_document_overwrites_its_own_files_alone(root, tmp_path, capsys, name):
    page = tmp_path / "page.md"
    for words in ("ablate table2", "ablate table2", "ablate table3", "ablate table2"):
        assert run(words, root, tmp_path / "out", "--document", page)[0] == 0
    # The page names the plots that it was written with.
    assert run("ablate table3", root, tmp_path / "out", "--document", page)[0] == 0
    (tmp_path / name).write_text("mine")
    capsys.readouterr()
    assert run("ablate table2", root, tmp_path / "out", "--document", page)[0] == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / name}: was not made by this command" in said
    assert said.count("\n") == 1
    assert (tmp_path / name).read_text() == "mine"
