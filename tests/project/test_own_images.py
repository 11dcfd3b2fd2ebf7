"""From a folder of images to an audited set of rare ones, by the commands that a new user types."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from own_images import SHAPES, write_digits, write_shapes
from PIL import Image

from rarefy.audit.features.extractors import extract_outputs, load_extractor
from rarefy.audit.metrics.distances import frechet_distance
from rarefy.cli import main
from rarefy.images import LabelledImages, load_images
from rarefy.models.folder import read_model_folder
from rarefy.training.project import load_project

pytestmark = pytest.mark.slow(40)


@dataclass(frozen=True)
class Hurry:
    """A user's edits. seen: images for diffusion, classifier and judge; learning: factor of the learning rates."""

    seen: tuple[int, int, int]
    batch: int
    warmup: int
    learning: float


# The digits are learned far beyond what the checks ask for, the shapes only just: with fewer images they may fail.
SHAPES_HURRY, DIGITS_HURRY = Hurry((10_000, 5000, 3000), 32, 500, 1.0), Hurry((3000, 2000, 1500), 16, 300, 2.0)


def shorten(project: Path, hurry: Hurry) -> None:
    """Edit the two files as a user in a hurry would: small batches, few images, few steps."""
    path, text = project / "train.toml", (project / "train.toml").read_text()
    head, *tables = re.split(r"(?m)^(?=\[(?:diffusion|classifier|judge)\]$)", text)
    for number, (table, images) in enumerate(zip(tables, hurry.seen, strict=True)):
        for name, value in {"images": images, "warmup": hurry.warmup, "batch": hurry.batch}.items():
            table = re.sub(rf"(?m)^{name} = \S+", f"{name} = {value}", table)
        tables[number] = re.sub(r"(?m)^lr = (\S+)", lambda found: f"lr = {hurry.learning * float(found[1])}", table)
    path.write_text("".join([head, *tables]))
    path, text = project / "rare.toml", (project / "rare.toml").read_text()
    for old, new in (("steps = 50", "steps = 15"), ("to = 200", "to = 120"), (r"^per_class = \d+", "per_class = 20")):
        text = re.sub(f"(?m){old}", new, text)
    path.write_text(text)


def made(out: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """Images (N, C, H, W) and class ids of all shards of a run."""
    images, labels = [], []
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                if member.name.endswith(".png"):
                    images.append(np.atleast_3d(np.asarray(Image.open(io.BytesIO(content.read())))).transpose(2, 0, 1))
                elif member.name.endswith(".cls"):
                    labels.append(int(content.read()))
    return np.stack(images), labels


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a user. Restores torch's thread count, which training changes."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    yield tmp_path
    torch.set_num_threads(threads)


def follow(folder: Path, init: list[str], hurry: Hurry, made_by_class: dict[str, int]) -> None:
    """Type the three commands of docs/QUICKSTART.md. An untrained model fails every check of its quality."""
    assert main(["init", "photos", "--out", "mine", *init]) == 0
    shorten(folder / "mine", hurry)
    assert main(["train", "mine/train.toml", "--threads", "1"]) == 0
    assert main(["run", "mine/rare.toml", "--out", "out", "--actors", "1", "--cpus-per-actor", "1"]) == 0

    model = read_model_folder(folder / "mine" / "model")
    images, labels = made(folder / "out")
    assert Counter(model.class_names[label] for label in labels) == made_by_class
    trained = json.loads((folder / "mine/model/provenance.json").read_text())
    audit = json.loads((folder / "out/audit/metrics.json").read_text())["metrics"]
    chance = 1 / len(model.class_names)
    assert trained["judge"]["test_accuracy"]["t=0"] > 0.75
    assert trained["quality"]["on_class"] > 2 * chance
    assert audit["on_class_rate"]["value"] > 1.8 * chance
    assert (
        distance_over_noise(images, load_images(folder / "mine/model/reference", images.shape[2], images.shape[1]))
        < 0.9
    )


def distance_over_noise(images: NDArray[np.uint8], real: LabelledImages) -> float:
    """Frechet distance between images and real ones, over that between noise and the real ones."""
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    of_made, of_noise, of_real = (extract_outputs(part, load_extractor()) for part in (images, noise, real.images))
    return frechet_distance(of_made, of_real) / frechet_distance(of_noise, of_real)


def test_long_tailed_colour_images(folder: Path) -> None:
    """Shapes of 32 px; training at 16 px takes a quarter of the time. Every class is filled up to 120 images."""
    counts = (200, 120, 70, 40, 20)
    write_shapes(folder / "photos", 32, counts)
    made_by_class = {name: 120 - n for name, n in zip(SHAPES, counts, strict=True) if n < 120}
    follow(folder, ["--size", "16"], SHAPES_HURRY, made_by_class)


def test_balanced_grey_images(folder: Path) -> None:
    write_digits(folder / "photos")
    follow(folder, ["--held-out", "0.2"], DIGITS_HURRY, {str(digit): 20 for digit in range(10)})
    settings = load_project(folder / "mine" / "train.toml")
    assert (settings.image_size, settings.channels, settings.parts["diffusion"].flip) == (8, 1, False)
