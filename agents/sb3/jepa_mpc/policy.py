"""Stable-Baselines3's policy object of ``JEPAMPC``: it plans."""

from __future__ import annotations

import copy
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int64
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import data_to_json
from stable_baselines3.common.utils import get_device
from torch import Tensor

from jepa_rl.agents.planners.categorical import CategoricalCEM
from jepa_rl.agents.planners.mppi import MPPI
from jepa_rl.agents.sb3.saved import SavedZip, in_words, rebuilt
from jepa_rl.control import ControlConfig, ControlModel, ReturnCost, move_towards, world_config
from jepa_rl.dynamics import CompiledDynamics, captured
from jepa_rl.files import write_atomic
from jepa_rl.spaces import observed_spec
from jepa_rl.types import Cost, Dynamics, Observations, Plan
from jepa_rl.world_model import WorldModel


class JEPAMPCPolicy(BasePolicy):
    """Plans in the latents of a ``ControlModel``; the old plan travels in ``predict``'s ``state``.

    ``model`` learns, ``average`` acts: a moving average of its weights (Polyak and Juditsky 1992). At the rates that a
    few thousand updates need, the weights of one moment are noisy: cartpole-swingup's return from pixels rose from
    669 to 773 with nothing else changed.

    Args:
        observation_space, action_space: of the environment, as Stable-Baselines3 shows them.
        lr_schedule: unused; the algorithm holds the optimisers.
        world: fields of the ``WorldModelConfig`` that differ from those of ``jepa_rl.control.world_config``, such as
            ``{"latent_dim": 32, "encoder": "keypoints"}``: encoder, dynamics and objective by name and options.
        control: sizes and weights of reward, value, termination and policy prior.
        horizon: latent steps of a plan.
        samples, elites, iterations: of the search (``MPPI`` that returns its mean, or ``CategoricalCEM`` for choices).
        init_std, temperature: of ``MPPI``.
        proposals: number of plans of the policy prior that compete in every search. With 0 the prior still gives the
            action for the value of a plan's last state and for value targets.
        terminal_value: whether the value of the last state is part of a plan's cost.
        average_rate: how far the average moves towards the model after an update; 1 acts with the model itself.
        compile: whether rollouts and costs of plans go through ``torch.compile``, as CUDA graphs on a GPU. The first
            decisions then take a minute; on a processor it needs a C++ compiler and gains little, and on one limited to
            AVX2 what torch 2.13 compiles answers NaN, which the search refuses.
        discount: of one step; JEPAMPC gives its own ``gamma``.
        frames: stacked in every picture; JEPAMPC asks its environment.
        source: how the environment is made, see ``WorldSpec``; JEPAMPC asks its environment.
        seed: of the searches; JEPAMPC gives its own.

    Raises:
        ValueError: for an ``average_rate`` outside (0, 1]; and as ``world_config``, ``WorldModel`` and the planners.
        TypeError: for a ``world`` that is no dict, or a ``control`` that is no ``ControlConfig``.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Callable[[float], float] | None = None,
        *,
        world: dict[str, Any] | None = None,
        control: ControlConfig | None = None,
        horizon: int = 5,
        samples: int = 64,
        elites: int = 16,
        iterations: int = 2,
        init_std: float = 0.5,
        temperature: float = 1.0,
        proposals: int = 8,
        terminal_value: bool = True,
        average_rate: float = 0.003,
        compile: bool = False,
        discount: float = 0.99,
        frames: int = 1,
        source: str = "",
        seed: int = 0,
    ) -> None:
        if not 0 < average_rate <= 1:
            raise ValueError(f"average_rate must lie in (0, 1], got {average_rate}")
        super().__init__(observation_space, action_space)
        control = control or ControlConfig()
        if not isinstance(control, ControlConfig):
            raise TypeError(f"control must be a jepa_rl.control.ControlConfig, got {control!r}")
        spec = observed_spec(observation_space, action_space, frames, source)
        config = world_config(spec, world)
        self.settings: dict[str, Any] = dict(
            world=dict(world or {}), control=control, horizon=horizon, samples=samples, elites=elites,
            iterations=iterations,
            init_std=init_std, temperature=temperature, proposals=proposals, terminal_value=terminal_value,
            average_rate=average_rate, compile=compile, discount=discount, frames=frames,
            source=source, seed=seed,
        )  # fmt: skip
        self.action = spec.action
        self.model = ControlModel(WorldModel(config), control, discount)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.average_rate = average_rate
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        search: dict[str, Any] = dict(horizon=horizon, samples=samples, elites=elites, iterations=iterations)
        self.planner = (
            CategoricalCEM(**search, choices=self.action.groups)
            if self.action.groups
            else MPPI(**search, init_std=init_std, temperature=temperature, keep_best=False)
        )
        self.proposals, self.seed = proposals, seed
        cost = ReturnCost(self.average, terminal_value)
        self.searched: tuple[Dynamics, Cost] = (self.average, cost)
        if compile:
            self.searched = (CompiledDynamics(self.average), captured(cost))
        self.generator = torch.Generator().manual_seed(
            seed
        )  # of exploration; its state carries over from call to call
        self.last_plan: Plan | None = None
        self.seconds: dict[str, float] = {}  # wall time of the parts of the last call of act

    @property
    def world(self) -> WorldModel:
        """The world model that acts: ``wrap(env, world)``, ``world.save(path)``."""
        return self.average.world

    def warm_start(self, world: WorldModel | str | Path) -> None:
        """Takes encoder and dynamics from a world model, or from its file, for the model and its average.

        Raises:
            ValueError, FileNotFoundError: as ``WorldModel.load`` and ``ControlModel.warm_start``.
        """
        self.model.warm_start(world if isinstance(world, WorldModel) else WorldModel.load(world))
        self.average.load_state_dict(self.model.state_dict())

    def after_update(self) -> None:
        """Moves the average towards the model."""
        self.updates += 1
        # Larger at first, so that the average soon forgets the initial weights.
        rate = max(self.average_rate, 10 / (9 + self.updates.item()))
        move_towards(self.average, self.model, rate)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space, "action_space": self.action_space, **self.settings
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes the weights, and the settings as ``JEPAMPC.save`` does; atomic.

        Raises:
            OSError: as ``jepa_rl.files.write_atomic``.
        """
        file, settings = io.BytesIO(), data_to_json(self._get_constructor_parameters())
        torch.save({"state_dict": self.state_dict(), "settings": settings}, file)
        write_atomic(path, file.getvalue())

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "auto", *, trust: bool = False) -> Self:
        """A policy from a file of ``save``; nothing in the file is executed unless it is trusted.

        Args:
            path: the file.
            device: where the policy goes.
            trust: True: read it as Stable-Baselines3 does, as older versions wrote it, which can execute
                anything. Only for files whose author you trust.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, from an older version, or holds unknown settings. Nothing has been executed then.
        """
        try:
            saved = SavedZip.read(path).weights()
            state, text = saved["state_dict"], json.loads(saved["settings"])
        except (ValueError, TypeError, KeyError) as error:
            if trust:
                return super().load(str(path), device)
            raise ValueError(
                f"{path} holds no weights and settings of a JEPAMPCPolicy, or is from an older version of jepa-rl "
                f"({error}). If you trust who wrote it, load it with trust=True, which can execute anything in it"
            ) from error
        settings, unknown = rebuilt(text)
        if unknown:
            raise ValueError(f"{path} has settings that no JEPAMPCPolicy saves: {in_words(unknown)}")
        policy = cls(**settings)
        policy.load_state_dict(state)
        return policy.to(get_device(device))

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """As in Stable-Baselines3.

        Args:
            observation: of one environment, or of n.
            state: the plans that the last call returned; None at the start.
            episode_start: bool (n,); where True, the old plan is discarded.
            deterministic: True: the action of the search's answer, equal for equal calls. False: the first action of
                a plan drawn from the best eighth of the candidates (of the distinct ones for discrete actions).

        Returns:
            Actions in the environment's units, and the shifted plans, the next call's ``state``.
        """
        tensors, vectorised = self.obs_to_tensor(observation)
        actions, state = self.act(tensors, state, episode_start, deterministic)
        decoded = self.action.decode(actions)
        return (decoded if vectorised else decoded[0]), state

    def select_state(
        self, state: tuple[np.ndarray, ...] | None, rows: Int64[np.ndarray, " m"]
    ) -> tuple[np.ndarray, ...] | None:
        """The plans of the environments ``rows`` alone; see ``jepa_rl.acting.SelectiveAgent``."""
        return None if state is None else tuple(part[rows] for part in state)

    @torch.inference_mode()
    def act(
        self,
        observations: Observations,
        state: tuple[np.ndarray, ...] | None,
        episode_start: np.ndarray | None,
        deterministic: bool,
    ) -> tuple[Float[np.ndarray, "n a"], tuple[np.ndarray, ...]]:
        """Plans, and returns first actions.

        Args:
            observations: tensors, as ``obs_to_tensor`` gives them.
            state: plans "n h a" of the last call in a tuple; None at the start.
            episode_start: bool (n,); where True, the old plan is discarded.
            deterministic: see ``predict``.

        Returns:
            Model actions (see ``ActionSpec.encode``), and the plans shifted by one step, the next call's ``state``.

        Raises:
            ValueError: if the plans in ``state`` have another shape.
        """
        if self.training:  # going through all modules takes a quarter of a millisecond
            self.set_training_mode(False)
        began = time.perf_counter()
        z = self.average.encode(observations)
        if z.is_cuda:  # otherwise the time would be that of launching the kernels
            torch.cuda.synchronize(z.device)
        encoded = time.perf_counter()
        shape = (len(z), self.planner.horizon, self.model.action_dim)
        warm = np.zeros(shape, np.float32) if state is None else state[0].copy()
        if warm.shape != shape:
            raise ValueError(
                f"state must hold plans of shape {shape}, got {warm.shape}; pass what predict returned"
            )
        if episode_start is not None:
            warm[np.asarray(episode_start, bool).reshape(-1)] = 0.0
        generator = self._generator_on(z.device, deterministic)
        plan = self.planner.plan(
            *self.searched, z, torch.from_numpy(warm).to(z), generator, self._proposed(z, generator)
        )
        self.last_plan = plan
        chosen = plan.actions if deterministic else self.planner.explore(plan, generator)
        shifted = torch.cat([plan.actions[:, 1:], plan.actions[:, -1:]], dim=1)
        answer = chosen[:, 0].cpu().numpy(), (shifted.cpu().numpy(),)
        self.seconds = {"encode": encoded - began, "plan": time.perf_counter() - encoded}
        return answer

    def _generator_on(self, device: torch.device, deterministic: bool) -> torch.Generator:
        """A freshly seeded generator for deterministic searches, the exploration generator otherwise; on ``device``."""
        if deterministic:
            return torch.Generator(device).manual_seed(self.seed)
        if self.generator.device.type != device.type:
            self.generator = torch.Generator(device).manual_seed(self.seed)
        return self.generator

    def _proposed(self, z: Tensor, generator: torch.Generator) -> Float[Tensor, "b p h a"] | None:
        """Plans of the policy prior, rolled out in the model; the first one takes the mode of every action.

        All environments share one draw of noise, as in the search, so that a plan does not depend on the other rows of
        the batch.
        """
        if not self.proposals:
            return None
        rows, actions = z.repeat_interleave(self.proposals, 0), []
        for _ in range(self.planner.horizon):
            actions.append(self.average.policy.proposals(rows, generator, self.proposals))
            rows = self.average.world.dynamics.step(rows, actions[-1], generator)
        return torch.stack(actions, 1).unflatten(0, (len(z), self.proposals))

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """Actions of the environment as a tensor."""
        actions, _ = self.act(observation, None, None, deterministic)
        return torch.from_numpy(np.asarray(self.action.decode(actions)))
