"""Images on the page: inline, in groups a class, in pairs, and the contact sheet beside it."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

# Beyond this many bytes or pixels an image is shown as a thumbnail, or a page of 256 px images would weigh as much as
# a shard.
HEAVY, THUMBNAIL = 6_000, 128
SHEET_CELL = 56
SHEET_GAP = 28
COPY_KINDS = {
    "reference": "real image",
    "held-out": "held-out real image",
    "exact": "the same pixels as",
    "near": "nearly the same as",
}

Row = dict[str, Any]


def rarest_groups(rows: list[Row], classes: list[Row]) -> list[Row]:
    """One entry a class: its name and both sides' cells, rarest first, each with its image and nearest real image."""
    names = {row["class_id"]: row["class_name"] for row in classes}
    groups: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: (row["class_id"], row["rank"])):
        class_id = row["class_id"]
        group = groups.setdefault(class_id, {"name": names[class_id], "generated": [], "real": []})
        seen = row["predicted_id"]
        nearest = None if row["nearest_png"] is None else data_uri(row["nearest_png"])
        cell = {"uri": data_uri(row["png"]), "nearest_uri": nearest, "off_class": seen not in (None, class_id)}
        group[row["side"]].append(row | cell)
    return list(groups.values())


def copy_views(copies: list[Row], images: list[Row], classes: list[Row]) -> list[Row]:
    """The suspected copies in the audit's order, each with both images where copies.parquet has them."""
    names = {row["class_id"]: row["class_name"] for row in classes}
    found = {(image["key"], image["other"]): image for image in images}
    views = []
    for copy in copies:
        image = found.get((copy["key"], copy["other"]), {"png": None, "other_png": None})
        views.append(
            copy
            | {
                "class_name": names.get(copy["class_id"], str(copy["class_id"])),
                "what": COPY_KINDS[copy["kind"]],
                "uri": data_uri(image["png"]) if image["png"] else None,
                "other_uri": data_uri(image["other_png"]) if image["other_png"] else None,
            }
        )
    return views


def data_uri(png: bytes) -> str:
    """The image inline: the PNG itself where it is small, else a WebP thumbnail."""
    with Image.open(io.BytesIO(png)) as image:
        if len(png) <= HEAVY and max(image.size) <= THUMBNAIL:
            return "data:image/png;base64," + base64.b64encode(png).decode()
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(groups: list[Row]) -> bytes:
    """PNG: one line a class, its rarest generated images on the left, the rarest real ones on the right."""
    across = {side: max(len(group[side]) for group in groups) for side in ("generated", "real")}
    right = across["generated"] * SHEET_CELL + SHEET_GAP
    sheet = Image.new("RGB", (right + across["real"] * SHEET_CELL, len(groups) * SHEET_CELL), "white")
    for line, group in enumerate(groups):
        for side, left in (("generated", 0), ("real", right)):
            for place, cell in enumerate(group[side]):
                with Image.open(io.BytesIO(cell["png"])) as image:
                    tile = image.convert("RGB").resize((SHEET_CELL, SHEET_CELL), _resampling(image.width))
                sheet.paste(tile, (left + place * SHEET_CELL, line * SHEET_CELL))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _resampling(side: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if side <= SHEET_CELL else Image.Resampling.BOX
