"""Multi-head attention, the Transformer's."""

from __future__ import annotations

import math
from typing import Any, cast

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._op import Pullback, differentiable


def _take(
    where: str, arrays: dict[str, Any], num_heads: int, causal: bool, key_padding_mask: Array | None
) -> tuple[Any, dict[str, Any], Array | None]:
    """The namespace and the arrays, ready to compute with; reject arguments that do not fit each other."""
    xp, *taken, key_padding_mask = _arrays.take(
        where, arrays, bools={"key_padding_mask": key_padding_mask},
        needed=("query", "in_proj_weight", "out_proj_weight"),
    )  # fmt: skip
    arrays = dict(zip(arrays, taken, strict=True))
    query, keys, values = arrays["query"], arrays["keys"], arrays["values"]
    if keys is None and values is not None:
        raise TypeError(f"{where}: values is an array, expected None where keys is None")
    _checks.ndim(where, "query", query, 3, "(T, B, E)")
    T, B, E = query.shape
    if E < 1 or E % num_heads:
        raise ValueError(
            f"{where}: query has shape {tuple(query.shape)}, expected (T, B, E) with E a multiple of {num_heads}"
        )
    S = T
    if keys is not None:
        _checks.ndim(where, "keys", keys, 3, "(S, B, E)")
        S = keys.shape[0]
        _checks.shape(where, "keys", keys, (S, B, E), "(S, B, E)")
    if values is not None:
        _checks.shape(where, "values", values, (S, B, E), "(S, B, E)")
    for name, shape, symbols in (
        ("in_proj_weight", (3 * E, E), "(3*E, E)"), ("in_proj_bias", (3 * E,), "(3*E,)"),
        ("out_proj_weight", (E, E), "(E, E)"), ("out_proj_bias", (E,), "(E,)"),
    ):  # fmt: skip
        if arrays[name] is not None:
            _checks.shape(where, name, arrays[name], shape, symbols)
    if key_padding_mask is not None:
        _checks.shape(where, "key_padding_mask", key_padding_mask, (B, S), "(B, S)")
    if causal and S < T:
        raise ValueError(f"{where}: keys has shape {tuple(keys.shape)}, expected S >= T = {T}, as causal is true")
    return xp, arrays, key_padding_mask


def attend(
    query: Array, keys: Array | None = None, values: Array | None = None, *, in_proj_weight: Array,
    out_proj_weight: Array, in_proj_bias: Array | None = None, out_proj_bias: Array | None = None, num_heads: int,
    causal: bool = False, key_padding_mask: Array | None = None, with_weights: bool, training: bool,
) -> tuple[tuple[Array, Array | None], Pullback]:  # fmt: skip
    """``multi_head_attention.vjp``, without the weights unless they are wanted. The pullback needs ``training``."""
    where = "multi_head_attention"
    # The weights first: they are a layer's, and what is to be cast are the others.
    given = {
        "in_proj_weight": in_proj_weight, "in_proj_bias": in_proj_bias, "out_proj_weight": out_proj_weight,
        "out_proj_bias": out_proj_bias, "query": query, "keys": keys, "values": values,
    }  # fmt: skip
    num_heads = _checks.integer_at_least(where, "num_heads", num_heads, 1)
    causal = _checks.flag(where, "causal", causal)
    xp, arrays, key_padding_mask = _take(where, given, num_heads, causal, key_padding_mask)
    in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, query, keys, values = arrays.values()
    # What is projected.
    sources = [source for source in (query, keys, values) if source is not None]
    trained = [name for name, p in list(arrays.items())[:4] if p is not None]
    T, B, E = query.shape
    scale = 1 / math.sqrt(E // num_heads)

    padded = None
    if key_padding_mask is not None:
        # What is not read must not reach a product either.
        padded = xp.expand_dims(xp.permute_dims(key_padding_mask, (1, 0)), axis=2)
        zero = _dispatch.zeros(xp, (1, 1, 1), query)
        read = [s if i == 0 < len(sources) - 1 else xp.where(padded, zero, s) for i, s in enumerate(sources)]
    else:
        read = sources
    # The rows of in_proj_weight are those of the queries, the keys and the values; the last source takes all that are
    # left, so that there is one product for self-attention.
    parts = [1] * (len(sources) - 1) + [4 - len(sources)]
    starts = [sum(parts[:i]) * E for i in range(len(parts))]
    rows = [slice(start, start + part * E) for start, part in zip(starts, parts, strict=True)]

    def flat(array: Array) -> Array:
        return xp.reshape(array, (-1, array.shape[-1]))

    projected = []
    for source, part, own in zip(read, parts, rows, strict=True):
        a = xp.matmul(flat(source), in_proj_weight[own, :].T)
        if in_proj_bias is not None:
            a += in_proj_bias[own]
        a = xp.reshape(a, (*source.shape[:2], part * E))
        projected += [_arrays.contiguous(a[:, :, k * E : (k + 1) * E]) for k in range(part)]
    wing = _dispatch.wing(where, query=query)
    q, k, v = projected
    context, weights, saved = wing.multi_head_forward(
        q, k, v, num_heads, causal=causal, excluded=key_padding_mask, scale=scale, with_weights=with_weights,
        training=training,
    )  # fmt: skip
    y = xp.matmul(flat(context), out_proj_weight.T)
    if out_proj_bias is not None:
        y += out_proj_bias
    y = xp.reshape(y, (T, B, E))

    def pullback(cotangents: Any) -> tuple[tuple[Array, Array | None, Array | None], dict[str, Array]]:
        if not isinstance(cotangents, (tuple, list)) or len(cotangents) != 2:
            raise TypeError(
                f"{where}: the pullback was given {_checks.described(cotangents)}, expected a pair (dy, dweights)"
            )
        dy, dweights = cotangents
        dy = _arrays.cotangent(where, "y", dy, y)
        if weights is not None:
            dweights = _arrays.cotangent(where, "weights", dweights, weights)
        dy = flat(xp.zeros_like(y) if dy is None else dy)
        gradients = {"out_proj_weight": xp.matmul(dy.T, flat(context)), "out_proj_bias": xp.sum(dy, axis=0)}
        dcontext = xp.reshape(xp.matmul(dy, out_proj_weight), (T, B, E))
        d = list(wing.multi_head_backward(saved, dcontext, dweights))
        dsources, dprojections, dbiases = [], [], []
        for source, part, own in zip(read, parts, rows, strict=True):
            da = xp.concat([flat(each) for each in d[:part]], axis=1)
            d = d[part:]
            dsource = xp.reshape(xp.matmul(da, in_proj_weight[own, :]), source.shape)
            if padded is not None and len(sources) == 1:
                dsource = xp.where(padded, zero, dsource)
            dsources.append(dsource)
            dprojections.append(xp.matmul(da.T, flat(source)))
            dbiases.append(xp.sum(da, axis=0))
        gradients |= {"in_proj_weight": xp.concat(dprojections, axis=0), "in_proj_bias": xp.concat(dbiases, axis=0)}
        dquery, dkeys, dvalues = (*dsources, None, None)[:3]
        return (dquery, dkeys, dvalues), {name: gradients[name] for name in trained}

    return (y, weights), pullback


def _multi_head_attention_vjp(
    query: Array, keys: Array | None = None, values: Array | None = None, *, in_proj_weight: Array,
    out_proj_weight: Array, in_proj_bias: Array | None = None, out_proj_bias: Array | None = None, num_heads: int,
    causal: bool = False, key_padding_mask: Array | None = None,
) -> tuple[tuple[Array, Array], Pullback]:  # fmt: skip
    outputs, pullback = attend(
        query, keys, values, in_proj_weight=in_proj_weight, out_proj_weight=out_proj_weight, in_proj_bias=in_proj_bias,
        out_proj_bias=out_proj_bias, num_heads=num_heads, causal=causal, key_padding_mask=key_padding_mask,
        with_weights=True, training=True,
    )  # fmt: skip
    return cast("tuple[Array, Array]", outputs), pullback


@differentiable(_multi_head_attention_vjp)
def multi_head_attention(
    query: Array, keys: Array | None = None, values: Array | None = None, *, in_proj_weight: Array,
    out_proj_weight: Array, in_proj_bias: Array | None = None, out_proj_bias: Array | None = None, num_heads: int,
    causal: bool = False, key_padding_mask: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Multi-head attention, as the Transformer has it; self-attention, if a query is all that is given.

    With W_q, W_k, W_v the rows of W_in, and each of n heads i taking its E/n columns of q, k and v::

        q = W_q query + b_q            k = W_k keys + b_k            v = W_v values + b_v
        alpha_i = softmax(q_i k_i^T / sqrt(E/n))                     head_i = alpha_i v_i
        y = W_o [head_1 ... head_n] + b_o

    Time is that of the n T S weights. So is memory, since they are returned; on a GPU `gpurnn.TransformerBlock` does
    without them.

    Parameters
    ----------
    query : (T, B, E) array
        Time-major; float32 or float64, like every array here but ``key_padding_mask``.
    keys, values : (S, B, E) arrays, optional
        What is attended to. Without values they are the keys, without keys both are the query.
    in_proj_weight, in_proj_bias : (3*E, E) and (3*E,) arrays
        W_in: W_q, W_k and W_v one below the other; the bias may be None.
    out_proj_weight, out_proj_bias : (E, E) and (E,) arrays
        W_o; the bias may be None.
    num_heads : int
        n, a divisor of E.
    causal : bool
        Whether a query sees no keys that are later than itself, the queries being the last T of the S positions.
    key_padding_mask : (B, S) array of bools, or of integers 0 and 1, optional
        True where a key does not exist. What keys and values hold there is not read and gets a weight of exactly
        zero; in self-attention the query there counts as zero. A query that sees no key has weights of zero.

    Returns
    -------
    y : (T, B, E) array
    weights : (B, n, T, S) array
        alpha of each head. The pullback takes ``(dy, dweights)`` and gives ``(dquery, dkeys, dvalues)``, with None for
        what was None, and a dict of the gradients of the parameters.

    Raises
    ------
    TypeError, ValueError
        Unsupported or mixed arrays or dtypes; shapes that do not fit; heads that do not divide E; causal attention of
        more queries than there are keys.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", NIPS 2017, sections 3.2.1 and 3.2.2. The parameters are those of
    `torch.nn.MultiheadAttention`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> x, one = np.array([[[1.0]], [[3.0]]]), np.ones((1, 1))
    >>> y, weights = gpurnn.multi_head_attention(
    ...     x, in_proj_weight=np.array([[0.0], [0.0], [1.0]]), out_proj_weight=one, num_heads=1, causal=True
    ... )
    >>> y[:, 0, 0], weights[0, 0]
    (array([1., 2.]), array([[1. , 0. ],
           [0.5, 0.5]]))
    """
    outputs, _ = attend(
        query, keys, values, in_proj_weight=in_proj_weight, out_proj_weight=out_proj_weight, in_proj_bias=in_proj_bias,
        out_proj_bias=out_proj_bias, num_heads=num_heads, causal=causal, key_padding_mask=key_padding_mask,
        with_weights=True, training=False,
    )  # fmt: skip
    return cast("tuple[Array, Array]", outputs)
