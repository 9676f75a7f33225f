import pytest
import torch

import nerve_fast as nf
from nerve_fast import InputError, NerveConfig, head_entropy
from nerve_fast.imaging.resampling import to_tokens
from nerve_fast.pipeline import stages
from nerve_fast.refiners import Walk, walk
from nerve_fast.refiners.walk import calibration, weights_of
from nerve_fast.tiny.scenes import generate

LABELS = ["grass", "water", "ball", "house"]


def prior_of(pipe, image, plan):
    """``(K, h, w)`` as the pipeline had it."""
    classes = [[label] for label in LABELS]
    return pipe.prior([image], classes, plan.view)[0]


def graph_of(pipe, image, seed=0):
    generators = [torch.Generator().manual_seed(seed)]
    view = stages.graph_view(pipe.graph, image.size)
    return stages.graph_of(pipe.graph, [image], view, generators)


def walked(graph, probabilities, config, **options):
    prior = to_tokens(probabilities[None], graph.grid)
    return walk(graph, prior, config, **options)[0].maps


@pytest.mark.parametrize(
    ("size", "config"),
    [
        ((128, 128), NerveConfig()),
        ((128, 264), NerveConfig(normalization="l1", steps=3, sharpness=4.0, alpha=1.0)),
    ],
    ids=["default", "l1-in-tiles"],
)
def test_it_is_what_the_pipeline_makes_of_the_same_prior(pipe, size, config):
    image = generate(960_000, size)[0]
    out = pipe(image, LABELS, config=config, global_keys=None)
    assert (len(out.plan.tiling) > 1) == (size != (128, 128))
    refined = Walk(config)(image, prior_of(pipe, image, out.plan), graph_of(pipe, image))
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, out.walked, rtol=1e-5, atol=1e-6)


def test_a_negative_walk_becomes_a_distribution(pipe, make_prior):
    image = generate(960_000, (128, 128))[0]
    probabilities = make_prior(4, 4, 6, dtype=torch.float32).permute(2, 0, 1)
    config = NerveConfig(normalization="l1", alpha=1.0)
    refined = Walk(config)(image, probabilities, graph_of(pipe, image))
    assert (refined >= 0).all()
    torch.testing.assert_close(refined.sum(0), torch.ones(refined.shape[1:]))


def test_entropies_may_be_had_before(pipe, make_prior):
    features = graph_of(pipe, generate(960_000, (128, 128))[0])
    probabilities = make_prior(4, 4, 3, dtype=torch.float32).permute(2, 0, 1)
    config = NerveConfig(sharpness=8.0)
    entropy = head_entropy(features.q, features.k)
    expected = walked(features, probabilities, config)
    torch.testing.assert_close(walked(features, probabilities, config, entropy=entropy), expected)
    other = walked(features, probabilities, config, entropy=entropy.flip(1))
    assert not torch.allclose(other, expected)


def test_settings_reach_the_walk(pipe, make_prior):
    image = generate(960_000, (128, 128))[0]
    probabilities = make_prior(4, 4, 3, dtype=torch.float32).permute(2, 0, 1)
    features = graph_of(pipe, image, seed=7)
    config = NerveConfig(steps=2)
    refined = Walk(config, backend="reference")(image, probabilities, features)
    assert torch.equal(refined, walked(features, probabilities, config, backend="reference"))
    with pytest.raises(ValueError, match="backend"):
        Walk(backend="none")(image, probabilities, features)


def test_maps_of_several_images_are_refused(pipe, make_prior):
    image = generate(960_000, (128, 128))[0]
    with pytest.raises(InputError, match=r"shape \(1, 3, 4, 4\); expected \(K, h, w\)"):
        Walk()(image, make_prior(1, 4, 4, 3).permute(0, 3, 1, 2), graph_of(pipe, image))


def test_it_needs_the_graph_of_one_image(pipe, make_prior):
    image = generate(960_000, (128, 128))[0]
    with pytest.raises(InputError, match="graph is None; the refiner walk needs the features"):
        Walk()(image, make_prior(4, 4, 3, dtype=torch.float32).permute(2, 0, 1))


def test_calibration_by_hand():
    seeds = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0], [0.0, 0.0]])
    walked = torch.tensor([[0.3, 0.0], [0.4, 0.1], [0.2, 0.5], [0.1, 0.4]])
    # With α = 0.5 and one step, (1 − α) / (1 − α²) = 2/3 of the walkers of a seed stay.
    found = calibration(walked, seeds, 0.5, 1)
    assert torch.allclose(found, torch.tensor([(0.0 + 0.4 - 1 / 3) / 2, 1.0]), atol=1e-6)
    assert torch.equal(calibration(seeds, seeds, 0.5, 0), torch.ones(2))


def test_labels_of_seeds_alone_are_calibrated(pipe):
    graph = graph_of(pipe, generate(960_002, 128)[0])
    seeds = torch.zeros(1, graph.q.shape[-2], 3)
    seeds[0, [3, 40, 41], [0, 1, 1]] = torch.tensor([1.0, 0.5, 0.5])
    config = NerveConfig(beta=1.0, steps=4)
    P = nf.random_walk(
        graph.q, graph.k, seeds, graph.grid, config, head_weights=weights_of(graph, config, None)
    )[0]
    expected = P / calibration(P, seeds[0], 0.9, 4)
    expected = expected / expected.sum(-1, keepdim=True)
    config = config.replace(sharpness=0.0)
    for scale in (1, 7):
        (found,) = walk(graph, scale * seeds, config, return_steps=(4,), seeds_alone=True)
        for maps in (found.maps, found.at_steps[4]):
            assert torch.allclose(maps.flatten(1).T, expected, atol=1e-6)
    (plain,) = walk(graph, seeds, config)
    assert (plain.maps - found.maps).abs().max() > 0.01
