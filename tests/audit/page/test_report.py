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
from made_up_audit import strip_row, write_rows
from numpy.typing import NDArray
from PIL import Image

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.card import SAMPLE_PATH
from rarefy.audit.current import shards_sha256
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.page.pictures import data_uri
from rarefy.audit.page.report import write_report
from rarefy.audit.page.templates import interval, number, signed
from rarefy.audit.schema import COPIES_PATH, METRICS_PATH, REPORT_PATH, STRIPS_PATH
from rarefy.cli import main
from rarefy.errors import DataError, OutputError, ShardError
from rarefy.manifest import Manifest
from rarefy.plan import run_spec, shard_names
from rarefy.shards.index import INDEX, SUCCESS, DataSetFiles
from rarefy.shards.listing import iter_committed
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
    "images",
    "classes",
    "distributions",
    "copies",
    "map",
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
    assert page.count("20 generated, 100 real and 20 images in the real baseline") == 1
    for text in ("fid_efficientnet_lite0", "k = 3", "15 scored per side"):
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


def test_each_class_has_its_strips(make_audit: MakeAudit, result: Result) -> None:
    page = written(make_audit("out", result))
    images = page[page.index('id="images"') : page.index('id="classes"')]
    # At random, rarest over their nearest real ones, outside over its nearest, off class, rarest real.
    first = [0, 1, 2, 3, 102, 103, 4, 104, 5, 6, 7]
    assert shown_shades(images) == [*first, *(shade + 20 for shade in first)]
    labels = re.findall(r'<div class="strip(?: real)?"><span title="[^"]*">([^<]*)</span>', images)
    strips = ["at random", "rarest", "nearest real", "outside", "nearest real", "other class", "rarest real"]
    assert labels == 2 * strips
    alts = re.findall(r'alt="([^"]*)"', images)
    assert len(alts) == 22 and all(alts)
    assert "generated coat &amp; boot 00000100000" in alts
    title = "00000100000 · outside the real data · distance to the nearest real image 3.500 · confidence 0.500"
    assert f'<button class="shot" title="{title}">' in images
    assert images.count('class="shot off"') == 2
    assert "taken for &lt;script&gt;" in images


def test_without_a_classifier_no_image_is_off_class(make_audit: MakeAudit, result: Result) -> None:
    result["provenance"]["classifier_sha256"] = None
    page = written(make_audit("out", result))
    assert "other class" not in page


def test_a_thousand_classes_are_all_there_and_twenty_are_shown(make_audit: MakeAudit, result: Result) -> None:
    row = result["per_class"][1]
    result["per_class"] = [row | {"class_id": each, "class_name": f"class {each}"} for each in range(1000)]
    store = make_audit("out", result)
    rows = [strip_row(strip, each, 0, each % 250) for each in range(1000) for strip in ("sample", "real")]
    write_rows(store, STRIPS_PATH, rows)
    page = written(store)
    assert page.count('<div class="card group"') == 1000
    assert len(re.findall(r'<div class="card group" data-name="[^"]*" hidden>', page)) == 980
    assert "20 of 1,000 classes are shown" in page


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
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 9


def test_audit_to_page_in_one_go(tmp_path: Path, real_folder: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    run_audit(store, AuditOptions(reference=str(real_folder)), lambda *_: None)
    page = written(store)
    assert "t-shirt/top" in page
    assert 'id="map"' in page
    with Image.open(io.BytesIO(store.read_bytes(SAMPLE_PATH))) as sheet:
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
    assert not store.exists(SAMPLE_PATH)


def test_no_audit_to_report(tmp_path: Path, make_audit: MakeAudit, result: Result) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(OutputError, match=r"metrics\.json"):
        write_report(store)
    for content in (b"{", b"[]", json.dumps(result | {"format": "rarefy-audit-v1"}).encode()):
        store.write_bytes(METRICS_PATH, content)
        with pytest.raises(ShardError, match="run audit again"):
            write_report(store)
    damaged = make_audit("damaged", result)
    damaged.write_bytes(STRIPS_PATH, b"PAR1")
    with pytest.raises(ShardError, match="strips"):
        write_report(damaged)


def test_heavy_images_become_thumbnails() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (512, 384, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    head, _, data = data_uri(buffer.getvalue()).partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (192, 256)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (12345, "12,345"),
        (0.28149, "0.281"),
        (-0.0193, "\N{MINUS SIGN}0.019"),
        (0.00123, "0.0012"),
        (0.0, "0.000"),
        (4.3e-19, "0.000"),
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
    result["gates"].append(result["gates"][0] | {"metric": "precision", "default": True, "advisory": True})
    result["gates"][0] |= {"boundary": True}
    page = written(make_audit("out", result))
    items = re.findall(r"<li( class=\"failed\")?><b>(passed|failed)</b>(.*?)</li>", page)
    assert items == [
        (
            ' class="failed"',
            "failed",
            "Coverage of &lt;script&gt;alert(1)&lt;/script&gt;: 0.100, required at least 0.6",
        ),
        (' class="failed"', "failed", "Copies: 0.600, required at most 0.001"),
        (
            "",
            "passed",
            "Recall: 0.600, required at least 0.45; at the boundary, because its 95% interval contains the limit",
        ),
    ]


def test_a_thousand_gates_are_folded_and_each_is_named(make_audit: MakeAudit, result: Result) -> None:
    gate = result["gates"][0]
    result["gates"] = [gate | {"scope": f"class {place}", "passed": place > 19} for place in range(1000)]
    page = written(make_audit("out", result))
    assert "984 more gates, 4 of them failed" in page
    assert all(f"of class {place}:" in page for place in range(1000))
    assert page.index("of class 15:") < page.index("<details") < page.index("of class 16:")


def test_utility_memorization_and_other_extractors(make_audit: MakeAudit, result: Result) -> None:
    training = {
        "data": "both", "ratio": 0.5, "images": 150, "accuracy": 0.81, "accuracy_interval": [0.8, 0.82],
        "tail_accuracy": 0.61, "tail_accuracy_interval": [0.6, 0.62], "per_class": {"coat": 0.7},
    }  # fmt: skip
    utility = {"classifier": "probe", "source": "held-out half", "train_count": 100, "test_count": 90, "seeds": 5}
    result |= {
        "utility": [utility | {"trainings": [training | {"data": "real", "ratio": None}, training]}],
        "memorization": {"source": "photos/", "count": 60_000, "sha256": "c" * 64, "whole": True},
        "against": {
            "run": "plain", "source": "stored", "images": 600, "metrics": {"rarity": 17.0},
        },
        "other_extractors": {"inception-v3": {"recall": result["metrics"]["recall"] | {"value": 0.123}}},
    }  # fmt: skip
    page = written(make_audit("out", result))
    for section in ("utility", "against"):
        assert page.count(f'id="{section}"') == 1
    for text in ("real and generated, 0.5 generated per real one", "0.800 to 0.820", "90 held-out real images",
                 "60,000 images: photos/.", "rarer than plain sampling.",
                 "With the features of inception-v3", "0.123"):  # fmt: skip
        assert text in page


def test_without_real_images_nothing_is_said_of_them(make_audit: MakeAudit, result: Result) -> None:
    on_class = result["metrics"]["on_class_rate"] | {"floor": None, "floor_interval": None, "real_count": 0}
    confidence = result["histograms"]["confidence"] | {"reference": None, "reference_mean": None}
    of_real = {"reference_on_class_rate", "reference_confidence", "reference_entropy", "precision", "recall"}
    of_real |= {"recall_interval", "recall_floor", "coverage", "coverage_floor", "confidence_w1", "entropy_w1"}
    result |= {
        "metrics": {"on_class_rate": on_class | {"floor_count": 0}}, "tail": None, "map": None, "copies": [],
        "gates": [], "verdict": "no gates", "partial": False, "problems": [], "histograms": {"confidence": confidence},
        "per_class": [{name: row[name] for name in row.keys() - of_real} for row in result["per_class"]],
    }  # fmt: skip
    result["provenance"] |= {"reference": None, "reference_count": 0, "reference_sha256": None}
    store = make_audit("out", result)
    for path in (STRIPS_PATH, COPIES_PATH):
        store.delete(path)
    page = written(store)
    assert "No real images to compare with" in page
    for words in ("Each metric is shown next to", "Small numbers are", "Rarity comes from", "Kynk"):
        assert words not in page
    for section in ("images", "copies", "map", "utility", "against"):
        assert f'id="{section}"' not in page


def test_an_audit_of_other_shards_is_not_shown(tmp_path: Path, real_folder: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    run_audit(store, AuditOptions(reference=str(real_folder)), lambda *_: None)
    written(store)
    made_of = shards_sha256(store)
    manifest = read_manifest(store)
    with (
        store.staged(INDEX) as index,
        store.staged("listing") as listing,
        index.open("wb") as a,
        listing.open("wb") as b,
    ):
        files = DataSetFiles(run_spec(manifest), a, b)
        for each in iter_committed(store, shard_names(manifest), manifest.digest):
            files.add(each)
        files.end()
    store.write_bytes(SUCCESS, b"{}")
    assert shards_sha256(store) == made_of  # sealing changes no image
    written(store)
    marker = Path(store.root) / "state" / "rare-000000.json"
    content = json.loads(marker.read_text())
    content["tar_md5"] = "0" * 32
    marker.write_text(json.dumps(content))
    store.delete("_SUCCESS")
    with pytest.raises(ShardError, match=r"metrics\.json: out of date"):
        write_report(store)
    assert main(["status", store.root]) == 0


def test_an_audit_that_fails_leaves_none_behind(tmp_path: Path, real_folder: Path, commit_run: CommitRun) -> None:
    store = Store(str(tmp_path / "out"))
    commit_run(store, MANIFEST)
    options = AuditOptions(reference=str(real_folder))
    run_audit(store, options, lambda *_: None)
    written(store)
    with pytest.raises(DataError, match="nothing at this path"):
        run_audit(store, AuditOptions(reference=str(tmp_path / "missing")), lambda *_: None)
    assert store.exists(METRICS_PATH)  # a mistake in the options costs nothing

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "comparing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(store, options, interrupt)
    assert store.list("audit") == []
