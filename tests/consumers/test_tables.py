"""Libraries that read OUT/metadata as a table, by the snippet in docs/EXPORT.md."""

from __future__ import annotations

from collections import Counter

import pytest
from libraries import Run, Snippet
from planted_run import is_accepted, planted_confidence

from rarefy.shards.metadata import SCHEMA


def test_metadata(demo: Run, snippet: Snippet) -> None:
    for name in ("duckdb", "polars"):
        pytest.importorskip(name)
    names = snippet("import polars")
    assert names["table"].columns.tolist() == SCHEMA.names
    assert dict(zip(names["table"]["key"], names["table"]["class_id"], strict=True)) == demo.labels
    unsure = sorted(names["unsure"]["key"])
    assert unsure == sorted(key for key in demo.labels if planted_confidence(key) < 0.6)
    assert Counter(dict(names["counts"])) == Counter(names["table"]["class_name"].tolist())
    assert sorted(names["arrow"]["key"].to_pylist()) == sorted(key for key in demo.labels if is_accepted(key))


@pytest.mark.parametrize("name", ["metadata", "rarity"])
def test_polars_reads_the_folder_at_once(name: str, demo: Run) -> None:
    """It refuses a folder of Parquet files that has a file of another kind."""
    polars = pytest.importorskip("polars")
    assert sorted(polars.read_parquet(demo.folder / name)["key"]) == sorted(demo.labels)


def test_rows(demo: Run, snippet: Snippet) -> None:
    rare = snippet("read_rows")["rare"]
    keys = [key for key in sorted(demo.labels) if is_accepted(key) and int(key) > 30 and int(key) % 2 == 0]
    assert rare["key"].tolist() == keys
