"""Every example runs, for seconds, as a user would start it: one command in some folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_rl.files import open_run, remove_run

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))
QUICKSTART_KEYS = {
    "success_rate", "success_ci95", "random_success_rate", "inverse_model_success_rate",
    "oracle_dynamics_success_rate", "episodes", "probe_r2", "linear_probe_r2", "effective_rank",
    "collect_seconds", "train_seconds", "plan_ms_per_action", "total_seconds",
}  # fmt: skip


def not_json(constant: str) -> None:
    raise ValueError(f"results.json holds {constant}, which is not JSON")


def test_the_examples_are_there():
    names = {path.stem for path in EXAMPLES}
    assert names >= {
        "quickstart", "wrap_any_env", "train_world_model", "plan_to_goal", "ppo_on_latents", "train_mpc",
        "compare_with_sb3", "rl_zoo3_train", "branching_futures", "first_plan", "dream", "sb3_joint", "grow",
        "compare_spaces",
    }  # fmt: skip


def started(path: Path) -> object:
    """A case; by default this one draws with MuJoCo."""
    return pytest.param(path, id=path.stem, marks=[pytest.mark.gl] if path.stem == "dream" else [])


@pytest.mark.parametrize("example", map(started, EXAMPLES))
def test_example_runs_quickly_and_leaves_its_results(example, tmp_path):
    before = killed_behind_an_evaluation(example, tmp_path) if example.stem == "compare_with_sb3" else []
    done = subprocess.run(
        [sys.executable, example, "--quick"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    folder = tmp_path / "runs" / example.stem
    results = json.loads((folder / "results.json").read_text(), parse_constant=not_json)
    assert isinstance(results, dict) and results
    if example.stem != "first_plan":  # it trains nothing
        assert list(folder.rglob("events.out.tfevents.*")), "no TensorBoard events"
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}, "files outside runs/"
    if before:  # it went on from there: the seconds are those of before
        after = json.loads((folder / "dqn on pixels/evaluations.json").read_text())
        assert after[: len(before) - 1] == before[:-1] and len(after) > len(before)
        assert after[-1]["step"] == 120
    if example.stem == "first_plan":
        assert results.keys() >= {"success_rate", "random_success_rate", "total_seconds"}
        assert 0 < results["planning_seconds"] < results["total_seconds"]
        assert (folder / "plan.gif").stat().st_size
    if example.stem == "quickstart":
        assert results.keys() >= QUICKSTART_KEYS
        assert results["probe_r2"].keys() == results["linear_probe_r2"].keys() == {"x", "y", "door"}
        assert 0 <= results["success_ci95"][0] <= results["success_rate"] <= results["success_ci95"][1] <= 1
        assert all((folder / name).stat().st_size for name in ("plan.gif", "latent_map.png"))
    if example.stem == "dream":
        assert results["dream"].keys() == {"return_ratio", "steps_per_second"}
        assert results["mean_returns"]["planner"] > 600 > results["mean_returns"]["random"]
        assert (folder / "dream.gif").stat().st_size
    if example.stem == "branching_futures":
        board = EventAccumulator(str(folder / "pictures"), size_guidance={"images": 0}).Reload()
        assert set(board.Tags()["images"]) == {"futures", "fan", "probability", "plans"}
        assert all((folder / f"{name}.png").stat().st_size for name in ("futures", "fan", "probability"))
        assert (folder / "plans.gif").stat().st_size


def test_a_folder_that_no_run_made_is_not_deleted(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds no run of this kind \(args.json is missing\)"):
        remove_run(tmp_path, "args.json")
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "args.json").touch()
    remove_run(tmp_path, "args.json")
    remove_run(tmp_path, "args.json")
    assert not tmp_path.exists()


def test_a_run_with_other_settings_is_neither_continued_nor_overwritten(tmp_path):
    folder = tmp_path / "run"
    settings = {"seed": 0, "extras": ("position",), "out": folder, "quick": False, "steps": 10}
    open_run(folder, settings, free=("steps",))
    (folder / "model").touch()
    open_run(folder, settings | {"steps": 20}, free=("steps",))
    assert (folder / "model").exists()
    with pytest.raises(ValueError, match=r"holds a run with \{'seed': 0\}; pass resume=False"):
        open_run(folder, settings | {"seed": 1}, free=("steps",))
    assert (folder / "model").exists() and json.loads((folder / "args.json").read_text())["seed"] == 0
    open_run(folder, settings | {"seed": 1}, resume=False)
    assert {path.name for path in folder.iterdir()} == {"args.json"}


def test_a_quick_try_makes_room(tmp_path):
    open_run(tmp_path, {"seed": 0, "quick": True})
    (tmp_path / "model").touch()
    open_run(tmp_path, {"seed": 0, "quick": True})
    assert (tmp_path / "model").exists()
    open_run(tmp_path, {"seed": 0, "quick": False})
    assert {path.name for path in tmp_path.iterdir()} == {"args.json"}


def killed_behind_an_evaluation(example: Path, folder: Path) -> list[dict]:
    """Starts the comparison, kills it while its second agent learns, and says how that was evaluated."""
    agent = folder / "runs/compare_with_sb3/dqn on pixels"
    with subprocess.Popen(
        [sys.executable, example, "--quick"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while process.poll() is None and not list(agent.glob("saved/[0-9]*/agent.zip")):
            time.sleep(0.01)
        assert process.poll() is None, "it was too fast to be killed"
        process.kill()
    return json.loads((agent / "evaluations.json").read_text())
