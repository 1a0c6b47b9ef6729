"""Lyapunov exponents of recurrent layers and of any map with a Jacobian, by one estimator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._random import generator
from ..functional._state import unpack_state
from ..layers.recurrent import Recurrent, layer_names
from ._transition import REACHED, Transition, check_finite, quiet

Floats = NDArray[np.floating[Any]]

_BLOCKS = 10
"""The number of parts of a run whose means are compared for the standard error."""


@dataclass(frozen=True)
class Map:
    r"""A discrete dynamical system s_t = F(s_{t-1}) of several states side by side.

    Parameters
    ----------
    step : callable
        F, from states (B, n) to states (B, n). It may change its argument, which is a copy.
    jacobian : callable
        Maps states (B, n) to (B, n, n): entry [b, i, j] is \partial F_i / \partial s_j.
    dt : float
        The time of a step, above 0: exponents are per unit of time.

    Raises
    ------
    TypeError, ValueError
        ``step`` or ``jacobian`` is not a function, or dt is not positive and finite.

    Examples
    --------
    The logistic map x <- 4 x (1 - x), whose exponent is ln 2:

    >>> import numpy as np
    >>> from gpurnn.analysis import Map, lyapunov_spectrum
    >>> logistic = Map(lambda s: 4 * s * (1 - s), lambda s: (4 - 8 * s)[:, :, None])
    >>> state = np.random.default_rng(0).uniform(size=(100, 1))
    >>> spectrum = lyapunov_spectrum(logistic, state=state, steps=1000)
    >>> round(float(spectrum.exponents[0]), 2)
    0.69
    """

    step: Callable[[Array], Array]
    jacobian: Callable[[Array], Array]
    dt: float = 1.0

    def __post_init__(self) -> None:
        for name in ("step", "jacobian"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Map: {name} is {getattr(self, name)!r}, expected a function")
        _checks.attributes(self, _checks.positive, "dt")
        _checks.attributes(self, _checks.finite, "dt")


def runge_kutta(field: Callable[[Array], Array], jacobian: Callable[[Array], Array], dt: float) -> Map:
    r"""The flow ds/dt = f(s) over steps of dt, by the classical Runge-Kutta method of fourth order, as a `Map`.

    Its Jacobian is exactly that of the method: the variational equation dM/dt = f'(s) M with the same stages.

    Parameters
    ----------
    field : callable
        f, from states (B, n) to (B, n).
    jacobian : callable
        f', from states (B, n) to (B, n, n).
    dt : float
        Above 0, in the unit of time of f.

    Returns
    -------
    map : Map

    Raises
    ------
    ValueError, TypeError
        dt is not positive and finite.

    References
    ----------
    W. Kutta, "Beitrag zur näherungsweisen Integration totaler Differentialgleichungen", Z. Math. Phys. 46 (1901).

    Examples
    --------
    >>> import numpy as np
    >>> decay = runge_kutta(lambda s: -s, lambda s: np.full((1, 1, 1), -1.0), 0.1)
    >>> decay.step(np.ones((1, 1))).round(5), decay.jacobian(np.ones((1, 1))).round(5)
    (array([[0.90484]]), array([[[0.90484]]]))
    """
    where = "runge_kutta"
    dt = _checks.finite(where, "dt", _checks.positive(where, "dt", dt))

    def stages(s: Array) -> tuple[list[Array], list[Array]]:
        """The states at which f is evaluated, and its values there."""
        at, slopes = [s], [field(s)]
        for part in (0.5, 0.5, 1.0):
            at.append(s + part * dt * slopes[-1])
            slopes.append(field(at[-1]))
        return at, slopes

    def step(s: Array) -> Array:
        _, (a, b, c, d) = stages(s)
        return s + dt / 6 * (a + 2 * b + 2 * c + d)

    def step_jacobian(s: Array) -> Array:
        xp = _dispatch.namespace(where, s=s)
        unit = xp.eye(s.shape[1], dtype=s.dtype, device=_dispatch.device(s))
        slopes: list[Array] = []
        for at, part in zip(stages(s)[0], (0.0, 0.5, 0.5, 1.0), strict=True):
            reached = unit if not slopes else unit + part * dt * slopes[-1]
            slopes.append(xp.matmul(jacobian(at), reached))
        a, b, c, d = slopes
        return unit + dt / 6 * (a + 2 * b + 2 * c + d)

    return Map(step, step_jacobian, dt)


@dataclass(frozen=True)
class LyapunovSpectrum:
    """Lyapunov exponents and their accuracy; see `lyapunov_spectrum`.

    Attributes
    ----------
    exponents : (k,) float64 NumPy array
        The k largest exponents, in nats per step, or per unit of time for a `Map` with a ``dt``; largest first.
    standard_error : (k,) float64 NumPy array
        The standard error of each exponent, from the scatter of the rows and of ten parts of the run. Consecutive parts
        are not quite independent, so it is a little too small if they are short. NaN if there is only one part.
    history : (m, k) float64 NumPy array
        Estimates from ever longer parts of the run; the last are the exponents.
    times : (m,) float64 NumPy array
        The lengths of those parts, in steps or units of time.
    size : int
        n, the total number of exponents.
    unit : {"step", "unit of time"}
        The unit of the times; exponents are per this unit.
    """

    exponents: Floats
    standard_error: Floats
    history: Floats
    times: Floats
    size: int
    unit: str = "step"

    @property
    def verdict(self) -> str:
        """ "chaotic" if the largest exponent is 3 standard errors above 0, "stable" if below, else "neither"."""
        largest, error = float(self.exponents[0]), 3 * float(np.nan_to_num(self.standard_error[0])) + 1e-6
        if largest > error:
            return "chaotic"
        return "stable" if largest < -error else "neither"

    @property
    def kaplan_yorke_dimension(self) -> float:
        """j + (lambda_1 + ... + lambda_j) / |lambda_{j+1}|, j the largest number of exponents with a sum of at least 0.

        Kaplan and Yorke conjectured that it is the dimension of the attractor. NaN if it needs more exponents than were
        computed.
        """
        sums = np.cumsum(self.exponents)
        j = int((sums >= 0).sum())
        if j < len(sums):
            return j + (float(sums[j - 1]) / abs(float(self.exponents[j])) if j else 0.0)
        return float(self.size) if j == self.size else math.nan


@quiet
def lyapunov_spectrum(
    system: Recurrent | Map,
    x: Array | None = None,
    state: Any = None,
    *,
    steps: int | None = None,
    exponents: int | None = None,
    transient: int | None = None,
    interval: int = 1,
    rng: int | np.random.Generator = 0,
) -> LyapunovSpectrum:
    r"""The Lyapunov exponents of a network, driven or autonomous, or of any map: the growth of small perturbations.

    lambda_i = lim 1/T log sigma_i(J_T ... J_1). Vectors are pulled back through the run, v <- J_t^T v, by the layer's
    own backpropagation through time, and made orthonormal again by a QR decomposition after each interval; the
    logarithms of the diagonal of R add up to the exponents. The transposed product has the same exponents.

    The exponents are those of this particular network. Theory treats random weights, W ~ N(0, g^2/N), in the limit of
    infinite N. Networks of finite N scatter about values below the theory's: for tanh networks of N = 1000 at g = 1.5
    the largest exponent was within 2% of mean-field theory in eight of sixteen, and 2 to 29% below it in the others; at
    g = 2 and 3 all were about 0 to 2% below.

    Parameters
    ----------
    system : RNN, LSTM or GRU, or Map
        A single layer in one direction; `parts` splits a stack.
    x : (T, B, I) array, optional
        The input that drives a layer, time-major. With None the layer is autonomous, with an input of zero.
    state : array, optional
        The initial state. For a layer (1, B, H), for the LSTM a pair (h, c) of such arrays; by default zero if it is
        driven, else 8 rows of normal numbers. For a `Map` (B, n). The exponents are means over the rows.
    steps : int
        The steps to average over; for a driven layer, the steps of x less the transients.
    exponents : int, optional
        k, how many of the largest exponents to find; None for all. Each step takes k rows of the backward pass.
    transient : int, optional
        The steps before those of the average, in which the state reaches its attractor, and the same number after them,
        in which the vectors turn to their directions; a tenth of T or of ``steps`` by default.
    interval : int
        The steps between two QR decompositions; fewer are used if a perturbation would leave the range of the dtype. A
        larger interval takes less time. The largest exponent is right with any interval. Another exponent is right only
        if its distance from the largest is far less than -ln(epsilon) / interval (36 / interval in float64): beyond
        that the vectors are parallel up to rounding.
    rng : int or numpy.random.Generator
        Where the vectors, and the rows of an autonomous layer, come from.

    Returns
    -------
    spectrum : LyapunovSpectrum

    Raises
    ------
    TypeError, ValueError
        ``system`` is neither a single layer in one direction nor a `Map`; arrays or numbers do not fit; or a parameter,
        ``x``, a state or a Jacobian is NaN or infinite: a run that goes to infinity has no exponents in floating point.

    References
    ----------
    G. Benettin, L. Galgani, A. Giorgilli, J.-M. Strelcyn, "Lyapunov characteristic exponents for smooth dynamical
    systems and for Hamiltonian systems; a method for computing all of them", Meccanica 15 (1980);
    R. Engelken, F. Wolf, L. F. Abbott, "Lyapunov spectra of chaotic recurrent neural networks", Physical Review
    Research 5 (2023).

    Examples
    --------
    For a linear network they are the logarithms of the magnitudes of W_hh's eigenvalues:

    >>> import numpy as np
    >>> import gpurnn
    >>> rnn = gpurnn.RNN(1, 2, activation="identity", dtype="float64")
    >>> rnn.params["weight_hh_l0"][...] = [[0.5, 1.0], [0.0, 0.9]]
    >>> spectrum = gpurnn.analysis.lyapunov_spectrum(rnn, steps=500)
    >>> np.exp(spectrum.exponents).round(6)
    array([0.9, 0.5])
    >>> spectrum.verdict
    'stable'
    """
    where = "lyapunov_spectrum"
    random = generator(where, rng)
    interval = _checks.integer_at_least(where, "interval", interval, 1)
    orbit: _MapOrbit | _LayerOrbit
    if not isinstance(system, (Map, Recurrent)):
        raise TypeError(
            f"{where}: system is a {type(system).__qualname__}, expected a gpurnn.{layer_names()}, or a "
            "gpurnn.analysis.Map of a function and its Jacobian"
        )
    if isinstance(system, Map):
        orbit = _MapOrbit(where, system, x, state)
    else:
        orbit = _LayerOrbit(where, system, x, state, random)
    total = orbit.length
    if total is None:
        steps = _checks.integer_at_least(where, "steps", 1000 if steps is None else steps, 1)
        transient = _checks.integer_at_least(where, "transient", steps // 10 if transient is None else transient, 0)
    else:
        if steps is not None:
            raise ValueError(f"{where}: steps is {steps}, expected None: a driven layer takes the steps of x")
        transient = _checks.integer_at_least(where, "transient", total // 10 if transient is None else transient, 0)
        steps = total - 2 * transient
        if steps < 1:
            raise ValueError(f"{where}: x has {total} steps, expected more than twice the transient of {transient}")
    n, B = orbit.state.shape[1], orbit.state.shape[0]
    k = n if exponents is None else _checks.integer_at_least(where, "exponents", exponents, 1)
    if k > n:
        raise ValueError(f"{where}: exponents is {k}, expected at most {n}, the size of the state")
    if B == 0:
        raise ValueError(f"{where}: state has no rows, expected at least one")

    spans = list(_spans(transient, transient + steps, interval))
    after = list(_spans(transient + steps, 2 * transient + steps, interval))
    s = orbit.state
    for span in _spans(0, transient, interval):
        s = orbit.advance(s, span)
    entered = []
    for span in spans + after:
        entered.append(s)
        s = orbit.advance(s, span)

    xp = _dispatch.namespace(where, state=s)
    drawn = np.linalg.qr(random.standard_normal((B, n, k)))[0].astype(_checks.dtype_name(s))
    vectors = xp.asarray(_dispatch.from_numpy(xp, drawn), device=_dispatch.device(s))
    grown: list[tuple[range, Floats]] = []
    for span, begin in reversed(list(zip(spans + after, entered, strict=True))):
        vectors, growths = _pulled(where, orbit, begin, span, vectors)
        if span.start < transient + steps:
            grown += growths
    return _summed(np.stack([growth for _, growth in grown]), [span for span, _ in grown], orbit.dt, n)


def _pulled(
    where: str, orbit: _MapOrbit | _LayerOrbit, s: Array, span: range, vectors: Array
) -> tuple[Array, list[tuple[range, Floats]]]:
    """Pull orthonormal ``vectors`` (B, n, k) back over a span to its beginning at s; also return their growths (B, k).

    If they leave the range of the dtype, the span is halved; the growths are those of its parts, the last part first.
    """
    xp = _dispatch.namespace(where, vectors=vectors)
    pulled, r = xp.linalg.qr(xp.matrix_transpose(orbit.pull(s, span, xp.matrix_transpose(vectors))))
    growth = _dispatch.to_numpy(xp.abs(xp.linalg.diagonal(r)))
    limits = np.finfo(growth.dtype)
    if len(span) == 1:
        check_finite(where, "the growth of a perturbation in step {}", growth[None], span.start)
    elif not (np.isfinite(growth).all() and (growth[:, 0] >= limits.tiny / limits.eps).all()):
        first, second = span[: len(span) // 2], span[len(span) // 2 :]
        vectors, late = _pulled(where, orbit, orbit.advance(s, first), second, vectors)
        vectors, early = _pulled(where, orbit, s, first, vectors)
        return vectors, late + early
    return pulled, [(span, growth)]


def _spans(start: int, stop: int, length: int) -> Iterator[range]:
    for t in range(start, stop, length):
        yield range(t, min(t + length, stop))


def _summed(growths: Floats, spans: list[range], dt: float, size: int) -> LyapunovSpectrum:
    """The exponents, from the growths of the vectors in each span, (m, B, k)."""
    with np.errstate(
        divide="ignore"
    ):  # if a step erases a perturbation, as dead units do, its log growth is minus infinity
        logarithms = np.log(growths.astype(np.float64))
    times = dt * np.array([len(span) for span in spans])
    reached = np.cumsum(times)
    history = np.cumsum(logarithms.mean(axis=1), axis=0) / reached[:, None]
    parts = np.array_split(np.arange(len(spans)), min(_BLOCKS, len(spans)))
    means = np.concatenate([logarithms[part].sum(axis=0) / times[part].sum() for part in parts])
    with np.errstate(invalid="ignore"):
        error = means.std(axis=0, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else np.full(means.shape[1], np.nan)
    # A short run may find them out of order.
    order = np.argsort(-history[-1], kind="stable")
    unit = "step" if dt == 1 else "unit of time"
    return LyapunovSpectrum(history[-1, order], error[order], history[:, order], reached, size, unit)


class _MapOrbit:
    """The states of a map, and vectors pulled back through its Jacobians."""

    length = None

    def __init__(self, where: str, system: Map, x: Array | None, state: Array) -> None:
        if x is not None:
            raise ValueError(f"{where}: x is given, expected None: a Map has no input")
        self.xp, state = _arrays.take(where, {"state": state}, needed=("state",))
        _checks.ndim(where, "state", state, 2, "(B, n)")
        check_finite(where, "state", state)
        self.where, self.system, self.state, self.dt = where, system, state, system.dt

    def advance(self, s: Array, span: range) -> Array:
        """The state after the span, from that before it; all that it passes are finite."""
        for t in span:
            s = self._step(s)
            check_finite(self.where, REACHED, self.xp.expand_dims(s, axis=0), t + 1)
        return s

    def _step(self, s: Array) -> Array:
        new = self.system.step(self.xp.asarray(s, copy=True))
        self._check("step(state)", new, s, s.shape, "(B, n)")
        return new

    def _check(self, name: str, made: Array, s: Array, shape: tuple[int, ...], symbols: str) -> None:
        """Reject the result of a function of the map unless it is an array of the states' library and this shape."""
        _checks.given(self.where, **{name: made})
        _dispatch.namespace(self.where, **{"state": s, name: made})
        _checks.shape(self.where, name, made, shape, symbols)

    def pull(self, s: Array, span: range, vectors: Array) -> Array:
        """``vectors`` (B, k, n) at the end of the span as they are at its beginning, in s."""
        matrices = []
        for t in span:
            J = self.system.jacobian(s)
            self._check("jacobian(state)", J, s, (*s.shape, s.shape[1]), "(B, n, n)")
            check_finite(self.where, "the Jacobian after {} steps", self.xp.expand_dims(J, axis=0), t)
            matrices.append(J)
            s = self._step(s)
        for J in reversed(matrices):
            vectors = self.xp.matmul(vectors, J)
        return vectors


class _LayerOrbit:
    """The states of a layer, and vectors pulled back by its backpropagation through time."""

    dt = 1.0

    def __init__(self, where: str, layer: Recurrent, x: Array | None, state: Any, random: np.random.Generator) -> None:
        transition = Transition(where, layer)
        self.transition, self.xp = transition, transition.xp
        weight = transition.weights["weight_hh"]
        if x is None:
            self.length = None
            if state is None:
                drawn = random.standard_normal((8, transition.size)).astype(_checks.dtype_name(weight))
                self.state = self.xp.asarray(_dispatch.from_numpy(self.xp, drawn), device=_dispatch.device(weight))
                self.x = transition.silence(8)
            else:
                states = unpack_state(where, transition.cell, "state", state).values()
                # A state of another shape is rejected below.
                rows = next((s.shape[1] for s in states if s is not None and getattr(s, "ndim", 0) == 3), 1)
                self.x, self.state = transition.sequence(transition.silence(rows), state)
        else:
            self.x, self.state = transition.sequence(x, state)
            self.length = self.x.shape[0]

    def inputs(self, span: range, copies: int) -> Array:
        """The inputs of the span, with ``copies`` of each row."""
        x = self.xp.repeat(self.x, len(span), axis=0) if self.length is None else self.x[span.start : span.stop, ...]
        return self.xp.repeat(x, copies, axis=1)

    def advance(self, s: Array, span: range) -> Array:
        """The state after the span, from that before it; all that it passes are finite."""
        own = self.transition
        y, state = own.function(self.inputs(span, 1), **own.weights, state=own._split(s), **own.options)
        check_finite(own.where, REACHED, y, span.start + 1)
        return own._join(state)

    def pull(self, s: Array, span: range, vectors: Array) -> Array:
        """``vectors`` (B, k, n) at the end of the span as they are at its beginning, in s."""
        own, (B, k, n) = self.transition, vectors.shape
        _, pullback = own.function.vjp(
            self.inputs(span, k), **own.weights, state=own._split(self.xp.repeat(s, k, axis=0)), **own.options
        )
        (_, dstate), _ = pullback((None, own._split(self.xp.reshape(vectors, (B * k, n)))))
        return self.xp.reshape(own._join(dstate), (B, k, n))
