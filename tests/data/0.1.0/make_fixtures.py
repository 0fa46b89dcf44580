"""Files of version 0.1.0 and what that version answers, so that later versions can be held against them.

    python tests/data/0.1.0/make_fixtures.py OUT       # run with version 0.1.0 installed

Writes tiny world models, a training checkpoint, dynamics, proposals, agents, a store and replays to the folder OUT,
``expected.safetensors`` (inputs and answers, ``<file>/<what>``) and ``expected.json`` (configurations, seeds and what
else is no tensor). Answers are those of models in evaluation mode, float32, one thread. Training here never uses
bfloat16, whatever the processor.
"""

from __future__ import annotations

import io
import json
import lzma
import shutil
import sys
import zipfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces

import jepa_rl.encoders.conv
import jepa_rl.encoders.keypoints
import jepa_rl.encoders.vit
from jepa_rl import (
    ActionSpec,
    Batch,
    Episode,
    EpisodeStore,
    Objective,
    TrainConfig,
    WindowSampler,
    WorldModel,
    WorldModelConfig,
    WorldSpec,
    __version__,
    fit,
)
from jepa_rl.agents import (
    CEM,
    CategoricalCEM,
    FlowProposals,
    InverseModel,
    InverseModelAgent,
    MPCAgent,
    fit_flow_proposals,
)
from jepa_rl.agents.jepa_mpc import JEPAMPC, ModelConfig
from jepa_rl.agents.jepa_mpc.replay import EpisodeReplay
from jepa_rl.costs import GoalCost
from jepa_rl.data.latents import LatentEpisodes
from jepa_rl.objectives import EB_JEPA, EMA
from jepa_rl.refine import refine_dynamics
from jepa_rl.risk import ChanceConstraint, CVaR

BOX = ActionSpec("continuous", 2, (-2.0, -1.0), (2.0, 3.0))
CHOICE = ActionSpec("discrete", 3, start=1)
FLOW = dict(width=8, depth=1, heads=2, mlp_ratio=1)
DRAW = 7  # seed of torch.Generator behind every rollout that is expected

STOP = Objective(sigreg=0.1, variance=1.0, covariance=0.04, straightness=0.1, target="stop_gradient")

# File -> configuration; every encoder, every dynamics, every objective.
WORLDS: dict[str, WorldModelConfig] = {
    "world_conv_mlp_sigreg_inverse_discrete": WorldModelConfig(
        WorldSpec((3, 16, 16), 3, CHOICE), 4, "conv", "mlp",
        dict(widths=(4, 6)), dict(width=12, depth=1), Objective(sigreg=0.5, inverse_dynamics=2.0, projections=16),
    ),
    "world_conv_mlp_sigreg_discrete_block2_odd_size": WorldModelConfig(
        WorldSpec((2, 18, 18), 1, CHOICE, 2), 6, "conv", "mlp",
        dict(widths=(6,), patch=4), dict(width=12, depth=1), Objective(sigreg=0.5),
    ),
    "world_frames_gru_ebjepa_block2": WorldModelConfig(
        WorldSpec((3, 16, 16), 3, BOX, 2), 6, "frames", "gru",
        dict(frames=3, widths=(6, 8), frame_dim=6, width=10), dict(width=10), EB_JEPA,
    ),
    "world_keypoints_transformer_ema": WorldModelConfig(
        WorldSpec((3, 16, 16), 1, BOX), 6, "keypoints", "transformer",
        dict(keypoints=3, widths=(8, 6), blur=1.0),
        dict(width=8, depth=2, heads=2, head_dim=4, mlp_width=10, context=2), EMA,
    ),
    "world_vit_flow_context2_lag_drop_guidance_stop_gradient": WorldModelConfig(
        WorldSpec((3, 16, 16), 1, BOX, 2), 6, "vit", "flow",
        dict(width=8, depth=1, heads=2, patch=8), dict(**FLOW, context=2, lag=0.5, drop=0.2, guidance=1.5, evaluations=2), STOP,
    ),
    "world_conv_flow_low_noise_shift_context_noise": WorldModelConfig(
        WorldSpec((3, 16, 16), 3, BOX), 6, "conv", "flow",
        dict(widths=(4, 6)),
        dict(**FLOW, energy=2.0, low_noise=1.0, shift=0.5, context_noise=0.1, evaluations=3), STOP,
    ),
    "world_vit_ensemble_discrete_block2": WorldModelConfig(
        WorldSpec((3, 16, 16), 1, CHOICE, 2), 6, "vit", "ensemble",
        dict(width=8, depth=1, heads=2), dict(members=2, width=8, depth=1), Objective(sigreg=0.5),
    ),
    "world_frames_of_keypoints_mixture_block2": WorldModelConfig(
        WorldSpec((3, 16, 16), 3, BOX, 2), 6, "frames", "mixture",
        dict(frames=3, widths=(8, 6), frame_dim=6, keypoints=2), dict(components=3, width=10, depth=1),
        Objective(sigreg=0.5),
    ),
}  # fmt: skip

out: Path
tensors: dict[str, torch.Tensor] = {}
facts: dict[str, dict] = {}


def keep(name: str, **found) -> None:
    for key, value in found.items():
        tensor = torch.from_numpy(np.array(value)) if not isinstance(value, torch.Tensor) else value
        tensors[f"{name}/{key}"] = tensor.detach().clone().contiguous()


class RandomWindows:
    """Windows of noise, for models of any spec."""

    def __init__(self, spec: WorldSpec, steps: int) -> None:
        self.spec, self.steps = spec, steps

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        h = self.steps
        return Batch(
            torch.from_numpy(rng.integers(0, 256, (batch_size, h + 1, *self.spec.pixels), dtype=np.uint8)),
            model_actions(self.spec, (batch_size, h), rng),
            torch.zeros(batch_size, h),
            torch.zeros(batch_size, h, dtype=torch.bool),
        )


def model_actions(spec: WorldSpec, shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    whole = (*shape, spec.block)
    if spec.action.kind == "discrete":
        chosen = rng.integers(0, spec.action.size, whole)
        return torch.from_numpy(np.eye(spec.action.size, dtype=np.float32)[chosen].reshape(*shape, -1))
    return torch.from_numpy(
        rng.uniform(-1, 1, (*whole, spec.action.size)).astype(np.float32).reshape(*shape, -1)
    )


def new(config: WorldModelConfig, seed: int) -> WorldModel:
    torch.manual_seed(seed)
    return WorldModel(config)


def trained(name: str, model: WorldModel, updates: int = 3) -> WorldModel:
    """Updates that move statistics and averages, too; heads and gates that start at zero get some weight."""
    for key, weight in model.named_parameters():
        if "modulation" in key or "dynamics.network.head" in key or "nearness" in key:
            torch.nn.init.normal_(weight, std=0.2)
    if hasattr(model.dynamics, "average"):
        model.dynamics.average.load_state_dict(model.dynamics.network.state_dict())
    config = TrainConfig(steps=updates, batch_size=16, learning_rate=1e-2, seed=1)
    folder = out / "scratch" / name
    fit(model, RandomWindows(model.spec, 3), config, folder, progress=False)
    return rounded(model)


@torch.no_grad()
def rounded(model):
    """Numbers of half as many digits: they pack better."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16().float())
    return model.eval()


@torch.no_grad()
def answers(name: str, model: WorldModel) -> None:
    """Latents of the fixed pictures and rollouts from the first three of them."""
    pixels = tensors[f"inputs/pixels_{'x'.join(map(str, model.spec.pixels))}"]
    z = model.encode(pixels)
    actions = model_actions(model.spec, (3, 4), np.random.default_rng(5))
    keep(name, latents=z, actions=actions)
    for futures in (1, 3):
        generator = torch.Generator().manual_seed(DRAW)
        keep(
            name,
            **{f"rollout_{futures}": model.rollout(z[:3], actions, futures=futures, generator=generator)},
        )
    facts.setdefault(name, {}).update(
        generator_seed=DRAW, encoder_fingerprint=model.encoder_fingerprint(), config=asdict(model.config)
    )


def main(folder: str) -> None:
    global out
    assert __version__ == "0.1.0", f"this writes files of version 0.1.0, found {__version__}"
    torch.set_num_threads(1)
    for module in (jepa_rl.encoders.conv, jepa_rl.encoders.keypoints, jepa_rl.encoders.vit):
        module.bfloat16_is_fast = lambda device: False
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for shape in ((3, 16, 16), (2, 18, 18)):
        keep(
            "inputs",
            **{f"pixels_{'x'.join(map(str, shape))}": rng.integers(0, 256, (5, *shape), dtype=np.uint8)},
        )
    worlds = {}
    for i, (name, config) in enumerate(WORLDS.items()):
        worlds[name] = trained(name, new(config, i))
        worlds[name].save(out / f"{name}.safetensors")
        answers(name, WorldModel.load(out / f"{name}.safetensors"))
    store = episode_store()
    checkpoints(store)
    dynamics_of_another_file(worlds["world_conv_flow_low_noise_shift_context_noise"], store)
    proposals(worlds["world_frames_gru_ebjepa_block2"], store)
    agents(worlds)
    replays()
    jepa_mpc()
    shutil.rmtree(out / "scratch")
    safetensors.torch.save_file(tensors, out / "expected.safetensors", {"version": __version__})
    facts["versions"] = {"jepa_rl": __version__, "torch": torch.__version__, "numpy": np.__version__}
    (out / "expected.json").write_text(json.dumps(facts, indent=1, default=str) + "\n")


def episode_store() -> EpisodeStore:
    name = "store_frames3_extra_position"
    shutil.rmtree(out / name, ignore_errors=True)
    rng = np.random.default_rng(3)
    extras = {"position": ((2,), np.float32)}
    store = EpisodeStore.create(out / name, (1, 16, 16), BOX, frames=3, extras=extras)
    for i, length in enumerate((7, 3, 10)):
        actions = rng.uniform((-2, -1), (2, 3), (length, 2)).astype(np.float32)
        store.append(
            Episode(
                rng.integers(0, 256, (length + 1, 1, 16, 16), dtype=np.uint8),
                actions,
                rng.normal(size=length).astype(np.float32),
                terminated=i != 1,
                truncated=i == 1,
                extras={"position": rng.normal(size=(length + 1, 2)).astype(np.float32)},
                metadata={"seed": i},
            )
        )
    store.close()
    (out / name / "lock").unlink(missing_ok=True)
    found = EpisodeStore.open(out / name)
    sampler = WindowSampler(found, steps=2, block=2)
    windows = sampler.draw(2, np.random.default_rng(11))
    batch = sampler.sample(2, np.random.default_rng(11))
    pairs = sampler.sample_pairs(2, np.random.default_rng(12), max_offset=3)
    single = WindowSampler(found.view([0, 2]), steps=3, frames=1).sample(2, np.random.default_rng(13))
    keep(name, windows=windows, pixels=batch.pixels, actions=batch.actions, rewards=batch.rewards,
         terminated=batch.terminated, position=sampler.extra("position", windows),
         pairs_pixels=pairs.pixels, pairs_goals=pairs.goals, pairs_actions=pairs.actions, pairs_offsets=pairs.offsets,
         view_pixels=single.pixels, view_actions=single.actions)  # fmt: skip
    facts[name] = {
        "lengths": found.lengths.tolist(), "terminated": found.terminated.tolist(),
        "windows": "WindowSampler(store, steps=2, block=2): draw(2, default_rng(11)), sample(2, default_rng(11)), "
        "extra('position', windows); sample_pairs(2, default_rng(12), max_offset=3)",
        "view": "WindowSampler(store.view([0, 2]), steps=3, frames=1).sample(2, default_rng(13))",
        "len(sampler)": len(sampler), "metadata": [dict(found.episode(i).metadata) for i in range(3)],
    }  # fmt: skip
    return found


class Stop(Exception):
    pass


class StopsAfter:
    """A sampler whose process is killed after so many batches."""

    def __init__(self, sampler: WindowSampler, batches: int) -> None:
        self.sampler, self.left = sampler, batches

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        if not self.left:
            raise Stop
        self.left -= 1
        return self.sampler.sample(batch_size, rng)


def checkpoints(store: EpisodeStore) -> None:
    """Runs of six updates that were killed behind the third; and where they end when they go on."""
    for optimizer in ("adamw", "muon"):
        name = f"checkpoint_{optimizer}_at_3_of_6"
        config = WorldModelConfig(
            WorldSpec((3, 16, 16), 3, BOX), 6, "conv", "mlp", dict(widths=(4, 4)), dict(width=8, depth=1),
            Objective(sigreg=0.5, target="ema", projections=8),
        )  # fmt: skip
        train = TrainConfig(
            steps=6, batch_size=8, seed=2, checkpoint_every=3, log_every=1, optimizer=optimizer
        )
        sampler, folder = WindowSampler(store, steps=2), out / name
        try:
            fit(new(config, 20), StopsAfter(sampler, 4), train, folder, progress=False)
        except Stop:
            pass
        for path in folder.iterdir():
            if path.name != "checkpoint.safetensors":
                path.unlink()
        answers(name, WorldModel.load(folder / "checkpoint.safetensors"))
        shutil.copytree(folder, out / "scratch" / name)
        whole = new(config, 99)
        result = fit(whole, sampler, train, out / "scratch" / name, progress=False)
        answers(f"{name}_resumed", whole)
        del result.metrics["jepa/frames_per_second"]
        facts[name] |= {
            "train": asdict(train), "sampler": "WindowSampler(store_frames3_extra_position, steps=2)",
            "resumed": "fit of a fresh model in a copy of the folder, without bfloat16 (bfloat16_is_fast was False); "
            "its answers are those of <name>_resumed, and its last metrics are final_metrics",
            "final_metrics": result.metrics,
        }  # fmt: skip


def dynamics_of_another_file(world: WorldModel, store: EpisodeStore) -> None:
    """A file of ``save_dynamics`` that belongs to the encoder of ``world``."""
    name = "dynamics_mixture_of_world_conv_flow_low_noise_shift_context_noise"
    torch.manual_seed(30)
    other = world.with_dynamics("mixture", components=2, width=8, depth=1)
    config = TrainConfig(steps=3, batch_size=16, learning_rate=1e-2)
    refine_dynamics(other, store, out / "scratch" / name, steps=3, config=config, progress=False)
    rounded(other.dynamics)
    other.save_dynamics(out / f"{name}.safetensors")
    answers(name, world.load_dynamics(out / f"{name}.safetensors"))
    encoded = LatentEpisodes.encode(world, store)
    keep(name, store_latents=encoded.latents, store_actions=encoded.actions)
    facts[name]["world"] = "world_conv_flow_low_noise_shift_context_noise"
    facts[name]["store_latents"] = "LatentEpisodes.encode(world, store_frames3_extra_position)"


def proposals(world: WorldModel, store: EpisodeStore) -> None:
    """The flow of 0.1.0's proposals is 96 wide whatever one asks for: most weights are made 0 and the file packed."""
    name = "flow_proposals_of_world_frames_gru_ebjepa_block2"
    dynamics = MPCAgent(world, CEM(3), hold=True).dynamics
    starts = LatentEpisodes.encode(world, store).latents
    made = fit_flow_proposals(
        dynamics,
        starts,
        horizon=3,
        paths=100,
        updates=3,
        batch_size=32,
        width=8,
        depth=1,
        mlp_ratio=1,
        context=1,
    )
    generator = torch.Generator().manual_seed(31)
    for key, weight in made.paths.network.named_parameters():
        if weight.ndim > 1:
            if "modulation" in key or "head" in key:
                torch.nn.init.normal_(weight, std=0.5, generator=generator)
            there = torch.rand(weight.shape, generator=generator) < 0.01
            weight.copy_(5 * weight * there)
    rounded(made)
    made.paths.average.load_state_dict(made.paths.network.state_dict())
    file = out / f"{name}.safetensors"
    made.save(file, world)
    loaded = FlowProposals.load(file, world=world)
    rng = np.random.default_rng(32)
    z, goal = (torch.from_numpy(rng.normal(size=(2, 6)).astype(np.float32)) for _ in range(2))
    paths, actions = loaded.draw(z, goal, 6, torch.Generator().manual_seed(DRAW))
    keep(name, z=z, goal=goal, paths=paths, actions=actions)
    facts[name] = {
        "file": f"{name}.safetensors.xz", "packed": "lzma: unpack before FlowProposals.load(path, world=...)",
        "draw": "draw(z, goal, 6, torch.Generator().manual_seed(7))", "generator_seed": DRAW,
        "settings": loaded.settings, "world": "world_frames_gru_ebjepa_block2",
    }  # fmt: skip
    (out / f"{name}.safetensors.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9))
    file.unlink()


def agents(worlds: dict[str, WorldModel]) -> None:
    pixels = {
        tuple(p.shape[1:]): p.numpy() for name, p in tensors.items() if name.startswith("inputs/pixels")
    }

    def seen(agent, i: int) -> dict[str, np.ndarray]:
        rows = pixels[agent.spec.pixels]
        return {"pixels": rows[i : i + 2], "goal": rows[3:5]}

    careful = CEM(3, samples=16, elites=4, iterations=2, futures=4, risk=CVaR(0.5))
    most = CategoricalCEM(
        3, samples=16, elites=4, iterations=2, choices=3, risk=ChanceConstraint(8.0, 0.3), futures=2
    )
    made = {
        "mpc_agent_cem_cvar_hold_keep": MPCAgent(
            worlds["world_frames_of_keypoints_mixture_block2"], careful, cost=partial(GoalCost, reduce="last"),
            hold=True, replan_every=4, keep=0.5, seed=3,
        ),
        "mpc_agent_categorical_chance_constraint": MPCAgent(
            worlds["world_conv_mlp_sigreg_discrete_block2_odd_size"], most, cost=partial(GoalCost, distance="mse"), seed=4
        ),
    }  # fmt: skip
    for name, agent in made.items():
        agent.save(out / f"{name}.safetensors")
        agent, state, found = MPCAgent.load(out / f"{name}.safetensors"), None, []
        for call, i in enumerate((0, 1, 2, 0, 1, 2)):
            start = np.array([call == 0, call in (0, 3)])
            actions, state = agent.predict(seen(agent, i), state, start)
            found.append(actions)
        keep(name, predicted=np.stack(found), plan=state.plan)
        facts[name] = {
            "predict": "six calls with {'pixels': inputs/pixels_<shape>[i:i+2], 'goal': [3:5]}, i = 0 1 2 0 1 2, the "
            "state handed on, episode_start=[call == 0, call in (0, 3)]",
            "planner": repr(agent.planner),
        }  # fmt: skip
    name, world = "inverse_model_agent", worlds["world_frames_of_keypoints_mixture_block2"]
    torch.manual_seed(40)
    inverse = InverseModel(6, BOX, width=8)
    with torch.no_grad():
        z = world.encode(torch.from_numpy(pixels[world.spec.pixels]))
        inverse.mean.copy_(z.mean(0))
        inverse.std.copy_(z.std(0))
    agent = InverseModelAgent(world, inverse)
    agent.save(out / f"{name}.safetensors")
    found, _ = InverseModelAgent.load(out / f"{name}.safetensors").predict(seen(agent, 0))
    keep(name, predicted=found)
    facts[name] = {"predict": "{'pixels': inputs/pixels_3x16x16[0:2], 'goal': [3:5]}"}


def replays() -> None:
    box = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    kinds = {
        "replay_frames3_pixels_and_vector": (
            {"pixels": box, "state": spaces.Box(-np.inf, np.inf, (2,), np.float32)}, 3
        ),
        "replay_pixels": ({"observation": spaces.Box(0, 255, (1, 8, 8), np.uint8)}, 1),
    }  # fmt: skip
    for name, (space, frames) in kinds.items():
        rng = np.random.default_rng(50)
        replay = EpisodeReplay(space, 2, 60, frames)
        for number, length in enumerate((4, 9, 6)):
            pictures = rng.integers(0, 256, (length + 1, 8, 8), dtype=np.uint8)
            vectors = rng.normal(size=(length + 1, 2)).astype(np.float32)

            def state(t: int, pictures=pictures, vectors=vectors) -> dict[str, np.ndarray]:
                stack = np.stack([pictures[max(0, t - k)] for k in range(frames)][::-1])[None]
                parts = {"pixels": stack, "observation": stack, "state": vectors[None, t]}
                return {key: parts[key] for key in space}  # noqa: B023

            for t in range(length):
                last = t == length - 1
                replay.add(
                    state(t), rng.uniform(-1, 1, (1, 2)).astype(np.float32), rng.normal(size=1), state(t + 1),
                    np.array([last and number != 1]), np.array([last]),
                )  # fmt: skip
        replay.save(out / f"{name}.safetensors")
        other = EpisodeReplay(space, 2, 60, frames)
        other.load(out / f"{name}.safetensors")
        for n_step in (2, 4):
            windows = other.sample(4, 2, np.random.default_rng(51), n_step, 0.9)
            for key, value in windows._asdict().items():
                if isinstance(value, dict):
                    keep(name, **{f"n{n_step}_{key}.{part}": x for part, x in value.items()})
                elif value is not None:
                    keep(name, **{f"n{n_step}_{key}": value})
        facts[name] = {
            "sample": "n<k>_*: sample(4, 2, default_rng(51), n_step=k, discount=0.9) for k = 2, 4; future is None for 2",
            "replay": "EpisodeReplay(space, 2, 60, frames)", "frames": frames, "episodes": other.episodes.tolist(),
            "space": {key: [list(part.shape), str(part.dtype)] for key, part in space.items()},
        }  # fmt: skip


def jepa_mpc() -> None:
    """``jepa_mpc.zip``: settings of JEPAMPC's zip file, without weights; later versions refuse it."""
    env = gym.make("MountainCarContinuous-v0")
    kwargs = {"model": ModelConfig(latent_dim=2, width=4, bins=5), "samples": 4, "elites": 2}
    saved = io.BytesIO()
    JEPAMPC("MlpPolicy", env, buffer_size=10, seed=0, policy_kwargs=kwargs).save(saved)
    with zipfile.ZipFile(saved) as whole, zipfile.ZipFile(out / "jepa_mpc.zip", "w", zipfile.ZIP_DEFLATED) as part:
        for name in ("data", "_stable_baselines3_version"):
            part.writestr(zipfile.ZipInfo(name), whole.read(name))


if __name__ == "__main__":
    main(sys.argv[1])
