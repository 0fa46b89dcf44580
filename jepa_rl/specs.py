"""Observation and action spaces as plain numbers: ``WorldSpec`` and ``ActionSpec``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

JSON = dict[str, Any]
_NO_BOUND = 1e30  # bounds this large mean "none": np.finfo(np.float32).max is common

# Observations of an environment: one tensor, or tensors by name where there are several.
Observations = Tensor | dict[str, Tensor]
OBSERVATION = "observation"  # the name of a single observation


@dataclass(frozen=True)
class ActionSpec:
    """An action space as plain numbers, so that models do not depend on Gymnasium.

    Attributes:
        kind: ``"continuous"`` (a bounded vector) or ``"discrete"`` (one of ``size`` choices).
        size: number of vector components, or number of choices.
        low, high: bounds of each component (continuous only), in the environment's units.
        start: the environment's number for the first choice (discrete only).
        choices: of several choices side by side (MultiDiscrete), the number of options of each, which add up to
            ``size``; empty for a single one.
        starts: the environment's number for the first option of each of them.
        dtype: NumPy name of the dtype of environment actions: ``"float16"``, ``"float32"`` or ``"float64"``, and
            ``"int64"`` for discrete actions. Default, also for files of version 0.1.0, which do not contain it: float32
            if it represents the bounds exactly, else float64. Not compared by ``==``.

    Raises:
        TypeError: if continuous actions are not floats.
        ValueError: if a size or the number of bounds is wrong, low is not below high, or a component is unbounded.
    """

    kind: Literal["continuous", "discrete"]
    size: int
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    start: int = 0
    choices: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    dtype: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in ("continuous", "discrete"):
            raise ValueError(f"action kind must be 'continuous' or 'discrete', got {self.kind!r}")
        if self.size < 1:
            raise ValueError(f"action size must be at least 1, got {self.size}")
        if self.choices and (
            self.kind != "discrete"
            or sum(self.choices) != self.size
            or min(self.choices) < 1
            or len(self.starts) != len(self.choices)
        ):
            raise ValueError(
                f"choices must be options of a discrete action that add up to size={self.size}, with a start for each, "
                f"got kind={self.kind!r}, choices={self.choices}, starts={self.starts}"
            )
        if self.kind == "continuous":
            self._check_bounds()
        if not self.dtype:
            object.__setattr__(self, "dtype", self._default_dtype())
        allowed = ("int64",) if self.kind == "discrete" else ("float16", "float32", "float64")
        if self.dtype not in allowed:
            fix = "" if self.kind == "discrete" else "; use Discrete or MultiDiscrete for whole numbers"
            raise TypeError(
                f"{self.kind} actions must be of dtype {' or '.join(allowed)}, got {self.dtype}{fix}"
            )

    def _check_bounds(self) -> None:
        if len(self.low) != self.size or len(self.high) != self.size:
            raise ValueError(
                f"a continuous action of size {self.size} needs {self.size} low and high bounds, "
                f"got {len(self.low)} and {len(self.high)}"
            )
        low, high = np.array(self.low, np.float64), np.array(self.high, np.float64)
        unbounded = ~((np.abs(low) < _NO_BOUND) & (np.abs(high) < _NO_BOUND))  # NaN, too
        if unbounded.any():
            raise ValueError(
                f"actions must be bounded, but components {np.flatnonzero(unbounded).tolist()} have low="
                f"{low[unbounded].tolist()} and high={high[unbounded].tolist()} (bounds from {_NO_BOUND:.0e} on count "
                "as none); give them bounds: gymnasium.wrappers.TransformAction(env, lambda a: a, "
                f"gymnasium.spaces.Box(-1, 1, ({self.size},)))"
            )
        if not (low < high).all():
            raise ValueError(f"action bounds must have low < high, got low={self.low}, high={self.high}")

    def _default_dtype(self) -> str:
        if self.kind == "discrete":
            return "int64"
        bounds = np.array([*self.low, *self.high], np.float64)
        return "float32" if (bounds.astype(np.float32) == bounds).all() else "float64"

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of options of each choice; empty for continuous actions."""
        if self.kind == "continuous":
            return ()
        return self.choices or (self.size,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an environment action: ``()`` for one choice, else ``(choices,)`` or ``(size,)``."""
        if self.kind == "continuous":
            return (self.size,)
        return (len(self.choices),) if self.choices else ()

    def _single_choices(self) -> list[ActionSpec]:
        """Each choice of a MultiDiscrete space as an ``ActionSpec``."""
        return [
            ActionSpec("discrete", n, start=start) for n, start in zip(self.choices, self.starts, strict=True)
        ]

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Environment actions ``(..., size)`` or integer ``(...)`` to model actions float32 ``(..., size)``.

        Raises:
            ValueError: if the shape does not fit, a choice is out of range or a value is NaN or infinite.
        """
        actions = np.asarray(actions)
        if self.choices:
            if actions.shape[-1:] != (len(self.choices),):
                raise ValueError(f"actions must have shape (..., {len(self.choices)}), got {actions.shape}")
            parts = [part.encode(actions[..., i]) for i, part in enumerate(self._single_choices())]
            return np.concatenate(parts, axis=-1)
        if self.kind == "discrete":
            if not np.issubdtype(actions.dtype, np.integer):
                raise ValueError(f"discrete actions must be integers, got dtype {actions.dtype}")
            index = actions - self.start
            if index.size and (index.min() < 0 or index.max() >= self.size):
                raise ValueError(
                    f"discrete actions must lie in [{self.start}, {self.start + self.size - 1}], "
                    f"got [{actions.min()}, {actions.max()}]"
                )
            return np.eye(self.size, dtype=np.float32)[index]
        if actions.shape[-1:] != (self.size,):
            raise ValueError(f"actions must have shape (..., {self.size}), got {actions.shape}")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold NaN or infinite values; check the policy that made them")
        low, high = np.array(self.low), np.array(self.high)
        return (2.0 * (actions.astype(np.float64) - low) / (high - low) - 1.0).astype(np.float32)

    def decode(self, actions: np.ndarray) -> np.ndarray:
        """Model actions float ``(..., size)`` to environment actions: clipped to the bounds, or the largest choice.

        The environment's action space contains the result: it has the same dtype, and rounding cannot exceed a bound.
        """
        actions = np.asarray(actions)
        if actions.shape[-1:] != (self.size,):
            raise ValueError(f"model actions must have shape (..., {self.size}), got {actions.shape}")
        if self.choices:
            columns = np.split(actions, np.cumsum(self.choices)[:-1], axis=-1)
            decoded = zip(self._single_choices(), columns, strict=True)
            return np.stack([part.decode(column) for part, column in decoded], axis=-1)
        if self.kind == "discrete":
            return actions.argmax(-1).astype(np.int64) + self.start
        low, high = np.array(self.low), np.array(self.high)
        share = (np.clip(actions, -1.0, 1.0).astype(np.float64) + 1.0) / 2.0
        return self.clip((1.0 - share) * low + share * high)  # exact at both bounds

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """Continuous environment actions ``(..., size)`` within the bounds, in the environment's dtype.

        The cast comes before the clipping, because it may round an action past a bound.
        """
        low, high = (np.array(bound, self.dtype) for bound in (self.low, self.high))
        return np.clip(np.asarray(actions).astype(self.dtype), low, high)


@dataclass(frozen=True)
class WorldSpec:
    """Observations and actions of a world model.

    Attributes:
        pixels: shape ``(frames * channels, y, x)`` of the uint8 picture, oldest frame first; None if there is no
            picture, or more than one.
        frames: number of frames stacked in every picture.
        action: the action space of one environment step.
        block: environment steps (and actions) in one latent step.
        parts: (name, shape) of every observation: pictures ``(frames * channels, y, x)`` and vectors ``(size,)``. Empty
            if the observation is one picture.
        source: how the observations were made (environment, arguments, wrappers), as JSON; empty if unknown. It is
            saved in checkpoints; ``==`` ignores it.

    Raises:
        ValueError: if a shape is neither a picture's nor a vector's, channels are not a multiple of frames, or frames
            or block are below 1.
    """

    pixels: tuple[int, int, int] | None
    frames: int
    action: ActionSpec
    block: int = 1
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")
        for name, shape in self.shapes.items():
            if len(shape) not in (1, 3) or min(shape) < 1:
                raise ValueError(
                    f"{name} must be pixels of a shape (frames * channels, y, x) or a vector (size,), got {shape}"
                )
            if len(shape) == 3 and shape[0] % self.frames:
                raise ValueError(f"{shape[0]} channels cannot be split into {self.frames} frames")
        if self.block < 1:
            raise ValueError(f"block must be at least 1, got {self.block}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every observation by name."""
        if self.parts:
            return dict(self.parts)
        return {OBSERVATION: (0,) if self.pixels is None else self.pixels}

    @property
    def action_dim(self) -> int:
        """Width of the action vector of one latent step: ``block * action.size``."""
        return self.block * self.action.size

    def with_block(self, block: int) -> WorldSpec:
        """The same with another number of environment steps in a latent step."""
        return replace(self, block=block)

    def named(self, observations: Observations) -> dict[str, Tensor]:
        """Observations by name."""
        return observations if isinstance(observations, dict) else {next(iter(self.shapes)): observations}

    def unnamed(self, observations: Observations) -> Observations:
        """What encoders expect, the inverse of ``named``: the only picture as a tensor, otherwise tensors by name."""
        by_name = self.named(observations)
        return by_name if self.parts else next(iter(by_name.values()))

    @classmethod
    def from_json(cls, data: JSON) -> WorldSpec:
        """The inverse of ``dataclasses.asdict``, from values in which tuples may have become lists."""
        data = {name: as_tuples(value) for name, value in data.items()}
        return cls(action=ActionSpec(**data.pop("action")), **data)


def as_tuples(value: Any) -> Any:
    """JSON values with tuples for lists."""
    if isinstance(value, dict):
        return {name: as_tuples(inner) for name, inner in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
