"""The base classes of layers. A layer consists of its configuration and a flat dict of arrays, which alone change."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import inspect
import math
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks, _dispatch, _files, _foreign, _sharing
from .._contract import Array
from .._fork import Lock
from .._op import Pullback
from .._random import generator

if TYPE_CHECKING:
    from typing_extensions import Self


PYTORCH_GRU = "reset_after=True, update='state'"
"""The form of the GRU that weights from PyTorch and cuDNN have."""

TOKENS = 0
"""The width that `Layer._widths` returns for an input of tokens, which has no axis of features."""


class Layer(_checks.ListsOptions, ABC):
    """A function of arrays with named parameters.

    Calling a layer is inference and saves nothing; `vjp` also returns the pullback to the gradients.

    A subclass sets ``params`` and defines ``__call__`` and ``vjp``. It stores each argument of its constructor in an
    attribute of the same name, which its repr, `config` and `clone` use. For `Sequential` to run it, ``vjp`` takes
    ``(x, rng)``, or ``(x, state, lengths, resets, rng)`` if ``stateful`` is True.

    Attributes
    ----------
    params : dict of str to array
        The parameters by name; an optimizer updates the arrays in place. An assignment puts another array of the same
        shape and dtype in the place of one; names are fixed.
    stateful : bool
        Whether the layer takes ``(x, state, lengths, resets)`` and returns ``(y, state)``, instead of x and y.
    batch_first : bool or None
        Whether time is the second axis of x instead of the first; None for a layer that treats all positions alike.
    """

    stateful = False
    batch_first: bool | None = None
    params: dict[str, Array]

    _positional: tuple[str, ...] = ()
    """The leading constructor arguments that the repr shows without their names, although they have a default."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the methods of gpurnn's own layers take arrays of any library."""
        super().__init_subclass__(**kwargs)
        if cls.__module__.partition(".")[0] == "gpurnn":
            for name in _foreign.METHODS:
                if name in vars(cls) and not hasattr(vars(cls)[name], "handles_foreign"):
                    setattr(cls, name, _foreign.accepts(vars(cls)[name], method=True))

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters hold; a parameter with two names is counted once."""
        return sum(math.prod(p.shape) for p in _sharing.merged(self.params).values())

    def _dtypes(self) -> list[str]:
        """The dtypes of the parameters, each once."""
        return list(dict.fromkeys(_checks.dtype_name(p) for p in self.params.values()))

    def to(self, device: Any) -> Self:
        """Return this layer with its parameters copied to a device.

        Parameters
        ----------
        device : str or module
            "cpu" for NumPy arrays, "cuda" for CuPy arrays on the current GPU, "cuda:1" for another GPU; or the array
            module itself: numpy, cupy or an array-API namespace.

        Raises
        ------
        ValueError, TypeError
            There is no such device.
        RuntimeError
            There is no CuPy or no CUDA device; the message says why.
        """
        xp, moved = _dispatch.arrays_on(device), copy.copy(self)
        copies = {name: _dispatch.from_numpy(xp, _dispatch.to_numpy(p)) for name, p in self.params.items()}
        moved.params = Parameters(copies) if isinstance(self.params, Parameters) else copies
        moved._share(self._shared())
        return moved

    def _places(self) -> dict[str, tuple[dict[str, Array], str]]:
        """The place of each array, by its full name: a dict, and the name there. An array may have several places."""
        return {name: (self.params, name) for name in self.params}

    def _first_names(self) -> dict[str, str]:
        """For each place the name of the first place that holds the same array; this is the parameter's name."""
        return _sharing.first_names({name: held[own] for name, (held, own) in self._places().items()})

    def _shared(self) -> dict[str, str]:
        """The further places of shared parameters, and for each the parameter's name."""
        return {name: first for name, first in self._first_names().items() if name != first}

    def _share(self, shared: Mapping[str, str]) -> None:
        """Put the parameters with these names into these further places."""
        places = self._places() if shared else {}
        for name, first in shared.items():
            if name not in places or first not in places:
                raise ValueError(f"{name} and {first} are to be one parameter, expected two of {sorted(places)}")
            (held, own), (source, there) = places[name], places[first]
            if held[own].shape != source[there].shape or held[own].dtype != source[there].dtype:
                raise ValueError(f"{name} and {first} differ in shape or dtype, expected one parameter for both")
            held[own] = source[there]

    def __getstate__(self) -> dict[str, Any]:
        # copy and pickle recognise a shared array by its id, so all its places must hold the same object.
        self._share(self._shared())
        return self.__dict__.copy()

    def _summed(self, grads: Mapping[str, Array]) -> dict[str, Array]:
        """The gradients by parameter; the gradient of a shared parameter is the sum over its places."""
        return _sharing.summed(grads, self._first_names())

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of the parameters as C-contiguous NumPy arrays, by name."""
        return {name: copied(p) for name, p in self.params.items()}

    def _forms(self) -> dict[str, str]:
        """The form of each GRU, by the prefix of its parameters' names; shapes do not reveal it."""
        return {}

    def load_state_dict(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Copy values into the parameters: all of them, or none if one does not fit.

        The same weights give other outputs in a GRU of another form, and neither their names nor their shapes reveal
        the form. A `state_dict` and gpurnn's files record the form, and so does a dict that is made with the names of
        `params` or `state_dict`; weights of another form are rejected. Weights from elsewhere are assumed to be
        PyTorch's: a GRU of any form except ``reset_after=True, update="state"`` warns.

        Raises
        ------
        KeyError
            A parameter is missing, or a name is not a parameter of this layer.
        ValueError, TypeError
            A value is not an array, or its shape or dtype differs from the parameter's; a parameter is read-only; or
            the weights belong to another form of the GRU.
        """
        where = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state, Mapping):
            raise TypeError(f"{where}: state is {_checks.described(state)}, expected a dict of arrays by name")
        with self._overwritten():
            self._load(where, state)

    @contextlib.contextmanager
    def _overwritten(self) -> Iterator[None]:
        """Within this context, do not make initial parameters that nobody has read yet: they will be overwritten."""
        yield

    def _load(self, where: str, state: Mapping[str, Any]) -> None:
        state = self._by_parameter(where, state)
        missing, unknown = self.params.keys() - state.keys(), state.keys() - self.params.keys()
        if missing or unknown:
            raise KeyError(
                f"{where}: missing {sorted(missing) or 'none'}, unknown {sorted(unknown, key=str) or 'none'}, "
                f"expected {sorted(self.params)}"
            )
        values = []
        for name, p in self.params.items():
            value = state[name]
            _check_value(where, f"state[{name!r}]", value, p)
            _checks.writable(where, f"the parameter {name}", p)
            # Copied before anything is written, because values may be parameters of this layer.
            values.append(_dispatch.from_numpy(_dispatch.namespace(where, **{name: p}), _dispatch.to_numpy(value)))
        self._check_forms(where, state)
        for p, value in zip(self.params.values(), values, strict=True):
            p[...] = value

    def _check_forms(self, where: str, names: Iterable[str]) -> None:
        """Reject weights of another form of the GRU; warn about weights whose names do not record the form."""
        for prefix, form in self._forms().items():
            of = f"{prefix.removesuffix('.')} is " if prefix else ""
            own = [name for name in names if name.startswith(prefix)]
            forms = {name.form for name in own if isinstance(name, ParameterName)}
            if forms - {form}:
                raise ValueError(f"{where}: {of}a GRU with {min(forms - {form})}, expected {form} as this layer has")
            if own and not forms and form != PYTORCH_GRU:
                _checks.warn(
                    where,
                    f"{of or 'this is '}a GRU with {form}, and the weights do not say which form they are of. "
                    f"PyTorch's are of {PYTORCH_GRU}: for those make the layer with these options.",
                )
                return

    def _by_parameter(self, where: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``state`` without further places of shared parameters; reject values that differ between places."""
        kept = dict(state)
        for name, first in self._shared().items():
            if name not in kept:
                continue
            if first in kept and not np.array_equal(kept[name], kept[first], equal_nan=True):
                raise ValueError(
                    f"{where}: {name} differs from {first}, expected the same values: in this layer they are one "
                    "parameter"
                )
            if name not in self.params:
                del kept[name]
        return kept

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to a safetensors file, which other programs can read too. A model is written whole.

        Parameters
        ----------
        path : path
            An existing file is replaced at once, and keeps its mode; a symbolic link stays, and its target is replaced.
            If writing fails, the old file stays and nothing new is left behind.

        Raises
        ------
        TypeError, ValueError
            ``path`` is not a path, or the configuration of a model is not JSON-compatible; the message says where.
        OSError
            The file cannot be written.
        """
        _files.write_tensors(path, f"{type(self).__name__}.save", *self._content(), self.state_dict())

    def _content(self) -> tuple[str, Any]:
        """The kind of this layer's file, and its content besides the parameters."""
        forms = self._forms()
        return "layer", {"forms": forms} if forms else None

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read the parameters from a safetensors file. The file may come from other programs; gpurnn's have a checksum.

        From a file of its own class, a model also takes what else `fit` learnt: labels, scales of targets.

        Raises
        ------
        FileFormatError
            The file is damaged or not a safetensors file, or `load_state_dict` rejects its arrays. The layer stays as
            it was. This error is a `ValueError`.
        TypeError, ValueError
            ``path`` is not a path.
        OSError
            The file does not exist or cannot be read.
        """
        _checks.path(f"{type(self).__name__}.load", "path", path)
        content, tensors = _files.read_tensors(path)
        forms = content.get("forms") if isinstance(content, dict) else None
        with self._overwritten():
            for name, p in self.params.items():
                if name in tensors and (dtype := tensors[name].dtype) != (own := _checks.dtype_name(p)):
                    cure = f"; make it with dtype='{dtype}'" if dtype in _checks.FLOATS else ""
                    raise _files.FileFormatError(
                        f"{os.fspath(path)}: {name} has dtype {dtype}, expected {own} as the layer has{cure}"
                    )
            try:
                self.load_state_dict(named(tensors, forms if isinstance(forms, dict) else {}))
            except (KeyError, ValueError, TypeError) as error:
                raise _files.FileFormatError(f"{os.fspath(path)}: {_files.reason(error)}") from error
        self._take_content(content)

    def _take_content(self, content: Any) -> None:
        """Take over the content of a loaded file besides the parameters."""

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        """The sizes of the last axes of input and output, given the input's size; None if unknown."""
        return None, None

    def config(self) -> dict[str, Any]:
        """The arguments of the constructor by name, defaults included, in a JSON-compatible form.

        They define the layer, except the values of its parameters. ``init`` and ``rng``, which the constructor uses to
        draw initial parameters, are not among them.

        Raises
        ------
        AttributeError
            The layer has no attribute for an argument of the constructor.

        Examples
        --------
        >>> import gpurnn
        >>> gpurnn.Dense(2, 3, activation="tanh").config()
        {'in_features': 2, 'out_features': 3, 'bias': True, 'activation': 'tanh', 'dtype': 'float32'}
        """
        values: dict[str, Any] = {}
        for name, p in self._signature().parameters.items():
            value = self._argument(name)
            values |= value if p.kind is p.VAR_KEYWORD else {name: value}
        return {name: _plain(value) for name, value in values.items()}

    def clone(self, *, rng: int | np.random.Generator = 0) -> Self:
        """Return a new layer of the same configuration, with the constructor's default initial parameters.

        Parameters
        ----------
        rng : int or numpy.random.Generator
            Where the initial parameters come from.

        Raises
        ------
        AttributeError
            The layer has no attribute for an argument of the constructor.

        Examples
        --------
        >>> import gpurnn
        >>> layer = gpurnn.GRU(2, 3, bidirectional=True)
        >>> layer.clone(rng=1)
        GRU(2, 3, bidirectional=True)  # 126 parameters
        """
        random = generator(f"{type(self).__name__}.clone", rng)
        arguments = OrderedDict((n, _cloned(self._argument(n), random)) for n in self._signature().parameters)
        signature = _checks.signature(type(self))
        if "rng" in signature.parameters:
            arguments["rng"] = random
        bound = inspect.BoundArguments(signature, arguments)
        cloned = type(self)(*bound.args, **bound.kwargs)
        cloned._share(self._shared())
        return cloned

    @classmethod
    def _signature(cls) -> inspect.Signature:
        """The constructor's arguments, except those for drawing initial parameters."""
        signature = _checks.signature(cls)
        return signature.replace(parameters=[p for n, p in signature.parameters.items() if n not in ("init", "rng")])

    def _argument(self, name: str) -> Any:
        """The constructor argument that makes a layer like this one: by default the attribute of the same name."""
        if name == "dtype" and self.params:
            return _checks.dtype_name(next(iter(self.params.values())))
        try:
            return getattr(self, name)
        except AttributeError as error:
            kind = type(self).__name__
            raise AttributeError(
                f"{kind}: {name} is not an attribute, expected one with the value of the constructor's argument {name}"
            ) from error

    def _expression(self) -> str:
        """The call that makes a layer like this one, for the repr, without options that have their default."""
        shown: list[str] = []
        for name, p in self._signature().parameters.items():
            try:
                value = self._argument(name)
            except AttributeError:  # a caller's class that does not store all of its arguments
                shown.append("...")
                continue
            if p.kind is p.VAR_POSITIONAL:
                shown += [text(entry) for entry in value]
            elif p.kind is p.VAR_KEYWORD:
                shown += [f"{key}={text(entry)}" for key, entry in value.items()]
            elif p.default is p.empty or name in self._positional:
                shown.append(text(value))
            elif repr(value) != repr(p.default):
                shown.append(f"{name}={text(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __repr__(self) -> str:
        return f"{self._expression()}  # {self.num_parameters:,} parameters"

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's outputs; save nothing."""

    @abstractmethod
    def vjp(self, *args: Any, **kwargs: Any) -> tuple[Any, Pullback]:
        """Return the layer's outputs and their pullback."""


class Parameters(dict[str, Array]):
    """The parameters of a layer by name: the names are fixed, and so are the arrays' shapes and dtypes.

    Parameters
    ----------
    arrays : dict of str to array
    whole : Layer, optional
        The composite layer whose parts hold the arrays. An assignment goes to all places of a parameter, so that what
        is tied stays tied.
    """

    def __init__(self, arrays: Mapping[str, Array], whole: Layer | None = None) -> None:
        super().__init__(arrays)
        self._whole = whole

    def __setitem__(self, name: str, value: Array) -> None:
        if name not in self:
            expected = f"one of {', '.join(self)}" if self else "no assignment: the layer has none"
            raise KeyError(f"params: {name!r} is not a parameter, expected {expected}{_checks.near(name, self)}")
        _check_value("params", f"params[{name!r}]", value, self[name])
        if self._whole is not None:
            places = self._whole._places()
            for place, first in self._whole._first_names().items():
                if first == name:
                    held, own = places[place]
                    held[own] = value
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        raise TypeError(
            f"params: {name!r} is to be deleted, expected a parameter to stay; overwrite it with "
            f"params[{name!r}][...] = 0, or make the layer without it"
        )

    # Those of dict would go past the two methods above.
    clear, pop, popitem = MutableMapping.clear, MutableMapping.pop, MutableMapping.popitem
    setdefault, update = MutableMapping.setdefault, MutableMapping.update

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies of a composite layer's belong to no layer.
        return (Parameters if self._whole is None else dict, (dict(self),))


def without(params: Mapping[str, Array], name: str) -> Parameters:
    """The parameters except one, for a layer of a model that does without it."""
    return Parameters({other: array for other, array in params.items() if other != name})


def _check_value(where: str, shown: str, value: Any, p: Array) -> None:
    """Reject a value that cannot take the place of the parameter ``p``."""
    _dispatch.namespace(where, **{shown: value})
    _checks.shape(where, shown, value, tuple(p.shape), "the parameter's shape")
    _checks.same_dtype(where, **{"the parameter": p, shown: value})


def _plain(value: Any) -> Any:
    """The JSON-compatible form of a constructor argument."""
    if isinstance(value, Layer):
        return {"layer": type(value).__name__, **value.config()}
    if isinstance(value, tuple) and any(isinstance(entry, Layer) for entry in value):
        return [_plain(entry) for entry in value]
    return value.config() if hasattr(value, "config") else value


def _cloned(value: Any, rng: np.random.Generator) -> Any:
    """A constructor argument, with clones of the layers in it."""
    if isinstance(value, tuple):
        return tuple(_cloned(entry, rng) for entry in value)
    return value.clone(rng=rng) if isinstance(value, Layer) else value


def text(value: Any) -> str:
    """The text of a constructor argument in a repr."""
    return str(value._expression()) if hasattr(value, "_expression") else repr(value)


class ParameterName(str):
    """A GRU parameter's name, which also records the form of the GRU; dicts with this key carry the form too."""

    form: str

    def __new__(cls, name: str, form: str) -> Self:
        made = super().__new__(cls, name)
        made.form = form
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # what pickle and copy pass to __new__
        return str(self), self.form


def named(arrays: Mapping[str, Array], forms: Mapping[str, str]) -> dict[str, Array]:
    """Return ``arrays`` under names that record the form of their GRU; ``forms`` has the forms by prefix."""
    for prefix, form in forms.items():
        arrays = {ParameterName(n, form) if n.startswith(prefix) else n: array for n, array in arrays.items()}
    return dict(arrays)


def _behind(prefix: str, name: str) -> str:
    """A parameter's name in a composite layer, with the part's prefix."""
    joined = f"{prefix}{name}"
    return ParameterName(joined, name.form) if isinstance(name, ParameterName) else joined


def copied(array: Array) -> np.ndarray[Any, Any]:
    """A C-contiguous copy of an array of any supported library as a NumPy array in the machine's byte order."""
    values = _dispatch.to_numpy(array)
    return np.array(values, values.dtype.newbyteorder("="), order="C")


class _Allowance:
    """The number of parameters, and of their bytes, that a constructor may still make."""

    def __init__(self, tensors: Mapping[str, np.ndarray[Any, Any]] | None) -> None:
        self.count = self.size = math.inf
        if tensors is None:
            return
        # Twice the file's contents, because a model may make a parameter that it then ties to another.
        self.count = 2 * len(tensors)
        self.size = 2 * sum(tensor.nbytes for tensor in tensors.values())

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.count -= 1
        self.size -= math.prod(shape) * dtype.itemsize
        if self.count < 0 or self.size < 0:
            raise ValueError("the configuration asks for more parameters than the file holds")


_allowance: contextvars.ContextVar[_Allowance | None] = contextvars.ContextVar("allowance", default=None)


@contextlib.contextmanager
def uninitialised(tensors: Mapping[str, np.ndarray[Any, Any]] | None = None) -> Iterator[None]:
    """Within this context, `parameter` makes zeros to be overwritten by ``tensors``, and no more than those can fill.

    Without ``tensors`` there is no limit. Zeros that nobody reads take no memory, so a constructor then checks its
    arguments and draws nothing.
    """
    token = _allowance.set(_Allowance(tensors))
    try:
        yield
    finally:
        _allowance.reset(token)


def parameter(
    shape: tuple[int, ...], dtype: np.dtype[Any], initialise: Callable[[], np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """A new parameter of a layer, from ``initialise()``; every layer makes all of its parameters here.

    While a file is read, initial values would be overwritten, so zeros save the seconds of an orthogonal matrix.
    """
    allowance = _allowance.get()
    if allowance is None:
        check_size(shape)
        return initialise()
    allowance.take(shape, dtype)
    return np.zeros(shape, dtype)


def check_size(shape: tuple[int, ...]) -> None:
    """Reject the shape of a parameter that no computer can hold."""
    if math.prod(shape) > sys.maxsize // 16:  # initial values may be complex
        raise MemoryError(f"a parameter has shape {shape}, expected one that a computer can hold")


class InitialParameters:
    """The attribute ``params`` of a layer that makes its initial parameters when they are first read.

    Until then, ``_initial`` holds the arguments of the layer's ``_initialise``. From then on, ``params`` is an ordinary
    attribute.
    """

    _lock = Lock(threading.RLock)

    def __get__(self, layer: Any, kind: type) -> Any:
        if layer is None:
            return self
        with self._lock.current:
            held = vars(layer)
            if "params" not in held:
                if "_initial" not in held:
                    raise AttributeError(f"{kind.__name__}: params is not there yet: the constructor has not set it")
                token = _allowance.set(None)  # these are not the parameters that are to be overwritten
                try:
                    held["params"] = layer._initialise(*layer._initial)
                finally:
                    _allowance.reset(token)
                del held["_initial"]
            return held["params"]

    @staticmethod
    @contextlib.contextmanager
    def overwritten(layer: Any) -> Iterator[None]:
        """Within this context, ``params`` is zeros if nobody has read it; an error restores the unread state."""
        initial = vars(layer).pop("_initial", None)
        if initial is None:
            yield
            return
        with uninitialised():
            layer.params = layer._initialise(*initial)
        try:
            yield
        except BaseException:
            del layer.params
            layer._initial = initial
            raise


def is_initialised_later(init: Any, rng: Any) -> bool:
    """Whether initial parameters can be made later: nothing else uses their generator, and nothing can fail."""
    by_name = all(isinstance(one, str) for one in (init if isinstance(init, tuple) else (init,)))
    return by_name and not isinstance(rng, np.random.Generator) and _allowance.get() is None


class Chain:
    """Functions applied one after another, and the backward pass through them.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn import Dense
    >>> chain, hidden, output = Chain(), Dense(2, 3), Dense(3, 1)
    >>> y = chain("hidden", hidden.vjp(np.ones((4, 2), np.float32)))
    >>> y = chain("output", output.vjp(y))
    >>> dx, grads = chain.pull(np.ones_like(y))
    >>> dx.shape, {part: list(of_part) for part, of_part in grads.items()}
    ((4, 2), {'output': ['weight', 'bias'], 'hidden': ['weight', 'bias']})
    """

    def __init__(self) -> None:
        self._pulls: list[tuple[str | None, Pullback]] = []

    def __call__(self, part: str | None, outcome: tuple[Array, Pullback]) -> Array:
        """Return the output of a ``vjp`` and keep its pullback. ``part`` names a layer, None if without parameters."""
        y, pull = outcome
        self._pulls.append((part, pull))
        return y

    def pull(self, dy: Array | None) -> tuple[Any, dict[str, dict[str, Array]]]:
        """The gradient of the first input, and the gradients of the parameters by part."""
        grads = {}
        for part, pull in reversed(self._pulls):
            dy, of_part = pull(dy)
            if part is not None:
                grads[part] = of_part
        return dy, grads


class Composite(Layer):
    """A layer made of layers: its parameters are theirs, each once, under its first name."""

    parts: tuple[str, ...]
    """The attributes that hold the layers. The names of parameters begin with them."""

    def _layers(self) -> dict[str, Layer]:
        """The layers by the prefix of their parameters' names."""
        return {f"{part}.": getattr(self, part) for part in self.parts}

    def _dtypes(self) -> list[str]:
        return list(dict.fromkeys(dtype for layer in self._layers().values() for dtype in layer._dtypes()))

    @contextlib.contextmanager
    def _overwritten(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for layer in self._layers().values():
                stack.enter_context(layer._overwritten())
            yield

    def _replace_layers(self, layers: dict[str, Layer]) -> None:
        """Replace the layers that `_layers` returns."""
        for prefix, layer in layers.items():
            setattr(self, prefix.removesuffix("."), layer)

    def to(self, device: Any) -> Self:
        xp, moved = _dispatch.arrays_on(device), copy.copy(self)
        moved._replace_layers({prefix: layer.to(xp) for prefix, layer in self._layers().items()})
        moved._share(self._shared())
        return moved

    to.__doc__ = Layer.to.__doc__

    def _named(self, grads: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
        """The gradients by parameter, from the gradients of each part."""
        return self._summed({f"{part}.{name}": g for part, of_part in grads.items() for name, g in of_part.items()})

    @property
    def params(self) -> dict[str, Array]:  # type: ignore[override]
        """The parameters of the layers. Each name begins with the layer's name and a dot."""
        arrays = _sharing.merged({name: held[own] for name, (held, own) in self._places().items()})
        return Parameters(arrays, self)

    def _forms(self) -> dict[str, str]:
        return {
            f"{prefix}{name}": form for prefix, layer in self._layers().items() for name, form in layer._forms().items()
        }

    def _places(self) -> dict[str, tuple[dict[str, Array], str]]:
        return {
            _behind(prefix, name): place
            for prefix, layer in self._layers().items()
            for name, place in layer._places().items()
        }


def parameter_dtype(where: str, dtype: Any) -> np.dtype[Any]:
    """The NumPy dtype of a layer's ``dtype`` argument, in the machine's byte order; reject unsupported dtypes."""
    expected = " or ".join(_checks.FLOATS)
    try:
        parsed: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{where}: dtype is {dtype!r}, expected {expected}") from error
    # NumPy reads None as float64.
    if dtype is None or parsed.name not in _checks.FLOATS:
        raise TypeError(f"{where}: dtype is {dtype!r}, expected {expected}")
    return np.dtype(parsed.name)  # the object that all arrays of this dtype share
