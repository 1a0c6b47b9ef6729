"""Layers of a stack at once: while a layer is at a chunk of steps, the one above it is at the chunk before.

One layer of a small batch leaves most of a GPU idle: its blocks wait for each other more than they compute. Here each
layer has a share of the multiprocessors, and a plan for that share. A step takes longer there. The prediction decides
whether the layers together still take less time.
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
from ..streams import side_by_side
from . import plan
from .plan import DoesNotFit, FusedPlan, Problem

_OPERATIONS, _NORM_OPERATIONS = {False: 10, True: 18}, {False: 3, True: 15}
"""Roughly the array operations that the host launches for a chunk of a layer besides its steps, by ``backward``; and
those that layer norm adds."""

_CHUNK_SECONDS = 20e-6
"""Assumed GPU time for a chunk of a layer besides its steps: waiting for another stream, launches, loading weights."""

_MOST_CHUNKS = 64

_WORTH = 0.9
"""Layers run at once if they are predicted to take at most this share of the time of one layer after another."""


@dataclass(frozen=True)
class Decision:
    """How a pass of a stack runs: so many layers at once, 1 or more, in chunks of so many steps.

    The times are predictions, in seconds for all steps.
    """

    layers: int
    chunk: int
    seconds: float
    one_by_one: float


def decide(problem: Problem, layers: int, device: Device) -> tuple[Decision, Decision] | None:
    """The decisions for the forward pass of a stack, of which ``problem`` is a layer, and for the backward pass.

    None if one layer runs after another. Training and inference decide alike, so that they give the same bits.
    """
    exact = problem.dtype.accumulator == problem.dtype.name  # chunks hand on the state in the arrays' dtype
    if problem.D > 1 or layers < 2 or problem.T < 2 or problem.cell.elementwise:
        return None
    if not exact or not problem.B * problem.H:
        return None
    return _decide(problem, layers, device)


def _decide(problem: Problem, layers: int, device: Device) -> tuple[Decision, Decision] | None:
    T, launch = problem.T, launch_seconds()
    forwards, backwards = (
        _step_seconds(replace(problem, T=plan.LONG, backward=back), layers, device, plan.forced(), launch)
        for back in (False, True)
    )
    if len(forwards) < 2 or not backwards:
        return None
    host = {
        backward: (operations + problem.cell.normalises * _NORM_OPERATIONS[backward]) * launch
        for backward, operations in _OPERATIONS.items()
    }
    found = [
        (_best(forwards, 2, layers, T, chunk, host[False]), _best(backwards, 1, layers, T, chunk, host[True]))
        for chunk in sorted({-(-T // n) for n in range(2, min(T, _MOST_CHUNKS) + 1)})
    ]
    best = min(found, key=lambda both: both[0].seconds + both[1].seconds)
    gain = sum(of_pass.one_by_one - of_pass.seconds for of_pass in best)
    return best if gain >= 0 and best[0].seconds <= _WORTH * best[0].one_by_one else None


@functools.lru_cache(1024)
def _step_seconds(problem: Problem, layers: int, device: Device, forced: str | None, launch: float) -> dict[int, float]:
    """The predicted time of a step of one layer, by the number of layers that run at once, as far as plans allow.

    The last two arguments are for the cache: `plan` reads them too.
    """
    seconds: dict[int, float] = {}
    for at_once in range(1, layers + 1):
        share = plan.share_of(device, at_once)
        if share is None:
            break
        try:
            chosen = plan.choose(problem, share)
        except DoesNotFit:  # the schedule is fixed; if it does not fit the whole device either, the launch says why
            break
        if at_once > 1 and (not isinstance(chosen, FusedPlan) or chosen.exchange == "launch"):
            break
        seconds[at_once] = plan.predicted(chosen, problem, share).seconds
    return seconds


def _best(steps: dict[int, float], fewest: int, layers: int, T: int, chunk: int, host: float) -> Decision:
    """The fastest decision, from the times of a step. ``host`` is the CPU time of a chunk of a layer."""
    count, found = -(-T // chunk), []
    for at_once, step in steps.items():
        seconds = 0.0
        for first in range(0, layers, at_once):
            running = min(at_once, layers - first)
            seconds += (count + running - 1) * max(chunk * step + running * _CHUNK_SECONDS, running * host)
        if at_once >= fewest:
            found.append(Decision(at_once, chunk, seconds, layers * T * steps[1]))
    return min(found, key=lambda decision: decision.seconds)


@dataclass(frozen=True)
class Wavefront:
    """A call of a stack whose layers run at once; see `gpurnn._contract.Wavefront`."""

    layers: int
    backward_layers: int
    chunk: int
    like: Array
    kept: dict[Any, Any] = field(default_factory=dict)
    """Values that the chunks of a layer share."""

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """`gpurnn._contract.Wavefront.at_once`."""
        token = _current.set(self)
        try:
            with plan.shared(self.layers, self.backward_layers), side_by_side(self.like):
                yield
        finally:
            _current.reset(token)


_current: contextvars.ContextVar[Wavefront | None] = contextvars.ContextVar("wavefront", default=None)


def once(key: Any, make: Callable[[], Any]) -> Any:
    """The result of ``make``. The chunks of a layer that runs at once with others share one result."""
    current = _current.get()
    if current is None:
        return make()
    if key not in current.kept:
        current.kept[key] = make()
    return current.kept[key]


def wavefront(cell: Cell, T: int, B: int, H: int, D: int, layers: int, like: Array) -> Wavefront | None:
    """Whether layers of a stack run at once, and how; see `gpurnn._contract.Wing.wavefront`."""
    problem, device = Problem(cell, T, B, H, D, dtypes.of(like)), plan.device_of(like)
    decided = decide(problem, layers, device)
    if decided is None:
        return None
    forward, backward = decided
    return Wavefront(forward.layers, backward.layers, forward.chunk, like)
