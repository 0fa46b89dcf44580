"""JEPAMPC: Stable-Baselines3's contract, and tasks whose answer is known."""

import csv
import io
import shutil
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    LogEveryNTimesteps,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv

from jepa_rl.agents.evaluation import play_episodes
from jepa_rl.agents.sb3.jepa_mpc import JEPA_MPC_PRESETS, JEPAMPC, jepa_mpc_preset
from jepa_rl.agents.sb3.jepa_mpc.monitor import PlanRecord, search_metrics
from jepa_rl.agents.sb3.jepa_mpc.policy import JEPAMPCPolicy
from jepa_rl.agents.sb3.jepa_mpc.resume import settings_of
from jepa_rl.control import ControlConfig, ControlModel, ReturnCost, world_config
from jepa_rl.csv_log import read_csv
from jepa_rl.encoders.conv import PatchConv
from jepa_rl.envs import ActionRepeat
from jepa_rl.objectives import random_shift, shifted
from jepa_rl.spaces import action_spec, observed_spec
from jepa_rl.testing import DynamicsContract
from jepa_rl.types import ActionSpec, Plan, WorldSpec
from jepa_rl.world_model import WorldModel, WorldModelConfig


def parts(control=None, **world):
    """Policy arguments of a tiny agent: fields of ``ControlConfig``, and of the world model's configuration."""
    small = {"latent_dim": 32, "dynamics_options": {"width": 48, "depth": 1}}
    return {"world": small | world, "control": ControlConfig(**{"width": 48} | (control or {}))}


TINY = parts()
SMALL_PICTURES = parts(encoder_options={"widths": (16, 16)}, objective_options={"shift": 0})
SEARCH = dict(samples=16, elites=4, iterations=2, proposals=2)


class Goal1D(gym.Env):
    """Move a point on a line to 0: reward is minus the distance; the best action is known."""

    observation_space = spaces.Box(-2, 2, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1.5, 1.5, 1).astype(np.float32), 0
        return self.x.copy(), {}

    def step(self, action):
        self.x = np.clip(self.x + 0.5 * action, -2, 2).astype(np.float32)
        self.t += 1
        return self.x.copy(), -float(abs(self.x[0])), False, self.t >= 10, {}


class Cliff(gym.Env):
    """Two choices: 0 pays 0.2 for ever, 1 pays 1 once and ends the episode. Patience is worth ten times as much."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.array([1, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        over = action == 1
        return np.array([1 - over, over], np.float32), 1.0 if over else 0.2, bool(over), self.t >= 30, {}


class Pictures(gym.Env):
    """Three stacked frames and a vector beside them."""

    metadata = {"frames": 3, "render_modes": []}  # noqa: RUF012
    observation_space = spaces.Dict(
        pixels=spaces.Box(0, 255, (3, 16, 16), np.uint8), state=spaces.Box(-1, 1, (2,), np.float32)
    )
    action_space = spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frames, self.t = [np.zeros((16, 16), np.uint8)] * 3, 0
        return self._see(), {}

    def step(self, action):
        self.t += 1
        self.frames = [*self.frames[1:], np.full((16, 16), self.t, np.uint8)]
        return self._see(), 0.1, False, self.t >= 12, {}

    def _see(self):
        return {"pixels": np.stack(self.frames), "state": np.zeros(2, np.float32)}


def tiny(env, **options) -> JEPAMPC:
    kwargs = TINY | SEARCH | options.pop("policy_kwargs", {})
    settings = (
        dict(seed=0, learning_starts=40, batch_size=16, n_step=3) | options
    )  # short: episodes have ten steps
    return JEPAMPC("MultiInputPolicy", env, policy_kwargs=kwargs, **settings)


class UnlikeLengths(Goal1D):
    """Episodes as long as the seed says."""

    def reset(self, *, seed=None, options=None):
        self.length = 2 + (seed or 0) % 4
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, self.t >= self.length, info


def test_episodes_played_side_by_side_are_those_played_alone():
    """The plan that a search starts from stays with its episode when others beside it end."""
    agent = tiny(UnlikeLengths()).learn(60)  # before it has learned all plans cost the same
    together = play_episodes(agent, UnlikeLengths, [3, 1, 2, 0])
    assert together.lengths.tolist() == [5, 3, 4, 2]
    for i, seed in enumerate([3, 1, 2, 0]):
        alone = play_episodes(agent, UnlikeLengths, [seed])
        np.testing.assert_allclose(alone.returns[0], together.returns[i], rtol=1e-4)
    _, state = agent.predict(np.zeros((3, 1), np.float32))
    np.testing.assert_array_equal(agent.select_state(state, np.array([2, 0]))[0], state[0][[2, 0]])


class Forgetful(DummyVecEnv):
    """Does not say what an episode ended in."""

    def step_wait(self):
        *rest, infos = super().step_wait()
        return *rest, [{k: v for k, v in info.items() if k != "terminal_observation"} for info in infos]


def test_an_episode_whose_last_observation_is_lost_is_refused():
    agent = tiny(Forgetful([Goal1D, Goal1D]))
    with pytest.raises(
        ValueError, match=r"ended in environments \[0, 1\] without info\['terminal_observation'\]"
    ):
        agent.learn(60)
    assert len(agent.replay_buffer) == 0  # and not an episode that ends with the first picture of the next


class Columns(DummyVecEnv):
    """Pays (n, 1) rewards."""

    def step_wait(self):
        observations, rewards, *rest = super().step_wait()
        return observations, rewards[:, None], *rest


def test_rewards_may_be_columns():
    learned = []
    for kind in (DummyVecEnv, Columns):
        venv = kind([Goal1D, Goal1D])
        venv.seed(0)
        learned.append(tiny(venv).learn(60).replay_buffer.columns["reward"])
    np.testing.assert_array_equal(*learned)


def mean_return(agent, make_env, episodes: int) -> float:
    """Over the same episodes in every run of the tests."""
    return float(evaluate_policy(agent, make_vec_env(make_env, 1, seed=1), episodes)[0])


class TestControlModel(DynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        spec = observed_spec(spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32))
        world = WorldModel(world_config(spec, TINY["world"]))
        return ControlModel(world, TINY["control"], 0.9).eval()


def test_the_return_of_a_plan_is_its_discounted_rewards_while_alive_and_the_value_at_its_end():
    model = TestControlModel().make_dynamics()
    model.reward = lambda z, a: torch.full(z.shape[:1], 2.0)
    model.alive = lambda z: torch.full(z.shape[:1], 0.5)
    model.value = lambda z, a: torch.full((2, z.shape[0]), 10.0)
    cost = ReturnCost(model)(torch.zeros(3, 1, 4, 32), torch.zeros(3, 3, 2))
    expected = 2 * (1 + 0.9 * 0.5 + 0.81 * 0.25) + 0.729 * 0.125 * 10
    torch.testing.assert_close(cost, torch.full((3, 1), -expected))
    without = ReturnCost(model, terminal=False)(torch.zeros(3, 1, 4, 32), torch.zeros(3, 3, 2))
    torch.testing.assert_close(without, cost + 0.729 * 0.125 * 10)


def test_shifted_pictures_are_crops_of_the_padded_ones():
    pixels = torch.randint(0, 256, (20, 2, 9, 9), dtype=torch.uint8)
    moved = random_shift(pixels, 2, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pixels.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    for before, after in zip(padded, moved, strict=True):
        crops = [before[:, i : i + 9, j : j + 9] for i in range(5) for j in range(5)]
        assert any(torch.equal(after, crop) for crop in crops)
    assert not torch.equal(moved, pixels)


def test_learns_to_walk_to_the_goal():
    agent = tiny(Goal1D(), gamma=0.9)
    agent.learn(1200)  # after 700 the outcome still hangs on how a processor rounds
    returns = mean_return(agent, Goal1D, 10)
    assert returns > -2.0  # the best are about -0.6, random ones about -9
    action, _ = agent.predict(np.array([1.0], np.float32), deterministic=True)
    assert action.shape == (1,)
    assert action[0] < -0.5  # a mean of plans stays away from the bound


@pytest.mark.parametrize("termination", [True, False])
def test_an_end_that_is_ignored_is_walked_into(termination):
    agent = tiny(Cliff(), gamma=0.95, policy_kwargs=parts({"termination": termination}))
    agent.learn(600)
    action, _ = agent.predict(np.array([1.0, 0.0], np.float32), deterministic=True)
    assert action == (0 if termination else 1)
    if termination:
        assert mean_return(agent, Cliff, 3) > 5.5


def test_pictures_and_vectors_in_many_environments(tmp_path):
    venv = make_vec_env(Pictures, 3, seed=0)
    agent = tiny(venv, tensorboard_log=str(tmp_path))
    evaluate = EvalCallback(make_vec_env(Pictures, 2), eval_freq=20, n_eval_episodes=2, verbose=0)
    keep = CheckpointCallback(20, str(tmp_path / "kept"), save_replay_buffer=True)
    agent.learn(120, callback=[evaluate, keep])
    assert evaluate.last_mean_reward == pytest.approx(1.2)  # a tenth for each of twelve steps
    loaded = JEPAMPC.load(tmp_path / "kept/rl_model_120_steps", venv)
    loaded.load_replay_buffer(tmp_path / "kept/rl_model_replay_buffer_120_steps.pkl")
    assert loaded.num_timesteps == 120 and len(loaded.replay_buffer) == len(agent.replay_buffer)
    assert agent.replay_buffer.columns["observation.pixels"].shape[1:] == (1, 16, 16)  # each frame once
    assert agent.num_timesteps == 120
    assert agent._n_updates > 0
    assert list(tmp_path.rglob("events*"))


def pictures_by(shared, keypoints=0, **options):
    """Stacked frames read one by one, or as channels; by convolutions, or as keypoints."""
    if keypoints:
        options["keypoints"] = keypoints
    encoder = "frames" if shared else "keypoints" if keypoints else "conv"
    return {"encoder": encoder, "encoder_options": options}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("keypoints", [0, 4])
def test_windows_are_encoded_as_their_observations_are(shared, keypoints):
    agent = tiny(Pictures(), policy_kwargs=parts(**pictures_by(shared, keypoints=keypoints)))
    agent.learn(100)
    encoder = agent.policy.model.world.encoder.eval()
    windows = agent.replay_buffer.sample(64, 3, np.random.default_rng(0))
    whole = windows.valid.all(1)  # behind the end of an episode frames are repeated
    seen = {name: x[whole] for name, x in windows.observations.items()}
    with torch.no_grad():
        found = encoder.windows(encoder.runs(seen), 4)
        expected = encoder({name: x.flatten(0, 1) for name, x in seen.items()})
    torch.testing.assert_close(found.flatten(0, 1), expected)


def test_saved_and_loaded_it_acts_the_same(tmp_path):
    agent = tiny(Goal1D())
    agent.learn(80)
    agent.save(tmp_path / "agent")
    loaded = JEPAMPC.load(tmp_path / "agent", env=Goal1D())
    for x in (-1.0, 0.3):
        observation = np.array([x], np.float32)
        expected, _ = agent.predict(observation, deterministic=True)
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == 140


def test_its_policy_is_saved_and_loaded_alone(tmp_path):
    agent = tiny(Goal1D())
    agent.learn(60)
    agent.policy.save(tmp_path / "policy.pt")
    at = np.array([[0.4]], np.float32)
    loaded = JEPAMPCPolicy.load(tmp_path / "policy.pt")
    np.testing.assert_array_equal(
        loaded.predict(at, deterministic=True)[0], agent.predict(at, deterministic=True)[0]
    )


def test_a_moving_average_of_the_model_acts():
    agent = tiny(Goal1D(), policy_kwargs={"average_rate": 0.25})
    agent.learn(100)
    before = {name: value.clone() for name, value in agent.policy.average.state_dict().items()}
    agent.train(1, 16)
    for name, value in agent.policy.model.state_dict().items():
        expected = before[name].lerp(value, 0.25)
        torch.testing.assert_close(agent.policy.average.state_dict()[name], expected)
    at = np.array([[1.0]], np.float32)
    action = agent.predict(at, deterministic=True)[0]
    with torch.no_grad():  # what the model itself has become makes no difference ...
        for parameter in agent.policy.model.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(agent.predict(at, deterministic=True)[0], action)
    agent.policy.average_rate = 1.0
    agent.policy.after_update()  # ... until the average follows at once
    assert not np.array_equal(agent.predict(at, deterministic=True)[0], action)


@pytest.mark.skipif(
    shutil.which("c++") is None and not torch.cuda.is_available(), reason="nothing to compile with"
)
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "AVX2" and not torch.cuda.is_available(),
    reason="torch 2.13 compiles rollouts for AVX2 that answer NaN",
)
def test_compiled_searches_plan_the_same_and_see_new_weights(without_annotation_checks):
    agent, compiled = (tiny(Goal1D(), policy_kwargs={"compile": compile}) for compile in (False, True))
    at = np.array([[0.3]], np.float32)
    costs = []
    for steps in (60, 30):  # untrained, all plans cost the same
        agent.learn(steps, reset_num_timesteps=False)
        compiled.policy.load_state_dict(agent.policy.state_dict())  # in place, as an update is
        first, second = (a.predict(at, deterministic=True)[0] for a in (agent, compiled))
        np.testing.assert_allclose(second, first, atol=1e-4)
        costs.append(compiled.policy.last_plan.cost.item())
    assert abs(costs[0] - costs[1]) > 1e-3
    with pytest.raises(ValueError, match="one future"):
        compiled.policy.searched[0].rollout(torch.zeros(1, 8), torch.zeros(1, 2, 1), futures=2)


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match=r"average_rate must lie in \(0, 1\]"):
        tiny(Goal1D(), policy_kwargs={"average_rate": rate})


def test_equal_seeds_give_equal_runs():
    weights = []
    for _ in range(2):
        agent = tiny(Goal1D())
        agent.learn(70)
        weights.append(torch.cat([p.flatten() for p in agent.policy.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_plan_does_not_depend_on_who_is_planned_for_beside_it():
    agent = tiny(Goal1D(), policy_kwargs={"proposals": 4})
    agent.learn(60)
    x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    together, _ = agent.predict(x, deterministic=True)
    alone = np.concatenate([agent.predict(x[i : i + 1], deterministic=True)[0] for i in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-3)


def test_another_seed_is_another_exploration():
    agent = tiny(Goal1D())
    agent.learn(60)
    x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    explored = []
    for seed in (1, 2, 1):
        agent.set_random_seed(seed)
        actions = agent.predict(x)[0].ravel().tolist()
        explored.append((actions, agent.rng.random(), torch.rand(1, generator=agent.noise).item()))
    assert explored[0] == explored[2]
    assert all(a != b for a, b in zip(explored[0], explored[1], strict=True))


def test_training_that_diverges_says_so():
    agent = tiny(Goal1D())
    agent.learn(50)
    with torch.no_grad():
        agent.policy.model.reward_head.biases[-1].fill_(float("nan"))
    with pytest.raises(
        ValueError, match=r"NaN or infinite within the last 2 updates: .*reward.*lower learning_rate"
    ):
        agent.train(2, 16)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_named(bad):
    env = gym.wrappers.TransformReward(Goal1D(), lambda r: bad)
    with pytest.raises(ValueError, match="rewards hold NaN or infinite values"):
        tiny(env).learn(5)


def test_actions_that_cannot_be_searched_are_refused():
    class Many(Goal1D):
        action_space = spaces.MultiBinary(3)

    with pytest.raises(AssertionError, match="only supports"):
        tiny(Many())

    class Unbounded(Goal1D):
        action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    with pytest.raises(AssertionError, match="finite"):
        tiny(Unbounded())

    class Table(Goal1D):
        action_space = spaces.Box(-1, 1, (2, 2), np.float32)

    with pytest.raises(ValueError, match="a Box of actions must be flat"):
        tiny(Table())


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3), "must be a Box"),
        (spaces.Box(-1, 1, (4, 4), np.float32), "a flat vector or pixels"),
        (spaces.Box(0, 255, (3, 16, 12), np.uint8), "must be uint8 pixels of shape"),
        (spaces.Box(0, 1, (3, 16, 16), np.float32), "must be uint8 pixels of shape"),
        (
            spaces.Dict({"camera.front": spaces.Box(0, 255, (3, 16, 16), np.uint8)}),
            "cannot be called 'camera.front'",
        ),
    ],
)
def test_observations_of_another_kind_are_refused(space, message):
    class Other(Goal1D):
        observation_space = space

    with pytest.raises(ValueError, match=message):
        tiny(Other())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (dict(objective_options={"kind": "VICReg"}), r"kind must be one of .*'vicreg'.*, got 'VICReg'"),
        (dict(objective="recon"), r"there is no objective 'recon', only .*'reconstruction'"),
        (dict(latent=8), r"world takes .*'latent_dim'.*, got \['latent'\]"),
        (dict(encoder_options={"frames": 2}), "gets frames=3 from the spec .*, the options say 2"),
        (dict(objective_options={"consistency": float("nan")}), "consistency must be at least 0, got nan"),
    ],
)
def test_a_world_model_that_is_none_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        tiny(OnlyPictures() if "encoder_options" in setting else Goal1D(), policy_kwargs=parts(**setting))


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        ControlConfig(width=0)


def test_an_action_is_repeated_and_its_rewards_summed():
    env = ActionRepeat(Goal1D(), 3)
    env.reset(seed=0)
    before = float(env.unwrapped.x[0])
    _, reward, *_ = env.step(np.array([-0.1], np.float32))
    path = before - 0.05 * np.arange(1, 4)
    assert reward == pytest.approx(-np.abs(path).sum(), abs=1e-5)
    for _ in range(2):
        env.step(np.array([0.0], np.float32))
    assert env.step(np.array([0.0], np.float32))[3]
    with pytest.raises(ValueError, match="repeat must be at least 1"):
        ActionRepeat(Goal1D(), 0)


class Doors(gym.Env):
    """Two choices at once, of 2 and 3 options; the pair that pays is written in the state."""

    observation_space = spaces.Box(-1, 1, (5,), np.float32)
    action_space = spaces.MultiDiscrete([2, 3], start=[0, 1])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._see(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action))
        paid = float(action[0] == self.wanted[0]) + float(action[1] - 1 == self.wanted[1])
        self.t += 1
        return self._see(), paid, False, self.t >= 8, {}

    def _see(self):
        self.wanted = self.np_random.integers([2, 3])
        return np.concatenate([np.eye(2)[self.wanted[0]], np.eye(3)[self.wanted[1]]]).astype(np.float32)


def test_several_choices_at_once():
    # Random play has to show every pair at every state: the search tries little that does not look good.
    agent = tiny(Doors(), gamma=0.5, learning_rate=1e-3, gradient_steps=2, learning_starts=120)
    agent.learn(400)
    assert mean_return(agent, Doors, 5) > 15  # at most 16, at random 6.7


def test_choices_and_their_codes_are_inverse():
    codec = action_spec(Doors.action_space)
    choices = np.array([[0, 1], [1, 3], [1, 2]])
    codes = codec.encode(choices)
    np.testing.assert_array_equal(codes, [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1], [0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(codec.decode(codes), choices)
    with pytest.raises(TypeError, match="flat MultiDiscrete"):
        action_spec(spaces.MultiDiscrete([[2, 3], [2, 3]]))


class Chain(gym.Env):
    """Two states and no choice: 0.5 is paid in the first and 2 in the second, where the episode ends."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.array([1, 0], np.float32), {}

    def step(self, action):
        reward, self.at = (0.5, 2.0)[self.at], self.at + 1
        return np.array([0, 1], np.float32), reward, self.at == 2, False, {}


def test_the_value_of_a_chain_of_two_states_is_known():
    agent = tiny(Chain(), gamma=0.9, gradient_steps=4)
    agent.learn(300)
    model = agent.policy.model.eval()
    states = torch.eye(2)
    with torch.no_grad():
        z = model.encode(states)
        action = torch.zeros(2, 1)
        value, reward = model.value(z, action).mean(0), model.reward(z, action)
    torch.testing.assert_close(value, torch.tensor([0.5 + 0.9 * 2.0, 2.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(reward, torch.tensor([0.5, 2.0]), atol=0.1, rtol=0)


class Allowance(gym.Env):
    """One state, which pays 1 for ever; a time limit cuts that into pieces of five steps."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 1.0, False, False, {}


def test_a_time_limit_is_not_the_end_of_what_is_paid():
    agent = tiny(gym.wrappers.TimeLimit(Allowance(), 5), gamma=0.8, learning_rate=1e-3, gradient_steps=4)
    agent.learn(300)
    model = agent.policy.model.eval()
    with torch.no_grad():
        z = model.encode(torch.ones(1, 1))
        value = model.value(z, torch.zeros(1, 1)).mean().item()
    assert value == pytest.approx(1 / (1 - 0.8), abs=0.5)  # five steps alone are worth 3.4


def test_training_that_a_callback_stopped_goes_on_in_a_new_episode():
    """The step at which it stopped is not in the replay, so the next one must not seem to follow the one before."""
    agent = tiny(Goal1D())
    agent.learn(100, callback=lambda locals_, globals_: locals_["self"].num_timesteps < 14)
    agent.learn(30, reset_num_timesteps=False)
    assert agent.replay_buffer.episodes[:, 1].tolist() == [10, 3, 10, 10, 10]
    states, actions = (
        agent.replay_buffer.columns[name][:, 0] for name in ("observation.observation", "action")
    )
    for first, steps in agent.replay_buffer.episodes:
        at = states[first : first + steps + 1]
        moved = np.clip(at[:-1] + 0.5 * actions[first : first + steps], -2, 2)
        np.testing.assert_allclose(at[1:], moved, atol=1e-5)


def test_prediction_alone_collapses_and_the_term_against_it_prevents_that():
    spread = {}
    for weight in (0.0, 1.0):
        alone = parts({"reward": 0.0, "value": 0.0}, objective_options={"anti_collapse": weight})
        agent = tiny(Goal1D(), policy_kwargs=alone)
        agent.learn(400)
        states = torch.linspace(-1.5, 1.5, 64)[:, None]
        with torch.no_grad():
            spread[weight] = agent.policy.model.eval().encode(states).std(0).mean().item()
    assert spread[1.0] > 5 * spread[0.0]


def test_the_average_reads_pixels_as_the_model_does():
    agent = tiny(OnlyPictures())
    agent.learn(60)
    pairs = zip(agent.policy.average.modules(), agent.policy.model.modules(), strict=True)
    stems = [pair for pair in pairs if isinstance(pair[0], PatchConv)]
    assert stems and all(new.measured for _, new in stems)
    for average, new in stems:
        torch.testing.assert_close(average.mean, new.mean, rtol=0, atol=0)
        torch.testing.assert_close(average.spread, new.spread, rtol=0, atol=0)
        assert not torch.equal(average.weight, new.weight)


def test_acting_reads_the_statistics_of_states_that_windows_start_with():
    agent = tiny(OnlyPictures())
    agent.learn(60)
    batch = agent.replay_buffer.sample(64, 3, np.random.default_rng(0), 9, 0.9)
    encoder = agent.policy.model.world.encoder
    norm, found = encoder.norm, []
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    for brightness in (0, 255):
        encoder.load_state_dict(before)
        future = torch.full_like(batch.future, brightness)
        agent.policy.model.train().loss(replace(batch, future=future), torch.Generator().manual_seed(0))
        found.append(torch.cat([norm.running_mean, norm.running_var]))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert not torch.equal(found[0], torch.cat([before["norm.running_mean"], before["norm.running_var"]]))


def test_the_last_state_of_a_window_is_not_encoded_twice_for_the_value_target():
    agent = tiny(Goal1D())
    agent.learn(60)
    batch = agent.replay_buffer.sample(32, 3, np.random.default_rng(0), 3, 0.9)
    assert batch.future is None
    last = batch.observations[:, -1]
    model = agent.policy.model.train()
    once = model.loss(batch, torch.Generator().manual_seed(0))
    twice = model.loss(replace(batch, future=last), torch.Generator().manual_seed(0))
    torch.testing.assert_close(once.terms, twice.terms)
    unlike = model.loss(replace(batch, future=last + 1), torch.Generator().manual_seed(0))
    assert unlike.terms["value"] != once.terms["value"]


@pytest.mark.parametrize("shared", [True, False])
def test_the_state_behind_a_window_is_the_last_that_was_seen_at_a_time_limit_too(shared):
    """Windows that run over the end repeat its frame: their last stack shows a standstill that was not."""
    agent = tiny(Pictures(), policy_kwargs=parts(**pictures_by(shared), objective_options={"shift": 0}))
    agent.learn(60)
    batch = agent.replay_buffer.sample(64, 3, np.random.default_rng(0), 3, 0.9)
    assert batch.future is None and not batch.valid[:, -1].all()
    rows = torch.arange(64)
    model, last = agent.policy.model.eval(), batch.valid.sum(1)
    asked = []
    model._targets = lambda future, *_: asked.append(future) or torch.zeros_like(batch.rewards)
    model.loss(batch)
    with torch.no_grad():
        expected = model.encode({name: x[rows, last] for name, x in batch.observations.items()})
    torch.testing.assert_close(asked[0], expected)


def test_what_lies_behind_an_end_is_not_decoded():
    agent = tiny(
        OnlyPictures(), policy_kwargs=parts(objective="reconstruction", objective_options={"shift": 0})
    )
    agent.learn(60)
    batch = agent.replay_buffer.sample(64, 3, np.random.default_rng(0), 3, 0.9)
    model, decoded = agent.policy.model.eval(), []
    behind = ~torch.nn.functional.pad(batch.valid, (1, 0), value=True)
    for rows in (behind, ~behind):
        for brightness in (0, 255):
            seen = batch.observations.clone()
            seen[rows] = brightness
            seen[:, 0] = batch.observations[:, 0]  # where the path begins
            changed = replace(batch, observations=seen)
            decoded.append(model.loss(changed).terms["reconstruction"].item())
    assert decoded[0] == pytest.approx(decoded[1], rel=1e-5)
    assert abs(decoded[2] - decoded[3]) > 1e-3


def test_all_pictures_of_a_window_are_shifted_alike():
    windows = torch.randint(0, 256, (8, 4, 3, 16, 16), dtype=torch.uint8)
    moved = shifted(windows, 3, torch.Generator().manual_seed(0))
    assert not torch.equal(moved, windows)
    each = shifted(windows[:, :1].expand_as(windows), 3, torch.Generator().manual_seed(0))
    assert torch.equal(each[:, :1].expand_as(each), each)
    torch.testing.assert_close(each[:, 0], moved[:, 0], rtol=0, atol=0)


class LinearQuadratic(gym.Env):
    """x' = x + u, paid -(x^2 + u^2) for 6 steps; the optimal gain follows from the Riccati equation."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0
        return self.x.copy(), {}

    def step(self, action):
        reward = -float(self.x[0] ** 2 + action[0] ** 2)
        self.x = np.clip(self.x + action, -1, 1).astype(np.float32)
        self.t += 1
        return self.x.copy(), reward, False, self.t >= 6, {}


def test_a_linear_quadratic_task_is_steered_with_the_optimal_gain():
    price, discount = 0.0, 0.9
    for _ in range(50):  # Riccati, scalar, discounted
        price = 1 + discount * price - (discount * price) ** 2 / (1 + discount * price)
    gain = discount * price / (1 + discount * price)
    agent = tiny(
        LinearQuadratic(),
        gamma=discount,
        learning_rate=1e-3,
        policy_kwargs={"samples": 64, "elites": 8, "iterations": 4},
    )
    agent.learn(1000)
    x = np.linspace(-0.8, 0.8, 9, dtype=np.float32)[:, None]
    actions, _ = agent.predict(x, deterministic=True)
    slope = float((actions * x).sum() / (x * x).sum())
    assert slope == pytest.approx(-gain, abs=0.15)
    assert np.abs(actions + gain * x).max() < 0.3


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
def test_every_anti_collapse_term_learns_to_walk_to_the_goal(kind):
    policy = parts(objective_options={"kind": kind, "anti_collapse": 0.05})
    agent = tiny(Goal1D(), gamma=0.9, learning_rate=1e-3, policy_kwargs=policy)
    agent.learn(600)
    assert mean_return(agent, Goal1D, 10) > -2.5


@pytest.mark.parametrize(
    "switch",
    [
        {"proposals": 0},
        {"terminal_value": False, "horizon": 6},
        parts(objective="reconstruction"),
    ],
    ids=["no_prior", "no_terminal_value", "reconstruction"],
)
def test_the_ablations_learn_too(switch):
    agent = tiny(Goal1D(), gamma=0.9, policy_kwargs=switch)
    agent.learn(600)
    assert mean_return(agent, Goal1D, 10) > -4.0  # random ones are about -9


def pixel_world(tmp_path, shared=True):
    """A world model of the pictures, as ``fit`` leaves it."""
    spec = WorldSpec((3, 16, 16), 3, ActionSpec("continuous", 2, (-2.0, -2.0), (2.0, 2.0)))
    torch.manual_seed(1)
    config = WorldModelConfig(
        spec,
        32,
        encoder="frames" if shared else "conv",
        encoder_options={"widths": (8, 8)},
        dynamics_options={"width": 48, "depth": 1},
    )
    world = WorldModel(config)
    world.save(tmp_path / "world.safetensors")
    return world


class OnlyPictures(Pictures):
    observation_space = Pictures.observation_space["pixels"]

    def _see(self):
        return super()._see()["pixels"]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_a_world_model_that_was_trained_without_reward_is_taken_over(tmp_path, frozen, shared):
    world = pixel_world(tmp_path, shared)
    small = parts({"frozen": frozen}, **pictures_by(shared, widths=(8, 8)))
    agent = tiny(OnlyPictures(), policy_kwargs=small)
    agent.policy.warm_start(tmp_path / "world.safetensors")
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    actions = torch.rand(5, 3, 2)

    def latents():
        with torch.no_grad():
            z = agent.policy.model.eval().encode(pixels)
            return agent.policy.model.rollout(z, actions)

    with torch.no_grad():
        expected = world.eval().rollout(world.encode(pixels), actions)
    torch.testing.assert_close(latents(), expected)
    agent.learn(80)
    assert agent._n_updates
    assert torch.equal(latents(), expected) == frozen


def test_a_world_model_of_another_size_is_refused(tmp_path):
    pixel_world(tmp_path)
    agent = tiny(OnlyPictures(), policy_kwargs=TINY)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit: .*convolutions.*instead of"):
        agent.policy.warm_start(tmp_path / "world.safetensors")
    assert all(torch.equal(before[name], value) for name, value in agent.policy.state_dict().items())


def test_value_targets_reach_less_far_in_the_second_half_of_the_training(tmp_path):
    agent, reached = tiny(Goal1D(), n_step=(9, 3)), {}

    class Note(BaseCallback):
        def _on_step(self):
            reached[self.num_timesteps] = self.model.n_step_now
            return True

    agent.learn(120, callback=Note())
    assert reached[1] == 9 and all(reached[step] == 3 for step in range(60, 121))
    assert list(reached.values()) == sorted(reached.values(), reverse=True) and 5 in reached.values()
    agent.save(tmp_path / "agent")  # Stable-Baselines3 makes lists of tuples
    assert JEPAMPC.load(tmp_path / "agent").n_step_now == 3


@pytest.mark.parametrize("n_step", [2, (9, 2), (3, 9)])
def test_value_targets_that_do_not_fit_the_windows_are_refused(n_step):
    with pytest.raises(ValueError, match=r"n_step must be at least steps=3"):
        tiny(Goal1D(), n_step=n_step)


def test_the_log_says_how_latents_and_plans_fare(tmp_path):
    agent = tiny(Goal1D(), gamma=0.5)  # a short memory: what comes behind the time limit hardly counts
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(200, log_interval=5)
    with (tmp_path / "progress.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    for name in ("jepa/effective_rank", "jepa/std_min", "jepa/latent_error_3", "jepa/reward_error_3", "plan/value",
                 "plan/return", "plan/error", "plan/spread", "plan/share_from_policy", "time/env_ms", "time/encode_ms",
                 "time/plan_ms", "time/train_ms", "rollout/ep_rew_mean", "train/consistency"):  # fmt: skip
        assert np.isfinite(float(last[name])), name
    assert 0 <= float(last["plan/share_from_policy"]) <= 1


def test_promises_are_held_against_the_returns_that_followed():
    record = PlanRecord(2, 0.5)

    no = np.array([False, False])
    assert record.paid(np.array([9.0, 9.0]), no, no) == {}  # a random step, without a plan
    record.promised(np.array([3.0, 100.0]))
    assert record.paid(np.array([1.0, 1.0]), no, no) == {}
    record.promised(np.array([2.0, 100.0]))
    found = record.paid(np.array([4.0, 1.0]), np.array([True, False]), np.array([True, False]))
    # Returns 1 + 0.5 * 4 = 3 and 4; promised were 3 and 2.
    assert found == {"plan/value": 2.5, "plan/return": 3.5, "plan/error": 1.0}
    for _ in range(3):
        record.promised(np.array([0.0, 2.0]))
        record.paid(np.array([0.0, 1.0]), no, no)
    record.promised(np.array([0.0, 2.0]))
    cut = record.paid(np.array([0.0, 1.0]), no, np.array([False, True]))
    # Six steps were paid, cut by a limit: only those with 0.5^left < 0.1 count, the first three.
    assert cut["plan/value"] == pytest.approx((100 + 100 + 2) / 3)


def test_in_an_episode_that_was_cut_early_the_last_plan_stands_for_what_would_have_come():
    record = PlanRecord(1, 0.5)
    found = {}
    for promised, over in ((7.0, False), (6.0, False), (4.0, True)):
        assert not found
        record.promised(np.array([promised]))
        found = record.paid(np.array([1.0]), np.array([False]), np.array([over]))
    # 1 + 0.5 * (1 + 0.5 * 4) = 2.5 and 1 + 0.5 * 4 = 3; promised were 7 and 6.
    assert found == {"plan/value": 6.5, "plan/return": 2.75, "plan/error": 3.75}


def test_the_spread_of_plans_is_that_of_each_environment():
    costs = torch.tensor([[0.0, 2.0, 4.0, torch.inf], [100.0, 102.0, 104.0, 102.0]])
    plan = Plan(torch.zeros(2, 1, 1), costs.amin(1), None, costs, torch.zeros(2, 1, 2, 1))
    spread = search_metrics(plan, samples=4, elites=2)["plan/spread"]
    assert spread == pytest.approx((np.std([0, 2, 4]) + np.std([0, 2, 4, 2])) / 2)


def test_a_replay_larger_than_memory_is_refused_with_its_size():
    with pytest.raises(
        ValueError, match=r"takes [\d.]+ GB, but only [\d.]+ GB of memory are free: set buffer_size"
    ):
        tiny(OnlyPictures(), buffer_size=10**12)


def test_the_replay_is_saved_and_loaded_without_pickle(tmp_path):
    agent = tiny(Goal1D())
    agent.learn(60)
    agent.save_replay_buffer(tmp_path / "replay.safetensors")
    other = tiny(Goal1D())
    other.load_replay_buffer(tmp_path / "replay.safetensors")
    assert len(other.replay_buffer) == len(agent.replay_buffer) == 60
    a, b = (m.replay_buffer.sample(30, 3, np.random.default_rng(0)) for m in (agent, other))
    np.testing.assert_array_equal(a.observations, b.observations)
    other.load_replay_buffer(tmp_path / "replay.safetensors")  # in place of what is there, as in SB3
    assert len(other.replay_buffer) == 60
    with pytest.raises(ValueError, match="use the environment it is from"):
        tiny(Doors()).load_replay_buffer(tmp_path / "replay.safetensors")
    with pytest.raises(TypeError, match="under a path"):
        agent.save_replay_buffer(io.BytesIO())


@pytest.mark.parametrize("name", JEPA_MPC_PRESETS)
def test_presets_are_arguments(name):
    agent = JEPAMPC("MlpPolicy", Goal1D(), learning_starts=10, **jepa_mpc_preset(name))
    agent.learn(12)
    assert agent._n_updates == 12
    assert np.isfinite(agent.predict(np.zeros(1, np.float32))[0]).all()


def test_the_defaults_are_the_laptop_preset():
    one, other = JEPAMPC("MlpPolicy", Goal1D()), JEPAMPC("MlpPolicy", Goal1D(), **jepa_mpc_preset("laptop"))
    assert settings_of(one) == settings_of(other)


def test_agents_of_two_seeds_differ_in_the_seed_alone():
    """Benchmarks report such agents together, and refuse all others."""
    one, other = (settings_of(tiny(Goal1D(), seed=seed)) for seed in (1, 2))
    assert {name for name in one if one[name] != other[name]} == {"seed"}


def test_a_policy_for_pictures_is_not_trained_on_vectors():
    with pytest.raises(ValueError, match=r"CnnPolicy is for pictures, got Box.*PixelObservation"):
        JEPAMPC("CnnPolicy", Goal1D())


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="no preset 'desktop'; choose one of"):
        jepa_mpc_preset("desktop")


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        ({}, 60),
        ({"gradient_steps": 2}, 120),
        ({"gradient_steps": -1}, 60),
        ({"train_freq": 4}, 15),
        ({"train_freq": (1, "episode"), "gradient_steps": 5}, 30),
        ({"train_freq": (1, "episode"), "gradient_steps": -1}, 60),
    ],
    ids=str,
)
def test_the_random_steps_are_made_up_for_once(options, updates):
    agent = tiny(Goal1D(), **options)
    agent.learn(60)  # six episodes, forty random steps
    assert agent._n_updates == updates


def test_learning_again_does_not_join_episodes():
    """Each call of learn resets the environment: what was running ends there."""
    agent = tiny(Goal1D())
    for _ in range(3):
        agent.learn(15)
    assert agent.replay_buffer.episodes[:, 1].tolist() == [10, 5, 10, 5, 10]
    agent.learn(10, reset_num_timesteps=False)  # goes on in the same episode
    assert agent.replay_buffer.episodes[-1, 1] == 10
    states = agent.replay_buffer.columns["observation.observation"][:, 0]
    for first, steps in agent.replay_buffer.episodes:
        assert np.abs(np.diff(states[first : first + steps + 1])).max() <= 0.5 + 1e-6


def test_another_environment_ends_the_episode_that_is_running():
    agent = tiny(Goal1D())
    agent.learn(15)
    agent.set_env(Goal1D())
    agent.learn(10, reset_num_timesteps=False)
    assert agent.replay_buffer.episodes[:, 1].tolist() == [10, 5, 10]


def test_stable_baselines3s_callbacks_bar_and_names(tmp_path, capsys):
    agent = tiny(Goal1D(), tensorboard_log=str(tmp_path))
    stop = StopTrainingOnRewardThreshold(-1e9)
    evaluate = EvalCallback(
        make_vec_env(Goal1D, 1), callback_on_new_best=stop, eval_freq=55, n_eval_episodes=1, verbose=0
    )
    agent.learn(100, callback=evaluate, progress_bar=True, tb_log_name="named")
    assert agent.num_timesteps == 55 and list((tmp_path / "named_1").glob("events*"))
    said = capsys.readouterr().err
    assert "JEPAMPC: 55 steps in " in said and said.endswith(f"files in {tmp_path / 'named_1'}\n")
    first = read_csv(tmp_path / "named_1" / "progress.csv")[1]
    agent.learn(45, log_interval=1, reset_num_timesteps=False, tb_log_name="named")
    both = read_csv(tmp_path / "named_1" / "progress.csv")[1]
    assert int(first[-1][0]) <= 55 < int(both[-1][0])
    assert [row[0] for row in both[: len(first)]] == [row[0] for row in first]


def test_a_loaded_agent_logs_before_its_first_episode_has_ended(tmp_path):
    agent = tiny(Goal1D())
    agent.learn(50)
    agent.save(tmp_path / "agent")
    loaded = JEPAMPC.load(tmp_path / "agent", Goal1D())
    loaded.learn(8, callback=LogEveryNTimesteps(3), reset_num_timesteps=False)
    assert loaded.num_timesteps == 58


class SeenGoal1D(Goal1D):
    """``Goal1D`` as a picture: a bright column where the point is."""

    observation_space = spaces.Box(0, 255, (1, 16, 16), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._picture(), {}

    def step(self, action):
        _, *rest = super().step(action)
        return self._picture(), *rest

    def _picture(self):
        columns = np.arange(16) - 7.5 - 3.5 * float(self.x[0])
        return np.broadcast_to(255 * np.exp(-0.5 * columns**2), (1, 16, 16)).astype(np.uint8)


def test_learns_to_walk_to_a_goal_that_it_only_sees():
    agent = tiny(
        SeenGoal1D(),
        gamma=0.9,
        policy_kwargs=SMALL_PICTURES,
    )
    agent.learn(400)
    assert mean_return(agent, SeenGoal1D, 10) > -3.0  # the best are about -0.6, random ones about -9


class SeenAndTold(SeenGoal1D):
    """The picture shows where the point is, a vector says where it shall go: neither is enough."""

    observation_space = spaces.Dict(
        pixels=SeenGoal1D.observation_space, goal=spaces.Box(-1, 1, (1,), np.float32)
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = self.np_random.choice([-1.0, 1.0], 1).astype(np.float32)
        return self._see(), {}

    def step(self, action):
        _, _, *rest = super().step(action)
        return self._see(), -float(abs(self.x[0] - self.goal[0])), *rest

    def _see(self):
        return {"pixels": self._picture(), "goal": self.goal}


def test_learns_from_pictures_and_vectors_what_neither_says_alone():
    agent = tiny(
        SeenAndTold(),
        gamma=0.9,
        policy_kwargs=SMALL_PICTURES,
    )
    agent.learn(600)
    assert mean_return(agent, SeenAndTold, 10) > -6.0  # the best are about -1.2, standing still gives -10


def test_a_loaded_agent_needs_no_replay_to_act_and_gets_one_to_learn(tmp_path):
    agent = tiny(OnlyPictures())
    agent.learn(50)
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "replay")
    loaded = JEPAMPC.load(tmp_path / "agent")
    assert loaded.replay_buffer is None
    pixels, _ = OnlyPictures().reset()
    np.testing.assert_array_equal(
        loaded.predict(pixels, deterministic=True)[0], agent.predict(pixels, deterministic=True)[0]
    )
    loaded.load_replay_buffer(tmp_path / "replay")
    assert loaded.replay_buffer.frames == 3
    loaded.set_env(OnlyPictures())
    loaded.learn(70, reset_num_timesteps=False)
    assert loaded.num_timesteps == 120 and len(loaded.replay_buffer) > 60
    idle = JEPAMPC.load(tmp_path / "agent", env=OnlyPictures(), buffer_size=1)  # SB3's way to save memory
    with pytest.raises(ValueError, match="no replay to save"):
        idle.save_replay_buffer(tmp_path / "replay")
    with pytest.raises(ValueError, match="capacity must be at least 2"):
        idle.learn(10)
