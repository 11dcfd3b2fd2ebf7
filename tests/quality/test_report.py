"""docs/RESULTS.md and its figures from made-up results: what they hold, and what they say of it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from made_up_results import FLOOR, METHODS, metrics, results, row, rows
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation

from benchmarks.quality.claims import CLEAR, SLACK, answer, claims
from benchmarks.quality.figures import gradients, heat_maps, plane
from benchmarks.quality.report import markdown, write_report
from benchmarks.quality.spread import HEADINGS, Spread, groups, number, paired_difference

FIGURES = ("results-plane.svg", "results-sweep.svg", "results-entropy.svg", "results-gradient.svg")


def texts(path: Path) -> list[str]:
    return ["".join(node.itertext()) for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def verdicts(final: list[dict[str, Any]]) -> dict[str, bool | None]:
    return {claim.text: claim.holds for claim in claims(results(final))}


def replaced(method: str, **values: float) -> list[dict[str, Any]]:
    return [found | values if found["method"] == method else found for found in rows()]


def test_spread_is_the_sample_deviation_and_written_with_its_digits() -> None:
    found = groups(results())["low-density"]
    assert (found.values["fid"].mean, found.values["fid"].std) == pytest.approx((46.0, 1.0))
    assert found.values["recall"].std == pytest.approx(0.01)
    assert str(Spread(0.68204, 0.0045)) == "0.6820 ± 0.0045"
    assert str(Spread(434.21, 12.3)) == "434 ± 12"
    assert (str(Spread(0.5, None)), str(Spread(0.5, 0.0))) == ("0.5", "0.5 ± 0")
    assert [number(value) for value in (12345.6, 0.12345, None, float("nan"))] == ["12346", "0.1235", "", ""]


def test_every_claim_holds_of_numbers_that_keep_it() -> None:
    found = verdicts(rows())
    assert len(found) == 11 and all(found.values())


@pytest.mark.parametrize(
    ("method", "values", "failed"),
    [
        ("low-density", {"recall": 0.66}, ["recall above `adm`'s", "recall above `adm-g`'s"]),
        ("low-density", {"tail_recall": 0.381}, ["tail recall above `adm`'s"]),
        ("low-density", {"fid": 49.5 * 1.1 + 0.1}, ["FID at most 10% above the better of `adm`'s and `adm-g`'s"]),
        ("low-density", {"on_class": 0.9 * FLOOR["on_class"] - 0.001}, ["on-class rate at least 0.9"]),
        ("predicted-real", {"precision": 0.82}, ["precision no worse than `adm-g`'s"]),
        ("uncond-eds", {"fid": 60.5}, ["FID below `uncond-adm-g`'s"]),
    ],
)
def test_a_claim_that_fails_is_said_to_fail(method: str, values: dict[str, float], failed: list[str]) -> None:
    final = replaced(method, **values)
    found = [text for text, holds in verdicts(final).items() if holds is False]
    assert len(found) == len(failed)
    assert all(text.startswith(f"`{method}`: {start}") for text, start in zip(found, failed, strict=True))
    page = markdown(results(final), ())
    assert page.count("**does not hold**") == len(failed)
    assert f"{11 - len(failed)} of 11 claims hold; what does not is `{method}`" in page


def test_differences_seed_by_seed_need_the_same_seeds() -> None:
    found = groups(results())
    paired = paired_difference(found["low-density"], found["adm"], "fid")
    assert paired is not None
    means = [METHODS[name][0] for name in ("low-density", "adm")]
    assert (paired.mean, paired.std) == pytest.approx((means[0] - means[1], 0.0))
    claim = next(claim for claim in claims(results()) if claim.text.startswith("`eds`"))
    assert f"seed by seed {paired_difference(found['eds'], found['adm-g'], 'fid')}" in claim.numbers
    others = groups(results([row for row in rows() if (row["method"], row["seed"]) != ("adm", 2)]))
    assert paired_difference(others["low-density"], others["adm"], "fid") is None


def test_better_takes_two_deviations_and_no_worse_allows_one() -> None:
    recall, fid = METHODS["adm"][1], METHODS["adm-g"][0]

    def shifted(method: str, fid: float, recall: float) -> list[dict[str, Any]]:
        own = [row(method, seed, fid + d, recall + 0.01 * d) for seed, d in enumerate((-1, 0, 1))]
        return [found for found in rows() if found["method"] != method] + own

    for times, holds in ((CLEAR - 0.1, False), (CLEAR + 0.1, True)):
        found = verdicts(shifted("low-density", 46.0, recall + 0.01 * times))
        assert found["`low-density`: recall above `adm`'s"] is holds
    for times, holds in ((SLACK - 0.1, True), (SLACK + 0.1, False)):
        found = verdicts(shifted("eds", fid + times, 0.64))
        assert found["`eds`: FID no worse than `adm-g`'s"] is holds


def test_one_seed_or_a_missing_method_is_not_judged_and_said_so() -> None:
    found = verdicts(rows(seeds=1))
    assert sorted(map(str, found.values())) == ["None"] * 9 + ["True"] * 2
    page = markdown(results(rows(seeds=1)), ())
    assert "**Under way**: so far there are 1 of 3 seeds of `adm`" in page and "9 cannot be judged yet" in page
    assert "not all of its claims can be judged yet" in page and "±" not in page.split("## Claims")[0].split("A num")[0]
    partial = [found for found in rows() if found["method"] != "eds"]
    assert verdicts(partial)["`eds`: FID no worse than `adm-g`'s"] is None
    assert "not measured: `eds`" in markdown(results(partial), ())
    assert "Under way" not in markdown(results(), ())
    empty = markdown(results([]) | {"sweep": [], "traces": None}, ())
    assert answer(results([])) == ["0 of 11 claims hold, 11 cannot be judged yet."] and "## The sweep" not in empty


def test_the_answer_is_a_few_sentences_with_the_numbers() -> None:
    found = answer(results())
    assert len(found) == 5
    assert "recall of 0.715 ± 0.010" in found[1] and found[1].endswith("the paper's claim holds here.")
    assert "ADM-G's FID from 61.0 ± 1.0 to 52.5 ± 1.0 (-14%)" in found[3]
    assert "`low-density` has the highest recall" in found[4]


def test_the_page_has_every_row_and_number(tmp_path: Path) -> None:
    data, notes = results(), tmp_path / "notes.md"
    write_report(data, tmp_path, notes)
    page = (tmp_path / "RESULTS.md").read_text()
    lines = page.splitlines()
    for found in data["final"]:
        (line,) = (line for line in lines if line.endswith(f"| {found['digest'][:16]} |"))
        assert all(f" {number(found[name])} " in line for name in HEADINGS)
    for found in data["sweep"]:
        (line,) = (line for line in lines if line.startswith(f"| {found['name']} |"))
        assert all(f" {number(found[name])} " in line for name in HEADINGS if name in found)
        assert all(f" {json.dumps(value)} " in line for value in found["values"].values())
    assert sum(line.startswith("| real images |") for line in lines) == 2
    assert all(page.count(f"| `{method}` | 3 |") == 1 for method in METHODS)
    assert "`classifier, scale = 2.0, window = [300, 1000]`" in page
    assert "seeds 100, none of which the final table uses" in page
    assert "What was found on the way" not in page
    notes.write_text("A finding.\n")
    write_report(data, tmp_path, notes)
    assert "## What was found on the way\n\nA finding.\n\n## The sweep" in (tmp_path / "RESULTS.md").read_text()


def test_results_of_an_experiment_that_has_just_begun_make_a_page(tmp_path: Path) -> None:
    begun = {"format": "rarefy-results-v1", "final": rows(seeds=1)[3::-1], "sweep": results()["sweep"][::-1]}
    write_report(begun, tmp_path, tmp_path / "none")
    page = (tmp_path / "RESULTS.md").read_text()
    assert "## What ECT" not in page and "Setting" not in page.split("## Claims")[0]
    assert re.findall(r"^\| `(\S+)` \| 1 \|", page, re.MULTILINE) == ["adm", "adm-g", "eds", "eds-ect"]
    assert re.findall(r"^\| tau x gamma (\d)", page, re.MULTILINE) == list("012345"), "in the order of the values"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RESULTS.md", "results-plane.svg", "results-sweep.svg"]


def test_tables_are_as_wide_as_their_heads() -> None:
    for block in re.findall(r"(?:^\|.*\n?)+", markdown(results(), FIGURES), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}) == 1


def test_traces_are_put_in_words_that_follow_the_numbers() -> None:
    data = results()
    page = markdown(data, FIGURES)
    assert "ECT raises it, 0.15 to 0.25, at noised real images" in page
    norms = "EDS raises it, 0.1 to 0.5 and with the ECT classifier 0.4, and the 10% quantile from 0.05 to 0.25 and 0.2,"
    assert f"{norms} on the conditional model" in page
    chain = data["traces"]["chains"]["conditional"]
    chain["gradient"]["eds"] = chain["gradient"]["adm-g"]
    chain["entropy"]["ect"] = chain["entropy"]["plain"]
    again = markdown(data, FIGURES)
    assert "EDS does not raise it, 0.1 to 0.1" in again and "ECT does not raise it, 0.15 to 0.15," in again


def test_figures_are_the_same_again_and_hold_every_label(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_report(results(), tmp_path / name, tmp_path / "none")
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1] and sorted(written[0]) == sorted([*FIGURES, "RESULTS.md"])
    assert all(f"]({name})" in written[0]["RESULTS.md"].decode() for name in FIGURES)
    in_plane = texts(tmp_path / "first" / "results-plane.svg")
    for method in METHODS:
        assert method.removeprefix("uncond-") in in_plane
    assert {"unconditional ADM", "real images: recall 0.834, FID 21"} <= {*in_plane}
    assert {"noised real images", "ECT classifier"} <= {*texts(tmp_path / "first" / "results-entropy.svg")}
    assert {"ADM-G", "ADM-G + EDS", "unconditional ADM"} <= {*texts(tmp_path / "first" / "results-gradient.svg")}


def test_a_later_panel_is_not_cut_off_by_the_first() -> None:
    data = results()
    chain = data["traces"]["chains"]["unconditional"]
    larger = {
        name: {key: [9 * v for v in values] for key, values in found.items()}
        for name, found in chain["gradient"].items()
    }
    data["traces"]["chains"]["unconditional"] = chain | {"gradient": larger}
    for axes in gradients(data).axes:
        assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] >= max(max(line.get_ydata()) for line in axes.lines)  # type: ignore[arg-type]


def test_points_of_the_plane_are_means_and_labels_lie_apart() -> None:
    figure = plane(results())
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    points = {(round(x, 6), round(y, 6)) for line in axes.lines for x, y in line.get_xydata()}  # type: ignore[union-attr]
    assert {(round(recall, 6), round(fid, 6)) for fid, recall in METHODS.values()} <= points
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "less FID is higher up"
    boxes = [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation) and text.get_text()]
    assert len(boxes) == len(METHODS) + 1
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
    centres = [axes.transData.transform((recall, fid)) for fid, recall in METHODS.values()]
    assert not any(box.contains(*centre) for box in boxes for centre in centres)


def test_real_images_within_the_plane_are_a_star() -> None:
    figure = plane(results() | {"floor": FLOOR | {"recall": 0.69, "fid": 50.0}})
    assert figure is not None
    (star,) = (line for line in figure.axes[0].lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[0.69, 50.0]]  # type: ignore[union-attr]


def test_heat_maps_have_each_cell_at_its_tau_and_gamma() -> None:
    figure = heat_maps(results())
    assert figure is not None
    recall, fid = figure.axes[:2]
    assert [label.get_text() for label in fid.get_xticklabels()] == ["0.5", "0.7", "1.0"]
    assert [label.get_text() for label in fid.get_yticklabels()] == ["0.02", "0.05"]
    assert fid.images[0].get_array().tolist() == [[49.5, 50.1, 51.0], [46.5, 47.1, 48.0]]  # type: ignore[union-attr]
    assert {text.get_text() for text in recall.texts} == {"0.62", "0.65"}
    assert heat_maps(results() | {"sweep": []}) is None
    other = [found | {"values": found["values"] | {"scale": scale}} for scale in (1, 2) for found in results()["sweep"]]
    split = heat_maps(results() | {"sweep": other})
    assert split is not None and [axes.get_title() for axes in split.axes[:4]] == [
        "recall, scale 1", "FID, scale 1", "recall, scale 2", "FID, scale 2",
    ]  # fmt: skip


def test_the_readmes_table_is_of_the_committed_results() -> None:
    root = Path(__file__).parents[2]
    found = groups(json.loads((root / "docs/results.json").read_text()))
    digits = {"fid": 1, "precision": 3, "recall": 3, "tail_recall": 3, "on_class": 3}
    table = (root / "README.md").read_text().split("| FID (lite0) | precision | recall | tail recall | on class |")[1]
    lines = [line.split("|")[2:7] for line in table.split("\n\n")[0].splitlines() if "±" in line]
    shown = {
        tuple(f" {group.values[name].mean:.{d}f} ± {group.values[name].std:.{d}f} " for name, d in digits.items())
        for group in found.values()
    }
    assert len(lines) == 7 and {tuple(line) for line in lines} <= shown


def test_the_ablation_is_a_line_a_combination() -> None:
    about = {"stage": "ablation", "name": "cond", "preset": "fashion-mnist-28", "guidance": [], "variance": 0.95}
    found = [
        about | metrics(fid, 0.7) | {"seed": seed, "values": {"steps": 25, "confidence": 0, "gamma": gamma}}
        for gamma, fids in ((0, (50.0, 52.0)), (1, (40.0, 42.0)))
        for seed, fid in enumerate(fids, 100)
    ]
    page = markdown(results() | {"sweep": found}, ())
    own = page.split("## What each part of `low-density` does")[1].split("## ")[0]
    assert "5000 images a seed" in own
    lines = [line.split(" | ")[:4] for line in own.splitlines() if line.startswith("| 25")]
    assert [line[1:] for line in lines] == [["none", "2", "51.0 ± 1.4"], ["predicted-real-image", "2", "41.0 ± 1.4"]]
    assert "What each part" not in markdown(results(), ())
