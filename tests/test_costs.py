"""Costs with known values, their algebra, and the reading of rows as (environments, candidates)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_rl.costs import ActionPenalty, Disagreement, GoalCost, WeightedSum, goal_of, least_of

PATH = torch.tensor([[9.0, 9.0], [3.0, 4.0], [0.0, 2.0]])[None, None]  # 1 1 t=3 d=2
ACTIONS = torch.tensor([[[1.0], [-0.5]]])  # 1 h=2 a=1


@pytest.mark.parametrize(
    ("reduce", "distance", "value"),
    [
        ("sum", "l2", 5.0 + 2.0),
        ("last", "l2", 2.0),
        ("sum", "mse", 12.5 + 2.0),
        ("last", "mse", 2.0),
        ("sum", lambda z, g: (z - g).abs().amax(-1), 4.0 + 2.0),
    ],
)
def test_goal_cost_values(reduce, distance, value):
    cost = GoalCost(torch.zeros(1, 2), reduce, distance)(PATH, ACTIONS)
    assert cost.shape == (1, 1) and cost.item() == pytest.approx(value)


def test_the_state_now_is_free():
    elsewhere = PATH.clone()
    elsewhere[:, :, 0] = -100.0
    cost = GoalCost(torch.zeros(1, 2))
    assert torch.equal(cost(PATH, ACTIONS), cost(elsewhere, ACTIONS))


def test_action_penalty_and_algebra():
    goal, penalty = GoalCost(torch.zeros(1, 2)), ActionPenalty(2.0)
    assert penalty(PATH, ACTIONS).item() == pytest.approx(2.5)
    assert (goal + 0.1 * penalty)(PATH, ACTIONS).item() == pytest.approx(7.25)
    assert ((goal + penalty) * 2)(PATH, ACTIONS).item() == pytest.approx(19.0)
    assert (penalty + (lambda latents, actions: latents[:, :, 0, 0]))(PATH, ACTIONS).item() == 11.5


@settings(max_examples=25, deadline=None)
@given(
    b=st.integers(1, 4), s=st.integers(1, 5), n=st.integers(1, 3), h=st.integers(1, 4), d=st.integers(1, 5)
)
def test_each_row_is_priced_by_the_goal_of_its_environment(b, s, n, h, d):
    generator = torch.Generator().manual_seed(b * s + n)
    latents = torch.randn(b * s, n, h + 1, d, generator=generator)
    goals, actions = torch.randn(b, d, generator=generator), torch.zeros(b * s, h, 2)
    together = (GoalCost(goals) + ActionPenalty())(latents, actions)
    assert together.shape == (b * s, n)
    for row in range(b * s):
        alone = GoalCost(goals[row // s][None])(latents[row : row + 1], actions[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_a_cost_shows_its_goal_also_within_sums_and_where_it_is_the_users_own():
    class Own:
        goal = torch.ones(1, 2)

        def __call__(self, latents, actions):
            return latents[:, :, -1, 0]

    goal, plain = GoalCost(torch.zeros(1, 2)), lambda latents, actions: latents[:, :, 0, 0]
    assert goal_of(2.0 * (ActionPenalty() + 0.5 * goal)) is goal.goal
    assert goal_of(ActionPenalty() + Own()) is Own.goal
    for cost in (plain, ActionPenalty(), ActionPenalty() + plain):
        assert goal_of(cost) is None


def test_a_cost_says_what_every_plan_costs_at_least_where_it_knows():
    goal, penalty, unknown = GoalCost(torch.zeros(1, 2)), ActionPenalty(0.1), -float("inf")

    class Own:
        least = 2.0

        def __call__(self, latents, actions):
            return 2.0 + latents[:, :, -1, 0].square()

    assert least_of(goal) == least_of(penalty) == least_of(goal + penalty) == 0.0
    assert least_of(goal + 3.0 * (penalty + Own())) == 6.0
    for cost in (
        lambda latents, actions: latents[:, :, 0, 0],
        GoalCost(torch.zeros(1, 2), distance=lambda z, g: (z - g).sum(-1)),
        ActionPenalty(-1.0),
        Disagreement(),
        goal + Disagreement(),
        goal + -1.0 * penalty,
    ):
        assert least_of(cost) == unknown


def test_gradient_at_the_goal_is_finite():
    latents = torch.zeros(1, 1, 2, 3, requires_grad=True)
    GoalCost(torch.zeros(1, 3))(latents, torch.zeros(1, 1, 1)).sum().backward()
    assert torch.isfinite(latents.grad).all()


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(3),),
        (torch.zeros(0, 3),),
        (torch.tensor([[torch.nan]]),),
        (torch.zeros(1, 3, dtype=torch.uint8),),
        ([[0.0]],),
        (torch.zeros(1, 3), "mean"),
        (torch.zeros(1, 3), "sum", "cosine"),
    ],
)
def test_goal_cost_refuses_nonsense(arguments):
    with pytest.raises(ValueError, match=r"goal|reduce|distance"):
        GoalCost(*arguments)


def test_goal_cost_refuses_latents_that_do_not_fit():
    with pytest.raises(ValueError, match="3 wide but the latents are 2 wide"):
        GoalCost(torch.zeros(1, 3))(PATH, ACTIONS)
    with pytest.raises(ValueError, match="cannot be split over 2 goals"):
        GoalCost(torch.zeros(2, 2))(PATH.expand(3, -1, -1, -1), ACTIONS)


def test_weighted_sum_refuses_nonsense():
    with pytest.raises(ValueError, match="one weight for each cost"):
        WeightedSum((ActionPenalty(),), ())
    with pytest.raises(TypeError, match="callable"):
        ActionPenalty() + 3
