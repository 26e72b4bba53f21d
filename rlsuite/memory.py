"""How much memory there is and how much is in use, on accelerators and on processors."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

import jax

PROC = Path("/proc/self/status")
CGROUP = Path("/sys/fs/cgroup")


def on_processor() -> bool:
    """Whether the devices are processor cores, which share one memory with the process."""
    return jax.local_devices()[0].platform == "cpu"


def copies() -> int:
    """Copies of the runs' state that a snapshot makes in the memory of the devices."""
    return 1 if on_processor() else 0


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(devices: int) -> int:
    """Bytes that may still be taken on each of so many devices."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    return free_host_bytes() // devices


def free_host_bytes() -> int:
    """Bytes of the machine's memory that this process may still take, its container's limit included."""
    free = [_kib(Path("/proc/meminfo"), "MemAvailable")]
    try:  # control group, version 2, then version 1
        free.append(_number(CGROUP / "memory.max") - _number(CGROUP / "memory.current"))
    except (OSError, ValueError):
        try:
            version1 = CGROUP / "memory"
            free.append(_number(version1 / "memory.limit_in_bytes") - _number(version1 / "memory.usage_in_bytes"))
        except (OSError, ValueError):
            pass
    known = [value for value in free if value is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_out_of_memory(error: Exception) -> bool:
    """Whether this error means that a device, or the machine, has refused memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def release() -> None:
    """Give back what earlier programs and their compilation have left: gigabytes, after a few large programs."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # where the C library is another one
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes() -> int:
    """The most in use so far: of the first accelerator, or of this process where devices are processor cores."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return peak_host_bytes()


def peak_host_bytes() -> int:
    """The most memory that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_with(device_bytes: int, devices: int) -> int:
    """What `peak_bytes` will say once programs have taken `device_bytes` more on each of so many devices."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_in_use" in stats:
        return max(peak_bytes(), int(stats["bytes_in_use"]) + device_bytes)
    now = _kib(PROC, "VmRSS")
    return max(peak_host_bytes(), (peak_host_bytes() if now is None else now) + devices * device_bytes)


def _kib(path: Path, name: str) -> int | None:
    """The bytes that a line `name: 123 kB` of a file tells; None where there is none."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _number(path: Path) -> int:
    """The number a file holds; `max` is a ValueError, as is anything else."""
    return int(path.read_text())
