"""Dynamics for long plans, ``parallel`` and ``two_scale``: contracts, and answers that are known."""

import pytest
import torch

from jepa_rl.agents import TreeSearch
from jepa_rl.costs import GoalCost
from jepa_rl.dynamics import HeldActions, ParallelDynamics, TwoScaleDynamics
from jepa_rl.testing import TrainableDynamicsContract
from jepa_rl.training import descend


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestParallel(TrainableDynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        return ParallelDynamics(6, 3, horizon=3, width=16).eval()  # plans of 5: one continuation


class TestParallelOfOneStep(TrainableDynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        return ParallelDynamics(6, 3, horizon=1, width=16).eval()


class TestTwoScale(TrainableDynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        return TwoScaleDynamics(6, 3, stride=2, width=16).eval()


class TestTwoScaleOfOneStep(TrainableDynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        return TwoScaleDynamics(6, 3, stride=1, width=16).eval()


# -- two scales ---------------------------------------------------------------------------------------


def counting(stride):
    """A fine step adds 1 to the state, a coarse step 100."""
    dynamics = TwoScaleDynamics(1, 1, stride=stride, width=4, depth=1)
    for parameter in dynamics.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(dynamics.fine.out.bias)
    torch.nn.init.constant_(dynamics.coarse.out.bias, 100.0)
    return dynamics


@pytest.mark.parametrize("stride", [1, 2, 3, 8])
@pytest.mark.parametrize("h", [1, 2, 3, 7, 8, 9, 16, 17])
def test_long_marks_are_coarse_steps_and_the_rest_fine_ones(stride, h):
    path = counting(stride).rollout(torch.zeros(2, 1), torch.zeros(2, h, 1))[:, 0, :, 0]
    expected = [100 * (i // stride) + i % stride for i in range(h + 1)]
    assert path.tolist() == [expected, expected]


def test_a_coarse_step_reads_its_actions_in_their_order():
    dynamics = counting(3)
    with torch.no_grad():
        dynamics.coarse.out.bias.zero_()
    seen = []
    dynamics.coarse.embed_action.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    dynamics.rollout(torch.zeros(1, 1), torch.arange(8.0)[None, :, None])
    assert seen[0].tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_the_coarse_loss_counts_every_coarse_step_of_the_window():
    """States 0, 1, .. 7 and coarse steps that stand still: each is off by 3; the fine ones by 1, 2, .. 7."""
    dynamics = counting(3)
    for bias in (dynamics.fine.out.bias, dynamics.coarse.out.bias):
        torch.nn.init.zeros_(bias)
    latents = torch.arange(8.0)[None, :, None]
    total, terms = dynamics.loss(latents, torch.zeros(1, 7, 1))
    # From 0: 3 and 6 steps off, from 1: 3 and 6, from 2: 3.
    assert terms["coarse"].item() == pytest.approx((3 * 9 + 2 * 36) / 5)
    assert terms["prediction"].item() == pytest.approx(sum(i * i for i in range(1, 8)) / 7)
    assert total.item() == pytest.approx(terms["coarse"].item() + terms["prediction"].item())


def test_windows_shorter_than_a_coarse_step_are_refused_in_words():
    with pytest.raises(ValueError, match="stride=8 learns on windows of at least as many steps, got 3"):
        TwoScaleDynamics(2, 1).loss(torch.zeros(4, 4, 2), torch.zeros(4, 3, 1))


# -- parallel -----------------------------------------------------------------------------------------


def test_a_longer_plan_goes_on_from_the_last_predicted_state():
    torch.manual_seed(0)
    dynamics = ParallelDynamics(2, 1, horizon=3, width=8)
    z, actions = torch.randn(4, 2, generator=seeded()), torch.randn(4, 7, 1, generator=seeded(1))
    whole, start = dynamics.rollout(z, actions)[:, 0], z
    for first in (0, 3, 6):
        piece = dynamics.rollout(start, actions[:, first : first + 3])[:, 0]
        torch.testing.assert_close(whole[:, first : first + piece.shape[1]], piece)
        start = piece[:, -1]


def test_predictions_are_not_fed_back():
    """A network that always answers 1 is 1 away in every state of a pass, not 1, 2, 3 as by repeated steps."""
    dynamics = ParallelDynamics(1, 1, horizon=4, width=4, depth=1)
    for parameter in dynamics.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(dynamics.out.bias)
    path = dynamics.rollout(torch.zeros(1, 1), torch.zeros(1, 9, 1))[0, 0, :, 0]
    assert path.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]


# -- planning -----------------------------------------------------------------------------------------


def corridor(z, actions):
    """A point in a corridor of length 1 that the ends stop; each action moves it a third."""
    path = [z]
    for action in actions.unbind(1):
        path.append((path[-1] + action / 3).clamp(0, 1))
    return torch.stack(path, dim=1)


@pytest.mark.parametrize("make", [lambda: ParallelDynamics(1, 1, horizon=4, width=32, depth=2),
                                  lambda: TwoScaleDynamics(1, 1, stride=2, width=32, depth=1)],
                         ids=["parallel", "two_scale"])  # fmt: skip
def test_a_corridor_is_learned_and_the_tree_search_plans_in_it(make):
    torch.manual_seed(0)
    dynamics, generator = make(), seeded()
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=5e-3)

    def windows(count):
        actions = 2 * torch.rand(count, 4, 1, generator=generator) - 1
        return corridor(torch.rand(count, 1, generator=generator), actions), actions

    for _ in range(400):
        descend(dynamics.loss(*windows(128))[0], [optimizer], dynamics.parameters(), 10.0)
    latents, actions = windows(500)
    path = dynamics.eval().rollout(latents[:, 0], actions)[:, 0]
    assert (path - latents).square().mean().sqrt() < 0.05

    assert not dynamics.markov and not HeldActions(dynamics, 1).markov
    start, goal = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.5]])
    plan = TreeSearch(4, width=8, branches=6).plan(
        dynamics, GoalCost(goal, "last"), start, generator=seeded(1)
    )
    reached = corridor(start, plan.actions)[:, -1]
    assert (reached - goal).abs().max() < 0.1
