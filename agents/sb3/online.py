"""Stable-Baselines3's off-policy agents on latents of a world model that learns beside them.

``VecLatentObservation`` shows an agent the latents of a model that is finished. Here the agent's replay keeps pixels,
and every batch is encoded by the model as it is now::

    world = WorldModel(preset("laptop", world_spec(env)).model)
    agent = SAC(
        "CnnPolicy", env, policy_kwargs=latent_policy_kwargs(world), replay_buffer_class=LatentReplayBuffer
    )
    agent.learn(100_000, callback=OnlineWorldModel(world))

``LatentReplayBuffer`` encodes a batch once, when it is drawn; with Stable-Baselines3's own replay the actor and each
critic encode it anew, five times in an update of SAC.

The agent's own losses do not reach the encoder: what shapes the space is prediction alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from jepa_rl.agents.sb3.checks import check_terminal_observations
from jepa_rl.memory import keep_freed_memory
from jepa_rl.modes import evaluating
from jepa_rl.training import descend
from jepa_rl.types import ActionSpec, Batch
from jepa_rl.world_model import WorldModel


class LatentFeatures(BaseFeaturesExtractor):
    """Latents of pixels, without a gradient.

    Args:
        observation_space: uint8 pixels as the world model reads them.
        world: the world model; it stays outside this module, whose weights the agent would train and average.

    Raises:
        ValueError: if the environment shows pixels of another shape.
        TypeError: if they are not uint8.
    """

    def __init__(self, observation_space: spaces.Box, world: WorldModel) -> None:
        if tuple(observation_space.shape) != world.spec.pixels:
            raise ValueError(
                f"the world model reads pixels {world.spec.pixels}, the environment shows {observation_space.shape}"
            )
        if observation_space.dtype != np.uint8:
            raise TypeError(
                f"the world model reads uint8 pixels, the environment shows {observation_space.dtype}; leave out what "
                "scales them, such as VecNormalize (norm_obs=False lets it scale rewards alone)"
            )
        super().__init__(observation_space, world.latent_dim)
        self._world = [world]

    @property
    def world(self) -> WorldModel:
        return self._world[0]

    def forward(self, seen: Float[Tensor, "b c y x"] | Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Of pixels; what ``LatentReplayBuffer`` has encoded is returned as it is."""
        return seen if seen.ndim == 2 else _encode(self.world, seen)


@torch.no_grad()
def _encode(world: WorldModel, pixels: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
    with evaluating(world):
        return world.encode(pixels.to(torch.uint8))


class LatentReplayBuffer(ReplayBuffer):
    """Keeps pixels and hands out their latents, of the world model as it is when a batch is drawn.

    ``OnlineWorldModel`` names the world model when training starts. It is no part of the replay's file.

    Raises:
        RuntimeError: when a batch is drawn before.
    """

    world: WorldModel | None = None

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        if self.world is None:
            raise RuntimeError(
                "this replay needs a world model to encode with: agent.learn(..., callback=OnlineWorldModel(world))"
            )
        rows = super().sample(batch_size, env)
        both = _encode(self.world, torch.cat([rows.observations, rows.next_observations]))
        now, then = both.chunk(2)
        return rows._replace(observations=now, next_observations=then)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"world": None}


def latent_policy_kwargs(world: WorldModel, **more: Any) -> dict[str, Any]:
    """``policy_kwargs`` for ``CnnPolicy`` of SAC or DQN."""
    return {
        "features_extractor_class": LatentFeatures,
        "features_extractor_kwargs": {"world": world},
        "normalize_images": False,  # the world model takes bytes
    } | more


def world_of(agent: BaseAlgorithm) -> WorldModel:
    """The world model whose latents an agent sees; it is part of the agent's file, as a pickle.

    Raises:
        ValueError: if the agent sees no latents.
    """
    for part in agent.policy.modules():
        if isinstance(part, LatentFeatures):
            return part.world
    raise ValueError("the agent sees no world model: policy_kwargs=latent_policy_kwargs(world)")


class OnlineWorldModel(BaseCallback):
    """Trains a world model on the replay of an off-policy agent, with its own loss, while the agent learns.

    Stable-Baselines3's replay holds transitions, so the windows are one step long. An agent and what it has learned
    are kept by ``agent.save``, ``agent.save_replay_buffer`` and ``torch.save(callback.state_dict(), path)``; to go on::

        agent = SAC.load("agent.zip", env)
        agent.load_replay_buffer("replay.pkl")
        callback = OnlineWorldModel(world_of(agent))
        callback.load_state_dict(torch.load(path, weights_only=True))

    Args:
        world: the model; its block must be 1.
        updates_per_step: updates for each environment step.
        batch_size: transitions in a batch.
        learning_rate: of Adam.
        max_grad_norm: largest gradient norm.
        seed: of what its loss draws.

    Raises:
        ValueError: for a world model with blocks, or one that the agent does not see; while training, if an episode
            ends without ``info["terminal_observation"]``.
        TypeError: at the start of training, if the agent has no replay of single transitions.
    """

    model: OffPolicyAlgorithm

    def __init__(
        self,
        world: WorldModel,
        updates_per_step: float = 1.0,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        max_grad_norm: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if world.spec.block != 1:
            raise ValueError(
                f"the world model must step as the environment does, its block is {world.spec.block}"
            )
        self.world, self.updates_per_step, self.batch_size = world, updates_per_step, batch_size
        self.max_grad_norm = max_grad_norm
        self.optimizer = torch.optim.Adam(world.parameters(), lr=learning_rate)
        self.generator = torch.Generator(next(world.parameters()).device).manual_seed(seed)
        self._owed = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Of the optimiser and of what the loss draws; the weights are the world model's."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "owed": self._owed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self._owed = state["owed"]

    def _on_training_start(self) -> None:
        replay = getattr(self.model, "replay_buffer", None)
        if type(replay) not in (ReplayBuffer, LatentReplayBuffer):
            raise TypeError(
                f"the agent must keep single transitions of pixels in a ReplayBuffer, got {type(replay).__name__}; use "
                "SAC, TD3 or DQN with n_steps=1"
            )
        if world_of(self.model) is not self.world:
            raise ValueError("the agent does not see this world model: OnlineWorldModel(world_of(agent))")
        if isinstance(replay, LatentReplayBuffer):
            replay.world = self.world
        keep_freed_memory()

    def _on_step(self) -> bool:
        agent, replay = self.model, self.model.replay_buffer
        assert isinstance(replay, ReplayBuffer)
        check_terminal_observations(self.locals["dones"], self.locals["infos"])
        if agent.num_timesteps <= agent.learning_starts or not replay.size():
            return True
        self._owed += self.updates_per_step * agent.n_envs
        for _ in range(int(self._owed)):
            for name, value in self._update(replay).items():
                self.logger.record(f"jepa/{name}", value.item())
        self._owed %= 1
        return True

    def _update(self, replay: ReplayBuffer) -> dict[str, Tensor]:
        rows = ReplayBuffer.sample(replay, self.batch_size)  # pixels, also of a replay that hands out latents
        actions = _model_actions(self.world.spec.action, rows.actions)
        batch = Batch(
            torch.stack([rows.observations, rows.next_observations], dim=1).to(torch.uint8),
            actions.unsqueeze(1),
            rows.rewards,
            rows.dones.bool(),
        )
        self.world.train()
        loss, terms = self.world.loss(batch, self.generator)
        descend(loss, [self.optimizer], self.world.parameters(), self.max_grad_norm)
        self.world.after_update()
        self.world.eval()
        return {name: value.detach() for name, value in terms.items()}


def _model_actions(action: ActionSpec, stored: Tensor) -> Tensor:
    """The replay keeps continuous actions scaled to [-1, 1] already, and choices as their index."""
    if action.kind == "discrete":
        return torch.nn.functional.one_hot(stored.long().flatten() - action.start, action.size).float()
    return stored.float()
