"""Stores that outgrow memory: opening does not read episode by episode, and a cache never changes an answer."""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_rl.data import EpisodeStore, WindowSampler, index, mapped
from jepa_rl.types import ActionSpec

ACTION = ActionSpec("discrete", 3)
COUNT = 5000


def write_store(path: Path, count: int = COUNT) -> EpisodeStore:
    """Tiny episodes of 1 to 4 steps whose frames count up: as many files as a store of one episode."""
    store = EpisodeStore.create(path, (1, 2, 2), ACTION)
    lengths = np.arange(count) % 4 + 1
    lines = [
        {"length": int(n), "terminated": i % 2 == 0, "truncated": i % 2 == 1, "metadata": {"seed": i}}
        for i, n in enumerate(lengths)
    ]
    (path / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    frames = np.arange(lengths.sum() + count)[:, None] + np.arange(4)
    (path / "frames.bin").write_bytes(frames.astype(np.uint8).tobytes())
    (path / "actions.bin").write_bytes((np.arange(lengths.sum()) % 3).astype("<i8").tobytes())
    (path / "rewards.bin").write_bytes(np.arange(lengths.sum()).astype("<f4").tobytes())
    return store


def facts(store: EpisodeStore) -> list:
    episode = store.episode(len(store) - 1)
    return [
        store.lengths.tolist(),
        store.terminated.tolist(),
        store.step_starts.tolist(),
        episode.frames.tolist(),
        (episode.terminated, episode.truncated, episode.metadata),
        store.episode(7).metadata,
    ]


class Opened:
    """Counts the files that are opened and the lines that are parsed; a context manager."""

    def __enter__(self):
        self.files = self.lines = 0
        if not hasattr(Opened, "now"):  # audit hooks stay for good: one for all
            sys.addaudithook(lambda event, _: event == "open" and Opened.now and Opened.now.count())
        Opened.now = self
        sys.setprofile(lambda frame, event, _: self.line(frame.f_code) if event == "call" else None)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        Opened.now = None

    def count(self):
        self.files += 1

    def line(self, code):
        self.lines += code.co_name == "_parse" and code.co_filename == index.__file__


def test_opening_many_episodes_reads_few_files_and_parses_no_line_twice(tmp_path):
    write_store(tmp_path)
    with Opened() as first:
        found = EpisodeStore.open(tmp_path)
    assert first.lines == COUNT and (tmp_path / "episodes.cache").exists()
    with Opened() as again:
        cached = EpisodeStore.open(tmp_path)
    assert again.lines == 0 and again.files < 10 and first.files < 15
    assert facts(cached) == facts(found)
    assert cached.lengths.tolist() == [i % 4 + 1 for i in range(COUNT)]
    assert cached.episode(4321).metadata == {"seed": 4321}


def test_episodes_behind_the_cache_are_parsed_until_they_are_many(tmp_path, monkeypatch):
    write_store(tmp_path)
    EpisodeStore.open(tmp_path)
    last = EpisodeStore.open(tmp_path).episode(COUNT - 1)
    with EpisodeStore.open(tmp_path) as store:
        store.append_many([last] * 10)
    with Opened() as opened:
        store = EpisodeStore.open(tmp_path)
    assert opened.lines == 10 and len(store) == COUNT + 10
    monkeypatch.setattr(index, "LEAST", 5)
    monkeypatch.setattr(index, "SHARE", COUNT)
    EpisodeStore.open(tmp_path)
    with Opened() as opened:
        store = EpisodeStore.open(tmp_path)
    assert opened.lines == 0 and len(store) == COUNT + 10
    np.testing.assert_array_equal(store.episode(COUNT + 9).frames, last.frames)


class Cached:
    """A store with a cache, and the bytes of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        write_store(path, 2100)
        self.facts = facts(EpisodeStore.open(path))
        self.cache, self.lines = ((path / f"episodes.{end}").read_bytes() for end in ("cache", "jsonl"))


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return Cached(tmp_path_factory.mktemp("cached") / "store")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_the_cache_changes_an_answer(cached, data):
    path, whole = cached.path, cached.cache
    where = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 300))
    cut = data.draw(st.booleans())
    flipped = bytes([whole[where] ^ data.draw(st.integers(1, 255))])
    (path / "episodes.cache").write_bytes(
        whole[:where] if cut else whole[:where] + flipped + whole[where + 1 :]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = facts(EpisodeStore.open(path)) == cached.facts
    assert same


def test_a_cache_of_other_lines_is_not_believed(cached):
    path, whole, lines = cached.path, cached.cache, cached.lines
    (path / "episodes.cache").write_bytes(whole)
    try:
        changed = lines.replace(b'"length": 2', b'"length": 1', 1)
        (path / "episodes.jsonl").write_bytes(changed)
        assert EpisodeStore.open(path).lengths[1] == 1
        (path / "episodes.cache").write_bytes(whole)
        (path / "episodes.jsonl").write_bytes(lines.replace(b'"length": 2', b'"length"; 2', 1))
        with pytest.raises(ValueError, match="line 2 is damaged"):
            EpisodeStore.open(path)
        (path / "episodes.jsonl").write_bytes(lines[: len(lines) // 2])  # an older copy of the index
        with pytest.warns(UserWarning, match="unfinished line"):
            assert 1000 < len(EpisodeStore.open(path)) < 1100
    finally:
        (path / "episodes.jsonl").write_bytes(lines)
    assert facts(EpisodeStore.open(path)) == cached.facts


def test_a_store_that_does_not_fit_into_memory_is_read_the_same(tmp_path, monkeypatch):
    write_store(tmp_path)
    monkeypatch.setattr(mapped, "LARGE", 0.0)
    large = EpisodeStore.open(tmp_path)
    monkeypatch.setattr(mapped, "LARGE", 1.0)
    small, rng = EpisodeStore.open(tmp_path), np.random.default_rng(0)
    for options in ({"steps": 1}, {"steps": 3, "frames": 3}, {"steps": 2, "block": 2, "frames": 1}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that short episodes are left out
            one, two = WindowSampler(large, **options), WindowSampler(small, **options)
        windows = np.append(one.draw(200, rng), len(one) - 1)
        assert (one.batch(windows).pixels == two.batch(windows).pixels).all()
    for i in (0, COUNT - 1):
        np.testing.assert_array_equal(large.episode(i).frames, small.episode(i).frames)


def test_the_sparse_stores_of_the_benchmark_are_whole(tmp_path):
    file = Path(__file__).parent.parent / "benchmarks" / "_scale_store.py"
    spec = importlib.util.spec_from_file_location("_scale_store", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["_scale_store"] = module
    spec.loader.exec_module(module)
    store = module.make_store(tmp_path / "s", 0.1)
    file = tmp_path / "s" / "frames.bin"
    assert 0.9e8 < file.stat().st_size < 1.1e8 and file.stat().st_blocks * 512 < 1e6
    assert not WindowSampler(store, 3).sample(8, np.random.default_rng(0)).pixels.any()
    found = module.memory_of_sampling(tmp_path / "s", 40)
    assert found["anonymous_mb_most"] - found["anonymous_mb_before"] < 60  # a batch of 128 windows is 6 MB
