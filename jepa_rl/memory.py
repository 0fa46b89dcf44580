"""Available memory, malloc tuning, and modules that are no larger than their files."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of mallopt, see <malloc.h>


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory for this process instead of returning it to the system.

    By default glibc returns buffers of 32 MiB and more as soon as they are freed. A training step allocates several of
    them, and the kernel has to clear every page again: this took a fifth of an update from pixels.

    Returns:
        Whether the setting was applied. Other C libraries than glibc are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    largest = 2**31 - 1
    return all(libc.mallopt(option, largest) == 1 for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))


def available_memory() -> int:
    """Bytes that this process can still allocate: free memory, or less where a container's limit is nearer."""
    free, left = psutil.virtual_memory().available, _left_in_cgroup()
    return free if left is None else min(free, left)


def check_memory(what: str, needed: int, remedy: str) -> None:
    """Refuses an allocation before it is made: Linux would kill the process in the middle of it.

    Args:
        what: is to be allocated, for the message.
        needed: bytes.
        remedy: what to lower, for the message.

    Raises:
        ValueError: if fewer bytes are free.
    """
    free = available_memory()
    if needed > free:
        raise ValueError(
            f"{what} takes {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB of memory are free: {remedy}"
        )


_ELSEWHERE = ContextVar("weights come from elsewhere", default=False)


@contextmanager
def weights_from_elsewhere() -> Iterator[None]:
    """What is built inside is not counted by ``weights_within``: its weights come from another file, which is theirs
    alone, such as those of a frozen pretrained backbone."""
    token = _ELSEWHERE.set(True)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


@contextmanager
def weights_within(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Modules that are built inside hold no more weights than a file that describes them; the first one too many is
    refused before its memory is used.

    Args:
        tensors: of the file. What is built may hold three times as many numbers, since some weights are copies that
            files leave out.

    Raises:
        ValueError: if a module goes beyond it.
    """
    most = sum(tensor.numel() for tensor in tensors)
    built, limit, thread = 0, 3 * most + 2**20, threading.get_ident()

    def refuse(what: str, number: int) -> None:
        raise ValueError(f"{what} makes it {number:,} weights, and the file holds {most:,}")

    class Empty(TorchFunctionMode):
        """Looks at tensors that are filled before they become weights of a module."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func is torch.empty and made.numel() > limit and not _ELSEWHERE.get():
                refuse("a tensor", made.numel())
            return made

    def count(module: nn.Module, name: str, value: Any) -> None:
        nonlocal built
        here = threading.get_ident() == thread and not _ELSEWHERE.get()
        if isinstance(value, Tensor) and here:
            built += value.numel()
            if built > limit:
                refuse(f"{type(module).__name__}.{name}", built)

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        with Empty():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _left_in_cgroup(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes up to a container's limit (cgroup v2), counting file cache that the kernel can drop as free.

    None if there is no limit.
    """
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
