"""The verdict, from made-up results: the worst metric decides, and intervals that contain a limit are named."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from rarefy.audit.schema import AuditResult, Verdict
from rarefy.audit.verdict import CLOSE, judge, outcome
from rarefy.gates import DEFAULT_GATES

Result = dict[str, Any]


def _made_up() -> Any:
    """The hand-made audit of the pages' tests: pytest's importlib mode has no package to import it from."""
    path = Path(__file__).parent / "page" / "conftest.py"
    spec = importlib.util.spec_from_file_location("made_up_audit", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE_UP = _made_up()
# Value and real baseline of a set that is as good as real images.
AS_REAL = {
    "recall": (0.8, 0.8), "tail_recall": (0.55, 0.55), "precision": (0.82, 0.8), "coverage": (0.2, 0.2),
    "on_class_rate": (0.95, 0.92), "copies": (0.0, 0.0), "duplicates": (0.0, 0.0),
}  # fmt: skip


def made(**metrics: Any) -> AuditResult:
    """An audit of a set as good as real images, but for these metrics: value, or value and interval."""
    content: Result = copy.deepcopy(MADE_UP.make_result()) | {"partial": False, "gates": [], "verdict": "no gates"}
    for name, (value, floor) in AS_REAL.items():
        content["metrics"][name] |= {"value": value, "floor": floor, "interval": None, "floor_interval": None}
    for name, changed in metrics.items():
        value, *interval = changed if isinstance(changed, tuple) else (changed,)
        content["metrics"][name] |= {"value": value, "interval": list(interval) or None}
    return AuditResult.from_json(content)


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
        assert judge(result).level == level


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
        verdict = judge(dataclasses.replace(result, metrics=result.metrics | {"tail_recall": entry}))
        assert verdict.level == "usable"
        assert "as far as it was measured" in verdict.headline
        assert ", but its real baseline" in text_of(verdict, "tail_recall")
        assert outcome(verdict.reasons[-1]) == "not judged"
    assert judge(dataclasses.replace(result, partial=True)).level == "usable"
    assert judge(dataclasses.replace(result, tail=None, metrics={})).level == "none"


def test_a_failed_gate_is_red_whatever_the_comparison() -> None:
    verdict = judge(dataclasses.replace(made(), verdict="failed"))
    assert (verdict.level, verdict.headline) == ("far", "Gates failed. Close to real data")


def test_a_model_without_a_classifier_is_judged_without_it() -> None:
    result = made()
    metrics = {name: entry for name, entry in result.metrics.items() if name != "on_class_rate"}
    assert judge(dataclasses.replace(result, metrics=metrics)).level == "close"


@pytest.mark.parametrize(
    ("rule", "words"),
    [("confidence", "Of the 10% of each class with the lowest confidence"), ("keys", "Of the 1,234 listed images")],
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
