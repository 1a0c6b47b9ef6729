"""Learning rates, and probabilities of teacher forcing, as functions of the step: the number of updates made before.

A schedule remembers nothing, so that training is resumed with nothing but the step. `gpurnn.Trainer` takes one as
``schedule``, for the learning rate, and one as ``teacher_forcing``. For the latter, scheduled sampling (S. Bengio,
O. Vinyals, N. Jaitly, N. Shazeer, "Scheduled sampling for sequence prediction with recurrent neural networks",
NeurIPS 2015, section 2.4) has three decays of the probability eps_t that the true token is fed, not the model's own:

=================  ==============================  ===========================
exponential        eps_0 lambda^t                  `Exponential(eps_0, lambda)`
linear             max(eps_min, k - c t)           `Linear(k, c, eps_min)`
inverse sigmoid    k / (k + exp(t / k))            `InverseSigmoid(k)`
=================  ==============================  ===========================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import _checks


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
        _checks.non_negative("Constant", "lr", self.lr)

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
        _checks.non_negative("TimeBased", "lr", self.lr)
        _checks.non_negative("TimeBased", "decay", self.decay)

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        return self.lr / (1 + self.decay * _checks.integer_at_least("TimeBased", "step", step, 0))


@dataclass(frozen=True)
class Exponential:
    """Exponential decay: lr gamma^step.

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
        _checks.non_negative("Exponential", "lr", self.lr)
        _checks.non_negative("Exponential", "gamma", self.gamma)

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        return float(self.lr * self.gamma ** _checks.integer_at_least("Exponential", "step", step, 0))


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
        for name in ("lr", "decay", "final_lr"):
            _checks.non_negative("Linear", name, getattr(self, name))

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
        if _checks.finite("InverseSigmoid", "k", self.k) < 1:
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
        _checks.non_negative("Step", "lr", self.lr)
        _checks.integer_at_least("Step", "step_size", self.step_size, 1)
        _checks.non_negative("Step", "gamma", self.gamma)

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        return float(self.lr * self.gamma ** (_checks.integer_at_least("Step", "step", step, 0) // self.step_size))


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
        where = "CosineWithWarmup"
        _checks.non_negative(where, "lr", self.lr)
        warmup = _checks.integer_at_least(where, "warmup_steps", self.warmup_steps, 0)
        _checks.integer_at_least(where, "total_steps", self.total_steps, warmup + 1)
        _checks.non_negative(where, "final_lr", self.final_lr)

    def __call__(self, step: int) -> float:
        """The learning rate of an update that ``step`` updates came before."""
        step = _checks.integer_at_least("CosineWithWarmup", "step", step, 0)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        t = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final_lr + (self.lr - self.final_lr) * (1 + math.cos(math.pi * t)) / 2
