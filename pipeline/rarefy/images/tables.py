"""Parquet files and the Arrow files of Hugging Face ``datasets``: a column of encoded images and one of labels."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rarefy.errors import DataError
from rarefy.images.decode import BrokenImageError, open_image
from rarefy.images.items import Found, Skipped, Source, make_source
from rarefy.images.shards import check_label

KEPT_GROUPS = 2  # parts of a table whose images are in memory: rows are read in order, by a few threads
LABEL_NAMES = ("label", "labels", "class", "class_name", "cls", "target")


@dataclass(frozen=True)
class Columns:
    """Names of a table's two columns, and the class names by id if the table has them."""

    image: str
    label: str
    names: tuple[str, ...]


class Table:
    """One file, read part by part (row groups or record batches). Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._column: Callable[[int, str], pa.Array]
        try:
            if path.suffix == ".parquet":
                parquet = pq.ParquetFile(path)
                self.schema, self.parts = parquet.schema_arrow, parquet.num_row_groups
                self._column = lambda part, name: parquet.read_row_group(part, [name])[name].combine_chunks()
            else:
                batches = _record_batches(path)
                self.schema, self.parts = batches.schema, batches.column(0).num_chunks
                self._column = lambda part, name: batches[name].chunk(part)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        self._images = functools.lru_cache(KEPT_GROUPS)(self._column)

    def labels(self, part: int, column: str) -> list[Any]:
        """The labels of a part. Raises DataError."""
        try:
            return list(self._column(part, column).to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None

    def image(self, part: int, row: int, column: str) -> bytes:
        """The encoded image of a row of a part. Raises BrokenImageError."""
        try:
            with self._lock:
                value = self._images(part, column)[row].as_py()
        except (pa.ArrowException, OSError) as error:
            raise BrokenImageError(" ".join(str(error).split())) from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BrokenImageError("the table does not contain its bytes")
        return data

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"data: {self.path} is not a readable table ({' '.join(str(error).split())})")


@dataclass(frozen=True, slots=True)
class RowPlace:
    """An image in a row of a table."""

    table: Table
    column: str
    part: int
    row: int
    number: int

    @property
    def file(self) -> str:
        """Path of the table."""
        return str(self.table.path)

    def __str__(self) -> str:
        return f"row {self.number} of {self.table.path}"

    def open(self) -> Image.Image:
        """See Place."""
        return open_image(self.table.image(self.part, self.row, self.column))


def read_tables(root: Path, files: Sequence[Path], form: str, skipped: Skipped) -> Source:
    """List the rows of all files, in order."""
    found = [image for file in files for image in _rows(file, file.relative_to(root).with_suffix("").as_posix())]
    if not found:
        raise DataError(f"data: the tables in {str(root)!r} have no rows")
    return make_source(root, form, found, skipped)


def _rows(file: Path, stem: str) -> Iterator[Found]:
    table, number = Table(file), 0
    columns = find_columns(file, table.schema)
    for part in range(table.parts):
        for row, label in enumerate(table.labels(part, columns.label)):
            name = _label_name(label, columns.names, f"row {number} of {file}: {columns.label}")
            yield Found(f"{stem}/{number:06d}", name, RowPlace(table, columns.image, part, row, number))
            number += 1


def _label_name(label: object, names: Sequence[str], field: str) -> str:
    if isinstance(label, int) and not isinstance(label, bool):
        if 0 <= label < len(names):
            return names[label]
        if not names:
            return check_label(str(label), field)
    elif isinstance(label, str) and not names:
        return check_label(label.strip(), field)
    allowed = f"a number from 0 to {len(names) - 1}" if names else "a class id or a class name"
    raise DataError(f"data: {field}: {label!r} is not {allowed}")


def find_columns(file: Path, schema: pa.Schema) -> Columns:
    """The columns of images and labels, as Hugging Face's metadata or the columns' types and names say.

    Raises DataError, which lists the columns, if there is no such column or more than one.
    """
    features = _features(file, schema)
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    images = images or [each.name for each in schema if _holds_images(each.type)]
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    named = [each.name for each in schema if each.name.lower() in LABEL_NAMES and _holds_labels(each.type)]
    others = [each.name for each in schema if _holds_labels(each.type)]
    labels = next((found for found in (named, classes, others) if found), [])
    for kind, found in (("images", images), ("labels", labels)):
        if len(found) != 1:
            which = f"columns {', '.join(found)} could all be it" if found else "there is none"
            raise DataError(
                f"data: {file} must have one column of {kind}; {which} (columns: {', '.join(schema.names)})"
            )
    names = features.get(labels[0], {}).get("names", ())
    return Columns(images[0], labels[0], tuple(check_label(str(name), f"{file}: class name") for name in names))


def _features(file: Path, schema: pa.Schema) -> Mapping[str, Mapping[str, Any]]:
    """Hugging Face's description of the columns: in the schema, else in dataset_info.json beside the file."""
    info = file.with_name("dataset_info.json")
    try:
        if b"huggingface" in (schema.metadata or {}):
            features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        else:
            features = json.loads(info.read_bytes()).get("features") if info.is_file() else {}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"data: the description of the columns of {file} cannot be read ({error!r})") from None
    return {name: each for name, each in (features or {}).items() if isinstance(each, dict) and name in schema.names}


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(value) or pa.types.is_string(value) or pa.types.is_large_string(value))


def _record_batches(path: Path) -> pa.Table:
    """A memory-mapped table of an Arrow file: a stream, as datasets writes it, or the file format."""
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()
