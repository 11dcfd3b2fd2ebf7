"""What the page says, from plain values to plain values."""

from typing import Any

import pytest

from rarefy.audit.page.figures import class_table, gate_views, metric_views, notes, verdict

Result = dict[str, Any]


def entry(value: float, floor: float | None, better: str = "higher", count: int = 9000) -> Result:
    counts = {"generated_count": count, "real_count": 10_000, "floor_count": count}
    return {"value": value, "floor": floor, "better": better, **counts}


@pytest.mark.parametrize(
    ("recall", "precision", "level"),
    [(0.8, 0.8, "close"), (0.73, 0.73, "close"), (0.61, 0.8, "usable"), (0.8, 0.61, "usable"), (0.59, 0.8, "far")],
)
def test_verdict_is_the_worse_of_recall_and_precision(recall: float, precision: float, level: str) -> None:
    metrics = {
        "recall": entry(recall, 0.8),
        "precision": entry(precision, 0.8),
        "tail_recall": entry(0.3, 0.6),
        "rarity": entry(20, 10),
    }
    found = verdict({"metrics": metrics, "tail": {"rule": "avgknn", "share": 0.2, "count": 2000}})
    assert found["level"] == level
    assert f"reaches {recall:.0%} of the real test images" in found["lines"][0]
    assert "Of the 20% rarest it reaches 30% (real: 60%)" in found["lines"][0]


@pytest.mark.parametrize(
    ("rule", "words"),
    [("confidence", "Of the 10% least confident"), ("keys", "Of the 1,234 that were listed")],
)
def test_verdict_names_the_tail_that_was_chosen(result: Result, rule: str, words: str) -> None:
    result["tail"] = {"rule": rule, "share": 0.1, "count": 1234}
    assert words in verdict(result)["lines"][0]


def test_metrics_in_reading_order_with_how_much_of_the_floor_is_reached() -> None:
    metrics = {
        "fid_x": entry(400, 100, "lower"),
        "recall": entry(0.4, 0.8),
        "own_metric": entry(1.0, None),
        "kid_x": entry(3, -0.1, "lower"),
    }
    views = metric_views(metrics)
    assert [(view["label"], view["reached"]) for view in views] == [
        ("Recall", 0.5),
        ("FID", 0.25),
        ("KID", None),
        ("own_metric", None),
    ]


def test_failed_gates_come_first(result: Result) -> None:
    first, second = gate_views(result["gates"])
    assert (first["passed"], first["label"], first["scope"]) == (False, "Coverage", "<script>alert(1)</script>")
    assert (first["wanted"], first["value"]) == ("at least 0.6", 0.1)
    assert (second["passed"], second["scope"]) == (True, "")
    assert gate_views([result["gates"][0] | {"bound": "max", "limit": 0.001}])[0]["wanted"] == "at most 0.001"


def test_notes_name_every_reservation() -> None:
    run = {"sealed": False, "committed": 30, "planned": 40, "measured": 20, "not_accepted": 3, "precision": "exact"}
    few = {"provenance": run, "metrics": {"recall": entry(0.4, 0.8, count=20) | {"floor_count": 10}}}
    assert len(notes(few)) == 5
    good = {
        "sealed": True,
        "committed": 9000,
        "planned": 9000,
        "measured": 9000,
        "not_accepted": 0,
        "precision": "exact",
    }
    assert notes({"provenance": good, "metrics": {"recall": entry(0.4, 0.8)}}) == []


def test_notes_give_the_error_of_fast() -> None:
    counts = dict.fromkeys(("committed", "planned", "measured"), 9000)
    run: Result = {"sealed": True, **counts, "not_accepted": 0, "precision": "fast", "fast_errors": None}
    result = {"provenance": run, "metrics": {"recall": entry(0.4, 0.8)}}
    assert "was not measured for this model" in notes(result)[0]
    changes = {name: {"difference": -0.25, "std": 12.5} for name in ("fid", "recall", "confidence", "entropy")}
    run["fast_errors"] = {"eps": [0.01, 0.04], "gradient": [0.02, 0.05], "pixels_above_1": 0.021, "metrics": changes}
    (note,) = notes(result)
    assert "eps off by 1.0% to 4.0% of its norm, the guidance by 2.0% to 5.0%, 2.1% of the pixels" in note
    assert note.endswith(
        "FID -0.25 (deviation over seeds 12.5), recall -0.25 (deviation over seeds 12.5), "
        "confidence -0.25 (deviation over seeds 12.5), entropy -0.25 (deviation over seeds 12.5)."
    )


def test_heat_of_a_class_by_hand(result: Result) -> None:
    result["per_class"][1] |= {"count": 5, "recall": None, "recall_interval": None}
    table = class_table(result)
    keys = [column.key for column in table["columns"]]
    assert "acceptance_rate" not in keys  # no class was filtered
    first, second = (dict(zip(keys, row["cells"], strict=True)) for row in table["rows"])
    # Recall 0.6 of the real 0.8 is a quarter short; 55% is the full colour.
    assert first["recall"] == {"value": 0.6, "beside": 0.8, "interval": [0.5, 0.7], "heat": round(55 * 0.25)}
    # As many as planned: the plan is not repeated. Half as many: half the colour.
    assert first["count"] == {"value": 10, "beside": None, "interval": None, "heat": 0}
    assert second["count"] == {"value": 5, "beside": 10, "interval": None, "heat": round(55 * 0.5)}
    # A distance of 0.1 of probabilities in 0 to 1 is a fifth of the half range; 0.2 nat of 2 likewise.
    assert (first["confidence_w1"]["heat"], first["entropy_w1"]["heat"]) == (11, 11)
    assert second["recall"] == {"value": None, "beside": 0.8, "interval": None, "heat": 0}
    # Without a floor there is nothing to be short of.
    assert second["coverage"] == {"value": 0.1, "beside": None, "interval": None, "heat": 0}
