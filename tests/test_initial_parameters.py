"""Initial parameters are made on first use, and not at all where they are overwritten."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from tolerance import assert_same

import gpurnn

LAYERS = {
    "LSTM": lambda **k: gpurnn.LSTM(2, 3, 2, bidirectional=True, **k),
    "GRU": lambda **k: gpurnn.GRU(2, 3, dtype="float64", **k),
    "RNN": lambda **k: gpurnn.RNN(2, 3, bias=False, init="uniform", **k),
}


@pytest.fixture
def nothing_is_factored(monkeypatch):
    """Makes orthogonal initialisation fail, until the function that this fixture yields is called."""

    def qr(*arguments):
        raise AssertionError("an orthogonal start was made")

    with monkeypatch.context() as patch:
        patch.setattr(np.linalg, "qr", qr)
        yield patch.undo


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_they_have_the_bits_of_a_generator(make):
    layer, eager = make(rng=5), make(rng=np.random.default_rng(5))
    assert "params" in vars(eager)
    assert "params" not in vars(layer)
    assert repr(layer) == repr(eager)
    assert layer.config() == eager.config()
    assert "params" not in vars(layer)
    assert_same(layer.params, eager.params)
    assert [type(name) for name in layer.params] == [type(name) for name in eager.params]
    assert layer.params is layer.params


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_have_them_too(copied):
    layer = gpurnn.Sequential(gpurnn.LSTM(2, 3, rng=1), gpurnn.Dense(3, 1))
    assert_same(copied(layer).params, layer.params)
    assert_same(layer.params, gpurnn.Sequential(gpurnn.LSTM(2, 3, rng=1), gpurnn.Dense(3, 1)).params)


def test_threads_that_ask_at_once_get_the_same():
    for _ in range(20):
        layer, together = gpurnn.GRU(3, 40), Barrier(4)

        def ask(_, layer=layer, together=together):
            together.wait()
            return layer.params

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(ask, range(4)))
        assert all(params is layer.params for params in found)


def test_loading_makes_none(tmp_path, nothing_is_factored):
    state = {name: np.full(p.shape, 0.5, "float32") for name, p in gpurnn.LSTM(2, 3, init="zeros").params.items()}
    layer = gpurnn.LSTM(2, 3)
    layer.load_state_dict(state)
    assert_same(layer.params, state)
    layer.save(tmp_path / "layer")
    stack, held = gpurnn.Sequential(gpurnn.LSTM(2, 3), gpurnn.Dense(3, 2)), gpurnn.LSTM(2, 3)
    stack.load_state_dict(
        {**{f"0.{n}": a for n, a in state.items()}, "1.weight": np.ones((2, 3), "f4"), "1.bias": np.ones(2, "f4")}
    )
    assert_same(stack.params["0.bias_ih_l0"], state["bias_ih_l0"])
    held.load(tmp_path / "layer")
    assert_same(held.params, state)
    with pytest.raises(AssertionError, match="an orthogonal start was made"):
        _ = gpurnn.LSTM(2, 3).params


def test_after_a_load_that_fails_they_are_the_initial_ones(tmp_path, nothing_is_factored):
    gpurnn.GRU(2, 3, init="zeros").save(tmp_path / "other")
    layer, stack = gpurnn.LSTM(2, 3), gpurnn.Sequential(gpurnn.LSTM(2, 3))
    for made in (layer, stack):
        with pytest.raises(gpurnn.FileFormatError):
            made.load(tmp_path / "other")
        with pytest.raises(KeyError, match="missing"):
            made.load_state_dict({})
    nothing_is_factored()
    assert_same(layer.params, gpurnn.LSTM(2, 3).params)
    assert_same(stack.params["0.weight_hh_l0"], layer.params["weight_hh_l0"])


def test_a_layer_that_explain_is_shown_keeps_them(nothing_is_factored):
    layer = gpurnn.LSTM(2, 3)
    gpurnn.explain(layer, (4, 1, 2))
    nothing_is_factored()
    gpurnn.explain(lambda: gpurnn.Sequential(layer), (4, 1, 2))
    gpurnn.explain(lambda: copy.copy(layer), (4, 1, 2))
    assert layer.params["weight_hh_l0"].any()


def test_what_a_constructor_rejects_it_rejects_at_once():
    with pytest.raises(MemoryError, match="a parameter has shape"):
        gpurnn.LSTM(2, 2**40)
    with pytest.raises(ValueError, match="LSTM: rng is -1"):
        gpurnn.LSTM(2, 3, rng=-1)
    with pytest.raises(ValueError, match="init is 'ortogonal'"):
        gpurnn.LSTM(2, 3, init="ortogonal")
