"""Files of version 0.1.0 answer as they did: latents, rollouts and samples equal to 1e-5.

``data/0.1.0/make_fixtures.py`` wrote them, and what they answered, with version 0.1.0 installed.
"""

import io
import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

import jepa_rl.encoders.conv
from jepa_rl import EpisodeStore, TrainConfig, WindowSampler, WorldModel, fit
from jepa_rl.agents import JEPAMPC, FlowProposals, InverseModelAgent, MPCAgent
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.data.replay import EpisodeReplay
from jepa_rl.files import load_tensors, save_tensors

FOLDER = Path(__file__).parent / "data" / "0.1.0"
EXPECTED = load_file(FOLDER / "expected.safetensors")
FACTS = json.loads((FOLDER / "expected.json").read_text())
# Adam makes much of a small difference of the gradients.
RESUMED = 2e-3


def check(name, found, tolerance=1e-5):
    found = found if isinstance(found, torch.Tensor) else torch.from_numpy(np.array(found))
    torch.testing.assert_close(found.double(), EXPECTED[name].double(), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def check_model(name, model, tolerance=1e-5):
    z = model.encode(EXPECTED[f"inputs/pixels_{'x'.join(map(str, model.spec.pixels))}"])
    check(f"{name}/latents", z, tolerance)
    for futures in (1, 3):
        generator = torch.Generator().manual_seed(FACTS[name]["generator_seed"])
        path = model.rollout(z[:3], EXPECTED[f"{name}/actions"], futures=futures, generator=generator)
        check(f"{name}/rollout_{futures}", path, tolerance)


@pytest.fixture
def store(tmp_path):
    """A copy: a writer's lock is a file."""
    name = "store_frames3_extra_position"
    return EpisodeStore.open(shutil.copytree(FOLDER / name, tmp_path / name))


@pytest.fixture
def world_of(tmp_path):
    """A world model of these files by its name; without ``context_noise``, which no version since has."""

    def load(name):
        tensors, header = load_tensors(FOLDER / f"{name}.safetensors", ("world_model",))
        header["config"]["dynamics_options"].pop("context_noise", None)
        save_tensors(tmp_path / f"{name}.safetensors", "world_model", tensors, header)
        return WorldModel.load(tmp_path / f"{name}.safetensors")

    return load


def pictures(shape):
    return EXPECTED[f"inputs/pixels_{'x'.join(map(str, shape))}"].numpy()


NOISY = "world_conv_flow_low_noise_shift_context_noise"
WORLDS = sorted(path for path in FOLDER.glob("world_*.safetensors") if path.stem != NOISY)


@pytest.mark.parametrize("path", WORLDS, ids=lambda path: path.stem)
def test_world_models(path):
    model = WorldModel.load(path)
    check_model(path.stem, model)
    assert model.encoder_fingerprint() == FACTS[path.stem]["encoder_fingerprint"]


def test_an_option_that_is_gone_is_refused_in_words(world_of):
    """Nothing used it. Its encoder, and dynamics of their own on it, are as good as ever."""
    with pytest.raises(ValueError, match=r"context_noise=0.1 .* is gone"):
        WorldModel.load(FOLDER / f"{NOISY}.safetensors")
    model = world_of(NOISY)
    with torch.no_grad():
        check(f"{NOISY}/latents", model.encode(EXPECTED["inputs/pixels_3x16x16"]))


def test_a_world_model_is_saved_anew_and_stays_what_it_is(tmp_path):
    old = WorldModel.load(FOLDER / "world_keypoints_transformer_ema.safetensors")
    old.save(tmp_path / "model.safetensors")
    check_model("world_keypoints_transformer_ema", WorldModel.load(tmp_path / "model.safetensors"))


def test_an_episode_store(store):
    sampler, rng = WindowSampler(store, steps=2, block=2), np.random.default_rng
    windows, batch = sampler.draw(2, rng(11)), sampler.sample(2, rng(11))
    pairs = sampler.sample_pairs(2, rng(12), max_offset=3)
    single = WindowSampler(store.view([0, 2]), steps=3, frames=1).sample(2, rng(13))
    found = dict(
        windows=windows, pixels=batch.pixels, actions=batch.actions, rewards=batch.rewards,
        terminated=batch.terminated, position=sampler.extra("position", windows), pairs_pixels=pairs.pixels,
        pairs_goals=pairs.goals, pairs_actions=pairs.actions, pairs_offsets=pairs.offsets,
        view_pixels=single.pixels, view_actions=single.actions,
    )  # fmt: skip
    for key, value in found.items():
        check(f"store_frames3_extra_position/{key}", value)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_goes_on_from_its_checkpoint(optimizer, store, tmp_path, monkeypatch):
    monkeypatch.setattr(jepa_rl.encoders.conv, "bfloat16_is_fast", lambda device: False)
    name = f"checkpoint_{optimizer}_at_3_of_6"
    run = shutil.copytree(FOLDER / name, tmp_path / "run")
    model = WorldModel.load(run / "checkpoint.safetensors")
    check_model(name, model)
    fit(model, WindowSampler(store, steps=2), TrainConfig(**FACTS[name]["train"]), run, progress=False)
    check_model(f"{name}_resumed", model, RESUMED)


def test_dynamics_of_their_own_file(store, world_of):
    (path,) = FOLDER.glob("dynamics_*.safetensors")
    world = world_of(FACTS[path.stem]["world"])
    check_model(path.stem, world.load_dynamics(path))
    encoded = LatentEpisodes.encode(world, store)
    check(f"{path.stem}/store_latents", encoded.latents)
    check(f"{path.stem}/store_actions", encoded.actions)


def test_flow_proposals(tmp_path):
    (packed,) = FOLDER.glob("flow_proposals_*.xz")
    name = packed.name.removesuffix(".safetensors.xz")
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(lzma.decompress(packed.read_bytes()))
    world = WorldModel.load(FOLDER / f"{FACTS[name]['world']}.safetensors")
    z, goal = EXPECTED[f"{name}/z"], EXPECTED[f"{name}/goal"]
    proposals = FlowProposals.load(file, world=world)
    paths, actions = proposals.draw(z, goal, 6, torch.Generator().manual_seed(7))
    check(f"{name}/paths", paths)
    check(f"{name}/actions", actions)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("mpc_agent_*.safetensors")), ids=lambda path: path.stem)
def test_planning_agents(path):
    agent, state, found = MPCAgent.load(path), None, []
    rows = pictures(agent.spec.pixels)
    for call, i in enumerate((0, 1, 2, 0, 1, 2)):
        start = np.array([call == 0, call in (0, 3)])
        chosen, state = agent.predict({"pixels": rows[i : i + 2], "goal": rows[3:5]}, state, start)
        found.append(chosen)
    check(f"{path.stem}/predicted", np.stack(found))
    check(f"{path.stem}/plan", state.plan)


def test_an_inverse_model_agent():
    agent, rows = InverseModelAgent.load(FOLDER / "inverse_model_agent.safetensors"), pictures((3, 16, 16))
    check("inverse_model_agent/predicted", agent.predict({"pixels": rows[:2], "goal": rows[3:5]})[0])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("replay_*.safetensors")), ids=lambda path: path.stem)
def test_replays(path):
    bounds = {"uint8": (0, 255), "float32": (-np.inf, np.inf)}
    space = {
        name: spaces.Box(*bounds[dtype], tuple(shape), np.dtype(dtype))
        for name, (shape, dtype) in FACTS[path.stem]["space"].items()
    }
    replay = EpisodeReplay(space, 2, 60, FACTS[path.stem]["frames"])
    replay.load(path)
    for n_step in (2, 4):
        batch = replay.sample(4, 2, np.random.default_rng(51), n_step, 0.9)
        for key, value in vars(batch).items():
            if value is None:
                continue
            named = value if isinstance(value, dict) else {"": value}
            if isinstance(value, torch.Tensor) and key in ("observations", "future"):
                named = {"observation": value}
            for part, x in named.items():
                check(f"{path.stem}/n{n_step}_{key}{f'.{part}' if part else ''}", x)


def test_zip_files_of_jepa_mpc_are_refused_before_anything_is_unpickled(tmp_path, monkeypatch):
    def unpickled(*_: object, **__: object):
        raise AssertionError("nothing of this file is to be unpickled")

    monkeypatch.setattr("stable_baselines3.common.save_util.cloudpickle.loads", unpickled)
    words = "was saved by jepa-rl 0.1.0, whose JEPAMPC had another model.*finish with it there, or train anew"
    for path in (
        FOLDER / "jepa_mpc.zip",
        str(FOLDER / "jepa_mpc"),
        io.BytesIO((FOLDER / "jepa_mpc.zip").read_bytes()),
    ):
        with pytest.raises(ValueError, match=words):
            JEPAMPC.load(path)
    (tmp_path / "text.zip").write_text("no zip file")
    with pytest.raises(ValueError, match="wasn't a zip-file"):
        JEPAMPC.load(tmp_path / "text.zip")
    with pytest.raises(FileNotFoundError):
        JEPAMPC.load(tmp_path / "none.zip")
