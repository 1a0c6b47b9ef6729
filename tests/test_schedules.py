"""Schedules of learning rates and of teacher forcing: PyTorch's numbers and the formulas, in any order of steps."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError

import golden
import numpy as np
import pytest
from tolerance import epsilon

from gpurnn.schedules import Constant, CosineWithWarmup, Exponential, InverseSigmoid, Linear, Step, TimeBased

EVERY = [
    Constant(0.1),
    TimeBased(0.1, decay=0.5),
    Exponential(0.1, gamma=0.9),
    Linear(0.1, decay=0.01, final_lr=0.02),
    InverseSigmoid(5),
    Step(0.1, step_size=3, gamma=0.5),
    CosineWithWarmup(0.1, total_steps=20, warmup_steps=5, final_lr=0.01),
]


def torch_schedule(record):
    """The schedule of one case and how many of its steps it concerns, or None."""
    lr, options = record["base_lr"], record["kwargs"]
    if record["algo"] == "StepLR":
        return Step(lr, **options), 60
    if record["algo"] == "ExponentialLR":
        return Exponential(lr, **options), 60
    if record["algo"] == "CosineAnnealingLR":
        # PyTorch's rises again after T_max.
        return CosineWithWarmup(lr, options["T_max"], final_lr=options.get("eta_min", 0.0)), options["T_max"] + 1
    return None


CONCERNED = [r for r in golden.records("misc") if r["kind"] == "lr_scheduler" and torch_schedule(r)]


def test_the_cases_that_concern_the_schedules_are_there():
    assert sorted(record["algo"] for record in CONCERNED) == ["CosineAnnealingLR"] * 2 + ["ExponentialLR", "StepLR"]


@pytest.mark.parametrize("record", CONCERNED, ids=lambda record: record["name"])
def test_schedules_give_what_torch_gives(record):
    schedule, count = torch_schedule(record)
    expected = golden.arrays("misc", record["name"])["lr"][:count]
    np.testing.assert_allclose([schedule(step) for step in range(len(expected))], expected, rtol=1e-9, atol=1e-15)


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
