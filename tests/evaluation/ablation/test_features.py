import dataclasses
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from nerve_fast import NerveConfig
from nerve_fast.evaluation.ablation.features import FeatureCache, Source
from nerve_fast.imaging.resampling import to_tokens
from nerve_fast.pipeline import stages
from nerve_fast.priors import CLIPPrior, PriorConfig
from nerve_fast.tiny.scenes import NAMES, generate
from nerve_fast.utils.files import written_whole

CLASSES = tuple((name,) for name in NAMES)
PLENTY = 10**9


@pytest.fixture
def image():
    return generate(980_000, (128, 160))[0]


@pytest.fixture
def source(pipe):
    return Source(CLIPPrior(pipe.prior.clip), pipe.graph, CLASSES, {"torch": "2"})


@pytest.fixture
def made(monkeypatch):
    """The images that features were computed of."""
    images = []
    compute = Source.of
    monkeypatch.setattr(
        Source, "of", lambda self, image: images.append(image) or compute(self, image)
    )
    return images


def same(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_what_is_kept_is_what_was_computed(source, image, made, tmp_path):
    fresh = source.of(image)
    first = FeatureCache(tmp_path, PLENTY).features(source, "a/b: c", image)
    again = FeatureCache(tmp_path, PLENTY).features(source, "a/b: c", image)
    assert len(made) == 2
    assert same(fresh, first)
    assert same(fresh, again)
    assert again.prior.shape == (len(NAMES), 32, 40)
    assert again.entropy.shape == again.q.shape[:2] == (1, 8)


def test_a_walk_on_features_is_the_walk_on_the_image(pipe, source, image, tmp_path):
    kept = FeatureCache(tmp_path, PLENTY).features(source, "scene", image)
    config = NerveConfig(sharpness=3.0)
    view = stages.graph_view(pipe.graph, image.size)
    graph = stages.graph_of(pipe.graph, [image], view, [torch.Generator().manual_seed(0)])
    prior = to_tokens(source.prior([image], CLASSES), graph.grid)
    (expected,) = stages.walk(graph, prior, config)
    kept_prior = kept.prior.flatten(1).T[None]
    (found,) = stages.walk(kept.graph, kept_prior, config, entropy=kept.entropy)
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-4, atol=1e-6)


def test_another_image_or_a_damaged_file_is_computed_anew(source, image, made, tmp_path):
    def features(picture=image):
        return FeatureCache(tmp_path, PLENTY).features(source, "scene", picture)

    first = features()
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert same(features(), first)
    assert path.stat().st_size == len(whole)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    assert same(features(), first)
    tensors = load_file(path)
    save_file(tensors, path)
    assert same(features(), first)
    assert len(made) == 4
    other = image.transpose(0)
    assert not torch.equal(features(other).q, first.q)
    assert made[-1] is other


def test_a_full_folder_costs_time_and_no_error(source, image, made, tmp_path, caplog):
    one = FeatureCache(tmp_path, PLENTY)
    one.features(source, "first", image)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert one.used == size
    # The first one is there already; a second fits, a third does not.
    cache = FeatureCache(tmp_path, 2 * size + 1000)
    for _ in range(2):
        results = [cache.features(source, name, image) for name in ("first", "second", "third")]
        assert same(results[0], results[2])
    assert len(made) == 1 + 1 + 2
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 2 * size + 1000
    assert caplog.text.count("no more features are kept") == 1


def test_a_file_made_anew_takes_its_own_place(source, image, tmp_path):
    FeatureCache(tmp_path, PLENTY).features(source, "scene", image)
    (path,) = tmp_path.rglob("*.safetensors")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-4])
    cache = FeatureCache(tmp_path, size + 1000)
    cache.features(source, "scene", image)
    assert path.stat().st_size == size == cache.used


def test_what_a_killed_run_left_takes_no_place(source, image, tmp_path, monkeypatch):
    FeatureCache(tmp_path, PLENTY).features(source, "scene", image)
    (path,) = tmp_path.rglob("*.safetensors")
    monkeypatch.setattr("psutil.pid_exists", lambda number: number != 12345)
    with written_whole(path.with_name("a.safetensors")) as temporary:
        left = path.with_name(temporary.name.replace(f"-{os.getpid()}-", "-12345-"))
    left.write_bytes(bytes(1000))
    path.with_name("a.safetensors").unlink()
    assert FeatureCache(tmp_path, PLENTY).used == path.stat().st_size
    assert not left.exists()
    # Whoever made it, no run of ours did.
    foreign = path.with_name(".other-x1y2.safetensors")
    foreign.touch()
    assert FeatureCache(tmp_path, PLENTY).used == path.stat().st_size
    assert foreign.exists()
    # As what another process renames between the listing and the look at its size.
    path.with_name("gone.safetensors").symlink_to("nothing")
    assert FeatureCache(tmp_path, PLENTY).used == path.stat().st_size


def test_a_folder_that_cannot_be_written_costs_a_warning(source, image, tmp_path, caplog):
    (tmp_path / source.key()[:16]).touch()
    cache = FeatureCache(tmp_path, PLENTY)
    assert same(cache.features(source, "scene", image), source.of(image))
    assert "no more features are kept" in caplog.text


def test_the_key_is_of_all_that_features_depend_on(pipe, source):
    others = [
        {"classes": CLASSES[:-1]},
        {"prior": CLIPPrior(pipe.prior.clip, PriorConfig("maskclip"))},
        {"prior": CLIPPrior(pipe.prior.clip, PriorConfig(resolution=64))},
        {"graph": pipe.graph.untrained()},
        {"versions": {"torch": "3"}},
        {"seed": 1},
        {"graph": pipe.graph.at_timestep(101)},
    ]
    keys = [source.key(), *(dataclasses.replace(source, **other).key() for other in others)]
    assert len(set(keys)) == len(keys)
    assert dataclasses.replace(source, backend="reference").key() == source.key()


def test_networks_that_overflow_are_named(pipe, source, image, monkeypatch):
    monkeypatch.setattr(
        CLIPPrior, "__call__", lambda *given: torch.full((1, 16, 8, 8), float("nan"))
    )
    with pytest.raises(ValueError, match="the prior's network gave values that are not finite"):
        source.of(image)
