"""Events of a run as lines for people, and as JSON for log collectors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rarefy.generate.events import Blame, Event, What
from rarefy.generate.progress import json_line
from rarefy.plan import shard_name

LINES_PER_MINUTE = 20  # shown to people; a cluster that loses 500 machines at once would fill the terminal
SHORT = 8  # characters of Ray's ids that are shown
LOSSES = (Blame.ACTOR, Blame.NODE, Blame.SYSTEM)  # if one of these is to blame, the actor is lost


@dataclass(frozen=True)
class RunNames:
    """What lines about a run need to know. run: the manifest's name; prefix: of its shards; driver: this process's id;
    max_attempts: per shard.
    """

    run: str
    prefix: str
    driver: str
    max_attempts: int

    def shard(self, event: Event) -> str | None:
        return None if event.shard is None else shard_name(self.prefix, event.shard)


def event_text(event: Event, names: RunNames) -> str | None:
    """An event in one line; None for those that people need not see."""
    shard, charged = names.shard(event), event.number or 0
    actor = "an actor" if event.actor is None else f"actor {event.actor[:SHORT]}"
    machine = event.host or (event.node or "")[:SHORT]
    where = f" on {machine}" if machine else ""
    match event.what:
        case What.RETRY:
            # The line about the loss of the actor has said why.
            cause = f"{actor} was lost" if event.blame in LOSSES else event.cause
            return f"{shard} is tried again (attempt {charged + 1} of {names.max_attempts}): {cause}"
        case What.GIVEN_UP:
            return f"{shard} is given up after {charged} of {names.max_attempts} attempts: {event.cause}"
        case What.ACTOR_LOST:
            return f"{actor}{where} is lost: {event.cause}"
        case What.NODE_EXCLUDED:
            return f"machine {machine or 'of unknown name'} gets no actors {event.cause}"
        case What.WAITING:
            return f"waiting: {event.cause}"
        case What.ACTOR_READY:
            return None


def event_json(event: Event, names: RunNames) -> str:
    """An event as one line of JSON; fields that do not apply are null. Without its details, which may be long."""
    fields = {
        "run": names.run,
        "driver": names.driver,
        "shard": names.shard(event),
        "attempt": event.attempt,
        "charged": event.number,
        "actor": event.actor,
        "node": event.node,
        "host": event.host,
        "pid": event.pid,
        "blame": None if event.blame is None else event.blame.value,
        "cause": event.cause,
    }
    return json_line(event.what.value, fields)


class EventLines:
    """Prints events through ``show``: at most LINES_PER_MINUTE, then their number; as JSON every one."""

    def __init__(
        self, names: RunNames, show: Callable[[str], None], as_json: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.names, self.show, self.as_json, self._clock = names, show, as_json, clock
        self._minute, self._shown, self._hidden = clock(), 0, 0

    def __call__(self, event: Event) -> None:
        if self.as_json:
            self.show(event_json(event, self.names))
        elif text := event_text(event, self.names):
            self._limited(f"generate: {text}")

    def close(self) -> None:
        """Tell how many events were not shown."""
        if self._hidden:
            self.show(f"generate: {self._hidden} more events; logs/ in the output has the last of them")
        self._hidden = 0

    def _limited(self, line: str) -> None:
        if self._clock() - self._minute >= 60:
            self.close()
            self._minute, self._shown = self._clock(), 0
        if self._shown < LINES_PER_MINUTE:
            self._shown += 1
            self.show(line)
        else:
            self._hidden += 1
