"""Examples and labels in all usual forms become the same arrays; errors name invalid values by the caller's place."""

import decimal
import fractions
import warnings

import numpy as np
import pytest

from gpurnn.models.examples import Labels, array_of, labels_in, numbers, sequences

F32 = np.dtype("float32")


class Tensor:
    """A tensor of a library that shares its memory only by DLPack."""

    requires_grad = False

    def __init__(self, values):
        self.values = np.asarray(values)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return Tensor(self.values[i])

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()

    def __dlpack__(self, **options):
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        return self.values.__dlpack__(**options)


def read(data, **options):
    return sequences("fit", "X", data, **{"dtype": F32, **options})


def frames():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    return {"pandas": pandas.DataFrame, "polars": polars.DataFrame}


@pytest.mark.parametrize(
    "value",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        [np.float64(1), np.int8(2), True + 2],
        [decimal.Decimal(1), fractions.Fraction(2), 3],
        np.array([1, 2, 3], "float16"),
        np.array([1, 2, 3], ">i8"),
        np.array([1, 2, 3], np.longdouble),
        np.arange(7)[1:4],
        np.ma.array([1, 2, 3], mask=False),
        Tensor([1, 2, 3]),
    ],
    ids=["list", "tuple", "scalars", "objects", "float16", "big-endian", "longdouble", "strided", "masked", "dlpack"],
)
def test_numbers_of_any_kind(value):
    array = numbers("fit", "y", value, F32)
    assert array.dtype == F32
    np.testing.assert_array_equal(array, [1, 2, 3])


def test_bools_are_0_and_1():
    np.testing.assert_array_equal(numbers("fit", "y", [True, False], F32), [1, 0])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_series_of_any_kind(library):
    frame = frames()[library]
    np.testing.assert_array_equal(numbers("fit", "y", frame({"a": [1, 2, 3]})["a"], F32), [1, 2, 3])
    assert np.isnan(numbers("fit", "y", frame({"a": [1.0, None, 3.0]})["a"], F32)[1])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("abc", TypeError, "y is a str"),
        ({"a": 1}, TypeError, "y is a dict"),
        (["a", "b"], TypeError, "y holds text, expected numbers"),
        ([1, "b"], TypeError, "y holds text, expected numbers"),
        ([1, object()], TypeError, r"y\[1\] is an? object, expected a number"),
        ([1, 2j], TypeError, "y holds complex128 values, expected numbers"),
        (np.array(["2026-01-01"], "M8[D]"), TypeError, "y holds dates or durations, expected numbers"),
        ([[1, 2], [3]], ValueError, "y holds lists of different lengths, expected a rectangle"),
        ([1e300], ValueError, r"y holds 1e\+300, which is beyond the range of float32"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), ValueError, "y has masked entries"),
    ],
)
def test_what_is_no_number_is_rejected_by_name(value, error, message):
    with pytest.raises(error, match=f"^fit: {message}"):
        numbers("fit", "y", value, F32)


def test_a_tensor_that_cannot_be_shared_says_why_and_what_to_do():
    tensor = Tensor([1.0])
    tensor.requires_grad = True
    with pytest.raises(TypeError, match=r"^fit: y is a .*Tensor that cannot be shared: .*; pass y.detach\(\)$"):
        numbers("fit", "y", tensor, F32)


def test_integers_that_lose_digits_are_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers("fit", "y", [2**24, -(2**24)], F32)
        numbers("fit", "y", [2**53], np.dtype("float64"))
        numbers("fit", "y", [0.1], F32)  # a float may be rounded
    with pytest.warns(UserWarning, match="y holds integers above 16,777,216, which float32 rounds: digits are lost"):
        numbers("fit", "y", [2**24 + 1], F32)
    with pytest.warns(UserWarning, match="which float64 rounds"):
        numbers("fit", "y", np.array([-(2**63)]), np.dtype("float64"))


X = np.arange(12.0).reshape(2, 3, 2)


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.astype("float16"),
        X.astype(int),
        X.tolist(),
        list(X),
        list(X.astype(">f4")),
        Tensor(X),
        [Tensor(x) for x in X],
    ],
    ids=["array", "float16", "int", "lists", "list of arrays", "big-endian", "tensor", "list of tensors"],
)
def test_sequences_of_several_features(data):
    examples = read(data)
    assert examples.names == ["X[0]", "X[1]"]
    for array, expected in zip(examples.arrays, X, strict=True):
        assert array.dtype == F32
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    "data",
    [X[:, :, 0], X[:, :, 0].tolist(), list(X[:, :, 0]), X[:, :, :1], Tensor(X[:, :, 0])],
    ids=["matrix", "lists", "vectors", "three axes", "tensor"],
)
def test_sequences_of_one_feature(data):
    np.testing.assert_array_equal(read(data).arrays, X[:, :, :1])


def test_sequences_of_different_lengths():
    assert [a.shape for a in read([[1, 2, 3], [4]]).arrays] == [(3, 1), (1, 1)]
    assert [a.shape for a in read([np.ones((4, 2)), [[1, 2]]]).arrays] == [(4, 2), (1, 2)]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables(library):
    frame = frames()[library]
    wide = frame({"t0": [1, 2], "t1": [3, 4], "t2": [5, 6]})
    np.testing.assert_array_equal(read(wide).arrays, [[[1], [3], [5]], [[2], [4], [6]]])
    each = read([frame({"a": [1, 2], "b": [3, 4]}), frame({"b": [5], "a": [6]})])
    assert each.features == ("a", "b")
    np.testing.assert_array_equal(each.arrays[0], [[1, 3], [2, 4]])
    np.testing.assert_array_equal(each.arrays[1], [[6, 5]])
    long = frame({"who": ["x", "y", "x"], "a": [1, 2, 3], "b": [4, 5, 6]})
    groups = read(long, group="who")
    assert (groups.features, groups.groups) == (("a", "b"), ["x", "y"])
    np.testing.assert_array_equal(groups.arrays[0], [[1, 4], [3, 6]])
    np.testing.assert_array_equal(groups.arrays[1], [[2, 5]])
    np.testing.assert_array_equal(read(long, group="who", features=("b", "a")).arrays[1], [[5, 2]])
    tokens = read(long, group="who", features=("a",), tokens=True).arrays
    assert [t.tolist() for t in tokens] == [[1, 3], [2]]
    assert all(t.dtype.kind == "i" for t in tokens)


def test_tokens():
    assert [t.tolist() for t in read([[1, 2], [3]], tokens=True).arrays] == [[1, 2], [3]]
    assert [t.tolist() for t in read(np.array([[1, 2], [3, 4]], np.uint8), tokens=True).arrays] == [[1, 2], [3, 4]]
    with pytest.raises(TypeError, match=r"^fit: X\[1\] has dtype float64, expected integers, as tokens are"):
        read([[1, 2], [0.5]], tokens=True)


def nan_at(step, feature):
    x = np.ones((4, 6, 2))
    x[3, step, feature] = np.nan
    return x


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (nan_at(5, 0), {}, ValueError, r"X\[3\] holds NaN at step 5 in feature 0, expected finite numbers"),
        (nan_at(5, 1)[:, :, 1], {}, ValueError, r"X\[3\] holds NaN at step 5, expected finite numbers"),
        ([[1, 2], [3, np.inf]], {}, ValueError, r"X\[1\] holds infinity at step 1"),
        ([], {}, ValueError, "X is empty, expected at least one example"),
        ([[1.0], []], {}, ValueError, r"X\[1\] has no steps, expected at least one"),
        ([np.ones((2, 3)), np.ones((2, 4))], {}, ValueError, r"X\[1\] has 4 features, expected 3, as X\[0\] has"),
        (np.ones((2, 3, 4)), {"width": 3}, ValueError, r"X\[0\] has 4 features, expected 3, as the model"),
        (np.ones(3), {}, ValueError, r"X has shape \(3,\), expected \(N, T, features\), or \(N, T\)"),
        (np.ones((1, 2, 3, 4)), {}, ValueError, r"X has shape \(1, 2, 3, 4\)"),
        (3, {}, TypeError, "X is an int"),
        ("text", {}, TypeError, "X is a str"),
        ([["a"]], {}, TypeError, r"X\[0\] holds text, expected numbers"),
        ([1.0, 2.0], {}, ValueError, r"X\[0\] has shape \(\), expected \(T, features\)"),
        ([[1.0]], {"group": "who"}, TypeError, "group is 'who', which is for tables, but X is a list"),
    ],
)
def test_what_is_no_example_is_rejected_by_name(data, options, error, message):
    with pytest.raises(error, match=f"^fit: {message}"):
        read(data, **options)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_what_a_table_lacks_is_named(library):
    frame = frames()[library]
    table = frame({"who": ["x", "x", "y"], "a": [1.0, 2.0, None]})
    with pytest.raises(ValueError, match=r"^fit: X of who 'y' holds NaN at step 0 in 'a', expected finite numbers"):
        read(table, group="who")
    with pytest.raises(ValueError, match=r"^fit: X has no column 'whom', expected one of who, a"):
        read(table, group="whom")
    with pytest.raises(ValueError, match=r"^fit: X has no column 'b', expected b"):
        read(table, group="who", features=("b",))
    with pytest.raises(ValueError, match=r"^fit: X\[1\] has no column 'a', expected a"):
        read([frame({"a": [1]}), frame({"b": [1]})])
    with pytest.raises(TypeError, match=r"^fit: X\['a'\]\[0\] is a str, expected a number"):
        read(frame({"who": [1], "a": ["b"]}), group="who")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([3, 1, 3], [1, 3]),
        (np.array([1, -1], np.int8), [-1, 1]),
        ([True, False], [False, True]),
        (["b", "a", "b"], ["a", "b"]),
        ([(1, 2), (0, 1)], [(0, 1), (1, 2)]),
        (["a", 1, "a"], ["a", 1]),
        (np.array([[2], [1]]), [1, 2]),
        (Tensor([5, 4]), [4, 5]),
    ],
    ids=["ints", "-1 and 1", "bools", "words", "pairs", "mixed", "column", "tensor"],
)
def test_labels(values, classes):
    values = labels_in("fit", "y", values)
    labels = Labels.of(values)
    assert labels.classes.tolist() == classes
    codes = labels.encode("fit", [f"y[{i}]" for i in range(len(values))], values)
    assert labels.decode(codes).tolist() == values


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_labels_of_a_column(library):
    assert labels_in("fit", "y", frames()[library]({"y": ["b", "a"]})["y"]) == ["b", "a"]


def test_a_label_that_fit_did_not_see_is_named():
    with pytest.raises(ValueError, match=r"^score: y\[1\] is 'c', which fit did not see, expected one of 'a', 'b'$"):
        Labels.of(["a", "b"]).encode("score", ["y[0]", "y[1]"], ["a", "c"])


@pytest.mark.parametrize("missing", [None, float("nan"), np.datetime64("NaT"), [1]], ids=str)
def test_a_missing_label_is_named(missing):
    with pytest.raises(ValueError, match=r"^fit: y\[1\] is .*, expected a label"):
        labels_in("fit", "y", ["a", missing])


def test_labels_of_another_shape_are_rejected():
    with pytest.raises(ValueError, match=r"y has shape \(2, 2\), expected \(N,\)"):
        labels_in("fit", "y", np.ones((2, 2)))
    with pytest.raises(TypeError, match="y is a str"):
        labels_in("fit", "y", "ab")


def test_no_copy_is_made_of_what_fits_already():
    x = np.ones(3, np.float32)
    assert array_of("fit", "y", x) is x
    assert np.shares_memory(array_of("fit", "y", Tensor(x)), x)
