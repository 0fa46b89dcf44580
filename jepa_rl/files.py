"""Atomic writes, file locks, run folders, and safetensors files with a JSON header."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from jepa_rl import hub

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FORMAT = "jepa-rl"
FORMAT_VERSION = 1


def write_atomic(path: str | Path, data: bytes) -> None:
    """Replaces the file at ``path`` by ``data``: a reader sees the old content or the new one, never a mixture.

    Args:
        path: the file; its folder is created if it does not exist.
        data: the whole new content.

    Raises:
        OSError: if the disk is full or the folder is not writable; an older file at ``path`` is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(
            error.errno, f"could not write {path} ({error}); free some space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Writes the names in a folder to disk, too, where the file system can: Windows and some network disks cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock(file: IO[Any]) -> bool:
    """Takes the exclusive lock of an open file without waiting; False if another open file has it.

    ``unlock``, or the end of the process, gives it back. Processes that do not ask for it may write all the same.
    """
    try:
        if sys.platform == "win32":
            file.seek(0)  # the lock covers one byte from the current position; it need not exist
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


def unlock(file: IO[Any]) -> None:
    """Gives back the lock at once, even if forked children hold the file open, too."""
    if sys.platform == "win32":
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_UN)


def open_run(
    folder: str | Path, settings: Mapping[str, Any], *, resume: bool = True, free: Collection[str] = ()
) -> None:
    """Creates the folder of a run, or reopens it; its settings are kept in ``args.json``.

    A run with other settings is neither continued nor overwritten, unless it was a trial run (its settings have
    ``quick`` set).

    Args:
        folder: of this run alone.
        settings: JSON values, NumPy numbers, tuples and Paths.
        resume: continue an existing run; otherwise it is deleted first.
        free: names of settings that may differ when a run is continued.

    Raises:
        ValueError: if the folder holds a run with other settings, or, with ``resume=False``, files that are not from a
            run. Nothing is changed in either case.
    """
    folder = Path(folder)
    file = folder / "args.json"
    kept = {name: value for name, value in settings.items() if name not in free}
    kept = json.loads(json.dumps(kept, default=_plain_or_text))  # as it will be read back
    if not resume:
        remove_run(folder, file.name)
    there = read_json(file) if file.exists() else kept
    if there != kept:
        if not there.get("quick"):
            other = {name: there.get(name) for name in kept | there if there.get(name) != kept.get(name)}
            raise ValueError(
                f"{folder} holds a run with {other}; pass resume=False (--no-resume) to replace it, or another folder"
            )
        remove_run(folder, file.name)
    write_atomic(file, json.dumps(kept, indent=2).encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    with naming(path, "holds no settings that can be read; restore it from a copy, or delete it"):
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise TypeError(f"expected a JSON object, got {type(found).__name__}")
        return found


# What Python and its libraries raise for values of another type, size or depth than was expected.
_UNEXPECTED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
)


@contextlib.contextmanager
def naming(path: str | Path, trouble: str) -> Iterator[None]:
    """Turns whatever an odd content of a file makes raise inside into one error that names the file.

    Args:
        path: of the file.
        trouble: what is wrong with it, and what to do.

    Raises:
        ValueError: "<path> <trouble>: <what was raised>". Errors of the file system, and those that name the file
            already, pass.
    """
    try:
        yield
    except _UNEXPECTED as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        said = str(error) if isinstance(error, ValueError | RuntimeError | TypeError) else repr(error)
        raise ValueError(f"{path} {trouble}: {said[:500]}") from error


def remove_run(folder: str | Path, mark: str) -> None:
    """Deletes the folder of an earlier run, if it exists.

    Args:
        folder: of the run.
        mark: name of the file or folder that every run creates first; it identifies ``folder`` as a run's.

    Raises:
        ValueError: if the folder holds something else; nothing is deleted then.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not (folder / mark).exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and holds no run of this kind ({mark} is missing), so it is not deleted; choose "
            "another folder"
        )
    shutil.rmtree(folder)


def plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's: ``json.dumps(..., default=plain)``.

    Raises:
        TypeError: for anything else that JSON does not know.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(
        f"a file's settings must be numbers, texts, lists and dicts, got {type(value).__name__}: {value!r}"
    )


def _plain_or_text(value: Any) -> Any:
    return plain(value) if isinstance(value, np.generic | np.ndarray) else str(value)


def save_tensors(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes one safetensors file with a JSON header and a checksum; atomic.

    Args:
        path: the file.
        kind: what the file holds, such as ``"world_model"``; ``load_tensors`` checks it.
        tensors: by name; they are copied to the CPU.
        header: JSON values and NumPy numbers.

    Raises:
        TypeError: if the header holds anything else.
        ValueError: for a name that begins with ``hub:``; those are for loading alone.
        OSError: as ``write_atomic``.
    """
    if hub.is_name(path):
        raise ValueError(
            f"{str(path)!r} names a checkpoint of the package, which is not written to; save under a path"
        )
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "kind": kind}
    metadata["header"] = json.dumps(header, default=plain)
    metadata["checksum"] = _checksum(tensors, metadata)
    write_atomic(path, save(tensors, metadata))


def load_tensors(
    path: str | Path, kinds: tuple[str, ...], device: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file of ``save_tensors``; no code in it is executed.

    Args:
        path: the file, or ``"hub:two-rooms"``, a checkpoint of the package by its name (``jepa_rl.hub``).
        kinds: accepted values of its ``kind``.
        device: where the tensors go.

    Returns:
        The tensors by name, and the header.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, corrupt, not from jepa-rl, of another kind or from a newer version; for a
            name, as ``jepa_rl.hub.path``.
    """
    path = hub.resolve(path)
    if not path.is_file():
        ships = f"; did you mean 'hub:{path}'?" if str(path) in hub.names() else ""
        raise FileNotFoundError(f"no checkpoint at {path}{ships}")
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        raise ValueError(
            f"{path} is a zip file, expected safetensors: agents of Stable-Baselines3 are read by their class "
            "(JEPAMPC.load, PPO.load) or by jepa_rl.agents.sb3.saved.load_agent"
        )
    with naming(path, _CORRUPT):
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                _check_metadata(path, metadata, kinds)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except SafetensorError as error:
            raise ValueError(error) from error
        checksum = _checksum(tensors, metadata)
        if metadata.get("checksum", checksum) != checksum:  # missing if another tool rewrote the file
            raise ValueError("its checksum does not fit its content")
        header = json.loads(metadata["header"])
        if not isinstance(header, dict):
            raise TypeError(f"its header is {type(header).__name__}, expected a JSON object")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, header


_CORRUPT = "is truncated or corrupt; restore it from a copy or train again"


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hash of the metadata and of names, shapes, dtypes and bytes of the tensors; safetensors itself has none."""
    digest = hashlib.blake2b(digest_size=16)
    facts = sorted((name, text) for name, text in metadata.items() if name != "checksum")
    digest.update(json.dumps(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_metadata(path: Path, metadata: dict[str, str], kinds: tuple[str, ...]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} was not written by jepa-rl: expected format {FORMAT!r}, got {metadata.get('format')!r}"
        )
    version = metadata.get("version", "")
    if not version.isdecimal():
        raise ValueError(f"its version is {version!r}")
    if int(version) > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this jepa-rl reads up to {FORMAT_VERSION}: "
            "upgrade with pip install -U jepa-rl"
        )
    if metadata.get("kind") not in kinds:
        hint = "; WorldModel.load and wrap read it" if metadata.get("kind") == "world_model" else ""
        raise ValueError(f"{path} holds a {metadata.get('kind')!r}, expected one of {list(kinds)}{hint}")
