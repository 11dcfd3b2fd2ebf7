"""benchmarks/audit.py at a tiny size: it runs, its three programs agree, and its last line is JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_runs_and_its_programs_agree() -> None:
    options = [
        "--n",
        "300",
        "--dim",
        "32",
        "--threads",
        "1",
        "--repeats",
        "1",
        "--no-growth",
        "--stream",
        "700",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "benchmarks/audit.py", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["feature_bytes"] == 2 * 300 * 32 * 4
    assert set(result["seconds"]) == {"ours", "torch_fidelity", "prdc"}
    assert result["ratio_torch_fidelity"] > 0
    assert result["ratio_prdc"] > 0
    assert result["peak_bytes"] >= 0
    found = result["metrics"]
    assert found["ours"] == pytest.approx(found["prdc"], abs=1e-5)
    for name in ("precision", "recall"):
        assert found["ours"][name] == pytest.approx(found["torch_fidelity"][name], abs=1e-5)
    assert result["stream"]["n"] == 700
    assert 0 < result["stream"]["precision"] <= 1
