"""Any environment to stacked uint8 pictures."""

from __future__ import annotations

import os
from typing import Any, TypeGuard

import cv2
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError

from jepa_rl.envs.gl import find_backend


class PixelObservation(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Observations become uint8 pictures ``(frames * channels, size, size)``, oldest frame first.

    Where the pictures come from:

    - ``key`` given: that entry of a Dict observation, which must be an image;
    - observations that are images: the observations themselves;
    - everything else: ``render()``, for which the environment needs ``render_mode="rgb_array"``.

    An *image* is a uint8 Box of shape (y, x), (y, x, c), (c, y, x) or, already stacked, (k, y, x, c); or a
    3-D Box of another dtype with bounds [0, 1] or [0, 255]. A 3-D image has its channels first when its
    first axis is shorter than its last. ``metadata["frames"]`` tells wrappers and vector environments
    further out how many frames are stacked. ``render()`` keeps returning full-size pictures.

    Args:
        env: the environment.
        size: height and width of the pictures; area interpolation, the aspect ratio is not kept.
        frames: pictures in one observation; at reset the first one is repeated.
        grayscale: turn RGB into one channel.
        key: which entry of a Dict observation is the picture.
        keep_state: keep what is not the picture, flattened to float32: observations become
            ``{"pixels": ..., "state": ...}``.

    Raises:
        ValueError: if the environment shows no pictures, or an option does not fit it; while running, if an
            observation holds NaN or infinite values or a picture changes its shape.
        gymnasium.error.ClosedEnvironmentError: on ``step`` or ``reset`` after ``close``.
        gymnasium.error.DependencyNotInstalled: on ``reset``, if Gymnasium's MuJoCo finds no OpenGL library.
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
        channels = _channels(self._image.shape) if self._image else 3
        if grayscale and channels not in (1, 3):
            raise ValueError(
                f"grayscale=True needs pictures of 1 or 3 channels, got {channels}; leave it off"
            )
        self.channels = 1 if grayscale else channels
        self._stack = np.zeros((frames * self.channels, size, size), np.uint8)
        self._closed = False
        self._opens_mujoco = self._image is None and _is_mujoco(env)

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
            self.metadata["render_modes"] = ["rgb_array"]  # the only one that leaves pictures to observe

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self._check_open()
        observation, info = self.env.reset(seed=seed, options=options)
        picture = self._picture(observation)
        self._stack.reshape(self.frames, self.channels, self.size, self.size)[:] = picture
        return self._observation(observation), info

    def step(self, action):
        self._check_open()
        observation, reward, terminated, truncated, info = self.env.step(action)
        picture = self._picture(observation)
        self._stack[: -self.channels] = self._stack[self.channels :].copy()
        self._stack[-self.channels :] = picture
        return self._observation(observation), reward, terminated, truncated, info

    def close(self) -> None:
        self._closed = True
        super().close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError(f"{self} is closed; make a new environment")

    def _picture(self, observation: Any) -> np.ndarray:
        """The newest picture, uint8 (channels, size, size), as a view where nothing had to change."""
        if self._image is None:
            picture, name = self._render(), "render()"
            if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(
                    "render() must return an array (y, x, 3), got "
                    f"{getattr(picture, 'shape', type(picture).__name__)}; check the environment's render()"
                )
        else:
            name = "observation" if self.key is None else f"observation[{self.key!r}]"
            picture = np.asarray(observation if self.key is None else observation[self.key])
            if picture.shape != self._image.shape:
                raise ValueError(f"{name} must have shape {self._image.shape}, got {picture.shape}")
            picture = _channels_last(picture)
        if picture.dtype != np.uint8:
            _check_finite(picture, name)
            scale = 255.0 if self._image is not None and self._image.high.max() <= 1 else 1.0
            picture = np.clip(np.rint(picture * scale), 0, 255).astype(np.uint8)
        if self.grayscale and picture.shape[2] == 3:
            picture = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)[..., None]
        if picture.shape[:2] != (self.size, self.size):
            picture = _resize(picture, self.size)
        return picture.transpose(2, 0, 1)

    def _render(self) -> Any:
        if not self._opens_mujoco or "MUJOCO_GL" in os.environ:
            return self.env.render()
        # Gymnasium's MuJoCo viewer reads this when it opens; left alone it fails where there is no display.
        os.environ["MUJOCO_GL"] = find_backend()
        try:
            picture = self.env.render()
        finally:
            del os.environ["MUJOCO_GL"]
        self._opens_mujoco = False
        return picture

    def _observation(self, observation: Any) -> np.ndarray | dict[str, np.ndarray]:
        pixels = self._stack.copy()
        if self._rest is None:
            return pixels
        if self.key is not None:
            observation = {name: observation[name] for name in self._rest.spaces}
        state = spaces.flatten(self._rest, observation).astype(np.float32)
        _check_finite(state, "state")
        return {"pixels": pixels, "state": state}


def is_image(space: gym.Space) -> TypeGuard[spaces.Box]:
    """Whether observations of this space are pictures (see ``PixelObservation``)."""
    if not isinstance(space, spaces.Box):
        return False
    if space.dtype == np.uint8:
        return len(space.shape) in (2, 3, 4)
    return (
        len(space.shape) == 3 and (space.low == 0).all() and space.high.min() == space.high.max() in (1, 255)
    )


def _is_mujoco(env: gym.Env) -> bool:
    """Whether the environment builds on Gymnasium's ``MujocoEnv``; answered without importing MuJoCo."""
    return any(cls.__module__.startswith("gymnasium.envs.mujoco") for cls in type(env.unwrapped).__mro__)


def _picture_source(env: gym.Env, key: str | None) -> tuple[spaces.Box | None, gym.Space | None]:
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
        raise ValueError(
            f"observations of {env} are not images ({space}), so the pictures come from render(), "
            f"which needs render_mode='rgb_array', got {env.render_mode!r}; use "
            f'gym.make("{name}", render_mode="rgb_array"){choice}'
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


def _channels(shape: tuple[int, ...]) -> int:
    return _channels_last(np.empty(shape, np.uint8)).shape[2]


def _channels_last(image: np.ndarray) -> np.ndarray:
    """An image of any accepted layout as (y, x, channels), without copying where a view will do."""
    if image.ndim == 2:
        return image[..., None]
    if image.ndim == 4:  # (frames, y, x, c): the frames become channels, oldest first
        frames, y, x, c = image.shape
        return image.transpose(1, 2, 0, 3).reshape(y, x, frames * c)
    return image.transpose(1, 2, 0) if image.shape[0] < image.shape[2] else image


def _resize(picture: np.ndarray, size: int) -> np.ndarray:
    """Area interpolation of (y, x, channels); OpenCV does at most four channels at once."""
    parts = [
        cv2.resize(np.ascontiguousarray(picture[..., i : i + 4]), (size, size), interpolation=cv2.INTER_AREA)
        for i in range(0, picture.shape[2], 4)
    ]
    return np.dstack(parts) if len(parts) > 1 else parts[0].reshape(size, size, -1)


def _check_finite(values: np.ndarray, name: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} holds {int(bad.sum())} NaN or infinite values, the first ({values[where]}) at index "
            f"{where}; check the environment's simulation"
        )
