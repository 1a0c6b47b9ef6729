"""The reader of machine code, on instructions with known loops, and the product loops of the real kernels."""

from __future__ import annotations

import re

import pytest
from gpurnn.kernels import dtypes
from gpurnn.kernels.recurrence import plan
from gpurnn.kernels.recurrence.predict import instructions as instructions_of
from gpurnn.kernels.recurrence.predict import multiply_adds

from benchmarks import sass
from gpurnn.cells import LSTM

FLOAT = dtypes.TABLE["float32"]
VARIANTS = plan.fused_variants(LSTM(), FLOAT)

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
    assert loop.stores() == {}


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


def test_the_streaming_loop_is_that_which_loads_the_most():
    loads = sass.Loop(0, ("LDG.E.128",) * 9)
    narrow = sass.Loop(16, ("LDG.E",) * 3 + ("STG.E",))
    wide = sass.Loop(32, ("LDG.E.128.CONSTANT", "FADD", "STG.E.128"))
    assert sass.streaming_loop([loads, narrow, wide]) is wide
    assert sass.streaming_loop([loads]) is None
    assert wide.stores() == {128: 1}


@pytest.mark.parametrize(
    ("opcodes", "first"),
    [("LDG.E LDG.E FADD STG.E", True), ("LDG.E STG.E LDG.E STG.E", False), ("LDG.E", True), ("STG.E LDS", True)],
)
def test_whether_loads_come_first(opcodes, first):
    assert sass.Loop(0, tuple(opcodes.split())).loads_first is first


@needs_nvdisasm
@pytest.mark.slow
@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
@pytest.mark.parametrize(
    ("pattern", "kernels", "instructions"),
    [
        (r"update<\w+, float", 8, 1050),
        (r"update<\w+, double", 8, 850),
        (r"scaled<", 2, 40),
        (r"scan_(forward|backward)<Single, (float, float, 4|double, double, 2)>", 4, 210),
        (r"scan_(forward|backward)<Complex, (float, float, 2|double, double, 1)>", 4, 340),
        (r"cross_entropy_backward<", 2, 1150),
        (r"gather<", 2, 80),
        (r"sum_runs<", 2, 285),
    ],
)
def test_streams_load_before_they_store(pattern, kernels, instructions, architecture):
    """A round of the loop waits for memory once, and accesses the elements 128 bits at a time."""
    names = 0
    for module in sass.modules(pattern):
        for name, loops in sass.disassemble(module, architecture).items():
            if re.search(pattern, name):
                loop = sass.streaming_loop(loops)
                assert loop.loads_first, name
                assert loop.loads("LDG")[128] >= 2, name
                integers = {64} if "runs" in name else set()  # keys and positions of rows
                assert set(loop.stores()) == {128} | integers, name
                if "entropy" not in name:  # its class weights may begin anywhere
                    assert set(loop.loads("LDG")) == {128} | integers, name
                assert len(loop) <= instructions, name
                names += 1
    assert names == kernels


@needs_nvdisasm
@pytest.mark.slow
@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
@pytest.mark.parametrize(
    ("kernels", "share", "count"),
    [
        ("Exchange::(block|grid), 1, 8", 0.75, 8),
        ("Exchange::grid, 1, 2", 0.7, 4),
        ("Exchange::(block|grid), 4, (8|12)", 0.87, 20),
        ("Exchange::grid, 4, 4", 0.86, 4),
        ("Exchange::launch, 4", 0.84, 4),
        ("Exchange::launch, 1", 0.68, 4),
        ("8, 2, 12", 0.78, 2),
        ("8, [34], [68]", 0.84, 4),
    ],
)
def test_the_product_loops_multiply(kernels, share, count, architecture):
    """In float32, three quarters of the instructions multiply, and all loads have 128 bits.

    Two kernels for one row of the batch have a smaller share. With two rows of weights, 8 multiply-adds need 3 loads.
    In global memory, each row of weights has an address. The planner knows the share of multiply-adds.
    """
    pattern = rf"(Lstm<float>|Gru<float, true, false>), \w+, {kernels}"
    names = 0
    for module in sass.modules(pattern):
        for name, loops in sass.disassemble(module, architecture).items():
            loop = sass.product_loop(loops)
            assert loop.share >= share, name
            assert {*loop.loads("LDS"), *loop.loads("LDG")} == {128}, name
            variant = next(v for v in VARIANTS if name.endswith(f", {v}>"))
            known = multiply_adds(variant, FLOAT) / instructions_of(variant, FLOAT)
            assert known == pytest.approx(loop.share, rel=0.02)
            names += 1
    assert names == count


@needs_nvdisasm
@pytest.mark.slow
def test_no_step_divides_integers():
    """A division by a number that the compiler does not know takes a hundred clocks, for which a step would wait."""
    names = 0
    for module in sass.modules(r"Lstm<float>, \w+, Exchange::(block|grid), 4, 8, 3"):
        for name, code in sass.instructions(module, 90).items():
            opcodes = [instruction["opcode"].partition(".")[0] for instruction in code]
            assert "I2F" in opcodes, name  # before the first step
            assert "I2F" not in opcodes[opcodes.index("FFMA") :], name
            names += 1
    assert names == 4


@needs_nvdisasm
@pytest.mark.slow
@pytest.mark.parametrize(("columns", "rows", "share"), [(1, 2, 0.7), (4, 8, 0.87)])
def test_the_product_loops_of_kernels_that_compute_rows_read_shared_memory_alone(columns, rows, share):
    """If the compiler cannot tell that a pointer leads to shared memory, it emits a slower generic load."""
    passes = []
    for module in sass.modules(rf"rows<Lstm<float, Projection>, float, {columns}, {rows}>"):
        for name, loops in sass.disassemble(module, 90).items():
            loop = sass.product_loop(loops)
            assert set(loop.loads("LDS")) == {128}, name
            assert not loop.loads("LD"), name
            assert loop.share >= share, name
            passes.append(name.split("<")[0])
    assert sorted(passes) == ["backward_rows", "forward_rows"]


@needs_nvdisasm
@pytest.mark.slow
@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
def test_the_loops_of_attention_by_tiles_multiply(architecture):
    """In float32, both products read from shared memory 128 bits at a time."""
    names = 0
    for module in sass.modules("attend_tiles<float"):
        for name, loops in sass.disassemble(module, architecture).items():
            products = [loop for loop in loops if loop.multiply_adds >= 64]
            assert len(products) == {"attend_tiles": 2, "tile_weights": 1, "tile_means": 2}.get(name.split("<")[0], 3)
            for loop in products:
                assert loop.share >= 0.8, name
                assert set(loop.loads("LDS")) == {128}, name
            names += 1
    assert names == 15
