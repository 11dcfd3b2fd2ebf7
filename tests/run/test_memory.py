"""A GPU that runs out of memory ends the run, and the error says which batch would fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_model import make_run, write_manifest, write_model

from rarefy.errors import DeviceError
from rarefy.generate import actor, execution, memory
from rarefy.generate.memory import BatchMemory, fitting_batch
from rarefy.manifest import Manifest, load_manifest

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.\nSee docs.")


def fail(*arguments: object, **options: object) -> None:
    raise FULL


@pytest.fixture
def own(tmp_path: Path) -> Manifest:
    write_model(tmp_path / "model")
    return load_manifest(write_manifest(tmp_path / "rare.toml", "model"))


def test_a_batch_that_does_not_fit(own: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "sample", fail)
    with pytest.raises(DeviceError, match=r"^sampler\.batch: 2 is not small enough .*about 1 should fit") as caught:
        make_run(own, tmp_path / "out")
    assert "CUDA out of memory" in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_that_does_not_fit(own: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "load_prepared", fail)
    with pytest.raises(DeviceError, match=r"^device: 'cpu' has too little memory for this model: CUDA out of memory$"):
        make_run(own, tmp_path / "out")


def test_the_batch_is_halved_or_follows_what_an_image_needed() -> None:
    assert fitting_batch(64, None, 10**9) == 32
    assert fitting_batch(64, 1e6, 10**9) == 32
    assert fitting_batch(64, 1e8, 10**9) == 8
    assert fitting_batch(64, 1e10, 10**9) == 1


def test_what_an_image_needs_is_measured_on_batches_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that another process begins to use: 10 images needed 100 MB each, and now 300 MB are left."""
    used = {"now": 0}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used["now"])
    monkeypatch.setattr(memory, "peak_bytes", lambda device: 500 + 10 * 100)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    monkeypatch.setattr(memory, "reset_peak", lambda device: None)
    used["now"] = 500
    batches = BatchMemory(torch.device("cuda"))
    for images in (10, 1):  # the peak stays that of the larger batch
        with batches.batch(images):
            pass
    used["now"] = 800
    with pytest.raises(DeviceError, match=r"sampler\.batch: 10 .*about 2 should fit"), batches.batch(10):
        fail()
    with pytest.raises(DeviceError, match=r"sampler\.batch: 1 is not small enough"), batches.batch(1):
        fail()
