"""A small convolutional encoder, fast on processors and GPUs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_rl import distributed
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


def precision_of(encoder: nn.Module, weights: torch.dtype, device: torch.device) -> torch.autocast:
    """Context manager: an encoder with weights of this dtype computes in bfloat16 in training, where that is fast.

    In evaluation mode, and with weights of another precision than float32, it computes in that of its weights.
    """
    half = encoder.training and weights == torch.float32 and bfloat16_is_fast(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


class PatchConv(nn.Conv2d):
    """A convolution over non-overlapping patches of bytes, as one matrix product.

    Pixels are standardised here and nowhere else: less the mean picture, divided by the deviation from it, one number
    for all pixels, both measured on the first ``MEASURED`` training batches and fixed from then on. A background that
    stands still is 0 then, and what moves of order 1. Without that a thin or slow thing hides for thousands of updates
    behind what all pictures share (LeCun et al. 1998, "Efficient BackProp", section 4.3): supervised by the true state,
    1,200 updates read the speed of reacher's second joint with an R2 of 0.18, and 0.77 with it.

    The patches are gathered as bytes, several to a machine word, and then converted to floats: converting first took
    longer than the convolution on a processor. Rows and columns beyond the last whole patch are ignored, as in a
    convolution. Files of earlier versions hold no such statistics; their pixels stay divided by 255.

    Args:
        channels, size: of the pictures; ``size`` is their rows and columns.
        width: output channels.
        patch: rows and columns of one patch.

    Raises:
        ValueError: in ``forward``, for anything but uint8.
    """

    mean: Tensor
    spread: Tensor
    measured: Tensor

    def __init__(self, channels: int, size: int, width: int, patch: int) -> None:
        super().__init__(channels, width, patch, stride=patch)
        self.patch = patch
        self.register_buffer("mean", torch.zeros(channels, size, size))
        self.register_buffer("spread", torch.tensor(255.0))
        self.register_buffer("measured", torch.tensor(0))
        self.measuring = True  # see ``unmeasured_pixels``
        # Kept beside the buffers, since asking those of a GPU waits for it:
        self._fixed = False  # nothing is measured any more
        self._by_255 = False  # read from a file without statistics
        self._kept: tuple[Tensor, int, torch.dtype, Tensor] | None = None  # see ``_mean_patches``
        self.register_load_state_dict_pre_hook(_read_statistics)

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b w rows columns"]:
        """The result has the memory format channels_last, which the next convolution needs."""
        if pixels.dtype != torch.uint8:
            raise ValueError(f"expected uint8 pixels, got {pixels.dtype}; they are standardised inside")
        if self.training and len(pixels) > 1 and self.measuring and not self._fixed:
            self._measure(pixels)
        half = torch.is_autocast_enabled(pixels.device.type)
        dtype = torch.get_autocast_dtype(pixels.device.type) if half else self.weight.dtype
        weight, mean = self.weight.flatten(1) / self.spread, self._mean_patches(dtype)
        patches = self._patches(pixels).to(dtype)
        if half:  # differences of bytes are exact in bfloat16, sums over a whole picture are not
            flat = F.linear(patches.sub_(mean), weight, self.bias)
        else:  # the same, with less memory to pass through: places have fewer outputs than pixels
            flat = F.linear(patches, weight).add_(F.linear(mean, -weight, self.bias))
        y, x = pixels.shape[2] // self.patch, pixels.shape[3] // self.patch
        return flat.unflatten(1, (y, x)).permute(0, 3, 1, 2)

    def _mean_patches(self, dtype: torch.dtype) -> Float[Tensor, "1 places values"]:
        """Patches of the mean picture, kept while it is the same: a single observation would wait for them."""
        mean, kept = self.mean, self._kept
        version = None if mean.is_inference() or torch.compiler.is_compiling() else mean._version
        if kept is not None and kept[0] is mean and kept[1:3] == (version, dtype):
            return kept[3]
        with torch.inference_mode(False):  # they are kept, for training too
            patches = self._patches(mean.round().to(torch.uint8).unsqueeze(0)).to(dtype)
        if version is not None:
            self._kept = mean, version, dtype, patches
        return patches

    def _patches(self, pixels: UInt8[Tensor, "b c y x"]) -> UInt8[Tensor, "b places values"]:
        p, (b, c) = self.patch, pixels.shape[:2]
        y, x = pixels.shape[2] // p, pixels.shape[3] // p
        word = WORDS.get(p, torch.uint8)
        words = pixels[:, :, : y * p, : x * p].flatten(1).view(word)
        order = word_order(c, y, x, p, word.itemsize, pixels.device)
        return words.gather(1, order.expand(b, -1)).view(torch.uint8).view(b, y * x, c * p * p)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: versions of their tensors count anew."""
        return self.__dict__ | {"_kept": None}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """What was read from a file without statistics is written without them: it is still the same encoder."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._by_255:
            for name in ("mean", "spread", "measured"):
                del destination[prefix + name]

    @torch.no_grad()
    def _measure(self, pixels: UInt8[Tensor, "b c y x"]) -> None:
        """One batch more in the averages, if there are fewer than ``MEASURED``; 32 of its pictures say enough."""
        self._fixed = bool(self.measured >= MEASURED)
        if self._fixed:
            return
        some = pixels[:: max(1, len(pixels) // 32)].to(self.mean.dtype)
        mean, variance, _ = distributed.moments(some)
        self.measured += 1
        share = 1 / self.measured
        self.mean.lerp_(mean, share)
        spread = variance.mean().sqrt().clamp_min(1.0)  # pictures that are all alike
        self.spread = self.spread.lerp(spread, share)  # new memory: an earlier batch's gradient needs the old


@contextmanager
def unmeasured_pixels(module: nn.Module) -> Iterator[None]:
    """Context manager: pictures that are encoded inside do not count as what training showed."""
    stems = [part for part in module.modules() if isinstance(part, PatchConv) and part.measuring]
    for stem in stems:
        stem.measuring = False
    try:
        yield
    finally:
        for stem in stems:
            stem.measuring = True


def _read_statistics(stem: nn.Module, tensors: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Hook of ``load_state_dict``: weights without statistics are those of pixels divided by 255."""
    assert isinstance(stem, PatchConv)
    stem._fixed = False
    if f"{prefix}weight" not in tensors:
        return
    stem._by_255 = f"{prefix}mean" not in tensors
    if stem._by_255:
        like = tensors[f"{prefix}weight"]
        tensors[f"{prefix}mean"] = torch.zeros_like(stem.mean, device=like.device)
        tensors[f"{prefix}spread"] = torch.full_like(stem.spread, 255.0, device=like.device)
        tensors[f"{prefix}measured"] = torch.full_like(stem.measured, MEASURED, device=like.device)


MEASURED = 1000  # training batches
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


def halving(widths: tuple[int, ...]) -> list[nn.Module]:
    """3 x 3 convolutions from each of these channels to the next; each halves rows and columns, rounded up."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return layers


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
        layers: list[nn.Module] = [PatchConv(channels, size, widths[0], patch), nn.ReLU()]
        layers += halving(widths)
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
        with precision_of(self, self.project.weight.dtype, pixels.device):
            x = self.convolutions(pixels)
        return x.to(self.project.weight.dtype)
