"""Commands that need neither torch nor Ray start without them, which saves seconds each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.synthetic import synthetic_manifest, write_shards

SCRIPT = """
import contextlib, io, json, sys
from rarefy.cli import main
codes = []
with contextlib.redirect_stdout(io.StringIO()):
    for words in {commands!r}:
        codes.append(main(words))
print(json.dumps([codes, [name for name in ("torch", "ray", "sklearn", "matplotlib") if name in sys.modules]]))
"""


def run_all(commands: list[list[str]]) -> list[object]:
    """Exit codes of the commands, run in one new process, and the slow modules that it then has."""
    script = SCRIPT.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_seal_verify_and_status(tmp_path: Path) -> None:
    write_shards(tmp_path, synthetic_manifest(2), range(2), processes=1)
    commands = [[name, str(tmp_path)] for name in ("status", "seal", "verify")]
    assert run_all(commands) == [[0, 0, 0], []]


@pytest.mark.parametrize("command", ["report", "compare"])
def test_reading_an_audit(command: str, tmp_path: Path) -> None:
    commands = [[command, str(tmp_path / "a"), *([str(tmp_path / "b")] if command == "compare" else [])]]
    codes, modules = run_all(commands)
    assert codes == [2]
    assert set(modules if isinstance(modules, list) else [modules]) <= {"matplotlib"}
