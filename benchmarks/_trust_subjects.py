"""Small files of every kind that the library reads, and what reading one gives."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _trust_runs import WORLD, Spot, digest, model

from jepa_rl import EpisodeStore, TrainConfig, WindowSampler, WorldModel, fit, hub
from jepa_rl.agents import CEM, JEPAMPC, InverseModelAgent, MPCAgent, ResumableRun
from jepa_rl.control import ControlConfig, load_control
from jepa_rl.csv_log import CSVLog, read_csv
from jepa_rl.data.replay import EpisodeReplay
from jepa_rl.dynamics.flow.proposals import FlowProposals
from jepa_rl.envs import collect
from jepa_rl.files import open_run
from jepa_rl.inverse import InverseModel
from jepa_rl.spaces import observation_boxes

ONCE = TrainConfig(steps=2, batch_size=4, checkpoint_every=2, log_every=2, evaluate_every=2)


@dataclass(frozen=True)
class Subject:
    """One kind of file.

    Attributes:
        files: that are damaged, by their names inside the folder; the first ones are safetensors where it says so.
        load: reads the folder; a digest of what was read, in use where that is cheap.
        share: of the tries, relative to others.
        whole: whether every changed byte must be noticed. Texts that people may edit hold no checksum.
    """

    files: tuple[str, ...]
    load: Callable[[Path], str]
    share: float = 1.0
    whole: bool = True


def tiny_agent() -> JEPAMPC:
    return JEPAMPC(
        "CnnPolicy", Spot(), seed=3, learning_starts=10, batch_size=4, buffer_size=60, n_step=3,
        policy_kwargs={
            "world": {"latent_dim": 8, **WORLD}, "control": ControlConfig(width=8, bins=11),
            "samples": 4, "elites": 2, "iterations": 1, "proposals": 1,
        },
    )  # fmt: skip


def replay() -> EpisodeReplay:
    return EpisodeReplay(observation_boxes(Spot.observation_space), 2, 100, frames=2)


def make(folder: Path) -> None:
    """One folder of originals for each subject."""
    store = collect(Spot(), folder / "store", episodes=6, seed=0, progress=False)
    collect(Spot(), folder / "elsewhere", episodes=6, seed=0, progress=False)
    world = model(store).eval()
    world.save(_in(folder, "world_model") / "model.safetensors")
    world.save_dynamics(_in(folder, "dynamics") / "dynamics.safetensors")
    world.save(folder / "dynamics/world.safetensors")
    fit(model(store), WindowSampler(store, 3), ONCE, folder / "training", progress=False)
    proposals = FlowProposals(8, 2, 3, width=8, network={"width": 8, "depth": 1, "heads": 2})
    proposals.save(_in(folder, "flow_proposals") / "flow.safetensors")
    MPCAgent(world, CEM(horizon=3, samples=8, elites=2, iterations=1)).save(
        _in(folder, "mpc_agent") / "agent.safetensors"
    )
    InverseModelAgent(world, InverseModel(8, world.spec.action, 8)).save(
        _in(folder, "inverse_model_agent") / "agent.safetensors"
    )
    agent = tiny_agent().learn(40, callback=ResumableRun(folder / "run", every=20))
    agent.save_weights(_in(folder, "control") / "weights.safetensors")
    rows = replay()
    for i in range(len(store)):
        e = store.episode(i)
        stacks = np.concatenate([e.frames[[0, *range(len(e))]], e.frames], axis=1)
        for t in range(len(e)):
            over = np.array([t == len(e) - 1])
            rows.add(
                {"observation": stacks[t : t + 1]}, e.actions[t : t + 1], e.rewards[t : t + 1],
                {"observation": stacks[t + 1 : t + 2]}, over, over,
            )  # fmt: skip
    rows.save(_in(folder, "replay") / "replay.safetensors")
    name = "cartpole"
    shutil.copy(hub.FOLDER / f"{name}.json", _in(folder, "hub") / f"{name}.json")
    shutil.copy(hub.FOLDER / f"{name}.safetensors", folder / "hub")
    CSVLog(_in(folder, "progress") / "progress.csv").write(2, {"loss": 1.0, "text": 'of "words"'})
    open_run(folder / "settings", {"steps": 3, "name": "run"})


def _in(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    return folder / name


def of_world(world: Any) -> str:
    """A world model by its weights, configuration and use."""
    pixels = torch.zeros(2, *world.spec.pixels, dtype=torch.uint8)
    with torch.no_grad():
        z = world.encode(pixels)
        path = world.rollout(z.nan_to_num(), torch.zeros(2, 2, world.action_dim))
    return digest(world.state_dict() | {"config": str(world.config), "z": z, "path": path})


def load_training(folder: Path) -> str:
    store = EpisodeStore.open(folder.parent / "originals/elsewhere")
    world = model(store)
    result = fit(world, WindowSampler(store, 3), ONCE, folder, progress=False)
    return of_world(world) + digest({"metrics": dict(result.metrics), "alarms": list(result.alarms)})


def load_dynamics(folder: Path) -> str:
    world = WorldModel.load(folder.parent / "originals/world_model/model.safetensors")
    return of_world(world.load_dynamics(folder / "dynamics.safetensors"))


def load_mpc(folder: Path) -> str:
    agent = MPCAgent.load(folder / "agent.safetensors")
    settings = {name: str(value) for name, value in vars(agent.planner).items()}
    return of_world(agent.model) + digest(settings | {"every": agent.replan_every, "keep": agent.keep})


def load_inverse(folder: Path) -> str:
    agent = InverseModelAgent.load(folder / "agent.safetensors")
    return of_world(agent.model) + digest(agent.inverse.state_dict())


def load_weights(folder: Path) -> str:
    control, settings = load_control(folder / "weights.safetensors")
    JEPAMPC.from_weights(folder / "weights.safetensors", Spot())
    return of_world(control.world) + digest(control.state_dict() | settings | {"discount": control.discount})


def load_flow(folder: Path) -> str:
    proposals = FlowProposals.load(folder / "flow.safetensors")
    z = torch.zeros(1, proposals.latent_dim)
    proposals.draw(z, z, 3, torch.Generator().manual_seed(0))
    return digest(proposals.state_dict() | proposals.settings)


def load_replay(folder: Path) -> str:
    rows = replay()
    rows.load(folder / "replay.safetensors")
    rows.sample(8, 2, np.random.default_rng(0))
    return digest(rows.columns | {"episodes": rows.episodes})


def load_run(folder: Path) -> str:
    agent = tiny_agent()
    agent.learn(40, callback=ResumableRun(folder, every=20))
    drawn = agent.replay_buffer.sample(8, 2, np.random.default_rng(0))
    return digest(agent.policy.state_dict() | {"pixels": drawn.pixels, "steps": agent.num_timesteps})


def load_store(folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a line that is dropped is said in a warning
        store = EpisodeStore.open(folder)
        store.verify()
    WindowSampler(store, 2).sample(8, np.random.default_rng(0))
    columns = {name: np.array(store.column(name)) for name in ("frames", "actions", "rewards")}
    return digest(columns | {"lengths": store.lengths, "layout": str(store.layout)} | {
        f"metadata.{i}": store.episode(i).metadata for i in range(len(store))
    })  # fmt: skip


def load_hub(folder: Path) -> str:
    path = hub.path("cartpole", folder)
    if path.parent != folder:
        raise ArithmeticError(f"the hub answered {path}, outside {folder}")
    return of_world(WorldModel.load(path))


def load_progress(folder: Path) -> str:
    columns, rows = read_csv(folder / "progress.csv")
    CSVLog(folder / "progress.csv", keep_to=2).write(4, {"loss": 0.5})
    return digest({"columns": columns, "rows": rows})


def load_settings(folder: Path) -> str:
    open_run(folder, {"steps": 3, "name": "run"})
    return ""


SUBJECTS: dict[str, Subject] = {
    "world_model": Subject(
        ("model.safetensors",), lambda folder: of_world(WorldModel.load(folder / "model.safetensors")), 2
    ),
    "training": Subject(("checkpoint.safetensors",), load_training),
    "control": Subject(("weights.safetensors",), load_weights),
    "dynamics": Subject(("dynamics.safetensors",), load_dynamics),
    "flow_proposals": Subject(("flow.safetensors",), load_flow),
    "mpc_agent": Subject(("agent.safetensors",), load_mpc),
    "inverse_model_agent": Subject(("agent.safetensors",), load_inverse),
    "replay": Subject(("replay.safetensors",), load_replay, 2),
    "run": Subject(("checkpoint.safetensors", "episodes/*.safetensors"), load_run, 0.5),
    "store": Subject(
        ("store.json", "episodes.jsonl", "frames.bin", "actions.bin", "rewards.bin"), load_store, 3
    ),
    "hub": Subject(("cartpole.safetensors", "cartpole.json"), load_hub, 0.5),
    "progress": Subject(("progress.csv",), load_progress, 0.5, whole=False),
    "settings": Subject(("args.json",), load_settings, 0.5, whole=False),
}
