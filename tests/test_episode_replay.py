"""The replay against the episodes that went in."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_rl.data.replay import EpisodeReplay
from jepa_rl.files import load_tensors, save_tensors

FRAMES = 3
SPACE = {
    "pixels": spaces.Box(0, 255, (FRAMES, 2, 2), np.uint8),
    "state": spaces.Box(-np.inf, np.inf, (2,), np.float32),
}


def episode(number: int, length: int):
    """States whose numbers say where they are from: frame ``t`` of episode ``number`` shows ``10 * number + t``."""
    frames = [np.full((2, 2), (10 * number + t) % 256, np.uint8) for t in range(length + 1)]
    stacks = [np.stack([frames[max(0, t - k)] for k in range(FRAMES)][::-1]) for t in range(length + 1)]
    return [{"pixels": s, "state": np.array([number, t], np.float32)} for t, s in enumerate(stacks)]


def fill(replay: EpisodeReplay, lengths: list[int], terminated: bool = True) -> list[list[dict]]:
    played = []
    for number, length in enumerate(lengths):
        states = episode(number, length)
        played.append(states)
        for t in range(length):
            last = t == length - 1
            now, then = ({k: v[None] for k, v in states[i].items()} for i in (t, t + 1))
            action, reward = np.array([[number, t]], np.float32), np.array([100 * number + t])
            replay.add(now, action, reward, then, np.array([last and terminated]), np.array([last]))
    return played


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 4), st.integers(20, 200))
def test_windows_are_what_was_played(lengths, steps, capacity):
    replay = EpisodeReplay(SPACE, 2, capacity, FRAMES)
    played = fill(replay, lengths)
    assert int((replay.episodes[:, 1] + 1).sum()) <= capacity
    windows = replay.sample(64, steps, np.random.default_rng(0))
    newest = len(lengths) - len(replay.episodes)
    for row in range(64):
        number, start = windows.observations["state"][row, 0].int().tolist()
        assert number >= newest
        for i in range(steps + 1):
            t = min(start + i, lengths[number])
            np.testing.assert_array_equal(windows.observations["pixels"][row, i], played[number][t]["pixels"])
            np.testing.assert_array_equal(windows.observations["state"][row, i], [number, t])
            if i < steps:
                inside = start + i < lengths[number]
                assert windows.valid[row, i] == inside
                assert windows.terminated[row, i] == (start + i == lengths[number] - 1)
                if inside:
                    np.testing.assert_array_equal(windows.actions[row, i], [number, t])
                    assert windows.rewards[row, i] == 100 * number + t


def test_every_step_is_drawn_equally_often():
    replay = EpisodeReplay(SPACE, 2, 100, FRAMES)
    fill(replay, [1, 9])
    windows = replay.sample(20_000, 1, np.random.default_rng(0))
    assert abs((windows.observations["state"][:, 0, 0] == 0).float().mean() - 0.1) < 0.01


def test_a_time_limit_does_not_terminate():
    replay = EpisodeReplay(SPACE, 2, 100, FRAMES)
    fill(replay, [4], terminated=False)
    assert not replay.sample(50, 3, np.random.default_rng(0)).terminated.any()


def test_episodes_without_an_end_are_cut():
    replay = EpisodeReplay(SPACE, 2, 100, FRAMES, longest=3)
    fill(replay, [7])
    assert replay.episodes[:, 1].tolist() == [3, 3, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reward_that_is_no_number_is_refused_and_nothing_stored(bad):
    replay = EpisodeReplay(SPACE, 2, 100, FRAMES)
    state = {k: v[None] for k, v in episode(0, 1)[0].items()}
    with pytest.raises(ValueError, match="rewards hold NaN or infinite values"):
        replay.add(
            state, np.zeros((1, 2), np.float32), np.array([bad]), state, np.array([True]), np.array([True])
        )
    assert not len(replay)


def test_a_stack_of_other_frames_is_refused_and_nothing_stored():
    replay = EpisodeReplay(SPACE, 2, 100, FRAMES)
    now, _, skipped = ({k: v[None] for k, v in state.items()} for state in episode(0, 2))
    action, nothing = np.zeros((1, 2), np.float32), np.array([False])
    with pytest.raises(ValueError, match=r"pixels must stack the frames of the last 3 steps"):
        replay.add(now, action, np.zeros(1), skipped, nothing, nothing)
    replay.cut(now)
    assert not len(replay)


def test_sampling_from_nothing_says_so():
    with pytest.raises(ValueError, match="no episode has ended yet"):
        EpisodeReplay(SPACE, 2, 100, FRAMES).sample(1, 1, np.random.default_rng(0))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 6), st.booleans()
)
def test_returns_are_the_discounted_rewards_up_to_the_future(lengths, steps, more, terminated):
    replay = EpisodeReplay(SPACE, 2, 200, FRAMES)
    played = fill(replay, lengths, terminated)
    discount, n_step = 0.9, steps + more
    windows = replay.sample(32, steps, np.random.default_rng(1), n_step, discount)
    for row in range(32):
        number, start = windows.observations["state"][row, 0].int().tolist()
        end = min(start + n_step, lengths[number])
        future = windows.observations["pixels"][row, -1] if more == 0 else windows.future["pixels"][row]
        np.testing.assert_array_equal(future, played[number][end]["pixels"])
        for i in range(min(steps, lengths[number] - start)):
            left = range(start + i, end)
            paid = sum(discount**k * (100 * number + t) for k, t in enumerate(left))
            assert windows.returns[row, i].item() == pytest.approx(paid, rel=1e-5, abs=1e-4)
            assert windows.discounts[row, i].item() == pytest.approx(discount ** len(left))
        assert windows.ended[row] == (terminated and end == lengths[number])


def test_episodes_survive_in_files(tmp_path):
    replay = EpisodeReplay(SPACE, 2, 40, FRAMES)
    fill(replay, [3, 5])
    replay.keep_in(tmp_path)
    fill(replay, [9, 9, 9, 9])
    numbers = replay.numbers()
    assert numbers == list(range(2, 6))  # the first two made room
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == list(range(6))
    other = EpisodeReplay(SPACE, 2, 40, FRAMES)
    other.restore(tmp_path, numbers)
    assert other.numbers() == numbers
    a, b = (r.sample(50, 3, np.random.default_rng(0), 5, 0.9) for r in (replay, other))
    for field in fields(a):
        torch.testing.assert_close(getattr(a, field.name), getattr(b, field.name), rtol=0, atol=0)
    other.drop_files(before=4)
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == [4, 5]


def test_running_episodes_can_be_cut():
    replay = EpisodeReplay(SPACE, 2, 60, FRAMES, num_envs=2)
    states = episode(1, 4)
    for t in range(3):
        now, then = ({k: np.stack([v, v]) for k, v in states[i].items()} for i in (t, t + 1))
        no = np.zeros(2, bool)
        replay.add(now, np.zeros((2, 2), np.float32), np.ones(2), then, no, no)
    assert len(replay) == 0
    replay.cut({k: np.stack([v, v]) for k, v in states[3].items()})
    assert replay.episodes[:, 1].tolist() == [3, 3]
    assert not replay.sample(20, 2, np.random.default_rng(0)).terminated.any()
    replay.cut({k: np.stack([v, v]) for k, v in states[3].items()})  # nothing is running: nothing happens
    assert len(replay.episodes) == 2


def test_what_cannot_be_held_is_refused_before_anything_changes(tmp_path):
    replay = EpisodeReplay(SPACE, 2, 40, FRAMES)
    fill(replay, [12, 12])
    replay.save(tmp_path / "replay.safetensors")
    smaller = EpisodeReplay(SPACE, 2, 10, FRAMES)
    with pytest.raises(ValueError, match="an episode of 13 rows, this replay 10: raise buffer_size"):
        smaller.load(tmp_path / "replay.safetensors")
    assert len(smaller) == 0
    replay.keep_in(tmp_path / "episodes")
    with pytest.raises(FileNotFoundError, match="00000002"):
        replay.restore(tmp_path / "episodes", [0, 1, 2])
    assert len(replay) == 24
    pictures = {"a": spaces.Box(0, 255, (9, 8, 8), np.uint8), "b": spaces.Box(0, 255, (3, 8, 8), np.uint8)}
    with pytest.raises(ValueError, match="cannot all be stacks of 3 frames"):
        EpisodeReplay(pictures, 2, 40, frames=3)
    bad = {"pixels": np.zeros((1, 3, 2, 2), np.uint8), "state": np.array([[np.nan, 0]], np.float32)}
    good = {**bad, "state": np.zeros((1, 2), np.float32)}
    with pytest.raises(ValueError, match="state hold NaN"):
        replay.add(bad, np.zeros((1, 2)), np.ones(1), good, np.zeros(1, bool), np.zeros(1, bool))


def test_files_whose_parts_do_not_fit_are_refused_before_anything_changes(tmp_path):
    """Whatever their checksum says: these have the right one."""
    path, replay = tmp_path / "replay.safetensors", EpisodeReplay(SPACE, 2, 40, FRAMES)
    fill(replay, [3, 5])
    replay.save(path)
    tensors, header = load_tensors(path, ("replay",))
    steps = tensors["steps"]
    damaged = [
        {"steps": steps + 1}, {"steps": -steps}, {"steps": steps.float()}, {"steps": steps[None]}, {"reward": None},
        {"action": tensors["action"][:-1]}, {"reward": tensors["reward"].double()},
    ]  # fmt: skip
    for change in damaged:
        kept = {name: value for name, value in (tensors | change).items() if value is not None}
        save_tensors(path, "replay", kept, header)
        with pytest.raises(ValueError, match=r"replay.safetensors"):
            replay.load(path, replace=True)
    assert len(replay) == int(steps.sum())
    save_tensors(path, "replay", tensors, {})
    with pytest.raises(ValueError, match=r"replay.safetensors does not describe a replay"):
        replay.load(path)
