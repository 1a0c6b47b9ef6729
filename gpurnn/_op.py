"""The form of every differentiable function: a call computes and saves nothing; `.vjp` also returns the pullback."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from . import _foreign
from ._contract import Array

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

Pullback = Callable[[Any], tuple[Any, dict[str, Array]]]
"""Maps the outputs' cotangents (None for zero) to the inputs' gradients and a dict of the parameters' gradients."""


class Op(Protocol[P, R_co]):
    """A function ``f`` with ``f.vjp``, which takes the same arguments and returns ``(f(...), pullback)``."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @property
    def vjp(self) -> Callable[P, tuple[R_co, Pullback]]:
        """The vector-Jacobian product."""


def differentiable(
    vjp: Callable[..., tuple[Any, Pullback]], *, handles_foreign: bool = False
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Decorate a function with its vector-Jacobian product ``vjp``, which takes the same arguments.

    Both then take arrays of any library, unless they handle such arrays themselves (``handles_foreign``).
    """

    def decorate(function: Callable[P, R]) -> Op[P, R]:
        name, signature = function.__name__, inspect.signature(function)
        vjp.__name__, vjp.__qualname__ = "vjp", f"{function.__qualname__}.vjp"
        vjp.__doc__ = f"``{name}(...)`` and its pullback; the arguments are those of `{name}`."
        returned = f"tuple[{signature.return_annotation}, Pullback]"
        vjp.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        made = function if handles_foreign else _foreign.accepts(function)
        made.vjp = vjp if handles_foreign else _foreign.accepts(vjp)  # type: ignore[attr-defined]
        return cast("Op[P, R]", made)

    return decorate
