"""What imports and exports of episodes have in common: results that appear whole, stores, action spaces, pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from jepa_rl.data import Episode, Episodes, EpisodeStore
from jepa_rl.data.layout import Layout
from jepa_rl.memory import check_memory
from jepa_rl.types import ActionSpec

_TOGETHER = 2**25  # bytes of episodes that are written, and synced to disk, at once
_CHOICES = 4096  # of a discrete action; more are no choices but numbers


@contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; what is there moves to ``path`` at the end, and is deleted after an error.

    Raises:
        FileExistsError: if ``path`` is there already.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        yield part
        part.rename(path)
    except BaseException:  # also when interrupted: half of it must not look like all of it
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        raise


def exported_layout(episodes: Episodes) -> Layout:
    """The layout of what is exported.

    Raises:
        ValueError: if there are no episodes.
    """
    if not len(episodes):
        raise ValueError("there are no episodes to export; collect some first")
    return episodes.view().store.layout


@contextmanager
def naming_episode(number: int, what: object) -> Iterator[None]:
    """Names the episode, and what it comes from, in the TypeError or ValueError that its content raises inside."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"episode {number} of {what}: {error}") from error


def write_store(
    part: Path, episodes: Iterable[Episode], action: ActionSpec, frames: int, what: object, source: str = ""
) -> None:
    """A new store of episodes, which are drawn one by one.

    Args:
        part: folder of the store.
        episodes: all of one layout.
        action: their action space.
        frames: that an observation will stack.
        what: they come from, for the message.
        source: how the environment is made, see ``WorldSpec``.

    Raises:
        ValueError: if there are no episodes, or they differ in layout.
    """
    store, waiting, size = None, [], 0
    for episode in episodes:
        if store is None:
            rows = {name: (values.shape[1:], values.dtype) for name, values in episode.extras.items()}
            layout = Layout.make(episode.frames.shape[1:], action, frames, rows, source)
            store = EpisodeStore.create(
                part, layout.frame_shape, action, frames=frames, extras=layout.extras, source=source
            )
        waiting.append(episode)
        size += episode.frames.nbytes
        if size >= _TOGETHER:
            store.append_many(waiting)
            waiting, size = [], 0
    if store is None:
        raise ValueError(f"{what} has no episodes")
    store.append_many(waiting)
    store.close()


@dataclass
class ActionRange:
    """Smallest and largest value of each component over the actions that were seen.

    Attributes:
        low, high: of each component, ``(size,)``; None before the first.
        whole: whether they are integers.
        single: whether an action is one number, of shape ``()``.
    """

    low: np.ndarray | None = None
    high: np.ndarray | None = None
    whole: bool = False
    single: bool = False

    def see(self, actions: Shaped[np.ndarray, "t ..."]) -> None:
        """Takes in the actions of an episode; none are taken in where there are none."""
        if not len(actions):
            return
        self.whole, self.single = actions.dtype.kind in "iu", actions.ndim == 1
        rows = actions.reshape(len(actions), -1)
        low, high = rows.min(0), rows.max(0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def spec(self) -> ActionSpec:
        """The smallest action space that holds them; a component that never changes gets a range of 2 around it.

        Raises:
            ValueError: if there were none, they were NaN or infinite, or they are too many whole numbers to be choices.
        """
        if self.low is None or self.high is None:
            raise ValueError("there are no actions to take bounds from")
        if not self.whole:
            low, high = self.low.astype(np.float64), self.high.astype(np.float64)
            still = low == high
            return ActionSpec(
                "continuous", len(low), tuple((low - still).tolist()), tuple((high + still).tolist())
            )
        starts, ends = self.low.tolist(), self.high.tolist()
        counts = [end - start + 1 for start, end in zip(starts, ends, strict=True)]
        if sum(counts) > _CHOICES:
            raise ValueError(
                f"whole-number actions from {starts} to {ends} are {sum(counts)} choices, more than "
                f"{_CHOICES}; pass action= with the action space"
            )
        if self.single:
            return ActionSpec("discrete", counts[0], start=starts[0])
        return ActionSpec("discrete", sum(counts), choices=tuple(counts), starts=tuple(starts))


def check_room(what: str, folder: Path, episodes: Sequence[int] | np.ndarray, row_bytes: int) -> None:
    """Refuses declared sizes that cannot be true here, before anything is read: files can declare any.

    Args:
        what: names the file, for the message.
        folder: where the store will be.
        episodes: declared frames of each.
        row_bytes: of a frame with all that belongs to it.

    Raises:
        ValueError: if an episode does not fit into memory, or all do not fit on the disk.
    """
    lengths = np.asarray(episodes, np.float64)
    longest = int(lengths.argmax())
    check_memory(
        f"episode {longest} of {what}", 2 * int(lengths[longest]) * row_bytes, "is its declared size true?"
    )
    while not folder.exists():
        folder = folder.parent
    needed, free = lengths.sum() * row_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{what} declares {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB of disk left; choose another "
            "folder"
        )


def extra_names(names: Iterable[str]) -> dict[str, str]:
    """Names of a store's extra columns for names of another format: ``observation.state`` becomes ``state``.

    Raises:
        ValueError: if two become one.
    """
    names = list(names)
    found = {name: name.removeprefix("observation.").replace(".", "_") for name in names}
    if len(set(found.values())) < len(names):
        raise ValueError(f"extras {names} would share a name in the store: {sorted(found.values())}")
    return found


def resized(frames: UInt8[np.ndarray, "t c y x"], size: int | None) -> UInt8[np.ndarray, "t c y2 x2"]:
    """Frames of ``(size, size)`` pixels by area interpolation; as they are for None."""
    if size is None or frames.shape[2:] == (size, size):
        return np.ascontiguousarray(frames)
    found = np.empty((*frames.shape[:2], size, size), np.uint8)
    for i, channel in np.ndindex(*frames.shape[:2]):
        found[i, channel] = cv2.resize(frames[i, channel], (size, size), interpolation=cv2.INTER_AREA)
    return found
