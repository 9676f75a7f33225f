import pytest
import torch

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


def test_folders_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected 'tiny' or an existing folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="clip is './nowhere': no such folder"):
        load(None, clip="./nowhere")
    with pytest.raises(
        InputError, match="diffusion is 'nowhere': no such folder, and not a hub id"
    ):
        load(None, clip=str(MODELS / "clip"), diffusion="nowhere")


def test_no_network_is_said_with_what_would_help(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="hf download nobody/nothing") as caught:
        load(None, clip="nobody/nothing")
    assert "\n" not in str(caught.value)


def test_devices_that_are_not_there_are_refused():
    for device in ("cuda:99", "nonsense", "xla"):
        with pytest.raises(InputError, match=f"device is '{device}'; this machine"):
            NervePipeline.from_pretrained("tiny", device=device)


def test_the_dtype_is_that_asked_for():
    pipe = load("tiny", dtype=torch.bfloat16)
    assert pipe.clip.model.dtype == pipe.diffusion.unet.dtype == torch.bfloat16
    assert load("tiny").diffusion.vae.dtype == torch.float32
