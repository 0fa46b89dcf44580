"""Read-only memory maps of columns that may be larger than memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from jepa_rl.memory import available_memory

# A map above this share of the free memory is read as one that will not stay in memory.
LARGE = 0.5


class _Scattered(mmap.mmap):
    """A map whose pages are read alone.

    By default the system reads far ahead of a page that is missing, up to megabytes, for readers that go on to the next
    one. Windows lie anywhere: all that was read ahead pushes out other pages before it is used.
    """


def map_rows(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> Shaped[np.ndarray, "rows ..."]:
    """The rows of a file as a read-only array that is backed by it.

    Args:
        path: the file; at least as long as the rows, which are at least one byte.
        dtype, shape: of the array.
    """
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    scattered = hasattr(mmap, "MADV_RANDOM") and size > LARGE * available_memory()
    with open(path, "rb") as file:
        mapped = (_Scattered if scattered else mmap.mmap)(file.fileno(), size, access=mmap.ACCESS_READ)
    if scattered:
        mapped.madvise(mmap.MADV_RANDOM)
    return np.ndarray(shape, dtype, mapped)


def is_scattered(rows: Shaped[np.ndarray, "rows ..."]) -> bool:
    """Whether an array of ``map_rows`` is larger than memory, so that ``prefetch`` helps."""
    return isinstance(rows.base, _Scattered)


def prefetch(
    rows: Shaped[np.ndarray, "rows ..."],
    first: Int64[np.ndarray, "..."],
    count: Int64[np.ndarray, "..."] | int,
) -> None:
    """Asks the system to read rows that will be needed, all at the same time; otherwise it reads page after page.

    Only for arrays of ``map_rows`` that are larger than memory; others are left as they are.

    Args:
        rows: the array.
        first, count: which rows: ``count`` of them from each ``first`` on.
    """
    mapped = rows.base
    if not isinstance(mapped, _Scattered):
        return
    starts = np.ravel(first) * rows.strides[0]
    pages = starts // mmap.PAGESIZE * mmap.PAGESIZE  # where advice may begin
    sizes = starts - pages + np.broadcast_to(count, np.shape(first)).ravel() * rows.strides[0]
    for page, size in zip(pages.tolist(), sizes.tolist(), strict=True):
        mapped.madvise(mmap.MADV_WILLNEED, page, min(size, len(mapped) - page))
