"""A world that branches: what four kinds of dynamics on the same frozen encoder say of it, and plans made with them.

    python benchmarks/branching.py             an hour on one core for each seed, and 8 GB of disk
    python benchmarks/branching.py --seeds 5   that seed alone; the figures are collected from all that are finished
    python benchmarks/branching.py --quick     under two minutes

Point, ensemble, mixture and flow dynamics learn on the latents of one encoder of TableEdge, whose true outcome
distribution is known; every seed trains all of them anew. The encoder was made for the flow: its sizes, its objective
and its blur were chosen by what the flow makes of it, so that the others may do better on one of their own. Then: how
often the object falls in what they draw, energy score against the true sampler, impossible averages, calibration along
the horizon, rollouts ten times longer than the training windows, and the return of plans over them beside those of the
same search with the true dynamics. A stopped run goes on where it was; a finished one is a file of
``benchmarks/results/branching`` and is not run again. ``--mujoco 4 5`` adds the returns on the version with real
contact for these seeds (needs OpenGL).
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from _branching_plans import BUDGET, ENVIRONMENTS, EPISODE, PLANNING_EVALUATIONS, planning_flow, players
from _branching_scores import RESOLUTIONS, at_the_fork, flat_everywhere, measure
from _intervals import summarise
from _record import ROOT, Records, made_by, note_process, refuse_unrecordable, trying, write_results

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import branching_futures as example
from branching_futures import learn_dynamics, learn_probe, learn_world, priced_by, random_play

from jepa_rl import WorldModel
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.data.view import EpisodeView
from jepa_rl.envs.worlds import fork
from jepa_rl.files import write_atomic
from jepa_rl.risk import expected_cost

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Args:
    seeds: tuple[int, ...] = (4, 5, 6)
    """Of training. Settings were chosen on 0, and what 1 to 3 gave was looked at while they were; the evaluation's
    episodes are the same for all."""
    episodes: int = 70
    """Played for each seed and planner."""
    train_episodes: int = 120_000
    """Of TableEdge; the other worlds get their SHARE."""
    updates: int = 1500
    """Of the encoder."""
    dynamics_updates: int = 6000
    """Of each kind of dynamics."""
    futures: int = 8
    """That plans are judged by."""
    alpha: float = 0.25
    """Share of the worst futures in CVaR."""
    mujoco: tuple[int, ...] = ()
    """Seeds for which the returns on the MuJoCo version are measured, too."""
    quick: bool = False
    out: Path = Path("runs/branching")


QUICK = dict(seeds=(4,), episodes=2, train_episodes=900, updates=20, dynamics_updates=20)
KINDS: dict[str, dict[str, Any]] = {
    "point": dict(name="mlp", width=192, depth=2),
    "ensemble": dict(name="ensemble", members=5, width=96, depth=2),
    "mixture": dict(name="mixture", components=5, width=96, depth=2),
    "flow": dict(name="flow", **example.FLOW),
}
# Of the training episodes: the chance of a fall is learned no better than it is counted; contact takes long to play.
SHARE = {"table_edge": 1.0, "mujoco": 1 / 6, "fork": 1 / 36}
# What is found hangs on these.
SETTINGS = ("episodes", "train_episodes", "updates", "dynamics_updates", "futures", "alpha")
# Means over seeds of these: names in the results and in the runs.
AVERAGES = {
    "frequency_mae": "frequency_mae",
    "frequency_mae_per_push": "frequency_mae_per_push",
    "both_outcomes_present": "both_outcomes_present",
    "energy_score_ratio_to_true_sampler": "energy_ratio",
    "crps_ratio_to_true_sampler": "crps_ratio",
    "few_step_energy_penalty": "few_step_energy_penalty",
    "impossible_average_ratio": "impossible_average_ratio",
    "distance_to_nearest_outcome": "distance_to_nearest_outcome",
    "spread_along_horizon": "spread_along_horizon",
    "crps_along_horizon": "crps_along_horizon",
    "off_manifold_at_10x": "off_manifold_at_10x",
    "off_manifold_share_at_10x": "off_manifold_share_at_10x",
    "probe_r2": "probe_r2",
}


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, **QUICK, out=args.out / "quick")
        shutil.rmtree(args.out, ignore_errors=True)
    counted = records(args, "table_edge").counted
    if counted:
        refuse_unrecordable()
    for world_name, seeds in (("table_edge", args.seeds), ("mujoco", args.mujoco)):
        kept = records(args, world_name)
        for seed in seeds:
            if kept.read(seed) is None:
                processes = note_process(args.out / world_name / f"seed_{seed}")
                kept.write(seed, run_seed(args, world_name, seed), processes)
    runs = {name: records(args, name).all() for name in ENVIRONMENTS}
    results = collected(args, {name: found for name, found in runs.items() if found})
    draw(args, list(runs["table_edge"].values()), results)
    print(json.dumps(results, indent=1, default=str))
    print(table(results))
    print(write_results("branching", results, quick=not counted and not trying(), collected=True))


def records(args: Args, world_name: str) -> Records:
    settings, own = ({name: getattr(a, name) for name in SETTINGS} for a in (args, Args()))
    counted = settings == own and not (args.quick or trying())
    folder = ROOT / "benchmarks/results/branching" if counted else args.out / "records"
    return Records(folder / world_name, settings | {"dynamics": KINDS}, counted)


def collected(args: Args, runs: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """The figures of all finished seeds."""
    first = list(runs["table_edge"].values())
    measured = [run["measures"] for run in first]
    results: dict[str, Any] = {name: average(measured, key) for name, key in AVERAGES.items()}
    results["energy_score_ratio_per_seed"] = [run["energy_ratio"] for run in measured]
    results["calibration"] = {
        name: {
            "table_widths": width,
            "p_values": (found := [run["calibration_p_values"][name] for run in measured]),
            **flat_everywhere(found),
            "p_values_without_shaking": [
                run["calibration_p_values_without_shaking"][name] for run in measured
            ],
        }
        for name, width in RESOLUTIONS.items()
    }
    for key in ("planning_time_ratio_8_futures", "few_step_speedup"):
        results[key] = float(np.median([run["timings"][key] for run in first]))
    for name, found in runs.items():
        results[f"return_{name}"] = returns_of(list(found.values()))
    found = results["return_table_edge"]
    best = max(found[name]["mean"] for name in ("true_dynamics", "true_dynamics_cvar"))
    results["return_ratio_to_true_dynamics"] = {
        name: {
            "mean": value["mean"] / best,
            "per_seed": [point / best for point in value["per_seed"]],
            "ci95": None if value["ci95"] is None else [bound / best for bound in value["ci95"]],
        }
        for name, value in found.items()
    }
    return results | {
        "seeds": {name: list(found) for name, found in runs.items()},
        "episodes_per_seed": args.episodes, "futures": args.futures, "alpha": args.alpha,
        "evaluations_when_planning": PLANNING_EVALUATIONS, "dynamics": KINDS,
        **made_by([run for found in runs.values() for run in found.values()]),
    }  # fmt: skip


def average(runs: list[dict[str, Any]], key: str) -> Any:
    """Of figures, lists and dicts of figures over the runs."""
    if isinstance(runs[0][key], dict):
        return {k: average([run[key] for run in runs], k) for k in runs[0][key]}
    return np.mean([run[key] for run in runs], axis=0).tolist()


def returns_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: summarise([run["returns"][name] for run in runs])
        | {"fallen": float(np.mean([run["fallen"][name] for run in runs]))}
        for name in runs[0]["returns"]
    }


# -- one training seed ------------------------------------------------------------------------------


def run_seed(args: Args, world_name: str, seed: int) -> dict[str, Any]:
    """Everything that is found, saved after each part, so that a stopped run goes on at the next."""
    found_file = args.out / world_name / f"seed_{seed}" / "found.json"
    settings = json.loads(json.dumps(records(args, world_name).settings))
    found: dict[str, Any] = {"returns": {}, "fallen": {}, "settings": settings}
    if found_file.exists():
        found = json.loads(found_file.read_text())
        if found.get("settings") != settings:
            raise SystemExit(
                f"{found_file} was found with {found.get('settings')}, not {settings}; use another --out"
            )

    def save() -> None:
        write_atomic(found_file, json.dumps(found).encode())

    models, latents, train, held_out = learn(args, world_name, seed)
    probe = learn_probe(models["flow"], train, seed, steps=50 if args.quick else 3000)
    if "measures" not in found:
        found["measures"] = {}
        if world_name == "table_edge":
            found["measures"] |= measure(models, probe, latents, held_out, seed, args.quick)
            found["measures"] |= at_the_fork(learn_fork(args, seed))
            found["timings"] = timings(models, train, seed, 2 if args.quick else 15)
        save()
    print(world_name, seed, json.dumps(found["measures"]), flush=True)
    steps = 5 if args.quick else EPISODE
    playing = players(world_name, models, probe, seed, args.futures, args.alpha, args.episodes, steps)
    for name, play_it in playing.items():
        if name not in found["returns"]:
            found["returns"][name], found["fallen"][name] = play_it()
            save()
        earned = round(float(np.mean(found["returns"][name])), 2)
        print(world_name, seed, name, earned, "fallen", found["fallen"][name], flush=True)
    return found


def learn(
    args: Args, world_name: str, seed: int
) -> tuple[dict[str, WorldModel], LatentEpisodes, EpisodeView, EpisodeView]:
    """Every kind of dynamics on one encoder, the latents of the training episodes, those and the held out ones."""
    out, env = args.out / world_name / f"seed_{seed}", ENVIRONMENTS[world_name]
    out.mkdir(parents=True, exist_ok=True)
    make = lambda: gym.wrappers.TimeLimit(env(anywhere=True), example.LENGTH)  # noqa: E731
    episodes = int(args.train_episodes * SHARE[world_name])
    train, held_out = random_play(out, episodes, seed, make).split(0.1, seed=seed)
    world = learn_world(train, out, args.updates, seed)
    latents = LatentEpisodes.encode(world, train)
    fitted = partial(learn_dynamics, world, latents, out=out, updates=args.dynamics_updates, seed=seed)
    return {kind: fitted(**options) for kind, options in KINDS.items()}, latents, train, held_out


def learn_fork(args: Args, seed: int) -> dict[str, WorldModel]:
    """Point and flow dynamics of Fork, on one encoder."""
    out, episodes = args.out / "fork" / f"seed_{seed}", int(args.train_episodes * SHARE["fork"])
    store = random_play(out, episodes, seed, fork.ForkEnv, extras=("position", "side"))
    # A stronger SIGReg than TableEdge's: which door is open is a small part of the picture.
    objective = example.OBJECTIVE | {"sigreg": 1.0}
    world = learn_world(store, out, args.updates, seed, objective)
    latents = LatentEpisodes.encode(world, store)
    fitted = partial(learn_dynamics, world, latents, out=out, updates=args.dynamics_updates // 4, seed=seed)
    return {kind: fitted(**options) for kind, options in KINDS.items() if kind in ("point", "flow")}


def timings(models: dict[str, WorldModel], train: EpisodeView, seed: int, repeats: int) -> dict[str, float]:
    """Ratios of times, each pair measured in turns: the medians' ratio."""
    probe = learn_probe(models["flow"], train, seed, steps=50)  # its weights cost no time
    cost, flow = priced_by(probe)(None), models["flow"]
    z, pushes = torch.zeros(400, flow.latent_dim), torch.zeros(400, 1, 2)

    def plan(model: WorldModel, futures: int) -> None:
        """One plan of CEM for one environment."""
        BUDGET(futures, expected_cost).plan(model, cost, z[:1], generator=torch.Generator().manual_seed(0))

    def draw(evaluations: int) -> None:
        flow.dynamics.rollout(z, pushes, futures=64, evaluations=evaluations)  # type: ignore[call-arg]

    planning_flow(flow)
    with torch.no_grad():
        return {
            "planning_time_ratio_8_futures": ratio(
                partial(plan, flow, 8), partial(plan, models["point"], 1), repeats
            ),
            "few_step_speedup": ratio(partial(draw, 50), partial(draw, 4), repeats),
        }


def ratio(slow: Callable[[], None], fast: Callable[[], None], repeats: int) -> float:
    def seconds(run: Callable[[], None]) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    pairs = [(seconds(slow), seconds(fast)) for _ in range(repeats)]
    return float(np.median([a for a, _ in pairs]) / np.median([b for _, b in pairs]))


# -- show -------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """What each kind of dynamics is worth, as Markdown."""
    columns = {
        "error of bins": "frequency_mae", "energy score": "energy_score_ratio_to_true_sampler",
        "CRPS": "crps_ratio_to_true_sampler", "off the data": "off_manifold_at_10x",
    }  # fmt: skip
    lines = [f"| dynamics | {' | '.join(columns)} | return, mean | return, CVaR |", "|---" * 7 + "|"]
    for kind in KINDS:
        cells = [results[key].get(kind, results[key].get(f"{kind}_4")) for key in columns.values()]
        returns = [results["return_ratio_to_true_dynamics"].get(name) for name in (kind, f"{kind}_cvar")]
        cells += [found["mean"] if found else None for found in returns]
        lines.append(f"| {kind} | {' | '.join('' if x is None else f'{x:.3f}' for x in cells)} |")
    return "\n".join(lines)


def draw(args: Args, runs: list[dict[str, Any]], results: dict[str, Any]) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.6))
    axes = axes.flatten()
    for axis, key in ((axes[0], "energy_score_ratio_to_true_sampler"), (axes[1], "frequency_mae")):
        axis.bar(range(len(results[key])), results[key].values())
        axis.set_xticks(range(len(results[key])), results[key], rotation=40, ha="right")
        axis.set_title(key)
    for name, found in results["return_ratio_to_true_dynamics"].items():
        axes[2].plot(found["per_seed"], [name] * len(found["per_seed"]), ".", color="gray")
        axes[2].plot(found["mean"], name, "o", color="C0")
    axes[2].set_title("return / the true dynamics', and single seeds")
    ranks = np.sum([run["measures"]["rank_histograms"] for run in runs], axis=0)
    image = axes[3].imshow(ranks / ranks.mean(), vmin=0.5, vmax=1.5, cmap="coolwarm")
    figure.colorbar(image, ax=axes[3])
    axes[3].set(title="rank of the truth / flat", xlabel="bin of ranks", ylabel="step - 1")
    steps = np.arange(1, 1 + len(results["spread_along_horizon"]))
    axes[4].plot(steps, results["spread_along_horizon"])
    axes[4].set(title="spread of the decoded x, in tables", xlabel="step", ylim=(0, None))
    for kind, found in results["crps_along_horizon"].items():
        (line,) = axes[5].plot(steps, found["own"], label=kind)
        axes[5].plot(steps, found["given"], linestyle="--", color=line.get_color())
    axes[5].set(title="CRPS of x / the true sampler's: own states, true states (dashed)", xlabel="step")
    axes[5].legend()
    figure.tight_layout()
    figure.savefig(args.out / "branching.png", dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Args))
