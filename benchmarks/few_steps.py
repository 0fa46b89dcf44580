"""Ways to few evaluations of a flow, on one network and one budget: which of them says what may happen?

    python benchmarks/few_steps.py            ten minutes on one core for each seed
    python benchmarks/few_steps.py --quick    a minute

TableEdge's true states (x, y, fallen), no pixels, fresh transitions in every batch. Beside plain flow matching each
method trains jumps over parts of the flow: by the energy score of what they lead to (``FlowDynamics``), shortcut models
(Frans et al. 2025, arXiv:2410.12557: a jump is two jumps of half the size) and mean flow (Geng et al. 2025,
arXiv:2505.13447: a jump is the average velocity, whose identity gives its target). Error of the fall probability over
pushes near the edge, and energy score over the true sampler's, for 1, 2, 4 and 50 evaluations, means over seeds.

Then options of the sampler, on one network for each: paths of four pushes drawn one state after the other, as Diffusion
Forcing's pyramid and all at once (``lag``), scored as whole paths; and classifier-free guidance by the push
(``drop``, ``guidance``), scored as above.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import tyro
from _branching_scores import score
from _record import ROOT, Records, made_by, note_process, refuse_unrecordable, trying, write_results
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from branching_futures import independent_futures, pushes_near_the_edge

from jepa_rl.dynamics import FlowDynamics
from jepa_rl.dynamics.flow import FEW_EVALUATIONS, jump, levels_of, shifted
from jepa_rl.envs.worlds import table_edge_rules as rules


@dataclass(frozen=True)
class Args:
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of training; settings were chosen on 0, and all are scored on the same pushes."""
    updates: int = 3000
    batch: int = 512
    pushes: int = 400
    futures: int = 128
    quick: bool = False
    out: Path = Path("runs/few_steps")


QUICK = dict(seeds=(1,), updates=30, pushes=40, futures=16)
EVALUATIONS = (*FEW_EVALUATIONS, 50)


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, **QUICK, out=args.out / "quick")
        shutil.rmtree(args.out, ignore_errors=True)
    kept = records(args)
    if kept.counted:
        refuse_unrecordable()
    for seed in args.seeds:
        if kept.read(seed) is None:
            processes = note_process(args.out / f"seed_{seed}")
            kept.write(seed, run_seed(args, seed), processes)
    runs = kept.all()
    found = [run["found"] for run in runs.values()]
    results = {"mean": averaged(found), "per_seed": found, "evaluations": EVALUATIONS, "seeds": list(runs)}
    results |= {"settings": kept.settings, **made_by(runs.values())}
    print(json.dumps(results["mean"], indent=1))
    print(write_results("few_steps", results, quick=not kept.counted and not trying(), collected=True))


def records(args: Args) -> Records:
    names = ("updates", "batch", "pushes", "futures")
    settings, own = ({name: getattr(a, name) for name in names} for a in (args, Args()))
    counted = settings == own and not (args.quick or trying())
    folder = ROOT / "benchmarks/results/few_steps" if counted else args.out / "records"
    return Records(folder, settings, counted)


def run_seed(args: Args, seed: int) -> dict[str, Any]:
    """All methods and options of one seed."""
    found: dict[str, Any] = {}
    for name, method in METHODS.items():
        found[name] = measure(args, *learn(args, method, seed), seed)
        print(seed, name, json.dumps(found[name]), flush=True)
    found |= {"paths": paths(args, seed), "guidance": guidance(args, seed)}
    print(seed, json.dumps({key: found[key] for key in ("paths", "guidance")}), flush=True)
    return {"found": found}


# -- methods ----------------------------------------------------------------------------------------


class Jumps(FlowDynamics):
    """A flow whose jumps are trained by another loss in place of the energy score's."""

    def _step(
        self, x: Tensor, before: Tensor, steering: Tensor, level: Tensor, size: Tensor | float
    ) -> Tensor:
        modulation = self.network.modulations(steering, level, 0.0, size)
        return self.predict_clean(self.network, x, before, 0.0, modulation)[0]

    def jump_loss(self, path: Tensor, actions: Tensor, generator: torch.Generator | None) -> Tensor:
        before, z = path[:, None, :1], path[:, None, 1:2]
        return self._jump_loss(before, z, self.steering(actions[:, :1]), generator)

    def _jump_loss(self, before: Tensor, z: Tensor, steering: Tensor, g: torch.Generator | None) -> Tensor:
        raise NotImplementedError


class Shortcut(Jumps):
    def _jump_loss(self, before: Tensor, z: Tensor, steering: Tensor, g: torch.Generator | None) -> Tensor:
        shift = self.settings.training.shift
        known = [pair for count in FEW_EVALUATIONS for pair in pairwise(levels_of(count, shift))]
        chosen = torch.tensor(known)[torch.randint(len(known), (len(z),), generator=g)]
        level, to = (part[:, None, None, None] for part in chosen.unbind(1))
        middle = (level + to) / 2
        x = torch.lerp(z, torch.randn(z.shape, generator=g), level)
        # The smallest halves are steps of the plain flow.
        half = torch.where(level - to > min(a - b for a, b in known) + 1e-4, middle - to, 0.0)
        with torch.no_grad():
            there = jump(x, self._step(x, before, steering, level, half), level, middle)
            there = jump(there, self._step(there, before, steering, middle, half), middle, to)
            target = (there - x * (to / level)) / (1 - to / level)
        error = self._step(x, before, steering, level, level - to) - target
        return (error / level).square().mean()


class MeanFlow(Jumps):
    def _jump_loss(self, before: Tensor, z: Tensor, steering: Tensor, g: torch.Generator | None) -> Tensor:
        level = shifted(torch.randn(len(z), 1, 1, 1, generator=g).sigmoid(), self.settings.training.shift)
        level = level.clamp(0.02, 0.999)
        size = level * torch.rand(level.shape, generator=g)
        noise = torch.randn(z.shape, generator=g)
        x, velocity = torch.lerp(z, noise, level), noise - z

        def average(x: Tensor, level: Tensor, size: Tensor) -> Tensor:
            return (x - self._step(x, before, steering, level, size)) / level

        ones = torch.ones_like(level)
        found, change = torch.func.jvp(average, (x, level, size), (velocity, ones, ones))
        off = found - (velocity - size * change).detach()
        error = off.square().sum(-1, keepdim=True)
        return (error / (error.detach() + 1e-2)).mean()  # their adaptive weight


SETTINGS: dict[str, Any] = dict(latent_dim=3, action_dim=2, width=64)
METHODS: dict[str, Callable[[], FlowDynamics]] = {
    "flow": partial(FlowDynamics, **SETTINGS, energy=0.0),
    "energy_score": partial(FlowDynamics, **SETTINGS, energy=4.0),
    "shortcut": partial(Shortcut, **SETTINGS, energy=1.0),
    "mean_flow": partial(MeanFlow, **SETTINGS, energy=1.0),
}


# -- the world and what is measured -----------------------------------------------------------------


def transitions(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """States "b 2 3" and pushes "b 1 2", half of them from the strip along the edge, a tenth fallen already."""
    at = rng.uniform(*np.transpose(rules.ANYWHERE), (count, 2))
    near = rng.random(count) < rules.NEAR_EDGE
    at[near, 0] = rng.uniform(1 - rules.ZONE, 1.0, near.sum())
    fallen = rng.random(count) < 0.1
    at[fallen, 0] = rules.FALLEN
    push = rng.uniform(-1, 1, (count, 2))
    to, lost = rules.outcome(at, fallen, push, rng.random(count), rng.standard_normal((count, 2)))
    states = np.stack([np.column_stack([at, fallen]), np.column_stack([to, lost])], axis=1)
    return torch.from_numpy(states).float(), torch.from_numpy(push[:, None]).float()


Sample = Callable[[int, np.random.Generator], tuple[Tensor, Tensor]]


def learn(
    args: Args, method: Callable[[], FlowDynamics], seed: int, sample: Sample = transitions
) -> tuple[FlowDynamics, float]:
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model = method().train()
    model.observe(*sample(20_000, rng))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, args.updates, pct_start=0.1)
    began = time.perf_counter()
    for _ in range(args.updates):
        loss, _ = model.loss(*sample(args.batch, rng), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.after_update()
    return model.eval(), time.perf_counter() - began


@torch.no_grad()
def measure(args: Args, model: FlowDynamics, seconds: float, seed: int) -> dict[str, Any]:
    at, push = pushes_near_the_edge(args.pushes, 100)
    rng = np.random.default_rng(1000 + seed)

    def outcomes() -> Tensor:
        rows, taken = np.repeat(at, args.futures, axis=0), np.repeat(push, args.futures, axis=0)
        uniform, shake = rng.random(len(rows)), rng.standard_normal((len(rows), 2))
        position, fallen = rules.outcome(rows, np.zeros(len(rows), bool), taken, uniform, shake)
        found = torch.from_numpy(np.column_stack([position, fallen])).float()
        return found.unflatten(0, (len(at), args.futures)) / model.std

    truth, oracle = outcomes()[:, :64], outcomes()
    best, true = score(oracle, truth), rules.fall_probability(at, push)
    z = torch.from_numpy(np.column_stack([at, np.zeros(len(at))])).float()
    world, error, energy = SimpleNamespace(dynamics=model), [], []
    for count in EVALUATIONS:
        drawn = independent_futures(world, z, push[:, None], args.futures, seed, evaluations=count)[:, :, 1]
        error.append(float(np.abs((drawn[..., 2] > 0.5).float().mean(1).numpy() - true).mean()))
        energy.append(score(drawn / model.std, truth) / best)
    return {"fall_probability_error": error, "energy_score_ratio": energy, "train_seconds": seconds}


# -- options of the sampler -------------------------------------------------------------------------

STEPS = 4  # of a path
LAGS = (1.0, 0.5, 0.0)
DROP, GUIDANCES = 0.1, (1.0, 1.5, 2.0)


def walks(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """States "b 5 3" and pushes "b 4 2" that follow each other, from where ``transitions`` begins."""
    states, pushes = (list(part.unbind(1)) for part in transitions(count, rng))
    while len(pushes) < STEPS:
        now, push = states[-1].double().numpy(), rng.uniform(-1, 1, (count, 2))
        uniform, shake = rng.random(count), rng.standard_normal((count, 2))
        to, lost = rules.outcome(now[:, :2], now[:, 2] > 0.5, push, uniform, shake)
        states.append(torch.from_numpy(np.column_stack([to, lost])).float())
        pushes.append(torch.from_numpy(push).float())
    return torch.stack(states, 1), torch.stack(pushes, 1)


@torch.no_grad()
def paths(args: Args, seed: int) -> dict[str, Any]:
    """Energy score of whole paths over the true sampler's, and milliseconds for one draw of all of them."""
    method = partial(FlowDynamics, **SETTINGS, energy=4.0, context=STEPS)
    with torch.enable_grad():
        # As many states in a batch as elsewhere.
        model, seconds = learn(replace(args, batch=args.batch // STEPS), method, seed, walks)
    at, _ = pushes_near_the_edge(args.pushes, 100)
    rng = np.random.default_rng(2000 + seed)
    z = torch.from_numpy(np.column_stack([at, np.zeros(len(at))])).float()
    pushes = torch.from_numpy(rng.uniform(-1, 1, (len(at), STEPS, 2))).float()

    def drawn(world: Any, seed: int) -> Tensor:
        """Standardised paths "b n 4*3"."""
        drawn = independent_futures(world, z, pushes, args.futures, seed)[:, :, 1:]
        return (drawn / model.std).flatten(2)

    true = SimpleNamespace(dynamics=rules.TableEdgeDynamics())
    truth = drawn(true, 1)[:, :64]
    best, found = score(drawn(true, 2), truth), {}
    for lag in LAGS:
        model.set_sampling(lag=lag)
        began = time.perf_counter()
        samples, spent = drawn(SimpleNamespace(dynamics=model), seed), time.perf_counter() - began
        ratio = score(samples, truth) / best
        found[f"lag_{lag:g}"] = {"energy_score_ratio": ratio, "milliseconds": 1e3 * spent}
    return found | {"train_seconds": seconds}


def guidance(args: Args, seed: int) -> dict[str, Any]:
    """What ``measure`` says of a flow that learned a tenth of its windows without pushes, by its guidance."""
    model, seconds = learn(args, partial(FlowDynamics, **SETTINGS, energy=4.0, drop=DROP), seed)
    found = {}
    for weight in GUIDANCES:
        model.set_sampling(guidance=weight)
        found[f"guidance_{weight:g}"] = measure(args, model, seconds, seed)
    return found


def averaged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of dicts of figures and lists over the seeds."""
    first = runs[0]
    return {
        key: averaged([run[key] for run in runs])
        if isinstance(value, dict)
        else np.mean([run[key] for run in runs], axis=0).tolist()
        for key, value in first.items()
    }


if __name__ == "__main__":
    main(tyro.cli(Args))
