import pytest
import torch
from PIL import Image

from nerve_fast import InputError
from nerve_fast.backbones.attention_maps import MAX_TOKENS, attention_map, reduce_entropy_
from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.pipeline import stages
from nerve_fast.refiners import ISeg, iseg
from nerve_fast.tiny.scenes import generate

GRID = (4, 5)
TOKENS = 20


@pytest.fixture
def features(make_qk):
    q, k = make_qk(1, 3, TOKENS, 4)
    return GraphFeatures(q, k, GRID)


@pytest.fixture
def probabilities(make_prior):
    return make_prior(*GRID, 3, dtype=torch.float32).permute(2, 0, 1)


def test_labels_move_along_the_map_as_often_as_asked(features, probabilities):
    q, k = (projection[0].float() for projection in (features.q, features.k))
    attention = reduce_entropy_(attention_map(q, k), 0.1)
    G = probabilities.flatten(1).T
    expected = (attention @ (attention @ (attention @ G))).T.unflatten(1, GRID)
    refined = iseg(features, probabilities, iterations=3, step_size=0.1)
    torch.testing.assert_close(refined, expected)
    still = iseg(features, probabilities, iterations=0)
    torch.testing.assert_close(still, probabilities)


def test_its_maps_are_the_authors_up_to_a_factor_and_a_constant(features, probabilities):
    def from_0(maps):
        return maps - maps.amin(0)

    q, k = (projection[0] for projection in (features.q, features.k))
    attention = reduce_entropy_(attention_map(q, k).double(), 0.015)
    M = from_0(probabilities.flatten(1).T.double())
    for _ in range(2):
        # The authors scale each label's map in each step.
        M = from_0(attention @ (M / M.sum(0)))
    theirs = M / M.amax(0)
    ours = from_0(iseg(features, probabilities, iterations=2).flatten(1).T.double())
    torch.testing.assert_close(ours / ours.amax(0), theirs, rtol=0, atol=1e-3)


def test_only_the_chosen_heads_count(features, probabilities):
    q, k = (projection[:, [2, 0]] for projection in (features.q, features.k))
    torch.testing.assert_close(
        iseg(features, probabilities, heads=(2, 0)),
        iseg(GraphFeatures(q, k, GRID), probabilities),
    )
    assert not torch.allclose(
        iseg(features, probabilities, heads=(1,)), iseg(features, probabilities)
    )


def test_rows_stay_distributions_and_constants_stay_as_they_are(features, probabilities):
    refined = iseg(features, probabilities)
    assert (refined >= 0).all()
    torch.testing.assert_close(refined.sum(0), torch.ones(GRID))
    constant = torch.tensor([0.2, 0.5, 0.3])[:, None, None].expand(3, *GRID)
    torch.testing.assert_close(iseg(features, constant), constant)


def test_permuting_labels_permutes_the_result(features, probabilities):
    order = [2, 0, 1]
    torch.testing.assert_close(
        iseg(features, probabilities[order]), iseg(features, probabilities)[order]
    )


def test_an_objects_label_fills_it():
    # Tokens of the left half look at one another, and so do those of the right; the prior is right
    # at one token of each and knows nothing of the others.
    side = torch.arange(36) % 6 >= 3
    k = 8 * torch.stack([side, ~side], 1).float()[None, None]
    probabilities = torch.full((2, 6, 6), 0.5)
    probabilities[:, 2, 0] = torch.tensor([0.9, 0.1])
    probabilities[:, 4, 5] = torch.tensor([0.1, 0.9])
    label_map = iseg(GraphFeatures(k, k, (6, 6)), probabilities).argmax(0)
    assert torch.equal(label_map.flatten(), side.long())


def test_one_map_is_all_that_is_as_large(make_qk, recorder):
    tokens = 1024
    q, k = make_qk(4, tokens, 2, dtype=torch.float32)
    with recorder:
        reduce_entropy_(attention_map(q, k), 0.015)
    assert sum(size > tokens**2 / 2 for size in recorder.sizes()) == 1


def test_the_refiner_takes_the_features_that_others_share(pipe, probabilities):
    image = generate(960_000, (96, 144))[0]
    refiner = ISeg(iterations=2, step_size=0.1, heads=(0,))
    view = stages.graph_view(pipe.graph, image.size)
    generators = [torch.Generator().manual_seed(3)]
    features = stages.graph_of(pipe.graph, [image], view, generators)
    refined = refiner(image, probabilities, features)
    assert refined.shape == (3, *features.grid)
    expected = iseg(features, probabilities, iterations=2, step_size=0.1, heads=(0,))
    assert torch.equal(refined, expected)


def test_too_many_tokens_are_refused(probabilities):
    few = torch.zeros(1, 1, MAX_TOKENS + 1, 1)
    features = GraphFeatures(few, few, (1, MAX_TOKENS + 1))
    with pytest.raises(InputError, match="has 16385 tokens, .* expected at most 16384: make the"):
        iseg(features, probabilities)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": -1}, "iterations is -1; expected a whole number, 0 or more"),
        ({"step_size": -0.1}, "step_size is -0.1; expected a finite number, 0 or more"),
        ({"heads": ()}, r"heads is \(\); expected one or more of 0 to"),
        ({"heads": (0, 8)}, r"heads is \(0, 8\); expected one or more of 0 to"),
        ({"heads": (1, 1)}, "none of them twice"),
    ],
)
def test_bad_settings_are_refused(features, probabilities, settings, message):
    with pytest.raises(ValueError, match=message):
        ISeg(**settings)(Image.new("RGB", (8, 8)), probabilities, features)
    with pytest.raises(ValueError, match=message):
        iseg(features, probabilities, **settings)
