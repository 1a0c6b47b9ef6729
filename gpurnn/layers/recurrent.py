"""The recurrent layers: stacked, in one direction or both, with their dropouts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import numpy as np

from .. import _arrays, _checks, _dispatch, _foreign, cells, initializers
from .._contract import Array, State, Wavefront, Wing
from .._op import Pullback
from .._random import Key, generator, mask_key, philox_seed
from ..functional import _elementwise, _masks
from ..functional._dropout import dropout_mask
from ..functional._recurrent import infer, one_step, take
from ..functional._segments import States, Whole, part_of, segments_of, through
from ..functional._state import check_cotangents, pack_state, unpack_state
from .base import (
    InitialParameters,
    Layer,
    Parameters,
    check_size,
    is_initialised_later,
    named,
    parameter,
    parameter_dtype,
)

Init = str | initializers.Initializer
Merge = Literal["concat", "sum", "mul", "average"]

MERGES: tuple[Merge, ...] = get_args(Merge)

LAYERS: dict[str, type[Stacked]] = {}
"""The recurrent layers, by the name of their cell."""


class OwnOptions(TypedDict, total=False):
    """The options of all layers besides those of the cell, for type checkers where options are passed on."""

    merge: Merge
    reverse: bool
    zero_masked_output: bool
    residual: bool
    variational_dropout: float
    recurrent_dropout: float


class RecurrentOptions(OwnOptions, cells.GateOptions, total=False):
    """All keyword options that set no size of a weight. See a layer's constructor for those that it takes."""

    activation: cells.Activation


def layer_names() -> str:
    """The names of the layers whose units read each other, for messages: ``"RNN, LSTM or GRU"``."""
    *names, last = (layer.__name__ for layer in LAYERS.values() if issubclass(layer, Recurrent))
    return f"{', '.join(names)} or {last}"


SHARED = "It takes and has what the layers of every cell do."
"""The line of a docstring that `Stacked` replaces by the text that all cells share."""

_SHARED = """\
Parameters
----------
input_size, hidden_size : int
    I and H.
num_layers : int
    Layers of the stack; each reads the output of the one before it.
bias : bool
    Whether there is a {biases}.
batch_first : bool
    Whether x and y are (B, T, ...) instead of (T, B, ...); states are (num_layers*D, B, H) either way.
dropout : float
    Rate of the dropout on the output of each layer except the last; with one layer it has no effect and warns.
bidirectional : bool
    Whether each layer also runs backward in time; y then holds both directions, merged.
{options}
merge : {{"concat", "sum", "mul", "average"}}
    How the outputs of the two directions of each layer are combined: side by side, forward first, or by their sum,
    product or mean.
reverse : bool
    Whether all layers run backward in time, from a sequence's last step to its first; y is in the order of x.
zero_masked_output : bool
    Whether y is zero where a ``mask`` leaves a step out; else it repeats the previous output.
residual : bool
    Whether each layer's input is added to its output if their widths agree.
{on_w_hh}init : {init}, applied to each gate's
    block on its own. Biases start at zero{ones}.
dtype : "float32" or "float64"
rng : int or numpy.random.Generator
    Where the initial weights come from.

Attributes
----------
params : dict of str to array
    {parameters};
    ``_l1``, ... for further layers, followed by ``_reverse`` for the backward direction. Gates: {gates}.

Notes
-----
Dropouts act only in ``vjp(..., rng=...)``, and so do the masks of zoneout. Entries that a dropout keeps are scaled by
1/(1 - rate), so that a call needs no scaling."""


_ON_W_HH = """\
variational_dropout : float
    Rate of a dropout on h_{t-1} where it enters the product with W_hh, one mask for all steps
    (Gal & Ghahramani 2016).
recurrent_dropout : float
    Rate of a dropout on the entries of W_hh, one mask for all steps (DropConnect; Merity, Keskar & Socher 2018).
"""
"""The options of layers that have a W_hh."""

_INIT = "str or initializer\n    How W_ih starts: a name or function of `gpurnn.initializers`"
_INIT_PAIR = (
    "str, initializer or pair of them\n    How all weights start, or W_ih and W_hh: names or functions of "
    "`gpurnn.initializers`"
)


def _documentation(cell: cells.Cell) -> str:
    ones, has_w_hh = " and ".join(cell.biases_of_one), "weight_hh" in cell.parameters
    text = _SHARED.format(
        options=cell.options_text(cell.options()), gates=", ".join(cell.gate_functions),
        on_w_hh=_ON_W_HH if has_w_hh else "", init=_INIT if cell.elementwise else _INIT_PAIR,
        biases=" and a ".join(f"``{name}``" for name in cell.parameters if name not in cell.needed),
        ones=f", except that of the gate {ones} at 1" if ones else "",
        parameters=", ".join(f"``{name}_l0`` {shape}" for name, shape in cell.shape_texts().items()),
    )  # fmt: skip
    return text.replace("\n\nmerge", "\nmerge")


class _Weights(NamedTuple):
    """The weights that a layer computes with, the same at all steps."""

    values: tuple[dict[str, Array], ...]
    """For each direction, the weights by the names of the cell's parameters, in the form that a wing takes."""
    dropped: tuple[dict[str, Array], ...]
    """For each direction, the masks of the weights that have a dropout."""
    mask: Array | None
    """The mask that multiplies h_{t-1}."""
    between: Key | None
    """The key of the dropout on the layer's input."""
    steps: dict[str, tuple[float, Key]]
    """The rate and the key of the masks of each step, by their names."""


class _Rows(NamedTuple):
    """The steps that the rows of a batch have."""

    lengths: Array | None = None
    resets: Array | None = None
    mask: Array | None = None
    empty: tuple[Array | None, ...] = ()
    """For each direction, (T, B, 1): where there is no output to repeat."""


class Stacked(Layer):
    """Stacked layers of a cell, in one direction or both: everything except the cell's own options."""

    stateful = True
    batch_first: bool

    _kind: type[cells.Cell]

    def __init_subclass__(cls, *, cell: type[cells.Cell] | None = None, **kwargs: Any) -> None:
        """Register the class as the layer of a cell, and expand the line `SHARED` of its docstring.

        ``__init__`` takes input_size ... bidirectional, and by keyword the cell's options and residual ... rng.
        """
        super().__init_subclass__(**kwargs)
        if cell is not None:
            LAYERS[cell.name], cls._kind = cls, cell
            if cls.__doc__:
                cls.__doc__ = inspect.cleandoc(cls.__doc__).replace(SHARED, _documentation(cell()))

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Initialise the layer from ``arguments``, the constructor's arguments by name."""
        where = type(self).__name__
        self.cell = self._kind(**{option: arguments[option] for option in self._kind.options()})
        self.input_size = _checks.size(where, "input_size", arguments["input_size"])
        self.hidden_size = _checks.size(where, "hidden_size", arguments["hidden_size"])
        proj_size = getattr(self.cell, "proj_size", 0)
        if proj_size >= self.hidden_size:
            raise ValueError(f"{where}: proj_size is {proj_size}, expected less than hidden_size = {self.hidden_size}")
        self.num_layers = _checks.size(where, "num_layers", arguments["num_layers"])
        self.bias = _checks.flag(where, "bias", arguments["bias"])
        self.batch_first = _checks.flag(where, "batch_first", arguments["batch_first"])
        self.bidirectional = _checks.flag(where, "bidirectional", arguments["bidirectional"])
        self.merge = _checks.choice(where, "merge", arguments["merge"], MERGES)
        self.reverse = _checks.flag(where, "reverse", arguments["reverse"])
        self.zero_masked_output = _checks.flag(where, "zero_masked_output", arguments["zero_masked_output"])
        self.residual = _checks.flag(where, "residual", arguments["residual"])
        self.dropout = _checks.fraction(where, "dropout", arguments["dropout"])
        self.variational_dropout, self.recurrent_dropout = (
            _checks.fraction(where, name, arguments.get(name, 0.0))
            for name in ("variational_dropout", "recurrent_dropout")
        )
        if self.dropout and self.num_layers == 1:
            _checks.warn(
                where,
                f"dropout={self.dropout} has no effect, as there is one layer: it acts on the output of each layer "
                "except the last. A Dropout layer after this one acts on its output",
            )
        if self.residual and self.num_layers == 1 and self.input_size != self.output_size:
            _checks.warn(
                where,
                f"residual=True has no effect, as the input has {self.input_size} features and the output "
                f"{self.output_size}: only equal widths are added",
            )
        if self.reverse and self.bidirectional:
            raise ValueError(
                f"{where}: reverse is True, expected False as the layer is bidirectional: it runs in both directions"
            )
        if self.merge != "concat" and not self.bidirectional:
            _checks.warn(where, f"merge={self.merge!r} has no effect, as the layer has one direction")
        dtype = parameter_dtype(where, arguments["dtype"])
        init, rng = arguments["init"], arguments["rng"]
        if self.cell.elementwise and isinstance(init, tuple):
            raise TypeError(f"{where}: init is {init!r}, expected one, that of W_ih")
        pair = init if isinstance(init, tuple) else (init, init)
        if len(pair) != 2:
            raise TypeError(
                f"{where}: init is {_checks.described(init)}, expected one, or a pair of them for W_ih and W_hh"
            )
        initializers_of = tuple(map(initializers.get, pair))
        if is_initialised_later(init, rng):
            generator(where, rng)
            for layer in range(min(self.num_layers, 2)):
                for shape in self._shapes_of(layer).values():
                    check_size(shape)
            self._initial = initializers_of, dtype, rng
        else:
            self.params = self._initialise(initializers_of, dtype, generator(where, rng))

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """The width of y: both directions side by side, unless ``merge`` combines them into one."""
        return self._width * (self.num_directions if self.merge == "concat" else 1)

    @property
    def _width(self) -> int:
        """The width of h: hidden_size, or the width of an LSTM's projection."""
        return self.cell.state_sizes(self.hidden_size)[0]

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}{direction}" for direction in ("", "_reverse")[: self.num_directions]]

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, including biases that the layer may not have."""
        return {n: shape for layer in range(self.num_layers) for n, shape in self._shapes_of(layer).items()}

    def _shapes_of(self, layer: int) -> dict[str, tuple[int, ...]]:
        inputs = self.input_size if layer == 0 else self.output_size
        shapes = self.cell.shapes(input_size=inputs, hidden_size=self.hidden_size)
        return {name + suffix: shape for suffix in self._suffixes(layer) for name, shape in shapes.items()}

    params = InitialParameters()

    def _overwritten(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return InitialParameters.overwritten(self)

    def _dtypes(self) -> list[str]:
        return [self._initial[1].name] if "_initial" in vars(self) else super()._dtypes()

    @property
    def num_parameters(self) -> int:
        if "_initial" not in vars(self):
            return super().num_parameters
        names = self.cell.parameters if self.bias else self.cell.needed
        return sum(
            math.prod(shape)
            for layer in range(self.num_layers)
            for name, shape in self._shapes_of(layer).items()
            if name.rpartition("_l")[0] in names
        )

    def _initialise(
        self,
        init: tuple[initializers.Initializer, ...],
        dtype: np.dtype[Any],
        rng: int | np.random.Generator,
    ) -> dict[str, Array]:
        """Make initial parameters with the initializers of W_ih and of W_hh."""
        (init_ih, init_hh), rng, hidden = init, generator(type(self).__name__, rng), self.hidden_size

        def initial(name: str, shape: tuple[int, ...]) -> Array:
            if name == "weight_hr":
                return init_hh(rng, (shape[0], shape[1]), dtype)
            if len(shape) == 2:  # a block of each gate
                initialise = init_ih if name == "weight_ih" else init_hh
                return np.concatenate([initialise(rng, (hidden, shape[1]), dtype) for _ in range(shape[0] // hidden)])
            if name == "weight_hh":  # a diagonal
                return rng.uniform(size=shape).astype(dtype)
            if name not in ("bias_ih", "bias_hh"):
                return np.full(shape, name.startswith("norm"), dtype)
            ones = self.cell.biases_of_one if name == "bias_ih" else ()
            return np.repeat(np.array([gate in ones for gate in self.cell.gate_functions], dtype), hidden)

        params = {}
        for layer in range(self.num_layers):
            shapes = self._shapes_of(layer)  # a damaged file may ask for any number of layers
            for suffix in self._suffixes(layer):
                for name in self.cell.parameters if self.bias else self.cell.needed:
                    shape = shapes[name + suffix]
                    params[name + suffix] = parameter(shape, dtype, partial(initial, name, shape))
        return Parameters(named(params, self._forms()))

    @_foreign.handles
    def __call__(
        self,
        x: Array,
        state: State | None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Array, State]:
        """Return the layer's output and final state, without dropout; save nothing.

        Parameters
        ----------
        x : (T, B, input_size) array
            (B, T, input_size) with ``batch_first``. Has the dtype of the parameters.
        state : (num_layers*D, B, hidden_size) array, optional
            The initial state, for the LSTM a pair (h, c) of such arrays; zero by default. D is 2 if bidirectional,
            else 1; the layers come in order, each with its forward, then its backward direction.
        lengths : (B,) integer array, optional
            The number of steps of each sequence, in any order, zero allowed. x is not read past it.
        resets : (T, B) array of bools, or of integers 0 and 1, optional
            (B, T) with ``batch_first``. True where a new sequence starts: no state crosses from the step before it,
            in either direction. At step 0 it zeroes the initial state of the forward direction.
        mask : (T, B) array of bools, or of integers 0 and 1, optional
            (B, T) with ``batch_first``. False at the steps that a sequence does not have, in any pattern; steps past
            its length do not exist either. There x is not read, and the state passes to the next step unchanged. y
            repeats the previous output, in the order of its direction; it is zero if there is none, or with
            ``zero_masked_output``.

        Returns
        -------
        y : (T, B, output_size) array
            (B, T, output_size) with ``batch_first``; output_size is D*hidden_size, unless ``merge`` makes it
            hidden_size. Exactly zero past a sequence's length.
        state
            The final state, shaped like ``state``, taken after each sequence's last step, or with ``reverse`` after its
            first one.

        Raises
        ------
        TypeError, ValueError
            Arrays or dtypes are unsupported or mixed, or shapes or lengths do not fit.
        """
        if lengths is None and resets is None and mask is None and not self.batch_first:
            inferred = self._infer(x, state)
            if inferred is not None:
                return inferred
        if type(x) is not np.ndarray and _foreign.kind_of(x) is not None:
            return _foreign.call(Stacked.__call__, (self, x, state, lengths, resets, mask), {}, method=True)
        y, final, _ = self._forward(x, state, lengths, resets, mask, None, training=False)
        return y, final

    @_foreign.handles
    def step(self, x: Array, state: State | None = None) -> tuple[Array, State]:
        """Run one step of a stream; return the layer's output and its new state, without dropout.

        Parameters
        ----------
        x : (B, input_size) array
            Has the dtype of the parameters.
        state : (num_layers, B, hidden_size) array, optional
            The state before the step, for the LSTM a pair (h, c) of such arrays; zero by default.

        Returns
        -------
        y : (B, hidden_size) array
        state
            The state after the step, shaped like ``state``, which is not changed. With NumPy arrays, consecutive steps
            give the same bits as a call with the whole sequence. A layer without a product with W_hh, such as
            `gpurnn.MinGRU`, gives the same up to rounding, because a call computes many of its steps at once.

        Raises
        ------
        TypeError, ValueError
            The layer is bidirectional, so that an output depends on later steps; arrays or dtypes are unsupported or
            mixed; or shapes do not fit.

        Examples
        --------
        >>> import numpy as np
        >>> import gpurnn
        >>> layer, state = gpurnn.LSTM(3, 4, num_layers=2), None
        >>> stream = np.random.default_rng(0).normal(size=(5, 1, 3)).astype(np.float32)
        >>> for x_t in stream:
        ...     y_t, state = layer.step(x_t, state)
        >>> bool((y_t == layer(stream)[0][-1]).all())
        True
        """
        inferred = self._infer(x[None], state) if type(x) is np.ndarray and x.ndim == 2 else None
        if inferred is not None:
            return inferred[0][0], inferred[1]
        where = f"{type(self).__name__}.step"
        if self.bidirectional:
            raise ValueError(
                f"{where}: the layer is bidirectional, expected one direction: the output of a step in both depends on "
                "the steps to come"
            )
        if type(x) is not np.ndarray and _foreign.kind_of(x) is not None:
            return _foreign.call(Stacked.step, (self, x, state), {}, method=True)
        params = _arrays.parameters(where, self.params, self._parameter_shapes())
        given = take(
            where, self.cell, {"params": params["weight_ih_l0"], "x": one_step(where, x)}, state,
            input_size=self.input_size,
        )  # fmt: skip
        shape = (self.num_layers, given.x.shape[1], self.hidden_size)
        initial = given.initial(
            where, shape[:2], self.cell.state_sizes(self.hidden_size), "(num_layers, B, hidden_size)"
        )
        wing = _elementwise.of_cell(self.cell, _dispatch.wing(where, x=given.x))
        weights = self._all_weights(params, given.x, None, copied=False)
        y, final, _ = self._stack(wing, weights, given.x, _Rows(), 0, initial, training=False)
        return y[0, ...], pack_state(self.cell, final)

    def _infer(self, x: Array, state: State | None) -> tuple[Array, State] | None:
        """The result of a call if `infer` supports it, else None."""
        if self.num_layers > 1 or self.bidirectional or self.residual or self.reverse:
            return None
        states = (state,) if self.cell.states == 1 and state is not None else state
        sizes = self.input_size, self.hidden_size
        found = infer(self.cell, x, self.params, "_l0", states, sizes)
        return None if found is None else (found[0], pack_state(self.cell, found[1]))

    def vjp(
        self,
        x: Array,
        state: State | None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        rng: int | np.random.Generator | None = None,
        *,
        mask: Array | None = None,
        checkpoint_every: int | str | None = None,
        state_after: int | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """Return ``((y, state), pullback)``; the first four arguments and ``mask`` are those of a call.

        Parameters
        ----------
        rng : int or numpy.random.Generator, optional
            Where dropout masks come from. None means no dropout: gradients in evaluation mode.
        checkpoint_every : int or "sqrt", optional
            K, for gradient checkpointing: keep the state at every K-th step only, and recompute the steps between in
            the pullback. Memory, except for x, y and their gradients, falls from O(T) to O(T/K + K), at the cost of one
            more forward pass. "sqrt" is K = ceil(sqrt(T)). The result has the same bits as without, dropout included.
            For that, K is rounded up to whole chunks of ``ceil(R / B)`` steps, because a product over many steps is
            computed for a chunk at a time; R, the rows of such a product, is 1024 on NumPy arrays and 8192 in the
            kernels. Layers that run at once in the kernels have other chunks, see `gpurnn.explain`. The layers of a
            stack run each segment together, so no array of T steps is kept between them.
        state_after : int, optional
            Return the state after this many steps, 0 ... T, instead of the final state, and take its gradient. For
            truncated backpropagation through overlapping windows. With ``reverse`` they are the last steps of x.

        Returns
        -------
        (y, state), pullback
            ``pullback((dy, dstate))`` returns ``((dx, dstate0), grads)``: the gradients of x, of the initial state,
            and of the parameters by name. dy and dstate are shaped like y and state; they, or one of the LSTM's pair,
            may be None for zero.

        Raises
        ------
        ValueError
            ``checkpoint_every`` or ``state_after`` is given to a bidirectional layer. Its backward direction depends on
            the end of the sequence, so no single state separates the steps before from those after.

        References
        ----------
        T. Chen, B. Xu, C. Zhang, C. Guestrin, "Training deep nets with sublinear memory cost", arXiv 1604.06174 (2016);
        A. Gruslys et al., "Memory-efficient backpropagation through time", NeurIPS 2016.
        """
        y, final, pull = self._forward(
            x, state, lengths, resets, mask, rng, training=True, checkpoint_every=checkpoint_every,
            state_after=state_after,
        )  # fmt: skip
        return (y, final), pull

    def _forward(
        self,
        x: Array,
        state: State | None,
        lengths: Array | None,
        resets: Array | None,
        mask: Array | None,
        rng: int | np.random.Generator | None,
        *,
        training: bool,
        checkpoint_every: int | str | None = None,
        state_after: int | None = None,
    ) -> tuple[Array, State, Any]:
        where = type(self).__name__
        params = _arrays.parameters(where, self.params, self._parameter_shapes())
        given = take(
            where, self.cell, {"params": params["weight_ih_l0"], "x": x}, state, lengths, resets, mask,
            input_size=self.input_size, batch_first=self.batch_first,
        )  # fmt: skip
        xp, T, B = given.xp, given.x.shape[0], given.x.shape[1]
        shape = (self.num_layers * self.num_directions, B)
        widths = self.cell.state_sizes(self.hidden_size)
        initial = given.initial(where, shape, widths, "(num_layers*D, B, hidden_size)")
        wing = _elementwise.of_cell(self.cell, _dispatch.wing(where, x=given.x))
        self._check_direction(checkpoint_every=checkpoint_every, state_after=state_after)
        front = self._wavefront(wing, given.x)
        chunk = wing.recurrence_chunk(B) if front is None else front.chunk
        segments = segments_of(where, range(T), chunk, checkpoint_every, state_after)
        recompute = checkpoint_every is not None and len(segments) > 1
        if len(segments) > 1 or self.reverse:
            wing.check_lengths(self.cell.name, given.lengths, T)  # a segment could not check them
        if self.reverse:
            given = given.backwards()
        empty: tuple[Array | None, ...] = ()
        if not self.zero_masked_output:
            empty = tuple(given.without_output(d) for d in range(self.num_directions))
        weights = self._all_weights(params, given.x, rng, copied=recompute)

        def run(steps: range, state: tuple[Array, ...], training: bool) -> tuple[Array, tuple[Array, ...], Any]:
            part, rows = _part(xp, steps, given.x, _Rows(given.lengths, given.resets, given.mask, empty))
            return self._stack(wing, weights, part, rows, steps.start, state, training, front)

        y, final, pull = through(
            run, segments, initial, training=training, recompute=recompute, state_after=state_after
        )  # fmt: skip
        output, final_state = self._turned(xp, y), pack_state(self.cell, final)
        if pull is None:
            return output, final_state, None

        def pullback(cotangents: Any) -> tuple[tuple[Array, State], dict[str, Array]]:
            dy, dfinal = check_cotangents(where, self.cell, cotangents, output, final_state)
            dx, dinitial, dweights = pull(None if dy is None else self._turned(xp, dy, back=True), dfinal, None)
            return (self._turned(xp, dx), pack_state(self.cell, dinitial)), self._gradients(weights, dweights)

        return output, final_state, pullback

    def _wavefront(self, wing: Wing, x: Array) -> Wavefront | None:
        """How layers run at once over all steps of x; None if they do not."""
        if self.num_layers == 1:
            return None
        (T, B, _), D = x.shape, self.num_directions
        return wing.wavefront(self.cell, T, B, self.hidden_size, D, self.num_layers, x)

    def _check_direction(self, **options: Any) -> None:
        """Reject options that need a state between two steps if the layer has none."""
        for name, value in options.items():
            if value is not None and self.bidirectional:
                raise ValueError(
                    f"{type(self).__name__}: {name} is {value!r}, expected None as the layer is bidirectional: no "
                    "single state separates earlier steps from later ones, where its backward direction begins"
                )

    def _turned(self, xp: Any, array: Array, *, back: bool = False) -> Array:
        """Change from the order of computation to the layer's order of steps and axes, or back."""
        axes = (1, 0, 2) if self.batch_first else (0, 1, 2)
        if self.reverse:
            array = xp.flip(array, axis=axes.index(0) if back else 0)
        return _arrays.contiguous(xp.permute_dims(array, axes)) if self.batch_first or self.reverse else array

    def _gradients(self, weights: list[_Weights], dweights: list[Any]) -> dict[str, Array]:
        """The gradients of the parameters, from the weights' gradients of each layer and direction."""
        gradients = {}
        for layer, directions in enumerate(dweights):
            for suffix, direction, masks in zip(self._suffixes(layer), directions, weights[layer].dropped, strict=True):
                for name, gradient in direction.items():
                    gradients[name + suffix] = gradient * masks[name] if name in masks else gradient
        return self._summed(gradients)

    def _by_layer(self, state: tuple[Array | None, ...]) -> list[tuple[Any, ...]]:
        """Split a state of (num_layers*D, B, H) arrays into the (D, B, H) arrays of each layer."""
        D = self.num_directions
        return [
            tuple(None if s is None else s[layer * D : (layer + 1) * D, ...] for s in state)
            for layer in range(self.num_layers)
        ]

    def _packed(self, xp: Any, states: list[tuple[Array, ...]]) -> tuple[Array, ...]:
        """The reverse of `_by_layer`."""
        if len(states) == 1:
            return states[0]
        return tuple(xp.concat(parts, axis=0) for parts in zip(*states, strict=True))

    def _all_weights(
        self, params: dict[str, Array], x: Array, rng: int | np.random.Generator | None, copied: bool
    ) -> list[_Weights]:
        random = None if rng is None else generator(type(self).__name__, rng)
        return [self._weights(params, layer, x, random, copied) for layer in range(self.num_layers)]

    def _weights(
        self,
        params: dict[str, Array],
        layer: int,
        x: Array,
        rng: np.random.Generator | None,
        copied: bool,
    ) -> _Weights:
        """A layer's weights with the dropouts that are drawn once for all steps."""
        values = [
            {name: params[name + suffix] for name in self.cell.parameters if name + suffix in params}
            for suffix in self._suffixes(layer)
        ]
        if copied:  # a caller's changes to the parameters must not affect what is recomputed
            xp = _dispatch.namespace(type(self).__name__, x=x)
            values = [{name: xp.asarray(p, copy=True) for name, p in own.items()} for own in values]
        between = None
        if rng is not None and self.dropout > 0 and layer > 0:
            between = mask_key(rng)
        dropped: list[dict[str, Array]] = [{} for _ in values]
        if rng is not None and self.recurrent_dropout > 0:
            for own, masks in zip(values, dropped, strict=True):
                w_hh = own["weight_hh"]
                masks["weight_hh"] = dropout_mask(x, tuple(w_hh.shape), self.recurrent_dropout, Key(philox_seed(rng)))
                own["weight_hh"] = w_hh * masks["weight_hh"]
        mask = None
        if rng is not None and self.variational_dropout > 0:
            shape = (self.num_directions, x.shape[1], self._width)
            mask = dropout_mask(x, shape, self.variational_dropout, mask_key(rng))
        steps = {} if rng is None else {n: (rate, mask_key(rng)) for n, rate in self.cell.drawn_masks().items()}
        return _Weights(tuple(values), tuple(dropped), mask, between, steps)

    def _stack(
        self,
        wing: Wing,
        weights: list[_Weights],
        x: Array,
        rows: _Rows,
        start: int,
        state: tuple[Array, ...],
        training: bool,
        front: Wavefront | None = None,
    ) -> tuple[Array, tuple[Array, ...], Any]:
        """Run all layers over x, whose steps begin at step ``start`` of the sequence; return the results of a `Run`."""
        if front is not None:
            return self._at_once(wing, weights, x, rows, start, state, training, front)
        xp = _dispatch.namespace(type(self).__name__, x=x)
        finals, pulls, y = [], [], x
        for layer, state_of_layer in zip(weights, self._by_layer(state), strict=True):
            final, finish = self._layer(wing, layer, y, state_of_layer, rows, start, training)
            y, pull_layer = finish()
            del finish  # and with it the layer's input
            finals.append(final)
            pulls.append(pull_layer)

        def pull(dy: Array | None, dstate: States, later: list[Any] | None) -> tuple[Any, tuple[Array, ...], list[Any]]:
            """``later`` has the gradients of each layer's weights from later steps."""
            dstates, dweights = self._by_layer(dstate), [None] * len(weights) if later is None else list(later)
            dx: Any = dy
            for k, pull_layer in reversed(list(enumerate(pulls))):
                dx, dweights[k], dstates[k] = pull_layer(dx, dstates[k], dweights[k])()
            return dx, self._packed(xp, dstates), dweights

        return y, self._packed(xp, finals), pull if training else None

    def _at_once(
        self,
        wing: Wing,
        weights: list[_Weights],
        x: Array,
        rows: _Rows,
        start: int,
        state: tuple[Array, ...],
        training: bool,
        front: Wavefront,
    ) -> tuple[Array, tuple[Array, ...], Any]:
        """`_stack` in chunks of steps; at any time the layers compute different chunks."""
        xp = _dispatch.namespace(type(self).__name__, x=x)
        chunks = segments_of(type(self).__name__, range(x.shape[0]), front.chunk, front.chunk)
        parts = [_part(xp, chunk, x, rows) for chunk in chunks]
        passed, states = [part for part, _ in parts], self._by_layer(state)
        pulls: dict[tuple[int, int], Any] = {}
        for places in _waves(len(weights), len(chunks), front.layers):
            with front.at_once():
                running = [
                    self._layer(wing, weights[l], passed[k], states[l], parts[k][1], start + chunks[k].start, training)
                    for l, k in places
                ]
            for (l, k), (final, finish) in zip(places, running, strict=True):
                states[l] = final
                passed[k], pulls[l, k] = finish()
            del running, finish  # and with them the layers' inputs

        def pull(dy: Array | None, dstate: States, later: list[Any] | None) -> tuple[Any, tuple[Array, ...], list[Any]]:
            dstates, dweights = self._by_layer(dstate), [None] * len(weights) if later is None else list(later)
            passed: list[Any] = [None if dy is None else dy[chunk.start : chunk.stop, ...] for chunk in chunks]
            for places in reversed(list(_waves(len(weights), len(chunks), front.backward_layers))):
                with front.at_once():
                    running = [pulls[l, k](passed[k], dstates[l], dweights[l]) for l, k in places]
                for (l, k), finish in zip(places, running, strict=True):
                    passed[k], dweights[l], dstates[l] = finish()
                del running, finish
            return _joined(chunks, passed), self._packed(xp, dstates), dweights

        return _joined(chunks, passed), self._packed(xp, states), pull if training else None

    def _layer(
        self,
        wing: Wing,
        weights: _Weights,
        x: Array,
        state: tuple[Array, ...],
        rows: _Rows,
        start: int,
        training: bool,
    ) -> tuple[tuple[Array, ...], Callable[[], tuple[Array, Any]]]:
        """Run one layer of the stack; return its final state, and ``finish() -> y, pull``.

        ``pull(dy, dstate, dweights)`` returns ``finish() -> dx, dweights, dstate0``. Either ``finish`` must be called
        after the recurrence has ended; it computes the results that are passed on.
        """
        xp = _dispatch.namespace(type(self).__name__, x=x)
        between = None
        if weights.between is not None:
            between = dropout_mask(x, tuple(x.shape), self.dropout, weights.between, start)
            x = x * between
        cell, step_masks = self.cell, None
        if weights.steps:
            cell = replace(cell, step_masks=tuple(weights.steps))
            step_masks = xp.stack([self._step_mask(x, start, *drawn) for drawn in weights.steps.items()])
        recurred, final, saved = wing.recurrence_forward(
            cell, x, weights.values, state, lengths=rows.lengths, resets=rows.resets, exists=rows.mask,
            repeats=not self.zero_masked_output, mask=weights.mask, step_masks=step_masks, training=training,
        )  # fmt: skip

        def finish() -> tuple[Array, Any]:
            empty = _side_by_side(xp, rows.empty, self._width)
            y, pull_merge = self._merged(xp, _masks.zero_where(xp, empty, recurred))
            skip = self.residual and x.shape[2] == y.shape[2]
            absent = None
            if skip:
                exists = _masks.exist(xp, x, rows.lengths, rows.mask)
                absent = None if exists is None else xp.expand_dims(xp.logical_not(exists), axis=2)
                y = y + _masks.zero_where(xp, absent, x)

            def pull(
                dy: Array | None, dstate: tuple[Array | None, ...], dweights: Any
            ) -> Callable[[], tuple[Array, Any, tuple[Array, ...]]]:
                dmerged = None if dy is None else _masks.zero_where(xp, empty, pull_merge(dy))
                of_x, gradients, dstate0 = wing.recurrence_backward(saved, dmerged, dstate, dweights)

                def finish() -> tuple[Array, Any, tuple[Array, ...]]:
                    dx = of_x
                    if skip and dy is not None:
                        dx = dx + _masks.zero_where(xp, absent, dy)
                    return dx if between is None else dx * between, gradients, dstate0

                return finish

            return y, pull

        return final, finish

    def _step_mask(self, x: Array, start: int, name: str, drawn: tuple[float, Key]) -> Array:
        """A mask (D, T, B, H) for the steps of x, which begin at step ``start`` of the sequence."""
        xp = _dispatch.namespace(type(self).__name__, x=x)
        (T, B, _), D, H = x.shape, self.num_directions, self.hidden_size
        mask = xp.permute_dims(dropout_mask(x, (T, B, D, H), *drawn, start), (2, 0, 1, 3))
        return step_mask(name, mask)

    def _merged(self, xp: Any, y: Array) -> tuple[Array, Callable[[Array], Array]]:
        """Merge the outputs of both directions (T, B, 2*H); also return the pullback."""
        if not self.bidirectional or self.merge == "concat":
            return y, lambda dy: dy
        forward, backward = y[:, :, : self._width], y[:, :, self._width :]
        if self.merge == "mul":
            return forward * backward, lambda dy: xp.concat([dy * backward, dy * forward], axis=2)
        factor = 0.5 if self.merge == "average" else 1.0
        return factor * (forward + backward), lambda dy: xp.concat([factor * dy] * 2, axis=2)

    def _merged_state(self, state: State) -> tuple[Array, Any]:
        """Merge the final h of both directions of the last layer like outputs, for a pooling.

        Also return ``pull(dmerged, dstate) -> (None, dstate), {}``, which adds the gradient to that of the state.
        """
        where = type(self).__name__
        h: Any = next(iter(unpack_state(where, self.cell, "state", state).values()))
        xp = _dispatch.namespace(where, h=h)
        merged, pull_merge = self._merged(xp, xp.concat([h[-2:-1, ...], h[-1:, ...]], axis=2))

        def pull(dmerged: Array, dstate: State | None) -> tuple[tuple[None, State], dict[str, dict[str, Array]]]:
            d = pull_merge(xp.expand_dims(dmerged, axis=0))
            below = xp.zeros_like(h[:-2, ...])
            dh = xp.concat([below, d[:, :, : self._width], d[:, :, self._width :]], axis=0)
            given: list[Any] = list(unpack_state(where, self.cell, "dstate", dstate).values())
            given[0] = _arrays.cotangent(where, "state", given[0], h)
            given[0] = dh if given[0] is None else dh + given[0]
            return (None, pack_state(self.cell, tuple(given))), {}

        return merged[0, ...], pull

    def _forms(self) -> dict[str, str]:
        values = [f"{option}={getattr(self.cell, option)!r}" for option in self.cell.form]
        return {"": ", ".join(values)} if values else {}

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        return self.input_size, self.output_size

    def _argument(self, name: str) -> Any:
        if name == "dtype" and "_initial" in vars(self):
            return self._initial[1].name
        return getattr(self.cell, name) if name in self.cell.options() else super()._argument(name)


def _part(xp: Any, steps: range, x: Array, rows: _Rows) -> tuple[Array, _Rows]:
    """A range of the steps of x, and the rows' steps within the range."""
    part, lengths, resets, mask, *empty = part_of(xp, steps, x, rows.lengths, rows.resets, rows.mask, *rows.empty)
    return part, _Rows(lengths, resets, mask, tuple(empty))


def _waves(layers: int, chunks: int, at_once: int) -> Iterator[list[tuple[int, int]]]:
    """All pairs of a layer and a chunk, in the order of computation: the pairs in a list are independent."""
    for first in range(0, layers, at_once):
        band = range(first, min(first + at_once, layers))
        for wave in range(len(band) + chunks - 1):
            yield [(layer, wave - i) for i, layer in enumerate(band) if 0 <= wave - i < chunks]


def _joined(chunks: list[range], parts: list[Array]) -> Array:
    """Join the parts of an array, one for each chunk of steps."""
    whole = Whole(chunks)
    for steps, part in zip(chunks, parts, strict=True):
        whole.put(steps, part)
    joined: Array = whole.array
    return joined


def step_mask(name: str, mask: Array) -> Array:
    """The cell's mask with this ``name``, from a dropout mask of its rate."""
    xp = _dispatch.namespace(name, mask=mask)
    # A zero of the dropout mask drops an entry; for zoneout it keeps the previous step's value, as a 1.
    return xp.astype(mask == 0, mask.dtype) if name.startswith("zoneout") else _arrays.contiguous(mask)


def _side_by_side(xp: Any, of_directions: tuple[Array | None, ...], hidden: int) -> Array | None:
    """Join the (T, B, 1) arrays of two directions to (T, B, D*H), in the order of the outputs; return a single one."""
    arrays = [array for array in of_directions if array is not None]
    if len(arrays) < 2:
        return arrays[0] if arrays else None
    return xp.concat([xp.broadcast_to(a, (*a.shape[:2], hidden)) for a in arrays], axis=2)


class Recurrent(Stacked):
    """The base class of layers whose units read each other's states, by a product with W_hh in each step."""


class RNN(Recurrent, cell=cells.Vanilla):
    """Vanilla recurrent layers: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) + leak h_{t-1}.

    It takes and has what the layers of every cell do.

    References
    ----------
    J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rnn = gpurnn.RNN(3, 4, activation="relu", init=("normal", "identity"))
    >>> rnn
    RNN(3, 4, activation='relu')  # 36 parameters
    >>> y, h = rnn(np.zeros((5, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((5, 2, 4), (1, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        activation: cells.Activation = "tanh",
        leak: float = 0.0,
        clip: float | None = None,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        merge: Merge = "concat",
        reverse: bool = False,
        zero_masked_output: bool = False,
        residual: bool = False,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        init: Init | tuple[Init, Init] = ("xavier", "orthogonal"),
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(locals())


class LSTM(Recurrent, cell=cells.LSTM):
    """LSTM layers: i, f, o = sigma(...), g = tanh(...), c_t = f c_{t-1} + i g, h_t = o tanh(c_t).

    The sigma and tanh are of the rows of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh; see `gpurnn.lstm`.

    It takes and has what the layers of every cell do.

    References
    ----------
    S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9 (1997);
    R. Jozefowicz, W. Zaremba, I. Sutskever, "An empirical exploration of recurrent network architectures", ICML 2015
    (the forget gate's bias).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> lstm = gpurnn.LSTM(3, 4, num_layers=2, bidirectional=True)
    >>> lstm
    LSTM(3, 4, num_layers=2, bidirectional=True)  # 736 parameters
    >>> x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    >>> (y, (h, c)), pullback = lstm.vjp(x)
    >>> y.shape, h.shape, c.shape
    ((5, 2, 8), (4, 2, 4), (4, 2, 4))
    >>> (dx, (dh0, dc0)), grads = pullback((np.ones_like(y), None))
    >>> dx.shape, grads["weight_ih_l1_reverse"].shape
    ((5, 2, 3), (16, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        activation: cells.Activation = "tanh",
        gate_activation: cells.Activation = "sigmoid",
        output_activation: cells.Activation = "tanh",
        clip: float | None = None,
        cell_clip: float | None = None,
        peephole: bool = False,
        coupled: bool = False,
        zoneout: tuple[float, float] = (0.0, 0.0),
        candidate_dropout: float = 0.0,
        layer_norm: bool = False,
        proj_size: int = 0,
        merge: Merge = "concat",
        reverse: bool = False,
        zero_masked_output: bool = False,
        residual: bool = False,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        init: Init | tuple[Init, Init] = ("xavier", "orthogonal"),
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(locals())


class GRU(Recurrent, cell=cells.GRU):
    """GRU layers: r, z = sigma(...), h_t = (1 - z) h_{t-1} + z n, by default the textbook's; see `gpurnn.gru`.

    For weights from PyTorch the layer needs ``reset_after=True, update="state"``: the other forms have weights of the
    same names and shapes, but other outputs.

    It takes and has what the layers of every cell do.

    References
    ----------
    K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
    EMNLP 2014.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gru = gpurnn.GRU(3, 4, batch_first=True, reset_after=True, update="state")
    >>> gru
    GRU(3, 4, batch_first=True, reset_after=True, update='state')  # 108 parameters
    >>> y, h = gru(np.zeros((2, 5, 3), np.float32), lengths=np.array([5, 0]))
    >>> y.shape, h.shape
    ((2, 5, 4), (1, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = False,
        update: cells.Update = "candidate",
        activation: cells.Activation = "tanh",
        gate_activation: cells.Activation = "sigmoid",
        clip: float | None = None,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        merge: Merge = "concat",
        reverse: bool = False,
        zero_masked_output: bool = False,
        residual: bool = False,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        init: Init | tuple[Init, Init] = ("xavier", "orthogonal"),
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(locals())


class MinGRU(Stacked, cell=cells.MinGRU):
    """Minimal GRU layers: z = sigma(...), h_t = (1 - z) h_{t-1} + z g(...), whose gates do not read h.

    All steps are computed at once, by products and a `gpurnn.linear_scan`; see `gpurnn.mingru`. There is no W_hh, and
    so no dropout on it.

    It takes and has what the layers of every cell do.

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?", arXiv 2410.01201 (2024).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> layer = gpurnn.MinGRU(3, 4, num_layers=2, dropout=0.1)
    >>> layer
    MinGRU(3, 4, num_layers=2, dropout=0.1)  # 72 parameters
    >>> y, h = layer(np.zeros((5, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        merge: Merge = "concat",
        reverse: bool = False,
        zero_masked_output: bool = False,
        residual: bool = False,
        init: Init = "xavier",
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(locals())


class MinLSTM(Stacked, cell=cells.MinLSTM):
    """Minimal LSTM layers: i, f = sigma(...), h_t = (f h_{t-1} + i g(...)) / (f + i), whose gates do not read h.

    All steps are computed at once, by products and a `gpurnn.linear_scan`; see `gpurnn.minlstm`. There is no W_hh, and
    so no dropout on it. The state is h alone.

    It takes and has what the layers of every cell do.

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?", arXiv 2410.01201 (2024).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> layer = gpurnn.MinLSTM(3, 4, bidirectional=True, merge="sum")
    >>> layer
    MinLSTM(3, 4, bidirectional=True, merge='sum')  # 96 parameters
    >>> (y, h), pullback = layer.vjp(np.zeros((5, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        merge: Merge = "concat",
        reverse: bool = False,
        zero_masked_output: bool = False,
        residual: bool = False,
        init: Init = "xavier",
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(locals())


class IndRNN(Stacked, cell=cells.IndRNN):
    """Independent recurrent layers: h_t = f(W_ih x_t + u h_{t-1} + b_ih) + leak h_{t-1}.

    u is ``weight_hh``, one number per unit, initially uniform in (0, 1). No unit reads the state of another, so the
    layer above combines the units of a layer. See `gpurnn.indrnn`.

    It takes and has what the layers of every cell do.

    References
    ----------
    S. Li, W. Li, C. Cook, C. Zhu, Y. Gao, "Independently recurrent neural network (IndRNN): building a longer and
    deeper RNN", CVPR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> layer = gpurnn.IndRNN(3, 4, num_layers=2, residual=True)
    >>> layer
    IndRNN(3, 4, num_layers=2, residual=True)  # 44 parameters
    >>> y, h = layer(np.zeros((5, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        activation: cells.Activation = "relu",
        leak: float = 0.0,
        clip: float | None = None,
        merge: Merge = "concat",
        reverse: bool = False,
        zero_masked_output: bool = False,
        residual: bool = False,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        init: Init = "xavier",
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(locals())
