"""Latents that follow an agent, and the policy that plays where a world model knows little."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from dots import Dot
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy

from jepa_rl.agents import curious_agent
from jepa_rl.agents.sb3.grow import grow
from jepa_rl.costs import Disagreement
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.dynamics import EnsembleDynamics
from jepa_rl.envs import collect, wrap
from jepa_rl.spaces import observed_spec
from jepa_rl.world_model import WorldModel, WorldModelConfig

SMALL = {"latent_dim": 8, "encoder_options": {"widths": (8, 16)}}
TINY = {"rounds": 2, "steps": 60, "updates": 5, "gradient_steps": 20, "world": SMALL, "progress": False}


def dots(discrete=False, num_envs=2):
    return gym.vector.SyncVectorEnv([lambda: Dot(discrete, edge=True)] * num_envs)


def test_disagreement_is_the_variance_over_futures():
    latents = torch.zeros(2, 4, 3, 5)
    latents[1, :, 1:, 0] = torch.tensor([0.0, 0.0, 2.0, 2.0])[:, None]  # variance 1 in one component of five
    cost = Disagreement()(latents, torch.zeros(2, 2, 1))
    torch.testing.assert_close(cost, torch.tensor([[0.0] * 4, [-0.2] * 4]))
    with pytest.raises(ValueError, match="needs several futures, got 1"):
        Disagreement()(latents[:, :1], torch.zeros(2, 2, 1))


class Fork(EnsembleDynamics):
    """Members that disagree by the action: the largest actions lead where the least is known."""

    def rollout(self, z, actions, *, futures=1, generator=None):
        sign = torch.linspace(-1, 1, futures)[None, :, None, None]
        moved = torch.nn.functional.pad(actions.cumsum(1), (0, 0, 1, 0))[:, None]
        return z[:, None, None] + sign * moved * torch.ones(z.shape[1])


def test_the_curious_agent_goes_where_the_ensemble_disagrees():
    env = Dot()
    spec = observed_spec(env.observation_space, env.action_space)
    torch.manual_seed(0)
    config = WorldModelConfig(spec, 8, encoder_options={"widths": (8, 16)}, dynamics="ensemble")
    world = WorldModel(config).eval()
    world.dynamics = Fork(8, 1, members=3)
    agent = curious_agent(world, horizon=4)
    pixels = np.stack([Dot().reset(seed=s)[0] for s in range(6)])
    actions, _ = agent.predict(pixels)
    assert (np.abs(actions) > 0.8).all()
    single = WorldModel(WorldModelConfig(spec, 8, encoder_options={"widths": (8, 16)})).eval()
    with pytest.raises(ValueError, match="needs the dynamics 'ensemble'"):
        curious_agent(single)


def test_it_learns_on_latents_of_what_it_met(tmp_path):
    told = []

    def after_round(grown):
        told.append(len(grown.rounds))
        return {"episodes": len(grown.store)}

    grown = grow(
        dots(), collect, tmp_path, rounds=3, steps=240, updates=60, gradient_steps=300, world=SMALL, progress=False,
        settings={"gamma": 0.9, "policy_kwargs": {"net_arch": [32]}, "learning_rate": 3e-3}, after_round=after_round,
    )  # fmt: skip
    assert isinstance(grown.agent, SAC) and told == [0, 1, 2]
    assert grown.store.num_steps >= 3 * 240 and grown.rounds == json.loads(
        (tmp_path / "rounds.json").read_text()
    )
    assert grown.rounds[-1] == {"steps": grown.store.num_steps, "episodes": len(grown.store)}
    found, _ = evaluate_policy(grown.agent, wrap(Dot(edge=True), grown.world), 20, warn=False)
    random = grown.store.view(range(10))
    played = np.mean([random.episode(i).rewards.sum() for i in range(10)])
    assert found > 0.5 * played, (found, played)  # both are below 0


def test_the_replay_holds_what_was_played(tmp_path):
    grown = grow(dots(discrete=True), collect, tmp_path, **TINY)
    assert isinstance(grown.agent, DQN)
    replay, store = grown.agent.replay_buffer, grown.store
    latents = LatentEpisodes.encode(grown.world, store, progress=False)
    at = 0
    for i in range(len(store)):
        episode = store.episode(i)
        for t in range(len(episode.actions)):
            now = torch.from_numpy(replay.observations[at + t, 0])
            seen = grown.world.encode(torch.from_numpy(np.array(episode.frames[t : t + 2])))
            torch.testing.assert_close(now, seen[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                torch.from_numpy(replay.next_observations[at + t, 0]), seen[1], rtol=1e-4, atol=1e-4
            )
            assert (
                replay.actions[at + t, 0] == episode.actions[t]
                and replay.rewards[at + t, 0] == episode.rewards[t]
            )
            last = t == len(episode.actions) - 1
            assert replay.dones[at + t, 0] == last and replay.timeouts[at + t, 0] == (
                last and not episode.terminated
            )
        at += len(episode.actions)
    assert replay.full and replay.size() == at == store.num_steps == len(latents.actions)


@pytest.mark.parametrize("discrete", [False, True])
def test_values_are_learned_from_the_rewards_of_one_episode(tmp_path, discrete):
    """Over several steps, unless the episode ends before."""
    settings = {"n_steps": 3, "gamma": 0.5}
    grown = grow(dots(discrete), collect, tmp_path, **TINY | {"settings": settings})
    replay, store, at = grown.agent.replay_buffer, grown.store, 0
    for i in range(len(store)):
        rewards = store.episode(i).rewards
        found = replay._get_samples(np.arange(at, at + len(rewards)))
        for t in range(len(rewards)):
            own = rewards[t : t + 3]
            assert found.rewards[t].item() == pytest.approx(float((own * 0.5 ** np.arange(len(own))).sum()))
            assert found.discounts[t].item() == pytest.approx(0.5 ** len(own))
            ended = t + 3 >= len(rewards) and store.episode(i).terminated
            assert found.dones[t].item() == ended
        at += len(rewards)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path, discrete):
    class Killed(Exception):
        pass

    def stop(grown):
        if len(grown.rounds) == 1:
            raise Killed
        return {}

    settings = TINY | {"curious": 0.5}
    whole = grow(dots(discrete), collect, tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        grow(dots(discrete), collect, tmp_path / "parts", after_round=stop, **settings)
    parts = grow(dots(discrete), collect, tmp_path / "parts", **settings)
    assert parts.store.num_steps == whole.store.num_steps
    one, other = (
        [*made.agent.policy.state_dict().values(), *made.world.state_dict().values()]
        for made in (whole, parts)
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    more = grow(dots(discrete), collect, tmp_path / "parts", **settings | {"rounds": 3})
    assert len(more.rounds) == 3 and more.store.num_steps >= 180


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": DQN}, "SAC on continuous actions"),
        ({"algorithm": PPO}, "SAC on continuous actions"),
        ({"curious": 1.0}, "curious must lie in"),
        ({"steps": 0}, "steps must be at least 1"),
        (
            {"settings": {"replay_buffer_class": ReplayBuffer}},
            "leave .'replay_buffer_class'. out of settings",
        ),
    ],
)
def test_bad_settings_are_refused_in_words(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        grow(dots(), collect, tmp_path, **TINY | options)
    assert not (tmp_path / "episodes").exists()


def test_another_runs_folder_is_refused(tmp_path):
    grow(dots(), collect, tmp_path, **TINY | {"rounds": 1})
    with pytest.raises(ValueError, match="holds a run with"):
        grow(dots(), collect, tmp_path, **TINY | {"updates": 6})
