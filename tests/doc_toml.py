"""How a TOML block of a page is tested: as the file, or the part of a file, that its tables say it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

from doc_blocks import PARSE, Block, PageError

from rarefy.errors import RarefyError
from rarefy.manifest import parse_manifest
from rarefy.training.project import load_project

BASE = """name = "page"
model.name = "fashion-mnist-28"
classes.per_class = 1
"""
PROJECT_TABLES = ("data", "unet", "diffusion", "classifier", "judge", "classifier_network")


def check_toml(block: Block) -> None:
    """Read it as train.toml, a manifest, a part of a manifest or of pyproject.toml. Raises PageError."""
    try:
        table = tomllib.loads(block.text)
    except tomllib.TOMLDecodeError as error:
        raise PageError(f"{block.where}: {error}") from None
    if block.mode == PARSE or table.keys() <= {"project", "tool"}:
        return
    try:
        if table.keys() & set(PROJECT_TABLES):
            _check_project(block.text)
        else:
            _check_manifest(block.text, table)
    except RarefyError as error:
        raise PageError(f"{block.where}: {error}") from None


def _check_project(text: str) -> None:
    path = Path("mine/page.toml")
    path.write_text(text)
    load_project(path)


def _check_manifest(text: str, table: dict[str, object]) -> None:
    """What the block leaves out of a manifest is filled in."""
    missing = [line for line in BASE.splitlines() if line.split(".")[0].split(" ")[0] not in table]
    parse_manifest("\n".join([*missing, text]), str(Path("mine/page.toml").absolute()), allow_plugins=True)
