"""The embedding layer: a table of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks, functional, initializers
from .._contract import Array
from .._op import Pullback
from .._random import generator
from .base import TOKENS, Layer, Parameters, parameter, parameter_dtype


def _standard_normal(rng: np.random.Generator, shape: tuple[int, int], dtype: Any) -> np.ndarray[Any, Any]:
    return rng.standard_normal(shape).astype(dtype)


class Embedding(Layer):
    """Embedding: y[...] = weight[indices[...]].

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows V and columns E of the table.
    padding_idx : int, optional
        A row that starts at zero and receives no gradient.
    init : str or initializer, optional
        How the table starts: a name or a function of `gpurnn.initializers`. N(0, 1) by default, as in PyTorch.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial table comes from.

    Attributes
    ----------
    params : dict of str to array
        ``weight`` (V, E).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> table = gpurnn.Embedding(10, 3, padding_idx=0)
    >>> table
    Embedding(10, 3, padding_idx=0)  # 30 parameters
    >>> table(np.array([[0]]))
    array([[[0., 0., 0.]]], dtype=float32)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        init: str | initializers.Initializer | None = None,
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "Embedding"
        self.num_embeddings = _checks.size(where, "num_embeddings", num_embeddings)
        self.embedding_dim = _checks.size(where, "embedding_dim", embedding_dim)
        if padding_idx is not None:
            padding_idx = _checks.integer_at_least(where, "padding_idx", padding_idx, 0)
            if padding_idx >= self.num_embeddings:
                raise ValueError(
                    f"{where}: padding_idx is {padding_idx}, expected 0 ... V - 1 = {self.num_embeddings - 1}"
                )
        self.padding_idx = padding_idx
        initialise = _standard_normal if init is None else initializers.get(init)
        random, kind = generator(where, rng), parameter_dtype(where, dtype)
        shape = (self.num_embeddings, self.embedding_dim)

        def initial() -> np.ndarray[Any, Any]:
            table = initialise(random, shape, kind)
            if padding_idx is not None:
                table[padding_idx] = 0
            return table

        self.params = Parameters({"weight": parameter(shape, kind, initial)})

    def __call__(self, indices: Array) -> Array:
        """Return the rows, indices.shape + (E,); raises as `gpurnn.embedding` does."""
        return functional.embedding(indices, self.params["weight"], padding_idx=self.padding_idx)

    def vjp(self, indices: Array, rng: int | np.random.Generator | None = None) -> tuple[Array, Pullback]:
        """Return ``(y, pullback)``; ``pullback(dy)`` returns ``(None, grads)``, and ``rng`` is not used."""
        return functional.embedding.vjp(indices, self.params["weight"], padding_idx=self.padding_idx)

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        return TOKENS, self.embedding_dim
