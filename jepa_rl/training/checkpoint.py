"""What an interrupted training needs to go on exactly as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from jepa_rl.distributed import gather, is_first, rank
from jepa_rl.files import load_tensors, naming, plain, save_tensors
from jepa_rl.training.contracts import Registered, Upgraded
from jepa_rl.types import JSON, Metrics


class TrainingState:
    """All that changes while a model learns, kept in one file.

    Args:
        model: an ``nn.Module`` with a dataclass ``config``.
        optimizers: its optimisers by name.
        config: the dataclass that says how to train.
        data: fingerprint of what the model learns from.

    Attributes:
        rng, generator: of sampling, and of the terms that draw numbers. PyTorch's own generators (dropout) are
            saved too; ``seeded_generators`` makes them the run's.
        step: updates done.
        metrics: the latest of each.
        alarms: (step, text) so far.

    Raises:
        TypeError: a configuration or the fingerprint holds what JSON does not know, so that no checkpoint could be
            written.
    """

    def __init__(
        self, model: Any, optimizers: dict[str, torch.optim.Optimizer], config: Any, data: JSON
    ) -> None:
        self.model, self.optimizers, self.config = model, optimizers, config
        parts = {"config": asdict(model.config), "train": asdict(config), "data": data}
        self.identity: JSON = {name: _as_json(name, part) for name, part in parts.items()}
        self.device = next(model.parameters()).device
        self.rng = np.random.default_rng(config.seed)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.step = 0
        self.metrics: Metrics = {}
        self.alarms: list[tuple[int, str]] = []

    def save(self, path: Path) -> None:
        """Writes all of it, or nothing (``jepa_rl.files.write_atomic``). Of several processes the first writes."""
        torch_states = gather(torch.get_rng_state())
        cuda = self.device.type == "cuda"
        cuda_states = gather(torch.cuda.get_rng_state(self.device)) if cuda else None
        if not is_first():
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(name, optimizer)
        tensors["generator"] = self.generator.get_state()
        for name, states in (("torch_generator", torch_states), ("cuda_generator", cuda_states)):
            for i, state in enumerate(() if states is None else states):
                tensors[_numbered(name, i)] = state
        header = self.identity | {
            "registered_by": self.model.registered_by if isinstance(self.model, Registered) else {},
            "rng": self.rng.bit_generator.state,
            "step": self.step,
            "metrics": self.metrics,
            "alarms": self.alarms,
        }
        save_tensors(path, "training", tensors, header)

    def restore(self, path: Path) -> None:
        """Reads what ``save`` wrote. Files of version 0.1.0 do not say what the model learned from.

        Raises:
            ValueError: it belongs to another model, training configuration or other data, or is damaged. Nothing has
                changed then.
        """
        tensors, header = load_tensors(path, ("training",))
        with naming(path, "does not describe a training run of this version"):
            self._check_config(path, header["config"])
            check_same(path, "train", header["train"], self.identity["train"])
            if "data" in header:
                check_data(path, header["data"], self.identity["data"])
            self._restore(tensors, header)

    def _restore(self, tensors: dict[str, Tensor], header: JSON) -> None:
        step, metrics = int(header["step"]), dict(header["metrics"])
        alarms = [(int(at), str(text)) for at, text in header["alarms"]]
        if not all(isinstance(value, int | float) for value in metrics.values()):
            raise TypeError(f"its metrics are no numbers: {metrics}")
        if step < 0:
            raise ValueError(f"it says that {step} updates were made")
        self.model.load_state_dict(
            {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        )
        for name, optimizer in self.optimizers.items():
            restore_optimizer(name, optimizer, tensors)
        self.rng.bit_generator.state = header["rng"]
        self.generator.set_state(tensors["generator"])
        self.step, self.metrics, self.alarms = step, metrics, alarms
        if (name := _numbered("torch_generator", rank())) in tensors:
            torch.set_rng_state(tensors[name])
        else:  # the run had fewer processes
            torch.manual_seed(_seed_of(self.config.seed, self.step))
        if (name := _numbered("cuda_generator", rank())) in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[name], self.device)

    def _check_config(self, path: Path, there: JSON) -> None:
        """Raises ValueError unless a file's configuration of the model equals this one's, in this version's terms."""
        config = self.model.config
        if isinstance(config, Upgraded):
            try:
                old: Any = config.from_json(there)
            except (TypeError, ValueError, KeyError, AttributeError):
                pass  # of another kind of model: the message below says in what it differs
            else:
                if old == config:
                    return
                there = _as_json("config", asdict(cast(Any, old)))
        check_same(path, "config", there, self.identity["config"])


def _numbered(name: str, process: int) -> str:
    """Of what each process has one; that of the first has the bare name, as in a run of one process."""
    return f"{name}.{process}" if process else name


def _seed_of(seed: int, step: int) -> int:
    """Seed of torch's own generators from update ``step`` on: in the first process that of the run."""
    if not rank():
        return seed
    return int(np.random.SeedSequence([seed % 2**63, rank(), step]).generate_state(1)[0])


def _as_json(name: str, part: JSON) -> JSON:
    """As it will be read back: lists for tuples."""
    try:
        return json.loads(json.dumps(part, default=plain))
    except TypeError as error:
        raise TypeError(
            f"{name} must be plain numbers, texts, lists and dicts to be written into checkpoints, got {part}: {error}"
        ) from error


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser for each parameter, named ``<name>.<number of the parameter>.<slot>``."""
    return {
        f"{name}.{index}.{slot}": torch.as_tensor(value)
        for index, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
    }


def restore_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Sets the state of an optimiser to what ``optimizer_tensors`` gave.

    Args:
        name: that was given to ``optimizer_tensors``.
        optimizer: of the same parameters.
        tensors: by name; those of other owners are left alone.
    """
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


def check_same(path: Path, name: str, there: JSON, here: JSON) -> None:
    """Compares two configurations.

    Args:
        path: the file that ``there`` is from; for the message.
        name: what is configured; for the message.
        there, here: the configurations.

    Raises:
        ValueError: they differ; the message says in what.
    """
    if differing := _differing(there, here):
        raise ValueError(
            f"{path} belongs to another {name} configuration (there, here): {differing}; "
            "use the same configuration to resume, or another folder"
        )


def check_data(path: Path, there: JSON, here: JSON) -> None:
    """Compares two fingerprints of data (``jepa_rl.training.Fingerprinted``).

    Args:
        path: the file that ``there`` is from; for the message.
        there, here: the fingerprints.

    Raises:
        ValueError: they differ; the message says in what, and whether it looks as if episodes had been added.
    """
    differing = _differing(there, here)
    if not differing:
        return
    if differing.keys() <= _GROWING and there["episodes"] < here["episodes"]:
        raise ValueError(
            f"{path} was trained on {there['episodes']} episodes, and there are {here['episodes']} now: it seems that "
            "some were added since. To resume, sample from those that it began with (store.view(indices)); to learn "
            "from all of them, choose another folder"
        )
    raise ValueError(
        f"{path} was trained on other data (there, here): {differing}; use the same data to resume, or another folder"
    )


# Entries of a fingerprint that change when episodes are added to a store.
_GROWING = {"episodes", "environment_steps", "index", "rows"}


def _differing(there: JSON, here: JSON) -> dict[str, tuple[Any, Any]]:
    return {k: (there.get(k), here.get(k)) for k in there.keys() | here if there.get(k) != here.get(k)}


@contextmanager
def seeded_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds PyTorch's own generators, which dropout draws from, inside the block, and restores them afterwards.

    Each process has a seed of its own: dropout is drawn for its rows alone.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_seed_of(seed, 0))
        yield
