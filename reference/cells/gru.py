"""The GRU cell (Cho et al. 2014), with the reset gate before or after the recurrent product.

`forward` and `backward` are the definition. `Steps` is the same in the few calls that a loop over time can afford.
"""

from __future__ import annotations

import numpy as np

from gpurnn import cells

from ..buffers import empty
from .activations import Array, sigmoid
from .packing import Rows


def forward(
    cell: cells.GRU, xw: Array, state: tuple[Array, ...], w_hh: Array, b_hh: Array
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """One step: the new (h,), and what `backward` needs."""
    (h_prev,) = state
    H = h_prev.shape[1]
    w_rz, w_n = w_hh[: 2 * H], w_hh[2 * H :]
    b_rz, b_n = b_hh[: 2 * H], b_hh[2 * H :]
    r, z = np.split(sigmoid(xw[:, : 2 * H] + h_prev @ w_rz.T + b_rz), 2, axis=1)
    if cell.reset_after:
        u = h_prev @ w_n.T + b_n
        n = np.tanh(xw[:, 2 * H :] + r * u)
    else:
        u = r * h_prev
        n = np.tanh(xw[:, 2 * H :] + u @ w_n.T + b_n)
    h = (1 - z) * h_prev + z * n if cell.update == "candidate" else (1 - z) * n + z * h_prev
    return (h,), (h_prev, w_hh, r, z, n, u)


def backward(
    cell: cells.GRU, saved: tuple[Array, ...], dstate: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...], Array, Array]:
    """The transpose of one step: the gradients of xw, of the state before it, of w_hh and of b_hh."""
    h_prev, w_hh, r, z, n, u = saved
    (dh,) = dstate
    H = h_prev.shape[1]
    w_rz, w_n = w_hh[: 2 * H], w_hh[2 * H :]
    if cell.update == "candidate":
        dz, dn, dh_prev = dh * (n - h_prev), dh * z, dh * (1 - z)
    else:
        dz, dn, dh_prev = dh * (h_prev - n), dh * (1 - z), dh * z
    da_n = dn * (1 - n**2)
    if cell.reset_after:
        dr, du = da_n * u, da_n * r
        dh_prev = dh_prev + du @ w_n
        dw_n, db_n = du.T @ h_prev, du.sum(axis=0)
    else:
        du = da_n @ w_n
        dr = du * h_prev
        dh_prev = dh_prev + du * r
        dw_n, db_n = da_n.T @ u, da_n.sum(axis=0)
    da_rz = np.concatenate([dr * r * (1 - r), dz * z * (1 - z)], axis=1)
    dh_prev = dh_prev + da_rz @ w_rz
    dw_hh = np.concatenate([da_rz.T @ h_prev, dw_n])
    db_hh = np.concatenate([da_rz.sum(axis=0), db_n])
    return np.concatenate([da_rz, da_n], axis=1), (dh_prev,), dw_hh, db_hh


class Steps:
    """The definition over buffers that are allocated once, for T steps of a batch of B.

    The input's gates lie in the order n z r, those of the recurrent product in the order z r u, u = W_hn h + b_hn.
    What z weighs is the sign of its row: with z' = 1 - z where z weighs the state, h = h_prev + z' (n - h_prev).
    What the backward pass multiplies dh and da_n with is stored in place of the gates:

        [ P_n P_z | P_r | r | 1 - z' ]   P_n = z' (1 - n^2)    P_z = (n - h_prev) z' (1 - z')    P_r = v (1 - r)

    with v = r u where the reset comes after the product and v = r h_prev where it comes before.
    """

    c = None

    def __init__(self, cell: cells.GRU, w_hh: Array, b_hh: Array, T: int, B: int, training: bool) -> None:
        H, dtype = w_hh.shape[1], w_hh.dtype
        z = 0.5 if cell.update == "candidate" else -0.5
        self.H, self.reset_after, self.training = H, cell.reset_after, training
        self.half, self.one = dtype.type(0.5), dtype.type(1)
        self.input_rows = Rows(H, order=(2, 1, 0), scale=(1.0, z, 0.5))
        if cell.reset_after:
            self.slots = 4
            self.rows = Rows(H, order=(1, 0, 2), scale=(z, 0.5, 1.0))
            self.b_n = b_hh[2 * H :].copy()
        else:
            self.slots = 3
            self.rows = Rows(H, order=(1, 0), scale=(z, 0.5))
            self.w_n = np.ascontiguousarray(w_hh[2 * H :].T)
        self.w = np.ascontiguousarray(self.rows.packed(w_hh).T)
        self.a = np.empty((B, self.w.shape[1]), dtype)
        self.a_zr, self.u = self.a[:, : 2 * H], self.a[:, 2 * H :]
        self.n = np.empty((B, H), dtype)
        self.step = np.empty((B, H), dtype)

        kept = T if training else 1
        saved = empty((kept, B, 5 * H), dtype)
        self.zr, self.z, self.r = saved[:, :, 2 * H : 4 * H], saved[:, :, 2 * H : 3 * H], saved[:, :, 3 * H : 4 * H]
        self.p_n, self.p_z, self.p_r = saved[:, :, :H], saved[:, :, H : 2 * H], self.z
        self.p_nz, self.p_r_r = (saved.reshape(kept, B, 5, H)[:, :, k : k + 2] for k in (0, 2))
        self.keep = saved[:, :, 4 * H :]
        self.v = empty((1 if cell.reset_after else kept, B, H), dtype)
        if training:
            self.w_back = self.rows.signed(w_hh)
            self.w_n_back = w_hh[2 * H :].copy()

    def input_bias(self, b_ih: Array, b_hh: Array) -> Array:
        """What is added to the input product, once for all steps: b_hn stays inside the product if r weighs it."""
        bias = b_ih + b_hh
        if self.reset_after:
            bias[2 * self.H :] = b_ih[2 * self.H :]
        return self.input_rows.packed(bias)

    def forward(self, t: int, xw: Array, h_in: Array, h_prev: Array, h: Array) -> None:
        """Step t: from xw (B, 3H) and h_in, which is h_prev or its masked copy, to h."""
        H, n, step = self.H, self.n, self.step
        if not self.training:
            t = 0
        zr, z, r = self.zr[t], self.z[t], self.r[t]
        np.matmul(h_in, self.w, out=self.a)
        np.add(self.a_zr, xw[:, H:], out=self.a_zr)
        np.tanh(self.a_zr, out=self.a_zr)
        np.multiply(self.a_zr, self.half, out=self.a_zr)
        np.add(self.a_zr, self.half, out=zr)
        if self.reset_after:
            v = self.v[0]
            np.add(self.u, self.b_n, out=self.u)
            np.multiply(r, self.u, out=v)
            np.add(v, xw[:, :H], out=n)
        else:
            v = self.v[t]
            np.multiply(r, h_in, out=v)
            np.matmul(v, self.w_n, out=n)
            np.add(n, xw[:, :H], out=n)
        np.tanh(n, out=n)
        np.subtract(n, h_prev, out=step)
        np.multiply(step, z, out=step)
        np.add(h_prev, step, out=h)
        if not self.training:
            return
        # P_r takes the slot of z', so z' is read for the last time before it.
        np.subtract(self.one, z, out=self.keep[t])
        np.multiply(step, self.keep[t], out=self.p_z[t])
        np.multiply(n, n, out=n)
        np.subtract(self.one, n, out=n)
        np.multiply(n, z, out=self.p_n[t])
        np.multiply(v, r, out=step)
        np.subtract(v, step, out=self.p_r[t])

    def backward(self, t: int, da: Array, dh: Array, dc: None, scratch: Array, mask: Array | None) -> None:
        """Step t transposed: writes da (B, slots, H), in the order n z r (u), and turns dh into that of step t - 1."""
        direct, through_reset = scratch
        np.multiply(dh[:, None], self.p_nz[t], out=da[:, :2])
        np.multiply(dh, self.keep[t], out=direct)
        if self.reset_after:
            np.multiply(da[:, :1], self.p_r_r[t], out=da[:, 2:])
        else:
            np.matmul(da[:, 0], self.w_n_back, out=through_reset)
            np.multiply(through_reset, self.p_r[t], out=da[:, 2])
            np.multiply(through_reset, self.r[t], out=through_reset)
        np.matmul(da[:, 1:].reshape(len(da), self.w_back.shape[0]), self.w_back, out=dh)
        if not self.reset_after:
            np.add(dh, through_reset, out=dh)
        if mask is not None:
            np.multiply(dh, mask, out=dh)
        np.add(dh, direct, out=dh)

    def hidden_gradients(self, da: Array, db: Array, h_in: Array, dw_hh: Array, db_hh: Array) -> None:
        """From da (T*B, slots*H), its sum db over T*B and h_in (T*B, H) to the gradients of w_hh and b_hh."""
        H = self.H
        self.rows.unpack(da[:, H:].T @ h_in, dw_hh)
        self.rows.unpack(db[H:], db_hh)
        if not self.reset_after:
            np.matmul(da[:, :H].T, self.v.reshape(-1, H), out=dw_hh[2 * H :])
            db_hh[2 * H :] = db[:H]
