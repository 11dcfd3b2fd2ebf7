"""The live line as a person sees it: a program with planted statuses on a pseudo-terminal, read by a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

import pyte
import pytest

ROWS = 24
PLANTED = """
import sys, time
from rarefy.generate.progress import ProgressLine, Status

def status(done):
    return Status(done, 600, 0, 3.217, 182.6, 2, 3, 1, 0.8149, 0.3871, acceptance=0.75)

try:
    with ProgressLine() as line:
        line.waits("run", "loading torch and Ray")
        time.sleep(0.3)
        line.stages("generate")("starting Ray", 0, 1)
        time.sleep(1.1)
        for done in (0, 100.4, 200, 300):
            line(status(done))
            time.sleep(0.3)
        line.note("a note that is much longer than the line of a narrow terminal, which therefore has to wrap it " * 2)
        print("a library's warning", file=sys.stderr)
        time.sleep(0.3)
        if "fail" in sys.argv:
            raise ValueError
        line(status(600))
        time.sleep(0.3)
        line.stages("audit")("features of the run", 30, 60)
        time.sleep(0.3)
except ValueError:
    pass
print("the result")
"""


class Terminal:
    """What a person has seen. frames: the screen after each piece of output; screen: in the end, without empty lines."""

    def __init__(self, columns: int, words: list[str], variables: Mapping[str, str]) -> None:
        self.columns = columns
        self.frames: list[list[str]] = []
        pid, descriptor = pty.fork()
        if pid == 0:
            os.execve(sys.executable, [sys.executable, "-c", PLANTED, *words], dict(variables))
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        screen = pyte.Screen(columns, ROWS)
        stream, self.output = pyte.ByteStream(screen), b""
        while data := _read(descriptor):
            self.output += data
            stream.feed(data)
            self.frames.append([line.rstrip() for line in screen.display if line.strip()])
        os.close(descriptor)
        assert os.waitpid(pid, 0)[1] == 0
        self.screen = self.frames[-1]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say that the program has ended
        return b""


def watch(columns: int, *words: str, **changed: str) -> Terminal:
    variables = {"PYTHONPATH": str(Path(__file__).parents[2] / "pipeline"), "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    return Terminal(columns, list(words), {**variables, "PYTHONIOENCODING": "utf-8", **changed})


@pytest.fixture(scope="module", params=[60, 80, 132])
def seen(request: pytest.FixtureRequest) -> Terminal:
    return watch(request.param)


def bars(frame: list[str]) -> list[str]:
    return [line for line in frame if "━" in line or "─" in line]


def test_there_is_one_bar_and_nothing_is_left_over(seen: Terminal) -> None:
    assert max(len(bars(frame)) for frame in seen.frames) == 1
    assert bars(seen.screen) == [] and seen.screen[-1] == "the result"
    assert sum("a library's warning" in line for line in seen.screen) == 1
    assert "".join(seen.screen).count("a note that is much longer") == 2
    assert seen.output.count(b"\x1b[?25l") == seen.output.count(b"\x1b[?25h"), "the cursor is shown again"


def test_the_line_says_what_a_person_wants_to_know(seen: Terminal) -> None:
    (frame,) = [frame for frame in seen.frames if any("300/600 images" in line for line in frame)][:1]
    first = next(number for number, line in enumerate(frame) if "300/600 images" in line)
    assert " generate " in frame[first] and " 50% " in frame[first]
    shown = " ".join(frame[first : first + 2])
    for part in ("3.22 images/s", "ETA 3m03s", "actors 2/3", "rejected 25.0%", "confidence 0.815"):
        assert part in shown
    assert ("retries 1, entropy 0.387 nat" in shown) == (seen.columns > 60), "what does not fit is left out"
    assert any("generate: starting Ray 1s" in line for frame in seen.frames for line in frame), "seconds go on"


def test_what_was_done_leaves_a_line(seen: Terminal) -> None:
    (waited, made) = [line for line in seen.screen if line.startswith("✓")]
    assert waited.startswith("✓ generate: starting Ray 1s")
    assert made.startswith("✓ generate 600/600 images, 3.22 images/s, 2s")
    assert seen.screen.index(waited) < seen.screen.index("a library's warning") < seen.screen.index(made)


def test_an_error_closes_the_line_first() -> None:
    screen = watch(80, "fail").screen
    assert bars(screen) == [] and screen[-1] == "the result"
    assert any(line.startswith("- generate 300/600 images") for line in screen)


def test_without_colour_or_cursor() -> None:
    assert b"\x1b[3" not in watch(80, NO_COLOR="1").output
    dumb = watch(80, TERM="dumb")
    assert b"\x1b" not in dumb.output
    assert "generate: 600/600 images, 3.22 images/s, ETA 3m03s, actors 2/3, retries 1" in " ".join(dumb.screen)
    plain = watch(80, PYTHONIOENCODING="ascii").output
    assert plain.isascii() and b"###" in plain
