"""The walk through the house: docs/architecture.md names the files that the code enters, in that order."""

from __future__ import annotations

import functools
import gc
import inspect
import re
import sys
from pathlib import Path
from types import CodeType, FrameType

import gymnasium as gym
import pytest
import torch

import jepa_rl.agents
import jepa_rl.envs
from jepa_rl import TrainConfig, WindowSampler, WorldModel, WorldModelConfig, fit
from jepa_rl.agents import CEM, MPCAgent
from jepa_rl.envs import GoalObservation, collect
from jepa_rl.training import loop

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = {
    Path(room.__file__).parent: room.__name__.split(".")[-1]
    for room in (jepa_rl.agents, jepa_rl.envs, jepa_rl)
}


def table(title: str) -> tuple[list[str], int]:
    """Files of the first table under a heading that begins so, in order, and how many of them are numbered."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    rows = next(part for part in section if part.startswith(title)).split("\n\n")
    lines = next(part for part in rows if part.startswith("| | file |")).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    numbers = [int(row[0]) for row in cells if row[0]]
    assert numbers == list(range(1, len(numbers) + 1))
    return [row[1].strip("`") for row in cells], len(numbers)


class Walk:
    """Records the project's files that are entered, in the order of first entry; a context manager.

    Args:
        within: code of a function; only what happens while it runs is recorded. None for everything.
    """

    def __init__(self, within: CodeType | None = None) -> None:
        self.files: list[str] = []
        self._within, self._on = within, within is None

    def __enter__(self) -> Walk:
        gc.collect()  # finalizers of what other tests left behind would be recorded, too
        gc.disable()
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        gc.enable()

    def _look(self, frame: FrameType, event: str, _: object) -> None:
        if event not in ("call", "return"):
            return
        if frame.f_code is self._within:
            self._on = event == "call"
        if event == "return" or not self._on or frame.f_code.co_name == "<module>":  # an import
            return
        name = in_the_house(frame.f_code.co_filename)
        if name is not None and name not in self.files:
            self.files.append(name)


@functools.cache
def in_the_house(file: str) -> str | None:
    """The file as the page names it, ``agents/mpc.py``; None for other people's."""
    path = Path(file)
    rooms = [(folder, room) for folder, room in ROOMS.items() if path.is_relative_to(folder)]
    return f"{rooms[0][1]}/{path.relative_to(rooms[0][0]).as_posix()}" if rooms else None


def small(spec):
    torch.manual_seed(0)
    options = {"encoder_options": {"widths": (4, 4)}, "dynamics_options": {"width": 8, "depth": 1}}
    return WorldModel(WorldModelConfig(spec, 8, **options))


@pytest.fixture(scope="module")
def env():
    return GoalObservation(gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=10))


@pytest.fixture(scope="module")
def store(env, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk") / "episodes"
    return collect(env, folder, episodes=3, seed=0, progress=False)


def test_a_decision_takes_the_way_of_the_page(env, store):
    agent = MPCAgent(small(store.spec).eval(), CEM(horizon=3, samples=8, elites=3, iterations=2))
    observation, _ = env.reset(seed=0)
    _, state = agent.predict(observation)
    with Walk() as walk:
        agent.predict(observation, state)
    files, work = table("One decision")
    assert walk.files == files
    assert work == 8


def test_an_update_takes_the_way_of_the_page(store, tmp_path):
    config, sampler = TrainConfig(steps=1, batch_size=4), WindowSampler(store, steps=3)
    # Once unseen: PyTorch imports much when it first steps, which a profile makes slow, by way of jepa_rl._moved.
    fit(small(store.spec), sampler, config, tmp_path / "first", progress=False)
    with Walk(within=inspect.unwrap(loop._update).__code__) as walk:
        fit(small(store.spec), sampler, config, tmp_path / "second", progress=False)
    files, work = table("One update")
    assert walk.files == files
    assert work == 8


def test_every_file_that_the_page_names_is_there():
    named = set(re.findall(r"`((?:jepa_rl|agents|envs|tests|docs)/[\w./]+)`", PAGE))
    links = {f"docs/{link}" for link in re.findall(r"\]\(([\w./]+)\)", PAGE)}
    assert [name for name in sorted(named | links) if not (ROOT / name).exists()] == []


def test_the_rows_of_imports_are_those_that_are_checked():
    from_page = re.search(r"```\n(version,.*?)```", PAGE, re.DOTALL)
    source = (ROOT / "tests" / "test_import_rules.py").read_text()
    rows: dict = {}
    exec(re.search(r"^ROWS = \(.*?^\)", source, re.DOTALL | re.MULTILINE)[0], rows)
    assert from_page is not None
    assert [tuple(line.split(", ")) for line in from_page[1].strip().splitlines()] == list(rows["ROWS"])
