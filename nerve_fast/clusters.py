r"""Keys of the global part in clusters: what is alike is added up before the product, not after.

In :math:`\sum_j f(a_{ij}) Y_j` tokens with equal keys have equal numerators, so their rows of ``Y``
can be summed first, wherever they lie. Keys that are nearly equal are grouped by k-means, and every
key is replaced by the mean of its cluster: an approximation that gets exact as clusters shrink.

The same clusters serve every backend and dtype: they are found here, in float32, from a fixed seed.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nerve_fast.numerics import upcast, with_norms
from nerve_fast.shares import Share
from nerve_fast.utils.tiles import Scratch, spans

SAMPLE = 32_768
"""Tokens that k-means runs on, at least; all tokens are assigned to what it finds."""

COMPONENTS = 64
"""Keys of more channels are compared by so many principal components."""

COMPONENT_TOKENS = 4096
"""Tokens that these are found from, at most."""

COMPONENT_ROUNDS = 3
"""Rounds of the subspace iteration that finds them."""

ROUNDS = 4
"""Rounds of k-means on the sample."""

SEED = 0
"""Of the tokens that k-means starts from."""

PIECE = 64
"""Tokens that are summed in one go: a sum of such sums rounds less, and in parallel."""

COLUMNS = 32
"""Columns that are sorted at a time, which bounds the copy that sorting makes."""

CODED = 1024
"""Tokens whose keys are read for their codes at a time."""

CPU_BLOCK_BYTES = 4 << 20
GPU_BLOCK_BYTES = 256 << 20
"""Distances to all centres of so many tokens are computed at a time, by device."""


class ClusterError(NamedTuple):
    """How far ``S_global G`` with clusters is from that with all keys, on rows drawn at random.

    Attributes:
        relative: ``‖difference‖ / ‖with all keys‖``.
        equal_labels: share of the rows whose likeliest label is the same.
        rows: how many were drawn.
    """

    relative: float
    equal_labels: float
    rows: int

    def __str__(self) -> str:
        return (
            f"the first step within {self.relative:.1e} of all keys', {self.equal_labels:.1%} of "
            f"labels equal, on {self.rows} rows"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """Which tokens' keys are taken together; made by :meth:`of`.

    Where processes share the tokens, each has its own ones; sizes, sums and means are over all.

    Attributes:
        assignment: ``(…, N)`` int64, the cluster of each token, from 0 to ``count − 1``.
        count: ``M``, the number of clusters; some may be empty.
        sizes: ``(…, M)`` int64, tokens of each.
        share: which tokens these are.
    """

    assignment: Tensor
    count: int
    sizes: Tensor
    share: Share
    _order: Tensor
    _pieces: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, assignment: Tensor, count: int, share: Share | None = None) -> "Clusters":
        """The clusters that ``assignment (…, N)`` int64 says, ``count`` of them.

        ``share``: which tokens these are, where processes share them.
        """
        *batch, tokens = assignment.shape
        share = share or Share((1, tokens))
        flat = assignment.reshape(-1, tokens)
        members = torch.arange(len(flat), device=flat.device)[:, None]
        # Members of a batch one after the other, and in each of them cluster after cluster.
        in_all = (flat + members * count).flatten()
        order = in_all.argsort(stable=True)
        sizes = torch.bincount(in_all, minlength=len(flat) * count)
        per_cluster = -(-sizes // PIECE)
        owner = torch.repeat_interleave(per_cluster)
        first = per_cluster.cumsum(0) - per_cluster
        place = torch.arange(len(owner), device=flat.device) - first[owner]
        lengths = (sizes[owner] - PIECE * place).clamp(max=PIECE)
        of_all = share.total(sizes).view(*batch, count)
        return cls(assignment, count, of_all, share, order, (lengths, per_cluster))

    def sums(self, x: Tensor) -> Tensor:
        """``(…, N, C)`` summed over each cluster, ``(…, M, C)`` in float32 or better.

        In the same order in every run; leading dimensions hold as many members as those of
        :attr:`assignment`.
        """
        flat = x.reshape(-1, x.shape[-1])
        lengths, per_cluster = self._pieces
        parts = []
        for columns in spans(flat.shape[1], COLUMNS):
            in_order = upcast(flat[:, columns].index_select(0, self._order))
            parts.append(_summed(_summed(in_order, lengths), per_cluster))
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.share.total(whole).view(*x.shape[:-2], self.count, x.shape[-1])

    def means(self, x: Tensor) -> Tensor:
        """``(…, N, C)`` averaged over each cluster, ``(…, M, C)``; an empty one has another's."""
        sums = self.sums(x)
        sizes = self.sizes.view(*sums.shape[:-1], 1)
        means = sums / sizes.clamp(min=1)
        some = (sizes > 0).byte().argmax(-2, keepdim=True)
        other = means.gather(-2, some.expand(*sums.shape[:-2], 1, sums.shape[-1]))
        return torch.where(sizes > 0, means, other)

    def members(self) -> "list[Clusters]":
        """Those of each member of a batch, ``(N,)`` each."""
        flat = self.assignment.reshape(-1, self.assignment.shape[-1])
        if self.assignment.ndim == 1:
            return [self]
        return [Clusters.of(x, self.count, self.share) for x in flat]


def _summed(x: Tensor, lengths: Tensor) -> Tensor:
    """Sums of consecutive rows, ``lengths`` of them each: no atomic adds, whose order varies."""
    if x.device.type not in ("cpu", "cuda"):
        # Torch has it for no other device.
        return _summed(x.cpu(), lengths.cpu()).to(x.device)
    return torch.segment_reduce(x, "sum", lengths=lengths, axis=0, unsafe=True, initial=0)


@torch.no_grad()
def cluster_keys(
    k: Tensor,
    head_weights: Tensor,
    count: int,
    prior: Tensor | None = None,
    share: Share | None = None,
) -> Clusters:
    r"""Group keys by what they are: k-means on ``K̃``, weighted as the affinity weights it.

    The distance of two keys is :math:`\sum_h w_h \|\hat k_h - \hat k'_h\|^2`. Keys of more than
    :data:`COMPONENTS` channels are compared by so many principal components, the first ones.
    K-means starts from tokens drawn by a fixed seed and runs on a sample; then all tokens are
    assigned. Tokens with a row in a ``prior`` that is mostly zeros (the seeds of a user) stay
    clusters of their own, as far as half of the clusters go; no cluster holds tokens with and
    without one.

    Args:
        k: ``(…, H, N, D)`` keys, any floating dtype.
        head_weights: ``w``, ``(…, H)``.
        count: ``M``, from 1 to ``N``.
        prior: ``(…, N, K)``, looked through for seeds; ``None`` has none.
        share: which tokens these are, where processes share them; ``None``: all of them.

    Returns:
        Equal to the bit for equal inputs; so nearly always for inputs that are equal in float32.
        With a ``share`` those of this process, of the clusters that one process finds in all
        tokens, but for tokens that are as near to two of them, which rounding decides.
    """
    heads, tokens, head_dim = k.shape[-3:]
    batch = k.shape[:-3]
    share = share or Share((1, tokens))
    keys = k.reshape(-1, heads, tokens, head_dim)
    # Weights that differ by what one backend rounds otherwise than another give the same clusters.
    weights = upcast(head_weights.reshape(-1, heads))
    # Relative to the largest, as squares of large ones leave the range.
    largest = weights.amax(-1, keepdim=True)
    weights = weights / torch.where(largest > 0, largest, 1)
    scales = weights.float().sqrt().bfloat16().float()
    seeded = None if prior is None else _seeded(prior, share).reshape(-1, tokens)
    mixed = torch.Generator().manual_seed(SEED)
    drawn = torch.randperm(share.tokens, generator=mixed).to(k.device)
    found = []
    for member, (one, scale) in enumerate(zip(keys, scales, strict=True)):
        points = _Points(one, scale, drawn[:COMPONENT_TOKENS], share)
        own = None if seeded is None else seeded[member]
        found.append(_grouped(points, drawn, count, own, share))
    return Clusters.of(torch.stack(found).view(*batch, tokens), count, share)


def _seeded(prior: Tensor, share: Share) -> Tensor:
    """``(…, N)`` bool: the tokens that a prior marks, where it marks less than half of them."""
    marked = (prior != 0).any(-1)
    return marked & (2 * share.total(marked.sum(-1, keepdim=True)) < share.tokens)


class _Points:
    """What k-means compares: ``K̃`` scaled by ``√w`` a head, or its principal components.

    Args:
        k: ``(H, n, D)`` of the own tokens, any floating dtype.
        scales: ``√w``, ``(H,)`` float32.
        some: tokens of all that the components are found from, the same on all processes.
        share: which tokens are own ones.

    Attributes:
        channels: how many numbers a point has.
        key_channels: ``H·D``, how many a key has.
    """

    def __init__(self, k: Tensor, scales: Tensor, some: Tensor, share: Share):
        # Keys of networks are views: `index_select` would copy all of them each time.
        self._keys, self._scales = k.transpose(0, 1), scales[:, None]
        self._components: Tensor | None = None
        self.channels = self.key_channels = k.shape[0] * k.shape[2]
        mixed = torch.Generator().manual_seed(SEED)
        factors = torch.randint(2**31, (self.channels,), generator=mixed, dtype=torch.int32)
        self._factors = factors.to(k.device)
        if self.channels > COMPONENTS:
            start = torch.randn(self.channels, COMPONENTS, generator=mixed).to(k.device)
            self._components = self._principal_components(some, start, share)
            self.channels = COMPONENTS

    def of(self, tokens: Tensor) -> Tensor:
        """Of own tokens ``(n,)``: ``(n, channels)`` float32."""
        return self._reduced(self._whole(tokens))

    def with_codes(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`of`, and numbers ``(n,)`` int64 that tokens with equal keys have in common.

        A product may round equal rows otherwise where they lie in another place; the codes are
        those of the keys, sums of products of their bits, which wrap around.
        """
        points = self._scales.new_empty(len(tokens), self.channels)
        codes = torch.empty_like(tokens)
        for some in spans(len(tokens), CODED):
            whole = self._whole(tokens[some])
            points[some] = self._reduced(whole)
            codes[some] = ((whole + 0.0).view(torch.int32) * self._factors).sum(-1)
        return points, codes

    def _whole(self, tokens: Tensor) -> Tensor:
        return with_norms(self._keys[tokens], self._scales).float().flatten(1)

    def _reduced(self, whole: Tensor) -> Tensor:
        return whole if self._components is None else whole @ self._components

    def _principal_components(self, tokens: Tensor, start: Tensor, share: Share) -> Tensor:
        """Those of the keys of ``tokens``, ``(C, COMPONENTS)``, by subspace iteration.

        It takes a part of the time of a decomposition, which grows with ``C³`` (Halko, Martinsson
        and Tropp, 2011, algorithm 4.4). ``torch.pca_lowrank`` does the same from a start that it
        draws from the generator of the whole process, which is the caller's.

        Args:
            tokens: of all, the same on all processes.
            start: of the iteration, ``(C, COMPONENTS)`` float32.
            share: which tokens are own ones.
        """
        mine, own = share.held(tokens)
        keys = self._scales.new_zeros(len(tokens), self.channels)
        keys[mine] = self._whole(own)
        # All but one process add zeros to a key.
        keys = share.total_(keys)
        keys -= keys.mean(0)
        found = start
        for _ in range(COMPONENT_ROUNDS):
            found = keys.T @ (keys @ found)
            # Not every device has the decomposition, nor float64.
            found = torch.linalg.qr(found.cpu().double()).Q.float().to(keys.device)
        # Another machine may round otherwise, and they have to be the same everywhere.
        return share.broadcast(found.contiguous())


def _grouped(
    points: _Points, drawn: Tensor, count: int, seeded: Tensor | None, share: Share
) -> Tensor:
    """The cluster of each own token, ``(n,)``.

    Args:
        points: of the own tokens.
        drawn: all ``N`` tokens in the order of the draw.
        count: the number of clusters.
        seeded: which own tokens are seeds, ``(n,)``.
        share: which tokens are own ones.
    """
    assignment = drawn.new_empty(share.own.stop - share.own.start)
    for_seeds = 0
    if seeded is not None and share.total(seeded.sum()) > 0:
        seeds = share.gathered(seeded.byte()).bool()[drawn]
        for_seeds = min(int(seeds.sum()), count // 2)
        if for_seeds:
            _kmeans(points, drawn[seeds], for_seeds, share, assignment)
            drawn = drawn[~seeds]
    _kmeans(points, drawn, count - for_seeds, share, assignment, for_seeds)
    return assignment


def _kmeans(
    points: _Points, drawn: Tensor, count: int, share: Share, assignment: Tensor, first: int = 0
) -> None:
    """Put the own ones of the tokens ``drawn``, which come in random order, into clusters.

    What they are assigned to, from ``first``, is written to ``assignment (n,)``.
    """
    mine, own = share.held(drawn)
    if len(drawn) <= count:
        assignment[own] = first + mine.nonzero().squeeze(1)
        return
    sample, codes = _sampled(points, drawn[: sample_size(count, len(drawn))], share)
    centres = sample[_first_of_each(codes)[:count]]
    for _ in range(ROUNDS):
        clusters = Clusters.of(_finder(centres)(sample), len(centres))
        sizes = clusters.sizes[:, None]
        centres = torch.where(sizes > 0, clusters.sums(sample) / sizes.clamp(min=1), centres)
    # Another machine may round otherwise, and centres have to be the same everywhere.
    centres = share.broadcast(centres)
    own, nearest = own.sort().values, _finder(centres)
    for rows in spans(len(own), block_rows(len(centres), points.key_channels, drawn.device)):
        assignment[own[rows]] = first + nearest(points.of(own[rows]))


def _sampled(points: _Points, tokens: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """The points of tokens of all processes, and their codes, on each of them."""
    here, own = share.held(tokens)
    found, own_codes = points.with_codes(own)
    if share.alone:
        return found, own_codes
    sample, codes = found.new_zeros(len(tokens), points.channels), torch.zeros_like(tokens)
    sample[here], codes[here] = found, own_codes
    # In one copy: this part of the memory is the same on all processes, however many they are.
    del found
    # All but one process add zeros to a point.
    return share.total_(sample), share.total_(codes)


def sample_size(count: int, tokens: int) -> int:
    """Tokens that k-means runs on to find ``count`` clusters of ``tokens``."""
    return min(max(SAMPLE, 2 * count), tokens)


def block_rows(count: int, channels: int, device: torch.device) -> int:
    """Tokens of so many channels whose distances to ``count`` centres are computed at a time."""
    size = CPU_BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES
    return max(size // (4 * max(count, channels)), 64)


def _finder(centres: Tensor) -> Callable[[Tensor], Tensor]:
    """Takes points to the nearest centre of each, the first of those that are equally near."""
    half_squares = centres.square().sum(-1) / 2
    (count, channels), memory = centres.shape, Scratch(centres, gradient=False)

    def nearest(points):
        found = []
        for some in spans(len(points), block_rows(count, channels, points.device)):
            out = memory.tile(some.stop - some.start, count)
            near = torch.addmm(-half_squares, points[some], centres.T, out=out)
            # On a CPU twice as fast as `argmax`.
            found.append(near.max(-1).indices)
        return torch.cat(found)

    return nearest


def _first_of_each(codes: Tensor) -> Tensor:
    """Indices of those ``codes (n,)`` that are equal to no earlier one, ascending."""
    groups, group = codes.unique(return_inverse=True)
    index = torch.arange(len(codes), device=codes.device)
    first = torch.full_like(groups, len(codes)).scatter_reduce_(0, group, index, "amin")
    return first.sort().values
