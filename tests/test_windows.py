"""Windows against a slow, obvious reference, and the statistics of drawing them."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_rl.data import Episode, EpisodeStore, WindowSampler
from jepa_rl.types import ActionSpec

CONTINUOUS = ActionSpec("continuous", 2, (-1.0, 0.0), (1.0, 4.0))
DISCRETE = ActionSpec("discrete", 3, start=1)


def fill(path, lengths, *, discrete=False, frames=2, terminated=None):
    """A store of random episodes; the extra ``where`` tells (episode, step) of every frame."""
    rng = np.random.default_rng(len(lengths))
    action = DISCRETE if discrete else CONTINUOUS
    episodes = [
        Episode(
            frames=rng.integers(0, 256, (length + 1, 2, 4, 3), np.uint8),
            actions=rng.integers(1, 4, length) if discrete else rng.random((length, 2), np.float32),
            rewards=rng.random(length, np.float32),
            terminated=bool(rng.integers(2)) if terminated is None else terminated,
            extras={"where": np.array([(i, step) for step in range(length + 1)])},
        )
        for i, length in enumerate(lengths)
    ]
    store = EpisodeStore.create(path, (2, 4, 3), action, frames=frames, extras={"where": ((2,), np.int64)})
    store.append_many(episodes)
    return store, episodes


def stacked(episode: Episode, step: int, frames: int) -> np.ndarray:
    """What an observation shows after ``step`` steps: oldest first, the first frame repeated before it."""
    return np.concatenate([episode.frames[max(step - age, 0)] for age in reversed(range(frames))])


def reference_windows(episodes, action, steps, block, frames):
    """All windows in order, one at a time."""
    for number, episode in enumerate(episodes):
        for start in range(len(episode) - steps * block + 1):
            states = [start + i * block for i in range(steps + 1)]
            inside = [slice(state, state + block) for state in states[:-1]]
            yield {
                "pixels": np.stack([stacked(episode, state, frames) for state in states]),
                "actions": np.stack([action.encode(episode.actions[step]).reshape(-1) for step in inside]),
                "rewards": np.array([sum(episode.rewards[step]) for step in inside]),
                "terminated": np.array([episode.terminated and s == len(episode) for s in states[1:]]),
                "where": np.array([(number, state) for state in states]),
            }


sizes = {
    "lengths": st.lists(st.integers(1, 12), min_size=1, max_size=6),
    "steps": st.integers(1, 4),
    "block": st.integers(1, 3),
    "frames": st.integers(1, 4),
    "discrete": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_windows_are_those_of_the_reference(tmp_path_factory, lengths, steps, block, frames, discrete):
    store, episodes = fill(tmp_path_factory.mktemp("store"), lengths, discrete=discrete)
    if max(lengths) < steps * block:
        with pytest.raises(
            ValueError, match=rf"at least {steps * block} steps, the longest has {max(lengths)}"
        ):
            WindowSampler(store, steps, block, frames)
        return
    sampler = WindowSampler(store, steps, block, frames)
    want = list(reference_windows(episodes, store.spec.action, steps, block, frames))
    assert len(sampler) == len(want)
    windows = np.random.default_rng(0).permutation(len(want))
    batch = sampler.batch(windows)
    assert batch.pixels.dtype == torch.uint8 and batch.terminated.dtype == torch.bool
    assert batch.actions.dtype == batch.rewards.dtype == torch.float32
    assert batch.pixels.shape[2:] == sampler.spec.pixels
    assert batch.actions.shape[2] == sampler.spec.action_dim
    for i, window in enumerate(windows):
        for name in ("pixels", "actions", "terminated"):
            np.testing.assert_array_equal(getattr(batch, name)[i].numpy(), want[window][name])
        np.testing.assert_allclose(batch.rewards[i].numpy(), want[window]["rewards"], rtol=1e-5)
        np.testing.assert_array_equal(sampler.extra("where", windows)[i], want[window]["where"])


@settings(max_examples=40, deadline=None)
@given(**(sizes | {"max_offset": st.integers(1, 6), "discount": st.sampled_from([None, 0.5, 0.99])}))
def test_pairs_lie_in_one_episode(
    tmp_path_factory, lengths, steps, block, frames, discrete, max_offset, discount
):
    lengths = [*lengths, steps * block]
    store, episodes = fill(tmp_path_factory.mktemp("store"), lengths, discrete=discrete)
    pairs = WindowSampler(store, steps, block, frames).sample_pairs(
        32, np.random.default_rng(0), max_offset, discount
    )
    one_step = list(reference_windows(episodes, store.spec.action, 1, block, frames))
    for pixels, goal, action, offset in zip(
        pairs.pixels.numpy(), pairs.goals.numpy(), pairs.actions.numpy(), pairs.offsets.tolist(), strict=True
    ):
        assert 1 <= offset <= max_offset
        found = [
            w for w in one_step if (w["pixels"][0] == pixels).all() and (w["actions"][0] == action).all()
        ]
        assert any(
            (state := step + offset * block) <= lengths[number]
            and (stacked(episodes[number], state, frames) == goal).all()
            for number, step in (w["where"][0] for w in found)
        )


def test_every_window_is_equally_likely(tmp_path):
    store, _ = fill(tmp_path, [3, 1, 20, 5])
    sampler = WindowSampler(store, steps=2, block=1)
    assert len(sampler) == 2 + 0 + 19 + 4
    draws = 100_000
    counts = np.bincount(sampler.draw(draws, np.random.default_rng(0)), minlength=len(sampler))
    expected = draws / len(sampler)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 51.2  # 99.9% quantile of chi-squared with 24 degrees of freedom
    assert not np.array_equal(
        sampler.draw(8, np.random.default_rng(0)), sampler.draw(8, np.random.default_rng(1))
    )


@pytest.mark.parametrize("discount", [None, 0.7])
def test_offsets_of_pairs_follow_their_law(tmp_path, discount):
    """From the first state of a long enough episode, the odds of the offsets 1..4 are known."""
    store, _ = fill(tmp_path, [6])
    sampler = WindowSampler(store, steps=6)
    pairs = sampler.sample_pairs(60_000, np.random.default_rng(0), max_offset=4, discount=discount)
    first = (pairs.pixels == sampler.batch(np.array([0])).pixels[0, 0]).flatten(1).all(1)
    counts = torch.bincount(pairs.offsets[first], minlength=5)[1:].double()
    odds = torch.ones(4) if discount is None else discount ** torch.arange(1.0, 5.0)
    torch.testing.assert_close(counts / counts.sum(), (odds / odds.sum()).double(), atol=0.02, rtol=0)


def test_equal_seeds_give_equal_batches(tmp_path):
    store, _ = fill(tmp_path, [9, 9])
    sampler = WindowSampler(store, 3)
    one, two = (sampler.sample(16, np.random.default_rng(3)) for _ in range(2))
    for name in ("pixels", "actions", "rewards", "terminated"):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_views_give_their_own_windows_alone(tmp_path):
    store, _ = fill(tmp_path, [4, 6, 5, 7, 8])
    for view in store.split(0.4, seed=0):
        sampler = WindowSampler(view, 2)
        seen = np.concatenate([sampler.extra("where", w)[:, 0, 0] for w in sampler.ordered(7)])
        assert sorted(set(seen)) == view.indices.tolist()
        assert len(seen) == len(sampler) == (view.lengths - 1).sum()
        batch = sampler.batch(np.arange(len(sampler)))
        np.testing.assert_array_equal(batch.pixels[0, 0].numpy(), stacked(view.episode(0), 0, 2))
        last = view.episode(-1)
        np.testing.assert_array_equal(batch.pixels[-1, -1].numpy(), stacked(last, len(last), 2))


def test_ordered_visits_every_stride(tmp_path):
    store, _ = fill(tmp_path, [10, 10])
    sampler = WindowSampler(store, 3)
    assert np.concatenate(list(sampler.ordered(4, stride=3))).tolist() == list(range(0, 16, 3))
    assert [len(chunk) for chunk in sampler.ordered(5)] == [5, 5, 5, 1]


def test_batches_are_copies_that_may_be_changed(tmp_path):
    store, episodes = fill(tmp_path, [5])
    sampler = WindowSampler(store, 1, frames=1)
    sampler.batch(np.arange(5)).pixels.zero_()
    np.testing.assert_array_equal(store.episode(0).frames, episodes[0].frames)


def test_a_sampler_keeps_its_episodes_while_the_store_grows(tmp_path):
    store, episodes = fill(tmp_path, [5, 5])
    sampler = WindowSampler(store, 5)
    store.append(episodes[0])
    assert len(sampler) == 2
    np.testing.assert_array_equal(
        sampler.batch(np.array([1])).pixels[0, 0].numpy(), stacked(episodes[1], 0, 2)
    )
    assert len(WindowSampler(store, 5)) == 3


def test_mistakes_are_named(tmp_path):
    empty = EpisodeStore.create(tmp_path / "empty", (1, 4, 4), CONTINUOUS)
    with pytest.raises(ValueError, match="no episodes to sample from"):
        WindowSampler(empty, 1)
    with pytest.raises(ValueError, match="at least 2 episodes, got 0"):
        empty.split(0.5, 0)
    store, _ = fill(tmp_path / "store", [4, 5])
    for wrong in ({"steps": 0}, {"steps": 1, "block": 0}, {"steps": 1, "frames": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            WindowSampler(store, **wrong)
    sampler = WindowSampler(store, 1)
    for windows in ([-1], [len(sampler)]):
        with pytest.raises(ValueError, match=r"must lie in \[0, 9\)"):
            sampler.batch(np.array(windows))
    with pytest.raises(ValueError, match=r"no extra 'x'; it has \['where'\]"):
        sampler.extra("x", np.array([0]))
    with pytest.raises(ValueError, match="max_offset"):
        sampler.sample_pairs(4, np.random.default_rng(0), 0)
    with pytest.raises(ValueError, match="discount"):
        sampler.sample_pairs(4, np.random.default_rng(0), 3, discount=1.0)
    with pytest.raises(ValueError, match="fraction"):
        store.split(1.0, 0)
    with pytest.raises(ValueError, match="episode indices"):
        store.view([2])


def test_short_episodes_are_left_out_with_a_word(tmp_path):
    store, _ = fill(tmp_path, [4, 20, 6, 10])
    for steps, block, words in (
        (
            3,
            2,
            r"1 of 4 episodes \(25\.0%\), which hold 10\.0% of the environment steps, are shorter and are left out",
        ),
        (11, 1, r"3 of 4 episodes \(75\.0%\), which hold 50\.0%.*smaller block"),
    ):
        with pytest.warns(UserWarning, match=words) as caught:
            WindowSampler(store, steps, block)
        # Once; a renderer of another test that is collected meanwhile may warn, too.
        assert sum("shorter and are left out" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WindowSampler(store, 4)


def test_windows_that_nearly_no_episode_can_hold_are_refused(tmp_path):
    """A hundred episodes of 10 steps and one of 40: windows of 20 would show 4% of what was collected."""
    store, _ = fill(tmp_path, [*[10] * 100, 40])
    with pytest.raises(
        ValueError, match=r"100 of 101 episodes \(99\.0%\), which hold 96\.2%.*nearly nothing is left"
    ):
        WindowSampler(store, 10, 2)
    with pytest.warns(UserWarning, match="left out"):
        WindowSampler(store.view(range(50, 101)), 10, 2)  # 7% are left
