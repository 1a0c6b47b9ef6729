"""Compute a sequence in segments of steps: for gradient checkpointing in time, and for the state between two steps.

The caller computes a segment; this module orders the segments, and passes states and gradients between them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from .. import _checks, _dispatch
from .._contract import Array

States = tuple["Array | None", ...]
"""The arrays of a state, or of its gradient, where None means zero."""

Pull = Callable[["Array | None", States, Any], tuple[Array, tuple[Array, ...], Any]]
"""Maps dy, the gradient of the state after the steps, and the weights' gradients from later steps (None if there are
none) to dx, the gradient of the state before the steps, and the weights' gradients including these steps."""

Run = Callable[[range, Any, bool], tuple[Array, Any, Any]]
"""Maps steps, the state before them, and whether gradients are wanted, to y of these steps, the state after them, and
their `Pull`, or None if gradients are not wanted."""


def segments_of(
    where: str, steps: range, chunk: int, checkpoint_every: int | str | None = None, state_after: int | None = None
) -> list[range]:
    """The segments to run: all steps at once, or several ranges. There is at least one, which may be empty.

    Parameters
    ----------
    where : str
        The caller's public name, for messages.
    chunk : int
        The lengths of segments are multiples of this number of steps, so that a part of a sequence has the same bits as
        in the whole.
    checkpoint_every : int or "sqrt", optional
        The least length of a segment; "sqrt" is the root of the number of steps. None means one segment of all steps.
    state_after : int, optional
        A step at which a segment ends, so that the state there is known.
    """
    T, length = len(steps), checkpoint_every
    if isinstance(length, str):
        if length != "sqrt":
            raise ValueError(f"{where}: checkpoint_every is {length!r}, expected a number of steps, 'sqrt' or None")
        length = math.isqrt(max(T - 1, 0)) + 1
    if length is not None:
        length = -(-_checks.integer_at_least(where, "checkpoint_every", length, 1) // chunk) * chunk
    borders = [0, T]
    if state_after is not None:
        state_after = _checks.integer_at_least(where, "state_after", state_after, 0)
        if state_after > T:
            raise ValueError(f"{where}: state_after is {state_after}, expected at most T = {T}")
        borders.insert(1, state_after)
    segments = [
        steps[start : min(start + (length or stop), stop)]
        for begin, stop in itertools.pairwise(borders)
        for start in range(begin, stop, length or max(T, 1))
    ]
    return segments or [steps]


def part_of(xp: Any, steps: range, x: Array, lengths: Array | None, *of_steps: Array | None) -> tuple[Any, ...]:
    """The part of x, lengths and arrays (T, ...), such as resets, in a range of steps."""
    if len(steps) == x.shape[0]:
        return x, lengths, *of_steps  # unchanged, so that lengths out of range are still detected
    part = slice(steps.start, steps.stop)
    return (
        x[part, ...],
        None if lengths is None else xp.clip(lengths - steps.start, 0, len(steps)),
        *(None if array is None else array[part, ...] for array in of_steps),
    )


class Whole:
    """An array over all steps, assembled from the arrays of the segments, in any order."""

    def __init__(self, segments: list[range]) -> None:
        self.first, self.steps = segments[0].start, sum(map(len, segments))
        self.array: Any = None

    def put(self, steps: range, part: Array) -> None:
        if len(steps) == self.steps:
            self.array = part
            return
        if self.array is None:
            xp = _dispatch.namespace("segments", part=part)
            self.array = _dispatch.zeros(xp, (self.steps, *part.shape[1:]), part)
        self.array[steps.start - self.first : steps.stop - self.first, ...] = part


def through(
    run: Run,
    segments: list[range],
    state: Any,
    *,
    training: bool,
    recompute: bool = False,
    state_after: int | None = None,
) -> tuple[Array, Any, Pull | None]:
    """Run the segments in order, and in the backward pass in reverse.

    Parameters
    ----------
    run : callable
        See `Run`.
    segments : list of range
        Adjacent, in order; see `segments_of`.
    state : tuple of arrays
        The state before the first step.
    training : bool
        Whether the backward pass is wanted.
    recompute : bool
        Whether to keep only the state before each segment, and recompute the segment in the backward pass: gradient
        checkpointing.
    state_after : int, optional
        The number of steps after which the state is returned, a border of segments; by default all steps.

    Returns
    -------
    y : array
    state : tuple of arrays
        The state after ``state_after`` steps.
    pull
        The `Pull` of the whole sequence, None unless ``training``. It may be called more than once.
    """
    end = segments[-1].stop
    state_after = end if state_after is None else state_after
    before, pulls, y = [], [], Whole(segments)
    for steps in segments:
        before.append(state)
        part, state, pull_segment = run(steps, state, training and not recompute)
        pulls.append(pull_segment)
        y.put(steps, part)
    if state_after != end:
        state = next(s for steps, s in zip(segments, before, strict=True) if steps.start == state_after)
    if not training:
        return y.array, state, None

    def pull(dy: Array | None, dstate_after: States, dweights: Any) -> tuple[Array, tuple[Array, ...], Any]:
        dx = Whole(segments)
        dstate: Any = dstate_after if state_after == end else (None,) * len(dstate_after)
        for steps, state_before, pull_segment in reversed(list(zip(segments, before, pulls, strict=True))):
            if recompute:
                _, _, pull_segment = run(steps, state_before, True)
            first = segments[0].start
            dpart = None if dy is None else dy[steps.start - first : steps.stop - first, ...]
            part, dstate, dweights = pull_segment(dpart, dstate, dweights)
            dx.put(steps, part)
            if steps.start == state_after != end:
                dstate = _added(dstate, dstate_after)
        return dx.array, dstate, dweights

    return y.array, state, pull


def _added(a: States, b: States) -> States:
    """The sum of two gradients of a state."""
    return tuple(s if t is None else t if s is None else s + t for s, t in zip(a, b, strict=True))
