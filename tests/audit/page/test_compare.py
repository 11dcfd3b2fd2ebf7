"""Comparing audits: equal footing or an error that says what differs, differences and their chance by hand."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import barnard_exact

from rarefy.audit.compare import (
    CompareResult,
    Difference,
    compare_runs,
    difference_of,
    run_labels,
    significant_fractions,
)
from rarefy.audit.metrics.bootstrap import wilson_interval
from rarefy.audit.page.compare_page import table_text, write_page
from rarefy.cli import main
from rarefy.errors import OutputError, RarefyError, ShardError
from rarefy.shards.store import Store

Result = dict[str, Any]
MakeAudit = Callable[..., Store]
NOISE = np.linspace(-0.02, 0.02, 200)


def named(result: Result, name: str, **changes: float) -> Result:
    """A copy of the audit under another name, with these metrics' values."""
    found: Result = json.loads(json.dumps(result))
    found["provenance"]["run"] = name
    for metric, value in changes.items():
        found["metrics"][metric]["value"] = value
    return found


def second(result: CompareResult, metric: str, run: int = 1) -> Difference:
    """The difference of a run, by default the second, from the first."""
    found = next(row for row in result.metrics if row.metric == metric).differences[run]
    assert found is not None
    return found


@pytest.fixture
def pair(make_audit: MakeAudit, result: Result) -> list[str]:
    """Two audits: b's recall is far above a's, its precision a little below."""
    a, b = named(result, "a"), named(result, "b", recall=0.7, precision=0.69)
    b["per_class"][0]["recall"] = 0.75
    drawn = {"recall": (0.6 + NOISE).tolist(), "precision": (0.7 + NOISE).tolist()}
    other = {"recall": (0.7 - NOISE).tolist(), "precision": (0.69 - NOISE).tolist()}
    return [make_audit("a", a, drawn).root, make_audit("b", b, other).root]


def test_values_differences_and_marks(pair: list[str]) -> None:
    result = compare_runs(pair)
    recall = next(row for row in result.metrics if row.metric == "recall")
    assert recall.values == [0.6, 0.7]
    assert recall.floor == 0.8
    assert recall.differences[0] is None
    found = second(result, "recall")
    assert found.difference == pytest.approx(0.1)
    assert found.p == pytest.approx(1 / 201)  # no replicate of the noise (at most 0.04) reaches 0.1
    assert (found.significant, found.improved) == (True, True)
    # -0.01 against noise spread evenly over -0.04 to 0.04: three quarters of it is as far out.
    precision = second(result, "precision")
    assert precision.p == pytest.approx(0.75, abs=0.01)
    assert (precision.significant, precision.improved) == (False, None)
    assert second(result, "density").p is None  # no replicates: no judgement
    assert [row.class_name for row in result.per_class] == ["<script>alert(1)</script>", "coat & boot"]
    assert result.per_class[0].recall.differences == [None, pytest.approx(0.15)]
    text = table_text(result)
    assert re.search(
        r"^recall +0\.800 +0\.600 \(0\.580 to 0\.620\) +0\.700 \(0\.580 to 0\.620\) \+$", text, re.MULTILINE
    )
    assert re.search(r"^precision .* =$", text, re.MULTILINE)
    assert "WARNING: the audit of a is incomplete" in text


def test_lower_is_better_where_the_metric_says_so(make_audit: MakeAudit, result: Result) -> None:
    name = "fid_efficientnet_lite0"
    outs = [
        make_audit(run, named(result, run, **{name: value}), {name: (value + NOISE).tolist()}).root
        for run, value in (("a", 400.0), ("b", 300.0), ("c", 500.0))
    ]
    result_of = compare_runs(outs)
    assert [second(result_of, name, run).improved for run in (1, 2)] == [True, False]


def test_what_is_no_better_either_way_is_never_called_improved(make_audit: MakeAudit, result: Result) -> None:
    outs = [
        make_audit(run, named(result, run, avg_knn=value), {"avg_knn": (value + NOISE).tolist()}).root
        for run, value in (("a", 20.0), ("b", 30.0))
    ]
    found = second(compare_runs(outs), "avg_knn")
    assert (found.significant, found.improved) == (True, None)


def test_difference_against_a_normal_approximation() -> None:
    """Independent Gaussian replicates: the interval is the difference +- 1.96 sqrt(2) sigma, p that of a z test."""
    generator = np.random.default_rng(0)
    first, other = (dict(enumerate(generator.normal(mean, 1.0, 20_000))) for mean in (5.0, 8.0))
    found = difference_of(first, other, 2.0)
    assert found.interval == pytest.approx([2 - 1.96 * 2**0.5, 2 + 1.96 * 2**0.5], abs=0.06)
    assert found.p == pytest.approx(0.1573, abs=0.01)  # 2 (1 - Phi(2 / sqrt 2))


def test_replicates_of_the_same_draw_cancel() -> None:
    """Both runs swing together by far more than they differ: paired, the difference is certain."""
    swing = np.random.default_rng(0).normal(0, 1, 200)
    first = dict(enumerate(swing))
    assert difference_of(first, dict(enumerate(swing + 0.01)), 0.01).significant
    shuffled = dict(enumerate(np.random.default_rng(1).permutation(swing) + 0.01))
    assert not difference_of(first, shuffled, 0.01).significant


def test_equal_runs_do_not_differ() -> None:
    drawn = dict(enumerate(NOISE.tolist()))
    assert difference_of(drawn, drawn, 0.0) == Difference(0.0, [0.0, 0.0], 1.0, False)
    few = dict.fromkeys(range(19), 0.5)
    assert difference_of(few, few, 0.1).p is None


def change_provenance(field: str, value: object) -> Callable[[Result], None]:
    return lambda result: result["provenance"].update({field: value})


def change_metrics(field: str, value: object) -> Callable[[Result], None]:
    return lambda result: [entry.update({field: value}) for entry in result["metrics"].values()] and None


def change_class(result: Result) -> None:
    result["per_class"][1]["count"] = 9


def change_tail(result: Result) -> None:
    result["tail"] = {"rule": "confidence", "share": 0.2, "count": 20, "sha256": "c" * 64}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_provenance("reference_sha256", "b" * 64), "reference_sha256 is aaaaaaaaaaaa in a, bbbbbbbbbbbb in b"),
        (change_provenance("extractor_sha256", "f" * 64), "extractor_sha256 is eeeeeeeeeeee in a, ffffffffffff in b"),
        (change_provenance("k", 5), "k is 3 in a, 5 in b"),
        (change_metrics("generated_count", 40), "generated_count is 20 in a, 40 in b (fid_efficientnet_lite0, "
         "kid_efficientnet_lite0 and 14 more)"),
        (change_metrics("floor_count", 9), "floor_count is 20 in a, 9 in b"),
        (change_tail, "tail is avgknn, 20, bbbbbbbbbbbb in a, confidence, 20, cccccccccccc in b"),
        (change_class, "images of the class is 10 in a, 9 in b (coat & boot)"),
    ],
)  # fmt: skip
def test_unequal_footing_is_refused_by_name(
    make_audit: MakeAudit, result: Result, change: Callable[[Result], None], told: str
) -> None:
    other = named(result, "b")
    change(other)
    outs = [make_audit("a", named(result, "a")).root, make_audit("b", other).root]
    with pytest.raises(ShardError) as caught:
        compare_runs(outs)
    assert told in str(caught.value)
    assert "not comparable" in str(caught.value)


def test_every_difference_is_told_at_once(make_audit: MakeAudit, result: Result) -> None:
    other = named(result, "b")
    change_tail(other)
    other["provenance"] |= {"k": 5, "preprocessing": "none"}
    with pytest.raises(ShardError) as caught:
        compare_runs([make_audit("a", named(result, "a")).root, make_audit("b", other).root])
    assert all(f"{field} is" in str(caught.value) for field in ("k", "preprocessing", "tail"))
    assert "reference_sha256" not in str(caught.value)


def test_what_cannot_be_compared(make_audit: MakeAudit, result: Result, tmp_path: Path) -> None:
    out = make_audit("a", result).root
    with pytest.raises(OutputError, match="two or more"):
        compare_runs([out])
    with pytest.raises(OutputError, match="was given twice"):
        compare_runs([out, f"{out}/"])
    with pytest.raises(OutputError, match=r"metrics\.json"):
        compare_runs([out, str(tmp_path / "nothing")])
    for content in (b"", b"{}", b"[]"):
        empty = make_audit("empty", named(result, "empty"))
        empty.write_bytes("audit/metrics.json", content)
        told = rf"^{re.escape(empty.root)}/audit/metrics\.json: not .*; run audit again$"
        with pytest.raises(ShardError, match=told):
            compare_runs([out, empty.root])
    unmeasured = named(result, "b")
    unmeasured["provenance"]["reference_sha256"] = None
    with pytest.raises(ShardError, match="no reference"):
        compare_runs([out, make_audit("b", unmeasured).root])
    damaged = make_audit("c", named(result, "c"))
    damaged.delete("audit/bootstrap.parquet")
    with pytest.raises(RarefyError, match=r"bootstrap\.parquet"):
        compare_runs([out, damaged.root])


def test_runs_of_one_name_are_told_apart() -> None:
    assert run_labels(["x", "y", "x"], ["o/1", "o/2/", "o/3"]) == ["x (o/1)", "y", "x (o/3)"]


def test_command_writes_the_page_and_prints_the_table(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "both.html"
    assert main(["compare", *pair, "--page", str(page)]) == 0
    assert "real images" in capsys.readouterr().out
    text = page.read_text()
    assert "://" not in text
    assert text.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert all(f'id="{section}"' in text for section in ("runs", "numbers", "panels", "classes"))
    assert main(["compare", *pair, "--page", str(page), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["format"] == "rarefy-compare-v1"
    assert [run["label"] for run in printed["runs"]] == ["a", "b"]


def test_command_refuses_unequal_audits_with_exit_code_2(
    make_audit: MakeAudit, result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = named(result, "b")
    other["provenance"]["k"] = 5
    outs = [make_audit("a", named(result, "a")).root, make_audit("b", other).root]
    page = tmp_path / "page.html"
    assert main(["compare", *outs, "--page", str(page)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "k is 3 in a, 5 in b" in error
    assert not page.exists()


def test_page_needs_a_name(pair: list[str], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the path of a file"):
        write_page(compare_runs(pair), f"{tmp_path}/")


@pytest.mark.parametrize(
    ("first", "other", "nearer"), [(1.5, 1.1, True), (1.5, 1.9, False), (0.5, 0.8, True), (0.8, 1.6, False)]
)
def test_density_is_better_nearer_to_the_real_baseline(
    make_audit: MakeAudit, result: Result, first: float, other: float, nearer: bool
) -> None:
    outs = []
    for run, value in (("a", first), ("b", other)):
        changed = named(result, run, density=value)
        changed["metrics"]["density"] |= {"better": "nearest", "floor": 1.0}
        outs.append(make_audit(run, changed, {"density": (value + NOISE).tolist()}).root)
    assert second(compare_runs(outs), "density").improved == nearer


@pytest.mark.parametrize(
    ("hits", "counts", "significant"),
    [
        ((50, 65), (100, 100), True),
        ((50, 60), (100, 100), False),
        ((0, 0), (60, 60), False),
        ((60, 40), (60, 60), True),
    ],
)
def test_fractions_of_a_class_are_judged_as_by_a_peer_library(
    hits: tuple[int, int], counts: tuple[int, int], significant: bool
) -> None:
    """scipy's exact test agrees, and the interval of the difference is Newcombe's."""
    fractions = [(hit / count, wilson_interval(hit / count, count)) for hit, count in zip(hits, counts, strict=True)]
    assert significant_fractions(fractions[0], fractions[1]) is significant
    assert significant_fractions(fractions[1], fractions[0]) is significant
    table = [[hit, count - hit] for hit, count in zip(hits, counts, strict=True)]
    assert bool(barnard_exact(table).pvalue < 0.05) is significant
    assert significant_fractions(None, fractions[0]) is None


def test_class_cells_are_marked_where_the_intervals_say_so(make_audit: MakeAudit, result: Result) -> None:
    outs = []
    for run, value in (("a", 0.50), ("b", 0.65)):
        changed = named(result, run)
        for row in changed["per_class"]:
            row |= {"recall": value, "recall_interval": wilson_interval(value, 100)}
        changed["per_class"][1]["recall_interval"] = wilson_interval(value, 20)
        outs.append(make_audit(run, changed).root)
    compared = compare_runs(outs)
    sure, unsure = (row.recall for row in compared.per_class)
    assert (sure.significant, sure.improved) == ([None, True], [None, True])
    assert (unsure.significant, unsure.improved) == ([None, False], [None, None])
    assert compared.per_class[0].precision.significant == [None, None]  # no interval
    assert "training" in compared.significance
