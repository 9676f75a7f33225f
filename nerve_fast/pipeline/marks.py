"""What a label map on disk says of how it was made, so that a later run can tell it is whole.

The last text chunk of ``NAME.labels.png``, named ``made``, holds JSON: digests of the settings, of
the source image, of the results beside it and of the PNG without this chunk.
"""

import dataclasses
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import cast

import torch

from nerve_fast.backbones.loading import revision_of
from nerve_fast.pipeline.loading import device_and_dtype, model_sources
from nerve_fast.priors import ENTRIES, PriorConfig
from nerve_fast.utils.provenance import digest, file_digest, version

_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
_KEYWORD = b"made\0"


def stamped(png: bytes, made: dict) -> bytes:
    """A PNG with a last text chunk that holds ``made`` and the digest of what it was without."""
    text = json.dumps({**made, "png": hashlib.sha256(png).hexdigest()}).encode("ascii")
    body = b"tEXt" + _KEYWORD + text
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png.removesuffix(_END) + chunk + _END


def stamp_of(path: Path) -> dict | None:
    """Read what :func:`stamped` noted in a PNG; ``None`` where the file was changed since."""
    try:
        data = path.read_bytes()
        start = data.rindex(b"tEXt" + _KEYWORD) - 4
        (length,) = struct.unpack(">I", data[start : start + 4])
        made = json.loads(data[start + 8 + len(_KEYWORD) : start + 8 + length])
        png = data[:start] + _END
        # The bytes of the chunk itself are right where they are made again.
        png_digest = made.pop("png")
        whole = hashlib.sha256(png).hexdigest() == png_digest and stamped(png, made) == data
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    except struct.error:
        return None
    return made if whole else None


def settings_digest(asked, device: torch.device | str | None) -> str:
    """A digest of everything that results depend on except for the image.

    Args:
        asked: the :class:`~nerve_fast.pipeline.asked.SegmentSettings`.
        device: that the networks run on.
    """
    models = asked.models
    device, dtype = device_and_dtype(device, models.dtype)
    usual = ENTRIES[asked.prior.name].clip
    sources = [*model_sources(models.models, models.clip, models.diffusion, usual), models.graph]
    return digest(
        {
            "labels": list(asked.labels),
            "seeds": asked.seeds.to_dict(),
            "config": asked.taken_config.to_dict(),
            "prior": dataclasses.asdict(asked.prior),
            "pixels": [asked.resolution, asked.tile, asked.overlap],
            "certainty": [asked.top, asked.threshold, asked.background],
            "memory": [asked.global_keys, asked.max_key_error, asked.max_memory],
            "models": [_state_of(source) for source in (*sources, *_networks(asked.prior))],
            "layers": models.layers,
            "noise": [models.timestep, models.seed],
            "computed": [device.type, str(dtype), models.backend, models.compile],
            "versions": {
                name: version(name)
                for name in ("nerve-fast", "torch", "transformers", "diffusers", "pillow")
            },
        }
    )


def _networks(prior: PriorConfig) -> list[str]:
    return [source for _, source in cast(tuple[tuple[str, str], ...], prior.networks)]


def _state_of(source: str | os.PathLike | None) -> list:
    """Identify a model without loading it: by its files in a folder, or its revision on a hub."""
    if source is None:
        return []
    folder = Path(source)
    if os.path.isdir(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        states = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
        return [[name, state.st_size, state.st_mtime_ns] for name, state in states]
    if os.path.isfile(folder):
        state = folder.stat()
        return [folder.name, state.st_size, state.st_mtime_ns]
    return [str(source), revision_of(str(source))]


def is_whole(
    stem: Path,
    endings: list[str],
    *,
    settings: str,
    source: Path,
    exports: Collection[str] = (),
) -> bool:
    """Whether the results of an image are there, whole, and of these settings and this image.

    Args:
        stem: of the results, the folder included.
        endings: of the results that are wanted, the label map's among them.
        settings: of :func:`settings_digest`.
        source: the image.
        exports: that are wanted.
    """
    made = stamp_of(Path(f"{stem}.labels.png"))
    if made is None or made.get("settings") != settings:
        return False
    try:
        beside = {
            ending: file_digest(Path(f"{stem}.{ending}"))
            for ending in endings
            if ending != "labels.png"
        }
        same_source = made.get("source") == file_digest(source)
        exported = all(_is_exported(made, name, stem.parent) for name in exports)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    results = made.get("results")
    whole = isinstance(results, dict) and beside.items() <= results.items()
    return same_source and exported and whole


def _is_exported(made: dict, name: str, folder: Path) -> bool:
    """Whether an image's files of an export are there and whole."""
    digests = made["exports"][name]
    return all(file_digest(folder / path) == known for path, known in digests.items())
