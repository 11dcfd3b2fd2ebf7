"""The reference's classes are the model's by name, whatever the order of the folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted_images import write_tar

from rarefy.audit.inputs.reference import Reference, disjoint_rows, load_reference, read_embedded, rows_within
from rarefy.errors import DataError
from rarefy.generate.score import score_images
from rarefy.images import LabelledImages
from rarefy.models.adm import Classifier
from rarefy.models.checkpoint import read_state
from rarefy.models.folder import ModelFolder, find_model
from rarefy.shards.writer import encode_png

MODEL = find_model("fashion-mnist-28")
FOLDER_NAMES = [name.title().replace("/", "_").replace(" ", "-") for name in MODEL.class_names]


@pytest.fixture(scope="module")
def test_images() -> LabelledImages:
    """Twenty test images of each class."""
    data = read_embedded(MODEL, "reference")
    return data.take(np.concatenate([np.flatnonzero(data.labels == class_id)[:20] for class_id in range(10)]))


@pytest.fixture
def by_name(tmp_path: Path, test_images: LabelledImages) -> Path:
    """The images in folders whose alphabetical order is not the model's."""
    for row, label in enumerate(test_images.labels):
        folder = tmp_path / "real" / FOLDER_NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test_images.images[row, 0]).save(folder / f"{row:03d}.png")
    return tmp_path / "real"


def expected_labels(test_images: LabelledImages) -> dict[bytes, int]:
    return {image.tobytes(): int(label) for image, label in zip(test_images.images, test_images.labels, strict=True)}


def test_folders_by_name_have_the_real_images_on_class_rate(by_name: Path, test_images: LabelledImages) -> None:
    assert sorted(FOLDER_NAMES) != FOLDER_NAMES
    reference = load_reference(MODEL, str(by_name))
    assert reference is not None and reference.real.class_names == MODEL.class_names
    truth = expected_labels(test_images)
    for half in (reference.real, reference.held_out):
        assert [truth[image.tobytes()] for image in half.images] == half.labels.tolist()
    classifier = Classifier(MODEL.classifier).eval()
    classifier.load_state_dict(read_state(MODEL.file("classifier")))
    labels = torch.from_numpy(reference.real.labels)
    scores = score_images(classifier, torch.from_numpy(reference.real.images), labels)
    # By the folders' order it would be 0.37.
    assert (scores.predicted_id == labels).double().mean() > 0.85


def test_other_names_are_refused_with_both_lists(by_name: Path) -> None:
    (by_name / "Bag").rename(by_name / "Purse")
    with pytest.raises(DataError, match=r"'Purse' is not in the model\. The data has .*the model has .*'bag'"):
        load_reference(MODEL, str(by_name))


def model_folder(path: Path) -> ModelFolder:
    return ModelFolder(
        name="own",
        description="",
        unet=MODEL.unet,
        classifier=MODEL.classifier,
        schedule=MODEL.schedule,
        recommended_scale=1,
        class_names=MODEL.class_names,
        path=path,
        files={"reference": "reference"},
    )


def test_the_held_out_images_of_a_model_folder(tmp_path: Path, test_images: LabelledImages) -> None:
    model = model_folder(tmp_path)
    members = {}
    for row, label in enumerate(test_images.labels):
        members[f"{row:05d}.png"] = encode_png(test_images.images[row])
        members[f"{row:05d}.cls"] = str(label).encode()
        members[f"{row:05d}.json"] = f'{{"class_name": "{MODEL.class_names[label]}"}}'.encode()
    write_tar(tmp_path / "reference" / "held-out-000000.tar", members)
    reference = load_reference(model, None)
    assert reference is not None
    assert reference.source == "held-out images of the model (random halves of each class)"
    truth = expected_labels(test_images)
    for half in (reference.real, reference.held_out):
        assert np.bincount(half.labels).tolist() == [10] * 10
        assert [truth[image.tobytes()] for image in half.images] == half.labels.tolist()


def test_a_model_without_reference_images(tmp_path: Path) -> None:
    model = model_folder(tmp_path)
    assert load_reference(ModelFolder(**(vars(model) | {"files": {}})), None) is None
    with pytest.raises(DataError, match="reference' is not a folder"):
        load_reference(model, None)


def test_a_run_of_some_classes_is_compared_with_those(test_images: LabelledImages) -> None:
    images = LabelledImages(
        test_images.images, test_images.labels, test_images.class_names, tuple(map(str, range(len(test_images))))
    )
    halves = images.take(np.arange(0, 200, 2)), images.take(np.arange(1, 200, 2))
    reference = Reference(*halves, "a test")
    chosen = reference.of_classes({4, 8})
    for whole, part in ((reference.real, chosen.real), (reference.held_out, chosen.held_out)):
        rows = np.isin(whole.labels, [4, 8])
        assert part.labels.tolist() == whole.labels[rows].tolist()
        np.testing.assert_array_equal(part.images, whole.images[rows])
    assert {*chosen.left_out} == {*images.keys} - {*chosen.real.keys, *chosen.held_out.keys}
    assert {*chosen.other_keys} == {*images.keys} - {*chosen.real.keys}
    assert reference.of_classes(range(10)) is reference
    with pytest.raises(DataError, match="'a test' is not a set with at least two images of a class of the run"):
        reference.of_classes({11})


def test_draws_are_disjoint_and_have_the_counts() -> None:
    labels = np.repeat([0, 1, 2], [50, 31, 9])
    draws = disjoint_rows(labels, {0: 10, 1: 5}, 10)
    assert len(draws) == 5  # class 0 has no more
    assert len(set(np.concatenate(draws).tolist())) == 5 * 15
    assert all(np.bincount(labels[rows]).tolist() == [10, 5] for rows in draws)
    assert draws[0].tolist() == rows_within(labels, {0: 10, 1: 5}).tolist()
    assert len(disjoint_rows(labels, {0: 1}, 10)) == 10
    assert len(disjoint_rows(labels, {0: 30}, 10)) == 1
