"""Linear state-space models: a scan of dense or diagonal matrices, with input, output and feedthrough."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._op import Pullback, differentiable
from ._scan import linear_scan
from ._segments import States, part_of, segments_of, through
from ._state import check_sequence, cotangents_of

OutputState = Literal["after", "before"]

OUTPUT_STATES: tuple[OutputState, ...] = ("after", "before")

CHUNK_ROWS = 8192
"""The least number of rows, steps times sequences, that are computed side by side, if there are as many.

A longer sequence is computed chunk by chunk, so that its parts have the same bits as in the whole.
"""


def _is_complex(array: Array) -> bool:
    return _checks.dtype_name(array).startswith("complex")


def _real_pair(xp: Any, z: Array, axis: int = -1) -> Array:
    """Join real and imaginary part along ``axis``; a real array is returned as it is."""
    return xp.concat([xp.real(z), xp.imag(z)], axis=axis) if _is_complex(z) else z


def _from_real_pair(xp: Any, pair: Array, dtype: Any) -> Array:
    """The reverse of `_real_pair` along the last axis, to an array of ``dtype``."""
    if pair.dtype == dtype:
        return pair
    half = pair.shape[-1] // 2
    return xp.astype(pair[..., :half], dtype) + 1j * xp.astype(pair[..., half:], dtype)


def _product(xp: Any, x: Array, weight: Array) -> Array:
    """x (..., K) times weight (J, K)^T, as one matrix product."""
    rows = xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    return xp.reshape(xp.matmul(rows, xp.matrix_transpose(weight)), (*x.shape[:-1], weight.shape[0]))


def _weight_gradient(xp: Any, dy: Array, x: Array) -> Array:
    """The sum over steps and rows of dy (T, B, J) times x (T, B, K)^T."""
    flat = [xp.reshape(z, (math.prod(z.shape[:2]), z.shape[2])) for z in (dy, x)]
    return xp.matmul(xp.matrix_transpose(flat[0]), flat[1])


def _matrix_scan(xp: Any, A: Array, b: Array, h0: Array, stops: Array | None, *, in_order: bool = False) -> Array:
    """h_t = A h_{t-1} + b_t, b_t alone where ``stops``, in parallel over about sqrt(T) chunks of as many steps.

    Each chunk runs twice: from zero, for what it adds to the state that leaves it, and from the state that enters it.
    Between the two runs, a power of A carries the states from chunk to chunk. If that power overflows or underflows
    but the states may not, the steps are computed ``in_order``.
    """
    T, B, N = b.shape
    if T == 0:
        return b
    # A power of two, so that the power of A takes a few squarings. Few steps are not worth the second run.
    length = 2 ** round(math.log2(T) / 2) if T >= 64 and not in_order else T
    chunks = -(-T // length)
    padding = chunks * length - T

    def cut(z: Array) -> Array:
        z = xp.concat([z, _dispatch.zeros(xp, (padding, *z.shape[1:]), z)], axis=0) if padding else z
        return xp.reshape(z, (chunks, length, *z.shape[1:]))

    steps, stopped = cut(b), None if stops is None else cut(stops)

    def advance(h: Array, j: int) -> Array:
        return steps[:, j, ...] + _zero_where(xp, None if stopped is None else stopped[:, j, ...], _product(xp, h, A))

    entering = xp.expand_dims(h0, axis=0)
    if chunks > 1:
        with np.errstate(all="ignore"):  # these numbers need not be the states
            leaving = _dispatch.zeros(xp, (chunks, B, N), b)
            for j in range(length):
                leaving = advance(leaving, j)
            power = xp.matrix_transpose(A)
            for _ in range(round(math.log2(length))):
                power = xp.matmul(power, power)
            anywhere = None if stopped is None else xp.any(stopped, axis=1)
            carried = [h0]
            for k in range(chunks - 1):
                cuts = None if anywhere is None else anywhere[k, ...]
                carried.append(leaving[k, ...] + _zero_where(xp, cuts, xp.matmul(carried[-1], power)))
            entering = xp.stack(carried)
            exact = _is_exact(xp, power, entering)
        if not _dispatch.to_numpy(exact):
            return _matrix_scan(xp, A, b, h0, stops, in_order=True)
    states = []
    for j in range(length):
        entering = advance(entering, j)
        states.append(entering)
    return xp.reshape(xp.stack(states, axis=1), (chunks * length, B, N))[:T, ...]


def _is_exact(xp: Any, power: Array, states: Array) -> Array:
    """Whether no state overflows, and the power's loss by underflow is less than a rounding of each state."""
    numbers = xp.finfo(power.dtype)
    floor = float(numbers.smallest_normal) / float(numbers.eps)
    low = xp.astype(xp.any(xp.abs(power) < floor), power.dtype)
    sizes = xp.sum(xp.abs(states), axis=-1)
    lost = floor * low * sizes[:-1, ...]
    allowed = xp.clip(float(numbers.eps) * sizes[1:, ...], min=float(numbers.smallest_normal))
    return xp.logical_and(xp.all(xp.isfinite(states)), xp.all(lost <= allowed))


def _dense_states(
    xp: Any, A: Array, b: Array, h0: Array, stops: Array | None
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """The states of a dense A, and ``pull(dh) -> dA, db, dh0``."""
    h = _matrix_scan(xp, A, b, h0, stops)

    def pull(dh: Array) -> tuple[Array, Array, Array]:
        if not dh.shape[0]:
            return xp.zeros_like(A), dh, xp.zeros_like(h0)
        # db_t = dh_t + A^T db_{t+1}, if t + 1 is no stop, is the same recurrence with time reversed.
        later = None if stops is None else xp.flip(xp.concat([stops[1:, ...], stops[:1, ...]], axis=0), axis=0)
        db = xp.flip(_matrix_scan(xp, xp.matrix_transpose(A), xp.flip(dh, axis=0), xp.zeros_like(h0), later), axis=0)
        carried = _zero_where(xp, stops, db)
        before = _zero_where(xp, stops, xp.concat([xp.expand_dims(h0, axis=0), h[:-1, ...]], axis=0))
        return _weight_gradient(xp, carried, before), db, xp.matmul(carried[0, ...], A)

    return h, pull


def _diagonal_states(xp: Any, a: Array, b: Array, h0: Array, stops: Array | None, training: bool) -> tuple[Array, Any]:
    """The states of a diagonal A, and, for training, ``pull(dh) -> da, db, dh0``."""
    factors = a if stops is None else _zero_where(xp, stops, xp.zeros_like(b) + a)
    if not training:
        return linear_scan(factors, b, h0), None
    h, pullback = linear_scan.vjp(factors, b, h0)

    def pull(dh: Array) -> tuple[Array, Array, Array]:
        (da, db, dh0), _ = pullback(dh)
        return da if stops is None else xp.sum(_zero_where(xp, stops, da), axis=(0, 1)), db, dh0

    return h, pull


def _zero_where(xp: Any, condition: Array | None, z: Array) -> Array:
    return z if condition is None else xp.where(condition, xp.zeros_like(z), z)


def _take(
    where: str,
    x: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    state: Array | None,
    output_state: str,
    lengths: Array | None,
    resets: Array | None,
) -> tuple[Any, ...]:
    """The namespace and the arrays, ready to compute with; reject arguments that do not fit."""
    _checks.given(where, x=x, A=A, B=B, C=C)
    _dispatch.namespace(where, x=x, A=A, B=B, C=C, D=D, state=state, lengths=lengths, resets=resets)
    _checks.choice(where, "output_state", output_state, OUTPUT_STATES)
    xp, x, D, lengths, resets = _arrays.take(where, {"x": x, "D": D}, {"lengths": lengths}, {"resets": resets})
    _, A, B, C, state = _arrays.take(where, {"A": A, "B": B, "C": C, "state": state}, dtypes=_checks.INEXACT)
    real = _checks.dtype_name(xp.real(A)) if _is_complex(A) else _checks.dtype_name(A)
    if real != _checks.dtype_name(x):
        raise TypeError(
            f"{where}: A has dtype {_checks.dtype_name(A)} but x has {_checks.dtype_name(x)}, expected the precision "
            "of x, real or complex"
        )
    _checks.ndim(where, "x", x, 3, "(T, B, input_size)")
    inputs = x.shape[2]
    if A.ndim not in (1, 2) or (A.ndim == 2 and A.shape[0] != A.shape[1]):
        raise ValueError(f"{where}: A has shape {tuple(A.shape)}, expected (N, N), or (N,) for a diagonal")
    if A.ndim == 2 and _is_complex(A):
        raise TypeError(
            f"{where}: A has dtype {_checks.dtype_name(A)}, expected {real}; only a diagonal may be complex"
        )
    N = A.shape[0]
    _checks.shape(where, "B", B, (N, inputs), "(N, input_size)")
    if C.ndim != 2 or C.shape[1] != N:
        raise ValueError(f"{where}: C has shape {tuple(C.shape)}, expected (output_size, N) with N = {N}")
    if D is not None:
        _checks.shape(where, "D", D, (C.shape[0], inputs), "(output_size, input_size)")
    if state is not None:
        _checks.shape(where, "state", state, (x.shape[1], N), "(B, N)")
    check_sequence(where, x, lengths, resets=resets)
    if lengths is not None and lengths.shape[0]:
        held = _dispatch.to_numpy(lengths)
        if held.min() < 0 or held.max() > x.shape[0]:
            raise ValueError(f"{where}: lengths holds {held.min()} ... {held.max()}, expected 0 ... T = {x.shape[0]}")
    return xp, x, A, B, C, D, state, lengths, resets


class _Model(NamedTuple):
    """The matrices of a model, ready for products of real arrays: a complex number is two columns."""

    A: Array
    B_pair: Array
    C_pair: Array
    """The real part of C h is C_re h_re - C_im h_im."""
    D: Array | None
    output_state: OutputState
    all_states: bool
    """Whether the states, as a real pair, follow y in its last axis."""


def _run_chunk(
    xp: Any,
    model: _Model,
    x: Array,
    lengths: Array | None,
    resets: Array | None,
    state: tuple[Array, ...],
    training: bool,
) -> tuple[Array, tuple[Array, ...], Any]:
    """Run the steps of x from the state before them; return the results of a `Run`."""
    A, B_pair, C_pair, D, output_state, all_states = model
    (h0,) = state
    T, rows, N = x.shape[0], x.shape[1], A.shape[0]
    time = xp.reshape(xp.arange(T, dtype=xp.int64, device=_dispatch.device(x)), (T, 1, 1))
    past = ends = cut = None
    if lengths is not None:
        steps = xp.reshape(lengths, (1, rows, 1))
        past, ends = time >= steps, time == steps - 1
        x = _zero_where(xp, past, x)
    if resets is not None:
        cut = xp.expand_dims(resets, axis=2)
    b = _from_real_pair(xp, _product(xp, x, B_pair), A.dtype)
    # A state past a length is not used, so it is not carried: with an unstable A it would grow.
    stops = cut if past is None else past if cut is None else xp.logical_or(cut, past)
    if A.ndim == 1:
        h, pull_states = _diagonal_states(xp, A, b, h0, stops, training)
    else:
        h, pull_states = _dense_states(xp, A, b, h0, stops)
    if output_state == "before":
        read = _zero_where(xp, cut, xp.concat([xp.expand_dims(h0, axis=0), h[:-1, ...]], axis=0)[:T, ...])
    else:
        read = h
    # Past a length y is zero, but in the gradient of C a NaN there times zero would be NaN.
    read_pair = _real_pair(xp, _zero_where(xp, past, read))
    y = _product(xp, read_pair, C_pair)
    if D is not None:
        y = y + _product(xp, x, D)
    if all_states:
        y = xp.concat([y, _real_pair(xp, h)], axis=2)
    y = _zero_where(xp, past, y)
    if ends is None:
        final = h[-1, ...] if T else h0
    else:
        final = xp.sum(_zero_where(xp, ~ends, h), axis=0) + _zero_where(xp, steps[0, ...] > 0, h0)

    def pull(
        dy: Array | None, dstate: States, later: dict[str, Array] | None
    ) -> tuple[Array, States, dict[str, Array]]:
        dfinal = xp.zeros_like(h0) if dstate[0] is None else dstate[0]
        dy = xp.zeros_like(y) if dy is None else _zero_where(xp, past, dy)
        dstates = None
        if all_states:
            dy, dstates = dy[..., : C_pair.shape[0]], _from_real_pair(xp, dy[..., C_pair.shape[0] :], A.dtype)
        dread = _zero_where(
            xp, cut if output_state == "before" else None, _product(xp, dy, xp.matrix_transpose(C_pair))
        )
        dread = _from_real_pair(xp, dread, A.dtype)
        none = _dispatch.zeros(xp, (min(T, 1), rows, N), h)
        dh = dread if output_state == "after" else xp.concat([dread[1:, ...], none], axis=0)
        last = time == T - 1 if ends is None else ends
        dh = dh + _zero_where(xp, ~last, xp.zeros_like(h) + dfinal)
        if dstates is not None:
            dh = dh + dstates
        dA, db, dh0 = pull_states(dh)
        if T and output_state == "before":
            dh0 = dh0 + dread[0, ...]
        if ends is not None:
            dh0 = dh0 + _zero_where(xp, steps[0, ...] > 0, dfinal)
        elif not T:
            dh0 = dfinal
        db_pair = _real_pair(xp, db)
        dx = _product(xp, db_pair, xp.matrix_transpose(B_pair))
        grads = {"A": dA}
        dB = xp.matrix_transpose(_from_real_pair(xp, _weight_gradient(xp, x, db_pair), A.dtype))
        grads["B"] = _arrays.contiguous(dB)
        dC = _from_real_pair(xp, _weight_gradient(xp, dy, read_pair), A.dtype)
        grads["C"] = xp.conj(dC) if _is_complex(dC) else dC
        if D is not None:
            grads["D"] = _weight_gradient(xp, dy, x)
            dx = dx + _product(xp, dy, xp.matrix_transpose(D))
        if later is not None:
            grads = {name: later[name] + gradient for name, gradient in grads.items()}
        return dx, (dh0,), grads

    return y, (final,), pull if training else None


def run_ssm(
    where: str,
    training: bool,
    x: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    state: Array | None = None,
    *,
    output_state: OutputState = "after",
    lengths: Array | None = None,
    resets: Array | None = None,
    return_states: bool = False,
    checkpoint_every: int | str | None = None,
    state_after: int | None = None,
) -> tuple[tuple[Array, ...], Any]:
    """Check the arguments and compute `ssm`; for training also its pullback. Only layers use the last two options."""
    xp, x, A, B, C, D, state, lengths, resets = _take(where, x, A, B, C, D, state, output_state, lengths, resets)
    T, rows = x.shape[:2]
    h0 = _dispatch.zeros(xp, (rows, A.shape[0]), A) if state is None else state
    C_pair = _real_pair(xp, xp.conj(C) if _is_complex(C) else C)
    return_states = _checks.flag(where, "return_states", return_states)
    model = _Model(A, _real_pair(xp, B, axis=0), C_pair, D, output_state, return_states)
    chunk = -(-CHUNK_ROWS // max(rows, 1))

    def run_chunk(steps: range, state: tuple[Array, ...], training: bool) -> tuple[Array, tuple[Array, ...], Any]:
        part, of_rows, of_steps = part_of(xp, steps, x, lengths, resets)
        return _run_chunk(xp, model, part, of_rows, of_steps, state, training)

    def run(steps: range, state: tuple[Array, ...], training: bool) -> tuple[Array, tuple[Array, ...], Any]:
        return through(run_chunk, segments_of(where, steps, chunk, chunk), state, training=training)

    segments = segments_of(where, range(T), chunk, checkpoint_every, state_after)
    recompute = checkpoint_every is not None and len(segments) > 1
    whole, (final,), pull = through(
        run, segments, (h0,), training=training, recompute=recompute, state_after=state_after
    )  # fmt: skip
    results = {"y": whole, "state": final}
    if return_states:
        parts = [_arrays.contiguous(part) for part in (whole[..., : C.shape[0]], whole[..., C.shape[0] :])]
        results |= {"y": parts[0], "states": _from_real_pair(xp, parts[1], A.dtype)}
    if pull is None:
        return tuple(results.values()), None

    def pullback(cotangents: Any) -> tuple[tuple[Array, Array], dict[str, Array]]:
        given = cotangents_of(where, cotangents, tuple(results))
        dy, dstate, *dstates = (
            _arrays.cotangent(where, name, d, output) for d, (name, output) in zip(given, results.items(), strict=True)
        )
        if dstates and (dy is not None or dstates[0] is not None):
            dy = xp.zeros_like(results["y"]) if dy is None else dy
            of_states = xp.zeros_like(results["states"]) if dstates[0] is None else dstates[0]
            dy = xp.concat([dy, _real_pair(xp, of_states)], axis=2)
        dx, (dh0,), grads = pull(dy, (dstate,), None)
        return (dx, dh0), grads

    return tuple(results.values()), pullback


def _ssm_vjp(*args: Any, **kwargs: Any) -> tuple[tuple[Array, ...], Pullback]:
    return run_ssm("ssm", True, *args, **kwargs)


@differentiable(_ssm_vjp)
def ssm(
    x: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None = None,
    state: Array | None = None,
    *,
    output_state: OutputState = "after",
    lengths: Array | None = None,
    resets: Array | None = None,
    return_states: bool = False,
) -> tuple[Array, ...]:
    """A linear state-space model: h_t = A h_{t-1} + B x_t, y_t = C h_t + D x_t.

    The states are computed in parallel over time, in chunks of about 8192 rows, steps times sequences: by products with
    powers of A if it is dense, by `gpurnn.linear_scan` if it is diagonal. With a complex diagonal, y is the real part:
    y_t = Re(C h_t) + D x_t.

    Parameters
    ----------
    x : (T, B, input_size) array
        float32 or float64.
    A : (N, N) or (N,) array
        (N,) is the diagonal of a diagonal A, which may be complex.
    B : (N, input_size) array
        Has the dtype of A.
    C : (output_size, N) array
        Has the dtype of A.
    D : (output_size, input_size) array, optional
        Has the dtype of x. Without it x does not act on y directly.
    state : (B, N) array, optional
        The state before the first step, with the dtype of A; None for zero.
    output_state : {"after", "before"}
        Which state y reads: h_t, after the update, or h_{t-1}, before it, as `scipy.signal.dlsim` does.
    lengths : (B,) integer array, optional
        The number of steps of each sequence, zero allowed. x is not read past it.
    resets : (T, B) array of bools, or of integers 0 and 1, optional
        True where a new sequence starts: the state before that step is zero. With a diagonal A this is a product with
        zero, so an infinite or NaN state becomes NaN.
    return_states : bool
        Whether the states of all steps are returned too.

    Returns
    -------
    y : (T, B, output_size) array
        Exactly zero past a sequence's length.
    state : (B, N) array
        The state after each sequence's last step.
    states : (T, B, N) array
        Only with ``return_states``: h_t of every step, exactly zero past a sequence's length. The pullback takes
        ``(dy, dstate)``, or with the states ``(dy, dstate, dstates)``, and returns ``(dx, dstate0), grads`` with
        the names A, B, C and D. The gradient of a complex number z = u + iv is dL/du + i dL/dv.

    Raises
    ------
    TypeError, ValueError
        Arrays or dtypes are unsupported or mixed, or shapes or lengths do not fit.

    Notes
    -----
    If the powers of a dense A over about sqrt(T) steps overflow or underflow but the states may not, the steps are
    computed in order, which takes longer. To detect that, a call on a GPU with a dense A and at least 64 steps waits
    for the device once, and so does its pullback: neither can be captured into a CUDA graph.

    References
    ----------
    R. E. Kalman, "A new approach to linear filtering and prediction problems", Journal of Basic Engineering 82 (1960);
    A. Gu, K. Goel, C. Ré, "Efficiently modeling long sequences with structured state spaces" (ICLR 2022).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> one = np.ones((1, 1))
    >>> y, state = gpurnn.ssm(np.ones((3, 1, 1)), 0.5 * one, one, one)
    >>> y[:, 0, 0], state
    (array([1.  , 1.5 , 1.75]), array([[1.75]]))
    >>> gpurnn.ssm(np.ones((3, 1, 1)), 0.5 * one, one, one, output_state="before")[0][:, 0, 0]
    array([0. , 1. , 1.5])
    """
    return run_ssm(
        "ssm", False, x, A, B, C, D, state, output_state=output_state, lengths=lengths, resets=resets,
        return_states=return_states,
    )[0]  # fmt: skip
