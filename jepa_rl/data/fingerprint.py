"""Which data a sampler draws from, in a few numbers: a run that is resumed on other data is told so."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int64, Shaped

ROWS = 32  # that are read to tell two data sets apart: 32 frames are read in milliseconds from a store of any size


def digest(*arrays: Shaped[np.ndarray, " ..."]) -> str:
    """Of dtypes, shapes and values: 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(f"{array.dtype.str} {list(array.shape)}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def spread(count: int, rows: int = ROWS) -> Int64[np.ndarray, " rows"]:
    """Numbers below ``count``, evenly spaced from the first to the last: ``rows`` of them, or all if fewer."""
    return np.unique(np.linspace(0, count - 1, rows).astype(np.int64))
