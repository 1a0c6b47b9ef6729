"""The times of a series: put in order, evenly spaced, and continued into the future."""

from __future__ import annotations

import re
from calendar import monthrange
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np

_DAY = timedelta(days=1)

_ISO = re.compile(r"\d{4}-\d\d(-\d\d([ T]\d\d:\d\d(:\d\d(\.(\d{3}){1,2})?)?(Z|[+-]\d\d:\d\d)?)?)?", re.ASCII)
"""The forms of times that every supported Python reads, and that can be written in the same form again."""


@dataclass
class Times:
    """Evenly spaced times.

    Attributes
    ----------
    values : list
        Numbers, or dates with or without a time of day, rising.
    step
        The step from one to the next: a number, a timedelta, a number of months (an int, between dates), or "weekday".
    """

    values: list[Any]
    step: Any

    def following(self, count: int) -> list[Any]:
        """The times after the last; ValueError if one is beyond the year 9999, or beyond what its kind can hold."""
        try:
            return self._following(count)
        except (OverflowError, ValueError) as error:
            raise ValueError(f"the times after {self.values[-1]} go beyond the year 9999") from error

    def _following(self, count: int) -> list[Any]:
        last = self.values[-1]
        if self.step == "weekday":
            found = []
            for _ in range(count):
                last += timedelta(days=max(1, 7 - last.weekday()) if last.weekday() >= 4 else 1)
                found.append(last)
            return found
        if isinstance(last, date) and isinstance(self.step, int):
            return [_months_later(last, number * self.step) for number in range(1, count + 1)]
        last + count * self.step  # raises before all others are computed
        return [last + number * self.step for number in range(1, count + 1)]

    @property
    def usual_season(self) -> int | None:
        """The usual number of steps of a season at such times; None if nothing is known."""
        if self.step == "weekday":
            return 5
        if isinstance(self.step, timedelta):
            return {86400.0: 7, 3600.0: 24, 604800.0: 52}.get(self.step.total_seconds())
        if isinstance(self.values[-1], date):
            return 12 // self.step if self.step < 12 and 12 % self.step == 0 else None
        return None


class EqualTimes(ValueError):
    """Two rows of one series have the same time."""

    def __init__(self, rows: tuple[int, int]) -> None:
        super().__init__(f"rows {rows[0]} and {rows[1]} have the same time")
        self.rows = rows


@dataclass
class Rows:
    """Rows of a series, with a place for each among evenly spaced times.

    Attributes
    ----------
    order : list of int
        The rows in the order of their times.
    places : list of int
        The place of each of these rows in ``times``. A time without a row is a gap.
    times : Times
    uneven : int or None
        The first row, if any, whose time is not a whole number of steps after that of the row before. The rows are then
        treated as consecutive, and ``times`` holds their own times.
    """

    order: list[int]
    places: list[int]
    times: Times
    uneven: int | None = None


def evenly_spaced(when: Sequence[Any]) -> Rows:
    """Rows with these times, put in order, with gaps where rows are missing.

    Raises
    ------
    EqualTimes
        Two times are equal.
    """
    order = sorted(range(len(when)), key=when.__getitem__)
    times = [when[row] for row in order]
    for earlier, later in pairwise(order):
        if when[earlier] == when[later]:
            raise EqualTimes((min(earlier, later), max(earlier, later)))
    one_by_one = list(range(len(times)))
    if len(times) < 2:
        return Rows(order, one_by_one, Times(times, _DAY if times and isinstance(times[0], date) else 1))
    step = _step_of(times)
    distances = [_distance(earlier, later, step) for earlier, later in pairwise(times)]
    uneven = next((i for i, d in enumerate(distances) if round(d) < 1 or abs(d - round(d)) > 0.02), None)
    whole = [max(1, round(d)) for d in distances]
    if uneven is None and sum(whole) > 2 * len(times) + 10:  # more gaps than rows: these times are not regular
        uneven = next(i for i, d in enumerate(whole) if d > 1)
    if uneven is not None:
        return Rows(order, one_by_one, Times(times, step), order[uneven + 1])
    even, places = times[:1], [0]
    for distance, later in zip(whole, times[1:], strict=True):
        even += [*Times(even[-1:], step).following(distance - 1), later]
        places.append(len(even) - 1)
    return Rows(order, places, Times(even, step))


def _step_of(times: Sequence[Any]) -> Any:
    """The most common step from one of several rising times to the next."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    if not isinstance(times[0], date):
        # Gaps that differ only by rounding are the same step.
        return Counter(float(f"{gap:.9g}") if isinstance(gap, float) else gap for gap in gaps).most_common(1)[0][0]
    if min(gaps) >= timedelta(days=28) and all(t.day == times[0].day or _ends_month(t) for t in times):
        months = [(b.year - a.year) * 12 + b.month - a.month for a, b in pairwise(times)]
        return Counter(months).most_common(1)[0][0]
    step = Counter(gaps).most_common(1)[0][0]
    weekdays = all(t.weekday() < 5 for t in times) and any(gap == timedelta(days=3) for gap in gaps)
    return "weekday" if step == _DAY and weekdays else step


def _distance(earlier: Any, later: Any, step: Any) -> float:
    """The number of steps between two times."""
    if step == "weekday":
        return float(np.busday_count(earlier.date(), later.date()))
    if isinstance(earlier, date) and isinstance(step, int):
        return ((later.year - earlier.year) * 12 + later.month - earlier.month) / step
    return float((later - earlier) / step)


def _months_later(start: Any, months: int) -> Any:
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    last_day = monthrange(year, month + 1)[1]
    # The end of a month stays the end of a month.
    return start.replace(year=year, month=month + 1, day=last_day if _ends_month(start) else min(start.day, last_day))


def _ends_month(day: Any) -> bool:
    return bool(day.day == monthrange(day.year, day.month)[1])


def read_text(text: str) -> datetime:
    """An ISO 8601 date, with or without a day and a time of day; ValueError if the text is not one."""
    if not _ISO.fullmatch(text):
        raise ValueError(f"{text!r} is not a date")
    day = f"{text}-01" if len(text) == 7 else text
    return datetime.fromisoformat(f"{day[:-1]}+00:00" if day.endswith("Z") else day)


def write_text(value: datetime, like: str) -> str:
    """A date in the form of the text ``like``, which `read_text` read."""
    if len(like) == 7:
        return value.strftime("%Y-%m")
    if len(like) == 10:
        return value.date().isoformat()
    zulu = "+00:00" if like.endswith("Z") else ""
    timespec = "auto" if like[16:17] == ":" else "minutes"
    return value.isoformat(sep=like[10], timespec=timespec).removesuffix(zulu) + ("Z" if zulu else "")
