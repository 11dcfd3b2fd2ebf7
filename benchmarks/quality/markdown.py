"""Pieces of Markdown that RESULTS.md is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality.spread import Row


def guidance(tables: Sequence[Row]) -> str:
    """[[guidance]] tables as code, one a term."""
    return " + ".join(f"`{', '.join(entry(key, value) for key, value in table.items())}`" for table in tables) or "none"


def entry(key: str, value: object) -> str:
    """A key of such a table; a term goes by its name."""
    return str(value) if key == "term" else f"{key} = {plain(value)}"


def plain(value: object) -> str:
    """A value as a manifest writes it, texts without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def figure(figures: Sequence[str], name: str, text: str) -> list[str]:
    """The image of that name, if it is among those drawn."""
    return [f"![{text}]({name})"] if name in figures else []


def pairs(values: Mapping[str, Any]) -> str:
    """Keys and values in one line."""
    return ", ".join(f"{key.replace('_', ' ')} {plain(value)}" for key, value in values.items())


def details(title: str, body: str) -> str:
    """A folded part."""
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> str:
    """A Markdown table; the first ``text`` columns are aligned left, the others right."""
    marks = ["---"] * text + ["---:"] * (len(head) - text)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, marks, *cells])
