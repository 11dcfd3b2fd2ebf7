"""A run's progress in a log."""

from __future__ import annotations

import io

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
            line(last)
    start = "generate: 12/600 images, 3.22 images/s, ETA 3m03s, actors 2/3, retries 1"
    end = "generate: 600/600 images, 3.20 images/s, ETA 0s, actors 0/3, retries 1"
    assert often.getvalue().splitlines() == [f"{start}, confidence 0.815, entropy 0.387 nat", end]
    assert seldom.getvalue().splitlines() == [end]
