"""How gradients flow back in time: Jacobians of the state, their products, gradient norms over time and training."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch, cells, gradients
from .._contract import Array
from ..cells.activations import name_of, numbers_of
from ..layers.recurrent import Recurrent
from ._transition import REACHED, Transition, check_finite, check_steps, quiet

Floats = NDArray[np.floating[Any]]


def _largest_slope(activation: cells.Activation) -> float:
    """The largest |f'|."""
    alpha, beta = (*numbers_of(activation), 0.0, 0.0)[:2]
    slopes = {
        "sigmoid": 0.25, "affine": abs(alpha), "leaky_relu": max(1.0, abs(alpha)), "scaled_tanh": abs(alpha * beta),
        "hard_sigmoid": abs(alpha), "elu": max(1.0, abs(alpha)),
    }  # fmt: skip
    return slopes.get(name_of(activation), 1.0)


@quiet
def jacobians(layer: Recurrent, x: Array, state: Any = None) -> Floats:
    """The exact Jacobians of the state along a sequence: J_t = ds_t / ds_{t-1}, for any cell.

    For the vanilla cell J_t = diag(f'(a_t)) W_hh + leak I. Its transpose, W_hh^T diag(f'(a_t)) + leak I, maps the
    gradient of h_t to that of h_{t-1}.

    Parameters
    ----------
    layer : gpurnn.RNN, gpurnn.LSTM or gpurnn.GRU
        It has one layer and one direction; `parts` splits a stack.
    x : (T, B, I) array
        Time-major, whatever the layer's ``batch_first``.
    state : (1, B, H) array, optional
        The initial state, for the LSTM a pair (h, c) of such arrays; zero by default.

    Returns
    -------
    (T, B, S, S) NumPy array
        Entry [t, b, i, j] is the derivative of s_{t+1, i} by s_{t, j}, in the layer's dtype. S = H and s = h; for the
        LSTM S = 2H and s = [h; c].

    Raises
    ------
    TypeError, ValueError
        The layer is not one of these, the arrays do not fit it, or they, or the states of a run, are NaN or infinite.

    References
    ----------
    Y. Bengio, P. Simard, P. Frasconi, "Learning long-term dependencies with gradient descent is difficult", IEEE
    Trans. Neural Networks 5 (1994).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rnn = gpurnn.RNN(1, 2, activation="identity")
    >>> J = jacobians(rnn, np.zeros((5, 1, 1), np.float32))
    >>> J.shape, bool(np.allclose(J[3, 0], rnn.params["weight_hh_l0"]))
    ((5, 1, 2, 2), True)
    """
    transition = Transition("jacobians", layer)
    x, s = transition.sequence(x, state)
    matrices = np.empty((*x.shape[:2], s.shape[1], s.shape[1]), _checks.dtype_name(s))
    for t in range(x.shape[0]):
        s, J = transition.jacobian(x[t, ...], s)
        check_finite(transition.where, REACHED, transition.xp.expand_dims(s, axis=0), t + 1)
        matrices[t] = _dispatch.to_numpy(J)
    check_finite(transition.where, "the Jacobian after {} steps", matrices)
    return matrices


def product_norms(jacobians: Floats) -> Floats:
    """The norms of ds_T / ds_t = J_T ... J_{t+1}: how much of a change of the state at step t remains at the end.

    Parameters
    ----------
    jacobians : (T, B, S, S) NumPy array
        The result of `jacobians`.

    Returns
    -------
    (T + 1, B) float64 NumPy array
        The spectral norm (largest singular value) for t = 0 ... T; the last is 1, the norm of the identity. Infinite
        where it is above the largest float64, 1.8e308, and 0 where it is below the smallest.

    Raises
    ------
    ValueError
        The shape does not fit, or a Jacobian is NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> product_norms(np.full((3, 1, 1, 1), 0.5))[:, 0]
    array([0.125, 0.25 , 0.5  , 1.   ])
    """
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(*_product_norms("product_norms", jacobians))


@quiet
def state_gradients(layer: Recurrent, x: Array, dy: Array | None, dstate: Any = None, state: Any = None) -> Floats:
    """dL/ds_t at every step: the total gradient of the state, through that step's output and all later steps.

    ds_T = dy_T + dstate, ds_{t-1} = J_t^T ds_t + dy_{t-1}.

    Parameters
    ----------
    layer, x, state
        As in `jacobians`.
    dy : (T, B, H) array or None
        The gradient of the loss L by the outputs h_1 ... h_T; None for zero.
    dstate : (1, B, H) array, optional
        The gradient of L by the final state, for the LSTM a pair of such arrays; zero by default.

    Returns
    -------
    (T + 1, B, S) NumPy array
        dL/ds_t for t = 0 ... T, in the unit of L per unit of the state. For the LSTM s = [h; c], and dL/dh_t is the
        gradient at a fixed c_t. Where it leaves the range of the dtype it is infinite, and at earlier steps NaN or
        infinite.

    Raises
    ------
    TypeError, ValueError
        As in `jacobians`; or ``dy`` or ``dstate`` does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> rnn = gpurnn.RNN(1, 1, activation="identity", dtype="float64")
    >>> rnn.params["weight_hh_l0"][...] = 0.5
    >>> state_gradients(rnn, np.zeros((3, 1, 1)), None, np.ones((1, 1, 1)))[:, 0, 0]
    array([0.125, 0.25 , 0.5  , 1.   ])
    """
    where = "state_gradients"
    transition = Transition(where, layer)
    x, s = transition.sequence(x, state)
    xp, (T, B, _), H = transition.xp, x.shape, transition.hidden
    if dy is not None:
        _, _, dy = _arrays.take(where, {"x": x, "dy": dy})
        _checks.shape(where, "dy", dy, (T, B, H), "(T, B, hidden_size)")
    _, ds = transition.sequence(x, dstate, "dstate")
    pulls = []
    for t in range(T):
        s, pull = transition.vjp(x[t, ...], s)
        check_finite(where, REACHED, xp.expand_dims(s, axis=0), t + 1)
        pulls.append(pull)
    gradients = np.empty((T + 1, B, transition.size), _checks.dtype_name(x))
    for t in range(T, -1, -1):
        if dy is not None and t > 0:
            by_h = ds[:, :H] + dy[t - 1, ...]
            ds = by_h if transition.size == H else xp.concat([by_h, ds[:, H:]], axis=1)
        gradients[t] = _dispatch.to_numpy(ds)
        if t > 0:
            ds = pulls[t - 1](ds)
    return gradients


@dataclass(frozen=True)
class GradientBound:
    """The bound ||dh_t / dh_k|| <= (lambda_max max|f'| + |leak|)^(t - k), and its verdict."""

    lambda_max: float
    """The largest singular value of W_hh; for a symmetric or orthogonal W_hh it is the spectral radius."""
    max_slope: float
    """max |f'| over all arguments, or over those of a run."""
    bound: float
    """lambda_max max|f'| + |leak|: the most by which a step can lengthen a gradient."""
    verdict: str
    """"vanishing": the bound is below 1, so gradients must vanish. "exploding": it is above 1, so they can explode.
    "neither": it is 1 to rounding."""


def gradient_bound(layer: Recurrent, x: Array | None = None, state: Any = None) -> GradientBound:
    """Bound the growth of gradients in a step of the vanilla cell: do they vanish, or can they explode?

    ||J_t|| <= lambda_max max|f'| + |leak|, with lambda_max the largest singular value of W_hh. A bound below 1 is
    sufficient for gradients to vanish. A bound above 1 is necessary for them to explode; `gradient_growth` measures
    whether they do.

    Parameters
    ----------
    layer : gpurnn.RNN
        It has one layer and one direction.
    x : (T, B, I) array, optional
        A run, with T and B of at least 1. Then max |f'| is taken over its arguments a_t, and the bound holds for this
        run. Without x it is taken over all arguments: 1, for the sigmoid 1/4.
    state
        As in `jacobians`.

    Returns
    -------
    GradientBound

    Raises
    ------
    ValueError
        The cell has gates, and so there is no such bound; or as in `jacobians`.
    TypeError
        As in `jacobians`.

    References
    ----------
    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
    section 2.1.

    Examples
    --------
    >>> import gpurnn
    >>> gradient_bound(gpurnn.RNN(2, 8, activation="sigmoid", dtype="float64")).verdict
    'vanishing'
    """
    where = "gradient_bound"
    transition = Transition(where, layer)
    cell = transition.cell
    if not isinstance(cell, cells.Vanilla):
        raise ValueError(
            f"{where}: layer is a {type(layer).__name__}, expected a gpurnn.RNN: a cell with gates has no such bound; "
            "gradient_growth measures any"
        )
    weight_hh = _dispatch.to_numpy(transition.weights["weight_hh"])
    lambda_max = float(np.linalg.norm(weight_hh, 2))
    slope = _largest_slope(cell.activation)
    if x is not None:
        x, s = transition.sequence(x, state)
        check_steps(where, x)
        states = _dispatch.to_numpy(transition.states(x, s))
        kept = cell.zoneout * states[:-1]
        value = (states[1:] - kept) / (1 - cell.zoneout) - cell.leak * states[:-1]
        slopes = {"tanh": 1 - value**2, "sigmoid": value * (1 - value), "relu": value > 0}
        slope = float(np.max(slopes.get(name_of(cell.activation), np.full(1, slope))))
    bound = (1 - cell.zoneout) * (lambda_max * slope + abs(cell.leak)) + cell.zoneout
    rounding = 10 * weight_hh.shape[0] * float(np.finfo(weight_hh.dtype).eps)
    return GradientBound(lambda_max, slope, bound, _verdict(bound, 1 + rounding))


@dataclass(frozen=True)
class GradientGrowth:
    """The measured growth of gradients over the steps of a sequence."""

    per_step: float
    """||J_T ... J_1||^(1/T), the geometric mean over the batch: the factor of one step."""
    total: float
    """||J_T ... J_1||, the geometric mean over the batch: the factor of the whole sequence. It is infinite or 0 if it
    is beyond float64; ``per_step`` is not."""
    verdict: str
    """"vanishing", "exploding" or "neither"."""


def gradient_growth(jacobians: Floats, factor: float = 1000.0) -> GradientGrowth:
    """Measure whether gradients vanished or exploded along a sequence, by ||ds_T / ds_0|| = ||J_T ... J_1||.

    Parameters
    ----------
    jacobians : (T, B, S, S) NumPy array
        The result of `jacobians`; T is at least 1.
    factor : float
        Above 1. Gradients that shrink by this factor over the sequence vanish; those that grow by it explode.

    Returns
    -------
    GradientGrowth

    Raises
    ------
    ValueError
        The shape does not fit, a Jacobian is NaN or infinite, or the factor is not above 1.

    Examples
    --------
    >>> import numpy as np
    >>> gradient_growth(np.full((100, 1, 1, 1), 0.5)).verdict
    'vanishing'
    """
    where = "gradient_growth"
    if 0 in np.shape(jacobians)[:2]:
        raise ValueError(f"{where}: jacobians has shape {jacobians.shape}, expected T and B of 1 at least")
    factor = _checks.positive(where, "factor", factor)
    if not factor > 1:
        raise ValueError(f"{where}: factor is {factor!r}, expected a number above 1")
    fractions, powers = _product_norms(where, jacobians)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        mean = float(np.mean(np.log(fractions[0]) + math.log(2) * powers[0]))
        total = float(np.exp(mean))
        return GradientGrowth(float(np.exp(mean / len(jacobians))), total, _verdict(total, factor))


@dataclass
class GradientNorms:
    """Records the norm of every parameter's gradient during training: ``Trainer(..., on_gradients=GradientNorms())``.

    Parameters
    ----------
    every : int
        The steps between two records.

    Attributes
    ----------
    steps : list of int
        The recorded steps: the numbers of earlier updates.
    norms : dict of str to list of float
        ||g||_2 of each parameter at those steps, before any clipping; NaN or infinite where the gradient was.

    Raises
    ------
    TypeError, ValueError
        ``every`` is not a whole number of at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> record = GradientNorms()
    >>> grads = {"rnn.weight_ih_l0": np.array([3.0]), "rnn.weight_hh_l0": np.array([4.0])}
    >>> record(0, grads, grads)
    >>> record.norms["rnn.weight_hh_l0"], record.layers
    ([4.0], {'rnn.l0': array([5.])})
    """

    every: int = 1
    steps: list[int] = field(default_factory=list, init=False)
    norms: dict[str, list[float]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.integer_at_least, "every", least=1)

    def __call__(self, step: int, params: dict[str, Array], grads: dict[str, Array]) -> None:
        """Record the gradients before update ``step`` if it is a step to record."""
        if step % self.every:
            return
        self.steps.append(step)
        for name, gradient in grads.items():
            self.norms.setdefault(name, []).append(float(gradients.global_norm({name: gradient})))

    @property
    def layers(self) -> dict[str, Floats]:
        """The norm of all gradients of each layer at the recorded steps, by name; each layer of a stack is separate."""
        by_layer: dict[str, Floats] = {}
        for name, norms in self.norms.items():
            owner, _, own = name.rpartition(".")
            place = re.search(r"_(l\d+(?:_reverse)?)$", own)
            key = ".".join(part for part in (owner, place and place[1]) if part) or name
            # A norm may be finite where its square is not.
            by_layer[key] = np.hypot(by_layer.get(key, np.zeros(len(norms))), norms)
        return by_layer


def _verdict(growth: float, factor: float) -> str:
    if growth * factor < 1:
        return "vanishing"
    return "exploding" if growth > factor else "neither"


def _product_norms(where: str, jacobians: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """f and e (T + 1, B) of the norms f 2^e of J_T ... J_{t+1}, which may be beyond float64."""
    shape = np.shape(jacobians)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"{where}: jacobians has shape {shape}, expected (T, B, S, S)")
    _, jacobians = _arrays.take(where, {"jacobians": jacobians})
    check_finite(where, "jacobians[{}]", jacobians)
    T, B, S, _ = shape
    product = np.broadcast_to(np.eye(S), (B, S, S))
    fractions, powers = np.ones((T + 1, B)), np.zeros((T + 1, B), np.int64)
    for t in reversed(range(T)):
        product = product @ jacobians[t]
        fractions[t], power = np.frexp(np.linalg.norm(product, 2, axis=(1, 2)))
        product = np.ldexp(product, -power[:, None, None])
        powers[t] = powers[t + 1] + power
    return fractions, powers
