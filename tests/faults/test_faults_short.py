"""The short form of ``make faults``: every kind of fault inside and around real runs, in under 90 seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_nothing_is_lost_doubled_or_wrong(tmp_path: Path) -> None:
    report = tmp_path / "faults.json"
    paths = [str(REPO / name) for name in ("pipeline", "tests", ".")]
    command = [sys.executable, "-m", "faults", "--short", "--seed", "0", "--json", str(report)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    rows = json.loads(report.read_text())
    assert sum(number for row in rows for number in row["injected"].values()) >= 25
    assert all((row["lost"], row["doubled"], row["wrong"], row["equal"]) == (0, 0, 0, True) for row in rows)
