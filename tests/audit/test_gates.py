"""Gates: how they are written, judged, and kept out of what makes an image."""

import tomllib
from pathlib import Path

import pytest

from rarefy.audit.metrics.kinds import METRIC_KINDS
from rarefy.errors import ManifestError
from rarefy.gates import METRICS, Gate, check_gates, gate_verdict, load_gates, parse_gates
from rarefy.manifest import parse_manifest

MANIFEST = 'name = "m"\n[model]\npreset = "fashion-mnist-28"\n[classes]\nper_class = 2\n'


def gates(text: str) -> tuple[Gate, ...]:
    return parse_gates(tomllib.loads(text))


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


def test_gates_are_judged_by_their_bounds() -> None:
    metrics = {"recall": 0.5, "fid_net": 9.0}
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


def test_a_gate_changes_no_digest_and_may_come_from_another_file(tmp_path: Path) -> None:
    plain, gated = parse_manifest(MANIFEST, "x"), parse_manifest(MANIFEST + "[gates]\nrecall = {min = 0.4}\n", "x")
    assert plain.digest == gated.digest
    assert (plain.gates, gated.gates) == ((), (Gate("recall", "min", 0.4),))
    with pytest.raises(ManifestError, match=r"gates\.recal"):
        parse_manifest(MANIFEST + "[gates]\nrecal = {min = 0.4}\n", "x")
    path = tmp_path / "gates.toml"
    path.write_text("[gates]\nlof = {max = 3}\n")
    assert load_gates(str(path)) == (Gate("lof", "max", 3.0),)
    for content in (None, "[gates"):
        path.unlink(missing_ok=True)
        if content:
            path.write_text(content)
        with pytest.raises(ManifestError, match="readable TOML file"):
            load_gates(str(path))
