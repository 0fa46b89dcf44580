"""The contract of planners as tests."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from jepa_rl.costs import ActionPenalty, GoalCost
from jepa_rl.testing.checks import assert_raises, seeded
from jepa_rl.testing.dynamics import COMPASS, PointMass
from jepa_rl.types import ActionSpec, Plan, Planner, WorldSpec


class PlannerContract:
    """What every planner promises, tested on a point that moves to a goal.

    A planner of discrete actions chooses among the four directions of the compass, one-hot.
    """

    @property
    def discrete(self) -> bool:
        """Whether the planner is tested on one-hot actions."""
        return self.make_planner().actions == "discrete"

    def make_planner(self) -> Planner:
        """A planner with a horizon of at least 4; small settings keep the tests fast."""
        raise NotImplementedError

    def _plan(self, batch: int = 3, warm_start: Tensor | None = None, **changes: Any) -> Plan:
        problem = self._problem(batch) | changes
        return self.make_planner().plan(**problem, warm_start=warm_start, generator=seeded())

    def _problem(self, batch: int) -> dict[str, Any]:
        goal = torch.tensor([[0.4, 0.2], [-0.3, 0.4], [0.0, -0.6]])[:batch]
        cost = GoalCost(goal) + 0.01 * ActionPenalty()
        dynamics = PointMass(COMPASS) if self.discrete else PointMass()
        return {"dynamics": dynamics, "cost": cost, "z": torch.zeros(batch, 2)}

    def _some_plan(self, batch: int = 3) -> Tensor:
        shape = (batch, self.make_planner().horizon)
        if self.discrete:
            return torch.eye(4)[torch.randint(0, 4, shape, generator=seeded(5))]
        return 2 * torch.rand(*shape, 2, generator=seeded(5)) - 1

    def test_says_what_it_searches_and_refuses_the_rest(self) -> None:
        planner = self.make_planner()
        assert isinstance(planner, Planner), "a planner has what jepa_rl.types.Planner names; see BasePlanner"
        assert planner.actions in ("continuous", "discrete", "any"), planner.actions
        assert planner.futures >= 1 and callable(planner.risk)
        continuous = WorldSpec((3, 8, 8), 1, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))
        discrete = WorldSpec((3, 8, 8), 1, ActionSpec("discrete", 4))
        for spec, dynamics in ((continuous, PointMass()), (discrete, PointMass(COMPASS))):
            if planner.actions in ("any", spec.action.kind):
                planner.check(spec, dynamics)
            else:
                kind = spec.action.kind
                assert_raises(
                    ValueError, partial(planner.check, spec, dynamics), f"it searches no {kind} actions"
                )

    def test_plans_have_the_promised_shapes_and_bounds(self) -> None:
        planner = self.make_planner()
        assert isinstance(planner, Planner) and planner.horizon >= 4
        plan = self._plan()
        a = 4 if self.discrete else 2
        assert plan.actions.shape == (3, planner.horizon, a), tuple(plan.actions.shape)
        assert plan.cost.shape == (3,)
        assert plan.branches.shape[0] == 3 and plan.branches.shape[2:] == (planner.horizon + 1, 2)
        seen = [plan.actions]
        if plan.candidates is not None and plan.candidate_costs is not None:
            assert plan.candidates.shape[2:] == plan.actions.shape[1:]
            assert plan.candidate_costs.shape == plan.candidates.shape[:2]
            seen.append(plan.candidates)
        for actions in seen:
            assert not actions.requires_grad
            if self.discrete:
                assert ((actions == 0) | (actions == 1)).all() and (actions.sum(-1) == 1).all()
            else:
                assert actions.abs().max() <= 1.0

    def test_cost_and_branches_are_those_of_the_plan(self) -> None:
        problem, plan = self._problem(3), self._plan()
        branches = problem["dynamics"].rollout(problem["z"], plan.actions)
        assert_close(plan.branches, branches)
        assert_close(plan.cost, problem["cost"](branches, plan.actions).mean(-1))

    def test_gets_closer_to_the_goal_than_standing_still(self) -> None:
        problem, plan = self._problem(3), self._plan()
        still = problem["z"][:, None, None].expand(-1, 1, plan.actions.shape[1] + 1, -1)
        assert (plan.cost < 0.8 * problem["cost"](still, torch.zeros_like(plan.actions))[:, 0]).all()

    def test_is_never_worse_than_its_warm_start(self) -> None:
        problem = self._problem(3)
        best = self._plan().actions
        for warm_start in (best, self._some_plan()):
            given = problem["cost"](problem["dynamics"].rollout(problem["z"], warm_start), warm_start)[:, 0]
            assert (self._plan(warm_start=warm_start).cost <= given + 1e-5).all()

    def test_is_never_worse_than_what_was_proposed(self) -> None:
        problem = self._problem(3)
        proposals = torch.stack([self._some_plan(), self._plan().actions], dim=1)
        plan = self.make_planner().plan(**problem, generator=seeded(), proposals=proposals)
        for proposed in proposals.unbind(1):
            given = problem["cost"](problem["dynamics"].rollout(problem["z"], proposed), proposed)[:, 0]
            assert (plan.cost <= given + 1e-5).all()
        wrong = proposals[:, :, :-1]
        assert_raises(
            ValueError,
            lambda: self.make_planner().plan(**problem, generator=seeded(), proposals=wrong),
            "proposals of another horizon cannot compete",
        )

    def test_equal_seeds_give_equal_plans_whatever_was_planned_before(self) -> None:
        planner, problem = self.make_planner(), self._problem(3)
        first = planner.plan(**problem, generator=seeded())
        planner.plan(**(problem | {"z": torch.ones(3, 2)}), generator=seeded(9))
        second = planner.plan(**problem, generator=seeded())
        assert_close(first.actions, second.actions, rtol=0, atol=0)

    def test_leaves_its_inputs_and_the_global_generator_alone(self) -> None:
        z, warm_start, state = torch.zeros(3, 2), self._some_plan(), torch.get_rng_state()
        before = warm_start.clone()
        self._plan(z=z, warm_start=warm_start)
        assert not z.any() and torch.equal(warm_start, before)
        assert torch.equal(torch.get_rng_state(), state), "randomness must come from the generator passed in"

    def test_equal_seeds_draw_equal_futures(self) -> None:
        dynamics = PointMass(COMPASS, 0.02) if self.discrete else PointMass(shake=0.02)
        state = torch.get_rng_state()
        first, second = (self._plan(dynamics=dynamics) for _ in range(2))
        assert_close(first.actions, second.actions, rtol=0, atol=0)
        assert_close(first.branches, second.branches, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), state), "randomness must come from the generator passed in"

    def test_a_plan_does_not_depend_on_its_neighbours(self) -> None:
        assert_close(self._plan(batch=3).actions[:1], self._plan(batch=1).actions, rtol=1e-4, atol=1e-4)

    def test_plans_under_inference_mode(self) -> None:
        problem = self._problem(3)
        with torch.inference_mode():  # as an agent plans: the encoder's latents are inference tensors
            assert torch.isfinite(self._plan(**(problem | {"z": torch.zeros(3, 2)})).cost).all()

    def test_a_candidate_that_costs_nan_is_never_chosen(self) -> None:
        problem = self._problem(3)

        def broken(latents: Tensor, actions: Tensor) -> Tensor:
            return torch.where(latents[:, :, -1, 0] > 0.35, torch.nan, 0.0)  # where the first goal lies

        plan = self._plan(cost=problem["cost"] + broken)
        assert torch.isfinite(plan.cost).all() and (plan.branches[0, :, -1, 0] <= 0.35).all()

    def test_says_so_when_every_candidate_costs_nan(self) -> None:
        nan = lambda latents, actions: latents.new_full(latents.shape[:2], torch.nan)  # noqa: E731
        cost = self._problem(3)["cost"] + nan
        assert_raises(ValueError, lambda: self._plan(cost=cost), "every candidate costs NaN")

    def test_refuses_arguments_of_the_wrong_shape_or_not_finite(self) -> None:
        wrong: dict[str, dict[str, Any]] = {
            "z without a batch axis": {"z": torch.zeros(2)},
            "z of the wrong width": {"z": torch.zeros(3, 5)},
            "NaN in z": {"z": torch.full((3, 2), torch.nan)},
            "a warm start that is too short": {"warm_start": self._some_plan()[:, 1:]},
            "a warm start for other environments": {"warm_start": self._some_plan(2)},
            "NaN in the warm start": {"warm_start": self._some_plan() * torch.nan},
        }
        for because, change in wrong.items():
            assert_raises(ValueError, partial(self._plan, **change), because)
