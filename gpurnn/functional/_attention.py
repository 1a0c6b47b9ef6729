"""Attention of a decoder over the states of an encoder: Luong's and Bahdanau's scores."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._op import Pullback, differentiable

SCORES = ("dot", "general", "additive")


def _take_attention(
    where: str, score: str, arrays: dict[str, Any], lengths: Array | None
) -> tuple[Any, dict[str, Any], Array | None]:
    """The namespace and the arrays, ready to compute with; reject arrays that do not fit each other or the score."""
    _checks.choice(where, "score", score, SCORES)
    _checks.given(where, query=arrays["query"], keys=arrays["keys"])
    needed = {"dot": (), "general": ("weight",), "additive": ("weight_query", "weight_keys", "v")}[score]
    for name in ("weight", "weight_query", "weight_keys", "v"):
        if name in needed and arrays[name] is None:
            raise TypeError(f"{where}: {name} is None, expected an array for the {score} score")
        if name not in needed and arrays[name] is not None:
            raise TypeError(f"{where}: {name} is an array, expected None for the {score} score")
    xp, *taken, lengths = _arrays.take(where, arrays, {"lengths": lengths})
    arrays = dict(zip(arrays, taken, strict=True))
    query, keys, values = arrays["query"], arrays["keys"], arrays["values"]
    _checks.ndim(where, "query", query, 3, "(T, B, Q)")
    _checks.ndim(where, "keys", keys, 3, "(S, B, K)")
    B, Q, K = query.shape[1], query.shape[2], keys.shape[2]
    for name, letter in (("query", "Q"), ("keys", "K")):
        if arrays[name].shape[2] < 1:
            raise ValueError(
                f"{where}: {name} has shape {tuple(arrays[name].shape)}, expected {letter} of at least 1 at its end"
            )
    _checks.shape(where, "keys", keys, (keys.shape[0], B, K), "(S, B, K)")
    if values is not None:
        _checks.ndim(where, "values", values, 3, "(S, B, E)")
        _checks.shape(where, "values", values, (keys.shape[0], B, values.shape[2]), "(S, B, E)")
    if score == "dot":
        _checks.shape(where, "keys", keys, (keys.shape[0], B, Q), "(S, B, Q)")
    elif score == "general":
        _checks.shape(where, "weight", arrays["weight"], (Q, K), "(Q, K)")
    else:
        _checks.ndim(where, "v", arrays["v"], 1, "(A,)")
        A = arrays["v"].shape[0]
        if A < 1:
            raise ValueError(f"{where}: v has shape {tuple(arrays['v'].shape)}, expected (A,) with A of at least 1")
        _checks.shape(where, "weight_query", arrays["weight_query"], (A, Q), "(A, Q)")
        _checks.shape(where, "weight_keys", arrays["weight_keys"], (A, K), "(A, K)")
    if lengths is not None:
        _checks.shape(where, "lengths", lengths, (B,), "(B,)")
    return xp, arrays, lengths


def _project(xp: Any, x: Array, weight: Array) -> Array:
    """x (..., n) times weight (n, m)."""
    return xp.reshape(xp.matmul(xp.reshape(x, (-1, x.shape[2])), weight), (*x.shape[:2], weight.shape[1]))


def _attend(
    score: str, scale: float | Array, lengths: Array | None, training: bool, **given: Array | None
) -> tuple[Any, dict[str, Any], Array, Array, Any]:
    """Check the arguments and run the wing.

    Returns the namespace, the arrays as read, context, weights, and the values for the backward pass. If ``scale`` is
    an array, it is among the arrays, and so is the query that it multiplies.
    """
    where = "attention"
    factor: Any = scale if _dispatch.library_of(scale) and not isinstance(scale, np.generic) else None
    xp, arrays, lengths = _take_attention(where, score, {**given, "scale": factor}, lengths)
    query, keys, values = arrays["query"], arrays["keys"], arrays["values"]
    number = 1.0 if factor is not None else _checks.finite(where, "scale", cast("float", scale))
    if factor is not None:
        _checks.shape(where, "scale", arrays["scale"], (), "()")
    if score == "additive" and (number != 1 or factor is not None):
        said = "an array" if factor is not None else number
        raise ValueError(f"{where}: scale is {said}, expected 1 for the additive score")
    if lengths is not None:
        # Keys past the lengths must not reach a product either.
        exists = xp.arange(keys.shape[0], device=_dispatch.device(keys))[:, None] < lengths
        keys = arrays["keys"] = xp.where(exists[:, :, None], keys, _dispatch.zeros(xp, (1, 1, 1), keys))
        # Nor must the query of a row without keys.
        query = arrays["query"] = xp.where(lengths[:, None] > 0, query, _dispatch.zeros(xp, (1, 1, 1), query))
    projected_query, projected_keys = query, keys
    if score == "general":
        projected_query = _project(xp, query, arrays["weight"])
    elif score == "additive":
        projected_query = _project(xp, query, arrays["weight_query"].T)
        projected_keys = _project(xp, keys, arrays["weight_keys"].T)
    if factor is not None:
        arrays["scaled"] = projected_query
        projected_query = projected_query * arrays["scale"]
    context, weights, saved = _dispatch.wing(where, query=query).attention_forward(
        projected_query, projected_keys, keys if values is None else values, arrays["v"],
        lengths=lengths, scale=number, training=training,
    )  # fmt: skip
    return xp, arrays, context, _arrays.contiguous(weights), saved


def _attention_vjp(
    query: Array, keys: Array, values: Array | None = None, *, score: str = "dot", weight: Any = None,
    weight_query: Any = None, weight_keys: Any = None, v: Array | None = None, scale: float | Array = 1.0,
    lengths: Array | None = None,
) -> tuple[tuple[Array, Array], Pullback]:  # fmt: skip
    where = "attention"
    xp, read, context, weights, saved = _attend(
        score, scale, lengths, True, query=query, keys=keys, values=values, weight=weight, weight_query=weight_query,
        weight_keys=weight_keys, v=v,
    )  # fmt: skip
    wing, flat = _dispatch.wing(where, context=context), {}
    for name in ("query", "keys"):
        flat[name] = xp.reshape(read[name], (-1, read[name].shape[2]))

    def pullback(cotangents: Any) -> tuple[tuple[Array | None, ...], dict[str, Array]]:
        if not isinstance(cotangents, (tuple, list)) or len(cotangents) != 2:
            raise TypeError(
                f"{where}: the pullback was given {_checks.described(cotangents)}, expected a pair (dcontext, dweights)"
            )
        dcontext = _arrays.cotangent(where, "context", cotangents[0], context)
        dweights = _arrays.cotangent(where, "weights", cotangents[1], weights)
        dquery, dkeys, dvalues, dv = wing.attention_backward(saved, dcontext, dweights)
        gradients = {}
        if read["scale"] is not None:
            gradients["scale"] = xp.asarray(xp.sum(dquery * read["scaled"]), dtype=dquery.dtype)
            dquery = dquery * read["scale"]
        if score == "general":
            gradients["weight"] = xp.matmul(flat["query"].T, xp.reshape(dquery, (-1, dquery.shape[2])))
            dquery = _project(xp, dquery, read["weight"].T)
        elif score == "additive":
            for name, d in (("query", dquery), ("keys", dkeys)):
                gradients[f"weight_{name}"] = xp.matmul(xp.reshape(d, (-1, d.shape[2])).T, flat[name])
            gradients["v"] = dv
            dquery = _project(xp, dquery, read["weight_query"])
            dkeys = _project(xp, dkeys, read["weight_keys"])
        if values is None:
            dkeys = dkeys + dvalues
        inputs = dquery, dkeys, None if values is None else dvalues
        return tuple(None if d is None else _arrays.contiguous(d) for d in inputs), gradients

    return (context, weights), pullback


@differentiable(_attention_vjp)
def attention(
    query: Array, keys: Array, values: Array | None = None, *, score: str = "dot", weight: Array | None = None,
    weight_query: Array | None = None, weight_keys: Array | None = None, v: Array | None = None,
    scale: float | Array = 1.0, lengths: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Attention of each decoder step t to the encoder's states h_s.

    alpha_ts = exp(e_ts) / sum_k exp(e_tk), context_t = sum_s alpha_ts values_s, with a score e_ts of query_t and key_s

    - "dot": scale query_t . key_s
    - "general": scale query_t^T W key_s (Luong's multiplicative)
    - "additive": v^T tanh(W_a query_t + U_a key_s) (Bahdanau's)

    Parameters
    ----------
    query : (T, B, Q) array
        The decoder's states, of one step or of many; float32 or float64.
    keys : (S, B, K) array
        The encoder's states; K = Q for the dot score.
    values : (S, B, E) array, optional
        None means the keys.
    score : {"dot", "general", "additive"}
    weight : (Q, K) array
        W, only for the general score.
    weight_query, weight_keys, v : (A, Q), (A, K) and (A,) arrays
        W_a, U_a and v, only for the additive score.
    scale : float or () array
        Scales the dot and general scores; the Transformer's is 1/sqrt(Q). An array, of the dtype of the query, is a
        parameter: the pullback returns its gradient.
    lengths : (B,) integer array, optional
        The number of source positions of each row, zero allowed. Positions past it are not read and have a weight of
        exactly zero.

    Returns
    -------
    context : (T, B, E) array
    weights : (T, B, S) array
        alpha, the alignment. The pullback takes ``(dcontext, dweights)`` and returns ``(dquery, dkeys, dvalues)``, the
        last None if ``values`` was, and a dict of the gradients of the score's parameters.

    Raises
    ------
    TypeError, ValueError
        Arrays or dtypes are unsupported or mixed, shapes do not fit, or the score's parameters are missing or given
        to another score.

    References
    ----------
    D. Bahdanau, K. Cho, Y. Bengio, "Neural machine translation by jointly learning to align and translate" (ICLR 2015),
    section 3.1; M.-T. Luong, H. Pham, C. D. Manning, "Effective approaches to attention-based neural machine
    translation" (EMNLP 2015), section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> keys = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> context, weights = gpurnn.attention(np.zeros((1, 1, 2)), keys)
    >>> context
    array([[[0.5, 0.5]]])
    >>> weights
    array([[[0.5, 0.5]]])

    A trained scale:

    >>> (context, weights), pullback = gpurnn.attention.vjp(np.ones((1, 1, 2)), 2 * keys, scale=np.array(0.5))
    >>> _, gradients = pullback((np.array([[[1.0, 0.0]]]), None))
    >>> gradients["scale"]
    array(0.)
    """
    _, _, context, weights, _ = _attend(
        score, scale, lengths, False, query=query, keys=keys, values=values, weight=weight, weight_query=weight_query,
        weight_keys=weight_keys, v=v,
    )  # fmt: skip
    return context, weights
