"""Networks by name, as settings take them."""

import os
from collections.abc import Mapping

from nerve_fast.errors import quoted


def named_networks(name: str, networks: object) -> tuple[tuple[str, str], ...]:
    """Further networks as a value: sorted pairs, so that two that say the same are equal.

    Raises:
        TypeError: naming the argument: it is neither a dictionary of texts nor pairs of them.
    """
    pairs = list(networks.items()) if isinstance(networks, Mapping) else networks
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], (str, os.PathLike))
        for pair in pairs
    ):
        raise TypeError(
            f"{name} is {quoted(networks)}; expected a dictionary from names to hub ids, folders "
            "or files"
        )
    return tuple(sorted((key, str(source)) for key, source in pairs))
