"""The contenders. A contender turns a case into a step: a function without arguments that returns arrays by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from .cases import MODES, STEP, AnyCase, Array, Case, Smoothing, Update

Step = Callable[[], dict[str, Any]]


class NotInstalled(Exception):
    """The Python that should run the contender cannot import its library."""


class Contender(Protocol):
    """A library that a worker runs. The constructor imports it, and raises ImportError if it is not there."""

    name: ClassVar[str]
    is_peer: ClassVar[bool]
    """Whether the Python of the peers runs it. Otherwise that of gpurnn does."""

    versions: str

    def __init__(self, threads: int) -> None: ...

    @classmethod
    def takes(cls, case: AnyCase) -> bool:
        """Whether the contender can take part in a case."""

    def prepare(self, case: AnyCase) -> Step:
        """The step of a case that the contender takes."""


class Gpurnn(Contender):
    """gpurnn on NumPy arrays."""

    name = "gpurnn"
    is_peer = False

    def __init__(self, threads: int) -> None:  # read from the environment, as by NumPy's BLAS
        import gpurnn
        from gpurnn import _dispatch

        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        wing = _dispatch.numpy_wing()
        if wing == "native":
            from gpurnn.kernels.native import processor

            wing = f"native ({processor.chosen()})"
        self.versions = f"gpurnn {gpurnn.__version__}, {wing}, on NumPy {np.__version__}"
        self.versions += f" with {blas['name']} {blas['version']}"

    @classmethod
    def takes(cls, case: AnyCase) -> bool:
        return True

    def prepare(self, case: AnyCase) -> Step:
        import gpurnn

        if isinstance(case, Update):
            parameter, gradient = case.arrays()
            optimizer = gpurnn.Adam(lr=1e-3)

            def update() -> dict[str, Any]:
                optimizer.step({"parameter": parameter}, {"parameter": gradient})
                return {"parameter": parameter}

            return update
        if isinstance(case, Smoothing):
            arrays = case.arrays()
            model = gpurnn.LinearGaussian(*(arrays[name] for name in ("F", "H", "Q", "R", "m0", "P0")))

            def smooth() -> dict[str, Any]:
                found = model.smooth(arrays["y"])
                return {"mean": found.mean, "covariance": found.covariance}

            return smooth
        _, _, I, H = case.size
        x, dy, parameters = case.arrays()
        if case.cell.startswith("gru"):
            layer = gpurnn.GRU(I, H, reset_after=case.cell == "gru", update="state")
        else:
            layer = {"rnn": gpurnn.RNN, "lstm": gpurnn.LSTM}[case.cell](I, H)
        layer.load_state_dict(parameters)
        state: Any = case.state() if case.cell == "lstm" else case.state()[0]

        def infer() -> dict[str, Any]:
            return {"y": layer.step(x[0], state)[0][None] if case.mode == STEP else layer(x)[0]}

        def train() -> dict[str, Any]:
            (y, _), pullback = layer.vjp(x)
            (dx, _), gradients = pullback((dy, None))
            return {"y": y, "dx": dx, **gradients}

        return train if case.mode == "training" else infer


class PyTorch(Contender):
    """torch.nn's layers and cells, and torch.optim, on the CPU."""

    name = "PyTorch"
    is_peer = True

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.versions = f"PyTorch {torch.__version__}"

    @classmethod
    def takes(cls, case: AnyCase) -> bool:
        return isinstance(case, Update) or (isinstance(case, Case) and case.cell != "gru-before")

    def prepare(self, case: AnyCase) -> Step:
        import torch

        if isinstance(case, Update):
            parameter, gradient = map(torch.from_numpy, case.arrays())
            parameter.requires_grad_().grad = gradient
            optimizer = torch.optim.Adam([parameter], lr=1e-3, fused=True)

            def update() -> dict[str, Any]:
                optimizer.step()
                return {"parameter": parameter.detach()}

            return update
        assert isinstance(case, Case)
        _, _, I, H = case.size
        inputs, cotangent, parameters = case.arrays()
        tensors = {name: torch.from_numpy(p) for name, p in parameters.items()}
        if case.mode == STEP:
            cell = {"rnn": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[case.cell](I, H)
            cell.load_state_dict({name.removesuffix("_l0"): p for name, p in tensors.items()})
            h, c = (torch.from_numpy(s[0]) for s in case.state())
            row = torch.from_numpy(inputs[0])

            def step() -> dict[str, Any]:
                with torch.inference_mode():
                    return {"y": cell(row, (h, c))[0][None] if case.cell == "lstm" else cell(row, h)[None]}

            return step
        layer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell](I, H)
        layer.load_state_dict(tensors)
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
    """ONNX Runtime's RNN, LSTM and GRU operators on the CPU, for inference only."""

    name = "ONNX Runtime"
    is_peer = True

    ORDER: ClassVar = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "gru-before": (1, 0, 2)}
    """ONNX's gate blocks, i o f c and z r h, as places in PyTorch's order."""

    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime

        self.threads = threads
        self.versions = f"ONNX Runtime {onnxruntime.__version__} (onnx {onnx.__version__})"

    @classmethod
    def takes(cls, case: AnyCase) -> bool:
        return isinstance(case, Case) and case.mode == "inference"

    def prepare(self, case: AnyCase) -> Step:
        import onnx
        import onnxruntime

        assert isinstance(case, Case)
        T, B, _, H = case.size
        x, _, parameters = case.arrays()

        def block(*names: str) -> Array:
            """(1, rows, ...): the parameters one below the other, in ONNX's gate order."""
            parts = [np.split(parameters[name], len(self.ORDER[case.cell])) for name in names]
            return np.concatenate([gates[k] for gates in parts for k in self.ORDER[case.cell]])[None]

        weights = {"W": block("weight_ih_l0"), "R": block("weight_hh_l0"), "B": block("bias_ih_l0", "bias_hh_l0")}
        options = {"linear_before_reset": 1} if case.cell == "gru" else {}
        operator = case.cell.partition("-")[0].upper()
        node = onnx.helper.make_node(operator, ["X", *weights], ["Y"], hidden_size=H, **options)
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


class Statsmodels(Contender):
    """The Kalman smoother of statsmodels, which is compiled."""

    name = "statsmodels"
    is_peer = True

    def __init__(self, threads: int) -> None:
        import statsmodels
        import statsmodels.tsa.statespace.kalman_smoother

        self.versions = f"statsmodels {statsmodels.__version__}"

    @classmethod
    def takes(cls, case: AnyCase) -> bool:
        return isinstance(case, Smoothing)

    def prepare(self, case: AnyCase) -> Step:
        from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

        assert isinstance(case, Smoothing)
        arrays = case.arrays()
        model = KalmanSmoother(k_endog=1, k_states=case.season, k_posdef=case.season)
        model.bind(arrays["y"].copy())
        model["selection"] = np.eye(case.season)
        names = {"transition": "F", "design": "H", "state_cov": "Q", "obs_cov": "R"}
        for name, own in names.items():
            model[name] = arrays[own]
        model.initialize_known(arrays["m0"], arrays["P0"])

        def smooth() -> dict[str, Any]:
            found = model.smooth()
            return {
                "mean": found.smoothed_state.T, "covariance": found.smoothed_state_cov.transpose(2, 0, 1)
            }  # fmt: skip

        return smooth


class Memory(Contender):
    """NumPy, which reads and writes once all numbers that an update needs."""

    name = "one pass over memory"
    is_peer = True

    def __init__(self, threads: int) -> None:
        self.versions = f"NumPy {np.__version__}"

    @classmethod
    def takes(cls, case: AnyCase) -> bool:
        return isinstance(case, Update)

    def prepare(self, case: AnyCase) -> Step:
        assert isinstance(case, Update)
        parameter, gradient = case.arrays()
        mean, square = np.zeros((2, case.parameters), np.float32)
        pairs = [(parameter, gradient), (mean, mean), (square, square)]

        def touch() -> dict[str, Any]:  # reads parameter, gradient and both moments, and writes all but the gradient
            for written, read in pairs:
                np.add(written, read, out=written)
            return {}

        return touch


class MultiplyAdds(Contender):
    """The multiply-adds of a layer's products, on the threads of the compiled wing, and nothing else."""

    name = "multiply-adds"
    is_peer = False

    def __init__(self, threads: int) -> None:  # read from the environment
        from gpurnn.kernels.compiler import CompilerError
        from gpurnn.kernels.native import build, processor

        source = Path(__file__).with_name("multiply_adds.cpp")
        try:
            self.library = build.load(build.Library("multiply_adds", lambda: source.read_text(encoding="utf-8")))
        except CompilerError as error:
            raise ImportError(str(error)) from error
        self.versions = f"multiply-adds in {processor.chosen()} registers"

    @classmethod
    def takes(cls, case: AnyCase) -> bool:
        return isinstance(case, Case) and case.mode in MODES

    def prepare(self, case: AnyCase) -> Step:
        from gpurnn.kernels.native import build, threads

        assert isinstance(case, Case)
        team = threads.team()
        room = np.empty((team.most, 16), np.float32)

        def multiply() -> dict[str, Any]:
            build.call(self.library.gpurnn_multiply_adds, team, case.multiply_adds(), room)
            return {}

        return multiply


CONTENDERS: tuple[type[Contender], ...] = (Gpurnn, PyTorch, OnnxRuntime, Statsmodels, Memory, MultiplyAdds)
