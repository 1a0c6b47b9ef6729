"""The predicted time of a step of a recurrence, from the public figures of a device. Nothing is measured.

A recurrence is a chain: no part of step t can begin before step t - 1 has ended. So the time of a step is that of its
arithmetic or of the bytes that it moves, whichever is longer, plus that of the exchange: h_{t-1} has to get to every
block that multiplies it, once for each product. Schedules differ in the exchange and in where the recurrent weights are
stored; see ``recurrence/fused.cu``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..devices import Device

if TYPE_CHECKING:
    from .plan import FusedPlan, Problem

LAUNCH = 2.5e-6
_BARRIER = 1.2e-6
_BLOCK_BARRIER = 0.1e-6
"""Assumed seconds from one dependent kernel to the next, of a barrier of the whole grid with the operand's way through
the L2 cache, and of a barrier within a block. These are commonly reported orders of magnitude, not measured here."""

_EXCHANGE = {"launch": LAUNCH, "grid": _BARRIER, "block": _BLOCK_BARRIER}

_L2_BYTES_PER_CLOCK = 32
"""Assumed bytes that one multiprocessor gets from the L2 cache in a clock."""

_SHARED_BYTES_PER_CLOCK = 128
"""Bytes that one multiprocessor gets from its shared memory in a clock: 32 banks of 4 bytes."""


@dataclass(frozen=True)
class Prediction:
    """The predicted time of one forward step, in seconds: the exchanges, and the longer of arithmetic and bytes."""

    arithmetic: float
    bytes_moved: int
    bytes: float
    exchange: float
    launches: int
    """In the whole forward pass."""

    @property
    def seconds(self) -> float:
        return self.exchange + max(self.arithmetic, self.bytes)

    @property
    def bound_by(self) -> str:
        """The term that is the largest."""
        terms = {"arithmetic": self.arithmetic, "bytes": self.bytes, "exchange": self.exchange}
        return max(terms, key=lambda term: terms[term])


def stepwise(problem: Problem, device: Device) -> Prediction:
    """The terms of a step of the schedule of ``recurrence/stepwise.cu``."""
    phases = len(problem.cell.phases)
    from_l2 = problem.weight_bytes + 2 * _step_bytes(problem)
    from_memory = _step_bytes(problem) + (problem.weight_bytes if problem.weight_bytes > device.l2_bytes else 0)
    return Prediction(
        arithmetic=problem.flops / device.peak_flops(problem.dtype.accumulator),
        bytes_moved=from_memory + from_l2,
        bytes=_seconds(device, device.multiprocessors, from_memory, from_l2, 0),
        exchange=(problem.D + 1) * phases * LAUNCH,
        launches=1 + problem.T * phases * (problem.D + 1),
    )


def fused(plan: FusedPlan, problem: Problem, device: Device) -> Prediction:
    """The terms of a step of a schedule of ``recurrence/fused.cu``."""
    launch, variant = plan.forward, plan.forward.variant
    phases, size = len(problem.cell.phases), problem.dtype.itemsize
    blocks = math.prod(launch.grid)
    processors = min(blocks, device.multiprocessors)
    share = processors / device.multiprocessors

    from_memory, from_l2 = _step_bytes(problem), 0
    if plan.exchange != "block":  # each block reads the operands of its rows
        from_l2 = blocks * launch.rows * problem.H * phases * size
    if plan.exchange == "launch":  # the other schedules read the weights once, before the first step
        from_l2 += problem.weight_bytes * launch.grid[1]
        from_memory += problem.weight_bytes if problem.weight_bytes > device.l2_bytes else 0
    reads = (8 + variant.columns) / (8 * variant.columns)  # of shared memory or L1, per multiplication
    return Prediction(
        arithmetic=problem.flops / (device.peak_flops(problem.dtype.accumulator) * share),
        bytes_moved=from_memory + from_l2,
        bytes=_seconds(device, processors, from_memory, from_l2, int(problem.flops / 2 * reads * size)),
        exchange=phases * _EXCHANGE[plan.exchange],
        launches=len(plan.launches(problem.T * phases, phases)) + (plan.exchange == "launch"),
    )


def _step_bytes(problem: Problem) -> int:
    """Each unit reads its part of W_ih x and writes its output, whatever the schedule."""
    return problem.D * problem.B * problem.H * (problem.cell.gates + 1) * problem.dtype.itemsize


def _seconds(device: Device, processors: int, from_memory: int, from_l2: int, from_shared: int) -> float:
    """For these bytes from each kind of memory, which ``processors`` multiprocessors read at the same time."""
    return max(
        from_memory / device.bandwidth,
        from_l2 / (_L2_BYTES_PER_CLOCK * processors * device.clock_hz),
        from_shared / (_SHARED_BYTES_PER_CLOCK * processors * device.clock_hz),
    )
