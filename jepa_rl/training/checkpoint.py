"""What an interrupted training needs to go on exactly as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_rl.files import load_tensors, plain, save_tensors
from jepa_rl.types import Metrics


class TrainingState:
    """All that changes while a model learns, kept in one file.

    Attributes:
        model: an ``nn.Module`` with a dataclass ``config``.
        optimizers: its optimisers by name.
        config: the dataclass that says how to train.
        rng, generator: of sampling, and of the terms that draw numbers. PyTorch's own generators (dropout) are
            saved too; ``seeded_generators`` makes them the run's.
        step: updates done.
        metrics: the latest of each.
        alarms: (step, text) so far.
    """

    def __init__(self, model: Any, optimizers: dict[str, torch.optim.Optimizer], config: Any) -> None:
        self.model, self.optimizers, self.config = model, optimizers, config
        self.device = next(model.parameters()).device
        self.rng = np.random.default_rng(config.seed)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.step = 0
        self.metrics: Metrics = {}
        self.alarms: list[tuple[int, str]] = []

    def save(self, path: Path) -> None:
        """Writes all of it, or nothing (``jepa_rl.files.write_atomic``)."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(name, optimizer)
        tensors["generator"], tensors["torch_generator"] = self.generator.get_state(), torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["cuda_generator"] = torch.cuda.get_rng_state(self.device)
        header = {
            "config": asdict(self.model.config),
            "train": asdict(self.config),
            "rng": self.rng.bit_generator.state,
            "step": self.step,
            "metrics": self.metrics,
            "alarms": self.alarms,
        }
        save_tensors(path, "training", tensors, header)

    def restore(self, path: Path) -> None:
        """Reads what ``save`` wrote.

        Raises:
            ValueError: it belongs to another model or training configuration, or is damaged. Nothing has
                changed then.
        """
        tensors, header = load_tensors(path, ("training",))
        for name, config in (("config", self.model.config), ("train", self.config)):
            check_same(path, name, header[name], json.loads(json.dumps(asdict(config), default=plain)))
        self.model.load_state_dict(
            {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        )
        for name, optimizer in self.optimizers.items():
            restore_optimizer(name, optimizer, tensors)
        self.rng.bit_generator.state = header["rng"]
        self.generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["torch_generator"])
        if "cuda_generator" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["cuda_generator"], self.device)
        self.step, self.metrics = int(header["step"]), header["metrics"]
        self.alarms = [(int(step), text) for step, text in header["alarms"]]


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser has gathered about each parameter, under ``name.<parameter's number>.<slot>``."""
    return {
        f"{name}.{index}.{slot}": torch.as_tensor(value)
        for index, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
    }


def restore_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Gives an optimiser back what ``optimizer_tensors`` took."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        owner, *rest = key.split(".")
        if owner == name:
            parameter = parameters[int(rest[0])]
            if tensor.shape == parameter.shape:  # keep the memory layout, so that updates round alike
                tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
            slots.setdefault(int(rest[0]), {})[rest[1]] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def check_same(path: Path, name: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises ValueError if two configurations differ, and says in what."""
    differing = {k: (there.get(k), here.get(k)) for k in there.keys() | here if there.get(k) != here.get(k)}
    if differing:
        raise ValueError(
            f"{path} belongs to another {name} configuration (there, here): {differing}; "
            "use the same configuration to resume, or another folder"
        )


@contextmanager
def seeded_generators(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's own generators, which dropout draws from, are seeded inside and untouched afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
