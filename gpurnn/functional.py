"""Recurrent layers and what surrounds them as pure functions of arrays, each with its pullback.

Every function ``f`` here has ``f.vjp``, which takes the same arguments and returns ``(f(...), pullback)``. The pullback
takes what the result is shaped like, None for zero, and returns the gradients of the inputs and a dict of those of the
parameters. It may be called more than once and gives the same answer each time; until the last call, the arrays that
went in must stay as they were. Calling ``f`` itself saves nothing.

Arrays may be stored in any way: in any memory order, with any strides, unaligned or in the other byte order. Results
are the same to the last bit, and are C-contiguous. Integers may be of any integer dtype.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import _arrays, _checks, _dispatch, cells
from ._op import Pullback, differentiable
from ._random import generator, philox_seed

Array = Any
State = Any


def unpack_state(where: str, cell: cells.Cell, name: str, state: State | None) -> dict[str, Array | None]:
    """The arrays of a state by their names in messages: ``name`` itself, or for the LSTM its h and its c."""
    if cell.states == 1:
        if isinstance(state, (tuple, list)):
            said = "a pair (h, c), the state of an LSTM" if len(state) == 2 else _checks.described(state)
            raise TypeError(f"{where}: {name} is {said}, expected h alone, an array")
        return {name: state}
    if state is None:
        return {f"{name}[0]": None, f"{name}[1]": None}
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        said = _checks.described(state)
        if hasattr(state, "shape"):
            said += ", the state of an RNN or a GRU"
        raise TypeError(f"{where}: {name} is {said}, expected a pair (h, c)")
    return {f"{name}[0]": state[0], f"{name}[1]": state[1]}


def pack_state(cell: cells.Cell, arrays: tuple[Array, ...]) -> State:
    """The state as callers see it: h, or for the LSTM (h, c)."""
    return arrays[0] if cell.states == 1 else (arrays[0], arrays[1])


def check_sequence(where: str, x: Array, lengths: Array | None, resets: Array | None) -> None:
    """Refuse lengths and resets whose shape does not fit x (T, B, ...). A wing checks what lengths hold."""
    T, B = x.shape[:2]
    if lengths is not None:
        _checks.shape(where, "lengths", lengths, (B,), "(B,)")
    if resets is not None:
        _checks.shape(where, "resets", resets, (T, B), "(T, B)")


def cotangent_pair(where: str, cotangents: Any) -> tuple[Any, Any]:
    """dy and dstate from what the pullback of a function with a state was given; refuse what is no pair."""
    if not isinstance(cotangents, (tuple, list)) or len(cotangents) != 2:
        said = _checks.described(cotangents)
        raise TypeError(f"{where}: the pullback was given {said}, expected a pair (dy, dstate)")
    return cotangents[0], cotangents[1]


def check_cotangents(
    where: str, cell: cells.Cell, cotangents: Any, y: Array, state: State
) -> tuple[Array | None, tuple[Array | None, ...]]:
    """dy and the arrays of dstate, ready to compute with, from what a recurrence's pullback was given.

    What is not like (y, state) is rejected.
    """
    dy, dstate = cotangent_pair(where, cotangents)
    arrays = unpack_state(where, cell, "dstate", dstate)
    outputs = unpack_state(where, cell, "state", state)
    return _arrays.cotangent(where, "y", dy, y), tuple(
        _arrays.cotangent(where, name, array, output)
        for (name, output), array in zip(outputs.items(), arrays.values(), strict=True)
    )


def _forward(
    cell: cells.Cell,
    training: bool,
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: State | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
) -> tuple[Array, State, Any]:
    """Check the arguments of `rnn`, `lstm` or `gru` and run the wing: y, the final state and what backward takes."""
    where = cell.name
    states = unpack_state(where, cell, "state", state)
    parameters = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
    xp, x, weight_ih, weight_hh, bias_ih, bias_hh, mask, *initial, lengths, resets = _arrays.take(
        where, {"x": x, **parameters, "mask": mask, **states}, {"lengths": lengths}, {"resets": resets},
        needed=("x", "weight_ih", "weight_hh"),
    )  # fmt: skip
    _checks.ndim(where, "x", x, 3, "(T, B, input_size)")
    _checks.ndim(where, "weight_hh", weight_hh, 2, f"({cell.gates}*hidden_size, hidden_size)")
    B, inputs, hidden = x.shape[1], x.shape[2], weight_hh.shape[1]
    rows, symbol = cell.gates * hidden, f"{cell.gates}*hidden_size"
    if hidden < 1:
        raise ValueError(f"{where}: weight_hh has shape {tuple(weight_hh.shape)}, expected a hidden_size of at least 1")
    _checks.shape(where, "weight_hh", weight_hh, (rows, hidden), f"({symbol}, hidden_size)")
    _checks.shape(where, "weight_ih", weight_ih, (rows, inputs), f"({symbol}, input_size)")
    for name, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None:
            _checks.shape(where, name, bias, (rows,), f"({symbol},)")
    for name, array in (*zip(states, initial, strict=True), ("mask", mask)):
        if array is not None:
            _checks.shape(where, name, array, (B, hidden), "(B, hidden_size)")
    check_sequence(where, x, lengths, resets)
    zero = _dispatch.zeros(xp, (B, hidden), x)
    y, final, saved = _dispatch.wing(where, x=x).recurrence_forward(
        cell,
        x,
        ((weight_ih, weight_hh, bias_ih, bias_hh),),
        tuple(xp.expand_dims(zero if s is None else s, axis=0) for s in initial),
        lengths=lengths,
        resets=resets,
        mask=None if mask is None else xp.expand_dims(mask, axis=0),
        training=training,
    )
    return y, pack_state(cell, tuple(s[0, ...] for s in final)), saved


def _call(cell: cells.Cell, *args: Any, **kwargs: Any) -> tuple[Array, State]:
    y, state, _ = _forward(cell, False, *args, **kwargs)
    return y, state


def _vjp(cell: cells.Cell, *args: Any, **kwargs: Any) -> tuple[tuple[Array, State], Pullback]:
    where = cell.name
    y, state, saved = _forward(cell, True, *args, **kwargs)
    wing = _dispatch.wing(where, y=y)
    xp = _dispatch.namespace(where, y=y)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    given = dict(zip(names, args[1:5], strict=False)) | kwargs
    trained = [name for name in names if given.get(name) is not None]

    def pullback(cotangents: Any) -> tuple[tuple[Array, State], dict[str, Array]]:
        dy, dstate = check_cotangents(where, cell, cotangents, y, state)
        dx, ((*dweights,),), dstate0 = wing.recurrence_backward(
            saved, dy, tuple(None if s is None else xp.expand_dims(s, axis=0) for s in dstate)
        )
        gradients = dict(zip(names, dweights, strict=True))
        return (dx, pack_state(cell, tuple(s[0, ...] for s in dstate0))), {name: gradients[name] for name in trained}

    return (y, state), pullback


def _rnn_vjp(
    *args: Any, activation: cells.Activation = "tanh", leak: float = 0.0, **kwargs: Any
) -> tuple[tuple[Array, State], Pullback]:
    return _vjp(cells.Vanilla(activation, leak), *args, **kwargs)


@differentiable(_rnn_vjp)
def rnn(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: Array | None = None,
    *,
    activation: cells.Activation = "tanh",
    leak: float = 0.0,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """Vanilla recurrent layer, one direction: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) + leak h_{t-1}.

    Parameters
    ----------
    x : (T, B, I) array
        Input, time-major; float32 or float64, like every array here but ``lengths`` and ``resets``.
    weight_ih, weight_hh : (H, I) and (H, H) arrays
    bias_ih, bias_hh : (H,) arrays, optional
    state : (B, H) array, optional
        h_0; zero by default.
    activation : {"tanh", "relu", "sigmoid", "identity"}
        f. The derivative of relu at 0 is 0.
    leak : float
        Weight of the skip connection from h_{t-1}, added after the activation.
    lengths : (B,) integer array, optional
        Steps of each row that exist, in any order, zero allowed. What x holds past them is not read.
    resets : (T, B) array of bools, or of integers 0 and 1, optional
        True where a new sequence starts at step t: h_{t-1} is zeroed before it, at t = 0 the initial state.
    mask : (B, H) array, optional
        Multiplies h_{t-1} where it enters the product with W_hh, the same at every step: a variational dropout mask.

    Returns
    -------
    y : (T, B, H) array
        h_t, exactly zero past a row's length.
    state : (B, H) array
        h after each row's last step.

    Raises
    ------
    TypeError
        Arrays of an unsupported library, of two libraries, or of two dtypes.
    ValueError
        A shape that does not fit, or a length that is not in 0 ... T.

    References
    ----------
    J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> x = np.ones((3, 1, 1))
    >>> y, state = gpurnn.rnn(x, np.ones((1, 1)), np.ones((1, 1)), activation="identity")
    >>> y[:, 0, 0]
    array([1., 2., 3.])
    >>> (y, state), pullback = gpurnn.rnn.vjp(x, np.ones((1, 1)), np.ones((1, 1)), activation="identity")
    >>> (dx, dstate), gradients = pullback((None, np.ones((1, 1))))
    >>> dx[:, 0, 0], gradients["weight_hh"]
    (array([1., 1., 1.]), array([[3.]]))
    """
    return _call(
        cells.Vanilla(activation, leak), x, weight_ih, weight_hh, bias_ih, bias_hh, state,
        lengths=lengths, resets=resets, mask=mask,
    )  # fmt: skip


def _lstm_vjp(*args: Any, **kwargs: Any) -> tuple[tuple[Array, State], Pullback]:
    return _vjp(cells.LSTM(), *args, **kwargs)


@differentiable(_lstm_vjp)
def lstm(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: tuple[Array | None, Array | None] | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """LSTM layer, one direction.

    With a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, its rows in the order i, f, g, o::

        i_t, f_t, o_t = sigma(a_i), sigma(a_f), sigma(a_o)      g_t = tanh(a_g)
        c_t = f_t c_{t-1} + i_t g_t
        h_t = o_t tanh(c_t)

    Parameters
    ----------
    x : (T, B, I) array
        Input, time-major; float32 or float64, like every array here but ``lengths`` and ``resets``.
    weight_ih, weight_hh : (4*H, I) and (4*H, H) arrays
    bias_ih, bias_hh : (4*H,) arrays, optional
    state : pair of (B, H) arrays, optional
        (h_0, c_0); zero by default.
    lengths, resets, mask
        As in `rnn`; a reset zeroes c as well, ``mask`` multiplies h only.

    Returns
    -------
    y : (T, B, H) array
        h_t, exactly zero past a row's length.
    state : pair of (B, H) arrays
        (h, c) after each row's last step.

    Raises
    ------
    TypeError, ValueError
        As `rnn` does.

    References
    ----------
    S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9 (1997);
    F. A. Gers, J. Schmidhuber, F. Cummins, "Learning to forget", Neural Computation 12 (2000).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.normal(size=(5, 2, 3)), rng.normal(size=(16, 3)), rng.normal(size=(16, 4))
    >>> y, (h, c) = gpurnn.lstm(x, w_ih, w_hh, lengths=np.array([5, 2]))
    >>> y.shape, bool((y[2:, 1] == 0).all()), bool((h[1] == y[1, 1]).all())
    ((5, 2, 4), True, True)
    """
    return _call(
        cells.LSTM(), x, weight_ih, weight_hh, bias_ih, bias_hh, state, lengths=lengths, resets=resets, mask=mask
    )


def _gru_vjp(
    *args: Any, reset_after: bool = False, update: cells.Update = "candidate", **kwargs: Any
) -> tuple[tuple[Array, State], Pullback]:
    return _vjp(cells.GRU(reset_after, update), *args, **kwargs)


@differentiable(_gru_vjp)
def gru(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: Array | None = None,
    *,
    reset_after: bool = False,
    update: cells.Update = "candidate",
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """GRU layer, one direction.

    With the rows of the weights in the order r, z, n::

        r_t = sigma(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = sigma(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in x_t + b_in + W_hn (r_t h_{t-1}) + b_hn)       reset_after=False, the textbook's
        n_t = tanh(W_in x_t + b_in + r_t (W_hn h_{t-1} + b_hn))       reset_after=True, PyTorch's and cuDNN's
        h_t = (1 - z_t) h_{t-1} + z_t n_t                             update="candidate", the textbook's
        h_t = (1 - z_t) n_t + z_t h_{t-1}                             update="state", PyTorch's and cuDNN's

    Parameters
    ----------
    x : (T, B, I) array
        Input, time-major; float32 or float64, like every array here but ``lengths`` and ``resets``.
    weight_ih, weight_hh : (3*H, I) and (3*H, H) arrays
    bias_ih, bias_hh : (3*H,) arrays, optional
    state : (B, H) array, optional
        h_0; zero by default.
    reset_after : bool
        Whether the reset gate applies after the recurrent product instead of before it.
    update : {"candidate", "state"}
        What z weighs.
    lengths, resets, mask
        As in `rnn`.

    Returns
    -------
    y : (T, B, H) array
        h_t, exactly zero past a row's length.
    state : (B, H) array
        h after each row's last step.

    Raises
    ------
    TypeError, ValueError
        As `rnn` does.

    References
    ----------
    K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
    EMNLP 2014.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.normal(size=(5, 2, 3)), rng.normal(size=(12, 3)), rng.normal(size=(12, 4))
    >>> y, h = gpurnn.gru(x, w_ih, w_hh, reset_after=True, update="state")
    >>> y.shape, bool((h == y[-1]).all())
    ((5, 2, 4), True)
    """
    return _call(
        cells.GRU(reset_after, update), x, weight_ih, weight_hh, bias_ih, bias_hh, state,
        lengths=lengths, resets=resets, mask=mask,
    )  # fmt: skip


def sigmoid(xp: Any, a: Array) -> Array:
    """1 / (1 + exp(-a)), to a few roundings however small it is."""
    e = xp.exp(-xp.abs(a))
    return xp.where(a < 0, e, xp.ones_like(e)) / (1 + e)


def sigmoid_slope(xp: Any, a: Array) -> Array:
    """The derivative of `sigmoid`, sigma(a) sigma(-a), to a few roundings however small it is."""
    e = xp.exp(-xp.abs(a))
    return e / (1 + e) / (1 + e)


def activate(xp: Any, name: str, a: Array) -> Array:
    """An activation of `DENSE_ACTIVATIONS`, elementwise or over the last axis."""
    if name == "tanh":
        return xp.tanh(a)
    if name == "relu":
        # NaN is not below 0 and stays.
        return xp.where(a < 0, xp.zeros_like(a), a)
    if name == "sigmoid":
        return sigmoid(xp, a)
    if name == "softmax":
        e = xp.exp(a - xp.max(a, axis=-1, keepdims=True))
        return e / xp.sum(e, axis=-1, keepdims=True)
    return a


def activate_pullback(xp: Any, name: str, a: Array, y: Array, dy: Array) -> Array:
    """The gradient of a, where y is its activation; only the sigmoid reads a."""
    if name == "tanh":
        return dy * (1 - y * y)
    if name == "relu":
        return xp.where(y > 0, dy, xp.zeros_like(dy))
    if name == "sigmoid":
        return dy * sigmoid_slope(xp, a)
    if name == "softmax":
        return y * (dy - xp.sum(dy * y, axis=-1, keepdims=True))
    return dy


DENSE_ACTIVATIONS = ("identity", "tanh", "relu", "sigmoid", "softmax")


def _dense(
    x: Array, weight: Array, bias: Array | None, activation: str
) -> tuple[Any, Array, Array, Array | None, Array, Array]:
    """Check the arguments of `dense` and compute: the namespace, the arguments as they are read, W x + b and y."""
    where = "dense"
    xp, x, weight, bias = _arrays.take(where, {"x": x, "weight": weight, "bias": bias}, needed=("x", "weight"))
    _checks.choice(where, "activation", activation, DENSE_ACTIVATIONS)
    _checks.ndim(where, "weight", weight, 2, "(out_features, in_features)")
    outputs, inputs = weight.shape
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected (..., in_features) = (..., {inputs})")
    if activation == "softmax" and outputs == 0:
        raise ValueError(f"{where}: weight has shape {tuple(weight.shape)}, expected out_features > 0 for the softmax")
    a = xp.matmul(xp.reshape(x, (math.prod(x.shape[:-1]), inputs)), weight.T)
    if bias is not None:
        _checks.shape(where, "bias", bias, (outputs,), "(out_features,)")
        a += bias
    a = xp.reshape(a, (*x.shape[:-1], outputs))
    return xp, x, weight, bias, a, activate(xp, activation, a)


def _dense_vjp(
    x: Array, weight: Array, bias: Array | None = None, *, activation: str = "identity"
) -> tuple[Array, Pullback]:
    xp, x, weight, bias, a, y = _dense(x, weight, bias, activation)
    kept = a if activation == "sigmoid" else None
    del a
    rows = math.prod(x.shape[:-1])

    def pullback(dy: Array | None) -> tuple[Array, dict[str, Array]]:
        dy = _arrays.cotangent("dense", "y", dy, y)
        if dy is None:
            dy = xp.zeros_like(y)
        da = xp.reshape(activate_pullback(xp, activation, kept, y, dy), (rows, weight.shape[0]))
        gradients = {"weight": xp.matmul(da.T, xp.reshape(x, (rows, weight.shape[1])))}
        if bias is not None:
            gradients["bias"] = xp.sum(da, axis=0)
        return xp.reshape(xp.matmul(da, weight), x.shape), gradients

    return y, pullback


@differentiable(_dense_vjp)
def dense(x: Array, weight: Array, bias: Array | None = None, *, activation: str = "identity") -> Array:
    """Dense layer, the output head of a recurrent network: y = g(W x + b).

    Parameters
    ----------
    x : (..., I) array
    weight : (O, I) array
    bias : (O,) array, optional
    activation : {"identity", "tanh", "relu", "sigmoid", "softmax"}
        g; the softmax is over the last axis.

    Returns
    -------
    y : (..., O) array

    Raises
    ------
    TypeError, ValueError
        Unsupported or mixed arrays or dtypes; shapes that do not fit; an unknown activation.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gpurnn.dense(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])
    """
    return _dense(x, weight, bias, activation)[-1]


def _layer_norm(
    x: Array, weight: Array | None, bias: Array | None, eps: float
) -> tuple[Any, Array, Array | None, Array, Array]:
    """Check the arguments of `layer_norm` and compute: the namespace, y, the weight, and what backward takes."""
    where = "layer_norm"
    xp, x, weight, bias = _arrays.take(where, {"x": x, "weight": weight, "bias": bias}, needed=("x",))
    eps = _checks.non_negative(where, "eps", eps)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected (..., features)")
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None:
            _checks.shape(where, name, array, (x.shape[-1],), "(features,)")
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    # Relative to their size no square overflows, nor underflows to nothing.
    size = xp.clip(xp.max(xp.abs(centred), axis=-1, keepdims=True), math.sqrt(eps), None)
    size = xp.where(size > 0, size, xp.ones_like(size))
    relative = centred / size
    root = xp.sqrt(xp.mean(relative * relative, axis=-1, keepdims=True) + (math.sqrt(eps) / size) ** 2)
    normalised, inverse = relative / root, 1 / root / size
    y = normalised if weight is None else normalised * weight
    return xp, (y if bias is None else y + bias), weight, normalised, inverse


def _layer_norm_vjp(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
) -> tuple[Array, Pullback]:
    xp, y, weight, normalised, inverse = _layer_norm(x, weight, bias, eps)

    def pullback(dy: Array | None) -> tuple[Array, dict[str, Array]]:
        dy = _arrays.cotangent("layer_norm", "y", dy, y)
        if dy is None:
            dy = xp.zeros_like(y)
        gradients = {}
        if weight is not None:
            gradients["weight"] = xp.sum(xp.reshape(dy * normalised, (-1, y.shape[-1])), axis=0)
        if bias is not None:
            gradients["bias"] = xp.sum(xp.reshape(dy, (-1, y.shape[-1])), axis=0)
        d = dy if weight is None else dy * weight
        along = xp.mean(d * normalised, axis=-1, keepdims=True)
        return inverse * (d - xp.mean(d, axis=-1, keepdims=True) - normalised * along), gradients

    return y, pullback


@differentiable(_layer_norm_vjp)
def layer_norm(x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5) -> Array:
    """Layer normalisation over the last axis: y = gamma (x - mu) / sqrt(sigma^2 + eps) + beta.

    mu and sigma^2 are the mean and the variance of the F features of one position.

    Parameters
    ----------
    x : (..., F) array, float32 or float64
    weight, bias : (F,) arrays, optional
        gamma and beta; one and zero by default.
    eps : float
        At least 0.

    Returns
    -------
    y : (..., F) array

    Raises
    ------
    TypeError, ValueError
        Unsupported or mixed arrays or dtypes; shapes that do not fit; a negative eps.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization" (2016), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gpurnn.layer_norm(np.array([[1.0, 3.0], [-5.0, 5.0]]), np.array([1.0, 2.0])).round(3)
    array([[-1.,  2.],
           [-1.,  2.]])
    """
    return _layer_norm(x, weight, bias, eps)[1]


def _embedding(indices: Array, weight: Array, padding_idx: int | None) -> tuple[Any, Any, Array, Array, Array]:
    """Check the arguments of `embedding` and run the wing: the namespace, the wing, the arguments as read, and y."""
    where = "embedding"
    xp, weight, indices = _arrays.take(where, {"weight": weight}, {"indices": indices}, needed=("indices", "weight"))
    _checks.ndim(where, "weight", weight, 2, "(num_embeddings, embedding_dim)")
    if padding_idx is not None and _checks.integer_at_least(where, "padding_idx", padding_idx, 0) >= weight.shape[0]:
        raise ValueError(f"{where}: padding_idx is {padding_idx}, expected 0 ... V - 1 = {weight.shape[0] - 1}")
    wing = _dispatch.wing(where, weight=weight)
    return xp, wing, indices, weight, wing.embedding_gather(weight, indices)


def _embedding_vjp(indices: Array, weight: Array, *, padding_idx: int | None = None) -> tuple[Array, Pullback]:
    where = "embedding"
    xp, wing, indices, weight, y = _embedding(indices, weight, padding_idx)

    def pullback(dy: Array | None) -> tuple[None, dict[str, Array]]:
        dy = _arrays.cotangent(where, "y", dy, y)
        if dy is None:
            return None, {"weight": xp.zeros_like(weight)}
        dweight = wing.embedding_scatter(indices, dy, weight.shape[0])
        if padding_idx is not None:
            dweight[padding_idx, :] = 0
        return None, {"weight": dweight}

    return y, pullback


@differentiable(_embedding_vjp)
def embedding(indices: Array, weight: Array, *, padding_idx: int | None = None) -> Array:
    """Rows of a table: y[...] = weight[indices[...]]. The gradient sums the rows of dy in a fixed order.

    Parameters
    ----------
    indices : integer array of any shape
        0 <= index < V.
    weight : (V, E) array
    padding_idx : int, optional
        The row that receives no gradient.

    Returns
    -------
    y : indices.shape + (E,) array

    Raises
    ------
    TypeError, ValueError, IndexError
        Unsupported or mixed arrays; a weight that has not two axes; an index that is not in the table (an array that
        lives on a GPU is not looked into, which would wait for the device: there such a row is NaN, and its gradient
        is left out).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gpurnn.embedding(np.array([2, 0]), np.array([[0.0], [1.0], [2.0]]))
    array([[2.],
           [0.]])
    """
    return _embedding(indices, weight, padding_idx)[-1]


def dropout_mask(like: Array, shape: tuple[int, ...], rate: float, rng: np.random.Generator) -> Array:
    """A mask of ``shape`` with entries 0 and 1/(1 - rate), of the library, device and dtype of ``like``."""
    return _dispatch.wing("dropout", x=like).dropout_mask(like, shape, rate, philox_seed(rng), 0)


def _dropout_vjp(x: Array, rate: float, rng: int | np.random.Generator) -> tuple[Array, Pullback]:
    where = "dropout"
    _, x = _arrays.take(where, {"x": x}, needed=("x",))
    mask = dropout_mask(x, tuple(x.shape), _checks.fraction(where, "rate", rate), generator(where, rng))
    y = x * mask

    def pullback(dy: Array | None) -> tuple[Array, dict[str, Array]]:
        dy = _arrays.cotangent(where, "y", dy, y)
        return mask * (0 if dy is None else dy), {}

    return y, pullback


@differentiable(_dropout_vjp)
def dropout(x: Array, rate: float, rng: int | np.random.Generator) -> Array:
    """Inverted dropout: y = x m / (1 - rate), with m zero with probability ``rate`` and one otherwise.

    The mask comes from Philox4x32-10 and is the same, bit for bit, for the same seed in every array library.

    Parameters
    ----------
    x : array, float32 or float64
    rate : float
        In [0, 1).
    rng : int or numpy.random.Generator
        The seed; a generator is advanced.

    Returns
    -------
    y : array like x

    Raises
    ------
    TypeError, ValueError
        An unsupported array or dtype; a rate outside [0, 1); an rng that is none.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> sorted(set(gpurnn.dropout(np.ones(100), 0.5, rng=0).tolist()))
    [0.0, 2.0]
    """
    return _dropout_vjp(x, rate, rng)[0]


def _linear_scan(a: Array, b: Array, h0: Array | None, training: bool) -> tuple[Array, Array, Any]:
    """Check the arguments and run the wing: h, h0 and what backward takes."""
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
    """The linear recurrence h_t = a_t h_{t-1} + b_t, elementwise: a diagonal linear state-space model's states.

    It is computed in parallel over time, by chunks, on NumPy arrays where T is 256 at least and B N at most 128.
    Gradients of complex numbers z = x + iy are dL/dx + i dL/dy; cotangents are taken as such.

    Parameters
    ----------
    a : (T, B, N) or (N,) array
        float32, float64, complex64 or complex128. Of shape (N,) the same at every step and in every row.
    b : (T, B, N) array
    h0 : (B, N) array, optional
        The state before the first step; None for zero.

    Returns
    -------
    h : (T, B, N) array
        Its pullback gives ``(da, db, dh0), {}``.

    Raises
    ------
    TypeError, ValueError
        Unsupported or mixed arrays, dtypes or shapes.

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


SCORES = ("dot", "general", "additive")


def _take_attention(
    where: str, score: str, arrays: dict[str, Any], lengths: Array | None
) -> tuple[Any, dict[str, Any], Array | None]:
    """The namespace and the arrays, ready to compute with; reject what does not fit each other or the score."""
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
    score: str, scale: float, lengths: Array | None, training: bool, **arrays: Array | None
) -> tuple[Any, dict[str, Any], Array, Array, Any]:
    """Check the arguments and run the wing.

    The namespace, the arrays as read, context, weights, and what backward takes.
    """
    where = "attention"
    xp, arrays, lengths = _take_attention(where, score, arrays, lengths)
    query, keys, values = arrays["query"], arrays["keys"], arrays["values"]
    scale = _checks.finite(where, "scale", scale)
    if score == "additive" and scale != 1:
        raise ValueError(f"{where}: scale is {scale}, expected 1 for the additive score")
    if lengths is not None:
        # What is not read must not reach a product either.
        exists = xp.arange(keys.shape[0], device=_dispatch.device(keys))[:, None] < lengths
        keys = arrays["keys"] = xp.where(exists[:, :, None], keys, _dispatch.zeros(xp, (1, 1, 1), keys))
    projected_query, projected_keys = query, keys
    if score == "general":
        projected_query = _project(xp, query, arrays["weight"])
    elif score == "additive":
        projected_query = _project(xp, query, arrays["weight_query"].T)
        projected_keys = _project(xp, keys, arrays["weight_keys"].T)
    context, weights, saved = _dispatch.wing(where, query=query).attention_forward(
        projected_query, projected_keys, keys if values is None else values, arrays["v"],
        lengths=lengths, scale=scale, training=training,
    )  # fmt: skip
    return xp, arrays, context, _arrays.contiguous(weights), saved


def _attention_vjp(
    query: Array, keys: Array, values: Array | None = None, *, score: str = "dot", weight: Any = None,
    weight_query: Any = None, weight_keys: Any = None, v: Array | None = None, scale: float = 1.0,
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
            dkeys, dvalues = dkeys + dvalues, None
        return tuple(None if d is None else _arrays.contiguous(d) for d in (dquery, dkeys, dvalues)), gradients

    return (context, weights), pullback


@differentiable(_attention_vjp)
def attention(
    query: Array, keys: Array, values: Array | None = None, *, score: str = "dot", weight: Array | None = None,
    weight_query: Array | None = None, weight_keys: Array | None = None, v: Array | None = None, scale: float = 1.0,
    lengths: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Attention of each decoder step t to the encoder's states h_s.

    alpha_ts = exp(e_ts) / sum_k exp(e_tk), context_t = sum_s alpha_ts values_s, with a score e_ts of query_t and key_s

    - "dot": scale query_t . key_s
    - "general": scale query_t^T W key_s (Luong's multiplicative)
    - "additive": v^T tanh(W_a query_t + U_a key_s) (Bahdanau's)

    Parameters
    ----------
    query : (T, B, Q) array
        float32 or float64: the decoder's states, of one step or of many.
    keys : (S, B, K) array
        The encoder's states; K = Q for the dot score.
    values : (S, B, E) array, optional
        None for the keys.
    score : {"dot", "general", "additive"}
    weight : (Q, K) array
        W, for the general score alone.
    weight_query, weight_keys, v : (A, Q), (A, K) and (A,) arrays
        W_a, U_a and v, for the additive score alone.
    scale : float
        Of the dot and general scores; 1/sqrt(Q) is the Transformer's.
    lengths : (B,) integer array, optional
        Source positions of each row that exist, zero allowed. What lies past them is not read and gets a weight of
        exactly zero.

    Returns
    -------
    context : (T, B, E) array
    weights : (T, B, S) array
        alpha, the alignment. The pullback takes ``(dcontext, dweights)`` and gives ``(dquery, dkeys, dvalues)``, the
        last None where ``values`` was, and a dict of the gradients of the score's parameters.

    Raises
    ------
    TypeError, ValueError
        Unsupported or mixed arrays, dtypes or shapes; parameters that the score does not have, or lacks.

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
    """
    _, _, context, weights, _ = _attend(
        score, scale, lengths, False, query=query, keys=keys, values=values, weight=weight, weight_query=weight_query,
        weight_keys=weight_keys, v=v,
    )  # fmt: skip
    return context, weights
