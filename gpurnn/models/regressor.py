"""The sequence model for numbers: for a whole sequence (many to one), or for each step (many to many)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks, _dispatch
from .._contract import Array
from ..cells import Activation, CellOptions, Update
from ..layers.recurrent import Merge
from . import examples
from .estimator import Estimator, like
from .sequence import LOSSES

if TYPE_CHECKING:
    from ..optimizers import Optimizer


class SequenceRegressor(Estimator):
    r"""Many to one, or many to many of the same length: values for each sequence, or for each of its steps.

    y = g(W_hy h + b_y) with h the pooled output of the recurrent stack, h_T by default, or y_t = g(W_hy h_t + b_y).

    Parameters
    ----------
    input_size, outputs : int, optional
        A size that is left out is taken from the examples, as in `SequenceClassifier`.
    hidden_size : int
    num_layers : int
    pooling : {"last", "mean", "attention"} or None
        As in `SequenceClassifier`; None for values at each step.
    output_activation : {"identity", "tanh", "relu", "sigmoid"}
        g.
    loss : {"mse", "l1", "huber"}
        The loss that `fit` minimises, by its name in `gpurnn.losses`.
    standardize : bool
        Whether the first `fit` scales the targets to mean 0 and standard deviation 1. `predict` and `score` use the
        targets' own units; a call, `vjp` and the losses use scaled units. The answers of `predict` have the model's
        dtype, or float64 if the dtype of the targets of the first `fit` holds more digits. An ``output_activation``
        fixes the units, so nothing is scaled.
    cell, bidirectional, merge, reverse, num_embeddings, activation, leak, reset_after, update, cell_options,
    dropout, variational_dropout, recurrent_dropout, residual, init, dtype, rng, standardize_inputs, random_state,
    epochs, batch_size, optimizer, lr, schedule, clip_norm, l2, validation_split, patience, verbose
        As in `SequenceClassifier`.

    Attributes
    ----------
    params : dict of str to array
        As in `SequenceClassifier`.

    Raises
    ------
    ValueError, TypeError
        An option is out of its range or unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> from gpurnn.models import SequenceRegressor
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(100, 5, 1)).astype(np.float32)
    >>> model = SequenceRegressor(1, 8, 1, bidirectional=True, pooling="mean")
    >>> model = model.fit(x, x.mean(axis=1), epochs=20, optimizer=gpurnn.Adam(0.01))
    >>> bool(np.mean((model.predict(x) - x.mean(axis=1)) ** 2) < 0.02)
    True
    >>> each = SequenceRegressor(1, 8, 1, pooling=None).fit(x, x.cumsum(axis=1), epochs=1)
    >>> [y.shape for y in each.predict([x[0], x[1, :2]])]
    [(5, 1), (2, 1)]
    """

    _estimator_type = "regressor"

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int = 64,
        outputs: int | None = None,
        num_layers: int = 1,
        *,
        pooling: str | None = "last",
        output_activation: str = "identity",
        loss: str = "mse",
        standardize: bool = True,
        cell: str = "gru",
        bidirectional: bool = False,
        merge: Merge = "concat",
        reverse: bool = False,
        num_embeddings: int | None = None,
        activation: Activation | None = None,
        leak: float | None = None,
        reset_after: bool | None = None,
        update: Update | None = None,
        cell_options: CellOptions | None = None,
        dropout: float = 0.0,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        residual: bool = False,
        init: Any = None,
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
        standardize_inputs: bool | None = None,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        epochs: int | None = None,
        batch_size: int = 32,
        optimizer: str | Optimizer = "adam",
        lr: float | None = None,
        schedule: str | Callable[[int], float] | None = None,
        clip_norm: float | None = 1.0,
        l2: float | dict[str, float] = 0.0,
        validation_split: float | None = None,
        patience: int | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(locals())
        where = type(self).__name__
        self._loss = _checks.choice(where, "loss", loss, LOSSES)
        self.standardize = _checks.flag(where, "standardize", standardize)

    @property
    def _is_standardized(self) -> bool:
        """Whether targets are learnt in scaled units: not with an activation of the outputs, which fixes the units."""
        return self.standardize and self._arguments["output_activation"] == "identity"

    @property
    def _target_dtype(self) -> np.dtype[Any]:
        # Large values keep their digits until they are scaled.
        return np.dtype(np.float64) if self._is_standardized else self._dtype

    def _learn_scale(self, rows: list[Array], weights: list[Any] | None, given: np.dtype[Any]) -> None:
        if self._is_standardized and "mean" not in self._learnt:
            values = np.concatenate([np.atleast_2d(_dispatch.to_numpy(row)) for row in rows]).astype(np.float64)
            of_rows = None if weights is None else np.concatenate([np.atleast_1d(w) for w in weights])
            mean, std = examples.scale_of(values, of_rows)
            dtype = examples.answer_dtype(self._dtype, given).name
            self._learnt = {**self._learnt, "mean": mean, "std": std, "target_dtype": dtype}

    def _scaled(self, values: Array) -> Array:
        xp = _dispatch.namespace("SequenceRegressor", values=values)
        if "mean" in self._learnt:
            mean, std = (like(xp, self._learnt[name], values) for name in ("mean", "std"))
            values = (values - mean) / std
        return xp.astype(values, getattr(xp, self._dtype.name))

    def _answers(self, xp: Any, values: Array) -> Array:
        """Outputs in the form of the targets of `fit`: in their units, and without the last axis if they had none."""
        if "mean" in self._learnt:
            dtype = self._learnt.get("target_dtype", self._dtype.name)  # files of 0.1 have none
            mean, std = (_dispatch.from_numpy(xp, self._learnt[name]) for name in ("mean", "std"))
            values = xp.astype(xp.astype(values, xp.float64) * std + mean, getattr(xp, dtype))
        return values[..., 0] if self._learnt.get("is_flat") else values

    @property
    def loss_unit(self) -> str:
        return f"{super().loss_unit} of the scaled targets" if self._is_standardized else super().loss_unit

    def predict(self, X: Any, *, batch_size: int = 256, group: str | None = None) -> Any:
        """The values, in the units of the targets of `fit`.

        Parameters
        ----------
        X, group
            Examples, as in `fit`.
        batch_size : int
            The number of examples computed at a time.

        Returns
        -------
        (N, outputs) array, or a list with a (T_i, outputs) array for each example if there are values at each step.
        (N,) or (T_i,) if the targets of `fit` had these shapes.

        Raises
        ------
        ValueError, TypeError
            X holds no such examples, or NaN or infinity, or the model was never fitted.
        FloatingPointError
            A parameter is NaN or infinite, or the outputs overflow.
        """
        return self._map(self._outputs("predict", X, batch_size, group), self._answers)

    def score(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        mask: Any = None,
        batch_size: int = 256,
        group: str | None = None,
    ) -> float:
        """R^2, the share of the targets' variance that `predict` explains, averaged over the outputs.

        It is 1 - sum w (y - f)^2 / sum w (y - mean)^2, 1 at best and 0 for the mean of y.

        Parameters
        ----------
        X, y, sample_weight, mask, group
            As in `fit`.
        batch_size : int
            As in `predict`.

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As in `fit` and `predict`.
        """
        where = "SequenceRegressor.score"
        self._require_fitted(where)
        read = self._read(where, X, y, group, sample_weight, mask)
        outputs = self._outputs_of(where, read.sequences(), batch_size)
        predicted, targets = (
            np.concatenate([np.atleast_2d(_dispatch.to_numpy(row)) for row in rows]).astype(np.float64)
            for rows in (outputs, read.targets)
        )
        weights = np.ones(len(targets))
        if read.weights is not None:
            weights = np.concatenate([np.atleast_1d(w) for w in read.weights])
        mean = np.average(targets, axis=0, weights=weights)
        errors, spread = weights @ (targets - predicted) ** 2, weights @ (targets - mean) ** 2
        # If the targets are constant, only the right constant explains them.
        varied = spread > 0
        explained = np.where(varied, 1 - errors / np.where(varied, spread, 1), np.where(errors > 0, 0.0, 1.0))
        return float(explained.mean())
