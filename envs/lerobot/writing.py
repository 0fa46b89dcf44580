"""A store as a LeRobot dataset of version 3.0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jepa_rl.data import Episode, Episodes
from jepa_rl.data.layout import Layout
from jepa_rl.envs.importing import appears_whole, exported_layout
from jepa_rl.envs.lerobot import info, stats, tables, video
from jepa_rl.envs.lerobot.stats import Stats

_MB = 2**20


def to_lerobot(
    episodes: Episodes,
    folder: str | Path,
    *,
    fps: int,
    task: str = "",
    camera: str = "observation.image",
    pictures: Literal["image", "video"] = "image",
    robot_type: str | None = None,
) -> None:
    """Write episodes as a LeRobot dataset of version 3.0.

    Extras become columns ``observation.<name>``, rewards ``next.reward``, ends ``next.done`` and ``next.truncated``.
    Episodes are written one by one, so the store may be larger than memory.

    Args:
        episodes: a store, or a view of it.
        folder: of the new dataset.
        fps: environment steps a second.
        task: what the episodes are about, in words.
        camera: name of the pictures' column.
        pictures: ``"image"`` for PNG in the tables, without loss, or ``"video"`` for H.264 with 4:2:0 colours: smaller
            by far, and not the same pictures any more.
        robot_type: of the description.

    Raises:
        ImportError: if pyarrow or PyAV is not installed.
        FileExistsError: if ``folder`` is there already.
        ValueError: if there are no episodes, pictures have neither one nor three channels (videos: not three, or an odd
            side), or names clash. Nothing half-written stays.
    """
    tables.import_pyarrow()
    folder = Path(folder)
    layout = exported_layout(episodes)
    features = _features(layout, camera, pictures)
    if fps < 1:
        raise ValueError(f"fps must be at least 1, got {fps}")
    with appears_whole(folder) as part:
        writer = _Writer(part, layout, features, camera, fps)
        try:
            for i in range(len(episodes)):
                writer.add(episodes.episode(i), task)
        finally:
            writer.close()
        tables.write_tasks(part / "meta" / "tasks.parquet", [task])
        _write_json(part / "meta" / "stats.json", _plain(writer.totals))
        _write_json(part / "meta" / "info.json", writer.describe(robot_type))


class _Writer:
    """The files of a dataset while they grow.

    Args:
        folder: of the dataset.
        layout: of the store.
        features: columns, as info.json names them.
        camera: name of the pictures' column.
        fps: frames a second.
    """

    def __init__(
        self, folder: Path, layout: Layout, features: Mapping[str, Any], camera: str, fps: int
    ) -> None:
        self._folder, self._layout, self._features = folder, layout, features
        self._camera, self._fps = camera, fps
        self._lossy = features[camera]["dtype"] == "video"
        self._episodes = self._rows = 0
        self._data = _Series(folder, info.DATA_PATH)
        self._meta = _Series(folder, info.EPISODES_PATH)
        self._videos = _Series(folder, info.VIDEO_PATH, video_key=camera)
        self._table: tables.TableWriter | None = None
        self._index: tables.TableWriter | None = None
        self._video: video.VideoWriter | None = None
        self.totals: dict[str, Stats] = {}

    def add(self, episode: Episode, task: str) -> None:
        """Appends an episode to the present files, or begins new ones where they are full."""
        columns = self._columns(episode)
        length = len(episode) + 1
        found = {key: stats.of_rows(np.asarray(rows)) for key, rows in columns.items() if key != self._camera}
        found[self._camera] = stats.of_pictures(episode.frames)
        place = self._add_video(episode.frames) if self._lossy else {}
        if self._table is None or self._table.bytes > info.DATA_MB * _MB:
            self._table = self._renew(self._table, self._data, tables.schema(self._features))
        self._table.add(columns)
        row: dict[str, Any] = {
            "episode_index": self._episodes,
            "tasks": [task],
            "length": length,
            "data/chunk_index": self._data.chunk,
            "data/file_index": self._data.number,
            "dataset_from_index": self._rows,
            "dataset_to_index": self._rows + length,
            **place,
            **stats.flat(found),
            info.OWN: json.dumps(_ends(episode)),
        }
        if self._index is None or self._index.bytes > info.DATA_MB * _MB:
            self._index = self._renew(self._index, self._meta, tables.schema_of_episodes(row))
        row |= {"meta/episodes/chunk_index": self._meta.chunk, "meta/episodes/file_index": self._meta.number}
        self._index.add({key: [value] for key, value in row.items()})
        self.totals = {key: stats.merged(self.totals.get(key), of) for key, of in found.items()}
        self._episodes, self._rows = self._episodes + 1, self._rows + length

    def close(self) -> None:
        """Ends all files."""
        for file in (self._table, self._index, self._video):
            if file is not None:
                file.close()

    def describe(self, robot_type: str | None) -> dict[str, Any]:
        """The content of info.json."""
        return {
            "codebase_version": info.VERSION,
            "robot_type": robot_type,
            "total_episodes": self._episodes,
            "total_frames": self._rows,
            "total_tasks": 1,
            "chunks_size": info.CHUNKS,
            "data_files_size_in_mb": info.DATA_MB,
            "video_files_size_in_mb": info.VIDEO_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": info.DATA_PATH,
            "video_path": info.VIDEO_PATH if self._lossy else None,
            "features": self._features if not self._lossy else self._with_video_info(),
            info.OWN: json.loads(self._layout.to_json()),
        }

    def _columns(self, episode: Episode) -> dict[str, Any]:
        rows = len(episode) + 1
        ends = np.zeros((2, rows), bool)
        ends[0, -2:] = episode.terminated or episode.truncated
        ends[1, -2:] = episode.truncated
        steps = np.arange(rows)
        return {
            **({} if self._lossy else {self._camera: [video.encode_png(frame) for frame in episode.frames]}),
            "action": np.concatenate([episode.actions, episode.actions[-1:]]),
            **{f"observation.{name}": values for name, values in episode.extras.items()},
            "next.reward": np.append(episode.rewards, np.float32(0)),
            "next.done": ends[0],
            "next.truncated": ends[1],
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(rows, self._episodes),
            "index": self._rows + steps,
            "task_index": np.zeros(rows, np.int64),
        }

    def _add_video(self, frames: np.ndarray) -> dict[str, Any]:
        if self._video is None or self._video.bytes > info.VIDEO_MB * _MB:
            if self._video is not None:
                self._video.close()
            self._video = video.VideoWriter(self._videos.next(), self._layout.frame_shape, self._fps)
        start = self._video.frames
        self._video.add(frames)
        found = {"chunk_index": self._videos.chunk, "file_index": self._videos.number}
        found |= {"from_timestamp": start / self._fps, "to_timestamp": self._video.frames / self._fps}
        return {f"videos/{self._camera}/{name}": value for name, value in found.items()}

    def _renew(self, old: tables.TableWriter | None, series: _Series, schema: Any) -> tables.TableWriter:
        if old is not None:
            old.close()
        return tables.TableWriter(series.next(), schema)

    def _with_video_info(self) -> dict[str, Any]:
        _, height, width = self._layout.frame_shape
        told = {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.fps": self._fps,
            "video.channels": 3,
            "has_audio": False,
            "is_depth_map": False,
        }
        return {**self._features, self._camera: {**self._features[self._camera], "info": told}}


@dataclass
class _Series:
    """Files that follow each other, ``info.CHUNKS`` of them in a folder.

    Attributes:
        folder: of the dataset.
        template: of their names.
        video_key: for the template.
        count: of files so far.
    """

    folder: Path
    template: str
    video_key: str = ""
    count: int = 0

    @property
    def chunk(self) -> int:
        """Number of the present file's folder."""
        return (self.count - 1) // info.CHUNKS

    @property
    def number(self) -> int:
        """Number of the present file in it."""
        return (self.count - 1) % info.CHUNKS

    def next(self) -> Path:
        """The next file."""
        self.count += 1
        name = self.template.format(chunk_index=self.chunk, file_index=self.number, video_key=self.video_key)
        return self.folder / name


def _features(layout: Layout, camera: str, pictures: str) -> dict[str, Any]:
    """Columns as info.json names them.

    Raises:
        ValueError: for pictures that the format does not hold, or names that clash.
    """
    channels, height, width = layout.frame_shape
    if pictures not in ("image", "video"):
        raise ValueError(f"pictures must be 'image' or 'video', got {pictures!r}")
    if channels not in ((1, 3) if pictures == "image" else (3,)):
        raise ValueError(
            f"LeRobot's {pictures}s have {'one or three channels' if pictures == 'image' else 'three channels'}, the "
            f"store's pictures have {channels}"
        )
    if pictures == "video" and (height % 2 or width % 2):
        raise ValueError(
            f"videos need pictures with even sides, got {height} x {width}; use pictures='image'"
        )
    action = "int64" if layout.action.kind == "discrete" else "float32"
    found = {
        camera: {
            "dtype": pictures,
            "shape": [height, width, channels],
            "names": ["height", "width", "channels"],
        },
        "action": _numbers(action, layout.action.shape),
        **{
            f"observation.{name}": _numbers(np.dtype(dtype).name, shape)
            for name, (shape, dtype) in layout.extras.items()
        },
        "next.reward": _numbers("float32", ()),
        "next.done": _numbers("bool", ()),
        "next.truncated": _numbers("bool", ()),
        **{name: _numbers(dtype, ()) for name, dtype in info.BOOKKEEPING.items()},
    }
    if "/" in camera or len(found) != 5 + len(layout.extras) + len(info.BOOKKEEPING):
        raise ValueError(f"camera={camera!r} must be a name of its own, without '/'; taken: {sorted(found)}")
    return found


def _numbers(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape or (1,)), "names": None}


def _ends(episode: Episode) -> dict[str, Any]:
    return {
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        "metadata": dict(episode.metadata),
    }


def _plain(totals: Mapping[str, Stats]) -> dict[str, dict[str, list]]:
    return {key: {name: value.tolist() for name, value in of.items()} for key, of in totals.items()}


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=4) + "\n")
