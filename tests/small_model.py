"""Tiny model folders with random weights, and manifests that name them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_training import CLASSIFIER, SIZE, UNET
from torch import nn

from rarefy.cli import main
from rarefy.generate.actor import ShardGenerator
from rarefy.manifest import Manifest, model_file
from rarefy.models.config import NetworkConfig
from rarefy.models.folder import ModelFolder, write_model_folder
from rarefy.models.networks import build_classifier, build_unet
from rarefy.plan import make_plan
from rarefy.shards.claim import claim_output
from rarefy.shards.store import Store

NAMES = ("cat", "dog", "maine coon", "Siamese")
MODEL = ModelFolder(
    name="tiny",
    description="for tests",
    unet=UNET,
    classifier=CLASSIFIER,
    schedule="cosine",
    recommended_scale=1.0,
    diffusion_steps=100,
    class_names=NAMES,
    files={"unet": "unet.safetensors", "classifier": "classifier.safetensors"},
)
WITHOUT_CLASSIFIER = dataclasses.replace(MODEL, classifier=None, files={"unet": "unet.safetensors"})
UNCONDITIONAL: NetworkConfig = dataclasses.replace(UNET, num_classes=None)


def write_model(path: Path, model: ModelFolder = MODEL, seed: int = 0) -> Path:
    """Write the folder with random weights; returns its path."""
    path.mkdir(parents=True)
    write_model_folder(model, path)
    _save(build_unet(model.unet), path / "unet.safetensors", seed)
    if model.classifier is not None:
        _save(build_classifier(model.classifier), path / "classifier.safetensors", seed + 1)
    return path


def _save(network: nn.Module, path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    save_file({n: 0.1 * torch.randn(v.shape, generator=generator) for n, v in network.state_dict().items()}, path)


def write_manifest(path: Path, model: str, extra: str = "") -> Path:
    """A manifest of 8 images in 2 shards with the model at ``model``; ``extra`` is more TOML."""
    path.write_text(f"""
name = "own"
[model]
path = "{model}"
[sampler]
steps = 4
batch = 2
[classes]
total = 8
[output]
shard_size = 4
{extra}
""")
    return path


def write_real_images(path: Path) -> Path:
    """Class folders of noise, eight images a class."""
    rng = np.random.default_rng(0)
    for class_id in range(len(NAMES)):
        folder = path / str(class_id)
        folder.mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).save(folder / f"{number}.png")
    return path


def make_run(manifest: Manifest, out: Path) -> Store:
    """Generate in this process what the fleet would, with everything that it writes."""
    threads = torch.get_num_threads()
    generator, store = ShardGenerator(manifest, str(out), "cpu", 1), Store(str(out))
    generator.load()
    claim_output(store, manifest.text, manifest.digest, model_file(manifest))
    for shard in range(make_plan(manifest).num_shards):
        generator.generate(shard, f"attempt-{shard}")
    torch.set_num_threads(threads)
    return store


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with exit code 2; returns its error, the only one on stderr among the progress."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("rarefy: error: ")]
    return line
