"""What each of two processes does for test_distributed.py; the first writes what it found as JSON.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python tests/processes.py check runs/folder
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpc_processes
import numpy as np
import torch
from torch import Tensor, nn

from jepa_rl import EpisodeStore, TrainConfig, WindowSampler, WorldModel, WorldModelConfig, distributed, fit
from jepa_rl.batches import Batch, cut
from jepa_rl.csv_log import read_csv
from jepa_rl.data.latent_windows import LatentEpisodes, LatentWindowSampler
from jepa_rl.envs import SmoothRandomPolicy, collect
from jepa_rl.envs.worlds.two_rooms import TwoRoomsVectorEnv
from jepa_rl.files import load_tensors
from jepa_rl.objectives import covariance, sigreg, variance
from jepa_rl.testing import gradient_difference
from jepa_rl.training import refine_dynamics
from jepa_rl.training.contracts import sample_own
from jepa_rl.types import ActionSpec

ALL_TERMS = dict.fromkeys(
    ("variance", "covariance", "time_similarity", "straightness", "inverse_dynamics"), 1.0
)
MODELS: dict[str, dict[str, Any]] = {
    "jepa": {"objective_options": ALL_TERMS},
    "lewm": {"objective": "lewm"},
    "eb_jepa": {"objective": "eb_jepa"},
    "ema": {"objective": "ema"},
    "dense": {"objective": "dense"},
    "teacher": {"objective": "teacher"},
    "action_free": {"objective": "action_free"},
    "consistency": {"objective": "consistency"},
    "change": {"objective": "change"},
    "consistency, sigreg": {"objective": "consistency", "objective_options": {"kind": "sigreg"}},
    "reconstruction": {"objective": "reconstruction"},
    "frames": {"encoder": "frames"},
    "keypoints": {"encoder": "keypoints"},
    "vit": {"encoder": "vit", "encoder_options": {"depth": 1}},
    "gru": {"dynamics": "gru"},
    "transformer": {"dynamics": "transformer", "dynamics_options": {"dropout": 0.0, "depth": 1}},
    "ensemble": {"dynamics": "ensemble"},
    "mixture": {"dynamics": "mixture"},
    "flow": {"dynamics": "flow", "dynamics_options": {"drop": 0.2, "low_noise": 1.0, "unroll": 2}},
    "flow, consistency": {"dynamics": "flow", "objective": "consistency"},
}
CURVE = TrainConfig(steps=50, batch_size=12, checkpoint_every=25, log_every=1, evaluate_every=25, seed=3)
SHORT = replace(CURVE, steps=8, checkpoint_every=4, log_every=1, evaluate_every=8)


class Double(WindowSampler):
    """Windows in float64, in which sums differ by rounding alone whatever their order."""

    def sample_rows(self, batch_size: int, rng: np.random.Generator, rows: slice) -> Batch:
        batch = super().sample_rows(batch_size, rng, rows)
        return replace(batch, actions=batch.actions.double(), rewards=batch.rewards.double())


class WholeAlone:
    """A sampler of a user's own, which knows whole batches only."""

    def __init__(self, sampler: WindowSampler) -> None:
        self.sampler = sampler

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        return self.sampler.sample(batch_size, rng)


class Stops(Exception):
    """A run that ends in the middle."""


class Stopping(Double):
    left = 6

    def sample_rows(self, batch_size: int, rng: np.random.Generator, rows: slice) -> Batch:
        self.left -= 1
        if self.left < 0:
            raise Stops
        return super().sample_rows(batch_size, rng, rows)


def play(folder: Path) -> EpisodeStore:
    if not (folder / "store.json").exists():
        policy = SmoothRandomPolicy(ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)), 4)
        venv = TwoRoomsVectorEnv(4, max_episode_steps=8, start="any")
        collect(venv, folder, policy=policy, episodes=8, seed=0, progress=False)
    return EpisodeStore.open(folder)


def build(store: EpisodeStore, **options: Any) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(store.spec, 8, **options)).double().train()


def train(
    store: EpisodeStore, out: Path, config: TrainConfig, sampler: Any = None, **options: Any
) -> WorldModel:
    model = build(store, **options)
    fit(model, sampler or Double(store, 2), config, out, progress=False)
    return model


def losses(out: Path) -> list[float]:
    columns, rows = read_csv(out / "progress.csv")
    return [float(row[columns.index("jepa/loss")]) for row in rows]


def apart(a: Any, b: Any) -> float:
    """Largest difference of two tensors, of the tensors of two modules, or of those of two runs' models."""
    if isinstance(a, Tensor):
        return float((a - b).detach().abs().max())
    pairs = zip(tensors_of(a), tensors_of(b), strict=True)
    return max(float((x.double() - y.double()).abs().max()) for x, y in pairs)


def tensors_of(whose: nn.Module | Path) -> list[Tensor]:
    if isinstance(whose, nn.Module):
        return list(whose.state_dict().values())
    found, _ = load_tensors(whose / "model.safetensors", ("world_model",))
    return [found[name] for name in sorted(found)]


def refusal(work: Any) -> str:
    """The message of the ValueError that ``work`` raises."""
    try:
        work()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def in_both(values: Tensor, function: Any) -> tuple[Tensor, Tensor]:
    """A function of all rows, and of each process's rows together."""
    alone = function(values)
    with distributed.together():
        return alone, function(values[distributed.own_rows()])


def statistics() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(6, 4, generator=draw).double() * torch.arange(1.0, 5.0) + 100.0
    windows = torch.randn(8, 3, 4, generator=draw).double()
    found: dict[str, Any] = {
        "variance": apart(*in_both(z, lambda x: variance(x, target_std=10.0))),
        "covariance": apart(*in_both(z, covariance)),
        "std": apart(*in_both(windows, lambda x: distributed.std(x, (0, 1)))),
    }
    whole, halves = in_both(
        windows, lambda x: sigreg(x.transpose(0, 1), torch.Generator().manual_seed(1), 16)
    )
    wrong = [sigreg(windows[i::2].transpose(0, 1), torch.Generator().manual_seed(1), 16) for i in range(2)]
    found["sigreg"] = apart(whole, halves)
    found["sigreg_mean_of_halves"] = apart(whole, torch.stack(wrong).mean())
    for momentum, affine in ((0.1, False), (None, True)):
        torch_norm = nn.BatchNorm1d(4, momentum=momentum, affine=affine).double()
        norm = distributed.BatchNorm(4, momentum=momentum, affine=affine).double()
        assert norm.state_dict().keys() == torch_norm.state_dict().keys()
        for scale in (1.0, 3.0):
            with distributed.together():
                mine = norm(scale * z[distributed.own_rows()])
            theirs = torch_norm(scale * z)[distributed.rank() :: 2]
        found[f"norm {momentum}"] = max(apart(mine, theirs), apart(norm, torch_norm))
    return found


def shares(store: EpisodeStore) -> dict[str, bool]:
    """Whether each sampler gives this process its rows, and leaves its generator as for all rows."""
    windows = WindowSampler(store, 2)
    latents = LatentEpisodes(
        torch.arange(36.0).view(36, 1), torch.zeros(32, 2), torch.full((4,), 8), source=None
    )
    equal = {}
    for name, sampler in (
        ("windows", windows), ("latents", LatentWindowSampler(latents, 2)), ("own", WholeAlone(windows)),
    ):  # fmt: skip
        alone, here = np.random.default_rng(0), np.random.default_rng(0)
        whole = cut(sampler.sample(6, alone), slice(distributed.rank(), None, 2))
        with distributed.together():
            share: Any = sample_own(sampler, 6, here)
        first = [value for value in vars(share).values() if isinstance(value, Tensor)]
        second = [value for value in vars(whole).values() if isinstance(value, Tensor)]
        same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        equal[name] = same and len(share.actions) == 3 and alone.random() == here.random()
    return equal


def keys_left() -> int:
    """By how many keys the store of messages grew; those that were read are deleted."""
    group = distributed.group._group
    assert group is not None
    before = group.store.num_keys()
    for _ in range(20):
        distributed.by_first(lambda: None)
    with distributed.together():
        distributed.fewest(0)  # the second has read all, too
    return group.store.num_keys() - before


def gradients_of_some() -> dict[str, Any]:
    """Parameters without a gradient: in one process, in both, in none."""
    some = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    some[0].grad = torch.ones(2) * (1 + 2 * distributed.rank())
    if distributed.rank():
        some[1].grad = torch.ones(2)
    with distributed.together():
        distributed.average_gradients(some)
    return {"values": [None if p.grad is None else p.grad.tolist() for p in some]}


def whole_windows() -> list[int]:
    """Windows that each process keeps of three, where one lies beyond its episode in the first process alone."""
    valid = torch.ones(3, 2, dtype=torch.bool)
    valid[1, 1] = not distributed.is_first()
    x = torch.arange(3.0)
    batch = Batch(x.view(3, 1, 1), x.view(3, 1, 1), x.view(3, 1), torch.zeros(3, 2, dtype=torch.bool), valid)
    with distributed.together():
        kept = batch.whole().actions.flatten()
        return [int(row) for row in distributed.gather(kept).flatten()]


def policies() -> dict[str, str]:
    """Scheduling policies of gloo's threads and of this one."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        if "gloo" in name or task.name == str(os.getpid()):
            policy = os.sched_getscheduler(int(task.name))
            found[name] = {os.SCHED_OTHER: "other", os.SCHED_BATCH: "batch"}[policy]
    return found


def check(folder: Path, number: int) -> None:
    """Everything that needs two processes; before and behind ``join`` the first is alone."""
    out: dict[str, Any] = {}
    if not number:
        train(play(folder / "episodes"), folder / "curve_alone", CURVE)
        train(play(folder / "episodes"), folder / "short_alone", SHORT)
        stopped(play(folder / "episodes"), folder / "one_then_two")
        refine(play(folder / "episodes"), folder / "refined_alone")
        mpc_alone = mpc_processes.alone(folder)
    with distributed.join():
        distributed.by_first(lambda: None)  # the episodes are there
        store = EpisodeStore.open(folder / "episodes")
        out["statistics"], out["shares"] = statistics(), shares(store)
        out["nested"] = distributed.by_first(
            lambda: [distributed.processes(), distributed.by_first(distributed.processes)]
        )
        out["keys"] = keys_left()
        out["policies"] = policies() if sys.platform == "linux" else {}
        out["some"], out["whole"] = gradients_of_some(), whole_windows()
        batch = Double(store, 2).sample(14, np.random.default_rng(0))
        out["gradients"] = {
            name: gradient_difference(build(store, **options), batch) for name, options in MODELS.items()
        } | mpc_processes.control_gradients(store, batch)
        train(store, folder / "curve", CURVE)
        out |= resumed(store, folder)
        refine(store, folder / "refined")
        out["refusals"] = refusals(store, folder)
        mpc = mpc_processes.together(folder)
    if not number:
        train(store, folder / "two_then_one", SHORT)
        out["two then one"] = apart(folder / "two_then_one", folder / "short_alone")
        out["curves"] = [losses(folder / "curve_alone"), losses(folder / "curve")]
        out["refined"] = [losses(folder / "refined_alone"), losses(folder / "refined")]
        out["mpc"] = mpc_processes.compare(folder, mpc_alone, mpc)
        (folder / "found.json").write_text(json.dumps(out))


def stopped(store: EpisodeStore, out: Path, **options: Any) -> None:
    """A run of ``SHORT`` that ends between its checkpoint and the end."""
    with suppress(Stops):
        train(store, out, SHORT, Stopping(store, 2), **options)


def resumed(store: EpisodeStore, folder: Path) -> dict[str, Any]:
    """Runs that were stopped, against those that were not; with dropout, whose generators differ by process."""
    stopped(store, folder / "two_then_one")
    train(store, folder / "one_then_two", SHORT)
    dropout: dict[str, Any] = {"dynamics": "transformer", "dynamics_options": {"depth": 1, "dropout": 0.5}}
    stopped(store, folder / "two_twice", **dropout)
    again = train(store, folder / "two_twice", SHORT, **dropout)
    train(store, folder / "two_once", SHORT, **dropout)
    with distributed.together():
        weights = distributed.gather(torch.cat([p.flatten() for p in again.parameters()]))
    return {
        "one then two": apart(folder / "one_then_two", folder / "short_alone"),
        "two twice": apart(folder / "two_twice", folder / "two_once"),
        "processes differ by": apart(*weights),
    }


def refine(store: EpisodeStore, out: Path) -> None:
    model = build(store, dynamics="flow").float()
    refine_dynamics(model, store, out, steps=2, config=SHORT, progress=False)


def refusals(store: EpisodeStore, folder: Path) -> dict[str, str]:
    odd = replace(SHORT, batch_size=7)
    other = replace(SHORT, seed=distributed.rank())
    plain = build(store)
    plain.encoder.norm = nn.BatchNorm1d(8, affine=False)
    sampler = WindowSampler(store, 2)
    return {
        "odd batch": refusal(lambda: train(store, folder / "no", odd)),
        "plain norm": refusal(lambda: fit(plain.float(), sampler, SHORT, folder / "no", progress=False)),
        "undivided": refusal(lambda: train(store, folder / "no", SHORT, objective="vae")),
        "exists": refusal(
            lambda: fit(build(store), Double(store, 2), CURVE, folder / "curve", resume=False, progress=False)
        ),
        "other settings": refusal(lambda: train(store, folder / "no", other)),
        "nothing written": str(not (folder / "no").exists()),
    }


def train_long(folder: Path, number: int) -> None:
    """A run that a test ends."""
    with distributed.join():
        distributed.by_first(lambda: play(folder / "episodes") and None)
        store = EpisodeStore.open(folder / "episodes")
        train(store, folder / "run", replace(SHORT, steps=100_000, checkpoint_every=2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"check": check, "train": train_long}[sys.argv[1]](Path(sys.argv[2]), int(os.environ["RANK"]))
