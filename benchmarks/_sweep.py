"""A benchmark's runs as trials on Ray (``jepa_rl.trials``): each in a process of its own, here or on a cluster.

A benchmark has a function ``run(args, *case)`` that keeps its own records; this calls it elsewhere.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from jepa_rl.memory import keep_freed_memory
from jepa_rl.trials import Resources, output_to, run_on_ray

# What a run reads of the environment; a cluster's machines have their own.
VARIABLES = ("BENCHMARK_TRY", "MUJOCO_GL", "SDL_VIDEODRIVER")


def run_cases(
    script: str,
    args: Any,
    cases: Sequence[tuple[Any, ...]],
    *,
    address: str | None = None,
    resources: Resources = Resources(),  # noqa: B008  (frozen)
) -> None:
    """Calls ``run(args, *case)`` of a benchmark for every case; again where a process was lost.

    What the runs print is in ``<args.out>/output``.

    Args:
        script: name of the benchmark, ``"dmc_pixels"``; the workers import it, so that a record's fingerprint of the
            code is the one of a run without Ray.
        args: its frozen dataclass, with a field ``out``; on a cluster all machines must see that folder and the
            checkout.
        cases: of texts and numbers.
        address, resources: as ``jepa_rl.trials.run_on_ray``.

    Raises:
        ImportError, ConnectionError, ValueError: as ``jepa_rl.trials.run_on_ray``.
        SystemExit: if runs failed, with their errors; the others are finished.
    """
    out = args.out.resolve()
    args = replace(args, out=out)
    settings = {field.name: getattr(args, field.name) for field in fields(args)}
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    shutil.rmtree(out / "output", ignore_errors=True)
    outcomes = run_on_ray(
        partial(_run, script, settings, variables), cases, out / "ray", address=address, resources=resources
    )
    failed = {_name(case): found.error for case, found in zip(cases, outcomes, strict=True) if found.error}
    if failed:
        lines = "\n".join(f"{name}: {error}" for name, error in failed.items())
        raise SystemExit(f"{len(failed)} of {len(cases)} runs failed, see {out / 'output'}:\n{lines}")


def _run(script: str, settings: dict[str, Any], variables: dict[str, str], case: tuple[Any, ...]) -> None:
    """One run, in its worker."""
    os.environ.update(variables)
    keep_freed_memory()
    benchmark = import_module(script)
    out: Path = settings["out"]
    with output_to(out / "output" / f"{_name(case)}.txt"):
        benchmark.run(benchmark.Args(**settings), *case)


def _name(case: tuple[Any, ...]) -> str:
    return "_".join(map(str, case))
