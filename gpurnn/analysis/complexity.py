"""What a recurrent layer costs: arithmetic, memory traffic and memory of forward passes and of backpropagation."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from .. import _checks, _dispatch, cells
from ..layers.recurrent import Recurrent, layer_names


@dataclass(frozen=True)
class Cost:
    """What one pass over a batch of sequences takes.

    Attributes
    ----------
    flops : int
        Floating-point operations: two for each term of a matrix product, and one for each elementwise operation, a tanh
        or an exp too.
    bytes : int
        Bytes that are read and written if every array that the pass needs goes to memory and back once for each of its
        uses, W_hh once in every step.
    memory : int
        The most bytes held at a time: what is saved, scratch, outputs and gradients; not x, dy and the parameters,
        which are the caller's.
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
        Of inference: a call of the layer.
    bptt : Cost
        Of backpropagation through time: `vjp` and its pullback, which is a forward pass and one back.
    truncated : Cost or None
        Of the same over windows of k steps, one after another.
    """

    forward: Cost
    bptt: Cost
    truncated: Cost | None


def complexity(layer: Any, T: int, B: int, k: int | None = None) -> Complexity:
    """Flops, bytes and memory of a forward pass, of backpropagation through time and of its truncation to k steps.

    Of each layer and direction with G gates, I inputs and H hidden units, beside lesser terms::

        flops    forward 2 T B G H (I + H)    BPTT three times that, truncated or not
        memory   forward O(T B H)             BPTT O(T B H G)          truncated O(k B H G)

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Of any number of layers and directions.
    T, B : int
        Steps and sequences of the batch, at least 1.
    k : int, optional
        In 1 ... T: the steps of a window that gradients flow back through.

    Returns
    -------
    complexity : Complexity
        ``truncated`` is None without ``k``. Flops and bytes are of the algorithm, on any device; memory is what
        the NumPy wing allocates, to within a tenth where that is 1 MB or more. Without dropout and checkpointing.

    Raises
    ------
    TypeError, ValueError
        ``layer`` is no recurrent layer; T, B or k is no whole number in its range.

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
    forward = Cost(_flops(layer, T, B)[0], _bytes(layer, T, B)[0], _Memory(layer, T, B).forward())
    bptt = Cost(sum(_flops(layer, T, B)), _bytes(layer, T, B)[1], _Memory(layer, T, B).bptt())
    truncated = None
    if k is not None:
        k = _checks.integer_at_least(where, "k", k, 1)
        if k > T:
            raise ValueError(f"{where}: k is {k}, expected at most T = {T}")
        windows, rest = divmod(T, k)
        moved = windows * _bytes(layer, k, B)[1] + (_bytes(layer, rest, B)[1] if rest else 0)
        truncated = Cost(bptt.flops, moved, _Memory(layer, k, B).bptt())
    return Complexity(forward, bptt, truncated)


def _inputs(layer: Recurrent) -> list[int]:
    """I of each layer of the stack."""
    return [layer.input_size] + [layer.num_directions * layer.hidden_size] * (layer.num_layers - 1)


def _flops(layer: Recurrent, T: int, B: int) -> tuple[int, int]:
    """Those of the forward pass, and of the one back."""
    G, H = layer.cell.gates, layer.hidden_size
    elementwise, elementwise_back = layer.cell.operations
    forward = back = 0
    for I in _inputs(layer):
        forward += 2 * G * H * (I + H) + H * (elementwise + G)
        back += 4 * G * H * (I + H) + H * elementwise_back
    rows = T * B * layer.num_directions
    return rows * forward, rows * back


def _bytes(layer: Recurrent, T: int, B: int) -> tuple[int, int]:
    """Those of a forward pass, and of one in training with the one back."""
    G, H, S = layer.cell.gates, layer.hidden_size, layer.cell.states
    forward = training = 0
    for I in _inputs(layer):
        weights, hidden = G * H * (I + H), T * B * H
        # x and W_ih x, the latter written and read; W_hh and the state, read and written, in every step; y.
        own = T * B * I + G * H * I + 2 * G * hidden + T * G * H * H + 2 * S * hidden
        # The gates, written and read; their gradients, written, and read for dx, for W_hh^T and for both weights.
        back = 2 * G * hidden + 4 * G * hidden + T * G * H * H + 2 * S * hidden
        # dy, x and h for the weights' gradients, W_ih, and dx and those gradients themselves.
        back += hidden + T * B * I + hidden + G * H * I + T * B * I + weights
        forward += own
        training += own + back
    size = layer.num_directions * _itemsize(layer)
    return forward * size, training * size


def _itemsize(layer: Recurrent) -> int:
    return 8 if _checks.dtype_name(layer.params["weight_ih_l0"]) == "float64" else 4


class _Memory:
    """The bytes that the NumPy wing holds: a walk through what `reference.recurrence` and its cells allocate."""

    def __init__(self, layer: Recurrent, T: int, B: int) -> None:
        wing = importlib.import_module(_dispatch.WINGS["numpy"])
        self.pooled_from: int = importlib.import_module(f"{wing.__name__}.buffers")._SMALL
        self.few_rows: int = importlib.import_module(f"{wing.__name__}.recurrence").FEW_ROWS
        self.packing: Any = importlib.import_module(f"{wing.__name__}.cells.packing")
        self.layer, self.T, self.B = layer, T, B
        self.H, self.G, self.D = layer.hidden_size, layer.cell.gates, layer.num_directions
        self.chunk = min(int(wing.recurrence_chunk(B)), T)
        self.size = _itemsize(layer)
        self.held = self.peak = 0
        self.pool: list[_Buffer] = []
        self.reset_after = isinstance(layer.cell, cells.GRU) and layer.cell.reset_after
        # The gates whose recurrent products are one; the GRU's candidate is apart where the reset comes before it.
        self.joint = {"rnn": 1, "lstm": 4, "gru": 3 if self.reset_after else 2}[layer.cell.name]
        self.slots = 4 if self.reset_after else self.G

    def forward(self) -> int:
        """The most held in inference."""
        self._pass(training=False)
        return self.peak

    def bptt(self) -> int:
        """The most held in training."""
        self._pass(training=True)
        below: int | None = None
        for I in reversed(_inputs(self.layer)):
            dx = self._take(self.T * self.B * I)
            for d in range(self.D):
                other = self._take(self.T * self.B * I) if d else 0
                self._direction_back(I)
                self._free(other)
            if self.layer.residual and I == self.D * self.H:
                self._burst(self.T * self.B * I)
            if below is not None:
                self._free(below)
            below = dx
        return self.peak

    def _pass(self, training: bool) -> None:
        """A forward pass through the stack, whose output is still held after it."""
        T, B, H, D = self.T, self.B, self.H, self.D
        self._take(2 * self.layer.cell.states * self.layer.num_layers * D * B * H)  # the initial and the final state
        x = 0
        for I in _inputs(self.layer):
            y = self._take(T * B * D * H)
            x1 = self._lend(T * B * (I + 1))
            for _ in range(D):
                self._direction(I, training)
            if not training:
                self._return(x1)
            if self.layer.residual and I == D * H:
                self._take(T * B * D * H)
                self._free(y)
            self._free(x)
            x = y

    def _direction(self, I: int, training: bool) -> None:
        T, B, H, G, cell, steps = self.T, self.B, self.H, self.G, self.layer.cell.name, self.T if training else 1
        kept = []
        if cell == "rnn":
            kept += [self._factors(1, H, B == 1), self._lend(B * H)]
            if training:
                kept += [self._lend(H * H), self._lend(T * B * H)]
        elif cell == "lstm":
            kept += [self._lend(5 * B * H), self._factors(4, H, B == 1), self._lend(2 * B * H), self._lend(B * H)]
            if training:
                kept += [self._lend(4 * H * H), self._lend(3 * B * H), self._lend(T * 6 * B * H)]
        else:
            if not self.reset_after:
                kept.append(self._factors(1, H, B == 1))
            kept += [self._lend(self.joint * B * H), self._factors(self.joint, H, B == 1), self._lend(2 * B * H)]
            kept += [self._lend(steps * 5 * B * H), self._lend((1 if self.reset_after else steps) * B * H)]
            if training:
                kept += [self._lend(self.joint * H * H), self._lend(H * H)]
        lent = [self._lend(G * self.chunk * B * H)]
        if training:
            self._lend((T + 1) * B * H)
        last = T % self.chunk
        for few in {steps * B <= self.few_rows for steps in (self.chunk, last) if steps}:
            lent.append(self._factors(G, I, few, bias=True))
        if training:
            self._lend(G * H * I)
        for buffer in lent if training else kept + lent:
            self._return(buffer)

    def _factors(self, slots: int, n: int, few: bool, *, bias: bool = False) -> _Buffer:
        """`Rows.factors`."""
        factors = self._lend(slots * (n + bias) * self.H)
        if not few and self.packing.collides(n, self.size):
            self._return(self._lend(self.H * (n + self.packing.SPREAD)))
        return factors

    def _direction_back(self, I: int) -> None:
        H, rows = self.H, self.G * self.H
        lent = [self._lend(rows * (I + 1))]
        self._take(rows * H)
        lent += [self._lend(self.chunk * self.B * self.slots * H), self._lend(2 * self.B * H)]
        for entries in (rows * (I + 1), self.joint * H * H):
            self._return(self._lend(entries))
        self._take(rows * I)
        for buffer in lent:
            self._return(buffer)

    def _take(self, entries: int) -> int:
        self.held += entries
        self.peak = max(self.peak, self.held * self.size)
        return entries

    def _free(self, entries: int) -> None:
        self.held -= entries

    def _burst(self, entries: int) -> None:
        """Take, and free at once."""
        self._free(self._take(entries))

    def _lend(self, entries: int) -> _Buffer:
        """What `buffers.empty` does: a buffer of the pool that fits, or a new one; a small array is none of it."""
        pooled = entries * self.size >= self.pooled_from
        fitting = [b for b in self.pool if b.free and entries <= b.entries <= 2 * entries] if pooled else []
        if fitting:
            buffer = min(fitting, key=lambda b: b.entries)
            buffer.free = False
            return buffer
        near = [b for b in self.pool if b.free and b.entries < entries <= 2 * b.entries] if pooled else []
        if near:
            replaced = max(near, key=lambda b: b.entries)
            self.pool.remove(replaced)
            self._free(replaced.entries)
        buffer = _Buffer(self._take(entries), pooled)
        if pooled:
            self.pool.append(buffer)
        return buffer

    def _return(self, buffer: _Buffer) -> None:
        buffer.free = True
        if not buffer.pooled:
            self._free(buffer.entries)


@dataclass
class _Buffer:
    entries: int
    pooled: bool
    free: bool = False
