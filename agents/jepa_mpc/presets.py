"""Named settings of ``JEPAMPC`` to start from."""

from __future__ import annotations

from typing import Any

from jepa_rl.agents.jepa_mpc.networks import ModelConfig


def laptop() -> dict[str, Any]:
    """Two processor cores and no GPU."""
    search = {"horizon": 3, "samples": 64, "elites": 8, "iterations": 3, "proposals": 8}
    model = ModelConfig(latent_dim=128, width=128, values=2, bins=51)
    return {"batch_size": 128, "policy_kwargs": {"model": model, **search}}


def small() -> dict[str, Any]:
    """A processor with many cores, or a small GPU."""
    search = {"horizon": 3, "samples": 256, "elites": 32, "iterations": 4, "proposals": 16}
    model = ModelConfig(latent_dim=256, width=256, values=3)
    return {"batch_size": 256, "policy_kwargs": {"model": model, **search}}


def base() -> dict[str, Any]:
    """One GPU: the sizes of TD-MPC2 (5 million parameters; Hansen, Su and Wang 2024)."""
    search = {"horizon": 3, "samples": 512, "elites": 64, "iterations": 6, "proposals": 24}
    model = ModelConfig(latent_dim=512, width=512, values=5)
    return {"batch_size": 256, "policy_kwargs": {"model": model, **search}}


PRESETS = {"laptop": laptop, "small": small, "base": base}


def jepa_mpc_preset(name: str) -> dict[str, Any]:
    """Arguments for ``JEPAMPC(policy, env, **jepa_mpc_preset("laptop"))``.

    Raises:
        ValueError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {list(PRESETS)}")
    return PRESETS[name]()
