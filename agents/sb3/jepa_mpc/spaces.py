"""The doors of ``JEPAMPC``: which observations and actions it takes, and how the model sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from torch import nn

from jepa_rl.types import ActionSpec


class ActionCodec:
    """Between actions of the environment and of the model: vectors in [-1, 1], or one-hot choices side by side.

    Attributes:
        size: width of a model action.
        groups: number of options of each choice; empty for continuous actions.

    Raises:
        ValueError: for anything but a flat, bounded Box, a Discrete or a flat MultiDiscrete space.
        TypeError: for a Box of whole numbers.
    """

    def __init__(self, space: spaces.Space) -> None:
        self.many = isinstance(space, spaces.MultiDiscrete)
        if isinstance(space, spaces.Discrete):
            self.parts = [ActionSpec("discrete", int(space.n), start=int(space.start))]
        elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
            starts = zip(space.nvec.tolist(), space.start.tolist(), strict=True)
            self.parts = [ActionSpec("discrete", n, start=start) for n, start in starts]
        elif isinstance(space, spaces.Box) and len(space.shape) == 1:
            bounds = tuple(space.low.tolist()), tuple(space.high.tolist())
            self.parts = [ActionSpec("continuous", space.shape[0], *bounds, dtype=space.dtype.name)]
        else:
            raise ValueError(
                f"actions must be a flat, bounded Box, Discrete or a flat MultiDiscrete, got {space}; convert them "
                "with gymnasium.wrappers.TransformAction"
            )
        self.size = sum(part.size for part in self.parts)
        discrete = self.parts[0].kind == "discrete"
        self.groups = tuple(part.size for part in self.parts) if discrete else ()

    def encode(self, actions: np.ndarray) -> Float[np.ndarray, "n a"]:
        """Model actions of the environment's, "n ..."."""
        if not self.many:
            return self.parts[0].encode(actions)
        return np.concatenate([part.encode(actions[:, i]) for i, part in enumerate(self.parts)], axis=-1)

    def decode(self, actions: Float[np.ndarray, "n a"]) -> np.ndarray:
        """Actions of the environment: clipped to the bounds, or the largest of each choice."""
        if not self.many:
            return self.parts[0].decode(actions)
        columns = np.split(actions, np.cumsum(self.groups)[:-1], axis=-1)
        return np.stack(
            [part.decode(column) for part, column in zip(self.parts, columns, strict=True)], axis=-1
        )


def observation_boxes(space: spaces.Space) -> dict[str, spaces.Box]:
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
    """A Dict observation as it is, any other under the name ``observation``."""
    return dict(observation) if isinstance(observation, dict) else {"observation": observation}
