"""Windows for training, cut out of stored episodes by fancy indexing alone (no loop per sample)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from jepa_rl.data.stacking import stack_frames
from jepa_rl.data.view import Episodes
from jepa_rl.types import Batch, WorldSpec


@dataclass(frozen=True)
class PairBatch:
    """Two states of the same episode, ``offsets`` latent steps apart, and the first action on the way.

    Attributes:
        pixels: the earlier state.
        goals: the later state.
        actions: model actions of the latent step that leaves ``pixels``.
        offsets: latent steps from ``pixels`` to ``goals``, at least 1.
    """

    pixels: UInt8[Tensor, "b c y x"]
    goals: UInt8[Tensor, "b c y x"]
    actions: Float[Tensor, "b a"]
    offsets: Int64[Tensor, " b"]

    def to(self, device: torch.device | str) -> PairBatch:
        return PairBatch(*(getattr(self, f).to(device) for f in ("pixels", "goals", "actions", "offsets")))


class WindowSampler:
    """All windows of ``steps`` latent steps that fit into the episodes, each equally likely.

    A window of h = ``steps`` latent steps has t = h + 1 stacked observations, ``block`` environment steps
    apart. Observations are stacked as ``PixelObservation`` does: oldest frame first, and before the start
    of the episode the first frame is repeated. ``len(sampler)`` counts the windows; a window is addressed
    by its number, so that probe targets can be read for the very windows of a batch::

        windows = sampler.draw(256, rng)
        batch, position = sampler.batch(windows), sampler.extra("position", windows)

    The sampler sees the episodes stored when it is made; make a new one (cheap) after appending.

    Args:
        episodes: a store, or a view of it.
        steps: latent steps in a window, h.
        block: environment steps in a latent step.
        frames: frames stacked in one observation (default: the store's).

    Raises:
        ValueError: if there is no episode, or none is long enough.
    """

    def __init__(self, episodes: Episodes, steps: int, block: int = 1, frames: int | None = None) -> None:
        view = episodes.view()
        frames = view.spec.frames if frames is None else frames
        for name, value in (("steps", steps), ("block", block), ("frames", frames)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not len(view):
            raise ValueError(f"{view.store.path} has no episodes to sample from; collect some first")
        self.steps, self.block, self.frames = steps, block, frames
        store, c = view.store, view.store.layout.frame_shape[0]
        self.spec = WorldSpec((frames * c, *store.layout.frame_shape[1:]), frames, store.layout.action, block)
        self._columns = {name: store.column(name) for name in ("frames", "actions", "rewards")}
        self._extras = {name: store.column(name) for name in store.layout.extras}
        self._lengths, self._terminated = view.lengths, view.terminated
        self._step_starts = store.step_starts[view.indices]
        self._frame_starts = self._step_starts + view.indices
        self._ends = self._count_windows(steps)

    def __len__(self) -> int:
        """How many windows there are."""
        return int(self._ends[-1])

    def draw(self, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Numbers of ``batch_size`` windows, drawn uniformly with replacement, int64 ``(b,)``."""
        return rng.integers(len(self), size=batch_size)

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """A batch of windows drawn uniformly with replacement."""
        return self.batch(self.draw(batch_size, rng))

    def batch(self, windows: np.ndarray) -> Batch:
        """The windows with the given numbers, ``(b,)``."""
        episode, start = self.locate(windows)
        return Batch(
            observations=self._pixels(episode, self._states(start, self.steps)),
            actions=self._actions(episode, start, self.steps),
            rewards=self._rewards(episode, start),
            terminated=self._ended(episode, start),
        )

    def extra(self, name: str, windows: np.ndarray) -> np.ndarray:
        """An extra column at the states of the given windows, ``(b, t, ...)``, aligned with ``pixels``."""
        if name not in self._extras:
            raise ValueError(f"the store has no extra {name!r}; it has {sorted(self._extras)}")
        episode, start = self.locate(windows)
        return self._extras[name][self._frame_starts[episode][:, None] + self._states(start, self.steps)]

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Window numbers ``(b,)`` to (episode in the view, its environment step where the window begins)."""
        return self._locate(windows, self._ends)

    def ordered(self, batch_size: int, stride: int = 1) -> Iterator[np.ndarray]:
        """Numbers of every ``stride``-th window in order, in chunks of at most ``batch_size``."""
        windows = np.arange(0, len(self), stride)
        for first in range(0, len(windows), batch_size):
            yield windows[first : first + batch_size]

    def sample_pairs(
        self, batch_size: int, rng: np.random.Generator, max_offset: int, discount: float | None = None
    ) -> PairBatch:
        """Two states of one episode, ``k <= max_offset`` latent steps apart.

        The first state is uniform over all that have a next one. ``k`` is uniform over what the episode
        still holds, or, with ``discount`` in (0, 1), geometric: P(k) proportional to ``discount ** k``,
        the discounted state occupancy of hindsight relabelling and contrastive RL (Eysenbach et al., 2022).
        """
        if max_offset < 1:
            raise ValueError(f"max_offset must be at least 1, got {max_offset}")
        if discount is not None and not 0.0 < discount < 1.0:
            raise ValueError(f"discount must lie in (0, 1), got {discount}")
        ends = self._ends if self.steps == 1 else self._count_windows(1)
        episode, start = self._locate(rng.integers(ends[-1], size=batch_size), ends)
        most = np.minimum((self._lengths[episode] - start) // self.block, max_offset)
        uniform = rng.random(batch_size)
        if discount is None:
            offset = 1 + np.floor(uniform * most)
        else:  # inverse of the distribution function of the geometric cut off at `most`
            offset = 1 + np.floor(np.log1p(-uniform * (1.0 - discount**most)) / np.log(discount))
        offset = np.minimum(offset.astype(np.int64), most)
        states = np.stack([start, start + offset * self.block], axis=1)
        pixels = self._pixels(episode, states)
        actions = self._actions(episode, start, 1)[:, 0]
        return PairBatch(pixels[:, 0], pixels[:, 1], actions, torch.from_numpy(offset))

    # -- indices -----------------------------------------------------------------------------------

    def _count_windows(self, steps: int) -> np.ndarray:
        """Running total of windows after each episode."""
        need = steps * self.block
        if self._lengths.max() < need:
            raise ValueError(
                f"windows of {steps} latent steps x {self.block} environment steps need episodes of at least "
                f"{need} steps, the longest has {self._lengths.max()}; "
                "ask for fewer steps, or collect longer episodes"
            )
        return np.cumsum(np.maximum(self._lengths - need + 1, 0))

    @staticmethod
    def _locate(windows: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows = np.asarray(windows)
        if windows.size and not 0 <= windows.min() <= windows.max() < ends[-1]:
            raise ValueError(f"window numbers must lie in [0, {ends[-1]}), got {windows}")
        episode = np.searchsorted(ends, windows, side="right")
        before = np.where(episode > 0, ends[episode - 1], 0)
        return episode, windows - before

    def _states(self, start: np.ndarray, steps: int) -> np.ndarray:
        """Environment steps at which the states of a window lie, ``(b, t)``."""
        return start[:, None] + self.block * np.arange(steps + 1)

    # -- gathering ---------------------------------------------------------------------------------

    def _pixels(self, episode: np.ndarray, states: np.ndarray) -> Tensor:
        column = self._columns["frames"]
        return torch.from_numpy(stack_frames(column, self._frame_starts[episode], states, self.frames))

    def _steps(self, episode: np.ndarray, start: np.ndarray, steps: int) -> np.ndarray:
        """Rows of the environment steps in a window, ``(b, h * block)``."""
        return (self._step_starts[episode] + start)[:, None] + np.arange(steps * self.block)

    def _actions(self, episode: np.ndarray, start: np.ndarray, steps: int) -> Tensor:
        actions = self.spec.action.encode(self._columns["actions"][self._steps(episode, start, steps)])
        return torch.from_numpy(actions.reshape(len(start), steps, self.spec.action_dim))

    def _rewards(self, episode: np.ndarray, start: np.ndarray) -> Tensor:
        rewards = self._columns["rewards"][self._steps(episode, start, self.steps)]
        return torch.from_numpy(rewards.reshape(len(start), self.steps, self.block).sum(-1))

    def _ended(self, episode: np.ndarray, start: np.ndarray) -> Tensor:
        last = self._states(start, self.steps)[:, 1:] == self._lengths[episode][:, None]
        return torch.from_numpy(last & self._terminated[episode][:, None])
