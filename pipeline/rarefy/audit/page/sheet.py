"""The contact sheet, OUT/audit/sheet.png: the picture of the data set on its card."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from rarefy.audit.strips import RAREST, SAMPLE, StripImage

SHEET_CLASSES = 20
SHEET_CELL = 56
SHEET_GAP = 28


def contact_sheet(images: Sequence[StripImage]) -> bytes:
    """PNG with one line per class: random images on the left, the rarest ones on the right.

    At most 20 classes, evenly spaced by class id.
    """
    classes = sorted({image.class_id for image in images if image.strip == SAMPLE})
    classes = classes[:: -(-len(classes) // SHEET_CLASSES)]
    sides = {
        strip: {each: [image for image in images if (image.strip, image.class_id) == (strip, each)] for each in classes}
        for strip in (SAMPLE, RAREST)
    }
    widths = [max(len(cells) for cells in side.values()) * SHEET_CELL for side in sides.values()]
    sheet = Image.new("RGB", (sum(widths) + SHEET_GAP, len(classes) * SHEET_CELL), "white")
    for left, side in zip((0, widths[0] + SHEET_GAP), sides.values(), strict=True):
        for line, cells in enumerate(side.values()):
            for place, cell in enumerate(cells):
                sheet.paste(_tile(cell.png), (left + place * SHEET_CELL, line * SHEET_CELL))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _tile(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        sampling = Image.Resampling.NEAREST if image.width <= SHEET_CELL else Image.Resampling.BOX
        return image.convert("RGB").resize((SHEET_CELL, SHEET_CELL), sampling)
