"""How much memory there is and how much is in use, on accelerators and on processors."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import jax

PROC = Path("/proc/self/status")
ROOT = Path("/")
"""Of the file system, in which the kernel tells of memory."""


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
    """Free bytes on each of `devices` devices."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    return free_host_bytes() // devices


def free_host_bytes() -> int:
    """Bytes of the machine's memory that this process may still take, within the limits of its control groups."""
    free = [_kib(ROOT / "proc/meminfo", "MemAvailable"), *map(_free_in, control_groups())]
    known = [value for value in free if value is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class ControlGroup(NamedTuple):
    """A folder of the kernel's, and the names of its files in the version that it is of."""

    folder: Path
    limits: tuple[str, ...]
    """bytes that all processes of the group may have; the smallest counts"""
    used: str
    """bytes that they have, with the files that are kept in memory"""
    cached: str
    """in `memory.stat`: bytes of files that the kernel drops before it refuses memory"""


def control_groups() -> list[ControlGroup]:
    """The groups that bind this process: its own, and all those around it up to the root that can be seen."""
    mount = ROOT / "sys/fs/cgroup"
    version2 = ("memory.max", "memory.high"), "memory.current", "inactive_file"
    version1 = ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"
    own = {"": "/", "memory": "/"}  # controller -> path; both versions may be there
    try:
        for line in (ROOT / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= {name: path for name in controllers.split(",") if name in own}
    except (OSError, ValueError):
        pass

    def around(root: Path, path: str) -> list[Path]:
        # A path from outside of the container's own view begins with `/..`; what is there cannot be seen from inside.
        inner = root / path.strip("/") if ".." not in path.split("/") else root
        return [inner, *(folder for folder in inner.parents if folder.is_relative_to(root))]

    return [ControlGroup(folder, *version2) for folder in around(mount, own[""])] + [
        ControlGroup(folder, *version1) for folder in around(mount / "memory", own["memory"])
    ]


def _free_in(group: ControlGroup) -> int | None:
    """Bytes that processes of this group may still take; None where it sets no limit."""
    limits = [_number(group.folder / name) for name in group.limits]
    used = _number(group.folder / group.used)
    known = [limit for limit in limits if limit is not None]
    if used is None or not known:
        return None
    return max(0, min(known) - used + (_number(group.folder / "memory.stat", group.cached) or 0))


def is_out_of_memory(error: Exception) -> bool:
    """Whether this error means that a device, or the machine, has refused memory.

    Errors of snapshots on a full disk have the same word in their text.
    """
    refused = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return refused or isinstance(error, MemoryError)


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
    """What `peak_bytes` will say once programs have taken `device_bytes` more on each of `devices` devices."""
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


def _number(path: Path, name: str | None = None) -> int | None:
    """The number that a file holds, or its line `name 123`; None where there is none, as in `max`."""
    try:
        text = path.read_text()
        return int(text if name is None else dict(line.split() for line in text.splitlines())[name])
    except (OSError, ValueError, KeyError):
        return None
