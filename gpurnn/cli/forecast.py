"""``gpurnn forecast``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from .options import PathType, computing_on, device_option, encoding_option, integer
from .pictures import draw_forecasts
from .tables import MODEL, Table, columns_in, csv_bytes, directory_of, groups_of, read_table, read_times
from .terminal import Refusal, progress_of, quiet_option, refusing, say, say_how_training_ended, warn
from .texts import STDIN

FILE, PICTURE = "forecast.csv", "forecast.png"

LARGEST = 1e37
"""The network computes in float32, which holds little more than this."""

LEAST = 20
"""A series shorter than this has nothing to learn from."""

TRIED = 20
"""The largest number of series of a table from which trend and season are chosen."""


class _Numbers(click.types.StringParamType):
    """Numbers separated by commas."""

    name = "numbers"

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} holds something other than numbers and commas.", param, ctx)
        for number in numbers:
            if not self._low < number < self._high:
                self.fail(f"{number:g} is not between {self._low:g} and {self._high:g}.", param, ctx)
        return numbers


@click.command(short_help="Forecast a column of a CSV file, with intervals.", context_settings={"show_default": True})
@click.argument("file", type=PathType(allow_dash=True), metavar="DATA.csv")
@click.option("--time", "time_column", required=True, metavar="COLUMN", help="The time of a row, a number or a date.")
@click.option("--target", required=True, metavar="COLUMN", help="The numbers to forecast.")
@click.option("--group", metavar="COLUMN", help="The series of a row, such as a shop.")
@click.option("--known", metavar="A,B,...", help="Columns that are known in the future too, such as a price.")
@click.option("--past", metavar="A,B,...", help="Further columns that are known in the past only.")
@click.option("--static", metavar="A,B,...", help="Columns with one number for each series of --group.")
@integer("--steps", None, "How many rows to forecast.  [default: the rows at the end without a target, or else a tenth "
         "of the rows, at most 50]")  # fmt: skip
@click.option("--level", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.9, metavar="X",
              help="The probability that a value lies in its interval.")  # fmt: skip
@click.option("--quantiles", type=_Numbers(0, 1), default=(), metavar="X,Y,...", show_default=False,
              help="Further quantiles to forecast, such as 0.1,0.5,0.9.")  # fmt: skip
@click.option("--season", type=_Numbers(0, 1e6), metavar="N,M,...", show_default=False,
              help="Rows in a season, such as 12 for months, or 24,168 for hours; 1 for none.  [default: found in the "
              "data]")  # fmt: skip
@integer("--window", None, "Number of past rows that a forecast depends on.  [default: by the season]")
@integer("--hidden", 16, "Width of the recurrent layer.")
@integer("--epochs", None, "Passes over the rows.  [default: until the loss of the last tenth stops falling]")
@click.option("--time-format", metavar="FORM", help="How dates are written, as strptime takes it: %d.%m.%Y.")
@click.option("--out", type=PathType(path_type=Path), metavar="DIR", show_default=False,
              help="Directory of the results.  [default: DATA-forecast]")  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace an earlier forecast in DIR.")
@integer("--seed", 0, "Seeds parameters, training and intervals.", least=0)
@encoding_option
@device_option
@quiet_option
def forecast(
    file: str,
    time_column: str,
    target: str,
    group: str | None,
    known: str | None,
    past: str | None,
    static: str | None,
    steps: int | None,
    level: float,
    quantiles: tuple[float, ...],
    season: tuple[float, ...] | None,
    window: int | None,
    hidden: int,
    epochs: int | None,
    time_format: str | None,
    out: Path | None,
    replace: bool,
    seed: int,
    encoding: str | None,
    device: str,
) -> None:
    """Forecast a column of a CSV file, with intervals, and draw it.

    Each row has the value of --target at one --time, of one --group if there are groups. Missing values and rows are
    gaps. The trend and the season, if there are any, are fitted by least squares, and a small recurrent network learns
    the rest. First the last rows are forecast from the rows before them, and that forecast is scored. Rows at the end
    without a value of --target are those to forecast; the columns of --known need values there. DIR receives
    forecast.csv, forecast.png and the model (model.safetensors).

    \b
    gpurnn forecast sales.csv --time month --target sales
    gpurnn forecast load.csv --time hour --target kW --steps 48 --season 24,168
    gpurnn forecast shops.csv --time day --target sold --group shop --known price
    """
    table = read_table(file, encoding)
    table.column(target, "--target")
    columns: dict[str, list[str]] = {}
    for option, chosen in (("--known", known), ("--past", past), ("--static", static)):
        taken = [time_column, target, group, *(name for names in columns.values() for name in names)]
        columns[option[2:]] = columns_in(table, chosen, option, taken)
    if static is not None and group is None:
        raise Refusal("--static has one number for each series; give the column that parts them with --group")
    series, write = _read(table, time_column, target, group, columns, time_format)
    count = min(len(one.values) for one in series)
    if count < LEAST:
        which = f"the group {min(series, key=lambda one: len(one.values)).name} " if group else ""
        raise Refusal(f"{table.file}: {which}has {count} rows, expected at least {LEAST} to learn from")
    largest = max(abs(value) for one in series for value in one.values if not math.isnan(value))
    if largest > LARGEST:
        raise Refusal(f"{table.file}: column {target!r} holds {largest:g}, expected at most {LARGEST:g}; divide it")
    periods = [p for p in (season or _season(series)) if p > 1]
    if periods and 2 * max(periods) > count:
        raise Refusal(f"--season {max(periods):g}: expected at most {count // 2}, half of the {count} rows")
    if window is not None and window > count // 2:
        raise Refusal(f"--window {window}: expected at most {count // 2}, half of the {count} rows")
    longest = round(max(periods, default=1))
    ahead = min(len(one.ahead) for one in series)
    if columns["known"] and not ahead:
        raise Refusal(
            f"--known: {table.file} says no {', '.join(columns['known'])} of the rows to forecast; add them at its "
            f"end, without a value of {target}"
        )
    steps = steps or ahead or max(1, min(max(longest, count // 10), 50, count // 4))
    if columns["known"] and steps > ahead:
        raise Refusal(f"--steps {steps}: {', '.join(columns['known'])} are known for {ahead} rows to come")
    size = window or max(2, min(max(longest, 8), 24, count // 6))
    with refusing(ValueError):
        for one in series:
            one.ahead = _ahead(one, steps, write)
    out = out or Path(f"{'table' if file == STDIN else Path(file).stem}-forecast")
    with directory_of(out, "forecast", [MODEL, FILE, PICTURE], replace) as folder, computing_on(device) as xp:
        shape = _shape_of(series[:TRIED], periods, steps)
        rows = [len(one.values) for one in series]
        first, last = (write(times(one.times[i] for one in series)) for times, i in ((min, 0), (max, -1)))
        many = f"{len(series)} series of {min(rows)} to {max(rows)} rows" if group else f"{count} rows"
        say(f"{many}, {first} to {last}: {_in_words(shape)}")
        learner = _Learner(xp, shape, size, hidden, epochs, level, seed)
        say(learner.tried(series, min(steps, max(1, count // 6))))
        model = learner.fit(series, 0)
        found = learner.forecast(model, series, steps, quantiles)
        folder.details = {
            "command": "forecast", "time": time_column, "target": target, "group": group, **columns, "steps": steps,
            "level": level, "quantiles": quantiles, "window": size, "shape": asdict(shape),
        }  # fmt: skip
        for name in folder.names:  # a kill must not leave the files of two forecasts
            (out / name).unlink(missing_ok=True)
        with refusing(ValueError, OSError):
            folder.begin(anew=True)
        from .. import _files

        model.save(out / MODEL)
        _files.write_atomically(out / FILE, _csv(series, found, quantiles, (group, time_column, target), write))
        say(f"forecast    {out / FILE}")
        draw_forecasts(series, found, (time_column, target), out / PICTURE)


# --- the series ---


@dataclass
class Row:
    """The series of one group in order of time, without the rows at its end that have no target."""

    name: str
    times: list[Any]
    values: list[float]
    """NaN in gaps."""
    covariates: dict[str, Any]
    """Arrays by option: known (rows and rows to come, columns), past (rows, columns) and static (columns,)."""
    ahead: list[Any]
    """The times of the rows to come: at first those in the file, then those to forecast."""
    step: Any


def _read(
    table: Table, time_column: str, target: str, group: str | None, columns: dict[str, list[str]], form: str | None
) -> tuple[list[Row], Callable[[Any], str]]:
    """The series, and how their times are written."""
    import numpy as np

    from ..models.forecasting.times import EqualTimes, evenly_spaced

    table.column(time_column, "--time")
    when, write = read_times(table, time_column, form)
    values = np.asarray(table.numbers(target))
    for option in ("known", "static"):
        for name in columns[option]:
            table.reject_missing(name, f"every row needs its --{option}")
    covariates = {
        option: np.array([table.numbers(name) for name in names]).reshape(len(names), len(table)).T
        for option, names in columns.items()
    }
    groups = [("", list(range(len(table))))]
    if group is not None:
        found = groups_of(table, group, None, None)
        groups = list(zip(found.names, found.rows, strict=True))
    series, missing, gaps, uneven, disorder = [], 0, 0, [], False
    for name, members in groups:
        try:
            rows = evenly_spaced([when[row] for row in members])
        except EqualTimes as error:
            lines = [table.lines[members[row]] for row in error.rows]
            cure = "of each group" if group else "; --group names the column that separates several series"
            raise Refusal(
                f"{table.file}: lines {lines[0]} and {lines[1]} have the same {time_column}, "
                f"{table.columns[time_column][members[error.rows[0]]]}; a row for each time is expected{cure}"
            ) from error
        disorder |= rows.order != sorted(rows.order)
        uneven += [members[rows.uneven]] if rows.uneven is not None else []
        ordered = [members[row] for row in rows.order]
        whole = np.full(len(rows.times.values), np.nan)
        whole[rows.places] = values[ordered]
        there = np.flatnonzero(~np.isnan(whole))
        if not len(there):
            raise Refusal(f"{table.file}: column {target!r} has no values{f' for the group {name}' if name else ''}")
        start, stop = int(there[0]), int(there[-1]) + 1
        lacking = int(np.isnan(whole[start:stop]).sum())
        absent = (stop - start) - sum(start <= place < stop for place in rows.places)
        gaps, missing = gaps + absent, missing + lacking - absent
        # A missing row takes the known covariates of the row before it; its past covariates are NaN.
        before = np.searchsorted(rows.places, np.arange(start, len(whole)), side="right") - 1
        known = covariates["known"][ordered][before]
        past = np.full((len(whole), covariates["past"].shape[1]), np.nan)
        past[rows.places] = covariates["past"][ordered]
        static = covariates["static"][ordered[0]]
        other = np.argwhere(covariates["static"][ordered] != static)
        if len(other):
            row, column = ordered[int(other[0, 0])], columns["static"][int(other[0, 1])]
            texts = table.columns[column]
            raise Refusal(
                f"{table.place(row, column)}: {texts[row]!r}, but {texts[ordered[0]]!r} on line "
                f"{table.lines[ordered[0]]}; all rows of the group {name} must have the same value"
            )
        series.append(Row(
            name, rows.times.values[start:stop], whole[start:stop].tolist(),
            {"known": known, "past": past[start:stop], "static": static}, rows.times.values[stop:], rows.times.step,
        ))  # fmt: skip
    if disorder:
        say(f"the rows are put in the order of {time_column}")
    if uneven:
        warn(
            f"the rows are not at equal distances, first at line {table.lines[uneven[0]]}, {write(when[uneven[0]])}; "
            "they are treated as consecutive"
        )
    for number, one, many in ((missing, "value is", "values are"), (gaps, "row is", "rows are")):
        if number:
            say(f"{number} {one if number == 1 else many} missing, and left as a gap")
    return series, write


def _ahead(one: Row, steps: int, write: Callable[[Any], str]) -> list[Any]:
    """The times of the rows to forecast."""
    from ..models.forecasting.times import Times

    known = one.ahead[:steps]
    last = (known or one.times)[-1]
    try:
        return known + Times([last], one.step).following(steps - len(known))
    except ValueError as error:
        raise Refusal(
            f"the times after {write(last)} go beyond the year 9999; give fewer --steps, or correct the last time"
        ) from error


def _season(series: list[Row]) -> tuple[float, ...]:
    """The length of the season: the usual one for such times, or else the lag of the highest autocorrelation."""
    import numpy as np

    from ..models.forecasting.times import Times

    one = max(series, key=lambda one: len(one.values))
    least = min(len(one.values) for one in series)
    usual = Times(one.times, one.step).usual_season
    if usual is not None:
        return (usual,) if 4 * usual <= least else ()
    t, values = np.arange(len(one.values)), np.asarray(one.values)
    there = ~np.isnan(values)
    x = np.where(there, values - np.polyval(np.polyfit(t[there], values[there], 1), t), 0.0)
    if not x.any():
        return ()
    correlation = np.correlate(x, x, "full")[len(x) - 1 :] / (x @ x)
    lags = range(2, min(len(x) // 3, least // 2))
    peaks = [k for k in lags if correlation[k] > 0.3 and correlation[k - 1] < correlation[k] >= correlation[k + 1]]
    return (max(peaks, key=lambda k: float(correlation[k])),) if peaks else ()


# --- trend and season ---


def _shape_of(series: list[Row], periods: list[float], steps: int) -> Any:
    """The transforms that would have forecast the end of the series best, with a remainder that decays."""
    import numpy as np

    from ..models.forecasting.transforms import Transforms

    arrays = [np.asarray(one.values)[:, None] for one in series]
    positive = all(np.nanmin(x) > 0 for x in arrays)
    periods = [int(p) if p == int(p) else p for p in periods]
    shapes = [
        Transforms(log, trend, tuple(seasons), ())
        for log in ([False, True] if positive else [False])
        for trend in (False, True)
        for seasons in ([[], periods] if periods else [[]])
    ]
    errors = []
    for shape in shapes:
        total = []
        for x in arrays:
            ahead, size = max(1, min(steps, len(x) // 8)), np.nanstd(x) or 1.0
            for end in range(len(x) - ahead, max(len(x) // 2, shape.least + 4), -max(1, len(x) // 20)):
                past = shape.apply(x[:end], 1)
                left = past.values[:, 0]
                power = float(left @ left)
                fading = min(0.99, max(0.0, float(left[1:] @ left[:-1]) / power)) if power else 0.0
                guess = past.inverse((left[-1] * fading ** np.arange(1, ahead + 1))[:, None])
                came = x[end : end + ahead]
                if not np.isnan(came).all():
                    total.append(float(np.nanmean(np.abs(guess - came)) / size))
        errors.append(float(np.mean(total)) if total else math.inf)
    # The simplest shape comes first, so take the first that is about as good as the best. Errors far below the standard
    # deviation are roundings, which differ between processors.
    enough = max(1.02 * min(errors), 1e-6)
    return next(shape for shape, error in zip(shapes, errors, strict=True) if error <= enough)


def _in_words(shape: Any) -> str:
    seasons = " and ".join(f"{length:g}" for length in shape.season_length)
    parts = [*(["a trend"] if shape.trend else []), *([f"a season of {seasons}"] if seasons else [])]
    said = " and ".join(parts) or "no trend and no season"
    return f"{said}, in proportion to the values" if shape.log and parts else said


# --- the model ---


@dataclass
class _Learner:
    """Fits forecasters, all with the same options."""

    xp: Any
    shape: Any
    window: int
    hidden: int
    epochs: int | None
    level: float
    seed: int

    def fit(self, series: list[Row], aside: int) -> Any:
        """A forecaster fitted to the series without their last ``aside`` rows."""
        from ..models import Forecaster

        sizes = {f"{name}_features": values.shape[-1] for name, values in series[0].covariates.items()}
        model = Forecaster(
            self.window, self.hidden, log=self.shape.log, trend=self.shape.trend,
            season_length=self.shape.season_length or None, dropout=0.1, rng=self.seed, **sizes,
        ).to(self.xp)  # fmt: skip
        model.fit(
            self._given(series, aside), epochs=self.epochs, validation_split=0.1, patience=self.epochs, batch_size=64,
            optimizer="adamw", lr=0.005, rng=self.seed, **self._covariates(series, aside),
            **progress_of(lambda: model.trainer_.total, "verbose"),
        )  # fmt: skip
        say_how_training_ended(model.trainer_)
        return model

    def _given(self, series: list[Row], aside: int = 0) -> Any:
        import numpy as np

        values = [np.asarray(one.values[: len(one.values) - aside]) for one in series]
        return values[0] if len(values) == 1 else values

    def _covariates(self, series: list[Row], aside: int = 0) -> dict[str, Any]:
        given = {}
        for name, values in series[0].covariates.items():
            if values.shape[-1]:
                all_of = [one.covariates[name] for one in series]
                if name == "past":
                    all_of = [v[: len(v) - aside] for v in all_of]
                given[name] = all_of[0] if len(all_of) == 1 else all_of
        return given

    def forecast(self, model: Any, series: list[Row], steps: int, quantiles: tuple[float, ...]) -> list[Any]:
        """A forecast of each series, as NumPy arrays."""
        from .._dispatch import to_numpy
        from ..models import Forecast

        found = model.forecast(
            self._given(series), steps, level=self.level, quantiles=quantiles, rng=self.seed,
            **self._covariates(series),
        )  # fmt: skip

        def of_numpy(one: Forecast) -> Forecast:
            point, lower, upper = (to_numpy(part).astype(float) for part in (one.point, one.lower, one.upper))
            levels = {q: to_numpy(values).astype(float) for q, values in one.quantiles.items()}
            return Forecast(point, lower, upper, one.level, levels)

        return [of_numpy(one) for one in ([found] if len(series) == 1 else found)]

    def tried(self, series: list[Row], aside: int) -> str:
        """The score, in words, of a forecast of the last ``aside`` rows from the rows before them."""
        import numpy as np

        model = self.fit(series, aside)
        season = round(max(self.shape.season_length, default=1))
        tests = []
        for one in series:
            tests.append(model.backtest(
                self._given([one]), len(one.values) - aside, aside, level=self.level, rng=self.seed,
                season_length=season, baselines=["seasonal_naive"], **self._covariates([one]),
            ))  # fmt: skip
        simple = "repeating the last season" if season > 1 else "repeating the last value"
        errors = [
            (f"mean absolute {'scaled ' * (len(series) > 1)}error", [t.mase if len(series) > 1 else t.mae for t in of])
            for of in (tests, [t.baselines["seasonal_naive"] for t in tests])
        ]
        (what, own), (_, naive) = errors
        error, other = float(np.mean(own)), float(np.mean(naive))
        there = [int(np.isfinite(np.asarray(one.values[-aside:])).sum()) for one in series]
        inside = sum(round(t.coverage * n) for t, n in zip(tests, there, strict=True) if n)
        of_each = f" of each of {len(series)} series" if len(series) > 1 else ""
        return (
            f"tried on the last {aside} rows{of_each}, which it had not seen: {what} {error:.4g}, "
            f"{'better' if error < other else 'no better'} than {simple} ({other:.4g}); {inside} of {sum(there)} "
            f"values in the {100 * self.level:g}% interval"
        )


def _csv(
    series: list[Row],
    found: list[Any],
    quantiles: tuple[float, ...],
    names: tuple[str | None, str, str],
    write: Callable[[Any], str],
) -> bytes:
    """The forecasts as a table; ``names`` are the columns of group, time and target."""
    group, time, target = names
    header = [*([group] if group else []), time, target, f"{target}_lower", f"{target}_upper"]
    header += [f"{target}_q{q:g}" for q in quantiles]
    rows = []
    for one, ahead in zip(series, found, strict=True):
        numbers = (ahead.point, ahead.lower, ahead.upper, *ahead.quantiles.values())
        for i, when in enumerate(one.ahead):
            rows.append([*([one.name] if group else []), write(when), *(str(values[i]) for values in numbers)])
    return csv_bytes(header, rows)
