"""A small convolutional encoder, fast on processors and GPUs."""

from __future__ import annotations

import functools
from itertools import pairwise

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl.distributed import BatchNorm
from jepa_rl.encoders.base import PictureEncoder
from jepa_rl.registry import register_encoder


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether convolutions are faster in bfloat16 on this device (CPU: AVX512-BF16 or AMX; GPU: Ampere or newer)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private: other versions may lack it
    # ATEN_CPU_CAPABILITY=avx2 makes torch behave as on a processor that lacks both.
    limited = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return device.type == "cpu" and supported is not None and supported() and not limited


def trains_in_bfloat16(encoder: nn.Module, weights: torch.dtype, device: torch.device) -> bool:
    """Whether an encoder with weights of this dtype is in training, and computes in bfloat16 then.

    In evaluation mode, and with weights of another precision than float32, it computes in that of its weights.
    """
    return encoder.training and weights == torch.float32 and bfloat16_is_fast(device)


class PatchConv(nn.Conv2d):
    """A convolution over non-overlapping patches of bytes, as one matrix product.

    Pixels are scaled from 0..255 to 0..1 here and nowhere else. The patches are gathered as bytes, several to a machine
    word, and then converted to floats: converting first took longer than the convolution on a processor. Rows and
    columns beyond the last whole patch are ignored, as in a convolution.

    Raises:
        ValueError: in ``forward``, for anything but uint8.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__(channels, width, patch, stride=patch)
        self.patch = patch

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b w rows columns"]:
        """The result has the memory format channels_last, which the next convolution needs."""
        if pixels.dtype != torch.uint8:
            raise ValueError(f"expected uint8 pixels, got {pixels.dtype}; 0..255 is scaled inside")
        p, (b, c) = self.patch, pixels.shape[:2]
        y, x = pixels.shape[2] // p, pixels.shape[3] // p
        word = WORDS.get(p, torch.uint8)
        words = pixels[:, :, : y * p, : x * p].flatten(1).view(word)
        order = word_order(c, y, x, p, word.itemsize, pixels.device)
        patches = words.gather(1, order.expand(b, -1)).view(torch.uint8).view(b * y * x, c * p * p)
        half = torch.is_autocast_enabled(pixels.device.type)
        dtype = torch.get_autocast_dtype(pixels.device.type) if half else self.weight.dtype
        flat = F.linear(patches.to(dtype), self.weight.flatten(1) / 255, self.bias)
        return flat.view(b, y, x, -1).permute(0, 3, 1, 2)


WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # a row of a patch as one machine word


@functools.lru_cache(maxsize=64)
def word_order(
    channels: int, rows: int, columns: int, patch: int, itemsize: int, device: torch.device
) -> Int64[Tensor, " words"]:
    """Indices of a picture's words, patch after patch.

    Args:
        channels: of the picture.
        rows, columns: of patches.
        patch: rows and columns of a patch, in pixels.
        itemsize: bytes of a word.
        device: of the result.
    """
    size = channels * rows * columns * patch * patch // itemsize
    with torch.inference_mode(False):  # it is kept, for training too
        words = torch.arange(size, device=device).view(channels, rows, patch, columns, patch // itemsize)
        return words.permute(1, 3, 0, 2, 4).flatten()


@register_encoder("conv")
class ConvEncoder(PictureEncoder):
    """A patch convolution, stride-2 convolutions, one linear layer and a batch norm without parameters.

    The first layer reads non-overlapping patches: on a processor the early, large feature maps cost most of a
    training step, and the patch stem trains about six times faster than four stride-2 layers.
    The batch norm fixes the scale of every latent dimension. With it anti-collapse terms such as SIGReg
    learn from the first update on, and distances are comparable between models.

    Args:
        channels: input channels ``k * c``.
        size: input rows and columns.
        latent_dim: width of the latent.
        widths: output channels of the patch layer and of the stride-2 layers, each of which halves the picture.
        patch: rows and columns of one patch.
        norm: whether to end in the batch norm; without it the latents are not bounded.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        latent_dim: int,
        widths: tuple[int, ...] = (32, 32, 64),
        patch: int = 4,
        norm: bool = True,
    ) -> None:
        super().__init__()
        smallest = patch * 2 ** (len(widths) - 1)
        if size < smallest:
            raise ValueError(
                f"widths {widths} and patch {patch} need pixels of at least {smallest}, got size {size}"
            )
        self.latent_dim = latent_dim
        layers: list[nn.Module] = [PatchConv(channels, widths[0], patch), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.convolutions[1:].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            features = self.convolutions(torch.zeros(1, channels, size, size, dtype=torch.uint8)).numel()
        self.project = nn.Linear(features, latent_dim)
        self.norm = BatchNorm(latent_dim, affine=False) if norm else nn.Identity()

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        """Latents in the dtype of the weights, float32."""
        return self.norm(self.project(self._maps(pixels).flatten(1)))

    def tokens(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b l w"]:
        """The last convolution's features at each of its places."""
        return self._maps(pixels).flatten(2).transpose(1, 2)

    def _maps(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b w rows columns"]:
        half = trains_in_bfloat16(self, self.project.weight.dtype, pixels.device)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=half):
            x = self.convolutions(pixels)
        return x.to(self.project.weight.dtype)
