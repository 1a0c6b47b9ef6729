"""The linear-Gaussian state-space model: its parameters and its public methods."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import _arrays, _checks, _dispatch
from ..._contract import Array
from ..._op import Pullback
from ..files import Saved
from .filter import (
    AXES,
    COVARIANCES,
    NAMES,
    OPTIONAL,
    Position,
    Score,
    diffuse_moments,
    diffuse_states,
    filtered,
    forecast,
    forward,
    initial,
    log_likelihood,
    score,
    smooth,
    varies,
)
from .fit import Entries, Fit, expectation_maximisation, on_host, quasi_newton
from .stationary import start as stationary_start

if TYPE_CHECKING:
    from typing_extensions import Self


_SYMBOLS = {
    "F": "(n, n)", "H": "(p, n)", "Q": "(n, n)", "R": "(p, p)", "B": "(n, k)", "D": "(p, k)", "c": "(n,)", "d": "(p,)",
}  # fmt: skip


class Filtered(NamedTuple):
    """The result of `LinearGaussian.filter` for y (T, B, p). Its arrays have no axis B if y has none."""

    predicted_mean: Array
    """(T, B, n): the mean of x_t given the observations before it, y_0, ..., y_{t-1}."""
    predicted_covariance: Array
    """(T, B, n, n)"""
    mean: Array
    """(T, B, n): the mean of x_t given y_0, ..., y_t."""
    covariance: Array
    """(T, B, n, n)"""


@dataclass(frozen=True)
class FilterState:
    """The result of `LinearGaussian.update` for y (B, p), to pass to the next. Its arrays have no axis B if y has none.

    Attributes
    ----------
    mean : (B, n) array
        The mean of x_t given all observations so far, y_0, ..., y_t.
    covariance : (B, n, n) array
    predicted_mean : (B, n) array
        The mean of x_t given the observations before it.
    predicted_covariance : (B, n, n) array
    """

    mean: Array
    covariance: Array
    predicted_mean: Array
    predicted_covariance: Array
    _position: Position = field(repr=False)
    _parameters: dict[str, NDArray[Any]] = field(repr=False)
    """Copies of F, H, Q and R at that time, on the host."""

    @property
    def steps(self) -> int:
        """The number of observations so far."""
        return self._position.step


class Smoothed(NamedTuple):
    """The result of `LinearGaussian.smooth` for y (T, B, p). Its arrays have no axis B if y has none."""

    mean: Array
    """(T, B, n): the mean of x_t given all observations."""
    covariance: Array
    """(T, B, n, n)"""


class GaussianForecast(NamedTuple):
    """The result of `LinearGaussian.forecast` for y (T, B, p). Its arrays have no axis B if y has none."""

    mean: Array
    """(steps, B, p): the mean of the observations y_T, ..., y_{T+steps-1} given y_0, ..., y_{T-1}."""
    covariance: Array
    """(steps, B, p, p)"""
    state_mean: Array
    """(steps, B, n): the mean of the states."""
    state_covariance: Array
    """(steps, B, n, n)"""

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """The bounds between which each number of each observation lies with probability ``level``.

        Parameters
        ----------
        level : float
            Between 0 and 1. It holds for each number separately; all of them together lie inside less often.

        Returns
        -------
        low, high : (steps, B, p) arrays
            mean -+ z std, with z the normal distribution's quantile of (1 + level) / 2.

        Raises
        ------
        TypeError, ValueError
            ``level`` is not a number between 0 and 1.
        """
        where = "GaussianForecast.interval"
        level = _checks.positive(where, "level", _checks.fraction(where, "level", level))
        xp = _dispatch.namespace(where, mean=self.mean)
        half = statistics.NormalDist().inv_cdf((1 + level) / 2) * xp.sqrt(xp.linalg.diagonal(self.covariance))
        return self.mean - half, self.mean + half


class LinearGaussian(Saved):
    """Linear-Gaussian state-space model: x_{t+1} = F x_t + B u_t + c + N(0, Q), y_t = H x_t + D u_t + d + N(0, R).

    It starts with x_0 ~ N(m0, P0). The inputs u_t are known, and every matrix and offset may vary with time. A call
    gives the log-likelihood of observations, and `vjp` its exact gradient. NaN in the observations means missing; part
    of an observation may be missing. Covariances are updated in Joseph's form and kept symmetric.

    Parameters
    ----------
    F : (n, n) or (time, n, n) array
        The transition from step t to step t + 1. With an axis of time it has at least as many steps as there are
        observations, and for forecasts the steps ahead as well. The same holds for H, Q and R.
    H : (p, n) or (time, p, n) array
        The map from the state to the observation.
    Q : (n, n) or (time, n, n) array
        Covariance of the transition's noise; it may be singular.
    R : (p, p) or (time, p, p) array
        Covariance of the observations' noise; it may be singular, and zero for observations without noise.
    m0 : (n,) array, optional
        Mean of the state at the first observation; zero by default.
    P0 : (n, n) array, optional
        Covariance of that state. `inf` on the diagonal makes a state diffuse: nothing is known of it before the
        observations. The rest of its row and column is zero. By default all states are diffuse.
    B : (n, k) or (time, n, k) array, optional
        The map from the inputs of step t to the state of step t + 1.
    D : (p, k) or (time, p, k) array, optional
        The map from the inputs to the observation of the same step.
    c : (n,) or (time, n) array, optional
        The offset of the state of step t + 1.
    d : (p,) or (time, p) array, optional
        The offset of the observation.
    stationary : bool
        Whether the states start from their stationary distribution: m0 = F m0 + c and P0 = F P0 F^T + Q, without
        inputs. Then all eigenvalues of F must lie inside the unit circle, F, Q and c must not vary with time, and m0
        and P0 must not be given. A fit of F, Q or c also changes m0 and P0.

    Attributes
    ----------
    params : dict of str to array
        F, H, Q, R, m0 and P0, and B, D, c and d if they are given.
    log_likelihoods_ : (iterations + 1,) array of float64
        The log-likelihood before the first iteration of `fit` and after each. Only a model that is fitted has it.

    Raises
    ------
    TypeError, ValueError
        Unsupported or mixed arrays or dtypes; shapes that do not fit; a covariance that is not symmetric or has a
        negative eigenvalue.

    Notes
    -----
    Diffuse states are exact: the results are the limits for large variances, and no large variance is involved. The
    filter also computes how its means depend on each diffuse state, and a regression on the observations estimates
    these states (de Jong 1991). Everything is then measured from that estimate, so that observations far from zero lose
    no digits; `filter` and `update` use intermediate estimates, so that nothing depends on later observations. With d
    diffuse states the log-likelihood is the limit of log p(y) + (d/2) log(variance), as Durbin and Koopman define it.
    The smoother inverts no covariance of states, so these may be singular (de Jong 1989). Its results are those of the
    smoother of Rauch, Tung and Striebel.

    Covariances do not depend on the values of y. Sequences that miss the same observations share them. Steps share
    them too, if no parameter varies with time: once a step changes the covariances by no more than its rounding, they
    are not computed again until other observations are missing.

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
    >>> level, variance = model.fit(y).smooth(y)
    >>> bool(model.log_likelihoods_[-1] > model.log_likelihoods_[0])
    True
    >>> level.shape, variance.shape
    ((200, 1), (200, 1, 1))
    >>> low, high = model.forecast(y, 5).interval(0.9)
    >>> bool(np.all(np.diff(high - low, axis=0) > 0))
    True
    """

    log_likelihoods_: NDArray[np.float64]

    def __init__(
        self,
        F: Array,
        H: Array,
        Q: Array,
        R: Array,
        m0: Array | None = None,
        P0: Array | None = None,
        B: Array | None = None,
        D: Array | None = None,
        c: Array | None = None,
        d: Array | None = None,
        *,
        stationary: bool = False,
    ) -> None:
        where = "LinearGaussian"
        arrays = dict(zip((*NAMES, *OPTIONAL), (F, H, Q, R, m0, P0, B, D, c, d), strict=True))
        xp, F, H, Q, R, m0, P0, B, D, c, d = _arrays.take(where, arrays, needed=("F", "H", "Q", "R"))
        self.stationary = _checks.flag(where, "stationary", stationary)
        optional = {name: a for name, a in zip(OPTIONAL, (B, D, c, d), strict=True) if a is not None}
        for name, array in {"F": F, "H": H, "Q": Q, "R": R, **optional}.items():
            if array.ndim - AXES[name] not in (0, 1):
                raise ValueError(
                    f"{where}: {name} has shape {tuple(array.shape)}, expected {_SYMBOLS[name]}, or a first axis of "
                    "time too"
                )
        p, n = H.shape[-2:]
        if p < 1 or n < 1:
            raise ValueError(f"{where}: H has shape {tuple(H.shape)}, expected p and n of at least 1 in (p, n)")
        k = next((optional[name].shape[-1] for name in "BD" if name in optional), 0)
        if k < 1 and not optional.keys().isdisjoint("BD"):
            raise ValueError(f"{where}: B and D have no column, expected one for each input, or None")
        sizes = {
            "F": (n, n), "H": (p, n), "Q": (n, n), "R": (p, p), "m0": (n,), "P0": (n, n),
            "B": (n, k), "D": (p, k), "c": (n,), "d": (p,),
        }  # fmt: skip
        for name, array in {"F": F, "Q": Q, "R": R, **optional}.items():
            axes = array.shape[: array.ndim - AXES[name]]
            _checks.shape(where, name, array, (*axes, *sizes[name]), f"{_SYMBOLS[name]} at its end")
        if self.stationary:
            for name, array in (("m0", m0), ("P0", P0)):
                if array is not None:
                    raise ValueError(f"{where}: {name} is given, expected None, as stationary is True")
            for name, array in {"F": F, "Q": Q, **optional}.items():
                if name in ("F", "Q", "c") and array.ndim > AXES[name]:
                    raise ValueError(
                        f"{where}: {name} varies with time, expected one that does not, as stationary is True"
                    )
        if m0 is None:
            m0 = _dispatch.zeros(xp, (n,), F)
        if P0 is None:
            unit = xp.eye(n, dtype=F.dtype, device=_dispatch.device(F))
            P0 = xp.where(unit == 1, xp.full_like(unit, math.inf), xp.zeros_like(unit))
        _checks.shape(where, "m0", m0, (n,), "(n,)")
        _checks.shape(where, "P0", P0, (n, n), "(n, n)")
        parameters = {**dict(zip(NAMES, (F, H, Q, R, m0, P0), strict=True)), **optional}
        for name, array in parameters.items():
            values = _dispatch.to_numpy(array)
            if name in COVARIANCES:
                _check_covariance(where, name, values)
            elif not np.isfinite(values).all():
                raise ValueError(f"{where}: {name} holds NaN or infinity, expected finite numbers")
        self.params = {name: xp.asarray(array, copy=True) for name, array in parameters.items()}
        self._sizes = {name: sizes[name] for name in parameters}
        if self.stationary:
            found = stationary_start(where, {name: _dispatch.to_numpy(a) for name, a in parameters.items()})
            for name, value in found.items():
                self.params[name][...] = _dispatch.from_numpy(xp, value.astype(_checks.dtype_name(F)))

    def config(self) -> dict[str, Any]:
        """The arguments of the constructor without the parameters: ``stationary``, if it is True."""
        return {"stationary": True} if self.stationary else {}

    @classmethod
    def _restored(cls, config: dict[str, Any], shared: dict[str, str], parameters: dict[str, NDArray[Any]]) -> Self:
        known: dict[str, Any] = {
            name: p for name, p in parameters.items() if not (config.get("stationary") and name in ("m0", "P0"))
        }
        model = cls(**config, **known)
        model.load_state_dict(parameters)
        model._share(shared)
        return model

    def _fitted(self) -> dict[str, Any]:
        found = getattr(self, "log_likelihoods_", None)
        return {} if found is None else {"log_likelihoods_": found.tolist()}

    def _restore_fitted(self, fitted: dict[str, Any]) -> None:
        fitted = dict(fitted)
        self.__dict__.pop("log_likelihoods_", None)  # those of an earlier fit
        if "log_likelihoods_" in fitted:
            self.log_likelihoods_ = np.asarray(fitted.pop("log_likelihoods_"), np.float64)
        super()._restore_fitted(fitted)

    def _argument(self, name: str) -> Any:
        if name == "stationary" or (self.stationary and name in ("m0", "P0")):
            return self.stationary if name == "stationary" else None
        return self.params.get(name)

    def _expression(self) -> str:
        p, n = self.params["H"].shape[-2:]
        varying = [name for name in self.params if varies(self.params, name)]
        options = [f"input_size={self._input_size}"] if self._input_size else []
        options += [f"varying={'+'.join(varying)}"] if varying else []
        start = "stationary=True" if self.stationary else f"diffuse={len(diffuse_states(self.params))}"
        sizes = [f"state_size={n}", f"observation_size={p}", *options, start]
        return f"{type(self).__name__}({', '.join(sizes)})"

    @property
    def _input_size(self) -> int:
        """k, 0 without inputs."""
        return next((self._sizes[name][1] for name in "BD" if name in self._sizes), 0)

    def _check_parameters(self, where: str) -> None:
        """Reject parameters that a caller has replaced or changed, if they do not fit this model."""
        named = {f"params[{name!r}]": self.params[name] for name in self._sizes}
        xp, *_ = _arrays.take(where, named, needed=tuple(named))
        for (name, size), p in zip(self._sizes.items(), named.values(), strict=True):
            own = f"params[{name!r}]"
            steps = p.shape[:1] if name in AXES and p.ndim == AXES[name] + 1 else ()
            _checks.shape(where, own, p, (*steps, *size), "the shape that the model was made with")
            bad = ~xp.isfinite(p)
            if name == "P0":  # a diffuse state
                bad = bad & ~((p == math.inf) & (xp.eye(size[0], device=_dispatch.device(p)) == 1))
            if bool(_dispatch.to_numpy(xp.any(bad))):
                raise FloatingPointError(f"{where}: {own} holds NaN or infinity, expected finite numbers")

    def _observations(
        self, where: str, y: Array, u: Array | None, ahead: int = 0, since: int = 0
    ) -> tuple[Any, Array, Array | None, bool]:
        """The namespace, y (T, B, p), u (T + ahead, B or 1, k), and whether the caller's y has no axis B.

        Reject arrays that do not fit. The first of these steps is ``since``.
        """
        self._check_parameters(where)
        arrays = {"params": self.params["F"], "y": y, "u": u}
        xp, _, y, u = _arrays.take(where, arrays, needed=("y",), nan_is_missing=True)
        p = self.params["H"].shape[-2]
        if y.ndim not in (2, 3) or y.shape[-1] != p or y.shape[0] < 1:
            raise ValueError(f"{where}: y has shape {tuple(y.shape)}, expected (T, p) or (T, B, p) with p = {p}, T > 0")
        needed = since + y.shape[0] + ahead
        steps = f"T + steps = {needed}" if ahead else f"T = {needed}"
        for name, parameter in self.params.items():
            if varies(self.params, name) and parameter.shape[0] < needed:
                raise ValueError(f"{where}: {name} has {parameter.shape[0]} steps, expected at least {steps}")
        if _dispatch.to_numpy(xp.any(xp.isinf(y))):
            raise ValueError(f"{where}: y holds infinity, expected finite numbers, or NaN for missing ones")
        u = self._inputs(where, xp, u, y, ahead)
        return (xp, xp.expand_dims(y, axis=1), u, True) if y.ndim == 2 else (xp, y, u, False)

    def _inputs(self, where: str, xp: Any, u: Array | None, y: Array, ahead: int) -> Array | None:
        k = self._input_size
        if (u is None) != (k == 0):
            wanted = f"an array of {k} inputs for each step" if k else "None, as the model has neither B nor D"
            raise TypeError(f"{where}: u is {_checks.described(u)}, expected {wanted}")
        if u is None:
            return None
        steps = y.shape[0] + ahead
        shapes = {2: (steps, k), 3: (steps, y.shape[1], k)}
        if u.ndim > y.ndim or tuple(u.shape) != shapes.get(u.ndim):
            rows = f" or (T, B, k) = {shapes[3]}" if y.ndim == 3 else ""
            symbols = "(T + steps, k)" if ahead else "(T, k)"
            raise ValueError(
                f"{where}: u has shape {tuple(u.shape)}, expected {symbols} = {shapes[2]}"
                f"{rows.replace('(T,', '(T + steps,') if ahead else rows}"
            )
        if not bool(_dispatch.to_numpy(xp.all(xp.isfinite(u)))):
            raise ValueError(f"{where}: u holds NaN or infinity, expected finite numbers: inputs are known")
        return xp.expand_dims(u, axis=1) if u.ndim == 2 else u

    def __call__(self, y: Array, u: Array | None = None) -> Array:
        """The log-likelihood of observations, in nats, summed over all sequences: a () array.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            A sequence or several, of the dtype of the parameters. NaN is missing.
        u : (T, k) or (T, B, k) array, optional
            The inputs, for a model with B or D. (T, k) are the inputs of all sequences.

        Raises
        ------
        TypeError, ValueError
            An unsupported or mixed array or dtype, a shape that does not fit, infinity in y, observations that do not
            determine the diffuse states, or one without any variance given those before it; or parameters that a caller
            has replaced and that do not fit this model.
        FloatingPointError
            A parameter is NaN or infinite.
        """
        where = "LinearGaussian"
        xp, y, u, _ = self._observations(where, y, u)
        steps = forward(where, xp, self.params, y, u)
        diffuse_moments(where, xp, steps)
        return log_likelihood(xp, y, steps)

    log_likelihood = __call__

    def vjp(self, y: Array, u: Array | None = None) -> tuple[Array, Pullback]:
        """``(log_likelihood, pullback)``, with ``pullback(dvalue)`` returning ``(dy, grads)``.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.
        u : (T, k) or (T, B, k) array, optional
            The inputs, for a model with B or D.

        Returns
        -------
        log_likelihood : () array
            The result of a call.
        pullback : callable
            Maps the gradient by the log-likelihood, a number or a () array (None for zero), to ``dy`` of the shape of y
            (``(dy, du)`` if u is given) and the gradients by the parameters by name. ``pullback(1.0)`` is the score,
            exact. The gradients by the covariances are symmetric. Those by missing observations, and by the entries of
            m0 and P0 that belong to diffuse states, are zero. m0 and P0 count as parameters, also if ``stationary``.

        Raises
        ------
        TypeError, ValueError
            As in a call.

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
        where, shape, input_shape = "LinearGaussian", getattr(y, "shape", ()), getattr(u, "shape", ())
        xp, y, u, _ = self._observations(where, y, u)
        value, dy, du, grads, *_ = score(where, xp, self.params, y, u)
        if du is not None and u is not None and u.shape[1] == 1:
            du = xp.sum(du, axis=1)

        def pullback(dvalue: Array | float | None) -> tuple[Array | tuple[Array, Array], dict[str, Array]]:
            if isinstance(dvalue, (int, float)):
                dvalue = float(dvalue)
            else:
                dvalue = _arrays.cotangent(where, "value", dvalue, value)
            dvalue = 0.0 if dvalue is None else dvalue
            scaled = {name: gradient * dvalue for name, gradient in grads.items()}
            by_y = xp.reshape(dy, shape) * dvalue
            return (by_y if du is None else (by_y, xp.reshape(du, input_shape) * dvalue)), scaled

        return value, pullback

    def filter(self, y: Array, u: Array | None = None) -> Filtered:
        """The Kalman filter: the distribution of each state given the observations so far.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.
        u : (T, k) or (T, B, k) array, optional
            The inputs, for a model with B or D.

        Returns
        -------
        Filtered
            Means and covariances, predicted and filtered. They are NaN where a state depends on a diffuse state that
            the observations so far do not determine.

        Raises
        ------
        TypeError, ValueError
            As in a call, except that the observations need not determine the diffuse states.

        Examples
        --------
        A level that wanders. Nothing is known of it before the first observation, and the second is missing:

        >>> import numpy as np
        >>> import gpurnn
        >>> one = np.ones((1, 1))
        >>> level = gpurnn.LinearGaussian(F=one, H=one, Q=one, R=2 * one)
        >>> filtered = level.filter(np.array([[5.0], [np.nan], [9.0]]))
        >>> filtered.mean[:, 0].round(3), filtered.covariance[:, 0, 0].round(3)
        (array([5.   , 5.   , 7.667]), array([2.   , 3.   , 1.333]))
        """
        where = "LinearGaussian.filter"
        xp, y, u, single = self._observations(where, y, u)
        results, _ = filtered(where, xp, self.params, initial(xp, self.params, y.shape[1]), y, u)
        return Filtered(*_without_rows(results, single))

    def update(self, y: Array, state: FilterState | None = None, u: Array | None = None) -> FilterState:
        """One step of the Kalman filter: the distribution of the state given one more observation.

        On NumPy arrays the results have the same bits as `filter` of all observations at once. The cost of a step does
        not grow with their number. Changed parameters take effect from this step on.

        Parameters
        ----------
        y : (p,) or (B, p) array
            The observation of this step, of one sequence or several. NaN is missing.
        state : FilterState, optional
            The result of the update before; None for the first.
        u : (k,) or (B, k) array, optional
            The inputs of this step, for a model with B or D.

        Returns
        -------
        FilterState
            Means and covariances, predicted and filtered, with NaN as in `filter`.

        Raises
        ------
        TypeError, ValueError
            As in `filter`; or ``state`` belongs to a model or to observations of another size.

        Examples
        --------
        >>> import numpy as np
        >>> import gpurnn
        >>> one = np.ones((1, 1))
        >>> level = gpurnn.LinearGaussian(F=one, H=one, Q=one, R=2 * one)
        >>> state = None
        >>> for value in (5.0, np.nan, 9.0):
        ...     state = level.update(np.array([value]), state)
        >>> state.mean.round(3), state.covariance.round(3)
        (array([7.667]), array([[1.333]]))
        """
        where = "LinearGaussian.update"
        if state is not None and not isinstance(state, FilterState):
            raise TypeError(f"{where}: state is {_checks.described(state)}, expected what the update before returned")
        _checks.given(where, y=y)
        xp, y, given = _arrays.take(where, {"y": y, "u": u}, nan_is_missing=True)
        if y.ndim not in (1, 2):
            raise ValueError(f"{where}: y has shape {tuple(y.shape)}, expected (p,) or (B, p), for one step")
        step = 0 if state is None else state.steps
        now = None if given is None else xp.expand_dims(given, axis=0)
        xp, y, now, single = self._observations(where, xp.expand_dims(y, axis=0), now, since=step)
        if state is None:
            start = initial(xp, self.params, y.shape[1])
        else:
            start = state._position
            B, n = start.mean.shape[:2]
            own = (y.shape[1], self.params["F"].shape[-1])
            if (B, n) != own or (state.mean.ndim == 1) != single:
                raise ValueError(
                    f"{where}: state is of {B} sequences and {n} states, expected that of an update of this model with "
                    f"observations of the shape of y, {own[0]} sequences and {own[1]} states"
                )
        parameters = {name: _dispatch.to_numpy(self.params[name]) for name in "FHQR"}
        if state is not None and all(np.array_equal(a, parameters[name]) for name, a in state._parameters.items()):
            parameters = state._parameters
        else:
            # Covariances that have converged are those of other parameters.
            parameters, start = {name: a.copy() for name, a in parameters.items()}, replace(start, last=None)
        params = {name: a[step:, ...] if varies(self.params, name) else a for name, a in self.params.items()}
        results, position = filtered(where, xp, params, start, y, now)
        predicted, before, mean, covariance = (a[0, ...] for a in _without_rows(results, single))
        return FilterState(mean, covariance, predicted, before, position, parameters)

    def smooth(self, y: Array, u: Array | None = None) -> Smoothed:
        """The fixed-interval smoother: the distribution of each state given all observations.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.
        u : (T, k) or (T, B, k) array, optional
            The inputs, for a model with B or D.

        Returns
        -------
        Smoothed
            Means and covariances, those of the smoother of Rauch, Tung and Striebel. They are NaN where a state depends
            on a diffuse state that was forgotten before the observations could determine it.

        Raises
        ------
        TypeError, ValueError
            As in a call.
        """
        where = "LinearGaussian.smooth"
        xp, y, u, single = self._observations(where, y, u)
        return Smoothed(*_without_rows(smooth(where, xp, self.params, y, u), single))

    def forecast(self, y: Array, steps: int, u: Array | None = None) -> GaussianForecast:
        """The distribution of the observations that follow ``y``.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.
        steps : int
            The number of observations to forecast.
        u : (T + steps, k) or (T + steps, B, k) array, optional
            The inputs of the past and of the steps ahead, for a model with B or D.

        Returns
        -------
        GaussianForecast
            Means and covariances of observations and states; ``interval(level)`` gives the bounds of an interval.

        Raises
        ------
        TypeError, ValueError
            As in a call; or ``steps`` is not an integer of at least 1, or a parameter that varies has too few steps.
        FloatingPointError
            A parameter is NaN or infinite, or the forecasts overflow.

        Examples
        --------
        A straight line through points of variance 1, as in ordinary least squares:

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
        xp, y, u, single = self._observations(where, y, u, steps)
        return GaussianForecast(*_without_rows(forecast(where, xp, self.params, y, u, steps), single))

    def fit(
        self,
        y: Array,
        parameters: tuple[str, ...] = ("Q", "R"),
        u: Array | None = None,
        *,
        method: Literal["bfgs", "em"] = "bfgs",
        diagonal: bool = True,
        iterations: int = 200,
        tolerance: float = 1e-9,
    ) -> Self:
        """Fit parameters to observations by maximum likelihood, starting from their values, and change them in place.

        Parameters
        ----------
        y : (T, p) or (T, B, p) array
            NaN is missing.
        parameters : tuple of {"F", "H", "Q", "R", "m0", "P0", "B", "D", "c", "d"}
            The parameters to fit, which must not vary with time. All their entries are fitted, unless ``diagonal`` says
            otherwise. Diffuse states stay diffuse.
        u : (T, k) or (T, B, k) array, optional
            The inputs, for a model with B or D.
        method : {"bfgs", "em"}
            The quasi-Newton method of Broyden, Fletcher, Goldfarb and Shanno on the exact gradient (that of SciPy), or
            expectation maximisation. Neither lowers the likelihood, and the latter may need many more iterations. The
            former restarts from its end, without its approximation of the Hessian, until that gains nothing. The latter
            does not fit B, D, c and d, nor the parameters of a stationary start.
        diagonal : bool
            Whether Q, R and P0 are diagonal and stay so. A variance of zero stays zero. If ``diagonal`` is False, a
            singular covariance keeps its null space.
        iterations : int
            The largest number of iterations.
        tolerance : float
            The fit ends when the log-likelihood gains less than this, for each number observed.

        Returns
        -------
        self
            Its attribute ``log_likelihoods_`` has the log-likelihoods before the first iteration and after each; fewer
            than ``iterations + 1`` if the fit ends sooner.

        Raises
        ------
        TypeError, ValueError
            As in a call; a name, a method or a number is out of range; a parameter varies with time, or ``method`` does
            not fit it; a covariance is not diagonal although ``diagonal`` is True; or an iteration leads to parameters
            without a likelihood, as EM may if the likelihood is unbounded. The parameters are then those before that
            iteration.

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
            _checks.choice(where, "parameters", name, tuple(self.params))
        xp, y, u, _ = self._observations(where, y, u)
        follows = self.stationary and not {"F", "Q", "c"}.isdisjoint(parameters)
        for name in (*parameters, *(("m0", "P0") if follows else ())):
            _checks.writable(where, f"params[{name!r}]", self.params[name])
        for name in parameters:
            if varies(self.params, name):
                raise ValueError(f"{where}: {name} varies with time, expected one to fit that does not")
            if self.stationary and name in ("m0", "P0"):
                raise ValueError(f"{where}: parameters holds {name!r}, expected F, Q or c, as the start is stationary")
            if method == "em" and (name in OPTIONAL or (follows and name in ("F", "Q"))):
                raise ValueError(
                    f"{where}: method is 'em', which does not fit {name}"
                    f"{'' if name in OPTIONAL else ' if the start is stationary'}, expected 'bfgs'"
                )
            if diagonal and name in COVARIANCES:
                covariance = _dispatch.to_numpy(self.params[name])
                if np.any(covariance[~np.eye(len(covariance), dtype=bool)]):
                    raise ValueError(f"{where}: {name} is not diagonal, expected a diagonal, or diagonal=False")
        names = tuple(dict.fromkeys(parameters))
        written = {name: self.params[name] for name in (*names, *(("m0", "P0") if follows else ()))}
        fit = Fit(where, xp, written, y, iterations=iterations, tolerance=tolerance)

        def score_now() -> Score:
            return score(where, xp, self.params, y, u)

        def climb(fit: Fit) -> None:
            if method == "em":
                expectation_maximisation(fit, score_now, self.params, names, y.shape, diagonal=diagonal)
            else:
                entries = Entries(
                    where, on_host(self.params), names, diagonal=diagonal, diffuse=diffuse_states(self.params),
                    follows=follows,
                )  # fmt: skip
                quasi_newton(fit, score_now, entries)

        self.log_likelihoods_ = fit.run(climb)
        return self


def _check_covariance(where: str, name: str, values: np.ndarray[Any, Any]) -> None:
    infinite = np.isinf(values) & (values > 0) & np.eye(values.shape[-1], dtype=bool)
    rows = infinite.any(axis=-1)
    if name == "P0" and rows.any():
        crossed = (rows[:, None] | rows[None, :]) & ~np.eye(len(values), dtype=bool)
        if values[crossed].any():
            raise ValueError(f"{where}: P0 has covariances with a diffuse state, expected zeros in its row and column")
        values = np.where(infinite, 0, values)
    if not np.isfinite(values).all():
        allowed = ", or inf on the diagonal" if name == "P0" else ""
        raise ValueError(f"{where}: {name} holds NaN or infinity, expected finite numbers{allowed}")
    size = float(np.abs(values).max(initial=0.0))
    slack = 100 * values.shape[-1] * float(np.finfo(values.dtype).eps) * size
    if (np.abs(values - np.swapaxes(values, -1, -2)) > slack).any():
        raise ValueError(f"{where}: {name} is not symmetric, expected a covariance")
    least = float(np.linalg.eigvalsh(values).min(initial=0.0))
    if least < -slack:
        raise ValueError(f"{where}: {name} has the eigenvalue {least:.3g}, expected none below 0")


def _without_rows(results: Iterable[Array], single: bool) -> list[Array]:
    """Results (T, B, ...), without the axis B if the caller's y has none."""
    return [array[:, 0, ...] for array in results] if single else list(results)
