"""Starts a script as several processes of one thread each, and gives what the first of them prints."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any

COUNT = 2


def free_port() -> int:
    """A port of this machine that nobody listens to.

    Below those that Linux hands out by itself, which others may be given while the processes start.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def run(script: str, *arguments: str) -> Any:
    """Runs ``script`` as two processes that can join, as under torchrun; each on a core of its own where there are two.

    Args:
        script: path of a script whose first process prints JSON in its last line.
        arguments: of the script.

    Raises:
        RuntimeError: one of them failed; their messages stand above.
    """
    told = {
        "WORLD_SIZE": str(COUNT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    running = []
    for rank in range(COUNT):
        process = subprocess.Popen(
            [sys.executable, script, *arguments], env=os.environ | told | {"RANK": str(rank)}, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        if len(cores) >= COUNT:
            os.sched_setaffinity(process.pid, {cores[rank]})
        running.append(process)
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{script} ended with {[process.returncode for process in running]}")
    return json.loads(printed[0].splitlines()[-1])


def play(folder: str, episodes: int) -> None:
    """Random play in Two Rooms, once."""
    from jepa_rl.envs import SmoothRandomPolicy, TwoRoomsVectorEnv, collect
    from jepa_rl.types import ActionSpec

    policy = SmoothRandomPolicy(ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0)), 8)
    env = TwoRoomsVectorEnv(8, max_episode_steps=50, start="any")
    collect(env, folder, policy=policy, episodes=episodes, seed=0, progress=False)
