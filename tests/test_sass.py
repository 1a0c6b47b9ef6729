"""The reader of machine code, on instructions whose loops are known, and the product loops of the real kernels."""

from __future__ import annotations

import pytest

from benchmarks import sass

needs_nvdisasm = pytest.mark.skipif(sass.missing(), reason=str(sass.missing()))


def instructions(*opcodes):
    """One instruction each; an opcode may be followed by a space and its operands."""
    return [dict(zip(("opcode", "operands"), (*text.split(" ", 1), ""), strict=False)) for text in opcodes]


NESTED = instructions(
    "S2R R0,SR_TID.X",
    "MOV R1,0x10",  # 0x10: the outer loop
    "LDS.128 R4,[R1]",  # 0x20: the inner loop
    "LDS R8,[R2]",
    "LDG.E.64.CONSTANT R9,[R3]",
    "FFMA R5,R4,R8,R5",
    "FFMA.FTZ R6,R4,R8,R6",
    "FADD R7,R7,R6",
    "BRA 0x20",
    "ISETP.NE.AND P0,PT,R1,RZ,PT",
    "BRA 0x10",
    "EXIT",
    "BRA 0xc0",
)


def test_a_nest_has_one_innermost_loop():
    (loop,) = sass.innermost_loops(NESTED)
    assert (loop.start, len(loop), loop.multiply_adds) == (0x20, 7, 2)
    assert loop.share == 2 / 7
    assert loop.loads() == {32: 1, 128: 1}
    assert loop.loads("LDG") == {64: 1}


def test_two_loops_one_after_another():
    loops = sass.innermost_loops(instructions("NOP", "DFMA R0,R1,R2,R0", "BRA 0x10", "IADD3 R0,R0,R1,RZ", "BRA 0x30"))
    assert [(loop.start, loop.opcodes) for loop in loops] == [(0x10, ("DFMA", "BRA")), (0x30, ("IADD3", "BRA"))]


def test_a_branch_onwards_is_no_loop():
    assert sass.innermost_loops(instructions("BRA 0x20", "NOP", "EXIT")) == []


def test_the_product_loop_is_that_with_the_largest_share():
    wide = sass.Loop(0, ("FFMA",) * 10 + ("MOV",) * 90)
    product = sass.Loop(16, ("FFMA",) * 8 + ("LDS",) * 4)
    few = sass.Loop(32, ("FFMA",) * 7)
    assert sass.product_loop([wide, product, few]) is product
    assert sass.product_loop([few]) is None
