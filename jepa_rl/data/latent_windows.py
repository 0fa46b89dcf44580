"""Episodes encoded once by a frozen encoder, for what learns on latents alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jepa_rl.data.fingerprint import digest, spread
from jepa_rl.data.view import Episodes
from jepa_rl.data.windows import WindowSampler, check_lengths
from jepa_rl.memory import check_memory
from jepa_rl.modes import evaluating
from jepa_rl.progress import SOON, Progress
from jepa_rl.types import JSON


@dataclass(frozen=True)
class LatentBatch:
    """Windows of latents: a ``Batch`` after encoding.

    Attributes:
        latents: encoded states.
        actions: model actions between them, blocks concatenated.
    """

    latents: Float[Tensor, "b t d"]
    actions: Float[Tensor, "b h a"]

    @property
    def states(self) -> int:
        """How many states the batch holds."""
        return self.latents.shape[0] * self.latents.shape[1]

    def to(self, device: torch.device | str) -> LatentBatch:
        """The same batch on another device."""
        return LatentBatch(self.latents.to(device), self.actions.to(device))


@dataclass(frozen=True, eq=False)
class LatentEpisodes:
    """All states of some episodes as latents, in memory: 4 d bytes a state.

    Attributes:
        latents: one row a state; every episode has one more state than steps.
        actions: model actions of single environment steps.
        lengths: environment steps of each episode; on the CPU.
        source: the fingerprint of the stored episodes that were encoded; None if unknown.
    """

    latents: Float[Tensor, "states d"]
    actions: Float[Tensor, "steps size"]
    lengths: Int64[Tensor, " episodes"]
    source: JSON | None = None

    @classmethod
    @torch.no_grad()
    def encode(
        cls, model: Any, episodes: Episodes, batch_size: int = 512, progress: bool = True
    ) -> LatentEpisodes:
        """Encodes every state once, with the model in evaluation mode.

        Args:
            model: a ``WorldModel``, or whatever has its ``spec``, ``latent_dim`` and ``encode``.
            episodes: a store, or a view of it.
            batch_size: states encoded at a time.
            progress: show the progress, if it takes longer than a few seconds.

        Returns:
            Latents and actions on the device of the model.

        Raises:
            ValueError: if there are no episodes, their observations or actions are not those of the model, or the
                latents do not fit into memory.
        """
        view = episodes.view()
        steps = WindowSampler(view, steps=1, frames=model.spec.frames)  # window i is environment step i
        if steps.spec.pixels != model.spec.pixels or steps.spec.action != model.spec.action:
            raise ValueError(
                f"the model reads {model.spec.pixels} and is driven by {model.spec.action}, the episodes hold "
                f"{steps.spec.pixels} and {steps.spec.action}; use episodes of the model's environment"
            )
        lengths = torch.from_numpy(np.asarray(view.lengths, np.int64))
        device, states = next(model.parameters()).device, len(steps) + len(lengths)
        if device.type == "cpu":
            row = 4 * (model.latent_dim + model.spec.action.size)
            remedy = "encode fewer episodes (store.view), or lower latent_dim"
            check_memory(f"a table of {states:,} states of {row:,} bytes", states * row, remedy)
        actions = torch.empty(len(steps), model.spec.action.size, device=device)
        latents = torch.empty(states, model.latent_dim, device=device)
        episode = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        last = lengths.cumsum(0) - 1  # an episode's last state begins no window
        with evaluating(model), Progress("Encoding", states, "state", shown=progress, delay=SOON) as bar:
            for windows in steps.ordered(batch_size):
                batch = steps.batch(windows).to(device)
                latents[torch.from_numpy(windows) + episode[windows]] = model.encode(batch.pixels[:, 0])
                actions[torch.from_numpy(windows)] = batch.actions[:, 0]
                bar.update(len(windows))
            for part in last.split(batch_size):
                pixels = steps.batch(part.numpy()).pixels[:, 1].to(device)
                latents[part + episode[part] + 1] = model.encode(pixels)
                bar.update(len(part))
        return cls(latents, actions, lengths, steps.fingerprint())

    @property
    def episode_of_step(self) -> Int64[Tensor, " steps"]:
        """The episode of every environment step; step ``i`` leaves state ``i + episode_of_step[i]``."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)

    @property
    def steps_left(self) -> Int64[Tensor, " steps"]:
        """Environment steps from each step to the end of its episode, itself included."""
        return self.lengths.cumsum(0)[self.episode_of_step] - torch.arange(int(self.lengths.sum()))


class LatentWindowSampler:
    """Windows of latents, each equally likely; the counterpart of ``WindowSampler``.

    Args:
        episodes: encoded episodes.
        steps: latent steps in a window, h.
        block: environment steps in a latent step.

    Raises:
        ValueError: if no episode is long enough, or those that are hold less than a twentieth of the environment steps.
    """

    def __init__(self, episodes: LatentEpisodes, steps: int, block: int = 1) -> None:
        for name, value in (("steps", steps), ("block", block)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        check_lengths(episodes.lengths.numpy(), steps, block)
        self.episodes, self.steps, self.block = episodes, steps, block
        # environment steps that begin a window
        self._starts = torch.nonzero(episodes.steps_left >= steps * block).flatten()
        self._states = self._starts + episodes.episode_of_step[self._starts]

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self._starts)

    def sample(self, batch_size: int, rng: np.random.Generator) -> LatentBatch:
        """A batch of windows drawn uniformly with replacement."""
        return self.sample_rows(batch_size, rng, slice(None))

    def sample_rows(self, batch_size: int, rng: np.random.Generator, rows: slice) -> LatentBatch:
        """Some rows of the batch that ``sample`` would give; ``rng`` moves on as there."""
        windows = torch.from_numpy(rng.integers(len(self), size=batch_size)[rows])
        states = self._states[windows, None] + self.block * torch.arange(self.steps + 1)
        steps = self._starts[windows, None] + torch.arange(self.steps * self.block)
        actions = self.episodes.actions[steps].reshape(len(windows), self.steps, -1)
        return LatentBatch(self.episodes.latents[states], actions)

    def fingerprint(self) -> JSON:
        """Which windows of which data these are; see ``jepa_rl.training.Fingerprinted``.

        Latents that were encoded here are known by the episodes that they come from, since the same pictures give
        latents that differ in the last digit on another machine; others by some of their values.
        """
        data, source = self.episodes, self.episodes.source
        if source is None:
            rows = spread(len(data.actions))
            source = {
                "episodes": len(data.lengths),
                "environment_steps": len(data.actions),
                "index": digest(data.lengths.numpy()),
                "rows": digest(data.latents[rows].cpu().numpy(), data.actions[rows].cpu().numpy()),
            }
        return source | {"kind": "windows of latents", "steps": self.steps, "block": self.block}
