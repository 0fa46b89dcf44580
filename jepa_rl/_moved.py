"""Import paths and names of version 0.1.0, which work until 0.3.0 and warn."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PLANNERS = ("cem", "icem", "mppi", "categorical", "gradient", "tree")
_JEPA_MPC = ("algorithm", "monitor", "policy", "presets", "resume")
_WRAPPERS = ("latent", "vector_latent", "sb3_latent", "pixels", "goal", "action_repeat", "wrap")
_WORLDS = ("two_rooms", "two_rooms_rules", "fork", "table_edge", "table_edge_rules", "mujoco_table_edge")

MOVED = {
    "jepa_rl.checkpoint": "jepa_rl.training.checkpoint",
    "jepa_rl.refine": "jepa_rl.training.refine",
    "jepa_rl.data.latents": "jepa_rl.data.latent_windows",
    "jepa_rl.diagnostics.evaluation": "jepa_rl.diagnostics.model_check",
    "jepa_rl.diagnostics.latents": "jepa_rl.diagnostics.collapse",
    "jepa_rl.objectives.objective": "jepa_rl.objectives",
    "jepa_rl.dynamics.rivals": "jepa_rl.dynamics",
    "jepa_rl.dynamics.sampling": "jepa_rl.dynamics.base",
    "jepa_rl.envs.spec": "jepa_rl.spaces",
    "jepa_rl.agents.baselines": "jepa_rl.agents.sb3.baselines",
    "jepa_rl.agents.online_latents": "jepa_rl.agents.sb3.online",
    "jepa_rl.agents.proposals": "jepa_rl.agents",
    "jepa_rl.agents.sampling": "jepa_rl.agents.planners.base",
    "jepa_rl.agents.jepa_mpc": "jepa_rl.agents.sb3.jepa_mpc",
    **{f"jepa_rl.agents.jepa_mpc.{name}": f"jepa_rl.agents.sb3.jepa_mpc.{name}" for name in _JEPA_MPC},
    "jepa_rl.agents.jepa_mpc.model": "jepa_rl.control",
    "jepa_rl.agents.jepa_mpc.networks": "jepa_rl.control",
    "jepa_rl.agents.jepa_mpc.replay": "jepa_rl.data.replay",
    "jepa_rl.agents.jepa_mpc.spaces": "jepa_rl.spaces",
    **{f"jepa_rl.agents.{name}": f"jepa_rl.agents.planners.{name}" for name in _PLANNERS},
    **{f"jepa_rl.envs.{name}": f"jepa_rl.envs.wrappers.{name}" for name in _WRAPPERS},
    **{f"jepa_rl.envs.{name}": f"jepa_rl.envs.worlds.{name}" for name in _WORLDS},
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a module under its old name: the import gives the module of today, with a ``FutureWarning``."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str | bytes] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(
            f"{spec.name} is now {new}; the old name works until jepa-rl 0.3.0", FutureWarning, stacklevel=2
        )
        module = importlib.import_module(new)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # Executed already, under its own name. The import system has just written the old name's spec into it.
        assert module.__spec__ is not None
        module.__spec__ = self._specs.pop(module.__spec__.name)


def install() -> None:
    """Adds the finder, once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(
            0, MovedModules()
        )  # before files: a moved package's modules would be found twice


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module in which names have changed: the old ones work, with a ``FutureWarning``.

    Args:
        module: its ``__name__``.
        names: the new name by the old one.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is now {module}.{names[name]}; the old name works until jepa-rl 0.3.0",
            FutureWarning,
            stacklevel=2,
        )
        return getattr(sys.modules[module], names[name])

    return find
