"""Which part of the package may import which: lower levels only, and rarefy.fast only from execution.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PACKAGE = REPO / "pipeline" / "rarefy"
# Lowest first. A part imports parts of lower levels only, so that no two parts can import each other.
LEVELS = (
    ("cores", "errors", "interrupts", "live", "scratch", "user_cache"),
    ("extras", "new_output", "plugins", "shipped"),
    ("command_line", "device", "fields", "guidance", "images", "shards", "torchvision_operators"),
    ("gates", "models"),
    ("selection",),
    ("fast",),
    ("diffusion", "digest", "execution", "fill"),
    ("manifest",),
    ("plan",),
    ("generate", "training"),
    ("audit", "bench"),
    ("consume", "select"),
    ("export", "view"),
    ("audit_commands", "completion_command", "export_command", "import_command", "project", "stages", "status"),
    ("doctor", "publish", "view_command"),
    ("doctor_command", "model_commands", "output_commands", "project_commands", "push_command", "run_commands"),
    ("cli",),
    ("__main__", "job"),
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}


def imported(file: Path) -> Iterator[str]:
    """Full names of all modules that a file imports: at its top, in functions, and only for annotations."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_parts(part: str) -> set[str]:
    """The other parts of the package (modules and folders of its top level) that a part imports."""
    path = PACKAGE / part
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    names = {name.split(".")[1] for file in files for name in imported(file) if name.startswith("rarefy.")}
    return names - {part, "__version__"}


def test_every_part_has_a_level() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert parts - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("part", LEVEL)
def test_imports_go_down(part: str) -> None:
    assert {name for name in imported_parts(part) if LEVEL[name] >= LEVEL[part]} == set()


def test_networks_and_guidance_know_nothing_above_them() -> None:
    above = {"fast", "execution", "generate", "audit", "training"}
    assert not above & (imported_parts("models") | imported_parts("guidance"))


def test_only_execution_imports_fast() -> None:
    files = [
        file
        for folder in ("pipeline/rarefy", "benchmarks", "jobs", "examples")
        for file in (REPO / folder).rglob("*.py")
    ]
    outside = [file for file in files if PACKAGE / "fast" not in file.parents]
    importers = {file for file in outside if any(f"{name}.".startswith("rarefy.fast.") for name in imported(file))}
    assert importers == {PACKAGE / "execution.py"}
