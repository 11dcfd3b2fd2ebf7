"""Progress of a run and of other commands: a live line on a terminal, otherwise plain lines or JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

from rarefy.live import LiveLine, Work, is_terminal
from rarefy.live import duration as duration

StageProgress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and its total, which is 1 if nobody counts."""


def no_stage(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Status:
    """A run at one moment. done: images, committed or in progress; resumed: those that were committed at the start.

    images_per_second: since the first actor was ready; eta_s: None until known; confidence and entropy (in nats): means
    over all images drawn in this session, None before the first; acceptance: fraction of drawn images that passed
    [accept]; step_seconds: mean time of one sampler step of one batch; doing: what actors do before the first is ready.
    """

    done: float
    total: int
    resumed: int
    images_per_second: float
    eta_s: float | None
    actors_alive: int
    actors_wanted: int
    retries: int
    confidence: float | None
    entropy: float | None
    acceptance: float | None = None
    step_seconds: float | None = None
    doing: str = ""

    @property
    def starting(self) -> bool:
        """Whether no actor has been ready yet."""
        return not self.actors_alive and not self.images_per_second

    def text(self) -> str:
        """The status in one line."""
        images = f"{self.done:.0f}/{self.total} images"
        if self.starting:
            return f"{images}, {self.doing or 'actors start and load the models'}, retries {self.retries}"
        parts = [images, *self._speed(), self._actors(), f"retries {self.retries}"]
        return ", ".join([*parts, *self._scores()])

    def work(self) -> Work:
        """The status for a live line."""
        facts = [f"{self.doing or 'actors start and load the models'}"]
        if not self.starting:
            rejected = [] if self.acceptance is None else [f"rejected {1 - self.acceptance:.1%}"]
            retries = [f"retries {self.retries}"] if self.retries else []
            scores = self._scores()
            facts = [*self._speed(), self._actors(), *rejected, *scores[:1], *retries, *scores[1:]]
        return Work("generate", self.done, self.total, "images", tuple(facts))

    def _speed(self) -> list[str]:
        eta = "--" if self.eta_s is None else duration(self.eta_s)
        return [f"{self.images_per_second:.2f} images/s", f"ETA {eta}"]

    def _actors(self) -> str:
        return f"actors {self.actors_alive}/{max(self.actors_wanted, self.actors_alive)}"

    def _scores(self) -> list[str]:
        if self.confidence is None or self.entropy is None:
            return []
        return [f"confidence {self.confidence:.3f}", f"entropy {self.entropy:.3f} nat"]


ProgressSink = Callable[[Status], None]


class ProgressLine:
    """Shows what happens on ``stream``; use as a context manager so that the live line is closed.

    every_s: between two plain lines; as_json: lines are JSON, for log collectors; run: the manifest's name, for those.
    """

    def __init__(
        self, stream: TextIO | None = None, every_s: float = 10.0, as_json: bool = False, run: str = ""
    ) -> None:
        self.stream = stream or sys.stderr
        self.every_s, self.as_json, self.run = every_s, as_json, run
        self._live = LiveLine(self.stream) if not as_json and is_terminal(self.stream) else None
        self._last, self._ended = time.monotonic(), False
        self._shown: Status | None = None

    def __call__(self, status: Status) -> None:
        """Show how far ``generate`` is."""
        if self._live is not None:
            self._live.show(status.work())
            return
        ends = status.done >= status.total and not self._ended
        due = time.monotonic() - self._last >= self.every_s
        news = status.starting and status.doing != (self._shown.doing if self._shown else "")
        if ends or news or (due and status != self._shown):
            self._last, self._ended, self._shown = time.monotonic(), status.done >= status.total, status
            self._print(self._line(status))

    def stages(self, command: str, every_s: float = 0.0) -> StageProgress:
        """Shows the stages of a command. Plain lines come at a stage's start, after each tenth of it and at its end.

        every_s: at least this time between two plain lines, so that a command that is quick prints none.
        """
        return functools.partial(self._stage, command, every_s)

    def waits(self, command: str, what: str) -> None:
        """Show on a terminal what a command does before it has looked at its input. In logs, an error comes first."""
        if self._live is not None:
            self._live.show(Work(f"{command}: {what}"))

    def note(self, text: str) -> None:
        """Print a line of its own, above the live line if there is one."""
        if self._live is None:
            self._print(text)
        else:
            self._live.note(text)

    def close(self, failed: bool = False) -> None:
        """Close the live line. The next status or stage opens it again. failed: what it shows was not finished."""
        if self._live is not None:
            self._live.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _stage(self, command: str, every_s: float, stage: str, done: int, total: int) -> None:
        if self._live is not None:
            counted = total if total > 1 else None
            self._live.show(Work(f"{command}: {stage}", done if counted else 0, counted))
        elif time.monotonic() - self._last < every_s:
            return
        elif done % max(1, total // 10) == 0 or done == total:
            self._last = time.monotonic()
            if self.as_json:
                fields = {"command": command, "stage": stage, "done": done, "total": total}
                self._print(json_line("stage", fields))
            elif total > 1:
                self._print(f"{command}: {stage} {done}/{total}")
            elif not done:
                self._print(f"{command}: {stage}")

    def _line(self, status: Status) -> str:
        if not self.as_json:
            return f"generate: {status.text()}"
        return json_line("progress", {"run": self.run, **dataclasses.asdict(status)})

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


def json_line(event: str, fields: Mapping[str, Any]) -> str:
    """One line of a structured log: time, event and its fields."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, **fields})
