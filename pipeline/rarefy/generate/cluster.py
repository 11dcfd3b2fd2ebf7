"""Connects to Ray: an embedded instance that leaves nothing behind, or a cluster by its address."""

from __future__ import annotations

import io
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import ray

from rarefy.errors import DeviceError, TemporaryError, bad
from rarefy.generate.fit import Request, Resources, find_machines, fit_cluster, fit_machine
from rarefy.interrupts import sigterm_kept
from rarefy.scratch import scratch_folder, sweep

OBJECT_STORE_BYTES = 256 * 2**20  # images go to files; only small messages pass through the store
FOLDER_PREFIX = "rarefy-ray-"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
ANSWER_S = 10.0  # for a cluster's head to take a connection
ENDING_S = 5.0  # for killed processes to be gone


def _nobody(text: str) -> None:
    """Nobody is told."""


@contextmanager
def connected(request: Request, address: str | None, say: Callable[[str], None] = _nobody) -> Iterator[Resources]:
    """Connect to ``address``, or start an embedded Ray and stop it afterwards. Yields what each actor gets.

    If this process is already connected to Ray, that connection is used and kept. say: told what takes a while. Raises
    DeviceError if an actor does not fit. What is printed meanwhile goes to stderr, because stdout is for the result.
    """
    with redirect_stdout(_OthersText()), _connection(request, address, say) as resources:
        yield resources


class _OthersText(io.TextIOBase):
    """Writes to stderr what Ray does not print.

    Ray's threads print pages about dead workers, whatever its settings say. The driver tells of them in one line.
    """

    def write(self, text: str) -> int:
        by_ray = threading.current_thread().name.startswith("ray_")
        return len(text) if by_ray else sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def _connection(request: Request, address: str | None, say: Callable[[str], None]) -> Iterator[Resources]:
    if ray.is_initialized():
        yield fit_cluster(request, find_machines())
    elif address is None:
        resources = fit_machine(request)
        say("starting Ray")
        try:
            with _private_folder() as folder, _environment(_own_settings(folder)):
                try:
                    _start_or_say_why(resources, folder)
                    yield resources
                finally:
                    ray.shutdown()
                    end_processes(folder)
        finally:
            forget_token()  # or this process's next Ray would refuse the calls of a head without a token
    else:
        _check_address(address)
        say("connecting to Ray")
        forget_token()
        try:
            with sigterm_kept():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as cause:
            reason = " ".join(str(cause).split())[:200]
            raise DeviceError(bad("ray_address", address, f"a Ray cluster that answers ({reason})")) from cause
        try:
            yield fit_cluster(request, find_machines())
        finally:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raise DeviceError for an address where nobody answers: Ray would try for minutes and print a page."""
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise DeviceError(bad("ray_address", address, "auto or the head's HOST:PORT; submit a job to go through a URL"))
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        except (OSError, OverflowError, ValueError) as cause:
            raise DeviceError(bad("ray_address", address, f"a Ray cluster that answers ({cause})")) from cause


def _own_settings(folder: Path) -> dict[str, str | None]:
    """Environment of an embedded Ray.

    Its token is a file of its own, since Ray's default place is the home folder, which may not exist. Usage reports are
    off, and a warning about CUDA_VISIBLE_DEVICES in actors without a GPU.
    """
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    defaults = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    return {
        TOKEN_PATH: str(token),
        "RAY_AUTH_TOKEN": None,
        **{name: os.environ.get(name, value) for name, value in defaults.items()},
    }


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set (or, for None, unset) environment variables, and put them back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def forget_token() -> None:
    """Let Ray read its token and settings again: it keeps them for the life of the process.

    The calls are private: versions that lack them have no token authentication by default.
    """
    with suppress(AttributeError):
        own: Any = ray._raylet
        own.Config.initialize("")
        own.AuthenticationTokenLoader.instance().reset_cache()


def _start_or_say_why(resources: Resources, folder: Path) -> None:
    try:
        _start(resources, folder)
    except Exception as cause:  # Ray raises nothing more special, such as when a busy machine makes it too slow
        reason = " ".join(str(cause).split())[:200]
        raise TemporaryError(f"Ray did not start on this machine ({reason}); run the same command again") from cause


def _start(resources: Resources, folder: Path) -> None:
    forget_token()
    actors = resources.actors or 1
    with sigterm_kept():  # Ray's own handlers would print a stack trace or exit with another code
        ray.init(
            "local",
            num_cpus=actors * resources.cpus,
            num_gpus=resources.whole_gpus(actors),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder / "ray"),  # Ray lets everybody write to it
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
    """A temporary folder for Ray's session. Also removes what runs that were killed have left, processes included.

    It is directly in /tmp because Ray's socket paths are limited to about 100 characters.
    """
    top = Path("/tmp")
    sweep(FOLDER_PREFIX, top, end_processes)
    with scratch_folder(FOLDER_PREFIX, top) as folder:
        yield folder


def end_processes(folder: Path) -> None:
    """Kill what is left of an embedded Ray: its agents would run for another minute."""
    end = time.monotonic() + ENDING_S
    while (left := _processes(folder)) and time.monotonic() < end:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _processes(folder: Path) -> list[int]:
    """This user's processes that were started with the folder's token. Systems without /proc show none."""
    mark, found = f"{TOKEN_PATH}={folder}/token".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            started_with = (process / "environ").read_bytes().split(b"\0")
            if mark in started_with and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found
