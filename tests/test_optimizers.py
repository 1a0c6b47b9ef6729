"""Optimizers: PyTorch's trajectories, the formulas, saved states, and bad arguments."""

from __future__ import annotations

import dataclasses

import golden
import numpy as np
import pytest
from gpurnn.reference import optim as wing
from tolerance import assert_close, assert_golden, assert_same

from gpurnn.optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RMSprop, Rprop

pytestmark = pytest.mark.usefixtures("each_wing")

DTYPES = ("float64", "float32")
CLASSES = {
    "sgd": SGD, "rmsprop": RMSprop, "adam": Adam, "adamw": AdamW, "adagrad": Adagrad, "adadelta": Adadelta,
    "nadam": NAdam, "adamax": Adamax, "rprop": Rprop,
}  # fmt: skip
CASES = [r for r in golden.records("misc") if r["kind"] == "optimizer"]

EVERY = {
    "sgd": lambda **k: SGD(0.1, **k),
    "momentum": lambda **k: SGD(0.1, momentum=0.9, dampening=0.2, **k),
    "nesterov": lambda **k: SGD(0.1, momentum=0.9, nesterov=True, **k),
    "rmsprop": lambda **k: RMSprop(0.02, **k),
    "rmsprop-all": lambda **k: RMSprop(0.02, alpha=0.9, momentum=0.9, centered=True, **k),
    "adam": lambda **k: Adam(0.02, **k),
    "amsgrad": lambda **k: Adam(0.02, betas=(0.8, 0.95), eps=1e-4, amsgrad=True, **k),
    "adamw": lambda **k: AdamW(0.02, **{"weight_decay": 0.3, **k}),
    "adagrad": lambda **k: Adagrad(0.1, lr_decay=0.05, initial_accumulator_value=0.1, **k),
    "adadelta": lambda **k: Adadelta(0.5, rho=0.8, **k),
    "nadam": lambda **k: NAdam(0.02, betas=(0.8, 0.95), momentum_decay=0.3, **k),
    "adamax": lambda **k: Adamax(0.02, betas=(0.8, 0.95), **k),
    "rprop": lambda **k: Rprop(0.02, etas=(0.4, 1.5), step_sizes=(0.01, 0.04), **k),
}


def parameters(dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2), "bias_ih_l0": (8,), "1.weight": (5, 2), "scale": ()}
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def run(optimizer, params, steps, dtype="float64", start=0):
    for step in range(start, start + steps):
        optimizer.step(params, parameters(dtype, seed=100 + step))
    return params


def test_the_cases_are_there():
    assert {r["name"].split("_")[1] for r in CASES} == {
        "sgd0", "sgd1", "sgd2", "sgd3", "adam0", "adam1", "adam2", "adamw0", "adamw1", "rmsprop0", "rmsprop1",
        "adagrad0", "adagrad1", "adadelta0", "adadelta1", "nadam0", "adamax0", "rprop0",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("record", CASES, ids=lambda record: record["name"])
def test_trajectories_are_those_of_torch(record, dtype):
    a = golden.arrays("misc", record["name"], dtype)
    optimizer = CLASSES[record["algo"]](**record["kwargs"])
    params = {"weight": a["params"][0].copy()}
    for step, grad in enumerate(a["grads"]):
        before = grad.copy()
        optimizer.step(params, {"weight": grad})
        assert_same(grad, before)
        # A step has at most twenty roundings, and carries on those of the steps before.
        assert_golden(params["weight"], a["params"][step + 1], 20 * (step + 1), f"step {step}")


@pytest.mark.parametrize("algorithm", CLASSES.values())
def test_defaults_are_those_of_torch(algorithm):
    defaults = {
        SGD: {"lr": 0.001, "momentum": 0.0, "dampening": 0.0, "nesterov": False},
        RMSprop: {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False},
        Adam: {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False},
        AdamW: {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "weight_decay": 0.01},
        Adagrad: {"lr": 0.01, "lr_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
        Adadelta: {"lr": 1.0, "rho": 0.9, "eps": 1e-6},
        NAdam: {"lr": 0.002, "betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 0.004},
        Adamax: {"lr": 0.002, "betas": (0.9, 0.999), "eps": 1e-8},
        Rprop: {"lr": 0.01, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)},
    }
    found = {option.name: option.default for option in dataclasses.fields(algorithm) if option.init}
    others = {"weight_decay": 0.0, "recurrent_weight_decay": 0.0, "lr_scale": None, "frozen": (), "ema_decay": None}
    assert found == {**others, **defaults[algorithm]}
    assert repr(algorithm()) == f"{algorithm.__name__}(lr={defaults[algorithm]['lr']})"
    assert repr(algorithm(0.5, weight_decay=0.25)) == f"{algorithm.__name__}(lr=0.5, weight_decay=0.25)"


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_recurrent_weight_decay_shrinks_w_hh_and_nothing_else(name, weight_decay):
    # One step from the same state: W_hh <- (1 - lambda_r) W_hh - (the step), whatever the step is.
    params, grads = parameters(), parameters(seed=1)
    plain, decayed = ({n: p.copy() for n, p in params.items()} for _ in range(2))
    EVERY[name](weight_decay=weight_decay).step(plain, grads)
    EVERY[name](weight_decay=weight_decay, recurrent_weight_decay=0.2).step(decayed, grads)
    kept = 1 - 0.02 * weight_decay if name == "adamw" else 1
    for n, p in params.items():
        expected = plain[n] - 0.2 * kept * p if n == "weight_hh_l0" else plain[n]
        assert_close(decayed[n], np.asarray(expected), terms=8, name=n)


def test_recurrent_weight_decay_of_sgd_is_the_textbooks():
    params, grads = parameters(), parameters(seed=1)
    expected = (1 - 0.05) * params["weight_hh_l0"] - 0.1 * grads["weight_hh_l0"]
    SGD(0.1, recurrent_weight_decay=0.05).step(params, grads)
    assert_close(params["weight_hh_l0"], expected, terms=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EVERY)
def test_updates_are_in_place_and_keep_the_dtype(name, dtype):
    params = parameters(dtype)
    held = dict(params)
    before = {n: p.copy() for n, p in params.items()}
    grads = parameters(dtype, seed=1)
    given = {n: g.copy() for n, g in grads.items()}
    for g in grads.values():
        g.flags.writeable = False
    optimizer = EVERY[name]()
    optimizer.step(params, grads)
    optimizer.step(params, grads)
    assert_same(grads, given)
    for n, p in params.items():
        assert p is held[n]
        assert p.dtype == dtype
        assert not np.array_equal(p, before[n])
        assert p.shape == before[n].shape
    assert {str(a.dtype) for key, a in optimizer.state_dict().items() if key != "step"} <= {dtype}


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_the_names_does_not_matter(name):
    params, other = parameters(), parameters()
    backwards = dict(reversed(other.items()))
    first, second = EVERY[name](), EVERY[name]()
    for step in range(3):
        grads = parameters(seed=step)
        first.step(params, grads)
        second.step(backwards if step % 2 else other, dict(reversed(grads.items())))
    assert_same(other, params)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_and_memory_layout_change_nothing(name, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    start, grads = (rng.standard_normal((4, 37, 11)).astype(dtype) for _ in range(2))

    def trajectory(p, g):
        optimizer = EVERY[name](weight_decay=0.1)
        # A small array comes first, so that the scratch memory allocated for it is too small for the other.
        small = np.ones(2, dtype)
        for k in range(3):
            optimizer.step({"bias": small, "weight_hh": p}, {"bias": small, "weight_hh": g * (k + 1)})
        return np.array(p)

    expected = trajectory(start.copy(), grads)
    fortran = np.asfortranarray(start)
    sliced = np.zeros((8, 37, 12), dtype)[::2, :, 1:]
    sliced[...] = start
    assert_same(trajectory(fortran, grads), expected)
    assert_same(trajectory(sliced, np.asfortranarray(grads)), expected)
    monkeypatch.setattr(wing, "_BLOCK", 100)
    assert_same(trajectory(start.copy(), grads), expected)
    assert_same(trajectory(np.asfortranarray(start), grads), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_arithmetic_is_that_of_the_dtype(dtype):
    params, grads = parameters(dtype), parameters(dtype, seed=1)
    expected = {n: np.asarray(p - np.dtype(dtype).type(0.1) * grads[n]) for n, p in params.items()}
    SGD(0.1).step(params, grads)
    assert_same(params, expected)


def test_arrays_longer_than_a_block():
    n = wing._BLOCK + 5
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal((2, n))
    expected = p - 0.1 * g
    SGD(0.1).step({"w": p}, {"w": g})
    assert_close(p, expected, terms=2)


@pytest.mark.parametrize("name", EVERY)
def test_lr_of_a_step_stands_for_the_optimizers_own(name):
    once, other = parameters(), parameters()
    optimizer, constant = EVERY[name](), EVERY[name]()
    constant.lr = 0.007
    for step in range(3):
        optimizer.step(once, parameters(seed=step), lr=0.007)
        constant.step(other, parameters(seed=step))
    assert_same(once, other)
    assert optimizer.lr != 0.007


def test_only_the_first_lr_of_rprop_counts():
    params, other = parameters(), parameters()
    optimizer, constant = Rprop(0.5), Rprop(0.02)
    for step, lr in enumerate([0.02, 0.3, 0.0]):
        optimizer.step(params, parameters(seed=step), lr=lr)
        constant.step(other, parameters(seed=step))
    assert_same(params, other)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loaded_state_continues_bit_for_bit(name, dtype):
    params, optimizer = parameters(dtype), EVERY[name]()
    run(optimizer, params, 3, dtype)
    state = optimizer.state_dict()
    assert state["step"].dtype == np.int64
    assert state["step"] == 3
    assert all(isinstance(a, np.ndarray) for a in state.values())
    copied, other = {n: p.copy() for n, p in params.items()}, EVERY[name]()
    other.load_state_dict(state)
    assert_same(other.state_dict(), state)

    expected = run(optimizer, params, 4, dtype, start=3)
    assert_same(run(other, copied, 4, dtype, start=3), expected)
    # States are copied both when they are returned and when they are loaded.
    third = EVERY[name]()
    third.load_state_dict(state)
    assert third.state_dict()["step"] == 3
    assert_same(third.state_dict(), state)
    if len(state) > 1:
        assert not np.array_equal(other.state_dict()[max(state.keys() - {"step"})], state[max(state.keys() - {"step"})])


def test_a_loaded_state_of_nadam_counts_the_momenta_of_its_hyperparameters():
    """Earlier steps of the optimizer, with other hyperparameters, do not matter."""
    params, trained = parameters(), NAdam(0.02, momentum_decay=0.3)
    run(trained, params, 5)
    copied, other = {n: p.copy() for n, p in params.items()}, NAdam(0.02, momentum_decay=0.01)
    run(other, parameters(), 2)
    other.momentum_decay = 0.3
    other.load_state_dict(trained.state_dict())
    assert_same(run(other, copied, 1, start=5), run(trained, params, 1, start=5))


@pytest.mark.parametrize("name", EVERY)
def test_the_state_of_an_optimizer_that_has_not_stepped(name):
    optimizer, fresh = EVERY[name](), EVERY[name]()
    assert_same(optimizer.state_dict(), {"step": np.array(0)})
    optimizer.load_state_dict(fresh.state_dict())
    assert_same(run(optimizer, parameters(), 2), run(fresh, parameters(), 2))


def test_centred_rmsprop_of_an_even_gradient_stays_finite():
    # v - m^2 is then (1 - alpha^t) alpha^t g^2, and rounding may make it negative.
    for dtype in DTYPES:
        rng = np.random.default_rng(0)
        g = rng.standard_normal(200).astype(dtype)
        p = np.zeros(200, dtype)
        optimizer = RMSprop(0.01, alpha=0.5, centered=True)
        for _ in range(80):
            optimizer.step({"w": p}, {"w": g})
        assert np.isfinite(p).all()


def test_zero_gradients_move_nothing():
    for make in EVERY.values():
        params = parameters()
        before = {n: p.copy() for n, p in params.items()}
        optimizer = make() if make is not EVERY["adamw"] else make(weight_decay=0.0)
        for _ in range(2):
            optimizer.step(params, {n: np.zeros_like(p) for n, p in params.items()})
        assert_same(params, before)


def frozen(array):
    array.flags.writeable = False
    return array


W = np.ones((2, 3))


@pytest.mark.parametrize(
    ("params", "grads", "error", "message"),
    [
        ({}, {}, TypeError, "Adam.step: expected at least one array"),
        ({"w": W}, {}, KeyError, r"Adam.step: missing \['w'\], unknown none, expected the names of params in grads"),
        ({"w": W}, {"w": W, "v": W}, KeyError, r"missing none, unknown \['v'\]"),
        ({"w": W}, {"w": None}, TypeError, r"Adam.step: grads\['w'\] is None, expected an array"),
        ({"w": W.tolist()}, {"w": W}, TypeError, r"Adam.step: params\['w'\] is a list, expected a numpy.ndarray"),
        (
            {"w": W},
            {"w": W.T},
            ValueError,
            r"grads\['w'\] has shape \(3, 2\), expected the parameter's shape = \(2, 3\)",
        ),
        (
            {"w": W},
            {"w": W.astype("float32")},
            TypeError,
            r"grads\['w'\] has dtype float32 but params\['w'\] has float64",
        ),
        ({"w": W.astype(int)}, {"w": W.astype(int)}, TypeError, r"params\['w'\] has dtype int64, expected float32 or"),
        ({"w": W, "v": W.astype("float32")}, {"w": W, "v": W.astype("float32")}, TypeError, r"params\['v'\] has dtype"),
        ({"w": frozen(W.copy())}, {"w": W}, ValueError, r"params\['w'\] is read-only, expected an array that can be"),
    ],
)
def test_step_refuses_before_any_work(params, grads, error, message):
    optimizer = Adam()
    with pytest.raises(error, match=message):
        optimizer.step(params, grads)
    assert optimizer.state_dict().keys() == {"step"}
    assert optimizer.state_dict()["step"] == 0
    assert (W == 1).all()


def test_step_refuses_other_parameters_than_before():
    optimizer, params = Adam(), {"w": np.ones(3)}
    optimizer.step(params, {"w": np.ones(3)})
    for other, error, message in [
        ({"v": np.ones(3)}, ValueError, r"params has the names \['v'\], expected those of earlier steps, \['w'\]"),
        (
            {"w": np.ones(4)},
            ValueError,
            r"params\['w'\] has shape \(4,\), expected the shape of the optimizer's mean.w =",
        ),
        (
            {"w": np.ones(3, "float32")},
            TypeError,
            r"params\['w'\] has dtype float32 but the optimizer's mean.w has float",
        ),
    ]:
        with pytest.raises(error, match=message):
            optimizer.step(other, {n: np.ones_like(p) for n, p in other.items()})
    assert optimizer.state_dict()["step"] == 1


@pytest.mark.parametrize("lr", [-0.1, np.nan, np.inf])
def test_step_refuses_a_bad_lr(lr):
    with pytest.raises(ValueError, match=f"SGD.step: lr is {lr}, expected a number of at least 0"):
        SGD().step({"w": np.ones(1)}, {"w": np.ones(1)}, lr=lr)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({}, KeyError, "Adam.load_state_dict: state lacks 'step'"),
        ({"step": np.array(-1)}, ValueError, "step is -1, expected at least 0"),
        ({"step": np.array(2)}, KeyError, "state has nothing but the step 2"),
        ({"step": np.array(2), "mean.w": W}, KeyError, r"state lacks \['square.w'\]"),
        ({"step": np.array(2), "mean.w": W, "square.v": W}, KeyError, r"state lacks \['mean.v', 'square.w'\]"),
        (
            {"step": np.array(2), "momentum.w": W},
            KeyError,
            "state has 'momentum.w', expected 'step' and names that begin",
        ),
        ({"step": np.array(2), "mean": W}, KeyError, "state has 'mean', expected 'step' and names"),
        (
            {"step": np.array(2), "mean.w": 1.0, "square.w": W},
            TypeError,
            r"state\['mean.w'\] is a float, expected a numpy.ndarray",
        ),
    ],
)
def test_load_state_dict_refuses(state, error, message):
    optimizer = Adam()
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(state)
    assert_same(optimizer.state_dict(), {"step": np.array(0)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-1.0), "SGD: lr is -1.0, expected a number of at least 0"),
        (lambda: SGD(momentum=-0.1), "SGD: momentum is -0.1"),
        (lambda: SGD(dampening=np.nan), "SGD: dampening is nan"),
        (lambda: SGD(weight_decay=-1), "SGD: weight_decay is -1"),
        (lambda: SGD(recurrent_weight_decay=1.0), "SGD: recurrent_weight_decay is 1.0"),
        (
            lambda: SGD(nesterov=True),
            "SGD: nesterov is True with momentum 0.0 and dampening 0.0, expected momentum above",
        ),
        (
            lambda: SGD(nesterov=True, momentum=0.9, dampening=0.1),
            "SGD: nesterov is True with momentum 0.9 and dampening",
        ),
        (lambda: RMSprop(alpha=1.0), "RMSprop: alpha is 1.0"),
        (lambda: RMSprop(eps=-1e-8), "RMSprop: eps is -1e-08"),
        (lambda: RMSprop(momentum=-1), "RMSprop: momentum is -1"),
        (lambda: Adam(np.inf), "Adam: lr is inf"),
        (lambda: Adam(betas=(1.0, 0.9)), r"Adam: betas\[0\] is 1.0"),
        (lambda: Adam(betas=(0.9, -0.1)), r"Adam: betas\[1\] is -0.1"),
        (lambda: AdamW(eps=-1), "AdamW: eps is -1"),
        (lambda: Adagrad(lr_decay=-1), "Adagrad: lr_decay is -1"),
        (lambda: Adagrad(initial_accumulator_value=-1), "Adagrad: initial_accumulator_value is -1"),
        (lambda: Adagrad(eps=-1), "Adagrad: eps is -1"),
        (lambda: Adadelta(rho=1.0), "Adadelta: rho is 1.0"),
        (lambda: Adadelta(eps=-1), "Adadelta: eps is -1"),
        (lambda: NAdam(betas=(0.9, 1.0)), r"NAdam: betas\[1\] is 1.0"),
        (lambda: NAdam(eps=-1), "NAdam: eps is -1"),
        (lambda: NAdam(momentum_decay=-1), "NAdam: momentum_decay is -1"),
        (lambda: Adamax(betas=(1.0, 0.9)), r"Adamax: betas\[0\] is 1.0"),
        (lambda: Adamax(eps=-1), "Adamax: eps is -1"),
        (lambda: Rprop(etas=(0.5, np.nan)), r"Rprop: etas\[1\] is nan, expected a number of at least 0"),
        (lambda: Rprop(etas=(0, 1.2)), r"Rprop: etas is \(0.0, 1.2\), expected one between 0 and 1 and one above 1"),
        (lambda: Rprop(etas=(1, 1.2)), r"Rprop: etas is \(1.0, 1.2\)"),
        (lambda: Rprop(etas=(0.5, 1)), r"Rprop: etas is \(0.5, 1.0\)"),
        (lambda: Rprop(step_sizes=(-1, 1)), r"Rprop: step_sizes\[0\] is -1"),
        (lambda: Rprop(step_sizes=(2, 1)), r"Rprop: step_sizes is \(2.0, 1.0\), expected the smaller one first"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
