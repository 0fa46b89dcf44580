"""Control: a world model with heads for reward, termination, value and policy."""

from jepa_rl.control.config import ControlConfig, world_config
from jepa_rl.control.model import ControlModel, Losses, move_towards
from jepa_rl.control.return_cost import ReturnCost

__all__ = ["ControlConfig", "ControlModel", "Losses", "ReturnCost", "move_towards", "world_config"]
