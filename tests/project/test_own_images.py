"""From a folder of images to an audited set of rare ones, by the commands that a new user types."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from own_images import write_digits, write_shapes
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rarefy.audit.features.extractors import Features, extract_outputs, load_extractor
from rarefy.cli import main
from rarefy.images import load_images

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
    path.write_text(re.sub(r"(?m)^steps = 50", "steps = 15", text))


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
    """Fraction of images that a classifier fitted to the real images, which rarefy did not train, assigns to their class."""
    real = load_images(data, size, channels)
    judge = make_pipeline(StandardScaler(), RidgeClassifier(100.0))
    judge.fit(extract_outputs(real.images, load_extractor()), real.labels)
    return float((judge.predict(features) == labels).mean())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, as a user has one."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    monkeypatch.setattr("rarefy.project.init.ENOUGH_S", 0.0, raising=False)
    yield tmp_path  # type: ignore[misc]
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["shapes", "digits"])
def test_three_commands(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, size, channels = folder / "photos", 16 if kind == "shapes" else 8, 3 if kind == "shapes" else 1
    data.mkdir()
    if kind == "shapes":  # 32 px; training at 16 px takes a quarter of the time
        write_shapes(data, 32, (200, 120, 70, 40, 20))
    else:
        write_digits(data)
    assert main(["init", "photos", "--out", "mine", *(["--size", "16"] if kind == "shapes" else [])]) == 0
    shorten(folder / "mine")
    assert main(["train", "mine/train.toml", "--threads", "1"]) == 0
    fill = ["--fill", "photos", "--to", "200"]
    assert main(["plan", "mine/rare.toml", *fill]) == 0
    assert main(["run", "mine/rare.toml", "--out", "out", "--actors", "1", "--cpus-per-actor", "1"]) == 0

    quality = json.loads((folder / "mine/model/provenance.json").read_text())
    metrics = json.loads((folder / "out/audit/metrics.json").read_text())["metrics"]
    images, labels = made(folder / "out")
    features = extract_outputs(images, load_extractor())
    chance = 1 / len(set(labels))
    print(
        quality["quality"],
        {k: v["value"] for k, v in metrics.items()},
        recognised(data, size, channels, features, labels),
        np.bincount(labels),
    )
    assert chance
