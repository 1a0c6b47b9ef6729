"""Learning rates, and probabilities of teacher forcing, as functions of the step: the number of earlier updates.

A schedule has no state, so training resumes from the step alone. The exception is `ReduceOnPlateau`: it depends on the
validation losses, and training saves its state. `gpurnn.Trainer` takes one schedule as ``schedule``, for the learning
rate, and one as ``teacher_forcing``. For teacher forcing, scheduled sampling (S. Bengio, O. Vinyals, N. Jaitly,
N. Shazeer, "Scheduled sampling for sequence prediction with recurrent neural networks", NeurIPS 2015, section 2.4) has
three decays of eps_t, the probability that a decoder reads the true token instead of its own:

=================  ==============================  ===========================
exponential        eps_0 lambda^t                  `Exponential(eps_0, lambda)`
linear             max(eps_min, k - c t)           `Linear(k, c, eps_min)`
inverse sigmoid    k / (k + exp(t / k))            `InverseSigmoid(k)`
=================  ==============================  ===========================

`gpurnn.Trainer` and ``fit`` also take the name of a learning-rate schedule. It covers the T steps of the run, and
begins at, or rises to, the optimizer's learning rate lr:

==============  ==============================================================
"constant"      `Constant(lr)`
"cosine"        `CosineWithWarmup(lr, T)`, without a warm-up
"linear"        `Polynomial(lr, T)`, a straight line to 0
"one_cycle"     `OneCycle(lr, T)`
"plateau"       `ReduceOnPlateau(lr, factor=0.5, patience=5)`
==============  ==============================================================
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from . import _checks, _docs

if TYPE_CHECKING:
    pass


def _times_power(value: float, factor: float, exponent: int) -> float:
    """``value`` times ``factor`` to a power; infinity if it is too large for a float."""
    if value == 0 or (factor == 0 and exponent > 0):
        return 0.0
    # The power may overflow or underflow even if its product with the value does not.
    logarithm = exponent * math.log(factor) if factor > 0 else 0.0
    if abs(logarithm) < 600:
        return float(value * factor**exponent)
    logarithm += math.log(value)
    return math.exp(logarithm) if logarithm < math.log(sys.float_info.max) else math.inf


class _Schedule(_checks.ListsOptions):
    """A function of the step.

    Parameters
    ----------
    lr : float
        The first learning rate, or the first probability of teacher forcing. At least 0.
    gamma : float
        The factor from each rate to the next, at least 0.
    total_steps : int
        The step at which the final rate is reached, at least 1.
    final_lr : float
        The final rate, at least 0.

    Raises
    ------
    TypeError
        An argument has a wrong type.
    ValueError
        An argument is out of its range.
    """

    def __call__(self, step: int) -> float:
        """The learning rate, or the probability of teacher forcing, after ``step`` updates."""
        return float(self._at(_checks.integer_at_least(type(self).__name__, "step", step, 0)))

    def _at(self, step: int) -> float:
        raise NotImplementedError


@_docs.inherits_parameters
@dataclass(frozen=True)
class Constant(_Schedule):
    """The same learning rate at every step.

    Examples
    --------
    >>> Constant(0.1)(1000)
    0.1
    """

    lr: float

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr")

    def _at(self, step: int) -> float:
        return self.lr


@_docs.inherits_parameters
@dataclass(frozen=True)
class TimeBased(_Schedule):
    """Time-based decay: lr / (1 + decay step).

    Parameters
    ----------
    decay : float
        Per step, at least 0. After 1/decay steps the rate has halved.

    References
    ----------
    H. Robbins, S. Monro, "A stochastic approximation method", Annals of Mathematical Statistics 22 (1951).

    Examples
    --------
    >>> TimeBased(0.1, decay=0.01)(100)
    0.05
    """

    lr: float
    decay: float

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr", "decay")

    def _at(self, step: int) -> float:
        return self.lr / (1 + self.decay * step)


@_docs.inherits_parameters
@dataclass(frozen=True)
class Exponential(_Schedule):
    """Exponential decay: lr gamma^step. With a gamma above 1 it becomes infinite past the largest float.

    As a schedule of teacher forcing this is eps_0 lambda^t.

    Parameters
    ----------
    gamma : float
        The factor of each step, at least 0.

    Examples
    --------
    >>> Exponential(8.0, gamma=0.5)(3)
    1.0
    """

    lr: float
    gamma: float

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr", "gamma")

    def _at(self, step: int) -> float:
        return _times_power(self.lr, self.gamma, step)


@_docs.inherits_parameters
@dataclass(frozen=True)
class Linear(_Schedule):
    """Linear decay to a final rate, which then stays: max(final_lr, lr - decay step).

    As a schedule of teacher forcing this is max(eps_min, k - c t).

    Parameters
    ----------
    decay : float
        Per step, at least 0.

    References
    ----------
    S. Bengio, O. Vinyals, N. Jaitly, N. Shazeer, "Scheduled sampling for sequence prediction with recurrent neural
    networks", NeurIPS 2015, section 2.4.

    Examples
    --------
    >>> schedule = Linear(1.0, decay=0.25, final_lr=0.1)
    >>> [schedule(step) for step in range(6)]
    [1.0, 0.75, 0.5, 0.25, 0.1, 0.1]
    """

    lr: float
    decay: float
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr", "decay", "final_lr")

    def _at(self, step: int) -> float:
        return max(self.final_lr, self.lr - self.decay * step)


@_docs.inherits_parameters
@dataclass(frozen=True)
class InverseSigmoid(_Schedule):
    """Inverse sigmoid decay of the probability of teacher forcing: k / (k + exp(step / k)).

    It begins at k / (k + 1), is 1/2 after k log(k) steps, and tends to 0.

    Parameters
    ----------
    k : float
        At least 1. A larger k makes the decay later and slower.

    References
    ----------
    S. Bengio, O. Vinyals, N. Jaitly, N. Shazeer, "Scheduled sampling for sequence prediction with recurrent neural
    networks", NeurIPS 2015, section 2.4.

    Examples
    --------
    >>> schedule = InverseSigmoid(100)
    >>> [round(schedule(step), 3) for step in (0, 230, 461, 691, 922)]
    [0.99, 0.909, 0.499, 0.091, 0.01]
    """

    k: float

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.finite, "k")
        if self.k < 1:
            raise ValueError(f"InverseSigmoid: k is {self.k!r}, expected a number of at least 1")

    def _at(self, step: int) -> float:
        falling = math.exp(-step / self.k)  # the growing exponential would overflow
        return self.k * falling / (self.k * falling + 1)


@_docs.inherits_parameters
@dataclass(frozen=True)
class Step(_Schedule):
    """Step decay: lr gamma^floor(step / step_size).

    Parameters
    ----------
    step_size : int
        Steps at each rate, at least 1.

    Examples
    --------
    >>> schedule = Step(8.0, step_size=10, gamma=0.5)
    >>> schedule(9), schedule(10)
    (8.0, 4.0)
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr")
        _checks.attributes(self, _checks.integer_at_least, "step_size", least=1)
        _checks.attributes(self, _checks.non_negative, "gamma")

    def _at(self, step: int) -> float:
        return _times_power(self.lr, self.gamma, step // self.step_size)


@_docs.inherits_parameters
@dataclass(frozen=True)
class MultiStep(_Schedule):
    """Piecewise constant decay: lr gamma^n, where n is the number of milestones that are at most ``step``.

    With one milestone and a gamma above 1 it is a constant warm-up, gamma times lower than the rate after it.

    Parameters
    ----------
    milestones : iterable of int
        The steps at which a new rate begins. Each is at least 1, and larger than the one before.

    Examples
    --------
    >>> schedule = MultiStep(8.0, milestones=(10, 15), gamma=0.5)
    >>> [schedule(step) for step in (0, 9, 10, 14, 15, 100)]
    [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    """

    lr: float
    milestones: Iterable[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr")
        milestones: list[int] = []
        for index, milestone in enumerate(self.milestones):
            least = milestones[-1] + 1 if milestones else 1
            milestones.append(_checks.integer_at_least("MultiStep", f"milestones[{index}]", milestone, least))
        object.__setattr__(self, "milestones", tuple(milestones))
        _checks.attributes(self, _checks.non_negative, "gamma")

    def _at(self, step: int) -> float:
        return _times_power(self.lr, self.gamma, bisect_right(tuple(self.milestones), step))


@_docs.inherits_parameters
@dataclass(frozen=True)
class Polynomial(_Schedule):
    """Polynomial decay to a final rate, which then stays: final_lr + (lr - final_lr) (1 - t)^power.

    Here t = min(1, step / total_steps). With power 1 it is a straight line, and with a final rate above the first one a
    warm-up.

    Parameters
    ----------
    power : float
        Above 0.

    Examples
    --------
    >>> schedule = Polynomial(1.0, total_steps=4, power=2.0)
    >>> [schedule(step) for step in range(6)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    >>> warmup = Polynomial(0.0, total_steps=4, final_lr=1.0)
    >>> [warmup(step) for step in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    lr: float
    total_steps: int
    power: float = 1.0
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr")
        _checks.attributes(self, _checks.integer_at_least, "total_steps", least=1)
        _checks.attributes(self, _checks.positive, "power")
        _checks.attributes(self, _checks.finite, "power")
        _checks.attributes(self, _checks.non_negative, "final_lr")

    def _at(self, step: int) -> float:
        left = max(0.0, 1 - step / self.total_steps)
        return float(self.final_lr + (self.lr - self.final_lr) * left**self.power)


@_docs.inherits_parameters
@dataclass(frozen=True)
class CosineWithWarmup(_Schedule):
    """Linear warm-up, then half a cosine down to the final rate, which then stays.

    While step < warmup_steps the rate is lr (step + 1) / (warmup_steps + 1), so no update is wasted on a rate of 0.
    Then it is final_lr + (lr - final_lr) (1 + cos(pi t)) / 2, where t rises from 0 to 1 between warmup_steps and
    total_steps.

    Parameters
    ----------
    lr : float
        The highest learning rate, reached at step ``warmup_steps``. At least 0.
    total_steps : int
        The step at which the final rate is reached, more than ``warmup_steps``.
    warmup_steps : int
        At least 0.

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, equation 5, for the
    cosine.

    Examples
    --------
    >>> schedule = CosineWithWarmup(1.0, total_steps=100, warmup_steps=4)
    >>> [round(schedule(step), 3) for step in (0, 3, 4, 52, 100, 200)]
    [0.2, 0.8, 1.0, 0.5, 0.0, 0.0]
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr")
        _checks.attributes(self, _checks.integer_at_least, "warmup_steps", least=0)
        _checks.attributes(self, _checks.integer_at_least, "total_steps", least=self.warmup_steps + 1)
        _checks.attributes(self, _checks.non_negative, "final_lr")

    def _at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        t = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * t)) / 2


@_docs.inherits_parameters
@dataclass(frozen=True)
class CosineWithWarmRestarts(_Schedule):
    """Half a cosine down, repeated from the highest rate: stochastic gradient descent with warm restarts.

    final_lr + (lr - final_lr) (1 + cos(pi T_cur / T_i)) / 2, where T_cur is the number of steps since the last restart,
    and T_i = T_0 T_mult^i is the number of steps from the i-th restart to the next. At T_cur = T_i the rate restarts
    instead of reaching the final one.

    Parameters
    ----------
    lr : float
        The learning rate after each restart, at least 0.
    T_0 : int
        Steps before the first restart, at least 1.
    T_mult : int
        How many times longer each period is than the one before, at least 1.
    final_lr : float
        The rate that each period falls towards, at least 0.

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, equation 5.

    Examples
    --------
    >>> schedule = CosineWithWarmRestarts(1.0, T_0=2, T_mult=2)
    >>> [round(schedule(step), 3) for step in range(7)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """

    lr: float
    T_0: int
    T_mult: int = 1
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr")
        _checks.attributes(self, _checks.integer_at_least, "T_0", least=1)
        _checks.attributes(self, _checks.integer_at_least, "T_mult", least=1)
        _checks.attributes(self, _checks.non_negative, "final_lr")

    def _at(self, step: int) -> float:
        period = self.T_0
        since = step % period if self.T_mult == 1 else step
        while since >= period:
            since -= period
            period *= self.T_mult
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * since / period)) / 2


@_docs.inherits_parameters
@dataclass(frozen=True)
class Cyclic(_Schedule):
    """Cyclical learning rates: up and down between two rates along straight lines.

    base_lr + (max_lr - base_lr) (1 - x) s, with cycle = floor(1 + step / (2 step_size)) and
    x = abs(step / step_size - 2 cycle + 1). The scale s is 1 for "triangular", 2^(1 - cycle) for "triangular2", whose
    peaks halve from cycle to cycle, and gamma^step for "exp_range".

    Parameters
    ----------
    base_lr : float
        The learning rate at the beginning and end of each cycle, at least 0.
    max_lr : float
        The highest learning rate, at least ``base_lr``.
    step_size : int
        Steps of half a cycle, at least 1.
    mode : {"triangular", "triangular2", "exp_range"}
    gamma : float
        The factor of each step, in [0, 1]. 1 unless the mode is "exp_range".

    References
    ----------
    L. N. Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.1.

    Examples
    --------
    >>> schedule = Cyclic(1.0, 3.0, step_size=2, mode="triangular2")
    >>> [schedule(step) for step in range(9)]
    [1.0, 2.0, 3.0, 2.0, 1.0, 1.5, 2.0, 1.5, 1.0]
    """

    base_lr: float
    max_lr: float
    step_size: int
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        where = "Cyclic"
        _checks.attributes(self, _checks.non_negative, "base_lr", "max_lr", "gamma")
        if self.max_lr < self.base_lr:
            raise ValueError(f"{where}: max_lr is {self.max_lr!r}, expected at least base_lr, {self.base_lr!r}")
        _checks.attributes(self, _checks.integer_at_least, "step_size", least=1)
        _checks.attributes(self, _checks.choice, "mode", choices=("triangular", "triangular2", "exp_range"))
        if self.gamma > 1:
            raise ValueError(f"{where}: gamma is {self.gamma!r}, expected a number in [0, 1]")
        if self.gamma != 1 and self.mode != "exp_range":
            raise ValueError(f"{where}: gamma is {self.gamma!r}, expected 1 for mode {self.mode!r}")

    def _at(self, step: int) -> float:
        cycles, within = divmod(step, 2 * self.step_size)
        height = 1 - abs(within - self.step_size) / self.step_size
        factor, times = (0.5, cycles) if self.mode == "triangular2" else (self.gamma, step)
        return self.base_lr + _times_power((self.max_lr - self.base_lr) * height, factor, times)


@_docs.inherits_parameters
@dataclass(frozen=True)
class OneCycle(_Schedule):
    """The one-cycle policy: up to the highest rate, then down to far below the first one, where it stays.

    The rate goes from max_lr / div_factor at step 0 to max_lr at pct_start total_steps - 1, and then to
    max_lr / (div_factor final_div_factor) at total_steps - 1. In a phase from a to b, while t rises from 0 to 1, the
    rate is a + (b - a) t if ``anneal`` is "linear", and a + (b - a) (1 - cos(pi t)) / 2 if it is "cosine".

    Parameters
    ----------
    max_lr : float
        The highest learning rate, at least 0.
    total_steps : int
        Steps of the whole cycle, more than 1 / ``pct_start``, so that a step precedes the highest rate.
    pct_start : float
        The fraction of the steps in which the rate rises, between 0 and 1.
    div_factor : float
        The highest rate over the first one, at least 1.
    final_div_factor : float
        The first rate over the last one, at least 1.
    anneal : {"cosine", "linear"}

    References
    ----------
    L. N. Smith, N. Topin, "Super-convergence: very fast training of neural networks using large learning rates", SPIE
    11006 (2019), section 3. The paper uses straight lines, and a third one ends the descent; the cosine came later.

    Examples
    --------
    >>> schedule = OneCycle(1.0, total_steps=10, pct_start=0.5, div_factor=5.0, anneal="linear")
    >>> [round(schedule(step), 3) for step in range(11)]
    [0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0]
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        where = "OneCycle"
        _checks.attributes(self, _checks.non_negative, "max_lr")
        _checks.attributes(self, _checks.integer_at_least, "total_steps", least=2)
        _checks.attributes(self, _checks.finite, "pct_start", "div_factor", "final_div_factor")
        if not 0 < self.pct_start < 1:
            raise ValueError(f"{where}: pct_start is {self.pct_start!r}, expected a number between 0 and 1")
        if self.total_steps * self.pct_start <= 1:
            raise ValueError(
                f"{where}: total_steps is {self.total_steps}, expected more than 1/pct_start = {1 / self.pct_start}"
            )
        for name in ("div_factor", "final_div_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{where}: {name} is {getattr(self, name)!r}, expected a number of at least 1")
        _checks.attributes(self, _checks.choice, "anneal", choices=("cosine", "linear"))

    def _at(self, step: int) -> float:
        first = self.max_lr / self.div_factor
        last = self.total_steps - 1
        peak = self.total_steps * self.pct_start - 1
        if step <= peak:
            begin, end, t = first, self.max_lr, step / peak
        else:
            begin, end, t = self.max_lr, first / self.final_div_factor, min(1.0, (step - peak) / (last - peak))
        if self.anneal == "cosine":
            t = (1 - math.cos(math.pi * t)) / 2
        return begin * (1 - t) + end * t


@_docs.inherits_parameters
@dataclass
class ReduceOnPlateau(_Schedule):
    """Reduce the learning rate when the validation loss has stopped falling: lr <- max(min_lr, factor lr).

    An evaluation is an improvement if its loss L is below the lowest so far, L_best, by more than ``threshold``
    abs(L_best), or by more than ``threshold`` if the ``threshold_mode`` is "abs". Only then does L become L_best. After
    ``patience`` evaluations in a row without improvement, the rate is reduced and counting restarts. The ``cooldown``
    evaluations after a reduction are not counted.

    It is for the learning rate, not for teacher forcing. A `gpurnn.Trainer` with this ``schedule`` calls ``observe``
    with each validation loss, and saves the schedule's state in the checkpoints.

    Parameters
    ----------
    lr : float
        The first learning rate, at least 0.
    factor : float
        The factor of each reduction, in [0, 1).
    patience : int
        At least 1, counted like the ``patience`` of `gpurnn.Trainer`. PyTorch waits for one evaluation more than its
        patience: its 10 is 11 here.
    threshold : float
        At least 0.
    threshold_mode : {"rel", "abs"}
    cooldown : int
        At least 0.
    min_lr : float
        The lowest rate, at least 0 and at most ``lr``.

    Examples
    --------
    >>> schedule = ReduceOnPlateau(1.0, factor=0.5, patience=2)
    >>> for loss in (3.0, 2.0, 2.5):
    ...     schedule.observe(loss)
    >>> schedule(3)
    1.0
    >>> schedule.observe(2.1)
    >>> schedule(4)
    0.5
    """

    lr: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_lr: float = 0.0

    _rate: float = field(init=False, repr=False)
    _best: float | None = field(default=None, init=False, repr=False)
    _failures: int = field(default=0, init=False, repr=False)
    _cooling: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        where = "ReduceOnPlateau"
        _checks.attributes(self, _checks.non_negative, "lr", "factor", "threshold", "min_lr")
        self._rate = self.lr
        if self.factor >= 1:
            raise ValueError(f"{where}: factor is {self.factor!r}, expected a number in [0, 1)")
        _checks.attributes(self, _checks.integer_at_least, "patience", least=1)
        _checks.attributes(self, _checks.choice, "threshold_mode", choices=("rel", "abs"))
        _checks.attributes(self, _checks.integer_at_least, "cooldown", least=0)
        if self.min_lr > self.lr:
            raise ValueError(f"{where}: min_lr is {self.min_lr!r}, expected at most lr, {self.lr!r}")

    def _at(self, step: int) -> float:
        return self._rate

    def observe(self, loss: float) -> None:
        """Record the validation loss of one evaluation. For a metric that should rise, pass its negative.

        Raises
        ------
        ValueError, TypeError
            ``loss`` is not a finite number.
        """
        loss = _checks.finite("ReduceOnPlateau.observe", "loss", loss)
        scale = abs(self._best or 0.0) if self.threshold_mode == "rel" else 1.0
        if self._best is None or self._best - loss > self.threshold * scale:
            self._best, self._failures = loss, 0
        elif not self._cooling:
            self._failures += 1
        self._cooling = max(0, self._cooling - 1)
        if self._failures >= self.patience:
            self._rate = max(float(self.min_lr), self._rate * self.factor)
            self._failures, self._cooling = 0, self.cooldown

    def state_dict(self) -> dict[str, float | int | None]:
        """The rate, the best loss and the counts so far, by name."""
        return {"rate": self._rate, "best": self._best, "failures": self._failures, "cooling": self._cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state_dict` of a schedule with the same parameters.

        If it raises, the schedule has not changed.

        Raises
        ------
        KeyError
            A name is missing or unknown.
        ValueError, TypeError
            A value is out of its range.
        """
        where = "ReduceOnPlateau.load_state_dict"
        if state.keys() != self.state_dict().keys():
            raise KeyError(f"{where}: state has {sorted(state)}, expected {sorted(self.state_dict())}")
        rate = _checks.non_negative(where, "rate", state["rate"])
        best = None if state["best"] is None else _checks.finite(where, "best", state["best"])
        failures, cooling = (_checks.integer_at_least(where, name, state[name], 0) for name in ("failures", "cooling"))
        self._rate, self._best, self._failures, self._cooling = rate, best, failures, cooling


_BY_NAME: dict[str, Callable[[float, int], _Schedule]] = {
    "constant": lambda lr, total_steps: Constant(lr),
    "cosine": CosineWithWarmup,
    "linear": Polynomial,
    "one_cycle": OneCycle,
    "plateau": lambda lr, total_steps: ReduceOnPlateau(lr, factor=0.5, patience=5),
}


def _named(where: str, name: str, lr: float, total_steps: int) -> Any:
    """The schedule with this name, for a run of ``total_steps`` steps.

    Raises
    ------
    ValueError
        No schedule has the name, or the run is too short for it.
    """
    return _BY_NAME[_checks.choice(where, "schedule", name, tuple(_BY_NAME))](lr, max(total_steps, 1))
