"""Optimisers, and the one place where gradients are made."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.distributed import average_gradients
from jepa_rl.training.config import TrainConfig
from jepa_rl.training.contracts import Trainable


def optimizers_of(model: Trainable, config: TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """Optimisers of all parameters that learn, by name. Weight decay for matrices, none for vectors such as biases."""
    rate, decay = config.learning_rate, config.weight_decay
    parameters = [p for p in model.parameters() if p.requires_grad]
    by_muon = [p for p in parameters if p.ndim == 2 and config.optimizer == "muon"]
    matrices = [p for p in parameters if p.ndim > 1 and not (by_muon and p.ndim == 2)]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if groups := [group for group in groups if group["params"]]:
        optimizers["optimizer"] = torch.optim.AdamW(groups, lr=rate, fused=True)
    if by_muon:
        optimizers["muon"] = torch.optim.Muon(
            by_muon, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers


def descend(
    loss: Float[Tensor, ""],
    optimizers: Collection[torch.optim.Optimizer],
    parameters: Iterable[nn.Parameter],
    max_norm: float,
) -> Float[Tensor, ""]:
    """One step of each optimiser down the gradient of ``loss``; of several processes, down the mean of theirs.

    Args:
        loss: with a gradient; a mean over the rows.
        optimizers: of the parameters.
        parameters: whose gradients are clipped together.
        max_norm: largest norm of the gradient.

    Returns:
        Norm of the gradient before clipping.
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = list(parameters)
    average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    for optimizer in optimizers:
        optimizer.step()
    return norm
