"""One interface of NumPy arrays to the kernels that the suite runs, of any library."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _checks, functional
from ..cells import CELLS, ELEMENTWISE
from ..interop.torch import FORM

Array = NDArray[Any]

KINDS = CELLS | ELEMENTWISE


class Unsupported(NotImplementedError):
    """A kernel does not have an option."""


@dataclass(frozen=True)
class Case:
    """The arguments of a call, and cotangents of its results."""

    x: Array
    weights: dict[str, Array]
    state: tuple[Array, ...] | None
    dy: Array
    dstate: tuple[Array, ...]
    lengths: Array | None = None
    resets: Array | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.state[-1].shape[1] if self.state else self.dstate[-1].shape[1]

    def arrays(self) -> dict[str, Array]:
        """The arrays that have gradients, by name."""
        states = {} if self.state is None else dict(zip(("h", "c"), self.state, strict=False))
        return {"x": self.x, **self.weights, **states}

    def with_arrays(self, arrays: Mapping[str, Array]) -> Case:
        state = None if self.state is None else tuple(arrays[n] for n in ("h", "c")[: len(self.state)])
        return replace(self, x=arrays["x"], weights={n: arrays[n] for n in self.weights}, state=state)

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of the call."""
        given = {"lengths": self.lengths, "resets": self.resets}
        return {**{n: a for n, a in given.items() if a is not None}, **self.options}


Outputs = dict[str, Array]
"""y, h and, for an LSTM, c."""


class Kernel(ABC):
    """A kernel of one layer in one direction.

    Attributes
    ----------
    name : str
    cell : str
        "rnn", "lstm", "gru", "indrnn", "mingru" or "minlstm".
    form : dict
        The options of the cell that the kernel always has.
    dtypes : tuple of str
    """

    name: str
    cell: str
    form: Mapping[str, Any] = {}
    dtypes: tuple[str, ...] = ("float32", "float64")

    @abstractmethod
    def forward(self, case: Case) -> Outputs:
        """The outputs."""

    def gradients(self, case: Case) -> dict[str, Array]:
        """The gradients of `Case.arrays` for the cotangents of the case."""
        raise Unsupported("the kernel has no gradients")


def _packed(cell: str, state: tuple[Any, ...] | None) -> Any:
    return None if state is None else state if cell == "lstm" else state[0]


def _outputs(cell: str, y: Any, state: Any, plain: Callable[[Any], Array] = np.asarray) -> Outputs:
    states = state if cell == "lstm" else (state,)
    return {"y": plain(y), **{n: plain(s) for n, s in zip(("h", "c"), states, strict=False)}}


class Function(Kernel):
    """A function of the form in the package's docstring."""

    def __init__(self, function: Callable[..., Any], cell: str, library: str, form: Mapping[str, Any]) -> None:
        self.function, self.cell, self.library, self.form = function, cell, library, form
        self.name = getattr(function, "__qualname__", repr(function))
        named = getattr(function, "__module__", None)
        self.name = f"{named}:{self.name}" if named else self.name

    def _made(self, tree: Any) -> Any:
        """Convert NumPy arrays to the kernel's library."""
        if tree is None:
            return None
        if isinstance(tree, dict):
            return {name: self._made(value) for name, value in tree.items()}
        if isinstance(tree, tuple):
            return tuple(map(self._made, tree))
        if not isinstance(tree, np.ndarray):
            return tree
        if self.library == "numpy":
            return tree
        if self.library == "torch":
            import torch

            return torch.from_numpy(tree)
        module = importlib.import_module({"jax": "jax.numpy"}.get(self.library, self.library))
        return module.asarray(tree)

    def _plain(self, array: Any) -> Array:
        if self.library == "cupy":
            return np.asarray(array.get())
        return np.array(array.detach().cpu().numpy() if hasattr(array, "detach") else array)

    def _call(self, function: Any, case: Case) -> Any:
        made = self._made(case.keywords())
        state = self._made(_packed(self.cell, case.state))
        return function(self._made(case.x), self._made(case.weights), state, **made)

    def forward(self, case: Case) -> Outputs:
        y, state = self._call(self.function, case)
        return _outputs(self.cell, y, state, self._plain)

    def gradients(self, case: Case) -> dict[str, Array]:
        if hasattr(self.function, "vjp"):
            _, pullback = self._call(self.function.vjp, case)
            (dx, dstate), dweights = pullback((self._made(case.dy), self._made(_packed(self.cell, case.dstate))))
            found = {"x": dx, **{n: dweights[n] for n in case.weights}}
            if case.state is not None:
                found |= dict(zip(("h", "c"), dstate if self.cell == "lstm" else (dstate,), strict=False))
            return {n: self._plain(a) for n, a in found.items()}
        if self.library == "torch":
            return self._by_torch(case)
        if self.library == "jax":
            return self._by_jax(case)
        raise Unsupported("the kernel has no vjp")

    def _by_torch(self, case: Case) -> dict[str, Array]:
        import torch

        leaves = {name: self._made(array).requires_grad_() for name, array in case.arrays().items()}
        y, state = self.function(
            leaves["x"], {n: leaves[n] for n in case.weights},
            None if case.state is None else _packed(self.cell, tuple(leaves[n] for n in ("h", "c")[: len(case.state)])),
            **self._made(case.keywords()),
        )  # fmt: skip
        outputs = [y, *(state if self.cell == "lstm" else (state,))]
        cotangents = [self._made(case.dy), *self._made(case.dstate)]
        grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
        pairs = zip(leaves.items(), grads, strict=True)
        return {name: self._plain(torch.zeros_like(leaf) if g is None else g) for (name, leaf), g in pairs}

    def _by_jax(self, case: Case) -> dict[str, Array]:
        import jax

        keywords = self._made(case.keywords())

        def run(arrays: dict[str, Any]) -> Any:
            of = case.with_arrays(arrays)
            return self.function(of.x, of.weights, _packed(self.cell, of.state), **keywords)

        _, pull = jax.vjp(run, self._made(case.arrays()))
        (found,) = pull((self._made(case.dy), self._made(_packed(self.cell, case.dstate))))
        return {name: self._plain(array) for name, array in found.items()}


def of_gpurnn(cell: str) -> Function:
    """gpurnn's function, on the wing that computes for NumPy arrays."""
    op: Any = getattr(functional, cell)
    implied = KINDS[cell].implied.values()  # implied by weights

    def kernel(x: Any, weights: Any, state: Any, **options: Any) -> Any:
        return op(x, **weights, state=state, **{n: v for n, v in options.items() if n not in implied})

    def vjp(x: Any, weights: Any, state: Any, **options: Any) -> Any:
        return op.vjp(x, **weights, state=state, **{n: v for n, v in options.items() if n not in implied})

    kernel.vjp = vjp  # type: ignore[attr-defined]
    made = Function(kernel, cell, "numpy", {})
    made.name = f"gpurnn.{cell}"
    return made


_MODULES = {"RNN": "rnn", "LSTM": "lstm", "GRU": "gru", "IndRNN": "indrnn", "MinGRU": "mingru", "MinLSTM": "minlstm"}
"""The cell of each module, by its name."""


class TorchModule(Function):
    """A recurrent module of `torch.nn`, or a module with the same interface."""

    def __init__(self, kind: Any, name: str) -> None:
        cell = _MODULES[kind.__name__]
        super().__init__(self._run, cell, "torch", FORM if cell == "gru" else {})
        self.kind, self.name = kind, name
        self._own_lengths = "lengths" in inspect.signature(kind.forward).parameters

    def _run(self, x: Any, weights: Any, state: Any, lengths: Any = None, resets: Any = None, **options: Any) -> Any:
        import torch
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        if self.cell == "rnn" and not self._own_lengths:
            activation = options.pop("activation", "tanh")
            if activation not in ("tanh", "relu"):
                raise Unsupported(f"nonlinearity is 'tanh' or 'relu', and not {activation!r}")
            options["nonlinearity"] = activation
        of_torch = self.kind.__module__.partition(".")[0] == "torch"
        if of_torch and not options.keys() <= {"nonlinearity", "proj_size"}:
            raise Unsupported(f"the module has no {next(iter(options))}")
        rows, inputs = weights["weight_ih"].shape
        hidden = rows // (3 if options.get("coupled") else KINDS[self.cell](**self.form).gates)
        module = self.kind(inputs, hidden, bias="bias_ih" in weights, dtype=weights["weight_ih"].dtype, **options)
        params = {f"{name}_l0": array for name, array in weights.items()}
        module.load_state_dict({name: array.detach() for name, array in params.items()})
        module.eval()  # random masks are replaced by their expectation
        if len({array.dtype for array in params.values()}) > 1:
            raise TypeError("load_state_dict would cast the weights to one dtype")
        of_state: Any = None
        if state is not None:
            of_state = tuple(s[None] for s in state) if self.cell == "lstm" else state[None]
        if self._own_lengths:
            y, final = torch.func.functional_call(module, params, (x, of_state), {"lengths": lengths, "resets": resets})
        elif resets is not None:
            raise Unsupported("the module takes no resets")
        elif lengths is not None:
            if int(lengths.min()) < 1:
                raise Unsupported("no sequence of length 0 can be packed")
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output, final = torch.func.functional_call(module, params, (packed, of_state))
            y, _ = pad_packed_sequence(output, total_length=x.shape[0])
        else:
            y, final = torch.func.functional_call(module, params, (x, of_state))
        return y, tuple(s[0] for s in final) if self.cell == "lstm" else final[0]


class OnnxRuntime(Kernel):
    """ONNX Runtime's operator, in a model written by `gpurnn.interop.to_onnx`."""

    form: Mapping[str, Any] = {}

    def __init__(self, cell: str) -> None:
        self.name, self.cell = "onnxruntime", cell
        self.form = {"update": "state"} if cell == "gru" else {}

    def forward(self, case: Case) -> Outputs:
        import onnxruntime

        from ..interop import to_onnx
        from ..interop.onnx_recurrent import lacking
        from ..interop.weights import made

        if case.resets is not None:
            raise Unsupported("the operator takes no resets")
        hidden = case.hidden_size
        arguments = {"input_size": case.x.shape[2], "hidden_size": hidden, "bias": "bias_ih" in case.weights}
        params = {f"{name}_l0": array for name, array in case.weights.items()}
        try:
            layer = made("onnxruntime", self.cell, {**arguments, **self.form, **case.options}, params)
        except NotImplementedError as error:
            raise Unsupported(str(error)) from error
        lacked = lacking(layer)
        if lacked is not None:
            raise Unsupported(f"no operator of ONNX has {lacked}")
        model = to_onnx(layer)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise Unsupported(str(error).partition("\n")[0]) from error
            raise
        T, B = case.x.shape[:2]
        lengths = np.full(B, T) if case.lengths is None else case.lengths
        states = ("h", "c")[: 1 + (self.cell == "lstm")]
        zero = np.zeros((B, hidden), case.x.dtype)
        given = (zero,) * len(states) if case.state is None else case.state
        feeds = {"x": case.x, "lengths": lengths.astype(np.int32)}
        feeds |= {n: s[None] for n, s in zip(states, given, strict=True)}
        try:
            y, *final = session.run(None, feeds)
        except Exception as error:
            if "does not support double" in str(error):
                raise Unsupported(f"the {self.cell.upper()} operator does not support double") from error
            raise
        return {"y": y, **{n: s[0] for n, s in zip(states, final, strict=True)}}


def find(
    target: str, cell: str | None = None, library: str = "numpy", form: Mapping[str, Any] | None = None
) -> list[Kernel]:
    """Find the kernels with this name.

    Parameters
    ----------
    target : str
        ``"gpurnn"``, ``"onnxruntime"``, the path of a PyTorch module's class, such as ``"torch.nn.LSTM"`` or
        ``"gpurnn.torch.GRU"``, or ``"module:function"``.
    cell : {"rnn", "lstm", "gru", "indrnn", "mingru", "minlstm"}, optional
        The cell, required for a function. If a kernel has several cells, it chooses one.
    library : str
        The module whose arrays a function takes: "numpy", "torch", "jax" or "cupy".
    form : dict, optional
        The options of the cell that a function always has.

    Raises
    ------
    ValueError, TypeError
        The name does not exist, or it needs a cell.
    ImportError
        A module cannot be imported.
    """
    where = "conformance"
    if cell is not None:
        _checks.choice(where, "cell", cell, tuple(KINDS))
    if target in ("gpurnn", "onnxruntime"):
        make: Any = of_gpurnn if target == "gpurnn" else OnnxRuntime
        importlib.import_module(target)
        kernels = [make(name) for name in (KINDS if target == "gpurnn" else CELLS) if cell in (None, name)]
        if not kernels:
            raise ValueError(f"{where}: cell is {cell!r}, expected one that {target} has: {', '.join(CELLS)}")
        return kernels
    module, _, name = target.partition(":") if ":" in target else target.rpartition(".")
    if not module or not name:
        expected = "gpurnn, onnxruntime, torch.nn.LSTM or module:function"
        raise ValueError(f"{where}: target is {target!r}, expected {expected}")
    try:
        found = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ValueError(f"{where}: {module} has no {name}") from error
    if inspect.isclass(found):
        if found.__name__ not in _MODULES:
            raise TypeError(f"{where}: target is the class {target}, expected {', '.join(_MODULES)} or a function")
        return [TorchModule(found, target)]
    if cell is None:
        raise ValueError(f"{where}: cell is None, expected that of {target}: {', '.join(KINDS)}")
    made = Function(found, cell, library, dict(form or {}))
    made.name = target
    return [made]
