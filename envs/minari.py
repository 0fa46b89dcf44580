"""Episodes to and from Minari datasets, pictures without loss. Needs ``pip install "jepa-rl[offline]"``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from jepa_rl.data import Episode, Episodes, EpisodeStore
from jepa_rl.envs.importing import appears_whole, exported_layout, naming_episode, resized, write_store
from jepa_rl.spaces import action_spec, channels_first
from jepa_rl.types import ActionSpec

if TYPE_CHECKING:
    from minari import MinariDataset

_METADATA = "jepa_rl_metadata"
_FRAMES = "jepa_rl_frames"


def export_minari(
    episodes: Episodes,
    dataset_id: str,
    *,
    env: gym.Env | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> MinariDataset:
    """Write episodes as a Minari dataset in the local Minari folder (``MINARI_DATASETS_PATH``).

    Observations are the single frames, uint8 ``(c, y, x)``, stored raw (Minari's default is lossy JPEG);
    extras become ``infos``. Episodes are written one by one, so the store may be larger than memory.

    Args:
        episodes: a store, or a view of it.
        dataset_id: Minari's ``(namespace/)name-v<version>``.
        env: environment whose spec is recorded, so that Minari can make it again.
        metadata: further entries of Minari's dataset metadata (``author``, ``description``, ...).

    Returns:
        The dataset, opened.

    Raises:
        ImportError: if Minari is not installed.
        ValueError: if there are no episodes, ``dataset_id`` has another form, or there is such a dataset already.
            Nothing half-written stays.
    """
    minari = _minari()
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage
    from minari.storage.datasets_root_dir import get_dataset_path

    layout = exported_layout(episodes)
    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dataset_id must look like 'name-v0' or 'group/name-v0', got {dataset_id!r}"
        ) from error
    folder = get_dataset_path(dataset_id).resolve()  # a relative one is lost where Minari asks for its size
    if folder.exists():
        raise ValueError(f"the Minari dataset {dataset_id} is there already, at {folder}; raise its version")
    try:
        (folder / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            folder / "data",
            observation_space=spaces.Box(0, 255, layout.frame_shape, np.uint8),
            action_space=_action_space(layout.action),
            env_spec=None if env is None else env.spec,
            jpeg_encoding=False,
        )
        storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__})
        storage.update_metadata({_FRAMES: layout.frames, **(metadata or {})})
        storage.update_episodes(_buffers(episodes))
        notes = (dict(episodes.episode(i).metadata) for i in range(len(episodes)))
        storage.update_episode_metadata({_METADATA: json.dumps(note)} for note in notes)
    except BaseException:  # also when interrupted: half a dataset must not look like a whole one
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return minari.MinariDataset(folder / "data")


def import_minari(
    dataset: str | Path | MinariDataset,
    path: str | Path,
    *,
    key: str | None = None,
    extras: Sequence[str] = (),
    size: int | None = None,
    frames: int | None = None,
) -> EpisodeStore:
    """Read a Minari dataset with uint8 pictures into a new episode store at ``path``.

    Args:
        dataset: id of a local dataset, its folder, or an open dataset.
        path: folder of the new store.
        key: entry of a Dict observation that holds the picture.
        extras: entries of a Dict observation, or of ``infos``, to keep; a dataset that was exported from a
            store brings its own.
        size: resize the pictures to ``(size, size)`` (area interpolation).
        frames: frames that an observation will stack (default: as exported, otherwise 1).

    Returns:
        The store, opened.

    Raises:
        ImportError: if Minari is not installed.
        FileNotFoundError: if there is no such dataset.
        FileExistsError: if ``path`` is there already.
        TypeError, ValueError: if its observations are no uint8 pictures, its actions are of a kind that stores do not
            hold, or values are NaN or infinite. Nothing half-written stays.
    """
    minari, path = _minari(), Path(path)
    with appears_whole(path) as part:
        _import(minari, dataset, part, key, extras, size, frames)
    return EpisodeStore.open(path)


def _import(
    minari: Any,
    dataset: str | Path | MinariDataset,
    part: Path,
    key: str | None,
    extras: Sequence[str],
    size: int | None,
    frames: int | None,
) -> None:
    if not isinstance(dataset, minari.MinariDataset):
        dataset = _open(minari, dataset)
    space = _picture_space(dataset.observation_space, key)
    exported = dataset.storage.metadata.get(_FRAMES)
    frames = frames or exported or 1
    if exported is not None and not extras:
        extras = tuple(dataset[0].infos or ())
    action = action_spec(dataset.action_space)
    what = f"the Minari dataset {dataset.spec.dataset_id}"
    write_store(part, _episodes(dataset, space, key, extras, size), action, frames, what)


def _minari() -> Any:
    try:
        import h5py  # noqa: F401
        import minari
    except ImportError as error:
        raise ImportError('Minari is not installed; pip install "jepa-rl[offline]"') from error
    return minari


def _open(minari: Any, dataset: str | Path) -> MinariDataset:
    folder = Path(dataset)
    if (folder / "data" / "metadata.json").is_file():
        return minari.MinariDataset(folder / "data")
    if isinstance(dataset, Path):
        raise FileNotFoundError(
            f"{folder} is not the folder of a Minari dataset: data/metadata.json is missing"
        )
    return minari.load_dataset(dataset)


def _action_space(action: ActionSpec) -> gym.Space:
    if action.choices:
        return spaces.MultiDiscrete(list(action.choices), start=list(action.starts))
    if action.kind == "discrete":
        return spaces.Discrete(action.size, start=action.start)
    return spaces.Box(np.array(action.low, np.float32), np.array(action.high, np.float32))


def _buffers(episodes: Episodes) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    for i in range(len(episodes)):
        episode = episodes.episode(i)
        ends = np.zeros((2, len(episode)), bool)
        ends[:, -1] = episode.terminated, episode.truncated
        yield EpisodeBuffer(
            observations=episode.frames,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=ends[0],
            truncations=ends[1],
            infos=dict(episode.extras) or None,
        )


def _picture_space(space: gym.Space, key: str | None) -> spaces.Box:
    if isinstance(space, spaces.Dict):
        if key not in space.spaces:
            raise ValueError(
                f"key must name the picture among the observations {list(space.spaces)}, got {key!r}"
            )
        space = space[key]
    elif key is not None:
        raise ValueError(f"key={key!r} needs Dict observations, the dataset has {space}; leave key out")
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        raise ValueError(f"expected uint8 pictures (y, x, c), (c, y, x) or (y, x), got {space}")
    return space


def _episodes(
    dataset: MinariDataset, space: spaces.Box, key: str | None, extras: Sequence[str], size: int | None
) -> Iterator[Episode]:
    for data in dataset.iterate_episodes():
        observations = data.observations
        columns = {**(data.infos or {}), **(observations if key is not None else {})}
        missing = [name for name in extras if name not in columns]
        if missing:
            raise ValueError(f"episode {data.id} has no entries {missing} to keep; it has {sorted(columns)}")
        note = next(iter(dataset.storage.get_episode_metadata([data.id]))).get(_METADATA, "{}")
        with naming_episode(data.id, dataset.spec.dataset_id):
            episode = Episode(
                _frames(observations if key is None else observations[key], space, size),
                data.actions,
                data.rewards,
                bool(data.terminations[-1]),
                bool(data.truncations[-1]),
                {name: np.asarray(columns[name]) for name in extras},
                json.loads(note),
            )
        yield episode


def _frames(pictures: np.ndarray, space: spaces.Box, size: int | None) -> np.ndarray:
    """Pictures of any accepted layout as frames (T + 1, c, y, x)."""
    pictures = np.asarray(pictures)
    if len(space.shape) == 2:
        pictures = pictures[:, None]
    elif not channels_first((space.shape[0], space.shape[1], space.shape[2])):
        pictures = pictures.transpose(0, 3, 1, 2)
    return resized(pictures, size)
