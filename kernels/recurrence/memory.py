"""The memory that a recurrence takes: a walk through the allocations of `layer.py` and `run.py`."""

from __future__ import annotations

from gpurnn._contract import Array, Memory
from gpurnn.cells import Cell

from .. import dtypes
from . import plan
from .layer import chunks_of
from .plan import FusedPlan, Problem


class RecurrenceMemory(Memory):
    """The memory of the calls of a recurrence, in bytes that arrays need: a pool rounds them up.

    Layers of a stack that run at once take less: they hold W_ih x for one chunk of steps only.
    """

    def __init__(self, problem: Problem, is_fused: bool) -> None:
        super().__init__(problem.dtype.itemsize)
        self.problem, self.is_fused = problem, is_fused

    def forward(self, I: int, *, training: bool) -> None:
        cell, T, B, H, D = self._sizes()
        P, slots = self.problem.width, T if training else 2
        phases, by_rows, normed = len(cell.phases), cell.sums_over_units, cell.normalises
        weights = D * sum(N * K for N, K in self.problem.products)
        history = D * slots * B * (P + H * (len(self.problem.products) - 1))
        if training or by_rows or phases > 1:
            history += D * slots * B * len(cell.saved) * H
        if normed:
            history += D * slots * B * (cell.gates + 1) * H
        if training or D > 1 or by_rows:
            history += weights  # copies for the steps
        if training:
            history += T * B * I
        self.take(history)
        if by_rows and phases > 1:  # all of W_hh, before it is cut into phases
            self.free(self.take(weights))
        working = self.take(D * cell.gates * H * (T * B + (2 if D > 1 else 0)))  # W_ih x, and biases
        if training and normed:
            self.take(D * cell.gates * H * T * B)
        self.take(T * B * D * P)
        if not self.is_fused or by_rows:
            working += self.take(D * B * sum(N for N, _ in self.problem.products))
        if training:
            self.take(D * cell.gates * H * I)
        self.free(working if training else working + history)

    def backward(self, I: int) -> None:
        cell, T, B, H, D = self._sizes()
        P, of_gates, normed = self.problem.width, cell.gates * H, cell.normalises
        phases, weights = len(cell.phases), of_gates * (I + 2) + sum(N * K for N, K in self.problem.products)
        gates = self.take((1 + cell.hidden_apart) * D * T * B * of_gates)
        if normed:  # the gradients of the products, of W_ih x and of the normalised c
            gates += self.take(2 * D * T * B * of_gates + (cell.states - 1) * D * T * B * H)
        if cell.projects:
            gates += self.take(D * T * B * P)
        # The scratch arrays of the steps are left out: they are free again before larger gradients are allocated.
        self.take(T * B * I + D * B * sum(cell.state_sizes(H)))
        for d in range(D):
            for number, rows in enumerate(chunks_of(T, B)):
                if d > 0:  # its part of the gradient of x
                    self.free(self.take((rows.stop - rows.start) * I))
                self.take(weights)
                if phases > 1:  # the gradient of each phase's rows, and all of them
                    self.free(self.take(of_gates * H))
                if normed:  # the terms of the gradients of the norms' weights
                    self.free(self.take((rows.stop - rows.start) * of_gates))
                if number > 0:  # the sum of the chunks before, this one's, and the sum of both
                    self.take(weights)
                    self.free(2 * weights)
        self.free(gates)

    def _sizes(self) -> tuple[Cell, int, int, int, int]:
        return self.problem.cell, self.problem.T, self.problem.B, self.problem.H, self.problem.D


def recurrence_memory(cell: Cell, T: int, B: int, H: int, D: int, like: Array) -> RecurrenceMemory:
    """Count the bytes that a recurrence allocates; arguments and result are as in ``gpurnn.reference``."""
    problem = Problem(cell, T, B, H, D, dtypes.of(like))
    return RecurrenceMemory(problem, isinstance(plan.choose(problem, plan.device_of(like)), FusedPlan))
