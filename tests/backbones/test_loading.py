import pytest
import torch
from safetensors.torch import load_file, save_file

from nerve_fast import InputError, NervePipeline
from nerve_fast.backbones.clip import FILES as CLIP_FILES
from nerve_fast.backbones.diffusion import FILES as DIFFUSION_FILES
from nerve_fast.tiny import MODELS


def load(folder, **arguments):
    return NervePipeline.from_pretrained(folder, device="cpu", **arguments)


PARTS = [("clip", names) for names in CLIP_FILES] + [
    ("diffusion", names) for names in DIFFUSION_FILES
]


@pytest.mark.parametrize(("part", "names"), PARTS)
def test_a_folder_that_lacks_a_file_is_refused_by_name(copied_models, part, names):
    names = (names,) if isinstance(names, str) else names
    for name in names:
        (copied_models / part / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match=f"not a complete .* folder: .*{names[0]}.* is missing"):
        load(copied_models)


@pytest.mark.parametrize(
    "file",
    [
        "clip/model.safetensors",
        "clip/config.json",
        "diffusion/unet/diffusion_pytorch_model.safetensors",
        "diffusion/unet/config.json",
        "diffusion/vae/diffusion_pytorch_model.safetensors",
        "diffusion/text_encoder/model.safetensors",
    ],
)
def test_a_damaged_file_is_refused_in_one_line(copied_models, file):
    path = copied_models / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load(copied_models)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("clip/config.json", "{}"),
        ("clip/tokenizer.json", '{"version"'),
        ("clip/preprocessor_config.json", "[1, 2"),
        ("diffusion/scheduler/scheduler_config.json", '{"beta_schedule": "none such"}'),
        ("diffusion/unet/config.json", '{"block_out_channels": [8, 8]}'),
    ],
)
def test_files_that_do_not_fit_together_are_refused_in_one_line(copied_models, file, content):
    (copied_models / file).write_text(content)
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load(copied_models)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("clip/model.safetensors", "visual_projection"),
        ("clip/model.safetensors", "vision_model.encoder.layers.1."),
        ("diffusion/unet/diffusion_pytorch_model.safetensors", "up_blocks."),
        ("diffusion/vae/diffusion_pytorch_model.safetensors", "encoder.conv_in"),
        ("diffusion/text_encoder/model.safetensors", "final_layer_norm"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "of another shape"])
def test_weights_that_would_be_random_are_refused(copied_models, file, part, damage):
    weights = load_file(copied_models / file)
    names = [name for name in weights if part in name]
    assert names
    for name in names:
        weight = weights.pop(name)
        if damage == "of another shape":
            weights[name] = torch.cat([weight, weight])
    save_file(weights, copied_models / file, {"format": "pt"})
    with pytest.raises(InputError, match="cannot be loaded"):
        load(copied_models)


def test_folders_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected 'tiny' or an existing folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="clip is './nowhere': no such folder"):
        load(None, clip="./nowhere")
    with pytest.raises(
        InputError, match="diffusion is 'nowhere': no such folder, and not a hub id"
    ):
        load(None, clip=str(MODELS / "clip"), diffusion="nowhere")


@pytest.mark.parametrize("part", ["clip", "diffusion"])
def test_no_network_is_asked_for_once_and_said_with_what_would_help(monkeypatch, capfd, part):
    asked = []

    def no_network(self, source, **kwargs):
        asked.append(source)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    sources = {"clip": MODELS / "clip", part: "nobody/nothing"}
    with pytest.raises(InputError, match="hf download nobody/nothing") as caught:
        load(None, **sources)
    assert "Name or service not known" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert asked == ["nobody/nothing"]
    assert "Retrying" not in capfd.readouterr().err


def test_a_name_that_is_no_hub_id_is_refused():
    with pytest.raises(InputError, match="clip is 'a b/c': not a hub id"):
        load(None, clip="a b/c")
    with pytest.raises(InputError, match="no such folder"):
        load(None, clip="x" * 300)


def test_devices_that_are_not_there_are_refused():
    for device in ("cuda:99", "nonsense", "xla"):
        with pytest.raises(InputError, match=f"device is '{device}'; this machine"):
            NervePipeline.from_pretrained("tiny", device=device)


def test_the_dtype_is_that_asked_for():
    pipe = load("tiny", dtype=torch.bfloat16)
    assert pipe.prior.clip.model.dtype == pipe.graph.unet.dtype == torch.bfloat16
    assert load("tiny").graph.vae.dtype == torch.float32
