"""JEPAMPC's weights without pickles: what is loaded acts as what was saved, and goes on learning."""

import json
import warnings
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors import safe_open
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from jepa_rl.agents import JEPAMPC
from jepa_rl.control import ControlConfig, load_control
from jepa_rl.envs import ActionRepeat, PixelObservation, wrap
from jepa_rl.world_model import WorldModel

SEARCH = dict(samples=16, elites=4, iterations=2, proposals=2, horizon=3, temperature=0.7)


class Lights(gym.Env):
    """A bright column that the action moves; uint8 pictures without OpenGL."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(0, 255, (4,), np.float32)

    def __init__(self, discrete: bool = False, render_mode: str | None = "rgb_array", colour: int = 255):
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,), np.float32)
        self.discrete, self.render_mode, self.colour = discrete, render_mode, colour

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(4, 28)), 0
        return np.full(4, self.x, np.float32), {}

    def step(self, action):
        self.x = float(np.clip(self.x + 3 * (int(action) - 1 if self.discrete else action[0]), 2, 29))
        self.t += 1
        return np.full(4, self.x, np.float32), -abs(self.x - 16) / 16, self.x <= 2, self.t >= 12, {}

    def render(self):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[:, int(self.x) - 2 : int(self.x) + 2] = self.colour
        return picture


gym.register("test/Lights-v0", entry_point=Lights)


def pixels(repeat: int = 1, **options):
    env = gym.make("test/Lights-v0", disable_env_checker=True, **options)
    return PixelObservation(ActionRepeat(env, repeat) if repeat > 1 else env, size=32, frames=2)


def trained(env, steps: int = 40, **settings) -> JEPAMPC:
    world = {"latent_dim": 16, "dynamics_options": {"width": 24, "depth": 1}}
    policy = dict(world=world, control=ControlConfig(width=24, values=3, bins=21), **SEARCH)
    agent = JEPAMPC(
        "MlpPolicy", env, learning_starts=20, batch_size=8, gamma=0.9, policy_kwargs=policy, **settings
    )
    return agent.learn(steps)


CASES = {
    "vector": lambda: gym.make("test/Lights-v0", disable_env_checker=True),
    "pixels": pixels,
    "discrete": lambda: pixels(discrete=True),
}


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    make = CASES[request.param]
    agent = trained(make(), seed=5, encoder_rate=0.5)
    path = tmp_path_factory.mktemp("weights") / "agent.safetensors"
    agent.save_weights(path)
    return make, agent, path


def test_the_loaded_agent_acts_as_the_saved_one(saved):
    make, agent, path = saved
    other = JEPAMPC.from_weights(path, make())
    assert not other.world.training, "its encoder would normalise by the batch at hand"
    seen = np.stack([agent.observation_space.sample() for _ in range(3)])
    mine, theirs = (a.predict(seen, deterministic=True) for a in (agent, other))
    np.testing.assert_array_equal(mine[0], theirs[0])
    np.testing.assert_array_equal(mine[1][0], theirs[1][0])
    assert evaluate_policy(agent, make_vec_env(make, 1, seed=1), 2) == evaluate_policy(
        other, make_vec_env(make, 1, seed=1), 2
    )
    assert other.policy.settings["temperature"] == 0.7 and other.policy.planner == agent.policy.planner
    facts = ("gamma", "batch_size", "encoder_rate", "seed", "gradient_steps", "train_freq")
    assert all(getattr(other, name) == getattr(agent, name) for name in facts)
    assert other.replay_buffer is None, "an agent that only acts needs no replay"


def test_it_goes_on_learning_and_can_be_saved_again(saved, tmp_path):
    make, agent, path = saved
    other = JEPAMPC.from_weights(path, make(), learning_rate=2e-3, policy_kwargs={"samples": 24})
    assert other.policy.planner.samples == 24 and other.lr_schedule(1.0) == 2e-3
    assert other.policy.settings["horizon"] == 3
    before = {name: weight.clone() for name, weight in other.policy.model.state_dict().items()}
    updates = other._n_updates
    assert updates == agent._n_updates == int(agent.policy.updates)
    other.learn(30)
    # No random steps, and no updates that are owed for steps of before: one for each step after the first episode.
    assert updates < other._n_updates <= updates + 30
    changed = {name.split(".")[0] for name, weight in other.policy.model.state_dict().items()
               if not torch.equal(weight, before[name])}  # fmt: skip
    assert changed >= {"world", "reward_head", "value_heads", "target_heads", "policy", "end_head"}
    other.save_weights(tmp_path / "again.safetensors")
    JEPAMPC.from_weights(tmp_path / "again.safetensors", make())


def test_a_file_says_what_it_holds_and_pickles_nothing(saved):
    _, agent, path = saved
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["header"])
        assert not any("target_heads" in name for name in file.keys())  # noqa: SIM118
    assert header["control"]["values"] == 3 and header["discount"] == 0.9
    assert json.loads(header["config"]["spec"]["source"])[0][0] == "test/Lights-v0"
    assert path.read_bytes()[8:9] == b"{"
    model, _ = load_control(path)
    assert not model.training
    z, action = torch.randn(4, 16), torch.zeros(4, model.action_dim)
    torch.testing.assert_close(model.value(z, action), agent.policy.average.value(z, action))
    for one, other in zip(model.target_heads.parameters(), model.value_heads.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    world = WorldModel.load(path)
    assert world.encoder_fingerprint() == agent.world.encoder_fingerprint()


def test_the_world_inside_wraps_an_environment(saved):
    make, agent, path = saved
    if agent.world.spec.pixels is not None:
        assert wrap(make(), str(path)).reset(seed=0)[0].shape == (16,)


def test_an_agent_that_was_not_trained_yet_can_be_saved(tmp_path):
    agent = JEPAMPC("MlpPolicy", CASES["vector"](), learning_rate=1e-3)
    agent.save_weights(tmp_path / "a.safetensors")
    other = JEPAMPC.from_weights(tmp_path / "a.safetensors", CASES["vector"](), buffer_size=500)
    assert other.n_step == 10 and other.lr_schedule(1.0) == 1e-3 and other.seed is None


@pytest.fixture(scope="module")
def from_pixels(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "agent.safetensors"
    trained(pixels(), steps=21).save_weights(path)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pixels(discrete=True), "actions .*continuous.* then, .*discrete.* now.*discrete=False then"),
        (lambda: PixelObservation(gym.make("test/Lights-v0"), size=32), "stacked frames 2 then, 3 now"),
        (
            lambda: PixelObservation(gym.make("test/Lights-v0"), size=16, frames=2),
            r"\(6, 32, 32\).* then, .*16",
        ),
        (lambda: "CartPole-v1", "environment 'test/Lights-v0' then, 'CartPole-v1' now.*Make the environment"),
    ],
)
def test_another_environment_is_refused(from_pixels, make, words):
    with pytest.raises(ValueError, match=words):
        JEPAMPC.from_weights(from_pixels, make())


def test_pictures_that_were_made_otherwise_are_warned_of(from_pixels):
    for make, words in (
        (lambda: pixels(colour=90), "colour=255 then, colour=90 now"),
        (lambda: pixels(repeat=2), "wrappers .* then, .*ActionRepeat.* now"),
    ):
        with pytest.warns(UserWarning, match=words) as caught:
            JEPAMPC.from_weights(from_pixels, make())
        assert any(warning.filename == __file__ for warning in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JEPAMPC.from_weights(from_pixels, pixels())


def test_wrong_files_and_arguments_are_refused(from_pixels, tmp_path):
    with pytest.raises(ValueError, match=r"policy_kwargs may change the search, got \['world'\]"):
        JEPAMPC.from_weights(from_pixels, pixels(), policy_kwargs={"world": {"latent_dim": 8}})
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        JEPAMPC.from_weights(tmp_path / "none", pixels())
    WorldModel.load(from_pixels).save(tmp_path / "world")
    with pytest.raises(ValueError, match="holds a 'world_model', expected one of"):
        JEPAMPC.from_weights(tmp_path / "world", pixels())
    with pytest.raises(ValueError, match="no checkpoint 'hub:tennis'; choose one of"):
        JEPAMPC.from_weights("hub:tennis", pixels())
    data = from_pixels.read_bytes()
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        JEPAMPC.from_weights(tmp_path / "half", pixels())
