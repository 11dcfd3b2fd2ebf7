"""What is exported and what is left out, in every format; the planted images say which they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from planted_run import is_accepted, key_of, make_planted, planted_confidence, planted_image
from small_run import quiet

from rarefy.cli import main
from rarefy.errors import DataError, OutputError, RarefyError, ShardError
from rarefy.export import parquet
from rarefy.export.export import WRITERS, Exported, export_run
from rarefy.select.stage import SelectOptions
from rarefy.shards.metadata import SCHEMA, read_records
from rarefy.shards.reader import decode_image
from rarefy.shards.store import Store
from rarefy.stages import select

EXCLUDED = ("00000100003", "00000100004")
KEYS = [f"{number // 7:06d}{number % 7:05d}" for number in range(40)]
FORMS = list(WRITERS)
Images = dict[str, tuple[NDArray[np.uint8], int]]


def name_of(form: str) -> str:
    return "images.npz" if form == "npz" else "images"


def read_back(path: Path, form: str) -> Images:
    """Pixels (C, H, W) and class id of every image by its key, which for an npz only the pixels tell."""
    if form == "npz":
        arrays = np.load(path)
        pixels = arrays["arr_0"].transpose(0, 3, 1, 2)
        assert (pixels == pixels[:, :1]).all()
        return {key_of(image[:1]): (image[:1], label) for image, label in zip(pixels, arrays["arr_1"], strict=True)}
    if form == "parquet":
        rows = [row for file in sorted(path.glob("data/*.parquet")) for row in pq.read_table(file).to_pylist()]
        assert all(row["image"]["path"] == f"{row['key']}.png" for row in rows)
        return {row["key"]: (decode_image(row["image"]["bytes"]), row["label"]) for row in rows}
    ids = {entry["folder"]: entry["id"] for entry in json.loads((path / "classes.json").read_text())}
    files = list(path.glob("*/*.png"))
    return {file.stem: (np.array(Image.open(file))[None], ids[file.parent.name]) for file in files}


def export(out: Path | str, dest: Path, form: str, **options: str | bool) -> Exported:
    return export_run(Store(str(out)), str(dest), form, progress=quiet, **options)  # type: ignore[arg-type]


def check(images: Images, keys: list[str], out: Path) -> None:
    assert sorted(images) == keys
    records = {record.key: record for n in range(6) for record in read_records(Store(str(out)), f"rare-{n:06d}")}
    for key, (pixels, class_id) in images.items():
        assert np.array_equal(pixels, planted_image(key)) and class_id == records[key].class_id


@pytest.mark.parametrize("form", FORMS)
def test_accepted_images_that_are_not_excluded(form: str, out: Path, tmp_path: Path) -> None:
    dest = tmp_path / "new" / name_of(form)
    exported = export(out, dest, form)
    keys = [key for key in KEYS if is_accepted(key) and key not in EXCLUDED]
    check(read_back(dest, form), keys, out)
    assert [path.name for path in dest.parent.iterdir()] == [dest.name]
    assert exported.images == len(keys) == 33
    assert exported.text() == (
        f"exported 33 images of 3 classes to {dest} ({form}); left out: 2 on the exclusion list, 5 not accepted"
    )


@pytest.mark.parametrize("form", FORMS)
def test_all_images(form: str, out: Path, tmp_path: Path) -> None:
    exported = export(out, tmp_path / name_of(form), form, everything=True)
    check(read_back(tmp_path / name_of(form), form), KEYS, out)
    assert exported.text().endswith(f"({form})")


def test_a_condition(out: Path, tmp_path: Path) -> None:
    exported = export(out, tmp_path / "images", "imagefolder", where="confidence < 0.6 and rarity > 100000")
    chosen = [key for key in KEYS if is_accepted(key) and key not in EXCLUDED]
    keys = [key for key in chosen if planted_confidence(key) < 0.6 and int(key) > 100_000]
    check(read_back(tmp_path / "images", "imagefolder"), keys, out)
    assert exported.left_out.where == 33 - len(keys) > 0
    with pytest.raises(DataError, match=r"'confidence > 2' is not a condition that any of the 33 images satisfies"):
        export(out, tmp_path / "none", "imagefolder", where="confidence > 2")


def test_columns(out: Path, tmp_path: Path) -> None:
    """The table has the types of the metadata, and rarity."""
    export(out, tmp_path / "images", "imagefolder", everything=True)
    table = pq.read_table(tmp_path / "images" / "metadata.parquet")
    rarity = ["rarity", "inside", "avgknn", "nearest_distance", "nearest_real"]
    assert table.column_names == ["file_name", "label", *SCHEMA.names, *rarity]
    metadata = pq.read_table(out / "metadata").cast(SCHEMA)
    assert table.select(SCHEMA.names).cast(SCHEMA).to_pylist() == metadata.to_pylist()
    assert table["rarity"].to_pylist() == [np.float32(int(key)) for key in KEYS]
    assert table["inside"].to_pylist() == [np.float32(int(key)) % 2 == 0 for key in KEYS]
    assert all((tmp_path / "images" / path).is_file() for path in table["file_name"].to_pylist())


@pytest.mark.parametrize("form", FORMS)
def test_a_selected_set_on_object_storage(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarefy.shards.verify.THREADS", 1)  # two readers of one file in memory share its position
    store = Store(f"memory://{tmp_path.name}")
    rule = '[select]\nfrom = 2\nby = "confidence"\non_class = false\ninside = false\n'
    make_planted(store, {0: 12, 4: 8}, 7, rule)
    select(store, SelectOptions(), quiet)
    export_run(store, str(tmp_path / name_of(form)), form, everything=True, progress=quiet)
    kept = [record for n in range(3) for record in read_records(store.folder("selected"), f"rare-{n:06d}")]
    images = read_back(tmp_path / name_of(form), form)
    assert {key: label for key, (_, label) in images.items()} == {each.key: each.class_id for each in kept}
    assert all(np.array_equal(pixels, planted_image(key)) for key, (pixels, _) in images.items())
    assert len(kept) == 20


def test_parquet_is_written_in_files_and_groups(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_IMAGES", 4)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1000)
    monkeypatch.setattr(parquet, "FILE_BYTES", 8000)
    export(out, tmp_path / "images", "parquet", everything=True)
    files = sorted(path.name for path in (tmp_path / "images" / "data").iterdir())
    assert files == [f"train-{number:05d}-of-{len(files):05d}.parquet" for number in range(len(files))]
    assert len(files) > 2
    metadata = [pq.ParquetFile(tmp_path / "images" / "data" / name).metadata for name in files]
    groups = [each.row_group(number).num_rows for each in metadata for number in range(each.num_row_groups)]
    assert max(groups) == 4 and sum(groups) == 40 and len(groups) > len(files)
    check(read_back(tmp_path / "images", "parquet"), KEYS, out)


def test_groups_end_after_so_many_bytes(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1)
    export(out, tmp_path / "images", "parquet", everything=True)
    (file,) = (tmp_path / "images" / "data").iterdir()
    assert pq.ParquetFile(file).metadata.num_row_groups == 40


Damage = Callable[[Path], object]


def _cut_tar(out: Path) -> None:
    tar = out / "shards" / "rare-000002.tar"
    tar.write_bytes(tar.read_bytes()[:5000])


def _other_pixel(out: Path) -> None:
    tar = out / "shards" / "rare-000002.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b"IDAT") + 12] ^= 1
    tar.write_bytes(data)


def _swap_tars(out: Path) -> None:
    (out / "shards" / "rare-000002.tar").write_bytes((out / "shards" / "rare-000003.tar").read_bytes())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "_SUCCESS").unlink(), "is not a finished run: it has no _SUCCESS"),
        (_cut_tar, r"shards/rare-000002\.tar: tar is truncated"),
        (_other_pixel, r"shards/rare-000002\.tar: the image of sample 0000020000\d is damaged; run verify"),
        (_swap_tars, r"shards/rare-000002\.tar: it has no sample 0000020000\d; run verify"),
    ],
)
def test_damage_leaves_nothing(form: str, damage: Damage, message: str, out: Path, tmp_path: Path) -> None:
    own = shutil.copytree(out, tmp_path / "own")
    damage(own)
    with pytest.raises((OutputError, ShardError), match=message):
        export(own, tmp_path / "new" / name_of(form), form)
    assert not list((tmp_path / "new").glob("*"))


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupt_leaves_nothing(form: str, out: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        assert (stage, total) == ("images", 33)
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(Store(str(out)), str(tmp_path / "new" / name_of(form)), form, progress=interrupt)
    assert not list((tmp_path / "new").iterdir())


def test_what_a_killed_export_left_is_removed(out: Path, tmp_path: Path) -> None:
    (tmp_path / ".rarefy-tmp-killed" / "images").mkdir(parents=True)
    (tmp_path / ".rarefy-tmp-killed" / "lock").touch()
    export(out, tmp_path / "images", "imagefolder")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("dest", "form", "message"),
    [
        ("s3://bucket/images", "imagefolder", "'s3://bucket/images' is not a local path; export to one and copy it"),
        ("images", "npz", "'images' is not a file's name that ends in .npz"),
        ("used", "parquet", "'used' is not free: something is there already; choose another folder"),
        ("used.npz", "npz", "'used.npz' is not free: something is there already; choose another file"),
        ("used.npz/images", "imagefolder", "'used.npz/images' cannot be written (File exists)"),
    ],
)
def test_where_it_cannot_be_written(
    dest: str, form: str, message: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "used.npz").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RarefyError) as error:
        export(out, Path(dest) if "://" not in dest else dest, form)  # type: ignore[arg-type]
    assert str(error.value).startswith(f"dest: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["used", "used.npz"]
    assert (tmp_path / "used.npz").read_bytes() == b"mine"


def test_an_empty_folder_may_be_there(out: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    export(out, tmp_path / "images", "imagefolder")
    assert len(list((tmp_path / "images").iterdir())) == 5


def test_the_command(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = str(tmp_path / "images")
    assert main(["export", str(out), dest, "--format", "parquet", "--where", "confidence < 0.6", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["format"], result["dest"], result["classes"]) == ("parquet", dest, 3)
    assert result["images"] + sum(result["left_out"].values()) == 40
    assert main(["export", str(out), dest]) == 2
    assert "dest: " in capsys.readouterr().err
    assert main(["export", str(out), str(tmp_path / "every"), "--all"]) == 0
    assert capsys.readouterr().out == f"exported 40 images of 3 classes to {tmp_path / 'every'} (imagefolder)\n"
