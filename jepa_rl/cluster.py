"""Ray for as long as it is needed: started on this machine alone, or joined. Needs the extra ``[ray]``.

``jepa_rl.sweeps`` and ``jepa_rl.envs.collect_on_ray`` run on it.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

# Of a Ray that is started here: results wait in it, and what does not fit goes to disk.
OBJECT_STORE_BYTES = 256 * 2**20
STARTS = 3  # of a Ray on this machine
ANSWER_SECONDS = 5.0  # that an address may take to answer
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's makers
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run` does not make Ray upload the working directory
    "RAY_worker_niceness": "0",  # Ray's own 15 stands still beside whatever else runs
}


def require_ray() -> Any:
    """The module ``ray``, whose start reports nothing and uploads nothing.

    Raises:
        ImportError: if it is not installed, with the line that installs it.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.tune  # what `ray` alone, without the extra, lacks
    except ImportError as error:
        raise ImportError(f"Ray is missing ({error}): `pip install 'jepa-rl[ray]'`") from error
    return ray


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def ray_running(address: str | None = None, cpus: int | None = None) -> Iterator[Any]:
    """Context manager: Ray runs inside, and all of its processes that were started here are gone afterwards.

    A Ray that this process already uses is taken as it is and left running. One that is started here has no dashboard
    and prints nothing.

    Args:
        address: of a running cluster, ``"host:port"``, or ``"auto"`` on one of its machines; None starts Ray here.
        cpus: cores that a Ray started here may fill; all that this process may use if None.

    Raises:
        ImportError: without Ray.
        ValueError: if the address cannot be one, or this process uses another Ray.
        ConnectionError: if no Ray answers there.
    """
    ray = require_ray()
    if address is not None:
        check_address(address)
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", here):
            raise ValueError(
                f"this process already uses the Ray at {here}, got address={address!r}; call ray.shutdown() first"
            )
        yield ray
        return
    try:
        _start(ray, address, cpus)
        yield ray
    finally:
        ray.shutdown()


def _start(ray: Any, address: str | None, cpus: int | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        _start_here(ray, cpus or cores(), quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, SystemExit) as error:  # Ray ends the process where something else answers
        raise ConnectionError(_nobody(address, error)) from error


def _start_here(ray: Any, cpus: int, quiet: dict[str, Any]) -> None:
    """Ray waits 30 seconds for its own processes, which a machine at its limit needs longer for."""
    there = {child.pid for child in psutil.Process().children(recursive=True)}
    for attempt in range(STARTS):
        try:  # "local": never a Ray that happens to run on this machine
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
            return
        except Exception as error:  # of no kind of its own
            for child in psutil.Process().children(recursive=True):
                if child.pid not in there:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
            if "timed out during startup" not in str(error) or attempt == STARTS - 1:
                raise
            ray.shutdown()


def check_address(address: str) -> None:
    """Whether something answers there; Ray itself tries for two minutes and then ends the process.

    Raises:
        ValueError: if it cannot be the address of a cluster.
        ConnectionError: if nothing answers within five seconds.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError(f"address must be 'auto' or host:port, such as 10.0.0.1:6379, got {address!r}")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise ConnectionError(_nobody(address, error)) from error


def _nobody(address: str, error: BaseException) -> str:
    return (
        f"no Ray answers at {address!r} ({error}); `ray start --head --port=6379` starts one there, and without an "
        "address this machine alone is used"
    )


class Parcel:
    """Something on its way to other processes: ``open`` gives a fresh copy each time.

    Modules are sent by name and imported there, from where this process found them; what stands in the script itself,
    or in a function, is sent as it is.

    Args:
        content: to send.
        name: of it, for the error.

    Raises:
        TypeError: if it cannot be sent.
    """

    def __init__(self, content: Any, name: str) -> None:
        require_ray()
        from ray import cloudpickle

        try:
            self._bytes = cloudpickle.dumps(content)
        except Exception as error:  # whatever an object's own __reduce__ raises
            raise TypeError(
                f"{name} cannot be sent to another process ({type(error).__name__}: {error}); it may hold no open "
                "file, lock, generator or environment: make these where they are used"
            ) from error
        self._paths = [os.path.abspath(path or os.curdir) for path in sys.path]

    def open(self) -> Any:
        """A copy of the content."""
        sys.path.extend(path for path in self._paths if path not in sys.path)
        return pickle.loads(self._bytes)
