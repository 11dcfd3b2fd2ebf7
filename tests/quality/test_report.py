"""docs/RESULTS.md, its figures and the verdicts on the claims, from made-up results and from the committed ones."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from made_up_results import METHODS, REAL, results, row, rows

from benchmarks.quality.claims import CLEAR, SLACK, claims
from benchmarks.quality.figures import PANELS, samplers
from benchmarks.quality.report import DOCS, filled, write_report
from benchmarks.quality.results import Spread, summary

PAGE = (DOCS / "RESULTS.md").read_text(encoding="utf-8")
COMMITTED = json.loads((DOCS / "results.json").read_text())


def verdicts(final: list[dict[str, Any]]) -> dict[str, bool | None]:
    return {claim.text: claim.holds for claim in claims(results(final))}


def replaced(method: str, **values: float) -> list[dict[str, Any]]:
    return [row | values if row["method"] == method else row for row in rows()]


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    assert filled(PAGE, COMMITTED) == PAGE


def test_the_readme_cites_the_committed_results() -> None:
    digits = {"fid": 1, "precision": 3, "recall": 3, "tail_recall": 3, "on_class": 3}
    readme = (DOCS.parent / "README.md").read_text()
    table = readme.split("| FID (lite0) | precision | recall | tail recall | on class |")[1].split("\n\n")[0]
    lines = {tuple(line.split("|")[2:7]) for line in table.splitlines() if "±" in line}
    shown = {
        tuple(f" {values[name].mean:.{d}f} ± {values[name].std:.{d}f} " for name, d in digits.items())
        for values in summary(COMMITTED).values()
    }
    assert lines and lines <= shown


def test_spread_is_the_sample_deviation_written_with_its_digits() -> None:
    fid = summary(results())["low-density"]["fid"]
    assert (fid.mean, fid.std) == pytest.approx((46.0, 1.0))
    assert str(Spread(0.68204, 0.0045)) == "0.6820 ± 0.0045"
    assert str(Spread(434.21, 12.3)) == "434 ± 12"
    assert str(Spread(0.86, 0.00007)) == "0.8600 ± 0.0001"
    assert [str(Spread(0.5, None)), str(Spread(0.5, 0.0))] == ["0.5", "0.5"]


def test_all_claims_hold_for_numbers_that_meet_them() -> None:
    assert list(verdicts(rows()).values()) == [True] * 11
    assert "11 of 11 claims hold." in filled(PAGE, results())


@pytest.mark.parametrize(
    ("method", "values", "failed"),
    [
        ("low-density", {"recall": 0.66}, ["recall higher than with `adm`", "recall higher than with `adm-g`"]),
        ("low-density", {"tail_recall": 0.381}, ["tail recall higher than with `adm`"]),
        ("low-density", {"fid": 49.5 * 1.1 + 0.1}, ["FID at most 10% above the better of `adm` and `adm-g`"]),
        ("low-density", {"on_class": 0.9 * 0.92 - 0.001}, ["on-class rate at least 0.9 times that of real images"]),
        ("predicted-real", {"precision": 0.82}, ["precision no worse than with `adm-g`"]),
        ("uncond-eds", {"fid": 60.5}, ["FID lower than with `uncond-adm-g`"]),
    ],
)
def test_a_claim_that_fails_is_named(method: str, values: dict[str, float], failed: list[str]) -> None:
    final = replaced(method, **values)
    assert [text for text, holds in verdicts(final).items() if holds is False] == [f"`{method}`: {t}" for t in failed]
    page = filled(PAGE, results(final))
    does = "does" if len(failed) == 1 else "do"
    assert f"{11 - len(failed)} of 11 claims hold; {len(failed)} {does} not:" in page
    assert page.count("**does not hold**") == len(failed)


def test_better_takes_two_deviations_and_no_worse_allows_one() -> None:
    def holds(text: str, method: str, fid: float, recall: float) -> bool | None:
        own = [row(method, seed, fid + d, recall + 0.01 * d) for seed, d in enumerate((-1, 0, 1))]
        return verdicts([other for other in rows() if other["method"] != method] + own)[text]

    recall, fid = METHODS["adm"][1], METHODS["adm-g"][0]
    for times, expected in ((CLEAR - 0.1, False), (CLEAR + 0.1, True)):
        text = "`low-density`: recall higher than with `adm`"
        assert holds(text, "low-density", 46.0, recall + 0.01 * times) is expected
    for times, expected in ((SLACK - 0.1, True), (SLACK + 0.1, False)):
        assert holds("`eds`: FID no worse than with `adm-g`", "eds", fid + times, 0.64) is expected


def test_claims_without_seeds_or_rows_are_not_judged() -> None:
    assert list(verdicts(rows(seeds=1)).values()) == [None] * 9 + [True] * 2
    assert "2 of 11 claims hold, 9 cannot be judged yet." in filled(PAGE, results(rows(seeds=1)))
    without = [other for other in rows() if other["method"] != "low-density"]
    unjudged = [text for text, holds in verdicts(without).items() if holds is None]
    assert len(unjudged) == 6 and all("low-density" in text for text in unjudged)


def test_the_page_has_every_number_and_keeps_its_text() -> None:
    lines = filled(PAGE, results()).splitlines()
    (own,) = (line for line in lines if line.startswith("| `low-density` |"))
    assert "| 46.0 ± 1.0 | 0.83 | 0.715 ± 0.010 | 0.415 ± 0.010 |" in own and "tau = 0.5" in own
    assert sum(line.startswith("| real images | 21 | 0.83 | 0.834 | 0.62 |") for line in lines) == 2
    assert sum(line.startswith("| `") for line in lines) == 11 + len(METHODS)
    (ablation,) = (line for line in lines if line.startswith("| ancestral, 50 steps, fast |"))
    assert "`predicted-real-image, gamma = [[300, 0.0], [500, -0.05]]` | 221.0 ± 1.4 |" in ablation
    assert "## Limits" in lines


def test_the_page_names_the_tail_of_the_results_file() -> None:
    old, new = results(), results()
    new["setting"]["tail"] = 0.2
    page = filled(PAGE, old)
    assert "the rarest 10% of" in page and "the rarest 20% of each class: the two are not comparable" in page
    assert "the rarest 20% of" in filled(PAGE, new) and "not comparable" not in filled(PAGE, new)


def test_the_figures_show_every_sampler_and_chain(tmp_path: Path) -> None:
    write_report(results(), tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == filled(PAGE, results())
    paths = {name: tmp_path / f"results-{name}.svg" for name in ("samplers", "traces")}
    texts = {name: set(ET.parse(path).getroot().itertext()) for name, path in paths.items()}
    assert {*METHODS, "real images", "FID (lower is better)"} <= texts["samplers"]
    assert {"plain classifier", "ADM-G + EDS", "conditional model"} <= texts["traces"]
    first = paths["samplers"].read_bytes()
    write_report(results(), tmp_path)
    assert paths["samplers"].read_bytes() == first


def test_the_points_are_the_means_and_the_line_is_the_real_images() -> None:
    figure = samplers(results())
    for axes, name in zip(figure.axes, PANELS, strict=True):
        points = axes.collections[-1].get_offsets().tolist()  # type: ignore[union-attr]
        expected = [values[name].mean for values in summary(results()).values()]
        assert [x for x, _ in points] == pytest.approx(expected)
        assert axes.lines[-1].get_xdata()[0] == REAL[name]  # type: ignore[index]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == list(METHODS) and figure.axes[0].yaxis_inverted()
