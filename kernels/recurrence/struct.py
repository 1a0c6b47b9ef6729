"""The kernels of a recurrence for one cell and one dtype."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurnn._contract import Array
from gpurnn.cells import CELLS, GRU, LSTM, Cell, IndRNN

from .. import dtypes
from ..arrays import address
from ..dtypes import Dtype
from ..launch import Kernel, Module
from . import plan
from .plan import Variant


@dataclass(frozen=True)
class Struct:
    """A cell's struct in ``cells/*.cuh``, and its kernels for arrays of one dtype."""

    cell: Cell
    """The cell without its numbers: they are members of the struct, which `value` fills."""
    dtype: Dtype

    @classmethod
    def of(cls, cell: Cell, dtype: Dtype) -> Struct:
        """The struct of ``cell``. Cells that differ only in their numbers share it."""
        return cls(cell.without_numbers, dtype)

    def __str__(self) -> str:
        return self.cell.kernel_type(self.dtype.real)

    def value(self, cell: Cell, weights: Array | None = None, masks: Array | None = None) -> np.void:
        """The struct's memory, as a kernel takes it; an empty struct is one byte in C++.

        Parameters
        ----------
        weights : (D, W, H) array
            The weights of ``cell.diagonal``, if any, in the accumulator's dtype, like ``masks``.
        masks : (M, D, T, B, H) array
            The masks that ``cell.step_masks`` names.
        """
        real, values = self.dtype.accumulator, list[Any]()
        members: list[Any] = []
        if cell.numbers:
            members.append(("numbers", real, (len(cell.numbers),)))
            values.append(cell.numbers)
        for name, array, count in (("weights", weights, len(cell.diagonal)), ("masks", masks, len(cell.step_masks))):
            if count:  # a pointer, and room for the values that a thread reads there
                members += [(f"all {name}", "u8"), (name, real, (count,))]
                values += [0 if array is None else address(array), (0,) * count]
        layout = np.dtype(members or [("", "u1")], align=True)
        struct: Any = np.array(tuple(values) or (0,), layout)[()]
        memory: np.void = struct
        return memory

    def stepwise_module(self) -> Module:
        names = ["begin_forward", "finish_step", "begin_step_backward"]
        names += ["operand_of_step", "operand_of_step_backward"] if len(self.cell.phases) > 1 else []
        return _module(self, "stepwise.cu", tuple(map(self._stepwise, names)))

    def independent_module(self) -> Module:
        return _module(
            self, "independent.cu", tuple(map(self._stepwise, ("independent_forward", "independent_backward")))
        )

    def fused_module(self, variant: Variant) -> Module:
        kernels = tuple(self._fused(name, variant) for name in variant.passes)
        source = "scatter.cu" if variant.exchange == "scatter" else "fused.cu"
        return _module(self, source, kernels, variant.blocks)

    def stepwise(self, name: str) -> Kernel:
        return self.stepwise_module()[self._stepwise(name)]

    def independent(self, name: str) -> Kernel:
        return self.independent_module()[self._stepwise(name)]

    def fused(self, name: str, variant: Variant) -> Kernel:
        return self.fused_module(variant)[self._fused(name, variant)]

    def rows_module(self) -> Module:
        """The kernels of a cell with sums over units, except those of a pass in one launch."""
        return _module(self, "rows.cu", tuple(map(self._row_kernel, self._row_kernels())))

    def one_launch_module(self, variant: Variant) -> Module:
        names = ("forward_rows", "backward_rows")
        return _module(self, "rows.cu", tuple(self._one_launch(name, variant) for name in names))

    def row_kernel(self, name: str) -> Kernel:
        """A kernel in which a few warps share a row. The name of a phase's kernel ends with the phase's number."""
        return self.rows_module()[self._row_kernel(name)]

    def one_launch(self, name: str, variant: Variant) -> Kernel:
        return self.one_launch_module(variant)[self._one_launch(name, variant)]

    def pass_kernel(self, name: str, variant: Variant) -> Kernel:
        """The kernel of a whole pass, "forward" or "backward"."""
        return self.one_launch(f"{name}_rows", variant) if self.cell.sums_over_units else self.fused(name, variant)

    def _row_kernels(self) -> list[str]:
        phases = len(self.cell.phases) + self.cell.projects
        names = [f"{name}_phase {k}" for k in range(phases) for name in ("forward", "backward")]
        normed = ["normalise", "normalise_backward"] if self.cell.normalises else []
        return ["begin_rows", *names, *normed]

    def _row_kernel(self, name: str) -> str:
        name, _, phase = name.partition(" ")
        return f"{name}<{self}, {self.dtype.storage}{phase and ', ' + phase}>"

    def _one_launch(self, name: str, variant: Variant) -> str:
        return f"{name}<{self}, {self.dtype.storage}, {variant.columns}, {variant.tile_rows}>"

    def _stepwise(self, name: str) -> str:
        return f"{name}<{self}, {self.dtype.storage}>"

    def _fused(self, name: str, variant: Variant) -> str:
        kernel = f"{name}_scatter" if variant.exchange == "scatter" else name
        return f"{kernel}<{self}, {self.dtype.storage}, {variant}>"


@functools.cache
def _module(struct: Struct, source: str, kernels: tuple[str, ...], blocks: int = 1) -> Module:
    """Kernels of a source file, in clusters of ``blocks``.

    The compiler checks that the cell's struct is the cell that Python describes.
    """
    header, proofs = f"cells/{struct.cell.file()}.cuh", proofs_of(struct.cell, str(struct))
    size = struct.value(struct.cell).nbytes
    proofs.append(f'static_assert(sizeof({struct}) == {size}, "memory");')
    return Module(f"recurrence/{source}", kernels, cluster=blocks, include=header, proofs=proofs)


def multiply_kernel(dtype: Dtype, columns: int) -> Kernel:
    """The product of the step-fused schedule for cells with sums over units."""
    return _multiply_module(dtype)[f"multiply<{dtype.types}, {columns}>"]


@functools.cache
def _multiply_module(dtype: Dtype) -> Module:
    return Module("recurrence/rows.cu", [f"multiply<{dtype.types}, {columns}>" for columns in (1, 4)])


def proofs_of(cell: Cell, struct: str) -> list[str]:
    """Declarations by which a compiler checks that a struct is the cell that Python describes."""
    facts = {
        "gates": cell.gates,
        "phases": len(cell.phases),
        "num_saved": len(cell.saved),
        "num_numbers": len(cell.numbers),
        "num_weights": len(cell.diagonal),
        "num_masks": len(cell.step_masks),
        "has_c": cell.states - 1,
        "hidden_apart": int(cell.hidden_apart),
        **{f"first_gate({k})": int(end) for k, end in enumerate(np.cumsum((0, *cell.phases)))},
    }
    if cell.sums_over_units:
        groups = [k for k, gates in enumerate(cell.norm_groups) for _ in range(gates)]
        facts |= {f"norm_group({gate})": group for gate, group in enumerate(groups)}
    gates = list(cell.gate_functions)
    for k, (gate, reads) in enumerate(cell.diagonal.values()):
        facts[f"weight_gate({k})"], facts[f"weight_reads({k})"] = gates.index(gate), cell.saved.index(reads)
    return [f'static_assert({struct}::{name} == {number}, "{name}");' for name, number in facts.items()]


def modules() -> list[Module]:
    """The translation units of a recurrence, for the cells that an installation brings and for some others.

    A cell with other options is compiled when a call asks for it.
    """
    units = []
    for cell in (variant for kind in CELLS.values() for variant in kind.variants()):
        for dtype in dtypes.TABLE.values():
            struct = Struct.of(cell, dtype)
            units.append(struct.stepwise_module())
            units += [struct.fused_module(v) for v in plan.fused_variants(cell, dtype)]
    for dtype in dtypes.TABLE.values():
        units.append(_multiply_module(dtype))
        for cell in (LSTM(layer_norm=True), LSTM(proj_size=1), GRU(layer_norm=True)):
            struct = Struct.of(cell, dtype)
            variants = sorted({v for v in plan.fused_variants(cell, dtype) if v.exchange == "grid"}, key=str)
            units += [struct.rows_module(), *(struct.one_launch_module(v) for v in variants)]
    structs = [Struct.of(cell, dtype) for cell in IndRNN.variants() for dtype in dtypes.TABLE.values()]
    return units + [struct.independent_module() for struct in structs]
