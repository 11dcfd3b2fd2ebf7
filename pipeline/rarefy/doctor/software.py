"""Installed packages, compared with what rarefy asks for. Nothing is imported: the package index's files say it."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from rarefy import __version__
from rarefy.doctor.check import Check, ok, problem, warning

PYTHON = (3, 11)
SHOWN = ("numpy", "pandas", "pyarrow", "torch", "ray", "webdataset", "fsspec", "huggingface_hub")
RUN = ("torch", "ray")  # what generate, train and audit need
EXTRA = re.compile(r"""extra == ["']([\w-]+)["']""")
OWN_EXTRAS = frozenset({"dev", "mutants", "docs"})  # of people who change rarefy


def check_software() -> Iterator[Check]:
    """rarefy, Python, packages and extras."""
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < PYTHON:
        yield problem("rarefy", f"{__version__}, {system}", "rarefy needs Python 3.11 or newer")
    else:
        yield ok("rarefy", f"{__version__}, {system}")
    found = {name: installed(name) for name in SHOWN}
    yield ok("packages", ", ".join(f"{name} {number}" for name, number in found.items() if number))
    if missing := [name for name in RUN if found[name] is None]:
        advice = "enough to read data sets; for run, train and audit: pip install 'rarefy[run]'"
        yield warning("packages", f"{' and '.join(missing)} not installed", advice)
    yield from _requirements(requires_of("rarefy"))


def installed(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def requires_of(name: str) -> Sequence[str]:
    """The requirements that a package's metadata lists, extras included; none for a package that is not installed."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def _requirements(lines: Sequence[str]) -> Iterator[Check]:
    """What does not meet rarefy's own requirements, and which extras are complete."""
    if not lines:
        yield warning("requirements", "unknown: rarefy runs from its source folder", "install it: pip install -e .")
        return
    wrong = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wrong += unmet(requirement)
    if wrong:
        yield problem("requirements", ", ".join(wrong), "install rarefy again: pip install rarefy")
    yield _extras([requirement for requirement in map(Requirement, lines) if requirement.marker is not None])


def unmet(requirement: Requirement) -> list[str]:
    """How an installed package does not meet a requirement; empty if it does."""
    number = installed(requirement.name)
    if number is None:
        return [f"{requirement.name} is not installed"]
    if requirement.specifier.contains(number, prereleases=True):
        return []
    return [f"{requirement.name} {number} is not {requirement.specifier}"]


def _extras(requirements: Sequence[Requirement]) -> Check:
    """Which extras are complete. An extra's own requirement of rarefy, for another extra, does not count."""
    complete: list[str] = []
    other: list[str] = []
    for extra in sorted({name for each in requirements for name in EXTRA.findall(str(each.marker))} - OWN_EXTRAS):
        needed = [each for each in requirements if each.marker and each.marker.evaluate({"extra": extra})]
        missing = [each for each in needed if each.name != "rarefy" and unmet(each)]
        (other if missing else complete).append(extra)
    text = f"{', '.join(complete) or 'none'} installed"
    return ok("extras", f"{text}; not installed: {', '.join(other)}" if other else text)
