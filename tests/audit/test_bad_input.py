"""Damaged runs and references that do not fit: named by file or key, and never passed off as the whole."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import MANIFEST, quiet

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.inputs.reference_check import check_reference
from rarefy.cli import main
from rarefy.errors import DataError
from rarefy.manifest import Manifest
from rarefy.models.folder import find_model
from rarefy.plan import shard_names
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
