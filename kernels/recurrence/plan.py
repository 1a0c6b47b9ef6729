"""Which schedule runs a recurrence on a device, and how it is cut into blocks.

`make` plans one schedule: the grids of its kernels, if they fit the device. `choose` takes the schedule whose predicted
time (`predict.py`) is the shortest.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import is_cupy_array

from gpurnn.cells import Cell

from .. import devices
from ..devices import Device
from ..dtypes import Dtype
from . import predict
from .predict import Prediction

SCHEDULES = ("stepwise", "step-fused", "block", "persistent")
EXCHANGE = {"step-fused": "launch", "block": "block", "persistent": "grid"}
"""The exchange of each schedule of ``recurrence/fused.cu``, as a `Variant` has it."""

TILE_ROWS = 8
"""Weight rows of a tile, see ``recurrence/product.cuh``."""

PARTS = (1, 2, 4, 8)
"""Into how many parts a product's columns may be cut, which the warps of a block share out."""

_BLOCK_THREADS = 256
"""The most of a block, unless many rows need more: with so few, a thread has registers for all that it computes."""

_STEP_FUSED_UNITS, _STEP_FUSED_ROWS = 8, 32
"""Of a block of that schedule, at most."""

_TILE_INSTRUCTIONS = 200
"""Roughly those of a warp before and after the loop of a tile: addresses, and the sums over its lanes."""

STEPWISE_THREADS = 256
"""Of a block of ``recurrence/stepwise.cu``."""

_SECONDS_OF_A_LAUNCH = 0.1
"""By the prediction, where a watchdog ends one that lasts for seconds: a tenth of what it may take."""

_MOST_GROUPS = 65535
"""Blocks along y and z of a grid: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

_MOST_WEIGHTS = 2**31 - 1
"""Of a direction: their offsets have 32 bits, see ``recurrence/product.cuh``."""

HOST_DEVICE = "H100"
"""The device that is planned for if arrays are NumPy's, on the host executor."""


@dataclass(frozen=True)
class Problem:
    """A layer's recurrence: the cell, T steps, B rows, H hidden units, D directions, and the arrays' dtype."""

    cell: Cell
    T: int
    B: int
    H: int
    D: int
    dtype: Dtype

    @property
    def weight_bytes(self) -> int:
        """Of the recurrent weights of all directions."""
        return self.D * self.cell.gates * self.H * self.H * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Of the recurrent product of one step."""
        return 2 * self.D * self.B * self.cell.gates * self.H * self.H


@dataclass(frozen=True)
class Variant:
    """The template arguments of the kernels in ``recurrence/fused.cu`` that depend on the plan."""

    exchange: str
    """How a step's operand gets to the blocks that multiply it: "launch", "block" or "grid"."""
    columns: int
    """Rows of the batch in a tile."""
    held: bool = False
    """Whether a warp keeps the first columns of its weight rows in registers."""

    def most_threads(self, dtype: Dtype) -> int:
        """Of a block. The kernels are compiled for as many: with fewer, a thread has more registers."""
        many = self.exchange == "grid" and self.columns > 1
        return dtype.most_threads if many else min(dtype.most_threads, _BLOCK_THREADS)

    @property
    def tile_lanes(self) -> int:
        """Lanes of a warp that share out the columns of a tile."""
        return 32 if self.columns == 1 else 8

    def __str__(self) -> str:
        return f"Exchange::{self.exchange}, {self.columns}, {str(self.held).lower()}"


@dataclass(frozen=True)
class Launch:
    """One pass' kernel: how the work is cut into blocks."""

    grid: tuple[int, int, int]
    block: tuple[int]
    shared_bytes: int
    units: int
    """Hidden units of a block."""
    rows: int
    """Rows of the batch of a block."""
    chunk: int
    """Numbers of each row of an operand that are in shared memory at once."""
    parts: int
    """Parts of a product's columns, whose sums are added in their order."""
    variant: Variant

    @property
    def sizes(self) -> tuple[np.int32, ...]:
        """The kernel's arguments for the sizes of a block."""
        return np.int32(self.units), np.int32(self.rows), np.int32(self.chunk), np.int32(self.parts)


@dataclass(frozen=True)
class Plan:
    """A schedule. For the stepwise one this is all: its grids follow from the sizes."""

    schedule: str


@dataclass(frozen=True)
class FusedPlan(Plan):
    """A schedule of ``recurrence/fused.cu``, with the launches of its passes."""

    forward: Launch
    backward: Launch
    most_steps: int | None = None
    """Of a launch, where a watchdog ends those that last."""

    @property
    def exchange(self) -> str:
        return EXCHANGE[self.schedule]

    def launches(self, phases: int, of_step: int) -> tuple[tuple[np.int32, np.int32], ...]:
        """For each launch the first phase that it computes and the one after its last, of all ``phases`` of a pass."""
        if self.exchange == "launch":
            return _spans(phases, 1)
        return _spans(phases, phases if self.most_steps is None else self.most_steps * of_step)


@functools.lru_cache(64)
def _spans(phases: int, step: int) -> tuple[tuple[np.int32, np.int32], ...]:
    """The same object for the same numbers, by which `Bound.each` knows launches that come again."""
    return tuple((np.int32(first), np.int32(min(first + step, phases))) for first in range(0, phases, step))


class DoesNotFit(ValueError):
    """A schedule cannot run a recurrence on a device; the message says why."""


def fused_variants(cell: Cell, dtype: Dtype) -> list[Variant]:
    """The variants of its kernels that a plan for the cell may have."""
    return [
        *(Variant(exchange, columns, False) for exchange in EXCHANGE.values() for columns in (1, 4)),
        *([Variant("block", 1, True)] if _can_hold(cell, dtype) else []),
    ]


def _can_hold(cell: Cell, dtype: Dtype) -> bool:
    """Whether registers are left for weights: not in float64, and not for several phases, whose rows differ."""
    return dtype.accumulator == "float32" and len(cell.phases) == 1


def _padded(problem: Problem, numbers: int) -> int:
    """``numbers`` in whole packets of 128 bits."""
    packet = 16 // problem.dtype.itemsize
    return -(-numbers // packet) * packet


def _row_length(problem: Problem, backward: bool) -> int:
    """Numbers of a row of weights in shared memory: the columns of each phase in whole packets."""
    if not backward:
        return _padded(problem, problem.H)
    return sum(_padded(problem, gates * problem.H) for gates in problem.cell.phases)


def _shared_bytes(problem: Problem, backward: bool, launch: Launch) -> int:
    """Bytes of dynamic shared memory; see ``recurrence/fused.cu``."""
    variant, length = launch.variant, _row_length(problem, backward)
    rows_of_weights = launch.units * (1 if backward else problem.cell.gates)
    weights, chunk = 0, launch.chunk
    if variant.exchange != "launch":
        shortened = min(rows_of_weights, launch.block[0] // variant.tile_lanes * TILE_ROWS)
        held = min(length, _tile_width(problem, variant)) if variant.held else 0
        weights = rows_of_weights * length - shortened * held
    if variant.exchange == "block":
        chunk = length if backward else len(problem.cell.phases) * length
    sums = launch.parts * launch.rows * rows_of_weights
    stored, real = problem.dtype.itemsize, np.dtype(problem.dtype.accumulator).itemsize
    return -(-(weights + launch.rows * chunk) * stored // real) * real + sums * real


def _tile_width(problem: Problem, variant: Variant) -> int:
    """The columns that the lanes of a tile multiply at once."""
    return variant.tile_lanes * (16 // problem.dtype.itemsize)


def _parts(problem: Problem, backward: bool, launch: Launch) -> int:
    """The parts with which a warp has the least to do, roughly; fewer if that is the same."""
    if launch.variant.held:
        return 1  # a warp multiplies all columns of the rows that it holds
    variant, width = launch.variant, _tile_width(problem, launch.variant)
    gates = max(problem.cell.phases)
    row_tiles = -(-launch.units * (1 if backward else gates) // TILE_ROWS)
    tiles = row_tiles * -(-launch.rows // variant.columns)
    groups, warps = -(-tiles * variant.tile_lanes // 32), launch.block[0] // 32
    columns = problem.H * (gates if backward else 1)
    if variant.exchange != "block":
        columns = min(columns, launch.chunk)
    widths = -(-columns // width)
    multiply = TILE_ROWS * (variant.columns + 1) * (16 // problem.dtype.itemsize)

    def instructions(parts: int) -> int:
        return -(-groups * parts // warps) * (-(-widths // parts) * multiply + _TILE_INSTRUCTIONS)

    return min((parts for parts in PARTS if parts <= widths), key=instructions)


def _launch(
    problem: Problem, device: Device, exchange: str, backward: bool, units: int, rows: int, groups: int, chunk: int
) -> Launch:
    """The launch of blocks of ``units`` x ``rows``; raises `DoesNotFit`."""
    variant = Variant(exchange, 4 if rows > 1 else 1)
    most = variant.most_threads(problem.dtype)
    if units * rows > most:
        raise DoesNotFit(f"{units} hidden units times {rows} rows are more than the {most} threads of a block")
    if groups > _MOST_GROUPS:
        raise DoesNotFit(f"{groups:,} groups of rows are more than the {_MOST_GROUPS:,} that a grid has room for")
    if problem.cell.gates * problem.H**2 > _MOST_WEIGHTS:
        raise DoesNotFit(f"{problem.cell.gates} x {problem.H:,}^2 weights are more than 32 bits count")
    most = device.shared_memory_per_block
    length = (problem.cell.gates if backward else 1) * problem.H
    launch = Launch(
        grid=(-(-problem.H // units), groups, problem.D),
        block=(max(256, -(-units * rows // 32) * 32),),
        shared_bytes=0,
        units=units,
        rows=rows,
        chunk=min(chunk, -(-length // 32) * 32),
        parts=1,
        variant=variant,
    )

    def needed() -> int:
        return _shared_bytes(problem, backward, launch)

    if exchange == "block" and needed() > most and _can_hold(problem.cell, problem.dtype):
        launch = replace(launch, block=(_BLOCK_THREADS,), variant=Variant("block", 1, held=True))
    while exchange != "block" and launch.chunk > 32 and needed() > most:
        launch = replace(launch, chunk=max(32, launch.chunk // 2 // 32 * 32))
    if needed() > most:
        raise DoesNotFit(
            f"{units} hidden units of {rows} rows need {needed():,} bytes of shared memory in a block, "
            f"{device.name} has {most:,}"
        )
    launch = replace(launch, parts=_parts(problem, backward, launch))
    while launch.parts > 1 and needed() > most:
        launch = replace(launch, parts=launch.parts // 2)
    return replace(launch, shared_bytes=needed())


def _step_fused(problem: Problem, device: Device, backward: bool) -> Launch:
    units = min(_STEP_FUSED_UNITS, problem.H)
    rows = min(_STEP_FUSED_ROWS, problem.B)
    return _launch(problem, device, "launch", backward, units, rows, -(-problem.B // rows), 256)


def _block(problem: Problem, device: Device, backward: bool) -> Launch:
    most = min(problem.dtype.most_threads, _BLOCK_THREADS)
    if most < problem.H:
        raise DoesNotFit(f"{problem.H} hidden units are more than the {most} threads of a block")
    # As many blocks as the device holds at once, so that each has as few rows as possible.
    rows = max(1, min(most // problem.H, -(-problem.B * problem.D // device.multiprocessors)))
    return _launch(problem, device, "block", backward, problem.H, rows, -(-problem.B // rows), 0)


def _persistent(problem: Problem, device: Device, backward: bool) -> Launch:
    """The fewest groups of rows whose blocks are all on the device at once."""
    reason = ""
    for groups in range(1, problem.B + 1):
        blocks = device.multiprocessors // (problem.D * groups)
        if blocks < 1:
            break
        units = -(-problem.H // blocks)
        rows = -(-problem.B // groups)
        try:
            return _launch(problem, device, "grid", backward, units, rows, groups, 1024)
        except DoesNotFit as error:
            reason = reason or str(error)
    raise DoesNotFit(reason or f"{device.name} does not hold a block for each of {problem.D} directions")


_LAUNCHES = {"step-fused": _step_fused, "block": _block, "persistent": _persistent}


def make(schedule: str, problem: Problem, device: Device) -> Plan:
    """The plan of a schedule; raises `DoesNotFit`."""
    if schedule == "stepwise":
        return Plan(schedule)
    build = _LAUNCHES[schedule]
    plan = FusedPlan(schedule, build(problem, device, False), build(problem, device, True))
    if device.has_watchdog:
        seconds = predict.fused(plan, problem, device).seconds
        plan = replace(plan, most_steps=max(1, int(_SECONDS_OF_A_LAUNCH / seconds)))
    return plan


# ---- The choice -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A plan for each schedule that fits the device, with its prediction, and for each other one the reason."""

    problem: Problem
    device: Device
    plans: dict[str, tuple[Plan, Prediction]]
    refusals: dict[str, str]

    @property
    def best(self) -> str:
        return min(self.plans, key=lambda name: self.plans[name][1].seconds)


def consider(problem: Problem, device: Device, apart: str = "") -> Choice:
    """Plan all schedules, but not the persistent one if ``apart`` says why its blocks do not run at once."""
    plans: dict[str, tuple[Plan, Prediction]] = {}
    refusals: dict[str, str] = {}
    for name in SCHEDULES:
        if name == "persistent" and apart:
            refusals[name] = apart
            continue
        try:
            plan = make(name, problem, device)
        except DoesNotFit as error:
            refusals[name] = str(error)
            continue
        if isinstance(plan, FusedPlan):
            prediction = predict.fused(plan, problem, device)
        else:
            prediction = predict.stepwise(problem, device)
        plans[name] = plan, prediction
    return Choice(problem, device, plans, refusals)


_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("schedule", default=None)


@contextlib.contextmanager
def schedule(name: str) -> Iterator[None]:
    """``with plan.schedule("persistent"): ...`` runs recurrences by this schedule, even if another is predicted faster.

    Raises
    ------
    ValueError
        There is no such schedule. Within the ``with`` statement: it cannot run a recurrence on its device.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule: name is {name!r}, expected one of {', '.join(SCHEDULES)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def is_forced() -> bool:
    """Whether `schedule` has fixed the schedule."""
    return _forced.get() is not None


def choose(problem: Problem, device: Device, apart: str = "") -> Plan:
    """The plan that a recurrence runs by; ``apart`` is that of `consider`."""
    return _choose(problem, device, _forced.get(), apart)


@functools.lru_cache(1024)
def _choose(problem: Problem, device: Device, forced: str | None, apart: str) -> Plan:
    if not problem.T * problem.B * problem.H:
        return Plan("stepwise")
    if forced is not None:
        return make(forced, problem, device)
    choice = consider(problem, device, apart)
    return choice.plans[choice.best][0]


def device_of(array: Any) -> Device:
    """The device to plan for: that of a CuPy array, `HOST_DEVICE` for anything else."""
    return devices.of_index(array.data.device_id) if is_cupy_array(array) else devices.lookup(HOST_DEVICE)
