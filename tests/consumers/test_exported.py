"""Libraries that read what ``rarefy export`` writes, by the commands and snippets in docs/EXPORT.md."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from doc_blocks import ROOT, commands, find_blocks
from libraries import Run, Snippet
from PIL import Image
from planted_run import is_accepted, planted_confidence

from rarefy.audit.inputs.dataset import read_manifest
from rarefy.cli import main
from rarefy.images import load_images
from rarefy.shards.store import Store


@pytest.fixture(scope="module")
def exported(folder: Path, demo: Run) -> Run:
    """Runs the page's commands in the folder; the images that the first two export."""
    (block,) = (each for each in find_blocks(ROOT / "docs" / "EXPORT.md") if "rarefy export" in each.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands(block):
            assert main(words[1:]) == 0
    return Run(folder, {key: label for key, label in demo.labels.items() if is_accepted(key)})


def test_torchvision(exported: Run, snippet: Snippet) -> None:
    images = snippet("ImageFolder")["folder"]
    classes = json.loads((exported.folder / "rare-images" / "classes.json").read_text())
    ids = {entry["folder"]: entry["id"] for entry in classes}
    assert images.classes == sorted(ids) and images[0][0].mode == "L"
    exported.check([(np.array(image), ids[images.classes[target]]) for image, target in images])


def test_datasets_reads_class_folders(exported: Run, snippet: Snippet) -> None:
    pytest.importorskip("datasets")
    train = snippet("load_dataset", ("out/demo", "rare-images"), *_columns())["train"]
    assert train.features["label"].names[0] == "t-shirt/top" and {image.mode for image in train["image"]} == {"L"}
    exported.check([(np.array(row["image"]), row["label"]) for row in train])
    assert all(row["confidence"] == planted_confidence(row["key"]) for row in train)


def test_datasets_reads_parquet(exported: Run, snippet: Snippet) -> None:
    pytest.importorskip("datasets")
    train = snippet("load_dataset", ("out/demo", "rare-parquet"), *_columns())["train"]
    unsure = {key: label for key, label in exported.labels.items() if planted_confidence(key) < 0.6}
    assert train.features["label"].names[9] == "ankle boot" and {image.mode for image in train["image"]} == {"L"}
    Run(exported.folder, unsure).check([(np.array(row["image"]), row["label"]) for row in train])


def _columns() -> tuple[tuple[str, str], ...]:
    """Changes of the snippet: exported columns are named otherwise."""
    return ('["png"]', '["image"]'), ('["cls"]', '["label"]'), ('["json"]["entropy"]', '["entropy"]')


def test_polars_and_duckdb_read_the_images(exported: Run) -> None:
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    rows = polars.read_parquet(exported.folder / "rare-parquet" / "data").to_dicts()
    files = [(np.array(Image.open(io.BytesIO(row["image"]["bytes"]))), row["label"]) for row in rows]
    unsure = {key: label for key, label in exported.labels.items() if planted_confidence(key) < 0.6}
    Run(exported.folder, unsure).check(files)
    query = f"select image.path, label from '{exported.folder}/rare-parquet/data/*.parquet'"
    assert dict(duckdb.sql(query).fetchall()) == {f"{key}.png": label for key, label in unsure.items()}


def test_npz(exported: Run, snippet: Snippet) -> None:
    arrays = snippet("np.load")["arrays"]
    assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_0"].shape == (len(exported.labels), 28, 28, 3)
    assert (arrays["arr_0"] == arrays["arr_0"][..., :1]).all()
    exported.check(list(zip(arrays["arr_0"][..., 0], arrays["arr_1"], strict=True)))


def test_npz_can_be_streamed(exported: Run) -> None:
    """guided-diffusion's evaluator reads the header of a member, then as many bytes as it needs."""
    with zipfile.ZipFile(exported.folder / "rare.npz") as archive, archive.open("arr_0.npy") as stream:
        assert np.lib.format.read_magic(stream) == (1, 0)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        first = np.frombuffer(stream.read(int(np.prod(shape[1:]))), dtype).reshape(shape[1:])
    assert not fortran_order and np.array_equal(first, np.load(exported.folder / "rare.npz")["arr_0"][0])


@pytest.mark.parametrize(("name", "where"), [("rare-images", 1.0), ("rare-parquet", 0.6)])
def test_rarefy_reads_them(name: str, where: float, exported: Run) -> None:
    """As real images: the table next to the folders is no data, and the classes are the model's."""
    model = read_manifest(Store(str(exported.folder / "out" / "demo"))).preset
    images = load_images(exported.folder / name, 28, 1, classes=model.classes)
    kept = {key: label for key, label in exported.labels.items() if planted_confidence(key) < where}
    found = [(pixels[0], label) for pixels, label in zip(images.images, images.labels, strict=True)]
    Run(exported.folder, kept).check(found)
