"""Every public entry point with bad and with unusual arrays: the documented error or the right answer.

`ENTRIES` has a row for each public name that computes with arrays, `OPTIONS` one for each argument that is not an
array. Both are checked against ``gpurnn.__all__``, so a new name needs a row.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_messages import advised
from tolerance import arrays_of, assert_close, assert_same

import gpurnn
from gpurnn import gradients, losses, optimizers
from gpurnn.cells import CELLS, ELEMENTWISE
from gpurnn.layers.recurrent import LAYERS

T, B, I, H, V, S = 4, 3, 2, 5, 7, 6


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def steps(*shape: int, below: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape) % below


@dataclass
class Entry:
    """An entry point: its arguments, by the names that its messages use, and a call that computes all results."""

    where: str
    arrays: dict[str, np.ndarray]
    call: Callable[[dict[str, Any]], Any]
    wrong_shapes: dict[str, list[tuple[int, ...]]]
    """Shapes that an array must not have, by the array's name."""
    optional: frozenset[str] = frozenset()
    """Arguments that may be None."""
    in_place: frozenset[str] = frozenset()
    """Arguments that the call modifies."""
    empty: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    """Shapes of an empty problem, by what is empty."""
    also_named: dict[str, str] = field(default_factory=dict)
    """Another name that a message may give, where two arguments do not fit each other."""
    silent_about_nan: frozenset[str] = frozenset()
    """Arguments whose NaN need not appear in the result."""


def with_vjp(function: Callable[..., Any], names: list[str], **options: Any) -> Callable[[dict[str, Any]], Any]:
    """Return a call of a function, its vjp, and the pullback with the cotangents ``dy`` (and ``dstate``)."""

    def call(a: dict[str, Any]) -> Any:
        arguments = [a[name] for name in names]
        keywords = {**options, **{name: a[name] for name in ("lengths", "resets", "mask", "dropout_h") if name in a}}
        if "h_0" in a:
            keywords["state"] = (a["h_0"], a["c_0"])
        elif "state" in a:
            keywords["state"] = a["state"]
        expected = function(*arguments, **keywords)
        result, pullback = function.vjp(*arguments, **keywords)
        dstate = (a["dh_T"], a["dc_T"]) if "dh_T" in a else a.get("dstate")
        cotangents = (a["dy"], dstate) if "state" in a or "h_0" in a else a.get("dy", a.get("dvalue"))
        return expected, result, pullback(cotangents)

    return call


# The names that messages use for the two arrays of an LSTM's state.
IN_MESSAGES = {"h_0": "state[0]", "c_0": "state[1]", "dh_T": "dstate[0]", "dc_T": "dstate[1]"}


def weights_of(name: str, options: dict[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the weights of a cell's function."""
    return (CELLS | ELEMENTWISE)[name](**options).shapes(input_size=I, hidden_size=H)


OTHER_NAMES = {"indrnn": {"weight_ih": "weight_hh"}}  # either may have the wrong number of units


def recurrent_function(name: str, **options: Any) -> Entry:
    states = {"h_0": (B, H), "c_0": (B, H)} if name == "lstm" else {"state": (B, H)}
    dstates = {"dh_T": (B, H), "dc_T": (B, H)} if name == "lstm" else {"dstate": (B, H)}
    weights = weights_of(name, options)
    dropout = {"dropout_h": (B, H)} if "weight_hh" in weights else {}
    shapes = {"x": (T, B, I), **weights, **states}
    shapes |= {**dropout, "dy": (T, B, H), **dstates}
    arrays = {key: 0.5 * normal(*shape, seed=k) for k, (key, shape) in enumerate(shapes.items())}
    arrays |= {"lengths": np.array([T, 1, T - 1]), "resets": steps(T, B, below=3) == 1}
    arrays |= {"mask": steps(T, B, below=4) > 0}
    wrong = {key: [(*shape, 1), shape[:-1], (*shape[:-1], shape[-1] + 1)] for key, shape in shapes.items()}
    wrong |= {key: [*wrong[key], (B + 1, H), (1, H)] for key in (*states, *dstates, *dropout)}
    wrong["dy"] += [(T + 1, B, H), (T, 1, H)]
    for key, shape in weights.items():
        if len(shape) == 2:
            wrong[key] += [(shape[0] + 1, shape[1]), (I, shape[0])]
    of_steps = [(T, B + 1), (T + 1, B), (B, T), (T,), (T, B, 1)]
    wrong |= {"lengths": [(B + 1,), (1,), (B, 1), ()], "resets": of_steps, "mask": of_steps}
    no_rows = {key: tuple(0 if n == B else n for n in a.shape) for key, a in arrays.items() if B in a.shape}
    no_steps = {"x": (0, B, I), "dy": (0, B, H), "resets": (0, B), "mask": (0, B)}
    neither = {**no_rows, "x": (0, 0, I), "dy": (0, 0, H), "resets": (0, 0), "mask": (0, 0)}
    return Entry(
        name, arrays, with_vjp(getattr(gpurnn, name), ["x", *weights], **options), wrong,
        optional=frozenset(arrays) - {"x", "weight_ih", "weight_hh"},
        empty={"batch": no_rows, "time": no_steps, "both": neither},
        also_named={"x": "weight_ih"} | OTHER_NAMES.get(name, {}),
    )  # fmt: skip


def recurrent_step(name: str, **options: Any) -> Entry:
    states = {"h_0": (B, H), "c_0": (B, H)} if name == "lstm" else {"state": (B, H)}
    dstates = {"dh_T": (B, H), "dc_T": (B, H)} if name == "lstm" else {"dstate": (B, H)}
    weights = weights_of(name, options)
    dropout = {"dropout_h": (B, H)} if "weight_hh" in weights else {}
    shapes = {"x": (B, I), **weights, **states}
    shapes |= {**dropout, **dstates}
    arrays = {key: 0.5 * normal(*shape, seed=k) for k, (key, shape) in enumerate(shapes.items())}
    wrong = {key: [(*shape, 1), shape[:-1], (*shape[:-1], shape[-1] + 1)] for key, shape in shapes.items()}
    wrong |= {key: [*wrong[key], (B + 1, H), (1, H)] for key in (*states, *dstates, *dropout)}
    function = getattr(gpurnn, f"{name}_cell")

    def call(a: dict[str, Any]) -> Any:
        keywords = {**options, "state": (a["h_0"], a["c_0"]) if "h_0" in a else a["state"]}
        keywords |= {key: a[key] for key in dropout}
        arguments = [a[key] for key in ("x", *weights)]
        state, pullback = function.vjp(*arguments, **keywords)
        dstate = (a["dh_T"], a["dc_T"]) if "dh_T" in a else a["dstate"]
        return function(*arguments, **keywords), state, pullback(dstate)

    no_rows = {key: tuple(0 if n == B else n for n in a.shape) for key, a in arrays.items() if B in a.shape}
    return Entry(
        f"{name}_cell", arrays, call, wrong, optional=frozenset(arrays) - {"x", "weight_ih", "weight_hh"},
        empty={"batch": no_rows}, also_named={"x": "weight_ih"} | OTHER_NAMES.get(name, {}),
    )  # fmt: skip


def recurrent_layer(kind: str, batch_first: bool) -> Entry:
    layer = getattr(gpurnn, kind)(I, H, 2, batch_first=batch_first, bidirectional=True, dtype="float64")
    states = {"h_0": (4, B, H), "c_0": (4, B, H)} if kind == "LSTM" else {"state": (4, B, H)}
    dstates = {"dh_T": (4, B, H), "dc_T": (4, B, H)} if kind == "LSTM" else {"dstate": (4, B, H)}
    first = (B, T) if batch_first else (T, B)
    shapes = {"x": (*first, I), **states, "dy": (*first, 2 * H), **dstates}
    arrays = {key: normal(*shape, seed=k) for k, (key, shape) in enumerate(shapes.items())}
    arrays |= {"lengths": np.array([T, 1, T - 1]), "resets": steps(*first, below=3) == 1}
    arrays |= {"mask": steps(*first, below=4) > 0}
    wrong = {key: [(*shape, 1), shape[1:], (*shape[:-1], shape[-1] + 1)] for key, shape in shapes.items()}
    wrong |= {key: [*wrong[key], (2, B, H), (4, 1, H)] for key in (*states, *dstates)}
    wrong |= {"lengths": [(B + 1,), (1,), (B, 1), ()], "resets": [first[::-1], (first[0] + 1, first[1]), (T,)]}
    wrong["mask"] = wrong["resets"]

    def call(a: dict[str, Any]) -> Any:
        pair = kind == "LSTM"
        state = (a["h_0"], a["c_0"]) if pair else a["state"]
        arguments = (a["x"], state, a["lengths"], a["resets"])
        result, pullback = layer.vjp(*arguments, mask=a["mask"])
        return (
            layer(*arguments, mask=a["mask"]),
            result,
            pullback((a["dy"], (a["dh_T"], a["dc_T"]) if pair else a["dstate"])),
        )

    def sized(T: int, B: int) -> dict[str, tuple[int, ...]]:
        first = (B, T) if batch_first else (T, B)
        sizes = {"x": (*first, I), "dy": (*first, 2 * H), "resets": first, "mask": first, "lengths": (B,)}
        return sizes | dict.fromkeys((*states, *dstates), (4, B, H))

    return Entry(
        kind, arrays, call, wrong,
        optional=frozenset(arrays) - {"x"},
        empty={"batch": sized(T, 0), "time": sized(0, B), "both": sized(0, 0)},
    )  # fmt: skip


def simple_layer(layer: gpurnn.Layer, where: str, x: np.ndarray, x_name: str, dy: np.ndarray, **more: Any) -> Entry:
    def call(a: dict[str, Any]) -> Any:
        y, pullback = layer.vjp(a[x_name])
        return layer(a[x_name]), y, pullback(a["dy"])

    return Entry(where, {x_name: x, "dy": dy}, call, optional=frozenset({"dy"}), **more)


def sequential() -> Entry:
    model = gpurnn.Sequential(gpurnn.Dense(I, H, dtype="float64"), gpurnn.GRU(H, H, dtype="float64"))

    def call(a: dict[str, Any]) -> Any:
        state = None if a["state"] is None else (a["state"],)
        result, pullback = model.vjp(a["x"], state, a["lengths"], a["resets"])
        dstate = None if a["dstate"] is None else (a["dstate"],)
        return model(a["x"], state, a["lengths"], a["resets"]), result, pullback((a["dy"], dstate))

    arrays = {"x": normal(T, B, I), "state": normal(1, B, H), "dy": normal(T, B, H), "dstate": normal(1, B, H)}
    arrays |= {"lengths": np.array([T, 1, T - 1]), "resets": steps(T, B, below=3) == 1}
    wrong = {"x": [(T, B), (T, B, I + 1)], "state": [(B, H), (2, B, H)], "dy": [(T, B), (T, B, I)]}
    wrong |= {"dstate": [(B, H), (1, 1, H)], "lengths": [(1,)], "resets": [(B, T)]}
    empty = {
        "x": (T, 0, I),
        "state": (1, 0, H),
        "dy": (T, 0, H),
        "dstate": (1, 0, H),
        "lengths": (0,),
        "resets": (T, 0),
    }
    return Entry("(Sequential|dense|GRU)", arrays, call, wrong, frozenset(arrays) - {"x"}, empty={"batch": empty})


def state_space() -> Entry:
    shapes = {"x": (T, B, I), "A": (H, H), "B": (H, I), "C": (V, H), "D": (V, I), "state": (B, H)}
    shapes |= {"dy": (T, B, V), "dstate": (B, H)}
    arrays = {key: 0.3 * normal(*shape, seed=k) for k, (key, shape) in enumerate(shapes.items())}
    arrays |= {"lengths": np.array([T, 1, T - 1]), "resets": steps(T, B, below=3) == 1}
    wrong = {key: [(*shape, 1), shape[1:], (*shape[:-1], shape[-1] + 1)] for key, shape in shapes.items()}
    wrong |= {"A": [(H, H, 1), (H, H + 1), ()], "lengths": [(B + 1,), (B, 1)], "resets": [(B, T), (T,)]}
    return Entry(
        "ssm", arrays, with_vjp(gpurnn.ssm, ["x", "A", "B", "C", "D"]), wrong,
        optional=frozenset({"D", "state", "lengths", "resets", "dy", "dstate"}),
        empty={
            "batch": {key: tuple(0 if n == B else n for n in a.shape) for key, a in arrays.items() if B in a.shape},
            "time": {"x": (0, B, I), "dy": (0, B, V), "resets": (0, B)},
        },
        also_named={"x": "B", "B": "A", "C": "A", "state": "A"},
    )  # fmt: skip


def state_space_layer(layer: Any) -> Entry:
    pair = layer.complex
    shapes = {"x": (T, B, I), "h_0": (1, B, H), "c_0": (1, B, H), "dy": (T, B, V), "dh_T": (1, B, H), "dc_T": (1, B, H)}
    if not pair:
        shapes = {"x": (T, B, I), "state": (1, B, H), "dy": (T, B, V), "dstate": (1, B, H)}
    arrays = {key: normal(*shape, seed=k) for k, (key, shape) in enumerate(shapes.items())}
    arrays |= {"lengths": np.array([T, 1, T - 1]), "resets": steps(T, B, below=3) == 1}

    def call(a: dict[str, Any]) -> Any:
        state = (a["h_0"], a["c_0"]) if pair else a["state"]
        result, pullback = layer.vjp(a["x"], state, a["lengths"], a["resets"])
        dstate = (a["dh_T"], a["dc_T"]) if pair else a["dstate"]
        return layer(a["x"], state, a["lengths"], a["resets"]), result, pullback((a["dy"], dstate))

    wrong = {key: [(*shape, 1), shape[1:], (*shape[:-1], shape[-1] + 1)] for key, shape in shapes.items()}
    wrong |= {"lengths": [(B + 1,), (B, 1)], "resets": [(B, T), (T,)]}
    empty = {key: tuple(0 if n == B else n for n in a.shape) for key, a in arrays.items()}
    return Entry(
        type(layer).__name__, arrays, call, wrong, frozenset(arrays) - {"x"},
        empty={"batch": empty, "time": {"x": (0, B, I), "dy": (0, B, V), "resets": (0, B)}},
    )  # fmt: skip


def linear_gaussian() -> Entry:
    model = gpurnn.LinearGaussian(0.5 * np.eye(H), normal(I, H), np.eye(H), np.eye(I), P0=np.eye(H))

    def call(a: dict[str, Any]) -> Any:
        value, pullback = model.vjp(a["y"])
        return model(a["y"]), value, pullback(1.0), model.smooth(a["y"]), model.forecast(a["y"], 2)

    wrong = {"y": [(), (S,), (S, B, I, 1), (S, B, I + 1), (0, B, I)]}
    return Entry(
        "LinearGaussian", {"y": normal(S, B, I)}, call, wrong, empty={"batch": {"y": (S, 0, I)}},
        silent_about_nan=frozenset({"y"}),
    )  # fmt: skip


def attended(score: str, parameters: list[str]) -> Callable[[dict[str, Any]], Any]:
    def call(a: dict[str, Any]) -> Any:
        arguments = {name: a[name] for name in ("query", "keys", "values", "lengths", *parameters)}
        result, pullback = gpurnn.attention.vjp(**arguments, score=score)
        dcontext = None if a["values"] is None else a["dcontext"]  # its shape differs without values
        return gpurnn.attention(**arguments, score=score), result, pullback((dcontext, a["dweights"]))

    return call


def multi_head(form: Any) -> Entry:
    """The function `multi_head_attention`, or a layer that computes it."""
    parameters = {
        "in_proj_weight": (3 * H, H),
        "in_proj_bias": (3 * H,),
        "out_proj_weight": (H, H),
        "out_proj_bias": (H,),
    }
    shapes = {"query": (T, B, H), "keys": (S, B, H), "values": (S, B, H)}
    own = parameters if form is gpurnn.multi_head_attention else {}
    options = {"num_heads": 5} if own else {}

    def call(a: dict[str, Any]) -> Any:
        arguments = {name: a[name] for name in (*shapes, *own, "key_padding_mask", "attn_mask")}
        result, pullback = form.vjp(**arguments, **options)
        return form(**arguments, **options), result, pullback((a["dy"], a["dweights"]))

    shapes_of_all = {**shapes, **own, "dy": (T, B, H), "dweights": (B, 5, T, S)}
    arrays = {name: normal(*shape, seed=k) for k, (name, shape) in enumerate(shapes_of_all.items())}
    arrays["key_padding_mask"] = np.arange(S) >= np.array([[S], [2], [S - 1]])
    wrong = {name: [(*shape, 1), shape[1:], (*shape[:-1], shape[-1] + 1)] for name, shape in shapes_of_all.items()}
    wrong["key_padding_mask"] = [(S, B), (B,), (B, 1)]
    arrays["attn_mask"] = np.arange(S) == np.arange(T)[:, None]
    wrong["attn_mask"] = [(S, T), (S,), (B, T, S), (1, 1, 1, S)]
    steps = ("query", "attn_mask", "dy", "dweights")
    empty = {name: tuple(0 if n == T else n for n in arrays[name].shape) for name in steps}
    return Entry(
        "multi_head_attention", arrays, call, wrong,
        optional=frozenset(arrays) - {"query", "keys", "in_proj_weight", "out_proj_weight"},
        empty={"steps": empty}, also_named={"query": "keys", "keys": "values"},
    )  # fmt: skip


def transformer_block() -> Entry:
    layer = gpurnn.TransformerBlock(H, 5, causal=True, activation="gelu", dtype="float64")

    def call(a: dict[str, Any]) -> Any:
        result, pullback = layer.vjp(a["x"], None, a["lengths"])
        return layer(a["x"], None, a["lengths"]), result, pullback((a["dy"], None))

    arrays = {"x": normal(T, B, H), "dy": normal(T, B, H, seed=1), "lengths": np.array([T, 1, T - 1])}
    wrong = {name: [(T, B), (T, B, H + 1), (T, B, H, 1)] for name in ("x", "dy")}
    return Entry(
        "TransformerBlock", arrays, call, {**wrong, "lengths": [(B + 1,), (1,), (B, 1), ()]},
        optional=frozenset({"dy", "lengths"}),
        empty={
            "batch": {"x": (T, 0, H), "dy": (T, 0, H), "lengths": (0,)}, "time": {"x": (0, B, H), "dy": (0, B, H)},
        },
    )  # fmt: skip


def dropped(a: dict[str, Any]) -> Any:
    y, pullback = gpurnn.dropout.vjp(a["x"], 0.5, 1)
    return gpurnn.dropout(a["x"], 0.5, 1), y, pullback(a["dy"])


def embedded(a: dict[str, Any]) -> Any:
    y, pullback = gpurnn.embedding.vjp(a["indices"], a["weight"])
    return gpurnn.embedding(a["indices"], a["weight"]), y, pullback(a["dy"])[1]


def clip_by_global_norm(a: dict[str, Any]) -> Any:
    return gradients.clip_by_global_norm({"weight": a["grads['weight']"], "bias": a["grads['bias']"]}, 1.0)


def of_gradients(function: Callable[..., Any], *more: Any) -> Entry:
    arrays = {"grads['weight']": normal(H, I), "grads['bias']": normal(H)}

    def call(a: dict[str, Any]) -> Any:
        return function({name: a[f"grads['{name}']"] for name in ("weight", "bias")}, *more)

    return Entry(function.__name__, arrays, call, {}, empty={"all": {"grads['weight']": (0, I), "grads['bias']": (0,)}})


def with_l2() -> Entry:
    arrays = {f"{group}['{name}']": normal(*shape) for group in ("params", "grads") for name, shape in PARAMS.items()}

    def call(a: dict[str, Any]) -> Any:
        return gradients.add_l2(
            *({name: a[f"{group}['{name}']"] for name in PARAMS} for group in ("grads", "params")), 0.1
        )

    wrong = {f"grads['{name}']": [(*shape, 1), shape[1:], (1, *shape)] for name, shape in PARAMS.items()}
    return Entry("add_l2", arrays, call, wrong, silent_about_nan=frozenset({"params['bias']"}))


def language_model(tied: bool) -> Entry:
    model = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text("abcdef"), H, H, tied=tied, dtype="float64")
    assert len(model.vocabulary) == V

    def call(a: dict[str, Any]) -> Any:
        state = (a["h_0"], a["c_0"])
        arguments = (a["tokens"], state, a["lengths"], a["resets"])
        result, pullback = model.vjp(*arguments)
        _, found = pullback((a["dlogits"], (a["dh_T"], a["dc_T"])))
        return model(*arguments), result, found

    shapes = {"h_0": (1, B, H), "c_0": (1, B, H), "dlogits": (T, B, V), "dh_T": (1, B, H), "dc_T": (1, B, H)}
    arrays = {"tokens": steps(T, B, below=V), **{name: normal(*shape) for name, shape in shapes.items()}}
    arrays |= {"lengths": np.array([T, 1, T - 1]), "resets": steps(T, B, below=3) == 1}
    wrong = {name: [(*shape, 1), shape[1:], (*shape[:-1], 1)] for name, shape in shapes.items()}
    wrong |= {"tokens": [(T,), (T, B, 1)], "lengths": [(1,)], "resets": [(B, T)]}
    empty = {name: tuple(0 if n == B else n for n in a.shape) for name, a in arrays.items()}
    return Entry(
        "(LanguageModel|LSTM)", arrays, call, wrong, frozenset(arrays) - {"tokens"}, empty={"batch": empty},
    )  # fmt: skip


def language_model_loss() -> Entry:
    model = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text("abcdef"), H, H, dtype="float64")

    def call(a: dict[str, Any]) -> Any:
        loss, state, found = model.loss_and_gradients(a["inputs"], a["targets"], None, a["lengths"])
        return model.loss(a["inputs"], a["targets"], None, a["lengths"]), loss, state, found

    tokens = steps(T, B, below=V)
    arrays = {"inputs": tokens, "targets": tokens[::-1].copy(), "lengths": np.array([T, 1, T - 1])}
    wrong = {"inputs": [(T,), (T, B, 1)], "targets": [(T,), (B, T)], "lengths": [(1,)]}
    return Entry(
        r"(LanguageModel(\.loss_and_gradients)?|LSTM|cross_entropy)", arrays, call, wrong, frozenset({"lengths"}),
        also_named={"inputs": "tokens", "targets": "labels"},
    )  # fmt: skip


def sequence_model(model: Any, *shape: int) -> Entry:
    """Call a sequence model whose outputs have this shape."""
    name = type(model).__name__

    def call(a: dict[str, Any]) -> Any:
        result, pullback = model.vjp(a["inputs"], a["state"], a["lengths"])
        return model(a["inputs"], a["state"], a["lengths"]), result, pullback((a["dy"], a["dstate"]))

    shapes = {"inputs": (T, B, I), "state": (1, B, H), "dy": shape, "dstate": (1, B, H)}
    arrays = {key: normal(*size, seed=k) for k, (key, size) in enumerate(shapes.items())}
    arrays["lengths"] = np.array([T, 1, T - 1])
    wrong = {key: [(*size, 1), size[1:], (*size[:-1], size[-1] + 1)] for key, size in shapes.items()}
    wrong |= {"inputs": [(T, B), (T, B, I, 1), (T, B, I + 1), (0, B, I)], "lengths": [(1,), (B, 1)]}
    empty = {key: tuple(0 if n == B else n for n in a.shape) for key, a in arrays.items()}
    return Entry(
        f"({name}|GRU)", arrays, call, wrong, frozenset(arrays) - {"inputs"}, empty={"batch": empty},
        also_named={"inputs": "x"},
    )  # fmt: skip


def generator() -> Entry:
    model = gpurnn.SequenceGenerator(I, H, V, dtype="float64")

    def call(a: dict[str, Any]) -> Any:
        result, pullback = model.vjp(a["x"], T)
        return model(a["x"], T), result, pullback(a["dy"])

    wrong = {"x": [(B,), (B, I, 1), (B, I + 1)], "dy": [(T, B), (T, B, V + 1), (B, V)]}
    return Entry(
        "SequenceGenerator", {"x": normal(B, I), "dy": normal(T, B, V)}, call, wrong, frozenset({"dy"}),
        empty={"batch": {"x": (0, I), "dy": (T, 0, V)}},
    )  # fmt: skip


def encoder_decoder(model: Any) -> Entry:
    def call(a: dict[str, Any]) -> Any:
        result, pullback = model.vjp(a["source"], a["previous"], a["lengths"])
        found = pullback((a["dlogits"], a["dweights"]))
        return model(a["source"], a["previous"], a["lengths"]), result, found

    size = model.output.out_features
    shapes = {"dlogits": (T, B, size), "dweights": (T, B, S)}
    arrays = {"source": steps(S, B, below=7), "previous": steps(T, B, below=size)}
    arrays |= {name: normal(*shape) for name, shape in shapes.items()} | {"lengths": np.array([S, 1, S - 1])}
    wrong = {name: [(*shape, 1), shape[1:], (*shape[:-1], 1)] for name, shape in shapes.items()}
    wrong |= {"source": [(S,), (S, B, 1), (0, B)], "previous": [(T,), (T, B, 1), (0, B)], "lengths": [(1,), (B, 1)]}
    empty = {name: tuple(0 if n == B else n for n in a.shape) for name, a in arrays.items()}
    return Entry(
        "(EncoderDecoder|Decoder|GRU)", arrays, call, wrong, frozenset({"lengths", "dlogits", "dweights"}),
        empty={"batch": empty},
    )  # fmt: skip


def encoder_decoder_loss(model: Any) -> Entry:
    def call(a: dict[str, Any]) -> Any:
        arguments = (a["source"], (a["targets"], a["target_lengths"]))
        likely, pullback = model.log_likelihood_vjp(*arguments)
        return model.loss_and_gradients(*arguments)[::2], likely, pullback(likely)

    arrays = {"source": steps(S, B, below=7), "targets": steps(T, B, below=V), "target_lengths": np.array([T, 1, T])}
    wrong = {"source": [(S,), (0, B)], "targets": [(T,), (T, B, 1), (0, B)], "target_lengths": [(1,), (B, 1)]}
    return Entry("(EncoderDecoder|cross_entropy)", arrays, call, wrong, also_named={"targets": "labels"})


def padded_batches() -> Entry:
    names = ("sequences[0]", "sequences[1]", "targets[0]", "targets[1]")
    arrays = dict(zip(names, (normal(3, I), normal(2, I), normal(3, H), normal(2, H)), strict=True))

    def call(a: dict[str, Any]) -> Any:
        data = gpurnn.PaddedBatches([a[name] for name in names[:2]], 2, [a[name] for name in names[2:]], shuffle=False)
        batch = data.batch(0, 0)
        return batch.inputs, batch.targets, batch.lengths

    wrong = {name: [(), (*a.shape, 1), (0, a.shape[1]), (a.shape[0], 1)] for name, a in arrays.items()}
    return Entry(
        "PaddedBatches", arrays, call, wrong, also_named=dict(zip(names, (names[1], "", names[3], ""), strict=True))
    )


def token_stream() -> Entry:
    def call(a: dict[str, Any]) -> Any:
        batch = gpurnn.TokenStream(a["tokens"], 2, 3).batch(0, 0)
        return batch.inputs, batch.targets

    return Entry("TokenStream", {"tokens": steps(20, below=V)}, call, {"tokens": [(), (20, 1), (7,), (0,)]})


PARAMS = {"weight": (H, I), "bias": (H,)}


def optimizer(kind: str, **options: Any) -> Entry:
    arrays = {f"{group}['{name}']": normal(*shape) for group in ("params", "grads") for name, shape in PARAMS.items()}

    def call(a: dict[str, Any]) -> Any:
        made = getattr(optimizers, kind)(0.1, **options)
        params = {name: a[f"params['{name}']"] for name in PARAMS}
        for _ in range(2):
            made.step(params, {name: a[f"grads['{name}']"] for name in PARAMS})
        return [a.copy() for a in params.values()]

    wrong = {f"grads['{name}']": [(*shape, 1), shape[1:], (1, *shape)] for name, shape in PARAMS.items()}
    written = frozenset(f"params['{name}']" for name in PARAMS)
    return Entry(f"{kind}.step", arrays, call, wrong, in_place=written)


ENTRIES: dict[str, list[Entry]] = {
    **{name: [recurrent_function(name)] for name in CELLS | ELEMENTWISE},
    **{f"{name}_cell": [recurrent_step(name)] for name in CELLS | ELEMENTWISE},
    **{kind.__name__: [recurrent_layer(kind.__name__, False)] for kind in LAYERS.values()},
    "rnn": [recurrent_function("rnn", activation="relu", leak=0.1)],
    "gru": [recurrent_function("gru"), recurrent_function("gru", reset_after=True, update="state")],
    "rnn_cell": [recurrent_step("rnn", activation="relu", leak=0.1)],
    "GRU": [recurrent_layer("GRU", True)],
    "LinearGaussian": [linear_gaussian()],
    "ssm": [state_space()],
    "StateSpace": [state_space_layer(gpurnn.StateSpace(I, H, V, dtype="float64"))],
    "DiagonalStateSpace": [
        state_space_layer(gpurnn.DiagonalStateSpace(I, H, V, complex=pair, dtype="float64")) for pair in (True, False)
    ],
    "dense": [
        Entry(
            "dense",
            {"x": normal(T, B, I), "weight": normal(H, I), "bias": normal(H), "dy": normal(T, B, H)},
            with_vjp(gpurnn.dense, ["x", "weight", "bias"], activation=activation),
            {
                "x": [(T, B, I + 1), (I + 1,), ()],
                "weight": [(H,), (H, I, 1)],
                "bias": [(H + 1,), (1,), (H, 1), ()],
                "dy": [(T, B), (T, B, 1), (T, 1, H), (H,)],
            },
            optional=frozenset({"bias", "dy"}),
            empty={"all": {"x": (0, B, I), "dy": (0, B, H)}},
        )
        for activation in ("identity", "tanh", "relu", "sigmoid", "softmax")
    ],
    "Dense": [
        simple_layer(
            gpurnn.Dense(I, H, dtype="float64"), "dense", normal(T, I), "x", normal(T, H),
            wrong_shapes={"x": [(T, I + 1), ()], "dy": [(T,), (T, H, 1), (1, H)]},
            empty={"all": {"x": (0, I), "dy": (0, H)}},
        )
    ],
    "layer_norm": [
        Entry(
            "layer_norm",
            {"x": normal(T, B, I), "weight": normal(I), "bias": normal(I), "dy": normal(T, B, I)},
            with_vjp(gpurnn.layer_norm, ["x", "weight", "bias"]),
            {
                "x": [(), (T, 0)], "weight": [(I + 1,), (1,), (I, 1), ()], "bias": [(I + 1,), (1,), (I, 1), ()],
                "dy": [(T, B), (T, B, 1), (I,)],
            },
            optional=frozenset({"weight", "bias", "dy"}),
            empty={"all": {"x": (0, B, I), "dy": (0, B, I)}},
        )
    ],
    "LayerNorm": [
        simple_layer(
            gpurnn.LayerNorm(I, dtype="float64"), "layer_norm", normal(T, I), "x", normal(T, I, seed=1),
            wrong_shapes={"x": [()], "dy": [(T,), (T, I, 1), (1, I)]}, empty={"all": {"x": (0, I), "dy": (0, I)}},
            also_named={"x": "weight"},
        )
    ],
    "multi_head_attention": [multi_head(gpurnn.multi_head_attention)],
    "MultiHeadAttention": [multi_head(gpurnn.MultiHeadAttention(H, 5, dtype="float64"))],
    "PositionalEncoding": [
        simple_layer(
            gpurnn.PositionalEncoding(), "PositionalEncoding", normal(T, B, I), "x", normal(T, B, I),
            wrong_shapes={"x": [(T, B), (T, B, I, 1)], "dy": [(T, B), (T, B, 1)]},
            empty={"all": {"x": (0, B, I), "dy": (0, B, I)}}, also_named={"x": "dy"},
        )
    ],
    "TransformerBlock": [transformer_block()],
    "embedding": [
        Entry(
            "embedding",
            {"indices": steps(T, B, below=V), "weight": normal(V, I), "dy": normal(T, B, I)},
            embedded,
            {"weight": [(V,), (V, I, 1)], "dy": [(T, B), (T, B, 1), (T, 1, I)]},
            optional=frozenset({"dy"}),
            empty={"all": {"indices": (0, B), "dy": (0, B, I)}}, also_named={"weight": "dy"},
        )
    ],
    "Embedding": [
        simple_layer(
            gpurnn.Embedding(V, I, dtype="float64"), "embedding", steps(T, B, below=V), "indices", normal(T, B, I),
            wrong_shapes={"dy": [(T, B), (T, B, 1)]}, empty={"all": {"indices": (0,), "dy": (0, I)}},
        )
    ],
    "dropout": [
        Entry(
            "dropout", {"x": normal(T, B), "dy": normal(T, B)}, dropped, {"dy": [(T,), (T, 1), (B, T)]},
            optional=frozenset({"dy"}), empty={"all": {"x": (0, B), "dy": (0, B)}}, also_named={"x": "dy"},
        )
    ],
    "Dropout": [
        simple_layer(
            gpurnn.Dropout(0.5), "Dropout", normal(T, B), "x", normal(T, B),
            wrong_shapes={"dy": [(T,), (T, 1), (B, T)]}, empty={"all": {"x": (0, B), "dy": (0, B)}},
            also_named={"x": "dy"},
        )
    ],
    "Sequential": [sequential()],
    "cross_entropy": [
        Entry(
            "cross_entropy",
            {
                "logits": normal(T, B, V), "labels": steps(T, B, below=V), "mask": steps(T, B, below=3) > 0,
                "class_weights": normal(V) ** 2, "dvalue": np.array(2.0),
            },
            lambda a: with_vjp(losses.cross_entropy, ["logits", "labels"], class_weights=a["class_weights"])(a),
            {
                "labels": [(T,), (B, T), (T, B, 1)], "mask": [(T,), (B, T)], "class_weights": [(V + 1,), (1,), ()],
                "logits": [(), (V,)], "dvalue": [(1,), (T, B)],
            },
            optional=frozenset({"mask", "class_weights", "dvalue"}),
            empty={"all": {"logits": (0, B, V), "labels": (0, B), "mask": (0, B)}},
        )
    ],
    **{
        name: [
            Entry(
                name,
                {
                    first: normal(T, B, I), "target": normal(T, B, I, seed=1), "mask": steps(T, B, below=3) > 0,
                    "dvalue": np.array(2.0),
                },
                with_vjp(getattr(losses, name), [first, "target"]),
                {"target": [(T, B), (T, B, 1)], "mask": [(T + 1,), (B, T), (T, B, I, 1)], "dvalue": [(1,), (T, B)]},
                optional=frozenset({"mask", "dvalue"}),
                empty={"all": {first: (0, B, I), "target": (0, B, I), "mask": (0, B)}},
            )
        ]
        for name, first in {
            "mse": "y", "l1": "y", "huber": "y", "smooth_l1": "y", "binary_cross_entropy": "logits",
        }.items()
    },
    "attention": [
        Entry(
            "attention",
            {
                "query": normal(T, B, I), "keys": normal(S, B, keys), "values": normal(S, B, H),
                **{name: normal(*shape) for name, shape in parameters.items()},
                "lengths": np.array([S, 0, S - 1]), "dcontext": normal(T, B, H), "dweights": normal(T, B, S),
            },
            attended(score, list(parameters)),
            {
                "query": [(T, B), (T, B, I + 1), (T, B, I, 1)],
                "keys": [(S, B), (S, B, keys + 1), (S, B, keys, 1)],
                "values": [(S, B), (S + 1, B, H), (S, 1, H), (S, B, H, 1)],
                **{name: [shape[1:], (*shape, 1), (*shape[:-1], shape[-1] + 1)] for name, shape in parameters.items()},
                "lengths": [(B + 1,), (1,), (B, 1), ()],
                "dcontext": [(T, B), (T, B, 1), (1, B, H)],
                "dweights": [(T, B), (T, B, 1), (1, B, S)],
            },
            optional=frozenset({"values", "lengths", "dcontext", "dweights"}),
            empty={"steps": {"query": (0, B, I), "dcontext": (0, B, H), "dweights": (0, B, S)}},
            also_named={
                "query": {"dot": "keys", "general": "weight"}.get(score, "weight_query"),
                "keys": {"dot": "keys", "general": "weight"}.get(score, "weight_keys"), "v": "weight_query",
            },
        )
        for score, keys, parameters in (
            ("dot", I, {}),
            ("general", H, {"weight": (I, H)}),
            ("additive", H, {"weight_query": (V, I), "weight_keys": (V, H), "v": (V,)}),
        )
    ],
    "linear_scan": [
        Entry(
            "linear_scan",
            {"a": normal(*shape), "b": normal(T, B, H), "h0": normal(B, H), "dy": normal(T, B, H)},
            with_vjp(gpurnn.linear_scan, ["a", "b", "h0"]),
            {
                "a": [(T, B), (T, B, 1), (T, 1, H), (1,), (T + 1, B, H)],
                "b": [(T, B), (T, B, H, 1), (T, B, H + 1)],
                "h0": [(H,), (1, H), (B, H, 1), (1, B, H)],
                "dy": [(T, B), (T, 1, H), (T, B, 1)],
            },
            optional=frozenset({"h0", "dy"}),
            empty={
                "batch": {"a": (T, 0, H) if len(shape) == 3 else (H,), "b": (T, 0, H), "h0": (0, H), "dy": (T, 0, H)}
            },
            also_named={"b": "a", "dy": "dh"},
        )
        for shape in ((T, B, H), (H,))
    ],
    "global_norm": [of_gradients(gradients.global_norm, norm) for norm in (2.0, np.inf, 3.0)],
    "clip_by_global_norm": [of_gradients(gradients.clip_by_global_norm, 1.0)],
    "clip_by_value": [of_gradients(gradients.clip_by_value, 1.0)],
    "add_l2": [with_l2()],
    "SGD": [optimizer("SGD"), optimizer("SGD", momentum=0.9)],
    "RMSprop": [optimizer("RMSprop", momentum=0.9, centered=True)],
    "Adam": [optimizer("Adam", amsgrad=True)],
    "AdamW": [optimizer("AdamW")],
    "Adagrad": [optimizer("Adagrad")],
    "Adadelta": [optimizer("Adadelta")],
    "NAdam": [optimizer("NAdam")],
    "Adamax": [optimizer("Adamax")],
    "Rprop": [optimizer("Rprop")],
    "LanguageModel": [language_model(False), language_model(True), language_model_loss()],
    "SequenceClassifier": [sequence_model(gpurnn.SequenceClassifier(I, H, V, dtype="float64"), B, V)],
    "SequenceTagger": [sequence_model(gpurnn.SequenceTagger(I, H, V, dtype="float64"), T, B, V)],
    "SequenceRegressor": [
        sequence_model(gpurnn.SequenceRegressor(I, H, V, pooling=pooling, dtype="float64"), B, V)
        for pooling in ("mean", "attention")
    ],
    "SequenceGenerator": [generator()],
    "EncoderDecoder": [
        encoder_decoder(gpurnn.EncoderDecoder(7, V, I, H, attention="additive", dtype="float64")),
        encoder_decoder(gpurnn.EncoderDecoder(7, V, I, H, attention="general", dtype="float64")),
        encoder_decoder_loss(gpurnn.EncoderDecoder(7, V, I, H, dtype="float64")),
    ],
    "Translator": [
        encoder_decoder(
            gpurnn.Translator(
                gpurnn.CharVocabulary.from_text("abc"), gpurnn.WordVocabulary.from_text("a b c"), I, H, dtype="float64"
            )
        )
    ],
    "Forecaster": [sequence_model(gpurnn.Forecaster(T, H, I, dtype="float64"), B, I)],
    "PaddedBatches": [padded_batches()],
    "TokenStream": [token_stream()],
}  # fmt: skip
"""The entries by public name. A name that computes without array arguments needs a row only in `OPTIONS`."""

ALL = [pytest.param(e, id=f"{name}{k or ''}") for name, entries in ENTRIES.items() for k, e in enumerate(entries)]
EACH = [
    pytest.param(e, argument, id=f"{name}{k or ''}-{argument}")
    for name, entries in ENTRIES.items()
    for k, e in enumerate(entries)
    for argument in e.arrays
]
each_entry = pytest.mark.parametrize("entry", ALL)
each_argument = pytest.mark.parametrize(("entry", "argument"), EACH)
each_floating = pytest.mark.parametrize(
    ("entry", "argument"), [p for p in EACH if p.values[0].arrays[p.values[1]].dtype.kind == "f"]
)


def fresh(entry: Entry) -> dict[str, np.ndarray]:
    return {name: a.copy() for name, a in entry.arrays.items()}


def refused(entry: Entry, argument: str, value: Any, error: type[Exception] | tuple[type[Exception], ...]) -> str:
    """The message that rejects one argument. It must begin with the function and name the argument."""
    with pytest.raises(error) as refusal:
        entry.call({**fresh(entry), argument: value})
    message = str(refusal.value)
    names = [IN_MESSAGES.get(argument, argument), *filter(None, [entry.also_named.get(argument)])]
    assert re.match(rf"{entry.where}: (.*\W)?({'|'.join(map(re.escape, names))})( |:|\.|$)", message), message
    for code in advised(message):
        ast.parse(code)
    return message


def test_every_public_name_has_a_row():
    rows = ENTRIES.keys() | OPTIONS.keys() | NO_INPUT.keys()
    names = {name for name in gpurnn.__all__ if not inspect.ismodule(getattr(gpurnn, name))}
    assert names - rows == set()


@each_entry
def test_the_arguments_of_the_table_are_right(entry):
    for a in arrays_of(entry.call(fresh(entry))):
        assert np.isfinite(a).all()


@each_argument
def test_wrong_shapes(entry, argument):
    for shape in entry.wrong_shapes.get(argument, []):
        value = np.zeros(shape, entry.arrays[argument].dtype)
        message = refused(entry, argument, value, ValueError)
        assert "expected" in message


DTYPES = {
    "f": [
        "float16",
        "longdouble",
        "complex64",
        "complex128",
        "object",
        "int64",
        "uint8",
        "bool",
        "<U3",
        "M8[s]",
    ],
    "i": ["float32", "float64", "complex128", "object", "bool", "<U3", "M8[s]"],
    "b": ["float32", "complex128", "object", "<U3"],
}
"""Wrong dtypes, by the kind of the right one."""


@each_argument
def test_wrong_dtypes(entry, argument):
    a = entry.arrays[argument]
    for dtype in DTYPES[a.dtype.kind]:
        assert "expected" in refused(entry, argument, np.zeros(a.shape, dtype), TypeError)


@each_floating
def test_mixed_floating_dtypes(entry, argument):
    message = refused(entry, argument, entry.arrays[argument].astype("float32"), TypeError)
    assert "float32" in message
    assert "float64" in message


class Unknown:
    """An array of a library that does not share its memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim


@each_argument
def test_what_is_no_array_of_a_supported_library(entry, argument):
    a = entry.arrays[argument]
    for value in (a.tolist() if a.ndim else [2.0], "text", {}, np.ma.array(a), Unknown(a)):
        refused(entry, argument, value, TypeError)
    if argument not in entry.optional:
        refused(entry, argument, None, TypeError)


@each_entry
def test_optional_arguments_may_be_absent(entry):
    for name in entry.optional:
        entry.call({**fresh(entry), name: None})


@each_floating
def test_nan_shows_in_the_result(entry, argument):
    """NaN is not rejected: the computation uses it, and it shows in the result."""
    result = entry.call({**fresh(entry), argument: np.full_like(entry.arrays[argument], np.nan)})
    found = any(np.isnan(r).any() for r in arrays_of(result))
    assert found or argument in entry.silent_about_nan


FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "fortran": lambda a: a.copy(order="F"),
    "reversed": lambda a: a[::-1].copy()[::-1] if a.ndim else a,
    "inside": lambda a: np.pad(a, 1)[tuple(slice(1, -1) for _ in a.shape)],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim else a,
}


@each_entry
@pytest.mark.parametrize("form", FORMS)
def test_arrays_that_are_not_contiguous(entry, form):
    """All arrays at once have another layout. The result is the same, and in-place functions write to these arrays."""
    arrays = {name: FORMS[form](a) for name, a in fresh(entry).items()}
    if form == "broadcast":
        for name in entry.in_place:
            arrays[name] = arrays[name].copy()
    expected = entry.call({name: a.copy(order="C") for name, a in arrays.items()})
    result = entry.call(arrays)
    for r, e in zip(arrays_of(result), arrays_of(expected), strict=True):
        assert_close(r, e, 1000)


@each_entry
def test_read_only_arrays(entry):
    arrays, expected = fresh(entry), entry.call(fresh(entry))
    before = fresh(entry)
    for name, a in arrays.items():
        a.flags.writeable = name in entry.in_place
    for r, e in zip(arrays_of(entry.call(arrays)), arrays_of(expected), strict=True):
        assert_same(r, e)
    for name, a in arrays.items():
        if name not in entry.in_place:
            assert_same(a, before[name])
    for name in entry.in_place:
        arrays[name] = before[name].copy()
        arrays[name].flags.writeable = False
        with pytest.raises(ValueError, match=rf"{entry.where}: {re.escape(name)} is read-only, expected"):
            entry.call(arrays)
        assert_same(arrays[name], before[name])
        arrays[name] = before[name].copy()


@each_entry
def test_empty_arrays(entry):
    for sizes in entry.empty.values():
        arrays = fresh(entry)
        for name, shape in sizes.items():
            arrays[name] = np.zeros(shape, arrays[name].dtype)
        if (0 in arrays.get("x", np.ones(1)).shape) and "lengths" in arrays and arrays["lengths"].size:
            arrays["lengths"][...] = 0
        for r in arrays_of(entry.call(arrays)):
            assert np.isfinite(r).all()


@pytest.mark.parametrize("entry", [p for p in ALL if "lengths" in p.values[0].arrays])
@pytest.mark.parametrize("lengths", [[-1, 1, 1], [1, max(T, S) + 1, 1], [2**40, 0, 0], [-(2**40), 0, 0]])
def test_lengths_outside_the_sequence(entry, lengths):
    with pytest.raises(ValueError, match=r"lengths holds .*, expected 0 \.\.\. (T = 4|S = 6|T = 6)"):
        entry.call({**fresh(entry), "lengths": np.array(lengths)})


@pytest.mark.parametrize("entry", [p for p in ALL if "indices" in p.values[0].arrays])
@pytest.mark.parametrize("bad", [-1, V, 2**40])
def test_indices_outside_the_table(entry, bad):
    indices = entry.arrays["indices"].copy()
    indices[1, 1] = bad
    with pytest.raises(IndexError, match=rf"indices .*{bad}.* expected .*{V}"):
        entry.call({**fresh(entry), "indices": indices})


@pytest.mark.parametrize("entry", [p for p in ALL if "labels" in p.values[0].arrays])
@pytest.mark.parametrize("bad", [-1, V, 2**40])
def test_labels_outside_the_classes(entry, bad):
    labels = entry.arrays["labels"].copy()
    labels[entry.arrays["mask"]] = bad
    with pytest.raises(ValueError, match=rf"cross_entropy: labels holds {bad}.*expected 0 <= label < classes = {V}"):
        entry.call({**fresh(entry), "labels": labels})
    labels = entry.arrays["labels"].copy()
    labels[~entry.arrays["mask"]] = bad
    entry.call({**fresh(entry), "labels": labels})


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_state_that_is_no_pair_or_is_one(kind):
    layer = getattr(gpurnn, kind)(I, H, dtype="float64")
    h = normal(1, B, H)
    for state in (h, (h,), (h, h, h), "hc", {"h": h}) if kind == "LSTM" else ((h, h), [h], "h"):
        with pytest.raises(TypeError, match=rf"{kind}: state is .*expected"):
            layer(normal(T, B, I), state)
        _, pullback = layer.vjp(normal(T, B, I))
        with pytest.raises(TypeError, match=rf"{kind}: dstate is .*expected"):
            pullback((None, state))


@pytest.mark.parametrize("cotangents", [None, normal(T, B, H), (normal(T, B, H),), (None, None, None)])
@pytest.mark.parametrize("name", ["LSTM", "Sequential"])
def test_cotangents_that_are_no_pair(name, cotangents):
    layer = gpurnn.LSTM(I, H, dtype="float64")
    layer = gpurnn.Sequential(layer) if name == "Sequential" else layer
    _, pullback = layer.vjp(normal(T, B, I))
    with pytest.raises(TypeError, match=rf"{name}: the pullback was given .*, expected a pair \(dy, dstate\)"):
        pullback(cotangents)


def wrong_counts(*names: str) -> dict[str, list[Any]]:
    return {name: [0, -1, 1.5, True, "4", None, np.array([1, 2])] for name in names}


def wrong_sizes(*names: str) -> dict[str, list[Any]]:
    return {name: [*values, 2**63, 10**30] for name, values in wrong_counts(*names).items()}


RATES = [-0.1, 1.0, 2, np.nan, np.inf, "half", None]
NUMBERS = [-0.1, np.nan, np.inf, "much", None]
SEEDS = [1.5, "seed", True, np.random.RandomState(0)]
RECURRENT_OPTIONS = {
    **wrong_sizes("input_size", "hidden_size", "num_layers"),
    **dict.fromkeys(("dropout", "variational_dropout", "recurrent_dropout"), RATES),
    "dtype": ["float16", "int64", "complex64", "nothing", 3, None],
    "init": ["nothing", 3, None, ("xavier", "nothing")],
    "rng": [*SEEDS, None],
}
ARRAYS = {"x": normal(T, B, I), "weight_ih": normal(H, I), "weight_hh": normal(H, H)}

OPTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]] = {
    "rnn": (gpurnn.rnn, ARRAYS, {"activation": ["softmax", None, 3], "leak": [np.nan, np.inf, "much", None]}),
    "gru": (
        gpurnn.gru,
        {"x": normal(T, B, I), "weight_ih": normal(3 * H, I), "weight_hh": normal(3 * H, H)},
        {"update": ["both", None, 3], "reset_after": ["no", None, 2]},
    ),
    "lstm": (gpurnn.lstm, {"x": normal(T, B, I), "weight_ih": normal(4 * H, I), "weight_hh": normal(4 * H, H)}, {}),
    "dense": (gpurnn.dense, {"x": normal(T, I), "weight": normal(H, I)}, {"activation": ["swish", None, 3]}),
    "embedding": (
        gpurnn.embedding,
        {"indices": steps(T, below=V), "weight": normal(V, I)},
        {"padding_idx": [-1, V, 1.5, "0", True]},
    ),
    "dropout": (gpurnn.dropout, {"x": normal(T), "rate": 0.5, "rng": 0}, {"rate": RATES, "rng": [*SEEDS, None]}),
    "RNN": (
        gpurnn.RNN,
        {"input_size": I, "hidden_size": H},
        {**RECURRENT_OPTIONS, "activation": ["softmax", None], "leak": [np.nan, np.inf, "much", None]},
    ),
    "LSTM": (gpurnn.LSTM, {"input_size": I, "hidden_size": H}, RECURRENT_OPTIONS),
    "GRU": (
        gpurnn.GRU,
        {"input_size": I, "hidden_size": H},
        {**RECURRENT_OPTIONS, "update": ["both", None], "reset_after": ["no", None, 2]},
    ),
    "LinearGaussian": (
        gpurnn.LinearGaussian(np.eye(H), np.eye(H), np.eye(H), np.eye(H)).fit,
        {"y": normal(T, H)},
        {
            "parameters": [("A",), (), "Q", None],
            "method": ["newton", None],
            "iterations": [-1, 1.5, None],
            "tolerance": NUMBERS,
        },
    ),
    "ssm": (
        gpurnn.ssm,
        {"x": normal(T, B, I), "A": normal(H, H), "B": normal(H, I), "C": normal(V, H)},
        {"output_state": ["now", None, 3]},
    ),
    **{
        name: (
            getattr(gpurnn, name),
            {"input_size": I, "state_size": H, "output_size": V},
            {
                **wrong_sizes("input_size", "state_size", "output_size"),
                "output_state": ["now", None, 3],
                "radius": radii,
                "dtype": RECURRENT_OPTIONS["dtype"],
                "rng": [*SEEDS, None],
            },
        )
        for name, radii in {
            "StateSpace": [-0.1, np.nan, "half", None],
            "DiagonalStateSpace": [0.5, None, (0.5, 1.0), (0.0, 0.5), (0.9, 0.5), (0.5, np.nan)],
        }.items()
    },
    "Dense": (
        gpurnn.Dense,
        {"in_features": I, "out_features": H},
        {
            **wrong_sizes("in_features", "out_features"),
            "activation": ["swish", None],
            "init": ["nothing", 3, None],
            "dtype": RECURRENT_OPTIONS["dtype"],
            "rng": [*SEEDS, None],
        },
    ),
    "Embedding": (
        gpurnn.Embedding,
        {"num_embeddings": V, "embedding_dim": I},
        {
            **wrong_sizes("num_embeddings", "embedding_dim"),
            "padding_idx": [-1, V, 1.5, "0", True],
            "init": ["nothing", 3],
            "dtype": RECURRENT_OPTIONS["dtype"],
            "rng": [*SEEDS, None],
        },
    ),
    "Dropout": (gpurnn.Dropout, {"rate": 0.5}, {"rate": RATES}),
    **{
        name: (
            getattr(gpurnn, name).from_text,
            {"text": "a b", "max_size": None, "min_count": 1},
            {"text": [b"a b", 3, None], "max_size": [0, 1.5, "2"], "min_count": [0, 1.5, None]},
        )
        for name in ("CharVocabulary", "WordVocabulary")
    },
    "TokenizerVocabulary": (
        gpurnn.TokenizerVocabulary,
        {"tokenizer": SimpleNamespace(encode=str.encode, decode=bytes, vocab_size=256)},
        {"tokenizer": ["ab", None, 3, SimpleNamespace(encode=str.encode, decode=bytes)]},
    ),
    "LanguageModel": (
        gpurnn.LanguageModel,
        {"vocabulary": gpurnn.CharVocabulary.from_text("ab"), "embedding_size": H, "hidden_size": H},
        {
            **wrong_sizes("embedding_size", "hidden_size", "num_layers"),
            "vocabulary": ["ab", None, 3],
            "cell": ["transformer", None, 3],
            **dict.fromkeys(("dropout", "variational_dropout", "recurrent_dropout"), RATES),
            "init": ["nothing", 3],
            "bidirectional": [True],
            "dtype": RECURRENT_OPTIONS["dtype"],
            "rng": [*SEEDS, None],
        },
    ),
    "layer_norm": (gpurnn.layer_norm, {"x": normal(T)}, {"eps": NUMBERS}),
    "LayerNorm": (
        gpurnn.LayerNorm,
        {"features": I},
        {**wrong_sizes("features"), "eps": NUMBERS, "dtype": RECURRENT_OPTIONS["dtype"]},
    ),
    "multi_head_attention": (
        gpurnn.multi_head_attention,
        {"query": normal(T, B, I), "in_proj_weight": normal(3 * I, I), "out_proj_weight": normal(I, I), "num_heads": 2},
        wrong_counts("num_heads"),
    ),
    **{
        name: (
            getattr(gpurnn, name),
            {"features": 4, "num_heads": 2},
            {
                **wrong_sizes("features"),
                "num_heads": [*wrong_sizes("_")["_"], 3],
                "init": ["nothing", 3, None],
                "dtype": RECURRENT_OPTIONS["dtype"],
                "rng": [*SEEDS, None],
                **options,
            },
        )
        for name, options in {
            "MultiHeadAttention": {},
            "TransformerBlock": {
                "hidden_size": wrong_sizes("_")["_"][:4],
                "activation": ["tanh", None, 3],
                "dropout": RATES,
            },
        }.items()
    },
    "attention": (
        gpurnn.attention,
        {"query": normal(T, B, I), "keys": normal(S, B, I)},
        {"score": ["cosine", None], "scale": [np.nan, np.inf, "1", None]},
    ),
    "explain": (
        gpurnn.explain,
        {"layer": gpurnn.LSTM(I, H), "x": (T, B, I), "device": "A100"},
        {
            "layer": [None, 3, gpurnn.Dense(I, H)],
            "x": [None, 3, (T, B), (T, B, I + 1), (0, B, I), (T, 1.5, I)],
            "device": ["A1000", ""],
        },
    ),
    "use": (gpurnn.use, {"wing": "reference"}, {"wing": ["gpu", "kernels", None, 3]}),
    "PaddedBatches": (
        gpurnn.PaddedBatches,
        {"sequences": [steps(3, below=V), steps(2, below=V)], "batch_size": 2, "targets": None},
        {
            **wrong_counts("batch_size"),
            "sequences": [[], [steps(1, below=V)], [[1, 2, 3]], 3, None],
            "targets": [[], [steps(3, below=V)], 3],
            "rng": [*SEEDS, None],
        },
    ),
    "TokenStream": (
        gpurnn.TokenStream,
        {"tokens": steps(20, below=V), "batch_size": 2, "steps": 3},
        wrong_counts("batch_size", "steps"),
    ),
    "Trainer": (
        gpurnn.Trainer,
        {
            "model": gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text("ab"), H, H),
            "data": gpurnn.TokenStream(steps(20, below=3), 2, 3),
            "optimizer": optimizers.SGD(0.1),
            "steps": 1,
            "validation": gpurnn.TokenStream(steps(20, below=3), 2, 3),
            "progress": False,
        },
        {
            "steps": [-1, 1.5, "4", None],
            "epochs": [1],
            "clip_norm": [0, -1.0, np.nan, "much"],
            "clip_value": [0, -1.0, np.nan, "much"],
            "l2": NUMBERS,
            "validation": [3],
            "validation_interval": [0, 1.5, "3"],
            "patience": [0, 1.5, "3"],
            "checkpoint_interval": [0, 1.5, None],
            "log_interval": [0, 1.5, None],
            "metric": ["accuracy", 3],
            "rng": [*SEEDS, None],
            "model": [3, None],
            "data": [3, None],
            "optimizer": [3, None],
        },
    ),
    **{
        name: (getattr(optimizers, name), {"lr": 0.1}, {"lr": NUMBERS, "weight_decay": NUMBERS, **options})
        for name, options in {
            "SGD": {"momentum": NUMBERS, "dampening": NUMBERS, "nesterov": [True]},
            "RMSprop": {"alpha": RATES, "eps": NUMBERS, "momentum": NUMBERS},
            "Adam": {"betas": [(1.0, 0.9), (0.9, 1.0), 0.9, (0.9,), None], "eps": NUMBERS},
            "AdamW": {"betas": [(-0.1, 0.9)], "eps": NUMBERS, "recurrent_weight_decay": RATES},
            "Adagrad": {"lr_decay": NUMBERS, "initial_accumulator_value": NUMBERS, "eps": NUMBERS},
            "Adadelta": {"rho": RATES, "eps": NUMBERS},
            "NAdam": {"betas": [(1.0, 0.9), 0.9, None], "eps": NUMBERS, "momentum_decay": NUMBERS},
            "Adamax": {"betas": [(0.9, 1.0), 0.9, None], "eps": NUMBERS},
            "Rprop": {
                "etas": [(0.5, 1.0), (0.0, 1.2), (1.0, 1.2), (0.5, np.nan), ("half", 1.2), (0.5,), 0.5, None],
                "step_sizes": [(1.0, 0.5), (-0.1, 1.0), (0.1, np.inf), (0.1,), 0.5, None],
            },
        }.items()
    },
    "cross_entropy": (
        losses.cross_entropy,
        {"logits": normal(T, V), "labels": steps(T, below=V)},
        {"label_smoothing": [-0.1, 1.1, np.nan, "much", None], "reduction": ["max", None]},
    ),
    **{
        name: (getattr(losses, name), {"y": normal(T), "target": normal(T)}, {"reduction": ["max", None], **options})
        for name, options in {
            "mse": {},
            "l1": {},
            "huber": {"delta": [0, *NUMBERS[:2], *NUMBERS[3:]]},
            "smooth_l1": {"beta": NUMBERS},
        }.items()
    },
    "binary_cross_entropy": (
        losses.binary_cross_entropy,
        {"logits": normal(T), "target": normal(T)},
        {"reduction": ["max", None]},
    ),
    "global_norm": (
        gradients.global_norm,
        {"grads": {"w": normal(T)}},
        {"norm_type": [0, -1, np.nan, "two", None], "grads": [3, None]},
    ),
    "clip_by_global_norm": (
        gradients.clip_by_global_norm,
        {"grads": {"w": normal(T)}, "max_norm": 1.0},
        {"max_norm": NUMBERS, "norm_type": [0, -1, np.nan, "two", None], "grads": [3, None]},
    ),
    "clip_by_value": (
        gradients.clip_by_value,
        {"grads": {"w": normal(T)}, "clip_value": 1.0},
        {"clip_value": NUMBERS, "grads": [3, None]},
    ),
    "add_l2": (
        gradients.add_l2,
        {"grads": {"w": normal(T)}, "params": {"w": normal(T)}, "weight": 0.1},
        {"weight": NUMBERS, "grads": [3, None], "params": [3, None]},
    ),
    "Sequential": (
        lambda argument: gpurnn.Sequential(argument),
        {"argument": gpurnn.Dropout(0.1)},
        {"argument": [3, None]},
    ),
}
"""By public name: a callable, valid arguments, and invalid values of the arguments that are not arrays."""

NO_INPUT = {
    "__version__": "a string",
    "FileFormatError": "an exception",
    "Layer": "a base class; each layer has a row",
    "Decoder": "its steps are rows of EncoderDecoder, its own refusals are in test_decoder.py",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_of_the_table_are_right(name):
    function, arguments, options = OPTIONS[name]
    function(**arguments)
    if name != "Sequential":
        assert options.keys() <= inspect.signature(function).parameters.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_options(name):
    function, arguments, options = OPTIONS[name]
    for option, values in options.items():
        for value in values:
            with pytest.raises((ValueError, TypeError), match=rf"^[\w.]+: .*{option}\b.*, expected "):
                function(**{**arguments, option: value})


@pytest.mark.parametrize(("sign", "shown"), [(1, "at least 2**20000"), (-1, "at most -2**20000")])
def test_integers_that_python_does_not_write(sign, shown):
    with pytest.raises(ValueError, match=rf"^LSTM: hidden_size is {re.escape(shown)}, expected at (most|least) "):
        gpurnn.LSTM(I, sign * (2**20_000 + 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: gpurnn.Dense(n, n),
        lambda n: gpurnn.LSTM(n, n),
        lambda n: gpurnn.Embedding(n, n),
        lambda n: gpurnn.MultiHeadAttention(n, 1),
        lambda n: gpurnn.StateSpace(n, n, n),
    ],
)
def test_parameters_that_no_computer_can_hold(make):
    with pytest.raises(MemoryError, match=r"a parameter has shape \(\d+, \d+\), expected one that a computer can hold"):
        make(2**40)


def test_seeds_may_be_larger_than_sizes():
    assert_same(gpurnn.Dense(I, H, rng=2**100).state_dict(), gpurnn.Dense(I, H, rng=2**100).state_dict())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "layer",
    [gpurnn.LSTM(I, H, 2, dropout=0.5, dtype="float64"), gpurnn.Dropout(0.5), gpurnn.Sequential(gpurnn.Dropout(0.5))],
    ids=repr,
)
def test_a_wrong_rng_of_vjp(layer, seed):
    with pytest.raises(TypeError, match=r"rng is .*, expected an int seed or a numpy.random.Generator"):
        layer.vjp(normal(T, B, I), rng=seed)
