"""An agent that acts by a goal-conditioned inverse model, without planning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa_rl.agents.base import LatentAgent, Observation
from jepa_rl.data import EpisodeStore
from jepa_rl.data.view import EpisodeView
from jepa_rl.files import naming
from jepa_rl.inverse import InverseModel
from jepa_rl.training.inverse import train_inverse_model
from jepa_rl.world_model import WorldModel


class InverseModelAgent(LatentAgent):
    """Takes the action that an inverse model predicts from the latents of observation and goal.

    It acts on every observation and has no state. ``predict``, observations and ``set_goal`` are those of ``MPCAgent``.

    Args:
        model: the world model whose encoder the inverse model was trained on, or its path.
        inverse: see ``fit_inverse_model``.

    Raises:
        ValueError: if the inverse model predicts other actions than the world model's environment takes.
    """

    def __init__(self, model: Any, inverse: InverseModel) -> None:
        super().__init__(model)
        if inverse.action != self.spec.action:
            raise ValueError(
                f"the inverse model predicts {inverse.action}, the world model's environment takes "
                f"{self.spec.action}; train it on data of that environment"
            )
        self.inverse = inverse.to(self.device).eval()

    @torch.no_grad()
    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """The next action of each environment.

        Args:
            observation: of one environment or n, see ``LatentAgent``.
            state: returned unchanged.
            episode_start, deterministic: ignored.

        Returns:
            Actions in the environment's units, and ``state``.

        Raises:
            ValueError: for pixels or goals of the wrong shape, a missing goal, or NaN in the model.
        """
        pixels, goals, alone = self._read(observation)
        if goals is None:
            raise ValueError(
                "there is no goal: wrap the environment in jepa_rl.envs.GoalObservation, or call set_goal(pixels)"
            )
        latents = self.encode(np.concatenate([pixels, goals]))
        z, goal = latents[: len(pixels)], latents[len(pixels) :]
        output = self.inverse(z, goal.expand_as(z))
        if not torch.isfinite(output).all():
            raise ValueError("the model gave NaN or infinite values; check the weights it was trained to")
        actions = self.spec.action.decode(output.cpu().numpy())
        return actions[0] if alone else actions, state

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, world model included; atomic. See ``LatentAgent``."""
        self._save(path, "inverse_model_agent", {"width": self.inverse.width}, {"inverse": self.inverse})

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> InverseModelAgent:
        """Reads a file of ``save``. Raises as ``WorldModel.load``."""
        model, header, modules = cls._load(path, "inverse_model_agent", device)
        with naming(path, "does not describe an inverse model of this version"):
            inverse = InverseModel(model.latent_dim, model.spec.action, header["width"])
            inverse.load_state_dict(modules["inverse"])
        return cls(model, inverse)


def fit_inverse_model(
    model: WorldModel,
    episodes: EpisodeStore | EpisodeView,
    *,
    max_offset: int = 5,
    updates: int = 2000,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> InverseModelAgent:
    """Trains an inverse model and returns the agent that acts by it; see ``train_inverse_model`` for all arguments."""
    inverse = train_inverse_model(
        model,
        episodes,
        max_offset=max_offset,
        updates=updates,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
    )
    return InverseModelAgent(model, inverse)
