"""Sequence models for classes: one for a whole sequence (many to one), or one for each step (many to many)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from ..cells import Activation, CellOptions, Update
from ..functional._activations import activate
from ..layers.recurrent import Merge
from . import examples
from .estimator import Estimator, product
from .pooling import POOLINGS
from .sequence import check_classes

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..optimizers import Optimizer
    from .fit_options import FitOptions


class _Classifier(Estimator):
    """The base class of classifiers, of sequences and of steps: cross-entropy, probabilities, classes."""

    _outputs_name = "classes"
    _outputs_text = "logits"
    _class_weight: Any = None
    _padding_label: Any = None
    """Options of the `fit` that is under way."""

    _one_class_text: str
    """The advice against a softmax over a single class."""

    _loss = "cross_entropy"

    def _check_outputs(self, outputs: int) -> None:
        check_classes(type(self).__name__, "classes", outputs, self._one_class_text)

    @property
    def classes_(self) -> NDArray[Any]:
        """The label of each class, in the order of `predict_proba`: those that `fit` saw, or 0 ... classes - 1."""
        labels = self._learnt.get("labels")
        return np.arange(self.output.out_features) if labels is None else labels.classes

    @_checks.lists_options
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        group: str | None = None,
        sample_weight: Any = None,
        mask: Any = None,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        padding_label: Any = None,
        **options: Unpack[FitOptions],
    ) -> Self:
        """Train on examples and their labels, in any container.

        Parameters
        ----------
        X : array, table, or sequence of arrays, lists, series, tensors or tables
            As in `SequenceRegressor`'s ``fit``.
        y : sequence, array or column; or the name of a column of X
            The label of each example; for a tagger, a sequence of labels for each. Labels are ints, bools, strings or
            any hashables; ``classes_`` has them in order.
        class_weight : dict of label to number, or "balanced", optional
            The weight of each class in the loss, 1 if it is left out. "balanced" weights a class by N / (K n), for N
            labels of K classes, n of them of this class, so that all classes count alike. None: as the constructor
            says.
        padding_label : label, optional
            For a tagger: a label that does not count, neither here nor in `score`.
        group, sample_weight, mask
            As in `SequenceRegressor`'s ``fit``.
        **options
            As in `Model.fit`. The constructor's arguments are their defaults.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            X or y holds values that cannot be learnt from; the message names the example and the step. There are more
            classes than the model has.
        FloatingPointError
            The training diverged.
        """
        where = f"{type(self).__name__}.fit"
        if padding_label is not None and self._has_one_target:
            raise TypeError(f"{where}: padding_label is given, expected None: there is one label for each example")
        self._class_weight = self._arguments["class_weight"] if class_weight is None else class_weight
        self._padding_label = padding_label
        try:
            return super().fit(X, y, group=group, sample_weight=sample_weight, mask=mask, **options)
        finally:
            self.__dict__.pop("_class_weight", None)
            self.__dict__.pop("_padding_label", None)

    def _targets_of(
        self, where: str, y: Any, data: examples.Sequences, weights: list[Any] | None
    ) -> tuple[list[Array], list[Any] | None]:
        """Labels as numbers of the classes, and their weights."""
        count = len(data.arrays)
        if self._has_one_target:
            flat = examples.labels_in(where, "y", y)
            names = [f"y[{i}]" for i in range(len(flat))]
            if len(flat) != count:
                raise ValueError(f"{where}: y has {len(flat)} entries, expected {count}{data.hint}")
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
        is_fit = where.endswith(".fit")
        padding = self._padding_label if is_fit else self._learnt.get("padding_label")
        counts = np.array([padding is None or label != padding for label in flat])
        real = [label for label, one in zip(flat, counts, strict=True) if one]
        known = self._learn_labels(where, real)
        if is_fit:
            self._learnt = {**self._learnt, "padding_label": getattr(padding, "tolist", lambda: padding)()}
        self._complete(data, self._sizes()[1] or len(known.classes))
        numbers = np.zeros(len(flat), np.int64)
        numbers[counts] = known.encode(where, [name for name, one in zip(names, counts, strict=True) if one], real)
        own = None if counts.all() else counts.astype(np.float64)
        if self._class_weight is not None:
            of_classes = known.weights(where, self._class_weight, numbers[counts])[numbers]
            own = of_classes if own is None else own * of_classes
        parts: list[Any] = list(numbers) if sizes is None else np.split(numbers, sizes)
        targets: list[Any] = [np.asarray(part) for part in parts]
        if own is None:
            return targets, weights
        return targets, product(weights, [np.asarray(w) for w in (own if sizes is None else np.split(own, sizes))])

    def _learn_labels(self, where: str, flat: list[Any]) -> examples.Labels:
        """The labels of the classes: those of an earlier fit, or else those of this one."""
        known = self._learnt.get("labels")
        if known is not None:
            return known
        K = self.output.out_features if self._is_built else self._sizes()[1]
        examples.require_classes(where, flat)
        if K is None:
            labels = examples.Labels.of(flat)
            if len(labels.classes) < 2:
                shown = f"one class, {flat[0]!r}" if flat else "only padding"
                raise ValueError(f"{where}: y has {shown}, expected at least 2 classes to tell apart")
            self._learnt = {**self._learnt, "labels": labels}
            return labels
        labels = examples.Labels(np.arange(K))
        if not where.endswith(".fit"):
            return labels
        if not all(type(label) is int and 0 <= label < K for label in flat):
            labels = examples.Labels.of(flat)
        if len(labels.classes) > K:
            raise ValueError(f"{where}: y has {len(labels.classes)} classes, expected at most classes = {K}")
        if len(labels.classes) < K:
            # The model could predict a class that has no name.
            raise ValueError(
                f"{where}: y has {len(labels.classes)} classes, {labels.shown()}, expected classes = {K}, or whole "
                f"numbers from 0 to {K - 1}, of which some may be left out"
            )
        self._learnt = {**self._learnt, "labels": labels}
        return labels

    def predict_proba(self, X: Any, *, batch_size: int = 256, group: str | None = None) -> Any:
        """The probabilities softmax(W h + b) of the classes, in the order of ``classes_``.

        Parameters
        ----------
        X
            Examples, as in `fit`.
        batch_size : int
            The number of examples computed at a time.
        group : str, optional
            As in `fit`.

        Returns
        -------
        (N, classes) array, or for a tagger a list with a (T_i, classes) array for each example

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
        (N,) array of labels, or for a tagger a list with a (T_i,) array for each example

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As in `predict_proba`.
        """
        return self._map(self._outputs("predict", X, batch_size, group), self._likeliest)

    def _likeliest(self, xp: Any, logits: Array) -> Array:
        numbers = xp.argmax(logits, axis=-1)
        labels = self._learnt.get("labels")
        if labels is None or labels.are_numbers:
            return numbers
        return labels.decode(_dispatch.to_numpy(numbers))

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
        """The share of the labels that `predict` gets right.

        Parameters
        ----------
        X, y, sample_weight, mask, group
            As in `fit`. A padding label of `fit` does not count here either.
        batch_size : int
            As in `predict_proba`.

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As in `fit` and `predict_proba`; or `fit` has not seen a label.
        """
        where = f"{type(self).__name__}.score"
        self._require_fitted(where)
        read = self._read(where, X, y, group, sample_weight, mask)
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
    input_size, classes : int, optional
        A size that is left out is taken from the examples of each `fit`. Then `fit` starts with new parameters, as
        scikit-learn's estimators do. A model with both sizes has its parameters at once, and each `fit` continues
        with its present ones.
    hidden_size : int
    num_layers : int
        Layers of the recurrent stack.
    pooling : {"last", "mean", "attention"}
        h: the output of the stack at the last valid step (for the backward direction, at the first); the mean over the
        valid steps; or sum_t alpha_t h_t with alpha = softmax(u^T tanh(W h_t + b)), the attention of Yang et al.
        "last" with a ``merge`` other than "concat" is the final states of both directions, merged, without the
        addition of ``residual``.
    cell : {"gru", "lstm", "rnn", "indrnn", "mingru", "minlstm"}
    bidirectional, merge, reverse
        As in `gpurnn.GRU`.
    num_embeddings : int, optional
        If given, inputs are tokens in [0, num_embeddings), embedded into ``input_size`` numbers.
    activation, leak, reset_after, update
        Options of the cell: the first two of `gpurnn.RNN`, the others of `gpurnn.GRU`. None: the cell's default.
    cell_options : dict, optional
        Any options of the cell by name, such as ``{"peephole": True, "layer_norm": True}``: those of its layer,
        `gpurnn.RNN`, `gpurnn.LSTM` or `gpurnn.GRU`.
    dropout : float
        Rate of the dropout on the (embedded) inputs, between the layers and before the head.
    variational_dropout, recurrent_dropout, residual, init
        As in `gpurnn.GRU`.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        The source of the initial parameters, and in `fit` of the order of the examples, the split and dropout.
    standardize_inputs : bool, optional
        Whether the first `fit` learns the mean and the standard deviation of each feature, and all methods that take
        examples then scale features to mean 0 and deviation 1. A call, `vjp` and the losses take scaled inputs. None:
        only if ``input_size`` is left out.
    random_state : int, numpy.random.RandomState or numpy.random.Generator, optional
        scikit-learn's name for ``rng``; it is used instead of ``rng``.
    epochs, batch_size, optimizer, lr, schedule, clip_norm, l2, validation_split, patience, class_weight, verbose
        Defaults of `fit`, so that scikit-learn's tools can search over them.

    Attributes
    ----------
    classes_ : (classes,) array
        The label of each class.
    n_features_in_ : int
        The number of features of a step.
    feature_names_in_ : array of str
        The columns of the tables that were passed to `fit`; missing if arrays were passed.
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

    Sizes may be left out, and options of `fit` passed to the constructor, as scikit-learn's tools expect:

    >>> words = ["up" if c else "down" for c in classes]
    >>> model = SequenceClassifier(hidden_size=8, epochs=20, lr=0.01).fit(sequences, words)
    >>> model.classes_, model.predict(sequences[:2]).tolist() == words[:2]
    (array(['down', 'up'], dtype='<U4'), True)
    """

    _estimator_type = "classifier"
    _poolings = POOLINGS
    _one_class_text = "SequenceRegressor"

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int = 64,
        classes: int | None = None,
        num_layers: int = 1,
        *,
        cell: str = "gru",
        bidirectional: bool = False,
        merge: Merge = "concat",
        reverse: bool = False,
        pooling: str = "last",
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
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(locals())


class SequenceTagger(_Classifier):
    r"""Many to many, of the same length: a class for each step of a sequence.

    h_t = recurrent stack(x_t, h_{t-1}), P(class_t | x_1 .. x_t) = softmax(W_hy h_t + b_y); with a bidirectional stack
    given all of x_1 .. x_T.

    Parameters
    ----------
    input_size, hidden_size, classes, num_layers, cell, bidirectional, merge, reverse, num_embeddings, activation,
    leak, reset_after, update, cell_options, dropout, variational_dropout, recurrent_dropout, residual, init, dtype,
    rng, standardize_inputs, random_state, epochs, batch_size, optimizer, lr, schedule, clip_norm, l2,
    validation_split, patience, class_weight, verbose
        As in `SequenceClassifier`.

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
    Whether the number of ones so far is odd:

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

    _one_class_text = "SequenceRegressor(..., pooling=None)"

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int = 64,
        classes: int | None = None,
        num_layers: int = 1,
        *,
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
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__({**locals(), "pooling": None})
