"""Explain how the CUDA kernels run, or would run, a recurrent layer, and why."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

from . import _checks, _dispatch
from .layers import Decoder, Layer
from .layers.base import Composite, uninitialised
from .layers.recurrent import Stacked, layer_names


@dataclass(frozen=True)
class Explanation:
    """How a recurrent layer would run; ``str`` of it is a report.

    Attributes
    ----------
    device : str
    schedule : str
        The schedule of the forward pass: "stepwise", "step-fused", "block", "persistent", "cluster" or "scatter";
        "scan" for a layer whose states are a `gpurnn.linear_scan`; "independent" for a `gpurnn.IndRNN`, where one
        thread runs all steps of a unit.
    grid, block : tuple of int
        The launch of the pass's kernel; for the stepwise schedule, of the gates' kernel; for a scan, of its last
        kernel.
    shared_bytes : int
        The dynamic shared memory of a block.
    registers : int
        The largest number of registers of a thread.
    occupancy : int
        The least number of blocks that a multiprocessor holds at once.
    launches : int
        The launches in a layer's whole pass, without the products over all steps.
    flops_per_step, bytes_per_step : int
        For one step of a layer's recurrence in all directions, in training: the arithmetic of the recurrent products,
        and the bytes of global memory that kernels load and store, whether or not the L2 cache serves them.
    microseconds_per_step : dict of str to float
        The prediction for each schedule that fits the device.
    bound_by : str
        The largest term of the schedule's prediction: "load", "product", "reduction", "gates", "exchange", "host" or
        "memory", see `explain`.
    passed_over : dict of str to str
        Why each of the other schedules does not run.
    options : dict of str to str
        The cost of each option that sums over hidden units in each step: ``layer_norm``, ``proj_size``. Other options
        cost a few instructions per unit.
    layers : int
    layers_at_once : int
        How many layers of a stack run at once: while one is at a chunk of steps, the one above it is at the chunk
        before. Each has its share of the multiprocessors, for which its grid is planned. 1 if layers run one after
        another.
    chunk : int or None
        The steps of a chunk if layers run at once in the forward pass.
    microseconds_in_chunks, microseconds_one_by_one : float or None
        The predictions for all steps of all layers: in these chunks, and if one layer ran after another.
    backward : Explanation or None
        How the backward pass would run, which is planned separately. Its own ``backward`` is None.
    """

    device: str
    schedule: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    registers: int
    occupancy: int
    launches: int
    flops_per_step: int
    bytes_per_step: int
    microseconds_per_step: dict[str, float]
    bound_by: str
    passed_over: dict[str, str]
    options: dict[str, str]
    layers: int
    layers_at_once: int = 1
    chunk: int | None = None
    microseconds_in_chunks: float | None = None
    microseconds_one_by_one: float | None = None
    backward: Explanation | None = None

    def __str__(self) -> str:
        count = "" if self.layers == 1 else f", for each of {self.layers} layers"
        forward = f"{self.schedule} on {self.device}{count}\n{self._details()}"
        back = self.backward
        return forward if back is None else f"{forward}\nbackward: {back.schedule}\n{back._details()}"

    def _details(self) -> str:
        least = self.microseconds_per_step[self.schedule]
        lines = [
            f"  grid {self.grid}, block {self.block}, {self.shared_bytes:,} bytes of shared memory, at most "
            f"{self.registers} registers a thread, at least {_counted(self.occupancy, 'block')} on a multiprocessor",
            f"  {_counted(self.launches, 'launch', 'es')}; a step has {self.flops_per_step:,} flops and moves "
            f"{self.bytes_per_step:,} bytes",
            f"  predicted: {least:.2f} microseconds a step, bound by {self.bound_by}",
        ]
        if self.chunk is not None:
            lines.append(
                f"  {_counted(self.layers_at_once, 'layer')} at once, in chunks of {_counted(self.chunk, 'step')}: "
                f"predicted {self.microseconds_in_chunks:,.0f} microseconds for all layers, "
                f"{self.microseconds_one_by_one:,.0f} for one after another"
            )
        lines += [f"  {name}: {cost}" for name, cost in self.options.items()]
        return "\n".join([*lines, *(f"  not {name}: {why}" for name, why in self.passed_over.items())])


class Explanations(dict[str, Explanation]):
    """How the recurrent layers of a model would run, by their names; ``str`` of it is a report."""

    def __str__(self) -> str:
        return "\n".join(f"{name}: {explanation}" for name, explanation in self.items())


def _counted(n: int, what: str, plural: str = "s") -> str:
    return f"{n:,} {what}{'' if n == 1 else plural}"


@overload
def explain(layer: Stacked, x: Any, *, device: Any = None) -> Explanation: ...
@overload
def explain(layer: Layer, x: Any, *, device: Any = None) -> Explanations: ...
@overload
def explain(layer: Callable[[], Layer], x: Any, *, device: Any = None) -> Explanation | Explanations: ...


def explain(layer: Any, x: Any, *, device: Any = None) -> Explanation | Explanations:
    """Explain which schedule and grid of kernels run a recurrent layer, or each recurrent layer of a model, and why.

    The predicted time of a step is the sum of a block's phases: it loads the operand into shared memory ("load"),
    multiplies ("product"), adds up partial sums ("reduction"), computes the gates ("gates"), and waits until all blocks
    have its results, by a launch or a barrier ("exchange"). A step takes at least as long as the CPU needs for its
    launches ("host"), and as long as its memory traffic needs at the bandwidth of the device ("memory"). Everything is
    computed from sizes, public figures, the kernels' machine code and assumptions, which are listed in
    ``gpurnn/kernels/recurrence/predict.py``. Nothing is measured, and no GPU is needed.

    Parameters
    ----------
    layer : RNN, LSTM, GRU, IndRNN, MinGRU or MinLSTM; a layer or a model that holds some; or a function that makes one
        A function without arguments, such as ``lambda: gpurnn.LSTM(64, 8192)``, makes the layer without initial
        parameters, so it can be of any size. A decoder that reads its memory at every step runs its cell step by step,
        and is left out.
    x : array, or a tuple of int
        The input of the layer, or its shape; for a model, (T, B) or (T, B, features). The layers of a model are assumed
        to read sequences of this length.
    device : str or gpurnn.kernels.devices.Device, optional
        "T4", "A100", "RTX 3090", "L4", "RTX 4090", "H100", "H200", "B200" or "RTX 5090", in any spelling; a compute
        capability such as "sm_90"; or the properties of any other device. None means the device of x if x is a CuPy
        array, else the "H100". A CuPy array's device is asked whether it can run all blocks of the persistent, cluster
        and scatter schedules at once; it cannot if others use a part of it.

    Returns
    -------
    explanation : Explanation, or Explanations
        For a model, a dict of the explanations of its recurrent layers, by their names.

    Raises
    ------
    TypeError, ValueError
        There is no recurrent layer, x does not fit it, or the device is unknown.

    Examples
    --------
    >>> import gpurnn
    >>> found = gpurnn.explain(gpurnn.LSTM(64, 512), (100, 32, 64), device="A100")
    >>> found.schedule, found.launches, found.bound_by
    ('persistent', 1, 'product')
    >>> model = gpurnn.SequenceClassifier(64, 512, classes=2)
    >>> {name: found.schedule for name, found in gpurnn.explain(model, (100, 32, 64), device="a100").items()}
    {'recurrent': 'persistent'}
    """
    where = "explain"
    if not isinstance(layer, Layer) and callable(layer):
        with uninitialised():
            layer = layer()
    parts = {"": layer} if isinstance(layer, Stacked) else _recurrent("", layer)
    if not parts:
        raise TypeError(f"{where}: layer is {_checks.described(layer)}, expected an {layer_names()}, or a model of one")
    shape = x if isinstance(x, tuple) else getattr(x, "shape", None)
    if shape is None or not (len(shape) == 3 or (len(shape) == 2 and not isinstance(layer, Stacked))):
        raise TypeError(f"{where}: x is {x!r}, expected an array of three axes or its shape")
    T, B = (_checks.integer_at_least(where, "x", n, 1) for n in (shape[:2][::-1] if layer.batch_first else shape[:2]))
    if isinstance(layer, Stacked) and shape[2] != layer.input_size:
        raise ValueError(f"{where}: x has shape {tuple(shape)}, expected (..., input_size) = (..., {layer.input_size})")
    wing = importlib.import_module(_dispatch.WINGS["cupy"])
    explanations = Explanations()
    for name, part in parts.items():
        sizes = T, B, part.hidden_size, part.num_directions
        dtype = part._argument("dtype")
        layers = part.num_layers
        forward, backward = wing.explain_recurrence(where, part.cell, *sizes, layers, dtype, x, device)
        explanations[name] = Explanation(**forward, layers=layers, backward=Explanation(**backward, layers=layers))
    return explanations[""] if isinstance(layer, Stacked) else explanations


def _recurrent(prefix: str, layer: Any) -> dict[str, Stacked]:
    """The recurrent layers inside a layer that run whole sequences, by name."""
    if isinstance(layer, Stacked):
        return {prefix.removesuffix("."): layer}
    if not isinstance(layer, Composite) or (isinstance(layer, Decoder) and layer.stepwise):
        return {}
    found: dict[str, Stacked] = {}
    for own, part in layer._layers().items():
        found |= _recurrent(f"{prefix}{own}", part)
    return found
