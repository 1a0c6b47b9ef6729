"""The memory that a recurrence takes: a walk through the allocations of `recurrence.py`, in its order."""

from __future__ import annotations

import math

from gpurnn.reference.memory import Buffer, RecurrenceMemory

from gpurnn._contract import Array
from gpurnn.cells import Cell

from . import build, sums, threads
from .recurrence import Sizes, library, sizes_of


class _Memory(RecurrenceMemory):  # type: ignore[misc]  # mypy knows gpurnn.reference as reference
    """The memory of `recurrence.py`, whose buffers come from the pool of the NumPy wing."""

    def __init__(self, cell: Cell, T: int, B: int, H: int, D: int, like: Array) -> None:
        super().__init__(cell, T, B, H, D, like.dtype.itemsize)
        self.functions = build.load(library(cell, like.dtype.name))

    def forward(self, I: int, *, training: bool) -> None:
        T, B, H, sizes = self.T, self.B, self.H, self._sizes(I, training)
        self.take(T * B * self.D * H)
        if training:
            self.lend(T * B * I)
        before: list[Buffer] = []  # a direction's workspace is free when that of the next one has been allocated
        for _ in range(self.D):
            if training:
                self.lend(len(self.cell.phases) * T * B * H)
                self.lend(T * B * len(self.cell.saved) * H)
                self.lend(sizes.back)
            workspace = self.lend(sizes.workspace if training else sizes.inference)
            self._give_back(before)
            before = [workspace]
        self._give_back(before)

    def backward(self, I: int) -> None:
        sizes, before = self._sizes(I, True), list[Buffer]()
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

    def _sizes(self, I: int, training: bool) -> Sizes:
        slots = self.T if training else 2
        return sizes_of(self.functions, self.T, self.B, I, self.H, slots, self.chunk, threads.most())


class _MemoryOfSums(_Memory):
    """The memory of `sums.py`."""

    def __init__(self, cell: Cell, T: int, B: int, H: int, D: int, like: Array) -> None:
        RecurrenceMemory.__init__(self, cell, T, B, H, D, like.dtype.itemsize)
        self.functions = build.load(sums.library(sums.of_step(cell).without_numbers, like.dtype.name))
        self.saved, self.widths = len(sums.of_step(cell).saved), cell.state_sizes(H)

    def forward(self, I: int, *, training: bool) -> None:
        T, B, P, slots, sizes = self.T, self.B, self.widths[0], self.T if training else 2, self._sums(I, training)
        self.take(T * B * self.D * P)
        if training:
            self.take(T * B * I)
        before: list[Buffer] = []
        for _ in range(self.D):
            of_steps = [self.lend(slots * B * of_row) for of_row in (len(self.cell.phases) * P, self.saved * self.H)]
            if training:
                self.lend(sizes.back)
                self.lend(T * B * sizes.kept)
            workspace = self.lend(sizes.workspace)
            self._give_back(before)
            before = [workspace, *([] if training else of_steps)]
        self._give_back(before)

    def backward(self, I: int) -> None:
        sizes, before = self._sums(I, True), list[Buffer]()
        self.take(self.T * self.B * I + self.D * self.B * sum(self.widths))
        shapes = self.cell.shapes(input_size=I, hidden_size=self.H).values()
        for _ in range(self.D):
            self.take(sum(map(math.prod, shapes)))
            workspace = self.lend(sizes.workspace_backward)
            self._give_back(before)
            before = [workspace]
        self._give_back(before)

    def _sums(self, I: int, training: bool) -> sums.SumsSizes:
        slots = self.T if training else 2
        return sums.sizes_of(self.functions, self.cell, self.T, self.B, I, self.H, slots, threads.most())


def recurrence_memory(cell: Cell, T: int, B: int, H: int, D: int, like: Array) -> RecurrenceMemory:
    """Count the bytes that a recurrence allocates; arguments and result are as in ``gpurnn.reference``."""
    return (_MemoryOfSums if cell.sums_over_units else _Memory)(cell, T, B, H, D, like)
