"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """What was looked at, and how it is. advice: what to do next; empty if all is well."""

    name: str
    state: State
    text: str
    advice: str = ""

    def line(self, width: int) -> str:
        """The line for people; width: of the longest name."""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.state:<9}{self.name:<{width}}  {self.text}{advice}"


def ok(name: str, text: str) -> Check:
    return Check(name, "ok", text)


def warning(name: str, text: str, advice: str = "") -> Check:
    return Check(name, "warning", text, advice)


def problem(name: str, text: str, advice: str) -> Check:
    return Check(name, "problem", text, advice)


def size(size_bytes: float) -> str:
    """Bytes in the largest unit that leaves at least one."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"
