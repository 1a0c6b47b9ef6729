"""Sequences from a model that gives the logits of the next token: greedy, beam search, sampling; many at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _checks

Rows = NDArray[np.int64]

Step = Callable[[NDArray[np.int32], Any], tuple[NDArray[np.float64], "NDArray[np.float64] | None", Any]]
"""From the last tokens (R,) and the state to logits (R, V), where the step looked (R, S) or None, and the state."""

Reorder = Callable[[Any, Rows], Any]
"""From a state and numbers of rows to the state of these rows, in this order."""


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """log softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def check_sampling(where: str, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse what `draw` cannot draw with."""
    if not 0.0 <= temperature < math.inf:
        raise ValueError(f"{where}: temperature is {temperature!r}, expected a number of at least 0")
    if top_k is not None:
        _checks.integer_at_least(where, "top_k", top_k, 1)
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"{where}: top_p is {top_p!r}, expected a number above 0 and at most 1")


def draw(
    logits: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> NDArray[np.int64]:
    r"""A token (R,) from each row of logits (R, V): P_v \propto exp(logit_v / \tau).

    Parameters
    ----------
    temperature : float
        \tau; 0 takes the likeliest token, and of equally likely ones the first.
    top_k : int, optional
        Draw from the k likeliest tokens only.
    top_p : float, optional
        Draw from the nucleus only: the fewest likeliest tokens whose probabilities, at this temperature, reach p.

    References
    ----------
    A. Holtzman et al., "The curious case of neural text degeneration", ICLR 2020 (nucleus sampling).
    """
    likeliest = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    if temperature == 0:
        return likeliest[:, 0]
    sorted_logits = np.take_along_axis(logits, likeliest, axis=1)
    chances = np.exp((sorted_logits - sorted_logits[:, :1]) / temperature)
    bounds = np.cumsum(chances, axis=1)
    if top_p is not None:
        # A token is in while those before it do not reach p.
        before = (bounds - chances) / bounds[:, -1:]
        bounds = np.cumsum(np.where(before < top_p, chances, 0.0), axis=1)
    points = rng.random(len(logits)) * bounds[:, -1]
    # A product that was rounded up to the whole is no place past the last that can be drawn.
    places = np.minimum((bounds <= points[:, None]).sum(axis=1), (bounds < bounds[:, -1:]).sum(axis=1))
    return np.take_along_axis(likeliest, places[:, None], axis=1)[:, 0]


def sample(
    step: Step,
    state: Any,
    batch: int,
    *,
    begin: int,
    end: int,
    max_length: int,
    rng: np.random.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokens (T, B), 0 past the end symbol of each row, and their lengths (B,), the end symbol counted.

    A row that has no end symbol after ``max_length`` tokens ends there.
    """
    last = np.full(batch, begin, np.int32)
    ended = np.zeros(batch, bool)
    tokens = np.zeros((max_length, batch), np.int32)
    lengths = np.zeros(batch, np.int32)
    for t in range(max_length):
        if ended.all():
            break
        logits, _, state = step(last, state)
        last = draw(logits, rng, temperature=temperature, top_k=top_k, top_p=top_p).astype(np.int32)
        tokens[t] = np.where(ended, 0, last)
        lengths += ~ended
        ended |= last == end
    return tokens[: int(lengths.max(initial=0))], lengths


@dataclass(frozen=True)
class Hypothesis:
    """What a beam search found.

    Attributes
    ----------
    tokens : (T,) int32 array
        With its end symbol, unless it was cut short.
    log_probability : float
        log P(tokens | source).
    score : float
        What hypotheses are compared by: the log-probability over the length penalty, plus the coverage penalty.
    """

    tokens: NDArray[np.int32]
    log_probability: float
    score: float


def length_penalty(length: int, alpha: float) -> float:
    """lp(Y) = (5 + |Y|)^alpha / (5 + 1)^alpha."""
    return float(((5 + length) / 6) ** alpha)


def coverage(looked: NDArray[np.float64], exists: NDArray[np.bool_]) -> float:
    """sum_s log(min(sum_t alpha_ts, 1)) over the source positions that exist; 0 if each was looked at enough."""
    seen = np.minimum(looked, 1.0)[exists]
    return float(np.log(np.maximum(seen, np.finfo(np.float64).tiny)).sum())


def beam_search(
    step: Step,
    state: Any,
    batch: int,
    reorder: Reorder,
    *,
    begin: int,
    end: int,
    max_length: int,
    beam_size: int,
    alpha: float = 0.6,
    beta: float = 0.0,
    best: int = 1,
    source_lengths: NDArray[np.int64] | None = None,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each row, the best first.

    At each length the ``beam_size`` likeliest prefixes go on. Those that end are scored by
    s(Y) = log P(Y) / lp(Y) + cp(Y), lp as `length_penalty`, cp as beta times `coverage`. A row stops when none of its
    prefixes can still beat the worst of its ``best`` finished hypotheses: log P can only fall, cp is at most 0, and
    lp is at most that of ``max_length``. Prefixes that reach ``max_length`` fill up where too few have ended.

    References
    ----------
    Y. Wu et al., "Google's neural machine translation system", arXiv:1609.08144 (2016), section 7.
    """
    K = beam_size
    state = reorder(state, np.repeat(np.arange(batch), K))
    last = np.full(batch * K, begin, np.int32)
    tokens = np.zeros((batch, K, 0), np.int32)
    # One prefix to begin with, the empty one.
    scores = np.full((batch, K), -np.inf)
    scores[:, 0] = 0.0
    looked: NDArray[np.float64] | None = None
    finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
    ended = np.zeros(batch, bool)

    def finish(row: int, prefix: NDArray[np.int32], log_probability: float, seen: NDArray[np.float64] | None) -> None:
        score = log_probability / length_penalty(len(prefix), alpha)
        if beta and seen is not None:
            count = len(seen) if source_lengths is None else int(source_lengths[row])
            score += beta * coverage(seen, np.arange(len(seen)) < count)
        finished[row].append(Hypothesis(prefix, log_probability, score))
        finished[row].sort(key=lambda hypothesis: -hypothesis.score)
        del finished[row][best:]

    for _ in range(max_length):
        if ended.all():
            break
        logits, weights, state = step(last, state)
        V = logits.shape[1]
        totals = scores[:, :, None] + log_softmax(logits).reshape(batch, K, V)
        if weights is not None:
            looked = weights.reshape(batch, K, -1) if looked is None else looked + weights.reshape(batch, K, -1)
        # Of 2 K continuations at most K end, so that at least K go on.
        flat = totals.reshape(batch, K * V)
        order = np.argsort(-flat, axis=1, kind="stable")[:, : 2 * K]
        chosen = np.zeros((batch, K), np.int64)
        following = np.zeros((batch, K), np.int32)
        kept = np.full((batch, K), -np.inf)
        for row in np.flatnonzero(~ended).tolist():
            place = 0
            for candidate in order[row]:
                beam, token = divmod(int(candidate), V)
                total = float(flat[row, candidate])
                if total == -math.inf or place == K:
                    break
                if token == end:
                    prefix = np.append(tokens[row, beam], np.int32(end))
                    finish(row, prefix, total, None if looked is None else looked[row, beam])
                else:
                    chosen[row, place], following[row, place], kept[row, place] = beam, token, total
                    place += 1
        rows = (np.arange(batch)[:, None] * K + chosen).reshape(-1)
        state = reorder(state, rows)
        tokens = np.concatenate([np.take_along_axis(tokens, chosen[:, :, None], axis=1), following[:, :, None]], axis=2)
        if looked is not None:
            looked = np.take_along_axis(looked, chosen[:, :, None], axis=1)
        scores, last = kept, following.reshape(-1)
        highest = scores.max(axis=1) / length_penalty(max_length, alpha)
        for row in range(batch):
            if len(finished[row]) == best and finished[row][-1].score >= highest[row]:
                ended[row] = True
        ended |= np.isneginf(scores).all(axis=1)
    for row in range(batch):
        missing = best - len(finished[row])
        cut = np.argsort(-scores[row], kind="stable")[: 0 if ended[row] else missing].tolist()
        for beam in cut:
            if scores[row, beam] > -math.inf:
                seen = None if looked is None else looked[row, beam]
                finish(row, tokens[row, beam], float(scores[row, beam]), seen)
    return finished
