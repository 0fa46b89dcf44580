"""One side of processor_speed.py: a process that runs one version of the library.

It reads commands as lines of JSON and answers each with one.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import torch
from _processor_cases import Case, Recipe, name_in, recipe_of

NOT_AVX2 = ("avx512", "avx10", "avx_vnni", "avx_ne", "amx")  # prefixes of torch's names of newer instructions


def hide_newer_instructions() -> None:
    """torch.cpu answers as on a processor with AVX2 alone.

    Environment variables limit the kernels of ATen and oneDNN, but not this answer: the library asks it whether
    bfloat16 is fast, and would train in emulated bfloat16, which no AVX2 processor does.
    """
    found = {k: v and not k.startswith(NOT_AVX2) for k, v in torch.cpu.get_capabilities().items()}
    torch.cpu.get_capabilities = lambda: MappingProxyType(found)


class Side:
    """One version of the library: its data and its cases.

    Args:
        source: folder with ``jepa_rl`` and ``examples`` of this version.
        folder: where its data and models are kept.
        settings: numbers of episodes, updates and calls.
    """

    def __init__(self, source: Path, folder: Path, settings: dict[str, int]) -> None:
        import jepa_rl.agents
        import jepa_rl.envs

        for package in (jepa_rl, jepa_rl.agents, jepa_rl.envs):
            if not Path(str(package.__file__)).is_relative_to(source):
                raise RuntimeError(f"{package.__name__} is {package.__file__}, and should be below {source}")
        sys.path.insert(0, str(source / "examples"))
        self.quickstart = import_module("quickstart")
        self.folder, self.settings = folder, settings
        self.args = self.quickstart.Args(train_episodes=settings["episodes"], out=folder / "quickstart")
        self.args.out.mkdir(parents=True, exist_ok=True)
        store = self.quickstart.random_play(self.args)
        self.train, held_out = store.split(0.1, seed=0)
        self.recipe = recipe_of(self.quickstart, self.args, self.train, held_out)
        self.cases: dict[str, Case] = {}

    def rooms(self) -> gym.Env:
        return gym.make("jepa_rl/TwoRooms-v0", max_episode_steps=200)

    def about(self) -> dict[str, Any]:
        """Version, and the instructions that torch uses."""
        import jepa_rl.version

        return {
            "version": jepa_rl.version.__version__,
            "isa": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        }

    def prepare(self, name: str, sizes: dict[str, Any] | None) -> dict[str, Any]:
        """Makes the case ``name``: the presets, or ``sizes`` that the other version told; its own sizes."""
        preset = name_in("jepa_mpc_preset", "jepa_rl.agents", "jepa_rl.agents.jepa_mpc")("laptop")
        recipe, control = (self.recipe, preset) if sizes is None else self._with_sizes(sizes)
        self.cases[name] = Case(self, name, recipe, control)
        return self.cases[name].sizes()

    def _with_sizes(self, old: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        """The present code with the sizes of version 0.1.0."""
        from jepa_rl.world_model import WorldModelConfig

        world = WorldModelConfig.from_json(old["world"])
        joint, refine = (
            replace(getattr(self.recipe, phase), batch_size=old[phase]["batch_size"])
            for phase in ("joint", "refine")
        )
        recipe = Recipe(
            world=replace(world, spec=self.recipe.world.spec),
            joint=joint,
            window=old["window"],
            block=old["block"],
            refine=refine,
            refine_window=old["refine_window"],
            planner=self.recipe.planner | old["planner"],
        )
        return recipe, control_with_sizes(old["jepa_mpc"])

    def seconds(self, name: str, part: str) -> list[float]:
        return self.cases[name].seconds(part)


def control_with_sizes(old: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the present ``JEPAMPC`` with the sizes of version 0.1.0."""
    from jepa_rl.control import ControlConfig

    policy = dict(old["policy"])
    m = policy.pop("model")
    encoder = old["encoder"] | {name: m[name] for name in ("frame_dim", "keypoints")}
    objective = {name: m[name] for name in ("consistency", "anti_collapse", "shift")}
    world = {
        "latent_dim": m["latent_dim"],
        "encoder": "frames",
        "encoder_options": encoder | {"width": 128},  # of the perceptron that joins frames; fixed then
        "dynamics": "mlp",
        "dynamics_options": {"width": m["width"], "depth": m["depth"]},
        "objective": "consistency",
        "objective_options": objective | {"kind": m["latent"]},
    }
    control = ControlConfig(**{f.name: m[f.name] for f in fields(ControlConfig) if f.name in m})
    search = {k: v for k, v in policy.items() if k not in ("frames", "seed", "discount")}
    n_step = tuple(old["algorithm"]["n_step"])
    return old["algorithm"] | {
        "n_step": n_step, "policy_kwargs": {"world": world, "control": control, **search}
    }  # fmt: skip


def main(source: str, folder: str, settings: str) -> None:
    """Answers commands until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints goes to the log
    options = json.loads(settings)
    torch.set_num_threads(options.pop("threads"))
    if options.pop("hide"):
        hide_newer_instructions()
    side = Side(Path(source), Path(folder), options)
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(side, command.pop("do"))(**command)
        print(json.dumps(answer, default=str), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
