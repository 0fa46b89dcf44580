"""The task of planning_speed.py's last case: two predictors, trained on the same latents, that reach the same goals.

Two Rooms from pixels, goals in the room where the dot stands: what the cross-entropy method solves with a squared
distance. (Through the door it does not, with either predictor; the tree does.) One encoder is trained and frozen, its
latents as wide as LeWorldModel's; the published predictor, by the peer's own classes, and this library's default learn
on latents of the same episodes. Everything is kept in a folder and made once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _record import note_process
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl import WindowSampler, WorldModel, fit, preset
from jepa_rl.data.latent_windows import LatentBatch, LatentEpisodes, LatentWindowSampler
from jepa_rl.dynamics import MLPDynamics
from jepa_rl.encoders.conv import bfloat16_is_fast
from jepa_rl.envs import TwoRoomsVectorEnv, world_spec
from jepa_rl.files import load_tensors, open_run, save_tensors
from jepa_rl.training import TrainConfig
from jepa_rl.training.refine import REFINE, refine_dynamics
from jepa_rl.types import Dynamics

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import quickstart

FIRST_LAYOUT = 3_000_000  # seeds of these episodes, far from those of any training


@dataclass(frozen=True)
class Budget:
    """Of the training; about eight minutes on one core."""

    episodes: int = 1500
    """Of random play."""
    encoder_updates: int = 1500
    own_updates: int = 2500
    peer_updates: int = 1500
    peer_batch_size: int = 64
    peer_learning_rate: float = 1e-3
    seed: int = 0


QUICK = Budget(episodes=40, encoder_updates=4, own_updates=4, peer_updates=3, peer_batch_size=8)


@dataclass
class Task:
    """What both sides plan with, and for.

    Attributes:
        world: its encoder and its dynamics, which are this library's default.
        peer: the peer's world model, whose "pictures" are latents.
        windows: of episodes that nothing was trained on.
        made: settings and processes of the training.
    """

    world: WorldModel
    peer: nn.Module
    windows: LatentBatch
    made: dict[str, Any]

    @property
    def own(self) -> MLPDynamics:
        return self.world.dynamics


def make_task(folder: Path, budget: Budget, peer: nn.Module, width: int) -> Task:
    """Trains what is not there yet.

    Args:
        folder: where episodes and models are kept.
        budget: how long.
        peer: the peer's world model with its initial weights; learns in place.
        width: of its latents.

    Raises:
        ValueError: if the folder holds models of another budget or preset; remove it to train anew.
    """
    rooms = quickstart.Args(train_episodes=budget.episodes, out=folder, seed=budget.seed)
    world, training, window = _world(rooms, width)
    open_run(folder, {"budget": asdict(budget), "model": asdict(world.config), "training": asdict(training)})
    train, held_out = quickstart.random_play(rooms).split(0.1, seed=budget.seed)
    finished = folder / "peer.safetensors"
    if not finished.exists():
        note_process(folder)
    training = replace(training, steps=budget.encoder_updates, seed=budget.seed)
    fit(world, WindowSampler(train, window, rooms.block), training, folder / "encoder")
    latents = LatentEpisodes.encode(world.eval(), train)
    # Both predictors see windows of the same length; the peer's reads its own context of them.
    steps = min(6, rooms.train_steps // rooms.block)
    refining = replace(REFINE, steps=budget.own_updates, seed=budget.seed)
    refine_dynamics(world, latents, folder / "own", steps=steps, config=refining)
    if finished.exists():
        peer.load_state_dict(load_tensors(finished, ("peer",))[0])
    else:
        learner = TeacherForced(peer, PeerConfig(width, world.encoder_fingerprint()))
        config = TrainConfig(
            budget.peer_updates, budget.peer_batch_size, budget.peer_learning_rate, warmup=0.1,
            weight_decay=1e-3, seed=budget.seed, checkpoint_every=100,
        )  # fmt: skip
        sampler = LatentWindowSampler(latents, peer.predictor.num_frames, rooms.block)
        fit(learner, sampler, config, folder / "peer")
        save_tensors(finished, "peer", peer.state_dict(), {"encoder": world.encoder_fingerprint()})
    made = {"budget": asdict(budget), "processes": json.loads((folder / "processes.json").read_text())}
    unseen = LatentWindowSampler(LatentEpisodes.encode(world, held_out), 5, rooms.block)
    windows = unseen.sample(1024, np.random.default_rng(budget.seed))
    return Task(world.eval(), peer.eval(), windows, made)


@torch.no_grad()
def rollout_errors(dynamics: Dynamics, windows: LatentBatch) -> list[float]:
    """Squared error of open-loop predictions 1, 2, ... steps ahead, as a share of the latents' variance."""
    predicted = dynamics.rollout(windows.latents[:, 0], windows.actions)[:, 0]
    error = (predicted - windows.latents).square().mean((0, 2)) / windows.latents.var(0).mean()
    return error[1:].tolist()


def _world(rooms: quickstart.Args, width: int) -> tuple[WorldModel, TrainConfig, int]:
    """The preset ``laptop`` with latents of another width."""
    spec = world_spec(TwoRoomsVectorEnv(1)).with_block(rooms.block)
    config, training, window = preset("laptop", spec)
    torch.manual_seed(rooms.seed)
    return WorldModel(replace(config, latent_dim=width)), training, window


@dataclass(frozen=True)
class PeerConfig:
    """What the peer's training belongs to: the width of its latents, and the fingerprint of their encoder."""

    width: int
    encoder: str


class TeacherForced(nn.Module):
    """Trains the peer's predictor as the peer does: the next latent after each of the true ones, squared error.

    Args:
        peer: learns in place.
        config: written into checkpoints.
    """

    def __init__(self, peer: nn.Module, config: PeerConfig) -> None:
        super().__init__()
        self.peer, self.config = peer, config

    def loss(
        self, batch: LatentBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        half = bfloat16_is_fast(
            batch.latents.device
        )  # it is trained in bfloat16, as published, and planned with in float32
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            predicted = self.peer.predict(batch.latents[:, :-1], self.peer.action_encoder(batch.actions))
        error = F.mse_loss(predicted.float(), batch.latents[:, 1:])
        return error, {"prediction": error}

    def after_update(self) -> None:
        """Nothing follows the weights."""

    def save(self, path: Path) -> None:
        save_tensors(path, "peer", self.peer.state_dict(), asdict(self.config))


# -- episodes -----------------------------------------------------------------------------------------

# Latents of starts and goals "b d" and a seed to plans "b h a".
Plan = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Episodes:
    """Two Rooms with the goal in the dot's room, the same for every planner.

    Attributes:
        world: encodes.
        number: of episodes, played side by side.
        plans: a plan is made and executed whole this many times.
    """

    world: WorldModel
    number: int
    plans: int = 2

    def begin(self) -> tuple[list[gym.Env], np.ndarray, np.ndarray]:
        """Environments, first pictures, and goal pictures."""
        envs, pixels, goals, seed = [], [], [], FIRST_LAYOUT
        while len(envs) < self.number:
            env = gym.make("jepa_rl/TwoRooms-v0", start="any")
            observation, info = env.reset(seed=seed)
            seed += 1
            wall = info["door"][0]
            if (info["position"][0] < wall) == (info["goal_position"][0] < wall) and not info["success"]:
                envs.append(env)
                pixels.append(observation)
                goals.append(info["goal"])
        return envs, np.stack(pixels), np.stack(goals)

    @torch.no_grad()
    def latents(self) -> tuple[Tensor, Tensor]:
        """Of starts and goals, "n d"."""
        _, pixels, goals = self.begin()
        return self.encode(pixels), self.encode(goals)

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Tensor:
        return self.world.encode(torch.from_numpy(pixels))

    def play(self, plan: Plan) -> list[bool]:
        """Which goals are reached."""
        envs, pixels, goals = self.begin()
        goal, reached = self.encode(goals), np.zeros(len(envs), bool)
        for turn in range(self.plans):
            left = np.flatnonzero(~reached)
            if not len(left):
                break
            plans = plan(self.encode(pixels[left]), goal[left], turn)
            actions = plans.clamp(-1.0, 1.0).numpy().reshape(len(left), -1, 2)
            for row, path in zip(left, actions, strict=True):
                for action in path:
                    pixels[row], _, reached[row], _, _ = envs[row].step(action)
                    if reached[row]:
                        break
        return reached.tolist()
