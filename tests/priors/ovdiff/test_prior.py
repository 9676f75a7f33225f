import json
import logging
import sys
import threading

import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, interpolate

from nerve_fast import InputError, NervePipeline
from nerve_fast.backbones import text_to_image
from nerve_fast.backbones.sam import SegmentAnything
from nerve_fast.bench.harness.memory import allocated_on_cpu
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors import OVDiff, PriorConfig
from nerve_fast.priors.ovdiff import prior as module
from nerve_fast.priors.ovdiff import prototypes, support
from nerve_fast.priors.ovdiff.classes import present
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
CLASSES = [["background"], ["grass"], ["ball"], ["sky"]]


class Halves:
    """A detector that finds the upper and the lower half, or nothing, and counts its calls."""

    identity = "halves"

    def __init__(self):
        self.seen = []

    def __call__(self, image):
        self.seen.append(image)
        upper = torch.zeros(image.height, image.width)
        upper[: image.height // 2] = 1
        return [upper, 1 - upper]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(text_to_image, "STEPS", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prototypes")


@pytest.fixture
def loaded(ovdiff_networks, monkeypatch, folder):
    def load(detector=None, cache=folder, **settings):
        monkeypatch.setattr(module, "cache_folder", lambda: cache)
        networks = {name: ovdiff_networks[name] for name in ("diffusion", "dino")}
        taken = {"resolution": 64, "support": 2, "background": "background", **settings}
        config = PriorConfig("ovdiff", networks=networks, **taken)
        detector = Halves() if detector is None else detector
        return OVDiff.load(config, str(MODELS / "clip"), **CPU, detector=detector)

    return load


@pytest.fixture(scope="module")
def image():
    return generate(961_000, (64, 100))[0].crop((0, 0, 91, 52))


@torch.no_grad()
def by_hand(prior, image, there, background=True):
    """Cosines one crop, network, label and prototype at a time."""
    width, height = image.size
    short = min(width, height)
    image = image.resize((64 * width // short, 64 * height // short), Image.Resampling.LANCZOS)
    pixels = to_tensor(image)
    height, width = pixels.shape[1:]
    boxes = []
    for side in (64, 48):
        for top in range(max(height - side + 31, 0) // 32 + 1):
            for left in range(max(width - side + 31, 0) // 32 + 1):
                bottom, right = min(32 * top + side, height), min(32 * left + side, width)
                boxes.append((max(bottom - side, 0), bottom, max(right - side, 0), right))
    boxes.append((0, height, 0, width))
    total, count = torch.zeros(len(there) + 1, height, width), torch.zeros(height, width)
    noise = torch.Generator().manual_seed(43)
    for name in ("diffusion", "clip", "dino"):
        for top, bottom, left, right in boxes:
            crop = pixels[None, :, top:bottom, left:right]
            if name == "diffusion":
                crop = interpolate(crop, (64, 64), mode="bilinear")
                features = prior.diffusion.features(crop[0], noise, noise)
            elif name == "clip":
                crop = interpolate(crop, (64, 64), mode="bilinear")[0]
                features = clip_keys(prior.clip, crop)
            else:
                features = dino_keys(prior.dino, crop[0])
            h, w, _ = features.shape
            found = torch.full((len(there) + 1, h, w), -1.0)
            for number, label in enumerate(there):
                for kind, place in (("foreground", number), ("background", len(there))):
                    for one in prior._known[label][f"{name} {kind}"]:
                        nearness = cosine_similarity(features, one[None, None], dim=-1)
                        found[place] = torch.maximum(found[place], nearness)
            found = interpolate(
                found[None], (bottom - top, right - left), mode="bilinear", align_corners=False
            )
            total[:, top:bottom, left:right] += found[0]
            count[top:bottom, left:right] += 1
    return total / count


def clip_keys(clip, pixels):
    """transformers' own states, and the keys of the last layer but one made of them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    vision = clip.model.vision_model
    # At CLIP's own size, where position embeddings stay as they are.
    assert pixels.shape[-1] == clip.image_size
    states = vision(pixels[None], output_hidden_states=True).hidden_states
    layer = vision.encoder.layers[-2]
    keys = layer.self_attn.k_proj(layer.layer_norm1(states[-3]))[0, 1:]
    side = clip.image_size // clip.patch
    return keys.unflatten(0, (side, side))


def dino_keys(dino, pixels):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    kept = []
    (*_, key) = [module for name, module in dino.model.named_modules() if name.endswith("key")] or [
        module for name, module in dino.model.named_modules() if name.endswith("k_proj")
    ]
    handle = key.register_forward_hook(lambda module, inputs, output: kept.append(output))
    grid = (pixels.shape[1] // 8, pixels.shape[2] // 8)
    dino.model(pixels[None, :, : 8 * grid[0], : 8 * grid[1]], interpolate_pos_encoding=True)
    handle.remove()
    return kept[0][0, 1:].unflatten(0, grid)


def test_maps_are_mean_cosines_to_the_nearest_prototypes(loaded, image):
    prior = loaded()
    prior.check_labels(CLASSES)
    small = image.resize((64 * 91 // 52, 64), Image.Resampling.LANCZOS)
    there = [
        ["grass", "ball", "sky"][k] for k in present(prior.clip, small, ["grass", "ball", "sky"])
    ]
    expected = by_hand(prior, image, there)
    found = prior.maps([image], CLASSES)[0]
    assert found.shape == (4, 64, 112)
    torch.testing.assert_close(found[0], expected[-1], rtol=1e-3, atol=1e-4)
    assert found[0].std() > 1e-3
    for number, words in enumerate(CLASSES[1:], start=1):
        if words[0] in there:
            own = expected[there.index(words[0])]
            torch.testing.assert_close(found[number], own, rtol=1e-3, atol=1e-4)
            assert own.std() > 1e-3
        else:
            assert (found[number] == -1).all()
    # An image does not depend on those before it.
    assert torch.equal(prior.maps([image, image], CLASSES)[1], found)
    probabilities = prior.probabilities([image], CLASSES)[0]
    torch.testing.assert_close(probabilities, (40 * found.clamp(min=0)).softmax(0))
    torch.testing.assert_close(probabilities, prior.scores(found, CLASSES))


def test_a_dino_sees_a_very_long_image_smaller(loaded):
    dino = loaded().extractors[2]
    assert dino.fitted(torch.zeros(3, 64, 112), 64).shape == (3, 64, 112)
    assert dino.fitted(torch.zeros(3, 64, 200), 64).shape == (3, 36, 114)
    assert dino.fitted(torch.zeros(3, 200, 64), 64).shape == (3, 114, 36)
    # As torchvision: 800 of 448.
    assert dino.fitted(torch.zeros(3, 448, 1000), 448).shape == (3, 358, 800)


def test_stuff_is_always_there_and_has_no_background(loaded, image, monkeypatch):
    prior = loaded(stuff=("sky",))
    # Random networks make images that look alike.
    monkeypatch.setattr(prototypes, "ALIKE", 1.1)
    asked = []

    def none(clip, image, names):
        asked.append(names)
        return [0] if names else []

    monkeypatch.setattr(module.chosen, "present", none)
    found = prior.maps([image], CLASSES)[0]
    assert asked == [["grass", "ball"]]
    assert [bool((one == -1).all()) for one in found] == [False, False, True, False]
    # Nothing but stuff: there is no prototype of a background.
    only = loaded(stuff=("sky", "ball")).maps([image], [["background"], ["ball"], ["sky"]])[0]
    assert (only[0] == -1).all()
    assert (only[1:] > -1).all()


def test_without_a_background_there_is_no_map_of_it(loaded, image):
    with_it = loaded().maps([image], CLASSES)[0]
    without = loaded(background=None).maps([image], CLASSES[1:])[0]
    torch.testing.assert_close(without, with_it[1:])


def test_prototypes_are_made_once_a_machine(loaded, tmp_path, monkeypatch):
    first, second = Halves(), Halves()
    prior = loaded(first, cache=tmp_path)
    bars = []

    class Bar(module.tqdm):
        def __init__(self, *rest, **more):
            super().__init__(*rest, **{**more, "disable": False})
            bars.append((self, more["disable"]))

    monkeypatch.setattr(module, "tqdm", Bar)
    prior.check_labels(CLASSES, progress=True)
    assert len(first.seen) == 3 * 2
    ((bar, disabled),) = bars
    assert (bar.total, bar.n, disabled) == (6, 6, None)
    assert all(image.size == (64, 64) for image in first.seen)
    prior.check_labels(CLASSES)
    again = loaded(second, cache=tmp_path)
    again.check_labels([*CLASSES, ["water", "sea"]])
    # The new word alone; synonyms have none of their own.
    assert len(second.seen) == 2
    assert bars[1][1] is True
    for word in ("grass", "ball", "sky"):
        for name, tensor in prior._known[word].items():
            assert torch.equal(again._known[word][name], tensor)


@pytest.mark.parametrize("change", ["detector", "support", "templates", "steps", "weights"])
def test_others_prototypes_are_not_taken(loaded, tmp_path, monkeypatch, change):
    loaded(cache=tmp_path).check_labels([["ball"]])
    detector, settings = Halves(), {}
    if change == "detector":
        detector.identity = "other halves"
    elif change == "support":
        settings = {"support": 3}
    elif change == "templates":
        settings = {"templates": "photo"}
    elif change == "steps":
        monkeypatch.setattr(text_to_image, "STEPS", 3)
    prior = loaded(detector, cache=tmp_path, **settings)
    if change == "weights":
        next(prior.dino.model.parameters()).data += 1
    prior.check_labels([["ball"]])
    assert detector.seen


def test_prototypes_are_kept_under_all_that_they_depend_on(loaded, monkeypatch):
    real = support.version
    changes = {
        "FOREGROUND": 0.6,
        "BACKGROUND": 0.3,
        "LAYER": -1,
        "version": lambda name: "9" if name == "nerve-fast" else real(name),
    }
    prior = loaded()
    usual = prior.support.kept().model
    assert prior.support.kept().model == usual
    for name, value in changes.items():
        with monkeypatch.context() as changed:
            changed.setattr(support, name, value)
            assert prior.support.kept().model != usual, name
    for part in ("clip", "dino"):
        halved = loaded()
        getattr(halved, part).model.to(torch.bfloat16)
        assert halved.support.kept().model != usual, part


def test_a_sam_is_loaded_where_the_prior_is(ovdiff_networks, monkeypatch):
    # Whatever else the machine has.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []

    def load(source, *, device):
        asked.append((source, device))
        return Halves()

    monkeypatch.setattr(module.SegmentAnything, "from_pretrained", load)
    config = PriorConfig("ovdiff", networks=ovdiff_networks)
    OVDiff.load(config, str(MODELS / "clip"), **CPU)
    assert asked == [(ovdiff_networks["detector"], CPU["device"])]


def test_memory_of_a_sam_is_planned_where_it_is(loaded, ovdiff_networks, monkeypatch, tmp_path):
    elsewhere = torch.device("meta")
    sam = SegmentAnything.from_pretrained(ovdiff_networks["detector"], device=elsewhere)
    sam.identity = "elsewhere"
    prior = loaded(sam, cache=tmp_path)
    needs = prior.support.memory()
    assert needs[elsewhere] > 4 << 30 > needs[CPU["device"]] > 0
    assert loaded(cache=tmp_path).support.memory() == {CPU["device"]: needs[elsewhere]}
    monkeypatch.setattr(
        support, "free_memory", lambda device: 0 if device == elsewhere else 1 << 40
    )
    with pytest.raises(InputError, match="of the memory of meta, and 0 B"):
        prior.support.check_memory()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
def test_processes_share_the_words(loaded, tmp_path):
    """Threads here, as locks of files are between them too."""

    class Second(Halves):
        def __call__(self, image):
            begun.set()
            return super().__call__(image)

    class First(Halves):
        def __call__(self, image):
            if not self.seen:
                other.start()
                assert begun.wait(60)
            return super().__call__(image)

    begun = threading.Event()
    priors = [loaded(kind(), cache=tmp_path) for kind in (First, Second)]
    words = [["ball"], ["sky"]]
    other = threading.Thread(target=priors[1].check_labels, args=(words,))
    priors[0].check_labels(words)
    other.join()
    # Each made one word, of two images, and read the other.
    assert [len(prior.detector.seen) for prior in priors] == [2, 2]
    for word in ("ball", "sky"):
        for name, tensor in priors[0]._known[word].items():
            assert torch.equal(priors[1]._known[word][name], tensor)
    assert len(list((tmp_path / "prototypes").iterdir())) == 2


def test_damaged_prototypes_are_made_anew(loaded, tmp_path):
    loaded(cache=tmp_path).check_labels([["ball"]])
    (path,) = (tmp_path / "prototypes").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"no tensors"):
        path.write_bytes(damaged)
        detector = Halves()
        loaded(detector, cache=tmp_path).check_labels([["ball"]])
        assert len(detector.seen) == 2
        detector = Halves()
        loaded(detector, cache=tmp_path).check_labels([["ball"]])
        assert not detector.seen


def test_what_a_nameless_detector_makes_is_not_kept(loaded, tmp_path):
    prior = loaded(lambda image: [], cache=tmp_path)
    prior.check_labels([["ball"]])
    assert not list(tmp_path.rglob("*.safetensors"))
    assert "ball" in prior._known
    assert "function" in prior.identity
    # Two functions are of one kind, and find different things.
    assert prior.identity == prior.identity != loaded(lambda image: [image]).identity


def test_a_cache_that_cannot_be_written_costs_a_warning(loaded, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        loaded(cache=tmp_path / "file").check_labels([["ball"], ["sky"]])
    assert caplog.text.count("prototypes are not kept") == 1


def test_a_sam_is_the_detector_unless_another_is_given(loaded, ovdiff_networks, monkeypatch):
    monkeypatch.setattr("nerve_fast.backbones.sam.POINTS", 2)
    config = PriorConfig("ovdiff", networks=ovdiff_networks, support=1)
    prior = OVDiff.load(config, str(MODELS / "clip"), **CPU)
    assert prior.detector.identity.startswith("SAM ")
    assert prior.detector.device == prior.support.detecting == CPU["device"]
    prior.check_labels([["ball"]])
    assert json.dumps(prior.detector.identity)[1:-1] in json.dumps(prior.identity)


def test_it_runs_in_the_pipeline(loaded, image, pipe):
    out = NervePipeline(loaded(), pipe.graph)(image, ["background", "grass, tree", "ball"])
    assert out.label_map.shape == (52, 91)
    assert loaded().identity == loaded().identity != loaded(background=None).identity


def test_what_cannot_be_used_is_refused(loaded, monkeypatch):
    with pytest.raises(InputError, match="prior support is 0; expected a number of images"):
        PriorConfig("ovdiff", support=0)
    with pytest.raises(InputError, match="prior support is True; expected a number of images"):
        PriorConfig("ovdiff", support=True)
    with pytest.raises(InputError, match="prior support is 8, which the prior naclip does not"):
        PriorConfig("naclip", support=8)
    with pytest.raises(InputError, match="the label 'ball ball .* reads 77"):
        loaded().check_labels([["ball " * 90]])
    with pytest.raises(InputError, match="a mask has shape"):
        loaded(lambda image: [torch.zeros(3, 3)]).check_labels([["house"]])
    with pytest.raises(InputError, match="OVDiff would see 64 × 64000000 pixels"):
        module.scaled((1, 1_000_000), 64)
    monkeypatch.setattr(support, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match="prototypes of 2 support images takes up to .* are free"):
        loaded().check_labels([["water"]])


def test_a_call_keeps_to_what_it_says(loaded):
    prior = loaded(resolution=256)
    prior.check_labels(CLASSES)
    photograph = Image.effect_noise((320, 240), 60).convert("RGB")
    view = prior.view(photograph.size)
    planned = prior.memory(view, 1, len(CLASSES)) + prior.encoded_memory(view, 1)
    allocated = allocated_on_cpu(lambda: prior.maps([photograph], CLASSES))
    assert allocated <= planned <= 5 * allocated
