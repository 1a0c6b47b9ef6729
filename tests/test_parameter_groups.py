"""Frozen parameters, learning rates and decays by group, averages of parameters, accumulated gradients."""

import pickle

import numpy as np
import pytest
from tolerance import assert_close, assert_same

import gpurnn
from gpurnn import models
from gpurnn.gradients import global_norm
from gpurnn.optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RMSprop, Rprop
from gpurnn.training import PaddedBatches, TokenStream, Trainer, evaluate

EVERY = {
    "sgd": lambda **k: SGD(0.1, momentum=0.9, nesterov=True, **k),
    "rmsprop": lambda **k: RMSprop(0.01, centered=True, **k),
    "adam": lambda **k: Adam(0.01, amsgrad=True, **k),
    "adamw": lambda **k: AdamW(0.01, **k),
    "adagrad": lambda **k: Adagrad(0.01, lr_decay=0.1, **k),
    "adadelta": lambda **k: Adadelta(0.5, **k),
    "nadam": lambda **k: NAdam(0.01, **k),
    "adamax": lambda **k: Adamax(0.01, **k),
    "rprop": lambda **k: Rprop(0.02, **k),
}
NAMES = ("embedding.weight", "recurrent.weight_hh_l0", "output.weight", "output.bias")


def arrays(seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((3, 4)).astype(dtype) for name in NAMES}


def trained(optimizer, steps=4, dtype="float32", names=NAMES):
    params = {name: p for name, p in arrays(0, dtype).items() if name in names}
    for step in range(steps):
        optimizer.step(params, {name: g for name, g in arrays(step + 1, dtype).items() if name in names})
    return params


# --- the optimizers ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EVERY)
def test_each_group_is_updated_as_by_an_optimizer_of_its_own(each_wing, name, dtype):
    found = trained(EVERY[name](lr_scale={"output": 0.5, "bias": 0.25}, weight_decay={"weight": 0.1}), dtype=dtype)
    plain = EVERY[name]().lr
    for own, scale in zip(NAMES, (1, 1, 0.5, 0.125), strict=True):
        alone = EVERY[name](weight_decay=0.1 if "weight" in own else 0.0)
        alone.lr = plain * scale
        assert_same(found[own], trained(alone, dtype=dtype, names=(own,))[own])


def test_a_schedule_scales_all_groups(each_wing):
    params = arrays()
    SGD(0.1, lr_scale={"bias": 0.5}).step(params, arrays(1), lr=0.5)
    before, grads = arrays(), arrays(1)
    assert_close(params["output.bias"], before["output.bias"] - 0.25 * grads["output.bias"], terms=2)
    assert_close(params["output.weight"], before["output.weight"] - 0.5 * grads["output.weight"], terms=2)


@pytest.mark.parametrize("name", EVERY)
def test_frozen_parameters_keep_their_bits_and_have_no_state(each_wing, name):
    decays = {"weight_decay": 0.1}
    optimizer = EVERY[name](frozen=["embedding", "weight_hh"], **decays)
    found = trained(optimizer)
    expected = trained(EVERY[name](weight_decay=0.1), names=NAMES[2:])
    assert_same(found, {**{n: arrays()[n] for n in NAMES[:2]}, **expected})
    assert not [key for key in optimizer.state_dict() if "embedding" in key or "weight_hh" in key]
    again = EVERY[name](frozen=["embedding", "weight_hh"], **decays)
    again.load_state_dict(optimizer.state_dict())
    more = {n: p.copy() for n, p in found.items()}
    optimizer.step(found, arrays(9))
    again.step(more, arrays(9))
    assert_same(more, found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_averages_are_exponential_moving_averages(each_wing, dtype):
    optimizer = Adam(0.1, ema_decay=0.4, frozen="embedding")
    params, steps = arrays(dtype=dtype), 6
    average = {name: p.astype("float64") for name, p in params.items()}
    for t in range(1, steps + 1):
        optimizer.step(params, arrays(t, dtype))
        d = min(0.4, (1 + t) / (10 + t))
        average = {name: d * a + (1 - d) * params[name] for name, a in average.items()}
    assert optimizer.averages.keys() == set(NAMES[1:])
    for name, a in optimizer.averages.items():
        assert a.dtype == dtype
        assert_close(a, average[name].astype(dtype), terms=4 * steps)
    plain = arrays(dtype=dtype)
    alone = Adam(0.1, frozen="embedding")
    for t in range(1, steps + 1):
        alone.step(plain, arrays(t, dtype))
    assert_same(params, plain)
    again = Adam(0.1, ema_decay=0.4, frozen="embedding")
    again.load_state_dict(optimizer.state_dict())
    assert_same(again.averages, optimizer.averages)
    with pytest.raises(KeyError, match=r"state has 'average\."):
        alone.load_state_dict(optimizer.state_dict())


def test_an_array_of_several_names_has_the_group_of_its_first():
    shared = np.ones(3)
    params = {"embedding.weight": shared, "output.weight": shared, "output.bias": np.ones(3)}
    grads = {name: np.ones(3) for name in params}
    SGD(0.1, lr_scale={"embedding": 0.5}, ema_decay=0.0).step(params, grads)
    np.testing.assert_allclose(params["output.weight"], 0.9)  # 1 - 0.05 (1 + 1)
    np.testing.assert_allclose(params["output.bias"], 0.9)
    SGD(0.1, frozen=["embedding"]).step(params, grads)
    np.testing.assert_allclose(params["output.weight"], 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": ["embeding"]}, "SGD.step: frozen has 'embeding', expected a part of one of the names"),
        ({"lr_scale": {"embeding": 2}}, "SGD.step: lr_scale has 'embeding', expected a part of one of the names"),
        ({"weight_decay": {"embeding": 2}}, "SGD.step: weight_decay has 'embeding', expected a part of one"),
        ({"frozen": [""]}, r"SGD.step: frozen is \('',\), expected a parameter that is left to be trained"),
        ({"frozen": [3]}, r"SGD: frozen is \[3\], expected a sequence of parts of the names of parameters"),
        ({"frozen": 3}, "SGD: frozen is 3, expected a sequence of parts of the names of parameters"),
        ({"lr_scale": 3}, "SGD: lr_scale is an int, expected a dict of str to float"),
        ({"lr_scale": {3: 3}}, "SGD: lr_scale has the key 3, expected a part of the name of a parameter"),
        ({"lr_scale": {"a": -1}}, r"SGD: lr_scale\['a'\] is -1, expected a number of at least 0"),
        ({"weight_decay": {"a": -1}}, r"SGD: weight_decay\['a'\] is -1, expected a number of at least 0"),
        ({"ema_decay": 1}, r"SGD: ema_decay is 1, expected a probability in \[0, 1\)"),
    ],
)
def test_groups_that_are_no_groups_are_rejected(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SGD(**options).step(arrays(), arrays())


def test_there_are_no_averages_unless_asked_for():
    with pytest.raises(
        AttributeError, match=r"Adam: ema_decay is None, expected a number, such as 0\.999, for averages"
    ):
        _ = Adam().averages
    assert Adam(ema_decay=0.9).averages == {}


# --- the trainer ---

X = np.random.default_rng(0).normal(size=(22, 5, 2))
Y = [np.array(int(s)) for s in X[:, :, 0].sum(axis=1) > 0]
WEIGHTS = np.arange(22) % 3 + 0.5


def data(batch_size=4, weights=WEIGHTS, **options):
    return PaddedBatches(list(X), batch_size, Y, per_sequence=True, weights=weights, **options)


def classifier():
    return models.SequenceClassifier(2, 6, 2, dtype="float64")


def run(model=None, **options):
    options = {"data": data(), "optimizer": SGD(0.1), "steps": 6, "progress": False, **options}
    made, optimizer = options.pop("data"), options.pop("optimizer")
    return Trainer(classifier() if model is None else model, made, optimizer, **options)


def test_the_norm_is_that_of_the_trained_parameters():
    model, norms = classifier(), []
    start = model.state_dict()

    def look(step, params, grads):
        assert params.keys() == grads.keys()
        assert not any("recurrent" in name for name in grads)
        norms.append(float(global_norm(grads)))

    frozen = run(model, optimizer=SGD(0.1, frozen="recurrent"), on_gradients=look, clip_norm=1e-3, log_interval=1)
    frozen.train()
    assert [line["gradient_norm"] for line in frozen.history] == norms
    change = {name: model.params[name] - p for name, p in start.items()}
    assert not any(change[name].any() for name in change if "recurrent" in name)
    first = run(model_of(start), optimizer=SGD(0.1, frozen="recurrent"), steps=1, clip_norm=1e-3)
    first.train()
    moved = {name: first.model.params[name] - p for name, p in start.items()}
    assert float(global_norm(moved)) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def model_of(state):
    model = classifier()
    model.load_state_dict(state)
    return model


def test_a_trainer_rejects_groups_that_are_in_no_name_at_once():
    with pytest.raises(ValueError, match="Trainer: frozen has 'embedding', expected a part of one of the names"):
        run(optimizer=Adam(frozen=["embedding"]))


def test_a_step_of_several_batches_is_that_of_one_large_batch():
    small = run(data=data(4, shuffle=False), gradient_accumulation_steps=3, steps=None, epochs=2, clip_norm=0.1)
    large = run(data=data(12, shuffle=False), steps=None, epochs=2, clip_norm=0.1)
    assert small.total == large.total == 4
    small.train()
    large.train()
    for name, p in large.model.params.items():
        assert_close(small.model.params[name], p, terms=400, name=name)
    for found, expected in zip(small.epoch_history, large.epoch_history, strict=True):
        assert found == pytest.approx(expected)


def test_the_state_goes_from_batch_to_batch_of_a_step():
    vocabulary = models.CharVocabulary("?abc")
    stream = TokenStream(np.random.default_rng(0).integers(0, 4, 61, dtype=np.int32), 2, 5)
    model = models.LanguageModel(vocabulary, 3, 4, dtype="float64")
    params = {name: p.copy() for name, p in model.params.items()}
    by_hand, state, expected = SGD(0.5), None, model.clone()
    expected.load_state_dict(params)
    for first in (0, 2):
        total = dict.fromkeys(params, 0.0)
        for batch in (stream.batch(0, i) for i in (first, first + 1)):
            _, state, grads = expected.loss_and_gradients(batch.inputs, batch.targets, state)
            total = {name: total[name] + g / 2 for name, g in grads.items()}
        by_hand.step(expected.params, total)
    Trainer(model, stream, SGD(0.5), steps=2, gradient_accumulation_steps=2, progress=False).train()
    for name, p in expected.params.items():
        assert_close(model.params[name], p, terms=400, name=name)


def test_accumulation_belongs_to_the_run(tmp_path):
    run(gradient_accumulation_steps=2, directory=tmp_path).train()
    with pytest.raises(gpurnn.training.CheckpointError, match="a run whose gradient_accumulation_steps is 2, but here"):
        run(directory=tmp_path, resume=True)
    with pytest.raises(ValueError, match="Trainer: gradient_accumulation_steps is 0, expected at least 1"):
        run(gradient_accumulation_steps=0)


EVERYTHING = {
    "steps": 9, "gradient_accumulation_steps": 2, "clip_norm": 0.05, "l2": 1e-3, "schedule": "cosine",
    "validation_interval": 2, "log_interval": 2,
}  # fmt: skip


def everything(**options):
    optimizer = AdamW(
        0.05, lr_scale={"weight_hh": 0.5}, weight_decay={"weight": 0.1}, frozen=["bias_hh"], ema_decay=0.8
    )
    return run(optimizer=optimizer, validation=data(22, shuffle=False), **{**EVERYTHING, **options})


@pytest.mark.parametrize("patience", [None, 9])
@pytest.mark.parametrize("stop", [1, 2, 5, 6])
def test_a_run_with_everything_resumes_to_the_same_bits(tmp_path, stop, patience):
    whole = everything(patience=patience)
    whole.train()

    class Stop(Exception):
        pass

    def stop_here():
        if first.step == stop:
            raise Stop

    first = everything(patience=patience, directory=tmp_path, checkpoint_interval=1, on_checkpoint=stop_here)
    with pytest.raises(Stop):
        first.train()
    again = everything(patience=patience, directory=tmp_path, resume=True)
    assert again.step == stop
    copied = pickle.loads(pickle.dumps(everything(patience=patience)))
    again.train()
    copied.train()
    for other in (again, copied):
        assert_same(other.model.params, whole.model.params)
        assert_same(other.optimizer.state_dict(), whole.optimizer.state_dict())
        assert other.epoch_history == whole.epoch_history


def test_the_averages_are_validated_and_left_in_the_model():
    trainer = everything(schedule=None)
    trainer.train()
    averages = trainer.optimizer.averages
    for name, a in averages.items():
        assert_same(trainer.model.params[name], a)
    last = [line["validation_loss"] for line in trainer.history if "validation_loss" in line][-1]
    assert evaluate(trainer.model, trainer.validation) == last
    # A longer run continues with the parameters, not their averages.
    trainer.total = 12
    trainer.train()
    longer = everything(schedule=None, steps=12)
    longer.train()
    assert_same(trainer.model.params, longer.model.params)


def test_early_stopping_keeps_the_best_averages():
    shuffled = np.random.default_rng(1).permutation(22)
    noise = PaddedBatches(list(X), 22, [Y[i] for i in shuffled], per_sequence=True, shuffle=False)
    trainer = run(optimizer=Adam(0.1, ema_decay=0.5), validation=noise, validation_interval=1, patience=3, steps=60)
    trainer.train()
    assert trainer.stopped_early
    best = min(line["validation_loss"] for line in trainer.history if "validation_loss" in line)
    assert evaluate(trainer.model, noise) == best


def test_fit_takes_an_optimizer_with_groups():
    model = classifier()
    start = model.state_dict()
    model.fit(X, [int(y) for y in Y], epochs=3, optimizer=Adam(0.01, frozen=["recurrent"], ema_decay=0.9))
    for name, p in model.params.items():
        assert np.array_equal(p, start[name]) == ("recurrent" in name)
