"""The command in its own process: kill -9, Ctrl-C and SIGTERM during a run, each followed by the same command."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rarefy.generate.cluster import FOLDER_PREFIX, TOKEN_PATH

REPO = Path(__file__).parents[2]


def start(manifest: Path, out: Path, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rarefy", "generate", str(manifest), "--out", str(out), "--actors", "1"]
    command += ["--cpus-per-actor", "1"]
    environment = os.environ | {"PYTHONPATH": str(REPO / "pipeline"), "OMP_NUM_THREADS": "1"} | variables
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


def session_folders(pid: int) -> set[Path]:
    """Ray's temporary folders of a driver: the session's name ends with its pid."""
    return {path.parents[1] for path in Path("/tmp").glob(f"{FOLDER_PREFIX}*/ray/session_*_{pid}")}


def family(folders: set[Path]) -> list[int]:
    """The living processes of the Ray in these folders, agents included: they have its token in their environment."""
    marks = {f"{TOKEN_PATH}={folder}/token".encode() for folder in folders}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marks & set((process / "environ").read_bytes().split(b"\0")):
                found.append(int(process.name))
    return found


@pytest.mark.slow(30)
def test_killed_and_interrupted_runs_give_the_bytes_of_an_undisturbed_one(runs: Any, gate: Any, tmp_path: Path) -> None:
    manifest, out = runs.manifest(), tmp_path / "out"

    gate.permit(1)
    killed = start(manifest, out, **gate.environment)
    gate.wait(killed, out, 1)
    servers = runs.actors(killed.pid) + runs.servers(killed.pid)
    assert len(servers) == 3, "an actor, raylet and gcs_server; monitors and dashboard should have been stopped"
    left = session_folders(killed.pid)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in left] == [0o700], "Ray's own folder is open to everybody"
    killed.kill()
    killed.communicate()
    assert runs.gone(servers), "Ray's processes outlived the driver"
    assert runs.committed(out) == 1

    gate.permit(1)
    interrupted = start(manifest, out, **gate.environment)
    gate.wait(interrupted, out, 2)
    assert not any(folder.exists() for folder in left), "the killed run's Ray folder was not deleted"
    assert not family(left), "the killed run's agents still run"
    own = session_folders(interrupted.pid)
    assert len(family(own)) >= 3, "its actor, raylet and gcs_server; the agents start later"
    os.killpg(interrupted.pid, signal.SIGINT)
    _, errors = interrupted.communicate()
    assert interrupted.returncode == 130, errors
    assert "run the same command to resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not family(own)
    assert not any(folder.exists() for folder in own)
    assert runs.committed(out) == 2

    gate.permit(1)
    terminated = start(manifest, out, HOME=os.devnull + "/none", **gate.environment)
    gate.wait(terminated, out, 3)
    own = session_folders(terminated.pid)
    terminated.send_signal(signal.SIGTERM)
    terminated.send_signal(signal.SIGTERM)
    _, errors = terminated.communicate()
    assert terminated.returncode == 143, errors
    assert "run the same command to resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not family(own) and not any(folder.exists() for folder in own)
    assert runs.committed(out) == 3

    gate.open()
    finished = start(manifest, out)
    output, errors = finished.communicate()
    assert finished.returncode == 0, errors
    assert "made 14 of 20 images" in output
    assert runs.tars(out) == runs.standard


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_while_ray_starts_leaves_nothing(number: int, code: int, runs: Any, tmp_path: Path) -> None:
    errors = ignored = "Exception ignored in"
    while ignored in errors:  # Python drops what a handler raises while os.fork calls its hooks: another moment
        process = start(runs.manifest(), tmp_path / "out")
        while not (own := session_folders(process.pid)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        time.sleep(0.3)
        os.killpg(process.pid, number)
        _, errors = process.communicate()
    assert process.returncode == code, errors
    assert "run the same command to resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not family(own) and not any(folder.exists() for folder in own)
    assert not (tmp_path / "out").exists()
