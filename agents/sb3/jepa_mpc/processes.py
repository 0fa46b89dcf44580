"""Several processes that share the updates of one ``JEPAMPC``: the first acts, and tells the others what to compute."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from jepa_rl import distributed
from jepa_rl.agents.sb3.jepa_mpc.resume import restore_run, run_state
from jepa_rl.batches import cut
from jepa_rl.files import plain
from jepa_rl.training.checkpoint import seeded_generators
from jepa_rl.types import ControlBatch, Metrics

if TYPE_CHECKING:
    from jepa_rl.agents.sb3.jepa_mpc.algorithm import JEPAMPC

Back = Callable[[], AbstractContextManager[None]]


@contextmanager
def shared_updates(agent: JEPAMPC) -> Iterator[bool]:
    """Context manager around ``learn``: whether this process acts. One that does not has helped when the block begins.

    Raises:
        ValueError: in all processes, before anything has changed: they cannot divide ``batch_size``, one has other
            settings than the first, or the model has a part that trains in one process only.
        ProcessLost: in the others, if the first raised anything; in the first, if another one ended.
    """
    if distributed.processes() == 1:
        yield True
        return
    with distributed.together():
        _check(agent)
        if not distributed.is_first():
            _help(agent)
    if not distributed.is_first():
        yield False
        return
    with distributed.alone() as back:  # what callbacks do, they do alone
        agent._helpers = Helpers(agent, back)
        try:
            yield True
            agent._helpers.finish()
        except BaseException as error:
            _stop(error, back)
        finally:
            agent._helpers = None


def _stop(error: BaseException, back: Back) -> NoReturn:
    """Raises an error, in the others a ``ProcessLost`` with its words."""

    def fail() -> NoReturn:
        raise error

    with back():
        distributed.by_first(fail)


class Helpers:
    """The other processes, for the one that acts.

    Args:
        agent: learns.
        back: the context in which all processes compute together.
    """

    def __init__(self, agent: JEPAMPC, back: Back) -> None:
        self._agent, self._back, self._alike = agent, back, False

    def update(self, batch: ControlBatch, unseen: int) -> Metrics:
        """``JEPAMPC._update`` of all processes, each with its rows of the batch."""
        agent = self._agent
        with self._back():
            if not self._alike:  # only now: callbacks restore runs when the training starts
                self._send_state(last=False)
            word = {
                "rates": [[group["lr"] for group in groups] for groups in _groups(agent)],
                "unseen": unseen,
            }
            count = distributed.processes()
            distributed.tell(word, [_tensors(cut(batch, slice(i, None, count))) for i in range(1, count)])
            return agent._update(cut(batch, distributed.own_rows()), unseen)

    def finish(self) -> None:
        """Ends the others' ``learn``; they have the weights and counters of this process then."""
        with self._back():
            self._send_state(last=True)

    def _send_state(self, last: bool) -> None:
        tensors, header = run_state(self._agent)
        word = {"run": header, "total": self._agent._total_timesteps, "last": last}
        distributed.tell(word, [tensors] * (distributed.processes() - 1))
        self._alike = True


def _help(agent: JEPAMPC) -> None:
    """What the other processes do while the first learns."""
    agent.policy.set_training_mode(True)
    with seeded_generators(agent.seed or 0, agent.device):  # of dropout
        while True:
            word, tensors = distributed.told()
            if "run" in word:
                agent._total_timesteps = word["total"] or 1  # the share that is left is computed from it
                # Copies: torch reads a generator's state from where the memory of its tensor begins.
                restore_run(agent, {name: x.clone() for name, x in tensors.items()}, word["run"])
                if word["last"]:
                    return
                continue
            for groups, rates in zip(_groups(agent), word["rates"], strict=True):
                for group, rate in zip(groups, rates, strict=True):
                    group["lr"] = rate
            agent._update(_batch(tensors), word["unseen"])


def _groups(agent: JEPAMPC) -> list[list[dict[str, Any]]]:
    """The groups of parameters of the agent's optimisers."""
    return [agent.model_optimizer.param_groups, agent.policy_optimizer.param_groups]


def _check(agent: JEPAMPC) -> None:
    """Raises ValueError, see ``shared_updates``."""
    model, policy = agent.policy.model, agent.policy
    settings = {
        "world": asdict(model.world.config),
        "control": asdict(model.config),
        "average_rate": policy.average_rate,
        "max_grad_norm": agent.max_grad_norm,
        "batch_size": agent.batch_size,
        "device": agent.device.type,
    }
    distributed.check_alike("settings", json.loads(json.dumps(settings, default=plain)))
    distributed.check_divides(agent.batch_size)
    training = policy.training
    policy.set_training_mode(True)
    try:
        distributed.check_parts(model)
    finally:
        policy.set_training_mode(training)


def _tensors(batch: ControlBatch) -> dict[str, Tensor]:
    """The tensors of a batch by name: that of the field, and in dicts, behind a point, that in the dict."""
    found: dict[str, Tensor] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, dict):
            found |= {f"{field.name}.{name}": part for name, part in value.items()}
        elif value is not None:
            found[field.name] = value
    return found


def _batch(tensors: dict[str, Tensor]) -> ControlBatch:
    """The inverse of ``_tensors``."""
    found: dict[str, Any] = {field.name: None for field in fields(ControlBatch)}
    for name, value in tensors.items():
        field, point, key = name.partition(".")
        found[field] = (found[field] or {}) | {key: value} if point else value
    return ControlBatch(**found)
