"""docs/MANIFEST.md has every key that the reader knows, with its default."""

from __future__ import annotations

import re
import tomllib
from dataclasses import MISSING, fields

import pytest
from doc_blocks import ROOT

from rarefy import manifest, selection
from rarefy.fields import Table
from rarefy.guidance.registry import TERMS
from rarefy.manifest import parse_manifest
from rarefy.models import source

PAGE = (ROOT / "docs" / "MANIFEST.md").read_text()
ROW = re.compile(r"(?m)^\| (`[^|]+`) \| [^|]+ \| (?:`([^|`]+)`)? ?\| [^|]+ \|$")
TERM_ROW = re.compile(r"(?m)^\| `([a-z-]+)` \| `(\w+)` \| [^|]+ \| (?:`([^|`]+)`)? ?\|")
DOCUMENTED = {key: value for keys, value in ROW.findall(PAGE) for key in re.findall("`([^`]+)`", keys)}
MINIMAL = 'name = "rare"\nmodel.name = "fashion-mnist-28"\nclasses.per_class = 1\n'
TABLES = "accept.on_class = false\nselect.from = 2\n"


def known(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The keys that the reader allows, as it says itself."""
    seen: set[str] = set()
    check = manifest.known_keys

    def record(table: Table, field: str, allowed: list[str], *rest: str) -> None:
        seen.update(f"{field}.{key}".lstrip(".") for key in allowed)
        check(table, field, allowed, *rest)

    for module in (manifest, selection, source):
        monkeypatch.setattr(module, "known_keys", record)
    parse_manifest(MINIMAL + TABLES, "page")
    return seen


def test_every_key_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = {f"accept.{name}.{bound}" for name in ("confidence", "entropy") for bound in ("min", "max")}
    tables = {"model", "sampler", "guidance", "classes", "accept", "select", "output", "gates"}
    assert set(DOCUMENTED) == known(monkeypatch) - inner - tables


def digest(text: str) -> str:
    return parse_manifest(text, "page").digest


@pytest.mark.parametrize("key", [key for key, value in DOCUMENTED.items() if value])
def test_defaults(key: str) -> None:
    """A manifest that says the default has the digest of one that says nothing."""
    rest = TABLES if key.startswith(("accept.", "select.")) else ""
    line = f"{key} = {DOCUMENTED[key]}\n"
    text = MINIMAL + rest
    if key == "accept.on_class":
        text = text.replace(line, "accept.max_candidates = 8\n")
    assert digest(text + line) == digest(text)


def test_terms() -> None:
    documented = {(term, key): value for term, key, value in TERM_ROW.findall(PAGE)}
    keys = {
        (name, field.name): field.default
        for name, term in TERMS.items()
        for field in fields(term)
        if field.name != "window"
    }
    assert documented.keys() == keys.keys()
    for name, default in keys.items():
        written = tomllib.loads(f"v = {documented[name]}")["v"] if documented[name] else None
        expected = None if default is MISSING else default
        assert written == (([list(point) for point in expected]) if isinstance(expected, tuple) else expected), name
