"""Each training example in its short form: a planted run of 40 images and 24 real ones."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def arguments(out: Path, photos: Path) -> list[str]:
    """All 34 accepted images of the run and 24 real ones, also to test on: 58 images in four batches of 16."""
    short = ["--epochs", "1", "--batch-size", "16", "--workers", "0"]
    return [str(out), str(photos), "--held-out", str(photos), *short]


def test_plain_torch_stops_and_goes_on(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_torch

    train_torch.main([*arguments[:-1], "1", "--epochs", "2", "--where", "confidence < 0.5"])
    uninterrupted = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"24 real and \d+ generated images per epoch .*", uninterrupted[0])
    checkpoint = ["--where", "confidence < 0.5", "--checkpoint", str(tmp_path / "model.pt")]
    with monkeypatch.context() as stopped:
        stopped.setattr(train_torch, "SAVE_EVERY", 1)
        stopped.setattr(train_torch, "train_step", stop_at_second_step(train_torch.train_step))
        with pytest.raises(KeyboardInterrupt):
            train_torch.main([*arguments, *checkpoint])
    assert "going on" not in capsys.readouterr().out
    train_torch.main([*arguments, "--epochs", "2", *checkpoint])
    resumed = capsys.readouterr().out.splitlines()
    assert resumed[1] == "going on after 16 images of epoch 1"
    assert resumed[2:] == uninterrupted[1:]  # the same losses and accuracies


def stop_at_second_step(step: object) -> object:
    calls: list[object] = []

    def stopping(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*arguments)  # type: ignore[operator]

    return stopping


@pytest.mark.slow
def test_torchrun_uses_every_image_once(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(EXAMPLES / "train_torchrun.py"), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("24 real and 34 generated images per epoch")
    assert re.fullmatch(r"epoch 1: 58 images in 2 processes, accuracy \d\.\d{3} on 24 held-out real images", second)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray whose workers can import the examples and rarefy."""
    import ray

    folder = tempfile.mkdtemp(prefix="rarefy-test-", dir="/tmp")
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES), *([path] if path else [])])
    ray.init("local", num_cpus=4, num_gpus=0, include_dashboard=False, object_store_memory=10**8,
             log_to_driver=False, logging_level=logging.ERROR, _temp_dir=folder)  # fmt: skip
    yield
    ray.shutdown()
    os.environ["PYTHONPATH"] = path or ""
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_ray_train_uses_every_image_once(
    ray_cluster: None,
    arguments: list[str],
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also with relative paths: Ray Train's workers have other working folders."""
    pytest.importorskip("ray.train.torch")
    monkeypatch.chdir(photos.parent)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_ray

    train_ray.main([os.path.relpath(word) if word.startswith("/") else word for word in arguments])
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("24 real and 34 generated images per epoch")
    assert re.fullmatch(r"epoch 1: 58 images in 2 workers, accuracy \d\.\d{3} on held-out real images", second)


def test_ray_data_has_every_image_of_an_epoch(ray_cluster: None, out: Path, photos: Path) -> None:
    pytest.importorskip("ray.data")
    from rarefy import consume

    mixed = consume.mix(photos, consume.RareImages(out), ratio=0.3)
    rows = consume.ray_dataset(mixed, epoch=2).take_all()
    expected = {mixed.key((2, place)): mixed[2, place] for place in range(len(mixed))}
    assert sorted(row["key"] for row in rows) == sorted(expected) != [row["key"] for row in rows]
    for row in rows:
        image, label = expected[row["key"]]
        assert (row["image"] == image.numpy()).all() and row["label"] == label
