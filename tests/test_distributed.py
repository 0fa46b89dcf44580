"""Several processes compute what one would, resume each other's runs, and end with words where one is lost."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jepa_rl.files import load_tensors
from jepa_rl.registry import OBJECTIVES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from _processes import free_port  # noqa: E402

ONE_THREAD = {"OMP_NUM_THREADS": "1", "JAXTYPING_DISABLE": "1"}


# Torch imports torch.distributed.nn by itself in some trainings.
LEAVE = """
from pathlib import Path

from jepa_rl import distributed

with distributed.join():
    import torch.distributed.nn

names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
assert names and not [name for name in names if "gloo" in name], names
"""


def two_processes(*script: str) -> list[subprocess.Popen[str]]:
    """Two processes of Python, as torchrun would start them."""
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **ONE_THREAD}
    return [
        subprocess.Popen(
            [sys.executable, *script],
            env=os.environ | told | {"RANK": str(i)}, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip


def two_that(what: str, folder: Path) -> list[subprocess.Popen[str]]:
    """Two processes of processes.py."""
    return two_processes(str(ROOT / "tests" / "processes.py"), what, str(folder))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found; everything that needs two is done by this one pair."""
    folder = tmp_path_factory.mktemp("processes")
    pair = two_that("check", folder)
    try:
        texts = [process.communicate(timeout=300)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n".join(texts)[-5000:]
    return json.loads((folder / "found.json").read_text())


def test_gradients_of_every_part_are_those_of_one_process(found):
    """In float64, with noise and augmentation; a batch norm or SIGReg of half the rows would be off by percents."""
    registered = OBJECTIVES._parts.items()
    ours = {name for name, part in registered if part.__module__.startswith("jepa_rl.") and part.divided}
    assert len(ours) >= 7 and found["gradients"].keys() >= ours
    assert {name: apart for name, apart in found["gradients"].items() if apart > 1e-10} == {}


def test_the_loss_curve_is_that_of_one_process(found):
    alone, two = found["curves"]
    assert len(alone) == 50 and two == pytest.approx(alone, rel=1e-6)
    alone, two = found["refined"]  # in float32
    assert len(alone) == 8 and two == pytest.approx(alone, rel=1e-4)


def test_statistics_are_those_of_all_rows(found):
    statistics = found["statistics"]
    assert statistics.pop("sigreg_mean_of_halves") > 1e-3  # the mean of losses is another thing
    assert {name: apart for name, apart in statistics.items() if apart > 1e-9} == {}


def test_samplers_give_each_process_its_rows(found):
    assert found["shares"] == {"windows": True, "latents": True, "own": True}


def test_what_the_first_does_it_does_alone(found):
    assert found["nested"] == [1, 1]


def test_messages_that_were_read_are_deleted(found):
    assert found["keys"] <= 0


@pytest.mark.skipif(sys.platform != "linux", reason="scheduling policies are Linux's")
def test_threads_of_gloo_do_not_interrupt_each_other(found):
    of_gloo = {name: policy for name, policy in found["policies"].items() if "gloo" in name}
    others = found["policies"].keys() - of_gloo.keys()
    assert len(of_gloo) > 1 and set(of_gloo.values()) == {"batch"}
    assert {found["policies"][name] for name in others} == {"other"}


def test_a_gradient_that_only_one_process_has_counts(found):
    assert found["some"]["values"] == [[2.0, 2.0], [0.5, 0.5], None]


def test_processes_keep_equally_many_whole_windows(found):
    assert found["whole"] == [0, 2, 0, 1]


def test_a_stopped_run_goes_on_exactly_with_as_many_processes(found):
    """Dropout included, which each process draws for itself."""
    assert found["two twice"] == 0.0
    assert found["processes differ by"] == 0.0


def test_a_stopped_run_goes_on_with_another_number_of_processes(found):
    assert 0 < found["one then two"] < 1e-7 and 0 < found["two then one"] < 1e-7


def test_what_cannot_be_shared_is_refused_in_words(found):
    refusals = found["refusals"]
    assert re.search("batch_size=7 and 2 processes; take 8", refusals["odd batch"])
    assert re.search(r"encoder.norm is a BatchNorm1d.*jepa_rl.distributed.BatchNorm", refusals["plain norm"])
    assert "VAE trains in one process only" in refusals["undivided"]
    assert "resume=True" in refusals["exists"]
    assert "another process has other settings" in refusals["other settings"]
    assert refusals["nothing written"] == "True"


# -- JEPAMPC ----------------------------------------------------------------------------------------


def test_two_processes_learn_what_one_learns(found):
    """In float64; the rest is that the replay keeps actions as float32."""
    alone, two = found["mpc"]["alone"], found["mpc"]["losses"]
    assert len(two) == len(alone) == 36 and two[-1].keys() >= {"reward", "value", "policy", "entropy"}
    for here, there in zip(two, alone, strict=True):
        assert here == pytest.approx(there, rel=1e-6, abs=1e-9)
    assert found["mpc"]["second"]["losses"] == two


def test_both_processes_have_the_weights_and_the_counters(found):
    first, second = found["mpc"], found["mpc"]["second"]
    assert first["differ"] == [0.0, 0.0]
    assert first["counted"] == second["counted"] == [36, 36, 3]


def test_a_stopped_agent_goes_on_exactly_with_two_processes_and_with_one(found):
    assert found["mpc"]["resumed"] == 0.0
    assert 0 < found["mpc"]["then one"] < 1e-6


def test_a_callback_that_stops_the_first_stops_both(found):
    assert found["mpc"]["early"] == found["mpc"]["second"]["early"] == [39, 38]


def test_what_ends_the_first_ends_the_second_in_words(found):
    assert found["mpc"]["ended"] == "ArithmeticError: blew up"
    assert (
        found["mpc"]["second"]["ended"] == "ProcessLost: the first process stopped: ArithmeticError: blew up"
    )


def test_the_second_writes_nothing_and_calls_no_callback(found):
    assert found["mpc"]["wrote"] == [True, True] and found["mpc"]["second"]["wrote"] == [False, False]
    assert found["mpc"]["calls"] == [31, 3] and found["mpc"]["second"]["calls"] == [0, 0]


def test_a_batch_of_an_agent_that_cannot_be_divided_is_refused_before_anything_happens(found):
    for process in (found["mpc"], found["mpc"]["second"]):
        assert "batch_size=7 and 2 processes; take 8" in process["odd"] and process["untouched"]


# -- ends -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs a system that lists threads")
def test_no_thread_of_the_group_lives_on():
    """One that is still there when the interpreter ends aborts it now and then."""
    pair = two_processes("-c", LEAVE)
    texts = [process.communicate(timeout=60)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], texts


def test_a_killed_process_ends_the_other_with_words_and_leaves_a_whole_checkpoint(tmp_path):
    """The first is killed, which writes the files and keeps the messages."""
    killed = 0
    pair = two_that("train", tmp_path)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    try:
        deadline = time.monotonic() + 200
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        pair[killed].send_signal(signal.SIGKILL)
        _, words = pair[1 - killed].communicate(timeout=30)
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert pair[1 - killed].returncode == 1
    assert re.search(rf"ProcessLost: process {1 - killed} of 2 lost another one", words), words[-3000:]
    assert load_tensors(checkpoint, ("training",))[1]["step"] >= 2


# -- the page ---------------------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """The blocks of commands on the page; those of one block run side by side."""
    page = (ROOT / "docs" / "scale.md").read_text()
    return [block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]


def test_the_commands_of_the_page_run(tmp_path):
    """One machine, then two nodes on one machine, then JEPAMPC, each with the example's trial run."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for number, block in enumerate(commands()):
        port, out = str(free_port()), tmp_path / str(number)
        running = []
        for line in block:
            words = shlex.split(line.removesuffix("&").replace("29500", port))[1:]
            words = [sys.executable, "-m", "torch.distributed.run", *words, "--quick", "--out", str(out)]
            if control := "examples/train_mpc.py" in words:
                words += ["--observations", "state"]  # faster
            running.append(subprocess.Popen(words, cwd=ROOT, env=os.environ | ONE_THREAD, **pipes))
        texts = [process.communicate(timeout=300) for process in running]
        assert [process.returncode for process in running] == [0] * len(running), str(texts)[-4000:]
        assert sum(f"wrote {out}" in printed for printed, _ in texts) == 1
        folder, counter, updates = (out / "run", "updates", 100) if control else (out, "step", 20)
        _, header = load_tensors(folder / "checkpoint.safetensors", ("training", "jepa_mpc run"))
        assert header[counter] == updates
