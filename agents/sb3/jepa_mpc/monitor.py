"""What TensorBoard shows of ``JEPAMPC``: is the latent space alive, are its plans worth what they promise?"""

from __future__ import annotations

import time

import numpy as np
import torch
from jaxtyping import Bool, Float
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from jepa_rl.control import ControlModel
from jepa_rl.data.replay import discounted
from jepa_rl.diagnostics import effective_rank
from jepa_rl.modes import evaluating
from jepa_rl.types import ControlBatch, Metrics, Plan


class EnvClock(BaseCallback):
    """``time/env_ms``: from the choice of the actions to the environments' answer. Stands before other callbacks."""

    began: float | None = None

    def _on_step(self) -> bool:
        if self.began is not None:
            self.logger.record_mean("time/env_ms", 1e3 * (time.perf_counter() - self.began))
        return True


class PlanRecord:
    """What plans promised, against what came: value of the plan and discounted return that followed.

    The plan is the search's answer. While it explores, the agent takes its step from another of the best plans, so the
    return may be below the promise of a perfect model.

    Args:
        num_envs: environments that play side by side.
        discount: of one step.
    """

    def __init__(self, num_envs: int, discount: float) -> None:
        self.discount = discount
        self._promised: list[list[float]] = [[] for _ in range(num_envs)]
        self._paid: list[list[float]] = [[] for _ in range(num_envs)]

    def promised(self, values: Float[np.ndarray, " n"]) -> None:
        """Before a step: the value of every environment's plan, which is minus its cost."""
        for steps, value in zip(self._promised, values.tolist(), strict=True):
            steps.append(value)

    def paid(
        self, rewards: Float[np.ndarray, " n"], ended: Bool[np.ndarray, " n"], over: Bool[np.ndarray, " n"]
    ) -> Metrics:
        """After the step; what the episodes that are ``over`` tell. Random steps, which had no plan, are left out.

        Where a time limit cut an episode (``ended`` is false), only steps count whose return hardly depends on what
        would have come behind it (less than a tenth, by the discount). In one that is too short for that, the value
        of the last plan stands for what came and would have come from there on.
        """
        found: list[np.ndarray] = []
        for i, (promised, paid) in enumerate(zip(self._promised, self._paid, strict=True)):
            if promised:
                paid.append(float(rewards[i]))
            if over[i] and promised:
                left = np.arange(len(paid), 0, -1)
                known = np.ones(len(paid), bool) if ended[i] else self.discount**left < 0.1
                if not known.any():
                    paid[-1], known = promised[-1], left > 1
                returns = discounted(np.array(paid), self.discount)
                found.append(np.stack([np.array(promised), returns])[:, known])
            if over[i]:
                self._promised[i], self._paid[i] = [], []
        if not found or not sum(part.shape[1] for part in found):
            return {}
        value, returns = np.concatenate(found, axis=1)
        return {
            "plan/value": float(value.mean()),
            "plan/return": float(returns.mean()),
            "plan/error": float(np.abs(value - returns).mean()),
        }


def search_metrics(plan: Plan, samples: int, elites: int) -> Metrics:
    """Spread of the last candidates' values (standard deviation among those of one environment; those of infinite cost
    aside), and the share of the elites that the policy prior proposed.
    """
    assert plan.candidate_costs is not None
    costs = plan.candidate_costs
    finite = costs.where(torch.isfinite(costs), torch.nan)
    spread = (finite - finite.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
    found = {"plan/spread": float(spread.nan_to_num().mean())}
    if costs.shape[1] > samples:
        best = costs.topk(elites, dim=1, largest=False).indices
        found["plan/share_from_policy"] = float((best >= samples).float().mean())
    return found


@torch.no_grad()
def model_metrics(model: ControlModel, batch: ControlBatch) -> Metrics:
    """Effective rank, spread, and k-step errors on windows from the replay.

    ``jepa/latent_error_k`` is relative to the error of predicting no change (1 is as bad); ``jepa/reward_error_k`` is
    the mean absolute error of the reward of step k, from a latent predicted k - 1 steps ahead.
    """
    with evaluating(model):
        z = model.world.encode_windows(batch.observations)
        std = z[:, 0].std(0)
        found = {
            "jepa/effective_rank": effective_rank(z[:, 0]),
            "jepa/std_mean": float(std.mean()),
            "jepa/std_min": float(std.min()),
        }
        found |= {
            f"jepa/{name}": value
            for name, value in prediction_errors(model, z, batch.actions, batch.rewards, batch.valid).items()
        }
    return found


@torch.no_grad()
def prediction_errors(
    model: ControlModel,
    z: Float[Tensor, "b h+1 d"],
    actions: Float[Tensor, "b h a"],
    rewards: Float[Tensor, "b h"],
    valid: Bool[Tensor, "b h"],
) -> Metrics:
    """``latent_error_k`` and ``reward_error_k`` as in ``model_metrics``, from latents that are there already."""
    found: Metrics = {}
    path = model.rollout(z[:, 0], actions)[:, 0]
    for k in range(1, actions.shape[1] + 1):
        known = valid[:, k - 1]
        if not known.any():
            break
        error, change = ((x - z[known, k]).square().mean() for x in (path[known, k], z[known, 0]))
        paid = model.reward(path[known, k - 1], actions[known, k - 1])
        found[f"latent_error_{k}"] = float(error / change.clamp_min(1e-12))
        found[f"reward_error_{k}"] = float((paid - rewards[known, k - 1]).abs().mean())
    return found
