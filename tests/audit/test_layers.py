"""The rooms of the audit: which of them may import which."""

import ast
from pathlib import Path

import pytest

import rarefy.audit

ROOT = Path(rarefy.audit.__file__).parent
ABOVE = {
    "inputs": {"features", "metrics", "page", "utility", ""},
    "features": {"inputs", "metrics", "page", "utility", ""},
    "metrics": {"inputs", "page", "utility", ""},
    "utility": {"page"},
    "": {"page"},
}


def imported_rooms(file: Path) -> set[str]:
    """Rooms of the audit that a file imports from; "" is the audit's own folder."""
    modules = [node.module or "" for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    places = [module.split(".")[2:] for module in modules if module.startswith("rarefy.audit.")]
    return {place[0] if (ROOT / place[0]).is_dir() else "" for place in places}


@pytest.mark.parametrize("room", ABOVE)
def test_no_room_imports_one_above_it(room: str) -> None:
    files = list((ROOT / room).glob("*.py"))
    assert len(files) > 2
    for file in files:
        assert not imported_rooms(file) & ABOVE[room], file.name
