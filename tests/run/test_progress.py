"""A run's progress in a log."""

from __future__ import annotations

import io
import json

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


def test_what_actors_do_before_they_are_ready_is_said_at_once() -> None:
    stream = io.StringIO()
    with ProgressLine(stream, 3600.0) as line:
        for doing in ("actors start", "actors start", "actors load the models"):
            line(Status(0, 600, 0, 0.0, None, 0, 2, 0, None, None, doing=doing))
    start = "generate: 0/600 images, actors"
    assert stream.getvalue().splitlines() == [f"{start} start, retries 0", f"{start} load the models, retries 0"]


def test_stages_in_a_log() -> None:
    plain, structured = io.StringIO(), io.StringIO()
    for stream in (plain, structured):
        stage = ProgressLine(stream, as_json=stream is structured).stages("seal")
        for done in range(31):
            stage("checking shards", done, 30)
        stage("writing the index", 0, 1)
        stage("writing the index", 1, 1)
    lines = [f"seal: checking shards {done}/30" for done in range(0, 31, 3)]
    assert plain.getvalue().splitlines() == [*lines, "seal: writing the index"]
    last = json.loads(structured.getvalue().splitlines()[-1])
    assert last.items() >= {"event": "stage", "command": "seal", "stage": "writing the index", "done": 1}.items()


def test_a_quick_command_prints_no_stage_in_a_log() -> None:
    stream = io.StringIO()
    stage = ProgressLine(stream).stages("seal", 3600.0)
    for done in range(31):
        stage("checking shards", done, 30)
    assert stream.getvalue() == ""
