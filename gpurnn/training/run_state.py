"""The state of a run in its checkpoints: the entries, and the checks of each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _checks
from .evaluation import nothing

ENTRIES = {
    "run", "step", "params", "optimizer", "recurrent_state", "rng", "unlogged", "record", "best", "final", "model",
    "schedule", "config", "epochs", "epoch",
}  # fmt: skip


def check(saved: dict[str, Any], params: Mapping[str, Any], rng: np.random.Generator) -> None:
    """Reject a state that no Trainer with these parameters and this generator can have written.

    Raises
    ------
    ValueError, TypeError, KeyError, AttributeError
        An entry has a kind, shape or range that a Trainer does not write.
    """
    where = "Trainer"
    _require_kind("run", saved["run"], str)
    _require_kind("record", saved["record"], dict)
    best, final = saved["best"], saved["final"]
    for name in ("unlogged", "epoch"):
        sums = _require_kind(name, saved[name], dict)
        if sums.keys() != nothing().keys():
            raise ValueError(f"{name} has {sorted(sums)}, expected {sorted(nothing())}")
        _checks.finite(where, f"{name}.loss", sums["loss"])
        _checks.finite(where, f"{name}.count", _checks.non_negative(where, f"{name}.count", sums["count"]))
        _checks.integer_at_least(where, f"{name}.steps", sums["steps"], 0)
        for metric, value in _require_kind(f"{name}.metrics", sums["metrics"], dict).items():
            _checks.finite(where, f"{name}.metrics.{metric}", value)
    for i, row in enumerate(_require_kind("epochs", saved["epochs"], list)):
        lacking = {"epoch", "step", "loss"} - _require_kind(f"epochs[{i}]", row, dict).keys()
        if lacking:
            raise ValueError(f"epochs[{i}] lacks {sorted(lacking)}")
        for name, value in row.items():
            _checks.finite(where, f"epochs[{i}].{name}", value)
    _check_parameters("params", saved["params"], params)
    if best is not None:
        _checks.finite(where, "best.loss", _require_kind("best", best, dict)["loss"])
        _checks.integer_at_least(where, "best.step", best["step"], 0)
        _checks.integer_at_least(where, "best.failures", best["failures"], 0)
        _check_parameters("best.params", best["params"], params)
    if final is not None:
        _require_kind("final.improved", _require_kind("final", final, dict)["improved"], bool)
        for name in ("records", "kept"):
            for record in _require_kind(f"final.{name}", final[name], list):
                _require_kind(f"a record of final.{name}", record, dict)
    _require_arrays("recurrent_state", saved["recurrent_state"])
    copy.deepcopy(rng.bit_generator).state = saved["rng"]


def _check_parameters(name: str, values: Any, params: Mapping[str, Any]) -> None:
    if _require_kind(name, values, dict).keys() != params.keys():
        raise ValueError(f"{name} has {sorted(values)}, expected {sorted(params)}")
    for key, p in params.items():
        _require_kind(f"{name}.{key}", values[key], np.ndarray)
        _checks.shape("Trainer", f"{name}.{key}", values[key], tuple(p.shape), "the parameter's shape")
        if _checks.dtype_name(values[key]) != (own := _checks.dtype_name(p)):
            raise TypeError(f"{name}.{key} has dtype {values[key].dtype}, expected {own} as the parameter has")


def _require_kind(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__qualname__}, expected a {kind.__name__}")
    return value


def _require_arrays(name: str, value: Any) -> None:
    if isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            _require_arrays(f"{name}[{i}]", item)
    elif value is not None:
        _require_kind(name, value, np.ndarray)


def difference(name: str, held: Any, here: Any) -> tuple[str, Any, Any] | None:
    """The first entry in which two nested dicts differ: its name and both values; None if there is none."""
    if isinstance(held, dict) and isinstance(here, dict):
        keys = [*here, *(key for key in held if key not in here)]
        differences = (difference(f"{name}.{key}" if name else key, held.get(key), here.get(key)) for key in keys)
        return next((d for d in differences if d is not None), None)
    return None if held == here else (name, held, here)
