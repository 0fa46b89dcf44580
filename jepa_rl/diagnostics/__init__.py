"""Measurements of a trained world model: collapse, probes, smoothness, rollout error, surprise."""

from jepa_rl.diagnostics.collapse import collapse_alarm, effective_rank, smoothness
from jepa_rl.diagnostics.figures import latent_map, std_bars
from jepa_rl.diagnostics.model_check import encode_in_chunks, world_model_evaluation
from jepa_rl.diagnostics.probes import Probe, fit_linear_probe, fit_mlp_probe, r2_score
from jepa_rl.diagnostics.rollouts import action_shuffle_gap, rollout_error, surprise
from jepa_rl.diagnostics.statistics import wilson_interval

__all__ = [
    "Probe",
    "action_shuffle_gap",
    "collapse_alarm",
    "effective_rank",
    "encode_in_chunks",
    "fit_linear_probe",
    "fit_mlp_probe",
    "latent_map",
    "r2_score",
    "rollout_error",
    "smoothness",
    "std_bars",
    "surprise",
    "wilson_interval",
    "world_model_evaluation",
]
