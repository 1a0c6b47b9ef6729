"""The linear-Gaussian state-space model: Kalman filter, smoother, likelihood, its gradient, and fits by both."""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ... import _arrays, _checks, _dispatch
from ..._contract import Array
from ..._op import Pullback
from ...layers.base import Layer
from .. import files
from ..base import not_finite

if TYPE_CHECKING:
    from typing_extensions import Self

_NAMES = ("F", "H", "Q", "R", "m0", "P0")
_COVARIANCES = ("Q", "R", "P0")


class Filtered(NamedTuple):
    """What `LinearGaussian.filter` finds, for y (T, B, p) or, without the axis B, for y (T, p)."""

    predicted_mean: Array
    """(T, B, n): of x_t given the observations before it, y_0, ..., y_{t-1}."""
    predicted_covariance: Array
    """(T, B, n, n)"""
    mean: Array
    """(T, B, n): of x_t given y_0, ..., y_t."""
    covariance: Array
    """(T, B, n, n)"""


class Smoothed(NamedTuple):
    """What `LinearGaussian.smooth` finds, for y (T, B, p) or, without the axis B, for y (T, p)."""

    mean: Array
    """(T, B, n): of x_t given all observations."""
    covariance: Array
    """(T, B, n, n)"""


class GaussianForecast(NamedTuple):
    """What `LinearGaussian.forecast` finds, for y (T, B, p) or, without the axis B, for y (T, p)."""

    mean: Array
    """(steps, B, p): of the observations y_T, ..., y_{T+steps-1} given all before them."""
    covariance: Array
    """(steps, B, p, p)"""
    state_mean: Array
    """(steps, B, n): of the states."""
    state_covariance: Array
    """(steps, B, n, n)"""

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """The lower and the upper end of what holds each number of each observation with probability ``level``.

        Parameters
        ----------
        level : float
            Between 0 and 1. It holds for each number alone: all at once are inside less often.

        Returns
        -------
        low, high : (steps, B, p) arrays
            mean -+ z std, with z the normal distribution's quantile of (1 + level) / 2.

        Raises
        ------
        TypeError, ValueError
            ``level`` is no number, or not between 0 and 1.
        """
        where = "GaussianForecast.interval"
        level = _checks.positive(where, "level", _checks.fraction(where, "level", level))
        xp = _dispatch.namespace(where, mean=self.mean)
        half = statistics.NormalDist().inv_cdf((1 + level) / 2) * xp.sqrt(_diagonal(xp, self.covariance))
        return self.mean - half, self.mean + half


@dataclass
class _Steps:
    """A pass of the filter: what the pass back over the steps needs of each of them, in order.

    Where initial states are diffuse, x_0 = m0 + E delta + N(0, P) with an unknown delta (B, d). All means are then
    matrices of 1 + d columns, the mean for delta = 0 and what delta adds to it: they are read times (1, delta). A
    complete pass counts delta from its estimate given all observations; see `_centre`.
    """

    mean: list[Array] = field(default_factory=list)
    """(B, n, 1 + d): predicted."""
    covariance: list[Array] = field(default_factory=list)
    filtered_mean: list[Array] = field(default_factory=list)
    filtered_covariance: list[Array] = field(default_factory=list)
    innovation: list[Array] = field(default_factory=list)
    """(B, p, 1 + d): v = y - H times the predicted mean."""
    weighed: list[Array] = field(default_factory=list)
    """(B, p, 1 + d): S^-1 v, of the innovation v and its covariance S."""
    precision: list[Array] = field(default_factory=list)
    """(B, p, p): S^-1."""
    gain: list[Array] = field(default_factory=list)
    """(B, n, p): K = P H^T S^-1."""
    observation: list[Array] = field(default_factory=list)
    """(B, p, n): H, zero in the rows of what is missing."""
    information: list[Array] = field(default_factory=list)
    """(B, 1 + d, 1 + d): the sum of v^T S^-1 v up to the step, itself included."""
    log_determinant: Any = 0.0
    """(B,): the sum of log |S|."""


def _transpose(xp: Any, array: Array) -> Array:
    return xp.matrix_transpose(array)


def _symmetric(xp: Any, array: Array) -> Array:
    return (array + xp.matrix_transpose(array)) / 2


def _diagonal(xp: Any, array: Array) -> Array:
    """The diagonal of each matrix."""
    return xp.linalg.diagonal(array)


def _at(parameter: Array, t: int, ndim: int = 2) -> Array:
    """A parameter's value at step t, whether it varies or not."""
    return _arrays.contiguous(parameter if parameter.ndim == ndim else parameter[t, ...])


class LinearGaussian(Layer):
    """Linear-Gaussian state-space model: x_{t+1} = F_t x_t + N(0, Q_t), y_t = H_t x_t + N(0, R_t), x_0 ~ N(m0, P0).

    A call gives the log-likelihood of observations, and `vjp` its exact gradient. NaN among the observations are
    missing ones, whole or in part. Covariances are updated in Joseph's form and kept symmetric.

    Parameters
    ----------
    F : (n, n) or (time, n, n) array
        The transition from step t to step t + 1. With an axis of time it holds at least as many steps as there are
        observations, and for forecasts the steps ahead as well; so do H, Q and R.
    H : (p, n) or (time, p, n) array
        What is observed of the state.
    Q : (n, n) or (time, n, n) array
        Covariance of the transition's noise; it may be singular.
    R : (p, p) or (time, p, p) array
        Covariance of the observations' noise; it may be singular.
    m0 : (n,) array, optional
        Mean of the state at the first observation; zero by default.
    P0 : (n, n) array, optional
        Its covariance. `inf` on the diagonal makes a state diffuse: nothing is known of it before the observations. The
        rest of its row and column is zero. By default all states are diffuse.

    Attributes
    ----------
    params : dict of str to array
        F, H, Q, R, m0 and P0.

    Raises
    ------
    TypeError, ValueError
        Unsupported or mixed arrays or dtypes; shapes that do not fit; a covariance that is not symmetric or has a
        negative eigenvalue.

    Notes
    -----
    Diffuse states are exact, the limit of large variances and no large variance: the filter runs for each of them
    beside the mean, and what the observations say of them is a regression (de Jong 1991). All is then counted from its
    estimate, so that observations far from zero cost no digits but their own. The log-likelihood is the limit of log
    p(y) + (d/2) log(variance) with d diffuse states, as Durbin and Koopman define it. The smoother inverts no
    covariance of states, so that these may be singular (de Jong 1989); its results are those of Rauch, Tung and
    Striebel's.

    References
    ----------
    R. E. Kalman, "A new approach to linear filtering and prediction problems", Journal of Basic Engineering 82 (1960);
    J. Durbin, S. J. Koopman, "Time series analysis by state space methods", 2nd ed. (2012), chapters 4, 5 and 7;
    P. de Jong, "The diffuse Kalman filter", Annals of Statistics 19 (1991).

    Examples
    --------
    A level that wanders, seen through noise:

    >>> import numpy as np
    >>> import gpurnn
    >>> rng = np.random.default_rng(0)
    >>> y = (np.cumsum(rng.normal(0, 0.5, 200)) + rng.normal(0, 2, 200))[:, None]
    >>> y[50:60] = np.nan
    >>> one = np.ones((1, 1))
    >>> model = gpurnn.LinearGaussian(F=one, H=one, Q=one, R=one)
    >>> gained = model.fit(y)
    >>> bool(gained[-1] > gained[0])
    True
    >>> level, variance = model.smooth(y)
    >>> level.shape, variance.shape
    ((200, 1), (200, 1, 1))
    >>> low, high = model.forecast(y, 5).interval(0.9)
    >>> bool(np.all(np.diff(high - low, axis=0) > 0))
    True
    """

    def __init__(
        self, F: Array, H: Array, Q: Array, R: Array, m0: Array | None = None, P0: Array | None = None
    ) -> None:
        where = "LinearGaussian"
        xp, F, H, Q, R, m0, P0 = _arrays.take(
            where, {"F": F, "H": H, "Q": Q, "R": R, "m0": m0, "P0": P0}, needed=("F", "H", "Q", "R")
        )
        for name, array, symbols in (("F", F, "(n, n)"), ("H", H, "(p, n)"), ("Q", Q, "(n, n)"), ("R", R, "(p, p)")):
            if array.ndim not in (2, 3):
                raise ValueError(
                    f"{where}: {name} has shape {tuple(array.shape)}, expected {symbols}, or a first axis of time too"
                )
        p, n = H.shape[-2:]
        if p < 1 or n < 1:
            raise ValueError(f"{where}: H has shape {tuple(H.shape)}, expected p and n of at least 1 in (p, n)")
        for name, array, shape, symbols in (
            ("F", F, (n, n), "(n, n)"), ("Q", Q, (n, n), "(n, n)"), ("R", R, (p, p), "(p, p)"),
        ):  # fmt: skip
            _checks.shape(where, name, array, (*array.shape[:-2], *shape), f"{symbols} at its end")
        if m0 is None:
            m0 = _dispatch.zeros(xp, (n,), F)
        if P0 is None:
            unit = xp.eye(n, dtype=F.dtype, device=_dispatch.device(F))
            P0 = xp.where(unit == 1, xp.full_like(unit, math.inf), xp.zeros_like(unit))
        _checks.shape(where, "m0", m0, (n,), "(n,)")
        _checks.shape(where, "P0", P0, (n, n), "(n, n)")
        given = dict(zip(_NAMES, (F, H, Q, R, m0, P0), strict=True))
        for name, array in given.items():
            held = _dispatch.to_numpy(array)
            if name in _COVARIANCES:
                _check_covariance(where, name, held)
            elif not np.isfinite(held).all():
                raise ValueError(f"{where}: {name} holds NaN or infinity, expected finite numbers")
        self.params = {name: xp.asarray(array, copy=True) for name, array in given.items()}
        self._sizes = {"F": (n, n), "H": (p, n), "Q": (n, n), "R": (p, p), "m0": (n,), "P0": (n, n)}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        files.register(cls)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The model that `save` wrote to ``path``.

        Raises
        ------
        FileFormatError
            The file is damaged or holds something else. A `ValueError`.
        TypeError, ValueError
            ``path`` is no path.
        OSError
            The file does not exist or cannot be read.
        """
        model: Self = files.read(f"{cls.__name__}.from_file", path, cls)
        return model

    @classmethod
    def _restored(cls, config: dict[str, Any], parameters: dict[str, np.ndarray[Any, Any]]) -> Self:
        return cls(**config, **parameters)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole model to a safetensors file, as `Model.save` does."""
        files.write(path, self, {})

    def _describe(self) -> str:
        p, n = self.params["H"].shape[-2:]
        varying = [name for name in "FHQR" if self.params[name].ndim == 3]
        told = [f"state_size={n}", f"observation_size={p}", *([f"varying={'+'.join(varying)}"] if varying else [])]
        return ", ".join([*told, f"diffuse={len(self._diffuse())}"])

    def _diffuse(self) -> list[int]:
        """Which states are diffuse."""
        return [int(k) for k in np.flatnonzero(np.isinf(np.diagonal(_dispatch.to_numpy(self.params["P0"]))))]

    def _check_parameters(self, where: str) -> None:
        """Reject parameters that a caller has replaced, or changed, so that they are none of this model."""
        named = {f"params[{name!r}]": self.params[name] for name in _NAMES}
        xp, *_ = _arrays.take(where, named, needed=tuple(named))
        for (name, size), p in zip(self._sizes.items(), named.values(), strict=True):
            own = f"params[{name!r}]"
            steps = p.shape[:1] if name in "FHQR" and p.ndim == 3 else ()
            _checks.shape(where, own, p, (*steps, *size), "the shape that the model was made with")
            bad = ~xp.isfinite(p)
            if name == "P0":  # a diffuse state
                bad = bad & ~((p == math.inf) & (xp.eye(size[0], device=_dispatch.device(p)) == 1))
            if bool(_dispatch.to_numpy(xp.any(bad))):
                raise FloatingPointError(f"{where}: {own} holds NaN or infinity, expected finite numbers")

    # The passes over time

    def _observations(self, where: str, y: Array, ahead: int = 0) -> tuple[Any, Array]:
        """The namespace, and y (T, B, p) of y as a caller has it; refuse what does not fit."""
        self._check_parameters(where)
        xp, _, y = _arrays.take(where, {"params": self.params["F"], "y": y}, needed=("y",), nan_is_missing=True)
        p = self.params["H"].shape[-2]
        if y.ndim not in (2, 3) or y.shape[-1] != p or y.shape[0] < 1:
            raise ValueError(f"{where}: y has shape {tuple(y.shape)}, expected (T, p) or (T, B, p) with p = {p}, T > 0")
        for name in "FHQR":
            parameter = self.params[name]
            if parameter.ndim == 3 and parameter.shape[0] < y.shape[0] + ahead:
                steps = f"T + steps = {y.shape[0] + ahead}" if ahead else f"T = {y.shape[0]}"
                raise ValueError(f"{where}: {name} has {parameter.shape[0]} steps, expected at least {steps}")
        if _dispatch.to_numpy(xp.any(xp.isinf(y))):
            raise ValueError(f"{where}: y holds infinity, expected finite numbers, or NaN for what is missing")
        return xp, xp.expand_dims(y, axis=1) if y.ndim == 2 else y

    def _initial(self, xp: Any, B: int) -> tuple[Array, Array]:
        """The predicted mean (B, n, 1 + d) and covariance (B, n, n) at the first step."""
        m0, P0, Q, R = (self.params[name] for name in ("m0", "P0", "Q", "R"))
        n = m0.shape[0]
        unit = xp.eye(n, dtype=m0.dtype, device=_dispatch.device(m0))
        columns = [xp.reshape(m0, (n, 1)), *(unit[:, k : k + 1] for k in self._diffuse())]
        # A finite variance added to an infinite one changes nothing but the conditioning, best at the noises' size.
        size = sum(xp.mean(_diagonal(xp, noise)) for noise in (Q, R))
        size = xp.where(size > 0, size, xp.ones_like(size))
        covariance = xp.where(xp.isinf(P0), unit * size, P0)
        zero = _dispatch.zeros(xp, (B, 1, 1), m0)
        return xp.expand_dims(xp.concat(columns, axis=1), axis=0) + zero, covariance + zero

    def _advance(self, xp: Any, t: int, mean: Array, covariance: Array) -> tuple[Array, Array]:
        """From the mean and covariance of the state at step t to those predicted of the next."""
        F, Q = _at(self.params["F"], t), _at(self.params["Q"], t)
        return F @ mean, _symmetric(xp, F @ covariance @ _transpose(xp, F)) + Q

    def _forward(self, where: str, xp: Any, y: Array) -> _Steps:
        """The filter, its means centred on what all observations say of the diffuse states."""
        steps, (mean, covariance) = _Steps(), self._initial(xp, y.shape[1])
        T, B, p = y.shape
        missing = xp.isnan(y)
        some_missing = bool(_dispatch.to_numpy(xp.any(missing)))
        y = xp.where(missing, xp.zeros_like(y), y)
        columns, n = mean.shape[2], mean.shape[1]
        unit_p = xp.eye(p, dtype=y.dtype, device=_dispatch.device(y))
        unit_n = xp.eye(n, dtype=y.dtype, device=_dispatch.device(y))
        nothing, rounding = (_dispatch.zeros(xp, (B, k, columns - 1), y) for k in (p, n))
        nothing_known = rounding
        # Rows that have had no observation yet, and a bound of the rounding of what delta adds to their means.
        unseen = xp.ones_like(missing[0, :, :1, None]) if some_missing and columns > 1 else None
        eps = float(xp.finfo(y.dtype).eps)
        none = _dispatch.zeros(xp, (B, 1, 1), y)
        log_determinants: list[Array] = []
        for t in range(T):
            H, R = _at(self.params["H"], t) + none, _at(self.params["R"], t) + none
            if some_missing:
                # A missing observation reads nothing of the state, and its noise has variance 1 and is 0.
                gone = missing[t, ...]
                H = xp.where(gone[:, :, None], xp.zeros_like(H), H)
                R = xp.where(xp.logical_or(gone[:, :, None], gone[:, None, :]), unit_p + none, R)
            innovation = xp.concat([y[t, ...][:, :, None], nothing], axis=2) - H @ mean
            cross = covariance @ _transpose(xp, H)
            S = _symmetric(xp, H @ cross + R)
            sign, log_determinant = xp.linalg.slogdet(S)
            # One that is not positive definite is replaced, and refused at the end: libraries differ in what inv does.
            log_determinants.append(xp.where(sign > 0, log_determinant, xp.full_like(log_determinant, math.nan)))
            definite = xp.isfinite(log_determinants[-1])[:, None, None]
            precision = _symmetric(xp, xp.linalg.inv(xp.where(definite, S, unit_p + none)))
            gain = cross @ precision
            rest = unit_n - gain @ H
            steps.mean.append(mean)
            steps.covariance.append(covariance)
            steps.observation.append(H)
            steps.innovation.append(innovation)
            steps.precision.append(precision)
            steps.gain.append(gain)
            mean = mean + gain @ innovation
            covariance = _symmetric(xp, rest @ covariance @ _transpose(xp, rest) + gain @ R @ _transpose(xp, gain))
            steps.filtered_mean.append(mean)
            steps.filtered_covariance.append(covariance)
            if t + 1 < T:
                spread = mean[..., 1:]
                mean, covariance = self._advance(xp, t, mean, covariance)
                if unseen is not None:
                    # A product of F that is zero but for rounding has forgotten delta.
                    unseen = xp.logical_and(unseen, xp.all(missing[t, ...], axis=1)[:, None, None])
                    rounding = xp.abs(_at(self.params["F"], t)) @ (rounding + n * eps * xp.abs(spread))
                    forgotten = xp.logical_and(unseen, xp.abs(mean[..., 1:]) <= rounding)
                    mean = xp.concat([mean[..., :1], xp.where(forgotten, nothing_known, mean[..., 1:])], axis=-1)
        each = xp.stack(log_determinants)
        indefinite = np.argwhere(~np.isfinite(_dispatch.to_numpy(each)))
        if len(indefinite):
            step, row = indefinite[0]
            raise ValueError(
                f"{where}: H P H^T + R of step {step}{f' of row {row}' if B > 1 else ''} is not positive definite, P "
                "being the covariance of the state given the observations before it; expected a larger R, or Q or P0"
            )
        steps.log_determinant = xp.sum(each, axis=0)
        _centre(xp, steps)
        return steps

    def _diffuse_moments(self, where: str, xp: Any, steps: _Steps) -> Array:
        """E[(1, delta) (1, delta)^T] given all observations, (B, 1 + d, 1 + d)."""
        information = steps.information[-1]
        # What no later state depends on any more need not be known.
        known = _dispatch.to_numpy(_determined(xp, information, steps.filtered_mean[-1]))
        if not known.all():
            row = f" of row {int(np.argmin(known))}" if len(known) > 1 else ""
            raise ValueError(
                f"{where}: y{row} does not determine the diffuse states, expected more observations or a P0"
            )
        return _moments(xp, information)

    def _log_likelihood(self, xp: Any, y: Array, steps: _Steps) -> Array:
        """(B,), the log-likelihood of each sequence."""
        information = steps.information[-1]
        squares = information[:, 0, 0]
        total = xp.zeros_like(squares)
        if information.shape[1] > 1:
            # The diffuse states are integrated over, which a regression does.
            explained = xp.sum(information[:, 1:, 0] * _moments(xp, information)[:, 1:, 0], axis=1)
            # Where squares overflow, so may what they explain.
            squares = xp.where(xp.isinf(squares), squares, squares + explained)
            total = _log_determinant(xp, information[:, 1:, 1:])
        count = xp.sum(xp.astype(~xp.isnan(y), y.dtype), axis=(0, 2))
        return -(steps.log_determinant + squares + count * math.log(2 * math.pi) + total) / 2

    def _backward(self, xp: Any, steps: _Steps, moments: Array, visit: Callable[..., None]) -> tuple[Array, Array]:
        """The pass back: ``visit(t, e, D, r, N, x, V)`` at each step, from the last to the first.

        r (B, n, 1 + d) and N are the gradient of the log-likelihood by the mean that step t leaves to t + 1, and its
        covariance; e and D the same for the observation at t; x and V the smoothed mean and covariance for known delta.
        Returned are r and N of the first predicted state.
        """
        r, N = xp.zeros_like(steps.mean[0]), xp.zeros_like(steps.covariance[0])
        unit = xp.eye(N.shape[-1], dtype=N.dtype, device=_dispatch.device(N))
        for t in reversed(range(len(steps.mean))):
            after = r, N
            if t + 1 < len(steps.mean):
                F = _at(self.params["F"], t)
                r, N = _transpose(xp, F) @ r, _transpose(xp, F) @ N @ F
            gain, H = steps.gain[t], steps.observation[t]
            P, back = steps.filtered_covariance[t], _transpose(xp, gain)
            visit(
                t, steps.weighed[t] - back @ r, steps.precision[t] + back @ N @ gain, *after,
                steps.filtered_mean[t] + P @ r, _symmetric(xp, P - P @ N @ P), back - back @ N @ P,
            )  # fmt: skip
            rest = unit - gain @ H
            r = _transpose(xp, H) @ steps.weighed[t] + _transpose(xp, rest) @ r
            N = _symmetric(xp, _transpose(xp, H) @ steps.precision[t] @ H + _transpose(xp, rest) @ N @ rest)
        return r, N

    # What it is for

    def __call__(self, y: Array) -> Array:
        """The log-likelihood of observations, in nats, summed over all sequences: a () array.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            A sequence or several, of the dtype of the parameters. NaN is missing.

        Raises
        ------
        TypeError, ValueError
            An unsupported or mixed array or dtype, a shape that does not fit, infinity in y, observations that do not
            determine the diffuse states, or one without any variance given those before it; parameters that a caller
            replaced by what is none of this model.
        FloatingPointError
            A parameter is NaN or infinite.
        """
        where = "LinearGaussian"
        xp, y = self._observations(where, y)
        steps = self._forward(where, xp, y)
        self._diffuse_moments(where, xp, steps)
        return xp.asarray(xp.sum(self._log_likelihood(xp, y, steps)))

    log_likelihood = __call__

    def vjp(self, y: Array) -> tuple[Array, Pullback]:
        """``(log_likelihood, pullback)``, with ``pullback(dvalue)`` returning ``(dy, grads)``.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.

        Returns
        -------
        log_likelihood : () array
            What a call returns.
        pullback : callable
            From the gradient by the log-likelihood, a number or a () array (None for zero), to ``dy`` of the shape of y
            and the gradients of F, H, Q, R, m0 and P0 by name. ``pullback(1.0)`` is the score, exact. The gradients of
            the covariances are symmetric. Those of what is diffuse, in m0 and P0, and of missing observations are zero.

        Raises
        ------
        TypeError, ValueError
            As a call.

        References
        ----------
        S. J. Koopman, N. Shephard, "Exact score for time series models in state space form", Biometrika 79 (1992).

        Examples
        --------
        One state, N(0, 1), seen once with a noise of variance 3:

        >>> import numpy as np
        >>> import gpurnn
        >>> one = np.ones((1, 1))
        >>> model = gpurnn.LinearGaussian(F=one, H=one, Q=one, R=3 * one, P0=one)
        >>> value, pullback = model.vjp(np.array([[2.0]]))
        >>> dy, grads = pullback(1.0)
        >>> grads["m0"], dy
        (array([0.5]), array([[-0.5]]))
        """
        value, dy, grads, _ = self._score("LinearGaussian", y)
        xp, shape = _dispatch.namespace("LinearGaussian", y=y), y.shape

        def pullback(dvalue: Array | float | None) -> tuple[Array, dict[str, Array]]:
            if isinstance(dvalue, (int, float)):
                dvalue = float(dvalue)
            else:
                dvalue = _arrays.cotangent("LinearGaussian", "value", dvalue, value)
            dvalue = 0.0 if dvalue is None else dvalue
            return xp.reshape(dy, shape) * dvalue, {name: g * dvalue for name, g in grads.items()}

        return value, pullback

    def _score(self, where: str, y: Array) -> tuple[Array, Array, dict[str, Array], tuple[Array, Array]]:
        """The log-likelihood, its gradients, and the sums of E[x x^T] over all steps, and over all but the last."""
        xp, y = self._observations(where, y)
        steps = self._forward(where, xp, y)
        M = self._diffuse_moments(where, xp, steps)
        sums = {name: [] for name in "FHQR"}  # type: dict[str, list[Array]]
        squares: list[Array] = []
        dy: list[Array] = []
        missing = xp.isnan(y)

        def visit(t: int, e: Array, D: Array, r: Array, N: Array, x: Array, V: Array, G: Array) -> None:
            gone = missing[t, ...]
            eM = e @ M
            dH, dR = eM @ _transpose(xp, x) - G, (eM @ _transpose(xp, e) - D) / 2
            dH = xp.where(gone[:, :, None], xp.zeros_like(dH), dH)
            dR = xp.where(xp.logical_or(gone[:, :, None], gone[:, None, :]), xp.zeros_like(dR), dR)
            # Past the last step there is no transition.
            curvature = r @ M @ _transpose(xp, r) - N
            mean, covariance = steps.filtered_mean[t], steps.filtered_covariance[t]
            dF = r @ M @ _transpose(xp, mean) + curvature @ _at(self.params["F"], t) @ covariance
            for name, gradient in (("F", dF), ("H", dH), ("Q", curvature / 2), ("R", dR)):
                sums[name].append(xp.sum(gradient, axis=0))
            squares.append(xp.sum(x @ M @ _transpose(xp, x) + V, axis=0))
            dy.append(xp.where(gone, xp.zeros_like(y[t, ...]), -eM[:, :, 0]))

        r, N = self._backward(xp, steps, M, visit)
        finite = ~xp.isinf(_diagonal(xp, self.params["P0"]))
        both = xp.logical_and(finite[:, None], finite[None, :])
        rM = r @ M
        dm0, dP0 = xp.sum(rM[:, :, 0], axis=0), xp.sum(rM @ _transpose(xp, r) - N, axis=0) / 2
        grads = {
            "m0": xp.where(finite, dm0, xp.zeros_like(dm0)),
            "P0": xp.where(both, dP0, xp.zeros_like(dP0)),
        }
        for name, parts in sums.items():
            each = xp.stack(parts[::-1])
            parameter = self.params[name]
            if parameter.ndim == 2:
                grads[name] = xp.sum(each, axis=0)
            else:
                unused = _dispatch.zeros(xp, (parameter.shape[0] - each.shape[0], *each.shape[1:]), each)
                grads[name] = xp.concat([each, unused], axis=0)
        whole = xp.sum(xp.stack(squares), axis=0)
        value = xp.asarray(xp.sum(self._log_likelihood(xp, y, steps)))
        # Steps are visited from the last to the first.
        return value, xp.stack(dy[::-1]), {name: grads[name] for name in _NAMES}, (whole, whole - squares[0])

    def filter(self, y: Array) -> Filtered:
        """The Kalman filter: the distribution of each state given the observations so far.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.

        Returns
        -------
        Filtered
            Means and covariances, predicted and filtered. They are NaN where a state depends on a diffuse one that the
            observations so far do not determine.

        Raises
        ------
        TypeError, ValueError
            As a call, but for what the observations do not determine.

        Examples
        --------
        A level that wanders, nothing being known of it before the first observation; the second is missing:

        >>> import numpy as np
        >>> import gpurnn
        >>> one = np.ones((1, 1))
        >>> level = gpurnn.LinearGaussian(F=one, H=one, Q=one, R=2 * one)
        >>> filtered = level.filter(np.array([[5.0], [np.nan], [9.0]]))
        >>> filtered.mean[:, 0].round(3), filtered.covariance[:, 0, 0].round(3)
        (array([5.   , 5.   , 7.667]), array([2.   , 3.   , 1.333]))
        """
        single = y.ndim == 2 if hasattr(y, "ndim") else False
        where = "LinearGaussian.filter"
        xp, y = self._observations(where, y)
        steps = self._forward(where, xp, y)
        before = [xp.zeros_like(steps.information[0]), *steps.information[:-1]]
        results: list[Array] = []
        for each in (
            (before, steps.mean, steps.covariance),
            (steps.information, steps.filtered_mean, steps.filtered_covariance),
        ):
            results += _known_marginal(xp, *(xp.stack(parts) for parts in each))
        return Filtered(*_squeezed(results, single))

    def smooth(self, y: Array) -> Smoothed:
        """The fixed-interval smoother: the distribution of each state given all observations.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.

        Returns
        -------
        Smoothed
            Means and covariances; those that Rauch, Tung and Striebel's smoother gives. They are NaN where a state
            depends on a diffuse one that the observations do not determine, before it was forgotten.

        Raises
        ------
        TypeError, ValueError
            As a call.
        """
        single = y.ndim == 2 if hasattr(y, "ndim") else False
        where = "LinearGaussian.smooth"
        xp, y = self._observations(where, y)
        steps = self._forward(where, xp, y)
        M = self._diffuse_moments(where, xp, steps)
        means: list[Array] = []
        covariances: list[Array] = []

        def visit(t: int, e: Array, D: Array, r: Array, N: Array, x: Array, V: Array, G: Array) -> None:
            means.append(x)
            covariances.append(V)

        self._backward(xp, steps, M, visit)
        information = steps.information[-1] + xp.zeros_like(xp.stack(steps.information))
        found = _known_marginal(xp, information, xp.stack(means[::-1]), xp.stack(covariances[::-1]))
        return Smoothed(*_squeezed(found, single))

    def forecast(self, y: Array, steps: int) -> GaussianForecast:
        """The distribution of the observations that follow ``y``.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.
        steps : int
            How many observations ahead.

        Returns
        -------
        GaussianForecast
            Means and covariances of observations and states; ``interval(level)`` gives the bounds of an interval.

        Raises
        ------
        TypeError, ValueError
            As a call; ``steps`` is no integer of at least 1, or a parameter that varies with time has too few of them.
        FloatingPointError
            A parameter is NaN or infinite, or the forecasts overflow.

        Examples
        --------
        A straight line through points of variance 1, as of ordinary least squares:

        >>> import numpy as np
        >>> import gpurnn
        >>> F, H = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]])
        >>> line = gpurnn.LinearGaussian(F, H, Q=np.zeros((2, 2)), R=np.eye(1))
        >>> ahead = line.forecast(np.array([[1.0], [2.0], [3.0], [4.0]]), 2)
        >>> ahead.mean[:, 0].round(6), ahead.covariance[:, 0, 0].round(6)
        (array([5., 6.]), array([2.5, 3.7]))
        """
        where = "LinearGaussian.forecast"
        steps = _checks.integer_at_least(where, "steps", steps, 1)
        single = y.ndim == 2 if hasattr(y, "ndim") else False
        xp, y = self._observations(where, y, steps)
        done, T = self._forward(where, xp, y), y.shape[0]
        self._diffuse_moments(where, xp, done)
        delta = _estimate(xp, done.information[-1])
        mean, covariance = _marginal(xp, done.filtered_mean[-1], done.filtered_covariance[-1], *delta)
        mean = mean[..., None]
        results: list[list[Array]] = [[], [], [], []]
        for t in range(T, T + steps):
            mean, covariance = self._advance(xp, t - 1, mean, covariance)
            H = _at(self.params["H"], t)
            seen = _symmetric(xp, H @ covariance @ _transpose(xp, H)) + _at(self.params["R"], t)
            for into, found in zip(results, ((H @ mean)[..., 0], seen, mean[..., 0], covariance), strict=True):
                into.append(found)
        whole = [xp.stack(each) for each in results]
        if not all(bool(_dispatch.to_numpy(xp.all(xp.isfinite(array)))) for array in whole):
            raise not_finite(where, "the forecasts", {})  # parameters and observations have been checked
        return GaussianForecast(*_squeezed(whole, single))

    # Fitting

    def fit(
        self,
        y: Array,
        parameters: tuple[str, ...] = ("Q", "R"),
        *,
        method: Literal["bfgs", "em"] = "bfgs",
        diagonal: bool = True,
        iterations: int = 200,
        tolerance: float = 1e-9,
    ) -> np.ndarray[Any, Any]:
        """Fit parameters to observations by maximum likelihood, from where they are; they are changed in place.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.
        parameters : tuple of {"F", "H", "Q", "R", "m0", "P0"}
            Which to fit, with no axis of time; all their entries, but see ``diagonal``. What is diffuse stays so.
        method : {"bfgs", "em"}
            The quasi-Newton method of Broyden, Fletcher, Goldfarb and Shanno on the exact gradient, or expectation
            maximisation, which never lowers the likelihood but may need many more iterations. The former begins, and
            confirms its end, with the Hessian, from a further gradient for each number that is fitted.
        diagonal : bool
            Whether only the diagonals of Q, R and P0 are fitted, the other entries being zero. A variance of zero stays
            zero. Without it, a singular covariance keeps its null space.
        iterations : int
            The most of them.
        tolerance : float
            The fit ends when the log-likelihood gains less than this, for each number observed.

        Returns
        -------
        log_likelihoods : (iterations + 1,) array of float64
            Before the first iteration and after each; fewer where the fit ends sooner.

        Raises
        ------
        TypeError, ValueError
            What a call refuses; a name, a method or a number that is out of range; a parameter that varies with time,
            or a covariance that is not diagonal, with ``diagonal``; an iteration that leads to where there is no
            likelihood, as EM may where it is without bounds. Then the parameters are those before that iteration.

        References
        ----------
        R. H. Shumway, D. S. Stoffer, "An approach to time series smoothing and forecasting using the EM algorithm",
        Journal of Time Series Analysis 3 (1982); J. Durbin, S. J. Koopman (2012), section 7.3.
        """
        where = "LinearGaussian.fit"
        method = _checks.choice(where, "method", method, ("bfgs", "em"))
        diagonal = _checks.flag(where, "diagonal", diagonal)
        iterations = _checks.integer_at_least(where, "iterations", iterations, 0)
        tolerance = _checks.non_negative(where, "tolerance", tolerance)
        if not isinstance(parameters, (tuple, list)) or not parameters:
            raise TypeError(f"{where}: parameters is {parameters!r}, expected a tuple of names")
        for name in parameters:
            _checks.choice(where, "parameters", name, _NAMES)
        xp, observed = self._observations(where, y)
        for name in parameters:
            _checks.writable(where, f"params[{name!r}]", self.params[name])
            if self.params[name].ndim == 3:
                raise ValueError(f"{where}: {name} varies with time, expected one to fit that does not")
            if diagonal and name in _COVARIANCES:
                held = _dispatch.to_numpy(self.params[name])
                if np.any(held[~np.eye(len(held), dtype=bool)]):
                    raise ValueError(f"{where}: {name} is not diagonal, expected a diagonal, or diagonal=False")
        count = max(int(_dispatch.to_numpy(xp.sum(xp.astype(~xp.isnan(observed), xp.int64)))), 1)
        run = self._em if method == "em" else self._bfgs
        values: list[float] = []
        kept = self._host(self.params)
        try:
            # What overflows is no maximum.
            with np.errstate(over="ignore", invalid="ignore"):
                for value in itertools.islice(run(observed, parameters, diagonal, count, tolerance), iterations + 1):
                    if not math.isfinite(value):
                        raise ValueError(
                            f"{where}: the log-likelihood of y is {value}, expected a finite number; y may hold a "
                            "filler for what is missing, NaN is expected there"
                        )
                    values.append(value)
                    kept = self._host(self.params)
        except ValueError as error:
            self._set(kept)
            if not values:
                raise
            raise ValueError(
                f"{where}: iteration {len(values)} failed, and the parameters are those before it: "
                f"{str(error).removeprefix(f'{where}: ')}"
            ) from error
        return np.array(values)

    def _set(self, values: dict[str, np.ndarray[Any, Any]]) -> None:
        for name, value in values.items():
            p = self.params[name]
            cast = value.astype(_checks.dtype_name(p))
            if not np.array_equal(np.isfinite(cast), np.isfinite(_dispatch.to_numpy(p))):
                raise ValueError(f"LinearGaussian.fit: {name} is not finite")
            xp = _dispatch.namespace("LinearGaussian.fit", params=p)
            p[...] = _dispatch.from_numpy(xp, cast)

    def _host(self, arrays: dict[str, Array]) -> dict[str, np.ndarray[Any, Any]]:
        """Copies in float64, in NumPy."""
        return {name: np.array(_dispatch.to_numpy(a), np.float64) for name, a in arrays.items()}

    def _em(
        self, y: Array, parameters: tuple[str, ...], diagonal: bool, count: int, tolerance: float
    ) -> Iterator[float]:
        """The log-likelihoods of expectation maximisation.

        The expectations follow from the score, which is that of the complete data: summed over n steps, E[w w^T] is
        n Q + 2 Q (dL/dQ) Q and E[w x^T] is Q dL/dF; R and H likewise.
        """
        T, B = y.shape[:2]
        value, _, grads, squares = self._score("LinearGaussian.fit", y)
        before, now = -math.inf, float(_dispatch.to_numpy(value))
        yield now
        while now - before > tolerance * count:
            p, g = self._host(self.params), self._host(grads)
            everywhere, but_last = (np.array(_dispatch.to_numpy(s), np.float64) for s in squares)
            new: dict[str, np.ndarray[Any, Any]] = {}
            for matrix, noise, steps, moment in (("F", "Q", (T - 1) * B, but_last), ("H", "R", T * B, everywhere)):
                if steps == 0:
                    continue
                covariance = p[noise] + 2 * p[noise] @ g[noise] @ p[noise] / steps
                if matrix in parameters:
                    change = np.linalg.solve(moment, (p[noise] @ g[matrix]).T).T
                    new[matrix] = p[matrix] + change
                    covariance -= change @ moment @ change.T / steps
                if noise in parameters:
                    new[noise] = (covariance + covariance.T) / 2
            finite = np.where(np.isinf(p["P0"]), 0, p["P0"])
            shift = finite @ g["m0"] / B
            if "m0" in parameters:
                new["m0"] = p["m0"] + shift
            if "P0" in parameters:
                # The sum of all sequences' second moments about the mean that is kept.
                second = 2 * finite @ g["P0"] @ finite / B
                second -= np.outer(shift, shift) if "m0" in parameters else 0
                new["P0"] = p["P0"] + second
            for name in _COVARIANCES:
                if diagonal and name in new:
                    new[name] = np.where(np.eye(len(new[name]), dtype=bool), new[name], 0)
            self._set(new)
            value, _, grads, squares = self._score("LinearGaussian.fit", y)
            before, now = now, float(_dispatch.to_numpy(value))
            yield now

    def _free(self, name: str, diagonal: bool) -> np.ndarray[Any, Any]:
        """Which entries of a parameter BFGS varies; of a covariance's root, the lower triangle."""
        free = np.ones(self.params[name].shape, bool)
        if name in ("m0", "P0"):
            free[self._diffuse()] = False
        if name in _COVARIANCES:
            free &= free.T & (np.eye(len(free), dtype=bool) if diagonal else np.tril(np.ones_like(free)))
        return free

    def _bfgs(
        self, y: Array, parameters: tuple[str, ...], diagonal: bool, count: int, tolerance: float
    ) -> Iterator[float]:
        """The log-likelihoods of BFGS.

        A covariance is A X X^T A^T, with X to be found from the unit matrix on: so it stays one, at whatever scale. The
        likelihood is flat in a variance that is far too small to matter, and so BFGS sees nothing there. Therefore it
        starts from the Hessian, and where it stands still, it does so again, with the present root in the place of A:
        only if nothing is gained then is this the end.
        """
        start = self._host({name: self.params[name] for name in dict.fromkeys(parameters)})
        free = {name: self._free(name, diagonal) for name in start}
        ends = np.cumsum([np.count_nonzero(f) for f in free.values()])
        roots = {name: _root(a) for name, a in start.items() if name in _COVARIANCES}
        # The step of differences of the gradient, where their rounding is small and so is their curvature.
        small = float(np.finfo(_checks.dtype_name(y)).eps) ** 0.25

        def packed(arrays: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
            return np.concatenate([arrays[name][free[name]] for name in start])

        def unpacked(x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
            arrays = {name: np.zeros_like(a) if name in roots else a.copy() for name, a in start.items()}
            for name, piece in zip(start, np.split(x, ends[:-1]), strict=True):
                arrays[name][free[name]] = piece
            return arrays

        def place(x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
            """Set the parameters."""
            values = X = unpacked(x)
            for name, root in roots.items():
                factor, known = root @ X[name], np.isfinite(np.diagonal(start[name]))
                values = {**values, name: np.where(known[:, None] & known, factor @ factor.T, start[name])}
            self._set(values)
            return X

        def objective(x: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
            """Minus the log-likelihood for each number observed, and its gradient."""
            X = place(x)
            value, _, grads, _ = self._score("LinearGaussian.fit", y)
            g = self._host(grads)
            g |= {name: 2 * root.T @ g[name] @ root @ X[name] for name, root in roots.items()}
            return -float(_dispatch.to_numpy(value)) / count, -packed(g) / count

        def curvature() -> np.ndarray[Any, Any]:
            """The inverse of the Hessian, its eigenvalues positive, and such that no step along one exceeds 1."""
            hessian = np.zeros((len(x), len(x)))
            for k, step in enumerate(small * np.eye(len(x))):
                hessian[k] = (objective(x + step)[1] - gradient) / small
            values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
            rounding = small**3 * float(np.abs(values).max(initial=0.0)) + float(np.finfo(np.float64).tiny)
            sizes = np.maximum(np.maximum(np.abs(values), np.abs(gradient @ vectors)), rounding)
            inverse: np.ndarray[Any, Any] = vectors / sizes @ vectors.T
            return inverse

        x = packed({name: np.eye(len(a)) if name in roots else a for name, a in start.items()})
        value, gradient = objective(x)
        yield -value * count
        inverse = curvature()
        fresh = True
        while True:
            direction = -inverse @ gradient
            slope, gain = float(direction @ gradient), 0.0
            low, high, step = 0.0, math.inf, 1.0
            # Wolfe's conditions: the value falls by a share of what the slope promises, and the slope flattens.
            for _ in range(40):
                if high < math.inf and -step * slope <= tolerance:
                    break
                try:
                    found = objective(x + step * direction)
                except ValueError:
                    # A step too far, to where there is no likelihood.
                    found = math.inf, gradient
                if not found[0] <= value + 1e-4 * step * slope:
                    high = step
                else:
                    low, best = step, found
                    if found[1] @ direction >= 0.25 * slope:
                        break
                step = 2 * low if high == math.inf else (low + high) / 2
            if low > 0:
                s, change, gain = low * direction, best[1] - gradient, value - best[0]
                x = x + s
                value, gradient = best
                place(x)
                yield -value * count
                product = float(s @ change)
                if product > 1e-12 * float(np.linalg.norm(s) * np.linalg.norm(change)):
                    project = np.eye(len(x)) - np.outer(s, change) / product
                    inverse = project @ inverse @ project.T + np.outer(s, s) / product
            if gain > tolerance:
                fresh = False
                continue
            if fresh:
                place(x)
                return
            X = unpacked(x)
            roots = {name: root @ X[name] for name, root in roots.items()}
            x = packed({name: np.eye(len(a)) if name in roots else a for name, a in X.items()})
            _, gradient = objective(x)
            inverse = curvature()
            fresh = True


files.register(LinearGaussian)


def _check_covariance(where: str, name: str, given: np.ndarray[Any, Any]) -> None:
    diffuse = np.isinf(given) & (given > 0) & np.eye(given.shape[-1], dtype=bool)
    rows = diffuse.any(axis=-1)
    if name == "P0" and rows.any():
        crossed = (rows[:, None] | rows[None, :]) & ~np.eye(len(given), dtype=bool)
        if given[crossed].any():
            raise ValueError(f"{where}: P0 has covariances with a diffuse state, expected zeros in its row and column")
        given = np.where(diffuse, 0, given)
    if not np.isfinite(given).all():
        allowed = ", or inf on the diagonal" if name == "P0" else ""
        raise ValueError(f"{where}: {name} holds NaN or infinity, expected finite numbers{allowed}")
    size = float(np.abs(given).max(initial=0.0))
    slack = 100 * given.shape[-1] * float(np.finfo(given.dtype).eps) * size
    if (np.abs(given - np.swapaxes(given, -1, -2)) > slack).any():
        raise ValueError(f"{where}: {name} is not symmetric, expected a covariance")
    least = float(np.linalg.eigvalsh(given).min(initial=0.0))
    if least < -slack:
        raise ValueError(f"{where}: {name} has the eigenvalue {least:.3g}, expected none below 0")


def _root(covariance: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The symmetric square root of a covariance, with zero for what is infinite."""
    values, vectors = np.linalg.eigh(np.where(np.isinf(covariance), 0, covariance))
    root: np.ndarray[Any, Any] = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def _centre(xp: Any, steps: _Steps) -> None:
    """Take delta from its estimate given all observations, and complete the pass with S^-1 v and the information.

    Around zero, the squares of observations that lie far from it would be summed, to cancel later. The estimate may
    err: any centre will do that is near.
    """
    columns = steps.mean[0].shape[2]
    innovations, precisions = xp.stack(steps.innovation), xp.stack(steps.precision)
    unit = xp.eye(columns, dtype=innovations.dtype, device=_dispatch.device(innovations))
    centre = unit + xp.zeros_like(innovations[0, :, :1, :1])
    # The first estimate errs by its rounding, of the size of all that cancels; the second finds that error.
    for _ in range(2 if columns > 1 else 0):
        centred = innovations @ centre
        found = xp.sum(_transpose(xp, centred) @ (precisions @ centred), axis=0)
        held = found[:, 1:, 1:]
        scale = _scale(xp, held)
        # What the observations do not determine stays where it is.
        ridge = unit[1:, 1:] * (held.shape[-1] * float(xp.finfo(held.dtype).eps))
        scaled = held / scale[:, :, None] / scale[:, None, :] + ridge
        estimate = -xp.linalg.solve(scaled, found[:, 1:, :1] / scale[:, :, None]) / scale[:, :, None]
        shift = xp.concat([xp.zeros_like(estimate[:, :1, :]), estimate], axis=1)
        centre = centre + xp.concat([shift, xp.zeros_like(centre[:, :, 1:])], axis=2)
    information = xp.zeros_like(centre)
    for t, precision in enumerate(steps.precision):
        for means in (steps.mean, steps.filtered_mean, steps.innovation) if columns > 1 else ():
            means[t] = means[t] @ centre
        steps.weighed.append(precision @ steps.innovation[t])
        information = information + _transpose(xp, steps.innovation[t]) @ steps.weighed[t]
        steps.information.append(information)


def _scale(xp: Any, information: Array) -> Array:
    """(..., d), the roots of the diagonal of the information (..., d, d) of d states; 1 where there is none."""
    scale = xp.sqrt(_diagonal(xp, information))
    return xp.where(scale > 0, scale, xp.ones_like(scale))


def _null_space(xp: Any, held: Array) -> tuple[Array, Array]:
    """The scale (..., d) of the information (..., d, d) of d diffuse states, and what it says nothing of.

    That is a matrix of d columns, orthonormal or zero: in the scaled states, a basis of the combinations on which the
    observations do not depend.
    """
    scale = _scale(xp, held)
    values, vectors = xp.linalg.eigh(held / scale[..., :, None] / scale[..., None, :])
    none = values <= 100 * held.shape[-1] * float(xp.finfo(held.dtype).eps)
    return scale, xp.where(none[..., None, :], vectors, xp.zeros_like(vectors))


def _determined(xp: Any, information: Array, mean: Array) -> Array:
    """(...), whether the information (..., 1 + d, 1 + d) determines what a mean (..., n, 1 + d) depends on of delta."""
    d = information.shape[-1] - 1
    if d == 0:
        return xp.ones_like(information[..., 0, 0], dtype=xp.bool)
    scale, unknown = _null_space(xp, information[..., 1:, 1:])
    spread = mean[..., 1:] / scale[..., None, :]
    left, size = (xp.sqrt(xp.sum(x * x, axis=-1)) for x in (spread @ unknown, spread))
    return xp.all(left <= 100 * d * float(xp.finfo(mean.dtype).eps) * size, axis=-1)


def _moments(xp: Any, information: Array) -> Array:
    """E[(1, delta) (1, delta)^T], (..., 1 + d, 1 + d), from the information.

    Of combinations of delta that are not determined, they hold some numbers.
    """
    one = xp.ones_like(information[..., :1, :1])
    if information.shape[-1] == 1:
        return one
    mean, covariance = _estimate(xp, information)
    top = xp.concat([one, _transpose(xp, mean)], axis=-1)
    return xp.concat([top, xp.concat([mean, mean @ _transpose(xp, mean) + covariance], axis=-1)], axis=-2)


def _estimate(xp: Any, information: Array) -> tuple[Array, Array]:
    """Mean (..., d, 1) and covariance (..., d, d) of delta, from the information; see `_moments`."""
    held = information[..., 1:, 1:]
    if held.shape[-1] == 0:
        return information[..., 1:, :1], held
    scale, unknown = _null_space(xp, held)
    unknown = unknown * scale[..., :, None]
    covariance = _symmetric(xp, xp.linalg.inv(held + unknown @ _transpose(xp, unknown)))
    return -(covariance @ information[..., 1:, :1]), covariance


def _log_determinant(xp: Any, held: Array) -> Array:
    """(...), the logarithm of the product of the eigenvalues of the information (..., d, d) that are not zero."""
    scale, unknown = _null_space(xp, held)
    known = xp.all(unknown == 0, axis=-2)
    unknown = unknown / scale[..., :, None]
    # With a basis N of the null space of A the product is |A + N N^T| / |N^T N|.
    gram = _transpose(xp, unknown) @ unknown
    unit = xp.eye(held.shape[-1], dtype=held.dtype, device=_dispatch.device(held))
    gram = xp.where(known[..., None, :], unit, gram)
    whole = xp.linalg.slogdet(held + unknown @ _transpose(xp, unknown))[1]
    return whole - xp.linalg.slogdet(gram)[1]


def _known_marginal(xp: Any, information: Array, mean: Array, covariance: Array) -> tuple[Array, Array]:
    """`_marginal` of the moments that the information gives; NaN where it does not determine the mean."""
    known = _determined(xp, information, mean)[..., None, None]
    expected, found = _marginal(xp, mean, covariance, *_estimate(xp, information))
    unknown = xp.full_like(found, math.nan)
    return xp.where(known[..., 0], expected, unknown[..., 0]), xp.where(known, found, unknown)


def _marginal(xp: Any, mean: Array, covariance: Array, delta: Array, spread: Array) -> tuple[Array, Array]:
    """Mean (..., n) and covariance from those for known delta, over which is integrated: its mean and covariance."""
    by_delta = mean[..., 1:]
    expected = (mean[..., :1] + by_delta @ delta)[..., 0]
    return expected, covariance + by_delta @ spread @ _transpose(xp, by_delta)


def _squeezed(results: Any, single: bool) -> Any:
    return [r[:, 0, ...] for r in results] if single else list(results)
