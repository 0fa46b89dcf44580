"""Distract: what is covered and what stays, the two splits, goals, every autoreset mode, colours of known hue."""

import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hues import LUMA, hue_and_chroma, turned

from jepa_rl.envs import (
    Distract,
    GoalObservation,
    PixelObservation,
    PushEnv,
    PushVectorEnv,
    TwoRoomsEnv,
    TwoRoomsVectorEnv,
    VectorDistract,
    collect,
    recolour,
    world_spec,
)
from jepa_rl.envs.worlds.push_rules import AGENT, BACKGROUND, BLOCK
from jepa_rl.envs.wrappers.textures import ANGLES, Textures, commonest_colours, random_shares

REST = np.zeros(2, np.float32)


def push(**arguments):
    return Distract(PushEnv(), **arguments)


def test_checker_and_the_recorded_source():
    env = Distract(gym.make("jepa_rl/Push-v0"), background=[BACKGROUND], recolour="all", split="test")
    check_env(env, skip_render_check=True)
    made = gym.make(env.spec)  # from what was recorded
    seen = env.reset(seed=3)[0]
    np.testing.assert_array_equal(made.reset(seed=3)[0], seen)
    venv = gym.make_vec("jepa_rl/Push-v0", 2, "vector_entry_point")
    many = VectorDistract(venv, background=[BACKGROUND], recolour="all", split="test")
    for source in (world_spec(env).source, world_spec(many).source):
        assert '"Distract"' in source and '"split": "test"' in source
    np.testing.assert_array_equal(many.reset(seed=3)[0][0], seen)


def test_the_background_moves_and_nothing_else_changes():
    clean, env = PushEnv(), push()
    plain, info = clean.reset(seed=0)
    seen, told = env.reset(seed=0)
    covered = (plain == np.array(BACKGROUND)[:, None, None]).all(0)
    edge = np.abs(plain.astype(int) - np.array(BACKGROUND)[:, None, None]).max(0) <= 12
    assert 0.8 < covered.mean() < 1
    np.testing.assert_array_equal(seen[:, ~edge], plain[:, ~edge])
    assert (seen[:, covered] != plain[:, covered]).any(0).mean() > 0.99
    assert seen[:, covered].max() <= 0.6 * 255
    np.testing.assert_array_equal(info["state"], told["state"])
    changes = []
    for _ in range(3):
        before, (plain, *_), (seen, *_) = seen, clean.step(REST), env.step(REST)
        np.testing.assert_array_equal(seen[:, ~edge], plain[:, ~edge])
        changes.append(np.abs(seen.astype(int) - before)[:, covered].mean())
    assert min(changes) > 1.0
    np.testing.assert_array_equal(env.reset(seed=0)[0], push().reset(seed=0)[0])
    assert (env.reset()[0] != push().reset(seed=1)[0]).any()


def test_the_environment_does_what_it_does_without_the_wrapper():
    clean, env, rng = PushEnv(), push(recolour="all"), np.random.default_rng(0)
    clean.reset(seed=5), env.reset(seed=5)
    for _ in range(3):
        for _ in range(4):
            action = rng.uniform(-1, 1, 2)
            *one, info = clean.step(action)
            *other, told = env.step(action)
            assert one[1:] == other[1:]
            np.testing.assert_array_equal(info["state"], told["state"])
        np.testing.assert_array_equal(clean.reset()[1]["state"], env.reset()[1]["state"])


def test_textures_drift_steadily_and_the_splits_share_no_kind():
    rng, textures = np.random.default_rng(0), Textures.none(40, 3)
    kinds = {}
    for split in ("train", "test"):
        for row in range(40):
            textures.draw_anew(row, rng, split, 1.0)
        counts = (textures.weight > 0).sum(1)
        kinds[split] = set(zip(counts.tolist(), (textures.weight.max(1) > 0.5).tolist(), strict=True))
        pictures = textures.at(np.arange(6)[None].repeat(40, 0), 32, 32).astype(float)
        step = np.abs(np.diff(pictures, axis=1)).mean((2, 3, 4))
        assert (step > 0.5).all() and (step < 60).all()
        assert (pictures.std((1, 3, 4)).max(1) > 10).all()
    assert not kinds["train"] & kinds["test"]  # (number of gratings, hard edges)


def test_a_texture_is_its_formula():
    textures = Textures.none(1, 1)
    textures.frequency[0, 0], textures.phase[0, 0], textures.drift[0, 0] = (2.0, 1.0), 0.3, 0.5
    textures.weight[0, 0], textures.low[0], textures.high[0] = 0.4, 20.0, 220.0
    y, x = np.mgrid[:8, :16] / 16
    expected = 0.5 + 0.4 * np.sin(2 * np.pi * (2 * x + y) + 0.3 - 0.5 * 7)
    np.testing.assert_allclose(textures.at(np.array([[7]]), 8, 16)[0, 0, 0], 20 + 200 * expected, atol=1.01)


def test_frames_of_a_stack_have_the_background_of_their_own_time():
    env = Distract(PixelObservation(PushEnv(), frames=3), recolour="all", recolour_every="step")
    seen = env.reset(seed=0)[0].reshape(3, 3, 64, 64)
    np.testing.assert_array_equal(seen[0], seen[2])
    for _ in range(4):
        before, seen = seen, env.step(np.array([0.3, 0.1]))[0].reshape(3, 3, 64, 64)
        np.testing.assert_array_equal(seen[:2], before[1:])
        assert (seen[2] != seen[1]).any()


def turn(after, before):
    """Degrees from the hue of one RGB colour to that of another."""
    return turned(hue_and_chroma(after)[0], hue_and_chroma(before)[0])


def test_hues_turn_and_luma_stays():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 6, 16, 16), np.uint8)  # two frames each
    result = recolour(pictures, np.array([0.0, 120.0, -75.0]))
    np.testing.assert_array_equal(result[0], pictures[0])
    before, after = (
        np.moveaxis(part.reshape(3, 2, 3, 16, 16), 2, -1).astype(float) for part in (pictures, result)
    )
    assert np.abs(after @ LUMA - before @ LUMA).max() <= 0.5  # rounding
    chroma = [np.linalg.norm(part - (part @ LUMA)[..., None], axis=-1) for part in (before, after)]
    colourful = np.minimum(*chroma) > 60
    for angle, one, other, plain in zip((120.0, -75.0), before[1:], after[1:], colourful[1:], strict=True):
        assert plain.sum() > 50 and np.abs(turn(other[plain], one[plain]) - angle).max() < 2
    # Half a turn: what each channel was above its grey (108.97) it is below.
    reddish = np.array((130, 100, 100), np.uint8)[:, None, None]
    np.testing.assert_array_equal(recolour(reddish, 180.0).ravel(), (88, 118, 118))
    grey = np.full((3, 4, 4), 90, np.uint8)
    np.testing.assert_array_equal(recolour(grey, 150.0), grey)


def test_saturation_falls_to_grey():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    none, half = recolour(pictures, 0.0, saturation=np.array([0.0, 0.5]))
    luma = np.einsum("c,ncyx->nyx", LUMA, pictures)
    np.testing.assert_allclose(none, np.broadcast_to(luma[0], (3, 8, 8)), atol=0.51)
    np.testing.assert_allclose(half, (luma[1] + pictures[1]) / 2, atol=0.51)


def test_random_shares_look_random_and_are_always_the_same():
    keys = np.random.default_rng(0).integers(2**63, size=50).astype(np.uint64)
    drawn = random_shares(keys, np.arange(200)[None].repeat(50, 0))
    np.testing.assert_array_equal(random_shares(keys[3:4], np.array([[17]])), drawn[3:4, 17:18])
    assert drawn.min() >= 0 and drawn.max() < 1
    assert np.abs(np.histogram(drawn, 10, (0, 1))[0] / drawn.size - 0.1).max() < 0.01
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.03


def test_one_colour_alone_can_turn():
    plain = PushEnv().reset(seed=0)[0]
    after = recolour(plain, 180.0, colour=AGENT)
    agent, block = ((plain == np.array(c)[:, None, None]).all(0) for c in (AGENT, BLOCK))
    np.testing.assert_array_equal(after[:, block], plain[:, block])
    assert abs(abs(turn(after[:, agent].mean(1), AGENT)) - 180) < 2


@pytest.mark.parametrize("every", ["episode", "step"])
def test_colours_belong_to_the_split_and_last_as_long_as_they_should(every):
    for split, (low, high) in ANGLES.items():
        env = push(background=None, recolour=BLOCK, recolour_every=every, split=split)
        plain = PushEnv()
        shades = set()
        for seed in range(12):
            seen, clean = env.reset(seed=seed)[0], plain.reset(seed=seed)[0]
            block = (clean == np.array(BLOCK)[:, None, None]).all(0)
            shade = seen[:, block][:, 0]
            if np.ptp(shade.astype(int)) > 15:  # a hue, not grey
                assert (turn(shade, BLOCK) - low + 6) % 360 <= high - low + 12
            shades.add(tuple(shade.tolist()))
            assert np.array_equal(env.step(REST)[0], seen) == (every == "episode")
        assert len(shades) > 6 or split == "test"
    (low, high), (held, out) = ANGLES["train"], ANGLES["test"]
    assert held - high >= 60 and low + 360 - out >= 60


def test_goals_are_there_clean_and_distracted():
    clean = PushEnv().reset(seed=0)[1]["goal"]
    for goal in ("clean", "distracted"):
        env = push(recolour="all", goal=goal)
        _, info = env.reset(seed=0)
        np.testing.assert_array_equal(info["clean_goal"], clean)
        assert (info["distracted_goal"] != clean).any(0).mean() > 0.9
        np.testing.assert_array_equal(info["goal"], info[f"{goal}_goal"])
        again = env.step(np.array([0.1, 0.1]))[-1]
        np.testing.assert_array_equal(again["distracted_goal"], info["distracted_goal"])
        seen = GoalObservation(env).reset(seed=0)[0]
        np.testing.assert_array_equal(seen["goal"], info["goal"])
        assert (env.reset()[1]["distracted_goal"] != info["distracted_goal"]).any()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vectorised_distractors_equal_single_ones(mode):
    n = 3
    looks = {"recolour": "all", "recolour_every": "step"}
    venv = VectorDistract(PushVectorEnv(n, 4, mode), **looks)
    singles = [Distract(gym.wrappers.TimeLimit(PushEnv(), 4), **looks) for _ in range(n)]
    observations, infos = venv.reset(seed=7)
    for i, env in enumerate(singles):
        np.testing.assert_array_equal(env.reset(seed=7 + i)[0], observations[i])
    over, rng = np.zeros(n, bool), np.random.default_rng(0)
    for _ in range(12):
        if mode is AutoresetMode.DISABLED and over.any():
            observations, infos = venv.reset(options={"reset_mask": over})
            for i in np.flatnonzero(over):
                np.testing.assert_array_equal(singles[i].reset()[0], observations[i])
        actions = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        observations, _, terminated, truncated, infos = venv.step(actions)
        waiting, over = over, terminated | truncated
        for i, env in enumerate(singles):
            if mode is AutoresetMode.NEXT_STEP and waiting[i]:
                seen, info = env.reset()
            else:
                seen, _, _, _, info = env.step(actions[i])
            if mode is AutoresetMode.SAME_STEP and over[i]:
                np.testing.assert_array_equal(infos["final_obs"][i], seen)
                np.testing.assert_array_equal(infos["final_info"]["goal"][i], info["goal"])
                seen, info = env.reset()
            np.testing.assert_array_equal(observations[i], seen)
            for name in ("goal", "clean_goal", "distracted_goal"):
                np.testing.assert_array_equal(infos[name][i], info[name])


def test_environments_that_reset_themselves_get_a_new_background():
    env = Distract(gym.wrappers.Autoreset(gym.wrappers.TimeLimit(PushEnv(), 2)))
    other = Distract(gym.wrappers.TimeLimit(PushEnv(), 2))
    env.reset(seed=0), other.reset(seed=0)
    for _ in range(2):
        env.step(REST), other.step(REST)
    np.testing.assert_array_equal(env.step(REST)[0], other.reset()[0])


def test_collected_episodes_are_those_that_were_seen(tmp_path):
    stores = []
    for i, venv in enumerate(
        (VectorDistract(TwoRoomsVectorEnv(2, 5)), VectorDistract(TwoRoomsVectorEnv(2, 5, "SameStep")))
    ):
        stores.append(collect(venv, tmp_path / str(i), episodes=4, seed=0, progress=False))
    singles = SyncVectorEnv(
        [lambda: Distract(gym.wrappers.TimeLimit(TwoRoomsEnv(), 5))] * 2, autoreset_mode="SameStep"
    )
    stores.append(collect(singles, tmp_path / "single", episodes=4, seed=0, progress=False))
    first, *others = [[store.episode(i).frames for i in range(4)] for store in stores[1:]]
    for frames, same in zip(first, others[0], strict=True):
        np.testing.assert_array_equal(frames, same)
    assert all(len(store) == 4 for store in stores)


def test_the_commonest_colour():
    pictures = np.zeros((3, 2, 8, 8), np.uint8)
    pictures[0, :, :6], pictures[1, 0], pictures[2, 1, 3:] = 7, 9, 200
    np.testing.assert_array_equal(commonest_colours(pictures), [[7, 7], [9, 0], [0, 200]])


def test_it_is_fast():
    venv = VectorDistract(TwoRoomsVectorEnv(64))
    observations, _ = venv.reset(seed=0)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        venv._draw(observations)
        seconds.append(time.perf_counter() - began)
    assert 64 / min(seconds) > 5000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: push(background=None), "nothing to do"),
        (lambda: push(split="validation"), "split"),
        (lambda: push(tolerance=300), "tolerance"),
        (lambda: push(tolerance=1.5), "whole number"),
        (lambda: push(brightness=0.0), "brightness"),
        (lambda: push(goal="none"), "goal must"),
        (lambda: push(background="black"), "commonest"),
        (lambda: push(background=[(1, 2)]), "3 channels"),
        (lambda: push(background=[(1, 2, 300)]), "0 to 255"),
        (lambda: push(recolour="red"), "'all'"),
        (lambda: push(recolour=(80, 80, 80)), "no hue"),
        (lambda: push(recolour="all", recolour_every="frame"), "'episode' or 'step'"),
        (lambda: Distract(TwoRoomsEnv(), recolour="all"), "got 2 channels"),
        (lambda: Distract(gym.make("CartPole-v1")), "PixelObservation"),
        (lambda: Distract(GoalObservation(PushEnv())), "around"),
        (lambda: recolour(np.zeros((2, 4, 4), np.uint8), 90.0), "multiple of 3"),
        (lambda: recolour(np.zeros((3, 4, 4), np.uint8), np.nan), "finite"),
        (lambda: recolour(np.zeros((3, 4, 4), np.uint8), 9.0, saturation=1.5), "between 0"),
        (
            lambda: recolour(np.zeros((2, 3, 4, 4), np.uint8), 9.0, saturation=np.ones(3)),
            "saturation must be finite",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
