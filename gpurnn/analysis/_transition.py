"""One step of a recurrent layer as a map of its state, with its derivative: the basis of all diagnoses."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .. import _arrays, _checks, _dispatch, functional
from .._contract import Array
from ..functional._recurrent import take
from ..layers.recurrent import Recurrent, layer_names


def parts(layer: Recurrent) -> dict[str, Recurrent]:
    """Split a stack into single layers of one direction, by the suffixes of their parameters' names.

    They share the arrays of the stack. Pass the input in reverse to one that runs backward in time. They are only the
    recurrences: a residual stack also adds the input of each layer to the outputs of its directions, side by side, if
    the widths agree.

    Parameters
    ----------
    layer : gpurnn.RNN, gpurnn.LSTM or gpurnn.GRU

    Returns
    -------
    dict of str to layers of the same kind
        The names are "l0", or "l0", "l0_reverse", "l1", ... with more layers and directions.

    Raises
    ------
    TypeError
        ``layer`` is not a recurrent layer.

    Examples
    --------
    >>> import gpurnn
    >>> parts(gpurnn.GRU(3, 4, num_layers=2))
    {'l0': GRU(3, 4)  # 108 parameters, 'l1': GRU(4, 4)  # 120 parameters}
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"parts: layer is {_checks.described(layer)}, expected a gpurnn.{layer_names()}")
    single = {}
    for k in range(layer.num_layers):
        for suffix in ("", "_reverse")[: layer.num_directions]:
            part = copy.copy(layer)
            part.num_layers, part.bidirectional, part.residual = 1, False, False
            part.params = {
                name.removesuffix(f"_l{k}{suffix}") + "_l0": p
                for name, p in layer.params.items()
                if name.endswith(f"_l{k}{suffix}")
            }
            part.input_size = part.params["weight_ih_l0"].shape[1]
            single[f"l{k}{suffix}"] = part
    return single


REACHED = "the state after {} steps"
"""The name that `check_finite` uses for the states of a run."""

quiet = np.errstate(over="ignore", invalid="ignore")
"""Silences warnings about arrays that `check_finite` checks as soon as they are computed."""


def check_finite(where: str, name: str, array: Array, first: int = 0) -> None:
    """Reject NaN and infinities; their index along the first axis, counted from ``first``, replaces {} in ``name``."""
    xp = _dispatch.namespace(where, **{name: array})
    good = xp.isfinite(array)
    if not bool(xp.all(good)):
        k = first + int(np.argwhere(~_dispatch.to_numpy(good))[0, 0])
        raise ValueError(f"{where}: {name.format(k)} is NaN or infinite, expected finite numbers")


def check_steps(where: str, x: Array) -> None:
    """Reject x (T, B, I) without steps or rows."""
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected T and B of 1 at least")


class Transition:
    """s_t = F(x_t, s_{t-1}) of a single layer in one direction; s is h, for the LSTM h and c side by side.

    Raises
    ------
    TypeError, ValueError
        ``layer`` is not a recurrent layer, has several layers or two directions, or has parameters that are not finite.
    """

    def __init__(self, where: str, layer: Recurrent) -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(f"{where}: layer is {_checks.described(layer)}, expected a gpurnn.{layer_names()}")
        if layer.num_layers != 1 or layer.bidirectional:
            raise ValueError(
                f"{where}: layer has num_layers={layer.num_layers}, bidirectional={layer.bidirectional}, expected one "
                "layer and direction; gpurnn.analysis.parts(layer) splits it"
            )
        if layer.output_size != layer.hidden_size:
            raise ValueError(f"{where}: layer has proj_size={layer.output_size}, expected 0: h and c of one width")
        self.where, self.cell = where, layer.cell
        self.inputs, self.hidden, self.size = (
            layer.input_size,
            layer.hidden_size,
            layer.hidden_size * layer.cell.states,
        )
        params = _arrays.parameters(where, layer.params, layer._parameter_shapes())
        self.weights: dict[str, Any] = {name: params.get(f"{name}_l0") for name in layer.cell.parameters}
        self.xp = _dispatch.namespace(where, **params)
        for name, p in params.items():
            check_finite(where, f"{name}[{{}}]", p)
        self.function = getattr(functional, layer.cell.name)
        self.options = layer.cell.values(layer.cell.function_options())

    def silence(self, B: int) -> Array:
        """A step of zero input, (1, B, I)."""
        return _dispatch.zeros(self.xp, (1, B, self.inputs), self.weights["weight_ih"])

    def sequence(self, x: Array, state: Any = None, name: str = "state") -> tuple[Array, Array]:
        """Check x and the state ``name``, which must be finite; return x, and the state as one array (B, S)."""
        floats = {"params": self.weights["weight_ih"], "x": x}
        given = take(self.where, self.cell, floats, state, name=name, input_size=self.inputs)
        widths = (self.hidden,) * self.cell.states
        states = given.initial(self.where, (1, given.x.shape[1]), widths, "(1, B, hidden_size)")
        for entry, s in zip(given.states, states, strict=True):
            check_finite(self.where, entry, s)
        check_finite(self.where, "x[{}]", given.x)
        return given.x, self.xp.concat([s[0, ...] for s in states], axis=1)

    def __call__(self, x: Array, s: Array) -> Array:
        """s_t (B, S) from x_t (B, I) and s_{t-1} (B, S)."""
        _, state = self.function(self.xp.expand_dims(x, axis=0), **self.weights, state=self._split(s), **self.options)
        return self._join(state)

    def vjp(self, x: Array, s: Array) -> tuple[Array, Any]:
        """``s_t, pull``; ``pull(ds_t)`` is the gradient of s_{t-1}."""
        (_, state), pullback = self.function.vjp(
            self.xp.expand_dims(x, axis=0), **self.weights, state=self._split(s), **self.options
        )

        def pull(ds: Array) -> Array:
            (_, dstate), _ = pullback((None, self._split(ds)))
            return self._join(dstate)

        return self._join(state), pull

    def jacobian(self, x: Array, s: Array) -> tuple[Array, Array]:
        """s_t (B, S) and ds_t / ds_{t-1} (B, S, S).

        Each row is repeated S times, and its i-th copy pulled back from the i-th unit vector: one call gives all.
        """
        xp, (B, S) = self.xp, s.shape
        new, pull = self.vjp(xp.repeat(x, S, axis=0), xp.repeat(s, S, axis=0))
        unit = xp.tile(xp.eye(S, dtype=s.dtype, device=_dispatch.device(s)), (B, 1))
        return xp.reshape(new, (B, S, S))[:, 0, :], xp.reshape(pull(unit), (B, S, S))

    @quiet
    def states(self, x: Array, s: Array) -> Array:
        """s_0 ... s_T (T + 1, B, S); reject states that are not finite."""
        visited = [s]
        for t in range(x.shape[0]):
            visited.append(self(x[t, ...], visited[-1]))
        states = self.xp.stack(visited, axis=0)
        check_finite(self.where, REACHED, states)
        return states

    def _split(self, s: Array) -> Any:
        return s if self.cell.states == 1 else (s[:, : self.hidden], s[:, self.hidden :])

    def _join(self, state: Any) -> Array:
        return state if self.cell.states == 1 else self.xp.concat(list(state), axis=1)
