"""The planner's data of a GPU: the limits of its compute capability, and its published figures."""

from __future__ import annotations

import functools
import math
import os
import re
from dataclasses import dataclass
from typing import Any

KIB = 1024

LAUNCH_MICROSECONDS = 9.0
"""The default CPU time of a launch: 6.4 measured over a driver that does nothing (`python -m benchmarks launch`), plus
an assumed 2.6 for a real driver."""


@dataclass(frozen=True)
class Limits:
    """The limits of one multiprocessor of a compute capability."""

    threads: int
    blocks: int
    shared_memory: int
    """Bytes."""
    shared_memory_per_block: int
    """Bytes, for a kernel that asks for more than 48 KiB."""
    fma: dict[str, int]
    """Fused multiply-adds per clock, by the dtype of the computation."""
    reserved_per_block: int
    """Bytes of each block's shared memory that the system takes."""
    shared_memory_unit: int
    """Bytes. A block gets a multiple of this unit."""


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability" and the throughput table of "Arithmetic
# Instructions"; the units of allocation are from the CUDA Toolkit's cuda_occupancy.h. All of them have 65,536 registers
# of 32 bits.
LIMITS = {
    (7, 5): Limits(1024, 16, 64 * KIB, 64 * KIB, {"float32": 64, "float64": 2}, 0, 256),
    (8, 0): Limits(2048, 32, 164 * KIB, 163 * KIB, {"float32": 64, "float64": 32}, KIB, 128),
    (8, 6): Limits(1536, 16, 100 * KIB, 99 * KIB, {"float32": 128, "float64": 2}, KIB, 128),
    (8, 9): Limits(1536, 24, 100 * KIB, 99 * KIB, {"float32": 128, "float64": 2}, KIB, 128),
    (9, 0): Limits(2048, 32, 228 * KIB, 227 * KIB, {"float32": 128, "float64": 64}, KIB, 128),
    (10, 0): Limits(2048, 32, 228 * KIB, 227 * KIB, {"float32": 128, "float64": 64}, KIB, 128),
    (12, 0): Limits(1536, 24, 100 * KIB, 99 * KIB, {"float32": 128, "float64": 2}, KIB, 128),
}

REGISTERS = 65536
"""Registers of a multiprocessor, 32 bits each."""

_PARTITIONS = 4
"""Partitions of a multiprocessor: a warp belongs to one of them, and each has a quarter of the registers."""


@dataclass(frozen=True)
class Device:
    """A GPU.

    A figure that the device does not report is 0, as on some virtual and integrated devices. The planner then takes the
    figure of a device in `DEVICES` with the same compute capability, or with the nearest lower one.

    Attributes
    ----------
    name : str
    compute_capability : (int, int)
    multiprocessors : int
    clock_hz : float
        The boost clock.
    l2_bytes : int
    bandwidth : float
        Bandwidth of the device memory, in bytes per second.
    shared_memory_per_block : int
        Bytes that a kernel may ask for.
    has_watchdog : bool
        Whether the system ends a kernel that runs for seconds, as on a device with a display.

    Raises
    ------
    ValueError
        A figure is negative or not finite, or ``multiprocessors`` is 0.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    clock_hz: float
    l2_bytes: int
    bandwidth: float
    shared_memory_per_block: int
    has_watchdog: bool = False

    def __post_init__(self) -> None:
        if self.multiprocessors < 1:
            raise ValueError(f"Device: multiprocessors is {self.multiprocessors}, expected at least 1")
        for figure in ("clock_hz", "l2_bytes", "bandwidth", "shared_memory_per_block"):
            value = getattr(self, figure)
            if not 0 <= value < math.inf:
                raise ValueError(f"Device: {figure} is {value}, expected at least 0, which stands for not reported")
            if value == 0:
                object.__setattr__(self, figure, self._usual(figure))

    def _usual(self, figure: str) -> Any:
        """The figure of that name of a similar device."""
        if figure == "shared_memory_per_block":
            return self.limits.shared_memory_per_block
        known = {device.compute_capability: getattr(device, figure) for device in reversed(DEVICES.values())}
        return known[max((c for c in known if c <= self.compute_capability), default=min(known))]

    @property
    def limits(self) -> Limits:
        # The limits of the highest capability in the table that is not above the device's.
        return LIMITS[max((c for c in LIMITS if c <= self.compute_capability), default=min(LIMITS))]

    def peak_flops(self, accumulator: str) -> float:
        """Floating-point operations per second in the dtype ``accumulator``, without tensor cores."""
        return 2.0 * self.limits.fma[accumulator] * self.multiprocessors * self.clock_hz


def _device(
    name: str, capability: tuple[int, int], multiprocessors: int, clock_mhz: int, l2_mib: float, gb_per_s: int
) -> Device:
    l2_bytes, shared_memory = int(l2_mib * KIB * KIB), LIMITS[capability].shared_memory_per_block
    return Device(name, capability, multiprocessors, clock_mhz * 1e6, l2_bytes, gb_per_s * 1e9, shared_memory)


DEVICES = {
    device.name: device
    for device in (
        _device("T4", (7, 5), 40, 1590, 4, 320),  # NVIDIA Turing GPU Architecture whitepaper, appendix on the T4
        _device("A100", (8, 0), 108, 1410, 40, 2039),  # A100 80GB SXM: Ampere Architecture whitepaper, A100 datasheet
        _device("RTX 3090", (8, 6), 82, 1695, 6, 936),  # NVIDIA Ampere GA102 GPU Architecture whitepaper
        _device("L4", (8, 9), 58, 2040, 48, 300),  # L4 datasheet; NVIDIA Ada GPU Architecture whitepaper
        _device("RTX 4090", (8, 9), 128, 2520, 72, 1008),  # NVIDIA Ada GPU Architecture whitepaper
        _device("H100", (9, 0), 132, 1980, 50, 3350),  # H100 SXM5: Hopper Architecture whitepaper, H100 datasheet
        _device("H200", (9, 0), 132, 1980, 50, 4800),  # H200 SXM datasheet
        # Bandwidth: Blackwell Architecture Technical Brief. The other figures are uncertain: no datasheet was at hand.
        _device("B200", (10, 0), 148, 1965, 126, 8000),
        _device("RTX 5090", (12, 0), 170, 2407, 96, 1792),  # NVIDIA RTX Blackwell GPU Architecture whitepaper
    )
}
"""The known devices, by name."""


def lookup(device: Any, where: str = "devices.lookup") -> Device:
    """The device with a name, in any spelling, or with a compute capability.

    Parameters
    ----------
    device : str or Device
        "a100", "RTX4090", "NVIDIA H100 80GB HBM3"; or "sm_90" or "9.0", for the first device in `DEVICES` that has this
        compute capability. A `Device` is returned as it is.
    where : str
        The name of the caller, for the error message.

    Raises
    ------
    TypeError, ValueError
        ``device`` is not a name, or not that of a known device.
    """
    if isinstance(device, Device):
        return device
    if not isinstance(device, str):
        raise TypeError(f"{where}: device is {device!r}, expected a str or a gpurnn.kernels.devices.Device")
    words = [word for word in _words(device) if word not in ("nvidia", "geforce", "tesla")]
    capability = "".join(words).removeprefix("compute").removeprefix("sm")
    for name, known in DEVICES.items():
        own = _words(name)
        # A GPU reports a longer name, such as "A100-SXM4-80GB"; but an "RTX 4090 Ti" is another GPU.
        if words[: len(own)] == own and words[len(own) : len(own) + 1] not in (["d"], ["s"], ["super"], ["ti"]):
            return known
        if capability == "".join(map(str, known.compute_capability)):
            return known
    raise ValueError(
        f"{where}: device is {device!r}, expected one of {', '.join(DEVICES)}, or a compute capability such as "
        "'sm_90'; for another GPU, give its figures as a gpurnn.kernels.devices.Device"
    )


def _words(text: str) -> list[str]:
    """The words and the numbers of a text."""
    return re.findall(r"[a-z]+|\d+", text.lower())


@functools.cache
def of_index(index: int) -> Device:
    """The device that has this number in CuPy."""
    import cupy

    device = cupy.cuda.Device(index)
    attributes: dict[str, Any] = device.attributes  # only those that the driver knows
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    # Memory of double data rate makes two transfers per clock. The clock rate is in kHz.
    bandwidth = 2e3 * attributes.get("MemoryClockRate", 0) * attributes.get("GlobalMemoryBusWidth", 0) / 8
    return Device(
        name=properties["name"].decode(),
        compute_capability=(properties["major"], properties["minor"]),
        multiprocessors=attributes["MultiProcessorCount"],
        clock_hz=1e3 * attributes.get("ClockRate", 0),
        l2_bytes=attributes.get("L2CacheSize", 0),
        bandwidth=bandwidth,
        shared_memory_per_block=attributes.get("MaxSharedMemoryPerBlockOptin", 0),
        has_watchdog=bool(attributes.get("KernelExecTimeout", 0)),
    )


def launch_seconds() -> float:
    """The CPU time of a launch that plans assume: ``GPURNN_LAUNCH_MICROSECONDS``, else `LAUNCH_MICROSECONDS`.

    It is not measured at run time: plans, and with them the last bits of results, would differ from run to run.

    Raises
    ------
    ValueError
        The variable is not a number above 0.
    """
    text = os.environ.get("GPURNN_LAUNCH_MICROSECONDS", str(LAUNCH_MICROSECONDS))
    try:
        microseconds = float(text)
    except ValueError:
        microseconds = math.nan
    if not 0 < microseconds < math.inf:
        raise ValueError(f"GPURNN_LAUNCH_MICROSECONDS is {text!r}, expected a number of microseconds above 0")
    return 1e-6 * microseconds


def current() -> Device:
    """CuPy's current device."""
    import cupy

    return of_index(cupy.cuda.Device().id)


def occupancy(device: Device, threads: int, registers: int, shared_bytes: int) -> int:
    """The number of blocks that one multiprocessor holds at once.

    Parameters
    ----------
    device : Device
    threads : int
        Threads of a block.
    registers : int
        Registers of a thread. A warp gets them in units of 256, all from one of the multiprocessor's four partitions.
    shared_bytes : int
        Static and dynamic shared memory of a block.
    """
    limits = device.limits
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = _PARTITIONS * (REGISTERS // _PARTITIONS // of_warp) // warps if registers else limits.blocks
    unit = limits.shared_memory_unit
    taken = -(-(shared_bytes + limits.reserved_per_block) // unit) * unit
    by_shared = limits.shared_memory // taken if taken else limits.blocks
    return min(limits.threads // (32 * warps), limits.blocks, by_registers, by_shared)
