"""SAC, TD3, DQN and PPO whose encoder learns from their own loss and from a JEPA objective.

    agent = JEPASAC("CnnPolicy", PixelObservation(env))
    agent.learn(50_000)
    latent_env = wrap(env, agent.world)

Everything else is Stable-Baselines3's: its losses, networks, callbacks, ``save``, ``load`` and ``evaluate_policy``.
That a self-predictive loss on the agent's own data makes pixels learnable in few steps is known from SPR (Schwarzer et
al. 2021, arXiv:2007.05929) for DQN and MLR (Yu et al. 2022, arXiv:2201.12096) for SAC; random shifts come from DrQ
(Kostrikov et al. 2020, arXiv:2004.13649). Here the objective is any of this library's, the default that of JEPAMPC.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from jepa_rl.agents.sb3.baselines import SHORT_DQN
from jepa_rl.agents.sb3.checks import check_terminal_observations
from jepa_rl.agents.sb3.joint.buffers import JEPAReplayBuffer, JEPARolloutBuffer, ScaledRewards
from jepa_rl.agents.sb3.joint.features import JointFeatures, jepa_policy_kwargs
from jepa_rl.agents.sb3.whole_episodes import WholeEpisodes, replay_path
from jepa_rl.control import world_config
from jepa_rl.data.replay import EpisodeReplay
from jepa_rl.memory import keep_freed_memory
from jepa_rl.spaces import env_spaces, observed_spec, pixel_space, source_of
from jepa_rl.training.joint import JointConfig, JointEncoder
from jepa_rl.world_model import WorldModel

REPLAY_SETTINGS = {
    "buffer_size", "gradient_steps", "learning_starts", "optimize_memory_usage", "replay_buffer_class",
    "replay_buffer_kwargs", "train_freq",
}  # fmt: skip


class Joint(BaseAlgorithm):
    """What the algorithms share: the encoder, its place in files, and its learning rate.

    Attributes:
        joint: the encoder, and the world model around it.
        frames: stacked in every picture.
    """

    joint: JointEncoder
    gamma: float
    objective: ClassVar[dict[str, Any]] = {}  # fields of WorldModelConfig, where no objective is named

    def __init__(self, policy: Any, env: GymEnv | str | None, *args: Any, **settings: Any) -> None:
        given = settings.pop("policy_kwargs", None)
        settings["policy_kwargs"] = jepa_policy_kwargs() | (given or {})
        self.frames, self.source = 1, ""
        super().__init__(policy, env, *args, **settings)

    @property
    def config(self) -> JointConfig:
        """How the encoder learns."""
        options = self.policy_kwargs.get("features_extractor_kwargs", {})
        if self.policy_kwargs.get("features_extractor_class") is not JointFeatures or "joint" not in options:
            raise ValueError(
                f"{type(self).__name__} has a features extractor of its own; pass "
                "policy_kwargs=jepa_policy_kwargs(...), with other policy_kwargs inside the parentheses"
            )
        if self.policy_kwargs.get("normalize_images", True):
            raise ValueError("the encoder reads uint8 pixels; leave out normalize_images=True")
        found: JointConfig = options["joint"]
        return found

    @property
    def world(self) -> WorldModel:
        """The world model: ``wrap(env, agent.world)``, ``agent.world.save(path)``."""
        return self.joint.world

    def _setup_model(self) -> None:
        config = self.config
        spec = observed_spec(self.observation_space, self.action_space, self.frames, self.source)
        changes = config.world if "objective" in config.world else self.objective | config.world
        options = world_config(spec, {"latent_dim": config.latent_dim} | changes)
        keep_freed_memory()
        super()._setup_model()  # type: ignore[safe-super]  # of the algorithm beside this class; seeds torch
        world = WorldModel(options).to(self.device)
        seed = 0 if self.seed is None else self.seed
        self.joint = JointEncoder(world, config, self.gamma, seed)
        for part in self.policy.modules():
            if isinstance(part, JointFeatures):
                part.use(self.joint)

    def _read_env(self) -> None:
        """Checks the spaces, and asks the environment for its frames and how it is made."""
        self._check_spaces()
        if self.env is not None:
            self.frames, self.source = env_spaces(self.env).frames, source_of(self.env)

    def _check_spaces(self) -> None:
        shown, action = self.observation_space, self.action_space
        if not isinstance(shown, spaces.Box):
            raise ValueError(
                f"{type(self).__name__} learns from one picture, got {shown}; use PixelObservation(env) without "
                "keep_state, or JEPAMPC, which reads Dicts"
            )
        if shown.dtype != np.uint8 and len(shown.shape) == 3:
            raise ValueError(
                f"the encoder reads uint8 pixels, got {shown.dtype}; leave out what scales them, such as VecNormalize "
                "(norm_obs=False lets it scale rewards alone)"
            )
        pixel_space(shown)
        if np.any(getattr(action, "start", 0)):
            raise ValueError(
                f"Stable-Baselines3 counts choices from 0, got {action}; shift them with "
                "gymnasium.wrappers.TransformAction"
            )

    def _setup_learn(self, *args: Any, **options: Any) -> Any:
        self.joint.returns.forget()
        return super()._setup_learn(*args, **options)

    def _begin_update(self) -> None:
        self._update_learning_rate(self.joint.optimizer)
        for group in self.joint.optimizer.param_groups:
            group["lr"] *= self.config.encoder_rate

    def _end_update(self) -> None:
        self.joint.update()
        for name, value in self.joint.terms.items():
            self.logger.record(f"jepa/{name}", value.item())

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "joint"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return [*modules, "joint", "joint.optimizer"], tensors


class JointOffPolicy(Joint, WholeEpisodes):
    """Off-policy algorithms: the replay stores whole episodes, and training begins when the first is over.

    ``load`` and ``load_replay_buffer`` go on with the same weights, optimisers and episodes; batches are drawn anew.
    """

    def _setup_model(self) -> None:
        given = self.replay_buffer_class
        if given is not None and not issubclass(given, JEPAReplayBuffer):
            raise ValueError(
                f"the replay must be a JEPAReplayBuffer, which makes latents of pixels, got {given.__name__}; leave "
                "out replay_buffer_class"
            )
        self.replay_buffer_class = given or JEPAReplayBuffer
        self._read_env()
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, got {self.batch_size}: objectives compare pictures"
            )
        self.replay_buffer_kwargs = self.replay_buffer_kwargs | {
            "frames": self.frames,
            "steps": self.config.steps,
            "gamma": self.gamma,
            "seed": self.seed,
        }
        # Stable-Baselines3 warns that n_steps is ignored by replays of others; this one does not ignore it.
        n_steps, self.n_steps = self.n_steps, 1
        self.replay_buffer_kwargs["n_steps"] = n_steps
        try:
            super()._setup_model()
        finally:
            self.n_steps = n_steps
        self._replay.encoder = self.joint
        if self.env is not None:
            _ = self._episodes  # raises before training if it does not fit into memory

    @property
    def _replay(self) -> JEPAReplayBuffer:
        assert isinstance(self.replay_buffer, JEPAReplayBuffer)
        return self.replay_buffer

    @property
    def _episodes(self) -> EpisodeReplay:
        return self._replay.episodes

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """As in Stable-Baselines3; nothing happens before the first episode is over."""
        if not self._replay.size():
            return
        self._begin_update()
        super().train(gradient_steps, batch_size)
        self._end_update()

    # -- whole episodes ----------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kw: Any,
    ) -> Any:
        self._end_running_episodes(reset_num_timesteps)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kw)

    def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        self._unstored = True
        return super()._sample_action(*args, **kwargs)

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: np.ndarray, dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        check_terminal_observations(dones, infos)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._unstored = False

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """Writes the finished episodes to one safetensors file, whatever the suffix."""
        self._episodes.save(replay_path(path))

    def load_replay_buffer(
        self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True
    ) -> None:
        """Replaces the replay's episodes by those of a file of ``save_replay_buffer``; no code in it is executed.

        Raises:
            ValueError, FileNotFoundError: as ``EpisodeReplay.load``.
        """
        self._episodes.load(replay_path(path), replace=True)
        if not self.joint.returns.count:  # an agent that has played nothing yet
            for rewards in self._episodes.rewards():
                last = np.arange(len(rewards)) == len(rewards) - 1
                for reward, over in zip(rewards[:, None], last[:, None], strict=True):
                    self.joint.returns.follow(reward, over)


class JEPASAC(JointOffPolicy, SAC):
    """SAC from pixels. The defaults differ from SAC's where few updates need it; other arguments are SAC's.

    Args:
        policy: ``"CnnPolicy"``.
        env: shows uint8 pixels, such as ``PixelObservation(env)``.
        learning_rate: of agent and encoder.
        buffer_size: states kept, one more for each episode than steps: 12 kB each for a frame of 64 x 64 in colour.
        batch_size, tau, n_steps, ent_coef: see ``SAC``. One-step value targets learn the swing-up much more slowly.
        **settings: of ``SAC``; ``policy_kwargs=jepa_policy_kwargs(...)``.

    Raises:
        ValueError: for other observations, a foreign features extractor or replay, a replay larger than memory; while
            training for NaN or infinite rewards, observations or losses.
    """

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        *,
        buffer_size: int = 100_000,
        batch_size: int = 128,
        tau: float = 0.02,
        n_steps: int = 5,
        ent_coef: str | float = "auto_0.01",
        **settings: Any,
    ) -> None:
        settings |= {
            "buffer_size": buffer_size,
            "batch_size": batch_size,
            "tau": tau,
            "n_steps": n_steps,
            "ent_coef": ent_coef,
        }
        super().__init__(policy, env, learning_rate=learning_rate, **settings)


class JEPATD3(JointOffPolicy, TD3):
    """TD3 from pixels; arguments and errors as ``JEPASAC``."""

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        *,
        buffer_size: int = 100_000,
        batch_size: int = 128,
        tau: float = 0.02,
        n_steps: int = 5,
        **settings: Any,
    ) -> None:
        settings |= {"buffer_size": buffer_size, "batch_size": batch_size, "tau": tau, "n_steps": n_steps}
        super().__init__(policy, env, learning_rate=learning_rate, **settings)


class JEPADQN(JointOffPolicy, DQN):
    """DQN from pixels; as ``JEPASAC``. Its other defaults are ``SHORT_DQN``, for runs of some ten thousand steps."""

    def __init__(
        self, policy: Any, env: GymEnv | str | None, *args: Any, buffer_size: int = 100_000, **settings: Any
    ) -> None:
        positional = {"learning_rate"} if args else set()
        defaults = {name: value for name, value in SHORT_DQN.items() if name not in positional}
        own = {"buffer_size": buffer_size, "n_steps": 5}
        super().__init__(policy, env, *args, **defaults | own | settings)


class JEPAPPO(Joint, PPO):
    """PPO from pixels; other arguments are PPO's.

    The objective learns on the windows of each rollout, without random shifts: the policy's ratio compares a picture
    with itself. In training latents are normalised by the statistics of the minibatch, so minibatches should be large,
    and a ``target_kl`` not small. The first rollout only measures the statistics for acting.

    Args:
        policy: ``"CnnPolicy"``.
        env: shows uint8 pixels, such as ``PixelObservation(env)``.
        learning_rate: of agent and encoder.
        **settings: of ``PPO``; ``policy_kwargs=jepa_policy_kwargs(...)``.

    Raises:
        ValueError: as ``JEPASAC``.
    """

    rollout_buffer: JEPARolloutBuffer
    objective: ClassVar[dict[str, Any]] = {"objective_options": {"shift": 0}}

    def __init__(self, policy: Any, env: GymEnv | str | None, *args: Any, **settings: Any) -> None:
        if foreign := sorted(settings.keys() & REPLAY_SETTINGS):
            raise ValueError(f"PPO learns on rollouts and has no replay; leave out {', '.join(foreign)}")
        super().__init__(policy, env, *args, **settings)

    def _setup_model(self) -> None:
        given = self.rollout_buffer_class
        if given is not None and not issubclass(given, JEPARolloutBuffer):
            raise ValueError(
                f"the rollouts must be stored in a JEPARolloutBuffer, which makes latents of pixels, got "
                f"{given.__name__}; leave out rollout_buffer_class"
            )
        self._read_env()
        self.rollout_buffer_class = given or JEPARolloutBuffer
        self.rollout_buffer_kwargs = self.rollout_buffer_kwargs | {
            "steps": self.config.steps,
            "squashed": bool(self.policy_kwargs.get("squash_output", False)),
            "seed": self.seed,
        }
        super()._setup_model()
        self.rollout_buffer.encoder = self.joint

    def train(self) -> None:
        """As in Stable-Baselines3.

        Raises:
            ValueError: for NaN or infinite rewards; nothing is learned then.
        """
        rewards = self.rollout_buffer.rewards
        if not np.isfinite(rewards).all():
            raise ValueError(
                f"rewards hold NaN or infinite values: {rewards[~np.isfinite(rewards)][:5]}; check the environment"
            )
        if self.joint.measured:
            self._begin_update()
            super().train()
            self._end_update()
        # The next rollout acts with the statistics of the new weights.
        self.joint.settle(self._seen_pixels())

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As in Stable-Baselines3, with scaled rewards, see ``JointConfig.scale_rewards``."""
        normalised = unwrap_vec_normalize(env)
        if self.config.scale_rewards and not (normalised and normalised.norm_reward):
            env = ScaledRewards(env, self.joint.returns)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def _seen_pixels(self, count: int = 512) -> Any:
        """Pixels of the rollout, evenly spaced."""
        seen = self.rollout_buffer.observations
        flat = seen.reshape(-1, *seen.shape[2:])
        rows = np.unique(np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(int))
        return self.rollout_buffer.to_torch(flat[rows])
