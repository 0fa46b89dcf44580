"""Two Rooms: Gymnasium's and Stable-Baselines3's checkers, the rules of the world, both versions alike."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import jepa_rl.envs
from jepa_rl.envs.worlds.two_rooms import TwoRoomsEnv, TwoRoomsVectorEnv
from jepa_rl.envs.worlds.two_rooms_rules import (
    BLOCKED,
    DOOR_RANGE,
    GOAL_RADIUS,
    HIGH,
    LOW,
    MAX_STEP,
    PASSAGE,
    WALL_RANGE,
    draw_dots,
    draw_walls,
    move,
)

assert jepa_rl.envs  # registers the id


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_checkers(reward):
    env = gym.make("jepa_rl/TwoRooms-v0", reward=reward, render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(TwoRoomsEnv(reward=reward))
    assert env.spec.max_episode_steps == 200
    assert gym.make(gym.spec(env.spec.to_json() and "jepa_rl/TwoRooms-v0")).reset(seed=0)[0].shape == (
        2,
        64,
        64,
    )


coordinate = st.floats(LOW, HIGH)
unit = st.floats(-1.5, 1.5)


@settings(max_examples=300, deadline=None)
@given(coordinate, coordinate, st.floats(*WALL_RANGE), st.floats(*DOOR_RANGE), unit, unit)
@example(
    35.10259447577698, 6.5, 31.08276595917592, 19.914462524456596, -0.5281280566028246, -0.5281280566028246
)
def test_no_move_leaves_the_rooms_or_enters_the_wall(x, y, wall, door, dx, dy):
    inside = abs(x - wall) < BLOCKED
    if inside and abs(y - door) > PASSAGE:
        return  # not a free position
    after = move(np.array([x, y]), np.array([wall, door]), np.array([dx, dy]))
    assert LOW <= after[0] <= HIGH and LOW <= after[1] <= HIGH
    assert abs(after[0] - wall) >= BLOCKED - 1e-9 or abs(after[1] - door) <= PASSAGE + 1e-9
    if abs(x - wall) >= BLOCKED and abs(after[0] - wall) >= BLOCKED:
        assert (x < wall) == (after[0] < wall), "jumped over the wall in one step"
    assert np.linalg.norm(after - [x, y]) <= MAX_STEP + PASSAGE  # sliding into the doorway at most


def test_the_only_way_is_through_the_door():
    layout = np.array([32.0, 45.0])
    position = np.array([20.0, 15.0])
    for _ in range(100):
        position = move(position, layout, np.array([1.0, 0.0]))
    np.testing.assert_allclose(position, [32.0 - BLOCKED, 15.0])
    for _ in range(12):
        position = move(position, layout, np.array([0.0, 1.0]))
    for _ in range(100):
        position = move(position, layout, np.array([1.0, 0.0]))
    assert position[0] == HIGH


def test_a_step_is_2_45_pixels_in_every_direction():
    start, layout = np.array([12.0, 30.0]), np.array([40.0, 30.0])
    for angle in np.linspace(0, 2 * np.pi, 9):
        action = 1.4 * np.array([np.cos(angle), np.sin(angle)])
        moved = np.linalg.norm(move(start, layout, action) - start)
        assert moved == pytest.approx(MAX_STEP) or np.abs(action).max() > 1  # clipped to the box first
    np.testing.assert_allclose(move(start, layout, np.array([0.5, 0.0])) - start, [MAX_STEP / 2, 0.0])


def test_pictures_show_where_things_are():
    dots = draw_dots(np.array([[20.0, 40.0]]))
    assert np.unravel_index(dots[0].argmax(), (64, 64)) == (40, 20)
    walls = draw_walls(np.array([[32.0, 20.0]]))[0]
    assert walls[20, 32] == 0 and walls[40, 32] == 255 and walls[4, 30] == 255 and walls[0].max() == 0


def test_start_and_goal_lie_in_different_rooms_and_layouts_vary():
    env, layouts = TwoRoomsEnv(), set()
    for seed in range(50):
        _, info = env.reset(seed=seed)
        wall = info["door"][0]
        assert (info["position"][0] < wall) != (info["goal_position"][0] < wall)
        assert not info["success"]
        layouts.add(tuple(info["door"]))
    assert len(layouts) == 50


def test_options_and_rewards():
    env = TwoRoomsEnv(reward="dense", wall=30.0, door=30.0)
    observation, info = env.reset(seed=0, options={"start": (15.0, 30.0), "goal": (22.5, 30.0)})
    np.testing.assert_array_equal(info["goal"][1], observation[1])
    np.testing.assert_allclose(info["position"], [15.0, 30.0])
    _, reward, terminated, _, _ = env.step(np.array([1.0, 0.0], np.float32))
    assert reward == pytest.approx(MAX_STEP / 64, abs=1e-6) and not terminated
    _, reward, terminated, _, info = env.step(np.array([1.0, 0.0], np.float32))
    assert terminated and info["success"] and reward > 1.0
    assert np.linalg.norm(info["position"] - info["goal_position"]) <= GOAL_RADIUS


@pytest.mark.parametrize(
    ("one", "many"),
    [
        (TwoRoomsEnv, TwoRoomsVectorEnv),
        (jepa_rl.envs.RoofedRoomsEnv, jepa_rl.envs.RoofedRoomsVectorEnv),
        (jepa_rl.envs.PushEnv, jepa_rl.envs.PushVectorEnv),
    ],
)
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vectorised_worlds_equal_single_ones(mode, one, many):
    n, steps = 3, 25
    venv = many(n, max_episode_steps=10, autoreset_mode=mode)
    rng = np.random.default_rng(0)
    observations, _ = venv.reset(seed=7)
    singles = [gym.wrappers.TimeLimit(one(), 10) for _ in range(n)]
    for i, env in enumerate(singles):
        np.testing.assert_array_equal(env.reset(seed=7 + i)[0], observations[i])
    over = np.zeros(n, bool)
    for _ in range(steps):
        if mode is AutoresetMode.DISABLED and over.any():
            with pytest.raises(gym.error.ResetNeeded):
                venv.step(np.zeros((n, 2), np.float32))
            observations, _ = venv.reset(options={"reset_mask": over})
            for i in np.flatnonzero(over):
                np.testing.assert_array_equal(singles[i].reset()[0], observations[i])
        actions = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        observations, rewards, terminated, truncated, infos = venv.step(actions)
        waiting, over = over, terminated | truncated
        for i, env in enumerate(singles):
            if mode is AutoresetMode.NEXT_STEP and waiting[i]:
                np.testing.assert_array_equal(env.reset()[0], observations[i])
                assert rewards[i] == 0 and not over[i]
                continue
            observation, reward, done, cut, _ = env.step(actions[i])
            assert (reward, done, cut) == (rewards[i], terminated[i], truncated[i])
            if mode is AutoresetMode.SAME_STEP and over[i]:
                np.testing.assert_array_equal(infos["final_obs"][i], observation)
                observation = env.reset()[0]
            np.testing.assert_array_equal(observation, observations[i])


def test_registered_vector_version():
    venv = gym.make_vec("jepa_rl/TwoRooms-v0", 4, "vector_entry_point")
    assert isinstance(venv.unwrapped, TwoRoomsVectorEnv)
    venv.reset(seed=0)
    venv.step(venv.action_space.sample())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(reward="much"), "sparse"),
        (dict(start="nowhere"), "different"),
        (dict(wall=5.0), "wall"),
        (dict(door=80.0), "door"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TwoRoomsEnv(**arguments)


def test_bad_calls():
    env = TwoRoomsEnv()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.float32))
    env.reset(seed=0)
    for action in ([np.nan, 0.0], [0.0], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="finite with shape"):
            env.step(np.array(action, np.float32))
    with pytest.raises(ValueError, match="unknown reset options"):
        env.reset(options={"color": "red"})
    with pytest.raises(ValueError, match="start"):
        env.reset(options={"start": (0.0, 0.0)})
    with pytest.raises(ValueError, match="num_envs"):
        TwoRoomsVectorEnv(0)
