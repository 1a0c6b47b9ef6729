"""Options that several commands have, and what their values are checked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def integer(flag: str, default: int | None, text: str, least: int = 1) -> Callable[[F], F]:
    return click.option(flag, type=click.IntRange(min=least), default=default, metavar="N", help=text)


class _Finite(click.FloatRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):  # a NaN passes every comparison with the bounds
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class PathType(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":  # which Path takes for the current directory
            self.fail("it is empty.", param, ctx)
        return super().convert(value, param, ctx)


def number(flag: str, default: float | None, text: str, **bounds: Any) -> Callable[[F], F]:
    return click.option(flag, type=_Finite(min=0, **bounds), default=default, metavar="X", help=text)


def choice(flag: str, choices: list[str], text: str) -> Callable[[F], F]:
    return click.option(flag, type=click.Choice(choices), default=choices[0], help=text)
