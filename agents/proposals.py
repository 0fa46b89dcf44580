"""Plans out of a flow: draw latent paths from here to the goal, read off the actions, let the world model choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.agents.planners.base import (
    BasePlanner,
    check_common,
    check_each,
    check_elites,
    comparable,
    make_problem,
    pick,
    positive,
    take,
)
from jepa_rl.agents.planners.sampling import directions
from jepa_rl.costs import goal_of
from jepa_rl.dynamics import FlowDynamics
from jepa_rl.files import load_tensors, save_tensors
from jepa_rl.risk import Risk, expected_cost
from jepa_rl.types import ActionKind, Cost, Dynamics, Plan, Planner, WorldSpec
from jepa_rl.world_model import WorldModel


class FlowProposals(nn.Module):
    """Draws paths of latents from a state to a goal, and names the actions that lead along them.

    A flow over latent paths proposes where to go, an inverse model how, and the world model is asked only which of the
    proposals to trust (LeFlow's idea). The flow is ``FlowDynamics`` driven, in place of actions, by the goal and by how
    many steps are left until it is to be reached; proposals differ in that number and in their noise.

    Args:
        latent_dim, action_dim: of the dynamics that are planned in; actions are continuous, in [-1, 1].
        horizon: latent steps of a path, and the most that a goal may be away.
        width: hidden units of the inverse model.
        flow: further arguments of ``FlowDynamics``; one evaluation for each state is the default here, because the
            world model sorts out what is drawn badly.
    """

    def __init__(self, latent_dim: int, action_dim: int, horizon: int, width: int = 256, **flow: Any) -> None:
        super().__init__()
        flow = {"evaluations": 1} | flow
        self.settings = dict(
            latent_dim=latent_dim, action_dim=action_dim, horizon=horizon, width=width, **flow
        )
        self.horizon, self.latent_dim, self.action_dim = horizon, latent_dim, action_dim
        self.paths = FlowDynamics(latent_dim, latent_dim + 1, **flow)
        self.inverse = nn.Sequential(
            nn.Linear(2 * latent_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, action_dim), nn.Tanh(),
        )  # fmt: skip

    def actions_between(
        self, z: Float[Tensor, "*b d"], after: Float[Tensor, "*b d"]
    ) -> Float[Tensor, "*b a"]:
        """The action that leads from one state to the next."""
        pair = [self.paths.standardise(latent) for latent in (z, after)]
        return self.inverse(torch.cat(pair, dim=-1))

    @torch.no_grad()
    def draw(
        self,
        z: Float[Tensor, "b d"],
        goal: Float[Tensor, "b d"],
        count: int,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "b p t d"], Float[Tensor, "b p h a"]]:
        """At least ``count`` paths, as many for each arrival in 1 to ``horizon`` steps, and their actions."""
        h = self.horizon
        arrival = torch.arange(1, h + 1, device=z.device)
        left = (arrival[:, None] - torch.arange(h, device=z.device)).clamp_min(0).to(z) / h
        steer = torch.cat(
            [goal[:, None, None].expand(-1, h, h, -1), left[None, :, :, None].expand(len(z), -1, -1, -1)],
            dim=-1,
        )
        rows = z.repeat_interleave(h, dim=0)
        paths = self.paths.rollout(rows, steer.flatten(0, 1), futures=-(-count // h), generator=generator)
        paths = paths.unflatten(0, (len(z), h)).flatten(1, 2)
        return paths, self.actions_between(paths[:, :, :-1], paths[:, :, 1:])

    def save(self, path: str | Path, world: WorldModel | None = None) -> None:
        """Writes one safetensors file, and which encoder's latents the paths are made of; atomic.

        Args:
            world: the model whose latents these are; without it nothing can be said of them when they are read.
        """
        encoder = None if world is None else world.encoder_fingerprint()
        save_tensors(
            path, "flow_proposals", self.state_dict(), {"settings": self.settings, "encoder": encoder}
        )

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", world: WorldModel | None = None) -> FlowProposals:
        """Reads a file of ``save``; nothing in it is executed.

        Args:
            world: the model that they are for.

        Raises:
            FileNotFoundError, ValueError: as ``WorldModel.load``, and for proposals in another encoder's latents than
                those of ``world``.
        """
        tensors, header = load_tensors(path, ("flow_proposals",), device)
        if world is not None:
            world.check_encoder(path, header.get("encoder"), "fit_flow_proposals")
        try:
            proposals = cls(**header["settings"]).to(device)
            proposals.load_state_dict(tensors)
        except (TypeError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path} does not describe proposals of this version: {error}") from error
        return proposals.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class FlowPlanner(BasePlanner):
    """Draws proposals, rolls their actions through the world model once, and takes the best.

    The least ``E_total = E_world + goal_weight * E_goal`` wins: E_world is the squared distance between the path that
    was drawn and the ones that the world model expects of its actions, standardised, mean over futures, steps and
    dimensions; E_goal is the cost. With ``refine``, the best proposals enter a short search that starts from the best
    of them.

    Attributes:
        proposals: see ``fit_flow_proposals``.
        samples: proposals drawn, rounded up to a multiple of the horizon.
        goal_weight: of the cost beside the distance between drawn and expected path.
        refine: a planner with a few iterations and the same horizon, futures and risk, such as
            ``CEM(h, samples=64, iterations=1)``.
        elites: proposals that ``refine`` is given.
        futures, risk: as for ``CEM``.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    actions: ClassVar[ActionKind] = "continuous"

    proposals: FlowProposals
    samples: int = 48
    goal_weight: float = 1.0
    refine: Planner | None = None
    elites: int = 8
    futures: int = 1
    risk: Risk = expected_cost

    def __post_init__(self) -> None:
        check_common(self, "samples", "elites")
        check_elites(self.elites, self.samples)
        check_each(positive, "be positive and finite", goal_weight=self.goal_weight)
        if self.refine is None:
            return
        for name in ("horizon", "futures", "risk"):
            theirs = getattr(self.refine, name)
            if theirs != getattr(self, name):
                raise ValueError(f"refine must have the same {name}, {getattr(self, name)}, got {theirs}")

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """Latent steps of a plan."""
        return self.proposals.horizon

    def check(self, spec: WorldSpec, dynamics: Dynamics) -> None:
        """See ``BasePlanner.check``. Raises ValueError too if the proposals were fitted to other widths."""
        super().check(spec, dynamics)
        self._check_widths(dynamics)

    def _check_widths(self, dynamics: Dynamics) -> None:
        sizes = (self.proposals.latent_dim, self.proposals.action_dim)
        if sizes != (dynamics.latent_dim, dynamics.action_dim):
            raise ValueError(
                f"the proposals were fitted to latents and actions of widths {sizes}, the dynamics have "
                f"{(dynamics.latent_dim, dynamics.action_dim)}; call fit_flow_proposals with the dynamics that the "
                "agent plans in (agent.dynamics)"
            )

    @torch.no_grad()
    def plan(
        self,
        dynamics: Dynamics,
        cost: Cost,
        z: Float[Tensor, "b d"],
        warm_start: Float[Tensor, "b h a"] | None = None,
        generator: torch.Generator | None = None,
        proposals: Float[Tensor, "b p h a"] | None = None,
    ) -> Plan:
        """See ``jepa_rl.types.Planner``; the warm start and ``proposals`` compete as plans whose path is not in doubt.

        Raises:
            ValueError: for arguments of the wrong shape or not finite, a cost without a goal or with another number of
                them, or dynamics of other widths than the proposals were fitted to.
        """
        goal = goal_of(cost)
        if goal is None:
            raise ValueError(
                "a flow to the goal needs a cost with a goal, such as GoalCost; for others use CEM"
            )
        self._check_widths(dynamics)
        problem, start = make_problem(self, dynamics, cost, z, warm_start, generator, proposals)
        if goal.shape[-1] != z.shape[1] or goal.shape[0] not in (1, len(z)):
            raise ValueError(
                f"the cost must hold 1 goal or {len(z)}, {z.shape[1]} wide, got {tuple(goal.shape)}"
            )
        paths, drawn = self.proposals.draw(z, goal.to(z).expand_as(z), self.samples, generator)
        candidates = torch.cat([start[:, None], problem.with_proposals(drawn)], dim=1)
        latents, costs = problem.rollout(candidates)
        costs = comparable(costs)
        expected = latents.unflatten(0, candidates.shape[:2])  # b p n h+1 d
        flow = self.proposals.paths
        doubt = torch.zeros_like(costs)
        own = slice(1, 1 + drawn.shape[1])
        apart = flow.standardise(paths)[:, :, None] - flow.standardise(expected[:, own])
        doubt[:, own] = apart.square().mean((2, 3, 4))
        total = doubt + self.goal_weight * costs
        best = total.topk(self.elites, dim=1, largest=False).indices
        if self.refine is not None:
            likely = take(candidates, best)
            return self.refine.plan(dynamics, cost, z, likely[:, 0], generator, likely)
        chosen = best[:, 0]
        return Plan(
            actions=pick(candidates, chosen),
            cost=pick(costs, chosen),
            candidates=candidates,
            candidate_costs=costs,
            branches=pick(latents.unflatten(0, candidates.shape[:2]), chosen),
        )


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
        flow: further arguments of ``FlowDynamics``.

    Raises:
        ValueError: for numbers below 1, starts that are no latents of the dynamics, or an ``as_goal`` that returns
            another shape.
    """
    numbers = dict(horizon=horizon, paths=paths, updates=updates, batch_size=batch_size)
    if wrong := {name: number for name, number in numbers.items() if number < 1}:
        raise ValueError(f"numbers must be at least 1, got {wrong}")
    if starts.ndim != 2 or starts.shape[1] != dynamics.latent_dim or not len(starts):
        raise ValueError(f"starts must be (states, {dynamics.latent_dim}), got {tuple(starts.shape)}")
    generator = torch.Generator(starts.device).manual_seed(seed)
    path, actions = _imagined_play(dynamics, starts, paths, horizon, generator)
    goals = path
    if as_goal is not None:
        with torch.no_grad():
            goals = as_goal(path)
        if goals.shape != path.shape:
            raise ValueError(
                f"as_goal must keep the shape of latents {tuple(path.shape)}, got {tuple(goals.shape)}"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        proposals = FlowProposals(dynamics.latent_dim, dynamics.action_dim, horizon, **flow).to(starts.device)
    draw: dict[str, Any] = dict(generator=generator, device=starts.device)

    def windows() -> tuple[Tensor, Tensor, Tensor]:
        """A state and the next on the way "b 2 d", the goal and the steps left "b 1 d+1", the action "b a"."""
        row = torch.randint(paths, (batch_size,), **draw)
        now = (torch.rand(batch_size, **draw) * horizon).long()
        left = (torch.rand(batch_size, **draw) * (horizon - now + 1)).long()
        after = now + left.clamp_max(1)  # what has arrived stays
        steer = torch.cat([goals[row, now + left], (left / horizon)[:, None]], dim=-1)
        moved = torch.where(left[:, None] > 0, actions[row, now], torch.zeros_like(actions[row, now]))
        return torch.stack([path[row, now], path[row, after]], 1), steer[:, None], moved

    seen = [windows() for _ in range(20)]
    proposals.paths.observe(torch.cat([part[0] for part in seen]), torch.cat([part[1] for part in seen]))
    optimizer = torch.optim.AdamW(proposals.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        pair, steer, moved = windows()
        named = proposals.actions_between(pair[:, 0], pair[:, 1])
        loss = proposals.paths.loss(pair, steer, generator)[0] + (named - moved).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(proposals.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        proposals.paths.after_update()
    return proposals.eval().requires_grad_(False)


@torch.no_grad()
def _imagined_play(
    dynamics: Dynamics, starts: Tensor, count: int, horizon: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m t d"], Float[Tensor, "m h a"]]:
    """Random actions, most of them at the bounds and held for three steps or so, and where they lead."""
    draw: dict[str, Any] = dict(generator=generator, device=starts.device)
    shape = (count, horizon, dynamics.action_dim)
    fresh = directions(shape, starts, generator)
    fresh *= torch.where(torch.rand(*shape[:2], 1, **draw) < 0.7, 1.0, torch.rand(*shape[:2], 1, **draw))
    turn = torch.rand(count, horizon, **draw) < 1 / 3
    turn[:, 0] = True
    latest = torch.where(turn, torch.arange(horizon, device=starts.device), -1).cummax(1).values
    actions = fresh[torch.arange(count, device=starts.device)[:, None], latest]
    rows = starts[torch.randint(len(starts), (count,), **draw)]
    # All rows of one rollout meet the same luck: small parts, so that there is some variety in it.
    parts = [
        dynamics.rollout(z, taken, generator=generator)[:, 0]
        for z, taken in zip(rows.split(64), actions.split(64), strict=True)
    ]
    return torch.cat(parts), actions
