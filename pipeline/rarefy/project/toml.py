"""TOML that people read: one setting a line, each with its reason, aligned."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 120
WIDEST = 44  # settings that are wider have their comment above


@dataclass(frozen=True)
class Setting:
    """One line: a key, its value as TOML, and why it has this value."""

    key: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value}"


def quote(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False)


def number(value: float) -> str:
    """A number as people write it in TOML: 1_300_000, 5e-4, 0.5."""
    if float(value).is_integer():
        return f"{int(value):_}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.0e}".replace("e-0", "e-") if abs(value) < 1e-2 else f"{value:g}"


def numbers(values: Sequence[float]) -> str:
    """An array of numbers."""
    return f"[{', '.join(map(number, values))}]"


def boolean(value: bool) -> str:
    """true or false."""
    return str(value).lower()


def strings(values: Sequence[str]) -> str:
    """An array of strings, on several lines if it is long."""
    items = ", ".join(map(quote, values))
    if len(items) < WIDTH - 20:
        return f"[{items}]"
    lines = textwrap.wrap(", ".join(quote(value).replace(" ", "\0") for value in values), WIDTH - 6,
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "[\n" + "\n".join(f"  {line}" for line in lines).replace("\0", " ") + ",\n]"


def comment(text: str) -> str:
    """A paragraph as comment lines."""
    return "\n".join(textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# "))


def section(header: str, intro: str, settings: Sequence[Setting]) -> str:
    """A table: an introduction, its header (none for the top of a file) and its settings with aligned comments."""
    column = max((len(str(s)) for s in settings if _is_short(s)), default=0)
    lines = [comment(intro)] if intro else []
    lines += [header] if header else []
    for setting in settings:
        line = f"{setting!s:<{column}}   # {setting.why}"
        if _is_short(setting) and len(line) <= WIDTH:
            lines.append(line)
        else:
            lines += [comment(setting.why), str(setting)]
    return "\n".join(lines)


def _is_short(setting: Setting) -> bool:
    return len(str(setting)) <= WIDEST and "\n" not in setting.value
