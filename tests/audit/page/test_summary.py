"""The terminal's lines about an audit, from a made-up result."""

from __future__ import annotations

import dataclasses

from made_up_audit import make_result

from rarefy.audit.page.summary import summary_lines
from rarefy.audit.schema import Against, AuditResult, Training, Utility

RESULT = AuditResult.from_json(make_result())


def test_verdict_reasons_numbers_problems_and_failed_gates() -> None:
    lines = summary_lines(RESULT)
    assert lines[0] == "problem: rare-000001.tar: truncated after 3 images"
    assert lines[1].startswith("verdict: Gates failed. Far from real data: ")
    assert "  far: Coverage 0.100 (0.080 to 0.120), real baseline 0.200 (0.190 to 0.210): 50% of it" in lines
    assert "Mean rarity 18 (17.98 to 18.02), real baseline 15" in lines
    assert "FID 400 (400 to 400), real baseline 100" in lines
    assert lines[-1] == "gate failed: coverage (<script>alert(1)</script>) is 0.1, required at least 0.6"


def test_utility_and_plain_sampling() -> None:
    training = Training("both", 1.0, 20, 0.8, [0.79, 0.81], 0.5, [0.4, 0.6], {})
    utility = Utility("probe", "held-out half", 10, 10, 5, [training])
    against = Against("plain", "stored", 20, {"rarity": 17.0})
    lines = summary_lines(dataclasses.replace(RESULT, utility=[utility], against=against))
    assert "Mean rarity 18.0, plain sampling 17.0, real images 15.0: rarer than plain sampling." in lines
    assert (
        "accuracy of a probe trained on real and generated, 1 generated per real one: 0.800 (0.790 to 0.810), "
        "on the tail 0.500"
    ) in lines


def test_advisory_gates_are_not_called_failed() -> None:
    gates = [dataclasses.replace(gate, advisory=True) for gate in RESULT.gates]
    lines = summary_lines(dataclasses.replace(RESULT, gates=gates, verdict="no gates"))
    assert not any(line.startswith("gate failed") for line in lines)
    assert lines[1].startswith("verdict: Far from real data: ")


def test_without_real_images_the_verdict_says_what_to_do() -> None:
    lines = summary_lines(dataclasses.replace(RESULT, tail=None, metrics={}, gates=[], problems=[], verdict="no gates"))
    assert lines[0] == "verdict: No real images to compare with"
    assert "folder of real images" in lines[1]
