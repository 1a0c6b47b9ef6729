"""The network of the sequence models: a recurrent stack, a pooling for many to one, and an output layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _arrays, _checks, _dispatch, layers, losses
from .._contract import Array, State
from .._op import Pullback
from .._random import generator
from ..cells import Activation, CellOptions, Update
from ..functional._state import cotangent_pair
from ..layers.base import Chain
from ..layers.recurrent import Merge
from .base import Model, existing, recurrent, without_padding
from .pooling import AttentionPooling, LastPooling, MeanPooling

if TYPE_CHECKING:
    pass

OUTPUT_ACTIVATIONS = ("identity", "tanh", "relu", "sigmoid")
LOSSES = ("mse", "l1", "huber")


def check_classes(where: str, name: str, classes: int, otherwise: str) -> None:
    """Reject a softmax over fewer than two classes, which has nothing to learn."""
    if _checks.size(where, name, classes) == 1:
        raise ValueError(
            f"{where}: {name} is 1, expected at least 2: the probability of a single class is always 1; for yes or no "
            f"take 2 classes, for a number {otherwise}"
        )


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
        merge: Merge = "concat",
        reverse: bool = False,
        pooling: str | None = "last",
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
        output_activation: str = "identity",
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = type(self).__name__
        output_activation = _checks.choice(where, "output_activation", output_activation, OUTPUT_ACTIVATIONS)
        input_size = _checks.size(where, "input_size", input_size)
        outputs = _checks.size(where, self._outputs_name, outputs)
        if num_embeddings is not None:
            num_embeddings = _checks.size(where, "num_embeddings", num_embeddings)
        self._dropped = layers.Dropout(_checks.fraction(where, "dropout", dropout))
        random = generator(where, rng)
        bidirectional = _checks.flag(where, "bidirectional", bidirectional)
        recurrent_options: dict[str, Any] = {
            "bidirectional": bidirectional,
            "merge": merge,
            "reverse": reverse,
            "variational_dropout": variational_dropout,
            "recurrent_dropout": recurrent_dropout,
            "residual": residual,
        }
        self.embedding = None
        if num_embeddings is not None:
            self.embedding = layers.Embedding(num_embeddings, input_size, dtype=dtype, rng=random)
        self.recurrent = recurrent(
            where, cell, input_size, hidden_size, num_layers,
            {"activation": activation, "leak": leak, "reset_after": reset_after, "update": update}, cell_options,
            dropout=dropout, init=init, dtype=dtype, rng=random, **recurrent_options,
        )  # fmt: skip
        size = self.recurrent.output_size
        self.pooling: LastPooling | MeanPooling | AttentionPooling | None = None
        if pooling == "last":
            self.pooling = LastPooling(bidirectional, self.recurrent.reverse)
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
        y : (B, O) array, or (T, B, O) if there is an output for each step
            Logits of a classifier or tagger, values of a regressor. Entries past a length have no meaning.
        state
            After each sequence's last valid step.
        """
        inputs = self._take_inputs(inputs, lengths)
        x = inputs if self.embedding is None else self.embedding(inputs)
        y, state = self.recurrent(x, state, lengths)
        if self._pools_states:
            y = self.recurrent._merged_state(state)[0]
        elif self.pooling is not None:
            y = self.pooling(y, lengths)
        return self.output(y), state

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
        y, pull_pooling = self._pooled(y, final, lengths)
        y = above(None, self._dropped.vjp(y, random))
        outputs = above("output", self.output.vjp(y))

        def pullback(cotangents: Any) -> tuple[tuple[Array | None, State], dict[str, Array]]:
            doutputs, dfinal = cotangent_pair(where, cotangents)
            doutputs = _arrays.cotangent(where, "y", doutputs, outputs)
            dpooled, of_above = above.pull(doutputs)
            (dy, dfinal), of_pooling = pull_pooling(dpooled, dfinal)
            (dx, dstate), recurrent = pull_recurrent((dy, dfinal))
            dx, of_below = below.pull(dx)
            return (dx, dstate), self._named({**of_below, "recurrent": recurrent, **of_above, **of_pooling})

        return (outputs, final), pullback

    @property
    def _pools_states(self) -> bool:
        """Whether the final states are pooled, as no step of merged outputs has the last output of both directions."""
        last = self.pooling is not None and self.pooling.name == "last"
        return last and self.recurrent.bidirectional and self.recurrent.merge != "concat"

    def _pooled(self, y: Array, final: State, lengths: Array | None) -> tuple[Array, Any]:
        """The head's input, and ``pull(dpooled, dfinal) -> (dy, dfinal), grads``; dfinal belongs to ``final``."""
        if self.pooling is None:
            return y, lambda dy, dfinal: ((dy, dfinal), {})
        if self._pools_states:
            return self.recurrent._merged_state(final)
        pooled, pull = self.pooling.vjp(y, lengths)

        def pull_outputs(dpooled: Array, dfinal: State) -> tuple[tuple[Array, State], dict[str, dict[str, Array]]]:
            dy, gradients = pull(dpooled)
            return (dy, dfinal), {"pooling": gradients}

        return pooled, pull_outputs

    def loss(
        self,
        inputs: Array,
        targets: Array,
        state: State = None,
        lengths: Array | None = None,
        *,
        mask: Array | None = None,
        metrics: dict[str, float] | None = None,
    ) -> tuple[Array, State]:
        """The mean loss over the targets, in evaluation mode, and the final state.

        Parameters
        ----------
        inputs, state, lengths
            As in a call.
        targets : array
            Shaped like the head's output; for classes, integers without its last axis. Targets past a length do not
            count.
        mask : (B,) array, or (T, B) if there is an output for each step, optional
            The weights of the targets in the mean, of any dtype; True or 1 by default.
        metrics : dict, optional
            Receives the ``accuracy`` of a model of classes: the share of the targets, weighted as in the loss, whose
            class is the likeliest.

        Returns
        -------
        loss : 0-d array
        state
        """
        y, final = self(inputs, state, lengths)
        weights = self._mask(inputs, lengths, mask, y)
        loss = getattr(losses, self._loss)(y, targets, mask=weights)
        self._measure(y, targets, weights, metrics)
        return loss, final

    def loss_and_gradients(
        self,
        inputs: Array,
        targets: Array,
        state: State = None,
        lengths: Array | None = None,
        *,
        rng: int | np.random.Generator | None = None,
        mask: Array | None = None,
        metrics: dict[str, float] | None = None,
        checkpoint_every: int | str | None = None,
    ) -> tuple[Array, State, dict[str, Array]]:
        """The results of `loss`, and the gradients of the loss by parameter name. With ``rng`` dropout acts.

        ``mask`` and ``metrics`` are as in `loss`, ``checkpoint_every`` as in `vjp`.
        """
        (y, final), pullback = self.vjp(inputs, state, lengths, rng, checkpoint_every=checkpoint_every)
        weights = self._mask(inputs, lengths, mask, y)
        loss, pull_loss = getattr(losses, self._loss).vjp(y, targets, mask=weights)
        self._measure(y, targets, weights, metrics)
        dy, _ = pull_loss(1.0)
        _, grads = pullback((dy, None))
        return loss, final, grads

    def _measure(self, y: Array, targets: Array, weights: Array | None, metrics: dict[str, float] | None) -> None:
        """Put the accuracy of logits y into ``metrics``."""
        if metrics is None or self._loss != "cross_entropy":
            return
        xp = _dispatch.namespace(type(self).__name__, y=y)
        right = xp.astype(xp.argmax(y, axis=-1) == targets, y.dtype)
        if weights is None:
            metrics["accuracy"] = float(xp.mean(right))
            return
        weights = xp.astype(weights, y.dtype)
        total = xp.sum(weights)
        metrics["accuracy"] = float(xp.sum(right * weights) / xp.where(total > 0, total, xp.ones_like(total)))

    def _mask(self, inputs: Array, lengths: Array | None, mask: Array | None, y: Array) -> Array | None:
        """The weights of the targets: the caller's, and zero past a length."""
        exist = existing(type(self).__name__, inputs, lengths) if self.pooling is None else None
        if mask is None:
            return exist
        xp = _dispatch.namespace(type(self).__name__, y=y, mask=mask)
        mask = xp.astype(mask, y.dtype)
        return mask if exist is None else xp.where(exist, mask, xp.zeros_like(mask))

    def _take_inputs(self, inputs: Array, lengths: Array | None) -> Array:
        """The inputs, ready to compute with, tokens without padding; reject those that this model cannot read."""
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
        size = self.recurrent.output_size
        rows: list[tuple[Any, ...]] = [(f"(T, B, {self.recurrent.input_size})", "inputs")]
        if self.embedding is not None:
            rows = [("(T, B)", "tokens"), (rows[0][0], self.embedding)]
        rows.append((f"(T, B, {size})", self.recurrent))
        if self.pooling is not None:
            rows.append((f"(B, {size})", self.pooling))
        leading = "(T, B" if self.pooling is None else "(B"
        return [*rows, (f"{leading}, {self.output.out_features})", self.output, self._outputs_text)]

    _outputs_text = "values"
