"""Minari in and out, with the real library, offline, bit for bit."""

import sys

import gymnasium as gym
import numpy as np
import pytest

from jepa_rl.data import Episode, EpisodeStore
from jepa_rl.envs.minari import export_minari, import_minari
from jepa_rl.types import ActionSpec

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")

CONTINUOUS = ActionSpec("continuous", 2, (-1.0, 0.0), (1.0, 4.0))
DISCRETE = ActionSpec("discrete", 3, start=1)
MULTI = ActionSpec("discrete", 5, choices=(2, 3), starts=(0, 4))


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def make_store(path, action=CONTINUOUS, shape=(3, 40, 40), extras=True):
    rng = np.random.default_rng(0)
    kinds = {"position": ((2,), np.float64), "door": ((), np.int64)} if extras else {}
    store = EpisodeStore.create(path, shape, action, frames=2, extras=kinds)
    actions = {
        CONTINUOUS: lambda steps: rng.random((steps, 2), np.float32),
        DISCRETE: lambda steps: rng.integers(1, 4, steps),
        MULTI: lambda steps: rng.integers([0, 4], [2, 7], (steps, 2)),
    }
    for seed, length in enumerate([3, 1, 5]):
        columns = {"position": rng.random((length + 1, 2)), "door": rng.integers(0, 9, length + 1)}
        store.append(
            Episode(
                rng.integers(0, 256, (length + 1, *shape), np.uint8),
                actions[action](length),
                rng.random(length, np.float32),
                terminated=seed == 0,
                truncated=seed == 1,
                extras=columns if extras else {},
                metadata={"seed": seed, "policy": "random"},
            )
        )
    return store


def assert_same_episodes(one, two):
    assert len(one) == len(two)
    for a, b in zip(map(one.episode, range(len(one))), map(two.episode, range(len(two))), strict=True):
        for name in ("frames", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert a.extras.keys() == b.extras.keys()
        for name in a.extras:
            np.testing.assert_array_equal(a.extras[name], b.extras[name])
        assert (a.terminated, a.truncated, a.metadata) == (b.terminated, b.truncated, b.metadata)


@pytest.mark.parametrize("action", [CONTINUOUS, DISCRETE, MULTI], ids=["continuous", "discrete", "multi"])
@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 8, 8), (40, 64, 64)])
def test_a_round_trip_changes_nothing(tmp_path, datasets, action, shape):
    """(40, 64, 64) is what Minari itself takes for a picture, which it stores as JPEG unless told not to."""
    store = make_store(tmp_path / "one", action, shape)
    export_minari(store, "rooms/random-v0")
    back = import_minari("rooms/random-v0", tmp_path / "two")
    assert back.layout == store.layout
    assert_same_episodes(store, back)
    assert_same_episodes(store, import_minari(datasets / "rooms" / "random-v0", tmp_path / "three"))


def test_minari_reads_what_was_exported(tmp_path):
    store = make_store(tmp_path / "one")
    held_out = store.view([2, 0])
    export_minari(held_out, "random-v3", metadata={"description": "three episodes"})
    dataset = minari.load_dataset("random-v3")
    assert (dataset.total_episodes, dataset.total_steps) == (2, 8)
    assert dataset.storage.metadata["description"] == "three episodes"
    assert dataset.observation_space == gym.spaces.Box(0, 255, (3, 40, 40), np.uint8)
    np.testing.assert_allclose(dataset.action_space.low, CONTINUOUS.low)
    first = dataset[0]
    np.testing.assert_array_equal(first.observations, store.episode(2).frames)
    np.testing.assert_array_equal(first.infos["position"], store.episode(2).extras["position"])
    assert minari.list_local_datasets().keys() == {"random-v3"}


class Camera(gym.Env):
    """Pictures (y, x, c) of noise with a Dict beside them, as other people's datasets have."""

    observation_space = gym.spaces.Dict(
        camera=gym.spaces.Box(0, 255, (48, 32, 3), np.uint8), speed=gym.spaces.Box(-9, 9, (2,), np.float64)
    )
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.look(), {}

    def step(self, action):
        return self.look(), 1.0, False, False, {}

    def look(self):
        picture = self.np_random.integers(0, 256, (48, 32, 3), np.uint8)
        return {"camera": picture, "speed": self.np_random.random(2)}


def record_foreign_dataset(**options):
    """As Minari's own collector would store it."""
    env, buffers, seen = Camera(), [], []
    for seed in range(2):
        observations, rewards = [env.reset(seed=seed)[0]], []
        for _ in range(4):
            observation, reward, *_ = env.step(0)
            observations.append(observation)
            rewards.append(reward)
        seen.append(observations)
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations={
                    name: np.stack([o[name] for o in observations]) for name in ("camera", "speed")
                },
                actions=np.array([0, 1, 1, 0]),
                rewards=rewards,
                terminations=[False] * 4,
                truncations=[False] * 3 + [True],
            )
        )
    minari.create_dataset_from_buffers(
        "foreign-v0",
        buffers,
        observation_space=env.observation_space,
        action_space=env.action_space,
        jpeg_encoding=False,
    )
    return seen


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_peoples_pictures_become_channels_first_frames(tmp_path):
    seen = record_foreign_dataset()
    store = import_minari("foreign-v0", tmp_path / "s", key="camera", extras=["speed"], frames=3)
    assert store.layout.frame_shape == (3, 48, 32)
    assert store.spec.frames == 3
    for i, observations in enumerate(seen):
        want = np.stack([o["camera"].transpose(2, 0, 1) for o in observations])
        np.testing.assert_array_equal(store.episode(i).frames, want)
        np.testing.assert_array_equal(store.episode(i).extras["speed"], [o["speed"] for o in observations])
    assert (store.episode(1).terminated, store.episode(1).truncated) == (False, True)
    small = import_minari("foreign-v0", tmp_path / "small", key="camera", size=16)
    assert small.layout.frame_shape == (3, 16, 16)
    blocks = store.episode(0).frames.reshape(5, 3, 16, 3, 16, 2).mean((3, 5))
    np.testing.assert_allclose(small.episode(0).frames, blocks, atol=1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mistakes_are_named_and_leave_nothing(tmp_path, datasets):
    store = make_store(tmp_path / "one")
    export_minari(store, "random-v0")
    record_foreign_dataset()
    with pytest.raises(ValueError, match="is there already"):
        export_minari(store, "random-v0")
    for wrong in ("no version", "random", "a b-v0"):
        with pytest.raises(ValueError, match="dataset_id must look like"):
            export_minari(store, wrong)
    with pytest.raises(ValueError, match="no episodes to export"):
        export_minari(store.view([]), "empty-v0")
    with pytest.raises(FileExistsError, match="is there already"):
        import_minari("random-v0", tmp_path / "one")
    with pytest.raises(FileNotFoundError):
        import_minari("unknown-v0", tmp_path / "two")
    with pytest.raises(FileNotFoundError, match="not the folder of a Minari dataset"):
        import_minari(tmp_path, tmp_path / "two")
    with pytest.raises(ValueError, match="leave key out"):
        import_minari("random-v0", tmp_path / "two", key="camera")
    with pytest.raises(ValueError, match=r"among the observations \['camera', 'speed'\], got None"):
        import_minari("foreign-v0", tmp_path / "two")
    with pytest.raises(ValueError, match="expected uint8 pictures"):
        import_minari("foreign-v0", tmp_path / "two", key="speed")
    with pytest.raises(ValueError, match=r"episode 0 has no entries \['x'\] to keep"):
        import_minari("foreign-v0", tmp_path / "two", key="camera", extras=["x"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["minari", "one"]
    assert sorted(file.name for file in datasets.iterdir()) == ["foreign-v0", "random-v0"]


def test_a_nan_in_a_dataset_names_its_episode_and_leaves_nothing(tmp_path):
    export_minari(make_store(tmp_path / "one"), "random-v0")
    import h5py

    with h5py.File(tmp_path / "minari" / "random-v0" / "data" / "main_data.hdf5", "a") as file:
        file["episode_2"]["rewards"][1] = np.nan
    with pytest.raises(
        ValueError, match="episode 2 of random-v0: rewards hold a NaN or infinite value at step 1"
    ):
        import_minari("random-v0", tmp_path / "two")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["minari", "one"]


def test_without_minari_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r'pip install "jepa-rl\[offline\]"'):
        import_minari("random-v0", tmp_path / "two")
