"""JEPA model-predictive control from reward, online."""

from typing import TYPE_CHECKING

from jepa_rl._moved import renamed
from jepa_rl.agents.sb3.jepa_mpc.algorithm import JEPAMPC
from jepa_rl.agents.sb3.jepa_mpc.policy import JEPAMPCPolicy
from jepa_rl.agents.sb3.jepa_mpc.presets import JEPA_MPC_PRESETS, jepa_mpc_preset
from jepa_rl.agents.sb3.jepa_mpc.resume import ResumableRun

__all__ = ["JEPAMPC", "JEPA_MPC_PRESETS", "JEPAMPCPolicy", "ResumableRun", "jepa_mpc_preset"]

if not TYPE_CHECKING:  # type checkers see the new name only
    __getattr__ = renamed(__name__, {"PRESETS": "JEPA_MPC_PRESETS"})
