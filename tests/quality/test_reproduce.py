"""The experiment: its sets are ordinary runs, its rows are made once, and results that differ are never mixed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from pathlib import Path

import pytest
from small_model import make_run

from benchmarks.quality import measure, reproduce
from benchmarks.quality.methods import METHODS, ImageSet, final_sets
from benchmarks.quality.results import missing, read_results, row_of, with_row
from benchmarks.quality.sweep import choose, effective, sweep_sets
from benchmarks.quality.traces import SAMPLER, traces
from rarefy.audit.features.extractors import extract_outputs, load_extractor
from rarefy.audit.inputs.reference import Reference, load_reference, match_counts
from rarefy.audit.metrics.neighbors import build_manifold
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.adm import Classifier
from rarefy.models.checkpoint import load_network
from rarefy.models.folder import find_model

MODEL = find_model("fashion-mnist-28")
COMMITTED = read_results(reproduce.DOCS / "results.json")


@pytest.fixture(scope="module")
def small() -> measure.Yardstick:
    """The yardstick with 6 real images per class."""
    embedded, extractor = load_reference(MODEL, None), load_extractor()
    assert embedded is not None
    real, held_out = (match_counts(part, dict.fromkeys(range(10), 6)) for part in (embedded.real, embedded.held_out))
    judge, _ = load_network(lambda: Classifier(MODEL.classifier), MODEL.file("judge"))
    manifold = build_manifold(extract_outputs(real.images, extractor), 3)
    return measure.Yardstick(extractor, Reference(real, held_out, "six per class"), manifold, judge)


def short_sets(methods: list[str], seeds: list[int], images: int) -> list[ImageSet]:
    return [dataclasses.replace(image_set, steps=3) for image_set in final_sets(methods, seeds, images)]


def test_every_set_is_a_manifest_of_its_own() -> None:
    sets = [*final_sets(list(METHODS), [0, 1, 2], 5000), *sweep_sets(COMMITTED["sweep"], 1000)]
    assert len({s.folder for s in sets}) == len({s.manifest.digest for s in sets}) == len(sets) == 194
    assert all(set(s.manifest.counts.values()) == {s.images // 10} for s in sets)
    assert all(s.manifest.preset.name == s.preset for s in sets)
    assert not {s.seed for s in sets if s.part == "sweep"} & {s.seed for s in sets if s.part == "final"}


def test_the_committed_rows_belong_to_the_sets_and_weights_of_today() -> None:
    sets = reproduce.requested(reproduce.parse(["--stages", "sweep,final"]))
    assert len(sets) == len(COMMITTED["final"]) + len(COMMITTED["sweep"])
    assert missing(COMMITTED, sets) == []
    assert [row["sampler"] for row in COMMITTED["sweep"]] == [s.sampler for s in sets if s.part == "sweep"]


def test_guidance_reaches_the_manifest() -> None:
    (eds,) = next(final_sets(["eds"], [4], 100)).manifest.terms
    assert isinstance(eds, ClassifierGuidance) and eds.entropy_scaling and eds.scale == 0.25


def test_the_final_values_follow_from_the_sweep() -> None:
    chosen = choose(COMMITTED)
    assert len(chosen) == 11 and chosen == {method: effective(METHODS[method][1]) for method in chosen}


def test_real_images_match_themselves_and_the_judge_knows_most_of_them(
    small: measure.Yardstick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "yardstick", lambda: small)
    monkeypatch.setattr(measure, "BATCH", 25)
    real = small.reference.real
    metrics = measure.measured(small.real.features, real)
    assert metrics["fid"] < 1e-2 and metrics["recall"] == metrics["tail_recall"] == 1.0 and metrics["count"] == 60
    assert metrics["on_class"] > 0.8
    assert measure.on_class(dataclasses.replace(real, labels=(real.labels + 1) % 10)) < 0.1
    baseline = measure.measure_real(next(final_sets(["adm"], [0], 20)).manifest)
    assert baseline["count"] == 20 and baseline["fid"] > 1 and baseline["on_class"] == metrics["on_class"]


def test_rows_are_made_once(
    small: measure.Yardstick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "yardstick", lambda: small)
    monkeypatch.setattr(reproduce, "final_sets", short_sets)
    sampler = dataclasses.replace(SAMPLER, steps="logsnr2")
    monkeypatch.setattr(reproduce, "traces", functools.partial(traces, precision="exact", sampler=sampler))
    # The same bytes as with actors (tests/run/test_driver.py), without the seconds in which Ray starts.
    monkeypatch.setattr(reproduce, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(reproduce, "generate", lambda manifest, options, _: make_run(manifest, Path(options.out)))
    path = tmp_path / "results.json"
    command = ["--out", str(tmp_path / "out"), "--results", str(path), "--seeds", "0", "--images", "20"]
    command += ["--methods", "adm,uncond-eds-ect"]
    assert reproduce.main(command) == 0
    assert "2 sets to make" in capsys.readouterr().err
    results = json.loads(path.read_text())
    assert [row["method"] for row in results["final"]] == ["adm", "uncond-eds-ect"]
    for row in (*results["final"], results["floor"]):
        assert row["count"] == 20 and 0 <= row["tail_recall"] <= 1 and row["fid"] > 0 and 0 < row["confidence"] < 1
    assert results["setting"]["tail"] == 0.2 and len(results["traces"]["chains"]) == 2
    assert "`uncond-eds-ect`" in (tmp_path / "RESULTS.md").read_text()
    assert (tmp_path / "results-samplers.svg").is_file()
    before = path.read_bytes()
    assert reproduce.main(command) == 0
    assert "0 sets to make" in capsys.readouterr().err and path.read_bytes() == before
    assert reproduce.main([*command, "--images", "30"]) == 2
    assert "images of the final sets: 30 is not 20, as in the rows of" in capsys.readouterr().err


def test_a_file_with_another_tail_takes_no_new_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    monkeypatch.setattr(reproduce, "add_row", lambda *_: pytest.fail("a row was made"))
    path.write_text(json.dumps(COMMITTED))
    assert reproduce.main(["--out", str(tmp_path / "out"), "--results", str(path), "--seeds", "7"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"setting.tail in {path}: 0.1 is not 0.2, the tail of new rows; name a new file with --results"
    assert json.loads(path.read_text()) == COMMITTED and not (tmp_path / "out").exists()


def test_a_changed_sampler_is_another_row() -> None:
    (image_set,) = final_sets(["low-density"], [0], 20)
    other = dataclasses.replace(image_set, guidance=image_set.guidance[:1])
    row = row_of(image_set, {"fid": 1.0})
    assert missing({"final": [row], "sweep": []}, [image_set, other]) == [other]
    changed, another = (row_of(s, {"fid": 2.0}) for s in (other, next(final_sets(["adm"], [0], 20))))
    assert with_row([row, another], changed) == [another, changed]
    assert with_row([row], another) == [row, another]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "adm,dream"], "--methods: 'dream' is not one of adm, adm-g"),
        (["--stages", "all"], "--stages: 'all' is not one of sweep, final"),
        (["--images", "20000"], "--images: 20000 is not from 10 to 10000"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other"}'])
def test_a_file_of_another_format_is_never_overwritten(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    assert reproduce.main(["--out", str(tmp_path / "out"), "--results", str(path)]) == 2
    assert "--results" in capsys.readouterr().err and path.read_text() == text
