"""Point predictors: one latent and one action in, the next latent out."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.checks import check_each
from jepa_rl.dynamics.base import TrainableDynamics
from jepa_rl.registry import register_dynamics


class PointDynamics(TrainableDynamics):
    """Base of predictors with one future. Subclasses give ``step``.

    One that reads more than the bare action overrides ``embed`` and ``advance`` too, so that all actions of a plan are
    embedded at once.
    """

    def step(
        self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b d"]:
        raise NotImplementedError

    def embed(self, actions: Float[Tensor, "*b a"]) -> Float[Tensor, "*b w"]:
        """What ``advance`` reads of actions; the actions themselves unless overridden."""
        return actions

    def advance(self, z: Float[Tensor, "b d"], embedded: Float[Tensor, "b w"]) -> Float[Tensor, "b d"]:
        """The next latent, given an embedded action."""
        return self.step(z, embedded)

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 1 h+1 d"]:
        """The predicted path, ``z`` first. Point dynamics know one future whatever ``futures`` asks for."""
        path = [z]
        for embedded in self.embed(actions).unbind(1):
            path.append(self.advance(path[-1], embedded))
        return torch.stack(path, dim=1).unsqueeze(1)


class GatedBlock(nn.Module):
    """A residual block with a gate (SwiGLU; Shazeer 2020, arXiv:2002.05202), normalised on the way in.

    A product of features says "blocked, if here and moving there" with few units, where sums need many: with
    gates the predictor learns contacts in fewer updates.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        gate, value = self.up(self.norm(x)).chunk(2, dim=-1)
        return x + self.down(nn.functional.silu(gate) * value)


@register_dynamics("mlp")
class MLPDynamics(PointDynamics):
    """A residual perceptron of gated blocks: ``z' = z + f(z, a)``.

    Args:
        latent_dim, action_dim: widths of latent and action.
        width: hidden units.
        depth: gated blocks.
    """

    def __init__(self, latent_dim: int, action_dim: int, width: int = 192, depth: int = 2) -> None:
        super().__init__(latent_dim, action_dim)
        check_each(lambda size: size >= 1, "be at least 1", width=width, depth=depth)
        self.embed_latent = nn.Linear(latent_dim, width)
        self.embed_action = nn.Linear(action_dim, width, bias=False)  # also embeds one-hot discrete actions
        self.hidden = nn.Sequential(*(GatedBlock(width) for _ in range(depth)))
        self.out = nn.Linear(width, latent_dim)

    def step(
        self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b d"]:
        return self.advance(z, self.embed(action))

    def embed(self, actions: Float[Tensor, "*b a"]) -> Float[Tensor, "*b w"]:
        return self.embed_action(actions)

    def advance(self, z: Float[Tensor, "b d"], embedded: Float[Tensor, "b w"]) -> Float[Tensor, "b d"]:
        return z + self.out(self.hidden(self.embed_latent(z) + embedded))


@register_dynamics("gru")
class GRUDynamics(PointDynamics):
    """A gated recurrent cell whose hidden state starts from the latent and which reads actions only.

    Args:
        latent_dim, action_dim: widths of latent and action.
        width: hidden units.
    """

    markov = False  # the hidden state remembers the actions

    def __init__(self, latent_dim: int, action_dim: int, width: int = 256) -> None:
        super().__init__(latent_dim, action_dim)
        self.start = nn.Linear(latent_dim, width)
        self.cell = nn.GRUCell(action_dim, width)
        self.out = nn.Linear(width, latent_dim)

    def step(
        self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b d"]:
        return z + self.out(self.cell(action, torch.tanh(self.start(z))))

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 1 h+1 d"]:
        hidden, path = torch.tanh(self.start(z)), [z]
        for action in actions.unbind(1):
            hidden = self.cell(action, hidden)
            path.append(path[-1] + self.out(hidden))
        return torch.stack(path, dim=1).unsqueeze(1)
