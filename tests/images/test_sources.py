"""What a folder contains is recognised, everything in it is used or counted, and mixtures are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from planted_images import encode, noise, write_files, write_tar

from rarefy.errors import DataError
from rarefy.images import has_split, open_source
from rarefy.images.items import Source

PNG = encode(noise(0, 8, 8))
TAR_MEMBERS = {"k.png": PNG, "k.cls": b"0"}


def keys(source: Source) -> list[str]:
    return [item.key for item in source.items]


def test_class_folders_with_everything_that_people_leave_in_them(tmp_path: Path) -> None:
    names = ["10/a.png", "2/b.PNG", "2/deeper/still/a.jpeg", "2/c#d?e:f.png", "10/.hidden.png", "10/._a.png"]
    names += [".ipynb_checkpoints/x.png", "2/.ipynb_checkpoints/x.png", "__MACOSX/2/x.png", "stray.png", "read.txt"]
    names += ["2/Thumbs.db", "2/notes.txt", "10/clip.mp4", "empty/", "only text/x.txt"]
    write_files(tmp_path, dict.fromkeys(names, PNG))
    (tmp_path / "2" / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "2" / "fifo.png")
    (tmp_path / "10" / "linked.png").symlink_to(tmp_path / "2" / "b.PNG")
    (tmp_path / "10" / "loop").symlink_to(tmp_path, target_is_directory=True)
    source = open_source(tmp_path)
    assert source.class_names == ("2", "10")
    assert keys(source) == ["2/b.PNG", "2/c#d?e:f.png", "2/deeper/still/a.jpeg", "10/a.png", "10/linked.png"]
    assert [item.label for item in source.items] == [0, 0, 0, 1, 1]
    counts = {reason: tally.count for reason, tally in source.skipped.items()}
    assert counts == {
        "hidden files and folders": 5,
        "images outside of class folders": 1,
        "files that are not images": 5,
        "classes without images": 2,
        "broken links and special files": 2,
        "links to a folder that contains them": 1,
    }
    assert set(source.skipped["classes without images"].first) == {"empty", "only text"}


def test_classes_may_be_links_to_folders(tmp_path: Path) -> None:
    write_files(tmp_path, {"all/cat/1.png": PNG, "some/": b""})
    (tmp_path / "some" / "cat").symlink_to(tmp_path / "all" / "cat")
    assert keys(open_source(tmp_path / "some")) == ["cat/1.png"]


def test_split_folders(tmp_path: Path) -> None:
    write_files(tmp_path, dict.fromkeys(("train/a/1.png", "train/b/1.png", "Val/a/2.png", "README.md"), PNG))
    train, test = open_source(tmp_path), open_source(tmp_path, "test")
    assert (keys(train), keys(test)) == (["a/1.png", "b/1.png"], ["a/2.png"])
    assert train.skipped["files and folders of other splits"].first == ["Val"]
    assert train.skipped["other files and folders next to the data"].first == ["README.md"]
    assert has_split(tmp_path, "test")
    write_files(tmp_path, {"test/a/3.png": PNG})
    assert keys(open_source(tmp_path, "test")) == ["a/3.png"]
    write_files(tmp_path, {"validation/a/3.png": PNG})
    with pytest.raises(DataError, match="are both the validation split"):
        open_source(tmp_path)


def test_a_test_folder_without_classes_is_no_split(tmp_path: Path) -> None:
    write_files(tmp_path, {"train/a/1.png": PNG, "test/1.png": PNG})
    assert keys(open_source(tmp_path)) == ["a/1.png"] and not has_split(tmp_path, "test")
    assert open_source(tmp_path).skipped["other files and folders next to the data"].first == ["test"]


def test_folders_next_to_the_splits(tmp_path: Path) -> None:
    write_files(tmp_path, {"train/a/1.png": PNG, "test/a/2.png": PNG, "meta/x.xml": b""})
    assert keys(open_source(tmp_path)) == ["a/1.png"] and keys(open_source(tmp_path, "test")) == ["a/2.png"]
    assert open_source(tmp_path).skipped["other files and folders next to the data"].first == ["meta"]
    write_files(tmp_path, {"unlabeled/3.png": PNG})
    with pytest.raises(DataError, match="has the splits test and train, and images in 'unlabeled'; move that folder"):
        open_source(tmp_path)


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    write_files(tmp_path, {"train/1.png": PNG, "truck/1.png": PNG})
    assert open_source(tmp_path).class_names == ("train", "truck")
    with pytest.raises(DataError, match="have no class folders"):
        open_source(write_files(tmp_path / "two", {"test/1.png": PNG, "train/1.png": PNG, "meta/x.xml": b""}))
    write_files(tmp_path / "three", {"train/old/1.png": PNG, "truck/1.png": PNG})
    assert open_source(tmp_path / "three").class_names == ("train", "truck")


def test_a_table_next_to_class_folders_is_not_the_data(tmp_path: Path) -> None:
    source = open_source(write_files(tmp_path, {"a/1.png": PNG, "metadata.parquet": b"", "classes.json": b"[]"}))
    assert keys(source) == ["a/1.png"] and source.skipped["files that are not images"].count == 2
    with pytest.raises(DataError, match="both Parquet files and class folders"):
        open_source(write_files(tmp_path, {"other.parquet": b""}))


def test_splits_by_the_names_of_shards(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar", "test-0.tar"):
        write_tar(tmp_path / name, TAR_MEMBERS)
    (tmp_path / "index.json").write_text("{}")
    source = open_source(tmp_path)
    assert keys(source) == ["train-0/k", "train-1/k"] and keys(open_source(tmp_path, "test")) == ["k"]
    assert source.skipped["files and folders of other splits"].first == ["test-0.tar"]
    assert source.skipped["other files and folders next to the data"].first == ["index.json"]
    write_tar(tmp_path / "more.tar", TAR_MEMBERS)
    with pytest.raises(DataError, match=r"more\.tar' to none"):
        open_source(tmp_path)


def test_a_set_without_a_test_split_says_so(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/1.png": PNG})
    assert not has_split(tmp_path, "test")
    with pytest.raises(DataError, match=r"has no test split \(it has no splits\)"):
        open_source(tmp_path, "test")
    with pytest.raises(DataError, match="'dev' is not train or test"):
        open_source(tmp_path, "dev")


def test_the_only_split_is_read_whatever_its_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "test-0.tar", TAR_MEMBERS)
    assert keys(open_source(tmp_path)) == ["k"]


def test_one_file_is_a_data_set(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", TAR_MEMBERS)
    write_tar(tmp_path / "b.tar", TAR_MEMBERS)
    assert keys(open_source(tmp_path / "a.tar")) == ["k"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a/1.png": PNG, "b.tar": b""}, r"has both \.tar shards and class folders"),
        ({"b.tar": b"", "c.parquet": b""}, r"has both \.tar shards and Parquet files"),
        ({"audit/1.png": PNG, "shards/b.tar": b""}, r"has both class folders and \.tar shards in 'shards'"),
        ({"1.png": PNG, "2.png": PNG}, r"it has 2 \.png files; put each image into a folder named by its class"),
        ({"a/x.txt": b"", "b/": b"", "c.zip": b""}, r"it has 1 \.zip file, 2 folders without images"),
        ({"train-labels-idx1-ubyte": b""}, "no IDX file of images"),
        ({".git/x.png": PNG}, "it has nothing"),
        (
            {"train-images-idx3-ubyte": b"\0\0\x08\3" + b"\0\0\0\1" * 3 + b"\0"},
            r"unsigned bytes \(No such file or directory\)",
        ),
        ({}, "it has nothing"),
    ],
)
def test_what_is_no_data_set(files: dict[str, bytes], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told) as caught:
        open_source(write_files(tmp_path, files))
    assert "\n" not in str(caught.value)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing at this path"):
        open_source(tmp_path / "nowhere")


def test_names_that_cannot_be_printed_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {os.fsdecode(b"a/\xff.png"): PNG})
    with pytest.raises(DataError, match=r"\\udcff.png' has a name that cannot be printed"):
        open_source(tmp_path)


def test_names_with_unusual_spaces_and_marks_are_fine(tmp_path: Path) -> None:
    names = ["a/at 3.00\u202fPM.png", "a/e\u0301.png", "a/\u200fx.png", "a/\U0001f600.png"]
    assert set(keys(open_source(write_files(tmp_path, dict.fromkeys(names, PNG))))) == set(names)


def test_idx_labels_that_do_not_fit(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 8, 8))
    write_files(tmp_path, {"train-images.idx3-ubyte": header + bytes(128)})
    with pytest.raises(DataError, match=r"labels\.idx1-ubyte is not a readable IDX file"):
        open_source(tmp_path)
    write_files(tmp_path, {"train-labels.idx1-ubyte": bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 2])})
    with pytest.raises(DataError, match="one label for each image"):
        open_source(tmp_path)
    write_files(tmp_path, {"train-labels.idx1-ubyte": bytes([0, 0, 8, 1, 0, 0, 0, 2, 0, 2])})
    assert open_source(tmp_path).class_names == ("0", "1", "2")
