"""Convert callers' series to arrays for the forecaster, and its answers to the form of the caller's series."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any

import numpy as np

from ... import _arrays, _checks, _dispatch
from .. import examples
from .tables import (
    Back,
    follower,
    is_of_times,
    is_pandas,
    is_polars,
    pandas_index,
    pandas_like,
    read_times,
    rows_by,
    says_when,
    shown,
    taken,
)
from .times import EqualTimes, Rows, Times, evenly_spaced
from .transforms import Values

Answer = Callable[[Values, np.dtype[Any]], Any]
"""Converts forecasts (steps, features) of a series with values of this dtype to the caller's form."""

Label = Callable[[int], str]
"""The name of a step or a row, in the caller's terms."""


@dataclass(frozen=True)
class Sizes:
    """The numbers of values: of a time step, forecast, known in the future and only in the past; and of a series."""

    features: int
    known: int = 0
    past: int = 0
    static: int = 0


@dataclass(frozen=True)
class Columns:
    """The roles of the columns of tables.

    Attributes
    ----------
    target : tuple of str, optional
        The values to forecast; None: all columns that have no other role.
    time, group : str, optional
        The time of each row, and its series.
    known, past, static : tuple of str
        Covariates that are known in the future, in the past only, and one value for each series.
    """

    target: tuple[str, ...] | None = None
    time: str | None = None
    group: str | None = None
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()

    def saved(self) -> dict[str, Any]:
        """A JSON-compatible copy."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items() if v}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> Columns:
        """The reverse of `saved`."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
        return cls(**values)


@dataclass(frozen=True)
class Series:
    """One series.

    Attributes
    ----------
    name : str
        Its name in messages.
    values : (T, features + past) array
        NaN in gaps.
    known : (T + ahead, known) array
        The covariates, which are known for ``ahead`` steps more.
    static : (static,) array
    label : callable
        The name of a step, in the caller's terms.
    is_flat : bool
        Whether a step is a single value, not a row of values.
    dtype : dtype
        That of the caller's values.
    times : list, optional
        The times of the steps, in the caller's form.
    """

    name: str
    values: Values
    known: Values
    static: Values
    label: Label
    is_flat: bool
    dtype: np.dtype[Any]
    times: list[Any] | None = None

    def step_at(self, time: Any) -> int:
        """The first step at a time or after it; TypeError or ValueError if it is not a time."""
        assert self.times is not None
        first = self.times[0]
        if isinstance(time, str) and not isinstance(first, str):
            where = {"freq": first.freq} if hasattr(first, "freq") else {"tz": first.tz} if hasattr(first, "tz") else {}
            time = type(first)(time, **where) if where else type(first).fromisoformat(time)
        return bisect_left(self.times, time)


@dataclass(frozen=True)
class Collection:
    """The caller's series, and the function that combines the answers to all of them."""

    series: list[Series]
    join: Callable[[list[Values]], Any]
    """Converts the forecasts of each series to the caller's form."""
    is_single: bool
    groups: list[Any] | None = None


@dataclass(frozen=True)
class Reader:
    """Reads the arguments of a caller of ``where`` as series of these sizes."""

    where: str
    sizes: Sizes
    columns: Columns
    array: Answer
    """Converts a NumPy array to the model's library, in a dtype that holds the series' digits."""

    def read(self, name: str, data: Any, known: Any = None, past: Any = None, static: Any = None) -> Collection:
        """One series or several, with their covariates.

        Raises
        ------
        TypeError, ValueError
            The data are not such series.
        """
        _checks.given(self.where, **{name: data})
        if getattr(getattr(data, "index", None), "nlevels", 1) > 1:
            raise TypeError(
                f"{self.where}: {name} has an index of several levels, expected one level; pass {name}.reset_index(), "
                "and name the column that separates several series with group=... and the times with time=..."
            )
        if getattr(data, "shape", None) == ():
            raise TypeError(f"{self.where}: {name} is {_checks.described(data)}, expected a series, or several")
        if examples.is_table(data):
            for other, value in (("past", past), ("static", static)):
                if value is not None:
                    raise TypeError(
                        f"{self.where}: {other} is given, expected None: {name} is a table, whose columns fit was given"
                    )
            return self._table(name, data, known)
        for option in ("group", "time"):
            if getattr(self.columns, option) is not None and self.where.endswith("fit"):
                raise TypeError(
                    f"{self.where}: {option} is {getattr(self.columns, option)!r}, which is for tables, but {name} is "
                    f"{_checks.described(data)}"
                )
        covariates = {"known": known, "past": past, "static": static}
        if self._is_single(data):
            return self._one(name, data, covariates)
        entries = self._entries(name, data)
        of_each: list[dict[str, Any]] = [{} for _ in entries]
        for other, value in covariates.items():
            each = [None] * len(entries)
            if value is not None:
                each = _arrays.entries(self.where, other, value, "an entry for each series")
                if len(each) != len(entries):
                    raise ValueError(f"{self.where}: {other} has {len(each)} entries, expected {len(entries)}")
            for of_one, part in zip(of_each, each, strict=True):
                of_one[other] = part
        parts = [
            self._table(f"{name}[{i}]", entry, of_each[i]["known"])
            if examples.is_table(entry)
            else self._one(f"{name}[{i}]", entry, of_each[i], f"[{i}]")
            for i, entry in enumerate(entries)
        ]
        if self.columns.group is not None and not all(part.is_single for part in parts):
            raise TypeError(
                f"{self.where}: {name} is a sequence of tables with the group column {self.columns.group!r}, expected "
                "one such table"
            )

        def join(values: list[Values]) -> list[Any]:
            return [part.join([found]) for part, found in zip(parts, values, strict=True)]

        return Collection([part.series[0] for part in parts], join, False)

    # --- arrays, lists and series ---

    def _is_single(self, data: Any) -> bool:
        """Whether this is one series, not several."""
        features = self.sizes.features
        if isinstance(data, (list, tuple)):
            if not data:
                return False
            if features == 1 and all(_is_number(v) for v in data):
                return True
            return all(isinstance(row, (list, tuple)) and all(_is_number(v) for v in row) for row in data) and (
                features > 1 or all(len(row) == 1 for row in data)
            )
        if _dispatch.library_of(data) is None and not hasattr(data, "to_numpy") and not hasattr(data, "__dlpack__"):
            return isinstance(data, np.ma.MaskedArray)
        if str(getattr(data, "dtype", "")) == "object" and any(np.ndim(v) for v in data):
            return False
        ndim = getattr(data, "ndim", 1)
        return ndim == 1 or (ndim == 2 and (features > 1 or tuple(data.shape)[1] == 1))

    def _entries(self, name: str, data: Any) -> list[Any]:
        """The series of an array (N, T) or (N, T, features), or of a sequence."""
        if hasattr(data, "__dlpack__"):
            data = examples.array_of(self.where, name, data)
        shape = tuple(getattr(data, "shape", ()))
        if len(shape) > 1:
            wanted = 2 if self.sizes.features == 1 else 3
            if len(shape) not in (2, 3) or (len(shape) == 2 and wanted == 3):
                raise ValueError(
                    f"{self.where}: {name} has shape {shape}, expected (T,), (T, features), (N, T) or (N, T, features)"
                )
            if len(shape) == 2 and shape[0] > shape[1]:
                raise ValueError(
                    f"{self.where}: {name} has shape {shape}, which may be one series of {shape[1]} features or "
                    f"{shape[0]} series; make the model with features={shape[1]} for the first, pass list({name}) for "
                    "the second"
                )
        entries = _arrays.entries(self.where, name, data, "an array or several")
        if not entries:
            raise ValueError(f"{self.where}: {name} is empty, expected at least one series")
        return entries

    def _one(self, name: str, data: Any, covariates: dict[str, Any], place: str = "") -> Collection:
        """A series from an array, a list, a pandas or polars series or a tensor."""
        if data is None:
            raise TypeError(f"{self.where}: {name} is None, expected an array")
        array = self._array_of(name, data)
        values, dtype = self._numbers(name, array), examples.dtype_of(array)
        flat = values.ndim == 1
        if values.ndim not in (1, 2):
            raise ValueError(f"{self.where}: {name} has shape {values.shape}, expected 2 axes (T, features)")
        values = values[:, None] if flat else values
        if values.shape[1] != self.sizes.features:
            raise ValueError(
                f"{self.where}: {name} has shape {values.shape if not flat else values.shape[:1]}, expected "
                f"(T, features) = {(len(values), self.sizes.features)}"
            )
        index = data.index if is_pandas(data) else None
        label = _labelled("step", None) if index is None else _labelled("index", list(index))
        self._reject_infinity(name, values, label)
        past = self._covariate(f"past{place}", covariates["past"], self.sizes.past, len(values), exact=True)
        self._reject_infinity("past", past, label)
        known = self._covariate(f"known{place}", covariates["known"], self.sizes.known, len(values))
        static = self._static(f"static{place}", covariates["static"])
        values = np.concatenate([values, past], axis=1)
        rows, back = self._spaced(name, index if index is not None and says_when(index) else None, label)
        times = None
        if rows is not None:
            times = back(rows.times.values)
            label = _labelled("index", times)
            values, known = _with_gaps(values, rows), _placed(known, rows.order, rows.places, len(times))
        following = follower(self.where, rows.times if rows else None, back, len(values))

        def join(found: list[Values]) -> Any:
            if is_pandas(data):
                return pandas_like(data, found[0], pandas_index(index, following(len(found[0]))))
            if is_polars(data):
                return type(data)(data.name, found[0][:, 0])
            return self.array(found[0][:, 0] if flat else found[0], dtype)

        return Collection([Series(name, values, known, static, label, flat, dtype, times)], join, True)

    def _array_of(self, name: str, data: Any) -> Any:
        """An array of any dtype; float64 with NaN for masked numbers."""
        if isinstance(data, np.ma.MaskedArray):
            data = np.where(np.ma.getmaskarray(data), np.nan, np.asarray(data.filled(0), np.float64))
        if isinstance(data, (list, tuple)) and any(isinstance(row, (list, tuple)) for row in data):
            for i, row in enumerate(data):
                if not isinstance(row, (list, tuple)) or len(row) != self.sizes.features:
                    size = len(row) if isinstance(row, (list, tuple)) else 1
                    raise ValueError(
                        f"{self.where}: {name}[{i}] has {size} entries, expected features = {self.sizes.features}"
                    )
        return examples.array_of(self.where, name, data)

    def _numbers(self, name: str, data: Any) -> Values:
        """Numbers as float64, NaN for masked or missing ones."""
        array = examples.numbers(self.where, name, self._array_of(name, data), np.dtype(np.float64))
        return _dispatch.to_numpy(array)

    def _reject_infinity(
        self, name: str, values: Values, label: Label, columns: Sequence[Any] | None = None,
        gaps: bool = True,
    ) -> None:  # fmt: skip
        bad = ~np.isfinite(values) if not gaps else np.isinf(values)
        if not bad.any():
            return
        step, feature = (int(i) for i in np.argwhere(bad)[0])
        of = f"[{columns[feature]!r}]" if columns else f" in feature {feature}" if values.shape[1] > 1 else ""
        what = "NaN" if np.isnan(values[step, feature]) else "infinity"
        expected = "finite numbers, or NaN for a gap" if gaps else "finite numbers"
        bracket, rest = (of, "") if columns else ("", of)
        raise ValueError(f"{self.where}: {name}{bracket} holds {what} at {label(step)}{rest}, expected {expected}")

    def _covariate(self, name: str, value: Any, size: int, length: int, *, exact: bool = False) -> Values:
        """Covariates of each step, (length, size), or more steps than ``length`` unless ``exact``."""
        option = name.partition("[")[0]
        if value is None:
            if size:
                raise TypeError(f"{self.where}: {option} is None, expected the model's {size} {option} features")
            return np.zeros((length, 0))
        if not size:
            raise TypeError(
                f"{self.where}: {option} is given, but the model has no {option} features; make it with "
                f"{option}_features=..."
            )
        if examples.is_table(value):
            values = np.stack([self._numbers(f"{name}[{c!r}]", value[c]) for c in value.columns], axis=1)
        else:
            values = _dispatch.to_numpy(examples.numbers(self.where, name, value, np.dtype(np.float64)))
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] != size or len(values) < length or (exact and len(values) != length):
            steps = f"{length}" if exact else f"at least {length}"
            raise ValueError(
                f"{self.where}: {name} has shape {values.shape}, expected {steps} steps of {size} {option} features"
            )
        if not exact:
            self._reject_infinity(name, values, lambda i: f"step {i}", gaps=False)
        return values

    def _static(self, name: str, value: Any) -> Values:
        size = self.sizes.static
        if value is None:
            if size:
                raise TypeError(f"{self.where}: static is None, expected the model's {size} static features")
            return np.zeros(0)
        if not size:
            raise TypeError(
                f"{self.where}: static is given, but the model has no static features; make it with static_features=..."
            )
        values = _dispatch.to_numpy(examples.numbers(self.where, name, value, np.dtype(np.float64))).reshape(-1)
        _checks.shape(self.where, name, values, (size,), "(static_features,)")
        self._reject_infinity(name, values[:, None], lambda i: f"feature {i}", gaps=False)
        return values

    # --- tables ---

    def _table(self, name: str, table: Any, known: Any) -> Collection:
        """One series from a table with a column for each feature, or several, separated by its group column."""
        columns = self._columns(name, table)
        assert columns.target is not None
        group = columns.group
        index = table.index if is_pandas(table) else None
        labels = None if index is None else list(index)
        label = _labelled("row", None) if labels is None else _labelled("index", labels)
        values = self._matrix(name, table, (*columns.target, *columns.past))
        self._reject_infinity(name, values, label, (*columns.target, *columns.past))
        known_here = self._matrix(name, table, columns.known)
        self._reject_infinity(name, known_here, label, columns.known, gaps=False)
        static = self._matrix(name, table, columns.static)
        self._reject_infinity(name, static, label, columns.static, gaps=False)
        when = None
        if columns.time is not None:
            when = table[columns.time]
        elif index is not None and (says_when(index) if group is None else is_of_times(index)):
            when = index
        rows_of = rows_by(self.where, name, table, group)
        if not rows_of or not len(values):
            raise ValueError(f"{self.where}: {name} has no rows, expected at least one series")
        ahead = self._ahead(known, columns)
        series, following = [], []
        for key, rows in rows_of.items():
            title = name if group is None else f"{name} of {group} {key!r}"
            own = rows.tolist() if labels is None else [labels[row] for row in rows]
            label = _labelled("row" if labels is None else "index", own)
            of_rows, covered, one_static = values[rows], known_here[rows], static[rows[0]]
            if not (static[rows] == one_static).all():
                row, column = (int(i) for i in np.argwhere(static[rows] != one_static)[0])
                raise ValueError(
                    f"{self.where}: {title}[{columns.static[column]!r}] is {static[rows[row], column]:g} at "
                    f"{label(row)} and {one_static[column]:g} before, expected one value for each series"
                )
            spaced, back = self._spaced(title, taken(when, rows), label)
            times = None
            if spaced is not None:
                times = back(spaced.times.values)
                label = _labelled("time" if columns.time else "index", times)
                of_rows, covered = (
                    _with_gaps(of_rows, spaced), _placed(covered, spaced.order, spaced.places, len(times))
                )  # fmt: skip
            if ahead is not None:
                covered = np.concatenate([covered, ahead(key, spaced.times if spaced else None)])
            following.append(follower(self.where, spaced.times if spaced else None, back, len(of_rows)))
            is_flat = self.sizes.features == 1
            series.append(Series(title, of_rows, covered, one_static, label, is_flat, of_rows.dtype, times))
        keys = None if group is None else list(rows_of)
        return Collection(series, self._joiner(table, columns, keys, following, when is not None), keys is None, keys)

    def _columns(self, name: str, table: Any) -> Columns:
        """The columns of a table, including the target's; reject a table or sizes that they do not fit."""
        there, columns = tuple(table.columns), self.columns
        if len(set(there)) < len(there):
            raise ValueError(f"{self.where}: {name} has two columns of one name, expected names that differ")
        sizes = {"known": self.sizes.known, "past": self.sizes.past, "static": self.sizes.static}
        for option, size in sizes.items():
            named = getattr(columns, option)
            if len(named) != size:
                raise ValueError(
                    f"{self.where}: {option} names {len(named)} columns, expected {size}: the model was made with "
                    f"{option}_features={size}"
                )
        other = {columns.time, columns.group, *columns.known, *columns.past, *columns.static}
        if columns.target is None:
            columns = replace(columns, target=tuple(c for c in there if c not in other))
        for column in (*(columns.target or ()), *other):
            if column is not None and column not in there:
                raise ValueError(
                    f"{self.where}: {name} has no column {column!r}, expected one of {', '.join(map(str, there))}"
                )
        if len(columns.target or ()) != self.sizes.features:
            raise ValueError(
                f"{self.where}: {name} has the columns {', '.join(map(str, columns.target or ())) or 'none'} to "
                f"forecast, expected {self.sizes.features}; name them with target=..., or make the model with "
                f"features={len(columns.target or ())}"
            )
        return columns

    def _matrix(self, name: str, table: Any, columns: Sequence[Any]) -> Values:
        """(rows, columns) of a table."""
        if not columns:
            return np.zeros((len(table), 0))
        return np.stack([self._numbers(f"{name}[{c!r}]", table[c]) for c in columns], axis=1)

    def _ahead(self, known: Any, columns: Columns) -> Callable[[Any, Times | None], Values] | None:
        """The known covariates of the rows that follow each series: from its group and times."""
        if known is None:
            return None
        if not columns.known:
            raise TypeError(f"{self.where}: known is given, but the model has no known features")
        if not examples.is_table(known):
            raise TypeError(
                f"{self.where}: known is {_checks.described(known)}, expected a table of the rows to come, with the "
                f"columns {', '.join(map(str, columns.known))}"
            )
        needed = (*columns.known, *([columns.group] if columns.group else []))
        missing = [c for c in needed if c not in tuple(known.columns)]
        if missing:
            expected = ", ".join(map(str, needed))
            raise ValueError(f"{self.where}: known has no column {missing[0]!r}, expected {expected}")
        values = self._matrix("known", known, columns.known)
        self._reject_infinity("known", values, lambda i: f"row {i}", columns.known, gaps=False)
        rows_of = rows_by(self.where, "known", known, columns.group)
        when = known[columns.time] if columns.time is not None and columns.time in tuple(known.columns) else None
        if when is None and is_pandas(known) and is_of_times(known.index):
            when = known.index

        def of_series(key: Any, times: Times | None) -> Values:
            rows = rows_of.get(key, np.zeros(0, np.int64))
            if when is None or times is None or not len(rows):
                return values[rows]
            read = read_times(taken(when, rows))
            if read is None:
                return values[rows]
            later = {time: row for time, row in zip(read[0], rows, strict=True) if time > times.values[-1]}
            wanted = times.following(len(later))
            return values[[later[time] for time in sorted(later) if time in set(wanted)]]

        return of_series

    def _joiner(
        self, table: Any, columns: Columns, keys: list[Any] | None, following: list[Any], has_times: bool
    ) -> Callable[[list[Values]], Any]:
        """A function that converts forecasts of each series to a table like the caller's."""
        assert columns.target is not None
        targets, group, time = columns.target, columns.group, columns.time

        def join(found: list[Values]) -> Any:
            times = [t for follow, values in zip(following, found, strict=True) for t in follow(len(values))]
            body: dict[Any, Any] = {}
            if keys is not None:
                body[group] = [key for key, values in zip(keys, found, strict=True) for _ in values]
            if time is not None:
                body[time] = times
            stacked = np.concatenate(found)
            body |= {column: stacked[:, i] for i, column in enumerate(targets)}
            if is_polars(table):
                return type(table)(body)
            if not is_pandas(table):
                return self.array(stacked, stacked.dtype)
            import pandas as pd

            if time is not None or not has_times:
                return pd.DataFrame(body)
            return pd.DataFrame(body, index=pandas_index(table.index, times))

        return join

    # --- times ---

    def _spaced(self, name: str, when: Any, label: Label) -> tuple[Any, Back]:
        """Rows with these times, evenly spaced, and the way back to the caller's times; no rows if ``when`` is None."""
        if when is None:
            return None, list
        read = read_times(when)
        if read is None:
            raise ValueError(
                f"{self.where}: the times of {name} are {shown(when.to_list()[0])}, ..., expected dates, ISO dates as "
                "text, or numbers"
            )
        times, back = read
        try:
            rows = evenly_spaced(times)
        except EqualTimes as error:
            first, second = error.rows
            raise ValueError(
                f"{self.where}: {name} has the same time at {label(first)} and {label(second)}, expected a row for "
                "each time; name the column that separates several series with group=..."
            ) from error
        if rows.uneven is not None:
            _checks.warn(
                self.where,
                f"the times of {name} are not at equal distances, first at {label(rows.uneven)}; its rows are treated "
                "as consecutive",
            )
        return rows, back


def _is_number(value: Any) -> bool:
    return (
        value is None or isinstance(value, Number) or (getattr(value, "shape", None) == () and hasattr(value, "dtype"))
    )


def _labelled(word: str, labels: Sequence[Any] | None) -> Label:
    """The name of a step or a row in messages: its label, or its number if there are no labels."""
    return lambda i: f"{word} {i if labels is None else shown(labels[i])}"


def _with_gaps(values: Values, rows: Rows) -> Values:
    """Rows of values in the order of their times; missing rows are NaN."""
    whole = np.full((len(rows.times.values), values.shape[1]), np.nan)
    whole[rows.places] = values[rows.order]
    return whole


def _placed(rows: Values, order: list[int], places: list[int], length: int) -> Values:
    """Covariates in the order of the steps, followed by those of the steps to come; gaps repeat the row before them."""
    count = len(order)
    now = np.searchsorted(places, np.arange(length), side="right") - 1
    return np.concatenate([rows[order][now], rows[count:]])
