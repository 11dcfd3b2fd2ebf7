"""The reference pages agree with the code: exit codes, columns of the metadata, files of OUT."""

from __future__ import annotations

import re

from doc_blocks import ROOT
from doc_commands import known_options

from rarefy.cli import main
from rarefy.shards.metadata import SCHEMA


def cells(page: str, pattern: str) -> list[tuple[str, ...]]:
    """The rows of a page's tables whose first cell matches."""
    rows = [line.strip("|").split(" | ") for line in (ROOT / "docs" / page).read_text().splitlines()]
    return [tuple(cell.strip() for cell in row) for row in rows if re.fullmatch(pattern, row[0].strip())]


def test_exit_codes() -> None:
    documented = {int(row[0]) for row in cells("EXIT_CODES.md", r"\d+")}
    assert documented == {int(code) for code in re.findall(r"(\d+):", main.__doc__ or "")}


def test_every_command_has_a_row() -> None:
    rows = cells("COMMANDS.md", r"`rarefy [a-z]+( .*)?`")
    assert {row[0].strip("`").split()[1] for row in rows} == set(known_options())


def test_columns_of_the_metadata() -> None:
    columns = {field.name: {k.decode(): v.decode() for k, v in (field.metadata or {}).items()} for field in SCHEMA}
    documented = {row[0].strip("`"): row[1:] for row in cells("OUTPUT.md", r"`[a-z_0-9]+`") if "." not in row[0]}
    expected = {name: (about["description"], about.get("unit", "")) for name, about in columns.items()}
    assert documented == expected


def spoken() -> str:
    """All texts of the package as one, with string literals on neighbouring lines joined and fields as ``...``."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "pipeline" / "rarefy").rglob("*.py")))
    return re.sub(r'"\n\s*(?:\+ )?f?"', "", text)


def test_messages_of_troubleshooting() -> None:
    """rarefy says what the page quotes."""
    source = spoken()
    page = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text().split("## Not an error")[0]
    messages = re.findall(r"(?m)^\| `([^`]+)` \| ", page)
    assert len(messages) > 20
    patterns = {text: "[^\n]{1,80}?".join(map(re.escape, text.split("..."))) for text in messages}
    unsaid = [text for text, pattern in patterns.items() if re.search(pattern, source) is None]
    assert unsaid == []


def test_the_picture_names_commands() -> None:
    names = re.findall(r'class="name"[^>]*>([^<]+)<', (ROOT / "docs" / "architecture.svg").read_text())
    steps = {word for name in names for word in name.split(", ")} - {"your images", "a trained model", "model folder"}
    assert steps - {"data set"} <= set(known_options())
    assert {"init", "train", "import", "plan", "generate", "seal", "select", "audit", "report"} <= steps
