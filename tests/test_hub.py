"""Checkpoints of the package: every one has a card and does what it says, and what is wrong is told in words."""

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

from jepa_rl import hub
from jepa_rl.agents import CEM, FlowProposals, MPCAgent, TreeSearch, play_episodes
from jepa_rl.costs import GoalCost
from jepa_rl.envs import GoalObservation, SB3LatentObservation, VectorLatentObservation, wrap
from jepa_rl.files import load_tensors
from jepa_rl.world_model import WorldModel

TWO_ROOMS = "jepa_rl/TwoRooms-v0"
MB = 1_000_000


def test_two_rooms_is_there_and_all_files_are_small():
    assert "two-rooms" in hub.names()
    sizes = {name: hub.path(name).stat().st_size for name in hub.names()}
    assert max(sizes.values()) <= 2 * MB and sum(sizes.values()) <= 8 * MB, sizes
    known = {f"{name}{suffix}" for name in hub.names() for suffix in (".safetensors", ".json")}
    files = {file.name for file in hub.FOLDER.iterdir() if file.name != "__pycache__"}
    assert files == known | {"__init__.py"}


@pytest.mark.parametrize("name", hub.names())
def test_a_checkpoint_is_what_its_card_says(name):
    card = hub.card(name)
    file = hub.path(name)
    assert card.name == name and card.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert all((card.holds, card.data, card.training_seeds, card.commit, card.protocol, card.recipe))
    assert {"python", "torch", "numpy"} <= card.versions.keys()
    if card.score is None:
        assert "development" in card.note
    else:
        assert card.score.low <= card.score.mean <= card.score.high and card.score.episodes > 0
    world = WorldModel.load(f"hub:{name}")
    assert not world.training and world.spec.source, "it does not say how its pictures were made"
    assert all(torch.isfinite(weight).all() for weight in world.state_dict().values())


def test_two_rooms_plans_through_the_door():
    env = partial(gym.make, TWO_ROOMS, max_episode_steps=200)
    agent = MPCAgent("hub:two-rooms", TreeSearch(12), cost=partial(GoalCost, reduce="last"), hold=True)
    played = play_episodes(agent, lambda: GoalObservation(env()), [5_000_000 + i for i in range(5)])
    assert (played.returns > 0).sum() >= 4, played.returns


def test_a_name_stands_wherever_a_path_of_a_world_model_does(tmp_path):
    world = WorldModel.load("hub:two-rooms")
    for path in (Path("hub:two-rooms"), hub.path("two-rooms"), str(hub.path("hub:two-rooms"))):
        other = WorldModel.load(path)
        assert other.encoder_fingerprint() == world.encoder_fingerprint()
    env = wrap(gym.make(TWO_ROOMS), "hub:two-rooms")
    assert env.reset(seed=0)[0].shape == (world.latent_dim,)
    again = gym.make(
        gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    )  # by the name, on any machine
    np.testing.assert_array_equal(again.reset(seed=0)[0], env.reset(seed=0)[0])
    assert SB3LatentObservation(make_vec_env(TWO_ROOMS, 2), "hub:two-rooms").reset().shape == (2, 64)
    vector = VectorLatentObservation(gym.make_vec(TWO_ROOMS, 2), "hub:two-rooms")
    assert vector.reset(seed=0)[0].shape == (2, 64)
    assert MPCAgent("hub:two-rooms", CEM(3)).spec == world.spec
    for load in (world.load_dynamics, FlowProposals.load, MPCAgent.load):
        with pytest.raises(ValueError, match=r"two-rooms.safetensors holds a 'world_model', expected one of"):
            load("hub:two-rooms")


@pytest.mark.parametrize("load", [WorldModel.load, hub.path, hub.card])
def test_an_unknown_name_is_told_the_known_ones(load):
    for name in ("hub:three-rooms", "hub:", "hub:../hub/two-rooms"):
        with pytest.raises(ValueError, match=r"no checkpoint 'hub:.*choose one of \[.*'hub:two-rooms'"):
            load(name)


def test_nothing_is_saved_under_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = WorldModel.load("hub:two-rooms")
    for save in (world.save, world.save_dynamics, MPCAgent(world, CEM(3)).save):
        with pytest.raises(
            ValueError, match=r"'hub:mine' names a checkpoint of the package.*save under a path"
        ):
            save("hub:mine")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path):
    """A copy of one checkpoint and its card."""
    for suffix in (".safetensors", ".json"):
        shutil.copy(hub.FOLDER / f"two-rooms{suffix}", tmp_path)
    assert hub.names(tmp_path) == ["two-rooms"] and hub.path("two-rooms", tmp_path).parent == tmp_path
    return tmp_path


def test_a_checkpoint_without_its_card_is_refused(folder):
    (folder / "two-rooms.json").unlink()
    for ask in (hub.path, hub.card):
        with pytest.raises(ValueError, match=r"has no card: .*two-rooms.json is missing; reinstall"):
            ask("two-rooms", folder)


def test_a_file_that_is_not_its_cards_is_refused(folder):
    file = folder / "two-rooms.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"not the checkpoint of its card: expected sha256 \w{64}, got \w{64}"
    ):
        hub.path("two-rooms", folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data | {"name": "three-rooms"}, "the card of 'three-rooms'"),
        (lambda data: data | {"size": 3}, r"unknown entries \['size'\]"),
        (lambda data: {name: value for name, value in data.items() if name != "commit"}, "commit"),
        (lambda data: data | {"score": {"mean": 1.0}}, "episodes"),
        (lambda data: [data], "no card of this version"),
    ],
)
def test_a_damaged_card_is_refused(folder, change, words):
    card = folder / "two-rooms.json"
    card.write_text(json.dumps(change(json.loads(card.read_text()))))
    with pytest.raises(ValueError, match=words):
        hub.card("two-rooms", folder)
    card.write_text("{")
    with pytest.raises(ValueError, match="no card of this version"):
        hub.card("two-rooms", folder)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_checkpoints_load_from_a_read_only_folder(folder):
    folder.chmod(0o555)
    try:
        load_tensors(hub.path("two-rooms", folder), ("world_model",))
    finally:
        folder.chmod(0o755)
