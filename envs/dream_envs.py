"""Dreams as environments of Gymnasium and Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Float
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
from torch import Tensor

from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.envs.dream import Decoder, Dream, RewardingWorld
from jepa_rl.spaces import action_space, one_seed_each

# Of a ``Dream``; shared by all of its rows.
SETTINGS = ("horizon", "futures", "penalty", "starts", "model")


def latent_space(latent_dim: int) -> spaces.Box:
    """The space of latents, which have no bounds."""
    return spaces.Box(-np.inf, np.inf, (latent_dim,), np.float32)


class DreamEnv(gym.Env[np.ndarray, Any]):
    """One dream as a Gymnasium environment. Arguments and errors as ``Dream``.

    Args:
        decoder: draws the states for ``render``.
        render_mode: ``"rgb_array"`` or None.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self,
        model: RewardingWorld,
        starts: Float[Tensor, "m d"] | LatentEpisodes,
        horizon: int = 15,
        futures: int = 1,
        penalty: float = 0.0,
        decoder: Decoder | None = None,
        render_mode: str | None = None,
        *,
        residuals: float = 0.0,
    ) -> None:
        self.dream = Dream(model, starts, 1, horizon, futures, penalty, residuals=residuals)
        self.observation_space = latent_space(model.world.latent_dim)
        self.action_space = action_space(self.dream.spec)
        self.decoder, self.render_mode = decoder, render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.dream.seed(seed)
        self.dream.start(np.ones(1, bool))
        return self.dream.latents[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        found = self.dream.step(np.asarray(action)[None])
        terminated, truncated = bool(found.terminated[0]), bool(found.truncated[0])
        return found.latents[0], float(found.rewards[0]), terminated, truncated, {}

    def render(self) -> np.ndarray | None:
        return None if self.render_mode is None else self.dream.pictures(self.decoder)[0]


class DreamVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Dreams as a Gymnasium vector environment; a new episode starts in the step in which one ended (SAME_STEP).

    Arguments and errors as ``Dream``; ``decoder`` and ``render_mode`` as ``DreamEnv``.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **DreamEnv.metadata,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        model: RewardingWorld,
        starts: Float[Tensor, "m d"] | LatentEpisodes,
        num_envs: int = 256,
        horizon: int = 15,
        futures: int = 1,
        penalty: float = 0.0,
        decoder: Decoder | None = None,
        render_mode: str | None = None,
        *,
        residuals: float = 0.0,
    ) -> None:
        self.dream = Dream(model, starts, num_envs, horizon, futures, penalty, residuals=residuals)
        self.num_envs, self.decoder, self.render_mode = num_envs, decoder, render_mode
        self.single_observation_space = latent_space(model.world.latent_dim)
        self.single_action_space = action_space(self.dream.spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts all dreams, or those of ``options["reset_mask"]``. They share one generator, which all seeds seed.

        Raises:
            ValueError: for a list of another number of seeds, or a mask of another shape.
        """
        mask = (options or {}).get("reset_mask")
        rows = np.ones(self.num_envs, bool) if mask is None else np.asarray(mask, bool)
        if rows.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must have shape ({self.num_envs},), got {rows.shape}")
        if isinstance(seed, list):
            given = [value for value in one_seed_each(seed, self.num_envs) if value is not None]
            seed = int(np.random.SeedSequence(given).generate_state(1)[0]) if given else None
        super().reset(seed=seed)
        if seed is not None:
            self.dream.seed(seed)
        self.dream.start(rows)
        return self.dream.latents, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        found, latents = self.dream.step_and_restart(actions)
        ended = found.ended
        infos: dict[str, Any] = {}
        if ended.any():
            final = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(ended):
                final[row] = found.latents[row]
            infos = {
                "final_obs": final,
                "_final_obs": ended.copy(),
                "final_info": {},
                "_final_info": ended.copy(),
            }
        return latents, found.rewards, found.terminated, found.truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        return None if self.render_mode is None else tuple(self.dream.pictures(self.decoder))


class DreamVecEnv(VecEnv):
    """Dreams as a Stable-Baselines3 ``VecEnv``: ``PPO("MlpPolicy", VecMonitor(DreamVecEnv(model, starts)))``.

    ``VecMonitor`` logs returns of dreams as ``rollout/ep_rew_mean``. Arguments and errors as ``Dream``; ``decoder`` and
    ``render_mode`` as ``DreamEnv``.

    Raises:
        ValueError: also if choices do not count from 0, as Stable-Baselines3 takes them to.
    """

    def __init__(
        self,
        model: RewardingWorld,
        starts: Float[Tensor, "m d"] | LatentEpisodes,
        num_envs: int = 256,
        horizon: int = 15,
        futures: int = 1,
        penalty: float = 0.0,
        decoder: Decoder | None = None,
        render_mode: str | None = None,
        *,
        residuals: float = 0.0,
    ) -> None:
        self.dream = Dream(model, starts, num_envs, horizon, futures, penalty, residuals=residuals)
        if any((self.dream.spec.start, *self.dream.spec.starts)):
            raise ValueError(
                "Stable-Baselines3 counts choices from 0, but this world's start at "
                f"{self.dream.spec.starts or self.dream.spec.start}; train on an environment whose choices do, too"
            )
        self.decoder, self.render_mode = decoder, render_mode  # asked for by VecEnv's constructor
        self._actions: np.ndarray | None = None
        super().__init__(num_envs, latent_space(model.world.latent_dim), action_space(self.dream.spec))

    def reset(self) -> np.ndarray:
        """Starts all dreams. They share one generator, which the first of the numbers of ``seed`` seeds."""
        if self._seeds[0] is not None:
            self.dream.seed(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self.dream.start(np.ones(self.num_envs, bool))
        return self.dream.latents

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        assert self._actions is not None, "step_async comes first"
        found, latents = self.dream.step_and_restart(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(found.ended).tolist():
            infos[row] = {
                "terminal_observation": found.latents[row],
                "TimeLimit.truncated": bool(found.truncated[row]),
            }
        return latents, found.rewards, found.ended, infos

    def close(self) -> None:
        """Does nothing: there is nothing to close."""

    def get_images(self) -> Sequence[np.ndarray | None]:
        return list(self.dream.pictures(self.decoder))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The setting of that name, which all dreams share, once for each of ``indices``."""
        owner = self.dream if attr_name in SETTINGS else self
        return [getattr(owner, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets the decoder. Everything else was checked when the dreams were made.

        Raises:
            AttributeError: for another name; make a new ``DreamVecEnv``.
            ValueError: if ``indices`` are not all dreams, which share their settings.
        """
        if attr_name != "decoder":
            raise AttributeError(f"{attr_name} of dreams cannot be set, only decoder; make a new DreamVecEnv")
        if len(set(self._get_indices(indices))) != self.num_envs:
            raise ValueError("dreams share their decoder: it can only be set for all of them")
        self.decoder = value

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        raise AttributeError(f"dreams are no environments of their own and have no method {method_name}")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))
