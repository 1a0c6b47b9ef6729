"""Multi-head attention between the projections: scores, exclusions, softmax and context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpurnn._contract import Array


@dataclass(frozen=True)
class _MultiHead:
    """The values that `multi_head_backward` needs, each (B, heads, steps, size)."""

    query: Array
    """The query times the scale."""
    keys: Array
    values: Array
    scale: float
    weights: Array
    context: Array


def multi_head_forward(
    query: Array,
    keys: Array,
    values: Array,
    num_heads: int,
    *,
    causal: bool = False,
    excluded: Array | None = None,
    mask: Array | None = None,
    scale: float = 1.0,
    with_weights: bool = True,
    training: bool = False,
) -> tuple[Array, Array | None, _MultiHead | None]:
    """context_i = alpha_i values_i with alpha_i = softmax(scale query_i keys_i^T), for the columns of each head i.

    Parameters
    ----------
    query : (T, B, E) array
    keys, values : (S, B, E) arrays
    num_heads : int
        A divisor of E.
    causal : bool
        Whether step t sees no position after S - T + t.
    excluded : (B, S) array of bools, optional
        True at positions that no step sees. A step that sees nothing has a context of zero.
    mask : (B or 1, num_heads or 1, T, S) array, optional
        Numbers that are added to the scores; minus infinity where a step does not see a position.
    scale : float
    with_weights : bool
        Whether to return alpha.
    training : bool
        Whether to keep the values that `multi_head_backward` needs.

    Returns
    -------
    context : (T, B, E) array
    weights : (B, num_heads, T, S) array, or None
        alpha.
    saved
        The values for `multi_head_backward`; None unless ``training``.
    """
    q, k, v = (_by_head(x, num_heads) for x in (query, keys, values))
    q = q * scale
    scores = q @ k.swapaxes(2, 3)
    T, S = scores.shape[2:]
    if causal:
        _exclude(scores, np.arange(S)[None, :] > np.arange(S - T, S)[:, None])
    if mask is not None:
        scores += mask
    if excluded is not None:
        _exclude(scores, excluded[:, None, None, :])
    alpha = _softmax(scores)
    context = alpha @ v
    saved = _MultiHead(q, k, v, scale, alpha, context) if training else None
    return _together(context), alpha if with_weights else None, saved


def multi_head_backward(saved: _MultiHead, dcontext: Array, dweights: Array | None) -> tuple[Array, Array, Array]:
    """The gradients of query, keys and values, from the gradients of the context and the weights (None for zero)."""
    dcontext = _by_head(dcontext, saved.query.shape[1])
    # The derivative of the softmax is w (dw - sum w dw). For the part through the context, the sum equals
    # sum context dcontext, which has fewer terms.
    along = (saved.context * dcontext).sum(axis=-1, keepdims=True)
    dscores = dcontext @ saved.values.swapaxes(2, 3)
    if dweights is not None:
        along += (saved.weights * dweights).sum(axis=-1, keepdims=True)
        dscores += dweights
    dscores -= along
    dscores *= saved.weights
    gradients = (
        saved.scale * (dscores @ saved.keys),
        dscores.swapaxes(2, 3) @ saved.query,
        saved.weights.swapaxes(2, 3) @ dcontext,
    )
    dquery, dkeys, dvalues = map(_together, gradients)
    return dquery, dkeys, dvalues


def _by_head(array: Array, num_heads: int) -> Array:
    """Reshape (steps, B, E) to (B, heads, steps, size)."""
    steps, B, E = array.shape
    return array.reshape(steps, B, num_heads, E // num_heads).transpose(1, 2, 0, 3)


def _together(array: Array) -> Array:
    """Reshape (B, heads, steps, size) to (steps, B, E)."""
    B, heads, steps, size = array.shape
    return array.transpose(2, 0, 1, 3).reshape(steps, B, heads * size)


def _exclude(scores: Array, excluded: Array) -> None:
    """Set the scores to minus infinity, in place, where ``excluded`` is true."""
    scores += np.where(excluded, scores.dtype.type(-np.inf), scores.dtype.type(0))


def _softmax(scores: Array) -> Array:
    """The softmax over the last axis, with zeros where everything is excluded; the scores are overwritten."""
    if scores.shape[-1]:
        peak = scores.max(axis=-1, keepdims=True)
        scores -= np.where(peak == -np.inf, np.zeros_like(peak), peak)
    weights: Array = np.exp(scores)
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total == 0, np.ones_like(total), total)
    return weights
