"""This project's own: the random walk on an image's queries and keys (NERVE, WACV 2026)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.profiler import record_function

from nerve_fast.backbones.source import GraphFeatures
from nerve_fast.blocked.cluster_error import cluster_error
from nerve_fast.clusters import ClusterError, Clusters, cluster_keys
from nerve_fast.config import NerveConfig
from nerve_fast.dispatch import Plan
from nerve_fast.imaging.resampling import as_distribution, as_maps, to_tokens
from nerve_fast.ops import entropy_weights
from nerve_fast.ops.entropy import SampledEntropy, sampled_entropy
from nerve_fast.ops.walk import walked
from nerve_fast.refiners.checks import check_graph, check_maps
from nerve_fast.refiners.registry import registered
from nerve_fast.shares import Share
from nerve_fast.weights import remember


@registered("walk", needs_graph=True)
@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """The pipeline's walk as a refiner: :func:`walk`, with all keys and the entropies of all rows.

    Args:
        config: settings of the graph stage.
        backend: who carries it out: ``auto``, ``reference``, ``blocked``, ``triton``.
    """

    config: NerveConfig = dataclasses.field(default_factory=NerveConfig)
    backend: str = "auto"

    def __call__(
        self, image: Image.Image, probabilities: Tensor, graph: GraphFeatures | None = None
    ) -> Tensor:
        """Probabilities ``(K, h, w)`` to those of the graph's tokens."""
        check_maps(probabilities)
        graph = check_graph("walk", graph)
        prior = to_tokens(probabilities[None].to(graph.q.device), graph.grid)
        (walked,) = walk(graph, prior, self.config, backend=self.backend)
        return walked.maps.to(probabilities.device)

    def memory(self, labels: int, image_size: tuple[int, int], tokens: int) -> int:
        """Bytes of the prior and of what the walk makes of it, in two layouts.

        What the walk itself takes is planned with the memory that is free.
        """
        return 16 * tokens * labels


@dataclasses.dataclass(frozen=True, eq=False)
class WalkedMaps:
    """What the walk made of one image's prior.

    Attributes:
        maps: ``(K, h, w)`` float32, non-negative, summing to 1 over ``K``.
        at_steps: the same after each number of steps that was asked for.
        steps_taken: how many steps the walk took.
    """

    maps: Tensor
    at_steps: Mapping[int, Tensor]
    steps_taken: int


def entropies(
    graph: GraphFeatures,
    *,
    max_rows: int | None = None,
    backend: str = "auto",
    share: Share | None = None,
) -> SampledEntropy:
    """``(B, H)`` of :func:`nerve_fast.head_entropy`, which several walks can share.

    ``share``: which rows of a grid, that processes share, these are; ``None``: all of them.
    """
    with record_function("nerve_fast: entropy"):
        return sampled_entropy(graph.q, graph.k, max_rows, backend=backend, share=share)


def weights_of(graph: GraphFeatures, config: NerveConfig, entropy: Tensor | None) -> Tensor:
    """Head weights ``(B, H)`` from ``entropy (B, H)``; their mean where that is not wanted."""
    if entropy is None or config.sharpness == 0:
        q = graph.q
        return remember(q.new_full(q.shape[:2], 1 / q.shape[1], dtype=torch.float32), 1.0)
    return entropy_weights(entropy, config.sharpness)


@torch.no_grad()
def clusters_of(
    graph: GraphFeatures,
    prior: Tensor,
    config: NerveConfig,
    weights: Tensor,
    count: int,
    share: Share | None = None,
) -> tuple[Clusters, list[ClusterError]]:
    """Clusters of the keys of images, and how far each image's are off.

    Args:
        graph: ``q, k (B, H, N, D)``.
        prior: ``G``, ``(B, N, K)``.
        config: settings of the graph stage.
        weights: of the heads, ``(B, H)``.
        count: the number of clusters of each.
        share: which tokens of the grid these are; ``None``: all of them.
    """
    with (
        record_function("nerve_fast: clusters"),
        torch.autocast(graph.q.device.type, enabled=False),
    ):
        clusters = cluster_keys(graph.k, weights, count, prior, share)
        errors = [
            cluster_error(q, k, G, w, config, own)
            for q, k, G, w, own in zip(
                graph.q, graph.k, prior, weights, clusters.members(), strict=True
            )
        ]
    return clusters, errors


@torch.no_grad()
def walk(
    graph: GraphFeatures,
    prior: Tensor,
    config: NerveConfig,
    *,
    entropy: Tensor | None = None,
    clusters: Clusters | None = None,
    backend: str = "auto",
    plan: Plan | None = None,
    return_steps: Sequence[int] = (),
    on_step: Callable[[], None] | None = None,
    seeds_alone: bool = False,
    share: Share | None = None,
) -> list[WalkedMaps]:
    """``P_L`` of images: the third stage of the pipeline, and of whatever is compared with it.

    Args:
        graph: ``q, k (B, H, N, D)``.
        prior: ``G``, ``(B, N, K)`` float32.
        config: settings of the graph stage.
        entropy: ``(B, H)``, the mean of :func:`entropies`; ``None`` computes those of all rows,
            where the settings need them.
        clusters: of the keys; ``None`` finds them where the settings want them.
        backend: who computes the entropies, and carries the walk out where there is no plan.
        plan: of the walk, executed as it is; ``None`` plans with the memory that is free.
        return_steps: numbers of steps after which the maps are wanted too.
        on_step: called after each step of each image where the backend's steps can be watched.
        seeds_alone: ``prior`` holds seeds without words, whose labels are calibrated: see
            :func:`calibration`.
        share: which rows of a grid, that processes share, these are; ``None``: all of them.

    Returns:
        One an image; of a share the rows of this process.
    """
    q, k, grid = graph.q, graph.k, graph.grid
    share = share or Share(grid)
    if entropy is None and config.moves(return_steps) and config.sharpness > 0:
        entropy = entropies(graph, backend=backend, share=share).mean
    weights = weights_of(graph, config, entropy)

    with record_function("nerve_fast: walk"):
        result = walked(
            q,
            k,
            prior,
            share.grid,
            config,
            head_weights=weights,
            backend=backend if plan is None else "auto",
            plan=plan,
            return_steps=return_steps,
            on_step=on_step,
            clusters=clusters,
            group=share.group,
        )

    def maps_of(P: Tensor, i: int, steps: int) -> Tensor:
        if seeds_alone:
            P = P / calibration(P, prior[i], config.alpha, steps, share)
        return as_maps(as_distribution(P), grid)

    return [
        WalkedMaps(
            maps_of(one, i, result.steps_taken),
            {count: maps_of(P[i], i, count) for count, P in result.at_steps.items()},
            result.steps_taken,
        )
        for i, one in enumerate(result.probabilities)
    ]


def calibration(
    P: Tensor, seeds: Tensor, alpha: float, steps: int, share: Share | None = None
) -> Tensor:
    r"""By what each label of a walk from seeds is divided: its mean at its own seeds, returned.

    A walker inside a thing of ``n`` tokens meets any one of them with a probability of about
    ``1/n``: seeds in a large thing are met more seldom, even from within, than what leaks to the
    seeds of a small one. What a label has at its own seeds ``s_k``, less what never left them,

    .. math:: \frac{1}{|s_k|} \sum_{i \in s_k} \left(P_L - \frac{1-\alpha}{1-\alpha^{L+1}}
              G\right)_{ik},

    is the measure of that (this project's own; docs/real-photographs.md compares it). Scaling
    all seeds changes no label.

    Args:
        P: ``P_L``, ``(N, K)``.
        seeds: ``G``, ``(N, K)``.
        alpha, steps: of the walk.
        share: which tokens these are; ``None``: all of them.

    Returns:
        ``(K,)``; 1 for a label whose walkers never come back, as without any step.
    """
    start = (1 - alpha) / (1 - alpha ** (steps + 1)) if alpha < 1 else 1 / (steps + 1)
    total = (share or Share((1, len(P)))).total
    own = seeds > 0
    count = total(own.sum(0)).clamp(min=1)
    returned = total(((P - start * seeds).clamp(min=0) * own).sum(0)) / count
    # Below this it is rounding of what stayed.
    least = 16 * torch.finfo(P.dtype).eps * start * total((seeds * own).sum(0)) / count
    return torch.where(returned > least, returned, 1)
