import functools
import importlib.util
import os
import random
from pathlib import Path

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Workers that each take all cores wait for one another; read when torch is imported.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))

import numpy as np
import pytest
import torch
from openai_layout import as_openai
from PIL import Image
from small_sam import save_small_sam

from nerve_fast.tiny import MODELS

NEEDS_TRITON = (
    "bench/harness/test_trials.py",
    "bench/test_gpu.py",
    "cli/test_doctor.py",
    "dispatch/test_costs.py",
    "dispatch/test_select.py",
    "dispatch/test_selfcheck.py",
    "dispatch/test_tuning.py",
    "kernels",
    "tools/test_golden.py",
    "tools/test_hub_kernels.py",
)
"""What is tested only where Triton is, which is on Linux; all the rest must pass everywhere."""

collect_ignore = list(NEEDS_TRITON) if importlib.util.find_spec("triton") is None else []

if not torch.cuda.is_available():
    # Triton reads it when kernels are defined: without a GPU they run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    homes = {folder / name for name in NEEDS_TRITON}
    for item in items:
        if homes & {item.path, *item.path.parents}:
            item.add_marker("needs_triton")


@pytest.fixture
def generator():
    """Fresh random inputs each run; the seed is printed with a failure and can be set again."""
    seed = int(os.environ.get("NERVE_FAST_TEST_SEED", random.randrange(2**31)))
    print(f"NERVE_FAST_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def make_qk(generator):
    """``make_qk(*shape, dtype)``: random queries and keys."""

    def make(*shape, dtype=torch.float64):
        q, k = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        return q.to(dtype), k.to(dtype)

    return make


@pytest.fixture
def make_prior(generator):
    """``make_prior(*shape, dtype)``: random distributions over the last dimension."""

    def make(*shape, dtype=torch.float64):
        logits = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return logits.softmax(-1).to(dtype)

    return make


@pytest.fixture
def single_threaded():
    """Sums in one order, whichever thread adds them up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_folder_set(tmp_path_factory):
    """``make_folder_set(seeds)``: the root of a data set of small scenes with masks."""
    from nerve_fast.tiny.scenes import NAMES, generate

    def make(seeds):
        root = tmp_path_factory.mktemp("set")
        for part in ("images", "masks"):
            (root / part).mkdir()
        (root / "names.txt").write_text("\n".join(NAMES))
        for i, seed in enumerate(seeds):
            image, mask, names = generate(seed, 64)
            image.save(root / "images" / f"scene{i}.png")
            labels = np.array([NAMES.index(name) for name in names], dtype=np.uint8)[mask]
            Image.fromarray(labels).save(root / "masks" / f"scene{i}.png")
        return root

    return make


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests neither use nor leave text embeddings in the user's cache."""
    os.environ["NERVE_FAST_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def language_patched_once():
    """The interpreter patches Triton's language anew in each call of a function within a kernel.

    That is a third of its time: once for each launch and module does as well.
    """
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    @functools.cache
    def modules_of(function):
        # Compared by identity: what else a module holds may not be comparable.
        known = (language, language.core)
        return {one for one in known if any(one is x for x in function.__globals__.values())}

    def patch_once(function):
        modules = modules_of(function)
        if modules <= patched:
            return interpreter._LangPatchScope()
        patched.update(modules)
        scope = patch(function)
        restore = scope.restore

        def restore_all():
            # Of a launch; what a function within it patches, the interpreter never restores.
            patched.clear()
            restore()

        scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_once
    yield
    interpreter._patch_lang = patch


@pytest.fixture(scope="session")
def pipe(own_cache):
    from nerve_fast import NervePipeline

    return NervePipeline.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="session")
def systems(tmp_path_factory):
    """Small random networks of whole systems, by name: folders, and files in authors' layouts."""
    import json
    import shutil

    from transformers import CLIPModel, GroupViTConfig, GroupViTModel, ViTConfig, ViTModel

    root = tmp_path_factory.mktemp("systems")
    generator = torch.Generator().manual_seed(0)

    def drawn(model, scale):
        for parameter in model.parameters():
            # Normalisations stay as they are, or all places would look alike.
            if parameter.ndim > 1:
                parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    vision = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "patch_size": 8,
        "image_size": 32,
    }
    groups = {
        **vision,
        "num_hidden_layers": 3,
        "depths": [1, 1, 1],
        "num_group_tokens": [6, 4, 0],
        "num_output_groups": [6, 4, 0],
    }
    text = {**vision, "vocab_size": 765, "bos_token_id": 763, "eos_token_id": 764}
    config = GroupViTConfig(
        vision_config=groups,
        text_config=text,
        projection_dim=8,
        projection_intermediate_dim=16,
    )
    groupvit = drawn(GroupViTModel(config), 0.5)
    groupvit.logit_scale.data.fill_(3.0)
    shutil.copytree(MODELS / "clip", root / "groupvit", ignore=shutil.ignore_patterns("model.*"))
    groupvit.save_pretrained(root / "groupvit")
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (root / "groupvit" / "preprocessor_config.json").write_text(json.dumps(imagenet))

    dino = drawn(ViTModel(ViTConfig(**vision), add_pooling_layer=False), 0.3)
    dino.save_pretrained(root / "dino")
    decoder = {
        "weight": torch.randn(1, 16, 1, 1, generator=generator),
        "bias": torch.randn(1, generator=generator),
    }
    torch.save({"decoder": decoder}, root / "found.pt")

    own = CLIPModel.from_pretrained(MODELS / "clip").state_dict()
    tuned = {
        name: value + 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in own.items()
        if name.startswith(("vision_model.", "visual_projection."))
    }
    weights = {
        f"sem_seg_head.predictor.clip_model.visual.{name}": value
        for name, value in as_openai(tuned).items()
    }
    others = {"sem_seg_head.predictor.prompt_tokens": torch.zeros(2), "pixel_mean": torch.zeros(3)}
    torch.save({"model": {**weights, **others}, "iteration": 9999}, root / "pixelclip.pth")
    make_stable_diffusion(root / "diffusion")
    return {
        "groupvit": root / "groupvit",
        "diffusion": root / "diffusion",
        "dino": root / "dino",
        "found": root / "found.pt",
        "decoder": decoder,
        "pixelclip": root / "pixelclip.pth",
        "tuned": tuned,
    }


def make_stable_diffusion(folder):
    """A small random model with the levels, the layers and the heads of Stable Diffusion 2.1."""
    import shutil

    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    names = ("unet", "vae", "text_encoder")
    shutil.copytree(MODELS / "diffusion", folder, ignore=shutil.ignore_patterns(*names))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(20, 20, 40, 40),
            attention_head_dim=(5, 10, 20, 20),
            norm_num_groups=5,
            cross_attention_dim=16,
            use_linear_projection=True,
            sample_size=64,
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 4, 8, 8),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            norm_num_groups=4,
        )
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        ends = {"bos_token_id": 763, "eos_token_id": 764}
        text = CLIPTextModel(CLIPTextConfig(vocab_size=765, num_hidden_layers=1, **sizes, **ends))
    # Drawn as they are, places and words would look alike.
    for model, scale in ((unet, 1.5), (text, 10)):
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data *= scale
    for name, model in zip(names, (unet, vae, text), strict=True):
        model.save_pretrained(folder / name)


@pytest.fixture
def copied_models(tmp_path):
    """A copy of the shipped models that a test may damage."""
    import shutil

    return shutil.copytree(MODELS, tmp_path / "models")


@pytest.fixture
def bad_images():
    """``bad_images(folder)``: files of twenty kinds that are no images, or cannot be read, in it.

    Returns their paths; each has the ending of an image, and a stem of its own.
    """
    import io
    import struct

    import numpy as np
    from PIL import Image

    colors = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)

    def encoded(format, pixels=colors, **options):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format=format, **options)
        return file.getvalue()

    def half(format):
        content = encoded(format)
        return content[: len(content) // 2]

    png = encoded("PNG")
    place = png.index(b"IDAT") + 40
    contents = {
        "empty.png": b"",
        "zeros.png": bytes(2000),
        "text.jpg": b"no image",
        "page.png": b"<!DOCTYPE html><title>404 Not Found</title>",
        "short.png": png[:20],
        "half-png.png": half("PNG"),
        "flipped.png": png[:place] + bytes(byte ^ 255 for byte in png[place:-12]) + png[-12:],
        "half-jpg.jpg": half("JPEG"),
        "half-gif.gif": encoded("GIF")[:60],
        "half-webp.webp": half("WEBP"),
        "half-bmp.bmp": half("BMP"),
        "half-jp2.jp2": half("JPEG2000"),
        "header-ppm.ppm": b"P6 30 many 255\n" + colors.tobytes(),
        "header-sgi.sgi": struct.pack(">HBBHHHH", 474, 1, 9, 3, 30, 24, 3) + bytes(600),
        "huge.bmp": b"BM" + struct.pack("<IIIIii", 54, 0, 54, 40, 2**31 - 1, 2**30) + bytes(40),
        "floats.tif": encoded("TIFF", colors[..., 0].astype(np.float32)),
        "integers.tif": encoded("TIFF", colors[..., 0].astype(np.int32) * 70_000),
        "drawing.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 24\nshowpage\n",
    }

    def make(folder):
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        (folder / "folder.png").mkdir()
        (folder / "link.png").symlink_to(folder / "link.png")
        return [folder / name for name in (*contents, "folder.png", "link.png")]

    return make


@pytest.fixture
def make_raster(tmp_path):
    """``make_raster(values, name="scene.tif", **profile)``: a GeoTIFF of ``(bands, H, W)``."""
    import rasterio
    from rasterio.transform import from_origin

    def make(values, name="scene.tif", **profile):
        taken = {
            "crs": "EPSG:32632",
            "transform": from_origin(500_000, 5_400_000, 0.5, 0.5),
            "tiled": True,
            "blockxsize": 64,
            "blockysize": 64,
            "compress": "deflate",
            **profile,
        }
        count, height, width = values.shape
        shape = {"height": height, "width": width, "count": count, "dtype": values.dtype}
        with rasterio.open(tmp_path / name, "w", driver="GTiff", **shape, **taken) as dataset:
            dataset.write(values)
        return tmp_path / name

    return make


@pytest.fixture
def make_film(tmp_path):
    """``make_film(frames, name="clip.mp4", stamps=None, audio=False, **options)``: a film.

    ``frames`` are ``(H, W, 3)`` uint8, ``stamps`` milliseconds, without which a frame takes 40.
    """
    import fractions

    import av

    def make(frames, name="clip.mp4", stamps=None, audio=False, pix_fmt="yuv420p", **options):
        unit = fractions.Fraction(1, 1000)
        with av.open(str(tmp_path / name), "w", options=options) as film:
            stream = film.add_stream("libx264", options={"crf": "10", "threads": "1"})
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt, stream.codec_context.time_base = pix_fmt, unit
            sound = film.add_stream("aac", rate=8000) if audio else None
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = (stamps[number] if stamps else 40 * number), unit
                film.mux(stream.encode(frame))
            film.mux(stream.encode(None))
            if sound is not None:
                silence = np.zeros((1, 1024), np.float32)
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                frame.rate, frame.pts = 8000, 0
                film.mux(sound.encode(frame))
                film.mux(sound.encode(None))
        return tmp_path / name

    return make


@pytest.fixture
def small_disk():
    """``small_disk(bytes)``: files of this process cannot grow beyond that, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def ovdiff_networks(systems, tmp_path_factory):
    """Folders of OVDiff's networks besides CLIP, small and random, by the names that it gives them.

    The diffusion model makes images of 64 pixels; the SAM is sure of nothing.
    """
    import shutil

    from diffusers import AutoencoderKL, UNet2DConditionModel

    root = tmp_path_factory.mktemp("ovdiff")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
        )
        for parameter in unet.parameters():
            if parameter.ndim > 1:
                # As drawn by torch, attention would be the same everywhere.
                parameter.data *= 3
    for part in ("scheduler", "tokenizer", "text_encoder"):
        shutil.copytree(MODELS / "diffusion" / part, root / "diffusion" / part)
    unet.save_pretrained(root / "diffusion" / "unet")
    vae.save_pretrained(root / "diffusion" / "vae")
    save_small_sam(root / "sam", seed=1)
    return {
        "diffusion": str(root / "diffusion"),
        "dino": str(systems["dino"]),
        "detector": str(root / "sam"),
    }
