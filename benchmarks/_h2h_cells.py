"""One cell of the head-to-head, from data to success, through cached stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import _h2h_measures as measuring
import torch
from _h2h_arms import Arm, Budget, load_space, make_encoder
from _h2h_cache import Stage, code_of, content_of, content_of_tensors, digest, memory_of, run, seconds_of
from _h2h_dynamics import OwnPredictor, Recipe, content_of_dynamics, load_dynamics, train_dynamics
from _h2h_recipes import ALL, MeanOf, MeanRecipe
from _h2h_spaces import Space, encode_frames, latent_episodes, read_latents
from _h2h_table import ARMS, BUDGETS, COMMON_SEARCH, OWN_SEARCH, SEARCHED, SEARCHES
from _h2h_tasks import REPORT, TASKS, TUNE, VARIANTS, Task, plain_of, play, searching, task_of

from jepa_rl import EpisodeStore, WorldModel
from jepa_rl.data.view import EpisodeView

# What decides what a stage gives: files and folders.
DATA_CODE = ("envs", "jepa_rl/data", "jepa_rl/specs.py", "jepa_rl/spaces.py", "benchmarks/goal_planning.py")
ENCODER_CODE = (
    "jepa_rl/encoders", "jepa_rl/objectives", "jepa_rl/dynamics", "jepa_rl/training", "jepa_rl/data",
    "jepa_rl/distributed", "jepa_rl/heads.py", "jepa_rl/parts.py", "jepa_rl/world_model.py", "jepa_rl/batches.py",
    "benchmarks/_h2h_arms.py", "benchmarks/_h2h_spaces.py", "benchmarks/_h2h_supervised.py",
    "benchmarks/_pretrained_weights.py",
)  # fmt: skip
LATENT_CODE = ("jepa_rl/encoders", "benchmarks/_h2h_spaces.py")
DYNAMICS_CODE = (
    "jepa_rl/dynamics", "jepa_rl/temporal.py", "jepa_rl/training", "jepa_rl/data/latent_windows.py",
    "benchmarks/_h2h_dynamics.py", "benchmarks/_h2h_spaces.py",
)  # fmt: skip
PLAY_CODE = (
    "jepa_rl/dynamics", "jepa_rl/encoders", "jepa_rl/costs.py", "jepa_rl/temporal.py", "jepa_rl/risk.py",
    "agents/planners", "envs/worlds", "envs/wrappers", "envs/dm_control.py", "benchmarks/_h2h_tasks.py",
    "benchmarks/goal_planning.py",
)  # fmt: skip
MEASURE_CODE = (
    *PLAY_CODE, "jepa_rl/diagnostics", "jepa_rl/heads.py", "jepa_rl/objectives/vae.py", "benchmarks/_h2h_measures.py",
)  # fmt: skip
MEASURED = 9_000_000  # first seed of the worlds that are measured in


def remember_code() -> None:
    """Takes the fingerprints of all stages now: what is edited while a grid runs is not what it runs.

    All tasks are imported, so that the fingerprint of a record does not depend on those that are run.
    """
    for name in (*TASKS, *VARIANTS):
        own = task_of(name).code
        for places in (DATA_CODE, LATENT_CODE, PLAY_CODE, MEASURE_CODE):
            code_of(*places, *own)
    for places in (ENCODER_CODE, LATENT_CODE, DYNAMICS_CODE):
        code_of(*places)


class Cell(NamedTuple):
    """What is scored: an arm, dynamics on it, a task and a training seed."""

    task: str
    arm: str
    dynamics: str
    seed: int

    def __str__(self) -> str:
        return ".".join(map(str, self))


@dataclass(frozen=True)
class Setting:
    """How large everything is.

    Attributes:
        root: of all stages.
        episodes: paired ones.
        tune: play the tuning episodes, after half of the encoder's updates.
        quick: a little of everything; the figures mean nothing.
        change: to the arm, while its settings are chosen; None: the chosen one.
        search: number of the search in ``SEARCHES``; None: the common one.
    """

    root: Path
    episodes: int = 200
    tune: bool = False
    quick: bool = False
    change: dict[str, Any] | None = None
    search: int | None = None


QUICK = {"updates": 4, "dynamics": 4, "episodes": 24, "pictures": 32}


@dataclass(frozen=True)
class Pipeline:
    """The stages of one cell; each runs what it needs."""

    cell: Cell
    setting: Setting

    @cached_property
    def task(self) -> Task:
        task = task_of(self.cell.task)
        if not self.setting.quick:
            return task
        return replace(task, settings=task.settings | {"episodes": QUICK["episodes"]}, budget=2 * task.block)

    @cached_property
    def arm(self) -> Arm:
        arm, change = ARMS[self.cell.arm], self.setting.change
        arm = replace(arm, **(arm.tried[arm.chosen] if change is None else change))
        longest = self.task.settings["steps"] // self.task.block  # of an episode of the data, latent steps
        return replace(arm, window=min(arm.window, longest))

    @cached_property
    def budget(self) -> Budget:
        own = BUDGETS[plain_of(self.cell.task)[0]]
        if self.setting.tune:
            own = own._replace(updates=own.updates // 2)
        if not self.setting.quick:
            return own
        return own._replace(updates=QUICK["updates"], pictures=QUICK["pictures"])

    @cached_property
    def recipe(self) -> Recipe:
        recipe = ALL[self.cell.dynamics]
        return recipe.shortened(QUICK["dynamics"]) if self.setting.quick else recipe

    @property
    def name(self) -> str:
        """Of the stages that do not depend on the dynamics."""
        return f"{self.cell.task}.{self.cell.arm}.{self.cell.seed}"

    # -- stages ---------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> tuple[Path, dict[str, Any]]:
        task, seed = self.task, self.cell.seed
        settings = {"task": task.name, "seed": seed} | task.settings
        stage = Stage("data", f"{task.name}.{seed}", settings, (), (*DATA_CODE, *task.code))

        def work(folder: Path) -> dict[str, Any]:
            store = task.collect(folder / "episodes", seed, task.settings)
            store.close()
            return {"content": content_of(folder / "episodes" / "episodes.jsonl")}

        return run(stage, self.setting.root, work)

    @cached_property
    def views(self) -> tuple[EpisodeView, EpisodeView]:
        """Training and held-out episodes."""
        store = EpisodeStore.open(self.data[0] / "episodes")
        return store.split(0.1, seed=self.cell.seed)

    @cached_property
    def encoded(self) -> tuple[EpisodeView, EpisodeView]:
        """Those of them that dynamics and probes learn on, and are measured on: the first ``task.encoded`` and a tenth
        of that. Encoders learn from all."""
        sizes = self.task.encoded, max(2, self.task.encoded // 10)
        train, held_out = (replace(v, indices=v.indices[:n]) for v, n in zip(self.views, sizes, strict=True))
        return train, held_out

    @cached_property
    def encoder(self) -> tuple[Path, dict[str, Any]]:
        arm = {
            name: value
            for name, value in asdict(self.arm).items()
            if name not in ("tried", "chosen", "whiten")
        }
        settings = {"arm": arm, "budget": self.budget._asdict(), "seed": self.cell.seed}
        settings |= {"frames": self.task.frames, "block": self.task.block}
        stage = Stage("encoder", self.name, settings, (self.data[1]["content"],), ENCODER_CODE)

        def work(folder: Path) -> dict[str, Any]:
            make_encoder(self.arm, self.task, self.views[0], self.budget, self.cell.seed, folder)
            file = folder / "encoder.safetensors"
            return {"content": content_of_tensors(file) if file.exists() else self.arm.make}

        return run(stage, self.setting.root, work)

    @cached_property
    def space(self) -> Space:
        """Its scale is known once ``latents`` were read."""
        return load_space(self.arm, self.encoder[0])

    @cached_property
    def latents(self) -> torch.Tensor:
        """Of all frames of the data, standardised."""
        return read_latents(self.encoding[0] / "latents.safetensors", self.space)

    @cached_property
    def encoding(self) -> tuple[Path, dict[str, Any]]:
        inputs = self.data[1]["content"], self.encoder[1]["content"]
        settings = {"make": self.arm.make, "options": self.arm.encoder_options, "whiten": self.arm.whiten}
        settings |= {"encoded": self.task.encoded}
        code = (*LATENT_CODE, *(self.task.code if self.arm.make == "state" else ()))
        stage = Stage("latents", self.name, settings, inputs, code)

        def work(folder: Path) -> dict[str, Any]:
            encode_frames(self.space, self.task, self.encoded, folder / "latents.safetensors")
            return {"content": content_of_tensors(folder / "latents.safetensors")}

        return run(stage, self.setting.root, work)

    @cached_property
    def dynamics(self) -> tuple[Any, dict[str, Any]]:
        """Trained dynamics, and what the stage found."""
        latents, task, seed = self.latents, self.task, self.cell.seed
        if self.recipe.name == "own":
            world, space = WorldModel.load(self.encoder[0] / "encoder.safetensors"), self.space
            own = OwnPredictor(world, space.mean, space.scale, task.frames)
            return own, {
                "content": self.encoder[1]["content"],
                "processor_seconds": 0.0,
                "peak_memory_mib": 0,
            }
        if isinstance(self.recipe, MeanRecipe):
            drawn, found = replace(self, cell=self.cell._replace(dynamics="flow")).dynamics
            draws = self.recipe.draws
            return MeanOf(drawn, draws), found | {"content": digest(found["content"], draws)}
        settings = {"recipe": asdict(self.recipe), "seed": seed}
        settings |= {"steps": task.steps, "block": task.block, "frames": task.frames}
        inputs = (self.encoding[1]["content"],)
        stage = Stage("dynamics", str(self.cell), settings, inputs, DYNAMICS_CODE)

        def work(folder: Path) -> dict[str, Any]:
            episodes = latent_episodes(latents, self.encoded[0], task.frames)
            train_dynamics(self.recipe, episodes, task.steps, task.block, seed, folder, task.frames)
            return {"content": content_of_dynamics(folder)}

        folder, found = run(stage, self.setting.root, work)
        actions = task.block * self.views[0].spec.action.size
        width = task.frames * latents.shape[1]
        return load_dynamics(self.recipe, width, actions, folder / "model.safetensors"), found

    @cached_property
    def search(self) -> dict[str, Any]:
        """Changes to the task's search."""
        task = plain_of(self.cell.task)[0]
        number = COMMON_SEARCH.get(task, 0) if self.setting.search is None else self.setting.search
        return SEARCHES.get(task, ({},))[number]

    @cached_property
    def played(self) -> dict[str, Any]:
        """Success of every paired episode."""
        return self.played_with(self.search)

    @cached_property
    def played_own(self) -> dict[str, Any] | None:
        """The same with the arm's own search, if it has another than the common one."""
        task, arm, dynamics, _ = self.cell
        number = OWN_SEARCH.get((task, arm)) if dynamics in SEARCHED else None
        if number is None:
            return None
        return {"search": SEARCHES[task][number]} | self.played_with(SEARCHES[task][number])

    def played_with(self, search: dict[str, Any]) -> dict[str, Any]:
        """The same with other changes to the task's search."""
        dynamics, trained = self.dynamics
        seeds = self.episodes()
        settings = {
            "episodes": [seeds[0], len(seeds)],
            "seed": self.cell.seed,
            "planner": planner_facts(self.task, search),
        }
        inputs = trained["content"], self.encoder[1]["content"], self.encoding[1]["content"]
        stage = Stage("play", str(self.cell), settings, inputs, (*PLAY_CODE, *self.task.code))

        def work(folder: Path) -> dict[str, Any]:
            success = play(self.task, self.space, dynamics, seeds, noise=self.cell.seed, search=search)
            return {"content": "", "success": success}

        return run(stage, self.setting.root, work)[1]

    @cached_property
    def sizes(self) -> measuring.Sizes:
        return measuring.QUICK if self.setting.quick else measuring.Sizes()

    @cached_property
    def described(self) -> dict[str, Any]:
        """Measures of the space."""
        latents, settings = self.latents, {"seed": self.cell.seed, "sizes": asdict(self.sizes)}
        inputs = tuple(stage[1]["content"] for stage in (self.encoding, self.encoder, self.data))
        stage = Stage("space", self.name, settings, inputs, (*MEASURE_CODE, *self.task.code))

        def work(folder: Path) -> dict[str, Any]:
            found = measuring.of_space(
                self.task, self.space, latents, self.encoded, self.cell.seed, self.sizes
            )
            return {"content": "", "measures": found}

        return run(stage, self.setting.root, work)[1]["measures"]

    @cached_property
    def measures(self) -> dict[str, Any]:
        """Measures of the dynamics on the space, and of the space."""
        dynamics, trained = self.dynamics
        stages = (self.encoder, self.encoding, self.data)
        inputs = (trained["content"], *(stage[1]["content"] for stage in stages))
        settings = {"seed": self.cell.seed, "sizes": asdict(self.sizes), "search": self.search}
        stage = Stage("measures", str(self.cell), settings, inputs, (*MEASURE_CODE, *self.task.code))

        def work(folder: Path) -> dict[str, Any]:
            task, sizes, (train, held_out) = self.task, self.sizes, self.encoded
            probe = measuring.probe_of(task, self.latents, train, self.cell.seed, sizes)
            seeds = [MEASURED + i for i in range(sizes.worlds)]
            scene = measuring.Scene(task, self.space, dynamics, probe, self.search)
            return {
                "content": "",
                "measures": measuring.of_dynamics(scene, self.latents, held_out, seeds, sizes),
            }

        return self.described | run(stage, self.setting.root, work)[1]["measures"]

    @cached_property
    def found(self) -> dict[str, Any]:
        """What the record of a cell holds."""
        stages = {"encoder": self.encoder[1], "latents": self.encoding[1], "dynamics": self.dynamics[1]}
        seconds = {name: seconds_of(found) for name, found in stages.items()}
        updates = self.budget.updates if self.arm.make == "trained" else 0
        own = self.played_own
        return {
            "success": self.played["success"],
            "own_search": own and {key: own[key] for key in ("search", "success")},
            "measures": self.measures,
            "cost": {
                "processor_seconds": seconds,
                "encoder_updates": updates,
                "dynamics_updates": self.recipe.train["steps"],
                "peak_memory_mib": memory_of(*stages.values()),
            },
        }

    def episodes(self) -> list[int]:
        """Seeds of the paired episodes: the same for every arm, dynamics and training seed."""
        count = 4 if self.setting.quick else self.setting.episodes
        first = TUNE if self.setting.tune else REPORT
        return list(range(first, first + count))


def planner_facts(task: Task, search: dict[str, Any]) -> dict[str, Any]:
    """What the search is, as JSON values."""
    planner: Any = searching(task, task.futures, search)
    facts = {name: value for name, value in asdict(planner).items() if isinstance(value, int | float)}
    return {"name": type(planner).__name__, "reduce": task.reduce, "budget": task.budget} | facts
