"""The audit's page: what it says and shows, that it needs nothing from outside, that names cannot break out of it."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.page.pictures import data_uri
from rarefy.audit.page.report import REPORT_PATH, SHEET_PATH, write_report
from rarefy.audit.page.templates import interval, number, signed
from rarefy.audit.schema import COPIES_PATH, METRICS_PATH, RAREST_PATH
from rarefy.errors import OutputError, ShardError
from rarefy.manifest import Manifest
from rarefy.shards.store import Store

CommitRun = Callable[[Store, str], Manifest]
CommitImages = Callable[[Store, str, Any], Manifest]
MakeAudit = Callable[..., Store]
Result = dict[str, Any]

MANIFEST = """
name = "page"
[model]
preset = "fashion-mnist-28"
[classes]
counts = { 0 = 9, 4 = 9 }
"""
SECTIONS = (
    "partial",
    "verdict",
    "gates",
    "numbers",
    "distributions",
    "map",
    "classes",
    "rarest",
    "copies",
    "provenance",
)


def written(store: Store) -> str:
    assert write_report(store) == REPORT_PATH
    return store.read_bytes(REPORT_PATH).decode()


def shown_shades(page: str) -> list[int]:
    """The grey of every image on the page, in its order."""
    uris = re.findall(r'<img src="data:image/png;base64,([A-Za-z0-9+/=]+)"', page)
    return [int(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))[0, 0]) for uri in uris]


def test_page_is_whole_and_stands_alone(make_audit: MakeAudit, result: Result) -> None:
    page = written(make_audit("out", result))
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)""", page)
    assert links
    assert all((link or style).startswith(("data:image/png;base64,", "#")) for link, style in links)
    assert "://" not in page
    assert page.count("<script") == 1
    assert "prefers-color-scheme: dark" in page
    for section in SECTIONS:
        assert page.count(f'id="{section}"') == 1, section
    for text in ("fid_efficientnet_lite0", "20 generated, 100 real, 20 in the baseline", "k = 3", "sample of 15"):
        assert text in page


def test_only_the_pages_own_script_may_run(make_audit: MakeAudit, result: Result) -> None:
    page = written(make_audit("out", result))
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script
    # Oracle: the browser's own rule, sha256 of the element's text, checked by hand here and by Chromium elsewhere.
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_a_partial_audit_says_so_first(make_audit: MakeAudit, result: Result) -> None:
    page = written(make_audit("out", result))
    assert page.index("Incomplete audit") < page.index("Gates failed")
    assert "<code>rare-000001.tar</code>: truncated after 3 images" in page
    whole = written(make_audit("whole", result | {"partial": False, "problems": []}))
    assert "Incomplete audit" not in whole
    assert "rare-000001.tar" not in whole


def test_each_number_has_its_interval_and_floor(make_audit: MakeAudit, result: Result) -> None:
    page = written(make_audit("out", result))
    row = re.search(r"<tr><th>Recall<small>recall</small></th>(.*?)</tr>", page, re.DOTALL)
    assert row
    cells = re.findall(r'<td data-v="([^"]*)">([^<]*)</td>', row[1])
    assert [text for _, text in cells] == ["0.600", "0.580 to 0.620", "0.800", "0.790 to 0.810"]
    assert [float(value) for value, _ in cells] == pytest.approx([0.6, 0.58, 0.8, 0.79])
    unknown = re.search(r"<tr><th>Duplicates.*?</tr>", page, re.DOTALL)
    assert unknown
    assert unknown[0].count('data-v=""') == 2  # no intervals: nothing to sort by, and nothing shown


def test_rarest_images_stand_over_their_nearest_real_ones(make_audit: MakeAudit, result: Result) -> None:
    page = written(make_audit("out", result))
    shades = shown_shades(page[page.index('id="rarest"') : page.index('id="copies"')])
    first = [0, 1, 2, 100, 101, 102, 50, 51]
    assert shades == [*first, *(shade + 10 for shade in first)]


def test_copies_stand_beside_what_they_copy(make_audit: MakeAudit, result: Result) -> None:
    store = make_audit("out", result)
    page = written(store)
    assert shown_shades(page[page.index('id="copies"') :]) == [200, 220, 201, 221, 202, 222]
    assert "coat &amp; boot: same pixels as 00000000002" in page
    store.delete(COPIES_PATH)
    assert written(store).count("<span>no image</span>") == 6


def test_names_are_escaped(make_audit: MakeAudit, result: Result) -> None:
    page = written(make_audit("out", result))
    assert page.count("<script") == 1
    assert "<img onerror" not in page
    # Title, heading, manifest; gate, map's list, class table, rarest, two copies.
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 9


def test_audit_to_page_in_one_go(tmp_path: Path, real_folder: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    run_audit(store, AuditOptions(reference=str(real_folder)), lambda *_: None)
    page = written(store)
    assert "t-shirt/top" in page
    assert 'id="map"' in page
    with Image.open(io.BytesIO(store.read_bytes(SHEET_PATH))) as sheet:
        assert sheet.height == 2 * 56


def noise(class_id: int, ordinal: int) -> tuple[NDArray[np.uint8], int, float]:
    return np.random.default_rng([class_id, ordinal]).integers(0, 255, (3, 64, 64), np.uint8), class_id, 0.5


def test_page_without_a_reference(tmp_path: Path, commit_images: CommitImages) -> None:
    store = Store(str(tmp_path / "out"))
    commit_images(store, MANIFEST.replace("fashion-mnist-28", "adm-imagenet-64"), noise)
    run_audit(store, AuditOptions(), lambda *_: None)
    page = written(store)
    assert "No real images to compare with" in page
    assert "on_class_rate" in page
    assert "tail_recall" not in page
    assert 'id="map"' not in page
    assert not store.exists(SHEET_PATH)


def test_no_audit_to_report(tmp_path: Path, make_audit: MakeAudit, result: Result) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(OutputError, match=r"metrics\.json"):
        write_report(store)
    for content in (b"{", b"[]", json.dumps(result | {"format": "rarefy-audit-v1"}).encode()):
        store.write_bytes(METRICS_PATH, content)
        with pytest.raises(ShardError, match="run audit again"):
            write_report(store)
    damaged = make_audit("damaged", result)
    damaged.write_bytes(RAREST_PATH, b"PAR1")
    with pytest.raises(ShardError, match="rarest"):
        write_report(damaged)


def test_heavy_images_become_thumbnails() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (256, 192, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    head, _, data = data_uri(buffer.getvalue()).partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (96, 128)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (12345, "12,345"),
        (0.28149, "0.281"),
        (-0.0193, "\N{MINUS SIGN}0.019"),
        (0.00123, "0.0012"),
        (0.0, "0.000"),
        (975.908, "975.9"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_differences_and_intervals_for_people() -> None:
    assert [signed(value) for value in (0.25, -0.25, 0.0)] == ["+0.250", "\N{MINUS SIGN}0.250", "0.000"]
    assert (interval([0.1, 12.0]), interval(None)) == ("0.100 to 12.0", "")


def test_failed_gates_come_first_and_say_what_was_required(make_audit: MakeAudit, result: Result) -> None:
    result["gates"].append(result["gates"][0] | {"metric": "copies", "bound": "max", "limit": 0.001, "passed": False})
    page = written(make_audit("out", result))
    items = re.findall(r"<li( class=\"failed\")?><b>(passed|failed)</b>(.*?)</li>", page)
    assert items == [
        (
            ' class="failed"',
            "failed",
            "Coverage of &lt;script&gt;alert(1)&lt;/script&gt;: 0.100, required at least 0.6",
        ),
        (' class="failed"', "failed", "Copies: 0.600, required at most 0.001"),
        ("", "passed", "Recall: 0.600, required at least 0.45"),
    ]


def test_a_thousand_gates_are_folded_and_each_is_named(make_audit: MakeAudit, result: Result) -> None:
    gate = result["gates"][0]
    result["gates"] = [gate | {"scope": f"class {place}", "passed": place > 19} for place in range(1000)]
    page = written(make_audit("out", result))
    assert "984 more gates, 4 of them failed" in page
    assert all(f"of class {place}:" in page for place in range(1000))
    assert page.index("of class 15:") < page.index("<details") < page.index("of class 16:")
