import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from nerve_fast import InputError
from nerve_fast.backbones.diffusion import DiffusionBackbone, self_attentions
from nerve_fast.imaging.images import to_tensor
from nerve_fast.imaging.tiling import Tiling
from nerve_fast.tiny import MODELS

FOLDER = MODELS / "diffusion"
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="module")
def diffusion():
    return DiffusionBackbone.from_pretrained(FOLDER, **CPU)


@pytest.fixture
def image(generator):
    pixels = torch.randint(0, 256, (60, 90, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Recorder:
    """An attention processor of diffusers' own making, to see queries and keys another way."""

    def __init__(self, kept):
        self.kept = kept

    def __call__(self, attn, hidden_states, *args, **kwargs):
        for which in ("to_q", "to_k"):
            projected = getattr(attn, which)(hidden_states)
            heads = projected.view(1, -1, attn.heads, projected.shape[-1] // attn.heads)
            self.kept.setdefault(which, []).append(heads[0].transpose(0, 1))
        from diffusers.models.attention_processor import AttnProcessor2_0

        return AttnProcessor2_0()(attn, hidden_states, *args, **kwargs)


def test_queries_and_keys_are_those_of_stable_diffusion_step_by_step(diffusion, image):
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(
        FOLDER, subfolder="text_encoder", dtype=torch.float32
    )
    vae = AutoencoderKL.from_pretrained(FOLDER, subfolder="vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(FOLDER, subfolder="unet", torch_dtype=torch.float32)
    scheduler = DDPMScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    kept = {}
    for layer in diffusion.layers:
        unet.get_submodule(layer).set_processor(Recorder(kept))

    size = (96, 64)
    with torch.inference_mode():
        ids = tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids
        prompt = text_encoder(ids)[0]
        pixels = to_tensor(image.resize(size, Image.Resampling.BICUBIC))[None] * 2 - 1
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=seeded(3))
        noisy = scheduler.add_noise(latents, noise, torch.tensor([100]))
        unet(noisy, 100, prompt)

    features = diffusion.queries_and_keys([image], size, [seeded(3)])
    torch.testing.assert_close(features.q[0], torch.cat(kept["to_q"]))
    torch.testing.assert_close(features.k[0], torch.cat(kept["to_k"]))
    assert features.grid == (latents.shape[2], latents.shape[3])


def test_two_runs_agree_to_the_bit_and_seeds_differ(diffusion, image):
    first, second, other = (
        diffusion.queries_and_keys([image], (96, 64), [seeded(seed)]).q for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_unet_runs_no_further_than_the_last_layer(diffusion, image):
    ran = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in diffusion.unet.named_modules()
    ]
    try:
        diffusion.queries_and_keys([image], (64, 64), [seeded()])
    finally:
        for hook in hooks:
            hook.remove()
    last = diffusion.layers[-1]
    # Its own hook ends the pass where the last keys are there, before the test's.
    assert ran[-1] == f"{last}.to_q"
    assert "conv_out" not in ran


def test_a_tile_is_what_the_networks_give_for_it_alone(diffusion, image):
    """Where no other tile reaches, and with its part of one noise field for the whole image."""
    size, generator = (192, 96), seeded(4)
    tiling = Tiling.of(size[::-1], 96, 48, diffusion.multiple)
    assert tiling.lefts == (0, 48, 96)
    features = diffusion.queries_and_keys([image], size, [seeded(4)], tiling=tiling)
    whole = diffusion.queries_and_keys([image], size, [seeded(4)])
    assert features.grid == whole.grid == (24, 48)

    noise = torch.randn((4, 24, 48), generator=generator)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    maps = features.q.unflatten(2, features.grid)
    unit = diffusion.unit
    for left, (start, stop) in zip(tiling.lefts, ((0, 48), (96, 96), (144, 192)), strict=True):
        pixels = to_tensor(resized.crop((left, 0, left + 96, 96))) * 2 - 1
        q, _ = diffusion._project(pixels[None], noise[None, ..., left // 4 : left // 4 + 24])
        alone = q.transpose(1, 2).unflatten(2, (24, 24))
        inside = slice((start - left) // unit, (stop - left) // unit)
        there = maps[..., start // unit : stop // unit, :]
        torch.testing.assert_close(there, alone[..., inside, :], rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_are_those_alone(diffusion, image):
    images = [image, image.rotate(180), image.resize((50, 50))]
    together = diffusion.queries_and_keys(
        images, (96, 64), [seeded(i) for i in range(3)], batch_size=2
    )
    for i, one in enumerate(images):
        alone = diffusion.queries_and_keys([one], (96, 64), [seeded(i)])
        torch.testing.assert_close(together.q[i], alone.q[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.k[i], alone.k[0], rtol=1e-4, atol=1e-5)


def test_what_the_layers_are_like_is_known_before_they_run(diffusion, image):
    for name in self_attentions(diffusion.unet):
        one = DiffusionBackbone.from_pretrained(FOLDER, **CPU, layers=[name])
        features = one.queries_and_keys([image], (128, 64), [seeded()])
        assert features.grid == (64 // one.unit, 128 // one.unit)
        assert features.q.shape[1::2] == (one.heads, one.head_dim)


def test_the_unet_stays_usable_by_others(diffusion):
    latents = torch.zeros(1, 4, 16, 16)
    with torch.no_grad():
        out = diffusion.unet(latents, 100, diffusion.empty_prompt, return_dict=False)[0]
    assert out.shape == latents.shape


def test_any_self_attention_can_be_asked_for(image):
    names = self_attentions(
        UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(FOLDER, subfolder="unet"))
    )
    assert len(names) >= 3
    for name in names:
        diffusion = DiffusionBackbone.from_pretrained(FOLDER, **CPU, layers=[name])
        features = diffusion.queries_and_keys([image], (128, 64), [seeded()])
        h, w = features.grid
        assert w == 2 * h
        assert features.q.shape == features.k.shape
        assert features.q.shape[2] == h * w
        heads = diffusion.unet.get_submodule(name).heads
        assert features.q.shape[1] == heads


def test_layers_of_one_grid_are_joined_along_the_heads(diffusion, image):
    joined = diffusion.queries_and_keys([image], (64, 64), [seeded()])
    parts = [
        DiffusionBackbone.from_pretrained(FOLDER, **CPU, layers=[layer]).queries_and_keys(
            [image], (64, 64), [seeded()]
        )
        for layer in diffusion.layers
    ]
    torch.testing.assert_close(joined.q, torch.cat([part.q for part in parts], dim=1))
    torch.testing.assert_close(joined.k, torch.cat([part.k for part in parts], dim=1))


def test_default_layers_are_those_of_the_last_up_block(diffusion):
    assert len(diffusion.layers) >= 2
    assert all(
        layer.startswith("up_blocks.") and layer.endswith(".attn1") for layer in diffusion.layers
    )
    assert len({layer.split(".")[1] for layer in diffusion.layers}) == 1


def test_only_what_is_needed_stays_in_memory(diffusion):
    assert diffusion.vae.decoder is None
    assert not any(isinstance(value, CLIPTextModel) for value in vars(diffusion).values())
    assert diffusion.empty_prompt.shape[:2] == (1, 77)


def test_layers_of_different_grids_are_refused(image):
    unet = UNet2DConditionModel.from_config(
        UNet2DConditionModel.load_config(FOLDER, subfolder="unet")
    )
    names = self_attentions(unet)
    blocks = {".".join(name.split(".")[:2]): name for name in names}
    assert len(blocks) > 1
    diffusion = DiffusionBackbone.from_pretrained(FOLDER, **CPU, layers=list(blocks.values()))
    with pytest.raises(InputError, match="differ in tokens or head size"):
        diffusion.queries_and_keys([image], (64, 64), [seeded()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["up_blocks.9.attn1"]}, "layer is 'up_blocks.9.attn1'; this UNet's self-att"),
        ({"layers": []}, "layers is .*; expected one or more"),
        ({"timestep": 1000}, "timestep is 1000; expected 0 to 999"),
        ({"timestep": -1}, "timestep is -1"),
    ],
)
def test_unknown_layers_and_timesteps_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        DiffusionBackbone.from_pretrained(FOLDER, **CPU, **arguments)
