"""Two processes against one with the same batch, in float64: gradients and loss curves of every objective.

Of JEPAMPC's losses, reward, value, termination and policy prior, the gradient alone; tests/test_distributed.py compares
its curves.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _processes import play, run
from torch import nn

from jepa_rl import EpisodeStore, TrainConfig, WindowSampler, WorldModel, WorldModelConfig, distributed
from jepa_rl.control import ControlConfig, ControlModel
from jepa_rl.registry import OBJECTIVES
from jepa_rl.testing import gradient_difference
from jepa_rl.training import descend
from jepa_rl.training.contracts import sample_own
from jepa_rl.training.optimisers import optimizers_of
from jepa_rl.types import Batch, ControlBatch

BATCH, STEPS, UPDATES = 32, 3, 50


class Double(WindowSampler):
    """Windows in float64, in which sums differ by rounding alone whatever their order."""

    def sample_rows(self, batch_size: int, rng: np.random.Generator, rows: slice) -> Batch:
        batch = super().sample_rows(batch_size, rng, rows)
        return replace(batch, actions=batch.actions.double(), rewards=batch.rewards.double())


def measure(quick: bool) -> dict[str, Any]:
    """Largest relative differences, over all objectives that several processes may train, and for each."""
    with tempfile.TemporaryDirectory() as folder:
        play(folder, episodes=8 if quick else 40)
        found = run(__file__, folder, str(5 if quick else UPDATES))
    return {
        "gradient_difference": max(each["gradient"] for each in found.values()),
        "loss_curve_difference": max(each["curve"] for each in found.values() if "curve" in each),
        "gradient_objectives": found,
    }


def curve(model: WorldModel, sampler: Double, updates: int, shared: bool) -> torch.Tensor:
    """Losses of the first updates of a training."""
    model = copy.deepcopy(model)
    config = TrainConfig(steps=updates, batch_size=BATCH)
    optimizers = list(optimizers_of(model, config).values())
    rng, generator, losses = np.random.default_rng(0), torch.Generator().manual_seed(0), []
    with distributed.together() if shared else nullcontext():
        for _ in range(updates):
            loss, _ = model.loss(sample_own(sampler, BATCH, rng), generator)
            descend(loss, optimizers, model.parameters(), config.clip)
            model.after_update()
            losses.append(distributed.average(loss.detach()))
    return torch.stack(losses)


def work(folder: str, updates: int) -> None:
    """What each of the two processes does."""
    sampler, found = Double(EpisodeStore.open(folder), STEPS), {}
    for name in sorted(name for name, part in OBJECTIVES._parts.items() if part.divided):
        torch.manual_seed(0)
        model = WorldModel(WorldModelConfig(sampler.spec, 16, objective=name)).double().train()
        alone, shared = (curve(model, sampler, updates, together) for together in (False, True))
        found[name] = {
            "gradient": gradient_difference(model, sampler.sample(BATCH, np.random.default_rng(0))),
            "curve": float(((shared - alone) / alone).abs().max()),
        }
    print(json.dumps(found | {"control": {"gradient": control_gradient(sampler)}}))


def control_gradient(sampler: Double) -> float:
    """``gradient_difference`` of JEPAMPC's losses, with one-step value targets."""
    torch.manual_seed(0)
    world = WorldModel(WorldModelConfig(sampler.spec, 16, objective="consistency"))
    model = ControlModel(world, ControlConfig(), 0.97).double().train()
    # It begins at 0: no gradient would reach the policy prior, and the range of values would be below its least.
    nn.init.normal_(model.value_heads.weights[-1], std=3.0)
    batch = sampler.sample(BATCH, np.random.default_rng(0))
    discounts, ended = torch.full_like(batch.rewards, 0.97), batch.terminated[:, -1]
    targets: dict[str, Any] = dict(returns=batch.rewards, discounts=discounts, ended=ended, future=None)
    return gradient_difference(model, ControlBatch(**vars(batch), **targets))


if __name__ == "__main__":
    with distributed.join():
        work(sys.argv[1], int(sys.argv[2]))
