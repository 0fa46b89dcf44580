"""PixelObservation: known pictures in, known stacks out, and clear refusals."""

import pickle
import warnings

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ClosedEnvironmentError
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FilterObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from jepa_rl.envs import ActionRepeat, PixelObservation, world_spec


class Slides(gym.Env):
    """Shows observation t of a given list at step t, from the start again at every reset."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, space, slides, render_mode=None):
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.slides, self.render_mode = slides, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.slides[0], {}

    def step(self, action):
        self.t += 1
        return self.slides[self.t], 0.0, False, False, {}

    def render(self):
        return np.full((40, 60, 3), self.t, np.uint8)


class Windowed(Slides):
    """Draws on a screen, and nowhere else."""

    metadata = {"render_modes": ["human"]}  # noqa: RUF012


def images(shape, n=5, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def slides(shape, n=5, **kwargs):
    return Slides(spaces.Box(0, 255, shape, np.uint8), images(shape, n), **kwargs)


def cartpole(**kwargs):
    return PixelObservation(gym.make("CartPole-v1", render_mode="rgb_array"), **kwargs)


# --- the pictures ---


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(["yx", "yxc", "cyx", "kyxc"]),
    y=st.integers(8, 20),
    x=st.integers(8, 20),
    c=st.integers(1, 6),
    frames=st.integers(1, 4),
)
def test_the_stack_holds_the_last_frames_channels_first_oldest_first(layout, y, x, c, frames):
    """With the size fitting, nothing is resized, so every pixel is known."""
    size = y
    shape = {"yx": (y, y), "yxc": (y, y, c), "cyx": (c, y, y), "kyxc": (2, y, y, c)}[layout]
    env = slides(shape, n=6)
    chw = {
        "yx": lambda i: i[None],
        "yxc": lambda i: np.moveaxis(i, 2, 0),
        "cyx": lambda i: i,
        "kyxc": lambda i: np.concatenate([np.moveaxis(k, 2, 0) for k in i]),
    }[layout]
    pictures = [chw(i) for i in env.slides]
    wrapped = PixelObservation(env, size=size, frames=frames)
    seen = [wrapped.reset()[0]] + [wrapped.step(0)[0] for _ in range(5)]
    for t, observation in enumerate(seen):
        expected = np.concatenate([pictures[max(0, t - back)] for back in reversed(range(frames))])
        np.testing.assert_array_equal(observation, expected)
        assert wrapped.observation_space.contains(observation)
    np.testing.assert_array_equal(wrapped.reset()[0], np.concatenate([pictures[0]] * frames))


def test_area_resize_averages_blocks():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4, :4, 1] = 200
    picture[4:, 4:, 2] = np.tile([[0, 100], [100, 0]], (2, 2))
    env = PixelObservation(Slides(spaces.Box(0, 255, (8, 8, 3), np.uint8), [picture]), size=2, frames=1)
    np.testing.assert_array_equal(env.reset()[0], [[[0, 0], [0, 0]], [[200, 0], [0, 0]], [[0, 0], [0, 50]]])


def test_more_than_four_channels_are_averaged_too():
    env = slides((20, 20, 10), n=1)
    observation = PixelObservation(env, size=10, frames=1).reset()[0]
    means = env.slides[0].reshape(10, 2, 10, 2, 10).mean((1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(observation, means, atol=1)  # rounding differs with the number of channels


def test_grayscale_weighs_the_channels_as_luma_and_leaves_gray_alone():
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[...] = (200, 100, 50)
    env = Slides(spaces.Box(0, 255, (16, 16, 3), np.uint8), [colours])
    gray = PixelObservation(env, size=16, frames=2, grayscale=True).reset()[0]
    assert gray.shape == (2, 16, 16)
    assert abs(int(gray[0, 0, 0]) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1
    once = slides((16, 16, 1), n=1)
    np.testing.assert_array_equal(
        PixelObservation(once, size=16, frames=1, grayscale=True).reset()[0],
        once.slides[0].transpose(2, 0, 1),
    )


@pytest.mark.parametrize("high, dtype", [(1.0, np.float32), (255.0, np.float64), (255, np.int32)])
def test_images_of_other_dtypes_are_scaled_to_uint8(high, dtype):
    target = images((12, 12, 3), 1)[0]
    image = (target.astype(np.float64) * high / 255).astype(dtype)
    env = Slides(spaces.Box(0, high, (12, 12, 3), dtype), [image])
    np.testing.assert_array_equal(
        PixelObservation(env, size=12, frames=1).reset()[0], target.transpose(2, 0, 1)
    )


def test_observations_are_fresh_arrays_that_the_caller_may_scribble_on():
    env = PixelObservation(slides((8, 8, 3)), size=8, frames=3)
    clean = PixelObservation(slides((8, 8, 3)), size=8, frames=3)
    env.reset()[0][:] = 7
    clean.reset()
    for _ in range(3):
        scribbled = env.step(0)[0]
        np.testing.assert_array_equal(scribbled, clean.step(0)[0])
        scribbled[:] = 7


def test_a_reused_buffer_of_the_environment_does_not_leak_into_older_frames():
    class Reuses(Slides):
        def reset(self, **kwargs):
            self.buffer = np.zeros((3, 8, 8), np.uint8)
            super().reset(**kwargs)
            return self.buffer, {}

        def step(self, action):
            self.buffer += 1
            return self.buffer, 0.0, False, False, {}

    env = PixelObservation(Reuses(spaces.Box(0, 255, (3, 8, 8), np.uint8), [None]), size=8, frames=3)
    env.reset()
    env.step(0)
    observation = env.step(0)[0]
    assert observation[[0, 3, 6], 0, 0].tolist() == [0, 1, 2]


def test_render_keeps_full_size_pictures_and_feeds_vectors():
    env = Slides(spaces.Box(-1, 1, (4,)), [np.zeros(4, np.float32)] * 5, render_mode="rgb_array")
    env = PixelObservation(env, size=16, frames=2)
    env.reset()
    observation = env.step(0)[0]
    assert observation[:3].max() == 0 and observation[3:].min() == 1  # the slides number their steps
    assert env.render().shape == (40, 60, 3)


# --- Dict observations and state ---


def mixed(**kwargs):
    space = spaces.Dict(
        camera=spaces.Box(0, 255, (12, 12, 3), np.uint8),
        speed=spaces.Box(-5, 5, (2,), np.float64),
        gear=spaces.Discrete(3, start=1),
        more=spaces.Dict(on=spaces.MultiBinary(2)),
    )
    slide = {
        "camera": images((12, 12, 3), 1)[0],
        "speed": np.array([1.5, -2.0]),
        "gear": np.int64(2),
        "more": {"on": np.array([1, 0], np.int8)},
    }
    return Slides(space, [slide] * 5, **kwargs)


def test_a_key_of_a_dict_with_the_rest_as_flat_state():
    env = PixelObservation(mixed(), size=12, frames=1, key="camera", keep_state=True)
    observation = env.reset()[0]
    assert observation["pixels"].shape == (3, 12, 12)
    # keys in the Dict's (sorted) order: gear one-hot, more.on, speed
    np.testing.assert_array_equal(observation["state"], np.float32([0, 1, 0, 1, 0, 1.5, -2.0]))
    assert observation["state"].dtype == np.float32
    assert env.observation_space.contains(observation)
    assert isinstance(PixelObservation(mixed(), key="camera").observation_space, spaces.Box)


def test_render_frames_with_the_vector_as_state():
    env = cartpole(keep_state=True)
    observation = env.reset(seed=3)[0]
    np.testing.assert_array_equal(observation["state"], env.unwrapped.state.astype(np.float32))


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: PixelObservation(gym.make("CartPole-v1")),
            r'gym\.make\("CartPole-v1", render_mode="rgb_array"\)',
        ),
        (
            lambda: PixelObservation(gym.make("CartPole-v1", render_mode="rgb_array_list")),
            'rgb_array_list.*render_mode="rgb_array"',
        ),
        (
            lambda: PixelObservation(Windowed(spaces.Box(-1, 1, (4,)), [])),
            r"renders only in the modes \['human'\]: let its render\(\) return a uint8 picture",
        ),
        (lambda: PixelObservation(mixed()), r"render_mode=\"rgb_array\".*key=.*camera"),
        (
            lambda: PixelObservation(mixed(), key="lens"),
            r"'lens'.*keys.*gear.*images among them: \['camera'\]",
        ),
        (lambda: PixelObservation(mixed(), key="speed"), r"speed.*not an image.*\['camera'\]"),
        (lambda: PixelObservation(slides((8, 8, 3)), key="camera"), "needs a Dict"),
        (lambda: PixelObservation(slides((8, 8, 3)), keep_state=True), "only .*Box"),
        (lambda: PixelObservation(slides((8, 8, 5)), grayscale=True), "1 or 3 channels, got 5"),
        (lambda: PixelObservation(slides((8, 8, 3)), size=0), "size=0"),
        (lambda: PixelObservation(slides((8, 8, 3)), frames=0), "frames=0"),
        (
            lambda: PixelObservation(
                Slides(spaces.Dict(a=spaces.Dict(b=spaces.Box(0, 255, (8, 8, 3), np.uint8))), []), key="a"
            ),
            r"observation\['a'\].*not an image",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "odd", [spaces.Text(5), spaces.Graph(spaces.Box(-1, 1, (2,)), None), spaces.Sequence(spaces.Discrete(2))]
)
def test_spaces_without_a_fixed_size_cannot_become_state(odd):
    space = spaces.Dict(
        camera=spaces.Box(0, 255, (8, 8, 3), np.uint8), odd=odd, speed=spaces.Box(-1, 1, (1,))
    )
    PixelObservation(Slides(space, []), key="camera")  # fine as long as nobody wants it as state
    with pytest.raises(ValueError, match=rf"observation\['odd'\], a {type(odd).__name__}.*FilterObservation"):
        PixelObservation(Slides(space, []), key="camera", keep_state=True)
    filtered = FilterObservation(Slides(space, []), ["camera", "speed"])
    assert PixelObservation(filtered, key="camera", keep_state=True).observation_space["state"].shape == (1,)


# --- faults while running ---


def test_non_finite_state_and_images_are_named():
    state = Slides(spaces.Box(-9, 9, (4,)), [np.float32([0, 1, np.nan, 3])], render_mode="rgb_array")
    with pytest.raises(ValueError, match=r"state holds 1 NaN.*index \(2,\)"):
        PixelObservation(state, keep_state=True).reset()
    PixelObservation(state).reset()  # the state is not looked at
    image = np.zeros((8, 8, 3), np.float32)
    image[1, 2, 0] = np.inf
    with pytest.raises(ValueError, match=r"observation holds 1 NaN or infinite.*\(1, 2, 0\)"):
        PixelObservation(Slides(spaces.Box(0, 1, (8, 8, 3)), [image])).reset()


def test_a_picture_that_changes_its_shape_is_refused_and_leaves_the_stack_alone():
    env = PixelObservation(
        Slides(spaces.Box(0, 255, (8, 8, 3), np.uint8), images((8, 8, 3), 2)), size=8, frames=2
    )
    first = env.reset()[0]
    env.env.slides[1] = np.zeros((9, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(8, 8, 3\), got \(9, 8, 3\)"):
        env.step(0)
    np.testing.assert_array_equal(env._stack, first)


def test_render_that_returns_nothing_is_named():
    env = Slides(spaces.Box(-1, 1, (4,)), [np.zeros(4, np.float32)], render_mode="rgb_array")
    env.render = lambda: None
    with pytest.raises(ValueError, match=r"render\(\) must return an array \(y, x, 3\), got NoneType"):
        PixelObservation(env).reset()


def test_a_closed_environment_says_so():
    env = cartpole()
    env.reset()
    env.close()
    env.close()
    for call in (lambda: env.step(0), env.reset):
        with pytest.raises(ClosedEnvironmentError, match="closed; make a new"):
            call()


# --- other people's tools ---


@pytest.mark.parametrize("options", [{}, {"keep_state": True}, {"grayscale": True, "frames": 1, "size": 48}])
def test_both_checkers_pass(options):
    check_env(cartpole(**options))
    check_env_sb3(cartpole(**options))


def test_the_spec_makes_the_same_environment_again():
    env = cartpole(size=32, frames=2, keep_state=True)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(again, PixelObservation) and again.observation_space == env.observation_space
    for one, other in zip(env.reset(seed=5)[0].values(), again.reset(seed=5)[0].values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pickling_before_and_after_the_reset():
    env = PixelObservation(slides((8, 8, 3)), size=8)
    env.reset()
    first = env.step(0)[0]
    for copy in (pickle.loads(pickle.dumps(env)), cloudpickle.loads(cloudpickle.dumps(env))):
        np.testing.assert_array_equal(copy.step(0)[0][:6], first[3:])


def test_vector_environments_of_both_kinds_agree():
    def make():
        return cartpole(size=32, frames=2)

    actions = np.array([0, 1])
    synchronous = gym.vector.SyncVectorEnv([make] * 2)
    asynchronous = gym.vector.AsyncVectorEnv([make] * 2)
    dummy, workers = DummyVecEnv([make] * 2), SubprocVecEnv([make] * 2, start_method="fork")
    try:
        dummy.seed(1)
        workers.seed(1)
        np.testing.assert_array_equal(synchronous.reset(seed=1)[0], asynchronous.reset(seed=1)[0])
        np.testing.assert_array_equal(dummy.reset(), workers.reset())
        one = synchronous.step(actions)[0]
        for other in (asynchronous.step(actions)[0], dummy.step(actions)[0], workers.step(actions)[0]):
            np.testing.assert_array_equal(one, other)
        assert one.shape == (2, 6, 32, 32)
    finally:
        for venv in (synchronous, asynchronous, dummy, workers):
            venv.close()


# --- layouts and scales ---


@pytest.mark.parametrize(
    ("shape", "to_stack"),
    [
        ((4, 3, 12, 14), lambda s: s.reshape(12, 12, 14)),
        ((4, 12, 14, 3), lambda s: np.moveaxis(s, 3, 1).reshape(12, 12, 14)),
        ((4, 1, 12, 14), lambda s: s[:, 0]),
    ],
)
def test_stacks_are_read_in_either_order_of_axes(shape, to_stack):
    stack = images(shape, 1)[0]
    env = PixelObservation(Slides(spaces.Box(0, 255, shape, np.uint8), [stack]), size=12, frames=1)
    expected = PixelObservation(
        Slides(
            spaces.Box(0, 255, (12, 14, len(to_stack(stack))), np.uint8), [np.moveaxis(to_stack(stack), 0, 2)]
        ),
        size=12,
        frames=1,
    )
    np.testing.assert_array_equal(env.reset()[0], expected.reset()[0])


@pytest.mark.parametrize("shape", [(64, 64, 3, 4), (4, 3, 3, 3)])
def test_stacks_whose_axes_cannot_be_told_apart_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"\(frames, y, x, channels\) or \(frames, channels, y, x\).*Transform"
    ):
        PixelObservation(slides(shape))


@pytest.mark.parametrize("shape", [(40, 32, 32), (18, 16, 16), (16, 16, 16), (1, 16, 16)])
def test_our_own_output_is_read_however_many_channels_it_has(shape):
    env = PixelObservation(slides((shape[1], shape[2], shape[0])), size=shape[1], frames=1)
    assert env.observation_space.shape == shape
    assert world_spec(env).pixels == shape
    again = PixelObservation(env, size=shape[1], frames=1)
    np.testing.assert_array_equal(env.reset()[0], env.env.slides[0].transpose(2, 0, 1))
    if len(set(shape)) > 1:  # three equal axes are taken for (y, x, channels)
        np.testing.assert_array_equal(again.reset()[0], env.reset()[0])


@pytest.mark.parametrize(
    ("high", "given", "shown"), [(1, [0, 1], [0, 255]), (3, [1, 2, 3], [85, 170, 255]), (255, [1, 3], [1, 3])]
)
def test_a_few_levels_of_uint8_are_stretched_to_what_their_space_says(high, given, shown):
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[0, : len(given), 0] = given
    env = PixelObservation(Slides(spaces.Box(0, high, picture.shape, np.uint8), [picture]), size=16, frames=1)
    assert env.reset()[0][0, 0, : len(shown)].tolist() == shown


@pytest.mark.parametrize(
    ("space", "encode"),
    [
        (spaces.Box(0, 1, (20, 20), np.float32), lambda p: (p / 255).astype(np.float32)),
        (spaces.Box(-1, 1, (20, 20), np.float32), lambda p: (p / 127.5 - 1).astype(np.float32)),
        (spaces.Box(-1, 1, (20, 20, 3), np.float64), lambda p: p / 127.5 - 1),
        (spaces.Box(0, 65535, (20, 20, 3), np.uint16), lambda p: p.astype(np.uint16) * 257),
        (spaces.Box(0, 1, (4, 20, 20, 3), np.float32), lambda p: (p / 255).astype(np.float32)),
        (spaces.MultiBinary((20, 20)), lambda p: (p > 127).astype(np.int8)),
        (spaces.Box(0, 1, (20, 20, 3), bool), lambda p: p > 127),
    ],
)
def test_scaled_pictures_of_other_kinds_are_read_and_not_replaced_by_the_screen(space, encode):
    picture = images(space.shape, 1)[0]
    if encode(picture).dtype.itemsize == 1:
        picture = np.where(picture > 127, 255, 0).astype(np.uint8)
    env = PixelObservation(Slides(space, [encode(picture)], render_mode="rgb_array"), size=20, frames=1)
    expected = slides(space.shape, 1)
    expected.slides = [picture]
    np.testing.assert_array_equal(env.reset()[0], PixelObservation(expected, size=20, frames=1).reset()[0])


def test_atari_scaled_without_a_channel_axis():
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    seen = []
    for scale in (False, True):
        env = gym.make("ALE/Pong-v5", frameskip=1, render_mode="rgb_array")
        env = gym.wrappers.AtariPreprocessing(env, scale_obs=scale)
        seen.append(PixelObservation(env, size=84, frames=1).reset(seed=0)[0])
    np.testing.assert_array_equal(*seen)


def test_what_only_has_the_shape_of_a_picture_is_said_to_be_replaced_by_the_screen():
    space = spaces.Box(-3, 7, (20, 20), np.float32)
    with pytest.warns(UserWarning, match=r"shape of pictures, but not the bounds.*render\(\) instead"):
        PixelObservation(Slides(space, [np.zeros((20, 20), np.float32)], render_mode="rgb_array"))


def test_values_outside_their_space_are_named():
    bright = np.full((16, 16, 3), 200.0, np.float32)
    with pytest.raises(ValueError, match=r"values from 200 to 200, outside \[0, 1\].*correct the bounds"):
        PixelObservation(Slides(spaces.Box(0, 1, bright.shape), [bright])).reset()


def test_codes_on_a_small_grid_are_warned_of():
    with pytest.warns(UserWarning, match=r"\(7, 7, 3\): less than 16.*AddRenderObservation.*key="):
        PixelObservation(slides((7, 7, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PixelObservation(slides((16, 16, 3)))


class Renders(gym.Env):
    """Renders given pictures one after the other."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def __init__(self, pictures):
        self.pictures, self.render_mode, self.t = pictures, "rgb_array", 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 0.0, False, False, {}

    def render(self):
        return self.pictures[self.t]


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1 / 255, np.float32), (1 / 255, np.float64), (1.0, np.float64), (1, np.int64)]
)
def test_rendered_floats_and_integers_become_bytes(scale, dtype):
    pictures = [np.zeros((16, 16, 3), np.uint8), *images((16, 16, 3), 2)]  # begins black
    env = PixelObservation(Renders([(p * scale).astype(dtype) for p in pictures]), size=16, frames=1)
    seen = [env.reset()[0], env.step(0)[0], env.step(0)[0]]
    np.testing.assert_array_equal(seen, [p.transpose(2, 0, 1) for p in pictures])


def test_rendered_floats_that_change_their_scale_are_named():
    bright = np.full((16, 16, 3), 200.0)
    env = PixelObservation(Renders([bright / 255, bright]), size=16, frames=1)
    env.reset()
    with pytest.raises(ValueError, match=r"render\(\) holds values from 200 to 200, outside \[0, 1\]"):
        env.step(0)


# --- episodes that begin by themselves ---


class Counts(gym.Env):
    """Shows 10 * episode + step; episodes of two steps; rewards are arrays of one, as some environments give them."""

    observation_space, action_space = spaces.Box(0, 255, (16, 16, 1), np.uint8), spaces.Discrete(2)
    episode = -1

    def reset(self, *, seed=None, options=None):
        self.episode, self.t = self.episode + 1, 0
        return self._see(), {}

    def step(self, action):
        self.t += 1
        return self._see(), np.array([1.5]), self.t == 2, False, {}

    def _see(self):
        return np.full((16, 16, 1), 10 * self.episode + self.t, np.uint8)


def test_autoreset_begins_a_new_stack():
    env = PixelObservation(gym.wrappers.Autoreset(Counts()), size=16, frames=2)
    seen = [env.reset()[0]] + [env.step(0)[0] for _ in range(4)]
    assert [s[:, 0, 0].tolist() for s in seen] == [[0, 0], [0, 1], [1, 2], [10, 10], [10, 11]]


def test_autoreset_is_not_repeated():
    env = ActionRepeat(PixelObservation(gym.wrappers.Autoreset(Counts()), size=16, frames=1), 3)
    assert env.reset()[0][0, 0, 0] == 0
    first, reward, terminated, _, _ = env.step(0)
    assert first[0, 0, 0] == 2 and reward == 3.0 and terminated
    begun, _, terminated, _, _ = env.step(0)
    assert begun[0, 0, 0] == 10 and not terminated
    env.step(0)
    env.reset()
    assert env.step(0)[1] == 3.0


@pytest.mark.parametrize("wrapper", [lambda e: ActionRepeat(e, 1), lambda e: PixelObservation(e, size=16)])
def test_rewards_that_are_arrays_of_one_become_numbers(wrapper):
    env = wrapper(Counts())
    env.reset()
    reward = env.step(0)[1]
    assert reward == 1.5 and np.ndim(reward) == 0
    check_env_sb3(wrapper(Counts()))


def test_rewards_that_are_several_numbers_are_named():
    class Several(Counts):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, np.array([1.0, 2.0]), *rest

    for env in (ActionRepeat(Several(), 2), PixelObservation(Several(), size=16)):
        env.reset()
        with pytest.raises(ValueError, match=r"one number, got an array of shape \(2,\).*TransformReward"):
            env.step(0)
