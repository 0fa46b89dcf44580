"""Collecting: what is stored is what the environment showed, in every autoreset mode."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import DQN, PPO, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from jepa_rl.data import EpisodeStore, WindowSampler
from jepa_rl.envs import PixelObservation, RandomPolicy, SmoothRandomPolicy, TwoRoomsVectorEnv, collect
from jepa_rl.envs.recorder import Recorder
from jepa_rl.spaces import world_spec
from jepa_rl.types import ActionSpec


class Dial(gym.Env):
    """A dial that actions turn; every episode has its own length, half of them end by a time limit.

    The picture (y, x, c) shows the angle, the number of the episode and the step.
    """

    def __init__(self, discrete=False, start=0, dictionary=False, broken_at=None):
        picture = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
        angle = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        spaces = gym.spaces.Dict({"camera": picture, "angle": angle})
        self.observation_space = spaces if dictionary else picture
        self.action_space = gym.spaces.Discrete(3, start=start) if discrete else gym.spaces.Box(-1, 2, (1,))
        self.dictionary, self.broken_at, self.episodes, self.total = dictionary, broken_at, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(2, 9))
        self.angle, self.step_number = float(self.np_random.random()), 0
        self.episodes += 1
        return self.show()

    def step(self, action):
        self.step_number += 1
        self.total += 1
        self.angle += float(np.sum(action))
        over = self.step_number >= self.length
        timed_out = over and self.episodes % 2 == 0
        reward = np.nan if self.total == self.broken_at else self.angle
        observation, info = self.show()
        return observation, reward, over and not timed_out, timed_out, info

    def show(self):
        values = [round(self.angle * 40), self.episodes, self.step_number]
        picture = np.broadcast_to(np.array(values) % 256, (16, 16, 3)).astype(np.uint8)
        angle = np.array([self.angle], np.float32)
        info = {"angle64": self.angle, "place": np.array([self.angle, self.step_number]), "word": "a"}
        return ({"camera": picture, "angle": angle} if self.dictionary else picture), info


def dials(n=3, mode=AutoresetMode.NEXT_STEP, frames=1, wrapper=None, **options):
    wrapper = wrapper or {"size": 16, "frames": frames}
    make = [lambda: PixelObservation(Dial(**options), **wrapper) for _ in range(n)]
    return SyncVectorEnv(make, autoreset_mode=mode)


def by_what_is_seen(observations, rng):
    """A policy that depends on nothing but the observation."""
    return observations[:, -3:].mean((1, 2, 3))[:, None] % 3 - 1


def episodes_of(store):
    return [store.episode(i) for i in range(len(store))]


def test_what_is_stored_is_what_was_seen(tmp_path):
    """Single frames are stored; stacked again by the sampler they are the observations the policy saw."""
    seen, done = [], []

    def watching(observations, rng):
        seen.append(observations[0].copy())
        done.append(rng.uniform(-1, 2, (1, 1)).astype(np.float32))
        return done[-1]

    store = collect(dials(1, frames=3), tmp_path, policy=watching, episodes=5, seed=5, progress=False)
    assert store.spec.frames == 3 and store.layout.frame_shape == (3, 16, 16)
    first = 0
    for i, episode in enumerate(episodes_of(store)):
        last = first + len(episode)  # with NEXT_STEP autoreset the policy is shown the last state as well
        batch = WindowSampler(store.view([i]), steps=len(episode)).batch(np.array([0]))
        stacked = batch.pixels[0].numpy()
        np.testing.assert_array_equal(stacked[: len(seen) - first], seen[first : last + 1])
        np.testing.assert_array_equal(episode.actions, np.concatenate(done[first:last]))
        first = last + 1
    assert first >= len(seen)  # nothing was left out


@pytest.mark.parametrize("dictionary", [False, True])
def test_all_autoreset_modes_store_the_same_episodes(tmp_path, dictionary):
    wrapper = {"size": 16, "frames": 2, **({"key": "camera", "keep_state": True} if dictionary else {})}
    extras = ["angle64", "place"] + (["state"] if dictionary else [])
    stored = []
    for mode in AutoresetMode:
        policy = (lambda o, rng: by_what_is_seen(o["pixels"], rng)) if dictionary else by_what_is_seen
        env = dials(3, mode, wrapper=wrapper, dictionary=dictionary)
        store = collect(
            env, tmp_path / mode.value, policy=policy, episodes=30, seed=1, extras=extras, progress=False
        )
        assert len(store) == 30
        ends = episodes_of(store)
        stored.append({e.frames.tobytes(): e for e in ends})
        for e in ends:
            np.testing.assert_allclose(e.extras["place"][:, 0], e.extras["angle64"])
            np.testing.assert_array_equal(e.extras["place"][:, 1], np.arange(len(e) + 1))
            np.testing.assert_array_equal(e.frames[:, 2, 0, 0], np.arange(len(e) + 1))
            np.testing.assert_allclose(e.rewards, e.extras["angle64"][1:], rtol=1e-6)
            assert e.terminated != e.truncated
            if dictionary:
                np.testing.assert_allclose(e.extras["state"][:, 0], e.extras["angle64"], rtol=1e-6)
    common = set.intersection(*(set(episodes) for episodes in stored))
    assert len(common) == 30
    for key in common:
        for other in stored[1:]:
            np.testing.assert_array_equal(stored[0][key].actions, other[key].actions)
            np.testing.assert_array_equal(stored[0][key].rewards, other[key].rewards)
            assert stored[0][key].terminated == other[key].terminated


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_two_rooms_stores_positions_beside_frames(tmp_path, mode):
    env = TwoRoomsVectorEnv(4, max_episode_steps=10, autoreset_mode=mode)
    store = collect(env, tmp_path, steps=100, seed=0, extras=("position", "door"), progress=False)
    assert 100 <= store.num_steps < 104
    for episode in episodes_of(store):
        moved = np.abs(np.diff(episode.extras["position"], axis=0)).max()
        assert moved < 20  # a step, never a jump into the next episode
        assert (episode.extras["door"] == episode.extras["door"][0]).all()
        for frame, position in zip(episode.frames, episode.extras["position"], strict=True):
            rows, columns = np.nonzero(frame[0] > frame[0].max() / 2)
            assert np.hypot(columns.mean() - position[0], rows.mean() - position[1]) < 3


@pytest.mark.parametrize(
    "policy",
    ["random", by_what_is_seen, SmoothRandomPolicy(ActionSpec("continuous", 1, (-1.0,), (2.0,)), 2)],
    ids=["random", "function", "smooth"],
)
def test_equal_seeds_give_equal_data(tmp_path, policy):
    def run(name, seed):
        return episodes_of(
            collect(dials(2), tmp_path / name, policy=policy, steps=60, seed=seed, progress=False)
        )

    one, two, three = run("a", 3), run("b", 3), run("c", 4)
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.actions, b.actions)
    assert any(not np.array_equal(a.actions, b.actions) for a, b in zip(one, three, strict=False))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_step_is_stored_once_wherever_the_recording_stops(tmp_path, mode):
    for steps in range(1, 25):
        env = dials(3, mode)
        store = collect(env, tmp_path / str(steps), steps=steps, seed=0, progress=False)
        assert steps <= store.num_steps < steps + 3
        episodes = episodes_of(store)
        assert len({episode.frames.tobytes() for episode in episodes}) == len(episodes)
        assert sum(e.env.total for e in env.envs) == store.num_steps
        assert all(episode.terminated != episode.truncated for episode in episodes)


def test_collecting_again_adds_to_the_folder(tmp_path):
    first = collect(dials(2), tmp_path, episodes=3, progress=False)
    second = collect(dials(2), tmp_path, episodes=2, progress=False)
    first.refresh()
    assert len(first) == len(second) == 5


def test_an_extra_that_changes_its_dtype_is_named(tmp_path):
    class Changing(Dial):
        def show(self):
            return super().show()[0], {"odd": 1 if self.step_number == 0 else 0.5}

    with pytest.raises(TypeError, match="odd had dtype int64 at reset and now has float64"):
        env = PixelObservation(Changing(), size=16, frames=1)
        collect(env, tmp_path, episodes=1, extras=["odd"], progress=False)


def test_random_choices_start_where_the_space_does(tmp_path):
    store = collect(dials(2, discrete=True, start=-1), tmp_path, steps=60, seed=0, progress=False)
    assert set(np.concatenate([episode.actions for episode in episodes_of(store)])) == {-1, 0, 1}


def test_a_single_environment_stays_open(tmp_path):
    env = PixelObservation(Dial(), size=16, frames=1)
    store = collect(env, tmp_path, episodes=3, seed=0, progress=False)
    assert len(store) == 3 and store.lengths.min() >= 2
    env.reset()
    collect(env, store, episodes=2, progress=False)
    assert len(store) == 5


@pytest.mark.parametrize(("algorithm", "discrete"), [(PPO, False), (PPO, True), (DQN, True)])
def test_stable_baselines_models_are_policies(tmp_path, algorithm, discrete):
    env = dials(2, discrete=discrete)
    model = algorithm("MlpPolicy", PixelObservation(Dial(discrete=discrete), size=16, frames=1), seed=0)
    store = collect(env, tmp_path, policy=model, steps=40, seed=0, progress=False)
    assert store.num_steps >= 40
    actions = np.concatenate([episode.actions for episode in episodes_of(store)])
    assert actions.dtype == (np.int64 if discrete else np.float32)
    assert (actions >= (0 if discrete else -1)).all() and (actions <= 2).all()


class Strict(Dial):
    """Takes only actions that its space contains, in bounds that float32 does not hold."""

    def __init__(self, dtype):
        super().__init__()
        self.action_space = gym.spaces.Box(np.array([-0.1], dtype), np.array([0.1], dtype), dtype=dtype)

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(action)


@pytest.mark.parametrize("policy", ["random", lambda o, rng: rng.choice([-1.0, 0.0, 1.0], (1, 1))])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_environment_is_given_no_action_outside_its_space(tmp_path, dtype, policy):
    env = PixelObservation(Strict(dtype), size=16, frames=1)
    store = collect(env, tmp_path, policy=policy, steps=50, seed=0, progress=False)
    assert store.spec.action.dtype == np.dtype(dtype).name
    assert EpisodeStore.open(tmp_path).spec.action.dtype == np.dtype(dtype).name


class Counting:
    """A policy with memory: its action is how many steps its episode has gone through."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        state = np.zeros(len(observation)) if state is None else state
        state = np.where(episode_start, 0, state + 1)
        return (state / 10)[:, None].astype(np.float32), state


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_memory_of_a_policy_starts_over_with_each_episode(tmp_path, mode):
    store = collect(dials(3, mode), tmp_path, policy=Counting(), episodes=12, seed=0, progress=False)
    for episode in episodes_of(store):
        np.testing.assert_allclose(episode.actions[:, 0], np.arange(len(episode)) / 10, rtol=1e-6)


class Selective(Counting):
    """Needs nothing of the environments that have played their share."""

    def __init__(self):
        self.asked = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.asked.append(len(observation))
        return super().predict(observation, state, episode_start, deterministic)

    def select_state(self, state, rows):
        return None if state is None else state[rows]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("policy", [by_what_is_seen, Counting(), Selective()])
def test_every_environment_plays_its_share_of_the_episodes(tmp_path, mode, policy):
    """The first to finish would be the short ones."""
    together = collect(dials(3, mode), tmp_path / "all", policy=policy, episodes=8, seed=5, progress=False)
    alone = []
    for i, share in enumerate((3, 3, 2)):
        path = tmp_path / str(i)
        store = collect(dials(1, mode), path, policy=policy, episodes=share, seed=5 + i, progress=False)
        alone += [(e.frames.tobytes(), e.actions.tobytes()) for e in episodes_of(store)]
    assert sorted((e.frames.tobytes(), e.actions.tobytes()) for e in episodes_of(together)) == sorted(alone)


def test_environments_that_have_played_their_share_cost_no_planning(tmp_path):
    policy = Selective()
    store = collect(dials(4), tmp_path, policy=policy, episodes=3, seed=0, progress=False)
    assert len(store) == 3
    lengths = sorted(
        store.lengths
    )  # one for each of the first three environments, the fourth has none to play
    assert policy.asked == [sum(t < length for length in lengths) for t in range(lengths[-1])]


def test_an_agent_is_shown_what_it_was_trained_on(tmp_path):
    def pixels():
        return PixelObservation(Dial(), size=16, frames=1)

    venv = VecNormalize(DummyVecEnv([pixels]))
    model = TD3("MlpPolicy", venv, buffer_size=10, seed=0)
    venv.reset()
    for _ in range(20):
        venv.step(np.zeros((1, 1), np.float32))
    store = collect(dials(2), tmp_path, policy=model, episodes=4, seed=0, progress=False)
    for episode in episodes_of(store):
        seen = venv.normalize_obs(episode.frames[:-1])
        np.testing.assert_allclose(episode.actions, model.predict(seen)[0], atol=1e-5)
        assert episode.frames.max() > 20  # what is stored is not normalised


class PaysArrays(Dial):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward]), *rest


class PaysColumns(TwoRoomsVectorEnv):
    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, rewards[:, None] + 2.0, *rest


def test_rewards_may_be_arrays_of_one_element(tmp_path):
    env = PixelObservation(PaysArrays(), size=16, frames=1)
    store = collect(env, tmp_path / "one", episodes=2, seed=0, extras=["angle64"], progress=False)
    for episode in episodes_of(store):
        np.testing.assert_allclose(episode.rewards, episode.extras["angle64"][1:], rtol=1e-6)
    store = collect(
        PaysColumns(3, max_episode_steps=5), tmp_path / "many", episodes=3, seed=0, progress=False
    )
    assert all((episode.rewards >= 2.0).all() for episode in episodes_of(store))


def test_rewards_of_another_shape_are_refused(tmp_path):
    class PaysTwo(TwoRoomsVectorEnv):
        def step(self, actions):
            observations, rewards, *rest = super().step(actions)
            return observations, np.stack([rewards, rewards], axis=1), *rest

    with pytest.raises(ValueError, match=r"one reward for each of 3 environments, got shape \(3, 2\)"):
        collect(PaysTwo(3, max_episode_steps=5), tmp_path, episodes=3, progress=False)


def test_a_last_picture_that_is_lost_is_named(tmp_path):
    class Forgetful(gym.vector.VectorWrapper):
        def step(self, actions):
            *rest, infos = super().step(actions)
            return *rest, {key: value for key, value in infos.items() if "final" not in key}

    with pytest.raises(ValueError, match=r"SAME_STEP autoreset needs infos\['final_obs'\]"):
        collect(Forgetful(dials(2, AutoresetMode.SAME_STEP)), tmp_path, episodes=2, seed=0, progress=False)


def test_seeds_may_be_numpy_numbers(tmp_path):
    one, other = (
        collect(dials(2), tmp_path / str(i), episodes=2, seed=seed, progress=False)
        for i, seed in enumerate((3, np.int64(3)))
    )
    np.testing.assert_array_equal(one.column("frames"), other.column("frames"))


def test_an_interruption_keeps_the_episodes_that_ended(tmp_path):
    def until_interrupted(observations, rng, calls=iter(range(30))):  # noqa: B008
        if next(calls) == 25:
            raise KeyboardInterrupt
        return np.zeros((2, 1))

    with pytest.raises(KeyboardInterrupt):
        collect(dials(2), tmp_path, policy=until_interrupted, episodes=1000, seed=0, progress=False)
    store = EpisodeStore.open(tmp_path)
    assert len(store) >= 4
    assert all(episode.terminated != episode.truncated for episode in episodes_of(store))


def test_a_nan_reward_stops_with_the_earlier_episodes_intact(tmp_path):
    with pytest.raises(ValueError, match=r"reward is NaN or infinite in environment\(s\) \["):
        collect(dials(2, broken_at=20), tmp_path, steps=1000, seed=0, progress=False)
    store = EpisodeStore.open(tmp_path)
    assert len(store) >= 2
    assert np.isfinite(np.concatenate([e.rewards for e in episodes_of(store)])).all()


def test_the_recorder_takes_rewards_as_columns_and_nothing_wider():
    """Some vector environments give rewards of shape (n, 1); rewards that it refuses change nothing."""
    rows = {"frames": np.zeros((2, 3, 4, 4), np.uint8)}
    recorder = Recorder(rows, ActionSpec("continuous", 1, (-1.0,), (1.0,)))
    both, actions = np.ones(2, bool), np.zeros((2, 1))
    recorder.step(both, actions, np.array([[1.0], [2.0]]), rows)
    for wrong in (np.zeros((2, 2)), np.zeros(1), np.zeros((1, 2)), np.float64(0)):
        with pytest.raises(ValueError, match="expected one reward for each of 2 environments, got shape"):
            recorder.step(both, actions, wrong, rows)
    recorder.step(both, actions, np.array([3.0, 4.0]), rows)
    assert [recorder.episode(i, True, False).rewards.tolist() for i in (0, 1)] == [[1.0, 3.0], [2.0, 4.0]]


def test_mistakes_are_named_before_anything_is_stored(tmp_path):
    path = tmp_path / "s"

    def attempt(error, match, env=None, **options):
        with pytest.raises(error, match=match):
            collect(env or dials(), path, progress=False, **({"episodes": 2, "seed": 0} | options))
        assert not path.exists() or len(EpisodeStore.open(path)) == 0

    attempt(ValueError, "either episodes or steps", steps=3)
    attempt(ValueError, "either episodes or steps", episodes=None)
    attempt(ValueError, "at least 1, got 0", episodes=0)
    attempt(TypeError, "policy must be 'random'", policy="smooth")
    attempt(TypeError, "expected a gymnasium", env=object())
    attempt(ValueError, "PixelObservation", env=gym.make("CartPole-v1"))
    attempt(ValueError, r"no entry 'speed' to store; it has \['angle64'", extras=["speed"])
    attempt(TypeError, "'word' must be numbers", extras=["word"])
    attempt(ValueError, r"shape \(3, 1\), got \(3, 2\)", policy=lambda o, rng: np.zeros((3, 2)))
    attempt(ValueError, "NaN", policy=lambda o, rng: np.full((3, 1), np.nan))
    other = EpisodeStore.create(tmp_path / "other", (1, 8, 8), ActionSpec("discrete", 2))
    with pytest.raises(ValueError, match="holds a store with"):
        collect(dials(), other, episodes=1, progress=False)


class TwoDials(Dial):
    """Two choices at once: how far to turn, in 2 and in 3 options."""

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.MultiDiscrete([2, 3], start=[0, 5])

    def step(self, action):
        assert self.action_space.contains(np.asarray(action))
        return super().step(action)


@pytest.mark.parametrize("kind", ["random", "smooth", "agent"])
def test_several_choices_at_once(tmp_path, kind):
    """MultiDiscrete actions are stored as they were taken, and read as one-hot codes side by side."""
    env = SyncVectorEnv([lambda: PixelObservation(TwoDials(), size=16, frames=1) for _ in range(2)])
    action = world_spec(env).action
    agent = SimpleNamespace(
        predict=lambda seen, **_: (action.decode(seen.mean((2, 3))[:, [0, 1, 2, 0, 1]]), None)
    )
    policies = {"random": "random", "smooth": SmoothRandomPolicy(action, 2), "agent": agent}
    collect(env, tmp_path, policy=policies[kind], episodes=12, seed=0, progress=False)
    store = EpisodeStore.open(tmp_path)
    actions = np.concatenate([episode.actions for episode in episodes_of(store)])
    assert actions.dtype == np.int64 and set(map(tuple, actions)) <= {
        (i, j) for i in (0, 1) for j in (5, 6, 7)
    }
    assert kind == "agent" or len(set(map(tuple, actions))) == 6
    for episode in episodes_of(store):  # the reward is the angle, which an action turns by its sum
        np.testing.assert_allclose(np.diff(episode.rewards), episode.actions[1:].sum(1), atol=1e-4)
    codes = WindowSampler(store, steps=1).batch(np.arange(2)).actions[:, 0].numpy()
    assert codes.shape == (2, 5) and (codes.sum(1) == 2).all()
    np.testing.assert_array_equal(action.decode(codes), actions[:2])


def test_smooth_actions_are_correlated_as_promised():
    rng = np.random.default_rng(0)
    policy = SmoothRandomPolicy(ActionSpec("continuous", 1, (-2.0,), (2.0,)), 2000, time_constant=5, std=0.2)
    actions = np.stack([policy(None, rng) for _ in range(30)])[..., 0] / 2.0
    assert abs(actions.std() - 0.2) < 0.01
    for lag in (1, 5, 10):
        correlation = np.mean(actions[lag:] * actions[:-lag]) / actions.var()
        assert abs(correlation - np.exp(-lag / 5)) < 0.03
    choices = SmoothRandomPolicy(ActionSpec("discrete", 4, start=2), 2000, time_constant=5)
    picked = np.stack([choices(None, rng) for _ in range(30)])
    assert set(np.unique(picked)) == {2, 3, 4, 5}
    same = np.exp(-1 / 5) + (1 - np.exp(-1 / 5)) / 4
    assert abs((picked[1:] == picked[:-1]).mean() - same) < 0.02


def test_random_actions_fill_the_space():
    actions = RandomPolicy(ActionSpec("continuous", 2, (0.0, -4.0), (1.0, 4.0)), 5000)(
        None, np.random.default_rng(0)
    )
    assert actions.shape == (5000, 2) and actions.dtype == np.float32
    np.testing.assert_allclose(actions.mean(0), [0.5, 0.0], atol=0.1)
    np.testing.assert_allclose(actions.min(0), [0.0, -4.0], atol=0.01)


class Buffered(gym.Env):
    """Writes 10 * episode + step into one array; episodes of two steps."""

    observation_space = gym.spaces.Box(0, 255, (1, 8, 8), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.buffer, self.episode = np.zeros((1, 8, 8), np.uint8), -1

    def reset(self, *, seed=None, options=None):
        self.episode, self.t = self.episode + 1, 0
        self.buffer[:] = 10 * self.episode
        return self.buffer, {}

    def step(self, action):
        self.t += 1
        self.buffer += 1
        return self.buffer, 0.0, self.t == 2, False, {}


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_last_picture_of_an_episode_survives_a_reused_array(tmp_path, mode):
    venv = SyncVectorEnv([Buffered], autoreset_mode=mode)
    store = collect(venv, tmp_path / "store", episodes=2, progress=False)
    assert [episode.frames[:, 0, 0, 0].tolist() for episode in episodes_of(store)] == [
        [0, 1, 2],
        [10, 11, 12],
    ]
