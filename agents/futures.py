"""Futures of plans under way: those that did not happen are discarded; a plan that fails in the rest is made anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class Futures(NamedTuple):
    """Futures of the plans under way, drawn when the plans were made.

    Attributes:
        paths: latents of each future, index 0 is when the plan was made.
        costs: of the plan in each future.
        errors: squared distances between each future and what was observed since, summed.
    """

    paths: Float[Tensor, "n f h+1 d"]
    costs: Float[Tensor, "n f"]
    errors: Float[Tensor, "n f"]


def check_keep(keep: float | None, futures: int, block: int, replan_every: int) -> None:
    """Checks that ``MPCAgent``'s ``keep`` fits its other settings.

    Args:
        keep: share of the futures that is kept after an observation; None: no comparison.
        futures: that the planner draws.
        block: environment steps of a latent step.
        replan_every: environment steps of a plan that are executed.

    Raises:
        ValueError: if it does not.
    """
    if keep is None:
        return
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep must lie in (0, 1], got {keep}")
    if futures < 2:
        raise ValueError(
            f"keep={keep} discards futures, and the planner draws one; use CEM(..., futures=8) or so"
        )
    if replan_every <= block:
        raise ValueError(
            f"keep={keep} observes after every block of {block} environment steps, and "
            f"replan_every={replan_every} plans anew by then; follow plans for longer, such as "
            f"replan_every={3 * block}"
        )


def compare(
    futures: Futures,
    observed: Float[Tensor, "r d"],
    rows: Int64[np.ndarray, " r"],
    step: Int64[np.ndarray, " r"],
    keep: float,
) -> tuple[Futures, Bool[np.ndarray, " r"]]:
    """Holds the futures of some environments against what is observed there.

    Args:
        futures: of all environments.
        observed: latents of the environments ``rows`` now.
        rows: environments that are looked at.
        step: latent steps since their plans were made.
        keep: share of the futures that survives.

    Returns:
        The futures with their errors so far, and for each of ``rows`` whether its plan is ``refuted``.
    """
    where = torch.from_numpy(rows).to(futures.errors.device)
    now = futures.paths[where, :, torch.from_numpy(step).to(where.device)]
    distances = (now - observed[:, None]).square().sum(-1)
    errors = futures.errors[where] + distances
    against = refuted(now, distances, futures.costs[where], errors, keep)
    return futures._replace(errors=futures.errors.index_copy(0, where, errors)), against.cpu().numpy()


def refuted(
    now: Float[Tensor, "n f d"],
    distances: Float[Tensor, "n f"],
    costs: Float[Tensor, "n f"],
    errors: Float[Tensor, "n f"],
    keep: float,
) -> Bool[Tensor, " n"]:
    """Whether what is observed speaks against a plan.

    It does where the plan costs more, on average, in the futures that survive than in all of them, by half a standard
    deviation; and where the observation is away from every future by more than twice as far as any future is from its
    nearest neighbour. Where futures differ by less than the model errs, the second is always so, and every block plans.

    Args:
        now: where each future is at this step.
        distances: squared distance of that from the observation.
        costs: of the plan in each future.
        errors: squared distances so far, summed; the futures with the smallest survive.
        keep: share that survives, at least one.
    """
    survivors = errors.topk(max(1, round(keep * errors.shape[1])), dim=1, largest=False).indices
    among = costs.gather(1, survivors).mean(1)
    worse = among > costs.mean(1) + 0.5 * costs.std(1) + 1e-6
    apart = torch.cdist(now, now, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = apart.masked_fill(apart < 1e-6, torch.inf).amin(2)  # not itself, nor another draw of the same
    gap = nearest.masked_fill(torch.isinf(nearest), 0.0).amax(1)
    return worse | ((gap > 0) & (distances.amin(1).sqrt() > 2 * gap))


def replaced(futures: Futures | None, rows: Int64[np.ndarray, " r"], drawn: Futures | None) -> Futures | None:
    """The futures with those of some environments replaced, as a new object: a state handed out is not modified.

    Args:
        futures: of all environments; None at first.
        rows: environments to replace.
        drawn: their new futures; None if none are kept.
    """
    if futures is None or drawn is None:
        return drawn
    where = torch.from_numpy(rows).to(drawn.errors.device)
    return Futures(*(old.index_copy(0, where, new) for old, new in zip(futures, drawn, strict=True)))
