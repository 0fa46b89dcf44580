"""What a frozen latent space represents: linear and small MLP probes, scored by R2 on held-out data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.training.optimisers import descend


def r2_score(predicted: Float[Tensor, "m y"], target: Float[Tensor, "m y"]) -> Float[Tensor, " y"]:
    """Coefficient of determination of each target column: 1 is perfect, 0 as good as predicting the mean."""
    residual = (target - predicted).square().sum(0)
    return 1.0 - residual / (target - target.mean(0)).square().sum(0).clamp_min(1e-12)


@dataclass(frozen=True)
class Probe:
    """A trained regressor from latents to targets in their own units.

    Attributes:
        network: from latents to standardised targets.
        mean, std: of each target column in the training data, "y".
    """

    network: nn.Module
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def __call__(self, latents: Float[Tensor, "... d"]) -> Float[Tensor, "... y"]:
        return self.network(latents) * self.std + self.mean


def _standardise(targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, std = targets.mean(0), targets.std(0).clamp_min(1e-6)
    return (targets - mean) / std, mean, std


def fit_linear_probe(
    latents: Float[Tensor, "m d"], targets: Float[Tensor, "m y"], ridge: float = 1e-3
) -> Probe:
    """Ridge regression in closed form.

    Args:
        latents: inputs.
        targets: what to predict.
        ridge: penalty on the squared weights, relative to the number of rows; the intercept is free.
    """
    normed, mean, std = _standardise(targets.float())
    x = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1).double()
    penalty = ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    penalty[-1, -1] = 0.0  # the intercept is free
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ normed.double()).float()
    layer = nn.Linear(latents.shape[1], targets.shape[1], device=x.device)
    with torch.no_grad():
        layer.weight.copy_(weights[:-1].T)
        layer.bias.copy_(weights[-1])
    return Probe(layer.requires_grad_(False), mean, std)


def fit_mlp_probe(
    latents: Float[Tensor, "m d"],
    targets: Float[Tensor, "m y"],
    generator: torch.Generator,
    width: int = 256,
    steps: int = 2000,
    batch_size: int = 512,
) -> Probe:
    """A perceptron of two hidden layers, trained by AdamW with a one-cycle schedule; the latents get no gradient.

    Args:
        latents: inputs.
        targets: what to predict.
        generator: of the first weights and of the batches.
        width: hidden units of a layer.
        steps: updates.
        batch_size: rows of an update.
    """
    normed, mean, std = _standardise(targets.float())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        network = nn.Sequential(
            nn.Linear(latents.shape[1], width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, targets.shape[1]),
        ).to(latents.device)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    latents = latents.detach()
    for _ in range(steps):
        rows = torch.randint(len(latents), (batch_size,), generator=generator).to(latents.device)
        loss = nn.functional.mse_loss(network(latents[rows]), normed[rows])
        descend(loss, [optimizer], network.parameters(), max_norm=float("inf"))
        schedule.step()
    return Probe(network.eval().requires_grad_(False), mean, std)
