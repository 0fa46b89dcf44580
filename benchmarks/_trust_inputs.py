"""Odd spaces, observations, rewards, actions and orders of autoreset through every wrapper.

Each try draws an environment that plays a script, and compares what comes out with what the script says it must be,
by a few lines of NumPy that share no code with the library. ``silent_wrong`` counts another answer; ``raw`` errors that
are no ``ValueError`` or ``TypeError``, or say nothing.
"""

from __future__ import annotations

import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from _trust_runs import warm
from _trust_worlds import Look, Script, Scripted, Sums, draw_actions
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from jepa_rl import EpisodeStore
from jepa_rl.envs import (
    ActionRepeat,
    GoalObservation,
    LatentObservation,
    PixelObservation,
    SB3LatentObservation,
    VectorLatentObservation,
    action_spec,
    collect,
)

Draw = np.random.Generator


class Wrong(Exception):
    """An answer that the script contradicts."""


def equal(name: str, found: Any, wanted: Any, within: float = 0.0) -> None:
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.shape != wanted.shape or not np.all(
        np.abs(found.astype(np.float64) - wanted.astype(np.float64)) <= within
    ):
        raise Wrong(f"{name}: {found.dtype} {found.shape}, expected {wanted.dtype} {wanted.shape}")


# -- what wrappers must answer ------------------------------------------------------------------------


def small(picture: np.ndarray, size: int, gray: bool) -> tuple[np.ndarray, float]:
    """A true picture (y, x, c) as (c, size, size), and how far rounding may move it."""
    values, within = picture.astype(np.float64), 0.0
    if gray and picture.shape[2] == 3:
        values, within = (values @ [0.299, 0.587, 0.114])[..., None], 1.0
    y, x, c = values.shape
    if (y, x) != (size, size):  # whole blocks: their means
        values = values.reshape(size, y // size, size, x // size, c).mean((1, 3))
        within += 1.0
    return values.transpose(2, 0, 1), within


def stack(pictures: list[np.ndarray], frames: int) -> np.ndarray:
    """The last ``frames`` of an episode's pictures (c, y, x), the first one repeated where there are fewer."""
    chosen = [pictures[max(0, len(pictures) - frames + i)] for i in range(frames)]
    return np.concatenate(chosen)


def shapes_for(rng: Draw, look: Look) -> int:
    """A size of square pictures that the sides of a look can be divided to, or just its side."""
    side = look.side
    sizes = [s for s in range(1, 41) if side[0] % s == 0 and side[1] % s == 0]
    return int(rng.choice([size for size in sizes if size >= 4] or sizes))


def pixels(rng: Draw, folder: Path) -> None:
    look, script = Look.draw(rng), Script.draw(rng)
    where = str(rng.choice(["observation", "dict", "render"]))
    if where == "render":
        look = Look(look.side, 3, "yxc", (0, 255, np.uint8))
    gray, keep = bool(rng.random() < 0.3), bool(where != "observation" and rng.random() < 0.5)
    size, frames = shapes_for(rng, look), int(rng.integers(1, 5))
    spoil, spoilt = _spoiler(rng, look) if where != "render" else (None, False)
    env: gym.Env = Scripted(
        look, draw_actions(rng), script, where, _reward(rng), spoil, not spoilt and rng.random() < 0.3
    )
    itself = rng.random() < 0.4
    if itself:
        env = gym.wrappers.Autoreset(env)
    env = PixelObservation(env, size, frames, gray, "image" if where == "dict" else None, keep)

    def check(seen: Any) -> None:
        episode = script.episodes[-1]
        found = seen["pixels"] if keep else seen
        parts = [small(picture, size, gray) for picture in episode["pictures"]]
        equal(
            "stack",
            found,
            stack([values for values, _ in parts], frames),
            parts[0][1] + (0.51 if not gray else 1),
        )
        if not env.observation_space.contains(seen):
            raise Wrong(f"{env.observation_space} does not contain what it shows")
        if keep:
            place, kind = episode["places"][-1], episode["kinds"][-1]
            choice = np.eye(3)[kind]
            flat = place if where == "render" else np.concatenate([choice, place])  # Dicts sort their names
            equal("state", seen["state"], flat.astype(np.float32), 1e-6)

    seen, _ = env.reset(seed=0)
    check(seen)
    over = False
    for _ in range(12):
        if over and not itself:
            seen, _ = env.reset()
            check(seen)
        seen, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        episode = script.episodes[-1]
        if over and itself:
            equal("reward of a reset", reward, 0.0)
        else:
            equal("reward", reward, episode["rewards"][-1], 1e-6)
        check(seen)
        over = bool(terminated or truncated)
    if spoilt:
        raise Wrong("a spoilt picture went through")


def _spoiler(rng: Draw, look: Look) -> tuple[Callable[[np.ndarray], np.ndarray] | None, bool]:
    """Sometimes damage to one observation, which must be refused."""
    if rng.random() < 0.8:
        return None, False
    kinds = ["shape", "dims"]
    if np.dtype(look.scale[2]).kind == "f":
        kinds += ["nan", "inf", "high"]
    kind, at, count = str(rng.choice(kinds)), int(rng.integers(0, 5)), [0]

    def spoil(shown: np.ndarray) -> np.ndarray:
        count[0] += 1
        if count[0] - 1 != at:
            return shown
        shown = shown.copy()
        if kind == "nan":
            shown.flat[0] = np.nan
        elif kind == "inf":
            shown.flat[-1] = np.inf
        elif kind == "high":
            shown.flat[0] = look.scale[1] * 2 + 1
        else:
            return shown[1:] if kind == "shape" else shown[None]
        return shown

    return spoil, True


def _reward(rng: Draw) -> Callable[[float], Any]:
    """Rewards as environments give them: all of these are one number."""
    kinds: list[Callable[[float], Any]] = [
        float, np.float32, np.float64, lambda r: np.array(r), lambda r: np.array([r]), lambda r: [r],
    ]  # fmt: skip
    return kinds[rng.integers(len(kinds))]


def repeats(rng: Draw, folder: Path) -> None:
    script, n = Script.draw(rng, 9), int(rng.integers(1, 6))
    env: gym.Env = Scripted(
        Look((16, 16), 1, "cyx", (0, 255, np.uint8)), draw_actions(rng), script, reward=_reward(rng)
    )
    itself = rng.random() < 0.5
    env = ActionRepeat(gym.wrappers.Autoreset(env) if itself else env, n)
    env.reset(seed=0)
    over = False
    for _ in range(10):
        if over and not itself:
            env.reset()
        before = len(script.episodes[-1]["rewards"]) if not over else 0
        action = env.action_space.sample()
        seen, reward, terminated, truncated, _ = env.step(action)
        episode = script.episodes[-1]
        taken = episode["rewards"][before:]
        length = script.lengths[(len(script.episodes) - 1) % len(script.lengths)]
        if over and itself:
            equal("steps of a reset", len(taken), 0)
            equal("reward of a reset", reward, 0.0)
        else:
            equal("steps", len(taken), min(n, length - before))
            equal("sum", reward, sum(taken), 1e-5)
            for given in episode["actions"][before:]:
                equal("action", given, action)
        equal("observation", seen, env.unwrapped.look.shown(episode["pictures"][-1]))
        equal("end", [terminated, truncated], episode["ends"][-1] if episode["ends"] else (False, False))
        over = bool(terminated or truncated)


def goals(rng: Draw, folder: Path) -> None:
    side, frames, channels = int(rng.integers(16, 24)), int(rng.integers(1, 4)), int(rng.choice([1, 3]))
    look = Look((side, side), channels, "yxc", (0, 255, np.uint8))
    kind = str(rng.choice(["frame", "stack", "shape", "dtype", "none"]))
    one = rng.integers(0, 256, (channels, side, side), np.uint8)
    whole = rng.integers(0, 256, (channels * frames, side, side), np.uint8)
    goal = {"frame": one, "stack": whole, "shape": one[:, 1:], "dtype": one.astype(np.float32), "none": None}[
        kind
    ]
    env = GoalObservation(
        PixelObservation(Scripted(look, draw_actions(rng), Script.draw(rng), goal=goal), side, frames)
    )
    seen, _ = env.reset(seed=0)
    if kind not in ("frame", "stack"):
        raise Wrong(f"a goal of the kind {kind!r} went through")
    wanted = np.concatenate([one] * frames) if kind == "frame" and frames > 1 else goal
    for _ in range(3):
        equal("goal", seen["goal"], wanted)
        if not env.observation_space.contains(seen):
            raise Wrong("the space does not contain what it shows")
        seen["goal"][:] = 0  # what an agent does with it must not reach the environment
        seen, *_ = env.step(env.action_space.sample())


class Recorded:
    """Latents of the episodes of one environment, as they must be."""

    def __init__(self, script: Script, history: int) -> None:
        self.script, self.history = script, history

    def at(self, episode: int, step: int) -> np.ndarray:
        """The latent observation at a step of an episode."""
        pictures = [p.transpose(2, 0, 1) for p in self.script.episodes[episode]["pictures"]][: step + 1]
        latents = [Sums.of(picture) for picture in pictures]
        chosen = [latents[max(0, len(latents) - self.history + i)] for i in range(self.history)]
        return np.concatenate(chosen)


def latents(rng: Draw, folder: Path) -> None:
    """One environment, with and without a reset of its own."""
    script, history = Script.draw(rng), int(rng.integers(1, 5))
    look = Look((16, 16), 3, "cyx", (0, 255, np.uint8))
    env: gym.Env = Scripted(look, draw_actions(rng), script, reuse=bool(rng.random() < 0.5))
    itself = rng.random() < 0.5
    env = LatentObservation(gym.wrappers.Autoreset(env) if itself else env, Sums(), history)
    recorded = Recorded(script, history)
    seen, _ = env.reset(seed=0)
    equal("first", seen, recorded.at(-1, 0))
    over = False
    for _ in range(14):
        if over and not itself:
            seen, _ = env.reset()
            equal("first", seen, recorded.at(-1, 0))
        seen, _, terminated, truncated, _ = env.step(env.action_space.sample())
        equal("latents", seen, recorded.at(-1, len(script.episodes[-1]["pictures"]) - 1))
        over = bool(terminated or truncated)


def vectors(rng: Draw, folder: Path) -> None:
    """Several environments side by side, in each of Gymnasium's ways to reset them."""
    n, history, space = int(rng.integers(1, 4)), int(rng.integers(1, 4)), draw_actions(rng)
    look = Look((16, 16), 3, "cyx", (0, 255, np.uint8))
    scripts = [Script.draw(rng) for _ in range(n)]
    mode = list(AutoresetMode)[rng.integers(3)]
    reuse = bool(rng.random() < 0.5)
    made = SyncVectorEnv(
        [lambda s=script: Scripted(look, space, s, reuse=reuse) for script in scripts], autoreset_mode=mode
    )
    env = VectorLatentObservation(made, Sums(), history)
    recorded = [Recorded(script, history) for script in scripts]
    seen, _ = env.reset(seed=0)
    over = np.zeros(n, bool)
    for _ in range(14):
        for i in range(n):
            equal(
                f"latents of {i}", seen[i], recorded[i].at(-1, len(scripts[i].episodes[-1]["pictures"]) - 1)
            )
        if mode is AutoresetMode.DISABLED and over.any():
            seen, _ = env.reset(options={"reset_mask": over.copy()})
            over[:] = False
            continue
        seen, _, terminated, truncated, infos = env.step(env.action_space.sample())
        over = terminated | truncated
        if mode is AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(over).tolist():
                last = len(scripts[i].episodes[-2]["pictures"]) - 1
                equal("final latents", infos["final_obs"][i], recorded[i].at(-2, last))


def sb3(rng: Draw, folder: Path) -> None:
    n, history, space = int(rng.integers(1, 4)), int(rng.integers(1, 4)), draw_actions(rng)
    if np.any(getattr(space, "start", 0)):
        space = spaces.Discrete(3)  # Stable-Baselines3 counts from 0
    look = Look((16, 16), 3, "cyx", (0, 255, np.uint8))
    scripts = [Script.draw(rng) for _ in range(n)]
    reuse = bool(rng.random() < 0.5)
    env = SB3LatentObservation(
        DummyVecEnv([lambda s=script: Scripted(look, space, s, reuse=reuse) for script in scripts]),
        Sums(),
        history,
    )
    recorded = [Recorded(script, history) for script in scripts]
    seen = env.reset()
    for _ in range(12):
        for i in range(n):
            equal(
                f"latents of {i}", seen[i], recorded[i].at(-1, len(scripts[i].episodes[-1]["pictures"]) - 1)
            )
        seen, _, dones, infos = env.step(np.stack([space.sample() for _ in range(n)]))
        for i in np.flatnonzero(dones).tolist():
            last = len(scripts[i].episodes[-2]["pictures"]) - 1
            equal("terminal latents", infos[i]["terminal_observation"], recorded[i].at(-2, last))


def episodes(rng: Draw, folder: Path) -> None:
    """``collect``: what is stored is what the environments showed, earned and were given."""
    n, space = int(rng.integers(1, 4)), draw_actions(rng)
    look = Look((16, 16), 1, "cyx", (0, 255, np.uint8))
    scripts = [Script.draw(rng) for _ in range(n)]
    reuse, reward = bool(rng.random() < 0.5), _reward(rng)
    frames, single = int(rng.integers(1, 4)), n == 1 and rng.random() < 0.5

    def make(script: Script) -> gym.Env:
        env: gym.Env = Scripted(look, space, script, reuse=reuse, reward=reward if single else float)
        return PixelObservation(env, 16, frames) if frames > 1 else env

    mode = list(AutoresetMode)[rng.integers(3)]
    env: Any = make(scripts[0]) if single else SyncVectorEnv(
        [lambda s=script: make(s) for script in scripts], autoreset_mode=mode
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    goal: dict[str, int] = (
        {"episodes": int(rng.integers(1, 7))} if rng.random() < 0.5 else {"steps": int(rng.integers(1, 25))}
    )
    collect(env, folder, seed=int(rng.integers(100)), progress=False, **goal)
    store = EpisodeStore.open(folder)
    store.verify()
    played = {  # by the bytes of the first picture, which no two episodes share
        np.ascontiguousarray(e["pictures"][0]).tobytes(): e for script in scripts for e in script.episodes
    }
    for i in range(len(store)):
        found = store.episode(i)
        true = played[np.ascontiguousarray(found.frames[0].transpose(1, 2, 0)).tobytes()]
        steps = len(found)
        equal("frames", found.frames, [p.transpose(2, 0, 1) for p in true["pictures"][: steps + 1]])
        equal("rewards", found.rewards, true["rewards"][:steps], 1e-6)
        equal("actions", found.actions, np.stack(true["actions"][:steps]), 1e-6 * max(1.0, _span(space)))
        ends = true["ends"][steps - 1]
        cut = "steps" in goal and not any(ends)
        equal("ends", [found.terminated, found.truncated], (False, True) if cut else ends)
        if not cut and steps != len(true["rewards"]):
            raise Wrong("an episode was stored before its end")
    wanted = goal.get("episodes")
    if wanted is not None and len(store) != wanted:
        raise Wrong(f"{len(store)} episodes instead of {wanted}")
    if wanted is None and store.num_steps < goal["steps"]:
        raise Wrong(f"{store.num_steps} steps instead of {goal['steps']}")


def _span(space: spaces.Space) -> float:
    return float(np.abs([space.low, space.high]).max()) if isinstance(space, spaces.Box) else 1.0


def actions(rng: Draw, folder: Path) -> None:
    """Actions there and back, and those that do not exist."""
    space = draw_actions(rng)
    spec = action_spec(space)
    taken = np.stack([space.sample() for _ in range(int(rng.integers(1, 5)))])
    model = spec.encode(taken)
    if not (np.isfinite(model).all() and np.abs(model).max() <= 1 + 1e-6 and model.dtype == np.float32):
        raise Wrong(f"model actions leave [-1, 1]: {model}")
    back = spec.decode(model)
    span = np.asarray(space.high, np.float64) - space.low if isinstance(space, spaces.Box) else 0
    size = np.abs([space.low, space.high]).max(0) if isinstance(space, spaces.Box) else 0
    if not np.all(np.abs(back.astype(np.float64) - taken) <= 2e-6 * (span + size)):
        raise Wrong(f"{taken} came back as {back}")
    wild = spec.decode((rng.normal(size=model.shape) * rng.choice([0.1, 1, 1e6])).astype(np.float32))
    for action in (*back, *wild):
        if not space.contains(action if action.shape else action[()]):
            raise Wrong(f"{space} does not contain {action!r}")
    broken = taken.astype(np.float64)
    broken.flat[0] = rng.choice([np.nan, np.inf, 1e9]) if isinstance(space, spaces.Box) else 10**6
    if isinstance(space, spaces.Box) and np.isfinite(broken).all():
        return  # beyond the bounds: clipped by those who ask for it
    spec.encode(broken if isinstance(space, spaces.Box) else broken.astype(np.int64))
    raise Wrong(f"{broken} was encoded")


TRIALS: dict[str, Callable[[Draw, Path], None]] = {
    "pixels": pixels, "repeats": repeats, "goals": goals, "latents": latents, "vectors": vectors, "sb3": sb3,
    "episodes": episodes, "actions": actions,
}  # fmt: skip


def run(
    tries: int, folder: Path, known: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Draws ``tries`` inputs; ``known`` and ``keep`` as for ``_trust_kills.run``."""
    warm()
    found = dict(known)
    for name in TRIALS:
        if name not in found:
            found[name] = storm(name, -(-tries // len(TRIALS)), folder / name)
            keep(found)
    shutil.rmtree(folder, ignore_errors=True)
    counts = [kind["outcomes"] for kind in found.values()]
    return {
        "inputs_tried": sum(sum(kind.values()) for kind in counts),
        "silent_wrong": sum(kind.get("wrong", 0) for kind in counts),
        "raw_errors": sum(kind.get("raw", 0) for kind in counts),
        "kinds": found,
    }


def storm(name: str, tries: int, folder: Path) -> dict[str, Any]:
    """Draws inputs for one kind of wrapper."""
    outcomes: Counter[str] = Counter()
    trouble: Counter[str] = Counter()
    first: dict[str, int] = {}
    for number in range(tries):
        outcome, words = _outcome(TRIALS[name], np.random.default_rng([number, *name.encode()]), folder)
        outcomes[outcome] += 1
        if words:
            trouble[words] += 1
            first.setdefault(words, number)
    return {
        "outcomes": dict(outcomes),
        "trouble": {
            f"{words}, such as {name} {first[words]}": count for words, count in trouble.most_common(20)
        },
    }


def _outcome(trial: Callable[[Draw, Path], None], rng: Draw, folder: Path) -> tuple[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trial(rng, folder)
        except Wrong as error:
            return "wrong", str(error)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            ours = any(f"/{room}/" in frame.filename for room in ("jepa_rl", "envs", "agents"))
            if ours and isinstance(error, ValueError | TypeError):
                return "refused", ""
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            return "raw", f"{type(error).__name__} at {place}: {str(error)[:90]}"
    return "right", ""
