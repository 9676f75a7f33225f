"""Head uncertainty and the head weights it gives (slides 4.3)."""

import torch
from torch import Tensor

from nerve_fast.numerics import upcast


def head_entropy(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    r"""Mean Shannon entropy, in nats, of the rows of each head's attention map.

    .. math:: H^{(h)} = \frac{1}{N} \sum_i -\sum_j p_{ij} \log p_{ij}, \quad
              p = \mathrm{softmax}(\mathrm{scale} \cdot q k^\top)

    Args:
        q, k: ``(…, H, N, D)``.
        scale: multiplies the logits; ``None`` is ``1/√D``.

    Returns:
        ``(…, H)``.
    """
    q, k = upcast(q), upcast(k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    log_p = torch.log_softmax(scale * q @ k.mT, dim=-1)
    return -(log_p.exp() * log_p).sum(-1).mean(-1)


def entropy_weights(entropy: Tensor, sharpness: float) -> Tensor:
    r"""Weight of each head: the less certain it is, the less it counts.

    .. math:: w_h = \frac{\exp(-c H^{(h)})}{\sum_{h'} \exp(-c H^{(h')})}

    Args:
        entropy: ``(…, H)``.
        sharpness: ``c``; 0 is the plain mean over heads.

    Returns:
        ``(…, H)``, summing to 1.
    """
    entropy = upcast(entropy)
    # Relative to the surest head, so that a large c gives the one-hot limit and not 0/0.
    return torch.softmax(-sharpness * (entropy - entropy.amin(-1, keepdim=True)), dim=-1)
