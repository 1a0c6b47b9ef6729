"""Layers one after another."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _checks, _dispatch
from .._contract import Array, SequenceLayer, StatelessLayer
from .._op import Pullback
from .._random import generator
from ..functional._state import cotangent_pair
from .attention import MultiHeadAttention, TransformerBlock
from .base import TOKENS, Composite, Layer


def _zero_where(condition: Array, x: Array) -> Array:
    """Return x, with zeros where a condition on its first axes holds."""
    xp = _dispatch.namespace("Sequential", x=x)
    return xp.where(xp.reshape(condition, (*condition.shape, *[1] * (x.ndim - condition.ndim))), xp.zeros_like(x), x)


class Sequential(Composite):
    """Layers one after another: the output of each is the input of the next.

    It always takes and returns states: a tuple with the state of each recurrent layer, in order. ``lengths``,
    ``resets`` and ``mask`` go to every recurrent layer. The input past a length, or at a step that the mask leaves out,
    is not read, not even by layers before the first recurrent one.

    Parameters
    ----------
    *layers : Layer
        The output of each must fit the next: the widths, as far as they are known, the dtypes, and which axis is time.

    Raises
    ------
    TypeError, ValueError
        An argument is not a layer, or is a layer that takes or returns more than one array; or two layers do not fit.

    Attributes
    ----------
    params : dict of str to array
        The layers' own arrays under ``"0.weight"``, ``"1.weight_ih_l0"``, ... An array in several places, such as those
        of a layer that occurs twice, is one parameter, under its first name. Its gradient is the sum over the places.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> model = gpurnn.Sequential(gpurnn.Embedding(10, 3), gpurnn.GRU(3, 4), gpurnn.Dense(4, 10))
    >>> model
    Sequential(
      0: Embedding(10, 3)  # 30 parameters
      1: GRU(3, 4)  # 108 parameters
      2: Dense(4, 10)  # 50 parameters
    )  # 188 parameters
    >>> y, (h,) = model(np.array([[1, 2], [3, 4]]))
    >>> y.shape, h.shape
    ((2, 2, 10), (1, 2, 4))
    """

    stateful = True

    def __init__(self, *layers: Layer) -> None:
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                cure = "; pass them one by one: Sequential(*layers)" if isinstance(layer, (list, tuple)) else ""
                raise TypeError(f"Sequential: argument {index} is {_checks.described(layer)}, expected a Layer{cure}")
            _check_call(index, layer)
        self.layers = layers
        self.batch_first = next((p.batch_first for _, p in _flat(layers) if p.batch_first is not None), None)
        self._widths(None)
        _check_axes(layers)
        _check_dtypes(layers)

    def _layers(self) -> dict[str, Layer]:
        return {f"{index}.": layer for index, layer in enumerate(self.layers)}

    def _replace_layers(self, layers: dict[str, Layer]) -> None:
        self.layers = tuple(layers.values())

    def __call__(
        self,
        x: Array,
        state: Any = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, tuple[Any, ...]]:
        """Return the last layer's output and the tuple of the recurrent layers' final states.

        Raises
        ------
        ValueError
            There is a mask, but no layer takes one, or a layer with a state does not take one.
        """
        masks = self._masks(mask)
        states, finals = self._states(state), []
        x, _ = self._read(x, lengths, mask)
        for layer, own in zip(self.layers, masks, strict=True):
            if layer.stateful:
                x, final = layer(x, next(states), lengths, resets, **own)
                finals.append(final)
            else:
                x = layer(x)
        return x, tuple(finals)

    def vjp(
        self,
        x: Array,
        state: Any = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        rng: int | np.random.Generator | None = None,
        *,
        mask: Array | None = None,
        checkpoint_every: int | str | None = None,
        state_after: int | None = None,
    ) -> tuple[tuple[Array, tuple[Any, ...]], Pullback]:
        """Return ``((y, state), pullback)``; ``pullback((dy, dstate))`` returns ``((dx, dstate0), grads)``.

        The first four arguments and ``mask`` are those of a call. Without ``rng`` there is no dropout.
        ``checkpoint_every`` and ``state_after`` go to the recurrent and state-space layers, see `gpurnn.LSTM`. The
        arrays between layers are kept for all steps.

        Raises
        ------
        ValueError
            No layer takes ``checkpoint_every`` or the mask, or a layer with a state does not take ``state_after`` or
            the mask.
        """
        given = {"checkpoint_every": checkpoint_every, "state_after": state_after}
        options = self._options({name: value for name, value in given.items() if value is not None})
        options = [{**own, **masked} for own, masked in zip(options, self._masks(mask), strict=True)]
        random = None if rng is None else generator("Sequential", rng)
        states, finals, pulls = self._states(state), [], []
        x, past = self._read(x, lengths, mask)
        for layer, own_options in zip(self.layers, options, strict=True):
            if layer.stateful:
                (x, final), pull = layer.vjp(x, next(states), lengths, resets, random, **own_options)
                finals.append(final)
            else:
                x, pull = layer.vjp(x, random)
            pulls.append(pull)

        def pullback(cotangents: Any) -> tuple[tuple[Array, tuple[Any, ...]], dict[str, Array]]:
            dx, dstate = cotangent_pair("Sequential", cotangents)
            dstates = list(self._states(dstate, "dstate"))
            dstate0: list[Any] = []
            grads: dict[str, dict[str, Array]] = {}
            for index, (layer, pull) in reversed(list(enumerate(zip(self.layers, pulls, strict=True)))):
                if layer.stateful:
                    (dx, dinitial), grads[f"{index}"] = pull((dx, dstates.pop()))
                    dstate0.insert(0, dinitial)
                else:
                    dx, grads[f"{index}"] = pull(dx)
            if past is not None and dx is not None:
                dx = _zero_where(past, dx)
            return (dx, tuple(dstate0)), self._named(grads)

        return (x, tuple(finals)), pullback

    def _options(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """The options of `vjp` that go to each layer."""
        taken = [{name: value for name, value in options.items() if name in vjp_options(p)} for p in self.layers]
        if "checkpoint_every" in options and not any("checkpoint_every" in own for own in taken):
            raise ValueError(
                f"Sequential: checkpoint_every is {options['checkpoint_every']!r}, expected None: no layer takes it, "
                "only recurrent and state-space layers can recompute their steps"
            )
        for index, (layer, own) in enumerate(zip(self.layers, taken, strict=True)):
            # A block's state is None after any number of steps.
            has_state = layer.stateful and not isinstance(layer, TransformerBlock)
            if "state_after" in options and has_state and "state_after" not in own:
                raise ValueError(
                    f"Sequential: state_after is {options['state_after']!r}, expected None: {_part(index, layer)} does "
                    "not tell its state between two steps"
                )
        return taken

    def _masks(self, mask: Array | None) -> list[dict[str, Array]]:
        """The mask as an option for each layer that takes it; an empty dict for the others."""
        if mask is None:
            return [{} for _ in self.layers]
        states = [(index, layer) for index, layer in _flat(self.layers) if layer.stateful]
        for index, layer in states:
            if not _checks.takes(layer.vjp, "mask"):
                raise ValueError(
                    f"Sequential: mask is {_checks.described(mask)}, expected None: {_part(index, layer)} has a state, "
                    "and takes lengths but no mask"
                )
        if not states:
            raise ValueError(
                f"Sequential: mask is {_checks.described(mask)}, expected None: no layer takes it, only recurrent ones "
                "do"
            )
        taking = {index for index, _ in states}
        return [{"mask": mask} if index in taking else {} for index in range(len(self.layers))]

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        first, width, source = None, given, None
        for index, layer in enumerate(self.layers):
            expected, made = layer._widths(width)
            if source is None and first is None:
                first = expected
            if source is not None and None not in (expected, width) and expected != width:
                before = _part(source, self.layers[source])
                if expected == TOKENS:
                    raise ValueError(
                        f"Sequential: {_part(index, layer)} takes tokens, expected features, as {before} puts out"
                    )
                raise ValueError(
                    f"Sequential: {_part(index, layer)} takes {expected} features, expected {width}, as {before} puts "
                    "out"
                )
            if layer._widths(-1)[1] != -1:  # else it keeps the width of its input
                source = index
            width = made
        return first, width

    def _read(self, x: Array, lengths: Array | None, mask: Array | None) -> tuple[Array, Array | None]:
        """Return x, zero at missing steps if its first reader does not know of them, and the mask of those steps."""
        recurrent = [layer for layer in self.layers if layer.stateful]
        if (lengths is None and mask is None) or not recurrent or self.layers[0].stateful:
            return x, None
        _checks.given("Sequential", x=x)
        xp = _dispatch.namespace("Sequential", x=x, lengths=lengths, mask=mask)
        batch_first = recurrent[0].batch_first
        absent: Any = None
        # The layers reject arguments that do not fit.
        if lengths is not None:
            rows = x.shape[:2][0 if batch_first else 1 :][:1]
            if x.ndim < 2 or tuple(lengths.shape) != tuple(rows) or "int" not in _checks.dtype_name(lengths):
                return x, None
            time = xp.arange(x.shape[1 if batch_first else 0], dtype=xp.int64, device=_dispatch.device(x))
            past = time[:, None] >= xp.astype(lengths, xp.int64)
            absent = xp.permute_dims(past, (1, 0)) if batch_first else past
        if mask is not None:
            if tuple(mask.shape) != tuple(x.shape[:2]) or "float" in _checks.dtype_name(mask):
                return x, None
            holes = xp.logical_not(xp.astype(mask, xp.bool))
            absent = holes if absent is None else xp.logical_or(absent, holes)
        return _zero_where(absent, x), absent

    def _states(self, state: Any, name: str = "state") -> Any:
        """An iterator over the recurrent layers' states, None for each if ``state`` is None."""
        count = sum(layer.stateful for layer in self.layers)
        if state is None:
            return iter([None] * count)
        if not isinstance(state, (tuple, list)) or len(state) != count:
            raise TypeError(
                f"Sequential: {name} is {_checks.described(state)}, expected a tuple with one state for each of the "
                f"{count} layers that have one"
            )
        return iter(state)

    def _expression(self) -> str:
        lines = [f"  {index}: " + repr(layer).replace("\n", "\n  ") for index, layer in enumerate(self.layers)]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def vjp_options(layer: Layer) -> set[str]:
    """Which of ``checkpoint_every`` and ``state_after`` the ``vjp`` of a layer takes."""
    if isinstance(layer, Sequential):
        return set().union(*map(vjp_options, layer.layers))
    return {name for name in ("checkpoint_every", "state_after") if _checks.takes(layer.vjp, name)}


def _part(index: int, layer: Layer) -> str:
    return f"argument {index}, {_checks.described(layer)},"


def _check_call(index: int, layer: Layer) -> None:
    """Reject a layer whose ``vjp`` lacks the parameters of `SequenceLayer` or `StatelessLayer`."""
    parameters = list(inspect.signature(layer.vjp).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    form = SequenceLayer if layer.stateful else StatelessLayer
    _, _, *expected = inspect.signature(form.vjp).parameters
    names = [p.name for p in parameters]
    if names[1 : 1 + len(expected)] != expected:
        cure = "; TransformerBlock holds one and fits" if isinstance(layer, MultiHeadAttention) else ""
        raise TypeError(
            f"Sequential: {_part(index, layer)} takes ({', '.join(names)}) in its vjp, expected a layer that takes "
            f"(x, {', '.join(expected)}, ...){cure}"
        )


def _flat(layers: tuple[Layer, ...]) -> Iterator[tuple[int, Layer]]:
    """All layers, including those of nested Sequentials, each with its index in the outermost one."""
    for index, layer in enumerate(layers):
        if isinstance(layer, Sequential):
            yield from ((index, inner) for _, inner in _flat(layer.layers))
        else:
            yield index, layer


def _check_axes(layers: tuple[Layer, ...]) -> None:
    """Reject a mixture of layers whose first axis is time and layers whose second axis is time."""
    batch_first = [(i, p) for i, p in _flat(layers) if p.batch_first]
    time_first = [(i, p) for i, p in _flat(layers) if p.batch_first is False]
    if batch_first and time_first:
        raise ValueError(
            f"Sequential: {_part(*batch_first[0])} has batch_first=True, expected False, as {_part(*time_first[0])} "
            "takes (T, B, ...)"
        )


def _check_dtypes(layers: tuple[Layer, ...]) -> None:
    """Reject layers that compute in different dtypes."""
    by_dtype: dict[str, tuple[int, Layer]] = {}
    for index, layer in enumerate(layers):
        for dtype in layer._dtypes():
            by_dtype.setdefault(dtype, (index, layer))
    if len(by_dtype) > 1:
        (first, one), (second, other) = list(by_dtype.items())[:2]
        raise TypeError(
            f"Sequential: {_part(*other)} has parameters of {second}, expected {first} as {_part(*one)} has"
        )
