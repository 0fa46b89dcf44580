"""Environments inside a world model: worlds whose answers are known, the libraries' own checkers, and bad input."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from stable_baselines3.common.vec_env import VecMonitor

from jepa_rl import WorldModel, WorldSpec
from jepa_rl.agents import JEPAMPC
from jepa_rl.control import ControlConfig, ControlModel, world_config
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.dynamics import EnsembleDynamics, FlowDynamics, MixtureDynamics
from jepa_rl.dynamics.base import TrainableDynamics
from jepa_rl.envs import DreamEnv, DreamVecEnv, DreamVectorEnv
from jepa_rl.heads import PictureDecoder
from jepa_rl.specs import ActionSpec
from jepa_rl.testing import seeded

CONTINUOUS = ActionSpec("continuous", 1, low=(-2.0,), high=(2.0,))
HORIZON = 4


class Push(TrainableDynamics):
    """``z' = z + shift_i + 0.5 a`` in the first dimension; future ``i`` has the shift ``i * gap``."""

    def __init__(self, latent_dim, action_dim, gap=0.0):
        super().__init__(latent_dim, action_dim)
        self.gap = gap

    def rollout(self, z, actions, *, futures=1, generator=None):  # no noise: draw answers the same
        n = futures if self.gap else 1
        moved = 0.5 * actions[..., :1].cumsum(1)
        path = torch.cat([torch.zeros_like(moved[:, :1]), moved], 1)[:, None].repeat(1, n, 1, 1)
        path[:, :, 1:] += self.gap * torch.arange(n).view(1, n, 1, 1)
        other = torch.zeros(*path.shape[:3], z.shape[1] - 1)
        return z[:, None, None] + torch.cat([path, other], -1)


class Known(ControlModel):
    """Reward ``-z_0^2`` of the state acted in; ends with a known probability."""

    survival = 1.0

    def reward(self, z, action):
        return -z[:, 0].square()

    def alive(self, z):
        return torch.full_like(z[:, 0], self.survival)


def known(action=CONTINUOUS, gap=0.0):
    spec = WorldSpec(None, 1, action, parts=(("observation", (3,)),))
    model = Known(WorldModel(world_config(spec, {"latent_dim": 2})), ControlConfig(width=8), 0.9)
    model.world.dynamics = Push(2, action.size, gap)
    return model


STARTS = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])


def test_steps_and_rewards_are_those_of_the_model():
    env = DreamEnv(known(), STARTS, HORIZON)
    first, _ = env.reset(seed=0)
    assert first.tolist() in STARTS.tolist()
    state, ends = first[0], []
    for action in (2.0, -1.0, 0.0, 0.5):  # environment actions; the model's are half of them
        latent, reward, terminated, truncated, _ = env.step(np.array([action], np.float32))
        assert reward == pytest.approx(-(state**2))
        state += 0.25 * action
        assert latent[0] == pytest.approx(state)
        assert latent[1] == first[1]
        ends.append((terminated, truncated))
    assert ends == [(False, False)] * 3 + [(False, True)]


def test_the_checkers_of_gymnasium_and_sb3_accept_it():
    for action in (
        CONTINUOUS,
        ActionSpec("discrete", 3, start=1),
        ActionSpec("discrete", 5, choices=(2, 3), starts=(0, 4)),
    ):
        env = DreamEnv(known(action), STARTS, HORIZON)
        check_env(env, skip_render_check=True)
    check_env_of_sb3(DreamEnv(known(), STARTS, HORIZON))


def test_vectors_of_both_libraries_play_the_same_dream():
    n = 6
    gymnasium, sb3 = (kind(known(), STARTS, n, HORIZON) for kind in (DreamVectorEnv, DreamVecEnv))
    first, _ = gymnasium.reset(seed=7)
    sb3.seed(7)
    np.testing.assert_array_equal(first, sb3.reset())
    assert gymnasium.observation_space.contains(first)
    actions = np.random.default_rng(0).uniform(-2, 2, (HORIZON, n, 1)).astype(np.float32)
    for step, action in enumerate(actions):
        seen, rewards, terminated, truncated, infos = gymnasium.step(action)
        other, other_rewards, dones, other_infos = sb3.step(action)
        np.testing.assert_array_equal(seen, other)
        np.testing.assert_array_equal(rewards, other_rewards)
        np.testing.assert_array_equal(terminated | truncated, dones)
        assert dones.all() == (step == HORIZON - 1)
    assert truncated.all()
    assert all(latent.tolist() in STARTS.tolist() for latent in seen)  # new episodes
    for row in range(n):
        last = first[row, 0] + 0.25 * actions[:, row].sum()
        assert infos["final_obs"][row][0] == pytest.approx(last, abs=1e-5)
        np.testing.assert_array_equal(infos["final_obs"][row], other_infos[row]["terminal_observation"])
        assert other_infos[row]["TimeLimit.truncated"]


def test_episodes_end_as_often_as_the_model_says():
    model = known()
    model.survival = 0.7
    env = DreamVectorEnv(model, STARTS, 4000, 1)
    env.reset(seed=0)
    *_, terminated, truncated, _ = env.step(np.zeros((4000, 1), np.float32))
    assert terminated.mean() == pytest.approx(0.3, abs=0.03)  # four standard errors
    assert (terminated ^ truncated).all()  # the horizon cuts off the others


def test_dreams_follow_one_of_the_futures_and_pay_for_their_spread():
    env = DreamVectorEnv(known(gap=0.4), STARTS, 300, HORIZON, futures=3, penalty=2.0)
    before, _ = env.reset(seed=0)
    after, rewards, *_ = env.step(np.zeros((300, 1), np.float32))
    moved = np.round(after[:, 0] - before[:, 0], 4)
    values, counts = np.unique(moved, return_counts=True)
    np.testing.assert_allclose(values, [0.0, 0.4, 0.8], atol=1e-4)
    assert counts.min() > 60
    spread = np.std([0.0, 0.4, 0.8], ddof=1) / 2  # averaged over both dimensions, of which one is known
    np.testing.assert_allclose(rewards, -1.0 - 2.0 * spread, rtol=1e-5)


def scrambled(dynamics):
    """With weights that answer something: a new flow predicts that nothing changes."""
    generator = seeded()
    with torch.no_grad():
        for weights in dynamics.parameters():
            weights.copy_(0.2 * torch.randn(weights.shape, generator=generator))
    return dynamics


@pytest.mark.parametrize("make", [MixtureDynamics, EnsembleDynamics, FlowDynamics])
def test_dreams_side_by_side_draw_their_own_futures(make):
    """Planners want the same noise in all rows; 64 dreams of one state would be one dream."""
    model = known()
    model.world.dynamics = scrambled(make(2, 1))
    env = DreamVectorEnv(model, STARTS[:1], 64)
    env.reset(seed=0)
    after, *_ = env.step(np.zeros((64, 1), np.float32))
    assert len(np.unique(after.round(5), axis=0)) == (5 if make is EnsembleDynamics else 64)


def test_draws_have_the_distribution_of_rollouts():
    z, action = torch.randn(3, 2, generator=seeded()), torch.zeros(3, 1)
    for make in (MixtureDynamics, FlowDynamics):
        dynamics = scrambled(make(2, 1)).eval()
        with torch.no_grad():
            own = dynamics.draw(z, action, 4000, seeded())
            common = dynamics.rollout(z, action[:, None], futures=4000, generator=seeded(1))[:, :, 1]
        error = own.std(1) * (2 / 4000) ** 0.5  # of the difference of two means
        assert ((own.mean(1) - common.mean(1)).abs() < 5 * error).all()
        torch.testing.assert_close(own.std(1), common.std(1), rtol=0.1, atol=0)
        assert own.std(1).min() > 0.01


def test_the_seed_decides_all_of_it_and_the_model_stays_as_it_is():
    model = known(gap=0.4).train()
    before = copy.deepcopy(model.state_dict())
    played = []
    for _ in range(2):
        env = DreamVectorEnv(model, STARTS, 5, 2, futures=2)
        played.append([env.reset(seed=3)[0], *(env.step(np.ones((5, 1), np.float32))[0] for _ in range(3))])
    np.testing.assert_array_equal(*played)
    assert model.training
    torch.testing.assert_close(before, model.state_dict(), rtol=0, atol=0)


def test_grey_stacks_show_their_newest_frame():
    spec = WorldSpec((3, 64, 64), 3, CONTINUOUS)
    model = Known(WorldModel(world_config(spec, {"latent_dim": 2})), ControlConfig(width=8), 0.9)
    model.world.dynamics = Push(2, 1)
    env = DreamEnv(model, STARTS, decoder=PictureDecoder(2, 3, 64), render_mode="rgb_array")
    env.reset(seed=0)
    drawn = env.render()
    assert (drawn == drawn[..., :1]).all()


@pytest.mark.parametrize("drawn_frames", [1, 3])
def test_colour_is_drawn_from_the_newest_frame_or_from_all(drawn_frames):
    spec = WorldSpec((9, 64, 64), 3, CONTINUOUS)
    model = Known(WorldModel(world_config(spec, {"latent_dim": 2})), ControlConfig(width=8), 0.9)
    model.world.dynamics = Push(2, 1)
    decoder = PictureDecoder(2, 3 * drawn_frames, 64)
    env = DreamEnv(model, STARTS, decoder=decoder, render_mode="rgb_array")
    env.reset(seed=0)
    with torch.no_grad():
        newest = decoder(torch.from_numpy(env.dream.latents))[0, -3:].clamp(0, 1)
    np.testing.assert_array_equal(env.render(), (255 * newest).round().byte().permute(1, 2, 0).numpy())


def test_masks_and_seeds_of_vector_environments():
    env = DreamVectorEnv(known(), STARTS, 3, 8)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros((3, 1), np.float32))
    env.reset(seed=[1, 2, 3])
    moved, *_ = env.step(np.full((3, 1), 0.8, np.float32))
    after, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert after[0].tolist() in STARTS.tolist()
    np.testing.assert_array_equal(after[1:], moved[1:])
    with pytest.raises(ValueError, match=r"seed must be an int or 3 values, got 2"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match=r"reset_mask must have shape \(3,\), got \(2,\)"):
        env.reset(options={"reset_mask": np.ones(2, bool)})


def test_actions_beyond_their_bounds_are_clipped():
    env = DreamEnv(known(), STARTS)
    first, _ = env.reset(seed=0)
    latent, *_ = env.step(np.array([50.0], np.float32))
    assert latent[0] == pytest.approx(first[0] + 0.5)
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.array([np.nan], np.float32))


def test_dreams_do_not_start_where_episodes_are_over():
    latents = torch.arange(10.0).view(5, 2)
    episodes = LatentEpisodes(latents, torch.zeros(3, 1), torch.tensor([2, 1]))
    env = DreamVectorEnv(known(), episodes, 200)
    first, _ = env.reset(seed=0)
    assert {row for row, _ in first.tolist()} == {0.0, 2.0, 6.0}


def test_residuals_are_the_errors_of_the_model_in_the_episodes():
    """The world moves 0.3 further than the model says; episodes of two steps and of one."""
    latents = torch.tensor([[0.0, 0.0], [0.8, 0.0], [1.1, 0.0], [5.0, 0.0], [4.8, 0.0]])
    episodes = LatentEpisodes(latents, torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([2, 1]))
    for make in (DreamVectorEnv, DreamVecEnv):
        env = make(known(), episodes, 400, HORIZON, residuals=0.5)
        env.reset()
        before = env.dream.latents
        after = env.step(np.full((400, 1), 2.0, np.float32))[0]  # the model's action 1: 0.5 further
        missed = np.round(after - before - [0.5, 0.0], 4)
        values, counts = np.unique(missed[:, 0], return_counts=True)
        np.testing.assert_allclose(values, [0.15], atol=1e-4)
        assert counts.sum() == 400
    plain = DreamEnv(known(), episodes)
    first, _ = plain.reset(seed=0)
    assert plain.step(np.zeros(1, np.float32))[0] == pytest.approx(first)
    with pytest.raises(TypeError, match=r"starts are latents alone; pass LatentEpisodes"):
        DreamEnv(known(), STARTS, residuals=0.5)


def test_a_monitor_of_sb3_logs_dreams_and_ends_are_told_apart():
    model = known()
    model.survival = 0.0
    env = VecMonitor(DreamVecEnv(model, STARTS, 2, HORIZON))
    env.reset()
    _, _, dones, infos = env.step(np.zeros((2, 1), np.float32))
    assert dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [False, False]
    assert [info["episode"]["l"] for info in infos] == [1, 1]
    assert env.get_attr("horizon") == [HORIZON, HORIZON]


def test_states_are_drawn_by_a_decoder():
    decoder = PictureDecoder(2, 3, 64)
    env = DreamEnv(known(), STARTS, decoder=decoder, render_mode="rgb_array")
    env.reset(seed=0)
    drawn = env.render()
    assert (drawn.shape, drawn.dtype) == ((64, 64, 3), np.uint8)
    with torch.no_grad():
        newest = decoder(torch.from_numpy(env.dream.latents))[0].clamp(0, 1)
    np.testing.assert_array_equal(drawn, (255 * newest).round().byte().permute(1, 2, 0).numpy())
    both = DreamVecEnv(known(), STARTS, 2, decoder=decoder, render_mode="rgb_array")
    both.reset()
    assert both.render().shape == (128, 64, 3)  # tiled by Stable-Baselines3
    undrawn = DreamEnv(known(), STARTS, render_mode="rgb_array")
    undrawn.reset()
    with pytest.raises(ValueError, match=r"without a decoder; pass decoder="):
        undrawn.render()


def test_ppo_learns_in_the_dream():
    """From z_0 = 1 or -1 the best four steps return -1.25 (half the way in one step), standing still -4."""
    env = DreamVecEnv(known(), STARTS, 64, HORIZON)
    agent = PPO("MlpPolicy", env, n_steps=HORIZON, batch_size=64, learning_rate=3e-3, seed=0, device="cpu")
    agent.learn(15_000)
    seen, total = env.reset(), 0.0
    for _ in range(HORIZON):
        action, _ = agent.predict(seen, deterministic=True)
        seen, rewards, *_ = env.step(action)
        total += rewards.mean()
    assert -1.6 < total <= -1.24


def test_the_world_of_a_trained_agent():
    agent = JEPAMPC("MlpPolicy", "CartPole-v1", learning_starts=20, batch_size=16, train_freq=20, seed=0)
    agent.learn(60)
    starts = agent.seen_latents(300)
    assert starts.shape == (300, agent.world.latent_dim)
    torch.testing.assert_close(starts, agent.seen_latents(300), rtol=0, atol=0)
    steps = agent.seen_steps(300)
    torch.testing.assert_close(steps.latents[::2], starts, rtol=0, atol=0)
    with torch.no_grad():  # untrained, but not beyond what a step changes
        drawn = agent.world.rollout(starts, steps.actions[:, None])[:, 0, 1]
    missed = (steps.latents[1::2] - drawn).square().sum(1)
    assert missed.median() < (steps.latents[1::2].flip(0) - drawn).square().sum(1).median()
    env = DreamVecEnv(agent.policy.average, steps, 8, residuals=0.5)
    assert env.observation_space.shape == (agent.world.latent_dim,)
    assert env.action_space == agent.action_space
    env.reset()
    latents, rewards, dones, infos = env.step(np.array([env.action_space.sample() for _ in range(8)]))
    assert (latents.shape, rewards.shape, dones.shape, len(infos)) == ((8, 64), (8,), (8,), 8)
    assert (latents.dtype, rewards.dtype) == (np.float32, np.float32)
    with pytest.raises(ValueError, match=r"count must be at least 1, got 0"):
        agent.seen_latents(0)
    with pytest.raises(ValueError, match=r"no episode has ended yet"):
        JEPAMPC("MlpPolicy", "CartPole-v1").seen_latents()


class Remembering(Push):
    markov = False


def with_memory():
    model = known()
    model.world.dynamics = Remembering(2, 1)
    return model


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DreamEnv(known().world, STARTS), TypeError, r"WorldModel has no world, reward, alive"),
        (lambda: DreamEnv(known(), STARTS, horizon=0), ValueError, r"horizon must be at least 1, got 0"),
        (lambda: DreamEnv(known(), STARTS, futures=0), ValueError, r"futures must be at least 1, got 0"),
        (lambda: DreamEnv(known(), STARTS, penalty=-1.0), ValueError, r"penalty must be finite and at least 0"),
        (lambda: DreamEnv(known(), STARTS, penalty=1.0), ValueError, r"a penalty needs futures that differ"),
        (lambda: DreamEnv(known(), STARTS, residuals=-1.0), ValueError, r"residuals must be finite and at least 0"),
        (lambda: DreamEnv(known(), torch.zeros(3, 5)), ValueError, r"shape \(m, 2\).*, got \(3, 5\)"),
        (lambda: DreamEnv(known(), torch.zeros(0, 2)), ValueError, r"shape \(m, 2\).*, got \(0, 2\)"),
        (lambda: DreamEnv(known(), STARTS * torch.nan), ValueError, r"starts hold NaN"),
        (lambda: DreamEnv(with_memory(), STARTS), ValueError, r"choose dynamics without a memory"),
        (lambda: DreamVecEnv(known(ActionSpec("discrete", 3, start=1)), STARTS), ValueError, r"counts choices from 0"),
        (lambda: DreamVecEnv(known(), STARTS, 0), ValueError, r"num_envs must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_dreamt(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_wrong_actions_and_rewards_that_are_no_numbers():
    env = DreamVectorEnv(known(), STARTS, 3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(3, 1\), got \(2, 1\)"):
        env.step(np.zeros((2, 1), np.float32))
    env.dream.model.reward = lambda z, action: torch.full_like(z[:, 0], torch.nan)
    with pytest.raises(ValueError, match=r"the model's reward is NaN"):
        env.step(np.zeros((3, 1), np.float32))
    sb3 = DreamVecEnv(known(), STARTS, 3)
    with pytest.raises(ValueError, match=r"can only be set for all of them"):
        sb3.set_attr("decoder", None, indices=[0])
    with pytest.raises(AttributeError, match=r"horizon of dreams cannot be set"):
        sb3.set_attr("horizon", 3)
