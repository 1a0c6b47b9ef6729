"""Options that several commands share, and the checks of their values."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .terminal import F, Refusal

if TYPE_CHECKING:
    from ..distributed import Communicator


def given(context: click.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def flag_of(name: str) -> str:
    """The option as it is typed: ``"--log-every"`` for ``"log_every"``."""
    return "--" + name.replace("_", "-")


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
        if value == "":  # Path would read it as the current directory
            self.fail("it is empty.", param, ctx)
        return super().convert(value, param, ctx)


def number(flag: str, default: float | None, text: str, **bounds: Any) -> Callable[[F], F]:
    return click.option(flag, type=_Finite(min=0, **bounds), default=default, metavar="X", help=text)


def choice(flag: str, choices: list[str], text: str) -> Callable[[F], F]:
    return click.option(flag, type=click.Choice(choices), default=choices[0], help=text)


class CellOption(click.types.StringParamType):
    """NAME=VALUE, as a pair of the name and the value; a value that is not JSON is a text."""

    name = "option"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not NAME=VALUE, such as peephole=true.", param, ctx)
        try:
            return name.strip(), json.loads(text)
        except ValueError:
            return name.strip(), text.strip()


def _by_name(context: click.Context, param: click.Parameter, pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    for name, _ in pairs:
        if sum(name == other for other, _ in pairs) > 1:
            raise click.BadParameter(f"{name} is given twice.", context, param)
    return dict(pairs)


cell_options = click.option(
    "--option", type=CellOption(), multiple=True, callback=_by_name, metavar="NAME=VALUE",
    show_default=False, help="Option of the cell, such as peephole=true or clip=5; may be given several times.",
)  # fmt: skip


class _Encoding(click.types.StringParamType):
    name = "encoding"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = codecs.lookup(value)
            "".encode(value)  # LookupError if it does not encode text, such as base64
        except (LookupError, ValueError):
            self.fail(
                f"{value!r} is not an encoding that Python knows; try utf-8, utf-16, latin-1 or cp1252.", param, ctx
            )
        return found.name


encoding_option = click.option(
    "--encoding", type=_Encoding(), metavar="NAME", show_default=False,
    help="Encoding of the files, such as utf-16 or latin-1.  [default: utf-8, or what a byte order mark says]",
)  # fmt: skip


class _Device(click.types.StringParamType):
    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        kind, colon, place = str(value).partition(":")
        if kind not in ("cpu", "cuda", "reference", "native", "host") or (
            colon and (kind != "cuda" or not place.isdecimal())
        ):
            self.fail(f"{value!r} is none of cpu, cuda, cuda:N, reference, native and host.", param, ctx)
        return value


device_option = click.option(
    "--device", type=_Device(), default="cpu", metavar="NAME", show_default=True,
    help="Where to compute: cpu; cuda, or cuda:1 and so on. To choose on the CPU: reference (NumPy), native (compiled) "
    "or host (the CUDA kernels, slowly). `gpurnn info` says which can run here.",
)  # fmt: skip


def processes_on(device: str) -> Communicator:
    """The processes started together; with ``cuda`` each has its own GPU, and NCCL sums their arrays if CuPy has it."""
    from ..distributed import communicator

    try:
        return communicator(nccl=device == "cuda")
    except ImportError:
        return communicator()


@contextmanager
def computing_on(device: str) -> Iterator[Any]:
    """The array module to compute with, and a context in which ``device`` computes; reject one that cannot run here."""
    import numpy as np

    from .._dispatch import use, why_no_cuda
    from .info import why_no_host, why_no_native

    kind, _, place = device.partition(":")
    if kind == "cpu":
        yield np
        return
    checks = {"cuda": why_no_cuda, "native": why_no_native, "host": why_no_host}
    reasons = list(checks[kind]()) if kind in checks else []
    if reasons:
        raise Refusal(f"--device {device} cannot run here: {'; '.join(reasons)}")
    if kind != "cuda":
        with use(kind):
            yield np
        return
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    if int(place or 0) >= count:
        raise Refusal(f"--device {device} cannot run here: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    with cupy.cuda.Device(int(place or 0)):
        yield cupy
