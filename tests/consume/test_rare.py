from __future__ import annotations

import multiprocessing
import pickle
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted_run import is_accepted, key_of, make_planted, planted_confidence, planted_image
from small_run import quiet
from torch.utils.data import DataLoader

from rarefy.consume import RareImages, RealImages, mix, read_exclusions, read_rows, write_exclusions
from rarefy.errors import DataError, OutputError, ShardError
from rarefy.select.stage import SelectOptions
from rarefy.shards.remote import RemoteFiles
from rarefy.shards.store import Store
from rarefy.stages import select


def keys_of(images: RareImages) -> list[str]:
    """What the pixels say."""
    return [
        key_of((image * 255).round().to(torch.uint8).numpy()) for image, _ in (images[i] for i in range(len(images)))
    ]


def test_every_image_is_the_one_of_its_row(out: Path) -> None:
    images = RareImages(out, accepted=False)
    assert len(images) == 40 == len(images.rows)
    assert keys_of(images) == images.rows["key"].tolist() == [images.key(i) for i in range(40)]
    assert [images[i][1] for i in range(40)] == images.rows["class_id"].tolist() == images.labels.tolist()
    assert [images.class_names[label] for label in images.labels] == images.rows["class_name"].tolist()
    image, label = images[7]
    assert image.dtype == torch.float32 and isinstance(label, int)
    assert torch.equal(image, torch.from_numpy(planted_image("00000100000")).float() / 255)


def test_where_acceptance_and_exclusions_choose_the_images(own: Path) -> None:
    assert all(is_accepted(key) for key in keys_of(RareImages(own)))
    few = keys_of(RareImages(own, "confidence < 0.3 and class_name == 'coat'"))
    assert few and all(planted_confidence(key) < 0.3 and is_accepted(key) for key in few)
    write_exclusions(Store(str(own)), few[:1])
    assert keys_of(RareImages(own, "confidence < 0.3 and class_name == 'coat'")) == few[1:]
    assert keys_of(RareImages(own, "confidence < 0.3 and class_name == 'coat'", excluded=True)) == few


def test_grey_stays_grey_unless_asked_and_transforms_get_a_pil_image(out: Path) -> None:
    seen = RareImages(out, transform=lambda image: (type(image), image.mode, image.size))[3][0]
    assert seen == (Image.Image, "L", (28, 28))
    colour = RareImages(out, mode="RGB")
    assert colour[3][0].shape == (3, 28, 28) and torch.equal(colour[3][0][1], RareImages(out)[3][0][0])
    with pytest.raises(DataError, match=r"mode: 'P' is not L \(grey\) or RGB"):
        RareImages(out, mode="P")


def test_places_outside_and_from_the_end(out: Path) -> None:
    images = RareImages(out, accepted=False)
    assert images.key(-1) == images.key(39) == images.key((5, 39)) == "00000500004"
    assert len(list(images)) == 40  # a for loop ends
    for place in (40, -41, (1, 40)):
        with pytest.raises(IndexError, match="of 40"):
            images[place]


def test_no_image_left_is_refused(out: Path) -> None:
    with pytest.raises(DataError, match=r"no image of .* is left by where='confidence > 2', accepted=True and"):
        RareImages(out, "confidence > 2")


@pytest.mark.parametrize("damage", ["cut", "pixel", "missing", "swapped"])
def test_damage_is_named_by_shard_and_key(own: Path, damage: str) -> None:
    images, tar = RareImages(own, accepted=False), own / "shards" / "rare-000002.tar"
    assert images.key(16) == "00000200002"
    data = bytearray(tar.read_bytes())
    if damage == "cut":
        tar.write_bytes(data[:5000])
    elif damage == "pixel":
        data[data.index(b"IDAT", data.index(b"00000200002.png")) + 9] ^= 1
        tar.write_bytes(data)
    elif damage == "swapped":
        tar.write_bytes((own / "shards" / "rare-000003.tar").read_bytes())
    else:
        tar.unlink()
    message = {
        "cut": "rare-000002: tar is truncated or damaged after sample 00000200000",
        "pixel": "rare-000002: sample 00000200002 is damaged; run verify",
        "swapped": "rare-000002: sample 00000200002 is not in shards/rare-000002.tar",
        "missing": r"rare-000002: tar cannot be opened \(No such file",
    }[damage]
    with pytest.raises(ShardError, match=message):
        images[16]
    assert images.key(15) == "00000200001" and images[14 - 7][1] == images.labels[7]  # other shards can be read


def test_processes_that_are_spawned_get_a_small_copy(out: Path) -> None:
    images = RareImages(out)
    images[0]
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy[5][0], images[5][0]) and copy.fingerprint() == images.fingerprint()
    assert not hasattr(copy, "rows")


def test_object_storage_is_copied_once_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(f"memory://rare-{uuid.uuid4().hex}")
    make_planted(store, {0: 5, 1: 4}, 5)
    images = RareImages(store.root, accepted=False)
    assert keys_of(images) == images.rows["key"].tolist()
    copies = sorted((tmp_path / "rarefy" / "shards").glob("*.tar"))
    assert [len(copies), {copy.read_bytes() for copy in copies}] == [
        2,
        {store.read_bytes(f"shards/rare-00000{shard}.tar") for shard in (0, 1)},
    ]
    store.delete("shards/rare-000000.tar")  # the copy is used
    assert keys_of(RareImages(store.root, accepted=False)) == images.rows["key"].tolist()


def test_processes_read_a_bucket_and_copy_each_tar_once(
    bucket: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for path in filter(Path.is_file, out.rglob("*")):
        Store(bucket).write_bytes(str(path.relative_to(out)), path.read_bytes())
    images, local = RareImages(bucket), RareImages(out)
    downloads = multiprocessing.Value("i")
    download = RemoteFiles.download

    def counted(files: RemoteFiles, path: str, target: Path) -> None:
        with downloads.get_lock():
            downloads.value += 1
        time.sleep(0.1)  # so that the other process comes meanwhile
        download(files, path, target)

    monkeypatch.setattr(RemoteFiles, "download", counted)
    read = [image for image, _ in DataLoader(images, batch_size=None, num_workers=2, multiprocessing_context="fork")]
    assert all(torch.equal(image, local[place][0]) for place, image in enumerate(read)) and len(read) == len(local)
    assert downloads.value == local.rows["tar"].nunique()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    store = Store(f"memory://rare-{uuid.uuid4().hex}")
    make_planted(store, {0: 5}, 5)
    with pytest.raises(OutputError, match=r"^cache: '.*' cannot be written \(Not a directory\); make room, or set XDG"):
        RareImages(store)[0]


def test_a_path_a_url_and_a_store_are_the_same(own: Path, photos: Path) -> None:
    rows = read_rows(Store(str(own)))
    for given in (own, str(own), f"file://{own}"):
        assert read_rows(given).equals(rows) and RareImages(given).rows.equals(rows)
    write_exclusions(str(own), read_exclusions(own) | {rows["key"][0]})
    assert len(mix(photos, own)) == 24 + len(rows) - 1 == len(mix(RealImages(photos, own), RareImages(Store(str(own)))))


def test_a_fingerprint_tells_runs_with_equal_keys_apart(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planted_run.planted_image", lambda key: planted_image(key) + 1)
    make_planted(Store(str(tmp_path / "other")), {0: 40}, 7)
    images, other = RareImages(out, accepted=False), RareImages(tmp_path / "other", accepted=False)
    assert images.rows["key"].equals(other.rows["key"]) and images.fingerprint() != other.fingerprint()


def test_a_damaged_object_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = Store(f"memory://rare-{uuid.uuid4().hex}")
    make_planted(store, {0: 5}, 5)
    store.write_bytes("shards/rare-000000.tar", store.read_bytes("shards/rare-000000.tar") + bytes(512))
    with pytest.raises(ShardError, match="does not have the sha256 that its marker says"):
        RareImages(store.root)[0]
    assert not list(tmp_path.rglob("*.tar"))


def test_a_selected_set_is_read_from_its_own_tars(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    make_planted(store, {0: 4, 4: 4}, 3, '[select]\nfrom = 2\nby = "confidence"\non_class = false\ninside = false\n')
    select(store, SelectOptions(), quiet)
    images = RareImages(tmp_path / "out", accepted=False)
    assert len(images) == 8 and keys_of(images) == images.rows["key"].tolist()


def test_pixels_are_not_changed(out: Path) -> None:
    images = RareImages(out, transform=np.asarray)
    assert all((images[i][0] == planted_image(images.key(i))[0]).all() for i in range(len(images)))
