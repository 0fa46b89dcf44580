"""Stable-Baselines3's agents from pixels, whose encoder also learns a JEPA world model."""

from jepa_rl.agents.sb3.joint.algorithms import JEPADQN, JEPAPPO, JEPASAC, JEPATD3
from jepa_rl.agents.sb3.joint.buffers import JEPAReplayBuffer, JEPARolloutBuffer
from jepa_rl.agents.sb3.joint.features import JointFeatures, jepa_policy_kwargs

__all__ = [
    "JEPADQN",
    "JEPAPPO",
    "JEPASAC",
    "JEPATD3",
    "JEPAReplayBuffer",
    "JEPARolloutBuffer",
    "JointFeatures",
    "jepa_policy_kwargs",
]
