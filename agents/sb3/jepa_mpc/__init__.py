"""JEPA model-predictive control from reward, online."""

from jepa_rl.agents.sb3.jepa_mpc.algorithm import JEPAMPC
from jepa_rl.agents.sb3.jepa_mpc.policy import JEPAMPCPolicy
from jepa_rl.agents.sb3.jepa_mpc.presets import PRESETS, jepa_mpc_preset
from jepa_rl.agents.sb3.jepa_mpc.resume import ResumableRun

__all__ = ["JEPAMPC", "PRESETS", "JEPAMPCPolicy", "ResumableRun", "jepa_mpc_preset"]
