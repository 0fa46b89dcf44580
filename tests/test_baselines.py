"""Stable-Baselines3 baselines: on a problem with a known answer, on all observations, with faults."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_rl.agents.evaluation import EvaluationCallback
from jepa_rl.agents.sb3.baselines import (
    LeanCnnPolicy,
    SaveAtEvaluation,
    load_saved,
    policy_for,
    train_baseline,
)

SMALL = {"policy_kwargs": {"net_arch": [16]}, "device": "cpu"}
# Enough to learn a bandit, in a second or two each.
QUICK = {
    "ppo": SMALL | {"n_steps": 32, "batch_size": 32, "learning_rate": 3e-2},
    "sac": SMALL | {"learning_starts": 64, "learning_rate": 1e-2, "ent_coef": 0.01},
    "dqn": SMALL | {"learning_starts": 64, "learning_rate": 1e-2, "train_freq": 1, "gamma": 0.0},
}


class Bandit(gym.Env):
    """One step; the observation says which action pays 1 (discrete) or which sign (continuous)."""

    def __init__(self, discrete: bool = True, picture: bool = False) -> None:
        self.action_space = spaces.Discrete(2) if discrete else spaces.Box(-1, 1, (1,))
        self.picture = picture
        self.observation_space = (
            spaces.Box(0, 255, (3, 36, 36), np.uint8) if picture else spaces.Box(0, 1, (2,), np.float32)
        )

    def _observe(self):
        if self.picture:
            return np.full((3, 36, 36), 255 * self.right, np.uint8)
        return np.eye(2, dtype=np.float32)[self.right]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.right = int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action):
        chosen = action if np.issubdtype(np.asarray(action).dtype, np.integer) else action[0] > 0
        return self._observe(), float(chosen == self.right), True, False, {}


def bandits(**options):
    def make(n: int) -> VecEnv:
        return DummyVecEnv([lambda: Bandit(**options)] * n)

    return make


@pytest.mark.parametrize(
    ("algorithm", "discrete"), [("ppo", True), ("dqn", True), ("ppo", False), ("sac", False)]
)
def test_every_algorithm_solves_a_bandit(algorithm, discrete, tmp_path):
    run = train_baseline(
        algorithm, bandits(discrete=discrete), 768, tmp_path, n_envs=2, evaluations=3, **QUICK[algorithm]
    )
    assert run.returns.shape == (3, 10)
    assert run.timesteps.tolist() == [256, 512, 768]
    assert run.returns[-1].mean() >= 0.9
    action, _ = run.model.predict(np.eye(2, dtype=np.float32), deterministic=True)
    assert ((action.ravel() > 0) == [False, True]).all()


def test_pictures_are_learned_from_by_a_cnn_and_files_are_left(tmp_path):
    run = train_baseline(
        "ppo", bandits(picture=True), 64, tmp_path, n_envs=2, evaluations=2, eval_episodes=4, n_steps=16,
        batch_size=16, n_epochs=1, device="cpu",
    )  # fmt: skip
    assert type(run.model.policy).__name__ == "ActorCriticCnnPolicy"
    assert (tmp_path / "best_model.zip").stat().st_size
    with np.load(tmp_path / "evaluations.npz") as saved:
        np.testing.assert_array_equal(saved["results"], run.returns)
        np.testing.assert_array_equal(saved["timesteps"], run.timesteps)
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert {"eval/mean_reward", "rollout/ep_rew_mean", "time/fps"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("eval/mean_reward")] == [32, 64]


@pytest.mark.parametrize("shared", [False, True])
def test_the_lean_policy_learns_what_the_cnn_policy_does_bit_for_bit(shared):
    options = {"learning_starts": 16, "buffer_size": 100, "batch_size": 16, "device": "cpu", "seed": 0}
    kwargs = {"net_arch": [16], "share_features_extractor": shared}

    def trained(policy):
        env = DummyVecEnv([lambda: Bandit(discrete=False, picture=True)])
        return SAC(policy, env, policy_kwargs=dict(kwargs), **options).learn(24).get_parameters()

    plain, lean = trained("CnnPolicy"), trained(LeanCnnPolicy)
    for name, weights in plain["policy"].items():
        assert torch.equal(weights, lean["policy"][name]), name


def test_the_lean_critic_gives_its_encoder_no_gradient_of_the_actors_loss():
    model = SAC(LeanCnnPolicy, bandits(discrete=False, picture=True)(1), buffer_size=10, device="cpu")
    pictures, actions = torch.zeros(2, 3, 36, 36, dtype=torch.uint8), torch.zeros(2, 1)
    encoder = list(model.critic.features_extractor.parameters())
    sum(model.critic(pictures, actions.requires_grad_())).sum().backward()
    assert actions.grad is not None and all(weights.grad is None for weights in encoder)
    sum(model.critic(pictures, actions.detach())).sum().backward()
    assert all(weights.grad is not None for weights in encoder)


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_an_agent_goes_on_from_its_last_evaluation(algorithm, tmp_path):
    def callbacks():
        curve = EvaluationCallback(lambda: Bandit(discrete=False), 10, 2, path=tmp_path / "curve.json")
        return [curve, SaveAtEvaluation(curve, tmp_path / "saved", lambda into: (into / "note").touch())]

    env = DummyVecEnv([lambda: Bandit(discrete=False)])
    options = (
        {"buffer_size": 100, "learning_starts": 5} if algorithm is SAC else {"n_steps": 4, "batch_size": 4}
    )
    assert SaveAtEvaluation.newest(tmp_path / "saved") is None
    agent = algorithm("MlpPolicy", env, device="cpu", seed=0, **options).learn(24, callback=callbacks())
    saved = SaveAtEvaluation.newest(tmp_path / "saved")
    assert saved is not None and [path.name for path in saved.parent.iterdir()] == ["20"]
    assert (saved / "note").exists()
    (saved.parent / "part").mkdir()  # as a kill leaves it
    (saved.parent / "part/agent.zip").touch()
    assert SaveAtEvaluation.newest(tmp_path / "saved") == saved

    loaded = load_saved(algorithm, saved, env, "cpu", trust=algorithm is SAC)
    assert loaded.num_timesteps == 20
    if algorithm is SAC:
        assert loaded.replay_buffer.size() == 19  # callbacks are asked before the step is stored
    loaded.learn(20, callback=callbacks(), reset_num_timesteps=False)
    assert [e["step"] for e in json.loads((tmp_path / "curve.json").read_text())] == [0, 10, 20, 30, 40]
    assert agent.num_timesteps == 24


def test_equal_seeds_give_equal_runs_and_evaluation_episodes_are_new(tmp_path):
    starts = []

    def make(n: int) -> VecEnv:
        venv = make_vec_env("CartPole-v1", n)
        reset = venv.reset

        def remembered():
            observation = reset()
            starts.append(observation)
            return observation

        venv.reset = remembered
        return venv

    runs = [
        train_baseline(
            "ppo", make, 128, tmp_path / str(i), n_envs=2, seed=seed, evaluations=1, **QUICK["ppo"]
        )
        for i, seed in enumerate((3, 3, 4))
    ]
    np.testing.assert_array_equal(runs[0].returns, runs[1].returns)
    assert not np.array_equal(runs[0].returns, runs[2].returns)
    training, evaluation = starts[:2]
    assert not np.array_equal(training, evaluation)


def test_normalised_environments_are_evaluated_with_the_same_statistics(tmp_path):
    def make(n: int) -> VecEnv:
        return VecNormalize(make_vec_env("CartPole-v1", n), norm_reward=False)

    run = train_baseline("ppo", make, 128, tmp_path, n_envs=2, evaluations=1, **QUICK["ppo"])
    assert np.isfinite(run.returns).all() and (run.returns >= 8).all()


def test_returns_are_those_of_the_environment_and_not_normalised_ones(tmp_path):
    """CartPole pays 1 a step, and an episode takes at least 8; normalised rewards would add up to less."""

    def make(n: int) -> VecEnv:
        return VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")] * n), clip_reward=0.1)

    run = train_baseline("ppo", make, 128, tmp_path, n_envs=2, evaluations=1, **QUICK["ppo"])
    assert (run.returns >= 8).all() and (run.returns == run.returns.round()).all()


def test_an_agent_goes_on_with_its_normalisation(tmp_path):
    def normalised():
        return VecNormalize(DummyVecEnv([lambda: Bandit(discrete=False)]))

    curve = EvaluationCallback(lambda: Bandit(discrete=False), 10, 2)
    env = normalised()
    agent = PPO("MlpPolicy", env, n_steps=4, batch_size=4, device="cpu")
    agent.learn(20, callback=[curve, SaveAtEvaluation(curve, tmp_path)])
    saved, later = SaveAtEvaluation.newest(tmp_path), normalised()
    loaded = load_saved(PPO, saved, later, "cpu", trust=True)
    np.testing.assert_array_equal(later.obs_rms.mean, env.obs_rms.mean)
    assert later.ret_rms.var == env.ret_rms.var and loaded.get_vec_normalize_env() is later
    with pytest.raises(ValueError, match="trained in a VecNormalize, env is not one"):
        load_saved(PPO, saved, later.venv, "cpu")


def test_policies_follow_the_observation_space():
    pixels, vector = spaces.Box(0, 255, (9, 64, 64), np.uint8), spaces.Box(-1, 1, (5,))
    assert policy_for(pixels) == "CnnPolicy"
    assert policy_for(vector) == "MlpPolicy"
    assert policy_for(spaces.Dict(pixels=pixels, state=vector)) == "MultiInputPolicy"


@pytest.mark.parametrize(
    ("algorithm", "arguments", "message"),
    [
        ("a2c", {}, r"one of \['ppo', 'sac', 'dqn'\], got 'a2c'"),
        ("sac", {}, "'sac' needs Box actions, got Discrete.*use 'ppo' or 'dqn'"),
        ("ppo", {"total_timesteps": 0}, "total_timesteps must be at least 1, got 0"),
        ("ppo", {"evaluations": 0}, "evaluations must be at least 1"),
        ("ppo", {"n_envs": -1}, "n_envs must be at least 1"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(algorithm, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_baseline(algorithm, bandits(), **{"total_timesteps": 64, "log_dir": tmp_path} | arguments)
    assert not list(tmp_path.iterdir())


def test_dqn_refuses_continuous_actions(tmp_path):
    with pytest.raises(ValueError, match=r"'dqn' needs Discrete actions, got Box.*use 'ppo' or 'sac'"):
        train_baseline("dqn", bandits(discrete=False), 64, tmp_path)


def test_environments_are_closed_when_training_fails(tmp_path):
    closed = []

    class Broken(Bandit):
        def step(self, action):
            raise RuntimeError("the simulator fell over")

        def close(self):
            closed.append(self)

    with pytest.raises(RuntimeError, match="fell over"):
        train_baseline("ppo", lambda n: DummyVecEnv([Broken] * n), 64, tmp_path, n_envs=2, **QUICK["ppo"])
    assert len(closed) == 4
