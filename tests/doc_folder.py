"""The folder in which the commands and snippets of a page run: a small project, audited runs and the repository."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
import torch
from doc_blocks import ROOT
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from small_model import MODEL, WITHOUT_CLASSIFIER, write_model

from benchmarks.synthetic import synthetic_manifest, write_shards
from rarefy.cli import main
from rarefy.models.folder import read_model_folder, write_model_folder
from rarefy.models.networks import build_classifier, build_unet

REPOSITORY = ("benchmarks", "docs", "examples", "jobs", "manifests", "pipeline", "tests", "Makefile", "constraints.txt")
RUNS = ("out/plain", "out/rare", "rare", "out/quality")
SHARDS, ROWS = 6, 10


def prepare(folder: Path) -> Path:
    """Write into the empty folder what the pages talk about; returns it.

    photos/ has class folders of digits; mine/ is what ``rarefy init`` makes of them, with random weights for a trained
    model; mymodel/ and mine/mymodel/ are another model, mine/their-model/ one without a classifier; out/demo and the
    other RUNS are one sealed and audited run of 60 images of the embedded model's classes, in 6 shards.
    """
    for name in REPOSITORY:
        (folder / name).symlink_to(ROOT / name)
    write_photos(folder / "photos")
    with contextlib.chdir(folder):
        succeed("init", "photos/", "--out", "mine")
        pretend_to_train(Path("mine/model"))
        write_model(Path("mymodel"))
        for name, model in (("mymodel", MODEL), ("their-model", WITHOUT_CLASSIFIER)):
            write_model(Path("mine") / name, model)
        Path("mine/held-out").mkdir()
        Path("mine/gates.toml").write_text("[gates]\nrecall = { min = 0.45 }\n")
        write_runs()
    return folder


def write_photos(folder: Path, count: int = 120) -> None:
    """The first of the digits that docs/QUICKSTART.md writes, under the same names."""
    data = load_digits()
    for number, (pixels, label) in enumerate(zip(data.images[:count], data.target, strict=False)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(folder / str(label) / f"{number}.png")


def pretend_to_train(folder: Path) -> None:
    """Random weights in place of trained ones."""
    model = read_model_folder(folder)
    assert model.classifier is not None
    torch.manual_seed(0)
    for role, network in (("unet", build_unet(model.unet)), ("classifier", build_classifier(model.classifier))):
        weights = {name: 0.1 * torch.randn(value.shape) for name, value in network.state_dict().items()}
        save_file(weights, folder / f"{role}.safetensors")
        model.files[role] = f"{role}.safetensors"
    write_model_folder(model, folder)


def write_runs() -> None:
    write_shards(Path("out/demo"), synthetic_manifest(SHARDS, ROWS), range(SHARDS), processes=1)
    rng = np.random.default_rng(0)
    for label in range(10):
        place = Path("reference") / str(label)
        place.mkdir(parents=True)
        for number in range(16):
            Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(place / f"{number}.png")
    succeed("seal", "out/demo")
    succeed("audit", "out/demo", "--reference", "reference", "--training", "reference")
    succeed("report", "out/demo")
    for run in RUNS:
        shutil.copytree("out/demo", run)


def copy_folder(prepared: Path, target: Path) -> Path:
    """A copy for one page, so that no page depends on another."""
    shutil.copytree(prepared, target, symlinks=True)
    return target


def succeed(*words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 0, words
