"""The head-to-head's grid: stages, spaces, paired episodes, measures and statistics."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hues import LUMA, hue_and_chroma, turned

from jepa_rl import ActionSpec, Episode, EpisodeStore, WorldModel, WorldModelConfig, WorldSpec
from jepa_rl.envs.worlds import two_rooms_rules as rules

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
ACTION = ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0))


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The folder, whose files import each other by their bare names."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


# -- stages -------------------------------------------------------------------------------------------


def test_a_stage_runs_once_and_again_when_what_it_depends_on_changes(tmp_path):
    from _h2h_cache import Stage, done, memory_of, run

    calls = []

    def work(folder):
        calls.append(folder)
        return {"content": "c"}

    stage = Stage("data", "a.b", {"seed": 1}, ("x",), ("benchmarks/_h2h_cache.py",))
    folder, found = run(stage, tmp_path, work)
    assert run(stage, tmp_path, work)[1] == found and calls == [folder]
    for other in (replace(stage, settings={"seed": 2}), replace(stage, inputs=("y",)),
                  replace(stage, code=("benchmarks/_h2h_plan.py",))):  # fmt: skip
        assert done(other, tmp_path) is None
        assert run(other, tmp_path, work)[0] != folder
    assert len(calls) == 4
    assert memory_of(found) > 50 and memory_of(found, {"content": "of an older kind"}) is None


def test_a_stage_that_failed_is_not_done(tmp_path):
    from _h2h_cache import Stage, done, run, seconds_of

    def fail(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    stage = Stage("data", "a", {}, (), ())
    with pytest.raises(KeyboardInterrupt):
        run(stage, tmp_path, fail)
    assert done(stage, tmp_path) is None
    found = run(stage, tmp_path, lambda folder: {"content": (folder / "half").name})[1]
    assert found["content"] == "half" and seconds_of(found) is None, "what it took before is not known"


def test_comments_do_not_change_the_code_of_a_stage(tmp_path, monkeypatch):
    import _h2h_cache as cache

    monkeypatch.setattr(cache, "ROOT", tmp_path)
    cache.code_of.cache_clear()
    found = []
    for text in ("x = 1\n", "# one\nx = 1\n", "x = 2\n"):
        (tmp_path / "part.py").write_text(text)
        found.append(cache.code_of("part.py"))
        cache.code_of.cache_clear()
    assert found[0] == found[1] != found[2]


@pytest.mark.filterwarnings("ignore:windows of")
def test_cells_do_not_depend_on_their_order(tmp_path):
    from _h2h_cells import Cell, Pipeline, Setting

    cells = [Cell("two_rooms", arm, "point", 0) for arm in ("jepa_sigreg", "vae", "state")]

    def results(root, order):
        pipelines = {cell: Pipeline(cell, Setting(root, quick=True)) for cell in order}
        # Another cell's stages, and numbers drawn by others, in between.
        found = {cell: (p.played["success"], p.dynamics[1]["content"], p.encoder[1]["content"]) for cell, p in
                 pipelines.items() if torch.rand(()) >= 0}  # fmt: skip
        return found

    there = results(tmp_path / "there", cells)
    assert results(tmp_path / "back", cells[::-1]) == there
    assert results(tmp_path / "there", cells[1:2]) == {cells[1]: there[cells[1]]}  # from the cache
    assert len({content for _, _, content in there.values()}) == 3


# -- spaces -------------------------------------------------------------------------------------------


def test_states_are_frames_side_by_side_and_stay_in_their_episode(tmp_path):
    from _h2h_spaces import latent_episodes, stacked

    store = EpisodeStore.create(tmp_path, (1, 2, 2), ACTION)
    for length in (2, 3):
        frames, actions = np.zeros((length + 1, 1, 2, 2), np.uint8), np.zeros((length, 2), np.float32)
        store.append(Episode(frames, actions, np.zeros(length, np.float32), False, True, {}))
    view = store.view()
    latents = torch.arange(7.0)[:, None]
    assert stacked(latents, view, 2).tolist() == [[0, 0], [0, 1], [1, 2], [3, 3], [3, 4], [4, 5], [5, 6]]
    second = replace(view, indices=view.indices[1:])
    found = latent_episodes(latents, second, 1)
    assert found.latents[:, 0].tolist() == [3, 4, 5, 6] and found.lengths.tolist() == [3]
    assert found.actions.shape == (3, 2)


def test_one_factor_keeps_the_geometry_and_whitening_does_not():
    from _h2h_spaces import Space

    raw = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0]) + 5
    plain, white = Space(None, whiten=False), Space(None, whiten=True)
    for space in (plain, white):
        space.fit(raw)
        assert space.standardised(raw).mean(0).abs().max() < 1e-4
        assert space.standardised(raw).var(0).mean() == pytest.approx(1, abs=1e-3)
    std = plain.standardised(raw).std(0)
    assert std[0] / std[1] == pytest.approx(3, abs=0.1)
    assert white.standardised(raw).std(0).tolist() == pytest.approx([1, 1], abs=1e-3)


def stacked_world(objective, frames):
    import _h2h_spaces  # noqa: F401  (registers its parts)

    torch.manual_seed(0)
    options = {"frame": "conv", "options": {"widths": (4,)}}
    spec = WorldSpec((frames, 8, 8), frames, ACTION)
    dynamics = {"width": 8, "depth": 1}
    return WorldModel(WorldModelConfig(spec, 4 * frames, "side_by_side", "mlp", options, dynamics, objective))


def test_frames_are_encoded_alone_and_only_the_newest_is_shaped():
    world = stacked_world("frames_jepa", 2).eval()
    pixels = torch.randint(
        0, 255, (3, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    z = world.encode(pixels)
    swapped = world.encode(pixels.flip(1))
    torch.testing.assert_close(z[:, :4], swapped[:, 4:])
    windows = torch.arange(24.0).view(1, 3, 8)
    assert torch.equal(world.objective.shaped(windows), windows[..., 4:])
    one = stacked_world("frames_jepa", 1)
    assert torch.equal(one.objective.shaped(windows), windows)


def test_schedules_of_teachers_end_with_the_training():
    from _h2h_arms import scheduled
    from _h2h_table import ARMS

    assert scheduled(ARMS["vjepa"], 70)["ema"] == (0.996, 1.0, 70)
    assert scheduled(ARMS["dino"], 70)["schedule"] == 70
    assert scheduled(ARMS["vae"], 70) == ARMS["vae"].objective_options


def test_every_arm_has_at_most_six_settings_and_begins_with_its_own():
    from _h2h_table import ARMS, DECISIVE

    for arm in ARMS.values():
        assert 1 <= len(arm.tried) <= 6 and arm.tried[0] == {} and arm.tried[arm.chosen] is not None
        assert all(replace(arm, **change) for change in arm.tried)
    assert len(DECISIVE) <= 8 and {side[0] for _, *sides in DECISIVE for side in sides} <= ARMS.keys()


def test_an_own_predictor_answers_in_standardised_latents():
    from _h2h_dynamics import OwnPredictor

    world = stacked_world("frames_jepa", 2)
    mean, scale = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor(2.0)
    own = OwnPredictor(world, mean, scale, 2)
    generator = torch.Generator().manual_seed(0)
    raw, actions = torch.randn(3, 8, generator=generator), torch.rand(3, 2, 2, generator=generator)
    path = own.rollout((raw - mean.repeat(2)) / 2, actions)
    torch.testing.assert_close(path * 2 + mean.repeat(2), world.dynamics.rollout(raw, actions))
    with pytest.raises(ValueError, match="reads other states"):
        OwnPredictor(world, mean, scale, 3)


def test_a_plan_knows_what_finished_stages_took():
    from _h2h_plan import GUESSES, OF_ARMS, expected

    known = {("encoder", "two_rooms.vae"): 7.0, ("play", "two_rooms"): 3.0}
    assert expected("encoder", "two_rooms.vae.3", known) == 7.0
    assert expected("encoder", "reacher.vae.3", known) == OF_ARMS["encoder", "vae"]
    assert expected("play", "two_rooms.vae.point.3", known) == 3.0
    assert expected("play", "reacher.vae.point.3", known) == GUESSES["play"]


# -- the closed loop ----------------------------------------------------------------------------------


class TrueSpace:
    """The true state of Two Rooms in pixels."""

    def read(self, seen):
        return torch.from_numpy(seen.state)


def test_the_true_world_reaches_goals_and_a_world_without_motion_does_not():
    from _h2h_tasks import play, task_of

    class Still(rules.TwoRoomsDynamics):
        def rollout(self, z, actions, **options):
            return super().rollout(z, 0 * actions, **options)

    # Distances are in pixels here, so that a step costs little beside them.
    task, seeds = replace(task_of("two_rooms"), budget=60), [100, 101, 102]
    assert play(task, TrueSpace(), rules.TwoRoomsDynamics(task.block), seeds, noise=0) == [1, 1, 1]
    assert play(replace(task, budget=10), TrueSpace(), Still(task.block), seeds, noise=0) == [0, 0, 0]


@pytest.mark.parametrize(
    "name", ["two_rooms", "table_edge", "push", "roofed_rooms", "two_rooms_moving", "push_recolour"]
)
def test_worlds_are_paired(name):
    from _h2h_tasks import task_of

    task, rows = task_of(name), np.arange(3)
    first, second = task.begin([5, 6, 7]), task.begin([7, 6, 5])
    assert np.array_equal(first.goals().pixels, second.goals().pixels[::-1])
    for _ in range(3):
        push = np.full((3, 2), 0.7, np.float32)
        first.step(rows, push, True)
        second.step(rows, push, True)
    seen, again = first.seen(rows), second.seen(rows)
    assert np.array_equal(seen.pixels, again.pixels[::-1]) and np.array_equal(seen.state, again.state[::-1])
    assert seen.pixels.shape[:2] == (3, task.frames) and seen.state.shape[2] == len(task.names)


@pytest.mark.gl
def test_reachers_are_paired_and_do_not_touch_each_other():
    from _h2h_tasks import task_of

    task = task_of("reacher")
    both, alone = task.begin([5, 6]), task.begin([6])
    # What it draws is what the data show: pictures of ``make_world``, the target in its place.
    both.target_place()[:] = both.target[0]
    both.world.physics.set_state(both.state[0])
    both.world.physics.after_reset()
    assert np.array_equal(both._picture(), both.pixels[0, -1])
    for worlds, row in ((both, 1), (alone, 0)):
        rows, push = np.arange(row + 1), np.full((row + 1, 2), 0.5, np.float32)
        for _ in range(3):
            worlds.step(rows, push, watched=True)
    first, second = both.seen(np.array([1])), alone.seen(np.array([0]))
    assert np.array_equal(first.pixels, second.pixels) and np.array_equal(first.state, second.state)
    assert np.array_equal(both.goals().pixels[1:], alone.goals().pixels)
    both.close()
    alone.close()


def test_worlds_that_are_left_out_of_a_step_stay():
    from _h2h_tasks import task_of

    for name in ("push", "roofed_rooms"):
        worlds, push = task_of(name).begin([5, 6]), np.full((1, 2), 0.9, np.float32)
        before = worlds.seen(np.arange(2))
        for _ in range(3):
            worlds.step(np.array([1]), push, True)
        worlds.step(np.arange(0), push[:0], True)  # all have succeeded
        now = worlds.seen(np.arange(2))
        assert np.array_equal(now.state[0], before.state[0]) and np.array_equal(
            now.pixels[0], before.pixels[0]
        )
        assert not np.array_equal(now.state[1], before.state[1])


def test_the_angle_of_a_block_is_told_as_far_as_it_can_be_seen():
    from _h2h_push import truth

    state = np.array([[0.2, 0.3, 0.5, 0.5, 0.1], [0.2, 0.3, 0.5, 0.5, 0.1 + np.pi / 2]])
    same, turned = truth(state), truth(state + 0.3 * np.eye(5)[4])
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)
    assert np.abs(turned - same).max() > 0.5


def test_a_dot_that_crosses_under_the_roof_is_out_of_sight_for_up_to_five_steps():
    from _h2h_roofed_rooms import FRAMES
    from _h2h_tasks import task_of

    worlds, rows = task_of("roofed_rooms").begin(range(40)), np.arange(40)
    wall, door = worlds.state.layout.T
    worlds.state.position[:] = np.stack([wall - 11, door], axis=1)
    brightest = []  # of the dot, in every frame that is seen after a step
    for _ in range(12):
        worlds.step(rows, np.tile([[1.0, 0.0]], (40, 1)), True)
        brightest.append(worlds.seen(rows).pixels[:, :, 0].max((2, 3)))
    newest = np.stack(brightest)[..., -1] > 25
    assert newest[0].all() and newest[-1].all()
    assert set((~newest).sum(0)) == {4, 5}
    for ago in range(FRAMES):  # older frames are those of the steps before
        assert np.array_equal(brightest[-1][:, FRAMES - 1 - ago], brightest[-1 - ago][:, -1])


# -- tasks with other pictures ------------------------------------------------------------------------


def test_data_show_what_distract_shows_in_training_and_paired_episodes_what_it_shows_in_tests(tmp_path):
    from _h2h_tasks import task_of

    from jepa_rl.envs import TwoRoomsVectorEnv, VectorDistract
    from jepa_rl.envs.wrappers.textures import FAMILIES

    task = task_of("two_rooms_moving")
    store = task.collect(tmp_path / "data", 0, task.settings | {"episodes": 4, "steps": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    plain = task_of("two_rooms").collect(tmp_path / "other", 0, task.settings | {"episodes": 4, "steps": 3})
    shown, _ = VectorDistract(TwoRoomsVectorEnv(4, start="any"), split="train").reset(seed=0)
    for i in range(4):
        found, without = store.episode(i), plain.episode(i)
        assert np.array_equal(found.frames[0], shown[i]) and np.array_equal(found.actions, without.actions)
        assert np.array_equal(found.extras["position"], without.extras["position"])
        changed = (found.frames != without.frames).any(1)
        assert 0.3 < changed.mean() < 1 and not (without.frames[:, 0] > 12)[changed].any()
        assert not np.array_equal(found.frames[0][:, changed[0]], found.frames[1][:, changed[0]])  # it moves
    worlds = task.begin([0, 1])
    shown, infos = VectorDistract(TwoRoomsVectorEnv(2), split="test").reset(seed=0)
    assert np.array_equal(worlds.seen(np.arange(2)).pixels[:, 0], shown)
    assert np.array_equal(worlds.goals().pixels[:, 0], infos["distracted_goal"])
    assert set(FAMILIES["train"]).isdisjoint(FAMILIES["test"])


def hues(pixels, where):
    """Hue and chroma of the colour that is the mean of some pixels of each picture "n 3 y x"."""
    return hue_and_chroma((pixels * where[:, None]).sum((2, 3)) / where.sum((1, 2))[:, None])


def apart(first, second):
    """Degrees between hues."""
    return np.abs(turned(first, second))


def test_recolouring_changes_the_hue_and_nothing_of_the_state(tmp_path):
    from _h2h_tasks import task_of

    from jepa_rl.envs.worlds import push_rules

    task, plain = task_of("push_recolour"), task_of("push")
    kinds, without = task.violations(12), plain.violations(12)
    assert set(kinds) == {*without, "recolour"}
    ordinary, other = kinds["ordinary"], kinds["recolour"]
    assert np.array_equal(ordinary[0].pixels, other[0].pixels) and np.array_equal(ordinary[1], other[1])
    assert np.array_equal(ordinary[2].state, other[2].state)

    def of_block(pixels, clean):
        return hues(pixels[:, 0], (clean[:, 0] == np.array(push_rules.BLOCK)[:, None, None]).all(1))

    blue = hues(np.array(push_rules.BLOCK, float)[None, :, None, None], np.ones((1, 1, 1)))[0]
    shown = {
        "before": of_block(other[0].pixels, without["ordinary"][0].pixels),
        "ordinary": of_block(ordinary[2].pixels, without["ordinary"][2].pixels),
        "after": of_block(other[2].pixels, without["ordinary"][2].pixels),
    }
    for name, (hue, chroma) in shown.items():
        seen = chroma > 10  # not grey
        away = apart(hue[seen], blue)
        assert seen.sum() >= 4 and (away.min() >= 176 if name == "after" else away.max() <= 122)
    assert apart(shown["before"][0], shown["ordinary"][0]).max() > 20  # nobody can predict it
    after, clean = (
        np.einsum("c,nkcyx->nkyx", LUMA, k["ordinary"][2].pixels) for k in ({"ordinary": other}, without)
    )
    assert np.abs(after - clean).max() < 1  # rounding
    store = task.collect(tmp_path / "data", 0, task.settings | {"episodes": 2, "steps": 2})
    first, second = store.episode(0).frames[:2]
    assert (first != second).any(0).mean() > 0.9
    begun = plain.begin(range(6)).seen(np.arange(6)).pixels
    hue, chroma = of_block(task.begin(range(6)).seen(np.arange(6)).pixels, begun)
    assert apart(hue, blue).min() >= 176 and chroma.min() > 20


@pytest.mark.gl
def test_backgrounds_of_reachers_move_between_frames():
    from _h2h_tasks import task_of

    worlds, plain = task_of("reacher_moving").begin([5]), task_of("reacher").begin([5])
    seen, without = worlds.seen(np.array([0])), plain.seen(np.array([0]))
    assert np.array_equal(seen.state, without.state)
    behind = (without.pixels == 46).all(1)  # in both frames
    old, new = seen.pixels[:, 0][behind], seen.pixels[:, 1][behind]
    assert behind.mean() > 0.5 and (old != new).mean() > 0.05
    assert np.array_equal(seen.pixels[without.pixels > 60], without.pixels[without.pixels > 60])
    worlds.close()
    plain.close()


def test_a_goal_is_compared_with_the_newest_frame():
    from _h2h_tasks import newest_frame

    latents, goal = torch.tensor([[9.0, 9.0, 1.0, 3.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert newest_frame(2)(latents, goal).item() == pytest.approx((9 / 2) ** 0.5)


# -- measures -----------------------------------------------------------------------------------------


def test_impossible_steps_are_impossible():
    from _h2h_tasks import task_of

    task = task_of("two_rooms")
    kinds = task.violations(200)
    place = {name: (now.state[:, 0], then.state[:, 0]) for name, (now, _, then) in kinds.items()}
    now, then = place["ordinary"]
    reach = task.block * rules.MAX_STEP
    assert (np.linalg.norm(then - now, axis=1) <= reach + 1e-3).all()
    away = np.linalg.norm(place["teleport"][1][:, :2] - then[:, :2], axis=1)
    assert (away >= 0.2 * (rules.HIGH - rules.LOW)).all()
    before, behind = place["wall"]
    assert (np.sign(before[:, 0] - before[:, 2]) == -np.sign(behind[:, 0] - behind[:, 2])).mean() > 0.95
    assert kinds["vanish"][2].pixels[:, 0, 0].max() == 0 and kinds["ordinary"][2].pixels[:, 0, 0].max() > 100
    for name in ("door", "new_door"):
        before, behind = place[name]
        assert (np.sign(before[:, 0] - before[:, 2]) == -np.sign(behind[:, 0] - behind[:, 2])).all()
    for part, (low, high) in ((2, rules.WALL_RANGE), (3, rules.DOOR_RANGE)):
        known, unseen = place["door"][0][:, part], place["new_door"][0][:, part]
        assert ((known > low) & (known < high)).all() and ((unseen < low) | (unseen > high)).all()


def test_impossible_pushes_are_impossible():
    from _h2h_tasks import task_of

    from jepa_rl.envs.worlds import push_rules

    task = task_of("push")
    kinds = task.violations(30)
    (now, _, then), (_, _, away) = kinds["ordinary"], kinds["teleport"]
    place = slice(2, 4)  # of the block
    moved, jumped = (
        np.linalg.norm(after.state[:, 0, place] - now.state[:, 0, place], axis=1) for after in (then, away)
    )
    reach = task.block * push_rules.MAX_STEP
    assert (moved <= reach + 1e-3).all() and (moved > 0.01).mean() > 0.1
    assert (jumped >= 0.2 * (push_rules.BLOCK_RANGE[1] - push_rules.BLOCK_RANGE[0])).all()
    assert np.array_equal(away.state[:, 0, :2], then.state[:, 0, :2])  # the agent is where it was
    blue = [
        (seen.pixels[:, 0, 2].astype(int) - seen.pixels[:, 0, 0] > 50).sum((1, 2)) for seen in (then, away)
    ]
    gone = kinds["vanish"][2].pixels[:, 0].astype(int)
    assert min(map(np.min, blue)) > 80 and (gone[:, 2] - gone[:, 0] <= 50).all()


def test_surprise_and_counterfactuals_of_the_true_world():
    from _h2h_measures import Scene, counterfactual, surprise_auc
    from _h2h_tasks import task_of

    task, dynamics = task_of("two_rooms"), rules.TwoRoomsDynamics(5)
    found = surprise_auc(task, TrueSpace(), dynamics, 40)
    assert min(found[name] for name in ("teleport", "wall", "vanish")) == 1 > found["stopped_by_the_wall"]
    whole = Scene(task, TrueSpace(), dynamics, lambda z: z, {})
    assert counterfactual(whole, list(range(20))) == pytest.approx(1, abs=1e-4)


def test_retrieval_is_nothing_in_the_state_itself_and_chance_in_noise():
    from _h2h_measures import retrieval

    generator = torch.Generator().manual_seed(0)
    state, alone = torch.rand(600, 2, generator=generator), torch.arange(600)
    assert retrieval(state, state, alone) < 0.1
    assert retrieval(torch.randn(600, 8, generator=generator), state, alone) == pytest.approx(1, abs=0.1)
    # A space that knows the episode alone finds nothing in others.
    episode = alone // 20
    name = torch.randn(30, 8, generator=generator)[episode] + 1e-3 * torch.randn(600, 8, generator=generator)
    still = torch.rand(30, 2, generator=generator)[episode]
    assert retrieval(name, still, alone) < 0.01
    assert retrieval(name, still, episode) == pytest.approx(1, abs=0.3)


def test_the_mean_of_draws_is_a_point_and_its_rows_share_the_flow_that_was_trained():
    from _h2h_recipes import ALL, MeanOf

    class Coin:
        """Goes up or down by one."""

        latent_dim, action_dim = 1, 1

        def rollout(self, z, actions, futures, generator):
            toss = torch.randint(2, (len(z), futures, 1), generator=generator) * 2.0 - 1
            return torch.stack([z[:, None].expand(-1, futures, -1), z[:, None] + toss], 2)

    path = MeanOf(Coin(), 4000).rollout(torch.zeros(3, 1), torch.zeros(3, 5, 1), futures=2)
    assert path.shape == (3, 2, 6, 1) and path.abs().max() < 0.2
    assert torch.equal(path[:, 0], path[:, 1])
    assert ALL["flow_mean"].options == ALL["flow"].options and ALL["flow_mean"].train == ALL["flow"].train


def test_decoded_pictures_tell_whether_the_latent_knows_the_dot():
    """A dim dot is a hundredth of the squared error, and half of what can be decoded."""
    from _h2h_measures import decoded

    rng, rows = np.random.default_rng(0), np.arange(500)
    wall, dot = rng.integers(16, size=500), rng.integers(16, size=500)
    frames = np.zeros((500, 2, 32, 32), np.uint8)
    frames[:, 1] = 255 * (np.arange(32)[:, None] < 2 * wall[:, None, None])
    for y, x in np.ndindex(3, 3):
        frames[rows, 0, 8 * (dot // 4) + y, 8 * (dot % 4) + x] = 100
    walls, dots = (torch.nn.functional.one_hot(torch.from_numpy(of), 16).float() for of in (wall, dot))
    store, split = SimpleNamespace(column=lambda _: frames), torch.arange(500).split(400)
    latents = torch.cat([walls, dots], 1), torch.cat([walls, 0 * dots], 1)
    knows, misses = (decoded(z, store, *split, seed=0, updates=200) for z in latents)
    assert knows["decoder_r2"] > 0.9 and 0.4 < misses["decoder_r2"] < 0.6, (knows, misses)


# -- statistics and the report ------------------------------------------------------------------------


def test_differences_count_seeds_and_episodes():
    from _h2h_report import uncertainty, with_holm

    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 1, (5, 50)) for _ in range(3)]
    none = uncertainty(noise, float(np.mean(noise)))
    assert none["p"] > 0.05 and 0.05 < none["halfwidth"] < 0.5
    clear = uncertainty([scores + 1 for scores in noise], 1.0)
    assert clear["p"] < 1e-4 and clear["halfwidth"] == pytest.approx(none["halfwidth"])
    seeds = [scores + rng.normal(0, 1, (5, 1)) for scores in noise]
    assert uncertainty(seeds, 0.0)["halfwidth"] > 2 * none["halfwidth"]
    held = with_holm([{"p": 0.01}, {"p": 0.04}, {"p": None}, {"p": 0.03}])
    assert [d.get("p_holm") for d in held] == [0.04, 0.09, None, 0.09]


def test_the_report_tells_distractors_and_recoloured_steps_from_impossible_ones():
    from _h2h_page import success_tables
    from _h2h_report import averages, cells_of, worst_surprise

    runs = [
        {"task": task, "arm": "vae", "dynamics": "point", "seed": seed, "success": [1, seed],
         "measures": {"surprise_auc": {"teleport": 0.9, "vanish": 0.8, "stopped_by_the_wall": 0.1, "recolour": 0.6}}}
        for task in ("push", "push_recolour") for seed in (0, 1)
    ]  # fmt: skip
    plain, coloured = cells_of(runs)
    assert (plain["task"], plain["distractor"], plain["success"]) == ("push", None, [0.5, 1.0])
    assert (coloured["task"], coloured["distractor"]) == ("push", "recolour")
    assert "### push recolour\n\n| arm | point |" in success_tables([plain, coloured])
    found = averages(runs, "surprise_auc")[1]
    assert found["distractor"] == "recolour"
    assert worst_surprise(found) == {"auc": pytest.approx(0.8), "recolour_auc": pytest.approx(0.6)}
    assert worst_surprise({"teleport": 0.9})["recolour_auc"] is None


def test_an_arm_works_that_passes_on_two_of_three_tasks_half_way_to_the_supervised_one():
    from _h2h_report import strengths, working

    def cell(task, arm, decoded, retrieval):
        measures = {"decoder_r2": decoded, "retrieval": retrieval}
        return {"task": task, "arm": arm, "dynamics": "point", "seed": 0, "measures": measures}

    records = []
    for task, vae, dino in (("two_rooms", 0.7, 0.5), ("reacher", 0.55, 0.4), ("table_edge", 0.65, 0.9)):
        records += [cell(task, "vae", vae, 0.0), cell(task, "dino", 0.0, dino)]
        records += [cell(task, "random", 0.2, 0.8), cell(task, "supervised", 0.8, 0.2)]
    found = strengths(records)
    share = {(row["task"], row["arm"]): row["share"] for row in found}
    # Of decoders to an R2 of 1, not to that of the supervised encoder.
    assert share["two_rooms", "vae"] == pytest.approx(5 / 8)
    assert share["two_rooms", "dino"] == pytest.approx(1 / 2)
    assert working(found) == {"dino": True, "vae": True}  # of dino table_edge fails, of vae reacher
    assert working(strengths([r for r in records if r["task"] != "reacher"])) == {}
    for r in records:
        if r["arm"] == "supervised" and r["task"] == "two_rooms":
            r["measures"]["retrieval"] = 0.78  # hardly better than the random encoder: no yardstick
    (row,) = [r for r in strengths(records) if r["arm"] == "dino" and r["task"] == "two_rooms"]
    assert row["share"] is None and row["passed"] is None and not working(strengths(records))["dino"]
    worse = [r for r in found if r["task"] != "table_edge"] + [
        row | {"passed": False} for row in found if row["task"] == "table_edge"
    ]
    assert working(worse) == {"dino": True, "vae": False}


def test_answers_compare_the_same_seeds_arm_by_arm():
    from _h2h_answers import answers, rank_correlation
    from _h2h_report import by_cell

    def record(task, arm, dynamics, seed, success, probe=0.5, last=0.4):
        measures = {
            "probe_r2": {"x": probe, "y": 0.9}, "linear_probe_r2": {"x": probe}, "retrieval": 1 - probe,
            "effective_rank": 5.0, "smoothness": {"jumpiness": 2.0, "curvature": 9.0, "state_curvature": 4.0},
            "rollout_error": [0.1, 0.2, last], "latent_error_over_copying": [0.0, last], "counterfactual_r2": 0.5,
            "dynamics_multiply_adds": 100 if arm == "pixels" else 10, "decision_seconds": 0.1,
        }  # fmt: skip
        latents = None if arm == "pixels" else 1.0  # went on after a stop
        cost = {"processor_seconds": {"encoder": 1.0, "latents": latents, "dynamics": 2.0}}
        cell = {"task": task, "arm": arm, "dynamics": dynamics, "seed": seed}
        return cell | {"success": [success], "measures": measures, "cost": cost}

    runs = [record("two_rooms", "jepa_sigreg", "point", seed, 1, probe=0.9) for seed in (3, 4)]
    runs += [record("two_rooms", "jepa_sigreg", "flow", 3, 0), record("two_rooms", "dinov2", "flow", 3, 0.5)]
    runs += [record("two_rooms", "jepa_sigreg", "parallel", 4, 0, last=0.8)]
    for i, arm in enumerate(("dino", "vae", "pixels")):
        runs.append(record("two_rooms", arm, "point", 3, 0.1 * i, probe=0.1 * i))
    runs += [record("two_rooms_moving", "jepa_sigreg", "point", 4, 0.25)]
    found = answers(by_cell(runs))
    assert found["distribution_at_forks"]["two_rooms"] == {"mean": -1.0, "arms": {"jepa_sigreg": -1.0}}
    assert found["flow_on_dinov2"]["two_rooms"]["best"] == "jepa_sigreg, point"
    assert found["flow_on_dinov2"]["two_rooms"]["share"] == 0.5
    (parallel,) = found["parallel_prediction"]
    assert parallel["seeds"] == [4] and parallel["parallel"]["rollout_error"] == [0.1, 0.2, 0.8]
    assert found["cost_of_pixels"]["two_rooms"]["step_ratio"] == 10
    assert found["cost_of_pixels"]["two_rooms"]["jepa_sigreg"]["training"] == 4.0
    assert found["cost_of_pixels"]["two_rooms"]["training_ratio"] is None
    (noise,) = found["noise"]["moving"]
    assert noise["seeds"] == [4] and noise["lost"] == 0.75
    (foretold,) = found["foretells_success"]
    assert (
        foretold["correlation"]["probe R2, worst"] == foretold["correlation"]["retrieval"] == pytest.approx(1)
    )
    assert foretold["correlation"]["effective rank"] == 0 and foretold["left_out"] is None
    assert rank_correlation([1, 1, 2, 3], [3, 3, 2, 1]) == pytest.approx(-1)
    grown = found["errors_compound"]["two_rooms"]["families"]["prediction"]["growth"]
    assert grown == pytest.approx(((0.4**2 - 0.1**2) / (0.2**2 - 0.1**2)) ** 0.5)  # beyond the probe's


def test_the_recorded_report_and_its_tables_are_those_of_the_records():
    from _h2h_page import page
    from _h2h_report import by_cell, cells_of, read_records

    results = json.loads((BENCHMARKS / "results/head_to_head.json").read_text())
    records = read_records(BENCHMARKS / "results/head_to_head")
    assert results["cells"] == cells_of(records)
    written = (BENCHMARKS.parent / "docs/head_to_head_tables.md").read_text()
    assert page(results, by_cell(records)) == written, "python benchmarks/head_to_head.py --report"


@pytest.mark.filterwarnings("ignore:windows of")
def test_a_quick_run_ends_in_a_report_and_other_code_is_not_counted_with_it(tmp_path, monkeypatch, capsys):
    import _h2h_report
    import _record
    import head_to_head

    _record.commit(), _record.code()  # are kept for the tests behind this one, which have another root
    monkeypatch.setattr(_record, "ROOT", tmp_path)
    args = head_to_head.Args(
        quick=True, tasks=("two_rooms",), dynamics=("point",), arms=("state", "random"), out=tmp_path / "runs"
    )
    head_to_head.main(args)
    written = json.loads((tmp_path / "runs/benchmarks/head_to_head.quick.json").read_text())
    keys = {
        "arms",
        "tasks",
        "seeds",
        "cells",
        "differences",
        "surprise",
        "smoothness",
        "cost",
        "protocol_commit",
    }
    assert keys <= written.keys() and written["arms"] == [] and written["bounds"] == ["random", "state"]
    assert [len(cell["success"]) for cell in written["cells"]] == [1, 1]
    assert "| state |" in (tmp_path / "runs/benchmarks/head_to_head_tables.md").read_text()
    assert len(list((tmp_path / "runs/benchmarks").glob("head_to_head_*.png"))) == 2
    records = tmp_path / "runs/quick/records"
    with monkeypatch.context() as change:
        change.setenv("BENCHMARK_TRY", "1")
        change.setattr(_h2h_report, "ROOT", tmp_path)
        head_to_head.write_report(records)
    assert (tmp_path / "runs/benchmarks/head_to_head.try.json").exists() and not (tmp_path / "docs").exists()
    file = next(records.glob("*/state/*/seed_3.json"))
    record = json.loads(file.read_text())
    record["code"] = "other"
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="different code"):
        head_to_head.write_report(records)
    head_to_head.main(replace(args, plan=True))
    assert "core-hours" in capsys.readouterr().out


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Arguments of one small cell, which is recorded below ``tmp_path``."""
    import head_to_head
    from _h2h_cells import Setting

    monkeypatch.setattr(head_to_head, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(head_to_head, "refuse_unrecordable", lambda: None)
    monkeypatch.setattr("_record.not_recorded", lambda record: [])
    monkeypatch.setattr(head_to_head, "Setting", lambda out, quick: Setting(out, episodes=2, quick=True))
    return head_to_head.Args(
        arms=("state",), tasks=("two_rooms",), dynamics=("point",), seeds=(3,), out=tmp_path / "runs"
    )


@pytest.mark.filterwarnings("ignore:windows of")
def test_a_recorded_cell_is_told_and_a_try_runs_it_again_beside_it(recorded, tmp_path, monkeypatch, capsys):
    import head_to_head
    from _h2h_cells import Cell

    args, kept = recorded, head_to_head.RESULTS
    head_to_head.main(args)
    record = head_to_head.record_of(Cell("two_rooms", "state", "point", 3), kept)
    written = record.stat().st_mtime_ns
    capsys.readouterr()
    head_to_head.main(args)
    told = capsys.readouterr().out
    assert str(record) in told and "BENCHMARK_TRY=1" in told
    monkeypatch.setenv("BENCHMARK_TRY", "1")
    head_to_head.main(replace(args, plan=True))
    assert "1 of 1 cells are missing" in capsys.readouterr().out
    head_to_head.main(args)
    tried = head_to_head.record_of(Cell("two_rooms", "state", "point", 3), tmp_path / "runs/records")
    assert json.loads(tried.read_text())["success"] == json.loads(record.read_text())["success"]
    assert record.stat().st_mtime_ns == written


@pytest.mark.filterwarnings("ignore:windows of")
def test_seeds_count_together_although_other_code_began_one_of_them(recorded, monkeypatch):
    import head_to_head
    from _h2h_cells import Cell
    from _record import Records

    args = recorded
    head_to_head.main(args)
    with monkeypatch.context() as change:
        change.setattr("_record.code", lambda: "earlier")
        head_to_head.main(replace(args, seeds=(4,), only=("data",)))
    head_to_head.main(replace(args, seeds=(4,)))
    folder = head_to_head.folder_of(Cell("two_rooms", "state", "point", 3), head_to_head.RESULTS)
    assert list(Records(folder, {}, counted=True).all()) == [3, 4]
    with monkeypatch.context() as change, pytest.raises(ValueError, match=r"differ in .*code"):
        change.setattr("_record.code", lambda: "later")
        head_to_head.main(replace(args, seeds=(5,)))


def test_unknown_names_are_told_with_the_known_ones():
    import head_to_head

    with pytest.raises(ValueError, match=r"--arms: there is no vea; choose of jepa_sigreg"):
        head_to_head.check(head_to_head.Args(arms=("vea",)))


@pytest.mark.filterwarnings("ignore:windows of")
def test_a_learned_price_leaves_the_dynamics_as_they_are(tmp_path):
    from _h2h_cells import Cell, Pipeline, Setting

    plain, priced = (
        Pipeline(Cell("two_rooms", "state", name, 0), Setting(tmp_path, quick=True))
        for name in ("point", "point+distance")
    )
    (dynamics, found), (other, priced_found) = plain.dynamics, priced.dynamics
    for name, tensor in dynamics.state_dict().items():
        assert torch.equal(tensor, other.dynamics.state_dict()[name])
    assert found["content"] != priced_found["content"]
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert other.away(states, states[:, :1])[:, 0].max() < 1e-5
    assert other.away(states, states[:, :1]).shape == (3, 5)
    assert len(priced.played["success"]) == 4 and "rollout_error" in priced.measures


def test_a_price_is_asked_for_the_newest_frames():
    from _h2h_dynamics import PricedDynamics

    from jepa_rl.dynamics import MLPDynamics
    from jepa_rl.temporal import TemporalDistance

    torch.manual_seed(0)
    priced = PricedDynamics(MLPDynamics(4, 2, width=4), TemporalDistance(2, limit=5.0))
    z, goal = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = priced.temporal(z[:, 2:], goal[:, 2:]) / 5
    torch.testing.assert_close(priced.away(z, goal), expected)


@pytest.mark.filterwarnings("ignore:windows of")
@pytest.mark.parametrize(
    ("name", "several"), [("parallel", False), ("two_scale", False), ("flow_heun", True), ("flow_repa", True)]
)
def test_dynamics_outside_the_grid_are_played(tmp_path, name, several):
    from _h2h_cells import Cell, Pipeline, Setting
    from _h2h_tasks import draws_futures

    cell = Pipeline(Cell("two_rooms", "state", name, 0), Setting(tmp_path, quick=True))
    assert len(cell.played["success"]) == 4
    assert draws_futures(cell.dynamics[0]) == several


def test_searches_are_chosen_on_tuning_episodes_and_recorded_beside_the_common_one(
    tmp_path, monkeypatch, capsys
):
    import _h2h_table as h2h_table
    import _h2h_tune as h2h_tune
    from _h2h_cells import Cell, Pipeline, Setting

    changes = ({}, {"step_cost": 0.02})
    monkeypatch.setitem(h2h_table.SEARCHES, "two_rooms", changes)
    monkeypatch.setitem(h2h_table.OWN_SEARCH, ("two_rooms", "state"), 1)
    cell = Cell("two_rooms", "state", "point", 0)
    with pytest.raises(ValueError, match="chosen on seeds"):
        h2h_tune.tune("searches", [cell._replace(seed=3)], tmp_path, quick=True)
    h2h_tune.tune("searches", [cell], tmp_path, quick=True)
    kept = h2h_tune.read(tmp_path / "tuning.json")
    assert list(kept) == [
        f"state.point {i} {json.dumps(change)} two_rooms 0" for i, change in enumerate(changes)
    ]
    assert 'state.point 1 {"step_cost": 0.02}' in capsys.readouterr().out
    found = Pipeline(cell, Setting(tmp_path, quick=True)).found
    assert found["own_search"]["search"] == {"step_cost": 0.02}
    assert len(found["own_search"]["success"]) == len(found["success"]) == 4
