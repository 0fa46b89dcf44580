"""Control: a world model with heads for reward, termination, value and policy."""

from jepa_rl.control.config import ControlConfig, world_config
from jepa_rl.control.model import MOMENTUM, ControlModel, Losses, move_towards
from jepa_rl.control.return_cost import ReturnCost
from jepa_rl.control.saved import load_control, save_control

__all__ = [
    "MOMENTUM",
    "ControlConfig",
    "ControlModel",
    "Losses",
    "ReturnCost",
    "load_control",
    "move_towards",
    "save_control",
    "world_config",
]
