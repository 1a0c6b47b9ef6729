"""The vanilla cell (Elman 1990), with a choice of activations and a leak: h_t = f(...) + leak h_{t-1}.

`forward` and `backward` are the definition. `Steps` computes the same with the few calls that a loop can afford.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpurnn import cells
from gpurnn._contract import Array

from ..buffers import empty
from . import steps
from .activations import activate
from .masking import masked
from .normalisation import Normalised
from .packing import Rows

if TYPE_CHECKING:
    from ..memory import Buffer, RecurrenceMemory


class Saved(NamedTuple):
    """The values of a step that its backward pass needs."""

    weights: dict[str, Array]
    h: Array
    """f(a), before the leak."""
    slope: Array
    h_prev: Array
    product: Normalised | None
    """W_hh h, with layer norm."""


def forward(
    cell: cells.Vanilla, xw: Array, state: tuple[Array, ...], weights: dict[str, Array]
) -> tuple[tuple[Array, ...], Saved]:
    """Run one step; return the new (h,), and the values that `backward` needs."""
    (h_prev,) = state
    recurrent, product = masked(h_prev, weights) @ weights["weight_hh"].T, None
    if cell.layer_norm:
        product = Normalised.of(recurrent, (h_prev.shape[1],))
        recurrent = product.value * weights["norm_hh"]
    a = xw + recurrent + weights["bias_hh"]
    slope = np.empty_like(a)
    f = activate(cell.activation, a, slope, cell.clip)
    h = f + cell.leak * h_prev if cell.leak else f  # an infinite h_prev times a leak of zero would be NaN
    return (h,), Saved(weights, f, slope, h_prev, product)


def backward(
    cell: cells.Vanilla, saved: Saved, dstate: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
    """The transpose of one step: the gradients of xw, of the previous state, and of the weights by name."""
    weights, _, slope, h_prev, product = saved
    (dh,) = dstate
    da = dh * slope
    dproduct, dweights = da, {"bias_hh": da.sum(axis=0)}
    if product is not None:
        dweights["norm_hh"] = (da * product.value).sum(axis=0)
        dproduct = product.back(da * weights["norm_hh"])
    dweights["weight_hh"] = dproduct.T @ masked(h_prev, weights)
    dh_prev = masked(dproduct @ weights["weight_hh"], weights)
    if cell.leak:
        dh_prev = dh_prev + cell.leak * dh
    return da, (dh_prev,), {name: dweights[name] for name in cell.parameters if name in dweights}


class Steps(steps.Steps):
    """The definition with buffers that are allocated once, for T steps of a batch of B. Training stores f'(a_t)."""

    slots = 1

    def __init__(self, cell: cells.Vanilla, weights: dict[str, Array], T: int, B: int, training: bool) -> None:
        w_hh = weights["weight_hh"]
        H, dtype = w_hh.shape[1], w_hh.dtype
        self.activation, self.clip, self.leak = cell.activation, cell.clip, np.array(cell.leak, dtype)
        self.rows = self.input_rows = Rows(H, gates=((0, "tanh"),))
        self.w = self.rows.factors(w_hh, few=B == 1)[0]
        self.scratch = empty((B, H), dtype)
        self.training = training
        if training:
            self.w_back = self.rows.signed(w_hh)
            self.slope = empty((T, B, H), dtype)

    @staticmethod
    def buffers(memory: RecurrenceMemory, cell: cells.Vanilla, T: int, B: int, H: int, training: bool) -> list[Buffer]:
        buffers = [memory.factors(1, H, few=B == 1), memory.lend(B * H)]
        if training:
            buffers += [memory.lend(H * H), memory.lend(T * B * H)]
        return buffers

    def forward(self, t: int, xw: Array, h_in: Array, h_prev: Array, h: Array) -> None:
        """Step t: from xw (1, B, H) and h_in, which is h_prev or its masked copy, to h."""
        np.matmul(h_in, self.w, out=h)
        np.add(h, xw[0], out=h)
        activate(self.activation, h, self.slope[t] if self.training else None, self.clip)
        if self.leak:
            np.multiply(h_prev, self.leak, out=self.scratch)
            np.add(h, self.scratch, out=h)

    def backward(self, t: int, da: Array, dh: Array, dc: None, scratch: Array, mask: Array | None) -> None:
        """Step t transposed: writes da (B, 1, H) and changes dh to that of step t - 1."""
        np.multiply(dh, self.slope[t], out=da[:, 0])
        if self.leak:
            np.multiply(dh, self.leak, out=scratch[0])
        np.matmul(da[:, 0], self.w_back, out=dh)
        if mask is not None:
            np.multiply(dh, mask, out=dh)
        if self.leak:
            np.add(dh, scratch[0], out=dh)
