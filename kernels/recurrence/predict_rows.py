"""What a step of a cell with sums over units takes besides its products, as ``predict.py`` says it of the others.

In a block of ``recurrence/rows.cu`` a few warps have a row of the batch. They go through its units once for the gates
and once more for each sum. Between a product and the steps of rows all blocks that share rows exchange.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..devices import Device
    from .plan import Launch, Problem

THREADS = 256
"""Of a block."""

UNIT_CLOCKS, READ_CLOCKS = 450, 270
"""Assumed clocks of a thread for the gates of a unit, and until it has read one again."""

SUM_CLOCKS = 250
"""Assumed clocks of a sum over the threads of a row, by shuffles and two barriers of the block."""


def warps_of_row(H: int) -> int:
    """The warps that have a row of the batch, as ``recurrence/rows.cuh`` says."""
    return next((warps for warps in (1, 2, 4) if warps * 64 >= H), 8)


def rows_at_once(H: int) -> int:
    """The rows of the batch that a block has at once."""
    return THREADS // (32 * warps_of_row(H))


def clocks(problem: Problem, device: Device, launch: Launch | None) -> float:
    """Those of a step, of the block that takes the longest; ``launch`` is that of a fused kernel."""
    cell, at_once = problem.cell, rows_at_once(problem.H)
    if launch is None or launch.variant.exchange == "launch":
        turns = -(-problem.D * -(-problem.B // at_once) // device.multiprocessors)
    else:
        turns = -(-launch.rows // (at_once * launch.grid[0]))
    of_thread = -(-problem.H // (32 * warps_of_row(problem.H)))
    norms = (len(cell.phases) + cell.states - 1) * cell.normalises
    sums = norms if problem.backward else 2 * norms
    gates = len(problem.products) * (of_thread * UNIT_CLOCKS + READ_CLOCKS)
    return turns * (gates + sums * (SUM_CLOCKS + of_thread * READ_CLOCKS))


def bytes_of_rows(problem: Problem, of_units: int, *, by_units: bool = False) -> int:
    """Of global memory that the steps amid a sequence load and store, in training, with both biases.

    Numbers that the lanes of a warp load together count once: ``of_units`` are those of an array that has one for each
    unit. If units are by themselves, ``by_units``, products are not in global memory.
    """
    cell = problem.cell
    numbers, reals = (_backward if problem.backward else _forward)(problem)
    if by_units:
        numbers -= sum(N for N, _ in problem.products)
    real = np.dtype(problem.dtype.accumulator).itemsize
    total = problem.D * problem.B * (numbers * problem.dtype.itemsize + reals * real)
    diagonal = len(cell.diagonal) * (1 if problem.backward else len(cell.phases))
    biases = 0 if problem.backward else 2 * cell.gates
    return total + of_units * (biases * problem.dtype.itemsize + diagonal * real)


def _keeps_h(cell: Any) -> bool:
    """Whether a part of h stays as it was."""
    rate = cell.zoneout[0] if isinstance(cell.zoneout, tuple) else cell.zoneout
    return bool(rate) or "zoneout_h" in cell.step_masks


def _forward(problem: Problem) -> tuple[int, int]:
    """Numbers of a row that are stored as arrays have them, and those that are stored as they are computed."""
    cell, H, P = problem.cell, problem.H, problem.width
    G, S, phases, normed, projected = cell.gates, len(cell.saved), len(cell.phases), cell.normalises, cell.projects
    numbers = 2 * G * H  # products and W_ih x
    reals = phases * len(cell.step_masks) * H
    if normed:  # products twice more, weights, what is normalised
        numbers, reals = numbers + 4 * G * H, reals + len(cell.norm_groups)
    numbers += S * H
    if cell.states > 1:
        reals += 2 * H
        if normed:  # c: stored, read for both moments, read and stored; its weights; what was saved
            numbers, reals = numbers + (S + 7) * H, reals + 1
        if projected:  # u, and its product
            numbers, reals = numbers + H + P, reals + len(cell.step_masks) * _keeps_h(cell) * P
    elif phases > 1:  # the operand, gates of the phase before, h
        numbers, reals = numbers + (1 + cell.phases[0]) * H, reals + H
    return numbers + 2 * P, reals + 2 * P  # y and the next operand; h


def _backward(problem: Problem) -> tuple[int, int]:
    """As `_forward`."""
    cell, H, P = problem.cell, problem.H, problem.width
    G, S, phases, normed, projected = cell.gates, len(cell.saved), len(cell.phases), cell.normalises, cell.projects
    # Masks, where a part of h stays as it was.
    kept = sum(name.startswith("zoneout") for name in cell.step_masks) if _keeps_h(cell) else 0
    numbers, reals = 2 * P, 4 * P  # the product and dy; dh and the part past the product
    if normed:  # twice: gradients, weights, what was normalised; then roots, which a warp reads together
        numbers, reals = numbers + 7 * G * H, reals + G * -(-H // 32)
    if cell.states > 1:
        numbers, reals = numbers + (S + G) * H + (kept + projected) * P, reals + 2 * H
        if normed:
            numbers, reals = numbers + (S + 12) * H, reals + -(-H // 32)
        if projected:
            numbers += H
        else:
            numbers, reals = numbers + kept * P, reals + P
    else:
        waiting = phases - 1
        numbers += (S + G - waiting + G * cell.hidden_apart) * H
        if waiting:  # what was saved, the product and the operand of phase 0; what goes past phase 0, to and fro
            numbers, reals = numbers + (S + 2 + waiting) * H, reals + 2 * H
    return numbers, reals
