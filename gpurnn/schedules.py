"""Learning rates, and probabilities of teacher forcing, as functions of the step: the number of updates made before.

A schedule remembers nothing, so that training is resumed with nothing but the step; `ReduceOnPlateau` alone goes by the
validation losses, and has a state that training keeps. `gpurnn.Trainer` takes one as ``schedule``, for the learning
rate, and one as ``teacher_forcing``. For the latter, scheduled sampling (S. Bengio, O. Vinyals, N. Jaitly, N. Shazeer,
"Scheduled sampling for sequence prediction with recurrent neural networks", NeurIPS 2015, section 2.4) has three decays
of the probability eps_t that the true token is fed, not the model's own:

=================  ==============================  ===========================
exponential        eps_0 lambda^t                  `Exponential(eps_0, lambda)`
linear             max(eps_min, k - c t)           `Linear(k, c, eps_min)`
inverse sigmoid    k / (k + exp(t / k))            `InverseSigmoid(k)`
=================  ==============================  ===========================
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from . import _checks


def _times_power(value: float, factor: float, exponent: int) -> float:
    """``value`` times ``factor`` to a power; infinity where that is too large for a float."""
    if value == 0 or (factor == 0 and exponent > 0):
        return 0.0
    # The power may overflow or underflow where its product with the value does not.
    logarithm = exponent * math.log(factor) if factor > 0 else 0.0
    if abs(logarithm) < 600:
        return float(value * factor**exponent)
    logarithm += math.log(value)
    return math.exp(logarithm) if logarithm < math.log(sys.float_info.max) else math.inf


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step.

    Parameters
    ----------
    lr : float
        At least 0.

    Raises
    ------
    ValueError
        A parameter out of its range.

    Examples
    --------
    >>> Constant(0.1)(1000)
    0.1
    """

    lr: float

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr")

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        _checks.integer_at_least("Constant", "step", step, 0)
        return float(self.lr)


@dataclass(frozen=True)
class TimeBased:
    """Time-based decay: lr / (1 + decay step).

    Parameters
    ----------
    lr : float
        The first learning rate, at least 0.
    decay : float
        Per step, at least 0; after 1/decay steps the rate has halved.

    Raises
    ------
    ValueError
        A parameter out of its range.

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

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        return self.lr / (1 + self.decay * _checks.integer_at_least("TimeBased", "step", step, 0))


@dataclass(frozen=True)
class Exponential:
    """Exponential decay: lr gamma^step, infinite where a gamma above 1 leads past the largest float.

    As a schedule of teacher forcing this is eps_0 lambda^t.

    Parameters
    ----------
    lr : float
        The first learning rate, or the first probability of teacher forcing; at least 0.
    gamma : float
        Factor of each step, at least 0.

    Raises
    ------
    ValueError
        A parameter out of its range.

    Examples
    --------
    >>> Exponential(8.0, gamma=0.5)(3)
    1.0
    """

    lr: float
    gamma: float

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr", "gamma")

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        return _times_power(self.lr, self.gamma, _checks.integer_at_least("Exponential", "step", step, 0))


@dataclass(frozen=True)
class Linear:
    """Linear decay down to a rate that holds from then on: max(final_lr, lr - decay step).

    As a schedule of teacher forcing this is max(eps_min, k - c t).

    Parameters
    ----------
    lr : float
        The first learning rate, or the first probability of teacher forcing; at least 0.
    decay : float
        Per step, at least 0.
    final_lr : float
        The least rate or probability, at least 0.

    Raises
    ------
    ValueError
        A parameter out of its range.

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

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        step = _checks.integer_at_least("Linear", "step", step, 0)
        return float(max(self.final_lr, self.lr - self.decay * step))


@dataclass(frozen=True)
class InverseSigmoid:
    """Inverse sigmoid decay of the probability of teacher forcing: k / (k + exp(step / k)).

    It begins at k / (k + 1), is 1/2 after k log(k) steps, and tends to 0.

    Parameters
    ----------
    k : float
        At least 1: the larger, the later and the slower the decay.

    Raises
    ------
    ValueError
        ``k`` is below 1.

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

    def __call__(self, step: int) -> float:
        """The probability of teacher forcing at an update that ``step`` updates came before."""
        step = _checks.integer_at_least("InverseSigmoid", "step", step, 0)
        falling = math.exp(-step / self.k)  # the growing exponential would overflow
        return self.k * falling / (self.k * falling + 1)


@dataclass(frozen=True)
class Step:
    """Step decay: lr gamma^floor(step / step_size).

    Parameters
    ----------
    lr : float
        The first learning rate, at least 0.
    step_size : int
        Steps at each rate, at least 1.
    gamma : float
        Factor from each rate to the next, at least 0.

    Raises
    ------
    TypeError, ValueError
        A parameter out of its range, or a step size that is no whole number.

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

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        return _times_power(self.lr, self.gamma, _checks.integer_at_least("Step", "step", step, 0) // self.step_size)


@dataclass(frozen=True)
class MultiStep:
    """Piecewise constant decay: lr gamma^n, with n the number of milestones that are at most ``step``.

    With one milestone and a gamma above 1 this is a constant warm-up, gamma times lower than the rate after it.

    Parameters
    ----------
    lr : float
        The first learning rate, at least 0.
    milestones : iterable of int
        The steps at which a new rate begins: at least 1, each more than the one before.
    gamma : float
        Factor from each rate to the next, at least 0.

    Raises
    ------
    TypeError, ValueError
        A parameter out of its range, or a milestone that is no whole number.

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

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        step = _checks.integer_at_least("MultiStep", "step", step, 0)
        return _times_power(self.lr, self.gamma, bisect_right(tuple(self.milestones), step))


@dataclass(frozen=True)
class Polynomial:
    """Polynomial decay to a rate that holds from then on: final_lr + (lr - final_lr) (1 - t)^power.

    Here t = min(1, step / total_steps). With a power of 1 this is a straight line, and with a final rate above the
    first one a warm-up.

    Parameters
    ----------
    lr : float
        The first learning rate, at least 0.
    total_steps : int
        The step at which the final rate is reached, at least 1.
    power : float
        Above 0.
    final_lr : float
        At least 0; above ``lr`` for a rate that rises.

    Raises
    ------
    TypeError, ValueError
        A parameter out of its range, or a number of steps that is no whole number.

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

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        step = _checks.integer_at_least("Polynomial", "step", step, 0)
        left = max(0.0, 1 - step / self.total_steps)
        return float(self.final_lr + (self.lr - self.final_lr) * left**self.power)


@dataclass(frozen=True)
class CosineWithWarmup:
    """Linear warm-up, then half a cosine down to the final rate, which holds from then on.

    lr (step + 1) / (warmup_steps + 1) while step < warmup_steps, so that no update is wasted on a rate of 0; then
    final_lr + (lr - final_lr) (1 + cos(pi t)) / 2, with t rising from 0 to 1 between warmup_steps and total_steps.

    Parameters
    ----------
    lr : float
        The highest learning rate, reached at step ``warmup_steps``; at least 0.
    total_steps : int
        The step at which the final rate is reached, more than ``warmup_steps``.
    warmup_steps : int
        At least 0.
    final_lr : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        A parameter out of its range, or a number of steps that is no whole number.

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

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        step = _checks.integer_at_least("CosineWithWarmup", "step", step, 0)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        t = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * t)) / 2


@dataclass(frozen=True)
class CosineWithWarmRestarts:
    """Half a cosine down, again and again, each from the highest rate: stochastic gradient descent with warm restarts.

    final_lr + (lr - final_lr) (1 + cos(pi T_cur / T_i)) / 2, with T_cur the steps since the last restart and
    T_i = T_0 T_mult^i the steps from the i-th restart to the next. The rate after T_cur = T_i would be the final
    one; the restart comes in its place.

    Parameters
    ----------
    lr : float
        The learning rate after each restart, at least 0.
    T_0 : int
        Steps from the beginning to the first restart, at least 1.
    T_mult : int
        How many times longer each period is than the one before, at least 1.
    final_lr : float
        What the rate goes down to, at least 0.

    Raises
    ------
    TypeError, ValueError
        A parameter out of its range, or a number of steps that is no whole number.

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

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        since = _checks.integer_at_least("CosineWithWarmRestarts", "step", step, 0)
        period = self.T_0
        if self.T_mult == 1:
            since %= period
        while since >= period:
            since -= period
            period *= self.T_mult
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * since / period)) / 2


@dataclass(frozen=True)
class Cyclic:
    """Cyclical learning rates: up and down between two rates along straight lines.

    base_lr + (max_lr - base_lr) (1 - x) s, with cycle = floor(1 + step / (2 step_size)) and
    x = abs(step / step_size - 2 cycle + 1). The scale s is 1 for the policy "triangular", 2^(1 - cycle) for
    "triangular2", whose peaks halve from cycle to cycle, and gamma^step for "exp_range".

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
        Of "exp_range": the factor of each step, in [0, 1].

    Raises
    ------
    TypeError, ValueError
        A parameter out of its range, a step size that is no whole number, or a ``gamma`` for another mode.

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
        _checks.attributes(self, _checks.non_negative, "base_lr")
        _checks.attributes(self, _checks.non_negative, "max_lr", "gamma")
        if self.max_lr < self.base_lr:
            raise ValueError(f"{where}: max_lr is {self.max_lr!r}, expected at least base_lr, {self.base_lr!r}")
        _checks.attributes(self, _checks.integer_at_least, "step_size", least=1)
        _checks.attributes(self, _checks.choice, "mode", choices=("triangular", "triangular2", "exp_range"))
        if self.gamma > 1:
            raise ValueError(f"{where}: gamma is {self.gamma!r}, expected a number in [0, 1]")
        if self.gamma != 1 and self.mode != "exp_range":
            raise ValueError(f"{where}: gamma is {self.gamma!r}, expected 1 for mode {self.mode!r}")

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        step = _checks.integer_at_least("Cyclic", "step", step, 0)
        cycles, within = divmod(step, 2 * self.step_size)
        height = 1 - abs(within - self.step_size) / self.step_size
        factor, times = (0.5, cycles) if self.mode == "triangular2" else (self.gamma, step)
        return float(self.base_lr + _times_power((self.max_lr - self.base_lr) * height, factor, times))


@dataclass(frozen=True)
class OneCycle:
    """The one-cycle policy: once up to the highest rate and down to far below the first, which holds from then on.

    From max_lr / div_factor at step 0 to max_lr at pct_start total_steps - 1 and on to
    max_lr / (div_factor final_div_factor) at total_steps - 1: with t rising from 0 to 1 in each of the two phases,
    a + (b - a) t from a to b if ``anneal`` is "linear", and a + (b - a) (1 - cos(pi t)) / 2 if it is "cosine".

    Parameters
    ----------
    max_lr : float
        The highest learning rate, at least 0.
    total_steps : int
        Steps of the whole cycle, more than 1 / ``pct_start``, so that there is a step before the highest rate.
    pct_start : float
        The fraction of the steps in which the rate rises, between 0 and 1.
    div_factor : float
        How many times lower than the highest rate the first one is, at least 1.
    final_div_factor : float
        How many times lower than the first rate the last one is, at least 1.
    anneal : {"cosine", "linear"}

    Raises
    ------
    TypeError, ValueError
        A parameter out of its range, or a number of steps that is no whole number.

    References
    ----------
    L. N. Smith, N. Topin, "Super-convergence: very fast training of neural networks using large learning rates", SPIE
    11006 (2019), section 3. Its lines are straight, and a third one ends the descent; the cosine came in practice.

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

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        step = _checks.integer_at_least("OneCycle", "step", step, 0)
        first = self.max_lr / self.div_factor
        last = self.total_steps - 1
        peak = self.total_steps * self.pct_start - 1
        if step <= peak:
            begin, end, t = first, self.max_lr, step / peak
        else:
            begin, end, t = self.max_lr, first / self.final_div_factor, min(1.0, (step - peak) / (last - peak))
        if self.anneal == "cosine":
            t = (1 - math.cos(math.pi * t)) / 2
        return float(begin * (1 - t) + end * t)


@dataclass
class ReduceOnPlateau:
    """Reduce the learning rate when the validation loss has stopped falling: lr <- max(min_lr, factor lr).

    An evaluation is an improvement if its loss L is below the lowest so far, L_best, by more than ``threshold``
    abs(L_best), or by more than ``threshold`` if the ``threshold_mode`` is "abs"; only then it becomes L_best. After
    ``patience`` evaluations in a row that are none, the rate is reduced and their count begins anew. The ``cooldown``
    evaluations after a reduction are not counted.

    It is for the learning rate and not for teacher forcing: `gpurnn.Trainer` lets it observe each validation loss if it
    is the ``schedule``, and keeps its state in the checkpoints.

    Parameters
    ----------
    lr : float
        The first learning rate, at least 0.
    factor : float
        Of each reduction, in [0, 1).
    patience : int
        At least 1, and counted as the ``patience`` of `gpurnn.Trainer`. PyTorch reduces at one evaluation more than its
        patience: its 10 is 11 here.
    threshold : float
        At least 0.
    threshold_mode : {"rel", "abs"}
    cooldown : int
        At least 0.
    min_lr : float
        The least rate, at least 0 and at most ``lr``.

    Raises
    ------
    TypeError, ValueError
        A parameter out of its range, or a number of evaluations that is no whole number.

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

    def __call__(self, step: int) -> float:
        """The learning rate that the losses observed so far have led to, whatever the step."""
        _checks.integer_at_least("ReduceOnPlateau", "step", step, 0)
        return self._rate

    def observe(self, loss: float) -> None:
        """Take note of the validation loss of one evaluation; of what is to rise, as an accuracy, give the negative.

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
        """What the losses observed so far have led to, by name."""
        return {"rate": self._rate, "best": self._best, "failures": self._failures, "cooling": self._cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` of a schedule with the same parameters returned.

        Raises
        ------
        KeyError
            A name is missing, or one is unknown.
        ValueError, TypeError
            A value is out of its range. The schedule has not changed.
        """
        where = "ReduceOnPlateau.load_state_dict"
        if state.keys() != self.state_dict().keys():
            raise KeyError(
                f"ReduceOnPlateau.load_state_dict: state has {sorted(state)}, expected {sorted(self.state_dict())}"
            )
        rate = _checks.non_negative(where, "rate", state["rate"])
        best = None if state["best"] is None else _checks.finite(where, "best", state["best"])
        failures, cooling = (_checks.integer_at_least(where, name, state[name], 0) for name in ("failures", "cooling"))
        self._rate, self._best, self._failures, self._cooling = rate, best, failures, cooling
