"""The description of a cell. The functions, the layers, all wings and the analysis read it."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from .. import _checks

RECURRENT_WEIGHT = "weight_hh"
"""The name of every recurrent weight W_hh contains this: ``weight_hh_l0``, ``encoder.weight_hh_l1_reverse``."""


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: gates, states and options. Its equations are the wings'.

    A cell has three files of one name: its description here, ``reference/cells/X.py`` and ``kernels/cells/X.cuh``.
    A subclass is a frozen dataclass whose fields are the options that its users choose: each a bool, a ``Literal`` of
    strings or a float, with a default. Its docstring ends with them, under ``Parameters``.
    """

    name: ClassVar[str]
    """Of the function that runs it, as messages and models call it."""
    gate_functions: ClassVar[Mapping[str, str]]
    """The function of each gate, or the option that says it, in the order of the gates' rows in the weights."""
    state_names: ClassVar[tuple[str, ...]] = ("h",)
    form: ClassVar[tuple[str, ...]] = ()
    """The options for which weights of the same names and shapes give other outputs. Files say their values."""
    biases_of_one: ClassVar[tuple[str, ...]] = ()
    """The gates whose bias_ih starts at 1 instead of 0."""
    scalars: ClassVar[tuple[str, ...]] = ()
    """The options that are numbers: a kernel is compiled once for all of their values."""

    def __post_init__(self) -> None:
        for option, kind in self.options().items():
            value = getattr(self, option)
            if get_origin(kind) is Literal:
                value = _checks.choice(self.name, option, value, get_args(kind))
            elif kind is bool:
                value = _checks.flag(self.name, option, value)
            else:
                value = _checks.finite(self.name, option, value)
            object.__setattr__(self, option, value)

    @classmethod
    @functools.cache
    def options(cls) -> dict[str, Any]:
        """The type of each option."""
        hints = get_type_hints(cls)
        return {field.name: hints[field.name] for field in fields(cls)}

    @classmethod
    def options_text(cls) -> str:
        """The options as the docstrings of the cell's function and layer list them: as that of the description does."""
        return (inspect.getdoc(cls) or "").partition("Parameters\n----------\n")[2]

    @classmethod
    def variants(cls) -> Iterator[Cell]:
        """A cell for each combination of the options that are no numbers: what a kernel is compiled for."""
        choices = {
            option: (False, True) if kind is bool else get_args(kind)
            for option, kind in cls.options().items()
            if option not in cls.scalars
        }
        for values in itertools.product(*choices.values()):
            yield cls(**dict(zip(choices, values, strict=True)))

    @classmethod
    def file(cls) -> str:
        """The name of the cell's three files."""
        return cls.__module__.rpartition(".")[2]

    def function_of(self, gate: str) -> str:
        """ "sigmoid", "tanh", "relu" or "identity"."""
        function = self.gate_functions[gate]
        return str(getattr(self, function)) if function in self.options() else function

    @property
    def gates(self) -> int:
        return len(self.gate_functions)

    @property
    def states(self) -> int:
        return len(self.state_names)

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """The shape of each parameter by its name, in a layer's sizes, as ``("4*hidden_size", "input_size")``.

        A name that ends with ``_ih`` belongs to the input product, which is computed for all steps at once. One that
        begins with ``bias`` may be missing, which is the same as zeros.
        """
        rows = f"{self.gates}*hidden_size" if self.gates > 1 else "hidden_size"
        return {
            "weight_ih": (rows, "input_size"),
            "weight_hh": (rows, "hidden_size"),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }

    @property
    def needed(self) -> tuple[str, ...]:
        """The names of the parameters that must be there."""
        return tuple(name for name in self.parameters if not name.startswith("bias"))

    @functools.lru_cache(1024)  # noqa: B019  # each call of a layer asks for them; a cell is small
    def shapes(self, *, input_size: int, hidden_size: int) -> Mapping[str, tuple[int, ...]]:
        """The shape of each parameter by its name."""
        sizes = {"input_size": input_size, "hidden_size": hidden_size}
        return MappingProxyType(
            {name: tuple(_evaluated(axis, sizes) for axis in axes) for name, axes in self.parameters.items()}
        )

    def shape_texts(self) -> dict[str, str]:
        """The shape of each parameter by its name, as docstrings have it: ``"(4*H, I)"``."""
        texts = {name: ", ".join(axes) + "," * (len(axes) == 1) for name, axes in self.parameters.items()}
        return {n: f"({text})".replace("hidden_size", "H").replace("input_size", "I") for n, text in texts.items()}

    @property
    def phases(self) -> tuple[int, ...]:
        """The number of gates of each phase of a step.

        A step has a phase for each product with rows of W_hh that needs the result of the one before. The first
        multiplies h_{t-1}; what a later one multiplies the cell computes from the gates before.
        """
        return (self.gates,)

    @property
    def hidden_apart(self) -> bool:
        """Whether the gradient of W_hh h differs from that of W_ih x."""
        return False

    @property
    def operations(self) -> tuple[int, int]:
        """Elementwise operations of a hidden unit in a step, forward and backward, as the definition writes it."""
        raise NotImplementedError

    @property
    def saved(self) -> tuple[str, ...]:
        """The values of a hidden unit that the kernels save at each step for the backward pass; gates come first."""
        raise NotImplementedError

    @property
    def kernel_struct(self) -> tuple[str, ...]:
        """The struct in the cell's ``.cuh`` file, and its template arguments behind the real type."""
        raise NotImplementedError


def _evaluated(axis: str, sizes: Mapping[str, int]) -> int:
    """The length of an axis, as of ``"4*hidden_size"``."""
    return math.prod(int(factor) if factor.isdigit() else sizes[factor] for factor in axis.split("*"))
