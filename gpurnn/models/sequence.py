"""Sequence models: a class or values for a whole sequence (many to one), or for each of its steps (many to many)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch, functional, initializers, layers, losses
from .._contract import Array, State
from .._op import Pullback
from .._random import generator
from ..functional._activations import activate
from ..functional._state import cotangent_pair
from ..layers.base import Chain, Layer, parameter, parameter_dtype
from . import examples
from .base import Model, check_numbers, existing, not_finite, recurrent, without_padding

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..training import PaddedBatches

POOLINGS = ("last", "mean", "attention")
OUTPUT_ACTIVATIONS = ("identity", "tanh", "relu", "sigmoid")
LOSSES = ("mse", "l1", "huber")


def check_classes(where: str, name: str, classes: int, otherwise: str) -> None:
    """Reject a softmax over less than two classes, which has nothing to learn."""
    if _checks.size(where, name, classes) == 1:
        raise ValueError(
            f"{where}: {name} is 1, expected at least 2: the probability of a single class is always 1; for yes or no "
            f"take 2 classes, for a number {otherwise}"
        )


def _take(where: str, y: Array, lengths: Array | None) -> tuple[Any, Array, Array]:
    """The namespace, y (T, B, K) and the lengths of its sequences, ready to compute with."""
    xp, y, lengths = _arrays.take(where, {"y": y}, {"lengths": lengths}, needed=("y",))
    if lengths is None:
        lengths = xp.full((y.shape[1],), y.shape[0], dtype=xp.int64, device=_dispatch.device(y))
    return xp, y, lengths


class LastPooling(Layer):
    """The output of a recurrent stack once it has read the whole sequence; zero for a sequence without steps.

    That is its output at the last valid step, or at the first step for the columns of the backward direction.
    """

    name = "last"

    def __init__(self, bidirectional: bool = False) -> None:
        self.bidirectional = bidirectional
        self.params = {}

    def __call__(self, y: Array, lengths: Array | None = None) -> Array:
        """(B, K) of y (T, B, K)."""
        return self.vjp(y, lengths)[0]

    def vjp(self, y: Array, lengths: Array | None = None) -> tuple[Array, Pullback]:
        """``(pooled, pullback)``, with ``pullback(dpooled)`` returning ``(dy, {})``."""
        xp, y, lengths = _take("LastPooling", y, lengths)
        T, B, K = y.shape
        H = K // 2 if self.bidirectional else K
        # y is zero past a length, and so is step 0 of a sequence without steps.
        step = xp.clip(lengths - 1, min=0)
        row = step * B + xp.arange(B, dtype=xp.int64, device=_dispatch.device(y))
        pooled, pull = functional.embedding.vjp(row, xp.reshape(y, (T * B, K)))
        if H < K:
            pooled = xp.concat([pooled[:, :H], y[0, :, H:]], axis=1)

        def pullback(dpooled: Array) -> tuple[Array, dict[str, Array]]:
            dlast = dpooled
            if H < K:
                dlast = xp.concat([dpooled[:, :H], xp.zeros_like(dpooled[:, H:])], axis=1)
            dy = xp.reshape(pull(dlast)[1]["weight"], (T, B, K))
            if H < K:
                dy[0, :, H:] = dpooled[:, H:]
            return dy, {}

        return pooled, pullback


class MeanPooling(Layer):
    """The mean over the valid steps; zero for a sequence without steps."""

    name = "mean"

    def __init__(self) -> None:
        self.params = {}

    def __call__(self, y: Array, lengths: Array | None = None) -> Array:
        """(B, K) of y (T, B, K)."""
        return self.vjp(y, lengths)[0]

    def vjp(self, y: Array, lengths: Array | None = None) -> tuple[Array, Pullback]:
        """``(pooled, pullback)``, with ``pullback(dpooled)`` returning ``(dy, {})``."""
        xp, y, lengths = _take("MeanPooling", y, lengths)
        count = xp.astype(xp.clip(lengths, min=1), y.dtype)[:, None]

        def pullback(dpooled: Array) -> tuple[Array, dict[str, Array]]:
            return xp.zeros_like(y) + dpooled / count, {}

        # y is zero past a length.
        return xp.sum(y, axis=0) / count, pullback


class AttentionPooling(Layer):
    """A weighted mean over the valid steps, with u^T tanh(W h_t + b) as the score of step t; u is learned.

    Yang et al. 2016, equations 5 to 7. Zero for a sequence without steps.
    """

    name = "attention"

    def __init__(self, size: int, *, dtype: Any = "float32", rng: int | np.random.Generator = 0) -> None:
        self.size = size
        random, kind = generator("AttentionPooling", rng), parameter_dtype("AttentionPooling", dtype)
        xavier, normal = initializers.get("xavier"), initializers.get("normal")
        self.params = {
            "weight": parameter((size, size), kind, lambda: xavier(random, (size, size), kind)),
            "bias": parameter((size,), kind, lambda: np.zeros(size, kind)),
            "query": parameter((size,), kind, lambda: normal(random, (1, size), kind)[0]),
        }

    def _arguments(self, y: Array, lengths: Array | None) -> tuple[tuple[Array, ...], dict[str, Any]]:
        """Those of `gpurnn.attention`: with a query of 1 for all, W_a query is the bias b."""
        xp = _dispatch.namespace("AttentionPooling", y=y, lengths=lengths)
        query = xp.ones((1, y.shape[1], 1), dtype=y.dtype, device=_dispatch.device(y))
        n = self.size
        p = _arrays.parameters("AttentionPooling", self.params, {"weight": (n, n), "bias": (n,), "query": (n,)})
        weights = {"weight_query": p["bias"][:, None], "weight_keys": p["weight"]}
        return (query, y), {"score": "additive", **weights, "v": p["query"], "lengths": lengths}

    def __call__(self, y: Array, lengths: Array | None = None) -> Array:
        """(B, K) of y (T, B, K)."""
        arguments, options = self._arguments(y, lengths)
        return functional.attention(*arguments, **options)[0][0, ...]

    def vjp(self, y: Array, lengths: Array | None = None) -> tuple[Array, Pullback]:
        """``(pooled, pullback)``, with ``pullback(dpooled)`` returning ``(dy, grads)``."""
        arguments, options = self._arguments(y, lengths)
        (context, _), pull = functional.attention.vjp(*arguments, **options)

        def pullback(dpooled: Array) -> tuple[Array, dict[str, Array]]:
            (_, dy, _), grads = pull((dpooled[None, ...], None))
            return dy, {"weight": grads["weight_keys"], "bias": grads["weight_query"][:, 0], "query": grads["v"]}

        return context[0, ...], pullback


class SequenceModel(Model):
    """The base class of sequence models: embedding of tokens, recurrent stack, pooling unless per step, and head."""

    stateful = True

    _outputs_name = "outputs"
    """The argument of the constructor that is the width of the head."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        outputs: int,
        num_layers: int = 1,
        *,
        cell: str = "gru",
        bidirectional: bool = False,
        pooling: str | None = "last",
        num_embeddings: int | None = None,
        dropout: float = 0.0,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        residual: bool = False,
        init: Any = None,
        output_activation: str = "identity",
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
        **cell_options: Any,
    ) -> None:
        where = type(self).__name__
        if output_activation != "identity" and "output_activation" in self._not_options:
            raise TypeError(f"{where}: output_activation is given, expected none: the outputs are logits")
        input_size = _checks.size(where, "input_size", input_size)
        outputs = _checks.size(where, self._outputs_name, outputs)
        if num_embeddings is not None:
            num_embeddings = _checks.size(where, "num_embeddings", num_embeddings)
        self._dropped = layers.Dropout(_checks.fraction(where, "dropout", dropout))
        random = generator(where, rng)
        bidirectional = _checks.flag(where, "bidirectional", bidirectional)
        recurrent_options: dict[str, Any] = {
            "bidirectional": bidirectional,
            "variational_dropout": variational_dropout,
            "recurrent_dropout": recurrent_dropout,
            "residual": residual,
        }
        self.embedding = None
        if num_embeddings is not None:
            self.embedding = layers.Embedding(num_embeddings, input_size, dtype=dtype, rng=random)
        self.recurrent = recurrent(
            type(self), where, cell, input_size, hidden_size, num_layers, cell_options,
            dropout=dropout, init=init, dtype=dtype, rng=random, **recurrent_options,
        )  # fmt: skip
        size = self.recurrent.hidden_size * self.recurrent.num_directions
        self.pooling: LastPooling | MeanPooling | AttentionPooling | None = None
        if pooling == "last":
            self.pooling = LastPooling(bidirectional)
        elif pooling == "mean":
            self.pooling = MeanPooling()
        elif pooling == "attention":
            self.pooling = AttentionPooling(size, dtype=dtype, rng=random)
        self.output = layers.Dense(size, outputs, activation=output_activation, dtype=dtype, rng=random)
        self.parts = tuple(
            part for part in ("embedding", "recurrent", "pooling", "output") if getattr(self, part) is not None
        )
        self.input_size, self.num_embeddings, self.dropout = input_size, num_embeddings, self._dropped.rate

    def _argument(self, name: str) -> Any:
        if name == "pooling":
            return None if self.pooling is None else self.pooling.name
        if name in (self._outputs_name, "output_activation"):
            return self.output.out_features if name == self._outputs_name else self.output.activation
        return super()._argument(name)

    def __call__(self, inputs: Array, state: State = None, lengths: Array | None = None) -> tuple[Array, State]:
        """The head's output and the recurrent stack's final state, without dropout; nothing is saved.

        Parameters
        ----------
        inputs : (T, B, input_size) array, or (T, B) integer array
            Time-major, T at least 1; of the dtype of the parameters, or tokens with ``num_embeddings``.
        state
            The initial state of the recurrent stack; zero by default.
        lengths : (B,) integer array, optional
            Valid steps of each sequence, zero allowed. Inputs past them are not read.

        Returns
        -------
        y : (B, O) array, or (T, B, O) where there is an output for each step
            Logits of a classifier or tagger, values of a regressor. Past a length they mean nothing.
        state
            After each sequence's last valid step.
        """
        inputs = self._take_inputs(inputs, lengths)
        x = inputs if self.embedding is None else self.embedding(inputs)
        y, state = self.recurrent(x, state, lengths)
        return self.output(y if self.pooling is None else self.pooling(y, lengths)), state

    def vjp(
        self,
        inputs: Array,
        state: State = None,
        lengths: Array | None = None,
        rng: int | np.random.Generator | None = None,
        *,
        checkpoint_every: int | str | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """``((y, state), pullback)``, with ``pullback((dy, dstate))`` returning ``((dinputs, dstate0), grads)``.

        With ``rng`` dropout acts; without it these are the gradients of evaluation mode. dinputs is None for tokens.
        ``checkpoint_every`` is an option of the recurrent stack: see the ``vjp`` of `gpurnn.GRU`.
        """
        where = type(self).__name__
        inputs = self._take_inputs(inputs, lengths)
        random = None if rng is None else generator(where, rng)
        below, above = Chain(), Chain()
        x = inputs if self.embedding is None else below("embedding", self.embedding.vjp(inputs))
        x = below(None, self._dropped.vjp(x, random))
        (y, final), pull_recurrent = self.recurrent.vjp(
            x, state, lengths, rng=random, checkpoint_every=checkpoint_every
        )
        if self.pooling is not None:
            y = above("pooling", self.pooling.vjp(y, lengths))
        y = above(None, self._dropped.vjp(y, random))
        outputs = above("output", self.output.vjp(y))

        def pullback(cotangents: Any) -> tuple[tuple[Array | None, State], dict[str, Array]]:
            doutputs, dfinal = cotangent_pair(where, cotangents)
            doutputs = _arrays.cotangent(where, "y", doutputs, outputs)
            dy, of_above = above.pull(doutputs)
            (dx, dstate), recurrent = pull_recurrent((dy, dfinal))
            dx, of_below = below.pull(dx)
            return (dx, dstate), self._named({**of_below, "recurrent": recurrent, **of_above})

        return (outputs, final), pullback

    def loss(
        self,
        inputs: Array,
        targets: Array,
        state: State = None,
        lengths: Array | None = None,
        *,
        mask: Array | None = None,
    ) -> tuple[Array, State]:
        """The mean loss over the targets, in evaluation mode, and the final state.

        Parameters
        ----------
        inputs, state, lengths
            As in a call.
        targets : array
            Shaped like the head's output; of classes, integers without its last axis. Of targets for each step only
            those of steps that exist count.
        mask : (B,) array, or (T, B) where there is an output for each step, optional
            The weights of the targets in the mean, of any dtype; True or 1 by default.

        Returns
        -------
        loss : 0-d array
        state
        """
        y, final = self(inputs, state, lengths)
        return getattr(losses, self._loss)(y, targets, mask=self._mask(inputs, lengths, mask, y)), final

    def loss_and_gradients(
        self,
        inputs: Array,
        targets: Array,
        state: State = None,
        lengths: Array | None = None,
        *,
        rng: int | np.random.Generator | None = None,
        mask: Array | None = None,
        checkpoint_every: int | str | None = None,
    ) -> tuple[Array, State, dict[str, Array]]:
        """The results of `loss`, and the gradients of the loss by parameter name. With ``rng`` dropout acts.

        ``checkpoint_every`` is as in `vjp`.
        """
        (y, final), pullback = self.vjp(inputs, state, lengths, rng, checkpoint_every=checkpoint_every)
        loss, pull_loss = getattr(losses, self._loss).vjp(y, targets, mask=self._mask(inputs, lengths, mask, y))
        dy, _ = pull_loss(1.0)
        _, grads = pullback((dy, None))
        return loss, final, grads

    def _mask(self, inputs: Array, lengths: Array | None, mask: Array | None, y: Array) -> Array | None:
        """The weights of the targets: those of a caller, and zero where there is no step."""
        exist = existing(type(self).__name__, inputs, lengths) if self.pooling is None else None
        if mask is None:
            return exist
        xp = _dispatch.namespace(type(self).__name__, y=y, mask=mask)
        mask = xp.astype(mask, y.dtype)
        return mask if exist is None else xp.where(exist, mask, xp.zeros_like(mask))

    def _take_inputs(self, inputs: Array, lengths: Array | None) -> Array:
        """The inputs, ready to compute with, tokens without padding; reject what this model does not read."""
        where = type(self).__name__
        inputs = self._take(where, "inputs", inputs, tokens=self.embedding is not None)
        if self.embedding is None:
            _checks.ndim(where, "inputs", inputs, 3, "(T, B, input_size)")
        else:
            _checks.ndim(where, "inputs", inputs, 2, "(T, B)")
        if inputs.shape[0] == 0:
            raise ValueError(f"{where}: inputs has shape {tuple(inputs.shape)}, expected at least one step")
        return inputs if self.embedding is None else without_padding(where, inputs, lengths)

    def _take(self, where: str, name: str, array: Array, *, tokens: bool) -> Array:
        """An array of integers, or of the dtype of the parameters, ready to compute with."""
        floats = {"params": self.output.params["weight"], **({} if tokens else {name: array})}
        return _arrays.take(where, floats, {name: array} if tokens else {}, needed=(name,))[2]

    def _shapes(self) -> list[tuple[Any, ...]]:
        size = self.recurrent.hidden_size * self.recurrent.num_directions
        rows: list[tuple[Any, ...]] = [(f"(T, B, {self.recurrent.input_size})", "inputs")]
        if self.embedding is not None:
            rows = [("(T, B)", "tokens"), (rows[0][0], self.embedding)]
        rows.append((f"(T, B, {size})", self.recurrent))
        if self.pooling is not None:
            rows.append((f"(B, {size})", self.pooling))
        leading = "(T, B" if self.pooling is None else "(B"
        return [*rows, (f"{leading}, {self.output.out_features})", self.output, self._outputs_text)]

    _outputs_text = "values"


class _Estimator(SequenceModel):
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
        if learnt:
            self._learnt = learnt

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        group: str | None = None,
        sample_weight: Any = None,
        mask: Any = None,
        batch_size: int = 32,
        validation: Any = None,
        rng: int | np.random.Generator = 0,
        **options: Any,
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
        batch_size, validation, rng, **options
            As in `Model.fit`.

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
            super().fit(X, y, batch_size=batch_size, validation=validation, rng=rng, **options)
            self._is_fitted = True
            return self
        self._check_options(options)
        learnt = self._learnt
        try:
            data = self._read(where, X, y, group, sample_weight, mask).batches(batch_size, shuffle=True, rng=rng)
            if isinstance(validation, (tuple, list)) and len(validation) == 2:
                validation = self._validation(where, validation, batch_size, group=group)
            super().fit(data, None, validation=validation, rng=rng, **options)
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
        columns = (y,) if isinstance(y, str) else tuple(y) if _are_columns(X, y) else ()
        if columns and group is None:
            raise TypeError(
                f"{where}: y names a column of X, expected group too, the name of the column that parts the examples"
            )
        features = self._learnt.get("features")
        if columns and features is None:
            features = [c for c in X.columns if c != group and c not in columns]
        data = self._sequences(where, X, group, features)
        if columns:
            y = examples.columns_by_group(where, "X", X, columns, str(group), each=self.pooling is None)
        targets, weights = self._targets_of(where, y, data)
        weights = _product(weights, self._weights(where, data, sample_weight, mask))
        if data.features is not None:
            self._learnt = {**self._learnt, "features": list(data.features)}
        return _Labelled(data.arrays, targets, weights, self.pooling is not None)

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


class _Classifier(_Estimator):
    """The base class of classifiers, of sequences and of steps: cross-entropy, probabilities, classes."""

    _not_options: tuple[str, ...] = ("output_activation",)
    _outputs_name = "classes"
    _outputs_text = "logits"
    _class_weight: Any = None
    _padding_label: Any = None
    """Options of the `fit` that is under way."""

    _loss = "cross_entropy"

    @property
    def classes_(self) -> NDArray[Any]:
        """The label of each class, in the order of `predict_proba`: those that `fit` saw, or 0 ... classes - 1."""
        labels = self._learnt.get("labels")
        return np.arange(self.output.out_features) if labels is None else labels.classes

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        padding_label: Any = None,
        **options: Any,
    ) -> Self:
        """Train on examples and their labels, whatever holds them.

        Parameters
        ----------
        X : array, table, or sequence of arrays, lists, series, tensors or tables
            As in `SequenceRegressor`'s ``fit``.
        y : sequence, array or column; or the name of a column of X
            The label of each example; of a tagger a sequence of labels for each. Labels are ints, bools, strings or any
            hashables; ``classes_`` has them in their order.
        class_weight : dict of label to number, or "balanced", optional
            The weight of each class in the loss, 1 where it is left out. "balanced" weighs a class by the number of
            labels over that of its own and of the classes, so that all classes count alike.
        padding_label : label, optional
            Of a tagger: a label that counts nowhere.
        **options
            ``group``, ``sample_weight`` and ``mask`` as in `SequenceRegressor`'s ``fit``; further those of `Model.fit`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            X or y holds what cannot be learnt from; the message names the example and the step. There are more classes
            than the model has.
        FloatingPointError
            The training diverged.
        """
        where = f"{type(self).__name__}.fit"
        if padding_label is not None and self.pooling is not None:
            raise TypeError(f"{where}: padding_label is given, expected None: there is one label for each example")
        self._class_weight, self._padding_label = class_weight, padding_label
        try:
            return super().fit(X, y, **options)
        finally:
            del self._class_weight, self._padding_label

    def _targets_of(self, where: str, y: Any, data: examples.Sequences) -> tuple[list[Array], list[Any] | None]:
        """Labels as numbers of the classes, and their weights."""
        count = len(data.arrays)
        if self.pooling is not None:
            flat = examples.labels_in(where, "y", y)
            names = [f"y[{i}]" for i in range(len(flat))]
            if len(flat) != count:
                raise ValueError(f"{where}: y has {len(flat)} entries, expected {count}")
            sizes = None
        else:
            entries = _arrays.entries(where, "y", y, "a sequence of labels for each example")
            if len(entries) != count:
                raise ValueError(f"{where}: y has {len(entries)} entries, expected {count}")
            of_each = [examples.labels_in(where, f"y[{i}]", entry) for i, entry in enumerate(entries)]
            for i, (labels, array) in enumerate(zip(of_each, data.arrays, strict=True)):
                if len(labels) != array.shape[0]:
                    raise ValueError(
                        f"{where}: y[{i}] has {len(labels)} labels, expected {array.shape[0]}, the steps of "
                        f"{data.names[i]}"
                    )
            flat = [label for labels in of_each for label in labels]
            names = [f"y[{i}][{t}]" for i, labels in enumerate(of_each) for t in range(len(labels))]
            sizes = np.cumsum([len(labels) for labels in of_each])[:-1]
        padding = self._padding_label
        counts = np.array([padding is None or label != padding for label in flat])
        real = [label for label, one in zip(flat, counts, strict=True) if one]
        known = self._learn_labels(where, real)
        numbers = np.zeros(len(flat), np.int64)
        numbers[counts] = known.encode(where, [name for name, one in zip(names, counts, strict=True) if one], real)
        weights = None if counts.all() else counts.astype(np.float64)
        if self._class_weight is not None:
            of_classes = known.weights(where, self._class_weight, numbers[counts])[numbers]
            weights = of_classes if weights is None else weights * of_classes
        weight = self.output.params["weight"]
        parts: list[Any] = list(numbers) if sizes is None else np.split(numbers, sizes)
        targets = [examples.moved(where, "y", np.asarray(part), weight) for part in parts]
        if weights is None:
            return targets, None
        return targets, [np.asarray(w) for w in (weights if sizes is None else np.split(weights, sizes))]

    def _learn_labels(self, where: str, flat: list[Any]) -> examples.Labels:
        """The labels of the classes: those of an earlier fit, or those that there are."""
        known = self._learnt.get("labels")
        if known is not None:
            return known
        K = self.output.out_features
        labels = examples.Labels(np.arange(K))
        if not where.endswith(".fit"):
            return labels
        if not all(type(label) is int and 0 <= label < K for label in flat):
            labels = examples.Labels.of(flat)
        if len(labels.classes) > K:
            raise ValueError(f"{where}: y has {len(labels.classes)} classes, expected at most classes = {K}")
        self._learnt = {**self._learnt, "labels": labels}
        return labels

    def predict_proba(self, X: Any, *, batch_size: int = 256, group: str | None = None) -> Any:
        """The probabilities softmax(W h + b) of the classes, in the order of ``classes_``.

        Parameters
        ----------
        X
            Examples, as in `fit`.
        batch_size : int
            How many are computed at a time.
        group : str, optional
            As in `fit`.

        Returns
        -------
        (N, classes) array, or of a tagger a list with a (T_i, classes) array for each example

        Raises
        ------
        ValueError, TypeError
            X holds no such examples, or NaN or infinity, or the model was never fitted.
        FloatingPointError
            A parameter is NaN or infinite, or the outputs overflow.
        """
        outputs = self._outputs("predict_proba", X, batch_size, group)
        return self._map(outputs, lambda xp, logits: activate(xp, "softmax", logits))

    def predict(self, X: Any, *, batch_size: int = 256, group: str | None = None) -> Any:
        """The likeliest classes.

        Parameters
        ----------
        X, batch_size, group
            As in `predict_proba`.

        Returns
        -------
        (N,) array of labels, or of a tagger a list with a (T_i,) array for each example

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As `predict_proba` does.
        """
        return self._map(self._outputs("predict", X, batch_size, group), self._likeliest)

    def _likeliest(self, xp: Any, logits: Array) -> Array:
        numbers = xp.argmax(logits, axis=-1)
        labels = self._learnt.get("labels")
        if labels is None or labels.are_numbers:
            return numbers
        return labels.decode(_dispatch.to_numpy(numbers))

    def score(
        self, X: Any, y: Any, sample_weight: Any = None, *, batch_size: int = 256, group: str | None = None
    ) -> float:
        """The share of the labels that `predict` meets.

        Parameters
        ----------
        X, y, sample_weight, group
            As in `fit`.
        batch_size : int
            As in `predict_proba`.

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As `fit` and `predict_proba` do; a label is none that `fit` saw.
        """
        where = f"{type(self).__name__}.score"
        self._require_fitted(where)
        read = self._read(where, X, y, group, sample_weight)
        outputs = self._outputs_of(where, read.sequences(), batch_size)
        right = total = 0.0
        for i, (logits, target) in enumerate(zip(outputs, read.targets, strict=True)):
            xp = _dispatch.namespace(where, logits=logits)
            hits = xp.astype(xp.argmax(logits, axis=-1) == target, xp.float64)
            weights = xp.ones_like(hits) if read.weights is None else _dispatch.from_numpy(xp, read.weights[i])
            right, total = right + float(xp.sum(hits * weights)), total + float(xp.sum(weights))
        return right / total


class SequenceClassifier(_Classifier):
    r"""Many to one: a class for each sequence, from the state of a recurrent stack that has read it.

    With h the pooled output of the stack, h_T by default::

        h_t = recurrent stack(x_t, h_{t-1})
        P(class | x_1 .. x_T) = softmax(W_hy h + b_y)

    Parameters
    ----------
    input_size, hidden_size, classes : int
    num_layers : int
        Layers of the recurrent stack.
    pooling : {"last", "mean", "attention"}
        h: what the stack puts out at the last valid step (of the backward direction, at the first); the mean over the
        valid steps; or sum_t alpha_t h_t with alpha = softmax(u^T tanh(W h_t + b)), the attention of Yang et al.
    cell : {"gru", "lstm", "rnn"}
    bidirectional : bool
    num_embeddings : int, optional
        If given, inputs are tokens in [0, num_embeddings), embedded into ``input_size`` numbers.
    dropout : float
        Rate of the dropout on the (embedded) inputs, between the layers and before the head.
    variational_dropout, recurrent_dropout, residual, init
        Those of `gpurnn.GRU` and its kin.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial parameters come from.
    **options
        ``activation`` and ``leak`` of `gpurnn.RNN`, ``reset_after`` and ``update`` of `gpurnn.GRU`.

    Attributes
    ----------
    params : dict of str to array
        ``embedding.weight`` if there is one, ``recurrent.weight_ih_l0``, ..., ``pooling.weight``, ``pooling.bias`` and
        ``pooling.query`` (u) of the attention, ``output.weight`` and ``output.bias``.

    Raises
    ------
    ValueError, TypeError
        An option is out of its range or unknown.

    References
    ----------
    Z. Yang et al., "Hierarchical attention networks for document classification", NAACL 2016, section 2.2, for the
    attention.

    Examples
    --------
    Sequences of any lengths, and whether their sum is positive:

    >>> import numpy as np
    >>> import gpurnn
    >>> from gpurnn.models import SequenceClassifier
    >>> rng = np.random.default_rng(0)
    >>> sequences = [rng.normal(size=(length, 1)).astype(np.float32) for length in rng.integers(1, 9, 200)]
    >>> classes = [int(s.sum() > 0) for s in sequences]
    >>> model = SequenceClassifier(1, 8, 2)
    >>> model
    SequenceClassifier(1, 8, 2)  # 282 parameters
      (T, B, 1)  inputs
      (T, B, 8)  GRU(1, 8)
      (B, 8)     LastPooling()
      (B, 2)     Dense(8, 2): logits
    >>> model = model.fit(sequences, classes, epochs=20, optimizer=gpurnn.Adam(0.01))
    >>> model.score(sequences, classes) > 0.9
    True
    >>> model.predict(sequences[:3]).shape, model.predict_proba(sequences[:3]).shape
    ((3,), (3, 2))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        num_layers: int = 1,
        *,
        pooling: str = "last",
        **options: Any,
    ) -> None:
        pooling = _checks.choice("SequenceClassifier", "pooling", pooling, POOLINGS)
        check_classes("SequenceClassifier", "classes", classes, "SequenceRegressor")
        super().__init__(input_size, hidden_size, classes, num_layers, pooling=pooling, **options)


class SequenceTagger(_Classifier):
    r"""Many to many, of the same length: a class for each step of a sequence.

    h_t = recurrent stack(x_t, h_{t-1}), P(class_t | x_1 .. x_t) = softmax(W_hy h_t + b_y); with a bidirectional stack
    given all of x_1 .. x_T.

    Parameters
    ----------
    input_size, hidden_size, classes : int
    num_layers, cell, bidirectional, num_embeddings, dropout, variational_dropout, recurrent_dropout, residual, init, \
    dtype, rng, **options
        Those of `SequenceClassifier`.

    Attributes
    ----------
    params : dict of str to array
        ``embedding.weight`` if there is one, ``recurrent.weight_ih_l0``, ..., ``output.weight`` and ``output.bias``.

    Raises
    ------
    ValueError, TypeError
        An option is out of its range or unknown.

    Examples
    --------
    Whether the ones so far are odd in number:

    >>> import numpy as np
    >>> import gpurnn
    >>> from gpurnn.models import SequenceTagger
    >>> rng = np.random.default_rng(0)
    >>> bits = [rng.integers(2, size=length) for length in rng.integers(1, 6, 100)]
    >>> parity = [b.cumsum() % 2 for b in bits]
    >>> model = SequenceTagger(4, 8, 2, cell="lstm", num_embeddings=2)
    >>> model = model.fit(bits, parity, epochs=30, optimizer=gpurnn.Adam(0.02))
    >>> model.predict([np.array([1, 0, 1, 1])])
    [array([1, 1, 0, 1])]
    """

    _not_options = ("output_activation", "pooling")

    def __init__(self, input_size: int, hidden_size: int, classes: int, num_layers: int = 1, **options: Any) -> None:
        if "pooling" in options:
            raise TypeError("SequenceTagger: pooling is given, expected none: each step has an output of its own")
        check_classes("SequenceTagger", "classes", classes, "SequenceRegressor(..., pooling=None)")
        super().__init__(input_size, hidden_size, classes, num_layers, pooling=None, **options)


class SequenceRegressor(_Estimator):
    r"""Many to one, or many to many of the same length: values for each sequence, or for each of its steps.

    y = g(W_hy h + b_y) with h the pooled output of the recurrent stack, h_T by default, or y_t = g(W_hy h_t + b_y).

    Parameters
    ----------
    input_size, hidden_size, outputs : int
    num_layers : int
    pooling : {"last", "mean", "attention"} or None
        As in `SequenceClassifier`; None for values at each step.
    output_activation : {"identity", "tanh", "relu", "sigmoid"}
        g.
    loss : {"mse", "l1", "huber"}
        What `fit` minimises, by its name in `gpurnn.losses`.
    standardize : bool
        Whether the first `fit` scales the targets to mean 0 and standard deviation 1. `predict` and `score` are in the
        targets' own units; a call, `vjp` and the losses are in scaled ones. An ``output_activation`` has units of its
        own, and nothing is scaled.
    cell, bidirectional, num_embeddings, dropout, variational_dropout, recurrent_dropout, residual, init, dtype, rng, \
    **options
        Those of `SequenceClassifier`.

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

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        outputs: int,
        num_layers: int = 1,
        *,
        pooling: str | None = "last",
        output_activation: str = "identity",
        loss: str = "mse",
        standardize: bool = True,
        **options: Any,
    ) -> None:
        where = "SequenceRegressor"
        standardize = _checks.flag(where, "standardize", standardize)
        pooling = _checks.choice(where, "pooling", pooling, (*POOLINGS, None))
        output_activation = _checks.choice(where, "output_activation", output_activation, OUTPUT_ACTIVATIONS)
        loss = _checks.choice(where, "loss", loss, LOSSES)
        super().__init__(
            input_size, hidden_size, outputs, num_layers,
            pooling=pooling, output_activation=output_activation, **options,
        )  # fmt: skip
        self._loss = loss
        self.standardize = standardize

    @property
    def _is_standardized(self) -> bool:
        """Whether targets are learnt in scaled units: an activation of the outputs has units of its own."""
        return self.standardize and self.output.activation == "identity"

    def _learn_scale(self, rows: list[Array]) -> None:
        if self._is_standardized and "mean" not in self._learnt:
            values = np.concatenate([np.atleast_2d(_dispatch.to_numpy(row)) for row in rows]).astype(np.float64)
            mean, std = examples.scale_of(values)
            self._learnt = {**self._learnt, "mean": mean, "std": std}

    def _scaled(self, values: Array) -> Array:
        if "mean" not in self._learnt:
            return values
        xp = _dispatch.namespace("SequenceRegressor", values=values)
        mean, std = (_like(xp, self._learnt[name], values) for name in ("mean", "std"))
        return (values - mean) / std

    def _unscaled(self, xp: Any, values: Array) -> Array:
        if "mean" not in self._learnt:
            return values
        mean, std = (_like(xp, self._learnt[name], values) for name in ("mean", "std"))
        return values * std + mean

    @property
    def loss_unit(self) -> str:
        return f"{super().loss_unit} of the scaled targets" if self._is_standardized else super().loss_unit

    def predict(self, X: Any, *, batch_size: int = 256, group: str | None = None) -> Any:
        """The values, in the units of the targets that `fit` was given.

        Parameters
        ----------
        X, group
            Examples, as in `fit`.
        batch_size : int
            How many are computed at a time.

        Returns
        -------
        (N, outputs) array, or a list with a (T_i, outputs) array for each example where there are values at each step

        Raises
        ------
        ValueError, TypeError
            X holds no such examples, or NaN or infinity, or the model was never fitted.
        FloatingPointError
            A parameter is NaN or infinite, or the outputs overflow.
        """
        return self._map(self._outputs("predict", X, batch_size, group), self._unscaled)

    def score(
        self, X: Any, y: Any, sample_weight: Any = None, *, batch_size: int = 256, group: str | None = None
    ) -> float:
        """R^2, the share of the targets' variance that `predict` explains, the mean over the outputs.

        It is 1 - sum w (y - f)^2 / sum w (y - mean)^2, 1 at best and 0 for the mean of y.

        Parameters
        ----------
        X, y, sample_weight, group
            As in `fit`.
        batch_size : int
            As in `predict`.

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As `fit` and `predict` do.
        """
        where = "SequenceRegressor.score"
        self._require_fitted(where)
        read = self._read(where, X, y, group, sample_weight)
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
        # Where the targets are constant, only the right constant explains them.
        varied = spread > 0
        explained = np.where(varied, 1 - errors / np.where(varied, spread, 1), np.where(errors > 0, 0.0, 1.0))
        return float(explained.mean())


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


def _are_columns(X: Any, y: Any) -> bool:
    """Whether y names columns of the table X."""
    names = isinstance(y, (list, tuple)) and len(y) > 0 and all(isinstance(name, str) for name in y)
    return examples.is_table(X) and names


def _like(xp: Any, values: NDArray[np.float64], like: Array) -> Array:
    return xp.astype(_dispatch.from_numpy(xp, values), like.dtype)
