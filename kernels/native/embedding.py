"""The gradient of an embedding: sums of rows."""

from __future__ import annotations

import numpy as np
from gpurnn.reference.embedding import check_indices

from gpurnn._contract import Array

from . import build, threads

LIBRARY = build.Library("embedding", lambda: '#include "native/embedding.cpp"\n')


def embedding_scatter(indices: Array, dy: Array, num_embeddings: int) -> Array:
    """Row v of the result is the sum of the rows of ``dy`` whose index is v, in the order of their positions.

    Raises
    ------
    IndexError
        An index is not in 0 ... V - 1.
    """
    # A copy, so that no other thread can change it between the check and its use.
    indices, width = np.array(indices, np.int64), dy.shape[-1]
    check_indices(indices, num_embeddings)
    dweight = np.zeros((num_embeddings, width), dy.dtype)
    if dy.size:
        build.call(
            getattr(build.load(LIBRARY), f"gpurnn_scatter_{dy.dtype.name}"), threads.team(), indices.size, width,
            indices, np.ascontiguousarray(dy), dweight,
        )  # fmt: skip
    return dweight
