"""Pixels to latents: a small conv net (default), the same on every frame of a stack, keypoints, and a small ViT."""

from jepa_rl.encoders.conv import ConvEncoder
from jepa_rl.encoders.frames import FramesEncoder, picture_encoder
from jepa_rl.encoders.keypoints import KeypointEncoder
from jepa_rl.encoders.vit import ViTEncoder

__all__ = ["ConvEncoder", "FramesEncoder", "KeypointEncoder", "ViTEncoder", "picture_encoder"]
