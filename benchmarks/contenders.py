"""Who takes part. A contender turns a case into a step: a function without arguments that returns arrays by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np

from .cases import Array, Case

Step = Callable[[], dict[str, Any]]


class NotInstalled(Exception):
    """The contender's library cannot be imported by the Python that was to run it."""


class Contender(Protocol):
    """A library that a worker measures. Its constructor imports it, and raises ImportError if it is not installed."""

    name: ClassVar[str]
    modes: ClassVar[tuple[str, ...]]
    versions: str

    def __init__(self, threads: int) -> None: ...

    def prepare(self, case: Case) -> Step: ...


class Gpurnn(Contender):
    """gpurnn's layers on NumPy arrays."""

    name = "gpurnn"
    modes = ("training", "inference")

    def __init__(self, threads: int) -> None:  # the BLAS of NumPy reads how many from the environment
        import gpurnn

        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        self.versions = f"gpurnn {gpurnn.__version__} on NumPy {np.__version__} with {blas['name']} {blas['version']}"

    def prepare(self, case: Case) -> Step:
        import gpurnn

        _, _, I, H = case.size
        x, dy, parameters = case.arrays()
        if case.cell == "gru":
            layer = gpurnn.GRU(I, H, reset_after=True, update="state")
        else:
            layer = {"rnn": gpurnn.RNN, "lstm": gpurnn.LSTM}[case.cell](I, H)
        layer.load_state_dict(parameters)

        def infer() -> dict[str, Any]:
            return {"y": layer(x)[0]}

        def train() -> dict[str, Any]:
            (y, _), pullback = layer.vjp(x)
            (dx, _), gradients = pullback((dy, None))
            return {"y": y, "dx": dx, **gradients}

        return train if case.mode == "training" else infer


class PyTorch(Contender):
    """torch.nn's layers on the CPU."""

    name = "PyTorch"
    modes = ("training", "inference")

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.versions = f"PyTorch {torch.__version__}"

    def prepare(self, case: Case) -> Step:
        import torch

        _, _, I, H = case.size
        inputs, cotangent, parameters = case.arrays()
        layer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell](I, H)
        layer.load_state_dict({name: torch.from_numpy(p) for name, p in parameters.items()})
        x, dy = torch.from_numpy(inputs), torch.from_numpy(cotangent)
        named = {"dx": x.requires_grad_(case.mode == "training"), **dict(layer.named_parameters())}

        def infer() -> dict[str, Any]:
            with torch.inference_mode():
                return {"y": layer(x)[0]}

        def train() -> dict[str, Any]:
            y = layer(x)[0]
            gradients = torch.autograd.grad(y, list(named.values()), dy)
            return {"y": y.detach(), **dict(zip(named, gradients, strict=True))}

        return train if case.mode == "training" else infer


class OnnxRuntime(Contender):
    """ONNX Runtime's RNN, LSTM and GRU operators on the CPU, which only infer."""

    name = "ONNX Runtime"
    modes = ("inference",)

    ORDER: ClassVar = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
    """ONNX's gate blocks, i o f c and z r h, by their places in PyTorch's order."""

    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime

        self.threads = threads
        self.versions = f"ONNX Runtime {onnxruntime.__version__} (onnx {onnx.__version__})"

    def prepare(self, case: Case) -> Step:
        import onnx
        import onnxruntime

        T, B, _, H = case.size
        x, _, parameters = case.arrays()

        def block(*names: str) -> Array:
            """(1, rows, ...): the parameters one below the other, in ONNX's gate order."""
            parts = [np.split(parameters[name], len(self.ORDER[case.cell])) for name in names]
            return np.concatenate([gates[k] for gates in parts for k in self.ORDER[case.cell]])[None]

        weights = {"W": block("weight_ih_l0"), "R": block("weight_hh_l0"), "B": block("bias_ih_l0", "bias_hh_l0")}
        options = {"linear_before_reset": 1} if case.cell == "gru" else {}
        node = onnx.helper.make_node(case.cell.upper(), ["X", *weights], ["Y"], hidden_size=H, **options)
        graph = onnx.helper.make_graph(
            [node],
            case.cell,
            [onnx.helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, x.shape)],
            [onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, [T, 1, B, H])],
            [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.threads
        settings.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])

        def infer() -> dict[str, Any]:
            return {"y": session.run(None, {"X": x})[0][:, 0]}

        return infer


CONTENDERS: tuple[type[Contender], ...] = (Gpurnn, PyTorch, OnnxRuntime)
