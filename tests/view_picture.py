"""Makes docs/view.png: ``PYTHONPATH=pipeline python tests/view_picture.py OUT docs/view.png``."""

from __future__ import annotations

import io
import sys
import tempfile
import threading
from pathlib import Path

from chromium import Chromium, find_chromium
from PIL import Image

from rarefy.shards.store import Store
from rarefy.view.app import App, ViewOptions
from rarefy.view.run import Run
from rarefy.view.server import ViewServer

WIDTH, HEIGHT, COLOURS = 1280, 860, 128
LOADED = "[...document.querySelectorAll('.cell img')].every(image => image.complete && image.naturalWidth)"


def picture(out: str, target: Path) -> None:
    """Open an image of the run, follow its trajectory to the middle, and write what the browser shows."""
    binary = find_chromium()
    if binary is None:
        raise SystemExit("a Chromium and bash are needed on PATH")
    app = App(Run(Store(out)), ViewOptions())
    with (
        ViewServer(app) as server,
        tempfile.TemporaryDirectory() as profile,
        Chromium(binary, Path(profile)) as browser,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open(server.url, WIDTH, HEIGHT)
        browser.wait(f"document.querySelector('.cell') && {LOADED}")
        browser.evaluate("state.sort = $('sort').value = 'rarity'; state.descending = true; refresh(); openAt(2)")
        browser.wait("$('near').querySelector('img')")
        browser.evaluate("$('trace').click()")
        browser.wait("!$('frames').hidden")
        browser.evaluate(
            "$('frame').value = 12; $('frame').dispatchEvent(new Event('input')); $('detail').scrollTop = 9999"
        )
        browser.wait(
            "[...document.querySelectorAll('#detail img')].every(image => image.complete && image.naturalWidth)"
        )
        shown = Image.open(io.BytesIO(browser.picture())).convert("RGB")
        server.shutdown()
    app.close()
    shown.quantize(COLOURS).save(target, optimize=True)


if __name__ == "__main__":
    picture(sys.argv[1], Path(sys.argv[2]))
