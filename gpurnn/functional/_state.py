"""The forms and checks of lengths, resets, states and cotangents of recurrences."""

from __future__ import annotations

from typing import Any

from .. import _arrays, _checks, cells
from .._contract import Array, State


def unpack_state(where: str, cell: cells.Cell, name: str, state: State | None) -> dict[str, Array | None]:
    """The arrays of a state by their names in messages: ``name`` itself, or for the LSTM its h and its c."""
    if cell.states == 1:
        if isinstance(state, (tuple, list)):
            said = "a pair (h, c), the state of an LSTM" if len(state) == 2 else _checks.described(state)
            raise TypeError(f"{where}: {name} is {said}, expected h alone, an array")
        return {name: state}
    if state is None:
        return {f"{name}[0]": None, f"{name}[1]": None}
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        said = _checks.described(state)
        if hasattr(state, "shape"):
            said += ", the state of an RNN or a GRU"
        raise TypeError(f"{where}: {name} is {said}, expected a pair (h, c)")
    return {f"{name}[0]": state[0], f"{name}[1]": state[1]}


def pack_state(cell: cells.Cell, arrays: tuple[Array, ...]) -> State:
    """The state in the callers' form: h, or for the LSTM (h, c)."""
    return arrays[0] if cell.states == 1 else (arrays[0], arrays[1])


def check_sequence(where: str, x: Array, lengths: Array | None, **of_steps: Array | None) -> None:
    """Reject lengths, resets and a mask whose shape does not fit x (T, B, ...). A wing checks the values of lengths."""
    T, B = x.shape[:2]
    if lengths is not None:
        _checks.shape(where, "lengths", lengths, (B,), "(B,)")
    for name, array in of_steps.items():
        if array is not None:
            _checks.shape(where, name, array, (T, B), "(T, B)")


def cotangents_of(where: str, cotangents: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The cotangents that a pullback got, one for each output in ``names``; reject anything but a tuple of as many."""
    if not isinstance(cotangents, (tuple, list)) or len(cotangents) != len(names):
        said, kind = _checks.described(cotangents), "a pair" if len(names) == 2 else f"a tuple of {len(names)}"
        expected = ", ".join(f"d{name}" for name in names)
        raise TypeError(f"{where}: the pullback was given {said}, expected {kind} ({expected})")
    return tuple(cotangents)


def cotangent_pair(where: str, cotangents: Any) -> tuple[Any, Any]:
    """dy and dstate from the argument of the pullback of a function with a state; reject anything but a pair."""
    dy, dstate = cotangents_of(where, cotangents, ("y", "state"))
    return dy, dstate


def check_cotangents(
    where: str, cell: cells.Cell, cotangents: Any, y: Array, state: State
) -> tuple[Array | None, tuple[Array | None, ...]]:
    """dy and the arrays of dstate, ready to compute with, from the argument of a recurrence's pullback.

    Cotangents that are not like (y, state) are rejected.
    """
    dy, dstate = cotangent_pair(where, cotangents)
    arrays = unpack_state(where, cell, "dstate", dstate)
    outputs: dict[str, Any] = unpack_state(where, cell, "state", state)
    return _arrays.cotangent(where, "y", dy, y), tuple(
        _arrays.cotangent(where, name, array, output)
        for (name, output), array in zip(outputs.items(), arrays.values(), strict=True)
    )
