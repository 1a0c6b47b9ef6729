"""Fits by maximum likelihood: quasi-Newton steps of SciPy on the exact gradient, and expectation maximisation.

SciPy is imported where it is used, so that `import gpurnn` stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ... import _checks, _dispatch
from ..._contract import Array
from . import stationary
from .filter import COVARIANCES, Parameters, Score

HostArray = np.ndarray[Any, Any]


class Scored(Protocol):
    """The log-likelihood at the present parameters, and its gradients by their names."""

    @property
    def value(self) -> Array: ...

    @property
    def grads(self) -> dict[str, Array]: ...


class Coordinates(Protocol):
    """The unbounded numbers x that BFGS varies, and the parameters that they stand for."""

    def origin(self) -> HostArray:
        """x of the parameters at which the coordinates start."""

    def move(self, x: HostArray) -> None:
        """Make the parameters at x the new start of the coordinates."""

    def parameters(self, x: HostArray) -> dict[str, HostArray]:
        """The fitted parameters at x, and those that follow from them."""

    def gradient(self, x: HostArray, grads: dict[str, HostArray]) -> HostArray:
        """The gradient by x, from those by the parameters at x."""


class Fit:
    """A fit of some parameters, in place, and the log-likelihoods that it has reached.

    Parameters
    ----------
    where : str
        The caller's public name, for messages.
    xp : namespace
    params : dict of str to array
        The fitted parameters, and those that follow from them.
    y : array
        The observations.
    iterations : int
        The largest number of iterations.
    tolerance : float
        An iteration that raises the log-likelihood by less than this, for each number observed, is the last.
    """

    def __init__(self, where: str, xp: Any, params: Parameters, y: Array, *, iterations: int, tolerance: float) -> None:
        self.where, self.xp, self.params, self.iterations = where, xp, params, iterations
        self.count = max(int(_dispatch.to_numpy(xp.sum(xp.astype(~xp.isnan(y), xp.int64)))), 1)
        self.least_gain = tolerance * self.count
        # A gradient below this is noise.
        self.rounding = float(np.finfo(_checks.dtype_name(y)).eps) ** 0.5
        self.values: list[float] = []
        self.best = on_host(params)

    def run(self, method: Callable[[Fit], None]) -> HostArray:
        """The log-likelihoods at the start and after each iteration; the parameters are those of the last."""
        try:
            # A point that overflows is not a maximum.
            with np.errstate(over="ignore", invalid="ignore"):
                method(self)
        except ValueError as error:
            if not self.values:
                raise
            raise ValueError(
                f"{self.where}: iteration {len(self.values)} failed, and the parameters are those before it: "
                f"{str(error).removeprefix(f'{self.where}: ')}"
            ) from error
        finally:
            self.write(self.best)
        return np.array(self.values)

    def write(self, values: dict[str, HostArray]) -> None:
        """Write these parameters."""
        for name, value in values.items():
            p = self.params[name]
            cast = value.astype(_checks.dtype_name(p))
            if not np.array_equal(np.isfinite(cast), np.isfinite(_dispatch.to_numpy(p))):
                raise ValueError(f"{self.where}: {name} is not finite")
            p[...] = _dispatch.from_numpy(self.xp, cast)

    def record(self, value: float) -> bool:
        """Record the log-likelihood of the present parameters; return whether another iteration may follow."""
        if not math.isfinite(value):
            raise ValueError(
                f"{self.where}: the log-likelihood of y is {value}, expected a finite number; y may hold a filler "
                "for missing ones, which should be NaN"
            )
        gain = value - self.values[-1] if self.values else math.inf
        self.values.append(value)
        self.best = on_host(self.params)
        return gain > self.least_gain and len(self.values) <= self.iterations


def quasi_newton(fit: Fit, score: Callable[[], Scored], coordinates: Coordinates) -> None:
    """Iterate BFGS, in rounds, each with new coordinates and a new approximation of the Hessian.

    The likelihood is flat in a variance that is far too small to matter, and after many steps the approximation has
    no information on it. So the end of a round is the end of the fit only if the round gained nothing.
    """
    from scipy import optimize

    best = coordinates.origin()

    def objective(x: HostArray) -> tuple[float, HostArray]:
        """Minus the log-likelihood for each number observed, and its gradient."""
        try:
            fit.write(coordinates.parameters(x))
            result = score()
        except ValueError:
            # The step went too far: there is no likelihood here.
            return math.inf, np.zeros_like(x)
        gradient = coordinates.gradient(x, on_host(result.grads))
        return -float(_dispatch.to_numpy(result.value)) / fit.count, -gradient / fit.count

    def iterated(intermediate_result: Any) -> None:
        """Called by SciPy after an iteration; SciPy requires this name of the argument."""
        nonlocal best
        value = -float(intermediate_result.fun) * fit.count
        if value < fit.values[-1]:
            raise StopIteration  # all that is left is rounding
        best = intermediate_result.x
        fit.write(coordinates.parameters(best))
        if not fit.record(value):
            raise StopIteration

    proceeding = fit.record(float(_dispatch.to_numpy(score().value))) and len(best) > 0
    while proceeding:
        start = fit.values[-1]
        _, gradient = objective(best)
        # A variance that is far too small needs a step of about 1, however small the gradient by it is. So the
        # first step is of that size in all coordinates.
        inverse = np.diag(1 / np.maximum(np.abs(gradient), fit.rounding))
        optimize.minimize(
            objective, best, jac=True, method="BFGS", callback=iterated,
            options={"gtol": 0.0, "hess_inv0": inverse},
        )  # fmt: skip
        coordinates.move(best)
        best = coordinates.origin()
        proceeding = fit.values[-1] - start > fit.least_gain and len(fit.values) <= fit.iterations


def expectation_maximisation(
    fit: Fit, score: Callable[[], Score], params: Parameters, names: tuple[str, ...], shape: tuple[int, ...], *,
    diagonal: bool,
) -> None:  # fmt: skip
    """Iterate expectation maximisation for the parameters ``names``, with y of this ``shape``.

    The expectations follow from the score, which equals that of the complete data: summed over n steps, E[w w^T] is
    n Q + 2 Q (dL/dQ) Q and E[w x^T] is Q dL/dF; likewise for R and H.
    """
    T, B = shape[:2]
    result = score()
    while fit.record(float(_dispatch.to_numpy(result.value))):
        p, g = on_host(params), on_host(result.grads)
        moments = on_host({"F": result.moment_but_last, "H": result.moment})
        new: dict[str, HostArray] = {}
        for matrix, noise, steps in (("F", "Q", (T - 1) * B), ("H", "R", T * B)):
            if steps == 0:
                continue
            covariance = p[noise] + 2 * p[noise] @ g[noise] @ p[noise] / steps
            if matrix in names:
                change = np.linalg.solve(moments[matrix], (p[noise] @ g[matrix]).T).T
                new[matrix] = p[matrix] + change
                covariance -= change @ moments[matrix] @ change.T / steps
            if noise in names:
                new[noise] = (covariance + covariance.T) / 2
        finite = np.where(np.isinf(p["P0"]), 0, p["P0"])
        shift = finite @ g["m0"] / B
        if "m0" in names:
            new["m0"] = p["m0"] + shift
        if "P0" in names:
            # The sum of all sequences' second moments about the mean that is kept.
            second = 2 * finite @ g["P0"] @ finite / B
            second -= np.outer(shift, shift) if "m0" in names else 0
            new["P0"] = p["P0"] + second
        for name in COVARIANCES:
            if diagonal and name in new:
                new[name] = np.where(np.eye(len(new[name]), dtype=bool), new[name], 0)
        fit.write(new)
        result = score()


class Entries:
    """Coordinates of a linear-Gaussian model's parameters: roots of covariances, and the entries of the others.

    A covariance is A X X^T A^T, where x holds X, which starts as the unit matrix. So it stays a covariance, and a step
    of one size means the same for all covariances.

    Parameters
    ----------
    where : str
    params : dict of str to array
        All parameters of the model.
    names : tuple of str
        The fitted parameters.
    diagonal : bool
        Whether only the diagonals of covariances vary, the other entries being zero.
    diffuse : list of int
        The diffuse states, which stay diffuse.
    follows : bool
        Whether m0 and P0 follow from the others, as the start is stationary.
    """

    def __init__(
        self, where: str, params: dict[str, HostArray], names: tuple[str, ...], *, diagonal: bool, diffuse: list[int],
        follows: bool,
    ) -> None:  # fmt: skip
        self.where, self.others, self.follows = where, params, follows
        self.values = values = {name: params[name] for name in names}
        self.roots = {name: _root(value) for name, value in values.items() if name in COVARIANCES}
        self.free = {name: np.ones(value.shape, bool) for name, value in values.items()}
        """The entries that vary; for a covariance, the lower triangle of X."""
        for name, free in self.free.items():
            if name in ("m0", "P0"):
                free[diffuse] = False
            if name in COVARIANCES:
                free &= free.T & (np.eye(len(free), dtype=bool) if diagonal else np.tril(np.ones_like(free)))

    def origin(self) -> HostArray:
        return self._packed({**self.values, **{name: np.eye(len(root)) for name, root in self.roots.items()}})

    def move(self, x: HostArray) -> None:
        matrices = self._matrices(x)
        self.values = self._fitted(x)
        self.roots = {name: root @ matrices[name] for name, root in self.roots.items()}

    def parameters(self, x: HostArray) -> dict[str, HostArray]:
        values = self._fitted(x)
        return {**values, **stationary.start(self.where, {**self.others, **values})} if self.follows else values

    def _fitted(self, x: HostArray) -> dict[str, HostArray]:
        values = self._matrices(x)
        for name, root in self.roots.items():
            factor, known = root @ values[name], np.isfinite(np.diagonal(self.values[name]))
            values[name] = np.where(known[:, None] & known, factor @ factor.T, self.values[name])
        return values

    def gradient(self, x: HostArray, grads: dict[str, HostArray]) -> HostArray:
        if self.follows:
            grads = dict(grads)
            stationary.add_gradient({**self.others, **self.parameters(x)}, grads)
        matrices = self._matrices(x)
        by_matrix = {name: 2 * root.T @ grads[name] @ root @ matrices[name] for name, root in self.roots.items()}
        return self._packed({**grads, **by_matrix})

    def _packed(self, arrays: dict[str, HostArray]) -> HostArray:
        return np.concatenate([arrays[name][free] for name, free in self.free.items()])

    def _matrices(self, x: HostArray) -> dict[str, HostArray]:
        """The parameters at x that are not covariances, and X of those that are."""
        arrays = {name: np.zeros_like(a) if name in self.roots else a.copy() for name, a in self.values.items()}
        ends = np.cumsum([np.count_nonzero(free) for free in self.free.values()])
        for (name, free), piece in zip(self.free.items(), np.split(x, ends[:-1]), strict=True):
            arrays[name][free] = piece
        return arrays


def on_host(arrays: dict[str, Array]) -> dict[str, HostArray]:
    """Copies in NumPy, in float64."""
    return {name: np.array(_dispatch.to_numpy(a), np.float64) for name, a in arrays.items()}


def _root(covariance: HostArray) -> HostArray:
    """The symmetric square root of a covariance, with zero for infinite entries."""
    values, vectors = np.linalg.eigh(np.where(np.isinf(covariance), 0, covariance))
    root: HostArray = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root
