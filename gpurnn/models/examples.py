"""Convert callers' examples and labels to the arrays that a model computes with: one for each example, of its dtype.

Functions and layers are strict about their arrays. Models also take lists, tables, tensors of other libraries, labels
in words and targets in any unit; all of these are converted here, once. A message names a value in the caller's terms:
``X[3] holds NaN at step 5``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch
from .._contract import Array

_CPU_DEVICES = (1, 3)
"""DLPack's device types whose memory NumPy can read: kDLCPU and kDLCUDAHost."""


def is_table(value: Any) -> bool:
    """Whether a value is a data frame, of pandas, polars or another library with columns that become NumPy arrays."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def array_of(where: str, name: str, value: Any) -> Array:
    """A list, series, tensor, NumPy scalar or array as an array of a supported library, of any dtype.

    Raises
    ------
    TypeError
        ``value`` is none of these, or a tensor that cannot be shared.
    ValueError
        Lists differ in length, or a masked array has masked entries.
    """
    if _arrays.has_masked(value):
        cure = f"; {_checks.unmasked(name)}" if isinstance(value, np.ma.MaskedArray) else ""
        raise ValueError(f"{where}: {name} has masked entries, expected numbers only{cure}")
    if isinstance(value, np.ma.MaskedArray):
        return np.asarray(value)
    if _dispatch.library_of(value) is not None:
        return value
    if hasattr(value, "to_numpy"):
        return value.to_numpy()
    if hasattr(value, "toarray"):
        raise TypeError(f"{where}: {name} is a sparse matrix, expected an array; pass {name}.toarray()")
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
        return _shared(where, name, value)
    if isinstance(value, (str, bytes, dict, set, frozenset)):
        raise TypeError(f"{where}: {name} is {_checks.described(value)}, expected numbers")
    if isinstance(value, (list, tuple)) and value and _dispatch.library_of(value[0]) not in (None, "numpy"):
        return _dispatch.namespace(where, **{f"{name}[{i}]": entry for i, entry in enumerate(value)}).stack(list(value))
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{where}: {name} holds lists of different lengths, expected a rectangle of numbers"
        ) from error


def _is_array(value: Any) -> bool:
    """Whether a value is one array, series or tensor of numbers or labels, not a sequence of such."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0 and not (value.dtype.kind == "O" and any(np.ndim(v) for v in value.flat))
    return any(hasattr(value, name) for name in ("to_numpy", "__dlpack__", "__array__", "toarray")) or (
        _dispatch.library_of(value) is not None
    )


def _shared(where: str, name: str, tensor: Any) -> Array:
    """A tensor of another library as an array over the same memory."""
    kind = f"{type(tensor).__module__.partition('.')[0]}.{type(tensor).__name__}"
    try:
        on_host = int(tensor.__dlpack_device__()[0]) in _CPU_DEVICES
        if on_host:
            return np.from_dlpack(tensor)
        import cupy

        return cupy.from_dlpack(tensor)
    except (BufferError, RuntimeError, TypeError) as error:
        detach = f"; pass {name}.detach()" if getattr(tensor, "requires_grad", False) else ""
        raise TypeError(f"{where}: {name} is a {kind} that cannot be shared: {error}{detach}") from error


def numbers(where: str, name: str, value: Any, dtype: np.dtype[Any], lost: list[str] | None = None) -> Array:
    """An array of any numbers or bools, converted to the model's ``dtype`` in the library of ``value``.

    A message about lost digits is a warning, or is added to ``lost``.

    Raises
    ------
    TypeError
        ``value`` holds something other than numbers.
    ValueError
        A number is beyond the range of ``dtype``.
    """
    array = array_of(where, name, value)
    if isinstance(array, np.ndarray) and array.dtype.kind == "O":
        array = _numbers_of_objects(where, name, array)
    kind = np.dtype(_checks.dtype_name(array)).kind
    if kind not in "biuf":
        said = (
            "text" if kind in "US" else "dates or durations" if kind in "mM" else f"{_checks.dtype_name(array)} values"
        )
        raise TypeError(f"{where}: {name} holds {said}, expected numbers")
    xp = _dispatch.namespace(where, **{name: array})
    said = ""
    with np.errstate(over="ignore"):
        converted = xp.astype(array, getattr(xp, dtype.name))
    if kind == "f":
        beyond = xp.isinf(converted) & ~xp.isinf(array)
        if bool(xp.any(beyond)):
            first = _dispatch.to_numpy(array)[_dispatch.to_numpy(beyond)][0]
            raise ValueError(f"{where}: {name} holds {float(first)}, which is beyond the range of {dtype.name}")
        said = _rounded(name, array, dtype)
    elif (
        kind in "iu"
        and array.size
        and int(abs(_dispatch.to_numpy(array).astype(object).reshape(-1)).max()) > _exact(dtype)
    ):
        said = f"{name} holds integers above {_exact(dtype):,}, which {dtype.name} rounds: digits are lost"
        said += '; dtype="float64" keeps them' if dtype.name == "float32" else ""
    if said and lost is not None:
        lost.append(said)
    elif said:
        _checks.warn(where, said)
    return converted


def dtype_of(array: Array) -> np.dtype[Any]:
    """The dtype of an array of a caller's numbers; float64 for Python objects."""
    dtype = np.dtype(_checks.dtype_name(array))
    return np.dtype(np.float64) if dtype.kind == "O" else dtype


def answer_dtype(own: np.dtype[Any], given: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of answers in the units of a caller's numbers: the model's, or float64 if theirs holds more digits."""
    return own if np.can_cast(given, own) else np.dtype(np.float64)


def _rounded(name: str, array: Array, dtype: np.dtype[Any]) -> str:
    """A warning if numbers differ by so little, relative to their size, that ``dtype`` loses the digits; else empty."""
    if not array.size or np.dtype(_checks.dtype_name(array)).itemsize <= dtype.itemsize:
        return ""
    values = _dispatch.to_numpy(array)
    columns = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    # This leaves out NaN, which stands for a missing number.
    low, high = np.fmin.reduce(columns, axis=0), np.fmax.reduce(columns, axis=0)
    with np.errstate(invalid="ignore", over="ignore"):
        spread, rounding = high - low, np.finfo(dtype).eps * np.maximum(abs(low), abs(high))
        lost = np.flatnonzero((spread > 0) & (rounding > 0.01 * spread))
    if not lost.size:
        return ""
    first = int(lost[0])
    return (
        f"{name} holds numbers about {float(high[first]):g} that differ by {float(spread[first]):g} at most, of which "
        f"{dtype.name} rounds the digits away; subtract their mean, or make the model with dtype='float64'"
    )


def _exact(dtype: np.dtype[Any]) -> int:
    """The largest integer up to which ``dtype`` holds every integer."""
    return int(2 ** (np.finfo(dtype).nmant + 1))


def _numbers_of_objects(where: str, name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    """Python objects, such as those of a column of decimals, as numbers; None is a missing number."""
    result = np.empty(array.shape)
    for place in np.ndindex(array.shape):
        value = array[place]
        try:
            result[place] = np.nan if is_missing(value) else float(value)
        except OverflowError as error:  # an int that is larger than every float
            at = "".join(f"[{i}]" for i in place)
            raise ValueError(f"{where}: {name}{at} is beyond the range of float64, expected finite numbers") from error
        except (TypeError, ValueError) as error:
            at = "".join(f"[{i}]" for i in place)
            raise TypeError(f"{where}: {name}{at} is {_checks.described(value)}, expected a number") from error
    return result


@dataclass(frozen=True)
class Sequences:
    """The inputs of some examples.

    Attributes
    ----------
    arrays : list of (T_i, F) arrays, or of (T_i,) integer arrays of tokens
    names : list of str
        The name of each in messages.
    features : tuple of str, optional
        The names of the F columns of a table.
    groups : list, optional
        The value of the group column for each example.
    """

    arrays: list[Array]
    names: list[str]
    features: tuple[str, ...] | None = None
    groups: list[Any] | None = None
    hint: str = ""
    """The advice in the message about a wrong number of targets."""


def sequences(
    where: str,
    name: str,
    data: Any,
    *,
    dtype: np.dtype[Any],
    width: int | None = None,
    tokens: bool = False,
    group: str | None = None,
    features: Sequence[str] | None = None,
) -> Sequences:
    """Read examples from any container.

    Parameters
    ----------
    data
        An (N, T, F) array, or (N, T) of one feature or of tokens; a sequence of (T_i, F) or (T_i,) arrays, lists,
        series, tensors or tables with a column per feature; a table whose column ``group`` says which rows are one
        example, in their order; or without ``group`` a table with a row for each example and a column for each step.
    width : int, optional
        F, if it is known.
    tokens : bool
        Whether the examples are integers (T_i,).
    features : sequence of str, optional
        The columns that tables must have; None takes those of the first, except ``group``.

    Raises
    ------
    TypeError, ValueError
        The data are not such examples; one has no steps, or another number of features; a number is NaN or infinite.
    """
    if group is not None:
        if not is_table(data):
            raise TypeError(
                f"{where}: group is {group!r}, which is for tables, but {name} is {_checks.described(data)}"
            )
        return _groups(where, name, data, dtype, group, features, tokens, width)
    if is_table(data):
        entries = list(data.to_numpy())
    elif _is_array(data) and not hasattr(data, "to_numpy"):
        array = array_of(where, name, data)
        if array.ndim not in ((2,) if tokens else (2, 3)):
            expected = "(N, T)" if tokens else "(N, T, features), or (N, T) for one feature"
            raise ValueError(f"{where}: {name} has shape {tuple(array.shape)}, expected {expected}")
        if not tokens and array.ndim == 2 and width not in (None, 1):
            cure = f"; pass [{name}] if it is one example" if array.shape[1] == width else ""
            raise ValueError(f"{where}: {name} has shape {tuple(array.shape)}, expected (N, T, {width}){cure}")
        entries = [array[i, ...] for i in range(array.shape[0])]
    else:
        entries = _arrays.entries(where, name, data, "a sequence with an entry for each example")
    if not entries:
        raise ValueError(f"{where}: {name} is empty, expected at least one example")
    names = [f"{name}[{i}]" for i in range(len(entries))]
    columns = tuple(features) if features is not None else None
    arrays: list[Array] = []
    lost: list[str] = []
    for label, entry in zip(names, entries, strict=True):
        if is_table(entry):
            columns = _columns_of(where, label, entry) if columns is None else columns
            arrays.append(_matrix(where, label, entry, columns, dtype, lost))
        elif tokens:
            arrays.append(_tokens(where, label, entry))
        else:
            array = numbers(where, label, entry, dtype, lost)
            arrays.append(array[:, None] if array.ndim == 1 else array)
    if lost:
        _checks.warn(where, lost[0])  # only once: the others are likely to be of the same kind
    _check(where, arrays, names, width, tokens, columns)
    hint = f"; each row of {name} is an example; where it is a step, pass group, the column that says of which"
    return Sequences(arrays, names, columns, hint=hint if is_table(data) else "")


def _groups(
    where: str,
    name: str,
    table: Any,
    dtype: np.dtype[Any],
    group: str,
    features: Sequence[str] | None,
    tokens: bool,
    width: int | None,
) -> Sequences:
    """An example for each value of the column ``group``, in the order of their first rows."""
    columns = _columns_of(where, name, table)
    if group not in columns:
        raise ValueError(f"{where}: {name} has no column {group!r}, expected one of {', '.join(columns)}")
    chosen = tuple(features) if features is not None else tuple(c for c in columns if c != group)
    if tokens and len(chosen) != 1:
        raise ValueError(f"{where}: {name} has {len(chosen)} columns of features, expected one, of tokens")
    values = _tokens(where, name, table[chosen[0]]) if tokens else _matrix(where, name, table, chosen, dtype)
    rows: dict[Any, list[int]] = {}
    for row, value in enumerate(table[group].to_numpy().tolist()):
        if is_missing(value):
            raise ValueError(f"{where}: {name}[{group!r}] is {value!r} in row {row}, expected the group of each row")
        rows.setdefault(value, []).append(row)
    if not rows:
        raise ValueError(f"{where}: {name} has no rows, expected at least one example")
    arrays = [values[places] for places in rows.values()]
    names = [f"{name} of {group} {value!r}" for value in rows]
    _check(where, arrays, names, width, tokens, chosen)
    return Sequences(arrays, names, chosen, list(rows))


def _columns_of(where: str, name: str, table: Any) -> tuple[str, ...]:
    columns = tuple(table.columns)
    if len(set(columns)) < len(columns):
        raise ValueError(f"{where}: {name} has two columns of one name, expected names that differ")
    return columns


def _matrix(
    where: str, name: str, table: Any, columns: tuple[str, ...], dtype: np.dtype[Any], lost: list[str] | None = None
) -> NDArray[Any]:
    """The (rows, columns) array of a table, its columns in this order."""
    missing = [c for c in columns if c not in tuple(table.columns)]
    if missing:
        raise ValueError(f"{where}: {name} has no column {missing[0]!r}, expected {', '.join(map(str, columns))}")
    if not columns:
        raise ValueError(f"{where}: {name} has no columns of features, expected at least one")
    return np.stack([numbers(where, f"{name}[{c!r}]", table[c], dtype, lost) for c in columns], axis=1)


def _tokens(where: str, name: str, value: Any) -> Array:
    array = array_of(where, name, value)
    if array.ndim != 1:
        raise ValueError(f"{where}: {name} has shape {tuple(array.shape)}, expected (T,) of tokens")
    if np.dtype(_checks.dtype_name(array)).kind not in "iu":
        raise TypeError(f"{where}: {name} has dtype {_checks.dtype_name(array)}, expected integers, as tokens are")
    return array


def _check(
    where: str, arrays: list[Array], names: list[str], width: int | None, tokens: bool, columns: tuple[str, ...] | None
) -> None:
    """Reject examples without steps, of another width than the first or than ``width``, and numbers not finite."""
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != (1 if tokens else 2):
            raise ValueError(f"{where}: {name} has shape {tuple(array.shape)}, expected (T, features)")
        if array.shape[0] == 0:
            raise ValueError(f"{where}: {name} has no steps, expected at least one")
        if tokens:
            continue
        expected = arrays[0].shape[1] if width is None else width
        if array.shape[1] != expected:
            like = f", as {names[0]} has" if width is None else ", as the model has been made or fitted with"
            raise ValueError(f"{where}: {name} has {array.shape[1]} features, expected {expected}{like}")
        require_finite(where, name, array, columns)


def require_finite(
    where: str, name: str, array: Array, columns: tuple[str, ...] | None = None, axis: str = "step"
) -> None:
    """Reject NaN and infinity in a (T, F) array, and say at which step, or other ``axis``, and of which feature."""
    xp = _dispatch.namespace(where, **{name: array})
    if bool(xp.all(xp.isfinite(array))):
        return
    values = _dispatch.to_numpy(array)
    step, feature = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
    what = "NaN" if np.isnan(values[step, feature]) else "infinity"
    of = (
        ""
        if values.shape[1] == 1 and columns is None
        else f" in {columns[feature]!r}"
        if columns
        else f" in feature {feature}"
    )
    raise ValueError(f"{where}: {name} holds {what} at {axis} {step}{of}, expected finite numbers")


def require_weights(where: str, name: str, values: NDArray[Any]) -> None:
    """Reject weights that are negative, NaN or infinite."""
    wrong = values[~(np.isfinite(values) & (values >= 0))]
    if wrong.size:
        raise ValueError(f"{where}: {name} holds {float(wrong[0])}, expected finite numbers of at least 0")


def moved(where: str, name: str, array: Array, like: Array) -> Array:
    """An array in the library of ``like``: NumPy arrays are moved to any library, others must be of it already."""
    library, other = _dispatch.library_of(like), _dispatch.library_of(array)
    if library == other:
        return _arrays.contiguous(array)
    if other != "numpy":
        raise TypeError(
            f"{where}: {name} is a {other} array, but the model's parameters are {library} arrays; "
            f"call model.to({other}) first"
        )
    return _dispatch.from_numpy(_dispatch.namespace(where, params=like), array)


def columns_by_group(
    where: str, name: str, table: Any, columns: Sequence[str], group: str | None, *, each: bool
) -> list[Any]:
    """The values of columns of a table for each group: one row, as all must be equal, or with ``each`` all rows.

    One column gives its values, several give tuples of their values.
    """
    for column in (*columns, group):
        if column not in tuple(table.columns):
            raise ValueError(
                f"{where}: {name} has no column {column!r}, expected one of {', '.join(map(str, table.columns))}"
            )
    values = [table[column].to_numpy().tolist() for column in columns]
    rows = values[0] if len(values) == 1 else list(zip(*values, strict=True))
    of_groups: dict[Any, list[Any]] = {}
    for key, row in zip(table[group].to_numpy().tolist(), rows, strict=True):
        of_groups.setdefault(key, []).append(row)
    if each:
        return list(of_groups.values())
    for key, group_rows in of_groups.items():
        other = next((row for row in group_rows if row != group_rows[0]), group_rows[0])
        if other != group_rows[0]:
            raise ValueError(
                f"{where}: {name} of {group} {key!r} has the targets {group_rows[0]!r} and {other!r}, expected one for "
                "each example"
            )
    return [group_rows[0] for group_rows in of_groups.values()]


@dataclass(frozen=True)
class Labels:
    """The caller's names of the classes, by their numbers in the model.

    Attributes
    ----------
    classes : (K,) array
        The label of each class: ints, bools, strings or any hashables, sorted if they can be compared.
    """

    classes: NDArray[Any]

    @classmethod
    def of(cls, values: Sequence[Hashable]) -> Labels:
        """The labels that occur in ``values``."""
        distinct = list(dict.fromkeys(values))
        with contextlib.suppress(TypeError):  # of kinds that cannot be compared: in the order of their first occurrence
            distinct = sorted(distinct)  # type: ignore[type-var]
        return cls(_array_of_labels(distinct))

    def encode(self, where: str, names: Sequence[str], values: Sequence[Hashable]) -> NDArray[np.int64]:
        """The number of each label; ``names`` are their names in messages."""
        number = {label: i for i, label in enumerate(self.classes.tolist())}
        encoded = np.empty(len(values), np.int64)
        for i, value in enumerate(values):
            place = number.get(value)
            if place is None:
                raise ValueError(
                    f"{where}: {names[i]} is {value!r}, which fit did not see, expected one of {self.shown()}"
                )
            encoded[i] = place
        return encoded

    def shown(self) -> str:
        """The first labels, for a message."""
        labels = self.classes.tolist()
        return ", ".join(map(repr, labels[:10])) + (", ..." if len(labels) > 10 else "")

    def weights(
        self, where: str, weight: Mapping[Any, float] | Literal["balanced"], numbers: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The weight of each class, given by label, or such that all classes count alike among ``numbers``."""
        K = len(self.classes)
        if isinstance(weight, str):
            _checks.choice(where, "class_weight", weight, ("balanced",))
            counts = np.bincount(numbers, minlength=K)
            present = np.count_nonzero(counts)
            return np.where(counts > 0, len(numbers) / (present * np.maximum(counts, 1)), 0.0)
        if not isinstance(weight, Mapping):
            raise TypeError(
                f"{where}: class_weight is {_checks.described(weight)}, expected 'balanced' or a dict of weights by "
                "label"
            )
        labels = list(weight)
        weights = np.ones(K)
        places = self.encode(where, [f"class_weight's label {label!r}" for label in labels], labels)
        for label, place in zip(labels, places, strict=True):
            name = f"class_weight[{label!r}]"
            weights[place] = _checks.finite(where, name, _checks.non_negative(where, name, weight[label]))
        return weights

    def saved(self, where: str) -> list[Any]:
        """The labels, JSON-compatible."""
        labels: list[Any] = self.classes.tolist()
        for label in labels:
            if type(label) not in (bool, int, float, str):
                raise TypeError(
                    f"{where}: the label {label!r} is {_checks.described(label)}, expected labels that a file can "
                    "hold: strings, ints, floats or bools"
                )
        return labels

    @classmethod
    def restored(cls, labels: list[Any]) -> Labels:
        """The reverse of `saved`."""
        if not isinstance(labels, list) or any(type(label) not in (bool, int, float, str) for label in labels):
            raise ValueError(f"labels is {labels!r}, expected a list of labels")
        return cls(_array_of_labels(labels))

    @property
    def are_numbers(self) -> bool:
        """Whether the label of each class is its number."""
        return self.classes.dtype.kind == "i" and bool((self.classes == np.arange(len(self.classes))).all())

    def decode(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """The label of each number."""
        labels: NDArray[Any] = self.classes[numbers]
        return labels


def require_classes(where: str, labels: Sequence[Hashable]) -> None:
    """Reject numbers with fractions that hardly ever recur: they are values, not classes."""
    count, several = len(set(labels)), 10
    if several < count > len(labels) / 2 and any(isinstance(v, float) and not v.is_integer() for v in labels):
        raise ValueError(
            f"{where}: y holds {count} different numbers for {len(labels)} targets, which looks continuous, expected "
            "classes; for values take SequenceRegressor"
        )


def _array_of_labels(labels: list[Any]) -> NDArray[Any]:
    """A one-dimensional array, of objects if NumPy has no dtype that keeps the labels unchanged."""
    if labels and all(type(label) is type(labels[0]) for label in labels):
        plain = np.array(labels)
        back = plain.tolist()
        if plain.ndim == 1 and plain.dtype.kind in "biufU" and back == labels and type(back[0]) is type(labels[0]):
            return plain
    array = np.empty(len(labels), object)
    array[:] = labels
    return array


def labels_in(where: str, name: str, values: Any) -> list[Hashable]:
    """Labels (N,) as Python values, from a list, array, series or tensor; reject missing or unhashable ones."""
    if is_table(values) or (hasattr(values, "to_numpy") and getattr(values, "ndim", 1) > 1):
        raise TypeError(f"{where}: {name} is {_checks.described(values)}, expected one column: a label for each")
    if _is_array(values):
        array = array_of(where, name, values)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1:
            raise ValueError(f"{where}: {name} has shape {tuple(array.shape)}, expected (N,): one label for each")
        values = _dispatch.to_numpy(array)
    entries = _arrays.entries(where, name, values, "a label for each")
    labels = [None if _arrays.has_masked(v) else v.item() if getattr(v, "shape", None) == () else v for v in entries]
    for i, label in enumerate(labels):
        # A label that is not itself is NaN, NaT or pandas' NA.
        if label is None or not isinstance(label, Hashable) or is_missing(label):
            raise ValueError(f"{where}: {name}[{i}] is {label!r}, expected a label")
    return labels


def is_missing(label: Any) -> bool:
    """Whether a value stands for a missing one: None, NaN, NaT or pandas' NA."""
    if label is None:
        return True
    try:
        return bool(label != label)
    except TypeError:  # pandas.NA
        return True


def scale_of(
    values: Array, weights: NDArray[np.float64] | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The mean and the standard deviation of each column of an (n, K) or (n,) array; the latter is 1 for a constant.

    With ``weights`` (n,) both are weighted: a row of weight 0 might as well be missing.

    A feature is constant if its deviation may be the rounding error of its mean (the rule of scikit-learn's scalers).
    Its mean is then one of its values, without the rounding error, which would be far from small for large values.
    """
    values = _dispatch.to_numpy(values).astype(np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if weights is not None and weights.any():
        values, weights = values[weights > 0], weights[weights > 0]
    # Scaling by a power of two changes no digits, and keeps the squares of very large and very small values in range.
    _, power = np.frexp(np.abs(values).max(axis=0))
    values = np.ldexp(values, -power)
    if weights is None or not weights.any():
        mean, std = values.mean(axis=0), values.std(axis=0)
    else:
        mean = np.average(values, axis=0, weights=weights)
        std = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
    rounding = len(values) * np.finfo(np.float64).eps
    constant = std**2 <= rounding * std**2 + (rounding * mean) ** 2
    mean = np.where(constant, values[0], mean)
    return np.ldexp(mean, power), np.where(constant, 1.0, np.ldexp(std, power))
