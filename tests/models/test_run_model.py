"""``model.json``: what a run remembers of its model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_model import MODEL, WITHOUT_CLASSIFIER, write_model

from rarefy.errors import ManifestError
from rarefy.guidance.opaque import OpaqueTerm
from rarefy.models.folder import library
from rarefy.models.run_model import RunModel, read_run_model, write_run_model
from rarefy.models.source import ModelSpec, find_source


@pytest.mark.parametrize("model", [MODEL, WITHOUT_CLASSIFIER])
def test_what_is_written_is_read(model: Any, tmp_path: Path) -> None:
    spec = find_source("mine", write_model(tmp_path / "mine", model).parent)
    stored = write_run_model(spec)
    assert stored is not None
    read = read_run_model(stored, "model.json")
    assert read == RunModel(spec) and read.model is not None
    assert write_run_model(read.model, read.plugins) == stored


def test_the_real_images_are_hashed_by_name_and_content(tmp_path: Path) -> None:
    path = write_model(tmp_path / "mine", replace(MODEL, files={**MODEL.files, "reference": "reference"}))
    hashes = set()
    for name, data in (("a.tar", b"1"), ("a.tar", b"2"), ("b.tar", b"1")):
        (path / "reference").mkdir(exist_ok=True)
        (path / "reference" / name).write_bytes(data)
        hashes.add(json.loads(write_run_model(find_source(str(path), tmp_path)) or b"")["sha256"]["reference"])
        (path / "reference" / name).unlink()
    assert len(hashes) == 3 and None not in hashes


def test_a_model_that_ships_needs_none() -> None:
    assert write_run_model(ModelSpec(library()["fashion-mnist-28"])) is None


def test_plug_ins_are_kept_with_and_without_a_model(tmp_path: Path) -> None:
    term = OpaqueTerm(path="a.b:C", shown="c", values={"scale": 1.0, "window": None})
    for spec in (ModelSpec(library()["fashion-mnist-28"]), find_source("mine", write_model(tmp_path / "mine").parent)):
        stored = write_run_model(spec, [term])
        assert stored is not None
        read = read_run_model(stored, "model.json")
        assert read == RunModel(None if spec.source is None else spec, (term,))
        assert read.plugins[0].name == "c"


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("format", "x", "format: 'x' is not rarefy-run-model-v1"),
        ("where", None, "where: it is missing; give a string"),
        ("sha256", {}, "sha256.unet: this key is missing"),
        ("sha256", {"unet": "abc", "classifier": None, "reference": None}, "sha256.unet: 'abc'"),
        ("config", {}, "config: format: it is missing"),
        ("more", 1, "'more'"),
        ("plugins", {}, "plugins: {} is not a list"),
        ("plugins", [{"class": "a:B", "name": 1, "values": {}}], "plugins[0]: {'class': 'a:B', 'name': 1"),
    ],
)
def test_damage_is_one_line_with_the_place_and_the_key(key: str, value: object, named: str, tmp_path: Path) -> None:
    content = json.loads(write_run_model(find_source("mine", write_model(tmp_path / "mine").parent)) or b"")
    with pytest.raises(ManifestError) as caught:
        read_run_model(json.dumps(content | {key: value}).encode(), "s3://bucket/out/model.json")
    assert str(caught.value).startswith("s3://bucket/out/model.json: ") and named in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"null"])
def test_what_is_no_json_object(data: bytes) -> None:
    with pytest.raises(ManifestError, match=r"^model\.json: "):
        read_run_model(data, "model.json")
