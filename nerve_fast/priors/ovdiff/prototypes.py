"""Prototypes of a word: what its support images look like where it is, and where it is not."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerve_fast.errors import InputError
from nerve_fast.priors.ovdiff.masks import places

CLUSTERS = 32
"""Means of k-means, at most."""

ALIKE = 0.85
"""A prototype of a background whose cosine to one of stuff is above it is left out."""


class Gathered:
    """Features of support images inside two masks of each.

    An image whose foreground has no place on the grid counts in neither.
    """

    def __init__(self):
        self.parts: tuple[list[Tensor], list[Tensor]] = ([], [])

    def add(self, features: Tensor, foreground: Tensor, background: Tensor) -> None:
        """Take an image: features ``(h, w, C)``, masks ``(H, W)`` bool."""
        grid = (features.shape[0], features.shape[1])
        inside, outside = (places(mask, grid) for mask in (foreground, background))
        if inside.any():
            self.parts[0].append(features[inside.to(features.device)].cpu())
            self.parts[1].append(features[outside.to(features.device)].cpu())

    def prototypes(self, word: str) -> tuple[Tensor, Tensor]:
        """Those of the foreground ``(P, C)`` and of the background ``(Q, C)``, float32.

        The mean of all places, the mean of each image's places, and the means of k-means.

        Raises:
            InputError: no image shows the word, or scikit-learn is not installed.
        """
        if not self.parts[0]:
            raise InputError(
                f"none of the images made of {word!r} shows it anywhere, so it has no prototypes; "
                "take another word for it, or more support images"
            )
        foreground, background = (_prototypes(parts) for parts in self.parts)
        return foreground, background


def _prototypes(parts: Sequence[Tensor]) -> Tensor:
    features = torch.cat(list(parts))
    if not len(features):
        return features
    own = [part.mean(0) for part in parts if len(part)]
    return torch.cat([features.mean(0)[None], torch.stack(own), clustered(features)])


def clustered(features: Tensor) -> Tensor:
    """The means of k-means on ``(n, C)``, :data:`CLUSTERS` of them or ``n``.

    scikit-learn's, from its seed 0, as in the public code.

    Raises:
        InputError: it is not installed.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise InputError(
            'scikit-learn is not installed; get it: pip install "nerve-fast[ovdiff]"'
        ) from None
    count = min(CLUSTERS, len(features))
    found = KMeans(count, n_init=1, random_state=0).fit(features.numpy())
    return torch.from_numpy(found.cluster_centers_).float()


def compared(
    foreground: Sequence[Tensor], background: Sequence[Tensor], stuff: Sequence[bool]
) -> tuple[list[Tensor], list[Tensor]]:
    """The prototypes of labels that take part, of norm 1.

    Labels that are stuff have no background, and what looks like stuff is no background of others.

    Args:
        foreground, background: ``(P, C)`` and ``(Q, C)`` of each label.
        stuff: which labels are.
    """
    fore = [normalize(one, dim=-1, eps=1e-6) for one in foreground]
    back = []
    of_stuff = [one for one, is_stuff in zip(fore, stuff, strict=True) if is_stuff]
    for one, is_stuff in zip(background, stuff, strict=True):
        one = normalize(one[:0] if is_stuff else one, dim=-1, eps=1e-6)
        if of_stuff and len(one) > 1:
            one = one[(one @ torch.cat(of_stuff).T).amax(1) <= ALIKE]
        back.append(one)
    return fore, back


def nearest(features: Tensor, fore: Sequence[Tensor], back: Tensor | None) -> Tensor:
    """The largest cosine of each place to the prototypes of each label, and of the background.

    Args:
        features: ``(h, w, C)``.
        fore: of each of ``K`` labels, ``(P, C)`` of norm 1.
        back: of the background, which may be none; ``None``: it is not wanted.

    Returns:
        ``(K, h, w)``, or ``(K + 1, h, w)``, where a background without prototypes is −1.
    """
    features = normalize(features, dim=-1, eps=1e-6)
    found = [(features @ one.T).amax(-1) for one in fore]
    if back is not None:
        there = (features @ back.T).amax(-1) if len(back) else torch.full_like(found[0], -1)
        found.append(there)
    return torch.stack(found)
