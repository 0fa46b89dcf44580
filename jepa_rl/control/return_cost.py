"""The cost of a plan in a world with reward: minus its return."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.control.model import ControlModel


class ReturnCost:
    """Minus the return of a plan: rewards, survival and the value at its end. A ``Cost`` for the planners.

    Args:
        model: its heads predict reward, survival and value.
        terminal: whether the value of the last state is added.
    """

    def __init__(self, model: ControlModel, terminal: bool = True) -> None:
        self.model, self.terminal = model, terminal

    def __call__(
        self, latents: Float[Tensor, "b n t d"], actions: Float[Tensor, "b h a"]
    ) -> Float[Tensor, "b n"]:
        model, h = self.model, actions.shape[1]
        taken = actions.unsqueeze(1).expand(-1, latents.shape[1], -1, -1)
        rewards = model.reward(latents[:, :, :-1].flatten(0, 2), taken.flatten(0, 2)).view(taken.shape[:3])
        alive = model.alive(latents[:, :, 1:].flatten(0, 2)).view(taken.shape[:3]).cumprod(-1)
        discount = model.discount ** torch.arange(h, device=latents.device)
        before = torch.cat([torch.ones_like(alive[..., :1]), alive[..., :-1]], dim=-1)
        total = (rewards * before * discount).sum(-1)
        if self.terminal:
            last = latents[:, :, -1].flatten(0, 1)
            value = model.value(last, model.policy.mode(last)).mean(0).view(total.shape)
            total = total + model.discount**h * alive[..., -1] * value
        return -total
