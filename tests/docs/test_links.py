"""Links, anchors and paths that the pages name lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_blocks import PAGES, ROOT, inline_code, prose

LINKED = [*PAGES, ROOT / "CHANGELOG.md"]
FOLDERS = "benchmarks|docs|examples|jobs|manifests|pipeline|tests"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)|(?:src|srcset|href)=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = [line.lstrip("#").strip() for _, line in prose(page) if re.match("#{1,6} ", line)]
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


def links(page: Path) -> list[tuple[int, str]]:
    return [(number, found[1] or found[2]) for number, line in prose(page) for found in LINK.finditer(line)]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_and_anchors(page: Path) -> None:
    for number, link in links(page):
        if re.match("https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else (page.parent / name).resolve()
        assert target.exists(), f"{page.name}:{number}: there is no {name}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}:{number}: {target.name} has no heading for #{anchor}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    """`tests/run/test_jobs.py` in a sentence is a file or a folder here."""
    for number, code in inline_code(page):
        for path in re.findall(rf"(?:^|\s)((?:{FOLDERS})/[\w./-]+)", code):
            assert (ROOT / path).exists(), f"{page.name}:{number}: there is no {path}"


def test_anchors_are_those_of_github() -> None:
    found = anchors(ROOT / "docs" / "METHODS.md")
    assert {"values-that-are-not-finite", "which-steps-steps-in-sampler", "boost-and-skip"} <= found
