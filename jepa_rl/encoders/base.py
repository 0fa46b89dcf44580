"""Base class of picture encoders, and the encoder of several observations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.distributed import BatchNorm
from jepa_rl.heads import Perceptron, symlog
from jepa_rl.types import Observations, WorldSpec


class PictureEncoder(nn.Module):
    """Pictures to latents; a subclass defines ``forward`` and ``latent_dim``.

    Your own encoder need not subclass it: any ``nn.Module`` with ``latent_dim`` and ``forward`` works.

    ``runs`` and ``windows`` encode whole windows. An encoder that reads the frames of a stack one by one overrides them
    to encode a frame that several stacks of a window share only once.

    ``tokens``, if a subclass defines it, returns local features "b l w", one row for each place in the picture; the
    objective ``dense`` predicts them. Objectives on tokens train them and nothing behind them. They need the latent to
    be ``readout(summary(tokens(pixels)))``, with a ``readout`` that is linear, and those that mask ``tokens(pixels,
    keep)``, which reads the places ``keep`` "b m" alone. ``ViTEncoder`` has all of it.
    """

    latent_dim: int

    def encode(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        """``forward``, under the name that the wrappers use."""
        return self(pixels)

    def runs(self, windows: UInt8[Tensor, "b t c y x"]) -> UInt8[Tensor, "b f y x"]:
        """The frames of each window that ``windows`` needs, as channels: here all stacks, ``f = t * c``."""
        return windows.flatten(1, 2)

    def windows(self, runs: UInt8[Tensor, "b f y x"], steps: int) -> Float[Tensor, "b t d"]:
        """Latents of the ``t = steps`` pictures of each window, from what ``runs`` returned."""
        pictures = runs.unflatten(1, (steps, -1)).flatten(0, 1)
        return self(pictures).unflatten(0, (-1, steps))


class ObservationEncoder(nn.Module):
    """The sum of one latent per picture, each from its own encoder, and one latent of all vectors, from a perceptron.

    Vectors go through symlog, since they come in any unit. Beside pictures the vectors' latent is batch-normalised to
    the scale of picture features; otherwise goals given as vectors were ignored (return -5.7 against -3.7, where
    standing still earns -10; means of seven short trainings).

    Args:
        spec: what is observed.
        latent_dim: width of the latent.
        make_picture: builds the encoder for pictures of a shape (frames * channels, y, x).
    """

    def __init__(
        self, spec: WorldSpec, latent_dim: int, make_picture: Callable[[tuple[int, ...]], nn.Module]
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        shapes = spec.shapes
        self.pictures = nn.ModuleDict(
            {name: make_picture(shape) for name, shape in shapes.items() if len(shape) == 3}
        )
        self.vectors = [name for name, shape in shapes.items() if len(shape) == 1]
        inputs = sum(shapes[name][0] for name in self.vectors)
        self.perceptron = Perceptron(inputs, 2 * latent_dim, latent_dim, 2) if inputs else None
        beside = bool(inputs) and len(self.pictures) > 0
        self.norm = BatchNorm(latent_dim, affine=False) if beside else nn.Identity()

    def forward(self, observations: dict[str, Tensor]) -> Float[Tensor, "b d"]:
        pictures = {name: encoder(observations[name]) for name, encoder in self.pictures.items()}
        return self._joined(pictures, observations)

    def runs(self, windows: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``PictureEncoder.runs``; vectors are returned unchanged."""
        pictures = {name: cast(Tensor, runs_of(part, windows[name])) for name, part in self.pictures.items()}
        return windows | pictures

    def windows(self, runs: dict[str, Tensor], steps: int) -> Float[Tensor, "b t d"]:
        """See ``PictureEncoder.windows``."""
        pictures = {
            name: windows_of(part, runs[name], steps).flatten(0, 1) for name, part in self.pictures.items()
        }
        vectors = {name: runs[name].flatten(0, 1) for name in self.vectors}
        return self._joined(pictures, vectors).unflatten(0, (-1, steps))

    def _joined(self, pictures: dict[str, Tensor], observations: dict[str, Tensor]) -> Float[Tensor, "b d"]:
        parts = list(pictures.values())
        if self.perceptron is not None:
            vectors = torch.cat([observations[name].float() for name in self.vectors], dim=-1)
            parts.append(self.norm(self.perceptron(symlog(vectors))))
        return torch.stack(parts).sum(0)


def tokens_of(encoder: nn.Module, windows: UInt8[Tensor, "b t c y x"]) -> Float[Tensor, "b t l w"]:
    """Local features of the pictures of windows; the encoder has a method ``tokens``, see ``PictureEncoder``."""
    steps, local = windows.shape[1], cast(Any, encoder)
    if isinstance(encoder, PictureEncoder) and hasattr(encoder, "window_tokens"):
        return local.window_tokens(local.runs(windows), steps)
    return local.tokens(windows.flatten(0, 1)).unflatten(0, (-1, steps))


def runs_of(encoder: nn.Module, windows: Observations) -> Observations:
    """``encoder.runs`` where it has one; for any other ``nn.Module`` the default of ``PictureEncoder``."""
    if isinstance(encoder, PictureEncoder | ObservationEncoder):
        return encoder.runs(windows)  # type: ignore[arg-type]
    return PictureEncoder.runs(encoder, windows)  # type: ignore[arg-type]


def windows_of(encoder: nn.Module, runs: Observations, steps: int) -> Float[Tensor, "b t d"]:
    """Latents "b t d" from what ``runs_of`` returned.

    Args:
        encoder: the same one.
        runs: uint8 "b f y x", or tensors by name.
        steps: t, the number of states in a window.
    """
    if isinstance(encoder, PictureEncoder | ObservationEncoder):
        return encoder.windows(runs, steps)  # type: ignore[arg-type]
    return PictureEncoder.windows(encoder, runs, steps)  # type: ignore[arg-type]
