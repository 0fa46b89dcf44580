"""Atomic files, and safetensors with a JSON header that says what they are."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "jepa-rl"
FORMAT_VERSION = 1


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes all of ``data`` or nothing: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or the folder cannot be written; an older file at ``path`` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise OSError(
            f"could not write {path} ({error}); free some space or choose another folder"
        ) from error


def save_tensors(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """One safetensors file with a JSON header; ``kind`` says what it holds."""
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "kind": kind, "header": json.dumps(header)}
    write_atomic(
        path, save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, metadata)
    )


def load_tensors(
    path: str | Path, kinds: tuple[str, ...], device: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file of ``save_tensors``; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupt, foreign, of another kind or from a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(str(path), framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            _check_metadata(path, metadata, kinds)
            return {name: file.get_tensor(name) for name in file.offset_keys()}, json.loads(
                metadata["header"]
            )
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(
            f"{path} is truncated or corrupt ({error}); restore it from a copy or train again"
        ) from error


def _check_metadata(path: Path, metadata: dict[str, str], kinds: tuple[str, ...]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} was not written by jepa-rl: expected format {FORMAT!r}, got {metadata.get('format')!r}"
        )
    if int(metadata.get("version", 0)) > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {metadata['version']}, this jepa-rl reads up to {FORMAT_VERSION}: "
            "upgrade with pip install -U jepa-rl"
        )
    if metadata.get("kind") not in kinds:
        raise ValueError(f"{path} holds a {metadata.get('kind')!r}, expected one of {list(kinds)}")
