"""The model's training images: found by what the model folder says, told by their hash, and searched for copies."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from small_project import write_project
from small_run import MANIFEST, quiet

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.inputs import training
from rarefy.audit.inputs.training import load_training
from rarefy.audit.schema import read_result
from rarefy.errors import DataError, ManifestError
from rarefy.manifest import Manifest
from rarefy.models.folder import ModelFolder, find_model, provenance
from rarefy.shards.store import Store
from rarefy.training.images import project_images
from rarefy.training.output import Places, _relative, write_json
from rarefy.training.project import load_project

Blob = Callable[[int, int], tuple[NDArray[np.uint8], int, float]]
CommitImages = Callable[[Store, str, Blob], Manifest]
WEIGHTS = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """A model folder whose provenance says what ``rarefy train`` would: 52 photos, and 8 that are held out."""
    project = load_project(write_project(tmp_path))
    images = project_images(project)
    folder = project.model(images.train.source.class_names)
    record = {"data_sha256": images.sha256, "data": "../../photos", "held_out_data": "reference"}
    record |= {"weights_sha256": WEIGHTS, "held_out": {"held_out_loss": 0.1}}
    write_json(folder.path / "provenance.json", {"diffusion": record})
    return dataclasses.replace(folder, files={"unet": "unet.safetensors", "reference": "reference"})


def change(model: ModelFolder, **values: object) -> None:
    """Change the provenance; None deletes."""
    path = model.path / "provenance.json"
    record = json.loads(path.read_text())["diffusion"] | values
    write_json(path, {"diffusion": {key: value for key, value in record.items() if value is not None}})


def load(model: ModelFolder, data: str | None = None, weights: str = WEIGHTS):
    run = SimpleNamespace(manifest=SimpleNamespace(preset=model), weights=(weights, None))
    return load_training(run, data, quiet)  # type: ignore[arg-type]  # what it uses of a run


def test_the_model_folder_names_its_training_images(model: ModelFolder, capsys: pytest.CaptureFixture[str]) -> None:
    found = load(model)
    assert (len(found.images), found.whole) == (52, True)
    assert found.sha256 == json.loads((model.path / "provenance.json").read_text())["diffusion"]["data_sha256"]
    assert found.source.endswith("photos")
    assert found.images.class_names == model.labels
    assert all((model.path.parents[1] / "photos" / key).exists() for key in found.images.keys)
    assert capsys.readouterr().err == ""


def test_an_older_model_folder_is_explained_by_its_train_toml(
    model: ModelFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    change(model, data=None, held_out_data=None)
    assert load(model).whole
    (model.path.parent / "train.toml").rename(model.path.parent / "other.toml")
    assert load(model) is None
    assert "does not say where" in capsys.readouterr().err


def test_changed_images_are_not_the_training_set(model: ModelFolder, capsys: pytest.CaptureFixture[str]) -> None:
    photos = model.path.parents[1] / "photos"
    next(photos.glob("cat/*.png")).unlink()
    assert load(model) is None
    assert "photos has changed since the model was trained on it" in capsys.readouterr().err
    given = load(model, str(photos))
    assert (len(given.images), given.whole) == (51, False)
    assert "another hash" in capsys.readouterr().err
    photos.rename(photos.with_name("away"))
    assert load(model) is None
    assert "no images are at" in capsys.readouterr().err
    change(model, data_sha256=None)
    assert load(model, str(photos.with_name("away"))).whole is False
    assert "names no training data" in capsys.readouterr().err


def test_what_cannot_be_used_is_one_line(model: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^training: .*absent"):
        load(model, str(tmp_path / "absent"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    (tmp_path / "0.png").rename(tmp_path / "one" / "cat" / "0.png")
    with pytest.raises(DataError, match="'1 images' is not at least 2 images"):
        load(model, str(tmp_path / "one"))


def test_other_weights_were_trained_on_other_images(model: ModelFolder) -> None:
    assert load(model, weights="0" * 64) is None


def test_embedded_models_have_a_part_of_theirs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = find_model("fashion-mnist-28")
    record = provenance(preset)["unet"]
    monkeypatch.setattr(training, "read_json", lambda path: {"unet": record | {"data": "/nowhere"}})
    found = load(preset, weights=record["weights_sha256"])
    assert (len(found.images), found.whole, found.images.keys[:2]) == (10_000, False, ("0", "1"))
    assert found.sha256 == provenance(preset)["reference"]["train"]["sha256"]
    line = "no images are at /nowhere; give the model's training set with --training DATA (searched instead: 10,000 of"
    assert line in capsys.readouterr().err


def test_training_says_where_its_images_are(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "model"
    assert _relative(tmp_path / "photos", Places.in_model(mine, "diffusion")) == "../../photos"
    assert _relative(None, Places.in_model(mine, "diffusion")) is None


def pictures(seed: int, count: int) -> NDArray[np.uint8]:
    """(N, 28, 28) random smooth pictures."""
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(count, 28, 28)), (0, 2, 2), mode="nearest")
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def write_classes(folder: Path, seed: int, count: int) -> str:
    """Class folders of the classes in the run."""
    for class_id in (0, 1, 4):
        (folder / str(class_id)).mkdir(parents=True)
        for row, image in enumerate(pictures(seed + class_id, count)):
            Image.fromarray(image).save(folder / str(class_id) / f"{row:02d}.png")
    return str(folder)


def test_copies_of_the_training_set_are_found(tmp_path: Path, commit_images: CommitImages) -> None:
    """Six of the 24 images are training images, each changed; of two others one is the other with noise."""

    def noisy(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        noise = np.random.default_rng(0).normal(0, 3, image.shape)
        return np.clip(image + noise, 0, 255).astype(np.uint8)

    def source(class_id: int, ordinal: int) -> tuple[NDArray[np.uint8], int, float]:
        learnt, own = pictures(10 + class_id, 30), pictures(20 + class_id, 30)
        images = {0: noisy(learnt[:1]), 1: learnt[1:2, :, ::-1], 3: noisy(own[2:3])}
        return images.get(ordinal, own[ordinal : ordinal + 1]), class_id, 0.9

    store, trained = Store(str(tmp_path / "out")), write_classes(tmp_path / "trained", 10, 30)
    commit_images(store, MANIFEST, source)
    options = AuditOptions(reference=write_classes(tmp_path / "real", 30, 30), training=trained)
    result = run_audit(store, options, quiet)
    shown = {(row["kind"], row["other"]) for row in result["copies"] if row["kind"] != "near"}
    assert shown == {("training", f"{class_id}/{row:02d}.png") for class_id in (0, 1, 4) for row in (0, 1)}
    assert sum(row["kind"] == "near" for row in result["copies"]) == 3
    assert all(row["ratio"] < 1 for row in result["copies"])
    metrics = result["metrics"]
    assert [metrics[name]["value"] for name in ("copies", "duplicates")] == [6 / 24, 6 / 24]
    assert [metrics[name]["floor"] for name in ("copies", "duplicates")] == [0, 0]
    assert metrics["authenticity"]["value"] <= metrics["authenticity"]["floor"]
    assert metrics["ct"]["value"] < metrics["ct"]["floor"]
    assert (result["memorization"]["whole"], result["memorization"]["count"]) == (False, 180)
    assert {row["class_name"]: row["copies"] for row in result["per_class"]} == {
        "t-shirt/top": 2 / 12, "trouser": 2 / 8, "coat": 2 / 4,
    }  # fmt: skip
    samples = pq.read_table(tmp_path / "out" / "audit" / "samples.parquet").to_pylist()
    assert sum(row["copy_ratio"] < 1 for row in samples) == 6
    assert read_result(store).to_json() == result


def test_real_images_that_were_all_trained_on_calibrate_nothing(
    tmp_path: Path, commit_run: Callable[[Store, str], Manifest]
) -> None:
    store, real = Store(str(tmp_path / "out")), write_classes(tmp_path / "real", 30, 30)
    commit_run(store, MANIFEST)
    metrics = run_audit(store, AuditOptions(reference=real, training=real), quiet)["metrics"]
    assert [metrics[name]["floor"] for name in ("copies", "duplicates", "authenticity")] == [None] * 3
    assert "ct" not in metrics


def test_training_images_alone_are_not_enough(tmp_path: Path, commit_run: Callable[[Store, str], Manifest]) -> None:
    """A model without real images of its own: there is nothing to calibrate by."""
    text = MANIFEST.replace("fashion-mnist-28", "adm-imagenet-64")
    text = text.replace("preset", 'checkpoint = "none.pt"\nclassifier = "none.pt"\npreset')
    store = Store(str(tmp_path / "out"))
    commit_run(store, text)
    with pytest.raises(ManifestError, match="give --reference too"):
        run_audit(store, AuditOptions(training=str(tmp_path)), quiet)
