"""How much memory a worker held at most, and how much there is left."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Final

import torch

_PROCESS: Final = Path("/proc/self")
_RESET_PEAK: Final = "5"  # what the kernel takes, written to clear_refs, for "forget the peak"


class PeakMemory:
    """The most memory since the last restart, in bytes: allocated on the GPU, or resident on a CPU.

    CUDA graphs work in memory that is reserved for them and counts as free: `pooled` counts it.

    Where the system cannot forget a process's peak, it is the peak since the process began.
    """

    def __init__(self, device: torch.device, *, pooled: bool = False) -> None:
        self.device = device
        self.pooled = pooled

    def restart(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):
            (_PROCESS / "clear_refs").write_text(_RESET_PEAK)

    def bytes(self) -> int:
        if self.device.type == "cuda":
            if self.pooled:
                return torch.cuda.max_memory_reserved(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        peak = _kilobytes(_PROCESS / "status", "VmHWM")
        return 1024 * (peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def room(device: torch.device, *, pooled: bool = False) -> int | None:
    """Bytes that can still be allocated beside the most that was held so far; None = unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if pooled:
            return free
        return free + torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
    available = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    return None if available is None else 1024 * available


def _kilobytes(file: Path, key: str) -> int | None:
    """A number of kB that the kernel tells, or None."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return next((int(number) for number in found), None)
