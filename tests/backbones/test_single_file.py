"""Single files in the original layout, made of random networks, give what the folder gives."""

import re

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from nerve_fast import InputError
from nerve_fast.backbones.diffusion import DiffusionBackbone

WIDTH = 64
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_name(name):
    """The original name of a UNet's weight."""
    for ours, original in {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in.": "input_blocks.0.0.",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items():
        if name.startswith(ours):
            return name.replace(ours, original)

    def block(match):
        way, i, kind, j = match[1], int(match[2]), match[3], int(match[4])
        place = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2 if i else 1}
        if kind == "downsamplers":
            return f"input_blocks.{3 * (i + 1)}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{3 * i + 2}.{place[kind]}.conv"
        number = 3 * i + j + (way == "down")
        return f"{'input' if way == 'down' else 'output'}_blocks.{number}.{place[kind]}"

    pattern = r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)(\.conv)?"
    if "samplers" in name:
        return re.sub(pattern, block, name)
    resnet = ".resnets." in name
    name = re.sub(pattern.removesuffix(r"(\.conv)?"), block, name)
    name = name.replace("mid_block.attentions.0", "middle_block.1")
    name = re.sub(
        r"mid_block\.resnets\.(\d)", lambda match: f"middle_block.{2 * int(match[1])}", name
    )
    return replaced(name, RESNET) if resnet else name


def vae_name(name):
    """The original name of a VAE's weight."""
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda match: f"up.{3 - int(match[1])}.block", name)
    name = re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda match: f"up.{3 - int(match[1])}.upsample", name
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    return replaced(
        name,
        {
            "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
            "mid_block.attentions.0.to_q": "mid.attn_1.q",
            "mid_block.attentions.0.to_k": "mid.attn_1.k",
            "mid_block.attentions.0.to_v": "mid.attn_1.v",
            "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
            "conv_shortcut": "nin_shortcut",
            "conv_norm_out": "norm_out",
        },
    )


def replaced(name, names):
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def open_clip(weights):
    """A text encoder's weights under OpenCLIP's names, with a last layer that is not used."""
    prefix = "cond_stage_model.model."
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm": "ln_final",
        "encoder.layers": "transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    original = {}
    for name, weight in weights.items():
        if ".q_proj" in name:
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
            weight = torch.cat(parts)
        elif ".k_proj" in name or ".v_proj" in name:
            continue
        original[prefix + replaced(name, names)] = weight
    last = {
        name.replace("resblocks.0", "resblocks.1"): weight.clone()
        for name, weight in original.items()
        if "resblocks.0" in name
    }
    projection = {f"{prefix}text_projection": torch.eye(WIDTH)}
    return original | last | projection


@pytest.fixture(scope="module", params=[1, 2], ids=["SD 1", "SD 2"])
def networks(request):
    torch.manual_seed(0)
    version = {"attention_head_dim": 8}
    if request.param == 2:
        version = {"attention_head_dim": [1, 2, 4, 4], "use_linear_projection": True}
    width = 32 if request.param == 1 else 64
    channels = [width, 2 * width, 4 * width, 4 * width]
    unet = UNet2DConditionModel(
        block_out_channels=channels, cross_attention_dim=WIDTH, sample_size=64, **version
    )
    vae = AutoencoderKL(
        block_out_channels=[32, 64, 128, 128],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=WIDTH,
            vocab_size=50,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=1,
            hidden_act="quick_gelu" if request.param == 1 else "gelu",
            bos_token_id=48,
            eos_token_id=49,
        )
    )
    return request.param, unet.eval(), vae.eval(), text.eval()


@pytest.fixture(scope="module")
def weights(networks):
    version, unet, vae, text = networks
    original = {
        f"model.diffusion_model.{unet_name(name)}": weight
        for name, weight in unet.state_dict().items()
    }
    for name, weight in vae.state_dict().items():
        # Attentions of the VAE are convolutions there.
        if re.search(r"attentions.*(to_|proj).*weight", name):
            weight = weight[..., None, None]
        original[f"first_stage_model.{vae_name(name)}"] = weight
    states = {name.removeprefix("text_model."): x for name, x in text.state_dict().items()}
    if version == 2:
        return original | open_clip(states)
    prefix = "cond_stage_model.transformer.text_model."
    return original | {f"{prefix}{name}": weight for name, weight in states.items()}


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    return path


def test_the_networks_are_those_in_the_file(networks, file, cpu):
    version, unet, vae, text = networks
    loaded = DiffusionBackbone.from_pretrained(file, **cpu)
    torch.testing.assert_close(loaded.unet.state_dict(), unet.state_dict(), rtol=0, atol=0)
    encoder = {f"encoder.{name}": x for name, x in vae.encoder.state_dict().items()}
    kept = {name: x for name, x in loaded.vae.state_dict().items() if name in encoder}
    torch.testing.assert_close(kept, encoder, rtol=0, atol=0)
    ids = torch.full((1, 77), 49 if version == 1 else 0)
    ids[0, :2] = torch.tensor([48, 49])
    with torch.no_grad():
        torch.testing.assert_close(loaded.empty_prompt, text(ids).last_hidden_state)
    heads = [loaded.unet.get_submodule(layer).heads for layer in loaded.layers]
    assert heads == [unet.get_submodule(layer).heads for layer in loaded.layers]
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.equal(loaded.alphas_cumprod, schedule.alphas_cumprod)


def test_a_ckpt_is_read_without_running_its_code(weights, tmp_path, cpu):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": weights, "global_step": 3}, path)
    assert DiffusionBackbone.from_pretrained(path, **cpu).layers

    class Code:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"state_dict": weights, "callbacks": Code()}, path)
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        DiffusionBackbone.from_pretrained(path, **cpu)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditioner.embedders.1.model.x": 1}, "holds Stable Diffusion XL; expected a Stable"),
        ({"model.diffusion_model.joint_blocks.0.x": 1}, "holds Stable Diffusion 3"),
        ({"double_blocks.0.x": 1}, "holds FLUX"),
        ({"lora_unet_x": 1}, "holds a LoRA"),
        ({"model.diffusion_model.label_emb.0.x": 1}, "is an upscaler"),
        ({"model.diffusion_model.input_blocks.0.0.weight": 9}, "is an inpainting model"),
        ({"first_stage_model.": None}, "holds no VAE"),
        ({"cond_stage_model.": None}, "holds no text encoder"),
        ({"model.diffusion_model.": None}, "holds no UNet"),
        ({"model.diffusion_model.out.2.weight": None}, "cannot be loaded"),
        ({"first_stage_model.encoder.norm_out.weight": None}, "missing weights, such as encoder"),
    ],
)
def test_other_files_are_refused_by_name(file, tmp_path, cpu, change, message):
    weights = load_file(file)
    for part, value in change.items():
        if value is None:
            weights = {name: x for name, x in weights.items() if not name.startswith(part)}
        else:
            weights[part] = torch.zeros(32, value, 3, 3)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        DiffusionBackbone.from_pretrained(tmp_path / "other.safetensors", **cpu)
    assert "\n" not in str(caught.value)


def test_a_damaged_or_foreign_file_is_refused(file, tmp_path, cpu):
    for name, content in (
        ("cut.safetensors", file.read_bytes()[:1000]),
        ("empty.ckpt", b""),
        ("words.ckpt", b"no weights at all"),
        ("words.safetensors", b"version https://git-lfs.github.com/spec/v1"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: the diffusion model cannot be") as caught:
            DiffusionBackbone.from_pretrained(tmp_path / name, **cpu)
        assert "\n" not in str(caught.value)
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected a \.safetensors or \.ckpt file, or a folder"):
        DiffusionBackbone.from_pretrained(tmp_path / "model.gguf", **cpu)
