"""Plots: shapes at the right places by hand, and nothing in them that a page of its own colours cannot have."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from rarefy.audit.metrics.summary import Histogram
from rarefy.audit.page.plots import VARIABLES, Panel, histogram_plot, map_plot, panel_plot
from rarefy.audit.schema import AuditResult, FeatureMap

Result = dict[str, Any]
Points = list[tuple[float, float]]
PANEL = Panel("recall", "Recall", "higher", [0.6, 0.65, None], [[0.5, 0.7], None, None], 0.8)


def parse(svg: str) -> ET.Element:
    """As XML: well-formed, the namespace put back that an inline SVG does not need."""
    return ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))


def points(path: str) -> Points:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path)]


def layer(svg: ET.Element, gid: str) -> Points:
    found = svg.find(f".//g[@id='{gid}']/path")
    assert found is not None
    return points(found.attrib["d"])


@pytest.fixture
def points_of(result: Result) -> FeatureMap:
    found = AuditResult.from_json(result).map
    assert found is not None
    return found


@pytest.fixture
def drawn(result: Result, points_of: FeatureMap) -> list[str]:
    histograms = AuditResult.from_json(result).histograms
    plots = [histogram_plot("rarity", histograms["rarity"]), histogram_plot("entropy", histograms["entropy"], True)]
    return [*plots, map_plot(points_of), panel_plot(PANEL)]


def test_plots_follow_the_pages_colours_and_have_no_addresses(drawn: list[str]) -> None:
    for svg in drawn:
        parse(svg)
        assert "://" not in svg
        assert "<style" not in svg  # it would hold for the whole page
        assert not any(colour in svg for colour in VARIABLES)
        assert "#000" not in svg  # black on a dark page
        assert not re.search(r"\d\.\d{3,}", svg)


def test_texts_stay_texts(drawn: list[str]) -> None:
    assert {"1", "2", "3"} <= {text.text for text in parse(drawn[3]).iter("text")}
    narrow = Panel("fid", "FID", "lower", [0.801, 0.806], [None, None], None)
    ticks = [text.text or "" for text in parse(panel_plot(narrow)).iter("text")]
    assert "0.8020" in ticks
    assert {"1%", "10%", "100%"} <= {text.text for text in parse(drawn[1]).iter("text")}


def test_plots_are_the_same_every_time(points_of: FeatureMap, drawn: list[str]) -> None:
    assert map_plot(points_of) == drawn[2]


def test_histogram_heights_are_the_shares() -> None:
    table = Histogram("x", [0.0, 1.0, 2.0], [0.25, 0.75], 1.25, [1.0, 0.0], 0.5)
    paths = [path for path in parse(histogram_plot("x", table)).iter("path") if "var(--set)" in path.attrib["style"]]
    (x0, base), (_, low), (x1, _), (_, high), *_ = points(paths[0].attrib["d"])
    assert (base - high) / (base - low) == pytest.approx(3, abs=0.02)
    assert x1 > x0
    outline = [path for path in parse(histogram_plot("x", table)).iter("path") if "var(--real)" in path.attrib["style"]]
    ys = [y for _, y in points(outline[0].attrib["d"])]
    assert (base - min(ys)) / (base - low) == pytest.approx(4, abs=0.02)
    assert max(ys) == pytest.approx(base, abs=0.1)


def test_map_puts_both_sides_on_one_scale(points_of: FeatureMap) -> None:
    svg = parse(map_plot(points_of))
    placed, wanted = [], []
    for side in ("real", "generated"):
        for class_id in (0, 1):
            dots = layer(svg, f"map-{side}-{class_id}")[::2]
            rows = [row for row in getattr(points_of, side) if row[2] == class_id]
            assert len(dots) == len(rows)
            placed += dots
            wanted += [(row[0], row[1]) for row in rows]
    for axis in (0, 1):
        values, places = np.array(wanted)[:, axis], np.array(placed)[:, axis]
        slope, offset = np.polyfit(values, places, 1)
        np.testing.assert_allclose(places, slope * values + offset, atol=0.11)  # coordinates have one decimal
        assert slope * (1 if axis == 0 else -1) > 0  # y points down in SVG


def test_generated_dots_lie_over_real_ones(points_of: FeatureMap) -> None:
    groups = [group.attrib["id"] for group in parse(map_plot(points_of)).iter("g") if "id" in group.attrib]
    assert groups == ["map-real-0", "map-real-1", "map-generated-0", "map-generated-1"]


def test_a_panel_has_runs_from_top_to_bottom_on_one_scale() -> None:
    svg = parse(panel_plot(PANEL))
    dashed = [path for path in svg.iter("path") if "var(--real)" in path.attrib.get("style", "")]
    (real, _), _ = points(dashed[0].attrib["d"])
    lines = [path for path in svg.iter("path") if "var(--set)" in path.attrib.get("style", "")]
    (low, y), (high, _) = next(found for path in lines if len(found := points(path.attrib["d"])) == 2)
    # The interval of the first run is from 0.5 to 0.7; the real baseline is 0.8.
    assert (real - high) / (high - low) == pytest.approx(0.5, abs=0.01)
    places = [float(use.attrib["y"]) for use in svg.iter("use") if "var(--set)" in use.attrib.get("style", "")]
    assert places == sorted(places)
    assert len(places) == 2  # the third run has no value
    assert y == pytest.approx(places[0], abs=0.1)


def test_a_logarithmic_axis_shows_small_shares() -> None:
    table = Histogram("x", [0.0, 1.0, 2.0], [0.001, 0.999], 1.25, [0.1, 0.9], 0.5)
    svg = parse(histogram_plot("x", table, True))
    filled = next(path for path in svg.iter("path") if "var(--set)" in path.attrib["style"])
    (_, base), (_, low), _, (_, high), *_ = points(filled.attrib["d"])
    # From 0.01% to 100% are four decades; a tenth of a percent is one above the base.
    assert (base - high) / (base - low) == pytest.approx(4, abs=0.05)
