"""The site builds without a warning, has every page and command, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_blocks import ROOT
from doc_commands import known_options

pytest.importorskip("mkdocs", reason="the site needs the extra docs")
pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``make docs`` does; a warning raises Abort, which pytest shows."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"CHANGELOG", "CONTRIBUTING", "CLI"}
    assert pages <= {path.stem for path in site.glob("*.html")}


def test_commands_have_a_section(site: Path) -> None:
    headings = re.findall(r'<h[23] id="[^"]+">([^<]+)<', (site / "CLI.html").read_text())
    assert {f"rarefy {name}" for name in known_options()} <= set(headings)


def test_docstrings_are_there(site: Path) -> None:
    page = (site / "API.html").read_text()
    for name in (
        "rarefy.manifest.load_manifest",
        "rarefy.guidance.base.ClassifierTerm",
        "rarefy.audit.schema.AuditResult",
    ):
        assert f'id="{name}"' in page


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """No script, style sheet, font or picture from another host, so the site works without a network."""
    for page in site.glob("*.html"):
        tags = re.findall(r"<(?:script|link|img|source|iframe)\b[^>]*>", page.read_text())
        outside = [tag for tag in tags if re.search(r'(?:src|href)="(?:https?:)?//', tag)]
        assert outside == [], f"{page.name} loads {outside}"
