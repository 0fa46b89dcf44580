"""Plays the checkpoints that ship with the package again: is each still inside the interval on its card?

    python benchmarks/hub_scores.py                        every episode: ten minutes on one core
    python benchmarks/hub_scores.py --names two-rooms --episodes 20
    python benchmarks/hub_scores.py --quick
    python benchmarks/hub_scores.py --record               writes benchmarks/results/hub_scores.json, too

Protocols, planners and seeds are those of the benchmark that a card names. Fewer episodes than the card's say less: the
script then compares the two intervals. It ends with status 1 if a score left its interval.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import tyro
from _record import trying, write_results
from make_hub import mean_return, part_of, rate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import jepa_rl.envs
from jepa_rl import WorldModel, hub
from jepa_rl.agents import JEPAMPC, MPCAgent, play_episodes
from jepa_rl.diagnostics import Probe


@dataclass(frozen=True)
class Args:
    names: tuple[str, ...] = ()
    """All that ship, if empty."""
    episodes: int | None = None
    """Of each; those of the card if None."""
    record: bool = False
    """Write benchmarks/results/hub_scores.json."""
    quick: bool = False
    """One episode of Two Rooms."""


def main(args: Args) -> None:
    if args.quick:
        args = replace(args, names=("two-rooms",), episodes=1)
    jepa_rl.envs.register_envs()
    found = {}
    for name in args.names or hub.names():
        found[name] = rescore(name, args.episodes)
        print(name, *(f"{key} {value}" for key, value in found[name].items()), sep="\n  ", flush=True)
    if args.record or args.quick:
        whole = args.episodes is None and not trying()
        print(write_results("hub_scores", {"results": found}, quick=not whole and not trying()))
    if outside := [name for name, result in found.items() if not result["inside"]]:
        raise SystemExit(f"outside the interval on the card: {outside}")


def rescore(name: str, episodes: int | None = None) -> dict[str, Any]:
    """Plays a checkpoint as its card says.

    Args:
        name: of the checkpoint.
        episodes: the first of the protocol's; the card's number if None.

    Returns:
        ``card`` and ``again``, mean and interval; and whether ``again`` is ``inside``: its mean lies in the card's
        interval, or, with fewer episodes, the intervals overlap. A card without a score has nothing to compare.
    """
    card = hub.card(name)
    count = episodes or (card.score.episodes if card.score else 20)
    scores = PLAYERS[name](card.training_seeds[0], count)
    score = rate if all(value in (0, 1) for value in scores) and name not in RETURNS else mean_return
    again = score("", scores) if len(scores) > 1 or score is rate else None
    inside = True
    if card.score and again:
        low, high = card.score.low - 1e-6, card.score.high + 1e-6
        whole = count >= card.score.episodes
        inside = low <= again.mean <= high if whole else again.low <= high and low <= again.high
    told = [None if s is None else [s.mean, s.low, s.high, s.episodes] for s in (card.score, again)]
    return {"card": told[0], "again": told[1], "inside": inside}


def play_two_rooms(seed: int, episodes: int) -> list[float]:
    import quickstart

    settings = quickstart.Args(episodes=episodes, seed=seed)
    agent = quickstart.planning_agent(settings, WorldModel.load("hub:two-rooms"))

    def follow(env: gym.Env, episode: int) -> Callable[..., Any]:
        state = None

        def act(observation: dict[str, Any], start: bool) -> Any:
            nonlocal state
            action, state = agent.predict(observation, state)
            return action

        return act

    return [float(outcome.success) for outcome in quickstart.play(settings, follow)]


def play_reacher(seed: int, episodes: int) -> list[float]:
    import goal_planning as harness

    args = harness.Args(episodes=episodes)
    at_rest = perceptron(part_of("hub:reacher-goals", "at_rest"))
    world, env = WorldModel.load("hub:reacher-goals"), harness.make_env(args)
    agent = harness.planning_agent(args, world, at_rest, harness.search(args.horizon), seed)
    return [float(success) for success in harness.play(args, env, lambda: harness.Driver(agent))]


def play_table_edge(seed: int, episodes: int) -> list[float]:
    import branching
    from _branching_plans import BUDGET, ENVIRONMENTS, EPISODE, EVALUATION_SEED, Follow, planning_flow, play
    from branching_futures import priced_by

    from jepa_rl.risk import CVaR

    settings, probe = branching.Args(), load_probe("hub:table-edge")
    planner = BUDGET(settings.futures, CVaR(settings.alpha))
    flow = planning_flow(WorldModel.load("hub:table-edge"))
    agent = MPCAgent(flow, planner, cost=priced_by(probe), seed=seed)
    make = lambda: gym.wrappers.TimeLimit(ENVIRONMENTS["table_edge"](), EPISODE)  # noqa: E731
    return play(make, episodes, EVALUATION_SEED, Follow(agent))[0]


def play_control(name: str, task_name: str, seed: int, episodes: int) -> list[float]:
    import dmc_pixels as harness

    make = partial(harness.make_pixels, harness.TASKS[task_name])
    agent = JEPAMPC.from_weights(f"hub:{name}", make(), device="cpu")
    seeds = [harness.EVALUATION_SEED + i for i in range(episodes)]
    return play_episodes(agent, make, seeds).returns.tolist()


def load_probe(path: str | Path) -> Probe:
    """The probe in a file of ``make_hub.save_world``."""
    weights = part_of(path, "probe")
    mean, std = weights.pop("mean"), weights.pop("std")
    return Probe(perceptron({key.removeprefix("network."): w for key, w in weights.items()}), mean, std)


def perceptron(weights: dict[str, torch.Tensor]) -> nn.Module:
    """The network of these weights: linear layers with SiLU between them."""
    sizes = [tensor.shape for name, tensor in weights.items() if name.endswith("weight")]
    layers: list[nn.Module] = []
    for out, into in sizes:
        layers += [nn.Linear(into, out), nn.SiLU()]
    network = nn.Sequential(*layers[:-1])
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


PLAYERS: dict[str, Callable[[int, int], list[float]]] = {
    "two-rooms": play_two_rooms,
    "reacher-goals": play_reacher,
    "table-edge": play_table_edge,
    "cartpole-swingup": partial(play_control, "cartpole-swingup", "cartpole-swingup-fast"),
    "cartpole": partial(play_control, "cartpole", "CartPole-v1"),
}
RETURNS = ("table-edge", "cartpole-swingup", "cartpole")

if __name__ == "__main__":
    main(tyro.cli(Args))
