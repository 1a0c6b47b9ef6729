"""The states of the minimal GRU and LSTM (Feng et al. 2024): h_t = kept h_{t-1} + z n_t, a linear scan.

All of it uses the array API, so that the kernels' wing can use it for CuPy arrays, with its own scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from gpurnn._contract import Array
from gpurnn.cells import Cell, MinGRU

from .linear_scan import linear_scan_backward, linear_scan_forward


@dataclass(frozen=True)
class Saved:
    """The values that `minimal_backward` needs."""

    scan: Any
    z: Array
    n: Array
    below: Array
    """True where n is sigma(p)."""
    back: Callable[[Array], list[Array]]
    """Maps dL/dz - dL/dkept to the gradients of the gates' arguments."""
    cut: Array | None
    absent: Array | None


def minimal_forward(
    cell: Cell,
    a: Array,
    h0: Array,
    *,
    resets: Array | None = None,
    exists: Array | None = None,
    training: bool = False,
) -> tuple[Array, Saved | None]:
    """h_t = kept h_{t-1} + z n_t, with shares z and kept that add up to 1.

    Neither share is computed as 1 minus the other, and n is positive, so that no digit is lost to a difference, however
    small a share is. A step that does not exist has the shares 0 and 1.

    Parameters
    ----------
    cell : MinGRU or MinLSTM
    a : (T, B, G*H) array
        The arguments of the gates, followed by that of the candidate.
    h0 : (B, H) array
    resets : (T, B) bool array, optional
        True where the state before a step is zero.
    exists : (T, B) bool array, optional
        False at the steps that a row does not have; there its state stays, unless a reset zeroes it.
    training : bool
        Whether to keep the values that `minimal_backward` needs.

    Returns
    -------
    h : (T, B, H) array
    saved
        The values for `minimal_backward`; None unless ``training``.
    """
    return forward(linear_scan_forward, cell, a, h0, resets, exists, training)


def minimal_backward(saved: Saved, dh: Array) -> tuple[Array, Array]:
    """The gradients of a and h0."""
    return backward(linear_scan_backward, saved, dh)


def forward(
    scan: Callable[..., tuple[Array, Any]],
    cell: Cell,
    a: Array,
    h0: Array,
    resets: Array | None,
    exists: Array | None,
    training: bool,
) -> tuple[Array, Saved | None]:
    """`minimal_forward` with ``scan``, the `linear_scan_forward` of a wing."""
    xp, H = array_namespace(a), h0.shape[1]
    cut = None if resets is None else resets[:, :, None]
    absent = None if exists is None else xp.logical_not(exists)[:, :, None]
    z, kept, back = (_shares_of_gru if isinstance(cell, MinGRU) else _shares_of_lstm)(xp, a, H)
    # n = g(p) = p + 1/2, or sigma(p) where p < 0. It is positive because the paper takes its logarithm.
    p = a[:, :, -H:]
    below, e = p < 0, xp.exp(xp.minimum(p, xp.zeros_like(p)))
    n = xp.where(below, e / (1 + e), p + 0.5)
    factors = kept if absent is None else xp.where(absent, xp.ones_like(kept), kept)
    h, saved = scan(_zero_where(xp, cut, factors), _zero_where(xp, absent, z * n), h0, training=training)
    if not training:
        return h, None
    # A copy, so that the caller may change its arrays before the backward pass.
    return h, Saved(saved, z, n, below, back, None if cut is None else xp.asarray(cut, copy=True), absent)


def backward(scan: Callable[..., tuple[Array, Array, Array]], saved: Saved, dh: Array) -> tuple[Array, Array]:
    """`minimal_backward` with ``scan``, the `linear_scan_backward` of a wing."""
    xp, n = array_namespace(dh), saved.n
    dfactors, dadded, dh0 = scan(saved.scan, dh)
    dfactors, dadded = (_zero_where(xp, saved.absent, d) for d in (dfactors, dadded))
    dp = dadded * saved.z * xp.where(saved.below, n * (1 - n), xp.ones_like(n))
    dgates = saved.back(dadded * n - _zero_where(xp, saved.cut, dfactors))
    return xp.concat([*dgates, dp], axis=2), dh0


def _zero_where(xp: Any, condition: Array | None, values: Array) -> Array:
    return values if condition is None else xp.where(condition, xp.zeros_like(values), values)


Shares = tuple[Array, Array, Callable[[Array], list[Array]]]
"""z and kept, and `Saved.back`."""


def _shares_of_gru(xp: Any, a: Array, H: int) -> Shares:
    """sigma(a_z) and sigma(-a_z)."""
    k = a[:, :, :H]
    e, negative = xp.exp(-xp.abs(k)), k < 0
    larger = 1 / (1 + e)
    smaller = e * larger
    z, kept = xp.where(negative, smaller, larger), xp.where(negative, larger, smaller)
    return z, kept, lambda d: [d * z * kept]


def _shares_of_lstm(xp: Any, a: Array, H: int) -> Shares:
    """i / (i + f) and f / (i + f), as (1 + exp(-a_f)) / (2 + exp(-a_i) + exp(-a_f)) and the same with i and f swapped.

    All exponentials, and 1, are divided by the largest of them, so that none exceeds 1.
    """
    i, f = -a[:, :, :H], -a[:, :, H : 2 * H]
    largest = xp.maximum(xp.maximum(i, f), xp.zeros_like(i))
    one, e_i, e_f = (xp.exp(exponent - largest) for exponent in (xp.zeros_like(i), i, f))
    both = one + e_i + (one + e_f)
    z, kept = (one + e_f) / both, (one + e_i) / both
    return z, kept, lambda d: [d * z * (e_i / both), -d * kept * (e_f / both)]
