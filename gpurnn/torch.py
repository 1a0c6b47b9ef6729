"""Recurrent layers as PyTorch modules that replace those of `torch.nn`, with gpurnn's kernels and gradients.

`IndRNN`, `MinGRU` and `MinLSTM`, which `torch.nn` does not have, are called in the same way.

Change the import, and a program runs as before: constructors, names of parameters, packed sequences and unbatched input
are those of `torch.nn`. Every option of gpurnn's layers is available too, and so are ``lengths`` and ``resets``, on the
device of the input. gpurnn's CPU wing computes for CPU tensors, its CUDA kernels for CUDA tensors, through CuPy.

Examples
--------
>>> import torch
>>> import gpurnn.torch
>>> lstm = gpurnn.torch.LSTM(3, 4, num_layers=2)
>>> lstm.load_state_dict(torch.nn.LSTM(3, 4, num_layers=2).state_dict())
<All keys matched successfully>
>>> y, (h, c) = lstm(torch.ones(5, 2, 3), resets=torch.zeros(5, 2, dtype=torch.bool))
>>> y.sum().backward()
>>> lstm.weight_hh_l0.grad.shape
torch.Size([16, 4])
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import json
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import torch
    from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
except ImportError as error:
    raise ImportError("gpurnn.torch needs PyTorch; pip install 'gpurnn[torch]'") from error

from . import _checks, _foreign, layers
from .layers.recurrent import LAYERS, Recurrent

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .layers.recurrent import RecurrentOptions

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "IndRNN", "LSTMCell", "MinGRU", "MinLSTM", "RNNCell"]


class _Kept(np.ndarray[Any, Any]):
    """The number of a pullback, stored in a tensor's memory. The pullback lives as long as that memory does."""

    pullback: Any


_numbers = itertools.count()
_kept: weakref.WeakValueDictionary[int, _Kept] = weakref.WeakValueDictionary()


def _keep(pullback: Any) -> torch.Tensor:
    kept = np.array(next(_numbers), np.int64).view(_Kept)
    kept.pullback = pullback
    _kept[int(kept)] = kept
    return torch.from_numpy(kept)


def _description(layer: Recurrent) -> str:
    """The configuration of a layer as a text, which an operator can take as an argument."""
    config = {name: value for name, value in layer.config().items() if name != "dtype"}
    return json.dumps({"cell": layer.cell.name, **config})


@functools.lru_cache(256)
def _layer(described: str) -> Recurrent:
    """The layer with this description; only its configuration is used."""
    config = json.loads(described)
    kind: Any = LAYERS[config.pop("cell")]
    layer: Recurrent = kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in config.items()}, init="zeros")
    layer.params.keys()  # makes them here once, and not in each copy
    return layer


def _array(name: str, tensor: torch.Tensor) -> Any:
    kind = _foreign.kind_of(tensor)
    assert kind is not None
    return _foreign.view_of("gpurnn.torch", name, tensor, kind)


def _states(layer: Recurrent, state: Any) -> tuple[Any, Any]:
    """h and c of a state; c is None if the cell has none."""
    return state if layer.cell.states == 2 else (state, None)


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_empty(0)


@torch.library.custom_op("gpurnn::recurrence", mutates_args=())  # type: ignore[untyped-decorator]
def _recurrence(
    x: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    weights: list[torch.Tensor],
    lengths: torch.Tensor | None,
    resets: torch.Tensor | None,
    seed: torch.Tensor | None,
    described: str,
    training: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, the final h and c, and the number of the pullback. ``c`` is empty if the cell has none."""
    layer = copy.copy(_layer(described))
    layer.params = {name: _array(name, w) for name, w in zip(layer.params, weights, strict=True)}
    state: Any = _array("hx", h)
    if layer.cell.states == 2:
        state = state, _array("hx", c)
    lengths, resets = (None if t is None else _array(n, t) for n, t in (("lengths", lengths), ("resets", resets)))
    kept = None
    with _foreign.advice_for("torch"):
        if training or seed is not None:
            rng = None if seed is None else int(seed)
            (y, final), kept = layer.vjp(_array("input", x), state, lengths, resets, rng)
        else:
            y, final = layer(_array("input", x), state, lengths, resets)
    h_n, c_n = _states(layer, final)
    handle = _keep(kept) if training else torch.empty((), dtype=torch.int64)
    return _foreign.to_torch(y), _foreign.to_torch(h_n), _empty(c) if c_n is None else _foreign.to_torch(c_n), handle


@_recurrence.register_fake
def _(x, h, c, weights, lengths, resets, seed, described, training):  # type: ignore[no-untyped-def]
    layer = _layer(described)
    y = x.new_empty((*x.shape[:2], layer.output_size))
    return y, torch.empty_like(h), torch.empty_like(c), torch.empty((), dtype=torch.int64, device="cpu")


@torch.library.custom_op("gpurnn::recurrence_backward", mutates_args=())  # type: ignore[untyped-decorator]
def _recurrence_backward(
    handle: torch.Tensor,
    dy: torch.Tensor,
    dh: torch.Tensor,
    dc: torch.Tensor,
    x: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    weights: list[torch.Tensor],
    described: str,
) -> list[torch.Tensor]:
    """The gradients of x, h, c and the weights. The pullback reads their memory; here they only give the shapes."""
    layer = _layer(described)
    kept = _kept.get(int(handle))
    if kept is None:
        raise RuntimeError(
            "gpurnn.torch: the values that the forward pass saved are gone, expected them to live as long as its graph"
        )
    dstate: Any = _array("the gradient of h", dh)
    if layer.cell.states == 2:
        dstate = dstate, _array("the gradient of c", dc)
    (dx, dstate0), grads = kept.pullback((_array("the gradient of the output", dy), dstate))
    dh0, dc0 = _states(layer, dstate0)
    arrays = [dx, dh0, *([] if dc0 is None else [dc0]), *(grads[name] for name in layer.params)]
    seen: set[int] = set()
    tensors = []
    for array in arrays:
        tensor = _foreign.to_torch(array)
        # Two biases may have one array for a gradient, and outputs of an operator may not share memory.
        tensors.append(tensor.clone() if id(array) in seen else tensor)
        seen.add(id(array))
    return tensors if dc0 is not None else [*tensors[:2], _empty(c), *tensors[2:]]


@_recurrence_backward.register_fake
def _(handle, dy, dh, dc, x, h, c, weights, described):  # type: ignore[no-untyped-def]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, h, c, *weights)]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, h, c, weights, _, _, _, ctx.described, _ = inputs
    # Saving them also lets autograd notice if they are changed before the backward pass reads them.
    ctx.save_for_backward(output[3], x, h, c, *weights)


def _backward(ctx: Any, dy: Any, dh: Any, dc: Any, _: Any) -> Any:
    handle, x, h, c, *weights = ctx.saved_tensors
    dx, dh0, dc0, *dweights = _recurrence_backward(
        handle, dy.contiguous(), dh.contiguous(), dc.contiguous(), x, h, c, weights, ctx.described
    )
    return dx, dh0, dc0, dweights, None, None, None, None, None


_recurrence.register_autograd(_backward, setup_context=_setup_context)


def _own_options(kind: type[Recurrent]) -> dict[str, Any]:
    """The options of a layer that `torch.nn`'s module lacks, with their defaults."""
    shown, others = inspect.signature(kind).parameters.values(), ("init", "dtype", "rng", "proj_size")
    return {p.name: p.default for p in shown if p.kind is p.KEYWORD_ONLY and p.name not in others}


class _Module(torch.nn.RNNBase):
    """A recurrent module: what `torch.nn`'s modules have in common, and what gpurnn adds.

    It is not a subclass of `torch.nn.LSTM` or its siblings, because `torch.compile` does not trace those.
    """

    _kind: Any
    _defaults: Mapping[str, Any] = {}
    _pair = False
    """Whether the state is a pair (h, c)."""
    _is_in_torch = True
    """Whether `torch.nn` has a module of this kind, which then sets the initial parameters."""

    def __init__(self, mode: str, own: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        if mode != "LSTM" and "proj_size" in own:
            raise ValueError(f"{type(self).__name__}: proj_size is given, expected only that of an LSTM")
        _checks.options(type(self).__name__, own, inspect.signature(type(self)).parameters)
        super().__init__(mode, *args, **kwargs)
        self.options = {**self._defaults, **self._translated(), **own}
        self._fit()

    def __init_subclass__(cls) -> None:
        """Show the names of ``**options`` in the signature."""
        super().__init_subclass__()
        signature = inspect.signature(cls.__init__)
        own = {**_own_options(cls._kind), **cls._defaults}
        shown = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shown += [
            p.replace(default=own[name])
            for name, p in inspect.signature(cls._kind).parameters.items()
            if name in own and name not in signature.parameters
        ]
        cls.__signature__ = signature.replace(parameters=shown[1:])

    def _translated(self) -> dict[str, Any]:
        """gpurnn's options for the arguments that are specific to the `torch.nn` module."""
        return {}

    def _fit(self) -> None:
        """Make the parameters match those of gpurnn's layer, in its order."""
        initial = {"init": "zeros"} if self._is_in_torch else {"rng": int(torch.randint(2**62, (), device="cpu"))}
        layer = self._kind(
            self.input_size, self.hidden_size, self.num_layers, self.bias, False,
            self.dropout if self.num_layers > 1 else 0.0, self.bidirectional, **self.options, **initial,
        )  # fmt: skip
        self._described = _description(layer)
        config = layer.config()
        self._random = any(np.any(rate) for name, rate in config.items() if "dropout" in name or "zoneout" in name)
        first = self._flat_weights[0]
        added = {}
        for name in [name for name in self._parameters if name not in layer.params]:
            delattr(self, name)
        for name, values in layer.params.items():
            there = getattr(self, name, None)
            if there is None or tuple(there.shape) != values.shape or not self._is_in_torch:
                made = torch.as_tensor(values).to(device=first.device, dtype=first.dtype)
                setattr(self, name, torch.nn.Parameter(made.clone()))
                added[name] = there is None or not self._is_in_torch
        if added:
            directions = layer.num_layers * layer.num_directions
            names = list(layer.params)
            each = len(names) // directions
            self._flat_weights_names = names
            self._all_weights = [names[k : k + each] for k in range(0, len(names), each)]
            self._init_flat_weights()
            with torch.no_grad():
                for name, of_new_name in added.items():
                    if not of_new_name:
                        torch.nn.init.uniform_(getattr(self, name), -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def flatten_parameters(self) -> None:
        """No-op: the kernels read parameters wherever they are stored."""

    def extra_repr(self) -> str:
        usual = {**_own_options(self._kind), "proj_size": self.proj_size, **self._defaults}
        shown = [f"{name}={value!r}" for name, value in self.options.items() if value != usual[name]]
        return ", ".join([super().extra_repr(), *shown])

    def forward(self, input: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None) -> Any:
        """Return the output and the final state, in the form of `torch.nn`.

        Parameters
        ----------
        input : Tensor or PackedSequence
            (T, B, input_size), (B, T, input_size) with ``batch_first``, or (T, input_size).
        hx : Tensor or pair of them, optional
            The initial state, zero by default.
        lengths : (B,) integer Tensor, optional
            The number of steps of each sequence, in any order, zero allowed. Pass it instead of a packed sequence, on
            the device of the input. The output is zero past the lengths.
        resets : (T, B) bool Tensor, optional
            (B, T) with ``batch_first``. True where a new sequence starts: no state crosses from the step before it.
        """
        packed = input if isinstance(input, PackedSequence) else None
        if packed is not None:
            if lengths is not None or resets is not None:
                raise ValueError(
                    f"{type(self).__name__}: lengths or resets is given with a packed sequence, expected a Tensor with "
                    "those"
                )
            self.check_input(packed.data, packed.batch_sizes)
            x, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
            batched, order = True, packed.sorted_indices
            lengths = lengths.to(x.device)
        else:
            if input.dim() not in (2, 3):
                raise ValueError(
                    f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead"
                )  # as torch.nn says it
            batched, order = input.dim() == 3, None
            x = input.unsqueeze(1) if not batched else input.transpose(0, 1) if self.batch_first else input
            if resets is not None and batched and self.batch_first:
                resets = resets.transpose(0, 1)
            elif resets is not None and not batched:
                resets = resets.unsqueeze(1)
            self.check_input(x, None)
        y, state = self._run(x, self._initial(x, hx, batched, order), lengths, resets)
        if packed is not None:
            padded = pack_padded_sequence(y, lengths.cpu())
            output = PackedSequence(padded.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
            return output, self._each(
                state, lambda s: s if order is None else s.index_select(1, packed.unsorted_indices)
            )
        if not batched:
            return y.squeeze(1), self._each(state, lambda s: s.squeeze(1))
        return y.transpose(0, 1) if self.batch_first else y, state

    def _each(self, state: Any, function: Any) -> Any:
        return tuple(map(function, state)) if isinstance(state, tuple) else function(state)

    def _initial(self, x: Any, hx: Any, batched: bool, order: Any) -> tuple[Any, Any]:
        """Convert the caller's state to the h and c that the operator takes."""
        pair = self._pair
        rows = self.num_layers * (2 if self.bidirectional else 1)
        shapes = ((rows, x.size(1), self.proj_size or self.hidden_size), (rows, x.size(1), self.hidden_size))
        if hx is None:
            h, c = (x.new_zeros(shape) for shape in shapes)
            return h, c if pair else _empty(x)
        if pair and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
            raise TypeError(f"{type(self).__name__}: hx is a {type(hx).__name__}, expected a pair (h, c)")
        states = []
        for state, shape in zip(hx if pair else (hx,), shapes, strict=False):
            if state.dim() != (3 if batched else 2):
                said = ("batched 3-D", "3-D") if batched else ("unbatched 2-D", "2-D")
                raise RuntimeError(
                    f"For {said[0]} input, hx should also be {said[1]} but got {state.dim()}-D tensor"
                )  # as torch.nn says it
            state = state if batched else state.unsqueeze(1)
            state = state if order is None else state.index_select(1, order)
            self.check_hidden_size(state, shape)
            states.append(state)
        return states[0], states[1] if pair else _empty(x)

    def _run(self, x: Any, state: tuple[Any, Any], lengths: Any, resets: Any) -> tuple[Any, Any]:
        weights = [getattr(self, name) for name in self._flat_weights_names]
        return _called(x, state, weights, lengths, resets, self._described, self._pair, self.training and self._random)


def _called(
    x: Any,
    state: tuple[Any, Any],
    weights: list[Any],
    lengths: Any,
    resets: Any,
    described: str,
    pair: bool,
    random: bool,
) -> tuple[Any, Any]:
    """y and the final state, which is a pair if the cell has a c."""
    of_weights = weights[0].dtype
    if x.dtype != of_weights and x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type):
        x, state = x.to(of_weights), (state[0].to(of_weights), state[1].to(of_weights))
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *weights))
    seed = torch.randint(2**62, ()) if random else None
    y, h, c, _ = _recurrence(x, *state, weights, lengths, resets, seed, described, training)
    return y, (h, c) if pair else h


def recurrence(layer: Recurrent, x: Any, state: tuple[Any, ...], weights: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    """The output (T, B, H) and the final state of a gpurnn layer, with ``weights`` in place of its parameters.

    Parameters
    ----------
    layer : Recurrent
        One layer in one direction. Only its configuration is used.
    x : (T, B, input_size) Tensor
    state : tuple of (B, H) Tensors
    weights : list of Tensors
        In the order of the layer's parameters.
    """
    pair = len(state) == 2
    h, c = [s.unsqueeze(0) for s in state] + ([] if pair else [_empty(x)])
    y, final = _called(x, (h, c), weights, None, None, _description(layer), pair, False)
    return y, tuple(s[0] for s in (final if pair else (final,)))


class RNN(_Module):
    """`torch.nn.RNN`, with further options of `gpurnn.RNN` by keyword: leak, residual, ...

    Examples
    --------
    >>> import torch
    >>> import gpurnn.torch
    >>> gpurnn.torch.RNN(3, 4, nonlinearity="relu", leak=0.5)
    RNN(3, 4, activation='relu', leak=0.5)
    """

    _kind = layers.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        **options: Unpack[RecurrentOptions],
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity is {nonlinearity!r}, expected 'tanh' or 'relu'")
        self.nonlinearity = nonlinearity
        super().__init__(
            f"RNN_{nonlinearity.upper()}", options, input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, device=device, dtype=dtype,
        )  # fmt: skip

    def _translated(self) -> dict[str, Any]:
        return {"activation": self.nonlinearity}


class LSTM(_Module):
    """`torch.nn.LSTM`, with further options of `gpurnn.LSTM` by keyword.

    Examples
    --------
    >>> import torch
    >>> import gpurnn.torch
    >>> lstm = gpurnn.torch.LSTM(3, 4, batch_first=True)
    >>> y, (h, c) = lstm(torch.ones(2, 5, 3), lengths=torch.tensor([5, 2]))
    >>> y.shape, bool((y[1, 2:] == 0).all())
    (torch.Size([2, 5, 4]), True)
    """

    _kind = layers.LSTM
    _pair = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        **options: Unpack[RecurrentOptions],
    ) -> None:
        super().__init__(
            "LSTM", options, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device, dtype,
        )  # fmt: skip

    def _translated(self) -> dict[str, Any]:
        if self.proj_size and "proj_size" not in inspect.signature(self._kind).parameters:
            raise NotImplementedError(f"LSTM: proj_size is {self.proj_size}, expected 0: gpurnn has no projections yet")
        return {"proj_size": self.proj_size} if self.proj_size else {}


class GRU(_Module):
    """`torch.nn.GRU`, or with ``reset_after=False, update="candidate"`` the textbook's GRU; see `gpurnn.GRU`.

    Examples
    --------
    >>> import torch
    >>> import gpurnn.torch
    >>> gpurnn.torch.GRU(3, 4, reset_after=False)
    GRU(3, 4, reset_after=False)
    """

    _kind = layers.GRU
    _defaults: Mapping[str, Any] = {"reset_after": True, "update": "state"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        **options: Unpack[RecurrentOptions],
    ) -> None:
        super().__init__(
            "GRU", options, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip


class _OwnModule(_Module):
    """A recurrent module that `torch.nn` lacks, with the arguments and the initial parameters of gpurnn's layer."""

    _kind: Any = layers.IndRNN
    _is_in_torch = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        **options: Unpack[RecurrentOptions],
    ) -> None:
        super().__init__(
            "RNN_TANH", options, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip


class IndRNN(_OwnModule):
    """`gpurnn.IndRNN` as a module: it is called like `torch.nn.RNN`, and each unit reads only its own state.

    Examples
    --------
    >>> import torch
    >>> import gpurnn.torch
    >>> module = gpurnn.torch.IndRNN(3, 4, activation="tanh")
    >>> module.weight_hh_l0.shape, module(torch.ones(5, 2, 3))[0].shape
    (torch.Size([4]), torch.Size([5, 2, 4]))
    """


class MinGRU(_OwnModule):
    """`gpurnn.MinGRU` as a module: it is called like `torch.nn.GRU`, and its gates do not read the state.

    Examples
    --------
    >>> import torch
    >>> import gpurnn.torch
    >>> y, h = gpurnn.torch.MinGRU(3, 4, batch_first=True)(torch.ones(2, 5, 3))
    >>> y.shape, h.shape
    (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))
    """

    _kind = layers.MinGRU


class MinLSTM(_OwnModule):
    """`gpurnn.MinLSTM` as a module, like `MinGRU`: its state is h alone.

    Examples
    --------
    >>> import torch
    >>> import gpurnn.torch
    >>> [name for name, _ in gpurnn.torch.MinLSTM(3, 4).named_parameters()]
    ['weight_ih_l0', 'bias_ih_l0']
    """

    _kind = layers.MinLSTM


class _Cell(torch.nn.RNNCellBase):
    """One step, computed as a sequence of length 1."""

    _kind: Any
    _pair = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        layer = self._kind(self.input_size, self.hidden_size, bias=self.bias, **self._options(), init="zeros")
        self._described = _description(layer)

    def _options(self) -> dict[str, Any]:
        return {}

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Return the new state (B, hidden_size) from input (B, input_size), or both without the first axis."""
        name, pair = type(self).__name__, self._pair
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is None:
            zero = input.new_zeros((*input.shape[:-1], self.hidden_size))
            hx = (zero, zero) if pair else zero
        states = hx if pair else (hx,)
        for index, state in enumerate(states):
            if state.dim() not in (1, 2):
                said = f"hx[{index}]" if pair else "hidden"
                raise ValueError(f"{name}: Expected {said} to be 1D or 2D, got {state.dim()}D instead")
        batched = input.dim() == 2
        x = input.unsqueeze(0) if batched else input[None, None]
        h, c = [s.unsqueeze(0) if batched else s[None, None] for s in states] + ([] if pair else [_empty(x)])
        names = [f"{part}_{kind}" for part in ("weight", "bias")[: 1 + self.bias] for kind in ("ih", "hh")]
        weights = [getattr(self, each) for each in names]
        _, final = _called(x, (h, c), weights, None, None, self._described, pair, False)
        outputs = [s[0] if batched else s[0, 0] for s in (final if pair else (final,))]
        return tuple(outputs) if pair else outputs[0]


class RNNCell(_Cell, torch.nn.RNNCell):
    """`torch.nn.RNNCell`, with the same constructor and parameters, computed by gpurnn."""

    _kind = layers.RNN

    def _options(self) -> dict[str, Any]:
        return {"activation": self.nonlinearity}


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """`torch.nn.LSTMCell`, with the same constructor and parameters, computed by gpurnn."""

    _kind = layers.LSTM
    _pair = True


class GRUCell(_Cell, torch.nn.GRUCell):
    """`torch.nn.GRUCell`, with the same constructor and parameters, computed by gpurnn."""

    _kind = layers.GRU

    def _options(self) -> dict[str, Any]:
        return {"reset_after": True, "update": "state"}
