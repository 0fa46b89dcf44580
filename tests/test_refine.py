"""Latents of whole stores, and the second phase of training on them."""

import numpy as np
import pytest
import torch

from jepa_rl import ActionSpec, Episode, EpisodeStore, WindowSampler, WorldModel, WorldModelConfig, WorldSpec
from jepa_rl.data.latent_windows import LatentEpisodes, LatentWindowSampler
from jepa_rl.diagnostics import rollout_error
from jepa_rl.envs import SmoothRandomPolicy, collect
from jepa_rl.envs.worlds.two_rooms import TwoRoomsVectorEnv
from jepa_rl.training import TrainConfig
from jepa_rl.training.refine import refine_dynamics

ACTION = ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0))


@pytest.fixture
def store(tmp_path):
    store = EpisodeStore.create(tmp_path / "episodes", (2, 64, 64), ACTION)
    rng = np.random.default_rng(0)
    for length in (7, 3, 12):
        store.append(
            Episode(
                frames=rng.integers(0, 255, (length + 1, 2, 64, 64), dtype=np.uint8),
                actions=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                rewards=np.zeros(length, np.float32),
            )
        )
    return store


def model(block=2):
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(WorldSpec((2, 64, 64), 1, ACTION, block), latent_dim=8)).eval()


def test_latents_are_those_of_the_frames(store):
    world = model()
    encoded = LatentEpisodes.encode(world, store, batch_size=5)
    assert encoded.lengths.tolist() == [7, 3, 12] and len(encoded.latents) == 7 + 3 + 12 + 3
    row = 0
    for i in range(len(store)):
        frames = torch.from_numpy(np.array(store.episode(i).frames))
        with torch.no_grad():
            torch.testing.assert_close(encoded.latents[row : row + len(frames)], world.encode(frames))
        row += len(frames)


def test_latent_windows_are_the_pixel_windows_encoded(store):
    """Both samplers hold the same windows in the same order, and equal generators draw the same ones."""
    world, block, steps = model(2), 2, 3
    pixels = WindowSampler(store, steps, block)
    latents = LatentWindowSampler(LatentEpisodes.encode(world, store), steps, block)
    assert len(latents) == len(pixels)
    batch = pixels.sample(20, np.random.default_rng(1))
    found = latents.sample(20, np.random.default_rng(1))
    with torch.no_grad():
        torch.testing.assert_close(found.latents, world.encode_windows(batch.pixels))
    torch.testing.assert_close(found.actions, batch.actions)
    assert found.states == batch.states == 20 * 4


def test_bad_episodes(store):
    world = model()
    with pytest.raises(ValueError, match="longest has 12"):
        LatentWindowSampler(LatentEpisodes.encode(world, store), 7, 2)
    other = WorldModel(WorldModelConfig(WorldSpec((4, 64, 64), 1, ACTION), latent_dim=8))
    with pytest.raises(ValueError, match="the model reads"):
        LatentEpisodes.encode(other, store)


def test_refining_learns_the_dynamics_and_leaves_the_encoder(tmp_path):
    venv = TwoRoomsVectorEnv(16, max_episode_steps=20, start="any")
    episodes = collect(
        venv,
        tmp_path / "episodes",
        policy=SmoothRandomPolicy(ACTION, 16),
        episodes=60,
        seed=0,
        progress=False,
    )
    torch.manual_seed(0)
    world = WorldModel(WorldModelConfig(WorldSpec((2, 64, 64), 1, ACTION, 5), latent_dim=16))
    world.train()
    for _ in range(30):  # the batch norm's running moments
        world.encode(WindowSampler(episodes, 1).sample(64, np.random.default_rng(0)).pixels[:, 0])
    encoder = {name: tensor.clone() for name, tensor in world.encoder.state_dict().items()}
    latents = LatentEpisodes.encode(world, episodes)
    batch = LatentWindowSampler(latents, 3, 5).sample(200, np.random.default_rng(1))
    before = rollout_error(world, batch.latents, batch.actions).mean()
    config = TrainConfig(steps=300, batch_size=64, learning_rate=2e-3)
    refine_dynamics(world, episodes, tmp_path / "refined", steps=3, config=config, progress=False)
    after = rollout_error(world, batch.latents, batch.actions).mean()
    assert after < before / 100, (before, after)
    for name, tensor in world.encoder.state_dict().items():
        assert torch.equal(tensor, encoder[name]), name
    again = WorldModel.load(tmp_path / "refined" / "model.safetensors")
    torch.testing.assert_close(
        again.rollout(batch.latents[:, 0], batch.actions), world.rollout(batch.latents[:, 0], batch.actions)
    )


def test_a_run_on_another_encoders_latents_is_not_gone_on_with(store, tmp_path):
    config = TrainConfig(steps=2, batch_size=8)
    refine_dynamics(model(), store, tmp_path / "run", steps=2, config=config, progress=False)
    torch.manual_seed(1)
    other = WorldModel(model().config).eval()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="encoder"):
        refine_dynamics(other, store, tmp_path / "run", steps=2, config=config, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("kind", ["flow", "ensemble", "mixture"])
def test_dynamics_that_draw_futures_go_on_exactly_after_an_interruption(store, tmp_path, monkeypatch, kind):
    world = model()
    latents = LatentEpisodes.encode(world, store)
    config = TrainConfig(steps=12, batch_size=8, checkpoint_every=5)

    def refined(folder):
        torch.manual_seed(1)
        other = world.with_dynamics(kind, width=16)
        refine_dynamics(other, latents, tmp_path / folder, steps=2, config=config, progress=False)
        return other

    whole = refined("whole")
    sample, calls = LatentWindowSampler.sample, iter(range(9))

    def interrupted(*args):
        next(calls)  # StopIteration at the tenth: the checkpoint is at the fifth
        return sample(*args)

    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(LatentWindowSampler, "sample", interrupted)
        refined("halves")
    assert (tmp_path / "halves" / "checkpoint.safetensors").exists()
    again = refined("halves")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
