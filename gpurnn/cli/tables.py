"""Tables in CSV files, read as numbers or times; messages name the line and column of a fault."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .terminal import Refusal, refusing
from .texts import name_of, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..training.directory import RunDirectory

MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "?"}
"""The spellings of a missing value, in lower case."""

MODEL = "model.safetensors"


@dataclass
class Table:
    """The rows of a CSV file by column, and the line of the file that each row is on."""

    file: str
    columns: dict[str, list[str]]
    lines: list[int]
    comma: bool
    """Whether a comma is the decimal point, as in files whose columns are separated by semicolons."""

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str, option: str) -> list[str]:
        """A column by its name, which ``option`` gave; reject a name that no column has."""
        if name not in self.columns:
            raise Refusal(f"{self.file}: has no column {name!r} ({option}); its columns are {', '.join(self.columns)}")
        return self.columns[name]

    def place(self, row: int, column: str) -> str:
        """The place of a value, for a message."""
        return f"{self.file}, line {self.lines[row]}, column {column!r}"

    def missing(self, name: str) -> list[int]:
        """The rows without a value in a column."""
        return [row for row, value in enumerate(self.columns[name]) if value.lower() in MISSING]

    def reject_missing(self, name: str, cure: str) -> None:
        """Reject a column that lacks values, and name their lines."""
        rows = self.missing(name)
        if rows:
            lines = ", ".join(str(self.lines[row]) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
            raise Refusal(f"{self.file}: column {name!r} has no value on {len(rows)} lines ({lines}); {cure}")

    def number(self, row: int, name: str) -> float | None:
        """A value as a number; None if it is not a finite number."""
        return number_in(self.columns[name][row], self.comma)

    def numbers(self, name: str, cure: str = "") -> list[float]:
        """A column as numbers, NaN for missing values; reject any other text."""
        found, gaps = [], set(self.missing(name))
        for row in range(len(self)):
            value = math.nan if row in gaps else self.number(row, name)
            if value is None:
                text = self.columns[name][row]
                raise Refusal(f"{self.place(row, name)}: {text!r} is not a number{cure and f'; {cure}'}")
            found.append(value)
        return found

    def is_numeric(self, name: str) -> bool:
        """Whether all values of a column, except missing ones, are numbers."""
        gaps = set(self.missing(name))
        return len(gaps) < len(self) and all(
            self.number(row, name) is not None for row in range(len(self)) if row not in gaps
        )


def number_in(text: str, comma: bool) -> float | None:
    """A text as a number; None if it is not a finite number."""
    text = text.replace("\u2212", "-")
    if "_" in text:
        return None  # Python reads 1_000 as a number; in a table it is a name
    try:
        value = float(text.replace(",", ".") if comma else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_table(file: str, encoding: str | None) -> Table:
    """Read a CSV file whose first line names the columns; the separator is found in that line."""
    where = name_of(file)
    lines = read(file, encoding).split("\n")
    heads = [line for line in lines if line.strip()][:1]
    if not heads:
        raise Refusal(f"{where}: has no lines")
    separator = max(",;\t|", key=heads[0].count)
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            values = [value.strip() for value in fields]
            if any(values):
                rows.append((reader.line_num, values))
    except csv.Error as error:
        said = "a quotation mark is not closed" if "unexpected end" in str(error) else str(error)
        raise Refusal(f"{where}, line {rows[-1][0] + 1 if rows else 1}: {said}") from error
    if not rows:
        raise Refusal(f"{where}: has no names of columns")
    (_, names), *rest = rows
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise Refusal(f"{where}: has two columns named {twice[0]!r}; its first line must name each column once")
    if not rest:
        raise Refusal(f"{where}: has no rows below the names of its columns, {', '.join(names)}")
    for line, values in rest:
        if len(values) != len(names):
            raise Refusal(f"{where}, line {line}: has {len(values)} values, but there are {len(names)} columns")
    columns = {name: [values[i] for _, values in rest] for i, name in enumerate(names)}
    return Table(where, columns, [line for line, _ in rest], separator == ";")


# --- times ---


def read_times(table: Table, name: str, form: str | None) -> tuple[list[Any], Callable[[Any], str]]:
    """A column as numbers or datetimes, and the function that writes such a time; reject any other text."""
    from ..models.forecasting.times import read_text, write_text

    table.reject_missing(name, "every row needs its time")
    texts = table.columns[name]
    if form is None and table.number(0, name) is not None:
        return table.numbers(name, "the first time is one"), lambda value: f"{value:.10g}"
    found = []
    for row, text in enumerate(texts):
        try:
            if form is not None:
                found.append(datetime.strptime(text, form))
            else:
                found.append(read_text(text))
        except ValueError as error:
            expected = f"of the form {form}" if form else "neither a number nor a date such as 2024-12-31"
            cure = "" if form else "; give its form with --time-format, for example --time-format %d.%m.%Y"
            raise Refusal(f"{table.place(row, name)}: {text!r} is {'not ' if form else ''}{expected}{cure}") from error
        if (found[-1].tzinfo is None) != (found[0].tzinfo is None):
            with_zone, without = ("the first time", "it") if found[0].tzinfo else ("it", "the first time")
            raise Refusal(f"{table.place(row, name)}: {text!r}: {with_zone} has a time zone, but {without} has none")
    if form is not None:
        return found, lambda value: value.strftime(form)
    return found, lambda value: write_text(value, texts[0])


# --- directories ---


@contextmanager
def directory_of(out: Path, command: str, names: Sequence[str], replace: bool) -> Iterator[RunDirectory]:
    """``out`` for the files of `gpurnn fit` or `gpurnn forecast`, under its lock; reject one that another run owns."""
    from ..training.directory import RunDirectory
    from .run import directory_taken

    folder = RunDirectory(out, names)
    with refusing(ValueError, OSError):
        held = folder.read() if folder.belongs_to_a_run() else None
        if held is None:
            folder.check_new()
        elif held.get("command") != command:
            raise Refusal(f"{out}: holds another run; choose another directory with --out")
        elif not replace:
            raise Refusal(
                f"{out}: already holds what gpurnn {command} made; add --replace to replace it, or choose another "
                "directory with --out"
            )
    with directory_taken(folder, new=held is None):
        yield folder


def details_of(directory: Path, command: str) -> dict[str, Any]:
    """The content of the run.json in a directory of `gpurnn fit`."""
    from .run import RUN, run_folder

    with refusing(ValueError, OSError):
        held = run_folder(directory).read()
    if held is None:
        raise Refusal(f"{directory}: no model in there ({RUN}); gpurnn {command} makes one")
    if held.get("command") != command:
        made = held.get("command", "train")
        raise Refusal(f"{directory}: holds what gpurnn {made} made, expected a directory of gpurnn {command}")
    wrong = [name for name, is_right in _OF_FIT.items() if name not in held or not is_right(held[name])]
    if wrong or not len(held["features"]) == len(held["mean"]) == len(held["std"]):
        raise Refusal(f"{directory / RUN}: damaged: {', '.join(wrong) or 'mean and std'} cannot be of gpurnn {command}")
    return held


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


_OF_FIT: dict[str, Callable[[Any], bool]] = {
    "group": _is_text,
    "target": _is_text,
    "features": _is_list_of(_is_text),
    "order": lambda value: value is None or _is_text(value),
    "time_format": lambda value: value is None or _is_text(value),
    "classes": _is_list_of(_is_text),
    "mean": _is_list_of(_is_number),
    "std": _is_list_of(lambda value: _is_number(value) and value > 0),
    "target_mean": _is_number,
    "target_std": lambda value: _is_number(value) and value > 0,
}
"""The entries of the run.json of `gpurnn fit`, each with a check of its value."""


def csv_bytes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    """A CSV file."""
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


# --- groups of rows ---


@dataclass
class Groups:
    """The groups of a table, in the order of their first rows: the name of each, and its rows in order."""

    names: list[str]
    rows: list[list[int]]


def columns_in(table: Table, chosen: str | None, option: str, others: Sequence[str | None] = ()) -> list[str]:
    """The columns A,B,... that an option names; reject a name that is unknown, repeated or one of the ``others``."""
    names = [name.strip() for name in chosen.split(",")] if chosen is not None else []
    for name in names:
        table.column(name, option)
        if name in others:
            raise Refusal(f"{option}: {name!r} is a column of another option")
    if len(set(names)) < len(names):
        raise Refusal(f"{option}: names a column twice")
    return names


def groups_of(table: Table, group: str, order: str | None, time_format: str | None) -> Groups:
    """The rows of each value of the column ``group``, in the order of the column ``order``, or else of the file."""
    keys = table.column(group, "--group")
    table.reject_missing(group, "every row needs its group")
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    if order is not None:
        table.column(order, "--order")
        when, _ = read_times(table, order, time_format)
        for found in rows.values():
            found.sort(key=when.__getitem__)
    return Groups(list(rows), list(rows.values()))


def features_of(table: Table, groups: Groups, features: Sequence[str]) -> list[Any]:
    """The features of each group's rows, (T, features) arrays; reject a value that is missing or not a number."""
    import numpy as np

    columns = []
    for name in features:
        table.column(name, "--features")
        table.reject_missing(name, "fill them in, or leave the column out of --features")
        columns.append(table.numbers(name, "leave the column out of --features"))
    values = np.asarray(columns).T
    return [values[rows] for rows in groups.rows]


def targets_of(table: Table, groups: Groups, target: str, known: Sequence[str] = ()) -> list[str]:
    """The value of the column ``target`` of each group; reject one that changes within a group.

    A number that is written in several ways, such as 1 and 1.0, is one value: it is spelled as in the ``known`` values,
    or as it is written first. A number that begins with a 0, such as 007, is a name.
    """
    texts = table.column(target, "--target")
    table.reject_missing(target, "every group needs its target")
    names: dict[Any, str] = {_value(name, True): name for name in known}
    values = [names.setdefault(_value(text, table.comma), text) for text in texts]
    for name, rows in zip(groups.names, groups.rows, strict=True):
        for row in rows:
            if values[row] != values[rows[0]]:
                raise Refusal(
                    f"{table.place(row, target)}: {texts[row]!r}, but {texts[rows[0]]!r} on line "
                    f"{table.lines[rows[0]]}; all rows of the group {name} must have the same target"
                )
    return [values[rows[0]] for rows in groups.rows]


def _value(text: str, comma: bool) -> float | str:
    """A key that is equal for all spellings of one value."""
    digits = text.lstrip("-+\u2212")
    number = None if digits[:1] == "0" and digits[1:2].isdecimal() else number_in(text, comma)
    return text if number is None else number
