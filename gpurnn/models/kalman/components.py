"""Components of a structural time series model. They add up: ``level() + seasonal(12) + ar(2)`` is a model.

A component has its own states and adds a part of them to the observation. The functions here make components; a
variance that is not passed is a parameter, which a fit estimates.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ... import _checks

if TYPE_CHECKING:
    from .structural import StructuralModel

MOST_STATES = 1000

Values = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Component:
    """A part of a structural time series model, which the functions of this module make.

    ``+`` makes a `StructuralModel` of two; ``StructuralModel(level())`` makes one of a single component.

    Attributes
    ----------
    name : str
        The name of its part in a decomposition: ``"level"``, ``"seasonal(12)"``.
    kind : str
        The function that made it.
    arguments : dict
        The arguments of that function.
    states : tuple of str
    transition : (n, n) NumPy array
        F; the first row of an autoregression is zero here, and is filled with its coefficients.
    design : (n,) NumPy array
        The weights of the states in the observation; in a regression the covariates replace it.
    noises : dict of str to tuple of int
        The states that each variance belongs to.
    fixed : dict of str to float or tuple of float
        The values that the caller fixed, which are not parameters.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]
    states: tuple[str, ...]
    transition: NDArray[np.float64] = field(repr=False)
    design: NDArray[np.float64] = field(repr=False)
    noises: Mapping[str, tuple[int, ...]] = field(repr=False)
    fixed: Mapping[str, float | tuple[float, ...]] = field(repr=False)
    order: int = 0
    covariates: int = 0

    def __repr__(self) -> str:
        defaults = {n: p.default for n, p in inspect.signature(MAKERS[self.kind]).parameters.items()}
        shown = [
            repr(value) if defaults[name] is inspect.Parameter.empty else f"{name}={value!r}"
            for name, value in self.arguments.items()
            if value != defaults[name]
        ]
        return f"{self.kind}({', '.join(shown)})"

    def __add__(self, other: Component | StructuralModel) -> StructuralModel:
        from .structural import StructuralModel

        if isinstance(other, Component):
            return StructuralModel(self, other)
        return other.__radd__(self) if isinstance(other, StructuralModel) else NotImplemented

    def __getattr__(self, name: str) -> Any:
        if name in ("fit", "forecast", "decompose"):
            raise AttributeError(f"{self!r} is a component, not a model; use StructuralModel({self!r}).{name}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def config(self) -> dict[str, Any]:
        """The function that makes this component, and its arguments, JSON-compatible."""
        return {"component": self.kind, **self.arguments}

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters by name, including fixed ones."""
        coefficients = {"coefficients": (self.order,)} if self.order else {}
        return {**coefficients, **dict.fromkeys(self.noises, ())}

    def matrices(self, values: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """F and Q (n, n) for values of all parameters."""
        F, variances = self.transition.copy(), np.zeros(len(self.states))
        if self.order:
            F[0] = values["coefficients"]
        for name, places in self.noises.items():
            variances[list(places)] = values[name]
        return F, np.diag(variances)

    def gradients(self, dF: NDArray[np.float64], dQ: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The gradients by all parameters, from those by F and Q."""
        grads = {name: np.asarray(np.diag(dQ)[list(places)].sum()) for name, places in self.noises.items()}
        return {**({"coefficients": dF[0]} if self.order else {}), **grads}


def _made(
    kind: str,
    name: str,
    arguments: dict[str, Any],
    states: Sequence[str],
    transition: NDArray[np.float64],
    design: NDArray[np.float64],
    noises: dict[str, tuple[int, ...]],
    **options: Any,
) -> Component:
    given = {n: arguments[n] for n in (*noises, "coefficients") if arguments.get(n) is not None}
    return Component(
        name, kind, arguments, tuple(states), np.asarray(transition, np.float64), np.asarray(design, np.float64),
        noises, given, **options,
    )  # fmt: skip


def _at_most(where: str, name: str, value: float, states: float) -> None:
    """Reject a component with too many states for a filter: the cost of a step grows with their cube."""
    if states > MOST_STATES:
        raise ValueError(f"{where}: {name} is {value}, which makes {states:.0f} states, expected at most {MOST_STATES}")


def _variance(where: str, name: str, value: float | None) -> float | None:
    return None if value is None else _checks.non_negative(where, name, value)


def level(variance: float | None = None) -> Component:
    """A level that wanders: mu_{t+1} = mu_t + N(0, variance). With noise it is the local level model.

    Parameters
    ----------
    variance : float, optional
        By default a parameter, ``"level.variance"``. 0 makes the level constant.

    Returns
    -------
    Component

    References
    ----------
    J. Durbin, S. J. Koopman, "Time series analysis by state space methods", 2nd ed. (2012), chapter 2.

    Examples
    --------
    >>> from gpurnn.models.kalman import level
    >>> level() + level(0.0)
    Traceback (most recent call last):
    ...
    ValueError: StructuralModel: two components have a level: level and level, expected one
    """
    variance = _variance("level", "variance", variance)
    arguments = {"variance": variance}
    return _made("level", "level", arguments, ["level"], np.eye(1), np.ones(1), {"variance": (0,)})


def trend(level_variance: float | None = None, slope_variance: float | None = None) -> Component:
    """A level with a slope: mu_{t+1} = mu_t + nu_t + N(0, level_variance) and nu_{t+1} = nu_t + N(0, slope_variance).

    Parameters
    ----------
    level_variance, slope_variance : float, optional
        By default parameters, ``"trend.level_variance"`` and ``"trend.slope_variance"``. With a level variance of 0
        the trend is smooth; with both 0 it is a straight line.

    Returns
    -------
    Component
        The local linear trend.

    References
    ----------
    J. Durbin, S. J. Koopman (2012), section 3.2.1.
    """
    arguments = {
        "level_variance": _variance("trend", "level_variance", level_variance),
        "slope_variance": _variance("trend", "slope_variance", slope_variance),
    }
    F = np.array([[1.0, 1.0], [0.0, 1.0]])
    noises: dict[str, tuple[int, ...]] = {"level_variance": (0,), "slope_variance": (1,)}
    return _made("trend", "trend", arguments, ["level", "slope"], F, np.array([1.0, 0.0]), noises)


def seasonal(
    period: float,
    variance: float | None = None,
    *,
    kind: Literal["dummy", "trigonometric"] = "dummy",
    harmonics: int | None = None,
) -> Component:
    """A pattern that repeats after ``period`` steps and may change slowly.

    Parameters
    ----------
    period : int, or float if trigonometric
        At least 2.
    variance : float, optional
        By default a parameter, ``"seasonal(12).variance"`` for a period of 12. With 0 the pattern never changes.
    kind : {"dummy", "trigonometric"}
        A value for each season, which sum to N(0, variance) over a period; or a sum of ``harmonics``, each of whose
        states has noise of that variance.
    harmonics : int, optional
        The number of frequencies 2 pi j / period, at most period / 2, which is the default. A few of them make a smooth
        pattern of a long period.

    Returns
    -------
    Component
        With period - 1 states, or two for each harmonic (one for the frequency pi).

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range, or ``harmonics`` is given for dummies.

    References
    ----------
    J. Durbin, S. J. Koopman (2012), section 3.2.2.
    """
    kind = _checks.choice("seasonal", "kind", kind, ("dummy", "trigonometric"))
    variance = _variance("seasonal", "variance", variance)
    if kind == "dummy":
        period = _checks.integer_at_least("seasonal", "period", period, 2)
        if harmonics is not None:
            raise TypeError(f"seasonal: harmonics is {harmonics!r}, expected None, or kind='trigonometric'")
        n = int(period) - 1
        _at_most("seasonal", "period", period, n)
        F = np.eye(n, k=-1)
        F[0] = -1.0
        design = np.eye(1, n)[0]
        noisy: tuple[int, ...] = (0,)
    else:
        period = _checks.finite("seasonal", "period", period)
        period = int(period) if period == int(period) else period
        if period < 2:
            raise ValueError(f"seasonal: period is {period!r}, expected at least 2")
        most = int(period // 2)
        if harmonics is not None and _checks.integer_at_least("seasonal", "harmonics", harmonics, 1) > most:
            raise ValueError(f"seasonal: harmonics is {harmonics}, expected at most period / 2, which is {most}")
        _at_most(
            "seasonal", "period" if harmonics is None else "harmonics", harmonics or period, 2 * (harmonics or most)
        )
        blocks = [_rotation(2 * np.pi * j / period) for j in range(1, (harmonics or most) + 1)]
        if 2 * len(blocks) == period:
            blocks[-1] = blocks[-1][:1, :1]
        n = sum(len(block) for block in blocks)
        F, at = np.zeros((n, n)), 0
        design = np.zeros(n)
        for block in blocks:
            F[at : at + len(block), at : at + len(block)] = block
            design[at] = 1
            at += len(block)
        noisy = tuple(range(n))
    name = f"seasonal({period})"
    arguments = {"period": period, "variance": variance, "kind": kind, "harmonics": harmonics}
    states = [f"{name}[{i}]" for i in range(n)]
    return _made("seasonal", name, arguments, states, F, design, {"variance": noisy})


def _rotation(angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def ar(order: int, coefficients: Sequence[float] | None = None, variance: float | None = None) -> Component:
    r"""A stationary autoregression: z_t = \sum_i coefficients_i z_{t-i} + N(0, variance).

    Parameters
    ----------
    order : int
    coefficients : sequence of float, optional
        By default a parameter, ``"ar(2).coefficients"`` for an order of 2. A fit keeps it stationary.
    variance : float, optional
        By default a parameter, ``"ar(2).variance"``.

    Returns
    -------
    Component
        It starts from the stationary distribution; other components start diffuse.

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range, or the coefficients are not stationary.
    """
    order = _checks.integer_at_least("ar", "order", order, 1)
    _at_most("ar", "order", order, order)
    F = np.eye(order, k=-1)
    if coefficients is not None:
        coefficients = tuple(_checks.finite("ar", f"coefficients[{i}]", c) for i, c in enumerate(coefficients))
        if len(coefficients) != order:
            raise ValueError(f"ar: coefficients has {len(coefficients)} numbers, expected order = {order}")
        largest = float(np.abs(np.linalg.eigvals(np.vstack([coefficients, F[1:]]))).max())
        if largest >= 1:
            raise ValueError(
                f"ar: coefficients is {coefficients}, whose process has a root of modulus {largest:.6g}, expected all "
                "below 1; use level() or trend() if it is not stationary"
            )
    name = f"ar({order})"
    arguments = {"order": order, "coefficients": coefficients, "variance": _variance("ar", "variance", variance)}
    states = [f"{name}[{i}]" for i in range(order)]
    return _made("ar", name, arguments, states, F, np.eye(1, order)[0], {"variance": (0,)}, order=order)


def regression(covariates: int, variance: float | None = 0.0) -> Component:
    """A linear function of covariates: x_t^T beta_t, beta_{t+1} = beta_t + N(0, variance).

    Parameters
    ----------
    covariates : int
        k; `StructuralModel.fit` and the other methods then take X with k columns.
    variance : float, optional
        0 by default, for coefficients that are constant. None makes it a parameter, ``"regression.variance"``; it is
        one number for all coefficients, so scale the covariates alike.

    Returns
    -------
    Component
        Its states are the coefficients; nothing is known of them before the observations. So forecasts and
        decompositions account for their remaining uncertainty.
    """
    covariates = _checks.integer_at_least("regression", "covariates", covariates, 1)
    _at_most("regression", "covariates", covariates, covariates)
    arguments = {"covariates": covariates, "variance": _variance("regression", "variance", variance)}
    states = [f"regression[{i}]" for i in range(covariates)]
    return _made(
        "regression", "regression", arguments, states, np.eye(covariates), np.zeros(covariates),
        {"variance": tuple(range(covariates))}, covariates=covariates,
    )  # fmt: skip


MAKERS = {made.__name__: made for made in (level, trend, seasonal, ar, regression)}


def restored(config: Mapping[str, Any]) -> Component:
    """The component that a `Component.config` describes."""
    arguments = dict(config)
    kind = _checks.choice("StructuralModel", "component", arguments.pop("component", None), tuple(MAKERS))
    made: Component = MAKERS[kind](**arguments)
    return made
