"""The memory that a recurrence takes: a walk through the allocations of `recurrence.py`, in its order."""

from __future__ import annotations

from ctypes import byref

from gpurnn.reference.memory import Buffer, RecurrenceMemory

from gpurnn._contract import Array
from gpurnn.cells import Cell

from . import build, threads
from .recurrence import Layer, Sizes, library


class _Memory(RecurrenceMemory):  # type: ignore[misc]  # mypy knows gpurnn.reference as reference
    """Its buffers come from the pool of the NumPy wing."""

    def __init__(self, cell: Cell, T: int, B: int, H: int, D: int, like: Array) -> None:
        super().__init__(cell, T, B, H, D, like.dtype.itemsize)
        self.functions = build.load(library(cell, like.dtype.name))

    def forward(self, I: int, *, training: bool) -> None:
        T, B, H, sizes = self.T, self.B, self.H, self._sizes(I)
        phases, slots = len(self.cell.phases), T if training else 2
        self.take(T * B * self.D * H)
        if training:
            self.lend(T * B * I)
        before: list[Buffer] = []  # a direction's arrays are free when those of the next one have been allocated
        for _ in range(self.D):
            history = [self.lend(phases * slots * B * H)]
            if training or phases > 1:
                history.append(self.lend(slots * B * len(self.cell.saved) * H))
            if training:
                self.lend(sizes.back)
            workspace = self.lend(sizes.workspace)
            self._give_back(before)
            before = [workspace] if training else [*history, workspace]
        self._give_back(before)

    def backward(self, I: int) -> None:
        sizes, before = self._sizes(I), list[Buffer]()
        self.take(self.T * self.B * I + self.cell.states * self.D * self.B * self.H)
        for _ in range(self.D):
            self.take(self.cell.gates * self.H * (I + self.H + 2))
            workspace = self.lend(sizes.workspace_backward)
            self._give_back(before)
            before = [workspace]
        self._give_back(before)

    def _give_back(self, buffers: list[Buffer]) -> None:
        for buffer in buffers:
            self.give_back(buffer)

    def _sizes(self, I: int) -> Sizes:
        layer = Layer(steps=self.T, batch=self.B, inputs=I, hidden=self.H, chunk=self.chunk, team=threads.team())
        sizes = Sizes()
        self.functions.gpurnn_sizes(byref(layer), byref(sizes))
        return sizes


def recurrence_memory(cell: Cell, T: int, B: int, H: int, D: int, like: Array) -> RecurrenceMemory:
    """Count the bytes that a recurrence allocates; arguments and result are those of ``gpurnn.reference``'s."""
    return _Memory(cell, T, B, H, D, like)
