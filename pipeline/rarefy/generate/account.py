"""What has happened in a session of a run so far."""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass, field

from rarefy.generate.driver_file import GivenUp
from rarefy.generate.event_lines import RunNames, event_json
from rarefy.generate.events import Event, What
from rarefy.generate.progress import Status

KEPT_EVENTS = 1000
KEPT_CAUSES = 10


@dataclass
class SessionAccount:
    """The last status and a summary of all events.

    actors: machine by actor; retries: number by whose fault it was; causes: of the last few retries; events: the last
    KEPT_EVENTS as JSON; waiting: what a pending actor waits for.
    """

    status: Status | None = None
    actors: dict[str, str] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)
    causes: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_CAUSES))
    given_up: dict[str, GivenUp] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    waiting: str = ""

    @property
    def lacks_actors(self) -> bool:
        return self.status is None or self.status.actors_alive < self.status.actors_wanted

    def add(self, event: Event, names: RunNames) -> None:
        self.events.append(event_json(event, names))
        shard, blame = names.shard(event), None if event.blame is None else event.blame.value
        if event.what is What.RETRY:
            self.retries[blame or "unknown"] += 1
            self.causes.append(f"{shard}: {event.cause}")
        elif event.what is What.GIVEN_UP and shard is not None:
            class_id, seed = (_number(word, event.cause) for word in ("class", "seed"))
            self.given_up[shard] = GivenUp(shard, event.number or 0, blame, class_id, seed, event.cause)
        elif event.what is What.ACTOR_READY and event.actor is not None:
            self.actors[event.actor], self.waiting = event.host or event.node or "", ""
        elif event.what is What.ACTOR_LOST and event.actor is not None:
            self.actors.pop(event.actor, None)
        elif event.what is What.WAITING:
            self.waiting = event.cause


def _number(word: str, text: str) -> int | None:
    """The number after a word, as in "class 3"."""
    found = re.search(rf"\b{word} (\d+)", text)
    return int(found[1]) if found else None
