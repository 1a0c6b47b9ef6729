"""A step of each cell as operators of ONNX, with all options, for loops over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import _dispatch, cells
from ..cells import Activation, Cell, activations
from ..layers.recurrent import Stacked
from ..reference.cells.normalisation import EPSILON
from .onnx_graph import Graph, Value, xp

Weights = Mapping[str, Value]
"""The weights of a direction by the names of the cell's parameters; matrices are transposed."""


def weights_of(graph: Graph, layer: Stacked, suffix: str, prefix: str) -> Weights:
    """The weights of one layer and direction of a stack."""
    found = {}
    for name in layer.cell.parameters:
        if name + suffix in layer.params:
            array = _dispatch.to_numpy(layer.params[name + suffix])
            value = graph.constant(prefix + name + suffix, array)
            found[name] = value.transposed(1, 0) if array.ndim == 2 else value
    return found


def arguments(layer: Stacked, x: Value, w: Weights) -> list[Value]:
    """What the steps read of the input x (..., I), computed for all steps at once."""
    cell, hidden = layer.cell, layer.hidden_size
    a = _plus(_normalised(cell, hidden, x @ w["weight_ih"], w.get("norm_ih")), w.get("bias_ih"))
    return _MINIMAL[cell.name](*a.blocks(cell.gates)) if cell.name in _MINIMAL else [a]


def step(layer: Stacked, rows: Sequence[Value], states: Sequence[Value], w: Weights) -> list[Value]:
    """The new states (B, ...) from the rows of `arguments` for this step and the states before it."""
    cell: Any = layer.cell
    new = _STEPS[cell.name](cell, layer.hidden_size, *rows, *states, w)
    rates = getattr(cell, "zoneout", 0.0)
    rates = rates if isinstance(rates, tuple) else (rates,) * len(new)
    return [
        rate * before + (1 - rate) * after if rate else after
        for rate, before, after in zip(rates, states, new, strict=True)
    ]


def is_known(cell: Cell) -> bool:
    """Whether this module has the equations of a cell."""
    return cell.name in _STEPS


def activated(activation: Activation, a: Value, clip: float | None = None) -> Value:
    """f(a), with a clipped to [-clip, clip]."""
    if clip is not None:
        a = xp.clip(a, -clip, clip)
    if activations.name_of(activation) == "sigmoid":  # the function of all libraries loses digits where it is small
        return a.graph.node("Sigmoid", a)
    shared: Any = activations.value
    value: Value = shared(xp, activation, a)
    return value


# ---- The cells -------------------------------------------------------------------------------------------------------


def _vanilla(cell: cells.Vanilla, hidden: int, xw: Value, h: Value, w: Weights) -> list[Value]:
    product = _normalised(cell, hidden, h @ w["weight_hh"], w.get("norm_hh"))
    return [_leaky(cell, activated(cell.activation, xw + _plus(product, w.get("bias_hh")), cell.clip), h)]


def _independent(cell: cells.IndRNN, hidden: int, xw: Value, h: Value, w: Weights) -> list[Value]:
    return [_leaky(cell, activated(cell.activation, xw + w["weight_hh"] * h, cell.clip), h)]


def _lstm(cell: cells.LSTM, hidden: int, xw: Value, h: Value, c: Value, w: Weights) -> list[Value]:
    product = _normalised(cell, hidden, h @ w["weight_hh"], w.get("norm_hh"))
    a = dict(zip(cell.gate_functions, (xw + _plus(product, w.get("bias_hh"))).blocks(cell.gates), strict=True))
    if cell.peephole:
        for gate in ("i",) if cell.coupled else ("i", "f"):
            a[gate] = a[gate] + w[f"peephole_{gate}"] * c
    i = activated(cell.gate_activation, a["i"], cell.clip)
    f = 1.0 - i if cell.coupled else activated(cell.gate_activation, a["f"], cell.clip)
    c = f * c + i * activated(cell.activation, a["g"], cell.clip)
    if cell.cell_clip is not None:
        c = xp.clip(c, -cell.cell_clip, cell.cell_clip)
    o = activated(cell.gate_activation, a["o"] + w["peephole_o"] * c if cell.peephole else a["o"], cell.clip)
    output = c.normalised(EPSILON, w["norm_c"], w.get("bias_c")) if cell.layer_norm else c
    h = o * activated(cell.output_activation, output)
    return [h @ w["weight_hr"] if cell.proj_size else h, c]


def _gru(cell: cells.GRU, hidden: int, xw: Value, h: Value, w: Weights) -> list[Value]:
    xw_rz, xw_n = _columns(xw, 2 * hidden, hidden)
    products = _columns(w["weight_hh"], 2 * hidden, hidden)
    norms, biases = (
        _columns(w[name], 2 * hidden, hidden) if name in w else [None, None] for name in ("norm_hh", "bias_hh")
    )

    def product(entering: Value, place: int) -> Value:
        a, gain = entering @ products[place], norms[place]
        return _plus(a if gain is None else a.normalised(EPSILON, gain), biases[place])

    a_r, a_z = (xw_rz + product(h, 0)).blocks(2)
    r, z = (activated(cell.gate_activation, a, cell.clip) for a in (a_r, a_z))
    n = activated(cell.activation, xw_n + (r * product(h, 1) if cell.reset_after else product(r * h, 1)), cell.clip)
    kept, added = (1.0 - z, z) if cell.update == "candidate" else (z, 1.0 - z)
    return [kept * h + added * n]


def _scanned(cell: Cell, hidden: int, kept: Value, added: Value, h: Value, w: Weights) -> list[Value]:
    return [kept * h + added]


_STEPS: dict[str, Callable[..., list[Value]]] = {
    "rnn": _vanilla, "lstm": _lstm, "gru": _gru, "indrnn": _independent, "mingru": _scanned, "minlstm": _scanned,
}  # fmt: skip
"""The step of each cell: from the cell, H, its rows, its states and its weights to its new states."""


def _mingru(z: Value, p: Value) -> list[Value]:
    """1 - z, and z n."""
    return [activated("sigmoid", -z), activated("sigmoid", z) * _candidate(p)]


def _minlstm(i: Value, f: Value, p: Value) -> list[Value]:
    """f / (i + f), and n i / (i + f), as (1 + exp(-i)) / (2 + exp(-i) + exp(-f)) and the same with i and f swapped.

    All exponentials, and 1, are divided by the largest of them, so that none exceeds 1.
    """
    largest = xp.maximum(-i, -f, 0.0)
    one, e_i, e_f = (xp.exp(exponent - largest) for exponent in (i.graph.value(0.0), -i, -f))
    both = one + e_i + (one + e_f)
    return [(one + e_i) / both, (one + e_f) / both * _candidate(p)]


def _candidate(p: Value) -> Value:
    return xp.where(p < 0.0, activated("sigmoid", p), p + 0.5)


_MINIMAL: dict[str, Callable[..., list[Value]]] = {"mingru": _mingru, "minlstm": _minlstm}
"""For the cells without W_hh: from the gates' arguments to kept and added of h_t = kept h_{t-1} + added."""


# ---- Their parts -----------------------------------------------------------------------------------------------------


def _plus(a: Value, bias: Value | None) -> Value:
    return a if bias is None else a + bias


def _leaky(cell: cells.Vanilla | cells.IndRNN, f: Value, h: Value) -> Value:
    return f + cell.leak * h if cell.leak else f


def _columns(a: Value, *widths: int) -> list[Value]:
    """Parts of the last axis with these widths."""
    return a.graph.nodes_of("Split", [a, a.graph.whole(*widths)], len(widths), axis=-1)


def _normalised(cell: Cell, hidden: int, product: Value, gain: Value | None) -> Value:
    """A product with all gates after its layer norm, if there is one."""
    if gain is None:
        return product
    widths = [gates * hidden for gates in cell.norm_groups]
    if len(widths) == 1:
        return product.normalised(EPSILON, gain)
    parts = zip(_columns(product, *widths), _columns(gain, *widths), strict=True)
    return product.graph.concat([part.normalised(EPSILON, own) for part, own in parts], -1)
