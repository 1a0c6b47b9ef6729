"""Rows of a table by their indices."""

from __future__ import annotations

from typing import Any

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._op import Pullback, differentiable


def _embedding(indices: Array, weight: Array, padding_idx: int | None) -> tuple[Any, Any, Array, Array, Array]:
    """Check the arguments of `embedding` and run the wing; return the namespace, the wing, both arguments, and y."""
    where = "embedding"
    xp, weight, indices = _arrays.take(where, {"weight": weight}, {"indices": indices}, needed=("indices", "weight"))
    _checks.ndim(where, "weight", weight, 2, "(num_embeddings, embedding_dim)")
    if padding_idx is not None and _checks.integer_at_least(where, "padding_idx", padding_idx, 0) >= weight.shape[0]:
        raise ValueError(f"{where}: padding_idx is {padding_idx}, expected 0 ... V - 1 = {weight.shape[0] - 1}")
    wing = _dispatch.wing(where, weight=weight)
    return xp, wing, indices, weight, wing.embedding_gather(weight, indices)


def _embedding_vjp(indices: Array, weight: Array, *, padding_idx: int | None = None) -> tuple[Array, Pullback]:
    where = "embedding"
    xp, wing, indices, weight, y = _embedding(indices, weight, padding_idx)

    def pullback(dy: Array | None) -> tuple[None, dict[str, Array]]:
        dy = _arrays.cotangent(where, "y", dy, y)
        if dy is None:
            return None, {"weight": xp.zeros_like(weight)}
        dweight = wing.embedding_scatter(indices, dy, weight.shape[0])
        if padding_idx is not None:
            dweight[padding_idx, :] = 0
        return None, {"weight": dweight}

    return y, pullback


@differentiable(_embedding_vjp)
def embedding(indices: Array, weight: Array, *, padding_idx: int | None = None) -> Array:
    """Rows of a table: y[...] = weight[indices[...]]. The gradient sums the rows of dy in a fixed order.

    Parameters
    ----------
    indices : integer array of any shape
        0 <= index < V.
    weight : (V, E) array
    padding_idx : int, optional
        The row that receives no gradient.

    Returns
    -------
    y : indices.shape + (E,) array

    Raises
    ------
    TypeError, ValueError, IndexError
        Unsupported or mixed arrays; a weight that has not two axes; an index that is not in the table (an array that
        lives on a GPU is not looked into, which would wait for the device: there such a row is NaN, and its gradient
        is left out).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gpurnn.embedding(np.array([2, 0]), np.array([[0.0], [1.0], [2.0]]))
    array([[2.],
           [0.]])
    """
    return _embedding(indices, weight, padding_idx)[-1]
