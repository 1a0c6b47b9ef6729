"""The passes over time: the Kalman filter, the smoother's backward pass, the log-likelihood and its gradient.

The functions take a model's parameters by name and observations y (T, B, p), with NaN for missing ones. `diffuse`
explains how diffuse initial states enter, and why means have 1 + d columns. Covariances have no such columns, and
depend on y only by which observations are missing. If all rows miss the same ones, a single row of covariances is
computed for all: b below is 1 then, and B otherwise.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ... import _arrays, _dispatch
from ..._contract import Array
from ..base import not_finite
from . import diffuse, recursion
from .products import summed, symmetric, times, transpose

Parameters = dict[str, Array]

NAMES = ("F", "H", "Q", "R", "m0", "P0")
OPTIONAL = ("B", "D", "c", "d")
"""The optional parameters of a model: the maps of its inputs u, and its offsets."""
COVARIANCES = ("Q", "R", "P0")
AXES = {"F": 2, "H": 2, "Q": 2, "R": 2, "B": 2, "D": 2, "c": 1, "d": 1}
"""The number of axes of a parameter at one step. With one more it varies with time."""


def varies(params: Parameters, name: str) -> bool:
    """Whether a parameter varies with time."""
    return name in AXES and params[name].ndim > AXES[name]


def at(parameter: Array, t: int) -> Array:
    """A parameter at step t, whether it varies with time or not."""
    return _arrays.contiguous(parameter if parameter.ndim == 2 else parameter[t, ...])


def advance(xp: Any, params: Parameters, t: int, mean: Array, covariance: Array) -> tuple[Array, Array]:
    """The predicted mean and covariance for step t + 1, without offset, from those of the state at step t."""
    F, Q = at(params["F"], t), at(params["Q"], t)
    return F @ mean, symmetric(xp, F @ covariance @ transpose(xp, F)) + Q


def state_offset(xp: Any, params: Parameters, u: Array | None, T: int) -> Array | None:
    """(T, B or 1, n): B u_t + c, which is added to the transition from step t; None if the model has neither."""
    return _offset(xp, params, "B", "c", u, T)


def observation_offset(xp: Any, params: Parameters, u: Array | None, T: int) -> Array | None:
    """(T, B or 1, p): D u_t + d, which is added to the observation of step t; None if the model has neither."""
    return _offset(xp, params, "D", "d", u, T)


def _offset(xp: Any, params: Parameters, by_input: str, constant: str, u: Array | None, T: int) -> Array | None:
    total = None
    if by_input in params and u is not None:
        total = (_over_time(params[by_input], T) @ u[:T, ..., None])[..., 0]
    if constant in params:
        every = params[constant]
        every = xp.broadcast_to(every, (T, 1, every.shape[0])) if every.ndim == 1 else every[:T, None, :]
        total = every if total is None else total + every
    return total


class _Covariances(NamedTuple):
    """All results of a step that depend on no value of y; or of every step, with an axis of time in front."""

    predicted: Array
    """(b, n, n): P, the covariance of the state given the observations before the step."""
    observation: Array
    """(b, p, n): H, with zeros in the rows of missing observations."""
    precision: Array
    """(b, p, p): S^-1, the inverse covariance of the innovation."""
    log_determinant: Array
    """(b,): log |S|; NaN where S is not positive definite."""
    gain: Array
    """(b, n, p): K = P H^T S^-1."""
    filtered: Array
    """(b, n, n): the covariance of the state given the observations up to the step."""


@dataclass(frozen=True)
class Position:
    """The position of a filter: everything that the steps ahead depend on."""

    step: int
    mean: Array
    """(B, n, 1 + d): predicted."""
    covariance: Array
    """(b, n, n): predicted."""
    information: Array
    """(B, 1 + d, 1 + d): the sum of v^T S^-1 v over the steps so far."""
    rounding: Array
    """(B, n, d): a bound of the rounding of the means' columns of delta, while a row has seen nothing."""
    unseen: np.ndarray[Any, Any]
    """(B,): which rows have had no observations so far."""
    last: _Covariances | None = None
    """The covariances of the last step, if they have converged."""
    missing: np.ndarray[Any, Any] | None = None
    """(B, p): the observations that were missing there."""
    uncertain: Array | None = None
    """(b, n, n): a bound of the covariance's rounding, itself a covariance; None if all observations had noise."""


@dataclass(frozen=True)
class Forward:
    """The filter's results at all steps, as the backward pass needs them."""

    covariances: _Covariances
    """The covariances that were computed, with an axis (S,) in front."""
    number: np.ndarray[Any, Any]
    """(T,): the number of each step's covariances among them. Steps may share them."""
    mean: Array
    """(T, B, n, 1 + d): predicted."""
    filtered_mean: Array
    weighted: Array
    """(T, B, p, 1 + d): S^-1 v, with the innovation v = y - H times the predicted mean."""
    information: Array
    """(B, 1 + d, 1 + d): the sum of v^T S^-1 v over all steps."""


def forward(where: str, xp: Any, params: Parameters, y: Array, u: Array | None = None) -> Forward:
    """Run the filter. Its means measure delta from its estimate given all observations.

    Raises
    ------
    ValueError
        An observation has no variance given those before it; the message names ``where`` and the step.
    """
    covariances, number, mean, innovation, _ = _pass(where, xp, params, initial(xp, params, y.shape[1]), y, u)
    precision = of_steps(xp, covariances.precision, number)
    if mean.shape[-1] > 1:
        centre = diffuse.centre(xp, innovation, precision)
        mean, innovation = times(xp, mean, centre), times(xp, innovation, centre)
    weighted = times(xp, precision, innovation)
    filtered_mean = mean + times(xp, of_steps(xp, covariances.gain, number), innovation)
    information = summed(xp, innovation, weighted)
    return Forward(covariances, number, mean, filtered_mean, weighted, information)


def initial(xp: Any, params: Parameters, B: int) -> Position:
    """The position before the first step."""
    m0, P0, Q, R = (params[name] for name in ("m0", "P0", "Q", "R"))
    n = m0.shape[0]
    unit = xp.eye(n, dtype=m0.dtype, device=_dispatch.device(m0))
    columns = [xp.reshape(m0, (n, 1)), *(unit[:, k : k + 1] for k in diffuse_states(params))]
    # A finite variance added to an infinite one changes only the conditioning. Best is the size of the noises or,
    # without noise, of the other states.
    finite = xp.where(xp.isinf(P0), xp.zeros_like(P0), P0)
    noise, others = (sum(xp.mean(xp.linalg.diagonal(a)) for a in arrays) for arrays in ((Q, R), (finite,)))
    size = xp.where(noise > 0, noise, xp.where(others > 0, others, xp.ones_like(others)))
    covariance = xp.where(xp.isinf(P0), unit * size, P0)
    mean = xp.expand_dims(xp.concat(columns, axis=1), axis=0) + _dispatch.zeros(xp, (B, 1, 1), m0)
    c = mean.shape[2]
    nothing = _dispatch.zeros(xp, (B, n, c - 1), m0)
    information = _dispatch.zeros(xp, (B, c, c), m0)
    covariance = covariance + _dispatch.zeros(xp, (min(B, 1), 1, 1), m0)
    return Position(0, mean, covariance, information, nothing, np.ones(B, bool))


def diffuse_states(params: Parameters) -> list[int]:
    """The numbers of the diffuse states."""
    return [int(k) for k in np.flatnonzero(np.isinf(np.diagonal(_dispatch.to_numpy(params["P0"]))))]


def _pass(
    where: str, xp: Any, params: Parameters, start: Position, y: Array, u: Array | None
) -> tuple[_Covariances, np.ndarray[Any, Any], Array, Array, Position]:
    """Covariances, predicted means (T, B, n, 1 + d), innovations (T, B, p, 1 + d) and the position past the last step.

    The parameters and u begin at the step of ``start``. The information is not updated: it stays that of ``start``.
    """
    T, missing = y.shape[0], xp.isnan(y)
    on_host = _dispatch.to_numpy(missing)
    shared = bool((on_host == on_host[:, :1]).all())
    if not shared:
        start = _of_each_row(xp, start, y.shape[1])
    covariances, number, after = _covariances(
        xp, params, start, missing if start.covariance.shape[0] > 1 else missing[:, :1, :], on_host
    )
    indefinite = np.argwhere(~np.isfinite(_dispatch.to_numpy(covariances.log_determinant))[number])
    if len(indefinite):
        step, row = indefinite[0]
        raise ValueError(
            f"{where}: H P H^T + R of step {start.step + step}{f' of row {row}' if y.shape[1] > 1 else ''} is not "
            "positive definite, P being the covariance of the state given the observations before it; expected a "
            "larger R, or Q or P0"
        )
    known, added = observation_offset(xp, params, u, T), state_offset(xp, params, u, T)
    y = xp.where(missing, xp.zeros_like(y), y if known is None else y - known)
    mean, innovation, position = _means(xp, params, covariances, number, start, y, on_host, added)
    position = replace(
        position, step=start.step + T, covariance=after.covariance, last=after.last, missing=on_host[-1],
        uncertain=after.uncertain,
    )  # fmt: skip
    return covariances, number, mean, innovation, position


def _of_each_row(xp: Any, start: Position, B: int) -> Position:
    """The position, with covariances for each row."""
    rows = _dispatch.zeros(xp, (B, 1, 1), start.mean)
    last, uncertain = start.last, None if start.uncertain is None else start.uncertain + rows
    if last is not None:
        each = (a + (rows if a.ndim == 3 else rows[:, 0, 0]) for a in last)
        last = _Covariances(*each)
    return replace(start, covariance=start.covariance + rows, last=last, uncertain=uncertain)


def of_steps(xp: Any, distinct: Array, number: np.ndarray[Any, Any]) -> Array:
    """The arrays of all steps, from the distinct ones that were computed and the number of each step's array."""
    return xp.take(distinct, _dispatch.from_numpy(xp, number), axis=0)


def _covariances(
    xp: Any, params: Parameters, start: Position, patterns: Array, on_host: np.ndarray[Any, Any]
) -> tuple[_Covariances, np.ndarray[Any, Any], Position]:
    """The covariances that were computed, the number of each step's own among them, and the position after the steps.

    While the model does not vary and the same observations are missing as at the step before, covariances converge.
    They have converged when a step changes them by no more than its rounding. Further such steps share them.

    Parameters
    ----------
    patterns : (T, b, p) array of bool
        True for missing observations.
    on_host : (T, B, p) NumPy array
        The same.

    Returns
    -------
    covariances : _Covariances
        With an axis (S,) in front.
    number : (T,) array of int
    after : Position
        With new ``covariance``, ``uncertain`` and ``last``.
    """
    T, b, p = patterns.shape
    covariance, uncertain = start.covariance, start.uncertain
    none = _dispatch.zeros(xp, (b, 1, 1), covariance)
    unit, unit_n = (
        xp.eye(k, dtype=covariance.dtype, device=_dispatch.device(covariance)) for k in (p, covariance.shape[-1])
    )
    some_missing, varying = bool(on_host.any()), [name for name in "FHQR" if varies(params, name)]
    before = start.missing if start.missing is not None else np.zeros(0)
    repeats = [np.array_equal(before, on_host[0]), *(on_host[1:] == on_host[:-1]).all(axis=(1, 2)).tolist()]
    unlike = [t for t in range(1, T) if not repeats[t]] + [T] if not all(repeats[1:]) else [T]
    steps: list[_Covariances] = []
    number = np.zeros(T, np.int64)
    last, t = start.last, 0
    readings: dict[bytes, _Reading] = {}
    F, Q = at(params["F"], 0), at(params["Q"], 0)
    # A variance that is not positive gives numbers that are not finite, which the caller rejects.
    with np.errstate(divide="ignore", invalid="ignore"):
        while t < T:
            if last is not None and repeats[t]:
                # All steps share the last ones, until other observations are missing.
                if not steps:
                    steps.append(last)
                until = unlike[bisect.bisect_right(unlike, t)]
                number[t:until] = len(steps) - 1
                t = until
                continue
            key = on_host[t].tobytes() if some_missing else b""
            if key not in readings:
                gone = patterns[t, ...] if some_missing else None
                readings[key] = _reading(xp, at(params["H"], t) + none, at(params["R"], t) + none, gone, unit)
            reading = readings[key]
            if uncertain is None and reading.some_exact:
                uncertain = _rounding(xp, covariance, unit_n, unit_n)
            *observed, uncertain = _observed(xp, covariance, uncertain, reading, unit, unit_n)
            own = _Covariances(covariance, reading.observation, *observed)
            steps.append(own)
            number[t] = len(steps) - 1
            if varying:
                F, Q = at(params["F"], t), at(params["Q"], t)
                readings.clear()
            after = symmetric(xp, F @ own.filtered @ transpose(xp, F)) + Q
            if uncertain is not None:
                uncertain = F @ uncertain @ transpose(xp, F) + _rounding(xp, own.filtered, xp.abs(F), unit_n)
                uncertain = uncertain + _rounding(xp, Q, unit_n, unit_n)
            # Not at every step, as this takes a good part of a step's time.
            try_it = not varying and repeats[t] and (start.step + t) % 4 == 0
            last = own if try_it and _differ_by_rounding(xp, after, covariance) else None
            covariance = after
            t += 1
    computed = _Covariances(*(xp.stack(list(arrays)) for arrays in zip(*steps, strict=True)))
    return computed, number, replace(start, covariance=covariance, uncertain=uncertain, last=last)


class _Reading(NamedTuple):
    """How the observations of a step depend on the state: one after another, with independent noises."""

    observation: Array
    """(b, p, n): H, with zeros in the rows of missing observations."""
    rows: list[tuple[Array, Array, Array, Array]]
    """For each combination of observations: the row of H (b, 1, n), its transpose, the variance (b, 1, 1), and a bound
    of the rounding of that row (b, 1, n)."""
    combined: Array | None
    """(b, p, p): the combinations, or None for the observations themselves."""
    taken: Array | None
    """(b,): the amount by which the combinations lower the logarithm of the determinant."""
    some_exact: bool
    """Whether a combination has no noise."""


def _reading(xp: Any, H: Array, R: Array, gone: Array | None, unit: Array) -> _Reading:
    if gone is not None:
        # A missing observation does not depend on the state, and its noise has variance 1 and is 0.
        H = xp.where(gone[:, :, None], xp.zeros_like(H), H)
        R = xp.where(xp.logical_or(gone[:, :, None], gone[:, None, :]), unit + xp.zeros_like(R), R)
    combined, variances, taken = _independent(xp, R)
    if combined is None:
        own, rounding = H, xp.zeros_like(H)
    else:
        own = combined @ H
        rounding = H.shape[1] * float(xp.finfo(H.dtype).eps) * xp.abs(combined) @ xp.abs(H)
    each = [slice(i, i + 1) for i in range(H.shape[1])]
    rows = [(own[:, i, :], transpose(xp, own[:, i, :]), variances[:, i, None], rounding[:, i, :]) for i in each]
    return _Reading(H, rows, combined, taken, bool(_dispatch.to_numpy(xp.any(variances <= 0))))


def _rounding(xp: Any, P: Array, size: Array, unit: Array) -> Array:
    """A bound of the rounding of A P A^T with a matrix A of that size, itself a covariance."""
    # A matrix of elements d_i d_j is at most n times the diagonal one of d_i^2.
    variances = xp.linalg.diagonal(P)
    deviation = size @ xp.sqrt(xp.where(variances > 0, variances, xp.zeros_like(variances)))[..., None]
    return P.shape[-1] ** 2 * float(xp.finfo(P.dtype).eps) * unit * deviation**2


def _observed(
    xp: Any, P: Array, uncertain: Array | None, reading: _Reading, unit_p: Array, unit_n: Array
) -> tuple[Array, Array, Array, Array, Array | None]:
    """S^-1, log |S|, the gain and the filtered covariance, from the predicted one (b, n, n); see `_Covariances`.

    And `Position.uncertain` after the step, from that before it. With it, the variance of an observation without noise
    is NaN if all of it may be rounding.

    The observations enter one after another, each with its own variance: if they observe the same state, and it is
    known far less precisely than they are, S is too ill-conditioned to be inverted. This is the univariate treatment
    of Durbin and Koopman (2012), section 6.4.
    """
    log_determinant: Any = reading.taken
    gain: Any = None
    precision: Any = None
    for i, (h, h_T, variance, of_h) in enumerate(reading.rows):
        read = P @ h_T
        S = h @ read + variance
        if uncertain is not None:
            doubtful = h @ uncertain @ h_T + of_h @ xp.abs(P) @ transpose(xp, of_h)
            S = xp.where((variance > 0) | (doubtful < S), S, xp.full_like(S, math.nan))
        log_S = xp.log(S[:, 0, 0])
        log_determinant = log_S if log_determinant is None else log_determinant + log_S
        k = read / S
        rest = unit_n - k * h
        if uncertain is not None:
            # That of `rest` itself enters squared: where it matters, `rest` makes a covariance of zero.
            of_rest = math.sqrt(float(xp.finfo(P.dtype).eps)) * (unit_n + xp.abs(k * h))
            uncertain = rest @ uncertain @ transpose(xp, rest) + _rounding(xp, P, xp.abs(rest) + of_rest, unit_n)
        P = symmetric(xp, rest @ P @ transpose(xp, rest) + variance * (k * transpose(xp, k)))
        # The observation minus its prediction from those before it.
        own = unit_p[i : i + 1, :] if gain is None else unit_p[i : i + 1, :] - h @ gain
        gain = k * own if gain is None else gain + k * own
        information = transpose(xp, own) * own / S
        precision = information if precision is None else precision + information
    combined = reading.combined
    if combined is None:
        return precision, log_determinant, gain, P, uncertain
    precision = symmetric(xp, transpose(xp, combined) @ precision @ combined)
    return precision, log_determinant, gain @ combined, P, uncertain


def _independent(xp: Any, R: Array) -> tuple[Array | None, Array, Array | None]:
    """Combinations (b, p, p) of observations whose noises are independent, their variances (b, p), and log |R|'s share.

    The last, (b,), is the amount by which the combinations lower the logarithm of the determinant. If the noises are
    already independent, there are no combinations and no such amount.
    """
    p = R.shape[-1]
    variances = xp.linalg.diagonal(R)
    if p == 1:
        return None, variances, None
    unit = xp.eye(p, dtype=R.dtype, device=_dispatch.device(R)) + xp.zeros_like(R)
    if not bool(_dispatch.to_numpy(xp.any((unit == 0) & (R != 0)))):
        return None, variances, None
    # Relative to the deviations, so that a small noise keeps its digits next to a large one.
    deviations = xp.sqrt(xp.where(variances > 0, variances, xp.ones_like(variances)))
    values, vectors = xp.linalg.eigh(R / deviations[:, :, None] / deviations[:, None, :])
    rounding = p * float(xp.finfo(R.dtype).eps) * values[..., -1:]
    values = xp.where(values > rounding, values, xp.zeros_like(values))
    return transpose(xp, vectors) / deviations[:, None, :], values, 2 * xp.sum(xp.log(deviations), axis=-1)


def _differ_by_rounding(xp: Any, one: Array, other: Array) -> bool:
    """Whether covariances (..., n, n) differ by no more than the rounding of a step, in units of their deviations."""
    deviation = xp.sqrt(xp.linalg.diagonal(one))
    rounding = 4 * float(xp.finfo(one.dtype).eps) * deviation[..., :, None] * deviation[..., None, :]
    return bool(_dispatch.to_numpy(xp.all(xp.abs(one - other) <= rounding)))


def _means(
    xp: Any, params: Parameters, covariances: _Covariances, number: np.ndarray[Any, Any], start: Position, y: Array,
    on_host: np.ndarray[Any, Any], added: Array | None,
) -> tuple[Array, Array, Position]:  # fmt: skip
    """Predicted means and innovations at all steps, and the position after them.

    A missing number of y is 0 here. ``added`` is the offset of the states.
    """
    T, mean = y.shape[0], start.mean
    d = mean.shape[2] - 1
    observed = xp.concat([y[..., None], _dispatch.zeros(xp, (*y.shape, d), y)], axis=3)
    if added is not None:
        added = xp.concat([added[..., None], _dispatch.zeros(xp, (*added.shape, d), y)], axis=3)
    H, gain = covariances.observation, covariances.gain
    F = params["F"][:T, None, ...] if varies(params, "F") else params["F"][None, None, ...]
    carried = F @ gain
    unseen = start.unseen[None, :] & np.logical_and.accumulate(on_host.all(axis=2), axis=0)
    blind = int(unseen.any(axis=1).sum()) if d else 0
    pieces: list[tuple[Array, Array]] = []
    rounding = start.rounding
    if blind:
        eps = float(xp.finfo(y.dtype).eps)
        rows = xp.asarray(unseen.tolist(), dtype=xp.bool, device=_dispatch.device(y))
    for t in range(blind):
        # If a product of F is zero up to rounding, the mean has forgotten delta.
        now = slice(t, t + 1)
        this = F if F.shape[0] == 1 else F[now, ...]
        own = slice(int(number[t]), int(number[t]) + 1)
        m, v, mean_after = recursion.run(
            xp, this, H[own, ...], carried[own, ...], np.zeros(1, np.int64), mean, observed[now, ...], None
        )
        pieces.append((m, v))
        filtered = mean + gain[int(number[t]), ...] @ v[0, ...]
        rounding = xp.abs(this[0, ...]) @ (rounding + mean.shape[1] * eps * xp.abs(filtered[..., 1:]))
        forgotten = rows[t, :, None, None] & (xp.abs(mean_after[..., 1:]) <= rounding)
        by_delta = xp.where(forgotten, xp.zeros_like(rounding), mean_after[..., 1:])
        mean = xp.concat([mean_after[..., :1], by_delta], axis=-1)
        if added is not None:
            mean = mean + added[t, ...]
    if blind < T:
        later = F if F.shape[0] == 1 else F[blind:, ...]
        of_later, base = number[blind:], int(number[blind])
        m, v, mean = recursion.run(
            xp, later, H[base:, ...], carried[base:, ...], of_later - base, mean, observed[blind:, ...],
            None if added is None else added[blind:, ...],
        )  # fmt: skip
        pieces.append((m, v))
    means, innovations = (xp.concat(list(each), axis=0) for each in zip(*pieces, strict=True))
    return means, innovations, replace(start, mean=mean, rounding=rounding, unseen=unseen[-1])


def filtered(
    where: str, xp: Any, params: Parameters, start: Position, y: Array, u: Array | None
) -> tuple[list[Array], Position]:
    """Means and covariances (T, B, ...), predicted and filtered, and the position past the last step.

    No step depends on a later one: delta is measured from intermediate estimates, at steps 1, 2, 4, 8 and so on. Once
    delta no longer matters to the states, it is treated as known.
    """
    pieces: list[list[Array]] = []
    first = start.step
    while start.step < first + y.shape[0]:
        at_step = start.step
        if start.mean.shape[2] > 1 and at_step & (at_step - 1) == 0:
            start = _recentred(xp, start)
        until = 2 ** at_step.bit_length() if start.mean.shape[2] > 1 else first + y.shape[0]
        steps = slice(at_step - first, min(until - first, y.shape[0]))
        own = {name: p[steps.start :, ...] if varies(params, name) else p for name, p in params.items()}
        results, start = _filtered_stretch(where, xp, own, start, y[steps, ...], None if u is None else u[steps, ...])
        pieces.append(results)
    return [xp.concat(list(each), axis=0) for each in zip(*pieces, strict=True)], start


def _filtered_stretch(
    where: str, xp: Any, params: Parameters, start: Position, y: Array, u: Array | None
) -> tuple[list[Array], Position]:
    """`filtered` with delta measured from one value."""
    covariances, number, mean, innovation, after = _pass(where, xp, params, start, y, u)
    filtered_mean = mean + times(xp, of_steps(xp, covariances.gain, number), innovation)
    spreads = [of_steps(xp, each, number) for each in (covariances.predicted, covariances.filtered)]
    if mean.shape[3] == 1:
        moments = zip((mean, filtered_mean), spreads, strict=True)
        return [a for each in moments for a in diffuse.known_marginal(xp, start.information, *each)], after
    weighted = times(xp, of_steps(xp, covariances.precision, number), innovation)
    each = times(xp, transpose(xp, innovation), weighted)
    information = xp.cumulative_sum(xp.concat([start.information[None, ...], each], axis=0), axis=0)
    predicted = diffuse.known_marginal(xp, information[:-1, ...], mean, spreads[0])
    known = diffuse.known_marginal(xp, information[1:, ...], filtered_mean, spreads[1])
    return [*predicted, *known], replace(after, information=information[-1, ...])


def _recentred(xp: Any, position: Position) -> Position:
    """The position with delta measured from its estimate, or without delta if it adds nothing to the state."""
    mean, information = position.mean, position.information
    delta, spread = diffuse.estimate(xp, information)
    centred = mean[..., :1] + mean[..., 1:] @ delta
    added = xp.linalg.diagonal(mean[..., 1:] @ spread @ transpose(xp, mean[..., 1:]))
    eps = float(xp.finfo(mean.dtype).eps)
    little = xp.all(added <= eps**2 * xp.linalg.diagonal(position.covariance))
    if bool(_dispatch.to_numpy(little & xp.all(diffuse.determined(xp, information, mean)))):
        nothing = position.rounding[..., :0]
        return replace(position, mean=centred, rounding=nothing, information=information[:, :1, :1])
    by_delta = information[:, 1:, 1:]
    moment = information[:, 1:, :1] + by_delta @ delta
    top = xp.concat([xp.zeros_like(moment[:, :1, :]), transpose(xp, moment)], axis=2)
    information = xp.concat([top, xp.concat([moment, by_delta], axis=2)], axis=1)
    return replace(position, mean=xp.concat([centred, mean[..., 1:]], axis=2), information=information)


class Undetermined(ValueError):
    """The observations do not determine the diffuse states."""


def diffuse_moments(where: str, xp: Any, steps: Forward) -> Array:
    """E[(1, delta) (1, delta)^T] given all observations, (B, 1 + d, 1 + d).

    Raises
    ------
    Undetermined
    """
    information = steps.information
    # A part of delta on which no later state depends need not be known.
    known = _dispatch.to_numpy(diffuse.determined(xp, information, steps.filtered_mean[-1, ...]))
    if not known.all():
        row = f" of row {int(np.argmin(known))}" if len(known) > 1 else ""
        raise Undetermined(f"{where}: y{row} does not determine the diffuse states, expected more observations or a P0")
    return diffuse.moments(xp, information)


def log_likelihood(xp: Any, y: Array, steps: Forward) -> Array:
    """The log-likelihood (), summed over all sequences."""
    information = steps.information
    squares = information[:, 0, 0]
    total = xp.zeros_like(squares)
    if information.shape[1] > 1:
        # The diffuse states are integrated over, which a regression does.
        explained = xp.sum(information[:, 1:, 0] * diffuse.moments(xp, information)[:, 1:, 0], axis=1)
        # If the squares overflow, the explained part may overflow too.
        squares = xp.where(xp.isinf(squares), squares, squares + explained)
        total = diffuse.log_determinant(xp, information)
    count = xp.sum(xp.astype(~xp.isnan(y), y.dtype), axis=(0, 2))
    determinants = xp.sum(of_steps(xp, steps.covariances.log_determinant, steps.number), axis=0)
    return xp.asarray(xp.sum(-(determinants + squares + count * math.log(2 * math.pi) + total) / 2))


@dataclass(frozen=True)
class Backward:
    """Gradients of the log-likelihood by the states' means, from the last step to the first, and their covariances.

    A covariance belongs to a pair: covariances of the filter, and one that the backward pass computed.
    """

    r: Array
    """(T, B, n, 1 + d): the gradient by the predicted mean of the step after, zero at the last step."""
    filtered_r: Array
    """(T, B, n, 1 + d): the gradient by the filtered mean, F^T r."""
    e: Array
    """(T, B, p, 1 + d): minus the gradient by the observation."""
    first_r: Array
    """(B, n, 1 + d): the gradient by the first predicted mean."""
    first_N: Array
    """(b, n, n): its covariance."""
    of_filter: np.ndarray[Any, Any]
    """(P,): the number of the filter's covariances in each pair."""
    first: np.ndarray[Any, Any]
    """(P,): the first step of each pair."""
    pair: np.ndarray[Any, Any]
    """(T,): the number of each step's pair."""
    N: Array
    """(P, b, n, n): the covariance of r."""
    filtered_N: Array
    """(P, b, n, n): the covariance of F^T r."""


def backward(xp: Any, params: Parameters, steps: Forward) -> Backward:
    """Run the backward pass."""
    covariances, number, T = steps.covariances, steps.number, len(steps.number)
    H, gain = covariances.observation, covariances.gain
    over = varies(params, "F")
    F = params["F"][:T, None, ...] if over else params["F"][None, None, ...]
    by_mean = transpose(xp, F)
    # Backwards in time: e = S^-1 v - (F K)^T r, and r = F^T r + H^T e.
    back, reversed_number = slice(None, None, -1), number[::-1]
    r, e, first_r = recursion.run(
        xp, by_mean[back, ...] if over else by_mean, transpose(xp, F @ gain)[back, ...], transpose(xp, H)[back, ...],
        number[-1] - reversed_number, xp.zeros_like(steps.mean[0, ...]), steps.weighted[back, ...], None,
    )  # fmt: skip
    r, e = r[back, ...], e[back, ...]
    unit = xp.eye(H.shape[-1], dtype=H.dtype, device=_dispatch.device(H))
    rest = transpose(xp, unit - gain @ H)
    by_observation_N = transpose(xp, H) @ covariances.precision @ H
    # These map the covariance of r past a step to that before it, by F and the gain at once.
    through = rest @ (by_mean if over else by_mean[0, ...])
    through_T = transpose(xp, through)
    N = xp.zeros_like(covariances.filtered[0, ...])
    Ns, of_N = [N], np.zeros(T, np.int64)
    begins = np.flatnonzero(np.diff(number, prepend=-1)).tolist()
    converged, t = False, T - 1
    while t >= 0:
        s = int(number[t])
        of_N[t] = len(Ns) - 1
        if converged and s == number[t + 1]:
            # All steps that share the filter's covariances share this one too.
            begin = begins[bisect.bisect_right(begins, t) - 1]
            of_N[begin : t + 1] = len(Ns) - 1
            t = begin - 1
            continue
        after, N = N, symmetric(xp, by_observation_N[s, ...] + through[s, ...] @ N @ through_T[s, ...])
        Ns.append(N)
        repeats = t > 0 and number[t - 1] == s
        converged = bool(repeats and t % 4 == 0 and _differ_by_rounding(xp, N, after))
        t -= 1
    # If F varies, so does the number.
    new = np.diff(number, prepend=-1).astype(bool) | np.diff(of_N, prepend=-1).astype(bool)
    first, pair = np.flatnonzero(new), np.cumsum(new) - 1
    distinct_N = of_steps(xp, xp.stack(Ns), of_N[first])
    filtered_N = by_mean @ distinct_N @ transpose(xp, by_mean)
    return Backward(r, times(xp, by_mean, r), e, first_r, N, number[first], first, pair, distinct_N, filtered_N)


def _over_time(parameter: Array, T: int) -> Array:
    """F, H, Q, R, B or D, ready to broadcast with arrays (T, B, ...)."""
    return _arrays.contiguous(parameter if parameter.ndim == 2 else parameter[:T, None, ...])


def smoothed(xp: Any, steps: Forward, back: Backward) -> tuple[Array, Array]:
    """Means (T, B, n, 1 + d) given all observations and covariances (P, b, n, n) of the pairs, for known delta."""
    P = of_steps(xp, steps.covariances.filtered, back.of_filter)
    mean = steps.filtered_mean + times(xp, of_steps(xp, steps.covariances.filtered, steps.number), back.filtered_r)
    return mean, symmetric(xp, P - P @ back.filtered_N @ P)


def smooth(where: str, xp: Any, params: Parameters, y: Array, u: Array | None = None) -> tuple[Array, Array]:
    """Means (T, B, n) and covariances (T, B, n, n) of the states given all observations."""
    steps = forward(where, xp, params, y, u)
    diffuse_moments(where, xp, steps)
    back = backward(xp, params, steps)
    mean, covariance = smoothed(xp, steps, back)
    return diffuse.known_marginal(xp, steps.information[None, ...], mean, of_steps(xp, covariance, back.pair))


def forecast(where: str, xp: Any, params: Parameters, y: Array, u: Array | None, steps: int) -> list[Array]:
    """Means and covariances of the observations that follow y, then of their states; with axes (steps, B).

    Raises
    ------
    FloatingPointError
        They overflow.
    """
    T = y.shape[0]
    done = forward(where, xp, params, y, u)
    diffuse_moments(where, xp, done)
    added, known = (offset(xp, params, u, T + steps) for offset in (state_offset, observation_offset))
    mean, covariance = diffuse.marginal(
        xp, done.filtered_mean[-1, ...], done.covariances.filtered[-1, ...],
        *diffuse.estimate(xp, done.information),
    )  # fmt: skip
    mean = mean[..., None]
    ahead: list[tuple[Array, ...]] = []
    for t in range(T, T + steps):
        mean, covariance = advance(xp, params, t - 1, mean, covariance)
        mean = mean if added is None else mean + added[t - 1, :, :, None]
        H, R = at(params["H"], t), at(params["R"], t)
        seen = symmetric(xp, H @ covariance @ transpose(xp, H)) + R
        expected = (H @ mean)[..., 0]
        ahead.append((expected if known is None else expected + known[t, ...], seen, mean[..., 0], covariance))
    results = [xp.stack(each) for each in zip(*ahead, strict=True)]
    if not all(bool(_dispatch.to_numpy(xp.all(xp.isfinite(array)))) for array in results):
        raise not_finite(where, "the forecasts", {})  # parameters and observations have been checked
    return results


class Score(NamedTuple):
    """The log-likelihood, its gradients, and the moments of the states that expectation maximisation needs."""

    value: Array
    """()"""
    dy: Array
    """(T, B, p)"""
    du: Array | None
    """(T, B, k), or None without inputs."""
    grads: dict[str, Array]
    """The gradients by the names of the parameters."""
    moment: Array
    """(n, n): the sum of E[x x^T] over all steps and rows."""
    moment_but_last: Array
    """(n, n): the same without the last step."""


def score(where: str, xp: Any, params: Parameters, y: Array, u: Array | None = None) -> Score:
    """The log-likelihood and its exact gradient.

    Raises
    ------
    ValueError
        There is no likelihood: an observation has no variance given those before it, or the observations do not
        determine the diffuse states.
    """
    steps = forward(where, xp, params, y, u)
    M = diffuse_moments(where, xp, steps)
    back = backward(xp, params, steps)
    x, V = smoothed(xp, steps, back)
    missing, (T, B) = xp.isnan(y), y.shape[:2]
    own = _Covariances(*(of_steps(xp, a, back.of_filter) for a in steps.covariances))
    gain_T, P = transpose(xp, own.gain), own.filtered
    D = own.precision + gain_T @ back.filtered_N @ own.gain
    # All steps of a pair miss the same observations.
    gone = of_steps(xp, missing if D.shape[1] == B else missing[:, :1, :], back.first)
    D = xp.where(gone[..., :, None] | gone[..., None, :], xp.zeros_like(D), D)
    gain_T = xp.where(gone[..., :, None], xp.zeros_like(gain_T), gain_T)
    e = xp.where(missing[..., :, None], xp.zeros_like(back.e), back.e)
    rM, eM, xM = (times(xp, a, M[None, ...]) for a in (back.r, e, x))
    F = params["F"][:T, None, ...] if varies(params, "F") else params["F"]
    # Past the last step there is no transition: r and N are zero there.
    by_matrix = {
        "F": (rM, x, -back.N @ F @ P),
        "H": (eM, x, gain_T @ back.filtered_N @ P - gain_T),
        "Q": (rM / 2, back.r, -back.N / 2),
        "R": (eM / 2, e, -D / 2),
    }
    grads = {
        name: _padded(xp, params, name, _gradient(xp, *terms, back.pair, varies(params, name)))
        for name, terms in by_matrix.items()
    }
    grads |= {name: symmetric(xp, grads[name]) for name in ("Q", "R")}
    # The gradients by the offsets of the states and of the observations.
    dadded, dy = rM[..., 0], -eM[..., 0]
    du = None
    for matrix, offset, by_offset in (("B", "c", dadded), ("D", "d", -dy)):
        if offset in params:
            grads[offset] = _over_rows(xp, params, offset, by_offset)
        if matrix in params and u is not None:
            grads[matrix] = _over_rows(xp, params, matrix, by_offset[..., None] * u[..., None, :])
            by_input = (transpose(xp, _over_time(params[matrix], T)) @ by_offset[..., None])[..., 0]
            du = by_input if du is None else du + by_input
    finite = ~xp.isinf(xp.linalg.diagonal(params["P0"]))
    rM = back.first_r @ M
    dm0, dP0 = xp.sum(rM[:, :, 0], axis=0), xp.sum(rM @ transpose(xp, back.first_r) - back.first_N, axis=0) / 2
    grads["m0"] = xp.where(finite, dm0, xp.zeros_like(dm0))
    grads["P0"] = xp.where(finite[:, None] & finite[None, :], dP0, xp.zeros_like(dP0))
    every = _gradient(xp, xM, x, V, back.pair, False)
    but_last = _gradient(xp, xM[:-1, ...], x[:-1, ...], V, back.pair[:-1], False)
    return Score(log_likelihood(xp, y, steps), dy, du, {name: grads[name] for name in params}, every, but_last)


def _gradient(
    xp: Any, left: Array, right: Array, covariance: Array, pair: np.ndarray[Any, Any], by_step: bool
) -> Array:
    """The sum over rows, and over steps unless ``by_step``, of left right^T and the covariance of the step's pair."""
    by_pair = xp.sum(covariance, axis=1) * (left.shape[1] // max(covariance.shape[1], 1))
    if by_step:
        return xp.sum(left @ transpose(xp, right), axis=1) + of_steps(xp, by_pair, pair)
    counts = np.bincount(pair, minlength=by_pair.shape[0]).tolist()
    weights = xp.asarray(counts, dtype=left.dtype, device=_dispatch.device(left))
    return xp.tensordot(left, right, axes=((0, 1, 3), (0, 1, 3))) + xp.tensordot(weights, by_pair, axes=1)


def _over_rows(xp: Any, params: Parameters, name: str, gradient: Array) -> Array:
    """The gradient by a parameter, from those of all steps and rows."""
    each = xp.sum(gradient, axis=1)
    return _padded(xp, params, name, each) if varies(params, name) else xp.sum(each, axis=0)


def _padded(xp: Any, params: Parameters, name: str, gradient: Array) -> Array:
    """The gradient by a parameter, with zeros for the steps past the last observation."""
    if not varies(params, name):
        return gradient
    unused = params[name].shape[0] - gradient.shape[0]
    return xp.concat([gradient, _dispatch.zeros(xp, (unused, *gradient.shape[1:]), gradient)], axis=0)
