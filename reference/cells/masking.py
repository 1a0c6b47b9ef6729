"""The variational mask, as the definitions of the cells' steps have it."""

from __future__ import annotations

from gpurnn._contract import Array


def masked(h: Array, weights: dict[str, Array]) -> Array:
    """h (B, H) as it enters a product with W_hh, or the gradient of that back through the mask."""
    return h * weights["mask"] if "mask" in weights else h
