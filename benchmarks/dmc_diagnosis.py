"""Why JEPAMPC's return is what it is: encoder, dynamics, reward, value or search?

    python benchmarks/dmc_diagnosis.py
    python benchmarks/dmc_diagnosis.py --tasks cartpole-swingup-fast --seeds 0
    python benchmarks/dmc_diagnosis.py --quick

Takes runs that ``dmc_pixels.py`` left in ``--out`` (one that is missing or not finished is trained first, up to two
hours) and plays episodes that neither training nor its evaluation saw; what other runs gave stays in the results.
``--quick`` looks at a moment's training on CartPole-v1. Told are:

- encoder: how well a small perceptron reads each number of the true state from the latents, on other episodes than it
  was fitted on (R2; 1 is all of it);
- dynamics: error of a latent k steps ahead, relative to that of predicting no change;
- reward: mean absolute error of the k-th one, from a latent predicted k - 1 steps ahead, and the standard deviation of
  the rewards beside it;
- value: what plans promised against the discounted return that followed;
- search: the return with eight times the candidates, and with the policy prior alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from _record import origin, recorded_results, refuse_unrecordable, trying, write_results
from dmc_pixels import QUICK, TASKS, Args, Task, make_jepa_mpc, make_pixels, run_jepa_mpc

import jepa_rl.envs
from jepa_rl.agents import JEPAMPC
from jepa_rl.agents.sb3.jepa_mpc.monitor import PlanRecord, prediction_errors
from jepa_rl.agents.sb3.jepa_mpc.resume import restore_policy
from jepa_rl.diagnostics import fit_mlp_probe, r2_score
from jepa_rl.files import load_tensors

KIND = ("jepa_mpc run",)
SEED = 4_000_000  # of the first episode; neither training nor evaluation has it


@dataclass(frozen=True)
class DiagnosisArgs:
    tasks: tuple[str, ...] = ("reacher-easy-fast",)
    seeds: tuple[int, ...] = (1, 2)
    episodes: int = 10
    preset: str = "laptop"
    device: str = "auto"
    out: Path = Path("runs/dmc_pixels")
    quick: bool = False


def main(args: DiagnosisArgs) -> None:
    if args.quick:
        args = replace(args, tasks=("CartPole-v1",), seeds=(0,), episodes=2, out=args.out / "diagnosis_quick")
    counted = not (args.quick or trying()) and (args.episodes, args.preset) == (
        DiagnosisArgs.episodes,
        DiagnosisArgs.preset,
    )
    if counted:
        refuse_unrecordable()
    results = recorded_results("dmc_diagnosis") if counted else {}
    for name in args.tasks:
        for seed in args.seeds:
            found = diagnose(args, name, seed)
            results.setdefault(name, {})[f"seed_{seed}"] = found | origin()
            print(name, seed, *(f"{key}: {value}" for key, value in found.items()), sep="\n  ")
    payload = {"episodes": args.episodes, "results": results}
    print(write_results("dmc_diagnosis", payload, quick=not counted and not trying(), collected=True))


def diagnose(args: DiagnosisArgs, name: str, seed: int) -> dict[str, Any]:
    task, episodes = TASKS[name], args.episodes
    settings = Args(preset=args.preset, device=args.device, out=args.out)
    if args.quick:
        task, settings = replace(task, frames=QUICK["frames"]), replace(settings, **QUICK)
    folder = args.out / name / "jepa_mpc" / f"seed_{seed}"
    checkpoint, decisions = folder / "run/checkpoint.safetensors", task.decisions
    tensors, header = load_tensors(checkpoint, KIND) if checkpoint.exists() else ({}, {"num_timesteps": 0})
    if header["num_timesteps"] < decisions:
        run_jepa_mpc(settings, task, folder, seed)
        tensors, _ = load_tensors(checkpoint, KIND)
    agent = make_jepa_mpc(settings, task, folder, seed)  # its replay stays empty
    restore_policy(agent, tensors)
    played = play(agent, task, episodes)
    found: dict[str, Any] = {"return": rounded(played["reward"].sum(0).mean())}
    planner = agent.policy.planner
    agent.policy.planner = replace(planner, samples=8 * planner.samples, elites=8 * planner.elites)
    found["return_with_8x_candidates"] = rounded(play(agent, task, episodes)["reward"].sum(0).mean())
    agent.policy.planner = planner
    prior = play(agent, task, episodes, plan=False)
    found["return_of_the_policy_prior"] = rounded(prior["reward"].sum(0).mean())
    return found | promises(agent, played) | predictions(agent, played) | probes(played)


@torch.no_grad()
def play(agent: JEPAMPC, task: Task, episodes: int, plan: bool = True) -> dict[str, np.ndarray]:
    """Episodes side by side, "t b ..."; those that end early repeat their last step with no reward."""
    policy, envs = agent.policy, [make_pixels(task, keep_state=True) for _ in range(episodes)]
    policy.set_training_mode(False)
    seen = [env.reset(seed=SEED + i)[0] for i, env in enumerate(envs)]
    state, rows, over = None, [], np.zeros(episodes, bool)
    while not over.all():
        pixels = torch.from_numpy(np.stack([o["pixels"] for o in seen])).to(agent.device)
        z = policy.average.encode({"observation": pixels})
        if plan:
            actions, state = policy.act({"observation": pixels}, state, None, deterministic=True)
            assert policy.last_plan is not None
            value = -policy.last_plan.cost.cpu().numpy()
        else:
            actions, value = policy.average.policy.mode(z).cpu().numpy(), np.zeros(episodes, np.float32)
        before, reward = np.stack([o["state"] for o in seen]), np.zeros(episodes, np.float32)
        was_over, ended = over.copy(), np.zeros(episodes, bool)
        for i, raw in enumerate(policy.action.decode(actions)):
            if not over[i]:
                seen[i], paid, ended[i], truncated, _ = envs[i].step(raw)
                reward[i], over[i] = paid, ended[i] or truncated
        rows.append((z.cpu().numpy(), actions, reward, before, value, ~was_over, ended, over.copy()))
    for env in envs:
        env.close()
    names = ("latent", "action", "reward", "state", "value", "valid", "ended", "over")
    return {name: np.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def promises(agent: JEPAMPC, played: dict[str, np.ndarray]) -> dict[str, float]:
    """Of plans, against the returns that followed."""
    found: dict[str, list[float]] = {}
    for i in range(played["reward"].shape[1]):
        record, steps = PlanRecord(1, agent.gamma), int(played["valid"][:, i].sum())
        for t in range(steps):
            record.promised(played["value"][t, i : i + 1])
            paid = record.paid(*(played[name][t, i : i + 1] for name in ("reward", "ended", "over")))
            for name, value in paid.items():
                found.setdefault(name.replace("plan/", "plan_"), []).append(value)
    return {name: rounded(np.mean(values)) for name, values in found.items()}


@torch.no_grad()
def predictions(agent: JEPAMPC, played: dict[str, np.ndarray], steps: int = 3) -> dict[str, float]:
    """Errors of the model on what it played, from every state whose next ``steps`` are there."""
    z, actions, rewards = (
        torch.from_numpy(played[name]).to(agent.device) for name in ("latent", "action", "reward")
    )
    whole = torch.from_numpy(played["valid"][steps:])  # b of the windows that start at each t

    def windows(x: torch.Tensor, length: int) -> torch.Tensor:
        """ "t b ..." -> "m length ..."."""
        return torch.stack([x[k : k + len(x) - steps][whole] for k in range(length)], dim=1)

    taken, paid = windows(actions, steps), windows(rewards, steps)
    errors = prediction_errors(
        agent.policy.average, windows(z, steps + 1), taken, paid, torch.ones_like(paid, dtype=torch.bool)
    )
    return {name: rounded(value) for name, value in (errors | {"reward_std": paid[:, 0].std()}).items()}


def probes(played: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """R2 of every number of the state, fitted on one half of the episodes and read on the other."""
    half = played["latent"].shape[1] // 2
    sides = []
    for episodes in (slice(None, half), slice(half, None)):
        valid = played["valid"][:, episodes]
        sides.append([torch.from_numpy(played[n][:, episodes][valid]).float() for n in ("latent", "state")])
    (z, state), (z_other, state_other) = sides
    probe = fit_mlp_probe(z, state, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return {"state_r2": [rounded(value) for value in r2_score(probe(z_other), state_other)]}


def rounded(value: Any) -> float:
    return round(float(value), 3)


if __name__ == "__main__":
    jepa_rl.envs.register_envs()
    main(tyro.cli(DiagnosisArgs))
