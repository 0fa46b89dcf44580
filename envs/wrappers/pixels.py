"""The wrapper that makes stacked uint8 pictures the observations of any environment."""

from __future__ import annotations

from typing import Any

import cv2
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError

from jepa_rl.acting import scalar_reward
from jepa_rl.envs.gl import keep_viewers_apart
from jepa_rl.envs.wrappers.pictures import (
    SMALL,
    ImageSpace,
    PictureReader,
    check_finite,
    height_and_width,
    is_image,
    resize,
)
from jepa_rl.envs.wrappers.warn import warn_caller


class PixelObservation(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Observations become uint8 pictures ``(frames * channels, size, size)``, oldest frame first.

    Where the pictures come from:

    - ``key`` given: that entry of a Dict observation, which must be an image;
    - observations that are images: the observations themselves;
    - everything else: ``render()``, for which the environment needs ``render_mode="rgb_array"``.

    An *image* is a uint8 Box of shape (y, x), (y, x, c), (c, y, x) or, already stacked, (k, y, x, c) or
    (k, c, y, x); or one of another dtype with the same bounds everywhere, among them [0, 1], [-1, 1] and
    [0, 255] (``is_image`` has the details). Values are scaled from the space's bounds to 0..255.
    ``metadata["frames"]`` is the number of stacked frames, for outer wrappers and vector environments.
    ``render()`` keeps returning full-size pictures.

    The first picture after the end of an episode starts a new stack, also under Gymnasium's ``Autoreset``.
    Gymnasium's MuJoCo environments draw with an OpenGL context of their own (``jepa_rl.opengl``), so that
    their pictures do not depend on other environments or on the thread.

    Args:
        env: the environment.
        size: height and width of the pictures; area interpolation, the aspect ratio is not kept.
        frames: pictures in one observation; at reset the first one is repeated.
        grayscale: turn RGB into one channel.
        key: which entry of a Dict observation is the picture.
        keep_state: keep the rest of the observation, flattened to float32: observations become
            ``{"pixels": ..., "state": ...}``.

    Raises:
        ValueError: if the environment shows no pictures, or an option does not fit it; while running, if an
            observation holds NaN or infinite values or a picture changes its shape.
        gymnasium.error.ClosedEnvironmentError: on ``step`` or ``reset`` after ``close``.
        gymnasium.error.DependencyNotInstalled: on ``reset``, if Gymnasium's MuJoCo finds no OpenGL library.
        RuntimeError: on ``reset``, if MuJoCo draws in a process that was forked from one that had already drawn.

    Warns:
        UserWarning: if pictures are less than 16 pixels wide or high; if observations look like pictures but are
            not recognised as such, so that ``render()`` is used instead.
    """

    def __init__(
        self,
        env: gym.Env,
        size: int = 64,
        frames: int = 3,
        grayscale: bool = False,
        key: str | None = None,
        keep_state: bool = False,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(
            self, size=size, frames=frames, grayscale=grayscale, key=key, keep_state=keep_state
        )
        gym.Wrapper.__init__(self, env)
        if size < 1 or frames < 1:
            raise ValueError(f"size and frames must be at least 1, got size={size} and frames={frames}")
        self.size, self.frames, self.grayscale, self.key = size, frames, grayscale, key
        self._image, rest = _picture_source(env, key)
        self._rest = _state_part(rest, env.observation_space) if keep_state else None
        name = (
            "render()" if self._image is None else "observation" if key is None else f"observation[{key!r}]"
        )
        self._reader = PictureReader(self._image, name)
        channels = self._reader.channels
        if grayscale and channels not in (1, 3):
            raise ValueError(
                f"grayscale=True needs pictures of 1 or 3 channels, got {channels}; leave it off"
            )
        self.channels = 1 if grayscale else channels
        self._stack = np.zeros((frames * self.channels, size, size), np.uint8)
        self._closed = self._ended = False
        keep_viewers_apart()

        pixels = spaces.Box(0, 255, self._stack.shape, np.uint8)
        self.observation_space = pixels
        if self._rest is not None:
            flat = spaces.flatten_space(self._rest)
            with np.errstate(over="ignore"):
                state = spaces.Box(
                    flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32
                )
            self.observation_space = spaces.Dict({"pixels": pixels, "state": state})
        self.metadata = {**env.metadata, "frames": frames}
        if self._image is None:
            self.metadata["render_modes"] = [
                "rgb_array"
            ]  # in other modes render() returns no pictures to observe

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._check_open()
        keep_viewers_apart()  # MuJoCo may have been imported meanwhile
        observation, info = self.env.reset(seed=seed, options=options)
        self._start(self._picture(observation))
        return self._observation(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._check_open()
        observation, reward, terminated, truncated, info = self.env.step(action)
        picture = self._picture(observation)
        if self._ended:  # an environment that resets itself: this is the first picture of a new episode
            self._start(picture)
        else:
            self._stack[: -self.channels] = self._stack[self.channels :].copy()
            self._stack[-self.channels :] = picture
        self._ended = bool(terminated or truncated)
        return self._observation(observation), scalar_reward(reward), terminated, truncated, info

    def _start(self, picture: np.ndarray) -> None:
        self._stack.reshape(self.frames, self.channels, self.size, self.size)[:] = picture
        self._ended = False

    def close(self) -> None:
        self._closed = True
        super().close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError(f"{self} is closed; make a new environment")

    def _picture(self, observation: Any) -> np.ndarray:
        """The newest picture, uint8 (channels, size, size), as a view where nothing had to change."""
        if self._image is None:
            picture = self._reader.read(self.env.render())
        else:
            picture = self._reader.read(observation if self.key is None else observation[self.key])
        if self.grayscale and picture.shape[2] == 3:
            picture = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)[..., None]
        if picture.shape[:2] != (self.size, self.size):
            picture = resize(picture, self.size)
        return picture.transpose(2, 0, 1)

    def _observation(self, observation: Any) -> np.ndarray | dict[str, np.ndarray]:
        pixels = self._stack.copy()
        if self._rest is None:
            return pixels
        if self.key is not None:
            observation = {name: observation[name] for name in self._rest.spaces}
        state = spaces.flatten(self._rest, observation).astype(np.float32)
        check_finite(state, "state")
        return {"pixels": pixels, "state": state}


def _picture_source(env: gym.Env, key: str | None) -> tuple[ImageSpace | None, gym.Space | None]:
    """The image space (None: use render()) and what is left of the observation space (None: nothing)."""
    space = env.observation_space
    if key is not None:
        if not isinstance(space, spaces.Dict):
            raise ValueError(f"key={key!r} needs a Dict observation, got {space}; leave key out")
        images = {name: part for name, part in space.items() if is_image(part)}
        if key not in space.spaces:
            raise ValueError(
                f"key={key!r} is not in the observation; its keys are {list(space.spaces)}, "
                f"images among them: {list(images)}"
            )
        if key not in images:
            raise ValueError(
                f"observation[{key!r}] is {space[key]}, not an image; images among the keys: {list(images)}"
            )
        rest = {name: part for name, part in space.items() if name != key}
        return images[key], spaces.Dict(rest) if rest else None
    if is_image(space):
        return space, None
    if env.render_mode != "rgb_array":
        name = env.spec.id if env.spec is not None else "<id>"
        choice = f", or choose key=... among {list(space.spaces)}" if isinstance(space, spaces.Dict) else ""
        remedy = f'use gym.make("{name}", render_mode="rgb_array")'
        if "rgb_array" not in (modes := list(env.metadata.get("render_modes", []))):
            remedy = (
                f"but it renders only in the modes {modes}: let its render() return a uint8 picture (y, x, 3) where "
                'render_mode="rgb_array", and name that mode in metadata["render_modes"]; or leave PixelObservation '
                'out and learn from its own observations, JEPAMPC("MlpPolicy", env)'
            )
        raise ValueError(
            f"observations of {env} are not images ({space}), so the pictures come from render(), "
            f"which needs render_mode='rgb_array', got {env.render_mode!r}; {remedy}{choice}"
        )
    shape = space.shape if isinstance(space, spaces.Box) else ()
    if len(shape) in (2, 3, 4) and min(height_and_width(shape)) >= SMALL:
        warn_caller(
            f"observations of {env} have the shape of pictures, but not the bounds ({space}): the pictures are "
            "those of render() instead; if they are pictures, scale them to [0, 1] with gymnasium.wrappers."
            "TransformObservation"
        )
    return None, space


def _state_part(rest: gym.Space | None, space: gym.Space) -> gym.Space:
    if rest is None:
        raise ValueError(f"keep_state=True needs observations with more than the picture, got only {space}")
    _check_flattens(rest, "observation")
    return rest


def _check_flattens(space: gym.Space, name: str) -> None:
    """Raise unless the space has a fixed number of numbers in it."""
    if isinstance(space, spaces.Dict):
        for entry, part in space.items():
            _check_flattens(part, f"{name}[{entry!r}]")
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space):
            _check_flattens(part, f"{name}[{index}]")
    elif not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(
            f"keep_state=True cannot turn {name}, a {type(space).__name__} space, into a flat vector; "
            "drop it with gymnasium.wrappers.FilterObservation, or set keep_state=False"
        )
