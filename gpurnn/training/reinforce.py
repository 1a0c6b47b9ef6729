"""Sequence-level training by policy gradients: any reward of whole sequences, differentiable or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .. import _arrays, _checks, _dispatch, _random

BASELINES = ("running_mean", "leave_one_out", "self_critical", None)


class Policy(Protocol):
    """A model for `Reinforce`: it draws sequences y given a source x, and has the gradient of log pi(y|x)."""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by name."""

    def sample(
        self,
        source: Any,
        lengths: Any = None,
        *,
        max_length: int,
        temperature: float = 1.0,
        rng: int | np.random.Generator,
    ) -> tuple[Any, Any]:
        """A sequence for each source (T, B, ...), without dropout: tokens (T', B) int32, 0 past the end; lengths (B,).

        A sequence ends with its end symbol, which it includes, or after ``max_length`` tokens without one. The
        temperature 0 takes the likeliest token at each step.
        """

    def log_likelihood_vjp(
        self, source: Any, targets: tuple[Any, Any], lengths: Any = None, rng: int | np.random.Generator | None = None
    ) -> tuple[Any, Callable[[Any], tuple[Any, dict[str, Any]]]]:
        """log pi(y|x) (B,) of ``targets``, tokens and their lengths as `sample` gives them, and the pullback.

        It is the sum of the logarithms of the probabilities of the tokens up to the length, including the end symbol if
        it is there. The pullback maps gradients (B,) to those of the source, or None, and of the parameters by name.
        Dropout acts only with ``rng``.
        """


class Reinforce:
    r"""Trains a policy towards the largest expected reward J = E[R(y, y*)], y ~ pi(y|x), by REINFORCE.

    grad J = E[grad log pi(y|x) (R(y, y*) - b)], estimated from a few y drawn for each x. A baseline b that does not
    depend on y lowers the variance of the estimate, and leaves its expectation unchanged:

    - ``"running_mean"``: the mean of the rewards of earlier batches, with more weight on later ones
    - ``"leave_one_out"``: the mean reward of the other sequences drawn for the same x
    - ``"self_critical"``: the reward of the likeliest sequence, token by token, R(greedy(x), y*)
    - None: b = 0

    This is a model for a `Trainer`, which minimises; so its loss is -J. Data are pairs: ``PaddedBatches(sources,
    batch_size, references, own_lengths=True)``.

    Parameters
    ----------
    policy : Policy
        Any model with ``params``, ``sample`` and ``log_likelihood_vjp``; its parameters are trained.
    reward : callable
        R: ``reward(tokens, reference)`` is a number, for two lists of ints, each with its end symbol if it has one.
    max_length : int
        The largest number of tokens of a sequence.
    baseline : {"running_mean", "leave_one_out", "self_critical"} or None
    samples : int
        The number of sequences drawn for each source; at least 2 for ``"leave_one_out"``.
    entropy : float
        beta of an entropy bonus, at least 0: J + beta H, H = -E[log pi(y|x)], keeps the policy from settling early.
    decay : float
        In [0, 1), for ``"running_mean"``: the weight of a batch's rewards, relative to those of the next.

    Raises
    ------
    TypeError, ValueError
        An option is out of its range, or the policy lacks a method.

    References
    ----------
    R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    Machine Learning 8 (1992); M. Ranzato, S. Chopra, M. Auli, W. Zaremba, "Sequence level training with recurrent
    neural networks", ICLR 2016; S. Rennie et al., "Self-critical sequence training for image captioning", CVPR 2017;
    W. Kool, H. van Hoof, M. Welling, "Buy 4 REINFORCE samples, get a baseline for free!", ICLR 2019 workshop.

    Examples
    --------
    The smallest policy, one token whatever the source, is rewarded for a 2.

    >>> import numpy as np
    >>> from gpurnn.optimizers import SGD
    >>> from gpurnn.training import PaddedBatches, Reinforce, Trainer
    >>> class Bandit:
    ...     def __init__(self):
    ...         self.params = {"logits": np.zeros(3)}
    ...     def probabilities(self):
    ...         p = np.exp(self.params["logits"])
    ...         return p / p.sum()
    ...     def sample(self, source, lengths=None, *, max_length, temperature=1.0, rng):
    ...         B, p = source.shape[1], self.probabilities()
    ...         tokens = rng.choice(3, (1, B), p=p) if temperature else np.full((1, B), p.argmax())
    ...         return tokens.astype(np.int32), np.ones(B, np.int32)
    ...     def log_likelihood_vjp(self, source, targets, lengths=None, rng=None):
    ...         p, tokens = self.probabilities(), targets[0][0]
    ...         return np.log(p[tokens]), lambda d: (None, {"logits": (d[:, None] * (np.eye(3)[tokens] - p)).sum(0)})
    >>> data = PaddedBatches([np.zeros(1, int)] * 8, 8, [np.array([2])] * 8, own_lengths=True)
    >>> bandit = Bandit()
    >>> model = Reinforce(bandit, lambda tokens, reference: tokens == reference, max_length=1)
    >>> Trainer(model, data, SGD(lr=0.5), steps=60, progress=False).train()
    >>> bool(bandit.probabilities()[2] > 0.9)
    True
    """

    loss_unit = "negative reward"

    def __init__(
        self,
        policy: Policy,
        reward: Callable[[list[int], list[int]], float],
        *,
        max_length: int,
        baseline: str | None = "running_mean",
        samples: int = 1,
        entropy: float = 0.0,
        decay: float = 0.9,
    ) -> None:
        where = "Reinforce"
        lacking = [name for name in ("params", "sample", "log_likelihood_vjp") if not hasattr(policy, name)]
        if lacking:
            raise TypeError(f"{where}: policy is {_checks.described(policy)} without {lacking}, expected a Policy")
        if not callable(reward):
            raise TypeError(f"{where}: reward is {reward!r}, expected a function of tokens and reference")
        self.policy, self.reward = policy, reward
        self.baseline = _checks.choice(where, "baseline", baseline, BASELINES)
        self.max_length = _checks.integer_at_least(where, "max_length", max_length, 1)
        self.samples = _checks.integer_at_least(where, "samples", samples, 1)
        if baseline == "leave_one_out" and self.samples < 2:
            raise ValueError(f"{where}: samples is {samples}, expected at least 2, as baseline is 'leave_one_out'")
        self.entropy = _checks.non_negative(where, "entropy", entropy)
        self.decay = _checks.fraction(where, "decay", decay)
        if self.decay != 0.9 and self.baseline != "running_mean":
            _checks.warn(where, f"decay={self.decay} has no effect with baseline={self.baseline!r}")
        self._running = {"sum": 0.0, "weight": 0.0}

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the policy."""
        return self.policy.params

    def training_state(self) -> dict[str, float]:
        """The statistics of the rewards so far; a `Trainer` keeps them in its checkpoints."""
        return dict(self._running)

    def load_training_state(self, state: dict[str, float]) -> None:
        """Continue from a state that `training_state` returned."""
        if not isinstance(state, dict) or state.keys() != self._running.keys():
            raise ValueError(
                f"Reinforce.load_training_state: state is {state!r}, expected a dict of {sorted(self._running)}"
            )
        self._running = {name: _checks.finite("Reinforce", f"state[{name!r}]", value) for name, value in state.items()}

    def loss(self, inputs: Any, targets: Any, state: Any = None, lengths: Any = None) -> tuple[Any, None]:
        """The mean over the batch of -R of the sequences with the likeliest token at each step; and None.

        Parameters
        ----------
        inputs : array (T, B, ...)
            The sources.
        targets : pair
            The references (T', B), and their lengths (B,).
        state : None
        lengths : array (B,) of ints, optional
            The lengths of the sources.
        """
        _checks.no_state("Reinforce", state)
        references = _references(inputs, targets)
        return _scalar(-self._greedy(inputs, lengths, references).mean(), inputs), None

    def loss_and_gradients(
        self,
        inputs: Any,
        targets: Any,
        state: Any = None,
        lengths: Any = None,
        *,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[Any, None, dict[str, Any]]:
        """Unbiased estimates of -J, or -(J + beta H), and of its gradient, from sequences drawn with ``rng``.

        The other arguments are those of `loss`. Dropout does not act, so the gradient is that of the sampled policy.
        """
        where = "Reinforce"
        if rng is None:
            raise TypeError(f"{where}: rng is None, expected an int seed or a numpy.random.Generator to draw with")
        rng = _random.generator(where, rng)
        _checks.no_state(where, state)
        references = _references(inputs, targets)
        sources, source_lengths = inputs, lengths
        if self.samples > 1:
            xp = _dispatch.namespace(where, inputs=inputs, lengths=lengths)
            sources = xp.concat([inputs] * self.samples, axis=1)
            source_lengths = None if lengths is None else xp.concat([lengths] * self.samples)
        drawn = self.policy.sample(sources, source_lengths, max_length=self.max_length, rng=rng)
        rewards = self._rewards(drawn, references * self.samples).reshape(self.samples, -1)
        log_probabilities, pullback = self.policy.log_likelihood_vjp(sources, drawn, source_lengths)
        # grad H = -E[grad log pi log pi]: the bonus acts as a reward for unlikely sequences.
        returns = rewards
        if self.entropy:
            returns = rewards - self.entropy * _dispatch.to_numpy(log_probabilities).reshape(rewards.shape)
        weights = -(returns - self._baseline(returns, inputs, lengths, references)) / returns.size
        xp = _dispatch.namespace(where, log_probabilities=log_probabilities)
        dlog_probabilities = xp.astype(_dispatch.from_numpy(xp, weights.reshape(-1)), log_probabilities.dtype)
        _, grads = pullback(dlog_probabilities)
        return _scalar(-returns.mean(), inputs), None, grads

    def _baseline(self, returns: Any, inputs: Any, lengths: Any, references: list[list[int]]) -> Any:
        """b, of a shape that broadcasts with the returns (samples, B)."""
        if self.baseline == "self_critical":
            return self._greedy(inputs, lengths, references)
        if self.baseline == "leave_one_out":
            return (returns.sum(axis=0) - returns) / (self.samples - 1)
        if self.baseline is None:
            return 0.0
        # Earlier batches only: a mean that includes these returns would bias the gradient.
        before = self._running
        found = before["sum"] / before["weight"] if before["weight"] else 0.0
        self._running = {
            "sum": self.decay * before["sum"] + (1 - self.decay) * float(returns.mean()),
            "weight": self.decay * before["weight"] + (1 - self.decay),
        }
        return found

    def _greedy(self, inputs: Any, lengths: Any, references: list[list[int]]) -> Any:
        # Nothing is drawn at temperature 0, so any seed will do.
        taken = self.policy.sample(inputs, lengths, max_length=self.max_length, temperature=0.0, rng=0)
        return self._rewards(taken, references)

    def _rewards(self, sequences: tuple[Any, Any], references: list[list[int]]) -> Any:
        """The rewards of sequences, (B,) floats."""
        pairs = zip(_lists(*sequences), references, strict=True)
        return np.array([_checks.score("Reinforce", "a reward", self.reward(y, reference)) for y, reference in pairs])


def _lists(tokens: Any, lengths: Any) -> list[list[int]]:
    """Sequences (T, B) and their lengths (B,) as lists of ints."""
    held = _dispatch.to_numpy(tokens)
    return [held[:length, b].tolist() for b, length in enumerate(_dispatch.to_numpy(lengths).tolist())]


def _references(inputs: Any, targets: Any) -> list[list[int]]:
    where = "Reinforce"
    if not isinstance(targets, tuple) or len(targets) != 2:
        raise TypeError(
            f"{where}: targets is {_checks.described(targets)}, expected the pair of references (T, B) and their "
            "lengths (B,), as PaddedBatches with own_lengths=True has it"
        )
    tokens, lengths = targets
    _checks.given(where, inputs=inputs)
    _dispatch.namespace(where, inputs=inputs, references=tokens, reference_lengths=lengths)
    given = {"references": tokens, "reference_lengths": lengths}
    _, tokens, lengths = _arrays.take(where, integers=given, needed=tuple(given))
    _checks.ndim(where, "references", tokens, 2, "(T, B)")
    _checks.shape(where, "reference_lengths", lengths, tuple(tokens.shape[1:]), "(B,)")
    if inputs.ndim < 2 or inputs.shape[1] != tokens.shape[1]:
        raise ValueError(
            f"{where}: inputs has shape {tuple(inputs.shape)}, expected (T, B, ...), B = {tokens.shape[1]} as the "
            "references have"
        )
    if tokens.shape[1] == 0:
        raise ValueError(f"{where}: references has shape {tuple(tokens.shape)}, expected at least one")
    held = _dispatch.to_numpy(lengths)
    if held.min() < 0 or held.max() > tokens.shape[0]:
        raise ValueError(
            f"{where}: reference_lengths holds {held.min()} ... {held.max()}, expected 0 ... T = {tokens.shape[0]}"
        )
    return _lists(tokens, lengths)


def _scalar(value: float, like: Any) -> Any:
    xp = _dispatch.namespace("Reinforce", inputs=like)
    return xp.asarray(float(value), dtype=xp.float64, device=_dispatch.device(like))
