"""Gather rows of a table, and scatter sums of rows."""

from __future__ import annotations

import numpy as np

from gpurnn._contract import Array


def embedding_gather(weight: Array, indices: Array) -> Array:
    """The rows ``weight[indices]``.

    Parameters
    ----------
    weight : (V, E) array
    indices : integer array of any shape

    Returns
    -------
    y : indices.shape + (E,) array

    Raises
    ------
    IndexError
        An index is not in 0..V-1.
    """
    check_indices(indices, weight.shape[0])
    return np.take(weight, indices.astype(np.intp, copy=False), axis=0)


def check_indices(indices: Array, V: int) -> None:
    """Reject indices that are not in 0 ... V - 1."""
    if indices.size and not (indices.min() >= 0 and indices.max() < V):
        bad = indices[(indices < 0) | (indices >= V)]
        raise IndexError(f"embedding: indices holds {bad[0]}, expected 0 <= index < num_embeddings = {V}")


def embedding_scatter(indices: Array, dy: Array, num_embeddings: int) -> Array:
    """Row v of the result is the sum of the rows of ``dy`` whose index is v.

    A stable sort brings the rows of a sum together in the order of their positions in ``indices``. So the order of the
    additions depends only on the indices, and two runs agree to the last bit.

    Parameters
    ----------
    indices : integer array of any shape
    dy : indices.shape + (E,) array
    num_embeddings : int
        V.

    Returns
    -------
    dweight : (V, E) array
    """
    dweight = np.zeros((num_embeddings, dy.shape[-1]), dy.dtype)
    if not indices.size:
        return dweight
    # NumPy sorts 16-bit integers by radix, wider ones by comparison.
    flat = indices.reshape(-1).astype(np.uint16 if num_embeddings <= 1 << 16 else np.intp, copy=False)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    rows = np.take(dy.reshape(flat.size, dy.shape[-1]), order, axis=0)
    # reduceat adds column by column, which for long segments is several times slower than a loop over them.
    if len(rows) < 4 * len(starts):
        dweight[ordered[starts]] = np.add.reduceat(rows, starts, axis=0)
        return dweight
    stops = [*starts[1:].tolist(), len(rows)]
    for start, stop, v in zip(starts.tolist(), stops, ordered[starts].tolist(), strict=True):
        np.add.reduce(rows[start:stop], axis=0, out=dweight[v])
    return dweight
