"""Parquet files with the images in them, as the Hugging Face Hub has them: ``data/train-00000-of-00003.parquet``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rarefy.export.chosen import Chosen, Image
from rarefy.export.table import label_table, with_features

FILE_BYTES = 500_000_000  # what the Hub recommends for a file
# A reader takes a row group at once, so it has at most so many images, and ends after so many bytes.
GROUP_IMAGES, GROUP_BYTES = 1000, 32_000_000
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(chosen: Chosen, images: Iterable[Image], folder: Path) -> None:
    """Write the images with their rows, in the order of the images, to files of at most about 500 MB."""
    data = folder / "data"
    data.mkdir(parents=True)
    parts = list(_write_parts(chosen, images, data))
    for number, part in enumerate(parts):
        part.rename(data / f"train-{number:05d}-of-{len(parts):05d}.parquet")


def _write_parts(chosen: Chosen, images: Iterable[Image], data: Path) -> Iterator[Path]:
    """Write files under preliminary names, because the final ones say how many there are."""
    groups = _groups(images)
    for number, first in enumerate(groups):
        part = data / f"{number}.parquet"
        table = _table(chosen, first)
        with pq.ParquetWriter(part, table.schema, compression="zstd") as writer:
            writer.write_table(table)
            size_bytes = table.nbytes
            while size_bytes < FILE_BYTES - GROUP_BYTES and (group := next(groups, None)):
                table = _table(chosen, group)
                writer.write_table(table)
                size_bytes += table.nbytes
        yield part


def _groups(images: Iterable[Image]) -> Iterator[list[Image]]:
    """The images of each row group."""
    group, size_bytes = list[Image](), 0
    for image in images:
        group.append(image)
        size_bytes += len(image.png)
        if len(group) == GROUP_IMAGES or size_bytes >= GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _table(chosen: Chosen, group: list[Image]) -> pa.Table:
    files = pa.array([{"bytes": image.png, "path": f"{image.key}.png"} for image in group], IMAGE)
    rows = chosen.rows.iloc[[image.row for image in group]]
    return with_features(label_table(rows, {"image": files}), chosen.manifest.preset.labels, "image")
