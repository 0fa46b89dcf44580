"""Optimisers, and the one place where gradients are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jepa_rl.training.loop import TrainConfig


def optimizers_of(model: nn.Module, config: TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """By name. Weight decay for matrices, none for vectors such as biases."""
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
        optimizers["optimizer"] = torch.optim.AdamW(groups, lr=rate)
    if by_muon:
        optimizers["muon"] = torch.optim.Muon(
            by_muon, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers


def descend(
    loss: Tensor,
    optimizers: Iterable[torch.optim.Optimizer],
    parameters: Iterable[nn.Parameter],
    max_norm: float,
) -> Tensor:
    """One step of each optimiser down the gradient of ``loss``, clipped to ``max_norm``; the norm before clipping."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    for optimizer in optimizers:
        optimizer.step()
    return norm
