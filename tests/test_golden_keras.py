"""Keras' recurrent and attention layers with any masks, backward in time and merged, gradients included."""

from __future__ import annotations

from typing import Any

import golden
import numpy as np
import pytest
from tolerance import assert_close, recurrence_terms

import gpurnn

LAYERS: dict[str, Any] = {"SimpleRNN": gpurnn.RNN, "LSTM": gpurnn.LSTM, "GRU": gpurnn.GRU}
ORDER = {"SimpleRNN": [0], "LSTM": [0, 1, 2, 3], "GRU": [1, 0, 2]}
"""The indices of our gates in Keras' order, i f c o and z r h. Each permutation is its own inverse."""

each_wing_and_dtype = pytest.mark.parametrize(
    ("each_wing", "dtype"),
    [
        ("reference", "float64"),
        ("reference", "float32"),
        ("native", "float64"),
        pytest.param("host", "float64", marks=pytest.mark.kernels),
    ],
    indirect=["each_wing"],
)


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [record for record in golden.records("keras") if record["kind"] in kinds]


def hold(found: np.ndarray, expected: np.ndarray, terms: int, name: str) -> None:
    """Check equality up to the roundings of float32, in which Keras computed these cases."""
    assert_close(np.asarray(found, "float32"), np.asarray(expected, "float32"), terms, name)


def reordered(base: str, a: np.ndarray) -> np.ndarray:
    """The blocks of gates on the last axis, from Keras' order to ours or back."""
    return np.concatenate([np.split(a, len(ORDER[base]), axis=-1)[g] for g in ORDER[base]], axis=-1)


def is_weight(name: str, prefix: str) -> bool:
    return "|" in name and name.startswith(prefix) and not name.startswith("g_")


def weights_of(base: str, a: dict[str, np.ndarray], prefix: str, suffix: str) -> dict[str, np.ndarray]:
    """A direction's parameters under our names. Keras has one bias, or two for a GRU that resets after."""
    found = {}
    for name, value in a.items():
        if not is_weight(name, prefix):
            continue
        ours = reordered(base, value)
        kind = name.rpartition("|")[2]
        if kind == "bias":
            both = ours if ours.ndim == 2 else np.stack([ours, np.zeros_like(ours)])
            found |= {f"bias_ih{suffix}": both[0].copy(), f"bias_hh{suffix}": both[1].copy()}
        else:
            found[{"kernel": "weight_ih", "recurrent_kernel": "weight_hh"}[kind] + suffix] = ours.T.copy()
    return found


def as_keras(base: str, gradients: dict[str, np.ndarray], a: dict[str, np.ndarray], prefix: str, suffix: str):
    """The gradients of a direction under Keras' names."""
    found = {}
    for name, value in a.items():
        kind = name.rpartition("|")[2]
        if not is_weight(name, prefix):
            continue
        if kind == "bias":
            pair = np.stack([gradients[f"bias_ih{suffix}"], gradients[f"bias_hh{suffix}"]])
            found[f"g_{name}"] = reordered(base, pair if value.ndim == 2 else pair[0])
        else:
            ours = gradients[{"kernel": "weight_ih", "recurrent_kernel": "weight_hh"}[kind] + suffix]
            found[f"g_{name}"] = reordered(base, np.ascontiguousarray(ours.T))
    return found


@each_wing_and_dtype
@pytest.mark.parametrize("record", of_kind("SimpleRNN", "LSTM", "GRU", "Bidirectional"), ids=lambda r: r["name"])
def test_recurrent_layers(record, dtype, each_wing):
    a, config = golden.arrays("keras", record["name"], dtype), record["config"]
    base, H = config["base"], record["units"]
    B, T, I = a["x"].shape
    bidirectional = "merge_mode" in config
    options: dict[str, Any] = {"reset_after": config["reset_after"], "update": "state"} if base == "GRU" else {}
    if bidirectional:
        merge = config["merge_mode"]
        # Keras' wrapper gives zeros at masked steps.
        options |= {"merge": "average" if merge == "ave" else merge, "zero_masked_output": True}
    else:
        options |= {"reverse": config["go_backwards"], "zero_masked_output": config["zero_output_for_mask"]}
    layer = LAYERS[base](
        I, H, bias=config["use_bias"], batch_first=True, bidirectional=bidirectional, dtype=dtype, **options
    )
    directions = {"forward": "_l0", "backward": "_l0_reverse"} if bidirectional else {"": "_l0"}
    values: dict[str, np.ndarray] = {}
    for prefix, suffix in directions.items():
        values |= weights_of(base, a, prefix, suffix)
    layer.load_state_dict(gpurnn.layers.base.named(values, layer._forms()))
    states = [a[name] for name in sorted(name for name in a if name.startswith("init"))]
    D, pair = len(directions), base == "LSTM"
    state: Any = None
    if states:
        # For an LSTM, h and c of each direction in turn.
        of_directions = [np.stack(states[k :: len(states) // D]) for k in range(len(states) // D)]
        state = tuple(of_directions) if pair else of_directions[0]

    (y, final), pullback = layer.vjp(a["x"], state, mask=a.get("mask"))
    h = final[0] if pair else final
    merged = {
        "concat": lambda f, b: np.concatenate([f, b], axis=-1), "sum": lambda f, b: f + b, "mul": lambda f, b: f * b,
        "average": lambda f, b: (f + b) / 2,
    }  # fmt: skip
    ct = a["ct"]
    cotangents: tuple[Any, Any]
    if config["return_sequences"]:
        order = slice(None, None, -1 if layer.reverse else 1)
        output, cotangents = y[:, order], (ct[:, order], None)
    elif bidirectional:
        f, b = h
        output = merged[layer.merge](f, b)
        parts = {
            "concat": [ct[:, :H], ct[:, H:]], "sum": [ct, ct], "mul": [ct * b, ct * f], "average": [ct / 2] * 2,
        }[layer.merge]  # fmt: skip
        cotangents = (None, (np.stack(parts), None) if pair else np.stack(parts))
    else:  # the output of the last step taken
        last, dy = 0 if layer.reverse else -1, np.zeros_like(y)
        output, dy[:, last] = y[:, last], ct
        cotangents = (dy, None)
    (dx, dstate), gradients = pullback(cotangents)
    found = {"y": output, "g_x": dx}
    if states:
        arrays = dstate if pair else (dstate,)
        found |= {f"g_init{k}": arrays[k % len(arrays)][k // len(arrays)] for k in range(len(states))}
    for prefix, suffix in directions.items():
        found |= as_keras(base, gradients, a, prefix, suffix)
    expected = {name: value for name, value in a.items() if name == "y" or name.startswith("g_")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        hold(found[name], value, recurrence_terms(T, B, I, H), name)
    again, _ = layer(a["x"], state, mask=a.get("mask"))
    hold(again, y, recurrence_terms(T, B, I, H), "inference")


@pytest.mark.parametrize("dtype", ["float64"])
@pytest.mark.parametrize("record", of_kind("Attention", "AdditiveAttention"), ids=lambda r: r["name"])
def test_attention(record, dtype, each_wing):
    a = golden.arrays("keras", record["name"], dtype)
    query, keys, values = (a[name].swapaxes(0, 1).copy() for name in "qkv")
    lengths, E, scale = a["value_mask"].sum(axis=1), query.shape[2], a["scale"]
    additive = record["kind"] == "AdditiveAttention"
    eye = np.eye(E, dtype=dtype)
    if additive:
        options = {"score": "additive", "weight_query": eye, "weight_keys": eye, "v": scale}
    elif record["config"]["score_mode"] == "concat":
        weight = a["concat_score_weight"]
        options = {"score": "additive", "v": np.full(E, weight, dtype)}
        options |= {"weight_query": scale * eye, "weight_keys": scale * eye}
    else:
        options = {"scale": scale}
    (context, weights), pullback = gpurnn.attention.vjp(query, keys, values, lengths=lengths, **options)
    dinputs, gradients = pullback((a["ct"].swapaxes(0, 1).copy(), None))
    found = {"y": context.swapaxes(0, 1), "scores": weights.swapaxes(0, 1)}
    found |= {f"g_{name}": d.swapaxes(0, 1) for name, d in zip("qkv", dinputs, strict=True)}
    if additive:
        found["g_scale"] = gradients["v"]
    elif "weight_query" in gradients:
        of_scale = gradients["weight_query"], gradients["weight_keys"]
        found |= {"g_scale": sum(map(np.trace, of_scale)), "g_concat_score_weight": gradients["v"].sum()}
    else:
        found["g_scale"] = gradients["scale"]
    for name, value in found.items():
        hold(value, a[name], 4 * E + query.size + keys.size, name)
