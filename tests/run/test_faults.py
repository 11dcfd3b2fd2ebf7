"""The command in its own process: kill -9 and Ctrl-C during a run, each followed by the same command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rarefy.generate.cluster import FOLDER_PREFIX

REPO = Path(__file__).parents[2]
PATIENCE_S = 120.0


def start(manifest: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rarefy", "generate", str(manifest), "--out", str(out), "--actors", "1"]
    environment = os.environ | {"PYTHONPATH": str(REPO / "pipeline"), "OMP_NUM_THREADS": "1"}
    # Its own process group, so that the whole group can get Ctrl-C, as from a terminal. Background jobs of a shell
    # ignore SIGINT, and their children inherit that.
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def markers(out: Path) -> int:
    """Number of committed shards."""
    return len(list((out / "state").glob("rare-*.json")))


def wait_for_shard(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until ``count`` shards are committed, so that the next ones are being generated."""
    end = time.monotonic() + PATIENCE_S
    while markers(out) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def session_folders(pid: int) -> set[Path]:
    """Ray's temporary folders of a driver: the session's name ends with its pid."""
    return {path.parent for path in Path("/tmp").glob(f"{FOLDER_PREFIX}*/session_*_{pid}")}


@pytest.mark.slow
def test_killed_and_interrupted_runs_give_the_bytes_of_an_undisturbed_one(runs: Any, tmp_path: Path) -> None:
    manifest, out = runs.manifest(), tmp_path / "out"

    killed = start(manifest, out)
    wait_for_shard(killed, out, 1)
    family = runs.actors(killed.pid) + runs.servers(killed.pid)
    assert len(family) == 3, "an actor, raylet and gcs_server; monitors and dashboard should have been stopped"
    left = session_folders(killed.pid)
    killed.kill()
    killed.communicate()
    assert len(left) == 1
    assert runs.gone(family), "Ray's processes outlived the driver"
    kept = markers(out)
    assert 0 < kept < 10

    interrupted = start(manifest, out)
    wait_for_shard(interrupted, out, kept + 1)
    family = runs.actors(interrupted.pid) + runs.servers(interrupted.pid)
    os.killpg(interrupted.pid, signal.SIGINT)
    _, errors = interrupted.communicate()
    assert interrupted.returncode == 130, errors
    assert "run the same command to resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert runs.gone(family)
    assert not any(folder.exists() for folder in left), "the killed run's Ray folder was not deleted"
    assert not session_folders(interrupted.pid)
    assert kept < markers(out) < 10

    finished = start(manifest, out)
    output, errors = finished.communicate(timeout=PATIENCE_S)
    assert finished.returncode == 0, errors
    assert "of 20 images" in output
    assert runs.tars(out) == runs.standard
