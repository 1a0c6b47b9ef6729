"""Vanilla RNN, LSTM and GRU: one layer, one direction."""

from __future__ import annotations

from typing import Any

from .. import _arrays, _checks, _dispatch, cells
from .._contract import Array, State
from .._op import Pullback, differentiable
from ._state import check_cotangents, check_sequence, pack_state, unpack_state


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
    xp, weight_ih, weight_hh, bias_ih, bias_hh, x, mask, *initial, lengths, resets = _arrays.take(
        where, {**parameters, "x": x, "mask": mask, **states}, {"lengths": lengths}, {"resets": resets},
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
        ({"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh},),
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
        dx, (dweights,), dstate0 = wing.recurrence_backward(
            saved, dy, tuple(None if s is None else xp.expand_dims(s, axis=0) for s in dstate)
        )
        return (dx, pack_state(cell, tuple(s[0, ...] for s in dstate0))), {name: dweights[name] for name in trained}

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
