"""Labelled images are read from each kind of source; the files are real."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from planted_images import encode, noise, write_files

from rarefy.errors import DataError
from rarefy.images import ClassNames, load_images, loading
from rarefy.images.labelled import LabelledImages

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    header = struct.pack(">HBB3I", 0, 8, 3, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    header = struct.pack(">HBBI", 0, 8, 1, len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.astype(np.uint8).tobytes()))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_idx_files_by_split(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", PIXELS, LABELS)
    write_idx(tmp_path, "t10k", PIXELS[:2], LABELS[:2])
    train, test = (load_images(tmp_path, 8, 1, split) for split in ("train", "test"))
    assert np.array_equal(train.images[:, 0], PIXELS) and train.labels.tolist() == LABELS.tolist()
    assert np.array_equal(test.images[:, 0], PIXELS[:2]) and len(test) == 2


def test_class_folders_name_their_classes(tmp_path: Path) -> None:
    for name, row in (("dress", 1), ("bag", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(PIXELS[row]))
    data = load_images(tmp_path, 8, 1)
    assert data.keys == ("bag/a.png", "dress/a.png")
    assert data.class_names == ("bag", "dress") and data.labels.tolist() == [0, 1]
    assert np.array_equal(data.images[:, 0], PIXELS[:2])


def test_other_sizes_are_cropped_to_the_centre_and_resized(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = (10, 20, 30)
    (tmp_path / "x" / "wide.png").write_bytes(png(wide))
    data = load_images(tmp_path, 8, 3)
    assert data.images.shape == (1, 3, 8, 8)
    assert (data.images[0] == np.array([10, 20, 30])[:, None, None]).all()


def test_webdataset_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-000000.tar", "w") as tar:
        for row in range(3):
            for name, content in ((f"{row:05d}.png", png(PIXELS[row])), (f"{row:05d}.cls", str(LABELS[row]).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = load_images(tmp_path, 8, 1)
    assert data.keys == ("00000", "00001", "00002")
    assert np.array_equal(data.images[:, 0], PIXELS[:3]) and data.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("case", ["absent", "empty", "broken image", "truncated idx"])
def test_unusable_sources_are_named(case: str, tmp_path: Path) -> None:
    source = tmp_path / "data"
    if case != "absent":
        source.mkdir()
    if case == "broken image":
        (source / "x").mkdir()
        (source / "x" / "bad.png").write_bytes(b"no image")
    if case == "truncated idx":
        write_idx(source, "train", PIXELS, LABELS)
        file = source / "train-images-idx3-ubyte.gz"
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"^data: .*data"):
        load_images(source, 8, 1)


def test_the_hash_follows_pixels_and_labels(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", PIXELS, LABELS)
    first = load_images(tmp_path, 8, 1).sha256()
    write_idx(tmp_path, "train", PIXELS, LABELS[::-1])
    assert load_images(tmp_path, 8, 1).sha256() != first


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rarefy" / "images"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty grey images in classes 2 and 10."""
    files = {f"{(2, 10)[n % 2]}/{n:02d}.png": encode(noise(n, 8, 8)) for n in range(40)}
    return write_files(tmp_path / "data", files)


def through_cache(folder: Path, **options: Any) -> LabelledImages:
    return load_images(folder, 8, 1, cache_above_bytes=40 * 64 - 1, **options)


def test_labels_follow_the_models_names_and_not_their_order(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{name}/1.png": encode(noise(k, 8, 8)) for k, name in enumerate(["Owl", "cat", "ant"])})
    data = load_images(tmp_path, 8, 1, classes=ClassNames(("owl", "cat", "bee", "ant")))
    assert data.class_names == ("owl", "cat", "bee", "ant")
    assert dict(zip(data.keys, data.labels.tolist(), strict=True)) == {"Owl/1.png": 0, "cat/1.png": 1, "ant/1.png": 3}
    with pytest.raises(DataError, match="'Owl' is not in the model"):
        load_images(tmp_path, 8, 1, classes=ClassNames(("cat", "ant")))


def test_classes_without_images_need_no_match(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", PIXELS[:2], np.array([0, 2]))
    data = load_images(tmp_path, 8, 1, classes=ClassNames(("zero", "two", "three")))
    assert data.labels.tolist() == [0, 2]
    with pytest.raises(DataError, match="'2' is not in the model"):
        load_images(tmp_path, 8, 1, classes=ClassNames(("zero", "two")))


def test_broken_images_are_an_error_or_left_out_by_name(folder: Path, own_cache: Path) -> None:
    (folder / "10" / "05.png").write_bytes(b"?")
    whole = load_images(folder, 8, 1, skip_broken=True)
    cached = through_cache(folder, skip_broken=True)
    for data in (whole, cached, through_cache(folder, skip_broken=True)):
        assert data.broken == (str(folder / "10" / "05.png"),) and len(data) == len(data.keys) == 39
        assert data.images.shape == (39, 1, 8, 8) and np.array_equal(data.images, whole.images)
        for row in (0, 22, 38):
            assert np.array_equal(data.images[row, 0], noise(int(data.keys[row].split("/")[1][:2]), 8, 8))
    for load in (lambda: load_images(folder, 8, 1), lambda: through_cache(folder)):
        with pytest.raises(DataError, match=r"^data: .*10/05\.png is not a readable image"):
            load()


def test_the_cache_gives_the_same_images_from_disk(folder: Path, own_cache: Path) -> None:
    plain = load_images(folder, 8, 1)
    assert not own_cache.exists()
    for _ in range(2):
        cached = through_cache(folder)
        assert cached.sha256() == plain.sha256() and cached.keys == plain.keys and cached.labels.dtype == np.int64
        assert isinstance(cached.images.base, np.memmap)
    renamed = through_cache(folder, classes=ClassNames(("10", "2")))  # the cache has no labels
    assert renamed.labels.tolist() == [1] * 20 + [0] * 20
    assert len(list(own_cache.glob("*.lock"))) == len(list(own_cache.glob("*/images.npy"))) == 1


def test_images_are_decoded_once_until_a_file_changes(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    original = loading.in_order

    def count(function: Any, items: Any, progress: Any = None) -> Iterator[Any]:
        decoded.extend(item.key for item in items)
        return original(function, items, progress)

    monkeypatch.setattr(loading, "in_order", count)
    for _ in range(2):
        through_cache(folder)
    assert len(decoded) == 40
    (folder / "2" / "00.png").write_bytes(encode(noise(99, 8, 8)))
    assert np.array_equal(through_cache(folder).images[0, 0], noise(99, 8, 8)) and len(decoded) == 80
    load_images(folder, 16, 1, cache_above_bytes=1)
    assert len(decoded) == 120


def test_half_a_cache_is_never_used(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(item: Any, *args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loading, "to_pixels", stop)
        with pytest.raises(KeyboardInterrupt):
            through_cache(folder)
    (lock,) = own_cache.iterdir()
    left = own_cache / f"{lock.stem}.part-killed"  # what a killed process leaves
    write_files(left, {"images.npy": b"half"})
    assert through_cache(folder).sha256() == load_images(folder, 8, 1).sha256()
    assert not left.exists()


def test_a_full_disk_is_one_line(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rarefy.images.cache.os.fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*needs 0\.0 GB: set XDG_CACHE_HOME") as caught:
        through_cache(folder)
    assert "\n" not in str(caught.value) and [path.suffix for path in own_cache.iterdir()] == [".lock"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(DataError, match="Not a directory"):
        through_cache(folder)


def load_in_process(folder: Path, counter: Any, results: Any) -> None:
    original = loading.in_order

    def count(*args: Any) -> Iterator[Any]:
        with counter.get_lock():
            counter.value += 1
        return original(*args)

    loading.in_order = count
    results.put(through_cache(folder).sha256())


def test_processes_share_one_decoding(folder: Path, own_cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    counter, results = context.Value("i", 0), context.SimpleQueue()
    processes = [context.Process(target=load_in_process, args=(folder, counter, results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert {results.get() for _ in processes} == {load_images(folder, 8, 1).sha256()}
    assert counter.value == 1


def test_progress_reaches_the_total(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_images(folder, 8, 1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(32, 40), (40, 40)]


def test_taking_rows_keeps_images_labels_and_keys_together(folder: Path) -> None:
    data = load_images(folder, 8, 1)
    part = data.take(np.array([25, 3]))
    assert part.keys == (data.keys[25], data.keys[3]) and part.labels.tolist() == [1, 0]
    assert np.array_equal(part.images, data.images[[25, 3]])
