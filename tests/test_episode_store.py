"""The episode store: what goes in comes out, and no crash, full disk or damage loses a stored episode."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_rl.data import Episode, EpisodeStore
from jepa_rl.types import ActionSpec

CONTINUOUS = ActionSpec("continuous", 2, (-1.0, 0.0), (1.0, 4.0))
DISCRETE = ActionSpec("discrete", 3, start=1)
FRAME = (2, 5, 4)
EXTRAS = {"position": ((2,), np.float64), "door": ((), np.int64)}


def make_episode(length: int, seed: int = 0, action: ActionSpec = CONTINUOUS, **changes) -> Episode:
    rng = np.random.default_rng(seed)
    discrete = action.kind == "discrete"
    columns = dict(
        frames=rng.integers(0, 256, (length + 1, *FRAME), np.uint8),
        actions=rng.integers(1, 4, length) if discrete else rng.random((length, 2), np.float32),
        rewards=rng.random(length, np.float32),
        terminated=seed % 2 == 0,
        truncated=seed % 2 == 1,
        extras={"position": rng.random((length + 1, 2)), "door": rng.integers(0, 9, length + 1)},
        metadata={"seed": seed},
    )
    return Episode(**(columns | changes))


def make_store(path: Path, action: ActionSpec = CONTINUOUS, **changes) -> EpisodeStore:
    return EpisodeStore.create(path, FRAME, action, **({"frames": 3, "extras": EXTRAS} | changes))


def assert_same(got: Episode, want: Episode) -> None:
    for name in ("frames", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        assert getattr(got, name).dtype == getattr(want, name).dtype
    assert got.extras.keys() == want.extras.keys()
    for name in want.extras:
        np.testing.assert_array_equal(got.extras[name], want.extras[name])
    assert (got.terminated, got.truncated) == (want.terminated, want.truncated)
    assert got.metadata == want.metadata


# -- round trips -------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), discrete=st.booleans(), many=st.booleans()
)
def test_episodes_come_back_bit_for_bit(tmp_path_factory, lengths, discrete, many):
    action = DISCRETE if discrete else CONTINUOUS
    episodes = [make_episode(length, seed, action) for seed, length in enumerate(lengths)]
    path = tmp_path_factory.mktemp("store")
    with make_store(path, action) as store:
        if many:
            store.append_many(episodes)
        else:
            for episode in episodes:
                store.append(episode)
    for reader in (store, EpisodeStore.open(path), pickle.loads(pickle.dumps(store))):
        assert len(reader) == len(episodes)
        assert reader.num_steps == sum(lengths)
        assert reader.lengths.tolist() == lengths
        for i, episode in enumerate(episodes):
            assert_same(reader.episode(i), episode)
    assert_same(store.episode(-1), episodes[-1])


def test_spec_describes_stacked_observations(tmp_path):
    make_store(tmp_path)
    spec = EpisodeStore.open(tmp_path).spec
    assert (spec.pixels, spec.frames, spec.action) == ((6, 5, 4), 3, CONTINUOUS)


def test_split_is_disjoint_complete_and_repeatable(tmp_path):
    store = make_store(tmp_path)
    store.append_many([make_episode(i + 1, i) for i in range(10)])
    train, held_out = store.split(0.3, seed=4)
    assert len(held_out) == 3
    assert sorted([*train.indices, *held_out.indices]) == list(range(10))
    np.testing.assert_array_equal(held_out.indices, store.split(0.3, seed=4)[1].indices)
    assert_same(held_out.episode(0), store.episode(int(held_out.indices[0])))
    inner, other = train.split(0.5, seed=0)
    assert sorted([*inner.indices, *other.indices]) == sorted(train.indices)


def test_adding_to_a_store_that_is_there(tmp_path):
    with make_store(tmp_path) as store:
        store.append(make_episode(3))
    with make_store(tmp_path, exist_ok=True) as store:
        store.append(make_episode(4))
    assert EpisodeStore.open(tmp_path).lengths.tolist() == [3, 4]
    with pytest.raises(FileExistsError, match="exist_ok"):
        make_store(tmp_path)
    with pytest.raises(ValueError, match="holds a store with"):
        make_store(tmp_path, frames=2, exist_ok=True)


# -- callers' mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"frames": np.zeros((4, 2, 5, 4), np.float32)}, TypeError, "must be uint8, got float32"),
        ({"frames": np.zeros((4, 5, 4), np.uint8)}, ValueError, r"\(T \+ 1, c, y, x\)"),
        ({"frames": np.zeros((1, 2, 5, 4), np.uint8)}, ValueError, "at least one step"),
        ({"actions": np.zeros((2, 2), np.float32)}, ValueError, "4 frames need 3 actions, got 2"),
        ({"actions": np.full((3, 2), np.nan, np.float32)}, ValueError, "actions hold a NaN .* step 0"),
        ({"actions": np.zeros((3, 2), bool)}, TypeError, "floats of shape"),
        ({"actions": np.zeros((3, 2, 1), np.int64)}, TypeError, "floats of shape"),
        ({"rewards": np.array([0, 1, np.inf])}, ValueError, "rewards hold a NaN or infinite value at step 2"),
        ({"rewards": np.zeros(2)}, ValueError, "need 3 rewards, got 2"),
        ({"extras": {"x": np.zeros(3)}}, ValueError, "one row per frame, 4"),
        ({"extras": {"x": np.full(4, np.nan)}}, ValueError, "'x' hold a NaN"),
        ({"extras": {"x": np.array(["a"] * 4)}}, TypeError, "numbers or booleans"),
        ({"metadata": {"env": object()}}, TypeError, "JSON"),
    ],
)
def test_an_episode_that_makes_no_sense_is_refused(changes, error, match):
    with pytest.raises(error, match=match):
        make_episode(3, **changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"frames": np.zeros((4, 2, 5, 5), np.uint8)}, r"frames .* \(2, 5, 4\) .* \(2, 5, 5\)"),
        ({"actions": np.zeros((3, 3), np.float32)}, "actions of the store"),
        ({"actions": np.array([1, 2, 3])}, "actions of the store"),
        ({"actions": np.ones((3, 2), np.int64)}, "actions of the store"),
        ({"extras": {}}, "has extras"),
        ({"extras": {"position": np.zeros((4, 2)), "door": np.zeros(4)}}, "door of the store .* float64"),
    ],
)
def test_an_episode_of_another_layout_is_refused_and_changes_nothing(tmp_path, changes, match):
    store = make_store(tmp_path)
    store.append(make_episode(2))
    with pytest.raises(ValueError, match=match):
        store.append_many([make_episode(3, 1), make_episode(3, **changes)])
    assert EpisodeStore.open(tmp_path).lengths.tolist() == [2]


def test_choices_out_of_range_are_refused(tmp_path):
    store = make_store(tmp_path, DISCRETE)
    with pytest.raises(ValueError, match=r"\[1, 3\], got \[0, 3\]"):
        store.append(make_episode(2, action=DISCRETE, actions=np.array([0, 3])))
    several = ActionSpec("discrete", 5, choices=(2, 3), starts=(0, 1))
    store = make_store(tmp_path / "several", several)
    store.append(make_episode(2, actions=np.array([[0, 3], [1, 1]])))
    with pytest.raises(ValueError, match=r"\[1, 3\], got \[0, 3\]"):
        store.append(make_episode(2, actions=np.array([[0, 3], [1, 0]])))
    with pytest.raises(ValueError, match="actions of the store"):
        store.append(make_episode(2, actions=np.array([0, 1])))
    assert len(store) == 1


@pytest.mark.parametrize("name", ["../x", "", "a b", "frames", "rewards"])
def test_extras_need_a_plain_name(tmp_path, name):
    with pytest.raises(ValueError, match="extra column"):
        make_store(tmp_path / "store", extras={name: ((), "<f4")})
    assert not (tmp_path / "store").exists()


def test_opening_what_is_not_a_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="no episode store"):
        EpisodeStore.open(tmp_path)
    store = make_store(tmp_path / "s")
    header = json.loads((store.path / "store.json").read_text())
    for text, match in [
        (json.dumps(header | {"version": 2}), "version 2, this jepa-rl reads version 1; upgrade"),
        (json.dumps({"format": "other"}), "does not belong"),
        ("[]", "does not belong"),
        ('{"form', "damaged"),
        (json.dumps(header | {"action": {}}), "damaged"),
        (json.dumps(header | {"extras": {"x": [[], "O"]}}), "damaged"),
    ]:
        (store.path / "store.json").write_text(text)
        with pytest.raises(ValueError, match=match):
            EpisodeStore.open(store.path)


# -- damage and crashes ------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_column_cut_short_is_named(tmp_path_factory, data):
    store = make_store(tmp_path_factory.mktemp("store"))
    store.append_many([make_episode(4, i) for i in range(3)])
    file = data.draw(st.sampled_from(sorted(store.path.glob("*.bin"))))
    os.truncate(file, data.draw(st.integers(0, file.stat().st_size - 1)))
    with pytest.raises(ValueError, match=f"{file.name} is too short"):
        EpisodeStore.open(store.path)


def test_a_missing_column_is_named(tmp_path):
    make_store(tmp_path).append(make_episode(2))
    (tmp_path / "rewards.bin").unlink()
    with pytest.raises(ValueError, match=r"rewards\.bin is too short"):
        EpisodeStore.open(tmp_path)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_torn_index_line_loses_that_line_alone(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("store")
    episodes = [make_episode(3, i) for i in range(3)]
    with make_store(path) as store:
        store.append_many(episodes)
    index = path / "episodes.jsonl"
    last = len(index.read_bytes().splitlines(keepends=True)[-1])
    os.truncate(index, index.stat().st_size - data.draw(st.integers(1, last - 1)))
    with pytest.warns(UserWarning, match="unfinished line"):
        store = EpisodeStore.open(path)
    assert len(store) == 2
    store.append(make_episode(5, 7))
    store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = EpisodeStore.open(path)
    for got, want in zip(range(3), [*episodes[:2], make_episode(5, 7)], strict=True):
        assert_same(store.episode(got), want)


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with make_store(tmp_path) as store:
        store.append_many([make_episode(2, i) for i in range(3)])
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    (tmp_path / "episodes.jsonl").write_text("\n".join([lines[0], lines[1][5:], lines[2], ""]))
    with pytest.raises(ValueError, match=r"episodes\.jsonl line 2 is damaged"):
        EpisodeStore.open(tmp_path)


def test_bytes_beyond_the_index_are_overwritten(tmp_path):
    with make_store(tmp_path) as store:
        store.append(make_episode(3, 0))
    for file in tmp_path.glob("*.bin"):
        with open(file, "ab") as column:
            column.write(b"left by a crash")
    with EpisodeStore.open(tmp_path) as store:
        store.append(make_episode(4, 1))
    store = EpisodeStore.open(tmp_path)
    assert_same(store.episode(0), make_episode(3, 0))
    assert_same(store.episode(1), make_episode(4, 1))


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_episode_store import make_episode, make_store
store = make_store({path!r}, exist_ok=True)
for i in range(len(store), 100_000):
    store.append(make_episode(1 + i % 40, i))
    print(i, flush=True)
"""


def start_writer(path: Path, **options) -> subprocess.Popen:
    code = WRITER.format(tests=str(Path(__file__).parent), path=str(path))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)


def test_a_killed_writer_loses_no_episode_that_it_reported(tmp_path):
    for kill_after in (0.013, 0.05):
        with start_writer(tmp_path / "s") as writer:
            first = writer.stdout.readline()
            time.sleep(kill_after)
            writer.send_signal(signal.SIGKILL)
            *_, reported = [first, *writer.stdout.read().splitlines()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an unfinished line may or may not be there
            store = EpisodeStore.open(tmp_path / "s")
        assert len(store) >= int(reported) + 1
        for i in range(len(store)):
            assert_same(store.episode(i), make_episode(1 + i % 40, i))


def test_a_reader_follows_a_writer_in_another_process(tmp_path):
    path = tmp_path / "s"
    with start_writer(path) as writer:
        try:
            writer.stdout.readline()
            reader, seen = EpisodeStore.open(path), 0
            while seen < 30:
                reader.refresh()
                for i in range(seen, len(reader)):
                    assert_same(reader.episode(i), make_episode(1 + i % 40, i))
                seen = len(reader)
            with pytest.raises(OSError, match="another writer"):
                reader.append(make_episode(2))
        finally:
            writer.kill()


def test_two_writers_take_turns(tmp_path):
    first = make_store(tmp_path)
    second = EpisodeStore.open(tmp_path)
    first.append(make_episode(2, 0))
    with pytest.raises(OSError, match="another writer"):
        second.append(make_episode(3, 1))
    first.close()
    second.append(make_episode(3, 1))
    second.close()
    first.append(make_episode(4, 2))
    assert [len(first.episode(i)) for i in range(3)] == [2, 3, 4]


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_episode_store import assert_same, make_episode, make_store
store = make_store({path!r}, extras=None)
bare = dict(extras={{}})
store.append(make_episode(10, 0, **bare))
before = {{file.name: file.stat().st_size for file in store.path.iterdir()}}
for column in ("frames.bin", "actions.bin"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[column] + 20, resource.RLIM_INFINITY))
    try:
        store.append_many([make_episode(10, 1, **bare), make_episode(10, 2, **bare)])
    except OSError as error:
        assert "the 1 stored before are intact" in str(error), error
    else:
        raise SystemExit("no error")
    assert before == {{file.name: file.stat().st_size for file in store.path.iterdir()}}
    assert len(store) == 1
    assert_same(store.episode(0), make_episode(10, 0, **bare))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.append(make_episode(3, 3, **bare))  # room again
assert_same(store.episode(1), make_episode(3, 3, **bare))
"""


def test_a_write_beyond_the_limit_leaves_the_store_as_it_was(tmp_path):
    """The kernel refuses the write (EFBIG here, ENOSPC on a full disk): nothing is mocked."""
    code = FULL_DISK.format(tests=str(Path(__file__).parent), path=str(tmp_path / "s"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(EpisodeStore.open(tmp_path / "s")) == 2


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with make_store(disk / "s") as store:
            with pytest.raises(OSError, match=r"No space left on device; the \d+ stored before are intact"):
                for i in range(100):
                    store.append(make_episode(100, i))
            stored = len(store)
            assert stored > 2
        store = EpisodeStore.open(disk / "s")
        assert len(store) == stored
        for i in range(stored):
            assert_same(store.episode(i), make_episode(100, i))
        del store
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize(
    "action",
    [ActionSpec("continuous", 1, (-2.0,), (2.0,), dtype="float64"), ActionSpec("discrete", 3, start=1)],
)
def test_the_action_space_is_the_same_when_a_store_is_opened_again(tmp_path, action):
    EpisodeStore.create(tmp_path / "store", (1, 4, 4), action)
    found = EpisodeStore.open(tmp_path / "store").layout.action
    assert found == action and (found.dtype, found.choices) == (action.dtype, ())


# -- checksums ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("store") / "s"
    with make_store(path) as store:
        store.append_many([make_episode(3, 0), make_episode(2, 1)])
        store.verify()
    file = path / data.draw(
        st.sampled_from(["store.json", "episodes.jsonl", *(c.file for c in store._columns.values())])
    )
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    with warnings.catch_warnings(), pytest.raises((ValueError, UserWarning)) as caught:
        warnings.simplefilter("error")  # a lost newline makes the last line an unfinished one
        EpisodeStore.open(path).verify()
    assert str(path) in str(caught.value)


def test_lines_that_the_index_lost_are_told(tmp_path):
    with make_store(tmp_path) as store:
        store.append_many([make_episode(3, 0), make_episode(2, 1)])
    index = tmp_path / "episodes.jsonl"
    index.write_bytes(index.read_bytes().splitlines(keepends=True)[0])
    with pytest.warns(UserWarning, match="holds more than the 1 episodes of the index"):
        EpisodeStore.open(tmp_path).verify()


@pytest.mark.parametrize(
    "line",
    [
        '{"length": 3, "terminated": false, "truncated": true, "metadata": {}, "more": 1}',
        '{"length": 3.0, "terminated": false, "truncated": true, "metadata": {}}',
        '{"length": 1e400, "terminated": false, "truncated": true, "metadata": {}}',
        '{"length": 9999999999999999999, "terminated": false, "truncated": true, "metadata": {}}',
        '{"length": 3, "terminated": "no", "truncated": true, "metadata": {}}',
        '{"length": 3, "terminated": false, "truncated": true, "metadata": []}',
        '{"length": 3, "terminated": false, "truncated": true, "metadata": {}, "data": 5}',
        "[" * 100_000,
    ],
)
def test_odd_lines_are_named(tmp_path, line):
    make_store(tmp_path)
    (tmp_path / "episodes.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"episodes\.jsonl line 1 is damaged"):
        EpisodeStore.open(tmp_path)


def test_lines_without_checksums_are_read(tmp_path):
    """As version 0.1.0 wrote them."""
    with make_store(tmp_path) as store:
        store.append(make_episode(3))
    index = tmp_path / "episodes.jsonl"
    entry = json.loads(index.read_text())
    index.write_text(json.dumps({k: v for k, v in entry.items() if k not in ("data", "line")}) + "\n")
    store = EpisodeStore.open(tmp_path)
    store.verify()
    assert_same(store.episode(0), make_episode(3))
