"""The rows, times and indexes of pandas and polars: how they are read, and how forecasts continue them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import examples
from .times import Times, read_text, write_text
from .transforms import Values

Back = Callable[[list[Any]], list[Any]]
"""Converts times that can be calculated with to the caller's times."""


def is_polars(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "polars"


def is_pandas(value: Any) -> bool:
    return hasattr(value, "to_numpy") and hasattr(value, "index") and not is_polars(value)


def shown(value: Any) -> str:
    return f"{value}" if isinstance(value, date) else f"{value!r}"


def rows_by(where: str, name: str, table: Any, group: str | None) -> dict[Any, NDArray[np.int64]]:
    """The rows of each group, in the order of their first rows."""
    if group is None:
        return {None: np.arange(len(table))}
    rows: dict[Any, list[int]] = {}
    for row, key in enumerate(table[group].to_numpy().tolist()):
        if examples.is_missing(key):
            raise ValueError(f"{where}: {name}[{group!r}] is {key!r} in row {row}, expected the series of each row")
        rows.setdefault(key, []).append(row)
    return {key: np.array(of, np.int64) for key, of in rows.items()}


def taken(when: Any, rows: NDArray[np.int64]) -> Any:
    """Some of the times."""
    if when is None:
        return None
    return when.gather(rows) if is_polars(when) else when.iloc[rows] if hasattr(when, "iloc") else when[rows]


def says_when(index: Any) -> bool:
    """Whether a pandas index is of times, or of numbers that differ."""
    return is_of_times(index) or (getattr(index.dtype, "kind", "") in "iuf" and bool(index.is_unique))


def is_of_times(index: Any) -> bool:
    return type(index).__name__ in ("DatetimeIndex", "PeriodIndex", "TimedeltaIndex")


def read_times(when: Any) -> tuple[list[Any], Back] | None:
    """Times that can be calculated with, and the way back to the caller's times; None if they are not times."""
    values = when.to_list()
    if values and isinstance(values[0], str):
        try:
            read = [read_text(text) for text in values]
        except ValueError:
            return None
        return read, lambda times: [write_text(t, values[0]) for t in times]
    if is_polars(when):
        steps = values and isinstance(values[0], (Real, date))
        return (values, list) if steps else None
    import pandas as pd

    index = pd.Index(when)
    if isinstance(index, pd.PeriodIndex):
        return [p.ordinal for p in index], lambda times: [pd.Period(ordinal=t, freq=index.freq) for t in times]
    if isinstance(index, pd.DatetimeIndex):
        zone = index.tz
        if zone is None:
            return list(index), list
        wall = list(index.tz_localize(None))
        if len(wall) > 1 and sorted(wall)[1] - sorted(wall)[0] >= pd.Timedelta(days=1):
            return wall, lambda times: list(pd.DatetimeIndex(times).tz_localize(zone))
        return list(index.tz_convert("UTC")), lambda times: list(pd.DatetimeIndex(times).tz_convert(zone))
    return (list(index), list) if index.dtype.kind in "iufm" else None


def follower(where: str, times: Times | None, back: Back, length: int) -> Callable[[int], list[Any]]:
    """A function that returns the times that follow a series, in the caller's form."""
    if times is None:
        return lambda steps: list(range(length, length + steps))

    def following(steps: int) -> list[Any]:
        try:
            return back(times.following(steps))
        except (OverflowError, ValueError) as error:
            raise ValueError(f"{where}: steps is {steps}, expected fewer: {error}") from error

    return following


def pandas_index(like: Any, times: list[Any]) -> Any:
    """Times as an index like another one."""
    import pandas as pd

    if isinstance(like, pd.RangeIndex):
        return pd.RangeIndex(times[0], times[-1] + like.step, like.step, name=like.name)
    index = pd.Index(times, name=like.name)
    if isinstance(like, pd.DatetimeIndex) and like.freq is not None:
        index = pd.DatetimeIndex(index, freq="infer") if len(index) > 2 else index
    return index


def pandas_like(data: Any, found: Values, index: Any) -> Any:
    import pandas as pd

    if data.ndim == 1:
        return pd.Series(found[:, 0], index=index, name=data.name)
    return pd.DataFrame(found, index=index, columns=data.columns)
