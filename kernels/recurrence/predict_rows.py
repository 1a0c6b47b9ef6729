"""The predicted cost, except products, of a step of a cell with sums over units; ``predict.py`` has the other cells.

In a block of ``recurrence/rows.cu`` a few warps share a row of the batch. They go through its units once for the gates
and once more for each sum. Between a product and the steps of its rows, all blocks that share the rows exchange data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..devices import Device
    from .plan import Launch, Problem

THREADS = 256
"""Threads of a block."""

UNIT_CLOCKS, READ_CLOCKS = 450, 270
"""Assumed clocks of a thread for the gates of a unit, and for reading a unit again."""

SUM_CLOCKS = 250
"""Assumed clocks of a sum over the threads of a row, by shuffles and two barriers of the block."""


def warps_of_row(H: int) -> int:
    """The number of warps that share a row of the batch, as in ``recurrence/rows.cuh``."""
    return next((warps for warps in (1, 2, 4) if warps * 64 >= H), 8)


def rows_at_once(H: int) -> int:
    """The number of batch rows that a block has at once."""
    return THREADS // (32 * warps_of_row(H))


def clocks(problem: Problem, device: Device, launch: Launch | None) -> float:
    """The clocks of a step in the block that takes the longest; ``launch`` is a fused kernel's, if there is one."""
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
    """Bytes of global memory that a step amid a sequence loads and stores for its rows, in training, with both biases.

    Numbers that the lanes of a warp load together count once: of an array with one number per unit, ``of_units`` count.
    With ``by_units``, steps end where their units' products are, and products are not in global memory.
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
    """Whether zoneout keeps a part of h."""
    rate = cell.zoneout[0] if isinstance(cell.zoneout, tuple) else cell.zoneout
    return bool(rate) or "zoneout_h" in cell.step_masks


def _forward(problem: Problem) -> tuple[int, int]:
    """Per row: how many numbers have the arrays' dtype, and how many the accumulator's."""
    cell, H, P = problem.cell, problem.H, problem.width
    G, S, phases, normed, projected = cell.gates, len(cell.saved), len(cell.phases), cell.normalises, cell.projects
    numbers = 2 * G * H  # products and W_ih x
    reals = phases * len(cell.step_masks) * H
    if normed:  # products twice more, weights, normalised values
        numbers, reals = numbers + 4 * G * H, reals + len(cell.norm_groups)
    numbers += S * H
    if cell.states > 1:
        reals += 2 * H
        if normed:  # c: stored, read for both moments, read and stored; its weights; saved values
            numbers, reals = numbers + (S + 7) * H, reals + 1
        if projected:  # u, and its product
            numbers, reals = numbers + H + P, reals + len(cell.step_masks) * _keeps_h(cell) * P
    elif phases > 1:  # the operand, gates of the phase before, h
        numbers, reals = numbers + (1 + cell.phases[0]) * H, reals + H
    return numbers + 2 * P, reals + 2 * P  # y and the next operand; h


def _backward(problem: Problem) -> tuple[int, int]:
    """The same numbers as `_forward`, for the backward pass."""
    cell, H, P = problem.cell, problem.H, problem.width
    G, S, phases, normed, projected = cell.gates, len(cell.saved), len(cell.phases), cell.normalises, cell.projects
    # Masks, if zoneout keeps a part of h.
    kept = sum(name.startswith("zoneout") for name in cell.step_masks) if _keeps_h(cell) else 0
    numbers, reals = 2 * P, 4 * P  # the product and dy; dh and the part past the product
    if normed:  # twice: gradients, weights, normalised values; then roots, which a warp reads together
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
        if waiting:  # saved values, product and operand of phase 0; the part past phase 0, stored and loaded
            numbers, reals = numbers + (S + 2 + waiting) * H, reals + 2 * H
    return numbers, reals
