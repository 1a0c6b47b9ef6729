"""The GRU cell (Cho et al. 2014), with the reset gate before or after the recurrent product.

`forward` and `backward` are the definition. `Steps` computes the same with the few calls that a loop can afford.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpurnn import cells
from gpurnn._contract import Array

from ..buffers import empty, product
from . import steps
from .activations import SATURATION, Response, activated, complement
from .masking import masked
from .normalisation import Normalised
from .packing import Function, Rows

if TYPE_CHECKING:
    from ..memory import Buffer, RecurrenceMemory


class Saved(NamedTuple):
    """The values of a step that its backward pass needs."""

    weights: dict[str, Array]
    r: Response
    z: Response
    n: Response
    h_prev: Array
    u: Array
    product_rz: Normalised | None
    """The products with rows of W_hh, with layer norm."""
    product_n: Normalised | None


def _of_state(cell: cells.GRU, z: Response) -> Array:
    """The weight of h_{t-1} in h_t."""
    return z.complement if cell.update == "candidate" else z.value


def _of_candidate(cell: cells.GRU, z: Response) -> Array:
    """The weight of the candidate in h_t."""
    return z.value if cell.update == "candidate" else z.complement


def forward(
    cell: cells.GRU, xw: Array, state: tuple[Array, ...], weights: dict[str, Array]
) -> tuple[tuple[Array, ...], Saved]:
    """Run one step; return the new (h,), and the values that `backward` needs."""
    (h_prev,) = state
    w_hh, H = weights["weight_hh"], h_prev.shape[1]
    (w_rz, w_n), (b_rz, b_n) = np.split(w_hh, [2 * H]), np.split(weights["bias_hh"], [2 * H])
    xw_rz, xw_n = np.split(xw, [2 * H], axis=1)
    entering = masked(h_prev, weights)
    recurrent, product_rz = _normalised(weights, slice(2 * H), entering @ w_rz.T)
    a_r, a_z = np.split(xw_rz + recurrent + b_rz, 2, axis=1)
    r, z = (activated(cell.gate_activation, a, cell.clip) for a in (a_r, a_z))
    if cell.reset_after:
        recurrent, product_n = _normalised(weights, slice(2 * H, None), entering @ w_n.T)
        u = recurrent + b_n
        a_n = xw_n + r.value * u
    else:
        u = r.value * entering
        recurrent, product_n = _normalised(weights, slice(2 * H, None), u @ w_n.T)
        a_n = xw_n + recurrent + b_n
    n = activated(cell.activation, a_n, cell.clip)
    h = _of_state(cell, z) * h_prev + _of_candidate(cell, z) * n.value
    return (h,), Saved(weights, r, z, n, h_prev, u, product_rz, product_n)


def _normalised(weights: dict[str, Array], rows: slice, product: Array) -> tuple[Array, Normalised | None]:
    """The product with some rows of W_hh, normalised if there is layer norm."""
    if "norm_hh" not in weights:
        return product, None
    normal = Normalised.of(product, (product.shape[1],))
    return normal.value * weights["norm_hh"][rows], normal


def _back(weights: dict[str, Array], rows: slice, normal: Normalised | None, d: Array) -> tuple[Array, Array | None]:
    """The transpose of `_normalised`: the gradients of the product and of the norm's weights."""
    if normal is None:
        return d, None
    return normal.back(d * weights["norm_hh"][rows]), (d * normal.value).sum(axis=0)


def backward(
    cell: cells.GRU, saved: Saved, dstate: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
    """The transpose of one step: the gradients of xw, of the previous state, and of the weights by name."""
    weights, r, z, n, h_prev, u, product_rz, product_n = saved
    (dh,) = dstate
    H = h_prev.shape[1]
    w_rz, w_n = np.split(weights["weight_hh"], [2 * H])
    entering = masked(h_prev, weights)
    da_z = z.back(dh * (n.value - h_prev if cell.update == "candidate" else h_prev - n.value))
    da_n = n.back(dh * _of_candidate(cell, z))
    dh_prev = dh * _of_state(cell, z)
    if cell.reset_after:
        du = da_n * r.value
        da_r = r.back(da_n * u)
        dproduct, dnorm_n = _back(weights, slice(2 * H, None), product_n, du)
        dh_prev = dh_prev + masked(dproduct @ w_n, weights)
        dw_n, db_n = dproduct.T @ entering, du.sum(axis=0)
    else:
        dproduct, dnorm_n = _back(weights, slice(2 * H, None), product_n, da_n)
        du = dproduct @ w_n
        da_r = r.back(du * entering)
        dh_prev = dh_prev + masked(du * r.value, weights)
        dw_n, db_n = dproduct.T @ u, da_n.sum(axis=0)
    da_rz = np.concatenate([da_r, da_z], axis=1)
    dproduct, dnorm_rz = _back(weights, slice(2 * H), product_rz, da_rz)
    dh_prev = dh_prev + masked(dproduct @ w_rz, weights)
    dweights = {
        "weight_hh": np.concatenate([dproduct.T @ entering, dw_n]),
        "bias_hh": np.concatenate([da_rz.sum(axis=0), db_n]),
    }
    if dnorm_rz is not None and dnorm_n is not None:
        dweights["norm_hh"] = np.concatenate([dnorm_rz, dnorm_n])
    return np.concatenate([da_rz, da_n], axis=1), (dh_prev,), dweights


class Steps(steps.Steps):
    """The definition with buffers that are allocated once, for T steps of a batch of B.

    Each gate is a contiguous (B, H) block: the input's in the order n z r, the recurrent product's in the order z r u,
    with u = W_hn h + b_hn. The sign of z's rows says what z weighs: with z' = 1 - z if z weighs the state, else z' = z,
    h = (1 - z') h_prev + z' n. The factors of dh and da_n in the backward pass replace the gates:

        [ P_n P_z | P_r | r | 1 - z' ]   P_n = z' (1 - n^2)    P_z = (n - h_prev) z' (1 - z')    P_r = v (1 - r)

    with v = r u if the reset comes after the product, and v = r h_prev if it comes before.
    """

    floating_point_errors = SATURATION

    def __init__(self, cell: cells.GRU, weights: dict[str, Array], T: int, B: int, training: bool) -> None:
        w_hh = weights["weight_hh"]
        H, dtype = w_hh.shape[1], w_hh.dtype
        z: Function = "sigma" if cell.update == "candidate" else "1 - sigma"
        self.H, self.reset_after, self.training = H, cell.reset_after, training
        self.one = np.array(1, dtype)
        self.input_rows = Rows(H, gates=((2, "tanh"), (1, z), (0, "sigma")))
        self.n_rows = Rows(H, gates=((2, "tanh"),))
        self.hidden_bias = slice(2 * H, 3 * H) if cell.reset_after else slice(0)
        if cell.reset_after:
            self.slots = 4
            self.rows = Rows(H, gates=((1, z), (0, "sigma"), (2, "tanh")))
            self.b_n = weights["bias_hh"][2 * H :].copy()
        else:
            self.slots = 3
            self.rows = Rows(H, gates=((1, z), (0, "sigma")))
            self.w_n = self.n_rows.factors(w_hh, few=B == 1)[0]
        self.a = empty((len(self.rows.gates), B, H), dtype)
        self.multiply = self.rows.multiplier(w_hh, self.a)
        self.n, self.step = empty((2, B, H), dtype)
        self.saved = empty((T if training else 1, 5, B, H), dtype)
        self.v = empty((T if training and not cell.reset_after else 1, B, H), dtype)
        # The operands, except h_in, of rows of w_hh, for all steps.
        self.operands = () if cell.reset_after else (self.v,)
        if training:
            self.w_back = self.rows.signed(w_hh)
            self.w_n_back = self.n_rows.signed(w_hh)

    @staticmethod
    def buffers(memory: RecurrenceMemory, cell: cells.GRU, T: int, B: int, H: int, training: bool) -> list[Buffer]:
        gates = 3 if cell.reset_after else 2
        buffers = [] if cell.reset_after else [memory.factors(1, H, few=B == 1)]
        buffers += [memory.lend(gates * B * H), memory.factors(gates, H, few=B == 1), memory.lend(2 * B * H)]
        buffers += [memory.lend(T * 5 * B * H), memory.lend((1 if cell.reset_after else T) * B * H)]
        if training:
            buffers += [memory.lend(gates * H * H), memory.lend(H * H)]
        return buffers

    def input_bias(self, weights: dict[str, Array]) -> Array:
        """The bias added to the input product, once for all steps: b_hn stays inside the product if r weighs it."""
        bias = weights["bias_ih"] + weights["bias_hh"]
        if self.reset_after:
            bias[2 * self.H :] = weights["bias_ih"][2 * self.H :]
        return bias

    def forward(self, t: int, xw: Array, h_in: Array, h_prev: Array, h: Array) -> None:
        """Step t: from xw (3, B, H) and h_in, which is h_prev or its masked copy, to h."""
        n, step = self.n, self.step
        saved = self.saved[t if self.training else 0]
        e, z, r, keep = self.a[:2], saved[2], saved[3], saved[4]
        self.multiply(h_in)
        np.add(e, xw[1:], out=e)
        np.exp(e, out=e)  # of the negated arguments, see `Rows`
        np.add(e, self.one, out=saved[2:4])
        np.divide(self.one, saved[2:4], out=saved[2:4])
        complement(e[0], z, self.one, out=keep)
        if self.reset_after:
            u, v = self.a[2], self.v[0]
            np.add(u, self.b_n, out=u)
            np.multiply(r, u, out=v)
            np.add(v, xw[0], out=n)
        else:
            v = self.v[t if self.training else 0]
            np.multiply(r, h_in, out=v)
            np.matmul(v, self.w_n, out=n)
            np.add(n, xw[0], out=n)
        np.tanh(n, out=n)
        np.multiply(n, z, out=step)
        np.multiply(h_prev, keep, out=h)
        np.add(h, step, out=h)
        if not self.training:
            return
        p_n, p_z, p_r, not_r = saved[0], saved[1], z, e[1]
        np.subtract(n, h_prev, out=step)
        np.multiply(step, z, out=step)
        np.multiply(step, keep, out=p_z)
        np.multiply(n, n, out=n)
        np.subtract(self.one, n, out=n)
        np.multiply(n, z, out=p_n)
        # P_r replaces z', which the line above reads for the last time.
        complement(not_r, r, self.one, out=not_r)
        np.multiply(v, not_r, out=p_r)

    def backward(self, t: int, da: Array, dh: Array, dc: None, scratch: Array, mask: Array | None) -> None:
        """Step t transposed: writes da (B, slots, H), in the order n z r (u), and changes dh to that of step t - 1."""
        saved, (direct, through_reset), by_gate = self.saved[t], scratch, da.transpose(1, 0, 2)
        p_r, r, keep = saved[2], saved[3], saved[4]
        np.multiply(dh, saved[:2], out=by_gate[:2])
        np.multiply(dh, keep, out=direct)
        if self.reset_after:
            np.multiply(by_gate[0], saved[2:4], out=by_gate[2:])
        else:
            np.matmul(by_gate[0], self.w_n_back, out=through_reset)
            np.multiply(through_reset, p_r, out=by_gate[2])
            np.multiply(through_reset, r, out=through_reset)
        np.matmul(da[:, 1:].reshape(len(da), self.w_back.shape[0]), self.w_back, out=dh)
        if not self.reset_after:
            np.add(dh, through_reset, out=dh)
        if mask is not None:
            np.multiply(dh, mask, out=dh)
        np.add(dh, direct, out=dh)

    def hidden_gradients(self, chunk: slice, da: Array, h_in: Array, dweights: dict[str, Array], first: bool) -> None:
        """Add the gradients from the rows of a chunk of steps, da (n, slots*H) and h_in (n, H), to dweights."""
        H = self.H
        self.rows.accumulate(product(da[:, H:].T, h_in), dweights["weight_hh"], first)
        if self.reset_after:
            self.n_rows.accumulate(np.ones(len(da), da.dtype) @ da[:, 3 * H :], dweights["bias_hh"], first)
        else:
            dw_n = product(da[:, :H].T, self.v[chunk].reshape(len(da), H))
            self.n_rows.accumulate(dw_n, dweights["weight_hh"], first)
