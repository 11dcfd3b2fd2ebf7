"""Progress of a run: a live line on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NoReturn, Self, TextIO

from tqdm import tqdm


@dataclass(frozen=True)
class Status:
    """A run at one moment. done: images, committed or in progress; resumed: those that were committed at the start.

    images_per_second: since the first actor was ready; eta_s: None until known; confidence and entropy (in nats): means
    over all images drawn in this session, None before the first; acceptance: fraction of drawn images that passed
    [accept]; step_seconds: mean time of one sampler step of one batch.
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

    def text(self) -> str:
        """The status in one line."""
        images = f"{self.done:.0f}/{self.total} images"
        if not self.actors_alive and not self.images_per_second:
            return f"{images}, actors start and load the models, retries {self.retries}"
        eta = "--" if self.eta_s is None else duration(self.eta_s)
        parts = [
            images,
            f"{self.images_per_second:.2f} images/s",
            f"ETA {eta}",
            f"actors {self.actors_alive}/{max(self.actors_wanted, self.actors_alive)}",
            f"retries {self.retries}",
        ]
        if self.confidence is not None and self.entropy is not None:
            parts.append(f"confidence {self.confidence:.3f}")
            parts.append(f"entropy {self.entropy:.3f} nat")
        return ", ".join(parts)


ProgressSink = Callable[[Status], None]


class ProgressLine:
    """Shows each status on ``stream``; use as a context manager so that the live line is closed.

    every_s: between two plain lines; as_json: lines are JSON, for log collectors; run: the manifest's name, for those.
    """

    def __init__(
        self, stream: TextIO | None = None, every_s: float = 10.0, as_json: bool = False, run: str = ""
    ) -> None:
        self.stream = stream or sys.stderr
        self.every_s, self.as_json, self.run = every_s, as_json, run
        # Terminals in some containers report no width, which leaves no room for a bar.
        self._live = not as_json and self.stream.isatty() and os.get_terminal_size(self.stream.fileno()).columns > 0
        self._last, self._ended = time.monotonic(), False
        self._shown: Status | None = None
        self._bar: tqdm[NoReturn] | None = None

    def __call__(self, status: Status) -> None:
        if self._live:
            self._show(status)
            return
        ends = status.done >= status.total and not self._ended
        due = time.monotonic() - self._last >= self.every_s
        if ends or (due and status != self._shown):
            self._last, self._ended, self._shown = time.monotonic(), status.done >= status.total, status
            print(self._line(status), file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Print a line of its own, above the live line if there is one."""
        if self._bar is None:
            print(text, file=self.stream, flush=True)
        else:
            tqdm.write(text, file=self.stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self, status: Status) -> str:
        if not self.as_json:
            return f"generate: {status.text()}"
        return json_line("progress", {"run": self.run, **dataclasses.asdict(status)})

    def _show(self, status: Status) -> None:
        if self._bar is None:
            form = "{percentage:3.0f}%|{bar:20}| {desc}"
            self._bar = tqdm(total=status.total, file=self.stream, bar_format=form, dynamic_ncols=True)
        self._bar.n = round(status.done)
        self._bar.set_description_str(status.text())


def stage_line(stage: str, done: int, total: int, command: str = "audit") -> None:
    """Print a line at the start of a stage of a command, after each tenth of it and at its end."""
    if _worth_a_line(done, total):
        print(f"{command}: {stage} {done}/{total}", file=sys.stderr, flush=True)


def stage_json(stage: str, done: int, total: int) -> None:
    """The same as a line of JSON."""
    if _worth_a_line(done, total):
        print(json_line("stage", {"stage": stage, "done": done, "total": total}), file=sys.stderr, flush=True)


def json_line(event: str, fields: Mapping[str, Any]) -> str:
    """One line of a structured log: time, event and its fields."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, **fields})


def _worth_a_line(done: int, total: int) -> bool:
    return done % max(1, total // 10) == 0 or done == total


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s, 2h07m or 3d04h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"
