"""What each of two processes does with JEPAMPC, for processes.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from jepa_rl import WorldModel, WorldModelConfig, distributed
from jepa_rl.agents import JEPAMPC, ResumableRun
from jepa_rl.agents.sb3.jepa_mpc.resume import run_state
from jepa_rl.batches import Batch
from jepa_rl.control import ControlConfig, ControlModel
from jepa_rl.testing import gradient_difference
from jepa_rl.types import ActionSpec, ControlBatch, Metrics

STEPS, STOP = 36, 31  # the first update is made after 21 steps, with those that are owed
TINY = {
    "world": {
        "latent_dim": 8, "encoder_options": {"widths": (8, 8)}, "dynamics_options": {"width": 16, "depth": 1}
    },
    "control": ControlConfig(width=16, bins=21),
    "samples": 8, "elites": 3, "iterations": 1, "proposals": 2,
}  # fmt: skip


class Spot(gym.Env):
    """A bright spot on 16 x 16 pixels that actions push about; episodes of five steps."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (1, 16, 16), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.left = self.np_random.uniform(2, 13, 2), 5
        return self._picture(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at, self.left = np.clip(self.at + action, 0, 15), self.left - 1
        return self._picture(), float(-abs(self.at - 8).mean()), False, not self.left, {}

    def _picture(self) -> np.ndarray:
        picture = np.zeros((1, 16, 16), np.uint8)
        picture[0, *self.at.astype(int)] = 255
        return picture


class Double(JEPAMPC):
    """Learns in float64, in which sums differ by rounding alone whatever their order; keeps all losses."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.policy.double()
        self.losses: list[Metrics] = []

    def _update(self, batch: ControlBatch, unseen: int) -> Metrics:
        self.losses.append(super()._update(double(batch), 1))
        return self.losses[-1]


class At(BaseCallback):
    """Ends the training at a step, by an exception or by returning False; counts its calls."""

    def __init__(self, step: int, error: Exception | None = None) -> None:
        super().__init__()
        self.step, self.error = step, error

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.step and self.error:
            raise self.error
        return self.num_timesteps < self.step


def double(batch: ControlBatch) -> ControlBatch:
    names = ("actions", "rewards", "returns", "discounts")
    return replace(batch, **{name: getattr(batch, name).double() for name in names})


def make(**options: Any) -> Double:
    settings: dict[str, Any] = dict(batch_size=8, buffer_size=120, learning_starts=20, n_step=(6, 3), seed=3)
    return Double("CnnPolicy", Spot(), policy_kwargs=TINY, **settings | options)


def learn(out: Path, callback: BaseCallback | None = None, **options: Any) -> Double:
    """A run in a folder, or the rest of one."""
    callbacks = [ResumableRun(out, every=10), *([callback] if callback else [])]
    return make(**options).learn(STEPS, callbacks, log_interval=10**6)  # what is logged then is in float32


def state(agent: JEPAMPC) -> Tensor:
    """Everything that changes with the updates."""
    tensors, _ = run_state(agent)
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def message(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def alone(folder: Path) -> Double:
    """What the first does before the others come."""
    return learn(folder / "mpc_alone")


def together(folder: Path) -> dict[str, Any]:
    """What both do; the second writes what it found to a file."""
    first, rank = distributed.is_first(), distributed.rank()
    whole = learn(folder / f"mpc_whole_{rank}", At(STEPS + 1), tensorboard_log=str(folder / f"events_{rank}"))
    stopped, again, after = At(STOP, ArithmeticError("blew up")), folder / "mpc_again", folder / "mpc_after"
    ended = message(lambda: learn(again, stopped))
    if first:
        shutil.copytree(again, after)
    resumed = learn(again)
    same = apart(state(whole), state(resumed))
    early = At(STEPS + 3)
    resumed.learn(100, early, reset_num_timesteps=False, log_interval=10**6)
    odd = make(batch_size=7)
    found = {
        "ended": ended,
        "resumed": same,
        "losses": whole.losses,
        "early": [resumed.num_timesteps, resumed._n_updates],
        "odd": message(lambda: odd.learn(STEPS)),
        "untouched": odd.num_timesteps == 0 and odd._last_obs is None,
        "calls": [stopped.n_calls, early.n_calls],
        "wrote": [(folder / f"{name}_{rank}").exists() for name in ("mpc_whole", "events")],
        "counted": [whole.num_timesteps, whole._n_updates, whole.n_step_now],
    }
    with distributed.together():
        found["differ"] = [apart(*distributed.gather(state(agent))) for agent in (whole, resumed)]
    if not first:
        (folder / "second.json").write_text(json.dumps(found))
    return found


def compare(folder: Path, one: Double, found: dict[str, Any]) -> dict[str, Any]:
    """What the first finds when the second has left."""
    goes_on = learn(folder / "mpc_after")
    return found | {
        "second": json.loads((folder / "second.json").read_text()),
        "alone": one.losses,
        "then one": apart(state(one), state(goes_on)),
    }


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def control_gradients(store: Any, batch: Batch) -> dict[str, float]:
    """As ``gradient_difference``, of reward, value, termination and the policy prior; for choices, too."""
    found = {}
    for name, action in (("control", store.spec.action), ("control, choices", ActionSpec("discrete", 2))):
        torch.manual_seed(0)
        world = WorldModel(WorldModelConfig(replace(store.spec, action=action), 8, objective="consistency"))
        model = ControlModel(world, ControlConfig(width=16, bins=21), 0.9).double().train()
        # It begins at 0: no gradient would reach the policy prior, and the range of values would be below its least.
        nn.init.normal_(model.value_heads.weights[-1], std=3.0)
        found[name] = gradient_difference(model, with_returns(batch))
    return found


def with_returns(batch: Batch) -> ControlBatch:
    """With one-step targets."""
    return ControlBatch(
        **vars(batch), returns=batch.rewards, discounts=0.9 * torch.ones_like(batch.rewards),
        ended=batch.terminated[:, -1], future=None,
    )  # fmt: skip
