"""Sequence models: a class or values for a whole sequence (many to one), or for each of its steps (many to many)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _arrays, _checks, _dispatch, functional, initializers, layers, losses
from .._contract import Array, State
from .._op import Pullback
from .._random import generator
from ..functional._activations import activate
from ..functional._state import cotangent_pair
from ..layers.base import Layer, parameter, parameter_dtype
from .base import Model, check_finite, check_numbers, checked, existing, not_finite, recurrent, told, without_padding

POOLINGS = ("last", "mean", "attention")
OUTPUT_ACTIVATIONS = ("identity", "tanh", "relu", "sigmoid")
LOSSES = ("mse", "l1", "huber")


def check_classes(where: str, name: str, classes: int, otherwise: str) -> None:
    """Reject a softmax over less than two classes, which has nothing to learn."""
    if _checks.integer_at_least(where, name, classes, 1) == 1:
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
    """What a recurrent stack puts out where it has read the whole sequence; zero for a sequence without steps.

    That is at the last valid step, and at the first one for the columns of the backward direction.
    """

    def __init__(self, size: int, bidirectional: bool) -> None:
        self.params = {}
        self.forward_size = size // 2 if bidirectional else size

    def __call__(self, y: Array, lengths: Array | None = None) -> Array:
        """(B, K) of y (T, B, K)."""
        return self.vjp(y, lengths)[0]

    def vjp(self, y: Array, lengths: Array | None = None) -> tuple[Array, Pullback]:
        """``(pooled, pullback)``, with ``pullback(dpooled)`` returning ``(dy, {})``."""
        xp, y, lengths = _take("LastPooling", y, lengths)
        (T, B, K), H = y.shape, self.forward_size
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

    def _describe(self) -> str:
        return ""


class MeanPooling(Layer):
    """The mean over the valid steps; zero for a sequence without steps."""

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

    def _describe(self) -> str:
        return ""


class AttentionPooling(Layer):
    """A weighted mean over the valid steps, with u^T tanh(W h_t + b) as the score of step t; u is learned.

    Yang et al. 2016, equations 5 to 7. Zero for a sequence without steps.
    """

    def __init__(self, size: int, *, dtype: Any, rng: int | np.random.Generator) -> None:
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

    def _describe(self) -> str:
        return str(self.size)


class SequenceModel(Model):
    """What all sequence models are: embedding for tokens, recurrent stack, pooling unless per step, output head."""

    stateful = True

    _size_names: tuple[str, ...] = ("input_size", "hidden_size")
    _outputs_name = "outputs"
    """What the constructor calls the sizes before the width of the head, and that."""

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
        input_size = _checks.integer_at_least(where, "input_size", input_size, 1)
        outputs = _checks.integer_at_least(where, self._outputs_name, outputs, 1)
        if num_embeddings is not None:
            num_embeddings = _checks.integer_at_least(where, "num_embeddings", num_embeddings, 1)
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
            self.pooling = LastPooling(size, bidirectional)
        elif pooling == "mean":
            self.pooling = MeanPooling()
        elif pooling == "attention":
            self.pooling = AttentionPooling(size, dtype=dtype, rng=random)
        self.output = layers.Dense(size, outputs, activation=output_activation, dtype=dtype, rng=random)
        self.parts = tuple(
            part for part in ("embedding", "recurrent", "pooling", "output") if getattr(self, part) is not None
        )
        self._config = {
            "input_size": input_size,
            "hidden_size": self.recurrent.hidden_size,
            self._outputs_name: outputs,
            "num_layers": self.recurrent.num_layers,
            "cell": self.recurrent.cell.name,
            "num_embeddings": num_embeddings,
            "dropout": self._dropped.rate,
            **checked(self.recurrent, recurrent_options, cell_options),
            "dtype": np.dtype(dtype).name,
        }

    def __call__(self, inputs: Array, state: State = None, lengths: Array | None = None) -> tuple[Array, State]:
        """The head's output and the recurrent stack's final state, without dropout; nothing is saved.

        Parameters
        ----------
        inputs : (T, B, input_size) array, or (T, B) integer array
            Time-major, T at least 1; of the dtype of the parameters, or tokens with ``num_embeddings``.
        state
            The initial state of the recurrent stack; zero by default.
        lengths : (B,) integer array, optional
            Valid steps of each sequence, zero allowed. What lies past them is not read.

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
        ``checkpoint_every`` is that of the recurrent stack: see the ``vjp`` of `gpurnn.GRU`.
        """
        where = type(self).__name__
        inputs = self._take_inputs(inputs, lengths)
        random = None if rng is None else generator(where, rng)
        pulls: dict[str, Pullback] = {}
        x = inputs
        if self.embedding is not None:
            x, pulls["embedding"] = self.embedding.vjp(x)
        x, pull_dropped_input = self._dropped.vjp(x, random)
        (y, final), pull_recurrent = self.recurrent.vjp(
            x, state, lengths, rng=random, checkpoint_every=checkpoint_every
        )
        if self.pooling is not None:
            y, pulls["pooling"] = self.pooling.vjp(y, lengths)
        y, pull_dropped_output = self._dropped.vjp(y, random)
        outputs, pull_output = self.output.vjp(y)

        def pullback(cotangents: Any) -> tuple[tuple[Array | None, State], dict[str, Array]]:
            doutputs, dfinal = cotangent_pair(where, cotangents)
            doutputs = _arrays.cotangent(where, "y", doutputs, outputs)
            grads: dict[str, dict[str, Array]] = {}
            dy, grads["output"] = pull_output(doutputs)
            dy, _ = pull_dropped_output(dy)
            if self.pooling is not None:
                dy, grads["pooling"] = pulls["pooling"](dy)
            (dx, dstate), grads["recurrent"] = pull_recurrent((dy, dfinal))
            dx, _ = pull_dropped_input(dx)
            if self.embedding is not None:
                dx, grads["embedding"] = pulls["embedding"](dx)
            flat = {f"{part}.{name}": g for part, own in grads.items() for name, g in own.items()}
            return (dx, dstate), self._summed(flat)

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
        """What `loss` returns, and the gradients of the loss by parameter name. With ``rng`` dropout acts.

        ``checkpoint_every`` is that of `vjp`.
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

    def _examples(self, method: str, inputs: Any) -> list[Array]:
        """The examples as a list; refuse what this model does not read, before any work."""
        where = f"{type(self).__name__}.{method}"
        embedding = self.embedding
        if _arrays.is_single(inputs):
            inputs = self._take(where, "inputs", inputs, tokens=embedding is not None)
            if embedding is not None:
                _checks.ndim(where, "inputs", inputs, 2, "(N, T), or a sequence of (T,) arrays")
            else:
                _checks.ndim(where, "inputs", inputs, 3, "(N, T, input_size), or a sequence of (T, input_size) arrays")
        inputs = _arrays.entries(where, "inputs", inputs, "a sequence of arrays")
        if len(inputs) == 0:
            raise ValueError(f"{where}: inputs is empty, expected at least one example")
        examples = []
        for i, example in enumerate(inputs):
            name = f"inputs[{i}]"
            example = self._take(where, name, example, tokens=embedding is not None)
            examples.append(example)
            if embedding is not None:
                _checks.ndim(where, name, example, 1, "(T,)")
                check_numbers(where, name, example, embedding.num_embeddings, IndexError)
            else:
                _checks.ndim(where, name, example, 2, "(T, input_size)")
                expected = (example.shape[0], self.recurrent.input_size)
                _checks.shape(where, name, example, expected, "(T, input_size)")
                if method == "fit":
                    check_finite(where, name, example)
            if example.shape[0] == 0:
                raise ValueError(f"{where}: {name} has shape {tuple(example.shape)}, expected at least one step")
        return examples

    def _targets(self, where: str, targets: Any, examples: list[Array]) -> list[Array]:
        """The targets of some examples as a list of arrays; refuse what is no target of theirs, before any work."""
        targets = _arrays.entries(where, "targets", targets, "an array for each example")
        if len(targets) != len(examples):
            raise ValueError(f"{where}: targets has {len(targets)} entries, expected {len(examples)}")
        classes = self._loss == "cross_entropy"
        taken = []
        for i, (target, example) in enumerate(zip(targets, examples, strict=True)):
            name = f"targets[{i}]"
            target = self._take(where, name, target, tokens=classes)
            taken.append(target)
            steps = () if self.pooling is not None else (int(example.shape[0]),)
            expected = steps if classes else (*steps, self.output.out_features)
            if expected == () and target.ndim:
                raise ValueError(
                    f"{where}: {name} has shape {tuple(target.shape)}, expected (): the number of the class, one for "
                    "each example"
                )
            symbols = ", ".join([*(["T"] if steps else []), *([] if classes else ["outputs"])])
            _checks.shape(where, name, target, expected, f"({symbols},)" if len(expected) == 1 else f"({symbols})")
            if classes:
                check_numbers(where, name, target, self.output.out_features)
            else:
                check_finite(where, name, target)
        return taken

    def _batches(
        self, inputs: Any, targets: Any, batch_size: int, *, shuffle: bool, rng: int | np.random.Generator
    ) -> Any:
        from ..training import PaddedBatches

        examples = self._examples("fit", inputs)
        targets = self._targets(f"{type(self).__name__}.fit", targets, examples)
        per_sequence = self.pooling is not None
        return PaddedBatches(examples, batch_size, targets, per_sequence=per_sequence, shuffle=shuffle, rng=rng)

    def _outputs(self, method: str, inputs: Sequence[Array] | Array, batch_size: int) -> list[Array]:
        """What the head puts out for each example: (O,) arrays, or (T_i, O) where there is an output for each step."""
        from ..training import pad

        where = f"{type(self).__name__}.{method}"
        examples = self._examples(method, inputs)
        batch_size = _checks.integer_at_least(where, "batch_size", batch_size, 1)
        # Sequences of about one length go together, so that there is little padding.
        order = sorted(range(len(examples)), key=lambda i: int(examples[i].shape[0]))
        found: list[Array] = [None] * len(examples)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            padded, lengths = pad([examples[i] for i in chosen])
            y, _ = self(padded, None, lengths)
            bad = self._not_answers(padded, y)
            if len(bad):
                i = min(chosen[lane] for lane in bad)
                given = {} if self.embedding is not None else {f"inputs[{i}]": examples[i]}
                raise not_finite(where, f"the outputs for inputs[{i}]", self.params, **given)
            for lane, i in enumerate(chosen):
                found[i] = y[lane, ...] if self.pooling is not None else y[: examples[i].shape[0], lane, ...]
        return found

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

    def _shapes(self) -> list[tuple[str, str]]:
        size = self.recurrent.hidden_size * self.recurrent.num_directions
        rows = [(f"(T, B, {self.recurrent.input_size})", "inputs")]
        if self.embedding is not None:
            rows = [("(T, B)", "tokens"), (rows[0][0], told(self.embedding))]
        rows.append((f"(T, B, {size})", told(self.recurrent)))
        if self.pooling is not None:
            rows.append((f"(B, {size})", told(self.pooling)))
        leading = "(T, B" if self.pooling is None else "(B"
        return [*rows, (f"{leading}, {self.output.out_features})", f"{told(self.output)}: {self._told_outputs}")]

    _told_outputs = "values"

    def _describe(self) -> str:
        defaults = {
            "num_layers": 1, "cell": "gru", "bidirectional": False, "pooling": "last", "num_embeddings": None,
            "dropout": 0.0, "variational_dropout": 0.0, "recurrent_dropout": 0.0, "residual": False,
            "output_activation": "identity", "loss": "mse", "dtype": "float32",
        }  # fmt: skip
        sizes = (*self._size_names, self._outputs_name)
        told = [f"{n}={v!r}" for n, v in self._config.items() if n not in sizes and (n, v) not in defaults.items()]
        return ", ".join([*(str(self._config[name]) for name in sizes), *told])


class _Classifier(SequenceModel):
    """What the classifiers of sequences and of steps share: cross-entropy, probabilities, classes."""

    _not_options: tuple[str, ...] = ("output_activation",)
    _outputs_name = "classes"
    _told_outputs = "logits"
    _loss = "cross_entropy"

    def predict_proba(self, inputs: Sequence[Array] | Array, *, batch_size: int = 256) -> Any:
        """The probabilities softmax(W h + b) of the classes.

        Parameters
        ----------
        inputs : sequence of (T_i, input_size) arrays, or (N, T, input_size) array
            The examples, of any lengths; tokens without the last axis, if the model embeds them.
        batch_size : int
            How many are computed at a time.

        Returns
        -------
        (N, classes) array, or of a tagger a list with a (T_i, classes) array for each example

        Raises
        ------
        ValueError, TypeError
            The inputs are not such examples.
        FloatingPointError
            An input or a parameter is NaN or infinite; the message names it.
        """
        outputs = self._outputs("predict_proba", inputs, batch_size)
        return self._map(outputs, lambda xp, logits: activate(xp, "softmax", logits))

    def predict(self, inputs: Sequence[Array] | Array, *, batch_size: int = 256) -> Any:
        """The likeliest classes.

        Parameters
        ----------
        inputs, batch_size
            As in `predict_proba`.

        Returns
        -------
        (N,) integer array, or of a tagger a list with a (T_i,) integer array for each example

        Raises
        ------
        ValueError, TypeError
            The inputs are not such examples.
        FloatingPointError
            An input or a parameter is NaN or infinite; the message names it.
        """
        return self._likeliest("predict", inputs, batch_size)

    def _likeliest(self, method: str, inputs: Sequence[Array] | Array, batch_size: int) -> Any:
        return self._map(self._outputs(method, inputs, batch_size), lambda xp, y: xp.argmax(y, axis=-1))

    def accuracy(self, inputs: Sequence[Array] | Array, targets: Any, *, batch_size: int = 256) -> float:
        """The share of the targets that `predict` meets.

        Parameters
        ----------
        inputs, batch_size
            As in `predict_proba`.
        targets : (N,) integer array, or of a tagger a sequence of (T_i,) integer arrays

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ValueError, TypeError
            The targets are not those of the inputs.
        """
        examples = self._examples("accuracy", inputs)
        expected = self._targets(f"{type(self).__name__}.accuracy", targets, examples)
        predicted = self._likeliest("accuracy", examples, batch_size)
        if self.pooling is not None:
            predicted, expected = [predicted], [_dispatch.namespace("accuracy", p=predicted).stack(expected)]
        right = steps = 0
        for found, target in zip(predicted, expected, strict=True):
            xp = _dispatch.namespace("accuracy", predicted=found)
            right += int(xp.sum(xp.astype(found == xp.astype(target, found.dtype), xp.int64)))
            steps += found.shape[0]
        return right / steps

    def _targets(self, where: str, targets: Any, examples: list[Array]) -> list[Array]:
        # Plain numbers are a usual way to hold the classes of whole sequences.
        if self.pooling is not None and not _arrays.is_single(targets):
            targets = _arrays.entries(where, "targets", targets, "an array for each example")
            if targets and all(isinstance(t, (int, np.integer)) and not isinstance(t, bool) for t in targets):
                for i, number in enumerate(targets):
                    if not 0 <= number < self.output.out_features:
                        raise ValueError(
                            f"{where}: targets[{i}] holds {number}, expected 0 ... {self.output.out_features - 1}"
                        )
                xp = _dispatch.namespace(where, params=self.output.params["weight"])
                targets = _dispatch.from_numpy(xp, np.asarray(targets, np.int64))
        return super()._targets(where, targets, examples)


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
    >>> model.accuracy(sequences, classes) > 0.9
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
        self._config["pooling"] = pooling


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


class SequenceRegressor(SequenceModel):
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
    >>> each = SequenceRegressor(1, 8, 3, pooling=None)
    >>> [y.shape for y in each.predict([x[0], x[1, :2]])]
    [(5, 3), (2, 3)]
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
        **options: Any,
    ) -> None:
        where = "SequenceRegressor"
        pooling = _checks.choice(where, "pooling", pooling, (*POOLINGS, None))
        output_activation = _checks.choice(where, "output_activation", output_activation, OUTPUT_ACTIVATIONS)
        loss = _checks.choice(where, "loss", loss, LOSSES)
        super().__init__(
            input_size, hidden_size, outputs, num_layers,
            pooling=pooling, output_activation=output_activation, **options,
        )  # fmt: skip
        self._loss = loss
        self._config |= {"pooling": pooling, "output_activation": output_activation, "loss": loss}

    def predict(self, inputs: Sequence[Array] | Array, *, batch_size: int = 256) -> Any:
        """The values.

        Parameters
        ----------
        inputs : sequence of (T_i, input_size) arrays, or (N, T, input_size) array
            The examples, of any lengths; tokens without the last axis, if the model embeds them.
        batch_size : int
            How many are computed at a time.

        Returns
        -------
        (N, outputs) array, or a list with a (T_i, outputs) array for each example where there are values at each step

        Raises
        ------
        ValueError, TypeError
            The inputs are not such examples.
        FloatingPointError
            An input or a parameter is NaN or infinite; the message names it.
        """
        return self._map(self._outputs("predict", inputs, batch_size), lambda xp, y: y)
