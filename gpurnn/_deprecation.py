"""Deprecation: a warning comes first, and says what to use instead. The policy is in CONTRIBUTING.md."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def warn(what: str, *, instead: str, ends: str, stacklevel: int = 2) -> None:
    """Warn that ``what`` ends with version ``ends``, and that ``instead`` replaces it.

    ``stacklevel`` counts as in `warnings.warn`, from the caller of this function.
    """
    message = f"{what} is deprecated and ends with gpurnn {ends}; use {instead}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def renamed_argument(old: str, new: str, *, ends: str) -> Callable[[F], F]:
    """Let a function take its argument ``new`` under the name ``old`` as well, with a warning.

    Raises
    ------
    TypeError
        Raised by the function if a call gives both.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__name__}: {old} is the former name of {new}, expected only {new}")
                warn(f"{function.__name__}: {old}", instead=new, ends=ends)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate
