"""Operations on gradients between the pullback and the optimizer: norms, clipping and L2.

Every function takes gradients by parameter name, as a pullback returns them, and returns a new dict. The caller's
arrays are not changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _arrays, _checks, _dispatch, _foreign, _sharing
from ._contract import Array


def _take(where: str, **groups: Mapping[str, Array]) -> tuple[Any, ...]:
    """Return the namespace of all arrays, and the groups, with arrays that are ready to compute with."""
    named = {f"{group}[{name!r}]": array for group, arrays in groups.items() for name, array in arrays.items()}
    xp, *taken = _arrays.take(where, named, needed=tuple(named))
    each = iter(taken)
    return xp, *({name: next(each) for name in arrays} for arrays in groups.values())


def _check_dict(where: str, name: str, arrays: Any) -> None:
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{where}: {name} is {arrays!r}, expected a dict of arrays")


@_foreign.accepts
def global_norm(grads: Mapping[str, Array], norm_type: float = 2.0) -> Array:
    """The p-norm of all entries of all gradients: (sum |g|^p)^(1/p).

    Parameters
    ----------
    grads : dict of str to array
        At least one, all of one dtype. Every name counts as a separate parameter, even if two gradients are one array,
        as those of the two biases of an LSTM can be. The gradient of a parameter with several names is the sum over its
        names; `add_l2` with the weight 0 returns that sum.
    norm_type : float
        p > 0. ``math.inf`` gives the largest magnitude.

    Returns
    -------
    norm : () float64 array
        Accumulated in float64, in the library of the gradients.

    Raises
    ------
    TypeError
        Arrays or dtypes are mixed or not supported.
    ValueError
        ``norm_type`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.gradients import global_norm
    >>> global_norm({"weight": np.array([[3.0]]), "bias": np.array([-4.0])})
    array(5.)
    """
    where = "global_norm"
    _check_dict(where, "grads", grads)
    xp, grads = _take(where, grads=grads)
    norm_type = _checks.positive(where, "norm_type", norm_type)
    if norm_type == 2:
        return _dispatch.wing(where, **grads).global_norm(list(grads.values()))
    magnitudes = [xp.abs(xp.astype(g, xp.float64)) for g in grads.values() if math.prod(g.shape)]
    if not magnitudes:
        return xp.asarray(0.0, dtype=xp.float64, device=_dispatch.device(next(iter(grads.values()))))
    largest = xp.max(xp.stack([xp.max(m) for m in magnitudes]))
    if norm_type == math.inf:
        return xp.asarray(largest)
    # Powers of magnitudes relative to the largest one cannot overflow.
    unit = xp.where(xp.logical_and(largest > 0, xp.isfinite(largest)), largest, xp.ones_like(largest))
    with np.errstate(over="ignore"):  # where another magnitude is infinite
        powers = [xp.sum((m / unit) ** norm_type) for m in magnitudes]
    return xp.asarray(unit * xp.sum(xp.stack(powers)) ** (1 / norm_type))


@_foreign.accepts
def clip_by_global_norm(
    grads: Mapping[str, Array], max_norm: float, norm_type: float = 2.0
) -> tuple[dict[str, Array], Array]:
    """Scale all gradients by one factor so that their norm is at most max_norm: g min(1, theta / (||g|| + 1e-6)).

    Parameters
    ----------
    grads : dict of str to array
        At least one, all of one dtype.
    max_norm : float
        theta >= 0.
    norm_type : float
        p > 0 of the norm. ``math.inf`` gives the largest magnitude.

    Returns
    -------
    clipped : dict of str to array
        New arrays. All are NaN if the norm is not finite.
    norm : () float64 array
        ||g|| before clipping.

    Raises
    ------
    TypeError
        Arrays or dtypes are mixed or not supported.
    ValueError
        ``max_norm`` is negative or not finite, or ``norm_type`` is not positive.

    References
    ----------
    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
    algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.gradients import clip_by_global_norm
    >>> clipped, norm = clip_by_global_norm({"weight": np.array([[3.0]]), "bias": np.array([-4.0])}, 1.0)
    >>> norm, clipped["weight"].round(4), clipped["bias"].round(4)
    (array(5.), array([[0.6]]), array([-0.8]))
    """
    where = "clip_by_global_norm"
    _check_dict(where, "grads", grads)
    xp, grads = _take(where, grads=grads)
    theta = _checks.non_negative(where, "max_norm", max_norm)
    norm = global_norm(grads, norm_type)
    # theta / inf is 0, which would turn the finite gradients into zeros and hide the infinite one.
    scale = xp.where(xp.isfinite(norm), xp.clip(theta / (norm + 1e-6), max=1.0), math.nan)
    clipped = _dispatch.wing(where, **grads).scaled(list(grads.values()), scale)
    return dict(zip(grads, clipped, strict=True)), norm


@_foreign.accepts
def clip_by_value(grads: Mapping[str, Array], clip_value: float) -> dict[str, Array]:
    """Clip every entry of every gradient to [-clip_value, clip_value].

    Parameters
    ----------
    grads : dict of str to array
        At least one, all of one dtype.
    clip_value : float
        At least 0.

    Returns
    -------
    clipped : dict of str to array
        New arrays.

    Raises
    ------
    TypeError
        Arrays or dtypes are mixed or not supported.
    ValueError
        ``clip_value`` is negative or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.gradients import clip_by_value
    >>> clip_by_value({"bias": np.array([-4.0, 0.5])}, 1.0)
    {'bias': array([-1. ,  0.5])}
    """
    where = "clip_by_value"
    _check_dict(where, "grads", grads)
    xp, grads = _take(where, grads=grads)
    bound = _checks.non_negative(where, "clip_value", clip_value)
    return {name: xp.clip(g, -bound, bound) for name, g in grads.items()}


@_foreign.accepts
def add_l2(
    grads: Mapping[str, Array], params: Mapping[str, Array], weight: float | Mapping[str, float]
) -> dict[str, Array]:
    """The gradients of a loss with an L2 penalty on the weights, (lambda / 2) sum ||W||^2: g + lambda W.

    The penalty is on the parameters whose name, after its last dot, begins with "weight". Biases have none. A dict
    gives each kind of weight its own lambda: (lambda_hh / 2) ||W_hh||^2 + (lambda_xh / 2) ||W_xh||^2 + ...

    Parameters
    ----------
    grads : dict of str to array
        At least one, all of one dtype.
    params : dict of str to array
        The parameters, with the same names.
    weight : float or dict of str to float
        lambda >= 0. A dict maps a part of a parameter's name to the lambda of all parameters whose names contain it,
        such as ``{"weight_hh": 1e-4, "weight_ih": 1e-5, "output.weight": 1e-5}`` for W_hh, W_xh and W_hy. If several
        parts are in a name, their lambdas add up.

    Returns
    -------
    grads : dict of str to array
        A parameter without a penalty keeps the array in ``grads``. An array that ``params`` has under several names is
        one parameter: it has one gradient, under the first name, the sum of the gradients under all its names.

    Raises
    ------
    KeyError
        A name is in one dict only.
    TypeError
        Arrays or dtypes are mixed or not supported.
    ValueError
        A gradient's shape differs from its parameter's, or ``weight`` is negative or not finite, or has a key that is
        in no name.

    References
    ----------
    I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning", MIT Press 2016, section 7.1.1.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.gradients import add_l2
    >>> grads = {"weight_hh_l0": np.array([[1.0]]), "bias_hh_l0": np.array([1.0])}
    >>> params = {"weight_hh_l0": np.array([[3.0]]), "bias_hh_l0": np.array([3.0])}
    >>> add_l2(grads, params, 0.5)
    {'weight_hh_l0': array([[2.5]]), 'bias_hh_l0': array([1.])}
    >>> add_l2(grads, params, {"weight_hh": 2.0, "bias": 0.25})
    {'weight_hh_l0': array([[7.]]), 'bias_hh_l0': array([1.75])}
    """
    where = "add_l2"
    _, _, params, grads = take_gradients(where, params, grads)
    strengths = l2_strengths(where, "weight", weight, params)
    return {name: g + strengths[name] * params[name] if name in strengths else g for name, g in grads.items()}


def l2_strengths(where: str, name: str, weight: Any, params: Mapping[str, Array]) -> dict[str, float]:
    """The lambda of each parameter that has a penalty.

    ``name`` is the name of the caller's argument, such as ``weight`` in `add_l2`.
    """
    if not isinstance(weight, Mapping):
        strength = _checks.non_negative(where, name, weight)
        return {p: strength for p in params if p.rpartition(".")[2].startswith("weight")}
    strengths: dict[str, float] = {}
    for text, value in weight.items():
        if not isinstance(text, str):
            raise TypeError(f"{where}: {name} has the key {text!r}, expected a part of the name of a parameter")
        strength = _checks.non_negative(where, f"{name}[{text!r}]", value)
        matching = [p for p in params if text in p]
        if not matching:
            raise ValueError(f"{where}: {name} has {text!r}, expected a part of one of the names {sorted(params)}")
        for p in matching:
            strengths[p] = strengths.get(p, 0.0) + strength
    return strengths


def of_parameters(
    where: str, params: Mapping[str, Array], grads: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return ``params`` with each array once, under its first name, and ``grads`` summed over each array's names.

    Arrays that share memory without being the same array are rejected.
    """
    _sharing.check_apart(where, "params", params)
    first = _sharing.first_names(params)
    if all(name == parameter for name, parameter in first.items()):
        return dict(params), dict(grads)
    unknown = {name: g for name, g in grads.items() if name not in first}
    return {name: params[name] for name, parameter in first.items() if name == parameter}, {
        **_sharing.summed(grads, first),
        **unknown,
    }


def take_gradients(
    where: str, params: Mapping[str, Array], grads: Mapping[str, Array]
) -> tuple[Any, dict[str, Array], dict[str, Array], dict[str, Array]]:
    """The namespace, the caller's parameters, and the parameters and gradients that are ready to compute with.

    An array with several names occurs once, under the first name, with the sum of its gradients. Gradients whose names,
    library, dtypes or shapes differ from those of the parameters are rejected.
    """
    _check_dict(where, "params", params)
    _check_dict(where, "grads", grads)
    xp, taken_params, taken_grads = _take(where, params=params, grads=grads)
    for name, g in grads.items():
        if name in params:
            _checks.shape(where, f"grads[{name!r}]", g, tuple(params[name].shape), "the parameter's shape")
    params, taken_grads = of_parameters(where, params, taken_grads)
    missing, unknown = sorted(params.keys() - taken_grads.keys()), sorted(taken_grads.keys() - params.keys())
    if missing or unknown:
        raise KeyError(
            f"{where}: missing {missing or 'none'}, unknown {unknown or 'none'}, expected the names of params in grads"
        )
    return xp, params, {name: taken_params[name] for name in params}, taken_grads
