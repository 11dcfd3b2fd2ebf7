"""The parts of the package's metadata that depend on the repository's address; the rest is in pyproject.toml.

The address is ``repository`` of ``[tool.rarefy]`` in pyproject.toml. The package index shows the README outside the
repository, so its relative links become absolute: they lead to the files of this version's tag.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
RELEASE = "RAREFY_RELEASE"  # with RAREFY_RELEASE=1, what is not fit for a release is not built
# Before the target of a picture and of a link, in Markdown and in HTML, if it is relative.
PICTURE = re.compile(r"(!\[[^\]]*\]\(|\bsrc=\")(?![a-z]+:|#|/)")
LINK = re.compile(r"(\]\(|\bhref=\")(?![a-z]+:|#|/)")


def repository(root: Path = ROOT) -> str:
    """The repository's address, such as https://github.com/org/rarefy; empty as long as there is none."""
    address: str = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["rarefy"]["repository"]
    return address.rstrip("/")


def version(root: Path = ROOT) -> str:
    """``rarefy.__version__``, without importing rarefy."""
    text = (root / "pipeline" / "rarefy" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert match is not None
    return match[1]


def with_absolute_links(text: str, address: str, tag: str) -> str:
    """The Markdown text with absolute links: pictures to the raw files of the tag, other files to their pages."""
    text = PICTURE.sub(rf"\g<1>{address}/raw/{tag}/", text)
    return LINK.sub(rf"\g<1>{address}/blob/{tag}/", text)


def links(address: str, tag: str) -> dict[str, str]:
    """The links that the package index shows beside the description."""
    return {
        "Repository": address,
        "Documentation": f"{address}/tree/{tag}/docs",
        "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }


def release_problems(root: Path = ROOT) -> list[str]:
    """What keeps this tree from being released, one line each (docs/RELEASE.md)."""
    address, number = repository(root), version(root)
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    site = root / "mkdocs.yml"
    checks = {
        "pyproject.toml: [tool.rarefy] repository is empty; it must be the repository's address": bool(address),
        f"CITATION.cff: it does not name the repository, {address!r}": not address
        or f'repository-code: "{address}"' in citation,
        f"mkdocs.yml: its repo_url is not {address!r}": not (address and site.exists())
        or f"repo_url: {address}\n" in site.read_text(encoding="utf-8"),
        f"CITATION.cff: its version is not {number}": f"version: {number}\n" in citation,
        f"CHANGELOG.md: no section [{number}] with a date": re.search(
            rf"^## \[{re.escape(number)}\] - \d{{4}}-\d{{2}}-\d{{2}}$", changelog, re.MULTILINE
        ) is not None,
        f"pipeline/rarefy/__init__.py: {number!r} is not a released version": re.fullmatch(
            r"\d+\.\d+\.\d+((a|b|rc)\d+)?", number
        ) is not None,
    }  # fmt: skip
    return [problem for problem, passed in checks.items() if not passed]


if __name__ == "__main__":
    if os.environ.get(RELEASE) and (problems := release_problems()):
        raise SystemExit("\n".join(["not fit for a release:", *problems]))
    readme, address, tag = (ROOT / "README.md").read_text(encoding="utf-8"), repository(), f"v{version()}"
    setup(
        long_description=with_absolute_links(readme, address, tag) if address else readme,
        long_description_content_type="text/markdown",
        project_urls=links(address, tag) if address else {},
    )
