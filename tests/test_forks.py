"""Worlds that branch: what happens in them is what their closed forms say."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from jepa_rl.agents import CEM
from jepa_rl.envs import ForkEnv, TableEdgeEnv, fork
from jepa_rl.envs.worlds import table_edge_rules as rules
from jepa_rl.envs.worlds.mujoco_table_edge import MujocoTableEdgeEnv

coordinate = st.floats(-1.5, 1.5)


@pytest.mark.parametrize("name", ["TableEdge", "Fork"])
def test_gymnasium_and_stable_baselines3_take_them(name):
    env = gym.make(f"jepa_rl/{name}-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    sb3_check_env(env)
    assert env.render().dtype == np.uint8


# -- TableEdge --------------------------------------------------------------------------------------


@given(st.floats(0.05, 1.0), st.floats(0.05, 0.95), coordinate, coordinate)
def test_a_fall_is_a_probability_and_gentle_pushes_never_cause_one(x, y, dx, dy):
    position, push = np.array([x, y]), np.array([dx, dy])
    p = rules.fall_probability(position, push)
    assert 0.0 <= p <= 1.0
    lands = rules.landing(position, push)[0]
    if rules.strength(push) <= rules.GENTLE or lands <= 1 - rules.ZONE:
        assert p == 0.0


@pytest.mark.parametrize(
    ("x", "push"), [(0.85, (0.9, 0.0)), (0.7, (0.6, 0.6)), (0.95, (1.0, 0.0)), (0.9, (0.2, 0.1))]
)
def test_objects_fall_as_often_as_the_closed_form_says(x, push):
    n, rng = 20_000, np.random.default_rng(0)
    at, pushes = np.tile([x, 0.5], (n, 1)), np.tile(push, (n, 1))
    _, fallen = rules.outcome(at, np.zeros(n, bool), pushes, rng.random(n), rng.standard_normal((n, 2)))
    expected = float(rules.fall_probability(np.array([x, 0.5]), np.array(push)))
    assert abs(fallen.mean() - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)


def test_the_environment_follows_the_rules():
    """Ten thousand steps: what fell where, against what was to be expected, in bins of the probability."""
    env, rng = TableEdgeEnv(), np.random.default_rng(1)
    expected, fell = [], []
    env.reset(seed=0)
    for _ in range(10_000):
        push = rng.uniform(-0.5, 1.0, 2).astype(np.float32)
        expected.append(float(rules.fall_probability(env.position, push)))
        _, reward, terminated, truncated, info = env.step(push)
        fell.append(info["fallen"])
        assert not terminated and not truncated and 0.0 <= reward <= 1.0
        if info["fallen"]:
            assert reward == 0.0
            env.reset()
    expected, fell = np.array(expected), np.array(fell)
    for low in (0.0, 0.2, 0.4, 0.6):
        rows = (expected > low) & (expected <= low + 0.2)
        assert rows.sum() > 50
        assert abs(fell[rows].mean() - expected[rows].mean()) < 4 * 0.5 / np.sqrt(rows.sum())
    assert not fell[expected == 0].any()


def test_what_has_fallen_lies_where_it_is_and_earns_nothing():
    env = TableEdgeEnv(goal=(0.9, 0.5))
    env.reset(seed=0, options={"start": (1.0, 0.5)})
    seen, reward, *_, info = env.step(np.array([1.0, 0.0], np.float32))
    assert info["fallen"] and reward == 0.0
    again, reward, *_, later = env.step(np.array([-1.0, 0.0], np.float32))
    assert reward == 0.0 and later["fallen"]
    np.testing.assert_array_equal(again, seen)


def test_the_oracle_draws_what_the_rules_say_and_the_same_for_all_candidates():
    world = rules.TableEdgeDynamics()
    z = torch.tensor([[0.85, 0.5, 0.0]] * 2)
    push = torch.tensor([[[0.9, 0.0], [-0.2, 0.0]]] * 2)
    paths = world.rollout(z, push, futures=4000, generator=torch.Generator().manual_seed(0))
    assert paths.shape == (2, 4000, 3, 3)
    torch.testing.assert_close(paths[0], paths[1])
    torch.testing.assert_close(paths[:, :, 0], z[:, None].expand(-1, 4000, -1))
    fallen = paths[0, :, 1, 2]
    expected = float(rules.fall_probability(np.array([0.85, 0.5]), np.array([0.9, 0.0])))
    assert abs(fallen.mean() - expected) < 0.04
    torch.testing.assert_close(paths[0, fallen > 0, 2], paths[0, fallen > 0, 1])


def test_planning_with_the_oracle_is_careful_near_the_edge():
    """The best plan from beside the goal's zone hurries while that is safe, and pushes gently where it is not."""

    def cost(latents, actions):
        at, fallen = latents[..., 1:, :2].double().numpy(), latents[..., 1:, 2].numpy() > 0.5
        return -torch.from_numpy(rules.reward(at, fallen, np.array([0.9, 0.5]))).sum(-1).float()

    planner = CEM(horizon=6, samples=300, elites=30, iterations=8, futures=32)
    z = torch.tensor([[0.3, 0.5, 0.0]])
    plan = planner.plan(rules.TableEdgeDynamics(), cost, z, generator=torch.Generator().manual_seed(0))
    first = plan.actions[0].double().numpy()
    assert rules.strength(first[0]) > 0.8
    assert plan.branches[0, :, -1, 2].mean() < 0.2


@pytest.mark.parametrize("wrong", [{"start": (1.2, 0.5)}, {"goal": (0.5,)}, {"where": 1}])
def test_impossible_tables_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be|unknown"):
        TableEdgeEnv().reset(options=wrong)
    with pytest.raises(ValueError, match="finite"):
        env = TableEdgeEnv()
        env.reset(seed=0)
        env.step(np.array([np.nan, 0.0]))


# -- Fork -------------------------------------------------------------------------------------------


def play(env, seed, act, x=0.0):
    env.reset(seed=seed, options={"x": x})
    while True:
        _, reward, terminated, _, _ = env.step(np.array([act(env)], np.float32))
        if terminated:
            return reward


def test_waiting_in_the_middle_always_passes_and_going_to_a_side_half_the_time():
    env = ForkEnv()
    wait = [play(env, i, lambda e: np.sign(e.side * fork.DOOR - e.x) if e.side else 0.0) for i in range(40)]
    side = [play(env, i, lambda e: np.clip((fork.DOOR - e.x) / fork.SPEED, -1, 1)) for i in range(400)]
    assert np.mean(wait) == 1.0 == fork.value(0.0, 0)
    assert abs(np.mean(side) - 0.5) < 0.1
    assert fork.value(fork.DOOR, fork.DECISION - 1) == 0.5


@pytest.mark.parametrize("right", [0.0, 0.3, 0.5, 0.9])
def test_the_value_is_that_of_dynamic_programming(right):
    """Backward induction on a fine grid of positions and moves, against the closed form."""
    grid = np.linspace(-1, 1, 401)
    moves = np.linspace(-fork.SPEED, fork.SPEED, 49)  # multiples of the grid's spacing
    reached = np.clip(grid[:, None] + moves, -1, 1)
    columns = np.rint((reached + 1) / 2 * 400).astype(int)
    after = {s: [(np.abs(grid - s * fork.DOOR) <= fork.HALF_DOOR + 1e-9).astype(float)] for s in (-1, 1)}
    for s in (-1, 1):
        for _ in range(fork.LENGTH - fork.DECISION):
            after[s].append(after[s][-1][columns].max(1))
    before = right * after[1][-1] + (1 - right) * after[-1][-1]
    for step in range(fork.DECISION - 1, -1, -1):
        before = before[columns].max(1)
        wrong = np.abs(before - fork.value(grid, step, right=right)) > 1e-9
        assert wrong.mean() <= 0.02, (step, grid[wrong])  # the grid's own rounding at the borders
    for s in (-1, 1):
        wrong = np.abs(after[s][-1] - fork.value(grid, fork.DECISION, s)) > 1e-9
        assert wrong.mean() <= 0.02


# -- TableEdge with real contact --------------------------------------------------------------------


@pytest.mark.gl
def test_gymnasium_and_stable_baselines3_take_the_one_with_real_contact():
    env = gym.make("jepa_rl/MujocoTableEdge-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    sb3_check_env(env)
    assert env.render().shape == (384, 384, 3)
    env.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.unwrapped.reset()


@pytest.mark.gl
def test_hard_flicks_near_the_edge_fall_by_chance_and_gentle_ones_never_do():
    env = MujocoTableEdgeEnv()
    fell, ways = {0.3: [], 0.8: []}, []
    for i in range(30):
        for strength, outcomes in fell.items():
            env.reset(seed=i, options={"start": (0.9, 0.5)})
            *_, info = env.step(np.array([strength, 0.0], np.float32))
            outcomes.append(info["fallen"])
        env.reset(seed=i, options={"start": (0.3, 0.5)})
        *_, info = env.step(np.array([1.0, 0.0], np.float32))
        ways.append(info["position"][0] - 0.3)
    assert not any(fell[0.3]) and 0.1 < np.mean(fell[0.8]) < 0.9
    # v * v / (2 friction g) with the median friction, and its spread
    assert abs(np.median(ways) - 0.12) < 0.03 and 0.02 < np.std(ways) < 0.08
    env.close()


@pytest.mark.gl
def test_a_puck_that_fell_stays_where_it_is_and_equal_seeds_give_equal_slides():
    runs = []
    for _ in range(2):
        env = MujocoTableEdgeEnv(goal=(0.9, 0.5))
        env.reset(seed=3, options={"start": (0.97, 0.5)})
        seen = [env.step(np.array([1.0, 0.0], np.float32)) for _ in range(3)]
        assert seen[0][4]["fallen"] and seen[0][1] == 0.0
        np.testing.assert_array_equal(seen[1][0], seen[0][0])
        runs.append(seen[0][4]["position"])
        env.close()
    np.testing.assert_array_equal(*runs)
