"""What are latents worth to an agent that learns on them?

    python benchmarks/latents_that_pay.py                    four hours on one core
    python benchmarks/latents_that_pay.py --parts speed      one part; the others stay as recorded
    python benchmarks/latents_that_pay.py --quick            two minutes

``probe``: what reward-free latents know of the swing-up's state, beside the same encoder trained on the state itself.
Data: every episode of one training of SAC from state, from random play to its best, with pictures (fast look, action
repeat 8, three frames). Every fifth episode is held out. Each objective trains the same encoder (``ENCODER``, one for
all frames) for as many updates on the same windows; a perceptron is then trained to read the true state from the
latents, and its R2 on held-out episodes is reported, for all of them and for the last ten alone, in which the agent
balances. The supervised encoder is trained to predict the state by a linear layer, with random shifts. In early
episodes the cart often leaves the picture, which no encoder can mend.

``frozen``: SAC on frozen latents of the swing-up, those of the chosen objective in ``probe``, which has seen that
(privileged) data: with Stable-Baselines3's own policy, and with ``DroQPolicy`` and the same settings.

``speed``: frames a second of joint SAC beside Stable-Baselines3's with its CnnPolicy, and of steps in a dream.

``dream``: SAC trained in the dream of a world model alone, by ``examples/dream.py``; its return in the world, divided
by that of the same agent trained in the world, on the same latents and with as much experience as world model and
starts took. The swing-up with a shipped world model, and Two Rooms (one layout and goal, dense reward) with one that
JEPAMPC learns here.

``readme``: PPO on frozen latents of CartPole-v1, trained as the README's first lines train it, for 50,000 steps.

Returns of trainings from pixels stand in ``dmc_pixels.json``: ``ratio_to_state`` (joint SAC / SAC from state, by task)
and the joint agents of ``cartpole`` are read from it.
"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from _broad_data import broad_data
from _joint_speed import frames_per_second
from _record import (
    ROOT,
    made_by,
    origin,
    plain,
    recorded_results,
    refuse_unrecordable,
    trying,
    write_results,
    write_whole,
)
from dmc_pixels import EVALUATION_SEED, TASKS, learning_of, make_latents, make_pixels
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from torch import nn

import jepa_rl.envs
from jepa_rl.agents import JEPAMPC, DroQPolicy, EvaluationCallback, play_episodes
from jepa_rl.agents.sb3.jepa_mpc import jepa_mpc_preset
from jepa_rl.agents.sb3.joint.algorithms import SAC_SETTINGS
from jepa_rl.agents.sb3.progress import LearningProgress
from jepa_rl.data import EpisodeStore, EpisodeView, WindowSampler
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.diagnostics.probes import fit_mlp_probe, r2_score
from jepa_rl.encoders.base import runs_of, windows_of
from jepa_rl.envs import collect, learn_world_model, wrap
from jepa_rl.objectives.augment import shifted
from jepa_rl.training import TrainConfig, descend, fit
from jepa_rl.world_model import WorldModel, WorldModelConfig

sys.path.insert(0, str(ROOT / "examples"))
import dream

RECORDS = ROOT / "benchmarks/results/latents_that_pay"
MADE = ("date", "machine", "commit", "code", "versions", "command")
COLUMNS = ("x", "cos", "sin", "velocity", "angular velocity")
ENCODER: dict[str, Any] = {"keypoints": 16, "widths": (64, 32), "narrow": 24, "coarse": 32}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "change": ("change", {}),
    "dense": ("dense", {}),
    "lewm": ("lewm", {}),
    "laptop": ("jepa", {"sigreg": 1.0, "inverse_dynamics": 2.0}),
}
CHOSEN = "change"
SHIFT = 3  # pixels, of the supervised encoder, as in the chosen objective
POLICIES: dict[str, Any] = {"DroQPolicy": DroQPolicy, "MlpPolicy": "MlpPolicy"}
FROZEN: dict[str, Any] = SAC_SETTINGS | {"learning_starts": 500, "gradient_steps": 2, "n_steps": 1}


@dataclass(frozen=True)
class Args:
    parts: tuple[Literal["probe", "frozen", "speed", "dream", "readme"], ...] = (
        "probe", "frozen", "speed", "dream", "readme",
    )  # fmt: skip
    updates: int = 1500
    batch_size: int = 128
    steps: int = 3
    """Of a window."""
    decisions: int = 12_500
    """Of SAC from state, whose training makes the data."""
    data_seed: int = 31
    seed: int = 41
    """Of the weights and batches; settings were chosen with data seed 21 and seed 0."""
    frozen_seeds: tuple[int, ...] = (51, 52, 53)
    """Of SAC on frozen latents; settings were chosen with seeds 0 and 1 on the encoder of another agent."""
    dream_seed: int = 31
    """Of the agent that learns in the dream; settings were chosen with 0 and 1."""
    readme_seeds: tuple[int, ...] = (61, 62, 63)
    """Of the README's world model and PPO."""
    quick: bool = False
    out: Path = Path("runs/latents_that_pay")


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, updates=40, decisions=1250, out=args.out / "quick")
        shutil.rmtree(args.out, ignore_errors=True)
    elif not trying():
        refuse_unrecordable()
    jepa_rl.envs.register_envs()
    records = args.out / "records" if args.quick or trying() else RECORDS
    for name in args.parts:
        found = (
            origin()
            | {"command": f"python benchmarks/latents_that_pay.py --parts {name}"}
            | PARTS[name](args)
        )
        records.mkdir(parents=True, exist_ok=True)
        write_whole(records / f"{name}.json", json.dumps(found, indent=2, default=plain) + "\n")
    print(write_results("latents_that_pay", collect_parts(records), quick=args.quick, collected=True))


def collect_parts(records: Path) -> dict[str, Any]:
    """The figures of all parts that are recorded, and what ``dmc_pixels.json`` says of trainings from pixels."""
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(records.glob("*.json"))}
    # The settings of the other parts stand in their own files.
    names = ("probe", "frozen", "speed", "dream", "readme")
    probed, fixed, timed, imagined, shown = (parts.get(name, {}) for name in names)
    payload = (
        without(probed, *MADE)
        | without(fixed, *MADE, "settings")
        | without(timed, *MADE, "settings", "dream_steps_per_second")
    )
    dreams = {"steps_per_second": timed.get("dream_steps_per_second")} | without(imagined, *MADE, "settings")
    found = recorded_results("dmc_pixels")
    ratios = {
        task: rows["sac_joint"]["mean"] / rows["sac_state"]["mean"]
        for task, rows in found.items()
        if rows.keys() >= {"sac_joint", "sac_state"}
    }
    rows = found.get("CartPole-v1", {})
    agents = {"dqn_joint": "sac_joint", "ppo_joint": "ppo_joint"}
    cartpole = {name: rows[method]["per_seed"] for name, method in agents.items() if method in rows}
    if shown:
        cartpole["ppo_frozen"] = [curve[-1] for curve in shown["ppo_curves"].values()]
    return payload | {
        "dream": dreams,
        "ratio_to_state": ratios,
        "cartpole": cartpole,
        **made_by(parts.values()),
    }


def without(part: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in names}


def broad_episodes(args: Args) -> EpisodeStore:
    task = TASKS["cartpole-swingup-fast"]
    env = make_pixels(task, keep_state=True)
    return broad_data(env, args.out / "episodes", args.decisions, task.gamma, args.data_seed)


def train_and_held(store: EpisodeStore) -> tuple[EpisodeView, list[int]]:
    """The episodes to train on, and the numbers of the others."""
    held = list(range(4, len(store), 5))
    return store.view([i for i in range(len(store)) if i not in held]), held


def probe(args: Args) -> dict[str, Any]:
    store = broad_episodes(args)
    train, held = train_and_held(store)
    held_out, late = store.view(held), store.view(held[-10:])
    print(f"{len(store)} episodes, returns {[round(float(store.episode(i).rewards.sum())) for i in held]}")

    found: dict[str, Any] = {}
    for name in ("supervised", *OBJECTIVES):
        began = time.perf_counter()
        world = (
            supervised(args, train) if name == "supervised" else learned(args, train, *OBJECTIVES[name], name)
        )
        seconds = time.perf_counter() - began
        found[name] = scores(world.eval(), train, {"r2": held_out, "late_r2": late}) | {
            "train_seconds": seconds
        }
        print(name, {key: np.round(value, 3).tolist() for key, value in found[name].items()}, flush=True)
    return {
        "columns": COLUMNS, "probe_r2": found[CHOSEN]["r2"], "supervised_r2": found["supervised"]["r2"],
        "chosen": CHOSEN, "objectives": found, "episodes": len(store),
        "settings": {name: getattr(args, name) for name in ("updates", "batch_size", "steps", "data_seed", "seed")},
    }  # fmt: skip


def frozen(args: Args) -> dict[str, Any]:
    """Returns of ten episodes after every 10,000 frames, by policy and seed."""
    task = TASKS["cartpole-swingup-fast"]
    world = learned(args, train_and_held(broad_episodes(args))[0], *OBJECTIVES[CHOSEN], CHOSEN).eval()
    make = partial(make_latents, task, world)
    curves: dict[str, dict[int, list[float]]] = {name: {} for name in POLICIES}
    told: dict[str, Any] = {}
    for seed in args.frozen_seeds[: 1 if args.quick else None]:
        for name, policy in POLICIES.items():
            path = args.out / "frozen" / f"{name}_{seed}.json"
            every, episodes = (400, 1) if args.quick else (10_000 // task.repeat, 10)
            agent = SAC(
                policy,
                Monitor(make()),
                seed=seed,
                gamma=task.gamma,
                device="cpu",
                **FROZEN | {"buffer_size": args.decisions},
            )
            curve = EvaluationCallback(make, every, episodes, EVALUATION_SEED, path)
            curves[name][seed] = learned_curve(agent, args.decisions, curve, "decision")
            told = learning_of(agent)
            print(name, seed, np.round(curves[name][seed]).tolist(), flush=True)
    return {
        "frozen_return": float(np.mean([curve[-1] for curve in curves["DroQPolicy"].values()])),
        "frozen_curves": curves,
        "frozen_objective": CHOSEN,
        "settings": {"data_seed": args.data_seed, "seed": args.seed, "decisions": args.decisions, "agent": told},
    }  # fmt: skip


def learned_curve(agent: BaseAlgorithm, steps: int, curve: EvaluationCallback, unit: str) -> list[float]:
    """Mean return of each evaluation of ``curve`` while the agent learns, the first before training."""
    agent.learn(steps, callback=[curve, LearningProgress(type(agent).__name__, unit)])
    return [float(np.mean(entry["returns"])) for entry in curve.results]


def speed(args: Args) -> dict[str, Any]:
    short = {"rounds": 1, "decisions": 10, "warm": 130} if args.quick else {}
    found = frames_per_second(**short)
    agent = JEPAMPC.from_weights(
        "hub:cartpole-swingup", make_pixels(TASKS["cartpole-swingup-fast"]), device="cpu"
    )
    model = agent.policy.average
    venv = gym.vector.SyncVectorEnv([lambda: make_pixels(TASKS["cartpole-swingup-fast"])] * 2)
    starts = LatentEpisodes.encode(agent.world, collect(venv, args.out / "starts", episodes=2, seed=0))
    venv.close()
    rates = [dream.dream_speed(model, starts) for _ in range(5)]
    return found | {"dream_steps_per_second": median(rates)}


class Dreamt(NamedTuple):
    """A world that is dreamt of.

    Attributes:
        env_id: Gymnasium id.
        action_repeat: environment steps of a decision.
        decisions: that the world model learned from, with JEPAMPC.
        world: its weights; None where they are learned here.
    """

    env_id: str
    action_repeat: int
    decisions: int
    world: str | None = None


ROOMS = "jepa_rl_benchmarks/OneGoal-v0"
DREAMT = {
    "cartpole-swingup": Dreamt("dmc/cartpole-swingup-v0", 8, 12_500, "hub:cartpole-swingup"),
    "two-rooms": Dreamt(ROOMS, 2, 6_000),
}


class OneGoal(gym.Wrapper):
    """Two Rooms, one layout and one goal, starts anywhere."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options={"goal": (50.0, 14.0)} | (options or {}))


def make_rooms(**options: Any) -> gym.Env:
    """With the environment's own dense reward."""
    return OneGoal(jepa_rl.envs.TwoRoomsEnv(reward="dense", start="any", wall=32.0, door=32.0, **options))


def dreamt(args: Args) -> dict[str, Any]:
    """SAC that was trained in a dream alone, and SAC with the same settings that was trained in the world, on the same
    latents, for as many decisions as world model and starts took; both in the world."""
    if ROOMS not in gym.registry:
        gym.register(ROOMS, make_rooms, max_episode_steps=100)
    found: dict[str, Any] = {}
    for name, task in DREAMT.items():
        out = args.out / f"dream-{name}"
        world = task.world or learned_world(args, task, out.with_suffix(".safetensors"))
        asked = dream.Args(
            world, task.env_id, task.action_repeat, seed=args.dream_seed, quick=args.quick, out=out
        )
        dream.main(asked)
        result = json.loads((out / "results.json").read_text())
        awake = trained_awake(asked, task.decisions + result["start_frames"] // task.action_repeat)
        told = {key: result[key] for key in ("dream_steps", "start_frames", "train_seconds")}
        returns = result["returns"] | {"the same agent, trained in the world": awake}
        mean = {key: float(np.mean(own)) for key, own in returns.items()}
        found[name] = told | {
            "ratio": mean["dreamer"] / mean["the same agent, trained in the world"],
            "ratio_to_planner": mean["dreamer"] / mean["planner"],
            "mean_returns": mean, "returns": returns, "settings": without(asdict(asked), "out", "quick"),
        }  # fmt: skip
    return {
        "return_ratio": min(own["ratio"] for own in found.values()),
        "seed": args.dream_seed,
        "tasks": found,
    }


def learned_world(args: Args, task: Dreamt, file: Path) -> str:
    """Weights of JEPAMPC, trained in the world."""
    env = dream.make_env(dream.Args(env_id=task.env_id, action_repeat=task.action_repeat))
    decisions = 60 if args.quick else task.decisions
    agent = JEPAMPC(
        "CnnPolicy", env, gamma=0.95, gradient_steps=1, learning_starts=min(500, decisions // 2),
        buffer_size=decisions, seed=args.dream_seed, device="cpu", **jepa_mpc_preset("laptop"),
    )  # fmt: skip
    agent.learn(decisions, callback=LearningProgress("JEPAMPC", "decision"))
    file.parent.mkdir(parents=True, exist_ok=True)
    agent.save_weights(file)
    return str(file)


def trained_awake(asked: dream.Args, decisions: int) -> list[float]:
    """Returns of the dreamer's twin, which learned in the world: an update a decision."""
    env = dream.make_env(asked)
    agent = JEPAMPC.from_weights(asked.world, env, device="cpu")
    decisions = 60 if asked.quick else decisions
    sac = dream.make_sac(
        Monitor(wrap(env, agent.world)), asked, agent.policy.average.discount, buffer_size=decisions,
        learning_starts=min(250, decisions // 2), gradient_steps=1,
    )  # fmt: skip
    sac.learn(decisions, callback=LearningProgress("SAC", "decision"))
    seeds = [dream.EVALUATION_SEED + i for i in range(1 if asked.quick else asked.episodes)]
    return play_episodes(sac, lambda: wrap(dream.make_env(asked), agent.world), seeds).returns.tolist()


def readme(args: Args) -> dict[str, Any]:
    """Returns of ten episodes after every 10,000 steps, by seed."""
    steps, every, episodes = (600, 300, 1) if args.quick else (50_000, 10_000, 10)
    short = {"steps": 500, "updates": 20, "refine_updates": 10} if args.quick else {}
    curves = {}
    for seed in args.readme_seeds[: 1 if args.quick else None]:
        out = args.out / "readme" / str(seed)
        world = learn_world_model("CartPole-v1", out, seed=seed, progress=False, **short)
        make = partial(wrap, "CartPole-v1", world)
        curve = EvaluationCallback(make, every, episodes, EVALUATION_SEED, out / "curve.json")
        agent = PPO("MlpPolicy", make(), seed=seed, device="cpu")
        curves[seed] = learned_curve(agent, steps, curve, "step")
        print("PPO on frozen latents", seed, np.round(curves[seed]).tolist(), flush=True)
    return {"ppo_curves": curves, "settings": {"steps": steps}}


def make_world(args: Args, spec: Any, objective: str, options: dict[str, Any]) -> WorldModel:
    torch.manual_seed(args.seed)
    config = WorldModelConfig(
        spec, latent_dim=64, encoder="frames", encoder_options=ENCODER,
        dynamics_options={"width": 192, "depth": 2}, objective=objective, objective_options=options,
    )  # fmt: skip
    return WorldModel(config)


def learned(args: Args, train: EpisodeView, objective: str, options: dict[str, Any], name: str) -> WorldModel:
    sampler = WindowSampler(train, steps=args.steps)
    world = make_world(args, sampler.spec, objective, options)
    settings = TrainConfig(steps=args.updates, batch_size=args.batch_size, seed=args.seed)
    fit(world, sampler, settings, args.out / name, progress=False)
    return world


def supervised(args: Args, train: EpisodeView) -> WorldModel:
    """The same encoder, batches, optimiser and schedule, with the true state as target and random shifts."""
    sampler = WindowSampler(train, steps=args.steps)
    world = make_world(args, sampler.spec, "lewm", {})
    states = torch.from_numpy(np.concatenate([train.episode(i).extras["state"] for i in range(len(train))]))
    mean, std = states.mean(0), states.std(0)
    head = nn.Linear(world.latent_dim, len(mean))
    learning = [*world.encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=args.updates, pct_start=0.05)
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    world.train()
    for _ in range(args.updates):
        windows = sampler.draw(args.batch_size, rng)
        target = (torch.from_numpy(np.asarray(sampler.extra("state", windows))) - mean) / std
        seen = shifted(runs_of(world.encoder, sampler.batch(windows).observations), SHIFT, generator)
        error = (head(windows_of(world.encoder, seen, args.steps + 1)) - target).square().mean()
        descend(error, [optimizer], learning, 1.0)
        schedule.step()
    return world


def scores(world: WorldModel, train: EpisodeView, views: dict[str, EpisodeView]) -> dict[str, list[float]]:
    """R2 of one probe in each of the views."""
    probe = fit_mlp_probe(*latents(world, train), generator=torch.Generator().manual_seed(0))
    found = {}
    for name, view in views.items():
        z, states = latents(world, view)
        found[name] = r2_score(probe(z), states).tolist()
    return found


@torch.no_grad()
def latents(world: WorldModel, episodes: EpisodeView) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and true states of all steps."""
    sampler, z, states = WindowSampler(episodes, steps=1), [], []
    for windows in sampler.ordered(512):
        z.append(world.encode(sampler.batch(windows).pixels[:, 0]))
        states.append(torch.from_numpy(np.asarray(sampler.extra("state", windows))[:, 0]).float())
    return torch.cat(z), torch.cat(states)


PARTS = {"probe": probe, "frozen": frozen, "speed": speed, "dream": dreamt, "readme": readme}

if __name__ == "__main__":
    main(tyro.cli(Args))
