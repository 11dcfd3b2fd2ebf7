"""The page of ``rarefy view`` and gallery.html in a headless Chromium: by mouse, by keyboard, and on a phone."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import CTRL, NAMES, SHIFT, Chromium, find_chromium
from planted_run import commit_planted, make_planted, planted_image

from rarefy.consume.rows import read_rows
from rarefy.shards.reader import decode_image
from rarefy.shards.store import Store
from rarefy.view.app import App, ViewOptions
from rarefy.view.gallery import make_gallery
from rarefy.view.run import Run
from rarefy.view.server import ViewServer

BINARY = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BINARY is None, reason=f"no Chromium with bash on PATH ({', '.join(NAMES)})"),
]
LOADED = """[...document.querySelectorAll('.cell img')].length > 0
  && [...document.querySelectorAll('.cell img')].every(image => image.complete && image.naturalWidth)"""
KEYS = "[...state.order].map(keyOf)"
FOCUSED = "document.activeElement.dataset.place"
SELECTED = "[...state.selected].sort()"
OPEN = "[$('detail').open, $('name').textContent]"
FIRST_PIXELS = """(image => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 28, height: 28}).getContext("2d");
  canvas.drawImage(image, 0, 0);
  return [...canvas.getImageData(0, 0, 28, 28).data].filter((_, place) => place % 4 === 0);
})(document.querySelector(".cell img"))"""
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Chromium(BINARY or "", tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@contextmanager
def served(out: Path) -> Iterator[ViewServer]:
    app = App(Run(Store(str(out))), ViewOptions())
    with ViewServer(app) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    app.close()


def show(browser: Any, page: Path | str, width: int = 1200, dark: bool = False) -> None:
    browser.open(page, width, dark=dark)
    browser.wait(f"document.querySelector('.cell') && {LOADED}")


def complaints(browser: Any) -> list[Any]:
    found: list[Any] = browser.reported("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    return found


def excluded(out: Path) -> list[str]:
    path = out / "excluded.txt"
    return path.read_text().split() if path.exists() else []


def keys(out: Path, where: str | None = None) -> list[str]:
    found: list[str] = read_rows(Store(str(out)), where, accepted=False, excluded=True)["key"].tolist()
    return found


def choose(browser: Any, selector: str, value: str) -> None:
    """Set a field as a person does."""
    browser.evaluate(f"""(field => {{
      field.value = {json.dumps(value)};
      for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, {{bubbles: true}}));
    }})(document.querySelector({json.dumps(selector)}))""")


def test_by_keyboard(browser: Any, own: Path) -> None:
    everything = keys(own)
    with served(own) as server:
        show(browser, server.url)
        assert browser.evaluate(KEYS) == everything
        assert "token" not in browser.evaluate("location.href")
        per_row = browser.evaluate("shape.perRow")
        browser.press("ArrowDown")  # the grid has the keyboard from the start
        browser.press("ArrowRight")
        assert browser.evaluate(FOCUSED) == str(per_row + 1)
        assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        browser.press("Enter")
        assert browser.evaluate(OPEN)[1].endswith(everything[per_row + 1])
        browser.press("ArrowRight")
        opened = everything[per_row + 2]
        assert browser.evaluate(OPEN)[1].endswith(opened)
        browser.press("d")
        browser.wait("$('place').textContent.endsWith(', dropped')")
        assert excluded(own) == [opened]
        browser.press("Escape")
        assert browser.evaluate(OPEN)[0] is False
        browser.wait(f"{FOCUSED} === '{per_row + 2}'")
        browser.press("k")
        browser.wait("!document.activeElement.classList.contains('dropped')")
        assert excluded(own) == []
        browser.press("Home")
        browser.press(" ")
        browser.press("ArrowRight", SHIFT)
        assert browser.evaluate(SELECTED) == everything[:2]
        browser.press("d")
        browser.wait("document.querySelectorAll('.cell.dropped').length === 2")
        assert excluded(own) == everything[:2]
        browser.press("Escape")
        assert browser.evaluate(SELECTED) == []
        browser.press("a", CTRL)
        assert browser.evaluate("state.selected.size") == 40
        browser.press("?")
        assert browser.evaluate("$('help').open") is True
        browser.press("Escape")
        browser.press("/")
        assert browser.evaluate("document.activeElement.id") == "where"
        browser.press("d")  # in a field it is a letter
        assert browser.evaluate("$('where').value") == "d" and excluded(own) == everything[:2]
    assert complaints(browser) == []


def test_by_mouse(browser: Any, own: Path) -> None:
    everything = keys(own)
    with served(own) as server:
        show(browser, server.url)
        browser.click("#place-3 img")
        assert browser.evaluate(OPEN)[1].endswith(everything[3])
        browser.wait("$('facts').textContent.includes('shards/rare-000000.tar')")
        browser.wait("$('near-text').textContent.includes('not the real images of the audit')")  # planted
        browser.click("#next")
        browser.click("#detail [data-drop='1']")
        browser.wait("$('place').textContent.endsWith(', dropped')")
        assert excluded(own) == [everything[4]]
        browser.click("#detail .close")
        browser.click("#place-0 .mark")
        browser.click("#place-2 img", SHIFT)
        browser.click("#place-5 img", CTRL)
        assert browser.evaluate(SELECTED) == [*everything[:3], everything[5]]
        browser.click(".bar [data-drop='1']")
        browser.wait("$('count').textContent === '40 images, 5 dropped'")
        assert excluded(own) == everything[:6][:3] + everything[4:6]
        browser.click("#clear")
        assert browser.evaluate(SELECTED) == []
    assert complaints(browser) == []


def test_filters_and_order(browser: Any, own: Path) -> None:
    with served(own) as server:
        show(browser, server.url)
        choose(browser, "#where", 'confidence < 0.6 and class_name == "coat"')
        wanted = keys(own, 'confidence < 0.6 and class_name == "coat"')
        browser.wait(f"state.order.length === {len(wanted)}")
        assert browser.evaluate(KEYS) == wanted
        assert browser.evaluate("$('count').textContent") == f"{len(wanted)} of 40 images"
        choose(browser, "#where", "confidense < 1")
        browser.wait("$('where-error').textContent.includes(\"nearest: confidence\")")
        choose(browser, "#where", "")
        browser.wait("state.order.length === 40")
        assert browser.evaluate("$('where-error').textContent") == ""
        choose(browser, "#class", "9")
        choose(browser, "[aria-label='rarity from']", "5")
        assert browser.evaluate(KEYS) == keys(own, "class_id == 9 and rarity >= 5")
        choose(browser, "#class", "")
        choose(browser, "[aria-label='rarity from']", "")
        choose(browser, "#sort", "rarity")
        browser.click("#descending")
        assert browser.evaluate(KEYS) == keys(own)[::-1]  # the planted rarity is the key
        choose(browser, "#sort", "class_id")  # by name, then by key
        names = browser.evaluate("[...state.order].map(row => className(value('class_id', row)))")
        assert names == sorted(names, reverse=True)
        # What another person drops appears by itself.
        (own / "excluded.txt").write_text(f"{keys(own)[7]}\n")
        browser.evaluate("void poll()")
        browser.wait("$('count').textContent === '40 images, 1 dropped'")


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(browser: Any, own: Path, dark: bool) -> None:
    with served(own) as server:
        show(browser, server.url, 390, dark)
        assert browser.evaluate(WIDTHS) == [390, 390]
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(19, 20, 23)" if dark else "rgb(246, 246, 243)"
        )
        assert browser.evaluate("shape.perRow") >= 3
        small = """[...document.querySelectorAll('button, select, .mark')].filter(each => each.offsetHeight)
          .filter(each => Math.min(each.offsetWidth, each.offsetHeight) < 24).length"""
        assert browser.evaluate(small) == 0
        browser.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
        try:
            browser.tap("#place-1 img")
            browser.wait("$('detail').open")
            assert browser.evaluate("$('detail').getBoundingClientRect().width") <= 390
            assert browser.evaluate("$('detail').scrollWidth <= $('detail').clientWidth")
            browser.tap("#detail [data-drop='1']")
            browser.wait("$('place').textContent.endsWith(', dropped')")
            browser.tap("#detail .close")
            browser.wait("!$('detail').open")
            browser.tap("#selecting")
            browser.tap("#place-4 img")
            browser.wait("state.selected.size === 1")
            browser.tap("#controls summary")
            browser.wait("$('controls').open")
            assert browser.evaluate(WIDTHS) == [390, 390]
        finally:
            browser.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
        assert excluded(own) == [keys(own)[1]]
    assert complaints(browser) == []


def test_a_run_that_grows_gets_its_filters_and_keeps_its_open_image(browser: Any, own: Path) -> None:
    store, manifest = Store(str(own)), Run(Store(str(own))).manifest
    (own / "_SUCCESS").unlink()
    shutil.rmtree(own / "state")
    with served(own) as server:
        browser.open(server.url)
        browser.wait("!$('nothing').hidden")
        assert browser.evaluate("document.querySelector('#filters').textContent") == "classall"
        commit_planted(store, manifest, 2)
        browser.evaluate("void poll()")
        browser.wait("state.order.length === 7")
        choose(browser, "[aria-label='confidence from']", "0")
        browser.evaluate("state.filters.flags = {excluded: 0}")
        browser.click("#place-3 img")
        browser.press("d")
        browser.wait("$('place').textContent.endsWith(', dropped')")
        assert excluded(own) == ["00000200003"]
        commit_planted(store, manifest, 0)  # its rows come first, and the open image is no longer one of those shown
        browser.evaluate("void poll()")
        browser.wait("state.order.length === 13")
        assert browser.evaluate("document.querySelector(\"[aria-label='confidence from']\").value") == "0"
        assert browser.evaluate("$('class').options[1].textContent") == "ankle boot (2)"
        browser.press("k")
        browser.wait("!$('place').textContent.endsWith(', dropped')")
        assert excluded(own) == []
    assert complaints(browser) == []


def test_pictures_that_the_browser_keeps_are_not_shown_for_another_run(browser: Any, own: Path, traced: Store) -> None:
    with served(own) as server:
        show(browser, server.url)
        assert browser.evaluate(FIRST_PIXELS) == planted_image(keys(own)[0]).ravel().tolist()
        server.app = App(Run(traced), ViewOptions())  # as another server at the same port
        show(browser, server.url)
        assert browser.evaluate(FIRST_PIXELS) == decode_image(server.app.run.png(keys(own)[0])).ravel().tolist()
        server.app.close()


def test_only_what_is_on_the_screen_is_loaded(browser: Any, tmp_path: Path) -> None:
    make_planted(Store(str(tmp_path / "many")), {0: 1500}, 500)
    with served(tmp_path / "many") as server:
        show(browser, server.url)
        first = browser.evaluate("document.querySelectorAll('.cell').length")
        browser.press("End")
        browser.wait(LOADED)
        assert browser.evaluate(FOCUSED) == "1499"
        assert browser.evaluate("document.querySelectorAll('.cell').length") < 250 and first < 250
        asked = [event["request"]["url"] for event in browser.reported("Network.requestWillBeSent")]
        assert sum("/image/" in url for url in asked) < 500
        browser.press("ArrowUp")
        browser.press("Enter")
        place = 1499 - browser.evaluate("shape.perRow")
        assert f"/image/{keys(tmp_path / 'many')[place]}.png?" in browser.evaluate("$('large').src")


def test_a_trajectory_on_the_page(browser: Any, traced: Store) -> None:
    with served(Path(traced.root)) as server:
        show(browser, server.url)
        browser.press("Enter")
        browser.wait("$('near').querySelectorAll('img').length === 5")
        browser.evaluate("$('trace').click()")
        browser.wait("!$('frames').hidden || $('trace-text').textContent.includes('error')")
        assert browser.evaluate("$('trace-text').textContent").startswith("Made again: ")
        assert browser.evaluate("$('frame-text').textContent").startswith("Step 5 of 5, t = 0: confidence 0.")
        choose(browser, "#frame", "1")
        assert browser.evaluate("$('frame-text').textContent").startswith("Step 2 of 5, t = ")
        browser.wait(
            "$('frame-x').complete && $('frame-x').naturalWidth === 28 && $('frame-predicted').naturalWidth === 28"
        )
        assert browser.evaluate("$('curves').querySelectorAll('polyline').length") == 2
    assert complaints(browser) == []


def test_the_end_of_the_server_is_said(browser: Any, own: Path) -> None:
    with served(own) as server:
        show(browser, server.url)
        browser.evaluate("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
        browser.evaluate("void poll()")
        browser.wait("$('message').textContent.includes('start rarefy view again')")


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_the_gallery_needs_no_server(browser: Any, own: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page = tmp_path / "gallery.html"
    page.write_bytes(make_gallery(Store(str(own))).page)
    show(browser, page, width, dark)
    assert browser.evaluate(KEYS) == keys(own)
    assert browser.evaluate("document.querySelectorAll('[data-drop], #where').length") == 0
    sideways, screen = browser.evaluate(WIDTHS)
    assert sideways <= screen
    choose(browser, "#class", "9")
    assert browser.evaluate(KEYS) == keys(own, "class_id == 9")
    browser.evaluate("document.activeElement.blur()")
    browser.press("End")
    browser.press("Enter")
    assert browser.evaluate(OPEN) == [True, f"ankle boot {keys(own, 'class_id == 9')[-1]}"]
    browser.press("d")  # nothing to drop with
    browser.press("Escape")
    assert complaints(browser) == []
    asked = {event["request"]["url"].partition(":")[0] for event in browser.reported("Network.requestWillBeSent")}
    assert asked <= {"file", "data"}
