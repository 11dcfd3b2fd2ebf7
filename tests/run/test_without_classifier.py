"""Models without a classifier: scores are null, audits leave them out, and what needs one is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_model import (
    UNCONDITIONAL,
    WITHOUT_CLASSIFIER,
    make_run,
    refused,
    write_manifest,
    write_model,
    write_real_images,
)

from rarefy.cli import main
from rarefy.errors import ManifestError
from rarefy.manifest import Manifest, load_manifest
from rarefy.models.folder import ModelFolder
from rarefy.shards.metadata import read_records
from rarefy.shards.reader import read_samples
from rarefy.stages import seal_run, verify_run

GUIDED = '[[guidance]]\nterm = "classifier"\nscale = 1.0'


@pytest.fixture
def plain(tmp_path: Path) -> Manifest:
    """A manifest of a model without a classifier."""
    write_model(tmp_path / "model", WITHOUT_CLASSIFIER)
    return load_manifest(write_manifest(tmp_path / "rare.toml", "model"))


def test_without_a_classifier_scores_are_null(plain: Manifest, tmp_path: Path) -> None:
    store = make_run(plain, tmp_path / "out")
    assert verify_run(store) == {}
    names = ["predicted_id", "confidence", "entropy", "entropy_normalized", "margin", "classifier_sha256"]
    for sample in read_samples(store, "rare-000000"):
        assert [sample.info[name] for name in names] == [None] * 6
        assert sample.info["checkpoint_sha256"] == plain.model.checkpoint_sha256
    table = pq.read_table(tmp_path / "out" / "metadata" / "rare-000000.parquet", partitioning=None)
    assert [table[name].null_count for name in names] == [4] * 6
    seal_run(store)
    assert "no classifier" in (tmp_path / "out" / "README.md").read_text()


def test_without_a_classifier_an_audit_leaves_scores_out_and_says_so(
    plain: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = write_real_images(tmp_path / "real")
    seal_run(make_run(plain, tmp_path / "out"))
    assert main(["audit", str(tmp_path / "out"), "--json", "--reference", str(real)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "on_class_rate" not in result["metrics"] and "recall" in result["metrics"]
    assert set(result["histograms"]) == {"rarity"} and result["provenance"]["classifier_sha256"] is None
    assert {row["confidence"] for row in result["per_class"]} == {row["on_class_rate"] for row in result["per_class"]}
    assert {row["count"] for row in result["per_class"]} == {2} and result["per_class"][0]["entropy"] is None
    assert main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "audit" / "report.html").read_text()
    assert "no confidence, entropy or on-class rate" in page and not re.search(r"\bnan\b", page, re.IGNORECASE)
    assert "shot off" not in page and "takes for another class" not in page
    shutil.copytree(tmp_path / "out", tmp_path / "second")
    page = tmp_path / "compare.html"
    assert main(["compare", str(tmp_path / "out"), str(tmp_path / "second"), "--page", str(page)]) == 0
    samples = pq.read_table(tmp_path / "out" / "audit" / "samples.parquet")
    assert samples["confidence"].null_count == len(samples) == 8
    arguments = ["audit", str(tmp_path / "out"), "--reference", str(real)]
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "verdict: No real images to compare with"
    assert told[-1] == "note: The model has no classifier, so there is no confidence, entropy or on-class rate."
    assert main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "audit" / "report.html").read_text()
    absent = ("numbers", "distributions", "map", "images", "copies")
    assert not [name for name in absent if f'id="{name}"' in page] and 'id="classes"' in page
    assert "tail: 'confidence'" in refused([*arguments, "--tail", "confidence"], capsys)
    (tmp_path / "gates.toml").write_text("[gates]\non_class_rate = { min = 0.5 }")
    assert "gates.on_class_rate" in refused([*arguments, "--gates", str(tmp_path / "gates.toml")], capsys)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (GUIDED, "guidance[0].term: 'classifier'"),
        ('[[guidance]]\nterm = "predicted-real-image"\n[[guidance]]\nterm = "entropy"', "guidance[1].term: 'entropy'"),
        ('[[guidance]]\nterm = "self-guided"', "guidance[0].term: 'self-guided'"),
        ("[accept]\non_class = true", "accept"),
        ("[gates]\non_class_rate = { min = 0.5 }", "gates.on_class_rate.min: 0.5"),
        ("[gates]\nentropy.per_class = { max = 0.5 }", "gates.entropy.per_class.max: 0.5"),
    ],
)
def test_what_needs_a_classifier_is_refused(plain: Manifest, tmp_path: Path, extra: str, named: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load_manifest(write_manifest(tmp_path / "other.toml", "model", extra))
    assert str(caught.value).startswith(named) and "no classifier" in str(caught.value)


def test_what_needs_none_is_allowed(plain: Manifest, tmp_path: Path) -> None:
    terms = '[[guidance]]\nterm = "predicted-real-image"\n[[guidance]]\nterm = "boost-and-skip"\nstart = 90'
    extra = f"{terms}\n[gates]\nrecall = {{ min = 0.5 }}"
    store = make_run(load_manifest(write_manifest(tmp_path / "other.toml", "model", extra)), tmp_path / "out")
    assert verify_run(store) == {}
    text = (tmp_path / "rare.toml").read_text().replace("batch = 2", "batch = 2\nclassifier_every = 2")
    (tmp_path / "rare.toml").write_text(text)
    with pytest.raises(ManifestError, match=r"sampler\.classifier_every: 2"):
        load_manifest(tmp_path / "rare.toml")


def test_a_model_that_knows_no_classes_makes_images_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model: ModelFolder = dataclasses.replace(WITHOUT_CLASSIFIER, unet=UNCONDITIONAL, class_names=())
    write_model(tmp_path / "model", model)
    manifest = load_manifest(write_manifest(tmp_path / "rare.toml", "model"))
    assert manifest.counts == {0: 8}
    store = make_run(manifest, tmp_path / "out")
    assert verify_run(store) == {} and seal_run(store).counts == {0: 8}
    assert {record.class_name for record in read_records(store, "rare-000001")} == {"all"}
    text = (tmp_path / "rare.toml").read_text().replace("total = 8", "counts = { all = 8 }")
    (tmp_path / "named.toml").write_text(text)
    assert load_manifest(tmp_path / "named.toml").counts == {0: 8}
    capsys.readouterr()
    real = write_real_images(tmp_path / "real")  # of four classes, which this model does not know
    assert main(["audit", str(tmp_path / "out"), "--json", "--reference", str(real)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["class_name"], row["count"]) for row in result["per_class"]] == [("all", 8)]
    assert result["metrics"]["recall"]["generated_count"] == 8 and result["provenance"]["reference_count"] == 16
