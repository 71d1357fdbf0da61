"""How much memory this process has used at most, on the device that its detector runs on.

All memory is in MiB (2**20 bytes).
"""

import re
import resource
import sys
from pathlib import Path
from typing import Protocol

import psutil

from resources import cuda
from resources.host import available_memory_mib


class MemoryMeter(Protocol):
    """What a batch runner asks of the device's memory."""

    def peak_mib(self) -> int:
        """The most that this process has used so far, in MiB."""
        ...

    def reachable_mib(self) -> int:
        """What this process could have if it took all that it is let, in MiB."""
        ...

    def release(self) -> None:
        """Gives back what is kept for reuse but not in use."""
        ...


class HostMeter:
    """Main memory: the process's resident set, with everything else that lives in it."""

    def peak_mib(self) -> int:
        """The most that has been resident so far, in MiB."""
        try:
            status = Path("/proc/self/status").read_text()
        except FileNotFoundError:
            # In KiB on Linux, which has the file above, and in bytes on macOS.
            unit = 2**20 if sys.platform == "darwin" else 2**10
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
        # Not ru_maxrss, in which Linux counts what the parent held when it started this process.
        found = re.search(r"^VmHWM:\s+([0-9]+) kB$", status, re.MULTILINE)
        return int(found[1]) // 2**10 if found else 0

    def reachable_mib(self) -> int:
        """What is resident, and what the machine has left, in MiB."""
        return psutil.Process().memory_info().rss // 2**20 + available_memory_mib()

    def release(self) -> None:
        """Does nothing: the C library gives memory back by itself."""


class CudaMeter:
    """A GPU's memory: what torch's allocator holds, and CUDA's own share beside it.

    Args:
        slot_mib: What this process may use, in MiB.
        context_mib: CUDA's own share of it, in MiB; see `resources.cuda.context_mib`.
    """

    def __init__(self, slot_mib: int, context_mib: int) -> None:
        self._slot_mib = slot_mib
        self._context_mib = context_mib

    def peak_mib(self) -> int:
        """The most that has been held so far, in MiB."""
        return self._context_mib + cuda.peak_allocator_mib()

    def reachable_mib(self) -> int:
        """The slot's memory, or less where others have left less on the device, in MiB."""
        return min(self._slot_mib, self._context_mib + cuda.allocator_mib() + cuda.free_mib())

    def release(self) -> None:
        """Gives cached blocks back to the driver, where other processes can have them."""
        cuda.empty_cache()
