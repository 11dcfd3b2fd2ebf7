"""What the page says, from plain values to plain values."""

from typing import Any

import pytest

from rarefy.audit.metrics.kinds import metric_label, reading_order
from rarefy.audit.page.figures import ClassCell, class_table, notes, verdict
from rarefy.audit.page.templates import reached
from rarefy.audit.schema import AuditResult, MetricEntry

Result = dict[str, Any]


def entry(value: float, floor: float | None, better: str = "higher") -> MetricEntry:
    return MetricEntry(value, None, None, floor, None, better, "net", "layer", 3, 9000, 10_000, 9000)


def typed(result: Result) -> AuditResult:
    return AuditResult.from_json(result)


@pytest.mark.parametrize(
    ("recall", "precision", "level"),
    [(0.8, 0.8, "close"), (0.73, 0.73, "close"), (0.61, 0.8, "usable"), (0.8, 0.61, "usable"), (0.59, 0.8, "far")],
)
def test_verdict_is_the_worse_of_recall_and_precision(
    result: Result, recall: float, precision: float, level: str
) -> None:
    for name, value in (("recall", recall), ("precision", precision)):
        result["metrics"][name] |= {"value": value, "floor": 0.8}
    found = verdict(typed(result))
    assert found.level == level
    assert f"covers {recall:.0%} of the real test images" in found.lines[0]
    assert "Of the 20% rarest it covers 30% (real images: 50%)" in found.lines[0]


@pytest.mark.parametrize(
    ("rule", "words"), [("confidence", "Of the 10% with the lowest confidence"), ("keys", "Of the 1,234 listed images")]
)
def test_verdict_names_the_tail_that_was_chosen(result: Result, rule: str, words: str) -> None:
    result["tail"] |= {"rule": rule, "share": 0.1, "count": 1234}
    assert words in verdict(typed(result)).lines[0]


def test_metrics_in_reading_order_with_how_much_of_the_baseline_is_reached() -> None:
    metrics = {
        "own_metric": entry(1.0, None),
        "kid_x": entry(3, -0.1, "lower"),
        "fid_x": entry(400, 100, "lower"),
        "recall": entry(0.4, 0.8),
    }
    shown = [(metric_label(name), reached(metrics[name])) for name in reading_order(metrics)]
    assert shown == [("Recall", 0.5), ("FID", 0.25), ("KID", None), ("own_metric", None)]


def test_notes_name_every_reservation(result: Result) -> None:
    result["provenance"] |= {"sealed": False, "committed": 30, "planned": 40, "measured": 20, "not_accepted": 3}
    result["metrics"]["recall"] |= {"generated_count": 20, "floor_count": 10}
    assert len(notes(typed(result))) == 5
    result["provenance"] |= {"sealed": True, "committed": 40, "measured": 40, "not_accepted": 0}
    result["metrics"]["recall"] |= {"generated_count": 9000, "floor_count": 9000}
    assert notes(typed(result)) == []


def test_notes_give_the_error_of_fast(result: Result) -> None:
    result["provenance"]["precision"] = "fast"
    assert "was not measured for this model" in notes(typed(result))[0]
    errors = {"eps": [0.01, 0.04], "gradient": [0.02, 0.05], "pixels_above_1": 0.021}
    result["provenance"]["fast_errors"] = errors
    note = notes(typed(result))[0]
    assert "eps differs by 1.0% to 4.0% of its norm, the guidance by 2.0% to 5.0%, 2.1% of the pixels" in note


def test_heat_of_a_class_by_hand(result: Result) -> None:
    result["per_class"][1] |= {"count": 5, "recall": None, "recall_interval": None}
    columns, rows = class_table(typed(result))
    keys = [column.key for column in columns]
    assert "acceptance_rate" not in keys  # no class was filtered
    first, second = (dict(zip(keys, cells, strict=True)) for _, cells in rows)
    # Recall 0.6 of the real 0.8 is a quarter short; 55% is the full colour.
    assert first["recall"] == ClassCell(0.6, 0.8, [0.5, 0.7], round(55 * 0.25))
    # As many as planned: the plan is not repeated. Half as many: half the colour.
    assert first["count"] == ClassCell(10, None, None, 0)
    assert second["count"] == ClassCell(5, 10, None, round(55 * 0.5))
    # A distance of 0.1 of probabilities in 0 to 1 is a fifth of the half range; 0.2 nat of 2 likewise.
    assert (first["confidence_w1"].heat, first["entropy_w1"].heat) == (11, 11)
    assert second["recall"] == ClassCell(None, 0.8, None, 0)
    # Without a baseline there is nothing to be short of.
    assert second["coverage"] == ClassCell(0.1, None, None, 0)
