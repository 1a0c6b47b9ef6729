"""Layers of a stack at once: while a layer is at a chunk of steps, the one above it is at the chunk before.

One layer of a small batch leaves most of a GPU idle: its blocks wait for each other more than they compute. Here each
layer has a share of the multiprocessors, and its plan is one for that share. A step takes longer there; it is predicted
whether the layers together take less time all the same.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from gpurnn._contract import Array
from gpurnn.cells import Cell

from .. import dtypes
from ..devices import Device, launch_seconds
from ..launch import side_by_side
from . import plan
from .plan import DoesNotFit, FusedPlan, Problem

_OPERATIONS = {False: 12, True: 24}
"""Roughly those on arrays that the host launches for a chunk of a layer besides its steps, forward and backward."""

_CHUNK_SECONDS = 20e-6
"""Assumed of a GPU for a chunk of a layer besides its steps: it waits for another stream, launches, loads weights."""

_MOST_CHUNKS = 64

_WORTH = 0.9
"""Of the time of one layer after another, the most that layers at once are predicted to take where they are chosen."""


@dataclass(frozen=True)
class Decision:
    """How many layers run at once, in chunks of how many steps; seconds are predicted, of a pass of all layers."""

    layers: int
    chunk: int
    seconds: float
    one_by_one: float


def decide(problem: Problem, layers: int, device: Device, chunk: int | None = None) -> Decision | None:
    """The decision for a pass of a stack, in chunks of that many steps if given; None for one layer after another."""
    exact = problem.dtype.accumulator == problem.dtype.name  # the state is carried on as it is stored
    if problem.D > 1 or layers < 2 or problem.T < 2 or problem.cell.sums_over_units or problem.cell.elementwise:
        return None
    if not exact or not problem.B * problem.H:
        return None
    return _decide(problem, layers, device, chunk, plan.forced(), launch_seconds())


@functools.lru_cache(1024)
def _decide(
    problem: Problem, layers: int, device: Device, chunk: int | None, forced: str | None, launch: float
) -> Decision | None:
    """The arguments after ``chunk`` are what `plan` reads besides."""
    try:
        alone = plan.predicted(plan.choose(problem, device), problem, device).seconds
    except DoesNotFit:  # which the launch says
        return None
    one_by_one, T, host = layers * problem.T * alone, problem.T, _OPERATIONS[problem.backward] * launch
    chunks = {-(-T // n) for n in range(2, min(T, _MOST_CHUNKS) + 1)} if chunk is None else {chunk}
    found = []
    for at_once in range(2, layers + 1):
        share = plan.share_of(device, at_once)
        if share is None:
            break
        try:
            chosen = plan.choose(problem, share)
        except DoesNotFit:
            break
        if not isinstance(chosen, FusedPlan) or chosen.exchange == "launch":
            break
        step = plan.predicted(chosen, problem, share).seconds
        for steps in chunks:
            count, seconds = -(-T // steps), 0.0
            for first in range(0, layers, at_once):
                running = min(at_once, layers - first)
                seconds += (count + running - 1) * max(steps * step + running * _CHUNK_SECONDS, running * host)
            found.append(Decision(at_once, steps, seconds, one_by_one))
    best = min(found, key=lambda decision: decision.seconds, default=None)
    return best if best is not None and best.seconds <= _WORTH * one_by_one else None


@dataclass(frozen=True)
class Wavefront:
    """A call of a stack whose layers run at once; see `gpurnn._contract.Wavefront`."""

    layers: int
    backward_layers: int
    chunk: int
    T: int
    like: Array
    kept: dict[Any, Any] = field(default_factory=dict)
    """What the chunks of a layer have in common."""

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """`gpurnn._contract.Wavefront.at_once`."""
        token = _current.set(self)
        try:
            with plan.shared(self.T, self.layers, self.backward_layers), side_by_side(self.like):
                yield
        finally:
            _current.reset(token)


_current: contextvars.ContextVar[Wavefront | None] = contextvars.ContextVar("wavefront", default=None)


def once(key: Any, make: Callable[[], Any]) -> Any:
    """What ``make`` makes; of the chunks of a layer that runs at once with others, once for all of them."""
    current = _current.get()
    if current is None:
        return make()
    if key not in current.kept:
        current.kept[key] = make()
    return current.kept[key]


def wavefront(cell: Cell, T: int, B: int, H: int, D: int, layers: int, like: Array) -> Wavefront | None:
    """Whether layers of a stack run at once, and how; see `gpurnn._contract.Wing.wavefront`."""
    problem, device = Problem(cell, T, B, H, D, dtypes.of(like)), plan.device_of(like)
    forward = decide(problem, layers, device)
    if forward is None:
        return None
    backward = decide(replace(problem, backward=True), layers, device, forward.chunk)
    return Wavefront(forward.layers, 1 if backward is None else backward.layers, forward.chunk, T, like)
