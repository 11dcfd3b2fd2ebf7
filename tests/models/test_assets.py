"""The files that ship with the package match their provenance, and the networks work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rarefy.audit.inputs.reference import read_embedded
from rarefy.diffusion.schedule import make_schedule
from rarefy.guidance.base import entropy
from rarefy.images import LabelledImages
from rarefy.models.adm import Classifier
from rarefy.models.checkpoint import load_network
from rarefy.models.file_hash import file_sha256
from rarefy.models.folder import LIBRARY, fast_errors, library, provenance
from rarefy.models.load import Models, load_models
from rarefy.training.held_out import accuracy_at

PRESET = "fashion-mnist-28"


def load(name: str) -> Models:
    return load_models(library()[name], None, None, (None, None), torch.device("cpu"))


@pytest.fixture(scope="module")
def models() -> Models:
    return load(PRESET)


def test_all_assets_stay_under_40_megabytes() -> None:
    folder = LIBRARY
    assert sum(file.stat().st_size for file in folder.rglob("*") if "__pycache__" not in file.parts) < 40e6


@pytest.mark.parametrize("network", ["unet", "unet-uncond", "classifier", "classifier-ect", "judge"])
def test_weights_are_those_of_their_provenance(network: str) -> None:
    assert (
        file_sha256(LIBRARY / PRESET / f"{network}.safetensors")
        == provenance(library()[PRESET])[network]["weights_sha256"]
    )


def test_the_error_of_fast_was_measured_on_the_weights_that_ship() -> None:
    hashes = [file_sha256(LIBRARY / PRESET / f"{network}.safetensors") for network in ("unet", "classifier")]
    errors = fast_errors(hashes[0], hashes[1])
    assert errors is not None and 0 < errors["eps"][0] < errors["eps"][1] < 0.1
    assert 0 < errors["gradient"][0] < errors["gradient"][1] < 0.1 and 0 < errors["pixels_above_1"] < 0.1
    assert fast_errors(hashes[1], hashes[0]) is None


@pytest.mark.parametrize("split", ["test", "train"])
def test_reference_images_are_balanced_and_those_of_their_provenance(split: str) -> None:
    data = read_embedded(library()[PRESET], {"test": "reference", "train": "held_out"}[split])
    assert data.images.shape == (10_000, 1, 28, 28) and data.images.dtype == np.uint8
    assert np.bincount(data.labels).tolist() == [1000] * 10
    assert data.class_names == library()[PRESET].class_names
    assert data.sha256() == provenance(library()[PRESET])["reference"][split]["sha256"]


def test_classifier_is_right_on_nine_of_ten_clean_images(models: Models) -> None:
    test = read_embedded(library()[PRESET], "reference")
    first = LabelledImages(test.images[:2000], test.labels[:2000], test.class_names)
    assert accuracy_at(models.classifier, first, make_schedule("cosine", 1000), 0) >= 0.90


def test_entropy_constraint_training_raises_the_entropy_of_clean_images(models: Models) -> None:
    """ED-DPM trains it to be as accurate as the plain one, and less certain."""
    ect, test = load("fashion-mnist-28-ect").classifier, read_embedded(library()[PRESET], "reference")
    x_0, t = torch.from_numpy(test.images[:500]).float() / 127.5 - 1, torch.zeros(500)
    constrained, plain = (entropy(network(x_0, t).log_softmax(-1)).mean() for network in (ect, models.classifier))
    assert constrained > plain
    first = LabelledImages(test.images[:2000], test.labels[:2000], test.class_names)
    assert accuracy_at(ect, first, make_schedule("cosine", 1000), 0) >= 0.90


def test_unet_predicts_the_noise_of_unseen_images_and_uses_their_class(models: Models) -> None:
    """At t = 500 a network that knew nothing would err by 1; the right class must beat a wrong one."""
    test, schedule = read_embedded(library()[PRESET], "reference"), make_schedule("cosine", 1000)
    x_0 = torch.from_numpy(test.images[:64]).float() / 127.5 - 1
    y = torch.from_numpy(test.labels[:64])
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    abar = float(schedule.alphas_cumprod[500])
    x_t, t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise, torch.full((64,), 500.0)
    right, wrong = ((models.unet(x_t, t, labels)[:, :1] - noise).square().mean() for labels in (y, (y + 5) % 10))
    assert right < 0.1 and right < wrong


def test_the_unconditional_unet_predicts_noise_about_as_well_without_a_class(models: Models) -> None:
    test, schedule = read_embedded(library()[PRESET], "reference"), make_schedule("cosine", 1000)
    x_0 = torch.from_numpy(test.images[:64]).float() / 127.5 - 1
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    abar = float(schedule.alphas_cumprod[500])
    x_t, t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise, torch.full((64,), 500.0)
    right = (models.unet(x_t, t, torch.from_numpy(test.labels[:64]))[:, :1] - noise).square().mean()
    without = (load("fashion-mnist-28-uncond").unet(x_t, t)[:, :1] - noise).square().mean()
    assert right < without < 1.1 * right


def test_the_judge_is_right_on_nine_of_ten_test_images() -> None:
    judge, _ = load_network(lambda: Classifier(library()[PRESET].classifier), library()[PRESET].file("judge"))
    test = read_embedded(library()[PRESET], "reference")
    first = LabelledImages(test.images[:3000], test.labels[:3000], test.class_names)
    assert accuracy_at(judge, first, make_schedule("cosine", 1000), 0) >= 0.92
