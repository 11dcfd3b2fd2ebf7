"""The verdict, from made-up results: the worst metric decides, and intervals that contain a limit are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from made_up_audit import make_result

from rarefy.audit.schema import AuditResult, Verdict
from rarefy.audit.verdict import CLOSE, NO_GATES, judge, outcome
from rarefy.gates import DEFAULT_GATES, Gate, Reading, check_gates, gate_verdict, parse_gates

Result = dict[str, Any]


# Value and real baseline of a set that is as good as real images.
AS_REAL = {
    "recall": (0.8, 0.8), "tail_recall": (0.55, 0.55), "precision": (0.82, 0.8), "coverage": (0.2, 0.2),
    "on_class_rate": (0.95, 0.92), "copies": (0.0, 0.0), "duplicates": (0.0, 0.0),
}  # fmt: skip


def made(**metrics: Any) -> AuditResult:
    """An audit of a set as good as real images, but for these metrics: value, or value and interval."""
    content: Result = make_result() | {"partial": False, "gates": [], "verdict": "no gates"}
    for name, (value, floor) in AS_REAL.items():
        content["metrics"][name] |= {"value": value, "floor": floor, "interval": None, "floor_interval": None}
    for name, changed in metrics.items():
        value, *interval = changed if isinstance(changed, tuple) else (changed,)
        content["metrics"][name] |= {"value": value, "interval": list(interval) or None}
    return gated(AuditResult.from_json(content), DEFAULT_GATES)


def gated(result: AuditResult, gates: Sequence[Gate]) -> AuditResult:
    """The audit with these gates checked."""
    metrics = {name: Reading(entry.value, entry.interval, entry.floor) for name, entry in result.metrics.items()}
    checks = check_gates(gates, metrics, [])
    return dataclasses.replace(result, gates=checks, verdict=gate_verdict(checks))


def text_of(verdict: Verdict, metric: str) -> str:
    return next(reason.text for reason in verdict.reasons if reason.metric == metric)


def test_a_set_as_good_as_real_images_is_close() -> None:
    verdict = judge(made())
    assert (verdict.level, verdict.headline) == ("close", "Close to real data")
    assert {reason.level for reason in verdict.reasons} == {"close"}
    assert "covers 80% of the real images; the same number of held-out real images covers 80%" in verdict.lines[0]


@pytest.mark.parametrize(
    ("metric", "value", "level"),
    [
        ("recall", 0.73, "close"),
        ("recall", 0.71, "usable"),
        ("recall", 0.59, "far"),
        ("precision", 0.61, "usable"),
        ("tail_recall", 0.42, "usable"),
        ("coverage", 0.14, "far"),
        ("on_class_rate", 0.80, "usable"),
        ("copies", 0.02, "usable"),
        ("copies", 0.06, "far"),
        ("copies", 1.0, "far"),
        ("duplicates", 0.2, "far"),
    ],
)
def test_the_worst_metric_decides_and_is_named(metric: str, value: float, level: str) -> None:
    verdict = judge(made(**{metric: value}))
    assert verdict.level == level
    assert verdict.reasons[0].metric == metric or level == "close"
    if level != "close":
        assert verdict.headline.lower().endswith(f": {metric}".replace("_rate", "").replace("_", " "))


def test_nothing_but_copies_is_never_green() -> None:
    assert judge(made(copies=1.0)).level == "far"
    verdict = judge(made(copies=0.95, on_class_rate=0.10, tail_recall=0.01))
    assert verdict.headline == "Far from real data: tail recall, on class and copies"


def test_the_tail_recall_of_the_demo_is_not_green() -> None:
    verdict = judge(made(tail_recall=(0.41, 0.36, 0.46)))
    assert verdict.level == "far"
    assert verdict.headline == "Far from real data: tail recall, at the boundary to usable"
    assert text_of(verdict, "tail_recall") == ("Tail recall 0.410 (0.360 to 0.460), real baseline 0.550: 75% of it")
    assert outcome(verdict.reasons[0]) == "far, at the boundary to usable"


def test_an_interval_across_a_limit_of_a_good_metric_may_worsen_the_verdict() -> None:
    verdict = judge(made(recall=(0.74, 0.70, 0.78)))
    assert verdict.headline == "Close to real data, at the boundary to usable"
    both = judge(made(recall=(0.65, 0.50, 0.79)))
    assert both.headline == "Usable, but short of real data: recall, anywhere between close and far"
    # The other end does not matter: a metric that is far in any case decides.
    assert judge(made(recall=(0.74, 0.70, 0.78), copies=1.0)).headline == "Far from real data: copies"


def test_a_loss_in_utility_is_not_green() -> None:
    content = made().to_json()
    for value, interval, level in (
        (0.02, [0.01, 0.03], "close"),
        (-0.005, [-0.01, 0.0], "usable"),
        (-0.2, None, "far"),
    ):
        utility = content["metrics"]["recall"] | {
            "value": value,
            "interval": interval,
            "floor": None,
            "better": "higher",
        }
        result = AuditResult.from_json(content | {"metrics": content["metrics"] | {"utility": utility}})
        assert judge(gated(result, DEFAULT_GATES)).level == level


def test_the_worst_extractor_decides() -> None:
    result = made()
    worse = dataclasses.replace(result.metrics["recall"], value=0.5)
    verdict = judge(dataclasses.replace(result, other_extractors={"inception-v3": {"recall": worse, "fid_x": worse}}))
    assert verdict.headline == "Far from real data: recall with inception-v3"
    assert [reason.extractor for reason in verdict.reasons if reason.metric == "recall"] == ["inception-v3", None]


def test_what_cannot_be_judged_is_not_green() -> None:
    result = made()
    for floor in (None, 0.0):
        entry = dataclasses.replace(result.metrics["tail_recall"], floor=floor)
        unknown = dataclasses.replace(result, metrics=result.metrics | {"tail_recall": entry})
        verdict = judge(gated(unknown, DEFAULT_GATES))
        assert verdict.level == "usable"
        assert verdict.headline == "Close to real data as far as it was judged"
        assert ", but its real baseline" in text_of(verdict, "tail_recall")
        assert outcome(verdict.reasons[-1]) == "not judged"
    assert judge(dataclasses.replace(result, partial=True)).level == "usable"
    assert judge(dataclasses.replace(result, tail=None, metrics={})).level == "none"


def test_a_failed_gate_is_red_whatever_the_comparison() -> None:
    verdict = judge(dataclasses.replace(made(), verdict="failed"))
    assert (verdict.level, verdict.headline) == ("far", "Gates failed. Close to real data")
    unknown = judge(dataclasses.replace(made(), verdict="failed", tail=None))
    assert (unknown.level, unknown.headline) == ("far", "Gates failed. No real images to compare with")


def test_a_gate_of_the_user_moves_the_limit_of_usable() -> None:
    result = made(recall=0.5)  # 62.5% of the real baseline
    assert judge(result).level == "far"
    lenient = judge(gated(result, parse_gates({"recall": {"min_ratio": 0.6}})))
    assert lenient.headline == "Usable, but short of real data: recall"
    strict = judge(gated(made(recall=0.75), parse_gates({"recall": {"min": 0.76}})))  # 94%, and a gate that fails
    assert (strict.level, strict.headline) == ("far", "Gates failed. Far from real data: recall")
    assert judge(gated(made(recall=0.75), parse_gates({"recall": {"min": 0.74}}))).level == "close"


def test_a_bound_on_the_value_itself_is_not_meant_for_other_features() -> None:
    result = made(recall=0.5)
    as_real = dataclasses.replace(result.metrics["recall"], value=0.3, floor=0.3)
    result = dataclasses.replace(result, other_extractors={"inception-v3": {"recall": as_real}})
    verdict = judge(gated(result, parse_gates({"recall": {"min": 0.4}})))
    assert {reason.extractor: reason.level for reason in verdict.reasons if reason.metric == "recall"} == {
        None: "usable",
        "inception-v3": "close",
    }


def test_gates_that_are_switched_off_decide_nothing() -> None:
    result = made(copies=1.0)
    assert judge(result).level == "far"
    off = judge(gated(result, parse_gates({"default": False})))
    assert (off.level, off.headline, off.reasons) == ("none", NO_GATES, [])
    assert off.lines == judge(result).lines
    # Judged by one gate alone, nothing is called close.
    one = judge(gated(result, parse_gates({"default": False, "recall": {"min_ratio": 0.5}})))
    assert (one.level, one.headline) == ("usable", "Close to real data as far as it was judged")


def test_a_model_without_a_classifier_is_judged_without_it() -> None:
    result = made()
    metrics = {name: entry for name, entry in result.metrics.items() if name != "on_class_rate"}
    assert judge(dataclasses.replace(result, metrics=metrics)).level == "close"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("confidence", "Of the 10% of each class with the lowest confidence it covers"),
        ("keys", "Of the 1,234 listed images it covers"),
        ("avgknn", "Of the rarest 10% of each class it covers"),
    ],
)
def test_the_tail_that_was_chosen_is_named(rule: str, words: str) -> None:
    result = made()
    assert result.tail
    tail = dataclasses.replace(result.tail, rule=rule, share=0.1, count=1234)
    assert words in judge(dataclasses.replace(result, tail=tail)).lines[0]


def test_the_limits_that_the_page_names_are_those_that_are_used() -> None:
    relative = {gate.metric for gate in DEFAULT_GATES if (gate.bound, gate.limit) == ("min_ratio", 0.75)}
    excess = {gate.metric for gate in DEFAULT_GATES if (gate.bound, gate.limit) == ("max_excess", 0.05)}
    assert relative == {"recall", "tail_recall", "precision", "coverage", "on_class_rate"}
    assert excess == {"copies", "duplicates"}
    assert {gate.metric: gate.limit for gate in DEFAULT_GATES if gate.bound == "min"} == {"utility": -0.01}
    assert {CLOSE[metric] for metric in relative} == {0.9}
    assert {CLOSE[metric] for metric in excess} == {0.01}
    assert CLOSE["utility"] == 0.0
