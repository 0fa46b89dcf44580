"""The contract of encoders as tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from jepa_rl.testing.checks import seeded
from jepa_rl.types import Encoder


def encode(encoder: Any, pixels: Tensor) -> Tensor:
    """Latents of an ``Encoder``, or of any ``nn.Module`` whose ``forward`` gives them."""
    return encoder.encode(pixels) if isinstance(encoder, Encoder) else encoder(pixels)


class EncoderContract:
    """What every encoder promises. Say how to make one, and set ``pixels`` if it reads another shape."""

    pixels: tuple[int, int, int] = (3, 64, 64)
    tolerance: float = 1e-4

    def make_encoder(self) -> Any:
        """The encoder (an ``Encoder``, or an ``nn.Module`` with ``forward``), in evaluation mode, always the same."""
        raise NotImplementedError

    def _pictures(self, batch: int, seed: int = 0) -> Tensor:
        return torch.randint(0, 256, (batch, *self.pixels), generator=seeded(seed), dtype=torch.uint8)

    @torch.no_grad()
    def test_gives_one_finite_float32_latent_per_picture(self) -> None:
        encoder = self.make_encoder()
        assert encoder.latent_dim >= 1
        for batch in (1, 3):
            z = encode(encoder, self._pictures(batch))
            assert z.shape == (batch, encoder.latent_dim), tuple(z.shape)
            assert z.dtype == torch.float32 and torch.isfinite(z).all()

    @torch.no_grad()
    def test_equal_pictures_have_equal_latents(self) -> None:
        encoder, pixels = self.make_encoder(), self._pictures(2)
        assert_close(encode(encoder, pixels), encode(encoder, pixels), rtol=0, atol=0)

    @torch.no_grad()
    def test_different_pictures_have_different_latents(self) -> None:
        z = encode(self.make_encoder(), self._pictures(2))
        assert not torch.equal(z[0], z[1]), "the encoder gives a constant"

    @torch.no_grad()
    def test_leaves_the_pixels_alone(self) -> None:
        pixels = self._pictures(2)
        before = pixels.clone()
        encode(self.make_encoder(), pixels)
        assert torch.equal(pixels, before)

    @torch.no_grad()
    def test_a_latent_does_not_depend_on_its_neighbours(self) -> None:
        encoder, pixels = self.make_encoder(), self._pictures(4)
        alone = torch.cat([encode(encoder, p[None]) for p in pixels])
        assert_close(encode(encoder, pixels), alone, rtol=self.tolerance, atol=self.tolerance)

    def test_works_under_inference_mode(self) -> None:
        with torch.inference_mode():
            assert not encode(self.make_encoder(), self._pictures(1)).requires_grad
