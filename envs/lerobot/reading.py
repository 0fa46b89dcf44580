"""A LeRobot dataset as a store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa_rl.data import Episode, EpisodeStore
from jepa_rl.envs.importing import (
    ActionRange,
    appears_whole,
    check_room,
    extra_names,
    naming_episode,
    resized,
    write_store,
)
from jepa_rl.envs.lerobot import tables, video
from jepa_rl.envs.lerobot.info import OWN, Info, numbers, read_info
from jepa_rl.types import ActionSpec


def from_lerobot(
    folder: str | Path,
    store: str | Path,
    *,
    camera: str | None = None,
    extras: Sequence[str] = (),
    action: ActionSpec | None = None,
    size: int | None = None,
    frames: int | None = None,
) -> EpisodeStore:
    """Read a LeRobot dataset of version 2.1 or 3.0 on this disk into a new episode store.

    An episode of N rows becomes N frames and N - 1 steps: what the last action led to is not in the dataset. Rewards
    are those of ``next.reward``, or 0. The episode terminated if ``next.done`` says so of the last step that is kept.
    Episodes are read one by one, so the dataset may be larger than memory.

    Args:
        folder: of the dataset.
        store: folder of the new store.
        camera: column of the pictures, needed if there are several.
        extras: numeric columns to keep, such as ``"observation.state"``, which becomes ``state``; a dataset of
            ``to_lerobot`` brings its own.
        action: the action space (default: as exported, otherwise from the smallest to the largest action there is).
        size: resize the pictures to ``(size, size)`` (area interpolation).
        frames: frames that an observation will stack (default: as exported, otherwise 1).

    Returns:
        The store, opened.

    Raises:
        ImportError: if pyarrow, or PyAV for videos, is not installed.
        FileNotFoundError: if there is no such dataset, or a file of it is missing.
        FileExistsError: if ``store`` is there already.
        TypeError, ValueError: if the dataset is damaged, says other sizes than it has, names files outside its folder,
            columns are missing or hold no numbers, or values are NaN or infinite. Nothing half-written stays.
    """
    tables.import_pyarrow()
    path = Path(store)
    with appears_whole(path) as part:
        info = read_info(Path(folder))
        own = info.layout
        source = _Source(
            info, camera, extras or [f"observation.{name}" for name in (own.extras if own else ())]
        )
        source.check_room(path, size)
        spec = action or (own.action if own else source.actions())
        stacked = frames or (own.frames if own else 1)
        write_store(part, source.episodes(spec, size), spec, stacked, info.folder, own.source if own else "")
    return EpisodeStore.open(path)


@dataclass(frozen=True)
class _Place:
    """Where an episode lies.

    Attributes:
        number: of the episode.
        rows: of it.
        data: its table.
        video: its video, if the pictures are in one.
        start: seconds at which it begins there.
        own: what ``to_lerobot`` noted of it.
    """

    number: int
    rows: int
    data: Path
    video: Path | None
    start: float
    own: dict[str, Any] | None


class _Source:
    """A dataset on disk, checked.

    Args:
        info: its description.
        camera: name of the pictures, or None for the only ones.
        extras: names of further columns.
    """

    def __init__(self, info: Info, camera: str | None, extras: Sequence[str]) -> None:
        self._info, self._camera, self._extras = info, info.camera(camera), extra_names(extras)
        self._shape = info.features[self._camera].picture
        self._lossy = info.features[self._camera].dtype == "video"
        if self._shape[0] not in (1, 3) or 0 in self._shape:
            raise ValueError(
                f"{info.folder}: {self._camera} must have one or three channels, got {self._shape}"
            )
        for name in ("action", *self._extras):
            if name not in info.features:
                raise ValueError(f"{info.folder} has no column {name!r}; it has {sorted(info.features)}")
            if not numbers(info.features[name]):
                raise TypeError(f"{info.folder}: {name} must be numbers, got {info.features[name].dtype}")
        if len(info.features["action"].shape) != 1:
            raise ValueError(f"{info.folder}: actions must be flat, got {info.features['action'].shape}")
        self.places = list(_legacy_places(info, self._camera, self._lossy) if info.legacy else self._places())
        if not self.places:
            raise ValueError(f"{info.folder} has no episodes")
        for place in self.places:
            if place.rows < 2:
                raise ValueError(
                    f"{info.folder}: episode {place.number} has {place.rows} row(s); a step needs at least two"
                )

    def check_room(self, folder: Path, size: int | None) -> None:
        """Raises ValueError where declared sizes do not fit here."""
        channels, height, width = self._shape
        pixels = channels * (height * width if size is None else size * size)
        kept = [self._info.features[name] for name in ("action", *self._extras)]
        rest = sum(int(np.prod(f.shape, dtype=np.float64)) * np.dtype(f.dtype).itemsize for f in kept)
        check_room(str(self._info.folder), folder, [place.rows for place in self.places], pixels + rest)

    def actions(self) -> ActionSpec:
        """The action space that the dataset's actions span, last rows left out."""
        seen = ActionRange()
        for place, columns in self._rows(["action"]):
            seen.see(self._actions(columns["action"], place)[:-1])
        return seen.spec()

    def episodes(self, action: ActionSpec, size: int | None) -> Iterator[Episode]:
        """Every episode."""
        optional = [n for n in ("next.reward", "next.done", "next.truncated") if n in self._info.features]
        images = [] if self._lossy else [self._camera]
        for place, columns in self._rows(["timestamp", "action", *self._extras, *optional, *images]):
            with naming_episode(place.number, self._info.folder):
                episode = self._episode(place, columns, action, size)
            yield episode

    def _episode(
        self, place: _Place, columns: dict[str, Any], action: ActionSpec, size: int | None
    ) -> Episode:
        steps = place.rows - 1
        actions = self._actions(columns["action"], place)[:-1]
        if actions.dtype.kind in "iu":
            actions = actions.reshape(steps, *action.shape)
        done, cut = (
            bool(tables.numbers(columns[n], "bool", ())[steps - 1]) if n in columns else False
            for n in ("next.done", "next.truncated")
        )
        terminated = done and not cut
        own = place.own or {"terminated": terminated, "truncated": not terminated, "metadata": {}}
        return Episode(
            resized(self._pictures(place, columns), size),
            actions,
            self._column(columns, "next.reward")[:-1] if "next.reward" in columns else np.zeros(steps),
            own["terminated"],
            own["truncated"],
            {name: self._column(columns, key) for key, name in self._extras.items()},
            own["metadata"],
        )

    def _pictures(self, place: _Place, columns: dict[str, Any]) -> np.ndarray:
        if place.video is not None:
            times = tables.numbers(columns["timestamp"], "float64", ()) + place.start
            return video.decode_video(place.video, self._shape, times.tolist())
        found = np.empty((place.rows, *self._shape), np.uint8)
        for i, picture in enumerate(columns[self._camera]):
            told = picture.as_py()
            if not isinstance(told, dict) or not isinstance(told.get("bytes"), bytes):
                raise ValueError(f"{self._camera} holds no bytes of a picture in row {i}")
            found[i] = video.decode_image(told["bytes"], self._shape)
        return found

    def _actions(self, column: Any, place: _Place) -> np.ndarray:
        feature = self._info.features["action"]
        try:
            found = tables.numbers(column, feature.dtype, feature.shape)
        except (TypeError, ValueError) as error:
            raise type(error)(f"episode {place.number} of {self._info.folder}: action: {error}") from error
        return found[:, 0] if found.dtype.kind in "iu" and feature.shape == (1,) else found

    def _column(self, columns: dict[str, Any], name: str) -> np.ndarray:
        """A column in the shape that it had in the store, or that the dataset names."""
        feature, own = self._info.features[name], self._info.layout
        shape = () if name.startswith("next.") else feature.shape
        key = self._extras.get(name, "")
        if own is not None and key in own.extras and np.prod(own.extras[key][0]) == np.prod(feature.shape):
            shape = own.extras[key][0]
        try:
            return tables.numbers(columns[name], feature.dtype, shape)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error

    def _rows(self, columns: Sequence[str]) -> Iterator[tuple[_Place, dict[str, Any]]]:
        """The columns of every episode, from tables that are read once, front to back.

        Raises:
            ValueError: if the rows are not those that the description announces.
        """
        pyarrow, _ = tables.import_pyarrow()
        names = [*columns, "episode_index"]
        file: Path | None = None
        batches: Iterator[dict[str, Any]] = iter(())
        left: dict[str, Any] | None = None
        for place in self.places:
            if place.data != file:
                file, left = place.data, None
                batches = tables.read_rows(file, names)
            parts: list[dict[str, Any]] = []
            needed = place.rows
            while needed:
                left = left or next(batches, None)
                if left is None:
                    raise ValueError(
                        f"{file} ends within episode {place.number}: {needed} of its rows are missing"
                    )
                taken = min(needed, len(left["episode_index"]))
                parts.append({name: column[:taken] for name, column in left.items()})
                rest = {name: column[taken:] for name, column in left.items()}
                left, needed = (rest if len(rest["episode_index"]) else None), needed - taken
            found = {name: pyarrow.concat_arrays([part[name] for part in parts]) for name in names}
            if (tables.numbers(found.pop("episode_index"), "int64", ()) != place.number).any():
                raise ValueError(
                    f"{file} holds rows of other episodes where episode {place.number} should be"
                )
            yield place, found

    def _places(self) -> Iterator[_Place]:
        """Of version 3.0: a table of episodes, which may have several files."""
        info, key = self._info, f"videos/{self._camera}/"
        names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        if self._lossy:
            names += [f"{key}{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        files = sorted((info.folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        if not files:
            raise FileNotFoundError(
                f"{info.folder} is not whole: meta/episodes holds no tables; download it again"
            )
        for file in files:
            noted = [OWN] if info.layout is not None and OWN in tables.column_names(file) else []
            for columns in tables.read_rows(file, [*names, *noted]):
                for values in zip(*(columns[name].to_pylist() for name in [*names, *noted]), strict=True):
                    row = dict(zip([*names, *noted], values, strict=True))
                    where = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
                    film, start = None, 0.0
                    if self._lossy:
                        at = {n: row[f"{key}{n}"] for n in ("chunk_index", "file_index")}
                        film = info.file(info.video_path, video_key=self._camera, **at)
                        start = float(row[f"{key}from_timestamp"])
                    yield _Place(
                        int(row["episode_index"]),
                        int(row["length"]),
                        info.file(info.data_path, **where),
                        film,
                        start,
                        _noted(row.get(OWN)),
                    )


def _legacy_places(info: Info, camera: str, lossy: bool) -> Iterator[_Place]:
    """Of version 2.1: a line of JSON and one file for each episode."""
    file = info.folder / "meta" / "episodes.jsonl"
    if not file.is_file():
        raise FileNotFoundError(
            f"{info.folder} is not whole: meta/episodes.jsonl is missing; download it again"
        )
    with open(file) as lines:
        for line in lines:
            try:
                row = json.loads(line)
                number, rows = int(row["episode_index"]), int(row["length"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file} is damaged: {line[:80]!r}") from error
            where = {"episode_chunk": number // info.chunks, "episode_index": number}
            film = info.file(info.video_path, video_key=camera, **where) if lossy else None
            yield _Place(number, rows, info.file(info.data_path, **where), film, 0.0, None)


def _noted(text: Any) -> dict[str, Any] | None:
    """What ``to_lerobot`` noted of an episode."""
    if text is None:
        return None
    try:
        found = json.loads(text)
        ends = {name: bool(found[name]) for name in ("terminated", "truncated")}
        return {**ends, "metadata": dict(found["metadata"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the column {OWN} of the episodes is damaged: {str(text)[:80]!r}") from error
