"""Losses as pure functions of arrays, each with its pullback.

``loss.vjp`` takes the arguments of ``loss`` and returns ``(value, pullback)``. ``pullback(dvalue)`` returns the
gradient of the first argument and an empty dict, and may be called more than once. Do not modify the inputs until you
have called it for the last time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from . import _arrays, _checks, _dispatch
from ._contract import Array
from ._op import Pullback, differentiable

Reduction = Literal["mean", "sum", "none"]

_REDUCTIONS = ("mean", "sum", "none")


def _weights(xp: Any, mask: Array | None, dtype: Any) -> Array | None:
    """Return the mask as flat weights of ``dtype``."""
    return None if mask is None else xp.reshape(xp.astype(mask, dtype), (-1,))


def _reduce(xp: Any, reduction: Reduction, losses: Array, total: Array | float, shape: tuple[int, ...]) -> Array:
    """Reduce the flat losses to an array of shape () or ``shape``. A mean divides by ``total``."""
    if reduction == "none":
        return xp.reshape(losses, shape)
    value = xp.sum(losses)
    # NumPy's reductions return scalars, the standard's return arrays.
    return xp.asarray(value / total if reduction == "mean" else value)


def _total(xp: Any, weights: Array | None, count: int) -> Array | float:
    """The sum of the weights, or 1 if it is 0, so that the mean of nothing and its gradient are 0."""
    if weights is None:
        return max(count, 1)
    total = xp.sum(weights)
    return xp.where(total == 0, xp.ones_like(total), total)


def _spread(
    where: str, xp: Any, reduction: Reduction, value: Array, dvalue: Any, total: Array | float, like: Array
) -> Array:
    """The cotangent of each of the flat losses (shaped like ``like``) from the cotangent of the reduced value."""
    if reduction != "none" and isinstance(dvalue, (int, float)):
        dvalue = float(dvalue)
    else:
        dvalue = _arrays.cotangent(where, "value", dvalue, value)
    if reduction == "none":
        return xp.reshape(dvalue, (-1,))
    return xp.zeros_like(like) + (dvalue / total if reduction == "mean" else dvalue)


def _cross_entropy(
    training: bool,
    logits: Array,
    labels: Array,
    *,
    mask: Array | None = None,
    ignore_index: int | None = None,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> tuple[Any, Array, Array, Array, Array | float, Any]:
    """Check the arguments of `cross_entropy` and run the wing.

    Returns the namespace, the checked logits, the value, the flat losses, the divisor of a mean, and the values that
    the wing saved for the backward pass.
    """
    where = "cross_entropy"
    xp, logits, class_weights, labels, mask = _arrays.take(
        where, {"logits": logits, "class_weights": class_weights}, {"labels": labels}, weights={"mask": mask},
        needed=("logits", "labels"),
    )  # fmt: skip
    _checks.choice(where, "reduction", reduction, _REDUCTIONS)
    label_smoothing = _checks.non_negative(where, "label_smoothing", label_smoothing)
    if label_smoothing > 1.0:
        raise ValueError(f"{where}: label_smoothing is {label_smoothing!r}, expected a number in [0, 1]")
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"{where}: logits has shape {tuple(logits.shape)}, expected (..., classes)")
    shape, V = tuple(logits.shape[:-1]), logits.shape[-1]
    _checks.shape(where, "labels", labels, shape, "logits.shape[:-1]")
    if mask is not None:
        _checks.shape(where, "mask", mask, shape, "logits.shape[:-1]")
    if class_weights is not None:
        _checks.shape(where, "class_weights", class_weights, (V,), "(classes,)")

    weights = _weights(xp, mask, logits.dtype)
    flat = xp.reshape(labels, (-1,))
    if ignore_index is not None:
        ignore_index = _checks.integer_at_least(where, "ignore_index", ignore_index, -(2**63))
        weights = xp.ones_like(flat, dtype=logits.dtype) if weights is None else weights
        weights = xp.where(flat == ignore_index, xp.zeros_like(weights), weights)
    losses, saved = _dispatch.wing(where, logits=logits).cross_entropy_forward(
        xp.reshape(logits, (-1, V)),
        flat,
        weights,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        training=training,
    )
    total: Array | float = 1.0
    if reduction == "mean":
        if class_weights is not None:
            indices = flat if weights is None else xp.where(weights == 0, xp.zeros_like(flat), flat)
            # A label out of range is rejected, or gives a loss of NaN, so its weight can be any.
            label_weights = xp.take(class_weights, xp.clip(indices, 0, V - 1))
            if weights is not None:
                label_weights = xp.where(weights == 0, xp.zeros_like(weights), label_weights) * weights
            weights = label_weights
        total = _total(xp, weights, math.prod(shape))
    return xp, logits, _reduce(xp, reduction, losses, total, shape), losses, total, saved


def _cross_entropy_vjp(
    logits: Array,
    labels: Array,
    *,
    mask: Array | None = None,
    ignore_index: int | None = None,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    where = "cross_entropy"
    xp, logits, value, losses, total, saved = _cross_entropy(
        True, logits, labels, mask=mask, ignore_index=ignore_index, class_weights=class_weights,
        label_smoothing=label_smoothing, reduction=reduction,
    )  # fmt: skip
    wing, shape = _dispatch.wing(where, logits=logits), logits.shape

    def pullback(dvalue: Array | float | None) -> tuple[Array, dict[str, Array]]:
        if dvalue is None:
            return xp.zeros_like(logits), {}
        dlosses = _spread(where, xp, reduction, value, dvalue, total, losses)
        return xp.reshape(wing.cross_entropy_backward(saved, dlosses), shape), {}

    return value, pullback


@differentiable(_cross_entropy_vjp)
def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    mask: Array | None = None,
    ignore_index: int | None = None,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy between the softmax of the logits and integer labels, in nats: -log p_y.

    With l_c = -log softmax(x)_c and eps the label smoothing, the loss of one label y with mask weight m is
    L = m ((1 - eps) w_y l_y + (eps / V) sum_c w_c l_c). The mean divides the sum of the L by the sum of the m w_y. A
    term of weight zero is zero, even if the logit of the class is minus infinity.

    Parameters
    ----------
    logits : (..., V) array, float32 or float64
        x, unnormalised log-probabilities. The classes are the last axis.
    labels : (...) integer array
        y, 0 <= y < V where the mask is not zero and y is not ``ignore_index``.
    mask : (...) array, optional
        bool, or integers 0 and 1, True where a label counts; or weights m of the dtype of the logits. Where it is zero,
        labels and logits are ignored, and the gradient is exactly zero.
    ignore_index : int, optional
        A label that never counts, as if the mask were zero wherever it occurs; PyTorch's default is -100.
    class_weights : (V,) array, optional
        w, of the dtype of the logits. Ones by default.
    label_smoothing : float
        eps in [0, 1], the probability spread evenly over all classes.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    value : () array, or (...) with ``reduction="none"``
        An array of the library and dtype of the logits. The mean over no label is 0. The pullback of
        `cross_entropy.vjp` returns ``(dlogits, {})``. If the value has no axes, the pullback takes a plain number too.

    Raises
    ------
    TypeError
        Arrays or dtypes are mixed or not supported.
    ValueError
        Shapes do not fit, the reduction is unknown, or a label is out of range. Labels on a GPU are not checked,
        because a check would wait for the device: there the loss of such a label is NaN.

    References
    ----------
    C. Szegedy et al., "Rethinking the inception architecture for computer vision", CVPR 2016, section 7, for label
    smoothing.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.losses import cross_entropy
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    >>> cross_entropy(logits, np.array([0, 2]), reduction="none").round(4)
    array([0.6931, 0.2231])
    >>> value, pullback = cross_entropy.vjp(logits, np.array([0, 2]), mask=np.array([True, False]))
    >>> dlogits, _ = pullback(1.0)
    >>> dlogits.round(2)
    array([[-0.5 ,  0.25,  0.25],
           [ 0.  ,  0.  ,  0.  ]])
    >>> float(cross_entropy(logits, np.array([0, -100]), ignore_index=-100).round(4))
    0.6931
    """
    return _cross_entropy(
        False, logits, labels,
        mask=mask, ignore_index=ignore_index, class_weights=class_weights, label_smoothing=label_smoothing,
        reduction=reduction,
    )[2]  # fmt: skip


_Forward = Callable[[Any, Array, Array], tuple[Array, Callable[[Array], Array]]]
"""Maps a namespace and two flat arrays to the loss of each pair of numbers, and the pullback to the first array."""


def _elementwise(
    where: str, arrays: dict[str, Array], forward: _Forward, mask: Array | None, reduction: Reduction
) -> tuple[Array, Pullback]:
    """A loss of pairs of numbers and its pullback. ``arrays`` are the two arguments by name."""
    first, second = arrays
    xp, y, target, mask = _arrays.take(where, arrays, weights={"mask": mask}, needed=(first, second))
    _checks.choice(where, "reduction", reduction, _REDUCTIONS)
    shape = tuple(y.shape)
    _checks.shape(where, second, target, shape, f"the shape of {first}")
    if mask is not None:
        _checks.shape(where, "mask", mask, shape[: mask.ndim], f"the leading axes of {first}")

    weights = _weights(xp, mask, y.dtype)
    if weights is not None:
        trailing = math.prod(shape[mask.ndim :])
        weights = xp.reshape(xp.broadcast_to(xp.expand_dims(weights, axis=1), (weights.shape[0], trailing)), (-1,))
    losses, pull = forward(xp, xp.reshape(y, (-1,)), xp.reshape(target, (-1,)))
    if weights is not None:
        losses = xp.where(weights == 0, xp.zeros_like(losses), losses * weights)
    total = _total(xp, weights, math.prod(shape)) if reduction == "mean" else 1.0
    value = _reduce(xp, reduction, losses, total, shape)

    def pullback(dvalue: Array | float | None) -> tuple[Array, dict[str, Array]]:
        if dvalue is None:
            return xp.zeros_like(y), {}
        d = _spread(where, xp, reduction, value, dvalue, total, losses)
        if weights is None:
            dy = pull(d)
        else:
            dy = pull(d * weights)
            dy = xp.where(weights == 0, xp.zeros_like(dy), dy)
        return xp.reshape(dy, shape), {}

    return value, pullback


def _mse(
    training: bool, y: Array, target: Array, mask: Array | None, half: bool, reduction: Reduction
) -> tuple[Array, Pullback]:
    half = _checks.flag("mse", "half", half)

    def forward(xp: Any, y: Array, target: Array) -> tuple[Array, Callable[[Array], Array]]:
        wing = _dispatch.wing("mse", y=y)
        errors, saved = wing.mse_forward(y, target, training=training)
        return (0.5 * errors if half else errors), lambda d: wing.mse_backward(saved, 0.5 * d if half else d)

    return _elementwise("mse", {"y": y, "target": target}, forward, mask, reduction)


def _mse_vjp(
    y: Array, target: Array, *, mask: Array | None = None, half: bool = False, reduction: Reduction = "mean"
) -> tuple[Array, Pullback]:
    return _mse(True, y, target, mask, half, reduction)


@differentiable(_mse_vjp)
def mse(
    y: Array,
    target: Array,
    *,
    mask: Array | None = None,
    half: bool = False,
    reduction: Reduction = "mean",
) -> Array:
    """Mean squared error: the mean of (y - target)^2 over all elements, or of (y - target)^2 / 2 with ``half``.

    Parameters
    ----------
    y : array, float32 or float64
        Has any shape.
    target : array like y
    mask : array, optional
        Has the shape of y or of its leading axes, such as (T, B) for y (T, B, F): bool, or integers 0 and 1, True where
        an element counts; or weights m of the dtype of y. The mean divides by the sum of the weights over the elements.
        Where it is zero, y and target are ignored, and the gradient is exactly zero.
    half : bool
        Whether to include the textbook's factor 1/2, so that the gradient is y - target.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    value : () array, or like y with ``reduction="none"``
        An array of the library and dtype of y. The mean over no element is 0. The pullback of `mse.vjp` returns
        ``(dy, {})``, and -dy is the gradient of the target. If the value has no axes, the pullback takes a plain number
        too.

    Raises
    ------
    TypeError
        Arrays or dtypes are mixed or not supported.
    ValueError
        Shapes do not fit, or the reduction is unknown.

    References
    ----------
    I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning", MIT Press 2016, section 5.1.4.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.losses import mse
    >>> mse(np.array([1.0, 4.0]), np.array([0.0, 1.0]))
    array(5.)
    >>> value, pullback = mse.vjp(np.array([1.0, 4.0]), np.array([0.0, 1.0]), half=True, reduction="sum")
    >>> pullback(1.0)[0]
    array([1., 3.])
    """
    return _mse(False, y, target, mask, half, reduction)[0]


def _l1_vjp(
    y: Array, target: Array, *, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[Array, Pullback]:
    def forward(xp: Any, y: Array, target: Array) -> tuple[Array, Callable[[Array], Array]]:
        error = y - target
        return xp.abs(error), lambda d: d * xp.sign(error)

    return _elementwise("l1", {"y": y, "target": target}, forward, mask, reduction)


@differentiable(_l1_vjp)
def l1(y: Array, target: Array, *, mask: Array | None = None, reduction: Reduction = "mean") -> Array:
    """Mean absolute error: the mean of |y - target| over all elements. Its derivative at 0 is 0.

    Parameters
    ----------
    y : array, float32 or float64
        Has any shape.
    target : array like y
    mask : array, optional
        As in `mse`.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    value : () array, or like y with ``reduction="none"``
        As in `mse`.

    Raises
    ------
    TypeError, ValueError
        As in `mse`.

    References
    ----------
    T. Hastie, R. Tibshirani, J. Friedman, "The elements of statistical learning", 2nd edition 2009, section 10.6.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.losses import l1
    >>> value, pullback = l1.vjp(np.array([1.0, -4.0]), np.array([0.0, 1.0]))
    >>> value, pullback(1.0)[0]
    (array(3.), array([ 0.5, -0.5]))
    """
    return _l1_vjp(y, target, mask=mask, reduction=reduction)[0]


def _huber_vjp(
    y: Array, target: Array, *, delta: float = 1.0, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[Array, Pullback]:
    delta = _checks.positive("huber", "delta", delta)

    def forward(xp: Any, y: Array, target: Array) -> tuple[Array, Callable[[Array], Array]]:
        error = y - target
        border = min(delta, float(xp.finfo(y.dtype).max))
        slope = xp.clip(error, -border, border)
        steepness = xp.abs(slope)
        # One formula serves both branches, so that no square overflows in the branch that does not apply.
        return steepness * (xp.abs(error) - 0.5 * steepness), lambda d: d * slope

    return _elementwise("huber", {"y": y, "target": target}, forward, mask, reduction)


@differentiable(_huber_vjp)
def huber(
    y: Array, target: Array, *, delta: float = 1.0, mask: Array | None = None, reduction: Reduction = "mean"
) -> Array:
    """Huber's loss of e = y - target: e^2 / 2 where |e| <= delta, and delta (|e| - delta/2) beyond.

    Parameters
    ----------
    y : array, float32 or float64
        Has any shape.
    target : array like y
    delta : float
        Where the square becomes a line, in units of y. Above 0.
    mask : array, optional
        As in `mse`.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    value : () array, or like y with ``reduction="none"``
        As in `mse`.

    Raises
    ------
    TypeError, ValueError
        As in `mse`, or delta is not above 0.

    References
    ----------
    P. J. Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35 (1964).

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.losses import huber
    >>> huber(np.array([0.5, -3.0]), np.zeros(2), reduction="none")
    array([0.125, 2.5  ])
    """
    return _huber_vjp(y, target, delta=delta, mask=mask, reduction=reduction)[0]


def _smooth_l1_vjp(
    y: Array, target: Array, *, beta: float = 1.0, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[Array, Pullback]:
    beta = _checks.non_negative("smooth_l1", "beta", beta)

    def forward(xp: Any, y: Array, target: Array) -> tuple[Array, Callable[[Array], Array]]:
        error, numbers = y - target, xp.finfo(y.dtype)
        if beta < float(numbers.smallest_normal):
            slope = xp.sign(error)
            return xp.abs(error), lambda d: d * slope
        # Two divisions, because beta may be above the largest number of the dtype.
        border = min(beta, float(numbers.max))
        clipped = xp.clip(error, -border, border)
        slope = clipped / border / (beta / border)
        return xp.abs(slope) * (xp.abs(error) - 0.5 * xp.abs(clipped)), lambda d: d * slope

    return _elementwise("smooth_l1", {"y": y, "target": target}, forward, mask, reduction)


@differentiable(_smooth_l1_vjp)
def smooth_l1(
    y: Array, target: Array, *, beta: float = 1.0, mask: Array | None = None, reduction: Reduction = "mean"
) -> Array:
    """Smooth L1 loss of e = y - target: e^2 / (2 beta) where |e| < beta, and |e| - beta/2 beyond.

    It is `huber` with delta = beta, divided by beta, so its slopes stay in [-1, 1]. With beta = 0 it is `l1`.

    Parameters
    ----------
    y : array, float32 or float64
        Has any shape.
    target : array like y
    beta : float
        Where the square becomes a line, in units of y. At least 0.
    mask : array, optional
        As in `mse`.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    value : () array, or like y with ``reduction="none"``
        As in `mse`.

    Raises
    ------
    TypeError, ValueError
        As in `mse`, or beta is negative or not finite.

    References
    ----------
    R. Girshick, "Fast R-CNN", ICCV 2015, section 2.3.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.losses import smooth_l1
    >>> smooth_l1(np.array([0.25, -3.0]), np.zeros(2), beta=0.5, reduction="none")
    array([0.0625, 2.75  ])
    """
    return _smooth_l1_vjp(y, target, beta=beta, mask=mask, reduction=reduction)[0]


def _binary_cross_entropy_vjp(
    logits: Array, target: Array, *, mask: Array | None = None, reduction: Reduction = "mean"
) -> tuple[Array, Pullback]:
    def forward(xp: Any, x: Array, z: Array) -> tuple[Array, Callable[[Array], Array]]:
        # The target's probability of the class that the logit votes against: no large terms are left to cancel.
        against = xp.where(x < 0, z, 1 - z)
        e = xp.exp(-xp.abs(x))

        def pull(d: Array) -> Array:
            error = against - e / (1 + e)
            return d * xp.where(x < 0, -error, error)

        return xp.abs(x) * against + xp.log1p(e), pull

    return _elementwise("binary_cross_entropy", {"logits": logits, "target": target}, forward, mask, reduction)


@differentiable(_binary_cross_entropy_vjp)
def binary_cross_entropy(
    logits: Array, target: Array, *, mask: Array | None = None, reduction: Reduction = "mean"
) -> Array:
    """Cross-entropy between sigma(logits) and the probabilities of yes, in nats; every element is a separate question.

    With p = sigma(x) the loss of a logit x and a target z is L = -z log p - (1 - z) log(1 - p). It is computed from x,
    without p, so it is exact for logits of any size, and so is its gradient p - z.

    Parameters
    ----------
    logits : array, float32 or float64
        x, of any shape.
    target : array like logits
        z, in [0, 1]: 1 for yes, 0 for no.
    mask : array, optional
        As in `mse`.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    value : () array, or like the logits with ``reduction="none"``
        An array of the library and dtype of the logits. The mean over no element is 0. The pullback of
        `binary_cross_entropy.vjp` returns ``(dlogits, {})``. If the value has no axes, the pullback takes a plain
        number too.

    Raises
    ------
    TypeError, ValueError
        As in `mse`.

    References
    ----------
    I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning", MIT Press 2016, section 6.2.2.2.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.losses import binary_cross_entropy
    >>> value, pullback = binary_cross_entropy.vjp(np.array([0.0, -800.0]), np.ones(2), reduction="sum")
    >>> round(float(value), 4), pullback(1.0)[0]
    (800.6931, array([-0.5, -1. ]))
    """
    return _binary_cross_entropy_vjp(logits, target, mask=mask, reduction=reduction)[0]


def perplexity(nats: float) -> float:
    """The perplexity exp(nats) of a mean cross-entropy in nats; infinity past the largest float64.

    Examples
    --------
    >>> round(perplexity(1.0), 3), perplexity(1e5)
    (2.718, inf)
    """
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
