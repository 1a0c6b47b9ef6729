"""Truncated backpropagation through time: BPTT(k1, k2) over one long sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import _arrays, _checks, _dispatch
from .._random import generator


class Borders(NamedTuple):
    """The steps of a long sequence that one update covers: gradients begin at ``start``, losses at ``new``."""

    start: int
    new: int
    stop: int
    following: int
    """The step where the next update's gradients begin: the state that enters it is passed on."""


def borders(index: int, steps: int, gradient_steps: int, T: int | None = None) -> Borders:
    """The borders of update ``index`` of BPTT(k1 = steps, k2 = gradient_steps); T may cut the last one short."""
    new, stop, after = (steps * (index + k) for k in range(3))
    return Borders(
        max(stop - gradient_steps, 0), new, stop if T is None else min(stop, T), max(after - gradient_steps, 0)
    )


@dataclass(frozen=True)
class Window:
    """One update's part of a long sequence; see `truncated_bptt`.

    Attributes
    ----------
    steps : slice
        The newest steps, whose outputs count.
    y : array (k1, B, ...)
        Their outputs.
    gradient_steps : slice
        All steps that gradients go back through; it ends where ``steps`` does.
    state
        The state that enters the next window's ``gradient_steps``. In the last window: the final state.
    pullback : callable
        Maps dy (k1, B, ...), None for zero, to ``((dx, dstate0), grads)``: the gradients of x at ``gradient_steps``, of
        the state before them, and of the parameters by name.
    """

    steps: slice
    y: Any
    gradient_steps: slice
    state: Any
    pullback: Callable[[Any], tuple[tuple[Any, Any], dict[str, Any]]]


def truncated_bptt(
    layer: Any,
    x: Any,
    state: Any = None,
    *,
    steps: int,
    gradient_steps: int | None = None,
    resets: Any = None,
    rng: int | np.random.Generator | None = None,
    checkpoint_every: int | str | None = None,
) -> Iterator[Window]:
    r"""Truncated backpropagation through time, BPTT(k1, k2), over one long sequence: an update every k1 steps.

    Update i takes the losses L_t of the newest k1 steps and their gradients within the last k2 steps; the states before
    those are held constant::

        g_i = sum_{t = i k1}^{(i+1) k1 - 1} dL_t / d\theta |_{h_s constant for s < (i+1) k1 - k2}

    It begins with the state that entered step (i+1) k1 - k2, which the update before passed on, and computes the steps
    from there with the present parameters. Windows are computed as they are asked for, so the parameters may be updated
    between two of them.

    Parameters
    ----------
    layer : Layer
        A recurrent layer, or a `gpurnn.Sequential` that holds some; none bidirectional.
    x : array (T, B, ...)
        Time-major.
    state
        The initial state, as the layer takes it; zero by default.
    steps : int
        k1.
    gradient_steps : int, optional
        k2, at least k1 and not necessarily a multiple of it; k1 by default, when every step is computed once.
    resets : (T, B) array of bools, or of integers 0 and 1, optional
        True where a new sequence starts.
    rng : int or numpy.random.Generator, optional
        For dropout, whose masks are drawn for each window.
    checkpoint_every : int or "sqrt", optional
        As in the layer's ``vjp``: gradient checkpointing within a window.

    Yields
    ------
    Window
        One for each k1 steps; the last may have fewer.

    Raises
    ------
    TypeError, ValueError
        An option is out of its range, or ``layer`` is not time-major.

    References
    ----------
    R. J. Williams, J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", Neural Computation 2(4), 1990: BPTT(h; h'). I. Sutskever, "Training recurrent neural networks", PhD
    thesis, University of Toronto, 2013, section 2.8.6: k1 and k2.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> from gpurnn.training import truncated_bptt
    >>> model = gpurnn.Sequential(gpurnn.GRU(1, 8), gpurnn.Dense(8, 1))
    >>> wave = np.sin(np.arange(401, dtype=np.float32) / 3)[:, None, None]
    >>> x, target = wave[:-1], wave[1:]
    >>> optimizer, losses = gpurnn.Adam(0.01), []
    >>> for window in truncated_bptt(model, x, steps=5, gradient_steps=12):
    ...     loss, pull_loss = gpurnn.mse.vjp(window.y, target[window.steps])
    ...     _, grads = window.pullback(pull_loss(1.0)[0])
    ...     optimizer.step(model.params, grads)
    ...     losses.append(float(loss))
    >>> len(losses), sum(losses[-10:]) < 0.1 * sum(losses[:10])
    (80, True)
    """
    where = "truncated_bptt"
    _checks.given(where, x=x)
    xp = _dispatch.namespace(where, x=x, resets=resets)
    if resets is not None:
        _, resets = _arrays.take(where, bools={"resets": resets})
    steps = _checks.integer_at_least(where, "steps", steps, 1)
    if gradient_steps is not None:
        gradient_steps = _checks.integer_at_least(where, "gradient_steps", gradient_steps, steps)
    if getattr(layer, "batch_first", False):
        raise ValueError(f"{where}: layer has batch_first=True, expected a layer that takes (T, B, ...)")
    if x.ndim < 2:
        raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected (T, B, ...)")
    if resets is not None:
        _checks.shape(where, "resets", resets, (x.shape[0], x.shape[1]), "(T, B)")
    random = None if rng is None else generator(where, rng)
    needed = {"checkpoint_every": checkpoint_every is not None, "state_after": (gradient_steps or steps) > steps}
    if not getattr(layer, "stateful", False):
        raise TypeError(f"{where}: layer is {_checks.described(layer)}, expected a recurrent layer, or a Sequential")
    for name, is_needed in needed.items():
        if is_needed and not _checks.takes(layer.vjp, name):
            option = "checkpoint_every" if name == "checkpoint_every" else "gradient_steps above steps"
            raise TypeError(
                f"{where}: layer is {_checks.described(layer)}, whose vjp takes no {name}, expected a recurrent or "
                f"a state-space layer for {option}"
            )
    return _windows(xp, layer, x, state, steps, gradient_steps or steps, resets, random, checkpoint_every)


def _windows(
    xp: Any,
    layer: Any,
    x: Any,
    state: Any,
    steps: int,
    gradient_steps: int,
    resets: Any,
    rng: np.random.Generator | None,
    checkpoint_every: int | str | None,
) -> Iterator[Window]:
    T = x.shape[0]
    options = {} if checkpoint_every is None else {"checkpoint_every": checkpoint_every}
    for index in range(-(-T // steps)):
        start, new, stop, following = borders(index, steps, gradient_steps, T)
        own = options if stop in (following, T) else {**options, "state_after": following - start}
        (y, state), pull = layer.vjp(
            x[start:stop, ...], state, None, None if resets is None else resets[start:stop, :], rng, **own
        )
        yield Window(
            slice(new, stop), y[new - start :, ...], slice(start, stop), state, _of_newest(xp, y, new - start, pull)
        )


def _of_newest(xp: Any, y: Any, earlier: int, pull: Any) -> Callable[[Any], tuple[tuple[Any, Any], dict[str, Any]]]:
    """The pullback of a window from the gradient of its newest outputs."""

    def pullback(dy: Any) -> tuple[tuple[Any, Any], dict[str, Any]]:
        whole = dy = _arrays.cotangent("truncated_bptt", "y", dy, y[earlier:, ...])
        if dy is not None and earlier:
            whole = _dispatch.zeros(xp, tuple(y.shape), y)
            whole[earlier:, ...] = dy
        found: tuple[tuple[Any, Any], dict[str, Any]] = pull((whole, None))
        return found

    return pullback
