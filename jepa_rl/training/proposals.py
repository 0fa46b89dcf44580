"""Training of ``FlowProposals`` on imagined play."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.dynamics.flow.proposals import FlowProposals
from jepa_rl.noise import directions
from jepa_rl.progress import SOON, Progress
from jepa_rl.training.optimisers import descend
from jepa_rl.types import Dynamics


def fit_flow_proposals(
    dynamics: Dynamics,
    starts: Float[Tensor, "m d"],
    *,
    horizon: int,
    as_goal: Callable[[Tensor], Tensor] | None = None,
    paths: int = 30_000,
    updates: int = 4000,
    batch_size: int = 512,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
    **flow: Any,
) -> FlowProposals:
    """Learns from imagined play: no step in the environment, and paths as long and as bold as the planner's own.

    From random ``starts`` the dynamics roll out random actions that are held for a while. Where such a path led after k
    steps was its goal all along (hindsight, Andrychowicz et al. 2017), and it stays there. The flow learns the next
    state given the goal and the steps left; the inverse model the action between two states.

    Args:
        dynamics: what will be planned in, ``MPCAgent(...).dynamics``; its actions are continuous.
        starts: latents of states seen, ``LatentEpisodes.encode(model, episodes).latents``.
        horizon: of the plans, in latent steps.
        as_goal: states "... d" to the latents "... d" by which they are asked for, where these are others than the
            states' own: a goal picture shows no speed, and what has arrived has some.
        paths: that are imagined.
        updates, batch_size, learning_rate: AdamW's, the rate falling to zero as a cosine.
        seed: of play, weights and batches.
        progress: show the progress.
        flow: options of ``FlowDynamics`` by name.

    Returns:
        The proposals in evaluation mode, without gradients.

    Raises:
        ValueError: for numbers below 1, starts that are no latents of the dynamics, or an ``as_goal`` that returns
            another shape.
    """
    numbers = dict(horizon=horizon, paths=paths, updates=updates, batch_size=batch_size)
    if wrong := {name: number for name, number in numbers.items() if number < 1}:
        raise ValueError(f"numbers must be at least 1, got {wrong}")
    if starts.ndim != 2 or starts.shape[1] != dynamics.latent_dim or not len(starts):
        raise ValueError(
            f"starts must be latents (states, {dynamics.latent_dim}), at least one, got {tuple(starts.shape)}"
        )
    generator = torch.Generator(starts.device).manual_seed(seed)
    play = Play.imagine(dynamics, starts, paths, horizon, as_goal, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        proposals = FlowProposals(dynamics.latent_dim, dynamics.action_dim, horizon, **flow).to(starts.device)
    observed = [play.sample(batch_size, generator) for _ in range(20)]
    pairs, conditions = (torch.cat([part[i] for part in observed]) for i in (0, 1))
    proposals.paths.observe(pairs, conditions)
    optimizer = torch.optim.AdamW(proposals.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    with Progress("Flow proposals", updates, shown=progress, delay=SOON) as bar:
        for _ in range(updates):
            loss = proposals.loss(*play.sample(batch_size, generator), generator)
            descend(loss, [optimizer], proposals.parameters(), max_norm=1.0)
            schedule.step()
            proposals.paths.after_update()
            bar.update()
    return proposals.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Play:
    """Imagined paths.

    Attributes:
        actions: between the states.
        states: along each path.
        goals: the latents by which the states are asked for.
    """

    actions: Float[Tensor, "m h a"]
    states: Float[Tensor, "m h+1 d"]
    goals: Float[Tensor, "m h+1 d"]

    @classmethod
    @torch.no_grad()
    def imagine(
        cls,
        dynamics: Dynamics,
        starts: Float[Tensor, "n d"],
        count: int,
        horizon: int,
        as_goal: Callable[[Tensor], Tensor] | None,
        generator: torch.Generator,
    ) -> Play:
        """Rolls out random actions, most of them at the bounds and held for three steps or so.

        Args:
            dynamics, starts, horizon, as_goal: as for ``fit_flow_proposals``.
            count: paths.
            generator: of all draws.

        Raises:
            ValueError: for an ``as_goal`` that returns another shape.
        """
        draw: dict[str, Any] = dict(generator=generator, device=starts.device)
        shape = (count, horizon, dynamics.action_dim)
        fresh = directions(shape, starts, generator)
        fresh *= torch.where(torch.rand(*shape[:2], 1, **draw) < 0.7, 1.0, torch.rand(*shape[:2], 1, **draw))
        turn = torch.rand(count, horizon, **draw) < 1 / 3
        turn[:, 0] = True
        latest = torch.where(turn, torch.arange(horizon, device=starts.device), -1).cummax(1).values
        actions = fresh[torch.arange(count, device=starts.device)[:, None], latest]
        rows = starts[torch.randint(len(starts), (count,), **draw)]
        # All rows of one rollout share their noise: small chunks, so that the paths meet many draws of it.
        chunks = [
            dynamics.rollout(z, taken, generator=generator)[:, 0]
            for z, taken in zip(rows.split(64), actions.split(64), strict=True)
        ]
        states = torch.cat(chunks)
        goals = states if as_goal is None else as_goal(states)
        if goals.shape != states.shape:
            raise ValueError(
                f"as_goal must keep the shape of latents {tuple(states.shape)}, got {tuple(goals.shape)}"
            )
        return cls(actions, states, goals)

    def sample(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "b 2 d"], Float[Tensor, "b 1 d+1"], Float[Tensor, "b a"]]:
        """A state and the next on the way, the goal with the share of the horizon that is left, and the action."""
        draw: dict[str, Any] = dict(generator=generator, device=self.states.device)
        paths, horizon = self.actions.shape[:2]
        row = torch.randint(paths, (count,), **draw)
        now = (torch.rand(count, **draw) * horizon).long()
        left = (torch.rand(count, **draw) * (horizon - now + 1)).long()
        after = now + left.clamp_max(1)  # what has arrived stays
        condition = torch.cat([self.goals[row, now + left], (left / horizon)[:, None]], dim=-1)
        taken = self.actions[row, now]
        moved = torch.where(left[:, None] > 0, taken, torch.zeros_like(taken))
        return torch.stack([self.states[row, now], self.states[row, after]], 1), condition[:, None], moved
