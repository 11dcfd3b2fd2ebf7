"""WebDataset shards: labels of every kind, damaged tars, and names that must not reach a shell."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from planted_images import encode, noise, write_tar

from rarefy.cli import main
from rarefy.errors import DataError
from rarefy.images import ClassNames, inspect_images, load_images, open_source

PIXELS = noise(0, 6, 8, 8)
PNG = [encode(pixels) for pixels in PIXELS]


def shard(path: Path, labels: list[str | bytes], key: str = "{:05d}") -> Path:
    members = {}
    for row, label in enumerate(labels):
        members[f"{key.format(row)}.png"] = PNG[row]
        members[f"{key.format(row)}.cls"] = label if isinstance(label, bytes) else label.encode()
    return write_tar(path, members)


def test_numbers_are_class_ids_of_the_model(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", ["2", "0", "2\n"])
    alone = load_images(tmp_path, 8, 1)
    assert (alone.class_names, alone.labels.tolist()) == (("0", "2"), [1, 0, 1])
    named = load_images(tmp_path, 8, 1, classes=ClassNames(("cat", "dog", "owl")))
    assert (named.class_names, named.labels.tolist()) == (("cat", "dog", "owl"), [2, 0, 2])
    assert np.array_equal(named.images[:, 0], PIXELS[:3])


@pytest.mark.parametrize("label", ["007", "+7", "0" * 5000 + "7"])
def test_numbers_are_read_by_value(label: str, tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [label])
    assert open_source(tmp_path).class_names == ("7",)


def test_text_is_a_class_name(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", ["dog", " Cat ", "dog"])
    data = load_images(tmp_path, 8, 1, classes=ClassNames(("cat", "dog")))
    assert data.labels.tolist() == [1, 0, 1]


def test_the_json_has_the_name_and_wins_over_the_id(tmp_path: Path) -> None:
    members = {"a.png": PNG[0], "a.cls": b"0", "a.json": json.dumps({"class_name": "dog"}).encode()}
    members |= {"b.png": PNG[1], "b.json": b'{"class_name": "cat"}', "b.txt": b"a caption"}
    write_tar(tmp_path / "a.tar", members)
    data = load_images(tmp_path, 8, 1)
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [1, 0])
    skipped = open_source(tmp_path).skipped
    assert skipped["members other than images, .cls and .json"].first == ["a.tar b.txt"]


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("-1", "'-1' is not a class id from 0 to 99,999"),
        ("1000000000", "'1000000000' is not a class id"),
        ("9" * 5000, "is not a class id"),
        ("", "'' is not a class id or a name"),
        (b"\xff\xfe", "neither a number nor text in UTF-8"),
        ("a\nb", "is not a class id or a name"),
        ("x" * 300, "a name of 1 to 200 characters"),
    ],
)
def test_labels_that_are_refused(label: str | bytes, told: str, tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", ["0", label])
    with pytest.raises(DataError, match="00001") as caught:
        open_source(tmp_path)
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"k.png": PNG[0]}, "sample 'k' .* has no .cls"),
        ({"k.cls": b"0"}, "sample 'k' .* has no image"),
        ({"k.png": PNG[0], "k.jpg": PNG[0], "k.cls": b"0"}, "sample 'k' .* two images"),
        ({"k.png": PNG[0], "k.json": b"{"}, "json of sample 'k' .* cannot be read"),
        ({"k.png": PNG[0], "k.json": b'{"class_name": 3}'}, "sample 'k' .*class_name: 3 is not text"),
        ({"k.png": PNG[0], "k.json": b"[1]"}, "sample 'k' .* has no .cls and no .json with a class_name"),
        ({"k.png": PNG[0], "k.json": b"[" * 100_000}, "json of sample 'k' .* cannot be read"),
        ({}, "at least one KEY.png"),
        ({"k.left.png": PNG[0]}, r"at least one KEY.png .*; members other than .*: a.tar k.left.png"),
        ({"a\nb.png": PNG[0]}, "name cannot be printed"),
    ],
)
def test_incomplete_samples_are_named(members: dict[str, bytes], told: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=told):
        open_source(tmp_path)


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", ["0", "1", "2"])
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = max(member.offset_data + 512 for member in tar.getmembers())
    for cut in range(1, end + 1, 128):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.tar is truncated or damaged") as caught:
            open_source(tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[:end])  # between the last member and the blocks that mark the end
    with pytest.raises(DataError, match=r"ends after 00002\.cls without the blocks"):
        open_source(tmp_path)


def test_damage_in_the_middle_and_two_tars_in_one_file_are_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", ["0", "1", "2"])
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        header = tar.getmembers()[3].offset
    path.write_bytes(whole[:header] + b"?" * 512 + whole[header + 512 :])
    with pytest.raises(DataError, match="damaged after 00001"):
        open_source(tmp_path)
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="two tars in one file"):
        open_source(tmp_path)
    path.write_bytes(b"not a tar" * 100)
    with pytest.raises(DataError, match="truncated or damaged"):
        open_source(tmp_path)


def test_hidden_members_folders_and_links_are_counted(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", ["0"], "./inner/{}")
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name in ("inner/._0.png", "__MACOSX/0.png", ".git/0.png", "./.x.png"):
            tar.addfile(tarfile.TarInfo(name))
        for name, kind in (("folder", tarfile.DIRTYPE), ("link.png", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    source = open_source(tmp_path)
    assert [item.key for item in source.items] == ["./inner/0"]
    assert source.skipped["hidden files and folders"].count == 4
    assert source.skipped["members that are not plain files"].first == ["a.tar link.png"]


def test_keys_of_several_tars_become_unique(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", ["0", "1"])
    shard(tmp_path / "b.tar", ["1"])
    assert load_images(tmp_path, 8, 1).keys == ("a/00000", "a/00001", "b/00000")


@pytest.mark.parametrize("name", ["pipe:touch ran;.tar", "a#b?c:d$(touch ran).tar", "http::x y.tar", "|touch ran.tar"])
def test_names_of_tars_and_keys_never_reach_a_shell(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shard(tmp_path / "data" / name, ["0", "1"], "pipe:touch ran {}")
    for source in (Path("data"), Path("data") / name):
        data = load_images(source, 8, 1)
        assert np.array_equal(data.images[:, 0], PIXELS[:2])
        assert data.keys == ("pipe:touch ran 0", "pipe:touch ran 1")
        assert inspect_images(source).images == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("source", ["pipe:touch ran", "pipe:touch ran.tar", "data?x#y:z"])
def test_sources_that_do_not_exist_never_reach_a_shell(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(f'preset = "fashion-mnist-28"\ndata = "{source}"\n[train]\nimages = 8\n')
    assert main(["train", "diffusion", "r.toml", "--out", "out", "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "data: " in told
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]
