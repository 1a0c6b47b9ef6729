"""The costs of a layer compared with actual runs: operations are counted, and allocations are traced."""

from __future__ import annotations

import numpy as np
import pytest
from allocations import most_bytes
from gpurnn.kernels.recurrence import plan

import gpurnn
from gpurnn import kernels, reference
from gpurnn.analysis import complexity

LAYERS = {
    "rnn": (gpurnn.RNN, {}),
    "rnn-leak": (gpurnn.RNN, {"leak": 0.5}),
    "lstm": (gpurnn.LSTM, {}),
    "gru-reset-before": (gpurnn.GRU, {}),
    "gru-reset-after": (gpurnn.GRU, {"reset_after": True}),
}


class Counted(np.ndarray):
    """Counts the floating-point operations on all arrays of its class."""

    products = elementwise = 0

    def __array_ufunc__(self, function, method, *inputs, **options):
        arrays = [np.asarray(a) for a in inputs]
        if "out" in options:
            options["out"] = tuple(np.asarray(a) for a in options["out"])
        result = getattr(function, method)(*arrays, **options)
        if function is np.matmul:
            Counted.products += 2 * result.size * arrays[0].shape[-1]
        else:
            Counted.elementwise += arrays[0].size if method == "reduce" else result.size
        return np.asarray(result).view(Counted)


@pytest.mark.parametrize("name", LAYERS)
def test_flops_are_those_of_the_definition_of_a_step(name):
    T, B, I, H = 7, 3, 5, 8
    kind, options = LAYERS[name]
    layer = kind(I, H, **options)
    cell = layer.cell
    rng = np.random.default_rng(0)

    def counted(*shape):
        return rng.normal(size=shape).view(Counted)

    found, costs = [], complexity(layer, T, B)
    Counted.products = Counted.elementwise = 0
    weights = {name: counted(*shape) for name, shape in cell.shapes(input_size=I, hidden_size=H).items()}
    w_ih, b_ih = weights["weight_ih"], weights["bias_ih"]
    x, state = counted(B, I), tuple(counted(B, H) for _ in range(cell.states))
    _, saved = reference.cell_forward(cell, x @ w_ih.T + b_ih, state, weights)
    found.append(Counted.products + Counted.elementwise)
    dxw, _, _ = reference.cell_backward(saved, tuple(counted(B, H) for _ in range(cell.states)))
    _ = dxw @ w_ih, dxw.T @ x
    found.append(Counted.products + Counted.elementwise)
    assert [costs.forward.flops, costs.bptt.flops] == [T * n for n in found]


def test_flops_and_bytes_add_up_over_layers_and_directions():
    one, above = gpurnn.LSTM(5, 8), gpurnn.LSTM(8, 8)
    both, stack = gpurnn.LSTM(5, 8, bidirectional=True), gpurnn.LSTM(5, 8, 3)
    for which in ("forward", "bptt"):
        for what in ("flops", "bytes"):

            def cost(layer, which=which, what=what):
                return getattr(getattr(complexity(layer, 7, 3), which), what)

            assert cost(both) == 2 * cost(one)
            assert cost(stack) == cost(one) + 2 * cost(above)


def test_bytes_of_a_small_case_by_hand():
    # T = 2, B = 3, I = 4, H = 5 and one gate, float64.
    cost = complexity(gpurnn.RNN(4, 5, dtype="float64"), 2, 3)
    x, w_ih, w_hh, h = 2 * 3 * 4, 5 * 4, 5 * 5, 2 * 3 * 5
    forward = x + w_ih + 2 * h + 2 * w_hh + 2 * h
    assert cost.forward.bytes == 8 * forward
    gradients = x + w_ih + w_hh
    back = 2 * h + 4 * h + 2 * w_hh + 2 * h + h + x + h + w_ih + gradients
    assert cost.bptt.bytes == 8 * (forward + back)
    assert complexity(gpurnn.RNN(4, 5), 2, 3).bptt.bytes == 4 * (forward + back)


def test_truncation_takes_the_same_operations_in_the_memory_of_a_window():
    layer = gpurnn.LSTM(6, 16)
    whole = complexity(layer, 100, 4, k=100)
    assert whole.truncated == whole.bptt
    assert complexity(layer, 100, 4).truncated is None
    cost, window, rest = complexity(layer, 100, 4, k=30), complexity(layer, 30, 4), complexity(layer, 10, 4)
    assert cost.truncated.flops == cost.bptt.flops
    assert cost.truncated.memory == window.bptt.memory
    assert cost.truncated.bytes == 3 * window.bptt.bytes + rest.bptt.bytes


def forward(layer, x, dy):
    return layer(x)


def backpropagation(layer, x, dy):
    outputs, pullback = layer.vjp(x)
    return outputs, pullback((dy, None))


def windows(k):
    def truncated(layer, x, dy):
        state = None
        for start in range(0, len(x), k):
            state = one_window(layer, x[start : start + k], dy[start : start + k], state)

    def one_window(layer, x, dy, state):
        (_, final), pullback = layer.vjp(x, state)
        pullback((dy, None))
        return final

    return truncated


def allocated(run, layer, T, B):
    """The peak number of bytes that ``run`` holds, except x, dy and the parameters."""
    dtype = layer.params["weight_ih_l0"].dtype
    x = np.zeros((T, B, layer.input_size), dtype)
    dy = np.ones((T, B, layer.hidden_size * layer.num_directions), dtype)
    return most_bytes(lambda: run(layer, x, dy))


SIZES = [(32, 64, 40, 16), (50, 100, 5, 64)]
OPTIONS = [
    {},
    {"bidirectional": True},
    {"num_layers": 3, "dtype": "float64"},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "residual": True},
]


@pytest.fixture(params=["reference", "native"])
def numpy_wing(request):
    """Lets each wing for NumPy arrays compute in turn."""
    with gpurnn.use(request.param):
        yield


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_memory_is_what_a_run_allocates(name, options, numpy_wing):
    kind, own = LAYERS[name]
    checked = 0
    for I, H, T, B in SIZES:
        layer = kind(I, H, **own, **options)
        cost = complexity(layer, T, B, k=max(T // 4, 1))
        for run, found in (
            (forward, cost.forward),
            (backpropagation, cost.bptt),
            (windows(max(T // 4, 1)), cost.truncated),
        ):
            expected = allocated(run, layer, T, B)
            if expected >= 1e6:
                checked += 1
                assert found.memory == pytest.approx(expected, rel=0.08), (run.__name__, I, H, T, B)
    assert checked >= 1


def test_memory_is_what_the_compiled_wing_allocates_for_a_layer_norm():
    layer = gpurnn.LSTM(32, 64, num_layers=2, bidirectional=True, layer_norm=True)
    with gpurnn.use("native"):
        cost = complexity(layer, 40, 16)
        for run, found in ((forward, cost.forward), (backpropagation, cost.bptt)):
            assert found.memory == pytest.approx(allocated(run, layer, 40, 16), rel=0.08), run.__name__


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("name", "schedule", "options"),
    [
        ("rnn-leak", "stepwise", {"dtype": "float64"}),
        ("lstm", "stepwise", {"num_layers": 2, "bidirectional": True}),
        ("lstm", "block", {"num_layers": 2}),
        ("gru-reset-before", "stepwise", {"num_layers": 2, "residual": True}),
        ("gru-reset-before", "block", {}),
        ("gru-reset-after", "stepwise", {"bidirectional": True}),
        ("lstm", "stepwise", {"layer_norm": True}),
    ],
)
def test_memory_is_what_the_kernels_allocate(name, schedule, options, monkeypatch):
    """On the host executor, where tracemalloc sees the arrays: several chunks, and large weights."""
    monkeypatch.setattr(kernels.recurrence.layer, "CHUNK_ROWS", 4)
    kind, own = LAYERS[name]
    checked = []
    with gpurnn.use("host"), plan.schedule(schedule):
        for I, H, T, B in [(100, 24, 4, 500), (1400, 60, 2, 4)] if schedule == "stepwise" else [(400, 110, 1, 1)]:
            layer = kind(I, H, **own, **options)
            cost = complexity(layer, T, B)
            for run, found in ((forward, cost.forward), (backpropagation, cost.bptt)):
                expected = allocated(run, layer, T, B)
                if expected >= 1e6:
                    checked.append(run)
                    assert found.memory == pytest.approx(expected, rel=0.08), (run.__name__, I, H, T, B)
    assert checked == ([forward, backpropagation, backpropagation] if schedule == "stepwise" else [backpropagation])


def test_refusals():
    layer = gpurnn.LSTM(2, 3)
    with pytest.raises(TypeError, match=r"complexity: layer is a Dense, expected a gpurnn.RNN, LSTM or GRU"):
        complexity(gpurnn.Dense(2, 3), 4, 5)
    for arguments, message in (
        ((0, 5), "T is 0, expected at least 1"),
        ((4, 0), "B is 0, expected at least 1"),
        ((4, 5, 0), "k is 0, expected at least 1"),
        ((4, 5, 5), "k is 5, expected at most T = 4"),
    ):
        with pytest.raises(ValueError, match=f"complexity: {message}"):
            complexity(layer, *arguments)
    with pytest.raises(TypeError, match=r"complexity: T is 2.5, expected a whole number"):
        complexity(layer, 2.5, 1)
