"""Latent world models for reinforcement learning: pixels in, latents, plans and measurements out.

What models the world stands here; what acts is in ``jepa_rl.agents``, what speaks Gymnasium in ``jepa_rl.envs``.
"""

from jepa_rl import _checkout, _required  # noqa: F401  (before all else: a clone finds its folders, old versions are refused)

# isort: split
from typing import TYPE_CHECKING

from jepa_rl import _moved
from jepa_rl.data import Episode, EpisodeStore, WindowSampler
from jepa_rl.diagnostics import world_model_evaluation
from jepa_rl.objectives import Objective
from jepa_rl.presets import WORLD_PRESETS, Preset, preset
from jepa_rl.registry import register_dynamics, register_encoder, register_objective
from jepa_rl.spaces import action_spec, world_spec
from jepa_rl.training import TrainConfig, TrainResult, fit, refine_dynamics
from jepa_rl.types import ActionSpec, Batch, Plan, WorldSpec
from jepa_rl.version import __version__
from jepa_rl.world_model import WorldModel, WorldModelConfig

__all__ = [
    "WORLD_PRESETS",
    "ActionSpec",
    "Batch",
    "Episode",
    "EpisodeStore",
    "Objective",
    "Plan",
    "Preset",
    "TrainConfig",
    "TrainResult",
    "WindowSampler",
    "WorldModel",
    "WorldModelConfig",
    "WorldSpec",
    "__version__",
    "action_spec",
    "fit",
    "preset",
    "refine_dynamics",
    "register_dynamics",
    "register_encoder",
    "register_objective",
    "world_model_evaluation",
    "world_spec",
]

_moved.install()

if not TYPE_CHECKING:  # type checkers see the new name only
    __getattr__ = _moved.renamed(__name__, {"PRESETS": "WORLD_PRESETS"})
