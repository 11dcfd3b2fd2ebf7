from __future__ import annotations

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from rarefy import scratch
from rarefy.errors import OutputError
from rarefy.shards.store import Store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_round_trip(store: Store) -> None:
    store.write_bytes("a/b/c.bin", b"one")
    store.write_bytes("a/b/c.bin", b"two!")
    with store.staged("a/d.bin") as private:
        private.write_bytes(b"from a file")
    assert store.read_bytes("a/b/c.bin") == b"two!"
    assert store.size("a/b/c.bin") == 4
    with store.local_copy("a/d.bin") as path:
        assert path.read_bytes() == b"from a file"
    assert store.list("a") == ["b", "d.bin"]
    assert store.list("absent") == []
    store.delete("a/d.bin")
    store.delete("a/d.bin")
    assert not store.exists("a/d.bin")
    assert pickle.loads(pickle.dumps(store)).read_bytes("a/b/c.bin") == b"two!"


def test_a_failing_writer_leaves_nothing(store: Store) -> None:
    with pytest.raises(KeyError), store.staged("shards/x.tar") as private:
        private.write_bytes(b"half")
        raise KeyError("the writer fails")
    assert store.list("shards") == []
    assert store.sweep("shards") == 0


def test_a_reader_sees_old_or_new_bytes_never_a_part(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("x", b"old")
    with store.staged("x") as private:
        private.write_bytes(b"ne")
        assert store.read_bytes("x") == b"old"
        assert store.list() == ["x"]
        private.write_bytes(b"new")
    assert store.read_bytes("x") == b"new"


def test_sweep_takes_old_private_files_only(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / f".rare-000000.tar.{'0' * 32}.tmp").write_bytes(b"dead attempt")
    for name in (".hidden", "rare-000000.tar", "x.tmp", ".nfs000.tmp"):
        (tmp_path / name).write_bytes(b"")
    assert store.sweep("") == 0, "an attempt may still be writing it"
    for path in tmp_path.iterdir():
        os.utime(path, (path.stat().st_mtime - 3601,) * 2)
    assert store.sweep("") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", ".nfs000.tmp", "rare-000000.tar", "x.tmp"]


def test_sweep_goes_by_the_clock_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is two hours ahead of the file server's; an upload of another driver is under way."""
    store = Store(str(tmp_path))
    (tmp_path / f".rare-000000.tar.{'0' * 32}.tmp").write_bytes(b"half")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    assert store.sweep("") == 0


def test_a_file_swept_under_a_writer_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's clock has jumped ahead, so that another driver takes the private file for a dead attempt's."""
    store, link, swept = Store(str(tmp_path)), os.link, []

    def link_after_sweep(source: Path, target: Path) -> None:
        if not swept:
            swept.append(source)
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", link_after_sweep)
    assert store.create("x", b"1") and store.read_bytes("x") == b"1"


def test_create_writes_only_what_is_absent(store: Store) -> None:
    assert store.create("a/x", b"one") and not store.create("a/x", b"two") and not store.create("a/x", b"one")
    assert store.read_bytes("a/x") == b"one"
    assert store.list("a") == ["x"] and set(store.files("a")) == {"x"}


def test_create_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    store = Store(str(tmp_path))
    assert store.create("a/x", b"one") and not store.create("a/x", b"two")
    assert store.read_bytes("a/x") == b"one"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]


def test_create_in_place_of_a_directory(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").touch()
    assert store.read_or_none("empty") is None
    assert store.create("empty", b"1") and store.read_bytes("empty") == b"1"
    with pytest.raises(OutputError, match=r"full' is not writable \(Directory not empty\)$"):
        store.create("full", b"1")
    assert (tmp_path / "full" / "thesis").exists()


def test_a_pipe_is_an_error_not_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    store = Store(str(tmp_path))
    for read in (store.read_bytes, store.read_or_none):
        with pytest.raises(OutputError, match=r"x' is not readable \(it is a pipe or a device\)$"):
            read("x")
    assert not store.create("x", b"1")


def test_withdraw_takes_only_what_was_seen(store: Store) -> None:
    store.write_bytes("a/x", b"one")
    assert not store.withdraw("a/x", sha256(b"two"))
    assert store.read_bytes("a/x") == b"one"
    assert store.withdraw("a/x", sha256(b"one")) and not store.exists("a/x")
    assert store.withdraw("a/x", sha256(b"one")), "it is gone already"
    assert store.list("a") == []


def test_withdraw_puts_back_what_came_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, rename = Store(str(tmp_path)), Path.rename
    store.write_bytes("x", b"damaged")

    def rename_late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        store.write_bytes("x", b"repaired by another attempt")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_late)
    assert not store.withdraw("x", sha256(b"damaged"))
    assert store.read_bytes("x") == b"repaired by another attempt"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_no_sweep_takes_a_file_that_is_being_withdrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, rename, swept = Store(str(tmp_path)), Path.rename, []
    store.write_bytes("x", b"damaged")
    os.utime(tmp_path / "x", (0, 0))

    def rename_and_sweep(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        swept.append(store.sweep(""))
        return renamed

    monkeypatch.setattr(Path, "rename", rename_and_sweep)
    assert store.withdraw("x", sha256(b"damaged")) and swept == [0]


@pytest.mark.parametrize("root", ["/proc/rarefy", "/dev/null/out", "nosuchprotocol://bucket/x"])
def test_a_place_that_cannot_be_written_is_one_line(root: str) -> None:
    with pytest.raises(OutputError) as caught:
        Store(root).check_writable()
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"out: '{root}' is not ")


def test_missing_and_unreadable_files_are_one_line(store: Store) -> None:
    for action in (store.read_bytes, store.size):
        with pytest.raises(OutputError, match=r"absent\.bin' is not readable \((?i:no such file or )"):
            action("absent.bin")


def test_check_writable_leaves_nothing_and_asks_for_space(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "new"))
    store.check_writable(need_bytes=1)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(OutputError, match="bytes free"):
        store.check_writable(need_bytes=2**62)


def test_no_space_left_simulated_at_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates the operating system's error. The next test fills a real file system if it can mount one."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"^out: '.*x' is not writable \(No space left on device\)$"):
        Store(str(tmp_path)).write_bytes("x", b"1")
    assert list(tmp_path.iterdir()) == []


FILL = """
import sys
from rarefy import scratch
from rarefy.errors import OutputError
from rarefy.shards.store import Store
store = Store(sys.argv[1])
store.check_writable()
try:
    store.write_bytes("shards/x.tar", bytes(1 << 20))
except OutputError as error:
    print(error)
print(store.list("shards"), store.sweep("shards"))
"""


def test_no_space_left_on_a_full_file_system(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=64k none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let users mount a file system")
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, FILL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == f"out: '{tmp_path}/shards/x.tar' is not writable (No space left on device)\n[] 0\n"


@pytest.mark.parametrize("way", ["staged", "local_copy"])
def test_a_killed_process_leaves_no_temporary_file_for_long(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next actor removes its folder, which it recognizes by the name."""
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.write_bytes("data", b"content")
    if (child := os.fork()) == 0:
        with getattr(store, way)("data"):
            os._exit(0)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 1
    scratch.sweep()
    assert not list(tmp_path.iterdir())
