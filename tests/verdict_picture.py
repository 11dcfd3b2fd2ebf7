"""Makes docs/audit-verdict.png: ``PYTHONPATH=pipeline python tests/verdict_picture.py OUT docs/audit-verdict.png``."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from chromium import Chromium, find_chromium
from PIL import Image

WIDTH, HEIGHT, MARGIN, COLOURS = 1020, 1400, 12, 128


def picture(out: Path, target: Path) -> None:
    """Open the audit's page and write the card with the verdict."""
    binary = find_chromium()
    if binary is None:
        raise SystemExit("a Chromium and bash are needed on PATH")
    with tempfile.TemporaryDirectory() as profile, Chromium(binary, Path(profile)) as browser:
        browser.open((out / "audit" / "report.html").absolute(), WIDTH, HEIGHT)
        browser.evaluate("document.getElementById('gates').remove(); scrollTo(0, 0)")
        box = browser.evaluate("document.getElementById('verdict').getBoundingClientRect().toJSON()")
        shown = Image.open(io.BytesIO(browser.picture())).convert("RGB")
    edges = (box["left"] - MARGIN, box["top"] - MARGIN, box["right"] + MARGIN, box["bottom"] + MARGIN)
    shown.crop(tuple(round(edge) for edge in edges)).quantize(COLOURS).save(target, optimize=True)


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]))
