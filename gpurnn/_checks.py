"""Reject bad arguments. Every message reads ``where: argument is what it was, expected what was wanted``."""

from __future__ import annotations

import contextvars
import difflib
import functools
import inspect
import math
import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

FLOATS = ("float32", "float64")
INEXACT = (*FLOATS, "complex64", "complex128")
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


caller_library: contextvars.ContextVar[str] = contextvars.ContextVar("caller_library", default="numpy")
"""The library of the caller's arrays, for advice in its terms. gpurnn need not compute with it."""


@functools.cache
def _name(kind: Any, dtype: Any) -> str:
    # ``kind`` keeps the cache from comparing dtypes of two libraries, which may raise an error.
    return str(dtype if getattr(dtype, "isnative", True) else dtype.newbyteorder("=")).rpartition(".")[2]


def dtype_name(array: Any) -> str:
    """The name of an array's dtype, such as ``"float32"``, for any library and byte order."""
    kind: Any = type(array.dtype)
    return _name(kind, array.dtype)


def described(value: Any) -> str:
    """Describe a value in a message: ``"an array of shape (3,)"``, ``"a tuple of 2"``, ``"a torch.Tensor"``."""
    if value is None:
        return "None"
    kind, library = type(value).__qualname__, type(value).__module__.partition(".")[0]
    if kind == "ndarray" and library in ("numpy", "cupy"):
        return f"an array of shape {tuple(value.shape)}"
    if library not in ("builtins", "gpurnn", "__main__"):
        kind = f"{library}.{kind}"
    article = "an" if kind[0] in "aeioAEIO" or kind in ("RNN", "LSTM") else "a"
    return f"{article} {kind} of {len(value)}" if isinstance(value, (tuple, list)) else f"{article} {kind}"


def given(where: str, **arrays: Any) -> None:
    """Reject None where an array is needed."""
    for name, array in arrays.items():
        if array is None:
            raise TypeError(f"{where}: {name} is None, expected an array")


def shape(where: str, name: str, array: Any, expected: tuple[int, ...], symbols: str) -> None:
    """Reject an array whose shape is not ``expected``; ``symbols`` is the expected shape in letters."""
    if tuple(array.shape) != expected:
        raise ValueError(f"{where}: {name} has shape {tuple(array.shape)}, expected {symbols} = {expected}")


def ndim(where: str, name: str, array: Any, expected: int, symbols: str) -> None:
    """Reject an array that does not have ``expected`` axes."""
    if array.ndim != expected:
        axes = "axis" if expected == 1 else "axes"
        raise ValueError(f"{where}: {name} has shape {tuple(array.shape)}, expected {expected} {axes} {symbols}")


def cast_expression(name: str, target: str) -> str:
    """The expression that casts an array, in the terms of the caller's library."""
    return f"{name}.to(torch.{target})" if caller_library.get() == "torch" else f"{name}.astype('{target}')"


def cast(name: str, dtype: str, target: str) -> str:
    """Advice on how to cast the array ``name`` from one dtype to another; empty where a cast would make no sense."""
    if dtype.startswith("complex") and not target.startswith("complex"):
        return f"; take {name}.real if the imaginary part does not matter"
    if dtype not in (*INTS, *INEXACT, "bool", "float16", "bfloat16", "float128", "longdouble", "object"):
        return ""
    return f"; cast it with {cast_expression(name, target)}"


def same_dtype(where: str, dtypes: tuple[str, ...] = FLOATS, **arrays: Any) -> None:
    """Reject arrays (None is skipped) unless they all have the same dtype, and it is one of ``dtypes``."""
    names = {name: dtype_name(array) for name, array in arrays.items() if array is not None}
    first, agreed = next(((name, dtype) for name, dtype in names.items() if dtype in dtypes), ("", ""))
    for name, dtype in names.items():
        if dtype not in dtypes:
            target = agreed or ("float64" if dtype in ("float128", "longdouble") else "float32")
            raise TypeError(
                f"{where}: {name} has dtype {dtype}, expected {' or '.join(dtypes)}{cast(name, dtype, target)}"
            )
        if dtype != agreed:
            raise TypeError(
                f"{where}: {name} has dtype {dtype} but {first} has {agreed}, expected one dtype; "
                f"cast with {cast_expression(name, agreed)}"
            )


def floating(where: str, name: str, array: Any, dtypes: tuple[str, ...] = FLOATS) -> None:
    """Reject an array whose dtype is not one of ``dtypes``."""
    same_dtype(where, dtypes, **{name: array})


def integer(where: str, name: str, array: Any) -> None:
    """Reject an array whose dtype is not an integer dtype."""
    dtype = dtype_name(array)
    if dtype not in INTS:
        raise TypeError(f"{where}: {name} has dtype {dtype}, expected an integer dtype{cast(name, dtype, 'int64')}")


def boolean(where: str, name: str, array: Any, or_else: str = "") -> None:
    """Reject an array of neither dtype bool nor an integer dtype (0 and 1 can stand for bools)."""
    dtype = dtype_name(array)
    if dtype != "bool" and dtype not in INTS:
        raise TypeError(
            f"{where}: {name} has dtype {dtype}, expected bool, or integers 0 and 1{or_else}{cast(name, dtype, 'bool')}"
        )


def not_an_array(where: str, name: str, value: Any, cure: str = "") -> TypeError:
    """The error for a ``value`` that is not an array of a supported library; ``cure`` is advice for a masked array."""
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    shown = kind.__qualname__ if library == "builtins" else f"{library}.{kind.__qualname__}"
    message = f"{where}: {name} is a {shown}, expected a numpy.ndarray or a cupy.ndarray"
    if isinstance(value, np.ma.MaskedArray):
        return TypeError(f"{message}, as its mask would be lost; {cure or unmasked(name)}")
    if library == "torch" and kind.__name__ == "PackedSequence":
        return TypeError(
            f"{message}; unpack it with {name}, lengths = torch.nn.utils.rnn.pad_packed_sequence({name}), and pass "
            f"numpy.asarray({name}) and lengths=numpy.asarray(lengths)"
        )
    convert = _conversion(library, name, value)
    return TypeError(f"{message}; convert it with {convert}" if convert else message)


def unmasked(name: str) -> str:
    """Advice on how to pass the masked array ``name`` to a function that cannot skip entries."""
    return f"choose what replaces the masked entries and pass {name}.filled(0), for example"


def _conversion(library: str, name: str, value: Any) -> str:
    """The expression that converts ``value`` to a supported array; empty if there is none."""
    if library in _METHODS:
        return f"{name}{_METHODS[library]}"
    numbers = isinstance(value, (list, tuple, range, int, float, complex, np.generic))
    if numbers or any(hasattr(value, has) for has in ("__array__", "__array_interface__", "__dlpack__", "dtype")):
        return f"numpy.asarray({name})"
    return ""


_METHODS: Mapping[str, str] = {
    "astropy": ".value",
    "cupyx": ".toarray()",
    "pandas": ".to_numpy()",
    "pint": ".magnitude",
    "polars": ".to_numpy()",
    "scipy": ".toarray()",
    "tensorflow": ".numpy()",
    "xarray": ".to_numpy()",
}
"""The code that converts an object of each of these libraries to a NumPy or CuPy array."""


def writable(where: str, name: str, array: Any) -> None:
    """Reject an array that is marked read-only, as NumPy arrays can be."""
    if not getattr(getattr(array, "flags", None), "writeable", True):
        raise ValueError(f"{where}: {name} is read-only, expected an array that can be changed in place")


def integer_at_least(where: str, name: str, value: Any, least: int) -> int:
    """Return ``value`` as an int; reject bools, anything but a whole number, and numbers below ``least``."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{where}: {name} is {_shown(value)}, expected a whole number") from error
    if isinstance(value, bool):
        raise TypeError(f"{where}: {name} is {_shown(value)}, expected a whole number")
    if number < least:
        raise ValueError(f"{where}: {name} is {_shown(number)}, expected at least {least}")
    return number


def size(where: str, name: str, value: Any, least: int = 1) -> int:
    """Return ``value`` as an int; reject numbers below ``least``, or above the largest size of an axis."""
    number = integer_at_least(where, name, value, least)
    if number > 2**63 - 1:
        raise ValueError(f"{where}: {name} is {_shown(number)}, expected at most 2**63 - 1")
    return number


def _shown(value: Any) -> str:
    """Write what is given for a number: Python does not convert an int of thousands of digits, and arrays are long."""
    if isinstance(value, int) and value.bit_length() >= 1000:
        power = value.bit_length() - 1
        return f"at least 2**{power}" if value > 0 else f"at most -2**{power}"
    return described(value) if getattr(value, "shape", ()) else repr(value)


def flag(where: str, name: str, value: Any) -> bool:
    """Return ``value`` as a bool; reject anything but bools of Python and NumPy: a truth value may be an accident."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{where}: {name} is {_shown(value)}, expected True or False")
    return bool(value)


def _real(where: str, name: str, value: Any, expected: str) -> float:
    number = value
    if getattr(value, "shape", None) == () and type(value).__module__ in ("numpy", "cupy"):
        number = value.item()  # an array without axes is a number
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{where}: {name} is {_shown(value)}, expected {expected}")
    try:
        return float(number)
    except OverflowError:  # an int that is larger than every float
        return math.inf if number > 0 else -math.inf  # type: ignore[operator]


def finite(where: str, name: str, value: float) -> float:
    """Return ``value`` as a float; reject infinities and NaN."""
    number = _real(where, name, value, "a finite number")
    if not math.isfinite(number):
        raise ValueError(f"{where}: {name} is {value!r}, expected a finite number")
    return number


def score(where: str, name: str, value: Any) -> float:
    """Return a score from a caller's function as a float, with bools as 0 or 1; reject infinities and NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, (str, bytes)):
        raise TypeError(f"{where}: {name} is {_shown(value)}, expected a finite number")
    return finite(where, name, number)


def non_negative(where: str, name: str, value: float) -> float:
    """Return ``value`` as a float; reject negative numbers, infinity and NaN."""
    number = _real(where, name, value, "a number of at least 0")
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{where}: {name} is {value!r}, expected a number of at least 0")
    return number


def positive(where: str, name: str, value: float) -> float:
    """Return ``value`` as a float; reject numbers that are not above 0. Infinity is allowed."""
    number = _real(where, name, value, "a positive number")
    if not number > 0.0:
        raise ValueError(f"{where}: {name} is {value!r}, expected a positive number")
    return number


def path(where: str, name: str, value: Any) -> None:
    """Reject a value that cannot be the path of a file or a directory."""
    held = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(held, str):
        cure = f"; decode it with os.fsdecode({name})" if isinstance(held, bytes) else ""
        raise TypeError(f"{where}: {name} is {described(value)}, expected a str or a path-like object{cure}")
    try:
        writable = "\0" not in held and os.fsencode(held) != b""
    except UnicodeEncodeError:
        writable = False
    if not writable:
        raise ValueError(f"{where}: {name} is {held!r}, expected the path of a file or a directory")


def function(where: str, name: str, value: Any) -> None:
    """Reject a value that is neither None nor callable."""
    if value is not None and not callable(value):
        raise TypeError(f"{where}: {name} is {value!r}, expected a function or None")


def fraction(where: str, name: str, value: float) -> float:
    """Return ``value`` as a float; reject numbers outside [0, 1)."""
    number = _real(where, name, value, "a probability in [0, 1)")
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{where}: {name} is {value!r}, expected a probability in [0, 1)")
    return number


def probability(where: str, name: str, value: float) -> float:
    """Return ``value`` as a float; reject numbers outside [0, 1]."""
    number = _real(where, name, value, "a probability in [0, 1]")
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{where}: {name} is {value!r}, expected a probability in [0, 1]")
    return number


def choice(where: str, name: str, value: Any, choices: tuple[T, ...]) -> T:
    """Return the member of ``choices`` that equals ``value``; reject any other value."""
    for one in choices:
        if value is one or (isinstance(value, str) and value == one):
            return one
    raise ValueError(f"{where}: {name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def warn(where: str, said: str) -> None:
    """Warn at the line that called the library. Python shows a warning once for each line."""
    frame, level = sys._getframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "gpurnn":
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    warnings.warn(f"{where}: {said}", UserWarning, stacklevel=level)


def options(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Reject options that are not among the ``known`` names."""
    known = sorted(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{where}: {name} is not an option, expected one of {', '.join(known)}{near(name, known)}")


def near(name: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known name that it resembles, if there is one."""
    known = list(known)
    close = difflib.get_close_matches(str(name).lower(), [each.lower() for each in known], 1)
    return f"; did you mean {' or '.join(each for each in known if each.lower() in close)}?" if close else ""


def signature(kind: type, method: str = "__init__") -> inspect.Signature:
    """The signature of a class's method, without self, but with the keywords that it passes on to its bases.

    The keywords of the bases come first. Each has the default of the class.
    """
    chain: list[list[inspect.Parameter]] = []
    for base in kind.__mro__[:-1]:
        if method in vars(base):
            chain.append(list(inspect.signature(vars(base)[method]).parameters.values())[1:])
            if all(p.kind is not p.VAR_KEYWORD for p in chain[-1]):
                break
    first = chain[0] if chain else []
    positional = {p.name: p for p in first if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)}
    keywords = {p.name: p for of_base in reversed(chain) for p in of_base if p.kind is p.KEYWORD_ONLY}
    rest = [p for p in (chain[-1] if chain else []) if p.kind is p.VAR_KEYWORD]
    return inspect.Signature([*positional.values(), *(p for n, p in keywords.items() if n not in positional), *rest])


def keywords(kind: type, method: str) -> set[str]:
    """The keyword-only arguments of a class's method, including those that it passes on to its bases."""
    return {p.name for p in signature(kind, method).parameters.values() if p.kind is p.KEYWORD_ONLY}


class ListsOptions:
    """A class whose constructor answers an unknown keyword with an error that lists all keywords.

    Python's own error lists no keywords, and does not suggest the likeliest.
    """

    def __new__(cls, *args: Any, **given: Any) -> Self:
        known = signature(cls).parameters.values()
        if all(p.kind is not p.VAR_KEYWORD for p in known):
            options(cls.__name__, given, [p.name for p in known])
        return super().__new__(cls)


def lists_options(method: F) -> F:
    """Answer an unknown keyword of a method with an error that lists all keywords, including those of its bases."""
    name = method.__name__

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        kind = type(self)
        if kwargs:
            owner = next(base for base in kind.__mro__ if vars(base).get(name) is checked)
            known = signature(owner, name).parameters
            unknown = [key for key in kwargs if key not in known]
            if unknown:
                optional = [n for n, p in known.items() if p.default is not p.empty]
                options(kind.__name__ if name == "__init__" else f"{kind.__name__}.{name}", unknown, optional)
        return method(self, *args, **kwargs)

    return checked  # type: ignore[return-value]


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes a keyword argument of this name."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def attributes(instance: Any, check: Callable[..., Any], *names: str, **arguments: Any) -> None:
    """Pass attributes of a dataclass through one of the checks, and store the results."""
    for name in names:
        value = check(type(instance).__name__, name, getattr(instance, name), **arguments)
        object.__setattr__(instance, name, value)  # works on a frozen dataclass too


def no_state(where: str, state: Any) -> None:
    """Reject a state: here, no batch continues another."""
    if state is not None:
        raise TypeError(f"{where}: state is {described(state)}, expected None: no batch continues another")
