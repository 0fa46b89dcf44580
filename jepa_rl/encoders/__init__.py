"""Encoders: a small conv net, one that reads each frame of a stack separately, keypoints, a small ViT, pretrained ones.

``@register_encoder("mine")`` adds your own.
"""

from jepa_rl.encoders.backbone import Backbone
from jepa_rl.encoders.base import ObservationEncoder, PictureEncoder, runs_of, windows_of
from jepa_rl.encoders.conv import ConvEncoder
from jepa_rl.encoders.frames import FramesEncoder, picture_encoder
from jepa_rl.encoders.keypoints import KeypointEncoder
from jepa_rl.encoders.pretrained import FeatureEncoder, PretrainedEncoder
from jepa_rl.encoders.readout import fit_readout
from jepa_rl.encoders.vit import ViTEncoder
from jepa_rl.encoders.weights import Source
from jepa_rl.registry import register_encoder

__all__ = [
    "Backbone",
    "ConvEncoder",
    "FeatureEncoder",
    "FramesEncoder",
    "KeypointEncoder",
    "ObservationEncoder",
    "PictureEncoder",
    "PretrainedEncoder",
    "Source",
    "ViTEncoder",
    "fit_readout",
    "picture_encoder",
    "register_encoder",
    "runs_of",
    "windows_of",
]
