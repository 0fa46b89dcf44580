"""PyTorch's process-wide state that encoding in environments depends on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_done_in = os.getpid()


def single_thread_after_fork() -> None:
    """Let PyTorch work with one thread in a process that was forked from one where it may have had several.

    A fork does not copy threads: with more than one, the first convolution would wait for the others for ever. Workers
    that are many in any case have one core each. PyTorch's own data loader does the same.
    """
    global _done_in
    if os.getpid() != _done_in:
        torch.set_num_threads(1)
        _done_in = os.getpid()


@contextmanager
def float32() -> Iterator[None]:
    """Parts of models are built and run in float32, whatever ``torch.set_default_dtype`` was told."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
