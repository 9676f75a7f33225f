import json

import pytest
import tokenizers
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from nerve_fast import InputError
from nerve_fast.backbones import words as words_module
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.templates import IMAGENET_TEMPLATES
from nerve_fast.priors import maskclip
from nerve_fast.tiny import MODELS

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture
def clip(monkeypatch, tmp_path):
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path / "cache"))
    return CLIPBackbone.from_pretrained(MODELS / "clip", **CPU)


def test_there_are_80_templates():
    assert len(set(IMAGENET_TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in IMAGENET_TEMPLATES)


def test_encode_words_is_the_mean_over_the_templates(clip):
    prompts = [template.format("red ball") for template in IMAGENET_TEMPLATES]
    features = []
    for prompt in prompts:
        tokens = clip.tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            pooled = clip.model.text_model(**tokens).pooler_output
            features.append(normalize(clip.model.text_projection(pooled)[0], dim=-1))
    expected = normalize(torch.stack(features).mean(0), dim=-1)
    embeddings = clip.encode_words(["grass", "red ball"])
    assert embeddings.shape == (2, clip.model.config.projection_dim)
    torch.testing.assert_close(embeddings[1], expected, rtol=1e-4, atol=1e-5)


def count_encodings(clip, monkeypatch):
    calls = []
    encode = clip._encode
    monkeypatch.setattr(
        clip, "_encode", lambda word, *rest: calls.append(word) or encode(word, *rest)
    )
    return calls


def test_a_word_is_encoded_once_a_machine(clip, monkeypatch):
    calls = count_encodings(clip, monkeypatch)
    first = clip.encode_words(["cat", "dog", "cat"])
    assert torch.equal(first[0], first[2])
    clip.encode_words(["dog", "cat"])
    assert calls == ["cat", "dog"]

    again = CLIPBackbone.from_pretrained(MODELS / "clip", **CPU)
    calls = count_encodings(again, monkeypatch)
    assert torch.equal(again.encode_words(["cat", "dog", "cat"]), first)
    assert calls == []


def test_other_templates_or_another_revision_are_another_model(clip):
    identity = clip._identity()
    assert clip._identity(("a {}.",)) != identity
    clip.revision = "abc"
    assert clip._identity() != identity


def test_a_checkpoint_saved_as_a_processor_is_read(copied_models):
    folder = copied_models / "clip"
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert CLIPBackbone.from_pretrained(folder, **CPU).image_mean.flatten()[0] > 0.48


def test_other_weights_in_the_same_folder_are_another_model(copied_models, monkeypatch, tmp_path):
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path / "cache"))
    clip = CLIPBackbone.from_pretrained(copied_models / "clip", **CPU)
    before = clip.encode_words(["cat"])
    clip.model.text_model.final_layer_norm.bias.data += 1
    clip.model.save_pretrained(copied_models / "clip")
    after = CLIPBackbone.from_pretrained(copied_models / "clip", **CPU).encode_words(["cat"])
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("word", ["köttbullar", "肉 🍖", "A Very Unusual Thing", "x"])
def test_any_word_can_be_encoded(clip, word):
    torch.testing.assert_close(clip.encode_words([word]).norm(dim=-1), torch.ones(1))


def test_a_label_longer_than_the_context_is_refused(clip):
    with pytest.raises(InputError, match=r"takes \d+ tokens .* CLIP reads 77: shorten it"):
        clip.encode_words(["word " * 100])


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (136, 72), (8, 200)])
def test_patch_features_come_on_any_grid(clip, generator, size):
    width, height = size
    image = Image.effect_noise(size, 80).convert("RGB")
    features = clip.patch_features(clip.pixels(clip.resized(image, size))[None], maskclip)
    assert features.shape == (1, height // 8, width // 8, clip.model.config.projection_dim)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]))


def test_the_read_out_stands_in_for_the_encoder(clip, generator):
    pixels = torch.randn(2, 3, 96, 64, generator=generator)
    seen = {}

    def read_out(layers, x, grid, pixels):
        seen.update(grid=grid, pixels=pixels)
        for layer in layers:
            x = layer(x, None)
        return x[:, 1:].unflatten(1, grid)

    features = clip.patch_features(pixels, read_out)
    with torch.inference_mode():
        states = clip.model.vision_model(pixels, interpolate_pos_encoding=True)
        x = clip.model.vision_model.post_layernorm(states.last_hidden_state[:, 1:])
        expected = normalize(clip.model.visual_projection(x), dim=-1)
    assert seen["grid"] == (12, 8)
    assert seen["pixels"] is pixels
    torch.testing.assert_close(features.flatten(1, 2), expected)


def test_several_features_of_a_patch_are_averaged_when_they_are_of_norm_1(clip, generator):
    pixels = torch.randn(2, 3, 64, 96, generator=generator)

    def scaled(factor):
        return lambda *inputs: factor * maskclip(*inputs)

    def both(*inputs):
        return torch.stack([scaled(3.0)(*inputs), scaled(-0.5)(*inputs)])

    first, second = (clip.patch_features(pixels, scaled(factor)) for factor in (3.0, -0.5))
    torch.testing.assert_close(clip.patch_features(pixels, both), (first + second) / 2)


def test_what_is_left_beyond_whole_patches_is_not_seen(clip, generator):
    pixels = torch.randn(1, 3, 71, 100, generator=generator)
    features = clip.patch_features(pixels, maskclip)
    torch.testing.assert_close(features, clip.patch_features(pixels[..., :64, :96], maskclip))


def test_pixels_are_those_of_clips_own_processor(clip):
    image = Image.effect_noise((200, 160), 80).convert("RGB")
    processor = CLIPImageProcessorPil.from_pretrained(MODELS / "clip")
    expected = processor(
        image, size={"height": 64, "width": 80}, do_center_crop=False, return_tensors="pt"
    ).pixel_values[0]
    torch.testing.assert_close(
        clip.pixels(clip.resized(image, (80, 64))), expected, rtol=1e-4, atol=1e-4
    )


def test_mean_and_deviation_are_not_mixed_up(clip):
    assert clip.image_mean.flatten().tolist() == pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-3)
    assert clip.image_std.flatten().tolist() == pytest.approx([0.2686, 0.2613, 0.2758], abs=1e-3)


def test_pixels_are_normalised_as_the_checkpoint_says(clip):
    white = clip.pixels(Image.new("RGB", (16, 8), "white"))
    assert white.shape == (3, 8, 16)
    expected = (1 - clip.image_mean) / clip.image_std
    torch.testing.assert_close(white, expected.expand(3, 8, 16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(clip, dtype):
    half = CLIPBackbone.from_pretrained(MODELS / "clip", device=CPU["device"], dtype=dtype)
    image = Image.effect_noise((96, 72), 80).convert("RGB")
    full, low = (
        backbone.patch_features(backbone.pixels(backbone.resized(image, (96, 72)))[None], maskclip)
        for backbone in (clip, half)
    )
    assert low.dtype == torch.float32
    assert (full * low).sum(-1).min() > 0.99


def edit(file, change):
    """Change the JSON object in a file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def text_config(**changes):
    return "config.json", lambda config: config["text_config"].update(changes)


def special_token(tokenizer):
    for token in tokenizer["added_tokens"]:
        token["lstrip"] = True


def last_merge(tokenizer):
    tokenizer["model"]["merges"].pop()


def swapped_vocabulary(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


CHANGES = {
    "hidden_act": text_config(hidden_act="gelu"),
    "eos_token_id": text_config(eos_token_id=2),
    "layer_norm_eps": text_config(layer_norm_eps=1e-2),
    "num_attention_heads": text_config(num_attention_heads=1),
    "merges": ("tokenizer.json", last_merge),
    "vocabulary": ("tokenizer.json", swapped_vocabulary),
    "special tokens": ("tokenizer.json", special_token),
    "padding token": (
        "tokenizer_config.json",
        lambda config: config.update(pad_token="<|startoftext|>"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_embeddings_of_a_changed_folder_are_made_anew(clip_copy, monkeypatch, tmp_path, name):
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path / "cache"))
    CLIPBackbone.from_pretrained(clip_copy, **CPU).encode_words(["cat"])
    same = CLIPBackbone.from_pretrained(clip_copy, **CPU)
    calls = count_encodings(same, monkeypatch)
    same.encode_words(["cat"])
    assert calls == []

    file, change = CHANGES[name]
    edit(clip_copy / file, change)
    other = CLIPBackbone.from_pretrained(clip_copy, **CPU)
    calls = count_encodings(other, monkeypatch)
    other.encode_words(["cat"])
    assert calls == ["cat"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embeddings_of_another_dtype_are_made_anew(clip, monkeypatch, dtype):
    clip.encode_words(["cat"])
    half = CLIPBackbone.from_pretrained(MODELS / "clip", device=CPU["device"], dtype=dtype)
    calls = count_encodings(half, monkeypatch)
    half.encode_words(["cat"])
    assert calls == ["cat"]


@pytest.mark.parametrize("what", ["device", "torch", "transformers"])
def test_embeddings_of_another_kind_of_device_or_library_are_others(clip, monkeypatch, what):
    identity = clip._identity()
    if what == "device":
        monkeypatch.setattr(CLIPBackbone, "device", torch.device("meta"))
    else:
        real = words_module.version
        changed = lambda name: "0.0" if name == what else real(name)  # noqa: E731
        monkeypatch.setattr(words_module, "version", changed)
    assert clip._identity() != identity


@pytest.mark.parametrize("change", ["dtype", "weight", "templates", "tokens"])
def test_embeddings_in_memory_are_of_the_model_as_it_is_now(clip, monkeypatch, change):
    clip.encode_words(["cat"])
    calls = count_encodings(clip, monkeypatch)
    clip.encode_words(["cat"])
    assert calls == []
    if change == "dtype":
        clip.model.bfloat16()
    elif change == "weight":
        clip.model.text_projection.weight.mul_(2)
    elif change == "templates":
        monkeypatch.setattr(words_module, "IMAGENET_TEMPLATES", ("a {}.",))
    else:
        # Beyond the model's vocabulary.
        monkeypatch.setattr(clip, "_encode", lambda word, _: calls.append(word) or torch.ones(64))
        clip.tokenizer.add_tokens(["at"])
    clip.encode_words(["cat"])
    assert calls == ["cat"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_call_under_autocast_keeps_what_one_without_would(clip, monkeypatch, tmp_path, dtype):
    with torch.autocast("cpu", dtype):
        under = clip.encode_words(["cat", "red ball"])
    monkeypatch.setenv("NERVE_FAST_CACHE", str(tmp_path / "other"))
    plain = CLIPBackbone.from_pretrained(MODELS / "clip", **CPU)
    assert torch.equal(plain.encode_words(["cat", "red ball"]), under)


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "post_processor"])
def test_each_part_of_the_tokenizer_is_in_the_key(clip, part):
    identity = clip._identity()
    other = {
        "normalizer": tokenizers.normalizers.Lowercase(),
        "pre_tokenizer": tokenizers.pre_tokenizers.Whitespace(),
        "post_processor": tokenizers.processors.ByteLevel(),
    }[part]
    setattr(clip.tokenizer.backend_tokenizer, part, other)
    assert clip._identity() != identity


def test_what_earlier_calls_were_like_makes_no_difference_to_the_key(clip):
    identity = clip._identity()
    clip.tokenizer(["a", "a b c d"], padding=True, truncation=True, max_length=3)
    assert clip._identity() == identity
