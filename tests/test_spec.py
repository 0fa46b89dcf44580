"""Spaces to specifications: what is accepted, what is refused, and what the refusal says."""

import gc

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from jepa_rl.envs import PixelObservation, action_spec, world_spec
from jepa_rl.spaces import channels_first, pixel_space
from jepa_rl.types import ActionSpec, WorldSpec


@given(st.integers(1, 30), st.integers(-5, 5))
def test_discrete_actions_keep_their_start(n, start):
    space = spaces.Discrete(n, start=start)
    spec = action_spec(space)
    assert spec == ActionSpec("discrete", n, start=start)
    choices = np.arange(start, start + n)
    np.testing.assert_array_equal(spec.decode(spec.encode(choices)), choices)


@settings(max_examples=50)
@given(st.integers(1, 8), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_box_actions_survive_the_round_trip(size, dtype, seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-10, 0, size).astype(dtype)
    space = spaces.Box(low, low + rng.uniform(0.5, 20, size).astype(dtype), dtype=dtype, seed=seed)
    spec = action_spec(space)
    actions = np.stack([space.sample() for _ in range(4)])
    model_actions = spec.encode(actions)
    assert model_actions.dtype == np.float32 and np.abs(model_actions).max() <= 1 + 1e-5
    np.testing.assert_allclose(spec.decode(model_actions), actions, atol=1e-5 * 30)


def boxes() -> list[spaces.Box]:
    """Boxes whose bounds float32 cannot hold, or whose range rounds past a bound, beside plain ones."""
    low, high = [-0.04, -0.1, 0.3], [0.03, 0.7, 1.1]
    rng = np.random.default_rng(0)
    found = []
    for dtype in (np.float16, np.float32, np.float64):
        found += [
            spaces.Box(-1, 1, (3,), dtype),
            spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype),
        ]
        for _ in range(100):
            bounds = np.sort(rng.normal(scale=10.0, size=(2, 3)), axis=0).astype(dtype)
            found += [spaces.Box(*bounds, dtype=dtype)] if (bounds[0] < bounds[1]).all() else []
    return found


def test_decoded_actions_lie_in_the_action_space():
    rng = np.random.default_rng(1)
    for space in boxes():
        model_actions = np.concatenate([rng.uniform(-1.5, 1.5, (20, 3)), np.ones((1, 3)), -np.ones((1, 3))])
        decoded = action_spec(space).decode(model_actions.astype(np.float32))
        assert decoded.dtype == space.dtype
        assert all(space.contains(action) for action in decoded), space
        np.testing.assert_array_equal(decoded[-2:], np.stack([space.high, space.low]))


def test_clipped_actions_lie_in_the_action_space():
    rng = np.random.default_rng(1)
    for space in boxes():
        actions = action_spec(space).clip(rng.normal(scale=20.0, size=(50, 3)))
        assert all(space.contains(action) for action in actions), space


def test_the_dtype_of_actions_that_an_old_file_does_not_say():
    """float32 where it holds the bounds, so that what was decoded to float32 lies in the space; else float64."""
    assert ActionSpec("continuous", 1, (-1.0,), (2.0,)).dtype == "float32"
    assert ActionSpec("continuous", 1, (float(np.float32(-0.04)),), (1.0,)).dtype == "float32"
    assert ActionSpec("continuous", 1, (-0.04,), (1.0,)).dtype == "float64"
    assert ActionSpec("discrete", 2).dtype == "int64"
    # The dtype does not make a spec another one: old checkpoints fit their environments.
    assert ActionSpec("continuous", 1, (-1.0,), (2.0,)) == action_spec(spaces.Box(-1, 2, (1,), np.float64))


@pytest.mark.parametrize(
    ("space", "error", "words"),
    [
        (spaces.Box(0, 3, (2,), np.int64), TypeError, "float16 or float32 or float64, got int64; use Discrete or"),
        (spaces.Box(0, 255, (2,), np.uint8), TypeError, "got uint8; use Discrete or MultiDiscrete"),
        (spaces.Box(-3.4e38, 3.4e38, (2,)), ValueError, r"components \[0, 1\] .*TransformAction.*Box\(-1, 1"),
        (spaces.Box(-1e300, 1e300, (1,), np.float64), ValueError, "must be bounded"),
        (spaces.Box(-np.inf, 1, (1,)), ValueError, "must be bounded"),
    ],
)  # fmt: skip
def test_boxes_of_whole_numbers_or_without_bounds_are_refused(space, error, words):
    with pytest.raises(error, match=words):
        action_spec(space)


@pytest.mark.parametrize(
    "space, error, words",
    [
        (spaces.Box(-np.inf, np.inf, (2,)), ValueError, r"bounded.*components \[0, 1\].*TransformAction"),
        (
            spaces.Box(np.array([-1, -np.inf], np.float32), np.ones(2, np.float32)),
            ValueError,
            r"components \[1\]",
        ),
        (spaces.Box(-1, 1, (2, 2)), ValueError, r"flat.*\(2, 2\)"),
        (spaces.Box(-1, 1, ()), ValueError, r"flat.*\(\)"),
        (spaces.Box(0, 3, (2,), np.int64), TypeError, "int64"),
        (spaces.MultiDiscrete([[2, 3]]), TypeError, "flat MultiDiscrete"),
        (spaces.MultiBinary(3), TypeError, "MultiBinary"),
        (spaces.Dict(a=spaces.Discrete(2)), TypeError, "Dict"),
        (spaces.Tuple([spaces.Discrete(2)]), TypeError, "Tuple"),
        (spaces.Text(5), TypeError, "Text"),
        (spaces.Graph(spaces.Box(-1, 1, (2,)), None), TypeError, "Graph"),
        (spaces.Sequence(spaces.Discrete(2)), TypeError, "Sequence"),
    ],
)
def test_unsupported_actions_are_refused(space, error, words):
    with pytest.raises(error, match=words):
        action_spec(space)


@given(st.integers(1, 12), st.integers(13, 200), st.integers(13, 200))
def test_channels_are_found_on_either_side(c, y, x):
    assert channels_first((c, y, x))
    assert not channels_first((y, x, c))


def test_a_tie_means_channels_last():
    assert not channels_first((3, 3, 3))


@pytest.mark.parametrize(
    "space, words",
    [
        (spaces.Box(-1, 1, (4,)), "uint8 pixels"),
        (spaces.Box(0, 255, (96, 96, 3), np.uint8), "channels first"),
        (spaces.Dict(image=spaces.Box(0, 255, (3, 64, 64), np.uint8)), r"'pixels'.*\['image'\]"),
        (spaces.Text(5), "uint8 pixels"),
    ],
)
def test_observations_without_pixels_are_refused(space, words):
    with pytest.raises(ValueError, match=words + r".*PixelObservation|PixelObservation.*" + words):
        pixel_space(space)


def cartpole():
    return PixelObservation(gym.make("CartPole-v1", render_mode="rgb_array"), size=32, frames=2)


def test_one_world_spec_through_every_interface():
    expected = WorldSpec((6, 32, 32), 2, ActionSpec("discrete", 2), block=3)
    made = [cartpole(), gym.vector.SyncVectorEnv([cartpole] * 2), DummyVecEnv([cartpole] * 2)]
    for env in made:
        assert world_spec(env, block=3) == expected
        env.close()
    asynchronous = gym.vector.AsyncVectorEnv([cartpole] * 2)
    try:
        assert world_spec(asynchronous, block=3) == expected
    finally:
        asynchronous.close()


def test_world_spec_of_a_dict_and_of_a_native_pixel_world():
    env = PixelObservation(gym.make("CartPole-v1", render_mode="rgb_array"), keep_state=True)
    assert world_spec(env).pixels == (9, 64, 64)
    rooms = gym.make_vec("jepa_rl/TwoRooms-v0", num_envs=2)
    spec = world_spec(rooms)
    assert spec.pixels == (2, 64, 64) and spec.frames == 1 and spec.action.size == 2


def test_world_spec_of_something_else():
    with pytest.raises(TypeError, match="VecEnv"):
        world_spec(object())


def test_two_rooms_can_be_made_by_id_and_registering_twice_is_harmless(recwarn):
    from jepa_rl.envs import register_envs

    before = dict(gym.registry)
    gc.collect()  # finalizers of what other tests left behind may warn
    recwarn.clear()
    register_envs()
    assert dict(gym.registry) == before and not recwarn.list
    assert gym.make("jepa_rl.envs:jepa_rl/TwoRooms-v0").observation_space.shape == (2, 64, 64)
