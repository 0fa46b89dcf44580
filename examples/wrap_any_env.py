"""Wrap environments that you already have: pictures, then latents, each in three lines.

    python examples/wrap_any_env.py
    python examples/wrap_any_env.py --env-ids Pendulum-v1 CarRacing-v3

Writes runs/wrap_any_env/: results.json, wrapped.png and TensorBoard events.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter

from jepa_rl.envs import PixelObservation, VectorLatentObservation, world_spec, wrap
from jepa_rl.world_model import WorldModel, WorldModelConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CarRacing draws with SDL; no window is needed


@dataclass(frozen=True)
class Args:
    env_ids: tuple[str, ...] = ("CartPole-v1", "Pendulum-v1", "jepa_rl/TwoRooms-v0")
    """Gymnasium ids; one that is not Gymnasium's own is written module:id."""
    steps: int = 200
    num_envs: int = 4
    latent_dim: int = 32
    seed: int = 0
    quick: bool = False
    """Fewer steps, for a test run of seconds."""
    out: Path = Path("runs/wrap_any_env")


def untrained(env_id: str, args: Args) -> Path:
    """A saved world model that fits the environment; examples/train_world_model.py trains useful ones."""
    env = PixelObservation(gym.make(env_id, render_mode="rgb_array"))
    torch.manual_seed(args.seed)
    path = args.out / f"{env_id.replace('/', '-').replace(':', '-')}.safetensors"
    WorldModel(WorldModelConfig(world_spec(env), latent_dim=args.latent_dim)).save(path)
    env.close()
    return path


def frames_per_second(env: gym.Env | gym.vector.VectorEnv, steps: int, seed: int) -> float:
    """Random actions; vector environments count every sub-environment's step."""
    env.action_space.seed(seed)
    env.reset(seed=seed)
    start = time.perf_counter()
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if isinstance(env, gym.Env) and (terminated or truncated):
            env.reset()
    return steps * getattr(env, "num_envs", 1) / (time.perf_counter() - start)


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    steps = 20 if args.quick else args.steps
    results, pictures = {}, {}
    with SummaryWriter(str(args.out)) as board:
        for env_id in args.env_ids:
            checkpoint = untrained(env_id, args)

            # Pictures: three lines.
            env = gym.make(env_id, render_mode="rgb_array")
            env = PixelObservation(env, size=64, frames=3)
            pixels, _ = env.reset(seed=args.seed)
            pictures[env_id] = (env.render(), pixels)

            # Latents: three lines. Any agent for vector observations trains on this environment.
            latent_env = wrap(env_id, checkpoint)
            latents, _ = latent_env.reset(seed=args.seed)
            latents, *_ = latent_env.step(latent_env.action_space.sample())

            # Several environments, encoded as one batch: three lines.
            make = lambda env_id=env_id: PixelObservation(gym.make(env_id, render_mode="rgb_array"))  # noqa: E731
            venv = gym.vector.SyncVectorEnv([make] * args.num_envs)
            venv = VectorLatentObservation(venv, checkpoint)

            results[env_id] = row = {
                "pixels": list(pixels.shape),
                "latents": list(latents.shape),
                "latent_std": float(np.std(latents)),
                "pixel_fps": frames_per_second(env, steps, args.seed),
                "latent_fps": frames_per_second(latent_env, steps, args.seed),
                "vector_latent_fps": frames_per_second(venv, steps, args.seed),
            }
            print(
                f"{env_id:22} pixels {pixels.shape} {row['pixel_fps']:6.0f}/s   latents {latents.shape} "
                f"{row['latent_fps']:6.0f}/s   x{args.num_envs} {row['vector_latent_fps']:6.0f}/s"
            )
            for name in ("pixel_fps", "latent_fps", "vector_latent_fps"):
                board.add_scalar(f"{env_id}/{name}", row[name])
            for each in (env, latent_env, venv):
                each.close()
        board.add_figure("wrapped", figure := draw(pictures), close=False)
    figure.savefig(args.out / "wrapped.png", dpi=100)
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    print(f"wrote {args.out}/")


def draw(pictures: dict[str, tuple[np.ndarray, np.ndarray]]) -> plt.Figure:
    """What render() shows beside the newest frame that the agent sees."""
    figure, axes = plt.subplots(2, len(pictures), figsize=(3 * len(pictures), 6), squeeze=False)
    for column, (env_id, (full, pixels)) in zip(axes.T, pictures.items(), strict=True):
        newest = pixels[-(len(pixels) // 3) :].transpose(1, 2, 0)
        shown = newest if newest.shape[2] == 3 else newest.max(2)
        for axis, picture, title in zip(
            column, (full, shown), (env_id, "64 x 64, newest frame"), strict=True
        ):
            axis.imshow(picture, cmap="gray")
            axis.set_title(title)
            axis.axis("off")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main(tyro.cli(Args))
