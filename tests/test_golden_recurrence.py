"""Recurrent layers, and compositions of them, against PyTorch's numbers, gradients included."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from tolerance import GOLDEN_FLOAT64, assert_golden, bound, recurrence_terms

import gpurnn

pytestmark = pytest.mark.usefixtures("each_wing")

# Other tests compare the wings with each other in both dtypes.
each_wing_and_dtype = pytest.mark.parametrize(
    ("each_wing", "dtype"),
    [
        ("reference", "float64"),
        ("reference", "float32"),
        ("native", "float32"),
        pytest.param("host", "float64", marks=pytest.mark.kernels),
    ],
    indirect=["each_wing"],
)
TORCH_GRU = {"reset_after": True, "update": "state"}

LAYERS = {
    "RNN_TANH": (gpurnn.RNN, {}),
    "RNN_RELU": (gpurnn.RNN, {"activation": "relu"}),
    "LSTM": (gpurnn.LSTM, {}),
    "GRU": (gpurnn.GRU, TORCH_GRU),
    "LSTM_PROJ": (gpurnn.LSTM, {}),
}


def terms_of(record, **sizes: int) -> int:
    """The number of terms in the bound of a case; ``sizes`` names the terms outside its recurrence."""
    return recurrence_terms(record["T"], record["N"], record["I"], record["H"], record.get("layers", 1)) + sum(
        sizes.values()
    )


@each_wing_and_dtype
@pytest.mark.parametrize(
    "record", golden.records("rnn") + golden.records("proj"), ids=lambda record: f"{record['kind']}-{record['name']}"
)
def test_layers_give_what_torch_nn_gives(record, dtype):
    a = golden.arrays("proj" if record["proj"] else "rnn", record["name"], dtype)
    layer_class, options = LAYERS[record["kind"]]
    options = options | ({"proj_size": record["proj"]} if record["proj"] else {})
    layer = layer_class(
        record["I"], record["H"], record["layers"], record["bias"], record["batch_first"], 0.0, record["bidirectional"],
        dtype=dtype, **options,
    )  # fmt: skip
    layer.load_state_dict({name: value for name, value in a.items() if name.startswith(("weight", "bias"))})
    pair = record["kind"].startswith("LSTM")
    state = None
    if record["init"]:
        state = (a["h0"], a["c0"]) if pair else a["h0"]
    lengths = a.get("lengths")

    (y, final), pullback = layer.vjp(a["x"], state, lengths)
    (dx, dstate), gradients = pullback((a["cy"], (a["ch"], a["cc"]) if pair else a["ch"]))
    found = {"y": y, "g_x": dx, **{f"g_{name}": gradient for name, gradient in gradients.items()}}
    found |= {"hn": final[0], "cn": final[1]} if pair else {"hn": final}
    if record["init"]:
        found |= {"g_h0": dstate[0], "g_c0": dstate[1]} if pair else {"g_h0": dstate}
    terms = terms_of(record)
    expected = {name: value for name, value in a.items() if name in ("y", "hn", "cn") or name.startswith("g_")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_golden(found[name], value, terms, name)

    inferred, state = layer(a["x"], state, lengths)
    assert_golden(inferred, a["y"], terms, "y")
    for name, value in zip(("hn", "cn"), state if pair else (state,), strict=pair):
        assert_golden(value, a[name], terms, name)


def each(family: str):
    """Every case of one family, as (record, dtype)."""

    def decorate(test):
        test = each_wing_and_dtype(test)
        return pytest.mark.parametrize("record", golden.family("custom", family), ids=lambda record: record["name"])(
            test
        )

    return decorate


def hold(record, arrays, found, more_terms: int = 0) -> None:
    """Check every array that a case expects, and that no others were found."""
    inputs = {name[2:] for name in arrays if name.startswith("g_")}
    given = inputs | {"M", "mx", "mh", "tokens", "lengths", "src", "tgt", "src_len", "tgt_len", "labels"}
    expected = {name for name in arrays if name not in given and not name.startswith("ct_")}
    assert found.keys() == expected
    for name in expected:
        assert_golden(found[name], arrays[name], terms_of(record, more=more_terms), name)


def hold_loss(record, loss: float, dtype: str, more_terms: int = 0) -> None:
    limit = bound(dtype, terms_of(record, more=more_terms)) if dtype == "float32" else GOLDEN_FLOAT64
    assert abs(loss - record["loss"]) <= limit * abs(record["loss"])


def split(weights: list[np.ndarray], hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """weight_ih and weight_hh from matrices that act on [h, x], one for each gate."""
    stacked = np.concatenate(weights)
    return stacked[:, hidden:].copy(), stacked[:, :hidden].copy()


def joint(d_ih: np.ndarray, d_hh: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """The gradients of the matrices given to `split`, by name."""
    return dict(zip(names, np.split(np.concatenate([d_hh, d_ih], axis=1), len(names)), strict=True))


@each("gru_reset_before")
def test_textbook_gru(record, dtype):
    a = golden.arrays("custom", record["name"], dtype)
    w_ih, w_hh = split([a["Wr"], a["Wz"], a["Wh"]], record["H"])
    bias = np.concatenate([a["br"], a["bz"], a["bh"]])
    (y, _), pullback = gpurnn.gru.vjp(a["x"], w_ih, w_hh, bias, state=a["h0"])
    (dx, dh0), g = pullback((a["ct_y"], None))
    found = {"y": y, "g_x": dx, "g_h0": dh0, **joint(g["weight_ih"], g["weight_hh"], ["g_Wr", "g_Wz", "g_Wh"])}
    hold(record, a, found | dict(zip(("g_br", "g_bz", "g_bh"), np.split(g["bias_ih"], 3), strict=True)))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@each_wing_and_dtype
@pytest.mark.parametrize("number", range(10))
def test_vanilla_cell_with_a_leak(number, activation, dtype):
    record = golden.family("custom", "rnn_skip" if activation == "tanh" else "rnn_skip_relu")[number]
    a = golden.arrays("custom", record["name"], dtype)
    (y, _), pullback = gpurnn.rnn.vjp(
        a["x"], a["Wxh"], a["Whh"], None, a["b"], a["h0"], activation=activation, leak=record["scalars"]["alpha"]
    )
    (dx, dh0), g = pullback((a["ct_y"], None))
    found = {"g_Wxh": g["weight_ih"], "g_Whh": g["weight_hh"], "g_b": g["bias_hh"]}
    hold(record, a, {"y": y, "g_x": dx, "g_h0": dh0, **found})


@each("lstm_concat")
def test_lstm_of_one_matrix_a_gate(record, dtype):
    a = golden.arrays("custom", record["name"], dtype)
    w_ih, w_hh = split([a["Wi"], a["Wf"], a["Wc"], a["Wo"]], record["H"])
    bias = np.concatenate([a["bi"], a["bf"], a["bc"], a["bo"]])
    (y, (_, c)), pullback = gpurnn.lstm.vjp(a["x"], w_ih, w_hh, bias, state=(a["h0"], a["c0"]))
    (dx, (dh0, dc0)), g = pullback((a["ct_y"], (None, a["ct_cT"])))
    found = {"y": y, "cT": c, "g_x": dx, "g_h0": dh0, "g_c0": dc0}
    found |= joint(g["weight_ih"], g["weight_hh"], ["g_Wi", "g_Wf", "g_Wc", "g_Wo"])
    hold(record, a, found | dict(zip(("g_bi", "g_bf", "g_bc", "g_bo"), np.split(g["bias_ih"], 4), strict=True)))


@each("weight_drop_lstm")
def test_lstm_with_dropped_recurrent_weights(record, dtype):
    a = golden.arrays("custom", record["name"], dtype)
    kept = a["M"] / a["M"].dtype.type(1 - record["scalars"]["p"])
    (y, (_, c)), pullback = gpurnn.lstm.vjp(a["x"], a["Wx"], a["Wh"] * kept, a["b"], state=(a["h0"], a["c0"]))
    (dx, (dh0, dc0)), g = pullback((a["ct_y"], (None, a["ct_cT"])))
    found = {"y": y, "cT": c, "g_x": dx, "g_h0": dh0, "g_c0": dc0}
    hold(record, a, found | {"g_Wx": g["weight_ih"], "g_Wh": g["weight_hh"] * kept, "g_b": g["bias_ih"]})


@each("variational_gru")
def test_gru_with_variational_masks(record, dtype):
    a = golden.arrays("custom", record["name"], dtype)
    (y, _), pullback = gpurnn.gru.vjp(
        a["x"] * a["mx"], a["Wx"], a["Wh"], a["bx"], a["bh"], a["h0"], dropout_h=a["mh"], **TORCH_GRU
    )
    (dx, dh0), g = pullback((a["ct_y"], None))
    found = {"g_Wx": g["weight_ih"], "g_Wh": g["weight_hh"], "g_bx": g["bias_ih"], "g_bh": g["bias_hh"]}
    hold(record, a, {"y": y, "g_x": dx * a["mx"], "g_h0": dh0, **found})


@each("tbptt_rnn")
def test_truncated_backpropagation_through_time(record, dtype):
    """Every k steps the state is carried over, but not its gradient."""
    a = golden.arrays("custom", record["name"], dtype)
    k, state = record["scalars"]["k"], a["h0"]
    ys, dxs, dstates = [], [], []
    total = {name: np.zeros_like(a[name]) for name in ("Wxh", "Whh", "b")}
    for start in range(0, record["T"], k):
        (y, state), pullback = gpurnn.rnn.vjp(a["x"][start : start + k], a["Wxh"], a["Whh"], a["b"], state=state)
        (dx, dstate), g = pullback((a["ct_y"][start : start + k], None))
        ys.append(y)
        dxs.append(dx)
        dstates.append(dstate)
        for name, gradient in zip(total, (g["weight_ih"], g["weight_hh"], g["bias_ih"]), strict=True):
            total[name] += gradient
    found = {"y": np.concatenate(ys), "g_x": np.concatenate(dxs), "g_h0": dstates[0]}
    hold(record, a, found | {f"g_{name}": gradient for name, gradient in total.items()})


@each("birnn_sum")
def test_sum_of_both_directions(record, dtype):
    a = golden.arrays("custom", record["name"], dtype)
    H = record["H"]
    layer = gpurnn.RNN(record["I"], H, bidirectional=True, dtype=dtype)
    zero = np.zeros(H, dtype)
    layer.load_state_dict(
        {
            "weight_ih_l0": a["Wxh_f"], "weight_hh_l0": a["Whh_f"], "bias_ih_l0": a["b_f"], "bias_hh_l0": zero,
            "weight_ih_l0_reverse": a["Wxh_b"], "weight_hh_l0_reverse": a["Whh_b"], "bias_ih_l0_reverse": a["b_b"],
            "bias_hh_l0_reverse": zero,
        }
    )  # fmt: skip
    (y, _), pullback = layer.vjp(a["x"], np.stack([a["h0"], a["h0_b"]]))
    (dx, dstate), g = pullback((np.concatenate([a["ct_y"]] * 2, axis=2), None))
    found = {"y": y[:, :, :H] + y[:, :, H:], "g_x": dx, "g_h0": dstate[0], "g_h0_b": dstate[1]}
    found |= {"g_Wxh_f": g["weight_ih_l0"], "g_Whh_f": g["weight_hh_l0"], "g_b_f": g["bias_ih_l0"]}
    found |= {"g_Wxh_b": g["weight_ih_l0_reverse"], "g_Whh_b": g["weight_hh_l0_reverse"]}
    hold(record, a, found | {"g_b_b": g["bias_ih_l0_reverse"]})


def mean_cross_entropy(logits: np.ndarray, labels: np.ndarray, kept: np.ndarray) -> tuple[float, np.ndarray]:
    """-log softmax(logits)[label], averaged over the ``kept`` rows, and its gradient."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    hot = np.eye(logits.shape[-1], dtype=logits.dtype)[labels]
    weights = (kept / kept.sum()).astype(logits.dtype)[..., None]
    return -float((weights * hot * log_p).sum()), weights * (np.exp(log_p) - hot)


@each("classifier_last_valid")
def test_classifier_reads_the_state_at_the_last_valid_step(record, dtype):
    a = golden.arrays("custom", record["name"], dtype)
    (_, h), pull_gru = gpurnn.gru.vjp(a["x"], a["Wx"], a["Wh"], a["bx"], a["bh"], lengths=a["lengths"], **TORCH_GRU)
    logits, pull_dense = gpurnn.dense.vjp(h, a["Wo"], a["bo"])
    loss, dlogits = mean_cross_entropy(logits, a["labels"], np.ones(record["N"]))
    dh, dense = pull_dense(dlogits)
    (dx, _), g = pull_gru((None, dh))
    more = record["H"] + logits.shape[-1]
    hold_loss(record, loss, dtype, more)
    found = {"logits": logits, "g_x": dx, "g_Wo": dense["weight"], "g_bo": dense["bias"]}
    found |= {"g_Wx": g["weight_ih"], "g_Wh": g["weight_hh"], "g_bx": g["bias_ih"], "g_bh": g["bias_hh"]}
    hold(record, a, found, more)


@each("lm_tied")
def test_language_model_with_tied_embedding(record, dtype):
    a = golden.arrays("custom", record["name"], dtype)
    tokens, T = a["tokens"], record["T"]
    x, pull_embedding = gpurnn.embedding.vjp(tokens[:-1], a["E"])
    (h, _), pull_lstm = gpurnn.lstm.vjp(x, a["Wx"], a["Wh"], a["b"])
    logits, pull_dense = gpurnn.dense.vjp(h, a["E"], a["b_out"])
    loss, dlogits = mean_cross_entropy(logits, tokens[1:], np.arange(T)[:, None] < a["lengths"])
    dh, head = pull_dense(dlogits)
    (dx, _), g = pull_lstm((dh, None))
    _, table = pull_embedding(dx)
    more = record["H"] + logits.shape[-1]
    hold_loss(record, loss, dtype, more)
    found = {"logits": logits, "g_E": table["weight"] + head["weight"], "g_b_out": head["bias"]}
    hold(record, a, found | {"g_Wx": g["weight_ih"], "g_Wh": g["weight_hh"], "g_b": g["bias_ih"]}, more)


@each("seq2seq")
def test_encoder_and_decoder(record, dtype):
    a = golden.arrays("custom", record["name"], dtype)
    T = a["tgt"].shape[0] - 1
    source, pull_source = gpurnn.embedding.vjp(a["src"], a["Esrc"])
    (_, code), pull_encoder = gpurnn.gru.vjp(
        source, a["enc_Wx"], a["enc_Wh"], a["enc_bx"], a["enc_bh"], lengths=a["src_len"], **TORCH_GRU
    )
    target, pull_target = gpurnn.embedding.vjp(a["tgt"][:-1], a["Etgt"])
    (h, _), pull_decoder = gpurnn.gru.vjp(target, a["dec_Wx"], a["dec_Wh"], a["dec_bx"], a["dec_bh"], code, **TORCH_GRU)
    logits, pull_dense = gpurnn.dense.vjp(h, a["Wo"], a["bo"])
    loss, dlogits = mean_cross_entropy(logits, a["tgt"][1:], np.arange(T)[:, None] < a["tgt_len"])
    dh, head = pull_dense(dlogits)
    (dtarget, dcode), decoder = pull_decoder((dh, None))
    (dsource, _), encoder = pull_encoder((None, dcode))
    more = recurrence_terms(len(source), record["N"], record["I"], record["H"]) + record["H"] + logits.shape[-1]
    hold_loss(record, loss, dtype, more)
    names = {"Wx": "weight_ih", "Wh": "weight_hh", "bx": "bias_ih", "bh": "bias_hh"}
    found = {"enc_last": code, "logits": logits, "g_Wo": head["weight"], "g_bo": head["bias"]}
    found |= {"g_Esrc": pull_source(dsource)[1]["weight"], "g_Etgt": pull_target(dtarget)[1]["weight"]}
    found |= {f"g_enc_{short}": encoder[name] for short, name in names.items()}
    hold(record, a, found | {f"g_dec_{short}": decoder[name] for short, name in names.items()}, more)
