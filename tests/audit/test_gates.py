"""Gates: how they are written, judged, and kept out of what makes an image."""

import tomllib
from pathlib import Path

import pytest

from rarefy.audit.metrics.kinds import METRIC_KINDS
from rarefy.audit.schema import CLASS_FIELDS
from rarefy.errors import ManifestError
from rarefy.gates import (
    DEFAULT_GATES,
    METRICS,
    PER_CLASS,
    Gate,
    GateCheck,
    Reading,
    check_gates,
    check_measurable,
    gate_verdict,
    load_gates,
    parse_gates,
)
from rarefy.manifest import parse_manifest

MANIFEST = 'name = "m"\n[model]\npreset = "fashion-mnist-28"\n[classes]\nper_class = 2\n'


def gates(text: str) -> tuple[Gate, ...]:
    """The gates without the default ones."""
    return tuple(gate for gate in parse_gates(tomllib.loads(text)) if not gate.default)


def check(text: str, value: float | None, *about: object) -> GateCheck:
    """The outcome of one gate on recall for a value, its interval and its baseline."""
    (found,) = check_gates(gates(text), {"recall": Reading(value, *about)}, [])  # type: ignore[arg-type]
    return found


def test_bounds_as_the_documentation_writes_them() -> None:
    found = gates(
        "recall = {min = 0.45}\ncoverage.per_class = {min = 0.6}\nduplicates = {max = 0.001}\nfid_x = {max = 9}"
    )
    assert found == (
        Gate("recall", "min", 0.45),
        Gate("coverage", "min", 0.6, True),
        Gate("duplicates", "max", 0.001),
        Gate("fid_x", "max", 9.0),
    )
    both = gates("recall = {min = 0.1, max = 0.9, per_class = {min = 0.2}}")
    assert [(gate.bound, gate.limit, gate.per_class) for gate in both] == [
        ("min", 0.1, False), ("max", 0.9, False), ("min", 0.2, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("recal = {min = 1}", r"gates.recal: 'recal' is not a metric .*nearest: recall"),
        ("lof.per_class = {max = 1}", "gates.lof.per_class"),
        ("recall = {}", "gates.recall: {} is not a bound"),
        ("recall = {least = 1}", "gates.recall.least"),
        ("recall = 0.4", "gates.recall: 0.4 is not a table"),
        ('recall = {min = "high"}', "gates.recall.min: 'high' is not a number"),
        ("recall = {min = 0.6, max = 0.5}", "at most gates.recall.max = 0.5"),
        ("recall = {min = nan}", "gates.recall.min"),
    ],
)
def test_mistakes_are_named(text: str, told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        gates(text)


def test_every_metric_can_be_gated() -> None:
    assert set(METRICS) == set(METRIC_KINDS)


def test_what_is_gated_per_class_is_in_the_class_table() -> None:
    assert set(PER_CLASS) <= set(CLASS_FIELDS)
    assert {"tail_recall", "rarity"} <= set(PER_CLASS)


def test_gates_are_judged_by_their_bounds() -> None:
    metrics = {"recall": Reading(0.5), "fid_net": Reading(9.0)}
    classes = [{"class_name": "a", "coverage": 0.7}, {"class_name": "b", "coverage": None}]
    asked = gates("recall = {min = 0.5, max = 0.5}")
    assert [check.passed for check in check_gates(asked, metrics, classes)] == [True, True]
    checks = check_gates(
        gates("recall = {min = 0.51}\nfid = {max = 10}\nlof = {max = 2}\ncoverage.per_class = {min = 0.6}"),
        metrics,
        classes,
    )
    assert [(check.metric, check.scope, check.value, check.passed) for check in checks] == [
        ("recall", "all", 0.5, False),
        ("fid", "all", 9.0, True),
        ("lof", "all", None, False),  # what was not measured has not passed
        ("coverage", "a", 0.7, True),
        ("coverage", "b", None, False),
    ]
    assert [gate_verdict(part) for part in (checks, checks[1:2], [])] == ["failed", "passed", "no gates"]


def test_relative_bounds_by_hand() -> None:
    # 0.375 is 75% of 0.5, and 0.125 less than it.
    assert [check(f"recall = {{{bound}}}", 0.375, None, 0.5).passed for bound in (
        "min_ratio = 0.75", "min_ratio = 0.76", "max_ratio = 0.75", "max_ratio = 0.74", "max_excess = -0.125",
        "max_excess = -0.13",
    )] == [True, False, True, False, True, False]  # fmt: skip
    assert check("recall = {max_excess = 0.0}", 0.0, None, 0.0).passed
    # Without a baseline, or for a ratio to 0, nothing has passed.
    assert not check("recall = {max_excess = 9}", 0.0, None, None).passed
    assert not check("recall = {max_ratio = 9}", 0.0, None, 0.0).passed


def test_a_limit_within_the_interval_is_a_boundary() -> None:
    found = check("recall = {min_ratio = 0.5}", 0.41, [0.36, 0.46], 0.8)
    assert (found.passed, found.boundary, found.baseline) == (True, True, 0.8)
    assert not check("recall = {min_ratio = 0.5}", 0.45, [0.42, 0.48], 0.8).boundary
    assert not check("recall = {min = 0.5}", 0.5, [0.5, 0.5]).boundary
    assert not check("recall = {min = 0.5}", 0.5).boundary


def test_baselines_of_classes_are_those_of_the_class_table() -> None:
    rows = [
        {"class_name": "a", "recall": 0.4, "recall_interval": [0.3, 0.6], "recall_floor": 0.5},
        {"class_name": "b", "recall": 0.4, "recall_floor": None, "on_class_rate": 0.7},
    ]  # fmt: skip
    found = check_gates(gates("recall.per_class = {min_ratio = 0.8}"), {}, rows)
    assert [(each.scope, each.passed, each.boundary) for each in found] == [("a", True, True), ("b", False, False)]
    rows[0] |= {"on_class_rate": 0.9, "reference_on_class_rate": 1.0}
    found = check_gates(gates("on_class_rate.per_class = {min_ratio = 0.9}"), {}, rows)
    assert [each.passed for each in found] == [True, False]


def test_default_gates_judge_but_fail_nothing_unless_asked_to() -> None:
    bad_set = {"recall": Reading(0.1, None, 0.8), "copies": Reading(1.0, None, 0.0)}
    checks = check_gates(parse_gates({}), bad_set, [])
    # What was not measured is left out.
    assert [(each.metric, each.passed, each.advisory) for each in checks] == [
        ("recall", False, True), ("copies", False, True),
    ]  # fmt: skip
    assert gate_verdict(checks) == "no gates"
    binding = check_gates(parse_gates({"default": True}), bad_set, [])
    assert gate_verdict(binding) == "failed"
    assert parse_gates({"default": False}) == ()
    with pytest.raises(ManifestError, match=r"gates\.default: 'no' is not true or false"):
        parse_gates({"default": "no"})


def test_a_gate_of_your_own_replaces_the_default_one() -> None:
    found = parse_gates(tomllib.loads("recall = {min = 0.1}\ncoverage.per_class = {min = 0.2}"))
    assert [gate.bound for gate in found if gate.metric == "recall"] == ["min"]
    assert [gate.default for gate in found if gate.metric == "coverage"] == [False, True]


def test_default_gates_need_no_classifier() -> None:
    check_measurable(DEFAULT_GATES)
    with pytest.raises(ManifestError, match="no classifier"):
        check_measurable([Gate("on_class_rate", "min_ratio", 0.5)])


def test_a_gate_changes_no_digest_and_may_come_from_another_file(tmp_path: Path) -> None:
    plain, gated = parse_manifest(MANIFEST, "x"), parse_manifest(MANIFEST + "[gates]\nrecall = {min = 0.4}\n", "x")
    assert plain.digest == gated.digest
    assert plain.gates == DEFAULT_GATES
    assert gated.gates == (Gate("recall", "min", 0.4), *(gate for gate in DEFAULT_GATES if gate.metric != "recall"))
    with pytest.raises(ManifestError, match=r"gates\.recal"):
        parse_manifest(MANIFEST + "[gates]\nrecal = {min = 0.4}\n", "x")
    path = tmp_path / "gates.toml"
    path.write_text("[gates]\nlof = {max = 3}\n")
    assert load_gates(str(path)) == (Gate("lof", "max", 3.0), *DEFAULT_GATES)
    for content in (None, "[gates"):
        path.unlink(missing_ok=True)
        if content:
            path.write_text(content)
        with pytest.raises(ManifestError, match="readable TOML file"):
            load_gates(str(path))
