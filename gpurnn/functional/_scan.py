"""The linear recurrence h_t = a_t h_{t-1} + b_t, a scan."""

from __future__ import annotations

from typing import Any

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._op import Pullback, differentiable


def _linear_scan(a: Array, b: Array, h0: Array | None, training: bool) -> tuple[Array, Array, Any]:
    """Check the arguments and run the wing; return h, h0 and the values for the backward pass."""
    where = "linear_scan"
    xp, a, b, h0 = _arrays.take(where, {"a": a, "b": b, "h0": h0}, needed=("a", "b"), dtypes=_checks.INEXACT)
    _checks.ndim(where, "b", b, 3, "(T, B, N)")
    T, B, N = b.shape
    if tuple(a.shape) not in ((T, B, N), (N,)):
        raise ValueError(f"{where}: a has shape {tuple(a.shape)}, expected (T, B, N) = {(T, B, N)} or (N,) = {(N,)}")
    if h0 is None:
        h0 = _dispatch.zeros(xp, (B, N), b)
    else:
        _checks.shape(where, "h0", h0, (B, N), "(B, N)")
    h, saved = _dispatch.wing(where, b=b).linear_scan_forward(a, b, h0, training=training)
    return h, h0, saved


def _linear_scan_vjp(a: Array, b: Array, h0: Array | None = None) -> tuple[Array, Pullback]:
    where = "linear_scan"
    h, _, saved = _linear_scan(a, b, h0, training=True)
    wing = _dispatch.wing(where, h=h)

    def pullback(dh: Array | None) -> tuple[tuple[Array, Array, Array], dict[str, Array]]:
        dh = _arrays.cotangent(where, "h", dh, h)
        if dh is None:
            dh = _dispatch.namespace(where, h=h).zeros_like(h)
        return wing.linear_scan_backward(saved, dh), {}

    return h, pullback


@differentiable(_linear_scan_vjp)
def linear_scan(a: Array, b: Array, h0: Array | None = None) -> Array:
    """The linear recurrence h_t = a_t h_{t-1} + b_t, elementwise: the states of a diagonal linear state-space model.

    NumPy computes it in parallel over time, in chunks, if T is at least 256 and B N at most 128. The compiled wing
    computes one step at a time.
    Gradients and cotangents of complex numbers z = x + iy are dL/dx + i dL/dy.

    Parameters
    ----------
    a : (T, B, N) or (N,) array
        float32, float64, complex64 or complex128. Shape (N,) means the same at every step and in every row.
    b : (T, B, N) array
    h0 : (B, N) array, optional
        The state before the first step; None for zero.

    Returns
    -------
    h : (T, B, N) array
        Its pullback returns ``(da, db, dh0), {}``.

    Raises
    ------
    TypeError, ValueError
        Arrays or dtypes are unsupported or mixed, or shapes do not fit.

    References
    ----------
    G. E. Blelloch, "Prefix sums and their applications" (1990), section 1.4; E. Martin, C. Cundy, "Parallelizing
    linear recurrent neural nets over sequence length" (ICLR 2018).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gpurnn.linear_scan(np.array([0.5]), np.ones((3, 1, 1)))[:, 0, 0]
    array([1.  , 1.5 , 1.75])
    """
    return _linear_scan(a, b, h0, training=False)[0]
