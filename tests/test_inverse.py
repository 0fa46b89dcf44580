"""The goal-conditioned inverse model on worlds whose inverse dynamics are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import make
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

from jepa_rl.agents import InverseModel, InverseModelAgent, MPCAgent, fit_inverse_model
from jepa_rl.data import Episode, EpisodeStore
from jepa_rl.envs import GoalObservation, collect, world_spec
from jepa_rl.types import ActionSpec, WorldSpec
from jepa_rl.world_model import WorldModel, WorldModelConfig

CONTINUOUS = ActionSpec("continuous", 2, (-2.0, -2.0), (2.0, 2.0))
DISCRETE = ActionSpec("discrete", 4, start=1)
COMPASS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])


class Levels(nn.Module):
    """Grey levels of two channels as latents: an encoder that knows all. Here nothing is imagined."""

    latent_dim = 2

    def __init__(self, action):
        super().__init__()
        self.spec = WorldSpec((2, 4, 6), 1, action)
        self.scale = nn.Parameter(torch.tensor(1 / 255))

    def encode(self, pixels):
        return pixels.float().mean((2, 3)) * self.scale

    def rollout(self, z, actions, *, futures=1, generator=None):
        raise RuntimeError("the inverse model asked for a rollout")


def play(path, action, step, episodes=20, length=60) -> EpisodeStore:
    """Random walks, ``step`` grey levels per unit of model action, all pixels of a channel alike."""
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(path, (2, 4, 6), action)
    for i in range(episodes):
        n = length - i  # episodes of different lengths: their ends must not be mixed up
        if action.kind == "discrete":
            actions = rng.integers(action.start, action.start + 4, n)
            moves = COMPASS[actions - action.start]
        else:
            actions = rng.uniform(-2, 2, (n, 2)).astype(np.float32)
            moves = actions / 2
        levels = rng.uniform(90, 160, 2) + np.concatenate([np.zeros((1, 2)), step * moves]).cumsum(0)
        frames = np.broadcast_to(np.rint(levels)[..., None, None], (n + 1, 2, 4, 6)).clip(0, 255)
        store.append(Episode(frames.astype(np.uint8), actions, np.zeros(n, np.float32)))
    store.close()
    return store


def pictures(levels):
    return np.broadcast_to(np.asarray(levels)[:, :, None, None], (len(levels), 2, 4, 6)).astype(np.uint8)


def test_learns_the_inverse_dynamics_of_a_linear_world(tmp_path):
    """One step ahead the action is (goal - now) / step: a grey level is 0.17."""
    step = 12.0
    agent = fit_inverse_model(Levels(CONTINUOUS), play(tmp_path, CONTINUOUS, step), max_offset=1, updates=500)
    rng = np.random.default_rng(1)
    now = rng.integers(100, 150, (200, 2))
    move = rng.integers(-9, 10, (200, 2))
    actions, state = agent.predict(
        {"pixels": pictures(now), "goal": pictures(now + move)}, state="as it came"
    )
    assert state == "as it came" and actions.dtype == np.float32
    np.testing.assert_allclose(actions, 2 * move / step, atol=0.4)
    assert np.abs(actions - 2 * move / step).mean() < 0.1


def test_learns_which_choice_leads_to_the_goal(tmp_path):
    agent = fit_inverse_model(Levels(DISCRETE), play(tmp_path, DISCRETE, 6), max_offset=1, updates=400)
    now = np.full((4, 2), 120)
    actions, _ = agent.predict({"pixels": pictures(now), "goal": pictures(now + 6 * COMPASS)})
    assert actions.dtype == np.int64 and actions.tolist() == [1, 2, 3, 4]
    single, _ = agent.predict({"pixels": pictures(now)[0], "goal": pictures(now + 6 * COMPASS)[2]})
    assert single == 3 and np.ndim(single) == 0


def test_goals_farther_ahead_still_point_the_way(tmp_path):
    agent = fit_inverse_model(Levels(CONTINUOUS), play(tmp_path, CONTINUOUS, 8), max_offset=10, updates=600)
    agent.set_goal(pictures([[150, 90]])[0])
    action, _ = agent.predict(pictures([[120, 120]])[0])
    assert action[0] > 0.2 and action[1] < -0.2


def test_equal_seeds_give_equal_agents_and_the_model_stays_as_it_is(tmp_path):
    store, model = play(tmp_path, CONTINUOUS, 8, episodes=3), Levels(CONTINUOUS)
    before = torch.get_rng_state()
    first, second, other = (fit_inverse_model(model, store, updates=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [
        torch.cat([p.flatten() for p in agent.inverse.parameters()]) for agent in (first, second, other)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert model.training and model.scale.grad is None


def two_rooms():
    return GoalObservation(make("jepa_rl/TwoRooms-v0", max_episode_steps=20))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    path = tmp_path_factory.mktemp("rooms")
    store = collect(
        make("jepa_rl/TwoRooms-v0", max_episode_steps=20), path, episodes=4, seed=0, progress=False
    )
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(world_spec(two_rooms(), block=5), latent_dim=8)).eval()
    return model, store


def test_acts_in_two_rooms_and_comes_back_from_disk(rooms, tmp_path):
    model, store = rooms
    agent = fit_inverse_model(model, store.view([0, 2, 3]), updates=20)
    venv = make_vec_env(two_rooms, 2, seed=0)
    _, lengths = evaluate_policy(agent, venv, 3, return_episode_rewards=True)
    assert len(lengths) == 3 and max(lengths) <= 20
    agent.save(tmp_path / "agent.zip")
    observation = venv.reset()
    loaded = InverseModelAgent.load(tmp_path / "agent.zip")
    np.testing.assert_array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])
    with pytest.raises(ValueError, match="inverse_model_agent"):
        MPCAgent.load(tmp_path / "agent.zip")


def test_mistakes_are_named(rooms, tmp_path):
    model, store = rooms
    for name in ("max_offset", "updates", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            fit_inverse_model(model, store, **{name: 0})
    with pytest.raises(ValueError, match="no episodes"):
        fit_inverse_model(model, store.view([]))
    with pytest.raises(ValueError, match="use episodes of the model's environment"):
        fit_inverse_model(model, play(tmp_path, CONTINUOUS, 8, episodes=1))
    with pytest.raises(ValueError, match="train it on data of that environment"):
        InverseModelAgent(model, InverseModel(8, DISCRETE))
    agent = fit_inverse_model(model, store, updates=1)
    with pytest.raises(ValueError, match="there is no goal"):
        agent.predict(two_rooms().reset(seed=0)[0]["pixels"])
    with torch.no_grad():
        agent.inverse.mean.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        agent.predict(two_rooms().reset(seed=0)[0])
