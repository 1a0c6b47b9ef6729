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
"""Maps the last tokens (R,) and the state to logits (R, V), attention weights (R, S) or None, and the new state."""

Reorder = Callable[[Any, Rows], Any]
"""Maps a state and row numbers to the state of these rows, in this order."""


Fail = Callable[[int], Exception]
"""Maps a row of the batch to the error that says why its logits are not valid."""


def _fail(row: int) -> Exception:
    return FloatingPointError(f"the logits of row {row} are not finite")


def require_finite(logits: NDArray[np.float64], read: NDArray[np.bool_], fail: Fail) -> None:
    """Raise ``fail(row)`` for the first row of logits (R, V), among those to be read (R,), that has no softmax.

    A logit of minus infinity forbids its token. NaN, infinity, or a row that forbids every token is an error.
    """
    # The maximum of a row with NaN is NaN.
    bad = np.flatnonzero(read & ~np.isfinite(logits.max(axis=1)))
    if len(bad):
        raise fail(int(bad[0]))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """log softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probabilities


def likeliest(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The places (R, k) of the k largest values of each row (R, N), the largest first; among equal values, the first.

    These are the first k places of a stable descending sort, in O(N) instead of O(N log N) per row.
    """
    size = values.shape[1]
    if k >= size:
        return _descending(values)
    places = np.argpartition(values, size - k, axis=1)[:, size - k :]
    least = np.take_along_axis(values, places[:, :1], axis=1)
    # The partition may choose any of the values that equal the least; the right ones are the first of them.
    for row in np.flatnonzero((values >= least).sum(axis=1) > k).tolist():
        larger, equal = np.flatnonzero(values[row] > least[row]), np.flatnonzero(values[row] == least[row])
        places[row] = np.concatenate([larger, equal[: k - len(larger)]])
    places.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _descending(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The places of a stable descending sort of each row.

    NumPy's stable sort takes several times as long as its default one, whose ties are put in order here.
    """
    order = np.argsort(-values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    equal = ordered[:, 1:] == ordered[:, :-1]
    for row in np.flatnonzero(equal.any(axis=1)).tolist():
        tied = np.flatnonzero(np.append(equal[row], False) | np.append(False, equal[row]))
        run = np.cumsum(np.append(True, ~equal[row]))[tied]
        order[row, tied] = order[row, tied][np.lexsort((order[row, tied], run))]
    return order


def check_sampling(where: str, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Reject options that `draw` cannot draw with."""
    _checks.non_negative(where, "temperature", temperature)
    if top_k is not None:
        _checks.integer_at_least(where, "top_k", top_k, 1)
    if top_p is not None and not 0.0 < _checks.finite(where, "top_p", top_p) <= 1.0:
        raise ValueError(f"{where}: top_p is {top_p!r}, expected a number above 0 and at most 1")
    for name, value in (("top_k", top_k), ("top_p", top_p)):
        if temperature == 0 and value is not None:
            _checks.warn(where, f"{name}={value} has no effect, as temperature=0 takes the likeliest token")


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
        \tau; 0 takes the likeliest token, the first among equally likely ones.
    top_k : int, optional
        Draw from the k likeliest tokens only.
    top_p : float, optional
        Draw from the nucleus only: the fewest likeliest tokens whose probabilities, at this temperature, reach p.

    References
    ----------
    A. Holtzman et al., "The curious case of neural text degeneration", ICLR 2020 (nucleus sampling).
    """
    if temperature == 0:
        likeliest_token: NDArray[np.int64] = logits.argmax(axis=1)
        return likeliest_token
    tokens = None
    if top_k is not None and top_k < logits.shape[1]:
        tokens = likeliest(logits, top_k)
        logits = np.take_along_axis(logits, tokens, axis=1)
    with np.errstate(over="ignore"):  # a small temperature makes an unlikely token impossible
        chances = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    if top_p is not None and top_p < 1.0:
        places, chances = _nucleus(logits, chances, top_p)
        tokens = places if tokens is None else np.take_along_axis(tokens, places, axis=1)
    bounds = np.cumsum(chances, axis=1)
    points = rng.random(len(logits)) * bounds[:, -1]
    # The product may be rounded up to the last bound, which is past the last token that can be drawn.
    drawn = np.minimum((bounds <= points[:, None]).sum(axis=1), (bounds < bounds[:, -1:]).sum(axis=1))
    return drawn if tokens is None else np.take_along_axis(tokens, drawn[:, None], axis=1)[:, 0]


def _nucleus(
    logits: NDArray[np.float64], chances: NDArray[np.float64], p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The likeliest tokens (R, m), enough of them to reach p in every row, and their chances, 0 outside the nucleus."""
    total = chances.sum(axis=1, keepdims=True)
    size, count = logits.shape[1], 0
    while True:
        count = min(64 * max(count, 1), size)
        places = likeliest(logits, count)
        largest = np.take_along_axis(chances, places, axis=1)
        bounds = np.cumsum(largest, axis=1)
        if count == size or (bounds[:, -1:] / total >= p).all():
            break
    # A token belongs to the nucleus if those before it do not reach p.
    return places, np.where((bounds - largest) / total < p, largest, 0.0)


def sample(
    step: Step,
    state: Any,
    batch: int,
    *,
    begin: int,
    end: int,
    max_length: int | NDArray[np.int64],
    rng: np.random.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    fail: Fail = _fail,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokens (T, B), 0 past the end symbol of each row, and their lengths (B,), including the end symbol.

    A row that has no end symbol after ``max_length`` tokens ends there; the limit may be an array (B,), one for each
    row. A row that has not ended and whose logits are not finite raises ``fail(row)``.
    """
    limits = np.broadcast_to(max_length, (batch,))
    last = np.full(batch, begin, np.int32)
    ended = np.zeros(batch, bool)
    lengths = np.zeros(batch, np.int32)
    tokens = []
    while not ended.all():
        logits, _, state = step(last, state)
        require_finite(logits, ~ended, fail)
        if ended.any():
            logits = np.where(ended[:, None], 0.0, logits)
        last = draw(logits, rng, temperature=temperature, top_k=top_k, top_p=top_p).astype(np.int32)
        tokens.append(np.where(ended, 0, last).astype(np.int32))
        lengths += ~ended
        ended |= (last == end) | (lengths >= limits)
    return np.stack(tokens) if tokens else np.zeros((0, batch), np.int32), lengths


@dataclass(frozen=True)
class Hypothesis:
    """A sequence that a beam search has found.

    Attributes
    ----------
    tokens : (T,) int32 array
        They include the end symbol, unless the search reached ``max_length`` first.
    log_probability : float
        log P(tokens | source).
    score : float
        The log-probability over the length penalty, plus the coverage penalty. Hypotheses are compared by it.
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
    max_length: int | NDArray[np.int64],
    beam_size: int,
    alpha: float = 0.6,
    beta: float = 0.0,
    best: int = 1,
    source_lengths: NDArray[np.int64] | None = None,
    fail: Fail = _fail,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each row, the best first.

    At each length the ``beam_size`` likeliest prefixes are continued. Those that end are scored by
    s(Y) = log P(Y) / lp(Y) + cp(Y), where lp is `length_penalty` and cp is beta times `coverage`. A row stops when none
    of its prefixes can still beat the worst of its ``best`` finished hypotheses: log P can only fall, cp is at most 0,
    and lp is at most that of ``max_length``. If fewer than ``best`` have ended, prefixes of ``max_length`` tokens make
    up the number. The limit may be an array (B,), one for each row. A row whose logits are not finite raises
    ``fail(row)``.

    References
    ----------
    Y. Wu et al., "Google's neural machine translation system", arXiv:1609.08144 (2016), section 7.
    """
    K = beam_size
    limits = np.broadcast_to(max_length, (batch,))
    last = np.full(batch, begin, np.int32)
    # The prefixes of each row: at first one, the empty prefix, then K.
    tokens = np.zeros((batch, 1, 0), np.int32)
    scores = np.zeros((batch, 1))
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

    def fail_prefix(i: int) -> Exception:
        return fail(i // scores.shape[1])

    for t in range(1, int(limits.max(initial=0)) + 1):
        if ended.all():
            break
        logits, weights, state = step(last, state)
        width, V = scores.shape[1], logits.shape[1]
        read = (~np.isneginf(scores) & ~ended[:, None]).reshape(-1)
        require_finite(logits, read, fail_prefix)
        totals = np.full(logits.shape, -np.inf)
        totals[read] = scores.reshape(-1)[read, None] + log_softmax(logits[read])
        if weights is not None:
            weights = weights.reshape(batch, width, -1)
            looked = weights if looked is None else looked + weights
        # At most K of 2 K continuations end, so at least K remain to be continued.
        flat = totals.reshape(batch, width * V)
        order = likeliest(flat, 2 * K)
        chosen = np.zeros((batch, K), np.int64)
        following = np.zeros((batch, K), np.int32)
        following_scores = np.full((batch, K), -np.inf)
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
                    chosen[row, place], following[row, place] = beam, token
                    following_scores[row, place] = total
                    place += 1
        rows = (np.arange(batch)[:, None] * width + chosen).reshape(-1)
        state = reorder(state, rows)
        tokens = np.concatenate([np.take_along_axis(tokens, chosen[:, :, None], axis=1), following[:, :, None]], axis=2)
        if looked is not None:
            looked = np.take_along_axis(looked, chosen[:, :, None], axis=1)
        scores, last = following_scores, following.reshape(-1)
        for row in np.flatnonzero(~ended).tolist():
            highest = float(scores[row].max()) / length_penalty(int(limits[row]), alpha)
            full = len(finished[row]) == best
            ended[row] = highest == -math.inf or (full and finished[row][-1].score >= highest)
            if not ended[row] and t == limits[row]:
                missing = best - len(finished[row])
                for beam in np.argsort(-scores[row], kind="stable")[:missing].tolist():
                    if scores[row, beam] > -math.inf:
                        seen = None if looked is None else looked[row, beam]
                        finish(row, tokens[row, beam], float(scores[row, beam]), seen)
                ended[row] = True
    return finished
