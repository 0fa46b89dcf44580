"""How Stable-Baselines3's policies read an encoder that learns with them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from jepa_rl.spaces import pixel_space
from jepa_rl.training.joint import JointConfig, JointEncoder


def jepa_policy_kwargs(**options: Any) -> dict[str, Any]:
    """``policy_kwargs`` of ``JEPASAC``, ``JEPATD3``, ``JEPADQN`` and ``JEPAPPO``.

    Args:
        **options: fields of ``JointConfig``; all others are ``policy_kwargs`` of Stable-Baselines3, such as
            ``net_arch``.

    Raises:
        ValueError: as ``JointConfig``.
    """
    ours = {part.name for part in fields(JointConfig)}
    config = JointConfig(**{name: value for name, value in options.items() if name in ours})
    return {
        "features_extractor_class": JointFeatures,
        "features_extractor_kwargs": {"joint": config},
        "normalize_images": False,  # the encoder reads uint8
    } | {name: value for name, value in options.items() if name not in ours}


class JointFeatures(BaseFeaturesExtractor):
    """Features extractor: what the agent reads of pixels, for acting; what its buffer has read already is passed on.

    The encoder is not a submodule: Stable-Baselines3 would put its weights into the agent's optimisers and target
    networks, once for each network.

    Args:
        observation_space: uint8 pixels, channels first.
        joint: the configuration; sets the width of the features.

    Raises:
        ValueError: if the environment shows no such pixels.
    """

    def __init__(self, observation_space: spaces.Box, joint: JointConfig) -> None:
        pixel_space(observation_space)
        super().__init__(observation_space, joint.latent_dim)
        self._encoder: list[JointEncoder] = []

    def use(self, encoder: JointEncoder) -> None:
        """Reads through this encoder from now on."""
        self._encoder[:] = [encoder]

    def forward(self, seen: Float[Tensor, "b c y x"] | Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """What the agent reads, see ``JointEncoder``.

        Raises:
            RuntimeError: if no encoder is set, since the algorithm is another one.
        """
        if seen.ndim == 2:
            return seen
        if not self._encoder:
            raise RuntimeError(
                "jepa_policy_kwargs needs an algorithm that trains the encoder: JEPASAC instead of SAC, JEPATD3 "
                "instead of TD3, JEPADQN instead of DQN, JEPAPPO instead of PPO"
            )
        return self._encoder[0].acting(seen)
