"""Installed packages, compared with what rarefy asks for. Nothing is imported: the package index's files say it."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from rarefy import __version__
from rarefy.doctor.check import Check, ok, problem, warning

PYTHON = (3, 11)
SHOWN = ("numpy", "pandas", "pyarrow", "torch", "ray", "webdataset", "fsspec", "huggingface_hub")
RUN = ("torch", "ray")  # what generate, train and audit need
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[^\]]*\])?\s*\(?(?P<bounds>[^;)]*)\)?(?:;(?P<marker>.*))?")
EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")
BOUND = re.compile(r"\s*(>=|<=|==|!=|~=|<|>)\s*([\w.*+!-]+)\s*")
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
    extras: dict[str, list[str]] = {}
    wrong = []
    for line in lines:
        match = REQUIREMENT.match(line)
        assert match is not None, line
        extra = EXTRA.search(match["marker"] or "")
        if extra is not None:
            extras.setdefault(extra[1], []).append(match["name"])
        elif what := unmet(match["name"], match["bounds"]):
            wrong.append(what)
    if wrong:
        yield problem("requirements", ", ".join(wrong), "install rarefy again: pip install rarefy")
    yield _extras(extras)


def unmet(name: str, bounds: str) -> str:
    """How an installed package does not meet a requirement; empty if it does."""
    number = installed(name)
    if number is None:
        return f"{name} is not installed"
    for operator, bound in BOUND.findall(bounds):
        if not _meets(_numbers(number), operator, _numbers(bound)):
            return f"{name} {number} is not {operator}{bound}"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    """The release part of a version, without zeros at its end: 2.13.0+cpu is (2, 13)."""
    release = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _meets(number: tuple[int, ...], operator: str, bound: tuple[int, ...]) -> bool:
    results = {
        ">=": number >= bound,
        "<=": number <= bound,
        "==": number == bound,
        "!=": number != bound,
        "<": number < bound,
        ">": number > bound,
        "~=": number >= bound and number[: len(bound) - 1] == bound[:-1],
    }
    return results[operator]


def _extras(extras: Mapping[str, Sequence[str]]) -> Check:
    complete: list[str] = []
    other: list[str] = []
    for extra, names in sorted(extras.items()):
        if extra not in OWN_EXTRAS:
            others = [name for name in names if name != "rarefy"]
            (complete if all(installed(name) for name in others) else other).append(extra)
    text = f"{', '.join(complete) or 'none'} installed"
    return ok("extras", f"{text}; not installed: {', '.join(other)}" if other else text)
