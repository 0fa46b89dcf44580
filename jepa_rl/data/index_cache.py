"""What has been read from the lines of an episode index, as arrays: a large store opens without parsing its lines.

A cache and nothing more. It stands beside the lines and names the digest of those that it holds; where they differ,
or where it is missing or damaged, the lines are read. It is replaced as a whole, so that a crash leaves the old one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from jepa_rl.files import write_atomic

FORMAT, VERSION = "jepa-rl episode index cache", 1
_CHUNK = 2**20  # bytes that are hashed at a time
_DTYPES = (np.dtype("<i8"), np.dtype("<i8"), np.dtype(bool), np.dtype(bool))


@dataclass(frozen=True, eq=False)
class Entries:
    """What the lines of an index say, but for the metadata.

    Attributes:
        ends: the byte of the file after each line.
        lengths: environment steps of each episode.
        terminated, truncated: how each ended.
    """

    ends: Int64[np.ndarray, " episodes"]
    lengths: Int64[np.ndarray, " episodes"]
    terminated: Bool[np.ndarray, " episodes"]
    truncated: Bool[np.ndarray, " episodes"]

    @staticmethod
    def make(ends: Any = (), lengths: Any = (), terminated: Any = (), truncated: Any = ()) -> Entries:
        """Entries from any sequences; none by default."""
        columns = (ends, lengths, terminated, truncated)
        return Entries(*(np.asarray(c, dtype) for c, dtype in zip(columns, _DTYPES, strict=True)))

    def __len__(self) -> int:
        """Episodes."""
        return len(self.ends)

    def __add__(self, other: Entries) -> Entries:
        """These, and then others."""
        return Entries(*map(np.append, self.columns(), other.columns()))

    def columns(self) -> tuple[np.ndarray, ...]:
        """The four arrays."""
        return self.ends, self.lengths, self.terminated, self.truncated

    @property
    def size(self) -> int:
        """Bytes of the lines."""
        return int(self.ends[-1]) if len(self) else 0


def new_digest() -> hashlib.blake2b:
    """Of no lines yet."""
    return hashlib.blake2b(digest_size=16)


def load(path: Path, lines: Path) -> tuple[Entries, hashlib.blake2b] | None:
    """What the cache holds.

    Args:
        path: of the cache.
        lines: the index that it belongs to.

    Returns:
        The entries, and the digest of their lines, to be continued; None where there is no cache of these lines.
    """
    try:
        header, _, body = path.read_bytes().partition(b"\n")
        told = json.loads(header)
        if (told["format"], told["version"]) != (FORMAT, VERSION) or told["arrays"] != _digest(body):
            return None
        entries = _unpack(body, told["episodes"])
        digest = _digest_of_file(lines, entries.size)
        return (entries, digest) if digest.hexdigest() == told["lines"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


def save(path: Path, entries: Entries, digest: hashlib.blake2b) -> None:
    """Replaces the cache.

    Args:
        path: of the cache.
        entries: what it will hold.
        digest: of their lines.

    Raises:
        OSError: if it cannot be written; the old one stays.
    """
    body = b"".join(column.tobytes() for column in entries.columns())
    header = {"format": FORMAT, "version": VERSION, "episodes": len(entries)}
    header |= {"lines": digest.hexdigest(), "arrays": _digest(body)}
    write_atomic(path, json.dumps(header).encode() + b"\n" + body)


def _unpack(body: bytes, episodes: int) -> Entries:
    columns, start = [], 0
    for dtype in _DTYPES:
        columns.append(np.frombuffer(body, dtype, episodes, start).copy())
        start += episodes * dtype.itemsize
    entries = Entries(*columns)
    if start != len(body) or (np.diff(entries.ends, prepend=0) < 1).any() or (entries.lengths < 1).any():
        raise ValueError("the arrays are of no index")
    return entries


def _digest(body: bytes) -> str:
    digest = new_digest()
    digest.update(body)
    return digest.hexdigest()


def _digest_of_file(path: Path, size: int) -> hashlib.blake2b:
    digest, rest = new_digest(), size
    with open(path, "rb") as file:
        while rest and (chunk := file.read(min(rest, _CHUNK))):
            digest.update(chunk)
            rest -= len(chunk)
    return digest
