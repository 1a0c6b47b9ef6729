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

    Layers of a stack that run at once take less: they hold W_ih x of a chunk of steps alone.
    """

    def __init__(self, problem: Problem, is_fused: bool) -> None:
        super().__init__(problem.dtype.itemsize)
        self.problem, self.is_fused = problem, is_fused

    def forward(self, I: int, *, training: bool) -> None:
        cell, T, B, H, D = self._sizes()
        phases, slots = len(cell.phases), T if training else 2
        history = phases * D * slots * B * H
        if training or phases > 1:
            history += D * slots * B * len(cell.saved) * H
        if training or D > 1:
            history += D * cell.gates * H * H  # the weights of the steps
        if training:
            history += T * B * I
        self.take(history)
        working = self.take(D * cell.gates * H * (T * B + (2 if D > 1 else 0)))  # W_ih x, and biases
        self.take(T * B * D * H)
        if not self.is_fused:
            working += self.take(D * B * cell.gates * H)
        if training:
            self.take(D * cell.gates * H * I)
        self.free(working if training else working + history)

    def backward(self, I: int) -> None:
        cell, T, B, H, D = self._sizes()
        phases, weights = len(cell.phases), cell.gates * H * (I + H + 2)
        gates = self.take((1 + cell.hidden_apart) * D * T * B * cell.gates * H)
        # The scratch arrays of the steps are left out: they are free again before larger gradients are allocated.
        self.take(T * B * I + cell.states * D * B * H)
        for d in range(D):
            for number, rows in enumerate(chunks_of(T, B)):
                if d > 0:  # its part of the gradient of x
                    self.free(self.take((rows.stop - rows.start) * I))
                self.take(weights)
                if phases > 1:  # the gradient of each phase's rows, and all of them
                    self.free(self.take(cell.gates * H * H))
                if number > 0:  # the sum of the chunks before, this one's, and the sum of both
                    self.take(weights)
                    self.free(2 * weights)
        self.free(gates)

    def _sizes(self) -> tuple[Cell, int, int, int, int]:
        return self.problem.cell, self.problem.T, self.problem.B, self.problem.H, self.problem.D


def recurrence_memory(cell: Cell, T: int, B: int, H: int, D: int, like: Array) -> RecurrenceMemory:
    """Count the bytes that a recurrence allocates; arguments and result are those of ``gpurnn.reference``'s."""
    problem = Problem(cell, T, B, H, D, dtypes.of(like))
    return RecurrenceMemory(problem, isinstance(plan.choose(problem, plan.device_of(like)), FusedPlan))
