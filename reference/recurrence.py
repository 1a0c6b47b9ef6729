"""A layer's whole recurrence over time, in one direction or two, forward and backward.

The loop here handles time: the order of the steps, lengths, resets and what is carried from step to step. The cells
(`cells/`) define a step. Backpropagation through time is exact: Werbos, "Backpropagation through time: what it does and
how to do it", Proc. IEEE 78 (1990). A caller truncates it by calling the functions on parts of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell

from . import unrolled
from .buffers import empty, product
from .cells import module_of, with_zeros
from .cells.steps import Steps
from .clock import Clock, recurrence_chunk
from .unrolled import Unrolled


@dataclass(frozen=True)
class _Saved:
    """The values that the backward pass of one direction needs."""

    cell: Cell
    clock: Clock
    steps: Steps
    x1: Array
    """x with a column of ones, (T, B, I + 1)."""
    h_in: Array
    w_ih: Array
    """The factor of the backward product, (G*H, I) in the order and sign of the steps' input rows."""
    mask: Array | None


def wavefront(cell: Cell, T: int, B: int, H: int, D: int, layers: int, like: Array) -> None:
    """Return None: layers run one after another, because each uses the whole processor."""


def check_lengths(where: str, lengths: Array | None, T: int) -> None:
    """Reject lengths that are not in 0 ... T; `recurrence_forward` does so too."""
    if lengths is not None and lengths.size and (lengths.min() < 0 or lengths.max() > T):
        raise ValueError(f"{where}: lengths holds {lengths.min()} ... {lengths.max()}, expected 0 ... T = {T}")


def recurrence_forward(
    cell: Cell,
    x: Array,
    weights: tuple[Weights, ...],
    state: tuple[Array, ...],
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    exists: Array | None = None,
    repeats: bool = False,
    mask: Array | None = None,
    step_masks: Array | None = None,
    training: bool = False,
) -> tuple[Array, tuple[Array, ...], Any]:
    """Run one layer over a whole sequence.

    Parameters
    ----------
    cell : Vanilla, LSTM or GRU
    x : (T, B, I) array
    weights : one dict per direction
        Forward, then backward: the parameters by their names in ``cell.parameters``, gates in PyTorch's order. A bias
        that is missing is zero.
    state : tuple of (D, B, H) arrays
        The state before the first step of each direction: ``(h,)``, for the LSTM ``(h, c)``.
    lengths : (B,) integer array, optional
        The number of steps of each row, in any order, zero allowed. x is not read past it.
    resets : (T, B) bool array, optional
        True where a new sequence starts at step t: no state crosses from t - 1 to t, nor from t to t - 1.
    exists : (T, B) bool array, optional
        False at the steps that a row does not have, in any pattern; steps past its length do not exist either. There
        the state stays, unless a reset zeroes it, x is not read, and y is zero.
    repeats : bool
        Whether y at missing steps within the length is the h that stays, instead of zero.
    mask : (D, B, H) array, optional
        Multiplies h_{t-1} wherever it enters a product with w_hh, the same at every step.
    step_masks : (M, D, T, B, H) array, optional
        The masks that ``cell.step_masks`` names.
    training : bool
        Whether to keep the values that `recurrence_backward` needs.

    Returns
    -------
    y : (T, B, D*H) array
        h_t of each direction, exactly zero where a row has no step, except with ``repeats``.
    state : tuple of (D, B, H) arrays
        The state after each row's last step.
    saved
        The values for `recurrence_backward`; None unless ``training``.
    """
    T, B, I = x.shape
    check_lengths(cell.name, lengths, T)
    if not cell.is_plain:
        return unrolled.recurrence_forward(
            cell, x, weights, state, lengths=lengths, resets=resets, exists=exists, repeats=repeats, mask=mask,
            step_masks=step_masks, training=training,
        )  # fmt: skip
    D, H = len(weights), weights[0]["weight_hh"].shape[1]
    y = np.empty((T, B, D * H), x.dtype)
    final = tuple(np.empty_like(s) for s in state)
    saved = []
    # A column of ones makes the bias a part of the product, and its gradient a part of the weight's gradient.
    x1 = empty((T, B, I + 1), x.dtype)
    x1[:, :, :I], x1[:, :, I] = x, 1
    for d, direction in enumerate(weights):
        clock = Clock.of(T, B, d == 1, lengths, resets, exists, repeats)
        if d == 0 and clock.past is not None:
            np.copyto(x1, 0, where=clock.past)
        of_direction = _forward(
            cell, x1, with_zeros(cell, direction), tuple(s[d] for s in state), clock, None if mask is None else mask[d],
            y[:, :, d * H : (d + 1) * H], tuple(s[d] for s in final), training,
        )  # fmt: skip
        if of_direction is not None:
            saved.append(of_direction)
    return y, final, tuple(saved) if training else None


def _forward(
    cell: Cell,
    x1: Array,
    weights: dict[str, Array],
    state: tuple[Array, ...],
    clock: Clock,
    mask: Array | None,
    y: Array,
    final: tuple[Array, ...],
    training: bool,
) -> _Saved | None:
    T, B, _ = x1.shape
    w_ih, H, dtype = weights["weight_ih"], weights["weight_hh"].shape[1], x1.dtype

    steps = module_of(cell).Steps(cell, weights, T, B, training)
    w1 = steps.input_rows.factors(w_ih, steps.input_bias(weights), few=B == 1)
    # W_ih x of one chunk: a product for each step, so that a step alone gives the same bits as in a sequence.
    xw = empty((len(w1), min(recurrence_chunk(B), T), B, H), dtype)

    # Row t of `h` is the state that leaves step t, row t of `h_in` the factor of its product with w_hh. Training keeps
    # them in separate arrays, so that a caller's changes to y cannot affect the gradients.
    h, h_in, h_prev = y, y, state[0]
    if training:
        states = empty((T + 1, B, H), dtype)
        h, h_in = (states[:-1], states[1:]) if clock.backwards else (states[1:], states[:-1])
        h_prev = states[-1] if clock.backwards else states[0]
        h_prev[...] = state[0]
    differs = mask is not None or clock.cut is not None
    if differs:
        h_in = empty((T if training else 1, B, H), dtype)

    cells = [] if steps.c is None else [steps.c]
    for c, initial in zip(cells, state[1:], strict=True):
        c[...] = initial
    with np.errstate(**steps.floating_point_errors):
        for chunk, order in clock.chunks():
            np.matmul(x1[chunk], w1[:, None], out=xw[:, : chunk.stop - chunk.start])
            for t in order:
                cut, past = clock.at(clock.cut, t), clock.at(clock.past, t)
                if cut is not None:
                    h_prev = np.where(cut, dtype.type(0), h_prev)
                    for c in cells:
                        np.copyto(c, 0, where=cut)
                entering = h_prev
                if differs:
                    entering = np.multiply(h_prev, 1 if mask is None else mask, out=h_in[t if training else 0])
                cells_before = [] if past is None else [c.copy() for c in cells]
                steps.forward(t, xw[:, t - chunk.start], entering, h_prev, h[t])
                if past is not None:
                    np.copyto(h[t], h_prev, where=past)
                    for c, before in zip(cells, cells_before, strict=True):
                        np.copyto(c, before, where=past)
                h_prev = h[t]
    for into, value in zip(final, (h_prev, *cells), strict=True):
        into[...] = value
    if training:
        y[...] = h
    if clock.zero is not None:
        np.copyto(y, 0, where=clock.zero)
    if clock.past is not None and training:
        # The gradients there are zero, but NaN or infinity times zero would spread to the weights' gradients.
        for operand in (h_in, *steps.operands):
            np.copyto(operand, 0, where=clock.past)
    return _Saved(cell, clock, steps, x1, h_in, steps.input_rows.signed(w_ih), mask) if training else None


def recurrence_backward(
    saved: Any,
    dy: Array | None,
    dstate: tuple[Array | None, ...],
    dweights: tuple[Mapping[str, Array], ...] | None = None,
) -> tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]:
    """Backpropagate through a layer's whole recurrence.

    Parameters
    ----------
    saved
        The values from `recurrence_forward`; they are not changed.
    dy : (T, B, D*H) array, optional
        The gradient of y; it is not read where y is zero. None for zero.
    dstate : tuple of (D, B, H) arrays
        The gradient of the final state; None for zero.
    dweights : one dict per direction, optional
        The gradients of the weights from the steps after these, to which the gradients from these steps are added. See
        `recurrence_chunk`.

    Returns
    -------
    dx : (T, B, I) array
    dweights : one dict per direction
        The gradients of the parameters by name, with gradients of biases even if there were none.
    dstate : tuple of (D, B, H) arrays
        The gradient of the initial state.
    """
    first = saved[0]
    if isinstance(first, Unrolled):
        return unrolled.recurrence_backward(saved, dy, dstate, dweights)
    T, B, H = first.h_in.shape
    dx = np.empty((T, B, first.w_ih.shape[1]), first.w_ih.dtype)
    dstate0 = tuple(np.zeros((len(saved), B, H), dx.dtype) for _ in dstate)
    gradients = []
    for d, kept in enumerate(saved):
        carried = tuple(s[d] for s in dstate0)
        for into, given in zip(carried, dstate, strict=True):
            if given is not None:
                into[...] = given[d]
        direction_dy = None if dy is None else dy[:, :, d * H : (d + 1) * H]
        later = None if dweights is None else dweights[d]
        dx_d = dx if d == 0 else np.empty_like(dx)
        gradients.append(_backward(kept, direction_dy, carried, dx_d, later))
        if d > 0:
            dx += dx_d
    return dx, tuple(gradients), dstate0


def _backward(
    kept: _Saved,
    dy: Array | None,
    carried: tuple[Array, ...],
    dx: Array,
    later: Mapping[str, Array] | None,
) -> dict[str, Array]:
    """The gradients of one direction's weights; writes dx, and ``carried`` becomes the initial state's gradient."""
    clock, steps = kept.clock, kept.steps
    T, B, H = kept.h_in.shape
    (rows, I), dtype = kept.w_ih.shape, kept.w_ih.dtype
    dw1, shapes = empty((rows, I + 1), dtype), kept.cell.shapes(input_size=I, hidden_size=H)
    # The gradients of the weights in the steps; the gradients of weight_ih and bias_ih are in dw1.
    dhidden = {name: np.empty(shape, dtype) for name, shape in shapes.items() if not name.endswith("_ih")}
    if later is not None:
        dw1[:, :I], dw1[:, I] = later["weight_ih"], later["bias_ih"]
        for name, gradient in dhidden.items():
            gradient[...] = later[name]
    first = later is None
    # The gradients of one chunk's gates, in the order of the steps.
    gates = empty((min(recurrence_chunk(B), T), B, steps.slots, H), dtype)
    scratch = empty((2, B, H), dtype)
    dh = carried[0]
    dc = carried[1] if len(carried) > 1 else None
    for chunk, order in clock.chunks(back=True):
        for t in order:
            cut, past, zero = clock.at(clock.cut, t), clock.at(clock.past, t), clock.at(clock.zero, t)
            da_t = gates[t - chunk.start]
            if dy is not None:
                np.add(dh, dy[t], out=dh, where=True if zero is None else ~zero)
            if past is not None:
                stays = [(s, s.copy()) for s in carried]
            steps.backward(t, da_t, dh, dc, scratch, kept.mask)
            if past is not None:
                np.copyto(da_t, 0, where=past[:, :, None])
                for s, before in stays:
                    np.copyto(s, before, where=past)
            if cut is not None:
                for s in carried:
                    np.copyto(s, 0, where=cut)

        n = len(order) * B
        da = gates.reshape(-1, steps.slots * H)[:n]
        input_da = da[:, :rows]
        np.matmul(input_da, kept.w_ih, out=dx[chunk].reshape(n, I))
        steps.input_rows.accumulate(product(input_da.T, kept.x1[chunk].reshape(n, I + 1)), dw1, first)
        steps.hidden_gradients(chunk, da, kept.h_in[chunk].reshape(n, H), dhidden, first)
        first = False

    dweights = {"weight_ih": dw1[:, :I].copy(), "bias_ih": dw1[:, I].copy(), **dhidden}
    db_hh = dweights["bias_ih"].copy()
    db_hh[steps.hidden_bias] = dhidden["bias_hh"][steps.hidden_bias]
    dweights["bias_hh"] = db_hh
    return {name: dweights[name] for name in shapes}
