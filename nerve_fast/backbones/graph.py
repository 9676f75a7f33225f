"""The affinity source that a hub id or a folder holds."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from nerve_fast.backbones.kinds import is_diffusion
from nerve_fast.backbones.source import AffinitySource
from nerve_fast.errors import InputError


def load_graph(
    graph: str | os.PathLike | None,
    diffusion: str | os.PathLike,
    *,
    device: torch.device,
    dtype: torch.dtype,
    layers: Sequence[str] | None = None,
    timestep: int = 100,
) -> AffinitySource:
    """Load the diffusion model, or the DINO that ``graph`` names; one of the two, not both.

    Args:
        graph: hub id or folder of a DINO, DINOv2 or DINOv3; ``None`` is the diffusion model. A hub
            id may end in ``@`` and a revision, as ``owner/name@revision``.
        diffusion: hub id, folder or single file of a Stable Diffusion.
        device, dtype: of the network.
        layers: of which queries and keys are taken: names of the UNet's self-attentions, or the
            number of one layer of a DINO; ``None`` is the last up-block, or the last layer.
        timestep: how much noise the UNet sees; DINOs see none.

    Raises:
        InputError: the model is not available, lacks a file, is of another kind, or has no such
            layer or timestep.
    """
    if graph is None:
        from nerve_fast.backbones.diffusion import DiffusionBackbone

        return DiffusionBackbone.from_pretrained(
            str(diffusion), device=device, dtype=dtype, layers=layers, timestep=timestep
        )
    if is_diffusion(Path(graph)):
        raise InputError(
            f"graph is {str(graph)!r}, which is a diffusion model; pass it as diffusion, and leave "
            "graph out"
        )
    from nerve_fast.backbones.dino import DINOBackbone

    return DINOBackbone.from_pretrained(
        str(graph), device=device, dtype=dtype, layer=_layer_number(layers), option="graph"
    )


def _layer_number(layers: Sequence[str] | None) -> int:
    if layers is None:
        return -1
    try:
        (number,) = (int(layer) for layer in layers)
    except ValueError:
        raise InputError(
            f"layers is {list(layers)}; expected the number of one layer, as the graph is a DINO"
        ) from None
    return number
