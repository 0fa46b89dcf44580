"""Which rows of a batch are this process's, and random numbers of theirs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from jepa_rl.distributed.group import exchange, is_together, processes, rank


def own_rows() -> slice:
    """The rows of the batch of all processes that are this one's: every n-th, beginning with its number."""
    return slice(rank(), None, processes()) if is_together() else slice(None)


def whole_batch(rows: int) -> int:
    """Rows of the batch of all processes, each of which has ``rows``."""
    return rows * processes() if is_together() else rows


def check_divides(batch_size: int) -> None:
    """Raises ValueError unless every process can have the same number of rows, two or more."""
    size = processes() if is_together() else 1
    if batch_size % size or (size > 1 and batch_size < 2 * size):
        raise ValueError(
            f"batch_size counts the rows of all processes and must be a multiple of their number, with two rows or "
            f"more for each, got batch_size={batch_size} and {size} processes; take "
            f"{max(2, round(batch_size / size)) * size}, or another --nproc-per-node"
        )


def own_draw(draw: Callable[[int], Tensor], rows: int, of: range | None = None) -> Tensor:
    """Random numbers of this process's rows: drawn for the rows of all processes, so that generators stay in step.

    Args:
        draw: gives numbers of so many rows, rows first.
        rows: how many this process has.
        of: numbers of those rows of the whole batch that are drawn for; None for all.
    """
    if not is_together():
        return draw(rows)
    of = range(whole_batch(rows)) if of is None else of
    return draw(len(of))[(rank() - of.start) % processes() :: processes()]


def own_chunks(rows: int, chunks: int) -> list[tuple[int, range]]:
    """The parts into which ``torch.chunk`` cuts the whole batch.

    Args:
        rows: how many this process has.
        chunks: as for ``torch.chunk``.

    Returns:
        For each part the number of this process's rows in it, and the numbers of its rows in the whole batch.
    """
    whole = whole_batch(rows)
    size = -(-whole // chunks)
    parts = [range(first, min(first + size, whole)) for first in range(0, whole, size)]
    own = range(rank(), whole, processes()) if is_together() else range(whole)
    return [(sum(row in part for row in own), part) for part in parts]


def fewest(count: int) -> int:
    """The least of the processes' numbers."""
    if not is_together():
        return count
    least = torch.tensor(count)
    exchange(least, dist.ReduceOp.MIN)
    return int(least)
