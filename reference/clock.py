"""The order of the steps of a recurrence, and the steps at which its rows pause, end or restart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpurnn._contract import Array

CHUNK_ROWS = 1024
"""The least number of rows of a product over many steps, if there are as many."""


def recurrence_chunk(batch: int) -> int:
    """The steps of a chunk: products over many steps are computed for a chunk at a time.

    BLAS results depend on the number of rows, and sums on their order. So chunks begin at multiples of this number of
    steps, whatever the direction, and their gradients are added up in the order of the backward pass. A sequence that
    is cut at such multiples gives, part by part, the same bits as the whole.

    Parameters
    ----------
    batch : int
        B.
    """
    return -(-CHUNK_ROWS // max(batch, 1))


@dataclass(frozen=True)
class Clock:
    """One direction's order of steps, and the steps at which rows pause, end or restart."""

    T: int
    B: int
    backwards: bool
    past: NDArray[np.bool_] | None
    """(T, B, 1): the row lacks the step, so its state stays."""
    cut: NDArray[np.bool_] | None
    """(T, B, 1): no state enters the step, existing or not, from the previous step in this direction."""
    zero: NDArray[np.bool_] | None
    """(T, B, 1): y is zero, whatever h is."""

    @classmethod
    def of(
        cls,
        T: int,
        B: int,
        backwards: bool,
        lengths: Array | None,
        resets: Array | None,
        exists: Array | None,
        repeats: bool,
    ) -> Clock:
        past = cut = None
        if lengths is not None:
            past = (np.arange(T)[:, None] >= lengths)[:, :, None]
        if resets is not None:
            cut = np.zeros((*resets.shape, 1), bool)
            # A reset at t separates t - 1 from t: no state enters step t forward, or step t - 1 backward.
            if backwards:
                cut[:-1, :, 0] = resets[1:]
            else:
                cut[:, :, 0] = resets
            if past is not None:
                first_past = np.concatenate([past[1:], np.ones_like(past[:1])]) if backwards else past
                cut &= ~first_past
        zero = past
        if exists is not None:
            holes = ~exists[:, :, None]
            past = holes if past is None else past | holes
            zero = zero if repeats else past
        return cls(T, B, backwards, past, cut, zero)

    def chunks(self, back: bool = False) -> list[tuple[slice, range]]:
        """The chunks of the steps, and the steps of each, in this direction's order, or ``back`` in the reverse order.

        There is at least one chunk, which may be empty.
        """
        length, pieces = recurrence_chunk(self.B), []
        for start in range(0, max(self.T, 1), length):
            steps = range(start, min(start + length, self.T))
            pieces.append((slice(start, steps.stop), steps))
        if self.backwards != back:
            return [(chunk, steps[::-1]) for chunk, steps in reversed(pieces)]
        return pieces

    def at(self, rows: NDArray[np.bool_] | None, t: int) -> NDArray[np.bool_] | None:
        """The entries of ``rows`` at step t; None if none is True."""
        return rows[t] if rows is not None and rows[t].any() else None
