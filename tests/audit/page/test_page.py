"""What the page says, from plain values to plain values."""

import dataclasses
import json
from typing import Any

import pytest

from rarefy.audit.metrics.kinds import metric_label, reading_order
from rarefy.audit.page.class_table import ClassCell, class_table, colours
from rarefy.audit.page.figures import (
    MeasuredWith,
    against_rows,
    against_words,
    common_setting,
    copying_words,
    memorization_words,
    notes,
    own_setting,
    required,
    training_words,
    utility_interval,
)
from rarefy.audit.page.templates import reached
from rarefy.audit.schema import Against, AuditResult, Memorization, MetricEntry, Training, Utility
from rarefy.audit.verdict import judge
from rarefy.gates import GateCheck

Result = dict[str, Any]


def entry(value: float, floor: float | None, better: str = "higher") -> MetricEntry:
    return MetricEntry(value, None, None, floor, None, better, "net", "layer", 3, 9000, 10_000, 9000)


def typed(result: Result) -> AuditResult:
    return AuditResult.from_json(result)


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


def test_what_was_measured_with_is_said_once(result: Result) -> None:
    metrics = typed(result).metrics
    common = common_setting(metrics.values())
    assert common == MeasuredWith("efficientnet-lite0", "head_pooled", 3, 20, 100, 20)
    told = {name: own for name, entry in metrics.items() if (own := own_setting(entry, common))}
    assert told == {"on_class_rate": "guiding classifier, softmax at t = 0", "lof": "15 scored per side"}
    words = "efficientnet-lite0 head_pooled, k = 3; 20 generated, 100 real and 20 images in the real baseline"
    assert common.text() == words
    result["metrics"]["fid_efficientnet_lite0"]["generated_count"] = 19
    assert own_setting(typed(result).metrics["fid_efficientnet_lite0"], common) == "19 generated"


def test_rarer_than_plain_sampling(result: Result) -> None:
    audit = typed(result)
    assert (against_words(audit), against_rows(audit)) == ("", [])
    for plain, intervals, words in (
        (17.0, {}, "rarer than plain sampling"),
        (18.01, {}, "no rarer than plain sampling within the intervals"),
        (17.0, {"rarity": [15.0, 19.0]}, "no rarer than plain sampling within the intervals"),
        (19.0, {}, "less rare than plain sampling"),
    ):
        metrics = {"rarity": plain, "recall": 0.7, "fid_other": 3.0}
        beside = dataclasses.replace(audit, against=Against("plain", "stored", 600, metrics, intervals))
        assert against_words(beside) == f"Mean rarity 18.0, plain sampling {plain:.1f}, real images 15.0: {words}."
        assert [(row.label, row.value, row.plain, row.real) for row in against_rows(beside)] == [
            ("Mean rarity", 18.0, plain, 15.0),
            ("Recall", 0.6, 0.7, 0.8),
        ]


def test_a_model_without_a_classifier_may_have_a_judge(result: Result) -> None:
    result["provenance"] |= {"classifier_sha256": None}
    assert notes(typed(result))[0] == "The model has no classifier, so there is no confidence or entropy."
    del result["metrics"]["on_class_rate"]
    assert notes(typed(result))[0].endswith("no confidence, entropy or on-class rate.")


def test_colours_are_explained_for_the_columns_that_have_them(result: Result) -> None:
    columns, _ = class_table(typed(result))
    assert [label for label, _ in colours(columns)] == ["Shift"]
    for row in result["per_class"]:
        row |= {"copies": 0.5, "confidence_w1": None, "entropy_w1": None}
    columns, _ = class_table(typed(result))
    assert [label for label, _ in colours(columns)] == ["Copies"]


def test_what_the_intervals_of_utility_cover() -> None:
    probe, network = (Utility(classifier, "", 10, 10, 3, []) for classifier in ("probe", "network"))
    assert utility_interval(probe) == "95% intervals over draws of the training images"
    assert utility_interval(network) == "means and 95% intervals over 3 seeds"


def test_metrics_json_with_every_part_or_none_of_the_optional_ones(result: Result) -> None:
    training = Training("both", 0.5, 15, 0.8, [0.7, 0.9], 0.5, [0.4, 0.6], {"coat & boot": 0.7})
    audit = typed(result)
    whole = dataclasses.replace(
        audit,
        memorization=Memorization("train/", 60_000, "f" * 64, True),
        utility=[Utility("probe", "held-out half", 10, 10, 8, [training])],
        against=Against("plain sampling", "stored", 600, {"rarity": 17.0}),
        other_extractors={"inception-v3": {"recall": audit.metrics["recall"]}},
        judgement=judge(audit),
    )
    for each in (whole, audit, dataclasses.replace(audit, tail=None, map=None, metrics={}, copies=[], per_class=[])):
        text = json.dumps(each.to_json(), allow_nan=False)
        assert AuditResult.from_json(json.loads(text)) == each
    assert {"memorization", "utility", "against", "other_extractors", "judgement"} <= json.loads(text).keys()


def test_the_page_says_what_copies_were_searched_among(result: Result) -> None:
    audit = typed(result)
    assert "not with the training set" in memorization_words(audit)
    for whole, words in (
        (True, "60,000 images: train/."),
        (False, "copies of its other images cannot be found"),
    ):
        searched = dataclasses.replace(audit, memorization=Memorization("train/", 60_000, "f" * 64, whole))
        assert "60,000 images: train/" in memorization_words(searched)
        assert words in memorization_words(searched)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-4.0, "nearer to the training images than unseen real images are, which suggests copying."),
        (1.0, "as near to the training images as unseen real images are, within the interval: no sign of copying."),
        (5.0, "farther from the training images than unseen real images are: no sign of copying."),
    ],
)
def test_the_copying_test_is_explained_by_its_sign(value: float, words: str, result: Result) -> None:
    audit = typed(result)
    assert copying_words(audit) == ""
    found = dataclasses.replace(entry(value, 0.25, "nearest"), interval=[value - 2, value + 2])
    tested = dataclasses.replace(audit, metrics={"ct": found})
    assert f"real baseline 0.250. The images are {words}" in copying_words(tested)
    assert "the reference if it has none" in copying_words(tested)
    whole = dataclasses.replace(tested, memorization=Memorization("train/", 60_000, "f" * 64, True))
    assert copying_words(whole).endswith(words)


def test_what_a_classifier_was_trained_on() -> None:
    def words(data: str, ratio: float | None) -> str:
        return training_words(Training(data, ratio, 10, 0.5, [0.4, 0.6], 0.3, [0.2, 0.4], {}))

    assert words("real", None) == "real images only"
    assert words("both", 0.25) == "real and generated, 0.25 generated per real one"
    assert words("both", None) == "real and generated"


@pytest.mark.parametrize(
    ("bound", "baseline", "words"),
    [
        ("min", None, "at least 0.5"),
        ("max", 0.2, "at most 0.5"),
        ("min_ratio", 0.8, "at least 0.5 times the real baseline (0.800)"),
        ("max_excess", 0.01, "at most 0.5 above the real baseline (0.010)"),
        ("max_ratio", None, "at most 0.5 times the real baseline (not measured)"),
    ],
)
def test_what_a_gate_asks_for(bound: str, baseline: float | None, words: str) -> None:
    assert required(GateCheck("recall", "all", bound, 0.5, 0.6, True, baseline)) == words


def test_no_direction_is_called_reached_where_the_nearest_value_is_best() -> None:
    assert reached(entry(2.0, 1.0, "nearest")) is None
