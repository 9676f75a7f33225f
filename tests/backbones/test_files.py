"""Models as people have them: variants, shards, PyTorch's format; and what is not one."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTextModel

from nerve_fast import InputError
from nerve_fast.backbones.clip import LAYOUT as CLIP_LAYOUT
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.backbones.files import read_config
from nerve_fast.backbones.stable_diffusion import LAYOUT


def same_networks(folder, other, cpu):
    first, second = (DiffusionBackbone.from_pretrained(path, **cpu) for path in (folder, other))
    torch.testing.assert_close(first.empty_prompt, second.empty_prompt)
    for name in ("vae", "unet"):
        states = (getattr(backbone, name).state_dict() for backbone in (first, second))
        torch.testing.assert_close(*states, rtol=0, atol=0)
    return True


def store(folder, kind, part, name, **options):
    """Save a network of a folder in another way; the name's glob must have matches."""
    model = kind.from_pretrained(folder / part)
    for path in (folder / part).glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder / part, **options)
    assert list((folder / part).glob(name)), sorted((folder / part).iterdir())


def store_as_bin(folder, part, stem, shards):
    """Weights in PyTorch's format, as :func:`save_pretrained` no longer writes them everywhere."""
    (file,) = (folder / part).glob("*.safetensors")
    weights = list(load_file(file).items())
    file.unlink()
    if shards == 1:
        torch.save(dict(weights), folder / part / f"{stem}.bin")
        return
    places = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05}-of-{shards:05}.bin"
        torch.save(dict(weights[number::shards]), folder / part / name)
        places |= dict.fromkeys(dict(weights[number::shards]), name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / part / f"{stem}.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_variants_are_loaded(diffusion_folder, diffusion_copy, clip_copy, cpu, variant):
    for kind, part in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet")):
        store(diffusion_copy, kind, part, f"*.{variant}.safetensors", variant=variant)
    name = f"model.{variant}.safetensors"
    store(diffusion_copy, CLIPTextModel, "text_encoder", name, variant=variant)
    assert same_networks(diffusion_folder, diffusion_copy, cpu)
    store(clip_copy, CLIPModel, "", name, variant=variant)
    assert CLIPBackbone.from_pretrained(clip_copy, **cpu).encode_words(["cat"]).isfinite().all()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_loaded(diffusion_folder, diffusion_copy, clip_copy, cpu, variant):
    options = {"max_shard_size": "20KB", "variant": variant}
    for kind, part in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet")):
        store(diffusion_copy, kind, part, "*-of-*.safetensors", **options)
    store(diffusion_copy, CLIPTextModel, "text_encoder", "*-of-*.safetensors", **options)
    assert same_networks(diffusion_folder, diffusion_copy, cpu)
    store(clip_copy, CLIPModel, "", "*-of-*.safetensors", **options)
    CLIPBackbone.from_pretrained(clip_copy, **cpu)


@pytest.mark.parametrize("shards", [1, 2])
def test_pytorchs_format_is_loaded(diffusion_folder, diffusion_copy, clip_copy, cpu, shards):
    for part, stem in (
        ("vae", "diffusion_pytorch_model"),
        ("unet", "diffusion_pytorch_model"),
        ("text_encoder", "pytorch_model"),
    ):
        store_as_bin(diffusion_copy, part, stem, shards)
    assert same_networks(diffusion_folder, diffusion_copy, cpu)
    store_as_bin(clip_copy, "", "pytorch_model", shards)
    CLIPBackbone.from_pretrained(clip_copy, **cpu)


def test_a_shard_that_is_missing_is_named(diffusion_copy, cpu):
    store(diffusion_copy, AutoencoderKL, "vae", "*-of-*.safetensors", max_shard_size="20KB")
    shard = next((diffusion_copy / "vae").glob("*-00001-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name}: is missing"):
        DiffusionBackbone.from_pretrained(diffusion_copy, **cpu)


def test_of_a_repository_only_one_format_is_fetched():
    unet, text = "unet/diffusion_pytorch_model", "text_encoder/"
    names = {
        "v1-5-pruned.ckpt",
        "README.md",
        "model_index.json",
        "safety_checker/model.safetensors",
        *(f"{folder}/config.json" for folder in ("unet", "vae", "text_encoder")),
        *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt")),
        "scheduler/scheduler_config.json",
        *(f"{unet}{end}" for end in (".safetensors", ".bin", ".fp16.safetensors")),
        f"{unet}.non_ema.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.bin",
        f"{text}model.safetensors.index.json",
        *(f"{text}model-0000{n}-of-00002.safetensors" for n in (1, 2)),
        *(f"{text}model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)),
    }
    assert LAYOUT.missing(names) is None
    weights = {name for name in LAYOUT.needed(names) if name.endswith((".safetensors", ".bin"))}
    assert weights == {
        f"{unet}.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        *(f"{text}model-0000{n}-of-00002.safetensors" for n in (1, 2)),
    }
    assert {"tokenizer/merges.txt", "unet/config.json"} <= set(LAYOUT.needed(names))


def test_every_required_file_is_missed():
    for layout in (LAYOUT, CLIP_LAYOUT):
        every = {name for wanted in layout.required() for name in wanted}
        assert layout.missing(every) is None
        for wanted in layout.required():
            assert layout.missing(every - {*wanted}) is not None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": {"b": [1, 10**7]}}, "b is 1e\\+07; expected at most 1048576"),
        ({"num_hidden_layers": 1000}, "num_hidden_layers is 1000; expected at most 512"),
        ({"hidden_size": -(10**50)}, "hidden_size is -1e\\+50"),
        ([1, 2], "holds a JSON list; expected an object"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "vocab_size"])
def test_more_weights_than_the_files_hold_are_refused_before_they_are_allocated(
    diffusion_copy, cpu, field
):
    path = diffusion_copy / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, field: 2**20}))
    with pytest.raises(InputError, match="describes \\d+ weights|different models"):
        DiffusionBackbone.from_pretrained(diffusion_copy, **cpu)
