"""Fitting a sequence model to examples in any container, and predicting for others."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch, optimizers
from .._contract import Array
from .._random import generator
from ..layers.base import uninitialised
from . import examples
from .base import Model, check_numbers, not_finite, validation_share
from .pooling import POOLINGS
from .sequence import SequenceModel

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..training import PaddedBatches
    from .fit_options import FitOptions


_SCALES = ("mean", "std", "input_mean", "input_std")
"""The names of the scales of targets and inputs that `fit` learns."""

_OF_NETWORK = ("embedding", "recurrent", "pooling", "output", "parts", "input_size")
"""Attributes that a model has only once its layers are made."""

_NETWORK = _checks.keywords(SequenceModel, "__init__")
"""Options of the layers."""


class Estimator(SequenceModel):
    """A sequence model that is fitted to examples and their targets, in any container, as scikit-learn's models are.

    A constructor passes its arguments on by name. `get_params` returns each of them as it was passed, which
    scikit-learn requires. Without ``input_size`` or the number of outputs there are no parameters before `fit`.
    """

    _fit_options = (
        "epochs", "batch_size", "optimizer", "lr", "schedule", "clip_norm", "l2", "validation_split", "patience",
        "verbose",
    )  # fmt: skip
    """Arguments of the constructor that are defaults of `fit`."""

    _poolings: tuple[str | None, ...] = (*POOLINGS, None)
    """The choices of pooling; None is for an output at each step."""

    _learnt: Mapping[str, Any] = MappingProxyType({})
    """The results of `fit` besides parameters: the names of features, the labels, the scale of targets."""

    _is_fitted = False
    """Whether the parameters come from a fit or from a caller."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Take the arguments of a subclass's constructor by name, such as its ``locals()``."""
        self._arguments = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
        pooling = _checks.choice(type(self).__name__, "pooling", self._arguments["pooling"], self._poolings)
        self._has_one_target = pooling is not None
        self._check_fit_options()
        where, standardize = type(self).__name__, self._arguments["standardize_inputs"]
        standardize = standardize is not None and _checks.flag(where, "standardize_inputs", standardize)
        if standardize and self._arguments["num_embeddings"] is not None:
            _checks.warn(where, "standardize_inputs=True has no effect, as inputs are tokens")
        input_size, outputs = self._sizes()
        if outputs is not None:
            self._check_outputs(outputs)
        if input_size is not None and outputs is not None:
            self._build(input_size, outputs)
            return
        if input_size is None and self._arguments["num_embeddings"] is not None:
            raise ValueError(f"{where}: input_size is None, expected the width of the embedding of the tokens")
        with uninitialised():
            # This checks the options.
            self._build(1 if input_size is None else input_size, 2 if outputs is None else outputs)
        self._remove_network()

    def _sizes(self) -> tuple[int | None, int | None]:
        """The sizes of inputs and outputs that were passed to the constructor; `fit` determines those that are None."""
        return self._arguments["input_size"], self._arguments[self._outputs_name]

    def _missing(self) -> str:
        """The sizes that `fit` determines, for messages."""
        sizes = zip(("input_size", self._outputs_name), self._sizes(), strict=True)
        return " and ".join(name for name, size in sizes if size is None)

    def _build(self, input_size: int, outputs: int) -> None:
        """Make the layers and their parameters."""
        given = self._arguments
        options = {name: given[name] for name in _NETWORK if name in given and name != "rng"}
        super().__init__(
            input_size, given["hidden_size"], outputs, given["num_layers"], **options, rng=self._random_state()
        )

    def _remove_network(self) -> None:
        for name in _OF_NETWORK:
            self.__dict__.pop(name, None)

    @property
    def _is_built(self) -> bool:
        return "parts" in self.__dict__

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            own = "_arguments" in self.__dict__ and not self._is_built
            if own and not name.startswith("__") and (name in _OF_NETWORK or hasattr(type(self), name)):
                raise not_fitted(
                    f"{type(self).__name__}: the model has no parameters before fit, which finds out "
                    f"{self._missing()}; call fit, or give {self._missing()} to the constructor"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _shared(self) -> dict[str, str]:
        return super()._shared() if self._is_built else {}

    def _random_state(self) -> int | np.random.Generator:
        """The source of the initial parameters, and by default of the order of the examples in `fit`."""
        seed = self._arguments["random_state"]
        if seed is None:
            return self._arguments["rng"]
        if isinstance(seed, np.random.RandomState):
            return np.random.Generator(seed._bit_generator)
        generator(type(self).__name__, seed, "random_state")
        return seed

    def _check_fit_options(self) -> None:
        """Check the defaults of `fit`, except a schedule, which depends on the optimizer and the steps."""
        where, given = type(self).__name__, self._arguments
        self.verbose = _checks.flag(where, "verbose", given["verbose"])
        self.batch_size = _checks.integer_at_least(where, "batch_size", given["batch_size"], 1)
        self.epochs, self.patience = (
            None if given[name] is None else _checks.integer_at_least(where, name, given[name], least)
            for name, least in (("epochs", 0), ("patience", 1))
        )
        self.clip_norm, self.lr = (
            None if given[name] is None else _checks.finite(where, name, _checks.positive(where, name, given[name]))
            for name in ("clip_norm", "lr")
        )
        self.validation_split = given["validation_split"]
        if self.validation_split is not None:
            self.validation_split = validation_share(where, self.validation_split)
        self.l2, self.optimizer, self.schedule = given["l2"], given["optimizer"], given["schedule"]
        if not isinstance(self.l2, Mapping):
            self.l2 = _checks.non_negative(where, "l2", self.l2)
        optimizers._named(where, self.optimizer, self.lr)

    def _check_outputs(self, outputs: int) -> None:
        """Reject a number of outputs that the model cannot have."""

    # ---- scikit-learn's protocol -------------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor by name, as they were given; scikit-learn's ``clone`` passes them on.

        Parameters
        ----------
        deep : bool
            Has no effect: no argument has parameters of its own.
        """
        names = inspect.signature(type(self)).parameters
        return {n: self._arguments[n] if n in self._arguments else getattr(self, n) for n in names}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor.

        If only options of `fit` change, nothing else does. With any other argument this becomes a new model, and the
        results of earlier fits are lost.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            A name is not an argument of the constructor.
        ValueError, TypeError
            The constructor rejects a value; then nothing changes.
        """
        given = self.get_params()
        for name in params:
            if name not in given:
                raise ValueError(
                    f"{type(self).__name__}.set_params: {name} is not a parameter, expected one of {', '.join(given)}"
                )
        changed = {name for name, value in params.items() if value is not given[name]}
        if changed:
            made = type(self)(**{**given, **params})
            if changed <= self._training():
                own = {"_arguments", *self._fit_options}
                self.__dict__.update({name: value for name, value in vars(made).items() if name in own})
            else:
                self.__dict__ = made.__dict__
        return self

    @property
    def n_features_in_(self) -> int:
        """The number of features of a step."""
        return 1 if self.embedding is not None else int(self.recurrent.input_size)

    @property
    def feature_names_in_(self) -> NDArray[np.object_]:
        """The columns of the tables that were passed to `fit`; there is no such attribute if arrays were passed."""
        if "features" not in self._learnt:
            raise AttributeError(f"{type(self).__name__}: fit has seen no names of features")
        names = np.empty(len(self._learnt["features"]), object)
        names[:] = self._learnt["features"]
        return names

    def __sklearn_is_fitted__(self) -> bool:
        if self._is_fitted or not self._is_built:
            return self._is_fitted
        bias = self.output.params["bias"]
        # The head's bias starts at zero, and no training leaves it there.
        return bool(_dispatch.namespace(type(self).__name__, bias=bias).any(bias != 0))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        kind = self._estimator_type
        return Tags(
            estimator_type=kind,
            target_tags=TargetTags(required=True, multi_output=kind == "regressor"),
            classifier_tags=ClassifierTags() if kind == "classifier" else None,
            regressor_tags=RegressorTags() if kind == "regressor" else None,
            input_tags=InputTags(three_d_array=True),
        )

    _estimator_type: str | None = None
    """The kind of estimator, in scikit-learn's terms."""

    def config(self) -> dict[str, Any]:
        # A file holds no optimizer, function or dict of weights that is a default of `fit`.
        plain = (type(None), bool, int, float, str)
        return {n: v for n, v in super().config().items() if n not in self._training() or isinstance(v, plain)}

    config.__doc__ = SequenceModel.config.__doc__

    def _training(self) -> set[str]:
        """Arguments of the constructor that describe the training, not the model."""
        return {*self._fit_options, "class_weight"}

    @classmethod
    def _signature(cls) -> inspect.Signature:
        signature = super()._signature()
        return signature.replace(parameters=[p for n, p in signature.parameters.items() if n != "random_state"])

    @property
    def _positional(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("input_size", "hidden_size", self._outputs_name) if self._is_built else ()

    def _argument(self, name: str) -> Any:
        if name in self._fit_options:
            return getattr(self, name)
        if name == "standardize_inputs" and self._is_built:
            given = self._arguments[name]
            return (True if self._standardizes_inputs else None) if given is None else bool(given)
        if not self._is_built or name == "class_weight":
            value = self._arguments[name]
            return value.item() if isinstance(value, np.generic) else value
        return super()._argument(name)

    def __repr__(self) -> str:
        return super().__repr__() if self._is_built else f"{self._expression()}  # fit makes the parameters"

    # ---- Files -------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        super().load_state_dict(state)
        self._is_fitted = True

    load_state_dict.__doc__ = Model.load_state_dict.__doc__

    def _fitted(self) -> dict[str, Any]:
        learnt = {name: value for name, value in self._learnt.items() if value is not None}
        labels = learnt.pop("labels", None)
        if labels is not None and not labels.are_numbers:
            learnt["labels"] = labels.saved(f"{type(self).__name__}.save")
        for name in _SCALES:
            if name in learnt:
                learnt[name] = learnt[name].tolist()
        return {**learnt, **({"is_fitted": True} if self._is_fitted else {})}

    def _restore_fitted(self, fitted: dict[str, Any]) -> None:
        learnt = dict(fitted)
        del self._is_fitted  # loading the parameters has set it
        if _checks.flag(type(self).__name__, "is_fitted", learnt.pop("is_fitted", False)):
            self._is_fitted = True
        if "labels" in learnt:
            learnt["labels"] = examples.Labels.restored(learnt["labels"])
        for name in _SCALES:
            if name in learnt:
                learnt[name] = np.asarray(learnt[name], np.float64)
        if "target_dtype" in learnt:
            _checks.choice(type(self).__name__, "target_dtype", learnt["target_dtype"], ("float32", "float64"))
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
        """Train on examples in any container; see `Model.fit` for the other options.

        Parameters
        ----------
        X : array, table, or sequence of arrays, lists, series, tensors or tables
            The examples, of any lengths: an (N, T, input_size) array, (N, T) of one feature, an entry (T_i, input_size)
            or (T_i,) for each; or tokens (T_i,), if the model embeds them. Numbers of any dtype are converted once to
            the model's. A pandas or polars table has a row for each example and a column for each step; with ``group``
            a row for each step and a column for each feature. Or batches from `gpurnn.training`, without ``y``.
        y : sequence, array or column; or the name of a column of X
            The target of each example; if the model predicts each step, a sequence of targets for each example.
        group : str, optional
            The column of the table X that says to which example a row belongs.
        sample_weight : (N,) sequence of numbers, optional
            The weight of each example in the loss.
        mask : sequence of (T_i,) arrays, or (N, T) array, optional
            For a model that predicts each step: which targets count, as bools or weights.
        **options
            As in `Model.fit`. The constructor's arguments are their defaults.

        Returns
        -------
        self
            Its attribute ``trainer_`` is the `gpurnn.Trainer` of this run; its ``history`` has the losses.

        Raises
        ------
        ValueError, TypeError
            X or y holds values that cannot be learnt from; the message names the example and the step.
        FloatingPointError
            The training diverged.
        """
        where = f"{type(self).__name__}.fit"
        if hasattr(X, "batch"):
            if not self._is_built:
                raise TypeError(
                    f"{where}: X holds batches, expected examples, from which fit finds out {self._missing()}; or give "
                    f"{self._missing()} to the constructor"
                )
            defaults = self._defaults_of_fit(options)
            del defaults["batch_size"]
            for name, value in (("group", group), ("sample_weight", sample_weight), ("mask", mask)):
                if value is not None:
                    raise TypeError(f"{where}: {name} is given, expected None, as X holds batches")
            defaults.update(options)
            super().fit(X, y, **defaults)
            self._is_fitted = True
            return self
        defaults = self._defaults_of_fit(options)
        defaults.update(options)
        options = defaults
        batch_size, rng = options.pop("batch_size"), options["rng"]
        before = self.__dict__.copy()
        try:
            if None in self._sizes():
                # These examples determine the sizes, so the parameters are new too.
                self._remove_network()
                self._learnt, self._is_fitted = {}, False
            data = self._read(where, X, y, group, sample_weight, mask).batches(batch_size, shuffle=True, rng=rng)
            validation = options.get("validation")
            if isinstance(validation, (tuple, list)) and len(validation) == 2:
                options["validation"] = self._validation(where, validation, batch_size, group=group)
            super().fit(data, None, **options)
            self._is_fitted = True
            return self
        except (ValueError, TypeError, IndexError):
            self.__dict__ = before
            raise

    def _defaults_of_fit(self, options: FitOptions) -> FitOptions:
        """The options of `fit` that were passed to the constructor, except those that ``options`` replace."""
        defaults: Any = {name: getattr(self, name) for name in self._fit_options}
        instead: Mapping[str, Any] = options
        for name, other in (("epochs", "steps"), ("validation_split", "validation"), ("lr", "optimizer")):
            if instead.get(other) is not None:
                del defaults[name]
        # Training changes an optimizer, and a schedule that depends on validation losses.
        defaults |= {name: copy.deepcopy(defaults[name]) for name in ("optimizer", "schedule")}
        defaults["rng"] = self._random_state()
        return defaults

    def _read(
        self, where: str, X: Any, y: Any, group: str | None, sample_weight: Any = None, mask: Any = None
    ) -> _Labelled:
        """Examples and their targets as arrays for the model; `fit` also learns names and scales from them."""
        _checks.given(where, X=X, y=y)
        columns = (y,) if isinstance(y, str) else tuple(y) if self._are_columns(X, y, group) else ()
        if columns and group is None:
            raise TypeError(
                f"{where}: y names a column of X, expected group too, the name of the column that separates examples"
            )
        features = self._learnt.get("features")
        if columns and features is None:
            features = [c for c in X.columns if c != group and c not in columns]
        data = self._sequences(where, X, group, features)
        if columns:
            y = examples.columns_by_group(where, "X", X, columns, group, each=not self._has_one_target)
        given = self._weights(where, data, sample_weight, mask)
        targets, weights = self._targets_of(where, y, data, given)
        if weights is not None and not any(np.any(of_one) for of_one in weights):
            raise ValueError(f"{where}: weights of targets are all zero, expected one above zero")
        if data.features is not None:
            self._learnt = {**self._learnt, "features": list(data.features)}
        if where.endswith(".fit") and self._standardizes_inputs and "input_mean" not in self._learnt:
            arrays = [_dispatch.to_numpy(array) for array in data.arrays]
            of_steps = None
            if given is not None:
                of_steps = np.concatenate([np.broadcast_to(w, len(a)) for w, a in zip(given, arrays, strict=True)])
            mean, std = examples.scale_of(np.concatenate(arrays), of_steps)
            self._learnt = {**self._learnt, "input_mean": mean, "input_std": std}
        self._ready(where, data)
        targets = [examples.moved(where, "y", target, self.output.params["weight"]) for target in targets]
        return _Labelled(data.arrays, targets, weights, self._has_one_target)

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
        """The examples; reject those that this model cannot read, before any work."""
        tokens = self.num_embeddings
        input_size = self.recurrent.input_size if self._is_built else self._sizes()[0]
        data = examples.sequences(
            # Large values keep their digits until they are scaled.
            where, "X", X, dtype=np.dtype("float64") if self._standardizes_inputs else self._dtype, group=group,
            features=self._learnt.get("features") if features is None else features,
            width=None if tokens is not None else input_size, tokens=tokens is not None,
        )  # fmt: skip
        for name, array in zip(data.names, data.arrays, strict=True):
            if tokens is not None:
                check_numbers(where, name, array, tokens, IndexError)
        return data

    def _ready(self, where: str, data: examples.Sequences) -> examples.Sequences:
        """The examples in the form that the layers read: scaled, and in the library of the parameters."""
        weight = self.output.params["weight"]
        for i, (name, array) in enumerate(zip(data.names, data.arrays, strict=True)):
            if "input_mean" in self._learnt:
                xp = _dispatch.namespace(where, **{name: array})
                mean, std = (like(xp, self._learnt[of], array) for of in ("input_mean", "input_std"))
                array = xp.astype((array - mean) / std, getattr(xp, self._dtype.name))
            data.arrays[i] = examples.moved(where, name, array, weight)
        return data

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(self._arguments["dtype"])

    @property
    def _standardizes_inputs(self) -> bool:
        """Whether `fit` scales the inputs: as the constructor says, or else if `fit` also determines their size."""
        if self.num_embeddings is not None:
            return False
        given = self._arguments["standardize_inputs"]
        return self._sizes()[0] is None if given is None else bool(given)

    def _complete(self, data: examples.Sequences, outputs: int | None) -> None:
        """Build the layers if the constructor was not given the sizes, in the library of the examples."""
        if self._is_built or outputs is None:
            return
        input_size = self._sizes()[0]
        self._build(data.arrays[0].shape[1] if input_size is None else input_size, outputs)
        if _dispatch.library_of(data.arrays[0]) != "numpy":
            library = _dispatch.namespace("fit", X=data.arrays[0])
            self._replace_layers({prefix: layer.to(library) for prefix, layer in self._layers().items()})

    def _targets_of(
        self, where: str, y: Any, data: examples.Sequences, weights: list[Any] | None
    ) -> tuple[list[Array], list[Any] | None]:
        """Values as targets of the examples, in scaled units, and their weights."""
        outputs = self.output.out_features if self._is_built else self._sizes()[1]
        count = len(data.arrays)
        if self._has_one_target:
            y = examples.array_of(where, "y", y)
            table, given = examples.numbers(where, "y", y, self._target_dtype), examples.dtype_of(y)
            is_flat = table.ndim == 1
            table = table[:, None] if is_flat else table
            _checks.ndim(where, "y", table, 2, "(N, outputs)")
            outputs = table.shape[1] if outputs is None else outputs
            _checks.shape(where, "y", table, (count, outputs), "(N, outputs)")
            rows = [table[i, ...] for i in range(count)]
            examples.require_finite(where, "y", table, axis="row")
        else:
            entries = _arrays.entries(where, "y", y, "the values of each step, for each example")
            if len(entries) != count:
                raise ValueError(f"{where}: y has {len(entries)} entries, expected {count}")
            rows, is_flat, given = [], False, self._dtype
            for i, (entry, array) in enumerate(zip(entries, data.arrays, strict=True)):
                entry = examples.array_of(where, f"y[{i}]", entry)
                row = examples.numbers(where, f"y[{i}]", entry, self._target_dtype)
                given = np.result_type(given, examples.dtype_of(entry))
                is_flat = row.ndim == 1
                row = row[:, None] if is_flat else row
                _checks.ndim(where, f"y[{i}]", row, 2, "(T, outputs)")
                outputs = row.shape[1] if outputs is None else outputs
                _checks.shape(where, f"y[{i}]", row, (array.shape[0], outputs), "(T, outputs)")
                examples.require_finite(where, f"y[{i}]", row)
                rows.append(row)
        self._complete(data, outputs)
        if where.endswith(".fit"):
            self._learnt = {"is_flat": is_flat, **self._learnt}
            self._learn_scale(rows, weights, given)
        return [self._scaled(row) for row in rows], weights

    @property
    def _target_dtype(self) -> np.dtype[Any]:
        """The dtype in which targets are read."""
        return self._dtype

    def _learn_scale(self, rows: list[Array], weights: list[Any] | None, given: np.dtype[Any]) -> None:
        """Learn the scale of the targets, whose dtype was ``given``, at the first fit."""

    def _scaled(self, values: Array) -> Array:
        return values

    def _weights(self, where: str, data: examples.Sequences, sample_weight: Any, mask: Any) -> list[Any] | None:
        """The weight of each target as NumPy arrays, () or (T_i,); None if all are 1."""
        weights: list[Any] | None = None
        count = len(data.arrays)
        shapes = [() if self._has_one_target else tuple(a.shape[:1]) for a in data.arrays]
        if sample_weight is not None:
            values = _dispatch.to_numpy(examples.numbers(where, "sample_weight", sample_weight, np.dtype("float64")))
            _checks.shape(where, "sample_weight", values, (count,), "(N,)")
            examples.require_weights(where, "sample_weight", values)
            weights = [np.full(shape, value) for shape, value in zip(shapes, values, strict=True)]
        if mask is not None:
            if self._has_one_target:
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
            weights = product(weights, masks)
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
        """The outputs for each example: (O,) arrays, or (T_i, O) if there is an output for each step."""
        where = f"{type(self).__name__}.{method}"
        self._require_fitted(where)
        return self._outputs_of(where, self._ready(where, self._sequences(where, X, group)), batch_size)

    def _require_fitted(self, where: str) -> None:
        """Reject a model that was neither fitted nor given parameters."""
        if not self.__sklearn_is_fitted__():
            raise not_fitted(f"{where}: the model was never fitted, expected parameters of a fit; call fit first")

    def _outputs_of(self, where: str, data: examples.Sequences, batch_size: int) -> list[Array]:
        from ..training import pad

        batch_size = _checks.integer_at_least(where, "batch_size", batch_size, 1)
        arrays = data.arrays
        # Sequences of similar length go together, so that there is little padding.
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
            # Saturated units would turn an infinite input into finite outputs.
            fine = fine & xp.all(xp.isfinite(inputs), axis=(0, 2))
        return np.flatnonzero(~_dispatch.to_numpy(fine))

    def _map(self, outputs: list[Array], function: Any) -> Any:
        """``function`` of the stacked outputs, or of the outputs of each example if they are for each step."""
        xp = _dispatch.namespace(type(self).__name__, outputs=outputs[0])
        if self.pooling is not None:
            return function(xp, xp.stack(outputs))
        return [function(xp, y) for y in outputs]


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


class NotFittedError(ValueError, AttributeError):
    """The counterpart of scikit-learn's NotFittedError, for programs that do not import scikit-learn."""


def not_fitted(message: str) -> ValueError:
    """The error of a model that must be fitted first: scikit-learn's if it is imported, since its tools catch that."""
    exceptions = sys.modules.get("sklearn.exceptions")
    kind: type[ValueError] = NotFittedError if exceptions is None else exceptions.NotFittedError
    return kind(message)


def product(weights: list[Any] | None, others: list[Any] | None) -> list[Any] | None:
    """The products of two lists of weights; None is a list of ones."""
    if weights is None or others is None:
        return others if weights is None else weights
    return [a * b for a, b in zip(weights, others, strict=True)]


def like(xp: Any, values: NDArray[np.float64], like: Array) -> Array:
    return xp.astype(_dispatch.from_numpy(xp, values), like.dtype)
