"""docs/TRAINING.md has every key that the reader of ``train.toml`` knows, with its default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_blocks import ROOT, find_blocks

from rarefy.fields import Table
from rarefy.training import network_table, project, settings
from rarefy.training.project import Project, load_project

PAGE = ROOT / "docs" / "TRAINING.md"
EXAMPLE = next(block.text for block in find_blocks(PAGE) if block.language == "toml")
HEADER = re.compile(r"\| key (?:at|of) .*\|")
ROW = re.compile(r"\| `(\w+)` \| (?:`([^`]+)`)? ?\| .+ \|")
TOP, NETWORK, PART = range(3)


def documented() -> list[dict[str, str]]:
    """Key and default (empty: none) by table of the page."""
    tables: list[dict[str, str]] = []
    for line in PAGE.read_text().splitlines():
        if HEADER.fullmatch(line):
            tables.append({})
        elif tables and (row := ROW.fullmatch(line)):
            tables[-1][row[1]] = row[2] or ""
    return tables


def load(folder: Path, text: str) -> Project:
    (folder / "train.toml").write_text(text)
    return load_project(folder / "train.toml")


def test_every_key_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}
    check = project.known_keys

    def record(table: Table, field: str, allowed: list[str], *rest: str) -> None:
        seen[field] = set(allowed)
        check(table, field, allowed, *rest)

    for module in (project, network_table, settings):
        monkeypatch.setattr(module, "known_keys", record)
    load(tmp_path, EXAMPLE).model(("a", "b"))
    top, network, part = (set(table) for table in documented())
    assert top == seen[""] - {"unet", "classifier_network", "diffusion", "classifier", "judge"}
    assert network == seen["unet"] - set(network_table.DERIVED)
    assert seen["classifier_network"] == seen["unet"]
    assert part - {"ect"} == seen["diffusion"] == seen["classifier"] == seen["judge"]


@pytest.mark.parametrize("table", [TOP, NETWORK, PART], ids=["top", "network", "part"])
def test_defaults(table: int, tmp_path: Path) -> None:
    """A file that says all defaults means the same as one that says none of them."""
    defaults = {key: value for key, value in documented()[table].items() if value}
    silent = EXAMPLE.replace("num_head_channels = 32\n", "", 1)  # of [unet]
    lines = "".join(f"{key} = {value}\n" for key, value in defaults.items())
    place = ("", "[unet]", "[classifier]")[table]
    says = silent.replace(place, f"{place}\n{lines}", 1) if place else lines + silent
    said, unsaid = load(tmp_path, says), load(tmp_path, silent)
    names = ("a", "b")
    assert said.model(names) == unsaid.model(names) and said.parts == unsaid.parts and said.ect == unsaid.ect
    assert (said.skip_broken, said.description) == (unsaid.skip_broken, unsaid.description)
