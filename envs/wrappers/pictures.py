"""Detects picture observations, and converts pictures of any layout and scale to uint8 (y, x, channels)."""

from __future__ import annotations

from typing import Any, TypeGuard

import cv2
import numpy as np
from gymnasium import spaces

from jepa_rl.envs.wrappers.warn import warn_caller
from jepa_rl.spaces import channels_first

ImageSpace = spaces.Box | spaces.MultiBinary
SMALL = 16  # pixels: smaller arrays are rarely pictures
# Bounds of pictures that are not uint8: scaled to [0, 1] or [-1, 1], bytes in another dtype, 16-bit cameras.
SCALES = {(0, 1), (-1, 1), (-0.5, 0.5), (0, 255), (0, 65535)}


def is_image(space: Any) -> TypeGuard[ImageSpace]:
    """Whether observations of this space are pictures.

    They are if the space is a Box of two dimensions (y, x), of three with the channels first or last, or of four
    with the stacked frames in front; and is uint8 or has one of the bounds [0, 1], [-1, 1], [-0.5, 0.5], [0, 255]
    and [0, 65535] everywhere. MultiBinary counts as [0, 1]. Without the dtype or the three dimensions of a picture,
    it must be at least 16 pixels wide and high.
    """
    bounds = _bounds(space)
    if bounds is None or not 2 <= len(space.shape) <= 4:
        return False
    if space.dtype == np.uint8 and isinstance(space, spaces.Box):
        return True
    if bounds not in SCALES:
        return False
    if len(space.shape) == 3 and bounds in ((0, 1), (0, 255)) and isinstance(space, spaces.Box):
        return True
    return min(height_and_width(space.shape)) >= SMALL


class PictureReader:
    """Reads the pictures of one space, or of ``render()``.

    Args:
        space: an image space (``is_image``); None for ``render()``, whose pictures are (y, x, 3) in uint8, other
            whole numbers up to 255, booleans, or floats in [0, 1] or [0, 255].
        name: of the pictures in error messages.

    Attributes:
        channels: of a picture, all frames of a stack together.

    Raises:
        ValueError: if the axes of a stack cannot be told apart.
    """

    def __init__(self, space: ImageSpace | None, name: str) -> None:
        self.name, self._space = name, space
        self._low, self._high = 0.0, 255.0
        self._guessed = (
            space is None
        )  # the scale of render()'s floats shows in their values, once one is not 0
        self._decided = False
        self.channels = 3
        if space is not None:
            self._low, self._high = _bounds(space) or (0.0, 255.0)
            self.channels = channels_last(np.empty(space.shape, np.uint8), name).shape[2]
            if min(height_and_width(space.shape)) < SMALL:
                warn_caller(
                    f"{name} has the shape {space.shape}: less than {SMALL} pixels wide or high, so perhaps codes "
                    "rather than colours, which resizing would blend; for the screen instead, wrap the environment "
                    "in gymnasium.wrappers.AddRenderObservation first (its pictures are those of render(), with "
                    "render_mode='rgb_array'), for another entry of a Dict observation name it: key=..."
                )

    def read(self, picture: Any) -> np.ndarray:
        """A picture as uint8 (y, x, channels); a view if it needs no conversion.

        Raises:
            ValueError: if the shape differs from that of the space, or a value is NaN, infinite or out of bounds.
        """
        if self._space is None:
            if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
                shape = getattr(picture, "shape", type(picture).__name__)
                raise ValueError(
                    f"{self.name} must return an array (y, x, 3), got {shape}; check the environment's render()"
                )
        else:
            picture = np.asarray(picture)
            if picture.shape != self._space.shape:
                raise ValueError(f"{self.name} must have shape {self._space.shape}, got {picture.shape}")
            picture = channels_last(picture, self.name)
        return self._to_uint8(picture)

    def _to_uint8(self, picture: np.ndarray) -> np.ndarray:
        if picture.dtype == np.uint8 and (self._low, self._high) == (0, 255):
            return picture
        if picture.dtype == bool and self._guessed:
            return picture.astype(np.uint8) * np.uint8(255)
        check_finite(picture, self.name)
        least, most = float(picture.min()), float(picture.max())
        high = self._high
        if self._guessed:
            high = self._scale_of(most) if picture.dtype.kind == "f" else 255.0
        margin = 0.01 * (high - self._low)  # interpolation overshoots a little
        if least < self._low - margin or most > high + margin:
            source = "render() showed before" if self._space is None else f"its space {self._space} allows"
            raise ValueError(
                f"{self.name} holds values from {least:g} to {most:g}, outside [{self._low:g}, {high:g}] that "
                f"{source}; correct the bounds with gymnasium.wrappers.TransformObservation, or the environment"
            )
        unit = (picture.astype(np.float64) - self._low) / (high - self._low)
        return np.clip(np.rint(255 * unit), 0, 255).astype(np.uint8)

    def _scale_of(self, most: float) -> float:
        """The upper bound of ``render()``'s floats, decided by the first picture that is not black."""
        if not self._decided and most > 0:
            self._decided, self._high = True, 1.0 if most <= 1 else 255.0
        return self._high


def height_and_width(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a picture or stack of pictures in any of the layouts."""
    if len(shape) == 2:
        return shape[0], shape[1]
    y_x = shape[-2:] if channels_first(shape[-3:]) else shape[-3:-1]
    return y_x[0], y_x[1]


def channels_last(image: np.ndarray, name: str = "observation") -> np.ndarray:
    """An image of any accepted layout as (y, x, channels), as a view where possible.

    Raises:
        ValueError: for four axes among which channels and pixels cannot be told apart.
    """
    if image.ndim == 2:
        return image[..., None]
    if image.ndim == 3:
        return image.transpose(1, 2, 0) if channels_first(image.shape) else image
    frames, *picture = image.shape
    # The frames become channels, oldest first.
    if min(picture[:2]) > picture[2]:
        y, x, c = picture
        return image.transpose(1, 2, 0, 3).reshape(y, x, frames * c)
    if min(picture[1:]) > picture[0]:
        c, y, x = picture
        return image.reshape(frames * c, y, x).transpose(1, 2, 0)
    raise ValueError(
        f"{name} of shape {image.shape} must be a stack (frames, y, x, channels) or (frames, channels, y, x) with "
        "fewer channels than pixels a side; move the axes with gymnasium.wrappers.TransformObservation"
    )


def resize(picture: np.ndarray, size: int) -> np.ndarray:
    """Area interpolation of (y, x, channels) to (size, size, channels); OpenCV does at most four channels at once."""
    parts = [
        cv2.resize(np.ascontiguousarray(picture[..., i : i + 4]), (size, size), interpolation=cv2.INTER_AREA)
        for i in range(0, picture.shape[2], 4)
    ]
    return np.dstack(parts) if len(parts) > 1 else parts[0].reshape(size, size, -1)


def check_finite(values: np.ndarray, name: str) -> None:
    """Raise ValueError, naming the first place, if a value is NaN or infinite."""
    bad = ~np.isfinite(values)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} holds {int(bad.sum())} NaN or infinite values, the first ({values[where]}) at index "
            f"{where}; check the environment's simulation"
        )


def _bounds(space: Any) -> tuple[float, float] | None:
    """Lower and upper bound that all components have; of uint8, whose bounds may differ, the widest."""
    if isinstance(space, spaces.MultiBinary):
        return 0.0, 1.0
    if not isinstance(space, spaces.Box) or space.dtype.kind not in "buif" or space.low.size == 0:
        return None
    low, high = float(space.low.min()), float(space.high.max())
    if space.dtype == np.uint8:
        return 0.0, high if 0 < high < 128 else 255.0  # few levels, such as 0 and 1, are stretched
    if low != space.low.max() or high != space.high.min():
        return None
    return low, high
