"""Arrays of PyTorch, JAX and other libraries: gpurnn computes on views of them, and results have the caller's kind."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import gpurnn
from gpurnn import _foreign, gradients, losses, optimizers

RNG = np.random.default_rng(0)
T, B, I, H = 5, 2, 3, 4


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype("float32")


class Shared:
    """An array of an unknown library, which exchanges memory only by DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __array_namespace__(self):
        return Namespace

    def __array__(self, dtype=None, copy=None):
        return self.array


class Namespace:
    @staticmethod
    def from_dlpack(array):
        return Shared(np.from_dlpack(array))


class Library:
    def __init__(self, name: str) -> None:
        self.name = name
        if name == "dlpack":
            self.kind, self.make = Shared, Shared
        elif name == "torch":
            torch = pytest.importorskip("torch")
            self.kind, self.make = torch.Tensor, torch.from_numpy
        else:
            jax = pytest.importorskip("jax")
            self.kind, self.make = jax.Array, importlib.import_module("jax.numpy").asarray

    def of(self, tree):
        """Convert the NumPy arrays in tuples and dicts to arrays of the library."""
        if isinstance(tree, (tuple, list)):
            return type(tree)(map(self.of, tree))
        if isinstance(tree, dict):
            return {name: self.of(entry) for name, entry in tree.items()}
        return self.make(tree) if isinstance(tree, np.ndarray) else tree

    def plain(self, tree):
        """The reverse of `of`; a NumPy array is rejected."""
        if isinstance(tree, (tuple, list)):
            return type(tree)(map(self.plain, tree))
        if isinstance(tree, dict):
            return {name: self.plain(entry) for name, entry in tree.items()}
        assert not isinstance(tree, np.ndarray)
        return np.asarray(tree) if isinstance(tree, self.kind) else tree


@pytest.fixture(params=["dlpack", "torch", "jax"])
def library(request):
    return Library(request.param)


def same(result, expected) -> None:
    if isinstance(expected, (tuple, list)):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            same(one, other)
    elif isinstance(expected, dict):
        assert result.keys() == expected.keys()
        same(list(result.values()), list(expected.values()))
    elif isinstance(expected, np.ndarray):
        # JAX disables float64 by default.
        assert result.dtype == expected.dtype or result.dtype == "float32"
        np.testing.assert_array_equal(result, expected.astype(result.dtype))
    else:
        assert result == expected


X, LENGTHS = normal(T, B, I), np.array([5, 2])
LABELS, MASK = np.array([[0, 1]] * T), np.array([[True, False]] * T)
STATE = normal(B, H)
FUNCTIONS = {
    "rnn": (gpurnn.rnn, (X, normal(H, I), normal(H, H), None, None, STATE), {"lengths": LENGTHS}, "pair"),
    "lstm": (
        gpurnn.lstm, (X, normal(4 * H, I), normal(4 * H, H), None, None, (STATE, None)), {"lengths": LENGTHS}, "pair",
    ),
    "gru": (gpurnn.gru, (X, normal(3 * H, I), normal(3 * H, H)), {"resets": MASK}, "pair"),
    "gru_cell": (gpurnn.gru_cell, (X[0], normal(3 * H, I), normal(3 * H, H)), {}, "one"),
    "lstm_cell": (gpurnn.lstm_cell, (X[0], normal(4 * H, I), normal(4 * H, H)), {}, "state"),
    "dense": (gpurnn.dense, (X, normal(2, I), normal(2)), {}, "one"),
    "layer_norm": (gpurnn.layer_norm, (X,), {}, "one"),
    "dropout": (gpurnn.dropout, (X, 0.5, 3), {}, "one"),
    "embedding": (gpurnn.embedding, (LABELS, normal(7, H)), {}, "one"),
    "linear_scan": (gpurnn.linear_scan, (normal(T, B, I), X), {}, "one"),
    "attention": (gpurnn.attention, (X, normal(6, B, I)), {}, "pair"),
    "cross_entropy": (losses.cross_entropy, (X, LABELS), {"mask": MASK, "reduction": "none"}, "one"),
    "mse": (losses.mse, (X, normal(T, B, I)), {"reduction": "none"}, "one"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_the_kind_and_the_bits_of_what_goes_in(name, library):
    function, args, options, outputs = FUNCTIONS[name]
    expected, pullback = function.vjp(*args, **options)
    result, foreign_pullback = function.vjp(*library.of(args), **library.of(options))
    same(library.plain(result), expected)
    same(library.plain(function(*library.of(args), **library.of(options))), expected)
    cotangents = (expected[0], None) if outputs in ("pair", "state") else expected
    for _ in range(2):
        same(library.plain(foreign_pullback(library.of(cotangents))), pullback(cotangents))


@pytest.mark.parametrize("wing", ["reference", "native"])
def test_a_layer_gives_the_kind_of_what_goes_in_and_gradients_like_its_parameters(wing, library):
    with gpurnn.use(wing):
        for layer in (
            gpurnn.LSTM(I, H, num_layers=2, bidirectional=True), gpurnn.GRU(I, H, batch_first=True), gpurnn.RNN(I, H),
        ):  # fmt: skip
            expected, pullback = layer.vjp(X)
            result, foreign_pullback = layer.vjp(library.of(X))
            same(library.plain(result), expected)
            same(library.plain(layer(library.of(X))), layer(X))
            if not layer.bidirectional:
                step, state = layer.step(X[0])
                foreign_step, foreign_state = layer.step(library.of(X[0]))
                same(library.plain((foreign_step, foreign_state)), (step, state))
                same(library.plain(layer.step(library.of(X[0]), foreign_state)), layer.step(X[0], state))
            inputs, grads = foreign_pullback((library.of(expected[0]), None))
            expected_inputs, expected_grads = pullback((expected[0], None))
            same(library.plain(inputs), expected_inputs)
            same(grads, expected_grads)
            gpurnn.SGD(lr=0.1).step(layer.params, grads)


def test_a_sequential_gives_the_bits_of_numpy_arrays_with_dropout(library):
    model = gpurnn.Sequential(gpurnn.Dropout(0.5), gpurnn.GRU(I, H), gpurnn.Dropout(0.5), gpurnn.Dense(H, 2))
    expected, pullback = model.vjp(X, lengths=LENGTHS, rng=np.random.default_rng(1))
    generator = np.random.default_rng(1)
    result, foreign_pullback = model.vjp(library.of(X), lengths=library.of(LENGTHS), rng=generator)
    same(library.plain(result), expected)
    same(library.plain(foreign_pullback((library.of(expected[0]), None))[0]), pullback((expected[0], None))[0])
    state = library.plain(model(library.of(X[:2]))[1])
    same(library.plain(model(library.of(X[2:]), library.of(state))), model(X[2:], state))


def test_views_go_in_and_out_without_a_copy():
    torch = pytest.importorskip("torch")
    x = torch.ones(3, 4)
    assert _foreign.view_of("f", "x", x, _foreign.kind_of(x)).__array_interface__["data"][0] == x.data_ptr()
    y = gpurnn.layer_norm(x)
    assert y.is_contiguous()
    assert gpurnn.Dropout(0.5)(x) is x
    array = np.ones(5)
    assert _foreign.kind_of(x).back(array).data_ptr() == array.__array_interface__["data"][0]


def test_strided_tensors_and_their_conjugates_are_read_as_they_are():
    torch = pytest.importorskip("torch")
    x = torch.arange(24.0).reshape(2, 3, 4)
    for view in (x.permute(2, 1, 0), x[:, :, ::2], x.expand(2, 3, 4)):
        same(gpurnn.layer_norm(view).numpy(), gpurnn.layer_norm(np.ascontiguousarray(view.numpy())))
    a, b = torch.complex(x, x), torch.complex(x, -x)
    h = gpurnn.linear_scan(a.conj(), b)
    same(h.numpy(), gpurnn.linear_scan(a.conj().resolve_conj().numpy(), b.numpy()))


def test_gradients_are_clipped_and_measured_as_their_kind(library):
    grads = {"a": normal(3, 2), "b": normal(4)}
    for function, args in (
        (gradients.global_norm, ()), (gradients.clip_by_global_norm, (0.5,)), (gradients.clip_by_value, (0.1,)),
    ):  # fmt: skip
        same(library.plain(function(library.of(grads), *args)), function(grads, *args))


def test_an_optimizer_changes_the_memory_of_tensors():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(3, 2)
    loss = module(torch.ones(1, 3)).sum()
    loss.backward()
    params = dict(module.named_parameters())
    expected = {name: p.detach().numpy().copy() for name, p in params.items()}
    grads = {name: p.grad for name, p in params.items()}
    ours, theirs = optimizers.Adam(lr=0.1), optimizers.Adam(lr=0.1)
    pointers = [p.data_ptr() for p in params.values()]
    for _ in range(3):
        ours.step(params, grads)
        theirs.step(expected, {name: g.numpy() for name, g in grads.items()})
    same({name: p.detach().numpy() for name, p in params.items()}, expected)
    assert [p.data_ptr() for p in params.values()] == pointers
    # Autograd notices that the array it saved has changed since.
    x = torch.ones(1, 3, requires_grad=True)
    y = module(x).sum()
    ours.step(params, grads)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def message(call, error: type[Exception] = TypeError) -> str:
    with pytest.raises(error) as rejection:
        call()
    return str(rejection.value)


def test_an_optimizer_rejects_arrays_that_cannot_be_changed():
    jax = pytest.importorskip("jax")
    params = {"w": jax.numpy.ones(3)}
    text = message(lambda: optimizers.SGD(lr=0.1).step(params, params))
    assert text.startswith("SGD.step: params['w'] is an array of JAX")
    assert text.endswith("pass numpy.array(params['w'])")


def test_kinds_do_not_mix(library):
    w_ih, w_hh = normal(4 * H, I), normal(4 * H, H)
    for x, one, other in ((X, library.of(w_ih), w_hh), (library.of(X), w_ih, w_hh), (X, w_ih, library.of(w_hh))):
        text = message(lambda x=x, one=one, other=other: gpurnn.lstm(x, one, other))
        assert "expected one library; convert one of them, with " in text
        assert "numpy.from_dlpack(" in text
    text = message(lambda: gpurnn.LSTM(I, H)(library.of(X), lengths=LENGTHS))
    assert "LSTM: x is a" in text
    assert "but lengths is a numpy array" in text
    _, pullback = gpurnn.LSTM(I, H).vjp(library.of(X))
    text = message(lambda: pullback((normal(T, B, H), None)))
    assert text.startswith("LSTM: cotangents[0] is an array of shape (5, 2, 4), expected a")


def test_the_advice_converts():
    torch = pytest.importorskip("torch")
    text = message(lambda: gpurnn.dense(torch.ones(2, 3), np.ones((4, 3), np.float32)))
    assert text.endswith("convert one of them, with torch.from_dlpack(weight) or numpy.from_dlpack(x)")
    weight = eval("torch.from_dlpack(weight)", {"torch": torch, "weight": np.ones((4, 3), np.float32)})
    assert gpurnn.dense(torch.ones(2, 3), weight).shape == (2, 4)


def test_casts_are_named_as_pytorch_writes_them():
    torch = pytest.importorskip("torch")
    x, layer = torch.zeros(T, B, I, dtype=torch.float64), gpurnn.GRU(I, H)
    text = message(lambda: layer(x))
    assert text.endswith("x.to(torch.float32)")
    layer(eval("x.to(torch.float32)", {"torch": torch, "x": x}))
    assert message(lambda: layer(x.to(torch.bfloat16))).endswith("cast it with x.float()")


def test_tensors_that_autograd_follows_are_rejected():
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 3, requires_grad=True)
    assert "gpurnn.torch, or pass x.detach()" in message(lambda: gpurnn.layer_norm(x))
    with torch.no_grad():
        assert not gpurnn.layer_norm(x).requires_grad


def test_arrays_that_jax_traces_are_rejected():
    jax = pytest.importorskip("jax")
    assert "gpurnn.jax" in message(lambda: jax.jit(gpurnn.layer_norm)(jax.numpy.ones((2, 3))))


def test_tensors_of_other_devices_and_layouts_are_rejected():
    torch = pytest.importorskip("torch")
    assert "x.cpu()" in message(lambda: gpurnn.layer_norm(torch.ones(2, 3, device="meta")))
    assert "x.to_dense()" in message(lambda: gpurnn.layer_norm(torch.ones(2, 3).to_sparse()))
    text = message(lambda: gpurnn.dense(torch.ones(2, 3), torch.ones(4, 3, device="meta")))
    assert "one device; move one of them, with x.to('meta') or weight.to('cpu')" in text


def test_errors_of_a_call_are_those_of_the_function(library):
    with pytest.raises(TypeError, match="unexpected keyword argument 'lengthz'"):
        gpurnn.lstm(library.of(X), lengthz=3)
    with pytest.raises(ValueError, match=r"dense: x has shape \(5, 2, 3\)"):
        gpurnn.dense(library.of(X), library.of(normal(4, 2)))
