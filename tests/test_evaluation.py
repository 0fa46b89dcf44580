"""Evaluation callbacks, and off-policy agents on a world model that learns beside them."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_rl import WorldModel, WorldModelConfig
from jepa_rl.agents.evaluation import EvaluationCallback, play_episodes
from jepa_rl.agents.sb3.online import (
    LatentFeatures,
    LatentReplayBuffer,
    OnlineWorldModel,
    latent_policy_kwargs,
    world_of,
)
from jepa_rl.envs import world_spec


class Counter(gym.Env):
    """Episodes as long as the seed says; each step pays 1 and shows how many were taken."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(-1, 100, (2,), np.float32)
    action_space = spaces.Discrete(3)
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, 3 + (seed or 0) % 5
        return np.array([self.t, self.length], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.t, self.length], np.float32), 1.0, self.t >= self.length, False, {}

    def render(self):
        return np.full((20, 40, 3), 10 * self.t, np.uint8)


class Asked:
    """Remembers what ``predict`` was given."""

    def __init__(self):
        self.calls = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.calls.append((observation.copy(), state, episode_start.copy(), deterministic))
        return np.zeros(len(observation), np.int64), ("state", len(self.calls))


def test_episodes_are_played_side_by_side_to_their_end():
    agent = Asked()
    played = play_episodes(agent, Counter, [0, 1, 2], pictures=True)
    assert played.returns.tolist() == played.lengths.tolist() == [3, 4, 5]
    assert len(agent.calls) == 5
    assert [p[0, 0, 0] for p in played.pictures] == [10, 20, 30]
    for number, (observation, state, starts, deterministic) in enumerate(agent.calls):
        assert observation.shape == (3, 2)
        assert deterministic
        assert state == (None if number == 0 else ("state", number))
        assert starts.all() == (number == 0) and starts.any() == (number == 0)


class Choosy(Asked):
    """Says which of its environments it still acts for."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        state = np.arange(len(observation)) if state is None else state
        self.calls.append((observation[:, 0].tolist(), state.tolist(), episode_start.tolist()))
        return np.zeros(len(observation), np.int64), state

    def select_state(self, state, rows):
        return state[rows]


def test_nothing_is_planned_for_episodes_that_are_over():
    agent = Choosy()
    played = play_episodes(agent, Counter, [2, 0, 1])  # 5, 3 and 4 steps
    assert played.lengths.tolist() == [5, 3, 4]
    assert [call[1] for call in agent.calls] == [[0, 1, 2]] * 3 + [[0, 2], [0]]
    assert all(steps == [number] * len(rows) for number, (steps, rows, _) in enumerate(agent.calls))
    assert agent.calls[0][2] == [True] * 3 and not any(any(call[2]) for call in agent.calls[1:])


def test_an_agent_with_a_memory_of_its_own_is_asked_for_all():
    class Stateful(Asked):
        def select_state(self, state, rows):
            raise NotImplementedError

    agent = Stateful()
    assert play_episodes(agent, Counter, [2, 0, 1]).lengths.tolist() == [5, 3, 4]
    assert [len(call[0]) for call in agent.calls] == [3] * 5


def test_an_agent_that_answers_for_too_few_is_named():
    class Single:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.zeros(1, np.int64), None

    with pytest.raises(ValueError, match=r"one action for each of 2 environments, got shape \(1,\)"):
        play_episodes(Single(), Counter, [0, 1])


class Arrays(Counter):
    """Pays arrays of one element, and draws into the same buffer every time."""

    def __init__(self):
        self.buffer = np.zeros((20, 40, 3), np.uint8)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward], np.float32), *rest

    def render(self):
        self.buffer[:] = 10 * self.t
        return self.buffer


def test_a_render_buffer_that_is_reused_gives_different_frames():
    played = play_episodes(Asked(), Arrays, [0], pictures=True)
    assert [picture[0, 0, 0] for picture in played.pictures] == [10, 20, 30]


def test_rewards_may_be_arrays_of_one_element():
    played = play_episodes(Asked(), Arrays, [0, 1])
    assert played.returns.tolist() == [3, 4]

    class Two(Counter):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, np.ones(2), *rest

    with pytest.raises(ValueError, match=r"must be one number, got an array of shape \(2,\)"):
        play_episodes(Asked(), Two, [0])


class Shifted(gym.Env):
    """Pays the action that is the sign of what is seen; everything lies around 1,000."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._see(), {}

    def step(self, action):
        reward, self.t = float(action[0] * np.sign(self.seen - 1000)), self.t + 1
        return self._see(), reward, False, self.t >= 10, {}

    def _see(self):
        self.seen = 1000 + self.np_random.choice([-5.0, 5.0])
        return np.array([self.seen], np.float32)


def test_an_agent_sees_what_it_was_trained_on():
    """The right value is Stable-Baselines3's own evaluation, in the normalised environment."""
    venv = VecNormalize(make_vec_env(Shifted, 4, seed=0), norm_reward=False)
    model = PPO("MlpPolicy", venv, n_steps=64, seed=0, learning_rate=3e-3).learn(3000)
    held_out = VecNormalize(make_vec_env(Shifted, 1, seed=100), training=False, norm_reward=False)
    held_out.obs_rms = venv.obs_rms
    expected, _ = evaluate_policy(model, held_out, n_eval_episodes=5)
    count = venv.obs_rms.count
    played = play_episodes(model, Shifted, list(range(100, 105)))
    assert expected > 8
    np.testing.assert_allclose(played.returns.mean(), expected, atol=1.0)
    assert venv.obs_rms.count == count  # an evaluation teaches the normalisation nothing


def test_a_video_holds_no_more_than_the_first_decisions(monkeypatch):
    monkeypatch.setattr("jepa_rl.agents.evaluation.FILMED", 2)
    played = play_episodes(Asked(), Counter, [0], pictures=True)
    assert played.lengths.tolist() == [3] and [p[0, 0, 0] for p in played.pictures] == [10, 20]


def test_evaluations_are_logged_and_go_on_after_a_stop(tmp_path):
    path = tmp_path / "curve.json"

    def callback():
        return EvaluationCallback(Counter, every=8, episodes=3, seed=10, path=path, video=True)

    model = PPO("MlpPolicy", Counter(), n_steps=4, batch_size=4, n_epochs=1, tensorboard_log=str(tmp_path))
    model.learn(20, callback=callback())
    curve = json.loads(path.read_text())
    assert [entry["step"] for entry in curve] == [0, 8, 16]
    assert curve[0]["returns"] == [3, 4, 5]
    events = EventAccumulator(str(tmp_path / "PPO_1")).Reload()
    assert [e.step for e in events.Scalars("eval/mean_reward")] == [0, 8, 16]
    assert events.Scalars("eval/mean_ep_length")[0].value == 4
    (first, *_) = events.Images("eval/episode")
    assert first.encoded_image_string[:4] == b"GIF8"

    model.num_timesteps = 9  # as if it had been killed there: later entries are played again
    again = callback()
    model.learn(8, callback=again, reset_num_timesteps=False)
    assert [entry["step"] for entry in again.results] == [0, 8, 16]
    assert again.results[-1]["seconds"] >= curve[1]["seconds"]


def test_a_run_that_starts_anew_replaces_the_curve_of_the_one_before(tmp_path):
    path = tmp_path / "curve.json"
    path.write_text(json.dumps([{"step": 0, "returns": [-1.0], "lengths": [1], "seconds": 1e6}]))
    callback = EvaluationCallback(Counter, every=8, episodes=3, seed=10, path=path)
    PPO("MlpPolicy", Counter(), n_steps=4, batch_size=4, n_epochs=1).learn(8, callback=callback)
    curve = json.loads(path.read_text())
    assert [entry["returns"] for entry in curve] == [[3, 4, 5]] * 2 and curve[-1]["seconds"] < 1e5


def test_an_evaluation_needs_numbers_that_make_sense():
    with pytest.raises(ValueError, match="every and episodes must be at least 1"):
        EvaluationCallback(Counter, every=0)


class Glow(gym.Env):
    """16 x 16 pixels whose brightness the action moves."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (3, 16, 16), np.uint8)

    def __init__(self, discrete=False):
        self.discrete = discrete
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.level, self.t = self.np_random.uniform(50, 200), 0
        return np.full((3, 16, 16), self.level, np.uint8), {}

    def step(self, action):
        move = float(action) - 1 if self.discrete else float(action[0])
        self.level, self.t = float(np.clip(self.level + 20 * move, 0, 255)), self.t + 1
        return np.full((3, 16, 16), self.level, np.uint8), self.level / 255, False, self.t >= 10, {}


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_the_world_model_learns_beside_the_agent_and_only_from_its_own_loss(algorithm):
    env = Glow(discrete=algorithm is DQN)
    torch.manual_seed(0)
    objective = {"sigreg": 0.5, "inverse_dynamics": 1.0}
    world = WorldModel(
        WorldModelConfig(world_spec(env), 8, objective_options=objective, dynamics_options={"width": 16})
    )
    agent = algorithm(
        "CnnPolicy", env, learning_starts=20, batch_size=16, buffer_size=200, seed=0,
        policy_kwargs=latent_policy_kwargs(world, net_arch=[16]),
    )  # fmt: skip
    before = {name: value.clone() for name, value in world.state_dict().items()}
    agent.learn(40)  # without the callback nothing may move it
    assert all(torch.equal(before[name], value) for name, value in world.state_dict().items())
    known = {id(p) for p in agent.policy.parameters()}
    assert not any(id(p) in known for p in world.parameters())

    pixels, _ = env.reset(seed=1)
    features = (
        agent.policy.actor.features_extractor if algorithm is SAC else agent.policy.q_net.features_extractor
    )
    assert isinstance(features, LatentFeatures)
    stack = torch.from_numpy(pixels[None])
    torch.testing.assert_close(features(stack.float()), world.eval().encode(stack))

    errors = []

    def watch(locals_, globals_):
        value = agent.logger.name_to_value.get("jepa/prediction")
        if value is not None:
            errors.append(value)
        return True

    online = OnlineWorldModel(world, batch_size=32)
    agent.learn(150, callback=[online, ConvertCallback(watch)], reset_num_timesteps=False)
    assert not torch.equal(before["encoder.project.weight"], world.encoder.project.weight)
    assert np.mean(errors[-20:]) < 0.7 * np.mean(errors[:5])
    torch.testing.assert_close(features(stack.float()), world.eval().encode(stack))  # the newest weights


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_a_replay_that_encodes_once_teaches_the_agent_the_same(algorithm):
    learned = []
    for replay in (ReplayBuffer, LatentReplayBuffer):
        env = Glow(discrete=algorithm is DQN)
        torch.manual_seed(0)
        world = WorldModel(WorldModelConfig(world_spec(env), 8, dynamics_options={"width": 16}))
        agent = algorithm(
            "CnnPolicy", env, learning_starts=20, batch_size=16, buffer_size=40, seed=0, replay_buffer_class=replay,
            train_freq=1, policy_kwargs=latent_policy_kwargs(world, net_arch=[16]),
        )  # fmt: skip
        agent.learn(60, callback=OnlineWorldModel(world, batch_size=8))
        learned.append([*agent.policy.state_dict().values(), *world.state_dict().values()])
    for once, every_time in zip(*learned, strict=True):
        torch.testing.assert_close(once, every_time, rtol=1e-3, atol=1e-4)


def test_an_agent_and_the_world_model_beside_it_go_on_from_their_files(tmp_path):
    env = Glow()
    world = WorldModel(WorldModelConfig(world_spec(env), 8))
    agent = SAC(
        "CnnPolicy", env, learning_starts=5, batch_size=4, buffer_size=40, replay_buffer_class=LatentReplayBuffer,
        policy_kwargs=latent_policy_kwargs(world),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"needs a world model .* callback=OnlineWorldModel"):
        agent.learn(8)
    online = OnlineWorldModel(world, batch_size=4, updates_per_step=0.75)
    agent.learn(9, callback=online)
    agent.save(tmp_path / "agent.zip")
    agent.save_replay_buffer(tmp_path / "replay.pkl")
    torch.save(online.state_dict(), tmp_path / "online.pt")

    loaded = SAC.load(tmp_path / "agent.zip", env)
    loaded.load_replay_buffer(tmp_path / "replay.pkl")
    assert loaded.replay_buffer.world is None and loaded.replay_buffer.size() == agent.replay_buffer.size()
    resumed = OnlineWorldModel(world_of(loaded), batch_size=4, updates_per_step=0.75)
    resumed.load_state_dict(torch.load(tmp_path / "online.pt", weights_only=True))
    learned = []
    for a, callback in ((agent, online), (loaded, resumed)):
        set_random_seed(0)
        a.env.seed(0)
        a._last_obs = a.env.reset()
        a.learn(10, callback=callback, reset_num_timesteps=False)
        learned.append([*world_of(a).state_dict().values(), *a.policy.state_dict().values()])
    assert world_of(loaded) is not world and loaded.replay_buffer.world is world_of(loaded)
    for kept, gone_on in zip(*learned, strict=True):
        torch.testing.assert_close(kept, gone_on)
    assert loaded.replay_buffer.sample(4).observations.shape == (4, world.latent_dim)


def test_world_models_that_do_not_fit_are_refused():
    world = WorldModel(WorldModelConfig(world_spec(Glow(), block=2), 8))
    with pytest.raises(ValueError, match="its block is 2"):
        OnlineWorldModel(world)
    with pytest.raises(ValueError, match=r"reads pixels \(3, 16, 16\), the environment shows \(9, 16, 16\)"):
        LatentFeatures(spaces.Box(0, 255, (9, 16, 16), np.uint8), world)


def test_what_would_teach_the_world_model_something_else_is_refused():
    class Forgetful(DummyVecEnv):
        def step_wait(self):
            *rest, infos = super().step_wait()
            return *rest, [{k: v for k, v in info.items() if k != "terminal_observation"} for info in infos]

    world = WorldModel(WorldModelConfig(world_spec(Glow()), 8))
    settings = dict(
        learning_starts=5, batch_size=4, buffer_size=40, policy_kwargs=latent_policy_kwargs(world)
    )
    agent = SAC("CnnPolicy", Forgetful([Glow]), **settings)
    with pytest.raises(ValueError, match=r"environments \[0\] without info\['terminal_observation'\]"):
        agent.learn(20, callback=OnlineWorldModel(world, batch_size=4))
    with pytest.raises(
        TypeError, match=r"reads uint8 pixels, the environment shows float32; leave out .*VecNormalize"
    ):
        SAC("CnnPolicy", VecNormalize(DummyVecEnv([Glow])), **settings)


def test_a_world_model_that_the_agent_does_not_see_is_not_trained():
    env = Glow()
    world, other = (WorldModel(WorldModelConfig(world_spec(env), 8)) for _ in range(2))
    agent = SAC("CnnPolicy", env, policy_kwargs=latent_policy_kwargs(other), buffer_size=50)
    with pytest.raises(ValueError, match="does not see this world model"):
        agent.learn(5, callback=OnlineWorldModel(world))
    with pytest.raises(TypeError, match="single transitions"):
        PPO("CnnPolicy", env, n_steps=4, batch_size=4, policy_kwargs=latent_policy_kwargs(world)).learn(
            4, callback=OnlineWorldModel(world)
        )
