"""Stable-Baselines3's off-policy agents on latents of a world model that is trained at the same time.

``SB3LatentObservation`` gives an agent latents of a trained model. Here the agent's replay holds pixels, and each batch
is encoded with the current weights of the model::

    world = WorldModel(preset("laptop", world_spec(env)).model)
    agent = SAC(
        "CnnPolicy", env, policy_kwargs=latent_policy_kwargs(world), replay_buffer_class=LatentReplayBuffer
    )
    agent.learn(100_000, callback=OnlineWorldModel(world))

``LatentReplayBuffer`` encodes a batch once, when it is sampled; with Stable-Baselines3's own replay the actor and each
critic encode it again, five times in an update of SAC.

The agent's losses have no gradient in the encoder: only the world model's own loss trains it.
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
    """Features extractor that encodes pixels with a world model, without a gradient.

    Args:
        observation_space: uint8 pixels of the shape that the world model reads.
        world: the world model. It is not a submodule: the agent would train its weights and average them into its
            target networks.

    Raises:
        ValueError: if the environment shows pixels of another shape.
        TypeError: if they are not uint8.
    """

    def __init__(self, observation_space: spaces.Box, world: WorldModel) -> None:
        if tuple(observation_space.shape) != world.spec.pixels:
            raise ValueError(
                f"the world model reads pixels {world.spec.pixels}, the environment shows {observation_space.shape}; "
                f"PixelObservation(env, size=..., frames={world.spec.frames}) makes them"
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
        """Encodes pixels; latents from ``LatentReplayBuffer`` are returned unchanged."""
        return seen if seen.ndim == 2 else _encode(self.world, seen)


@torch.no_grad()
def _encode(world: WorldModel, pixels: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
    with evaluating(world):
        return world.encode(pixels.to(torch.uint8))


class LatentReplayBuffer(ReplayBuffer):
    """Stores pixels; sampled batches hold latents, encoded with the current weights of the world model.

    ``OnlineWorldModel`` sets the world model when training starts. It is not saved with the replay.

    Raises:
        RuntimeError: if a batch is sampled before the world model is set.
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
    """``policy_kwargs`` for the ``CnnPolicy`` of SAC or DQN; ``more`` are further ones."""
    return {
        "features_extractor_class": LatentFeatures,
        "features_extractor_kwargs": {"world": world},
        "normalize_images": False,  # the world model reads uint8
    } | more


def world_of(agent: BaseAlgorithm) -> WorldModel:
    """The world model whose latents an agent sees; ``agent.save`` pickles it with the agent, so load only your own.

    Raises:
        ValueError: if the agent does not see latents.
    """
    for part in agent.policy.modules():
        if isinstance(part, LatentFeatures):
            return part.world
    raise ValueError("the agent sees no world model: policy_kwargs=latent_policy_kwargs(world)")


class OnlineWorldModel(BaseCallback):
    """Trains a world model with its own loss on the replay of an off-policy agent, while the agent learns.

    Stable-Baselines3's replay holds transitions, so the windows are one step long. To save everything, use
    ``agent.save``, ``agent.save_replay_buffer`` and ``torch.save(callback.state_dict(), path)``; to resume::

        agent = SAC.load("agent.zip", env)
        agent.load_replay_buffer("replay.pkl")
        callback = OnlineWorldModel(world_of(agent))
        callback.load_state_dict(torch.load(path, weights_only=True))

    Args:
        world: the model; its block must be 1.
        updates_per_step: updates for each environment step; fractions accumulate.
        batch_size: transitions in a batch.
        learning_rate: of Adam.
        max_grad_norm: gradients are clipped to this norm.
        seed: of the random numbers in the world model's loss.

    Raises:
        ValueError: if the model's block is not 1; at the start of training, if the agent does not see this model; while
            training, if an episode ends without ``info["terminal_observation"]``.
        TypeError: at the start of training, if the agent's replay does not hold single transitions.
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
                "a latent step of the world model must be one environment step (block 1), its block is "
                f"{world.spec.block}"
            )
        self.world, self.updates_per_step, self.batch_size = world, updates_per_step, batch_size
        self.max_grad_norm = max_grad_norm
        self.optimizer = torch.optim.Adam(world.parameters(), lr=learning_rate)
        self.generator = torch.Generator(next(world.parameters()).device).manual_seed(seed)
        self._owed = 0.0

    def state_dict(self) -> dict[str, Any]:
        """State of the optimiser and of the random generator; the weights are in ``world``."""
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
        rows = ReplayBuffer.sample(replay, self.batch_size)  # pixels, even if the replay returns latents
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
    """Model actions; the replay stores continuous actions scaled to [-1, 1], and discrete ones as indices."""
    if action.kind == "discrete":
        return torch.nn.functional.one_hot(stored.long().flatten() - action.start, action.size).float()
    return stored.float()
