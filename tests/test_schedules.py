"""Schedules of learning rates and of teacher forcing: PyTorch's numbers and the formulas, in any order of steps."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from dataclasses import FrozenInstanceError

import golden
import numpy as np
import pytest
from tolerance import assert_same, epsilon

from gpurnn import schedules
from gpurnn.optimizers import SGD
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
    ReduceOnPlateau,
    Step,
    TimeBased,
)
from gpurnn.training import CheckpointError, TokenStream, Trainer

pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")

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
    """The schedule of a case, and the number of steps that it covers."""
    algorithm, lr, options = record["algo"], record["base_lr"], dict(record["kwargs"])
    if algorithm == "CosineAnnealingLR":
        # PyTorch's schedule rises again after T_max.
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


PLATEAUS = [r for r in golden.records("misc") if r["kind"] == "lr_scheduler" and r["algo"] == "ReduceLROnPlateau"]
CASES = [r for r in golden.records("misc") if r["kind"] == "lr_scheduler" and r["algo"] != "ReduceLROnPlateau"]


def test_the_cases_are_there():
    assert len(CASES) == 14
    assert len({record["algo"] for record in CASES}) == 10
    assert len(PLATEAUS) == 3


@pytest.mark.parametrize("record", CASES, ids=lambda record: record["name"])
def test_schedules_give_what_torch_gives(record):
    schedule, count = torch_schedule(record)
    expected = golden.arrays("misc", record["name"])["lr"][:count]
    assert len(expected) == count
    np.testing.assert_allclose([schedule(step) for step in range(count)], expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("record", PLATEAUS, ids=lambda record: record["name"])
def test_plateaus_give_what_torch_gives(record):
    options = dict(record["kwargs"])
    patience = options.pop("patience") + 1  # PyTorch counts the evaluations that it tolerates, not the one it acts on
    sign = {"min": 1, "max": -1}[options.pop("mode", "min")]
    # PyTorch ignores reductions smaller than 1e-8: 3e-9 stays.
    options.setdefault("min_lr", record["base_lr"] * 1e-8)
    schedule = ReduceOnPlateau(record["base_lr"], patience=patience, **options)
    arrays = golden.arrays("misc", record["name"])
    rates = []
    for step, metric in enumerate(arrays["metric"]):
        rates.append(schedule(step))
        schedule.observe(sign * metric)
    np.testing.assert_allclose(rates, arrays["lr"], rtol=1e-9, atol=1e-15)


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
        # x is a difference of numbers up to 2 cycle; 1 - x may cancel.
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
    # The rates at whole steps miss the peak by less than the change of one step.
    steepest = max(0.54 / (101 * pct_start - 1), 0.6 / (101 * (1 - pct_start)))
    assert max(rates) >= 0.6 - steepest * (math.pi / 2 if anneal == "cosine" else 1)


def test_one_cycle_is_continuous_at_its_peak():
    assert OneCycle(0.6, 20, 0.25)(4) == 0.6
    linear = OneCycle(1.0, 10, 0.35, div_factor=4, final_div_factor=1e6, anneal="linear")
    assert linear(2) == pytest.approx(0.25 + 0.75 * 2 / 2.5, rel=1e-14)
    assert linear(3) == pytest.approx(1 - (1 - 0.25e-6) * 0.5 / 6.5, rel=1e-14)


def rates_of(schedule, losses):
    rates = []
    for loss in losses:
        schedule.observe(loss)
        rates.append(schedule(0))
    return rates


def test_a_plateau_is_patience_evaluations_without_improvement():
    reduce = ReduceOnPlateau(8.0, factor=0.5, patience=2, threshold=0.0, min_lr=3.0)
    assert reduce(0) == reduce(1000) == 8.0
    # An equal loss is no improvement. Each improvement restarts the count, and so does each reduction.
    losses = [5, 5, 4, 4, 3.9, 6, 6, 3.8, 3.9, 3.9, 3.9, 3.9, 3.9]
    assert rates_of(reduce, losses) == [8, 8, 8, 8, 8, 8, 4, 4, 4, 3, 3, 3, 3]
    assert rates_of(ReduceOnPlateau(8.0, 0.5, patience=2, threshold=0.0), [5, 5, 5]) == [8, 8, 4]


def test_evaluations_while_cooling_down_do_not_count():
    cooling = ReduceOnPlateau(8.0, factor=0.5, patience=1, cooldown=2)
    assert rates_of(cooling, [1, 2, 2, 2, 2, 2, 0.5, 0.6]) == [8, 4, 4, 4, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("threshold_mode", "best", "improved", "not_improved"),
    [("rel", 10, 8.9, 9.1), ("rel", -10, -11.1, -10.9), ("abs", 10, 9.85, 9.95), ("abs", -10, -10.15, -10.05)],
)
def test_the_threshold_of_an_improvement(threshold_mode, best, improved, not_improved):
    def schedule():
        return ReduceOnPlateau(1.0, patience=1, threshold=0.1, threshold_mode=threshold_mode)

    assert rates_of(schedule(), [best, improved]) == [1.0, 1.0]
    assert rates_of(schedule(), [best, not_improved]) == [1.0, 0.1]


@pytest.mark.parametrize("stop", range(12))
def test_a_plateau_goes_on_from_its_state(stop):
    def schedule():
        return ReduceOnPlateau(8.0, factor=0.7, patience=2, cooldown=1)

    losses = [5, 4, 6, 6, 6, 6, 3, 7, 7, 7, 7, 2]
    first, second = schedule(), schedule()
    part = rates_of(first, losses[:stop])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert part + rates_of(second, losses[stop:]) == rates_of(schedule(), losses)
    assert repr(first) == repr(schedule())  # the state is not part of the arguments
    with pytest.raises(KeyError, match=r"load_state_dict: state has \['best'\], expected \['best', 'cooling', 'fail"):
        second.load_state_dict({"best": 1.0})


def test_what_a_plateau_cannot_observe():
    schedule = ReduceOnPlateau(1.0)
    before = schedule.state_dict()
    for loss in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"ReduceOnPlateau.observe: loss is {loss}, expected a finite number"):
            schedule.observe(loss)
    with pytest.raises(ValueError, match="ReduceOnPlateau: step is -1, expected at least 0"):
        schedule(-1)
    assert schedule.state_dict() == before


class Descent:
    """A model with predefined validation losses, indexed by the number of gradients taken so far."""

    def __init__(self, validation):
        self.params = {"weight": np.zeros(3)}
        self.validation, self.taken = validation, 0

    def loss(self, inputs, targets, state=None, lengths=None):
        return np.asarray(self.validation[self.taken - 1]), None

    def loss_and_gradients(self, inputs, targets, state=None, lengths=None, *, rng=None):
        self.taken += 1
        return np.asarray(1.0), None, {"weight": np.full(3, 1.0 / self.taken)}

    def training_state(self):
        return {"taken": self.taken}

    def load_training_state(self, state):
        self.taken = state["taken"]


LOSSES = [5.0, 4.0, 4.0, 4.5, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]


def plateau_trainer(directory, steps=10, schedule=None, **options):
    one = TokenStream(np.zeros(2, int), 1, 1)
    schedule = schedule or ReduceOnPlateau(0.7, factor=0.3, patience=2, cooldown=1)
    options = {"validation": one, "validation_interval": 1, "checkpoint_interval": 3, "log_interval": 1, **options}
    run = Trainer(Descent(LOSSES), one, SGD(lr=9.0), steps=steps, schedule=schedule, directory=directory,
                  progress=False, **options)  # fmt: skip
    return run


def learning_rates(run):
    return [line["learning_rate"] for line in run.history if "loss" in line]


def test_the_trainer_reduces_the_rate_on_a_plateau():
    run = plateau_trainer(None)
    run.train()
    once, twice = 0.7 * 0.3, 0.7 * 0.3 * 0.3
    # Validation comes after the step: the failures of steps 2 and 3 lower the rate of step 4.
    assert learning_rates(run) == [0.7] * 4 + [once] * 3 + [twice] * 3
    rates = learning_rates(run)
    weight = -sum(rate / (step + 1) for step, rate in enumerate(rates))
    np.testing.assert_allclose(run.model.params["weight"], weight, rtol=100 * epsilon("float64"))


@pytest.mark.parametrize("stop", range(1, 10))
def test_training_on_a_plateau_resumes_with_the_same_bits(tmp_path, stop):
    whole = plateau_trainer(tmp_path / "whole")
    whole.train()
    part = plateau_trainer(tmp_path / "part")
    take = part._take_step

    def killed():
        if part.step == stop:
            raise MemoryError
        return take()

    part._take_step = killed
    with pytest.raises(MemoryError):
        part.train()
    resumed = plateau_trainer(tmp_path / "part")
    assert resumed.resume() == stop // 3 * 3
    resumed.train()
    assert_same(resumed.model.params, whole.model.params)
    assert resumed.schedule.state_dict() == whole.schedule.state_dict()
    assert learning_rates(resumed) == learning_rates(whole)


def test_another_plateau_is_another_run(tmp_path):
    plateau_trainer(tmp_path, steps=4).train()
    other = ReduceOnPlateau(0.7, factor=0.3, patience=3, cooldown=1)
    with pytest.raises(CheckpointError, match=r"learning_rate is ReduceOnPlateau.*patience=2.*patience=3"):
        plateau_trainer(tmp_path, schedule=other).resume()
    assert other(0) == 0.7
    with pytest.raises(CheckpointError, match=r"a run whose learning_rate is ReduceOnPlateau.*here it is \[0.7, 0.7"):
        plateau_trainer(tmp_path, schedule=Constant(0.7)).resume()


def test_a_plateau_needs_losses():
    with pytest.raises(ValueError, match="Trainer: validation is None, expected data, whose losses the schedule"):
        plateau_trainer(None, validation=None, validation_interval=None)


def test_a_schedule_that_observes_has_a_state():
    class Forgetful:
        def __call__(self, step):
            return 0.1

        def observe(self, loss):
            pass

    with pytest.raises(TypeError, match=r"schedule is a .*Forgetful without .'state_dict', 'load_state_dict'"):
        plateau_trainer(None, schedule=Forgetful())


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
        (lambda: OneCycle(1, 10, 0), ValueError, "OneCycle: pct_start is 0.0, expected a number between 0 and 1"),
        (lambda: OneCycle(1, 10, 1.0), ValueError, "OneCycle: pct_start is 1.0, expected a number between"),
        (lambda: OneCycle(1, 10, div_factor=0.5), ValueError, "OneCycle: div_factor is 0.5, expected a number of at"),
        (lambda: OneCycle(1, 10, final_div_factor=math.nan), ValueError, "final_div_factor is nan, expected a finite"),
        (lambda: OneCycle(1, 10, anneal="cos"), ValueError, "anneal is 'cos', expected one of 'cosine', 'linear'"),
        (lambda: ReduceOnPlateau(-1), ValueError, "ReduceOnPlateau: lr is -1"),
        (lambda: ReduceOnPlateau(1, 1.0), ValueError, r"ReduceOnPlateau: factor is 1.0, expected a number in \[0, 1\)"),
        (lambda: ReduceOnPlateau(1, -0.1), ValueError, "ReduceOnPlateau: factor is -0.1"),
        (lambda: ReduceOnPlateau(1, patience=0), ValueError, "ReduceOnPlateau: patience is 0, expected at least 1"),
        (lambda: ReduceOnPlateau(1, threshold=-1), ValueError, "ReduceOnPlateau: threshold is -1"),
        (
            lambda: ReduceOnPlateau(1, threshold_mode="max"),
            ValueError,
            "threshold_mode is 'max', expected one of 'rel'",
        ),
        (lambda: ReduceOnPlateau(1, cooldown=0.5), TypeError, "cooldown is 0.5, expected a whole number"),
        (lambda: ReduceOnPlateau(1, min_lr=2), ValueError, "ReduceOnPlateau: min_lr is 2.0, expected at most lr, 1.0"),
        (lambda: ReduceOnPlateau(1, min_lr=-1), ValueError, "ReduceOnPlateau: min_lr is -1"),
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


FAR = [
    (schedules.Constant(0.1), 0.1, 0.1),
    (schedules.TimeBased(0.1, 0.5), 0.1 / (1 + 0.5e9), 0.1 / (1 + 0.5e18)),
    (schedules.TimeBased(1e300, 1e300), 0, 0),
    (schedules.Exponential(1.0, 1.5), math.inf, math.inf),
    (schedules.Exponential(1e-300, 1.0000001), 1e-300 * math.exp(1e9 * math.log(1.0000001)), math.inf),
    (schedules.Exponential(1e300, 1 - 1e-6), 1e300 * math.exp(-500) * math.exp(1e9 * math.log(1 - 1e-6) + 500), 0),
    (schedules.Exponential(0.0, 2.0), 0, 0),
    (schedules.Exponential(1.0, 0.0), 0, 0),
    (schedules.Linear(1.0, 1e300), 0, 0),
    (schedules.InverseSigmoid(1.0), 0, 0),
    (schedules.InverseSigmoid(1e300), 1, 1),
    (schedules.Step(1.0, 1, 2.0), math.inf, math.inf),
    (schedules.Step(1.0, 10**17, 2.0), 1, 1024),
    (schedules.MultiStep(1.0, [3, 5], 1e300), math.inf, math.inf),
    (schedules.Polynomial(1.0, 10**18, 2.0), (1 - 1e-9) ** 2, 0),
    (schedules.Polynomial(1.0, 10**19, 1e300), 0, 0),
    (schedules.CosineWithWarmup(1.0, 10, 3), 0, 0),
    (schedules.CosineWithWarmup(1.0, 10**18, 10**9), 1, 0),
    (schedules.CosineWithWarmRestarts(1.0, 1), 1, 1),
    (schedules.CosineWithWarmRestarts(1.0, 10**9, 10**200), 1, 1),
    (schedules.Cyclic(0.1, 1.0, 3, "triangular2"), 0.1, 0.1),
    (schedules.Cyclic(0.1, 1.0, 3, "exp_range", 0.5), 0.1, 0.1),
    (schedules.OneCycle(1.0, 10), 1 / 25e4, 1 / 25e4),
    (schedules.ReduceOnPlateau(1.0), 1, 1),
]


@pytest.mark.parametrize(("schedule", "billion", "trillion_million"), FAR, ids=lambda value: str(value)[:60])
def test_far_out(schedule, billion, trillion_million):
    assert math.isfinite(schedule(0))
    assert schedule(10**9) == pytest.approx(billion, rel=1e-10)
    assert schedule(10**18) == pytest.approx(trillion_million, rel=1e-10)


def test_a_state_of_more_patience_ends_in_a_reduction():
    """If training continues with less patience than before, it may already have waited long enough."""
    patient, schedule = (ReduceOnPlateau(1.0, factor=0.5, patience=patience) for patience in (10, 2))
    for _ in range(6):
        patient.observe(1.0)
    schedule.load_state_dict(patient.state_dict())
    schedule.observe(1.0)
    assert schedule(0) == 0.5
