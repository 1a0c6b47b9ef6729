"""Stability: eigenvalues and singular values of recurrent weights, and the fixed points of the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._random import generator
from ..layers.recurrent import Recurrent
from ._transition import Transition, check_finite

_HALVINGS = 8
"""How often a Newton step is halved."""
_STEPS = 20
"""The network's own steps that are taken if no Newton step helps."""
_BETWEEN = np.linspace(0, 1, 9)[1:-1, None]
"""The points between two states at which to test whether all states between them are fixed."""


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues and the singular values of a square matrix W (n, n)."""

    eigenvalues: NDArray[np.complexfloating[Any]]
    """(n,) complex, largest magnitude first."""
    singular_values: NDArray[np.floating[Any]]
    """(n,), largest first."""

    @property
    def radius(self) -> float:
        """The spectral radius, max |lambda|: the growth per step of W^t in the long run."""
        return float(np.abs(self.eigenvalues[0]))

    @property
    def norm(self) -> float:
        """The spectral norm, the largest singular value: the most by which W lengthens a vector in one step."""
        return float(self.singular_values[0])


def spectrum(matrix: Array) -> Spectrum:
    """Eigenvalues and singular values of a square matrix.

    Parameters
    ----------
    matrix : (n, n) array
        float32 or float64, finite; n is at least 1.

    Returns
    -------
    Spectrum
        NumPy arrays of the matrix's precision.

    Raises
    ------
    TypeError, ValueError
        ``matrix`` is not such an array.

    Examples
    --------
    >>> import numpy as np
    >>> s = spectrum(np.array([[0.0, -2.0], [2.0, 0.0]]))
    >>> round(s.radius, 12), round(s.norm, 12)
    (2.0, 2.0)
    """
    where = "spectrum"
    _, matrix = _arrays.take(where, {"matrix": matrix}, needed=("matrix",))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"{where}: matrix has shape {tuple(matrix.shape)}, expected (n, n) with n of 1 at least")
    check_finite(where, "matrix[{}]", matrix)
    values = _dispatch.to_numpy(matrix)
    return Spectrum(_by_magnitude(np.linalg.eigvals(values)), np.linalg.svd(values, compute_uv=False))


def spectra(layer: Recurrent) -> dict[str, Spectrum]:
    """The spectrum of each gate's block of W_hh.

    Parameters
    ----------
    layer : gpurnn.RNN, gpurnn.LSTM or gpurnn.GRU
        It has one layer and one direction; `parts` splits a stack.

    Returns
    -------
    dict of str to Spectrum
        "h" for the vanilla cell, "i", "f", "g", "o" for the LSTM, "r", "z", "n" for the GRU.

    Raises
    ------
    TypeError, ValueError
        The layer is not one of these, or its weights are NaN or infinite.

    Examples
    --------
    >>> import gpurnn
    >>> by_gate = spectra(gpurnn.GRU(2, 8, init="orthogonal", dtype="float64"))
    >>> {gate: round(spectrum.norm, 12) for gate, spectrum in by_gate.items()}
    {'r': 1.0, 'z': 1.0, 'n': 1.0}
    """
    transition = Transition("spectra", layer)
    weight_hh, H = transition.weights["weight_hh"], transition.hidden
    return {gate: spectrum(weight_hh[k * H : (k + 1) * H, :]) for k, gate in enumerate(layer.cell.gate_functions)}


@dataclass(frozen=True)
class FixedPoints:
    """The n fixed points that were found, ordered by the number of starts that led to them."""

    states: NDArray[np.floating[Any]]
    """(n, S): s* = F(x, s*). s = h, for the LSTM s = [h; c]."""
    eigenvalues: NDArray[np.complexfloating[Any]]
    """(n, S) complex: the eigenvalues of the Jacobian at each point, largest magnitude first."""
    residuals: NDArray[np.floating[Any]]
    """(n,): ||F(x, s*) - s*||_2."""
    starts: NDArray[np.integer[Any]]
    """(n,): how many starts led to each point."""
    failed: int
    """How many starts led to no fixed point."""

    @property
    def stable(self) -> NDArray[np.bool_]:
        """(n,): whether all eigenvalues are inside the unit circle, so that the point attracts nearby states.

        This is not meaningful for a degenerate point, one with an eigenvalue of 1 up to the accuracy of the point.
        """
        inside: NDArray[np.bool_] = np.abs(self.eigenvalues[:, 0]) < 1
        return inside

    def __len__(self) -> int:
        return len(self.states)


def fixed_points(
    layer: Recurrent,
    x: Array | None = None,
    *,
    starts: int | Array = 100,
    iterations: int = 200,
    rng: int | np.random.Generator = 0,
) -> FixedPoints:
    """Fixed points of the state under a constant input: h* = f(W_ih x + b_ih + W_hh h* + b_hh), of any cell.

    Newton's method, s <- s - (J - 1)^-1 (F(s) - s), runs from many starts at once. Each step is halved until the
    residual falls. If no step makes it fall, the network itself takes steps, s <- F(s). The points found are fixed to
    rounding; there may be others.

    Near a degenerate point, where J has an eigenvalue of 1, all states are fixed to rounding: for h = tanh(h), whose
    residual is h^3 / 3, all states of magnitude below the cube root of epsilon. They count as one point, whose position
    is known no better than that. Of a continuum of fixed points, such as a line, some points are found.

    Parameters
    ----------
    layer : gpurnn.RNN, gpurnn.LSTM or gpurnn.GRU
        It has one layer and one direction.
    x : (I,) array, optional
        The input at every step; zero by default.
    starts : int or (n, S) array
        The number of states to start from: zero, and others uniform in [-1, 1]^S. Or the states themselves. S = H; for
        the LSTM S = 2H, s = [h; c].
    iterations : int
        The most steps from a start.
    rng : int or numpy.random.Generator
        Where the starts come from.

    Returns
    -------
    FixedPoints
        Two points count as one if they are closer than sqrt(epsilon) (1 + ||s||), with epsilon of the layer's dtype: in
        float64 more points are distinguished. So do two points closer than epsilon^(1/4) (sqrt(S) + ||s||) if all
        states between them are fixed to rounding.

    Raises
    ------
    TypeError, ValueError
        The layer is not one of these, the arrays do not fit it, or its parameters or ``x`` are NaN or infinite.

    References
    ----------
    D. Sussillo, O. Barak, "Opening the black box: low-dimensional dynamics in high-dimensional recurrent neural
    networks", Neural Computation 25 (2013).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rnn = gpurnn.RNN(1, 1, dtype="float64")
    >>> rnn.params["weight_hh_l0"][...] = 2.0
    >>> points = fixed_points(rnn)
    >>> order = np.argsort(points.states[:, 0])
    >>> np.round(points.states[order, 0], 4) + 0.0, points.stable[order]
    (array([-0.9575,  0.    ,  0.9575]), array([ True, False,  True]))
    """
    where = "fixed_points"
    transition = Transition(where, layer)
    iterations = _checks.integer_at_least(where, "iterations", iterations, 1)
    weight_ih, S = transition.weights["weight_ih"], transition.size
    if x is None:
        x = transition.silence(1)[0, ...]
    else:
        _, _, x = _arrays.take(where, {"params": weight_ih, "x": x})
        _checks.shape(where, "x", x, (transition.inputs,), "(input_size,)")
        check_finite(where, "x", x)
        x = transition.xp.expand_dims(x, axis=0)
    dtype = np.dtype(_checks.dtype_name(weight_ih))
    if isinstance(starts, int) or getattr(starts, "ndim", 0) == 0:
        count = _checks.integer_at_least(where, "starts", starts, 1)
        s = generator(where, rng).uniform(-1, 1, (count, S))
        s[0] = 0
        s = s.astype(dtype)
    else:
        _, _, states = _arrays.take(where, {"params": weight_ih, "starts": starts})
        _checks.ndim(where, "starts", states, 2, "(n, S)")
        _checks.shape(where, "starts", states, (states.shape[0], S), "(n, S)")
        s = _dispatch.to_numpy(states)

    epsilon = float(np.finfo(dtype).eps)
    with np.errstate(over="ignore", invalid="ignore"):  # a start that goes to infinity fails
        s, residuals = _newton(transition, x, s, iterations, epsilon)
    converged = np.flatnonzero(residuals <= _rounding(s, epsilon))
    # The best point of each cluster represents it.
    chosen: list[int] = []
    led: list[int] = []
    for k in converged[np.argsort(residuals[converged], kind="stable")]:
        near = _same(transition, x, s[k], s[chosen], epsilon)
        if near.any():
            led[int(np.argmax(near))] += 1
        else:
            chosen.append(int(k))
            led.append(1)
    order = np.argsort(-np.array(led, int), kind="stable")
    points = s[np.array(chosen, int)[order]]
    eigenvalues = np.zeros((len(points), S), np.result_type(dtype, np.complex64))
    if len(points):
        _, J = _at(transition, x, points, jacobian=True)
        eigenvalues = np.stack([_by_magnitude(np.linalg.eigvals(matrix)).astype(eigenvalues.dtype) for matrix in J])
    return FixedPoints(
        points,
        eigenvalues,
        residuals[np.array(chosen, int)[order]],
        np.array(led, int)[order],
        len(s) - len(converged),
    )


def _newton(
    transition: Transition, x: Array, s: NDArray[Any], iterations: int, epsilon: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The states after Newton's method from ``s`` (n, S), and their residuals (n,)."""
    s = s.copy()
    residuals = np.full(len(s), np.inf)
    active = np.arange(len(s))
    for _ in range(iterations):
        new, J = _at(transition, x, s[active], jacobian=True)
        difference = new.astype(float) - s[active]
        residuals[active] = np.linalg.norm(difference, axis=1)
        done = residuals[active] <= 0.01 * _rounding(s[active], epsilon)
        done |= ~np.isfinite(J).all(axis=(1, 2)) | ~np.isfinite(residuals[active])
        active, difference, J = active[~done], difference[~done], J[~done]
        if not len(active):
            break
        step = _solve(J.astype(float) - np.eye(s.shape[1]), difference)
        moved = np.zeros(len(active), bool)
        for halving in range(_HALVINGS):
            trying = np.flatnonzero(~moved)
            rows = active[trying]
            candidate = (s[rows] - 0.5**halving * step[trying]).astype(s.dtype)
            there, _ = _at(transition, x, candidate)
            residual = np.linalg.norm(there.astype(float) - candidate, axis=1)
            better = residual < (1 - 0.1 * 0.5**halving) * residuals[rows]
            s[rows[better]], residuals[rows[better]] = candidate[better], residual[better]
            moved[trying[better]] = True
            if moved.all():
                break
        ended = ~moved & (residuals[active] <= _rounding(s[active], epsilon))
        stuck = active[~moved & ~ended]
        # No step reduces the residual: the network's own steps lead towards stable states.
        for _ in range(_STEPS if len(stuck) else 0):
            s[stuck], _ = _at(transition, x, s[stuck])
        residuals[stuck] = np.inf
        active = active[~ended]
    return s, residuals


def _same(transition: Transition, x: Array, s: NDArray[Any], others: NDArray[Any], epsilon: float) -> NDArray[np.bool_]:
    """Which of ``others`` (n, S), all fixed to rounding, count as the same point as s (S,)."""
    distance, size = np.linalg.norm(others - s, axis=1), float(np.linalg.norm(s))
    same: NDArray[np.bool_] = distance <= np.sqrt(epsilon) * (1 + size)
    for k in np.flatnonzero(~same & (distance <= epsilon**0.25 * (np.sqrt(len(s)) + size))):
        between = (s + _BETWEEN * (others[k] - s)).astype(s.dtype)
        there, _ = _at(transition, x, between)
        same[k] = (np.linalg.norm(there.astype(float) - between, axis=1) <= _rounding(between, epsilon)).all()
    return same


def _solve(matrices: NDArray[Any], vectors: NDArray[Any]) -> NDArray[Any]:
    try:
        solutions = np.linalg.solve(matrices, vectors[:, :, None])
    except np.linalg.LinAlgError:  # a matrix is singular: take the shortest least-squares step
        solutions = np.linalg.pinv(matrices) @ vectors[:, :, None]
    return solutions[:, :, 0]


def _at(transition: Transition, x: Array, s: NDArray[Any], jacobian: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:
    """F(x, s) for states (n, S), and the Jacobians (n, S, S) if ``jacobian``, on the host."""
    xp = transition.xp
    rows, states = xp.tile(x, (len(s), 1)), _dispatch.from_numpy(xp, s)
    if not jacobian:
        return _dispatch.to_numpy(transition(rows, states)), np.empty(0)
    new, J = transition.jacobian(rows, states)
    return _dispatch.to_numpy(new), _dispatch.to_numpy(J)


def _rounding(s: NDArray[Any], epsilon: float) -> NDArray[Any]:
    """The residuals (n,) up to which states (n, S) count as fixed to rounding."""
    bound: NDArray[Any] = 10 * np.sqrt(s.shape[1]) * epsilon * (1 + np.linalg.norm(s, axis=1))
    return bound


def _by_magnitude(eigenvalues: NDArray[Any]) -> NDArray[Any]:
    """Sort eigenvalues by magnitude, largest first, and make them complex even if all are real."""
    complex_ = eigenvalues.astype(np.result_type(eigenvalues.dtype, np.complex64))
    return complex_[np.argsort(-np.abs(complex_), kind="stable")]
