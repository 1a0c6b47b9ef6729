"""NVRTC compiles every kernel whose code has changed, for every architecture, within limits on its resources."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
from gpurnn.kernels import devices, launch
from gpurnn.kernels.recurrence import plan

from benchmarks import nvrtc

LIMITS = json.loads(Path(__file__).with_name("kernel_limits.json").read_text())
"""By kernel, the results of `python -m benchmarks nvrtc --limits`: the largest number of registers over all
architectures, and the code compiled for all of them.
"""

needs_nvrtc = pytest.mark.skipif(nvrtc.missing(), reason=str(nvrtc.missing()))
SOURCES = sorted(p for p in Path(launch.__file__).parent.rglob("*.cu*") if "host" not in p.parts)


def test_a_module_goes_to_another_process():
    """NVRTC compiles in that process."""
    for module in nvrtc.modules():
        other = pickle.loads(pickle.dumps(module))
        assert (other.names, other.cuda_source()) == (module.names, module.cuda_source())


def test_every_kernel_has_a_limit():
    assert {name for module in nvrtc.modules() for name in module.names} == LIMITS.keys()


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_kernels_keep_to_their_limits(architecture):
    """Kernels whose code has changed since the last compilation; for one architecture also a share of all others."""
    chosen = nvrtc.changed(LIMITS)
    if architecture == nvrtc.TIMED_ARCHITECTURE:
        chosen += nvrtc.modules()[::8]
    jobs = [(module, architecture) for module in chosen if nvrtc.runs(module, architecture)]
    for (name, _), resources in nvrtc.compile_all(jobs).items():
        assert nvrtc.fault(name, resources) is None
        assert 0 < resources["registers"] <= LIMITS[name]["registers"], name


def test_code_that_changes_is_compiled_for_all_architectures_again(monkeypatch):
    module = nvrtc.modules()[0]
    code, texts = nvrtc.digest(module), module.texts
    monkeypatch.setattr(module, "_texts", {path: text + "\n// a comment" for path, text in texts.items()})
    assert nvrtc.digest(module) == code
    for path in texts:
        monkeypatch.setattr(module, "_texts", texts | {path: texts[path] + "\nint x;"})
        assert nvrtc.digest(module) != code
    monkeypatch.undo()
    limits = {name: {"code": code} for name, code in nvrtc.digests().items()}
    assert nvrtc.changed(limits) == []
    limits[module.names[0]]["code"] = "another"
    assert [found.names for found in nvrtc.changed(limits)] == [module.names]
    del limits[module.names[0]]
    assert [found.names for found in nvrtc.changed(limits)] == [module.names]


@needs_nvrtc
@pytest.mark.parametrize("device", devices.DEVICES.values(), ids=devices.DEVICES)
def test_a_block_of_every_fused_kernel_fits(device):
    """The planner assumes this."""
    planned = {name: limit["registers"] for name, limit in LIMITS.items() if nvrtc.is_planned(name)}
    assert {name.split("<")[0] for name in planned} == {"forward", "backward", "backward_scatter"}
    for name, registers in planned.items():
        assert devices.occupancy(device, plan.THREADS, registers, device.shared_memory_per_block) >= 1, name


def test_the_options_are_those_of_cupy(monkeypatch):
    """CuPy's own compilation, stopped before it passes the source to NVRTC."""
    compiler = pytest.importorskip("cupy.cuda.compiler", reason="CuPy isn't installed")

    class Handed(Exception):
        pass

    class Program:
        def __init__(self, source, *args, **kwargs):
            self.source = source

        def compile(self, options, log_stream=None):
            if self.source:
                raise Handed(*options)
            return b"", None  # with the empty program, CuPy asks for the compiler's version

    monkeypatch.setattr(compiler, "_NVRTCProgram", Program)
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda arch: (f"-arch=sm_{arch}", "cubin"))
    monkeypatch.setattr(compiler, "_get_nvrtc_version", lambda: (12, 9))
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")  # nothing is read from the cache on disk
    module = nvrtc.modules()[0]
    with pytest.raises(Handed) as handed:
        compiler._compile_module_with_cache(*module.cuda_source(), arch="90", name_expressions=module.names)
    assert {*handed.value.args, "--ptxas-options=-v"} == set(nvrtc.cuda_source(module, 90)[1])


@needs_nvrtc
def test_an_error_shows_the_line_of_the_source(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void wrong(float* x) {\n    x[0] = y;\n}\n")
    with pytest.raises(nvrtc.CompileError, match=r'wrong\.cu\(2\): error: identifier "y" is undefined'):
        nvrtc.compile_module(launch.Module(source, ["wrong"]), 90)


@needs_nvrtc
def test_spills_are_seen(tmp_path):
    """Shows that the check can fail, on a kernel with more live values than registers."""
    source = tmp_path / "spills.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spills(float* x) {\n"
        "    float v[100];\n"
        "    for (int i = 0; i < 100; ++i) v[i] = x[i * 1024 + threadIdx.x];\n"
        "    __syncthreads();\n"
        "    for (int i = 0; i < 100; ++i) x[i * 1024 + threadIdx.x] = v[99 - i] * v[i] + v[(i * 7) % 100];\n"
        "}\n"
    )
    resources = nvrtc.compile_module(launch.Module(source, ["spills"]), 90)["spills"]
    assert resources["spilled"] > 0
    assert 0 < resources["registers"] <= 32


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_sources_hold_to_the_rules(path):
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    # Headers that take seconds to compile, or that no pip wheel contains.
    assert not re.search(r"#\s*include\s*[<\"](cooperative_groups|cub/|cuda/atomic|mma\.h)", code)
    if path.name != "intrinsics.cuh":
        # Only the few functions of that header exchange data between blocks.
        assert not re.search(r"\b_*asm_*\b|__ldcg|__stcg|\bvolatile\b|__threadfence|\batomic[A-Z]", code)
