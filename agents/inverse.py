"""A goal-conditioned inverse model: which action leads from here towards there? The cheap rival of planning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.agents.base import LatentAgent, Observation
from jepa_rl.data import EpisodeStore
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.data.view import EpisodeView
from jepa_rl.types import ActionSpec
from jepa_rl.world_model import WorldModel


class InverseModel(nn.Module):
    """A multilayer perceptron on standardised latents, (state, goal) -> the first action on the way.

    Args:
        latent_dim: width of the latents.
        action: what it predicts: a vector in [-1, 1] (through tanh), or logits of the choices.
        width: hidden units of its two hidden layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, latent_dim: int, action: ActionSpec, width: int = 256) -> None:
        super().__init__()
        self.action, self.width = action, width
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))
        self.network = nn.Sequential(
            nn.Linear(2 * latent_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, action.size),
        )  # fmt: skip

    def forward(self, z: Float[Tensor, "b d"], goal: Float[Tensor, "b d"]) -> Float[Tensor, "b size"]:
        pair = [(latent - self.mean) / self.std for latent in (z, goal)]
        output = self.network(torch.cat(pair, dim=-1))
        return output if self.action.kind == "discrete" else torch.tanh(output)

    def loss(self, z: Tensor, goal: Tensor, actions: Float[Tensor, "b size"]) -> Tensor:
        """Mean squared error of vectors, cross-entropy of choices (one-hot ``actions``)."""
        output = self(z, goal)
        if self.action.kind == "discrete":
            return nn.functional.cross_entropy(output, actions)
        return nn.functional.mse_loss(output, actions)


class InverseModelAgent(LatentAgent):
    """Acts by an inverse model: encode the observation and the goal, take the action it names.

    It looks at every step and remembers nothing; ``predict`` is that of ``MPCAgent``, and so are its
    observations and ``set_goal``.

    Args:
        model: the world model whose encoder the inverse model was trained on, or its path.
        inverse: see ``fit_inverse_model``.

    Raises:
        ValueError: if the inverse model names other actions than the world model's environment takes.
    """

    def __init__(self, model: Any, inverse: InverseModel) -> None:
        super().__init__(model)
        if inverse.action != self.spec.action:
            raise ValueError(
                f"the inverse model names {inverse.action}, the world model's environment takes "
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
        """The next action of each environment, in its own units, and ``state`` as it came.

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
) -> InverseModelAgent:
    """Learns which action led to what came later, with hindsight goals (Andrychowicz et al. 2017; Ghosh et al. 2021).

    Every state is encoded once; then only latents are touched. Goals lie 1 to ``max_offset`` environment
    steps ahead of a state, uniformly over what its episode still holds.

    Args:
        model: a trained world model; it stays as it is.
        episodes: any play in its environment.
        max_offset: environment steps to the farthest goal. Random play reaches a far state by many ways, whose
            mean is close to no action at all: keep it small unless the data go where they want to.
        updates, batch_size, learning_rate: AdamW's, the rate falling to zero as a cosine.
        seed: of weights and batches.

    Raises:
        ValueError: if there are no episodes, they show or do other things than the model knows, or a number
            is below 1.
    """
    for name, value in (("max_offset", max_offset), ("updates", updates), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    encoded = LatentEpisodes.encode(model, episodes)
    latents, actions = encoded.latents, encoded.actions
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inverse = InverseModel(model.latent_dim, model.spec.action).to(latents.device)
    inverse.mean.copy_(latents.mean(0))
    inverse.std.copy_(latents.std(0).clamp_min(1e-6))
    episode, left = encoded.episode_of_step, encoded.steps_left

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(inverse.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        now = torch.randint(len(actions), (batch_size,), generator=generator)
        offset = 1 + (torch.rand(batch_size, generator=generator) * left[now].clamp_max(max_offset)).long()
        state = now + episode[now]  # every episode has one more state than actions
        loss = inverse.loss(latents[state], latents[state + offset], actions[now])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return InverseModelAgent(model, inverse.requires_grad_(False))
