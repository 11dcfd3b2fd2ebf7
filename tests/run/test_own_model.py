"""Runs of a model folder: its digest, an output that needs nothing else, and models without a classifier."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_model import MODEL, make_run, refused, write_manifest, write_model, write_real_images

from rarefy.cli import main
from rarefy.errors import CheckpointError, ManifestError, OutputError
from rarefy.generate.actor import ShardGenerator
from rarefy.generate.driver import GenerateOptions, generate
from rarefy.generate.fleet import Fleet
from rarefy.manifest import Manifest, load_manifest
from rarefy.models.folder import read_model_folder, write_model_folder
from rarefy.models.run_model import write_run_model
from rarefy.shards.claim import claim_output
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store
from rarefy.stages import seal_run, verify_run

GUIDED = '[[guidance]]\nterm = "classifier"\nscale = 1.0'


@pytest.fixture
def own(tmp_path: Path) -> Manifest:
    """A manifest next to its model folder."""
    write_model(tmp_path / "model")
    return load_manifest(write_manifest(tmp_path / "rare.toml", "model", GUIDED))


def test_the_digest_follows_what_the_folder_has_and_not_where_it_is(own: Manifest, tmp_path: Path) -> None:
    text = tmp_path / "rare.toml"
    shutil.copytree(tmp_path / "model", tmp_path / "elsewhere" / "renamed")
    moved = load_manifest(write_manifest(tmp_path / "moved.toml", str(tmp_path / "elsewhere" / "renamed"), GUIDED))
    assert moved.digest == own.digest
    described = dataclasses.replace(read_model_folder(tmp_path / "model"), name="new", description="new")
    write_model_folder(described, tmp_path / "model")
    assert load_manifest(text).digest == own.digest
    write_model_folder(dataclasses.replace(described, schedule="linear"), tmp_path / "model")
    assert load_manifest(text).digest != own.digest
    write_model_folder(described, tmp_path / "model")
    for name in ("unet", "classifier"):
        path = tmp_path / "model" / f"{name}.safetensors"
        before, weights = path.read_bytes(), load_file(path)
        next(iter(weights.values())).view(-1)[0] += 1
        save_file(weights, path)
        assert load_manifest(text).digest != own.digest
        path.write_bytes(before)
    assert load_manifest(text).digest == own.digest


def test_a_run_needs_nothing_but_its_folder(own: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sealed, verified and generated again after the model folder and the manifest are gone and OUT has moved."""
    make_run(own, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "model").rename(tmp_path / "gone")
    (tmp_path / "rare.toml").unlink()
    store = Store(str(tmp_path / "moved"))
    assert verify_run(store) == {}
    assert seal_run(store).samples == 8
    assert load_manifest(tmp_path / "moved" / "manifest.toml").digest == own.digest
    content = json.loads((tmp_path / "moved" / "model.json").read_bytes())
    assert content["where"] == str(tmp_path / "model")
    assert (content["sha256"]["unet"], content["sha256"]["classifier"]) == (
        own.model.checkpoint_sha256, own.model.classifier_sha256,
    )  # fmt: skip
    content["config"]["schedule"]["name"] = "linear"
    (tmp_path / "moved" / "model.json").write_text(json.dumps(content))
    with pytest.raises(OutputError, match="is not a whole run: manifest"):
        verify_run(store)


def test_every_image_is_of_the_folders_weights(own: Manifest, tmp_path: Path) -> None:
    store = make_run(own, tmp_path / "out")
    record = read_records(store, "rare-000000")[0]
    assert (record.checkpoint_sha256, record.classifier_sha256) == (
        own.model.checkpoint_sha256, own.model.classifier_sha256,
    )  # fmt: skip
    # The folder changes after the manifest was read, as it would between the driver and an actor.
    path = tmp_path / "model" / "unet.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="the manifest allows"):
        ShardGenerator(own, str(tmp_path / "other"), "cpu", 1).load()


def test_an_audit_finds_the_model_where_it_was_or_says_so(
    own: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = write_real_images(tmp_path / "real")
    store = make_run(own, tmp_path / "out")
    seal_run(store)
    audit = ["audit", str(tmp_path / "out"), "--json"]
    of_real = [*audit, "--reference", str(real)]
    assert main(of_real) == 0
    there = json.loads(capsys.readouterr().out)["metrics"]["on_class_rate"]
    assert there["floor"] is not None
    (tmp_path / "model").rename(tmp_path / "gone")
    assert main(of_real) == 0, "real images are given, so only the scores of the real images are missing"
    assert json.loads(capsys.readouterr().out)["metrics"]["on_class_rate"]["floor"] is None
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "its scores have no real baseline" in (tmp_path / "out" / "audit" / "report.html").read_text()
    assert main(audit) == 0, "the folder had no real images of its own"
    capsys.readouterr()
    assert main([*of_real, "--model", str(tmp_path / "gone")]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["on_class_rate"] == there
    write_model(tmp_path / "model", seed=7)
    message = refused(of_real, capsys)
    assert "is not the model of this run: its diffusion weights differ" in message


def test_an_audit_never_uses_other_real_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(
        tmp_path / "model", dataclasses.replace(MODEL, files={**MODEL.files, "reference": "reference"})
    )
    write_real_images(folder / "reference")
    manifest = load_manifest(write_manifest(tmp_path / "rare.toml", "model"))
    make_run(manifest, tmp_path / "out")
    assert main(["audit", str(tmp_path / "out"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["provenance"]
    assert shown["reference_count"] == 16 and shown["reference"].startswith("held-out images of the model")
    (folder / "reference" / "0" / "0.png").rename(folder / "reference" / "1" / "8.png")
    assert "its real images differ" in refused(["audit", str(tmp_path / "out")], capsys)
    folder.rename(tmp_path / "gone")
    message = refused(["audit", str(tmp_path / "out")], capsys)
    assert str(folder) in message and "--model PATH" in message and "--reference" in message


def test_real_images_that_were_never_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = dataclasses.replace(MODEL, files={**MODEL.files, "reference": "reference"})
    write_model(tmp_path / "model", model)
    make_run(load_manifest(write_manifest(tmp_path / "rare.toml", "model")), tmp_path / "out")
    message = refused(["audit", str(tmp_path / "out")], capsys)
    assert f"{tmp_path}/model/reference is missing; give --reference" in message


def test_a_model_that_is_not_trained_can_be_planned_but_not_run(
    own: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model" / "classifier.safetensors").unlink()
    assert main(["plan", str(tmp_path / "rare.toml")]) == 0
    shown = capsys.readouterr().out
    assert "digest unknown until the model is trained" in shown
    assert "not trained yet: it lacks classifier.safetensors" in shown
    for command in ("generate", "run"):
        message = refused([command, str(tmp_path / "rare.toml"), "--out", str(tmp_path / "out")], capsys)
        assert "not trained yet: it lacks classifier.safetensors; run rarefy train" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["checkpoint", "checkpoint_sha256", "classifier", "classifier_sha256"])
def test_a_folder_has_its_own_weights(own: Manifest, tmp_path: Path, key: str) -> None:
    path = tmp_path / "rare.toml"
    path.write_text(path.read_text().replace("[sampler]", f'{key} = "{"a" * 64}"\n[sampler]'))
    with pytest.raises(ManifestError, match=rf"model\.{key}: .* is not allowed with model\.path"):
        load_manifest(path)


def test_a_class_that_the_model_has_not(own: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "rare.toml"
    path.write_text(path.read_text().replace("total = 8", 'counts = { "main coon" = 8 }'))
    with pytest.raises(ManifestError, match=r"'main coon' is not a class of tiny.*nearest: maine coon"):
        load_manifest(path)


def test_an_unknown_schedule_names_the_file(own: Manifest, tmp_path: Path) -> None:
    write_model_folder(dataclasses.replace(MODEL, schedule="sigmoid"), tmp_path / "model")
    with pytest.raises(ManifestError, match=r"model/config\.json: schedule: 'sigmoid'"):
        load_manifest(tmp_path / "rare.toml")


@pytest.mark.slow
def test_a_run_with_actors_writes_what_it_needs(own: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = generate(own, GenerateOptions(str(tmp_path / "out"), actors=1, cpus_per_actor=1), lambda status: None)
    assert result.images == 8
    make_run(own, tmp_path / "same")
    for name in ("rare-000000.tar", "rare-000001.tar"):
        assert (tmp_path / "out" / "shards" / name).read_bytes() == (tmp_path / "same" / "shards" / name).read_bytes()
    for name in ("model.json", "manifest.toml", "state/run.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    # A finished run is resumed without actors; what it knows of the model's place is brought up to date.
    (tmp_path / "model").rename(tmp_path / "renamed")
    monkeypatch.setattr(Fleet, "finish", None)
    moved = load_manifest(write_manifest(tmp_path / "rare.toml", "renamed", GUIDED))
    assert moved.digest == own.digest
    with pytest.raises(OutputError, match="the run of this manifest"):
        claim_output(Store(str(tmp_path / "out")), moved.text, "0" * 64, write_run_model(moved.model))
    generate(moved, GenerateOptions(str(tmp_path / "out")), lambda status: None)
    assert json.loads((tmp_path / "out" / "model.json").read_bytes())["where"] == str(tmp_path / "renamed")


def test_a_run_is_completed_from_its_own_copy_of_the_manifest(
    own: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    make_run(own, out)
    (tmp_path / "rare.toml").unlink()
    (tmp_path / "model").rename(tmp_path / "gone")
    assert main(["generate", str(out / "manifest.toml"), "--out", str(out)]) == 0, "nothing is left to generate"
    (out / "state" / "rare-000001.json").unlink()
    message = refused(["generate", str(out / "manifest.toml"), "--out", str(out)], capsys)
    assert str(tmp_path / "model") in message and "moved or deleted" in message


def test_only_a_runs_own_manifest_takes_its_model_from_the_file_next_to_it(own: Manifest, tmp_path: Path) -> None:
    (tmp_path / "rare.toml").rename(tmp_path / "manifest.toml")
    (tmp_path / "model.json").write_text('{"somebody": "else\'s"}')
    assert load_manifest(tmp_path / "manifest.toml").digest == own.digest
    make_run(own, tmp_path / "out")
    (tmp_path / "out" / "model.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"out/model\.json: format: it is missing"):
        load_manifest(tmp_path / "out" / "manifest.toml")
