"""SIGTERM during a command, whatever library sits in between."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from rarefy.cli import main
from rarefy.interrupts import sigterm_interrupts, sigterm_kept
from rarefy.models import folder


def raised_plainly() -> None:
    signal.raise_signal(signal.SIGTERM)


def caught_by_a_library() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None


def received_again_while_cleaning_up() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGTERM)


def while_a_library_has_its_own_handler() -> None:
    with sigterm_kept():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)


def after_a_library_left_its_own_handler() -> None:
    with sigterm_kept():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "way",
    [
        raised_plainly,
        caught_by_a_library,
        received_again_while_cleaning_up,
        while_a_library_has_its_own_handler,
        after_a_library_left_its_own_handler,
    ],
)
def test_sigterm_is_one_line_and_exit_code_143(
    way: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def endless(*arguments: object) -> None:
        way()
        raise AssertionError("SIGTERM had no effect")

    monkeypatch.setattr(folder, "library", endless)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["models"]) == 143
    assert capsys.readouterr().err == "rarefy: interrupted; finished work is kept, run the same command to resume\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_exit_passes() -> None:
    with pytest.raises(SystemExit, match="3"), sigterm_kept():
        sys.exit(3)


def test_other_threads_get_no_signals() -> None:
    def in_thread() -> list[int]:
        with sigterm_interrupts() as received, sigterm_kept():
            return received

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_thread).result() == []
