"""The machine code of the kernels: their innermost loops, as NVRTC compiles and ``nvdisasm`` disassembles them.

The time of a product is that of its loop. The share of multiply-adds among a loop's instructions bounds the share of
the peak that it can reach, and the width of its loads from shared memory shows how fast it can feed them. Other kernels
stream through global memory. They wait for it once per round of their loop if all its loads come before its stores. The
wider the loads, the more bytes are in flight. None of this needs a GPU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpurnn.kernels.launch import Module

from . import nvrtc
from .contenders import NotInstalled

PACKAGE = "nvidia-cuda-nvdisasm"

ARCHITECTURES = (80, 90)

STREAMING = ("optim.cu", "losses.cu", "linear_scan.cu", "embedding.cu")
"""Sources whose kernels stream through memory and have no product."""

_INSTRUCTION_BYTES = 16
"""The bytes of an instruction, since sm_70."""

_MULTIPLY_ADDS = ("FFMA", "DFMA", "HFMA2", "HMMA", "DMMA")


@dataclass(frozen=True)
class Loop:
    """An innermost loop of a kernel: the opcodes from the target of a branch back to the branch."""

    start: int
    """The offset of the first instruction, in bytes from the kernel's start."""
    opcodes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.opcodes)

    @property
    def multiply_adds(self) -> int:
        return sum(opcode.partition(".")[0] in _MULTIPLY_ADDS for opcode in self.opcodes)

    @property
    def share(self) -> float:
        """The share of multiply-adds among the instructions."""
        return self.multiply_adds / len(self)

    def loads(self, kind: str = "LDS") -> dict[int, int]:
        """Loads by bits: from shared memory, or with "LDG" from global memory."""
        return self._by_bits(kind)

    def stores(self, kind: str = "STG") -> dict[int, int]:
        """Stores by bits: to global memory, or with "STS" to shared memory."""
        return self._by_bits(kind)

    def _by_bits(self, kind: str) -> dict[int, int]:
        bits: dict[int, int] = {}
        for opcode in self.opcodes:
            name, *modifiers = opcode.split(".")
            if name == kind:
                width = next((int(m) for m in modifiers if m in ("64", "128")), 32)
                bits[width] = bits.get(width, 0) + 1
        return bits

    @property
    def loads_first(self) -> bool:
        """Whether all loads from global memory come before the first store to it."""
        kinds = [opcode.partition(".")[0] for opcode in self.opcodes]
        return "STG" not in kinds or "LDG" not in kinds[kinds.index("STG") :]


def innermost_loops(code: Sequence[dict[str, Any]]) -> list[Loop]:
    """The innermost loops of a kernel, from its instructions in the JSON of ``nvdisasm``.

    A loop is a range of addresses that ends with a branch to its first one. It is innermost if no other one is within
    it. The branch to itself that ends a kernel does not count. A range may also end with a branch back from code that
    the compiler has moved out of line: `product_loop` ignores such a range, because few of its instructions multiply.
    """
    ranges = []
    for index, instruction in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)$", instruction.get("operands", ""))
        if instruction["opcode"] == "BRA" and target:
            first = int(target[1], 16) // _INSTRUCTION_BYTES
            if first < index:
                ranges.append((first, index))
    innermost = [
        (first, last)
        for first, last in ranges
        if not any(first <= f and t <= last and (f, t) != (first, last) for f, t in ranges)
    ]
    return [
        Loop(first * _INSTRUCTION_BYTES, tuple(i["opcode"] for i in code[first : last + 1]))
        for first, last in sorted(set(innermost))
    ]


def missing() -> str | None:
    """Why nothing can be disassembled here, with the remedy; None if it can."""
    if nvrtc.missing() is not None:
        return nvrtc.missing()
    if _disassembler() is None:
        return f"nvdisasm is missing; pip install {PACKAGE}"
    return None


def _disassembler() -> Path | None:
    """The program that the package installs."""
    found = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"))
    return found[-1] if found else None


def disassemble(module: Module, architecture: int) -> dict[str, list[Loop]]:
    """The innermost loops of each kernel of a translation unit; raises what `instructions` raises."""
    return {name: innermost_loops(code) for name, code in instructions(module, architecture).items()}


def instructions(module: Module, architecture: int) -> dict[str, list[dict[str, Any]]]:
    """The instructions of each kernel of a translation unit, as in the JSON of ``nvdisasm``.

    Raises
    ------
    nvrtc.CompileError
    NotInstalled
        NVRTC or ``nvdisasm`` is not installed.
    """
    reason = missing()
    if reason is not None:
        raise NotInstalled(reason)
    code, symbols = nvrtc.cubin(module, architecture)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "kernels.cubin"
        path.write_bytes(code)
        output = subprocess.run(
            [str(_disassembler()), "-json", str(path)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ).stdout
    _, functions = json.loads(output)
    by_symbol = {function["function-name"]: function["sass-instructions"] for function in functions}
    return {name: by_symbol[symbol] for name, symbol in symbols.items()}


def product_loop(loops: Sequence[Loop]) -> Loop | None:
    """The loop of a matrix product: that with the largest share of multiply-adds and at least 8; None if none."""
    return max((loop for loop in loops if loop.multiply_adds >= 8), key=lambda loop: loop.share, default=None)


def streaming_loop(loops: Sequence[Loop]) -> Loop | None:
    """The loop that streams through memory: among loops that load and store, the one that loads the most bits."""
    streaming = (loop for loop in loops if loop.loads("LDG") and loop.stores())
    return max(streaming, key=lambda loop: sum(b * n for b, n in loop.loads("LDG").items()), default=None)


def modules(pattern: str) -> list[Module]:
    """The translation units that have a kernel whose name matches a regular expression."""
    return [module for module in nvrtc.modules() if any(re.search(pattern, name) for name in module.names)]


def report(pattern: str) -> Iterator[str]:
    """A row for each kernel whose name matches: its product loop on each architecture, or its streaming loop.

    Each row also has the registers of a thread and its spilled bytes.
    """
    reason = missing()
    if reason is not None:
        raise NotInstalled(reason)
    yield (
        "| kernel | sm | instructions | multiply-adds | share | LDS by bits | LDG by bits | STG by bits "
        "| loads before stores | registers | spilled bytes |"
    )
    yield "| --- | --: | --: | --: | --: | --- | --- | --- | --- | --: | --: |"
    for module in modules(pattern):
        for architecture in ARCHITECTURES:
            if not nvrtc.runs(module, architecture):
                continue
            resources = nvrtc.cached(module, architecture)
            for name, loops in disassemble(module, architecture).items():
                loop = streaming_loop(loops) if module.source.name in STREAMING else product_loop(loops)
                if loop is None or not re.search(pattern, name):
                    continue
                widths = " | ".join(
                    ", ".join(f"{count} x {bits}" for bits, count in sorted(accesses.items())) or "–"
                    for accesses in (loop.loads("LDS"), loop.loads("LDG"), loop.stores())
                )
                yield (
                    f"| `{name}` | {architecture} | {len(loop)} | {loop.multiply_adds} | {loop.share:.0%} "
                    f"| {widths} | {'yes' if loop.loads_first else 'no'} "
                    f"| {resources[name]['registers']} | {resources[name]['spilled']} |"
                )
