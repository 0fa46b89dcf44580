"""Plans out of a flow: the planners' contract, what they know, files and mistakes."""

import pytest
import torch

from jepa_rl.agents import CEM, FlowPlanner, FlowProposals, fit_flow_proposals
from jepa_rl.costs import GoalCost
from jepa_rl.testing import PlannerContract, PointMass, seeded

HORIZON = 5


@pytest.fixture(scope="module", autouse=True)
def proposals() -> FlowProposals:
    starts = 2 * torch.rand(500, 2, generator=seeded(1)) - 1
    found = fit_flow_proposals(
        PointMass(), starts, horizon=HORIZON, paths=4000, updates=600, batch_size=256, width=32
    )
    TestFlowPlanner.proposals = TestRefinedFlowPlanner.proposals = found
    return found


class TestFlowPlanner(PlannerContract):
    proposals: FlowProposals

    def make_planner(self):
        return FlowPlanner(self.proposals, samples=20)


class TestRefinedFlowPlanner(PlannerContract):
    proposals: FlowProposals

    def make_planner(self):
        return FlowPlanner(self.proposals, 20, refine=CEM(HORIZON, samples=32, elites=4, iterations=1))


def test_paths_lead_to_the_goal_in_as_many_steps_as_they_were_given(proposals):
    """The point moves by at most 0.2 a step in each direction: 0.5 needs three of them, and then it stays."""
    z, goal = torch.zeros(1, 2), torch.tensor([[0.5, 0.0]])
    paths, actions = proposals.draw(z, goal, 4 * HORIZON, seeded(2))
    assert paths.shape == (1, 4 * HORIZON, HORIZON + 1, 2) and actions.shape == (1, 4 * HORIZON, HORIZON, 2)
    away = (paths[0] - goal[0]).norm(dim=-1).unflatten(0, (HORIZON, 4)).mean(1)  # by steps left, and step
    for steps in (4, 5):
        assert away[steps - 1, steps] < 0.06
        assert away[steps - 1, steps // 2] > 0.06


def test_the_inverse_model_names_the_action_between_two_states(proposals):
    z = torch.rand(50, 2, generator=seeded(3)) - 0.5
    taken = 2 * torch.rand(50, 1, 2, generator=seeded(4)) - 1
    after = PointMass().rollout(z, taken)[:, 0, 1]
    assert (proposals.actions_between(z, after) - taken[:, 0]).abs().mean() < 0.1


def test_files_give_back_the_same_proposals(proposals, tmp_path):
    proposals.save(tmp_path / "proposals.safetensors")
    loaded = FlowProposals.load(tmp_path / "proposals.safetensors")
    z, goal = torch.zeros(2, 2), torch.ones(2, 2) / 4
    for ours, theirs in zip(
        proposals.draw(z, goal, 8, seeded(1)), loaded.draw(z, goal, 8, seeded(1)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    (tmp_path / "proposals.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError):
        FlowProposals.load(tmp_path / "proposals.safetensors")


def test_mistakes_are_named(proposals):
    planner, z = FlowPlanner(proposals), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="needs a cost with a goal"):
        planner.plan(PointMass(), lambda latents, _: latents[:, :, -1, 0], z)
    with pytest.raises(ValueError, match=r"widths \(2, 2\), the dynamics have \(2, 3\)"):
        planner.plan(PointMass(torch.eye(3)[:, :2]), GoalCost(z), z)
    with pytest.raises(ValueError, match="use the same horizon"):
        FlowPlanner(proposals, refine=CEM(HORIZON + 1))
    with pytest.raises(ValueError, match=r"elites must lie in \[2, samples=4\]"):
        FlowPlanner(proposals, samples=4)
    with pytest.raises(ValueError, match=r"numbers must be at least 1, got {'updates': 0}"):
        fit_flow_proposals(PointMass(), z, horizon=2, updates=0)
    with pytest.raises(ValueError, match=r"starts must be \(states, 2\)"):
        fit_flow_proposals(PointMass(), torch.zeros(3, 4), horizon=2)
