"""A live line on a terminal: what is being done, how much of it is done, and the figures that fit.

In logs and pipes, programs print plain lines instead: see :func:`is_terminal`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

WIDEST = 120  # columns; a longer line is harder to read, and wraps sooner when the window is made narrower
BAR = 24  # columns of the bar
SHORT_BAR = 10  # on terminals of fewer than ROOMY columns, and next to long names
ROOMY = 80  # columns of a terminal that is not narrow
LEFT_S = 1.0  # what took less time than this leaves no line behind
PER_SECOND = 4  # how often the line is drawn


@dataclass(frozen=True)
class Work:
    """What is being done. total: None while its amount is unknown; facts: the most important first."""

    name: str
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    facts: tuple[str, ...] = ()

    @property
    def count(self) -> str:
        """How much is done, or "" if the amount is unknown."""
        return "" if self.total is None else f"{self.done:.0f}/{self.total:.0f} {self.unit}".rstrip()


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    try:
        # Terminals in some containers report no width, which leaves no room for a bar.
        wide = stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        return False
    return wide and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class LiveLine:
    """Draws the present work on the last line of a terminal, or the last two, and everything else above it.

    What the program prints on stderr meanwhile appears above, too. NO_COLOR is honoured.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        self._fancy = self._console.encoding.startswith("utf")
        self._spinner = Spinner("dots" if self._fancy else "line", style="cyan")
        self._work: Work | None = None
        self._started_s = 0.0
        self._live: Live | None = None

    def show(self, work: Work) -> None:
        """Draw the work. Work of another name is new, and the last one leaves a line behind."""
        if self._work is None or self._work.name != work.name:
            self._leave()
            self._started_s = time.monotonic()
        self._work = work
        if self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=self._draw,
                refresh_per_second=PER_SECOND,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()

    def note(self, text: str) -> None:
        """Print a line of its own above the work."""
        self._console.print(Text(text), soft_wrap=True)

    def close(self, failed: bool = False) -> None:
        """Stop drawing; the work leaves a line behind. Other work may begin later. failed: it was not finished."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._leave(failed)

    def _leave(self, failed: bool = False) -> None:
        """Print what was done and how long it took, unless that was very short."""
        work, self._work = self._work, None
        if work is not None and (took_s := time.monotonic() - self._started_s) >= LEFT_S:
            mark = "-" if failed else "✓" if self._fancy else "+"
            if work.total is not None and not failed:
                work = replace(work, done=work.total)  # the last count may not have been told
            text = ", ".join(part for part in (work.count, *work.facts[:1], duration(took_s)) if part)
            self._console.print(Text.assemble((mark, "green"), f" {work.name} ", (text, "dim")), soft_wrap=True)

    def _draw(self) -> Group:
        if self._work is None:
            return Group()
        elapsed_s = time.monotonic() - self._started_s
        spinner = self._spinner.render(self._console.get_time())
        assert isinstance(spinner, Text)
        return Group(*rows(self._work, elapsed_s, spinner, self._console.width, self._fancy))


def rows(work: Work, elapsed_s: float, spinner: Text, columns: int, fancy: bool) -> list[Text]:
    """The line of some work, and a second one for facts that do not fit into the first. Neither ever wraps."""
    room = min(columns - 1, WIDEST)
    line = Text.assemble(spinner, f" {work.name} ")
    if work.total is None:
        line.append(duration(elapsed_s), "dim")
    else:
        share = min(work.done / max(work.total, 1), 1.0)
        numbers = f" {share:4.0%} {work.count}"
        free = room - line.cell_len - len(numbers)
        width = next((each for each in (BAR, SHORT_BAR) if each <= free and (columns >= ROOMY or each < BAR)), 0)
        line.append_text(_bar(share, width, fancy))
        line.append(numbers)
    facts = list(work.facts)
    while facts and line.cell_len + 2 + len(facts[0]) <= room:
        line.append(f", {facts.pop(0)}")
    second = _fitting(facts, room - 2)
    lines = [line, Text(f"  {second}", "dim")] if second else [line]
    for each in lines:
        each.no_wrap = True
        each.truncate(room)
    return lines


def _bar(share: float, columns: int, fancy: bool) -> Text:
    full, empty = "━─" if fancy else "#-"
    filled = min(round(share * columns), columns)
    return Text.assemble((full * filled, "green"), (empty * (columns - filled), "dim"))


def _fitting(facts: Sequence[str], room: int) -> str:
    """As many of the first facts as fit."""
    for number in range(len(facts), 0, -1):
        if len(text := ", ".join(facts[:number])) <= room:
            return text
    return ""


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
