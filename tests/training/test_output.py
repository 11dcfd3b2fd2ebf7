"""What a training run writes: log lines, the curve, the provenance, and the classifier's accuracies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from small_training import CPU, MODEL, SETTINGS, images, network_and_loss, start_small

from rarefy.images import ClassNames, LabelledImages
from rarefy.training import output
from rarefy.training.loop import Report, train
from rarefy.training.recipe import Recipe, load_recipe


def test_a_log_line_has_progress_speed_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = dataclasses.replace(SETTINGS, images=8 * 1000)
    output.write_log(Report(100, 20.04, 3e-4, False, {"loss": 0.25}), settings, tmp_path / "log.jsonl")
    assert capsys.readouterr().err == "800/8,000 images  20/s  ETA 00:05:59  loss 0.2500\n"
    (line,) = output.read_log(tmp_path / "log.jsonl")
    assert line == {"images": 800, "images_per_s": 20.0, "lr": 3e-4, "loss": 0.25}


def test_speed_is_images_over_time(tmp_path: Path) -> None:
    state, loss = start_small("classifier", SETTINGS, tmp_path), network_and_loss("classifier")[1]
    (report,) = train(state, loss, images(), SETTINGS, tmp_path / "state.pt")
    assert report.images_per_s == pytest.approx(SETTINGS.images / state.seconds)


def test_the_curve_has_evenly_spaced_rounded_entries(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"images": n, "loss": n + 1e-7}) + "\n" for n in range(1, 121)))
    curve = output._curve(log)
    assert curve == [{"images": n, "loss": float(n)} for n in range(2, 121, 2)]


def recipe(folder: Path, clean: bool) -> Recipe:
    (folder / "r.toml").write_text(
        f'preset = "fashion-mnist-28"\ndata = "d"\nclean = {str(clean).lower()}\n[train]\nimages = 8\n'
    )
    return dataclasses.replace(load_recipe(folder / "r.toml", "classifier"), preset=MODEL)


@pytest.mark.parametrize(("clean", "steps"), [(False, (0, 30, 50, 70)), (True, (0,))])
def test_accuracies_are_at_fixed_parts_of_the_chain(
    clean: bool, steps: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(source: object, size: int, channels: int, split: str, *, classes: ClassNames) -> LabelledImages:
        assert split == "test" and classes == MODEL.classes
        return images()

    monkeypatch.setattr(output, "load_images", load)
    weights = network_and_loss("classifier")[0].state_dict()
    accuracies = output._accuracies(recipe(tmp_path, clean), weights, CPU)
    assert list(accuracies) == [f"t={step}" for step in steps]


def test_the_provenance_names_data_steps_and_torch(tmp_path: Path) -> None:
    state = start_small("diffusion", SETTINGS, tmp_path)
    state.step, state.seconds = 2, 1.26
    written = dataclasses.replace(recipe(tmp_path, False), train=SETTINGS)
    result = output.write_result("diffusion", written, state, images(), tmp_path)
    assert result["torch"] == torch.__version__ and result["data_sha256"] == images().sha256()
    assert (result["steps"], result["images"], result["seconds"]) == (2, 2 * SETTINGS.batch, 1.3)
    assert result["init_sha256"] is None and result["recipe"] == written.text
