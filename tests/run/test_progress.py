"""A run's progress in a log."""

from __future__ import annotations

import io
import json
import os

import pytest

from rarefy.generate.progress import ProgressLine, Status, duration

STATUS = Status(12.4, 600, 0, 3.217, 182.6, 2, 3, 1, 0.8149, 0.3871)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (273_600, "3d04h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_a_line_every_so_often_and_at_the_end() -> None:
    often, seldom = io.StringIO(), io.StringIO()
    last = Status(600, 600, 0, 3.2, 0.0, 0, 3, 1, None, None)
    for stream, every_s in ((often, 0.0), (seldom, 3600.0)):
        with ProgressLine(stream, every_s) as line:
            line(STATUS)
            for _ in range(3 if every_s else 1):  # while the last shard is written
                line(last)
    start = "generate: 12/600 images, 3.22 images/s, ETA 3m03s, actors 2/3, retries 1"
    end = "generate: 600/600 images, 3.20 images/s, ETA 0s, actors 0/3, retries 1"
    assert often.getvalue().splitlines() == [f"{start}, confidence 0.815, entropy 0.387 nat", end]
    assert seldom.getvalue().splitlines() == [end]


def test_notes_do_not_break_the_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note above a bar is a line of its own, and the bar is drawn again below it."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 2

    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    stream = Terminal()
    with ProgressLine(stream) as line:
        line.note("first")
        line(STATUS)
        line.note("second")
        line(STATUS)
    text = stream.getvalue()
    assert text.startswith("first\n")
    before, _, after = text.partition("second\n")
    assert before.endswith("\r")  # the bar has been cleared
    assert "12/600 images" in after


def test_json_lines_are_no_bar() -> None:
    stream = io.StringIO()
    with ProgressLine(stream, 0.0, as_json=True) as line:
        line(STATUS)
    assert json.loads(stream.getvalue())["images_per_second"] == 3.217


def test_a_run_without_actors_says_so_once() -> None:
    stream = io.StringIO()
    with ProgressLine(stream, 0.0) as line:
        for _ in range(3):
            line(Status(0, 600, 0, 0.0, None, 0, 2, 0, None, None))
    assert stream.getvalue().splitlines() == ["generate: 0/600 images, actors start and load the models, retries 0"]
