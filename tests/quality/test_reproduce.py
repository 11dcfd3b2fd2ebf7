"""The experiment's job: its sets are runs of their own, its rows are made once and say what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.choice import RULES, choose, effective
from benchmarks.quality.measure import compared, measure_floor, on_class, yardstick
from benchmarks.quality.methods import METHODS, final_sets, sweep_sets
from jobs import reproduce
from rarefy.audit.features.extractors import kept_features
from rarefy.audit.inputs.reference import read_embedded
from rarefy.guidance.terms import ClassifierGuidance
from rarefy.models.folder import find_model

METRICS = {
    "fid", "precision", "recall", "density", "coverage", "tail_recall", "tail_coverage", "rarity", "avg_knn",
    "variance", "confidence", "entropy", "on_class",
}  # fmt: skip


def test_every_set_is_a_manifest_of_its_own() -> None:
    sets = [*final_sets(list(METHODS), [0, 1, 2], 5000), *sweep_sets(1000)]
    assert len({s.folder for s in sets}) == len({s.manifest.digest for s in sets}) == len(sets)
    assert {s.manifest.total for s in sets} == {5000, 1000}
    assert all(set(s.manifest.counts.values()) == {s.images // 10} for s in sets)
    assert all(s.manifest.preset.name == s.preset for s in sets)


def test_guidance_reaches_the_manifest() -> None:
    (eds,) = next(s for s in final_sets(["eds"], [4], 100)).manifest.terms
    assert isinstance(eds, ClassifierGuidance) and eds.entropy_scaling
    assert METHODS["adm"][1] == () and METHODS["eds-ect"][1] == METHODS["eds"][1]


def test_the_sweep_never_sees_the_seeds_of_the_final_table() -> None:
    assert not {image_set.seed for image_set in sweep_sets(1000)} & set(reproduce.parse([]).seeds)


def test_the_final_tables_values_follow_from_the_sweep() -> None:
    chosen = choose(reproduce.read_results(Path(reproduce.__file__).parents[2] / "docs/results.json"))
    assert chosen == {method: effective(METHODS[method][1]) for method in RULES}


def test_real_images_have_perfect_recall_of_themselves_and_the_judge_knows_most_of_them() -> None:
    real = yardstick().reference.real
    found = compared(kept_features(real.images, yardstick().extractor), real.images, real.labels)
    assert found["fid"] < 1e-3 and found["recall"] == found["tail_recall"] == 1.0
    assert yardstick().tail.sum() == 1000
    assert 0.9 < found["on_class"] < 0.95
    wrong = on_class(real.images, (real.labels + 1) % 10)
    assert wrong < 0.05


def test_rows_are_made_once_and_hold_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results.json"), "--seeds", "0"]
    command += ["--images", "20", "--methods", "adm,uncond-eds-ect"]
    assert reproduce.main([*command, "--minutes", "0"]) == 0
    assert "2 sets are left for the next run" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    assert reproduce.main(command) == 0
    assert "2 sets to make" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["final"]
    assert {row["method"] for row in rows} == {"adm", "uncond-eds-ect"}
    for row in (*rows, results["floor"]):
        assert row["count"] == 20 and row.keys() >= METRICS
        assert 0 <= row["tail_recall"] <= row["recall"] <= 1 and row["fid"] > 0
    assert all(row["images_per_s"] > 0 for row in rows)
    assert results["traces"]["chains"].keys() == {"conditional", "unconditional"}
    page = (tmp_path / "RESULTS.md").read_text()
    assert "`uncond-eds-ect`" in page and "not measured: `low-density`" in page
    assert (tmp_path / "results-plane.svg").is_file()
    before = (tmp_path / "results.json").read_bytes()
    assert reproduce.main(command) == 0
    assert "0 sets to make" in capsys.readouterr().err
    assert json.loads(before)["final"] == json.loads((tmp_path / "results.json").read_text())["final"]
    assert reproduce.main([*command, "--images", "30"]) == 2
    assert "--images: 30 is not 20, which rows of" in capsys.readouterr().err


def test_the_floor_is_of_images_that_are_not_compared_with() -> None:
    manifest = next(final_sets(["adm"], [0], 200)).manifest
    floor = measure_floor(manifest)
    assert floor["count"] == 200 and floor["fid"] > 1
    test = read_embedded(find_model("fashion-mnist-28"), "reference")
    assert floor["on_class"] == pytest.approx(on_class(test.images, test.labels), abs=1e-9)


def test_a_changed_sampler_is_another_row() -> None:
    image_set = next(final_sets(["low-density"], [0], 20))
    other = dataclasses.replace(image_set, guidance=image_set.guidance[:1])
    row = reproduce.row_of(image_set, {"fid": np.float64(1.0)})
    results = {"final": [row], "sweep": []}
    assert reproduce.missing(results, [image_set, other]) == [other]
    changed, another = (
        reproduce.row_of(found, {"fid": np.float64(2.0)}) for found in (other, next(final_sets(["adm"], [0], 20)))
    )
    assert reproduce.with_row([row, another], changed) == [another, changed]
    assert reproduce.with_row([row], another) == [row, another]


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
def test_another_files_content_is_never_overwritten(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    assert reproduce.main(["--out", str(tmp_path / "out"), "--results", str(path)]) == 2
    assert "--results" in capsys.readouterr().err and path.read_text() == text
