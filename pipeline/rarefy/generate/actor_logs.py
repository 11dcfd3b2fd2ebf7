"""The end of a Ray actor's output, also of one that has died: from this machine's files or through the dashboard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

KEPT_BYTES = 64 * 1024  # of each of the two streams
KEPT_LINES = 500  # asked of another machine
TIMEOUT_S = 10
STREAMS = ("out", "err")


def actor_output(actor: str) -> str:
    """The last output of the actor with this Ray id, "" if it cannot be had.

    Its file is on its machine: read there, or asked for if the cluster has a dashboard. Ray's records of a dead actor
    are private interfaces; a later version that lacks them gives "".
    """
    try:
        if not ray.is_initialized():
            return ""
        record: dict[str, Any] = ray._private.state.state.actor_table(actor)
        here = record["Address"]["NodeID"] == ray.get_runtime_context().get_node_id()
        pieces = list(_local(int(record["Pid"])) if here else _remote(actor))
    except (RayError, AttributeError, LookupError, TypeError, ValueError, OSError, RuntimeError):
        return ""
    return "\n".join(pieces)


def _local(pid: int) -> Iterator[str]:
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"  # type: ignore[attr-defined]
    for stream in STREAMS:
        for path in sorted(logs.glob(f"worker-*-{pid}.{stream}")):
            if text := end_of(path).strip():
                yield f"--- std{stream}\n{text}"


def _remote(actor: str) -> Iterator[str]:
    from ray.util.state import get_log  # needs ray[default]

    for stream in STREAMS:
        lines = get_log(actor_id=actor, suffix=stream, tail=KEPT_LINES, timeout=TIMEOUT_S, errors="replace")
        if text := "".join(lines)[-KEPT_BYTES:].strip():
            yield f"--- std{stream}\n{text}"


def end_of(path: Path) -> str:
    """The last KEPT_BYTES of a file as text."""
    with path.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - KEPT_BYTES))
        return stream.read().decode(errors="replace")
