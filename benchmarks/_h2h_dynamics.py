"""Dynamics of the head-to-head: one recipe each, on frozen standardised latents of every arm."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _h2h_cache import content_of_tensors, digest
from torch import Tensor, nn

from jepa_rl import TrainConfig, WorldModel, fit
from jepa_rl.data.latent_windows import LatentEpisodes, LatentWindowSampler
from jepa_rl.dynamics import is_markov
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.registry import DYNAMICS
from jepa_rl.temporal import TemporalDistance
from jepa_rl.training import train_temporal_distance
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

    def shortened(self, updates: int) -> Recipe:
        """The same with few updates on small batches."""
        return replace(self, train=self.train | {"steps": updates, "batch_size": 16})


@dataclass(frozen=True)
class PricedRecipe(Recipe):
    """A recipe whose plans are priced by a learned temporal distance.

    Attributes:
        distance: arguments of ``train_temporal_distance``.
    """

    distance: dict[str, Any] = field(default_factory=dict)

    def shortened(self, updates: int) -> Recipe:
        return replace(super().shortened(updates), distance=self.distance | {"updates": updates})


DISTANCE = "distance.safetensors"

ROLLOUT = dict(steps=5000, batch_size=72, learning_rate=2e-3, warmup=0.1, weight_decay=1e-3)
FLOW = {"width": 64, "energy": 4.0, "shift": 0.5, "low_noise": 2.0, "evaluations": 1}
FLOW_TRAIN = dict(steps=3000, batch_size=512, learning_rate=3e-3, weight_decay=1e-4, optimizer="muon")
RECIPES = {
    "point": Recipe("mlp", {"width": 192, "depth": 2}, 0, ROLLOUT),
    "ensemble": Recipe("ensemble", {"members": 5, "width": 96, "depth": 2}, 0, ROLLOUT),
    "flow": Recipe("flow", FLOW, 1, FLOW_TRAIN),
    # The same training as the flow's, drawn by Heun's method; and hidden states aligned with the clean latents.
    "flow_heun": Recipe("flow", FLOW | {"evaluations": 5, "solver": "heun"}, 1, FLOW_TRAIN),
    "flow_repa": Recipe("flow", FLOW | {"repa": 0.5}, 1, FLOW_TRAIN),
    # The same point predictor; only the price of plans differs.
    "point+distance": PricedRecipe(
        "mlp", {"width": 192, "depth": 2}, 0, ROLLOUT, {"updates": 3000, "batch_size": 512, "max_offset": 40}
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
    recipe: Recipe,
    episodes: LatentEpisodes,
    steps: int,
    block: int,
    seed: int,
    folder: Path,
    frames: int = 1,
) -> LatentModel:
    """Trains in a folder; a training that was stopped goes on. A temporal distance gets a file of its own.

    Args:
        recipe: which.
        episodes: what they learn on.
        steps: of the windows, where the recipe takes the task's.
        block: environment steps of a latent step.
        seed: of weights and batches.
        folder: of the run.
        frames: side by side in a latent; temporal distances read the newest.
    """
    torch.manual_seed(seed)
    model = build(recipe, episodes.latents.shape[1], block * episodes.actions.shape[1])
    sampler = LatentWindowSampler(episodes, recipe.steps or steps, block)
    seen = sampler.sample(10_000, np.random.default_rng(seed))
    model.dynamics.observe(seen.latents, seen.actions)
    config = TrainConfig(seed=seed, checkpoint_every=1000, **recipe.train)
    fit(model, sampler, config, folder, progress=False)
    if isinstance(recipe, PricedRecipe):
        newest = replace(episodes, latents=newest_of(episodes.latents, frames).contiguous())
        distance = train_temporal_distance(newest, block=block, seed=seed, progress=False, **recipe.distance)
        settings = {"latent_dim": distance.latent_dim, "limit": distance.limit}
        save_tensors(folder / DISTANCE, "distance", distance.state_dict(), settings)
    return model


def load_dynamics(recipe: Recipe, width: int, actions: int, path: Path) -> Any:
    """The trained dynamics, in evaluation mode."""
    model = build(recipe, width, actions)
    model.load_state_dict(load_tensors(path, ("dynamics",))[0])
    dynamics = model.eval().requires_grad_(False).dynamics
    if not isinstance(recipe, PricedRecipe):
        return dynamics
    tensors, settings = load_tensors(path.parent / DISTANCE, ("distance",))
    distance = TemporalDistance(settings["latent_dim"], settings["limit"])
    distance.load_state_dict(tensors)
    return PricedDynamics(dynamics, distance.eval().requires_grad_(False))


def content_of_dynamics(folder: Path) -> str:
    """Of what was trained in a folder."""
    model, distance = content_of_tensors(folder / "model.safetensors"), folder / DISTANCE
    return digest(model, content_of_tensors(distance)) if distance.exists() else model


def newest_of(latents: Tensor, frames: int) -> Tensor:
    """The newest frame's part of states of several frames."""
    return latents[..., -(latents.shape[-1] // frames) :]


class PricedDynamics:
    """Dynamics, and the distance by which plans in them are priced: see ``play``.

    Args:
        dynamics: are rolled out.
        distance: between newest frames.
    """

    def __init__(self, dynamics: nn.Module, distance: TemporalDistance) -> None:
        self.dynamics, self.temporal = dynamics, distance
        self.latent_dim, self.action_dim = dynamics.latent_dim, dynamics.action_dim
        self.markov = is_markov(dynamics)

    def parameters(self) -> Any:
        return chain(self.dynamics.parameters(), self.temporal.parameters())

    def rollout(self, z: Tensor, actions: Tensor, **options: Any) -> Tensor:
        return self.dynamics.rollout(z, actions, **options)

    def away(self, latents: Tensor, goal: Tensor) -> Tensor:
        """Steps to the goal in units of the distance's limit: about as large as differences of latents are, so that
        the planner's price of a step means the same."""
        width = self.temporal.latent_dim
        return self.temporal(latents[..., -width:], goal[..., -width:]) / self.temporal.limit


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
