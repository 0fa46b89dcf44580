"""The harness of the recorded figures: what it counts together, and that it goes on after a kill."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder, whose files import each other by their bare names."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def harness(benchmarks):
    import dmc_pixels

    return dmc_pixels


def record(path: Path, first: float, last: list[float], **facts) -> Path:
    kind = {"frames": 8, "preset": "laptop", "action_repeat": 2, "train_episode_frames": None, "render": "fast",
            "observations": "pixels", "device": "cpu", "n_step": [10, 3]}  # fmt: skip
    more = {"threads": 1, "machine": {"cpu": "one"}, "before": {"frames": 100, "seconds": 5.0}}
    curve = [
        {"step": 0, "returns": [first, first], "seconds": 1.0},
        {"step": 4, "returns": last, "seconds": 9.0},
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kind | more | {"curve": curve} | facts))
    return path


def test_a_summary_says_what_the_runs_say(harness, tmp_path):
    scores = {1: [0.0, 2.0], 2: [9.0, 11.0], 3: [20.0, 20.0], 4: [900.0, 1100.0]}
    found = harness.summary([record(tmp_path / f"seed_{seed}.json", 0.5, s) for seed, s in scores.items()])
    assert found["seeds"] == [1, 2, 3, 4] and found["score_per_seed"] == [1.0, 10.0, 20.0, 1000.0]
    assert found["iqm"] == 15.0  # of the middle half
    low, high = found["ci95"]
    assert 1.0 <= low < 15.0 < high <= 1000.0
    assert found["wall_seconds"] == [14.0] * 4
    assert found["curve"]["frames"] == [100, 108]
    assert found["curve"]["mean_return_per_seed"][3] == [0.5, 1000.0]


def test_runs_of_another_kind_are_not_counted_together(harness, tmp_path):
    paths = [record(tmp_path / "seed_1.json", 0, [1]), record(tmp_path / "seed_2.json", 0, [1], n_step=10)]
    with pytest.raises(ValueError, match=r"differ in \['n_step'\]"):
        harness.summary(paths)
    old = record(tmp_path / "seed_3.json", 0, [1])  # does not tell all settings of its agent
    paths = [old, *(record(tmp_path / f"seed_{i}.json", 0, [1], agent={"gamma": i}) for i in (4, 5))]
    assert harness.summary(paths[:2])["seeds"] == [3, 4]
    with pytest.raises(ValueError, match=r"differ in \['agent'\]"):
        harness.summary(paths)


def test_a_run_of_another_kind_is_refused_before_it_starts(harness, tmp_path):
    args = harness.Args(frames=600, out=tmp_path)
    record(tmp_path / "records/CartPole-v1/jepa_mpc/seed_1.json", 0, [1])
    folder = tmp_path / "CartPole-v1/jepa_mpc/seed_0"
    harness.refuse_unlike(args, folder, {"preset": "laptop", "n_step": [10, 3]})
    with pytest.raises(SystemExit, match=r"another kind of run .*\('laptop', 'base'\)"):
        harness.refuse_unlike(args, folder, {"preset": "base", "n_step": [10, 3]})


def test_a_finished_run_is_kept_and_one_that_was_stopped_goes_on(harness, tmp_path):
    args = harness.Args(frames=120, evaluate_every=60, episodes=1, out=tmp_path, device="cpu")
    kept = tmp_path / "records/CartPole-v1/random/seed_0.json"
    harness.run(args, "CartPole-v1", "random", 0)
    before = kept.read_bytes()
    harness.run(args, "CartPole-v1", "random", 0)
    assert kept.read_bytes() == before

    blocked = tmp_path / "records/CartPole-v1/jepa_mpc"
    blocked.touch()  # a file where the folder shall be: it stops behind the training, before that is recorded
    with pytest.raises(FileExistsError):
        harness.run(args, "CartPole-v1", "jepa_mpc", 0)
    blocked.unlink()
    curve = tmp_path / "CartPole-v1/jepa_mpc/seed_0/curve.json"
    before = curve.read_bytes()
    harness.run(args, "CartPole-v1", "jepa_mpc", 0)  # nothing is trained or evaluated again
    assert curve.read_bytes() == before
    found = json.loads((tmp_path / "records/CartPole-v1/jepa_mpc/seed_0.json").read_text())
    assert [entry["step"] for entry in found["curve"]] == [0, 60, 120]
    assert len(found["processes"]) == 2 and found["processes"][-1]["threads"] == found["threads"]
    assert found["agent"]["gamma"] == harness.TASKS["CartPole-v1"].gamma and found["agent"]["seed"] is None


def test_a_try_with_another_budget_does_not_replace_the_results(benchmarks):
    import jepa_mpc_ablations as ablations

    assert ablations.kept(ablations.Args()) and not ablations.not_counted(ablations.Args())
    for other in (ablations.Args(frames=12_000), ablations.Args(quick=True)):
        assert ablations.not_counted(other) and not ablations.kept(other)
