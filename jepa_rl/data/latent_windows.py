"""Episodes encoded once by a frozen encoder: what learns on latents alone need not touch a pixel again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from jepa_rl.data.view import Episodes
from jepa_rl.data.windows import WindowSampler
from jepa_rl.modes import evaluating


@dataclass(frozen=True)
class LatentBatch:
    """Windows of latents; the counterpart of ``Batch`` behind the encoder.

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
        return LatentBatch(self.latents.to(device), self.actions.to(device))


@dataclass(frozen=True, eq=False)
class LatentEpisodes:
    """All states of some episodes as latents, in memory: 4 * d bytes a state.

    Attributes:
        latents: one row a state; every episode has one more state than steps.
        actions: model actions of single environment steps.
        lengths: environment steps of each episode.
    """

    latents: Float[Tensor, "states d"]
    actions: Float[Tensor, "steps size"]
    lengths: Int64[Tensor, " episodes"]

    @classmethod
    @torch.no_grad()
    def encode(cls, model: Any, episodes: Episodes, batch_size: int = 512) -> LatentEpisodes:
        """Encodes every state once, with ``model`` (a ``WorldModel``) in evaluation mode.

        Raises:
            ValueError: if there are no episodes, or they show or do other things than the model knows.
        """
        view = episodes.view()
        steps = WindowSampler(view, steps=1, frames=model.spec.frames)  # window i is environment step i
        if steps.spec.pixels != model.spec.pixels or steps.spec.action != model.spec.action:
            raise ValueError(
                f"the model reads {model.spec.pixels} and is driven by {model.spec.action}, the episodes hold "
                f"{steps.spec.pixels} and {steps.spec.action}; use episodes of the model's environment"
            )
        lengths = torch.from_numpy(np.asarray(view.lengths, np.int64))
        device = next(model.parameters()).device
        actions = torch.empty(len(steps), model.spec.action.size, device=device)
        latents = torch.empty(len(steps) + len(lengths), model.latent_dim, device=device)
        episode = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        last = lengths.cumsum(0) - 1  # an episode's last state begins no window
        with evaluating(model):
            for windows in steps.ordered(batch_size):
                batch = steps.batch(windows).to(device)
                latents[torch.from_numpy(windows) + episode[windows]] = model.encode(batch.pixels[:, 0])
                actions[torch.from_numpy(windows)] = batch.actions[:, 0]
            for part in last.split(batch_size):
                pixels = steps.batch(part.numpy()).pixels[:, 1].to(device)
                latents[part + episode[part] + 1] = model.encode(pixels)
        return cls(latents, actions, lengths)

    @property
    def episode_of_step(self) -> Int64[Tensor, " steps"]:
        """The episode of every environment step; step ``i`` leaves state ``i + episode_of_step[i]``."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)

    @property
    def steps_left(self) -> Int64[Tensor, " steps"]:
        """Environment steps from each step to the end of its episode, itself included."""
        return self.lengths.cumsum(0)[self.episode_of_step] - torch.arange(int(self.lengths.sum()))


class LatentWindowSampler:
    """Windows of latents, each equally likely; ``WindowSampler`` behind the encoder.

    Args:
        episodes: encoded episodes.
        steps: latent steps in a window, h.
        block: environment steps in a latent step.

    Raises:
        ValueError: if no episode is long enough.
    """

    def __init__(self, episodes: LatentEpisodes, steps: int, block: int = 1) -> None:
        self.episodes, self.steps, self.block = episodes, steps, block
        need, lengths = steps * block, episodes.lengths
        if need < 1 or int(lengths.max()) < need:
            raise ValueError(
                f"windows of {steps} latent steps x {block} environment steps need episodes of at least "
                f"{need} steps, the longest has {int(lengths.max())}; ask for fewer steps"
            )
        # environment steps that begin a window
        self._starts = torch.nonzero(episodes.steps_left >= need).flatten()
        self._states = self._starts + episodes.episode_of_step[self._starts]

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self._starts)

    def sample(self, batch_size: int, rng: np.random.Generator) -> LatentBatch:
        """A batch of windows drawn uniformly with replacement."""
        windows = torch.from_numpy(rng.integers(len(self), size=batch_size))
        states = self._states[windows, None] + self.block * torch.arange(self.steps + 1)
        steps = self._starts[windows, None] + torch.arange(self.steps * self.block)
        actions = self.episodes.actions[steps].reshape(batch_size, self.steps, -1)
        return LatentBatch(self.episodes.latents[states], actions)
