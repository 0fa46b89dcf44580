"""Whether several processes compute what one would, for parts of your own."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from jepa_rl.batches import cut
from jepa_rl.control import ControlModel
from jepa_rl.distributed import own_rows, together
from jepa_rl.training import Trainable, descend


def gradient_difference(model: Trainable | ControlModel, batch: Any, seed: int = 0) -> float:
    """How far the gradient of all processes, each with its rows, is from that of one process with all rows.

    Called in all processes inside ``jepa_rl.distributed.join``. In float64 it is about 1e-12; more than 1e-6 tells of a
    statistic of one process's rows, or of numbers that are not drawn for all rows (``jepa_rl.distributed.own_draw``).

    Args:
        model: a ``WorldModel`` or ``ControlModel``, for example, in training mode; it is left as it is.
        batch: the same dataclass of tensors in all processes, whose rows they can divide.
        seed: of the generator that the losses draw from.

    Returns:
        Norm of the difference, relative to that of one process's gradient.
    """
    alone = _gradient(model, batch, seed)
    with together():
        shared = _gradient(model, cut(batch, own_rows()), seed)
    return float((shared - alone).norm() / alone.norm())


def _gradient(model: Trainable | ControlModel, batch: Any, seed: int) -> Tensor:
    """All gradients in one row."""
    apart = copy.deepcopy(model)
    parameters = [p for p in apart.parameters() if p.requires_grad]
    device = parameters[0].device
    generator = torch.Generator(device).manual_seed(seed)
    if isinstance(apart, ControlModel):
        losses = apart.loss(batch, generator)
        loss = losses.total + apart.policy_loss(losses, generator)["policy"]
    else:
        loss, _ = apart.loss(batch, generator)
    descend(loss, [], parameters, math.inf)
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
