"""The live line as a person sees it: planted statuses on a pseudo-terminal, read by a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyte
import pytest

ROWS, COLUMNS = 24, (60, 80, 132)
VARIABLES = {
    "PYTHONPATH": str(Path(__file__).parents[2] / "pipeline"),
    "PYTHONIOENCODING": "utf-8",
    "TERM": "xterm-256color",
}
PLANTED = """
import sys, types
from rarefy import live
from rarefy.generate.progress import ProgressLine, Status

now = 0.0
live.time = types.SimpleNamespace(monotonic=lambda: now)

def draw(seconds=0.0):
    global now
    now += seconds
    if line._live is not None:
        line._live._live.refresh()

def status(done):
    return Status(done, 600, 0, 3.217, 182.6, 2, 3, 1, 0.8149, 0.3871, acceptance=0.75)

try:
    with ProgressLine(every_s=0.0) as line:
        line.waits("run", "loading torch and Ray")
        draw(0.5)
        line.stages("generate")("starting Ray", 0, 1)
        draw(1.1)
        for done in (0, 100.4, 200, 300):
            line(status(done))
            draw(0.5)
        line.note("a note that is much longer than the line of a narrow terminal, which therefore has to wrap it " * 2)
        print("a library's warning", file=sys.stderr)
        draw()
        if "fail" in sys.argv:
            raise ValueError
        line(status(600))
        draw()
        line.stages("audit")("features of the training images", 9000, 10_000)
        draw()
except ValueError:
    pass
print("the result")
"""


class Terminal:
    """What a person has seen. frames: the screen after each piece of output; screen: the last one, without empty lines.

    word: of the program's command line; changed: environment variables.
    """

    def __init__(self, columns: int, word: str = "", **changed: str) -> None:
        self.columns, self.frames, self.output = columns, list[list[str]](), b""
        ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        command = [sys.executable, "-c", PLANTED, word]
        with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env={**VARIABLES, **changed}) as process:
            os.close(its)
            screen = pyte.Screen(columns, ROWS)
            stream = pyte.ByteStream(screen)
            while data := _read(ours):
                self.output += data
                for piece in data.split(b"\x1b[2K"):  # before a line is drawn anew
                    stream.feed(piece)
                    self.frames.append([line.rstrip() for line in screen.display if line.strip()])
                    stream.feed(b"\x1b[2K")
        os.close(ours)
        assert process.returncode == 0, self.output
        self.screen = self.frames[-1]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say that the program has ended
        return b""


@pytest.fixture(scope="module")
def terminals() -> dict[str, Terminal]:
    """Terminals of several kinds, at the same time."""
    kinds = {str(columns): {"columns": columns} for columns in COLUMNS} | {
        "fail": {"columns": 80, "word": "fail"},
        "grey": {"columns": 80, "NO_COLOR": "1"},
        "dumb": {"columns": 80, "TERM": "dumb"},
        "ascii": {"columns": 80, "PYTHONIOENCODING": "ascii"},
    }
    with ThreadPoolExecutor(len(kinds)) as pool:
        return dict(zip(kinds, pool.map(lambda kind: Terminal(**kind), kinds.values()), strict=True))  # type: ignore[arg-type]


@pytest.fixture(params=COLUMNS)
def seen(request: pytest.FixtureRequest, terminals: dict[str, Terminal]) -> Terminal:
    return terminals[str(request.param)]


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
    assert ("retries 1" in shown) == (seen.columns > 60), "what does not fit is left out"
    assert any(line.endswith("9000/10000") for frame in seen.frames for line in frame), "the bar gives way"
    assert any("generate: starting Ray 1s" in line for frame in seen.frames for line in frame), "seconds go on"


def test_what_was_done_leaves_a_line(seen: Terminal) -> None:
    (waited, made) = [line for line in seen.screen if line.startswith("✓")]
    assert waited.startswith("✓ generate: starting Ray 1s")
    assert made.startswith("✓ generate 600/600 images, 3.22 images/s, 2s")
    assert seen.screen.index(waited) < seen.screen.index("a library's warning") < seen.screen.index(made)


def test_an_error_closes_the_line_first(terminals: dict[str, Terminal]) -> None:
    screen = terminals["fail"].screen
    assert bars(screen) == [] and screen[-1] == "the result"
    assert any(line.startswith("- generate 300/600 images") for line in screen)


def test_without_colour_or_cursor(terminals: dict[str, Terminal]) -> None:
    assert b"\x1b[3" not in terminals["grey"].output
    dumb = terminals["dumb"]
    assert b"\x1b" not in dumb.output
    assert "generate: 600/600 images, 3.22 images/s, ETA 3m03s, actors 2/3, retries 1" in " ".join(dumb.screen)
    plain = terminals["ascii"].output
    assert plain.isascii() and b"###" in plain
