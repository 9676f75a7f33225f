import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate, normalize

from nerve_fast import InputError, NervePipeline
from nerve_fast.imaging.images import to_tensor
from nerve_fast.priors import PriorConfig, load_prior
from nerve_fast.tiny import MODELS
from nerve_fast.tiny.scenes import generate

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
TEMPLATES = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "A photo of a {} in the scene",
]


def loaded(path):
    return load_prior(
        PriorConfig("pixelclip", networks={"weights": path}), str(MODELS / "clip"), **CPU
    )


@pytest.fixture(scope="module")
def prior(systems):
    return loaded(systems["pixelclip"])


@pytest.fixture(scope="module")
def image():
    return generate(962_000, (64, 96))[0]


def test_the_checkpoint_takes_the_place_of_the_image_encoder(prior, systems):
    state = prior.clip.model.state_dict()
    for name, value in systems["tuned"].items():
        assert torch.equal(state[name], value), name


@torch.no_grad()
def test_similarities_are_those_of_the_authors(prior, image):
    """A token at a time through the last block, its residual the class token's."""
    clip, vision = prior.clip, prior.clip.model.vision_model
    pixels = to_tensor(image.resize((960, 640), Image.Resampling.BILINEAR))
    pixels = (pixels - clip.image_mean) / clip.image_std
    pixels = interpolate(pixels[None], (320, 320), mode="bilinear", align_corners=False)
    x = vision.embeddings(pixels, interpolate_pos_encoding=True)
    x = vision.pre_layrnorm(x)
    *early, last = vision.encoder.layers
    for layer in early:
        x = layer(x, None)
    attention, tokens = last.self_attn, []
    for token in x[0, 1:]:
        value = attention.out_proj(attention.v_proj(last.layer_norm1(token))) + x[0, 0]
        value = value + last.mlp(last.layer_norm2(value))
        tokens.append(clip.model.visual_projection(vision.post_layernorm(value)))
    side = 320 // clip.patch
    features = torch.stack(tokens).T.unflatten(1, (side, side))[None]
    features = interpolate(features, (64, 64), mode="bilinear")[0]
    text = []
    for word in ("grass", "ball"):
        prompts = []
        for template in TEMPLATES:
            shown = clip.tokenizer(template.format(word), return_tensors="pt")
            pooled = clip.model.text_model(**shown).pooler_output
            prompts.append(normalize(clip.model.text_projection(pooled)[0], dim=-1))
        text.append(torch.stack(prompts).mean(0))
    expected = torch.stack(
        [torch.cosine_similarity(features, one[:, None, None], dim=0) for one in text]
    )
    found = prior.maps([image], [["grass"], ["ball"]])[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "seen"), [((90, 60), (960, 640)), ((50, 7), (2560, 358)), ((333, 500), (640, 961))]
)
def test_images_are_resized_as_detectron2_does(prior, size, seen):
    view = prior.view(size)
    assert (view.size, view.window, len(view)) == (seen, seen[::-1], 1)


def test_it_runs_in_the_pipeline_and_keeps_to_what_it_says(prior, image, pipe, systems):
    out = NervePipeline(prior, pipe.graph)(image, ["grass", "ball, sky"])
    assert out.label_map.shape == (64, 96)
    view = prior.view(image.size)
    ((_, features),) = prior.encode([image], view).batches
    assert features.nbytes <= prior.encoded_memory(view, 1)
    assert prior.memory(view, 1, 2) > features.nbytes
    assert prior.identity == loaded(systems["pixelclip"]).identity


def test_other_files_are_refused(tmp_path, systems):
    with pytest.raises(InputError, match=r"pixelclip needs PixelCLIP's checkpoint.*weights=FILE"):
        load_prior(PriorConfig("pixelclip"), str(MODELS / "clip"), **CPU)
    with pytest.raises(InputError, match="prior network weights is 'nowhere': no such file"):
        loaded("nowhere")
    prefix = "sem_seg_head.predictor.clip_model.visual."
    path = tmp_path / "other.pth"
    torch.save({"model": {f"{prefix}trunk.stem.0.weight": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match="holds a ConvNeXt, and PixelCLIP's ViT-B/16 is what is"):
        loaded(path)
    content = torch.load(systems["pixelclip"])["model"]
    for change, said in (
        ({"proj": None}, "1 missing weights, such as visual_projection.weight"),
        ({"further": torch.zeros(1)}, "1 further weights, such as further"),
        ({"class_embedding": torch.zeros(3)}, "cannot be loaded"),
    ):
        named = {prefix + name: value for name, value in change.items()}
        state = {k: v for k, v in {**content, **named}.items() if v is not None}
        torch.save({"model": state}, path)
        with pytest.raises(InputError, match=said):
            loaded(path)
