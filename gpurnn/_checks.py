"""Refusals of bad arguments. Every message reads ``where: argument is what it was, expected what was wanted``."""

from __future__ import annotations

import functools
import math
import operator
from numbers import Real
from typing import Any

FLOATS = ("float32", "float64")
INEXACT = (*FLOATS, "complex64", "complex128")
_INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@functools.cache
def _name(kind: Any, dtype: Any) -> str:
    # The kind keeps dtypes of two libraries from being compared with each other, which one of them may object to.
    return str(dtype).rpartition(".")[2]


def dtype_name(array: Any) -> str:
    """``"float32"`` for the dtype of an array of any library."""
    kind: Any = type(array.dtype)
    return _name(kind, array.dtype)


def given(where: str, **arrays: Any) -> None:
    """Refuse None where an array is needed."""
    for name, array in arrays.items():
        if array is None:
            raise TypeError(f"{where}: {name} is None, expected an array")


def shape(where: str, name: str, array: Any, expected: tuple[int, ...], symbols: str) -> None:
    """Refuse an array whose shape is not ``expected``, which ``symbols`` writes in letters."""
    if tuple(array.shape) != expected:
        raise ValueError(f"{where}: {name} has shape {tuple(array.shape)}, expected {symbols} = {expected}")


def ndim(where: str, name: str, array: Any, expected: int, symbols: str) -> None:
    """Refuse an array that has not ``expected`` axes."""
    if array.ndim != expected:
        raise ValueError(f"{where}: {name} has shape {tuple(array.shape)}, expected {expected} axes {symbols}")


def floating(where: str, name: str, array: Any, dtypes: tuple[str, ...] = FLOATS) -> None:
    """Refuse an array that is not of one of ``dtypes``."""
    if dtype_name(array) not in dtypes:
        raise TypeError(
            f"{where}: {name} has dtype {dtype_name(array)}, expected {' or '.join(dtypes)}; "
            f"cast it with {name}.astype('float32')"
        )


def same_dtype(where: str, dtypes: tuple[str, ...] = FLOATS, **arrays: Any) -> None:
    """Refuse arrays (None is skipped) that are not all of one of ``dtypes``."""
    first_name = first = None
    for name, array in arrays.items():
        if array is None:
            continue
        floating(where, name, array, dtypes)
        if first is None:
            first_name, first = name, dtype_name(array)
        elif dtype_name(array) != first:
            raise TypeError(
                f"{where}: {name} has dtype {dtype_name(array)} but {first_name} has {first}, expected one dtype; "
                f"cast with {name}.astype('{first}')"
            )


def integer(where: str, name: str, array: Any) -> None:
    """Refuse an array that is not of an integer dtype."""
    if dtype_name(array) not in _INTS:
        raise TypeError(f"{where}: {name} has dtype {dtype_name(array)}, expected an integer dtype")


def boolean(where: str, name: str, array: Any) -> None:
    """Refuse an array that is not of dtype bool."""
    if dtype_name(array) != "bool":
        raise TypeError(f"{where}: {name} has dtype {dtype_name(array)}, expected bool")


def writable(where: str, name: str, array: Any) -> None:
    """Refuse an array that is marked read-only, as NumPy's can be."""
    if not getattr(getattr(array, "flags", None), "writeable", True):
        raise ValueError(f"{where}: {name} is read-only, expected an array that can be changed in place")


def integer_at_least(where: str, name: str, value: Any, least: int) -> int:
    """``value`` as an int; refuse what is no whole number (bools included) or is below ``least``."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{where}: {name} is {value!r}, expected a whole number") from error
    if isinstance(value, bool):
        raise TypeError(f"{where}: {name} is {value!r}, expected a whole number")
    if number < least:
        raise ValueError(f"{where}: {name} is {number}, expected at least {least}")
    return number


def _real(where: str, name: str, value: Any, expected: str) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{where}: {name} is {value!r}, expected {expected}")


def finite(where: str, name: str, value: float) -> float:
    """``value`` as a float; refuse what is infinite or NaN."""
    _real(where, name, value, "a finite number")
    if not math.isfinite(value):
        raise ValueError(f"{where}: {name} is {value!r}, expected a finite number")
    return float(value)


def non_negative(where: str, name: str, value: float) -> float:
    """``value`` as a float; refuse what is negative, infinite or NaN."""
    _real(where, name, value, "a number of at least 0")
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{where}: {name} is {value!r}, expected a number of at least 0")
    return float(value)


def positive(where: str, name: str, value: float) -> float:
    """``value`` as a float; refuse what is not above 0. Infinity is."""
    _real(where, name, value, "a positive number")
    if not value > 0.0:
        raise ValueError(f"{where}: {name} is {value!r}, expected a positive number")
    return float(value)


def fraction(where: str, name: str, value: float) -> float:
    """``value`` as a float; refuse what is not in [0, 1)."""
    _real(where, name, value, "a probability in [0, 1)")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{where}: {name} is {value!r}, expected a probability in [0, 1)")
    return float(value)


def probability(where: str, name: str, value: float) -> float:
    """``value`` as a float; refuse what is not in [0, 1]."""
    _real(where, name, value, "a probability in [0, 1]")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{where}: {name} is {value!r}, expected a probability in [0, 1]")
    return float(value)


def choice(where: str, name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse a value that is none of ``choices``."""
    if value not in choices:
        raise ValueError(f"{where}: {name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def no_state(where: str, state: Any) -> None:
    """Refuse a state where every batch begins anew."""
    if state is not None:
        raise TypeError(f"{where}: state is a {type(state).__qualname__}, expected None: each batch begins anew")
