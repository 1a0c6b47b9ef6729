"""The forecaster of time series: nonlinear autoregression, with prediction intervals and a backtest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _arrays, _checks, _dispatch
from ..._contract import Array
from ..._random import generator
from ...cells import Activation, Update
from ...layers.base import copied
from .. import examples
from ..base import check_finite, not_finite
from ..pooling import POOLINGS
from ..sequence import LOSSES, SequenceModel

if TYPE_CHECKING:
    from typing_extensions import Self

NOISES = ("gaussian", "bootstrap")

ROWS = 8192
"""How many windows are computed at a time, at most."""


@dataclass(frozen=True)
class Forecast:
    """The values that are forecast, and intervals around them.

    Attributes
    ----------
    point : (steps,) or (steps, features) array
        The free-running forecast: that without noise.
    lower, upper : arrays like point
        The prediction interval of each value by itself.
    level : float
        The probability that a value is to lie in its interval.
    """

    point: Array
    lower: Array
    upper: Array
    level: float


@dataclass(frozen=True)
class Backtest:
    """Forecasts from several origins of a series, with the values that followed.

    Attributes
    ----------
    origins : tuple of int
        The N origins: the index of the first value of each forecast, which was made from the values before it.
    point, lower, upper : (N, horizon) or (N, horizon, features) arrays
        As in `Forecast`.
    actual : array like point
        The values of the series.
    level : float
    """

    origins: tuple[int, ...]
    point: Array
    lower: Array
    upper: Array
    actual: Array
    level: float

    @property
    def mse(self) -> float:
        """The mean squared error of the point forecasts."""
        xp = _dispatch.namespace("Backtest", point=self.point)
        return float(xp.mean((self.point - self.actual) ** 2))

    @property
    def mae(self) -> float:
        """The mean absolute error of the point forecasts."""
        xp = _dispatch.namespace("Backtest", point=self.point)
        return float(xp.mean(xp.abs(self.point - self.actual)))

    @property
    def coverage(self) -> float:
        """The share of the actual values that lie in their intervals; ``level`` is what it should be."""
        xp = _dispatch.namespace("Backtest", point=self.point)
        inside = (self.lower <= self.actual) & (self.actual <= self.upper)
        return float(xp.mean(xp.astype(inside, self.point.dtype)))


class Forecaster(SequenceModel):
    r"""Autoregressive forecaster of one or several time series: x_t = f(x_{t-1}, ..., x_{t-p}) + \epsilon_t.

    f reads the p values before t, the window, as a sequence with a recurrent stack, and puts out
    x_t = W_hy h + b_y, h the stack's pooled output. All of this is in scaled units, (x - mean) / std for each feature;
    `predict`, `forecast` and `backtest` take and return the series' own units. A call, `vjp` and the losses work on
    windows in scaled units, (p, B, features).

    Where `fit` is given one series, mean and std are those of this series, and they scale every later series too. Where
    it is given several, each series is scaled by its own mean and std: series of any size are learnt together. A series
    to be forecast is then scaled by the mean and std of all values that come before the forecast, so give its whole
    past and not only the last window.

    Parameters
    ----------
    window : int
        p, how many past values f depends on.
    hidden_size : int
    features : int
        How many values a time step has; 1 for a univariate series.
    num_layers : int
    pooling : {"last", "mean", "attention"}
        As in `SequenceClassifier`.
    loss : {"mse", "l1", "huber"}
        What `fit` minimises, by its name in `gpurnn.losses`.
    cell, bidirectional, activation, leak, reset_after, update, dropout, variational_dropout, recurrent_dropout, \
    residual, init, dtype, rng
        Those of `SequenceClassifier`.

    Attributes
    ----------
    params : dict of str to array
        ``recurrent.weight_ih_l0``, ..., ``output.weight`` and ``output.bias``.
    mean, std : (features,) NumPy arrays, or (S, features) after a fit to S > 1 series
        Of the series that `fit` was given; 0 and 1 before. std is 1 where a feature is constant.
    residuals : (n, features) NumPy array
        \epsilon_t of these series, in scaled units. Saved with the model, as are ``mean`` and ``std``.

    Raises
    ------
    ValueError, TypeError
        An option is out of its range or unknown.

    Notes
    -----
    The residuals are those of the series that the model has learnt: one that has learnt it by heart has intervals that
    are too narrow. The coverage in a `backtest` on later values tells.

    References
    ----------
    R. J. Hyndman, G. Athanasopoulos, "Forecasting: principles and practice", 3rd ed. 2021, section 12.4 (neural network
    autoregression, its intervals by simulation), sections 5.5 and 5.10 (bootstrapped residuals, rolling origin).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> from gpurnn.models import Forecaster
    >>> rng = np.random.default_rng(0)
    >>> series = (20 + np.sin(np.arange(300) / 3) + 0.1 * rng.normal(size=300)).astype(np.float32)
    >>> model = Forecaster(8, 12)
    >>> model
    Forecaster(8, 12)  # 553 parameters
      (8, B, 1)   windows
      (8, B, 12)  GRU(1, 12)
      (B, 12)     LastPooling()
      (B, 1)      Dense(12, 1): x_t
    >>> model = model.fit(series[:250], epochs=20, optimizer=gpurnn.Adam(0.01))
    >>> ahead = model.forecast(series[:250], 20, level=0.9)
    >>> ahead.point.shape, bool(np.abs(ahead.point - series[250:270]).max() < 0.6)
    ((20,), True)
    >>> backtest = model.backtest(series, start=250)
    >>> backtest.mse < 0.04, backtest.coverage > 0.7
    (True, True)
    """

    _outputs_name = "features"
    _outputs_text = "x_t"

    def __init__(
        self,
        window: int,
        hidden_size: int,
        features: int = 1,
        num_layers: int = 1,
        *,
        pooling: str = "last",
        loss: str = "mse",
        cell: str = "gru",
        bidirectional: bool = False,
        activation: Activation | None = None,
        leak: float | None = None,
        reset_after: bool | None = None,
        update: Update | None = None,
        dropout: float = 0.0,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        residual: bool = False,
        init: Any = None,
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "Forecaster"
        self.window = _checks.size(where, "window", window)
        features = _checks.size(where, "features", features)
        pooling = _checks.choice(where, "pooling", pooling, POOLINGS)
        loss = _checks.choice(where, "loss", loss, LOSSES)
        super().__init__(
            features, hidden_size, features, num_layers, pooling=pooling, cell=cell, bidirectional=bidirectional,
            activation=activation, leak=leak, reset_after=reset_after, update=update, dropout=dropout,
            variational_dropout=variational_dropout, recurrent_dropout=recurrent_dropout, residual=residual, init=init,
            dtype=dtype, rng=rng,
        )  # fmt: skip
        self._loss = loss
        self.features = self.output.out_features
        self.mean, self.std = np.zeros(self.features), np.ones(self.features)
        self.residuals = np.zeros((0, self.features), self.output.params["bias"].dtype)

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of the parameters, and of ``mean``, ``std`` and ``residuals``, as NumPy arrays, by name."""
        of_series = {name: copied(getattr(self, name)) for name in _OF_SERIES}
        return {**super().state_dict(), **of_series}

    def load_state_dict(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Copy values into the parameters, and into ``mean``, ``std`` and ``residuals``.

        Raises
        ------
        KeyError
            One is missing, or a name is none of them.
        ValueError, TypeError
            A shape or a dtype is not the parameter's.
        """
        where = "Forecaster.load_state_dict"
        if not isinstance(state, Mapping):
            raise TypeError(f"{where}: state is {_checks.described(state)}, expected a dict of arrays by name")
        missing = [name for name in _OF_SERIES if name not in state]
        if missing:
            raise KeyError(f"{where}: missing {missing}, expected {[*self.params, *_OF_SERIES]}")
        for name in _OF_SERIES:
            shown = f"state[{name!r}]"
            _dispatch.namespace(where, **{shown: state[name]})
            # (n, features); and (features,), or (S, features) of the scales of several series.
            lead = state[name].shape[:1] if name == "residuals" else state["mean"].shape[:-1][:1]
            _checks.shape(where, shown, state[name], (*lead, self.features), "(..., features)")
            _checks.floating(where, shown, state[name])
        parameters = {name: value for name, value in state.items() if name not in _OF_SERIES}
        super().load_state_dict(parameters)
        self.mean, self.std, self.residuals = (copied(state[name]) for name in _OF_SERIES)

    @_checks.lists_options
    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        batch_size: int = 32,
        validation: Any = None,
        rng: int | np.random.Generator = 0,
        **options: Any,
    ) -> Self:
        """Learn to forecast one step, from every window of one or several series.

        Parameters
        ----------
        X : (T,) or (T, features) array or list of numbers, or a sequence of such
            The series, of any lengths above ``window``, without gaps.
        y : None
            Every value is the target of those before it.
        batch_size : int
            Windows in a batch.
        validation : like X, optional
        rng, **options
            Those of `Model.fit`: ``epochs`` or ``steps``, ``optimizer``, ``patience``, ...

        Returns
        -------
        self
            Its attribute ``trainer_`` is the `gpurnn.Trainer` of this run; its ``history`` has the losses, in scaled
            units.

        Raises
        ------
        ValueError, TypeError
            A series is too short, not finite or of another dtype, or an option is out of its range.
        FloatingPointError
            The training diverged.
        """
        if y is not None:
            raise TypeError("Forecaster.fit: y is given, expected None: the series are their own targets")
        series = self._all_series("fit", "X", X, self.window + 1)
        scales = [examples.scale_of(s) for s in series]
        # That of a single series scales the validation too.
        common = scales[0] if len(series) == 1 else None
        scaled = [_scaled(s, *scale) for s, scale in zip(series, scales, strict=True)]
        later = None
        if validation is not None:
            later = self._all_series("fit", "validation", validation, self.window + 1)
            later = [_scaled(s, *(common or examples.scale_of(s))) for s in later]
            later = self._windows_of(later, batch_size, shuffle=False, rng=0)
        data = self._windows_of(scaled, batch_size, shuffle=True, rng=rng)
        self.trainer_ = self._trainer(data, None, validation=later, rng=rng, **options)
        self.mean, self.std = common or (np.stack(values) for values in zip(*scales, strict=True))
        self.residuals = self.residuals[:0]
        self.trainer_.train()
        self.residuals = np.concatenate([_dispatch.to_numpy(self._residuals(s)) for s in scaled])
        return self

    @property
    def loss_unit(self) -> str:
        return f"{super().loss_unit} of the scaled series"

    def _windows_of(self, scaled: list[Array], batch_size: int, *, shuffle: bool, rng: Any) -> Any:
        from ...training import PaddedBatches

        windows, targets, p = [], [], self.window
        for x in scaled:
            windows += [x[i : i + p, :] for i in range(x.shape[0] - p)]
            targets += [x[i + p, :] for i in range(x.shape[0] - p)]
        return PaddedBatches(windows, batch_size, targets, per_sequence=True, shuffle=shuffle, rng=rng)

    def _residuals(self, x: Array) -> Array:
        """A series (T, features) in scaled units minus its forecasts of one step: (T - p, features)."""
        xp = _dispatch.namespace("Forecaster", x=x)
        N = x.shape[0] - self.window
        windows = xp.stack([x[i : i + N, :] for i in range(self.window)])
        return x[self.window :, :] - self._free_run(windows, 1)[0, ...]

    def _all_series(self, method: str, name: str, given: Any, least: int) -> list[Array]:
        """One series or several as a list of arrays."""
        where = f"Forecaster.{method}"
        _checks.given(where, **{name: given})
        if self._is_single(given):
            return [self._one_series(method, name, given, least)]
        given = _arrays.entries(where, name, given, "an array or several")
        if len(given) == 0:
            raise ValueError(f"{where}: {name} is empty, expected at least one series")
        return [self._one_series(method, f"{name}[{i}]", series, least) for i, series in enumerate(given)]

    def _is_single(self, given: Any) -> bool:
        """Whether this is one series, and not several: an array, or a list of numbers or of rows of numbers."""
        if not isinstance(given, (list, tuple)):
            return _arrays.is_single(given)
        rows = [given] if self.features == 1 else given
        return len(given) > 0 and all(
            isinstance(row, (list, tuple)) and all(isinstance(value, Real) for value in row) for row in rows
        )

    def _one_series(self, method: str, name: str, series: Any, least: int) -> Array:
        """A series as an array (T, features), or (T,) as it was given; reject one that this model does not read."""
        where = f"Forecaster.{method}"
        parameter = self.output.params["weight"]
        if not hasattr(series, "dtype") and self._is_single(series):
            series = self._array(where, name, series)
        _, _, series = _arrays.take(where, {"params": parameter, name: series}, needed=(name,))
        if self.features > 1 or series.ndim != 1:
            _checks.ndim(where, name, series, 2, "(T, features)")
            _checks.shape(where, name, series, (series.shape[0], self.features), "(T, features)")
        if series.shape[0] < least:
            raise ValueError(f"{where}: {name} has {series.shape[0]} steps, expected at least {least}")
        check_finite(where, name, series)
        return series

    def _array(self, where: str, name: str, series: Any) -> Array:
        """A list of numbers, or of rows of numbers, as an array."""
        for i, row in enumerate([series] if self.features == 1 else series):
            if self.features > 1 and len(row) != self.features:
                raise ValueError(f"{where}: {name}[{i}] has {len(row)} entries, expected features = {self.features}")
            if any(isinstance(value, bool) for value in row):
                raise TypeError(f"{where}: {name} holds booleans, expected numbers")
        parameter = self.output.params["weight"]
        xp, dtype = _dispatch.namespace(where, params=parameter), _checks.dtype_name(parameter)
        try:
            with np.errstate(over="ignore"):  # infinity is rejected with the series
                return _dispatch.from_numpy(xp, np.array(series, dtype))
        except OverflowError as error:  # of an int that is larger than every float
            raise ValueError(f"{where}: {name} holds a number beyond {dtype}, expected finite numbers") from error

    def _scales(self, pasts: list[Array]) -> tuple[Any, Any]:
        """The means and standard deviations (B, features) that scale the series with these B pasts."""
        if self.mean.ndim == 1:
            return self.mean, self.std
        means, stds = zip(*map(examples.scale_of, pasts), strict=True)
        return np.stack(means), np.stack(stds)

    def _free_run(self, windows: Array, steps: int, noise: Array | None = None) -> Array:
        """The values (steps, B, features) that follow windows (p, B, features), each fed back with its noise."""
        xp = _dispatch.namespace("Forecaster", windows=windows)
        parts = []
        for start in range(0, windows.shape[1], ROWS):
            stop = min(start + ROWS, windows.shape[1])
            window, values = windows[:, start:stop, :], []
            for step in range(steps):
                value, _ = self(window)
                if noise is not None:
                    value = value + noise[step, start:stop, :]
                values.append(value)
                window = xp.concat([window[1:, ...], value[None, ...]], axis=0)
            parts.append(xp.stack(values))
        return xp.concat(parts, axis=1)

    def predict(self, inputs: Any, steps: int = 1) -> Any:
        """The values that follow each series. Each forecast is fed back as if it had been observed.

        Parameters
        ----------
        inputs : (T,) or (T, features) array or list of numbers, or a sequence of such
            The series. Their last ``window`` values are read, and all of them for the scale after a fit to several.
        steps : int
            How many values to forecast.

        Returns
        -------
        (steps,) or (steps, features) array, or a list of such

        Raises
        ------
        ValueError, TypeError
            An argument is out of its range, a series is too short, or the model was never fitted.
        FloatingPointError
            A parameter is NaN or infinite, or the forecasts overflow.
        """
        where = "Forecaster.predict"
        steps = _checks.integer_at_least(where, "steps", steps, 1)
        series = self._all_series("predict", "inputs", inputs, self.window)
        if not len(self.residuals) and (self.mean == 0).all() and (self.std == 1).all():
            raise ValueError(f"{where}: the model was never fitted, expected the mean and std of a fit; call fit first")
        xp = _dispatch.namespace(where, inputs=series[0])
        scales = self._scales(series)
        windows = _scaled(xp.stack([_columns(x)[-self.window :, :] for x in series], axis=1), *scales)
        values = _unscaled(self._free_run(windows, steps), *scales)
        self._require_finite(where, values)
        forecasts = [values[:, i, 0] if x.ndim == 1 else values[:, i, :] for i, x in enumerate(series)]
        return forecasts[0] if self._is_single(inputs) else forecasts

    def _require_finite(self, where: str, *forecasts: Array) -> None:
        """Raise if forecasts are NaN or infinite."""
        xp = _dispatch.namespace(where, forecasts=forecasts[0])
        if not all(bool(xp.all(xp.isfinite(values))) for values in forecasts):
            scales = {name: _dispatch.from_numpy(xp, getattr(self, name)) for name in _OF_SERIES}
            raise not_finite(where, "the forecasts", self.params, **scales)

    def forecast(
        self,
        series: Array,
        steps: int,
        *,
        samples: int = 1000,
        level: float = 0.9,
        noise: str = "gaussian",
        rng: int | np.random.Generator = 0,
    ) -> Forecast:
        r"""The values that follow a series, with prediction intervals by sampling.

        A sample is a path x_t = f(x_{t-1}, ..., x_{t-p}) + \epsilon_t with its own noise, fed back. The interval of a
        value lies between the (1 - level)/2 and the (1 + level)/2 quantile of what the samples have there.

        Parameters
        ----------
        series : (T,) or (T, features) array or list of numbers
            Its last ``window`` values are read, and all of them for the scale after a fit to several series.
        steps : int
            How many values to forecast.
        samples : int
        level : float
            Probability of the intervals, in (0, 1).
        noise : {"gaussian", "bootstrap"}
            \epsilon_t: normal, with the residuals' variance (and the covariance of the features); or drawn from the
            residuals.
        rng : int or numpy.random.Generator

        Returns
        -------
        Forecast

        Raises
        ------
        ValueError, TypeError
            An argument is out of its range, the series is too short, or the model was never fitted.
        FloatingPointError
            A parameter is NaN or infinite, or the forecasts overflow.
        """
        where = "Forecaster.forecast"
        x = self._one_series("forecast", "series", series, self.window)
        steps = _checks.integer_at_least(where, "steps", steps, 1)
        windows = _columns(x)[-self.window :, None, :]
        bounds = self._intervals(where, windows, self._scales([x]), steps, samples, level, noise, rng)
        point, lower, upper = (v[:, 0, 0] if x.ndim == 1 else v[:, 0, :] for v in bounds)
        return Forecast(point, lower, upper, float(level))

    def backtest(
        self,
        series: Array,
        start: int,
        horizon: int = 1,
        stride: int = 1,
        *,
        samples: int = 200,
        level: float = 0.9,
        noise: str = "gaussian",
        rng: int | np.random.Generator = 0,
    ) -> Backtest:
        """Forecasts of a series from origins that roll along it, against what came: the model stays as it is.

        Parameters
        ----------
        series : (T,) or (T, features) array or list of numbers
            After a fit to several series, the values before an origin give the scale of its forecast.
        start : int
            The first origin: the index of the first value that is forecast, at least ``window``.
        horizon : int
            How many values are forecast from each origin.
        stride : int
            Steps from one origin to the next. All forecasts are within the series.
        samples, level, noise, rng
            As in `forecast`.

        Returns
        -------
        Backtest

        Raises
        ------
        ValueError, TypeError
            As `forecast` does; or there is no origin.

        References
        ----------
        L. J. Tashman, "Out-of-sample tests of forecasting accuracy", International Journal of Forecasting 16 (2000).
        """
        where = "Forecaster.backtest"
        x = self._one_series("backtest", "series", series, self.window + 1)
        start = _checks.integer_at_least(where, "start", start, self.window)
        horizon = _checks.integer_at_least(where, "horizon", horizon, 1)
        stride = _checks.integer_at_least(where, "stride", stride, 1)
        origins = tuple(range(start, x.shape[0] - horizon + 1, stride))
        if not origins:
            raise ValueError(
                f"{where}: start + horizon is {start + horizon}, expected at most the {x.shape[0]} steps of the series"
            )
        xp = _dispatch.namespace(where, series=x)
        columns = _columns(x)
        windows = xp.stack([columns[o - self.window : o, :] for o in origins], axis=1)
        actual = xp.stack([columns[o : o + horizon, :] for o in origins])
        scales = self._scales([_dispatch.to_numpy(columns)[:o] for o in origins])
        bounds = self._intervals(where, windows, scales, horizon, samples, level, noise, rng)
        arrays = [*(xp.permute_dims(v, (1, 0, 2)) for v in bounds), actual]
        point, lower, upper, actual = (v[:, :, 0] if x.ndim == 1 else v for v in arrays)
        return Backtest(origins, point, lower, upper, actual, float(level))

    def _intervals(
        self,
        where: str,
        windows: Array,
        scales: tuple[Any, Any],
        steps: int,
        samples: int,
        level: float,
        noise: str,
        rng: Any,
    ) -> tuple[Array, Array, Array]:
        """point, lower and upper (steps, B, features) after windows (p, B, features), all in the series' units."""
        samples = _checks.integer_at_least(where, "samples", samples, 1)
        _checks.choice(where, "noise", noise, NOISES)
        level = _checks.finite(where, "level", level)
        if not 0.0 < level < 1.0:
            raise ValueError(f"{where}: level is {level!r}, expected a probability in (0, 1)")
        random = generator(where, rng)
        if self.residuals.shape[0] == 0:
            raise ValueError(f"{where}: there are no residuals, expected those of a fit; call fit first")
        xp = _dispatch.namespace(where, windows=windows)
        self._require_finite(where, _dispatch.from_numpy(xp, self.residuals))
        windows = _scaled(windows, *scales)
        p, B, F = windows.shape
        repeated = xp.reshape(xp.broadcast_to(windows[:, :, None, :], (p, B, samples, F)), (p, B * samples, F))
        drawn = _dispatch.from_numpy(xp, self._noise((steps, B * samples), noise, random))
        paths = xp.reshape(self._free_run(repeated, steps, drawn), (steps, B, samples, F))
        ordered = xp.sort(paths, axis=2)
        lower, upper = (_quantile(ordered, q) for q in ((1 - level) / 2, (1 + level) / 2))
        point, lower, upper = (_unscaled(v, *scales) for v in (self._free_run(windows, steps), lower, upper))
        self._require_finite(where, point, lower, upper)
        return point, lower, upper

    def _noise(self, shape: tuple[int, int], noise: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """Noise (*shape, features) in scaled units."""
        residuals = self.residuals
        if noise == "bootstrap":
            return residuals[rng.integers(residuals.shape[0], size=shape)]
        covariance = residuals.T.astype(np.float64) @ residuals / residuals.shape[0]
        # eigh also takes a covariance that is singular.
        drawn = rng.multivariate_normal(np.zeros(self.features), covariance, shape, method="eigh")
        return drawn.astype(residuals.dtype)

    def _shapes(self) -> list[tuple[Any, ...]]:
        (first, _), *rows = super()._shapes()
        return [(shape.replace("(T,", f"({self.window},"), *what) for shape, *what in [(first, "windows"), *rows]]


_OF_SERIES = ("mean", "std", "residuals")


def _columns(x: Array) -> Array:
    """A series (T, features)."""
    return x[:, None] if x.ndim == 1 else x


def _scaled(x: Array, mean: Any, std: Any) -> Array:
    """A series, or parts (..., B, features) of B series, in scaled units; mean and std are those of `_scales`."""
    xp = _dispatch.namespace("Forecaster", x=x)
    return (_columns(x) - _like(xp, mean, x)) / _like(xp, std, x)


def _unscaled(x: Array, mean: Any, std: Any) -> Array:
    """The reverse of `_scaled`."""
    xp = _dispatch.namespace("Forecaster", x=x)
    return x * _like(xp, std, x) + _like(xp, mean, x)


def _like(xp: Any, values: np.ndarray[Any, Any], x: Array) -> Array:
    return xp.astype(_dispatch.from_numpy(xp, values), x.dtype)


def _quantile(ordered: Array, q: float) -> Array:
    """The q-quantile along axis 2 of an array (steps, B, n, F) in order along it, linear between its numbers."""
    place = q * (ordered.shape[2] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[2] - 1)
    return ordered[:, :, below, :] + (place - below) * (ordered[:, :, above, :] - ordered[:, :, below, :])
