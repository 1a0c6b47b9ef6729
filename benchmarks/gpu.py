"""The schedules of the CUDA kernels, a plain CuPy loop and PyTorch's cuDNN; predictions without a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gpurnn.kernels import devices, dtypes
from gpurnn.kernels.recurrence import plan
from gpurnn.kernels.recurrence.run import Run, run_forward

from gpurnn import cells, kernels, reference

from .cases import Case, Size

CELLS: dict[str, cells.Cell] = {
    "rnn": cells.Vanilla(),
    "lstm": cells.LSTM(),
    "gru": cells.GRU(reset_after=True, update="state"),
}
"""The cells as PyTorch has them."""

PREDICTED_FOR = "H100"
"""The device of predictions where there is no GPU."""

GRAPH = "step-fused graph"
"""The step-fused schedule with all its launches captured beforehand and replayed as one graph."""

CUDNN = {"cuDNN": "float32", "cuDNN float16": "float16"}
"""The columns of PyTorch's layers, and their dtypes."""

WARM_UPS, TURNS = 3, 15


def has_gpu() -> bool:
    """Whether CuPy is installed and finds a device."""
    try:
        import cupy
    except ImportError:
        return False
    try:
        return int(cupy.cuda.runtime.getDeviceCount()) > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


def report(names: tuple[str, ...], sizes: tuple[Size, ...]) -> Iterator[str]:
    """A row for each cell and size: measured where there is a GPU, else predicted."""
    if has_gpu():
        yield from _measured(names, sizes)
    else:
        yield from _predicted(names, sizes)


def _problem(name: str, size: Size, backward: bool) -> plan.Problem:
    return plan.Problem(CELLS[name], size.T, size.B, size.H, 1, dtypes.TABLE["float32"], backward)


def _of_schedules(case: Case, device: devices.Device) -> dict[str, float]:
    """Predicted microseconds of a step of each schedule that fits, in all passes of the case's mode.

    Scatter is included only in training: its forward pass is that of the persistent schedule.
    """
    passes = (False, True) if case.mode == "training" else (False,)
    plans = [plan.consider(_problem(case.cell, case.size, backward), device).plans for backward in passes]
    return {
        name: 1e6 * sum(of_pass[name][1].seconds for of_pass in plans)
        for name in plan.SCHEDULES
        if all(name in of_pass for of_pass in plans) and (True in passes or name != "scatter")
    }


def _head(columns: list[str]) -> Iterator[str]:
    yield f"| cell | T, B, I, H | {' | '.join(columns)} |"
    yield "| --- | --- |" + " --: |" * len(columns)


# ---- Without a GPU --------------------------------------------------------------------------------------------------


def _predicted(names: tuple[str, ...], sizes: tuple[Size, ...]) -> Iterator[str]:
    device = devices.lookup(PREDICTED_FOR)
    yield (
        f"No GPU was found, so nothing was measured. Predicted from the figures of an {device.name}, float32: "
        "microseconds a step without the products over all steps, by schedule; the schedule that would run, and the "
        "term that binds it. A dash: it does not fit."
    )
    for backward in (False, True):
        yield f"\n{'backward' if backward else 'forward'}:\n"
        yield from _head([*plan.SCHEDULES, "runs", "bound by"])
        for name in names:
            for size in sizes:
                plans = (choice := plan.consider(_problem(name, size, backward), device)).plans
                times = [f"{1e6 * plans[s][1].seconds:.2f}" if s in plans else "–" for s in plan.SCHEDULES]
                columns = [", ".join(map(str, size)), *times, choice.best, plans[choice.best][1].bound_by]
                yield f"| {name.upper()} | {' | '.join(columns)} |"


# ---- With a GPU -----------------------------------------------------------------------------------------------------


def contenders(case: Case, xp: Any) -> dict[str, Callable[[], Any]]:
    """Calls, by name, that run the case once, from x to y or to the gradients. All include the input product."""
    x, dy, parameters = case.arrays()
    cell = CELLS[case.cell]
    x, dy = xp.asarray(x), xp.asarray(dy)
    weights = {name.removesuffix("_l0"): xp.asarray(p) for name, p in parameters.items()}
    state = tuple(xp.zeros((1, case.size.B, case.size.H), x.dtype) for _ in range(cell.states))
    training = case.mode == "training"

    def kernel_wing() -> Any:
        y, final, saved = kernels.recurrence_forward(cell, x, (weights,), state, training=training)
        if not training:
            return (y,)
        dx, dweights, _ = kernels.recurrence_backward(saved, dy, (None,) * len(final))
        return (dx, *dweights[0].values())

    def by(schedule: str) -> Callable[[], Any]:
        def call() -> Any:
            with plan.schedule(schedule):
                return kernel_wing()

        return call

    found = {s: by(s) for s in _of_schedules(case, plan.device_of(x))}
    if xp is not np and not training:
        found[GRAPH] = _graph(xp, cell, x, weights, state)
    return found | {"plain loop": lambda: plain_loop(xp, cell, x, weights, state, dy if training else None)}


def _graph(xp: Any, cell: cells.Cell, x: Any, weights: Any, state: Any) -> Callable[[], Any]:
    w_ih, w_hh, b_ih, b_hh = weights.values()
    T, B, I = x.shape
    xw, own = xp.empty((1, T * B, len(w_ih)), x.dtype), tuple(xp.zeros_like(s) for s in state)
    pool = xp.cuda.MemoryPool()
    stream = xp.cuda.Stream(non_blocking=True)
    with stream, plan.schedule("step-fused"), xp.cuda.using_allocator(pool.malloc):
        run = Run.begin(cell, T, B, w_hh.shape[1], w_hh[None], training=False)
        arguments = run, xw, (b_ih[None], b_hh[None]), own
        run_forward(*arguments)  # compiles the kernels, which a capture must not
        stream.begin_capture()
        y = run_forward(*arguments)
        graph = stream.end_capture()
        stream.synchronize()

    def call(kept: Any = (arguments, pool)) -> Any:  # the graph's memory must not be freed
        xp.matmul(x.reshape(T * B, I), w_ih.T, out=xw[0])
        for ours, given in zip(own, state, strict=True):
            xp.copyto(ours, given)
        graph.launch()
        return (y,)

    return call


def plain_loop(xp: Any, cell: cells.Cell, x: Any, weights: Any, state: Any, dy: Any | None) -> Any:
    """The steps of a textbook, one after another, in calls of the array library."""
    w_ih, b_ih = weights["weight_ih"], weights["bias_ih"]
    T, B, I = x.shape
    xw = (x.reshape(T * B, I) @ w_ih.T + b_ih).reshape(T, B, -1)
    carried, outputs, saved = tuple(s[0] for s in state), [], []
    for t in range(T):
        carried, kept = reference.cell_forward(cell, xw[t], carried, weights)
        outputs.append(carried[0])
        saved.append(kept)
    if dy is None:
        return (xp.stack(outputs),)
    dxw, dhidden = xp.empty_like(xw), {n: xp.zeros_like(w) for n, w in weights.items() if not n.endswith("_ih")}
    dstate = tuple(xp.zeros_like(s) for s in carried)
    for t in reversed(range(T)):
        dxw[t], dstate, dweights = reference.cell_backward(saved[t], (dstate[0] + dy[t], *dstate[1:]))
        for name, gradient in dweights.items():
            dhidden[name] += gradient
    flat = dxw.reshape(T * B, -1)
    gradients = {"weight_ih": flat.T @ x.reshape(T * B, I), "bias_ih": flat.sum(axis=0), **dhidden}
    return ((flat @ w_ih).reshape(x.shape), *(gradients[name] for name in weights))


def cudnn(case: Case, dtype: str) -> Callable[[], Any] | None:
    """PyTorch's layer on its GPU, which uses cuDNN; None without such a PyTorch.

    In float32 it computes in float32: by default, PyTorch lets cuDNN round the factors of products to TF32.
    """
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    _, _, I, H = case.size
    x, dy, parameters = case.arrays()
    layer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell](I, H)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in parameters.items()})
    layer = layer.to("cuda", getattr(torch, dtype))
    x, dy = (torch.from_numpy(array).to("cuda", getattr(torch, dtype)) for array in (x, dy))

    def infer() -> Any:
        with torch.inference_mode():
            return layer(x)[0]

    def train() -> Any:
        leaf = x.detach().requires_grad_(True)
        return torch.autograd.grad(layer(leaf)[0], [leaf, *layer.parameters()], dy)

    return train if case.mode == "training" else infer


def _milliseconds(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median time of each call by CuPy's events, in turns."""
    import cupy

    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UPS + TURNS):
        for name, call in calls.items():
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            # PyTorch's default stream is the legacy one, like CuPy's.
            begin.record()
            call()
            end.record()
            end.synchronize()
            if turn >= WARM_UPS:
                times[name].append(cupy.cuda.get_elapsed_time(begin, end))
    return {name: statistics.median(found) for name, found in times.items()}


def predictions(case: Case, device: devices.Device) -> dict[str, float]:
    """Predicted microseconds of a step of each schedule that fits, with its share of the products over all steps."""
    _, B, I, H = case.size
    outputs, rate = B * CELLS[case.cell].gates * H, device.peak_flops("float32")
    products = max(2 * outputs * I / rate, 4 * (B * I + outputs) / device.bandwidth)
    if case.mode == "training":  # the gradients of x, and of W_ih and W_hh
        products += products + 2 * outputs * (I + H) / rate
    return {name: predicted + 1e6 * products for name, predicted in _of_schedules(case, device).items()}


def _measured(names: tuple[str, ...], sizes: tuple[Size, ...]) -> Iterator[str]:
    import cupy

    device = devices.current()
    yield (
        f"{device.name}, CuPy {cupy.__version__}, float32 without TF32, and cuDNN in float16 too. Microseconds a step, "
        f"with the products over all steps on all sides: medians of {TURNS} turns by CUDA events. In brackets the "
        "prediction, with those products at the device's peak. The last column names the fastest in float32."
    )
    for mode in ("inference", "training"):
        columns = [*plan.SCHEDULES, *([GRAPH] if mode == "inference" else []), "plain loop", *CUDNN]
        yield f"\n{mode}:\n"
        yield from _head([*columns, "fastest"])
        for name in names:
            for size in sizes:
                case = Case(name, size, mode)
                calls = contenders(case, cupy)
                peers = {column: cudnn(case, dtype) for column, dtype in CUDNN.items()}
                calls |= {column: peer for column, peer in peers.items() if peer is not None}
                times = {key: 1e3 * ms / size.T for key, ms in _milliseconds(calls).items()}
                predicted = predictions(case, device)
                cells_of_row = []
                for column in columns:
                    text = f"{times[column]:.2f}" if column in times else "–"
                    if column in predicted:
                        text += f" ({predicted[column]:.2f})"
                    cells_of_row.append(text)
                fastest = min((key for key in times if CUDNN.get(key) != "float16"), key=lambda key: times[key])
                yield f"| {name.upper()} | {', '.join(map(str, size))} | {' | '.join([*cells_of_row, fastest])} |"
