"""One step of each cell, forward and backward: the stepwise schedule's kernels on a sequence of one step."""

from __future__ import annotations

from typing import Any

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell, activations

from ..arrays import contiguous, namespace
from ..recurrence import plan
from ..recurrence.rows import RowRun, backward_rows, forward_rows
from ..recurrence.run import Run, run_backward, run_forward
from ..streams import of_stream, remembers_stream


@remembers_stream
def cell_forward(cell: Cell, xw: Array, state: tuple[Array, ...], weights: Weights) -> tuple[tuple[Array, ...], Any]:
    """One step of a cell from its projected input; arguments and results are as in ``gpurnn.reference``."""
    xp = namespace(xw)
    B, H = xw.shape[0], xw.shape[1] // cell.gates
    b_hh, step_masks = weights.get("bias_hh"), None
    if cell.step_masks:
        step_masks = xp.zeros((len(cell.step_masks), 1, 1, B, H), xw.dtype)
        for mask, name in zip(step_masks, cell.step_masks, strict=True):
            mask[0, 0, :, : weights[name].shape[1]] = weights[name]  # the mask of h has the width of h
    run: Run | RowRun
    with plan.schedule("stepwise"):
        if cell.sums_over_units:
            run = RowRun.begin(cell, 1, B, H, (weights,), None, None, None, step_masks, training=True)
        else:
            w_hh, diagonal = (
                xp.array(weights["weight_hh"], order="C")[None],
                [[weights[name] for name in cell.diagonal]],
            )
            run = Run.begin(cell, 1, B, H, w_hh, diagonal=diagonal, step_masks=step_masks, training=True)
    final = tuple(xp.array(s, run.struct.dtype.accumulator, order="C")[None] for s in state)
    arguments = contiguous(xw)[None], (None, None if b_hh is None else contiguous(b_hh)[None]), final
    if isinstance(run, RowRun):
        forward_rows(run, *arguments)
    else:
        run_forward(run, *arguments)
    return tuple(s[0].astype(xw.dtype, copy=False) for s in final), run


@of_stream
def cell_backward(saved: Any, dstate: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
    """The transpose of `cell_forward`: the gradients of xw, of the state before it, and of the weights by name."""
    xp: Any = namespace(saved.saved)
    dstate_prev = tuple(xp.array(s, saved.struct.dtype.accumulator, order="C")[None] for s in dstate)
    if isinstance(saved, RowRun):
        gradients = backward_rows(saved, None, dstate_prev)
        da, of_weights = gradients.dx, gradients.of_weights(saved, 0, slice(0, saved.B))
    else:
        da, da_hidden = run_backward(saved, None, dstate_prev)
        of_weights = saved.hidden_gradients(0, da_hidden)
    dstate_prev = tuple(s[0].astype(da.dtype, copy=False) for s in dstate_prev)
    return da[0], dstate_prev, of_weights


@of_stream
def cell_gates(saved: Any) -> dict[str, Array]:
    """The values (B, H) of the gates of a step by name, from the values that `cell_forward` saved."""
    xp: Any = namespace(saved.saved)
    assert saved.saved is not None
    functions, clip = saved.cell.gate_functions, getattr(saved.cell, "clip", None)

    def value(gate: str, kept: Array) -> Array:
        """The gate's value, from the value that its activation keeps, see ``activations.cuh``."""
        activation = saved.cell.activation_of(gate)
        if clip is not None:
            return activations.value(xp, activation, xp.clip(kept, -clip, clip))
        name = activations.name_of(activation)
        if name == "sigmoid":
            return xp.where(xp.signbit(kept), 1 + kept, kept)
        if name == "scaled_tanh":
            return activations.numbers_of(activation)[0] * kept
        return kept.copy() if name in ("tanh", "relu") else activations.value(xp, activation, kept)

    return {name: value(name, saved.saved[0, 0, :, k, :]) for k, name in enumerate(functions)}
