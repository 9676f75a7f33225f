import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, interpolate

from nerve_fast import InputError, NervePipeline
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors import PriorConfig, load_prior
from nerve_fast.priors.resizing import opencv_bilinear
from nerve_fast.tiny.scenes import generate

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
WORDS = ["grass", "ball", "sky", "house", "water", "tree"]


def loaded(systems, **settings):
    return load_prior(PriorConfig("groupvit", **settings), str(systems["groupvit"]), **CPU)


@pytest.fixture(scope="module")
def image():
    """Squares of many colours, so that windows hold several groups."""
    colours = np.random.default_rng(3).integers(0, 256, (10, 13, 3), dtype=np.uint8)
    squares = colours.repeat(8, 0).repeat(8, 1)[:, :100]
    return Image.fromarray(np.ascontiguousarray(squares))


def text_of(prior, words):
    """A word at a time, through the model's own text half."""
    found = []
    for word in words:
        tokens = prior.groupvit.tokenizer(f"a photo of a {word}.", return_tensors="pt")
        with torch.no_grad():
            pooled = prior.groupvit.model.text_model(**tokens).pooler_output
            found.append(prior.groupvit.model.text_projection(pooled)[0])
    return torch.stack(found)


def by_hand(prior, image, words, threshold):
    """The authors' head, a window, a pixel's group and a class at a time; background first."""
    network = prior.groupvit
    model, text = network.model, text_of(prior, words)
    shown = opencv_bilinear(image, (80, 64))  # 100 × 80 at a short side of 2 × 32
    pixels = (to_tensor(shown) - network.image_mean) / network.image_std
    total, count = torch.zeros(len(words) + 1, 64, 80), torch.zeros(64, 80)
    for left in (0, 16):
        window = pixels[:, :, left : left + 64]
        with torch.no_grad():
            x = model.vision_model.embeddings(window[None], interpolate_pos_encoding=True)
            assignments, previous = [], None
            for stage in model.vision_model.encoder.stages:
                x, previous, assigned = stage(x, previous, output_attentions=True)
                assignments.append(assigned)
            x = model.vision_model.layernorm(x)
            groups = model.visual_projection(x[0])
            whole = model.visual_projection(x.mean(1))[0]
        soft = torch.zeros(4, 64)
        for group in range(4):
            for inner in range(6):
                soft[group] += assignments[1][0, group, inner] * assignments[0][0, inner]
        at_pixels = interpolate(soft.view(1, 4, 8, 8), (64, 64), mode="bilinear")[0]
        scale = model.logit_scale.exp().clamp(max=100)
        best = sorted(range(len(words)), key=lambda k: -cosine_similarity(whole, text[k], dim=0))
        p = torch.zeros(4, len(words))
        for group in range(4):
            logits = torch.stack([scale * cosine_similarity(groups[group], t, dim=0) for t in text])
            kept = [logits[k].exp() if k in best[:5] else torch.tensor(0.0) for k in range(6)]
            for k in range(len(words)):
                p[group, k] = kept[k] / sum(kept) * logits[k].exp() / logits.exp().sum()
        least = min(threshold, p.max().item())
        for y in range(64):
            for x_ in range(64):
                own = p[at_pixels[:, y, x_].argmax()]
                total[0, y, left + x_] += float(own.max() < least)
                total[1:, y, left + x_] += own
        count[:, left : left + 64] += 1
    return total / count


@pytest.mark.parametrize("high", [True, False])
def test_the_head_is_that_of_the_authors(systems, image, high):
    largest = loaded(systems).maps([image], [[word] for word in WORDS])[0].amax(0)
    # Between what the windows have, or above all.
    threshold = 0.95 if high else (largest.min() + largest.max()).item() / 2
    prior = loaded(systems, background="background", threshold=threshold)
    found = prior.maps([image], [["background"], *([word] for word in WORDS)])[0]
    torch.testing.assert_close(found, by_hand(prior, image, WORDS, threshold))
    assert len(found.flatten(1).T.unique(dim=0)) > 2
    if not high:
        assert 0 < (found[0] > 0).double().mean() < 1


def test_the_background_may_stand_anywhere_or_be_left_out(systems, image):
    prior = loaded(systems, background="background", threshold=0.95)
    first = prior.maps([image], [["background"], *([word] for word in WORDS)])[0]
    later = prior.maps([image], [["grass"], ["background"], *([word] for word in WORDS[1:])])[0]
    torch.testing.assert_close(later[[1, 0, *range(2, 7)]], first)
    torch.testing.assert_close(prior.maps([image], [[word] for word in WORDS])[0], first[1:])
    with pytest.raises(InputError, match="the labels are the background 'background' alone"):
        prior.maps([image], [["background"]])


def test_images_are_independent_and_probabilities_a_distribution(systems, image):
    prior = loaded(systems)
    other = generate(960_001, (80, 100))[0]
    classes = [["grass", "tree"], ["ball"], ["sky"]]
    view = prior.view(image.size)
    both = prior([image, other], classes, view)
    torch.testing.assert_close(both.sum(1), torch.ones(2, 64, 80))
    torch.testing.assert_close(both[1], prior([other], classes, view)[0])
    scores = prior.maps([image], classes)[0]
    torch.testing.assert_close(both[0], scores / scores.sum(0))
    window = image.crop((0, 0, 80, 80))
    single = prior.maps([window], [["grass"], ["tree"], ["ball"], ["sky"]])[0]
    torch.testing.assert_close(prior.maps([window], classes)[0, 0], single[:2].amax(0))


def test_it_runs_in_the_pipeline_and_keeps_to_what_it_says(systems, image, pipe):
    prior = loaded(systems)
    out = NervePipeline(prior, pipe.graph)(image, WORDS)
    assert out.label_map.shape == (80, 100)
    view = prior.view(image.size)
    encoded = prior.encode([image], view)
    held = sum(part.nbytes for _, *parts in encoded.windows for part in parts)
    assert held <= prior.encoded_memory(view, 1)
    assert prior.memory(view, 1, 6) > held
    assert prior.identity == loaded(systems).identity
    assert prior.identity != loaded(systems, background="sky").identity


def test_another_model_is_refused(systems):
    with pytest.raises(InputError, match="is of the kind 'vit'; expected a GroupViT, such as nvid"):
        load_prior(PriorConfig("groupvit"), str(systems["dino"]), **CPU)
