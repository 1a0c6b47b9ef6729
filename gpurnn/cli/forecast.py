"""``gpurnn forecast``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from .options import PathType, computing_on, device_option, encoding_option, integer
from .tables import MODEL, Table, Times, csv_bytes, directory_of, read_table, read_times, step_of
from .terminal import Refusal, progress_of, quiet_option, refusing, say, warn
from .texts import STDIN

FILE, PICTURE = "forecast.csv", "forecast.png"
_MOST_FILLED = 20
"""With --fill a series may become this many times as long; a gap beyond that is a wrong time."""

LARGEST = 1e37
"""The network computes in float32, which holds little more than this."""

LEAST = 20
"""A series shorter than this has nothing to learn from."""


@click.command(short_help="Forecast a column of a CSV file, with intervals.", context_settings={"show_default": True})
@click.argument("file", type=PathType(allow_dash=True), metavar="DATA.csv")
@click.option("--time", "time_column", required=True, metavar="COLUMN", help="When each row is: numbers, or dates.")
@click.option("--target", required=True, metavar="COLUMN", help="What is to be forecast: numbers.")
@integer("--steps", None, "How many rows to forecast.  [default: a tenth of the rows, at most 50]")
@click.option("--level", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.9, metavar="X",
              help="The probability that a value is to lie in its interval.")  # fmt: skip
@integer("--season", None, "Rows in a season, such as 12 for months; 1 for none.  [default: found in the data]")
@integer("--window", None, "How many past rows a forecast depends on.  [default: by the season]")
@integer("--hidden", 16, "Width of the recurrent layer.")
@integer("--updates", 800, "Updates of the training.")
@click.option("--fill", is_flag=True, help="Fill missing values and rows from the values on both sides.")
@click.option("--time-format", metavar="FORM", help="How dates are written, as strptime takes it: %d.%m.%Y.")
@click.option("--out", type=PathType(path_type=Path), metavar="DIR", show_default=False,
              help="Where everything goes.  [default: DATA-forecast]")  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace an earlier forecast in DIR.")
@integer("--seed", 0, "Seeds parameters, training and intervals.", least=0)
@encoding_option
@device_option
@quiet_option
def forecast(
    file: str,
    time_column: str,
    target: str,
    steps: int | None,
    level: float,
    season: int | None,
    window: int | None,
    hidden: int,
    updates: int,
    fill: bool,
    time_format: str | None,
    out: Path | None,
    replace: bool,
    seed: int,
    encoding: str | None,
    device: str,
) -> None:
    """Forecast a column of a CSV file, with intervals, and draw it.

    Each row is a time: one value of --target at one --time, all at equal distances. The trend and the season, if there
    are any, are fitted by least squares, and a small recurrent network learns what they leave. The last rows are first
    kept aside to say how good such a forecast is. DIR receives forecast.csv, forecast.png and the network
    (model.safetensors).

    \b
    gpurnn forecast sales.csv --time month --target sales
    gpurnn forecast load.csv --time hour --target kW --steps 48 --season 24
    """
    table = read_table(file, encoding)
    times, values = _series(table, time_column, target, time_format, fill)
    count = len(values)
    if count < LEAST:
        raise Refusal(f"{table.file}: has {count} rows, expected at least {LEAST} to learn from")
    largest = max(map(abs, values))
    if largest > LARGEST:
        raise Refusal(f"{table.file}: column {target!r} holds {largest:g}, expected at most {LARGEST:g}; divide it")
    period = season if season is not None else _season(times, values)
    if period > count // 2:
        raise Refusal(f"--season {period}: expected at most {count // 2}, half of the {count} rows")
    steps = steps or max(1, min(max(period, count // 10), 50, count // 4))
    if window is not None and window > count // 2:
        raise Refusal(f"--window {window}: expected at most {count // 2}, half of the {count} rows")
    size = window or max(2, min(max(period, 8), 24, count // 6))
    ahead = times.following(steps)
    out = out or Path(f"{'table' if file == STDIN else Path(file).stem}-forecast")
    with directory_of(out, "forecast", [MODEL, FILE, PICTURE], replace) as folder, computing_on(device) as xp:
        shape = _shape_of(values, period, steps)
        say(f"{count} rows, {times.write(times.values[0])} to {times.write(times.values[-1])}: {shape.in_words()}")
        found, model, tried = _learnt(_Learner(xp, shape, size, hidden, updates, level, seed), values, steps)
        folder.details = {
            "command": "forecast", "time": time_column, "target": target, "steps": steps, "level": level,
            "window": size, "shape": asdict(shape),
        }  # fmt: skip
        for name in folder.names:  # a kill must not leave what belongs to two forecasts
            (out / name).unlink(missing_ok=True)
        with refusing(ValueError, OSError):
            folder.begin(anew=True)
        from .. import _files

        model.save(out / MODEL)
        header = [time_column, target, f"{target}_lower", f"{target}_upper"]
        rows = [
            [times.write(when), *(f"{value:.6g}" for value in row)]
            for when, row in zip(ahead, zip(*found, strict=True), strict=True)
        ]
        _files.write_atomically(out / FILE, csv_bytes(header, rows))
        say(tried.in_words(level))
        say(f"forecast    {out / FILE}")
        _draw(times, values, ahead, found, level, (time_column, target), out / PICTURE)


# --- the series ---


def _series(table: Table, time_column: str, target: str, form: str | None, fill: bool) -> tuple[Times, list[float]]:
    """The times and the values, in the order of the times, without gaps."""
    table.column(time_column, "--time")
    table.column(target, "--target")
    when, write = read_times(table, time_column, form)
    if not fill:
        table.reject_missing(target, "fill them in, or add --fill")
    values = table.numbers(target)
    order = sorted(range(len(table)), key=when.__getitem__)
    if order != list(range(len(table))):
        say(f"the rows are put in the order of {time_column}")
    for earlier, later in pairwise(order):
        if when[earlier] == when[later]:
            lines = sorted((table.lines[earlier], table.lines[later]))
            raise Refusal(
                f"{table.file}: lines {lines[0]} and {lines[1]} have the same {time_column}, "
                f"{table.columns[time_column][earlier]}; a file of one series is expected, a row for each time"
            )
    when, values = [when[row] for row in order], [values[row] for row in order]
    if len(when) < 2:
        return Times(when, 1, write), values
    step = step_of(when)
    times = Times(when[:1], step, write)
    whole: list[float] = values[:1]
    gaps = []
    for row in range(1, len(when)):
        lacking = _rows_between(times, when[row])
        if fill and len(times.values) + lacking > _MOST_FILLED * len(when):
            place, text = table.place(order[row], time_column), table.columns[time_column][order[row]]
            raise Refusal(f"{place}: {text!r} would have --fill add {lacking:,} rows before it; is that time right?")
        if lacking and fill:
            times.values += times.following(lacking)
            whole += [math.nan] * lacking
        if lacking:
            gaps.append(row)
        times.values.append(when[row])
        whole.append(values[row])
    if gaps and not fill:
        first = f"line {table.lines[order[gaps[0]]]}, {write(when[gaps[0]])}"
        warn(
            f"the rows are not at equal distances, first at {first} ({len(gaps)} in all); they are taken for one after "
            "another; --fill adds what is missing"
        )
    filled = _filled(whole)
    lacked = sum(map(math.isnan, whole))
    if lacked:
        say(f"{lacked} missing values are filled on the straight line between their neighbours")
    elif fill:
        warn("--fill has no effect, as nothing is missing")
    return times, filled


def _rows_between(times: Times, later: Any) -> int:
    """How many rows at equal distances are missing before the next time; 0 where it is no multiple of the step."""
    last = times.values[-1]
    if times.step == "weekday":
        import numpy as np

        return int(np.busday_count((last + timedelta(days=1)).date(), later.date()))
    if isinstance(times.step, int):
        months = (later.year - last.year) * 12 + later.month - last.month
        return max(0, -(-months // times.step) - 1)
    distance = later - last
    ratio = distance / times.step
    return max(0, round(float(ratio)) - 1)


def _filled(values: list[float]) -> list[float]:
    import numpy as np

    known = [i for i, value in enumerate(values) if not math.isnan(value)]
    if not known:
        raise Refusal("the target has no values at all")
    filled: list[float] = np.interp(range(len(values)), known, [values[i] for i in known]).tolist()
    return filled


def _season(times: Times, values: list[float]) -> int:
    """The length of the season: what is usual at such times, or the lag of the highest autocorrelation; 1 for none."""
    import numpy as np

    if times.season is not None:
        return times.season if 2 * times.season <= len(values) // 2 else 1
    x = np.asarray(values) - np.polyval(np.polyfit(range(len(values)), values, 1), range(len(values)))
    if not x.any():
        return 1
    correlation = np.correlate(x, x, "full")[len(x) - 1 :] / (x @ x)
    lags = range(2, len(x) // 3)
    peaks = [k for k in lags if correlation[k] > 0.3 and correlation[k - 1] < correlation[k] >= correlation[k + 1]]
    found: int = max(peaks, key=lambda k: float(correlation[k]), default=1)
    return found


# --- trend and season ---


@dataclass
class _Shape:
    """What of a series is fitted by least squares: its trend and its season, of the values or of their logarithms."""

    log: bool
    trend: bool
    season: int

    def fitted(self, values: Any, length: int) -> Any:
        """What the values say of ``length`` steps from the first on."""
        import numpy as np

        def columns(steps: int) -> Any:
            t = np.arange(steps)
            rows = [np.ones(steps), *([t / len(values)] if self.trend else [])]
            rows += [(t % self.season == k) * 1.0 for k in range(1, self.season)]
            return np.stack(rows, axis=1)

        coefficients = np.linalg.lstsq(columns(len(values)), values, rcond=None)[0]
        return columns(length) @ coefficients

    def of_values(self, values: Any) -> Any:
        import numpy as np

        return np.log(values) if self.log else np.asarray(values, float)

    def to_values(self, values: Any) -> Any:
        import numpy as np

        with np.errstate(over="ignore"):
            return np.exp(values) if self.log else values

    def in_words(self) -> str:
        parts = [*(["a trend"] if self.trend else []), *([f"a season of {self.season}"] if self.season > 1 else [])]
        said = " and ".join(parts) or "no trend and no season"
        return f"{said}, in proportion to the values" if self.log and parts else said


def _shape_of(values: list[float], period: int, steps: int) -> _Shape:
    """The shape that would have forecast the end of the series best, with what it leaves fading away."""
    import numpy as np

    x = np.asarray(values)
    shapes = [
        _Shape(log, trend, season)
        for log in ([False, True] if x.min() > 0 else [False])
        for trend in (False, True)
        for season in sorted({1, period})
    ]
    errors = []
    for shape in shapes:
        total = []
        ahead = max(1, min(steps, len(x) // 8))
        for end in range(len(x) - ahead, max(len(x) // 2, 2 * shape.season + 4), -max(1, len(x) // 20)):
            y = shape.of_values(x[:end])
            fitted = shape.fitted(y, end + ahead)
            left = y - fitted[:end]
            power = float(left @ left)
            fading = min(0.99, max(0.0, float(left[1:] @ left[:-1]) / power)) if power else 0.0
            guess = shape.to_values(fitted[end:] + left[-1] * fading ** np.arange(1, ahead + 1))
            total.append(np.abs(guess - x[end : end + ahead]).mean())
        errors.append(float(np.mean(total)) if total else math.inf)
    # Of shapes that are about as good, the simplest: it comes first.
    best = min(errors)
    return next(shape for shape, error in zip(shapes, errors, strict=True) if error <= 1.02 * best)


# --- the network ---


@dataclass
class _Learner:
    """Fits the shape of a series and a network of what it leaves."""

    xp: Any
    shape: _Shape
    window: int
    hidden: int
    updates: int
    level: float
    seed: int

    def left(self, values: Any, known: int) -> Any:
        """What the shape of the first ``known`` values leaves of all."""
        import numpy as np

        y = self.shape.of_values(values)
        return self.xp.asarray((y - self.shape.fitted(y[:known], len(y))).astype(np.float32))

    def fit(self, left: Any, later: Any = None) -> tuple[Any, int]:
        """The network, and the number of updates after which it forecast ``later`` values best."""
        from .. import optimizers, schedules
        from ..models import Forecaster

        rate = schedules.CosineWithWarmup(0.005, self.updates, min(20, self.updates - 1))
        held_out = {} if later is None else {"validation": later, "validation_interval": 20, "patience": 8}
        model = Forecaster(self.window, self.hidden, cell="gru", dropout=0.1, rng=self.seed).to(self.xp)
        model.fit(
            left, steps=self.updates, batch_size=64, optimizer=optimizers.AdamW(0.005, weight_decay=0.01),
            schedule=rate, rng=self.seed, **held_out, **progress_of(lambda: self.updates, "verbose"),
        )  # fmt: skip
        losses = {r["step"]: r["validation_loss"] for r in model.trainer_.history if "validation_loss" in r}
        return model, min(losses, key=lambda step: losses[step], default=self.updates)

    def misses(self, model: Any, left: Any, start: int, stop: int) -> list[float]:
        """By how many of its half intervals the network misses the values from ``start`` on, from several origins."""
        import numpy as np

        from .._dispatch import to_numpy

        ahead = stop - start
        test = model.backtest(
            left[:stop], start, horizon=max(1, ahead // 2), stride=max(1, ahead // 8), level=self.level, rng=self.seed
        )
        point, lower, upper, actual = map(to_numpy, (test.point, test.lower, test.upper, test.actual))
        half = np.where(actual < point, point - lower, upper - point)
        missed: list[float] = (np.abs(actual - point) / np.maximum(half, 1e-12)).ravel().tolist()
        return missed

    def forecast(self, model: Any, values: Any, steps: int, misses: list[float]) -> Any:
        """The point forecast and the ends of its intervals, which are as wide as the ``misses`` ask for."""
        import numpy as np

        from .._dispatch import to_numpy

        factor = float(np.clip(np.quantile(misses, self.level), 0.8, 5.0)) if misses else 1.0
        y = self.shape.of_values(values)
        fitted = self.shape.fitted(y, len(y) + steps)[len(y) :]
        found = model.forecast(self.left(values, len(y)), steps, level=self.level, rng=self.seed)
        point, lower, upper = (to_numpy(part).astype(float) for part in (found.point, found.lower, found.upper))
        ends = (point, point + factor * (lower - point), point + factor * (upper - point))
        return [self.shape.to_values(end + fitted) for end in ends]


@dataclass
class _Tried:
    """How a forecast of the last rows from those before them fared."""

    rows: int
    error: float
    naive: float
    simple: str
    inside: int

    def in_words(self, level: float) -> str:
        better = "better" if self.error < self.naive else "no better"
        return (
            f"tried on the last {self.rows} rows, which it had not seen: mean absolute error {self.error:.4g}, "
            f"{better} than {self.simple} ({self.naive:.4g}); {self.inside} of {self.rows} values in the "
            f"{100 * level:g}% interval"
        )


def _learnt(learner: _Learner, values: list[float], steps: int) -> tuple[Any, Any, _Tried]:
    """The forecast and its network, and how one of the last rows fared.

    Of the last rows two parts are kept aside. The first says when to stop learning and how wide intervals must be; a
    forecast of the second, from all before it, is compared with what came; the last network learns from all rows.
    """
    import numpy as np

    x = np.asarray(values)
    n = len(x)
    aside = max(1, min(steps, n // 6))
    first, second = n - 2 * aside, n - aside
    left = learner.left(x, first)
    before = max(0, first - learner.window)
    model, learner.updates = learner.fit(left[:first], left[before:second])
    misses = learner.misses(model, left, first, second)
    model, _ = learner.fit(learner.left(x[:second], second))
    point, lower, upper = learner.forecast(model, x[:second], aside, misses)
    came = x[second:]
    season = learner.shape.season
    naive = np.resize(x[second - season : second], aside)
    tried = _Tried(
        aside, float(np.abs(point - came).mean()), float(np.abs(naive - came).mean()),
        "repeating the last season" if season > 1 else "repeating the last value",
        int(((lower <= came) & (came <= upper)).sum()),
    )  # fmt: skip
    misses += learner.misses(model, learner.left(x, second), second, n)
    model, _ = learner.fit(learner.left(x, n))
    return learner.forecast(model, x, steps, misses), model, tried


def _draw(
    times: Times, values: list[float], ahead: list[Any], found: Any, level: float, names: tuple[str, str], path: Path
) -> None:
    """Draw the end of the series and the forecast; ``names`` are those of the columns of times and values."""
    try:
        import numpy as np

        from .. import plots
        from ..models import Forecast

        shown = min(len(values), max(60, 3 * len(ahead)))
        figure = plots.forecast(
            np.asarray(values[-shown:]), Forecast(found[0], found[1], found[2], level=level), names=[names[1]],
            times=[*times.values[-shown:], *ahead],
        )  # fmt: skip
        figure.axes[-1].set_xlabel(names[0], parse_math=False)
        figure.axes[0].yaxis.label.set_parse_math(False)
        plots.written("forecast", figure, path)
        say(f"picture     {path}")
    except ImportError:
        say("picture     none: matplotlib is not installed; pip install matplotlib")
