"""One step of each cell, forward and backward: the stepwise schedule's kernels on a sequence of one step."""

from __future__ import annotations

from typing import Any

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell

from ..launch import contiguous, namespace, of_stream, remembers_stream
from ..recurrence import plan
from ..recurrence.run import Run, run_backward, run_forward


@remembers_stream
def cell_forward(cell: Cell, xw: Array, state: tuple[Array, ...], weights: Weights) -> tuple[tuple[Array, ...], Run]:
    """One step of a cell from its projected input; arguments and results are those of ``gpurnn.reference``'s."""
    xp = namespace(xw)
    B, H = state[0].shape
    b_hh = weights.get("bias_hh")
    with plan.schedule("stepwise"):
        run = Run.begin(cell, 1, B, H, xp.array(weights["weight_hh"], order="C")[None], training=True)
    final = tuple(xp.array(s, run.struct.dtype.accumulator, order="C")[None] for s in state)
    run_forward(run, contiguous(xw)[None], (None, None if b_hh is None else contiguous(b_hh)[None]), final)
    return tuple(s[0].astype(xw.dtype, copy=False) for s in final), run


@of_stream
def cell_backward(saved: Run, dstate: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
    """The transpose of `cell_forward`: the gradients of xw, of the state before it, and of the weights by name."""
    xp: Any = namespace(saved.w)
    dstate_prev = tuple(xp.array(s, saved.struct.dtype.accumulator, order="C")[None] for s in dstate)
    da, da_hidden = run_backward(saved, None, dstate_prev)
    dstate_prev = tuple(s[0].astype(da.dtype, copy=False) for s in dstate_prev)
    return da[0], dstate_prev, saved.hidden_gradients(0, da_hidden)


@of_stream
def cell_gates(saved: Run) -> dict[str, Array]:
    """The values (B, H) of the gates of a step by name, from what `cell_forward` saved."""
    xp: Any = namespace(saved.w)
    assert saved.saved is not None
    values = {name: saved.saved[0, 0, :, k, :] for k, name in enumerate(saved.cell.gate_functions)}

    def value(kept: Array) -> Array:
        """Of a sigmoid, from what ``Gate`` in ``activations.cuh`` holds."""
        return xp.where(xp.signbit(kept), 1 + kept, kept)

    return {
        name: value(kept) if saved.cell.function_of(name) == "sigmoid" else kept.copy() for name, kept in values.items()
    }
