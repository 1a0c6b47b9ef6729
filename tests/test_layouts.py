"""However a caller's arrays are stored, and in whatever integer dtype, results are the same to the last bit.

The problems are those of `test_bad_input.ENTRIES`, which has a row for each public name, and larger ones whose matrix
products a BLAS computes in another order where an operand is transposed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import pytest
import test_bad_input
from parity import INTEGERS, LAYOUTS, canonical
from test_bad_input import ENTRIES, Entry, fresh
from tolerance import arrays_of

import gpurnn
from gpurnn import reference

WINGS = ["reference", pytest.param("host", marks=pytest.mark.kernels)]


def larger() -> dict[str, list[Entry]]:
    """Problems of sizes at which the order of a sum differs from layout to layout."""
    with mock.patch.multiple(test_bad_input, T=7, I=33, H=40, V=19, S=9):
        functions = {
            name: test_bad_input.recurrent_function(name, G) for name, G in (("rnn", 1), ("lstm", 4), ("gru", 3))
        }
        layers = {kind: test_bad_input.recurrent_layer(kind, kind == "GRU") for kind in ("RNN", "LSTM", "GRU")}
        others = {
            "ssm": test_bad_input.state_space(),
            "multi_head_attention": test_bad_input.multi_head(gpurnn.multi_head_attention),
            "TransformerBlock": test_bad_input.transformer_block(),
        }
        shapes = {"x": (7, 3, 33), "weight": (57, 33), "bias": (57,), "dy": (7, 3, 57)}
        dense = {name: test_bad_input.normal(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
        call = test_bad_input.with_vjp(gpurnn.dense, ["x", "weight", "bias"], activation="softmax")
        made = {**functions, **layers, **others, "dense": Entry("dense", dense, call, {})}
    return {f"{name}, larger": [entry] for name, entry in made.items()}


ALL = [
    pytest.param(entry, id=f"{name}{k or ''}")
    for name, entries in {**ENTRIES, **larger()}.items()
    for k, entry in enumerate(entries)
]
each_entry = pytest.mark.parametrize("entry", ALL)


def stored(entry: Entry, name: str, a: np.ndarray, layout: str) -> np.ndarray:
    """An argument in another layout, if it can be in it."""
    if name in entry.in_place and layout in ("broadcast", "read-only"):
        return a
    return LAYOUTS[layout](a)


def check(entry: Entry, arrays: dict[str, np.ndarray], what: str) -> None:
    """The call gives the bits of the same call with C-contiguous native arrays, and leaves its inputs as they were."""
    expected = arrays_of(entry.call({name: canonical(a) for name, a in arrays.items()}))
    before = {name: a.tobytes() for name, a in arrays.items()}
    result = arrays_of(entry.call(arrays))
    assert len(result) == len(expected)
    for k, (r, e) in enumerate(zip(result, expected, strict=True)):
        if not entry.in_place and entry.where != "TokenStream":  # whose batches are views of the stream
            assert r.dtype.isnative, what
            assert r.flags.c_contiguous, f"{what}: result {k} is not C-contiguous"
        r = canonical(r)
        assert (r.dtype, r.shape) == (e.dtype, e.shape), what
        assert r.tobytes() == e.tobytes(), f"{what}: result {k} differs by {np.abs(r - e).max()}"
    for name, a in arrays.items():
        assert name in entry.in_place or a.tobytes() == before[name], f"{what}: {name} was changed"


@each_entry
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_argument_in_each_layout(entry, layout):
    for name in entry.arrays:
        arrays = fresh(entry)
        arrays[name] = stored(entry, name, arrays[name], layout)
        check(entry, arrays, name)


@each_entry
@pytest.mark.parametrize("wing", WINGS)
def test_all_arguments_in_layouts_drawn_at_random(entry, wing):
    rng = np.random.default_rng(0)
    with gpurnn.use(wing):
        for _ in range(4 if wing == "reference" else 2):
            layouts = {name: str(rng.choice(list(LAYOUTS))) for name in entry.arrays}
            arrays = {name: stored(entry, name, a, layouts[name]) for name, a in fresh(entry).items()}
            check(entry, arrays, str(layouts))


@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize("entry", [p for p in ALL if any(a.dtype.kind in "ib" for a in p.values[0].arrays.values())])
def test_each_integer_argument_in_each_integer_dtype(entry, wing):
    with gpurnn.use(wing):
        expected = arrays_of(entry.call(fresh(entry)))
        for name, a in entry.arrays.items():
            if a.dtype.kind in "ib":
                for dtype in INTEGERS:
                    result = arrays_of(entry.call({**fresh(entry), name: a.astype(dtype)}))
                    for r, e in zip(result, expected, strict=True):
                        # The batches of a stream of tokens are of the dtype of the stream.
                        assert r.astype(e.dtype).tobytes() == e.tobytes(), f"{name} of {dtype.str}"


def parameters_of(call: Callable[..., object]) -> Iterator[dict[str, np.ndarray]]:
    """The dicts that hold the parameters of the layers that a call computes with."""
    for cell in call.__closure__ or ():
        yield from _held(cell.cell_contents)


def _held(value: object) -> Iterator[dict[str, np.ndarray]]:
    if isinstance(value, gpurnn.Layer):
        yield from _held(list(vars(value).values()))
    elif isinstance(value, dict) and any(isinstance(a, np.ndarray) for a in value.values()):
        yield value
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _held(entry)


WITH_PARAMETERS = [p for p in ALL if any(parameters_of(p.values[0].call))]


@pytest.mark.parametrize("entry", WITH_PARAMETERS)
@pytest.mark.parametrize("wing", WINGS)
def test_parameters_of_layers_in_each_layout(entry, wing, monkeypatch):
    held = list(parameters_of(entry.call))
    layouts = [layout for layout in LAYOUTS if layout != "broadcast"]
    with gpurnn.use(wing):
        expected = arrays_of(entry.call(fresh(entry)))
        for layout in layouts if wing == "reference" else ["fortran", "byte-swapped"]:
            with monkeypatch.context() as patch:
                for params in held:
                    for name, p in list(params.items()):
                        patch.setitem(params, name, LAYOUTS[layout](p))
                for r, e in zip(arrays_of(entry.call(fresh(entry))), expected, strict=True):
                    assert r.tobytes() == e.tobytes(), layout


@each_entry
def test_a_wing_is_given_contiguous_arrays(entry, monkeypatch):
    """The contract between shared code and the wings."""
    given: list[tuple[str, np.ndarray]] = []

    def noted(name, function):
        def call(*args, **kwargs):
            saved = 1 if name.endswith("_backward") else 0  # the wing's own, whatever it is
            given.extend((name, a) for a in nested_arrays((args[saved:], kwargs)))
            return function(*args, **kwargs)

        return call

    for name, function in vars(reference).items():
        if inspect.isfunction(function):
            monkeypatch.setattr(reference, name, noted(name, function))
    for layout in ("fortran", "unaligned", "byte-swapped", "reversed"):
        entry.call({name: stored(entry, name, a, layout) for name, a in fresh(entry).items()})
    for name, a in given:
        assert a.flags.c_contiguous, name
        assert a.flags.aligned, name
        assert a.dtype.isnative, name
        assert a.dtype.kind in "fcb" or a.dtype == np.int64, name


def nested_arrays(nested: object) -> list[np.ndarray]:
    """The arrays in nested tuples, lists and dicts, whatever else is in them."""
    if isinstance(nested, dict):
        nested = list(nested.values())
    if isinstance(nested, (tuple, list)):
        return [a for entry in nested for a in nested_arrays(entry)]
    return [nested] if isinstance(nested, np.ndarray) else []
