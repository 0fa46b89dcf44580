"""How fast CEM plans, against the CEM solver of stable-worldmodel 0.1.1 on the same predictor.

Both sides plan with one network, the predictor of LeWorldModel in its published sizes: the peer through
its own ``CEMSolver``, ``LeWM`` and ``Predictor``, this library through ``CEM`` and
``CausalTransformerDynamics`` holding the converted weights. Samples, elites, iterations, horizon, cost
(squared distance of the last latent), starts, goals, action bounds and threads are the same; the peer
solves at the fastest of its batch sizes. Every case runs in float32 on both sides and under bfloat16
autocast on both sides; the headline ratios are those in float32, the precision that the peer runs in. What
``MPCAgent(precision="bfloat16")`` gives against the peer as published stands beside them. Start and
goal are given as latents: encoding two pictures is the same work for both and is left out. Weights are
random (seeded); each goal is a latent that some plan within the bounds reaches, and both plans are
priced by the peer's own model. A smaller transformer runs beside the published one.

``ratio_own_...`` compares what one would use: the peer's solver with the published predictor against this library's CEM
with its default predictor, a residual perceptron. The functions differ, so both are trained on the same latents of one
task (``_planning_task.py``, kept in ``runs/planning_speed/task``). ``success_peer`` and ``success_own`` say how many of
the same goals each reaches; the times are of starts and goals of that task, in float32.

The first run installs the peer into ``runs/planning_speed/peer``. Its ``__init__`` files import much that
no solver uses (torchvision, lancedb); they are passed over and the modules in use run unchanged.

    python benchmarks/planning_speed.py [--quick]
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from _planning_peer import ACTION, BLOCK, RUNS, Sizes, converted, import_peer, make_peer_model, randomise
from _planning_task import QUICK, Budget, Episodes, Task, make_task, rollout_errors
from _record import refuse_unrecordable, trying, write_results
from torch import Tensor, nn

from jepa_rl.agents import CEM
from jepa_rl.costs import GoalCost
from jepa_rl.diagnostics import wilson_interval
from jepa_rl.types import Dynamics


@dataclass(frozen=True)
class Args:
    quick: bool = False
    """Seconds instead of minutes: fewer samples, iterations and repetitions."""
    threads: int = 2
    samples: int = 300
    elites: int = 30
    iterations: int = 6
    horizon: int = 5
    repetitions: int = 3
    episodes: int = 48
    """Of the task on which both sides are trained."""
    budget: Budget = field(default_factory=Budget)
    """Of that training."""
    seed: int = 0


@dataclass
class Contest:
    """Both sides on the same planning problems."""

    peer: SimpleNamespace
    model: nn.Module
    dynamics: Dynamics
    args: Args

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def problem(self, environments: int) -> tuple[Tensor, Tensor]:
        """Starts and goals; each goal is reached by some plan within the bounds."""
        generator = torch.Generator().manual_seed(self.args.seed + environments)
        z = torch.randn(environments, self.dynamics.latent_dim, generator=generator)
        shape = (environments, self.args.horizon, self.dynamics.action_dim)
        plan = 2 * torch.rand(shape, generator=generator) - 1
        return z, self.dynamics.rollout(z, plan)[:, 0, -1]

    def theirs(self, z: Tensor, goal: Tensor, batch_size: int, seed: int, iterations: int) -> Tensor:
        args, n = self.args, len(z)
        solver = self.peer.CEMSolver(
            self.model, batch_size, args.samples, n_steps=iterations, topk=args.elites, seed=seed
        )
        config = SimpleNamespace(horizon=args.horizon, action_block=BLOCK)
        solver.configure(action_space=gym.spaces.Box(-1, 1, (n, ACTION), np.float32), n_envs=n, config=config)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its time
            return solver.solve(self._info(z, goal))["actions"]

    def ours(self, z: Tensor, goal: Tensor, seed: int) -> Tensor:
        args = self.args
        planner = CEM(args.horizon, args.samples, args.elites, args.iterations, init_std=1.0, min_std=0.0)
        cost = GoalCost(goal, reduce="last", distance="mse")
        return planner.plan(self.dynamics, cost, z, generator=torch.Generator().manual_seed(seed)).actions

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def price(self, z: Tensor, goal: Tensor, plans: Tensor) -> Tensor:
        """Cost of one plan for each environment, by the peer's own model in float32."""
        info = {k: v[:, None] for k, v in self._info(z, goal).items()}
        return self.model.get_cost(info, plans[:, None].float())[:, 0]

    def _info(self, z: Tensor, goal: Tensor) -> dict[str, Tensor]:
        action = z.new_zeros(len(z), 1, self.dynamics.action_dim)
        return {"pixels": z[:, None], "goal": goal[:, None], "action": action}

    @torch.no_grad()
    def check_same_function(self) -> float:
        """Largest difference of the two rollouts. Raises RuntimeError if it is no rounding error."""
        z, _ = self.problem(8)
        plans = 2 * torch.rand(8, 2 * self.args.horizon, self.dynamics.action_dim) - 1
        info = {k: v[:, None] for k, v in self._info(z, z).items()}
        expected = self.model.rollout(info, plans[:, None])["predicted_emb"][:, 0]
        difference = (self.dynamics.rollout(z, plans)[:, 0] - expected).abs().max().item()
        if difference > 1e-4:
            raise RuntimeError(f"the converted predictor is another function: off by {difference:.2e}")
        return difference

    def run(self, environments: int) -> dict[str, Any]:
        """Seconds of both, interleaved, and what their plans cost."""
        z, goal = self.problem(environments)
        sizes = [s for s in (1, 2, 4, 8, 16) if s <= environments]
        sweep = {}
        if len(sizes) > 1:
            sweep = {s: seconds(lambda s=s: self.theirs(z, goal, s, 0, 1))[0] for s in sizes}
        best = min(sweep, key=sweep.__getitem__) if sweep else 1
        times, costs = {"theirs": [], "ours": []}, {"theirs": [], "ours": []}
        for seed in range(self.args.repetitions):
            for side, plan in (
                ("theirs", lambda seed=seed: self.theirs(z, goal, best, seed, self.args.iterations)),
                ("ours", lambda seed=seed: self.ours(z, goal, seed)),
            ):
                took, plans = seconds(plan)
                times[side].append(took)
                costs[side].append(self.price(z, goal, plans).mean().item())
        ratios = [t / o for t, o in zip(times["theirs"], times["ours"], strict=True)]
        return {
            "ratio": median(ratios),
            "ratios": ratios,
            "peer_seconds": median(times["theirs"]),
            "seconds": median(times["ours"]),
            "peer_batch_size": best,
            "peer_seconds_by_batch_size": sweep,
            "peer_costs": costs["theirs"],
            "costs": costs["ours"],
            "cost_of_standing_still": self.price(z, goal, torch.zeros_like(plans)).mean().item(),
        }


PUBLISHED = Sizes()
LAPTOP = Sizes(width=128, depth=3, heads=4, head_dim=32, mlp_width=512, head_width=512)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer


def compete(peer: SimpleNamespace, sizes: Sizes, args: Args, bfloat16: bool = False) -> dict[str, Any]:
    torch.manual_seed(args.seed)
    model = randomise(make_peer_model(peer, sizes))
    contest = Contest(peer, model, converted(model, sizes), args)
    difference = contest.check_same_function()
    result: dict[str, Any] = {"sizes": asdict(sizes), "largest_difference_of_rollouts": difference}
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        contest.theirs(*contest.problem(1), 1, 0, 1)  # warm up
        contest.ours(*contest.problem(1), 0)
        for environments in (1, 16):
            result[f"{environments}_env"] = contest.run(environments)
    return result


@dataclass
class OwnContest(Contest):
    """Each side with its own trained predictor, on starts and goals of the task."""

    task: Task
    episodes: Episodes

    def problem(self, environments: int) -> tuple[Tensor, Tensor]:
        z, goal = self.episodes.latents()
        return z[:environments], goal[:environments]

    def success(self, batch_size: int) -> dict[str, Any]:
        """How many goals each side reaches."""
        iterations = self.args.iterations
        found = {
            "own": self.episodes.play(self.ours),
            "peer": self.episodes.play(
                lambda z, goal, seed: self.theirs(z, goal, min(batch_size, len(z)), seed, iterations)
            ),
        }
        rates: dict[str, Any] = {}
        for side, reached in found.items():
            rates[f"success_{side}"] = sum(reached) / len(reached)
            rates[f"success_{side}_ci95"] = wilson_interval(sum(reached), len(reached))
            rates[f"reached_{side}"] = [int(goal) for goal in reached]
        return rates


def compete_with_own(peer: SimpleNamespace, args: Args) -> dict[str, Any]:
    """The published predictor through the peer's solver against our default predictor through ours."""
    torch.manual_seed(args.seed)
    model = make_peer_model(peer, PUBLISHED)
    folder = RUNS / ("task_quick" if args.quick else "task")
    task = make_task(folder, args.budget, model, PUBLISHED.width)
    contest = OwnContest(peer, model, task.own, args, task, Episodes(task.world, max(16, args.episodes)))
    result: dict[str, Any] = {"training": task.made, "sizes_own": task.world.config.dynamics_options}
    result["rollout_errors_peer"] = rollout_errors(converted(model, PUBLISHED), task.windows)
    result["rollout_errors_own"] = rollout_errors(task.own, task.windows)
    print({name: result[name] for name in ("rollout_errors_peer", "rollout_errors_own")})
    contest.theirs(*contest.problem(1), 1, 0, 1)  # warm up
    contest.ours(*contest.problem(1), 0)
    for environments in (1, 16):
        result[f"{environments}_env"] = contest.run(environments)
        report("own predictors", environments, result[f"{environments}_env"])
    result |= contest.success(result["16_env"]["peer_batch_size"])
    print(f"goals reached: {result['success_peer']:.2f} and {result['success_own']:.2f}")
    return result


def report(kind: str, environments: int, r: dict[str, Any]) -> None:
    print(
        f"{kind:20} {environments:3} env: {r['peer_seconds']:8.3f} s -> {r['seconds']:8.3f} s, "
        f"{r['ratio']:.2f}x; costs {median(r['peer_costs']):.4g} and {median(r['costs']):.4g} "
        f"(standing still {r['cost_of_standing_still']:.4g})",
        flush=True,
    )


def main(args: Args) -> None:
    if not (args.quick or trying()):
        refuse_unrecordable()
    if args.quick:
        args = replace(args, samples=32, elites=4, iterations=2, repetitions=1, episodes=16, budget=QUICK)
    torch.set_num_threads(args.threads)
    peer = import_peer()
    cases = {}
    for name, sizes in (("published", PUBLISHED), ("laptop", LAPTOP)):
        for bfloat16 in (False, True):
            kind = f"{name}_{'bfloat16' if bfloat16 else 'float32'}"
            cases[kind] = compete(peer, sizes, args, bfloat16)
            for n in (1, 16):
                report(kind, n, cases[kind][f"{n}_env"])
    payload = {"settings": asdict(args), "cases": cases}
    for n, key in ((1, "ratio_1_env"), (16, "ratio_16_envs")):
        for precision, suffix in (("float32", ""), ("bfloat16", "_bfloat16")):
            payload[key + suffix] = cases[f"published_{precision}"][f"{n}_env"]["ratio"]
            print(f"published predictor, {precision}, {n} env: {payload[key + suffix]:.2f}x")
        single, half = (cases[f"published_{precision}"][f"{n}_env"] for precision in ("float32", "bfloat16"))
        payload[key + "_bfloat16_against_float32"] = single["peer_seconds"] / half["seconds"]
    cases["own"] = compete_with_own(peer, args)
    payload |= {name: cases["own"][name] for name in ("success_peer", "success_own")}
    for n, key in ((1, "ratio_own_1_env"), (16, "ratio_own_16_envs")):
        payload[key] = cases["own"][f"{n}_env"]["ratio"]
        print(f"published predictor against ours, float32, {n} env: {payload[key]:.2f}x")
    print(write_results("planning_speed", payload, quick=args.quick))


if __name__ == "__main__":
    main(tyro.cli(Args))
