"""Settings of control: sizes and loss weights of the heads, and the default world model of JEPAMPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jepa_rl.checks import check_each, check_not_negative
from jepa_rl.types import WorldSpec
from jepa_rl.world_model import WorldModelConfig


@dataclass(frozen=True)
class ControlConfig:
    """Sizes and weights; plain numbers. The defaults are those of the preset ``laptop``.

    Attributes:
        width, depth: hidden units and layers of the heads.
        values: heads in the ensemble of action values.
        bins: of reward and value distributions.
        termination: whether a head predicts the end of the episode; without it plans and values ignore termination.
        frozen: encoder and dynamics stay as they are, and the objective is left out (an ablation).
        reward, value, end: weights of the losses of the reward, value and termination heads.
        shaping: weight of the world model's objective.
        decay: weight of each further step of the rollout, relative to the one before.
        entropy: weight of the policy's entropy.
        target_rate: of the exponential moving average of the value heads (the target network), per update.

    Raises:
        ValueError: for a size below 1 or a negative weight.
    """

    width: int = 128
    depth: int = 2
    values: int = 2
    bins: int = 51
    termination: bool = True
    frozen: bool = False
    reward: float = 0.5
    value: float = 0.5
    end: float = 1.0
    shaping: float = 1.0
    decay: float = 0.5
    entropy: float = 1e-4
    target_rate: float = 0.02

    def __post_init__(self) -> None:
        for name in ("width", "depth", "values", "bins"):
            check_each(lambda value: value >= 1, "be at least 1", **{name: getattr(self, name)})
        for name in ("reward", "value", "end", "shaping", "decay", "entropy", "target_rate"):
            check_not_negative(**{name: getattr(self, name)})


def world_config(spec: WorldSpec, options: Mapping[str, Any] | None = None) -> WorldModelConfig:
    """The configuration of the world model that JEPAMPC learns: the defaults of the preset ``laptop``, and ``options``.

    Args:
        spec: what the environment shows and takes.
        options: fields of ``WorldModelConfig``, such as ``latent_dim``, ``encoder`` and ``encoder_options``.

    Raises:
        TypeError: for options that are no dict.
        ValueError: for another field, or the spec among them; and as ``WorldModelConfig``.
    """
    defaults: dict[str, Any] = {
        "latent_dim": 64,
        # The same weights read every frame of a stack: positions are learned once, not once per frame.
        "encoder": "frames" if spec.frames > 1 else "conv",
        "dynamics": "mlp",
        "objective": "consistency",
    }
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(
            f"world must be a dict of fields of WorldModelConfig, got {type(options).__name__}; a trained world model "
            "is taken up by JEPAMPC(...).policy.warm_start(model_or_path)"
        )
    given = dict(options or {})
    if given.get("encoder", defaults["encoder"]) in ("frames", "conv"):
        # Twice as wide they take twice as long on a processor (docs/lab-notes/processors.md).
        defaults["encoder_options"] = {"widths": (16, 16, 32)}
    if given.get("dynamics", "mlp") == "mlp":
        defaults["dynamics_options"] = {"width": 128, "depth": 2}
    known = set(WorldModelConfig.__dataclass_fields__) - {"spec"}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"world takes {sorted(known)}, got {unknown}; the spec comes from the environment")
    return WorldModelConfig(spec, **defaults | given)
