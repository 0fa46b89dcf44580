"""``copy.deepcopy`` of world models, policies and agents: the copy answers alike, and shares nothing that changes."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from jepa_rl.agents.sb3.jepa_mpc import JEPAMPC
from jepa_rl.control import ControlConfig
from jepa_rl.training import descend
from jepa_rl.types import ActionSpec, ControlBatch, WorldSpec
from jepa_rl.world_model import WorldModel, WorldModelConfig

SPEC = WorldSpec((2, 16, 16), 2, ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)))


class Line(gym.Env):
    """A point that actions move."""

    observation_space = spaces.Box(-2, 2, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0
        return self.x.copy(), {}

    def step(self, action):
        self.x, self.t = np.clip(self.x + 0.1 * action, -2, 2).astype(np.float32), self.t + 1
        return self.x.copy(), -float(abs(self.x[0])), False, self.t >= 6, {}


def learned(**options):
    kwargs = {
        "world": {"latent_dim": 8},
        "control": ControlConfig(width=24, bins=21),
        "samples": 8,
        "elites": 4,
    }
    agent = JEPAMPC(
        "MlpPolicy", Line(), learning_starts=12, batch_size=8, n_step=3, seed=0, policy_kwargs=kwargs
    )
    return agent.learn(20)


def explored(policy, steps=4):
    """Actions of a policy that explores, which draw from its generator."""
    return np.stack([policy.predict(np.array([[0.5]], np.float32))[0] for _ in range(steps)])


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def batch():
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, *SPEC.pixels), dtype=torch.uint8, generator=rng)
    ones = torch.ones(6, 2)
    return ControlBatch(
        observations=pixels, actions=2 * torch.rand(6, 2, 2, generator=rng) - 1, rewards=ones,
        terminated=ones == 0, valid=ones == 1, returns=ones, discounts=ones, ended=ones[:, 0] == 0, future=pixels[:, 0],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "dynamics"),
    [
        ("lewm", "mlp"),
        ("eb_jepa", "gru"),
        ("ema", "flow"),
        ("consistency", "mlp"),
        ("change", "mlp"),
        ("reconstruction", "ensemble"),
    ],
)
def test_a_world_model_that_has_learned(objective, dynamics):
    torch.manual_seed(0)
    small = (
        {"objective_options": {"shift": 0}}
        if objective in ("consistency", "change", "reconstruction")
        else {}
    )
    world = WorldModel(WorldModelConfig(SPEC, 8, objective=objective, dynamics=dynamics, **small))
    optimizer = torch.optim.SGD(world.parameters(), 0.1)

    def update(model, optimizer):
        loss, _ = model.train().loss(batch(), torch.Generator().manual_seed(1))
        descend(loss, [optimizer], model.parameters(), 1.0)
        model.after_update()

    update(world, optimizer)
    other, before = copy.deepcopy(world), weights(world)
    pixels, z, actions = batch().observations[:, 0], torch.zeros(2, 8), torch.zeros(2, 3, 2)
    for model in (world.eval(), other.eval()):
        model.seen = (
            model.encode(pixels),
            model.rollout(z, actions, generator=torch.Generator().manual_seed(2)),
        )
    assert all(map(torch.equal, world.seen, other.seen))
    update(other, torch.optim.SGD(other.parameters(), 0.1))
    assert same(weights(world), before) and not same(weights(other), before)
    update(world, optimizer)
    assert same(weights(world), weights(other))


def test_a_policy_searches_in_its_own_copy_and_explores_with_its_own_numbers():
    agent = learned()
    policy, before = copy.deepcopy(agent.policy), weights(agent.policy)
    assert policy.searched[0] is policy.average
    with torch.no_grad():
        for parameter in copy.deepcopy(policy).parameters():
            parameter.zero_()
    assert same(weights(agent.policy), before) and same(weights(policy), before)
    first = explored(policy)
    np.testing.assert_array_equal(
        explored(agent.policy), first
    )  # the copy has drawn from a generator of its own
    assert not np.array_equal(explored(policy), first)


def test_an_agent_goes_on_learning_as_its_copy_does():
    agent = learned()
    other = copy.deepcopy(agent)
    before = weights(agent.policy)
    other.learn(12, reset_num_timesteps=False)
    assert same(weights(agent.policy), before) and not same(weights(other.policy), before)
    agent.learn(12, reset_num_timesteps=False)
    assert same(weights(agent.policy), weights(other.policy))
    np.testing.assert_array_equal(explored(agent.policy), explored(other.policy))
