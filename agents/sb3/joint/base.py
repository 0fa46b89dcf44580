"""What Stable-Baselines3's algorithms need to share an encoder with a JEPA objective."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv

from jepa_rl.agents.sb3.checks import check_terminal_observations
from jepa_rl.agents.sb3.joint.buffers import JEPAReplayBuffer, JEPARolloutBuffer
from jepa_rl.agents.sb3.joint.features import JointFeatures, jepa_policy_kwargs
from jepa_rl.agents.sb3.saved import SafeLoading
from jepa_rl.agents.sb3.whole_episodes import WholeEpisodes, replay_path
from jepa_rl.control import world_config
from jepa_rl.data.replay import EpisodeReplay
from jepa_rl.memory import keep_freed_memory
from jepa_rl.spaces import env_spaces, observed_spec, pixel_space, source_of
from jepa_rl.training.joint import JointConfig, JointEncoder
from jepa_rl.world_model import WorldModel


class Joint(SafeLoading):
    """What the algorithms share: the encoder, its place in files, and its learning rate.

    Attributes:
        joint: the encoder, and the world model around it.
        frames: stacked in every picture.
    """

    joint: JointEncoder
    gamma: float
    encoder_rate: ClassVar[float] = 1.0  # where JointConfig names none
    known_classes: ClassVar[tuple[type, ...]] = (JointFeatures, JEPAReplayBuffer, JEPARolloutBuffer)

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
        options = world_config(spec, {"latent_dim": config.latent_dim} | config.world)
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
            group["lr"] *= self.config.encoder_rate or self.encoder_rate

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
