"""The variational mask in the definitions of the cells' steps."""

from __future__ import annotations

from gpurnn._contract import Array


def masked(h: Array, weights: dict[str, Array]) -> Array:
    """Apply the mask to h (B, H) before a product with W_hh, or to the gradient after its transpose."""
    return h * weights["mask"] if "mask" in weights else h
