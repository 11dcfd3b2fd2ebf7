"""Temporary folders of live, killed and hostile processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rarefy import scratch
from rarefy.scratch import LOCK, YOUNG_S, scratch_folder, sweep

HOLD = """
import sys, time
from pathlib import Path
from rarefy.scratch import scratch_folder
with scratch_folder("t-", Path(sys.argv[1])) as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def folders(where: Path) -> list[Path]:
    return sorted(where.glob("t-*"))


def test_a_folder_is_private_and_removed(tmp_path: Path) -> None:
    with scratch_folder("t-", tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "some").mkdir()
        sweep("t-", tmp_path)
        assert (folder / "some").is_dir(), "it is in use"
    assert not folder.exists()


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_live_one_stays(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        ended: list[Path] = []
        sweep("t-", tmp_path, ended.append)
        assert folder.is_dir() and not ended
        process.send_signal(signal.SIGKILL)
    assert (folder / "file").exists(), "SIGKILL leaves it"
    sweep("t-", tmp_path, ended.append)
    assert not folder.exists() and ended == [folder]


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    folder = tmp_path / "t-1"
    folder.mkdir()
    os.mkfifo(folder / LOCK)
    thread = threading.Thread(target=sweep, args=("t-", tmp_path), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive() and folder.is_dir()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / LOCK).touch()
    (tmp_path / "t-link").symlink_to(tmp_path / "mine")
    (tmp_path / "t-2").mkdir()
    (tmp_path / "t-2" / LOCK).symlink_to(tmp_path / "mine" / LOCK)
    sweep("t-", tmp_path)
    assert (tmp_path / "mine" / LOCK).exists() and len(folders(tmp_path)) == 2


def test_another_users_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t-1").mkdir()
    (tmp_path / "t-1" / LOCK).touch()
    monkeypatch.setattr(scratch.os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    sweep("t-", tmp_path)
    assert folders(tmp_path) == [tmp_path / "t-1"]


def test_a_folder_without_a_lock_is_removed_when_it_is_old(tmp_path: Path) -> None:
    for name, age in (("t-new", 0.0), ("t-old", YOUNG_S + 60)):
        folder = tmp_path / name
        folder.mkdir()
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    sweep("t-", tmp_path)
    assert folders(tmp_path) == [tmp_path / "t-new"]


def test_a_folder_that_was_swept_before_it_was_locked_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = scratch.fcntl.flock, []

    def late(file: int, operation: int) -> None:
        calls.append(file)
        if len(calls) == 1:
            sweep("t-", tmp_path)
        flock(file, operation)

    monkeypatch.setattr(scratch.fcntl, "flock", late)
    with scratch_folder("t-", tmp_path) as folder:
        assert folder.is_dir() and folders(tmp_path) == [folder]
    assert len(calls) == 3
