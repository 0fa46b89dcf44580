"""Ray: the same episodes and results as without it, also where a process is killed, and refusals in words."""

import csv
import importlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("ray")

from jepa_rl.cluster import ray_running
from jepa_rl.data import EpisodeStore
from jepa_rl.envs import collect, collect_on_ray
from jepa_rl.files import lock
from jepa_rl.sweeps import over_seeds, sweep, table_text
from jepa_rl.trials import Resources

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for all tests of this file."""
    with ray_running(cpus=2) as running:
        yield running


class Dial(gym.Env):
    """A dial that actions turn and pictures show. Length and start of an episode are drawn at its reset.

    ``killed``: a file; the process that plays the third step of the episode of seed 12 makes it and dies, if it is not
    there yet. ``broken``: the seed of an episode that raises an error.
    """

    observation_space = gym.spaces.Box(0, 255, (3, 8, 8), np.uint8)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, killed=None, broken=None):
        self.killed, self.broken = killed, broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.length, self.angle = int(self.np_random.integers(4, 9)), float(self.np_random.random())
        return self.picture(), {"angle": self.angle}

    def step(self, action):
        self.steps += 1
        self.angle += float(action[0])
        if self.seed == 12 and self.steps == 3 and self.killed is not None and not self.killed.exists():
            self.killed.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        if self.seed == self.broken:
            raise ArithmeticError("the dial came off")
        over = self.steps == self.length
        return self.picture(), self.angle, over, False, {"angle": self.angle}

    def picture(self):
        return np.full((3, 8, 8), round(self.angle * 40) % 256, np.uint8)


def test_the_same_episodes_as_without_ray_although_an_actor_is_killed(tmp_path):
    for k in range(6):
        without = collect(Dial(), tmp_path / "a", episodes=1, seed=10 + k, extras=["angle"], progress=False)
    killed = tmp_path / "killed"
    found = collect_on_ray(
        partial(Dial, killed), tmp_path / "b", episodes=6, seed=10, extras=["angle"], actors=2, progress=False
    )
    assert int(killed.read_text()) != os.getpid()
    assert found.layout == without.layout and len(found) == 6
    for name in ("frames.bin", "actions.bin", "rewards.bin", "extra.angle.bin", "episodes.jsonl"):
        assert (found.path / name).read_bytes() == (without.path / name).read_bytes(), name


class Counting:
    """A policy that remembers how often it was asked, and would play later episodes otherwise."""

    asked = 0

    def __call__(self, observations, rng):
        self.asked += 1
        return np.full((1, 1), self.asked / 10)


def test_an_error_of_the_environment_is_raised_here_and_earlier_episodes_are_stored(tmp_path):
    with pytest.raises(ArithmeticError, match="the dial came off"):
        collect_on_ray(
            partial(Dial, broken=3), tmp_path, policy=Counting(), steps=1000, seed=0, actors=1, progress=False
        )
    store = EpisodeStore.open(tmp_path)
    assert len(store) == 3
    for i in range(3):  # each by a fresh copy of the policy
        actions = store.episode(i).actions[:, 0]
        np.testing.assert_allclose(actions, np.arange(1, len(actions) + 1) / 10, rtol=1e-6)


def test_what_cannot_be_collected_is_refused_before_anything_is_written(tmp_path):
    def attempt(error, match, make_env=Dial, **options):
        with pytest.raises(error, match=match):
            collect_on_ray(make_env, tmp_path / "s", **({"episodes": 2} | options))
        assert not (tmp_path / "s").exists()

    attempt(ValueError, "either episodes or steps", steps=3)
    attempt(ValueError, "at least 1, got 0", episodes=0)
    attempt(ValueError, r"3 actors take 3 cores, and Ray has 2: pass actors=2", actors=3)
    attempt(TypeError, r"policy cannot be sent to another process \(TypeError: cannot pickle", policy=Lock())
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        attempt(ValueError, "this process already uses the Ray at", address=address)


class Lock:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, observations, rng):
        raise AssertionError("it is never asked")


# -- sweeps -----------------------------------------------------------------------------------------


def trial(settings, folder):
    """Its result depends on the seed; some lose their process once, some fail."""
    (folder / "starts").open("a").write("start\n")
    print("trial of", settings)
    if settings["kind"] == "bad":
        raise ValueError("this setting is bad")
    if settings["kind"] == "lost" and (folder / "starts").read_text().count("start") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"score": 2.0 * settings["seed"], "threads": torch.get_num_threads()}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep that loses a worker and has a trial that fails: its folder and table."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    trials = [{"kind": kind, "seed": seed} for kind, seed in (("lost", 2), ("bad", 3))]
    return out, sweep(trial, trials, out, progress=False)


def test_a_sweep_ends_with_one_table_although_a_worker_was_killed(swept):
    out, table = swept
    assert [(row["kind"], row["seed"], row.get("score"), row["processes"]) for row in table] == [
        ("lost", 2, 4.0, 2), ("bad", 3, None, 1),
    ]  # fmt: skip
    assert [row["error"] for row in table] == ["", "ValueError: this setting is bad"]
    assert table[0]["threads"] == 1.0
    with open(out / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["score"]) for row in rows] == [
        ("kind=lost,seed=2", "4.0"),
        ("kind=bad,seed=3", ""),
    ]
    text = table_text(table, ["kind", "score", "processes"]).splitlines()
    assert text[1].split() == ["lost", "4", "2"] and text[2].endswith(
        "failed: ValueError: this setting is bad"
    )
    assert "this setting is bad" in (out / "output/kind=bad,seed=3.txt").read_text()
    assert (out / "output/kind=lost,seed=2.txt").read_text().count("trial of") == 2
    assert not (out / "ray").exists()


def test_a_sweep_is_one_folder_for_tensorboard(swept):
    out, _ = swept
    board = EventAccumulator(str(out / "hparams/kind=lost,seed=2")).Reload()
    assert [event.value for event in board.Scalars("sweep/score")] == [4.0]
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_a_sweep_runs_what_is_not_finished(swept):
    out, _ = swept
    (row,) = sweep(trial, [{"kind": "lost", "seed": 2}], out, progress=False)
    assert (row["score"], row["processes"]) == (4.0, 2)
    with pytest.raises(
        RuntimeError, match=r"all 1 trials failed, the first with ValueError: this setting is bad"
    ):
        sweep(trial, [{"kind": "bad", "seed": 3}], out, progress=False)
    assert (out / "trials/kind=bad,seed=3/starts").read_text().count("start") == 2


def test_means_over_seeds_are_of_the_trials_that_finished():
    rows = [{"width": width, "loss": loss, "error": error} for width, loss, error in
            ((8, 1.0, ""), (8, 4.0, ""), (16, 2.0, ""), (16, 9.0, "it was lost"))]  # fmt: skip
    assert over_seeds(rows, ["width"], ["loss"]) == [
        {"width": 8, "trials": 2, "loss": 2.5, "loss from": 1.0, "loss to": 4.0, "error": ""},
        {"width": 16, "trials": 1, "loss": 2.0, "loss from": 2.0, "loss to": 2.0, "error": ""},
    ]


def test_what_cannot_be_swept_is_refused(tmp_path):
    def attempt(error, match, trials=({"kind": "good", "seed": 0},), run=trial, **options):
        with pytest.raises(error, match=match):
            sweep(run, trials, tmp_path / "s", progress=False, **options)
        assert not (tmp_path / "s/trials").exists()

    attempt(ValueError, "at least one trial", trials=[])
    attempt(ValueError, r"trials must differ .* \['kind=good'\]", trials=[{"kind": "good"}] * 2)
    attempt(ValueError, "1 to 200 characters", trials=[{"kind": "long" * 60}])
    attempt(TypeError, "run cannot be sent to another process", run=Lock())
    attempt(
        ValueError, r"a trial takes \{'CPU': 3, 'GPU': 0.0\}, and no machine", resources=Resources(cpus=3)
    )
    with pytest.raises(ValueError, match="at least one core"):
        Resources(cpus=0)
    with pytest.raises(ValueError, match=r"no trial has \['loss'\]; there are \['score'"):
        table_text([{"score": 1.0, "error": ""}], ["loss"])
    with open(tmp_path / "s/.lock", "a") as file:
        assert lock(file)
        attempt(ValueError, "another sweep is writing to")


# -- addresses, and a machine without Ray -----------------------------------------------------------


def test_an_address_that_does_not_answer_is_named_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"no Ray answers at '{address}' .*ray start --head"):
        sweep(trial, [{"kind": "good", "seed": 0}], tmp_path / "s", address=address)
    assert not (tmp_path / "s").exists()
    assert time.monotonic() - began < 10  # Ray's own way takes two minutes
    for wrong in ("10.0.0.1", "ray://10.0.0.1:10001", "10.0.0.1:head"):
        with pytest.raises(ValueError, match="address must be 'auto' or host:port"), ray_running(wrong):
            pass


def test_without_ray_the_line_that_installs_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"Ray is missing .*`pip install 'jepa-rl\[ray\]'`"):
        collect_on_ray(Dial, tmp_path, episodes=1)


# -- the example, the benchmarks and the page -------------------------------------------------------


@pytest.fixture
def scripts(monkeypatch):
    """The folders whose files are imported by their bare names; forgotten afterwards."""
    folders = [ROOT / "examples", ROOT / "benchmarks"]
    monkeypatch.setattr(sys, "path", [*map(str, folders), *sys.path])
    yield
    for folder in folders:
        for path in folder.glob("*.py"):
            sys.modules.pop(path.stem, None)


def test_the_example_refuses_settings_that_another_does_not_have(scripts):
    example = importlib.import_module("sweep")
    file = example.find("train_mpc")
    with pytest.raises(
        ValueError, match=r"train_mpc.py has no settings \['decision'\]; its Args have \['env_id', "
    ):
        example.settings_of(file, [("decision", "5"), ("seed", "1")])
    found = example.settings_of(file, [("gamma", "0.5"), ("resume", "False"), ("observations", "state")])
    assert found == {"gamma": 0.5, "resume": False, "observations": "state"}
    with pytest.raises(FileNotFoundError, match=r"no example 'train'.*'train_mpc'"):
        example.find("train")
    with pytest.raises(ValueError, match="name=value"):
        example.assignment("gamma")
    numbers = example.numbers({"r2": {"x": 0.5}, "returns": [[1, 2]], "alarm": None, "resume": True})
    assert numbers == {"r2_x": 0.5, "returns_1_1": 1.0, "returns_1_2": 2.0}


def test_a_benchmark_runs_its_cases_on_ray(scripts, tmp_path):
    harness, runner = importlib.import_module("dmc_pixels"), importlib.import_module("_sweep")
    args = harness.Args(quick=True, out=tmp_path, **harness.QUICK)
    runner.run_cases("dmc_pixels", args, [("CartPole-v1", "random", 0)])
    record = json.loads((tmp_path / "records/CartPole-v1/random/seed_0.json").read_text())
    assert len(record["curve"][0]["returns"]) == 2 and record["threads"] == 1
    assert (tmp_path / "output/CartPole-v1_random_0.txt").read_text() == "CartPole-v1, random, seed 0\n"


@pytest.mark.parametrize(
    "shorter",
    [
        {"range(2)": "range(1)", "(16, 32)": "(16,)", "steps=100": "steps=3"},
        {"episodes=100": "episodes=2", "actors=2": "actors=1"},
    ],
)
def test_the_blocks_of_the_page_run(shorter, monkeypatch, tmp_path):
    page = (ROOT / "docs/sweeps.md").read_text()
    blocks = re.findall(r"<!-- snippet: ray -->\n```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (code,) = [block for block in blocks if all(text in block for text in shorter)]
    for text, other in shorter.items():
        code = code.replace(text, other)
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})  # as a script, whose functions are sent as they are
    assert (tmp_path / "runs").exists()
