"""All steps of a recurrence, between the products over all steps at once.

`Run` is one call. `run_forward` and `run_backward` launch the kernels of its schedule: those of
``recurrence/stepwise.cu`` around products of a BLAS, or those of ``recurrence/fused.cu`` and ``scatter.cu``.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from array_api_compat import is_cupy_array

from gpurnn._contract import Array
from gpurnn.cells import Cell

from .. import dtypes
from ..arrays import contiguous, empty, namespace
from ..launch import Bound
from ..residency import NotResident, watch
from ..streams import beside
from . import plan
from .plan import STEPWISE_THREADS, FusedPlan, Launch, Plan
from .struct import Struct


def apart(problem: plan.Problem, chosen: Plan) -> str:
    """Why the blocks of a plan do not run at once on CuPy's current device; "" if they do, or need not.

    The planner expects that a multiprocessor holds one block. Only the compiled kernel and the driver know whether it
    does.
    """
    if not isinstance(chosen, FusedPlan) or not chosen.launch.variant.among_blocks:
        return ""
    name, launch, blocks = problem.name, chosen.launch, math.prod(chosen.launch.grid)
    kernel = Struct.of(problem.cell, problem.dtype).pass_kernel(name, launch.variant)
    resident = kernel.resident_blocks(launch.block, launch.shared_bytes)
    if blocks > resident:
        in_clusters = f" in clusters of {launch.variant.blocks}" if launch.variant.blocks > 1 else ""
        return f"{blocks} blocks{in_clusters} of its {name} pass have to run at once, and the device runs {resident}"
    return ""


def chosen_plan(problem: plan.Problem, w: Array) -> Plan:
    """The plan for a problem. If its blocks do not run at once and the schedule is not fixed, take another schedule."""
    device, reasons = plan.device_of(w), dict[str, str]()
    chosen = plan.choose(problem, device)
    while is_cupy_array(w) and not plan.is_forced() and (why := apart(problem, chosen)):
        reasons[chosen.schedule] = why
        chosen = plan.choose(problem, device, reasons)
    return chosen


class Planned(Protocol):
    """A call's recurrence whose passes have plans."""

    @property
    def is_forced(self) -> bool:
        """Whether the schedule is fixed."""

    def replanned(self, *, backward: bool) -> Plan:
        """The best plan for a pass after a launch has shown that its blocks do not run at once."""


@dataclass(frozen=True)
class Run:
    """One call's recurrence between the products over all steps: the inputs of both passes, and the history."""

    cell: Cell
    T: int
    B: int
    H: int
    D: int
    plan: Plan
    """The plan of the forward pass."""
    is_forced: bool
    w: Array
    """(D, G*H, H)."""
    lengths: Array | None
    marks: Array | None
    mask: Array | None
    slots: int
    """Steps that the history has room for."""
    operands: Array
    """(P, D, slots, B, H): each phase multiplies its operand by its rows of w."""
    saved: Array | None
    """(D, slots, B, S, H): the values of each step that the backward pass reads."""
    weights: Array | None = None
    """(D, W, H) of the accumulator's dtype: the weights of ``cell.diagonal``."""
    step_masks: Array | None = None
    """(M, D, T, B, H) of that dtype."""
    backward_plan: Plan | None = None
    """The plan of the backward pass, in training."""

    @classmethod
    def begin(
        cls,
        cell: Cell,
        T: int,
        B: int,
        H: int,
        w: Array,
        lengths: Array | None = None,
        marks: Array | None = None,
        mask: Array | None = None,
        *,
        diagonal: list[list[Array]] | None = None,
        step_masks: Array | None = None,
        training: bool,
    ) -> Run:
        """A run whose history is not written yet; ``diagonal`` are the weights of ``cell.diagonal``, by direction."""
        D, slots, phases = len(w), T if training else 2, len(cell.phases)
        operands, saved = empty(w, (phases, D, slots, B, H), w.dtype), None
        if training or phases > 1:  # a phase saves its gates for the next one
            saved = empty(w, (D, slots, B, len(cell.saved), H), w.dtype)
        xp, real, diagonal_weights = namespace(w), dtypes.of(w).accumulator, None
        if cell.diagonal:
            stacked = xp.stack([xp.stack(of_direction) for of_direction in diagonal or ()])
            diagonal_weights = stacked.astype(real, copy=False)
            if (lengths is not None or marks is not None) and saved is not None:
                saved[...] = 0  # where there is no step, the gradients of those weights multiply this by zero
        if step_masks is not None:
            step_masks = xp.array(step_masks, real, order="C")
        forward = plan.Problem(cell, T, B, H, D, dtypes.of(w))
        chosen = chosen_plan(forward, w)
        backward_plan = chosen_plan(replace(forward, backward=True), w) if training else None
        marks, mask = contiguous(marks), contiguous(mask)
        return cls(
            cell, T, B, H, D, chosen, plan.is_forced(), w, lengths, marks, mask, slots, operands, saved,
            diagonal_weights, step_masks, backward_plan,
        )  # fmt: skip

    def replanned(self, *, backward: bool) -> Plan:
        """The best plan for a pass after a launch has shown that its blocks do not run at once."""
        return chosen_plan(plan.Problem(self.cell, self.T, self.B, self.H, self.D, dtypes.of(self.w), backward), self.w)

    @functools.cached_property
    def struct(self) -> Struct:
        return Struct.of(self.cell, dtypes.of(self.w))

    @functools.cached_property
    def cell_value(self) -> np.void:
        """The cell as a kernel's argument."""
        return self.struct.value(self.cell, self.weights, self.step_masks)

    @property
    def _reachable(self) -> list[Array]:
        """The arrays to which the cell points."""
        return [array for array in (self.weights, self.step_masks) if array is not None]

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

    def stepwise(self, name: str, *args: Any, changing: Sequence[str] = ("s",)) -> Bound:
        """A launch of a kernel of ``recurrence/stepwise.cu``."""
        blocks = -(-self.D * self.B * self.H // STEPWISE_THREADS)
        return self.struct.stepwise(name).bind(
            (blocks,), (STEPWISE_THREADS,), args, changing=changing, reachable=self._reachable
        )

    def fused(self, name: str, launch: Launch, *args: Any, changing: Sequence[str] = ("first", "last")) -> Bound:
        """A launch of a kernel of ``recurrence/fused.cu`` or ``scatter.cu``."""
        kernel, cooperative = self.struct.fused(name, launch.variant), launch.variant.among_blocks
        return kernel.bind(
            launch.grid,
            launch.block,
            args,
            changing=changing,
            shared_mem=launch.shared_bytes,
            cooperative=cooperative,
            reachable=self._reachable,
        )

    def launch_fused(
        self, fused: FusedPlan, name: str, phases: int, arrays: Sequence[Array | None], scalars: Sequence[Any]
    ) -> None:
        """Launch a pass. As arguments, ``arrays`` precede the barriers, and ``scalars`` follow them up to `first`."""
        launch, launches = fused.launch, fused.launches(phases, len(self.cell.phases))
        others = *scalars, *launches[0], *launch.sizes, self.cell_value
        if not launch.variant.among_blocks:
            self.fused(name, launch, *arrays, None, *others).each(launches)
            return
        # For each launch, one counter per group of blocks that exchange operands.
        words = namespace(self.w).zeros((len(launches), launch.grid[1] * launch.grid[2]), np.uint32)
        bound = self.fused(name, launch, *arrays, words[0], *others, changing=("arrived", "first", "last"))
        for arrived, (first, last) in zip(words, launches, strict=True):
            bound(arrived, first, last)
        watch(words, math.prod(launch.grid), launch.variant.blocks)

    def hidden_gradients(self, d: int, da_hidden: Array, rows: slice = slice(None)) -> dict[str, Array]:
        """The gradients of a direction's weights, except weight_ih and bias_ih, from the gates' of all or some rows."""
        xp, gates = namespace(da_hidden), da_hidden[d, rows]
        db_hh = xp.matmul(xp.ones(len(gates), gates.dtype), gates)
        operands = self.operands[:, d].reshape(len(self.operands), -1, self.H)[:, rows]
        parts = [xp.matmul(gates[:, part].T, operand) for part, operand in zip(self.phase_rows, operands, strict=True)]
        of_units = {}
        if self.cell.diagonal:
            assert self.saved is not None
            saved = self.saved[d].reshape(-1, len(self.cell.saved), self.H)[rows]
            by_gate, names = gates.reshape(-1, self.cell.gates, self.H), list(self.cell.gate_functions)
            for name, (gate, reads) in self.cell.diagonal.items():
                values = saved[:, self.cell.saved.index(reads)]
                of_units[name] = xp.sum(by_gate[:, names.index(gate)] * values, axis=0)
        return {"weight_hh": parts[0] if len(parts) == 1 else xp.concatenate(parts), **of_units, "bias_hh": db_hh}


def run_forward(run: Run, xw: Array, biases: tuple[Array | None, Array | None], state: tuple[Array, ...]) -> Array:
    """All steps, from xw (D, T*B, G*H) and biases (D, G*H) to y (T, B, D*H); ``state`` is advanced in place.

    Within `streams.side_by_side` both are computed only at its end.
    """
    y = empty(xw, (run.T, run.B, run.D * run.H), xw.dtype)
    if y.size:
        h, c = state if len(state) == 2 else (state[0], None)
        inputs = (xw, *biases, run.lengths, run.marks, run.mask)
        compute_by(run, run.plan, lambda by: _forward(run, by, inputs, h, c, y), backward=False)
    return y


def compute_by(run: Planned, chosen: Plan, compute: Callable[[Plan], None], *, backward: bool) -> None:
    """Compute a pass by its plan, concurrently with those of other layers if it takes few launches.

    If the blocks of a launch do not run at once, compute it by another plan, unless the schedule is fixed.
    """
    if not isinstance(chosen, FusedPlan) or chosen.exchange == "launch":
        compute(chosen)
    elif run.is_forced:
        beside(lambda: compute(chosen))
    else:
        beside(lambda: compute(chosen), instead=lambda: _compute_apart(run, compute, backward=backward))


def _compute_apart(run: Planned, compute: Callable[[Plan], None], *, backward: bool) -> None:
    """Compute a pass by the best plan whose blocks run at once; only trying each launch shows whether they do."""
    while True:
        with contextlib.suppress(NotResident):
            return compute(run.replanned(backward=backward))


def _forward(run: Run, chosen: Plan, inputs: tuple[Array | None, ...], h: Array, c: Array | None, y: Array) -> None:
    if isinstance(chosen, FusedPlan):
        _forward_fused(run, chosen, inputs, h, c, y)
    else:
        _forward_stepwise(run, inputs, h, c, y)


def _begin_forward(run: Run, h: Array) -> None:
    sizes = *run.sizes, np.int32(run.D), np.int32(run.slots)
    run.stepwise("begin_forward", run.lengths, run.marks, run.mask, h, run.operands, *sizes, changing=())()


def _forward_stepwise(run: Run, inputs: tuple[Array | None, ...], h: Array, c: Array | None, y: Array) -> None:
    xp = namespace(y)
    products = [empty(y, (run.D, run.B, run.H * gates), y.dtype) for gates in run.cell.phases]
    _begin_forward(run, h)
    history = run.operands, run.saved, *run.sizes, np.int32(run.D), np.int32(run.slots), np.int32(0), run.cell_value
    ends = [run.stepwise("operand_of_step", out, *inputs, h, *history) for out in products[:-1]]
    ends.append(run.stepwise("finish_step", products[-1], *inputs, h, c, y, *history))
    phases = list(zip(run.phase_rows, products, ends, strict=True))
    for s in range(run.T):
        for phase, (rows, out, end) in enumerate(phases):
            for d, t in run.steps(s):
                xp.matmul(run.operands[phase, d, run.slot(t, s)], run.w[d, rows].T, out=out[d])
            end(np.int32(s))


def _forward_fused(
    run: Run, fused: FusedPlan, inputs: tuple[Array | None, ...], h: Array, c: Array | None, y: Array
) -> None:
    if fused.exchange == "launch":
        _begin_forward(run, h)
    arrays = run.w, *inputs, h, c, y, run.operands, run.saved
    run.launch_fused(fused, "forward", run.T * len(run.cell.phases), arrays, (*run.sizes, np.int32(run.slots)))


def run_backward(run: Run, dy: Array | None, dstate: tuple[Array, ...]) -> tuple[Array, Array]:
    """Backpropagate dy (T, B, D*H) through all steps, to the gradients (D, T*B, G*H) of xw and of W_hh h.

    ``dstate``, the gradient of the final state, becomes that of the initial one. The two results may be one array.
    Within `streams.side_by_side` all of them are computed only at its end.
    """
    shape = (run.D, run.T * run.B, run.w.shape[1])
    da = empty(run.w, shape, run.w.dtype)
    da_hidden = empty(run.w, shape, run.w.dtype) if run.cell.hidden_apart else da
    if da.size:
        dh, dc = dstate if len(dstate) == 2 else (dstate[0], None)
        # They carry gradients from one launch to the next.
        direct = empty(da, dh.shape, dh.dtype)
        through = empty(da, dh.shape, dh.dtype) if len(run.cell.phases) > 1 else None
        carried, dy = (dh, dc, direct, through), contiguous(dy)
        assert run.backward_plan is not None
        compute_by(
            run, run.backward_plan, lambda chosen: _backward(run, chosen, dy, carried, da, da_hidden), backward=True
        )
    return da, da_hidden


def _backward(
    run: Run, chosen: Plan, dy: Array | None, carried: tuple[Array | None, ...], da: Array, da_hidden: Array
) -> None:
    if isinstance(chosen, FusedPlan):
        _backward_fused(run, chosen, dy, carried, da, da_hidden)
    else:
        _backward_stepwise(run, dy, carried, da, da_hidden)


def _backward_stepwise(
    run: Run, dy: Array | None, carried: tuple[Array | None, ...], da: Array, da_hidden: Array
) -> None:
    xp, w = namespace(da), run.w
    first, *others = run.phase_rows
    steps = da_hidden.reshape(run.D, run.T, run.B, w.shape[1])
    product = empty(da, (run.D, run.B, run.H), da.dtype)
    arrays = product, run.saved, run.lengths, run.marks, run.mask, dy, *carried, da, da_hidden
    scalars = *run.sizes, np.int32(run.D), np.int32(0), run.cell_value
    begin = run.stepwise("begin_step_backward", *arrays, *scalars)
    if others:
        history = run.saved, run.operands, run.lengths, run.marks
        operand = run.stepwise("operand_of_step_backward", product, *history, carried[3], da, *scalars)
    for s in range(run.T - 1, -2, -1):
        if s + 1 < run.T:
            for d, t in run.steps(s + 1):
                xp.matmul(steps[d, t, :, first], w[d, first], out=product[d])
        begin(np.int32(s))
        for rows in others if s >= 0 else ():
            for d, t in run.steps(s):
                xp.matmul(steps[d, t, :, rows], w[d, rows], out=product[d])
            operand(np.int32(s))


def _backward_fused(
    run: Run, fused: FusedPlan, dy: Array | None, carried: tuple[Array | None, ...], da: Array, da_hidden: Array
) -> None:
    phases, launch = run.T * len(run.cell.phases) + 1, fused.launch
    arrays: tuple[Array | None, ...]
    if launch.variant.exchange == "scatter":
        real = dtypes.of(run.w).accumulator
        sums = empty(run.w, launch.sums_between_blocks(real), real)
        arrays = run.w, run.saved, run.lengths, run.marks, run.mask, dy, *carried[:3], da, da_hidden, sums
    else:
        transposed = contiguous(run.w.transpose(0, 2, 1))
        inputs = transposed, run.saved, run.operands, run.lengths, run.marks, run.mask, dy
        arrays = *inputs, *carried, da, da_hidden
    run.launch_fused(fused, "backward", phases, arrays, run.sizes)
