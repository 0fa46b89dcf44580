"""Latent spaces of the head-to-head: frames are encoded singly, standardised, and stand side by side as a state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from _h2h_tasks import Seen, Task
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.data.view import EpisodeView
from jepa_rl.encoders.conv import bfloat16_is_fast
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.modes import evaluating
from jepa_rl.objectives import JEPA, ActionFreeJEPA, TeacherJEPA
from jepa_rl.registry import ENCODERS, register_encoder, register_objective
from jepa_rl.types import WorldSpec

ROWS = 512  # frames encoded at a time


@register_encoder("side_by_side")
class SideBySide(nn.Module):
    """Encodes each frame of a stack alone, by one encoder; the latent is those of the frames, oldest first.

    Args:
        channels, size, latent_dim, frames: of the stack.
        frame: name of the encoder of one frame.
        options: its arguments.
    """

    def __init__(
        self, channels: int, size: int, latent_dim: int, frames: int, frame: str, options: dict[str, Any]
    ) -> None:
        super().__init__()
        known = {
            "channels": channels // frames,
            "size": size,
            "latent_dim": latent_dim // frames,
            "frames": 1,
        }
        self.latent_dim, self.frames = latent_dim, frames
        self.frame = ENCODERS.build(frame, options, known)

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        frames = pixels.unflatten(1, (self.frames, -1)).flatten(0, 1)
        return self.frame(frames).unflatten(0, (-1, self.frames)).flatten(1)


class NewestShaped:
    """Anti-collapse terms act on the newest frame's latent: those of neighbouring frames are nearly equal, and terms
    that ask all components to be independent would push them apart."""

    spec: WorldSpec

    def shaped(self, z: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        return z[..., -(z.shape[-1] // self.spec.frames) :]


@register_objective("frames_jepa")
class FramesJEPA(NewestShaped, JEPA):
    """``jepa`` for frames side by side; the same as ``jepa`` for one frame."""


@register_objective("frames_action_free")
class FramesActionFree(NewestShaped, ActionFreeJEPA):
    """``action_free`` for frames side by side."""


@register_objective("frames_teacher")
class FramesTeacher(NewestShaped, TeacherJEPA):
    """``teacher`` for frames side by side."""


class Downsample(nn.Module):
    """Pixels themselves: means over areas, 0 to 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, pixels: UInt8[Tensor, "n c y x"]) -> Float[Tensor, "n d"]:
        return F.interpolate(pixels.float() / 255, (self.size, self.size), mode="area").flatten(1)


class Space(nn.Module):
    """Frames to standardised latents.

    Args:
        encoder: of one frame; None for the true state as it is.
        whiten: whether every component gets variance 1; otherwise one factor for all gives them a mean variance of 1,
            which leaves the geometry as the arm made it.
        half: whether the encoder computes in bfloat16 where that is fast: pretrained backbones take most of the time.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: nn.Module | None, whiten: bool, half: bool = False) -> None:
        super().__init__()
        self.encoder, self.whiten, self.half = encoder, whiten, half
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    @property
    def reads(self) -> Literal["pixels", "state"]:
        return "state" if self.encoder is None else "pixels"

    def raw(self, frames: np.ndarray) -> Float[Tensor, "n w"]:
        """Latents as the encoder gives them.

        Args:
            frames: uint8 "n c y x", or states float32 "n s".
        """
        x = torch.from_numpy(np.array(frames))  # a copy: stores are mapped read-only
        if self.encoder is None:
            return x.float()
        half = self.half and bfloat16_is_fast(x.device)
        with (
            torch.no_grad(),
            evaluating(self.encoder),
            torch.autocast(x.device.type, torch.bfloat16, enabled=half),
        ):
            return torch.cat([self.encoder(part) for part in x.split(ROWS)]).float()

    def standardised(self, raw: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
        return (raw - self.mean) / self.scale

    def fit(self, raw: Float[Tensor, "n w"]) -> None:
        """Takes mean and scale from latents of training frames."""
        spread = raw.std(0)
        self.mean = raw.mean(0)
        self.scale = spread.clamp_min(1e-6) if self.whiten else spread.square().mean().sqrt().clamp_min(1e-6)

    def read(self, seen: Seen) -> Float[Tensor, "n k w"]:
        frames = seen.state if self.encoder is None else seen.pixels
        return self.standardised(self.raw(frames.reshape(-1, *frames.shape[2:]))).unflatten(
            0, frames.shape[:2]
        )


def encode_frames(space: Space, task: Task, views: tuple[EpisodeView, EpisodeView], path: Path) -> None:
    """Latents of the frames of two views, standardised by those of the first; to a file.

    They stand at the rows that their frames have in the store, so that all columns of it can be read beside them; the
    rows of other frames hold zeros.
    """
    store = views[0].store
    frames = store.column("frames") if space.reads == "pixels" else task.describe(store.column)
    rows = [rows_of(view) for view in views]
    raw = [torch.cat([space.raw(frames[part.numpy()]) for part in own.split(8 * ROWS)]) for own in rows]
    space.fit(raw[0])
    latents = torch.zeros(len(frames), raw[0].shape[1])
    for own, found in zip(rows, raw, strict=True):
        latents[own] = space.standardised(found)
    save_tensors(path, "latents", {"latents": latents, "mean": space.mean, "scale": space.scale}, {})


def rows_of(view: EpisodeView) -> Int64[Tensor, " rows"]:
    """Rows of a view's frames in the columns of its store."""
    return torch.cat([torch.arange(first, first + length + 1) for first, length in bounds(view)])


def bounds(view: EpisodeView) -> Iterator[tuple[int, int]]:
    """First frame and steps of every episode."""
    firsts = view.store.step_starts[view.indices] + view.indices
    return zip(firsts.tolist(), view.lengths.tolist(), strict=True)


def stacked(latents: Float[Tensor, "rows w"], view: EpisodeView, frames: int) -> Float[Tensor, "m d"]:
    """States of all frames of a view: k latents side by side, the first frame repeated before the start."""
    rows, parts = rows_of(view), []
    start = torch.cat([torch.full((length + 1,), first) for first, length in bounds(view)])
    for back in reversed(range(frames)):
        parts.append(latents[torch.maximum(rows - back, start)])
    return torch.cat(parts, dim=1)


def latent_episodes(latents: Float[Tensor, "rows w"], view: EpisodeView, frames: int) -> LatentEpisodes:
    """The episodes of a view, as what dynamics learn on."""
    store = view.store
    steps = torch.cat(
        [
            torch.arange(a, a + n)
            for a, n in zip(store.step_starts[view.indices].tolist(), view.lengths.tolist(), strict=True)
        ]
    )
    actions = torch.from_numpy(view.spec.action.encode(store.column("actions")[steps.numpy()]))
    return LatentEpisodes(stacked(latents, view, frames), actions, torch.from_numpy(np.asarray(view.lengths)))


def read_latents(path: Path, space: Space) -> Float[Tensor, "rows w"]:
    """Latents from the file of ``encode_frames``; sets the scale of the space."""
    tensors, _ = load_tensors(path, ("latents",))
    space.mean, space.scale = tensors["mean"], tensors["scale"]
    return tensors["latents"]
