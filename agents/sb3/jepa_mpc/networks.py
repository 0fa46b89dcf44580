"""What ``JEPAMPC``'s world model is made of: its settings, and the doors for observations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.dynamics import simplex
from jepa_rl.encoders import FramesEncoder, picture_encoder
from jepa_rl.heads import Perceptron, PictureDecoder, symlog

Latent = Literal["simplex", "sigreg", "vicreg"]
Shaping = Literal["jepa", "reconstruction"]
# Of the batch norms' running statistics. Acting reads them between updates at full rate: they must not lag behind (at
# 0.1 the reward's error one step ahead was 0.48 on unseen episodes, at 0.5 it was 0.37).
MOMENTUM = 0.5


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and weights; plain numbers. The defaults are those of the preset ``laptop``.

    Simplex latents with TD-MPC2's weights (consistency 20, reward and value 0.1, target_rate 0.01) collapsed from
    pixels at the rates that a few thousand updates need, and of what cartpole's pictures show SIGReg's latents knew
    less than VICReg's (docs/lab-notes.md).

    Attributes:
        latent_dim: width of the latent.
        width, depth: hidden units and layers of dynamics and heads.
        encoder_widths, patch: of the encoder of pictures, see ``keypoints``; None for its own widths.
        share_frames: whether stacked frames go through the same convolutions one by one (``FramesEncoder``), or
            through one encoder as channels.
        frame_dim: numbers that one of them is read into.
        keypoints: of a ``KeypointEncoder``; 0 for a ``ConvEncoder``.
        values: heads in the ensemble of action values.
        bins: of reward and value distributions.
        latent: what keeps latents from collapsing: softmax over groups of 8 (``"simplex"``, as TD-MPC2), SIGReg
            on latents of pictures that are batch-normalised, or VICReg's variance and covariance.
        objective: what shapes the latents beside reward and value: prediction of the next latents (``"jepa"``), or
            the reconstruction of the observations (an ablation).
        frozen: encoder and dynamics stay as they are, see ``ControlModel.warm_start`` (an ablation).
        shift: pixels that pictures are shifted by at random (DrQ's augmentation).
        termination: whether a head predicts the end of the episode; without it plans and values ignore ends.
        consistency, reconstruction, reward, value, end, anti_collapse: weights of the terms, where they occur.
        decay: weight of each further step of the rollout, relative to the one before.
        entropy: weight of the policy's entropy.
        target_rate: of the moving average that value targets come from, per update.

    Raises:
        ValueError: for a name that is none of these, a size below 1 or a negative weight.
    """

    latent_dim: int = 64
    width: int = 128
    depth: int = 2
    encoder_widths: tuple[int, ...] | None = None
    patch: int = 4
    share_frames: bool = True
    frame_dim: int = 64
    keypoints: int = 0
    values: int = 2
    bins: int = 51
    latent: Latent = "vicreg"
    objective: Shaping = "jepa"
    frozen: bool = False
    shift: int = 3
    termination: bool = True
    consistency: float = 1.0
    reconstruction: float = 20.0
    reward: float = 0.5
    value: float = 0.5
    end: float = 1.0
    anti_collapse: float = 1.0
    decay: float = 0.5
    entropy: float = 1e-4
    target_rate: float = 0.02

    def __post_init__(self) -> None:
        for name, known in (("latent", get_args(Latent)), ("objective", get_args(Shaping))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name in ("latent_dim", "width", "depth", "patch", "frame_dim", "values", "bins"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("keypoints", "shift", "consistency", "reconstruction", "reward", "value", "end", "anti_collapse",
                     "decay", "entropy", "target_rate"):  # fmt: skip
            if not getattr(self, name) >= 0:  # NaN, too
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


class ObservationEncoder(nn.Module):
    """Pictures through a conv net, vectors through a perceptron, added up; each batch-normalised where both are there.

    Args:
        space: of the observation, by name; uint8 pictures (c, y, x), everything else is flat.
        config: widths.
        frames: stacked in every picture, the oldest first.
    """

    def __init__(self, space: dict[str, spaces.Box], config: ModelConfig, frames: int = 1) -> None:
        super().__init__()
        d = config.latent_dim
        options: dict[str, Any] = dict(
            widths=config.encoder_widths,
            patch=config.patch,
            norm=config.latent != "simplex",
            keypoints=config.keypoints,
        )
        self.pictures = nn.ModuleDict()
        self.vectors, inputs = [], 0
        for name, box in space.items():
            if len(box.shape) == 3:
                channels, size, _ = box.shape
                encoder = (
                    FramesEncoder(channels, size, d, frames, frame_dim=config.frame_dim, **options)
                    if config.share_frames and frames > 1
                    else picture_encoder(channels, size, d, **options)
                )
                if isinstance(encoder.norm, nn.BatchNorm1d):
                    encoder.norm.momentum = MOMENTUM
                self.pictures[name] = encoder
            else:
                self.vectors.append(name)
                inputs += box.shape[0]
        self.perceptron = Perceptron(inputs, config.width, d, 2) if inputs else None
        # As loud as pictures are. Unscaled, a goal that a vector told beside a picture was overheard in some runs:
        # returns of -5.7 in the mean of seven short trainings, and of -3.7 like this, where -10 is to stand still.
        beside = inputs and self.pictures and options["norm"]
        self.norm = nn.BatchNorm1d(d, affine=False, momentum=MOMENTUM) if beside else nn.Identity()
        self.simplex = config.latent == "simplex"

    def forward(self, observations: dict[str, Tensor]) -> Float[Tensor, "b d"]:
        pictures = {name: encoder(observations[name]) for name, encoder in self.pictures.items()}
        return self._joined(pictures, observations)

    def runs(self, windows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Observations "b t ..." for ``windows``: pictures become "b c y x" of all their frames, none of them twice."""
        found = dict(windows)
        for name, encoder in self.pictures.items():
            x = windows[name]
            if isinstance(encoder, FramesEncoder):
                found[name] = torch.cat([x[:, 0], x[:, 1:, -encoder.channels :].flatten(1, 2)], dim=1)
            else:
                found[name] = x.flatten(1, 2)
        return found

    def windows(self, runs: dict[str, Tensor], steps: int) -> Float[Tensor, "b t d"]:
        """Latents of all ``steps`` observations of every window."""
        pictures = {
            name: encoder.windows(runs[name]).flatten(0, 1)
            if isinstance(encoder, FramesEncoder)
            else encoder(runs[name].unflatten(1, (steps, -1)).flatten(0, 1))
            for name, encoder in self.pictures.items()
        }
        vectors = {name: runs[name].flatten(0, 1) for name in self.vectors}
        return self._joined(pictures, vectors).unflatten(0, (-1, steps))

    def _joined(self, pictures: dict[str, Tensor], observations: dict[str, Tensor]) -> Float[Tensor, "b d"]:
        parts = list(pictures.values())
        if self.perceptron is not None:
            # symlog: vectors come in any unit
            vectors = torch.cat([observations[name].float() for name in self.vectors], dim=-1)
            parts.append(self.norm(self.perceptron(symlog(vectors))))
        total = torch.stack(parts).sum(0)
        return simplex(total) if self.simplex else total


class ObservationDecoder(nn.Module):
    """The way back from latents to observations, for the ablation by reconstruction."""

    def __init__(self, space: dict[str, spaces.Box], config: ModelConfig) -> None:
        super().__init__()
        d = config.latent_dim
        self.heads = nn.ModuleDict()
        for name, box in space.items():
            if len(box.shape) == 3:
                self.heads[name] = PictureDecoder(d, box.shape[0], box.shape[1])
            else:
                self.heads[name] = Perceptron(d, config.width, box.shape[0], config.depth)

    def loss(
        self, z: Float[Tensor, "m d"], observations: dict[str, Tensor], weight: Float[Tensor, " m"]
    ) -> Float[Tensor, ""]:
        """Mean squared error over pixels (0 to 1) and vectors (symlog), of observations "b t ..." with m = b t; summed
        over these by ``weight``."""
        errors = []
        for name, head in self.heads.items():
            seen = observations[name].flatten(0, 1)
            target = (
                seen.float() / 255 if seen.dtype == torch.uint8 and seen.ndim == 4 else symlog(seen.float())
            )
            errors.append((head(z) - target).square().flatten(1).mean(1))
        return torch.stack(errors).sum(0) @ weight


def random_shift(
    pixels: UInt8[Tensor, "b c y x"], by: int, generator: torch.Generator | None = None
) -> UInt8[Tensor, "b c y x"]:
    """Every picture moved by up to ``by`` pixels along both axes, its border repeated (Kostrikov et al. 2020, DrQ).

    Done on bytes: each row of the result is one run of bytes in the padded pictures, copied whole.
    """
    b, channels, rows, columns = pixels.shape
    sides = (*pixels.shape[:3], by)
    wide = torch.cat([pixels[..., :1].expand(sides), pixels, pixels[..., -1:].expand(sides)], dim=-1)
    width = columns + 2 * by
    down, right = torch.randint(0, 2 * by + 1, (2, b, 1, 1), generator=generator, device=pixels.device)
    y = (torch.arange(rows, device=pixels.device) + down - by).clamp_(0, rows - 1)
    picture = torch.arange(b * channels, device=pixels.device).view(b, channels, 1)
    starts = (picture * rows + y) * width + right
    runs = wide.view(-1).as_strided((wide.numel() - columns + 1, columns), (1, 1))
    return runs.index_select(0, starts.view(-1)).view(pixels.shape)
