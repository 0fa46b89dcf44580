"""JEPAMPC: Stable-Baselines3's contract, and tasks whose answer is known."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from jepa_rl.agents.jepa_mpc import JEPAMPC, ControlModel, ModelConfig, ReturnCost
from jepa_rl.agents.jepa_mpc.model import random_shift
from jepa_rl.envs import ActionRepeat
from jepa_rl.testing import DynamicsContract

TINY = ModelConfig(latent_dim=32, width=48, bins=51, values=2)
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
    kwargs = dict(model=TINY) | SEARCH | options.pop("policy_kwargs", {})
    return JEPAMPC(
        "MultiInputPolicy", env, seed=0, learning_starts=40, batch_size=16, policy_kwargs=kwargs, **options
    )


class TestControlModel(DynamicsContract):
    def make_dynamics(self):
        torch.manual_seed(0)
        space = {"observation": spaces.Box(-1, 1, (3,), np.float32)}
        return ControlModel(space, 2, (), TINY, 0.9).eval()


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
    agent.learn(600)
    returns, _ = evaluate_policy(agent, Goal1D(), 10, warn=False)
    assert returns > -2.0  # the best are about -0.6, random ones about -9
    action, _ = agent.predict(np.array([1.0], np.float32), deterministic=True)
    assert action.shape == (1,)
    assert action[0] < -0.7


@pytest.mark.parametrize("termination", [True, False])
def test_an_end_that_is_ignored_is_walked_into(termination):
    policy = {"model": ModelConfig(**{**vars(TINY), "termination": termination, "shift": 0})}
    agent = tiny(Cliff(), gamma=0.95, policy_kwargs=policy)
    agent.learn(900)
    action, _ = agent.predict(np.array([1.0, 0.0], np.float32), deterministic=True)
    if termination:
        assert action == 0
        assert evaluate_policy(agent, Cliff(), 3, warn=False)[0] > 5.5


def test_pictures_and_vectors_in_many_environments(tmp_path):
    venv = make_vec_env(Pictures, 3, seed=0)
    agent = tiny(venv, tensorboard_log=str(tmp_path))
    evaluate = EvalCallback(make_vec_env(Pictures, 2), eval_freq=20, n_eval_episodes=2, verbose=0)
    agent.learn(120, callback=[evaluate, CheckpointCallback(20, str(tmp_path))])
    assert agent.replay_buffer.columns["observation.pixels"].shape[1:] == (1, 16, 16)  # each frame once
    assert agent.num_timesteps == 120
    assert agent._n_updates > 0
    assert list(tmp_path.rglob("events*"))


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


def test_equal_seeds_give_equal_runs():
    weights = []
    for _ in range(2):
        agent = tiny(Goal1D())
        agent.learn(70)
        weights.append(torch.cat([p.flatten() for p in agent.policy.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_reward_that_is_no_number_is_named():
    env = gym.wrappers.TransformReward(Goal1D(), lambda r: float("nan"))
    with pytest.raises(ValueError, match="rewards hold NaN or infinite values"):
        tiny(env).learn(5)


def test_actions_that_cannot_be_searched_are_refused():
    class Many(Goal1D):
        action_space = spaces.MultiBinary(3)

    with pytest.raises(AssertionError, match="only supports"):
        tiny(Many())


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
