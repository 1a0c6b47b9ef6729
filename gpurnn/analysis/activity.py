"""Saturation: how often gates and activations are where their slope is nearly zero, and which units do nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from ..functional import layer_norm
from ..layers.recurrent import Recurrent
from ._transition import Transition, check_steps

_RANGE = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
"""The ranges of the functions that saturate."""

_BINS = 50


@dataclass(frozen=True)
class GateActivity:
    """The values of one gate or activation of H units over a run of n = T B steps."""

    function: str
    """The function that computed them: "sigmoid", "tanh", "relu" or "identity"."""
    low: NDArray[np.floating[Any]]
    """(H,): the share of steps at which each unit is saturated at the lower end, in 0 ... 1."""
    high: NDArray[np.floating[Any]]
    """(H,): the share at the upper end."""
    dead: NDArray[np.bool_]
    """(H,): whether the unit is saturated at the same end at every step; for a relu, whether it is always 0."""
    counts: NDArray[np.integer[Any]]
    """(50,): a histogram of all n H values."""
    edges: NDArray[np.floating[Any]]
    """(51,): the edges of its bins."""

    @property
    def saturated(self) -> float:
        """The share of all values that are saturated, in 0 ... 1."""
        return float(np.mean(self.low + self.high))


def activity(layer: Recurrent, x: Array, state: Any = None, *, margin: float = 0.05) -> dict[str, GateActivity]:
    """Measure how saturated the gates and activations of any cell are along a run, and which units are dead.

    A sigmoid is saturated below ``margin`` and above 1 - margin, a tanh within twice the margin of -1 and 1. There the
    slope is small, and gradients do not pass. A relu passes none where it is 0, which counts as its lower end.

    Parameters
    ----------
    layer : gpurnn.RNN, gpurnn.LSTM or gpurnn.GRU
        It has one layer and one direction; `parts` splits a stack.
    x : (T, B, I) array
        Time-major, whatever the layer's ``batch_first``; T and B are at least 1.
    state : (1, B, H) array, optional
        The initial state, for the LSTM a pair (h, c) of such arrays; zero by default.
    margin : float
        The share of a function's range, at each end, that counts as saturated; in (0, 0.5).

    Returns
    -------
    dict of str to GateActivity
        "h" for the vanilla cell, f(a_t); "r", "z", "n" for the GRU; "i", "f", "g", "o" and "tanh(c)" for the LSTM. The
        wing computes them, step by step.

    Raises
    ------
    TypeError, ValueError
        The layer is not one of these, the arrays do not fit it, the margin is out of range, or the arrays or the states
        of the run are NaN or infinite.

    References
    ----------
    A. Karpathy, J. Johnson, L. Fei-Fei, "Visualizing and understanding recurrent networks", arXiv 1506.02078 (2015),
    section 4.2: the shares of left- and right-saturated gates.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> lstm = gpurnn.LSTM(1, 2)
    >>> lstm.params["bias_ih_l0"][2:4] = [9.0, 0.0]
    >>> gates = activity(lstm, np.zeros((5, 1, 1), np.float32))
    >>> gates["f"].high, gates["f"].dead
    (array([1., 0.]), array([ True, False]))
    """
    where = "activity"
    transition = Transition(where, layer)
    x, s = transition.sequence(x, state)
    check_steps(where, x)
    margin = _checks.finite(where, "margin", margin)
    if not 0 < margin < 0.5:
        raise ValueError(f"{where}: margin is {margin!r}, expected a number in (0, 0.5)")
    values = gate_values(transition, x, transition.states(x, s))
    return {name: _activity(function, _dispatch.to_numpy(v), margin) for name, (function, v) in values.items()}


def gates(layer: Recurrent, x: Array, state: Any = None) -> dict[str, NDArray[np.floating[Any]]]:
    """The values of the gates, activations and states of any cell at every step of a run.

    Parameters
    ----------
    layer, x, state
        As in `activity`.

    Returns
    -------
    dict of str to (T, B, H) NumPy array
        The gates that `activity` names, then the states: "h", and the LSTM's "c".

    Raises
    ------
    TypeError, ValueError
        As in `activity`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> values = gates(gpurnn.LSTM(1, 2), np.zeros((5, 3, 1), np.float32))
    >>> [*values], values["f"].shape
    (['i', 'f', 'g', 'o', 'tanh(c)', 'h', 'c'], (5, 3, 2))
    """
    where = "gates"
    transition = Transition(where, layer)
    x, s = transition.sequence(x, state)
    check_steps(where, x)
    states, H = transition.states(x, s), transition.hidden
    values = {name: v for name, (_, v) in gate_values(transition, x, states).items()}
    values |= {name: states[1:, :, k * H : (k + 1) * H] for k, name in enumerate(transition.cell.state_names)}
    return {name: np.asarray(_dispatch.to_numpy(v)) for name, v in values.items()}


def gate_values(transition: Transition, x: Array, states: Array) -> dict[str, tuple[str, Array]]:
    """The function of each gate and its values (T, B, H), from the states (T + 1, B, S) of a run."""
    xp, H, cell = transition.xp, transition.hidden, transition.cell
    wing, weights = _dispatch.wing(transition.where, x=x), transition.weights
    steps: list[dict[str, Any]] = []
    for t in range(x.shape[0]):
        xw = xp.matmul(x[t, ...], xp.matrix_transpose(weights["weight_ih"]))
        if weights.get("norm_ih") is not None:
            ends = np.cumsum((0, *cell.norm_groups)) * H
            spans = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
            xw = xp.concat([layer_norm(xw[:, s], weights["norm_ih"][s]) for s in spans], axis=1)
        xw = xw if weights["bias_ih"] is None else xw + weights["bias_ih"]
        state = tuple(_arrays.contiguous(states[t, :, k * H : (k + 1) * H]) for k in range(cell.states))
        steps.append(wing.cell_gates(wing.cell_forward(cell, xw, state, weights)[1]))
    values = {gate: (cell.function_of(gate), xp.stack([step[gate] for step in steps])) for gate in steps[0]}
    if "c" in cell.state_names:
        values["tanh(c)"] = "tanh", xp.tanh(states[1:, :, H:])
    return values


def _activity(function: str, values: NDArray[Any], margin: float) -> GateActivity:
    rows = values.reshape(-1, values.shape[-1])
    never = np.zeros(rows.shape, bool)
    if function in _RANGE:
        least, most = _RANGE[function]
        reach = margin * (most - least)
        low, high = rows < least + reach, rows > most - reach
        bounds = (least, most)
    else:
        low, high = (rows <= 0, never) if function == "relu" else (never, never)
        bounds = (float(rows.min()), float(rows.max()))
    counts, edges = np.histogram(rows, _BINS, bounds)
    dead = np.logical_or(low.all(axis=0), high.all(axis=0))
    return GateActivity(function, low.mean(axis=0), high.mean(axis=0), dead, counts, edges)
