"""The processes of a run and their exchanges: a few verbs over the transports of other libraries."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TextIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from .. import _checks, _dispatch
from .._contract import Array
from .flat import changed, even_sizes, split

R = TypeVar("R")

_OF_MPI = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID")
"""Environment variables that MPI launchers set for each process."""


class Communicator:
    """The processes of a run, seen from one of them; this class itself is for a process that is alone.

    Every process calls the same verbs in the same order. Values are small Python objects. Arrays are of any library
    that gpurnn computes with; all but NumPy's go through the memory of the host.

    Attributes
    ----------
    rank : int
        The number of this process, 0 to ``size`` - 1.
    size : int
        The number of processes.
    local_rank : int
        The number of this process among those on its machine.
    wire_dtype : {None, "bfloat16"}
        The dtype that `all_reduce` rounds float32 arrays to for the exchange; set it on all processes. It halves the
        bytes. Sums are computed in float32; each number and each sum has a relative error of at most 2**-8. float16 is
        not offered, since gradients of many targets exceed its range. Sums over shards keep their bits.
    """

    rank = 0
    size = 1
    local_rank: Any = 0
    wire_dtype: Literal["bfloat16"] | None = None
    agreed = False
    """Whether all processes know of an error, from `together` or `each`, so that each of them ends by itself."""
    broken = False
    """Whether this process failed in the middle of a sum, where the others wait for it and cannot learn of it."""

    def all_gather(self, value: R) -> list[R]:
        """The values of all processes, in the order of their ranks."""
        return [value]

    def broadcast(self, value: R, of: int = 0) -> R:
        """The value of one process."""
        return self.all_gather(value)[of]

    def scan(self, value: R, combine: Callable[[R, R], R], *, backward: bool = False) -> R | None:
        """The exclusive scan: the values of all processes before this one, combined in the order of their ranks.

        ``combine(first, second)`` is associative, and need not be commutative. The first process gets None. With
        ``backward``, the values of the processes after this one are combined, beginning with the last process, which
        gets None.
        """
        every = self.all_gather(value)
        others = every[: self.rank : -1] if backward else every[: self.rank]
        return functools.reduce(combine, others) if others else None

    def all_reduce(self, arrays: Sequence[Array]) -> list[Array]:
        """The sums over all processes of arrays of the same shapes; one exchange for each dtype.

        The order of a sum is the transport's, so its last bits may depend on the number of processes.
        """
        with self.exchanging():
            return changed(arrays, self._sum_of_any)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """A context for verbs that all processes call; an exception in it leaves this communicator `broken`."""
        try:
            yield
        except BaseException:
            self.broken = True
            raise

    def barrier(self) -> None:
        """Wait for all processes."""
        self.all_gather(None)

    def abort(self, code: int = 1) -> None:
        """End all processes at once, with this exit code; output that was not flushed is lost."""
        os._exit(code)

    def together(self, where: str, function: Callable[[], R]) -> R:
        """The result of a function that all processes call; if it raises in one of them, all raise.

        Raises
        ------
        Exception, SystemExit
            In a process whose call raised: that exception.
        RuntimeError
            In the others. The message has the rank and the message of the first that raised.
        """
        result, error = self._attempted(function)
        self._agree(where, error, None)
        return cast(R, result)

    def each(self, where: str, function: Callable[[], R]) -> list[R]:
        """The results of `together` of all processes, in the order of their ranks."""
        result, error = self._attempted(function)
        return self._agree(where, error, result)

    def first(self, where: str, function: Callable[[], R]) -> R | None:
        """The result of a function that process 0 alone calls, None in the others; if it raises, all raise."""
        return self.together(where, lambda: None if self.rank else function())

    def _attempted(self, function: Callable[[], R]) -> tuple[R | None, BaseException | None]:
        try:
            return function(), None
        except (Exception, SystemExit) as error:
            if self.broken:
                raise
            return None, error

    def _agree(self, where: str, error: BaseException | None, value: Any) -> list[Any]:
        """The values of all processes, if none of them has an error; else the errors, as `together` raises them."""
        text = None if error is None else f"{type(error).__name__}: {error}"
        every = self.all_gather((text, value))
        self.agreed = any(text is not None for text, _ in every)
        if error is not None:
            raise error
        for rank, (text, _) in enumerate(every):
            if text is not None:
                raise RuntimeError(f"{where}: process {rank} of {self.size} ended with {text}")
        return [value for _, value in every]

    def takes(self, array: Array) -> bool:
        """Whether `all_to_all` and `all_gather_array` take arrays like this one, and leave them on their device."""
        return self.size == 1 or isinstance(array, np.ndarray)

    def all_to_all(self, parts: Sequence[Array], sizes: Sequence[int]) -> list[Array]:
        """The parts that the processes send to this one, in the order of their ranks.

        Arrays have one axis, and one dtype in all processes. ``parts`` has one array for each process; ``sizes`` has
        the number of entries that each process sends to this one.
        """
        return list(parts)

    def all_gather_array(self, part: Array, sizes: Sequence[int]) -> Array:
        """The arrays of all processes, one after another; they have one axis, one dtype, and these ``sizes``."""
        return part

    def _sum_of_any(self, flat: Array) -> Array:
        """The sum over all processes of a one-dimensional array, which may be overwritten."""
        if self.wire_dtype is not None:
            _checks.choice("Communicator.all_reduce", "wire_dtype", self.wire_dtype, ("bfloat16",))
            if _checks.dtype_name(flat) == "float32":
                if _dispatch.library_of(flat) in ("numpy", "cupy") and self.takes(flat):
                    return self._sum_of_halves(flat)
                xp = _dispatch.namespace("distributed", arrays=flat)
                return _dispatch.from_numpy(xp, np.asarray(self._sum_of_halves(_dispatch.to_numpy(flat))))
        return self._sum(flat) if isinstance(flat, np.ndarray) else self._sum_on_device(flat)

    def _sum_of_halves(self, flat: Array) -> Array:
        """The sum of float32 arrays that travel in 16 bits: each process adds up a part, in the order of the ranks."""
        sent = _upper_halves(flat)
        # Sizes in bytes, since no transport knows bfloat16.
        sizes = [2 * size for size in even_sizes(flat.shape[0], self.size)]
        received = self.all_to_all(split(sent, sizes), [sizes[self.rank]] * self.size)
        first, *others = map(_of_upper_halves, received)
        with np.errstate(over="ignore", invalid="ignore"):  # no transport warns either
            for other in others:
                first += other
        return _of_upper_halves(self.all_gather_array(_upper_halves(first), sizes))

    def _sum(self, flat: NDArray[Any]) -> NDArray[Any]:
        return flat

    def _sum_on_device(self, flat: Array) -> Array:
        xp = _dispatch.namespace("distributed", arrays=flat)
        return _dispatch.from_numpy(xp, self._sum(np.array(_dispatch.to_numpy(flat))))

    def __reduce__(self) -> Any:
        return communicator, ()  # the copy belongs to the process that unpickles it

    def __deepcopy__(self, memo: dict[int, Any]) -> Communicator:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.rank} of {self.size})"


def _upper_halves(x: Any) -> Array:
    """The bytes of float32 numbers rounded to bfloat16, the upper half of a float32: to nearest, ties to even."""
    xp = _dispatch.namespace("distributed", x=x)
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    halves: Array = xp.where(xp.isnan(x), xp.asarray(0x7FC0, dtype=xp.uint32), rounded).astype(np.uint16).view(np.uint8)
    return halves


def _of_upper_halves(data: Any) -> Any:
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


class MPICommunicator(Communicator):
    """The processes that ``mpiexec`` or Slurm started, through mpi4py.

    CuPy arrays are summed on their device if the MPI library says that it takes them (``MPIX_Query_cuda_support``,
    which MPICH and Open MPI have), and otherwise in the memory of the host.

    Parameters
    ----------
    comm : mpi4py communicator, optional
        All processes by default.

    Raises
    ------
    ImportError
        mpi4py is not installed.
    """

    def __init__(self, comm: Any = None) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise ImportError("MPICommunicator: mpi4py is not installed; pip install mpi4py mpich") from error
        self._comm = MPI.COMM_WORLD if comm is None else comm
        self._in_place, self._on_this_machine = MPI.IN_PLACE, MPI.COMM_TYPE_SHARED
        self._takes_cuda = _takes_cuda(MPI)
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()

    @functools.cached_property
    def local_rank(self) -> int:
        machine = self._comm.Split_type(self._on_this_machine)
        try:
            return int(machine.Get_rank())
        finally:
            machine.Free()

    def all_gather(self, value: R) -> list[R]:
        gathered: list[R] = self._comm.allgather(value)
        return gathered

    def barrier(self) -> None:
        self._comm.Barrier()

    def broadcast(self, value: R, of: int = 0) -> R:
        sent: R = self._comm.bcast(value, root=of)
        return sent

    def scan(self, value: R, combine: Callable[[R, R], R], *, backward: bool = False) -> R | None:
        comm = self._backward if backward else self._comm
        scanned: R | None = comm.exscan(value, op=combine)
        return scanned

    @functools.cached_property
    def _backward(self) -> Any:
        """The same processes in reverse order."""
        return self._comm.Split(key=-self.rank)

    def takes(self, array: Array) -> bool:
        return super().takes(array) or (self._takes_cuda and _dispatch.library_of(array) == "cupy")

    def all_to_all(self, parts: Sequence[Array], sizes: Sequence[int]) -> list[Array]:
        xp = _dispatch.namespace("distributed", part=parts[0])
        sent, received = xp.concat(list(parts)), xp.empty(sum(sizes), dtype=parts[0].dtype)
        _wait_for(sent)
        self._comm.Alltoallv([sent, [part.size for part in parts]], [received, list(sizes)])
        return split(received, sizes)

    def all_gather_array(self, part: Array, sizes: Sequence[int]) -> Array:
        xp = _dispatch.namespace("distributed", part=part)
        sent, whole = xp.asarray(part, copy=True), xp.empty(sum(sizes), dtype=part.dtype)
        _wait_for(sent)
        self._comm.Allgatherv(sent, [whole, list(sizes)])
        return whole

    def _sum(self, flat: NDArray[Any]) -> NDArray[Any]:
        self._comm.Allreduce(self._in_place, flat)
        return flat

    def _sum_on_device(self, flat: Array) -> Array:
        if not self._takes_cuda or _dispatch.library_of(flat) != "cupy":
            return super()._sum_on_device(flat)
        _wait_for(flat)
        self._comm.Allreduce(self._in_place, flat)
        return flat

    def abort(self, code: int = 1) -> None:
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    _wait_until_read(stream)
        finally:  # after Ctrl-C too
            self._comm.Abort(code)
            os._exit(code)  # the launcher may take a while, and Abort may return before it ends this process


def _wait_for(array: Array) -> None:
    """Wait until an array is computed, so that MPI can read it: MPI does not know CUDA streams."""
    if _dispatch.library_of(array) == "cupy":
        import cupy

        cupy.cuda.get_current_stream().synchronize()


def _takes_cuda(MPI: Any) -> bool:
    """Whether the MPI library was built with support for the memory of CUDA devices, and can use it here."""
    try:
        # mpi4py does not wrap this function of its MPI library.
        query = ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support
    except (OSError, AttributeError):
        return False
    return bool(query())


_KINDS_OF_NCCL = {
    "float32": ("NCCL_FLOAT32", 1), "float64": ("NCCL_FLOAT64", 1), "complex64": ("NCCL_FLOAT32", 2),
    "complex128": ("NCCL_FLOAT64", 2), "uint8": ("NCCL_UINT8", 1),
}  # fmt: skip
"""The dtypes that NCCL sums: its own name for each, and the number of its values in an entry."""


class NCCLCommunicator(MPICommunicator):
    """The processes that ``mpiexec`` or Slurm started; CuPy arrays are summed by NCCL, all else goes through MPI.

    Each process needs a GPU of its own: enter ``cupy.cuda.Device(communicator.local_rank)`` before you make arrays.
    NCCL begins on the current device when the first arrays are summed, in all processes at once. Its calls go to CuPy's
    current stream: they run after the work that is already on it, and before the work that follows.

    Parameters
    ----------
    comm : mpi4py communicator, optional
        All processes by default.

    Raises
    ------
    ImportError
        mpi4py, CuPy or NCCL is not installed.
    """

    def __init__(self, comm: Any = None) -> None:
        super().__init__(comm)
        try:
            from cupy.cuda import nccl
        except ImportError as error:
            raise ImportError("NCCLCommunicator: CuPy is not installed; pip install 'cupy-cuda12x[ctk]'") from error
        if not nccl.available:
            raise ImportError("NCCLCommunicator: CuPy finds no NCCL; pip install nvidia-nccl-cu12")
        self._nccl: Any = nccl
        self._gpus: Any = None

    def _sum_on_device(self, flat: Array) -> Array:
        if not self._goes_to_nccl(flat):
            return super()._sum_on_device(flat)
        count, kind = self._counted(flat)
        data = cast(Any, flat.data).ptr
        self._begun().allReduce(data, data, count, kind, self._nccl.NCCL_SUM, _stream())
        return flat

    def takes(self, array: Array) -> bool:
        return self._goes_to_nccl(array) or super().takes(array)

    def all_to_all(self, parts: Sequence[Array], sizes: Sequence[int]) -> list[Array]:
        if not self._goes_to_nccl(parts[0]):
            return super().all_to_all(parts, sizes)
        xp = _dispatch.namespace("distributed", part=parts[0])
        received = [xp.empty(size, dtype=parts[0].dtype) for size in sizes]
        received[self.rank], gpus, stream = parts[self.rank], self._begun(), _stream()
        self._nccl.groupStart()
        for other in range(self.size):
            for array, exchange in ((parts[other], gpus.send), (received[other], gpus.recv)):
                if array.size and other != self.rank:
                    exchange(cast(Any, array.data).ptr, *self._counted(array), other, stream)
        self._nccl.groupEnd()
        return received

    def all_gather_array(self, part: Array, sizes: Sequence[int]) -> Array:
        if not self._goes_to_nccl(part):
            return super().all_gather_array(part, sizes)
        xp, longest = _dispatch.namespace("distributed", part=part), max(sizes)
        # NCCL gathers arrays of one size, here in place.
        padded = xp.empty((self.size, longest), dtype=part.dtype)
        own = padded[self.rank, :]
        own[: part.size] = part
        data = cast(Any, padded.data).ptr, cast(Any, own.data).ptr
        self._begun().allGather(data[1], data[0], *self._counted(own), _stream())
        return xp.concat([padded[rank, :size] for rank, size in enumerate(sizes)])

    def _goes_to_nccl(self, array: Array) -> bool:
        return _dispatch.library_of(array) == "cupy" and _checks.dtype_name(array) in _KINDS_OF_NCCL

    def _counted(self, array: Array) -> tuple[int, int]:
        """The number of NCCL's values in an array, and their type."""
        kind, numbers = _KINDS_OF_NCCL[_checks.dtype_name(array)]
        return numbers * array.shape[0], getattr(self._nccl, kind)

    def _begun(self) -> Any:
        """NCCL's communicator, which all processes make at their first use."""
        if self._gpus is None:
            # CuPy's own exchange of the identity, a store of sockets, fails in spawned processes.
            identity = self.broadcast(self.first("NCCLCommunicator", self._nccl.get_unique_id))
            self._gpus = self._nccl.NcclCommunicator(self.size, identity, self.rank)
        return self._gpus

    def abort(self, code: int = 1) -> None:
        if self._gpus is not None:
            self._gpus.abort()  # otherwise a kernel of NCCL waits for this process forever
        super().abort(code)

    def __reduce__(self) -> Any:
        return communicator, (True,)


def _stream() -> int:
    import cupy

    stream: int = cupy.cuda.get_current_stream().ptr
    return stream


class TorchCommunicator(Communicator):
    """The processes that ``torchrun`` started, through torch.distributed with Gloo.

    The process group is made from the variables that torchrun set, unless there is one already.

    Raises
    ------
    ImportError
        PyTorch is not installed.
    """

    def __init__(self) -> None:
        try:
            import torch
            import torch.distributed as group
        except ImportError as error:
            raise ImportError("TorchCommunicator: PyTorch is not installed; pip install torch") from error
        self._torch, self._group = torch, group
        if not group.is_initialized():
            group.init_process_group("gloo")
            atexit.register(group.destroy_process_group)  # a group that the interpreter destroys may abort
        self.rank, self.size = group.get_rank(), group.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))

    def all_gather(self, value: R) -> list[R]:
        gathered: list[Any] = [None] * self.size
        self._group.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        self._group.barrier()

    def all_to_all(self, parts: Sequence[Array], sizes: Sequence[int]) -> list[Array]:
        sent = np.concatenate(parts)
        received = np.empty(sum(sizes), sent.dtype)
        self._group.all_to_all_single(
            self._torch.from_numpy(received), self._torch.from_numpy(sent), list(sizes), [part.size for part in parts]
        )
        return split(received, sizes)

    def all_gather_array(self, part: Array, sizes: Sequence[int]) -> Array:
        padded = np.zeros(max(sizes), part.dtype)
        padded[: part.size] = part
        wholes = [self._torch.empty(padded.size, dtype=self._torch.from_numpy(padded).dtype) for _ in sizes]
        self._group.all_gather(wholes, self._torch.from_numpy(padded))
        return np.concatenate([whole.numpy()[:size] for whole, size in zip(wholes, sizes, strict=True)])

    def _sum(self, flat: NDArray[Any]) -> NDArray[Any]:
        self._group.all_reduce(self._torch.from_numpy(flat))
        return flat


def _wait_until_read(stream: TextIO) -> None:
    """Wait until a pipe is empty, for at most a second: a launcher that ends all processes may not read it any more."""
    if sys.platform == "win32":
        return
    import fcntl
    import termios

    try:
        pipe = stream.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(pipe).st_mode)
    except (OSError, ValueError):  # a stream of Python alone, or closed
        return
    if not is_pipe:
        return
    last = time.monotonic() + 1
    while any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))) and time.monotonic() < last:
        time.sleep(0.001)


@functools.cache
def _started_by_mpi(nccl: bool) -> MPICommunicator:
    """All processes of MPI: one object for all callers, so that the hook for exceptions reads the right `agreed`."""
    processes, before, own = NCCLCommunicator() if nccl else MPICommunicator(), sys.excepthook, os.getpid()

    def end_all(kind: Any, error: Any, traceback: Any) -> None:
        before(kind, error, traceback)
        if processes.size > 1 and not processes.agreed and os.getpid() == own:  # not in the child of a fork
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            processes.abort()

    sys.excepthook = end_all
    return processes


def communicator(nccl: bool = False) -> Communicator:
    """The communicator that this process's environment asks for.

    A launcher of MPI (``mpiexec``, Slurm with PMI) sets a variable with the rank: `MPICommunicator`. ``torchrun`` sets
    RANK and WORLD_SIZE: `TorchCommunicator`. Otherwise the process is alone: `Communicator`.

    Under MPI an uncaught exception ends all processes, once its traceback is printed. MPI alone would make the process
    wait at its end for the others, which wait for it. ``sys.exit`` does not end the others; raise an exception instead.

    Parameters
    ----------
    nccl : bool
        Whether processes that MPI started sum CuPy arrays by NCCL, each on a GPU of its own: `NCCLCommunicator`.

    Raises
    ------
    ImportError
        The library that the launcher needs is not installed.

    Examples
    --------
    >>> from gpurnn import distributed
    >>> distributed.communicator()
    Communicator(rank 0 of 1)
    """
    if any(name in os.environ for name in _OF_MPI):
        return _started_by_mpi(nccl)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return TorchCommunicator()
    return Communicator()
