import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub.hf_api import RepoSibling
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from nerve_fast import InputError, NervePipeline
from nerve_fast.backbones.clip import LAYOUT as CLIP_LAYOUT
from nerve_fast.backbones.clip import CLIPBackbone
from nerve_fast.backbones.diffusion import DiffusionBackbone
from nerve_fast.backbones.dino import DINOBackbone
from nerve_fast.backbones.stable_diffusion import LAYOUT as DIFFUSION_LAYOUT
from nerve_fast.pipeline import loading
from nerve_fast.tiny import MODELS


def load(folder, **arguments):
    return NervePipeline.from_pretrained(folder, device="cpu", **arguments)


PARTS = [("clip", names) for names in CLIP_LAYOUT.required()] + [
    ("diffusion", names) for names in DIFFUSION_LAYOUT.required()
]


@pytest.mark.parametrize(("part", "names"), PARTS)
def test_a_folder_that_lacks_a_file_is_refused_by_name(copied_models, part, names):
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
    with pytest.raises(InputError, match="cannot be (loaded|read as JSON)") as caught:
        load(copied_models)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("clip/config.json", '{"model_type": "clip"}'),
        ("clip/tokenizer.json", '{"version"'),
        ("clip/preprocessor_config.json", "[1, 2"),
        ("diffusion/scheduler/scheduler_config.json", '{"beta_schedule": "none such"}'),
        ("diffusion/unet/config.json", '{"block_out_channels": [8, 8]}'),
    ],
)
def test_files_that_do_not_fit_together_are_refused_in_one_line(copied_models, file, content):
    (copied_models / file).write_text(content)
    with pytest.raises(InputError, match="cannot be (loaded|read as JSON)") as caught:
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
    assert load("tiny", dtype=torch.float32).graph.vae.dtype == torch.float32


@pytest.mark.parametrize(("hardware", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_networks_run_in_what_the_cpu_multiplies(monkeypatch, hardware, dtype):
    monkeypatch.setattr(loading, "bfloat16_pays", lambda: hardware)
    pipe = load("tiny")
    assert pipe.prior.clip.model.dtype == pipe.graph.unet.dtype == pipe.graph.vae.dtype == dtype
    features = pipe.encode(np.zeros((64, 64, 3), dtype=np.uint8))
    assert features.graph.q.dtype == features.graph.k.dtype == torch.float32


COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``hub(folder)``: the id of a model in a cache of the hub, which cannot be reached."""

    def no_network(self, source, **kwargs):
        raise ConnectionError(f"no network for {source} {kwargs.get('revision')}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)

    def add(folder, commit=COMMITS[0], name="someone/model"):
        home = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        for ref, target in (("main", COMMITS[0]), ("old", COMMITS[1])):
            (home / "refs").mkdir(parents=True, exist_ok=True)
            (home / "refs" / ref).write_text(target)
        shutil.copytree(folder, home / "snapshots" / commit)
        return name, home / "snapshots" / commit

    return add


@pytest.fixture(params=["clip", "diffusion", "dino"])
def cached(request, hub, clip_folder, diffusion_folder, tmp_path, cpu):
    """``(load, folder, add)`` of a model in the hub's cache."""
    folder, kind = {
        "clip": (clip_folder, CLIPBackbone),
        "diffusion": (diffusion_folder, DiffusionBackbone),
        "dino": (tmp_path / "dino", DINOBackbone),
    }[request.param]
    if request.param == "dino":
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        config = ViTConfig(**sizes, num_attention_heads=2)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return lambda source: kind.from_pretrained(source, **cpu), folder, hub


def test_a_model_of_the_hub_says_its_commit_and_can_be_pinned(cached):
    load, folder, add = cached
    for commit in COMMITS:
        name, _ = add(folder, commit)
    assert load(folder).revision is None
    assert load(name).revision == COMMITS[0]
    for revision, commit in (
        ("main", COMMITS[0]),
        ("old", COMMITS[1]),
        *zip(COMMITS, COMMITS, strict=True),
    ):
        assert load(f"{name}@{revision}").revision == commit
    for revision in ("new", "c" * 40):
        with pytest.raises(InputError, match=f"{name}@{revision}: .*no network") as caught:
            load(f"{name}@{revision}")
        assert f"hf download {name} --revision {revision}" in str(caught.value)
    with pytest.raises(InputError, match="not a hub id of the form owner/name or owner/name@rev"):
        load(f"{name}@")


def test_a_damaged_file_in_the_hubs_cache_is_said_as_in_a_folder(cached, tmp_path):
    load, folder, add = cached
    copy = shutil.copytree(folder, tmp_path / "copy")
    damaged = next(copy.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:200])
    name, _ = add(copy)
    messages = []
    for source in (copy, name):
        with pytest.raises(InputError, match="cannot be loaded") as caught:
            load(source)
        messages.append(str(caught.value).replace(str(source), "SOURCE"))
    assert messages[0] == messages[1]


def test_a_file_that_the_cache_lacks_is_asked_of_the_hub(cached):
    load, folder, add = cached
    name, snapshot = add(folder)
    next(snapshot.rglob("*.safetensors")).unlink()
    with pytest.raises(InputError, match=f"no network for {name}"):
        load(name)


def test_only_what_is_needed_is_fetched_and_only_of_what_can_be_loaded(
    cached, monkeypatch, tmp_path
):
    load, folder, _ = cached
    asked = []

    class Info:
        def __init__(self, names):
            self.siblings = [RepoSibling(rfilename=name) for name in names]

    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    listed = {*files, "big.ckpt", "flax_model.msgpack"}
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: Info(listed))

    def download(name, *, revision=None, local_files_only=False, allow_patterns=None):
        if local_files_only:
            raise FileNotFoundError
        asked.append({*allow_patterns})
        for path in allow_patterns:
            target = tmp_path / "fetched" / COMMITS[1] / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / path, target)
        return str(tmp_path / "fetched" / COMMITS[1])

    monkeypatch.setattr("nerve_fast.backbones.loading.snapshot_download", download)
    assert load("someone/model").revision == COMMITS[1]
    weights = {name for name in files if name.endswith(".safetensors")}
    assert not asked[0] & weights
    assert asked[1] >= weights
    assert not asked[1] & {"big.ckpt", "flax_model.msgpack"}

    # The same repository, of another kind: its weights are left where they are.
    asked.clear()
    shutil.rmtree(tmp_path / "fetched")
    monkeypatch.setattr(
        "nerve_fast.backbones.loading.Layout.missing", lambda *_: ("what is not there",)
    )
    with pytest.raises(InputError, match="not a complete .* what is not there is missing"):
        load("someone/model")
    assert len(asked) == 1


def test_a_file_is_no_folder(clip_folder, cpu):
    with pytest.raises(InputError, match="clip is .*, which is a file; expected a folder"):
        CLIPBackbone.from_pretrained(clip_folder / "model.safetensors", **cpu)


def test_another_models_tokenizer_is_refused(clip_copy, cpu):
    path = clip_copy / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["model"]["vocab"]["another</w>"] = 4000
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="the tokenizer has token 4000, and the model knows 765"):
        CLIPBackbone.from_pretrained(clip_copy, **cpu)
