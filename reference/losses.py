"""Losses over rows: softmax cross-entropy and squared error, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpurnn._contract import Array

from .buffers import empty

_BLOCK = 1 << 17
"""The elements of the scratch array that replaces a whole softmax if no gradient is wanted."""


@dataclass(frozen=True)
class _CrossEntropy:
    """The values that `cross_entropy_backward` needs."""

    exps: Array
    """(N, V): exp(x - max x) of each row, zero in masked rows."""
    sums: Array
    """(N,): their sums, so that exps / sums is the softmax."""
    others: Array
    """(N,): the same sums without the label's own term: others / sums is 1 - softmax_y to full precision."""
    labels: NDArray[np.intp]
    weights: Array | None
    target: Array
    """(N,): the weight of the label's own term."""
    smooth: Array | None
    """(V,): the weight of each class's term that label smoothing adds; None without label smoothing."""


def cross_entropy_forward(
    logits: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
    training: bool = False,
) -> tuple[Array, _CrossEntropy | None]:
    """Cross-entropy of each row between its softmax and its label.

    With l_c = log sum_k exp(x_k) - x_c and eps the label smoothing, the loss of a row with label y is
    weight ((1 - eps) w_y l_y + (eps / V) sum_c w_c l_c). A term of weight zero is zero, though l_c may be infinite.

    Parameters
    ----------
    logits : (N, V) array
    labels : (N,) integer array
        Labels of masked rows are not read.
    weights : (N,) array, optional
        The weights of the rows; 0 masks a row: its loss and gradient are exactly 0, whatever its logits. None for ones.
    class_weights : (V,) array, optional
        w_c; None for ones.
    label_smoothing : float
        eps in [0, 1].
    training : bool
        Whether to keep the values that `cross_entropy_backward` needs.

    Returns
    -------
    losses : (N,) array
    saved
        The values for `cross_entropy_backward`; None unless ``training``.

    Raises
    ------
    ValueError
        A label of an unmasked row is not in 0..V-1.
    """
    N, V = logits.shape
    dtype = logits.dtype
    masked = None if weights is None else weights == 0
    if masked is not None:
        labels = np.where(masked, 0, labels)
    check_labels(labels, V)
    labels = labels.astype(np.intp, copy=False)

    target = np.full(N, 1 - label_smoothing, dtype)
    smooth = None
    if class_weights is not None:
        target *= class_weights[labels]
        if masked is not None:
            target[masked] = 0  # whatever the weight of class 0
    if label_smoothing:
        smooth = np.full(V, label_smoothing / V, dtype)
        if class_weights is not None:
            smooth *= class_weights

    losses, sums, others = np.empty((3, N), dtype)
    rows = N if training else min(N, max(1, _BLOCK // max(1, V)))
    exps = empty((rows, V), dtype)
    for start in range(0, N, max(1, rows)):
        block = slice(start, start + rows)
        x, y = logits[block], labels[block]
        e, each = exps[: len(x)], np.arange(len(x))
        highest = x.argmax(axis=1)
        np.subtract(x, x[each, highest][:, None], out=e)
        below = e[each, y]
        # With a BLAS, the last bits of a row would depend on the size of the block.
        e_smooth = None if smooth is None else np.einsum("nv,v->n", _counted(smooth, e), smooth)
        np.exp(e, out=e)
        e_y, largest = e[each, y], e[each, highest]
        # The largest term is 1, or NaN if its logit is infinite. The sum without it keeps the digits of small terms.
        e[each, highest] = 0
        rest = e.sum(axis=1) + (largest - 1)
        e[each, highest] = largest
        s = np.add(rest, 1, out=sums[block])
        others[block] = np.where(y == highest, rest, s - e_y)
        log_s = np.log1p(rest)
        loss = np.multiply(target[block], _counted(target[block], log_s - below), out=losses[block])
        if e_smooth is not None:
            loss += smooth.sum() * log_s - e_smooth  # type: ignore[union-attr]
    if weights is not None:
        losses *= weights
        losses[masked] = 0
    if not training:
        return losses, None
    if masked is not None:
        exps[masked] = 0
        sums[masked], others[masked] = 1, 0
    return losses, _CrossEntropy(exps, sums, others, labels, weights, target, smooth)


def _counted(weights: Array, terms: Array) -> Array:
    """Return ``terms`` with infinities of weight zero replaced by zero, because their product would be NaN."""
    unweighted = weights == 0
    return np.where(unweighted & np.isinf(terms), terms.dtype.type(0), terms) if unweighted.any() else terms


def check_labels(labels: Array, V: int) -> None:
    """Reject labels that are not in 0 ... V - 1."""
    if labels.size and not (labels.min() >= 0 and labels.max() < V):
        row = int(np.flatnonzero((labels < 0) | (labels >= V))[0])
        raise ValueError(
            f"cross_entropy: labels holds {labels[row]} at flat position {row}, expected 0 <= label < classes = {V}; "
            "mask the positions that have no label"
        )


def cross_entropy_backward(saved: _CrossEntropy, dlosses: Array) -> Array:
    """The gradient of the logits.

    With t_c the weight of l_c in the row's loss, dx_c = dloss weight (softmax(x)_c sum_k t_k - t_c). The label's own
    part of its gradient is -t_y (1 - softmax(x)_y), computed without a difference.

    Parameters
    ----------
    saved
        The values from `cross_entropy_forward`; they are not changed.
    dlosses : (N,) array

    Returns
    -------
    dlogits : (N, V) array
    """
    scale = dlosses if saved.weights is None else dlosses * saved.weights
    each, labels = np.arange(len(scale)), saved.labels
    of_label = 0 - scale * saved.target * (saved.others / saved.sums)
    dlogits: Array
    if saved.smooth is None:
        dlogits = saved.exps * (scale * saved.target / saved.sums)[:, None]
        dlogits[each, labels] = of_label
    else:
        spread = saved.smooth.sum()
        dlogits = saved.exps * (scale * (saved.target + spread) / saved.sums)[:, None]
        dlogits[each, labels] = of_label + scale * spread * (saved.exps[each, labels] / saved.sums)
        dlogits -= scale[:, None] * saved.smooth
    return dlogits


def mse_forward(y: Array, target: Array, *, training: bool = False) -> tuple[Array, Array | None]:
    """Squared error (y - target)^2 of each element.

    Parameters
    ----------
    y, target : arrays of one shape
    training : bool
        Whether to keep the values that `mse_backward` needs.

    Returns
    -------
    errors : array
    saved
        The values for `mse_backward`; None unless ``training``.
    """
    difference = np.subtract(y, target)
    return np.multiply(difference, difference, out=None if training else difference), difference if training else None


def mse_backward(saved: Array, d: Array) -> Array:
    """The gradient of y, 2 d (y - target); the target's gradient is its negative."""
    dy = np.multiply(saved, d)
    dy *= 2
    return dy
