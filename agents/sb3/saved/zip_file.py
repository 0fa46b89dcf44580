"""Stable-Baselines3's zip files, checked before their content is used."""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.save_util import open_path

LARGEST_SETTINGS = 2**28  # bytes; they hold the last observation of each environment
PLAIN_NAME = re.compile(r"\w+(\.\w+)*")  # of members: no folders, no "..", no drives
VARIABLES = ("pytorch_variables.pth", "tensors.pth")


class SavedZip:
    """A zip file in memory, so that what is checked is what is loaded.

    Args:
        name: of the file, for messages.
        content: its bytes.
    """

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self._content = name, content

    @staticmethod
    def read(path: str | Path | io.BufferedIOBase) -> SavedZip:
        """The file at a path, to which ``.zip`` is added if there is none without; or an open file.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        file = open_path(path, "r", suffix="zip")
        if not isinstance(path, str | Path):
            file.seek(0)
            return SavedZip("the open file", file.read())
        with file:
            return SavedZip(str(path), file.read())

    def open(self) -> io.BytesIO:
        """The file, opened anew."""
        return io.BytesIO(self._content)

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        """The archive; whatever zipfile and zlib raise while it is used comes out as ValueError."""
        try:
            with zipfile.ZipFile(self.open()) as archive:
                yield archive
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            EOFError,
            OSError,
            zlib.error,
        ) as error:
            raise ValueError(
                f"{self.name} wasn't a zip-file of Stable-Baselines3, or is damaged ({error}); restore it from a "
                "copy"
            ) from error

    def settings(self) -> dict[str, Any]:
        """The settings, with pickles as text.

        Raises:
            ValueError: if there are none, they are too long or no JSON.
        """
        with self._archive() as archive:
            if "data" not in archive.namelist():
                raise ValueError(
                    f"{self.name} holds no settings of an agent; it is truncated, or something else"
                )
            size = archive.getinfo("data").file_size
            if size > LARGEST_SETTINGS:
                raise ValueError(
                    f"{self.name} says that its settings take {size:,} bytes, more than any agent's do"
                )
            text = archive.read("data")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.name} is damaged: its settings are no JSON ({error})") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.name} is damaged: its settings are a {type(found).__name__}, not a dict")
        return found

    def check_members(self) -> None:
        """Checks everything but the settings: names, sizes, checksums, and that weights are weights.

        Raises:
            ValueError: if a member is not as Stable-Baselines3 writes it.
        """
        with self._archive() as archive:
            self._check_sizes(archive, len(self._content))
            for name in archive.namelist():
                if not PLAIN_NAME.fullmatch(name) or any(part.startswith("__") for part in name.split(".")):
                    raise self._refusal(f"the name {name!r}, which no agent's part has")
            weights = {name: archive.read(name) for name in archive.namelist() if name.endswith(".pth")}
            if broken := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {broken!r} does not fit")
        for name, content in weights.items():
            found = SavedZip(f"the part {name!r} of {self.name}", content).weights()
            if name in VARIABLES:
                self._check_variables(name, found)

    def weights(self) -> Any:
        """What torch saved in this file: tensors, plain values and containers of them; nothing else is unpickled.

        Raises:
            ValueError: if it is something else.
        """
        with self._archive() as archive:
            self._check_sizes(archive, len(self._content))
        try:
            return torch.load(self.open(), map_location="cpu", weights_only=True)
        except Exception as error:  # torch's and pickle's, of many kinds
            reason = str(error).partition("\n")[0]
            raise self._refusal(f"something else than weights ({type(error).__name__}: {reason})") from error

    def _check_variables(self, name: str, found: Any) -> None:
        """Refuses variables that could not be those of an agent: they are set as attributes of its attributes."""
        if not isinstance(found, dict | None):
            raise self._refusal(f"no variables in {name!r}")
        for variable, value in (found or {}).items():
            sound = isinstance(variable, str) and variable.isidentifier() and not variable.startswith("__")
            if not sound or not isinstance(value, torch.Tensor | None):
                raise self._refusal(f"a variable {variable!r}, which no agent has")

    def _check_sizes(self, archive: zipfile.ZipFile, available: int) -> None:
        """Members are stored as they are, so they cannot unpack to more than the file holds."""
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise self._refusal("two members of one name")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise self._refusal(f"{member.filename!r} compressed or encrypted")
        if (declared := sum(member.file_size for member in members)) > available:
            raise self._refusal(f"members that declare {declared:,} bytes, in a file of {available:,}")

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"{self.name} holds {what}: Stable-Baselines3 does not write such files. If you trust who wrote it, load "
            "it with trust=True, which can execute anything in it"
        )
