"""HDF5 files of flat columns in and out, bit for bit; files that lie, lead elsewhere or are damaged are refused."""

import hashlib
import sys

import numpy as np
import pytest
from test_minari import CONTINUOUS, DISCRETE, MULTI, assert_same_episodes, make_store

from jepa_rl.envs.hdf5 import from_hdf5, to_hdf5

h5py = pytest.importorskip("h5py")


def digests(store) -> dict[str, str]:
    """Of the files of a store, but for its index cache and lock."""
    files = [file for file in store.path.iterdir() if file.suffix in (".bin", ".json", ".jsonl")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("action", [CONTINUOUS, DISCRETE, MULTI], ids=["continuous", "discrete", "multi"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7), (12, 4, 6)])
def test_a_round_trip_changes_no_byte(tmp_path, action, shape):
    """(12, 4, 6) is stored as (4, 6, 12), whose shape alone would look like channels first."""
    store = make_store(tmp_path / "one", action, shape)
    to_hdf5(store, tmp_path / "all.h5")
    back = from_hdf5(tmp_path / "all.h5", tmp_path / "two")
    assert digests(back) == digests(store)
    to_hdf5(back.view([2, 0]), tmp_path / "some.h5")
    assert_same_episodes(store.view([2, 0]), from_hdf5(tmp_path / "some.h5", tmp_path / "three"))


def test_the_file_is_as_stable_worldmodel_reads_it(tmp_path):
    """Its reader takes every key but two as a column of rows, and slices it by ep_offset and ep_len."""
    store = make_store(tmp_path / "one")
    to_hdf5(store, tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r", swmr=True) as file:
        assert file["ep_len"][:].tolist() == [4, 2, 6] and file["ep_offset"][:].tolist() == [0, 4, 6]
        assert (file["ep_len"].dtype, file["ep_offset"].dtype) == (np.int32, np.int64)
        assert {len(file[key]) for key in file if not key.startswith("ep_")} == {12}
        rows, episode = slice(6, 12), store.episode(2)
        assert file["pixels"].shape == (12, 40, 40, 3)
        np.testing.assert_array_equal(file["pixels"][rows], episode.frames.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(file["action"][rows][:-1], episode.actions)
        assert np.isnan(file["action"][11]).all() and np.isnan(file["reward"][6])
        np.testing.assert_array_equal(file["reward"][7:12], episode.rewards)
        np.testing.assert_array_equal(file["position"][rows], episode.extras["position"])
        assert file["terminated"][:].nonzero()[0].tolist() == [3]


def write_foreign(path, **changes):
    """Two episodes of 3 and 4 rows as other people write them; ``changes`` replace columns, None leaves one out."""
    rng = np.random.default_rng(0)
    columns = {
        "pixels": rng.integers(0, 256, (7, 16, 12, 3), np.uint8),
        "action": np.r_[
            rng.uniform(-2, 2, (2, 2)), [[np.nan] * 2], rng.uniform(-2, 2, (3, 2)), [[np.nan] * 2]
        ],
        "proprio.arm": rng.random((7, 4), np.float32),
        "ep_len": np.array([3, 4], np.int32),
        "ep_offset": np.array([0, 3]),
    }
    with h5py.File(path, "w") as file:
        for name, rows in (columns | changes).items():
            if rows is not None:
                file[name] = rows
    return columns


def test_other_peoples_files(tmp_path):
    seen = write_foreign(tmp_path / "f.h5")
    store = from_hdf5(tmp_path / "f.h5", tmp_path / "s", extras=["proprio.arm"], frames=2)
    assert store.lengths.tolist() == [2, 3] and store.spec.frames == 2
    np.testing.assert_array_equal(store.episode(1).frames, seen["pixels"][3:].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(store.episode(1).extras["proprio_arm"], seen["proprio.arm"][3:])
    np.testing.assert_allclose(store.episode(0).actions, seen["action"][:2], rtol=1e-6)
    assert not store.episode(0).rewards.any()
    assert (store.episode(0).terminated, store.episode(0).truncated) == (False, True)
    np.testing.assert_allclose(store.layout.action.low, np.nanmin(seen["action"], 0))
    np.testing.assert_allclose(store.layout.action.high, np.nanmax(seen["action"], 0))
    reward = np.array([[np.nan], [1], [2], [np.nan], [3], [4], [5]])
    ends = {
        "reward": reward,
        "terminated": np.array([0, 0, 0, 0, 0, 0, 1], bool),
        "action": np.arange(7)[:, None],
    }
    write_foreign(tmp_path / "g.h5", **ends)
    other = from_hdf5(tmp_path / "g.h5", tmp_path / "t", size=4)
    assert other.layout.frame_shape == (3, 4, 4) and other.layout.action.kind == "discrete"
    assert other.layout.action.size == 6 and other.episode(1).actions.tolist() == [3, 4, 5]
    assert other.episode(1).rewards.tolist() == [3, 4, 5] and other.episode(1).terminated


ROWS = np.zeros((7, 2), np.float32)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"pixels": None}, ValueError, "has no column 'pixels'; it has"),
        ({"action": None}, ValueError, "has no column 'action'"),
        ({"ep_len": None}, ValueError, "has no column 'ep_len'"),
        ({"action": ROWS[:5]}, ValueError, "action has 5 rows, the episodes need 7"),
        ({"action": np.zeros((7, 2, 2))}, ValueError, r"action must have shape \(rows, size\)"),
        ({"pixels": np.zeros((7, 4, 4, 3))}, TypeError, "must be uint8 pictures, got float64"),
        ({"pixels": np.zeros(7, np.uint8)}, TypeError, "must be uint8 pictures"),
        ({"ep_len": np.array([3, 0, 4]), "ep_offset": np.array([0, 3, 3])}, ValueError, r"episode 1 has 0 row\(s\)"),
        ({"ep_len": np.array([3, -4])}, ValueError, r"episode 1 has -4 row\(s\)"),
        ({"ep_len": np.array([], int), "ep_offset": np.array([], int)}, ValueError, "has no episodes"),
        ({"ep_len": np.array([3])}, ValueError, "ep_len has 1 episodes, ep_offset 2"),
        ({"ep_len": np.array([3.0, 4.0])}, ValueError, "ep_len must be integers"),
        ({"ep_offset": np.array([0, 2])}, ValueError, "one episode after the other"),
        ({"ep_offset": np.array([-3, 3])}, ValueError, "one episode after the other"),
        ({"ep_offset": np.array([0, 2**62])}, ValueError, "rows, the episodes need"),
        ({"action": np.r_[0, 2**62, 0:5]}, ValueError, "choices, more than 4096; pass action="),
        ({"action": np.array([b"cos\nsystem\n"] * 7, object)}, TypeError, "must hold numbers or booleans, got object"),
        ({"reward": np.array(["1"] * 7, "S1")}, TypeError, "must hold numbers"),
        ({"reward": np.r_[0, 1, np.nan, 0, 1, 1, 1]}, ValueError, "episode 0 of .* NaN or infinite value at step 1"),
        ({"jepa_rl_metadata": np.array(["{"] * 7, object)}, ValueError, "episode 0 of "),
        ({"jepa_rl_metadata": np.array(["[]"] * 7, object)}, ValueError, "must hold JSON objects"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_leaves_nothing(tmp_path, changes, error, match):
    write_foreign(tmp_path / "f.h5", **changes)
    with pytest.raises(error, match=match):
        from_hdf5(tmp_path / "f.h5", tmp_path / "s")
    assert [file.name for file in tmp_path.iterdir()] == ["f.h5"]


def test_columns_in_other_files_are_refused(tmp_path):
    seen = write_foreign(tmp_path / "secret.h5")
    (tmp_path / "raw").write_bytes(bytes(7 * 16))
    layout = h5py.VirtualLayout((7, 2), np.float32)
    layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "action", (7, 2))

    def external(file):
        file.create_dataset("action", (7, 2), np.float64, external=[(str(tmp_path / "raw"), 0, 7 * 16)])

    for name, put, match in [
        (
            "external link",
            lambda f: f.__setitem__("action", h5py.ExternalLink("secret.h5", "action")),
            "is a link",
        ),
        ("soft link", lambda f: f.__setitem__("action", h5py.SoftLink("/pixels")), "is a link"),
        ("virtual", lambda f: f.create_virtual_dataset("action", layout), "other files"),
        ("external data", external, "other files"),
        ("group", lambda f: f.create_group("action"), "got a group"),
    ]:
        write_foreign(tmp_path / f"{name}.h5", action=None)
        with h5py.File(tmp_path / f"{name}.h5", "a") as file:
            put(file)
        with pytest.raises((TypeError, ValueError), match=match):
            from_hdf5(tmp_path / f"{name}.h5", tmp_path / "s")
    assert not (tmp_path / "s").exists() and len(seen) == 5
    with pytest.raises(ValueError, match=r"has no column '\.\./x'"):
        from_hdf5(tmp_path / "secret.h5", tmp_path / "s", extras=["../x"])


def test_declared_sizes_that_cannot_be_true_are_refused(tmp_path):
    for name, lengths in {"memory": [2**40], "disk": [2**22] * 10_000, "index": None}.items():
        write_foreign(tmp_path / f"{name}.h5", pixels=None, action=None, ep_len=None, ep_offset=None)
        with h5py.File(tmp_path / f"{name}.h5", "a") as file:
            rows = 2**50
            file.create_dataset("pixels", (rows, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3))
            file.create_dataset("action", (rows, 2), np.float32, chunks=(1024, 2))
            if lengths is None:
                file.create_dataset("ep_len", (2**45,), np.int32, chunks=(1024,))
                file.create_dataset("ep_offset", (2**45,), np.int64, chunks=(1024,))
            else:
                file["ep_len"], file["ep_offset"] = lengths, np.cumsum(lengths) - lengths
        with pytest.raises(ValueError, match=r"is its declared size true|of disk left"):
            from_hdf5(tmp_path / f"{name}.h5", tmp_path / "s")
        assert not list(tmp_path.glob("s*"))


def test_a_file_cut_short_is_refused_wherever_it_was_cut(tmp_path):
    to_hdf5(make_store(tmp_path / "one", shape=(3, 8, 8)), tmp_path / "whole.h5")
    whole = (tmp_path / "whole.h5").read_bytes()
    for share in (0.0, 0.01, 0.3, 0.7, 0.99):
        (tmp_path / "cut.h5").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match="truncated or no HDF5 file"):
            from_hdf5(tmp_path / "cut.h5", tmp_path / "two")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.h5", "one", "whole.h5"]


def test_mistakes_are_named_and_leave_nothing(tmp_path, monkeypatch):
    store = make_store(tmp_path / "one")
    to_hdf5(store, tmp_path / "f.h5")
    with pytest.raises(FileExistsError, match="is there already"):
        to_hdf5(store, tmp_path / "f.h5")
    with pytest.raises(FileExistsError, match="is there already"):
        from_hdf5(tmp_path / "f.h5", tmp_path / "one")
    with pytest.raises(FileNotFoundError, match="no HDF5 file"):
        from_hdf5(tmp_path / "g.h5", tmp_path / "two")
    with pytest.raises(ValueError, match="no episodes to export"):
        to_hdf5(store.view([]), tmp_path / "g.h5")
    with pytest.raises(ValueError, match="actions of the store"):
        from_hdf5(tmp_path / "f.h5", tmp_path / "two", action=DISCRETE)
    with pytest.raises(ValueError, match="would share a name"):
        from_hdf5(tmp_path / "f.h5", tmp_path / "two", extras=["a.b", "a_b"])
    monkeypatch.setattr(type(store), "episode", lambda self, i: 1 / 0)  # a crash half-way
    with pytest.raises(ZeroDivisionError):
        to_hdf5(store, tmp_path / "g.h5")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f.h5", "one"]
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'pip install "jepa-rl\[offline\]"'):
        from_hdf5(tmp_path / "f.h5", tmp_path / "two")
