"""Manifests that ship with rarefy, which commands take by name: ``rarefy run demo``.

They are the checkout's folder manifests/. The package has a link to it, where an installed wheel has the files.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rarefy.errors import near_name

FOLDER = Path(__file__).parent / "manifests"


@dataclass(frozen=True)
class Shipped:
    """A manifest that ships. description: the first sentence of the comment on top of the file."""

    name: str
    path: str
    description: str


@functools.cache
def shipped_names() -> tuple[str, ...]:
    """Sorted names of the manifests that ship."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def shipped_manifests() -> list[Shipped]:
    """The manifests that ship, by name."""
    paths: Mapping[str, Path] = {name: FOLDER / f"{name}.toml" for name in shipped_names()}
    return [Shipped(name, str(path), _description(path.read_text(encoding="utf-8"))) for name, path in paths.items()]


def find_manifest(given: str | Path) -> Path:
    """The file that a MANIFEST argument means: a file of that path, or else the manifest that ships under that name.

    If there is neither, the path itself, whose reading then fails.
    """
    path = Path(given)
    if str(given) in shipped_names() and not path.is_file():
        return FOLDER / f"{given}.toml"
    return path


def shipped_hint(given: str | Path) -> str:
    """For the end of a message about a file that does not exist: the manifest of a similar name that ships, or ""."""
    near = near_name(Path(given).stem, shipped_names())
    return "" if near is None else f" (rarefy's own manifest is called {near})"


def _description(text: str) -> str:
    comment = " ".join(line.lstrip("# ") for line in text.partition("\nname")[0].splitlines())
    return f"{comment.split('. ')[0].removesuffix('.')}."
