import pytest
import torch

import nerve_fast as nf
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "water, sea", "ball"]


@pytest.fixture(scope="module")
def image():
    return generate(960_002, (128, 168))[0]


def same(one, other):
    return (
        torch.equal(one.walked, other.walked)
        and torch.equal(one.prior, other.prior)
        and torch.equal(one.label_map, other.label_map)
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"processing_resolution": 200, "tile": 128, "overlap": 32}],
    ids=["whole", "in-tiles"],
)
def test_features_give_what_the_image_gives(pipe, image, options):
    features = pipe.encode(image, **options)
    assert same(pipe(features, LABELS), pipe(image, LABELS, **options))
    config = nf.NerveConfig(steps=3, sharpness=5.0)
    assert same(
        pipe(features, LABELS[:2], config=config, return_steps=[1]),
        pipe(image, LABELS[:2], config=config, return_steps=[1], **options),
    )


def test_a_generator_is_that_of_the_noise(pipe, image):
    def seeded():
        return torch.Generator().manual_seed(9)

    features = pipe.encode(image, generator=seeded())
    assert same(pipe(features, LABELS), pipe(image, LABELS, generator=seeded()))
    assert not same(pipe(features, LABELS), pipe(image, LABELS))


def test_other_words_and_settings_run_no_network(pipe, image):
    passes = []
    networks = [
        pipe.graph.unet,
        pipe.graph.vae.encoder,
        pipe.prior.clip.model.vision_model.encoder.layers[0],
    ]
    handles = [
        network.register_forward_pre_hook(lambda module, given: passes.append(module))
        for network in networks
    ]
    try:
        features = pipe.encode(image)
        assert len(passes) == 3
        pipe(features, LABELS)
        pipe(features, ["snow", "tree"], config=nf.NerveConfig(alpha=0.5, sharpness=0.0))
        pipe(features, points={"here": [(3, 4)], "there": [(100, 90)]})
        assert len(passes) == 3
    finally:
        for handle in handles:
            handle.remove()


def test_lists_of_images_and_features_go_together(pipe, image):
    first, second = pipe.encode([image, image.rotate(90)])
    outs = pipe([first, image, second], LABELS)
    assert [out.image.size for out in outs] == [first.image.size, image.size, second.image.size]
    assert same(outs[0], outs[1])


def test_entropies_are_computed_once(pipe, image, monkeypatch):
    from nerve_fast.pipeline import features as module

    calls = []
    compute = module.entropies
    monkeypatch.setattr(
        module, "entropies", lambda *given, **more: calls.append(1) or compute(*given, **more)
    )
    features = pipe.encode(image)
    for words in (LABELS, LABELS[:2]):
        pipe(features, words)
    assert len(calls) == 1
