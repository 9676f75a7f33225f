import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, interpolate

from nerve_fast import InputError, NervePipeline
from nerve_fast.priors import PriorConfig, load_prior
from nerve_fast.priors.resizing import opencv_bilinear
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
CLASSES = [["background"], ["grass"], ["ball"], ["sky"]]


def loaded(systems, **settings):
    networks = {"dino": systems["dino"], "found": systems["found"]}
    config = PriorConfig("clip-diy", networks=networks, **settings)
    return load_prior(config, str(MODELS / "clip"), **CPU)


@pytest.fixture(scope="module")
def image():
    return generate(961_000, (64, 90))[0]


@torch.no_grad()
def by_hand(prior, image, classes, background):
    """A crop and a word at a time, with CLIP's own forward."""
    clip = prior.clip
    square = opencv_bilinear(image, (256, 256))
    text = []
    for (word,) in classes:
        tokens = clip.tokenizer(f"a photo of a {word}", return_tensors="pt")
        pooled = clip.model.text_model(**tokens).pooler_output
        text.append(clip.model.text_projection(pooled)[0])
    maps = torch.zeros(len(classes), 256, 256)
    for side, count in ((256, 1), (128, 3), (64, 7)):
        grid = torch.zeros(len(classes), count, count)
        for row in range(count):
            for column in range(count):
                top, left = row * side // 2, column * side // 2
                crop = square.crop((left, top, left + side, top + side))
                crop = crop.resize((clip.image_size,) * 2, Image.Resampling.BICUBIC)
                pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 255
                pixels = (pixels - clip.image_mean) / clip.image_std
                pooled = clip.model.vision_model(pixels[None]).pooler_output
                feature = clip.model.visual_projection(pooled)[0]
                for k, one in enumerate(text):
                    grid[k, row, column] = cosine_similarity(feature, one, dim=0)
        maps += interpolate(grid[None], (256, 256), mode="bilinear", align_corners=False)[0] / 3
    salient = prior.saliency(image)
    salient = interpolate(salient[None, None], (256, 256), mode="bilinear", align_corners=False)
    for k, (word,) in enumerate(classes):
        maps[k] *= (1 - salient if word == background else salient)[0, 0]
    return maps


def test_scores_are_those_of_the_authors(systems, image):
    prior = loaded(systems, background="background", logit_scale=3.0)
    expected = (3 * by_hand(prior, image, CLASSES, "background")).softmax(0)
    found = prior([image], CLASSES, prior.view(image.size))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(prior.maps([image], CLASSES)[0], found)


def test_without_a_background_saliency_plays_no_part(systems, image):
    prior, classes = loaded(systems, logit_scale=3.0), CLASSES[1:]
    encoded = prior.encode([image])
    found = prior.probabilities(encoded, classes)
    encoded.saliency.fill_(0.5)
    assert torch.equal(prior.probabilities(encoded, classes), found)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 256, 256))


def test_it_runs_in_the_pipeline_and_keeps_to_what_it_says(systems, image, pipe):
    prior = loaded(systems, background="background")
    out = NervePipeline(prior, pipe.graph)(image, ["background", "grass, tree", "ball"])
    assert out.label_map.shape == (64, 90)
    view = prior.view(image.size)
    encoded = prior.encode([image], view)
    held = sum(part.nbytes for part in (*encoded.features, encoded.saliency))
    assert held == prior.encoded_memory(view, 1)
    assert prior.memory(view, 1, 4) > 4 * 4 * 256**2
    assert prior.identity == loaded(systems, background="background").identity
    assert prior.identity != loaded(systems).identity


def test_founds_weights_must_be_named(systems):
    with pytest.raises(InputError, match=r"clip-diy needs FOUND's weights, .*found=FILE"):
        load_prior(PriorConfig("clip-diy"), str(MODELS / "clip"), **CPU)
    config = PriorConfig("clip-diy", networks={"found": "x", "dino": str(MODELS / "clip")})
    with pytest.raises(InputError, match="the prior network dino model is a 'clip'"):
        load_prior(config, str(MODELS / "clip"), **CPU)
