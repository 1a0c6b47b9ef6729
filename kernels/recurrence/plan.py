"""Which schedule runs a recurrence on a device, in which grid, and why.

A recurrence is a chain: nothing of step t can begin before step t - 1 has ended. So a step's time is that of its
arithmetic and of the bytes that it moves, plus that of getting h_{t-1} to all who multiply by it, once a product. The
schedules differ in the second and in where the recurrent weights are; see ``recurrence/fused.cu``. `choose` predicts
the time of a step for each that fits the device, from the device's public figures, and takes the least. These are
predictions, never measurements.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import is_cupy_array

from gpurnn.cells import Cell

from .. import devices
from ..devices import Device
from ..dtypes import Dtype

SCHEDULES = ("stepwise", "step-fused", "block", "persistent")
EXCHANGE = {"step-fused": "launch", "block": "block", "persistent": "grid"}
"""How a step's operand gets to the blocks that multiply by it, as ``recurrence/fused.cu`` names it."""

TILES = {"launch": 1, "block": 1, "grid": 2}
"""Tiles of the batch of one block; with two, one's product is computed while the other waits at its barrier."""

HELD_CHUNKS = 4
"""Times 32 columns of eight weight rows that each warp keeps in registers where shared memory is too small for all."""

_MOST_GROUPS = 65535
"""Blocks along y and z of a grid: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

_MOST_WEIGHTS = 2**31 - 1
"""Of a direction: their offsets are 32 bits, see ``recurrence/product.cuh``."""

HOST_DEVICE = "H100"
"""The device that plans for NumPy arrays, on the host executor, are made for."""

_LAUNCH = 2.5e-6
_BARRIER = 1.2e-6
_BLOCK_BARRIER = 0.1e-6
"""Assumed seconds from one dependent kernel to the next, of a barrier of the whole grid with the operand's way through
the L2 cache, and of a barrier within a block. The order of magnitude that is commonly reported; nobody measured it
here."""

_L2_BYTES_PER_CLOCK = 32
"""Assumed bytes that one multiprocessor gets from the L2 cache in a clock."""

_SHARED_BYTES_PER_CLOCK = 128
"""Bytes that one multiprocessor gets from its shared memory in a clock: 32 banks of 4 bytes."""


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
class Launch:
    """One pass' kernel: how the work is cut into blocks."""

    grid: tuple[int, int, int]
    block: tuple[int]
    shared_bytes: int
    units: int
    """Hidden units of a block."""
    rows: int
    """Rows of the batch of a tile."""
    tiles: int
    columns: int
    chunk: int
    """Numbers of each row of an operand that are in shared memory at once."""
    held_chunks: int = 0
    """Times 32 columns of eight weight rows that each warp keeps in registers."""

    def variant(self, exchange: str) -> str:
        """The kernel's template arguments but for the cell, as ``recurrence/fused.cu`` has them."""
        return f"Exchange::{exchange}, {self.tiles}, {self.columns}, {self.held_chunks}"

    @property
    def cut(self) -> tuple[np.int32, np.int32, np.int32]:
        """What the kernel is told of it."""
        return np.int32(self.units), np.int32(self.rows), np.int32(self.chunk)


@dataclass(frozen=True)
class Plan:
    """A schedule, and the launches of its passes; those of the stepwise schedule come from the sizes alone."""

    schedule: str
    forward: Launch
    backward: Launch

    @property
    def exchange(self) -> str:
        return EXCHANGE.get(self.schedule, "")

    def launches(self, phases: int) -> Iterator[tuple[np.int32, np.int32]]:
        """The phases that each launch computes, from ... to."""
        step = 1 if self.exchange == "launch" else phases
        return ((np.int32(first), np.int32(first + step)) for first in range(0, phases, step))


class DoesNotFit(ValueError):
    """A schedule cannot run a recurrence on a device; the message says why."""


def fused_variants(cell: Cell, dtype: Dtype) -> list[str]:
    """The template arguments for which kernels of a cell can be asked for."""
    variants = [
        Launch((0, 0, 0), (0,), 0, 0, 0, tiles, columns, 0, chunks).variant(exchange)
        for exchange, tiles in TILES.items()
        for columns in (1, 4)
        for chunks in ((0, HELD_CHUNKS) if exchange == "block" and _can_hold(cell, dtype) else (0,))
    ]
    return variants


def _can_hold(cell: Cell, dtype: Dtype) -> bool:
    """Whether registers are left for weights: not in float64, nor in several phases, which have rows of their own."""
    return dtype.accumulator == "float32" and len(cell.phases) == 1


def _shared_bytes(
    problem: Problem, exchange: str, backward: bool, units: int, rows: int, chunk: int, threads: int, held_chunks: int
) -> int:
    """Bytes of dynamic shared memory; see ``recurrence/fused.cu``."""
    G, H = problem.cell.gates, problem.H
    weight_rows, columns = (units, G * H) if backward else (units * G, H)
    held = min(weight_rows, threads // 32 * 8) * min(columns, 32 * held_chunks)
    weights = 0 if exchange == "launch" else weight_rows * columns - held
    if exchange == "block":
        chunk = G * H if backward else len(problem.cell.phases) * H
    sums = rows * units * (1 if backward else G)
    stored, real = problem.dtype.itemsize, np.dtype(problem.dtype.accumulator).itemsize
    return -(-(weights + rows * chunk) * stored // real) * real + sums * real


def _launch(
    problem: Problem, device: Device, exchange: str, backward: bool, units: int, rows: int, groups: int, chunk: int
) -> Launch:
    """The launch of blocks of ``units`` x ``rows``, refused where it does not fit the device."""
    most = problem.dtype.most_threads
    if units * rows > most:
        raise DoesNotFit(f"{units} hidden units times {rows} rows are more than the {most} threads of a block")
    if groups > _MOST_GROUPS:
        raise DoesNotFit(f"{groups:,} groups of rows are more than the {_MOST_GROUPS:,} that a grid has room for")
    if problem.cell.gates * problem.H**2 > _MOST_WEIGHTS:
        raise DoesNotFit(f"{problem.cell.gates} x {problem.H:,}^2 weights are more than 32 bits count")
    most = device.shared_memory_per_block
    threads = max(256, -(-units * rows // 32) * 32)
    length = (problem.cell.gates if backward else 1) * problem.H
    chunk, held_chunks = min(chunk, -(-length // 32) * 32), 0

    def needed() -> int:
        return _shared_bytes(problem, exchange, backward, units, rows, chunk, threads, held_chunks)

    if exchange == "block" and needed() > most and _can_hold(problem.cell, problem.dtype):
        threads, held_chunks = problem.dtype.most_threads, HELD_CHUNKS
    while exchange != "block" and chunk > 32 and needed() > most:
        chunk = max(32, chunk // 2 // 32 * 32)
    if needed() > most:
        raise DoesNotFit(
            f"{units} hidden units of {rows} rows need {needed():,} bytes of shared memory in a block, "
            f"{device.name} has {most:,}"
        )
    return Launch(
        grid=(-(-problem.H // units), groups, problem.D), block=(threads,), shared_bytes=needed(),
        units=units, rows=rows, tiles=TILES[exchange], columns=4 if rows > 1 else 1, chunk=chunk,
        held_chunks=held_chunks,
    )  # fmt: skip


def _step_fused(problem: Problem, device: Device, backward: bool) -> Launch:
    units = min(8, problem.H)
    rows = min(32, problem.B)
    return _launch(problem, device, "launch", backward, units, rows, -(-problem.B // rows), 256)


def _block(problem: Problem, device: Device, backward: bool) -> Launch:
    most = problem.dtype.most_threads
    if most < problem.H:
        raise DoesNotFit(f"{problem.H} hidden units are more than the {most} threads of a block")
    # As many blocks as the device holds at once, so that none has more rows than it must.
    rows = max(1, min(most // problem.H, -(-problem.B * problem.D // device.multiprocessors)))
    return _launch(problem, device, "block", backward, problem.H, rows, -(-problem.B // rows), 0)


def _persistent(problem: Problem, device: Device, backward: bool) -> Launch:
    """The fewest groups of rows whose blocks are all on the device at once."""
    tiles, reason = TILES["grid"], ""
    for groups in range(1, problem.B + 1):
        blocks = device.multiprocessors // (problem.D * groups)
        if blocks < 1:
            break
        units = -(-problem.H // blocks)
        rows = -(-problem.B // (groups * tiles))
        try:
            return _launch(problem, device, "grid", backward, units, rows, groups, 1024)
        except DoesNotFit as error:
            reason = reason or str(error)
    raise DoesNotFit(reason or f"{device.name} does not hold a block for each of {problem.D} directions")


_LAUNCHES = {"step-fused": _step_fused, "block": _block, "persistent": _persistent}


def make(schedule: str, problem: Problem, device: Device) -> Plan:
    """The plan of a schedule; raises `DoesNotFit`."""
    if schedule == "stepwise":
        blocks = -(-problem.D * problem.B * problem.H // 256)
        launch = Launch((blocks, 1, 1), (256,), 0, problem.H, problem.B, 1, 1, 0)
        return Plan(schedule, launch, launch)
    build = _LAUNCHES[schedule]
    return Plan(schedule, build(problem, device, False), build(problem, device, True))


# ---- The choice -----------------------------------------------------------------------------------------------------


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


def predict(plan: Plan, problem: Problem, device: Device) -> Prediction:
    """The terms of a forward step's time, from the device's public figures and the assumptions of this file."""
    P, size = len(problem.cell.phases), problem.dtype.itemsize
    launch = plan.forward
    blocks = math.prod(launch.grid)
    processors = device.multiprocessors if plan.schedule == "stepwise" else min(blocks, device.multiprocessors)
    share = processors / device.multiprocessors
    arithmetic = problem.flops / (device.peak_flops(problem.dtype.accumulator) * share)

    # Each unit reads its share of W_ih x and writes its output, whatever the schedule.
    device_bytes = problem.D * problem.B * problem.H * (problem.cell.gates + 1) * size
    l2_bytes = shared_bytes = 0
    if plan.schedule == "stepwise":
        l2_bytes = problem.weight_bytes + 2 * problem.D * problem.B * problem.H * (problem.cell.gates + 1) * size
        exchange = (problem.D + 1) * P * _LAUNCH
    else:
        rows = launch.rows * launch.tiles
        operands = blocks * rows * problem.H * P * size
        reads = (8 + launch.columns) / (8 * launch.columns)  # of shared memory or L1, per multiplication
        shared_bytes = int(problem.flops / 2 * reads * size)
        exchange = P * {"launch": _LAUNCH, "grid": _BARRIER, "block": _BLOCK_BARRIER}[plan.exchange]
        if plan.exchange == "launch":
            l2_bytes = operands + problem.weight_bytes * launch.grid[1]
        elif plan.exchange == "grid":
            l2_bytes = operands
    from_memory = problem.weight_bytes if l2_bytes and problem.weight_bytes > device.l2_bytes else 0
    if plan.exchange in ("grid", "block"):
        from_memory = 0  # the weights were read once, before the first step
    seconds = max(
        (device_bytes + from_memory) / device.bandwidth,
        l2_bytes / (_L2_BYTES_PER_CLOCK * processors * device.clock_hz),
        shared_bytes / (_SHARED_BYTES_PER_CLOCK * processors * device.clock_hz),
    )
    phases = problem.T * P
    launches = {
        "stepwise": 1 + phases * (problem.D + 1), "step-fused": 1 + phases, "block": 1, "persistent": 1,
    }[plan.schedule]  # fmt: skip
    return Prediction(arithmetic, device_bytes + from_memory + l2_bytes, seconds, exchange, launches)


@dataclass(frozen=True)
class Choice:
    """What `consider` found: a plan for each schedule that fits, with its prediction, and why others do not."""

    problem: Problem
    device: Device
    plans: dict[str, tuple[Plan, Prediction]]
    refusals: dict[str, str]

    @property
    def best(self) -> str:
        return min(self.plans, key=lambda name: self.plans[name][1].seconds)


def consider(problem: Problem, device: Device) -> Choice:
    """Plan all schedules."""
    plans, refusals = {}, {}
    for name in SCHEDULES:
        try:
            plan = make(name, problem, device)
        except DoesNotFit as error:
            refusals[name] = str(error)
        else:
            plans[name] = (plan, predict(plan, problem, device))
    return Choice(problem, device, plans, refusals)


_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("schedule", default=None)


@contextlib.contextmanager
def schedule(name: str) -> Iterator[None]:
    """``with plan.schedule("persistent"): ...`` runs recurrences by this schedule, whatever `choose` would prefer.

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
    """Whether `schedule` says what runs."""
    return _forced.get() is not None


def choose(problem: Problem, device: Device, *, persistent: bool = True) -> Plan:
    """The plan that a recurrence runs by; without ``persistent``, the best of the other schedules."""
    return _choose(problem, device, _forced.get(), persistent)


@functools.lru_cache(1024)
def _choose(problem: Problem, device: Device, forced: str | None, persistent: bool) -> Plan:
    if not problem.T * problem.B * problem.H:
        return Plan("stepwise", _NOTHING, _NOTHING)
    if forced is not None:
        return make(forced, problem, device)
    choice = consider(problem, device)
    if not persistent:
        choice.plans.pop("persistent", None)
    return choice.plans[choice.best][0]


_NOTHING = Launch((0, 0, 0), (0,), 0, 0, 0, 1, 1, 0)


def device_of(array: Any) -> Device:
    """The device that plans for ``array`` are made for: its own, and `HOST_DEVICE` for NumPy arrays."""
    return devices.of_index(array.data.device_id) if is_cupy_array(array) else devices.lookup(HOST_DEVICE)
