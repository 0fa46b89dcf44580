"""PyTorch's global settings that encoding in environments depends on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_done_in = os.getpid()


def single_thread_after_fork() -> None:
    """Sets PyTorch to one thread in a forked process.

    A fork does not copy threads: with more than one, the first convolution would wait forever for the others. PyTorch's
    data loader does the same in its workers.
    """
    global _done_in
    if os.getpid() != _done_in:
        torch.set_num_threads(1)
        _done_in = os.getpid()


@contextmanager
def float32() -> Iterator[None]:
    """Context manager: the default dtype is float32 inside, whatever ``torch.set_default_dtype`` was set to."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
