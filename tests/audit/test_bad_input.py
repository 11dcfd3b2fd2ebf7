"""Damaged runs and references that do not fit: named by file or key, and never passed off as the whole."""

import errno
import io
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import MANIFEST, quiet

from rarefy.audit.audit import AuditOptions, check_before, run_audit
from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.inputs.reference_check import check_reference
from rarefy.cli import main
from rarefy.errors import DataError, OutputError, RarefyError
from rarefy.manifest import Manifest, parse_manifest
from rarefy.models.folder import find_model
from rarefy.plan import shard_names
from rarefy.shards.local import LocalFiles
from rarefy.shards.marker import read_marker
from rarefy.shards.store import Store
from rarefy.shards.writer import encode_png

CommitRun = Callable[[Store, str], Manifest]


def test_what_cannot_be_read_is_named_and_the_rest_is_marked(
    tmp_path: Path, real_folder: Path, commit_run: CommitRun
) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = commit_run(store, MANIFEST.replace("shard_size = 9", "shard_size = 4"))
    out, names = tmp_path / "out", list(shard_names(manifest))
    truncated = out / "shards" / f"{names[0]}.tar"
    truncated.write_bytes(truncated.read_bytes()[:-700])
    flipped = out / "shards" / f"{names[2]}.tar"  # the marker's size still fits
    flipped.write_bytes(flipped.read_bytes()[:1024] + b"?" * 512 + flipped.read_bytes()[1536:])
    read = read_run(store, 10_000)
    assert len(read.rows) == len(read.measured) == len(read.images) == 24 - 4 - 4
    told = {problem.where: problem.what for problem in read.problems}
    assert "truncated or replaced" in told[f"shards/{names[0]}.tar"]
    assert any(where.startswith(f"shards/{names[2]}.tar") for where in told)
    store.delete(f"state/{names[5]}.json")
    result = run_audit(store, AuditOptions(reference=str(real_folder)), quiet)
    assert result["partial"] is True
    assert {"where": "state", "what": "1 of 6 shards are not committed"} in result["problems"]


def test_a_sample_that_its_metadata_contradict_is_left_out(tmp_path: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = commit_run(store, MANIFEST)
    name = next(iter(shard_names(manifest)))
    path = tmp_path / "out" / "shards" / f"{name}.tar"
    files = {}
    with tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None
            files[member.name] = stream.read()
    keys = sorted({file.partition(".")[0] for file in files})
    files[f"{keys[0]}.cls"] = b"9"
    files[f"{keys[1]}.png"] = encode_png(np.zeros((1, 28, 28), np.uint8))
    for field in ("png", "cls", "json"):
        del files[f"{keys[2]}.{field}"]
    with tarfile.open(path, "w") as tar:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    marker = read_marker(store, name)
    assert marker is not None
    store.write_bytes(f"state/{name}.json", replace(marker, tar_bytes=path.stat().st_size).to_json())
    read = read_run(store, 10_000)
    told = {problem.where.split()[1]: problem.what for problem in read.problems}
    assert set(told) == set(keys[:3])
    assert "but its row says class 0" in told[keys[0]]
    assert "sha256 is not the one in its row" in told[keys[1]]
    assert "without an image" in told[keys[2]]
    assert set(keys[:3]).isdisjoint(read.measured.key)
    assert len(read.images) == len(read.measured) == 21


@pytest.mark.parametrize(
    ("mode", "side", "told"),
    [("L", 20, "20 x 20' is not at least the run's 28 x 28 px"), ("RGB", 28, "'colour' is not grey like")],
)
def test_a_reference_that_does_not_fit_is_named_by_file(real_folder: Path, mode: str, side: int, told: str) -> None:
    Image.new(mode, (side, side), "red" if mode == "RGB" else 9).save(real_folder / "3" / "05.png")
    with pytest.raises(DataError, match=rf"3/05\.png: '?.*{told}"):
        load_reference(find_model("fashion-mnist-28"), str(real_folder))


def test_larger_reference_images_are_counted(real_folder: Path) -> None:
    Image.new("L", (40, 30), 9).save(real_folder / "3" / "05.png")
    found = load_reference(find_model("fashion-mnist-28"), str(real_folder))
    assert found is not None
    assert found.resized == 1
    assert check_reference(str(real_folder), 28, 1) == 1
    with pytest.raises(DataError, match=r"in colour like the run's images \(all 200 are grey\)"):
        check_reference(str(real_folder), 28, 3)


def test_a_damaged_reference_is_named(tmp_path: Path, real_folder: Path) -> None:
    (real_folder / "3" / "05.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3/05\.png is not a readable image"):
        check_reference(str(real_folder), 28, 1)
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(real_folder / "4" / "05.png", "k.png")
    (folder / "a.tar").write_bytes((folder / "a.tar").read_bytes()[:600])
    with pytest.raises(DataError, match=r"a\.tar is truncated or damaged"):
        check_reference(str(folder), 28, 1)


@pytest.mark.parametrize(
    ("partial", "gate", "code"), [(False, 0.0, 0), (True, 0.0, 5), (False, 1.1, 3), (True, 1.1, 3)]
)
def test_exit_codes(
    tmp_path: Path,
    commit_run: CommitRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    partial: bool,
    gate: float,
    code: int,
) -> None:
    # Without a reference the audit is quick; on_class_rate is 0.75 of what it finds.
    monkeypatch.setattr("rarefy.audit.audit.load_reference", lambda preset, folder: None)
    store = Store(str(tmp_path / "out"))
    manifest = commit_run(store, MANIFEST)
    if partial:
        store.delete(f"state/{next(iter(shard_names(manifest)))}.json")
    gates = tmp_path / "gates.toml"
    gates.write_text(f"[gates]\non_class_rate = {{ min = {gate} }}\n")
    assert main(["audit", str(tmp_path / "out"), "--gates", str(gates)]) == code
    told = capsys.readouterr().out
    assert ("problem: state: 1 of 3 shards are not committed" in told) == partial
    assert ("gate failed: on_class_rate (all) is " in told) == (gate > 1)


def test_what_is_not_used_of_the_reference_is_named(real_folder: Path) -> None:
    (real_folder / "3" / "notes.txt").write_text("")
    (real_folder / ".cache").mkdir()
    found = load_reference(find_model("fashion-mnist-28"), str(real_folder))
    assert found is not None
    unused = "not used: hidden files and folders: 1 (.cache); not used: files that are not images: 1 (3/notes.txt)"
    assert found.source == f"{real_folder} (random halves of each class; {unused})"


def bomb() -> bytes:
    """A PNG of a hundred bytes that claims 3.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


NOISE = encode_png(np.random.default_rng(0).integers(0, 255, (1, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("07.cls", b"abc", "classes are matched by name; 'abc' is not in the model"),
        ("07.cls", b"-1", "label: '-1' is not a class id from 0 to 99,999"),
        ("07.cls", b"1000000000", "label: '1000000000' is not a class id from 0 to 99,999"),
        ("07.png", NOISE[: len(NOISE) // 2], "a.tar 07.png is not a readable image (image file is truncated"),
        ("07.png", NOISE[:400] + bytes([NOISE[400] ^ 1]) + NOISE[401:], "a.tar 07.png is not a readable image (broken"),
        ("07.png", bomb(), "a.tar 07.png is not a readable image (it has more than 89,478,485 pixels)"),
    ],
)
def test_a_reference_in_tars_with_a_bad_member(
    name: str, content: bytes, told: str, tmp_path: Path, commit_run: CommitRun, capsys: pytest.CaptureFixture[str]
) -> None:
    commit_run(Store(str(tmp_path / "out")), MANIFEST)
    files = {
        f"{row:02d}.{kind}": (b"%d" % (row % 10), NOISE)[kind == "png"] for row in range(20) for kind in ("png", "cls")
    }
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for file, data in (files | {name: content}).items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert main(["audit", str(tmp_path / "out"), "--reference", str(tmp_path / "tars")]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("audit:"))
    assert line.startswith("rarefy: error: ")
    assert told in line


def test_rows_that_changed_or_are_missing_are_found_as_by_verify(tmp_path: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    first, second, _ = shard_names(commit_run(store, MANIFEST))
    data = bytearray(store.read_bytes(f"metadata/{first}.parquet"))
    data[len(data) // 2] ^= 1
    store.write_bytes(f"metadata/{first}.parquet", bytes(data))
    store.delete(f"metadata/{second}.parquet")
    read = read_run(store, 10_000)
    assert [problem.what for problem in read.problems] == [
        f"left out: metadata/{first}.parquet does not have the sha256 that its marker says",
        f"left out: metadata/{second}.parquet is missing",
    ]


@pytest.mark.parametrize("command", ["audit", "seal"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    command: str,
    tmp_path: Path,
    commit_run: CommitRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commit_run(Store(str(tmp_path / "out")), MANIFEST)

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def work(*arguments: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(LocalFiles, "put", refuse)
    monkeypatch.setattr("rarefy.audit.audit.judge_images", work)
    monkeypatch.setattr("rarefy.shards.seal.check_shards", work)
    assert main([command, str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == f"rarefy: error: out: '{tmp_path}/out' is not writable (Read-only file system)"


def test_what_the_audit_would_refuse_ends_a_run_before_it_is_made(real_folder: Path, tmp_path: Path) -> None:
    options, store = AuditOptions(reference=str(real_folder)), Store(str(tmp_path / "out"))
    enough = parse_manifest(MANIFEST, "x")
    check_before(store, enough, options)
    with pytest.raises(DataError, match=r"comparison of only 22, and the metrics need more than k = 24"):
        check_before(store, enough, replace(options, k=24))
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"training: '.*nowhere' is not a file or folder that is there"):
        check_before(store, enough, replace(options, training=nowhere))
    with pytest.raises(OutputError, match=r"against: '.*nowhere' is not a folder with an audit"):
        check_before(store, enough, replace(options, against=nowhere))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"\xff", b"nobody\n", b"\n"])
def test_a_mistake_in_the_tail_keeps_the_earlier_audit(
    content: bytes | None, tmp_path: Path, commit_run: CommitRun, real_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarefy.audit.audit.measure", lambda *arguments: pytest.fail("the work has begun"))
    store, keys = Store(str(tmp_path / "out")), tmp_path / "keys"
    commit_run(store, MANIFEST)
    store.write_bytes("audit/metrics.json", b"{}")
    if content is not None:
        keys.write_bytes(content)
    with pytest.raises(RarefyError, match=r"^tail"):
        run_audit(store, AuditOptions(reference=str(real_folder), tail=str(keys)), quiet)
    assert store.exists("audit/metrics.json")


def test_a_fault_of_the_program_is_no_damage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("rarefy.stages.verify_run", fail)
    assert main(["verify", "out"]) == 70
    told = capsys.readouterr().err
    assert "ZeroDivisionError: a fault" in told
    assert told.splitlines()[-1].startswith("rarefy: this is a fault of rarefy's own; please report it")


def test_a_home_that_cannot_be_written_is_no_topic() -> None:
    script = "import rarefy.audit.page, matplotlib; matplotlib.get_cachedir()"
    nowhere = {"HOME": "/proc/nothing", "XDG_CACHE_HOME": "/proc/nothing", "XDG_CONFIG_HOME": "/proc/nothing"}
    environment = {**os.environ, **nowhere}
    environment.pop("MPLCONFIGDIR", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
