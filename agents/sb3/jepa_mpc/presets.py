"""Named sizes of ``JEPAMPC``, and their measured times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.utils import LinearSchedule

from jepa_rl._moved import renamed
from jepa_rl.control import ControlConfig

WIDE = {"widths": (32, 32, 64)}  # of the convolutions


def laptop() -> dict[str, Any]:
    """Two processor cores and no GPU: the defaults.

    cartpole-swingup from pixels, 100,000 frames (action repeat 8, 12,500 decisions, two updates each) and evaluations
    of ten episodes take 36 minutes on one core limited to AVX2 (AMD EPYC), another program on the other. An update from
    9 x 64 x 64 pixels takes 55 ms there, a decision 10. With version 0.1.0's sizes and AVX512-BF16: reacher-easy
    (action repeat 4, 16 keypoints, 25,000 decisions, one update each) 121 minutes on one core, CartPole-v1 (50,000
    decisions, one update for every fourth) 32 to 57.
    """
    return {"policy_kwargs": {"control": ControlConfig()}}


def wide() -> dict[str, Any]:
    """Two processor cores and more patience: twice ``laptop``'s channels, larger batches, a longer search.

    These were the sizes of version 0.1.0's defaults, except for the elites. An update takes 77 ms and a decision 14 on
    two cores limited to AVX2 (AMD EPYC).
    """
    policy = laptop()["policy_kwargs"] | {"world": {"encoder_options": WIDE}, "iterations": 3}
    return {"batch_size": 128, "policy_kwargs": policy}


def small() -> dict[str, Any]:
    """A processor with many cores, or a small GPU.

    Measured on one core, another run on the other: 414 ms an update, 128 ms a decision. Not timed on a GPU yet.
    """
    search = {"samples": 256, "elites": 64, "iterations": 4, "proposals": 16}
    world = {"latent_dim": 128, "encoder_options": WIDE, "dynamics_options": {"width": 256, "depth": 2}}
    control = ControlConfig(width=256, values=3, bins=101)
    return {"batch_size": 256, "policy_kwargs": {"world": world, "control": control, **search}}


def base() -> dict[str, Any]:
    """One GPU: about the sizes of TD-MPC2 (5 million parameters, a latent of 512; Hansen, Su and Wang 2024).

    Measured on one core, another run on the other: 0.8 s an update, 1.3 s a decision. Not timed on a GPU yet.
    """
    search = {"samples": 512, "elites": 128, "iterations": 6, "proposals": 24}
    world = {"latent_dim": 256, "encoder_options": WIDE, "dynamics_options": {"width": 512, "depth": 2}}
    control = ControlConfig(width=512, values=5, bins=101)
    rate = LinearSchedule(3e-4, 3e-5, 1.0)
    return {
        "learning_rate": rate,
        "batch_size": 256,
        "policy_kwargs": {"world": world, "control": control, **search},
    }


JEPA_MPC_PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "laptop": laptop,
    "wide": wide,
    "small": small,
    "base": base,
}


def jepa_mpc_preset(name: str) -> dict[str, Any]:
    """Arguments for ``JEPAMPC(policy, env, **jepa_mpc_preset("base"))``.

    Raises:
        ValueError: there is no preset of that name.
    """
    if name not in JEPA_MPC_PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {list(JEPA_MPC_PRESETS)}")
    return JEPA_MPC_PRESETS[name]()


if not TYPE_CHECKING:  # type checkers see the new name only
    __getattr__ = renamed(__name__, {"PRESETS": "JEPA_MPC_PRESETS"})
