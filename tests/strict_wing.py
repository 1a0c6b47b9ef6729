"""A wing for arrays of array_api_strict that live on its device "device1", around the NumPy wing.

Such arrays reject everything that CuPy's would reject (above all `numpy.asarray` of them) and everything outside the
array API standard. So shared code that follows the standard runs on them, and a NumPy habit fails without a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import array_api_strict as xp
import numpy as np
from array_api_strict._array_object import Array

from gpurnn import reference
from gpurnn._contract import WING_FUNCTIONS

DEVICE = xp.Device("device1")


def strict(nested: Any) -> Any:
    """NumPy arrays, in tuples, lists and dicts too, as strict arrays on ``DEVICE`` that share their memory."""
    return _mapped(nested, _wrap)


def plain(nested: Any) -> Any:
    """The reverse of `strict`. A NumPy array is rejected: there should be a strict array in its place."""
    return _mapped(nested, _unwrap)


def _mapped(nested: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(nested, (tuple, list)):
        make = getattr(type(nested), "_make", type(nested))  # of a named tuple
        return make(_mapped(entry, function) for entry in nested)
    if isinstance(nested, dict):
        return {name: _mapped(entry, function) for name, entry in nested.items()}
    return function(nested)


def _wrap(value: Any) -> Any:
    return Array._new(value, device=DEVICE) if isinstance(value, (np.ndarray, np.generic)) else value


def _unwrap(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"a {type(value).__name__} among arrays of array_api_strict")
    if isinstance(value, Array):
        if value.device != DEVICE:
            raise TypeError(f"an array on {value.device} among arrays on {DEVICE}")
        return value._array
    return value


def __getattr__(name: str) -> Any:
    if name not in WING_FUNCTIONS:
        raise AttributeError(name)
    function = getattr(reference, name)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return strict(function(*plain(args), **plain(kwargs)))

    return wrapped
