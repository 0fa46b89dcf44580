"""Some of the episodes of a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from jepa_rl.data.episode import Episode
from jepa_rl.data.layout import Layout
from jepa_rl.types import WorldSpec


@runtime_checkable
class Episodes(Protocol):
    """What stores and views have in common: whole episodes, in order."""

    def __len__(self) -> int:
        """Episodes."""
        ...

    @property
    def spec(self) -> WorldSpec:
        """The stacked observation and the action space."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """Environment steps of each episode, int64 ``(episodes,)``."""
        ...

    @property
    def terminated(self) -> np.ndarray:
        """Whether the environment ended each episode, bool ``(episodes,)``."""
        ...

    def episode(self, i: int) -> Episode:
        """A copy of episode ``i``."""
        ...

    def view(self) -> EpisodeView:
        """All of the episodes, without copying."""
        ...


@runtime_checkable
class StoredEpisodes(Episodes, Protocol):
    """Episodes whose columns lie one after the other, such as ``EpisodeStore``; views read them."""

    path: Path
    layout: Layout

    @property
    def step_starts(self) -> np.ndarray:
        """Row of each episode's first step; its first frame is at that + episode number. int64 ``(episodes,)``."""
        ...

    def column(self, name: str) -> np.ndarray:
        """All rows of ``"frames"``, ``"actions"``, ``"rewards"`` or of an extra."""
        ...


@dataclass(frozen=True, eq=False)
class EpisodeView:
    """Some episodes of a store. Episodes that are added to the store later are not in it.

    Attributes:
        store: holds the episodes.
        indices: which of them, int64 ``(episodes,)``.

    Raises:
        ValueError: for an index that the store does not have.
    """

    store: StoredEpisodes
    indices: np.ndarray

    def __post_init__(self) -> None:
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < len(self.store):
            raise ValueError(f"episode indices must lie in [0, {len(self.store)}), got {self.indices}")

    def __len__(self) -> int:
        """Episodes."""
        return len(self.indices)

    @property
    def spec(self) -> WorldSpec:
        """The stacked observation and the action space."""
        return self.store.spec

    @property
    def lengths(self) -> np.ndarray:
        """Environment steps of each episode, int64 ``(episodes,)``."""
        return self.store.lengths[self.indices]

    @property
    def terminated(self) -> np.ndarray:
        """Whether the environment ended each episode, bool ``(episodes,)``."""
        return self.store.terminated[self.indices]

    @property
    def num_steps(self) -> int:
        """Environment steps of all episodes together."""
        return int(self.lengths.sum())

    def episode(self, i: int) -> Episode:
        """A copy of the view's ``i``-th episode."""
        return self.store.episode(int(self.indices[i]))

    def view(self) -> EpisodeView:
        """The view itself."""
        return self

    def split(self, fraction: float, seed: int) -> tuple[EpisodeView, EpisodeView]:
        """Two disjoint views of whole episodes: (training, held out).

        Args:
            fraction: share of the episodes that is held out, in (0, 1); at least one episode stays on either side.
            seed: of the choice.

        Raises:
            ValueError: for another fraction, or fewer than two episodes.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
        if len(self) < 2:
            raise ValueError(f"splitting needs at least 2 episodes, got {len(self)}; collect more")
        order = np.random.default_rng(seed).permutation(self.indices)
        held_out = min(max(round(fraction * len(self)), 1), len(self) - 1)
        return (
            EpisodeView(self.store, np.sort(order[held_out:])),
            EpisodeView(self.store, np.sort(order[:held_out])),
        )
