"""The steps of a cell, for the loop over time (`..recurrence`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from gpurnn._contract import Array

from ..buffers import product
from .packing import Rows

if TYPE_CHECKING:
    from ..memory import Buffer, RecurrenceMemory


class Steps(ABC):
    """The T steps of a cell in one direction of a layer, for a batch of B rows, forward and backward.

    A subclass has the constructor ``(cell, weights, T, B, training)``. It copies the weights that it needs, because
    callers may change theirs before the backward pass. It allocates its buffers once; with ``training`` it stores, for
    each step, the factors that `backward` needs. The first axis of a buffer of steps is the step.

    The loop calls `forward` for each step in the order of its direction, then `backward` in the reverse order, and
    after each chunk of steps `hidden_gradients`. It sets h and c to zero at resets, and undoes the step for rows past
    their length.
    """

    slots: int
    """The blocks of H numbers in a row's gate gradients; the input's come first, in the order of `input_rows`."""
    input_rows: Rows
    """The order and sign in which `forward` takes the gates of W_ih x."""
    rows: Rows
    """The order and sign of the gates whose rows of W_hh multiply h_{t-1}."""
    c: Array | None = None
    """The cell state (B, H), which `forward` advances in place; None for a cell without one."""
    operands: tuple[Array, ...] = ()
    """The operands of rows of W_hh, except h_{t-1}, each (T, B, H). The loop zeroes them past the lengths."""
    floating_point_errors: ClassVar[dict[str, Any]] = {}
    """For `np.errstate` around the loop."""
    hidden_bias = slice(0)
    """The rows of bias_hh whose gradient differs from that of bias_ih; `hidden_gradients` computes it."""

    @abstractmethod
    def __init__(self, cell: Any, weights: dict[str, Array], T: int, B: int, training: bool) -> None: ...

    @staticmethod
    @abstractmethod
    def buffers(memory: RecurrenceMemory, cell: Any, T: int, B: int, H: int, training: bool) -> list[Buffer]:
        """Count with ``memory`` the arrays that the constructor allocates."""

    def input_bias(self, weights: dict[str, Array]) -> Array:
        """The bias added to the input product, once for all steps."""
        return weights["bias_ih"] + weights["bias_hh"]

    @abstractmethod
    def forward(self, t: int, xw: Array, h_in: Array, h_prev: Array, h: Array) -> None:
        """Write the state of step t to h (B, H).

        ``xw`` (G, B, H) is the input product with its bias. ``h_in`` multiplies W_hh: h_{t-1}, or its masked copy.
        """

    @abstractmethod
    def backward(self, t: int, da: Array, dh: Array, dc: Any, scratch: Array, mask: Array | None) -> None:
        """Write the gate gradients of step t to ``da`` (B, slots, H); change dh and dc to those of step t - 1.

        ``mask`` (B, H) multiplies the part of dh that comes through W_hh. ``scratch`` (2, B, H) is free to use.
        """

    def hidden_gradients(self, chunk: slice, da: Array, h_in: Array, dweights: dict[str, Array], first: bool) -> None:
        """Add the gradients from the steps of a chunk to ``dweights``, or write them there if ``first``.

        They are the gradients of all weights whose names do not end with ``_ih``; ``da`` (n, slots*H) and ``h_in``
        (n, H) are the rows of the chunk.
        """
        self.rows.accumulate(product(da.T, h_in), dweights["weight_hh"], first)
