"""The kernels of a recurrence for one cell and one dtype."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace

import numpy as np

from gpurnn.cells import CELLS, Cell

from .. import dtypes
from ..dtypes import Dtype
from ..launch import Kernel, Module
from . import plan
from .plan import Variant


@dataclass(frozen=True)
class Struct:
    """A cell's struct in ``cells/*.cuh``, and its kernels for arrays of one dtype."""

    cell: Cell
    """Its options that are numbers do not matter: they are the struct's members, which `value` fills."""
    dtype: Dtype

    @classmethod
    def of(cls, cell: Cell, dtype: Dtype) -> Struct:
        """The struct of ``cell`` with the default numbers, which cells that differ in their numbers share."""
        numbers = {field.name: field.default for field in fields(cell) if field.name in cell.scalars}
        return cls(replace(cell, **numbers), dtype)

    def __str__(self) -> str:
        name, *arguments = self.cell.kernel_struct
        return f"{name}<{', '.join([self.dtype.real, *arguments])}>"

    def value(self, cell: Cell) -> np.void:
        """The struct's memory, as a kernel takes it: its numbers; an empty struct is a byte in C++."""
        layout = [(name, self.dtype.accumulator) for name in cell.scalars] or [("", "u1")]
        struct: np.void = np.void(tuple(getattr(cell, name) for name in cell.scalars) or (0,), layout)
        return struct

    def stepwise_module(self) -> Module:
        names = ["begin_forward", "finish_step", "begin_step_backward"]
        names += ["operand_of_step", "operand_of_step_backward"] if len(self.cell.phases) > 1 else []
        return _module(self, "stepwise.cu", tuple(map(self._stepwise, names)))

    def fused_module(self, variant: Variant) -> Module:
        return _module(self, "fused.cu", tuple(self._fused(name, variant) for name in ("forward", "backward")))

    def stepwise(self, name: str) -> Kernel:
        return self.stepwise_module()[self._stepwise(name)]

    def fused(self, name: str, variant: Variant) -> Kernel:
        return self.fused_module(variant)[self._fused(name, variant)]

    def _stepwise(self, name: str) -> str:
        return f"{name}<{self}, {self.dtype.storage}>"

    def _fused(self, name: str, variant: Variant) -> str:
        return f"{name}<{self}, {self.dtype.storage}, {variant.most_threads(self.dtype)}, {variant}>"


@functools.cache
def _module(struct: Struct, source: str, kernels: tuple[str, ...]) -> Module:
    """Kernels of a source file. The compiler proves that the cell's struct is the cell that Python describes."""
    header, proofs = f"cells/{struct.cell.file()}.cuh", proofs_of(struct.cell, str(struct))
    return Module(f"recurrence/{source}", kernels, include=header, proofs=proofs)


def proofs_of(cell: Cell, struct: str) -> list[str]:
    """Declarations by which a compiler proves that a struct is the cell that Python describes."""
    facts = {
        "gates": cell.gates,
        "phases": len(cell.phases),
        "num_saved": len(cell.saved),
        "has_c": cell.states - 1,
        "hidden_apart": int(cell.hidden_apart),
        **{f"first_gate({k})": int(end) for k, end in enumerate(np.cumsum((0, *cell.phases)))},
    }
    return [f'static_assert({struct}::{name} == {number}, "{name}");' for name, number in facts.items()]


def modules() -> list[Module]:
    """Every translation unit that a recurrence can ask for."""
    units = []
    for cell in (variant for kind in CELLS.values() for variant in kind.variants()):
        for dtype in dtypes.TABLE.values():
            struct = Struct.of(cell, dtype)
            units.append(struct.stepwise_module())
            units += [struct.fused_module(v) for v in plan.fused_variants(cell, dtype)]
    return units
