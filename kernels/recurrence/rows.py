"""All steps of a recurrence whose cell has sums over units: layer norm, a projection.

``run.py`` does the same for the other cells. Between two products, blocks have whole rows of the batch, see
``recurrence/rows.cuh``.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell

from .. import dtypes
from ..arrays import contiguous, empty, namespace
from ..launch import Bound
from ..residency import watch
from . import plan
from .plan import THREADS, FusedPlan, Launch, Plan
from .predict_rows import rows_at_once
from .run import chosen_plan, compute_by
from .stack import once
from .struct import Struct, multiply_kernel


@dataclass(frozen=True)
class _Copies:
    """The recurrent weights of all directions, as the kernels read them."""

    products: tuple[Array, ...]
    """(D, N, K) for the product of each phase: rows of W_hh, and W_hr."""
    norm: Array | None
    """(D, G, H)."""
    norm_c: Array | None
    """(D, 2, H): the weights of the norm of c, and its bias."""
    diagonal: Array | None
    """(D, W, H) of the accumulator's dtype."""

    @classmethod
    def of(cls, cell: Cell, H: int, weights: tuple[Weights, ...]) -> _Copies:
        given = weights[0]
        D, dtype, xp = len(weights), given["weight_hh"].dtype, namespace(given["weight_hh"])
        shapes = cell.shapes(input_size=0, hidden_size=H)

        def stacked(*names: str) -> Array:
            """(D, ...): the parameters with these names, concatenated; zeros for a missing bias."""
            of_directions = [[direction.get(name) for name in names] for direction in weights]
            joint: Array = xp.stack([
                xp.concatenate([
                    xp.zeros(shapes[name], dtype) if array is None else array
                    for name, array in zip(names, of_direction, strict=True)
                ])
                for of_direction in of_directions
            ])  # fmt: skip
            return joint

        w, ends = stacked("weight_hh"), [H * int(n) for n in np.cumsum((0, *cell.phases))]
        products = [contiguous(w[:, begin:end]) for begin, end in itertools.pairwise(ends)]
        if "weight_hr" in given:
            products.append(stacked("weight_hr"))
        diagonal = None
        if cell.diagonal:
            real = dtypes.of(w).accumulator
            diagonal = stacked(*cell.diagonal).reshape(D, len(cell.diagonal), H).astype(real, copy=False)
        return cls(
            tuple(products),
            stacked("norm_hh") if "norm_hh" in given else None,
            stacked("norm_c", "bias_c") if "norm_c" in given else None,
            diagonal,
        )


@dataclass(frozen=True)
class RowRun:
    """One call's recurrence between the products over all steps: the inputs of both passes, and the history."""

    cell: Cell
    T: int
    B: int
    H: int
    D: int
    plan: Plan
    """The plan of the forward pass."""
    is_forced: bool
    w: tuple[Array, ...]
    """The weights (D, N, K) of the product of each phase: rows of W_hh, and W_hr."""
    norm: Array | None
    """(D, G, H): the weights of the norm of W_hh h."""
    norm_c: Array | None
    """(D, 2, H): the weights of the norm of c, and its bias."""
    lengths: Array | None
    marks: Array | None
    mask: Array | None
    slots: int
    entering: Array
    """(D, slots, B, P): the operand of phase 0."""
    inner: Array | None
    """(D, slots, B, H): the operand of phase 1."""
    saved: Array
    """(D, slots, B, S, H)."""
    normal: Array | None
    """(D, slots, B, G + 1, H): the normalised products, and c."""
    inverses: Array | None
    """(D, slots, B, groups + 1)."""
    weights: Array | None
    """(D, W, H) of the accumulator's dtype: the weights of ``cell.diagonal``."""
    step_masks: Array | None
    """(M, D, T, B, H) of that dtype."""
    backward_plan: Plan | None

    @classmethod
    def begin(
        cls,
        cell: Cell,
        T: int,
        B: int,
        H: int,
        weights: tuple[Weights, ...],
        lengths: Array | None,
        marks: Array | None,
        mask: Array | None,
        step_masks: Array | None,
        *,
        training: bool,
    ) -> RowRun:
        """A run whose history is not written yet."""
        w_hh = weights[0]["weight_hh"]
        D, slots, P, dtype = len(weights), T if training else 2, w_hh.shape[1], w_hh.dtype
        xp, real = namespace(w_hh), dtypes.of(w_hh).accumulator
        copies = once((id(weights), "rows"), lambda: _Copies.of(cell, H, weights))
        w = copies.products
        saved = empty(w_hh, (D, slots, B, len(cell.saved), H), dtype)
        if cell.diagonal and (lengths is not None or marks is not None):
            saved[...] = 0  # where there is no step, the gradients of those weights multiply this by zero
        normed = copies.norm is not None
        forward = plan.Problem(cell, T, B, H, D, dtypes.of(w_hh))
        return cls(
            cell, T, B, H, D, chosen_plan(forward, w_hh), plan.is_forced(), w, copies.norm, copies.norm_c,
            lengths, contiguous(marks), contiguous(mask), slots, empty(w_hh, (D, slots, B, P), dtype),
            empty(w_hh, (D, slots, B, H), dtype) if len(w) > 1 else None, saved,
            empty(w_hh, (D, slots, B, cell.gates + 1, H), dtype) if normed else None,
            empty(w_hh, (D, slots, B, len(cell.norm_groups) + 1), real) if normed else None,
            copies.diagonal, None if step_masks is None else xp.array(step_masks, real, order="C"),
            chosen_plan(replace(forward, backward=True), w_hh) if training else None,
        )  # fmt: skip

    @property
    def phase_rows(self) -> list[slice]:
        """The rows of W_hh, and columns of gates, of each phase."""
        ends = [self.H * int(n) for n in np.cumsum((0, *self.cell.phases))]
        return [slice(*pair) for pair in itertools.pairwise(ends)]

    @property
    def P(self) -> int:
        """The width of h."""
        return int(self.entering.shape[3])

    @functools.cached_property
    def struct(self) -> Struct:
        return Struct.of(self.cell, dtypes.of(self.entering))

    @functools.cached_property
    def cell_value(self) -> np.void:
        """The cell as a kernel's argument."""
        return self.struct.value(self.cell, self.weights, self.step_masks)

    @property
    def sizes(self) -> tuple[np.int32, ...]:
        return np.int32(self.T), np.int32(self.B), np.int32(self.H), np.int32(self.P)

    def replanned(self, *, backward: bool) -> Plan:
        """The best plan for a pass after a launch has shown that its blocks do not run at once."""
        dtype = dtypes.of(self.entering)
        return chosen_plan(plan.Problem(self.cell, self.T, self.B, self.H, self.D, dtype, backward), self.w[0])

    def of_rows(self, name: str, rows: int, *args: Any, changing: Sequence[str] = ()) -> Bound:
        """A launch of a kernel in which a few warps of a block share a row."""
        blocks = -(-rows // rows_at_once(self.H))
        arrays = [a for a in (self.weights, self.step_masks) if a is not None]
        return self.struct.row_kernel(name).bind(
            (blocks, 1, self.D), (THREADS,), (*args, self.cell_value), changing=changing, reachable=arrays
        )

    def in_one_launch(
        self, fused: FusedPlan, name: str, arrays: Sequence[Array | None], scalars: tuple[np.int32, ...]
    ) -> None:
        """Launch a pass. As arguments, ``arrays`` precede the barriers, and ``scalars`` follow them up to `first`."""
        launch = fused.launch
        phases = len(self.w) * self.T + (name == "backward_rows")
        launches = fused.launches(phases, len(self.w))
        kernel, is_alone = self.struct.one_launch(name, launch.variant), fused.exchange == "block"
        words = namespace(self.entering).zeros((len(launches), launch.grid[1] * launch.grid[2]), np.uint32)
        reachable = [a for a in (self.weights, self.step_masks) if a is not None]
        bound = kernel.bind(
            launch.grid,
            launch.block,
            (*arrays, None if is_alone else words[0], *scalars, *launches[0], *launch.sizes[1:], self.cell_value),
            changing=("first", "last") if is_alone else ("arrived", "first", "last"),
            shared_mem=launch.shared_bytes,
            cooperative=not is_alone,
            reachable=reachable,
        )
        for arrived, of_launch in zip(words, launches, strict=True):
            bound(*of_launch) if is_alone else bound(arrived, *of_launch)
        if not is_alone:
            watch(words, math.prod(launch.grid))

    # ---- The norm of W_ih x ------------------------------------------------------------------------------------------

    def normalise(self, xw: Array, norm: Array, *, training: bool) -> tuple[Array, Array] | None:
        """Replace xw (D, T*B, G*H) by its layer norm times ``norm`` (D, G*H).

        In training, return the values that `normalise_backward` needs.
        """
        normal = inverses = None
        rows = self.T * self.B
        if training:
            normal = empty(xw, xw.shape, xw.dtype)
            inverses = empty(xw, (self.D, rows, len(self.cell.norm_groups)), self.struct.dtype.accumulator)
        if xw.size:
            self.of_rows("normalise", rows, xw, norm, normal, inverses, np.int32(rows), np.int32(self.H))()
        return None if normal is None or inverses is None else (normal, inverses)

    def normalise_backward(self, da: Array, norm: Array, kept: tuple[Array, Array]) -> Array:
        """The gradient of W_ih x, from that of the result of `normalise`."""
        dxw, rows = empty(da, da.shape, da.dtype), self.T * self.B
        if da.size:
            self.of_rows("normalise_backward", rows, da, norm, *kept, dxw, np.int32(rows), np.int32(self.H))()
        return dxw


def _products(run: RowRun, weights: Sequence[Array]) -> Array:
    """Memory for the products of all phases, one after another."""
    return empty(run.entering, (run.D * run.B * sum(w.shape[1] for w in weights),), run.entering.dtype)


class _Products:
    """The products of the phases of a step, one after another, by a BLAS or by ``multiply`` of ``recurrence/rows.cu``.

    ``operands`` has for each phase an array (D, slots, B, stride), and the columns of it that are multiplied by the
    phase's weights (D, N, K).
    """

    def __init__(
        self, run: RowRun, weights: Sequence[Array], operands: Sequence[tuple[Array, slice]], launch: Launch | None
    ) -> None:
        self.run, self.weights, self.operands = run, weights, operands
        self.out = [empty(run.entering, (run.D, run.B, w.shape[1]), run.entering.dtype) for w in weights]
        self.bound = None if launch is None else [self._bind(k, launch) for k in range(len(weights))]

    def _bind(self, phase: int, launch: Launch) -> Bound:
        (operand, columns), (_, N, K), run = self.operands[phase], self.weights[phase].shape, self.run
        stride, slots = operand.shape[-1], operand.shape[1]
        scalars = run.T, run.B, slots, N, K, stride, columns.start, 0
        args = self.weights[phase], operand, self.out[phase], *map(np.int32, scalars), *launch.sizes[1:]
        kernel = multiply_kernel(run.struct.dtype, launch.variant.columns)
        return kernel.bind(launch.grid, launch.block, args, changing=("s",), shared_mem=launch.shared_bytes)

    def __call__(self, phase: int, s: int) -> None:
        run = self.run
        if self.bound is not None:
            self.bound[phase](np.int32(s))
            return
        operand, columns = self.operands[phase]
        slots = operand.shape[1]
        for d in range(run.D):
            t = s if d == 0 else run.T - 1 - s
            at = operand[d, t if slots == run.T else s % slots, :, columns]
            namespace(at).matmul(at, self.weights[phase][d].T, out=self.out[phase][d])


def forward_rows(run: RowRun, xw: Array, biases: tuple[Array | None, Array | None], state: tuple[Array, ...]) -> Array:
    """All steps, from xw (D, T*B, G*H) and biases (D, G*H) to y (T, B, D*P); ``state`` is advanced in place."""
    y = empty(xw, (run.T, run.B, run.D * run.P), xw.dtype)
    if y.size:
        h, c = state if len(state) == 2 else (state[0], None)
        arrays = xw, *biases, run.norm, run.norm_c, run.lengths, run.marks, run.mask, h, c, y
        compute_by(run, run.plan, lambda chosen: _forward(run, chosen, arrays), backward=False)
    return y


def _forward(run: RowRun, chosen: Plan, inputs: tuple[Array | None, ...]) -> None:
    arrays = *inputs, run.entering, run.inner, run.saved, run.normal, run.inverses
    scalars = *run.sizes, np.int32(run.slots)
    if isinstance(chosen, FusedPlan) and chosen.exchange != "launch":
        weights = *run.w, *(None for _ in range(2 - len(run.w)))
        run.in_one_launch(chosen, "forward_rows", (*weights, _products(run, run.w), *arrays), scalars)
        return
    lengths, marks, mask, h = inputs[5:9]
    run.of_rows("begin_rows", run.B, lengths, marks, mask, h, run.entering, *scalars)()
    operands = [(run.entering, slice(0, run.P)), *([] if run.inner is None else [(run.inner, slice(0, run.H))])]
    multiply = _Products(run, run.w, operands, chosen.launch if isinstance(chosen, FusedPlan) else None)
    ends = [
        run.of_rows(f"forward_phase {k}", run.B, out, *arrays, *scalars, np.int32(0), changing=("s",))
        for k, out in enumerate(multiply.out)
    ]
    for s in range(run.T):
        for phase, end in enumerate(ends):
            multiply(phase, s)
            end(np.int32(s))


@dataclass(frozen=True)
class RowGradients:
    """The gradients of a run's steps, from which `of_weights` computes those of its weights."""

    dx: Array
    """(D, T*B, G*H): of W_ih x after its norm, and of the biases."""
    products: Array
    """(D, T*B, G*H): of W_hh h before its norm."""
    recurrent: Array
    """(D, T*B, G*H): of W_hh h after its norm."""
    outputs: Array | None
    """(D, T*B, P): of the result of a projection."""
    states: Array | None
    """(D, T*B, H): of the normalised c, after its weights and bias."""

    def of_weights(self, run: RowRun, d: int, rows: slice) -> dict[str, Array]:
        """The gradients of a direction's weights, except weight_ih, norm_ih and bias_ih, from some rows."""
        xp, H, G = namespace(self.dx), run.H, run.cell.gates
        count = rows.stop - rows.start

        def over_rows(values: Array) -> Array:
            flat = values.reshape(count, -1)
            total: Array = xp.matmul(xp.ones(count, flat.dtype), flat)
            return total

        def history(array: Array | None) -> Array:
            assert array is not None
            return array[d].reshape(run.T * run.B, *array.shape[3:])[rows]

        made = []
        for k, part in enumerate(run.phase_rows):
            operand = history(run.inner if k else run.entering)
            made.append(xp.matmul(self.products[d, rows, part].T, operand))
        recurrent = self.recurrent[d, rows]
        gradients = {"weight_hh": made[0] if len(made) == 1 else xp.concatenate(made)}
        if self.outputs is not None:
            gradients["weight_hr"] = xp.matmul(self.outputs[d, rows].T, history(run.inner))
        if run.normal is not None:
            normal = history(run.normal)
            gradients["norm_hh"] = over_rows(recurrent.reshape(count, G, H) * normal[:, :G])
            if self.states is not None:
                gradients["norm_c"] = over_rows(self.states[d, rows] * normal[:, G])
                gradients["bias_c"] = over_rows(self.states[d, rows])
        names, by_gate = list(run.cell.gate_functions), recurrent.reshape(count, G, H)
        for name, (gate, reads) in run.cell.diagonal.items():
            values = history(run.saved)[:, run.cell.saved.index(reads)]
            gradients[name] = over_rows(by_gate[:, names.index(gate)] * values)
        gradients["bias_hh"] = over_rows(recurrent)
        return {name: gradients[name] for name in run.cell.parameters if name in gradients}


def backward_rows(run: RowRun, dy: Array | None, dstate: tuple[Array, ...]) -> RowGradients:
    """Backpropagate dy (T, B, D*P); ``dstate``, the gradient of the final state, becomes that of the initial one."""
    like, dtype, rows = run.entering, run.entering.dtype, run.T * run.B
    shape = (run.D, rows, run.cell.gates * run.H)
    dx = empty(like, shape, dtype)
    recurrent = empty(like, shape, dtype) if run.cell.hidden_apart else dx
    products = recurrent if run.norm is None else empty(like, shape, dtype)
    outputs = empty(like, (run.D, rows, run.P), dtype) if len(run.w) > len(run.cell.phases) else None
    states = None if run.norm_c is None else empty(like, (run.D, rows, run.H), dtype)
    found = RowGradients(dx, products, recurrent, outputs, states)
    if dx.size:
        dh, dc = dstate if len(dstate) == 2 else (dstate[0], None)
        direct = empty(like, dh.shape, dh.dtype)
        through = empty(like, dh.shape, dh.dtype) if len(run.cell.phases) > 1 else None
        carried, dy = (dh, dc, direct, through), contiguous(dy)
        assert run.backward_plan is not None
        compute_by(run, run.backward_plan, lambda chosen: _backward(run, chosen, dy, carried, found), backward=True)
    return found


def _backward(
    run: RowRun, chosen: Plan, dy: Array | None, carried: tuple[Array | None, ...], found: RowGradients
) -> None:
    transposed = [contiguous(w.transpose(0, 2, 1)) for w in run.w]
    history = run.saved, run.entering, run.normal, run.inverses
    gradients = found.dx, found.products, found.recurrent, found.outputs, found.states
    arrays = *history, run.norm, run.norm_c, run.lengths, run.marks, run.mask, dy, *carried, *gradients
    if isinstance(chosen, FusedPlan) and chosen.exchange != "launch":
        weights = *transposed, *(None for _ in range(2 - len(transposed)))
        run.in_one_launch(chosen, "backward_rows", (*weights, _products(run, transposed), *arrays), run.sizes)
        return
    steps = found.products.reshape(run.D, run.T, run.B, -1)
    operands = [(steps, columns) for columns in run.phase_rows]
    if found.outputs is not None:
        operands.append((found.outputs.reshape(run.D, run.T, run.B, run.P), slice(0, run.P)))
    multiply = _Products(run, transposed, operands, chosen.launch if isinstance(chosen, FusedPlan) else None)
    phases = [
        run.of_rows(f"backward_phase {k}", run.B, out, *arrays, *run.sizes, np.int32(0), changing=("s",))
        for k, out in enumerate(multiply.out)
    ]
    for s in range(run.T - 1, -2, -1):
        if s + 1 < run.T:
            multiply(0, s + 1)
        phases[0](np.int32(s))
        for k, phase in enumerate(phases[1:] if s >= 0 else (), 1):
            multiply(k, s)
            phase(np.int32(s))
