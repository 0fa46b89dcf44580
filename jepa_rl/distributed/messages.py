"""Tensors that the first process sends to the others, whenever it has any: they wait for them as long as it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jepa_rl.distributed.group import by_first, lost_in_words

Layout = list[tuple[str, str, list[int]]]  # name, dtype and shape of each tensor, in the order in memory
ALIGNED = 64  # bytes


def tell(word: Any, parts: Sequence[Mapping[str, Tensor]]) -> None:
    """Sends a message from the first process to the others, which call ``told``.

    Args:
        word: JSON values, for all.
        parts: tensors for each of the others, by name; in all of them the same names, shapes and dtypes. They travel in
            one piece, as bytes, over the processor.

    Raises:
        ProcessLost: another process ended.
    """
    layout = _layout(parts[0])
    packed = [_packed(layout, part) for part in parts]
    by_first(lambda: [word, layout])
    with lost_in_words():
        for sent in [dist.isend(bytes_, rank) for rank, bytes_ in enumerate(packed, start=1)]:
            assert sent is not None, "this process belongs to the group"
            sent.wait()


def told() -> tuple[Any, dict[str, Tensor]]:
    """Waits for the next message of the first process.

    Returns:
        Its word, and this process's tensors, on the processor.

    Raises:
        ProcessLost: the first process stopped.
    """
    said: Any = by_first(lambda: None)  # what the first says
    word, layout = said
    bytes_ = _memory(layout)
    with lost_in_words():
        dist.recv(bytes_, src=0)
    return word, _views(layout, bytes_)


def _layout(tensors: Mapping[str, Tensor]) -> Layout:
    return [(name, str(x.dtype).removeprefix("torch."), list(x.shape)) for name, x in tensors.items()]


def _memory(layout: Layout) -> Tensor:
    return torch.empty(sum(_space(kind, shape) for _, kind, shape in layout), dtype=torch.uint8)


def _views(layout: Layout, memory: Tensor) -> dict[str, Tensor]:
    """The tensors that lie in ``memory``."""
    found, first = {}, 0
    for name, kind, shape in layout:
        part = memory[first : first + _bytes(kind, shape)]
        found[name] = part.view(getattr(torch, kind)).view(shape)
        first += _space(kind, shape)
    return found


def _bytes(kind: str, shape: list[int]) -> int:
    return math.prod(shape) * getattr(torch, kind).itemsize


def _space(kind: str, shape: list[int]) -> int:
    """Bytes that a tensor takes in memory; the next one is aligned as torch aligns those that it allocates."""
    return -(-_bytes(kind, shape) // ALIGNED) * ALIGNED


def _packed(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    memory = _memory(layout)
    for name, place in _views(layout, memory).items():
        place.copy_(tensors[name])
    return memory
