"""The LSTM cell (Hochreiter & Schmidhuber 1997; the forget gate is Gers, Schmidhuber & Cummins 2000).

`forward` and `backward` are the definition. `Steps` computes the same with the few calls that a loop can afford.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpurnn import cells
from gpurnn._contract import Array

from ..buffers import empty
from . import steps
from .activations import SATURATION, Response, activated, complement
from .masking import masked
from .normalisation import Normalised
from .packing import Rows

if TYPE_CHECKING:
    from ..memory import Buffer, RecurrenceMemory


class Saved(NamedTuple):
    """The values of a step that its backward pass needs."""

    weights: dict[str, Array]
    i: Response
    f: Response | None
    g: Response
    o: Response
    h_prev: Array
    c_prev: Array
    c: Array
    """The new c, within `cell_clip`."""
    unbounded: Array | None
    """The new c before clipping."""
    activated_c: Response
    product: Normalised | None
    """W_hh h, with layer norm."""
    normal_c: Normalised | None
    unprojected: Array | None
    """o tanh(c), if h is its projection."""


def forward(
    cell: cells.LSTM, xw: Array, state: tuple[Array, ...], weights: dict[str, Array]
) -> tuple[tuple[Array, ...], Saved]:
    """Run one step; return the new (h, c), and the values that `backward` needs."""
    h_prev, c_prev = state
    w_hh, b_hh = weights["weight_hh"], weights["bias_hh"]
    H, recurrent, product, normal_c = c_prev.shape[1], masked(h_prev, weights) @ w_hh.T, None, None
    if cell.layer_norm:
        product = Normalised.of(recurrent, (cell.gates * H,))
        recurrent = product.value * weights["norm_hh"]
    split = np.split(xw + recurrent + b_hh, cell.gates, axis=1)
    a = dict(zip(cell.gate_functions, split, strict=True))
    if cell.peephole:
        for gate in ("i",) if cell.coupled else ("i", "f"):
            a[gate] = a[gate] + weights[f"peephole_{gate}"] * c_prev
    i = activated(cell.gate_activation, a["i"], cell.clip)
    f = None if cell.coupled else activated(cell.gate_activation, a["f"], cell.clip)
    g = activated(cell.activation, a["g"], cell.clip)
    candidate = g.value * weights["dropout_g"] if "dropout_g" in weights else g.value
    c = (i.complement if f is None else f.value) * c_prev + i.value * candidate
    unbounded = None
    if cell.cell_clip is not None:
        unbounded, c = c, np.clip(c, -cell.cell_clip, cell.cell_clip)
    o = activated(cell.gate_activation, a["o"] + weights["peephole_o"] * c if cell.peephole else a["o"], cell.clip)
    output = c
    if cell.layer_norm:
        normal_c = Normalised.of(c, (H,))
        output = normal_c.value * weights["norm_c"] + weights["bias_c"]
    activated_c = activated(cell.output_activation, output)
    h = o.value * activated_c.value
    unprojected = None
    if cell.proj_size:
        unprojected, h = h, h @ weights["weight_hr"].T
    return (h, c), Saved(weights, i, f, g, o, h_prev, c_prev, c, unbounded, activated_c, product, normal_c, unprojected)


def backward(
    cell: cells.LSTM, saved: Saved, dstate: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
    """The transpose of one step: the gradients of xw, of the previous state, and of the weights by name."""
    weights, i, f, g, o, h_prev, c_prev, c, unbounded, activated_c, product, normal_c, unprojected = saved
    dh, dc = dstate
    dweights: dict[str, Array] = {}
    if unprojected is not None:
        dweights["weight_hr"] = dh.T @ unprojected
        dh = dh @ weights["weight_hr"]
    doutput = activated_c.back(dh * o.value)
    if normal_c is not None:
        dweights |= {"norm_c": (doutput * normal_c.value).sum(axis=0), "bias_c": doutput.sum(axis=0)}
        doutput = normal_c.back(doutput * weights["norm_c"])
    dc = dc + doutput
    da = {"o": o.back(dh * activated_c.value)}
    if cell.peephole:
        dc = dc + da["o"] * weights["peephole_o"]
    if unbounded is not None:
        dc = np.where(np.abs(unbounded) > cell.cell_clip, 0, dc).astype(dc.dtype)
    dropped = weights.get("dropout_g")
    candidate, through = (g.value, dc) if dropped is None else (g.value * dropped, dc * dropped)
    if f is None:
        da["i"] = i.back(dc * (candidate - c_prev))
        dc_prev = dc * i.complement
    else:
        da["i"] = i.back(dc * candidate)
        da["f"] = f.back(dc * c_prev)
        dc_prev = dc * f.value
    da["g"] = g.back(through * i.value)
    for name, (gate, read) in cell.diagonal.items():
        dweights[name] = (da[gate] * (c if read == "c" else c_prev)).sum(axis=0)
        if read == "c_prev":
            dc_prev = dc_prev + da[gate] * weights[name]
    joint = np.concatenate([da[gate] for gate in cell.gate_functions], axis=1)
    dweights["bias_hh"], dproduct = joint.sum(axis=0), joint
    if product is not None:
        dweights["norm_hh"] = (joint * product.value).sum(axis=0)
        dproduct = product.back(joint * weights["norm_hh"])
    dweights["weight_hh"] = dproduct.T @ masked(h_prev, weights)
    dstate_prev = masked(dproduct @ weights["weight_hh"], weights), dc_prev
    return joint, dstate_prev, {name: dweights[name] for name in cell.parameters if name in dweights}


class Steps(steps.Steps):
    """The definition with buffers that are allocated once, for T steps of a batch of B.

    Each gate is a contiguous (B, H) block, which elementwise functions process in one sweep. The blocks are stored in
    the order o i f g, followed by c, so that [i f] * [g c] is one product, and one exp covers o, i and f. In training,
    the factors of dh and dc in the backward pass replace the gates:

        [ P_o | Q | f | P_i P_f P_g ]    P_o = tanh(c) o (1 - o)     P_i = g i (1 - i)     P_f = c_{t-1} f (1 - f)
                                         Q = o (1 - tanh(c)^2)       P_g = i (1 - g^2)
    """

    slots = 4
    c: Array
    floating_point_errors = SATURATION

    def __init__(self, cell: cells.LSTM, weights: dict[str, Array], T: int, B: int, training: bool) -> None:
        w_hh = weights["weight_hh"]
        H, dtype = w_hh.shape[1], w_hh.dtype
        # An array without axes: NumPy would convert a scalar again at each call.
        self.one = np.array(1, dtype)
        self.rows = self.input_rows = Rows(H, gates=((3, "sigma"), (0, "sigma"), (1, "sigma"), (2, "tanh")))
        blocks = empty((5, B, H), dtype)
        self.a, self.oif, self.i_f, self.g_c = blocks[:4], blocks[:3], blocks[1:3], blocks[3:]
        self.multiply = self.rows.multiplier(w_hh, self.a)
        self.o, self.g, self.c = blocks[0], blocks[3], blocks[4]
        self.products = empty((2, B, H), dtype)
        self.i_g, self.f_c = self.products
        self.tanh_c = empty((B, H), dtype)
        self.training = training
        if training:
            self.w_back = self.rows.signed(w_hh)
            self.complements = empty((3, B, H), dtype)
            self.saved = empty((T, 6, B, H), dtype)

    @staticmethod
    def buffers(memory: RecurrenceMemory, cell: cells.LSTM, T: int, B: int, H: int, training: bool) -> list[Buffer]:
        buffers = [memory.lend(5 * B * H), memory.factors(4, H, few=B == 1), memory.lend(2 * B * H), memory.lend(B * H)]
        if training:
            buffers += [memory.lend(4 * H * H), memory.lend(3 * B * H), memory.lend(T * 6 * B * H)]
        return buffers

    def forward(self, t: int, xw: Array, h_in: Array, h_prev: Array, h: Array) -> None:
        """Step t: from xw (4, B, H) and h_in, which is h_prev or its masked copy, to h; c is advanced in place."""
        tanh_c = self.tanh_c
        self.multiply(h_in)
        np.add(self.a, xw, out=self.a)
        np.tanh(self.g, out=self.g)
        np.exp(self.oif, out=self.oif)  # of the negated arguments, see `Rows`
        if not self.training:
            np.add(self.oif, self.one, out=self.oif)
            np.divide(self.one, self.oif, out=self.oif)
            np.multiply(self.i_f, self.g_c, out=self.products)
            np.add(self.i_g, self.f_c, out=self.c)
            np.tanh(self.c, out=tanh_c)
            np.multiply(self.o, tanh_c, out=h)
            return
        saved = self.saved[t]
        np.add(self.oif, self.one, out=saved[:3])
        np.divide(self.one, saved[:3], out=saved[:3])
        o, i = saved[0], saved[1]
        np.multiply(saved[1:3], self.g_c, out=self.products)
        complement(self.oif, saved[:3], self.one, out=self.complements)
        np.multiply(self.products, self.complements[1:], out=saved[3:5])
        np.multiply(self.i_g, self.g, out=self.g)
        np.subtract(i, self.g, out=saved[5])
        np.add(self.i_g, self.f_c, out=self.c)
        np.tanh(self.c, out=tanh_c)
        np.multiply(o, tanh_c, out=h)
        # P_o and Q replace o and i, which are read here for the last time.
        np.multiply(h, tanh_c, out=tanh_c)
        np.subtract(o, tanh_c, out=i)
        np.multiply(h, self.complements[0], out=o)

    def backward(self, t: int, da: Array, dh: Array, dc: Array, scratch: Array, mask: Array | None) -> None:
        """Step t transposed: writes da (B, 4, H) and changes dh and dc to those of step t - 1."""
        p_o, q, f, p_ifg = self.saved[t, 0], self.saved[t, 1], self.saved[t, 2], self.saved[t, 3:]
        by_gate = da.transpose(1, 0, 2)
        np.multiply(dh, p_o, out=by_gate[0])
        np.multiply(dh, q, out=scratch[0])
        np.add(dc, scratch[0], out=dc)
        np.multiply(dc, p_ifg, out=by_gate[1:])
        np.multiply(dc, f, out=dc)
        np.matmul(da.reshape(len(da), self.w_back.shape[0]), self.w_back, out=dh)
        if mask is not None:
            np.multiply(dh, mask, out=dh)
