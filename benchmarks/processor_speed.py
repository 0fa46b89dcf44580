"""What version 0.1.0 takes on an ordinary processor against what the present code takes, interleaved in one run.

    python benchmarks/processor_speed.py              a quarter of an hour on two idle cores
    python benchmarks/processor_speed.py --isa native with all that this processor knows, for comparison
    python benchmarks/processor_speed.py --quick

Version 0.1.0 is taken from this repository's history (commit 8f9270f). Each version runs in a process of its own, and
the two take turns; a figure is the median over the rounds of old time / new time:

- ``joint_update``, ``refine_update``: one update of either phase of examples/quickstart.py (preset ``laptop``).
- ``tree_plan``: one decision that plans, as quickstart's agent does: two pictures encoded, and the tree.
- ``jepa_mpc_update``, ``jepa_mpc_decision``: JEPAMPC, preset ``laptop``, 9 x 64 x 64 pixels of noise.
- ``encode``: one observation through ``LatentObservation``.

``..._ratio`` compares the presets, each with its own sizes; ``..._ratio_same_sizes`` gives the present code the widths,
batches and windows of version 0.1.0, and the script stops unless it then has as many weights. The headline figures are
those with two threads; ``cases`` has both.

By default both sides run as on a processor that has AVX2 and nothing newer: ``ATEN_CPU_CAPABILITY`` limits PyTorch's
own kernels, ``ONEDNN_MAX_CPU_ISA`` those of oneDNN, ``MKL_ENABLE_INSTRUCTIONS`` those of MKL (on Intel; on AMD it has
no effect), and ``torch.cpu`` answers that there is no bfloat16, which no variable does.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import tyro
from _processor_cases import PARTS
from _processor_worker import __file__ as WORKER
from _record import ROOT, machine, refuse_unrecordable, trying, write_results

OLD = "8f9270f"  # version 0.1.0
FOLDERS = ("jepa_rl", "agents", "envs", "examples")
RUNS = ROOT / "runs" / "processor_speed"
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@dataclass(frozen=True)
class Args:
    isa: Literal["avx2", "native"] = "avx2"
    """Instructions that both sides may use; "native" writes another file."""
    threads: tuple[int, ...] = (1, 2)
    """The last counts as the headline."""
    rounds: int = 15
    episodes: int = 300
    """Of random play in Two Rooms, which each side collects for itself."""
    train_updates: int = 400
    """Of both phases before anything is timed: a tree over untrained latents is another tree."""
    updates: int = 8
    """In one turn of a training; the first three are not counted."""
    calls: int = 4
    """Plans and updates of JEPAMPC in one turn; five times as many decisions, twenty times as many encodings."""
    quick: bool = False


QUICK = dict(threads=(1,), rounds=1, episodes=40, train_updates=4, updates=4, calls=1)


# -- the two versions ---------------------------------------------------------------------------------


def lay_out(side: str) -> Path:
    """A folder with ``jepa_rl`` (``agents`` and ``envs`` in it) and ``examples`` of one version; a fresh copy."""
    target = RUNS / side
    shutil.rmtree(target, ignore_errors=True)
    source = target / "source"
    source.mkdir(parents=True)
    if side == "old":
        found = subprocess.run(["git", "archive", OLD, *FOLDERS], cwd=ROOT, capture_output=True)
        if found.returncode:
            raise SystemExit(
                f"commit {OLD} is not in this repository ({found.stderr.decode().strip()}); version 0.1.0 is taken "
                "from the history: run in a full clone (git fetch --unshallow)"
            )
        with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
            archive.extractall(source, filter="data")
    else:
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("agents", "envs"):
        (source / folder).rename(source / "jepa_rl" / folder)
    return source


class Worker:
    """A process that runs one version and answers commands.

    Args:
        side: "old" or "new", as laid out.
        threads: of PyTorch.
        args: what is timed, and with which instructions.
    """

    def __init__(self, side: str, threads: int, args: Args) -> None:
        folder, hide = RUNS / side, args.isa == "avx2" and x86()
        settings = {k: v for k, v in asdict(args).items() if k not in ("isa", "threads", "rounds", "quick")}
        variables = {"PYTHONPATH": str(folder / "source"), "OMP_NUM_THREADS": str(threads)}
        self.side, self.log = side, folder / f"log_{threads}.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, WORKER, str(folder / "source"), str(folder),
                 json.dumps(settings | {"threads": threads, "hide": hide})],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder,
                env=os.environ | variables | (AVX2 if hide else {}),
            )  # fmt: skip

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer to a command.

        Raises:
            RuntimeError: if the process ended instead, with the end of its log.
        """
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(
                f"the {self.side} version ended in {do} {arguments.get('part', '')}:\n{self.log.read_text()[-2000:]}"
            )
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


# -- measuring ----------------------------------------------------------------------------------------


def measure(args: Args, threads: int) -> dict[str, Any]:
    """All figures with one number of threads."""
    old, new = Worker("old", threads, args), None
    try:
        new = Worker("new", threads, args)
        about = {"old": old.ask("about"), "new": new.ask("about")}
        check(about, args, threads)
        sizes = {"old": old.ask("prepare", name="preset", sizes=None)}
        sizes["new"] = new.ask("prepare", name="preset", sizes=None)
        sizes["same"] = new.ask("prepare", name="same", sizes=sizes["old"])
        if sizes["same"]["weights"] != sizes["old"]["weights"]:
            raise RuntimeError(
                f"with the sizes of version 0.1.0 the present code has {sizes['same']['weights']} weights instead of "
                f"{sizes['old']['weights']}; mend Side._with_sizes in {Path(WORKER).name}"
            )
        turns = {"old": (old, "preset"), "new": (new, "preset"), "same": (new, "same")}
        times: dict[str, dict[str, list[float]]] = {part: {name: [] for name in turns} for part in PARTS}
        for turn in range(args.rounds):
            for part in PARTS:
                for name in rotated(list(turns), turn):  # nobody always comes first
                    worker, case = turns[name]
                    times[part][name].append(median(worker.ask("seconds", name=case, part=part)))
            print(f"{threads} threads, round {turn + 1} of {args.rounds}", flush=True)
    finally:
        old.close()
        if new is not None:
            new.close()
    for side in sizes.values():
        side["world"].pop("spec")
    return {"about": about, "sizes": sizes} | {part: compare(found) for part, found in times.items()}


def check(about: dict[str, dict[str, Any]], args: Args, threads: int) -> None:
    """Raises RuntimeError unless both versions run with the same instructions, those asked for."""
    isas = {side["isa"] for side in about.values()}
    if len(isas) > 1 or (args.isa == "avx2" and x86() and isas != {"AVX2"}):
        raise RuntimeError(f"both sides must use {args.isa}, and torch says {about}")
    if any(side["threads"] != threads for side in about.values()):
        raise RuntimeError(f"both sides must use {threads} threads, and torch says {about}")


def rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def compare(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over the rounds: milliseconds, and the ratios of turns of the same round."""
    ratios = {
        name: [old / new for old, new in zip(times["old"], times[name], strict=True)]
        for name in ("new", "same")
    }
    return {
        "ratio": median(ratios["new"]),
        "ratio_same_sizes": median(ratios["same"]),
        "old_ms": 1e3 * median(times["old"]),
        "new_ms": 1e3 * median(times["new"]),
        "new_ms_same_sizes": 1e3 * median(times["same"]),
        "ratios": ratios["new"],
        "ratios_same_sizes": ratios["same"],
    }


def main(args: Args) -> None:
    if not (args.quick or trying()):
        refuse_unrecordable()
    args = replace(args, **QUICK) if args.quick else args
    for side in ("old", "new"):
        lay_out(side)
    cases = {str(threads): measure(args, threads) for threads in args.threads}
    headline = cases[str(args.threads[-1])]
    payload: dict[str, Any] = {
        "processor": machine()["cpu"],
        "isa": headline["about"]["new"]["isa"],
        "threads": args.threads[-1],
        "old": OLD,
        "environment": AVX2 if args.isa == "avx2" and x86() else {},
    }
    for part in PARTS:
        for suffix in ("", "_same_sizes"):
            payload[f"{part}_ratio{suffix}"] = headline[part][f"ratio{suffix}"]
    for threads, case in cases.items():
        for part in PARTS:
            r = case[part]
            print(
                f"{threads} threads, {part:<18}{r['old_ms']:8.2f} ms -> {r['new_ms']:8.2f} ms, {r['ratio']:.2f}x; "
                f"same sizes {r['new_ms_same_sizes']:8.2f} ms, {r['ratio_same_sizes']:.2f}x"
            )
    name = "processor_speed" if args.isa == "avx2" else "processor_speed_native"
    print(write_results(name, payload | {"settings": asdict(args), "cases": cases}, quick=args.quick))


if __name__ == "__main__":
    main(tyro.cli(Args))
