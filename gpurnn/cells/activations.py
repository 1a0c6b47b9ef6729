"""The activations of a cell's gates, candidate and output, by name, with their numbers alpha and beta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast, get_args

from .. import _checks
from .._contract import Array

Name = Literal[
    "tanh", "relu", "sigmoid", "identity", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid",
    "elu", "softsign", "softplus",
]  # fmt: skip
Activation: TypeAlias = Name | tuple[Name, float] | tuple[Name, float, float]
"""A name, or a tuple of a name, alpha and, for some, beta."""

NUMBERS: dict[str, tuple[float, ...]] = {
    "affine": (1.0, 0.0),
    "leaky_relu": (0.01,),
    "thresholded_relu": (1.0,),
    "scaled_tanh": (1.7159, 2 / 3),
    "hard_sigmoid": (0.2, 0.5),
    "elu": (1.0,),
}
"""The default alpha and beta of each activation that has them."""


NAMES: tuple[Any, ...] = get_args(Name)


class AnyActivation(tuple[Any, ...]):
    """An activation that a kernel chooses at run time: "any", its index in `NAMES`, alpha and beta."""

    __slots__ = ()

    @classmethod
    def of(cls, activation: Activation) -> Activation:
        """The same activation, chosen at run time."""
        alpha, beta = (*numbers_of(activation), 0.0, 0.0)[:2]
        chosen: Any = cls(("any", float(NAMES.index(name_of(activation))), alpha, beta))
        return cast(Activation, chosen)


def name_of(activation: Activation) -> str:
    """The name of an activation, without its numbers."""
    return activation if isinstance(activation, str) else activation[0]


def numbers_of(activation: Activation) -> tuple[float, ...]:
    """alpha and beta, as many as the activation has."""
    own = NUMBERS.get(name_of(activation), ())
    given: tuple[Any, ...] = () if isinstance(activation, str) else activation[1:]
    return (*given, *own[len(given) :])


def check(where: str, option: str, value: Any) -> Activation:
    """Return ``value`` as an activation, as a name alone if its numbers are the defaults.

    Raises
    ------
    TypeError, ValueError
        ``value`` is not an activation, or has more numbers than the activation takes.
    """
    if isinstance(value, AnyActivation):
        return cast(Activation, value)
    name, *given = value if isinstance(value, (tuple, list)) and value else (value,)
    name = _checks.choice(where, option, name, NAMES)
    numbers = tuple(_checks.finite(where, option, number) for number in given)
    own = NUMBERS.get(name, ())
    if len(numbers) > len(own):
        takes = f"({name!r}, {', '.join(('alpha', 'beta')[: len(own)])})" if own else repr(name)
        raise ValueError(f"{where}: {option} is {value!r}, expected {takes}")
    return name if (*numbers, *own[len(numbers) :]) == own else (name, *numbers, *own[len(numbers) :])


def value(xp: Any, activation: Activation, a: Array) -> Array:
    """f(a) for arrays of any library, where speed and the last digits do not matter."""
    name, (alpha, beta) = name_of(activation), (*numbers_of(activation), 0.0, 0.0)[:2]
    zero = xp.zeros_like(a)
    functions: dict[str, Callable[[], Array]] = {
        "tanh": lambda: xp.tanh(a),
        "relu": lambda: xp.maximum(a, zero),
        "sigmoid": lambda: 0.5 * xp.tanh(0.5 * a) + 0.5,
        "identity": lambda: xp.asarray(a, copy=True),
        "affine": lambda: alpha * a + beta,
        "leaky_relu": lambda: xp.where(a < 0, alpha * a, a),
        "thresholded_relu": lambda: xp.where(a > alpha, a, zero),
        "scaled_tanh": lambda: alpha * xp.tanh(beta * a),
        "hard_sigmoid": lambda: xp.clip(alpha * a + beta, 0, 1),
        "elu": lambda: xp.where(a < 0, alpha * xp.expm1(xp.minimum(a, zero)), a),
        "softsign": lambda: a / (1 + xp.abs(a)),
        "softplus": lambda: xp.maximum(a, zero) + xp.log1p(xp.exp(-xp.abs(a))),
    }
    return functions[name]()
