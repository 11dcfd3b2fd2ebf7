"""Both pages in a headless Chromium: no errors, all images loaded, every section there, no sideways scrolling."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rarefy.audit.compare import compare_runs
from rarefy.audit.page.compare_page import write_page
from rarefy.audit.page.report import REPORT_PATH, write_report
from rarefy.shards.store import Store


def _load(path: Path) -> ModuleType:
    """A module beside this file: pytest's importlib mode has no package to import it from."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


driver = _load(Path(__file__).with_name("chromium.py"))
BINARY = driver.find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BINARY is None, reason=f"no Chromium with bash on PATH ({', '.join(driver.NAMES)})"),
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
    with driver.Chromium(BINARY, tmp_path_factory.mktemp("profile")) as chromium:
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
    # 2 classes: 3 generated, 3 nearest, 2 real; 3 suspected copies with their twins.
    assert found["images"] == [8] * (2 * 8 + 3 * 2)
    wanted = ["partial", "verdict", "numbers", "distributions", "map", "classes", "rarest", "copies", "provenance"]
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
    assert found["sections"] == ["runs", "numbers", "plane", "classes"]
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
