"""What the process may have of memory, and how it keeps what it has."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import psutil

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, see <malloc.h>


def keep_freed_memory() -> bool:
    """Lets this process keep memory that it frees, instead of handing it back to the system; whether it worked.

    glibc returns buffers of 32 MiB and more at once, and a training step takes several of them: the kernel then
    clears every page anew, which cost a fifth of an update from pixels. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    largest = 2**31 - 1
    return all(libc.mallopt(option, largest) == 1 for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))


def available_memory() -> int:
    """Bytes that may still be taken: free memory, or what a container's limit leaves."""
    free, left = psutil.virtual_memory().available, _left_in_cgroup()
    return free if left is None else min(free, left)


def _left_in_cgroup(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The limit of a container (cgroup v2) less what is in use and could not be dropped."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    stat = dict(line.split() for line in lines)
    return int(limit) - used + int(stat.get("inactive_file", 0))
