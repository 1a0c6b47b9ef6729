"""Structural time series models: sums of components, whose variances a fit estimates."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import _arrays, _checks, _dispatch
from ..._contract import Array
from ..._op import Pullback
from .. import examples
from ..files import Saved
from ..forecasting.series import Collection, Columns, Reader, Sizes
from ..forecasting.tables import is_pandas, is_polars
from . import stationary
from .components import Component, restored
from .filter import NAMES, Parameters, Undetermined, diffuse_moments, forecast, forward, log_likelihood, score, smooth
from .fit import Fit, HostArray, on_host, quasi_newton
from .model import LinearGaussian

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self


class Normal(NamedTuple):
    """The normal distribution of each of some numbers."""

    mean: Array
    """(T,) or (T, B)"""
    variance: Array
    """(T,) or (T, B)"""

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """The bounds between which each number lies with probability ``level``: mean -+ z std.

        Raises
        ------
        TypeError, ValueError
            ``level`` is not a number between 0 and 1.
        """
        where = "Normal.interval"
        level = _checks.positive(where, "level", _checks.fraction(where, "level", level))
        half = statistics.NormalDist().inv_cdf((1 + level) / 2) * self.variance**0.5
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class StructuralForecast:
    """The result of `StructuralModel.forecast`.

    Attributes
    ----------
    mean, variance : (steps,) or (steps, B) arrays, or pandas or polars series if y is one
        The mean and the variance of each observation. A pandas index continues that of y.
    components : dict of str to Normal
        The part of each component by its name: ``mean``, ``variance`` and ``interval(level)``.
    """

    mean: Array
    variance: Array
    components: Mapping[str, Normal]

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """The bounds between which each single observation lies with probability ``level``.

        Raises
        ------
        TypeError, ValueError
            ``level`` is not a number between 0 and 1.
        """
        return Normal(self.mean, self.variance).interval(level)


class StructuralModel(Saved):
    """Structural time series model: an observation is the sum of components, and of noise N(0, noise_variance).

    Its likelihood, forecasts and decompositions are those of the `LinearGaussian` model that `linear_gaussian` returns.
    Autoregressions start from their stationary distribution; nothing is known of other states before the observations.
    NaN in the observations means missing.

    Parameters
    ----------
    *components : Component
        Made by `level`, `trend`, `seasonal`, `ar` and `regression` of `gpurnn.models.kalman`. The sum of two components
        is such a model too.
    noise_variance : float, optional
        By default a parameter, ``"noise.variance"``. 0 for observations without noise.
    dtype : {"float64", "float32"}
        The dtype in which the model computes, and of its results.

    Attributes
    ----------
    params : dict of str to array
        The variances and coefficients that the caller has not fixed, by the names of their components, such as
        ``"level.variance"`` or ``"ar(2).coefficients"``.
    log_likelihoods_ : (iterations + 1,) array of float64
        The log-likelihood before the first iteration of `fit` and after each. Only a model that is fitted has it.

    Raises
    ------
    ValueError, TypeError
        There is no component, two have the same name or a level each, or an argument is not a component.

    Notes
    -----
    A fit varies the roots of variances, and the partial autocorrelations of an autoregression as x / sqrt(1 + x^2)
    (Monahan 1984). These have no bounds: all their values give a model. Its gradient is exact.

    References
    ----------
    A. C. Harvey, "Forecasting, structural time series models and the Kalman filter" (1989); J. Durbin, S. J. Koopman,
    "Time series analysis by state space methods", 2nd ed. (2012), chapter 3; J. F. Monahan, "A note on enforcing
    stationarity in autoregressive-moving average models", Biometrika 71 (1984).

    Examples
    --------
    A level that wanders and a season of four, with a gap:

    >>> import numpy as np
    >>> from gpurnn.models.kalman import level, seasonal
    >>> rng = np.random.default_rng(0)
    >>> y = np.cumsum(rng.normal(0, 0.3, 120)) + np.tile([3.0, 0.0, -1.0, -2.0], 30) + rng.normal(0, 0.5, 120)
    >>> y[50:56] = np.nan
    >>> model = (level() + seasonal(4, variance=0.0)).fit(y)
    >>> model
    StructuralModel(level(), seasonal(4, variance=0.0))  # 2 parameters
    >>> sorted(model.params)
    ['level.variance', 'noise.variance']
    >>> parts = model.decompose(y)
    >>> [*parts]
    ['level', 'seasonal(4)', 'noise']
    >>> bool(np.all(np.abs(parts["seasonal(4)"].mean[:4] - [3.0, 0.0, -1.0, -2.0]) < 0.4))
    True
    >>> ahead = model.forecast(y, 8)
    >>> low, high = ahead.interval(0.9)
    >>> season_low, season_high = ahead.components["seasonal(4)"].interval(0.9)
    >>> bool(np.all(high - low > season_high - season_low))
    True
    """

    log_likelihoods_: NDArray[np.float64]
    _is_fitted = False
    """Whether the parameters come from a fit or from a caller."""

    def __init__(self, *components: Component, noise_variance: float | None = None, dtype: str = "float64") -> None:
        where = "StructuralModel"
        if not components:
            raise ValueError(f"{where}: components is empty, expected some of gpurnn.models.kalman, such as level()")
        for i, component in enumerate(components):
            if not isinstance(component, Component):
                raise TypeError(
                    f"{where}: components[{i}] is {_checks.described(component)}, expected what a function of "
                    "gpurnn.models.kalman makes, such as level()"
                )
        levels = [c.name for c in components if "level" in c.states]
        if len(levels) > 1:
            raise ValueError(f"{where}: two components have a level: {levels[0]} and {levels[1]}, expected one")
        names = [c.name for c in components]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{where}: two components are {twice}, expected one of a name")
        self.components = components
        self.noise_variance = (
            None if noise_variance is None else _checks.non_negative(where, "noise_variance", noise_variance)
        )
        self.dtype = _checks.choice(where, "dtype", dtype, ("float64", "float32"))
        self.params = {
            name: np.full(shape, 0.0 if name.endswith("coefficients") else 1.0, self.dtype)
            for name, shape in self._shapes().items()
            if name not in self._fixed()
        }

    def __add__(self, other: Component) -> StructuralModel:
        if not isinstance(other, Component):
            return NotImplemented
        return self._with((*self.components, other))

    def __radd__(self, other: Component) -> StructuralModel:
        if not isinstance(other, Component):
            return NotImplemented
        return self._with((other, *self.components))

    def _with(self, components: tuple[Component, ...]) -> StructuralModel:
        return StructuralModel(*components, noise_variance=self.noise_variance, dtype=self._argument("dtype"))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, including fixed ones."""
        shapes = {f"{c.name}.{name}": shape for c in self.components for name, shape in c.parameters().items()}
        return {**shapes, "noise.variance": ()}

    def _fixed(self) -> dict[str, NDArray[np.float64]]:
        fixed = {f"{c.name}.{name}": np.asarray(v, np.float64) for c in self.components for name, v in c.fixed.items()}
        return fixed if self.noise_variance is None else {**fixed, "noise.variance": np.asarray(self.noise_variance)}

    def config(self) -> dict[str, Any]:
        """The arguments of the constructor, with the functions that make the components, JSON-compatible."""
        components = [component.config() for component in self.components]
        return {"components": components, "noise_variance": self.noise_variance, "dtype": self._argument("dtype")}

    @classmethod
    def _restored(cls, config: dict[str, Any], shared: dict[str, str], parameters: dict[str, NDArray[Any]]) -> Self:
        config = dict(config)
        model = cls(*(restored(each) for each in config.pop("components")), **config)
        Saved.load_state_dict(model, parameters)
        model._share(shared)
        return model

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        super().load_state_dict(state)
        self._is_fitted = True

    load_state_dict.__doc__ = Saved.load_state_dict.__doc__

    def _fitted(self) -> dict[str, Any]:
        found = getattr(self, "log_likelihoods_", None)
        return {
            **({"is_fitted": True} if self._is_fitted else {}),
            **({} if found is None else {"log_likelihoods_": found.tolist()}),
        }

    def _restore_fitted(self, fitted: dict[str, Any]) -> None:
        fitted = dict(fitted)
        if _checks.flag("StructuralModel", "is_fitted", fitted.pop("is_fitted", False)):
            self._is_fitted = True
        if "log_likelihoods_" in fitted:
            self.log_likelihoods_ = np.asarray(fitted.pop("log_likelihoods_"), np.float64)
        super()._restore_fitted(fitted)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the states of `linear_gaussian`, in their order."""
        return tuple(name for component in self.components for name in component.states)

    @property
    def _covariates(self) -> int:
        return sum(component.covariates for component in self.components)

    def _slices(self) -> dict[str, slice]:
        """The states of each component by its name."""
        ends = np.cumsum([len(component.states) for component in self.components]).tolist()
        return {c.name: slice(end - len(c.states), end) for c, end in zip(self.components, ends, strict=True)}

    def _values(self) -> dict[str, HostArray]:
        """All parameters, including fixed ones."""
        return {**on_host(self.params), **self._fixed()}

    def _host_matrices(self, values: dict[str, HostArray], X: Array | None) -> dict[str, HostArray]:
        """F, H, Q, R, m0 and P0 in float64."""
        n, slices = len(self.state_names), self._slices()
        F, Q, P0 = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
        H = np.zeros((1, n) if X is None else (X.shape[0], 1, n))
        for component in self.components:
            own = slices[component.name]
            F[own, own], Q[own, own] = component.matrices(
                {name: values[f"{component.name}.{name}"] for name in component.parameters()}
            )
            H[..., 0, own] = component.design if not component.covariates else _dispatch.to_numpy(X)
            if component.order:
                P0[own, own] = stationary.start("StructuralModel", {"F": F[own, own], "Q": Q[own, own]})["P0"]
            else:
                P0[own, own] = np.diag([math.inf] * len(component.states))
        return {"F": F, "H": H, "Q": Q, "R": values["noise.variance"].reshape(1, 1), "m0": np.zeros(n), "P0": P0}

    def _matrices(self, xp: Any, values: dict[str, HostArray], X: Array | None) -> Parameters:
        dtype = self._argument("dtype")
        host = self._host_matrices(values, X)
        return {name: _dispatch.from_numpy(xp, value.astype(dtype)) for name, value in host.items()}

    def linear_gaussian(self, X: Any = None) -> LinearGaussian:
        """The model as a `LinearGaussian` one of the observations (T, 1), with the present parameters.

        Parameters
        ----------
        X : (T, k) array or table, optional
            The covariates, for a model with a regression.

        Returns
        -------
        LinearGaussian
            Its states are in the order of ``state_names``. It filters, and `LinearGaussian.update` takes observations
            one by one.

        Raises
        ------
        TypeError, ValueError
            X does not fit the model.
        """
        where = "StructuralModel.linear_gaussian"
        X = self._covariates_of(where, X, None)
        xp = _dispatch.namespace(where, **self.params) if self.params else np
        params = self._matrices(xp, self._values(), X)
        return LinearGaussian(*(params[name] for name in NAMES))

    def _observations(self, where: str, y: Any, X: Any, ahead: int = 0) -> tuple[Any, Array, Array | None, _Form]:
        """The namespace, y (T, B, 1), X (T + ahead, k), and the form of answers, which is that of y."""
        _checks.given(where, y=y)
        dtype = np.dtype(self._argument("dtype"))
        form = None
        if (is_pandas(y) or is_polars(y)) and getattr(y, "ndim", 1) == 1:
            X = self._covariates_of(where, X, len(y) + ahead, "T + steps" if ahead else "T")
            known = None if X is None else _dispatch.to_numpy(X).astype(np.float64)
            reader = Reader(where, Sizes(1, known=self._covariates), Columns(), lambda values, _: values)
            read = reader.read("y", y, known=known)
            form = _form_of(y, read)
            y, X = read.series[0].values[:, 0], None if X is None else read.series[0].known
        y = examples.numbers(where, "y", y, dtype)
        if y.ndim not in (1, 2) or y.shape[0] < 1:
            raise ValueError(f"{where}: y has shape {tuple(y.shape)}, expected (T,) or (T, B), T > 0")
        xp = _dispatch.namespace(where, y=y, **{f"params[{name!r}]": p for name, p in self.params.items()})
        infinite = _dispatch.to_numpy(xp.isinf(y))
        if infinite.any():
            at = "".join(f"[{i}]" for i in np.argwhere(infinite)[0])
            raise ValueError(f"{where}: y{at} is infinite, expected a finite number, or NaN for a missing one")
        X = self._covariates_of(where, X, y.shape[0] + ahead, "T + steps" if ahead else "T")
        if y.ndim == 2:
            return xp, y[..., None], X, _Form(lambda a: a, lambda a: a)
        return xp, y[:, None, None], X, form or _Form(lambda a: a[:, 0], lambda a: a[:, 0])

    def _covariates_of(self, where: str, X: Any, steps: int | None, symbol: str = "T") -> Array | None:
        k = self._covariates
        if (X is None) != (k == 0):
            wanted = f"{k} covariates for each step" if k else "None, as the model has no regression"
            raise TypeError(f"{where}: X is {_checks.described(X)}, expected {wanted}")
        if X is None:
            return None
        X = examples.numbers(where, "X", X, np.dtype(self._argument("dtype")))
        X = X[:, None] if X.ndim == 1 and k == 1 else X
        if X.ndim != 2 or X.shape[1] != k or X.shape[0] < 1 or (steps is not None and X.shape[0] != steps):
            wanted = f"({symbol}, k) = {(steps, k)}" if steps is not None else f"(T, k) with k = {k}"
            raise ValueError(f"{where}: X has shape {tuple(X.shape)}, expected {wanted}")
        bad = ~np.isfinite(_dispatch.to_numpy(X))
        if bad.any():
            step, column = np.argwhere(bad)[0]
            raise ValueError(f"{where}: X[{step}, {column}] is not finite, expected covariates that are known")
        return X

    def _require_fit(self, where: str) -> None:
        if self.params and not self._is_fitted:
            raise ValueError(f"{where}: the model is not fitted, expected a call of fit or load_state_dict before")

    def __call__(self, y: Any, X: Any = None) -> Array:
        """The log-likelihood of observations, in nats, summed over all series: a () array.

        Parameters
        ----------
        y : (T,) or (T, B) array, list, series or table
            A series, or several with one model. Numbers of any dtype; NaN is missing, and so are the dates that the
            index of a pandas series leaves out.
        X : (T, k) array or table, optional
            The covariates, for a model with a regression.

        Raises
        ------
        TypeError, ValueError
            y or X does not fit, y holds infinity, or y does not determine where the components start.
        """
        where = "StructuralModel"
        xp, y, X, _ = self._observations(where, y, X)
        with _Explained(where):
            steps = forward(where, xp, self._matrices(xp, self._values(), X), y)
            diffuse_moments(where, xp, steps)
            return log_likelihood(xp, y, steps)

    def vjp(self, y: Any, X: Any = None) -> tuple[Array, Pullback]:
        """``(log_likelihood, pullback)``, with ``pullback(dvalue)`` returning ``(dy, grads)``.

        Parameters
        ----------
        y, X
            As in a call.

        Returns
        -------
        log_likelihood : () array
        pullback : callable
            Maps the gradient by the log-likelihood, a number or a () array (None for zero), to ``dy`` of the shape of
            y, and the gradients by ``params``.

        Raises
        ------
        TypeError, ValueError
            As in a call.
        """
        where = "StructuralModel"
        xp, y, X, form = self._observations(where, y, X)
        with _Explained(where):
            value, dy, grads = self._score(where, xp, y, X)
        dy = form.past(dy[..., 0])

        def pullback(dvalue: Array | float | None) -> tuple[Array, dict[str, Array]]:
            if isinstance(dvalue, (int, float)):
                dvalue = float(dvalue)
            else:
                dvalue = _arrays.cotangent(where, "value", dvalue, value)
            dvalue = 0.0 if dvalue is None else dvalue
            return dy * dvalue, {name: xp.asarray(gradient * dvalue) for name, gradient in grads.items()}

        return value, pullback

    def _score(self, where: str, xp: Any, y: Array, X: Array | None) -> _Score:
        """The log-likelihood, and its gradients by y and by the parameters, with their shapes."""
        values = self._values()
        params = self._matrices(xp, values, X)
        result = score(where, xp, params, y)
        by, host, grads = on_host(result.grads), on_host(params), {"noise.variance": np.zeros(())}
        grads["noise.variance"] = by["R"].reshape(())
        for component in self.components:
            own = self._slices()[component.name]
            dF, dQ = by["F"][own, own], by["Q"][own, own]
            if component.order:
                block = {"F": host["F"][own, own], "m0": host["m0"][own], "P0": host["P0"][own, own]}
                through = {"F": dF, "Q": dQ, "m0": np.zeros(len(dF)), "P0": by["P0"][own, own]}
                stationary.add_gradient(block, through)
                dF, dQ = through["F"], through["Q"]
            for name, gradient in component.gradients(dF, dQ).items():
                grads[f"{component.name}.{name}"] = gradient
        dtype = self._argument("dtype")
        named = {name: _dispatch.from_numpy(xp, np.asarray(grads[name], dtype)) for name in self.params}
        return _Score(result.value, result.dy, named)

    def fit(self, y: Any, X: Any = None, *, iterations: int = 500, tolerance: float = 1e-9) -> Self:
        """Estimate the parameters by maximum likelihood, from two starts based on the series; the better one counts.

        Parameters
        ----------
        y, X
            As in a call.
        iterations : int
            The largest number of iterations of BFGS from each start.
        tolerance : float
            The fit ends when the log-likelihood gains less than this, for each number observed.

        Returns
        -------
        self
            Its attribute ``log_likelihoods_`` has the log-likelihoods from the better start, before the first iteration
            and after each.

        Raises
        ------
        TypeError, ValueError
            As in a call; or a number is out of range. The parameters are then unchanged.
        """
        where = "StructuralModel.fit"
        iterations = _checks.integer_at_least(where, "iterations", iterations, 0)
        tolerance = _checks.non_negative(where, "tolerance", tolerance)
        xp, y, X, _ = self._observations(where, y, X)
        for name, p in self.params.items():
            _checks.writable(where, f"params[{name!r}]", p)
        dtype = self._argument("dtype")

        def write(values: Mapping[str, HostArray]) -> None:
            for name, p in self.params.items():
                p[...] = _dispatch.from_numpy(xp, values[name].astype(dtype))

        best, found = on_host(self.params), np.array([-math.inf])
        try:
            # The likelihood may have several maxima, such as for a smooth signal in noise and for a lively one.
            for liveliness in (1.0, 30.0):
                write(self._suggested(_dispatch.to_numpy(y), X, liveliness))
                fit = Fit(where, xp, self.params, y, iterations=iterations, tolerance=tolerance)
                with _Explained(where):
                    values = fit.run(
                        lambda fit: quasi_newton(
                            fit, lambda: self._score(where, xp, y, X), _Unbounded(on_host(self.params))
                        )
                    )
                if values[-1] > found[-1]:
                    best, found = fit.best, values
        finally:
            write(best)
        self.log_likelihoods_ = found
        self._is_fitted = True
        return self

    def _suggested(self, y: HostArray, X: Array | None, liveliness: float) -> dict[str, HostArray]:
        """The start of a fit: parts of the variance of the series' changes, ``liveliness`` times those of a signal."""
        series = (y[:, row, 0].astype(np.float64) for row in range(y.shape[1]))
        changes = np.concatenate([np.zeros(0), *(np.diff(one[~np.isnan(one)]) for one in series)])
        size = float(np.mean(changes**2)) if changes.size else 1.0
        if size == 0:
            raise ValueError(
                "StructuralModel.fit: y never changes, expected observations that do: the smaller the variances, the "
                "likelier is such a series"
            )
        shares = {"noise.variance": 0.5, "level.variance": 0.1 * liveliness, "trend.level_variance": 0.1 * liveliness}
        start = {}
        for name, shape in self._shapes().items():
            share = shares.get(name, 0.5 if name.startswith("ar(") else 1e-3 * liveliness)
            start[name] = np.full(shape, share * size)
            if name.endswith("coefficients"):
                start[name] = np.eye(1, shape[0])[0] * 0.5
            if name == "regression.variance" and X is not None:
                start[name] = start[name] / max(float(np.mean(_dispatch.to_numpy(X) ** 2)), 1e-300)
        return start

    def decompose(self, y: Any, X: Any = None) -> dict[str, Normal]:
        """The part of each component in the observations, given all of them: their smoothed means and variances.

        Parameters
        ----------
        y, X
            As in a call.

        Returns
        -------
        dict of str to Normal
            By the names of the components, with ``mean``, ``variance`` and ``interval(level)``, of (T,) or (T, B)
            arrays, or of pandas or polars series if y is one. Together with ``"noise"``, which is NaN where y is
            missing, the means sum to y.

        Raises
        ------
        TypeError, ValueError
            As in a call; or the model is not fitted.

        References
        ----------
        J. Durbin, S. J. Koopman (2012), sections 4.4 and 4.5.
        """
        where = "StructuralModel.decompose"
        self._require_fit(where)
        xp, y, X, form = self._observations(where, y, X)
        with _Explained(where):
            params = self._matrices(xp, self._values(), X)
            mean, covariance = smooth(where, xp, params, y)
        parts = self._parts(params["H"], mean, covariance, form.past)
        if self.noise_variance != 0:
            signal = _read(params["H"], mean, covariance)
            unknown = xp.where(xp.isnan(y[..., 0]), y[..., 0], xp.zeros_like(y[..., 0]))
            noise = (y[..., 0] - signal.mean, signal.variance + unknown)
            parts["noise"] = Normal(*map(form.past, noise))
        return parts

    def forecast(self, y: Any, steps: int, X: Any = None) -> StructuralForecast:
        """The distribution of the observations that follow y, and of each component.

        Parameters
        ----------
        y : (T,) or (T, B) array, list, series or table
            The past. NaN is missing.
        steps : int
            The number of observations to forecast.
        X : (T + steps, k) array or table, optional
            The covariates of the past and of the steps ahead, for a model with a regression.

        Returns
        -------
        StructuralForecast
            ``mean``, ``variance`` and ``interval(level)``, and the same for each of its ``components``.

        Raises
        ------
        TypeError, ValueError
            As in a call; or ``steps`` is not an integer of at least 1; or the model is not fitted.
        FloatingPointError
            The forecasts overflow.
        """
        where = "StructuralModel.forecast"
        self._require_fit(where)
        steps = _checks.integer_at_least(where, "steps", steps, 1)
        xp, y, X, form = self._observations(where, y, X, steps)
        with _Explained(where):
            params = self._matrices(xp, self._values(), X)
            mean, variance, state, covariance = forecast(where, xp, params, y, None, steps)
        H = params["H"] if X is None else params["H"][-steps:, ...]
        mean, variance = form.ahead(mean[..., 0]), form.ahead(variance[..., 0, 0])
        return StructuralForecast(mean, variance, self._parts(H, state, covariance, form.ahead))

    def _parts(self, H: Array, mean: Array, covariance: Array, form: Callable[[Array], Any]) -> dict[str, Normal]:
        """The part of each component, from the moments (T, B, n) of the states."""
        parts = {}
        for name, own in self._slices().items():
            parts[name] = Normal(*map(form, _read(H[..., own], mean[..., own], covariance[..., own, own])))
        return parts


class _Form(NamedTuple):
    """Functions that convert arrays (T, B) to the caller's form: for the steps of the past, and for those ahead."""

    past: Callable[[Array], Any]
    ahead: Callable[[Array], Any]


def _form_of(y: Any, read: Collection) -> _Form:
    """The form of a pandas or polars series, whose index a forecast continues. Dates left out are steps of the past."""
    times = read.series[0].times

    def past(a: Array) -> Any:
        if is_polars(y):
            return type(y)(y.name, a[:, 0])
        return type(y)(a[:, 0], index=y.index if times is None or len(times) == len(y) else times, name=y.name)

    return _Form(past, lambda a: read.join([a]))


class _Score(NamedTuple):
    value: Array
    dy: Array
    grads: dict[str, Array]


class _Explained:
    """Tells a user of components what to do if the observations do not determine the states."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Undetermined):
            series = str(error).partition("does not")[0].removeprefix(f"{self.where}: ")
            raise ValueError(
                f"{self.where}: {series}does not determine where the components start, expected more observations, or "
                "covariates that none of the other components can replace"
            ) from error


class _Unbounded:
    """Coordinates of the parameters: for a variance v the x in v x^2, for coefficients those of `_coefficients`."""

    def __init__(self, values: dict[str, HostArray]) -> None:
        self.values = values

    def origin(self) -> HostArray:
        pieces = [
            _coordinates(value) if name.endswith("coefficients") else np.ones(1) for name, value in self.values.items()
        ]
        return np.concatenate([np.zeros(0), *pieces])

    def move(self, x: HostArray) -> None:
        self.values = self.parameters(x)

    def _pieces(self, x: HostArray) -> dict[str, HostArray]:
        ends = np.cumsum([value.size for value in self.values.values()])
        return dict(zip(self.values, np.split(x, ends[:-1]), strict=True))

    def parameters(self, x: HostArray) -> dict[str, HostArray]:
        return {
            name: _coefficients(piece)[0] if name.endswith("coefficients") else self.values[name] * piece[0] ** 2
            for name, piece in self._pieces(x).items()
        }

    def gradient(self, x: HostArray, grads: dict[str, HostArray]) -> HostArray:
        by_piece = [
            _coefficients(piece)[1].T @ grads[name]
            if name.endswith("coefficients")
            else 2 * self.values[name] * grads[name] * piece
            for name, piece in self._pieces(x).items()
        ]
        return np.concatenate(by_piece)


def _coefficients(x: HostArray) -> tuple[HostArray, HostArray]:
    """The coefficients (p,) of a stationary autoregression, and their derivatives (p, p), from any numbers x.

    x / sqrt(1 + x^2) are its partial autocorrelations; the recursion of Durbin and Levinson computes the coefficients.
    """
    partial, slope = x / np.sqrt(1 + x**2), (1 + x**2) ** -1.5
    phi, by_x = np.zeros(0), np.zeros((0, len(x)))
    for k, r in enumerate(partial):
        unit = np.eye(1, len(x), k) * slope[k]
        by_x = np.concatenate([by_x - r * by_x[::-1] - phi[::-1, None] * unit, unit])
        phi = np.concatenate([phi - r * phi[::-1], [r]])
    return phi, by_x


def _coordinates(phi: HostArray) -> HostArray:
    """The reverse of `_coefficients`."""
    partial = np.zeros(len(phi))
    for k in reversed(range(len(phi))):
        r = partial[k] = phi[k]
        phi = (phi[:k] + r * phi[:k][::-1]) / (1 - r**2)
    coordinates: HostArray = partial / np.sqrt(1 - partial**2)
    return coordinates


def _read(H: Array, mean: Array, covariance: Array) -> Normal:
    """The distribution of H x, with H (1, n) or (T, 1, n), for states x with these means (T, B, n) and covariances."""
    row = H if H.ndim == 2 else H[:, None, ...]
    xp = _dispatch.namespace("StructuralModel", mean=mean)
    variance = (row @ covariance @ xp.matrix_transpose(row))[..., 0, 0]
    return Normal((row @ mean[..., None])[..., 0, 0], variance)
