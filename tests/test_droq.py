"""SAC and DQN whose critics have dropout and layer norm."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

from jepa_rl.agents import JEPADQN, DropoutDQNPolicy, DroQPolicy
from jepa_rl.agents.sb3.saved import load_agent


class Target(gym.Env):
    """One step: the reward is larger the nearer the action is to what is seen."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.seen, {}

    def step(self, action):
        reward = -abs(float(action[0]) - 0.5 * float(self.seen[0]))
        return self.seen, reward, True, False, {}


class Choice(Target):
    """One step: the reward is 1 for the second action where what is seen is above 0, and for the first elsewhere."""

    action_space = gym.spaces.Discrete(2)

    def step(self, action):
        return self.seen, float((self.seen[0] > 0) == bool(action)), True, False, {}


def chooser(**policy_kwargs):
    options = {
        "learning_starts": 50,
        "buffer_size": 2000,
        "learning_rate": 3e-3,
        "gamma": 0.9,
        "train_freq": 1,
    }
    options |= {"tau": 0.02, "target_update_interval": 1}
    kwargs = {"net_arch": [32, 32]} | policy_kwargs
    return DQN(DropoutDQNPolicy, Choice(), seed=0, device="cpu", policy_kwargs=kwargs, **options)


def agent(**policy_kwargs):
    options = {
        "learning_starts": 50,
        "buffer_size": 2000,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "gamma": 0.9,
    }
    return SAC(
        DroQPolicy,
        Target(),
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [32, 32]} | policy_kwargs,
        **options,
    )


def test_hidden_layers_of_critics_alone_have_dropout_and_layer_norm():
    policy = agent(dropout_rate=0.2, n_critics=3).policy
    kinds = [nn.Linear, nn.Dropout, nn.LayerNorm, nn.ReLU] * 2 + [nn.Linear]
    for critic in (policy.critic, policy.critic_target):
        assert [name for name, _ in critic.named_children() if name.startswith("qf")] == ["qf0", "qf1", "qf2"]
        for index, q_network in enumerate(critic.q_networks):
            assert getattr(critic, f"qf{index}") is q_network
            assert [type(layer) for layer in q_network] == kinds
            assert {layer.p for layer in q_network if isinstance(layer, nn.Dropout)} == {0.2}
    assert not any(isinstance(part, nn.Dropout | nn.LayerNorm) for part in policy.actor.modules())


def test_the_optimiser_holds_the_critics_weights_and_targets_start_equal():
    policy = agent().policy
    own, target = list(policy.critic.parameters()), list(policy.critic_target.parameters())
    learned = {id(weights) for group in policy.critic.optimizer.param_groups for weights in group["params"]}
    assert learned == {id(weights) for weights in own}
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own, target, strict=True))


def test_dropout_acts_in_training_alone():
    policy = agent(dropout_rate=0.5).policy
    seen, actions = torch.rand(4, 3), torch.rand(4, 1)
    policy.set_training_mode(True)
    assert not torch.equal(policy.critic(seen, actions)[0], policy.critic(seen, actions)[0])
    assert torch.equal(policy.critic_target(seen, actions)[0], policy.critic_target(seen, actions)[0])
    policy.set_training_mode(False)
    assert torch.equal(policy.critic(seen, actions)[0], policy.critic(seen, actions)[0])


@pytest.mark.parametrize("rate", [-0.1, 1.0])
@pytest.mark.parametrize("make", [agent, chooser])
def test_a_rate_out_of_range_is_refused(rate, make):
    with pytest.raises(ValueError, match=r"dropout_rate must be at least 0 and below 1"):
        make(dropout_rate=rate)


def check_saved(model, env, path):
    """A file that executes nothing gives the same agent, which learns on."""
    model.save(path)
    loaded = load_agent(type(model), path, device="cpu")
    assert type(loaded.policy) is type(model.policy)
    assert loaded.policy.dropout_rate == model.policy.dropout_rate == 0.03
    seen = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    assert np.array_equal(
        model.predict(seen, deterministic=True)[0], loaded.predict(seen, deterministic=True)[0]
    )
    loaded.set_env(env)
    loaded.learn(60)


def test_it_learns_and_comes_back_from_a_file_that_executes_nothing(tmp_path):
    model = agent(dropout_rate=0.03)
    before = evaluate_policy(model, Target(), 50, warn=False)[0]
    model.learn(800)
    after = evaluate_policy(model, Target(), 50, warn=False)[0]
    assert after > -0.12 > before, (before, after)
    check_saved(model, Target(), tmp_path / "agent")


def test_hidden_layers_of_a_q_network_have_dropout_and_layer_norm_in_training_alone():
    policy = chooser(dropout_rate=0.5).policy
    own, target = policy.q_net, policy.q_net_target
    kinds = [nn.Linear, nn.Dropout, nn.LayerNorm, nn.ReLU] * 2 + [nn.Linear]
    for network in (own, target):
        assert [type(layer) for layer in network.q_net] == kinds
        assert {layer.p for layer in network.q_net if isinstance(layer, nn.Dropout)} == {0.5}
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), target.parameters(), strict=True))
    learned = {id(weights) for group in policy.optimizer.param_groups for weights in group["params"]}
    assert learned == {id(weights) for weights in own.parameters()}
    seen = torch.rand(4, 3)
    policy.set_training_mode(True)
    assert not torch.equal(own(seen), own(seen)) and torch.equal(target(seen), target(seen))
    policy.set_training_mode(False)
    assert torch.equal(own(seen), own(seen))


def test_dqn_learns_with_it_and_comes_back_from_a_file_that_executes_nothing(tmp_path):
    model = chooser(dropout_rate=0.03)
    before = evaluate_policy(model, Choice(), 200, warn=False)[0]
    model.learn(800)
    after = evaluate_policy(model, Choice(), 200, warn=False)[0]
    assert after > 0.9 > 0.7 > before, (before, after)
    check_saved(model, Choice(), tmp_path / "agent")


def test_cnn_policy_of_jepadqn_is_the_one_with_dropout():
    assert JEPADQN.policy_aliases["CnnPolicy"] is DropoutDQNPolicy
    assert DQN.policy_aliases["CnnPolicy"] is not DropoutDQNPolicy


@pytest.mark.parametrize("make", [agent, chooser])
def test_the_policy_alone_comes_back_from_a_file(tmp_path, make):
    policy = make(dropout_rate=0.07).policy
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy", device="cpu")
    assert loaded.dropout_rate == 0.07
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(policy.parameters(), loaded.parameters(), strict=True)
    )
