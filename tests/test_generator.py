"""One to many: against its equations step by step, its gradients through fed values, as a learner and as a file."""

import json

import numpy as np
import pytest
import strict_wing
from problems import pairwise
from strict_wing import plain, strict
from tolerance import assert_all_close, assert_close, assert_same, check_gradients, recurrence_terms

import gpurnn
from gpurnn import reference
from gpurnn.models import SequenceGenerator, SequenceTagger, load

T, B, I, H, O = 5, 3, 2, 4, 3
LENGTHS = np.array([5, 0, 2])
TERMS = recurrence_terms(T, B, O, H) + H + O


def build(dtype="float64", rng=3, seed=0, **options):
    model = SequenceGenerator(I, H, O, dtype=dtype, rng=rng, **options)
    for k, p in enumerate(model.params.values()):
        p += (0.3 * np.random.default_rng(seed + k).standard_normal(p.shape)).astype(dtype)
    return model


def draw(model, t=T, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((B, I)).astype(dtype)
    if model.classes:
        return x, rng.integers(O, size=(t, B))
    return x, rng.standard_normal((t, B, O)).astype(dtype)


FUNCTIONS = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "identity": lambda a: a,
    "softmax": lambda a: np.exp(a) / np.exp(a).sum(),
}


def by_the_book(model, x, fed, forced):
    """The y_t of one row from the equations, with the targets ``fed`` (T, O) as inputs where ``forced`` (T,)."""
    p, config = model.params, model.config()
    f, g = FUNCTIONS[config["activation"]], FUNCTIONS[config["output_activation"]]
    h, found = f(p["input.weight"] @ x + p["recurrent.bias_ih_l0"]), []
    for target, force in zip(fed, forced, strict=True):
        y = g(p["output.weight"] @ h + p["output.bias"])
        found.append(y)
        fed_back = p["recurrent.weight_ih_l0"] @ (target if force else y)
        h = f(p["recurrent.weight_hh_l0"] @ h + fed_back + p["recurrent.bias_ih_l0"])
    return np.array(found).reshape(-1, O)


def forced_where(teacher_forcing, rng, t=T):
    """Where targets are fed: the entries that a dropout of this rate would drop."""
    if teacher_forcing == 1:
        return np.ones((t, B), bool)
    seed = int(np.random.default_rng(rng).integers(2**64, dtype=np.uint64))
    return reference.dropout_mask(np.empty(0), (t, B), teacher_forcing, seed) == 0


CHOICES = pairwise(
    {
        "activation": ["tanh", "relu", "sigmoid", "identity"],
        "output_activation": ["softmax", "identity", "tanh", "relu", "sigmoid"],
        "teacher_forcing": [0.0, 0.5, 1.0],
        "lengths": [True, False],
        "steps": [T, 1, 2],
    }
)
NAMES = {"ids": lambda c: "-".join(map(str, c.values()))}


def problem(choice):
    model = build(**{name: choice[name] for name in ("activation", "output_activation")})
    x, targets = draw(model, choice["steps"])
    lengths = None
    if choice["lengths"]:
        lengths = np.minimum(LENGTHS, choice["steps"])
        past = np.arange(choice["steps"])[:, None] >= lengths
        targets[past] = -7 if model.classes else np.nan
    return model, x, targets, lengths, {"teacher_forcing": choice["teacher_forcing"]}


@pytest.mark.parametrize("choice", CHOICES, **NAMES)
def test_loss_is_that_of_the_equations(each_wing, choice):
    model, x, targets, lengths, forcing = problem(choice)
    steps = len(targets)
    loss, state, grads = model.loss_and_gradients(x, targets, None, lengths, rng=4, **forcing)
    assert state is None
    assert grads.keys() == model.params.keys()
    forced = forced_where(choice["teacher_forcing"], 4, steps)
    each = []
    for b in range(B):
        n = steps if lengths is None else lengths[b]
        fed = np.eye(O)[targets[:n, b]] if model.classes else targets[:n, b]
        y = by_the_book(model, x[b], fed, forced[:n, b])
        if model.classes:
            each += [-np.log(y[t, targets[t, b]]) for t in range(n)]
        else:
            each += list(((y - targets[:n, b]) ** 2).reshape(-1))
    assert_close(np.asarray(loss), np.asarray(np.mean(each)), TERMS)
    if choice["teacher_forcing"] in (0, 1):
        assert_same(model.loss(x, targets, None, lengths, **forcing)[0], loss)


@pytest.mark.parametrize("choice", CHOICES, **NAMES)
def test_gradients_against_central_differences(choice):
    model, x, targets, lengths, forcing = problem(choice)
    _, _, grads = model.loss_and_gradients(x, targets, None, lengths, rng=4, **forcing)

    def outputs(values):
        moved = build(**{name: choice[name] for name in ("activation", "output_activation")})
        moved.load_state_dict(values)
        return [moved.loss_and_gradients(x, targets, None, lengths, rng=4, **forcing)[0]]

    check_gradients(outputs, dict(model.params), [np.ones(())], grads, seed=1)


@pytest.mark.parametrize("output_activation", ["softmax", "tanh"])
@pytest.mark.parametrize("steps", [1, 4])
def test_pullback_of_the_free_run(each_wing, output_activation, steps):
    options = {"activation": "sigmoid", "output_activation": output_activation}
    model = build(**options)
    x, _ = draw(model)
    y, pullback = model.vjp(x, steps)
    assert_same(model(x, steps), y)
    for b in range(B):
        assert_close(y[:, b], by_the_book(model, x[b], np.zeros((steps, O)), [False] * steps), TERMS)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    dx, grads = pullback(dy)
    assert_same(pullback(dy), (dx, grads))
    assert all(not g.any() for g in [pullback(None)[0], *pullback(None)[1].values()])
    if each_wing == "host":
        return

    def outputs(values):
        moved = build(**options)
        moved.load_state_dict({name: values[name] for name in moved.params})
        return [moved(values["x"], steps)]

    check_gradients(outputs, {**model.params, "x": x}, [dy], {**grads, "x": dx}, seed=2)


@pytest.mark.kernels
@pytest.mark.parametrize("choice", CHOICES, **NAMES)
def test_the_wings_agree(choice):
    model, x, targets, lengths, forcing = problem(choice)
    found = {}
    for wing in ("reference", "host"):
        with gpurnn.use(wing):
            found[wing] = model.loss_and_gradients(x, targets, None, lengths, rng=4, **forcing)[2]
    magnitude = max(float(np.abs(g).max()) for g in found["reference"].values())
    assert_all_close(found["host"], found["reference"], TERMS, magnitude)


@pytest.mark.parametrize("output_activation", ["softmax", "identity"])
def test_forcing_everywhere_is_the_limit_of_scheduled_sampling(output_activation):
    # One side is a single call of the recurrence, the other single steps.
    model = build(output_activation=output_activation)
    x, targets = draw(model)
    almost = np.nextafter(1.0, 0.0)
    assert forced_where(almost, 0).all()
    one = model.loss_and_gradients(x, targets, None, LENGTHS, teacher_forcing=1)
    other = model.loss_and_gradients(x, targets, None, LENGTHS, teacher_forcing=almost, rng=0)
    assert_close(np.asarray(one[0]), np.asarray(other[0]), TERMS)
    assert_all_close(one[2], other[2], TERMS, max(float(np.abs(g).max()) for g in one[2].values()))
    free = model.loss_and_gradients(x, targets, None, LENGTHS, teacher_forcing=0.0)
    never = model.loss_and_gradients(x, targets, None, LENGTHS, teacher_forcing=5e-324, rng=0)
    assert_same(free, never)
    assert abs(float(free[0]) - float(one[0])) > 1e-3


def test_scheduled_sampling_is_the_seeds():
    model = build()
    x, targets = draw(model)
    half = [model.loss_and_gradients(x, targets, rng=seed, teacher_forcing=0.5) for seed in (1, 1, 2)]
    assert_same(half[0], half[1])
    assert half[0][0] != half[2][0]
    random = np.random.default_rng(1)
    assert_same(model.loss_and_gradients(x, targets, rng=random, teacher_forcing=0.5), half[0])


def test_rows_keep_to_themselves(each_wing):
    model = build(output_activation="identity")
    x, targets = draw(model)
    order = np.array([2, 0, 1])
    one = model.loss_and_gradients(x, targets, None, LENGTHS, teacher_forcing=0)
    other = model.loss_and_gradients(x[order], targets[:, order], None, LENGTHS[order], teacher_forcing=0)
    assert_close(np.asarray(other[0]), np.asarray(one[0]), TERMS)
    assert_all_close(other[2], one[2], TERMS, max(float(np.abs(g).max()) for g in one[2].values()))
    assert_close(model(x[order], T), model(x, T)[:, order], TERMS)


def test_predictions_are_the_free_run_in_the_order_given():
    x = np.random.default_rng(0).standard_normal((7, I))
    for output_activation in ("softmax", "tanh"):
        model = build(output_activation=output_activation)
        y = model(x, 6).swapaxes(0, 1)
        for batch_size in (1, 3, 100):
            found = model.predict(x, 6, batch_size=batch_size)
            if model.classes:
                assert_close(model.predict_proba(x, 6, batch_size=batch_size), y, TERMS)
                assert_same(found, y.argmax(axis=-1))
            else:
                assert_close(found, y, TERMS)


def test_it_learns_to_draw_waves_of_a_given_phase_without_a_teacher():
    phase = np.linspace(0, 2 * np.pi, 40, endpoint=False)[:, None]
    x = np.concatenate([np.cos(phase), np.sin(phase)], axis=1).astype("float32")
    waves = np.sin(phase + 0.5 * np.arange(20))[:, :, None].astype("float32")
    model = SequenceGenerator(2, 16, 1, output_activation="identity")
    optimizer = gpurnn.Adam(0.01)
    free = [float(np.mean((model.predict(x, 20) - waves) ** 2))]
    for teacher_forcing, steps in ((1.0, 100), (0.5, 50), (0.0, 100)):
        for step in range(steps):
            _, _, grads = model.loss_and_gradients(x, waves.swapaxes(0, 1), rng=step, teacher_forcing=teacher_forcing)
            optimizer.step(model.params, gpurnn.clip_by_global_norm(grads, 1.0)[0])
        free.append(float(np.mean((model.predict(x, 20) - waves) ** 2)))
    assert free[0] > 0.3
    assert free[-1] < 0.01
    assert free[-1] < free[1]


def test_fit_trains_on_sequences_of_any_lengths():
    rng = np.random.default_rng(0)
    starts = rng.integers(5, size=60)
    counts = [(start + np.arange(n)) % 5 for start, n in zip(starts, rng.integers(1, 8, 60), strict=True)]
    x = np.eye(5, dtype="float32")[starts]
    model = SequenceGenerator(5, 16, 5)
    trainer = model.fit(
        x, counts, epochs=40, batch_size=16, optimizer=gpurnn.Adam(0.02), validation=(x[:9], counts[:9]), log_interval=4
    ).trainer_
    losses = [record["loss"] for record in trainer.history if "loss" in record]
    assert losses[-1] < 0.05 < 1 < losses[0]
    batch = trainer.data.batch(0, 0)
    assert batch.inputs.tolist() != x[:16].tolist()  # shuffled
    assert batch.count == batch.lengths.sum()
    assert_same(batch.inputs.argmax(axis=1), batch.targets[0])
    validation = [record["validation_loss"] for record in trainer.history if "validation_loss" in record]
    assert len(validation) == 40
    expected, steps = 0.0, sum(map(len, counts[:9]))
    for row, count in zip(x, counts[:9], strict=False):
        expected += float(model.loss(row[None], count[:, None])[0]) * len(count) / steps
    assert validation[-1] == pytest.approx(expected, rel=1e-4)
    assert_same(model.predict(np.eye(5, dtype="float32"), 7), (np.arange(5)[:, None] + np.arange(7)) % 5)


def test_fit_follows_a_schedule_of_teacher_forcing():
    x, waves = np.eye(2, dtype="float32"), np.ones((2, 4, 1), "float32")
    found = {}
    for name, forcing in {"free": 0.0, "taught": 1.0, "halving": lambda step: 0.5**step}.items():
        model = SequenceGenerator(2, 3, 1, output_activation="identity", loss="l1")
        trainer = model.fit(x, waves, steps=3, teacher_forcing=forcing, log_interval=1).trainer_
        found[name] = [(record["teacher_forcing"], record["loss"]) for record in trainer.history]
    assert [forced for forced, _ in found["halving"]] == [1.0, 0.5, 0.25]
    assert found["halving"][0] == found["taught"][0]
    assert found["free"][0][1] != found["taught"][0][1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options", [{}, {"activation": "relu", "output_activation": "sigmoid"}], ids=["classes", "values"]
)
def test_a_file_holds_the_whole_model(tmp_path, options, dtype):
    model = build(dtype=dtype, **options)
    model.save(tmp_path / "model.safetensors")
    back = load(tmp_path / "model.safetensors")
    assert type(back) is SequenceGenerator
    assert back.config() == model.config() == json.loads(json.dumps(model.config()))
    assert repr(back) == repr(model)
    assert_same(back.state_dict(), model.state_dict())
    x, _ = draw(model, dtype=dtype)
    assert_same(back(x, T), model(x, T))
    assert model(x, T).dtype == dtype
    with pytest.raises(ValueError, match="holds a SequenceGenerator, expected a SequenceTagger"):
        SequenceTagger.from_file(tmp_path / "model.safetensors")


def test_init_is_that_of_the_fed_back_weights():
    model = SequenceGenerator(I, H, O, init=("zeros", "identity"))
    assert_same(model.params["recurrent.weight_hh_l0"], np.eye(H, dtype="float32"))
    assert not model.params["recurrent.weight_ih_l0"].any()
    assert model.params["input.weight"].any()


@pytest.mark.usefixtures("strict_namespace")
@pytest.mark.parametrize("choice", CHOICES, **NAMES)
def test_arrays_of_another_library(choice):
    model, x, targets, lengths, forcing = problem(choice)
    other = model.to(strict_wing.xp)
    expected = model.loss_and_gradients(x, targets, None, lengths, rng=4, **forcing)
    assert_same(plain(other.loss_and_gradients(*strict((x, targets, None, lengths)), rng=4, **forcing)), expected)
    y, pullback = other.vjp(strict(x), 3)
    expected_y, expected_pullback = model.vjp(x, 3)
    assert_same(plain(y), expected_y)
    assert_same(plain(pullback(strict(np.ones_like(expected_y)))), expected_pullback(np.ones_like(expected_y)))
    assert_same(plain(other.predict(strict(x), 3)), model.predict(x, 3))
    sequences = [np.abs(np.nan_to_num(targets[: n + 1, b])) % O for b, n in enumerate((2, 0, 3))]
    other.fit(strict(x), strict(sequences), steps=2, batch_size=2)
    model.fit(x, sequences, steps=2, batch_size=2)
    assert_same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "softmax"}, "SequenceGenerator: activation is 'softmax', expected one of 'tanh', 'relu', 'sig"),
        (
            {"output_activation": "cosine"},
            "SequenceGenerator: output_activation is 'cosine', expected one of 'identity'",
        ),
        ({"loss": "cross_entropy"}, "SequenceGenerator: loss is 'cross_entropy', expected one of 'mse'"),
        ({"dtype": "int32"}, "dtype is 'int32', expected float32 or float64"),
        ({"rng": 0.5}, "SequenceGenerator: rng is 0.5, expected an int seed"),
        ({"input_size": 0}, "SequenceGenerator: input_size is 0, expected at least 1"),
        ({"hidden_size": 0}, "SequenceGenerator: hidden_size is 0, expected at least 1"),
        ({"outputs": 0.5}, "SequenceGenerator: outputs is 0.5, expected a whole number"),
    ],
)
def test_constructor_refuses(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SequenceGenerator(**{"input_size": I, "hidden_size": H, "outputs": O, **options})


X = np.zeros((B, I))
CLASSES = np.zeros((T, B), int)


@pytest.mark.parametrize(
    ("x", "targets", "options", "message"),
    [
        (None, CLASSES, {}, "x is None, expected an array"),
        (X[0], CLASSES, {}, r"x has shape \(2,\), expected 2 axes \(B, input_size\)"),
        (X[:, :1], CLASSES, {}, r"x has shape \(3, 1\), expected \(B, input_size\) = \(3, 2\)"),
        (X.astype("float32"), CLASSES, {}, "x has dtype float32 but params has float64"),
        (X, None, {}, "targets is None, expected an array"),
        (X, CLASSES[0], {}, r"targets has shape \(3,\), expected 2 axes \(T, B\)"),
        (X, CLASSES[:, :2], {}, r"targets has shape \(5, 2\), expected B = 3 as x has"),
        (X, CLASSES[:0], {}, "steps is 0, expected at least 1"),
        (X, CLASSES + 0.0, {}, "targets has dtype float64, expected an integer dtype"),
        (X, CLASSES, {"state": X}, "state is an array of shape .*, expected None: no batch continues another"),
        (X, CLASSES, {"teacher_forcing": 1.5}, r"teacher_forcing is 1.5, expected a probability in \[0, 1\]"),
        (X, CLASSES, {"teacher_forcing": -0.5}, r"teacher_forcing is -0.5, expected a probability in \[0, 1\]"),
        (X, CLASSES, {"teacher_forcing": 0.5}, "rng is None, expected an int seed or a .* as teacher_forcing is 0.5"),
    ],
)
def test_losses_refuse(x, targets, options, message):
    for loss in (build().loss, build().loss_and_gradients):
        with pytest.raises((ValueError, TypeError), match=f"SequenceGenerator: {message}"):
            loss(x, targets, **options)


def test_losses_of_values_refuse():
    model = build(output_activation="identity")
    with pytest.raises(ValueError, match=r"targets has shape \(5, 3\), expected 3 axes \(T, B, outputs\)"):
        model.loss(X, np.zeros((T, B)))
    with pytest.raises(ValueError, match=r"targets has shape \(5, 3, 1\), expected \(T, B, outputs\) = \(5, 3, 3\)"):
        model.loss(X, np.zeros((T, B, 1)))
    with pytest.raises(TypeError, match="targets has dtype int64, expected float32 or float64"):
        model.loss(X, np.zeros((T, B, O), int))
    with pytest.raises(ValueError, match="predict_proba: output_activation is 'identity', expected 'softmax'"):
        model.predict_proba(X, 2)


def test_fit_and_predict_refuse():
    model = build()
    for call in (lambda x: model.fit(x, CLASSES.T, epochs=1), lambda x: model.predict(x, 2)):
        with pytest.raises(ValueError, match=r"SequenceGenerator\.\w+: inputs has shape \(2,\), expected 2 axes"):
            call(X[0])
        with pytest.raises(ValueError, match=r"inputs has shape \(3, 1\), expected \(N, input_size\) = \(3, 2\)"):
            call(X[:, :1])
        with pytest.raises(ValueError, match="inputs is empty, expected at least one example"):
            call(X[:0])
        with pytest.raises(TypeError, match=r"inputs is a list, expected a numpy\.ndarray"):
            call([[1.0, 2.0]])
    with pytest.raises(TypeError, match=r"SequenceGenerator\.fit: y is None, expected an array"):
        model.fit(X, epochs=1)
    with pytest.raises(ValueError, match=r"fit: y\[0\] has shape \(\), expected 1 axis \(T,\)"):
        model.fit(X, CLASSES[0], epochs=1)
    with pytest.raises(ValueError, match=r"SequenceGenerator\.fit: y has 2 entries, expected 3"):
        model.fit(X, CLASSES.T[:2], epochs=1)
    with pytest.raises(ValueError, match="steps is 0, expected at least 1"):
        model.predict(X, 0)
    with pytest.raises(ValueError, match=r"SequenceGenerator\.predict: batch_size is 0, expected at least 1"):
        model.predict(X, 2, batch_size=0)


def test_pullback_refuses_what_is_not_like_y():
    y, pullback = build().vjp(X, 2)
    with pytest.raises(ValueError, match=r"SequenceGenerator: dy has shape \(1, 3, 3\), expected the shape of y"):
        pullback(y[:1])


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("output_activation", ["softmax", "identity", "relu"])
def test_no_answer_from_what_is_not_finite(output_activation):
    x = np.random.default_rng(0).standard_normal((3, 2))
    methods = ["predict", "predict_proba"] if output_activation == "softmax" else ["predict"]

    def made():
        return SequenceGenerator(2, 4, 3, output_activation=output_activation, dtype="float64")

    for name in made().params:
        model = made()
        model.params[name][...] = np.nan
        for method in methods:
            message = rf"{method}: the outputs for inputs\[0\] are not finite: parameter {name} holds NaN or infinity"
            with pytest.raises(FloatingPointError, match=message):
                getattr(model, method)(x, 3)
    for value in (np.nan, np.inf):
        x[1, 0] = value
        for method in methods:
            with pytest.raises(FloatingPointError, match=r"for inputs\[1\] are not finite: inputs\[1\] holds NaN"):
                getattr(made(), method)(x, 3, batch_size=1)


def test_a_softmax_over_one_class_is_rejected():
    with pytest.raises(ValueError, match=r"SequenceGenerator: outputs is 1, expected at least 2: .* output_activation"):
        SequenceGenerator(2, 4, 1)
    values = SequenceGenerator(2, 4, 1, output_activation="identity")
    assert values.predict(np.ones((1, 2), "float32"), 1).shape == (1, 1, 1)


@pytest.mark.parametrize("label", [-1, 3])
def test_targets_that_are_no_class_are_rejected_by_their_names(label):
    model = SequenceGenerator(2, 4, 3, dtype="float64")
    for targets in (np.array([[0, 1], [2, label]]), [np.array([0]), np.array([0, label])]):
        with pytest.raises(ValueError, match=rf"SequenceGenerator.fit: y\[1\] holds {label}, expected 0 ... 2"):
            model.fit(np.ones((2, 2)), targets, epochs=1)
    for targets in ([np.zeros(0, int), np.array([1])], [np.array(0), np.array([1])]):
        with pytest.raises(ValueError, match=r"SequenceGenerator.fit: y\[0\] has shape \(0?,?\), expected"):
            model.fit(np.ones((2, 2)), targets, epochs=1)
    with pytest.raises(ValueError, match=r"SequenceGenerator.predict: steps is 0, expected at least 1"):
        model.predict(np.ones((1, 2)), 0)


@pytest.mark.parametrize("lengths", [[6, 0, 2], [-1, 0, 2], [5, 2], [5], [[5, 0, 2]], [5.0, 0.0, 2.0]])
def test_lengths_that_are_not_those_of_the_targets_are_rejected(lengths):
    model = build()
    x, targets = draw(model)
    for run in (model.loss, model.loss_and_gradients):
        with pytest.raises((ValueError, TypeError), match=r"SequenceGenerator: lengths (holds|has)"):
            run(x, targets, None, np.array(lengths))
