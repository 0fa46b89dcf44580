"""Some of the episodes of a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jepa_rl.data.episode import Episode
from jepa_rl.types import WorldSpec

if TYPE_CHECKING:
    from jepa_rl.data.store import EpisodeStore


@dataclass(frozen=True, eq=False)
class EpisodeView:
    """Some episodes of a store: ``indices`` int64 ``(episodes,)``. Episodes added later are not in it."""

    store: EpisodeStore
    indices: np.ndarray

    def __post_init__(self) -> None:
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < len(self.store):
            raise ValueError(f"episode indices must lie in [0, {len(self.store)}), got {self.indices}")

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def spec(self) -> WorldSpec:
        return self.store.spec

    @property
    def lengths(self) -> np.ndarray:
        return self.store.lengths[self.indices]

    @property
    def terminated(self) -> np.ndarray:
        return self.store.terminated[self.indices]

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum())

    def episode(self, i: int) -> Episode:
        return self.store.episode(int(self.indices[i]))

    def view(self) -> EpisodeView:
        return self

    def split(self, fraction: float, seed: int) -> tuple[EpisodeView, EpisodeView]:
        """Two disjoint views of whole episodes: (training, held out); ``fraction`` of them are held out."""
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
