"""Whose fault an error is, as a table."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError

from rarefy.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    ExhaustedError,
    ManifestError,
    NonFiniteError,
    OutputError,
    ShardError,
    StorageError,
)
from rarefy.generate.blame import Phase, describe, find_blame, real_cause
from rarefy.generate.events import Blame

LOADING, SHARD = Phase.LOADING, Phase.SHARD
PROCESS_DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: ShardGenerator
\tip: 10.0.0.1
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: End of file. \
Some common causes include: (1) the process was killed by the OOM killer due to high memory usage"""
CREATION_FAILED = """The actor died because of an error raised in its creation task, \
ray::ShardGenerator.__init__() (pid=1)
  File "actor.py", line 1, in __init__
    import torch
    ^^^^^^^^^^^^
ImportError: no torch"""
CUDA = """CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1"""
NODE_DIED = """The actor died unexpectedly before finishing this task.
The actor died because its node has died. Node Id: 4f5e
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""


@pytest.mark.parametrize(
    ("error", "phase", "proven", "blame"),
    [
        (ManifestError("no"), LOADING, False, Blame.USER),
        (CheckpointError("no"), LOADING, False, Blame.USER),
        (DataError("no"), LOADING, False, Blame.USER),
        (ManifestError("no"), LOADING, True, Blame.NODE),
        (CheckpointError("no"), LOADING, True, Blame.NODE),
        (DataError("no"), LOADING, True, Blame.NODE),
        (DeviceError("no GPU"), LOADING, False, Blame.NODE),
        (DeviceError("no GPU"), LOADING, True, Blame.NODE),
        (ModuleNotFoundError("no"), LOADING, False, Blame.ACTOR),
        (DeviceError("out of memory"), SHARD, False, Blame.USER),
        (DeviceError("out of memory"), SHARD, True, Blame.ACTOR),
        (ManifestError("no"), SHARD, True, Blame.USER),
        (CheckpointError("no"), SHARD, True, Blame.USER),
        (OutputError("disk full"), SHARD, True, Blame.NODE),
        (OutputError("disk full"), SHARD, False, Blame.NODE),
        (OutputError("read-only"), LOADING, True, Blame.USER),
        (StorageError("503"), SHARD, True, Blame.STORAGE),
        (StorageError("503"), LOADING, False, Blame.STORAGE),
        (NonFiniteError("NaN"), SHARD, False, Blame.SHARD),
        (ExhaustedError("no image"), SHARD, False, Blame.SHARD),
        (ShardError("no"), SHARD, True, Blame.SHARD),
        (RuntimeError("CUDA error"), SHARD, True, Blame.ACTOR),
        (RuntimeError("CUDA error"), SHARD, False, Blame.ACTOR),
        (RayActorError("1", PROCESS_DIED), SHARD, True, Blame.ACTOR),
        (RayActorError("1", PROCESS_DIED), LOADING, False, Blame.ACTOR),
        (RayActorError("1", NODE_DIED), SHARD, True, Blame.SYSTEM),
        (RayActorError("1", NODE_DIED), LOADING, False, Blame.SYSTEM),
        (RayActorError("1", PROCESS_DIED, preempted=True), SHARD, True, Blame.SYSTEM),
        (ActorUnavailableError("Socket closed", None), SHARD, True, Blame.SYSTEM),
    ],
)
def test_blame(error: BaseException, phase: Phase, proven: bool, blame: Blame) -> None:
    assert find_blame(error, phase, proven) is blame


def test_rays_wrapping_is_taken_off() -> None:
    cause = NonFiniteError("NaN")
    wrapped = RayTaskError("generate", "Traceback ...", cause).as_instanceof_cause()
    assert real_cause(wrapped) is cause
    assert real_cause(cause) is cause


def test_descriptions_are_one_line_with_the_reason() -> None:
    assert describe(StorageError("out:\n no")) == "out: no"
    assert describe(RayActorError("1", PROCESS_DIED)) == (
        "actor died: its worker process has died. Worker exit type: SYSTEM_ERROR"
    )
    assert describe(RayActorError("1", NODE_DIED)) == "actor died: its node has died. Node Id: 4f5e"
    assert describe(ActorDiedError()) == "actor died: The actor died unexpectedly before finishing this task."
    assert describe(RayActorError("1", CREATION_FAILED)) == "actor died: ImportError: no torch"
    assert describe(RuntimeError(CUDA)) == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert describe(RuntimeError("backend='inductor' raised:\n\nCppCompileError: no g++\nmore")) == (
        "RuntimeError: backend='inductor' raised: CppCompileError: no g++"
    )
    assert describe(RuntimeError("")) == "RuntimeError: "
    assert describe(RuntimeError("a" * 300)) == f"RuntimeError: {'a' * 200} ..."
