"""What the networks found in an image, kept so that other words and settings cost no network."""

import dataclasses
from typing import Any

from PIL import Image

from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.ops.entropy import SampledEntropy
from nerve_fast.pipeline.budget import EncodePlan
from nerve_fast.refiners.walk import entropies


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What :meth:`~nerve_fast.NervePipeline.encode` gives; the pipeline takes it for an image.

    Attributes:
        image: the image that was encoded, RGB.
        encoded: what the prior found in it, ``None`` where the pipeline has no prior.
        graph: its queries and keys, ``(1, H, N, D)``, on the network's device.
        plan: how the networks saw it.
    """

    image: Image.Image
    encoded: Any
    graph: GraphFeatures
    plan: EncodePlan
    _entropies: dict = dataclasses.field(default_factory=dict, repr=False)

    def entropies(self, max_rows: int | None, backend: str) -> SampledEntropy:
        """``(1, H)`` of :func:`nerve_fast.head_entropy`, computed once for all calls.

        Args:
            max_rows: rows that they are the mean of, at most.
            backend: who computes them.
        """
        key = (max_rows, backend)
        if key not in self._entropies:
            self._entropies[key] = entropies(self.graph, max_rows=max_rows, backend=backend)
        return self._entropies[key]
