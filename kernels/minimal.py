"""The states of the minimal GRU and LSTM: the definition of ``gpurnn.reference``, with the scan of the kernels."""

from __future__ import annotations

from typing import Any

from gpurnn.reference import minimal as definition

from gpurnn._contract import Array
from gpurnn.cells import Cell

from .linear_scan import linear_scan_backward, linear_scan_forward
from .streams import of_stream, remembers_stream


@remembers_stream
def minimal_forward(
    cell: Cell,
    a: Array,
    h0: Array,
    *,
    resets: Array | None = None,
    exists: Array | None = None,
    training: bool = False,
) -> tuple[Array, Any]:
    """h_t = kept h_{t-1} + z n_t, as ``gpurnn.reference`` gives it."""
    result: tuple[Array, Any] = definition.forward(linear_scan_forward, cell, a, h0, resets, exists, training)
    return result


@of_stream
def minimal_backward(saved: Any, dh: Array) -> tuple[Array, Array]:
    """Gradients of a and h0, as ``gpurnn.reference`` gives them."""
    result: tuple[Array, Array] = definition.backward(linear_scan_backward, saved, dh)
    return result
