"""Named settings of ``JEPAMPC`` to start from."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.utils import LinearSchedule

from jepa_rl.agents.jepa_mpc.networks import ModelConfig

# VICReg on normalised latents, and reward and value that weigh as much as prediction: simplex latents with
# TD-MPC2's weights (20, 0.1, 0.1) collapsed from pixels at the rates that a few thousand updates need, and of what
# cartpole's pictures show SIGReg's latents knew less (docs/lab-notes.md).
SHAPE: dict[str, Any] = {
    "latent": "vicreg", "consistency": 1.0, "anti_collapse": 1.0, "reward": 0.5, "value": 0.5, "target_rate": 0.02,
}  # fmt: skip


def fast(rate: float) -> dict[str, Any]:
    """Few updates have to do: a high rate, for the encoder too, that falls to a tenth by the end of the training.

    Rewards are followed far at first, when there are no values yet, and less far once they were paid to agents that are
    worse than the one of now.
    """
    return {"learning_rate": LinearSchedule(rate, rate / 10, 1.0), "encoder_rate": 1.0, "n_step": (10, 3)}


def laptop() -> dict[str, Any]:
    """Two processor cores and no GPU.

    Measured on one core with AVX512-BF16, another run on the other: 98 to 128 ms an update from 9 x 64 x 64 pixels, 19
    to 28 ms a decision. 12,500 decisions with two updates each (100,000 frames with action repeat 8) and 11 evaluations
    of ten episodes took 50 minutes when a decision still took 13 ms.
    """
    search = {"horizon": 5, "samples": 64, "elites": 32, "iterations": 3, "proposals": 8}
    model = ModelConfig(latent_dim=64, width=128, values=2, bins=51, **SHAPE)
    return {**fast(1e-3), "batch_size": 128, "policy_kwargs": {"model": model, **search}}


def small() -> dict[str, Any]:
    """A processor with many cores, or a small GPU.

    Measured on one core, another run on the other: 414 ms an update, 128 ms a decision. Not timed on a GPU yet.
    """
    search = {"horizon": 5, "samples": 256, "elites": 128, "iterations": 4, "proposals": 16}
    model = ModelConfig(latent_dim=128, width=256, values=3, **SHAPE)
    return {**fast(1e-3), "batch_size": 256, "policy_kwargs": {"model": model, **search}}


def base() -> dict[str, Any]:
    """One GPU: the sizes of TD-MPC2 (5 million parameters; Hansen, Su and Wang 2024).

    Measured on one core, another run on the other: 0.8 s an update, 1.3 s a decision. Not timed on a GPU yet.
    """
    search = {"horizon": 5, "samples": 512, "elites": 256, "iterations": 6, "proposals": 24}
    model = ModelConfig(latent_dim=256, width=512, values=5, **SHAPE)
    return {**fast(3e-4), "batch_size": 256, "policy_kwargs": {"model": model, **search}}


PRESETS = {"laptop": laptop, "small": small, "base": base}


def jepa_mpc_preset(name: str) -> dict[str, Any]:
    """Arguments for ``JEPAMPC(policy, env, **jepa_mpc_preset("laptop"))``.

    Raises:
        ValueError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {list(PRESETS)}")
    return PRESETS[name]()
