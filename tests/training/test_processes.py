"""Data-parallel training: two processes learn the same as one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from small_training import SETTINGS, images, run_process, train_and_record
from webdataset import TarWriter

from rarefy.models.adm import Classifier
from rarefy.models.folder import find_model
from rarefy.shards.writer import encode_png


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(run_process, (2, folder), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return train_and_record(folder, SETTINGS)


def test_two_processes_learn_what_one_learns(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Rank 1 starts from other random weights, which are replaced by rank 0's."""
    for process in two:
        torch.testing.assert_close(process["weights"], one["weights"], rtol=1e-4, atol=2e-6)
        assert process["means"] == pytest.approx(one["means"], rel=1e-4)


def test_micro_batches_of_two_processes_learn_what_one_learns(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for process in two:
        torch.testing.assert_close(process["accumulated"], one["weights"], rtol=1e-4, atol=2e-6)


def test_each_process_takes_its_own_share_of_images_and_noise(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for rank, process in enumerate(two):
        for whole, share in zip(one["inputs"], process["inputs"], strict=True):
            assert torch.equal(share, whole[rank::2])


def test_dropout_masks_differ_between_processes(two: list[dict[str, Any]]) -> None:
    first, second = (process["dropout"] for process in two)
    assert first.shape == second.shape
    assert 0.4 < (first != second).float().mean() < 0.6


def test_a_signal_to_one_process_stops_all_after_the_same_step(folder: Path, two: list[dict[str, Any]]) -> None:
    assert [process["stopped"] for process in two] == [(2, (15,)), (2, (15,))]
    assert torch.load(folder / "stopped.pt", weights_only=True)["step"] == 2


def test_a_loss_that_diverges_in_one_process_stops_all(folder: Path, two: list[dict[str, Any]]) -> None:
    assert two[0]["diverged"] == two[1]["diverged"]
    assert "at step 2 (loss nan" in two[0]["diverged"]
    assert not (folder / "diverged.pt").exists()


@pytest.mark.slow(20)
def test_torchrun_trains_one_network_on_shards(tmp_path: Path) -> None:
    """Every process reads all shards; only rank 0 writes and prints."""
    preset = find_model("fashion-mnist-28")
    data = images(20)
    with TarWriter(str(tmp_path / "a-000000.tar"), encoder=False) as tar:
        for row in range(20):
            content = {"png": encode_png(data.images[row]), "cls": str(data.labels[row]).encode()}
            tar.write({"__key__": f"{row:05d}", **content})
    recipe, out = tmp_path / "r.toml", tmp_path / "out"
    recipe.write_text(f'preset = "{preset.name}"\ndata = "."\n[train]\nimages = 8\nbatch = 4\n')
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "rarefy", "train", "classifier", str(recipe), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"weights: {out}/weights.safetensors"]
    assert "Warning" not in done.stderr
    assert json.loads((out / "provenance.json").read_text())["images"] == 8
    assert len((out / "log.jsonl").read_text().splitlines()) == 1
    Classifier(preset.classifier).load_state_dict(load_file(out / "weights.safetensors"))
