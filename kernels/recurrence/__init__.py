"""A layer's whole recurrence over time, in one direction or two, forward and backward.

Products over all steps at once, W_ih x and the gradients of the weights, are plain matrix products. What lies between,
step after step, is a schedule's (`plan.py`): ``recurrence/stepwise.cu`` or ``recurrence/fused.cu``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from array_api_compat import is_cupy_array

from gpurnn._contract import Array, Weights
from gpurnn.cells import CELLS, Cell

from .. import dtypes
from ..dtypes import Dtype
from ..launch import Kernel, Module, contiguous, empty, namespace, of_stream, remembers_stream
from . import plan
from .plan import Launch, Plan

_THREADS = 256
"""Of a block of the stepwise kernels."""

CHUNK_ROWS = 8192
"""The least rows of a product over many steps, where there are so many."""


def recurrence_chunk(batch: int) -> int:
    """Steps of a chunk: products over many steps are computed for a chunk at a time, as in ``gpurnn.reference``."""
    return -(-CHUNK_ROWS // max(batch, 1))


def check_lengths(where: str, lengths: Array | None, T: int) -> None:
    """Nothing: what is on the device is not read back to be checked; see `recurrence_forward`."""


def _chunks(T: int, B: int) -> list[slice]:
    """The rows (T*B) of each chunk, of one at least."""
    n = recurrence_chunk(B)
    return [slice(start * B, min(start + n, T) * B) for start in range(0, max(T, 1), n)]


def proofs_of(cell: Cell, struct: str) -> list[str]:
    """Declarations by which a compiler proves that a struct is the cell that Python describes."""
    facts = {
        "gates": cell.gates, "phases": len(cell.phases), "num_saved": len(cell.saved), "has_c": cell.states - 1,
        "hidden_apart": int(cell.hidden_apart),
        **{f"first_gate({k})": int(end) for k, end in enumerate(np.cumsum((0, *cell.phases)))},
    }  # fmt: skip
    return [f'static_assert({struct}::{name} == {number}, "{name}");' for name, number in facts.items()]


@dataclass(frozen=True)
class Struct:
    """A cell's struct in ``cells/*.cuh``, and its kernels for arrays of one dtype."""

    cell: Cell
    """Its options that are numbers do not matter: they are the struct's members, which `value` fills."""
    dtype: Dtype

    @classmethod
    def of(cls, cell: Cell, dtype: Dtype) -> Struct:
        """The struct of ``cell``, with the default numbers: one for all cells that share a kernel."""
        numbers = {field.name: field.default for field in fields(cell) if field.name in cell.scalars}
        return cls(replace(cell, **numbers), dtype)

    def __str__(self) -> str:
        name, *arguments = self.cell.kernel_struct
        return f"{name}<{', '.join([self.dtype.real, *arguments])}>"

    def value(self, cell: Cell) -> np.void:
        """The struct's memory, as a kernel takes it: its numbers; an empty struct is a byte in C++."""
        layout = [(name, self.dtype.accumulator) for name in cell.scalars] or [("", "u1")]
        struct: np.void = np.void(tuple(getattr(cell, name) for name in cell.scalars) or (0,), layout)
        return struct

    @functools.cache  # noqa: B019  there are as many as kernels
    def module(self, source: str, *kernels: str) -> Module:
        """Kernels of a source file for this cell, which the compiler proves to be the cell that Python describes."""
        cell, proofs = self.cell, proofs_of(self.cell, str(self))
        return Module(source, kernels, include=f"cells/{cell.file()}.cuh", proofs=proofs)

    def stepwise_module(self) -> Module:
        names = ["begin_forward", "finish_step", "begin_step_backward"]
        names += ["operand_of_step", "operand_of_step_backward"] if len(self.cell.phases) > 1 else []
        return self.module("recurrence/stepwise.cu", *map(self._stepwise, names))

    def fused_module(self, variant: str) -> Module:
        return self.module("recurrence/fused.cu", *(self._fused(name, variant) for name in ("forward", "backward")))

    def stepwise(self, name: str) -> Kernel:
        return self.stepwise_module()[self._stepwise(name)]

    def fused(self, name: str, variant: str) -> Kernel:
        return self.fused_module(variant)[self._fused(name, variant)]

    def _stepwise(self, name: str) -> str:
        return f"{name}<{self}, {self.dtype.storage}>"

    def _fused(self, name: str, variant: str) -> str:
        return f"{name}<{self}, {self.dtype.storage}, {self.dtype.most_threads}, {variant}>"


def _chosen(cell: Cell, T: int, B: int, H: int, w: Array) -> Plan:
    """The plan for weights (D, G*H, H), whose grids are on the device at once if they have to be.

    The planner expects a block on each multiprocessor. Only the compiled kernel and the driver know whether it has room
    there; where it has not, another schedule runs.
    """
    problem, device = plan.Problem(cell, T, B, H, len(w), dtypes.of(w)), plan.device_of(w)
    chosen = plan.choose(problem, device)
    if chosen.exchange != "grid" or plan.is_forced() or not is_cupy_array(w):
        return chosen
    struct = Struct.of(cell, problem.dtype)
    for name, launch in (("forward", chosen.forward), ("backward", chosen.backward)):
        kernel = struct.fused(name, launch.variant(chosen.exchange))
        if math.prod(launch.grid) > kernel.resident_blocks(launch.block, launch.shared_bytes):
            return plan.choose(problem, device, persistent=False)
    return chosen


def modules() -> list[Module]:
    """Every translation unit that a recurrence can ask for."""
    units = []
    for cell in (variant for kind in CELLS.values() for variant in kind.variants()):
        for dtype in dtypes.TABLE.values():
            struct = Struct.of(cell, dtype)
            units.append(struct.stepwise_module())
            units += [struct.fused_module(v) for v in plan.fused_variants(cell, dtype)]
    return units


@dataclass(frozen=True)
class Run:
    """One call's recurrence between the products over all its steps: what both passes of it know, and its history."""

    cell: Cell
    T: int
    B: int
    H: int
    D: int
    plan: Plan
    w: Array
    """(D, G*H, H)."""
    lengths: Array | None
    resets: Array | None
    mask: Array | None
    slots: int
    """Steps that the history has room for."""
    operands: Array
    """(P, D, slots, B, H): what each phase of a step multiplies by its rows of w."""
    saved: Array | None
    """(D, slots, B, S, H): the values of each step that the backward pass reads."""

    @classmethod
    def begin(
        cls, cell: Cell, T: int, B: int, H: int, w: Array, lengths: Array | None = None, resets: Array | None = None,
        mask: Array | None = None, *, training: bool,
    ) -> Run:  # fmt: skip
        """A run whose history is yet to be written."""
        D, slots, phases = len(w), T if training else 2, len(cell.phases)
        chosen = _chosen(cell, T, B, H, w)
        return cls(
            cell, T, B, H, D, chosen, w, lengths, contiguous(resets), contiguous(mask), slots,
            operands=empty(w, (phases, D, slots, B, H), w.dtype),
            # The gates of one phase are saved for the next.
            saved=empty(w, (D, slots, B, len(cell.saved), H), w.dtype) if training or phases > 1 else None,
        )  # fmt: skip

    @functools.cached_property
    def struct(self) -> Struct:
        return Struct.of(self.cell, dtypes.of(self.w))

    @functools.cached_property
    def cell_value(self) -> np.void:
        """The cell as a kernel's argument."""
        return self.struct.value(self.cell)

    @property
    def phase_rows(self) -> list[slice]:
        """The rows of w that each phase multiplies by."""
        ends = [self.H * int(n) for n in np.cumsum((0, *self.cell.phases))]
        return [slice(*ends[k : k + 2]) for k in range(len(self.cell.phases))]

    @property
    def sizes(self) -> tuple[np.int32, ...]:
        return np.int32(self.T), np.int32(self.B), np.int32(self.H)

    def steps(self, s: int) -> Iterator[tuple[int, int]]:
        """Each direction, and its step at position s."""
        return ((d, s if d == 0 else self.T - 1 - s) for d in range(self.D))

    def slot(self, t: int, s: int) -> int:
        return t if self.slots == self.T else s % self.slots

    def stepwise(self, name: str, *args: Any) -> None:
        """Launch a kernel of ``recurrence/stepwise.cu``."""
        blocks = -(-self.D * self.B * self.H // _THREADS)
        self.struct.stepwise(name)((blocks,), (_THREADS,), args)

    def fused(self, name: str, launch: Launch, *args: Any) -> None:
        """Launch a kernel of ``recurrence/fused.cu``."""
        self.struct.fused(name, launch.variant(self.plan.exchange))(
            launch.grid, launch.block, args, shared_mem=launch.shared_bytes, cooperative=self.plan.exchange == "grid"
        )

    def barriers(self, launch: Launch) -> Array | None:
        """A counter for each tile of each group of blocks that exchange."""
        if self.plan.exchange != "grid":
            return None
        return namespace(self.w).zeros(launch.tiles * launch.grid[1] * launch.grid[2], np.uint32)

    def hidden_gradients(self, d: int, da: Array, da_hidden: Array, rows: slice = slice(None)) -> dict[str, Array]:
        """The gradients of a direction's weights from those of the gates, of all steps or of some rows.

        They are those of the weights that a step multiplies by: not of weight_ih and bias_ih.
        """
        xp, gates = namespace(da), da_hidden[d, rows]
        db_hh = xp.matmul(xp.ones(len(gates), da.dtype), gates)
        operands = self.operands[:, d].reshape(len(self.operands), -1, self.H)[:, rows]
        parts = [xp.matmul(gates[:, part].T, operand) for part, operand in zip(self.phase_rows, operands, strict=True)]
        return {"weight_hh": parts[0] if len(parts) == 1 else xp.concatenate(parts), "bias_hh": db_hh}


def run_forward(run: Run, xw: Array, biases: tuple[Array | None, Array | None], state: tuple[Array, ...]) -> Array:
    """All steps, from xw (D, T*B, G*H) and biases (D, G*H) to y (T, B, D*H); ``state`` is advanced in place."""
    y = empty(xw, (run.T, run.B, run.D * run.H), xw.dtype)
    if y.size:
        h, c = state if len(state) == 2 else (state[0], None)
        inputs = (xw, *biases, run.lengths, run.resets, run.mask)
        pass_ = _forward_stepwise if run.plan.schedule == "stepwise" else _forward_fused
        pass_(run, inputs, h, c, y)
    return y


def _begin_forward(run: Run, h: Array) -> None:
    run.stepwise(
        "begin_forward", run.lengths, run.resets, run.mask, h, run.operands, *run.sizes,
        np.int32(run.D), np.int32(run.slots),
    )  # fmt: skip


def _forward_stepwise(run: Run, inputs: tuple[Array | None, ...], h: Array, c: Array | None, y: Array) -> None:
    xp = namespace(y)
    products = [empty(y, (run.D, run.B, run.H * gates), y.dtype) for gates in run.cell.phases]
    _begin_forward(run, h)
    for s in range(run.T):
        tail = (*run.sizes, np.int32(run.D), np.int32(run.slots), np.int32(s), run.cell_value)
        for phase, (rows, out) in enumerate(zip(run.phase_rows, products, strict=True)):
            for d, t in run.steps(s):
                xp.matmul(run.operands[phase, d, run.slot(t, s)], run.w[d, rows].T, out=out[d])
            if out is products[-1]:
                run.stepwise("finish_step", out, *inputs, h, c, y, run.operands, run.saved, *tail)
            else:
                run.stepwise("operand_of_step", out, *inputs, h, run.operands, run.saved, *tail)


def _forward_fused(run: Run, inputs: tuple[Array | None, ...], h: Array, c: Array | None, y: Array) -> None:
    launch = run.plan.forward
    if run.plan.exchange == "launch":
        _begin_forward(run, h)
    arrived = run.barriers(launch)
    for first, last in run.plan.launches(run.T * len(run.cell.phases)):
        run.fused(
            "forward", launch, run.w, *inputs, h, c, y, run.operands, run.saved, arrived, *run.sizes,
            np.int32(run.slots), first, last, *launch.cut, run.cell_value,
        )  # fmt: skip


def run_backward(run: Run, dy: Array | None, dstate: tuple[Array, ...]) -> tuple[Array, Array]:
    """All steps back, from dy (T, B, D*H): the gradients (D, T*B, G*H) of xw and of W_hh h.

    ``dstate``, the gradient of the final state, becomes that of the initial one. The two may be one array.
    """
    shape = (run.D, run.T * run.B, run.w.shape[1])
    da = empty(run.w, shape, run.w.dtype)
    da_hidden = empty(run.w, shape, run.w.dtype) if run.cell.hidden_apart else da
    if da.size:
        dh, dc = dstate if len(dstate) == 2 else (dstate[0], None)
        # They carry gradients from one launch to the next.
        direct = empty(da, dh.shape, dh.dtype)
        through = empty(da, dh.shape, dh.dtype) if len(run.cell.phases) > 1 else None
        carried = (dh, dc, direct, through)
        pass_ = _backward_stepwise if run.plan.schedule == "stepwise" else _backward_fused
        pass_(run, contiguous(dy), carried, da, da_hidden)
    return da, da_hidden


def _backward_stepwise(
    run: Run, dy: Array | None, carried: tuple[Array | None, ...], da: Array, da_hidden: Array
) -> None:
    xp, w = namespace(da), run.w
    first, *others = run.phase_rows
    steps = da_hidden.reshape(run.D, run.T, run.B, w.shape[1])
    product = empty(da, (run.D, run.B, run.H), da.dtype)
    for s in range(run.T - 1, -2, -1):
        tail = (*run.sizes, np.int32(run.D), np.int32(s), run.cell_value)
        if s + 1 < run.T:
            for d, t in run.steps(s + 1):
                xp.matmul(steps[d, t, :, first], w[d, first], out=product[d])
        run.stepwise(
            "begin_step_backward", product, run.saved, run.lengths, run.resets, run.mask, dy, *carried, da, da_hidden,
            *tail,
        )  # fmt: skip
        for rows in others if s >= 0 else ():
            for d, t in run.steps(s):
                xp.matmul(steps[d, t, :, rows], w[d, rows], out=product[d])
            run.stepwise(
                "operand_of_step_backward", product, run.saved, run.operands, run.lengths, carried[3], da, *tail
            )


def _backward_fused(run: Run, dy: Array | None, carried: tuple[Array | None, ...], da: Array, da_hidden: Array) -> None:
    launch = run.plan.backward
    arrived, transposed = run.barriers(launch), contiguous(run.w.transpose(0, 2, 1))
    for first, last in run.plan.launches(run.T * len(run.cell.phases) + 1):
        run.fused(
            "backward", launch, transposed, run.saved, run.operands, run.lengths, run.resets, run.mask, dy, *carried,
            da, da_hidden, arrived, *run.sizes, first, last, *launch.cut, run.cell_value,
        )  # fmt: skip


@dataclass(frozen=True)
class _Saved:
    """What `recurrence_backward` needs."""

    run: Run
    x: Array
    w_ih: tuple[Array, ...]


@remembers_stream
def recurrence_forward(
    cell: Cell,
    x: Array,
    weights: tuple[Weights, ...],
    state: tuple[Array, ...],
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
    training: bool = False,
) -> tuple[Array, tuple[Array, ...], _Saved | None]:
    """Run one layer over a whole sequence; arguments and results are those of ``gpurnn.reference``'s.

    A length beyond T counts as T, one below zero as zero: what is on the device is not read back to be checked.
    """
    xp = namespace(x)
    T, B, I = x.shape
    D, H, G = len(weights), weights[0]["weight_hh"].shape[1], cell.gates
    if lengths is not None:
        lengths = xp.clip(lengths, 0, T).astype(xp.int32)
        x = xp.where((xp.arange(T, dtype=xp.int32)[:, None] < lengths)[:, :, None], x, x.dtype.type(0))
    elif training:
        x = xp.array(x, order="C")
    # Weights are copied, so that what a caller does to his arrays cannot reach the gradients.
    w = xp.stack([direction["weight_hh"] for direction in weights])
    run = Run.begin(cell, T, B, H, w, lengths, resets, mask, training=training)
    xw = empty(x, (D, T * B, G * H), x.dtype)
    for d, direction in enumerate(weights):
        for rows in _chunks(T, B):
            xp.matmul(x.reshape(T * B, I)[rows], direction["weight_ih"].T, out=xw[d, rows])
    biases = (
        _stacked(xp, [direction.get("bias_ih") for direction in weights]),
        _stacked(xp, [direction.get("bias_hh") for direction in weights]),
    )
    final = tuple(xp.array(s, run.struct.dtype.accumulator, order="C") for s in state)
    y = run_forward(run, xw, biases, final)
    final = tuple(s.astype(x.dtype, copy=False) for s in final)
    if not training:
        return y, final, None
    return y, final, _Saved(run, x, tuple(xp.array(w["weight_ih"], order="C") for w in weights))


def _stacked(xp: Any, biases: list[Array | None]) -> Array | None:
    """(D, G*H), zeros where a direction has none, None if none has."""
    given = next((b for b in biases if b is not None), None)
    return None if given is None else xp.stack([xp.zeros_like(given) if b is None else b for b in biases])


@of_stream
def recurrence_backward(
    saved: _Saved,
    dy: Array | None,
    dstate: tuple[Array | None, ...],
    dweights: tuple[Mapping[str, Array], ...] | None = None,
) -> tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]:
    """Backpropagate through a layer's whole recurrence; arguments and results are those of ``gpurnn.reference``'s."""
    run, x = saved.run, saved.x
    xp = namespace(x)
    state_shape = (run.D, run.B, run.H)
    real = run.struct.dtype.accumulator
    dstate0 = tuple(xp.zeros(state_shape, real) if s is None else xp.array(s, real, order="C") for s in dstate)
    da, da_hidden = run_backward(run, dy, dstate0)
    x_rows = x.reshape(run.T * run.B, x.shape[2])
    dx = xp.zeros_like(x_rows)
    totals = []
    for d, w_ih in enumerate(saved.w_ih):
        total: dict[str, Array] = {} if dweights is None else dict(dweights[d])
        chunks = _chunks(run.T, run.B)
        for rows in chunks if d == 1 else chunks[::-1]:
            part = da[d, rows]
            dx[rows] += xp.matmul(part, w_ih)
            made = {
                "weight_ih": xp.matmul(part.T, x_rows[rows]),
                "bias_ih": xp.matmul(xp.ones(len(part), x.dtype), part),
                **run.hidden_gradients(d, da, da_hidden, rows),
            }
            total = {name: total[name] + gradient for name, gradient in made.items()} if total else made
        totals.append({name: total[name] for name in run.cell.parameters})
    return dx.reshape(x.shape), tuple(totals), tuple(s.astype(x.dtype, copy=False) for s in dstate0)
