"""What a training run writes: log lines, the curve, the provenance, and the rules for continuing a run."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from small_training import MODEL, SETTINGS, network_and_loss, start_small, training_set

from rarefy.errors import OutputError
from rarefy.training.log import TrainingLog, checks, curve, read_log
from rarefy.training.loop import Report, train
from rarefy.training.output import Job, Places, RealImages, check_recipe, claim, write_result, write_weights
from rarefy.training.recipe import Recipe


def job(folder: Path, **settings: object) -> Job:
    recipe = Recipe("diffusion", "train", MODEL, folder, dataclasses.replace(SETTINGS, **settings))  # type: ignore[arg-type]
    data = training_set()
    return Job(recipe, RealImages(data, None, data.sha256()), Places.alone(folder))


def test_a_log_line_has_progress_speed_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = TrainingLog(tmp_path, dataclasses.replace(SETTINGS, images=8 * 1000))
    log.report(Report(100, 20.04, 3e-4, False, {"loss": 0.25}))
    assert capsys.readouterr().err == "train: 800/8,000 images, 20 images/s, ETA 6m00s, loss 0.2500\n"
    log.check(800, {"held_out_loss": 0.5})
    assert capsys.readouterr().err == "train: after 800 images: held_out_loss 0.5000\n"
    report, check = read_log(log.path)
    assert report == {"images": 800, "images_per_s": 20.0, "lr": 3e-4, "loss": 0.25}
    assert check == {"images": 800, "held_out_loss": 0.5}


def test_the_time_left_may_be_days(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TrainingLog(tmp_path, dataclasses.replace(SETTINGS, images=4_000_000)).report(Report(0, 10.0, 3e-4, False, {}))
    assert "ETA 4d15h" in capsys.readouterr().err


def test_tensorboard_gets_the_same_values(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = TrainingLog(tmp_path, SETTINGS, tensorboard=True)
    log.report(Report(2, 20.0, 3e-4, False, {"loss": 0.25}))
    log.close()
    stored = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in stored.Scalars("loss")] == [(16, 0.25)]


def test_speed_is_images_over_time(tmp_path: Path) -> None:
    state, loss = start_small("classifier", SETTINGS, tmp_path), network_and_loss("classifier")[1]
    (report,) = train(state, loss, training_set(), SETTINGS, tmp_path / "state.pt")
    assert report.images_per_s == pytest.approx(SETTINGS.images / state.seconds)


def test_the_curve_has_evenly_spaced_rounded_reports_and_the_checks_are_apart(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    entries = [{"images": n, "lr": 0.1, "loss": n + 1e-7} for n in range(1, 121)]
    entries += [{"images": n, "held_out_loss": 0.5} for n in range(1, 62)]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert curve(log) == [{"images": n, "lr": 0.1, "loss": float(n)} for n in range(2, 121, 2)]
    assert [entry["images"] for entry in checks(log)] == list(range(1, 62, 3))


def test_the_provenance_names_data_steps_and_torch(tmp_path: Path) -> None:
    state, run = start_small("diffusion", SETTINGS, tmp_path), job(tmp_path)
    state.step, state.seconds = 2, 1.26
    values = {**run.recipe.values(), "data_sha256": run.images.sha256}
    result = write_result(run, state, values, {"held_out": {}})
    assert result == json.loads((tmp_path / "provenance.json").read_text()) == run.places.record()
    assert result["torch"] == torch.__version__ and result["data_sha256"] == training_set().source.sha256()
    assert (result["steps"], result["images"], result["seconds"]) == (2, 2 * SETTINGS.batch, 1.3)
    assert result["init_sha256"] is None and "train.batch = 8\n" in result["recipe"]


def test_parts_of_a_model_share_one_provenance(tmp_path: Path) -> None:
    for part in ("diffusion", "judge"):
        Places.in_model(tmp_path, part).write_record({"images": len(part)})
    assert json.loads((tmp_path / "provenance.json").read_text()) == {
        "diffusion": {"images": 9},
        "judge": {"images": 5},
    }
    assert Places.in_model(tmp_path, "judge").record() == {"images": 5}
    assert Places.in_model(tmp_path, "classifier").record() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 48, "decay": 0.5, "accumulate": 2, "checkpointing": True}, None),
        ({"lr": 1e-3}, r"train.lr: 0.001 is not 0.01, with which the run in '.*' began; images and decay may change"),
        ({"flip": True}, "train.flip: True is not False"),
        ({"ema_halflife": 500}, "train.ema_halflife: 500 is not None"),
    ],
)
def test_a_run_can_become_longer_but_not_another(
    settings: dict[str, object], message: str | None, tmp_path: Path
) -> None:
    before, now = job(tmp_path), job(tmp_path, **settings)
    claim(before.places, before.recipe.values())
    if message is None:
        check_recipe(now.places, now.recipe, now.recipe.values())
        return
    with pytest.raises(OutputError, match=message):
        check_recipe(now.places, now.recipe, now.recipe.values())


def test_a_run_with_other_data_or_another_network_is_another(tmp_path: Path) -> None:
    run = job(tmp_path)
    values = {**run.recipe.values(), "data_sha256": "a"}
    claim(run.places, values)
    check_recipe(run.places, run.recipe, values)
    for key, value in [("data_sha256", "b"), ("network.model_channels", 64), ("schedule.steps", 50)]:
        with pytest.raises(OutputError, match=f"{key}: "):
            check_recipe(run.places, run.recipe, values | {key: value})


def test_the_recipe_that_an_older_version_kept_is_understood(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('preset = "fashion-mnist-28"\ndata = "d"\n[train]\nimages = 9\nlr = 1e-3\n')
    run = job(tmp_path, lr=1e-3, images=24)
    with pytest.raises(OutputError, match=r"schedule.steps: 100 is not 1000"):
        check_recipe(run.places, run.recipe, run.recipe.values())


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_other_users_may_read_the_weights(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_weights({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
