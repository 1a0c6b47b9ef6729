"""The recurrent operators of ONNX, for its reference evaluator, and gpurnn as one of its backends.

`OPERATORS` compute RNN, LSTM and GRU within `onnx.reference.ReferenceEvaluator`, whose own operators lack activations,
clips and more; `gpurnn.interop.onnx_ops` returns them. `Backend` is an `onnx.backend.base.Backend` that evaluates all
other operators with that evaluator. Its methods are also functions of this module, as ONNX requires of a backend.

Examples
--------
>>> import numpy as np
>>> import gpurnn
>>> from gpurnn import interop
>>> from gpurnn.interop import onnx_backend
>>> layer, x = gpurnn.GRU(3, 4, update="state"), np.ones((5, 2, 3), np.float32)
>>> lengths, h = np.array([5, 2], np.int32), np.zeros((1, 2, 4), np.float32)
>>> y, h_n = onnx_backend.run_model(interop.to_onnx(layer), [x, lengths, h])
>>> bool((y == layer(x, h, lengths=lengths)[0]).all())
True
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    from onnx import ModelProto, NodeProto, helper
    from onnx.backend.base import Backend as _Base
    from onnx.backend.base import BackendRep
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun
except ImportError as error:
    raise ImportError("gpurnn.interop.onnx_backend needs onnx; pip install 'gpurnn[onnx]'") from error

from .. import _checks
from .onnx import INPUTS, WEIGHTS, read_operator, run_operator

__all__ = ["OPERATORS", "Backend", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]


class _Recurrent(OpRun):
    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        where = type(self).__name__
        given = {symbol: array for symbol, array in zip(INPUTS, inputs, strict=False) if array is not None}
        _checks.given(where, X=given.get("X"))
        weights = {symbol: given[symbol] for symbol in WEIGHTS if symbol in given}
        said = {attribute.name for attribute in self.onnx_node.attribute}  # all others are defaults
        attributes = {name: value for name, value in attributes.items() if name in said}
        operator = read_operator(where, where, attributes, weights)
        states = given.get("initial_h"), given.get("initial_c")
        outputs = run_operator(where, operator, given["X"], given.get("sequence_lens"), *states)
        return outputs[: len(self.onnx_node.output)]


class RNN(_Recurrent):
    """ONNX's RNN: see `gpurnn.rnn`."""


class LSTM(_Recurrent):
    """ONNX's LSTM: see `gpurnn.lstm`."""


class GRU(_Recurrent):
    """ONNX's GRU: see `gpurnn.gru`."""


OPERATORS = [RNN, LSTM, GRU]


class _Prepared(BackendRep):
    def __init__(self, model: ModelProto) -> None:
        self._evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
        constants = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [value.name for value in model.graph.input if value.name not in constants]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model on inputs by name or in order, or on a single input; return its outputs."""
        if not isinstance(inputs, (Mapping, list, tuple)):
            inputs = [inputs]
        feeds = inputs if isinstance(inputs, Mapping) else dict(zip(self._inputs, inputs, strict=True))
        return tuple(self._evaluator.run(None, dict(feeds)))


class Backend(_Base):
    """gpurnn as a backend of ONNX, on the CPU: see `onnx.backend.base.Backend`."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run on a device; only "CPU" is supported."""
        return str(device).partition(":")[0] == "CPU"

    @classmethod
    def _check_device(cls, where: str, device: str) -> None:
        if not cls.supports_device(device):
            raise ValueError(f"{where}: device is {device!r}, expected 'CPU'")

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> BackendRep:
        """Check a model and prepare it to run: ``prepare(model).run(inputs)``.

        Parameters
        ----------
        model : onnx.ModelProto
        device : str
            "CPU".

        Raises
        ------
        ValueError
            The device is not "CPU".
        onnx.checker.ValidationError
            The model is not a valid ONNX model.
        """
        cls._check_device("prepare", device)
        super().prepare(model, device, **kwargs)
        return _Prepared(model)

    @classmethod
    def run_node(
        cls, node: NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run a single operator; return its outputs.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence or dict of arrays
            The inputs, by name or in the order of the node's named inputs.
        device : str
            "CPU".
        outputs_info
            Not read.
        opset_version : int, optional
            The opset version of the operator.

        Raises
        ------
        ValueError
            As in `prepare`.
        """
        cls._check_device("run_node", device)
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        names = [name for name in node.input if name]
        feeds = inputs if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
        arrays = {name: np.asarray(array) for name, array in feeds.items()}
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        opset = [helper.make_opsetid(node.domain, kwargs["opset_version"])] if "opset_version" in kwargs else None
        model = helper.make_model(helper.make_graph([node], "node", infos, outputs), opset_imports=opset)
        return _Prepared(model).run(arrays)


is_compatible, prepare, run_model = Backend.is_compatible, Backend.prepare, Backend.run_model
run_node, supports_device = Backend.run_node, Backend.supports_device
