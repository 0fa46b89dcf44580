"""What pretrained backbones share: frames come in as uint8, and frozen weights stay out of files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

ROWS = 64  # frames that a frozen backbone reads at a time, so that memory stays bounded for any batch


class Backbone(nn.Module):
    """A pretrained model that reads single frames and answers one token for each place; a subclass defines ``read``.

    A frozen model's weights are no parameters and are not in the state dict: a file names them, and holds their
    checksum, which is compared when the file is loaded. The model stays in evaluation mode and makes no gradients.

    Args:
        model: the pretrained model.
        name: of the weights, for messages.
        checksum: SHA-256 of the weights, hexadecimal.
        mean, std: of red, green and blue, in 0..255, that pictures are normalised by.
        resolution: rows and columns that frames are resized to, pixels.
        grid: rows and columns of places.
        frozen: whether the weights stay as they are.

    Attributes:
        width: of a token.
        class_token: whether the first token stands for the whole picture.
    """

    checksum: Tensor
    mean: Tensor
    std: Tensor
    class_token = False

    def __init__(
        self,
        model: nn.Module,
        name: str,
        checksum: str,
        mean: Sequence[float],
        std: Sequence[float],
        resolution: int,
        grid: int,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.name, self.resolution, self.grid, self.frozen = name, resolution, grid, frozen
        self.register_buffer("checksum", torch.frombuffer(bytearray.fromhex(checksum), dtype=torch.uint8))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self._held: tuple[nn.Module, ...] = ()  # a tuple, so that PyTorch does not see the module in it
        if frozen:
            self._held = (model.requires_grad_(False).eval(),)
        else:
            self.model = model
        with torch.no_grad():
            self.width = self.read(model, torch.zeros(1, 3, resolution, resolution), None).shape[-1]

    def read(
        self, model: Any, pictures: Float[Tensor, "b 3 y x"], keep: Int64[Tensor, "b m"] | None
    ) -> Float[Tensor, "b l w"]:
        """Tokens of normalised pictures: those of the places are the last, row by row.

        Args:
            model: the pretrained one.
            pictures: of ``resolution`` rows and columns.
            keep: places that alone are read, and answered; None for all.
        """
        raise NotImplementedError

    def forward(
        self, frames: UInt8[Tensor, "b c y x"], keep: Int64[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b l w"]:
        """Tokens of frames, float32.

        Args:
            frames: of 1 channel (grey), 2 (blue is 0) or 3.
            keep: places, counted row by row; only these are read. None keeps all.

        Raises:
            ValueError: for anything but uint8.
        """
        if frames.dtype != torch.uint8:
            raise ValueError(f"expected uint8 pixels, got {frames.dtype}; they are normalised inside")
        if not self.frozen:
            return self.read(self.model, self.prepare(frames), keep)
        several = frames.split(ROWS)
        kept = [None] * len(several) if keep is None else keep.split(ROWS)
        with torch.no_grad():
            pairs = zip(several, kept, strict=True)
            return torch.cat([self.read(self._held[0], self.prepare(f), k) for f, k in pairs])

    def prepare(self, frames: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b 3 rows columns"]:
        """Frames as the model wants them: three channels, resized (means of areas if smaller, bicubic if larger)."""
        x = frames.to(self.mean.dtype)
        if (size := (self.resolution, self.resolution)) != x.shape[2:]:
            smaller = self.resolution < min(x.shape[2:])
            x = F.interpolate(x, size, mode="area" if smaller else "bicubic").clamp_(0, 255)
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] == 2:
            x = F.pad(x, (0, 0, 0, 0, 0, 1))
        return (x - self.mean) / self.std

    def _apply(self, fn: Any, recurse: bool = True) -> Backbone:
        """Moves the weights that PyTorch does not see, too (``.to(device)``)."""
        for model in self._held:
            model._apply(fn)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Raises ValueError where a file was made with other weights than those that were found."""
        there = state_dict.get(f"{prefix}checksum")
        if self.frozen and there is not None and not torch.equal(there.cpu(), self.checksum.cpu()):
            wanted, found = (bytes(t.cpu().tolist()).hex() for t in (there, self.checksum))
            raise ValueError(
                f"the weights of {self.name!r} are not those that this file was made with: their SHA-256 is {found}, "
                f"expected {wanted}; put the former weights back, or name their revision on the hub"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)
