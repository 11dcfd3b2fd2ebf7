"""The sweep over steps: what it makes, what it takes up again, and how it judges."""

from __future__ import annotations

import argparse
import dataclasses
import json
import xml.etree.ElementTree as ET
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.rows import read_rows
from benchmarks.steps import wanted
from benchmarks.steps_report import Sweep, conclusion, curves, fewest, limits, summary, table
from benchmarks.steps_work import SOLVERS, Common, Job, Setting, make_batch
from rarefy.guidance.base import Term
from rarefy.guidance.terms import ClassifierGuidance, PredictedRealImage
from rarefy.manifest import ModelSpec
from rarefy.models.folder import find_model
from rarefy.plan import Plan

COMMON = Common("fashion-mnist-28", "weights", "reference", "()", 20, 4, "exact")


def row(solver: str, steps: int, seed: int, fid: float, recall: float, on_class: float = 0.9, every: int = 1) -> Any:
    found = {"fid_lite": fid, "precision": 0.8, "recall": recall, "tail_recall": 0.3, "coverage": 0.4}
    found |= {"on_class_rate": on_class, "confidence": 0.8, "entropy": 0.3, "cpu_seconds_an_image": 0.01}
    return {"setting": asdict(Setting(solver, steps, every, seed, COMMON)), "metrics": found}


def sweep(*rows: Any) -> Sweep:
    floor = {"fid_lite": 90.0, "precision": 0.85, "recall": 0.8, "tail_recall": 0.6, "coverage": 0.5}
    floor |= {"on_class_rate": 0.9, "confidence": 0.8, "entropy": 0.3}
    return Sweep(rows, floor, ("ancestral", 250), asdict(COMMON))


# FID 100 with a standard deviation of 2, recall 0.7 with 0.01, on class 0.9 with none: at most 104, at least 0.68, 0.9.
REFERENCE = [row("ancestral", 250, seed, 100 + 2 * d, 0.7 + 0.01 * d) for seed, d in enumerate((-1, 0, 1))]


def test_limits_are_two_standard_deviations_of_a_seed_from_the_mean() -> None:
    found = limits(sweep(*REFERENCE, row("ancestral", 250, 0, 900, 0.1, every=2), row("ddim", 250, 0, 900, 0.1)))
    assert {name: (limit.mean, limit.margin) for name, limit in found.items()} == {
        "fid": pytest.approx((100, 4)),
        "recall": pytest.approx((0.7, 0.02)),
        "on_class_rate": pytest.approx((0.9, 0), abs=1e-12),
    }


@pytest.mark.parametrize(
    ("fid", "recall", "on_class", "good"),
    [
        (103.9, 0.681, 0.91, True),
        (50.0, 0.9, 1.0, True),
        (104.1, 0.7, 0.91, False),
        (100.0, 0.679, 0.91, False),
        (100.0, 0.7, 0.89, False),
    ],
)
def test_a_row_is_as_good_where_it_is_no_worse_in_all_three(
    fid: float, recall: float, on_class: float, good: bool
) -> None:
    found = sweep(*REFERENCE, row("ddim", 25, 0, fid, recall, on_class))
    assert ("ddim" in fewest(found)) is good


def test_fewest_steps_count_means_over_seeds_and_no_left_out_pass() -> None:
    found = sweep(
        *REFERENCE,
        row("ddim", 10, 0, 120, 0.7, 0.95),
        row("ddim", 15, 0, 100, 0.7, 0.95),
        row("ddim", 15, 1, 109, 0.7, 0.95),
        row("ddim", 50, 0, 100, 0.7, 0.95),
        row("dpm-solver++", 10, 0, 100, 0.7, 0.95, every=2),
        row("dpm-solver++", 25, 0, 106, 0.7, 0.95),
        row("dpm-solver++", 25, 1, 101, 0.7, 0.95),
    )
    assert {solver: entry.steps for solver, entry in fewest(found).items()} == {
        "ancestral": 250,
        "ddim": 50,
        "dpm-solver++": 25,
    }
    last = conclusion(found)[-1]
    assert last == "Fewest steps as good: 25 with dpm-solver++ (by solver: ancestral 250, ddim 50, dpm-solver++ 25)."


def test_one_seed_of_the_reference_judges_nothing() -> None:
    found = sweep(REFERENCE[0], row("ddim", 25, 0, 50, 0.9))
    assert limits(found) == {} and fewest(found) == {}
    assert conclusion(found) == ["Not judged: ancestral with 250 steps needs at least two seeds."]


def test_table_has_the_floor_and_a_line_an_entry_and_json_the_same_numbers() -> None:
    found = sweep(*REFERENCE, row("ddim", 25, 0, 120, 0.5))
    lines = [line for line in table(found).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 5
    assert lines[2].startswith("| real images |  |  |  | 90 | 0.85 | 0.8 |")
    assert lines[3].startswith("| ancestral | 250 | 1 | 0,1,2 | 100 | 0.8 | 0.7 |") and lines[3].endswith("| yes |")
    assert lines[4].startswith("| ddim | 25 | 1 | 0 | 120 |") and lines[4].endswith("| no |")
    again = json.loads(json.dumps(summary(found)))
    assert again["fewest_steps"] == {"ancestral": 250} and again["rows"][1]["values"]["fid"] == 120


def test_the_plot_has_a_point_an_entry_in_each_panel_at_its_height() -> None:
    found = sweep(*REFERENCE, row("ddim", 25, 0, 120, 0.5), row("ddim", 50, 0, 110, 0.6))
    root = ET.fromstring(curves(found))
    tag = "{http://www.w3.org/2000/svg}"
    lines = [line.get("points") for line in root.iter(f"{tag}polyline")]
    assert [len(line.split()) for line in lines if line] == [1, 2, 1, 2]
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines if line]
    assert heights[1][0] > heights[1][1] > heights[0][0], "more recall is higher up"
    assert heights[3][0] < heights[3][1] < heights[2][0], "more FID is higher up"


@pytest.mark.parametrize(
    ("terms", "every"),
    [((ClassifierGuidance(),), {1, 2}), ((PredictedRealImage(gamma=0.1),), {1})],
)
def test_each_row_is_asked_for_once_and_passes_left_out_only_with_a_classifier_term(
    terms: tuple[Term, ...], every: set[int]
) -> None:
    arguments = argparse.Namespace(
        reference_steps=250, seeds=[0, 1], solvers=["ancestral", "ddim"], steps=[25, 250], row_seeds=[0],
        classifier_every=[1, 2], every_steps=[25],
    )  # fmt: skip
    found = [(s.solver, s.steps, s.classifier_every, s.seed) for s in wanted(arguments, COMMON, terms)]
    plain = [("ancestral", 250, 1, 0), ("ancestral", 250, 1, 1), ("ancestral", 25, 1, 0), ("ddim", 25, 1, 0)]
    skipped = [("ancestral", 25, 2, 0), ("ddim", 25, 2, 0)] if every == {1, 2} else []
    assert sorted(found) == sorted([*plain, ("ddim", 250, 1, 0), *skipped])


def test_rows_are_read_back_as_settings_and_half_a_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text(json.dumps(REFERENCE[0]) + "\n" + json.dumps(REFERENCE[1])[:40])
    assert [found["setting"] for found in read_rows(path)] == [asdict(Setting("ancestral", 250, 1, 0, COMMON))]
    with path.open("a") as file:
        file.write(json.dumps(REFERENCE[1]) + "\n")
    assert read_rows(path) == REFERENCE[:2]


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_takes_every_number_of_steps_of_the_sweep(solver: str) -> None:
    for steps in (10, 15, 25, 50, 100, 250):
        chain = Setting(solver, steps, 1, 0, COMMON).sampler.chain(find_model("fashion-mnist-28"))
        assert len(chain.schedule) == steps


def test_a_row_does_not_depend_on_how_it_is_cut_into_batches() -> None:
    """The features lie within a hundredth of their length: a pixel may differ by a level where sums round otherwise."""
    setting = Setting("dpm-solver++-sde", 3, 1, 7, COMMON)
    slots = Plan({0: 2, 8: 2}, 4).shard(0).slots
    job = Job(setting, ModelSpec("fashion-mnist-28"), (ClassifierGuidance(),), "cpu", slots)
    whole = make_batch(job)
    parts = [make_batch(dataclasses.replace(job, slots=slots[k : k + 2])) for k in (0, 2)]
    assert whole.features.shape == (4, 1280) and whole.on_class.shape == (4,)
    length = np.linalg.norm(whole.features, axis=1)
    again = np.concatenate([part.features for part in parts])
    assert (np.linalg.norm(whole.features - again, axis=1) < 0.01 * length).all()
    assert (np.linalg.norm(whole.features - np.roll(again, 1, axis=0), axis=1) > 0.1 * length).all()
    confidence = np.concatenate([part.confidence for part in parts])
    assert confidence == pytest.approx(whole.confidence, abs=1e-2)
