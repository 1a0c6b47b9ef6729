"""Linear recurrences over a sequence that is cut over processes: each has some of the steps.

A chunk of steps maps the state before it to the state after it, h -> P h + q. The processes compute P and q of their
chunks with the state zero. The exclusive scan of these maps gives each process the state that enters its chunk, which
it then computes again. The pullback does the same with the gradients, from the last process to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from .. import _arrays, _dispatch, functional
from .._contract import Array
from .._op import Pullback, differentiable
from .communicator import Communicator

OutputState = Literal["after", "before"]


class _Maps(NamedTuple):
    """The linear part P of the maps of chunks, for NumPy arrays."""

    apply: Callable[[Any, Any], Any]
    """``apply(P, h)`` is P h, for each row of h."""
    compose: Callable[[Any, Any], Any]
    """``compose(second, first)`` is the P of two consecutive chunks."""


# A state of zero stays zero under a P that overflows.
_DIAGONAL = _Maps(lambda P, h: np.where(h == 0, 0, P * h), lambda second, first: second * first)
_DENSE = _Maps(lambda P, h: np.where(h.any(axis=-1, keepdims=True), h @ P.T, 0), lambda second, first: second @ first)


def _entering(
    communicator: Communicator, maps: _Maps, P: Array, q: Array, first: Array, *, backward: bool = False
) -> Array:
    """The state before this process's chunk; ``first`` is the state before all chunks, read in process 0 only.

    With ``backward``, the gradient of the state after this chunk, by the adjoint P; ``first`` is the gradient after all
    chunks, read in the last process only.
    """

    def both(one: Any, two: Any) -> Any:
        return maps.compose(two[0], one[0]), maps.apply(two[0], one[1]) + two[1]

    xp = _dispatch.namespace("distributed", q=q)
    chunk = _dispatch.to_numpy(P), _dispatch.to_numpy(q)
    dtype = chunk[1].dtype
    with _overflowing():
        if communicator.rank == (communicator.size - 1 if backward else 0):
            chunk = chunk[0], maps.apply(chunk[0], _dispatch.to_numpy(first)) + chunk[1]
        before = communicator.scan(chunk, both, backward=backward)
        return first if before is None else _dispatch.from_numpy(xp, before[1].astype(dtype))


def _of_process(communicator: Communicator, array: Array, rank: int) -> Array:
    """The array of one process, in all processes."""
    xp = _dispatch.namespace("distributed", array=array)
    return _dispatch.from_numpy(xp, communicator.broadcast(_dispatch.to_numpy(array), rank))


def _overflowing() -> Any:
    """A context without warnings of overflow, since a sequence that is not cut gives none."""
    return np.errstate(over="ignore", invalid="ignore")


def _wide(xp: Any, array: Array) -> Any:
    """An array in double precision: the product of many steps exceeds the range of single precision."""
    array = xp.asarray(array)
    return xp.astype(array, xp.complex128 if xp.isdtype(array.dtype, "complex floating") else xp.float64)


def _conjugate(xp: Any, P: Array) -> Array:
    conjugate: Array = xp.conj(P) if xp.isdtype(P.dtype, "complex floating") else P
    return conjugate


def _summed(communicator: Communicator, array: Array) -> Array:
    return communicator.all_reduce([array])[0]


def _linear_scan_vjp(
    a: Array, b: Array, h0: Array | None = None, *, communicator: Communicator
) -> tuple[Array, Pullback]:
    where = "distributed.linear_scan"
    from_zero = functional.linear_scan(a, b)
    xp = _dispatch.namespace(where, b=b)
    first = _dispatch.zeros(xp, tuple(b.shape[1:]), from_zero) if h0 is None else xp.asarray(h0)
    zero = xp.zeros_like(first)
    shared, steps = a.ndim == 1, b.shape[0]
    wide = _wide(xp, a)
    with _overflowing():
        P = _wide(xp, zero) + (wide**steps if shared else xp.prod(wide, axis=0))
    q = from_zero[-1, ...] if steps else zero
    entering = _entering(communicator, _DIAGONAL, P, q, first)
    h, pull = functional.linear_scan.vjp(a, b, entering)

    def pullback(dh: Array | None) -> tuple[tuple[Array, Array, Array], dict[str, Array]]:
        dh = _arrays.cotangent(where, "h", dh, h)
        dh = xp.zeros_like(h) if dh is None else dh
        (_, _, q_back), _ = pull(dh)
        # The steps after this chunk contribute only through its last state.
        leaving = _entering(communicator, _DIAGONAL, _conjugate(xp, P), q_back, zero, backward=True)
        if steps:
            dh = xp.concat([dh[:-1, ...], xp.expand_dims(dh[-1, ...] + leaving, axis=0)], axis=0)
        (da, db, dh0), _ = pull(dh)
        if not steps:
            dh0 = leaving
        return (_summed(communicator, da) if shared else da, db, _of_process(communicator, dh0, 0)), {}

    return h, pullback


@differentiable(_linear_scan_vjp)
def linear_scan(a: Array, b: Array, h0: Array | None = None, *, communicator: Communicator) -> Array:
    """`gpurnn.linear_scan` of a sequence whose steps are cut over processes, in the order of their ranks.

    Parameters
    ----------
    a : (T, B, N) or (N,) array
        For this process's T steps, or the same for every step of all processes.
    b : (T, B, N) array
        For this process's steps; T may differ from process to process, and may be 0.
    h0 : (B, N) array, optional
        The state before the first step of process 0; it is not read in the others.
    communicator : Communicator

    Returns
    -------
    h : (T, B, N) array
        The states of this process's steps. The pullback takes dh (T, B, N) and gives ``(da, db, dh0), {}`` on each
        process: db and da (T, B, N) of its own steps, da (N,) and dh0 of the whole sequence.

    Raises
    ------
    TypeError, ValueError
        As for `gpurnn.linear_scan`.

    References
    ----------
    G. E. Blelloch, "Prefix sums and their applications" (1990), section 1.4.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn import distributed
    >>> alone = distributed.communicator()
    >>> distributed.linear_scan(np.array([0.5]), np.ones((3, 1, 1)), communicator=alone)[:, 0, 0]
    array([1.  , 1.5 , 1.75])
    """
    return _linear_scan_vjp(a, b, h0, communicator=communicator)[0]


def _ssm_vjp(
    x: Array, A: Array, B: Array, C: Array, D: Array | None = None, state: Array | None = None, *,
    output_state: OutputState = "after", communicator: Communicator,
) -> tuple[tuple[Array, Array], Pullback]:  # fmt: skip
    where = "distributed.ssm"
    _, q = functional.ssm(x, A, B, C, D, output_state=output_state)
    xp = _dispatch.namespace(where, x=x)
    first = xp.zeros_like(q) if state is None else xp.asarray(state)
    diagonal, steps = A.ndim == 1, x.shape[0]
    with _overflowing():
        P = _wide(xp, A) ** steps if diagonal else xp.linalg.matrix_power(_wide(xp, A), steps)

    def run(state: Array) -> Any:
        return functional.ssm.vjp(x, A, B, C, D, state, output_state=output_state)

    return _cut(communicator, xp, run, _DIAGONAL if diagonal else _DENSE, P, q, first)


def _cut(
    communicator: Communicator, xp: Any, run: Callable[[Array], Any], maps: _Maps, P: Array, q: Array, first: Array
) -> tuple[tuple[Array, Array], Pullback]:
    """A recurrence cut over processes: ``run(state)`` is the vjp over the steps of this one, whose map has P and q."""
    entering = _entering(communicator, maps, P, q, first)
    (y, last), pull = run(entering)
    last = _of_process(communicator, last, communicator.size - 1)

    def pullback(cotangents: Any) -> tuple[tuple[Array, Array], dict[str, Array]]:
        dy, dlast = (None, None) if cotangents is None else cotangents
        (_, q_back), _ = pull((dy, None))
        after_all = xp.zeros_like(last) if dlast is None else xp.asarray(dlast)
        adjoint = _conjugate(xp, P if maps is _DIAGONAL else P.T)
        leaving = _entering(communicator, maps, adjoint, q_back, after_all, backward=True)
        (dx, dstate), gradients = pull((dy, leaving))
        names = list(gradients)
        sums = dict(zip(names, communicator.all_reduce([gradients[n] for n in names]), strict=True))
        return (dx, _of_process(communicator, dstate, 0)), sums

    return (y, last), pullback


@differentiable(_ssm_vjp)
def ssm(
    x: Array, A: Array, B: Array, C: Array, D: Array | None = None, state: Array | None = None, *,
    output_state: OutputState = "after", communicator: Communicator,
) -> tuple[Array, Array]:  # fmt: skip
    """`gpurnn.ssm` of a sequence whose steps are cut over processes, in the order of their ranks.

    Parameters
    ----------
    x : (T, B, input_size) array
        For this process's steps; T may differ from process to process.
    A, B, C, D, output_state
        As in `gpurnn.ssm`, the same on every process.
    state : (B, N) array, optional
        The state before the first step of process 0.
    communicator : Communicator

    Returns
    -------
    y : (T, B, output_size) array
        For this process's steps.
    state : (B, N) array
        After the last step of the last process, on every process. The pullback takes ``(dy, dstate)``, where dstate is
        read in the last process only, and gives ``(dx, dstate), gradients``: dx of its own steps, the others of the
        whole sequence.

    Raises
    ------
    TypeError, ValueError
        As for `gpurnn.ssm`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn import distributed
    >>> half, one = np.array([0.5]), np.ones((1, 1))
    >>> y, state = distributed.ssm(np.ones((3, 1, 1)), half, one, one, communicator=distributed.communicator())
    >>> y[:, 0, 0], state
    (array([1.  , 1.5 , 1.75]), array([[1.75]]))
    """
    return _ssm_vjp(x, A, B, C, D, state, output_state=output_state, communicator=communicator)[0]


def _minimal_vjp(
    function: Any, x: Array, weight_ih: Array, bias_ih: Array | None, state: Array | None, communicator: Communicator
) -> tuple[tuple[Array, Array], Pullback]:
    def run(state: Array | None) -> Any:
        return function.vjp(x, weight_ih, bias_ih, state)

    xp = _dispatch.namespace("distributed", x=x)
    (_, q), pull = run(None)
    (_, P), _ = pull((None, xp.ones_like(q)))  # the derivative of the state after all steps by the state that enters
    first = xp.zeros_like(q) if state is None else xp.asarray(state)
    return _cut(communicator, xp, run, _DIAGONAL, P, q, first)


def _mingru_vjp(
    x: Array, weight_ih: Array, bias_ih: Array | None = None, state: Array | None = None, *, communicator: Communicator
) -> tuple[tuple[Array, Array], Pullback]:
    return _minimal_vjp(functional.mingru, x, weight_ih, bias_ih, state, communicator)


def _minlstm_vjp(
    x: Array, weight_ih: Array, bias_ih: Array | None = None, state: Array | None = None, *, communicator: Communicator
) -> tuple[tuple[Array, Array], Pullback]:
    return _minimal_vjp(functional.minlstm, x, weight_ih, bias_ih, state, communicator)


@differentiable(_mingru_vjp)
def mingru(
    x: Array, weight_ih: Array, bias_ih: Array | None = None, state: Array | None = None, *, communicator: Communicator
) -> tuple[Array, Array]:
    """`gpurnn.mingru` of a sequence whose steps are cut over processes, in the order of their ranks.

    Parameters
    ----------
    x : (T, B, input_size) array
        For this process's steps; T may differ from process to process.
    weight_ih : (2 H, input_size) array
        The same on every process, as is the bias.
    bias_ih : (2 H,) array, optional
    state : (B, H) array, optional
        The state before the first step of process 0; it is not read in the others.
    communicator : Communicator

    Returns
    -------
    y : (T, B, H) array
        For this process's steps.
    state : (B, H) array
        After the last step of the last process, on every process. The pullback is that of `ssm`.

    Raises
    ------
    TypeError, ValueError
        As for `gpurnn.mingru`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn import distributed
    >>> y, state = distributed.mingru(
    ...     np.ones((3, 1, 1)), np.array([[0.0], [0.5]]), communicator=distributed.communicator()
    ... )
    >>> y[:, 0, 0], state
    (array([0.5  , 0.75 , 0.875]), array([[0.875]]))
    """
    return _mingru_vjp(x, weight_ih, bias_ih, state, communicator=communicator)[0]


@differentiable(_minlstm_vjp)
def minlstm(
    x: Array, weight_ih: Array, bias_ih: Array | None = None, state: Array | None = None, *, communicator: Communicator
) -> tuple[Array, Array]:
    """`gpurnn.minlstm` of a sequence whose steps are cut over processes; ``weight_ih`` is (3 H, input_size).

    Everything else is as in `mingru`.
    """
    return _minlstm_vjp(x, weight_ih, bias_ih, state, communicator=communicator)[0]
