"""CuPy without a GPU, for a process that runs GPU code: import this before anything imports CuPy.

CuPy's compiled modules call the driver and the runtime through tables of C functions, which they read when they are
imported. Before that, this module replaces the functions that a launch needs by Python functions. Everything above them
is CuPy's own: arrays, memory pools, streams, graphs, NVRTC's compilation of a `cupy.RawModule` and the marshalling of
arguments. Device memory is host memory, and the host executor runs each launch.

The kernels of CuPy's own arithmetic cannot run there. `compute_with_numpy` replaces CuPy's functions and operators by
NumPy's; like CuPy's, they reject NumPy arrays.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import numpy as np
from cupy_backends.cuda.api import driver, runtime
from gpurnn.kernels import devices, launch

H100 = devices.lookup("H100")
GPU = {
    "MultiProcessorCount": H100.multiprocessors,
    "ClockRate": int(H100.clock_hz / 1e3),
    "MemoryClockRate": 2619000,
    "GlobalMemoryBusWidth": 5120,
    "L2CacheSize": H100.l2_bytes,
    "MaxSharedMemoryPerBlockOptin": H100.shared_memory_per_block,
}
BLOCKS_PER_MULTIPROCESSOR = 2
STATIC_SHARED_BYTES = 1024
SHARED_SIZE_BYTES, MAX_DYNAMIC_SHARED_SIZE_BYTES = 1, 8  # of CUfunction_attribute

_C_TYPES = {
    "PyObject *": ctypes.py_object,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "intptr_t": ctypes.c_ssize_t,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
}


class Launch(NamedTuple):
    """A launch as the driver received it."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    stream: int
    cooperative: bool


class Rejected(driver.CUDADriverError):  # type: ignore[misc]
    """A launch that the driver rejects with a CUresult, whose text only a real driver knows."""

    def __init__(self, status: int) -> None:
        self.status = status


class _Function:
    """A CuPy function that raises the exceptions which C code could not pass on."""

    def __init__(self, function: Any, failures: list[BaseException]) -> None:
        self.ptr, self._function, self._failures = function.ptr, function, failures

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._function(*args, **kwargs)
        if self._failures:
            raise self._failures.pop()


class Driver:
    """The functions of the driver and the runtime, and a record of the calls to them."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.attributes: list[tuple[str, int, int]] = []
        self.order: list[tuple[Any, ...]] = []
        """Launches by stream, and the calls that order them: ("record", event, stream), ("wait", stream, event)."""
        self.blocks_per_multiprocessor = BLOCKS_PER_MULTIPROCESSOR
        self.blocks_at_once = BLOCKS_PER_MULTIPROCESSOR * H100.multiprocessors
        """The number of blocks of a cooperative launch that can run at once."""
        self.has_clusters = True
        """Whether the driver accepts launches in clusters."""
        self.side_by_side = True
        """Whether the blocks of a cooperative launch actually run at once."""
        self.is_idle = False
        """Whether launches do nothing, so that their cost on the host can be measured."""
        self.is_late = False
        """Whether a launch on a stream that branched off from another (by waiting for it) runs as late as possible:
        when another stream waits for this one. By then nobody else may have been given the memory that it reads."""
        numbers = itertools.count(77)
        self._captured: dict[int, list[Any]] = {}
        """The captured calls, by stream."""
        self._graphs: dict[int, list[Any]] = {}
        self._memory: dict[int, np.ndarray] = {}
        self._functions: dict[int, str] = {}
        self._kernels: dict[int, launch.Kernel] = {}
        self._failures: list[BaseException] = []
        self._late: dict[int, list[Any]] = {}
        """The delayed launches, by stream."""
        self._recorded: dict[int, int] = {}
        """The stream that each event was recorded on."""
        _replace(driver, {name: getattr(self, name) for name in (
            "moduleLoadData", "moduleUnload", "moduleGetFunction", "funcGetAttribute", "funcSetAttribute",
            "launchKernel", "launchCooperativeKernel", "occupancyMaxActiveBlocksPerMultiprocessor",
        )})  # fmt: skip
        values = {name[11:]: value for name, value in vars(runtime).items() if name.startswith("cudaDevAttr")}
        attributes = {values[name]: figure for name, figure in GPU.items()}
        attributes |= dict(zip((75, 76), H100.compute_capability, strict=True))  # CuPy has no names for these
        _replace(runtime, {
            "_ensure_context": lambda: None,
            "getDevice": lambda: 0,
            "setDevice": lambda device: None,
            "getDeviceCount": lambda: 1,
            "driverGetVersion": lambda: 12080,
            "runtimeGetVersion": lambda: 12080,
            "deviceGetAttribute": lambda attribute, device: attributes.get(attribute, 0),
            "malloc": self._allocate,
            "memGetInfo": lambda: (2**36, 2**36),
            "free": self._free,
            "hostAlloc": lambda size, flags: self._allocate(size),
            "freeHost": self._free,
            "memcpyAsync": lambda to, source, size, kind, stream: ctypes.memmove(to, source, size) and None,
            "memsetAsync": lambda address, value, size, stream: ctypes.memset(address, value, size) and None,
            "pointerGetMemoryType": lambda address: 0,
            "streamSynchronize": lambda stream: None,
            "streamIsCapturing": lambda stream: int(stream in self._captured),
            "eventCreateWithFlags": lambda flags: next(numbers),
            "eventRecord": self._record,
            "streamWaitEvent": self._wait,
            "eventQuery": lambda event: 0,
            "eventSynchronize": lambda event: None,
            "eventElapsedTime": lambda begin, end: 1.0,
            "eventDestroy": lambda event: None,
            "streamCreateWithPriority": lambda flags, priority: next(numbers),
            "streamDestroy": lambda stream: None,
            "streamBeginCapture": self._begin_capture,
            "streamEndCapture": self._end_capture,
            "graphInstantiate": lambda graph: graph,
            "graphLaunch": self._replay,
            "graphDestroy": lambda graph: None,
            "graphExecDestroy": lambda graph: None,
        })  # fmt: skip
        major, minor = H100.compute_capability
        # This one is only a Python function.
        runtime.getDeviceProperties = lambda device: {"name": b"NVIDIA H100", "major": major, "minor": minor}

    def function(self, kernel: launch.Kernel, *args: Any) -> Any:
        """`Kernel.function`, which also records the kernel: the driver knows it only by its mangled name."""
        function = _function(kernel, *args)
        self._kernels[function.ptr] = kernel
        return function if self.is_idle else _Function(function, self._failures)

    def _record(self, event: int, stream: int) -> None:
        self.order.append(("record", event, stream))
        self._recorded[event] = stream

    def _wait(self, stream: int, event: int, *flags: int) -> None:
        self.order.append(("wait", stream, event))
        other = self._recorded[event]
        if self.is_late and other not in self._late and stream != other:
            self._late.setdefault(stream, [])
        for run in self._late.pop(other, ()):
            try:
                run()
            except BaseException as failure:
                self._failures.append(failure)

    def _begin_capture(self, stream: int, *mode: Any) -> None:
        self._captured[stream] = []

    def _end_capture(self, stream: int) -> int:
        self._graphs[len(self._graphs) + 1] = self._captured.pop(stream)
        return len(self._graphs)

    def _replay(self, graph: int, stream: int) -> None:
        if self.is_idle:
            return
        self.order.append(("graph", stream))
        for run in self._graphs[graph]:
            run()

    def _allocate(self, size: int) -> int:
        memory = np.full(size, 0xFF, np.uint8)
        self._memory[memory.ctypes.data] = memory
        return memory.ctypes.data

    def _free(self, address: int) -> None:
        self._memory.pop(address).fill(0xFF)  # for anyone who still reads it

    def moduleLoadData(self, image: bytes) -> int:
        assert image.startswith(b"\x7fELF")
        return 1

    def moduleUnload(self, module: int) -> None:
        pass

    def moduleGetFunction(self, module: int, name: str) -> int:
        self._functions[len(self._functions) + 1] = name
        return len(self._functions)

    def funcGetAttribute(self, attribute: int, function: int) -> int:
        assert attribute == SHARED_SIZE_BYTES
        return STATIC_SHARED_BYTES

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self.attributes.append((self._functions[function], attribute, value))

    def occupancyMaxActiveBlocksPerMultiprocessor(self, function: int, threads: int, shared_bytes: int) -> int:
        return self.blocks_per_multiprocessor

    def launchKernel(self, function: int, *rest: int) -> None:
        *sizes, shared_bytes, stream, values, extra = rest
        assert extra == 0
        self._launch(function, sizes, shared_bytes, stream, values, False)

    def launchCooperativeKernel(self, function: int, *rest: int) -> None:
        *sizes, shared_bytes, stream, values = rest
        self._launch(function, sizes, shared_bytes, stream, values, True)

    def _launch(
        self, function: int, sizes: list[int], shared_bytes: int, stream: int, values: int, cooperative: bool
    ) -> None:
        if self.is_idle:
            return
        if function not in self._kernels:
            raise RuntimeError(f"a kernel of CuPy's own, {self._functions[function]}, cannot run here")
        try:
            kernel, grid, block = self._kernels[function], tuple(sizes[:3]), tuple(sizes[3:])
            assert re.match(r"\w+", kernel.name)[0] in self._functions[function]
            parameters = kernel.parameters("plain")
            addresses = (ctypes.c_void_p * len(parameters)).from_address(values)
            arguments = [
                np.frombuffer(ctypes.string_at(address, dtype.itemsize), dtype)[0]
                for address, dtype in (
                    (address, np.dtype("u8" if p.is_array else p.element))
                    for address, p in zip(addresses, parameters, strict=True)
                )
            ]
            if cooperative and math.prod(grid) > self.blocks_at_once:
                raise Rejected(720)  # CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
            if kernel.module.cluster > 1 and not self.has_clusters:
                raise Rejected(801)  # CUDA_ERROR_NOT_SUPPORTED
            self.order.append(("launch", stream))
            self.launches.append(Launch(kernel.name, grid, block, shared_bytes, stream, cooperative))
            run: Any = functools.partial(
                kernel.module.library("plain").launch, kernel.name, grid, block, arguments,
                [p.name for p in parameters], shared_bytes=shared_bytes, cooperative=cooperative and self.side_by_side,
            )  # fmt: skip
            if stream in self._captured:
                self._captured[stream].append(run)
            elif stream in self._late:
                self._late[stream].append(run)
            else:
                run()
        except BaseException as failure:  # raised again once no C code is in between
            self._failures.append(failure)


def _replace(module: Any, functions: dict[str, Any]) -> None:
    """Make these Python functions replace the C functions that a Cython module exports."""
    get_name, new = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_New
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    for name, function in functions.items():
        # The name of a capsule is its function's signature: PyObject *(intptr_t, int __pyx_skip_dispatch).
        signature = get_name(module.__pyx_capi__[name])
        result, _, rest = signature.decode().rstrip(")").partition("(")
        types = [text.strip() for text in rest.split(",") if text.strip() != "void"]
        own = [_C_TYPES[text] for text in itertools.takewhile(lambda text: "__pyx_" not in text, types)]
        cython = [
            ctypes.c_void_p if text.endswith("*__pyx_optional_args") else ctypes.c_int for text in types[len(own) :]
        ]

        def call(*args: Any, function: Any = function, count: int = len(own)) -> Any:
            return function(*args[:count])

        callback = ctypes.PYFUNCTYPE(_C_TYPES[result.strip()], *own, *cython)(call)
        for kept in (callback, signature):  # CuPy may call until the process ends
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        module.__pyx_capi__[name] = new(ctypes.cast(callback, ctypes.c_void_p).value, signature, None)
        setattr(module, name, function)


_function = launch.Kernel.function
DRIVER = Driver()
launch.Kernel.function = lambda kernel, *args: DRIVER.function(kernel, *args)

import cupy  # noqa: E402  it reads the tables now

# ---- CuPy's arithmetic ----------------------------------------------------------------------------------------------

_TAKE_NUMPY_ARRAYS = {"array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray"}
_KEPT = {"empty", "empty_like", "ndarray", "get_array_module", "asnumpy", "may_share_memory", "shares_memory"}
_METHODS = """
    __add__ __sub__ __mul__ __truediv__ __floordiv__ __mod__ __pow__ __matmul__ __and__ __or__ __xor__
    __radd__ __rsub__ __rmul__ __rtruediv__ __rfloordiv__ __rmod__ __rpow__ __rmatmul__ __rand__ __ror__ __rxor__
    __iadd__ __isub__ __imul__ __itruediv__ __imatmul__ __iand__ __ior__ __ixor__
    __neg__ __pos__ __abs__ __invert__ __lt__ __le__ __eq__ __ne__ __gt__ __ge__ __setitem__
    all any argmax argmin argsort astype clip conj copy cumsum diagonal dot fill flatten max mean min nonzero prod
    repeat round sort std sum take trace var
"""


class _Memory:
    """Gives NumPy access to a CuPy array's memory."""

    def __init__(self, array: cupy.ndarray) -> None:
        self.array = array
        self.__array_interface__ = {
            "data": (array.data.ptr, False), "shape": array.shape, "strides": array.strides,
            "typestr": array.dtype.str, "version": 3,
        }  # fmt: skip


def on_host(array: cupy.ndarray) -> np.ndarray:
    """A NumPy array that shares the memory of ``array``."""
    return np.asarray(_Memory(array)) if array.size else np.empty(array.shape, array.dtype)


def _to_device(found: Any, views: list[tuple[cupy.ndarray, np.ndarray]]) -> Any:
    if isinstance(found, (tuple, list)):
        moved = [_to_device(entry, views) for entry in found]
        return type(found)(*moved) if hasattr(found, "_fields") else type(found)(moved)
    if not isinstance(found, (np.ndarray, np.generic)):
        return found
    for array, view in views:
        if found is view:
            return array
    array = cupy.ndarray(found.shape, found.dtype, order="F" if found.flags.fnc else "C")
    on_host(array)[...] = found
    return array


def _computed(where: str, function: Any, numpy_arrays: bool = False) -> Any:
    """Wrap NumPy's ``function`` so that it takes CuPy arrays."""

    def call(*args: Any, **kwargs: Any) -> Any:
        views: list[tuple[cupy.ndarray, np.ndarray]] = []

        def view(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(view(entry) for entry in value)
            if isinstance(value, dict):
                return {key: view(entry) for key, entry in value.items()}
            if isinstance(value, cupy.ndarray):
                views.append((value, on_host(value)))
                return views[-1][1]
            if isinstance(value, np.ndarray) and not numpy_arrays:
                raise TypeError(f"cupy.{where} got a NumPy array")
            return value

        try:
            return _to_device(function(*view(args), **view(kwargs)), views)
        finally:
            views.clear()  # `view` holds them, and itself in a cycle

    return call


def _indexed(index: Any) -> bool:
    """Whether indexing needs a kernel, as it gives no view."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, (cupy.ndarray, np.ndarray, list)) for part in parts)


def compute_with_numpy() -> None:
    """Replace the functions, methods and operators that CuPy has kernels for by NumPy's."""
    for module, numpy_module in ((cupy, np), (cupy.linalg, np.linalg)):
        for name in dir(module):
            function = getattr(numpy_module, name, None)
            if name.startswith("_") or name in _KEPT or isinstance(function, type) or not callable(function):
                continue
            setattr(module, name, _computed(name, function, name in _TAKE_NUMPY_ARRAYS))
    ndarray = cupy.ndarray
    for name in _METHODS.split():
        setattr(ndarray, name, _computed(name, getattr(np.ndarray, name)))
    basic, by_index = ndarray.__getitem__, _computed("__getitem__", np.ndarray.__getitem__)
    ndarray.__getitem__ = lambda array, index: (by_index if _indexed(index) else basic)(array, index)
    ndarray.__array_ufunc__ = lambda array, function, method, *args, **kwargs: _computed(
        function.__name__, getattr(function, method)
    )(*args, **kwargs)
    ndarray.reshape = _reshape(ndarray.reshape)
    ndarray.get = lambda array, *args, **kwargs: on_host(array).copy()
    ndarray.set = lambda array, values, *args, **kwargs: on_host(array).__setitem__(..., values)
    cupy.asnumpy = lambda array, *args, **kwargs: array.get() if isinstance(array, ndarray) else np.asarray(array)
    cupy.copyto = _computed("copyto", np.copyto)


def _reshape(reshape: Any) -> Any:
    def call(array: cupy.ndarray, *shape: Any, **kwargs: Any) -> Any:
        if array.flags.c_contiguous:
            return reshape(array, *shape, **kwargs)
        return _computed("reshape", np.ndarray.reshape)(array, *shape, **kwargs)

    return call
