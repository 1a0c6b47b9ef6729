"""Kernels by name, launched where their arrays are: CuPy arrays on their GPU, NumPy arrays on the host executor.

    module = Module("add.cu", kernels=["add<float>"])
    module["add<float>"]((blocks,), (256,), (x, y, out, np.int32(n)))

This is the only file that touches ``cupy.RawModule``. Importing it does not import CuPy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import is_cupy_array

from gpurnn import _fork

from . import devices, host
from .arrays import address, is_captured
from .compiler import KERNELS, digest_of, source_closure, translation_unit
from .recent import Recent
from .residency import AT_ONCE, NotResident, all_at_once, raise_given_up

__all__ = ["CUPY_OPTIONS", "MOST_NODES", "Bound", "Kernel", "Module", "Parameter"]

CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
"""The options that CuPy adds to those of a module, except the architecture and the directories of its own headers."""

_SHARED_BYTES = 48 * 1024
"""Bytes of dynamic shared memory that a kernel may use without raising its limit."""

MOST_NODES = 4096
"""The most launches of a graph, whose memory grows with them."""

_SERIES = Recent(64)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A kernel's parameter, as the host's compiler describes it."""

    name: str
    element: str
    """A NumPy type code; ``"V24"`` is a struct of 24 bytes."""
    is_array: bool
    is_const: bool

    @staticmethod
    def of(name: str, text: str) -> Parameter:
        """The parameter that ``host/cuda_on_host.h`` describes as ``text``, such as ``const f4*``."""
        element = text.removeprefix("const ")
        if element.endswith("**"):
            return Parameter(name, "u8", True, text.startswith("const "))
        return Parameter(name, element.removesuffix("*"), element.endswith("*"), text.startswith("const "))


def parameter_names(texts: Mapping[Path, str], kernel: str) -> list[str]:
    """The names of the parameters of ``kernel``, from its source."""
    function = kernel.split("<")[0].split("::")[-1]
    for text in texts.values():
        code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
        match = re.search(rf"__global__[^;{{}}]*?\b{re.escape(function)}\s*\(([^)]*)\)", code)
        if match:
            return [part.split()[-1].lstrip("*") for part in match[1].split(",") if part.strip() not in ("", "void")]
    raise ValueError(f"no `__global__` function {function} in {next(iter(texts))} or what it includes")


class Module:
    """The kernels of one source file, compiled at their first launch.

    Parameters
    ----------
    source : str or Path
        The ``.cu`` file; a relative path starts in ``kernels/``.
    kernels : sequence of str
        Names, or template instances such as ``"step<float, 4>"``.
    defines : mapping of str to str, optional
        Macros.
    cluster : int
        The blocks of a cluster along x, where kernels are declared with ``IN_CLUSTERS`` of ``intrinsics.cuh``.
    include : str, optional
        A header in ``kernels/`` to include before the source: it defines the arguments of its templates.
    proofs : sequence of str
        ``static_assert`` declarations about the kernels.
    """

    def __init__(
        self,
        source: str | Path,
        kernels: Sequence[str],
        defines: Mapping[str, str] | None = None,
        *,
        cluster: int = 1,
        include: str | None = None,
        proofs: Sequence[str] = (),
    ) -> None:
        self.source = KERNELS / source
        self.names = tuple(kernels)
        self.defines = dict(defines or {})
        self.cluster = cluster
        if cluster > 1:
            self.defines["CLUSTER_BLOCKS"] = str(cluster)
        self.include = include
        self.proofs = tuple(proofs)
        self._lock = _fork.Lock(threading.RLock)  # so that threads compile it once
        self._compiles_under: Any = None  # the lock; the child of a fork has another one
        self._texts: dict[Path, str] | None = None
        self._libraries: dict[str, host.Library] = {}
        self._raw: Any = None
        self._kernels = {name: Kernel(self, name) for name in self.names}

    def __reduce__(self) -> tuple[Any, ...]:
        # Its lock and its compiled kernels stay in this process.
        description = (self.source, self.names, self.defines)
        return functools.partial(
            type(self), cluster=self.cluster, include=self.include, proofs=self.proofs
        ), description

    def __getitem__(self, name: str) -> Kernel:
        if name not in self.names:
            raise KeyError(f"{self.source.name} was asked for the kernels {', '.join(self.names)}, not {name}")
        return self._kernels[name]

    @property
    def texts(self) -> dict[Path, str]:
        """The source file and every file that it includes, as they are at the first use."""
        if self._texts is None:
            self._texts = source_closure(self.source, self.include)
        return self._texts

    @property
    def lock(self) -> Any:
        """The lock for work that is done once for all threads."""
        return self._lock.current

    @contextlib.contextmanager
    def _compiling(self) -> Iterator[None]:
        """Compile alone. A signal handler or finaliser that interrupts it would wait for itself; it gets an error."""
        lock = self._lock.current
        with lock:
            if self._compiles_under is lock:
                raise RuntimeError(
                    f"{self.source.name}: a signal handler or a finaliser asks for kernels whose compilation it has "
                    "interrupted; have it compute what has been computed before, or with NumPy"
                )
            self._compiles_under = lock
            try:
                yield
            finally:
                self._compiles_under = None

    def library(self, build: str) -> host.Library:
        """The kernels compiled for the host executor."""
        if build not in self._libraries:
            with self._compiling():
                if build not in self._libraries:
                    self._libraries[build] = host.Library(
                        self.source, self.names, self.defines, build, include=self.include, proofs=self.proofs
                    )
        return self._libraries[build]

    def cuda_source(self) -> tuple[str, tuple[str, ...]]:
        """The source and the options for a GPU's compiler."""
        # CuPy's cache of binaries knows this text but not the files that it includes, hence their digest.
        content = digest_of(*(f"{path.name}\n{text}" for path, text in sorted(self.texts.items())))
        text = f'#line 1 "{self.source}"\n{self.texts[self.source.resolve()]}'
        code = f"// {content}\n" + translation_unit(text, self.include, self.proofs)
        options = ("-std=c++17", f"-I{KERNELS}", f"-I{self.source.parent}")
        return code, options + tuple(f"-D{name}={value}" for name, value in sorted(self.defines.items()))

    def raw_function(self, name: str) -> Any:
        """A kernel compiled for the current GPU."""
        with self._compiling():  # CuPy compiles at the first `get_function`
            return self.raw_module().get_function(name)

    def raw_module(self) -> Any:
        """The kernels as a CuPy module."""
        if self._raw is None:
            import cupy

            code, options = self.cuda_source()
            self._raw = cupy.RawModule(code=code, options=options, name_expressions=self.names)
        return self._raw


class Kernel:
    """A kernel of a `Module`; call it to launch it."""

    def __init__(self, module: Module, name: str) -> None:
        self.module = module
        self.name = name
        self._parameter_names: list[str] | None = None
        self._parameters: dict[str, list[Parameter]] = {}
        self._raw: Any = None
        self._roomy: set[int] = set()

    @property
    def parameter_names(self) -> list[str]:
        if self._parameter_names is None:
            self._parameter_names = parameter_names(self.module.texts, self.name)
        return self._parameter_names

    def parameters(self, build: str) -> list[Parameter]:
        """The kernel's parameters, as the compiler of a build of the host executor reports them."""
        if build not in self._parameters:
            descriptions = self.module.library(build).parameters(self.name)
            pairs = zip(self.parameter_names, descriptions, strict=True)
            self._parameters[build] = [Parameter.of(*pair) for pair in pairs]
        return self._parameters[build]

    def function(self, device: int, shared_bytes: int) -> Any:
        """CuPy's kernel for ``device``, the current one, ready for launches with that much dynamic shared memory.

        The limit of shared memory is set once, to the most that the device has: all threads launch the same function.
        """
        if self._raw is None:
            self._raw = self.module.raw_function(self.name)
        if shared_bytes > _SHARED_BYTES and device not in self._roomy:
            most = devices.of_index(device).shared_memory_per_block
            self._raw.max_dynamic_shared_size_bytes = most - self._raw.shared_size_bytes
            self._roomy.add(device)
        return self._raw.kernel

    def bind(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        changing: Sequence[str] = (),
        shared_mem: int = 0,
        cooperative: bool = False,
        reachable: Sequence[Any] = (),
    ) -> Bound:
        """Check the arguments of a launch once, for a kernel that is launched many times.

        Parameters
        ----------
        grid, block : tuple of int
            Blocks, and threads of a block, along x, y and z.
        args : sequence
            For each pointer a C-contiguous array or None, for each other parameter a NumPy scalar of the same type:
            Python's ints and floats would be passed as 64-bit values.
        changing : sequence of str
            The names of the parameters that differ between launches. Their arguments here are examples of the types.
        shared_mem : int
            Bytes of dynamic shared memory.
        cooperative : bool
            All blocks run side by side, as a `GridBarrier` needs.
        reachable : sequence of arrays
            Arrays that the kernel reaches through pointers in memory, not through its arguments.

        Raises
        ------
        TypeError, ValueError
            If the arguments do not fit the kernel's parameters or are not on the current device, or the grid fits no
            GPU.
        NotResident
            If a cooperative grid has more blocks than the current device holds at once.
        """
        others = (a for a in (*args, *reachable) if a is not None and not isinstance(a, np.generic))
        arrays = [a for a in others if isinstance(a, np.ndarray) or is_cupy_array(a)]
        on_gpu = {not isinstance(a, np.ndarray) for a in arrays}
        if len(on_gpu) != 1:
            what = "NumPy and CuPy arrays" if on_gpu else "no array"
            raise TypeError(f"{self.name}: the arguments hold {what}, expected arrays of one library")
        build = None if on_gpu.pop() else host.current_execution().build
        self._check_sizes(grid, block, shared_mem)
        self._check_arguments(build, args)
        places = tuple(self.parameter_names.index(name) for name in changing)
        if build is not None:
            launch = functools.partial(
                self.module.library(build).launch,
                self.name,
                grid,
                block,
                names=self.parameter_names,
                shared_bytes=shared_mem,
                cooperative=cooperative,
                reachable=reachable,
            )
            return Bound(self, launch, _values(args), places)
        return self._bind_on_gpu(grid, block, args, arrays, places, shared_mem, cooperative)

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        cooperative: bool = False,
        reachable: Sequence[Any] = (),
    ) -> None:
        """Launch the kernel, on a GPU on the current stream. The arguments are those of `bind`.

        Raises
        ------
        TypeError, ValueError, NotResident
            See `bind`.
        kernels.host.ExecutionError
            If the host executor finds an error in the kernel.
        """
        self.bind(grid, block, args, shared_mem=shared_mem, cooperative=cooperative, reachable=reachable)()

    def resident_blocks(self, block: tuple[int, ...], shared_mem: int) -> int:
        """How many blocks of this shape CuPy's current device holds at once, in whole clusters."""
        import cupy
        from cupy_backends.cuda.api import driver

        device = cupy.cuda.runtime.getDevice()
        function = self.function(device, shared_mem)
        each = int(driver.occupancyMaxActiveBlocksPerMultiprocessor(function.ptr, math.prod(block), shared_mem))
        cluster = self.module.cluster
        blocks = min(each * devices.of_index(device).multiprocessors, AT_ONCE.get((device, cluster), sys.maxsize))
        return blocks // cluster * cluster

    def _bind_on_gpu(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        arrays: Sequence[Any],
        places: tuple[int, ...],
        shared_mem: int,
        cooperative: bool,
    ) -> Bound:
        import cupy

        raise_given_up()
        here = cupy.cuda.runtime.getDevice()
        elsewhere = {a.data.device_id for a in arrays} - {here}
        if elsewhere:
            raise ValueError(
                f"{self.name}: arrays are on device {min(elsewhere)} but the current one is {here}; "
                f"use `with cupy.cuda.Device({min(elsewhere)}):`"
            )
        if cooperative:
            # CuPy would shrink an oversized one-dimensional grid, with no more than a warning.
            resident = self.resident_blocks(block, shared_mem)
            if math.prod(grid) > resident:
                raise NotResident(
                    f"{self.name}: a cooperative grid of {math.prod(grid)} blocks, expected at most the {resident} "
                    f"that the device holds at once with {math.prod(block)} threads and {shared_mem} bytes each"
                )
        function = self.function(here, shared_mem)
        launch = functools.partial(function, grid, block, shared_mem=shared_mem, enable_cooperative_groups=cooperative)
        if cooperative:
            launch = functools.partial(all_at_once, launch, self.name, here, self.module.cluster, math.prod(grid))
        return Bound(self, launch, _values(args), places, key=(here, function.ptr, grid, block, shared_mem))

    def _check_sizes(self, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> None:
        for what, sizes, limits in (("grid", grid, (2**31 - 1, 65535, 65535)), ("block", block, (1024, 1024, 64))):
            if not 1 <= len(sizes) <= 3:
                raise ValueError(f"{self.name}: {what} is {sizes}, expected one to three sizes")
            for size, limit in zip(sizes, limits, strict=False):
                # CuPy would launch one block where the grid is empty.
                if not 1 <= size <= limit:
                    raise ValueError(f"{self.name}: {what} is {sizes}, expected sizes from 1 to {limits}")
        if grid[0] % self.module.cluster:
            raise ValueError(f"{self.name}: grid is {grid}, expected clusters of {self.module.cluster} blocks along x")
        if math.prod(block) > 1024:
            raise ValueError(f"{self.name}: a block of {block} has {math.prod(block)} threads, expected at most 1024")
        if shared_mem < 0:
            raise ValueError(f"{self.name}: shared_mem is {shared_mem}, expected a number of bytes")

    def _check_arguments(self, build: str | None, args: Sequence[Any]) -> None:
        """Check all arguments; on a GPU only arrays, because its compiler does not report the types of parameters."""
        names = self.parameter_names
        if len(args) != len(names):
            raise TypeError(f"{self.name}: {len(args)} arguments, expected {len(names)} ({', '.join(names)})")
        if build is None:
            for name, argument in zip(names, args, strict=True):
                if argument is not None and not isinstance(argument, np.generic):
                    _check_array(f"{self.name}: argument {name}", argument)
            return
        for parameter, argument in zip(self.parameters(build), args, strict=True):
            where = f"{self.name}: argument {parameter.name}"
            if parameter.is_array:
                _check_array(where, argument)
                _check_element(where, parameter, argument)
            elif not isinstance(argument, np.generic):
                raise TypeError(
                    f"{where} is a {type(argument).__name__}, expected a NumPy scalar {_expected(parameter)}"
                )
            elif not _same_type(parameter, argument.dtype):
                raise TypeError(f"{where} is a {argument.dtype} scalar, expected {_expected(parameter)}")


class Bound:
    """A launch with arguments that `Kernel.bind` has checked. Call it with the arguments that change, in order.

        step = kernel.bind(grid, block, args, changing=["first", "last"])
        step(np.int32(0), np.int32(1))

    On a GPU it belongs to the device that was current at `Kernel.bind`.
    """

    def __init__(
        self,
        kernel: Kernel,
        launch: Callable[[list[Any]], None],
        values: list[Any],
        places: tuple[int, ...],
        key: tuple[Any, ...] | None = None,
    ) -> None:
        self.kernel = kernel
        self._launch, self._values, self._places, self._key = launch, values, places, key

    def __call__(self, *values: Any) -> None:
        """Launch the kernel, on a GPU on the current stream."""
        self._launch(self._filled(values))

    def each(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Launch the kernel once for each row of changing arguments, in order.

        On a GPU the launches become one CUDA graph when they repeat: with the same object ``rows``, numbers and array
        addresses. The graph owns no memory: the caller owns the arrays at these addresses.
        """
        if self._key is None or not 1 < len(rows) <= MOST_NODES or is_captured():
            for row in rows:
                self(*row)
            return
        values = (v.tobytes() if isinstance(v, np.generic) else v.data.ptr for v in self._values)
        key = (*self._key, id(rows), *values)
        series = _SERIES.get(key)
        if series is None:
            _SERIES.put(key, _Series(rows))
            for row in rows:
                self(*row)
            return
        if series.graph is None:
            series.graph = self._captured(rows)
        series.graph.launch()

    def _captured(self, rows: Sequence[tuple[Any, ...]]) -> Any:
        import cupy

        stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        with stream:
            stream.begin_capture()
            try:
                for row in rows:
                    self(*row)
            finally:
                graph = stream.end_capture()
        return graph

    def _filled(self, values: tuple[Any, ...]) -> list[Any]:
        filled = self._values.copy()
        for place, value in zip(self._places, values, strict=True):
            if type(value) is not type(filled[place]):
                name = self.kernel.parameter_names[place]
                raise TypeError(
                    f"{self.kernel.name}: argument {name} is a {type(value).__name__}, "
                    f"expected a {type(filled[place]).__name__}"
                )
            filled[place] = value
        return filled


@dataclasses.dataclass
class _Series:
    """Launches that `Bound.each` has made once, and their graph once they have repeated."""

    rows: Sequence[tuple[Any, ...]]
    graph: Any = None


def _values(args: Sequence[Any]) -> list[Any]:
    return [np.uint64(0) if a is None else a for a in args]  # a null pointer


def _same_type(parameter: Parameter, dtype: np.dtype[Any]) -> bool:
    return parameter.element == "any" or (dtype.isnative and f"{dtype.kind}{dtype.itemsize}" == parameter.element)


def _expected(parameter: Parameter) -> str:
    if parameter.element == "any":
        return "of the parameter's type"
    return "bool" if parameter.element == "b1" else str(np.dtype(parameter.element))


def _check_element(where: str, parameter: Parameter, argument: np.ndarray | None) -> None:
    if argument is None:
        return
    if not _same_type(parameter, argument.dtype):
        raise TypeError(f"{where} has dtype {argument.dtype}, expected {_expected(parameter)}")
    if not parameter.is_const and not argument.flags.writeable:
        raise ValueError(f"{where} is read-only, expected a writable array: the kernel's parameter is not const")


def _check_array(where: str, argument: Any) -> None:
    if argument is None:
        return
    if not (isinstance(argument, np.ndarray) or is_cupy_array(argument)):
        raise TypeError(f"{where} is a {type(argument).__name__}, expected an array or None")
    if not argument.flags.c_contiguous:
        raise ValueError(f"{where} has strides {argument.strides}, expected a C-contiguous array")
    begin = address(argument)
    if argument.size and begin % argument.dtype.itemsize:
        raise ValueError(f"{where} is at address {begin:#x}, expected a multiple of {argument.dtype.itemsize} bytes")
