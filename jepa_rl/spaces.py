"""Converts Gymnasium spaces and environments to ``WorldSpec`` and ``ActionSpec``, and checks that a model fits.

The only module outside ``jepa_rl.agents`` and ``jepa_rl.envs`` that imports Gymnasium.
"""

from __future__ import annotations

import inspect
import json
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from torch import nn

from jepa_rl.files import plain
from jepa_rl.types import OBSERVATION, ActionSpec, WorldSpec


class EnvSpaces(NamedTuple):
    """Spaces of one environment, taken from any of the three interfaces of ``env_spaces``.

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
    if not is_vec_env(env):
        raise TypeError(
            "expected a gymnasium.Env, a gymnasium.vector.VectorEnv or a Stable-Baselines3 VecEnv, "
            f"got {type(env).__name__}"
        )
    try:
        frames = env.get_attr("metadata", indices=0)[0].get("frames", 1)
    except (
        AttributeError,
        NotImplementedError,
    ):  # a VecEnv need not consist of single environments
        frames = 1
    return EnvSpaces(env.observation_space, env.action_space, frames)


def is_vec_env(env: Any) -> bool:
    """Whether ``env`` has the interface of a Stable-Baselines3 ``VecEnv``; does not import Stable-Baselines3."""
    return all(hasattr(env, name) for name in ("step_async", "step_wait", "get_attr", "num_envs"))


def action_spec(space: gym.Space) -> ActionSpec:
    """A bounded 1-D ``Box``, a ``Discrete`` or a 1-D ``MultiDiscrete`` space as an ``ActionSpec``.

    Raises:
        TypeError: if the kind of space, or the dtype of a Box, is not supported.
        ValueError: if a Box is not flat or not bounded (see ``ActionSpec``).
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        choices, starts = tuple(space.nvec.tolist()), tuple(space.start.tolist())
        return ActionSpec("discrete", sum(choices), choices=choices, starts=starts)
    if not isinstance(space, spaces.Box):
        raise TypeError(
            f"actions must be a flat, bounded Box, Discrete or a flat MultiDiscrete, got {space}; convert the actions "
            "with gymnasium.wrappers.TransformAction first"
        )
    if len(space.shape) != 1:
        raise ValueError(
            f"a Box of actions must be flat, shape (size,), got shape {space.shape}; flatten it with "
            "gymnasium.wrappers.TransformAction"
        )
    bounds = tuple(space.low.tolist()), tuple(space.high.tolist())
    return ActionSpec("continuous", space.shape[0], *bounds, dtype=space.dtype.name)


def action_space(spec: ActionSpec) -> spaces.Space:
    """The Gymnasium space of these actions; the inverse of ``action_spec``."""
    if spec.choices:
        return spaces.MultiDiscrete(list(spec.choices), start=list(spec.starts))
    if spec.kind == "discrete":
        return spaces.Discrete(spec.size, start=spec.start)
    low, high = (np.array(bound, spec.dtype) for bound in (spec.low, spec.high))
    return spaces.Box(low, high, dtype=np.dtype(spec.dtype).type)


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


def one_seed_each(seed: int | list[int | None] | None, n: int) -> list[int | None]:
    """The seeds of ``n`` environments, as Gymnasium's vector environments count them up from one number.

    Raises:
        ValueError: for a list of another number of seeds.
    """
    seeds = seed if isinstance(seed, list) else [None if seed is None else seed + i for i in range(n)]
    if len(seeds) != n:
        raise ValueError(f"seed must be an int or {n} values, got {len(seeds)}")
    return seeds


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the axes of a 3-D picture are (channels, y, x) rather than (y, x, channels).

    A square picture shows which axes are its sides: (40, 32, 32) has its channels first, (10, 10, 16) last. Otherwise
    a picture has fewer channels than pixels: (3, 210, 160), (210, 160, 3). Three equal axes count as (y, x, channels).
    """
    first, middle, last = shape
    if (first == middle) != (middle == last):
        return middle == last
    return first < last


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
    if not channels_first(space.shape) and len(set(space.shape)) > 1:  # (16, 16, 16) may be either
        raise ValueError(f"expected pixels with channels first, got the shape {space.shape}; {fix}")
    return space


def world_spec(env: Any, block: int = 1) -> WorldSpec:
    """The ``WorldSpec`` of an environment that shows one picture.

    Args:
        env: environment, Gymnasium vector environment or SB3 ``VecEnv`` with uint8 (channels, y, x) pixels.
        block: environment steps in one latent step.

    Raises:
        ValueError, TypeError: if the pixels or the actions are not of a supported kind.
    """
    observation, action, frames = env_spaces(env)
    channels, y, x = pixel_space(observation).shape
    return WorldSpec((channels, y, x), frames, action_spec(action), block, source=source_of(env))


def observed_spec(observation: gym.Space, action: gym.Space, frames: int = 1, source: str = "") -> WorldSpec:
    """The ``WorldSpec`` of a model that reads every part of an observation: pictures, vectors, or a Dict of both.

    Args:
        observation: uint8 pixels (frames * channels, size, size), a flat Box, or a Dict of these.
        action: see ``action_spec``.
        frames: number of frames stacked in every picture.
        source: see ``WorldSpec``.

    Raises:
        ValueError: for observations of another kind; TypeError, ValueError: as ``action_spec``.
    """
    boxes = observation_boxes(observation)
    shapes = tuple((name, tuple(box.shape)) for name, box in boxes.items())
    pictures = [shape for _, shape in shapes if len(shape) == 3]
    pixels = (pictures[0][0], pictures[0][1], pictures[0][2]) if len(pictures) == 1 else None
    alone = len(shapes) == 1 and pixels is not None and shapes[0][0] == OBSERVATION
    return WorldSpec(pixels, frames, action_spec(action), parts=() if alone else shapes, source=source)


def observation_boxes(space: gym.Space) -> dict[str, spaces.Box]:
    """The Boxes of an observation by name: square uint8 pictures (c, y, x) and flat vectors.

    Raises:
        ValueError: for anything else.
    """
    parts = by_name(space.spaces if isinstance(space, spaces.Dict) else space)
    for name, box in parts.items():
        if not isinstance(box, spaces.Box):
            raise ValueError(
                f"{name} must be a Box, got {box}; flatten it (gymnasium.wrappers.FlattenObservation)"
            )
        picture = len(box.shape) == 3
        if picture and (box.dtype != np.uint8 or box.shape[1] != box.shape[2]):
            raise ValueError(
                f"{name} must be uint8 pixels of shape (channels, size, size), got {box}; wrap the environment in "
                "jepa_rl.envs.PixelObservation"
            )
        if picture and ("." in name or hasattr(nn.ModuleDict(), name)):  # each gets an encoder of this name
            raise ValueError(
                f"a picture cannot be called {name!r}: torch allows its modules no dots, and no names of their own "
                "methods; rename it with gymnasium.wrappers.TransformObservation"
            )
        if not picture and len(box.shape) != 1:
            raise ValueError(f"{name} must be a flat vector or pixels, got shape {box.shape}")
    return parts


def by_name(observation: Any) -> dict[str, Any]:
    """Observations by name: a Dict observation itself, any other under the name ``observation``."""
    return dict(observation) if isinstance(observation, dict) else {OBSERVATION: observation}


def check_fits(spec: WorldSpec, env: EnvSpaces) -> None:
    """Checks that an environment has the pictures, frames and actions of a model.

    Args:
        spec: of the model.
        env: of the environment, see ``env_spaces``.

    Raises:
        ValueError: if it does not; the message says how to fix it.
    """
    if spec.parts or spec.pixels is None:
        raise ValueError(
            f"the model reads {dict(spec.shapes)}; only a model of one picture serves here. JEPAMPC acts on all of them"
        )
    gray = ", grayscale=True" if spec.pixels[0] == spec.frames else ""
    fix = f"wrap it in PixelObservation(env, size={spec.pixels[1]}, frames={spec.frames}{gray})"
    pixels = pixel_space(env.observation).shape
    if pixels != spec.pixels:
        raise ValueError(f"the model reads uint8 pixels {spec.pixels}, the environment shows {pixels}; {fix}")
    if env.frames != spec.frames:
        raise ValueError(
            f"the model reads {spec.frames} stacked frames, the environment stacks {env.frames}; {fix} "
            "(an environment that stacks frames itself says so in metadata['frames'])"
        )
    action = action_spec(env.action)
    if not same_actions(action, spec.action):
        raise ValueError(
            f"the model is driven by {spec.action}, the environment by {action}; use the "
            "environment (and action wrappers) that the model was trained on"
        )


def same_actions(one: ActionSpec, other: ActionSpec) -> bool:
    """Whether two action specs are equal, up to rounding of the bounds."""
    if one.kind == "discrete" or other.kind == "discrete":
        return one == other
    return one.size == other.size and np.allclose(one.low, other.low) and np.allclose(one.high, other.high)


def source_of(env: Any) -> str:
    """How an environment was made, as JSON: ``[[id, arguments, time limit], [wrapper, arguments], ...]``.

    Args:
        env: environment, Gymnasium vector environment or Stable-Baselines3 ``VecEnv`` (its first environment).

    Returns:
        An empty string if this is unknown: it has no ``spec``, or runs in another process.
    """
    if is_vec_env(env) or isinstance(env, gym.vector.VectorEnv):
        inner = getattr(env.unwrapped, "envs", None)
        env = inner[0] if inner else None if is_vec_env(env) else env
    spec = getattr(env, "spec", None)
    if spec is None:
        return ""
    parts: list[Any] = [[spec.id, spec.kwargs, spec.max_episode_steps]]
    parts += [[wrapper.name, wrapper.kwargs or {}] for wrapper in spec.additional_wrappers]
    return json.dumps(parts, default=_plain_or_type, sort_keys=True)


def _plain_or_type(value: Any) -> Any:
    """JSON for values that are not plain: the type, since addresses differ between processes."""
    return plain(value) if isinstance(value, np.generic | np.ndarray) else type(value).__qualname__


def default_arguments(env_id: str) -> dict[str, Any]:
    """Default arguments of an environment, as JSON; empty if they are unknown."""
    spec = gym.registry.get(env_id)
    if spec is None or spec.entry_point is None:
        return {}
    try:
        creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(spec.entry_point)
        parameters = inspect.signature(creator).parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}
    given = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return json.loads(json.dumps(given | dict(spec.kwargs), default=lambda value: type(value).__qualname__))
