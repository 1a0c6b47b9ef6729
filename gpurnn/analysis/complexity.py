"""The cost of a recurrent layer: arithmetic, memory traffic and memory of forward passes and of backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _checks, _dispatch
from .._contract import Memory
from ..layers.recurrent import Recurrent, layer_names


@dataclass(frozen=True)
class Cost:
    """The cost of one pass over a batch of sequences.

    Attributes
    ----------
    flops : int
        Floating-point operations: two for each term of a matrix product, and one for each elementwise operation,
        including tanh and exp.
    bytes : int
        Bytes that are read and written if every array that the pass needs goes to memory and back once for each of its
        uses, W_hh once in every step.
    memory : int
        The most bytes held at a time: saved values, scratch, outputs and gradients; not x, dy and the parameters, which
        belong to the caller.
    """

    flops: int
    bytes: int
    memory: int


@dataclass(frozen=True)
class Complexity:
    """The costs of a layer; see `complexity`.

    Attributes
    ----------
    forward : Cost
        The cost of inference: a call of the layer.
    bptt : Cost
        The cost of backpropagation through time: `vjp` and its pullback, a forward and a backward pass.
    truncated : Cost or None
        The cost of the same with consecutive windows of k steps.
    """

    forward: Cost
    bptt: Cost
    truncated: Cost | None


def complexity(layer: Any, T: int, B: int, k: int | None = None) -> Complexity:
    """Flops, bytes and memory of a forward pass, of backpropagation through time and of its truncation to k steps.

    For each layer and direction with G gates, I inputs and H hidden units, up to smaller terms::

        flops    forward 2 T B G H (I + H)    BPTT three times that, truncated or not
        memory   forward O(T B H)             BPTT O(T B H G)          truncated O(k B H G)

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        It may have any number of layers and directions.
    T, B : int
        The steps and sequences of the batch, at least 1.
    k : int, optional
        The steps of a window that gradients flow back through, in 1 ... T.

    Returns
    -------
    complexity : Complexity
        ``truncated`` is None without ``k``. Flops and bytes are those of the algorithm, on any device. Memory is the
        allocation for NumPy or CuPy arrays, whichever the layer's parameters are, to within a tenth if it is 1 MB or
        more. Dropout and checkpointing are not counted.

    Raises
    ------
    TypeError, ValueError
        ``layer`` is not a recurrent layer, or T, B or k is not a whole number in its range.

    References
    ----------
    R. J. Williams, J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", Neural Computation 2 (1990).

    Examples
    --------
    >>> import gpurnn
    >>> cost = gpurnn.analysis.complexity(gpurnn.LSTM(64, 256), T=1000, B=32, k=50)
    >>> round(cost.forward.flops / 1e9, 1), round(cost.bptt.flops / 1e9, 1)
    (21.4, 63.5)
    >>> cost.bptt.memory // 2**20, cost.truncated.memory // 2**20
    (275, 22)
    """
    where = "complexity"
    if not isinstance(layer, Recurrent):
        raise TypeError(f"{where}: layer is {_checks.described(layer)}, expected a gpurnn.{layer_names()}")
    T = _checks.integer_at_least(where, "T", T, 1)
    B = _checks.integer_at_least(where, "B", B, 1)
    forward = Cost(_flops(layer, T, B)[0], _bytes(layer, T, B)[0], _memory(layer, T, B, training=False))
    bptt = Cost(sum(_flops(layer, T, B)), _bytes(layer, T, B)[1], _memory(layer, T, B, training=True))
    truncated = None
    if k is not None:
        k = _checks.integer_at_least(where, "k", k, 1)
        if k > T:
            raise ValueError(f"{where}: k is {k}, expected at most T = {T}")
        windows, rest = divmod(T, k)
        moved = windows * _bytes(layer, k, B)[1] + (_bytes(layer, rest, B)[1] if rest else 0)
        truncated = Cost(bptt.flops, moved, _memory(layer, k, B, training=True))
    return Complexity(forward, bptt, truncated)


def _inputs(layer: Recurrent) -> list[int]:
    """I of each layer of the stack."""
    return [layer.input_size] + [layer.output_size] * (layer.num_layers - 1)


def _flops(layer: Recurrent, T: int, B: int) -> tuple[int, int]:
    """The flops of the forward pass, and of the backward pass."""
    G, H = layer.cell.gates, layer.hidden_size
    elementwise, elementwise_back = layer.cell.operations
    forward = back = 0
    for I in _inputs(layer):
        forward += 2 * G * H * (I + H) + H * (elementwise + G)
        back += 4 * G * H * (I + H) + H * elementwise_back
    rows = T * B * layer.num_directions
    return rows * forward, rows * back


def _bytes(layer: Recurrent, T: int, B: int) -> tuple[int, int]:
    """The bytes moved by inference, and by a forward and backward pass in training."""
    G, H, S = layer.cell.gates, layer.hidden_size, layer.cell.states
    forward = training = 0
    for I in _inputs(layer):
        weights, hidden = G * H * (I + H), T * B * H
        # x, W_ih, W_ih x written and read; W_hh read, and the state read and written, in every step; y.
        own = T * B * I + G * H * I + 2 * G * hidden + T * G * H * H + 2 * S * hidden
        # The gates, written and read; their gradients, written, and read for dx, for W_hh^T and for both weights.
        back = 2 * G * hidden + 4 * G * hidden + T * G * H * H + 2 * S * hidden
        # dy; x and h for the weights' gradients; W_ih; dx; and the weights' gradients.
        back += hidden + T * B * I + hidden + G * H * I + T * B * I + weights
        forward += own
        training += own + back
    size = layer.num_directions * np.dtype(_checks.dtype_name(layer.params["weight_ih_l0"])).itemsize
    return forward * size, training * size


def _memory(layer: Recurrent, T: int, B: int, *, training: bool) -> int:
    """The most bytes that a forward pass, in training also a backward pass, holds in the wing and the stack."""
    H, D = layer.hidden_size, layer.num_directions
    like = layer.params["weight_ih_l0"]
    memory: Memory = _dispatch.wing("complexity", layer=like).recurrence_memory(layer.cell, T, B, H, D, like)
    memory.take(2 * layer.cell.states * layer.num_layers * D * B * H)  # the initial and the final state
    output, below = T * B * D * H, 0
    for I in _inputs(layer):
        memory.forward(I, training=training)
        if layer.residual and I == D * H:  # the sum replaces the output
            memory.take(output)
            memory.free(output)
        memory.free(below)
        below = output
    above = 0
    for I in reversed(_inputs(layer)) if training else ():
        memory.backward(I)
        if layer.residual and I == D * H:
            memory.free(memory.take(T * B * I))
        memory.free(above)
        above = T * B * I
    return memory.peak
