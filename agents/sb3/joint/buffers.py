"""Buffers of Stable-Baselines3 that store pixels and give what the agent reads of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int64
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor

from jepa_rl.acting import scalar_rewards
from jepa_rl.data.replay import EpisodeReplay, discounted
from jepa_rl.spaces import action_spec, by_name, observation_boxes
from jepa_rl.training.joint import JointEncoder, ReturnScale
from jepa_rl.types import Batch, ControlBatch

ACTING_BATCH = 512  # pictures of a rollout that are read at a time


class JEPAReplayBuffer(ReplayBuffer):
    """Whole episodes of pixels, each frame stored once; sampled batches hold what the agent reads of them.

    The arguments are those of ``ReplayBuffer``, and:

    Args:
        frames: stacked in every picture.
        steps: that the JEPA objective predicts ahead.
        n_steps: rewards in a value target.
        gamma: discount of one step.
        seed: of the draws.

    Raises:
        ValueError: for ``optimize_memory_usage`` (each frame is stored once as it is), more than memory, or ``n_steps``
            below 1.
    """

    encoder: JointEncoder  # set by the algorithm

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        *,
        frames: int = 1,
        steps: int = 1,
        n_steps: int = 1,
        gamma: float = 0.99,
        seed: int | None = None,
    ) -> None:
        if optimize_memory_usage:
            raise ValueError("this replay stores each frame once already; leave out optimize_memory_usage")
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}")
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.optimize_memory_usage, self.handle_timeout_termination = False, True
        self.steps, self.n_steps, self.gamma = steps, n_steps, gamma
        self.action = action_spec(action_space)
        self.rng = np.random.default_rng(seed)
        self.frames, self.capacity = frames, buffer_size
        self._episodes: EpisodeReplay | None = None

    @property
    def episodes(self) -> EpisodeReplay:
        """The episodes. Memory is taken when they are first asked for: an agent that only acts needs none."""
        if self._episodes is None:
            boxes = observation_boxes(self.observation_space)
            self._episodes = EpisodeReplay(
                boxes, self.action.size, self.capacity, frames=self.frames, num_envs=self.n_envs
            )
        return self._episodes

    def size(self) -> int:
        """Steps of episodes that are over."""
        return 0 if self._episodes is None else len(self._episodes)

    def reset(self) -> None:
        """Forgets everything."""
        self._episodes = None

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """One step of every environment, see ``ReplayBuffer``; continuous actions are scaled to [-1, 1].

        Raises:
            ValueError: for NaN or infinite rewards or actions; nothing is stored then.
        """
        if self.action.kind == "discrete":
            action = self.action.encode(np.asarray(action).reshape(self.n_envs, *self.action.shape))
        cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        done, rewards = np.asarray(done, bool), scalar_rewards(reward, self.n_envs)
        self.episodes.add(
            by_name(np.asarray(obs)),
            np.asarray(action, np.float32).reshape(self.n_envs, self.action.size),
            rewards,
            by_name(np.asarray(next_obs)),
            done & ~cut,
            done,
        )
        self.encoder.returns.follow(rewards, done)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """A batch as the agent reads it. The present states get the gradient that the encoder learns from.

        Args:
            batch_size: rows.
            env: scales the rewards, if it is a ``VecNormalize`` that does; otherwise ``ReturnScale`` does.
        """
        n, reach = self.n_steps, max(self.steps, self.n_steps)
        drawn = self.episodes.sample(batch_size, reach, self.rng)
        rewards = drawn.rewards.numpy()
        if env is not None and env.norm_reward:
            rewards = self._normalize_reward(rewards, env)
        elif self.encoder.config.scale_rewards:
            rewards = self.encoder.returns.scaled(rewards)
        assert drawn.valid is not None, "an EpisodeReplay says which steps are valid"
        h, counted = self.steps, drawn.valid.clone()
        counted[:, n:] = False
        # From each step up to the state behind the last reward that counts.
        returns = discounted(rewards * counted.numpy(), self.gamma).astype(np.float32)
        taken = counted.sum(1)
        left = (taken[:, None] - torch.arange(reach)).clamp_min(0)
        windows = ControlBatch(
            drawn.pixels[:, : h + 1], drawn.actions[:, :h], torch.from_numpy(rewards[:, :h]), drawn.terminated[:, :h],
            drawn.valid[:, :h], returns=torch.from_numpy(returns[:, :h]), discounts=self.gamma ** left[:, :h].float(),
            ended=(drawn.terminated & counted).any(1), future=drawn.pixels[torch.arange(batch_size), taken],
        ).to(self.device)  # fmt: skip
        seen, actions = self.encoder.latents(windows), windows.actions[:, 0]
        if self.action.kind == "discrete":
            actions = actions.argmax(-1, keepdim=True)
        return ReplayBufferSamples(
            observations=seen.now,
            actions=actions,
            next_observations=seen.later,
            dones=windows.ended.unsqueeze(1).float(),
            rewards=windows.returns[:, :1],
            discounts=windows.discounts[:, :1],
        )


class JEPARolloutBuffer(RolloutBuffer):
    """A rollout of pixels; its minibatches hold what the agent read of them when it acted.

    Windows of the JEPA objective, for ``encoded``, end where the rollout ends.

    Args:
        steps: that the JEPA objective predicts ahead.
        squashed: whether the policy's actions are scaled to [-1, 1] (gSDE with ``squash_output``).
        seed: of the order of rows. The other arguments are those of ``RolloutBuffer``.
    """

    encoder: JointEncoder  # set by the algorithm

    def __init__(
        self, *args: Any, steps: int = 1, squashed: bool = False, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.steps, self.squashed, self.rng = steps, squashed, np.random.default_rng(seed)
        self.action = action_spec(self.action_space)

    def reset(self) -> None:
        """As in Stable-Baselines3."""
        super().reset()
        self._acted: Tensor | None = None

    @property
    def acted(self) -> Float[Tensor, "t n d"]:
        """What the agent reads of the rollout; the first time it is asked for decides with which weights."""
        if self._acted is None:
            pictures = torch.from_numpy(self.observations).flatten(0, 1)
            read = [self.encoder.acting(part.to(self.device)) for part in pictures.split(ACTING_BATCH)]
            self._acted = torch.cat(read).unflatten(0, (-1, self.n_envs))
        return self._acted

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Minibatches of one pass over the rollout, in random order."""
        assert self.full, "SB3 asks for minibatches of a whole rollout"
        for at in self._orders(batch_size or self.buffer_size * self.n_envs):
            floats = (self.values, self.log_probs, self.advantages, self.returns)
            yield RolloutBufferSamples(
                self.acted[at],
                self.to_torch(self.actions[at].astype(np.float32)),
                *(self.to_torch(values[at]) for values in floats),
            )

    def encoded(self, batch_size: int) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """One pass in random order: what the agent read "b d", what it reads of the same pictures now, through which
        the encoder gets a gradient, and the returns "b"."""
        for at in self._orders(batch_size):
            yield self.acted[at], self.encoder.latents(self.windows(*at)).now, self.to_torch(self.returns[at])

    def _orders(self, size: int) -> Iterator[tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]]:
        """Steps and environments of the rows, in random order, ``size`` at a time."""
        order = self.rng.permutation(self.buffer_size * self.n_envs)
        for first in range(0, len(order), size):
            yield np.divmod(order[first : first + size], self.n_envs)

    def windows(self, step: Int64[np.ndarray, " b"], env: Int64[np.ndarray, " b"]) -> Batch:
        """Windows from given steps of given environments; valid until the episode or the rollout ends."""
        offset = step[:, None] + np.arange(self.steps + 1)
        last = self.buffer_size - 1
        clipped, column = np.minimum(offset, last), env[:, None]
        follows = (offset[:, 1:] <= last) & (self.episode_starts[clipped, column] == 0)[:, 1:]
        valid = np.logical_and.accumulate(follows, axis=1)
        # Beyond the end the last state is repeated.
        state = np.minimum(clipped, (step + valid.sum(1))[:, None])
        actions = self.actions[clipped[:, :-1], column]
        if self.action.kind == "discrete":
            model_actions = self.action.encode(
                actions.reshape(*valid.shape, *self.action.shape).astype(np.int64)
            )
        else:
            bounded = actions if self.squashed else self.action.encode(self.action.clip(actions))
            model_actions = np.clip(bounded, -1.0, 1.0).astype(np.float32)
        return Batch(
            torch.from_numpy(self.observations[state, column]).to(self.device),
            torch.from_numpy(model_actions).to(self.device),
            torch.from_numpy(self.rewards[clipped[:, :-1], column]).to(self.device),
            torch.zeros(valid.shape, dtype=torch.bool, device=self.device),
            torch.from_numpy(valid).to(self.device),
        )


class ScaledRewards(VecEnvWrapper):
    """Rewards divided by a ``ReturnScale`` that follows them. Monitors below see them as they were.

    Args:
        venv: the environments.
        scale: their scale.
    """

    def __init__(self, venv: VecEnv, scale: ReturnScale) -> None:
        super().__init__(venv)
        self.scale = scale

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, over, infos = self.venv.step_wait()
        rewards = scalar_rewards(rewards, self.num_envs)
        self.scale.follow(rewards, over)
        return observations, self.scale.scaled(rewards), over, infos
