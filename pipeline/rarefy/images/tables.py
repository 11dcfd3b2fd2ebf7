"""Parquet files and the Arrow files of Hugging Face ``datasets``: a column of encoded images and one of labels."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rarefy.errors import DataError
from rarefy.images.decode import BrokenImageError, open_image
from rarefy.images.folders import EMPTY
from rarefy.images.items import Found, Skipped, Source, make_source
from rarefy.images.shards import check_label

KEPT_BYTES, KEPT_PARTS = 512 << 20, 2  # encoded images in memory: this much, and at least this many parts
LABEL_NAMES = ("label", "labels", "class", "class_name", "cls", "target")


@dataclass(frozen=True)
class Columns:
    """Names of a table's two columns, and the class names by id if the table has them."""

    image: str
    label: str
    names: tuple[str, ...]


class Table:
    """One Parquet or Arrow file, whose columns are read part by part (row groups or record batches)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._named():
            if path.suffix == ".parquet":
                with pq.ParquetFile(path) as file:
                    self.schema, self.parts = file.schema_arrow, file.num_row_groups
                self._batches = None
            else:
                self._batches = _record_batches(path)
                self.schema, self.parts = self._batches.schema, self._batches.column(0).num_chunks

    def column(self, part: int, name: str) -> pa.Array:
        """One column of a part. Raises DataError."""
        with self._named():
            if self._batches is not None:
                return self._batches[name].chunk(part)
            with pq.ParquetFile(self.path) as file:  # not kept open: a set can have thousands of files
                return file.read_row_group(part, [name])[name].combine_chunks()

    def __reduce__(self) -> tuple[type[Table], tuple[Path]]:
        return Table, (self.path,)  # otherwise an Arrow file would be copied into the pickle

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            message = f"data: {self.path} is not a readable table ({' '.join(str(error).split())})"
            raise DataError(message) from None


class ImageColumns:
    """The image columns that were read last. Threads that decode neighbouring rows read each part once."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Path, int], pa.Array] = OrderedDict()

    def __reduce__(self) -> tuple[type[ImageColumns], tuple[int]]:
        return ImageColumns, (self._kept_bytes,)  # without what it keeps, which its process may not share

    def get(self, table: Table, part: int, name: str) -> pa.Array:
        """The images of a part. Raises DataError."""
        with self._lock:
            key = (table.path, part)
            if key not in self._kept:
                self._kept[key] = table.column(part, name)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT_PARTS and sum(each.nbytes for each in self._kept.values()) > self._kept_bytes:
                self._kept.popitem(last=False)
            return self._kept[key]


@dataclass(frozen=True, slots=True)
class RowPlace:
    """An image in a row of a part of a table. number: of the row in the whole table, for people."""

    columns: ImageColumns
    table: Table
    name: str
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
        value = self.columns.get(self.table, self.part, self.name)[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BrokenImageError("the table does not contain its bytes")
        return open_image(data)


def read_tables(root: Path, files: Sequence[Path], form: str, skipped: Skipped) -> Source:
    """List the rows of all files, in order."""
    kept = ImageColumns()
    tables = [(table := Table(file), find_columns(file, table.schema)) for file in files]
    found = [image for table, columns in tables for image in _rows(table, columns, kept)]
    if not found:
        raise DataError(f"data: the tables in {str(root)!r} have no rows")
    used = {image.class_name for image in found}
    for name in dict.fromkeys(name for _, columns in tables for name in columns.names):
        if name not in used:
            skipped[EMPTY].add(name)
    return make_source(root, form, found, skipped)


def _rows(table: Table, columns: Columns, kept: ImageColumns) -> Iterator[Found]:
    file, number = table.path, 0
    for part in range(table.parts):
        for row, label in enumerate(table.column(part, columns.label).to_pylist()):
            name = _label_name(label, columns.names, f"row {number} of {file}: {columns.label}")
            yield Found(f"{file.stem}/{number:06d}", name, RowPlace(kept, table, columns.image, part, row, number))
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
    both = [name for name in named if name in classes]  # what ``rarefy export`` writes also has ``class_name``
    labels = next((found for found in (both, named, classes, others) if found), [])
    for kind, found in (("images", images), ("labels", labels)):
        if len(found) != 1:
            which = f"columns {', '.join(found)} could all be it" if found else "there is none"
            raise DataError(
                f"data: {file} must have one column of {kind}; {which} (columns: {', '.join(schema.names)})"
            )
    names = features.get(labels[0], {}).get("names", ())
    return Columns(images[0], labels[0], tuple(check_label(str(name), f"{file}: class name") for name in names))


def _features(file: Path, schema: pa.Schema) -> Mapping[str, Mapping[str, Any]]:
    """Hugging Face's description of the columns: in the schema, else in dataset_info.json next to the file."""
    info = file.with_name("dataset_info.json")
    try:
        if b"huggingface" in (schema.metadata or {}):
            features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        else:
            features = json.loads(info.read_bytes()).get("features") if info.is_file() else {}
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
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
