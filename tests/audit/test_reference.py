"""The reference's classes are the model's by name, whatever the order of the folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted_images import write_tar

from rarefy.audit.inputs.reference import load_reference, read_embedded
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
