"""Decides whose fault an error is: the user's, the shard's, the actor's, the machine's or the storage's."""

from __future__ import annotations

import re
from enum import Enum

from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from rarefy.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    ManifestError,
    OutputError,
    RarefyError,
    ShardError,
    StorageError,
)
from rarefy.generate.events import Blame

SHOWN = 200  # characters of a message; the log file has all of it
NODE_DIED = "node has died"  # what Ray's message says if the machine was lost and not only the process


class Phase(Enum):
    """What the actor was doing."""

    LOADING = "loading"
    SHARD = "shard"


def find_blame(error: BaseException, phase: Phase, proven: bool) -> Blame:
    """Whose fault an error is.

    error: as :func:`real_cause` returns it. proven: in this session an actor has loaded the models or may yet do so
    (LOADING), or a shard was made (SHARD), so that manifest, weights and batch size need not be wrong.
    """
    if isinstance(error, RayActorError):
        lost = error.preempted or NODE_DIED in str(error) or isinstance(error, ActorUnavailableError)
        return Blame.SYSTEM if lost else Blame.ACTOR
    if isinstance(error, StorageError):
        return Blame.STORAGE
    if isinstance(error, OutputError):
        return Blame.NODE if phase is Phase.SHARD else Blame.USER  # the driver could write: it may be this machine
    return _while_loading(error, proven) if phase is Phase.LOADING else _in_shard(error, proven)


def _while_loading(error: BaseException, proven: bool) -> Blame:
    if isinstance(error, DeviceError):
        return Blame.NODE  # a machine without a driver, or whose GPU is too small, says nothing about the others
    if isinstance(error, RarefyError):
        return Blame.NODE if proven else Blame.USER
    return Blame.ACTOR


def _in_shard(error: BaseException, proven: bool) -> Blame:
    if isinstance(error, ShardError):
        return Blame.SHARD
    if isinstance(error, DeviceError):
        return Blame.ACTOR if proven else Blame.USER  # out of memory
    if isinstance(error, ManifestError | CheckpointError | DataError):
        return Blame.USER
    return Blame.ACTOR


def real_cause(error: BaseException) -> BaseException:
    """The exception that an actor raised, without Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) and error.cause is not None else error


def describe(error: BaseException) -> str:
    """An error in one line. Ours speak for themselves; others are named."""
    if isinstance(error, RarefyError):
        return " ".join(str(error).split())
    if isinstance(error, RayActorError):
        return f"actor died: {_shortened(_reason(str(error)))}"
    return f"{type(error).__name__}: {_shortened(_beginning(str(error)))}"


def full_text(error: BaseException) -> str:
    """All that is known of an error: Ray's traceback or report; "" if the one line has it all."""
    return "" if isinstance(real_cause(error), RarefyError) else str(error)


def _reason(text: str) -> str:
    """The sentence with the reason in Ray's long message about a dead actor, or the error at a traceback's end."""
    if found := re.search(r"because (its .*)", text):
        return re.split(r" Worker exit detail:| Some common causes", found[1])[0]
    return text.rstrip().rpartition("\n")[2] if "Traceback" in text or "ray::" in text else text


def _beginning(text: str) -> str:
    """The first line of a message, or more if that one only introduces the next. CUDA's advice comes after it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    end = next((number for number, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:end])


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
