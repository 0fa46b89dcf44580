"""Base class of agents on a world model: encoding, saving, and the attributes that callbacks need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from jepa_rl import hub
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.modes import evaluating
from jepa_rl.parts import config_header
from jepa_rl.spaces import check_fits, env_spaces
from jepa_rl.types import JSON, WorldSpec
from jepa_rl.world_model import WorldModel, build_saved

Observation = np.ndarray | dict[str, np.ndarray]


class LatentAgent:
    """An agent that acts on latents of observations and goals.

    ``set_env``, ``get_env``, ``get_vec_normalize_env``, ``logger`` and ``num_timesteps`` are what
    Stable-Baselines3's ``EvalCallback`` and ``CheckpointCallback`` use of a model; if you run them without one
    of its algorithms, increase ``num_timesteps`` yourself. ``save`` writes one ``.safetensors`` file, world model
    included, whatever suffix the callbacks choose; ``load`` takes the same path.

    Args:
        model: a world model with ``encode``, ``rollout`` and ``spec``, or the path of a saved one.

    Raises:
        TypeError: if it is neither.
        FileNotFoundError: as ``WorldModel.load``.
        ValueError: as ``WorldModel.load``, and for a world model whose observation is not one picture.
    """

    def __init__(self, model: Any) -> None:
        self.model: Any = WorldModel.load(Path(model)) if isinstance(model, str | os.PathLike) else model
        missing = [name for name in ("encode", "rollout", "spec") if not hasattr(self.model, name)]
        if missing:
            raise TypeError(
                "model must be a world model or the path of a saved one, got "
                f"{type(model).__name__} without {', '.join(missing)}"
            )
        self.spec: WorldSpec = self.model.spec
        if self.spec.pixels is None:
            raise ValueError(
                "this agent looks at one picture and reaches another, the world model observes "
                f"{self.spec.shapes}; train one on PixelObservation(env), or act with JEPAMPC"
            )
        self._shape = self.spec.pixels
        self.num_timesteps = 0
        self.logger = Logger(folder=None, output_formats=[])
        self._goal: np.ndarray | None = None
        self._env: VecEnv | None = None

    def set_goal(self, pixels: UInt8[np.ndarray, "*n c y x"] | None) -> None:
        """Sets the goal for observations without one: one picture for all environments, or one for each.

        Raises:
            ValueError: if the shape or dtype is not that of the model's pixels.
        """
        if pixels is None:
            self._goal = None
            return
        pixels = np.asarray(pixels)
        self._goal = self._checked("goal", pixels if pixels.ndim == 4 else pixels[None]).copy()

    @property
    def device(self) -> torch.device:
        """Device of the model's weights."""
        weight = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        return torch.device("cpu") if weight is None else weight.device

    @torch.no_grad()  # not inference_mode: gradient planners differentiate costs that contain goals
    def encode(self, pixels: UInt8[np.ndarray, "b c y x"]) -> Float[Tensor, "b d"]:
        """Latents of stacked frames; the model is in evaluation mode meanwhile."""
        with evaluating(self.model):
            return self.model.encode(torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device))

    def select_state(self, state: Any, rows: Int64[np.ndarray, " m"]) -> Any:
        """Part of ``state`` that belongs to the environments ``rows``; see ``jepa_rl.acting.SelectiveAgent``.

        Raises:
            NotImplementedError: if ``set_goal`` was given one goal for each environment.
        """
        if self._goal is not None and len(self._goal) > 1:
            raise NotImplementedError(
                "each environment has a goal of its own, which is not part of the state"
            )
        return state

    def _read(self, observation: Observation) -> tuple[np.ndarray, np.ndarray | None, bool]:
        """Reads an observation.

        Returns:
            Pixels "n c y x"; goals "n c y x" or "1 c y x", or None; and whether it was that of a single environment.
        """
        goal = self._goal
        if isinstance(observation, dict):
            if "pixels" not in observation:
                raise ValueError(
                    f"the observation needs the key 'pixels', got {sorted(observation)}; wrap the environment "
                    "in jepa_rl.envs.PixelObservation or GoalObservation"
                )
            pixels, goal = np.asarray(observation["pixels"]), observation.get("goal", goal)
        else:
            pixels = np.asarray(observation)
        alone = pixels.ndim == 3
        pixels = self._checked("pixels", pixels[None] if alone else pixels)
        if goal is not None:
            goal = np.asarray(goal)
            goal = self._checked("goal", goal[None] if goal.ndim == 3 else goal)
            if len(goal) not in (1, len(pixels)):
                raise ValueError(
                    f"expected 1 goal or {len(pixels)}, one for each environment, got {len(goal)}"
                )
        return pixels, goal, alone

    def _checked(self, name: str, pixels: np.ndarray) -> np.ndarray:
        shape = self._shape
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or not len(pixels):
            raise ValueError(
                f"{name} must be uint8 of shape {shape} or (n, {', '.join(map(str, shape))}), got {pixels.dtype} "
                f"{pixels.shape}; PixelObservation(env, size={shape[1]}, frames={self.spec.frames}) makes them"
            )
        return pixels

    # -- files -------------------------------------------------------------------------------------

    def _save(self, path: str | Path, kind: str, settings: JSON, modules: Mapping[str, nn.Module]) -> None:
        """One file with the world model, further modules and the agent's settings."""
        if not isinstance(self.model, WorldModel):
            raise TypeError(
                f"only agents on a WorldModel can be saved, this one's is {type(self.model).__name__}"
            )
        parts = {"model": self.model.finished()} | {name: part.state_dict() for name, part in modules.items()}
        tensors = {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.items()}
        save_tensors(_file(path), kind, tensors, config_header(self.model.config) | {"settings": settings})

    @staticmethod
    def _load(
        path: str | Path, kind: str, device: str
    ) -> tuple[WorldModel, JSON, dict[str, dict[str, Tensor]]]:
        """The world model, the settings and the weights of the further modules."""
        tensors, header = load_tensors(_file(path), (kind,), device)
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            module, _, key = name.partition(".")
            modules.setdefault(module, {})[key] = tensor
        model = build_saved(path, modules.pop("model", {}), header).to(device)
        return model.eval(), header.get("settings", {}), modules

    # -- used by Stable-Baselines3's callbacks ------------------------------------------------

    def set_env(self, env: VecEnv) -> None:
        """Raises ValueError if the environment shows other pixels or takes other actions than the model's."""
        check_fits(self.spec, env_spaces(env))
        self._env = env

    def get_env(self) -> VecEnv | None:
        return self._env

    def get_vec_normalize_env(self) -> None:
        """None: pictures are not normalised."""


def _file(path: str | Path) -> Path:
    """``path`` as a safetensors file; Stable-Baselines3's callbacks name files without a suffix, or .zip."""
    path = Path(path)
    return (
        path
        if path.suffix == ".safetensors" or hub.is_name(path)
        else Path(f"{str(path).removesuffix('.zip')}.safetensors")
    )
