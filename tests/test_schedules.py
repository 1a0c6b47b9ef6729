"""Schedules of learning rates and of teacher forcing: PyTorch's numbers and the formulas, in any order of steps."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import FrozenInstanceError

import golden
import numpy as np
import pytest
from tolerance import epsilon

from gpurnn.schedules import (
    Constant,
    CosineWithWarmRestarts,
    CosineWithWarmup,
    Cyclic,
    Exponential,
    InverseSigmoid,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Step,
    TimeBased,
)

EVERY = [
    Constant(0.1),
    TimeBased(0.1, decay=0.5),
    Exponential(0.1, gamma=0.9),
    Linear(0.1, decay=0.01, final_lr=0.02),
    InverseSigmoid(5),
    Step(0.1, step_size=3, gamma=0.5),
    MultiStep(0.1, milestones=(2, 9), gamma=0.5),
    Polynomial(0.1, total_steps=20, power=1.5, final_lr=0.01),
    CosineWithWarmup(0.1, total_steps=20, warmup_steps=5, final_lr=0.01),
    CosineWithWarmRestarts(0.1, T_0=3, T_mult=2, final_lr=0.01),
    Cyclic(0.01, 0.1, step_size=4, mode="exp_range", gamma=0.9),
    OneCycle(0.1, total_steps=25, anneal="linear"),
]


def torch_schedule(record):
    """The schedule of one case, and how many of its steps it concerns."""
    algorithm, lr, options = record["algo"], record["base_lr"], dict(record["kwargs"])
    if algorithm == "CosineAnnealingLR":
        # PyTorch's rises again after T_max.
        return CosineWithWarmup(lr, options["T_max"], final_lr=options.get("eta_min", 0.0)), min(
            60, options["T_max"] + 1
        )
    if algorithm == "LinearLR":
        schedule = Polynomial(lr * options["start_factor"], options["total_iters"], final_lr=lr)
    elif algorithm == "PolynomialLR":
        schedule = Polynomial(lr, options["total_iters"], options["power"])
    elif algorithm == "ConstantLR":
        schedule = MultiStep(lr * options["factor"], [options["total_iters"]], gamma=1 / options["factor"])
    elif algorithm == "OneCycleLR":
        schedule = OneCycle(anneal=options.pop("anneal_strategy", "cosine"), **options)
    elif algorithm == "CyclicLR":
        assert not options.pop("cycle_momentum")
        schedule = Cyclic(step_size=options.pop("step_size_up"), **options)
    else:
        names = {
            "StepLR": Step,
            "ExponentialLR": Exponential,
            "MultiStepLR": MultiStep,
            "CosineAnnealingWarmRestarts": CosineWithWarmRestarts,
        }
        schedule = names[algorithm](lr, **options)
    return schedule, 60


CASES = [r for r in golden.records("misc") if r["kind"] == "lr_scheduler" and r["algo"] != "ReduceLROnPlateau"]


def test_the_cases_are_there():
    assert len(CASES) == 14
    assert len({record["algo"] for record in CASES}) == 10


@pytest.mark.parametrize("record", CASES, ids=lambda record: record["name"])
def test_schedules_give_what_torch_gives(record):
    schedule, count = torch_schedule(record)
    expected = golden.arrays("misc", record["name"])["lr"][:count]
    assert len(expected) == count
    np.testing.assert_allclose([schedule(step) for step in range(count)], expected, rtol=1e-9, atol=1e-15)


def test_formulas():
    relative = 10 * epsilon("float64")
    for step in (0, 1, 2, 10, 999):
        assert Constant(0.3)(step) == 0.3
        assert TimeBased(0.3, 0.02)(step) == pytest.approx(0.3 / (1 + 0.02 * step), rel=relative)
        assert Exponential(0.3, 0.99)(step) == pytest.approx(0.3 * 0.99**step, rel=step * epsilon("float64") + relative)
        assert Step(0.3, 4)(step) == pytest.approx(0.3 * 0.1 ** (step // 4), rel=relative, abs=1e-300)


def test_teacher_forcing_decays_as_in_scheduled_sampling():
    for t in (0, 1, 7, 40):
        assert Linear(0.9, 0.02, 0.25)(t) == pytest.approx(max(0.25, 0.9 - 0.02 * t), rel=10 * epsilon("float64"))
        for k in (1, 2.5, 30):
            expected = k / (k + math.exp(t / k))
            assert InverseSigmoid(k)(t) == pytest.approx(expected, rel=100 * epsilon("float64"))
    assert InverseSigmoid(2)(10**6) == 0.0


def test_warmup_is_linear_and_meets_the_cosine():
    schedule = CosineWithWarmup(1.0, total_steps=30, warmup_steps=9, final_lr=0.2)
    assert [schedule(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)], rel=1e-15)
    assert [schedule(step) for step in range(9, 31)] == pytest.approx(
        [0.2 + 0.4 * (1 + math.cos(math.pi * k / 21)) for k in range(22)], rel=1e-14
    )
    assert schedule(31) == schedule(10_000) == 0.2


def test_multistep_with_even_milestones_is_step_decay():
    assert [MultiStep(0.3, range(4, 40, 4), 0.5)(k) for k in range(40)] == [Step(0.3, 4, 0.5)(k) for k in range(40)]
    assert MultiStep(0.3, ())(1000) == 0.3
    assert MultiStep(0.3, [1, 2]) == MultiStep(0.3, (1, 2))
    assert hash(MultiStep(0.3, [1, 2])) == hash(MultiStep(0.3, (1, 2)))


def test_polynomials():
    for t in (0, 1, 7, 19, 20, 1000):
        line = max(0.1, 0.5 - 0.02 * t)
        assert Polynomial(0.5, 20, final_lr=0.1)(t) == pytest.approx(line, rel=10 * epsilon("float64"))
        left = max(0, 20 - t) / 20
        cubic = Polynomial(0.1, 20, power=3, final_lr=0.5)(t)
        assert cubic == pytest.approx(0.5 - 0.4 * left**3, rel=10 * epsilon("float64"))


@pytest.mark.parametrize("T_mult", [1, 2, 3])
def test_each_period_of_warm_restarts_is_half_a_cosine(T_mult):
    schedule = CosineWithWarmRestarts(0.5, T_0=5, T_mult=T_mult, final_lr=0.02)
    restart, period = 0, 5
    for _ in range(5):
        half = CosineWithWarmup(0.5, total_steps=period, final_lr=0.02)
        expected = pytest.approx([half(k) for k in range(period)], rel=100 * epsilon("float64"))
        assert [schedule(restart + k) for k in range(period)] == expected
        restart, period = restart + period, period * T_mult
    assert schedule(restart) == pytest.approx(0.5, rel=4 * epsilon("float64"))


def test_warm_restarts_at_a_distant_step():
    assert CosineWithWarmRestarts(1.0, T_0=2)(10**18) == 1.0
    assert CosineWithWarmRestarts(1.0, T_0=1, T_mult=2)(2**60 - 1) == 1.0  # 1 + 2 + 4 + ... + 2^59


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cyclic_rates_are_those_of_the_paper(mode):
    gamma = 0.97 if mode == "exp_range" else 1.0
    schedule = Cyclic(0.01, 0.4, step_size=7, mode=mode, gamma=gamma)
    for step in range(100):
        cycle = math.floor(1 + step / 14)
        x = abs(step / 7 - 2 * cycle + 1)
        scale = {"triangular": 1, "triangular2": 1 / 2 ** (cycle - 1), "exp_range": gamma**step}[mode]
        expected = 0.01 + (0.4 - 0.01) * max(0, 1 - x) * scale
        # x is the difference of numbers up to 2 cycle; 1 - x may cancel.
        assert schedule(step) == pytest.approx(expected, abs=4 * cycle * epsilon("float64"))
        assert 0.01 <= schedule(step) <= 0.4
        assert abs(schedule(step + 1) - schedule(step)) <= 0.39 / 7 + epsilon("float64")


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
@pytest.mark.parametrize("pct_start", [0.03, 0.25, 0.31, 0.999])
def test_one_cycle_rises_to_the_highest_rate_and_falls_to_the_last(anneal, pct_start):
    schedule = OneCycle(0.6, 101, pct_start, div_factor=10, final_div_factor=50, anneal=anneal)
    rates = [schedule(step) for step in range(101)]
    peak = math.floor(101 * pct_start - 1)
    assert rates[0] == pytest.approx(0.06, rel=4 * epsilon("float64"))
    assert rates[100] == schedule(101) == schedule(10**9) == pytest.approx(0.06 / 50, rel=4 * epsilon("float64"))
    assert all(a < b for a, b in itertools.pairwise(rates[: peak + 1]))
    assert all(a > b for a, b in itertools.pairwise(rates[peak + 1 :]))
    assert max(rates) <= 0.6
    # Between two steps the peak is missed by less than one of them.
    steepest = max(0.54 / (101 * pct_start - 1), 0.6 / (101 * (1 - pct_start)))
    assert max(rates) >= 0.6 - steepest * (math.pi / 2 if anneal == "cosine" else 1)


def test_one_cycle_is_continuous_at_its_peak():
    assert OneCycle(0.6, 20, 0.25)(4) == 0.6
    linear = OneCycle(1.0, 10, 0.35, div_factor=4, final_div_factor=1e6, anneal="linear")
    assert linear(2) == pytest.approx(0.25 + 0.75 * 2 / 2.5, rel=1e-14)
    assert linear(3) == pytest.approx(1 - (1 - 0.25e-6) * 0.5 / 6.5, rel=1e-14)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_a_schedule_remembers_nothing(schedule):
    forward = [schedule(step) for step in range(30)]
    assert [schedule(step) for step in reversed(range(30))] == forward[::-1]
    assert all(type(lr) is float and lr > 0 for lr in forward)
    assert schedule(np.int64(7)) == forward[7]
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert eval(repr(schedule)) == schedule
    with pytest.raises(FrozenInstanceError):
        schedule.lr = 1.0


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_steps_that_are_none_are_refused(schedule):
    name = type(schedule).__name__
    with pytest.raises(ValueError, match=f"{name}: step is -1, expected at least 0"):
        schedule(-1)
    with pytest.raises(TypeError, match=f"{name}: step is 1.0, expected a whole number"):
        schedule(1.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Constant(-0.1), ValueError, "Constant: lr is -0.1, expected a number of at least 0"),
        (lambda: Constant(math.nan), ValueError, "Constant: lr is nan"),
        (lambda: TimeBased(math.inf, 0.1), ValueError, "TimeBased: lr is inf"),
        (lambda: TimeBased(0.1, -1), ValueError, "TimeBased: decay is -1"),
        (lambda: Exponential(-1, 0.1), ValueError, "Exponential: lr is -1"),
        (lambda: Exponential(0.1, -0.9), ValueError, "Exponential: gamma is -0.9"),
        (lambda: Linear(-1, 0.1), ValueError, "Linear: lr is -1"),
        (lambda: Linear(1, -0.1), ValueError, "Linear: decay is -0.1"),
        (lambda: Linear(1, 0.1, -0.5), ValueError, "Linear: final_lr is -0.5"),
        (lambda: InverseSigmoid(0.5), ValueError, "InverseSigmoid: k is 0.5, expected a number of at least 1"),
        (lambda: InverseSigmoid("1"), TypeError, "InverseSigmoid: k is '1', expected a finite number"),
        (lambda: Step(-1, 3), ValueError, "Step: lr is -1"),
        (lambda: Step(0.1, 0), ValueError, "Step: step_size is 0, expected at least 1"),
        (lambda: Step(0.1, 2.5), TypeError, "Step: step_size is 2.5, expected a whole number"),
        (lambda: Step(0.1, 3, -1), ValueError, "Step: gamma is -1"),
        (lambda: MultiStep(-1, [3]), ValueError, "MultiStep: lr is -1"),
        (lambda: MultiStep(0.1, [0]), ValueError, r"MultiStep: milestones\[0\] is 0, expected at least 1"),
        (lambda: MultiStep(0.1, [3, 3]), ValueError, r"MultiStep: milestones\[1\] is 3, expected at least 4"),
        (lambda: MultiStep(0.1, [3, 4.5]), TypeError, r"MultiStep: milestones\[1\] is 4.5, expected a whole number"),
        (lambda: MultiStep(0.1, [3], -1), ValueError, "MultiStep: gamma is -1"),
        (lambda: Polynomial(-1, 3), ValueError, "Polynomial: lr is -1"),
        (lambda: Polynomial(0.1, 0), ValueError, "Polynomial: total_steps is 0, expected at least 1"),
        (lambda: Polynomial(0.1, 3, 0), ValueError, "Polynomial: power is 0, expected a positive number"),
        (lambda: Polynomial(0.1, 3, math.inf), ValueError, "Polynomial: power is inf, expected a finite number"),
        (lambda: Polynomial(0.1, 3, 1, -1), ValueError, "Polynomial: final_lr is -1"),
        (lambda: CosineWithWarmRestarts(-1, 3), ValueError, "CosineWithWarmRestarts: lr is -1"),
        (lambda: CosineWithWarmRestarts(0.1, 0), ValueError, "CosineWithWarmRestarts: T_0 is 0, expected at least 1"),
        (lambda: CosineWithWarmRestarts(0.1, 3, 0), ValueError, "T_mult is 0, expected at least 1"),
        (lambda: CosineWithWarmRestarts(0.1, 3, 1.5), TypeError, "T_mult is 1.5, expected a whole number"),
        (lambda: CosineWithWarmRestarts(0.1, 3, 1, -1), ValueError, "final_lr is -1"),
        (lambda: Cyclic(-1, 1, 3), ValueError, "Cyclic: base_lr is -1"),
        (lambda: Cyclic(0.2, 0.1, 3), ValueError, "Cyclic: max_lr is 0.1, expected at least base_lr, 0.2"),
        (lambda: Cyclic(0.1, 0.2, 0), ValueError, "Cyclic: step_size is 0, expected at least 1"),
        (lambda: Cyclic(0.1, 0.2, 3, "sine"), ValueError, "Cyclic: mode is 'sine', expected one of 'triangular', 'tri"),
        (lambda: Cyclic(0.1, 0.2, 3, gamma=0.9), ValueError, "gamma is 0.9, expected 1 for mode 'triangular'"),
        (lambda: Cyclic(0.1, 0.2, 3, "exp_range", 1.1), ValueError, r"gamma is 1.1, expected a number in \[0, 1\]"),
        (lambda: Cyclic(0.1, 0.2, 3, "exp_range", -1), ValueError, "gamma is -1, expected a number"),
        (lambda: OneCycle(-1, 10), ValueError, "OneCycle: max_lr is -1"),
        (lambda: OneCycle(1, 1, 0.9), ValueError, "OneCycle: total_steps is 1, expected at least 2"),
        (lambda: OneCycle(1, 4, 0.25), ValueError, "OneCycle: total_steps is 4, expected more than 1/pct_start = 4.0"),
        (lambda: OneCycle(1, 10, 0), ValueError, "OneCycle: pct_start is 0, expected a number between 0 and 1"),
        (lambda: OneCycle(1, 10, 1.0), ValueError, "OneCycle: pct_start is 1.0, expected a number between"),
        (lambda: OneCycle(1, 10, div_factor=0.5), ValueError, "OneCycle: div_factor is 0.5, expected a number of at"),
        (lambda: OneCycle(1, 10, final_div_factor=math.nan), ValueError, "final_div_factor is nan, expected a finite"),
        (lambda: OneCycle(1, 10, anneal="cos"), ValueError, "anneal is 'cos', expected one of 'cosine', 'linear'"),
        (lambda: CosineWithWarmup(-1, 10), ValueError, "CosineWithWarmup: lr is -1"),
        (lambda: CosineWithWarmup(0.1, 5, 5), ValueError, "CosineWithWarmup: total_steps is 5, expected at least 6"),
        (lambda: CosineWithWarmup(0.1, 5, -1), ValueError, "warmup_steps is -1, expected at least 0"),
        (lambda: CosineWithWarmup(0.1, 5, 1, -0.1), ValueError, "final_lr is -0.1"),
        (lambda: CosineWithWarmup(0.1, "5"), TypeError, "total_steps is '5', expected a whole number"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
