"""The base class of models: a combination of layers, a loss, and `fit`, `save` and `from_file`."""

from __future__ import annotations

import inspect
import math
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch, optimizers
from .._contract import Array, State
from ..cells import CELLS, ELEMENTWISE, CellOptions
from ..layers.base import Composite, named, text, uninitialised
from ..layers.recurrent import LAYERS
from ..training.data import steps_of_epoch
from ..training.trainer import Trainer
from .files import Saved
from .fit_options import TrainerOptions
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..optimizers import Optimizer
    from .fit_options import FitOptions


CELL_OPTIONS = ("activation", "leak", "reset_after", "update")
"""The options of cells that a model's constructor takes; the value None stands for the cell's default."""

LOSS_UNITS = {
    "cross_entropy": "nats per target",
    "mse": "mean squared error",
    "l1": "mean absolute error",
    "huber": "mean Huber loss",
}
"""The units of the losses that models have, by the name of the loss."""


class Model(Composite, Saved):
    """A combination of layers, and the loss that trains it.

    A call and `vjp` take a batch, time-major, as layers do; `fit` and `predict` take examples.

    A subclass names the attributes that hold its layers, and defines ``__call__``, ``vjp``, ``loss``,
    ``loss_and_gradients`` and ``_shapes``. The arguments of its constructor are attributes of the same name, of the
    model or of its recurrent layers.
    """

    _stack = "recurrent"
    """The attribute that holds the recurrent layers whose options the constructor takes."""

    trainer_: Trainer
    """The trainer of the last `fit`."""

    _loss: str
    """The name of the loss in `gpurnn.losses`."""

    @property
    def loss_unit(self) -> str:
        """The unit of `loss` in words, for metrics and pictures."""
        return LOSS_UNITS[self._loss]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "fit" in vars(cls):
            signature = _checks.signature(cls, "fit")
            own = next(iter(inspect.signature(vars(cls)["fit"]).parameters.values()))
            vars(cls)["fit"].__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])

    def __getstate__(self) -> dict[str, Any]:
        # The trainer holds the data, and trains this model, not its copy.
        return {name: value for name, value in super().__getstate__().items() if name != "trainer_"}

    @classmethod
    def from_config(cls, config: dict[str, Any], *, rng: int | np.random.Generator = 0) -> Self:
        """The model that `config` described, with new parameters."""
        made = {n: Vocabulary.from_config(v) if n.endswith("vocabulary") else v for n, v in config.items()}
        return cls(**made, rng=rng)

    def _argument(self, name: str) -> Any:
        """An argument of the constructor, read from the model, its recurrent layers or their cell."""
        stack = getattr(self, self._stack)
        if name == "cell":
            return stack.cell.name
        if name == "cell_options" and not hasattr(self, name):
            usual = type(stack.cell)()
            own = stack.cell.values(n for n in stack.cell.options() if n not in CELL_OPTIONS)
            return {n: value for n, value in own.items() if value != getattr(usual, n)} or None
        if name in CELL_OPTIONS and not hasattr(self, name):
            default = {f.name: f.default for f in fields(stack.cell)}.get(name)
            value = getattr(stack.cell, name, None)
            return None if value == default else value
        if name == "loss":
            return self._loss
        return getattr(stack, name) if not hasattr(self, name) and hasattr(stack, name) else super()._argument(name)

    @classmethod
    def _restored(cls, config: dict[str, Any], shared: dict[str, str], parameters: dict[str, NDArray[Any]]) -> Self:
        with uninitialised({**parameters, **{name: parameters[first] for name, first in shared.items()}}):
            model = cls.from_config(config)
        model._share(shared)
        model.load_state_dict(named(parameters, model._forms()))
        return model

    @abstractmethod
    def loss(self, inputs: Any, targets: Any, state: State = None, lengths: Array | None = None) -> tuple[Array, State]:
        """The mean loss over the targets that count, in evaluation mode, and the final state."""

    @abstractmethod
    def loss_and_gradients(
        self,
        inputs: Any,
        targets: Any,
        state: State = None,
        lengths: Array | None = None,
        *,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[Array, State, dict[str, Array]]:
        """The results of `loss`, and the gradients of the loss by parameter name. With ``rng`` dropout acts."""

    @_checks.lists_options
    def fit(self, X: Any, y: Any = None, **options: Unpack[FitOptions]) -> Self:
        """Train on examples.

        Without ``epochs`` and ``steps`` training ends by itself. A tenth of the examples, or the last tenth of a single
        text or stream, is held out. Training ends when the loss of that part has not fallen for ten epochs and 400
        updates, or after a hundred epochs and 1,000 updates. The parameters with the lowest loss are kept.

        Parameters
        ----------
        X : sequence of arrays, or Data
            An array for each example; each model documents what the arrays hold. Or your own batches, from
            `gpurnn.training`, without ``y``.
        y : sequence, optional
            The target of each example.
        epochs, steps : int, optional
            How long to train, at most one of the two.
        batch_size : int
            Examples in a batch. They are shuffled in every epoch.
        validation : pair or Data, optional
            ``(X, y)`` to evaluate, once an epoch unless ``validation_interval`` says otherwise.
        validation_split : float, optional
            Hold out this share of the examples, in (0, 1), instead of ``validation``. They are drawn at random; for a
            single text or stream, the end is held out.
        patience : int, optional
            Stop after this many evaluations in a row that did not lower the validation loss, and keep the parameters
            with the lowest loss.
        optimizer : str or Optimizer
            "adam", "adamw", "sgd" or another by its class name in lower case; or an object of `gpurnn.optimizers`, such
            as ``Adam(1e-3, frozen=["embedding"])``, which has further options.
        lr : float, optional
            The learning rate of an optimizer given by name; 0.003 for Adam, and the class's own otherwise.
        schedule : str or callable, optional
            The learning rate from step to step: "constant", "cosine", "linear", "one_cycle", "plateau", or a function
            of the step; see `gpurnn.schedules`.
        clip_norm : float, optional
            The largest global norm of the gradient.
        rng : int or numpy.random.Generator
            Draws the order of the examples, the split and dropout.
        verbose : bool
            Whether to show a progress bar if stderr is a terminal.
        callbacks : callable or sequence of callables
            Each is called at the end of every epoch, as ``callback(trainer)``.
        directory, resume
            Where metrics and checkpoints go, and whether to continue the run that is there, if there is one.
        clip_value, l2, gradient_accumulation_steps, validation_interval, teacher_forcing, gradient_checkpoint_every
            Options of `gpurnn.Trainer`.
        checkpoint_interval, log_interval, metric, communicator, shards, on_checkpoint, on_log, on_gradients
            Options of `gpurnn.Trainer`.

        Returns
        -------
        self
            Its attribute ``trainer_`` is the `gpurnn.Trainer` of this run. Its repr says how the run went, and its
            ``epoch_history`` has a row for each epoch.

        Raises
        ------
        TypeError, ValueError
            The examples or an option are not as expected. The error for an unknown option lists all options.
        FloatingPointError
            The training diverged.
        """
        self.trainer_ = self._trainer(X, y, **options)
        self.trainer_.train()
        return self

    def _trainer(
        self,
        X: Any,
        y: Any,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int = 32,
        validation: Any = None,
        validation_split: float | None = None,
        patience: int | None = None,
        optimizer: str | Optimizer = "adam",
        lr: float | None = None,
        clip_norm: float | None = 1.0,
        rng: int | np.random.Generator = 0,
        verbose: bool = True,
        **options: Unpack[TrainerOptions],
    ) -> Trainer:
        """The trainer that `fit` runs; every argument is checked here, before the model changes."""
        where = f"{type(self).__name__}.fit"
        verbose = _checks.flag(where, "verbose", verbose)
        optimizer = optimizers._named(where, optimizer, lr)
        are_batches = hasattr(X, "batch")
        if are_batches and batch_size != 32 and (validation is None or hasattr(validation, "batch")):
            _checks.warn(where, f"batch_size={batch_size} has no effect, as X holds batches already")
        if are_batches and y is not None:
            raise TypeError(f"{where}: y is given, expected None, as X holds batches")
        if validation_split is not None:
            validation_split = validation_share(where, validation_split)
        if validation is not None and validation_split is not None:
            raise TypeError(f"{where}: validation and validation_split are both given, expected at most one of the two")
        if epochs is not None and steps is not None:
            raise TypeError(f"{where}: epochs and steps are both given, expected at most one of the two")
        by_itself = epochs is None and steps is None
        if validation is not None and not hasattr(validation, "batch"):
            if not isinstance(validation, (tuple, list)) or len(validation) != 2:
                raise TypeError(
                    f"{where}: validation is {_checks.described(validation)}, expected a pair (X, y) or Data"
                )
            validation = self._validation(where, validation, batch_size)
        data = X if are_batches else self._batches(X, y, batch_size, shuffle=True, rng=rng)
        stops_early = validation_split is not None or patience is not None
        if validation is None and (stops_early or (by_itself and _is_worth_a_split(data))):
            share = _SPLIT if validation_split is None else validation_split
            if not hasattr(data, "split"):
                raise TypeError(
                    f"{where}: X cannot be split into examples to train on and to validate on; pass validation"
                )
            data, validation = data.split(share, rng=rng)
        accumulated = options.get("gradient_accumulation_steps", 1)
        accumulated = _checks.integer_at_least(where, "gradient_accumulation_steps", accumulated, 1)
        length = steps_of_epoch(data, 0, accumulated)
        if by_itself:
            epochs = max(_EPOCHS, math.ceil(_STEPS / length))
            if patience is None and validation is not None:
                patience = max(_PATIENCE, math.ceil(_PATIENT_STEPS / length))
        options.setdefault("log_interval", length if length <= _LONG_EPOCH else 10)
        return Trainer(
            self, data, optimizer, epochs=epochs, steps=steps, validation=validation, patience=patience,
            clip_norm=clip_norm, rng=rng, progress=verbose and _is_watched(), **options,
        )  # fmt: skip

    def _validation(self, where: str, pair: Any, batch_size: int, **options: Any) -> Any:
        """The batches of a pair (X, y) to validate on."""
        X, y = pair
        try:
            return self._batches(X, y, batch_size, shuffle=False, rng=0, **options)
        except (ValueError, TypeError, IndexError) as error:
            # The caller's own X and y have the same names.
            raise type(error)(str(error).replace(f"{where}: ", f"{where}: validation's ", 1)) from error

    def _batches(
        self, X: Sequence[Array], y: Any, batch_size: int, *, shuffle: bool, rng: int | np.random.Generator
    ) -> Any:
        """The batches of some examples, with a target for each step; other models override this."""
        from ..training import PaddedBatches

        _checks.given(f"{type(self).__name__}.fit", y=y)
        return PaddedBatches(X, batch_size, y, shuffle=shuffle, rng=rng)

    def __repr__(self) -> str:
        rows = self._shapes()
        width = max(len(shape) for shape, *_ in rows)
        lines = [super().__repr__()]
        for shape, *what in rows:
            lines.append(f"  {shape:{width}}  {': '.join(w if isinstance(w, str) else text(w) for w in what)}")
        return "\n".join(lines)

    @abstractmethod
    def _shapes(self) -> list[tuple[Any, ...]]:
        """Rows of the repr, beginning with the input: the shape of a batch, and texts or layers that describe it."""


def _signature_of_fit() -> inspect.Signature:
    """The options of `Model.fit` with their defaults, as `help` and notebooks show them."""
    own = inspect.signature(Model._trainer).parameters
    of_trainer = inspect.signature(Trainer).parameters
    keywords = [p for p in own.values() if p.kind is p.KEYWORD_ONLY]
    keywords += [of_trainer[name] for name in TrainerOptions.__annotations__]
    signature = inspect.signature(Model.fit)
    positional = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return signature.replace(parameters=[*positional, *keywords])


Model.fit.__signature__ = _signature_of_fit()  # type: ignore[attr-defined]

_EPOCHS, _PATIENCE, _SPLIT = 100, 10, 0.1
_STEPS, _PATIENT_STEPS = 1000, 400
"""The length of training in `Model.fit` by default; the latter two are lower limits, for short epochs."""

_LEAST_EXAMPLES = 10
"""Fewer examples are not split by default: a tenth of them is too few to validate on."""

_LONG_EPOCH = 100
"""The number of batches in an epoch above which the metrics have several lines an epoch."""


def _is_worth_a_split(data: Any) -> bool:
    return hasattr(data, "split") and getattr(data, "num_examples", 0) >= _LEAST_EXAMPLES


def _is_watched() -> bool:
    """Whether a progress bar would be seen: in a terminal or in a notebook."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def validation_share(where: str, value: float) -> float:
    """``validation_split`` as a float; reject a value outside (0, 1)."""
    share = _checks.finite(where, "validation_split", value)
    if not 0.0 < share < 1.0:
        raise ValueError(f"{where}: validation_split is {value!r}, expected a number in (0, 1)")
    return share


def recurrent(
    where: str,
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    own_options: dict[str, Any],
    cell_options: CellOptions | None = None,
    *,
    init: Any = None,
    **options: Any,
) -> Any:
    """The recurrent layers of a model, made from its caller's options.

    Raises
    ------
    TypeError, ValueError
        ``own_options``, the arguments of the model's constructor, or ``cell_options`` set an option that the cell does
        not have (None sets nothing), or a value out of its range; or both set the same option.
    """
    kinds = CELLS | ELEMENTWISE
    cell = _checks.choice(where, "cell", cell, tuple(kinds))
    known, layer = kinds[cell].options(), LAYERS[cell]
    if cell_options is not None and not isinstance(cell_options, Mapping):
        raise TypeError(
            f"{where}: cell_options is {_checks.described(cell_options)}, expected a dict of the cell's options"
        )
    chosen = {name: value for name, value in own_options.items() if value is not None}
    further = dict(cell_options or {})
    for given, offered in ((chosen, [name for name in CELL_OPTIONS if name in known]), (further, list(known))):
        for name in given:
            if name not in known:
                expected = " or ".join(offered) if given is chosen else f"some of {', '.join(offered)}"
                expected = expected if offered else "none of them"
                raise TypeError(f"{where}: {name} is not an option of the cell {cell!r}, expected {expected}")
    for name in chosen:
        if name in further:
            raise TypeError(f"{where}: {name} is given, and in cell_options too, expected it in one of the two")
    if init is not None:
        options["init"] = init
    num_layers = _checks.size(where, "num_layers", num_layers)
    if num_layers == 1:
        options.pop("dropout", None)  # between layers; the model itself drops elsewhere
    taken = _checks.signature(layer).parameters
    for name in [name for name in options if name not in taken]:
        if options.pop(name):
            raise TypeError(f"{where}: {name} is not an option of the cell {cell!r}, which has no product with W_hh")
    make: Any = layer
    return make(input_size, hidden_size, num_layers, **chosen, **further, **options)


def check_numbers(where: str, name: str, numbers: Array, count: int, error: type[Exception] = ValueError) -> None:
    """Reject an integer array with entries outside 0 ... ``count`` - 1. The kernels compute NaN from such entries."""
    if 0 in numbers.shape:
        return
    xp = _dispatch.namespace(where, **{name: numbers})
    for extreme in (int(xp.min(numbers)), int(xp.max(numbers))):
        if not 0 <= extreme < count:
            raise error(f"{where}: {name} holds {extreme}, expected 0 ... {count - 1}")


def check_finite(where: str, name: str, values: Array) -> None:
    """Reject an array that holds NaN or infinity, from which nothing can be learnt."""
    xp = _dispatch.namespace(where, **{name: values})
    if not bool(xp.all(xp.isfinite(values))):
        raise ValueError(f"{where}: {name} holds NaN or infinity, expected finite numbers")


def not_finite(where: str, outputs: str, params: dict[str, Array], **inputs: Array) -> FloatingPointError:
    """The error for outputs that are NaN or infinite and so give no answer. It names the array to blame.

    Parameters
    ----------
    outputs : str
        The name of the outputs, in words.
    params : dict of str to array
        The parameters that the outputs were computed from.
    **inputs
        Floating-point arrays by the caller's names.
    """
    arrays = {**inputs, **{f"parameter {name}": p for name, p in params.items()}}
    for name, array in arrays.items():
        xp = _dispatch.namespace(where, **{name: array})
        if not bool(xp.all(xp.isfinite(array))):
            return FloatingPointError(f"{where}: {outputs} are not finite: {name} holds NaN or infinity")
    return FloatingPointError(f"{where}: {outputs} are not finite, but all inputs and parameters are: they overflow")


def existing(where: str, tokens: Array, lengths: Array | None) -> Array | None:
    """(T, B) bools, True at the steps that exist; None if all do. ``tokens`` is (T, B, ...)."""
    if lengths is None:
        return None
    xp, lengths = _arrays.take(where, integers={"lengths": lengths})
    _checks.shape(where, "lengths", lengths, tuple(tokens.shape[1:2]), "(B,)")
    steps = xp.arange(tokens.shape[0], dtype=xp.int64, device=_dispatch.device(tokens))
    return steps[:, None] < lengths[None, :]


def without_padding(where: str, tokens: Array, lengths: Array | None) -> Array:
    """The tokens (T, B), with 0 past the lengths: the caller's entries there are not read, and need not be tokens."""
    exist = existing(where, tokens, lengths)
    if exist is None:
        return tokens
    xp = _dispatch.namespace(where, tokens=tokens, lengths=lengths)
    return xp.where(exist, tokens, xp.zeros_like(tokens))
