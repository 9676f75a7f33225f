"""What the walk needs of an image, kept on disk so that another setting only walks again."""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nerve_fast.backbones.source import AffinitySource, GraphFeatures
from nerve_fast.errors import InputError
from nerve_fast.imaging.resampling import to_tokens
from nerve_fast.pipeline import stages
from nerve_fast.priors import Prior
from nerve_fast.refiners.walk import entropies
from nerve_fast.utils.files import clear_stale, written_whole
from nerve_fast.utils.provenance import digest

logger = logging.getLogger(__name__)

HEADER = 1024
"""Bytes of a file beyond its tensors, at most."""


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The features of one image.

    Attributes:
        prior: ``(K, h, w)`` float32, the prior ``G`` on the graph's tokens.
        q, k: ``(1, H, N, D)`` in the network's dtype.
        entropy: ``(1, H)`` float32 of the heads, of all rows, in nats.
    """

    prior: Tensor
    q: Tensor
    k: Tensor
    entropy: Tensor

    @property
    def graph(self) -> GraphFeatures:
        """Queries and keys as the refiners take them."""
        _, h, w = self.prior.shape
        return GraphFeatures(self.q, self.k, (h, w))

    def to(self, device: torch.device | str) -> "Features":
        return Features(*(part.to(device) for part in vars(self).values()))


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What features are made with.

    Attributes:
        prior, graph: the networks.
        classes: the words of each of the ``K`` classes.
        versions: of the packages that compute, by name.
        backend: who computes the entropies.
        seed: of the noise.
    """

    prior: Prior
    graph: AffinitySource
    classes: Sequence[Sequence[str]]
    versions: Mapping[str, str]
    backend: str = "auto"
    seed: int = 0

    def of(self, image: Image.Image) -> Features:
        """Compute the features of an RGB image, on the CPU.

        Raises:
            InputError: a network gave values that are not finite.
        """
        view = stages.graph_view(self.graph, image.size)
        probabilities, graph = stages.networks(
            lambda: stages.prior_of(self.prior, [image], self.classes, self.prior.view(image.size)),
            lambda: stages.graph_of(
                self.graph, [image], view, [torch.Generator().manual_seed(self.seed)]
            ),
            self.graph.device,
        )
        prior = to_tokens(probabilities, graph.grid)[0].mT.unflatten(1, graph.grid)
        entropy = entropies(graph, backend=self.backend).mean
        return Features(prior, graph.q, graph.k, entropy).to("cpu")

    def key(self) -> str:
        """A hash over everything that features depend on but for the image."""
        return digest(
            {
                "prior": self.prior.identity,
                "graph": self.graph.identity,
                "versions": dict(self.versions),
                "classes": [list(words) for words in self.classes],
                "seed": self.seed,
                "device": self.graph.device.type,
            }
        )


class FeatureCache:
    """One file an image and source, up to a number of bytes for all of them.

    What does not fit any more is not kept; a file that is damaged, or was made of another image,
    counts as absent. A folder that cannot be written costs a warning, not the run. What a killed
    run left half written is removed.

    Args:
        folder: where the files lie, in one folder a source.
        bound: bytes that all files may take, those that are there already among them.
    """

    def __init__(self, folder: Path, bound: int):
        self.folder = folder
        self.bound = bound
        for inner in folder.glob("*/"):
            clear_stale(inner)
        self.used = sum(map(_size, folder.rglob("*.safetensors")))
        self.full = False

    def features(self, source: Source, name: str, image: Image.Image) -> Features:
        """The features of an image, from disk where they are there.

        Args:
            source: what makes them where they are not.
            name: of the image, unique in its data set.
            image: RGB.
        """
        key = source.key()
        path = self.folder / key[:16] / f"{_file_name(name)}.safetensors"
        made_of = hashlib.sha256(f"{key} {image.size} ".encode() + image.tobytes()).hexdigest()
        features = self._read(path, made_of)
        if features is None:
            features = source.of(image)
            self._write(path, made_of, features)
        return features

    def _read(self, path: Path, made_of: str) -> Features | None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names = [field.name for field in dataclasses.fields(Features)]
                features = Features(*(file.get_tensor(name) for name in names))
        except (OSError, SafetensorError):
            return None
        if metadata.get("made_of") != made_of or metadata.get("sha256") != _checksum(features):
            return None
        return features

    def _write(self, path: Path, made_of: str, features: Features) -> None:
        tensors = {name: part.contiguous() for name, part in vars(features).items()}
        replaced = _size(path)
        size = sum(part.nbytes for part in tensors.values()) + HEADER
        if self.full or self.used - replaced + size > self.bound:
            self._give_up(f"files there may take {self.bound:,} bytes")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                metadata = {"made_of": made_of, "sha256": _checksum(features)}
                save_file(tensors, temporary, metadata=metadata)
            self.used += path.stat().st_size - replaced
        except (OSError, InputError, SafetensorError) as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        if not self.full:
            logger.warning(
                "no more features are kept in %s, what is missing is computed each time: %s",
                self.folder,
                reason,
            )
        self.full = True


def _file_name(name: str) -> str:
    """A name for files, at most 200 characters, which tells images apart."""
    quoted = quote(name, safe="")
    return quoted if len(quoted) <= 200 else f"{quoted[:130]}-{digest(name)}"


def _size(path: Path) -> int:
    """Return the size in bytes; 0 where the file does not exist, or no longer."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _checksum(features: Features) -> str:
    hashed = hashlib.sha256()
    for part in vars(features).values():
        hashed.update(part.contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()
