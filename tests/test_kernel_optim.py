"""The wings' norm and updates over many arrays of many sizes; `test_optimizers.py` tests the API."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import parity
import pytest
from gpurnn.kernels import compiler, host, launch
from gpurnn.kernels.optim import _CHUNK
from gpurnn.reference import definitions
from tolerance import assert_close, assert_same

from gpurnn import kernels
from gpurnn.optimizers import KINDS, SGD, Adadelta, Adagrad, Adam, Adamax, NAdam, Optimizer, RMSprop, Rprop

DTYPES = ("float32", "float64")
# Arrays of no, one and several chunks. Empty ones are at both ends and next to each other.
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
    # Each wing adds at most 32 squares in float64 to a sum before it adds sums to sums, or adds by pairs.
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
    """Optimizers, each with a step number."""
    common = {"lr": 0.1, "weight_decay": 0.125}
    for options, step in itertools.product(({}, {"nesterov": True}, {"dampening": 0.25}), (1, 2)):
        yield SGD(**common, momentum=0.75, **options), step
    yield SGD(**common), 1
    for centered, momentum in itertools.product((False, True), (0.0, 0.5)):
        yield RMSprop(**common, alpha=0.75, eps=0.01, momentum=momentum, centered=centered), 1
    for amsgrad, step in itertools.product((False, True), (1, 3)):
        yield Adam(**common, betas=(0.75, 0.9), eps=0.01, amsgrad=amsgrad), step
    for step in (1, 3):
        yield Adagrad(**common, lr_decay=0.5, eps=0.01), step
        yield NAdam(**common, betas=(0.75, 0.9), eps=0.01, momentum_decay=0.5), step
        yield Adamax(**common, betas=(0.75, 0.9), eps=0.01), step
    yield Adadelta(**common, rho=0.75, eps=0.01), 1
    yield Rprop(**common, etas=(0.5, 1.25), step_sizes=(0.25, 1.5)), 1


CASES = [pytest.param(*case, id=f"{case[0].kind}{k}") for k, case in enumerate(_cases())]
OF_EACH_KIND = {case.values[0].kind: case for case in CASES}.values()


def lists_for(optimizer, dtype):
    """Parameters, gradients and slots. The second moments are so large that v - m^2 does not cancel."""
    slots = {
        slot: None if value is None else (draw if slot in ("mean", "momentum", "previous") else positive)(3 + k, dtype)
        for k, (slot, value) in enumerate(optimizer.slots(optimizer.lr).items())
    }
    if isinstance(optimizer, RMSprop):
        slots["square"] = [np.asarray(a + 100) for a in slots["square"]]
    return draw(1, dtype), draw(2, dtype), slots


def update(module, optimizer: Optimizer, step, params, grads, slots, shrink=None):
    shrink = [1.0] * len(params) if shrink is None else shrink
    scalars = optimizer.scalars(step, optimizer.lr)
    return module.optimizer_update(optimizer.kind, params, grads, slots, shrink, optimizer.weight_decay, scalars)


def test_every_kind_has_cases_with_and_without_each_slot():
    slots = {(optimizer.kind, *slot) for optimizer, _ in _cases() for slot in optimizer.slots(1.0).items()}
    existing = {(kind, slot) for kind, slot, value in slots if value is not None}
    assert existing == {(kind, slot) for kind, made in KINDS.items() for slot in made().slots(1.0)}
    absent = {(kind, slot) for kind, slot, value in slots if value is None}
    assert absent == {("sgd", "momentum"), ("rmsprop", "mean"), ("rmsprop", "momentum"), ("adam", "largest")}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("optimizer", "step"), CASES)
def test_updates_are_their_definition_in_every_array(wing, optimizer, step, dtype):
    given = lists_for(optimizer, dtype)
    params, grads, slots = given
    wide = [None if one is None else [a.astype(np.longdouble) for a in one] for one in (params, grads, *slots.values())]
    shrink = [1 - 0.01 * k for k in range(len(SHAPES))]
    for k, factor in enumerate(shrink):
        p, g, *of_slots = (None if one is None else one[k] for one in wide)
        getattr(definitions, optimizer.kind)(optimizer, step, p, g, factor, *of_slots)
    params, grads, slots = wing.to(given)
    lists = [params, grads, *slots.values()]
    held = [None if one is None else list(one) for one in lists]
    assert update(wing.module, optimizer, step, params, grads, slots, shrink) is None
    before = [*given[:2], *given[2].values()]
    for l, (one, expected) in enumerate(zip(lists, wide, strict=True)):
        assert (one is None) == (expected is None)
        for k, array in enumerate(one or ()):
            assert array is held[l][k]
            magnitude = float(abs(before[l][k]).max(initial=0)) + 1
            # At most twenty roundings in a step.
            assert_close(wing.back(array), expected[k].astype(dtype), 20, f"list {l}, array {k}", magnitude=magnitude)
    assert_same(tuple(wing.back(grads)), tuple(given[1]))


@pytest.mark.parametrize(("optimizer", "step"), OF_EACH_KIND)
def test_gradients_may_be_arrays_that_nothing_can_be_written_to(wing, optimizer, step):
    expected, actual = wing.to(lists_for(optimizer, "float32")), wing.to(lists_for(optimizer, "float32"))
    if wing.name != "cuda":  # the arrays of cuda are all writable
        for g in actual[1]:
            g.flags.writeable = False
    update(wing.module, optimizer, step, *expected)
    update(wing.module, optimizer, step, *actual)
    for one, same in zip((actual[0], *actual[2].values()), (expected[0], *expected[2].values()), strict=True):
        assert_same(tuple(wing.back(one or [])), tuple(wing.back(same or [])))


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("optimizer", "step"), OF_EACH_KIND)
def test_an_update_has_the_same_bits_wherever_an_array_begins(optimizer, step, dtype):
    """In turn, the arrays of one list begin where no packet can."""
    expected = lists_for(optimizer, dtype)
    update(kernels, optimizer, step, *expected)
    for moved in range(2 + len(expected[2])):
        params, grads, slots = lists_for(optimizer, dtype)
        lists = [params, grads, *slots.values()]
        if lists[moved] is not None:
            lists[moved][:] = map(parity.beside_a_packet, lists[moved])
        update(kernels, optimizer, step, params, grads, slots)
        for one, same in zip((params, *slots.values()), (expected[0], *expected[2].values()), strict=True):
            assert_same(tuple(one or []), tuple(same or []))
    norm = np.array(0.3)
    products = [kernels.scaled(list(map(to, grads)), norm) for to in (np.copy, parity.beside_a_packet)]
    assert_same(*map(tuple, products))


@pytest.mark.parametrize(("optimizer", "step"), CASES)
def test_a_parameter_that_is_infinite_spoils_its_own_state_only_if_it_decays(wing, optimizer, step):
    optimizer = dataclasses.replace(optimizer, weight_decay=0.0)
    params, grads, slots = wing.to(lists_for(optimizer, "float64"))
    params[5][1, 2] = np.inf
    update(wing.module, optimizer, step, params, grads, slots)
    for one in slots.values():
        assert all(np.isfinite(wing.back(a)).all() for a in one or ())
    assert wing.back(params[5])[1, 2] == np.inf
    assert np.isinf(wing.back(params[5])).sum() == 1


@pytest.mark.parametrize(
    ("optimizer", "slot"), [(Adam(0.1, amsgrad=True), "largest"), (Adamax(0.1), "norm")], ids=["amsgrad", "adamax"]
)
def test_a_maximum_keeps_a_nan(wing, optimizer, slot):
    params, grads, *arrays = ([np.ones(3, "float32")] for _ in range(2 + len(optimizer.slots(0.1))))
    slots = dict(zip(optimizer.slots(0.1), arrays, strict=True))
    grads[0][1], slots[slot][0][2] = np.nan, np.nan
    params, grads, slots = wing.to((params, grads, slots))
    with np.errstate(invalid="ignore"):
        update(wing.module, optimizer, 1, params, grads, slots)
    for array in (params[0], slots[slot][0]):
        assert np.isnan(wing.back(array)).tolist() == [False, True, True]


@pytest.mark.parametrize(("optimizer", "step"), CASES)
def test_a_gradient_that_is_no_number_reaches_its_own_parameter(wing, optimizer, step):
    given = lists_for(optimizer, "float32")
    given[1][5][1, 2] = np.nan
    params, grads, slots = wing.to(given)
    with np.errstate(invalid="ignore"):
        update(wing.module, optimizer, step, params, grads, slots)
    for k, (p, start) in enumerate(zip(params, given[0], strict=True)):
        lost = np.zeros(start.shape, bool)
        if k == 5:
            lost[1, 2] = True
        assert_same(np.isnan(wing.back(p)), lost)


def test_rprop_counts_a_sign_whose_gradient_is_tiny(wing):
    """The product of such gradients is 0 in their dtype."""
    tiny = np.array([1e-30, -1e-30, 0], "float32")
    slots = {"previous": [np.full(3, 1e-30, "float32")], "size": [np.ones(3, "float32")]}
    params, grads, slots = wing.to(([np.zeros(3, "float32")], [tiny], slots))
    update(wing.module, Rprop(etas=(0.5, 1.25), step_sizes=(0.1, 2.0)), 2, params, grads, slots)
    assert wing.back(slots["size"][0]).tolist() == [1.25, 0.5, 1]
    assert wing.back(params[0]).tolist() == [-1.25, 0, 0]


@pytest.mark.kernels
def test_all_arrays_are_one_launch(monkeypatch):
    launches = []
    call = launch.Kernel.__call__

    def counted(self, *args, **options):
        launches.append(self.name)
        call(self, *args, **options)

    monkeypatch.setattr(launch.Kernel, "__call__", counted)
    for optimizer, step in _cases():
        update(kernels, optimizer, step, *lists_for(optimizer, "float32"))
        assert launches == [f"update<{optimizer.kind.capitalize()}, float, float>"]
        launches.clear()
    kernels.global_norm(draw(0, "float64"))
    assert launches == ["square_sums<double>", "root_of_sum<double>"]
    launches.clear()
    nothing = [np.empty(0)]
    update(kernels, SGD(), 1, nothing, nothing, {"momentum": None})
    assert not launches


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("slots", "scalars"),
    [
        (("mean", "size"), ("rate", "beta1", "one_minus_beta1", "beta2", "eps")),
        (("norm", "mean"), ("rate", "beta1", "one_minus_beta1", "beta2", "eps")),
        (("mean",), ("rate", "beta1", "one_minus_beta1", "beta2", "eps")),
        (("mean", "norm"), ("rate", "beta1", "beta2", "one_minus_beta1", "eps")),
        (("mean", "norm"), ("rate", "beta1", "one_minus_beta1", "beta2")),
    ],
    ids=[
        "a slot of another name",
        "another order of slots",
        "a slot less",
        "another order of scalars",
        "a scalar less",
    ],
)
def test_a_struct_that_is_not_as_the_class_says_does_not_compile(slots, scalars):
    arrays = {slot: [np.ones(3)] for slot in slots}
    with pytest.raises(compiler.CompilerError, match=r"static.assert"):
        kernels.optimizer_update("adamax", [np.ones(3)], [np.ones(3)], arrays, [1.0], 0.0, dict.fromkeys(scalars, 0.5))


@pytest.mark.kernels
@pytest.mark.parametrize(("optimizer", "step"), OF_EACH_KIND)
def test_the_order_of_threads_and_blocks_changes_no_bit(optimizer, step):
    arrays = draw(0, "float32")

    def all_of_it():
        params, grads, slots = lists_for(optimizer, "float32")
        update(kernels, optimizer, step, params, grads, slots, [0.5] * len(SHAPES))
        norm = kernels.global_norm(arrays)
        lists = (params, grads, *(one for one in slots.values() if one is not None))
        return norm, tuple(kernels.scaled(arrays, norm)), *(tuple(one) for one in lists)

    first = all_of_it()
    for seed in (1, 2, 3):
        with host.execution(seed=seed):
            assert_same(all_of_it(), first)
