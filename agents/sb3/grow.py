"""Frozen latents that follow the agent: it collects, the world model is fitted again, the agent learns on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import polyak_update, set_random_seed

from jepa_rl.agents.curiosity import curious_agent
from jepa_rl.agents.sb3.baselines import SHORT_DQN
from jepa_rl.agents.sb3.droq import DropoutDQNPolicy, DroQPolicy
from jepa_rl.agents.sb3.joint.algorithms import SAC_SETTINGS
from jepa_rl.agents.sb3.saved import load_agent
from jepa_rl.checks import check_each
from jepa_rl.data import EpisodeStore, WindowSampler
from jepa_rl.data.latent_windows import LatentEpisodes
from jepa_rl.files import open_run, write_atomic
from jepa_rl.presets import preset
from jepa_rl.progress import track
from jepa_rl.spaces import world_spec
from jepa_rl.training.loop import fit
from jepa_rl.world_model import WorldModel

DQN_EXPLORATION = 0.1  # share of random actions while DQN collects; SAC's policy draws its actions
LEARNED = ("learning_rate", "batch_size", "n_steps", "tau", "target_update_interval", "ent_coef")


@dataclass(frozen=True, eq=False)
class Grown:
    """What ``grow`` has made so far.

    Attributes:
        agent: acts on latents of ``world``: ``wrap(env, grown.world)`` shows them.
        world: the world model.
        store: every episode that was played; ``store.num_steps`` counts all steps.
        rounds: of each round: ``steps`` so far, and the numbers of ``after_round``.
    """

    agent: OffPolicyAlgorithm
    world: WorldModel
    store: EpisodeStore
    rounds: list[dict[str, float]]


def grow(
    env: gym.vector.VectorEnv,
    collect: Callable[..., EpisodeStore],
    folder: str | Path,
    algorithm: type[OffPolicyAlgorithm] | None = None,
    *,
    rounds: int = 10,
    steps: int = 2_000,
    updates: int = 500,
    gradient_steps: int = 2_000,
    curious: float = 0.0,
    world: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    after_round: Callable[[Grown], Mapping[str, float]] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Grown:
    """Trains SAC (``DroQPolicy``) or DQN (``DropoutDQNPolicy``) on frozen latents of what it meets.

    A round collects steps, fits the world model to all episodes from where it stood, encodes all of them anew into the
    agent's replay, and trains the agent on it. The first round is random play. Everything is under ``folder``; a call
    that was stopped goes on with the round that it was in, and no episode in the store is played twice.

    Args:
        env: Gymnasium vector environment that shows uint8 pixels, such as
            ``gym.make_vec(name, 4, "sync", wrappers=[PixelObservation], render_mode="rgb_array")``. It is not closed.
        collect: ``jepa_rl.envs.collect``, or a function with its arguments.
        folder: of the run.
        algorithm: ``SAC`` or ``DQN``, the one that fits the actions if None.
        rounds: number of them.
        steps: environment steps in a round, random play and curiosity included.
        updates: of the world model in a round.
        gradient_steps: of the agent in a round.
        curious: share of the steps, after the first round, that ``curious_agent`` plays; the dynamics are an ensemble
            then.
        world: fields of ``WorldModelConfig`` that differ from those of the preset ``agent``.
        settings: of the algorithm; what they leave out is as in ``JEPASAC`` or ``JEPADQN``. Schedules run over the
            rounds; DQN's ``target_update_interval`` counts gradient steps. The replay is made here.
        after_round: called with the result so far; its numbers are written to ``rounds.json``.
        seed: of everything that is drawn.
        progress: show progress.

    Raises:
        ValueError: for an algorithm that does not fit the actions, a replay in ``settings``, counts below 1, a share
            outside [0, 1), or a folder that holds a run of other settings.
    """
    counts = {"rounds": rounds, "steps": steps, "updates": updates, "gradient_steps": gradient_steps}
    check_each(lambda value: value >= 1, "be at least 1", **counts)
    check_each(lambda value: 0 <= value < 1, "lie in [0, 1)", curious=curious)
    folder, spec = Path(folder), world_spec(env)
    kind = _algorithm(algorithm, spec.action.kind)
    options, changes = dict(settings or {}), dict(world or {})
    if replay := sorted(options.keys() & {"replay_buffer_class", "replay_buffer_kwargs"}):
        raise ValueError(f"grow makes the replay itself, by n_steps; leave {replay} out of settings")
    asked = counts | {"curious": curious, "seed": seed, "source": spec.source, "num_envs": env.num_envs}
    open_run(folder, asked | {"settings": options, "world": changes}, free=("rounds",))
    config, training, window = preset("agent", spec)
    if curious:
        config = replace(config, dynamics="ensemble", dynamics_options={})
    file = folder / "rounds.json"
    finished: list[dict[str, float]] = json.loads(file.read_text()) if file.exists() else []
    torch.manual_seed(seed)
    if finished:
        last = folder / f"round_{len(finished) - 1}"
        model = WorldModel.load(last / "world.safetensors")
        # Chosen by n_steps, as at first.
        anew: dict[str, Any] = {"replay_buffer_class": None, "replay_buffer_kwargs": {}}
        agent = load_agent(kind, last / "agent.zip", custom_objects=anew)
    else:
        model = WorldModel(replace(config, **changes)).eval()
        agent = _agent(kind, model.latent_dim, env.single_action_space, {"seed": seed} | options)
    model.to(agent.device)
    if isinstance(agent, DQN):
        agent.exploration_rate = DQN_EXPLORATION
    path = folder / "episodes"
    for number in range(len(finished), rounds):
        here, drawn = folder / f"round_{number}", np.random.SeedSequence([seed, number]).generate_state(2)
        set_random_seed(int(drawn[0]))  # the agent draws its actions from torch
        there = EpisodeStore.open(path).num_steps if path.exists() else 0
        left = (number + 1) * steps - there
        for policy, count in _policies(agent, model, number, left, round(curious * steps), int(drawn[0])):
            collect(env, path, policy=policy, steps=count, seed=int(drawn[0]), progress=progress)
        store = EpisodeStore.open(path)
        fitting = replace(training, steps=updates, seed=int(drawn[1]))
        fit(model, WindowSampler(store, window), fitting, here / "fit", progress=progress)
        set_random_seed(int(drawn[1]))
        agent.replay_buffer = replay_of(agent, LatentEpisodes.encode(model, store, progress=progress), store)
        agent.set_logger(configure(str(here), ["csv", "tensorboard"]))
        agent._current_progress_remaining = 1 - number / rounds  # of the learning rate's schedule
        _train(agent, gradient_steps, progress)
        model.save(here / "world.safetensors")
        agent.save(here / "agent.zip")
        told = {} if after_round is None else dict(after_round(Grown(agent, model, store, list(finished))))
        finished.append({"steps": float(store.num_steps), **told})
        write_atomic(file, json.dumps(finished, indent=2).encode())
    return Grown(agent, model, EpisodeStore.open(path), finished)


def replay_of(agent: OffPolicyAlgorithm, latents: LatentEpisodes, store: EpisodeStore) -> ReplayBuffer:
    """A replay with every step of the store, as latents, of the class that the agent makes for itself.

    Args:
        agent: whose spaces and device it has.
        latents: of all episodes in ``store``.
        store: rewards and ends.
    """
    episode, steps = latents.episode_of_step.numpy(), store.num_steps
    now = np.arange(steps) + episode  # every episode has one more state than steps
    states, actions = latents.latents.cpu().numpy(), latents.actions.cpu().numpy()
    assert agent.replay_buffer_class is not None, "Stable-Baselines3 chooses one when it sets an agent up"
    buffer = agent.replay_buffer_class(
        steps, agent.observation_space, agent.action_space, device=agent.device, **agent.replay_buffer_kwargs
    )
    buffer.observations[:, 0], buffer.next_observations[:, 0] = states[now], states[now + 1]
    buffer.actions[:, 0] = actions.argmax(1, keepdims=True) if isinstance(agent, DQN) else actions
    buffer.rewards[:, 0] = store.column("rewards")[:steps]
    ends = np.cumsum(store.lengths) - 1
    buffer.dones[:, 0] = buffer.timeouts[:, 0] = 0.0
    buffer.dones[ends, 0] = 1.0
    buffer.timeouts[ends, 0] = ~np.asarray(store.terminated)
    buffer.full = True
    return buffer


class _OnPixels:
    """The agent, shown pixels."""

    def __init__(self, agent: OffPolicyAlgorithm, world: WorldModel) -> None:
        self.agent, self.world = agent, world

    def predict(
        self,
        observation: UInt8[np.ndarray, "n c y x"],
        state: Any = None,
        episode_start: Bool[np.ndarray, " n"] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        with torch.no_grad():
            pixels = torch.from_numpy(np.ascontiguousarray(observation)).to(self.agent.device)
            latents = self.world.encode(pixels).cpu().numpy()
        return self.agent.predict(latents, deterministic=deterministic)


def _policies(
    agent: OffPolicyAlgorithm, world: WorldModel, number: int, left: int, curious: int, seed: int
) -> Iterator[tuple[Any, int]]:
    """Who plays the steps that are left of a round, and how many of them."""
    if number and curious and left > 0:
        yield curious_agent(world, seed=seed), min(curious, left)
        left -= curious
    if left > 0:
        yield (_OnPixels(agent, world) if number else "random"), left


class _Spaces(gym.Env):
    """What Stable-Baselines3 wants to know of an environment; nothing is played in it."""

    def __init__(self, latent_dim: int, actions: gym.Space) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (latent_dim,), np.float32)
        self.action_space = actions


def _agent(
    kind: type[OffPolicyAlgorithm], latent_dim: int, actions: gym.Space, settings: Mapping[str, Any]
) -> OffPolicyAlgorithm:
    """An agent on latents. It learns from what is in its replay alone, which is made later."""
    # Thousands of updates on the same latents: plain critics would learn their errors by heart.
    policy, own = (DroQPolicy, SAC_SETTINGS) if kind is SAC else (DropoutDQNPolicy, SHORT_DQN)
    own = {name: value for name, value in own.items() if name in LEARNED}
    return kind(policy, _Spaces(latent_dim, actions), **{"buffer_size": 1} | own | dict(settings))


def _train(agent: OffPolicyAlgorithm, gradient_steps: int, progress: bool) -> None:
    """Gradient steps on the replay. DQN's target network is updated elsewhere in ``learn``, so it is done here."""
    every = agent.target_update_interval if isinstance(agent, DQN) else gradient_steps
    for first in track(range(0, gradient_steps, every), type(agent).__name__, "update", shown=progress):
        agent.train(min(every, gradient_steps - first), agent.batch_size)
        if isinstance(agent, DQN):
            polyak_update(agent.q_net.parameters(), agent.q_net_target.parameters(), agent.tau)
    agent.logger.dump(agent._n_updates)


def _algorithm(given: type[OffPolicyAlgorithm] | None, kind: str) -> type[OffPolicyAlgorithm]:
    fitting: type[OffPolicyAlgorithm] = DQN if kind == "discrete" else SAC
    if given is None or given is fitting:
        return fitting
    raise ValueError(
        f"grow trains SAC on continuous actions and DQN on discrete ones, got {given.__name__} for {kind}"
    )
