"""Where the time of JEPAMPC goes on this machine: one update and one decision from 64 x 64 pixels, by preset.

    OMP_NUM_THREADS=1 python benchmarks/control_speed.py
    python benchmarks/control_speed.py --quick

The parts of an update are timed alone, so that they need not add up to the whole. ``naive`` is the same encoder with
its first convolution on converted floats, as it was before patches were cut out of bytes; ``pages`` the whole update
where glibc hands freed memory back to the system, as it does by itself. The environment shows noise and costs nothing.
"""

import copy
import ctypes
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from _record import refuse_unrecordable, trying, write_results
from gymnasium import spaces
from torch import nn

from jepa_rl.agents import JEPAMPC
from jepa_rl.agents.sb3.jepa_mpc import JEPA_MPC_PRESETS, jepa_mpc_preset
from jepa_rl.encoders import FramesEncoder
from jepa_rl.memory import keep_freed_memory
from jepa_rl.objectives import random_shift


@dataclass(frozen=True)
class Args:
    presets: tuple[str, ...] = tuple(JEPA_MPC_PRESETS)
    repeats: int = 20
    device: str = "cpu"
    quick: bool = False


class Noise(gym.Env):
    """Three stacked 64 x 64 pictures of noise, two actions."""

    metadata = {"frames": 3, "render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (9, 64, 64), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.stack = 0, np.zeros((9, 64, 64), np.uint8)
        return self.stack, {}

    def step(self, action):
        self.t += 1
        new = self.np_random.integers(0, 256, (3, 64, 64), np.uint8)
        self.stack = np.concatenate([self.stack[3:], new])
        return self.stack, 1.0, False, self.t >= 100, {}


def main(args: Args) -> None:
    if not (args.quick or trying()):
        refuse_unrecordable()
    repeats = 2 if args.quick else args.repeats
    names = args.presets[:1] if args.quick else args.presets
    results = {name: measure(name, repeats, args.device) for name in names}
    for name, figures in results.items():
        print(name, {key: round(value, 2) for key, value in figures.items()})
    print(
        write_results(
            "control_speed", {"threads": torch.get_num_threads(), "presets": results}, quick=args.quick
        )
    )


def agent(name: str, device: str) -> JEPAMPC:
    model = JEPAMPC(
        "CnnPolicy", Noise(), learning_starts=300, seed=0, buffer_size=5000, device=device, **jepa_mpc_preset(name)
    )  # fmt: skip
    model.learn(300)  # random play, no update yet
    return model


def measure(name: str, repeats: int, device: str) -> dict[str, float]:
    """Milliseconds of everything."""
    model = agent(name, device)
    model._n_updates = 1
    control, replay, batch = model.policy.model, model.replay_buffer, model.batch_size
    pictures = control.world.encoder
    assert isinstance(pictures, FramesEncoder)
    windows = replay.sample(batch, model.steps, model.rng, model.n_step_now, model.gamma)
    pixels = windows.pixels.to(device)
    now = pixels[:, 0].contiguous()
    later = pictures.runs(pixels[:, 1:])
    naive = copy.deepcopy(pictures)
    stem = naive.frame.convolutions[0]
    naive.frame.convolutions[0] = Naive(stem).to(device, memory_format=torch.channels_last)

    def encode(encoder: FramesEncoder) -> None:
        encoder.train()
        encoder(now).sum().backward()
        with torch.no_grad():
            encoder.windows(later, model.steps)

    observation = model.env.reset()
    found = {
        "update": lambda: model.train(1, batch),
        "sample": lambda: replay.sample(batch, model.steps, model.rng, model.n_step_now, model.gamma),
        "shift": lambda: random_shift(later, 3),
        "encode": lambda: encode(pictures),
        "encode_naive": lambda: encode(naive),
        "decision": lambda: model.predict(observation),
        "decision_16_envs": lambda: model.predict(np.repeat(observation, 16, axis=0)),
    }
    figures = {f"{part}_ms": 1e3 * seconds(function, repeats) for part, function in found.items()}
    hand_back_freed_memory()
    figures["update_pages_ms"] = 1e3 * seconds(found["update"], repeats)
    keep_freed_memory()
    return figures


def hand_back_freed_memory() -> None:
    """The thresholds that glibc comes to by itself after large buffers were freed."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD


class Naive(nn.Module):
    """The first layer as a plain convolution: bytes to floats in another memory layout, then scaled."""

    def __init__(self, stem: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(stem.in_channels, stem.out_channels, stem.kernel_size, stem.stride)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        half = torch.is_autocast_enabled(pixels.device.type)
        x = pixels.to(torch.bfloat16 if half else torch.float32, memory_format=torch.channels_last)
        return self.convolution(x.mul_(1 / 255))


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call."""
    function()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return float(np.median(found))


if __name__ == "__main__":
    main(tyro.cli(Args))
