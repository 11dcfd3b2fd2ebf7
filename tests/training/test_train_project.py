"""``rarefy train mine/train.toml``: the model folder that it leaves, and how a finished or stopped training goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_project import NAMES, NETWORK, write_project, write_reference
from small_training import CPU, MODEL, UNET, images, network_and_loss
from torch import Tensor

from rarefy.cli import main
from rarefy.execution import load_prepared
from rarefy.manifest import parse_manifest
from rarefy.models.folder import read_model_folder, write_model_folder
from rarefy.project import checks
from rarefy.training import loop
from rarefy.training.card import render_card
from rarefy.training.images import project_images
from rarefy.training.log import read_log
from rarefy.training.output import write_weights
from rarefy.training.project import load_project


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose three parts are trained."""
    folder = tmp_path_factory.mktemp("project")
    assert train(write_project(folder)) == 0
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy" / "mine" / "train.toml"


def train(path: Path, *words: str) -> int:
    return main(["train", *words, str(path), "--device", "cpu", "--json"])


def provenance(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((path.parent / "model" / "provenance.json").read_text())
    return loaded


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_the_model_folder_has_all_that_sampling_needs(trained: Path) -> None:
    folder = trained / "mine" / "model"
    model = read_model_folder(folder)
    assert model.class_names == NAMES
    assert model.files == {
        "reference": "reference",
        "unet": "unet.safetensors",
        "classifier": "classifier.safetensors",
        "judge": "judge.safetensors",
    }
    models = load_prepared(model, None, None, (None, None), CPU)
    saved = torch.load(folder / "training" / "diffusion" / "state.pt", weights_only=True)
    assert all(torch.equal(value, saved["ema"][name]) for name, value in models.unet.state_dict().items())
    assert {path.name for path in (folder / "training" / "diffusion").iterdir()} == {
        "recipe.toml",
        "state.pt",
        "log.jsonl",
        "samples-000000160.png",
    }
    assert {path.name for path in folder.iterdir()} == {
        *model.files.values(), "config.json", "provenance.json", "README.md", "training"
    }  # fmt: skip


def test_held_out_images_are_left_out_and_measure_every_part(trained: Path) -> None:
    record = provenance(trained / "mine" / "train.toml")
    for part in ("diffusion", "classifier", "judge"):
        assert (record[part]["data_images"], record[part]["excluded_images"]) == (52, 8)
        assert record[part]["classes"] == dict.fromkeys(NAMES, 13)
        assert (record[part]["data"], record[part]["held_out_data"]) == ("../../photos", "reference")
    assert record["diffusion"]["held_out"]["held_out_loss"] > 0
    assert list(record["classifier"]["test_accuracy"]) == ["t=0", "t=30", "t=50", "t=70"]
    assert list(record["judge"]["test_accuracy"]) == ["t=0"]
    assert record["judge"]["class_accuracy"].keys() == set(NAMES)
    assert record["judge"]["test_accuracy"]["t=0"] > 0.45  # the shard's class ids, without the names, give far less


def test_the_quality_is_beside_that_of_real_images(trained: Path) -> None:
    quality = provenance(trained / "mine" / "train.toml")["quality"]
    assert quality["judged_by"] == "judge" and quality["reference_images"] == 40
    assert quality["sample_images"] == quality["real"]["sample_images"] >= checks.FEWEST
    assert quality["real"]["fid"] < quality["fid"]
    assert quality["real"]["recall"] > 0.5


def test_the_audit_in_training_is_logged(trained: Path) -> None:
    (check,) = (entry for entry in read_log(trained / "mine/model/training/diffusion/log.jsonl") if "lr" not in entry)
    assert check.keys() >= {"images", "held_out_loss", "fid", "precision", "recall", "sample_images"}


def test_the_card_is_one_that_the_hub_takes(trained: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard((trained / "mine" / "model" / "README.md").read_text())
    assert card.data.license == "unknown" and card.data.library_name == "rarefy" and card.data.model_name == "mine"
    assert "| 1 | Big bird | 13 | 10 |" in card.text
    quality = provenance(trained / "mine" / "train.toml")["quality"]
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: quality[name] for name in ("fid", "precision", "recall", "on_class")}
    assert "FID" in card.text and "{" not in card.text


def test_the_manifest_in_the_card_is_valid(trained: Path) -> None:
    path = trained / "mine" / "train.toml"
    model = dataclasses.replace(read_model_folder(path.parent / "model"), name="My photos")
    text = render_card(model, project_images(load_project(path)), {}).partition("```toml\n")[2].partition("```")[0]
    manifest = parse_manifest(text.replace("path/to/this/folder", str(model.path)), path)
    assert manifest.total == 40


def test_finished_parts_are_skipped(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (project.parent / "model").rglob("*.safetensors")}
    record = provenance(project)
    assert train(project) == 0
    said = capsys.readouterr()
    assert said.err.count("is finished: ") == 3 and "measuring" not in said.err
    assert json.loads(said.out) == record == provenance(project)
    assert before == {path: path.read_bytes() for path in before}


def test_more_images_continue_a_part_and_its_quality_is_measured_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = provenance(project)
    edit(project, "images = 160", "images = 240")
    assert train(project) == 0
    assert "training the diffusion for 240 images, 160 of them seen already" in capsys.readouterr().err
    after = provenance(project)
    assert (after["diffusion"]["images"], after["judge"]) == (240, before["judge"])
    assert after["quality"]["weights"]["unet"] == after["diffusion"]["weights_sha256"]
    edit(project, "images = 240", "images = 80")
    assert train(project) == 2
    assert "diffusion.images: 80 is not at least 240, which the run has already seen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr = 2e-3", "lr = 3e-3", "diffusion.lr: 0.003 is not 0.002, with which the run in"),
        ("num_res_blocks = 1", "num_res_blocks = 2", "unet.num_res_blocks: 2 is not 1, with which training began in"),
        ("diffusion_steps = 100", "diffusion_steps = 200", "diffusion_steps: 200 is not 100, with which"),
        ('name = "mine"', 'name = "mine"\nclass_names = ["dog", "cat", "Big bird", "apple"]', "class_names: "),
    ],
)
def test_another_model_or_recipe_is_refused(
    old: str, new: str, message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (project.parent / "model" / "config.json").read_bytes()
    edit(project, old, new)
    assert train(project) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert (project.parent / "model" / "config.json").read_bytes() == before


def test_other_images_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project.parents[1] / "photos" / "cat" / "2.png").unlink()
    assert train(project, "judge") == 2
    assert "data_sha256: " in capsys.readouterr().err.splitlines()[-1]


def test_a_stopped_part_goes_on_and_later_parts_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, step = write_project(tmp_path), loop.train_step

    def stopped(state: Any, *arguments: Any) -> dict[str, Tensor]:
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped)
        assert train(path) == 143
    assert not (tmp_path / "mine" / "model" / "unet.safetensors").exists()
    assert train(path, "diffusion") == 0
    assert "160 images, 48 of them seen already" in capsys.readouterr().err
    assert read_model_folder(tmp_path / "mine" / "model").files == {
        "reference": "reference",
        "unet": "unet.safetensors",
    }


def test_a_part_that_the_file_lacks_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project.write_text(project.read_text().partition("[judge]")[0])
    assert train(project, "judge") == 2
    assert "part: 'judge' is not a part of" in capsys.readouterr().err


def test_held_out_images_of_another_size_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_project(tmp_path)
    edit(path, "image_size = 8", "image_size = 16")
    assert train(path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "8 x 8' is not 16 x 16 pixels, which is image_size" in error and "held-out-000000.tar" in error


def test_classes_are_those_of_their_names_in_any_order(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    edit(path, 'name = "mine"', 'name = "mine"\nclass_names = ["dog", "cat", "big-bird", "APPLE"]')
    real = project_images(load_project(path))
    assert real.held_out is not None
    assert (real.held_out.labels == 3 - images(92).labels[52:92]).all()
    for row in real.train.rows:  # the classes' images are brighter to the right by their number
        slope = real.train.source.images[row, 0, :, -1].mean() - real.train.source.images[row, 0, :, 0].mean()
        assert round(slope / 120 + 1.5) == 3 - real.train.source.labels[row]


def test_without_held_out_images_nothing_is_measured_on_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_project(tmp_path)
    shutil.rmtree(tmp_path / "mine" / "model")
    edit(path, "images = 480", "images = 16")
    assert train(path, "classifier") == 0
    assert "no held-out images" in capsys.readouterr().err
    assert provenance(path)["classifier"]["test_accuracy"] is None
    assert "Not measured yet" in (tmp_path / "mine" / "model" / "README.md").read_text()


def test_too_few_held_out_images_to_measure_quality_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_project(tmp_path)
    shutil.rmtree(tmp_path / "mine" / "model" / "reference")
    write_reference(tmp_path / "mine" / "model" / "reference", images(92).take(np.arange(52, 55)))
    edit(path, "images = 160", "images = 16")
    assert train(path, "diffusion") == 0
    assert "train: quality is not measured: 3 held-out images are too few" in capsys.readouterr().err
    assert "quality" not in provenance(path)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Somebody else's diffusion model without a classifier, and a train.toml for one."""
    path = write_project(tmp_path)
    folder = tmp_path / "mine" / "model"
    names = tuple(name.upper() for name in NAMES)  # other spellings than the photos' folders
    model = MODEL.__class__("theirs", "trained elsewhere", UNET, None, "linear", 2.0, 200, names, path=folder)
    write_weights(network_and_loss("diffusion")[0].state_dict(), folder / "unet.safetensors")
    write_model_folder(model.__class__(**{**vars(model), "files": {"unet": "unet.safetensors"}}), folder)
    path.write_text(
        f'data = "../photos"\nmodel = "model"\n[classifier_network]\n{NETWORK}[classifier]\nimages = 160\nbatch = 16\n'
    )
    return path


def test_a_classifier_can_be_trained_for_somebody_elses_diffusion_model(foreign: Path) -> None:
    folder = foreign.parent / "model"
    weights = (folder / "unet.safetensors").read_bytes()
    (folder / "README.md").write_text("their licence")
    assert train(foreign) == 0
    assert (folder / "README.md").read_text() == "their licence"
    model = read_model_folder(folder)
    assert (model.name, model.schedule, model.diffusion_steps, model.recommended_scale) == (
        "theirs",
        "linear",
        200,
        2.0,
    )
    assert model.class_names == tuple(name.upper() for name in NAMES)
    assert model.classifier is not None and model.classifier.out_channels == 4
    models = load_prepared(model, None, None, (None, None), CPU)
    assert models.classifier is not None
    record = provenance(foreign)
    assert list(record["classifier"]["test_accuracy"]) == ["t=0", "t=60", "t=100", "t=140"]
    assert record["quality"]["judged_by"] == "classifier" and "diffusion" not in record
    assert (folder / "unet.safetensors").read_bytes() == weights
    assert train(foreign) == 0  # finished


def test_what_the_model_folder_says_cannot_be_said_again(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, message in [
        ("image_size = 8\n", "image_size: 8 is not allowed without [unet]: the model folder says it"),
        ('class_names = ["a"]\n', "class_names: ['a'] is not allowed here: the model folder has others"),
    ]:
        text = foreign.read_text()
        foreign.write_text(line + text)
        assert train(foreign) == 2
        assert message in capsys.readouterr().err
        foreign.write_text(text)


def test_classes_without_names_get_them_and_the_same_file_goes_on(foreign: Path) -> None:
    folder = foreign.parent / "model"
    write_model_folder(dataclasses.replace(read_model_folder(folder), class_names=()), folder)
    foreign.write_text(f"class_names = {list(reversed(NAMES))}\n{foreign.read_text()}")
    assert train(foreign) == 0
    assert read_model_folder(folder).class_names == tuple(reversed(NAMES))
    edit(foreign, "images = 160", "images = 320")
    assert train(foreign) == 0
    assert provenance(foreign)["classifier"]["images"] == 320


def test_a_class_that_the_model_has_not_is_refused(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (foreign.parents[1] / "photos" / "cat").rename(foreign.parents[1] / "photos" / "horse")
    assert train(foreign) == 2
    assert "'horse'" in capsys.readouterr().err
    assert not (foreign.parent / "model" / "training").exists()


def test_a_reference_can_be_anywhere(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    shutil.rmtree(tmp_path / "mine" / "model")
    write_reference(tmp_path / "kept", images(92).take(np.arange(52, 92)))
    edit(path, 'model = "model"', 'model = "model"\nreference = "../kept"')
    edit(path, "images = 480", "images = 16")
    assert train(path, "classifier") == 0
    assert provenance(path)["classifier"]["excluded_images"] == 8


def test_unreadable_images_are_an_error_unless_the_file_leaves_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_project(tmp_path)
    (tmp_path / "photos" / "cat" / "2.png").write_bytes(b"no image")
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("")
    edit(path, "images = 480", "images = 16")
    assert train(path, "classifier") == 2
    assert "2.png is not a readable image" in capsys.readouterr().err
    edit(path, 'name = "mine"', 'name = "mine"\nskip_broken = true')
    assert train(path, "classifier") == 0
    told = capsys.readouterr().err
    assert "train: not used: files that are not images: 1 (cat/notes.txt)" in told
    assert "1 images that cannot be read are left out: " in told
    assert provenance(path)["classifier"]["classes"]["cat"] == 12
