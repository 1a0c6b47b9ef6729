"""Attention of decoder steps to encoder states: scores, mask, softmax and context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpurnn._contract import Array


@dataclass(frozen=True)
class _Attention:
    """The values that `attention_backward` needs; keys and values are zero past the lengths."""

    query: Array
    keys: Array
    values: Array
    v: Array | None
    scale: float
    weights: Array
    exists: Array | None
    """(S, B, 1): whether a position exists; None if all do."""


def attention_forward(
    query: Array,
    keys: Array,
    values: Array,
    v: Array | None = None,
    *,
    lengths: Array | None = None,
    scale: float = 1.0,
    training: bool = False,
) -> tuple[Array, Array, _Attention | None]:
    """context_t = sum_s alpha_ts values_s with alpha_t the softmax over s of the scores e_ts.

    e_ts = v . tanh(query_t + keys_s) if v is given, else scale query_t . keys_s.

    Parameters
    ----------
    query : (T, B, A) array
    keys : (S, B, A) array
    values : (S, B, E) array
    v : (A,) array, optional
    lengths : (B,) integer array, optional
        The number of source positions of each row. Past it keys and values are not read, and the weights are exactly
        zero. A row without positions has a context of zero.
    scale : float
        The factor of the dot product.
    training : bool
        Whether to keep the values that `attention_backward` needs.

    Returns
    -------
    context : (T, B, E) array
    weights : (T, B, S) array
        alpha.
    saved
        The values for `attention_backward`; None unless ``training``.

    Raises
    ------
    ValueError
        A length is not in 0..S.
    """
    S = len(keys)
    check_lengths(lengths, S)
    exists = np.ones((S, 1), bool) if lengths is None else np.arange(S)[:, None] < lengths
    if lengths is not None:
        keys, values = (np.where(exists[:, :, None], x, x.dtype.type(0)) for x in (keys, values))
    scores = _scores(query, keys, v, scale)
    scores = np.where(exists.T, scores, -np.inf)
    highest = scores.max(axis=2, keepdims=True, initial=-np.inf)
    none = np.logical_not(exists.any(axis=0, keepdims=True)).T  # rows without a position
    exps = np.exp(scores - np.where(none, 0, highest))
    weights = (exps / np.where(none, 1, exps.sum(axis=2, keepdims=True))).astype(query.dtype)
    if lengths is not None:
        # A NaN score makes all weights of its row NaN, except those past its length.
        weights = np.where(exists.T, weights, weights.dtype.type(0))
    context = np.einsum("tbs,sbe->tbe", weights, values)
    if not training:
        return context, weights, None
    own_v = None if v is None else v.copy()
    own_exists = None if lengths is None else exists[:, :, None]
    saved = _Attention(query.copy(), keys.copy(), values.copy(), own_v, scale, weights, own_exists)
    return context, weights.copy(), saved


def check_lengths(lengths: Array | None, S: int) -> None:
    """Reject lengths that are not in 0 ... S."""
    if lengths is not None and lengths.size and (lengths.min() < 0 or lengths.max() > S):
        raise ValueError(f"attention: lengths holds {lengths.min()} ... {lengths.max()}, expected 0 ... S = {S}")


def _scores(query: Array, keys: Array, v: Array | None, scale: float) -> Array:
    """The scores (T, B, S)."""
    if v is None:
        scores: Array = np.einsum("tba,sba->tbs", query, keys) * query.dtype.type(scale)
        return scores
    scores = np.empty((len(query), *keys.shape[1::-1]), query.dtype)
    for t, q in enumerate(query):
        scores[t] = (np.tanh(q + keys) @ v).T
    return scores


def attention_backward(
    saved: _Attention, dcontext: Array | None, dweights: Array | None
) -> tuple[Array, Array, Array, Array | None]:
    """The gradients of query, keys, values and v, from the gradients of the context and the weights (None for zero).

    With dalpha_ts = dcontext_t . values_s + dweights_ts the scores' gradient is alpha_ts (dalpha_ts - sum_k alpha_tk
    dalpha_tk).

    Returns
    -------
    dquery, dkeys, dvalues : arrays of their shapes
        dkeys and dvalues are zero past the lengths.
    dv : (A,) array
        None if there is no v.
    """
    query, keys, v, alpha = saved.query, saved.keys, saved.v, saved.weights
    dalpha = np.zeros_like(alpha) if dweights is None else dweights
    dvalues = np.zeros_like(saved.values)
    if dcontext is not None:
        dalpha = dalpha + np.einsum("tbe,sbe->tbs", dcontext, saved.values)
        dvalues = np.einsum("tbs,tbe->sbe", alpha, dcontext)
    # Where the weight is zero, dweights does not matter.
    dalpha = np.where(alpha == 0, alpha.dtype.type(0), dalpha)
    de = alpha * (dalpha - (alpha * dalpha).sum(axis=2, keepdims=True))
    if saved.exists is not None:
        de = np.where(saved.exists[:, :, 0].T, de, de.dtype.type(0))
    if v is None:
        de *= de.dtype.type(saved.scale)
        dquery, dkeys, dv = np.einsum("tbs,sba->tba", de, keys), np.einsum("tbs,tba->sba", de, query), None
    else:
        dquery, dkeys, dv = _additive_backward(query, keys, v, de)
    if saved.exists is not None:
        # A gradient or query that is not finite would give NaN times a weight of zero.
        dkeys, dvalues = (np.where(saved.exists, d, d.dtype.type(0)) for d in (dkeys, dvalues))
    return dquery, dkeys, dvalues, dv


def _additive_backward(query: Array, keys: Array, v: Array, de: Array) -> tuple[Array, Array, Array]:
    """The gradients of query, keys and v, from the gradient of the scores (T, B, S)."""
    dquery, dkeys, dv = np.empty_like(query), np.zeros_like(keys), np.zeros_like(v)
    for t, q in enumerate(query):
        f = np.tanh(q + keys)
        dv += np.einsum("bs,sba->a", de[t], f)
        da = de[t].T[:, :, None] * (v * (1 - f * f))
        dquery[t] = da.sum(axis=0)
        dkeys += da
    return dquery, dkeys, dv
