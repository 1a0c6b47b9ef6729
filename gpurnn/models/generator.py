"""The sequence generator: a sequence from a single input (one to many), each output fed back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from .. import _arrays, _checks, _dispatch, functional, layers, losses
from .._contract import Array
from .._op import Pullback
from .._random import generator, mask_key
from ..functional._activations import DENSE_ACTIVATIONS, activate, activate_pullback
from ..functional._dropout import dropout_mask
from ..layers.base import without
from .base import Model, check_finite, check_numbers, existing, not_finite, recurrent
from .sequence import LOSSES, check_classes


class SequenceGenerator(Model):
    r"""One to many: a sequence y_1 .. y_T from one input x, each output fed back.

    With t = 1 .. T::

        h_0 = f(W_xh x + b_h)
        y_t = g(W_hy h_{t-1} + b_y)
        h_t = f(W_hh h_{t-1} + W_yh y_t + b_h)

    In training a target y*_t may replace y_t in the last line: teacher forcing. Otherwise the gradient flows back
    through the outputs that were fed.

    Parameters
    ----------
    input_size, hidden_size, outputs : int
        Sizes of x, h and y; with the softmax ``outputs`` is the number of classes.
    activation : {"tanh", "relu", "sigmoid", "identity"}
        f.
    output_activation : {"softmax", "identity", "tanh", "relu", "sigmoid"}
        g. With "softmax" each y_t holds the probabilities of classes: these are fed back, targets are class numbers,
        and the target that is fed is the one-hot vector of its class. Otherwise targets are values.
    loss : {"mse", "l1", "huber"}
        The loss that `fit` minimises if targets are values, by its name in `gpurnn.losses`; for classes it is the
        cross-entropy.
    init : str, initializer or pair of them, optional
        The initializers of W_yh and W_hh, as in `gpurnn.RNN`.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial parameters come from.

    Attributes
    ----------
    params : dict of str to array
        ``input.weight`` W_xh (H, I), ``recurrent.weight_ih_l0`` W_yh (H, O), ``recurrent.weight_hh_l0`` W_hh (H, H),
        ``recurrent.bias_ih_l0`` b_h (H,), ``output.weight`` W_hy (O, H), ``output.bias`` b_y (O,).

    Raises
    ------
    ValueError, TypeError
        An option is out of its range or unknown.

    References
    ----------
    R. J. Williams, D. Zipser, "A learning algorithm for continually running fully recurrent neural networks", Neural
    Computation 1 (1989), for teacher forcing; S. Bengio et al., "Scheduled sampling for sequence prediction with
    recurrent neural networks", NeurIPS 2015.

    Examples
    --------
    Count up from a given number, and start again at 0 after 3:

    >>> import numpy as np
    >>> import gpurnn
    >>> from gpurnn.models import SequenceGenerator
    >>> starts = np.arange(4)
    >>> x = np.eye(4, dtype=np.float32)
    >>> counts = (starts[:, None] + np.arange(6)) % 4
    >>> model = SequenceGenerator(4, 16, 4)
    >>> model
    SequenceGenerator(4, 16, 4)  # 468 parameters
      (B, 4)      x
      (B, 16)     Dense(4, 16, bias=False, activation='tanh'): h_0
      (T, B, 16)  RNN(4, 16): h_t
      (T, B, 4)   Dense(16, 4, activation='softmax'): y_t
    >>> model = model.fit(x, counts, epochs=60, optimizer=gpurnn.Adam(0.03))
    >>> model.predict(x[2:3], 10)
    array([[2, 3, 0, 1, 2, 3, 0, 1, 2, 3]])
    """

    parts = ("input", "recurrent", "output")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        outputs: int,
        *,
        activation: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh",
        output_activation: str = "softmax",
        loss: str = "mse",
        init: Any = None,
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "SequenceGenerator"
        self.input_size = _checks.size(where, "input_size", input_size)
        self.hidden_size = _checks.size(where, "hidden_size", hidden_size)
        self.outputs = _checks.size(where, "outputs", outputs)
        self.activation = activation = _checks.choice(
            where, "activation", activation, ("tanh", "relu", "sigmoid", "identity")
        )
        self.output_activation = output_activation = _checks.choice(
            where, "output_activation", output_activation, DENSE_ACTIVATIONS
        )
        loss = _checks.choice(where, "loss", loss, LOSSES)
        if loss != "mse" and output_activation == "softmax":
            raise ValueError(
                f"{where}: loss is {loss!r}, expected none with output_activation='softmax', whose loss is the "
                "cross-entropy"
            )
        random = generator(where, rng)
        self.classes = output_activation == "softmax"
        if self.classes:
            check_classes(where, "outputs", outputs, "another output_activation")
        self._loss = "cross_entropy" if self.classes else loss
        self.input = layers.Dense(input_size, hidden_size, False, activation=activation, dtype=dtype, rng=random)
        self.recurrent = recurrent(
            where,
            "rnn",
            outputs,
            hidden_size,
            1,
            {"activation": activation},
            init=init,
            dtype=dtype,
            rng=random,
        )
        # There is one bias: h_0 has the same b_h.
        self.recurrent.params = without(self.recurrent.params, "bias_hh_l0")
        self.output = layers.Dense(hidden_size, outputs, activation=output_activation, dtype=dtype, rng=random)

    def __call__(self, x: Array, steps: int) -> Array:
        """y_1 .. y_T, free running; nothing is saved.

        Parameters
        ----------
        x : (B, input_size) array
            Has the dtype of the parameters.
        steps : int
            T, at least 1.

        Returns
        -------
        y : (T, B, outputs) array
        """
        return self._activated(self._run(x, steps, training=False)[0])

    def vjp(self, x: Array, steps: int, rng: int | np.random.Generator | None = None) -> tuple[Array, Pullback]:
        """``(y, pullback)``, with ``pullback(dy)`` returning ``(dx, grads)``; ``rng`` is not used."""
        a, pull = self._run(x, steps)
        y = self._activated(a)

        def pullback(dy: Array | None) -> tuple[Array, dict[str, Array]]:
            dy = _arrays.cotangent("SequenceGenerator", "y", dy, y)
            zero = _dispatch.zeros(_dispatch.namespace("y", y=y), y.shape, y)
            return pull(zero if dy is None else self._da(a, y, dy))

        return y, pullback

    def _activated(self, a: Array) -> Array:
        xp = _dispatch.namespace("SequenceGenerator", a=a)
        return activate(xp, self.output.activation, a)

    def _da(self, a: Array, y: Array, dy: Array) -> Array:
        """The gradient with respect to a, from the gradient with respect to y = g(a)."""
        xp = _dispatch.namespace("SequenceGenerator", y=y)
        return activate_pullback(xp, self.output.activation, a, y, dy)

    def _head(self, h: Array) -> tuple[Array, Pullback]:
        """a = W_hy h + b_y."""
        return functional.dense.vjp(h, self.output.params["weight"], self.output.params["bias"])

    def _run(
        self, x: Array, steps: int, fed: Array | None = None, forced: Array | bool = False, *, training: bool = True
    ) -> tuple[Array, Callable[[Array], tuple[Array, dict[str, Array]]]]:
        """a_1 .. a_T (T, B, O), from which y_t = g(a_t), and their pullback.

        ``fed`` (T, B, O) replaces y where ``forced``, a (T, B) array or one bool for all, is True.
        """
        steps = _checks.integer_at_least("SequenceGenerator", "steps", steps, 1)
        x = self._take_input("SequenceGenerator", "x", x, "(B, input_size)")
        w_xh, b_h = self.input.params["weight"], self.recurrent.params["bias_ih_l0"]
        h0, pull_input = functional.dense.vjp(x, w_xh, b_h, activation=self.input.activation)
        if forced is True:
            a, pull_states = self._run_forced(h0, steps, fed)
        else:
            a, pull_states = self._run_fed_back(h0, steps, fed, forced, training)

        def pullback(da: Array) -> tuple[Array, dict[str, Array]]:
            dh0, recurrent, output = pull_states(da)
            dx, start = pull_input(dh0)
            recurrent = recurrent | {"bias_ih_l0": recurrent["bias_ih_l0"] + start["bias"]}
            return dx, self._named({"input": {"weight": start["weight"]}, "recurrent": recurrent, "output": output})

        return a, pullback

    def _run_forced(self, h0: Array, steps: int, fed: Any) -> tuple[Array, Any]:
        """Run the recurrence in one call, since everything that is fed is known beforehand."""
        xp = _dispatch.namespace("SequenceGenerator", h0=h0)
        (h, _), pull_recurrent = self.recurrent.vjp(fed[: steps - 1, ...], h0[None, ...])
        a, pull_head = self._head(xp.concat([h0[None, ...], h], axis=0))

        def pullback(da: Array) -> tuple[Array, dict[str, Array], dict[str, Array]]:
            dh, output = pull_head(da)
            (_, dh0), recurrent = pull_recurrent((dh[1:, ...], None))
            return dh[0, ...] + dh0[0, ...], recurrent, output

        return a, pullback

    def _run_fed_back(self, h: Array, steps: int, fed: Any, forced: Any, training: bool) -> tuple[Array, Any]:
        """Run step by step, because each step reads the output of the step before."""
        xp = _dispatch.namespace("SequenceGenerator", h=h)
        weights = {name.removesuffix("_l0"): p for name, p in self.recurrent.params.items()}
        head: list[tuple[Array, Array, Pullback]] = []
        recurrence: list[Pullback] = []
        for t in range(steps):
            a, pull_head = self._head(h)
            y = self._activated(a)
            head.append((a, y, pull_head if training else None))  # type: ignore[arg-type]
            if t < steps - 1:
                if forced is not False:
                    y = xp.where(forced[t, :, None], fed[t, ...], y)
                (_, h), pull = functional.rnn.vjp(y[None, ...], **weights, state=h, activation=self.activation)
                recurrence += [pull] if training else []

        def pullback(da: Array) -> tuple[Array, dict[str, Array], dict[str, Array]]:
            recurrent: dict[str, Array] = {}
            output: dict[str, Array] = {}
            dh: Any = None
            for t in reversed(range(steps)):
                a, y, pull_head = head[t]
                da_t = da[t, ...]
                if t < steps - 1:
                    (dy, dh), of_step = recurrence[t]((None, dh))
                    recurrent = _sum(recurrent, of_step)
                    dy = dy[0, ...]
                    if forced is not False:
                        dy = xp.where(forced[t, :, None], xp.zeros_like(dy), dy)
                    da_t = da_t + self._da(a, y, dy)
                dstate, of_step = pull_head(da_t)
                output = _sum(output, of_step)
                dh = dstate if dh is None else dh + dstate
            for name, p in weights.items():
                recurrent.setdefault(name, xp.zeros_like(p))  # a single step has no recurrence
            return dh, {f"{name}_l0": g for name, g in recurrent.items()}, output

        return xp.stack([a for a, _, _ in head]), pullback

    def loss(
        self,
        inputs: Array,
        targets: Array,
        state: None = None,
        lengths: Array | None = None,
        *,
        teacher_forcing: float = 1.0,
    ) -> tuple[Array, None]:
        """The mean loss over the steps that exist, and None for a state.

        Parameters
        ----------
        inputs : (B, input_size) array
            x.
        targets : (T, B) integer array of classes, or (T, B, outputs) array
            y*_t.
        state : None
        lengths : (B,) integer array, optional
            The number of valid steps of each target.
        teacher_forcing : {1, 0}
            1 feeds the targets, 0 the outputs.

        Returns
        -------
        loss : 0-d array
        state : None
        """
        _checks.no_state("SequenceGenerator", state)
        return self._loss_and_pullback(inputs, targets, lengths, teacher_forcing, None)[0], None

    def loss_and_gradients(
        self,
        inputs: Array,
        targets: Array,
        state: None = None,
        lengths: Array | None = None,
        *,
        rng: int | np.random.Generator | None = None,
        teacher_forcing: float = 1.0,
    ) -> tuple[Array, None, dict[str, Array]]:
        """The results of `loss`, and the gradients of the loss by parameter name.

        Parameters
        ----------
        inputs, targets, state, lengths
            As in `loss`.
        rng : int or numpy.random.Generator, optional
            Decides where targets are fed, if ``teacher_forcing`` is neither 0 nor 1.
        teacher_forcing : float
            The probability, in [0, 1], that the target is fed instead of the output, for each step of each sequence.
            1 is teacher forcing, 0 is free running, and values between are scheduled sampling. The gradients are exact
            for the inputs that were fed: they go back through the outputs, but not through the choice. `fit` also takes
            it, or a function that gives it for each training step.
        """
        _checks.no_state("SequenceGenerator", state)
        loss, pullback = self._loss_and_pullback(inputs, targets, lengths, teacher_forcing, rng)
        return loss, None, pullback()

    def _loss_and_pullback(
        self,
        x: Array,
        targets: Array,
        lengths: Array | None,
        teacher_forcing: float,
        rng: int | np.random.Generator | None,
    ) -> tuple[Array, Callable[[], dict[str, Array]]]:
        where = "SequenceGenerator"
        x = self._take_input(where, "x", x, "(B, input_size)")
        labels, values = ({"targets": targets}, {}) if self.classes else ({}, {"targets": targets})
        floats = {"params": self.output.params["weight"], **values}
        xp, *_, targets, lengths = _arrays.take(where, floats, {**labels, "lengths": lengths}, needed=("targets",))
        outputs = self.output.out_features
        if self.classes:
            _checks.ndim(where, "targets", targets, 2, "(T, B)")
        else:
            _checks.ndim(where, "targets", targets, 3, "(T, B, outputs)")
            _checks.shape(where, "targets", targets, (*targets.shape[:2], outputs), "(T, B, outputs)")
        T, B = targets.shape[:2]
        if x.shape[0] != B:
            raise ValueError(f"{where}: targets has shape {tuple(targets.shape)}, expected B = {x.shape[0]} as x has")
        forced = self._forced(x, teacher_forcing, rng, (T, B))
        exists = existing(where, targets, lengths)
        _dispatch.wing(where, x=x).check_lengths(where, lengths, T)
        fed = None
        if forced is not False:
            if self.classes:
                numbers = xp.arange(outputs, dtype=xp.int64, device=_dispatch.device(targets))
                fed = xp.astype(targets[:, :, None] == numbers, x.dtype)
            else:
                # Padding must not reach a product.
                fed = targets if exists is None else xp.where(exists[:, :, None], targets, xp.zeros_like(targets))
        a, pull = self._run(x, T, fed, forced)
        criterion = getattr(losses, self._loss)
        y = a if self.classes else self._activated(a)
        loss, pull_loss = criterion.vjp(y, targets, mask=exists)

        def pullback() -> dict[str, Array]:
            dy, _ = pull_loss(1.0)
            return pull(dy if self.classes else self._da(a, y, dy))[1]

        return loss, pullback

    @staticmethod
    def _forced(
        like: Array, teacher_forcing: float, rng: int | np.random.Generator | None, shape: tuple[int, int]
    ) -> Array | bool:
        """Whether targets are fed: a bool for all steps, or an array (T, B) of them."""
        where = "SequenceGenerator"
        teacher_forcing = _checks.probability(where, "teacher_forcing", teacher_forcing)
        if teacher_forcing in (0, 1):
            return bool(teacher_forcing)
        if rng is None:
            raise TypeError(
                f"{where}: rng is None, expected an int seed or a numpy.random.Generator, as teacher_forcing is "
                f"{teacher_forcing!r}, neither 0 nor 1"
            )
        mask: Any = dropout_mask(like, (*shape, 1), teacher_forcing, mask_key(generator(where, rng)))
        return mask[:, :, 0] == 0  # where a dropout of this rate drops

    def _batches(self, X: Any, y: Any, batch_size: int, *, shuffle: bool, rng: int | np.random.Generator) -> Any:
        from ..training import PaddedBatches

        where = "SequenceGenerator.fit"
        X = self._take_examples("fit", X)
        check_finite(where, "X", X)
        y = _arrays.entries(where, "y", y, "an array for each example")
        if len(y) != X.shape[0]:
            raise ValueError(f"{where}: y has {len(y)} entries, expected {X.shape[0]}")
        y = [self._take_target(where, f"y[{i}]", target) for i, target in enumerate(y)]
        rows = [X[i, ...] for i in range(X.shape[0])]
        return _Reversed(PaddedBatches(y, batch_size, rows, per_sequence=True, shuffle=shuffle, rng=rng))

    def _take_target(self, where: str, name: str, target: Array) -> Array:
        """The target of an example, ready to compute with; reject one that does not fit."""
        like, given = {"params": self.output.params["weight"]}, {name: target}
        _, _, target = _arrays.take(where, *((like, given) if self.classes else (like | given,)), needed=(name,))
        if self.classes:
            _checks.ndim(where, name, target, 1, "(T,)")
            check_numbers(where, name, target, self.output.out_features)
        else:
            _checks.ndim(where, name, target, 2, "(T, outputs)")
            _checks.shape(where, name, target, (target.shape[0], self.output.out_features), "(T, outputs)")
            check_finite(where, name, target)
        if target.shape[0] == 0:
            raise ValueError(f"{where}: {name} has shape {tuple(target.shape)}, expected at least one step")
        return target

    def _take_input(self, where: str, name: str, x: Array, symbols: str) -> Array:
        """An input, ready to compute with; reject one that does not fit."""
        _, _, x = _arrays.take(where, {"params": self.input.params["weight"], name: x}, needed=(name,))
        _checks.ndim(where, name, x, 2, symbols)
        _checks.shape(where, name, x, (x.shape[0], self.input.in_features), symbols)
        return x

    def _take_examples(self, method: str, inputs: Array) -> Array:
        where = f"SequenceGenerator.{method}"
        inputs = self._take_input(where, "inputs", inputs, "(N, input_size)")
        if inputs.shape[0] == 0:
            raise ValueError(f"{where}: inputs is empty, expected at least one example")
        return inputs

    def _outputs(self, method: str, inputs: Array, steps: int, batch_size: int) -> Array:
        """y (N, T, O)."""
        where = f"SequenceGenerator.{method}"
        inputs = self._take_examples(method, inputs)
        steps = _checks.integer_at_least(where, "steps", steps, 1)
        batch_size = _checks.integer_at_least(where, "batch_size", batch_size, 1)
        xp = _dispatch.namespace("SequenceGenerator", inputs=inputs)
        N = inputs.shape[0]
        parts = [self(inputs[i : min(i + batch_size, N), :], steps) for i in range(0, N, batch_size)]
        y = xp.concat(parts, axis=1)
        fine = xp.all(xp.isfinite(y), axis=(0, 2)) & xp.all(xp.isfinite(inputs), axis=1)
        bad = np.flatnonzero(~_dispatch.to_numpy(fine))
        if len(bad):
            name = f"inputs[{bad[0]}]"
            raise not_finite(where, f"the outputs for {name}", self.params, **{name: inputs[int(bad[0]), :]})
        return _arrays.contiguous(xp.permute_dims(y, (1, 0, 2)))

    def predict(self, inputs: Array, steps: int, *, batch_size: int = 256) -> Array:
        """The sequences that follow from inputs, each output fed back.

        Parameters
        ----------
        inputs : (N, input_size) array
        steps : int
            The number of outputs of each, at least 1.
        batch_size : int
            The number of examples computed at a time.

        Returns
        -------
        (N, steps) integer array of the likeliest classes, or (N, steps, outputs) array of values

        Raises
        ------
        ValueError, TypeError
            The inputs are not such examples, or an option is out of its range.
        FloatingPointError
            An input or a parameter is NaN or infinite; the message names it.
        """
        y = self._outputs("predict", inputs, steps, batch_size)
        return _dispatch.namespace("SequenceGenerator", y=y).argmax(y, axis=-1) if self.classes else y

    def predict_proba(self, inputs: Array, steps: int, *, batch_size: int = 256) -> Array:
        """The probabilities of the classes, (N, steps, outputs); the arguments are those of `predict`.

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            The outputs are values, or as in `predict`.
        """
        if not self.classes:
            raise ValueError(
                f"SequenceGenerator.predict_proba: output_activation is {self.output.activation!r}, expected 'softmax'"
            )
        return self._outputs("predict_proba", inputs, steps, batch_size)

    def _shapes(self) -> list[tuple[Any, ...]]:
        inputs, hidden, outputs = self.input_size, self.hidden_size, self.outputs
        return [
            (f"(B, {inputs})", "x"),
            (f"(B, {hidden})", self.input, "h_0"),
            (f"(T, B, {hidden})", self.recurrent, "h_t"),
            (f"(T, B, {outputs})", self.output, "y_t"),
        ]

    def _argument(self, name: str) -> Any:
        # The loss is the cross-entropy of classes, whatever the option.
        return "mse" if name == "loss" and self.classes else super()._argument(name)


def _sum(total: dict[str, Array], more: dict[str, Array]) -> dict[str, Array]:
    return {name: total[name] + g for name, g in more.items()} if total else more


class _Reversed:
    """``batches`` with inputs and targets swapped."""

    carries_state = False

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, epoch: int, index: int) -> Any:
        """Batch ``index`` of ``epoch``."""
        return self._swapped(self._batches.batch(epoch, index))

    def shard(self, epoch: int, index: int, number: int, shards: int) -> Any:
        """The rows of that batch that are shard ``number`` of ``shards``; None if there are none."""
        batch = self._batches.shard(epoch, index, number, shards)
        return None if batch is None else self._swapped(batch)

    @staticmethod
    def _swapped(batch: Any) -> Any:
        xp = _dispatch.namespace("SequenceGenerator", lengths=batch.lengths)
        return replace(batch, inputs=batch.targets, targets=batch.inputs, count=int(xp.sum(batch.lengths)))

    @property
    def num_examples(self) -> int:
        """The number of rows."""
        return self._batches.num_examples

    def split(self, share: float, *, rng: int | np.random.Generator = 0) -> tuple[_Reversed, _Reversed]:
        """Two parts of the rows; see `gpurnn.PaddedBatches.split`."""
        rest, part = self._batches.split(share, rng=rng)
        return _Reversed(rest), _Reversed(part)

    def config(self) -> dict[str, Any]:
        """Everything that the batches depend on."""
        return self._batches.config()
