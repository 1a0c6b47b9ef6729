"""Layers one after another."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._op import Pullback
from .._random import generator
from ..functional import cotangent_pair
from .base import Array, Composite, Layer


class Sequential(Composite):
    """Layers one after another: the output of each is the input of the next.

    It takes and returns states whether it holds recurrent layers or not: a tuple with the state of each recurrent
    layer, in order. ``lengths`` and ``resets`` go to every recurrent layer.

    Parameters
    ----------
    *layers : Layer

    Attributes
    ----------
    params : dict of str to array
        The layers' own arrays under ``"0.weight"``, ``"1.weight_ih_l0"``, ... One that stands in several places, as
        those of a layer that is given twice, is one parameter, under its first name: its gradient is the sum over the
        places.

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
                raise TypeError(f"Sequential: argument {index} is a {type(layer).__qualname__}, expected a Layer")
        self.layers = layers

    def _layers(self) -> dict[str, Layer]:
        return {f"{index}.": layer for index, layer in enumerate(self.layers)}

    def to(self, xp: Any) -> Sequential:
        """These layers with their parameters copied to the array library ``xp``."""
        moved = Sequential(*(layer.to(xp) for layer in self.layers))
        moved._share(self._shared())
        return moved

    def __call__(
        self, x: Array, state: Any = None, lengths: Array | None = None, resets: Array | None = None
    ) -> tuple[Array, tuple[Any, ...]]:
        """The last layer's output and the tuple of the recurrent layers' final states."""
        states, finals = self._states(state), []
        for layer in self.layers:
            if layer.stateful:
                x, final = layer(x, next(states), lengths, resets)
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
        checkpoint_every: int | str | None = None,
        state_after: int | None = None,
    ) -> tuple[tuple[Array, tuple[Any, ...]], Pullback]:
        """``((y, state), pullback)``, with ``pullback((dy, dstate))`` returning ``((dx, dstate0), grads)``.

        Without ``rng`` no layer drops anything. ``checkpoint_every`` and ``state_after`` are those of the recurrent
        layers, as `gpurnn.LSTM` has them; what goes from one layer to the next is kept for all steps.
        """
        given = {"checkpoint_every": checkpoint_every, "state_after": state_after}
        options = {name: value for name, value in given.items() if value is not None}
        random = None if rng is None else generator("Sequential", rng)
        states, finals, pulls = self._states(state), [], []
        for layer in self.layers:
            if layer.stateful:
                (x, final), pull = layer.vjp(x, next(states), lengths, resets, random, **options)
                finals.append(final)
            else:
                x, pull = layer.vjp(x, random)
            pulls.append(pull)

        def pullback(cotangents: Any) -> tuple[tuple[Array, tuple[Any, ...]], dict[str, Array]]:
            dx, dstate = cotangent_pair("Sequential", cotangents)
            dstates = list(self._states(dstate, "dstate"))
            dstate0: list[Any] = []
            grads: dict[str, Array] = {}
            for index, (layer, pull) in reversed(list(enumerate(zip(self.layers, pulls, strict=True)))):
                if layer.stateful:
                    (dx, dinitial), own = pull((dx, dstates.pop()))
                    dstate0.insert(0, dinitial)
                else:
                    dx, own = pull(dx)
                grads |= {f"{index}.{name}": gradient for name, gradient in own.items()}
            return (dx, tuple(dstate0)), self._summed(grads)

        return (x, tuple(finals)), pullback

    def _states(self, state: Any, name: str = "state") -> Any:
        """An iterator over the recurrent layers' states, None for each if ``state`` is None."""
        count = sum(layer.stateful for layer in self.layers)
        if state is None:
            return iter([None] * count)
        if not isinstance(state, (tuple, list)) or len(state) != count:
            raise TypeError(
                f"Sequential: {name} is a {type(state).__qualname__}, expected a tuple with one state for each of the "
                f"{count} recurrent layers"
            )
        return iter(state)

    def _describe(self) -> str:
        lines = [f"  {index}: " + repr(layer).replace("\n", "\n  ") for index, layer in enumerate(self.layers)]
        return "\n".join(["", *lines, ""])
