"""Which schedule runs a pass of a recurrence on a device, and how it is cut into blocks.

The forward and the backward pass are planned separately: the saved values have one layout in all schedules.
`make` plans one schedule: the grid of its kernel, if it fits the device. `choose` takes the schedule whose predicted
time (`predict.py`) is the shortest.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import is_cupy_array

from gpurnn.cells import Cell

from .. import devices
from ..devices import Device
from ..dtypes import Dtype
from . import predict
from .predict import Prediction, Product

SCHEDULES = ("stepwise", "step-fused", "block", "persistent", "cluster", "scatter")
EXCHANGE = {
    "step-fused": "launch", "block": "block", "persistent": "grid", "cluster": "cluster", "scatter": "scatter"
}  # fmt: skip
"""The `Variant.exchange` of each schedule except stepwise; for "scatter", that of the backward pass."""

THREADS = 256
"""Threads of a block of ``recurrence/fused.cu``: few enough that a thread has registers for weights and its work."""

_OWNED = {"float32": 4, "float64": 2}
"""The most hidden units of a row whose steps a thread computes, by the dtype of the accumulator."""

_STEP_FUSED_UNITS, _STEP_FUSED_ROWS, _STEP_FUSED_CHUNK = 8, 32, 256
"""The most units, rows and columns of an operand's chunk in a block of the step-fused schedule."""

STEPWISE_THREADS = 256
"""Threads of a block of ``recurrence/stepwise.cu``."""

ROW_SUMS = 32
"""Numbers in the shared memory of a block of ``recurrence/rows.cu`` through which the warps of a row add up."""

_SCATTER_HELD = 24
"""Packets of weights that a thread keeps in registers in ``recurrence/scatter.cu``."""

_SECONDS_OF_A_LAUNCH = 0.1
"""The most predicted seconds of a launch where a watchdog ends long ones: a tenth of the time that it allows."""

CLUSTER_BLOCKS, CLUSTER_CAPABILITY = 8, (9, 0)
"""Blocks of a cluster, the most that every device with clusters runs, and the lowest compute capability with them."""

_MOST_GROUPS = 65535
"""The most blocks along y and z: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

_MOST_WEIGHTS = 2**31 - 1
"""The most weights of a direction: their offsets have 32 bits, see ``recurrence/product.cuh``."""

HOST_DEVICE = "H100"
"""The device to plan for if arrays are NumPy's, on the host executor."""


@dataclass(frozen=True)
class Problem:
    """A pass of a layer's recurrence: the cell, T steps, B rows, H hidden units, D directions, the arrays' dtype."""

    cell: Cell
    T: int
    B: int
    H: int
    D: int
    dtype: Dtype
    backward: bool = False

    @property
    def name(self) -> str:
        """The name of the pass and of its kernel in ``recurrence/fused.cu``."""
        return "backward" if self.backward else "forward"

    @property
    def width(self) -> int:
        """The width of h."""
        return self.cell.state_sizes(self.H)[0]

    @functools.cached_property
    def products(self) -> tuple[tuple[int, int], ...]:
        """The rows and columns (N, K) of the weights of each product of a step."""
        operands = (self.width, *[self.H] * len(self.cell.phases))
        forward = [(gates * self.H, K) for gates, K in zip(self.cell.phases, operands, strict=False)]
        if self.cell.projects:
            forward.append((self.width, self.H))
        return tuple((K, N) if self.backward else (N, K) for N, K in forward)

    def ends_by_rows(self, exchange: str) -> bool:
        """Whether a step ends in the block that has its batch row, not in the one that has its units' products."""
        return self.cell.sums_over_units and (exchange == "launch" or self.cell.normalises)

    def exchanges(self, exchange: str) -> int:
        """The exchanges of a step: of each product's operand and, if steps end by rows, of each product's result."""
        return len(self.products) * (1 + self.ends_by_rows(exchange))

    @property
    def phases(self) -> int:
        """The phases of the whole pass; the backward pass has one more, which ends the first step."""
        return self.T * len(self.products) + self.backward

    @property
    def units(self) -> int:
        """Hidden units of all rows and directions."""
        return self.D * self.B * self.H

    @property
    def weight_bytes(self) -> int:
        """The bytes of the recurrent weights of all directions."""
        return self.D * sum(N * K for N, K in self.products) * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """The floating-point operations of the products of one step."""
        return 2 * self.D * self.B * sum(N * K for N, K in self.products)


@dataclass(frozen=True)
class Variant:
    """The template arguments of the kernels of whole passes that depend on the plan.

    The kernels are in ``recurrence/fused.cu``; that of "scatter" is in ``recurrence/scatter.cu``.
    """

    exchange: str
    """How a step's operand reaches the blocks that multiply it: "launch", "block", "grid" or "cluster". With "scatter",
    each block multiplies its own part of the operand, and the sums go to the blocks that add them up."""
    columns: int
    """Rows of the batch in a tile."""
    tile_rows: int = 8
    """Rows of weights in a tile; with "scatter", of a thread."""
    held: int = 0
    """Widths of its weight rows that a warp keeps in registers; with "scatter", packets that a thread keeps."""
    owned: int = 1
    """The most hidden units of a row whose steps a thread computes."""

    @property
    def blocks(self) -> int:
        """The number of blocks that share the columns of a product."""
        return CLUSTER_BLOCKS if self.exchange == "cluster" else 1

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes with such a kernel: with 12 rows in a cluster, a forward pass lacks registers for the sums."""
        if self.exchange == "scatter" or (self.exchange == "cluster" and self.tile_rows == 12):
            return ("backward",)
        return ("forward", "backward")

    @property
    def among_blocks(self) -> bool:
        """Whether the blocks of a launch exchange operands, and so have to run at once."""
        return self.exchange in ("grid", "cluster", "scatter")

    @property
    def tile_lanes(self) -> int:
        """The number of lanes of a warp that share the columns of a tile."""
        if self.exchange == "scatter":
            return 1
        return 32 if self.columns == 1 else 8

    @property
    def tiles_at_once(self) -> int:
        """Tiles that a block computes at the same time."""
        return THREADS // self.tile_lanes

    def unrolled(self, dtype: Dtype) -> int:
        """The widths of a round of the product's loop, below compute capability 10.0: see ``recurrence/share.cuh``."""
        wide = self.exchange == "launch" and dtype.accumulator == "float64"
        if wide or self.exchange == "scatter" or (self.exchange == "cluster" and self.held):
            return 1
        return (128 if self.columns == 1 else 64) // (self.tile_rows * max(16 // dtype.itemsize, 4))

    def width(self, dtype: Dtype) -> int:
        """The columns that the lanes of a tile multiply at once."""
        return self.tile_lanes * (16 // dtype.itemsize)

    def __str__(self) -> str:
        if self.exchange == "scatter":
            return f"{self.columns}, {self.tile_rows}, {self.held}"
        return f"Exchange::{self.exchange}, {self.columns}, {self.tile_rows}, {self.held}, {self.owned}"


@dataclass(frozen=True)
class Launch:
    """The launch of one pass: how its work is cut into blocks."""

    grid: tuple[int, int, int]
    block: tuple[int]
    shared_bytes: int
    units: int
    """Hidden units of a block."""
    rows: int
    """Batch rows of a block."""
    chunk: int
    """Numbers of each row of an operand that are in shared memory at once."""
    parts: int
    """Parts of a product's columns, whose sums are added in their order."""
    at_once: int
    """Tiles of batch rows that are multiplied at once."""
    variant: Variant

    @property
    def sums(self) -> int:
        """Parts whose sums are in shared memory: a warp that only has parts of one tile adds them up itself."""
        of_warp = 32 // self.variant.tile_lanes
        return self.parts if self.parts % of_warp else self.parts // of_warp

    def sums_between_blocks(self, real: str) -> tuple[int, ...]:
        """The shape of the array of dtype ``real`` through which blocks exchange sums with "scatter"."""
        x, y, z = self.grid
        of_packet = 16 // np.dtype(real).itemsize
        return 2, z, y, x, x, -(-self.units * self.rows // of_packet) * of_packet

    @property
    def sizes(self) -> tuple[np.int32, ...]:
        """The kernel's arguments for the sizes of a block: see ``recurrence/share.cuh``."""
        sizes = [self.units, self.rows]
        if self.variant.exchange != "scatter":
            sizes += [self.chunk, self.parts, -(-(2**30) // self.parts), self.at_once]
        return tuple(map(np.int32, sizes))


@dataclass(frozen=True)
class Plan:
    """The schedule of a pass. The stepwise one needs nothing more: the sizes determine its grids."""

    schedule: str


@dataclass(frozen=True)
class FusedPlan(Plan):
    """A schedule of ``recurrence/fused.cu`` or ``scatter.cu``, with the launch of the pass' kernel."""

    launch: Launch
    most_steps: int | None = None
    """The most steps of a launch, where a watchdog ends long ones."""

    @property
    def exchange(self) -> str:
        return EXCHANGE[self.schedule]

    def launches(self, phases: int, of_step: int) -> tuple[tuple[np.int32, np.int32], ...]:
        """For each launch, the first phase that it computes and the one after its last, of all ``phases`` of a pass."""
        if self.exchange == "launch":
            return _spans(phases, 1)
        return _spans(phases, phases if self.most_steps is None else self.most_steps * of_step)


@functools.lru_cache(64)
def _spans(phases: int, step: int) -> tuple[tuple[np.int32, np.int32], ...]:
    """The phases of each launch. Equal numbers give the same object, by which `Bound.each` knows repeated launches."""
    return tuple((np.int32(first), np.int32(min(first + step, phases))) for first in range(0, phases, step))


class DoesNotFit(ValueError):
    """A schedule cannot run a recurrence on a device; the message says why."""


def fused_variants(cell: Cell, dtype: Dtype) -> list[Variant]:
    """The variants of the cell's kernels that a plan may choose."""
    return [
        Variant("launch", 1),
        Variant("launch", 4),
        *_block_variants(cell, dtype),
        *_grid_variants(cell, dtype),
        *_cluster_variants(cell, dtype),
        *_scatter_variants(cell, dtype),
    ]


# Small tiles, so that all warps of a block have some where it has few weights.
_TILES = (1, 2), (1, 8), (4, 4), (4, 8)
"""Rows of the batch and of the weights in a tile."""

_OF_ROWS = [Variant("grid", columns, tile_rows=rows) for columns, rows in _TILES]
"""The variants of the block and persistent schedules for cells with sums over units."""


def _block_variants(cell: Cell, dtype: Dtype) -> list[Variant]:
    """The variants of the block schedule."""
    if cell.sums_over_units:
        return _OF_ROWS
    held = [Variant("block", 4, held=3)] if _can_hold(cell, dtype) else []
    return [Variant("block", 1), Variant("block", 4), *held]


def _grid_variants(cell: Cell, dtype: Dtype) -> list[Variant]:
    """The variants of the persistent schedule."""
    if cell.sums_over_units:
        return _OF_ROWS
    several = Variant("grid", 4, owned=_OWNED[dtype.accumulator])
    held = 3 if _can_hold(cell, dtype) else 0
    variants = [Variant("grid", columns, tile_rows=rows, held=held) for columns, rows in _TILES]
    return [*variants, *([Variant("grid", 4, tile_rows=12, held=2)] if held else []), several]


def _cluster_variants(cell: Cell, dtype: Dtype) -> list[Variant]:
    """The variants of the cluster schedule, none for a single row: blocks do not wait for the bytes of its operand."""
    if cell.sums_over_units:
        return []
    several = Variant("cluster", 4, owned=_OWNED[dtype.accumulator])
    if not _can_hold(cell, dtype):
        return [Variant("cluster", 4), several]
    return [Variant("cluster", 4, held=3), Variant("cluster", 4, tile_rows=12, held=2), several]


def _scatter_variants(cell: Cell, dtype: Dtype) -> list[Variant]:
    """The variants of the backward pass of the scatter schedule, with 1 to 4 units of the product per thread."""
    if not exchanges_sums(cell, dtype):
        return []
    return [Variant("scatter", 8, tile_rows=units, held=_SCATTER_HELD // units) for units in (1, 2, 3, 4)]


def exchanges_sums(cell: Cell, dtype: Dtype) -> bool:
    """Whether a cell has the scatter schedule.

    Its blocks write and read one sum per unit, which is less than the gradients of three gates or more.
    """
    return cell.gates > 2 and not cell.sums_over_units and _can_hold(cell, dtype)


def _can_hold(cell: Cell, dtype: Dtype) -> bool:
    """Whether registers are left for the recurrent weights.

    None are left in float64, nor in 16 bits, where a packet has twice the numbers, nor if a unit has weights or masks
    of its own. And the rows of several phases differ.
    """
    return dtype.name == "float32" and len(cell.phases) == 1 and not cell.diagonal and not cell.step_masks


def _shared_bytes(problem: Problem, launch: Launch) -> int:
    """Bytes of dynamic shared memory; see ``recurrence/fused.cu``."""
    variant, width = launch.variant, launch.variant.width(problem.dtype)
    products = Product.of(problem, launch.units, variant)
    rows = -(-launch.rows // variant.columns) * variant.columns
    sums = -(-launch.sums * rows * max(p.tiles for p in products) * variant.tile_rows // 4) * 4
    operand, weights = launch.at_once * variant.columns * launch.chunk, 0
    if variant.exchange == "block":
        operand = rows * sum(p.widths for p in products) * width
    if variant.exchange != "launch":
        stored = sum(
            p.tiles * p.widths
            - min(p.tiles, variant.tiles_at_once // launch.parts) * min(variant.held * launch.parts, p.widths)
            for p in products
        )
        weights = stored * variant.tile_rows * width
    stored_bytes, real = problem.dtype.itemsize, np.dtype(problem.dtype.accumulator).itemsize
    biases = 0 if problem.backward else -(-2 * problem.cell.gates * launch.units // 4) * 4
    if problem.cell.sums_over_units:
        biases = ROW_SUMS
    return (biases + sums) * real + (operand + weights) * stored_bytes


def _fitting(
    problem: Problem,
    device: Device,
    variant: Variant,
    units: int,
    rows: int,
    groups: int,
    most_chunk: int,
) -> Iterator[Launch]:
    """The launches of blocks of ``units`` x ``rows`` that fit the device; raises `DoesNotFit` if there are none."""
    most = THREADS * variant.owned
    if units * rows > most and not problem.cell.sums_over_units:
        raise DoesNotFit(
            f"{units} hidden units times {rows} rows are more than the {most} of which a block keeps the state"
        )
    if groups > _MOST_GROUPS:
        raise DoesNotFit(f"{groups:,} groups of rows are more than the {_MOST_GROUPS:,} that a grid has room for")
    if problem.cell.gates * problem.H**2 > _MOST_WEIGHTS:
        raise DoesNotFit(f"{problem.cell.gates} x {problem.H:,}^2 weights are more than 32 bits count")
    width, products = variant.width(problem.dtype), Product.of(problem, units, variant)
    tiles, widths = max(p.tiles for p in products), max(p.widths for p in products)
    column_tiles = -(-rows // variant.columns)
    fit, least = False, 0
    # For each n, the fewest parts of at most n widths; and the same rounded up to whole warps of parts.
    most_parts, of_warp = variant.tiles_at_once, 32 // variant.tile_lanes
    fewest = {-(-widths // n) for n in range(1, widths + 1)}
    whole = {-(-parts // of_warp) * of_warp for parts in fewest}
    for parts in sorted(parts for parts in fewest | whole if parts <= most_parts):
        of_rows = min(
            column_tiles, max(1, variant.tiles_at_once // (min(tiles, variant.tiles_at_once // parts) * parts))
        )
        for at_once in sorted({of_rows, 1}, reverse=True):
            launch = Launch(
                grid=(-(-problem.H // units), groups, problem.D),
                block=(THREADS,),
                shared_bytes=0,
                units=units,
                rows=rows,
                chunk=0,
                parts=parts,
                at_once=at_once,
                variant=variant,
            )
            # Whole operands, or pieces in which all parts have equally many widths.
            needed, chunk = _shared_bytes(problem, launch), 0
            if variant.exchange != "block":
                row_bytes = at_once * variant.columns * width * problem.dtype.itemsize
                room = (device.shared_memory_per_block - needed) // row_bytes
                chunk = min(widths, room, max(parts, -(-most_chunk // width)))
                if chunk < widths:
                    chunk = chunk // parts * parts
                chunk = max(chunk, min(widths, parts))
                needed += row_bytes * chunk
            if needed <= device.shared_memory_per_block:
                fit = True
                yield replace(launch, chunk=chunk * width, shared_bytes=needed)
            least = min(least or needed, needed)
    if not fit:
        raise DoesNotFit(
            f"{units} hidden units of {rows} rows need {least:,} bytes of shared memory in a block, "
            f"{device.name} has {device.shared_memory_per_block:,}"
        )


def _fastest(problem: Problem, device: Device, launches: Iterable[Launch]) -> Launch:
    """The launch whose step is predicted to be the shortest on the device."""
    return min(launches, key=lambda launch: predict.one_launch(problem, device, launch, 1).of_block)


def _step_fused(problem: Problem, device: Device) -> Launch:
    units = min(_STEP_FUSED_UNITS, problem.H)
    rows = min(_STEP_FUSED_ROWS, problem.B)
    variant, groups = Variant("launch", 4 if rows > 1 else 1), -(-problem.B // rows)
    launches = _fitting(problem, device, variant, units, rows, groups, _STEP_FUSED_CHUNK)
    return _fastest(problem, device, launches)


def _block(problem: Problem, device: Device) -> Launch:
    if problem.H > THREADS:
        raise DoesNotFit(f"{problem.H} hidden units are more than the {THREADS} threads of a block")
    # As many blocks as the device holds at once, so that each has as few rows as possible.
    rows = max(1, min(THREADS // problem.H, -(-problem.B * problem.D // device.multiprocessors)))
    found: list[Launch] = []
    for variant in _block_variants(problem.cell, problem.dtype):
        if variant.columns == 1 and rows > 1:
            continue
        try:
            found.extend(_fitting(problem, device, variant, problem.H, rows, -(-problem.B // rows), 0))
        except DoesNotFit as error:
            reason = error
    if not found:
        raise reason
    return _fastest(problem, device, found)


def _persistent(problem: Problem, device: Device) -> Launch:
    """Blocks that are all on the device at once.

    With more groups of rows, each group has fewer blocks, of more hidden units. So fewer blocks read the operand of a
    row, but each keeps more weights.
    """
    return _at_once(problem, device, _grid_variants(problem.cell, problem.dtype))


def _scatter(problem: Problem, device: Device) -> Launch:
    """The same as `_persistent`, except that backward blocks exchange sums."""
    cell, dtype = problem.cell, problem.dtype
    if not exchanges_sums(cell, dtype):
        raise DoesNotFit(f"{cell} has no kernel in {dtype.name} whose blocks exchange sums")
    if not problem.backward:
        return _persistent(problem, device)
    variant = next((v for v in _scatter_variants(cell, dtype) if v.tile_rows * THREADS >= problem.H), None)
    if variant is None:
        raise DoesNotFit(
            f"{problem.H} hidden units are more than the {4 * THREADS} whose sums the threads of a block keep"
        )
    size, found, groups = variant.width(dtype), list[Launch](), 1
    reason = f"{device.name} does not hold a block for each of {problem.D} directions"
    while groups <= problem.B and device.multiprocessors // (problem.D * groups):
        units = -(-problem.H // (device.multiprocessors // (problem.D * groups)))
        rows = -(-problem.B // groups)
        packets = -(-cell.gates * units // size)
        gradients = -(-rows // variant.columns) * variant.columns * packets
        stored = THREADS * variant.tile_rows * max(0, packets - variant.held)
        needed = (gradients + THREADS + stored) * size * dtype.itemsize
        lacks = []
        if units * rows > THREADS:
            lacks.append(f"{units} hidden units times {rows} rows are more than the {THREADS} threads of a block")
        if needed > device.shared_memory_per_block:
            lacks.append(
                f"{units} hidden units of {rows} rows need {needed:,} bytes of shared memory in a block, "
                f"{device.name} has {device.shared_memory_per_block:,}"
            )
        if not lacks:
            grid = (-(-problem.H // units), groups, problem.D)
            found.append(Launch(grid, (THREADS,), needed, units, rows, packets * size, 1, 1, variant))
        elif groups == 1:
            reason = lacks[0]
        groups = -(-problem.B // (rows - 1)) if rows > 1 else problem.B + 1
    if not found:
        raise DoesNotFit(reason)
    return _fastest(problem, device, found)


def _cluster(problem: Problem, device: Device) -> Launch:
    """Blocks that are all on the device at once, in clusters."""
    if device.compute_capability < CLUSTER_CAPABILITY:
        raise DoesNotFit(f"{device.name} has no clusters of blocks")
    if problem.cell.sums_over_units:
        raise DoesNotFit("it has no kernel in clusters with the sums over hidden units of layer norm or a projection")
    return _at_once(problem, device, _cluster_variants(problem.cell, problem.dtype))


def _at_once(problem: Problem, device: Device, variants: list[Variant]) -> Launch:
    """The fastest launch of any of the variants of a schedule."""
    reason = f"{device.name} does not hold a block for each of {problem.D} directions"
    together = variants[0].blocks
    if together > 1:
        reason = f"{device.name} does not hold a cluster of {together} blocks for each of {problem.D} directions"
    found: list[Launch] = []
    groups, longest = 1, problem.H * problem.cell.gates
    while groups <= problem.B and device.multiprocessors // together // (problem.D * groups):
        units = -(-problem.H // (device.multiprocessors // together // (problem.D * groups) * together))
        # Whole clusters, in which every block has a unit.
        units = next((n for n in range(units, problem.H + 1) if -(-problem.H // n) % together == 0), 0)
        if not units:
            if groups == 1:
                reason = f"{problem.H} hidden units do not make clusters of {together} blocks that have some each"
            break
        rows = -(-problem.B // groups)
        for variant in variants:
            alone, few = rows == 1 and together == 1, units * rows <= THREADS
            if problem.name not in variant.passes or (variant.columns == 1) != alone:
                continue
            if (variant.owned == 1) != (few or alone) and not problem.cell.sums_over_units:
                continue
            try:
                launches = _fitting(problem, device, variant, units, rows, groups, longest)
                found.append(_fastest(problem, device, launches))
            except DoesNotFit as error:
                if groups == 1:
                    reason = str(error)
        groups = -(-problem.B // (rows - 1)) if rows > 1 else problem.B + 1
    if not found:
        raise DoesNotFit(reason)
    return _fastest(problem, device, found)


_LAUNCHES = {
    "step-fused": _step_fused, "block": _block, "persistent": _persistent, "cluster": _cluster, "scatter": _scatter
}  # fmt: skip


def make(schedule: str, problem: Problem, device: Device) -> Plan:
    """The plan of a schedule; raises `DoesNotFit`."""
    if schedule == "stepwise":
        return Plan(schedule)
    plan = FusedPlan(schedule, _LAUNCHES[schedule](problem, device))
    if device.has_watchdog:
        seconds = predicted(plan, problem, device).seconds
        plan = replace(plan, most_steps=max(1, int(_SECONDS_OF_A_LAUNCH / seconds)))
    return plan


def predicted(plan: Plan, problem: Problem, device: Device) -> Prediction:
    """The predicted time of a step."""
    if not isinstance(plan, FusedPlan):
        return predict.stepwise(problem, device)
    launches = len(plan.launches(problem.phases, len(problem.products)))
    begins = plan.exchange == "launch" and not problem.backward  # one more launch, for the first operand
    return predict.one_launch(problem, device, plan.launch, launches + begins)


# ---- The choice -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A plan and its prediction for each schedule that fits the device, and the reason for each that does not."""

    problem: Problem
    device: Device
    plans: dict[str, tuple[Plan, Prediction]]
    refusals: dict[str, str]

    @property
    def best(self) -> str:
        def times(name: str) -> tuple[float, float]:  # the host may take equally long for several
            prediction = self.plans[name][1]
            return prediction.seconds, prediction.of_block

        return min(self.plans, key=times)


def consider(problem: Problem, device: Device, apart: Mapping[str, str] | None = None) -> Choice:
    """Plan all schedules except those in ``apart``, which says why their blocks do not run at once."""
    plans: dict[str, tuple[Plan, Prediction]] = {}
    refusals: dict[str, str] = dict(apart or {})
    for name in SCHEDULES:
        if name in refusals:
            continue
        try:
            plan = make(name, problem, device)
        except DoesNotFit as error:
            refusals[name] = str(error)
            continue
        plans[name] = plan, predicted(plan, problem, device)
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


def forced() -> str | None:
    """The schedule that `schedule` has fixed."""
    return _forced.get()


def is_forced() -> bool:
    """Whether `schedule` has fixed the schedule."""
    return _forced.get() is not None


LONG = 1000
"""Steps to plan for where a sequence is cut into chunks, so that all chunks of all sequences have one plan."""

_shared: contextvars.ContextVar[tuple[int, int] | None] = contextvars.ContextVar("shared", default=None)


@contextlib.contextmanager
def shared(layers: int, backward_layers: int) -> Iterator[None]:
    """Within this context, plan a chunk of a sequence for a device that so many layers share, by pass."""
    token = _shared.set((layers, backward_layers))
    try:
        yield
    finally:
        _shared.reset(token)


def share_of(device: Device, layers: int) -> Device | None:
    """The share of a device that each of so many layers has; None if they cannot have a multiprocessor each."""
    if device.multiprocessors < layers:
        return None
    return replace(device, multiprocessors=device.multiprocessors // layers, bandwidth=device.bandwidth / layers)


def choose(problem: Problem, device: Device, apart: Mapping[str, str] | None = None) -> Plan:
    """The plan that a recurrence runs by; see `consider` for ``apart``."""
    layers = _shared.get()
    if layers is not None and problem.T:
        problem, device = replace(problem, T=LONG), share_of(device, layers[problem.backward]) or device
    return _choose(problem, device, _forced.get(), tuple((apart or {}).items()))


@functools.lru_cache(1024)
def _choose(problem: Problem, device: Device, forced: str | None, apart: tuple[tuple[str, str], ...]) -> Plan:
    if not problem.T * problem.B * problem.H:
        return Plan("stepwise")
    if forced is not None:
        return make(forced, problem, device)
    choice = consider(problem, device, dict(apart))
    return choice.plans[choice.best][0]


_host_device: contextvars.ContextVar[str] = contextvars.ContextVar("host_device", default=HOST_DEVICE)


@contextlib.contextmanager
def planned_for(device: str) -> Iterator[None]:
    """Within this context, plan for the device of that name instead of `HOST_DEVICE` on the host executor."""
    token = _host_device.set(device)
    try:
        yield
    finally:
        _host_device.reset(token)


def device_of(array: Any) -> Device:
    """The device to plan for: that of a CuPy array; for anything else, that of `planned_for` or `HOST_DEVICE`."""
    return devices.of_index(array.data.device_id) if is_cupy_array(array) else devices.lookup(_host_device.get())
