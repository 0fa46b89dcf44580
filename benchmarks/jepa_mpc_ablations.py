"""What each part of JEPAMPC is worth: the same short training with one of them taken away, or with a head start.

    python benchmarks/jepa_mpc_ablations.py --seeds 0 1
    python benchmarks/jepa_mpc_ablations.py --variants full warm_start --seeds 2
    python benchmarks/jepa_mpc_ablations.py --quick

A quarter of an hour for each variant and seed on one core (``long_search`` 25 minutes, ``reconstruction`` 54), on
``dmc/cartpole-swingup-v0`` (OpenGL) as in ``dmc_pixels.py``, whose evaluation this is; ``--quick`` takes CartPole-v1.
The learning rate falls over these few frames, so returns are not those of the longer runs after as many. Runs go on
after a kill; a finished one is kept in the results and not run again.

Variants: ``full``; ``no_prior`` (the policy proposes no plans); ``long_search`` (three changes at once: no value behind
the plan, no proposals, and 20 steps instead of five to make up for them; what the value alone is worth it does not
say); ``no_prediction`` (reward and value alone shape the latents); ``reconstruction`` (decoding the observations
instead of predicting the latents); ``warm_start`` (encoder and dynamics come from a world model that was trained
without reward on random play, whose frames and seconds are given beside it); ``frozen`` (that one, and neither learns
any further).
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dmc_pixels
import numpy as np
import torch
import tyro
from _intervals import summarise
from _record import (
    made_by,
    not_recorded,
    note_process,
    recorded_results,
    refuse_differences,
    refuse_unrecordable,
    trying,
    write_results,
)
from dmc_pixels import TASKS, Task, evaluation, make_jepa_mpc, make_pixels, random_play

import jepa_rl.envs
from jepa_rl import TrainConfig, WindowSampler, WorldModel, fit
from jepa_rl.agents import JEPAMPC, ResumableRun
from jepa_rl.agents.sb3.jepa_mpc.resume import settings_of
from jepa_rl.files import write_atomic
from jepa_rl.memory import keep_freed_memory
from jepa_rl.objectives.terms import VICREG_COVARIANCE

# Of the world model, of control and of the search, in place of the preset's.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {},
    "no_prior": {"search": {"proposals": 0}},
    "long_search": {"search": {"proposals": 0, "terminal_value": False, "horizon": 20}},
    "no_prediction": {"control": {"shaping": 0.0}},
    "reconstruction": {"world": {"objective": "reconstruction"}},
    "warm_start": {},
    "frozen": {"control": {"frozen": True}},
}
Variant = Literal[
    "full", "no_prior", "long_search", "no_prediction", "reconstruction", "warm_start", "frozen"
]


@dataclass(frozen=True)
class Args:
    task: str = "cartpole-swingup-fast"
    variants: tuple[Variant, ...] = tuple(VARIANTS)  # type: ignore[assignment]
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of training; JEPAMPC's settings were chosen on 0."""
    frames: int = 24_000
    """Of training."""
    evaluate_every: int = 4_000
    """Frames."""
    episodes: int = 10
    random_frames: int = 40_000
    """Of random play behind ``warm_start`` and ``frozen``."""
    pretraining: int = 2_000
    """Updates of the world model on them."""
    device: str = "cpu"
    out: Path = Path("runs/jepa_mpc_ablations")
    quick: bool = False


def main(args: Args) -> None:
    keep_freed_memory()
    if args.quick:
        args = replace(
            args, task="CartPole-v1", seeds=(0,), frames=300, evaluate_every=150, episodes=2, random_frames=400,
            pretraining=5, out=args.out / "quick",
        )  # fmt: skip
        shutil.rmtree(args.out, ignore_errors=True)
    check_budget(args)
    if not not_counted(args):
        refuse_unrecordable()
    task = replace(TASKS[args.task], frames=args.frames)
    for seed in args.seeds:  # all variants of one seed before the next seed
        for variant in args.variants:
            run(args, task, variant, seed)
    payload = budget(args) | {"results": collected(args)}
    quick = not_counted(args) and not trying()
    print(write_results("jepa_mpc_ablations", payload, quick=quick, collected=True))


def budget(args: Args) -> dict[str, Any]:
    """What must be the same of all runs that are reported together."""
    return {
        "task": args.task, "frames": args.frames, "evaluate_every": args.evaluate_every, "episodes": args.episodes,
        "random_frames": args.random_frames, "pretraining_updates": args.pretraining,
    }  # fmt: skip


def not_counted(args: Args) -> bool:
    """Whether this is a try with another budget than that of the results, which it must not replace."""
    return args.quick or trying() or budget(args) != budget(Args())


def check_budget(args: Args) -> None:
    """A folder holds runs of one budget."""
    file = args.out / args.task / "budget.json"
    if file.exists() and (there := json.loads(file.read_text())) != budget(args):
        raise SystemExit(f"{file.parent} holds runs of {there}, not {budget(args)}; pass another --out")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(budget(args)).encode())


def run(args: Args, task: Task, variant: Variant, seed: int) -> None:
    """One training, to its end; nothing if it is finished."""
    folder = args.out / args.task / variant / f"seed_{seed}"
    if (folder / "record.json").exists() or f"seed_{seed}" in kept(args).get(variant, {}):
        return
    print(f"{args.task}, {variant}, seed {seed}", flush=True)
    decisions, processes = task.decisions, note_process(folder)
    settings = dmc_pixels.Args(
        preset="laptop", device=args.device, evaluate_every=args.evaluate_every, episodes=args.episodes
    )
    model = make_jepa_mpc(settings, task, folder, seed, **VARIANTS[variant])
    before = {"pretraining_seconds": 0.0}
    if variant in ("warm_start", "frozen"):
        world, before["pretraining_seconds"] = random_world_model(args, task, model, seed)
        model.policy.warm_start(world)
    curve = evaluation(settings, task, folder, partial(make_pixels, task))
    model.learn(decisions, callback=[ResumableRun(folder / "run", every=curve.every), curve])
    record = before | {
        "curve": [
            {"frames": entry["step"] * task.repeat, "return": float(np.mean(entry["returns"]))}
            for entry in curve.results
        ],
        "last_returns": [round(value, 1) for value in curve.results[-1]["returns"]],
        "train_seconds": curve.results[-1]["seconds"],
        "agent": settings_of(model) | {"seed": None},
        **processes[-1],
        "processes": processes,
    }
    if not not_counted(args) and (missing := not_recorded(record)):
        raise SystemExit(f"{folder}/record.json would not tell {missing} and is not written; the run is kept")
    write_atomic(folder / "record.json", json.dumps(record).encode())
    shutil.rmtree(folder / "run")


def random_world_model(args: Args, task: Task, agent: JEPAMPC, seed: int) -> tuple[Path, float]:
    """A world model of the agent's own parts that learned from random play alone; and the seconds that took."""
    folder = args.out / args.task / "random_play" / f"seed_{seed}"
    weights, spent = folder / "world/model.safetensors", folder / "seconds.json"
    if not spent.exists():
        shutil.rmtree(folder, ignore_errors=True)
        began, decisions = time.perf_counter(), args.random_frames // task.repeat
        sampler = WindowSampler(random_play(task, folder / "episodes", decisions, seed), steps=agent.steps)
        # The agent's own parts; an objective that is what its own is without reward and value.
        objective = {
            "sigreg": 0.0,
            "variance": 1.0,
            "covariance": VICREG_COVARIANCE,
            "target": "stop_gradient",
        }
        config = replace(agent.world.config, spec=sampler.spec, objective="jepa", objective_options=objective)
        torch.manual_seed(seed)
        world = WorldModel(config)
        train = TrainConfig(steps=args.pretraining, seed=seed)
        fit(world.to(args.device), sampler, train, folder / "world", progress=False)
        write_atomic(spent, json.dumps(time.perf_counter() - began).encode())
        shutil.rmtree(folder / "episodes")
    return weights, json.loads(spent.read_text())


def kept(args: Args) -> dict[str, dict[str, Any]]:
    """Runs that are in the results already: variant -> seed -> record."""
    results = {} if not_counted(args) else recorded_results("jepa_mpc_ablations")
    return {variant: found["runs"] for variant, found in results.items()}


def collected(args: Args) -> dict[str, Any]:
    """Finished runs, their points and mean, per variant."""
    results: dict[str, Any] = {}
    for variant in VARIANTS:
        runs = dict(kept(args).get(variant, {}))
        for path in sorted((args.out / args.task / variant).glob("seed_*/record.json")):
            runs[path.parent.name] = json.loads(path.read_text())
        if runs:
            refuse_differences(list(runs.values()), (), f"{args.out / args.task / variant} and the results")
            curves = np.array([[point["return"] for point in found["curve"]] for found in runs.values()])
            frames = [point["frames"] for point in next(iter(runs.values()))["curve"]]
            results[variant] = {
                **score(runs),
                "curve_per_seed": dict(zip(map(str, frames), curves.T.tolist(), strict=True)),
                "runs": runs,
            }
            for seed, curve in zip(runs, curves, strict=True):
                print(f"{variant:<15} {seed}", *(f"{value:6.0f}" for value in curve))
    return results


def score(runs: dict[str, Any]) -> dict[str, Any]:
    """Of the last evaluation; no mean of runs that may be of different agents, since they do not tell theirs."""
    made, figures = made_by(runs.values()), summarise([found["last_returns"] for found in runs.values()])
    if made["not_recorded"] and len(runs) > 1:
        figures |= {"mean": None, "ci95": None}
    return figures | made


if __name__ == "__main__":
    jepa_rl.envs.register_envs()
    main(tyro.cli(Args))
