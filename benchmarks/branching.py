"""A world that branches: what four kinds of dynamics on the same frozen encoder say of it, and plans made with them.

    python benchmarks/branching.py            an hour on one core for each seed, and 8 GB of disk
    python benchmarks/branching.py --quick    under two minutes

Point, ensemble, mixture and flow dynamics learn on the latents of one encoder of TableEdge, whose true outcome
distribution is known; every seed trains all of them anew. Then: how often the object falls in what they draw, energy
score against the true sampler, impossible averages, calibration along the horizon, rollouts ten times longer than the
training windows, and the return of plans over them beside those of an oracle that plans in the true world. A stopped
run goes on where it was. ``--mujoco 0 1`` adds the returns on the version with real contact for these seeds (needs
OpenGL).
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
from _record import write_results
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import branching_futures as example
from branching_futures import (
    EVALUATION_SEED,
    STEPS,
    fall_frequencies,
    independent_futures,
    learn_dynamics,
    learn_probe,
    learn_world,
    picture_of,
    planner,
    priced_by,
    pushes_near_the_edge,
    random_play,
)

from jepa_rl import WorldModel
from jepa_rl.agents import CEM, MPCAgent
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.data.view import EpisodeView
from jepa_rl.diagnostics import Probe, bootstrap_interval
from jepa_rl.dynamics import energy_score
from jepa_rl.envs.worlds import fork
from jepa_rl.envs.worlds import table_edge_rules as rules
from jepa_rl.envs.worlds.mujoco_table_edge import MujocoTableEdgeEnv
from jepa_rl.envs.worlds.table_edge import TableEdgeEnv
from jepa_rl.files import write_atomic
from jepa_rl.risk import CVaR, Risk, expected_cost

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Args:
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of training, other than the 0 that settings were tuned on; the episodes of the evaluation are others for each."""
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


QUICK = dict(seeds=(0,), episodes=2, train_episodes=900, updates=20, dynamics_updates=20)
KINDS: dict[str, dict[str, Any]] = {
    "point": dict(name="mlp", width=192, depth=2),
    "ensemble": dict(name="ensemble", members=5, width=96, depth=2),
    "mixture": dict(name="mixture", components=5, width=96, depth=2),
    "flow": dict(name="flow", **example.FLOW),
}
# Of the training episodes: the chance of a fall is learned no better than it is counted; contact takes long to play.
SHARE = {"table_edge": 1.0, "mujoco": 1 / 6, "fork": 1 / 36}
EVALUATIONS = (1, 2, 4, 50)  # of the flow for each state
PLANNING_EVALUATIONS = 1
EPISODE = 40
# What is found hangs on these.
SETTINGS = ("episodes", "train_episodes", "updates", "dynamics_updates", "futures", "alpha")
RESOLUTION = 0.5 / rules.TABLE  # half a pixel, in table widths


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, **QUICK, out=args.out / "quick")
        shutil.rmtree(args.out, ignore_errors=True)
    found = {"table_edge": [run_seed(args, "table_edge", seed) for seed in args.seeds]}
    if args.mujoco:
        found["mujoco"] = [run_seed(args, "mujoco", seed) for seed in args.mujoco]
    first = found["table_edge"]
    mean = partial(average, [run["measures"] for run in first])
    results: dict[str, Any] = {
        "frequency_mae": mean("frequency_mae"),
        "frequency_mae_per_push": mean("frequency_mae_per_push"),
        "both_outcomes_present": mean("both_outcomes_present"),
        "energy_score_ratio_to_oracle": mean("energy_ratio"),
        "crps_ratio_to_oracle": mean("crps_ratio"),
        "few_step_energy_penalty": mean("few_step_energy_penalty"),
        "impossible_average_ratio": mean("impossible_average_ratio"),
        "distance_to_nearest_outcome": mean("distance_to_nearest_outcome"),
        "calibration_p_values": [run["measures"]["calibration_p_values"] for run in first],
        "calibration_flat": flat_everywhere([run["measures"]["calibration_p_values"] for run in first]),
        "spread_along_horizon": mean("spread_along_horizon"),
        "crps_along_horizon": mean("crps_along_horizon"),
        "off_manifold_at_10x": mean("off_manifold_at_10x"),
        "off_manifold_share_at_10x": mean("off_manifold_share_at_10x"),
        "probe_r2": mean("probe_r2"),
    }
    results |= timings(args)
    for name, runs in found.items():
        results[f"return_{name}"] = returns_of(runs)
    best = max(v["mean"] for k, v in results["return_table_edge"].items() if k.startswith("oracle"))
    results["return_ratio_to_oracle"] = {
        k: {"ratio": v["mean"] / best, "ci95": [x / best for x in v["ci95"]]}
        for k, v in results["return_table_edge"].items()
    }
    results |= {
        "seeds": args.seeds, "mujoco_seeds": args.mujoco, "episodes_per_seed": args.episodes,
        "futures": args.futures, "alpha": args.alpha,
        "evaluations_when_planning": PLANNING_EVALUATIONS, "calibration_resolution": RESOLUTION,
        "dynamics": KINDS, "threads": torch.get_num_threads(),
    }  # fmt: skip
    draw(args, first, results)
    print(json.dumps(results, indent=1, default=str))
    print(table(results))
    print(write_results("branching", results, quick=args.quick))


def average(runs: list[dict[str, Any]], key: str) -> Any:
    """Of figures, lists and dicts of figures over the runs."""
    if isinstance(runs[0][key], dict):
        return {k: average([run[key] for run in runs], k) for k in runs[0][key]}
    return np.mean([run[key] for run in runs], axis=0).tolist()


def flat_everywhere(p_values: list[list[float]]) -> dict[str, Any]:
    """Whether no histogram differs from a flat one, all of them tested at 5% together (Bonferroni), and which do."""
    level = 0.05 / sum(map(len, p_values))
    off = [(i, step + 1) for i, run in enumerate(p_values) for step, p in enumerate(run) if p < level]
    return {"flat": not off, "level_of_each": level, "run_and_step_of_those_that_are_not": off}


def returns_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {
            "mean": float(np.mean([run["returns"][name] for run in runs])),
            "ci95": bootstrap_interval([np.array(run["returns"][name]) for run in runs]),
            "fallen": float(np.mean([run["fallen"][name] for run in runs])),
        }
        for name in runs[0]["returns"]
    }


# -- one training seed ------------------------------------------------------------------------------


def run_seed(args: Args, world_name: str, seed: int) -> dict[str, Any]:
    """Everything that is found, saved after each part, so that a stopped run goes on at the next."""
    found_file = args.out / world_name / f"seed_{seed}" / "found.json"
    found: dict[str, Any] = {"returns": {}, "fallen": {}}
    settings = json.loads(json.dumps({name: getattr(args, name) for name in SETTINGS} | {"dynamics": KINDS}))
    found["settings"] = settings
    if found_file.exists():
        found = json.loads(found_file.read_text())
        if found.get("settings") != settings:
            raise SystemExit(
                f"{found_file} was found with {found.get('settings')}, not {settings}; use another --out"
            )
    if found.get("done"):
        return found

    def save() -> None:
        write_atomic(found_file, json.dumps(found).encode())

    models, latents, train, held_out = learn(args, world_name, seed)
    probe = learn_probe(models["flow"], train, seed, steps=50 if args.quick else 3000)
    if "measures" not in found:
        found["measures"] = {}
        if world_name == "table_edge":
            found["measures"] |= measure(args, models, probe, latents, held_out, seed)
            found["measures"] |= at_the_fork(args, seed)
        save()
    print(world_name, seed, json.dumps(found["measures"]), flush=True)
    for name, play_it in players(args, world_name, models, probe, seed).items():
        if name not in found["returns"]:
            found["returns"][name], found["fallen"][name] = play_it()
            save()
        earned = round(float(np.mean(found["returns"][name])), 2)
        print(world_name, seed, name, earned, "fallen", found["fallen"][name], flush=True)
    found["done"] = True
    save()
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


ENVIRONMENTS: dict[str, Callable[..., gym.Env]] = {"table_edge": TableEdgeEnv, "mujoco": MujocoTableEdgeEnv}


# -- what the dynamics say --------------------------------------------------------------------------


def measure(
    args: Args, models: dict[str, WorldModel], probe: Probe, latents: LatentEpisodes, held_out: Any, seed: int
) -> dict[str, Any]:
    count, futures = (40, 16) if args.quick else (400, 256)
    pushes = pushes_near_the_edge(count, 100 + seed)
    samplers = {k: (m, {}) for k, m in models.items() if k != "flow"}
    samplers |= {f"flow_{k}": (models["flow"], {"evaluations": k}) for k in EVALUATIONS}
    seen, truth, _ = example.labelled(models["flow"], held_out, 50 if args.quick else 2000, seed)
    residual = (truth - probe(seen)).square().mean(0) / truth.var(0).clamp_min(1e-9)
    known = zip(("x", "y", "fallen", "reward"), (1 - residual).tolist(), strict=True)
    found: dict[str, Any] = {"probe_r2": dict(known)}
    found |= frequencies(samplers, probe, pushes, futures)
    found |= scores(args, samplers, probe, pushes)
    found |= along_the_horizon(args, models, probe, seed)
    found |= off_manifold(args, models, latents, held_out, seed)
    return found


def frequencies(samplers: dict[str, Any], probe: Probe, pushes: Any, futures: int) -> dict[str, Any]:
    """Mean absolute error of the probability of falling: of ten bins over the whole range, and of single pushes."""
    binned, single, both = {}, {}, {}
    for name, (model, sampler) in samplers.items():
        true, sampled = fall_frequencies(model, probe, pushes, futures, **sampler)
        bins = np.minimum(10 * true, 9).astype(int)
        gaps = [abs(true[bins == k].mean() - sampled[bins == k].mean()) for k in range(10)]
        binned[name], single[name] = float(np.mean(gaps)), float(np.abs(true - sampled).mean())
        uncertain = (true >= 0.1) & (true <= 0.9)
        both[name] = float(((sampled > 0) & (sampled < 1))[uncertain].mean())
    return {"frequency_mae": binned, "frequency_mae_per_push": single, "both_outcomes_present": both}


@torch.no_grad()
def encoded_outcomes(model: WorldModel, at: np.ndarray, push: np.ndarray, count: int, seed: int) -> Tensor:
    """Latents "b n d" of true outcomes of each push, through the rules, the picture and the encoder."""
    rng, b = np.random.default_rng(seed), len(at)
    rows, taken = np.repeat(at, count, axis=0), np.repeat(push, count, axis=0)
    luck, shake = rng.random(b * count), rng.standard_normal((b * count, 2))
    position, fallen = rules.outcome(rows, np.zeros(b * count, bool), taken, luck, shake)
    parts = [
        model.encode(torch.from_numpy(picture_of(position[i : i + 500], fallen[i : i + 500])))
        for i in range(0, b * count, 500)
    ]
    return torch.cat(parts).unflatten(0, (b, count))


def score(samples: Tensor, truth: Tensor) -> float:
    """Mean energy score of samples "b n d" over true outcomes "b m d"."""
    per = [energy_score(samples, truth[:, i]).mean() for i in range(truth.shape[1])]
    return float(torch.stack(per).mean())


@torch.no_grad()
def scores(args: Args, samplers: dict[str, Any], probe: Probe, pushes: Any) -> dict[str, Any]:
    """One step: energy score in standardised latents and CRPS of the decoded x, over those of the true sampler."""
    at, push = pushes
    count = 8 if args.quick else 64
    world = samplers["point"][0]
    truth, oracle = (encoded_outcomes(world, at, push, count, s) for s in (1, 2))
    z = world.encode(torch.from_numpy(picture_of(at, np.zeros(len(at), bool))))
    std = samplers["flow_4"][0].dynamics.std  # of all states
    base, base_x = score(oracle / std, truth / std), score(probe(oracle)[..., :1], probe(truth)[..., :1])
    energy, crps = {}, {}
    for name, (model, sampler) in samplers.items():
        samples = independent_futures(model, z, push[:, None], count, seed=3, **sampler)[:, :, 1]
        energy[name] = score(samples / std, truth / std) / base
        crps[name] = score(probe(samples)[..., :1], probe(truth)[..., :1]) / base_x
    return {
        "energy_ratio": energy,
        "crps_ratio": crps,
        "few_step_energy_penalty": energy["flow_4"] / energy["flow_50"] - 1,
    }


@torch.no_grad()
def along_the_horizon(args: Args, models: dict[str, WorldModel], probe: Probe, seed: int) -> dict[str, Any]:
    """Rank of the true x among those that are drawn, after 1 to 8 steps of random pushes: flat where calibrated.

    The test is a chi-square of the histogram over eight bins, its p-value by simulation of flat ones. Objects at the
    rim and fallen ones are all at the very same place, where no rank means anything: the truth and what is drawn are
    read with an error of half a pixel (RESOLUTION), and calibrated means calibrated at that resolution.

    Exposure bias: the CRPS of the decoded x after k steps of the model's own, over that of k steps of the true sampler
    ("own"), beside single steps from true states over single true ones ("given").
    """
    rows, horizon, futures = (60, 8, 15) if args.quick else (800, 8, 63)
    rng = np.random.default_rng(500 + seed)
    at, push = rng.uniform([0.3, 0.1], [0.9, 0.9], (rows, 2)), rng.uniform(-0.6, 0.9, (rows, horizon, 2))
    position, fallen = at, np.zeros(rows, bool)
    own = np.repeat(at, futures, axis=0), np.zeros(rows * futures, bool)
    true, x, oracle = [models["flow"].encode(torch.from_numpy(picture_of(position, fallen)))], [], ([], [])
    for i in range(horizon):
        given = np.repeat(position, futures, axis=0), np.repeat(fallen, futures)
        taken, luck = np.repeat(push[:, i], futures, axis=0), rng.random(rows * futures)
        shake = rng.standard_normal((rows * futures, 2))
        own, given = (rules.outcome(*state, taken, luck, shake) for state in (own, given))
        for found, (place, _) in zip(oracle, (own, given), strict=True):
            found.append(torch.from_numpy(place[:, :1]).float().view(rows, futures, 1))
        position, fallen = rules.outcome(
            position, fallen, push[:, i], rng.random(rows), rng.standard_normal((rows, 2))
        )
        true.append(models["flow"].encode(torch.from_numpy(picture_of(position, fallen))))
        x.append(torch.from_numpy(position[:, :1]).float())
    z, states = true[0], torch.stack(true, 1)
    truth = probe(states[:, 1:])[..., 0]  # through the encoder and the probe, as what is drawn
    crps = {kind: {"own": [], "given": []} for kind in models}
    longer = {
        kind: probe(independent_futures(model, z, push, futures, seed)[:, :, 1:])[..., :1]
        for kind, model in models.items()
    }
    for kind, model in models.items():
        steps = independent_futures(
            model, states[:, :-1].flatten(0, 1), push.reshape(-1, 1, 2), futures, seed
        )
        single = probe(steps[:, :, 1]).unflatten(0, (rows, horizon))[..., :1].transpose(1, 2)
        for name, drawn, real in zip(crps[kind], (longer[kind], single), oracle, strict=True):
            crps[kind][name] = [
                float(energy_score(drawn[:, :, i], x[i]).mean() / energy_score(real[i], x[i]).mean())
                for i in range(horizon)
            ]
    drawn = longer["flow"][..., 0]
    generator = torch.Generator().manual_seed(seed)
    blur = lambda x: x + RESOLUTION * torch.randn(x.shape, generator=generator)  # noqa: E731
    rank = (blur(drawn) < blur(truth)[:, None]).sum(1).numpy()  # b h
    p_values = []
    flat = rng.multinomial(rows, np.full(8, 1 / 8), size=4000)
    off_when_flat = ((flat - rows / 8) ** 2).sum(1)
    histograms = []
    for i in range(horizon):
        counts = np.bincount(rank[:, i] * 8 // (futures + 1), minlength=8)
        histograms.append(counts.tolist())
        p_values.append(float((off_when_flat >= ((counts - rows / 8) ** 2).sum()).mean()))
    return {
        "calibration_p_values": p_values,
        "rank_histograms": histograms,
        "spread_along_horizon": drawn.std(1).mean(0).tolist(),
        "crps_along_horizon": crps,
    }


@torch.no_grad()
def off_manifold(
    args: Args, models: dict[str, WorldModel], latents: LatentEpisodes, held_out: Any, seed: int
) -> dict[str, dict[str, float]]:
    """After ten training horizons: distance to the nearest training latent, over that of held-out latents, and the
    share of states that are farther away than 99% of held-out ones."""
    generator = torch.Generator().manual_seed(seed)
    known = latents.latents[torch.randperm(len(latents.latents), generator=generator)[:20_000]]
    unseen = LatentEpisodes.encode(models["flow"], held_out).latents[:500]
    std = known.std(0)
    pushes = 2 * torch.rand(len(unseen), 10 * STEPS, 2, generator=generator) - 1
    away = lambda z: torch.cdist(z / std, known / std).min(1).values  # noqa: E731
    usual = away(unseen)
    ends = {
        kind: away(independent_futures(m, unseen, pushes, 1, seed)[:, 0, -1]) for kind, m in models.items()
    }
    far = usual.quantile(0.99)
    return {
        "off_manifold_at_10x": {kind: float(end.mean() / usual.mean()) for kind, end in ends.items()},
        "off_manifold_share_at_10x": {kind: float((end > far).float().mean()) for kind, end in ends.items()},
    }


def timings(args: Args) -> dict[str, float]:
    """Ratios of times, each pair measured in turns: the medians' ratio."""
    models, _, train, _ = learn(args, "table_edge", args.seeds[0])
    probe = learn_probe(models["flow"], train, args.seeds[0], steps=50)  # its weights cost no time
    cost, flow, repeats = priced_by(probe)(None), models["flow"], 2 if args.quick else 15
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


@torch.no_grad()
def _encoded_forks(world: WorldModel, x: np.ndarray, step: int, side: int) -> Tensor:
    return world.encode(torch.from_numpy(np.stack([fork.draw(float(at), step, side) for at in x])))


def at_the_fork(args: Args, seed: int) -> dict[str, Any]:
    """Fork, the step in which a door opens: distance of what is predicted to the nearer of the two true outcomes."""
    out, episodes = args.out / "fork" / f"seed_{seed}", int(args.train_episodes * SHARE["fork"])
    store = random_play(out, episodes, seed, fork.ForkEnv, extras=("position", "side"))
    # A stronger SIGReg than TableEdge's: which door is open is a small part of the picture.
    objective = example.OBJECTIVE | {"sigreg": 1.0}
    world = learn_world(store, out, args.updates, seed, objective)
    latents = LatentEpisodes.encode(world, store)
    fitted = partial(learn_dynamics, world, latents, out=out, updates=args.dynamics_updates // 4, seed=seed)
    models = {kind: fitted(**options) for kind, options in KINDS.items() if kind in ("point", "flow")}
    std = models["flow"].dynamics.std
    rng = np.random.default_rng(900 + seed)
    x, move = rng.uniform(-0.5, 0.5, 200), rng.uniform(-1, 1, 200)
    z = _encoded_forks(world, x, fork.DECISION - 1, 0)
    outcomes = torch.stack(
        [_encoded_forks(world, x + fork.SPEED * move, fork.DECISION, side) for side in (-1, 1)], 1
    )
    away = {}
    for kind, model in models.items():
        with torch.no_grad():
            drawn = model.rollout(
                z,
                torch.from_numpy(move).float()[:, None, None],
                futures=16,
                generator=torch.Generator().manual_seed(0),
            )[:, :, 1]
        away[kind] = float(torch.cdist(drawn / std, outcomes / std).min(-1).values.mean())
    return {
        "distance_to_nearest_outcome": away,
        "impossible_average_ratio": away["point"] / away["flow"],
    }


# -- plans ------------------------------------------------------------------------------------------

BUDGET: Callable[[int, Risk], CEM] = planner
Played = tuple[list[float], float]


def planning_flow(flow: WorldModel) -> WorldModel:
    flow.dynamics.evaluations = PLANNING_EVALUATIONS  # type: ignore[assignment]
    return flow


def players(
    args: Args, world_name: str, models: dict[str, WorldModel], probe: Probe, seed: int
) -> dict[str, Callable[[], Played]]:
    """Every planner on the same episodes."""
    careful, flow = CVaR(args.alpha), planning_flow(models["flow"])
    setups: dict[str, tuple[WorldModel, int, Risk]] = {
        "point": (models["point"], 1, expected_cost),
        "ensemble": (models["ensemble"], 5, expected_cost),
        "ensemble_cvar": (models["ensemble"], 5, careful),
        "mixture": (models["mixture"], args.futures, expected_cost),
        "mixture_cvar": (models["mixture"], args.futures, careful),
        "flow": (flow, args.futures, expected_cost),
        "flow_cvar": (flow, args.futures, careful),
    }
    make = lambda: gym.wrappers.TimeLimit(ENVIRONMENTS[world_name](), 5 if args.quick else EPISODE)  # noqa: E731
    rng = np.random.default_rng(seed)
    acts: dict[str, Callable[..., np.ndarray]] = {"random": lambda *_: rng.uniform(-1, 1, (args.episodes, 2))}
    if world_name == "table_edge":
        for name, risk in (("oracle", expected_cost), ("oracle_cvar", careful)):
            acts[name] = Oracle(BUDGET(args.futures, risk), seed)
    for name, (model, futures, risk) in setups.items():
        acts[name] = Follow(MPCAgent(model, BUDGET(futures, risk), cost=priced_by(probe), seed=seed))
    first = EVALUATION_SEED + 1000 * seed
    return {name: partial(play, make, args.episodes, first, act) for name, act in acts.items()}


def play(
    make: Callable[[], gym.Env], episodes: int, first_seed: int, act: Callable[..., np.ndarray]
) -> Played:
    """Returns of the episodes, side by side, and the share of them that fell."""
    venv = gym.vector.SyncVectorEnv([make] * episodes)
    seen, info = venv.reset(seed=[first_seed + i for i in range(episodes)])
    returns, over = np.zeros(episodes), False
    while not over:
        seen, reward, terminated, truncated, info = venv.step(act(seen, info).astype(np.float32))
        returns, over = returns + reward, bool((terminated | truncated).all())
    venv.close()
    return returns.tolist(), float(info["fallen"].mean())


class Follow:
    """An agent with its state."""

    def __init__(self, agent: MPCAgent) -> None:
        self.agent, self.state = agent, None

    def __call__(self, seen: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        action, self.state = self.agent.predict(seen, self.state)
        return action


class Oracle:
    """The same search in the true world, with the true reward."""

    def __init__(self, planner: CEM, seed: int) -> None:
        self.planner, self.warm = planner, None
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, seen: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        goal = info["goal_position"].astype(np.float64)
        z = torch.from_numpy(np.concatenate([info["position"], info["fallen"][:, None]], axis=1)).float()

        def cost(latents: Tensor, actions: Tensor) -> Tensor:
            path = latents[:, :, 1:].double().numpy()
            goals = np.repeat(goal, len(path) // len(goal), axis=0)[:, None, None]
            return -torch.from_numpy(rules.reward(path[..., :2], path[..., 2] > 0.5, goals)).sum(-1).float()

        plan = self.planner.plan(rules.TableEdgeDynamics(), cost, z, self.warm, self.generator)
        self.warm = torch.cat([plan.actions[:, 1:], plan.actions[:, -1:]], dim=1)
        return plan.actions[:, 0].numpy()


# -- show -------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """What each kind of dynamics is worth, as Markdown."""
    columns = {
        "error of bins": "frequency_mae", "energy score": "energy_score_ratio_to_oracle",
        "CRPS": "crps_ratio_to_oracle", "off the data": "off_manifold_at_10x",
    }  # fmt: skip
    lines = [f"| dynamics | {' | '.join(columns)} | return, mean | return, CVaR |", "|---" * 7 + "|"]
    for kind in KINDS:
        cells = [results[key].get(kind, results[key].get(f"{kind}_4")) for key in columns.values()]
        returns = [results["return_ratio_to_oracle"].get(name) for name in (kind, f"{kind}_cvar")]
        cells += [found["ratio"] if found else None for found in returns]
        lines.append(f"| {kind} | {' | '.join('' if x is None else f'{x:.3f}' for x in cells)} |")
    return "\n".join(lines)


def draw(args: Args, runs: list[dict[str, Any]], results: dict[str, Any]) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.6))
    axes = axes.flatten()
    for axis, key in ((axes[0], "energy_score_ratio_to_oracle"), (axes[1], "frequency_mae")):
        axis.bar(range(len(results[key])), results[key].values())
        axis.set_xticks(range(len(results[key])), results[key], rotation=40, ha="right")
        axis.set_title(key)
    for name, found in results["return_ratio_to_oracle"].items():
        low, high = found["ci95"]
        axes[2].errorbar(
            found["ratio"], name, xerr=[[found["ratio"] - low], [high - found["ratio"]]], fmt="o"
        )
    axes[2].set_title("return, share of the oracle's")
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
