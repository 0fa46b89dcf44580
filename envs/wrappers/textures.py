"""Moving textures and rotated hues, drawn for any number of pictures at once: what ``Distract`` puts into pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8, UInt64

from jepa_rl.objectives.augment import LUMA, turned_hue

Array = np.ndarray
Split = Literal["train", "test"]

FAMILIES: dict[Split, tuple[str, str]] = {"train": ("stripes", "waves"), "test": ("checks", "dots")}
WEIGHTS = {  # of three gratings; large ones make hard edges
    "stripes": (1.2, 0.0, 0.0),
    "waves": (0.25, 0.25, 0.25),
    "checks": (1.0, 1.0, 0.0),
    "dots": (0.6, 0.6, 0.6),
}
ANGLES: dict[Split, tuple[float, float]] = {
    "train": (-119.0, 119.0),
    "test": (179.0, 181.0),
}  # degrees of hue
SATURATIONS: dict[Split, tuple[float, float]] = {
    "train": (0.0, 1.0),
    "test": (1.0, 1.0),
}  # share that is left
SPEED = (0.01, 0.03)  # picture widths per step
COARSE, FINE = (1.0, 2.5), (3.0, 6.0)  # cycles per picture width
SAME_HUE = 15.0  # degrees: colours so near a chosen one are recoloured with it
HUES = 256  # of OpenCV's full-range hue in a full turn


@dataclass
class Textures:
    """Sums of up to three drifting gratings, one texture for each row; no two rows alike.

    Attributes:
        frequency: of the gratings along x and y, cycles per picture width.
        phase: of the gratings at time 0, radians.
        drift: what the phase loses per step, radians.
        weight: of the gratings; large weights make hard edges, since the sum is clipped.
        low, high: the two colours between which the sum blends.
    """

    frequency: Float[Array, "n 3 2"]
    phase: Float[Array, "n 3"]
    drift: Float[Array, "n 3"]
    weight: Float[Array, "n 3"]
    low: Float[Array, "n c"]
    high: Float[Array, "n c"]

    @classmethod
    def none(cls, n: int, channels: int) -> Textures:
        """Room for ``n`` textures."""
        shapes = ((n, 3, 2), (n, 3), (n, 3), (n, 3), (n, channels), (n, channels))
        return cls(*(np.zeros(shape, np.float32) for shape in shapes))

    def draw_anew(self, row: int, rng: np.random.Generator, split: Split, brightness: float) -> None:
        """Replaces one row by a random texture.

        Training textures are soft waves (three gratings of any direction, each with a drift of its own) or stripes
        (one); those for tests are checkerboards (two gratings at right angles) or lattices of dots (three, 120
        degrees apart), which drift as a whole.

        Args:
            row: which one.
            rng: draws it.
            split: of which families.
            brightness: the brightest value, as a share of 255.
        """
        family = FAMILIES[split][rng.integers(2)]
        between = {"checks": np.pi / 2, "dots": 2 * np.pi / 3}.get(family, 0.0)
        angles = rng.uniform(0, 2 * np.pi) + between * np.arange(3)
        cycles = np.full(3, rng.uniform(*FINE))
        if family == "waves":
            angles, cycles = rng.uniform(0, 2 * np.pi, 3), rng.uniform(*COARSE, 3)
        # Checks and dots go any way; the others across their stripes, since along them no motion would be seen.
        ways = np.full(3, rng.uniform(0, 2 * np.pi)) if between else angles
        motion = rng.uniform(*SPEED) * np.stack([np.cos(ways), np.sin(ways)], axis=1)
        self.frequency[row] = cycles[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self.phase[row], self.weight[row] = rng.uniform(0, 2 * np.pi, 3), WEIGHTS[family]
        self.drift[row] = 2 * np.pi * (self.frequency[row] * motion).sum(axis=1)
        channels = self.low.shape[1]
        dark, bright = rng.uniform(0.0, 0.4, channels), rng.uniform(0.6, 1.0, channels)
        swapped = rng.random(channels) < 0.5  # so that both ends are coloured
        self.low[row] = 255 * brightness * np.where(swapped, bright, dark)
        self.high[row] = 255 * brightness * np.where(swapped, dark, bright)

    def rows(self, which: Int[Array, " m"]) -> Textures:
        """Some of the rows."""
        return Textures(*(getattr(self, field.name)[which] for field in fields(self)))

    def at(self, times: Int[Array, "n k"], y: int, x: int) -> UInt8[Array, "n k c y x"]:
        """The textures at some times.

        Args:
            times: steps since the beginning, ``k`` of them for each row.
            y, x: size of the pictures in pixels.
        """
        rows, columns = (np.arange(size, dtype=np.float32) / x for size in (y, x))
        turn = np.float32(2 * np.pi)
        # sin(a + b) = sin a cos b + cos a sin b, with a along y (and time) and b along x: one matrix product.
        moved = self.phase[:, None] - self.drift[:, None] * times[..., None].astype(np.float32)
        a = turn * self.frequency[:, None, :, 1, None] * rows + moved[..., None]
        b = turn * self.frequency[:, :, 0, None] * columns
        left = np.concatenate([np.sin(a), np.cos(a)], axis=2)
        right = np.concatenate([np.cos(b), np.sin(b)], axis=1) * np.tile(self.weight, 2)[..., None]
        blend = np.clip(left.swapaxes(2, 3) @ right[:, None] + np.float32(0.5), 0.0, 1.0)
        span = (self.high - self.low)[:, None, :, None, None]
        return (blend[:, :, None] * span + self.low[:, None, :, None, None]).astype(np.uint8)


def recolour(
    pictures: UInt8[Array, "*n c y x"],
    degrees: float | Array,
    colour: Sequence[int] | None = None,
    saturation: float | Array = 1.0,
) -> UInt8[Array, "*n c y x"]:
    """Pictures whose hues turn around the grey axis (of YIQ); luma stays as it is.

    Where a turned colour would leave the range of bytes it is less saturated instead. For surprise at colours never
    seen, give it pictures of an episode and a held-out angle (179 to 181 degrees, where
    ``Distract(split="train", recolour="all")`` was trained with -119 to 119).

    Args:
        pictures: RGB, or stacks of RGB frames: ``c`` is a multiple of 3.
        degrees: a number, or one for each picture, shape ``(*n,)``.
        colour: only hues within 15 degrees of this RGB colour's, at least half as saturated; None: all.
        saturation: the share that is left of it, from 0 (grey) to 1; a number, or one for each picture.

    Raises:
        ValueError: for pictures that are not uint8 RGB, angles or saturations that are not finite or do not fit, or a
            colour without a hue.
    """
    if pictures.dtype != np.uint8 or pictures.ndim < 3 or pictures.shape[-3] % 3 or not pictures.shape[-3]:
        raise ValueError(
            "pictures must be uint8 RGB (..., c, y, x) with c a multiple of 3, got "
            f"{pictures.dtype} {pictures.shape}; only colours have a hue"
        )
    many = pictures.shape[:-3]
    angles, shares = np.asarray(degrees, np.float32), np.asarray(saturation, np.float32)
    for name, values in (("degrees", angles), ("saturation", shares)):
        if values.shape not in ((), many) or not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite: one number, or {many} of them, got {values}")
    if ((shares < 0) | (shares > 1)).any():
        raise ValueError(f"saturation must lie between 0 (grey) and 1 (as it is), got {saturation!r}")
    frames = pictures.reshape(-1, 3, *pictures.shape[-2:])
    each = [
        np.broadcast_to(part[..., None], (*many, pictures.shape[-3] // 3)).reshape(-1)
        for part in (angles, shares)
    ]
    changed = _turned(frames, *each)
    if colour is not None:
        tall = np.ascontiguousarray(frames.transpose(0, 2, 3, 1)).reshape(-1, frames.shape[-1], 3)
        hsv = cv2.cvtColor(tall, cv2.COLOR_RGB2HSV_FULL) if tall.size else tall
        near = _near(hsv.reshape(-1, *frames.shape[-2:], 3), hue_of(colour))
        changed = np.where(near[:, None], changed, frames)
    return changed.reshape(pictures.shape)


def _turned(
    frames: UInt8[Array, "n 3 y x"], degrees: Float[Array, " n"], saturation: Float[Array, " n"]
) -> UInt8[Array, "n 3 y x"]:
    grey = np.tile(np.array(LUMA, np.float32), (3, 1))  # every channel becomes the luma
    turn = turned_hue(torch.from_numpy(degrees / 360).view(-1, 1, 1)).numpy()
    change = grey + saturation[:, None, None] * (turn - grey)
    changed = np.empty((len(frames), 3, frames[0, 0].size), np.uint8)
    for begin in range(0, len(frames), 32):  # as many as stay in the processor's cache
        some = slice(begin, begin + 32)
        x = frames[some].reshape(-1, 3, changed.shape[-1]).astype(np.float32)
        y = change[some] @ x
        which, where = np.nonzero((y.max(axis=1) > 255) | (y.min(axis=1) < 0))
        y[which, :, where] = _in_range(y[which, :, where], x[which, :, where] @ grey[0])
        changed[some] = np.rint(y, out=y)
    return changed.reshape(frames.shape)


def _in_range(colours: Float[Array, "m 3"], luma: Float[Array, " m"]) -> Float[Array, "m 3"]:
    """Colours of the same luma, as saturated as they can be but no more."""
    beyond, luma = colours - luma[:, None], luma[:, None]
    # The share of the room up to 255 and down to 0 that is taken; more than all of it is too much.
    up = beyond.max(axis=1, keepdims=True) / np.maximum(255 - luma, 1e-3)
    down = beyond.min(axis=1, keepdims=True) / np.minimum(-luma, -1e-3)
    return np.clip(luma + beyond / np.maximum(np.maximum(up, down), 1.0), 0, 255)


def random_shares(keys: UInt64[Array, " n"], counts: Int[Array, "n k"]) -> Float[Array, "n k"]:
    """Numbers in [0, 1) that look random, always the same for a key and a count.

    SplitMix64 (Steele, Lea and Flood 2014).
    """
    x = keys[:, None] + (counts.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # wraps
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def hue_of(colour: Sequence[int]) -> tuple[int, int]:
    """Hue (1/256 of a turn) and saturation (0 to 255) of an RGB colour.

    Raises:
        ValueError: unless it is RGB in 0..255 and not grey.
    """
    array = np.asarray(colour)
    if array.shape != (3,) or array.dtype.kind not in "iu" or ((array < 0) | (array > 255)).any():
        raise ValueError(
            f"a colour to rotate must be three whole numbers from 0 to 255 (RGB), got {colour!r}"
        )
    hsv = cv2.cvtColor(array.astype(np.uint8)[None, None], cv2.COLOR_RGB2HSV_FULL)
    hue, saturation, _ = hsv[0, 0].tolist()
    if not saturation:
        raise ValueError(f"{colour!r} is grey and has no hue; choose a colour")
    return hue, saturation


def _near(hsv: UInt8[Array, "n y x 3"], hue: tuple[int, int]) -> Array:
    """Which pixels have (nearly) this hue, bool ``(n, y, x)``."""
    away = (hsv[..., 0] - np.uint8(hue[0])).astype(np.int8)  # bytes wrap round: -128 to 127
    return (np.abs(away.astype(np.int16)) <= SAME_HUE / 360 * HUES) & (hsv[..., 1] >= hue[1] / 2)


def commonest_colours(pictures: UInt8[Array, "n c y x"]) -> UInt8[Array, "n c"]:
    """The colour that most pixels of each picture have."""
    n, channels = pictures.shape[:2]
    pixels = pictures.reshape(n, channels, -1)
    # A number for each colour, sorted, so that pixels of one colour form a run.
    factors = np.random.default_rng(0).integers(1, 2**62, channels, np.uint64) | np.uint64(1)
    keys = (pixels.astype(np.uint64) * factors[:, None]).sum(axis=1, dtype=np.uint64)  # wraps round
    order = np.argsort(keys, axis=1, kind="stable")
    keys = np.take_along_axis(keys, order, axis=1)
    first = np.ones(keys.shape, bool)
    first[:, 1:] = keys[:, 1:] != keys[:, :-1]
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=first.size)
    row, size = starts // keys.shape[1], keys.shape[1]
    best = np.lexsort((-lengths, row))  # the longest run of every row comes first in it
    longest = starts[best[np.searchsorted(row[best], np.arange(n))]] % size
    return pixels[np.arange(n), :, order[np.arange(n), longest]]
