"""Both pages in a headless Chromium: no errors, all images loaded, every section there, no sideways scrolling."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import NAMES, Chromium, find_chromium
from made_up_audit import strip_row, write_rows

from rarefy.audit.compare import compare_runs
from rarefy.audit.page.compare_page import write_page
from rarefy.audit.page.report import write_report
from rarefy.audit.schema import REPORT_PATH, STRIPS_PATH
from rarefy.shards.store import Store

BINARY = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BINARY is None, reason=f"no Chromium with bash on PATH ({', '.join(NAMES)})"),
]

MakeAudit = Callable[..., Store]
Result = dict[str, Any]
SCRIPT = "<script>alert(1)</script>"
SCREENS = [(1200, False), (390, False), (390, True)]
LOOK = """({
  images: [...document.images].map(image => image.complete && image.naturalWidth),
  sections: [...document.querySelectorAll('section')].map(section => section.id).filter(Boolean),
  empty: [...document.querySelectorAll('section')].filter(section => section.offsetHeight < 20).length,
  text: document.body.innerText,
  scripts: document.scripts.length,
  width: document.documentElement.scrollWidth,
  screen: document.documentElement.clientWidth,
  background: getComputedStyle(document.body).backgroundColor,
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Chromium(BINARY, tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


def look(browser: Any, page: Path, width: int, dark: bool) -> Result:
    """What the page looks like once loaded; fails on whatever the browser complained of or asked for."""
    browser.open(page, width, dark=dark)
    found: Result = browser.evaluate(LOOK)
    complaints = browser.reported("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert complaints == [], json.dumps(complaints)
    assert browser.reported("Page.javascriptDialogOpening") == []
    asked = {event["request"]["url"].split(":")[0] for event in browser.reported("Network.requestWillBeSent")}
    assert asked <= {"file", "data"}
    assert found["width"] <= found["screen"], "scrolls sideways"
    assert found["screen"] == width or width > 500  # a desktop's scroll bar takes its share
    assert found["scripts"] == 1
    assert found["empty"] == 0
    return found


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_audit_page(browser: Any, make_audit: MakeAudit, result: Result, width: int, dark: bool) -> None:
    store = make_audit("out", result)
    write_report(store)
    found = look(browser, Path(store.root) / REPORT_PATH, width, dark)
    # 2 classes: 6 generated, 3 nearest, 2 real; 3 suspected copies with their twins. The viewer is empty.
    assert found["images"] == [8] * (2 * 11 + 3 * 2) + [0]
    wanted = ["partial", "verdict", "numbers", "images", "classes", "distributions", "copies", "map", "provenance"]
    assert found["sections"] == wanted
    assert found["text"].count(SCRIPT) >= 5
    assert found["background"] == ("rgb(19, 20, 23)" if dark else "rgb(246, 246, 243)")


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_compare_page(
    browser: Any, make_audit: MakeAudit, result: Result, tmp_path: Path, width: int, dark: bool
) -> None:
    other: Result = json.loads(json.dumps(result))
    other["provenance"]["run"] = "a rather long name of a run that has to be broken somewhere " * 2
    outs = [make_audit("a", result).root, make_audit("b", other).root]
    write_page(compare_runs(outs), str(tmp_path / "compare.html"))
    found = look(browser, tmp_path / "compare.html", width, dark)
    assert found["sections"] == ["runs", "numbers", "panels", "classes"]
    assert SCRIPT in found["text"]


def test_tables_sort_and_the_map_shows_one_class(browser: Any, make_audit: MakeAudit, result: Result) -> None:
    result["per_class"][0]["recall"] = None
    result["per_class"].append(result["per_class"][1] | {"class_id": 2, "class_name": "10", "recall": 0.05})
    store = make_audit("out", result)
    write_report(store)
    browser.open(Path(store.root) / REPORT_PATH)
    sort = """(column => {
      document.querySelector(`#classes thead th:nth-child(${column})`).click();
      return [...document.querySelectorAll('#classes tbody th')].map(head => head.textContent);
    })"""
    # Class, images, recall: ascending, then descending; a class without a value stays last.
    assert browser.evaluate(f"{sort}(3)") == ["10", "coat & boot", SCRIPT]
    assert browser.evaluate(f"{sort}(3)") == ["coat & boot", "10", SCRIPT]
    assert browser.evaluate(f"{sort}(1)") == [SCRIPT, "10", "coat & boot"]
    shown = browser.evaluate("""(() => {
      const choice = document.querySelector('select.layers');
      choice.value = '1';
      choice.dispatchEvent(new Event('change'));
      return [...document.querySelectorAll("[id^='map-']")].filter(layer => layer.style.display !== 'none')
        .map(layer => layer.id);
    })()""")
    assert shown == ["map-real-1", "map-generated-1"]


VIEWER = """(() => {
  const viewer = document.getElementById('viewer');
  return [viewer.open, viewer.querySelector('img').alt];
})()"""


def press(browser: Any, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code} | text
        browser.send("Input.dispatchKeyEvent", event)


def test_an_image_is_enlarged_by_click_touch_and_keyboard(browser: Any, make_audit: MakeAudit, result: Result) -> None:
    store = make_audit("out", result)
    write_report(store)
    browser.open(Path(store.root) / REPORT_PATH)
    first, second = (f"generated {SCRIPT} 0000000000{place}" for place in (0, 1))
    browser.evaluate("document.querySelector('.shot').click()")  # what a touch fires too
    assert browser.evaluate(VIEWER) == [True, first]
    large = browser.evaluate("document.querySelector('#viewer img').getBoundingClientRect().width")
    assert large > 300
    press(browser, "ArrowRight", 39)
    assert browser.evaluate(VIEWER) == [True, second]
    press(browser, "Escape", 27)
    assert browser.evaluate(VIEWER)[0] is False
    browser.evaluate("document.querySelectorAll('.shot')[1].focus()")
    press(browser, "Enter", 13)
    assert browser.evaluate(VIEWER) == [True, second]
    browser.evaluate("document.getElementById('next').click()")  # after the last of its strip comes the first
    assert browser.evaluate(VIEWER) == [True, first]
    browser.evaluate("document.querySelector('#viewer form').requestSubmit()")
    assert browser.evaluate(VIEWER)[0] is False
    # A script in a class name stays text.
    assert browser.reported("Page.javascriptDialogOpening") == []


def test_every_one_of_a_thousand_classes_can_be_found(browser: Any, make_audit: MakeAudit, result: Result) -> None:
    row = result["per_class"][1]
    result["per_class"] = [row | {"class_id": each, "class_name": f"Class {each}"} for each in range(1000)]
    store = make_audit("out", result)
    rows = [strip_row("sample", each, 0, each % 250) for each in range(1000)]
    write_rows(store, STRIPS_PATH, rows)
    write_report(store)
    browser.open(Path(store.root) / REPORT_PATH)
    shown = "[...document.querySelectorAll('.group')].filter(g => g.offsetHeight).map(g => g.dataset.name)"
    assert browser.evaluate(shown) == [f"Class {each}" for each in range(20)]
    find = """(text => {
      const find = document.getElementById('find');
      find.value = text;
      find.dispatchEvent(new Event('input'));
      return document.getElementById('found').textContent;
    })"""
    assert browser.evaluate(f"{find}('class 987')") == "1 of 1 matching classes are shown"
    assert browser.evaluate(shown) == ["Class 987"]
    assert browser.evaluate(f"{find}('99')") == "19 of 19 matching classes are shown"
    assert browser.evaluate(f"{find}('')") == "20 of 1000 classes are shown"
