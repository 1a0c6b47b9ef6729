"""The wings' norm and updates over many arrays of many sizes; `test_optimizers.py` holds what the API makes of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from gpurnn.kernels import host, launch
from gpurnn.kernels.optim import _CHUNK
from gpurnn.reference import definitions
from tolerance import assert_close, assert_same

from gpurnn import kernels

DTYPES = ("float32", "float64")
# Arrays of no, of one and of several chunks, those without elements at both ends and side by side.
SHAPES = [
    (0,), (), (1,), (0, 4), (3, 0), (3, 5), (_CHUNK - 1,), (_CHUNK,), (_CHUNK + 1,), (2, _CHUNK), (37, 211), (2,), (0,)
]  # fmt: skip


def draw(seed, dtype, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]


def positive(seed, dtype):
    return [np.asarray(np.abs(a)) for a in draw(seed, dtype)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shapes",
    [SHAPES, [()], [(0,)], [(0,), (0, 3)], [(1,)] * 100, [(_CHUNK * 300 + 7,)], [(5,), (_CHUNK * 7,), (5,)]],
    ids=["mixed", "scalar", "empty", "empties", "many", "long", "between"],
)
def test_the_norm_is_that_of_all_elements(wing, shapes, dtype):
    arrays = draw(0, dtype, shapes)
    norm = wing.back(wing.module.global_norm(wing.to(arrays)))
    squares = [float(x) ** 2 for a in arrays for x in a.reshape(-1)]
    # Each wing adds no more than 32 squares of float64 to a sum before it adds sums to sums, or does so by pairs.
    assert_close(norm, np.array(math.sqrt(math.fsum(squares))), 64, "norm")


def test_the_norm_takes_every_element_once(wing):
    """Sums of integers are exact."""
    arrays = [np.full(shape, 3.0) for shape in SHAPES]
    count = sum(a.size for a in arrays)
    norm = wing.back(wing.module.global_norm(wing.to(arrays)))
    assert_close(norm, np.array(3 * math.sqrt(count)), 2)
    for k, a in enumerate(arrays):
        for i in {0, a.size // 2, a.size - 1} if a.size else ():
            single = [np.zeros_like(b) for b in arrays]
            single[k].reshape(-1)[i] = -5
            assert wing.back(wing.module.global_norm(wing.to(single))) == 5


def _cases():
    for has, nesterov, dampening, step in itertools.product((False, True), (False, True), (0.0, 0.25), (1, 2)):
        options = {"lr": 0.1, "weight_decay": 0.125, "momentum": 0.75, "dampening": dampening}
        yield definitions.sgd, (has,), options | {"nesterov": nesterov, "step": step}
    for has in itertools.product((True,), (False, True), (False, True)):
        yield definitions.rmsprop, has, {"lr": 0.1, "weight_decay": 0.125, "alpha": 0.75, "eps": 0.01, "momentum": 0.5}
    for has, step in itertools.product(((True, True, False), (True, True, True)), (1, 3)):
        options = {"lr": 0.1, "weight_decay": 0.125, "beta1": 0.75, "beta2": 0.9, "eps": 0.01}
        yield definitions.adam, has, options | {"step": step}
    options = {"lr": 0.1, "weight_decay": 0.125, "eps": 0.01}
    yield definitions.adagrad, (True,), options
    yield definitions.adadelta, (True, True), options | {"rho": 0.75}
    for step in (1, 3):
        betas = {"beta1": 0.75, "beta2": 0.9, "step": step}
        momenta = {"momentum": 0.5, "next_momentum": 0.625, "momentum_product": 0.5**step}
        yield definitions.nadam, (True, True), options | betas | momenta
        yield definitions.adamax, (True, True), options | betas
    options = {"eta_minus": 0.5, "eta_plus": 1.25, "smallest": 0.25, "largest": 1.5}
    yield definitions.rprop, (True, True), options | {"weight_decay": 0.125}


CASES = list(_cases())
UPDATES = sorted({function.__name__ for function, _, _ in CASES})


def lists_for(function, has, dtype):
    """Parameters, gradients and states. The second moments are so large that v - m^2 does not cancel."""
    params, grads = draw(1, dtype), draw(2, dtype)
    states = [positive(3 + k, dtype) if given else None for k, given in enumerate(has)]
    if function is definitions.rmsprop:
        states[0] = [np.asarray(a + 100) for a in states[0]]
    return [params, grads, *states]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("function", "has", "options"), CASES)
def test_updates_are_their_definition_in_every_array(wing, function, has, options, dtype):
    given = lists_for(function, has, dtype)
    wide = [None if one is None else [a.astype(np.longdouble) for a in one] for one in given]
    shrink = [1 - 0.01 * k for k in range(len(SHAPES))]
    for k, factor in enumerate(shrink):
        function(*(None if one is None else one[k] for one in wide), factor, **options)
    lists = wing.to(given)
    held = [None if one is None else list(one) for one in lists]
    assert getattr(wing.module, f"{function.__name__}_update")(*lists, shrink, **options) is None
    for l, (one, expected) in enumerate(zip(lists, wide, strict=True)):
        assert (one is None) == (expected is None)
        for k, array in enumerate(one or ()):
            assert array is held[l][k]
            magnitude = float(abs(given[l][k]).max(initial=0)) + 1
            # At most twenty roundings in a step.
            assert_close(wing.back(array), expected[k].astype(dtype), 20, f"list {l}, array {k}", magnitude=magnitude)
    assert_same(tuple(wing.back(lists[1])), tuple(given[1]))


def scattered(wing, array):
    """The array as a view that is not contiguous, and the whole of the memory that it lies in."""
    whole = wing.to(np.full((*(2 * n for n in array.shape), 3), 7.0, array.dtype))
    view = whole[(*(slice(None, None, 2) for _ in array.shape), 1, ...)]
    view[...] = wing.to(array)
    return view, whole


@pytest.mark.parametrize("name", UPDATES)
def test_arrays_that_are_not_contiguous_are_updated_where_they_are(wing, name):
    function, has, options = next(case for case in reversed(CASES) if case[0].__name__ == name)
    given, shrink = lists_for(function, has, "float32"), [0.5] * len(SHAPES)
    update = getattr(wing.module, f"{name}_update")
    expected = wing.to(given)
    update(*expected, shrink, **options)
    pairs = [None if one is None else [scattered(wing, a) for a in one] for one in given]
    lists = [None if one is None else [view for view, _ in one] for one in pairs]
    update(*lists, shrink, **options)
    for one, same in zip(pairs, expected, strict=True):
        for (view, whole), array in zip(one or (), same or (), strict=True):
            assert_same(wing.back(view.copy()), wing.back(array))
            whole = wing.back(whole).copy()
            whole[(*(slice(None, None, 2) for _ in array.shape), 1, ...)] = 7
            assert (whole == 7).all()


@pytest.mark.parametrize("name", UPDATES)
def test_gradients_may_be_views_that_nothing_can_be_written_to(wing, name):
    """As a number that stands for a whole array is."""
    function, has, options = next(case for case in reversed(CASES) if case[0].__name__ == name)
    given, shrink = lists_for(function, has, "float32"), [0.5] * len(SHAPES)
    given[1] = [np.broadcast_to(np.float32(0.25), shape) for shape in SHAPES]
    expected, lists = wing.to(given), wing.to(given)
    if wing.name != "cuda":  # to which no view of NumPy's goes
        lists[1] = given[1]
    update = getattr(wing.module, f"{name}_update")
    update(*expected, shrink, **options)
    update(*lists, shrink, **options)
    for one, same in zip(lists, expected, strict=True):
        for array, other in zip(one or (), same or (), strict=True):
            assert_same(wing.back(array), wing.back(other))


@pytest.mark.parametrize(("function", "has", "options"), CASES)
def test_a_parameter_that_is_infinite_spoils_its_own_state_only_if_it_decays(wing, function, has, options):
    lists = wing.to(lists_for(function, has, "float64"))
    lists[0][5][1, 2] = np.inf
    getattr(wing.module, f"{function.__name__}_update")(*lists, [1.0] * len(SHAPES), **options | {"weight_decay": 0.0})
    for one in lists[2:]:
        assert all(np.isfinite(wing.back(a)).all() for a in one or ())
    assert wing.back(lists[0][5])[1, 2] == np.inf
    assert np.isinf(wing.back(lists[0][5])).sum() == 1


def test_the_largest_square_keeps_a_nan(wing):
    params, grads, means, squares, largest = ([np.ones(3, "float32")] for _ in range(5))
    grads[0][1], largest[0][2] = np.nan, np.nan
    lists = wing.to([params, grads, means, squares, largest])
    with np.errstate(invalid="ignore"):
        wing.module.adam_update(
            *lists, [1.0], lr=0.1, weight_decay=0.0, beta1=0.9, beta2=0.9, eps=1e-8, step=1
        )  # fmt: skip
    for array in (lists[0][0], lists[4][0]):
        assert np.isnan(wing.back(array)).tolist() == [False, True, True]


def test_the_infinity_norm_keeps_a_nan(wing):
    params, grads, means, norms = ([np.ones(3, "float32")] for _ in range(4))
    grads[0][1], norms[0][2] = np.nan, np.nan
    lists = wing.to([params, grads, means, norms])
    with np.errstate(invalid="ignore"):
        wing.module.adamax_update(
            *lists, [1.0], lr=0.1, weight_decay=0.0, beta1=0.9, beta2=0.9, eps=1e-8, step=1
        )  # fmt: skip
    for array in (lists[0][0], lists[3][0]):
        assert np.isnan(wing.back(array)).tolist() == [False, True, True]


@pytest.mark.parametrize(("function", "has", "options"), CASES)
def test_a_gradient_that_is_no_number_reaches_its_own_parameter(wing, function, has, options):
    given = lists_for(function, has, "float32")
    given[1][5][1, 2] = np.nan
    lists = wing.to(given)
    with np.errstate(invalid="ignore"):
        getattr(wing.module, f"{function.__name__}_update")(*lists, [1.0] * len(SHAPES), **options)
    for k, (p, start) in enumerate(zip(lists[0], given[0], strict=True)):
        lost = np.zeros(start.shape, bool)
        if k == 5:
            lost[1, 2] = True
        assert_same(np.isnan(wing.back(p)), lost)


def test_rprop_counts_a_sign_whose_gradient_is_tiny(wing):
    """The product of such gradients is 0 in their dtype."""
    lists = wing.to([[np.zeros(3, "float32")], [np.array([1e-30, -1e-30, 0], "float32")]])
    lists += wing.to([[np.full(3, 1e-30, "float32")], [np.ones(3, "float32")]])
    wing.module.rprop_update(
        *lists, [1.0], weight_decay=0.0, eta_minus=0.5, eta_plus=1.25, smallest=0.1, largest=2.0
    )  # fmt: skip
    assert wing.back(lists[3][0]).tolist() == [1.25, 0.5, 1]
    assert wing.back(lists[0][0]).tolist() == [-1.25, 0, 0]


@pytest.mark.kernels
def test_all_arrays_are_one_launch(monkeypatch):
    launches = []
    call = launch.Kernel.__call__

    def counted(self, *args, **options):
        launches.append(self.name)
        call(self, *args, **options)

    monkeypatch.setattr(launch.Kernel, "__call__", counted)
    for function, has, options in CASES:
        arrays = lists_for(function, has, "float32")
        getattr(kernels, f"{function.__name__}_update")(*arrays, [1.0] * len(SHAPES), **options)
        assert launches == [f"{function.__name__}<float>"]
        launches.clear()
    kernels.global_norm(draw(0, "float64"))
    assert launches == ["square_sums<double>", "root_of_sum<double>"]
    launches.clear()
    nothing = [np.empty(0)]
    kernels.sgd_update(
        nothing, nothing, None, [1.0],
        lr=1.0, weight_decay=0.0, momentum=0.0, dampening=0.0, nesterov=False, step=1,
    )  # fmt: skip
    assert not launches


@pytest.mark.kernels
@pytest.mark.parametrize(("function", "has", "options"), {case[0]: case for case in CASES}.values())
def test_the_order_of_threads_and_blocks_changes_no_bit(function, has, options):
    arrays = draw(0, "float32")

    def all_of_it():
        lists = [None if one is None else [a.copy() for a in one] for one in lists_for(function, has, "float32")]
        getattr(kernels, f"{function.__name__}_update")(*lists, [0.5] * len(SHAPES), **options)
        norm = kernels.global_norm(arrays)
        return norm, tuple(kernels.scaled(arrays, norm)), *(tuple(one) for one in lists if one is not None)

    first = all_of_it()
    for seed in (1, 2, 3):
        with host.execution(seed=seed):
            assert_same(all_of_it(), first)
