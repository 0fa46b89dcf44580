"""Gymnasium wrappers, adapters and built-in environments. Importing it registers the environments.

Gymnasium (1.0 and later) loads no plugins, so without this import name the module in the id:
``gymnasium.make("jepa_rl.envs:jepa_rl/TwoRooms-v0")``.
"""

from typing import TYPE_CHECKING, Any

import gymnasium as gym

from jepa_rl._moved import renamed
from jepa_rl.envs.collect import collect
from jepa_rl.envs.collect_ray import collect_on_ray
from jepa_rl.envs.dm_control import register_dm_control
from jepa_rl.envs.dream_envs import DreamEnv, DreamVecEnv, DreamVectorEnv
from jepa_rl.envs.learn import learn_world_model
from jepa_rl.envs.policies import RandomPolicy, SmoothRandomPolicy
from jepa_rl.envs.worlds.fork import ForkEnv
from jepa_rl.envs.worlds.push import PushEnv, PushVectorEnv
from jepa_rl.envs.worlds.push_play import PushCoverage, PushPlay, push_coverage
from jepa_rl.envs.worlds.roofed_rooms import RoofedRoomsEnv, RoofedRoomsVectorEnv
from jepa_rl.envs.worlds.table_edge import TableEdgeEnv
from jepa_rl.envs.worlds.two_rooms import TwoRoomsEnv, TwoRoomsVectorEnv
from jepa_rl.envs.wrappers.action_repeat import ActionRepeat
from jepa_rl.envs.wrappers.distract import Distract, VectorDistract
from jepa_rl.envs.wrappers.goal import GoalObservation
from jepa_rl.envs.wrappers.latent import LatentObservation
from jepa_rl.envs.wrappers.pixels import PixelObservation
from jepa_rl.envs.wrappers.sb3_latent import SB3LatentObservation
from jepa_rl.envs.wrappers.textures import recolour
from jepa_rl.envs.wrappers.vector_latent import VectorLatentObservation
from jepa_rl.envs.wrappers.wrap import wrap
from jepa_rl.spaces import action_spec, world_spec

__all__ = [
    "ActionRepeat",
    "Distract",
    "DreamEnv",
    "DreamVecEnv",
    "DreamVectorEnv",
    "ForkEnv",
    "GoalObservation",
    "LatentObservation",
    "PixelObservation",
    "PushCoverage",
    "PushEnv",
    "PushPlay",
    "PushVectorEnv",
    "RandomPolicy",
    "RoofedRoomsEnv",
    "RoofedRoomsVectorEnv",
    "SB3LatentObservation",
    "SmoothRandomPolicy",
    "TableEdgeEnv",
    "TwoRoomsEnv",
    "TwoRoomsVectorEnv",
    "VectorDistract",
    "VectorLatentObservation",
    "action_spec",
    "collect",
    "collect_on_ray",
    "learn_world_model",
    "push_coverage",
    "recolour",
    "register_dm_control",
    "register_envs",
    "world_spec",
    "wrap",
]


def register_envs() -> None:
    """Register the built-in worlds and the dm_control suite with Gymnasium; calling it again changes nothing."""
    register_dm_control()
    worlds: dict[str, dict[str, Any]] = {
        "jepa_rl/TwoRooms-v0": {
            "entry_point": "jepa_rl.envs.worlds.two_rooms:TwoRoomsEnv",
            "vector_entry_point": "jepa_rl.envs.worlds.two_rooms:TwoRoomsVectorEnv",
            "max_episode_steps": 200,
        },
        "jepa_rl/RoofedRooms-v0": {
            "entry_point": "jepa_rl.envs.worlds.roofed_rooms:RoofedRoomsEnv",
            "vector_entry_point": "jepa_rl.envs.worlds.roofed_rooms:RoofedRoomsVectorEnv",
            "max_episode_steps": 200,
        },
        "jepa_rl/Push-v0": {
            "entry_point": "jepa_rl.envs.worlds.push:PushEnv",
            "vector_entry_point": "jepa_rl.envs.worlds.push:PushVectorEnv",
            "max_episode_steps": 60,
        },
        "jepa_rl/TableEdge-v0": {
            "entry_point": "jepa_rl.envs.worlds.table_edge:TableEdgeEnv",
            "max_episode_steps": 40,
        },
        "jepa_rl/MujocoTableEdge-v0": {
            "entry_point": "jepa_rl.envs.worlds.mujoco_table_edge:MujocoTableEdgeEnv",
            "max_episode_steps": 40,
        },
        "jepa_rl/Fork-v0": {"entry_point": "jepa_rl.envs.worlds.fork:ForkEnv"},
    }
    for name, settings in worlds.items():
        if name not in gym.registry:
            gym.register(name, **settings)


register_envs()

if not TYPE_CHECKING:  # type checkers see the new name only
    __getattr__ = renamed(__name__, {"VecLatentObservation": "SB3LatentObservation"})
