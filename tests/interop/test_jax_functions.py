"""The functions of gpurnn.jax under JAX's transformations."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import gpurnn

jax = pytest.importorskip("jax")
jnp = jax.numpy

from jax.test_util import check_grads  # noqa: E402

import gpurnn.jax as functions  # noqa: E402

T, B, I, H = 4, 2, 3, 2
RNG = np.random.default_rng(0)
GATES = {"rnn": 1, "lstm": 4, "gru": 3, "indrnn": 1, "mingru": 2, "minlstm": 3}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem(name: str):
    sizes = {
        "x": (T, B, I), "weight_ih": (GATES[name] * H, I),
        "weight_hh": (H,) if name == "indrnn" else (GATES[name] * H, H), "bias_ih": (GATES[name] * H,),
        **OF_CELLS.get(name, {}),
    }  # fmt: skip
    if name.startswith("min"):
        del sizes["weight_hh"]
    arrays = {n: jnp.asarray(RNG.normal(size=shape)) for n, shape in sizes.items()}
    h = jnp.asarray(RNG.normal(size=(B, H)))
    return {**arrays, "state": (h, h) if name == "lstm" else h}


# The arguments that are options of the cell.
OF_CELLS = {
    "lstm": {f"peephole_{gate}": (H,) for gate in "ifo"},
    "gru": {"norm_ih": (3 * H,), "norm_hh": (3 * H,)},
}
OPTIONS = {
    "rnn": {"activation": "sigmoid", "leak": 0.5, "dropout_h": np.array([[0.0, 2.0]] * B)},
    "lstm": {"lengths": np.array([4, 2]), "cell_clip": 0.5, "dropout_g": np.array([[[0.0, 2.0]] * B] * T)},
    "gru": {
        "reset_after": True,
        "resets": np.array([[False, True]] * T),
        "zoneout_h": np.array([[[0.0, 1.0]] * B] * T),
    },
    "indrnn": {"clip": 5.0, "mask": np.array([[True, False]] * T)},
    "mingru": {"mask": np.array([[True, False]] * T)},
    "minlstm": {"resets": np.array([[False, True]] * T)},
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("wing", ["reference", "native"])
def test_gradients_under_jit_are_those_of_gpurnn(name, wing):
    arrays, options = problem(name), {n: v if np.isscalar(v) else jnp.asarray(v) for n, v in OPTIONS[name].items()}
    cotangent = RNG.normal(size=(T, B, H))

    def loss(arrays):
        y, state = getattr(functions, name)(**arrays, **options)
        return (y * cotangent).sum() + sum(s.sum() for s in jax.tree.leaves(state))

    plain = jax.tree.map(np.asarray, arrays)
    with gpurnn.use(wing):
        (y, state), pullback = getattr(gpurnn, name).vjp(**plain, **OPTIONS[name])
        (dx, dstate), gradients = pullback((cotangent, jax.tree.map(np.ones_like, state)))
        expected = {"x": dx, "state": dstate, **gradients}
        for function in (jax.grad(loss), jax.jit(jax.grad(loss))):
            result = function(arrays)
            assert result.keys() == arrays.keys()
            for one, other in zip(
                jax.tree.leaves(result), jax.tree.leaves({n: expected[n] for n in result}), strict=True
            ):
                np.testing.assert_array_equal(one, other)
        value = jax.jit(lambda a: getattr(functions, name)(**a, **options))(arrays)
        np.testing.assert_array_equal(value[0], y)


def test_gradients_against_differences():
    arrays = problem("gru")
    check_grads(
        lambda x, w: functions.gru(x, arrays["weight_ih"], w, update="state")[0], (arrays["x"], arrays["weight_hh"]),
        order=1, modes=["rev"],
    )  # fmt: skip


def test_a_batch_of_models_by_vmap():
    models = [problem("rnn") for _ in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *models)
    y, _ = jax.vmap(lambda a: functions.rnn(**a))(stacked)
    for k, arrays in enumerate(models):
        np.testing.assert_array_equal(y[k], gpurnn.rnn(**jax.tree.map(np.asarray, arrays))[0])


def test_without_a_transformation_it_is_the_function_of_gpurnn():
    arrays = problem("lstm")
    y, (h, c) = functions.lstm(**arrays)
    assert all(isinstance(a, jax.Array) for a in (y, h, c))
    np.testing.assert_array_equal(y, gpurnn.lstm(**jax.tree.map(np.asarray, arrays))[0])


@pytest.mark.parametrize("name", GATES)
def test_signatures_are_those_of_gpurnn(name):
    assert inspect.signature(getattr(functions, name)) == inspect.signature(getattr(gpurnn, name))


def test_bad_input_is_rejected_when_it_is_traced():
    arrays = problem("gru")
    with pytest.raises(ValueError, match=r"gru: weight_hh has shape \(2, 6\)"):
        jax.jit(lambda a: functions.gru(a["x"], a["weight_ih"], a["weight_hh"].T))(arrays)
    with pytest.raises(ValueError, match="update is 'both'"):
        jax.jit(lambda a: functions.gru(a["x"], a["weight_ih"], a["weight_hh"], update="both"))(arrays)
    with pytest.raises(TypeError, match="unexpected keyword"):
        functions.gru(arrays["x"], arrays["weight_ih"], arrays["weight_hh"], colour=1)
