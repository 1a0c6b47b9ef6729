"""Multi-head attention of the Transformer."""

from __future__ import annotations

import math
from typing import Any, cast

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._op import Pullback, differentiable
from ._state import cotangents_of

_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_PARAMETERS = ("in_proj_weight", *_SEPARATE, "in_proj_bias", "out_proj_weight", "out_proj_bias")


def _take(
    where: str,
    arrays: dict[str, Any],
    num_heads: int,
    causal: bool,
    batch_first: bool,
    key_padding_mask: Array | None,
    attn_mask: Array | None,
) -> tuple[Any, dict[str, Any], Array | None, Array | None]:
    """The namespace and the time-major arrays, ready to compute with; reject arguments that do not fit each other."""
    separate = [name for name in _SEPARATE if arrays[name] is not None]
    if separate and arrays["in_proj_weight"] is not None:
        raise TypeError(f"{where}: in_proj_weight and {separate[0]} are given, expected None for one of the two")
    xp, *taken, key_padding_mask, attn_mask = _arrays.take(
        where, arrays, bools={"key_padding_mask": key_padding_mask}, weights={"attn_mask": attn_mask},
        needed=("query", *(_SEPARATE if separate else ["in_proj_weight"]), "out_proj_weight"),
    )  # fmt: skip
    arrays = dict(zip(arrays, taken, strict=True))
    query, keys, values = arrays["query"], arrays["keys"], arrays["values"]
    if keys is None and values is not None:
        raise TypeError(f"{where}: values is an array, expected None where keys is None")

    def axes(steps: Any, rows: Any, width: Any) -> tuple[Any, ...]:
        return (rows, steps, width) if batch_first else (steps, rows, width)

    def symbols(steps: str, width: str) -> str:
        return f"({', '.join(axes(steps, 'B', width))})"

    _checks.ndim(where, "query", query, 3, symbols("T", "E"))
    E = query.shape[2]
    if E < 1 or E % num_heads:
        raise ValueError(
            f"{where}: query has shape {tuple(query.shape)}, expected {symbols('T', 'E')} with E a multiple of "
            f"{num_heads}"
        )
    T, B = query.shape[1::-1] if batch_first else query.shape[:2]
    S, widths = T, {"q": E, "k": E, "v": E}
    if keys is not None:
        _checks.ndim(where, "keys", keys, 3, symbols("S", "key_size" if separate else "E"))
        S = keys.shape[1 if batch_first else 0]
        for name, array in (("keys", keys), ("values", keys if values is None else values)):
            width, symbol = E, "E"
            if separate:
                _checks.ndim(where, name, array, 3, symbols("S", f"{name[:-1]}_size"))
                width, symbol = array.shape[2], f"{name[:-1]}_size"
            _checks.shape(where, name, array, axes(S, B, width), symbols("S", symbol))
            widths[name[0]] = width
    for name, shape, symbol in (
        ("in_proj_weight", (3 * E, E), "(3*E, E)"),
        ("q_proj_weight", (E, E), "(E, E)"),
        ("k_proj_weight", (E, widths["k"]), "(E, key_size)"),
        ("v_proj_weight", (E, widths["v"]), "(E, value_size)"),
        ("in_proj_bias", (3 * E,), "(3*E,)"),
        ("out_proj_weight", (E, E), "(E, E)"),
        ("out_proj_bias", (E,), "(E,)"),
    ):
        if arrays[name] is not None:
            _checks.shape(where, name, arrays[name], shape, symbol)
    if key_padding_mask is not None:
        _checks.shape(where, "key_padding_mask", key_padding_mask, (B, S), "(B, S)")
    if causal and S < T:
        raise ValueError(f"{where}: keys has shape {tuple(keys.shape)}, expected S >= T = {T}, as causal is true")
    if attn_mask is not None:
        attn_mask = _added(where, xp, attn_mask, (B, num_heads, T, S), query)
    if batch_first:
        for name in ("query", "keys", "values"):
            arrays[name] = _turned(xp, arrays[name])
    return xp, arrays, key_padding_mask, attn_mask


def _added(where: str, xp: Any, mask: Array, shape: tuple[int, ...], like: Array) -> Array:
    """Convert a mask to the numbers that it adds to the scores, (B or 1, n or 1, T, S)."""
    (B, n, T, S), given = shape, tuple(mask.shape)
    if given == (T, S):
        mask = xp.reshape(mask, (1, 1, T, S))
    elif given == (B * n, T, S):
        mask = xp.reshape(mask, shape)
    elif len(given) != 4 or given[2:] != (T, S) or given[0] not in (1, B) or given[1] not in (1, n):
        raise ValueError(
            f"{where}: attn_mask has shape {given}, expected (T, S) = {(T, S)}, (B*num_heads, T, S) = {(B * n, T, S)}, "
            f"or (B, num_heads, T, S) = {shape}, where B and num_heads may be 1"
        )
    if mask.dtype != xp.bool:
        return mask
    zero = _dispatch.zeros(xp, (1, 1, 1, 1), like)
    return xp.where(mask, zero - math.inf, zero)


def _turned(xp: Any, array: Any) -> Any:
    """Exchange the first two axes of an array."""
    return None if array is None else _arrays.contiguous(xp.permute_dims(array, (1, 0, 2)))


def attend(
    query: Array, keys: Array | None = None, values: Array | None = None, *, in_proj_weight: Array | None = None,
    out_proj_weight: Array, in_proj_bias: Array | None = None, out_proj_bias: Array | None = None,
    q_proj_weight: Array | None = None, k_proj_weight: Array | None = None, v_proj_weight: Array | None = None,
    num_heads: int, causal: bool = False, key_padding_mask: Array | None = None, attn_mask: Array | None = None,
    batch_first: bool = False, with_weights: bool, training: bool,
) -> tuple[tuple[Array, Array | None], Pullback]:  # fmt: skip
    """``multi_head_attention.vjp``, with attention weights only ``with_weights``. The pullback needs ``training``."""
    where = "multi_head_attention"
    # The weights come first because they belong to a layer: an error then advises to cast the others.
    given = {
        "in_proj_weight": in_proj_weight, "q_proj_weight": q_proj_weight, "k_proj_weight": k_proj_weight,
        "v_proj_weight": v_proj_weight, "in_proj_bias": in_proj_bias, "out_proj_weight": out_proj_weight,
        "out_proj_bias": out_proj_bias, "query": query, "keys": keys, "values": values,
    }  # fmt: skip
    num_heads = _checks.integer_at_least(where, "num_heads", num_heads, 1)
    causal = _checks.flag(where, "causal", causal)
    batch_first = _checks.flag(where, "batch_first", batch_first)
    xp, arrays, key_padding_mask, attn_mask = _take(
        where, given, num_heads, causal, batch_first, key_padding_mask, attn_mask
    )
    in_proj_weight, *separate, in_proj_bias, out_proj_weight, out_proj_bias, query, keys, values = arrays.values()
    # The inputs of the projections.
    sources = [source for source in (query, keys, values) if source is not None]
    trained = [name for name in _PARAMETERS if arrays[name] is not None]
    T, B, E = query.shape
    scale = 1 / math.sqrt(E // num_heads)

    padded = None
    if key_padding_mask is not None:
        # Padding must not reach a product either.
        padded = xp.expand_dims(xp.permute_dims(key_padding_mask, (1, 0)), axis=2)
        zero = _dispatch.zeros(xp, (1, 1, 1), query)
        read = [s if i == 0 < len(sources) - 1 else xp.where(padded, zero, s) for i, s in enumerate(sources)]
    else:
        read = sources
    last = len(sources) - 1
    # For each product: the index of its source, its weights, its rows of W_in, and how many of q, k and v it makes.
    if in_proj_weight is not None:
        # The last source takes all remaining rows, so that self-attention needs only one product.
        ends = [*range(1, last + 1), 3]
        rows = [slice(start * E, end * E) for start, end in zip([0, *ends], ends, strict=False)]
        products = [(place, in_proj_weight[own, :], own, (own.stop - own.start) // E) for place, own in enumerate(rows)]
    else:
        products = [
            (place, weight, slice(k * E, (k + 1) * E), 1)
            for k, (place, weight) in enumerate(zip((0, min(1, last), last), separate, strict=True))
        ]

    def flat(array: Array) -> Array:
        return xp.reshape(array, (-1, array.shape[-1]))

    projected = []
    for place, weight, own, parts in products:
        a = xp.matmul(flat(read[place]), weight.T)
        if in_proj_bias is not None:
            a += in_proj_bias[own]
        a = xp.reshape(a, (*read[place].shape[:2], parts * E))
        projected += [_arrays.contiguous(a[:, :, k * E : (k + 1) * E]) for k in range(parts)]
    wing = _dispatch.wing(where, query=query)
    q, k, v = projected
    context, weights, saved = wing.multi_head_forward(
        q, k, v, num_heads, causal=causal, excluded=key_padding_mask, mask=attn_mask, scale=scale,
        with_weights=with_weights, training=training,
    )  # fmt: skip
    y = xp.matmul(flat(context), out_proj_weight.T)
    if out_proj_bias is not None:
        y += out_proj_bias
    y = xp.reshape(y, (T, B, E))
    y = _turned(xp, y) if batch_first else y

    def pullback(cotangents: Any) -> tuple[tuple[Array, Array | None, Array | None], dict[str, Array]]:
        dy, dweights = cotangents_of(where, cotangents, ("y", "weights"))
        dy = _arrays.cotangent(where, "y", dy, y)
        if weights is not None:
            dweights = _arrays.cotangent(where, "weights", dweights, weights)
        dy = xp.zeros_like(y) if dy is None else dy
        dy = flat(_turned(xp, dy) if batch_first else dy)
        gradients = {"out_proj_weight": xp.matmul(dy.T, flat(context)), "out_proj_bias": xp.sum(dy, axis=0)}
        dcontext = xp.reshape(xp.matmul(dy, out_proj_weight), (T, B, E))
        d = list(wing.multi_head_backward(saved, dcontext, dweights))
        dsources: list[Any] = [None, None, None]
        dprojections, dbiases = [], []
        for place, weight, _, parts in products:
            da = xp.concat([flat(each) for each in d[:parts]], axis=1)
            d = d[parts:]
            dsource = xp.reshape(xp.matmul(da, weight), sources[place].shape)
            dsources[place] = dsource if dsources[place] is None else dsources[place] + dsource
            dprojections.append(xp.matmul(da.T, flat(read[place])))
            dbiases.append(xp.sum(da, axis=0))
        if padded is not None and last == 0:
            dsources[0] = xp.where(padded, zero, dsources[0])
        if in_proj_weight is not None:
            gradients["in_proj_weight"] = xp.concat(dprojections, axis=0)
        else:
            gradients |= dict(zip(_SEPARATE, dprojections, strict=True))
        gradients["in_proj_bias"] = xp.concat(dbiases, axis=0)
        dquery, dkeys, dvalues = (_turned(xp, d) if batch_first else d for d in dsources)
        return (dquery, dkeys, dvalues), {name: gradients[name] for name in trained}

    return (y, weights), pullback


def _multi_head_attention_vjp(
    query: Array, keys: Array | None = None, values: Array | None = None, *, in_proj_weight: Array | None = None,
    out_proj_weight: Array, in_proj_bias: Array | None = None, out_proj_bias: Array | None = None,
    q_proj_weight: Array | None = None, k_proj_weight: Array | None = None, v_proj_weight: Array | None = None,
    num_heads: int, causal: bool = False, key_padding_mask: Array | None = None, attn_mask: Array | None = None,
    batch_first: bool = False,
) -> tuple[tuple[Array, Array], Pullback]:  # fmt: skip
    outputs, pullback = attend(
        query, keys, values, in_proj_weight=in_proj_weight, out_proj_weight=out_proj_weight, in_proj_bias=in_proj_bias,
        out_proj_bias=out_proj_bias, q_proj_weight=q_proj_weight, k_proj_weight=k_proj_weight,
        v_proj_weight=v_proj_weight, num_heads=num_heads, causal=causal, key_padding_mask=key_padding_mask,
        attn_mask=attn_mask, batch_first=batch_first, with_weights=True, training=True,
    )  # fmt: skip
    return cast("tuple[Array, Array]", outputs), pullback


@differentiable(_multi_head_attention_vjp)
def multi_head_attention(
    query: Array, keys: Array | None = None, values: Array | None = None, *, in_proj_weight: Array | None = None,
    out_proj_weight: Array, in_proj_bias: Array | None = None, out_proj_bias: Array | None = None,
    q_proj_weight: Array | None = None, k_proj_weight: Array | None = None, v_proj_weight: Array | None = None,
    num_heads: int, causal: bool = False, key_padding_mask: Array | None = None, attn_mask: Array | None = None,
    batch_first: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """Multi-head attention of the Transformer; self-attention if only a query is given.

    With W_q, W_k, W_v the rows of W_in, m the ``attn_mask``, and E/n columns of q, k and v for each of n heads i::

        q = W_q query + b_q            k = W_k keys + b_k            v = W_v values + b_v
        alpha_i = softmax(q_i k_i^T / sqrt(E/n) + m)                 head_i = alpha_i v_i
        y = W_o [head_1 ... head_n] + b_o

    The time grows with the n T S weights. So does memory, because they are returned; on a GPU
    `gpurnn.TransformerBlock` does not need that memory.

    Parameters
    ----------
    query : (T, B, E) array
        Time-major; float32 or float64, like every array here except ``key_padding_mask`` and an ``attn_mask`` of bools.
    keys : (S, B, E) array, optional
        The positions to attend to; by default the query. With ``k_proj_weight`` they are (S, B, key_size).
    values : (S, B, E) array, optional
        The terms of the weighted sum; by default the keys. With ``v_proj_weight`` they are (S, B, value_size).
    in_proj_weight, in_proj_bias : (3*E, E) and (3*E,) arrays
        W_in: W_q, W_k and W_v stacked; the bias may be None.
    out_proj_weight, out_proj_bias : (E, E) and (E,) arrays
        W_o; the bias may be None.
    q_proj_weight, k_proj_weight, v_proj_weight : (E, E), (E, key_size) and (E, value_size) arrays
        W_q, W_k and W_v separately, all three instead of ``in_proj_weight``.
    num_heads : int
        n, a divisor of E.
    causal : bool
        Whether a query sees no keys later than itself; the queries are the last T of the S positions.
    key_padding_mask : (B, S) array of bools, or of integers 0 and 1, optional
        True where a key does not exist. There keys and values are not read and have a weight of exactly zero; in
        self-attention the query there counts as zero. A query that sees no key has weights of zero.
    attn_mask : (T, S), (B*n, T, S) or (B, n, T, S) array, optional
        m: one mask for all, or one for each row of the batch and each head. (1, n, T, S) is the same for all rows,
        (B, 1, T, S) for all heads. Bools, or integers 0 and 1, are True where a query does not see a key, whose weight
        is then exactly zero. Numbers of the query's dtype are added to the scores; minus infinity has the effect of
        True. It has no gradient.
    batch_first : bool
        Whether query, keys, values, y and their gradients are (B, T, ...) instead of (T, B, ...).

    Returns
    -------
    y : (T, B, E) array
    weights : (B, n, T, S) array
        alpha of each head. The pullback takes ``(dy, dweights)`` and returns ``(dquery, dkeys, dvalues)``, with None
        for inputs that were None, and a dict of the gradients of the parameters.

    Raises
    ------
    TypeError, ValueError
        Arrays or dtypes are unsupported or mixed, shapes do not fit, the number of heads does not divide E, causal
        attention has more queries than keys, or ``in_proj_weight`` is given together with a separate weight.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", NIPS 2017, sections 3.2.1 and 3.2.2. The parameters and the meaning
    of the masks are those of `torch.nn.MultiheadAttention`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> x, one = np.array([[[1.0]], [[3.0]]]), np.ones((1, 1))
    >>> arguments = {"in_proj_weight": np.array([[0.0], [0.0], [1.0]]), "out_proj_weight": one, "num_heads": 1}
    >>> y, weights = gpurnn.multi_head_attention(x, **arguments, causal=True)
    >>> y[:, 0, 0], weights[0, 0]
    (array([1., 2.]), array([[1. , 0. ],
           [0.5, 0.5]]))
    >>> y, weights = gpurnn.multi_head_attention(x, **arguments, attn_mask=np.array([[True, False], [False, False]]))
    >>> y[:, 0, 0], weights[0, 0]
    (array([3., 2.]), array([[0. , 1. ],
           [0.5, 0.5]]))
    """
    outputs, _ = attend(
        query, keys, values, in_proj_weight=in_proj_weight, out_proj_weight=out_proj_weight, in_proj_bias=in_proj_bias,
        out_proj_bias=out_proj_bias, q_proj_weight=q_proj_weight, k_proj_weight=k_proj_weight,
        v_proj_weight=v_proj_weight, num_heads=num_heads, causal=causal, key_padding_mask=key_padding_mask,
        attn_mask=attn_mask, batch_first=batch_first, with_weights=True, training=False,
    )  # fmt: skip
    return cast("tuple[Array, Array]", outputs)
