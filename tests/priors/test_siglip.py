import importlib.util
import json
import math
import shutil

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import normalize
from transformers import (
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)

from nerve_fast import InputError, NervePipeline
from nerve_fast.priors import PriorConfig, load_prior
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
WORDS = ["this", "is", "a", "photo", "of", "grass", "ball", "sky", "."]
LETTERS = ["▁", ".", *"abcdefghijklmnopqrstuvwxyz"]


def vocabulary(tokens):
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    return {token: number for number, token in enumerate([*special, *tokens])}


SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
}


@pytest.fixture(scope="module", params=["siglip", "siglip2"])
def folder(request, tmp_path_factory):
    """A small random SigLIP, or a SigLIP 2 of any resolution."""
    root = tmp_path_factory.mktemp(request.param)
    text = {**SIZES, "vocab_size": 40, "projection_size": 16, "max_position_embeddings": 64}
    if request.param == "siglip":
        vision = {**SIZES, "patch_size": 8, "image_size": 32}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    else:
        vision = {**SIZES, "patch_size": 8, "num_patches": 16}
        model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    model.logit_scale.data.fill_(math.log(20))
    model.logit_bias.data.fill_(-3.0)
    model.save_pretrained(root)
    if request.param == "siglip":
        words = Tokenizer(models.WordLevel(vocabulary(WORDS), unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
        )
    else:
        tokenizer = Siglip2Tokenizer(vocab=vocabulary(LETTERS))
    tokenizer.save_pretrained(root)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    (root / "preprocessor_config.json").write_text(json.dumps(settings))
    return root


@pytest.fixture(scope="module")
def prior(folder):
    return load_prior(PriorConfig("siglip"), str(folder), **CPU)


@torch.no_grad()
def test_words_are_encoded_as_the_models_were_trained(prior):
    prompt, known = ["this", "is", "a", "photo", "of", "grass", "."], vocabulary(WORDS)
    if prior.clip.flexible:
        prompt, known = "this▁is▁a▁photo▁of▁grass.", vocabulary(LETTERS)
    ids = [known[token] for token in prompt]
    tokens = torch.tensor([ids + [0] * (64 - len(ids))])
    expected = normalize(prior.clip.model.text_model(input_ids=tokens).pooler_output, dim=-1)
    found = prior.clip.encode_words(["Grass"], prior.config.prompts)
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match="tokens with its prompt, and SigLIP reads 64"):
        prior.check_labels([["grass " * 90]])


@torch.no_grad()
def test_a_feature_is_what_the_head_makes_of_one_token(prior, generator):
    pixels = torch.randn(2, 3, 24, 40, generator=generator)
    vision = prior.clip.model.vision_model
    if prior.clip.flexible:
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1)
        shapes = torch.tensor([[3, 5]] * 2)
        mask = torch.ones(2, 15, dtype=torch.int32)
        states = vision(patches.reshape(2, 15, 192), mask, shapes).last_hidden_state
    else:
        states = vision(pixels, interpolate_pos_encoding=True).last_hidden_state
    pooled = [[vision.head(token[None, None])[0] for token in image] for image in states]
    expected = normalize(torch.stack([torch.stack(one) for one in pooled]), dim=-1)
    found = prior.clip.patch_features(pixels, prior.read_out)
    torch.testing.assert_close(found.flatten(1, 2), expected)
    # What is left beyond whole patches is not seen.
    larger = torch.nn.functional.pad(pixels, (0, 3, 0, 5), value=9.0)
    torch.testing.assert_close(prior.clip.patch_features(larger, prior.read_out), found)


def test_scores_are_sigmoids_and_probabilities_their_shares(prior):
    image = generate(963_000, (64, 96))[0]
    classes = [["grass", "sky"], ["ball"]]
    cosines = prior.maps([image], classes)
    words = (20 * cosines - 3).sigmoid()
    scores = torch.stack([words[:, :2].amax(1), words[:, 2]], dim=1)
    torch.testing.assert_close(prior.scores(cosines, classes), scores)
    found = prior([image], classes)
    torch.testing.assert_close(found, scores / scores.sum(1, keepdim=True))
    assert found.std() > 0.01


def test_it_runs_in_the_pipeline_and_in_windows(prior, folder, pipe):
    image = generate(963_000, (64, 96))[0]
    out = NervePipeline(prior, pipe.graph)(image, ["grass", "ball, sky"])
    assert out.label_map.shape == (64, 96)
    assert prior.view((96, 64)).size == (72, 48)
    windowed = load_prior(
        PriorConfig("siglip", resolution=64, window=32, stride=16), str(folder), **CPU
    )
    assert windowed([image], [["grass"], ["ball"]]).shape == (1, 2, 64, 96)
    assert windowed.identity != prior.identity
    encoded = prior.encode([image])
    held = sum(features.nbytes for _, features in encoded.batches)
    assert held <= prior.encoded_memory(encoded.view, 1)


def test_images_are_normalised_and_resized_as_the_checkpoint_says(prior):
    white = prior.clip.pixels(Image.new("RGB", (8, 8), "white"))
    torch.testing.assert_close(white, torch.full((3, 8, 8), 2.0))
    assert prior.clip.resample == Image.Resampling.BILINEAR


def test_a_clip_is_refused():
    with pytest.raises(InputError, match="is of the kind 'clip'; expected a SigLIP or SigLIP 2"):
        load_prior(PriorConfig("siglip"), str(MODELS / "clip"), **CPU)


@pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is installed"
)
@pytest.mark.parametrize("folder", ["siglip"], indirect=True)
def test_a_tokenizer_that_needs_sentencepiece_says_how_to_get_it(folder, tmp_path):
    """SigLIP's own checkpoints name such a one, whatever files lie beside it."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "SiglipTokenizer"
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r'sentencepiece.*pip install "nerve-fast\[siglip\]"'):
        load_prior(PriorConfig("siglip"), str(copy), **CPU)
