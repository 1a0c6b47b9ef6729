"""The passes over time: the Kalman filter, the smoother's pass back, the log-likelihood and its gradient.

The functions take a model's parameters by name and observations y (T, B, p) of theirs, with NaN for what is missing.
How diffuse initial states enter, and why means have 1 + d columns, `diffuse` says. Covariances have no such columns,
and depend on y only by which observations are missing. Where all rows miss the same ones, a single row of covariances
is computed for all: b below is 1 then, and B otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ... import _arrays, _dispatch
from ..._contract import Array
from ..base import not_finite
from . import diffuse
from .diffuse import symmetric, transpose

Parameters = dict[str, Array]

NAMES = ("F", "H", "Q", "R", "m0", "P0")
OPTIONAL = ("B", "D", "c", "d")
"""What a model may have besides: the maps of its inputs u, and its offsets."""
COVARIANCES = ("Q", "R", "P0")
AXES = {"F": 2, "H": 2, "Q": 2, "R": 2, "B": 2, "D": 2, "c": 1, "d": 1}
"""The axes that a parameter has at one step. With one more it varies with time."""


def varies(params: Parameters, name: str) -> bool:
    """Whether a parameter varies with time."""
    return name in AXES and params[name].ndim > AXES[name]


def at(parameter: Array, t: int) -> Array:
    """F, H, Q or R at step t, whether it varies with time or not."""
    return _arrays.contiguous(parameter if parameter.ndim == 2 else parameter[t, ...])


def advance(xp: Any, params: Parameters, t: int, mean: Array, covariance: Array) -> tuple[Array, Array]:
    """From the mean and covariance of the state at step t to those predicted for the next, without offset."""
    F, Q = at(params["F"], t), at(params["Q"], t)
    return F @ mean, symmetric(xp, F @ covariance @ transpose(xp, F)) + Q


def state_offset(xp: Any, params: Parameters, u: Array | None, T: int) -> Array | None:
    """(T, B or 1, n): B u_t + c, which is added to the transition from step t; None where the model has neither."""
    return _offset(xp, params, "B", "c", u, T)


def observation_offset(xp: Any, params: Parameters, u: Array | None, T: int) -> Array | None:
    """(T, B or 1, p): D u_t + d, which is added to the observation of step t; None where the model has neither."""
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
    """All of a step, or of every step with an axis of time in front, that depends on no value of y."""

    predicted: Array
    """(b, n, n): P, of the state given the observations before the step."""
    observation: Array
    """(b, p, n): H, with zeros in the rows of missing observations."""
    precision: Array
    """(b, p, p): S^-1, of the innovation."""
    log_determinant: Array
    """(b,): log |S|; NaN where S is not positive definite."""
    gain: Array
    """(b, n, p): K = P H^T S^-1."""
    filtered: Array
    """(b, n, n): of the state given the observations up to the step."""


@dataclass(frozen=True)
class Forward:
    """The filter's results at all steps, and what the pass back needs of them."""

    covariances: _Covariances
    number: np.ndarray[Any, Any]
    """(T,): the number of each step's covariances, among those that were computed. Steps may share them."""
    mean: Array
    """(T, B, n, 1 + d): predicted."""
    filtered_mean: Array
    weighted: Array
    """(T, B, p, 1 + d): S^-1 v, of the innovation v = y - H times the predicted mean."""
    information: Array
    """(T, B, 1 + d, 1 + d): the sum of v^T S^-1 v up to the step, inclusive."""


def forward(where: str, xp: Any, params: Parameters, y: Array, u: Array | None = None) -> Forward:
    """The filter. Its means count delta from its estimate given all observations.

    Raises
    ------
    ValueError
        An observation has no variance given those before it; the message names ``where`` and the step.
    """
    missing = xp.isnan(y)
    on_host = _dispatch.to_numpy(missing)
    shared = bool((on_host == on_host[:, :1]).all())
    patterns = missing[:, :1, :] if shared else missing
    mean, covariance = _initial(xp, params, y.shape[1], patterns.shape[1])
    repeats = (on_host[1:] == on_host[:-1]).all(axis=(1, 2))
    covariances, number = _covariances(xp, params, covariance, patterns, repeats, bool(on_host.any()))
    indefinite = np.argwhere(~np.isfinite(_dispatch.to_numpy(covariances.log_determinant)))
    if len(indefinite):
        step, row = indefinite[0]
        raise ValueError(
            f"{where}: H P H^T + R of step {step}{f' of row {row}' if y.shape[1] > 1 else ''} is not positive "
            "definite, P being the covariance of the state given the observations before it; expected a larger R, or Q "
            "or P0"
        )
    known = observation_offset(xp, params, u, len(number))
    y = xp.where(missing, xp.zeros_like(y), y if known is None else y - known)
    added = state_offset(xp, params, u, len(number))
    mean, filtered_mean, innovation = _means(xp, params, covariances, mean, y, missing, added)
    if mean.shape[-1] > 1:
        centre = diffuse.centre(xp, innovation, covariances.precision)
        mean, filtered_mean, innovation = (array @ centre for array in (mean, filtered_mean, innovation))
    weighted = covariances.precision @ innovation
    information = xp.cumulative_sum(transpose(xp, innovation) @ weighted, axis=0)
    return Forward(covariances, number, mean, filtered_mean, weighted, information)


def _initial(xp: Any, params: Parameters, B: int, b: int) -> tuple[Array, Array]:
    """The predicted mean (B, n, 1 + d) and covariance (b, n, n) at the first step."""
    m0, P0, Q, R = (params[name] for name in ("m0", "P0", "Q", "R"))
    n = m0.shape[0]
    unit = xp.eye(n, dtype=m0.dtype, device=_dispatch.device(m0))
    columns = [xp.reshape(m0, (n, 1)), *(unit[:, k : k + 1] for k in diffuse_states(params))]
    # A finite variance added to an infinite one changes nothing but the conditioning, best at the noises' size, and
    # without noise at that of the other states.
    finite = xp.where(xp.isinf(P0), xp.zeros_like(P0), P0)
    noise, others = (sum(xp.mean(xp.linalg.diagonal(a)) for a in arrays) for arrays in ((Q, R), (finite,)))
    size = xp.where(noise > 0, noise, xp.where(others > 0, others, xp.ones_like(others)))
    covariance = xp.where(xp.isinf(P0), unit * size, P0)
    mean = xp.expand_dims(xp.concat(columns, axis=1), axis=0)
    return mean + _dispatch.zeros(xp, (B, 1, 1), m0), covariance + _dispatch.zeros(xp, (b, 1, 1), m0)


def diffuse_states(params: Parameters) -> list[int]:
    """Which states are diffuse."""
    return [int(k) for k in np.flatnonzero(np.isinf(np.diagonal(_dispatch.to_numpy(params["P0"]))))]


def _covariances(
    xp: Any, params: Parameters, covariance: Array, patterns: Array, repeats: np.ndarray[Any, Any], some_missing: bool
) -> tuple[_Covariances, np.ndarray[Any, Any]]:
    """The covariances of all steps, and for each step the number of its own among those that were computed.

    Where the model does not vary and the same observations are missing as at the step before, covariances converge.
    They have converged when a step changes them by no more than its rounding. Further such steps share them.

    Parameters
    ----------
    covariance : (b, n, n) array
        Predicted for the first step.
    patterns : (T, b, p) array of bool
        What is missing.
    repeats : (T - 1,) array of bool
        Whether the same is missing as at the step before.
    some_missing : bool
        Whether anything is missing at all.
    """
    T, b, p = patterns.shape
    none = _dispatch.zeros(xp, (b, 1, 1), covariance)
    unit = xp.eye(p, dtype=covariance.dtype, device=_dispatch.device(covariance))
    constant = all(params[name].ndim == 2 for name in "FHQR")
    steps: list[_Covariances] = []
    number = np.zeros(T, np.int64)
    converged = False
    for t in range(T):
        if not (converged and repeats[t - 1]):
            H, R = at(params["H"], t) + none, at(params["R"], t) + none
            if some_missing:
                # A missing observation reads nothing of the state, and its noise has variance 1 and is 0.
                gone = patterns[t, ...]
                H = xp.where(gone[:, :, None], xp.zeros_like(H), H)
                R = xp.where(xp.logical_or(gone[:, :, None], gone[:, None, :]), unit + none, R)
            precision, log_determinant, gain, filtered = _observed(xp, covariance, H, R)
            steps.append(_Covariances(covariance, H, precision, log_determinant, gain, filtered))
            if t + 1 < T:
                _, after = advance(xp, params, t, filtered, filtered)
                converged = constant and bool(repeats[t]) and _differ_by_rounding(xp, after, covariance)
                covariance = after
        number[t] = len(steps) - 1
    return _Covariances(*(_by_step(xp, list(arrays), number) for arrays in zip(*steps, strict=True))), number


def _observed(xp: Any, P: Array, H: Array, R: Array) -> tuple[Array, Array, Array, Array]:
    """S^-1, log |S|, the gain and the filtered covariance, from the predicted one (b, n, n); see `_Covariances`.

    The observations enter one after another, each with a variance of its own: where they tell of the same state, and
    it is known far less well than they are, S is too ill-conditioned to be inverted. It is the univariate treatment of
    Durbin and Koopman (2012), section 6.4.
    """
    b, p, n = H.shape
    unit_p, unit_n = (xp.eye(k, dtype=P.dtype, device=_dispatch.device(P)) for k in (p, n))
    combined, variances, log_determinant = _independent(xp, R)
    H = combined @ H
    gain, precision = _dispatch.zeros(xp, (b, n, p), P), _dispatch.zeros(xp, (b, p, p), P)
    for i in range(p):
        h, variance = H[:, i : i + 1, :], variances[:, i, None, None]
        read = P @ transpose(xp, h)
        S = h @ read + variance
        S = xp.where(S > 0, S, xp.full_like(S, math.nan))  # the caller rejects it
        log_determinant = log_determinant + xp.log(S[:, 0, 0])
        k = read / S
        rest = unit_n - k @ h
        P = symmetric(xp, rest @ P @ transpose(xp, rest) + variance * (k @ transpose(xp, k)))
        # The observation less what those before it say of it.
        own = unit_p[i : i + 1, :] - h @ gain
        gain = gain + k @ own
        precision = precision + transpose(xp, own) @ own / S
    return symmetric(xp, transpose(xp, combined) @ precision @ combined), log_determinant, gain @ combined, P


def _independent(xp: Any, R: Array) -> tuple[Array, Array, Array]:
    """Combinations (b, p, p) of observations whose noises are independent, their variances (b, p), and log |R|'s share.

    The last, (b,), is what the combinations take from the logarithm of the determinant.
    """
    p = R.shape[-1]
    unit = xp.eye(p, dtype=R.dtype, device=_dispatch.device(R)) + xp.zeros_like(R)
    variances = xp.linalg.diagonal(R)
    if not bool(_dispatch.to_numpy(xp.any((unit == 0) & (R != 0)))):
        return unit, variances, xp.zeros_like(variances[:, 0])
    # Relative to the deviations, so that a small noise keeps its digits beside a large one.
    deviations = xp.sqrt(xp.where(variances > 0, variances, xp.ones_like(variances)))
    values, vectors = xp.linalg.eigh(R / deviations[:, :, None] / deviations[:, None, :])
    values = xp.where(values > p * float(xp.finfo(R.dtype).eps), values, xp.zeros_like(values))
    return transpose(xp, vectors) / deviations[:, None, :], values, 2 * xp.sum(xp.log(deviations), axis=-1)


def _differ_by_rounding(xp: Any, one: Array, other: Array) -> bool:
    """Whether covariances (..., n, n) differ by no more than the rounding of a step, in units of their deviations."""
    deviation = xp.sqrt(xp.linalg.diagonal(one))
    rounding = 4 * float(xp.finfo(one.dtype).eps) * deviation[..., :, None] * deviation[..., None, :]
    return bool(_dispatch.to_numpy(xp.all(xp.abs(one - other) <= rounding)))


def _by_step(xp: Any, arrays: list[Array], number: np.ndarray[Any, Any]) -> Array:
    """The arrays of all steps, given those that were computed and the number of each step's among them."""
    distinct = xp.stack(arrays)
    return xp.take(distinct, xp.asarray(number.tolist(), dtype=xp.int64, device=_dispatch.device(distinct)), axis=0)


def _means(
    xp: Any, params: Parameters, covariances: _Covariances, mean: Array, y: Array, missing: Array, added: Array | None
) -> tuple[Array, Array, Array]:
    """Predicted means, filtered means and innovations at all steps, from the first predicted mean.

    A missing number of y is 0 here. ``added`` is the offset of the states.
    """
    T, B, _ = y.shape
    n, d = mean.shape[1], mean.shape[2] - 1
    observed = xp.concat([y[..., None], _dispatch.zeros(xp, (*y.shape, d), y)], axis=3)
    if added is not None:
        added = xp.concat([added[..., None], _dispatch.zeros(xp, (*added.shape, d), y)], axis=3)
    H, gain = covariances.observation, covariances.gain
    transitions = _each_step(params["F"], T)
    # Rows without any observation so far, and a bound of the rounding of what delta adds to their means.
    unseen = xp.cumulative_sum(xp.astype(~xp.all(missing, axis=2), xp.int64), axis=0) == 0
    blind = int(_dispatch.to_numpy(xp.sum(xp.astype(xp.any(unseen, axis=1), xp.int64)))) if d else 0
    rounding = nothing = _dispatch.zeros(xp, (B, n, d), y)
    eps = float(xp.finfo(y.dtype).eps)
    means: list[Array] = []
    filtered_means: list[Array] = []
    innovations: list[Array] = []
    for t in range(T):
        innovation = observed[t, ...] - H[t, ...] @ mean
        filtered = mean + gain[t, ...] @ innovation
        means.append(mean)
        filtered_means.append(filtered)
        innovations.append(innovation)
        if t + 1 < T:
            mean = transitions[t] @ filtered
            if t < blind:
                # A product of F that is zero but for rounding has forgotten delta.
                rounding = xp.abs(transitions[t]) @ (rounding + n * eps * xp.abs(filtered[..., 1:]))
                forgotten = unseen[t, :, None, None] & (xp.abs(mean[..., 1:]) <= rounding)
                mean = xp.concat([mean[..., :1], xp.where(forgotten, nothing, mean[..., 1:])], axis=-1)
            if added is not None:
                mean = mean + added[t, ...]
    return xp.stack(means), xp.stack(filtered_means), xp.stack(innovations)


class Undetermined(ValueError):
    """The observations do not determine the diffuse states."""


def diffuse_moments(where: str, xp: Any, steps: Forward) -> Array:
    """E[(1, delta) (1, delta)^T] given all observations, (B, 1 + d, 1 + d).

    Raises
    ------
    Undetermined
    """
    information = steps.information[-1, ...]
    # What no later state depends on any more need not be known.
    known = _dispatch.to_numpy(diffuse.determined(xp, information, steps.filtered_mean[-1, ...]))
    if not known.all():
        row = f" of row {int(np.argmin(known))}" if len(known) > 1 else ""
        raise Undetermined(f"{where}: y{row} does not determine the diffuse states, expected more observations or a P0")
    return diffuse.moments(xp, information)


def log_likelihood(xp: Any, y: Array, steps: Forward) -> Array:
    """(), the sum over all sequences."""
    information = steps.information[-1, ...]
    squares = information[:, 0, 0]
    total = xp.zeros_like(squares)
    if information.shape[1] > 1:
        # The diffuse states are integrated over, which a regression does.
        explained = xp.sum(information[:, 1:, 0] * diffuse.moments(xp, information)[:, 1:, 0], axis=1)
        # Where squares overflow, so may what they explain.
        squares = xp.where(xp.isinf(squares), squares, squares + explained)
        total = diffuse.log_determinant(xp, information)
    count = xp.sum(xp.astype(~xp.isnan(y), y.dtype), axis=(0, 2))
    determinants = xp.sum(steps.covariances.log_determinant, axis=0)
    return xp.asarray(xp.sum(-(determinants + squares + count * math.log(2 * math.pi) + total) / 2))


@dataclass(frozen=True)
class Backward:
    """Gradients of the log-likelihood by the states' means, from the last step to the first, and their covariances."""

    r: Array
    """(T, B, n, 1 + d): the gradient by the predicted mean of the step after, zero at the last step."""
    N: Array
    """(T, b, n, n): its covariance."""
    filtered_r: Array
    """(T, B, n, 1 + d): r by the filtered mean, F^T r."""
    filtered_N: Array
    """(T, b, n, n): F^T N F."""
    first_r: Array
    """(B, n, 1 + d): by the first predicted mean."""
    first_N: Array


def backward(xp: Any, params: Parameters, steps: Forward) -> Backward:
    """The pass back."""
    covariances, T = steps.covariances, len(steps.number)
    H, gain, transitions = covariances.observation, covariances.gain, _each_step(params["F"], T)
    unit = xp.eye(H.shape[-1], dtype=H.dtype, device=_dispatch.device(H))
    rest = transpose(xp, unit - gain @ H)
    by_observation = transpose(xp, H) @ steps.weighted
    by_observation_N = transpose(xp, H) @ covariances.precision @ H
    r, N = xp.zeros_like(steps.mean[0, ...]), xp.zeros_like(covariances.filtered[0, ...])
    rs, Ns, numbers = [], [N], []
    converged = False
    for t in reversed(range(T)):
        rs.append(r)
        numbers.append(len(Ns) - 1)
        F = transitions[t]
        by_mean = transpose(xp, F)
        r = by_observation[t, ...] + rest[t, ...] @ (by_mean @ r)
        if not (converged and steps.number[t] == steps.number[t + 1]):
            after, N = N, by_mean @ N @ F
            N = symmetric(xp, by_observation_N[t, ...] + rest[t, ...] @ N @ transpose(xp, rest[t, ...]))
            Ns.append(N)
            repeats = t > 0 and steps.number[t - 1] == steps.number[t]
            converged = repeats and _differ_by_rounding(xp, N, after)
    every_r, every_N = xp.stack(rs[::-1]), _by_step(xp, Ns, np.array(numbers[::-1]))
    F = _over_time(params["F"], T)
    return Backward(every_r, every_N, transpose(xp, F) @ every_r, transpose(xp, F) @ every_N @ F, r, N)


def _each_step(parameter: Array, T: int) -> list[Array]:
    """F, H, Q or R of each step."""
    return [at(parameter, 0)] * T if parameter.ndim == 2 else [at(parameter, t) for t in range(T)]


def _over_time(parameter: Array, T: int) -> Array:
    """F, H, Q, R, B or D, to be broadcast against arrays (T, B, ...)."""
    return _arrays.contiguous(parameter if parameter.ndim == 2 else parameter[:T, None, ...])


def smoothed(xp: Any, steps: Forward, back: Backward) -> tuple[Array, Array]:
    """Means (T, B, n, 1 + d) and covariances (T, b, n, n) given all observations, for known delta."""
    P = steps.covariances.filtered
    return steps.filtered_mean + P @ back.filtered_r, symmetric(xp, P - P @ back.filtered_N @ P)


def smooth(where: str, xp: Any, params: Parameters, y: Array, u: Array | None = None) -> tuple[Array, Array]:
    """Means (T, B, n) and covariances (T, B, n, n) of the states given all observations."""
    steps = forward(where, xp, params, y, u)
    diffuse_moments(where, xp, steps)
    known_delta = smoothed(xp, steps, backward(xp, params, steps))
    return diffuse.known_marginal(xp, steps.information[-1:, ...], *known_delta)


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
        *diffuse.estimate(xp, done.information[-1, ...]),
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
    """By the names of the parameters."""
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
    missing, T = xp.isnan(y), y.shape[0]
    gain_T, P = transpose(xp, steps.covariances.gain), steps.covariances.filtered
    # The gradient by each observation, with its covariance.
    e = steps.weighted - gain_T @ back.filtered_r
    D = steps.covariances.precision + gain_T @ back.filtered_N @ steps.covariances.gain
    eM = e @ M
    dH = eM @ transpose(xp, x) - (gain_T - gain_T @ back.filtered_N @ P)
    dR = (eM @ transpose(xp, e) - D) / 2
    gone = missing[..., :, None]
    dH = xp.where(gone, xp.zeros_like(dH), dH)
    dR = xp.where(gone | missing[..., None, :], xp.zeros_like(dR), dR)
    # Past the last step there is no transition: r and N are zero there.
    curvature = back.r @ M @ transpose(xp, back.r) - back.N
    dF = back.r @ M @ transpose(xp, steps.filtered_mean) + curvature @ _over_time(params["F"], T) @ P
    # By the offsets of the states and of the observations.
    dadded, dy = (back.r @ M)[..., 0], xp.where(missing, xp.zeros_like(y), -eM[..., 0])
    gradients = {"F": dF, "H": dH, "Q": curvature / 2, "R": dR, "c": dadded, "d": -dy}
    du = None
    for name, by_offset in (("B", dadded), ("D", -dy)):
        if name in params and u is not None:
            gradients[name] = by_offset[..., None] * u[..., None, :]
            by_input = (transpose(xp, _over_time(params[name], T)) @ by_offset[..., None])[..., 0]
            du = by_input if du is None else du + by_input
    grads = {}
    for name, gradient in gradients.items():
        if name in params:
            each, parameter = xp.sum(gradient, axis=1), params[name]
            if not varies(params, name):
                grads[name] = xp.sum(each, axis=0)
            else:
                unused = _dispatch.zeros(xp, (parameter.shape[0] - T, *each.shape[1:]), each)
                grads[name] = xp.concat([each, unused], axis=0)
    finite = ~xp.isinf(xp.linalg.diagonal(params["P0"]))
    rM = back.first_r @ M
    dm0, dP0 = xp.sum(rM[:, :, 0], axis=0), xp.sum(rM @ transpose(xp, back.first_r) - back.first_N, axis=0) / 2
    grads["m0"] = xp.where(finite, dm0, xp.zeros_like(dm0))
    grads["P0"] = xp.where(finite[:, None] & finite[None, :], dP0, xp.zeros_like(dP0))
    moments = xp.sum(x @ M @ transpose(xp, x) + V, axis=1)
    every, but_last = xp.sum(moments, axis=0), xp.sum(moments[:-1, ...], axis=0)
    return Score(log_likelihood(xp, y, steps), dy, du, {name: grads[name] for name in params}, every, but_last)
