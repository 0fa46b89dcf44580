"""Plans out of a flow: the planners' contract, what they know, files and mistakes."""

from functools import partial

import gymnasium as gym
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from jepa_rl import ActionSpec, WorldModel, WorldModelConfig, WorldSpec
from jepa_rl.agents import CEM, FlowPlanner, FlowProposals, MPCAgent, fit_flow_proposals
from jepa_rl.costs import GoalCost
from jepa_rl.envs import GoalObservation, world_spec
from jepa_rl.files import save_tensors
from jepa_rl.testing import PlannerContract, PointMass, seeded

HORIZON = 5


@pytest.fixture(scope="module", autouse=True)
def proposals() -> FlowProposals:
    starts = 2 * torch.rand(500, 2, generator=seeded(1)) - 1
    found = fit_flow_proposals(
        PointMass(), starts, horizon=HORIZON, paths=4000, updates=600, batch_size=256, width=32, depth=1
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


def test_goals_may_be_asked_for_by_other_latents_than_those_of_the_states():
    """Goals are given as in a mirror: what is asked for as (-0.4, 0) is reached at (0.4, 0)."""
    starts = 2 * torch.rand(500, 2, generator=seeded(1)) - 1
    found = fit_flow_proposals(
        PointMass(),
        starts,
        horizon=3,
        as_goal=torch.neg,
        paths=4000,
        updates=400,
        batch_size=256,
        width=32,
        depth=1,
    )
    paths, _ = found.draw(torch.zeros(1, 2), torch.tensor([[-0.4, 0.0]]), 12, seeded(2))
    arrived = paths[0, -4:, 3].mean(0)  # the four that were given three steps
    assert (arrived - torch.tensor([0.4, 0.0])).norm() < 0.1


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
    settings = proposals.settings | {"no_such": 1}
    save_tensors(
        tmp_path / "newer.safetensors", "flow_proposals", proposals.state_dict(), {"settings": settings}
    )
    with pytest.raises(ValueError, match="does not describe proposals of this version"):
        FlowProposals.load(tmp_path / "newer.safetensors")


def test_proposals_of_another_encoder_are_refused(proposals, tmp_path):
    spec = WorldSpec((3, 16, 16), 1, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))
    torch.manual_seed(0)
    world, other = (WorldModel(WorldModelConfig(spec, latent_dim=2)).eval() for _ in range(2))
    file = tmp_path / "proposals.safetensors"
    proposals.save(file, world)
    FlowProposals.load(file, world=world)
    with pytest.raises(ValueError, match="another encoder's latents"):
        FlowProposals.load(file, world=other)
    proposals.save(file)
    with pytest.raises(ValueError, match="fingerprint None"):
        FlowProposals.load(file, world=world)


def test_a_path_is_believed_by_the_futures_and_not_by_their_mean(proposals):
    """Futures to the left and to the right have the goal for their mean, where none of them goes."""

    class Split(PointMass):
        def rollout(self, z, actions, *, futures=1, generator=None):
            path = super().rollout(z, actions).repeat(1, futures, 1, 1)
            side = torch.tensor([-1.0, 1.0]).repeat(futures)[:futures, None, None]
            there = (
                (actions[:, None, :, 1] > 0.5).float().cumsum(-1).clamp_max(1)
            )  # actions that split the way
            path[:, :, 1:, 0] += 3 * (side * there.unsqueeze(-1))[..., 0]
            return path

    goal = torch.tensor([[0.0, 0.4]])
    planner = FlowPlanner(proposals, samples=20, futures=2, goal_weight=1e-6)
    plan = planner.plan(Split(), GoalCost(goal), torch.zeros(1, 2), generator=seeded(0))
    split = (plan.candidates[0, :, :, 1] > 0.5).any(-1)
    assert split.any() and not (plan.actions[0, :, 1] > 0.5).any()


class Coin(PointMass):
    """Lands on one of two sides at random."""

    def rollout(self, z, actions, *, futures=1, generator=None):
        side = torch.rand(futures, actions.shape[1], generator=generator).sub(0.5).sign()
        path = side[None, :, :, None].expand(len(z), -1, -1, 2)
        return torch.cat([z[:, None, None].expand(-1, futures, 1, -1), path], 2)


def test_imagined_play_draws_noise_of_its_own_for_each_path():
    found = fit_flow_proposals(Coin(), torch.zeros(10, 2), horizon=2, paths=4000, updates=1, width=16)
    assert found.paths.std.min() > 0.5  # both sides were seen


def test_acts_in_the_environment_of_a_world_model(tmp_path):
    """Held actions, goals in the observations, two environments at once."""
    torch.manual_seed(0)
    env = GoalObservation(gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=9))
    model = WorldModel(WorldModelConfig(world_spec(env, 2), latent_dim=8)).eval()
    cost = partial(GoalCost, reduce="last")
    dynamics = MPCAgent(model, CEM(3), cost=cost, hold=True).dynamics
    planner = FlowPlanner(
        fit_flow_proposals(dynamics, torch.randn(50, 8), horizon=3, paths=200, updates=5, width=16), 12
    )
    agent = MPCAgent(model, planner, cost=cost, hold=True)
    venv = make_vec_env(lambda: GoalObservation(gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=9)), 2)
    returns, lengths = evaluate_policy(agent, venv, n_eval_episodes=2, return_episode_rewards=True)
    assert len(returns) == 2 and max(lengths) <= 9
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="planner of its own"):
        MPCAgent.load(tmp_path / "agent")
    assert MPCAgent.load(tmp_path / "agent", planner=planner).planner is planner
    spec = WorldSpec((3, 32, 32), 1, ActionSpec("discrete", 2), 1)
    with pytest.raises(ValueError, match="FlowPlanner does not fit discrete actions"):
        MPCAgent(WorldModel(WorldModelConfig(spec, latent_dim=8)), planner)


def test_mistakes_are_named(proposals):
    planner, z = FlowPlanner(proposals), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="needs a cost with a goal"):
        planner.plan(PointMass(), lambda latents, _: latents[:, :, -1, 0], z)
    with pytest.raises(ValueError, match=r"widths \(2, 2\), the dynamics have \(2, 3\)"):
        planner.plan(PointMass(torch.eye(3)[:, :2]), GoalCost(z), z)
    with pytest.raises(ValueError, match="refine must have the same horizon, 5, got 6"):
        FlowPlanner(proposals, refine=CEM(HORIZON + 1))
    with pytest.raises(ValueError, match="refine must have the same futures, 8, got 1"):
        FlowPlanner(proposals, futures=8, refine=CEM(HORIZON))
    with pytest.raises(ValueError, match="goal_weight must be positive"):
        FlowPlanner(proposals, goal_weight=0.0)
    with pytest.raises(ValueError, match="the cost must hold 1 goal or 1, 2 wide"):
        planner.plan(PointMass(), GoalCost(torch.zeros(3, 2)), z)
    with pytest.raises(ValueError, match=r"elites must lie in \[2, samples=4\]"):
        FlowPlanner(proposals, samples=4)
    with pytest.raises(ValueError, match=r"numbers must be at least 1, got {'updates': 0}"):
        fit_flow_proposals(PointMass(), z, horizon=2, updates=0)
    with pytest.raises(ValueError, match=r"starts must be latents \(states, 2\).*got \(3, 4\)"):
        fit_flow_proposals(PointMass(), torch.zeros(3, 4), horizon=2)
    with pytest.raises(ValueError, match="as_goal must keep the shape"):
        fit_flow_proposals(PointMass(), z, horizon=2, paths=10, as_goal=lambda path: path[..., :1])
