"""Finds what the pages show a reader: fenced blocks with the way they are tested, commands, and inline code."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN, PARSE = "run", "parse"
TESTED = ("console", "python", "toml")
OTHER = ("text", "json", "yaml", "bibtex")  # shown, not typed: output, trees of files, parts of files
_FENCE = re.compile(r"^( *)```+(\w*).*$")
_RULE = re.compile(r"<!-- test: (\w+)(?: \((.+)\))? -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. mode: RUN or PARSE; reason: why a block is only parsed."""

    page: Path
    line: int
    language: str
    text: str
    mode: str = RUN
    reason: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class PageError(AssertionError):
    """A page breaks a rule of CONTRIBUTING.md, "Pages and their tests"."""


def find_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page. Raises PageError for a rule that is malformed or has no block."""
    blocks: list[Block] = []
    lines, rule, number = page.read_text(encoding="utf-8").splitlines(), None, 0
    while number < len(lines):
        where = f"{page.name}:{number + 1}"
        if fence := _FENCE.match(lines[number]):
            end = next((n for n in range(number + 1, len(lines)) if lines[n].strip().startswith("```")), None)
            if end is None:
                raise PageError(f"{where}: this block has no end")
            indent = len(fence[1])
            text = "\n".join(line[indent:] for line in lines[number + 1 : end])
            blocks.append(Block(page, number + 1, fence[2], text, *(rule or (RUN, ""))))
            rule, number = None, end
        elif found := _RULE.fullmatch(lines[number].strip()):
            rule = _read_rule(found, where)
        elif lines[number].strip().startswith("<!-- test"):
            raise PageError(f"{where}: a rule is written <!-- test: parse (the reason) -->")
        elif lines[number].strip() and rule is not None:
            raise PageError(f"{where}: a rule belongs right before its block")
        number += 1
    return blocks


def _read_rule(found: re.Match[str], where: str) -> tuple[str, str]:
    if found[1] != PARSE or not found[2]:
        raise PageError(f"{where}: {found[0]!r} is not <!-- test: parse (the reason) -->")
    return PARSE, found[2]


def commands(block: Block) -> list[list[str]]:
    """The words of each command in a console block. Lines that begin with ``$ `` are commands, if there are any."""
    lines = block.text.replace("\\\n", " ").splitlines()
    typed = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    return [words for line in typed or lines for words in _split(_words(line, block.where)) if words]


def _words(line: str, where: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise PageError(f"{where}: {line!r}: {error}") from None


def _split(words: list[str]) -> list[list[str]]:
    """The commands that shell operators separate."""
    parts: list[list[str]] = [[]]
    for word in words:
        parts.append([]) if word in ("&&", "||", "|", ";") else parts[-1].append(word)
    return parts


def prose(page: Path) -> list[tuple[int, str]]:
    """Lines of a page outside of its fenced blocks, with their numbers."""
    kept, inside = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip().startswith("```"):
            inside = not inside
        elif not inside:
            kept.append((number, line))
    return kept


def inline_code(page: Path) -> list[tuple[int, str]]:
    """The code spans of a page with the numbers of the lines on which they begin."""
    lines = prose(page)
    text = "\n".join(line for _, line in lines)
    found = re.finditer(r"(?<!`)`([^`]+)`(?!`)", text)
    return [(lines[text.count("\n", 0, span.start())][0], " ".join(span[1].split())) for span in found]
