"""Images on the page: inline, grouped by class or paired with what they copy; and the contact sheet."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

from PIL import Image

from rarefy.audit.schema import ClassRow, SuspectedCopy
from rarefy.audit.tables import CopyImages, RarestImage

# An image beyond this many bytes or pixels is shown as a thumbnail, or a page of 256 px images would be as large as a
# shard.
HEAVY, THUMBNAIL = 6_000, 128
SHEET_CELL = 56
SHEET_GAP = 28
COPY_KINDS = {
    "reference": "close to real image",
    "held-out": "close to held-out real image",
    "exact": "same pixels as",
    "near": "nearly the same as",
}


@dataclass(frozen=True)
class RarestCell:
    """One of the rarest images. off_class: the classifier predicts another class."""

    image: RarestImage
    uri: str
    nearest_uri: str | None
    off_class: bool


@dataclass(frozen=True)
class RarestGroup:
    """The rarest images of one class, rarest first."""

    name: str
    generated: list[RarestCell] = field(default_factory=list)
    real: list[RarestCell] = field(default_factory=list)


@dataclass(frozen=True)
class CopyView:
    """A suspected copy in words, with both images if they are available."""

    copy: SuspectedCopy
    class_name: str
    what: str
    uri: str | None
    other_uri: str | None


def rarest_groups(images: list[RarestImage], classes: list[ClassRow]) -> list[RarestGroup]:
    """One group per class, by class id."""
    names = {row.class_id: row.class_name for row in classes}
    groups: dict[int, RarestGroup] = {}
    for image in sorted(images, key=lambda image: (image.class_id, image.rank)):
        group = groups.setdefault(image.class_id, RarestGroup(names[image.class_id]))
        off_class = image.predicted_id not in (None, image.class_id)
        nearest = None if image.nearest_png is None else data_uri(image.nearest_png)
        cell = RarestCell(image, data_uri(image.png), nearest, off_class)
        (group.generated if image.side == "generated" else group.real).append(cell)
    return list(groups.values())


def copy_views(copies: list[SuspectedCopy], images: list[CopyImages], classes: list[ClassRow]) -> list[CopyView]:
    """The suspected copies in the audit's order."""
    names = {row.class_id: row.class_name for row in classes}
    uris = {(image.key, image.other): (data_uri(image.png), data_uri(image.other_png)) for image in images}
    return [
        CopyView(
            copy,
            names.get(copy.class_id, str(copy.class_id)),
            COPY_KINDS[copy.kind],
            *uris.get((copy.key, copy.other), (None, None)),
        )
        for copy in copies
    ]


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
        for cells, left in ((group.generated, 0), (group.real, right)):
            for place, cell in enumerate(cells):
                with Image.open(io.BytesIO(cell.image.png)) as image:
                    tile = image.convert("RGB").resize((SHEET_CELL, SHEET_CELL), _resampling(image.width))
                sheet.paste(tile, (left + place * SHEET_CELL, line * SHEET_CELL))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _resampling(side: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if side <= SHEET_CELL else Image.Resampling.BOX
