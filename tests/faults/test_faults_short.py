"""The short form of ``make faults``: nearly every kind of fault inside and around real runs.

It leaves to ``make faults``: processes that are stopped for a while (SIGSTOP), which take seconds to notice, and three
of the six signals that end a process or a machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from faults.kinds import RESTING, RUNNING

REPO = Path(__file__).parents[2]


@pytest.mark.slow(75)
@pytest.mark.timeout(700)
def test_nothing_is_lost_doubled_or_wrong(tmp_path: Path) -> None:
    report = tmp_path / "faults.json"
    paths = [str(REPO / name) for name in ("pipeline", "tests", ".")]
    command = [sys.executable, "-m", "faults", "--short", "--seed", "0", "--json", str(report)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    rows = json.loads(report.read_text())
    injected = sum((Counter(row["injected"]) for row in rows), Counter[str]())
    assert set(injected.values()) == {1}
    left = {*RUNNING, *RESTING} - set(injected)
    assert len(left) == 5 and all("SIG" in name for name in left)
    assert all((row["lost"], row["doubled"], row["wrong"], row["equal"]) == (0, 0, 0, True) for row in rows)
