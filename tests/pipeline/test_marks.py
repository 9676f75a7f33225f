import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from nerve_fast import NerveConfig, PriorConfig
from nerve_fast.pipeline import batch, marks
from nerve_fast.pipeline.asked import SegmentSettings
from nerve_fast.pipeline.marks import is_whole, settings_digest, stamp_of, stamped
from nerve_fast.pipeline.settings import ModelSettings
from nerve_fast.utils.provenance import file_digest

ASKED = SegmentSettings(
    images=["a.png"],
    labels=["cat", "dog"],
    output="out",
    models=ModelSettings(models="tiny", device="cpu"),
)


@pytest.fixture
def png():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_stamped_png_is_the_same_image(png, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(stamped(png, {"settings": "s", "label": "größe"}))
    assert stamp_of(path) == {"settings": "s", "label": "größe"}
    with Image.open(path) as image:
        assert np.array(image).tolist() == np.arange(64).reshape(8, 8).tolist()


def test_any_damage_is_seen(png, tmp_path, generator):
    path = tmp_path / "a.png"
    whole = stamped(png, {"settings": "s"})
    places = torch.randint(0, 8 * len(whole), (300,), generator=generator).tolist()
    for place in places:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert stamp_of(path) is None
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", bytes(len(whole)), png, whole * 2):
        path.write_bytes(damaged)
        assert stamp_of(path) is None
    assert stamp_of(tmp_path / "nowhere") is None
    assert stamp_of(tmp_path) is None


def test_results_are_whole_of_these_settings_and_this_image(png, tmp_path):
    source, stem = tmp_path / "source.jpg", tmp_path / "a"
    source.write_bytes(b"an image")
    overlay, label_map = tmp_path / "a.overlay.png", tmp_path / "a.labels.png"
    endings = ["overlay.png", "labels.png"]

    def write():
        source.write_bytes(b"an image")
        overlay.write_bytes(png)
        made = {
            "settings": "s",
            "source": file_digest(source),
            "results": {"overlay.png": file_digest(overlay)},
        }
        label_map.write_bytes(stamped(png, made))

    def whole(endings=endings, settings="s"):
        return is_whole(stem, endings, settings=settings, source=source)

    write()
    assert whole()
    assert whole(["labels.png"])
    assert not whole(settings="t")
    assert not whole([*endings, "npz"])
    for damage in (
        lambda: overlay.write_bytes(b""),
        lambda: overlay.write_bytes(png[:-20]),
        lambda: overlay.write_bytes(bytes(len(png))),
        lambda: overlay.unlink(),
        lambda: label_map.write_bytes(png),
        lambda: source.write_bytes(b"another image"),
        lambda: source.unlink(),
    ):
        write()
        damage()
        assert not whole()


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["cat", "dog, puppy"]},
        {"config": NerveConfig(steps=9)},
        {"config": NerveConfig(temperature=0.06)},
        {"resolution": 96},
        {"tile": 64},
        {"top": 1},
        {"threshold": 0.3},
        {"threshold": {"cat": 0.3}},
        {"threshold": {"cat": 0.3}, "background": "dog"},
        {"global_keys": 100},
        {"max_memory": "1GB"},
        {"prior": PriorConfig(logit_scale=30.0)},
        {"prior": PriorConfig(name="maskclip")},
        {"models": ModelSettings(models="tiny", device="cpu", seed=1)},
        {"models": ModelSettings(models="tiny", device="cpu", timestep=50)},
        {"models": ModelSettings(models="tiny", device="cpu", dtype=torch.float16)},
        {"models": ModelSettings(models="tiny", device="cpu", layers=["a"])},
        {"models": ModelSettings(models="tiny", device="cpu", graph="facebook/dinov2-base")},
        {"models": ModelSettings(models="tiny", device="cpu", backend="reference")},
        {"models": ModelSettings(device="cpu")},
    ],
)
def test_every_setting_that_results_depend_on_counts(changes):
    assert settings_digest(dataclasses.replace(ASKED, **changes), "cpu") != settings_digest(
        ASKED, "cpu"
    )


def test_settings_that_change_no_result_do_not_count():
    for changes in ({"batch_size": 3}, {"resume": True}, {"output": "other"}, {"images": ["b"]}):
        other = dataclasses.replace(ASKED, **changes)
        assert settings_digest(other, "cpu") == settings_digest(ASKED, "cpu")


def test_other_weights_in_the_same_folder_count(copied_models):
    asked = dataclasses.replace(ASKED, models=ModelSettings(models=copied_models, device="cpu"))
    before = settings_digest(asked, "cpu")
    assert settings_digest(asked, "cpu") == before
    weights = copied_models / "clip" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert settings_digest(asked, "cpu") != before


def test_versions_of_packages_count(monkeypatch):
    before = settings_digest(ASKED, "cpu")
    monkeypatch.setattr("nerve_fast.pipeline.marks.version", lambda package: "9.9")
    assert settings_digest(ASKED, "cpu") != before


@pytest.mark.parametrize("source", ["a/b/c", "/nowhere/at/all", "", "a b", "--", "x" * 300])
def test_models_that_do_not_exist_are_left_to_loading(source):
    asked = dataclasses.replace(ASKED, models=ModelSettings(clip=source, device="cpu"))
    assert settings_digest(asked, "cpu") != settings_digest(ASKED, "cpu")


def test_a_label_map_names_the_revisions_of_its_networks(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pipe.prior.clip, "revision", "a" * 40)
    monkeypatch.setattr(pipe.graph, "revision", "b" * 40)
    assert batch.revisions(pipe) == {"clip": "a" * 40, "graph": "b" * 40}


def test_a_single_file_or_a_pinned_model_is_told_from_another(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / "models--someone--model"
    for commit, ref in (("a" * 40, "main"), ("b" * 40, "old")):
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / ref).write_text(commit)
        (home / "snapshots" / commit).mkdir(parents=True)
    file = tmp_path / "model.safetensors"
    states = []
    for content in (b"", b"1"):
        file.write_bytes(content)
        states.append(marks._state_of(file))
    for source in ("someone/model", "someone/model@old", "nobody/nothing"):
        states.append(marks._state_of(source))
    assert states[2:4] == [["someone/model", "a" * 40], ["someone/model@old", "b" * 40]]
    assert len({str(state) for state in states}) == len(states)
