"""Push: contact moves the block and nothing else does; pictures, oracle, data policy and its coverage."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from jepa_rl.agents import CEM
from jepa_rl.costs import GoalCost
from jepa_rl.envs import PushEnv, PushPlay, PushVectorEnv, TwoRoomsVectorEnv, collect, push_coverage
from jepa_rl.envs.worlds import push_rules as rules


def test_checkers():
    env = gym.make("jepa_rl/Push-v0", reward="dense", render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(PushEnv())
    assert env.spec.max_episode_steps == 60
    assert isinstance(gym.make_vec("jepa_rl/Push-v0", 2, "vector_entry_point").unwrapped, PushVectorEnv)


def test_a_straight_push_moves_the_block_and_ends_the_episode_at_the_goal():
    env = PushEnv(reward="dense")
    options = {"agent": (0.3, 0.5), "block": (0.5, 0.5), "goal": (0.75, 0.5), "angle": 0.0}
    _, info = env.reset(seed=0, options=options)
    total, terminated = 0.0, False
    while not terminated:
        _, reward, terminated, _, info = env.step(np.array([1.0, 0.0], np.float32))
        total += reward
    agent, block, angle = np.split(info["state"], [2, 4])
    assert info["success"] and info["pushed"]
    np.testing.assert_allclose([agent[1], block[1], angle[0]], [0.5, 0.5, 0.0], atol=1e-3)
    assert abs(block[0] - agent[0] - rules.HALF - rules.RADIUS) < 0.01, "they touch"
    assert total == pytest.approx(
        1.0 + block[0] - 0.5, abs=1e-6
    )  # the success and what the block came nearer


def test_without_contact_nothing_but_the_agent_moves():
    physics, rng = rules.Physics(), np.random.default_rng(0)
    state = np.tile([0.1, 0.1, 0.6, 0.6, 0.3], (64, 1))
    action = rng.uniform(-1.5, 1.5, (64, 2))
    after = physics.step(state, action)
    np.testing.assert_allclose(after[:, 2:], state[:, 2:], atol=1e-9)
    assert (np.linalg.norm(after - state, axis=1) <= rules.MAX_STEP + 1e-6).all()
    np.testing.assert_array_equal(physics.step(after, np.zeros((64, 2)))[:, 2:], after[:, 2:])


def test_a_step_of_no_table():
    assert rules.Physics().step(np.zeros((0, 5)), np.zeros((0, 2))).shape == (0, 5)


def test_pushing_beside_the_middle_turns_the_block_the_right_way():
    physics = rules.Physics()
    state = np.array([[0.34, y, 0.5, 0.5, 0.0] for y in (0.45, 0.55)])  # above its middle, below it
    for _ in range(2):
        state = physics.step(state, np.array([[1.0, 0.0]] * 2))
    assert state[0, 4] > 0.1 and state[1, 4] == pytest.approx(-state[0, 4], abs=1e-6)  # y points down


def test_pictures_are_those_of_the_state():
    state = np.array([[0.2, 0.3, 0.6, 0.5, 0.0], [0.2, 0.3, 0.6, 0.5, np.pi / 2], [0.2, 0.3, 0.6, 0.5, 0.7]])
    pictures = rules.draw(state)
    assert pictures.shape == (3, 3, 64, 64)
    np.testing.assert_array_equal(pictures[0], pictures[1])  # a quarter turn
    assert (pictures[2] != pictures[0]).any()
    np.testing.assert_array_equal(pictures[0, :, 32, 38], rules.BLOCK)
    np.testing.assert_array_equal(pictures[0, :, 19, 12], rules.AGENT)
    np.testing.assert_array_equal(pictures[0, :, 0, 0], rules.BACKGROUND)
    share = (pictures[0, 2].astype(float) - rules.BACKGROUND[2]) / (rules.BLOCK[2] - rules.BACKGROUND[2])
    assert share[:, 26:].sum() / 64**2 == pytest.approx((2 * rules.HALF) ** 2, rel=0.02)  # smooth edges


def test_the_goal_picture_shows_the_block_at_the_goal_and_the_agent_behind_it():
    env = PushEnv()
    for seed in range(20):
        _, info = env.reset(seed=seed)
        now, goal = info["state"].astype(np.float64), info["goal_state"].astype(np.float64)
        np.testing.assert_allclose(rules.draw(goal[None])[0].astype(int), info["goal"], atol=1)
        way = goal[2:4] - now[2:4]
        assert rules.APART[0] <= np.linalg.norm(way) <= rules.APART[1] + 1e-6 and goal[4] == now[4]
        assert np.dot(goal[2:4] - goal[:2], way) > 0 and not info["success"]
        reached = rules.Physics().step(goal[None], np.zeros((1, 2)))[0]
        np.testing.assert_allclose(reached, goal, atol=0.003)  # the agent does not stand inside the block


def test_the_oracle_is_the_environment():
    env, rng = PushEnv(), np.random.default_rng(0)
    env.reset(seed=1)
    start = env.state.now.copy()
    actions = rng.uniform(-1, 1, (1, 6, 2))
    path = rules.PushDynamics(block=2).rollout(
        torch.from_numpy(start), torch.from_numpy(actions).reshape(1, 3, 4)
    )
    assert path.shape == (1, 1, 4, 5)
    for step, action in enumerate(actions[0]):
        env.step(action)
        if step % 2:
            np.testing.assert_allclose(path[0, 0, (step + 1) // 2], env.state.now[0], atol=1e-12)


def test_planning_with_the_oracle_solves_what_random_play_does_not():
    n, steps = 4, 40
    venv = PushVectorEnv(n, None, "Disabled")
    venv.reset(seed=100)
    start, solved = venv.state.copy(), np.zeros(n, bool)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        solved |= venv.core.advance(venv.state, rng.uniform(-1, 1, (n, 2)))[1]
    assert solved.mean() <= 0.25
    state, solved, generator = start, np.zeros(n, bool), torch.Generator().manual_seed(0)
    planner, dynamics = CEM(horizon=6, samples=48, elites=6, iterations=4), rules.PushDynamics(2)
    while state.steps.max() < steps and not solved.all():
        cost = GoalCost(torch.from_numpy(state.goal).float(), distance=rules.push_distance)
        plan = planner.plan(dynamics, cost, torch.from_numpy(state.now).float(), generator=generator)
        for action in plan.actions[:, 0].double().numpy().reshape(n, 2, 2).swapaxes(0, 1):
            solved |= venv.core.advance(state, action)[1]
    assert solved.mean() >= 0.75


def test_push_play_covers_what_random_play_does_not(tmp_path):
    found = {}
    for name in ("play", "random"):
        env = PushVectorEnv(8)
        policy = PushPlay(env) if name == "play" else "random"
        store = collect(
            env,
            tmp_path / name,
            policy=policy,
            episodes=16,
            extras=("state", "pushed"),
            seed=0,
            progress=False,
        )
        found[name] = push_coverage(store)
    assert found["play"].pushed > 0.4 and found["random"].pushed < 0.2
    assert found["play"].visited > 0.6 and found["play"].moved > 2 * found["random"].moved
    again = PushVectorEnv(8)
    store = collect(again, tmp_path / "again", policy=PushPlay(again), episodes=4, seed=0, progress=False)
    with pytest.raises(ValueError, match="extras"):
        push_coverage(store)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, "unknown reset options"),
        ({"block": (0.1, 0.5)}, "options\\['block'\\]"),
        ({"block": (0.5, 0.5), "agent": (0.55, 0.5)}, "from the block"),
        ({"block": (0.5, 0.5), "goal": (0.52, 0.5)}, "more than"),
        ({"angle": float("nan")}, "finite"),
    ],
)
def test_impossible_tables_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PushEnv().reset(seed=0, options=options)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="sparse"):
        PushEnv(reward="much")
    with pytest.raises(TypeError, match="PushEnv"):
        PushPlay(TwoRoomsVectorEnv(1))
    with pytest.raises(ValueError, match="push="):
        PushPlay(PushVectorEnv(1), push=(5, 2))
