"""Named configurations of world models and their training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from jepa_rl._moved import renamed
from jepa_rl.training import TrainConfig
from jepa_rl.types import WorldSpec
from jepa_rl.world_model import WorldModelConfig


class Preset(NamedTuple):
    """Configurations of model and training, and the latent steps in a window (``WindowSampler(store, steps)``)."""

    model: WorldModelConfig
    train: TrainConfig
    steps: int


def laptop(spec: WorldSpec) -> Preset:
    """Two processor cores and no GPU: a patch conv net of 64 latents and a residual perceptron.

    Times on processors with and without AVX512: docs/performance.md.
    """
    model = WorldModelConfig(
        spec,
        latent_dim=64,
        encoder="conv",
        encoder_options={"widths": (16, 16, 32)},
        dynamics="mlp",
        dynamics_options={"width": 192, "depth": 2},
        objective="jepa",
        objective_options={"sigreg": 1.0, "inverse_dynamics": 2.0},
    )
    return Preset(model, TrainConfig(steps=4500, batch_size=128, learning_rate=1e-3), steps=3)


def agent(spec: WorldSpec) -> Preset:
    """What feeds an agent, on two processor cores: one small net reads every stacked picture, and the objective is
    ``change``, which asks for what moves and for what actions move. For planning far ahead, from pictures that stand
    still, ``laptop`` is better: docs/lab-notes/joint.md."""
    model, train, steps = laptop(spec)
    model = replace(model, encoder="frames", objective="change", objective_options={"inverse_states": 3})
    return Preset(model, replace(train, steps=5000), steps)


def base(spec: WorldSpec) -> Preset:
    """One GPU: the sizes of LeWorldModel (Maes et al. 2026, arXiv:2603.19312), a ViT of width 192 and a causal
    transformer, with its optimiser. Not tuned here."""
    model = WorldModelConfig(
        spec,
        latent_dim=192,
        encoder="vit",
        encoder_options={"width": 192, "depth": 12, "heads": 3, "patch": 8},
        dynamics="transformer",
        dynamics_options={"width": 192, "depth": 6, "heads": 16, "head_dim": 64, "mlp_width": 2048},
        objective="lewm",
        objective_options={"inverse_dynamics": 1.0, "projections": 1024},
    )
    train = TrainConfig(
        steps=50_000,
        batch_size=128,
        learning_rate=5e-5,
        weight_decay=1e-3,
        log_every=100,
        evaluate_every=2500,
        checkpoint_every=2500,
    )
    return Preset(model, train, steps=4)


WORLD_PRESETS: dict[str, Callable[[WorldSpec], Preset]] = {"laptop": laptop, "agent": agent, "base": base}


def preset(name: str, spec: WorldSpec) -> Preset:
    """The preset ``name`` for a world: (model configuration, training configuration, latent steps in a window).

    Raises:
        ValueError: there is no preset of that name.
    """
    if name not in WORLD_PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {list(WORLD_PRESETS)}")
    return WORLD_PRESETS[name](spec)


if not TYPE_CHECKING:  # type checkers see the new name only
    __getattr__ = renamed(__name__, {"PRESETS": "WORLD_PRESETS"})
