"""The recurrent layers as functions: for each cell, one layer in one direction, and one step.

All cells share the code that computes, and most of the documentation: both use the cell's description. A function here
is only a signature and a docstring.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from .. import _arrays, _checks, _dispatch, _foreign, cells
from .._contract import Array, State
from .._op import Op, Pullback, differentiable
from . import _elementwise, _masks
from ._state import check_cotangents, check_sequence, pack_state, unpack_state

P = ParamSpec("P")
R = TypeVar("R")

SHARED = "It takes, returns and raises what the function of every cell does."
"""The line of a docstring that `of_cell` replaces by the text that all cells share."""

_SHARED = """\
Parameters
----------
x : (T, B, I) array
    Input, time-major; float32 or float64, like every array here except ``lengths``, ``resets`` and ``mask``.
{parameters}
state : {state}, optional
    {initial}; zero by default.
{options}{implied}lengths : (B,) integer array, optional
    The number of steps of each row, in any order, zero allowed. x is not read past it.
resets : (T, B) array of bools, or of integers 0 and 1, optional
    True where a new sequence starts at step t: the state before it becomes zero, at t = 0 the initial state.
mask : (T, B) array of bools, or of integers 0 and 1, optional
    False at the steps that a row does not have, in any pattern; steps past its length do not exist either. There x is
    not read, and the state passes to the next step unchanged.
zero_masked_output : bool
    Whether y is zero at such a step. Otherwise y repeats the previous output; it is zero if there is none.
reverse : bool
    Whether the steps run from the last one to the first. y is in the order of x.
{dropout}{masks}
Returns
-------
y : (T, B, H) array
    h_t, exactly zero past a row's length.
state : {state}
    {final} after each row's last step, or with ``reverse`` after its first one.

Raises
------
TypeError
    Arrays are of an unsupported library, of two libraries, or of two dtypes.
ValueError
    A shape does not fit, or a length is not in 0 ... T."""

_DROPOUT = """\
dropout_h : (B, H) array, optional
    A variational dropout mask: multiplies h_{t-1} where it enters the product with W_hh, the same at every step.
"""

_SAME_BITS = """\
With NumPy arrays, consecutive steps give the
    same bits as `{name}` with the whole sequence."""
_ROUNDED = """\
Consecutive steps agree up to rounding with
    `{name}` for the whole sequence, which computes many steps at once."""

STEP = "Its arguments are those of the function of the whole sequence, of one step."
"""The line of a docstring that `step_of_cell` replaces by the text that all cells share."""

_STEP = """\
Parameters
----------
x : (B, I) array
    Input of the step; float32 or float64, like every array here.
{parameters}
state : {state}, optional
    {initial}, before the step; zero by default.
{options}{implied}{dropout}
Returns
-------
state : {state}
    {final}, after the step. {agreement} The pullback of
    ``{name}_cell.vjp`` takes the gradient of the state, and returns ``(dx, dstate0)`` and a dict of the parameters'
    gradients.

Raises
------
TypeError
    Arrays are of an unsupported library, of two libraries, or of two dtypes.
ValueError
    A shape does not fit."""


class Sequence(NamedTuple):
    """The arrays of a recurrence, ready to compute with."""

    xp: Any
    x: Array
    """(T, B, I)."""
    floats: dict[str, Any]
    """All arrays of the dtype of x, by argument name."""
    states: dict[str, Array | None]
    """The arrays of the state, by their names in messages."""
    lengths: Array | None
    resets: Array | None
    """(T, B)."""
    mask: Array | None
    """(T, B): True at the steps that exist, if they are within the lengths too."""

    def backwards(self) -> Sequence:
        """Return the sequence from its last step to its first."""
        x, resets, mask = _masks.backwards(self.xp, self.x, self.lengths, self.resets, self.mask)
        return self._replace(x=x, lengths=None, resets=resets, mask=mask)

    def without_output(self, direction: int = 0) -> Array | None:
        """(T, B, 1) bools: True where there is a state, but no output to repeat; None if that cannot happen."""
        if self.mask is None or all(s is None for s in self.states.values()):
            return None
        return self.xp.expand_dims(_masks.before_the_first(self.xp, self.mask, direction), axis=2)

    def initial(self, where: str, rows: tuple[int, ...], widths: tuple[int, ...], symbol: str) -> tuple[Array, ...]:
        """The arrays of the state, (*rows, width) each, with zeros for missing ones; reject other shapes."""
        arrays = []
        for (name, array), width in zip(self.states.items(), widths, strict=True):
            if array is not None:
                _checks.shape(where, name, array, (*rows, width), symbol)
            arrays.append(_dispatch.zeros(self.xp, (*rows, width), self.x) if array is None else array)
        return tuple(arrays)


def take(
    where: str,
    cell: cells.Cell,
    floats: Mapping[str, Array | None],
    state: State,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
    *,
    name: str = "state",
    needed: tuple[str, ...] = (),
    input_size: int | None = None,
    batch_first: bool = False,
) -> Sequence:
    """The ingress of every recurrence, for the functions, the layers and the analysis.

    Parameters
    ----------
    where : str
        The caller's public name, for messages.
    floats : dict of arrays or None
        x, and further arrays of its dtype, by name.
    name : str
        The name of the state in messages.
    needed : tuple of str
        The arrays that may not be None, besides x.
    input_size : int, optional
        The width of x, if it is known.
    batch_first : bool
        Whether x is (B, T, input_size), and ``resets`` and ``mask`` (B, T).
    """
    states = unpack_state(where, cell, name, state)
    xp, *arrays, lengths, resets, mask = _arrays.take(
        where, {**floats, **states}, {"lengths": lengths}, {"resets": resets, "mask": mask}, needed=("x", *needed)
    )
    floats = dict(zip(floats, arrays, strict=False))
    states = dict(zip(states, arrays[len(floats) :], strict=True))
    x: Any = floats["x"]
    _checks.ndim(where, "x", x, 3, "(B, T, input_size)" if batch_first else "(T, B, input_size)")
    if input_size is not None and x.shape[2] != input_size:
        raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected input_size = {input_size} at its end")
    if batch_first:
        x = _arrays.contiguous(xp.permute_dims(x, (1, 0, 2)))
        of_steps = []
        for of_step, array in (("resets", resets), ("mask", mask)):
            if array is not None:
                _checks.shape(where, of_step, array, (x.shape[1], x.shape[0]), "(B, T)")
                array = _arrays.contiguous(xp.permute_dims(array, (1, 0)))
            of_steps.append(array)
        resets, mask = of_steps
    check_sequence(where, x, lengths, resets=resets, mask=mask)
    return Sequence(xp, x, floats, states, lengths, resets, mask)


_FLOATS = np.dtype(np.float32), np.dtype(np.float64)


class _Expected(NamedTuple):
    """The expected arrays of a cell with given sizes."""

    cell: cells.Cell
    parameters: tuple[tuple[str, str, tuple[int, ...], bool], ...]
    """For each parameter its name, the name with a suffix, its shape, and whether it is required."""
    sums_over_units: bool


_expected: dict[tuple[int, str, tuple[int, int]], _Expected] = {}
"""A cache by the cells' ids. An entry keeps its cell alive, so the id belongs to no other cell."""


def _expected_of(cell: cells.Cell, suffix: str, sizes: tuple[int, int]) -> _Expected:
    found = _expected.get((id(cell), suffix, sizes))
    if found is None:
        shapes = cell.shapes(input_size=sizes[0], hidden_size=sizes[1])
        parameters = tuple((name, name + suffix, shape, name in cell.needed) for name, shape in shapes.items())
        found = _Expected(cell, parameters, cell.sums_over_units)
        if len(_expected) >= 256:
            _expected.clear()
        _expected[id(cell), suffix, sizes] = found
    return found


def infer(
    cell: cells.Cell, x: Any, params: Mapping[str, Any], suffix: str, state: Any, sizes: tuple[int, int]
) -> tuple[Array, tuple[Array, ...]] | None:
    """Run one layer in one direction on NumPy arrays that need no conversion: y, and the state arrays, (1, B, H).

    Return None for any other arguments, which `take` converts or rejects. A program that feeds outputs back calls a
    layer for each step, and a small layer then spends most of the time on checks, so this path has few.

    Parameters
    ----------
    params : dict of arrays or None
        The parameters, by the cell's parameter names followed by ``suffix``.
    state : tuple of (1, B, H) arrays, or None
    sizes : pair of int
        I and H.
    """
    if type(x) is not np.ndarray or x.ndim != 3 or x.shape[2] != sizes[0]:
        return None
    dtype, of_state = x.dtype, (1, x.shape[1], sizes[1])
    if dtype not in _FLOATS or not _arrays.is_ready(x, dtype, x.shape):
        return None
    if state is None:
        state = tuple([np.zeros(of_state, dtype) for _ in cell.state_names])
    elif type(state) is not tuple or len(state) != len(cell.state_names):
        return None
    for s in state:
        if not _arrays.is_ready(s, dtype, of_state):
            return None
    weights, expected = {}, _expected_of(cell, suffix, sizes)
    if expected.sums_over_units:
        return None
    for name, given, shape, needed in expected.parameters:
        p = params.get(given)
        if p is None:
            if needed:
                return None
        elif not _arrays.is_ready(p, dtype, shape):
            return None
        else:
            weights[name] = p
    wing = _dispatch.wing_of_numpy()
    if wing is None:
        return None
    if cell.elementwise:
        wing = _elementwise.of_cell(cell, wing)
    return wing.recurrence_forward(cell, x, (weights,), state)[:2]


def _hidden_size(where: str, cell: cells.Cell, weights: Mapping[str, Any], input_size: int) -> int:
    """The hidden size of the weights; reject weights whose shapes do not fit the cell."""
    symbols = {name: f"({', '.join(axes)}{',' if len(axes) == 1 else ''})" for name, axes in cell.parameters.items()}
    first = "weight_ih" if cell.elementwise else "weight_hh"
    w = weights[first]
    _checks.ndim(where, first, w, 2, symbols[first])
    if not cell.elementwise and cell.gates > 1 and tuple(w.shape) == (w.shape[0], cell.gates * w.shape[0]):
        raise ValueError(
            f"{where}: {first} has shape {tuple(w.shape)}, expected {symbols[first]}; weights of Keras are transposed, "
            "and their gates may have another order: gpurnn.interop.from_keras converts them"
        )
    hidden = int(w.shape[0]) // cell.gates if cell.elementwise else int(w.shape[1])
    if "weight_hr" in weights:
        _checks.ndim(where, "weight_hr", weights["weight_hr"], 2, symbols["weight_hr"])
        hidden = int(weights["weight_hr"].shape[1])
    if hidden < 1:
        raise ValueError(f"{where}: {first} has shape {tuple(w.shape)}, expected a hidden_size of at least 1")
    shapes = cell.shapes(input_size=input_size, hidden_size=hidden)
    for name in (first, *shapes):
        if name in weights:
            _checks.shape(where, name, weights[name], shapes[name], symbols[name])
    return hidden


def _add_axis(xp: Any, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Add a first axis, for one direction or one step, to the arrays."""
    return tuple(None if a is None else xp.expand_dims(a, axis=0) for a in arrays)


@functools.lru_cache(256, typed=True)  # programs call a function for each step
def _cell(
    kind: type[cells.Cell], implied: tuple[tuple[str, Any], ...], step_masks: tuple[str, ...], *options: Any
) -> cells.Cell:
    """The cell of a call, from the values of its options, and from the options that its parameters imply."""
    values = dict(zip(kind.function_options(), options, strict=True))
    return kind(**values, **dict(implied), step_masks=step_masks)


def _implied(kind: type[cells.Cell], name: str, array: Any) -> tuple[str, Any]:
    """The option that a parameter implies, and its value: True, or the parameter's number of rows."""
    option = kind.implied[name]
    if kind.options()[option] is bool:
        return option, True
    return option, int(array.shape[0]) if len(getattr(array, "shape", ())) == 2 else 1


def _run(
    where: str, kind: type[cells.Cell], arguments: Mapping[str, Any], training: bool
) -> tuple[tuple[Array, State], Any]:
    """Run the function of a cell with ``arguments`` by name; return ``(y, state)`` and, for training, the pullback."""
    given_names = [name for name in kind.implied if arguments[name] is not None]
    implied = tuple([_implied(kind, name, arguments[name]) for name in given_names])
    step_masks = tuple([name for name in kind.masks if arguments.get(name) is not None])
    options = [arguments[option] for option in kind.function_options()]
    try:
        cell = _cell(kind, implied, step_masks, *options)  # type: ignore[arg-type]
    except TypeError:  # a list among the options, or an invalid option
        cell = _cell.__wrapped__(kind, implied, step_masks, *options)
    for name in given_names:
        if name not in cell.parameters:
            raise ValueError(f"{where}: {name} is given, expected None: {cell!r} has no such parameter")
    reverse = _checks.flag(where, "reverse", arguments.get("reverse", False))
    repeats = not _checks.flag(where, "zero_masked_output", arguments.get("zero_masked_output", False))
    names = tuple(cell.parameters)
    given = take(
        where, cell, {name: arguments.get(name) for name in (*names, "x", "dropout_h", *cell.step_masks)},
        arguments["state"], arguments.get("lengths"), arguments.get("resets"), arguments.get("mask"),
        needed=cell.needed,
    )  # fmt: skip
    xp, dropout_h = given.xp, given.floats["dropout_h"]
    weights = {name: p for name in names if (p := given.floats[name]) is not None}
    (T, B, _), hidden = given.x.shape, _hidden_size(where, cell, weights, given.x.shape[2])
    widths = cell.state_sizes(hidden)
    state = given.initial(where, (B,), widths, "(B, hidden_size)" if widths[0] == hidden else "(B, width)")
    if dropout_h is not None:
        _checks.shape(where, "dropout_h", dropout_h, (B, widths[0]), "(B, hidden_size)")
    masks_of_steps = None
    if cell.step_masks:
        masks = []
        for name in cell.step_masks:
            m, width = given.floats[name], widths[0] if name == "zoneout_h" else hidden
            _checks.shape(where, name, m, (T, B, width), "(T, B, hidden_size)")
            if width < hidden:  # the padding is not read
                m = xp.concat([m, _dispatch.zeros(xp, (T, B, hidden - width), given.x)], axis=2)
            masks.append(_masks.from_the_end(xp, m) if reverse else m)
        masks_of_steps = xp.expand_dims(xp.stack(masks), axis=1)
    wing = _elementwise.of_cell(cell, _dispatch.wing(where, x=given.x))
    if reverse:
        wing.check_lengths(where, given.lengths, given.x.shape[0])
        given = given.backwards()
    empty = given.without_output() if repeats else None

    def with_direction(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(None if a is None else xp.expand_dims(a, axis=0) for a in arrays)

    def without_direction(arrays: tuple[Array, ...]) -> State:
        return pack_state(cell, tuple(a[0, ...] for a in arrays))

    def in_order(array: Any) -> Any:
        return _masks.from_the_end(xp, array) if reverse else array

    y, final, saved = wing.recurrence_forward(
        cell, given.x, (weights,), with_direction(state), lengths=given.lengths, resets=given.resets,
        exists=given.mask, repeats=repeats, mask=with_direction((dropout_h,))[0], step_masks=masks_of_steps,
        training=training,
    )  # fmt: skip
    y, final = in_order(_masks.zero_where(xp, empty, y)), without_direction(final)

    def pullback(cotangents: Any) -> tuple[tuple[Array, State], dict[str, Array]]:
        dy, dstate = check_cotangents(where, cell, cotangents, y, final)
        dy = in_order(dy)
        if empty is not None and dy is not None:
            dy = _masks.zero_where(xp, empty, dy)
        dx, (gradients,), dstate0 = wing.recurrence_backward(saved, dy, with_direction(dstate))
        return (in_order(dx), without_direction(dstate0)), {n: g for n, g in gradients.items() if n in weights}

    return (y, final), pullback if training else None


@functools.cache
def _names(kind: type[cells.Cell]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options of a cell's function, and the further arguments that are None in most calls."""
    return kind.function_options(), (*kind.implied, *kind.masks, "lengths", "resets", "mask", "dropout_h")


def _infer(kind: type[cells.Cell], arguments: Mapping[str, Any], x: Any) -> tuple[Array, tuple[Array, ...]] | None:
    """y and the state of a cell for x (T, B, I) and ``arguments`` if `infer` supports them, else None."""
    options, unusual = _names(kind)  # type: ignore[arg-type]
    for name in unusual:
        if arguments.get(name) is not None:
            return None
    w_hh, state = arguments.get("weight_hh"), arguments["state"]
    if type(w_hh) is not np.ndarray or w_hh.ndim != 2 or not w_hh.size:
        return None
    if state is not None:
        states = (state,) if len(kind.state_names) == 1 else state
        if type(states) is not tuple or any(type(array) is not np.ndarray for array in states):
            return None
        state = tuple([array[None] for array in states])
    try:
        cell = _cell(kind, (), (), *[arguments[option] for option in options])  # type: ignore[arg-type]
    except TypeError:  # see `_run`
        return None
    found = infer(cell, x, arguments, "", state, (x.shape[-1], w_hh.shape[1]))
    return None if found is None else (found[0], tuple([array[0] for array in found[1]]))


def one_step(where: str, x: Any, symbols: str = "(B, input_size)") -> Any:
    """The input of a step as a sequence of length 1; reject it unless it has two axes. `take` rejects a non-array."""
    if _dispatch.library_of(x) is None:
        return x
    _checks.ndim(where, "x", x, 2, symbols)
    return x[None, ...]


def _run_step(kind: type[cells.Cell], arguments: Mapping[str, Any], training: bool) -> tuple[State, Any]:
    """Run a single step of a cell with ``arguments`` by name; return the state and, for training, the pullback."""
    where = f"{kind.name}_cell"
    (_, state), pull = _run(where, kind, {**arguments, "x": one_step(where, arguments["x"])}, training)

    def pullback(dstate: Any) -> tuple[tuple[Array, State], dict[str, Array]]:
        (dx, dstate0), gradients = pull((None, dstate))
        return (dx[0, ...], dstate0), gradients

    return state, pullback if training else None


def _documentation(template: str, cell: cells.Cell) -> str:
    parameters = [
        f"{name} : {shape} array{'' if name in cell.needed else ', optional'}"
        for name, shape in cell.shape_texts().items()
    ]

    def state(suffix: str) -> str:
        names = [name + suffix for name in cell.state_names]
        return names[0] if len(names) == 1 else f"({', '.join(names)})"

    options = cell.options_text(cell.function_options())
    flags: dict[str, Any] = dict.fromkeys(cell.implied.values(), True)
    implied = replace(cell, **{**flags, **({"proj_size": 1} if "proj_size" in flags else {})}).shape_texts()
    return template.format(
        parameters="\n".join(parameters), options=f"{options}\n" if options else "", name=cell.name,
        initial=state("_0"), final=state(""), state="(B, H) array" if cell.states == 1 else "pair of (B, H) arrays",
        dropout=_DROPOUT if "weight_hh" in cell.parameters else "",
        agreement=(_ROUNDED if cell.elementwise else _SAME_BITS).format(name=cell.name),
        implied="".join(
            f"{name} : {implied[name].replace('1', 'proj_size')} array, optional\n    {cell.texts[name]}\n"
            for name in cell.implied
        ),
        masks="".join(f"{name} : (T, B, H) array, optional\n    {cell.texts[name]}\n" for name in cell.masks),
    )  # fmt: skip


def _decorator(
    kind: type[cells.Cell], run: Callable[[Mapping[str, Any], bool], tuple[Any, Any]], line: str, template: str
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Give a function its pullback from ``run``, and replace a line of its docstring by documentation."""

    def decorate(function: Callable[P, R]) -> Op[P, R]:
        signature = inspect.signature(function)

        def vjp(*args: Any, **kwargs: Any) -> tuple[Any, Pullback]:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            if type(bound.arguments["x"]) is np.ndarray:
                return run(bound.arguments, True)
            return _foreign.through(function.__name__, bound.arguments, lambda views: run(views, True), vjp=True)

        if function.__doc__:
            function.__doc__ = inspect.cleandoc(function.__doc__).replace(line, _documentation(template, kind()))
        return differentiable(vjp, handles_foreign=True)(function)

    return decorate


def call(kind: type[cells.Cell], arguments: Mapping[str, Any]) -> tuple[Array, State]:
    """The result of a cell's function, given all of its arguments by name."""
    x = arguments["x"]
    if type(x) is not np.ndarray:
        return _foreign.through(kind.name, arguments, lambda views: _run(kind.name, kind, views, training=False)[0])
    if x.ndim == 3 and arguments["reverse"] is False and arguments["zero_masked_output"] is False:
        inferred = _infer(kind, arguments, x)
        if inferred is not None:
            return inferred[0], inferred[1] if len(inferred[1]) > 1 else inferred[1][0]
    return _run(kind.name, kind, arguments, training=False)[0]


def call_step(kind: type[cells.Cell], arguments: Mapping[str, Any]) -> State:
    """The result of the function of a single step of a cell, given all of its arguments by name."""
    x = arguments["x"]
    if type(x) is not np.ndarray:
        return _foreign.through(f"{kind.name}_cell", arguments, lambda views: _run_step(kind, views, training=False)[0])
    if x.ndim == 2:
        inferred = _infer(kind, arguments, x[None])
        if inferred is not None:
            return inferred[1] if len(inferred[1]) > 1 else inferred[1][0]
    return _run_step(kind, arguments, training=False)[0]


def of_cell(kind: type[cells.Cell]) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Decorate the function of a cell: it gets its pullback, and documentation instead of the line `SHARED`.

    It takes x, the cell's parameters and state; by keyword the cell's options and the parameters that imply options,
    lengths, resets, mask, zero_masked_output, reverse, dropout_h and the cell's masks of steps.
    """
    return _decorator(kind, functools.partial(_run, kind.name, kind), SHARED, _SHARED)


def step_of_cell(kind: type[cells.Cell]) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Decorate the function of a single step of a cell like `of_cell`; the replaced line is `STEP`."""
    return _decorator(kind, functools.partial(_run_step, kind), STEP, _STEP)


@of_cell(cells.Vanilla)
def rnn(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: Array | None = None,
    *,
    activation: cells.Activation = "tanh",
    leak: float = 0.0,
    clip: float | None = None,
    zoneout: float = 0.0,
    norm_ih: Array | None = None,
    norm_hh: Array | None = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
    zero_masked_output: bool = False,
    reverse: bool = False,
    dropout_h: Array | None = None,
    zoneout_h: Array | None = None,
) -> tuple[Array, Array]:
    """Vanilla recurrent layer, one direction: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) + leak h_{t-1}.

    It takes, returns and raises what the function of every cell does.

    References
    ----------
    J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> x = np.ones((3, 1, 1))
    >>> y, state = gpurnn.rnn(x, np.ones((1, 1)), np.ones((1, 1)), activation="identity")
    >>> y[:, 0, 0]
    array([1., 2., 3.])
    >>> (y, state), pullback = gpurnn.rnn.vjp(x, np.ones((1, 1)), np.ones((1, 1)), activation="identity")
    >>> (dx, dstate), gradients = pullback((None, np.ones((1, 1))))
    >>> dx[:, 0, 0], gradients["weight_hh"]
    (array([1., 1., 1.]), array([[3.]]))
    """
    return call(cells.Vanilla, locals())


@of_cell(cells.LSTM)
def lstm(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: tuple[Array | None, Array | None] | None = None,
    *,
    activation: cells.Activation = "tanh",
    gate_activation: cells.Activation = "sigmoid",
    output_activation: cells.Activation = "tanh",
    clip: float | None = None,
    cell_clip: float | None = None,
    coupled: bool = False,
    zoneout: tuple[float, float] = (0.0, 0.0),
    peephole_i: Array | None = None,
    peephole_f: Array | None = None,
    peephole_o: Array | None = None,
    norm_ih: Array | None = None,
    norm_hh: Array | None = None,
    norm_c: Array | None = None,
    bias_c: Array | None = None,
    weight_hr: Array | None = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
    zero_masked_output: bool = False,
    reverse: bool = False,
    dropout_h: Array | None = None,
    dropout_g: Array | None = None,
    zoneout_h: Array | None = None,
    zoneout_c: Array | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """LSTM layer, one direction.

    With a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, its rows in the order i, f, g, o::

        i_t, f_t, o_t = sigma(a_i), sigma(a_f), sigma(a_o)
        g_t = tanh(a_g)
        c_t = f_t c_{t-1} + i_t g_t
        h_t = o_t tanh(c_t)

    It takes, returns and raises what the function of every cell does.

    References
    ----------
    S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9 (1997);
    F. A. Gers, J. Schmidhuber, F. Cummins, "Learning to forget", Neural Computation 12 (2000).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.normal(size=(5, 2, 3)), rng.normal(size=(16, 3)), rng.normal(size=(16, 4))
    >>> y, (h, c) = gpurnn.lstm(x, w_ih, w_hh, lengths=np.array([5, 2]))
    >>> y.shape, bool((y[2:, 1] == 0).all()), bool((h[1] == y[1, 1]).all())
    ((5, 2, 4), True, True)
    """
    return call(cells.LSTM, locals())


@of_cell(cells.GRU)
def gru(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: Array | None = None,
    *,
    reset_after: bool = False,
    update: cells.Update = "candidate",
    activation: cells.Activation = "tanh",
    gate_activation: cells.Activation = "sigmoid",
    clip: float | None = None,
    zoneout: float = 0.0,
    norm_ih: Array | None = None,
    norm_hh: Array | None = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
    zero_masked_output: bool = False,
    reverse: bool = False,
    dropout_h: Array | None = None,
    zoneout_h: Array | None = None,
) -> tuple[Array, Array]:
    """GRU layer, one direction.

    With the rows of the weights in the order r, z, n::

        r_t = sigma(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = sigma(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in x_t + b_in + W_hn (r_t h_{t-1}) + b_hn)       reset_after=False, the textbook's
        n_t = tanh(W_in x_t + b_in + r_t (W_hn h_{t-1} + b_hn))       reset_after=True, PyTorch's and cuDNN's
        h_t = (1 - z_t) h_{t-1} + z_t n_t                             update="candidate", the textbook's
        h_t = (1 - z_t) n_t + z_t h_{t-1}                             update="state", PyTorch's and cuDNN's

    It takes, returns and raises what the function of every cell does.

    References
    ----------
    K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
    EMNLP 2014.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.normal(size=(5, 2, 3)), rng.normal(size=(12, 3)), rng.normal(size=(12, 4))
    >>> y, h = gpurnn.gru(x, w_ih, w_hh, reset_after=True, update="state")
    >>> y.shape, bool((h == y[-1]).all())
    ((5, 2, 4), True)
    """
    return call(cells.GRU, locals())


@step_of_cell(cells.Vanilla)
def rnn_cell(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: Array | None = None,
    *,
    activation: cells.Activation = "tanh",
    leak: float = 0.0,
    clip: float | None = None,
    zoneout: float = 0.0,
    norm_ih: Array | None = None,
    norm_hh: Array | None = None,
    dropout_h: Array | None = None,
) -> Array:
    """Run one step of `gpurnn.rnn`.

    Its arguments are those of the function of the whole sequence, of one step.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> one = np.ones((1, 1))
    >>> h = gpurnn.rnn_cell(one, one, one, state=one, activation="identity")
    >>> h
    array([[2.]])
    >>> h, pullback = gpurnn.rnn_cell.vjp(one, one, one, state=one, activation="identity")
    >>> (dx, dh0), gradients = pullback(one)
    >>> dx, dh0, gradients["weight_hh"]
    (array([[1.]]), array([[1.]]), array([[1.]]))
    """
    return call_step(cells.Vanilla, locals())


@step_of_cell(cells.LSTM)
def lstm_cell(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: tuple[Array | None, Array | None] | None = None,
    *,
    activation: cells.Activation = "tanh",
    gate_activation: cells.Activation = "sigmoid",
    output_activation: cells.Activation = "tanh",
    clip: float | None = None,
    cell_clip: float | None = None,
    coupled: bool = False,
    zoneout: tuple[float, float] = (0.0, 0.0),
    peephole_i: Array | None = None,
    peephole_f: Array | None = None,
    peephole_o: Array | None = None,
    norm_ih: Array | None = None,
    norm_hh: Array | None = None,
    norm_c: Array | None = None,
    bias_c: Array | None = None,
    weight_hr: Array | None = None,
    dropout_h: Array | None = None,
) -> tuple[Array, Array]:
    """Run one step of `gpurnn.lstm`.

    Its arguments are those of the function of the whole sequence, of one step.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.normal(size=(5, 2, 3)), rng.normal(size=(16, 3)), rng.normal(size=(16, 4))
    >>> state = None
    >>> for x_t in x:
    ...     state = gpurnn.lstm_cell(x_t, w_ih, w_hh, state=state)
    >>> h, c = state
    >>> y, (h_T, c_T) = gpurnn.lstm(x, w_ih, w_hh)
    >>> bool((h == h_T).all()), bool((c == c_T).all())
    (True, True)
    """
    return call_step(cells.LSTM, locals())


@step_of_cell(cells.GRU)
def gru_cell(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    state: Array | None = None,
    *,
    reset_after: bool = False,
    update: cells.Update = "candidate",
    activation: cells.Activation = "tanh",
    gate_activation: cells.Activation = "sigmoid",
    clip: float | None = None,
    zoneout: float = 0.0,
    norm_ih: Array | None = None,
    norm_hh: Array | None = None,
    dropout_h: Array | None = None,
) -> Array:
    """Run one step of `gpurnn.gru`.

    Its arguments are those of the function of the whole sequence, of one step.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.normal(size=(2, 3)), rng.normal(size=(12, 3)), rng.normal(size=(12, 4))
    >>> gpurnn.gru_cell(x, w_ih, w_hh, reset_after=True, update="state").shape
    (2, 4)
    """
    return call_step(cells.GRU, locals())


@of_cell(cells.MinGRU)
def mingru(
    x: Array,
    weight_ih: Array,
    bias_ih: Array | None = None,
    state: Array | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
    zero_masked_output: bool = False,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Minimal GRU layer, one direction: its gates do not read the state, so all steps are computed at once.

    With a_t = W_ih x_t + b_ih, its rows in the order z, n::

        z_t = sigma(a_z)      n_t = g(a_n), g(a) = a + 1/2 if a >= 0, else sigma(a)
        h_t = (1 - z_t) h_{t-1} + z_t n_t

    n is positive, and so is h if the initial state is. Feng et al. train this form in log space. Here the states come
    from `gpurnn.linear_scan`, which is as exact and needs no logarithm, so the initial state may have any sign. It is
    h_0 itself; the authors' code uses g(h_0).

    It takes, returns and raises what the function of every cell does.

    Notes
    -----
    A reset multiplies the state by zero, so one that is infinite or NaN becomes NaN.

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?", arXiv 2410.01201 (2024),
    section 3.1 and appendix B.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih = rng.normal(size=(5, 2, 3)), rng.normal(size=(8, 3))
    >>> y, h = gpurnn.mingru(x, w_ih, lengths=np.array([5, 2]))
    >>> y.shape, bool((y[2:, 1] == 0).all()), bool((h[1] == y[1, 1]).all())
    ((5, 2, 4), True, True)
    """
    return call(cells.MinGRU, locals())


@of_cell(cells.MinLSTM)
def minlstm(
    x: Array,
    weight_ih: Array,
    bias_ih: Array | None = None,
    state: Array | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
    zero_masked_output: bool = False,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """Minimal LSTM layer, one direction: its gates do not read the state, so all steps are computed at once.

    With a_t = W_ih x_t + b_ih, its rows in the order i, f, n::

        i_t, f_t = sigma(a_i), sigma(a_f)      n_t = g(a_n), g(a) = a + 1/2 if a >= 0, else sigma(a)
        h_t = (f_t h_{t-1} + i_t n_t) / (f_t + i_t)

    It has no cell state besides h. n and the initial state are as in `gpurnn.mingru`.

    It takes, returns and raises what the function of every cell does.

    Notes
    -----
    A reset multiplies the state by zero, so one that is infinite or NaN becomes NaN.

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?", arXiv 2410.01201 (2024),
    section 3.2 and appendix B.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> x, w_ih = np.ones((4, 1, 1)), np.zeros((3, 1))
    >>> y, h = gpurnn.minlstm(x, w_ih, np.array([0.0, 0.0, 0.5]))
    >>> y[:, 0, 0]
    array([0.5   , 0.75  , 0.875 , 0.9375])
    """
    return call(cells.MinLSTM, locals())


@step_of_cell(cells.MinGRU)
def mingru_cell(x: Array, weight_ih: Array, bias_ih: Array | None = None, state: Array | None = None) -> Array:
    """Run one step of `gpurnn.mingru`.

    Its arguments are those of the function of the whole sequence, of one step.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gpurnn.mingru_cell(np.ones((1, 1)), np.array([[0.0], [0.5]]), state=np.full((1, 1), 3.0))
    array([[2.]])
    """
    return call_step(cells.MinGRU, locals())


@step_of_cell(cells.MinLSTM)
def minlstm_cell(x: Array, weight_ih: Array, bias_ih: Array | None = None, state: Array | None = None) -> Array:
    """Run one step of `gpurnn.minlstm`.

    Its arguments are those of the function of the whole sequence, of one step.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gpurnn.minlstm_cell(np.ones((1, 1)), np.array([[0.0], [0.0], [0.5]]), state=np.full((1, 1), 3.0))
    array([[2.]])
    """
    return call_step(cells.MinLSTM, locals())


@of_cell(cells.IndRNN)
def indrnn(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    state: Array | None = None,
    *,
    activation: cells.Activation = "relu",
    leak: float = 0.0,
    clip: float | None = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
    zero_masked_output: bool = False,
    reverse: bool = False,
    dropout_h: Array | None = None,
) -> tuple[Array, Array]:
    """Independent recurrent layer, one direction: h_t = f(W_ih x_t + u h_{t-1} + b_ih) + leak h_{t-1}.

    u is ``weight_hh``, one number per unit: no unit reads the state of another unit, so W_hh is diagonal.

    It takes, returns and raises what the function of every cell does.

    References
    ----------
    S. Li, W. Li, C. Cook, C. Zhu, Y. Gao, "Independently recurrent neural network (IndRNN): building a longer and
    deeper RNN", CVPR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> x, u = np.ones((3, 1, 1)), np.array([0.5, -1.0])
    >>> y, h = gpurnn.indrnn(x, np.ones((2, 1)), u)
    >>> y[:, 0, :]
    array([[1.  , 1.  ],
           [1.5 , 0.  ],
           [1.75, 1.  ]])
    """
    return call(cells.IndRNN, locals())


@step_of_cell(cells.IndRNN)
def indrnn_cell(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    state: Array | None = None,
    *,
    activation: cells.Activation = "relu",
    leak: float = 0.0,
    clip: float | None = None,
    dropout_h: Array | None = None,
) -> Array:
    """Run one step of `gpurnn.indrnn`.

    Its arguments are those of the function of the whole sequence, of one step.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> one = np.ones((1, 1))
    >>> gpurnn.indrnn_cell(one, one, np.array([0.5]), state=3 * one)
    array([[2.5]])
    """
    return call_step(cells.IndRNN, locals())
