"""Objectives: the losses that shape the latent space. ``@register_objective("mine")`` adds your own."""

from jepa_rl.objectives.augment import Views, random_crop, random_shift, recoloured, shifted
from jepa_rl.objectives.base import Objective, Unrolled
from jepa_rl.objectives.change import Change
from jepa_rl.objectives.consistency import Consistency
from jepa_rl.objectives.contrastive import MoCo, Recognition, SimCLR
from jepa_rl.objectives.dense import DenseJEPA
from jepa_rl.objectives.dino import DINO
from jepa_rl.objectives.encoder_objective import EncoderObjective
from jepa_rl.objectives.jepa import EB_JEPA, EMA, JEPA, LEWM
from jepa_rl.objectives.masked import ImageJEPA, VideoJEPA
from jepa_rl.objectives.masked_autoencoder import MaskedAutoencoder
from jepa_rl.objectives.reconstruction import Reconstruction
from jepa_rl.objectives.teacher import ActionFreeJEPA, NextEmbedding, TeacherJEPA
from jepa_rl.objectives.terms import (
    covariance,
    info_nce,
    inverse_dynamics,
    kl_to_standard_normal,
    nt_xent,
    prediction,
    sigreg,
    straightness,
    time_similarity,
    variance,
)
from jepa_rl.objectives.tokens import MaskedObjective, TokenObjective
from jepa_rl.objectives.vae import VAE
from jepa_rl.registry import register_objective

__all__ = [
    "ActionFreeJEPA",
    "Change",
    "Consistency",
    "DINO",
    "DenseJEPA",
    "EB_JEPA",
    "EMA",
    "EncoderObjective",
    "ImageJEPA",
    "JEPA",
    "LEWM",
    "MaskedAutoencoder",
    "MaskedObjective",
    "MoCo",
    "NextEmbedding",
    "Objective",
    "Recognition",
    "Reconstruction",
    "SimCLR",
    "TeacherJEPA",
    "TokenObjective",
    "Unrolled",
    "VAE",
    "VideoJEPA",
    "Views",
    "covariance",
    "info_nce",
    "inverse_dynamics",
    "kl_to_standard_normal",
    "nt_xent",
    "prediction",
    "random_crop",
    "random_shift",
    "recoloured",
    "register_objective",
    "shifted",
    "sigreg",
    "straightness",
    "time_similarity",
    "variance",
]
