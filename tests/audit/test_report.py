"""The page: what it says, that it needs nothing from outside, and that names cannot break out of it."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.audit.audit import METRICS_PATH, AuditOptions, run_audit
from pipeline.audit.page import histogram_view, metric_views, notes, verdict
from pipeline.audit.report import REPORT_PATH, SHEET_PATH, number, write_report
from pipeline.errors import OutputError, ShardError
from pipeline.manifest import Manifest
from pipeline.shards.store import Store

CommitRun = Callable[[Store, str], Manifest]
Blob = Callable[[int, int], tuple[NDArray[np.uint8], int, float]]

MANIFEST = """
name = "page"
[model]
preset = "fashion-mnist-28"
[classes]
counts = { 0 = 9, 4 = 9 }
"""


def quiet(stage: str, done: int, total: int) -> None:
    assert done <= total, stage


@pytest.fixture
def audited(tmp_path: Path, real_folder: Path, commit_run: CommitRun) -> Store:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    run_audit(store, AuditOptions(reference=str(real_folder)), quiet)
    return store


def test_page_is_whole_and_stands_alone(audited: Store) -> None:
    assert write_report(audited) == REPORT_PATH
    page = audited.read_bytes(REPORT_PATH).decode()
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)""", page)
    assert links
    assert all((link or style).startswith("data:image/png;base64,") for link, style in links)
    assert "http" not in page
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert "image-rendering: pixelated" in page
    for text in ("t-shirt/top", "coat", "fid_efficientnet_lite0", "18 generated, 100 real", "k = 3"):
        assert text in page


def test_page_shows_the_rarest_images_themselves(audited: Store, blob: Blob) -> None:
    write_report(audited)
    page = audited.read_bytes(REPORT_PATH).decode()
    shown = {base64.b64decode(uri) for uri in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)}
    pixels = {np.asarray(Image.open(io.BytesIO(png))).tobytes() for png in shown}
    generated = {blob(class_id, ordinal)[0][0].tobytes() for class_id in (0, 4) for ordinal in range(9)}
    real = {blob(class_id, 1000 + ordinal)[0][0].tobytes() for class_id in (0, 4) for ordinal in range(20)}
    assert pixels & generated
    assert pixels & real
    assert pixels <= generated | real
    with Image.open(io.BytesIO(audited.read_bytes(SHEET_PATH))) as sheet:
        assert sheet.height == 2 * 56


def test_names_are_escaped(audited: Store) -> None:
    result = json.loads(audited.read_bytes(METRICS_PATH))
    result["per_class"][0]["class_name"] = "<script>alert(1)</script>"
    result["provenance"]["reference"] = '"><img src=x onerror=alert(1)>'
    audited.write_bytes(METRICS_PATH, json.dumps(result).encode())
    write_report(audited)
    page = audited.read_bytes(REPORT_PATH).decode()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


def test_page_without_a_reference(tmp_path: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST.replace("fashion-mnist-28", "adm-imagenet-64"))
    run_audit(store, AuditOptions(), quiet)
    write_report(store)
    page = store.read_bytes(REPORT_PATH).decode()
    assert "No real images to compare with" in page
    assert "on_class_rate" in page
    assert "tail_recall" not in page
    assert not store.exists(SHEET_PATH)


def test_no_audit_to_report(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(OutputError, match=r"metrics\.json"):
        write_report(store)
    for content in (b"{", b"[]", b'{"format": "other"}'):
        store.write_bytes(METRICS_PATH, content)
        with pytest.raises(ShardError, match="run audit again"):
            write_report(store)


def entry(value: float, floor: float | None, better: str = "higher", count: int = 9000) -> dict[str, object]:
    counts = {"generated_count": count, "real_count": 10_000, "floor_count": count}
    return {"value": value, "floor": floor, "better": better, **counts}


@pytest.mark.parametrize(
    ("recall", "precision", "level"),
    [(0.8, 0.8, "close"), (0.73, 0.73, "close"), (0.61, 0.8, "usable"), (0.8, 0.61, "usable"), (0.59, 0.8, "far")],
)
def test_verdict_is_the_worse_of_recall_and_precision(recall: float, precision: float, level: str) -> None:
    metrics = {
        "recall": entry(recall, 0.8),
        "precision": entry(precision, 0.8),
        "tail_recall": entry(0.3, 0.6),
        "rarity": entry(20, 10),
    }
    found = verdict(metrics)
    assert found["level"] == level
    assert f"reaches {recall:.0%} of the real test images" in found["lines"][0]
    assert "30% (real: 60%)" in found["lines"][0]


def test_tiles_show_how_much_of_the_floor_is_reached() -> None:
    metrics = {"fid_x": entry(400, 100, "lower"), "recall": entry(0.4, 0.8), "kid_x": entry(3, -0.1, "lower")}
    views = metric_views(metrics)
    assert [(view["label"], view["reached"]) for view in views] == [("Recall", 0.5), ("FID", 0.25), ("KID", None)]


def test_notes_name_every_reservation() -> None:
    run = {"sealed": False, "committed": 30, "planned": 40, "measured": 20, "not_accepted": 3}
    few = {"provenance": run, "metrics": {"recall": entry(0.4, 0.8, count=20) | {"floor_count": 10}}}
    assert len(notes(few)) == 5
    good = {"sealed": True, "committed": 9000, "planned": 9000, "measured": 9000, "not_accepted": 0}
    assert notes({"provenance": good, "metrics": {"recall": entry(0.4, 0.8)}}) == []


def test_histogram_shapes_by_hand() -> None:
    table = {
        "edges": [0.0, 1.0, 2.0],
        "generated": [0.25, 0.75],
        "reference": [1.0, 0.0],
        "generated_mean": 1.2,
        "reference_mean": 0.5,
    }
    view = histogram_view("t", "m", table)
    # The tallest share, 1, is 138 units high over the base line at 146.
    assert [bar["height"] for bar in view["bars"]] == [34.5, 103.5]
    assert [bar["y"] + bar["height"] for bar in view["bars"]] == [146, 146]
    assert view["line"] == "M0 146.0L0.00 8.0L180.00 8.0L180.00 146.0L360.00 146.0L360.0 146.0"
    assert [label for _, label in view["ticks"]] == ["0", "0.5", "1", "1.5", "2"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (12345, "12,345"),
        (0.28149, "0.281"),
        (-0.0193, "\N{MINUS SIGN}0.019"),
        (975.908, "975.9"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text
