"""Predictions of the time of a recurrence's step and of the bytes that it moves. Nothing is measured.

A recurrence is a chain: no part of step t can begin before step t - 1 has ended. Within a step a block does one thing
after another: it loads the operand, multiplies, adds up partial sums, computes the gates, and passes on the data
that other blocks wait for. So these times add up, each for the work that the schedule really gives a block: whole
tiles, whole warps, whole turns. Meanwhile the host makes the launches, and memory moves the data that does not depend
on the step before; a step lasts at least as long as either. The bytes are those that the host executor's counts build
counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..devices import Device, launch_seconds
from ..dtypes import Dtype
from ..launch import MOST_NODES
from . import predict_rows

if TYPE_CHECKING:
    from .plan import Launch, Problem, Variant

LAUNCH = 2.5e-6
_BARRIER = 1.0e-6
_BLOCK_BARRIER = 0.1e-6
"""Assumed seconds from one dependent kernel to the next, of a barrier of the whole grid, and of the barriers within a
block. These are commonly reported orders of magnitude, not measured here."""

_CLUSTER_BARRIER, _CLUSTER_CLOCKS, _CLUSTER_BYTES_PER_CLOCK = 0.3e-6, 200, 10
"""Also assumed: seconds of a barrier of a cluster, with its fence; clocks of a load from the shared memory of another
block; and the bytes that a multiprocessor gets per clock if all others do too."""

_EXCHANGE = {
    "launch": LAUNCH, "grid": _BARRIER, "block": _BLOCK_BARRIER, "cluster": _BARRIER + _CLUSTER_BARRIER,
    "scatter": _BARRIER,
}  # fmt: skip

_L2_BYTES_PER_CLOCK = 21
"""Assumed bytes per clock that a multiprocessor gets from the L2 cache if all others do too: 5.5 TB/s on an H100."""

_L2_CLOCKS, _SHARED_CLOCKS = 270, 30
"""Assumed clocks that a warp waits for a load from the L2 cache, and from shared memory. It waits once in each round of
the product's loop, and once more if no other warp of its scheduler has work."""

_PACKETS_AT_ONCE = 4
"""Packets of an operand that a thread loads before it stores them."""

_UNIT_CLOCKS = 450
"""Assumed clocks of a thread for the gates of a hidden unit, whose operations wait for each other."""

_TILE_INSTRUCTIONS, _TILE_SUM_INSTRUCTIONS = 70, 4
"""Roughly the instructions of a warp before and after the loop of a tile, and for each of its sums over lanes."""

_PUBLISH_INSTRUCTIONS = 3
"""Roughly the instructions of a warp for each sum of a tile that other blocks read."""

_WAITING = 2.2
"""Clocks of each of these instructions for a warp alone: they wait for each other."""

_SUM_CLOCKS = 8
"""Roughly the clocks in which a thread adds a partial sum of a gate to the others."""

_LOOP_INSTRUCTIONS = {"launch": 5, "block": 5, "grid": 5, "cluster": 5, "scatter": 6}
"""Instructions of a round of the product's loop that count and step, by exchange, from the machine code."""

_ADDRESS_INSTRUCTIONS = 2
"""Instructions of a round for the address of a row of weights in global memory, from the machine code."""

_WAVEFRONTS = 4
"""Wavefronts of a 128-bit load by a warp: 32 banks deliver 128 bytes per clock, from the L1 cache too."""

_SCHEDULERS = 4
"""Schedulers of a multiprocessor; each issues one instruction of one of its warps per clock."""


@dataclass(frozen=True)
class Prediction:
    """The predicted time of a step of a pass, in seconds."""

    load: float
    """Loading the operand from the L2 cache to shared memory."""
    product: float
    reduction: float
    """Adding up partial sums."""
    gates: float
    exchange: float
    """A barrier or the next launch: until all blocks that need an operand can load it."""
    host: float
    """CPU time of the launches."""
    memory: float
    """Stores, and loads ahead of their use."""
    launches: int
    """Launches of the whole pass."""

    @property
    def phases(self) -> dict[str, float]:
        """The times of a block's phases, which follow one another."""
        return {name: getattr(self, name) for name in ("load", "product", "reduction", "gates", "exchange")}

    @property
    def of_block(self) -> float:
        """The time of a block for all its phases."""
        return self.load + self.product + self.reduction + self.gates + self.exchange

    @property
    def seconds(self) -> float:
        return max(self.of_block, self.host, self.memory)

    @property
    def bound_by(self) -> str:
        """The name of the largest term."""
        if self.seconds > self.of_block:
            return "host" if self.host > self.memory else "memory"
        return max(self.phases, key=lambda term: self.phases[term])


@dataclass(frozen=True)
class Product:
    """The product of a phase in a block: N rows of weights times K columns, as far as the block has them."""

    N: int
    K: int
    tiles: int
    """Tiles of weight rows."""
    widths: int
    """Widths of columns."""

    @classmethod
    def of(cls, problem: Problem, units: int, variant: Variant) -> list[Product]:
        """The products of a step in a block of ``units``, or in the first block of a cluster of such blocks."""
        width, products, blocks = variant.width(problem.dtype), [], -(-problem.H // units)
        joint = min(units * variant.blocks, problem.H)
        for rows, K in problem.products:
            if problem.ends_by_rows(variant.exchange) or rows % problem.H:  # a projection has rows of its own
                N = -(-rows // blocks)
            else:
                N = joint * rows // problem.H
            widths = math.ceil(-(-K // width) / variant.blocks)
            products.append(cls(N, min(K, widths * width), -(-N // variant.tile_rows), widths))
        return products


def _sizes(problem: Problem, units: int) -> list[tuple[int, int]]:
    """The rows and columns of the weights in each product of a step, for some hidden units."""
    H, gates = problem.H, problem.cell.phases
    return [(units, n * H) if problem.backward else (units * n, H) for n in gates]


# ---- Time -----------------------------------------------------------------------------------------------------------


def multiply_adds(variant: Variant, dtype: Dtype) -> int:
    """Multiply-adds of a warp for a width of the product."""
    return variant.tile_rows * variant.columns * (16 // dtype.itemsize)


def instructions(variant: Variant, dtype: Dtype) -> float:
    """All instructions of a warp for a width of the product, with its share of what a round of the loop has once."""
    of_round = _LOOP_INSTRUCTIONS[variant.exchange]
    if variant.exchange == "launch":
        of_round += _ADDRESS_INSTRUCTIONS * variant.tile_rows
    loads = variant.columns + variant.tile_rows
    return multiply_adds(variant, dtype) + loads + of_round / variant.unrolled(dtype)


def one_launch(problem: Problem, device: Device, launch: Launch, launches: int) -> Prediction:
    """The terms of a step of a pass of that many launches, by a kernel that can run all steps in one launch."""
    return (scatter if launch.variant.exchange == "scatter" else fused)(problem, device, launch, launches)


def _issue_clocks(variant: Variant, problem: Problem, device: Device) -> float:
    """The clocks to issue the instructions for a width of the product, for a scheduler with one warp.

    An instruction of a warp takes its scheduler one clock, or as long as the units behind it need for 32 lanes.
    """
    pace = 32 * _SCHEDULERS / device.limits.fma[problem.dtype.accumulator]
    return max(instructions(variant, problem.dtype), multiply_adds(variant, problem.dtype) * pace)


def scatter(problem: Problem, device: Device, launch: Launch, launches: int) -> Prediction:
    """The terms of a step of ``recurrence/scatter.cu``."""
    variant, real = launch.variant, np.dtype(problem.dtype.accumulator).itemsize
    size, blocks, clock = variant.width(problem.dtype), launch.grid[0], device.clock_hz
    # Sums of other blocks: each slice of the threads adds up those of some blocks.
    to_read = -(-launch.units * launch.rows * real // 16)
    slices = launch.block[0] // to_read
    rounds = math.ceil(math.ceil(blocks / slices) / _PACKETS_AT_ONCE)
    load = max(rounds * _L2_CLOCKS + _SHARED_CLOCKS, blocks * to_read * 16 / _L2_BYTES_PER_CLOCK)
    warps = -(-min(problem.H, launch.block[0]) // 32)
    together = -(-warps // _SCHEDULERS)
    packets, issue = -(-problem.cell.gates * launch.units // size), _issue_clocks(variant, problem, device)
    held = min(variant.held, packets)
    of_stored, of_held = (
        max(together * issue, warps * loads * _WAVEFRONTS) + _SHARED_CLOCKS * (1 + 1 / together)
        for loads in (variant.columns + variant.tile_rows, variant.columns)
    )
    turns = -(-launch.rows // variant.columns)
    product = turns * ((packets - held) * of_stored + held * of_held)
    of_tile = _TILE_INSTRUCTIONS + _PUBLISH_INSTRUCTIONS * variant.tile_rows * variant.columns
    published = max(turns * together * of_tile, launch.rows * problem.H * real / _L2_BYTES_PER_CLOCK)
    return Prediction(
        load=load / clock,
        product=product / clock,
        reduction=slices * _SUM_CLOCKS / clock,
        gates=_UNIT_CLOCKS / clock,
        exchange=_EXCHANGE["scatter"] + published / clock,
        host=launches / problem.T * launch_seconds(),
        memory=problem.units * _unit_bytes(problem, 0) / device.bandwidth,
        launches=launches,
    )


def fused(problem: Problem, device: Device, launch: Launch, launches: int) -> Prediction:
    """The terms of a step of a schedule of ``recurrence/fused.cu`` whose pass has that many launches."""
    variant, itemsize = launch.variant, problem.dtype.itemsize
    width, exchange = variant.width(problem.dtype), variant.exchange
    issue = _issue_clocks(variant, problem, device)
    column_tiles = -(-launch.rows // variant.columns)
    turns = -(-column_tiles // launch.at_once)
    of_tile = _TILE_INSTRUCTIONS + _TILE_SUM_INSTRUCTIONS * variant.tile_rows * variant.columns
    by_rows = problem.ends_by_rows(exchange)
    owned = -(-launch.units * launch.rows // launch.block[0])
    load = product = reduction = 0.0
    for part in Product.of(problem, launch.units, variant):
        tiles = min(part.tiles, variant.tiles_at_once // launch.parts)
        warps = -(-tiles * launch.parts * launch.at_once * variant.tile_lanes // 32)
        together = -(-warps // _SCHEDULERS)
        rounds, widths = -(-part.tiles // tiles), -(-part.widths // launch.parts)
        held = min(variant.held, widths)
        of_stored, of_held = (
            max(together * issue, warps * loads * _WAVEFRONTS) + _SHARED_CLOCKS * (1 + 1 / together)
            for loads in (variant.columns + variant.tile_rows, variant.columns)
        )
        multiplying = turns * ((rounds * widths - held) * of_stored + held * of_held)
        if exchange == "launch":
            multiplying = max(multiplying, part.N * part.K * itemsize / _L2_BYTES_PER_CLOCK)
        product += multiplying
        reduction += turns * rounds * max(together, _WAITING) * of_tile
        # A thread adds up the sums that its units need or, if others end the steps, its part of all sums.
        joint = min(launch.units * variant.blocks, problem.H)
        totals = -(-part.N * launch.rows // launch.block[0]) if by_rows else owned * -(-part.N // joint)
        totals *= variant.blocks
        reduction += totals * launch.sums * _SUM_CLOCKS
        if exchange == "cluster":
            of_block = launch.units * launch.rows * variant.blocks * launch.sums * -(-part.N // joint)
            of_block *= np.dtype(problem.dtype.accumulator).itemsize
            reduction += max(owned * launch.sums * _CLUSTER_CLOCKS, of_block / _CLUSTER_BYTES_PER_CLOCK)
        if exchange != "block":
            chunks = -(-part.widths * width // launch.chunk)
            again = rounds if chunks > 1 else 1
            load += again * _load_clocks(launch, part.K, itemsize, turns, chunks)
    waves = -(-math.prod(launch.grid) // device.multiprocessors)
    phases, clock = len(problem.products), device.clock_hz / waves
    gates = float(phases * owned * _UNIT_CLOCKS)
    exchanges = phases * _EXCHANGE[exchange]
    from_memory = problem.units * _unit_bytes(problem, phases if exchange == "launch" else 0)
    if problem.cell.sums_over_units:
        alone = exchange == "grid" and launch.grid[0] == 1
        exchanges = problem.exchanges(exchange) * _EXCHANGE["block" if alone else exchange]
        from_memory = _row_bytes(problem, launch)
    if by_rows:
        of_rows = predict_rows.clocks(problem, device, launch)
        gates = of_rows / waves if exchange == "launch" else of_rows  # by "launch", rows have launches of their own
        if exchange == "launch":
            launches = problem.exchanges(exchange) * problem.T + problem.backward
    # Launches are one graph from the second call with the same shapes on.
    in_graph = exchange == "launch" and launches <= MOST_NODES and not by_rows
    if exchange == "launch" and problem.weight_bytes > device.l2_bytes:
        from_memory += problem.weight_bytes
    return Prediction(
        load=load / clock,
        product=product / clock,
        reduction=reduction / clock,
        gates=gates / clock,
        exchange=exchanges,
        host=0.0 if in_graph else launches / problem.T * launch_seconds(),
        memory=from_memory / device.bandwidth,
        launches=launches,
    )


def _load_clocks(launch: Launch, K: int, itemsize: int, turns: int, chunks: int) -> float:
    """The clocks to bring an operand through shared memory, or for the L2 cache to deliver it, whichever are more."""
    columns = launch.variant.columns
    of_thread = -(-launch.chunk * columns * itemsize // (launch.block[0] * 16))  # packets of a row
    rounds = -(-min(launch.rows, launch.at_once * columns) // columns) * -(-of_thread // _PACKETS_AT_ONCE)
    waiting = turns * chunks * (rounds * _L2_CLOCKS + _SHARED_CLOCKS)
    return max(waiting, launch.rows * K * itemsize / _L2_BYTES_PER_CLOCK)


def stepwise(problem: Problem, device: Device) -> Prediction:
    """The terms of a step of the schedule of ``recurrence/stepwise.cu``.

    The library's products are assumed to reach the peak of arithmetic or of the L2 cache, whichever is less. Each costs
    the host one launch.
    """
    phases, l2_rate = len(problem.products), _L2_BYTES_PER_CLOCK * device.multiprocessors * device.clock_hz
    of_step = phases * (problem.D + 1)
    from_memory = problem.weight_bytes if problem.weight_bytes > device.l2_bytes else 0
    by_rows = problem.cell.sums_over_units
    gates = predict_rows.clocks(problem, device, None) if by_rows else phases * _UNIT_CLOCKS
    of_units = kernel_bytes(problem, None) if by_rows else problem.units * _unit_bytes(problem, 0)
    return Prediction(
        load=0.0,
        product=max(
            problem.flops / device.peak_flops(problem.dtype.accumulator),
            library_bytes(problem) / l2_rate,
            from_memory / device.bandwidth,
        ),
        reduction=0.0,
        gates=gates / device.clock_hz + kernel_bytes(problem, None) / l2_rate,
        exchange=of_step * LAUNCH,
        host=of_step * launch_seconds(),
        memory=(from_memory + of_units) / device.bandwidth,
        launches=1 + problem.T * of_step,
    )


# ---- Bytes ----------------------------------------------------------------------------------------------------------


def library_bytes(problem: Problem) -> int:
    """Bytes of the stepwise schedule's products in a step, if each reads weights and operand once and writes once."""
    numbers = sum(N + K for N, K in problem.products)
    return problem.weight_bytes + problem.D * problem.B * numbers * problem.dtype.itemsize


def kernel_bytes(problem: Problem, launch: Launch | None) -> int:
    """Bytes of global memory that the kernels of a step amid a sequence load and store, in training.

    Numbers that the lanes of a warp load together count once, as the counts build of the host executor counts them. The
    words of barriers do not count. Without a ``launch`` of a fused kernel, the schedule is stepwise.
    """
    if problem.cell.sums_over_units:
        of_products = 0 if launch is None else _bytes_of_products(problem, launch)
        return _row_bytes(problem, launch) + of_products
    if launch is None:
        return _stepwise_bytes(problem)
    return (_scatter_bytes if launch.variant.exchange == "scatter" else _fused_bytes)(problem, launch)


def exchanged_bytes(problem: Problem, launch: Launch) -> int:
    """Bytes of global memory that blocks read from each other in a step and, with "scatter", write for each other."""
    if launch.variant.exchange != "scatter":
        return kernel_bytes(problem, launch) - problem.units * _unit_bytes(problem, 0)
    real, blocks = np.dtype(problem.dtype.accumulator).itemsize, launch.grid[0]
    read = sum(
        count * groups * blocks * -(-units * rows * real // 16) * 16
        for units, count in _pieces(problem.H, launch.units)
        for rows, groups in _pieces(problem.B, launch.rows)
    )
    return problem.D * (read + blocks * problem.B * problem.H * real)


def _scatter_bytes(problem: Problem, launch: Launch) -> int:
    return problem.units * _unit_bytes(problem, 0) + exchanged_bytes(problem, launch)


def _row_bytes(problem: Problem, launch: Launch | None) -> int:
    """Bytes that a step of a cell with sums over units loads and stores besides the operands of products."""
    exchange = "launch" if launch is None else launch.variant.exchange
    if launch is None or problem.ends_by_rows(exchange):
        return predict_rows.bytes_of_rows(problem, problem.D * problem.B * problem.H)
    # Lanes of a warp with the same unit of several rows load the unit's own numbers together.
    of_units = sum(
        columns * groups * _loaded(units * rows, units)
        for units, columns in _pieces(problem.H, -(-problem.H // launch.grid[0]))
        for rows, groups in _pieces(problem.B, launch.rows)
    )
    return predict_rows.bytes_of_rows(problem, problem.D * of_units, by_units=True)


def _bytes_of_products(problem: Problem, launch: Launch) -> int:
    """Bytes of the products in a step, with their results if a step ends by rows."""
    by_rows, numbers = problem.ends_by_rows(launch.variant.exchange), 0
    for N, K in problem.products:
        gates = 1 if by_rows or N % problem.H else N // problem.H
        for own, columns in _pieces(N // gates, -(-N // gates // launch.grid[0])):
            for rows, groups in _pieces(problem.B, launch.rows):
                read = _product_numbers(problem, launch, own * gates, K, rows)
                numbers += columns * groups * (read + own * rows * by_rows)
    return problem.D * numbers * problem.dtype.itemsize


def _fused_bytes(problem: Problem, launch: Launch) -> int:
    cell, itemsize, real = problem.cell, problem.dtype.itemsize, np.dtype(problem.dtype.accumulator).itemsize
    launches = len(cell.phases) if launch.variant.exchange == "launch" else 0
    total = problem.units * _unit_bytes(problem, launches)
    for units, columns in _pieces(problem.H, launch.units * launch.variant.blocks):
        for rows, groups in _pieces(problem.B, launch.rows):
            numbers = sum(_product_numbers(problem, launch, N, K, rows) for N, K in _sizes(problem, units))
            if launches and not problem.backward:
                numbers += launches * 2 * cell.gates * units  # biases
            of_units = launches * len(cell.diagonal) * _loaded(units * rows, units)
            total += problem.D * columns * groups * (numbers * itemsize + of_units * real)
    return total


def cluster_bytes(problem: Problem, launch: Launch) -> int:
    """Bytes that blocks load in a step from the shared memory of their cluster's blocks, their own included."""
    sums = launch.sums * sum(1 if problem.backward else gates for gates in problem.cell.phases)
    return problem.units * launch.variant.blocks * sums * np.dtype(problem.dtype.accumulator).itemsize


def _product_numbers(problem: Problem, launch: Launch, N: int, K: int, rows: int) -> int:
    """Numbers that a block of ``rows``, or a cluster, loads for a product of N rows of weights times K columns."""
    variant, parts = launch.variant, launch.parts
    if variant.exchange == "block":
        return 0
    width, of_warp = variant.width(problem.dtype), 32 // variant.tile_lanes
    all_tiles, widths = -(-N // variant.tile_rows), -(-K // width)
    tiles = min(all_tiles, variant.tiles_at_once // parts)
    rounds = range(0, all_tiles, tiles)
    of_block = -(-widths // variant.blocks) * width
    numbers = sum(
        rows * columns * (len(rounds) if launch.chunk < columns else 1)
        for columns in (min(of_block, K - begin) for begin in range(0, K, of_block))
    )
    if variant.among_blocks:
        return numbers
    # A tile that reaches over the edge reads rows of weights again. Groups of lanes that differ only in their batch
    # rows read the same.
    at_once = min(widths, launch.chunk // width)
    of_part = [0] * parts
    for begin in range(0, widths, at_once):
        each, more = divmod(min(at_once, widths - begin), parts)
        for part in range(parts):
            first = begin + part * each + min(part, more)
            end = first + each + (part < more)
            of_part[part] += min(K, end * width) - min(K, first * width)
    for row in range(0, rows, launch.at_once * variant.columns):
        columns = min(launch.at_once, -(-(rows - row) // variant.columns))
        for first in rounds:
            groups = {
                (index // of_warp, index // parts % tiles, index % parts)
                for index in range(columns * tiles * parts)
                if first + index // parts % tiles < all_tiles
            }
            numbers += variant.tile_rows * sum(of_part[part] for _, _, part in groups)
    return numbers


def _stepwise_bytes(problem: Problem) -> int:
    """Bytes of the kernels of ``recurrence/stepwise.cu`` in a step."""
    cell, real = problem.cell, np.dtype(problem.dtype.accumulator).itemsize
    later = len(cell.phases) - 1
    # Backward: products; loads and stores of the state's gradient, of the part past the products and past phase 0.
    if problem.backward:
        products, reals = 1 + later, 2 * cell.states + 2 + 2 * later
        products += later * len(cell.saved)  # inputs of a later phase
    else:
        products, reals = cell.gates, 2 * cell.states + later + later * len(cell.step_masks)
    total = problem.units * (_unit_bytes(problem, 0) + products * problem.dtype.itemsize + reals * real)
    # Warps have consecutive units of both directions, and load a gate's numbers of each unit.
    in_direction = problem.B * problem.H
    of_gate = sum(_loaded(in_direction, problem.H, d * in_direction) for d in range(problem.D))
    total += of_gate * (1 + later) * len(cell.diagonal) * real
    return total if problem.backward else total + of_gate * 2 * cell.gates * problem.dtype.itemsize


def _unit_bytes(problem: Problem, launches: int) -> int:
    """Bytes that the thread of a hidden unit of a row loads and stores in a step of that many launches.

    Each launch loads and stores the state. With ``launches`` 0, one launch for the whole sequence keeps it.
    """
    cell, real = problem.cell, np.dtype(problem.dtype.accumulator).itemsize
    phases, saved, again = len(cell.phases), len(cell.saved), max(launches, 1)
    if problem.backward:
        # In each launch, dy and the saved values. Then the gates' gradients, and operands of later phases.
        numbers = again * (1 + saved) + cell.gates * (1 + cell.hidden_apart) + phases - 1
        carried = cell.states + phases  # with the part past the products
        masks = 0
    else:
        # W_ih x; the saved values, and again those of earlier phases; y; operands.
        numbers = cell.gates + saved + cell.gates - cell.phases[-1] + 1 + phases
        carried, masks = cell.states, again * len(cell.step_masks)
    return numbers * problem.dtype.itemsize + (2 * launches * carried + masks) * real


def _pieces(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``total`` into parts of at most ``size``: the sizes of the parts, and how many there are of each."""
    whole, rest = divmod(total, size)
    if whole:
        yield size, whole
    if rest:
        yield rest, 1


def _loaded(lanes: int, apart: int, begin: int = 0) -> int:
    """Numbers that consecutive lanes load if every ``apart``-th one loads the same; each counts once per warp."""
    first = min(-begin % 32, lanes)
    whole, rest = divmod(lanes - first, 32)
    return min(first, apart) + whole * min(32, apart) + min(rest, apart)
