"""A point predictor that predicts all states of a plan in one pass, without feeding its predictions back."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.checks import check_each
from jepa_rl.dynamics.base import TrainableDynamics, check_rollout, in_chunks
from jepa_rl.dynamics.point import GatedBlock
from jepa_rl.registry import register_dynamics


@register_dynamics("parallel")
class ParallelDynamics(TrainableDynamics):
    """A residual perceptron that reads the state now and the first h actions: ``z_h = z + f(z, a_0 .. a_{h-1})``.

    Predictions are not fed back, so that errors of one step do not become inputs of the next (multi-step models; Asadi
    et al. 2019, arXiv:1905.13320; Lambert et al. 2021, arXiv:2012.09156). All states are computed at once: each
    position of the plan has its own embedding of actions, and the embeddings of the actions before a state are summed.
    Beside them a state's number is embedded. Blocks and widths are those of ``MLPDynamics``, and so is the cost of a
    state.

    Plans longer than ``horizon`` go on from the last predicted state. A plan in two parts differs from one plan, so
    ``markov`` is False for horizons above 1: ``TreeSearch`` then rolls out whole paths from the present state.

    Args:
        latent_dim, action_dim: widths of latent and action.
        horizon: states predicted in one pass. Training windows should be as long: positions that no window reaches
            learn nothing.
        width: hidden units.
        depth: gated blocks.

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(
        self, latent_dim: int, action_dim: int, horizon: int = 6, width: int = 192, depth: int = 2
    ) -> None:
        super().__init__(latent_dim, action_dim)
        check_each(lambda size: size >= 1, "be at least 1", horizon=horizon, width=width, depth=depth)
        self.horizon, self.width, self.markov = horizon, width, horizon == 1
        self.embed_latent = nn.Linear(latent_dim, width)
        # All positions begin alike: many worlds mostly sum up what the actions do.
        first = nn.Linear(action_dim, width, bias=False).weight.detach().T
        self.embed_actions = nn.Parameter(first.repeat(horizon, 1, 1))  # h a w
        self.embed_number = nn.Parameter(torch.zeros(horizon, width))
        self.hidden = nn.Sequential(*(GatedBlock(width) for _ in range(depth)))
        self.out = nn.Linear(width, latent_dim)

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 1 h+1 d"]:
        """The predicted path, ``z`` first; one future whatever ``futures`` asks for. Raises as ``check_rollout``."""
        check_rollout(self.latent_dim, self.action_dim, z, actions, futures)

        def part(rows: Tensor, taken: Tensor) -> Tensor:
            path = [rows.unsqueeze(1)]
            for piece in taken.split(self.horizon, dim=1):
                path.append(self._predict(path[-1][:, -1:], piece))
            return torch.cat(path, dim=1).unsqueeze(1)

        row = min(self.horizon, actions.shape[1]) * 2 * self.width
        return in_chunks(part, z, actions, row)

    def _predict(self, z: Float[Tensor, "b 1 d"], actions: Float[Tensor, "b h a"]) -> Float[Tensor, "b h d"]:
        """States 1 to h, h <= ``horizon``."""
        steps = actions.shape[1]
        taken = torch.einsum("bha,haw->bhw", actions, self.embed_actions[:steps]).cumsum(1)
        x = self.embed_latent(z) + taken + self.embed_number[:steps]
        return z + self.out(self.hidden(x))
