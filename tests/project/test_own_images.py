"""From a folder of images to an audited set of rare ones, by the commands that a new user types."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from own_images import SHAPES, write_digits, write_shapes
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rarefy.audit.features.extractors import Features, extract_outputs, load_extractor
from rarefy.audit.metrics.distances import frechet_distance
from rarefy.cli import main
from rarefy.images import load_images
from rarefy.models.folder import read_model_folder
from rarefy.training.project import load_project

pytestmark = pytest.mark.slow
SEEN = {"diffusion": 10_000, "classifier": 6000, "judge": 3000}


def shorten(project: Path) -> None:
    """Edit the two files as a user in a hurry would: small batches, few images, few steps."""
    path, text = project / "train.toml", (project / "train.toml").read_text()
    head, *tables = re.split(r"(?m)^(?=\[(?:diffusion|classifier|judge)\]$)", text)
    for number, (table, seen) in enumerate(zip(tables, SEEN.values(), strict=True)):
        changed = re.sub(r"(?m)^images = \S+", f"images = {seen}", table)
        changed = re.sub(r"(?m)^warmup = \S+", "warmup = 500", changed)
        tables[number] = re.sub(r"(?m)^batch = \S+", "batch = 32", changed)
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


def recognised(data: Path, size: int, channels: int, features: Features, labels: list[int]) -> float:
    """Fraction of images that a classifier which rarefy did not train, fitted to the real images, finds on class."""
    real = load_images(data, size, channels)
    judge = make_pipeline(StandardScaler(), RidgeClassifier(100.0))
    judge.fit(extract_outputs(real.images, load_extractor()), real.labels)
    return float((judge.predict(features) == labels).mean())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a user. Restores torch's thread count, which training changes."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    yield tmp_path
    torch.set_num_threads(threads)


def follow(folder: Path, init: list[str], made_by_class: dict[str, int]) -> None:
    """Type the three commands. An untrained model fails every check of the result (docs/QUICKSTART.md is the same)."""
    assert main(["init", "photos", "--out", "mine", *init]) == 0
    shorten(folder / "mine")
    assert main(["train", "mine/train.toml", "--threads", "1"]) == 0
    assert main(["run", "mine/rare.toml", "--out", "out", "--actors", "1", "--cpus-per-actor", "1"]) == 0

    model = read_model_folder(folder / "mine" / "model")
    quality = json.loads((folder / "mine/model/provenance.json").read_text())
    metrics = json.loads((folder / "out/audit/metrics.json").read_text())["metrics"]
    images, labels = made(folder / "out")
    features = extract_outputs(images, load_extractor())
    chance = 1 / len(model.class_names)
    assert Counter(model.class_names[label] for label in labels) == made_by_class
    assert quality["judge"]["test_accuracy"]["t=0"] > 0.75
    assert quality["quality"]["on_class"] > 2 * chance
    assert metrics["on_class_rate"]["value"] > 2 * chance
    assert recognised(folder / "photos", model.image_size, model.channels, features, labels) > 2 * chance
    real = load_images(folder / "mine/model/reference", model.image_size, model.channels)
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    of_real, of_noise = (extract_outputs(pixels, load_extractor()) for pixels in (real.images, noise))
    assert frechet_distance(features, of_real) < 0.7 * frechet_distance(of_noise, of_real)


def test_long_tailed_colour_images(folder: Path) -> None:
    """Shapes of 32 px; training at 16 px takes a quarter of the time. Every class is filled up to 120 images."""
    counts = (200, 120, 70, 40, 20)
    write_shapes(folder / "photos", 32, counts)
    follow(folder, ["--size", "16"], {name: 120 - n for name, n in zip(SHAPES, counts, strict=True) if n < 120})


def test_balanced_grey_images(folder: Path) -> None:
    write_digits(folder / "photos")
    follow(folder, ["--held-out", "0.2"], {str(digit): 20 for digit in range(10)})
    settings = load_project(folder / "mine" / "train.toml")
    assert (settings.image_size, settings.channels, settings.parts["diffusion"].flip) == (8, 1, False)
