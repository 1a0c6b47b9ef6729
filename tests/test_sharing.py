"""A layer or array used in two places is one parameter for gradients, optimizers, norms, counts and files."""

import copy
import math
import pickle

import numpy as np
import pytest

import gpurnn
from gpurnn import _sharing, gradients, models
from gpurnn.layers import Decoder
from gpurnn.training import PaddedBatches, TokenStream

OPTIMIZERS = [
    gpurnn.SGD(0.1, momentum=0.9, weight_decay=0.1),
    gpurnn.RMSprop(0.1, weight_decay=0.1),
    gpurnn.Adam(0.1, weight_decay=0.1, recurrent_weight_decay=0.1),
    gpurnn.AdamW(0.1, weight_decay=0.1),
    gpurnn.Adagrad(0.1, weight_decay=0.1),
    gpurnn.Adadelta(0.1, weight_decay=0.1),
    gpurnn.NAdam(0.1, weight_decay=0.1),
    gpurnn.Adamax(0.1, weight_decay=0.1),
    gpurnn.Rprop(0.1, weight_decay=0.1),
]


def dense(rng=0, **options):
    return gpurnn.Dense(3, 3, dtype="float64", rng=rng, **options)


def same_layer_twice():
    layer = dense()
    return gpurnn.Sequential(layer, dense(1), layer)


def same_array_twice():
    a, b = dense(), dense(1)
    b.params["weight"] = a.params["weight"]
    return gpurnn.Sequential(a, b)


def same_memory_twice():
    a, b = dense(), dense(1)
    b.params["weight"] = a.params["weight"].reshape(3, 3)
    assert b.params["weight"] is not a.params["weight"]
    return gpurnn.Sequential(a, b)


def nested():
    layer = dense()
    return gpurnn.Sequential(gpurnn.Sequential(layer, layer), dense(1), layer)


def stack():
    """Both layers share their recurrent weights."""
    layer = gpurnn.LSTM(3, 3, 2, dtype="float64")
    for name in ("weight_ih", "weight_hh", "bias_hh"):
        layer.params[f"{name}_l1"] = layer.params[f"{name}_l0"]
    return gpurnn.Sequential(layer)


def blocks():
    block = gpurnn.TransformerBlock(3, 1, dtype="float64")
    return gpurnn.Sequential(block, block)


def recurrent_twice():
    gru = gpurnn.GRU(3, 3, dtype="float64")
    return gpurnn.Sequential(gru, gru, dense())


SEQUENTIALS = [same_layer_twice, same_array_twice, same_memory_twice, nested, stack, blocks, recurrent_twice]


def untied(model):
    """A copy in which no arrays are shared, named by their places."""
    apart = copy.deepcopy(model)

    def copies(layer):
        if isinstance(layer, gpurnn.Sequential):
            return gpurnn.Sequential(*map(copies, layer.layers))
        layer = copy.deepcopy(layer)
        for held, own in layer._places().values():
            held[own] = held[own].copy()
        return layer

    return copies(apart)


@pytest.mark.parametrize("make", SEQUENTIALS)
def test_the_gradient_is_the_sum_over_the_places(make, each_wing):
    model = make()
    other = untied(model)
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    (y, _), pull = model.vjp(x)
    (z, _), pull_other = other.vjp(x)
    np.testing.assert_array_equal(y, z)
    (dx, _), grads = pull((2 * y, None))
    (dz, _), apart = pull_other((2 * z, None))
    np.testing.assert_array_equal(dx, dz)
    first = model._first_names()
    assert len(apart) == len(first) > len(model.params)
    assert list(grads) == list(model.params) == list(dict.fromkeys(first.values()))
    for name in grads:
        places = [apart[place] for place, parameter in first.items() if parameter == name]
        np.testing.assert_allclose(grads[name], sum(places), rtol=1e-14, atol=1e-14)
    assert model.num_parameters == sum(p.size for p in model.params.values()) < other.num_parameters


def test_the_gradient_is_the_derivative():
    model = same_layer_twice()
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    (y, _), pull = model.vjp(x)
    _, grads = pull((2 * y, None))
    weight, h = model.params["0.weight"], 1e-6
    for index in np.ndindex(weight.shape):
        kept = weight[index]
        weight[index] = kept + h
        above = (model(x)[0] ** 2).sum()
        weight[index] = kept - h
        below = (model(x)[0] ** 2).sum()
        weight[index] = kept
        assert grads["0.weight"][index] == pytest.approx((above - below) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_an_array_under_two_names_is_updated_once(optimizer, wing):
    rng = np.random.default_rng(0)
    values, g = rng.normal(size=(4, 3)), rng.normal(size=(5, 4, 3))
    one = {"weight_hh_l0": wing.to(values), "bias": wing.to(values[0])}
    shared = wing.to(values)
    two = {"weight_hh_l0": shared, "bias": wing.to(values[0]), "again": shared, "third": shared[:]}
    single, several = copy.deepcopy(optimizer), copy.deepcopy(optimizer)
    with gpurnn.use("host" if wing.name == "host" else "reference"):
        for k in range(3):
            bias = wing.to(g[k, 0])
            parts = [wing.to(g[k + i]) for i in range(3)]
            single.step(one, {"weight_hh_l0": parts[0] + parts[1] + parts[2], "bias": bias})
            several.step(two, {"weight_hh_l0": parts[0], "bias": bias, "again": parts[1], "third": parts[2]})
            assert two["again"] is shared
    np.testing.assert_array_equal(wing.back(one["weight_hh_l0"]), wing.back(shared))
    assert single.state_dict().keys() == several.state_dict().keys()
    fresh = copy.deepcopy(optimizer)
    fresh.load_state_dict(several.state_dict())
    fresh.step(two, {"weight_hh_l0": parts[0], "bias": bias})  # the sum under the first name is enough


def test_the_gradient_may_stand_under_any_of_the_names():
    for name in ("a", "b"):
        shared = np.ones(2)
        gpurnn.SGD(1.0).step({"a": shared, "b": shared}, {name: np.ones(2)})
        assert shared.tolist() == [0, 0]
    with pytest.raises(KeyError, match=r"SGD\.step: missing \['a'\], unknown \['c'\]"):
        gpurnn.SGD(1.0).step({"a": shared, "b": shared}, {"c": np.ones(2)})
    with pytest.raises(ValueError, match=r"SGD.step: grads\['b'\] has shape \(3,\)"):
        gpurnn.SGD(1.0).step({"a": shared, "b": shared}, {"a": np.ones(2), "b": np.ones(3)})


@pytest.mark.parametrize("norm_type", [1, 2, math.inf])
def test_the_norm_counts_each_name_whatever_array_it_has(norm_type):
    """Two biases can have one array as their gradient. The gradients of a parameter with two names are added."""
    g = np.array([3.0, -4.0])
    both = np.linalg.norm([3, -4, 3, -4], norm_type)
    assert gpurnn.global_norm({"bias_ih": g, "bias_hh": g}, norm_type) == pytest.approx(both, rel=1e-15)
    clipped, norm = gpurnn.clip_by_global_norm({"bias_ih": g, "bias_hh": g}, both / 2, norm_type)
    assert float(norm) == pytest.approx(both, rel=1e-15)
    assert gpurnn.global_norm(clipped, norm_type) == pytest.approx(both / 2, rel=1e-6)
    shared = np.ones(2)
    summed = gpurnn.add_l2({"a": g, "b": g}, {"a": shared, "b": shared}, 0)
    assert gpurnn.global_norm(summed, norm_type) == pytest.approx(np.linalg.norm(2 * g, norm_type), rel=1e-15)


def test_norm_clipping_and_l2_know_one_parameter():
    model = same_layer_twice()
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    (y, _), pull = model.vjp(x)
    _, grads = pull((2 * y, None))
    assert float(gpurnn.global_norm(grads)) == pytest.approx(
        math.sqrt(sum(float((g**2).sum()) for g in grads.values())), rel=1e-15
    )
    penalised = gpurnn.add_l2(grads, model.params, 0.5)
    np.testing.assert_array_equal(penalised["0.weight"], grads["0.weight"] + 0.5 * model.params["0.weight"])
    shared = np.ones((2, 2))
    found = gpurnn.add_l2({"weight": shared, "b.weight": 2 * shared}, {"weight": shared, "b.weight": shared}, 0.5)
    assert {name: g.tolist() for name, g in found.items()} == {"weight": [[3.5, 3.5], [3.5, 3.5]]}


@pytest.mark.parametrize(
    "view",
    [lambda w: w.T, lambda w: w[::-1], lambda w: w[:2], lambda w: w[1:], lambda w: w.reshape(-1), lambda w: w[:, 1:2]],
)
def test_another_view_of_the_same_memory_is_refused(view):
    w = np.ones((3, 3))
    params = {"a": w, "apart": np.ones(2), "b": view(w)}
    grads = {name: p.copy() for name, p in params.items()}
    for call in (
        lambda: gpurnn.Adam().step(params, grads),
        lambda: gpurnn.Adam().step(dict(reversed(params.items())), grads),
        lambda: gpurnn.add_l2(grads, params, 0.1),
    ):
        with pytest.raises(ValueError, match=r": params\['[ab]'\] has memory in common with params\['[ab]'\]"):
            call()


@pytest.mark.parametrize(
    "views",
    [lambda w: (w[:2], w[2:]), lambda w: (w[:, :1], w[:, 1:]), lambda w: (w[::2], w[1::2]), lambda w: (w[:0], w)],
)
def test_parts_of_one_array_that_do_not_overlap_are_parameters_each(views):
    a, b = views(np.ones((4, 4)))
    gpurnn.SGD(1.0).step({"a": a, "b": b}, {"a": np.ones(a.shape), "b": np.full(b.shape, 2.0)})
    assert (a == 0).all()
    assert (b == -1).all()


def test_arrays_of_a_library_that_tells_no_addresses_are_one_where_they_are_one_object(strict_namespace):
    import strict_wing

    a, b = strict_wing.strict([np.ones(2), np.ones(2)])
    assert _sharing.first_names({"a": a, "b": b, "c": a}) == {"a": "a", "b": "b", "c": "a"}
    gpurnn.SGD(1.0).step({"a": a, "c": a}, {"a": b, "c": b})
    assert strict_wing.plain(a).tolist() == [-1, -1]


def is_tied(model):
    return (
        model._shared() == {"1.weight": "0.weight"}
        and model.layers[0].params["weight"] is model.layers[1].params["weight"]
    )


@pytest.mark.parametrize("make", [same_array_twice, same_memory_twice])
def test_copies_stay_tied(make, tmp_path):
    model = make()
    assert is_tied(copy.deepcopy(model))
    assert is_tied(pickle.loads(pickle.dumps(model)))
    moved = model.to(np)
    assert is_tied(moved)
    assert not np.shares_memory(moved.params["0.weight"], model.params["0.weight"])
    assert not np.shares_memory(copy.deepcopy(model).params["0.weight"], model.params["0.weight"])


@pytest.mark.parametrize("make", SEQUENTIALS)
def test_moved_and_copied_models_have_the_same_parameters(make):
    model = make()
    for other in (model.to(np), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._first_names() == model._first_names()
        assert other.num_parameters == model.num_parameters


def test_a_state_holds_a_shared_array_once(tmp_path):
    model, other = same_array_twice(), same_array_twice()
    state = model.state_dict()
    assert sorted(state) == ["0.bias", "0.weight", "1.bias"]
    other.params["0.weight"][...] = 0
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.layers[1].params["weight"], model.params["0.weight"])
    other.params["0.weight"][...] = 0
    model.save(tmp_path / "tied")
    other.load(tmp_path / "tied")
    np.testing.assert_array_equal(other.layers[1].params["weight"], model.params["0.weight"])


def test_a_state_of_an_untied_model_and_a_tied_one():
    model, free = same_array_twice(), gpurnn.Sequential(dense(), dense(1))
    with pytest.raises(
        ValueError, match=r"load_state_dict: 1\.weight differs from 0\.weight, expected the same values"
    ):
        model.load_state_dict(free.state_dict())
    with pytest.raises(KeyError, match=r"missing \['1\.weight'\]"):
        free.load_state_dict(model.state_dict())
    # PyTorch writes a tied parameter under both names.
    both = {**model.state_dict(), "1.weight": model.params["0.weight"].copy()}
    model.load_state_dict(both)
    free.load_state_dict(both)
    # A leaf lists its arrays under all their names.
    leaf = stack().layers[0]
    leaf.load_state_dict(leaf.state_dict())
    with pytest.raises(ValueError, match="weight_hh_l1 differs from weight_hh_l0"):
        leaf.load_state_dict({**leaf.state_dict(), "weight_hh_l1": np.zeros((12, 3))})


def tied_translator():
    """One table for source, target and output."""
    model = gpurnn.EncoderDecoder(6, 6, 4, 4, dtype="float64", rng=0)
    model.target = model.source
    model.output.params["weight"] = model.source.params["weight"]
    return model


def test_a_model_tied_by_hand_is_saved_and_loaded_as_one(tmp_path):
    model = tied_translator()
    assert "target.weight" not in model.params
    assert "output.weight" not in model.params
    model.save(tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    assert loaded._shared() == {"target.weight": "source.weight", "output.weight": "source.weight"}
    assert loaded.num_parameters == model.num_parameters
    source, previous = np.array([[3, 4], [5, 3]]), np.array([[1, 1], [4, 5]])
    np.testing.assert_array_equal(loaded(source, previous)[0], model(source, previous)[0])
    assert "shared" not in loaded.config()


def test_the_gradient_of_a_tied_model_is_the_sum(each_wing):
    model = tied_translator()
    free = gpurnn.EncoderDecoder(6, 6, 4, 4, dtype="float64", rng=0)
    for name, p in free.params.items():
        p[...] = model.params.get(name, model.params["source.weight"] if p.shape == (6, 4) else None)
    source, targets = np.array([[3, 4], [5, 3]]), (np.array([[4, 5], [2, 2]]), np.array([2, 2]))
    loss, _, grads = model.loss_and_gradients(source, targets)
    expected, _, apart = free.loss_and_gradients(source, targets)
    assert loss == expected
    total = apart["source.weight"] + apart["target.weight"] + apart["output.weight"]
    np.testing.assert_allclose(grads["source.weight"], total, rtol=1e-14)
    assert list(grads) == list(model.params)


def test_a_decoder_whose_arrays_are_tied():
    decoder = Decoder(gpurnn.GRU(3, 4, dtype="float64"), "general", memory_size=4)
    other = Decoder(gpurnn.GRU(3, 4, dtype="float64"), "general", memory_size=4)
    other._own["weight"] = decoder._own["weight"]
    assert decoder.to(np)._shared() == {}
    assert list(decoder.params)[-2:] == ["weight", "weight_combine"]


class Regression:
    """A model that a user might write: a dict of parameters, two of which are one array, and a gradient for each."""

    def __init__(self, shared):
        w = np.full((2, 2), 0.5)
        self.params = {"a.weight": w, "b.weight": w if shared else w.copy()}

    def loss(self, inputs, targets, state=None, lengths=None):
        return self.loss_and_gradients(inputs, targets)[:2]

    def loss_and_gradients(self, inputs, targets, state=None, lengths=None, *, rng=None):
        x = inputs[0]
        h = x @ self.params["a.weight"]
        error = h @ self.params["b.weight"] - targets
        grads = {"a.weight": x.T @ (error @ self.params["b.weight"].T), "b.weight": h.T @ error}
        return (error**2).sum() / 2, None, grads


def run(model, directory, steps, **options):
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(1, 2)) for _ in range(8)]
    targets = [rng.normal(size=2) for _ in range(8)]
    data = PaddedBatches(sequences, 4, targets, per_sequence=True, shuffle=False)
    return gpurnn.Trainer(
        model, data, gpurnn.Adam(0.1), steps=steps, clip_norm=0.5, l2=0.1, progress=False, directory=directory,
        checkpoint_interval=3, log_interval=1, validation=data, patience=9, **options,
    )  # fmt: skip


def test_a_users_model_with_one_array_under_two_names_is_trained_and_resumed(tmp_path):
    model, seen = Regression(shared=True), []
    trainer = run(model, tmp_path, 7, on_gradients=lambda step, params, grads: seen.append((list(params), list(grads))))
    trainer.train()
    assert seen[0] == (["a.weight"], ["a.weight"])
    assert model.params["a.weight"] is model.params["b.weight"]
    by_hand, optimizer, data = Regression(shared=True), gpurnn.Adam(0.1), trainer.data
    for step in range(7):
        batch = data.batch(step // 2, step % 2)
        _, _, g = by_hand.loss_and_gradients(batch.inputs, batch.targets)
        w = by_hand.params["a.weight"]
        clipped, norm = gpurnn.clip_by_global_norm({"w": g["a.weight"] + g["b.weight"] + 0.1 * w}, 0.5)
        assert trainer.history[0]["gradient_norm"] == float(norm) or step
        optimizer.step({"w": w}, clipped)
    trainer._best = None
    resumed = Regression(shared=True)
    again = run(resumed, tmp_path, 7, on_gradients=None)
    assert again.resume() == 7
    assert resumed.params["a.weight"] is resumed.params["b.weight"]
    np.testing.assert_array_equal(resumed.params["a.weight"], w)


def test_a_tied_model_is_trained_and_resumed_bit_for_bit(tmp_path):
    def trainer(directory, steps):
        vocabulary = gpurnn.CharVocabulary("?ab")
        model = gpurnn.LanguageModel(vocabulary, 3, 3, rng=0)
        model.output.params["weight"] = model.embedding.params["weight"]
        data = TokenStream(np.arange(40) % 3, 2, 4)
        return gpurnn.Trainer(
            model, data, gpurnn.Adam(0.1), steps=steps, progress=False, directory=directory, checkpoint_interval=2
        )

    whole = trainer(tmp_path / "a", 6)
    whole.train()
    part = trainer(tmp_path / "b", 4)
    part.train()
    rest = trainer(tmp_path / "b", 6)
    rest.resume()
    rest.train()
    assert "output.weight" not in rest.model.params
    for name, p in whole.model.params.items():
        np.testing.assert_array_equal(rest.model.params[name], p)


def test_a_trainer_refuses_parameters_that_overlap():
    model = Regression(shared=True)
    model.params["b.weight"] = model.params["a.weight"].T
    with pytest.raises(ValueError, match=r"Trainer: params\['b.weight'\] has memory in common"):
        run(model, None, 1)


def test_parameters_apart_are_known_without_addresses(monkeypatch):
    model = gpurnn.Sequential(gpurnn.LSTM(3, 4, 2), gpurnn.Dense(4, 3))
    monkeypatch.setattr(_sharing, "_address", lambda array: pytest.fail("an address is asked for"))
    assert len(model.params) == 10
    gradients.of_parameters("test", model.params, {})


def classifier():
    return gpurnn.SequenceClassifier(3, 4, 2)


@pytest.mark.parametrize("make", [dense, nested, stack, classifier, lambda: gpurnn.Decoder(gpurnn.GRU(3, 3))])
def test_an_assignment_to_params_reaches_the_layers_and_all_places(make):
    layer = make()
    for name, p in layer.params.items():
        value = np.full_like(p, 0.5)
        layer.params[name] = value
        assert layer.params[name] is value
        places = layer._places()
        assert all(places[n][0][places[n][1]] is value for n, first in layer._first_names().items() if first == name)
    layer.params.update({name: p + 1 for name, p in layer.params.items()})
    assert all((p == 1.5).all() for p in layer.state_dict().values())
    assert layer.params.keys() == make().params.keys()


def test_an_assignment_in_a_sequential_keeps_what_is_tied():
    for make in SEQUENTIALS:
        model = make()
        shared = model._shared()
        for name, p in model.params.items():
            model.params[name] = p + 1
        assert model._shared() == shared
        x = np.ones((2, 1, 3))
        other = make()
        other.load_state_dict(model.state_dict())
        np.testing.assert_array_equal(model(x)[0], other(x)[0])


def test_an_assignment_of_a_parameter_to_another_ties_them():
    model = gpurnn.Sequential(dense(), dense(1))
    model.params["1.weight"] = model.params["0.weight"]
    assert list(model.params) == ["0.weight", "0.bias", "1.bias"]


@pytest.mark.parametrize("make", [dense, nested, classifier])
def test_an_assignment_that_does_not_fit_is_rejected(make):
    layer = make()
    before = layer.state_dict()
    name, p = next(iter(layer.params.items()))
    wrong = name.replace("weight", "weigth")
    for change in (layer.params.__setitem__, lambda n, value: layer.params.update({n: value})):
        with pytest.raises(KeyError, match=f"^\"params: '{wrong}' is not a parameter, .*did you mean {name}"):
            change(wrong, p)
        with pytest.raises(ValueError, match=r"^params: .* has shape .*, expected the parameter's shape"):
            change(name, p[:1])
        with pytest.raises(TypeError, match=r"^params: .* has dtype float16, expected"):
            change(name, p.astype("float16"))
        with pytest.raises(TypeError, match=r"^params: .* is a float, expected a numpy.ndarray"):
            change(name, 0.0)
    for delete in (layer.params.__delitem__, layer.params.pop, lambda _: layer.params.clear()):
        with pytest.raises(TypeError, match=r"^params: .* is to be deleted, expected a parameter to stay"):
            delete(name)
    np.testing.assert_equal(layer.state_dict(), before)
