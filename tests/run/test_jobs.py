"""Job files name existing commands, manifests and versions."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from rarefy.cli import make_parser
from rarefy.manifest import load_manifest

REPO = Path(__file__).parents[2]


def test_the_rayjob_names_existing_files_and_flags() -> None:
    job = yaml.safe_load((REPO / "jobs" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    python, script, *arguments = shlex.split(spec["entrypoint"])
    assert python == "python"
    assert (REPO / script).is_file()
    parsed = make_parser().parse_args([Path(script).stem, *arguments])
    assert load_manifest(REPO / parsed.manifest).total > 0
    assert parsed.out.startswith("s3://")
    assert spec["rayClusterSpec"]["rayVersion"] == version("ray")
    assert spec["shutdownAfterJobFinishes"] is True
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    worker = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert float(worker["resources"]["limits"]["nvidia.com/gpu"]) >= parsed.gpus_per_actor


@pytest.mark.parametrize("name", ["generate", "run"])
def test_entry_points_report_a_users_error_in_one_line(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "jobs" / f"{name}.py"), "none.toml", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=REPO, env={"PYTHONPATH": str(REPO / "pipeline")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rarefy: error: manifest: 'none.toml'")
    assert done.stderr.count("\n") == 1


def test_submit_prints_its_usage() -> None:
    done = subprocess.run([REPO / "jobs" / "submit.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
