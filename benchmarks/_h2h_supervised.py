"""The encoder of the head-to-head that learns from the true state: what its network can know at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa_rl import WindowSampler, WorldModel
from jepa_rl.data.view import EpisodeView
from jepa_rl.heads import Perceptron


@dataclass(frozen=True)
class LabelledBatch:
    """Pictures "b c y x" and the standardised true state "b s" of each."""

    pixels: Tensor
    state: Tensor

    @property
    def states(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> LabelledBatch:
        return LabelledBatch(self.pixels.to(device), self.state.to(device))


class LabelledSampler:
    """Single frames of episodes and their true state.

    Args:
        view: the episodes.
        describe: columns of the store -> true state of every frame.
    """

    def __init__(
        self, view: EpisodeView, describe: Callable[[Callable[[str], np.ndarray]], np.ndarray]
    ) -> None:
        self.windows, self.store = WindowSampler(view, 1, frames=1), view.store
        self.firsts = view.store.step_starts[view.indices] + view.indices
        state = describe(view.store.column)
        self.state = (state - state.mean(0)) / np.maximum(state.std(0), 1e-6)

    def sample(self, batch_size: int, rng: np.random.Generator) -> LabelledBatch:
        chosen = self.windows.draw(batch_size, rng)
        episode, start = self.windows.locate(chosen)
        state = torch.from_numpy(self.state[self.firsts[episode] + start])
        return LabelledBatch(self.windows.batch(chosen).pixels[:, 0], state)

    def fingerprint(self) -> dict[str, Any]:
        return self.windows.fingerprint() | {"kind": "labelled frames"}


class Supervised(nn.Module):
    """A world model whose encoder learns by regression of the true state.

    Args:
        world: its encoder learns, in place.
        size: of the state.
    """

    def __init__(self, world: WorldModel, size: int) -> None:
        super().__init__()
        self.config = world.config
        self.world, self.head = world, Perceptron(world.latent_dim, 128, size, 1)

    def loss(
        self, batch: LabelledBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.head(self.world.encode(batch.pixels)) - batch.state).square().mean()
        return error, {"regression": error}

    def after_update(self) -> None:
        pass

    def save(self, path: str | Path) -> None:
        self.world.save(path)
