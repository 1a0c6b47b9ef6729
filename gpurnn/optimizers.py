"""Optimizers: they update a dict of parameters in place, and keep their state by parameter name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from . import _arrays, _checks, _dispatch, _docs, _foreign
from ._contract import Array
from .cells import RECURRENT_WEIGHT
from .gradients import l2_strengths, take_gradients

if TYPE_CHECKING:
    pass

_AVERAGE = "average"
"""The name of the moving averages of the parameters in `state_dict`."""


def _fraction(default: Any) -> Any:
    """A dataclass field for a number, or a pair of numbers, in [0, 1)."""
    return field(default=default, metadata={"check": _checks.fraction})


def _decay(where: str, name: str, value: Any) -> float | dict[str, float]:
    """Check the weight decay: one for all parameters, or a dict by parts of parameter names."""
    return _by_text(where, name, value) if isinstance(value, Mapping) else _checks.non_negative(where, name, value)


def _by_text(where: str, name: str, value: Any) -> dict[str, float]:
    """Check a dict of numbers by parts of parameter names."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: {name} is {_checks.described(value)}, expected a dict of str to float")
    for text in value:
        if not isinstance(text, str):
            raise TypeError(f"{where}: {name} has the key {text!r}, expected a part of the name of a parameter")
    return {text: _checks.non_negative(where, f"{name}[{text!r}]", number) for text, number in value.items()}


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    """Check a sequence of parts of parameter names."""
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{where}: {name} is {value!r}, expected a sequence of parts of the names of parameters")
    return texts


def _takes(default: Any, check: Callable[[str, str, Any], Any]) -> Any:
    """A dataclass field for an option that may be its default; ``check`` checks and converts any other value."""

    def checked(where: str, name: str, value: Any) -> Any:
        return default if value is default else check(where, name, value)

    return field(default=default, metadata={"takes": checked})


@dataclass(eq=False, repr=False)
class Optimizer(_checks.ListsOptions):
    """The base class of all optimizers.

    A subclass declares its hyperparameters as fields, the arrays that it keeps for each parameter in `slots`, and the
    numbers that a step computes with in `scalars`. The wings define the equations of the step. A number is at least 0,
    unless its field says otherwise.

    Parameters
    ----------
    lr : float
        Learning rate.
    weight_decay : float or dict of str to float
        lambda: g <- g + lambda theta, for biases too, as in PyTorch. A dict maps a part of a parameter's name to the
        lambda of all parameters whose names contain it; other parameters have no decay. So ``{"weight": 0.01}`` spares
        the biases. If several parts are in a name, their lambdas add up.
    recurrent_weight_decay : float
        lambda_r in [0, 1): W_hh <- (1 - lambda_r) W_hh before the step, in addition to ``weight_decay``. The learning
        rate does not multiply lambda_r. W_hh is every parameter with "weight_hh" in its name.
    lr_scale : dict of str to float, optional
        Factors of the learning rate, by a part of a parameter's name: ``{"embedding": 0.1}`` trains parameters with
        "embedding" in their names ten times slower than the others, whatever the schedule. If several parts are in a
        name, their factors multiply.
    frozen : sequence of str
        Parts of the names of parameters that do not change: ``["embedding", "recurrent"]``. They have no state and no
        decay, and do not count in the norm by which a `gpurnn.Trainer` clips.
    ema_decay : float, optional
        d in [0, 1): `averages` are exponential moving averages of the parameters, a <- d_t a + (1 - d_t) theta after
        each step, from the initial parameters on, with d_t = min(d, (1 + t) / (10 + t)) at the step t, so that early
        parameters are soon forgotten. A `gpurnn.Trainer` validates the averages and leaves them in the model.

    Notes
    -----
    Names are those in `params`. An array with several names goes by the first.

    Raises
    ------
    TypeError
        An argument has a wrong type.
    ValueError
        An argument is out of its range.
    """

    kind: ClassVar[str]
    """The wings' name for the equations of the step."""
    decoupled: ClassVar[bool] = False
    """Whether weight_decay shrinks the parameters instead of adding to their gradients."""

    lr: float
    _: KW_ONLY
    weight_decay: float | Mapping[str, float] = _takes(0.0, _decay)
    recurrent_weight_decay: float = _fraction(0.0)
    lr_scale: Mapping[str, float] | None = _takes(None, _by_text)
    frozen: Iterable[str] = _takes((), _texts)
    ema_decay: float | None = _takes(None, _checks.fraction)

    _step: int = field(default=0, init=False, repr=False)
    _state: dict[str, dict[str, Array]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        where = type(self).__name__
        for option in fields(self):
            if option.init:
                check = option.metadata.get("check", _checks.non_negative)
                if "takes" in option.metadata:
                    check = option.metadata["takes"]
                elif isinstance(option.default, bool):
                    check = _checks.flag
                elif isinstance(option.default, tuple):
                    check = functools.partial(_pair, check)
                setattr(self, option.name, check(where, option.name, getattr(self, option.name)))

    def __repr__(self) -> str:
        """The call that makes an optimizer like this one, without options that have their default."""
        shown = {f.name: (getattr(self, f.name), f.default) for f in fields(self) if f.init}
        options = [f"{n}={value!r}" for n, (value, default) in shown.items() if n == "lr" or value != default]
        return f"{type(self).__name__}({', '.join(options)})"

    def slots(self, lr: float) -> dict[str, float | None]:
        """The arrays that a step keeps for each parameter.

        Parameters
        ----------
        lr : float
            The learning rate of the first step.

        Returns
        -------
        slots : dict of str to float or None
            The value of every element before the first step, by the slot's name in `state_dict`; None for a slot that
            these hyperparameters do not need.
        """
        raise NotImplementedError

    def scalars(self, step: int, lr: float) -> dict[str, float | bool]:
        """The numbers, in float64, that a step computes with.

        Parameters
        ----------
        step : int
            Counts from 1.
        lr : float
            The learning rate of this step.

        Returns
        -------
        scalars : dict of str to float or bool
            The numbers, by their names in the wings' equations.
        """
        raise NotImplementedError

    @_foreign.accepts_in_place("params")
    def step(self, params: Mapping[str, Array], grads: Mapping[str, Array], lr: float | None = None) -> None:
        """Update the arrays of ``params`` in place.

        Parameters
        ----------
        params : dict of str to array
            At least one array, all of one dtype, with the same names at every step. An array under several names is one
            parameter: it is updated once, with the sum of the gradients under these names, and its state is stored
            under the first name.
        grads : dict of str to array
            The gradients, with the names and shapes of the parameters. An array under several names needs a gradient
            under at least one of them. The gradients are not changed.
        lr : float, optional
            The learning rate of this step, instead of the optimizer's.

        Raises
        ------
        KeyError
            ``grads`` lacks a parameter, or has a name that ``params`` lacks.
        TypeError
            Arrays or dtypes are mixed or not supported.
        ValueError
            A gradient's shape differs from its parameter's. A parameter is read-only, or shares memory with another
            without being the same array. The parameters differ from those of earlier steps. ``lr`` is negative or not
            finite.

        Notes
        -----
        A CUDA graph that has captured a step repeats the learning rate and the step number of the capture.
        """
        where = f"{type(self).__name__}.step"
        rate = _checks.non_negative(where, "lr", self.lr if lr is None else lr)
        xp, params, updated, grads = take_gradients(where, params, grads)
        for name, p in params.items():
            _checks.writable(where, f"params[{name!r}]", p)
        grads = _arrays.apart(grads, params)
        scales, decays = self._groups(where, params)
        params = {name: params[name] for name in scales}
        if self._step:
            self._check_state(where, params)
        else:
            if self.recurrent_weight_decay and not any(RECURRENT_WEIGHT in name for name in params):
                _checks.warn(
                    where,
                    f"recurrent_weight_decay={self.recurrent_weight_decay} has no effect, as no parameter has "
                    f"{RECURRENT_WEIGHT} in its name",
                )
            values = {name: self.slots(rate * scale) for name, scale in scales.items()}
            self._state = {
                slot: {name: xp.full_like(updated[name], values[name][slot]) for name in params}
                for slot, value in self.slots(rate).items()
                if value is not None
            }
            if self.ema_decay is not None:
                self._state[_AVERAGE] = {name: xp.asarray(updated[name], copy=True) for name in params}

        self._step += 1
        state, wing = self._state, _dispatch.wing(where, **{f"params[{name!r}]": p for name, p in params.items()})
        groups: dict[tuple[float, float], list[str]] = {}
        for name, scale in scales.items():
            groups.setdefault((rate * scale, decays[name]), []).append(name)
        for (lr_of_group, weight_decay), names in groups.items():
            decay = 1.0 - lr_of_group * weight_decay if self.decoupled else 1.0
            wing.optimizer_update(
                self.kind,
                [updated[name] for name in names],
                [grads[name] for name in names],
                {
                    slot: [state[slot][name] for name in names] if slot in state else None
                    for slot in self.slots(lr_of_group)
                },
                [decay * (1 - self.recurrent_weight_decay) if RECURRENT_WEIGHT in name else decay for name in names],
                0.0 if self.decoupled else weight_decay,
                self.scalars(self._step, lr_of_group),
            )
        if self.ema_decay is not None:
            # a <- d a - (d - 1) theta is a step of SGD: shrink a by d, gradient theta, learning rate d - 1.
            d = min(self.ema_decay, (1 + self._step) / (10 + self._step))
            averages = [state[_AVERAGE][name] for name in params]
            step = {"lr": d - 1, "mu": 0.0, "undamped": 1.0, "nesterov": False, "first": False}
            wing.optimizer_update(
                SGD.kind, averages, [updated[n] for n in params], {"momentum": None}, [d] * len(averages), 0.0, step
            )
        for name, p in params.items():
            _arrays.write_back(updated[name], p)

    def _groups(self, where: str, params: Mapping[str, Array]) -> tuple[dict[str, float], dict[str, float]]:
        """The learning-rate factor and the weight decay of each parameter that is not frozen.

        Texts that occur in no name are rejected.
        """
        factors = self.lr_scale or {}
        for option, texts in (("frozen", self.frozen), ("lr_scale", factors)):
            for text in texts:
                if not any(text in name for name in params):
                    raise ValueError(
                        f"{where}: {option} has {text!r}, expected a part of one of the names {sorted(params)}"
                    )
        scales = {
            name: math.prod(factor for text, factor in factors.items() if text in name)
            for name in params
            if not any(text in name for text in self.frozen)
        }
        if not scales:
            raise ValueError(f"{where}: frozen is {self.frozen!r}, expected a parameter that is left to be trained")
        if isinstance(self.weight_decay, Mapping):
            decays = l2_strengths(where, "weight_decay", self.weight_decay, params)
            return scales, {name: decays.get(name, 0.0) for name in scales}
        return scales, dict.fromkeys(scales, self.weight_decay)

    @property
    def averages(self) -> dict[str, Array]:
        """The moving averages of the trained parameters, by name; empty before the first step.

        Copy them into the parameters, or use them instead. The next step changes these arrays.

        Raises
        ------
        AttributeError
            ``ema_decay`` is None, so there are no averages.

        Examples
        --------
        >>> import numpy as np
        >>> from gpurnn.optimizers import SGD
        >>> params, optimizer = {"weight": np.array([1.0])}, SGD(lr=1.0, ema_decay=0.99)
        >>> optimizer.step(params, {"weight": np.array([0.5])})
        >>> params["weight"], optimizer.averages["weight"].round(6)
        (array([0.5]), array([0.590909]))
        """
        if self.ema_decay is None:
            kind = type(self).__name__
            raise AttributeError(f"{kind}: ema_decay is None, expected a number, such as 0.999, for averages")
        return dict(self._state.get(_AVERAGE, {}))

    def _check_state(self, where: str, params: Mapping[str, Array]) -> None:
        for slot, arrays in self._state.items():
            if arrays.keys() != params.keys():
                raise ValueError(
                    f"{where}: params has the names {sorted(params)}, expected those of earlier steps, {sorted(arrays)}"
                )
            names = {name: f"the optimizer's {slot}.{name}" for name in params}
            for name, p in params.items():
                _checks.shape(where, f"params[{name!r}]", p, tuple(arrays[name].shape), f"the shape of {names[name]}")
            every: dict[str, Any] = {names[name]: arrays[name] for name in params}
            every |= {f"params[{name!r}]": p for name, p in params.items()}
            _dispatch.namespace(where, **every)
            _checks.same_dtype(where, **every)

    def state_dict(self) -> dict[str, Array]:
        """Copies of the optimizer's state, by name.

        Returns
        -------
        state : dict of str to array
            ``"step"``, the number of steps made, is a NumPy int64 array of shape (). ``"SLOT.NAME"`` is a slot's array
            for a parameter, in the parameter's library.
        """
        where = f"{type(self).__name__}.state_dict"
        state: dict[str, Array] = {"step": np.array(self._step, np.int64)}
        for slot, arrays in self._state.items():
            for name, array in arrays.items():
                state[f"{slot}.{name}"] = _copy(where, f"{slot}.{name}", array)
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Continue from the `state_dict` of an optimizer of the same class and hyperparameters.

        Parameters
        ----------
        state : dict of str to array
            The state. Its arrays are copied.

        Raises
        ------
        KeyError
            A name is missing, or does not belong to this optimizer.
        TypeError
            A value is not an array, or its dtype is not a floating dtype.
        ValueError
            The step is negative.
        """
        where = f"{type(self).__name__}.load_state_dict"
        slots = tuple(slot for slot, value in self.slots(self.lr).items() if value is not None)
        slots += () if self.ema_decay is None else (_AVERAGE,)
        if "step" not in state:
            raise KeyError(f"{where}: state lacks 'step', expected what state_dict returned")
        step = _checks.integer_at_least(where, "step", int(state["step"]), 0)
        loaded: dict[str, dict[str, Array]] = {slot: {} for slot in slots}
        for key in state:
            slot, _, name = key.partition(".")
            if slot in loaded and name:
                loaded[slot][name] = state[key]
            elif key != "step":
                raise KeyError(f"{where}: state has {key!r}, expected 'step' and names that begin with one of {slots}")
        names = {name for arrays in loaded.values() for name in arrays}
        lacking = sorted(f"{slot}.{name}" for slot in slots for name in names - loaded[slot].keys())
        if lacking:
            raise KeyError(f"{where}: state lacks {lacking}, expected what state_dict returned")
        if step and slots and not names:
            raise KeyError(f"{where}: state has nothing but the step {step}, expected arrays named {slots}")
        self._state = {
            slot: {name: _loaded(where, f"state[{f'{slot}.{name}'!r}]", a) for name, a in arrays.items()}
            for slot, arrays in loaded.items()
        }
        self._step = step


def _loaded(where: str, name: str, array: Array) -> Array:
    copied = _copy(where, name, array)
    _checks.floating(where, name, array)
    return copied


def _copy(where: str, name: str, array: Array) -> Array:
    return _dispatch.namespace(where, **{name: array}).asarray(_arrays.contiguous(array), copy=True)


def _pair(check: Callable[[str, str, float], float], where: str, name: str, pair: Any) -> tuple[float, float]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{where}: {name} is {pair!r}, expected a pair of numbers")
    first, second = pair
    return check(where, f"{name}[0]", first), check(where, f"{name}[1]", second)


@_docs.inherits_parameters
@dataclass(eq=False, repr=False)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum: b <- mu b + (1 - dampening) g, theta <- theta - lr b.

    At the first step b = g. Without momentum b is g at every step. Nesterov's form descends along g + mu b.

    Parameters
    ----------
    momentum : float
        mu.
    dampening : float
        The share of g that is not added to b.
    nesterov : bool
        Whether to use Nesterov's form, which needs momentum, and dampening 0.

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

    kind: ClassVar[str] = "sgd"

    lr: float = 1e-3
    _: KW_ONLY
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dampening and not self.momentum:
            _checks.warn("SGD", f"dampening={self.dampening} has no effect without momentum")
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"SGD: nesterov is True with momentum {self.momentum!r} and dampening {self.dampening!r}, "
                "expected momentum above 0 and dampening 0"
            )

    def slots(self, lr: float) -> dict[str, float | None]:
        return {"momentum": 0.0 if self.momentum else None}

    def scalars(self, step: int, lr: float) -> dict[str, float | bool]:
        undamped = 1 - self.dampening
        return {"lr": lr, "mu": self.momentum, "undamped": undamped, "nesterov": self.nesterov, "first": step == 1}


@_docs.inherits_parameters
@dataclass(eq=False, repr=False)
class RMSprop(Optimizer):
    """RMSprop: v <- alpha v + (1 - alpha) g^2, theta <- theta - lr g / (sqrt(v) + eps).

    Parameters
    ----------
    alpha : float
        Decay of the average of squares, in [0, 1).
    eps : float
        Keeps the divisor away from zero.
    momentum : float
        mu: b <- mu b + g / (sqrt(v) + eps), theta <- theta - lr b.
    centered : bool
        Divide by the root of the variance v - m^2 instead of the root of v, with m <- alpha m + (1 - alpha) g.

    References
    ----------
    T. Tieleman, G. Hinton, "Lecture 6.5 - RMSProp", Coursera: Neural networks for machine learning, 2012. Centered:
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

    kind: ClassVar[str] = "rmsprop"

    lr: float = 1e-2
    _: KW_ONLY
    alpha: float = _fraction(0.99)
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def slots(self, lr: float) -> dict[str, float | None]:
        return {
            "square": 0.0,
            "mean": 0.0 if self.centered else None,
            "momentum": 0.0 if self.momentum else None,
        }

    def scalars(self, step: int, lr: float) -> dict[str, float | bool]:
        alpha = self.alpha
        return {"lr": lr, "alpha": alpha, "one_minus_alpha": 1 - alpha, "eps": self.eps, "mu": self.momentum}


def _of_averages(betas: tuple[float, float]) -> dict[str, float]:
    """The scalars of m <- beta1 m + (1 - beta1) g and v <- beta2 v + (1 - beta2) g^2."""
    beta1, beta2 = betas
    return {"beta1": beta1, "one_minus_beta1": 1 - beta1, "beta2": beta2, "one_minus_beta2": 1 - beta2}


@_docs.inherits_parameters
@dataclass(eq=False, repr=False)
class Adam(Optimizer):
    """Adam: m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, theta <- theta - lr m' / (sqrt(v') + eps).

    m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t) at the step t, which counts from 1.

    Parameters
    ----------
    betas : pair of floats
        beta1 and beta2, each in [0, 1).
    eps : float
        Keeps the divisor away from zero.
    amsgrad : bool
        Use the largest v so far instead of v.

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

    kind: ClassVar[str] = "adam"

    lr: float = 1e-3
    _: KW_ONLY
    betas: tuple[float, float] = _fraction((0.9, 0.999))
    eps: float = 1e-8
    amsgrad: bool = False

    def slots(self, lr: float) -> dict[str, float | None]:
        return {"mean": 0.0, "square": 0.0, "largest": 0.0 if self.amsgrad else None}

    def scalars(self, step: int, lr: float) -> dict[str, float | bool]:
        # The step is rate m / (sqrt(v) + floor): these scalars contain the bias corrections.
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**step)
        return {"rate": lr * root / (1 - beta1**step), **_of_averages(self.betas), "floor": self.eps * root}


@_docs.inherits_parameters
@dataclass(eq=False, repr=False)
class AdamW(Adam):
    """Adam with decoupled weight decay: theta <- (1 - lr lambda) theta, then Adam's step, with no decay in g.

    Parameters
    ----------
    weight_decay : float
        lambda.

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

    decoupled: ClassVar[bool] = True

    _: KW_ONLY
    weight_decay: float | Mapping[str, float] = _takes(1e-2, _decay)


@_docs.inherits_parameters
@dataclass(eq=False, repr=False)
class Adagrad(Optimizer):
    """Adagrad: v <- v + g^2, theta <- theta - lr_t g / (sqrt(v) + eps).

    lr_t = lr / (1 + (t - 1) lr_decay) at the step t, which counts from 1.

    Parameters
    ----------
    lr_decay : float
        How fast the learning rate falls.
    initial_accumulator_value : float
        v before the first step.
    eps : float
        Keeps the divisor away from zero.

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

    kind: ClassVar[str] = "adagrad"

    lr: float = 1e-2
    _: KW_ONLY
    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def slots(self, lr: float) -> dict[str, float | None]:
        return {"sum": self.initial_accumulator_value}

    def scalars(self, step: int, lr: float) -> dict[str, float | bool]:
        return {"lr": lr / (1 + (step - 1) * self.lr_decay), "eps": self.eps}


@_docs.inherits_parameters
@dataclass(eq=False, repr=False)
class Adadelta(Optimizer):
    """Adadelta: v <- rho v + (1 - rho) g^2, d = sqrt(u + eps) / sqrt(v + eps) g, theta <- theta - lr d.

    Then u <- rho u + (1 - rho) d^2: the steps have the parameters' own units.

    Parameters
    ----------
    lr : float
        Learning rate. It is 1 in the paper.
    rho : float
        Decay of both averages of squares, in [0, 1).
    eps : float
        Keeps the divisor, and the first step, away from zero.

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

    kind: ClassVar[str] = "adadelta"

    lr: float = 1.0
    _: KW_ONLY
    rho: float = _fraction(0.9)
    eps: float = 1e-6

    def slots(self, lr: float) -> dict[str, float | None]:
        return {"square": 0.0, "update": 0.0}

    def scalars(self, step: int, lr: float) -> dict[str, float | bool]:
        return {"lr": lr, "rho": self.rho, "one_minus_rho": 1 - self.rho, "eps": self.eps}


@_docs.inherits_parameters
@dataclass(eq=False, repr=False)
class NAdam(Optimizer):
    """NAdam, Adam with Nesterov's momentum: theta <- theta - lr m' / (sqrt(v') + eps).

    m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, v' = v / (1 - beta2^t) and
    m' = mu_{t+1} m / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) g / (1 - mu_1 ... mu_t) at the step t, which counts from 1;
    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2) rises towards beta1.

    Parameters
    ----------
    betas : pair of floats
        beta1 and beta2, each in [0, 1).
    eps : float
        Keeps the divisor away from zero.
    momentum_decay : float
        How fast mu_t rises.

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

    kind: ClassVar[str] = "nadam"

    lr: float = 2e-3
    _: KW_ONLY
    betas: tuple[float, float] = _fraction((0.9, 0.999))
    eps: float = 1e-8
    momentum_decay: float = 4e-3

    _product: tuple[int, float] = field(default=(0, 1.0), init=False, repr=False)
    """A step t, and mu_1 ... mu_t."""

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        super().load_state_dict(state)
        self._product = (0, 1.0)

    def slots(self, lr: float) -> dict[str, float | None]:
        return {"mean": 0.0, "square": 0.0}

    def scalars(self, step: int, lr: float) -> dict[str, float | bool]:
        # The step is (of_mean m + of_gradient g) / (sqrt(v) + floor): these scalars contain the bias corrections.
        momentum, following, product = self._momentum(step), self._momentum(step + 1), self._momentum_product(step)
        root = math.sqrt(1 - self.betas[1] ** step)
        return {
            "of_mean": lr * root * following / (1 - following * product),
            "of_gradient": lr * root * (1 - momentum) / (1 - product),
            **_of_averages(self.betas),
            "floor": self.eps * root,
        }

    def _momentum(self, step: int) -> float:
        return float(self.betas[0] * (1 - 0.5 * 0.96 ** (step * self.momentum_decay)))

    def _momentum_product(self, step: int) -> float:
        done, product = self._product if self._product[0] <= step else (0, 1.0)
        self._product = step, math.prod(map(self._momentum, range(done + 1, step + 1)), start=product)
        return self._product[1]


@_docs.inherits_parameters
@dataclass(eq=False, repr=False)
class Adamax(Optimizer):
    """Adamax, Adam with the infinity norm: m <- beta1 m + (1 - beta1) g, u <- max(beta2 u, abs(g) + eps).

    theta <- theta - lr / (1 - beta1^t) m / u at the step t, which counts from 1.

    Parameters
    ----------
    betas : pair of floats
        beta1 and beta2, each in [0, 1).
    eps : float
        Keeps the divisor away from zero.

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

    kind: ClassVar[str] = "adamax"

    lr: float = 2e-3
    _: KW_ONLY
    betas: tuple[float, float] = _fraction((0.9, 0.999))
    eps: float = 1e-8

    def slots(self, lr: float) -> dict[str, float | None]:
        return {"mean": 0.0, "norm": 0.0}

    def scalars(self, step: int, lr: float) -> dict[str, float | bool]:
        beta1, beta2 = self.betas
        return {
            "rate": lr / (1 - beta1**step),
            "beta1": beta1, "one_minus_beta1": 1 - beta1, "beta2": beta2, "eps": self.eps,
        }  # fmt: skip


@_docs.inherits_parameters
@dataclass(eq=False, repr=False)
class Rprop(Optimizer):
    """Resilient backpropagation: theta <- theta - eta sign(g), where each element has its own size eta.

    Before that, eta <- min(eta_plus eta, eta_max) where g has the same sign as at the previous step. Where the sign has
    changed, eta <- max(eta_minus eta, eta_min) and g <- 0. Use it with gradients of the whole data set, not of
    minibatches.

    Parameters
    ----------
    lr : float
        eta at the first step. The learning rate of a later step has no effect.
    etas : pair of floats
        eta_minus, below 1, and eta_plus, above 1.
    step_sizes : pair of floats
        eta_min and eta_max.

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

    kind: ClassVar[str] = "rprop"

    lr: float = 1e-2
    _: KW_ONLY
    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.etas[0] < 1 < self.etas[1]:
            raise ValueError(f"Rprop: etas is {self.etas!r}, expected one between 0 and 1 and one above 1")
        if not self.step_sizes[0] <= self.step_sizes[1]:
            raise ValueError(f"Rprop: step_sizes is {self.step_sizes!r}, expected the smaller one first")

    def slots(self, lr: float) -> dict[str, float | None]:
        return {"previous": 0.0, "size": lr}

    def scalars(self, step: int, lr: float) -> dict[str, float | bool]:
        (eta_minus, eta_plus), (smallest, largest) = self.etas, self.step_sizes
        return {"eta_minus": eta_minus, "eta_plus": eta_plus, "smallest": smallest, "largest": largest}


KINDS: dict[str, type[Optimizer]] = {c.kind: c for c in (SGD, RMSprop, Adam, Adagrad, Adadelta, NAdam, Adamax, Rprop)}
"""An optimizer class for each kind of step."""


def _named(where: str, optimizer: Any, lr: float | None) -> Any:
    """An optimizer from its class name in lower case and its learning rate; any other object is returned as it is.

    Raises
    ------
    ValueError, TypeError
        No optimizer has the name, or ``lr`` is given together with an object.
    """
    if not isinstance(optimizer, str):
        if lr is not None:
            raise TypeError(f"{where}: lr is given together with an optimizer, expected it as the lr of the optimizer")
        return optimizer
    kinds = {kind.__name__.lower(): kind for kind in (*KINDS.values(), AdamW)}
    kind: Any = kinds[_checks.choice(where, "optimizer", optimizer, tuple(sorted(kinds)))]
    if lr is not None:
        return kind(lr=_checks.non_negative(where, "lr", lr))
    return kind(lr=0.003) if kind is Adam else kind()
