"""Faults inside a run's processes, driver and actors. Python imports this file first if its folder is on PYTHONPATH.

RAREFY_FAULTS names a folder. A file in ``tokens/`` called ``KIND.ID`` is one fault: the first process that reaches a
place where the fault can happen moves the file to ``used/`` and has the fault. RAREFY_FAULTS_ROOT: only files below it
are touched. RAREFY_FAULTS_NODE=bad: actors on this node cannot load their models. While the folder has a file ``gate``,
no shard's marker is created without taking a token ``permit.ID`` first, so that a test decides how far a run gets,
however slow the machine is. Lives in tests only.
"""

from __future__ import annotations

import builtins
import errno
import functools
import io
import os
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

FOLDER, ROOT = os.environ.get("RAREFY_FAULTS", ""), os.environ.get("RAREFY_FAULTS_ROOT", "\0")
HOOKED = "rarefy.generate.execution"
SLOW_S, POLL_S = 3.0, 0.02
_rename, _open = os.rename, builtins.open
_offset_s = 0.0
_lost_context = False


def take(kind: str) -> str | None:
    """Take one token of this kind, if there is one; returns its content."""
    for name in os.listdir(f"{FOLDER}/tokens"):  # noqa: PTH208 - Path would call the functions that are replaced here
        if name.rpartition(".")[0] == kind:
            try:
                _rename(f"{FOLDER}/tokens/{name}", f"{FOLDER}/used/{name}")
            except FileNotFoundError:
                continue  # another process was quicker
            with _open(f"{FOLDER}/used/{name}") as file:
                return file.read()
    return None


def fail(place: str, names: tuple[str, ...]) -> None:
    """Raise the OSError that a token asks for: ``fsync EIO`` and so on."""
    for name in names:
        if take(f"{place} {name}") is not None:
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))


def fsync(descriptor: int) -> None:
    global _offset_s
    if os.readlink(f"/proc/self/fd/{descriptor}").startswith(ROOT):  # noqa: PTH115
        fail("fsync", ("EIO", "ENOSPC"))
        if take("slow fsync") is not None:
            time.sleep(SLOW_S)
        if (seconds := take("clock jump")) is not None:
            _offset_s += float(seconds)
    _fsync(descriptor)


def placing(original: Callable[..., None]) -> Callable[..., None]:
    """os.link, os.rename and os.replace to a name below ROOT."""

    @functools.wraps(original)
    def wrapped(source: Any, target: Any, **options: Any) -> None:
        if os.fspath(target).startswith(ROOT):
            fail("rename", ("ESTALE",))
            if "/state/rare-" in os.fspath(target):
                while os.path.exists(f"{FOLDER}/gate") and take("permit") is None:  # noqa: PTH110
                    time.sleep(POLL_S)
        original(source, target, **options)

    return wrapped


def opening(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
    path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fspath(file)  # noqa: PTH115
    if "r" in mode and path.startswith(ROOT):
        fail("read", ("EIO",))
    return _open(file, mode, *arguments, **options)


def now() -> float:
    return _time() + _offset_s


def spoil(network: object, arguments: object, output: Any) -> Any:
    """A forward hook: one value that is not a number, or a GPU that is lost until the process ends."""
    global _lost_context
    _lost_context = _lost_context or take("lost GPU") is not None
    if _lost_context:
        raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")
    if take("NaN") is not None:
        output = output.clone()
        output[(0,) * output.dim()] = float("nan")
    return output


def hook(module: Any) -> None:
    original = module.load_for_run

    @functools.wraps(original)
    def load_for_run(*arguments: Any) -> Any:
        if os.environ.get("RAREFY_FAULTS_NODE") == "bad":
            from rarefy.errors import DeviceError

            Path(f"{FOLDER}/used/bad node.{os.getpid()}").touch()
            raise DeviceError("device: 'cuda' is not usable: this node has no driver (injected)")
        models = original(*arguments)
        models.unet.register_forward_hook(spoil)
        Path(f"{FOLDER}/loaded/{os.getpid()}").touch()
        return models

    module.load_for_run = load_for_run


class Finder(MetaPathFinder):
    """Runs ``hook`` on the module that loads networks, right after its import."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != HOOKED or (spec := PathFinder.find_spec(name, path)) is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            hook(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FOLDER:
    _fsync, _time = os.fsync, time.time
    os.fsync, time.time = fsync, now
    os.link, os.rename, os.replace = placing(os.link), placing(os.rename), placing(os.replace)
    builtins.open = io.open = opening
    sys.meta_path.insert(0, Finder())
