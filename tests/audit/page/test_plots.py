"""Plots: shapes at the right places by hand, and nothing in them that a page of its own colours cannot have."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from rarefy.audit.metrics.summary import Histogram
from rarefy.audit.page.plots import VARIABLES, PlanePoint, histogram_plot, map_plot, plane_plot
from rarefy.audit.schema import AuditResult, FeatureMap

Result = dict[str, Any]
Points = list[tuple[float, float]]


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
    plane = plane_plot([PlanePoint("1", 400, 0.6, [390, 410], [0.5, 0.7])], PlanePoint("real", 100, 0.8, None, None))
    return [histogram_plot("rarity", AuditResult.from_json(result).histograms["rarity"]), map_plot(points_of), plane]


def test_plots_follow_the_pages_colours_and_have_no_addresses(drawn: list[str]) -> None:
    for svg in drawn:
        parse(svg)
        assert "://" not in svg
        assert "<style" not in svg  # it would hold for the whole page
        assert not any(colour in svg for colour in VARIABLES)
        assert "#000" not in svg  # black on a dark page
        assert not re.search(r"\d\.\d{3,}", svg)


def test_texts_stay_texts(drawn: list[str]) -> None:
    texts = [text.text for text in parse(drawn[2]).iter("text")]
    assert {"FID (lower is better)", "Recall (higher is better)", "1", "real"} <= set(texts)
    narrow = [PlanePoint("1", 0.5, 0.801, None, None), PlanePoint("2", 0.6, 0.806, None, None)]
    ticks = [text.text or "" for text in parse(plane_plot(narrow, None)).iter("text")]
    assert "0.802" in ticks


def test_plots_are_the_same_every_time(points_of: FeatureMap, drawn: list[str]) -> None:
    assert map_plot(points_of) == drawn[1]


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


def test_mathematics_in_a_mark_is_text() -> None:
    svg = plane_plot([PlanePoint("a $x^2$ <b>", 1.0, 0.5, None, None)], None)
    assert "a $x^2$ <b>" in [text.text for text in parse(svg).iter("text")]
