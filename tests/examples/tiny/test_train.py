import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

from examples.tiny import train
from nerve_fast.backbones.templates import IMAGENET_TEMPLATES
from nerve_fast.errors import InputError
from nerve_fast.tiny import scenes

pytestmark = pytest.mark.slow

LITTLE = train.Budget(
    scenes=12, vae_steps=2, clip_caption_steps=1, clip_patch_steps=2, unet_steps=2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "models"
    train.train(out, LITTLE, seed=3)
    return out


@pytest.fixture(scope="module")
def drawn():
    return train.draw_scenes(3)


@pytest.fixture(scope="module")
def tokenizer():
    return train.build_tokenizer()


def test_clip_loads_whole(folder):
    model, info = CLIPModel.from_pretrained(folder / "clip", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = CLIPTokenizer.from_pretrained(folder / "clip")(["a star"], return_tensors="pt")
    picture = torch.zeros(1, 3, 96, 128)
    with torch.no_grad():
        out = model(**tokens, pixel_values=picture, interpolate_pos_encoding=True)
    assert out.image_embeds.shape == out.text_embeds.shape == (1, 64)


def test_the_diffusion_folder_is_a_stable_diffusion_pipeline(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder / "diffusion", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    picture = pipe("a star", num_inference_steps=1, generator=generator, output_type="np").images
    assert picture.shape == (1, 128, 128, 3)
    assert np.isfinite(picture).all()


def test_the_text_encoder_is_clips(folder):
    clip = load_file(folder / "clip" / "model.safetensors")
    encoder = load_file(folder / "diffusion" / "text_encoder" / "model.safetensors")
    assert set(encoder) == {name for name in clip if name.startswith("text_model.")}
    assert all(torch.equal(clip[name], weights) for name, weights in encoder.items())


def test_every_part_was_trained(folder):
    """The UNet's last weights start at what its seed gives and must have moved."""
    unet = UNet2DConditionModel.from_pretrained(folder / "diffusion", subfolder="unet")
    assert unet.conv_out.bias.abs().max() > 0
    clip = CLIPModel.from_pretrained(folder / "clip")
    for part in (clip.text_model, clip.vision_model):
        # Biases of a fresh CLIP are zero.
        assert part.encoder.layers[0].mlp.fc1.bias.abs().max() > 0
    assert clip.logit_scale.exp().item() == pytest.approx(train.LOGIT_SCALE, rel=1e-3)


def test_the_same_seed_trains_the_same(drawn):
    images, _ = drawn

    def make():
        torch.manual_seed(5)
        return train.train_vae(images, 2).state_dict()

    first, second = make(), make()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(folder, budget, seed):
        folder.mkdir()
        (folder / "half").write_text("done")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(train, "make_models", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train.train(tmp_path / "models")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "make_models", lambda *_: pytest.fail("it went to work"))
    with pytest.raises(InputError, match="exists already"):
        train.train(tmp_path)
    assert train.main(["--out", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_drawn_masks_index_all_names(drawn):
    images, masks = drawn
    image, mask, names = scenes.generate(1)
    assert np.array_equal(images[1].permute(1, 2, 0), np.asarray(image))
    assert [scenes.NAMES[k] for k in masks[1].unique()] == sorted(
        names[: mask.max() + 1], key=scenes.NAMES.index
    )


def test_captions_name_what_is_there():
    masks = torch.zeros(4, 8, 8, dtype=torch.uint8)
    masks[:, 4:] = scenes.NAMES.index("tree")
    for caption in train.captions(masks):
        assert "grass" in caption
        assert "tree" in caption
        assert "sand" not in caption


def test_words_of_templates_and_scenes_are_single_tokens(tokenizer):
    for name in scenes.NAMES:
        for template in IMAGENET_TEMPLATES:
            text = template.format(name)
            words = text.replace(".", " . ").replace("-", " - ").split()
            assert len(tokenizer(text).input_ids) == 2 + len(words), text


@pytest.mark.parametrize("shape", [(12, 12), (12, 16)])
def test_penultimate_is_what_transformers_says(folder, shape):
    vision = CLIPModel.from_pretrained(folder / "clip").vision_model.eval()
    pixels = torch.randn(2, 3, *(8 * side for side in shape))
    with torch.no_grad():
        ours = train.penultimate(vision, pixels)
        theirs = vision(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    torch.testing.assert_close(ours, theirs.hidden_states[-2], rtol=1e-4, atol=1e-5)
