"""Train Stable-Baselines3's SAC only in the dream of a world model, then let it act in the world.

    python examples/dream.py
    python examples/dream.py --world runs/mine/agent.safetensors --env-id Pendulum-v1 --action-repeat 2

The world model is JEPAMPC's, from a checkpoint of the package or a file of ``agent.save_weights``. The swing-up needs
the extra [dmc] and OpenGL. The world gives only the states in which dreams start: a few episodes of JEPAMPC, disturbed
by random actions. Writes runs/dream/: results.json, dream.gif (an imagined episode, decoded), dreamer.zip and
TensorBoard events. Every run starts from the beginning and overwrites an earlier one.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from PIL import Image
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from jepa_rl.agents import JEPAMPC, play_episodes
from jepa_rl.agents.sb3.progress import LearningProgress
from jepa_rl.control import ControlModel
from jepa_rl.data import EpisodeStore, WindowSampler
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.envs import ActionRepeat, DreamEnv, DreamVecEnv, PixelObservation, collect, wrap
from jepa_rl.files import remove_run
from jepa_rl.heads import PictureDecoder
from jepa_rl.progress import track
from jepa_rl.world_model import WorldModel

EVALUATION_SEED = 1_000_000  # of the first episode


@dataclass(frozen=True)
class Args:
    world: str = "hub:cartpole-swingup"
    """JEPAMPC's weights: the name of a checkpoint, or a file of ``agent.save_weights``."""
    env_id: str = "dmc/cartpole-swingup-v0"
    """Gymnasium id of the environment with continuous actions that they come from."""
    action_repeat: int = 8
    """Environment steps for each decision, as in the training of the weights."""
    start_episodes: int = 40
    """Episodes in the world whose states dreams start in."""
    dream_steps: int = 300_000
    horizon: int = 15
    """Decisions of a dream, at most."""
    residuals: float = 0.5
    """Scale of the noise in dreams: errors of the model in the episodes of the starts."""
    updates: int = 8
    """Updates of SAC for each step of all dreams."""
    episodes: int = 20
    """Episodes in each evaluation."""
    seed: int = 0
    quick: bool = False
    """A few steps of everything, for a test run of seconds."""
    out: Path = Path("runs/dream")


def make_env(args: Args) -> gym.Env:
    look = {"render": "fast", "render_size": 64} if args.env_id.startswith("dmc/") else {}
    env = ActionRepeat(gym.make(args.env_id, render_mode="rgb_array", **look), args.action_repeat)
    return PixelObservation(env, size=64, frames=3)


class Disturbed:
    """An agent, some of whose actions are random: their share is one number for each environment."""

    def __init__(self, agent: JEPAMPC, shares: np.ndarray, seed: int) -> None:
        self.agent, self.shares, self.rng = agent, shares, np.random.default_rng(seed)
        self.space = agent.action_space
        self.space.seed(seed)

    def predict(self, observation: Any, *given: Any, **options: Any) -> tuple[np.ndarray, Any]:
        actions, state = self.agent.predict(observation, *given, **options)
        random = np.array([self.space.sample() for _ in actions])
        return np.where(self.rng.random((len(actions), 1)) < self.shares[:, None], random, actions), state


def main(args: Args) -> None:
    started = time.perf_counter()
    count, steps, num_envs = args.start_episodes, args.dream_steps, 256
    if args.quick:
        args, count, steps, num_envs = replace(args, episodes=1), 2, 300, 16
    remove_run(args.out, "episodes")

    # The world model, and states in which dreams start.
    env = make_env(args)
    agent = JEPAMPC.from_weights(args.world, env, device="cpu")
    model, world = agent.policy.average, agent.world
    venv = gym.vector.SyncVectorEnv([lambda: make_env(args)] * count)
    shares = np.linspace(-0.5, 1.5, count).clip(0, 1)  # a quarter of JEPAMPC alone, a quarter of random play
    policy = Disturbed(agent, shares, args.seed)
    store = collect(venv, args.out / "episodes", policy=policy, episodes=count, seed=args.seed)
    venv.close()
    starts = LatentEpisodes.encode(world, store)

    # SAC, in the dream alone.
    dream = VecMonitor(
        DreamVecEnv(model, starts, num_envs=num_envs, horizon=args.horizon, residuals=args.residuals)
    )
    dreamer = make_sac(
        dream, args, model.discount, buffer_size=max(steps, 1000), learning_starts=10 * num_envs,
        gradient_steps=args.updates, tensorboard_log=str(args.out),
    )  # fmt: skip
    began = time.perf_counter()
    dreamer.learn(steps, callback=LearningProgress("SAC", "dreamt step"))
    seconds = time.perf_counter() - began
    dreamer.save(args.out / "dreamer.zip")

    decoder = learn_decoder(world, store, args.seed, updates=20 if args.quick else 500)
    returns = evaluate(args, agent, dreamer, starts, decoder)
    mean = {name: float(np.mean(found)) for name, found in returns.items()}
    results = {
        "world": args.world,
        "start_episodes": count,
        "start_frames": int(starts.lengths.sum()) * args.action_repeat,
        "dream_steps": dreamer.num_timesteps,
        "train_seconds": seconds,
        "returns": returns,
        "mean_returns": mean,
        "dream": {
            "return_ratio": mean["dreamer"] / mean["planner"],
            "steps_per_second": dream_speed(model, starts),
        },
        "total_seconds": time.perf_counter() - started,
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=2))
    for name, value in mean.items():
        print(f"{name:<21} return {value:7.1f}")
    print(f"wrote {args.out}/ in {results['total_seconds']:.0f} s")


def make_sac(env: VecEnv | gym.Env, args: Args, discount: float, **changes: Any) -> SAC:
    """The agent that learns in the dream, for any environment of latents."""
    return SAC(
        "MlpPolicy", env, learning_rate=1e-3, gamma=discount, policy_kwargs={"net_arch": [128, 128]},
        seed=args.seed, device="cpu", **changes,
    )  # fmt: skip


def evaluate(
    args: Args, agent: JEPAMPC, dreamer: SAC, starts: LatentEpisodes, decoder: PictureDecoder
) -> dict[str, list[float]]:
    """Returns in the world, on seeds that nothing else uses, and in dreams as long as the episodes there."""
    model, seeds = agent.policy.average, [EVALUATION_SEED + i for i in range(args.episodes)]
    first = starts.latents[torch.arange(len(starts.lengths)) + starts.lengths.cumsum(0) - starts.lengths]

    def whole_dream() -> gym.Env:
        return DreamEnv(model, first, int(starts.lengths.max()), decoder=decoder, render_mode="rgb_array")

    imagined = play_episodes(dreamer, whole_dream, seeds, pictures=True)
    film = [Image.fromarray(picture).quantize(32).resize((128, 128)) for picture in imagined.pictures]
    film[0].save(args.out / "dream.gif", save_all=True, append_images=film[1:], duration=80, loop=0)
    random = Disturbed(agent, np.ones(args.episodes), args.seed)
    actors = {
        "random": (random, lambda: make_env(args)),
        "planner": (agent, lambda: make_env(args)),
        "dreamer": (dreamer, lambda: wrap(make_env(args), agent.world)),
    }
    returns = {name: play_episodes(*actor, seeds).returns.tolist() for name, actor in actors.items()}
    return returns | {"dreamer in the dream": imagined.returns.tolist()}


def dream_speed(model: ControlModel, starts: LatentEpisodes, num_envs: int = 256, steps: int = 100) -> float:
    """Dreamt steps a second: ``step`` alone."""
    env = DreamVecEnv(model, starts, num_envs, residuals=0.5)
    env.reset()
    actions = np.array([env.action_space.sample() for _ in range(num_envs)])
    began = time.perf_counter()
    for _ in range(steps):
        env.step(actions)
    return num_envs * steps / (time.perf_counter() - began)


def learn_decoder(world: WorldModel, store: EpisodeStore, seed: int, updates: int) -> PictureDecoder:
    """Decodes latents of the frozen encoder to the newest picture."""
    sampler = WindowSampler(store, steps=1, frames=world.spec.frames)
    size, channels = world.spec.pixels[1], world.spec.pixels[0] // world.spec.frames
    torch.manual_seed(seed)
    decoder = PictureDecoder(world.latent_dim, channels, size)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    rng = np.random.default_rng(seed)
    for _ in track(range(updates), "Decoder", "update"):
        pixels = sampler.sample(64, rng).pixels[:, 0]
        with torch.no_grad():
            latents = world.encode(pixels)
        loss = (decoder(latents) - pixels[:, -channels:] / 255).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return decoder


if __name__ == "__main__":
    main(tyro.cli(Args))
