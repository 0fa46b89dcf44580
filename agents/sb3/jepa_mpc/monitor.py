"""TensorBoard metrics of ``JEPAMPC``: collapse of latents, prediction errors, planned against actual returns."""

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
from jepa_rl.distributed import average
from jepa_rl.modes import evaluating
from jepa_rl.types import ControlBatch, Metrics, Plan


class EnvClock(BaseCallback):
    """``time/env_ms``: milliseconds of an environment step. Must be the first callback: it times those before it.

    The algorithm says when the step began, in ``_step_began``; it does not keep the callback, which cannot be copied.
    """

    def _on_step(self) -> bool:
        began: float | None = self.model._step_began  # type: ignore[attr-defined]
        if began is not None:
            self.logger.record_mean("time/env_ms", 1e3 * (time.perf_counter() - began))
        return True


class PlanRecord:
    """Compares the value of each plan with the discounted return that followed it.

    The value is that of the plan that the search returns. To explore, the agent executes another of the best plans, so
    even a perfect model may overestimate the return.

    Args:
        num_envs: number of environments.
        discount: of one step.
    """

    def __init__(self, num_envs: int, discount: float) -> None:
        self.discount = discount
        self._promised: list[list[float]] = [[] for _ in range(num_envs)]
        self._paid: list[list[float]] = [[] for _ in range(num_envs)]

    def promised(self, values: Float[np.ndarray, " n"]) -> None:
        """Records, before a step, the value of each environment's plan: minus its cost."""
        for steps, value in zip(self._promised, values.tolist(), strict=True):
            steps.append(value)

    def paid(
        self, rewards: Float[np.ndarray, " n"], ended: Bool[np.ndarray, " n"], over: Bool[np.ndarray, " n"]
    ) -> Metrics:
        """Records the rewards of a step; returns metrics of the episodes that are ``over``.

        Random steps, which have no plan, are left out. In an episode that was truncated by a time limit (``ended`` is
        False), only those steps count in whose return rewards beyond the limit have a weight below 0.1. If there are
        none, the value of the last plan replaces the rewards from its step on.

        Args:
            rewards: of the step.
            ended: whether the episode terminated.
            over: whether it terminated or was truncated.

        Returns:
            ``plan/value``, ``plan/return`` and ``plan/error`` (mean absolute difference) over the steps of these
            episodes; empty if there are none.
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
    """Metrics of a search.

    Args:
        plan: the answer of the planner, with its candidates.
        samples: number of candidates that the search sampled; further ones were proposed by the policy prior.
        elites: number of elites.

    Returns:
        ``plan/spread``: standard deviation of the finite costs of one environment's candidates, averaged over
        environments; and ``plan/share_from_policy``, the share of proposals among the elites, if there are any.
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
    """Effective rank, standard deviations and k-step prediction errors on windows from the replay.

    ``jepa/latent_error_k`` is divided by the error of predicting no change (1 is no better than that).
    ``jepa/reward_error_k`` is the mean absolute error of the reward of step k, from a latent predicted k - 1 steps
    ahead.
    """
    assert batch.valid is not None, "a replay says which steps of its windows are valid"
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
    z: Float[Tensor, "b t d"],
    actions: Float[Tensor, "b h a"],
    rewards: Float[Tensor, "b h"],
    valid: Bool[Tensor, "b h"],
) -> Metrics:
    """``latent_error_k`` and ``reward_error_k`` of ``model_metrics``, from encoded states.

    Args:
        model: predicts the latents.
        z: latents of the states of the windows.
        actions, rewards: of their steps.
        valid: False for steps beyond the end of an episode.
    """
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


def finite_terms(terms: dict[str, Tensor], updates: int) -> Metrics:
    """Terms of the losses as numbers, means over all processes; before a callback saves weights.

    Args:
        terms: of this process's rows.
        updates: since when they have not been looked at.

    Raises:
        ValueError: if one is NaN or infinite.
    """
    here = torch.tensor([value.item() for value in terms.values()], dtype=torch.float64)
    found = dict(zip(terms, average(here).tolist(), strict=True))
    if unsound := {name: value for name, value in found.items() if not np.isfinite(value)}:
        raise ValueError(
            f"losses or their gradients became NaN or infinite within the last {updates} updates: {unsound}; lower "
            "learning_rate, and check an objective of your own. A ResumableRun's checkpoint is from before"
        )
    return found
