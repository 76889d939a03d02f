"""What a stage uses: memory of the process and of its devices, at their peak."""

import contextlib
from pathlib import Path

import psutil
import torch

_PROC = Path("/proc/self")


class Peak:
    """Peak memory from now on, in bytes; one at a time in a process.

    Of the process it is resident memory: on Linux the most since this object was made, elsewhere that of the moment.
    """

    def __init__(self) -> None:
        with contextlib.suppress(
            OSError
        ):  # a system, or a container, that does not let its mark be taken back
            (_PROC / "clear_refs").write_text("5")
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            for card in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(card)

    def __call__(self) -> dict[str, int]:
        """`process`, and `device` where there is one (what torch took there; of several the sum)."""
        found = {"process": _resident()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            cards = range(torch.cuda.device_count())
            found["device"] = sum(map(torch.cuda.max_memory_allocated, cards))
        return found


def _resident() -> int:
    with contextlib.suppress(OSError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)  # now, where the system keeps no mark
