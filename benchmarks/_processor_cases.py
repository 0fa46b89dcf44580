"""What processor_speed.py times, in a form that runs on version 0.1.0 as well as on the present code.

The library is imported inside functions, and a part is looked for wherever either version keeps it.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from importlib import import_module
from itertools import count, pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from _processor_worker import Side

PARTS = ("joint_update", "refine_update", "tree_plan", "jepa_mpc_update", "jepa_mpc_decision", "encode")
NEVER = 10**9


def name_in(name: str, *modules: str) -> Any:
    """The attribute ``name`` of the first of ``modules`` that has it in this version."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"none of {modules} has {name}; say in {Path(__file__).name} where it is now")


# -- environments that cost nothing -------------------------------------------------------------------


class Noise(gym.Env):
    """Three stacked 64 x 64 pictures of noise, two actions (that of control_speed.py)."""

    metadata = {"frames": 3, "render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (9, 64, 64), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.t, self.stack = 0, np.zeros((9, 64, 64), np.uint8)
        return self.stack, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.t += 1
        new = self.np_random.integers(0, 256, (3, 64, 64), np.uint8)
        self.stack = np.concatenate([self.stack[3:], new])
        return self.stack, 1.0, False, self.t >= 100, {}


class Still(gym.Env):
    """One picture of Two Rooms, whatever happens."""

    def __init__(self, env: gym.Env) -> None:
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.picture, _ = env.reset(seed=0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return self.picture, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        return self.picture, 0.0, False, False, {}


# -- what is timed ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What a training of examples/quickstart.py comes to, or the same with another's sizes.

    Attributes:
        world: configuration of the world model.
        joint, refine: of the two phases.
        window, refine_window: latent steps of their windows.
        block: environment steps in a latent step.
        planner: settings of the tree.
    """

    world: Any
    joint: Any
    window: int
    block: int
    refine: Any
    refine_window: int
    planner: dict[str, Any]


def recipe_of(quickstart: ModuleType, args: Any, train: Any, held_out: Any) -> Recipe:
    """Runs quickstart's training with its two phases replaced by notes of what they were asked to do."""
    asked: dict[str, Any] = {}
    signatures = {name: inspect.signature(getattr(quickstart, name)) for name in ("fit", "refine_dynamics")}

    def note(name: str) -> Callable[..., None]:
        def noted(*given: Any, **options: Any) -> None:
            bound = signatures[name].bind(*given, **options)
            bound.apply_defaults()
            asked[name] = bound.arguments

        return noted

    real = {name: getattr(quickstart, name) for name in signatures}
    try:
        for name in signatures:
            setattr(quickstart, name, note(name))
        quickstart.train_world_model(args, train, held_out)
    finally:
        for name, function in real.items():
            setattr(quickstart, name, function)
    joint, refine = asked["fit"], asked["refine_dynamics"]
    return Recipe(
        world=joint["model"].config,
        joint=joint["config"],
        window=joint["sampler"].steps,
        block=args.block,
        refine=refine["config"],
        refine_window=refine["steps"],
        planner=asdict(quickstart.planning_agent(args, joint["model"]).planner),
    )


@contextmanager
def temporary() -> Iterator[str]:
    folder = tempfile.mkdtemp()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def update_seconds(train: Callable[[str], Any]) -> list[float]:
    """Seconds of each update of ``train(folder)``, from the end of one optimiser step to the end of the next.

    Whatever the loop does between belongs to it: draw a batch, loss, gradients, clip, step, ``after_update``. The
    first two are left out: a run begins with checks and opens its files then.
    """
    ends: dict[int, list[float]] = {}
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: ends.setdefault(id(optimizer), []).append(time.perf_counter())
    )
    try:
        with temporary() as folder:
            train(folder)
    finally:
        hook.remove()
    times = max(ends.values(), key=len)
    return [after - before for before, after in pairwise(times)][2:]


def call_seconds(call: Callable[[], Any], calls: int) -> list[float]:
    """Seconds of each call after a first one, which warms caches that the other process may have taken."""
    call()
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


class Case:
    """All that is timed with one set of sizes.

    Args:
        side: the version.
        name: of the file that keeps the trained model, for processes with other numbers of threads.
        recipe: how the world model of Two Rooms is made.
        control: keyword arguments of ``JEPAMPC``.
    """

    def __init__(self, side: Side, name: str, recipe: Recipe, control: dict[str, Any]) -> None:
        from jepa_rl import WorldModel

        self.side, self.recipe = side, recipe
        self.file = side.folder / f"{name}.safetensors"
        if self.file.exists():
            self.model = WorldModel.load(self.file)
        else:
            torch.manual_seed(0)
            self.model = WorldModel(recipe.world)
            with temporary() as folder:
                self._fit(folder, side.settings["train_updates"], rate=1.0)
            with temporary() as folder:
                self._encode_episodes()
                self._refine(folder, side.settings["train_updates"], rate=1.0)
            self.model.save(self.file)
        self._encode_episodes()
        self.plans = self._plans()
        self.wrapped = name_in("LatentObservation", "jepa_rl.envs")(Still(side.rooms()), str(self.file))
        self.wrapped.reset()
        self.agent = name_in("JEPAMPC", "jepa_rl.agents")(
            "CnnPolicy", Noise(), learning_starts=300, seed=0, buffer_size=5000, device="cpu", **control
        )
        self.agent.learn(300)  # random play, no update yet
        self.agent._n_updates = (
            1  # else the first call of train does those that the random steps would have had
        )
        self.observation = self.agent.env.reset()

    def seconds(self, part: str) -> list[float]:
        """Seconds of some updates, plans or calls of ``part``."""
        updates, calls = (self.side.settings[name] for name in ("updates", "calls"))
        if part == "joint_update":
            return update_seconds(lambda folder: self._fit(folder, updates))
        if part == "refine_update":
            return update_seconds(lambda folder: self._refine(folder, updates))
        if part == "tree_plan":
            return [next(self.plans) for _ in range(1 + calls)][1:]
        if part == "jepa_mpc_update":
            return call_seconds(lambda: self.agent.train(1, self.agent.batch_size), calls)
        if part == "jepa_mpc_decision":
            return call_seconds(lambda: self.agent.predict(self.observation), 5 * calls)
        action = np.zeros(self.wrapped.action_space.shape, np.float32)
        return call_seconds(lambda: self.wrapped.step(action), 20 * calls)

    def _fit(self, folder: str, updates: int, rate: float = 0.01) -> None:
        """``rate``: of the recipe's learning rate; small while timing, since the plans need a trained model."""
        from jepa_rl import WindowSampler, fit

        sampler = WindowSampler(self.side.train, self.recipe.window, self.recipe.block)
        fit(self.model, sampler, _short(self.recipe.joint, updates, rate), folder, progress=False)

    def _encode_episodes(self) -> None:
        kept = name_in("LatentEpisodes", "jepa_rl.data.latent_windows", "jepa_rl.data.latents")
        self.latents = kept.encode(self.model, self.side.train)

    def _refine(self, folder: str, updates: int, rate: float = 0.01) -> None:
        refine, config = self.side.quickstart.refine_dynamics, _short(self.recipe.refine, updates, rate)
        refine(
            self.model, self.latents, folder, steps=self.recipe.refine_window, config=config, progress=False
        )

    def _plans(self) -> Iterator[float]:
        """Seconds of the decisions that plan, in one episode after the other."""
        from jepa_rl.envs import GoalObservation

        quickstart = self.side.quickstart
        agent = quickstart.planning_agent(self.side.args, self.model)
        agent.planner = replace(agent.planner, **self.recipe.planner)
        env = GoalObservation(self.side.rooms())
        for episode in count(quickstart.FIRST_LAYOUT):
            observation, _ = env.reset(seed=episode)
            state, over, start = None, False, True
            while not over:
                before, began = agent.last_plan, time.perf_counter()
                action, state = agent.predict(observation, state, np.array([start]))
                took, start = time.perf_counter() - began, False
                observation, _, terminated, truncated, _ = env.step(action)
                over = terminated or truncated
                if agent.last_plan is not before:
                    yield took

    def sizes(self) -> dict[str, Any]:
        """Plain numbers: configurations, batches, and how many weights there are."""
        recipe, policy = self.recipe, self.agent.policy
        world = asdict(recipe.world)
        world["encoder_options"] = convolution_sizes(self.model.encoder) | world["encoder_options"]
        algorithm = {name: getattr(self.agent, name) for name in ("batch_size", "steps", "n_step", "gamma")}
        pictures = policy.model.world.encoder if hasattr(policy.model, "world") else picture_of(policy.model)
        return {
            "world": world,
            "joint": asdict(recipe.joint),
            "window": recipe.window,
            "block": recipe.block,
            "refine": asdict(recipe.refine),
            "refine_window": recipe.refine_window,
            "planner": recipe.planner,
            "jepa_mpc": {
                "algorithm": algorithm,
                "encoder": convolution_sizes(pictures),
                "policy": {k: asdict(v) if is_dataclass(v) else v for k, v in policy.settings.items()},
            },
            "weights": {
                "world": weights(self.model),
                "dynamics": weights(self.model.dynamics),
                "jepa_mpc": weights(policy.model),
            },
        }


def _short(config: Any, updates: int, rate: float) -> Any:
    """The same training, but for its length, and without anything that happens now and then."""
    return replace(
        config, steps=updates, learning_rate=rate * config.learning_rate,
        log_every=NEVER, evaluate_every=NEVER, checkpoint_every=NEVER,
    )  # fmt: skip


def picture_of(model: Any) -> nn.Module:
    """The only encoder of pictures of version 0.1.0's ``ControlModel``."""
    return next(iter(model.encoder.pictures.values()))


def convolution_sizes(encoder: nn.Module) -> dict[str, Any]:
    """Widths and patch of a convolutional encoder, read off its layers."""
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    return (
        {"widths": [layer.out_channels for layer in layers], "patch": layers[0].kernel_size[0]}
        if layers
        else {}
    )


def weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
