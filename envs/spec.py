"""Gymnasium spaces to the plain specifications that the modelling room understands."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from jepa_rl.types import ActionSpec, WorldSpec


class EnvSpaces(NamedTuple):
    """What one sub-environment shows and takes, whichever interface it came through.

    Attributes:
        observation: observation space of one environment.
        action: action space of one environment.
        frames: frames stacked in its pixels; 1 unless ``metadata["frames"]`` says otherwise, as
            ``PixelObservation`` does.
    """

    observation: gym.Space
    action: gym.Space
    frames: int


def env_spaces(env: Any) -> EnvSpaces:
    """Spaces of a Gymnasium environment, Gymnasium vector environment or Stable-Baselines3 ``VecEnv``.

    Raises:
        TypeError: if ``env`` is none of the three.
    """
    if isinstance(env, gym.Env):
        return EnvSpaces(env.observation_space, env.action_space, env.metadata.get("frames", 1))
    if isinstance(env, gym.vector.VectorEnv):
        return EnvSpaces(env.single_observation_space, env.single_action_space, env.metadata.get("frames", 1))
    if not isinstance(env, VecEnv):
        raise TypeError(
            "expected a gymnasium.Env, a gymnasium.vector.VectorEnv or a Stable-Baselines3 VecEnv, "
            f"got {type(env).__name__}"
        )
    try:
        frames = env.get_attr("metadata", indices=0)[0].get("frames", 1)
    except (
        AttributeError,
        NotImplementedError,
    ):  # a natively vectorised VecEnv need not have sub-environments
        frames = 1
    return EnvSpaces(env.observation_space, env.action_space, frames)


def action_spec(space: gym.Space) -> ActionSpec:
    """A bounded 1-D ``Box`` or a ``Discrete`` space as an ``ActionSpec``.

    Raises:
        TypeError: if the kind of space, or the dtype of a Box, is not supported.
        ValueError: if a Box is not flat or not bounded (see ``ActionSpec``).
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", int(space.n), start=int(space.start))
    if not isinstance(space, spaces.Box):
        raise TypeError(
            f"actions must be a bounded 1-D Box or a Discrete space, got {space}; convert the actions "
            "with gymnasium.wrappers.TransformAction first"
        )
    if len(space.shape) != 1:
        raise ValueError(
            f"a Box of actions must be flat, shape (size,), got shape {space.shape}; flatten it with "
            "gymnasium.wrappers.TransformAction"
        )
    bounds = tuple(space.low.tolist()), tuple(space.high.tolist())
    return ActionSpec("continuous", space.shape[0], *bounds, dtype=space.dtype.name)


def check_actions(actions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Finite actions as float64.

    Raises:
        ValueError: for another shape, NaN or infinity.
    """
    actions = np.asarray(actions, np.float64)
    if actions.shape != shape or not np.isfinite(actions).all():
        raise ValueError(
            f"actions must be finite with shape {shape}, got shape {actions.shape}: {actions.tolist()}"
        )
    return actions


def channels_first(shape: tuple[int, int, int]) -> bool:
    """Whether a 3-D image shape is (channels, y, x): its first axis is shorter than its last.

    (3, 64, 64) and (2, 64, 64) are channels first; (210, 160, 3) and, being a tie, (3, 3, 3) are not.
    """
    return shape[0] < shape[2]


def pixel_space(space: gym.Space) -> spaces.Box:
    """The uint8 ``(channels, y, x)`` part of an observation space: the Box itself, or ``pixels`` of a Dict.

    Raises:
        ValueError: if there is no such part; the message says how to make one.
    """
    fix = "wrap the environment in jepa_rl.envs.PixelObservation"
    if isinstance(space, spaces.Dict):
        if "pixels" not in space.spaces:
            raise ValueError(
                f"expected a Dict observation with the key 'pixels', got the keys {list(space.spaces)}; "
                f"{fix}(env, key=<the image's key>)"
            )
        space = space["pixels"]
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        raise ValueError(f"expected uint8 pixels of shape (channels, y, x), got {space}; {fix}")
    if not channels_first(space.shape):
        raise ValueError(f"expected pixels with channels first, got the shape {space.shape}; {fix}")
    return space


def world_spec(env: Any, block: int = 1) -> WorldSpec:
    """What a world model of this environment reads and is driven by.

    Args:
        env: environment, Gymnasium vector environment or SB3 ``VecEnv`` with uint8 (channels, y, x) pixels.
        block: environment steps in one latent step.

    Raises:
        ValueError, TypeError: if the pixels or the actions are not of a supported kind.
    """
    observation, action, frames = env_spaces(env)
    channels, y, x = pixel_space(observation).shape
    return WorldSpec((channels, y, x), frames, action_spec(action), block)
