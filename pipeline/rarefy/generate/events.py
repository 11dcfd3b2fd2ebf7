"""What happens during a run besides its progress. The driver tells each listener as it happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum


class Blame(Enum):
    """Whose fault an error is; it decides what the driver does next."""

    USER = "user"  # ends the run at once
    SHARD = "shard"  # the shard is given up after a bounded number of attempts; the others go on
    ACTOR = "actor"  # the actor is replaced and its shard tried again
    NODE = "node"  # the machine gets no actors for a while
    STORAGE = "storage"  # the shard is tried again later
    SYSTEM = "system"  # a machine was taken away; costs the shard no attempt


class What(Enum):
    """Kinds of events."""

    RETRY = "retry"  # a shard goes back to the queue
    GIVEN_UP = "given up"  # a shard gets no further attempt in this session
    ACTOR_READY = "actor ready"
    ACTOR_LOST = "actor lost"
    NODE_EXCLUDED = "node excluded"
    WAITING = "waiting"  # no actor can start; cause says what is missing


@dataclass(frozen=True)
class Event:
    """One event. Fields that do not apply are None.

    shard: its number; attempt: its text id; number: how many attempts have been charged to the shard so far; actor,
    node: Ray's ids; host, pid: of the actor's process; cause: one line; details: a traceback.
    """

    what: What
    shard: int | None = None
    attempt: str | None = None
    number: int | None = None
    actor: str | None = None
    node: str | None = None
    host: str | None = None
    pid: int | None = None
    blame: Blame | None = None
    cause: str = ""
    details: str = ""


EventSink = Callable[[Event], None]


def tell(listeners: Sequence[EventSink], event: Event) -> None:
    """Tell every listener."""
    for listener in listeners:
        listener(event)
