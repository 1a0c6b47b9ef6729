"""Saturation: how often gates and activations lie where their slope is nearly zero, and units that do nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _checks, _dispatch, cells
from .._contract import Array
from ..functional._activations import sigmoid
from ..layers.recurrent import Recurrent
from ._transition import Transition, check_steps

_RANGE = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
"""Where the values of a function that saturates lie."""

_BINS = 50


@dataclass(frozen=True)
class GateActivity:
    """The values of one gate or activation of H units over a run of n = T B steps."""

    function: str
    """What made them: "sigmoid", "tanh", "relu" or "identity"."""
    low: NDArray[np.floating[Any]]
    """(H,): the share of steps at which each unit is saturated at the lower end, in 0 ... 1."""
    high: NDArray[np.floating[Any]]
    """(H,): the share at the upper end."""
    dead: NDArray[np.bool_]
    """(H,): the unit is saturated at one and the same end at every step; a relu is 0 at every step."""
    counts: NDArray[np.integer[Any]]
    """(50,): a histogram of all n H values."""
    edges: NDArray[np.floating[Any]]
    """(51,): the edges of its bins."""

    @property
    def saturated(self) -> float:
        """The share of all values that are saturated, in 0 ... 1."""
        return float(np.mean(self.low + self.high))


def activity(layer: Recurrent, x: Array, state: Any = None, *, margin: float = 0.05) -> dict[str, GateActivity]:
    """How saturated the gates and activations of any cell are along a run, and which units are dead.

    A sigmoid is saturated below ``margin`` and above 1 - margin, a tanh within twice that of -1 and 1, where its slope
    is small: gradients do not pass. A relu passes none where it is 0, which counts as its lower end.

    Parameters
    ----------
    layer : gpurnn.RNN, gpurnn.LSTM or gpurnn.GRU
        Of one layer and direction; `parts` takes a stack apart.
    x : (T, B, I) array
        Time-major, whatever the layer's ``batch_first``; T and B are 1 at least.
    state : (1, B, H) array, optional
        The initial state, for the LSTM a pair (h, c) of such arrays; zero by default.
    margin : float
        Of the whole range of a function, the share at each end that counts as saturated; in (0, 0.5).

    Returns
    -------
    dict of str to GateActivity
        "h" for the vanilla cell, f(a_t); "i", "f", "g", "o" and "tanh(c)" for the LSTM; "r", "z", "n" for the GRU.

    Raises
    ------
    TypeError, ValueError
        The layer is another, the arrays do not fit it, they or the states of the run are NaN or infinite, or the margin
        is not in its range.

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
    >>> found = activity(lstm, np.zeros((5, 1, 1), np.float32))
    >>> found["f"].high, found["f"].dead
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


def gate_values(transition: Transition, x: Array, states: Array) -> dict[str, tuple[str, Array]]:
    """The function of each gate and its values (T, B, H), from the states (T + 1, B, S) of a run."""
    xp, H, cell = transition.xp, transition.hidden, transition.cell
    weight_ih, weight_hh, bias_ih, bias_hh = transition.weights.values()
    h, new = states[:-1, :, :H], states[1:, ...]

    def product(v: Array, weight: Array, bias: Array | None) -> Array:
        made = xp.matmul(v, xp.matrix_transpose(weight))
        return made if bias is None else made + bias

    def block(a: Array, k: int) -> Array:
        return a[:, :, k * H : (k + 1) * H]

    if isinstance(cell, cells.Vanilla):
        return {"h": (cell.activation, new - cell.leak * h)}
    a_x, a_h = product(x, weight_ih, bias_ih), product(h, weight_hh, bias_hh)
    if isinstance(cell, cells.LSTM):
        a = a_x + a_h
        gates = {name: ("sigmoid", sigmoid(xp, block(a, k))) for name, k in (("i", 0), ("f", 1))}
        gates |= {"g": ("tanh", xp.tanh(block(a, 2))), "o": ("sigmoid", sigmoid(xp, block(a, 3)))}
        return gates | {"tanh(c)": ("tanh", xp.tanh(new[:, :, H:]))}
    assert isinstance(cell, cells.GRU)
    r, z = (sigmoid(xp, block(a_x, k) + block(a_h, k)) for k in (0, 1))
    if cell.reset_after:
        recurrent = r * block(a_h, 2)
    else:
        recurrent = product(r * h, weight_hh[2 * H :, :], None if bias_hh is None else bias_hh[2 * H :])
    return {"r": ("sigmoid", r), "z": ("sigmoid", z), "n": ("tanh", xp.tanh(block(a_x, 2) + recurrent))}


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
