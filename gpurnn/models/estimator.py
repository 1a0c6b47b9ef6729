"""Fitting a sequence model to examples as people have them, and predicting for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from . import examples
from .base import Model, check_numbers, not_finite
from .sequence import SequenceModel

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..training import PaddedBatches
    from .fit_options import FitOptions


class Estimator(SequenceModel):
    """A sequence model that is fitted to examples and their targets, whatever holds them."""

    _learnt: Mapping[str, Any] = MappingProxyType({})
    """The results of `fit` besides parameters: the names of features, the labels, the scale of targets."""

    _is_fitted = False
    """Whether the parameters are of a fit or of a caller."""

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        super().load_state_dict(state)
        self._is_fitted = True

    load_state_dict.__doc__ = Model.load_state_dict.__doc__

    def _fitted(self) -> dict[str, Any]:
        learnt = dict(self._learnt)
        labels = learnt.pop("labels", None)
        if labels is not None and not labels.are_numbers:
            learnt["labels"] = labels.saved(f"{type(self).__name__}.save")
        for name in ("mean", "std"):
            if name in learnt:
                learnt[name] = learnt[name].tolist()
        return {**learnt, **({"is_fitted": True} if self._is_fitted else {})}

    def _restore_fitted(self, fitted: dict[str, Any]) -> None:
        learnt = dict(fitted)
        del self._is_fitted  # reading the parameters has set it
        if _checks.flag(type(self).__name__, "is_fitted", learnt.pop("is_fitted", False)):
            self._is_fitted = True
        if "labels" in learnt:
            learnt["labels"] = examples.Labels.restored(learnt["labels"])
        for name in ("mean", "std"):
            if name in learnt:
                learnt[name] = np.asarray(learnt[name], np.float64)
        self._learnt = learnt

    @_checks.lists_options
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        group: str | None = None,
        sample_weight: Any = None,
        mask: Any = None,
        **options: Unpack[FitOptions],
    ) -> Self:
        """Train on examples, whatever holds them; see `Model.fit` for the other options.

        Parameters
        ----------
        X : array, table, or sequence of arrays, lists, series, tensors or tables
            The examples, of any lengths: an (N, T, input_size) array, (N, T) of one feature, an entry (T_i, input_size)
            or (T_i,) for each; or tokens (T_i,), if the model embeds them. Numbers of any dtype become those of the
            model once. A pandas or polars table has a row for each example and a column for each step; with ``group``
            a row for each step and a column for each feature. Or batches from `gpurnn.training`, without ``y``.
        y : sequence, array or column; or the name of a column of X
            The target of each example, or where the model answers for each step a sequence of targets for each.
        group : str, optional
            The column of the table X that says to which example a row belongs.
        sample_weight : (N,) sequence of numbers, optional
            The weight of each example in the loss.
        mask : sequence of (T_i,) arrays, or (N, T) array, optional
            Where the model answers for each step: which targets count, as bools or weights.
        **options
            Those of `Model.fit`.

        Returns
        -------
        self
            Its attribute ``trainer_`` is the `gpurnn.Trainer` of this run; its ``history`` has the losses.

        Raises
        ------
        ValueError, TypeError
            X or y holds what cannot be learnt from; the message names the example and the step.
        FloatingPointError
            The training diverged.
        """
        where = f"{type(self).__name__}.fit"
        if hasattr(X, "batch"):
            for name, value in (("group", group), ("sample_weight", sample_weight), ("mask", mask)):
                if value is not None:
                    raise TypeError(f"{where}: {name} is given, expected None, as X holds batches")
            super().fit(X, y, **options)
            self._is_fitted = True
            return self
        learnt, batch_size, rng = self._learnt, options.pop("batch_size", 32), options.get("rng", 0)
        try:
            data = self._read(where, X, y, group, sample_weight, mask).batches(batch_size, shuffle=True, rng=rng)
            validation = options.get("validation")
            if isinstance(validation, (tuple, list)) and len(validation) == 2:
                options["validation"] = self._validation(where, validation, batch_size, group=group)
            super().fit(data, None, **options)
            self._is_fitted = True
            return self
        except (ValueError, TypeError, IndexError):
            self._learnt = learnt
            raise

    def _read(
        self, where: str, X: Any, y: Any, group: str | None, sample_weight: Any = None, mask: Any = None
    ) -> _Labelled:
        """Examples and their targets as arrays of the model, and what `fit` learns of them."""
        _checks.given(where, X=X, y=y)
        columns = (y,) if isinstance(y, str) else tuple(y) if self._are_columns(X, y, group) else ()
        if columns and group is None:
            raise TypeError(
                f"{where}: y names a column of X, expected group too, the name of the column that parts the examples"
            )
        features = self._learnt.get("features")
        if columns and features is None:
            features = [c for c in X.columns if c != group and c not in columns]
        data = self._sequences(where, X, group, features)
        if columns:
            y = examples.columns_by_group(where, "X", X, columns, group, each=self.pooling is None)
        targets, weights = self._targets_of(where, y, data)
        weights = _product(weights, self._weights(where, data, sample_weight, mask))
        if weights is not None and not any(np.any(of_one) for of_one in weights):
            raise ValueError(f"{where}: the weights of all targets are zero, expected one above zero")
        if data.features is not None:
            self._learnt = {**self._learnt, "features": list(data.features)}
        return _Labelled(data.arrays, targets, weights, self.pooling is not None)

    def _are_columns(self, X: Any, y: Any, group: str | None) -> bool:
        """Whether y names columns of the table X, and is not a label for each example."""
        names = isinstance(y, (list, tuple)) and len(y) > 0 and all(isinstance(name, str) for name in y)
        if not names or not examples.is_table(X):
            return False
        if self._loss != "cross_entropy":
            return True
        return set(y) <= set(X.columns) and (group is not None or len(y) != len(X))

    def _sequences(
        self, where: str, X: Any, group: str | None = None, features: Sequence[str] | None = None
    ) -> examples.Sequences:
        """The examples; reject what this model does not read, before any work."""
        embedding, weight = self.embedding, self.output.params["weight"]
        data = examples.sequences(
            where, "X", X, dtype=np.dtype(_checks.dtype_name(weight)), group=group,
            features=self._learnt.get("features") if features is None else features,
            width=None if embedding is not None else self.recurrent.input_size, tokens=embedding is not None,
        )  # fmt: skip
        for i, (name, array) in enumerate(zip(data.names, data.arrays, strict=True)):
            data.arrays[i] = array = examples.moved(where, name, array, weight)
            if embedding is not None:
                check_numbers(where, name, array, embedding.num_embeddings, IndexError)
        return data

    def _targets_of(self, where: str, y: Any, data: examples.Sequences) -> tuple[list[Array], list[Any] | None]:
        """Values as targets of the examples, in scaled units, and no weights."""
        weight, outputs = self.output.params["weight"], self.output.out_features
        dtype = np.dtype(_checks.dtype_name(weight))
        count = len(data.arrays)
        if self.pooling is not None:
            table = examples.numbers(where, "y", y, dtype)
            table = table[:, None] if table.ndim == 1 else table
            _checks.shape(where, "y", table, (count, outputs), "(N, outputs)")
            rows = [table[i, ...] for i in range(count)]
            examples.require_finite(where, "y", table, axis="row")
        else:
            entries = _arrays.entries(where, "y", y, "the values of each step, for each example")
            if len(entries) != count:
                raise ValueError(f"{where}: y has {len(entries)} entries, expected {count}")
            rows = []
            for i, (entry, array) in enumerate(zip(entries, data.arrays, strict=True)):
                row = examples.numbers(where, f"y[{i}]", entry, dtype)
                row = row[:, None] if row.ndim == 1 else row
                _checks.shape(where, f"y[{i}]", row, (array.shape[0], outputs), "(T, outputs)")
                examples.require_finite(where, f"y[{i}]", row)
                rows.append(row)
        if where.endswith(".fit"):
            self._learn_scale(rows)
        return [examples.moved(where, "y", self._scaled(row), weight) for row in rows], None

    def _learn_scale(self, rows: list[Array]) -> None:
        """Learn the units of the targets, at the first fit."""

    def _scaled(self, values: Array) -> Array:
        return values

    def _weights(self, where: str, data: examples.Sequences, sample_weight: Any, mask: Any) -> list[Any] | None:
        """The weight of each target as NumPy arrays, () or (T_i,); None if all are 1."""
        weights: list[Any] | None = None
        count = len(data.arrays)
        shapes = [() if self.pooling is not None else tuple(a.shape[:1]) for a in data.arrays]
        if sample_weight is not None:
            values = _dispatch.to_numpy(examples.numbers(where, "sample_weight", sample_weight, np.dtype("float64")))
            _checks.shape(where, "sample_weight", values, (count,), "(N,)")
            examples.require_weights(where, "sample_weight", values)
            weights = [np.full(shape, value) for shape, value in zip(shapes, values, strict=True)]
        if mask is not None:
            if self.pooling is not None:
                raise TypeError(
                    f"{where}: mask is given, expected None: there is one target for each example; weigh it by "
                    "sample_weight"
                )
            entries = _arrays.entries(where, "mask", mask, "an array for each example")
            if len(entries) != count:
                raise ValueError(f"{where}: mask has {len(entries)} entries, expected {count}")
            masks = [
                _dispatch.to_numpy(examples.numbers(where, f"mask[{i}]", entry, np.dtype("float64")))
                for i, entry in enumerate(entries)
            ]
            for i, (values, shape) in enumerate(zip(masks, shapes, strict=True)):
                _checks.shape(where, f"mask[{i}]", values, shape, "(T,)")
                examples.require_weights(where, f"mask[{i}]", values)
            weights = _product(weights, masks)
        return weights

    def _batches(
        self,
        X: Any,
        y: Any,
        batch_size: int,
        *,
        shuffle: bool,
        rng: int | np.random.Generator,
        group: str | None = None,
    ) -> Any:
        return self._read(f"{type(self).__name__}.fit", X, y, group).batches(batch_size, shuffle=shuffle, rng=rng)

    def _outputs(self, method: str, X: Any, batch_size: int, group: str | None = None) -> list[Array]:
        """The outputs for each example: (O,) arrays, or (T_i, O) where there is an output for each step."""
        where = f"{type(self).__name__}.{method}"
        self._require_fitted(where)
        return self._outputs_of(where, self._sequences(where, X, group), batch_size)

    def _require_fitted(self, where: str) -> None:
        """Reject a model that was neither fitted nor given parameters."""
        bias = self.output.params["bias"]
        xp = _dispatch.namespace(where, bias=bias)
        # The head's bias starts at zero, and no training leaves it there.
        if not self._is_fitted and not bool(xp.any(bias != 0)):
            raise ValueError(f"{where}: the model was never fitted, expected parameters of a fit; call fit first")

    def _outputs_of(self, where: str, data: examples.Sequences, batch_size: int) -> list[Array]:
        from ..training import pad

        batch_size = _checks.integer_at_least(where, "batch_size", batch_size, 1)
        arrays = data.arrays
        # Sequences of about one length go together, so that there is little padding.
        order = sorted(range(len(arrays)), key=lambda i: int(arrays[i].shape[0]))
        outputs: dict[int, Array] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            padded, lengths = pad([arrays[i] for i in chosen])
            y, _ = self(padded, None, lengths)
            bad = self._not_answers(padded, y)
            if len(bad):
                i = min(chosen[lane] for lane in bad)
                given = {} if self.embedding is not None else {data.names[i]: arrays[i]}
                raise not_finite(where, f"the outputs for {data.names[i]}", self.params, **given)
            for lane, i in enumerate(chosen):
                outputs[i] = y[lane, ...] if self.pooling is not None else y[: arrays[i].shape[0], lane, ...]
        return [outputs[i] for i in range(len(arrays))]

    def _not_answers(self, inputs: Array, y: Array) -> np.ndarray[Any, Any]:
        """The lanes of a padded batch whose outputs or inputs are not finite."""
        xp = _dispatch.namespace(type(self).__name__, y=y)
        # A logit of minus infinity is a class of probability 0.
        fine = xp.isfinite(xp.max(y, axis=-1)) if self._loss == "cross_entropy" else xp.all(xp.isfinite(y), axis=-1)
        if self.pooling is None:
            # Padding is 0, and its outputs are finite if those of the steps before are.
            fine = xp.all(fine, axis=0)
        if self.embedding is None:
            # Saturated units would answer infinity.
            fine = fine & xp.all(xp.isfinite(inputs), axis=(0, 2))
        return np.flatnonzero(~_dispatch.to_numpy(fine))

    def _map(self, outputs: list[Array], function: Any) -> Any:
        """``function`` of the stacked outputs, or of the outputs of each example where they are for each step."""
        xp = _dispatch.namespace(type(self).__name__, outputs=outputs[0])
        if self.pooling is not None:
            return function(xp, xp.stack(outputs))
        return [function(xp, y) for y in outputs]

    @property
    def n_features_in_(self) -> int:
        """How many features a step has."""
        return int(self.recurrent.input_size)


@dataclass(frozen=True)
class _Labelled:
    """Examples and targets, ready to train on."""

    arrays: list[Array]
    targets: list[Array]
    weights: list[Any] | None
    per_sequence: bool

    def batches(self, batch_size: int, *, shuffle: bool, rng: int | np.random.Generator) -> PaddedBatches:
        from ..training import PaddedBatches

        return PaddedBatches(
            self.arrays, batch_size, self.targets, per_sequence=self.per_sequence, weights=self.weights,
            shuffle=shuffle, rng=rng,
        )  # fmt: skip

    def sequences(self) -> examples.Sequences:
        return examples.Sequences(self.arrays, [f"X[{i}]" for i in range(len(self.arrays))])


def _product(weights: list[Any] | None, others: list[Any] | None) -> list[Any] | None:
    """The products of two lists of weights; None is a list of ones."""
    if weights is None or others is None:
        return others if weights is None else weights
    return [a * b for a, b in zip(weights, others, strict=True)]


def like(xp: Any, values: NDArray[np.float64], like: Array) -> Array:
    return xp.astype(_dispatch.from_numpy(xp, values), like.dtype)
