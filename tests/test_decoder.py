"""Decoders, compared with PyTorch's, with central differences, and between the ways of computing them."""

import functools

import golden
import numpy as np
import pytest
from allocations import most_bytes
from strict_wing import plain, strict
from tolerance import assert_all_close, assert_golden, assert_same, check_gradients, recurrence_terms

import gpurnn
from gpurnn.layers import Decoder

# All combinations of options are drawn, including those without effect.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")

TORCH_GRU = {"reset_after": True, "update": "state"}
RECURRENT = {"rnn": gpurnn.RNN, "lstm": gpurnn.LSTM, "gru": gpurnn.GRU}

KINDS = {
    "plain": {},
    "additive": {"attention": "additive"},
    "general": {"attention": "general"},
    "dot": {"attention": "dot"},
    "general-fed": {"attention": "general", "input_feeding": True},
    "dot-fed": {"attention": "dot", "input_feeding": True},
}


def loaded(layer, values):
    """The layer with some parameters replaced by arrays, of any shape that fits the others."""
    own = layer._own if isinstance(layer, Decoder) else layer.params
    for name, value in values.items():
        (layer.recurrent.params if name in layer.recurrent.params else own)[name] = value
    return layer


def hold(record, a, found):
    assert {name for name in found if name.startswith("g_")} == {name for name in a if name.startswith("g_")}
    terms = recurrence_terms(record["T"], record["N"], record["I"] + 12, record["H"] + 12, 4)
    for name, value in found.items():
        assert_golden(value, a[name], terms, name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("number", range(10))
def test_bahdanau(number, dtype, each_wing):
    record = golden.family("custom", "bahdanau")[number]
    a = golden.arrays("custom", record["name"], dtype)
    enc = np.ascontiguousarray(a["enc"].transpose(1, 0, 2))
    (K, H), I = (enc.shape[2], a["s0"].shape[1]), a["y_in"].shape[2]
    gru = gpurnn.GRU(I + K, H, dtype=dtype, **TORCH_GRU)
    decoder = loaded(
        Decoder(gru, "additive", memory_size=K, attention_size=len(a["v"])),
        {
            "weight_ih_l0": a["Wx"], "weight_hh_l0": a["Wh"], "bias_ih_l0": a["bx"], "bias_hh_l0": a["bh"],
            "weight_query": a["Wa"], "weight_keys": a["Ua"], "v": a["v"],
        },
    )  # fmt: skip
    (read, align, s), pull = decoder.vjp(a["y_in"], enc, a["s0"][None], a["src_len"])
    logits, head = gpurnn.dense.vjp(read, a["Wo"], a["bo"])
    dread, g_head = head(a["ct_logits"])
    (dx, denc, ds), g = pull((dread, a["ct_align"], a["ct_sT"][None]))
    hold(record, a, {
        "logits": logits, "align": align, "sT": s[0], "g_enc": denc.transpose(1, 0, 2), "g_y_in": dx, "g_s0": ds[0],
        "g_Wx": g["weight_ih_l0"], "g_Wh": g["weight_hh_l0"], "g_bx": g["bias_ih_l0"], "g_bh": g["bias_hh_l0"],
        "g_Wa": g["weight_query"], "g_Ua": g["weight_keys"], "g_v": g["v"], "g_Wo": g_head["weight"],
        "g_bo": g_head["bias"],
    })  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("family", ["luong_general", "luong_dot", "luong_general_feed"])
@pytest.mark.parametrize("number", range(10))
def test_luong(family, number, dtype, each_wing):
    record = golden.family("custom", family)[number]
    a = golden.arrays("custom", record["name"], dtype)
    enc = np.ascontiguousarray(a["enc"].transpose(1, 0, 2))
    (K, H), I, C = (enc.shape[2], a["s0"].shape[1]), a["y_in"].shape[2], len(a["Wc"])
    fed = family.endswith("feed")
    decoder = Decoder(
        gpurnn.LSTM(I + (C if fed else 0), H, dtype=dtype), family.split("_")[1],
        memory_size=K, attentional_size=C, input_feeding=fed,
    )  # fmt: skip
    weights = {"weight_ih_l0": a["Wx"], "weight_hh_l0": a["Wh"], "bias_ih_l0": a["b"], "weight_combine": a["Wc"]}
    weights |= {"weight": a["Wa"]} if "Wa" in a else {}
    loaded(decoder, {**weights, "bias_hh_l0": np.zeros_like(a["b"])})
    state = (a["s0"][None], a["c0"][None])
    (read, align, (s, _)), pull = decoder.vjp(a["y_in"], enc, state, a["src_len"])
    logits, head = gpurnn.dense.vjp(read, a["Ws"])
    dread, g_head = head(a["ct_logits"])
    (dx, denc, (ds, dc)), g = pull((dread, a["ct_align"], (a["ct_sT"][None], None)))
    hold(record, a, {
        "logits": logits, "align": align, "sT": s[0], "g_enc": denc.transpose(1, 0, 2), "g_y_in": dx, "g_s0": ds[0],
        "g_c0": dc[0], "g_Wx": g["weight_ih_l0"], "g_Wh": g["weight_hh_l0"], "g_b": g["bias_ih_l0"],
        "g_Wc": g["weight_combine"], "g_Ws": g_head["weight"],
    } | ({"g_Wa": g["weight"]} if "Wa" in a else {}))  # fmt: skip


def problem(
    kind, cell="gru", layers=1, T=3, B=2, S=4, I=2, H=3, K=3, dtype="float64", dropout=0.0, bias=True, **of_cell
):
    """A decoder, and x, memory, state and lengths for it."""
    rng = np.random.default_rng(7)
    options = KINDS[kind]
    extra = K if kind == "additive" else H if options.get("input_feeding") else 0
    recurrent = RECURRENT[cell](I + extra, H, layers, bias, dropout=dropout, dtype=dtype, rng=rng, **of_cell)
    decoder = Decoder(recurrent, **options, **({"memory_size": K} if options else {}), rng=rng)
    for p in decoder.params.values():
        p[...] = rng.normal(size=p.shape) / 2
    x = rng.normal(size=(T, B, I)).astype(dtype)
    memory = rng.normal(size=(S, B, K)).astype(dtype) if options else None
    state = rng.normal(size=(layers, B, H)).astype(dtype)
    if cell == "lstm":
        state = (state, rng.normal(size=(layers, B, H)).astype(dtype))
    lengths = np.array([S, 2] + [S] * (B - 2))[:B] if options else None
    return decoder, x, memory, state, lengths


def flat(outputs):
    return [a for o in outputs if o is not None for a in (o if isinstance(o, tuple) else (o,))]


@pytest.mark.parametrize("rng", [None, 3], ids=["evaluation", "dropout"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", RECURRENT)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, cell, layers, rng):
    check(cell, rng, *problem(kind, cell, layers, dropout=0.5 if rng is not None else 0.0))


OF_CELLS = {
    "rnn": {"layer_norm": True, "zoneout": 0.3, "clip": 50.0},
    "gru": {"layer_norm": True, "zoneout": 0.3},
    "lstm": {"layer_norm": True, "peephole": True, "zoneout": (0.3, 0.2), "candidate_dropout": 0.4},
}


@pytest.mark.parametrize("cell", OF_CELLS)
@pytest.mark.parametrize("kind", ["additive", "general-fed"])
def test_gradients_with_options_of_the_cell(kind, cell):
    check(cell, 3, *problem(kind, cell, 2, B=3, H=5, K=5, **OF_CELLS[cell]))


@pytest.mark.parametrize("cell", OF_CELLS)
def test_steps_with_options_of_the_cell_are_those_of_its_layer(cell, each_wing):
    decoder, x, _, state, _ = problem("plain", cell, 2, **OF_CELLS[cell])
    y, _, final = decoder(x, None, state)
    carried = decoder.begin(None, state)
    for t in range(len(x)):
        output, _, carried = decoder.step(x[t], carried)
        assert_all_close(output, y[t], recurrence_terms(3, 2, 8, 8, 4))
    arrays = tuple(np.stack(s) for s in zip(*carried.state, strict=True))
    assert_all_close(arrays, final if cell == "lstm" else (final,), recurrence_terms(3, 2, 8, 8, 4))


def check(cell, rng, decoder, x, memory, state, lengths):
    states = state if cell == "lstm" else (state,)
    inputs = {**decoder.params, "x": x, **{f"state{i}": s for i, s in enumerate(states)}}
    if memory is not None:
        inputs["memory"] = memory

    def run(values):
        for name, p in decoder.params.items():
            p[...] = values[name]
        given = tuple(values[f"state{i}"] for i in range(len(states)))
        return decoder.vjp(
            values["x"], values.get("memory"), given if cell == "lstm" else given[0], lengths, rng
        )  # fmt: skip

    outputs, pull = run({name: value.copy() for name, value in inputs.items()})
    draw = np.random.default_rng(5)
    cotangents = [draw.normal(size=o.shape) for o in flat(outputs)]
    n = 2 if memory is not None else 1
    dstate = tuple(cotangents[n:]) if cell == "lstm" else cotangents[n]
    given = (cotangents[0], cotangents[1] if memory is not None else None, dstate)
    (dx, dmemory, dstate0), grads = pull(given)
    assert_same(pull(given), ((dx, dmemory, dstate0), grads))
    found = {**grads, "x": dx, **{f"state{i}": d for i, d in enumerate(dstate0 if cell == "lstm" else (dstate0,))}}
    if memory is not None:
        found["memory"] = dmemory
    values = {name: value.copy() for name, value in inputs.items()}
    check_gradients(lambda v: flat(run(v)[0]), values, cotangents, found, seed=1)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_is_its_steps_and_what_vjp_returns(kind, layers, each_wing):
    decoder, x, memory, state, lengths = problem(kind, "lstm", layers)
    whole = decoder(x, memory, state, lengths)
    terms = recurrence_terms(3, 2, 8, 8, 4)
    assert_all_close(decoder.vjp(x, memory, state, lengths)[0], whole, terms)
    carried = decoder.begin(memory, state, lengths)
    for t in range(len(x)):
        output, weights, carried = decoder.step(x[t], carried)
        assert_all_close(output, whole[0][t], terms)
        if kind != "plain":
            assert_all_close(weights, whole[1][t], terms)
    assert_all_close(tuple(np.stack(s) for s in zip(*carried.state, strict=True)), whole[2], terms)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "plain"])
def test_memory_past_a_length_is_not_read(kind):
    decoder, x, memory, state, lengths = problem(kind)
    (output, weights, final), pull = decoder.vjp(x, memory, state, lengths)
    # Copy it, as the first pullback holds the array itself.
    memory = memory.copy()
    memory[2:, 1] = np.nan
    (other, alpha, last), pull_other = decoder.vjp(x, memory, state, lengths)
    assert_same((other, alpha, last), (output, weights, final))
    assert not weights[:, 1, 2:].any()
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-12)
    assert_same(pull_other((output, None, None)), pull((output, None, None)))
    assert_same(decoder(x, memory, state, lengths)[1], weights)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_stand_in_two_places(kind, each_wing):
    (tied, x, memory, state, _), (apart, *_) = problem(kind, layers=2), problem(kind, layers=2)
    for decoder in (tied, apart):
        held = decoder.recurrent.params
        for name, first in (("bias_hh_l0", "bias_ih_l0"), ("weight_hh_l1", "weight_hh_l0")):
            held[name] = held[first] if decoder is tied else held[first].copy()
    found, pull = tied.vjp(x, memory, state)
    expected, pull_apart = apart.vjp(x, memory, state)
    assert_same(found, expected)
    assert_same(tied(x, memory, state), apart(x, memory, state))
    steps = [decoder.step(x[0], decoder.begin(memory, state, batch=2)) for decoder in (tied, apart)]
    assert_same(steps[0][0], steps[1][0])
    cotangents = np.ones_like(found[0]), None, None
    (_, grads), (_, of_places) = pull(cotangents), pull_apart(cotangents)
    assert set(grads) == set(tied.params)
    assert_same(grads["bias_ih_l0"], of_places["bias_ih_l0"] + of_places["bias_hh_l0"])
    assert_same(grads["weight_hh_l0"], of_places["weight_hh_l0"] + of_places["weight_hh_l1"])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_choose_what_goes_on(kind):
    decoder, x, memory, state, lengths = problem(kind, "lstm")
    _, _, carried = decoder.step(x[0], decoder.begin(memory, state, lengths))
    chosen = np.array([1, 1, 0])
    several = decoder.step(x[1][chosen], carried.rows(chosen))
    once = decoder.step(x[1], carried)
    assert_all_close(several[0], once[0][chosen], 40)
    if kind != "plain":
        assert_all_close(several[1], once[1][chosen], 40)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_on_strict_arrays(kind, bias, strict_namespace):
    decoder, x, memory, state, lengths = problem(kind, "gru", 2, dropout=0.25, bias=bias)
    moved = decoder.to(strict_namespace)
    given = [strict(a) for a in (x, memory, state, lengths)]
    outputs, pull = decoder.vjp(x, memory, state, lengths, 3)
    others, pull_moved = moved.vjp(*given, 3)
    assert_same(plain(others), outputs)
    gradients = pull((outputs[0], outputs[1], outputs[2]))
    assert_same(plain(pull_moved(strict((outputs[0], outputs[1], outputs[2])))), gradients)
    assert set(gradients[1]) == set(decoder.params)
    assert_same(plain(moved(*given)), decoder(x, memory, state, lengths))
    turned = np.array([1, 0])
    output, _, _ = moved.step(strict(x[0][turned]), moved.begin(*given[1:]).rows(strict(turned)))
    assert_all_close(plain(output)[turned], decoder(x, memory, state, lengths)[0][0], 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "cosine"}, "attention is 'cosine', expected one of None, 'dot', 'general', 'additive'"),
        ({"memory_size": 3}, "memory_size is 3, expected None with attention=None"),
        ({"attention": "dot", "memory_size": 3, "attention_size": 2}, "attention_size is 2, expected None with"),
        ({"attention": "additive", "memory_size": 1, "input_feeding": True}, "input_feeding is True, expected False"),
        ({"attention": "additive"}, "memory_size is None"),
        ({"attention": "dot", "memory_size": 5}, "memory_size is 5, expected hidden_size = 4"),
        ({"attention": "additive", "memory_size": 5}, "recurrent has input_size 3, expected more than the 5"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=f"^Decoder: {message}"):
        Decoder(gpurnn.GRU(3, 4), **options)


def test_stacks_that_are_refused():
    for options in ({"bidirectional": True}, {"batch_first": True}, {"variational_dropout": 0.5}):
        with pytest.raises(ValueError, match=f"recurrent has {next(iter(options))}=.*which a decoder lacks"):
            Decoder(gpurnn.GRU(3, 4, **options))
    with pytest.raises(ValueError, match="Decoder: recurrent has proj_size=2, expected 0"):
        Decoder(gpurnn.LSTM(3, 4, proj_size=2))
    with pytest.raises(TypeError, match="recurrent is a Dense, expected an RNN, LSTM or GRU"):
        Decoder(gpurnn.Dense(3, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((3, 2, 9))}, r"x has shape \(3, 2, 9\), expected at least one step of input_size = 2"),
        ({"x": np.zeros((0, 2, 2))}, r"x has shape \(0, 2, 2\), expected at least one step"),
        ({"x": np.zeros((3, 2, 2), np.float32)}, "float32"),
        ({"memory": None}, "memory is None"),
        ({"memory": np.zeros((4, 3, 3))}, r"memory has shape \(4, 3, 3\), expected \(S, B, memory_size\)"),
        ({"state": np.zeros((1, 3, 3))}, r"state has shape \(1, 3, 3\), expected \(num_layers.*, B, hidden_size\)"),
        ({"lengths": np.array([9, 0])}, "lengths holds 0 ... 9"),
        ({"lengths": np.array([4])}, r"lengths has shape \(1,\), expected \(B,\) = \(2,\)"),
        ({"lengths": np.array([4.0, 2.0])}, "lengths has dtype float64, expected an integer dtype"),
    ],
)
@pytest.mark.parametrize("kind", ["additive", "general", "general-fed"])
def test_arguments_that_are_refused(kind, change, message):
    decoder, x, memory, state, lengths = problem(kind)
    arguments = {"x": x, "memory": memory, "state": state, "lengths": lengths, **change}
    for call in (decoder, decoder.vjp):
        with pytest.raises((TypeError, ValueError), match=message):
            call(**arguments)
    plain, x, *_ = problem("plain")
    with pytest.raises(ValueError, match="memory is given, expected None without attention"):
        plain(x, memory)
    with pytest.raises(ValueError, match="lengths is given, expected None without attention"):
        plain(x, lengths=lengths)


@pytest.mark.parametrize("kind", ["additive", "general", "general-fed"])
def test_steps_that_are_refused(kind):
    decoder, x, memory, state, lengths = problem(kind)
    for arguments, message in (
        ((None,), "memory is None"),
        ((memory[..., :2],), r"memory has shape \(4, 2, 2\), expected \(S, B, memory_size\) = \(S, 2, 3\)"),
        ((memory.astype("float32"),), "memory has dtype float32"),
        ((memory, state[:, :1]), r"state has shape \(1, 1, 3\)"),
        ((memory, state, lengths[:1]), r"lengths has shape \(1,\), expected \(B,\) = \(2,\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^Decoder: {message}"):
            decoder.begin(*arguments)
    carried = decoder.begin(memory, state, lengths)
    for wrong, message in (
        (None, "x is None"),
        (x[0][:1], r"x has shape \(1, 2\), expected \(B, input_size\) = \(2, 2\)"),
        (x[0][:, :1], r"x has shape \(2, 1\), expected \(B, input_size\)"),
        (x[0].astype("float32"), "x has dtype float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^Decoder: {message}"):
            decoder.step(wrong, carried)


@pytest.mark.parametrize("attention", ["additive", "general"])
def test_the_way_back_keeps_no_gradient_of_the_memory_for_each_step(attention):
    memory = np.random.default_rng(0).normal(size=(100, 8, 32)).astype(np.float32)
    decoder = Decoder(gpurnn.GRU(4 + 32, 32), attention, memory_size=32, input_feeding=attention != "additive")
    peaks = []
    for T in (20, 80):
        (output, _, _), pullback = decoder.vjp(np.ones((T, 8, 4), np.float32), memory)
        cotangents = np.ones_like(output), None, None
        peaks.append(most_bytes(functools.partial(pullback, cotangents)))
    assert peaks[1] - peaks[0] < 20 * memory.nbytes
