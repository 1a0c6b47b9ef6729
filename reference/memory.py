"""Count the memory of a recurrence, by repeating the allocations of `recurrence.py` in its order."""

from __future__ import annotations

from dataclasses import dataclass

from gpurnn._contract import Array, Memory
from gpurnn.cells import Cell

from .buffers import SMALL
from .cells import module_of
from .cells.packing import SPREAD, collides
from .clock import recurrence_chunk


@dataclass
class Buffer:
    """The size of a buffer of `buffers.empty`, and whether it is in the pool and free."""

    entries: int
    is_pooled: bool
    is_free: bool = False


class RecurrenceMemory(Memory):
    """The memory of a recurrence's calls, including the pool's buffers, which stay allocated when they are free."""

    def __init__(self, cell: Cell, T: int, B: int, H: int, D: int, itemsize: int) -> None:
        super().__init__(itemsize)
        self.cell, self.T, self.B, self.H, self.D = cell, T, B, H, D
        self.chunk = min(recurrence_chunk(B), T)
        self.pool: list[Buffer] = []

    def forward(self, I: int, *, training: bool) -> None:
        self.take(self.T * self.B * self.D * self.H)
        x1 = self.lend(self.T * self.B * (I + 1))
        for _ in range(self.D):
            self._direction(I, training)
        if not training:
            self.give_back(x1)

    def _direction(self, I: int, training: bool) -> None:
        T, B, H, G = self.T, self.B, self.H, self.cell.gates
        of_steps = module_of(self.cell).Steps.buffers(self, self.cell, T if training else 1, B, H, training)
        lent = [self.factors(G, I, few=B == 1, bias=True), self.lend(G * self.chunk * B * H)]
        if training:
            self.lend((T + 1) * B * H)
        if training:
            self.lend(G * H * I)
        for buffer in lent if training else of_steps + lent:
            self.give_back(buffer)

    def backward(self, I: int) -> None:
        T, B, H, rows = self.T, self.B, self.H, self.cell.gates * self.H
        slots, joint = self.cell.gates + self.cell.hidden_apart, self.cell.phases[0]
        self.take(T * B * I)
        for d in range(self.D):
            of_direction = self.take(T * B * I) if d else 0
            lent = [self.lend(rows * (I + 1))]
            self.take(rows * H)
            lent += [self.lend(self.chunk * B * slots * H), self.lend(2 * B * H)]
            for entries in (rows * (I + 1), joint * H * H):
                self.give_back(self.lend(entries))
            self.take(rows * I)
            for buffer in lent:
                self.give_back(buffer)
            self.free(of_direction)

    def lend(self, entries: int) -> Buffer:
        """Count `buffers.empty`: a buffer of the pool that fits, or a new one. Small arrays bypass the pool."""
        is_pooled = entries * self.itemsize >= SMALL
        fitting = [b for b in self.pool if b.is_free and entries <= b.entries <= 2 * entries] if is_pooled else []
        if fitting:
            buffer = min(fitting, key=lambda b: b.entries)
            buffer.is_free = False
            return buffer
        near = [b for b in self.pool if b.is_free and b.entries < entries <= 2 * b.entries] if is_pooled else []
        if near:
            replaced = max(near, key=lambda b: b.entries)
            self.pool.remove(replaced)
            self.free(replaced.entries)
        buffer = Buffer(self.take(entries), is_pooled)
        if is_pooled:
            self.pool.append(buffer)
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        buffer.is_free = True
        if not buffer.is_pooled:
            self.free(buffer.entries)

    def factors(self, slots: int, n: int, *, few: bool, bias: bool = False) -> Buffer:
        """Count `Rows.factors`."""
        factors = self.lend(slots * (n + bias) * self.H)
        if not few and collides(n, self.itemsize):
            self.give_back(self.lend(self.H * (n + SPREAD)))
        return factors


def recurrence_memory(cell: Cell, T: int, B: int, H: int, D: int, like: Array) -> RecurrenceMemory:
    """A counter of the bytes that a recurrence allocates, forward and backward, without lengths, resets and mask.

    Parameters
    ----------
    cell : Cell
    T, B, H, D : int
        Steps, rows of the batch, hidden units and directions.
    like : array
        An array with the dtype and the device of the layer's arrays.

    Returns
    -------
    memory : Memory
        A counter that holds nothing yet.
    """
    return RecurrenceMemory(cell, T, B, H, D, like.dtype.itemsize)
