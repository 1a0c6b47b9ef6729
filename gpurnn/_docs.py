"""Docstrings of a family of classes: parameters of a base class are described once, in the base class."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T", bound=type[Any])

_INHERITED = ("Parameters", "Raises")


def inherits_parameters(cls: T) -> T:
    """Complete the docstring of a dataclass from that of its base class.

    The Parameters section takes the base's text for every field that the class does not describe itself, in the order
    of the constructor's signature. A class without a Raises section gets the base's.

    Examples
    --------
    >>> from gpurnn.optimizers import Adagrad
    >>> [line for line in Adagrad.__doc__.splitlines() if " : " in line and line.startswith("weight")]
    ['weight_decay : float or dict of str to float']
    """
    summary, own = _sections(cls)
    _, base = _sections(cls.__mro__[1])
    described = _entries(base.get("Parameters", "")) | _entries(own.get("Parameters", ""))
    parameters = [described[field.name] for field in fields(cls) if field.name in described]
    sections = {title: base[title] for title in _INHERITED if title in base} | own
    if parameters:
        sections["Parameters"] = "\n".join(parameters)
    cls.__doc__ = "\n\n".join([summary, *(f"{title}\n{'-' * len(title)}\n{text}" for title, text in sections.items())])
    return cls


def _sections(cls: type[Any]) -> tuple[str, dict[str, str]]:
    """The text before the first section of a class's docstring, and the text of each section by its title."""
    before, *rest = re.split(r"\n\n(\w[\w ]*)\n-+\n", inspect.cleandoc(cls.__doc__ or ""))
    return before, dict(zip(rest[::2], rest[1::2], strict=True))


def _entries(section: str) -> dict[str, str]:
    """The parameters of a section by name: the line with the type, and the description."""
    return {entry.partition(" : ")[0]: entry for entry in re.split(r"\n(?=\w)", section) if entry}
