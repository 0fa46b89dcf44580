"""Dynamics of the head-to-head: one recipe each, on frozen standardised latents of every arm."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa_rl import TrainConfig, WorldModel, fit
from jepa_rl.data.latent_windows import LatentEpisodes, LatentWindowSampler
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.registry import DYNAMICS
from jepa_rl.training.refine import DynamicsAlone


@dataclass(frozen=True)
class Recipe:
    """How one kind of dynamics is trained.

    Attributes:
        name, options: of the registered dynamics.
        steps: latent steps of a window; 0 takes the task's.
        train: arguments of ``TrainConfig`` but for the seed.
    """

    name: str
    options: dict[str, Any]
    steps: int
    train: dict[str, Any] = field(default_factory=dict)


ROLLOUT = dict(steps=5000, batch_size=72, learning_rate=2e-3, warmup=0.1, weight_decay=1e-3)
RECIPES = {
    "point": Recipe("mlp", {"width": 192, "depth": 2}, 0, ROLLOUT),
    "ensemble": Recipe("ensemble", {"members": 5, "width": 96, "depth": 2}, 0, ROLLOUT),
    "flow": Recipe(
        "flow",
        {"width": 64, "energy": 4.0, "shift": 0.5, "low_noise": 2.0, "evaluations": 1},
        1,
        dict(steps=3000, batch_size=512, learning_rate=3e-3, weight_decay=1e-4, optimizer="muon"),
    ),
    # All states of a plan at once, and every fourth by one long step: on the point predictor's windows and updates.
    "parallel": Recipe("parallel", {"horizon": 6, "width": 192, "depth": 2}, 0, ROLLOUT),
    "two_scale": Recipe("two_scale", {"stride": 4, "width": 192, "depth": 2}, 0, ROLLOUT),
    # The predictor that the encoder was trained with, as it is: an extra row of the JEPA arms.
    "own": Recipe("own", {}, 0, {"steps": 0}),
}


@dataclass(frozen=True)
class Built:
    """What a checkpoint of the training belongs to."""

    name: str
    options: dict[str, Any]
    latent_dim: int
    action_dim: int


class LatentModel(DynamicsAlone):
    """Dynamics on latents that are given, as ``fit`` trains them."""

    def __init__(self, config: Built) -> None:
        known = {"latent_dim": config.latent_dim, "action_dim": config.action_dim}
        super().__init__(DYNAMICS.build(config.name, config.options, known))
        self.config = config

    def save(self, path: str | Path) -> None:
        save_tensors(path, "dynamics", self.state_dict(), {})


def build(recipe: Recipe, width: int, actions: int) -> LatentModel:
    """Untrained; ``width`` is that of a state, ``actions`` that of all actions of a latent step."""
    return LatentModel(Built(recipe.name, recipe.options, width, actions))


def train_dynamics(
    recipe: Recipe, episodes: LatentEpisodes, steps: int, block: int, seed: int, folder: Path
) -> LatentModel:
    """Trains in a folder; a training that was stopped goes on.

    Args:
        recipe: which.
        episodes: what they learn on.
        steps: of the windows, where the recipe takes the task's.
        block: environment steps of a latent step.
        seed: of weights and batches.
        folder: of the run.
    """
    torch.manual_seed(seed)
    model = build(recipe, episodes.latents.shape[1], block * episodes.actions.shape[1])
    sampler = LatentWindowSampler(episodes, recipe.steps or steps, block)
    seen = sampler.sample(10_000, np.random.default_rng(seed))
    model.dynamics.observe(seen.latents, seen.actions)
    config = TrainConfig(seed=seed, checkpoint_every=1000, **recipe.train)
    fit(model, sampler, config, folder, progress=False)
    return model


def load_dynamics(recipe: Recipe, width: int, actions: int, path: Path) -> nn.Module:
    """The trained dynamics, in evaluation mode."""
    model = build(recipe, width, actions)
    model.load_state_dict(load_tensors(path, ("dynamics",))[0])
    return model.eval().requires_grad_(False).dynamics


class OwnPredictor:
    """The dynamics of a world model, on standardised latents.

    Args:
        world: its encoder reads frames singly; its dynamics predict states of k of them.
        mean, scale: of the standardisation of one frame's latent.
        frames: k.
    """

    def __init__(self, world: WorldModel, mean: Tensor, scale: Tensor, frames: int) -> None:
        self.dynamics = world.dynamics.eval().requires_grad_(False)
        if self.dynamics.latent_dim != frames * len(mean):
            raise ValueError(
                "this arm's predictor reads other states than planners; choose other dynamics for it"
            )
        self.latent_dim, self.action_dim = self.dynamics.latent_dim, self.dynamics.action_dim
        self.mean, self.scale = mean.repeat(frames), scale.expand(len(mean)).repeat(frames)

    def parameters(self) -> Any:
        return self.dynamics.parameters()

    def rollout(self, z: Tensor, actions: Tensor, **options: Any) -> Tensor:
        path = self.dynamics.rollout(z * self.scale + self.mean, actions, **options)
        return (path - self.mean) / self.scale
