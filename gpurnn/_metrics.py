"""Write the lines of a metrics file, and read the undamaged ones.

A line is JSON, which has no infinity and no NaN: these are written as protobuf's strings for them.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import _files

UNIT = "loss_unit"
"""The only entry of a record that is text: the unit of its loss."""


_NOT_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


@dataclass(frozen=True)
class Metrics:
    """The contents of a metrics file.

    Attributes
    ----------
    records : list of dict
        The records of the undamaged lines, in order.
    ends : list of int
        For each record the position in the file after its line end; None for a last line without a line end.
    damaged : list of int
        The numbers, from 1, of whole lines that are not records.
    cut : bool
        Whether the file ends with a part of a line.
    """

    records: list[dict[str, Any]]
    ends: list[int | None]
    damaged: list[int]
    cut: bool


def encoded(records: Sequence[dict[str, Any]]) -> bytes:
    """Records as lines of a metrics file."""
    lines = [json.dumps({name: _plain(value) for name, value in record.items()}, allow_nan=False) for record in records]
    return "".join(f"{line}\n" for line in lines).encode()


def _plain(value: Any) -> Any:
    """A JSON-compatible form of a record's value."""
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)  # "Infinity", "-Infinity" or "NaN"
    return value


def read(path: str | os.PathLike[str]) -> Metrics:
    """Read a metrics file. Damaged lines are left out, with a warning that names them.

    The last line may be cut off without a warning: the run may have been killed, or may still be writing.

    Raises
    ------
    FileFormatError
        ``path`` is a directory, pipe, socket or device.
    OSError
        The file does not exist or cannot be read.
    """
    with _files.open_regular(path) as file:
        *lines, rest = file.read().split(b"\n")
    records: list[dict[str, Any]] = []
    ends: list[int | None] = []
    damaged, end = [], 0
    for number, line in enumerate(lines, 1):
        end += len(line) + 1
        parsed = _record(line)
        if parsed is None:
            damaged.append(number)
        else:
            records.append(parsed)
            ends.append(end)
    last = _record(rest)
    if last is not None:
        records.append(last)
        ends.append(None)
    if damaged:
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"lines {', '.join(map(str, damaged))} are"
        warnings.warn(f"{path}: {which} damaged and left out of the metrics", stacklevel=3)
    return Metrics(records, ends, damaged, bool(rest) and last is None)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None if the line is not a record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        return None
    for name, value in record.items():
        if name not in (UNIT, "step") and isinstance(value, str):
            record[name] = _NOT_FINITE.get(value, value)
    numbers = all(type(value) in (int, float) for name, value in record.items() if name != UNIT)
    return record if numbers and isinstance(record.get(UNIT, ""), str) else None
