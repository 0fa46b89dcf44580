"""The description of a dataset, ``meta/info.json``: checked, because it says which files are read and how large."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jepa_rl.data.layout import Layout

VERSION = "v3.0"
CHUNKS, DATA_MB, VIDEO_MB = 1000, 100, 200  # files in a folder, and megabytes of a file: LeRobot's defaults
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
OWN = "jepa_rl"  # entry of info.json, and column of the episodes, that only to_lerobot writes

# Columns that every dataset has.
BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_FIELDS = {"chunk_index", "file_index", "video_key", "episode_chunk", "episode_index"}


@dataclass(frozen=True)
class Feature:
    """A column of a dataset.

    Attributes:
        dtype: NumPy's name of a dtype, ``"image"`` or ``"video"``.
        shape: of a row; pictures have ``(y, x, c)`` or ``(c, y, x)``, see ``channels_first``.
        channels_first: whether the picture's shape names its channels first.
    """

    dtype: str
    shape: tuple[int, ...]
    channels_first: bool = False

    @property
    def picture(self) -> tuple[int, int, int]:
        """``(c, y, x)``."""
        first, middle, last = self.shape
        return (first, middle, last) if self.channels_first else (last, first, middle)


@dataclass(frozen=True)
class Info:
    """What ``from_lerobot`` needs of ``meta/info.json``.

    Attributes:
        folder: of the dataset.
        fps: frames a second.
        features: columns by name.
        data_path, video_path: templates of file names.
        chunks: episodes in a folder (2.1).
        legacy: whether it is of version 2.1, with one file an episode.
        layout: of the store that it was exported from; None for other people's.
    """

    folder: Path
    fps: float
    features: Mapping[str, Feature]
    data_path: str
    video_path: str
    chunks: int
    legacy: bool
    layout: Layout | None

    def file(self, template: str, **fields: Any) -> Path:
        """The file that a template names.

        Raises:
            ValueError: if it lies outside the folder, or the template is none.
            FileNotFoundError: if there is no such file.
        """
        try:
            for _, name, spec, conversion in string.Formatter().parse(template):
                if name is not None and (name not in _FIELDS or conversion or len(spec or "") > 3):
                    raise ValueError(f"{{{name}:{spec}}} is no place for a number")
            path = PurePosixPath(template.format(**fields))
            if not path.name:
                raise ValueError("it is empty")
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"{self.folder}: {template!r} does not name files ({error})") from error
        if path.is_absolute() or ".." in path.parts or "\\" in str(path):
            raise ValueError(f"{self.folder}: {str(path)!r} leads out of the dataset's folder")
        found = self.folder / path
        if not found.is_file():
            raise FileNotFoundError(f"{self.folder} is not whole: {path} is missing; download it again")
        return found

    def camera(self, name: str | None) -> str:
        """The picture of that name, or the only one.

        Raises:
            ValueError: if no picture has that name, or ``name`` is None and the number of pictures is not one.
        """
        pictures = [key for key, feature in self.features.items() if feature.dtype in ("image", "video")]
        if name is None and len(pictures) == 1:
            return pictures[0]
        if name not in pictures:
            raise ValueError(
                f"camera must name one of the pictures {pictures} of {self.folder}, got {name!r}"
            )
        return name


def read_info(folder: Path) -> Info:
    """The description of the dataset in a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or of a version that is not read.
    """
    file = folder / "meta" / "info.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a LeRobot dataset: meta/info.json is missing")
    try:
        told = json.loads(file.read_text())
        version = told["codebase_version"]
        legacy = version in ("v2.0", "v2.1")
        if not legacy and version != VERSION:
            raise ValueError(
                f"version {version!r}, this jepa-rl reads v2.1 and {VERSION}; convert it with LeRobot"
            )
        features = {key: _feature(key, value) for key, value in told["features"].items()}
        found = Info(
            folder,
            float(told["fps"]),
            features,
            str(told["data_path"]),
            str(told.get("video_path") or ""),
            int(told.get("chunks_size", CHUNKS)),
            legacy,
            Layout.from_json(json.dumps(told[OWN]), file) if OWN in told else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}") from error
    if not found.fps > 0 or not found.chunks > 0:
        raise ValueError(f"{file}: fps and chunks_size must be positive, got {found.fps} and {found.chunks}")
    return found


def _feature(key: str, told: Mapping[str, Any]) -> Feature:
    shape = tuple(int(n) for n in told["shape"])
    if "/" in key or min(shape, default=1) < 0:
        raise ValueError(f"feature {key!r} of shape {shape} cannot be")
    if told["dtype"] not in ("image", "video"):
        return Feature(str(told["dtype"]), shape)
    if len(shape) != 3:
        raise ValueError(f"{key} must be pictures of shape (y, x, c) or (c, y, x), got {shape}")
    names = [str(name) for name in told.get("names") or ()]
    first = names[0].startswith("channel") or names[0] == "c" if names else shape[0] in (1, 3)
    return Feature(told["dtype"], shape, first)


def numbers(feature: Feature) -> bool:
    """Whether a column holds numbers or booleans."""
    try:
        return np.dtype(feature.dtype).kind in "biuf"
    except TypeError:
        return False
