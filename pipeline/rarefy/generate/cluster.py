"""Connects to Ray: an embedded instance that leaves nothing behind, or a cluster by its address."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import ray

from rarefy.errors import DeviceError, bad
from rarefy.generate.fit import Request, Resources, find_machines, fit_cluster, fit_machine

OBJECT_STORE_BYTES = 256 * 2**20  # images go to files; only small messages pass through the store
FOLDER_PREFIX = "rarefy-ray-"


@contextmanager
def connected(request: Request, address: str | None) -> Iterator[Resources]:
    """Connect to ``address``, or start an embedded Ray and stop it afterwards. Yields what each actor gets.

    If this process is already connected to Ray, that connection is used and kept. Raises DeviceError if an actor does
    not fit. Ray always prints messages about dead workers; they go to stderr, because stdout is for the result.
    """
    with redirect_stdout(sys.stderr), _connection(request, address) as resources:
        yield resources


@contextmanager
def _connection(request: Request, address: str | None) -> Iterator[Resources]:
    if ray.is_initialized():
        yield fit_cluster(request, find_machines())
    elif address is None:
        resources = fit_machine(request)
        with _private_folder() as folder:
            _start(resources, folder)
            try:
                yield resources
            finally:
                ray.shutdown()
    else:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as cause:
            reason = " ".join(str(cause).split())[:200]
            raise DeviceError(bad("ray_address", address, f"a Ray cluster that answers ({reason})")) from cause
        try:
            yield fit_cluster(request, find_machines())
        finally:
            ray.shutdown()


def _start(resources: Resources, folder: Path) -> None:
    # Turn off usage reports and a warning about CUDA_VISIBLE_DEVICES in actors without a GPU.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    actors = resources.actors or 1
    ray.init(
        "local",
        num_cpus=actors * resources.cpus,
        num_gpus=resources.whole_gpus(actors),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
    )
    _end_idle_servers()


def _end_idle_servers() -> None:
    """Stop the Ray servers that a single run does not need. Together they use 1% of a core and 140 MB.

    The log monitor polls ten times per second although the driver takes no logs; autoscaler and dashboard are for
    clusters. Ray has no option for this and the calls are private: if a later version lacks them, the servers stay.
    """
    with suppress(AttributeError):
        node: Any = ray._private.worker._global_node
        for end in (node.kill_log_monitor, node.kill_monitor, node.kill_dashboard):
            end(check_alive=False)


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A temporary folder for Ray's session. Also removes the folders of runs that were killed.

    A live run holds a lock on its folder. It is directly in /tmp because Ray's socket paths are limited to about 100
    characters.
    """
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp"))
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    for lock_path in Path("/tmp").glob(f"{FOLDER_PREFIX}*/lock"):
        # OSError: another user's folder, locked by a live run, or just removed by another run.
        with suppress(OSError), lock_path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_path.parent, ignore_errors=True)
