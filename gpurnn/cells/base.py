"""The description of a cell. The functions, the layers, all wings and the analysis read it."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from .. import _checks
from . import activations
from .activations import Activation

RECURRENT_WEIGHT = "weight_hh"
"""The name of every recurrent weight W_hh contains this: ``weight_hh_l0``, ``encoder.weight_hh_l1_reverse``."""

NORMS = {"norm_ih": "layer_norm", "norm_hh": "layer_norm"}
"""The parameters of layer norm, the same in every cell, in the form of `Cell.implied`."""

NORM_TEXTS = {
    "norm_ih": "Weights of the normalised W_ih x: see ``layer_norm`` of the layer.",
    "norm_hh": "Weights of the normalised W_hh h.",
}

ZONEOUT_H = (
    "Where it is 1, h keeps its value of the previous step; where it is 0, it does not. It replaces ``zoneout``."
)
"""A text for docstrings."""


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: its gates, states and options. The wings define its equations.

    A cell has three files of one name: its description here, ``reference/cells/X.py`` and ``kernels/cells/X.cuh``.
    A subclass is a frozen dataclass whose fields are the options that its users choose. Each has a default, and one of
    these types: a bool; a size; a ``Literal`` of strings; an `Activation`; a float; ``float | None``, an optional
    bound; in `rates`, a probability or a pair of them. The docstring lists them at its end, under ``Parameters``.
    """

    step_masks: tuple[str, ...] = field(default=(), kw_only=True)
    """Not an option: the arrays, among `masks`, that come with a call and have separate numbers for each step."""

    name: ClassVar[str]
    """The name of the function that runs the cell, which messages and models use too."""
    gate_functions: ClassVar[Mapping[str, str]]
    """The option that sets each gate's activation, in the order of the gates' rows in the weights."""
    state_names: ClassVar[tuple[str, ...]] = ("h",)
    form: ClassVar[tuple[str, ...]] = ()
    """The options that change the outputs but not the names and shapes of weights. Files record their values."""
    elementwise: ClassVar[bool] = False
    """Whether no unit reads the state of another unit, so that no step has a product and no schedule runs the cell."""
    biases_of_one: ClassVar[tuple[str, ...]] = ()
    """The gates whose bias_ih starts at 1 instead of 0."""
    rates: ClassVar[tuple[str, ...]] = ()
    """The options that are probabilities."""
    drawn: ClassVar[tuple[str, ...]] = ()
    """The members of `rates` that act only in training, by masks that a layer draws: its function takes the masks."""
    implied: ClassVar[Mapping[str, str]] = {}
    """The options that parameters imply, by parameter name: a function has the option if it gets the parameter."""
    plain: ClassVar[tuple[str, ...]] = ()
    """The options that the NumPy wing's fully written loop supports with all of their values."""
    masks: ClassVar[tuple[str, ...]] = ()
    """The optional arrays (T, B, H) of a call, with numbers for each step, in the order of `step_masks`."""
    texts: ClassVar[Mapping[str, str]] = {}
    """Descriptions of those masks, and of the parameters that imply an option, for docstrings."""

    def __post_init__(self) -> None:
        for option, kind in self.options().items():
            object.__setattr__(self, option, self._checked(option, kind, getattr(self, option)))

    def _checked(self, option: str, kind: Any, value: Any) -> Any:
        if option in self.rates:
            if kind is float:
                return _checks.fraction(self.name, option, value)
            count = len(get_args(kind))
            if not isinstance(value, (tuple, list)) or len(value) != count:
                raise TypeError(
                    f"{self.name}: {option} is {value!r}, expected {count} probabilities, one for each state"
                )
            return tuple(_checks.fraction(self.name, option, rate) for rate in value)
        if get_origin(kind) is Literal:
            return _checks.choice(self.name, option, value, get_args(kind))
        if kind == Activation:
            return activations.check(self.name, option, value)
        if kind is bool:
            return _checks.flag(self.name, option, value)
        if type(None) in get_args(kind):
            return None if value is None else _checks.positive(self.name, option, value)
        if kind is int:
            return _checks.integer_at_least(self.name, option, value, 0)
        return _checks.finite(self.name, option, value)

    @classmethod
    @functools.cache
    def options(cls) -> dict[str, Any]:
        """The type of each option."""
        hints = get_type_hints(cls)
        return {option.name: hints[option.name] for option in fields(cls) if option.name != "step_masks"}

    @classmethod
    @functools.cache
    def function_options(cls) -> tuple[str, ...]:
        """The options that the cell's function takes: all except those that a parameter implies or a layer draws."""
        return tuple(name for name in cls.options() if name not in (*cls.implied.values(), *cls.drawn))

    def values(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The values of the options ``names``, or of all options, by name."""
        return {name: getattr(self, name) for name in (self.options() if names is None else names)}

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the NumPy wing's fully written loop supports the cell."""
        return self == replace(type(self)(), **{name: getattr(self, name) for name in self.plain})

    def drawn_masks(self) -> dict[str, float]:
        """The masks that a layer draws in training, with their rates."""
        rates: dict[str, float] = {}
        if "zoneout" in self.options():
            zoneout = _tuple(self.zoneout)  # type: ignore[attr-defined]
            rates = {f"zoneout_{state}": rate for state, rate in zip(self.state_names, zoneout, strict=True)}
        rates["dropout_g"] = getattr(self, "candidate_dropout", 0.0)
        return {name: rates[name] for name in self.masks if rates[name]}

    @functools.cached_property
    def is_brought(self) -> bool:
        """Whether an installation comes with the cell compiled."""
        return self.without_numbers in [cell.without_numbers for cell in self.variants()]

    @functools.cached_property
    def numbers(self) -> tuple[float, ...]:
        """The values of the numeric options, in a kernel's order: it is compiled once for all values."""
        return tuple(number for own in self._numbers.values() for number in own)

    @property
    def _numbers(self) -> dict[str, tuple[float, ...]]:
        """The numbers of each option."""
        numbers: dict[str, tuple[float, ...]] = {}
        for option, kind in self.options().items():
            value = getattr(self, option)
            if kind == Activation:
                numbers[option] = activations.numbers_of(value)
            elif option in self.rates:
                if option not in self.drawn:
                    numbers[option] = tuple(rate for rate in _tuple(value) if rate)
            elif type(None) in get_args(kind):
                numbers[option] = () if value is None else (value,)
            elif kind is float:
                numbers[option] = (value,)
        return numbers

    def number(self, option: str) -> int:
        """The index in `numbers` of an option's first number."""
        before = itertools.takewhile(lambda name: name != option, self._numbers)
        return sum(len(self._numbers[name]) for name in before)

    @functools.cached_property
    def without_numbers(self) -> Cell:
        """A representative of all cells that differ only in their numbers."""
        values: dict[str, Any] = {}
        for option, kind in self.options().items():
            value = getattr(self, option)
            if kind == Activation:
                is_chosen = isinstance(value, activations.AnyActivation)
                values[option] = activations.AnyActivation.of("tanh") if is_chosen else activations.name_of(value)
            elif option in self.rates:
                kept = tuple(0.5 if rate and option not in self.drawn else 0.0 for rate in _tuple(value))
                values[option] = kept if isinstance(value, tuple) else kept[0]
            elif type(None) in get_args(kind):
                values[option] = None if value is None else 1.0
            elif kind is float:
                values[option] = 0.0
            elif kind is int:
                values[option] = min(value, 1)
        return replace(self, **values)

    @classmethod
    def options_text(cls, names: Iterable[str]) -> str:
        """The entries of options in this class's docstring, for the docstrings of the cell's function and layer."""
        text = (inspect.getdoc(cls) or "").partition("Parameters\n----------\n")[2]
        entries = re.split(r"\n(?=\w+ : )", text)
        return "\n".join(entry for entry in entries if entry.partition(" : ")[0] in set(names))

    @classmethod
    def variants(cls) -> Iterator[Cell]:
        """A cell for each combination of the options of `form`: the cells that an installation comes with compiled.

        A cell with other options is compiled when a call needs it.
        """
        kinds = cls.options()
        choices = {option: (False, True) if kinds[option] is bool else get_args(kinds[option]) for option in cls.form}
        for values in itertools.product(*choices.values()):
            yield cls(**dict(zip(choices, values, strict=True)))

    @classmethod
    def file(cls) -> str:
        """The name of the cell's three files."""
        return cls.__module__.rpartition(".")[2]

    def activation_of(self, gate: str) -> Activation:
        """The activation of a gate."""
        activation: Activation = getattr(self, self.gate_functions[gate])
        return activation

    def function_of(self, gate: str) -> str:
        """The name of a gate's activation."""
        return activations.name_of(self.activation_of(gate))

    @property
    def gates(self) -> int:
        return len(self.gate_functions)

    @property
    def states(self) -> int:
        return len(self.state_names)

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """The shape of each parameter by name, in terms of a layer's sizes: ``("4*hidden_size", "input_size")``.

        A name that ends with ``_ih`` belongs to the input product, which is computed for all steps at once. A parameter
        whose name begins with ``bias`` may be missing, which is the same as zeros.
        """
        rows = f"{self.gates}*hidden_size" if self.gates > 1 else "hidden_size"
        return {
            "weight_ih": (rows, "input_size"),
            "weight_hh": (rows, "hidden_size"),
            **dict.fromkeys(self.diagonal, ("hidden_size",)),
            **dict.fromkeys(NORMS if self.normalises else (), (rows,)),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }

    @property
    def diagonal(self) -> Mapping[str, tuple[str, str]]:
        """Weights with one number per hidden unit, by name: the gate to whose argument they add, and the member of
        `saved` that they multiply."""
        return {}

    @property
    def sums_over_units(self) -> bool:
        """Whether a step has sums over hidden units besides its products with W_hh."""
        return self.normalises or self.projects

    @property
    def normalises(self) -> bool:
        """Whether the cell has layer norm."""
        return bool(getattr(self, "layer_norm", False))

    @property
    def projects(self) -> bool:
        """Whether h is a projection."""
        return bool(getattr(self, "proj_size", 0))

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        """The widths of the arrays of the state; the first is the width of the output."""
        return (hidden_size,) * self.states

    @property
    def norm_groups(self) -> tuple[int, ...]:
        """How many gates each layer norm of a product spans."""
        return (self.gates,)

    @property
    def needed(self) -> tuple[str, ...]:
        """The names of the required parameters."""
        return tuple(name for name in self.parameters if not name.startswith("bias"))

    @functools.lru_cache(1024)  # noqa: B019  # each call of a layer asks for them; a cell is small
    def shapes(self, *, input_size: int, hidden_size: int) -> Mapping[str, tuple[int, ...]]:
        """The shape of each parameter by its name."""
        sizes = {"input_size": input_size, "hidden_size": hidden_size}
        return MappingProxyType(
            {name: tuple(_evaluated(axis, sizes) for axis in axes) for name, axes in self.parameters.items()}
        )

    def shape_texts(self) -> dict[str, str]:
        """The shape of each parameter by name, in the form of docstrings: ``"(4*H, I)"``."""
        texts = {name: ", ".join(axes) + "," * (len(axes) == 1) for name, axes in self.parameters.items()}
        return {n: f"({text})".replace("hidden_size", "H").replace("input_size", "I") for n, text in texts.items()}

    @property
    def phases(self) -> tuple[int, ...]:
        """The number of gates of each phase of a step.

        A step has a phase for each product with rows of W_hh that needs the result of an earlier product. The first
        multiplies h_{t-1}; the cell computes the factor of a later one from the earlier gates.
        """
        return (self.gates,)

    @property
    def hidden_apart(self) -> bool:
        """Whether the gradient of W_hh h differs from that of W_ih x."""
        return False

    @property
    def operations(self) -> tuple[int, int]:
        """The elementwise operations of a hidden unit in a step of the definition, forward and backward."""
        raise NotImplementedError

    @property
    def saved(self) -> tuple[str, ...]:
        """The values of a hidden unit that the kernels save at each step for the backward pass; gates come first."""
        raise NotImplementedError

    @property
    def kernel_struct(self) -> tuple[str, ...]:
        """The struct in the cell's ``.cuh`` file, and its template arguments after the real type."""
        raise NotImplementedError

    def kernel_type(self, real: str) -> str:
        """The cell as a C++ type that computes with ``real``: its struct, wrapped in ``Zoned`` if it has zoneout."""
        name, *arguments = self.kernel_struct
        struct = f"{name}<{', '.join([real, *arguments])}>"
        keeps = self._keeps()
        return struct if set(keeps) == {"Never"} else f"Zoned<{', '.join([struct, *keeps])}>"

    def _keeps(self) -> list[str]:
        """How zoneout keeps each state of the previous step, as template arguments of C++'s ``Zoned``."""
        if "zoneout" not in self.options():
            return ["Never"]
        keeps, at = [], self.number("zoneout")
        for state, rate in zip(self.state_names, _tuple(self.zoneout), strict=True):  # type: ignore[attr-defined]
            mask = f"zoneout_{state}"
            if mask in self.step_masks:
                keeps.append(f"ByMask<{self.step_masks.index(mask)}>")
            else:
                keeps.append(f"ByRate<{at}>" if rate else "Never")
            at += bool(rate)
        return keeps

    def _activation_type(self, option: str, *, clipped: bool = True) -> str:
        """The activation in an option, as a C++ type, with the bound `clip` if there is one."""
        value = getattr(self, option)
        name = "".join(word.capitalize() for word in activations.name_of(value).split("_"))
        name += f"<{self.number(option)}>" if activations.numbers_of(value) else ""
        return name if not clipped or getattr(self, "clip", None) is None else f"Clipped<{name}, {self.number('clip')}>"

    def _members(self) -> list[str]:
        """The members of a struct besides its equations, as C++ template arguments."""
        counts = {"Numbers": len(self.numbers), "Weights": len(self.diagonal), "Masks": len(self.step_masks)}
        sums = {"LayerNorm": self.normalises, "Projection": self.projects}
        return [f"{n}<{count}>" for n, count in counts.items() if count] + [n for n, there in sums.items() if there]


def _evaluated(axis: str, sizes: Mapping[str, int]) -> int:
    """The length of an axis that is written like ``"4*hidden_size"``."""
    return math.prod(int(factor) if factor.isdigit() else sizes[factor] for factor in axis.split("*"))


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
