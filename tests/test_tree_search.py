"""The spreading tree: the planner's contract, and mazes whose answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_rl.agents import CEM, TreeSearch
from jepa_rl.agents.planners.tree import spread
from jepa_rl.costs import GoalCost
from jepa_rl.dynamics import CausalTransformerDynamics, FlowDynamics, GRUDynamics, HeldActions
from jepa_rl.envs.worlds.two_rooms_rules import GOAL_RADIUS, TwoRoomsDynamics
from jepa_rl.testing import PlannerContract


class TestTreeSearch(PlannerContract):
    def make_planner(self):
        return TreeSearch(horizon=5, width=16, branches=8)


# A wall whose door is far off: the straight way is blocked. x, y, wall x, door y in pixels.
START, GOAL = torch.tensor([[20.0, 15.0, 32.0, 45.0]]), torch.tensor([[45.0, 15.0, 32.0, 45.0]])


def final_distance(planner, reduce):
    plan = planner.plan(
        HeldActions(TwoRoomsDynamics(5), 5),
        GoalCost(GOAL, reduce),
        START,
        None,
        torch.Generator().manual_seed(0),
    )
    return float((plan.branches[0, 0, :, :2] - GOAL[:, :2]).norm(dim=-1).min())


def test_finds_the_way_around_where_sampling_around_a_mean_does_not():
    assert final_distance(TreeSearch(12), "last") < 2 * GOAL_RADIUS
    assert final_distance(CEM(12, samples=256, elites=26, iterations=6), "last") > 3 * GOAL_RADIUS


def test_a_dear_step_keeps_the_plan_short():
    dynamics = HeldActions(TwoRoomsDynamics(5), 5)
    near = torch.tensor([[20.0, 21.0, 32.0, 45.0]])
    plan = TreeSearch(6, step_cost=100.0).plan(
        dynamics, GoalCost(near, "last"), START, None, torch.Generator().manual_seed(0)
    )
    assert (plan.actions[:, 1:] == 0).all()  # one step, then rest


class Counted:
    """Dynamics that count their rollouts."""

    def __init__(self, dynamics):
        self.dynamics, self.calls = dynamics, 0
        self.latent_dim, self.action_dim, self.markov = dynamics.latent_dim, dynamics.action_dim, True

    def rollout(self, *args, **options):
        self.calls += 1
        return self.dynamics.rollout(*args, **options)


@settings(max_examples=20, deadline=None)
@given(st.floats(5, 25), st.floats(5, 60), st.sampled_from([0.3, 1.0, 3.0]), st.booleans())
def test_a_tree_that_stops_early_answers_as_the_whole_tree(x, y, step_cost, two):
    """A cost that does not say what it is at least has the whole tree grown."""
    goals = torch.tensor([[x, y, 32.0, 45.0], [12.0, 30.0, 32.0, 45.0]])[: 1 + two]
    starts = START.expand(len(goals), -1)
    silent = GoalCost(goals, "last", lambda latents, goal: (latents - goal).norm(dim=-1))
    plans, calls = [], []
    for cost in (GoalCost(goals, "last"), silent):
        dynamics = Counted(HeldActions(TwoRoomsDynamics(5), 5))
        generator = torch.Generator().manual_seed(0)
        plans.append(TreeSearch(12, step_cost=step_cost).plan(dynamics, cost, starts, None, generator))
        calls.append(dynamics.calls)
    torch.testing.assert_close(plans[0].actions, plans[1].actions)
    torch.testing.assert_close(plans[0].cost, plans[1].cost)
    assert calls[0] <= calls[1] == 13


def test_a_near_goal_takes_a_small_tree():
    dynamics = Counted(HeldActions(TwoRoomsDynamics(5), 5))
    near = GoalCost(torch.tensor([[20.0, 21.0, 32.0, 45.0]]), "last")
    TreeSearch(12, step_cost=1.0).plan(dynamics, near, START, None, torch.Generator().manual_seed(0))
    assert dynamics.calls <= 6


def test_the_old_plan_competes():
    """A warm start that ends at the goal exactly is taken, whatever the tree finds."""

    class Integrator:
        latent_dim = action_dim = 2

        def rollout(self, z, actions, *, futures=1, generator=None):
            return torch.cat([z[:, None], z[:, None] + actions.cumsum(1)], 1)[:, None]

    warm = torch.tensor([[[0.3, 0.1], [0.2, -0.4], [0.05, 0.07]]])
    goal = warm.sum(1)
    plan = TreeSearch(3, width=4, branches=4, step_cost=0.0).plan(
        Integrator(), GoalCost(goal, "last"), torch.zeros(1, 2), warm, torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(plan.actions, warm)


class Momentum:
    """Actions push a point that keeps its speed and begins at rest: the newest position does not tell the speed."""

    latent_dim = action_dim = 1
    markov = False

    def rollout(self, z, actions, *, futures=1, generator=None):
        return torch.cat([z[:, None], z[:, None] + actions.cumsum(1).cumsum(1)], 1)[:, None]


def gru():
    torch.manual_seed(0)
    return GRUDynamics(2, 2, width=8)


def transformer():
    torch.manual_seed(0)
    return CausalTransformerDynamics(2, 2, width=8, depth=1, heads=2, head_dim=4, mlp_width=8).eval()


def with_memory():
    torch.manual_seed(0)
    world = FlowDynamics(2, 4, width=8, heads=2, context=2).eval()
    return HeldActions(world, 2)


@pytest.mark.parametrize("make", [Momentum, gru, transformer, with_memory], ids=lambda make: make.__name__)
@pytest.mark.parametrize("warm", [False, True])
def test_memory_of_the_dynamics_is_carried_along_the_tree(make, warm):
    """The cost of every end that the tree reports is that of its whole path, rolled out at once."""
    dynamics = make()
    if isinstance(dynamics, torch.nn.Module):
        for weight in dynamics.parameters():
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(weight.numel()))
    z, goal = torch.zeros(2, dynamics.latent_dim), torch.ones(2, dynamics.latent_dim)
    cost = GoalCost(goal, "last")
    start = 0.3 * torch.ones(2, 4, dynamics.action_dim) if warm else None
    draws = dynamics.rollout(z, torch.zeros(2, 1, dynamics.action_dim), futures=2).shape[1] > 1
    if draws:  # the noise of one rollout is that of no other: here there is none
        dynamics.dynamics.set_sampling(evaluations=1)
        torch.nn.init.zeros_(dynamics.dynamics.average.embed_noisy.weight)
    plan = TreeSearch(4, width=6, branches=5, step_cost=0.0).plan(
        dynamics, cost, z, start, torch.Generator().manual_seed(0)
    )
    for level in range(plan.candidates.shape[1]):  # fewer than four where one ends at the goal exactly
        path = plan.candidates[:, level, : level + 1]
        at_once = cost(dynamics.rollout(z, path), path)[:, 0]
        torch.testing.assert_close(plan.candidate_costs[:, level], at_once)


def test_a_point_with_momentum_is_steered_by_what_it_does_and_not_by_what_a_point_at_rest_would():
    """Two pushes of 1 lead to 3; were the speed forgotten on the way, they would seem to lead to 2."""
    goal = GoalCost(torch.tensor([[3.0]]), "last")
    plan = TreeSearch(2, width=64, branches=64, step_cost=0.0).plan(
        Momentum(), goal, torch.zeros(1, 1), None, torch.Generator().manual_seed(0)
    )
    assert plan.actions.flatten().tolist() == [1.0, 1.0] and plan.cost.item() == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.integers(1, 50), st.integers(0, 10**6))
def test_spread_takes_distinct_children_and_the_cheapest(b, m, q, width, seed):
    generator = torch.Generator().manual_seed(seed)
    children = torch.randn(b, m, 3, generator=generator)
    costs = torch.rand(b, m, generator=generator)
    kept = spread(children, torch.randn(b, q, 3, generator=generator), costs, width)
    assert kept.shape == (b, min(width, m))
    assert (kept[:, 0] == costs.argmin(1)).all()
    assert all(len(set(row)) == len(row) for row in kept.tolist())


def test_spread_covers_a_line():
    """Farthest points of a line of eleven, seen from its left end: the right end, then the middle."""
    line = torch.arange(11.0)[None, :, None]
    kept = spread(line, line[:, :1], line[0, :, 0][None].neg(), 3)
    assert kept.tolist() == [[10, 0, 5]] or kept.tolist() == [[10, 5, 2]] or kept.tolist()[0][:2] == [10, 5]


@pytest.mark.parametrize(
    ("settings_", "error"),
    [
        (dict(horizon=0), ValueError),
        (dict(horizon=2, width=0), ValueError),
        (dict(horizon=2, branches=1.5), TypeError),
        (dict(horizon=2, step_cost=-1.0), ValueError),
        (dict(horizon=2, step_cost=float("nan")), ValueError),
    ],
)
def test_settings_that_make_no_sense(settings_, error):
    with pytest.raises(error, match=next(name for name in reversed(list(settings_)))):
        TreeSearch(**settings_)


def test_oracle_dynamics_follow_the_environment():
    """The oracle is the environment's own rule book: equal actions lead to equal positions."""
    from jepa_rl.envs.worlds.two_rooms import TwoRoomsEnv

    env, rng = TwoRoomsEnv(start="any"), np.random.default_rng(0)
    for episode in range(5):
        env.reset(seed=episode)
        state = np.concatenate([env.state.position, env.state.layout], 1)
        actions = rng.uniform(-1, 1, (20, 2)).astype(np.float32)
        path = TwoRoomsDynamics().rollout(torch.from_numpy(state), torch.from_numpy(actions)[None])[0, 0]
        for i, action in enumerate(actions):
            env.step(action)
            np.testing.assert_allclose(path[i + 1, :2], env.state.position[0], atol=1e-5)
