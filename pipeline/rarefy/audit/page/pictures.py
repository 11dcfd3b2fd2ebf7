"""Images on the page: inline, grouped by class, and the contact sheet."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

from PIL import Image

from rarefy.audit.schema import ClassRow
from rarefy.audit.tables import RarestImage

# Images with more bytes or pixels become thumbnails; otherwise a page of 256 px images would be as large as a shard.
HEAVY, THUMBNAIL = 6_000, 128
SHEET_CELL = 56
SHEET_GAP = 28


@dataclass(frozen=True)
class RarestGroup:
    """The rarest images of one class, rarest first."""

    name: str
    generated: list[RarestImage] = field(default_factory=list)
    real: list[RarestImage] = field(default_factory=list)


def rarest_groups(images: list[RarestImage], classes: list[ClassRow]) -> list[RarestGroup]:
    """One group per class, by class id."""
    names = {row.class_id: row.class_name for row in classes}
    groups: dict[int, RarestGroup] = {}
    for image in sorted(images, key=lambda image: (image.class_id, image.rank)):
        group = groups.setdefault(image.class_id, RarestGroup(names[image.class_id]))
        (group.generated if image.side == "generated" else group.real).append(image)
    return list(groups.values())


def data_uri(png: bytes) -> str:
    """The image inline: the PNG itself if it is small, else a WebP thumbnail."""
    with Image.open(io.BytesIO(png)) as image:
        if len(png) <= HEAVY and max(image.size) <= THUMBNAIL:
            return "data:image/png;base64," + base64.b64encode(png).decode()
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(groups: list[RarestGroup]) -> bytes:
    """PNG with one line per class: its rarest generated images on the left, the rarest real ones on the right."""
    right = max(len(group.generated) for group in groups) * SHEET_CELL + SHEET_GAP
    width = right + max(len(group.real) for group in groups) * SHEET_CELL
    sheet = Image.new("RGB", (width, len(groups) * SHEET_CELL), "white")
    for line, group in enumerate(groups):
        for images, left in ((group.generated, 0), (group.real, right)):
            for place, cell in enumerate(images):
                with Image.open(io.BytesIO(cell.png)) as image:
                    sampling = Image.Resampling.NEAREST if image.width <= SHEET_CELL else Image.Resampling.BOX
                    tile = image.convert("RGB").resize((SHEET_CELL, SHEET_CELL), sampling)
                sheet.paste(tile, (left + place * SHEET_CELL, line * SHEET_CELL))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
