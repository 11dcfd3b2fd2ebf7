"""The columns of exported images as an Arrow table, which Hugging Face's ``datasets`` and plain readers understand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pandas as pd
import pyarrow as pa

from rarefy.shards.features import class_labels, dtype
from rarefy.shards.metadata import SCHEMA

OTHERS = {"inside": pa.bool_(), "nearest_real": pa.string()}  # what is neither in SCHEMA nor a real number
FEATURES = b"huggingface"  # where datasets looks in a schema's metadata


def label_table(rows: pd.DataFrame, leading: Mapping[str, pa.Array]) -> pa.Table:
    """A table of the leading columns, ``label`` (the class id) and the columns of the rows. NaN becomes null."""
    columns = dict(leading) | {"label": pa.array(rows["class_id"], pa.int64())}
    for name in rows.columns.drop("tar"):
        kind = SCHEMA.field(name).type if name in SCHEMA.names else OTHERS.get(name, pa.float64())
        columns[name] = pa.array(rows[name], kind, from_pandas=True)
    return pa.table(columns)


def with_features(table: pa.Table, class_names: Sequence[str], image: str | None = None) -> pa.Table:
    """The table with the features that ``datasets`` reads: names of the labels. image: the column with images."""
    plain = {field.name: {"dtype": dtype(field.type), "_type": "Value"} for field in table.schema}
    features: dict[str, object] = plain | {"label": {"names": class_labels(class_names), "_type": "ClassLabel"}}
    if image is not None:
        features[image] = {"_type": "Image"}
    return table.replace_schema_metadata({FEATURES: json.dumps({"info": {"features": features}})})
