"""gallery.html: which images it has, that it stays small and loads nothing, and what becomes of damage."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_audit import copy_rows, strip_rows, write_rows
from PIL import Image
from planted_run import key_of

from rarefy.audit.schema import COPIES_PATH, GALLERY_PATH, REPORT_PATH, STRIPS_PATH
from rarefy.cli import main
from rarefy.consume.exclusions import write_exclusions
from rarefy.consume.rows import read_rows
from rarefy.shards.reader import decode_image
from rarefy.shards.store import Store
from rarefy.shards.writer import encode_png
from rarefy.view import gallery
from rarefy.view.gallery import DROPPED, RAREST, choose, make_gallery, rarest, within
from rarefy.view.pages import write_pages

NONE: frozenset[str] = frozenset()


def embedded(page: bytes) -> tuple[list[str], list[str]]:
    """Keys of the table, and of the images by their pixels."""
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    data = json.loads(found[1])
    table = base64.b64decode(data["table"])
    end = table.index(b"\n")
    keys = np.frombuffer(table, "<f8", offset=end + 1, count=json.loads(table[:end])["rows"])
    pixels = [decode_image(base64.b64decode(uri.removeprefix("data:image/png;base64,"))) for uri in data["images"]]
    return [f"{int(key):011d}" for key in keys], [key_of(image) for image in pixels]


def frame(count: int, shard_size: int = 100, **columns: Any) -> pd.DataFrame:
    keys = [f"{place // shard_size:06d}{place % shard_size:05d}" for place in range(count)]
    tars = [f"shards/rare-{place // shard_size:06d}.tar" for place in range(count)]
    return pd.DataFrame({"key": keys, "tar": tars} | columns)


def test_a_small_run_is_shown_whole(planted: Path) -> None:
    made = make_gallery(Store(str(planted)))
    keys, images = embedded(made.page)
    assert keys == images == read_rows(Store(str(planted)), accepted=False)["key"].tolist()
    text = made.page.decode()
    assert "All 40 images." in text and (made.shown, made.total) == (40, 40)
    assert "connect-src" not in text and "img-src data:;" in text
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_large_run_by_its_dropped_rarest_and_random_images(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_IMAGES", 9)
    made = make_gallery(Store(str(planted)))
    keys, images = embedded(made.page)
    assert keys == images and len(keys) == 9
    assert re.search(r"9 of 40 images: \d rarest within the real data, \d at random\.", made.page.decode())
    # The planted rarity is the key, and even keys are within the real data.
    assert set(read_rows(Store(str(planted)), "inside", accepted=False)["key"].tolist()[-4:]) <= set(keys)


def test_the_choice_is_as_the_page_says() -> None:
    rng = np.random.default_rng(1)
    rarity, inside = rng.random(5000), rng.random(5000) < 0.5
    rows = frame(5000, rarity=rarity, inside=inside)
    excluded = frozenset(rows["key"][4000:4700])
    choice = choose(rows, excluded, None)
    assert len(choice.places) == gallery.MOST_IMAGES == len(set(choice.places))
    by_reason: dict[str, list[int]] = {}
    for place in choice.places:
        by_reason.setdefault(choice.reasons[place], []).append(place)
    assert by_reason[DROPPED] == list(range(4000, 4500))
    kept = np.array([place for place in range(5000) if not 4000 <= place < 4700])
    wanted = kept[inside[kept]][np.argsort(-rarity[kept[inside[kept]]])]
    assert by_reason[RAREST] == [place for place in wanted if place in by_reason[RAREST]]
    assert set(wanted[:600]) <= set(choice.places)
    assert abs(len(by_reason[RAREST]) - 750) < 100  # they take turns with the random ones
    assert choose(rows, excluded, None) == choice  # the same file for the same run


def test_without_rarity_the_least_confident_are_the_rarest() -> None:
    confidence = np.array([0.5, np.nan, 0.1, 0.9])
    assert rarest(frame(4, confidence=confidence), np.arange(4)).tolist() == [2, 0, 3]
    assert rarest(frame(4), np.arange(4)).tolist() == []


def test_of_a_bucket_only_some_shards_are_downloaded() -> None:
    choice = choose(frame(5000, rarity=np.arange(5000.0), inside=np.ones(5000, bool)), NONE, 3)
    assert len({place // 100 for place in choice.places}) == 3
    assert choice.places[0] == 4999 and len(choice.places) == 300


def test_the_file_stays_small() -> None:
    images = {3: "x" * 40, 1: "x" * 40, 7: "x" * 30}
    assert within(images, [7, 5, 3, 1], 70) == [7, 3]
    assert within(images, [7, 3, 1], 69) == [7] and within(images, [7, 3, 1], 110) == [7, 3, 1]


def test_large_images_become_small_ones() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 300, 200), dtype=np.uint8)
    uri = gallery.data_uri(encode_png(noise), gallery.SIDE)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.height == gallery.SIDE


def test_report_writes_and_links_it(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(own))
    write_rows(store, STRIPS_PATH, strip_rows())
    write_rows(store, COPIES_PATH, copy_rows())
    assert main(["report", os.fspath(own), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": f"{own}/{REPORT_PATH}", "gallery": f"{own}/{GALLERY_PATH}"}
    assert 'href="gallery.html"' in (own / REPORT_PATH).read_text()
    # Without a gallery there is no link, and an earlier one does not stay.
    (own / "metadata" / "rare-000001.parquet").write_bytes(b"damaged")
    notices = list[str]()
    assert write_pages(store, notices.append) == {"report": REPORT_PATH}
    assert notices == [
        f"{GALLERY_PATH} is not written: metadata/rare-000001.parquet: damaged; run verify, then seal --repair"
    ]
    assert 'href="gallery.html"' not in (own / REPORT_PATH).read_text() and not (own / GALLERY_PATH).exists()


def test_damaged_images_are_named(own: Path) -> None:
    (own / "shards" / "rare-000001.tar").unlink()
    write_exclusions(Store(str(own)), ["00000000002"])
    made = make_gallery(Store(str(own)))
    assert (made.shown, made.total) == (33, 40)
    assert "7 images could not be read: 00000100000, 00000100001," in made.page.decode()


def test_view_writes_it_for_a_run_without_an_audit(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "audit" / "metrics.json").unlink()
    target = own.parent / "new" / "page.html"
    assert main(["view", os.fspath(own), "--static", os.fspath(target)]) == 0
    assert capsys.readouterr().out == f"{target}: 40 of 40 images\n"
    assert len(embedded(target.read_bytes())[0]) == 40
    assert main(["view", os.fspath(own), "--static", "memory://gallery/page.html"]) == 0
    assert Store("memory://gallery").read_bytes("page.html") == target.read_bytes()
    for path, text in ((os.fspath(own), "(Is a directory)"), (f"{own}/", "not the path of a file")):
        assert main(["view", os.fspath(own), "--static", path]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"rarefy: error: static: '{path}'") and text in error
