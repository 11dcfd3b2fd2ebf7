"""What is measured while a network trains, and how much time it may take."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import CPU, MODEL, SETTINGS, images, start_small, training_set
from torch import Tensor, nn

from rarefy.errors import DeviceError
from rarefy.images import LabelledImages
from rarefy.project import checks
from rarefy.project.checks import SmallAudit
from rarefy.project.quality import same_classes
from rarefy.training import monitor as monitor_module
from rarefy.training import run
from rarefy.training.data import TrainingSet
from rarefy.training.monitor import Monitor
from rarefy.training.output import Job, Places, RealImages
from rarefy.training.recipe import Recipe
from rarefy.training.run import TrainOptions, train_part


def job(folder: Path, part: str = "diffusion", held_out: LabelledImages | None = None) -> Job:
    recipe = Recipe(part, "train", MODEL, folder, SETTINGS)
    return Job(recipe, RealImages(training_set(), held_out, "0"), Places.alone(folder))


def test_measuring_waits_for_ten_times_as_long_as_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, budgets = [100.0], []

    def check(network: nn.Module, budget_s: float) -> dict[str, float]:
        budgets.append(budget_s)
        now[0] += 3
        return {"fid": 1.0}

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(monitor_module, "save_grid", lambda *arguments: None)
    measured = Monitor(job(tmp_path, held_out=images(8)), CPU, check)
    state = start_small("diffusion", SETTINGS, tmp_path)
    assert measured.due()
    now[0] += 20
    assert measured.measure(state)["fid"] == 1.0
    now[0] += 29.9
    assert not measured.due()
    now[0] += 0.2
    assert measured.due()
    measured.measure(state)
    assert budgets == pytest.approx([2.0, 3.01])


def test_the_result_is_that_of_the_last_step(tmp_path: Path) -> None:
    measured = Monitor(job(tmp_path, "classifier", images(8)), CPU)
    state = start_small("classifier", SETTINGS, tmp_path)
    before = measured.measure(state)
    with torch.no_grad():
        for value in state.ema.values():
            value.fill_(0.0)
    assert list(measured.result(state)["test_accuracy"].values()) == list(before.values())
    state.step += 1
    assert measured.result(state)["test_accuracy"]["t=0"] == 0.25  # equal logits: class 0
    assert measured.step == state.step


class Copies(nn.Module):
    """Stands for a network; nothing is computed with it."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))


class SlopeJudge(nn.Module):
    """Knows the class of small_training's images by the slope of their brightness."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        slope = (x[..., -1] - x[..., 0]).mean((1, 2))  # 2 x 60 / 127.5 x (class - 1.5)
        return nn.functional.one_hot((slope / 0.94 + 1.5).round().long().clamp(0, 3), 4).float()


def test_the_small_audit_of_real_images_has_high_recall_and_knows_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = images(120), images(220)

    def draw(network: nn.Module, model: object, y: Tensor) -> list[Tensor]:
        rows = [np.flatnonzero(drawn.labels == k)[20 + number // 4] for number, k in enumerate(y.tolist())]
        return [torch.from_numpy(drawn.images[rows[start : start + 50]]) for start in (0, 50)]

    monkeypatch.setattr(checks, "draw_images", draw)
    audit = SmallAudit(MODEL, real, CPU, SlopeJudge())
    audit.images = 100
    values = audit(Copies(), budget_s=1e9)
    assert values["sample_images"] == 100 and values["on_class"] > 0.95
    assert values["recall"] > 0.5 and values["precision"] > 0.5
    noise = np.random.default_rng(0).integers(0, 256, (100, 1, 8, 8), dtype=np.uint8)
    worse = audit.measure(noise, audit.labels())
    assert worse["fid"] > 3 * values["fid"] and worse["precision"] < 0.2 and worse["on_class"] < 0.6


def test_the_small_audit_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [torch.zeros(50, 1, 8, 8, dtype=torch.uint8)] * 10
    monkeypatch.setattr(checks, "draw_images", lambda *arguments: iter(batches))
    audit = SmallAudit(MODEL, images(40), CPU)
    assert len(audit._draw(Copies(), audit.labels(), budget_s=0.0)) == checks.FEWEST
    assert len(audit._draw(Copies(), audit.labels(), budget_s=1e9)) == 500
    assert np.bincount(audit.labels()) == pytest.approx(np.full(4, 125), abs=5)


def test_the_baseline_has_the_same_classes_without_repetition_as_far_as_possible() -> None:
    labels = np.array([0] * 5 + [1] * 2)
    data = TrainingSet.whole(dataclasses.replace(images(7), labels=labels))
    rows = same_classes(data, np.array([0, 0, 0, 1, 1, 1, 3]))
    assert labels[rows].tolist() == [0, 0, 0, 1, 1, 1]
    assert len(set(rows.tolist())) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch": 8},
            "train.batch: 8 is not small enough for the memory of cpu, on which it runs 8 images at a time: "
            "a batch of 4 may fit; accumulate = 2 needs as little memory and keeps the batch; "
            "or set checkpointing = true, or take a smaller network",
        ),
        ({"batch": 8, "accumulate": 4}, "2 images at a time: a batch of 4 may fit; accumulate = 8"),
        ({"batch": 1}, "1 images at a time: set checkpointing = true, or take a smaller network"),
    ],
)
def test_a_gpu_without_enough_memory_says_which_batch_may_fit(
    settings: dict[str, int], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(run, "train", train)
    whole = job(tmp_path)
    recipe = dataclasses.replace(whole.recipe, train=dataclasses.replace(SETTINGS, **settings))
    with pytest.raises(DeviceError) as raised:
        train_part(dataclasses.replace(whole, recipe=recipe), CPU, TrainOptions())
    assert message in str(raised.value)
