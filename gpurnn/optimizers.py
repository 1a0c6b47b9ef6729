"""Optimizers: they update a dict of parameters in place, and keep their state by parameter name.

``weight_decay`` adds lambda W to every gradient, biases included, as PyTorch's optimizers do; AdamW decays instead of
adding. ``recurrent_weight_decay`` is apart from both: W_hh <- (1 - lambda_r) W_hh - (the step), for the parameters with
"weight_hh" in their name, with no learning rate in the factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from . import _arrays, _checks, _dispatch
from ._contract import Array
from .gradients import take_gradients


@dataclass(eq=False)
class Optimizer:
    """What all optimizers share: checks, state, and the decay of the recurrent weights."""

    lr: float
    weight_decay: float = field(default=0.0, kw_only=True)
    recurrent_weight_decay: float = field(default=0.0, kw_only=True)

    _step: int = field(default=0, init=False, repr=False)
    _state: dict[str, dict[str, Array]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _checks.attributes(self, _checks.non_negative, "lr", "weight_decay")
        _checks.attributes(self, _checks.fraction, "recurrent_weight_decay")

    def _kept(self) -> tuple[str, ...]:
        """The names of what is kept for each parameter, in the order in which `_update` gets them."""
        raise NotImplementedError

    def _initial(self, kind: str, lr: float) -> float:
        """What every element of ``kind`` is before the first step, which is one of ``lr``."""
        return 0.0

    def _update(
        self,
        wing: Any,
        params: list[Array],
        grads: list[Array],
        kept: dict[str, list[Array]],
        shrink: list[float],
        lr: float,
    ) -> None:
        """Update all parameters and what is kept for them; ``_step`` counts this update."""
        raise NotImplementedError

    def _decoupled_decay(self, lr: float) -> float:
        """The factor that a step of ``lr`` puts on every parameter."""
        return 1.0

    def step(self, params: Mapping[str, Array], grads: Mapping[str, Array], lr: float | None = None) -> None:
        """Update the arrays of ``params`` in place.

        Parameters
        ----------
        params : dict of str to array
            At least one, all of one dtype; the same names at every step. An array under several names is one parameter:
            it is updated once, with the sum of the gradients of these names, and known by the first of them.
        grads : dict of str to array
            The gradients, with the names and shapes of the parameters; of an array under several names, those of one of
            them or of more. They are not changed.
        lr : float, optional
            The learning rate of this step, instead of the optimizer's own.

        Raises
        ------
        KeyError
            ``grads`` lacks a name or has one that is no parameter.
        TypeError
            Unsupported or mixed arrays or dtypes.
        ValueError
            A shape that differs, a read-only parameter, parameters that overlap without being the same array, or that
            are not those of the steps before, a bad ``lr``.
        """
        where = f"{type(self).__name__}.step"
        rate = _checks.non_negative(where, "lr", self.lr if lr is None else lr)
        xp, params, updated, grads = take_gradients(where, params, grads)
        for name, p in params.items():
            _checks.writable(where, f"params[{name!r}]", p)
        grads = _arrays.apart(grads, params)
        if self._step:
            self._check_state(where, params)
        else:
            if self.recurrent_weight_decay and not any("weight_hh" in name for name in params):
                _checks.warn(
                    where,
                    f"recurrent_weight_decay={self.recurrent_weight_decay} has no effect, as no parameter has "
                    "weight_hh in its name",
                )
            self._state = {
                kind: {name: xp.full_like(p, self._initial(kind, rate)) for name, p in updated.items()}
                for kind in self._kept()
            }

        self._step += 1
        decay = self._decoupled_decay(rate)
        self._update(
            _dispatch.wing(where, **{f"params[{name!r}]": p for name, p in params.items()}),
            list(updated.values()),
            [grads[name] for name in params],
            {kind: [arrays[name] for name in params] for kind, arrays in self._state.items()},
            [decay * (1 - self.recurrent_weight_decay) if "weight_hh" in name else decay for name in params],
            rate,
        )
        for name, p in params.items():
            _arrays.write_back(updated[name], p)

    def _check_state(self, where: str, params: Mapping[str, Array]) -> None:
        for kind, arrays in self._state.items():
            if arrays.keys() != params.keys():
                raise ValueError(
                    f"{where}: params has the names {sorted(params)}, "
                    f"expected those of the steps before, {sorted(arrays)}"
                )
            kept = {name: f"the optimizer's {kind}.{name}" for name in params}
            for name, p in params.items():
                _checks.shape(where, f"params[{name!r}]", p, tuple(arrays[name].shape), f"the shape of {kept[name]}")
            of_all: dict[str, Any] = {kept[name]: arrays[name] for name in params} | {
                f"params[{n!r}]": p for n, p in params.items()
            }
            _dispatch.namespace(where, **of_all)
            _checks.same_dtype(where, **of_all)

    def state_dict(self) -> dict[str, Array]:
        """Copies of all that the optimizer has learnt, by name.

        Returns
        -------
        state : dict of str to array
            ``"step"``, the number of steps made, a NumPy int64 array of shape (); and for each parameter what is kept
            for it, under ``"KIND.NAME"``, an array of the parameter's library.
        """
        where = f"{type(self).__name__}.state_dict"
        state: dict[str, Array] = {"step": np.array(self._step, np.int64)}
        for kind, arrays in self._state.items():
            for name, array in arrays.items():
                state[f"{kind}.{name}"] = _copy(where, f"{kind}.{name}", array)
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Continue from what `state_dict` of an optimizer of the same kind and options returned.

        Parameters
        ----------
        state : dict of str to array
            Copied.

        Raises
        ------
        KeyError
            A name is missing, or one is not of this optimizer.
        TypeError
            A value is no array, or not of a floating dtype.
        ValueError
            The step is negative.
        """
        where = f"{type(self).__name__}.load_state_dict"
        kinds = self._kept()
        if "step" not in state:
            raise KeyError(f"{where}: state lacks 'step', expected what state_dict returned")
        step = _checks.integer_at_least(where, "step", int(state["step"]), 0)
        loaded: dict[str, dict[str, Array]] = {kind: {} for kind in kinds}
        for key in state:
            kind, _, name = key.partition(".")
            if kind in loaded and name:
                loaded[kind][name] = state[key]
            elif key != "step":
                raise KeyError(f"{where}: state has {key!r}, expected 'step' and names that begin with one of {kinds}")
        names = {name for arrays in loaded.values() for name in arrays}
        lacking = sorted(f"{kind}.{name}" for kind in kinds for name in names - loaded[kind].keys())
        if lacking:
            raise KeyError(f"{where}: state lacks {lacking}, expected what state_dict returned")
        if step and kinds and not names:
            raise KeyError(f"{where}: state has nothing but the step {step}, expected arrays named {kinds}")
        self._state = {
            kind: {name: _loaded(where, f"state[{f'{kind}.{name}'!r}]", a) for name, a in arrays.items()}
            for kind, arrays in loaded.items()
        }
        self._step = step


def _loaded(where: str, name: str, array: Array) -> Array:
    copied = _copy(where, name, array)
    _checks.floating(where, name, array)
    return copied


def _copy(where: str, name: str, array: Array) -> Array:
    return _dispatch.namespace(where, **{name: array}).asarray(_arrays.contiguous(array), copy=True)


def _pair(where: str, name: str, pair: Any, check: Callable[[str, str, float], float]) -> tuple[float, float]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{where}: {name} is {pair!r}, expected a pair of numbers")
    first, second = pair
    return check(where, f"{name}[0]", first), check(where, f"{name}[1]", second)


@dataclass(eq=False)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum: b <- mu b + (1 - dampening) g, theta <- theta - lr b.

    At the first step b = g; without momentum b is g at every step. Nesterov's form descends along g + mu b.

    Parameters
    ----------
    lr : float
        Learning rate.
    momentum : float
        mu.
    dampening : float
        Keeps that share of g out of b.
    nesterov : bool
        Needs momentum and no dampening.
    weight_decay : float
        lambda: g <- g + lambda theta.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step.

    Raises
    ------
    ValueError
        A parameter out of its range.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in deep learning",
    ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.optimizers import SGD
    >>> params = {"weight": np.array([[1.0, 2.0]])}
    >>> SGD(lr=0.5).step(params, {"weight": np.array([[1.0, -1.0]])})
    >>> params["weight"]
    array([[0.5, 2.5]])
    """

    lr: float = 1e-3
    momentum: float = field(default=0.0, kw_only=True)
    dampening: float = field(default=0.0, kw_only=True)
    nesterov: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.attributes(self, _checks.non_negative, "momentum", "dampening")
        _checks.attributes(self, _checks.flag, "nesterov")
        if self.dampening and not self.momentum:
            _checks.warn("SGD", f"dampening={self.dampening} has no effect without momentum")
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"SGD: nesterov is True with momentum {self.momentum!r} and dampening {self.dampening!r}, "
                "expected momentum above 0 and dampening 0"
            )

    def _kept(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def _update(
        self,
        wing: Any,
        params: list[Array],
        grads: list[Array],
        kept: dict[str, list[Array]],
        shrink: list[float],
        lr: float,
    ) -> None:
        wing.sgd_update(
            params,
            grads,
            kept.get("momentum"),
            shrink,
            lr=lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            dampening=self.dampening,
            nesterov=self.nesterov,
            step=self._step,
        )


@dataclass(eq=False)
class RMSprop(Optimizer):
    """RMSprop: v <- alpha v + (1 - alpha) g^2, theta <- theta - lr g / (sqrt(v) + eps).

    Parameters
    ----------
    lr : float
        Learning rate.
    alpha : float
        Decay of the average of squares, in [0, 1).
    eps : float
        Keeps the divisor off zero.
    momentum : float
        mu: b <- mu b + g / (sqrt(v) + eps), theta <- theta - lr b.
    centered : bool
        Divide by the root of the variance v - m^2, with m <- alpha m + (1 - alpha) g, instead of that of v.
    weight_decay : float
        lambda: g <- g + lambda theta.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step.

    Raises
    ------
    ValueError
        A parameter out of its range.

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5 - RMSProp", Coursera: Neural networks for machine learning, 2012. Centred:
    A. Graves, "Generating sequences with recurrent neural networks", arXiv:1308.0850 (2013), section 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.optimizers import RMSprop
    >>> params = {"weight": np.array([[1.0, 2.0]])}
    >>> RMSprop(lr=0.1, alpha=0.75).step(params, {"weight": np.array([[4.0, -0.5]])})
    >>> params["weight"].round(6)
    array([[0.8, 2.2]])
    """

    lr: float = 1e-2
    alpha: float = field(default=0.99, kw_only=True)
    eps: float = field(default=1e-8, kw_only=True)
    momentum: float = field(default=0.0, kw_only=True)
    centered: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.attributes(self, _checks.fraction, "alpha")
        _checks.attributes(self, _checks.non_negative, "eps", "momentum")
        _checks.attributes(self, _checks.flag, "centered")

    def _kept(self) -> tuple[str, ...]:
        return ("square", *(["mean"] if self.centered else []), *(["momentum"] if self.momentum else []))

    def _update(
        self,
        wing: Any,
        params: list[Array],
        grads: list[Array],
        kept: dict[str, list[Array]],
        shrink: list[float],
        lr: float,
    ) -> None:
        wing.rmsprop_update(
            params,
            grads,
            kept["square"],
            kept.get("mean"),
            kept.get("momentum"),
            shrink,
            lr=lr,
            weight_decay=self.weight_decay,
            alpha=self.alpha,
            eps=self.eps,
            momentum=self.momentum,
        )


@dataclass(eq=False)
class Adam(Optimizer):
    """Adam: m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, theta <- theta - lr m' / (sqrt(v') + eps).

    m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t) at the step t, which counts from 1.

    Parameters
    ----------
    lr : float
        Learning rate.
    betas : pair of floats
        beta1 and beta2, each in [0, 1).
    eps : float
        Keeps the divisor off zero.
    amsgrad : bool
        The largest v so far stands for v.
    weight_decay : float
        lambda: g <- g + lambda theta.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step.

    Raises
    ------
    ValueError
        A parameter out of its range.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1. AMSGrad: S. J. Reddi,
    S. Kale, S. Kumar, "On the convergence of Adam and beyond", ICLR 2018; v' is formed from the largest v, as PyTorch
    does.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.optimizers import Adam
    >>> params = {"weight": np.array([[1.0, 2.0]])}
    >>> Adam(lr=0.1).step(params, {"weight": np.array([[4.0, -0.5]])})
    >>> params["weight"].round(6)
    array([[0.9, 2.1]])
    """

    lr: float = 1e-3
    betas: tuple[float, float] = field(default=(0.9, 0.999), kw_only=True)
    eps: float = field(default=1e-8, kw_only=True)
    amsgrad: bool = field(default=False, kw_only=True)

    _decoupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.betas = _pair(type(self).__name__, "betas", self.betas, _checks.fraction)
        _checks.attributes(self, _checks.non_negative, "eps")
        _checks.attributes(self, _checks.flag, "amsgrad")

    def _kept(self) -> tuple[str, ...]:
        return ("mean", "square", "largest") if self.amsgrad else ("mean", "square")

    def _decoupled_decay(self, lr: float) -> float:
        return 1.0 - lr * self.weight_decay if self._decoupled else 1.0

    def _update(
        self,
        wing: Any,
        params: list[Array],
        grads: list[Array],
        kept: dict[str, list[Array]],
        shrink: list[float],
        lr: float,
    ) -> None:
        wing.adam_update(
            params,
            grads,
            kept["mean"],
            kept["square"],
            kept.get("largest"),
            shrink,
            lr=lr,
            weight_decay=0.0 if self._decoupled else self.weight_decay,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            step=self._step,
        )


@dataclass(eq=False)
class AdamW(Adam):
    """Adam with decoupled weight decay: theta <- (1 - lr lambda) theta, then Adam's step, whose g has no decay in it.

    Parameters
    ----------
    lr : float
        Learning rate.
    betas : pair of floats
        beta1 and beta2, each in [0, 1).
    eps : float
        Keeps the divisor off zero.
    amsgrad : bool
        The largest v so far stands for v.
    weight_decay : float
        lambda.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step, on top of the other decay.

    Raises
    ------
    ValueError
        A parameter out of its range.

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.optimizers import AdamW
    >>> params = {"weight": np.array([[1.0, 2.0]])}
    >>> AdamW(lr=0.1, weight_decay=0.5).step(params, {"weight": np.array([[4.0, -0.5]])})
    >>> params["weight"].round(6)
    array([[0.85, 2.  ]])
    """

    weight_decay: float = field(default=1e-2, kw_only=True)

    _decoupled: ClassVar[bool] = True


@dataclass(eq=False)
class Adagrad(Optimizer):
    """Adagrad: v <- v + g^2, theta <- theta - lr_t g / (sqrt(v) + eps).

    lr_t = lr / (1 + (t - 1) lr_decay) at the step t, which counts from 1.

    Parameters
    ----------
    lr : float
        Learning rate.
    lr_decay : float
        How fast the learning rate falls.
    initial_accumulator_value : float
        v before the first step.
    eps : float
        Keeps the divisor off zero.
    weight_decay : float
        lambda: g <- g + lambda theta.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step.

    Raises
    ------
    ValueError
        A parameter out of its range.

    References
    ----------
    J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic optimization",
    Journal of Machine Learning Research 12 (2011), figure 1, with diagonal matrices. The falling learning rate is
    PyTorch's.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.optimizers import Adagrad
    >>> params = {"weight": np.array([[1.0, 2.0]])}
    >>> Adagrad(lr=0.1, initial_accumulator_value=9.0).step(params, {"weight": np.array([[4.0, 0.0]])})
    >>> params["weight"].round(6)
    array([[0.92, 2.  ]])
    """

    lr: float = 1e-2
    lr_decay: float = field(default=0.0, kw_only=True)
    initial_accumulator_value: float = field(default=0.0, kw_only=True)
    eps: float = field(default=1e-10, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.attributes(self, _checks.non_negative, "lr_decay", "initial_accumulator_value", "eps")

    def _kept(self) -> tuple[str, ...]:
        return ("sum",)

    def _initial(self, kind: str, lr: float) -> float:
        return self.initial_accumulator_value

    def _update(
        self,
        wing: Any,
        params: list[Array],
        grads: list[Array],
        kept: dict[str, list[Array]],
        shrink: list[float],
        lr: float,
    ) -> None:
        wing.adagrad_update(
            params,
            grads,
            kept["sum"],
            shrink,
            lr=lr / (1 + (self._step - 1) * self.lr_decay),
            weight_decay=self.weight_decay,
            eps=self.eps,
        )


@dataclass(eq=False)
class Adadelta(Optimizer):
    """Adadelta: v <- rho v + (1 - rho) g^2, d = sqrt(u + eps) / sqrt(v + eps) g, theta <- theta - lr d.

    Then u <- rho u + (1 - rho) d^2: the steps have the parameters' own units.

    Parameters
    ----------
    lr : float
        Learning rate; the paper has 1.
    rho : float
        Decay of both averages of squares, in [0, 1).
    eps : float
        Keeps the divisor, and the first step, off zero.
    weight_decay : float
        lambda: g <- g + lambda theta.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step.

    Raises
    ------
    ValueError
        A parameter out of its range.

    References
    ----------
    M. D. Zeiler, "ADADELTA: an adaptive learning rate method", arXiv:1212.5701 (2012), algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.optimizers import Adadelta
    >>> params = {"weight": np.array([[1.0, 2.0]])}
    >>> Adadelta(rho=0.75, eps=0.01).step(params, {"weight": np.array([[4.0, 0.0]])})
    >>> params["weight"].round(6)
    array([[0.80025, 2.     ]])
    """

    lr: float = 1.0
    rho: float = field(default=0.9, kw_only=True)
    eps: float = field(default=1e-6, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.attributes(self, _checks.fraction, "rho")
        _checks.attributes(self, _checks.non_negative, "eps")

    def _kept(self) -> tuple[str, ...]:
        return ("square", "update")

    def _update(
        self,
        wing: Any,
        params: list[Array],
        grads: list[Array],
        kept: dict[str, list[Array]],
        shrink: list[float],
        lr: float,
    ) -> None:
        wing.adadelta_update(
            params,
            grads,
            kept["square"],
            kept["update"],
            shrink,
            lr=lr,
            weight_decay=self.weight_decay,
            rho=self.rho,
            eps=self.eps,
        )


@dataclass(eq=False)
class NAdam(Optimizer):
    """NAdam, Adam with Nesterov's momentum: theta <- theta - lr m' / (sqrt(v') + eps).

    m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, v' = v / (1 - beta2^t) and
    m' = mu_{t+1} m / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) g / (1 - mu_1 ... mu_t) at the step t, which counts from 1;
    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2) rises towards beta1.

    Parameters
    ----------
    lr : float
        Learning rate.
    betas : pair of floats
        beta1 and beta2, each in [0, 1).
    eps : float
        Keeps the divisor off zero.
    momentum_decay : float
        How fast mu_t rises.
    weight_decay : float
        lambda: g <- g + lambda theta.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step.

    Raises
    ------
    TypeError
        An argument that is no number, or no pair of them.
    ValueError
        A parameter out of its range.

    References
    ----------
    T. Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016, algorithm 2; the schedule of mu is that
    of the author's report of the same name, with momentum_decay = 1/250.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.optimizers import NAdam
    >>> params = {"weight": np.array([[1.0, 2.0]])}
    >>> NAdam(lr=0.1).step(params, {"weight": np.array([[4.0, -0.5]])})
    >>> params["weight"].round(6)
    array([[0.894355, 2.105645]])
    """

    lr: float = 2e-3
    betas: tuple[float, float] = field(default=(0.9, 0.999), kw_only=True)
    eps: float = field(default=1e-8, kw_only=True)
    momentum_decay: float = field(default=4e-3, kw_only=True)

    _momentum_product: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.betas = _pair("NAdam", "betas", self.betas, _checks.fraction)
        _checks.attributes(self, _checks.non_negative, "eps", "momentum_decay")

    def _kept(self) -> tuple[str, ...]:
        return ("mean", "square")

    def _momentum(self, step: int) -> float:
        return float(self.betas[0] * (1 - 0.5 * 0.96 ** (step * self.momentum_decay)))

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        super().load_state_dict(state)
        self._momentum_product = math.prod(map(self._momentum, range(1, self._step + 1)), start=1.0)

    def _update(
        self,
        wing: Any,
        params: list[Array],
        grads: list[Array],
        kept: dict[str, list[Array]],
        shrink: list[float],
        lr: float,
    ) -> None:
        momentum = self._momentum(self._step)
        self._momentum_product *= momentum
        wing.nadam_update(
            params,
            grads,
            kept["mean"],
            kept["square"],
            shrink,
            lr=lr,
            weight_decay=self.weight_decay,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            momentum=momentum,
            next_momentum=self._momentum(self._step + 1),
            momentum_product=self._momentum_product,
            step=self._step,
        )


@dataclass(eq=False)
class Adamax(Optimizer):
    """Adamax, Adam with the infinity norm: m <- beta1 m + (1 - beta1) g, u <- max(beta2 u, abs(g) + eps).

    theta <- theta - lr / (1 - beta1^t) m / u at the step t, which counts from 1.

    Parameters
    ----------
    lr : float
        Learning rate.
    betas : pair of floats
        beta1 and beta2, each in [0, 1).
    eps : float
        Keeps the divisor off zero.
    weight_decay : float
        lambda: g <- g + lambda theta.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step.

    Raises
    ------
    TypeError
        An argument that is no number, or no pair of them.
    ValueError
        A parameter out of its range.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 2. eps is PyTorch's.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.optimizers import Adamax
    >>> params = {"weight": np.array([[1.0, 2.0]])}
    >>> Adamax(lr=0.1).step(params, {"weight": np.array([[4.0, -0.5]])})
    >>> params["weight"].round(6)
    array([[0.9, 2.1]])
    """

    lr: float = 2e-3
    betas: tuple[float, float] = field(default=(0.9, 0.999), kw_only=True)
    eps: float = field(default=1e-8, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.betas = _pair("Adamax", "betas", self.betas, _checks.fraction)
        _checks.attributes(self, _checks.non_negative, "eps")

    def _kept(self) -> tuple[str, ...]:
        return ("mean", "norm")

    def _update(
        self,
        wing: Any,
        params: list[Array],
        grads: list[Array],
        kept: dict[str, list[Array]],
        shrink: list[float],
        lr: float,
    ) -> None:
        wing.adamax_update(
            params,
            grads,
            kept["mean"],
            kept["norm"],
            shrink,
            lr=lr,
            weight_decay=self.weight_decay,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            step=self._step,
        )


@dataclass(eq=False)
class Rprop(Optimizer):
    """Resilient backpropagation: theta <- theta - eta sign(g), with a size eta of its own for each element.

    Before that eta <- min(eta_plus eta, eta_max) where g has the sign that it had in the step before; where it has the
    other, eta <- max(eta_minus eta, eta_min) and g <- 0. It is for gradients of the whole data set, not of minibatches.

    Parameters
    ----------
    lr : float
        eta at the first step. A learning rate that a later step is given has no effect.
    etas : pair of floats
        eta_minus, below 1, and eta_plus, above 1.
    step_sizes : pair of floats
        eta_min and eta_max.
    weight_decay : float
        lambda: g <- g + lambda theta.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step.

    Raises
    ------
    TypeError
        An argument that is no number, or no pair of them.
    ValueError
        A parameter out of its range.

    References
    ----------
    M. Riedmiller, H. Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", ICNN
    1993; without its step back where the sign has turned: iRprop- of C. Igel, M. Hüsken, "Improving the Rprop learning
    algorithm", NC 2000.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.optimizers import Rprop
    >>> params = {"weight": np.array([[1.0, 2.0]])}
    >>> optimizer = Rprop(lr=0.1)
    >>> optimizer.step(params, {"weight": np.array([[4.0, -0.5]])})
    >>> params["weight"].round(6)
    array([[0.9, 2.1]])
    >>> optimizer.step(params, {"weight": np.array([[2.0, 0.5]])})
    >>> params["weight"].round(6)
    array([[0.78, 2.1 ]])
    """

    lr: float = 1e-2
    etas: tuple[float, float] = field(default=(0.5, 1.2), kw_only=True)
    step_sizes: tuple[float, float] = field(default=(1e-6, 50.0), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.etas = _pair("Rprop", "etas", self.etas, _checks.non_negative)
        if not 0 < self.etas[0] < 1 < self.etas[1]:
            raise ValueError(f"Rprop: etas is {self.etas!r}, expected one between 0 and 1 and one above 1")
        self.step_sizes = _pair("Rprop", "step_sizes", self.step_sizes, _checks.non_negative)
        if not self.step_sizes[0] <= self.step_sizes[1]:
            raise ValueError(f"Rprop: step_sizes is {self.step_sizes!r}, expected the smaller one first")

    def _kept(self) -> tuple[str, ...]:
        return ("previous", "size")

    def _initial(self, kind: str, lr: float) -> float:
        return lr if kind == "size" else 0.0

    def _update(
        self,
        wing: Any,
        params: list[Array],
        grads: list[Array],
        kept: dict[str, list[Array]],
        shrink: list[float],
        lr: float,
    ) -> None:
        wing.rprop_update(
            params,
            grads,
            kept["previous"],
            kept["size"],
            shrink,
            weight_decay=self.weight_decay,
            eta_minus=self.etas[0],
            eta_plus=self.etas[1],
            smallest=self.step_sizes[0],
            largest=self.step_sizes[1],
        )
