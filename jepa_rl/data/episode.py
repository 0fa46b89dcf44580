"""One recorded episode as arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of ``T`` environment steps. Action i leads from frame i to frame i + 1.

    Attributes:
        frames: single frames (not stacked), uint8 ``(T + 1, c, y, x)``.
        actions: in the environment's own units, float32 ``(T, a)``, int64 ``(T,)`` or (MultiDiscrete) int64
            ``(T, choices)``.
        rewards: float32 ``(T,)``.
        terminated: whether the environment ended the episode, so that its last state has no future.
        truncated: whether it was cut off, by a time limit or because the recording stopped.
        extras: further columns, one row per frame ``(T + 1, ...)``, such as the true position; for probes.
        metadata: facts about the whole episode, such as its seed; types that JSON knows.

    Raises:
        ValueError: if there is no step, the columns differ in length, or a value is NaN or infinite.
        TypeError: for a column of another dtype, or metadata that JSON does not know.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool = False
    truncated: bool = False
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frames = np.asarray(self.frames)
        if frames.dtype != np.uint8:
            raise TypeError(f"frames must be uint8, got {frames.dtype}; scale them to 0 to 255 first")
        if frames.ndim != 4 or 0 in frames.shape[1:]:
            raise ValueError(f"frames must have shape (T + 1, c, y, x), got {frames.shape}")
        length = len(frames) - 1
        if length < 1:
            raise ValueError(f"an episode needs at least one step (two frames), got {len(frames)} frame(s)")
        columns = {
            "frames": frames,
            "actions": _as_actions(self.actions, length),
            "rewards": _as_rewards(self.rewards, length),
            "extras": {name: _as_extra(name, rows, length) for name, rows in self.extras.items()},
            "terminated": bool(self.terminated),
            "truncated": bool(self.truncated),
        }
        json.dumps(dict(self.metadata))  # raises TypeError here and not in the middle of a write
        for name, value in columns.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Environment steps, ``T``."""
        return len(self.rewards)

    def column(self, name: str) -> np.ndarray:
        """The rows of ``"frames"``, ``"actions"``, ``"rewards"``, or of an extra by its name."""
        return self.extras[name] if name in self.extras else getattr(self, name)


def _as_actions(actions: np.ndarray, length: int) -> np.ndarray:
    actions = np.asarray(actions)
    flat = actions.ndim == 2 and actions.shape[1] > 0
    if np.issubdtype(actions.dtype, np.integer) and (actions.ndim == 1 or flat):
        actions = actions.astype(np.int64, copy=False)
    elif np.issubdtype(actions.dtype, np.floating) and flat:
        actions = actions.astype(np.float32, copy=False)
    else:
        raise TypeError(
            "actions must be floats of shape (T, a), or integers of shape (T,) or (T, choices), "
            f"got {actions.dtype} of shape {actions.shape}"
        )
    _check_length("actions", actions, length)
    _check_finite("actions", actions)
    return actions


def _as_rewards(rewards: np.ndarray, length: int) -> np.ndarray:
    rewards = np.asarray(rewards, np.float32)
    if rewards.ndim != 1:
        raise ValueError(f"rewards must have shape (T,), got {rewards.shape}")
    _check_length("rewards", rewards, length)
    _check_finite("rewards", rewards)
    return rewards


def _as_extra(name: str, rows: np.ndarray, length: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.dtype.kind not in "biuf":
        raise TypeError(f"extra {name!r} must be numbers or booleans, got {rows.dtype}")
    if rows.ndim < 1 or len(rows) != length + 1:
        raise ValueError(f"extra {name!r} must have one row per frame, {length + 1}, got shape {rows.shape}")
    _check_finite(f"extra {name!r}", rows)
    return rows


def _check_length(name: str, rows: np.ndarray, length: int) -> None:
    if len(rows) != length:
        raise ValueError(f"{length + 1} frames need {length} {name}, got {len(rows)}")


def _check_finite(name: str, rows: np.ndarray) -> None:
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        step = int(np.argwhere(~np.isfinite(rows))[0][0])
        raise ValueError(f"{name} hold a NaN or infinite value at step {step}")
