"""Short storms of benchmarks/trust.py: kills, files, inputs, workers, disks and a soak, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

# Victims are forked: not from the process of the tests, whose threads a fork would not copy.
SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import _trust_disk, _trust_files, _trust_inputs, _trust_kills, _trust_soak, _trust_workers, trust
folder, ignore = Path(sys.argv[2]), lambda so_far: None
_trust_kills.warm()
_trust_disk.PLAYED = ("collect",)
found = {
    "kills": {name: _trust_kills.storm(name, 2, folder / name) for name in ("collect", "fit")},
    "files": _trust_files.run(130, folder / "files", {}, ignore),
    "inputs": _trust_inputs.run(160, folder / "inputs", {}, ignore),
    "workers": _trust_workers.run(6, folder / "workers", {}, ignore),
    "disk": _trust_disk.run(2, folder / "disk", {}, ignore),
    "soak": _trust_soak.run(6_000, folder / "soak", {}, ignore),
}
print(json.dumps(trust.summary({part: {"figures": found[part], "seconds": 0} for part in found})))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("victims are forked")
    command = [sys.executable, "-c", SCRIPT, str(BENCHMARKS), str(tmp_path_factory.mktemp("storms"))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_kills_lose_nothing_and_change_nothing(found):
    assert found["kills_of_each"] >= 2 and found["kills"] >= 4
    assert (found["lost"], found["differs"]) == (0, 0), found["parts"]["kills"]


def test_damaged_files_are_refused_in_words(found):
    assert found["files_tried"] >= 130
    assert found["files_escaped"] == 0, found["parts"]["files"]
    outcomes = [kind["outcomes"] for kind in found["parts"]["files"]["kinds"].values()]
    assert sum(kind.get("refused", 0) for kind in outcomes) > 80


def test_odd_inputs_come_out_right_or_are_refused_in_words(found):
    assert found["inputs_tried"] >= 160
    assert (found["silent_wrong"], found["raw_errors"]) == (0, 0), found["parts"]["inputs"]
    for name, kind in found["parts"]["inputs"]["kinds"].items():
        assert kind["outcomes"].get("right", 0) > 0, name


def test_workers_that_go_wrong_end_runs_in_words(found):
    assert found["workers_escaped"] == 0, found["parts"]["workers"]


def test_full_and_slow_disks_leave_nothing_half_written(found):
    assert found["disk_faults"] >= 2
    assert found["disk_escaped"] == 0, found["parts"]["disk"]


def test_memory_and_open_files_do_not_grow(found):
    assert found["soak_steps"] >= 6_000
    assert found["soak_growth_mib"] <= 20 and found["open_files_constant"], found["parts"]["soak"]
