"""Two point predictors, one of single steps and one of several at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_rl.checks import check_whole
from jepa_rl.dynamics.base import TrainableDynamics, check_rollout, in_chunks
from jepa_rl.dynamics.point import MLPDynamics
from jepa_rl.registry import register_dynamics


@register_dynamics("two_scale")
class TwoScaleDynamics(TrainableDynamics):
    """A predictor of one latent step and a coarse one of ``stride`` steps, both perceptrons (``MLPDynamics``).

    A rollout takes coarse steps for whole multiples of ``stride``, like the long marks of a ruler, and fine steps from
    the last long mark to each state between. A state h steps ahead is then ``h // stride + h % stride`` predictions
    away instead of h, so that long plans accumulate fewer errors (jumpy models: Gregor et al. 2019, arXiv:1806.03107;
    Zhang et al. 2023, arXiv:2302.12617). The action of a coarse step is the sequence of the ``stride`` actions.

    Both learn on the same windows: the fine one by its open-loop rollout over the window, the coarse one by its
    open-loop rollouts from each of the first ``stride`` states.

    A plan in two parts differs from one plan, since the marks move, so ``markov`` is False for strides above 1:
    ``TreeSearch`` then rolls out whole paths from the present state.

    Args:
        latent_dim, action_dim: widths of latent and action.
        stride: latent steps of a coarse step, m.
        width, depth: of each predictor, see ``MLPDynamics``.

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(
        self, latent_dim: int, action_dim: int, stride: int = 8, width: int = 192, depth: int = 2
    ) -> None:
        super().__init__(latent_dim, action_dim)
        check_whole(stride=stride)
        self.stride, self.width, self.markov = stride, width, stride == 1
        self.fine = MLPDynamics(latent_dim, action_dim, width, depth)
        self.coarse = MLPDynamics(latent_dim, stride * action_dim, width, depth)

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
        h = actions.shape[1]

        def part(rows: Tensor, taken: Tensor) -> Tensor:
            pieces = F.pad(taken, (0, 0, 0, -h % self.stride)).unflatten(1, (-1, self.stride))  # b k m a
            marks = rows.unsqueeze(1)
            if h >= self.stride:
                marks = self.coarse.rollout(rows, pieces[:, : h // self.stride].flatten(2))[:, 0]
            starts = marks[:, : pieces.shape[1]]
            # The last action of a piece leads to the next mark.
            between = self._fill(starts, pieces[:, :, :-1])
            path = torch.cat([starts.unsqueeze(2), between], dim=2).flatten(1, 2)
            return torch.cat([path, marks[:, pieces.shape[1] :]], dim=1)[:, None, : h + 1]

        pieces = -(-h // self.stride)
        return in_chunks(part, z, actions, pieces * 2 * self.width)

    def _fill(
        self, starts: Float[Tensor, "b k d"], actions: Float[Tensor, "b k m a"]
    ) -> Float[Tensor, "b k m d"]:
        """Fine states behind each mark, all pieces side by side."""
        if not actions.shape[2]:
            return starts.unsqueeze(2)[:, :, :0]
        path = self.fine.rollout(starts.flatten(0, 1), actions.flatten(0, 1))[:, 0, 1:]
        return path.unflatten(0, starts.shape[:2])

    def loss(
        self,
        latents: Float[Tensor, "b t d"],
        actions: Float[Tensor, "b h a"],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared errors of both predictors' open-loop rollouts, summed.

        Raises:
            ValueError: for windows shorter than ``stride``.
        """
        if actions.shape[1] < self.stride:
            raise ValueError(
                f"two_scale with stride={self.stride} learns on windows of at least as many steps, got "
                f"{actions.shape[1]}; use longer windows, or a smaller stride"
            )
        fine, _ = self.fine.loss(latents, actions)
        coarse = self._coarse_error(latents, actions)
        return fine + coarse, {"prediction": fine, "coarse": coarse}

    def _coarse_error(self, latents: Float[Tensor, "b t d"], actions: Float[Tensor, "b h a"]) -> Tensor:
        """Mean squared error over all coarse steps of the window."""
        errors = []
        for start in range(min(self.stride, actions.shape[1] - self.stride + 1)):
            steps = (actions.shape[1] - start) // self.stride
            taken = actions[:, start : start + steps * self.stride].unflatten(1, (steps, -1)).flatten(2)
            path = self.coarse.rollout(latents[:, start], taken)[:, 0, 1:]
            errors.append((path - latents[:, start + self.stride :: self.stride]).square())
        return torch.cat(errors, dim=1).mean()
