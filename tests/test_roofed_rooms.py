"""Roofed Rooms: what the roof hides, and that nothing else differs from Two Rooms."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from jepa_rl.envs import RoofedRoomsEnv, RoofedRoomsVectorEnv, world_spec
from jepa_rl.envs.worlds.two_rooms_rules import MAX_STEP, draw_dots, draw_walls


def test_checkers_and_the_recorded_source():
    env = gym.make("jepa_rl/RoofedRooms-v0", roof=12.0, render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(RoofedRoomsEnv())
    assert '"roof": 12.0' in world_spec(env).source
    assert isinstance(
        gym.make_vec("jepa_rl/RoofedRooms-v0", 2, "vector_entry_point").unwrapped, RoofedRoomsVectorEnv
    )


def test_the_way_through_the_door_is_out_of_sight_for_several_steps():
    env = RoofedRoomsEnv(roof=16.0, wall=30.0, door=30.0)
    seen, info = env.reset(seed=0, options={"start": (18.0, 30.0), "goal": (50.0, 30.0)})
    assert seen[0].max() > 200 and info["goal"][0].max() > 200 and not info["hidden"]
    hidden, pictures, over = [], [], False
    while not over:
        seen, _, over, _, info = env.step(np.array([1.0, 0.0], np.float32))
        pictures.append(seen)
        hidden.append(bool(info["hidden"]))
    under = np.flatnonzero(hidden)
    assert len(under) >= int(16.0 / MAX_STEP) and np.array_equal(under, np.arange(under[0], under[-1] + 1))
    # In the middle of the roof nothing of the dot is seen: pictures are the same, wherever it is.
    dark = [picture for picture in pictures if picture[0].max() == 0]
    assert len(dark) >= 3 and all(np.array_equal(picture, dark[0]) for picture in dark)
    assert info["success"] and pictures[-1][0].max() > 200


def test_the_roof_hides_the_dot_and_nothing_else():
    env = RoofedRoomsEnv(roof=16.0)
    for seed in range(20):
        seen, info = env.reset(seed=seed)
        walls = draw_walls(info["door"][None].astype(np.float64))[0]
        assert np.array_equal(seen[1] == 255, walls == 255)
        roof = np.abs(np.arange(64) - info["door"][0]) <= 8.0
        assert (seen[1][30][roof] >= 96).all() and not seen[0][:, roof].any()
        # Starts and goals are seen whole, or nearly so.
        for picture, place in ((seen, info["position"]), (info["goal"], info["goal_position"])):
            whole = draw_dots(place[None].astype(np.float64))[0]
            assert picture[0].sum() > 0.95 * whole.sum()
            assert (place[0] < info["door"][0]) != (
                info["position" if place is info["goal_position"] else "goal_position"][0] < info["door"][0]
            )


def test_impossible_roofs_are_refused():
    for roof in (0.0, 40.0, float("nan")):
        with pytest.raises(ValueError, match="roof must be a width"):
            RoofedRoomsEnv(roof=roof)
    with pytest.raises(ValueError, match="must be seen"):
        RoofedRoomsEnv(wall=30.0).reset(options={"goal": (32.0, 30.0)})
