"""The columns of a data set in the terms of Hugging Face: in the card's front matter, and in exported Parquet files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa

from rarefy.shards.metadata import SCHEMA

DTYPES = {"double": "float64", "float": "float32"}  # where pyarrow's name of a type is another


def dtype(kind: pa.DataType) -> str:
    """The name of a column's type."""
    return DTYPES.get(str(kind), str(kind))


def class_labels(names: Sequence[str]) -> tuple[str, ...]:
    """The names by class id. ``ClassLabel`` takes each name once, so a repeated one gets its id: ``crane (134)``."""
    counts = Counter(names)
    labels = tuple(f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names))
    return labels if len(set(labels)) == len(labels) else tuple(f"{name} ({n})" for n, name in enumerate(names))


def yaml_string(text: str) -> str:
    """A quoted YAML string. A JSON string is one unless it has surrogate pairs, which YAML does not join."""
    each = (f"\\U{ord(char):08X}" if ord(char) > 0xFFFF else json.dumps(char)[1:-1] for char in text)
    return f'"{"".join(each)}"'


def shard_features(names: Sequence[str]) -> str:
    """What ``load_dataset`` reads from the shards, as YAML: the value of ``features`` in the card's ``dataset_info``.

    The order is that of a sample's files in the tar, and in ``json``, that of its keys.
    """
    labels = [f"'{number}': {yaml_string(name)}" for number, name in enumerate(class_labels(names))]
    struct = [_entry(name, dtype(SCHEMA.field(name).type)) for name in sorted(SCHEMA.names)]
    return "\n".join(
        (
            "- name: cls",
            "  dtype:",
            "    class_label:",
            "      names:",
            *_indented(labels, 8),
            "- name: json",
            "  struct:",
            *_indented(struct, 2),
            *(_entry(name, kind) for name, kind in (("png", "image"), ("__key__", "string"), ("__url__", "string"))),
        )
    )


def _entry(name: str, kind: str) -> str:
    return f"- name: {name}\n  dtype: {kind}"


def _indented(entries: Iterable[str], spaces: int) -> Iterable[str]:
    return (" " * spaces + line for entry in entries for line in entry.splitlines())
