"""Pixels to latents: a small conv net (default) and a small ViT."""

from jepa_rl.encoders.conv import ConvEncoder
from jepa_rl.encoders.vit import ViTEncoder

__all__ = ["ConvEncoder", "ViTEncoder"]
