"""What this machine has: free memory, threads, and the device's name."""

import os
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")


class Threads(NamedTuple):
    """Threads that torch computes with on the CPU, and cores that this process may use."""

    used: int
    cores: int


def threads() -> Threads:
    """See `Threads`."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return Threads(torch.get_num_threads(), len(affinity(0)) if affinity else os.cpu_count() or 1)


def busy() -> float:
    """Processes that want a core, over the last minute, for each core of this process; 1: all are used."""
    return psutil.getloadavg()[0] / threads().cores


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; on the CPU within the container's limit, where there is one."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    return max(free, 0)


def device_name(device: torch.device) -> str:
    """The device as its maker calls it, where torch knows that."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
