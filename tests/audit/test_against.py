"""Another run's numbers beside a run's: what is compared, what is left out, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import MANIFEST

from benchmarks.plain import plain_rows, write_rows
from rarefy.audit import against as module
from rarefy.audit.against import (
    SAME_RUN,
    check_against,
    class_counts,
    compare_with,
    named_counts,
    read_against,
    shared_of,
    stored_against,
    stored_plain,
)
from rarefy.audit.audit import AuditOptions, check_before
from rarefy.audit.features.extractors import load_extractor
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.schema import FORMAT, METRICS_PATH, AuditResult, ClassRow, MetricEntry, Provenance, TailSummary
from rarefy.errors import OutputError, RarefyError
from rarefy.manifest import parse_manifest
from rarefy.shards.store import Store

VALUES = {
    "fid_x": 30.0,
    "recall": 0.5,
    "precision": 0.8,
    "rarity": 32.0,
    "on_class_rate": 0.9,
    "tail_recall": 0.3,
    "unknown": 1.0,
}
OF_ANY_COUNT = {"precision", "rarity", "on_class_rate"}


def result(counts: dict[str, int], shift: float = 0.0, guidance: tuple[str, ...] = (), k: int = 3) -> AuditResult:
    """An audit of images by class name."""
    total = sum(counts.values())
    entries = {
        name: MetricEntry(
            value + shift, [value - 1, value + 1], None, None, None, "higher", "x", "pool", k, total, 100, total
        )
        for name, value in VALUES.items()
    }
    rows = [
        ClassRow(place, name, count, count, None, None, None, None, None)
        for place, (name, count) in enumerate(counts.items())
    ]
    return AuditResult(
        format=FORMAT,
        verdict="no gates",
        gates=[],
        partial=False,
        problems=[],
        metrics=entries,
        tail=None,
        histograms={},
        per_class=rows,
        copies=[],
        map=None,
        provenance=provenance(total, guidance, k),
    )


def provenance(total: int, guidance: tuple[str, ...], k: int) -> Provenance:
    return Provenance(
        run="plain",
        manifest_digest="d" * 64,
        preset="fashion-mnist-28",
        sealed=True,
        planned=total,
        committed=total,
        measured=total,
        not_accepted=0,
        checkpoint_sha256="0" * 64,
        classifier_sha256="1" * 64,
        guidance=list(guidance),
        precision="exact",
        fast_errors=None,
        sampler="dpm-solver++, steps logsnr25",
        reference="test images",
        reference_count=100,
        reference_resized=0,
        reference_sha256="a" * 64,
        manifest="",
        versions={},
        created_at="2026-11-22T00:00:00+00:00",
        extractor="x",
        extractor_layer="pool",
        extractor_sha256="e" * 64,
        preprocessing="64 px",
        k=k,
        device="cpu",
        duration_s=1.0,
    )


def write(folder: Path, audit: AuditResult) -> str:
    Store(str(folder)).write_bytes(METRICS_PATH, json.dumps(audit.to_json()).encode())
    return str(folder)


def test_metrics_that_depend_on_the_count_need_equal_counts() -> None:
    own = result({"bag": 4, "coat": 8}, guidance=("low-confidence",))
    same = compare_with("out/plain", result({"bag": 4, "coat": 8}, 0.5), own)
    assert (same.run, same.source, same.images) == ("plain", "out/plain", 12)
    assert same.metrics == {name: value + 0.5 for name, value in VALUES.items()}
    other_tail = replace(own, tail=TailSummary("confidence", 0.2, 20, "c" * 64))
    assert VALUES.keys() - compare_with("out/plain", other_tail, own).metrics.keys() == {"tail_recall"}
    copies = replace(own, metrics=own.metrics | {"copies": own.metrics["recall"]})
    assert "copies" not in compare_with("out/plain", copies, own).metrics
    larger = compare_with("out/plain", result({"bag": 40, "coat": 80}), own)
    assert set(larger.metrics) == set(larger.intervals) == OF_ANY_COUNT and larger.images == 120


def shared(of: AuditResult) -> dict[str, object]:
    """The fields that a comparable audit must share with this one."""
    return shared_of(of.provenance) | {name: getattr(of.provenance, name) for name in SAME_RUN}


@pytest.mark.parametrize("counts", [{"bag": 4}, {"bag": 4, "coat": 9}, {"bag": 4, "coat": 8, "shirt": 1}])
def test_other_proportions_of_classes_are_refused(counts: dict[str, int]) -> None:
    own = result({"bag": 4, "coat": 8})
    with pytest.raises(OutputError, match=r"against: 'out' is not comparable: .*% of its images are of \w+, here"):
        check_against("out", result(counts), shared(own), class_counts(own))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"k": 5}, "k is 5 there and 3 here"),
        ({"sampler": "ddim, steps 9, eta 0"}, "sampler is ddim, steps 9, eta 0 there and dpm-solver++"),
        ({"precision": "fast"}, "precision is fast there and exact here"),
        ({"checkpoint_sha256": "9" * 64}, "checkpoint_sha256 is 999999999999 there and 000000000000 here"),
    ],
)
def test_another_footing_is_refused(changed: dict[str, Any], told: str) -> None:
    own = result({"bag": 4})
    check_against("out", own, shared(own), class_counts(own))
    other = replace(own, provenance=replace(own.provenance, **changed))
    with pytest.raises(OutputError, match=rf"against: 'out' is not comparable: {re.escape(told)}"):
        check_against("out", other, shared(own), class_counts(own))


def test_audits_without_real_images_are_refused_and_those_without_a_classifier_are_not() -> None:
    own = result({"bag": 4})
    unscored = replace(own, provenance=replace(own.provenance, classifier_sha256=None))
    check_against("out", unscored, shared(unscored), class_counts(own))
    bare = replace(own, provenance=replace(own.provenance, reference_sha256=None))
    with pytest.raises(OutputError, match="reference_sha256 is None there and None here"):
        check_against("out", bare, shared(bare), class_counts(bare))


GUIDED = {"guidance": ["classifier"]}
NOT_PLAIN = [GUIDED, {"manifest": "[accept]\non_class = true\n"}, {"manifest": "[select]\nfrom = 2\n"}]


@pytest.mark.parametrize("changed", NOT_PLAIN)
def test_only_plain_sampling_is_compared_with(changed: dict[str, Any]) -> None:
    own = result({"bag": 4})
    other = replace(own, provenance=replace(own.provenance, **changed))
    with pytest.raises(
        OutputError, match=r"against: 'out' is not a run of plain sampling, without guidance, \[accept\]"
    ):
        check_against("out", other, shared(own), class_counts(own))


def test_a_folder_without_an_audit_and_the_run_itself_are_refused(tmp_path: Path) -> None:
    own = Store(str(tmp_path / "own"))
    with pytest.raises(OutputError, match="is not a folder with an audit"):
        read_against(str(tmp_path / "nowhere"), own)
    write(tmp_path / "own", result({"bag": 4}))
    with pytest.raises(OutputError, match="is not another run's folder"):
        read_against(str(tmp_path / "own"), own)


def test_a_run_is_compared_before_it_is_made(tmp_path: Path, real_folder: Path) -> None:
    """With all that is known then: sampler, real images, features, k and classes."""
    manifest = parse_manifest(MANIFEST, "x")
    reference, extractor = load_reference(manifest.preset, str(real_folder)), load_extractor()
    assert reference is not None
    plain = result(named_counts(manifest))
    fitting = replace(
        plain.provenance,
        sampler=manifest.settings.text(),
        reference_sha256=reference.of_classes(manifest.counts).real.sha256(),
        extractor_sha256=extractor.digest,
        extractor_layer=extractor.layer,
        preprocessing=extractor.preprocessing,
    )
    against = write(tmp_path / "plain", replace(plain, provenance=fitting))
    options, store = AuditOptions(reference=str(real_folder), against=against), Store(str(tmp_path / "out"))
    check_before(store, manifest, options)
    with pytest.raises(OutputError, match="is not comparable: k is 3 there and 4 here"):
        check_before(store, manifest, replace(options, k=4))
    one = parse_manifest(MANIFEST.replace("counts = { 0 = 12, 1 = 8, 4 = 4 }", "counts = { 0 = 12 }"), "x")
    with pytest.raises(OutputError, match="is not comparable: reference_sha256 is"):
        check_before(store, one, options)


def test_stored_numbers_are_means_at_equal_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made by ``benchmarks.plain`` from audited runs, and read from the model's folder."""
    counts = {"bag": 4, "coat": 8}
    audits = [result(counts, shift) for shift in (0.0, 0.2)] + [result({"bag": 40, "coat": 80}, 1.0)]
    outs = [write(tmp_path / str(place), audit) for place, audit in enumerate(audits)]
    preset, rows = plain_rows(outs)
    assert preset == "fashion-mnist-28" and [(row.runs, row.images) for row in rows] == [(2, 12), (1, 120)]
    assert rows[0].spread["recall"] == pytest.approx(0.2 / 2**0.5)
    assert rows[0].intervals["recall"] == [-0.5, 1.5]
    (tmp_path / "library" / preset).mkdir(parents=True)
    write_rows(tmp_path / "library" / preset / module.STORED, rows)
    monkeypatch.setattr(module, "LIBRARY", tmp_path / "library")
    assert stored_plain() == rows
    found = stored_against(result(counts), stored_plain())
    assert found is not None and found.source == "stored with the model, mean of 2 runs"
    assert found.intervals.keys() == VALUES.keys()
    assert found.metrics == pytest.approx({name: value + 0.1 for name, value in VALUES.items()})
    other = stored_against(result({"bag": 3, "coat": 6}), stored_plain())
    assert other is not None and (other.images, set(other.metrics)) == (120, OF_ANY_COUNT)
    assert stored_against(result({"bag": 3}), stored_plain()) is None
    assert stored_against(result(counts, k=5), stored_plain()) is None
    own = result(counts)
    sampler = replace(own, provenance=replace(own.provenance, sampler="ancestral, steps 250"))
    assert stored_against(sampler, stored_plain()) is None


@pytest.mark.parametrize("changed", NOT_PLAIN)
def test_only_plain_runs_are_stored(changed: dict[str, Any], tmp_path: Path) -> None:
    own = result({"bag": 4})
    other = write(tmp_path / "other", replace(own, provenance=replace(own.provenance, **changed)))
    with pytest.raises(RarefyError, match=r"without guidance, \[accept\] and \[select\]"):
        plain_rows([other])


def test_what_ships_can_be_read() -> None:
    for row in stored_plain():
        assert row.metrics.keys() == row.spread.keys() and row.images <= sum(row.classes.values())
