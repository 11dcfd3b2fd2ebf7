"""What the server answers, without HTTP: tables, conditions, images, the exclusion list and a growing run."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_run import commit_planted, is_accepted, key_of, planted_confidence, planted_image

from rarefy.consume.exclusions import EXCLUDED, read_exclusions, write_exclusions
from rarefy.consume.rows import read_rows
from rarefy.errors import DataError, OutputError, ShardError
from rarefy.shards.reader import decode_image
from rarefy.shards.store import Store
from rarefy.view.app import App, ViewOptions, error_response
from rarefy.view.marks import Marks
from rarefy.view.real_images import FEATURES, PIXELS, pixel_distances
from rarefy.view.run import Run

FIRST, SECOND = "00000000000", "00000000001"
UNKNOWN = "00000900000"


def answer(app: App, path: str, **query: str) -> Any:
    return json.loads(app.get(path, query).body)


def table(app: App) -> dict[str, Any]:
    """The columns as the page's script decodes them, by name, and the classes."""
    body = app.get("/api/table", {}).body
    end = body.index(b"\n")
    header = json.loads(body[:end])
    assert (end + 1) % 8 == 0  # Float64Array needs it
    values = np.frombuffer(body, "<f8", offset=end + 1).reshape(len(header["columns"]), header["rows"])
    named = {column["name"]: row for column, row in zip(header["columns"], values, strict=True)}
    return named | {"classes": header["classes"]}


def test_the_table_has_the_rows_of_the_data_set(app: App) -> None:
    found, rows = table(app), read_rows(app.run.store, accepted=False)
    assert [f"{int(key):011d}" for key in found["key"]] == rows["key"].tolist()
    assert len(rows) == 40
    for name in ("class_id", "confidence", "entropy", "margin", "rarity", "avgknn", "nearest_distance", "candidate"):
        np.testing.assert_array_equal(found[name], rows[name].to_numpy(np.float64), err_msg=name)
    np.testing.assert_array_equal(found["accepted"], [is_accepted(key) for key in rows["key"]])
    measured = rows["key"].isin([FIRST, "00000100003"])
    np.testing.assert_array_equal(np.isnan(found["copy_ratio"]), ~measured)
    # In the order of their names, whatever their ids are.
    assert [name for _, name in found["classes"]][:3] == ["ankle boot", "bag", "coat"]
    assert dict(found["classes"])[4] == "coat"


def test_a_condition_selects_what_read_rows_selects(app: App) -> None:
    expression = 'confidence < 0.6 and class_name == "coat"'
    mask = np.frombuffer(app.get("/api/where", {"expression": expression}).body, np.uint8).astype(bool)
    rows = read_rows(app.run.store, accepted=False)
    wanted = read_rows(app.run.store, expression, accepted=False)["key"].tolist()
    assert rows["key"][mask].tolist() == wanted != []
    with pytest.raises(DataError, match="nearest: confidence"):
        app.get("/api/where", {"expression": "confidense < 1"})
    with pytest.raises(DataError, match="is not a condition on columns"):
        app.get("/api/where", {"expression": "__import__('os')"})


def test_every_image_is_the_one_of_its_key(app: App) -> None:
    for key in read_rows(app.run.store)["key"]:
        response = app.get(f"/image/{key}.png", {})
        assert key_of(decode_image(response.body)) == key
        assert response.kind == "image/png" and response.keep


@pytest.mark.parametrize("path", ["/image/../manifest.toml.png", "/image/manifest.png", f"/image/{UNKNOWN}.png"])
def test_only_images_of_the_data_set_are_served(app: App, path: str) -> None:
    try:
        response = app.get(path, {})
    except DataError as error:
        response = error_response(error)
    assert response.status in (400, 404) and b"planted" not in response.body and b"\n" not in response.body[:-1]


def test_an_image_says_where_it_is_from(app: App) -> None:
    facts = dict(answer(app, "/api/row", key=SECOND))
    assert facts["shard"] == "shards/rare-000000.tar"
    assert facts["nearest real image"] == f"real-{SECOND}"
    assert int(facts["seed"]) > 2**53  # as text, since JavaScript would round it


def test_damaged_and_missing_shards_are_said_in_one_line(app: App, own: Path) -> None:
    assert app.get("/image/00000100001.png", {}).status == 200
    (own / "shards" / "rare-000001.tar").unlink()
    with pytest.raises(ShardError, match="there is no PNG at the place of image 00000100000; try again"):
        app.get("/image/00000100000.png", {})
    with pytest.raises(ShardError, match=r"shards/rare-000001.tar: missing; run rarefy verify"):
        app.get("/image/00000100000.png", {})
    (own / "shards" / "rare-000002.tar").write_bytes(b"damaged")
    with pytest.raises(ShardError, match="truncated or damaged"):
        app.get("/image/00000200000.png", {})


# ---- dropping and keeping


def mark(app: App, keys: list[str], drop: bool) -> None:
    app.post("/api/mark", {"keys": keys, "drop": drop})


def test_dropped_images_are_on_the_exclusion_list_at_once(app: App) -> None:
    before = answer(app, "/api/status")["version"]
    mark(app, [SECOND, FIRST], True)
    assert (Path(app.run.data.root) / EXCLUDED).read_text() == f"{FIRST}\n{SECOND}\n"
    assert table(app)["excluded"].tolist() == [1, 1] + [0] * 38
    assert answer(app, "/api/status")["version"] != before
    mark(app, [FIRST], False)
    assert read_exclusions(app.run.store) == {SECOND}
    mark(app, [SECOND], False)
    assert not (Path(app.run.data.root) / EXCLUDED).exists()
    assert answer(app, "/api/status")["version"] == before


def test_a_bad_request_changes_nothing(app: App) -> None:
    with pytest.raises(DataError, match=UNKNOWN):
        mark(app, [FIRST, UNKNOWN], True)
    with pytest.raises(DataError, match="mark: "):
        app.post("/api/mark", {"keys": FIRST, "drop": True})
    assert read_exclusions(app.run.store) == frozenset()


def test_what_others_drop_meanwhile_stays_dropped(app: App) -> None:
    write_exclusions(app.run.store, [SECOND])
    mark(app, [FIRST], True)
    assert read_exclusions(app.run.store) == {FIRST, SECOND}


def test_simultaneous_changes_lose_nothing(own: Path) -> None:
    """Two servers of the same run, each with several threads."""
    store = Store(str(own))
    keys = read_rows(store, accepted=False)["key"].tolist()
    both = [Marks(store, store), Marks(store, store)]
    threads = [threading.Thread(target=both[place % 2].change, args=([key], True)) for place, key in enumerate(keys)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_exclusions(store) == set(keys)


def test_a_list_that_cannot_be_written_is_said(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Store, need_bytes: int = 0) -> None:
        raise OutputError(f"out: {self.root!r} is not writable (Permission denied)")

    monkeypatch.setattr(Store, "check_writable", refuse)
    app = App(Run(Store(str(planted))), ViewOptions())
    page = app.get("/", {}).body.decode()
    assert "images cannot be dropped here" in page and '"writable":false' in page
    with pytest.raises(OutputError, match="images cannot be dropped here: out: "):
        mark(app, [FIRST], True)
    app.close()


# ---- runs that grow, that were selected, and on an object store


def test_new_shards_appear_while_the_run_goes_on(own: Path) -> None:
    run = Run(Store(str(own)))
    manifest = run.manifest
    for name in ("_SUCCESS", "index.json"):
        (own / name).unlink()
    for folder in ("shards", "metadata", "state"):
        for file in (own / folder).glob("rare-00000[1-9].*"):
            file.unlink()
    app = App(Run(Store(str(own))), ViewOptions())
    first = answer(app, "/api/status")
    assert first["text"] == "not finished: 7 of 40 images so far"
    assert len(table(app)["key"]) == 7
    commit_planted(run.store, manifest, 2)
    second = answer(app, "/api/status")
    assert second["text"] == "not finished: 14 of 40 images so far" and second["version"] != first["version"]
    assert app.get("/image/00000200003.png", {}).status == 200
    assert app.get("/api/table", {}).headers["X-Rows"] == second["version"]
    app.close()


def test_a_run_without_a_shard_shows_nothing_yet(own: Path) -> None:
    shutil.rmtree(own / "state")
    (own / "_SUCCESS").unlink()
    app = App(Run(Store(str(own))), ViewOptions())
    assert answer(app, "/api/status")["text"] == "not finished: 0 of 40 images so far"
    assert len(table(app)["key"]) == 0
    app.close()


def test_shards_of_an_object_store_are_downloaded_once(planted: Path) -> None:
    remote = Store("memory://view/run")
    for path in planted.rglob("*"):
        if path.is_file():
            remote.write_bytes(os.fspath(path.relative_to(planted)), path.read_bytes())
    app = App(Run(remote), ViewOptions())
    assert key_of(decode_image(app.get("/image/00000100002.png", {}).body)) == "00000100002"
    remote.delete("shards/rare-000001.tar")
    assert key_of(decode_image(app.get("/image/00000100003.png", {}).body)) == "00000100003"
    mark(app, [FIRST], True)
    assert remote.read_bytes(EXCLUDED) == f"{FIRST}\n".encode()
    app.close()


# ---- the nearest real images


def test_distances_by_pixels_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images, image = rng.integers(0, 256, (9, 3, 4, 4), dtype=np.uint8), rng.integers(0, 256, (3, 4, 4), dtype=np.uint8)
    wanted = [float(np.sqrt(np.mean((each.astype(float) - image) ** 2))) for each in images]
    for values in (48, 100, 1 << 20):  # in blocks of one, of two, and at once
        monkeypatch.setattr("rarefy.view.real_images.BLOCK_VALUES", values)
        np.testing.assert_allclose(pixel_distances(images, image), wanted, rtol=1e-12)


def test_the_nearest_real_images_come_with_their_distance(own: Path) -> None:
    (own / "audit" / "metrics.json").unlink()
    app = App(Run(Store(str(own))), ViewOptions())
    real = app._real.images
    app.run.rows.frame.loc[1, "nearest_real"] = real.keys[3]
    found = answer(app, "/api/near", key=SECOND)["near"]
    assert [near["by"] for near in found] == [FEATURES] + [PIXELS] * 5
    assert (found[0]["row"], found[0]["distance"]) == (3, app.run.rows.frame.loc[1, "nearest_distance"])
    distances = pixel_distances(real.images, planted_image(SECOND))
    assert [near["distance"] for near in found[1:]] == sorted(distances.tolist())[:5]
    shown = decode_image(app.get(f"/real/{found[1]['row']}.png", {}).body)
    np.testing.assert_array_equal(shown, real.images[int(np.argmin(distances))])
    with pytest.raises(DataError, match="not the number"):
        app.get("/real/99999999.png", {})
    app.close()


def test_other_real_images_than_the_audits_are_refused(app: App) -> None:
    """The planted audit names another reference than the one that ships with the model."""
    found = answer(app, "/api/near", key=FIRST)
    assert found["near"] == []
    assert found["why_not"] == "these are not the real images of the audit; start rarefy view with its --reference DATA"


def test_the_page_shows_names_as_text(app: App) -> None:
    page = app.get("/", {}).body.decode()
    assert page.count("<script") == 2 and "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert planted_confidence(FIRST) == 0.0  # the planted rows are what the other tests believe
