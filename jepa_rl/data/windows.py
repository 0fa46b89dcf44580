"""Windows for training, gathered from stored episodes by NumPy indexing, without a loop over samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from jepa_rl.data.fingerprint import digest, spread
from jepa_rl.data.mapped import is_scattered, prefetch
from jepa_rl.data.stacking import stack_frames
from jepa_rl.data.view import Episodes
from jepa_rl.types import JSON, Batch

# Least share of the environment steps that windows must be able to reach. Steps rather than episodes: they are what
# was paid for in collecting and what training sees. Below a twentieth, the windows show only a few unusually long
# episodes, that is, other behaviour than was collected; then the windows are wrong and not the data.
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class PairBatch:
    """Two states of the same episode, ``offsets`` latent steps apart, and the first action between them.

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
        """The same pairs on another device."""
        return PairBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


class WindowSampler:
    """All windows of ``steps`` latent steps that fit into the episodes, each equally likely.

    A window of h = ``steps`` latent steps has t = h + 1 stacked observations, ``block`` environment steps
    apart. Observations are stacked as ``PixelObservation`` does: oldest frame first, and before the start
    of the episode the first frame is repeated. ``len(sampler)`` counts the windows; a window is addressed
    by its number, so that probe targets can be read for the very windows of a batch::

        windows = sampler.draw(256, rng)
        batch, position = sampler.batch(windows), sampler.extra("position", windows)

    The sampler sees the episodes stored when it is made; make a new one (cheap) after appending. Episodes that are
    shorter than a window are left out, with a warning that says how many.

    Args:
        episodes: a store, or a view of it.
        steps: latent steps in a window, h.
        block: environment steps in a latent step.
        frames: frames stacked in one observation (default: the store's).

    Raises:
        ValueError: if there is no episode, none is long enough, or those that are hold less than a twentieth of the
            environment steps.
    """

    def __init__(self, episodes: Episodes, steps: int, block: int = 1, frames: int | None = None) -> None:
        view = episodes.view()
        frames = view.spec.frames if frames is None else frames
        for name, value in (("steps", steps), ("block", block), ("frames", frames)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not len(view):
            raise ValueError(f"{view.store.path} has no episodes to sample from; collect some first")
        check_lengths(view.lengths, steps, block)
        self.steps, self.block, self.frames = steps, block, frames
        store = view.store
        c, y, x = store.layout.frame_shape
        self.spec = replace(view.spec, pixels=(frames * c, y, x), frames=frames, block=block)
        self._columns = {name: store.column(name) for name in ("frames", "actions", "rewards")}
        self._extras = {name: store.column(name) for name in store.layout.extras}
        self._lengths, self._terminated = view.lengths, view.terminated
        self._step_starts = store.step_starts[view.indices]
        self._frame_starts = self._step_starts + view.indices
        self._ends = self._count_windows(steps)

    def __len__(self) -> int:
        """How many windows there are."""
        return int(self._ends[-1])

    def draw(self, batch_size: int, rng: np.random.Generator) -> Int64[np.ndarray, " b"]:
        """Numbers of ``batch_size`` windows, drawn uniformly with replacement."""
        return rng.integers(len(self), size=batch_size)

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """A batch of windows drawn uniformly with replacement."""
        return self.sample_rows(batch_size, rng, slice(None))

    def sample_rows(self, batch_size: int, rng: np.random.Generator, rows: slice) -> Batch:
        """Some rows of the batch that ``sample`` would give, without reading the others; ``rng`` moves on as there."""
        return self.batch(self.draw(batch_size, rng)[rows])

    def batch(self, windows: Int64[np.ndarray, " b"]) -> Batch:
        """The windows with the given numbers.

        Raises:
            ValueError: for a number that no window has.
        """
        episode, start = self.locate(windows)
        return Batch(
            observations=self._pixels(episode, self._states(start, self.steps)),
            actions=self._actions(episode, start, self.steps),
            rewards=self._rewards(episode, start),
            terminated=self._ended(episode, start),
        )

    def extra(self, name: str, windows: Int64[np.ndarray, " b"]) -> Shaped[np.ndarray, "b t ..."]:
        """An extra column at the states of the given windows, aligned with their observations.

        Raises:
            ValueError: if the store has no such extra, or for a number that no window has.
        """
        if name not in self._extras:
            raise ValueError(f"the store has no extra {name!r}; it has {sorted(self._extras)}")
        episode, start = self.locate(windows)
        rows = self._frame_starts[episode][:, None] + self._states(start, self.steps)
        prefetch(self._extras[name], rows, 1)
        return self._extras[name][rows]

    def locate(
        self, windows: Int64[np.ndarray, " b"]
    ) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
        """Where windows begin: (episode in the view, environment step in it).

        Raises:
            ValueError: for a number that no window has.
        """
        return self._locate(windows, self._ends)

    def ordered(self, batch_size: int, stride: int = 1) -> Iterator[Int64[np.ndarray, " b"]]:
        """Numbers of every ``stride``-th window in order, in chunks of at most ``batch_size``."""
        windows = np.arange(0, len(self), stride)
        for first in range(0, len(windows), batch_size):
            yield windows[first : first + batch_size]

    def sample_pairs(
        self, batch_size: int, rng: np.random.Generator, max_offset: int, discount: float | None = None
    ) -> PairBatch:
        """Two states of one episode, ``k <= max_offset`` latent steps apart.

        The first state is uniform over all that have a next one. ``k`` is uniform over what the episode
        still holds, or, with ``discount``, geometric: P(k) proportional to ``discount ** k``, the discounted
        state occupancy of hindsight relabelling and contrastive RL (Eysenbach et al., 2022).

        Args:
            batch_size: pairs, b.
            rng: draws them.
            max_offset: largest distance of the two states, in latent steps.
            discount: in (0, 1), or None for uniform distances.

        Raises:
            ValueError: for a ``max_offset`` below 1, or a ``discount`` outside (0, 1).
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

    def fingerprint(self) -> JSON:
        """Which windows of which data these are; see ``jepa_rl.training.Fingerprinted``.

        The lengths and ends of all episodes count, and frames, actions and rewards of ``ROWS`` environment steps
        (``jepa_rl.data.fingerprint``), spread evenly: it takes milliseconds for a store of any size, and stores that
        differ only between these steps are not told apart. Extras do not count: no batch holds them.
        """
        total = int(self._lengths.sum())
        step, ends = spread(total), np.cumsum(self._lengths)
        episode, start = self._locate(step, ends)
        steps = self._step_starts[episode] + start
        rows = (
            self._columns["frames"][self._frame_starts[episode] + start],
            self._columns["actions"][steps],
            self._columns["rewards"][steps],
        )
        return {
            "kind": "windows of episodes",
            "steps": self.steps,
            "block": self.block,
            "frames": self.frames,
            "frame_shape": list(self._columns["frames"].shape[1:]),
            "action": asdict(self.spec.action),
            "episodes": len(self._lengths),
            "environment_steps": total,
            "index": digest(self._lengths, self._terminated),
            "rows": digest(*rows),
        }

    # -- indices -----------------------------------------------------------------------------------

    def _count_windows(self, steps: int) -> Int64[np.ndarray, " episodes"]:
        """Running total of windows after each episode."""
        return np.cumsum(np.maximum(self._lengths - steps * self.block + 1, 0))

    @staticmethod
    def _locate(
        windows: Int64[np.ndarray, " b"], ends: Int64[np.ndarray, " episodes"]
    ) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
        """(episode, position in it) of numbers that run through all episodes; ``ends`` are the running totals."""
        windows = np.asarray(windows)
        if windows.size and not 0 <= windows.min() <= windows.max() < ends[-1]:
            raise ValueError(f"window numbers must lie in [0, {ends[-1]}), got {windows}")
        episode = np.searchsorted(ends, windows, side="right")
        before = np.where(episode > 0, ends[episode - 1], 0)
        return episode, windows - before

    def _states(self, start: Int64[np.ndarray, " b"], steps: int) -> Int64[np.ndarray, "b t"]:
        """Environment steps at which the states of a window lie."""
        return start[:, None] + self.block * np.arange(steps + 1)

    # -- gathering ---------------------------------------------------------------------------------

    def _pixels(
        self, episode: Int64[np.ndarray, " b"], states: Int64[np.ndarray, "b t"]
    ) -> UInt8[Tensor, "b t c y x"]:
        column, first = self._columns["frames"], self._frame_starts[episode]
        if is_scattered(column):
            self._prefetch_stacks(column, first, states)
        return torch.from_numpy(stack_frames(column, first, states, self.frames))

    def _prefetch_stacks(
        self,
        column: Shaped[np.ndarray, "rows c y x"],
        first: Int64[np.ndarray, " b"],
        states: Int64[np.ndarray, "b t"],
    ) -> None:
        """``prefetch`` of what ``stack_frames`` reads."""
        oldest, newest = np.maximum(states + 1 - self.frames, 0), states
        # Without gaps between the stacks there is one run of rows for each window.
        if (oldest[:, 1:] <= newest[:, :-1] + 1).all():
            oldest, newest = oldest[:, :1], newest[:, -1:]
        prefetch(column, first[:, None] + oldest, newest - oldest + 1)

    def _steps(
        self, episode: Int64[np.ndarray, " b"], start: Int64[np.ndarray, " b"], steps: int
    ) -> Int64[np.ndarray, "b hk"]:
        """Rows of the environment steps in a window: ``steps * block`` of them."""
        return (self._step_starts[episode] + start)[:, None] + np.arange(steps * self.block)

    def _actions(
        self, episode: Int64[np.ndarray, " b"], start: Int64[np.ndarray, " b"], steps: int
    ) -> Float[Tensor, "b h a"]:
        actions = self.spec.action.encode(self._columns["actions"][self._steps(episode, start, steps)])
        return torch.from_numpy(actions.reshape(len(start), steps, self.spec.action_dim))

    def _rewards(
        self, episode: Int64[np.ndarray, " b"], start: Int64[np.ndarray, " b"]
    ) -> Float[Tensor, "b h"]:
        rewards = self._columns["rewards"][self._steps(episode, start, self.steps)]
        return torch.from_numpy(rewards.reshape(len(start), self.steps, self.block).sum(-1))

    def _ended(self, episode: Int64[np.ndarray, " b"], start: Int64[np.ndarray, " b"]) -> Bool[Tensor, "b h"]:
        last = self._states(start, self.steps)[:, 1:] == self._lengths[episode][:, None]
        return torch.from_numpy(last & self._terminated[episode][:, None])


def check_lengths(lengths: Int64[np.ndarray, " episodes"], steps: int, block: int) -> None:
    """Warns of episodes that are too short for a window, and refuses windows for which hardly any is long enough.

    Args:
        lengths: environment steps of each episode.
        steps: latent steps in a window.
        block: environment steps in a latent step.

    Raises:
        ValueError: if the episodes that are long enough hold less than ``LEAST_SHARE`` of all environment steps.
    """
    need = steps * block
    window = (
        f"windows of {steps} latent steps x {block} environment steps need episodes of at least {need} steps"
    )
    fix = "ask for fewer latent steps or a smaller block, or collect longer episodes"
    short = lengths < need
    if short.all():
        raise ValueError(f"{window}, the longest has {lengths.max()}; {fix}")
    left_out = lengths[short].sum() / lengths.sum()
    counts = (
        f"{short.sum()} of {len(lengths)} episodes ({short.mean():.1%}), which hold {left_out:.1%} of the environment "
        "steps, are shorter"
    )
    if 1 - left_out < LEAST_SHARE:
        raise ValueError(f"{window}; {counts}, so that nearly nothing is left to learn from; {fix}")
    if short.any():
        warnings.warn(f"{window}; {counts} and are left out; {fix}", stacklevel=3)
