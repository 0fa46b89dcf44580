"""Parts of a user's own, as docs/own_parts.md has them: the test runs the page's code."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors import safe_open

from jepa_rl import EpisodeStore, TrainConfig, WindowSampler, WorldModel, WorldModelConfig, fit
from jepa_rl.agents import JEPAMPC, MPCAgent
from jepa_rl.control import ControlConfig
from jepa_rl.envs import PixelObservation, collect, wrap

PAGE = Path(__file__).parent.parent / "docs" / "own_parts.md"
BLOCKS = re.findall(r"(?<!-->\n)```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def write_module(folder: Path) -> Path:
    path = folder / "my_parts.py"
    path.write_text("\n".join(BLOCKS))
    return path


def load(path: Path):
    spec = importlib.util.spec_from_file_location("my_parts", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_parts"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return load(write_module(tmp_path_factory.mktemp("parts")))


def small_rooms():
    return PixelObservation(gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=20), size=16, frames=1)


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """A world model of nothing but own parts, as ``fit`` leaves it."""
    folder = tmp_path_factory.mktemp("trained")
    store = collect(small_rooms(), folder / "episodes", episodes=6, seed=0, progress=False)
    torch.manual_seed(0)
    config = WorldModelConfig(store.spec, 8, encoder="pooled", dynamics="gaussian", objective="ordered")
    model, settings = WorldModel(config), TrainConfig(steps=12, batch_size=16, log_every=4)
    fit(model, WindowSampler(store, steps=3), settings, folder / "run", progress=False)
    return model, folder


def test_no_part_is_longer_than_thirty_lines():
    classes = [block for block in BLOCKS if re.search(r"^class \w+(?!.*Contract)", block, re.MULTILINE)]
    parts = [block for block in classes if "Contract" not in block]
    assert len(parts) == 5
    assert max(len(block.strip().splitlines()) for block in parts) <= 30


def test_fit_save_and_load(trained, tmp_path):
    model, folder = trained
    again = WorldModel.load(folder / "run" / "model.safetensors")
    assert again.config == model.config
    store = EpisodeStore.open(folder / "episodes")
    pixels = WindowSampler(store, steps=1).sample(4, np.random.default_rng(0)).pixels[:, 0]
    with torch.no_grad():
        z = model.encode(pixels)
        torch.testing.assert_close(again.encode(pixels), z, rtol=0, atol=0)
        paths = [
            m.rollout(z, torch.zeros(4, 3, 2), futures=5, generator=torch.Generator().manual_seed(1))
            for m in (model, again)
        ]
    torch.testing.assert_close(*paths, rtol=0, atol=0)
    assert paths[0].shape == (4, 5, 4, 8) and paths[0][:, :, -1].std(1).min() > 0
    again.save(tmp_path / "again.safetensors")
    with safe_open(tmp_path / "again.safetensors", "pt") as file:
        header = json.loads(file.metadata()["header"])
    assert header["registered_by"] == dict.fromkeys(("encoder", "dynamics", "objective"), "my_parts")


def test_latents_for_any_agent(trained):
    _, folder = trained
    env = wrap(small_rooms(), folder / "run" / "model.safetensors")
    latent, _ = env.reset(seed=0)
    assert latent.shape == (8,) and latent.dtype == np.float32


def test_a_planner_and_a_cost(trained, parts, tmp_path):
    _, folder = trained
    env = small_rooms()
    planner = parts.RandomShooting(horizon=4, samples=32, futures=3)
    agent = MPCAgent(folder / "run" / "model.safetensors", planner, cost=parts.SoftGoal)
    agent.set_goal(env.reset(seed=1)[0])
    observation, _ = env.reset(seed=0)
    actions, state = [], None
    for _ in range(3):
        action, state = agent.predict(observation, state)
        actions.append(action)
        assert env.action_space.contains(action)
        observation, *_ = env.step(action)
    assert agent.last_plan.branches.shape == (1, 3, 5, 8)
    agent.save(tmp_path / "agent.safetensors")
    loaded = MPCAgent.load(tmp_path / "agent.safetensors", planner=planner, cost=parts.SoftGoal)
    loaded.set_goal(env.reset(seed=1)[0])
    first, _ = env.reset(seed=0)
    np.testing.assert_array_equal(loaded.predict(first)[0], actions[0])


def test_an_agent_that_learns_from_reward(parts, tmp_path):
    world = {"latent_dim": 8, "encoder": "pooled", "dynamics": "gaussian", "objective": "ordered"}
    agent = JEPAMPC(
        "CnnPolicy", small_rooms(), learning_starts=40, batch_size=16, seed=0, n_step=3,
        policy_kwargs={
            "world": world, "control": ControlConfig(width=24, bins=21),
            "samples": 8, "elites": 4, "iterations": 1, "proposals": 2, "horizon": 3,
        },
    )  # fmt: skip
    before = {name: p.clone() for name, p in agent.policy.model.world.named_parameters()}
    agent.learn(60)
    moved = {
        name.split(".")[0]
        for name, p in agent.policy.model.world.named_parameters()
        if not torch.equal(before[name], p)
    }
    assert moved == {"encoder", "dynamics", "objective"}
    agent.world.save(tmp_path / "world.safetensors")
    live, saved = (wrap(small_rooms(), model) for model in (agent.world, tmp_path / "world.safetensors"))
    latent, _ = live.reset(seed=0)
    assert latent.shape == (8,)
    np.testing.assert_array_equal(saved.reset(seed=0)[0], latent)


def test_the_contracts_of_the_page_hold(tmp_path):
    path = write_module(tmp_path)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        str(path),
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", found.stdout)[1]) > 30


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.safetensors"])
def test_a_file_of_parts_that_are_not_imported_says_what_to_import(name, trained, tmp_path):
    _, folder = trained
    code = f"""
from jepa_rl import WorldModel
try:
    WorldModel.load({str(folder / "run" / name)!r})
except ValueError as error:
    assert "'pooled'" in str(error) and "import my_parts" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
