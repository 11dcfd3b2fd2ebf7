"""The rows of a data set as the page reads them: a line of JSON, then every column as float64."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from rarefy.manifest import Manifest

KEY, NUMBER, CLASS, FLAG = "key", "number", "class", "flag"
ALIGNMENT = 8  # of the columns, in bytes
FACTS = {
    "seed": "seed", "steps": "steps", "guidance": "guidance", "tar": "shard", "nearest_real": "nearest real image",
    "image_sha256": "sha256 of the PNG", "checkpoint_sha256": "sha256 of the weights",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """What the page shows of a column. kind: key (11 digits as a number), number, class (its id) or flag (0 or 1)."""

    name: str
    label: str
    kind: str
    meaning: str = ""


COLUMNS = (
    Column("key", "key", KEY),
    Column("class_id", "class", CLASS),
    Column("confidence", "confidence", NUMBER, "probability of the class asked for at t = 0"),
    Column("entropy", "entropy", NUMBER, "entropy of the class probabilities at t = 0, in nats"),
    Column("margin", "margin", NUMBER, "highest less second highest probability"),
    Column("predicted_id", "classifier says", CLASS, "class with the highest probability at t = 0"),
    Column("rarity", "rarity", NUMBER, "radius of the smallest neighbourhood of a real image around it"),
    Column("inside", "within real data", FLAG, "whether it is within the real data"),
    Column("avgknn", "mean distance", NUMBER, "mean distance to the k nearest real images"),
    Column("nearest_distance", "nearest real", NUMBER, "distance to the nearest real image"),
    Column("copy_ratio", "copy ratio", NUMBER, "at most 1 for a suspected copy of a real image"),
    Column("candidate", "candidate", NUMBER, "which draw was kept, from 0"),
    Column("accepted", "accepted", FLAG, "whether [accept] accepted it"),
    Column("excluded", "dropped", FLAG, "whether it is on the exclusion list"),
)


def encode_table(rows: pd.DataFrame, excluded: Collection[str], classes: Mapping[int, str]) -> bytes:
    """The columns that ``rows`` has. A missing value is NaN; the float64 are little-endian."""
    rows = rows.assign(excluded=rows["key"].isin(list(excluded)))
    shown = [column for column in COLUMNS if column.name in rows]
    header = {"rows": len(rows), "classes": list(classes.items()), "columns": [asdict(column) for column in shown]}
    line = json.dumps(header, ensure_ascii=False).encode()
    padding = b" " * (-(len(line) + 1) % ALIGNMENT)
    values = [pd.to_numeric(rows[column.name]).to_numpy(np.dtype("<f8"), na_value=np.nan) for column in shown]
    return b"".join([line, padding, b"\n", *(value.tobytes() for value in values)])


def class_names(manifest: Manifest) -> dict[int, str]:
    """Every class that an image or the classifier can have, by id, in alphabetical order of the names."""
    names = manifest.preset.labels
    numbered = all(name.isdigit() for name in names)
    return dict(sorted(enumerate(names), key=lambda each: each if numbered else (each[1].casefold(), each[0])))


def facts(row: Mapping[str, object]) -> list[tuple[str, str]]:
    """What else the row of an image says, by label: texts, and whole numbers too large for the page's table."""
    return [
        (FACTS[name], str(row[name]) or "none")
        for name in FACTS
        if name in row and not pd.isna(row[name])  # type: ignore[call-overload]
    ]
