"""The processes of a run: how they join, what the first does alone, and words where one is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

TIMEOUT = 600.0  # seconds, of one exchange
POLL = 5.0  # seconds between two looks at whether the first process has answered


class ProcessLost(RuntimeError):
    """Another process of the run ended or does not answer."""


@dataclass
class _Group:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: number of this process.
        size: number of processes.
        store: what they leave messages in.
        asked: how many messages the first process was asked for.
    """

    rank: int
    size: int
    store: Any
    asked: int = 0


_group: _Group | None = None
_together = False  # whether what is computed now is computed by all processes


def rank() -> int:
    """Number of this process; 0 without others."""
    return 0 if _group is None else _group.rank


def processes() -> int:
    """How many processes have joined."""
    return 1 if _group is None else _group.size


def is_first() -> bool:
    """Whether this is the process that writes files, logs and shows the progress."""
    return rank() == 0


@contextmanager
def join(timeout: float = TIMEOUT) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started; does nothing where it started none.

    Tensors on processors are exchanged by gloo, on GPUs by nccl; process i of a machine takes its GPU i.

    Args:
        timeout: seconds after which an exchange with a process that hangs fails. A process that dies is noticed at
            once, since its connections close. Waiting for ``by_first`` has no limit.

    Raises:
        RuntimeError: another process group exists.
        ProcessLost: not all processes came.
    """
    global _group
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if _group is not None or size < 2 or "RANK" not in os.environ:
        yield
        return
    if dist.is_initialized():
        raise RuntimeError(
            "torch.distributed has a process group already, and jepa_rl.distributed.join makes its own; leave out "
            "init_process_group"
        )
    cuda, place = torch.cuda.is_available(), int(os.environ.get("LOCAL_RANK", "0"))
    if cuda and place < torch.cuda.device_count():
        torch.cuda.set_device(place)
    # Imported later, its functions would hold the group as their default argument: its threads would then live on until
    # the interpreter ends, and abort it now and then (pytorch/pytorch#179291).
    from torch.distributed import nn  # noqa: F401

    limit = timedelta(seconds=timeout)
    with lost_in_words():
        store, number, size = next(iter(rendezvous("env://", timeout=limit)))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        with _batch_threads():
            dist.init_process_group(backend, timeout=limit, store=store, rank=number, world_size=size)
    _group = _Group(number, size, PrefixStore("jepa_rl", store))
    try:
        yield
        exchange(torch.zeros(1))  # nobody leaves, and takes the messages along, before all have come here
    finally:
        _group = None
        dist.destroy_process_group()  # closes the connections, which tells the others


@contextmanager
def _batch_threads() -> Iterator[None]:
    """Threads that start inside do not interrupt others when they wake up (Linux's SCHED_BATCH).

    One of gloo's threads would interrupt another that holds its lock, and ask for the lock until its time is up: on
    processes with a core each, every fourth exchange took 4 ms instead of 0.5.
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    with suppress(OSError):  # a container may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def together() -> Iterator[None]:
    """Inside, all processes compute the same thing, each with its rows of the batch: they all enter it.

    ``fit`` enters it by itself. Outside, and in ``by_first``, every process is alone.
    """
    with _set_together(_group is not None):
        yield


@contextmanager
def _set_together(value: bool) -> Iterator[None]:
    global _together
    before, _together = _together, value
    try:
        yield
    finally:
        _together = before


@contextmanager
def alone() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Inside, there are no other processes; what it yields brings them back for a while, as ``together`` does."""
    group = _group
    with _set_group(None, False):
        yield lambda: _set_group(group, group is not None)


@contextmanager
def _set_group(group: _Group | None, together: bool) -> Iterator[None]:
    global _group
    before, _group = _group, group
    try:
        with _set_together(together):
            yield
    finally:
        _group = before


def is_together() -> bool:
    """Whether rows and statistics are those of several processes now."""
    return _together


def by_first(work: Callable[[], T]) -> T:
    """Lets the first process do something as if it were alone, while the others wait, as long as it takes.

    Args:
        work: may train, too; returns JSON values, such as metrics. What it writes is there when the others go on, if
            they see the same disk.

    Returns:
        Its answer, in all processes.

    Raises:
        ProcessLost: in the other processes, if ``work`` raised in the first.
    """
    group = _group
    if group is None:
        return work()
    name, group.asked = f"answer {group.asked}", group.asked + 1
    if group.rank == 0:
        try:
            with alone():
                answer = work()
            said = json.dumps({"answer": answer})
        except BaseException as error:
            with suppress(RuntimeError):
                group.store.set(name, json.dumps({"error": f"{type(error).__name__}: {error}"}))
            raise
        with lost_in_words():
            group.store.set(name, said)
    else:
        with lost_in_words():
            while not group.store.check([name]):
                with suppress(dist.DistStoreError):  # not yet
                    group.store.wait([name], timedelta(seconds=POLL))
            said = group.store.get(name).decode()
            if group.store.add(f"{name} read", 1) == group.size - 1:  # by all
                group.store.delete_key(name)
                group.store.delete_key(f"{name} read")
    found = json.loads(said)
    if "error" in found:
        raise ProcessLost(f"the first process stopped: {found['error']}")
    return found["answer"]


def exchange(x: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
    """Replaces a tensor by the sum over processes, in place.

    Args:
        x: of equal shape and dtype in all processes; contiguous.
        op: another operation of torch.distributed in place of the sum.

    Raises:
        ProcessLost: another process ended.
    """
    with lost_in_words():
        dist.all_reduce(x, op)


@contextmanager
def lost_in_words() -> Iterator[None]:
    """An exchange that failed, in words."""
    try:
        yield
    except ProcessLost:
        raise
    except RuntimeError as error:
        here = "this process" if _group is None else f"process {_group.rank} of {_group.size}"
        raise ProcessLost(
            f"{here} lost another one of the run, which ended or does not answer ({error}). Its own message, if it "
            "left one, stands in its output. The last checkpoint is whole: start all processes again with the same "
            "command, and the run goes on from there (torchrun --max-restarts=3 does so by itself)"
        ) from error
