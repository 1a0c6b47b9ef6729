"""Models of sequences: PyTorch's numbers and their own definition, on padded batches, as learners and as files."""

import json
from functools import partial

import numpy as np
import pytest
import strict_wing
from golden import arrays, family
from parity import assign
from problems import pairwise
from strict_wing import plain, strict
from tolerance import assert_all_close, assert_close, assert_golden, assert_same, check_gradients, recurrence_terms

import gpurnn
from gpurnn.models import SequenceClassifier, SequenceRegressor, SequenceTagger, load

# All combinations of options are drawn, including those without effect.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")

TORCH_GRU = {"cell": "gru", "reset_after": True, "update": "state"}
T, B, I, H, O = 5, 4, 3, 4, 2
LENGTHS = np.array([5, 1, 0, 3])


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# The three kinds, with an output for each sequence or for each step.
KINDS = {
    "classifier": (SequenceClassifier, {}),
    "tagger": (SequenceTagger, {}),
    "regressor": (SequenceRegressor, {"output_activation": "tanh"}),
    "regressor of steps": (SequenceRegressor, {"output_activation": "sigmoid", "pooling": None}),
}


def build(kind, pooling="last", dtype="float64", rng=3, **options):
    model_class, own = KINDS[kind]
    if kind in ("classifier", "regressor"):
        own = {**own, "pooling": pooling}
    model = model_class(I, H, O, dtype=dtype, rng=rng, **own, **options)
    # The parameters a fit would set: without a fit, a model gives no answers.
    model.params["output.bias"][...] = np.random.default_rng(rng).uniform(-0.1, 0.1, O)
    return model


def batch(model, seed=0, dtype="float64", t=T, b=B):
    """Inputs and targets that fit a model."""
    rng = np.random.default_rng(seed)
    if model.embedding is None:
        inputs = rng.standard_normal((t, b, I)).astype(dtype)
    else:
        inputs = rng.integers(model.embedding.num_embeddings, size=(t, b))
    lead = (b,) if model.pooling is not None else (t, b)
    if isinstance(model, SequenceRegressor):
        return inputs, rng.standard_normal((*lead, O)).astype(dtype)
    return inputs, rng.integers(O, size=lead)


def of(record, dtype, **more):
    return arrays("custom", record["name"], dtype), recurrence_terms(
        record["T"], record["N"], record["I"], record["H"]
    ) + sum(more.values())


DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


def each(name):
    return pytest.mark.parametrize("record", family("custom", name), ids=lambda r: r["name"])


@pytest.mark.usefixtures("each_wing")
@DTYPES
@each("classifier_last_valid")
def test_golden_classifier(record, dtype):
    a, terms = of(record, dtype, head=record["H"] + record["V"])
    classes, hidden = a["Wo"].shape
    model = SequenceClassifier(record["I"], hidden, classes, dtype=dtype, **TORCH_GRU)
    assign(
        model,
        {
            "recurrent.weight_ih_l0": a["Wx"],
            "recurrent.weight_hh_l0": a["Wh"],
            "recurrent.bias_ih_l0": a["bx"],
            "recurrent.bias_hh_l0": a["bh"],
            "output.weight": a["Wo"],
            "output.bias": a["bo"],
        },
    )
    logits, _ = model(a["x"], None, a["lengths"])
    assert_golden(logits, a["logits"], terms, "logits")
    loss, _, grads = model.loss_and_gradients(a["x"], a["labels"], None, a["lengths"])
    assert_golden(np.asarray(loss), np.asarray(record["loss"]).astype(dtype), terms, "loss")
    assert_same(model.loss(a["x"], a["labels"], None, a["lengths"])[0], loss)
    (logits, _), pullback = model.vjp(a["x"], None, a["lengths"])
    dlogits, _ = gpurnn.cross_entropy.vjp(logits, a["labels"])[1](1.0)
    (dx, _), same = pullback((dlogits, None))
    assert_same(same, grads)
    theirs = dict(zip(model.params, ("g_Wx", "g_Wh", "g_bx", "g_bh", "g_Wo", "g_bo"), strict=True))
    for name, golden in theirs.items():
        assert_golden(grads[name], a[golden], terms, name)
    assert_golden(dx, a["g_x"], terms, "g_x")
    sequences = [a["x"][:length, b] for b, length in enumerate(a["lengths"])]
    assert_same(model.predict(sequences), a["logits"].argmax(axis=-1))


def identity_head(model, directions=1):
    """Parameters that make the output the sum of the directions' states."""
    hidden, dtype = model.output.out_features, model.output.params["weight"].dtype
    return {
        "output.weight": np.concatenate([np.eye(hidden, dtype=dtype)] * directions, axis=1),
        "output.bias": np.zeros(hidden, dtype),
    }


@pytest.mark.usefixtures("each_wing")
@DTYPES
@each("rnn_skip")
def test_golden_regressor_of_steps(record, dtype):
    a, terms = of(record, dtype, head=record["H"])
    model = SequenceRegressor(
        record["I"], record["H"], record["H"], cell="rnn", leak=record["scalars"]["alpha"], pooling=None, dtype=dtype
    )
    assign(
        model,
        {
            "recurrent.weight_ih_l0": a["Wxh"],
            "recurrent.weight_hh_l0": a["Whh"],
            "recurrent.bias_ih_l0": a["b"],
            "recurrent.bias_hh_l0": np.zeros_like(a["b"]),
            **identity_head(model),
        },
    )
    (y, _), pullback = model.vjp(a["x"], a["h0"][None])
    (dx, dh0), grads = pullback((a["ct_y"], None))
    found = {"y": y, "g_x": dx, "g_h0": dh0[0], "g_Wxh": grads["recurrent.weight_ih_l0"]}
    found |= {"g_Whh": grads["recurrent.weight_hh_l0"], "g_b": grads["recurrent.bias_ih_l0"]}
    for name, value in found.items():
        assert_golden(value, a[name], terms, name)


@pytest.mark.usefixtures("each_wing")
@DTYPES
@each("birnn_sum")
def test_golden_sum_of_both_directions(record, dtype):
    a, terms = of(record, dtype, head=2 * record["H"])
    model = SequenceRegressor(
        record["I"], record["H"], record["H"], cell="rnn", bidirectional=True, pooling=None, dtype=dtype
    )
    names = {
        "weight_ih_l0": "Wxh_f", "weight_hh_l0": "Whh_f", "bias_ih_l0": "b_f",
        "weight_ih_l0_reverse": "Wxh_b", "weight_hh_l0_reverse": "Whh_b", "bias_ih_l0_reverse": "b_b",
    }  # fmt: skip
    zero = np.zeros(record["H"], dtype)
    state = {f"recurrent.{ours}": a[theirs] for ours, theirs in names.items()}
    state |= {"recurrent.bias_hh_l0": zero, "recurrent.bias_hh_l0_reverse": zero, **identity_head(model, 2)}
    assign(model, state)
    (y, _), pullback = model.vjp(a["x"], np.stack([a["h0"], a["h0_b"]]))
    (dx, dstate), grads = pullback((a["ct_y"], None))
    found = {"y": y, "g_x": dx, "g_h0": dstate[0], "g_h0_b": dstate[1]}
    found |= {f"g_{theirs}": grads[f"recurrent.{ours}"] for ours, theirs in names.items()}
    for name, value in found.items():
        assert_golden(value, a[name], terms, name)


CHOICES = pairwise(
    {
        "kind": list(KINDS),
        "pooling": ["last", "mean", "attention"],
        "cell": ["gru", "lstm", "rnn"],
        "bidirectional": [False, True],
        "num_layers": [1, 2],
        "residual": [False, True],
        "num_embeddings": [None, 6],
        "dropout": [0.0, 0.4],
        "lengths": [True, False],
    }
)


def options_of(choice):
    return {name: value for name, value in choice.items() if name not in ("kind", "lengths", "pooling")}


def gradients_hold(choice):
    model = build(choice["kind"], choice["pooling"], **options_of(choice))
    inputs, _ = batch(model)
    lengths = LENGTHS if choice["lengths"] else None
    if lengths is not None and model.embedding is None:
        inputs[np.arange(T)[:, None] >= lengths] = np.nan
    rng = 5 if choice["dropout"] else None
    (y, final), _ = model.vjp(inputs, None, lengths, rng)
    pair = isinstance(final, tuple)
    draw = np.random.default_rng(1)
    start = {f"s{i}": draw.standard_normal(s.shape) for i, s in enumerate(final if pair else (final,))}
    weights = [draw.standard_normal(y.shape), *(draw.standard_normal(s.shape) for s in start.values())]
    if model.pooling is None and lengths is not None:
        weights[0][np.arange(T)[:, None] >= lengths] = 0

    def run(values):
        moved = build(choice["kind"], choice["pooling"], **options_of(choice))
        assign(moved, {name: values[name] for name in moved.params})
        h = tuple(values[name] for name in start)
        return moved.vjp(values.get("x", inputs), h if pair else h[0], lengths, rng)

    def outputs(values):
        (y, s), _ = run(values)
        return [y, *(s if pair else (s,))]

    values = {**model.params, **start, **({} if model.embedding else {"x": inputs})}
    _, pullback = run(values)
    cotangents = (weights[0], tuple(weights[1:]) if pair else weights[1])
    (dx, dstate), grads = pullback(cotangents)
    assert grads.keys() == model.params.keys()
    found = {**grads, **dict(zip(start, dstate if pair else (dstate,), strict=True))}
    if model.embedding:
        assert dx is None
    else:
        found["x"] = dx
    check_gradients(outputs, values, weights, found, seed=2)
    assert_same(pullback(cotangents), ((dx, dstate), grads))


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: "-".join(map(str, c.values())))
def test_gradients_against_central_differences(choice):
    gradients_hold(choice)


@pytest.mark.kernels
@pytest.mark.parametrize("choice", CHOICES[1:7:2], ids=lambda c: "-".join(map(str, c.values())))
def test_gradients_against_central_differences_on_kernels(choice):
    with gpurnn.use("host"):
        gradients_hold(choice)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: "-".join(map(str, c.values())))
def test_gradients_of_the_loss(choice):
    options = options_of(choice)
    model = build(choice["kind"], choice["pooling"], **options)
    inputs, targets = batch(model)
    lengths = LENGTHS if choice["lengths"] else None
    rng = 5 if choice["dropout"] else None
    loss, _, grads = model.loss_and_gradients(inputs, targets, None, lengths, rng=rng)

    def outputs(values):
        moved = build(choice["kind"], choice["pooling"], **options)
        assign(moved, values)
        return [moved.loss_and_gradients(inputs, targets, None, lengths, rng=rng)[0]]

    check_gradients(outputs, dict(model.params), [np.ones(())], grads, seed=1)
    evaluated, _ = model.loss(inputs, targets, None, lengths)
    assert (evaluated == loss) == (rng is None)


@pytest.mark.kernels
@pytest.mark.parametrize("choice", CHOICES[::4], ids=lambda c: "-".join(map(str, c.values())))
def test_the_wings_agree(choice):
    model = build(choice["kind"], choice["pooling"], **options_of(choice))
    inputs, targets = batch(model)
    found = {}
    for wing in ("reference", "host"):
        with gpurnn.use(wing):
            found[wing] = model.loss_and_gradients(inputs, targets, None, LENGTHS, rng=1)
    loss, state, grads = found["host"]
    expected_loss, expected_state, expected = found["reference"]
    terms = recurrence_terms(T, B, H, 2 * H, 2) + T * B
    assert_all_close((np.asarray(loss), state), (np.asarray(expected_loss), expected_state), terms)
    magnitude = max(float(np.abs(g).max()) for g in expected.values())
    for name, gradient in grads.items():
        assert_close(gradient, expected[name], terms, name, magnitude=magnitude)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_pooling_is_what_it_says(pooling, residual, bidirectional):
    model = SequenceRegressor(
        I, H, O, 2, pooling=pooling, residual=residual, bidirectional=bidirectional, output_activation="relu",
        dtype="float64",
    )  # fmt: skip
    for name, p in model.params.items():
        p += 0.3 * normal(*p.shape, seed=len(name))
    x, p = normal(T, B, I), model.params
    found, _ = model(x, None, LENGTHS)
    for b, length in enumerate(LENGTHS):
        h, _ = model.recurrent(x[:length, b : b + 1])
        h = h[:, 0]
        if length == 0:
            pooled = np.zeros(h.shape[1])
        elif pooling == "last":
            pooled = np.concatenate([h[-1, :H], h[0, H:]])
        elif pooling == "mean":
            pooled = h.mean(axis=0)
        else:
            scores = np.tanh(h @ p["pooling.weight"].T + p["pooling.bias"]) @ p["pooling.query"]
            pooled = np.exp(scores) @ h / np.exp(scores).sum()
        y = np.maximum(p["output.weight"] @ pooled + p["output.bias"], 0)
        assert_close(found[b], y, recurrence_terms(T, 1, I, H, 2), f"row {b}")


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
@pytest.mark.parametrize("pooling", ["last", None])
def test_the_loss_is_the_one_of_its_name(loss, pooling):
    model = SequenceRegressor(I, H, O, pooling=pooling, loss=loss, dtype="float64")
    inputs, targets = batch(model)
    y, _ = model(inputs, None, LENGTHS)
    counts = np.full(B, True) if pooling else np.arange(T)[:, None] < LENGTHS
    errors = np.abs(y - targets)[counts]
    each = {"mse": errors**2, "l1": errors, "huber": np.where(errors <= 1, errors**2 / 2, errors - 0.5)}[loss]
    assert_close(np.asarray(model.loss(inputs, targets, None, LENGTHS)[0]), np.asarray(each.mean()), T * B * O)
    assert model.config()["loss"] == loss
    found = model.loss_and_gradients(inputs, targets, None, LENGTHS)

    def outputs(values):
        moved = SequenceRegressor(I, H, O, pooling=pooling, loss=loss, dtype="float64")
        assign(moved, values)
        return [moved.loss(inputs, targets, None, LENGTHS)[0]]

    check_gradients(outputs, dict(model.params), [np.ones(())], found[2], seed=1)


def test_the_last_state_is_the_recurrent_stacks_final_state():
    for bidirectional in (False, True):
        model = build("classifier", bidirectional=bidirectional, num_layers=2, cell="lstm")
        logits, (h, _) = model(normal(T, B, I), None, LENGTHS)
        last = np.concatenate(h[2:], axis=1) if bidirectional else h[1]
        assert_same(logits, model.output(last))


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_not_read_and_rows_keep_to_themselves(each_wing, kind, pooling):
    model = build(kind, pooling, bidirectional=True)
    inputs, targets = batch(model)
    past = np.arange(T)[:, None] >= LENGTHS
    loss, state, grads = model.loss_and_gradients(inputs, targets, None, LENGTHS)
    assert all(np.isfinite(g).all() for g in grads.values())

    junk = np.concatenate([np.where(past[..., None], np.nan, inputs), np.full((2, B, I), np.nan)])
    if model.pooling is None:
        pad = np.zeros((2, *targets.shape[1:]), targets.dtype)
        targets_junk = np.concatenate(
            [np.where(past.reshape(past.shape + (1,) * (targets.ndim - 2)), -9, targets), pad]
        )
    else:
        targets_junk = targets
    again, state_again, grads_again = model.loss_and_gradients(junk, targets_junk, None, LENGTHS)
    terms = recurrence_terms(T + 2, B, I, 2 * H)
    assert_close(np.asarray(again), np.asarray(loss), terms)
    assert_all_close(state_again, state, terms)
    magnitude = max(float(np.abs(g).max()) for g in grads.values())
    assert_all_close(grads_again, grads, terms, magnitude)

    order = np.array([2, 0, 3, 1])
    axis = 0 if model.pooling is not None else 1
    y, _ = model(inputs, None, LENGTHS)
    permuted, _ = model(inputs[:, order], None, LENGTHS[order])
    if model.pooling is None:
        y, permuted = np.where(past[..., None], 0, y), np.where(past[:, order, None], 0, permuted)
    assert_close(permuted, np.take(y, order, axis=axis), terms)
    moved, _, grads_moved = model.loss_and_gradients(
        inputs[:, order], np.take(targets, order, axis=axis), None, LENGTHS[order]
    )
    assert_close(np.asarray(moved), np.asarray(loss), terms)
    assert_all_close(grads_moved, grads, terms, magnitude)


def test_dropout_acts_in_three_places_and_only_with_an_rng():
    plain_model, dropped = (build("classifier", num_embeddings=6, num_layers=2, dropout=rate) for rate in (0.0, 0.5))
    tokens = np.array([[2]])
    assert_same(dropped(tokens), plain_model(tokens))
    assert_same(dropped.vjp(tokens)[0], plain_model.vjp(tokens)[0])
    wide = SequenceClassifier(16, 16, 2, 2, num_embeddings=6, dropout=0.5)
    (y, _), pullback = wide.vjp(tokens, rng=1)
    _, grads = pullback((np.ones_like(y), None))
    before = grads["embedding.weight"][2] == 0
    between = np.all(grads["recurrent.weight_ih_l1"] == 0, axis=0)
    after = np.all(grads["output.weight"] == 0, axis=0)
    for zeros in (before, between, after):
        assert 0 < zeros.sum() < len(zeros)


@pytest.mark.parametrize("num_embeddings", [None, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_each_example_alone_in_the_order_given(kind, num_embeddings):
    model = build(kind, num_embeddings=num_embeddings, bidirectional=True)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 8, 13)
    examples = [batch(model, seed=i, t=n, b=1)[0][:, 0] for i, n in enumerate(lengths)]
    alone = [model(example[:, None])[0] for example in examples]
    alone = [y[0] if model.pooling is not None else y[:, 0] for y in alone]
    terms = recurrence_terms(8, 1, I, 2 * H)
    regressor = isinstance(model, SequenceRegressor)
    method = model.predict if regressor else model.predict_proba
    if not regressor:
        alone = [np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True) for y in alone]
    for batch_size in (1, 5, 100):
        found = method(examples, batch_size=batch_size)
        assert isinstance(found, list) == (model.pooling is None)
        assert len(found) == 13
        for one, other in zip(found, alone, strict=True):
            assert_close(one, other, terms)
        if not regressor:
            classes = model.predict(examples, batch_size=batch_size)
            for one, other in zip(classes, alone, strict=True):
                assert_same(np.asarray(one), other.argmax(axis=-1))
    same = [example[:1] for example in examples]
    whole = method(np.stack(same))
    for one, other in zip(whole, method(same), strict=True):
        assert_same(one, other)


def test_probabilities_of_large_logits_do_not_overflow():
    model = build("classifier")
    model.output.params["bias"][...] = (1000.0, -1000.0)
    assert_same(model.predict_proba(normal(1, T, I)), np.array([[1.0, 0.0]]))


def test_accuracy_counts_examples_or_steps():
    model = build("classifier")
    x = normal(6, T, I)
    right = model.predict(x)
    wrong = right.copy()
    wrong[:2] = 1 - wrong[:2]
    assert model.score(x, right) == model.score(list(x), right.tolist()) == 1
    assert model.score(x, wrong) == model.score(x, list(wrong)) == pytest.approx(4 / 6)
    tagger = build("tagger")
    sequences = [x[0], x[1, :2], x[2, :1]]
    tags = tagger.predict(sequences)
    assert tagger.score(sequences, tags) == 1
    tags[0] = 1 - tags[0]
    assert tagger.score(sequences, tags) == pytest.approx(3 / 8)


def test_classifier_learns_the_sign_of_a_sum():
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(n, 2)).astype("float32") for n in rng.integers(1, 12, 600)]
    # One label in ten is wrong, only in training.
    classes = np.array([int(s[:, 0].sum() > 0) for s in sequences])
    noisy = np.where(rng.random(600) < 0.1, 1 - classes, classes)
    for options in ({"pooling": "mean", "cell": "rnn"}, {"pooling": "attention", "bidirectional": True}):
        model = SequenceClassifier(2, 12, 2, **options)
        trainer = model.fit(
            sequences[:400], noisy[:400], epochs=15, optimizer=gpurnn.Adam(0.01), rng=1,
            validation=(sequences[400:], classes[400:]),
        ).trainer_  # fmt: skip
        assert model.score(sequences[400:], classes[400:]) > 0.92
        assert sum("validation_loss" in record for record in trainer.history) == 15


def test_tagger_learns_parity():
    rng = np.random.default_rng(0)
    bits = [rng.integers(2, size=n) for n in rng.integers(1, 9, 300)]
    parity = [b.cumsum() % 2 for b in bits]
    model = SequenceTagger(4, 12, 2, cell="lstm", num_embeddings=2)
    model.fit(bits[:200], parity[:200], epochs=25, optimizer=gpurnn.Adam(0.02))
    assert model.score(bits[200:], parity[200:]) == 1
    # What the model learnt holds for sequences four times as long as any it saw.
    longer = rng.integers(2, size=(20, 32))
    assert model.score(longer, longer.cumsum(axis=1) % 2) > 0.99


def test_regressor_solves_the_adding_problem():
    rng = np.random.default_rng(0)

    def draw(n, steps=20):
        values, marks = rng.random((n, steps)), np.zeros((n, steps))
        first, second = rng.integers(0, steps // 2, n), rng.integers(steps // 2, steps, n)
        marks[np.arange(n), first] = marks[np.arange(n), second] = 1
        x = np.stack([values, marks], axis=2)
        return x.astype("float32"), (values * marks).sum(axis=1, keepdims=True).astype("float32")

    x, y = draw(1000)
    held, sums = draw(200)
    model = SequenceRegressor(2, 24, 1)
    model.fit(x, y, epochs=25, batch_size=50, optimizer=gpurnn.Adam(0.01))
    assert np.var(sums) > 0.13
    assert np.mean((model.predict(held) - sums) ** 2) < 0.01


def test_regressor_of_steps_learns_a_running_mean():
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(n, 1)).astype("float32") for n in rng.integers(1, 9, 200)]
    means = [(s.cumsum(axis=0) / np.arange(1, len(s) + 1)[:, None]).astype("float32") for s in sequences]
    model = SequenceRegressor(1, 16, 1, pooling=None)
    model.fit(sequences, means, epochs=20, optimizer=gpurnn.Adam(0.01))
    errors = np.concatenate([p - m for p, m in zip(model.predict(sequences), means, strict=True)])
    assert np.mean(errors**2) < 0.02 < np.mean(np.concatenate(means) ** 2) / 10


@pytest.mark.kernels
def test_training_is_the_same_on_the_kernels():
    x = normal(6, 3, 1)
    losses = {}
    for wing in ("reference", "host"):
        model = SequenceClassifier(1, 4, 2, pooling="attention", dtype="float64")
        with gpurnn.use(wing):
            trainer = model.fit(x, [int(s.sum() > 0) for s in x], steps=6, batch_size=3, log_interval=1).trainer_
        losses[wing] = np.array([record["loss"] for record in trainer.history])
    assert losses["host"][-1] < losses["host"][0]
    # Each of the six steps has the errors of a recurrence, and amplifies those of the steps before.
    assert_close(losses["host"], losses["reference"], 36 * recurrence_terms(3, 3, 1, 4))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("merge", ["sum", "mul", "average"])
def test_merged_directions_are_pooled_at_the_end_of_each(merge, cell):
    """The forward direction is pooled after the last step, the backward one after the first; gradients match."""
    model = build("classifier", cell=cell, bidirectional=True, merge=merge, num_layers=2)
    assert model.recurrent.params["weight_ih_l1"].shape[1] == model.output.in_features == H
    inputs, _ = batch(model)
    logits, state = model(inputs, None, LENGTHS)
    h = state[0] if cell == "lstm" else state
    ends = {"sum": h[2] + h[3], "mul": h[2] * h[3], "average": (h[2] + h[3]) / 2}[merge]
    assert_same(logits, model.output(ends))
    assert_same(model.vjp(inputs, None, LENGTHS)[0], (logits, state))
    _, pullback = model.vjp(inputs, None, LENGTHS)
    dstate = tuple(map(np.cos, state)) if cell == "lstm" else np.cos(state)
    dlogits = normal(*logits.shape)
    (dx, _), grads = pullback((dlogits, dstate))

    def outputs(given):
        model.load_state_dict({name: p for name, p in given.items() if name != "x"})
        logits, state = model(given["x"], None, LENGTHS)
        return [logits, *(state if cell == "lstm" else (state,))]

    cotangents = [dlogits, *(dstate if cell == "lstm" else (dstate,))]
    check_gradients(outputs, {"x": inputs, **model.state_dict()}, cotangents, {"x": dx, **grads}, seed=1)


def test_a_reversed_model_reads_from_the_end():
    model = build("classifier", reverse=True, cell_options={"clip": 2.0, "layer_norm": True})
    forward = build("classifier", cell_options={"clip": 2.0, "layer_norm": True})
    forward.load_state_dict(model.state_dict())
    inputs, targets = batch(model)
    turned = inputs.copy()
    for b, n in enumerate(LENGTHS):
        turned[:n, b] = inputs[:n, b][::-1]
    assert_all_close(model(inputs, None, LENGTHS), forward(turned, None, LENGTHS), 40)
    grads = [m.loss_and_gradients(x, targets, None, LENGTHS)[2] for m, x in ((model, inputs), (forward, turned))]
    assert_all_close(*grads, 80)


SAVED = {
    "classifier": {
        "pooling": "attention", "num_embeddings": 6, "bidirectional": True, "cell": "lstm", "merge": "mul",
        "cell_options": {"peephole": True, "clip": 5.0},
    },
    "tagger": {"num_layers": 2, "dropout": 0.25, "residual": True, "reverse": True},
    "regressor": {"pooling": "mean", "cell": "rnn", "activation": "relu", "leak": 0.1},
    "regressor of steps": {**TORCH_GRU, "variational_dropout": 0.1, "recurrent_dropout": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_the_whole_model(tmp_path, kind, dtype):
    model = build(kind, dtype=dtype, **SAVED[kind])
    model.save(tmp_path / "model.safetensors")
    back = load(tmp_path / "model.safetensors")
    assert type(back) is type(model)
    assert back.config() == model.config() == json.loads(json.dumps(model.config()))
    assert repr(back) == repr(model)
    assert_same(back.state_dict(), model.state_dict())
    inputs, targets = batch(model, dtype=dtype)
    assert_same(back(inputs), model(inputs))
    assert_same(back.loss(inputs, targets)[0], model.loss(inputs, targets)[0])
    other = SequenceTagger if kind != "tagger" else SequenceClassifier
    with pytest.raises(ValueError, match=f"holds a {type(model).__name__}, expected a {other.__name__}"):
        other.from_file(tmp_path / "model.safetensors")


def test_repr_draws_the_shapes():
    model = build("classifier", pooling="attention", num_embeddings=6, bidirectional=True, dtype="float32")
    assert repr(model).splitlines() == [
        "SequenceClassifier(3, 4, 2, bidirectional=True, pooling='attention', num_embeddings=6)  # 332 parameters",
        "  (T, B)     tokens",
        "  (T, B, 3)  Embedding(6, 3)",
        "  (T, B, 8)  GRU(3, 4, bidirectional=True)",
        "  (B, 8)     AttentionPooling(8)",
        "  (B, 2)     Dense(8, 2): logits",
    ]
    assert repr(build("regressor of steps", num_layers=2)).splitlines() == [
        "SequenceRegressor(3, 4, 2, num_layers=2, pooling=None, output_activation='sigmoid', dtype='float64')"
        "  # 238 parameters",
        "  (T, B, 3)  inputs",
        "  (T, B, 4)  GRU(3, 4, num_layers=2, dtype='float64')",
        "  (T, B, 2)  Dense(4, 2, activation='sigmoid', dtype='float64'): values",
    ]


@pytest.mark.usefixtures("strict_namespace")
@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: "-".join(map(str, c.values())))
def test_arrays_of_another_library(choice):
    model = build(choice["kind"], choice["pooling"], **options_of(choice))
    inputs, targets = batch(model)
    lengths = LENGTHS if choice["lengths"] else None
    other = model.to(strict_wing.xp)
    assert_same(plain(other(*strict((inputs, None, lengths)))), model(inputs, None, lengths))
    expected = model.loss_and_gradients(inputs, targets, None, lengths, rng=1)
    assert_same(plain(other.loss_and_gradients(*strict((inputs, targets, None, lengths)), rng=1)), expected)
    examples = [inputs[:n, b] for b, n in enumerate((5, 1, 2, 3))]
    held = list(targets) if model.pooling is not None else [targets[: len(e), b] for b, e in enumerate(examples)]
    held = [np.asarray(target) for target in held]
    assert_same(tuple(plain(other.predict(strict(examples)))), tuple(model.predict(examples)))
    other.fit(examples, held, steps=2, batch_size=2)  # the model converts them to its library
    model.fit(examples, held, steps=2, batch_size=2)
    assert_same(other.state_dict(), model.state_dict())
    if not isinstance(model, SequenceRegressor):
        assert other.score(strict(examples), held) == model.score(examples, held)


@pytest.mark.usefixtures("strict_namespace")
@pytest.mark.parametrize("model_class", [SequenceClassifier, SequenceRegressor])
def test_a_model_without_sizes_is_made_in_the_library_of_the_examples(model_class):
    examples, targets = [normal(n, I, seed=n) for n in (5, 1, 2, 3)], [0, 1, 0, 1]
    options = {"hidden_size": 3, "epochs": 2, "dtype": "float64"}
    found = model_class(**options).fit(strict(examples), targets)
    assert type(found.params["output.bias"]) is type(strict(examples[0]))
    assert_same(found.state_dict(), model_class(**options).fit(examples, targets).state_dict())


@pytest.mark.parametrize(
    ("model_class", "options", "message"),
    [
        (
            SequenceClassifier,
            {"pooling": "max"},
            "SequenceClassifier: pooling is 'max', expected one of 'last', 'mean', 'at",
        ),
        (SequenceClassifier, {"pooling": None}, "SequenceClassifier: pooling is None, expected one of 'last'"),
        (
            SequenceTagger,
            {"pooling": "last"},
            "SequenceTagger: pooling is not an option, expected one of activation, ",
        ),
        (SequenceRegressor, {"pooling": "max"}, "pooling is 'max', expected one of 'last', 'mean', 'attention', None"),
        (SequenceRegressor, {"loss": "l7"}, "SequenceRegressor: loss is 'l7', expected one of 'mse'"),
        (
            SequenceRegressor,
            {"output_activation": "softmax"},
            "output_activation is 'softmax', expected one of 'identity'",
        ),
        (SequenceTagger, {"cell": "elman"}, "SequenceTagger: cell is 'elman', expected one of 'rnn', 'lstm', 'gru'"),
        (SequenceTagger, {"leak": 0.5}, "SequenceTagger: leak is not an option of the cell 'gru'"),
        (
            SequenceTagger,
            {"cell_options": {"leak": 0.5}},
            "leak is not an option of the cell 'gru', expected some of reset",
        ),
        (SequenceTagger, {"cell_options": ["clip"]}, "SequenceTagger: cell_options is a list of 1, expected a dict"),
        (
            SequenceTagger,
            {"activation": "relu", "cell_options": {"activation": "relu"}},
            "activation is given, and in cell_options too",
        ),
        (SequenceTagger, {"num_embeddings": 0}, "SequenceTagger: num_embeddings is 0, expected at least 1"),
        (SequenceTagger, {"dropout": 1}, "SequenceTagger: dropout is 1, expected a probability"),
        (SequenceTagger, {"dtype": "int32"}, "dtype is 'int32', expected float32 or float64"),
        (SequenceTagger, {"rng": "x"}, "SequenceTagger: rng is 'x', expected an int seed"),
    ],
)
def test_constructors_refuse(model_class, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        model_class(I, H, O, **options)


def test_constructors_refuse_sizes():
    for sizes, name in (((0, H, O), "input_size"), ((I, 0, O), "hidden_size"), ((I, H, 0), "classes")):
        with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
            SequenceClassifier(*sizes)
    with pytest.raises(ValueError, match="SequenceRegressor: outputs is 0, expected at least 1"):
        SequenceRegressor(I, H, 0)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (np.zeros((5, 3)), {}, r"SequenceTagger: inputs has shape \(5, 3\), expected 3 axes \(T, B, input_size\)"),
        (
            np.zeros((5, 1)),
            {"num_embeddings": 6},
            "SequenceTagger: inputs has dtype float64, expected an integer dtype",
        ),
        (np.zeros((5, 1, 3), int), {"num_embeddings": 6}, r"inputs has shape \(5, 1, 3\), expected 2 axes \(T, B\)"),
        (np.zeros((0, 1, 3)), {}, r"inputs has shape \(0, 1, 3\), expected at least one step"),
        (np.zeros((5, 1, 2)), {}, r"x has shape \(5, 1, 2\), expected input_size = 3 at its end"),
        (np.zeros((5, 1, 3), "float32"), {}, "has dtype float32 but params has float64, expected one dtype"),
        ([[1.0]], {}, "inputs is a list, expected a numpy.ndarray"),
        (None, {}, "inputs is None, expected an array"),
    ],
)
def test_calls_refuse(inputs, options, message):
    model = build("tagger", **options)
    for call in (model, model.vjp):
        with pytest.raises((ValueError, TypeError), match=message):
            call(inputs)


X = [normal(5, I), normal(2, I)]


@pytest.mark.parametrize(
    ("kind", "inputs", "targets", "message"),
    [
        ("classifier", [], [], "X is empty, expected at least one example"),
        ("classifier", None, [0], "X is None, expected an array"),
        ("classifier", 3, [0], "X is an int, expected a sequence with an entry for each example"),
        ("classifier", X[0], [0], r"X has shape \(5, 3\), expected \(N, T, 3\); pass \[X\] if it is one example"),
        (
            "classifier",
            [X[0][:, :1]],
            [0],
            r"X\[0\] has 1 features, expected 3, as the model has been made or fitted with",
        ),
        ("classifier", X[0][0], [0], r"X has shape \(3,\), expected \(N, T, features\), or \(N, T\) for one feature"),
        (
            "classifier",
            [X[0], X[1][:, :2]],
            [0, 1],
            r"X\[1\] has 2 features, expected 3",
        ),
        ("classifier", [X[0], X[1][:0]], [0, 1], r"X\[1\] has no steps, expected at least one"),
        ("classifier", [["a"], ["b"]], [0, 1], r"X\[0\] holds text, expected numbers"),
        ("classifier", X, None, "y is None, expected an array"),
        ("classifier", X, 3, "y is an int, expected a label for each"),
        ("classifier", X, [0], "y has 1 entries, expected 2"),
        ("classifier", X, [0, None], r"y\[1\] is None, expected a label"),
        ("classifier", [*X, *X], ["a", "b", "c", "a"], "y has 3 classes, expected at most classes = 2"),
        (
            "classifier",
            X,
            np.zeros((2, 2), int),
            r"y has shape \(2, 2\), expected \(N,\): one label for each",
        ),
        ("tagger", X, [np.zeros(5, int), np.zeros(3, int)], r"y\[1\] has 3 labels, expected 2, the steps of X\[1\]"),
        ("regressor", X, np.zeros(2), r"y has shape \(2, 1\), expected \(N, outputs\) = \(2, 2\)"),
        ("regressor", X, [[0, 1], [2, np.nan]], r"y holds NaN at row 1 in feature 1, expected finite numbers"),
        ("regressor", X, ["a", "b"], "y holds text, expected numbers"),
        (
            "regressor of steps",
            X,
            np.zeros((2, 2)),
            r"y\[0\] has shape \(2, 1\), expected \(T, outputs\) = \(5, 2\)",
        ),
    ],
)
def test_fit_refuses(kind, inputs, targets, message):
    model = build(kind)
    with pytest.raises((ValueError, TypeError), match=rf"{type(model).__name__}\.fit: {message}"):
        model.fit(inputs, targets, epochs=1)


def test_predictions_refuse():
    with pytest.raises(ValueError, match=r"SequenceRegressor\.predict: X is empty"):
        build("regressor").predict([])
    with pytest.raises(ValueError, match=r"SequenceClassifier\.predict_proba: batch_size is 0, expected at least 1"):
        build("classifier").predict_proba(X, batch_size=0)
    with pytest.raises(TypeError, match=r"SequenceTagger\.predict: X\[0\] has dtype float64, expected integers"):
        build("tagger", num_embeddings=6).predict([np.zeros(3)])
    with pytest.raises(ValueError, match=r"SequenceClassifier\.score: y has 1 entries, expected 2"):
        build("classifier").score(X, [0])
    with pytest.raises(ValueError, match=r"SequenceClassifier\.predict: the model was never fitted"):
        SequenceClassifier(I, H, O).predict(X)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention", None])
def test_checkpointing_in_time_gives_the_same_bits(pooling):
    rng = np.random.default_rng(0)
    model = SequenceRegressor(2, 4, 1, 2, pooling=pooling, dropout=0.3, dtype="float64")
    x, lengths = rng.normal(size=(1500, 2, 2)), np.array([1500, 700])
    targets = rng.normal(size=(2, 1) if pooling else (1500, 2, 1))
    plain = model.loss_and_gradients(x, targets, None, lengths, rng=1)
    assert_same(model.loss_and_gradients(x, targets, None, lengths, rng=1, checkpoint_every="sqrt"), plain)
    trainer = model.fit(list(x[None, :, 0]), list(targets[None, :, 0] if pooling is None else targets[:1]), steps=1,
                        gradient_checkpoint_every=600).trainer_  # fmt: skip
    assert trainer.step == 1


METHODS = ("predict", "predict_proba", "score")


def answers(model, examples, targets):
    """Call every method that answers for examples."""
    for name in METHODS:
        if hasattr(model, name):
            method = getattr(model, name)
            yield name, lambda method=method, name=name: method(examples, *([targets] if name == "score" else []))


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_inputs_that_are_not_finite_get_no_answer(kind, value, cell):
    model = build(kind, cell=cell, bidirectional=True)
    inputs, targets = batch(model)
    examples = [inputs[:n, i] for i, n in enumerate((5, 1, 2, 3))]
    targets = [targets[i] if model.pooling is not None else targets[:n, i] for i, n in enumerate((5, 1, 2, 3))]
    examples[2][-1, 0] = value
    with np.errstate(all="ignore"):
        for name, call in answers(model, examples, targets):
            what = "NaN" if np.isnan(value) else "infinity"
            step = len(examples[2]) - 1
            with pytest.raises(ValueError, match=rf"{name}: X\[2\] holds {what} at step {step} in feature 0, expected"):
                call()


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("embedded", [False, True])
def test_parameters_that_are_nan_give_no_answer(kind, pooling, embedded):
    for name in build(kind, pooling, num_embeddings=7 if embedded else None).params:
        model = build(kind, pooling, num_embeddings=7 if embedded else None)
        inputs, targets = batch(model)
        model.params[name][...] = np.nan
        examples = [inputs[:, i] for i in range(B)]
        targets = list(targets if model.pooling is not None else targets.swapaxes(0, 1))
        for _, call in answers(model, examples, targets):
            with pytest.raises(FloatingPointError, match=rf"X\[0\] are not finite: parameter {name} holds NaN"):
                call()


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_that_overflow_are_no_answer(kind):
    model = build(kind, dtype="float32", cell="rnn", activation="identity")
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=r"X\[1\] are not finite, but all"):
        model.predict([np.ones((1, I), "float32"), np.full((9, I), 3e38, "float32")])


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_past_a_length_may_be_nan(kind):
    model = build(kind)
    inputs, _ = batch(model)
    expected = model.predict([inputs[:n, i] for i, n in enumerate((5, 1, 2, 3))])
    lengths = np.array([5, 1, 2, 3])
    inputs[np.arange(T)[:, None] >= lengths] = np.nan
    y, _ = model(inputs, None, lengths)
    for i, n in enumerate(lengths):
        found = y[i] if model.pooling is not None else y[:n, i]
        found = found.argmax(axis=-1) if not isinstance(model, SequenceRegressor) else found
        np.testing.assert_allclose(found, expected[i], rtol=1e-12)


@pytest.mark.parametrize("kind", ["classifier", "tagger"])
def test_a_class_of_probability_zero(kind):
    model = build(kind)
    model.params["output.bias"][1] = -np.inf
    inputs = [normal(2, I), normal(1, I)]
    for y, proba in zip(model.predict(inputs), model.predict_proba(inputs), strict=True):
        assert not np.any(y)
        assert np.all(proba[..., 1] == 0)


@pytest.mark.parametrize("model_class", [SequenceClassifier, SequenceTagger])
def test_a_single_class_is_rejected(model_class):
    message = rf"{model_class.__name__}: classes is 1, expected at least 2: .* a number SequenceRegressor"
    with pytest.raises(ValueError, match=message):
        model_class(2, 3, 1)
    with pytest.raises(ValueError, match="classes is 0, expected at least 1"):
        model_class(2, 3, 0)
    with pytest.raises(TypeError, match="classes is True, expected a whole number"):
        model_class(2, 3, True)


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("label", [-1, 2, 127])
def test_labels_that_fit_did_not_see_are_rejected_by_their_names(label):
    x = [normal(2, I), normal(2, I)]
    for model, targets, name in (
        (build("classifier"), [0, label], "1"),
        (build("classifier"), [np.array(0), np.array(label)], "1"),
        (build("classifier"), np.array([1, label], np.int16), "1"),
        (build("tagger"), [np.array([0, 1]), np.array([1, label])], r"1\]\[1"),
        (build("tagger"), np.array([[0, 1], [1, label]]), r"1\]\[1"),
    ):
        seen = [t * 0 for t in targets]
        message = rf"y\[{name}\] is {label}, which fit did not see, expected one of 0, 1$"
        with pytest.raises(ValueError, match="fit: validation's " + message):
            model.fit(x, seen, epochs=1, validation=(x, targets))
        with pytest.raises(ValueError, match="score: " + message):
            model.score(x, targets)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_not_embedded_are_rejected_by_their_names(kind):
    model = build(kind, num_embeddings=7)
    inputs, targets = batch(model)
    examples = [inputs[:, i] for i in range(B)]
    targets = list(targets if model.pooling is not None else targets.swapaxes(0, 1))
    for token in (-1, 7):
        examples[2] = np.array([0, token, 1, 1, 1])
        message = rf"{type(model).__name__}\.\w+: X\[2\] holds {token}, expected 0 ... 6"
        answering = [call for _, call in answers(model, examples, targets)]
        for call in (lambda: model.fit(examples, targets, epochs=1), *answering):
            with pytest.raises(IndexError, match=message):
                call()


@pytest.mark.parametrize("targets", [[True, False], np.array([True, False])])
def test_booleans_are_labels(targets):
    x = [normal(1, I), -normal(1, I)]
    model = build("classifier").fit(x, targets, epochs=40, optimizer="adam", lr=0.1)
    assert model.classes_.tolist() == [False, True]
    assert model.predict(x).tolist() == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_one_step_and_equal_and_extreme_values(kind):
    model = build(kind, dtype="float32")
    one = model.predict([normal(1, I, dtype="float32")])
    assert len(one) == 1
    for value in (0.0, 1e-30, 1e30):
        same = model.predict([np.full((3, I), value, "float32")] * 3)
        assert np.isfinite(np.stack(same)).all()
        assert_same(same[0], same[2])
    with pytest.raises(ValueError, match=r"predict: X\[1\] has no steps, expected at least one"):
        model.predict([np.ones((1, I), "float32"), np.ones((0, I), "float32")])
    with pytest.raises(ValueError, match="predict: X is empty, expected at least one example"):
        model.predict([])


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("pooling", ["last", "mean", "attention", None])
def test_what_is_past_a_length_need_not_be_a_token(pooling):
    make = SequenceTagger if pooling is None else partial(SequenceClassifier, pooling=pooling)
    model = make(2, 3, 2, num_embeddings=5, bidirectional=True, dtype="float64")
    tokens, lengths = np.arange(12).reshape(4, 3) % 5, np.array([4, 0, 2])
    past = np.arange(4)[:, None] >= lengths
    classes = np.array([0, 1, 0]) if pooling else np.where(past, -100, tokens % 2)

    def results(nothing):
        inputs = np.where(past, nothing, tokens)
        (y, state), pull = model.vjp(inputs, None, lengths)
        yield y, state, pull((np.ones_like(y), None))
        yield model(inputs, None, lengths)
        yield model.loss(inputs, classes, None, lengths)
        yield model.loss_and_gradients(inputs, classes, None, lengths, rng=1)

    for nothing in (-1, -100, 99):
        for a, b in zip(results(nothing), results(0), strict=True):
            assert_same(a, b)
