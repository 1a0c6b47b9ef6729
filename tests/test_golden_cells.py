"""Cells with options against independent results, those of PyTorch's autograd and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import golden
import numpy as np
import pytest
from compiled_together import compiled_together
from test_golden_recurrence import each_wing_and_dtype, hold, joint, split
from tolerance import assert_close, recurrence_terms

import gpurnn

pytestmark = pytest.mark.usefixtures("each_wing")


def each(family: str):
    """Every case of one family, as (record, dtype)."""

    def decorate(test):
        test = each_wing_and_dtype(test)
        return pytest.mark.parametrize("record", golden.family("cells", family), ids=lambda record: record["name"])(
            test
        )

    return decorate


@each("lstm_peephole")
def test_peephole(record, dtype):
    a = golden.arrays("cells", record["name"], dtype)
    w_ih, w_hh = split([a["Wi"], a["Wf"], a["Wc"], a["Wo"]], record["H"])
    bias = np.concatenate([a["bi"], a["bf"], a["bc"], a["bo"]])
    (y, (_, c)), pullback = gpurnn.lstm.vjp(
        a["x"], w_ih, w_hh, bias, state=(a["h0"], a["c0"]),
        peephole_i=a["pi"], peephole_f=a["pf"], peephole_o=a["po"],
    )  # fmt: skip
    (dx, (dh0, dc0)), g = pullback((a["ct_y"], (None, a["ct_cT"])))
    found = {"y": y, "cT": c, "g_x": dx, "g_h0": dh0, "g_c0": dc0}
    found |= joint(g["weight_ih"], g["weight_hh"], ["g_Wi", "g_Wf", "g_Wc", "g_Wo"])
    found |= {f"g_p{gate}": g[f"peephole_{gate}"] for gate in "ifo"}
    hold(record, a, found | dict(zip(("g_bi", "g_bf", "g_bc", "g_bo"), np.split(g["bias_ih"], 4), strict=True)))


@each("lstm_coupled")
def test_coupled(record, dtype):
    a = golden.arrays("cells", record["name"], dtype)
    w_ih, w_hh = split([a["Wi"], a["Wc"], a["Wo"]], record["H"])
    bias = np.concatenate([a["bi"], a["bc"], a["bo"]])
    (y, (_, c)), pullback = gpurnn.lstm.vjp(a["x"], w_ih, w_hh, bias, state=(a["h0"], a["c0"]), coupled=True)
    (dx, (dh0, dc0)), g = pullback((a["ct_y"], (None, a["ct_cT"])))
    found = {"y": y, "cT": c, "g_x": dx, "g_h0": dh0, "g_c0": dc0}
    found |= joint(g["weight_ih"], g["weight_hh"], ["g_Wi", "g_Wc", "g_Wo"])
    found |= {"g_Wf": np.zeros_like(a["Wf"]), "g_bf": np.zeros_like(a["bf"])}  # they are not read
    hold(record, a, found | dict(zip(("g_bi", "g_bc", "g_bo"), np.split(g["bias_ih"], 3), strict=True)))


def of_steps(a: dict[str, np.ndarray], name: str) -> np.ndarray:
    return np.stack([a.pop(key) for key in sorted(a) if key.startswith(f"{name}_")])


@each("zoneout_lstm")
def test_zoneout(record, dtype):
    a = golden.arrays("cells", record["name"], dtype)
    masks = {"zoneout_h": of_steps(a, "mh"), "zoneout_c": of_steps(a, "mc")}
    (y, (_, c)), pullback = gpurnn.lstm.vjp(a["x"], a["Wx"], a["Wh"], a["b"], state=(a["h0"], a["c0"]), **masks)
    (dx, (dh0, dc0)), g = pullback((a["ct_y"], (None, a["ct_cT"])))
    found = {"y": y, "cT": c, "g_x": dx, "g_h0": dh0, "g_c0": dc0}
    hold(record, a, found | {"g_Wx": g["weight_ih"], "g_Wh": g["weight_hh"], "g_b": g["bias_ih"]})


@each("recurrent_dropout_lstm")
def test_dropout_of_the_candidate(record, dtype):
    a = golden.arrays("cells", record["name"], dtype)
    mask = of_steps(a, "m")
    (y, (_, c)), pullback = gpurnn.lstm.vjp(a["x"], a["Wx"], a["Wh"], a["b"], state=(a["h0"], a["c0"]), dropout_g=mask)
    (dx, (dh0, dc0)), g = pullback((a["ct_y"], (None, a["ct_cT"])))
    found = {"y": y, "cT": c, "g_x": dx, "g_h0": dh0, "g_c0": dc0}
    hold(record, a, found | {"g_Wx": g["weight_ih"], "g_Wh": g["weight_hh"], "g_b": g["bias_ih"]})


@each("lstm_layernorm")
def test_layer_norm(record, dtype):
    a = golden.arrays("cells", record["name"], dtype)
    norms = {"norm_ih": a["gx"], "norm_hh": a["gh"], "norm_c": a["gc"], "bias_c": a["bc"]}
    (y, (_, c)), pullback = gpurnn.lstm.vjp(a["x"], a["Wx"], a["Wh"], a["b"], state=(a["h0"], a["c0"]), **norms)
    (dx, (dh0, dc0)), g = pullback((a["ct_y"], (None, a["ct_cT"])))
    found = {"y": y, "cT": c, "g_x": dx, "g_h0": dh0, "g_c0": dc0, "g_Wx": g["weight_ih"], "g_Wh": g["weight_hh"]}
    found |= {"g_b": g["bias_ih"], "g_gx": g["norm_ih"], "g_gh": g["norm_hh"], "g_gc": g["norm_c"], "g_bc": g["bias_c"]}
    # The gradient of a norm cancels, and the more so the nearer the normalised numbers are to each other.
    hold(record, a, found, more_terms=200)


# ---- ONNX: its names, its order of gates, its directions ------------------------------------------------------------

GATES = {"RNN": "h", "GRU": "zrh", "LSTM": "iofc"}
ORDER = {"RNN": "h", "GRU": "rzh", "LSTM": "ifco"}
FUNCTIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
NAMES = {
    "Tanh": "tanh", "Relu": "relu", "Sigmoid": "sigmoid", "Affine": "affine", "LeakyRelu": "leaky_relu",
    "ThresholdedRelu": "thresholded_relu", "ScaledTanh": "scaled_tanh", "HardSigmoid": "hard_sigmoid", "Elu": "elu",
    "Softsign": "softsign", "Softplus": "softplus",
}  # fmt: skip
WITH_ALPHA = {
    "Affine": 1.0,
    "LeakyRelu": 0.01,
    "ThresholdedRelu": 1.0,
    "ScaledTanh": 1.0,
    "HardSigmoid": 0.2,
    "Elu": 1.0,
}
WITH_BETA = {"Affine": 0.0, "ScaledTanh": 1.0, "HardSigmoid": 0.5}


def functions_of(record: dict[str, Any]) -> list[list[Any]]:
    """The activations of each direction in gpurnn's form. Only functions with alpha and beta consume them."""
    attributes, op = record["attributes"], record["op"]
    count = 2 if attributes["direction"] == "bidirectional" else 1
    names = attributes.get("activations", FUNCTIONS[op] * count)
    alphas = iter(attributes.get("activation_alpha", []))
    betas = iter(attributes.get("activation_beta", []))
    functions: list[Any] = []
    for name in names:
        numbers = [next(alphas, WITH_ALPHA[name])] if name in WITH_ALPHA else []
        numbers += [next(betas, WITH_BETA[name])] if name in WITH_BETA else []
        functions.append((NAMES[name], *numbers) if numbers else NAMES[name])
    size = len(FUNCTIONS[op])
    return [functions[d * size : (d + 1) * size] for d in range(count)]


def turned(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Each row's steps in reverse; the padding stays in place."""
    out = x.copy()
    for b, n in enumerate(lengths):
        out[:n, b] = x[:n, b][::-1]
    return out


def reordered(w: np.ndarray, op: str, gates: str) -> np.ndarray:
    blocks = dict(zip(GATES[op], np.split(w, len(GATES[op])), strict=True))
    return np.concatenate([blocks[gate] for gate in gates])


def run_onnx(record: dict[str, Any], a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    op, attributes, x = record["op"], record["attributes"], a["in_X"]
    (T, B, _), H, dtype = x.shape, attributes["hidden_size"], x.dtype
    lengths = a.get("in_sequence_lens", np.full(B, T))
    found: dict[str, list[np.ndarray]] = {"out_Y": [], "out_Y_h": [], "out_Y_c": []}
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[attributes["direction"]]
    for d, (backwards, functions) in enumerate(zip(directions, functions_of(record), strict=True)):
        coupled = bool(attributes.get("input_forget"))
        gates = ORDER[op].replace("f", "") if coupled else ORDER[op]
        bias = np.split(a["in_B"][d], 2) if "in_B" in a else (None, None)
        arrays = [None if w is None else reordered(w, op, gates) for w in (a["in_W"][d], a["in_R"][d], *bias)]
        options: dict[str, Any] = {"clip": attributes.get("clip"), "lengths": lengths}
        h0 = a["in_initial_h"][d] if "in_initial_h" in a else np.zeros((B, H), dtype)
        inputs = turned(x, lengths) if backwards else x
        if op == "LSTM":
            gate, candidate, output = functions
            options |= {"gate_activation": gate, "activation": candidate, "output_activation": output}
            options["coupled"] = coupled
            if "in_P" in a:
                peepholes = dict(zip("iof", np.split(a["in_P"][d], 3), strict=True))
                options |= {f"peephole_{g}": p for g, p in peepholes.items() if not (coupled and g == "f")}
            c0 = a["in_initial_c"][d] if "in_initial_c" in a else np.zeros((B, H), dtype)
            y, (h, c) = gpurnn.lstm(inputs, *arrays, state=(h0, c0), **options)
            found["out_Y_c"].append(c)
        elif op == "GRU":
            options |= {"gate_activation": functions[0], "activation": functions[1]}
            after = bool(attributes.get("linear_before_reset"))
            y, h = gpurnn.gru(inputs, *arrays, state=h0, reset_after=after, update="state", **options)
        else:
            y, h = gpurnn.rnn(inputs, *arrays, state=h0, activation=functions[0], **options)
        found["out_Y"].append(turned(y, lengths) if backwards else y)
        found["out_Y_h"].append(h)
    stacked = {"out_Y": np.stack(found["out_Y"], axis=1), "out_Y_h": np.stack(found["out_Y_h"])}
    return stacked | ({"out_Y_c": np.stack(found["out_Y_c"])} if op == "LSTM" else {})


def hold_onnx(record: dict[str, Any]) -> None:
    a, shape = golden.arrays("onnx", record["name"], "float32"), record["shape"]
    terms = recurrence_terms(shape["T"], shape["N"], shape["I"], shape["H"])
    for name, value in run_onnx(record, a).items():
        assert_close(value, a[name], terms, f"{record['name']} {name}", at_least=2 * record["maxdiff_vs_float64_spec"])


@pytest.mark.parametrize("each_wing", ["reference"], indirect=True)
@pytest.mark.parametrize("record", golden.records("onnx"), ids=lambda record: f"{record['op']}-{record['name']}")
def test_onnx_runtime(record):
    hold_onnx(record)


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("each_wing", ["host"], indirect=True)
@pytest.mark.parametrize("op", FUNCTIONS)
def test_onnx_runtime_on_the_kernels(op):
    """Every case uses the schedule that the planner chooses for it."""
    records = [record for record in golden.records("onnx") if record["op"] == op]
    assert len(records) == {"RNN": 198, "LSTM": 193, "GRU": 184}[op]

    def launches() -> None:
        for record in records:
            run_onnx(record, golden.arrays("onnx", record["name"], "float32"))

    with compiled_together(launches):
        for record in records:
            hold_onnx(record)
