"""Recurrences whose units do not read each other's states, built from a wing's dense products and its loop over steps.

The products are computed many steps at a time, before the steps that need them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from .. import _arrays, _dispatch, cells
from .._contract import Array, Weights, Wing
from . import _masks
from ._segments import Pull, States, part_of, segments_of, through


def of_cell(cell: cells.Cell, wing: Wing) -> Wing:
    """The wing that runs the recurrence of a cell."""
    return cast("Wing", Elementwise(wing)) if cell.elementwise else wing


class _Saved(NamedTuple):
    """The values that the backward pass needs."""

    xp: Any
    pulls: list[Any]
    """The `Pull` of each direction."""
    hidden: Array | None
    """(T, B, 1): y is zero, whatever h is."""


class _Steps(NamedTuple):
    """The steps of one direction, in its order."""

    x: Array
    exists: Array | None
    """(T, B): True where the row has the step; elsewhere its state stays."""
    resets: Array | None
    """(T, B): True where no state enters the step from the previous one."""


class Elementwise:
    """A wing with the recurrences of cells whose units do not read each other; everything else comes from ``wing``."""

    def __init__(self, wing: Wing) -> None:
        self._wing = wing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wing, name)

    def recurrence_forward(
        self,
        cell: cells.Cell,
        x: Array,
        weights: tuple[Weights, ...],
        state: tuple[Array, ...],
        *,
        lengths: Array | None = None,
        resets: Array | None = None,
        exists: Array | None = None,
        repeats: bool = False,
        mask: Array | None = None,
        step_masks: None = None,
        training: bool = False,
    ) -> tuple[Array, tuple[Array, ...], _Saved | None]:
        """`Wing.recurrence_forward`."""
        wing, T = self._wing, x.shape[0]
        wing.check_lengths(cell.name, lengths, T)
        xp = _dispatch.namespace(cell.name, x=x)
        shown = _masks.exist(xp, x, lengths, None if repeats else exists)
        hidden = None if shown is None else xp.expand_dims(xp.logical_not(shown), axis=2)
        length = wing.recurrence_chunk(x.shape[1])
        outputs, finals, pulls = [], [], []
        for d, own in enumerate(weights):
            steps = _steps_of(xp, d, x, lengths, resets, exists)

            run = functools.partial(_part, wing, xp, cell, own, steps, None if mask is None else mask[d, ...])
            segments = segments_of(cell.name, range(T), length, length)
            h, final, pull = through(run, segments, (state[0][d, ...],), training=training)
            outputs.append(_masks.zero_where(xp, hidden, _masks.from_the_end(xp, h) if d else h))
            finals.append(final[0])
            pulls.append(pull)
        y = outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=2)
        return y, (xp.stack(finals),), _Saved(xp, pulls, hidden) if training else None

    def recurrence_backward(
        self,
        saved: _Saved,
        dy: Array | None,
        dstate: tuple[Array | None, ...],
        dweights: tuple[Mapping[str, Array], ...] | None = None,
    ) -> tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]:
        """`Wing.recurrence_backward`."""
        xp, dx, gradients, dstate0 = saved.xp, None, [], []
        width = 0 if dy is None else dy.shape[2] // len(saved.pulls)
        for d, pull in enumerate(saved.pulls):
            own = None
            if dy is not None:
                own = _masks.zero_where(xp, saved.hidden, dy[:, :, d * width : (d + 1) * width])
                own = _masks.from_the_end(xp, own) if d else _arrays.contiguous(own)
            dfinal = None if dstate[0] is None else dstate[0][d, ...]
            of_direction, (dh0,), of_weights = pull(own, (dfinal,), None if dweights is None else dweights[d])
            if d:
                of_direction = _masks.from_the_end(xp, of_direction)
            dx = of_direction if dx is None else dx + of_direction
            gradients.append(of_weights)
            dstate0.append(dh0)
        return cast("Array", dx), tuple(gradients), (xp.stack(dstate0),)


def _steps_of(
    xp: Any, direction: int, x: Array, lengths: Array | None, resets: Array | None, exists: Array | None
) -> _Steps:
    if direction:
        x, resets, exists = _masks.backwards(xp, x, lengths, resets, exists)
    else:
        if resets is not None and lengths is not None:  # past a length the state stays
            resets = xp.logical_and(resets, _masks.exist(xp, x, lengths, None))
        exists = _masks.exist(xp, x, lengths, exists)
    return _Steps(x, exists, resets)


def _part(
    wing: Wing,
    xp: Any,
    cell: cells.Cell,
    weights: Weights,
    whole: _Steps,
    mask: Array | None,
    part: range,
    before: tuple[Array, ...],
    training: bool,
) -> tuple[Array, tuple[Array, ...], Pull | None]:
    """Run some steps of a direction from the state before them, as a `Run`."""
    x, _, *of_steps = part_of(xp, part, whole.x, None, whole.exists, whole.resets)
    steps, (h0,) = _Steps(x, *of_steps), before
    x = _masks.zero_where(xp, _absent(xp, steps), x)
    (T, B, I), H = x.shape, h0.shape[1]
    rows, weight = xp.reshape(x, (T * B, I)), weights["weight_ih"]
    a = xp.reshape(wing.dense_forward(rows, weight, weights.get("bias_ih")), (T, B, cell.gates * H))
    if isinstance(cell, cells.IndRNN):
        h, pull_states = _independent(wing, xp, cell, weights["weight_hh"], a, steps, h0, mask, training)
    else:
        h, pull_states = _minimal(wing, cell, a, steps, h0, training)
    final = xp.asarray(h[-1, ...] if T else h0, copy=True)
    if not training:
        return h, (final,), None

    def pull(
        dh: Array | None, dstate: States, later: dict[str, Array] | None
    ) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
        (dfinal,) = dstate
        dh = xp.zeros_like(h) if dh is None else dh
        if dfinal is not None and T:
            dh = xp.concat([dh[:-1, ...], dh[-1:, ...] + dfinal], axis=0)
        da, dh0, gradients = pull_states(dh)
        if dfinal is not None and not T:
            dh0 = dfinal
        drows, dweight, dbias = wing.dense_backward(rows, weight, xp.reshape(da, (T * B, cell.gates * H)))
        gradients = {"weight_ih": dweight, **gradients, "bias_ih": dbias}
        if later is not None:
            gradients = {name: later[name] + gradient for name, gradient in gradients.items()}
        return xp.reshape(drows, (T, B, I)), (dh0,), gradients

    return h, (final,), pull


PullStates = Callable[[Array], tuple[Array, Array, dict[str, Array]]]
"""Maps the gradient of h to the gradients of the gates' arguments (T, B, G*H), the initial state, and weights."""


def _independent(
    wing: Wing,
    xp: Any,
    cell: cells.IndRNN,
    weight: Array,
    a: Array,
    steps: _Steps,
    h0: Array,
    mask: Array | None,
    training: bool,
) -> tuple[Array, PullStates]:
    """h_t = f(a_t + u m h_{t-1}) + leak h_{t-1}, with the mask m of a dropout."""
    u = xp.zeros_like(h0) + (weight if mask is None else weight * mask)
    h, saved = wing.independent_forward(cell, a, u, h0, resets=steps.resets, exists=steps.exists, training=training)

    def pull(dh: Array) -> tuple[Array, Array, dict[str, Array]]:
        da, du, dh0 = wing.independent_backward(saved, dh)
        return da, dh0, {"weight_hh": xp.sum(du if mask is None else du * mask, axis=0)}

    return h, pull


def _minimal(
    wing: Wing, cell: cells.Cell, a: Array, steps: _Steps, h0: Array, training: bool
) -> tuple[Array, PullStates]:
    """h_t = kept h_{t-1} + z n_t."""
    h, saved = wing.minimal_forward(cell, a, h0, resets=steps.resets, exists=steps.exists, training=training)

    def pull(dh: Array) -> tuple[Array, Array, dict[str, Array]]:
        return (*wing.minimal_backward(saved, dh), {})

    return h, pull


def _absent(xp: Any, steps: _Steps) -> Array | None:
    return None if steps.exists is None else xp.expand_dims(xp.logical_not(steps.exists), axis=2)
