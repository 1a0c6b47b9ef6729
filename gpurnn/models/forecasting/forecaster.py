"""The forecaster of time series: nonlinear autoregression, with prediction intervals and a backtest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ... import _checks, _dispatch
from ..._contract import Array
from ..._random import generator
from ...cells import Activation, CellOptions, Update
from ...layers.base import copied
from ...layers.recurrent import Merge
from .. import examples
from ..base import not_finite
from ..pooling import POOLINGS
from ..sequence import LOSSES, SequenceModel
from . import transforms
from .baselines import BASELINES, compared
from .past import Past, past_of, scale_of_covariates
from .results import Forecast
from .series import Collection, Columns, Reader, Series, Sizes
from .transforms import Values
from .windows import Learnt, windows_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..fit_options import FitOptions

NOISES = ("gaussian", "bootstrap")

ROWS = 8192
"""The largest number of windows that are computed at a time."""


class Forecaster(SequenceModel):
    r"""Autoregressive forecaster of one or several time series: x_t = f(x_{t-1}, ..., x_{t-p}) + \epsilon_t.

    f reads the p values before t, the window, as a sequence with a recurrent stack, and returns x_t = W_hy h + b_y,
    where h is the stack's pooled output. A series shorter than p has shorter windows. All of this is in scaled units:
    log, trend, season and differences are taken as the options say, and then (x - mean) / std for each feature.
    `predict`, `forecast` and `backtest` take and return the series' own units, and compute them in float64. The arrays
    that they return have the model's dtype, or float64 if the dtype of the series holds more digits. A call, `vjp` and
    the losses work on windows in scaled units, (p, B, features + covariates).

    If `fit` is called with one series, mean and std are those of this series, and they scale every later series too.
    With several, each series is scaled by its own mean and std, so series of any size are learnt together. A series to
    be forecast is then scaled by the mean and std of all values before the forecast. A trend and seasons are always
    fitted to the values before the forecast. So pass the whole past and not only the last window.

    A series is an array or list of numbers, (T,) or (T, features), or a pandas or polars series or table. NaN, masked
    and missing values are gaps: they are not targets, and as inputs each takes the value before it. If a series ends
    in a gap, the forecasts go through it. Covariates are further inputs: known in the future (f reads them up to time
    t), known only in the past (they are forecast too, as if they were features), or one value for each series.

    Parameters
    ----------
    window : int
        p, the number of past values that f depends on.
    hidden_size : int
    features : int
        The number of values of a time step; 1 for a univariate series.
    num_layers : int
    known_features, past_features, static_features : int
        The number of covariates of a time step that are known in the future, and only in the past; and of a series.
    log : bool
        Learn the logarithms of the values, which must be positive: for growth or swings in proportion to the level.
    trend : bool
        Subtract a straight line, fitted by least squares, and continue it.
    season_length : float or sequence of floats, optional
        Subtract seasons of this many steps (12 for months; 24 and 168 for hours): up to ten harmonics of each, fitted
        by least squares, and continued. This needs two seasons of values.
    differences : int or sequence of ints, optional
        Learn x_t - x_{t-k} for this k, or for several one after another: 1 for a level that wanders, 12 for a season
        that changes from year to year.
    pooling : {"last", "mean", "attention"}
        As in `SequenceClassifier`.
    loss : {"mse", "l1", "huber"}
        The loss that `fit` minimises, by its name in `gpurnn.losses`.
    cell, bidirectional, merge, reverse, activation, leak, reset_after, update, cell_options, dropout,
    variational_dropout, recurrent_dropout, residual, init, dtype, rng
        As in `SequenceClassifier`.

    Attributes
    ----------
    params : dict of str to array
        ``recurrent.weight_ih_l0``, ..., ``output.weight`` and ``output.bias``.
    mean, std : (F,) NumPy arrays, or (S, F) after a fit to S > 1 series
        The mean and the standard deviation of the series passed to `fit`, without trend, seasons and differences;
        F = features + past_features. 0 and 1 before a fit. std is 1 for a constant feature.
    residuals : (n, F) NumPy array
        \epsilon_t of these series, in scaled units. If a part of them was held out for validation, the residuals of the
        learnt part are scaled up to the size of those of the held-out part.
    covariate_mean, covariate_std : (known_features + static_features,) NumPy arrays
        The same for the covariates of all series. Saved with the model, as are ``mean``, ``std`` and ``residuals``.

    Raises
    ------
    ValueError, TypeError
        An option is out of its range or unknown.

    Notes
    -----
    Without a validation part the residuals are those of the values that the model has learnt. An overfitted model then
    has intervals that are too narrow. The intervals contain the noise alone. f, the trend and the seasons are estimates
    too, but that makes no interval wider. So those of a short series are too narrow as well. The coverage in a
    `backtest` on later values shows both.

    References
    ----------
    R. J. Hyndman, G. Athanasopoulos, "Forecasting: principles and practice", 3rd ed. 2021, section 12.4 (neural network
    autoregression, its intervals by simulation), sections 5.5 and 5.10 (bootstrapped residuals, rolling origin),
    section 10.5 (harmonic regression).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> from gpurnn.models import Forecaster
    >>> rng = np.random.default_rng(0)
    >>> t = np.arange(300)
    >>> series = 20 + 0.02 * t + np.sin(2 * np.pi * t / 12) + 0.1 * rng.normal(size=300)
    >>> model = Forecaster(8, 12, trend=True, season_length=12)
    >>> model
    Forecaster(8, 12, trend=True, season_length=12)  # 553 parameters
      (8, B, 1)   windows
      (8, B, 12)  GRU(1, 12)
      (B, 12)     LastPooling()
      (B, 1)      Dense(12, 1): x_t
    >>> model = model.fit(series[:250])
    >>> ahead = model.forecast(series[:250], 20, level=0.9, quantiles=[0.25, 0.75])
    >>> ahead.point.shape, bool(np.abs(ahead.point - series[250:270]).max() < 0.4)
    ((20,), True)
    >>> bool((ahead.quantiles[0.25] < ahead.quantiles[0.75]).all())
    True
    >>> backtest = model.backtest(series, start=250, horizon=12)
    >>> backtest.mase < backtest.baselines["seasonal_naive"].mase, 0.8 < backtest.coverage < 1
    (True, True)
    """

    _outputs_text = "x_t"

    def __init__(
        self,
        window: int,
        hidden_size: int,
        features: int = 1,
        num_layers: int = 1,
        *,
        known_features: int = 0,
        past_features: int = 0,
        static_features: int = 0,
        log: bool = False,
        trend: bool = False,
        season_length: float | Sequence[float] | None = None,
        differences: int | Sequence[int] | None = None,
        pooling: str = "last",
        loss: str = "mse",
        cell: str = "gru",
        bidirectional: bool = False,
        merge: Merge = "concat",
        reverse: bool = False,
        activation: Activation | None = None,
        leak: float | None = None,
        reset_after: bool | None = None,
        update: Update | None = None,
        cell_options: CellOptions | None = None,
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
        self.features = _checks.size(where, "features", features)
        self.known_features = _checks.size(where, "known_features", known_features, 0)
        self.past_features = _checks.size(where, "past_features", past_features, 0)
        self.static_features = _checks.size(where, "static_features", static_features, 0)
        self._transforms = transforms.checked(where, log, trend, season_length, differences)
        self.log, self.trend = self._transforms.log, self._transforms.trend
        self.season_length = _as_given(season_length, self._transforms.season_length)
        self.differences = _as_given(differences, self._transforms.differences)
        pooling = _checks.choice(where, "pooling", pooling, POOLINGS)
        loss = _checks.choice(where, "loss", loss, LOSSES)
        F, covariates = self.features + self.past_features, self.known_features + self.static_features
        super().__init__(
            F + covariates, hidden_size, F, num_layers, pooling=pooling, cell=cell, bidirectional=bidirectional,
            merge=merge, reverse=reverse, activation=activation, leak=leak, reset_after=reset_after, update=update,
            cell_options=cell_options, dropout=dropout, variational_dropout=variational_dropout,
            recurrent_dropout=recurrent_dropout, residual=residual, init=init, dtype=dtype, rng=rng,
        )  # fmt: skip
        self._loss = loss
        self.mean, self.std = np.zeros(F), np.ones(F)
        self.residuals = np.zeros((0, F), self.output.params["bias"].dtype)
        self.covariate_mean, self.covariate_std = np.zeros(covariates), np.ones(covariates)
        self._columns = Columns()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of the parameters, and of ``mean``, ``std`` and the others, as NumPy arrays, by name."""
        of_series = {name: copied(getattr(self, name)) for name in _OF_SERIES}
        return {**super().state_dict(), **of_series}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Copy values into the parameters, and into ``mean``, ``std`` and the others.

        Raises
        ------
        KeyError
            One is missing, or a name is not one of them.
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
            if name.startswith("covariate"):
                _checks.shape(where, shown, state[name], self.covariate_mean.shape, "(covariates,)")
            else:
                # (n, features); and (features,), or (S, features) for the scales of several series.
                lead = state[name].shape[:1] if name == "residuals" else state["mean"].shape[:-1][:1]
                expected = (*lead, self.output.out_features)
                _checks.shape(where, shown, state[name], expected, "(..., features)")
            _checks.floating(where, shown, state[name])
        parameters = {name: value for name, value in state.items() if name not in _OF_SERIES}
        super().load_state_dict(parameters)
        for name in _OF_SERIES:
            setattr(self, name, copied(state[name]))

    def _fitted(self) -> dict[str, Any]:
        columns = self._columns.saved()
        return {"columns": columns} if columns else {}

    def _restore_fitted(self, fitted: dict[str, Any]) -> None:
        self._columns = Columns.restored(fitted.get("columns", {}))

    @_checks.lists_options
    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        target: str | Sequence[str] | None = None,
        time: str | None = None,
        group: str | None = None,
        known: Any = None,
        past: Any = None,
        static: Any = None,
        **options: Unpack[FitOptions],
    ) -> Self:
        """Learn to forecast one step, from every window of one or several series.

        Without ``epochs`` and ``steps`` training ends by itself. The last tenth of each series is held out. Training
        ends when the loss of that part has not fallen for ten epochs and 400 updates, or after a hundred epochs and
        1,000 updates. The parameters with the lowest loss are kept.

        Parameters
        ----------
        X : array, list, series or table, or a sequence of such
            (T,) or (T, features): one series; (N, T), (N, T, features) or a sequence: several, of any lengths. A pandas
            or polars table has a row for each time and a column for each feature; with ``group`` it holds several
            series below one another.
        y : None
            Every value is the target of those before it.
        target : str or sequence of str, optional
            The columns of a table to forecast; by default all that have no other role.
        time, group : str, optional
            The columns of a table with the time of each row (dates, ISO dates as text, or numbers), and with its
            series. Rows are put in the order of their times, and missing rows are gaps. Without ``time``, the index of
            a pandas table or series gives the times.
        known, past, static : str or sequence of str, or arrays, optional
            The covariates: for a table, the names of its columns; otherwise ``known`` and ``past`` of (T, ...) and
            ``static`` (static_features,), for each series.
        **options
            As in `Model.fit`. ``batch_size`` counts windows; ``validation`` is like X, with covariates a table with the
            same columns; ``validation_split`` takes the last share of each series.

        Returns
        -------
        self
            Its attribute ``trainer_`` is the `gpurnn.Trainer` of this run; its losses are in scaled units.

        Raises
        ------
        ValueError, TypeError
            A series is too short or holds infinity; the message names it in the caller's terms. Or an option is out of
            its range.
        FloatingPointError
            The training diverged.
        """
        where = "Forecaster.fit"
        if y is not None:
            raise TypeError(f"{where}: y is given, expected None: the series are their own targets")
        of_tables = examples.is_table(X) or (isinstance(X, (list, tuple)) and any(map(examples.is_table, X)))
        columns = Columns(_names(where, "target", target) or None, time, group)
        if of_tables:
            named = {n: _names(where, n, v) for n, v in (("known", known), ("past", past), ("static", static))}
            columns = Columns(columns.target, time, group, **named)
            known = past = static = None
        elif target is not None:
            raise TypeError(f"{where}: target is {target!r}, which is for tables, but X is {_checks.described(X)}")
        reader = self._reader("fit", columns)
        pasts = self._pasts(where, reader.read("X", X, known, past, static), 2)
        scales = [one.transformed.scale() for one in pasts]
        # The scale of a single series applies to the validation too.
        common = scales[0] if len(scales) == 1 else None
        covariate_scale = scale_of_covariates(pasts)
        learnt = windows_of(pasts, scales, covariate_scale, self.window, self._array)
        batch_size, rng = options.pop("batch_size", 32), options.get("rng", 0)
        later, validation = None, options.get("validation")
        if validation is not None:
            others = self._pasts(where, reader.read("validation", validation), 2)
            later = windows_of(
                others, [common or p.transformed.scale() for p in others], covariate_scale, self.window, self._array
            )
            options["validation"] = later.batches(batch_size, shuffle=False, rng=0)
        data = learnt.batches(batch_size, shuffle=True, rng=rng)
        self.trainer_ = self._trainer(data, None, **options)
        self._columns = columns
        self.mean, self.std = common or (np.stack(values) for values in zip(*scales, strict=True))
        self.covariate_mean, self.covariate_std = covariate_scale
        self.residuals = self.residuals[:0]
        self.trainer_.train()
        self.residuals = self._residuals(learnt, later)
        return self

    @property
    def loss_unit(self) -> str:
        return f"{super().loss_unit} of the scaled series"

    # --- series as the network reads them ---

    def _reader(self, method: str, columns: Columns) -> Reader:
        sizes = Sizes(self.features, self.known_features, self.past_features, self.static_features)
        return Reader(f"Forecaster.{method}", sizes, columns, self._answer)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(_checks.dtype_name(self.output.params["weight"]))

    def _array(self, values: NDArray[Any], dtype: np.dtype[Any] | None = None) -> Array:
        """A NumPy array as an array of the model's library and of ``dtype``, by default the model's."""
        with np.errstate(over="ignore"):  # values that are not finite are rejected where they were computed
            converted = values.astype(self._dtype if dtype is None else dtype)
        parameter = self.output.params["weight"]
        return _dispatch.from_numpy(_dispatch.namespace("Forecaster", params=parameter), converted)

    def _answer(self, values: Values, given: np.dtype[Any]) -> Array:
        """Values in the units of a series of the dtype ``given``, as an array of the model's library."""
        return self._array(values, examples.answer_dtype(self._dtype, given))

    def _pasts(self, where: str, given: Collection, least: int = 1) -> list[Past]:
        return [past_of(where, one, self._transforms, self.features, least) for one in given.series]

    def _residuals(self, learnt: Learnt, later: Learnt | None) -> NDArray[Any]:
        """The residuals of all windows of a fit; those that were learnt are scaled up to the size of the others."""
        residuals = self._errors(learnt)
        unseen = np.ones(len(residuals), np.bool_)
        seen: Any = self.trainer_.data
        unseen[seen.places] = False
        held = residuals[unseen] if later is None else self._errors(later)
        if len(held) >= _LEAST_HELD:
            rms = [np.sqrt(np.mean(part.astype(np.float64) ** 2, axis=0)) for part in (held, residuals[~unseen])]
            factor = np.maximum(1.0, rms[0] / np.where(rms[1] > 0, rms[1], np.inf))
            residuals[~unseen] *= np.where(rms[1] > 0, factor, 1.0).astype(residuals.dtype)
        return residuals

    def _errors(self, learnt: Learnt) -> NDArray[Any]:
        """The values minus their forecasts of one step, (n, F) in scaled units."""
        from ...training import pad

        xp = _dispatch.namespace("Forecaster", windows=learnt.windows[0])
        parts = []
        for start in range(0, len(learnt.windows), ROWS):
            windows, targets = (values[start : start + ROWS] for values in (learnt.windows, learnt.targets))
            padded, lengths = pad(windows)
            parts.append(_dispatch.to_numpy(xp.stack(targets) - self(padded, None, lengths)[0]))
        return np.concatenate(parts)

    def _scales(self, pasts: list[Past]) -> list[tuple[Values, Values]]:
        """The mean and standard deviation (F,) that scale each of these series."""
        if self.mean.ndim == 1:
            return [(self.mean, self.std)] * len(pasts)
        return [past.transformed.scale() for past in pasts]

    # --- forecasts ---

    def _paths(
        self,
        where: str,
        pasts: list[Past],
        steps: int,
        samples: int | None = None,
        noise: str = "",
        random: Any = None,
    ) -> list[Values]:
        """The values that follow each past, in its own units.

        Each forecast is fed back. The values are (steps, features) or, with samples, paths with noise (steps, samples,
        features).
        """
        covariate_scale = (self.covariate_mean, self.covariate_std)
        scales = self._scales(pasts)
        for past in pasts:
            needed = past.length + past.gap + steps
            if self.known_features and len(past.known) < needed:
                ahead = max(0, len(past.known) - past.length - past.gap)
                raise ValueError(
                    f"{where}: known has {ahead} steps after those of {past.name}, expected at least steps = {steps}"
                )
        copies = samples or 1
        most = steps + max(past.gap for past in pasts)
        drawn = None if samples is None else self._noise((most, len(pasts) * samples), noise, random)
        results: dict[int, Values] = {}
        # Pasts of the same length and gap are computed together.
        kinds: dict[tuple[int, int], list[int]] = {}
        for i, past in enumerate(pasts):
            kinds.setdefault((min(self.window, len(past.transformed.values)), past.gap), []).append(i)
        for (length, gap), chosen in kinds.items():
            total = gap + steps
            inputs, covariates = [], []
            for i in chosen:
                past = pasts[i]
                inputs.append(self._array(past.inputs(scales[i], covariate_scale)[-length:]))
                covariates.append(self._array(past.covariates(past.length + 1, total, covariate_scale)))
            xp = _dispatch.namespace(where, inputs=inputs[0])
            repeated = [_repeated(xp, xp.stack(arrays, axis=1), copies) for arrays in (inputs, covariates)]
            of_noise = None
            if drawn is not None and samples is not None:
                parts = [drawn[:total, i * samples : (i + 1) * samples] for i in chosen]
                of_noise = _dispatch.from_numpy(xp, np.concatenate(parts, axis=1))
            found = _dispatch.to_numpy(self._free_run(repeated[0], total, of_noise, repeated[1])).astype(np.float64)
            self._require_finite(where, found)
            for lane, i in enumerate(chosen):
                part = found[:, lane * copies : (lane + 1) * copies, :] if samples else found[:, lane, :]
                mean, std = scales[i]
                with np.errstate(over="ignore", invalid="ignore"):
                    results[i] = pasts[i].transformed.inverse(part * std + mean, random)[gap:, ..., : self.features]
                    dtype = examples.answer_dtype(self._dtype, pasts[i].dtype)
                    self._require_finite(where, results[i].astype(dtype))
        return [results[i] for i in range(len(pasts))]

    def _free_run(
        self, windows: Array, steps: int, noise: Array | None = None, covariates: Array | None = None
    ) -> Array:
        """The values (steps, B, F) that follow windows (n, B, input_size), each fed back with its noise.

        ``covariates`` (steps, B, ...) belong to the same steps as these values.
        """
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
                row = value
                if covariates is not None and covariates.shape[2]:
                    row = xp.concat([value, covariates[step, start:stop, :]], axis=1)
                kept = window[1:, ...] if window.shape[0] == self.window else window
                window = xp.concat([kept, row[None, ...]], axis=0)
            parts.append(xp.stack(values))
        return xp.concat(parts, axis=1)

    def predict(self, inputs: Any, steps: int = 1, *, known: Any = None, past: Any = None, static: Any = None) -> Any:
        """The values that follow each series. Each forecast is fed back as if it had been observed.

        Parameters
        ----------
        inputs : like X in `fit`
            The series, with their whole past.
        steps : int
            The number of values to forecast.
        known : table, or (T + steps, known_features) array for each series, optional
            The covariates that are known in the future. If ``inputs`` is a table, which holds those of its own rows,
            a table of the rows to come.
        past, static : arrays, optional
            The other covariates, as in `fit`, if ``inputs`` is not a table.

        Returns
        -------
        array, series or table, or a list of such
            Of the same kind as ``inputs``: (steps,) or (steps, features) for each series. A pandas index, or the time
            column of a table, continues the series' own.

        Raises
        ------
        ValueError, TypeError
            An argument is out of its range, a series is too short, or the model was never fitted.
        FloatingPointError
            A parameter is NaN or infinite, or the forecasts overflow.
        """
        where = "Forecaster.predict"
        steps = _checks.integer_at_least(where, "steps", steps, 1)
        given = self._reader("predict", self._columns).read("inputs", inputs, known, past, static)
        pasts = self._pasts(where, given)
        if not len(self.residuals) and (self.mean == 0).all() and (self.std == 1).all():
            raise ValueError(f"{where}: the model was never fitted, expected the mean and std of a fit; call fit first")
        return given.join(self._paths(where, pasts, steps))

    def _require_finite(self, where: str, forecasts: NDArray[Any]) -> None:
        """Raise if forecasts are NaN or infinite."""
        if not np.isfinite(forecasts).all():
            scales = {
                name: _dispatch.from_numpy(_dispatch.namespace(where, params=self.output.params["bias"]), values)
                for name in _OF_SERIES
                if (values := getattr(self, name)).size
            }
            raise not_finite(where, "the forecasts", self.params, **scales)

    def forecast(
        self,
        series: Any,
        steps: int,
        *,
        known: Any = None,
        past: Any = None,
        static: Any = None,
        samples: int = 1000,
        level: float = 0.9,
        quantiles: Sequence[float] = (),
        noise: str = "gaussian",
        rng: int | np.random.Generator = 0,
    ) -> Any:
        r"""The values that follow each series, with prediction intervals by sampling.

        A sample is a path x_t = f(x_{t-1}, ..., x_{t-p}) + \epsilon_t with its own noise, fed back. The interval of a
        value lies between the (1 - level)/2 and the (1 + level)/2 quantile of its samples.

        Parameters
        ----------
        series : like X in `fit`
            The whole past of one series or several.
        steps : int
            The number of values to forecast.
        known, past, static : optional
            As in `predict`.
        samples : int
        level : float
            Probability of the intervals, in (0, 1).
        quantiles : sequence of floats
            Further quantiles of each value, by their levels in (0, 1).
        noise : {"gaussian", "bootstrap"}
            \epsilon_t: normal, with the residuals' variance (and the covariance of the features); or drawn from the
            residuals.
        rng : int or numpy.random.Generator

        Returns
        -------
        Forecast
            Or a list of such for a sequence of series. For a table with a group column, it has all of its series.

        Raises
        ------
        ValueError, TypeError
            An argument is out of its range, the series is too short, or the model was never fitted.
        FloatingPointError
            A parameter is NaN or infinite, or the forecasts overflow.
        """
        where = "Forecaster.forecast"
        steps = _checks.integer_at_least(where, "steps", steps, 1)
        levels = _levels(where, quantiles)
        given = self._reader("forecast", self._columns).read("series", series, known, past, static)
        pasts = self._pasts(where, given)
        bounds = self._intervals(where, pasts, steps, samples, level, noise, rng, levels)
        point, lower, upper, *others = (given.join(values) for values in bounds)
        if given.is_single or given.groups is not None:
            return Forecast(point, lower, upper, float(level), dict(zip(levels, others, strict=True)))
        return [
            Forecast(point[i], lower[i], upper[i], float(level), {q: o[i] for q, o in zip(levels, others, strict=True)})
            for i in range(len(pasts))
        ]

    def backtest(
        self,
        series: Any,
        start: Any,
        horizon: int = 1,
        stride: int = 1,
        *,
        known: Any = None,
        past: Any = None,
        static: Any = None,
        baselines: Sequence[str] | None = None,
        season_length: int | None = None,
        samples: int = 200,
        level: float = 0.9,
        noise: str = "gaussian",
        rng: int | np.random.Generator = 0,
    ) -> Any:
        """Forecasts of a series from origins that roll along it, compared with the actual values, without refitting.

        Other methods forecast the same values. At each origin they know the same values as the model. Anything else
        that they learn, such as the smoothing of ETS, they learn from the values before the first origin.

        Parameters
        ----------
        series : like X in `fit`
            After a fit to several series, the values before an origin give the scale of its forecast.
        start : int, or a time
            The first origin: the index of the first value that is forecast, or its time if the series has times.
        horizon : int
            The number of values that are forecast from each origin.
        stride : int
            Steps from one origin to the next. All forecasts are within the series.
        known, past, static : optional
            As in `predict`, but only the covariates of the series' own steps are needed.
        baselines : sequence of {"naive", "seasonal_naive", "ets", "theta"}, optional
            The methods to compare with: the last value; the last season; exponential smoothing; the theta method. The
            latter two need statsmodels. By default the naive ones, the seasonal one only if there is a season.
        season_length : int, optional
            The season of the baselines and of the MASE; by default the first of the model's.
        samples, level, noise, rng
            As in `forecast`.

        Returns
        -------
        Backtest
            Or a list of such for a sequence of series, and a dict by group for a table with a group column.

        Raises
        ------
        ValueError, TypeError
            As in `forecast`; or there is no origin.
        ImportError
            A baseline needs statsmodels, which is not installed.

        References
        ----------
        L. J. Tashman, "Out-of-sample tests of forecasting accuracy", International Journal of Forecasting 16 (2000).
        """
        where = "Forecaster.backtest"
        horizon = _checks.integer_at_least(where, "horizon", horizon, 1)
        stride = _checks.integer_at_least(where, "stride", stride, 1)
        if season_length is None:
            season = round((*self._transforms.season_length, max((1, *self._transforms.differences)))[0])
        else:
            season = _checks.size(where, "season_length", season_length)
        if baselines is None:
            baselines = ("naive", "seasonal_naive") if season > 1 else ("naive",)
        names = [_checks.choice(where, "baselines", name, BASELINES) for name in baselines]
        given = self._reader("backtest", self._columns).read("series", series, known, past, static)
        tests = []
        for one in given.series:
            first = self._first_origin(where, one, start)
            origins = tuple(range(first, len(one.values) - horizon + 1, stride))
            if not origins:
                raise ValueError(
                    f"{where}: start + horizon is {first + horizon}, expected at most the {len(one.values)} steps of "
                    f"{one.name}"
                )
            pasts = [past_of(where, one, self._transforms, self.features, stop=origin) for origin in origins]
            bounds = self._intervals(where, pasts, horizon, samples, level, noise, rng)
            actual = [one.values[o : o + horizon, : self.features] for o in origins]
            arrays = [np.stack(values) for values in (*bounds, actual)]
            tests.append(compared(one, arrays, origins, level, season, names, self._answer))
        if given.groups is not None:
            return dict(zip(given.groups, tests, strict=True))
        return tests[0] if given.is_single else tests

    def _first_origin(self, where: str, series: Series, start: Any) -> int:
        """The index of the first value to forecast."""
        least = max(1, self._transforms.least)
        if series.times is not None and not isinstance(start, (int, np.integer)):
            try:
                return series.step_at(start)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{where}: start is {start!r}, expected an int, or a time such as {series.times[0]}"
                ) from error
        return _checks.integer_at_least(where, "start", start, least)

    def _intervals(
        self,
        where: str,
        pasts: list[Past],
        steps: int,
        samples: int,
        level: float,
        noise: str,
        rng: Any,
        quantiles: Sequence[float] = (),
    ) -> list[list[Values]]:
        """For each past: point, lower, upper and the quantiles, (steps, features) in its own units."""
        samples = _checks.integer_at_least(where, "samples", samples, 1)
        _checks.choice(where, "noise", noise, NOISES)
        level = _checks.finite(where, "level", level)
        if not 0.0 < level < 1.0:
            raise ValueError(f"{where}: level is {level!r}, expected a probability in (0, 1)")
        random = generator(where, rng)
        if self.residuals.shape[0] == 0:
            raise ValueError(f"{where}: there are no residuals, expected those of a fit; call fit first")
        self._require_finite(where, self.residuals)
        paths = self._paths(where, pasts, steps, samples, noise, random)
        points = self._paths(where, pasts, steps)
        levels = [(1 - level) / 2, (1 + level) / 2, *quantiles]
        found = [np.quantile(of_one, levels, axis=1) for of_one in paths]
        return [points, *([of_one[i] for of_one in found] for i in range(len(levels)))]

    def _noise(self, shape: tuple[int, int], noise: str, rng: np.random.Generator) -> NDArray[Any]:
        """Noise (*shape, F) in scaled units."""
        residuals = self.residuals
        if noise == "bootstrap":
            return residuals[rng.integers(residuals.shape[0], size=shape)]
        covariance = residuals.T.astype(np.float64) @ residuals / residuals.shape[0]
        # eigh also takes a covariance that is singular.
        drawn = rng.multivariate_normal(np.zeros(len(covariance)), covariance, shape, method="eigh")
        return drawn.astype(residuals.dtype)

    def _shapes(self) -> list[tuple[Any, ...]]:
        (first, _), *rows = super()._shapes()
        return [(shape.replace("(T,", f"({self.window},"), *what) for shape, *what in [(first, "windows"), *rows]]


_OF_SERIES = ("mean", "std", "residuals", "covariate_mean", "covariate_std")

_LEAST_HELD = 10
"""Fewer residuals of a validation part are too few to estimate their size."""


def _repeated(xp: Any, x: Array, copies: int) -> Array:
    """(n, B, C) as (n, B * copies, C), the copies of a lane next to each other."""
    if copies == 1:
        return x
    n, B, C = x.shape
    return xp.reshape(xp.broadcast_to(x[:, :, None, :], (n, B, copies, C)), (n, B * copies, C))


def _names(where: str, option: str, value: Any) -> tuple[Any, ...]:
    """The names of columns: one, or a sequence of them."""
    if value is None:
        return ()
    names = (value,) if isinstance(value, (str, int)) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, int)) for name in names):
        raise TypeError(
            f"{where}: {option} is {_checks.described(value)}, expected the name of a column of X, or a list of such"
        )
    return tuple(names)


def _as_given(value: Any, several: tuple[Any, ...]) -> Any:
    """An option that may be None, one number or several, in a form that the constructor takes."""
    return several if isinstance(value, (list, tuple)) else several[0] if several else None


def _levels(where: str, quantiles: Any) -> list[float]:
    if isinstance(quantiles, (int, float)):
        quantiles = [quantiles]
    levels = [_checks.finite(where, f"quantiles[{i}]", q) for i, q in enumerate(quantiles)]
    for i, q in enumerate(levels):
        if not 0.0 < q < 1.0:
            raise ValueError(f"{where}: quantiles[{i}] is {q!r}, expected a level in (0, 1)")
    return levels
